"""The clock of a budget: whole models and their layers, timed as the budget wants them, quantized if the recipe quantizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from strop.compression.calling import as_batches, main_output
from strop.compression.parts import DataParts
from strop.compression.stage import Surroundings
from strop.errors import StropError
from strop.estimators import measure
from strop.estimators.latency import ByPosition
from strop.estimators.runtimes import runtime
from strop.export.layer_times import PRECISIONS, LayerTimes, layer_times
from strop.quantization import backends, quantize

_ROUNDS = 60
#: A sample of something short is the mean of as many calls as take about so many milliseconds, 20 at most.
_SAMPLE_MS = 5.0
_MOST_CALLS = 20


@dataclass(frozen=True)
class Pace:
    """How long a model takes.

    Args:
        share: Relative to what the budget is of, as the median over rounds in which both were called.
        milliseconds: The median.
    """

    share: float
    milliseconds: float


class Clock:
    """Measures models as a budget wants them measured: one sample, on its runtime, with its threads.

    Args:
        around: The budget, the original model, the data and the backends that the recipe quantizes for.
    """

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        budget = around.budget
        self.runtime = budget.chosen_runtime
        wanted = {'compile': 'inductor'}.get(self.runtime, self.runtime)
        #: The backend that quantizes for this runtime, if the recipe does.
        self.backend = wanted if wanted in around.backends and backends()[wanted].available else None
        self.precision = 'int8' if self.backend else 'f32'
        #: Where times of layers are measured: eager if the runtime does not tell.
        self.layers_runtime = self.runtime if self.runtime in PRECISIONS else 'eager'
        self.warnings: list[str] = []
        prepare = self._prepared if budget.relative_to == 'quantized' else self._float
        self._whole = prepare(around.original, around.at(None).data)
        trial = measure({'whole': self._whole}, runs=5, threads=budget.threads)['whole'].median_ms
        self._calls = max(1, min(_MOST_CALLS, round(_SAMPLE_MS / max(trial, 1e-6))))

    def time(self, model: nn.Module, data: DataParts) -> Pace:
        """Return the time of a model, measured in turns with that of what the budget is of.

        Args:
            model: The model.
            data: The data as it sees them.
        """
        entries = {'model': self._prepared(model, data), 'whole': self._whole}
        # Threads that wait are those of one pool, but for ONNX Runtime, where each model has its own.
        wait = None if self.runtime == 'onnxruntime' else 0.0
        times = measure(entries, runs=_ROUNDS, settle_ms=wait, calls=self._calls, threads=self.around.budget.threads)
        return Pace(times.ratio('model', 'whole').value, times['model'].median_ms)

    def excess(self, pace: Pace) -> float:
        """Return a time as a share of the limit; what keeps the budget has 1 at most."""
        budget = self.around.budget
        shares = [pace.share / budget.latency] if budget.latency is not None else []
        shares += [pace.milliseconds / budget.latency_ms] if budget.latency_ms is not None else []
        return max(shares, default=0.0)

    def layers(self, model: nn.Module, data: DataParts) -> tuple[dict[str, float], LayerTimes]:
        """Return layer -> milliseconds, and the measurement that they are from.

        What belongs to no layer (norms, additions, reordering) is shared out, since it shrinks with the tensors that the layers
        give.

        Args:
            model: The model.
            data: The data as it sees them.
        """
        sample = data.example(1)
        threads = self.around.budget.threads
        try:
            if self.backend is not None and 'int8' in PRECISIONS[self.layers_runtime]:
                found = layer_times(model, sample, quantized=self._quantized(model, data), threads=threads)
            else:
                found = layer_times(model, sample, runtime=self.layers_runtime, threads=threads)
        except StropError as error:
            if self.layers_runtime == 'eager':
                raise
            self.layers_runtime = 'eager'
            self.warnings.append(f'{error} The times of layers are those of eager PyTorch.')
            found = layer_times(model, sample, runtime='eager', threads=threads)
        times = {name: layer.latency.median_ms for name, layer in found.items()}
        known = sum(times.values())
        scale = max(found.whole.median_ms / known, 1.0) if known else 1.0
        return {name: ms * scale for name, ms in times.items()}, found

    # -- internals -------------------------------------------------------------------------

    def _float(self, model: nn.Module, data: DataParts) -> Callable[[], Any]:
        return runtime(self.runtime).prepare(*_positional(model, data.example(1)), threads=self.around.budget.threads)

    def _quantized(self, model: nn.Module, data: DataParts) -> Any:
        # Ranges do not change what a kernel takes, so those of one sample do.
        return quantize(model, as_batches([data.example(1)]), backend=str(self.backend), activation='min_max', check=False)

    def _prepared(self, model: nn.Module, data: DataParts) -> Callable[[], Any]:
        """Return a call that runs a model once, quantized if the recipe does that."""
        if self.backend is None:
            return self._float(model, data)
        sample = data.example(1)
        inputs = tuple(sample) if isinstance(sample, list) else sample
        return self._quantized(model, data).bind(inputs, self.around.budget.threads)


class _Judged(ByPosition):
    """A model that takes keyword arguments by position, and gives only what it is judged by."""

    def forward(self, *values: Any) -> Tensor:
        return main_output(super().forward(*values), dict(zip(self.names, values)))


def _positional(model: nn.Module, sample: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    if isinstance(sample, Mapping):
        return _Judged(model, list(sample)), tuple(sample.values())
    return model, tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)


__all__ = ['Clock', 'Pace']
