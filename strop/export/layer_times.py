"""Where the time of a model goes: each layer's share, as the runtime itself measures it while it runs the whole model."""

from __future__ import annotations

import ast
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

from strop.errors import ConfigError, EstimateError, StropError, listed, near, try_import
from strop.estimators import Latency, count, measure
from strop.estimators.counting import human
from strop.estimators.runtimes import check_positive, computing_with, onnx_bytes, quiet
from strop.estimators.sessions import OnnxRuntimeSession, OpenVinoSession
from strop.export.comparison import Inputs
from strop.graph.forward import copied, evaluated

if TYPE_CHECKING:
    from strop.quantization import Quantized

#: Runtimes that tell what each layer takes -> what they can compute in.
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    'eager': ('f32', 'bf16'),
    'onnxruntime': ('f32', 'int8'),
    'openvino': ('f32', 'bf16', 'int8'),
}

_WHOLE = '(the whole model)'
_MEANS = 3  # samples of a runtime that counts means only
_WEIGHTED = {'Conv', 'ConvTranspose', 'Gemm', 'MatMul', 'Gather'}
# What runtimes call them once they are fused with their neighbours.
_KINDS = ('conv', 'gemm', 'matmul', 'gather', 'fullyconnected')


@dataclass(frozen=True)
class LayerTime:
    """One layer: what it is, and the time of it in one forward.

    Args:
        name: The path of its module.
        kind: Its class.
        shape: Of its weight.
        macs: Multiply-adds, of the whole batch.
        params: Its parameters.
        latency: Measured in several rounds. Zero where the runtime does not compute it on its own.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int
    params: int
    latency: Latency

    def to_dict(self, precision: str | None = None) -> dict[str, Any]:
        """Return shape, multiply-adds, parameters, median and precision as the layers of a `result.json` hold them."""
        return {
            'shape': list(self.shape),
            'macs': self.macs,
            'params': self.params,
            'latency_ms': self.latency.median_ms,
            'precision': precision,
        }


@dataclass(frozen=True)
class LayerTimes(Mapping[str, LayerTime]):
    """Layer -> its time, in the order of the model, and what else the forward takes.

    Args:
        layers: Every module with a weight of two or more axes.
        other: Kind of everything else (norms, additions, reordering) -> its median in milliseconds.
        whole: The whole forward, without the profiler.
        runtime: What ran it.
        precision: What it computed in.
        batch: Samples in a forward.
        threads: Threads that it computed with.
    """

    layers: Mapping[str, LayerTime]
    other: Mapping[str, float]
    whole: Latency
    runtime: str
    precision: str
    batch: int
    threads: int

    def __getitem__(self, name: str) -> LayerTime:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def layers_ms(self) -> float:
        """The sum of the medians of all layers, in milliseconds."""
        return sum(layer.latency.median_ms for layer in self.layers.values())

    @property
    def explained(self) -> float:
        """Which part of the whole forward the layers and everything else add up to; the profiler's own cost can make it > 1."""
        return (self.layers_ms + sum(self.other.values())) / self.whole.median_ms

    def table(self) -> Table:
        """Return a `rich` table, the slowest layer first."""
        table = Table(title=f'{self.runtime}, {self.precision}, batch {self.batch}, {self.threads} threads')
        table.add_column('layer', overflow='fold')
        table.add_column('type', style='dim')
        for name in ('MACs', 'ms', '% of the forward'):
            table.add_column(name, justify='right')
        whole = self.whole.median_ms
        for layer in sorted(self.layers.values(), key=lambda layer: -layer.latency.median_ms):
            median = layer.latency.median_ms
            table.add_row(layer.name, layer.kind, human(layer.macs), f'{median:.3f}', f'{100 * median / whole:.1f}')
        table.add_section()
        for kind, median in self.other.items():
            table.add_row(kind, '', '', f'{median:.3f}', f'{100 * median / whole:.1f}', style='dim')
        table.add_row(_WHOLE, '', '', f'{whole:.3f}', '100.0', style='bold')
        return table


def layer_times(
    model: nn.Module,
    inputs: Any,
    *,
    runtime: str = 'eager',
    precision: str | None = None,
    quantized: Quantized | None = None,
    threads: int = 1,
    rounds: int = 20,
    warmup: int = 3,
) -> LayerTimes:
    """Measure what each layer takes while the whole model runs.

    In eager, every module is timed by hooks. ONNX Runtime and OpenVINO run their own optimized program with their own
    profiler, and each kernel counts for the layer whose weight it multiplies: what they fuse with a layer (norm,
    activation, addition) is in its time, and a layer computed by a neighbour's kernel has none. Their clocks count whole
    microseconds, and OpenVINO's tell means of all rounds, of which there are three samples. `torch.compile` fuses across
    layers and says nothing of them.

    The model is copied, so nothing in it changes.

    Args:
        model: A plain model.
        inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments.
        runtime: `'eager'`, `'onnxruntime'` or `'openvino'`; with `quantized`, its backend.
        precision: What to compute in; the runtime's first by default, `'int8'` with `quantized`.
        quantized: `model`, quantized for ONNX Runtime or OpenVINO: it is measured then, by the layers of `model`.
        threads: Threads to compute with.
        rounds: Forwards that are measured.
        warmup: Forwards before them.

    Raises:
        ConfigError: If the runtime cannot tell, or not in this precision.
        MissingDependencyError: If the runtime is not installed.
        EstimateError: If the model cannot be brought to it.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    >>> times = layer_times(net, torch.rand(1, 3, 8, 8), rounds=5)
    >>> [(layer.name, layer.kind, layer.macs) for layer in times.values()]
    [('0', 'Conv2d', 7776), ('3', 'Linear', 1152)]
    >>> list(times.other)
    ['ReLU', 'Flatten', 'between modules']
    """
    check_positive(threads=threads, rounds=rounds)
    if quantized is not None:
        runtime, precision = quantized.backend.name, precision or 'int8'
    if runtime not in PRECISIONS:
        raise ConfigError(
            f'The time of each layer is known for {listed(PRECISIONS)}, but got {runtime!r}.{near(runtime, PRECISIONS)} '
            'Compiled programs are fused across layers: choose one of these to see where the time goes.'
        )
    precision = precision or PRECISIONS[runtime][0]
    if precision not in PRECISIONS[runtime] or (precision == 'int8') != (quantized is not None):
        raise ConfigError(
            f'{runtime} computes in {listed(PRECISIONS[runtime])}; int8 and only int8 needs what `quantize` returned '
            f'(`quantized=`). Got {precision!r}.{near(precision, PRECISIONS[runtime])}'
        )
    given = Inputs.of(inputs).to('cpu')
    try:
        plain = evaluated(copied(getattr(model, '_orig_mod', model)).cpu())
        owners = {path: module for path, module in plain.named_modules() if _is_layer(module)}
        with computing_with(threads):
            if runtime == 'eager':
                samples, other, whole = _in_eager(plain, given, owners, precision, threads, rounds, warmup)
            else:
                kernels = _ENGINES[runtime]
                with tempfile.TemporaryDirectory() as folder, quiet():
                    path = Path(folder) / 'model.onnx'
                    _write(path, plain, given, quantized)
                    in_file = given if quantized is None else given.in_order(quantized.example)
                    times, whole = kernels(path, list(in_file.tensors().values()), precision, threads, rounds, warmup)
                    samples, other = _by_layer(path, times, owners, quantized)
    except (StropError, ImportError):
        raise
    except Exception as error:
        raise EstimateError(
            f'The layers of {type(model).__name__} could not be timed in {runtime}: {type(error).__name__}: {str(error)[:500]}'
        ) from error
    costs = count(plain, *given.args, **given.kwargs).modules
    layers = {}
    nothing = np.zeros(len(next(iter(samples.values()), (0.0,))))
    for path, module in owners.items():
        weight = max(module.parameters(recurse=False), key=lambda parameter: parameter.ndim)
        layers[path] = LayerTime(
            path, type(module).__name__, tuple(weight.shape), costs[path].macs, costs[path].params,
            Latency(path, tuple(map(float, samples.get(path, nothing)))),
        )  # fmt: skip
    return LayerTimes(layers, other, whole, runtime, precision, given.batch or 1, threads)


Samples = dict[str, np.ndarray]


def _is_layer(module: nn.Module) -> bool:
    """Whether a module multiplies a weight of its own; position embeddings beside other modules are none."""
    leaf = not list(module.children())
    return any(parameter.ndim > 1 and (leaf or 'weight' in name) for name, parameter in module.named_parameters(recurse=False))


def _beside(plain: Callable[[], Any], profiled: Callable[[], Any], threads: int, rounds: int, warmup: int) -> Latency:
    """Run both in turn, so that they meet the same moments of the machine, and return the time of the first."""
    return measure({_WHOLE: plain, 'profiled': profiled}, runs=rounds, warmup=warmup, settle=0, threads=threads)[_WHOLE]


# -- eager ------------------------------------------------------------------------------------------------


def _in_eager(
    model: nn.Module, inputs: Inputs, owners: Mapping[str, nn.Module], precision: str, threads: int, rounds: int, warmup: int
) -> tuple[Samples, dict[str, float], Latency]:
    """Time modules by hooks, each without what is called inside it."""
    watched = copied(model)
    names = {module: path for path, module in watched.named_modules() if path in owners or not list(module.children())}
    spent: dict[str, int] = {}
    running: list[list[int]] = []
    records: list[tuple[dict[str, int], int]] = []

    def enter(module: nn.Module, *_: Any) -> None:
        running.append([time.perf_counter_ns(), 0])

    def leave(module: nn.Module, *_: Any) -> None:
        start, inside = running.pop()
        whole = time.perf_counter_ns() - start
        spent[names[module]] = spent.get(names[module], 0) + whole - inside
        if running:
            running[-1][1] += whole

    def call(module: nn.Module) -> None:
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16) if precision == 'bf16' else nullcontext():
            module(*inputs.args, **inputs.kwargs)

    def profiled() -> None:
        spent.clear()
        start = time.perf_counter_ns()
        call(watched)
        records.append((dict(spent), time.perf_counter_ns() - start))

    for module in names:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    whole = _beside(lambda: call(model), profiled, threads, rounds, warmup)
    samples: Samples = {path: np.zeros(rounds) for path in names.values()}
    rest = np.zeros(rounds)
    for index, (found, taken) in enumerate(records[-rounds:]):
        rest[index] = (taken - sum(found.values())) / 1e6
        for path, nanoseconds in found.items():
            samples[path][index] = nanoseconds / 1e6
    other: dict[str, np.ndarray] = {}
    for path in list(samples):
        if path not in owners:
            kind = type(model.get_submodule(path)).__name__
            other[kind] = other.get(kind, np.zeros(rounds)) + samples.pop(path)
    other['between modules'] = rest
    return samples, {kind: float(np.median(values)) for kind, values in other.items()}, whole


# -- runtimes with a profiler of their own ------------------------------------------------------------------


@dataclass(frozen=True)
class _Kernel:
    """One step of a runtime's program: its name there, its kind, milliseconds of each round."""

    name: str
    kind: str
    samples_ms: tuple[float, ...]


class Positional(nn.Module):
    """A model in eval mode whose arguments are its tensors, in order."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self._inputs = inputs
        self.eval()

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Fill the tensors in and compute."""
        given = iter(tensors)
        filled = self._inputs.map(lambda _: next(given))
        return self.model(*filled.args, **filled.kwargs)


def _write(path: Path, model: nn.Module, inputs: Inputs, quantized: Quantized | None) -> None:
    if quantized is not None:
        quantized.backend.require()
        quantized.backend.write(quantized.model, quantized.example, path)
    else:
        for package in ('onnx', 'onnxscript'):
            try_import(package, 'onnx')
        path.write_bytes(onnx_bytes(Positional(model, inputs), tuple(inputs.tensors().values())))


def _kernels_of_onnxruntime(
    path: Path, tensors: Sequence[torch.Tensor], precision: str, threads: int, rounds: int, warmup: int
) -> tuple[list[_Kernel], Latency]:
    profiled = OnnxRuntimeSession(path, threads, profile=path.with_name('profile'))
    whole = _beside(OnnxRuntimeSession(path, threads).bind(tensors), profiled.bind(tensors), threads, rounds, warmup)
    events = json.loads(Path(profiled.session.end_profiling()).read_text())
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time'):
            key = event['name'].removesuffix('_kernel_time'), event['args']['op_name']
            found.setdefault(key, []).append(event['dur'] / 1e3)
    return [
        _Kernel(name, kind, _rounds(times, warmup + rounds, rounds)) for (name, kind), times in found.items()
    ], whole  # fmt: skip


def _rounds(times: Sequence[float], runs: int, rounds: int) -> tuple[float, ...]:
    """Return the sums of the last rounds of a kernel that may run more than once in each."""
    each = np.asarray(times[: len(times) // runs * runs]).reshape(runs, -1).sum(1) if len(times) >= runs else np.zeros(runs)
    return tuple(each[-rounds:])


def _kernels_of_openvino(
    path: Path, tensors: Sequence[torch.Tensor], precision: str, threads: int, rounds: int, warmup: int
) -> tuple[list[_Kernel], Latency]:
    floats = 'bf16' if precision == 'bf16' else 'f32'
    plain = OpenVinoSession(path, threads, floats).bind(tensors)
    # A counter is the mean of all runs of one compiled program, the slow first one included: what the rounds took is the
    # difference of two readings. Several programs give several such means.
    profiled = [OpenVinoSession(path, threads, floats, profiled=True).bind(tensors) for _ in range(_MEANS)]
    warmup = max(warmup, 1)
    for call in profiled:
        for _ in range(warmup):
            call()
    before = [_totals(call.request, warmup) for call in profiled]
    entries = {_WHOLE: plain, **{str(index): call for index, call in enumerate(profiled)}}
    whole = measure(entries, runs=rounds, warmup=warmup, settle=0, threads=threads)[_WHOLE]
    after = [_totals(call.request, 2 * warmup + rounds) for call in profiled]
    runs = warmup + rounds
    # Steps that the compiler adds are numbered anew in each program (Convert_59030): they are told by their place.
    first = [(kind, bool(total)) for _, kind, total in after[0]]
    alike = [index for index, steps in enumerate(after) if [(kind, bool(total)) for _, kind, total in steps] == first]
    return [
        _Kernel(name, kind, tuple(max(0.0, (after[i][place][2] - before[i][place][2]) / runs) for i in alike))
        for place, (name, kind, total) in enumerate(after[0])
        if total
    ], whole


def _totals(request: Any, runs: int) -> list[tuple[str, str, float]]:
    """Return name, kind and the milliseconds that it has taken in all runs, for each step of a program."""
    return [
        (step.node_name, step.node_type, 1e3 * step.real_time.total_seconds() * runs) for step in request.get_profiling_info()
    ]


_ENGINES: Mapping[str, Callable[..., tuple[list[_Kernel], Latency]]] = {
    'onnxruntime': _kernels_of_onnxruntime,
    'openvino': _kernels_of_openvino,
}


def _by_layer(
    path: Path, kernels: Sequence[_Kernel], owners: Mapping[str, nn.Module], quantized: Quantized | None
) -> tuple[Samples, dict[str, float]]:
    """Add kernels up by the layer whose weight they multiply; the others by kind."""
    onnx = try_import('onnx', 'onnx')
    wiring = _Wiring(onnx.load(str(path)).graph, owners)
    if quantized is not None:
        wiring.rename([layer.name for layer in quantized.record.layers if layer.weight_bits], owners)
    samples: Samples = {}
    other: dict[str, np.ndarray] = {}
    for kernel, name in zip(kernels, wiring.layers_of(kernels), strict=True):
        target, key = (other, kernel.kind) if name is None else (samples, name)
        target[key] = target.get(key, 0.0) + np.asarray(kernel.samples_ms)
    return samples, {
        kind: float(np.median(values)) for kind, values in sorted(other.items(), key=lambda item: -float(np.median(item[1])))
    }


class _Wiring:
    """Which node of an ONNX graph multiplies the weight of which layer, and which kernel is made of it."""

    def __init__(self, graph: Any, owners: Mapping[str, nn.Module]) -> None:
        self._makers = {output: node for node in graph.node for output in node.output}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = {node.name: node for node in graph.node}
        self._owned: dict[str, str] = {}
        self._unnamed: list[tuple[str, int]] = []  # node, number of values of its weight
        for node in graph.node:
            weight = self._weight(node)
            if weight is None:
                continue
            name = self._owner(node, weight, owners)
            if name is not None:
                self._owned[node.name] = name
            self._unnamed.append((node.name, int(np.prod(self._weights[weight].dims))))

    def _weight(self, node: Any) -> str | None:
        """Return the initializer that a node multiplies, also behind ops that only change how it is stored."""
        if node.op_type not in _WEIGHTED:
            return None
        for name in node.input:
            while name in self._makers and self._makers[name].op_type in ('DequantizeLinear', 'Transpose', 'Identity', 'Cast'):
                name = self._makers[name].input[0]
            if name in self._weights and len(self._weights[name].dims) > 1:
                return str(name)
        return None

    def _owner(self, node: Any, weight: str, owners: Mapping[str, nn.Module]) -> str | None:
        path = weight.removeprefix('model.').rpartition('.')[0]
        if path in owners and (path or '.' in weight):
            return path
        # A folded constant has lost its name; the node knows the modules that it was called in.
        scopes = next((entry.value for entry in node.metadata_props if entry.key == 'pkg.torch.onnx.name_scopes'), '[]')
        for scope in reversed(ast.literal_eval(scopes)):
            inside = scope.removeprefix('model').lstrip('.') if scope.startswith('model') else scope
            found = next((each for each in (inside, scope) if each and each in owners), None)
            if found is not None:
                return str(found)
        return None

    def rename(self, names: Sequence[str], owners: Mapping[str, nn.Module]) -> None:
        """Name the nodes by layers in the order of computation, which is all that a quantized graph keeps.

        Raises:
            EstimateError: If they cannot be told apart.
        """
        sizes = [sum(p.numel() for p in owners[_path(name)].parameters(recurse=False) if p.ndim > 1)
                 if _path(name) in owners else None for name in names]  # fmt: skip
        nodes = [(node, size) for node, size in self._unnamed if self._nodes[node].op_type != 'Gather']
        if len(nodes) != len(names) or any(size not in (None, found) for size, (_, found) in zip(sizes, nodes, strict=True)):
            raise EstimateError(
                f'The quantized file has {len(nodes)} layers and the model {len(names)}, or others: their times cannot be told '
                'apart. Measure the layers of the float model.'
            )
        self._owned = {node: _path(name) for (node, _), name in zip(nodes, names, strict=True)}

    def layers_of(self, kernels: Sequence[_Kernel]) -> list[str | None]:
        """Return the layer of each kernel; None if it is of none."""
        nodes = [self._node(kernel.name) for kernel in kernels]
        claimed = {node.name for node in nodes if node is not None and node.name in self._owned}
        found: list[str | None] = []
        nameless: list[int] = []
        for kernel, node in zip(kernels, nodes, strict=True):
            if node is not None and node.name in self._owned:
                found.append(self._owned[node.name])
                continue
            above = None
            if any(word in kernel.kind.lower() for word in _KINDS):
                above = None if node is None else self._above(node, claimed)
                claimed.add(above or '')
                nameless += [len(found)] if node is None else []
            found.append(self._owned.get(above or ''))
        left = [name for node, name in self._owned.items() if node not in claimed]
        if len(left) == len(nameless):  # kernels that were given names of their own, in the order of computation
            for index, name in zip(nameless, left, strict=True):
                found[index] = name
        return found

    def _node(self, name: str) -> Any:
        """Return the node of a kernel, which runtimes name by the node or by its output, and add to."""
        words = [name, *(re.split(r'_token_\d+|_nchwc|/', name)[:1]), name.removeprefix('fused ')]
        for word in words:
            if word in self._nodes:
                return self._nodes[word]
            if word in self._makers:
                return self._makers[word]
        return None

    def _above(self, node: Any, claimed: set[str]) -> str | None:
        """Return the nearest node before this one whose layer no kernel has yet: it was fused into this one."""
        queue, seen = [node], set()
        while queue:
            each = queue.pop(0)
            if each.name in self._owned:
                if each.name not in claimed:
                    return str(each.name)
                continue
            for name in each.input:
                maker = self._makers.get(name)
                if maker is not None and maker.name not in seen:
                    seen.add(maker.name)
                    queue.append(maker)
        return None


def _path(name: str) -> str:
    """Return the module of a layer; one that is called again has a number behind its name."""
    return name.partition(':')[0]


__all__ = ['PRECISIONS', 'LayerTime', 'LayerTimes', 'layer_times']
