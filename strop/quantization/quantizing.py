"""Post-training quantization in one call."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from strop.errors import BudgetError, ConfigError, EstimateError, ExportError, StropError
from strop.estimators import Measurements, measure
from strop.estimators.runtimes import check_positive, quiet
from strop.estimators.sessions import bound
from strop.files import atomic_path
from strop.graph.forward import evaluated
from strop.graph.statistics import measure_again, tracking_norms
from strop.quantization.backends import Backend, Run, check_structure
from strop.quantization.backends import backend as backend_of
from strop.quantization.backends import prepared as prepared_file
from strop.quantization.batches import Batches, Call, batch_size, check_outputs, in_order, rows, taken_by
from strop.quantization.correction import correct_biases
from strop.quantization.flow import (
    calibrate,
    capture,
    check_copyable,
    convert,
    prepare,
    pt2e,
    switchable,
    takes_any_batch,
    tensors_of,
)
from strop.quantization.layers import HEAVY, is_dequantize, is_quantize, name_layers, records, transparent
from strop.quantization.missing_ops import missing_op
from strop.quantization.patterns import patterns_of
from strop.quantization.processor import adds_in_16_bits
from strop.quantization.qat import fake_quantizers
from strop.quantization.record import Check, QuantizationRecord
from strop.quantization.reference import layer_sqnr, output_sqnr
from strop.quantization.scheme import Scheme, schemed
from strop.quantization.sensitivity import Metric, Sensitivity, fewest_in_float, measured
from strop.quantization.sensitivity import sensitivity as sensitivity_of
from strop.quantization.smoothing import smooth

# A runtime rounds at other places than the reference; this much is allowed even where quantization itself costs less.
_LEAST_LIMIT, _LARGEST_LIMIT = 0.02, 0.2
_ALONE = 8  # samples that are compared one by one
#: A captured graph adds in another order at most.
_CAPTURED = 1e-3


def quantize(
    model: nn.Module,
    data: Any,
    *,
    backend: str | Backend = 'inductor',
    batches: int | None = 32,
    activation: str = 'histogram',
    weight: str = 'min_max',
    per_channel: bool | None = None,
    symmetric: bool | None = None,
    percentile: float = 99.99,
    reduce_range: bool | None = None,
    ignored: Iterable[str] | str = (),
    bias_correction: bool = False,
    smooth_alpha: float | None = None,
    recalibrate_norms: bool = False,
    metric: Metric | None = None,
    max_drop: float | None = None,
    sensitivity: bool = False,
    check: bool = True,
) -> Quantized:
    """Quantize a trained model to 8 bits for one runtime, without training, and check it there.

    The model is captured by `torch.export`, ranges are measured on the data, and the result is written in the format of the
    runtime, run in it and compared with the quantized model. The given model stays as it is, whatever happens.

    Args:
        model: Any model that `torch.export` takes.
        data: Calibration batches: tensors, mappings of keyword arguments, or tuples whose first item is the inputs, as a
            DataLoader gives them. A few hundred samples of what the model will see.
        backend: `'inductor'`, `'onnxruntime'`, `'openvino'`, `'executorch'` or `'tensorrt'`; see `backends`.
        batches: Read at most this many batches; None reads all. They are kept in memory.
        activation: How ranges of activations are found; see `OBSERVERS`.
        weight: How ranges of weights are found: `'min_max'`, `'mse'` or `'percentile'`.
        per_channel: One scale for each output channel of a weight; the backend's default if None.
        symmetric: Activations with their zero in the middle; the backend's default if None.
        percentile: Share of values that `'percentile'` keeps, in percent.
        reduce_range: Seven bits for weights (for activations with Inductor). Processors without VNNI add pairs of products in
            16 bits, which eight by eight bits exceed: True makes a file that computes the same on all processors, False one
            that is for those with VNNI alone. None reduces where this processor has none.
        ignored: Patterns of layers that stay float; a module's name takes everything inside it.
        bias_correction: Correct biases by what rounding the weights changes in the mean (Nagel et al., ICCV 2019).
        smooth_alpha: Move large activations behind layer norms into the weights, with this exponent (SmoothQuant; 0.5 is
            usual). Exact in float.
        recalibrate_norms: Measure batch-norm statistics again on the data before anything else; batches that give a norm one
            value per channel only are left out of it.
        metric: `metric(model) -> float`, higher is better, for `max_drop`; on data of your own.
        max_drop: Most that the metric may fall; the layers that cost most stay float until it does not fall further.
        sensitivity: Quantize each layer alone and measure what that costs, on batches that are held out; one pass over them for
            each layer. With `max_drop` it is measured where it is needed.
        check: Write the file, run it in its runtime, and compare.

    Returns:
        The quantized model, the record, and what writes and runs it.

    Raises:
        ConfigError: If an argument is not what it can be, or the backend cannot run the scheme.
        BudgetError: If `max_drop` cannot be kept, or only with every layer in float.
        DataError: If the data is empty, not finite, or of another shape than the model takes.
        MissingDependencyError: If the backend is not installed; the message names the extra.
        ExportError: If the model does not export, or its runtime computes something else.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    >>> result = quantize(net, [torch.randn(4, 3, 8, 8)], backend='tensorrt')
    >>> [(layer.name, layer.weight_bits) for layer in result.record.layers]
    [('0', 8), ('3', 8)]
    """
    entry = backend_of(backend)
    if not isinstance(model, nn.Module):
        raise ConfigError(f'`quantize` takes an nn.Module, but got {type(model).__name__}.')
    if fake_quantizers(model):
        raise ConfigError(
            'This model has fake quantizers, whose steps are learned already: strop.quantization.deploy brings it to a runtime.'
        )
    if metric is not None and not callable(metric):
        raise ConfigError(f'`metric` is a function of a model that gives one number, but got {metric!r}.')
    number = isinstance(max_drop, (int, float)) and not isinstance(max_drop, bool)
    if max_drop is not None and (metric is None or not number or not max_drop >= 0):
        raise ConfigError(
            f'`max_drop` is how far `metric(model)` may fall, 0 or more, and needs the metric; got max_drop={max_drop!r}, '
            f'metric={metric!r}.'
        )
    scheme = Scheme(activation, weight, per_channel, symmetric, percentile, reduce_range).on(entry)
    patterns = patterns_of('ignored', ignored)
    entry.require()
    device = next((tensor.device for tensor in model.parameters()), torch.device('cpu'))
    if device.type != 'cpu':
        raise ConfigError(
            f'Every backend here runs on the CPU, but the model is on {device}: quantize `copy.deepcopy(model).cpu()`.'
        )
    other = next((t.dtype for t in model.parameters() if t.is_floating_point() and t.dtype != torch.float32), None)
    if other is not None:
        raise ConfigError(
            f'Models are quantized from float32, but this one has parameters in {str(other).removeprefix("torch.")}: quantize '
            '`copy.deepcopy(model).float()` with such data.'
        )
    given = Batches.of(data, batches, torch.device('cpu'))
    used, held = given.split() if max_drop is not None or sensitivity else (given, Batches(given.calls[-1:]))
    _check_model(model, given)
    twin = evaluated(copy.deepcopy(getattr(model, '_orig_mod', model)))
    passes: list[str] = []
    if recalibrate_norms:
        measured_on = measure_again(twin, used, lambda call: twin(*call[0], **call[1]))
        some = f' on {measured_on} of {len(used)} batches' if 0 < measured_on < len(used) else ''
        passes.append(f'{len(tracking_norms(twin))} batch norms measured again{some}')
    example = used.example(twin)
    graph = capture(twin, example)
    name_layers(graph)
    if smooth_alpha is not None:
        passes.append(f'{smooth(graph, used, smooth_alpha)} layer norms smoothed')
    job = _Job(entry, scheme, graph, used, bias_correction)
    reference = float_graph(copy.deepcopy(graph))
    _check_reference(reference, twin, given[0])
    reasons: dict[str, str] = {}
    converted, left = job.converted(patterns)
    reasons |= {name: f'by the pattern {pattern!r}' for name, pattern in left.items()}
    notes: list[str] = []
    found: tuple[float, float] | None = None
    costs: Sensitivity | None = None
    if metric is not None:
        whole = measured(metric, reference)
        found = whole, measured(metric, converted)
        if max_drop is not None and found[1] < whole - max_drop:
            unfolded = job.converted(patterns, fold=False)[0]
            costs = sensitivity_of(reference, unfolded, held, metric)
            ranking, count = list(costs), 0
            while found[1] < whole - max_drop:
                count, _ = fewest_in_float(unfolded, ranking, metric, whole - max_drop, count + 1)
                names = ranking[:count]
                converted, _ = job.converted([*patterns, *map(_literal, names)])
                found = whole, measured(metric, converted)
                if count >= len(ranking) and found[1] < whole - max_drop:
                    raise BudgetError(
                        f'Even with all {len(ranking)} layers in float the metric falls from {whole:.4g} to {found[1]:.4g}, by '
                        f'more than {max_drop:.4g}. Allow a larger drop.'
                    )
            reasons |= dict.fromkeys(names, f'because the metric would fall by more than {max_drop:.4g}')
            notes.append(f'{count} of {len(ranking)} layers were left in float for the metric.')
    if sensitivity and costs is None:
        costs = sensitivity_of(reference, job.converted(patterns, fold=False)[0], held, metric)
    if bias_correction:
        passes.append(f'{job.corrected} biases corrected')
    levels = layer_sqnr(reference, converted, held)
    layers = records(converted, reasons, levels)
    if not any(layer.quantized for layer in layers):
        nothing = f'Nothing of {type(model).__name__} would be quantized for {entry.name}: '
        if notes:
            raise BudgetError(f'{nothing}every layer would have to stay float for the metric. Allow a larger drop.')
        raise ConfigError(
            f'{nothing}every layer is ignored.'
            if patterns
            else f'{nothing}it has no layer that the backend computes with integers.'
        )
    if reduce_range is None and scheme.reduce_range:
        side = 'activations' if entry.name == 'inductor' else 'weights'
        notes.append(f'This processor has no VNNI: {side} have 7 bits, so that pairs of products fit 16 bits.')
    record = QuantizationRecord(
        backend=entry.name,
        layers=layers,
        scheme=asdict(scheme),
        samples=used.samples,
        sqnr_db=output_sqnr(reference, converted, held),
        other_ops=other_ops(converted),
        metric=found,
        passes=tuple(passes),
        notes=tuple(notes),
    )
    result = Quantized(switchable(converted), record, entry, example, reference, held, costs)
    if check:
        with tempfile.TemporaryDirectory() as folder:
            result.check = result._written(Path(folder) / f'model{entry.suffix}')
    return result


@dataclass
class Quantized:
    """A quantized model, what was done, and the ways to write and run it; unpacks as `model, record`.

    It can be copied, but not pickled: `export` writes it.

    Args:
        model: Computes what the integers would, in floats: for judging, not for speed. It is slower than the original.
        record: What was done.
        backend: The runtime that it was made for.
        example: A batch of inputs.
        reference: The float model with its batch norms folded.
        held: Batches to compare on.
        sensitivity: Which layer costs how much, if it was measured.
        check: How close the file, run in its runtime, is to `model`.
        times: What `latency` measured last.
    """

    model: GraphModule
    record: QuantizationRecord
    backend: Backend
    example: Call
    reference: GraphModule = field(repr=False)
    held: Batches = field(repr=False)
    sensitivity: Sensitivity | None = field(default=None, repr=False)
    check: Check | None = None
    times: Measurements | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.record))

    def __str__(self) -> str:
        return '\n'.join([str(self.record), *([str(self.check)] if self.check else []), *self.speed_remarks()])

    def speed_remarks(self) -> list[str]:
        """Return how `latency` found the integers beside the floats of the runtime, with a warning where nothing is gained."""
        times = self.times
        if times is None or 'f32' not in times:
            return []
        ratio = times.ratio('f32', 'int8')
        lines = [
            f'{times["int8"].median_ms:.3f} ms a call, {times["f32"].median_ms:.3f} ms in float in the same runtime: '
            f'{ratio} times as fast.'
        ]
        if ratio.high < 1:
            lines.append(f'It is SLOWER than float here in {self.backend.name}: keep the float model, or try another backend.')
        elif ratio.low < 1:
            lines.append('No gain that can be told from noise was measured.')
        return lines

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the reference in floats."""
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def export(self, path: str | os.PathLike[str]) -> Check:
        """Write the file of the runtime, run it there, and compare; it appears only if it equals the quantized model.

        Args:
            path: The file, with the backend's ending.

        Raises:
            ConfigError: If the path has another ending.
            ExportError: If it cannot be written, or computes something else; then there is no file.
        """
        target = Path(path).expanduser()
        if target.suffix != self.backend.suffix or target.is_dir():
            raise ConfigError(f'A file for {self.backend.name} ends in {self.backend.suffix!r}, but got {os.fspath(path)!r}.')
        with atomic_path(target) as temporary:
            self.check = self._written(temporary)
        return self.check

    def prepare(self, threads: int = 1, precision: str | None = None) -> Callable[..., list[torch.Tensor]]:
        """Return the model as its runtime computes it: a function of the model's arguments that gives a list of tensors.

        Arguments are given as those of the calibration data were, by position or by name.

        Args:
            threads: Threads to compute with.
            precision: What is not integer is computed in this: `'f32'`, or where the runtime has it `'bf16'`.

        Raises:
            ConfigError: If files of this backend cannot be run here.
        """
        run = self._loaded(self.model, threads, precision)
        return lambda *args, **kwargs: run(tensors_of(in_order(self.example, args, kwargs)))

    def bind(
        self, inputs: Any = None, threads: int = 1, precision: str | None = None, floats: bool = False
    ) -> Callable[[], Any]:
        """Return a call without arguments that runs the quantized model on these inputs in its runtime, as latencies are of.

        What it returns is the runtime's own, and the next call may overwrite it.

        Args:
            inputs: Example inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments; the first sample of the
                calibration data by default.
            threads: Threads to compute with.
            precision: What is not integer is computed in this.
            floats: Run the float model in the same runtime instead.

        Raises:
            ConfigError: If files of this backend cannot be run here.
            DataError: If the inputs are not finite, or others than those of the calibration data.
            EstimateError: If the runtime does not take inputs of this shape.
        """
        args, kwargs = call = self._call(inputs)
        tensors = tensors_of(in_order(self.example, args, kwargs))
        run = self._loaded(self.reference if floats else self.model, threads, precision, call)
        try:
            return bound(run, tensors)
        except StropError:
            raise
        except Exception as error:  # whatever a runtime raises
            shapes = ', '.join(str(tuple(tensor.shape)) for tensor in tensors)
            wanted = ', '.join(str(tuple(tensor.shape)) for tensor in tensors_of(self.example))
            raise EstimateError(
                f'{self.backend.name} does not take inputs of the shapes {shapes}; the calibration data had {wanted}: '
                f'{type(error).__name__}: {str(error)[:300]}'
            ) from error

    def latency(
        self, inputs: Any = None, *, threads: int = 1, runs: int = 30, precisions: Iterable[str] = ('f32',)
    ) -> Measurements:
        """Measure the quantized model beside the float model in the same runtime; `print(result)` tells where it is slower.

        Args:
            inputs: Example inputs, as `bind` takes them.
            threads: Threads to compute with.
            runs: Rounds.
            precisions: What the float model is measured in.

        Returns:
            Latencies named `'int8'`, `'f32'`, ...; `.ratio('int8', 'f32')` below 1 means faster.

        Raises:
            ConfigError: If files of this backend cannot be run here.
        """
        check_positive(threads=threads, runs=runs)
        entries = {'int8': self.bind(inputs, threads)}
        for precision in precisions:
            entries[precision] = self.bind(inputs, threads, precision, floats=True)
        self.times = measure(entries, threads=threads, runs=runs)
        return self.times

    # -- internals -------------------------------------------------------------------------

    @property
    def _batch(self) -> int | None:
        """The batch size of the example; None where the model takes no other."""
        return batch_size(self.example) if takes_any_batch(self.reference) else None

    def _sample(self) -> Call:
        return rows(self.example, 0, 1) if self._batch is not None else self.example

    def _call(self, inputs: Any) -> Call:
        if inputs is None:
            return self._sample()
        return Batches.of([inputs if not isinstance(inputs, tuple) else (inputs,)])[0]

    def _loaded(self, graph: GraphModule, threads: int, precision: str | None, call: Call | None = None) -> Run:
        check_positive(threads=threads)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f'model{self.backend.suffix}'
            self._write(graph, path, call)
            return prepared_file(self.backend, path, threads, precision)

    def _write(self, graph: GraphModule, path: Path, call: Call | None = None) -> None:
        example = (call or self._sample()) if not self.backend.open_batch else self.example
        try:
            self.backend.write(graph, example, path)
        except (StropError, ImportError):
            raise
        except Exception as error:
            reason = f'{type(error).__name__}: {str(error)[:800]}'
            raise ExportError(
                missing_op(graph, error, self.backend.name)
                or f'The quantized model could not be written for {self.backend.name}: {reason}'
            ) from error

    def _written(self, path: Path) -> Check:
        self._write(self.model, path)
        if self.backend.load is None:
            check_structure(path)
            return Check(self.backend.name, self.backend.version, None, None, (), ran=False)
        run = prepared_file(self.backend, path)
        # One code that tips over tips others behind it; at worst the rounding noise of a whole network is another one.
        limit = max(_LEAST_LIMIT, min(10 ** (-min(self.record.sqnr_db, 300) / 20), _LARGEST_LIMIT))
        try:
            return compared(self.model, run, self.backend, self._calls(), limit)
        except ExportError as error:
            whole = any(layer.weight_bits == layer.input_bits == 8 for layer in self.record.layers)
            if not (whole and self.backend.reduce_range[-1] and adds_in_16_bits()):
                raise
            raise ExportError(
                f'{error} This processor adds pairs of products in 16 bits (x86 without VNNI), which eight by eight bits '
                'exceed: leave out reduce_range=False, or quantize where VNNI is.'
            ) from None

    def _calls(self) -> list[list[Call]]:
        """Return what to compare on, by batch size: the example where the batch size is open, and samples one by one.

        The limit is the noise of many samples; that of a single one scatters about it, so that several are taken together.
        """
        size = self._batch
        alone = [self.example] if size in (None, 1) else [rows(self.example, at, at + 1) for at in range(min(size, _ALONE))]
        return [alone] if not self.backend.open_batch or size in (None, 1) else [[self.example], alone]


def compared(model: Callable[..., Any], run: Run, entry: Backend, calls: Iterable[Sequence[Call]], limit: float) -> Check:
    """Compare what a runtime gives with the quantized model.

    Shapes are those of all outputs. Whole numbers, such as labels, and truth values count only where the model gives nothing
    else: a label tips over where two scores are as good as equal. What counts then is the share of values that differ, of which
    20 % are allowed whatever the limit, since a share says nothing about noise.

    Args:
        model: The quantized model.
        run: Runs the file.
        entry: The backend.
        calls: Inputs, those of one batch size together: the limit holds for each output over all of them.
        limit: The largest root of the mean square of the difference, relative to that of the output.

    Raises:
        ExportError: If they differ by more than the limit; the message says in which output, for which sample.
    """
    worst, sizes = 0.0, []
    for group in calls:
        size = batch_size(group[0]) or 1
        pairs = [_both(model, run, entry, call, size) for call in group]
        places, whole = _counting([expected for _, expected in pairs[0]])
        limit = max(limit, _LARGEST_LIMIT) if whole else limit
        for index in places:
            outputs = [pair[index] for pair in pairs]
            found, wanted = (torch.cat([pair[side].reshape(-1) for pair in outputs]) for side in (0, 1))
            relative = _distance(found, wanted, whole)
            worst = max(worst, relative)
            if not relative <= limit:
                gaps = [
                    (actual.double() - expected.double()).nan_to_num(nan=float('inf')).abs() for actual, expected in outputs
                ]
                at = max(range(len(gaps)), key=lambda number: float(gaps[number].max()))
                place = tuple(int(i) for i in (gaps[at] == gaps[at].max()).nonzero()[0])
                sample = f' of sample {at}' if len(group) > 1 else ''
                raise ExportError(
                    f'The file for {entry.name} does not compute what the quantized model does: output {index} differs '
                    f'{_by(relative, whole)} at batch {size} (at most {limit:.1%}); the largest difference is at '
                    f'{place}{sample}: {float(outputs[at][0][place]):.6g} instead of {float(outputs[at][1][place]):.6g}. '
                    'The file is not kept.'
                )
        sizes.append(size)
    return Check(entry.name, entry.version, worst, limit, tuple(sizes))


def _counting(outputs: Sequence[torch.Tensor]) -> tuple[list[int], bool]:
    """Return the places of the outputs that are compared by value, and whether these are whole numbers or truth values."""
    floating = [place for place, output in enumerate(outputs) if output.is_floating_point() or output.is_complex()]
    return (floating, False) if floating else (list(range(len(outputs))), True)


def _distance(found: torch.Tensor, wanted: torch.Tensor, whole: bool) -> float:
    """Return the root of the mean square of the difference, relative to what is wanted; or the share of values that differ."""
    if not wanted.numel():
        return 0.0
    found, wanted = found.double(), wanted.double()
    if whole:
        return float((found != wanted).double().mean())
    difference = (found - wanted).nan_to_num(nan=float('inf'))
    return float(difference.square().mean().sqrt() / wanted.square().mean().sqrt().clamp_min(1e-12))


def _by(distance: float, whole: bool) -> str:
    return f'in {distance:.1%} of its values' if whole else f'by {distance:.1%} of its size'


def _both(
    model: Callable[..., Any], run: Run, entry: Backend, call: Call, size: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each output what the runtime gives and what the quantized model gives."""
    args, kwargs = call
    with torch.no_grad():
        expected = tensors_of(model(*args, **kwargs))
    try:
        with quiet():
            actual = run(tensors_of((args, kwargs)))
    except Exception as error:
        raise ExportError(
            f'{entry.name} fails on the quantized model at batch {size}: {type(error).__name__}: {str(error)[:500]}'
        ) from error
    if [tuple(value.shape) for value in actual] != [tuple(value.shape) for value in expected]:
        raise ExportError(
            f'{entry.name} gives outputs of the shapes {[tuple(value.shape) for value in actual]} at batch {size}, the '
            f'quantized model {[tuple(value.shape) for value in expected]}.'
        )
    return list(zip(actual, expected))


def float_graph(graph: GraphModule) -> GraphModule:
    """Return a captured graph with its batch norms folded, in float; the graph is used up."""

    class Nothing(pt2e('quantizer').Quantizer):  # type: ignore[misc]
        def annotate(self, model: GraphModule) -> GraphModule:
            return model

        def validate(self, model: GraphModule) -> None:
            return None

    name_layers(graph)
    return switchable(prepare(graph, Nothing()))


class _Job:
    """The same capture quantized several times, with other layers ignored."""

    def __init__(self, entry: Backend, scheme: Scheme, graph: GraphModule, batches: Batches, correct: bool) -> None:
        self.entry, self.scheme, self.graph, self.batches, self.correct = entry, scheme, graph, batches, correct
        self.corrected = 0

    def converted(self, ignored: Iterable[str] | str, fold: bool = True) -> tuple[GraphModule, dict[str, str]]:
        """Return the quantized graph, and layer -> the pattern that left it in float."""
        quantizer = schemed(self.entry.quantizer(reduce_range=bool(self.scheme.reduce_range)), self.scheme, ignored)
        prepared = prepare(copy.deepcopy(self.graph), quantizer)
        calibrate(prepared, self.batches)
        if self.correct:
            self.corrected = correct_biases(prepared, self.batches)
        return convert(prepared, fold=fold), quantizer.left


def _literal(name: str) -> str:
    """Return a pattern that matches exactly this name."""
    return ''.join(f'[{letter}]' if letter in '*?[' else letter for letter in name)


def _check_model(model: nn.Module, batches: Batches) -> None:
    args, kwargs = batches[0]
    check_copyable(model)
    twin = evaluated(copy.deepcopy(getattr(model, '_orig_mod', model)))
    with torch.no_grad(), taken_by(type(model).__name__, (args, kwargs)):
        outputs = twin(*args, **kwargs)
    check_outputs(outputs, type(model).__name__)


def _check_reference(reference: GraphModule, model: nn.Module, call: Call) -> None:
    """Compare the captured graph with the model: everything else is compared with the graph."""
    args, kwargs = call
    with torch.no_grad(), quiet():
        pairs = list(zip(tensors_of(reference(*args, **kwargs)), tensors_of(model(*args, **kwargs)), strict=True))
    places, whole = _counting([wanted for _, wanted in pairs])
    limit = _LARGEST_LIMIT if whole else _CAPTURED
    for index in places:
        gap = _distance(*pairs[index], whole)
        if not gap <= limit:
            raise ExportError(
                f'The graph that was captured of {type(model).__name__} gives something else than the model: output {index} '
                f'differs {_by(gap, whole)} (at most {limit:.1%}). {_doubt(model)}'
            )


def _doubt(model: nn.Module) -> str:
    """Return what may make a model give something else than its graph."""
    if any(isinstance(module, nn.TransformerEncoder) for module in model.modules()):
        return (
            'Without gradients nn.TransformerEncoder gives zeros for padded positions, which its graph does not: does the '
            'model read them, as a mean over all positions would?'
        )
    return 'Does its forward draw random numbers, or change what it computes from call to call?'


# Runtimes compute these with integers where what they read is quantized.
_COMPANIONS = frozenset(
    ('relu', 'hardtanh', 'relu6', 'add', 'max_pool2d', 'avg_pool2d', 'adaptive_avg_pool2d', 'mean', 'dropout', 'getitem')
)


def other_ops(graph: GraphModule) -> dict[str, int]:
    """Return op -> count of what computes in float and is not one of the layers."""
    counts: dict[str, int] = {}
    whole: set[Any] = set()
    for node in graph.graph.nodes:
        if node.op != 'call_function' or is_quantize(node):
            continue
        name = str(getattr(node.target, '_opname', getattr(node.target, '__name__', node.target))).strip('_')
        read = [arg for arg in node.all_input_nodes if arg.op == 'call_function']
        if is_dequantize(node) or (node.target in HEAVY and read and all(arg in whole for arg in read)):
            whole.add(node)
            continue
        if (transparent(node) or name in _COMPANIONS) and read and all(arg in whole for arg in _tensors_read(node)):
            whole.add(node)
            continue
        values = tensors_of(node.meta.get('val'))
        if node.target in HEAVY or transparent(node) or name in ('dropout', 'getitem', 'unbind', 'split', 'chunk'):
            continue
        if any(value.is_floating_point() for value in values):
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _tensors_read(node: Node) -> list[Node]:
    return [arg for arg in node.all_input_nodes if isinstance(arg.meta.get('val'), torch.Tensor) or arg.op == 'get_attr']
