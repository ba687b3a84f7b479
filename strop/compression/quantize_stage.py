"""The stage that quantizes for one runtime; the original is quantized alike, so that the gain of the other stages shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from strop.compression.budget import Budget
from strop.compression.calling import as_batches, main_output
from strop.compression.stage import REFERENCE, IntegerFile, Outcome, StageSettings, State, Surroundings
from strop.errors import BudgetError, ConfigError, MissingDependencyError
from strop.quantization import Backend, backend, backends, quantize
from strop.quantization.backends import prepared
from strop.quantization.flow import tensors_of
from strop.quantization.patterns import patterns_of
from strop.quantization.scheme import Scheme
from strop.quantization.smoothing import check_alpha
from strop.report.compression_result import Export

#: Runtime of a budget -> the backend that quantizes for it.
FOR_RUNTIME = {'openvino': 'openvino', 'onnxruntime': 'onnxruntime', 'compile': 'inductor', 'eager': 'inductor'}


@dataclass(frozen=True)
class QuantizeStage(StageSettings):
    """Quantize the model to 8 bits for one runtime; see `strop.quantize`.

    Args:
        backend: The runtime; by default that of the budget, or the first of OpenVINO, ONNX Runtime and Inductor that is there.
        activation: How ranges of activations are found.
        weight: How ranges of weights are found.
        per_channel: Scales for each channel of a weight; the backend's default if None.
        symmetric: Activations with their zero in the middle; the backend's default if None.
        percentile: Share of values that `percentile` keeps, in percent.
        reduce_range: Seven bits for weights, for processors without VNNI; where this one is such a one if None.
        ignored: Patterns of layers that stay float.
        bias_correction: Take back the shift of the mean that rounding of weights makes.
        smooth_alpha: SmoothQuant with this exponent.
        max_drop: Most points that the score on the validation samples may fall; the layers that cost most stay float. By
            default what the budget's `accuracy_drop` leaves.
        baseline: Quantize the original alike, for comparison.
        optional: Leave the stage out, and say so, where its backend is not installed.
    """

    kind: ClassVar[str] = 'quantize'
    changes_model: ClassVar[bool] = False

    backend: str | None = None
    activation: str = 'histogram'
    weight: str = 'min_max'
    per_channel: bool | None = None
    symmetric: bool | None = None
    percentile: float = 99.99
    reduce_range: bool | None = None
    ignored: Any = field(default_factory=list)
    bias_correction: bool = False
    smooth_alpha: float | None = None
    max_drop: float | None = None
    baseline: bool = True
    optional: bool = False

    def __post_init__(self) -> None:
        entry = backend(self.backend) if self.backend is not None else None
        scheme = Scheme(self.activation, self.weight, self.per_channel, self.symmetric, self.percentile, self.reduce_range)
        if entry is not None:
            scheme.on(entry)
        patterns_of('ignored', self.ignored)
        if self.smooth_alpha is not None:
            check_alpha(self.smooth_alpha)
        number = isinstance(self.max_drop, (int, float)) and not isinstance(self.max_drop, bool)
        if self.max_drop is not None and not (number and self.max_drop >= 0):
            raise ConfigError(
                f'`max_drop` of the stage `quantize` is a number of points, 0 or more, but got {self.max_drop!r}.'
            )
        for name in ('baseline', 'bias_correction', 'optional'):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f'`{name}` of the stage `quantize` is true or false, but got {getattr(self, name)!r}.')

    def chosen(self, budget: Budget) -> str:
        """Return the name of the backend."""
        if self.backend is not None:
            return self.backend
        if budget.timed or budget.runtime is not None:
            return FOR_RUNTIME[budget.chosen_runtime]
        return next((name for name in ('openvino', 'onnxruntime') if backends()[name].available), 'inductor')

    def check(self, budget: Budget, learns: bool | None = None) -> None:
        """Raise if the backend is not installed and the stage may not be left out."""
        if not self.optional:
            backend(self.chosen(budget)).require()

    def sees_backends(self, budget: Budget) -> bool:
        """Whether what is installed chooses the backend."""
        return self.backend is None

    def describe(self) -> str:
        """Return the backend."""
        return self.backend or 'for the runtime of the budget'

    def run(self, state: State, around: Surroundings) -> Outcome:
        """Quantize, write the file, run it, score it."""
        entry = backend(self.chosen(around.budget))
        if entry.missing:
            return Outcome(
                skipped=True,
                warnings=[
                    f'Nothing was quantized: {", ".join(entry.missing)} of the backend {entry.name!r} is not installed '
                    f"(pip install 'strop[{entry.extra}]')."
                ],
            )
        found = Outcome()
        jobs: list[tuple[str, nn.Module, Surroundings]] = [(around.name, state.model, around)]
        changed = (
            around.data.side is not None
            or any(
                first.shape != second.shape or not torch.equal(first, second)
                for first, second in zip(state.model.state_dict().values(), around.original.state_dict().values())
            )
            or len(state.model.state_dict()) != len(around.original.state_dict())
        )
        if self.baseline and changed and entry.load is not None:
            jobs.append((REFERENCE, around.original, around.at(None)))
        for number, (of, model, view) in enumerate(jobs):
            around.tell(number, len(jobs))
            path = around.folder / f'{"original-" if of == REFERENCE else ""}{entry.name}-int8{entry.suffix}'
            result = self._quantized(model, entry, view, found if of != REFERENCE else None)
            check = result.export(path)
            scores: dict[str, float] = {}
            if entry.load is not None:
                scores = view.judge.scores(file_run(entry, path, around.threads), 'test')
            score = scores.get(around.judge.metric)
            found.integers.append(IntegerFile(entry.name, path, of, score, scores))
            if of == REFERENCE:
                found.explanation.append(
                    f'The original, quantized alike, has {around.judge.metric} {score:.4f} on the test samples, '
                    f'computed by {entry.name}.'
                )
                continue
            found.documents['quantization'] = result.record.to_dict()
            found.explanation += [*result.record.remarks(), str(check)]
            found.scores = scores
            found.exports.append(Export(path.name, entry.suffix[1:], entry.name, check.difference, path.stat().st_size, 'int8'))
        around.progress.done(around.name)
        return found

    def _quantized(self, model: nn.Module, entry: Backend, around: Surroundings, said: Outcome | None) -> Any:
        judge = around.judge
        options: dict[str, Any] = {}
        drop = self.max_drop
        if drop is None and around.budget.accuracy_drop is not None and said is not None:
            whole = around.at(None).judge.score(around.original, 'validation')
            now = judge.score(model, 'validation')
            drop = around.budget.accuracy_drop - 100 * (whole - now)
            if drop < 0:
                said.warnings.append(
                    f'Before quantization the score had fallen by {100 * (whole - now):.2f} points on the '
                    'validation samples, more '
                    f'than accuracy_drop={around.budget.accuracy_drop:g} allows; every layer is quantized.'
                )
                drop = None
        if drop is not None and said is not None:
            options = {'metric': lambda graph: judge.score(graph, 'validation'), 'max_drop': drop / 100}
        quantized = partial(
            quantize,
            model,
            as_batches(around.data.inputs('calibration')),
            backend=entry,
            batches=None,
            activation=self.activation,
            weight=self.weight,
            per_channel=self.per_channel,
            symmetric=self.symmetric,
            percentile=self.percentile,
            reduce_range=self.reduce_range,
            ignored=self.ignored,
            bias_correction=self.bias_correction,
            smooth_alpha=self.smooth_alpha,
            check=False,
        )
        try:
            return quantized(**options)
        except BudgetError as error:
            if said is None or self.max_drop is not None:
                raise ConfigError(str(error)) from error  # no budget of the recipe, of which the nearest would be taken
            said.warnings.append(
                f'{error} Of accuracy_drop={around.budget.accuracy_drop:g} {drop:.2f} points were left on the validation '
                'samples; every layer is quantized.'
            )
            return quantized()


def file_run(entry: Backend, path: Path, threads: int) -> Callable[[Any], Any]:
    """Return what runs a quantized file: the inputs of a batch in, its main output out.

    Raises:
        ConfigError: If files of this backend are not run here.
        EstimateError: If its runtime refuses the file.
    """
    run = prepared(entry, path, threads)

    def one(inputs: Any) -> Tensor:
        tensors = tensors_of(inputs)
        # The first output is the one that models are judged by; texts need their mask to average over.
        return main_output(run(tensors)[0], inputs)

    def whole(inputs: Any) -> Tensor:
        if entry.open_batch:
            return one(inputs)
        count = len(tensors_of(inputs)[0])
        rows = [torch.utils._pytree.tree_map(lambda tensor, i=index: tensor[i : i + 1], inputs) for index in range(count)]
        return torch.cat([one(row) for row in rows])

    return whole


def planned_backends(stages: Any, budget: Budget) -> tuple[str, ...]:
    """Return the backends that the quantize stages of a recipe quantize for; those that are missing are left out."""
    found = []
    for stage in stages:
        if isinstance(stage, QuantizeStage):
            try:
                backend(stage.chosen(budget)).require()
            except MissingDependencyError:
                continue
            found.append(stage.chosen(budget))
    return tuple(found)


__all__ = ['QuantizeStage', 'file_run', 'planned_backends']
