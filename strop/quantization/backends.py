"""The runtimes that quantized models are made for, as a table: what each takes, how it is written, what is fast on it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_unflatten

from strop.errors import ConfigError, EstimateError, ExportError, listed, near, try_import
from strop.estimators.runtimes import apart, computing_with, out_of_place, quiet
from strop.estimators.sessions import Call as Bound
from strop.estimators.sessions import OnnxRuntimeSession, OpenVinoSession, Run
from strop.quantization.batches import Call
from strop.quantization.flow import pt2e, tensors_of, traced
from strop.quantization.qdq import qdq_quantizer
from strop.quantization.xnnpack import Program, xnnpack_quantizer


@dataclass(frozen=True)
class Backend:
    """One runtime for quantized models.

    Args:
        name: What it is asked for by.
        package: The package whose version counts.
        modules: Modules that must be importable.
        extra: The extra of `pip install 'strop[extra]'` that brings them.
        suffix: The ending of the files that it reads.
        description: One line for a person.
        takes: The integers that it computes with.
        fast: What is fast on it, and what is not.
        per_channel: Granularities of weights that it runs fast; the first is the default.
        symmetric: Kinds of activations that it runs fast; the first is the default.
        why_symmetry: Why there are no others.
        reduce_range: Ranges that it may be given: the whole one, and one of 7 bits; see `Scheme`.
        open_batch: Whether a file may leave the batch size open.
        make_quantizer: (for training, of a reduced range) -> a quantizer of `torchao.quantization.pt2e`.
        write: (converted graph, example, path) -> writes the file.
        load: (path, threads, precision) -> runs it; None where it can only be written here.
        precisions: What it can compute in what is not integer; the first is the default.
    """

    name: str
    package: str
    modules: tuple[str, ...]
    extra: str
    suffix: str
    description: str
    takes: str
    fast: str
    per_channel: tuple[bool, ...]
    symmetric: tuple[bool, ...]
    why_symmetry: str
    reduce_range: tuple[bool, ...]
    open_batch: bool
    make_quantizer: Callable[[bool, bool], Any]
    write: Callable[[GraphModule, Call, Path], None]
    load: Callable[[Path, int, str], Run] | None
    precisions: tuple[str, ...] = ('f32',)

    @property
    def available(self) -> bool:
        """Whether everything that it needs is installed."""
        return not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        """The modules that it needs and that are not installed."""
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)

    @property
    def version(self) -> str | None:
        """The version of its package, or None if that is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    def require(self) -> None:
        """Raise unless everything that it needs is installed.

        Raises:
            MissingDependencyError: If something is missing; the message names the extra that brings it.
        """
        for module in self.modules:
            if module.partition('.')[0] == 'torchao':
                pt2e(extra=self.extra)
            else:
                try_import(module, self.extra)

    def quantizer(self, is_qat: bool = False, reduce_range: bool = False) -> Any:
        """Return its quantizer, for training or for calibration, of the whole range or of 7 bits.

        Raises:
            MissingDependencyError: If something that it needs is missing.
        """
        self.require()
        with quiet():
            return self.make_quantizer(is_qat, reduce_range)


def backends() -> Mapping[str, Backend]:
    """Return name -> backend, those that are not installed included.

    >>> list(backends())
    ['inductor', 'onnxruntime', 'openvino', 'executorch', 'tensorrt']
    """
    return _BACKENDS


def backend(name: str | Backend) -> Backend:
    """Return the backend called `name`.

    Raises:
        ConfigError: If there is none; the message names near matches.
    """
    if isinstance(name, Backend):
        return name
    if not isinstance(name, str) or name not in _BACKENDS:
        raise ConfigError(f'A backend is one of {listed(_BACKENDS)}, but got {name!r}.{near(name, _BACKENDS)}')
    return _BACKENDS[name]


def backend_table() -> Table:
    """Return a `rich` table of the backends, what each takes and what is fast on it."""
    table = Table(title='Backends', title_justify='left')
    for column in ('name', 'installed', 'file', 'computes with', 'what is fast'):
        table.add_column(column)
    for entry in _BACKENDS.values():
        state = str(entry.version or 'yes') if entry.available else f"no: pip install 'strop[{entry.extra}]'"
        table.add_row(entry.name, state, entry.suffix, entry.takes, entry.fast)
    return table


# -- Inductor -----------------------------------------------------------------------------------------------


def _x86_quantizer(is_qat: bool, reduce_range: bool) -> Any:
    x86 = pt2e('quantizer.x86_inductor_quantizer')
    settings = x86.get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=reduce_range)
    return x86.X86InductorQuantizer().set_global(settings)


def exported(graph: GraphModule, example: Call, open_batch: bool = True) -> Any:
    """Return a converted graph as a program of `torch.export`: the tensors of its arguments in, a tuple of tensors out.

    Args:
        graph: A graph that computes what is wanted.
        example: The arguments of one forward.
        open_batch: Leave the size of the first axis open.

    Raises:
        ExportError: If it cannot be exported again.
    """
    inputs = tuple(tensors_of(example))
    return traced(_Flat(graph, example).train(False), (inputs, {}), open_batch, 'The quantized graph')


class _Flat(nn.Module):
    """A graph whose arguments are tensors only, in order; runtimes know neither keywords nor nested arguments."""

    def __init__(self, graph: GraphModule, example: Call) -> None:
        super().__init__()
        self.body = graph  # not `graph`, which modules of torch.fx have already
        self._leaves, self._spec = tree_flatten(example)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._spec)
        return tuple(tensors_of(self.body(*args, **kwargs)))


def _write_program(graph: GraphModule, example: Call, path: Path) -> None:
    torch.export.save(exported(graph, example), path)


def _run_inductor(path: Path, threads: int, precision: str) -> Run:
    pt2e('quantize_pt2e')  # registers the ops of the program
    pt2e('quantizer.x86_inductor_quantizer')  # and this what makes integer kernels of them, not only in its own graphs
    program = torch.export.load(path)
    return Frozen(program.module(), threads, precision)


class Frozen:
    """A graph compiled by Inductor with its weights frozen, without which the integers would not be used.

    Inductor compiles once for each shape of inputs, during the first call with it; and again, frozen as well, for inputs of
    another layout, and after `torch.compiler.reset`, which what captures graphs may call.

    Args:
        graph: The graph.
        threads: Threads to compute with.
        precision: What is not integer is computed in this.
    """

    def __init__(self, graph: nn.Module, threads: int, precision: str = 'f32') -> None:
        self._graph = graph
        self._threads, self._precision = threads, precision
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs."""
        return tensors_of(self.bind(tensors)())

    def bind(self, tensors: Sequence[torch.Tensor]) -> Bound:
        """Return a call on these inputs, which compiles when it runs first.

        Not before: the program would be made twice if a graph is captured in between.
        """
        shapes = tuple(tensor.shape for tensor in tensors)

        def call() -> Any:
            if torch.get_num_threads() == self._threads:
                return run()
            # A program is of a number of threads: with another one a second would be made.
            with computing_with(self._threads):
                return run()

        def run() -> Any:
            program = self._programs.get(shapes)
            if program is not None:
                try:
                    with torch.no_grad(), self._lower():
                        return program(*tensors)
                except Exception as error:  # its class is one of a module that takes long to import
                    if not isinstance(getattr(error, 'inner_exception', None), _NotFrozenError):
                        raise
            return self._compile(tensors)

        return call

    def _compile(self, tensors: Sequence[torch.Tensor]) -> Any:
        from torch._inductor import config  # its documented settings; torch.compile's `options` come too late for freezing

        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._programs:
            self._programs[shapes] = torch.compile(apart(self._graph), dynamic=False, backend=_inductor)
        with torch.no_grad(), config.patch(freezing=True), quiet(), self._lower():
            return self._programs[shapes](*tensors)

    def _lower(self) -> Any:
        return torch.autocast('cpu', torch.bfloat16) if self._precision == 'bf16' else contextlib.nullcontext()


class _NotFrozenError(Exception):
    """A graph was captured for Inductor without its weights."""


def _inductor(graph: GraphModule, inputs: list[Any]) -> Any:
    """Compile as Inductor does, but refuse to without freezing.

    `torch.compile` makes a program whenever it has none that fits, with the settings of that moment; to put them in force
    around every call would slow all calls down.
    """
    from torch._dynamo import lookup_backend
    from torch._inductor import config

    if not config.freezing:
        raise _NotFrozenError
    return lookup_backend('inductor')(graph, inputs)


# -- ONNX: ONNX Runtime, OpenVINO, TensorRT -------------------------------------------------------------------


def _affine_qdq(is_qat: bool, reduce_range: bool) -> Any:
    return qdq_quantizer(torch.uint8, is_qat=is_qat, reduce_range=reduce_range)


def _symmetric_qdq(is_qat: bool, reduce_range: bool) -> Any:
    return qdq_quantizer(torch.int8, is_qat=is_qat, outputs=False)


def _write_onnx(graph: GraphModule, example: Call, path: Path) -> None:
    for package in ('onnx', 'onnxscript'):
        try_import(package, 'onnx')
    program = out_of_place(exported(graph, example))
    names = _input_names(example)
    with quiet(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        converted: Any = torch.onnx.export(program, dynamo=True, verbose=False, input_names=names)
        converted.save(str(path), external_data=False)
    fuse_transposes(path)


def _input_names(example: Call) -> list[str]:
    """Return a name for each tensor of the arguments: a keyword's own, `input` or `input_0`, `input_1`, ..."""
    args, kwargs = example
    count = len(tensors_of(args))
    names = ['input'] if count == 1 else [f'input_{index}' for index in range(count)]
    for key, value in kwargs.items():
        inside = len(tensors_of(value))
        names += [str(key)] if inside == 1 else [f'{key}_{index}' for index in range(inside)]
    return names


def fuse_transposes(path: Path) -> int:
    """Store integer weights the way matrix products read them, and return how many were turned.

    A linear layer is exported as a product with the transposed weight. Runtimes look for a dequantize op right before the
    product; with the transposition between them they would compute in float.
    """
    import numpy as np

    onnx = try_import('onnx', 'onnx')
    model = onnx.load(str(path))
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    turned = 0
    for node in list(graph.node):
        maker = makers.get(node.input[0]) if node.op_type == 'Transpose' else None
        if maker is None or maker.op_type != 'DequantizeLinear' or maker.input[0] not in weights:
            continue
        if readers[maker.output[0]] != 1 or readers[maker.input[0]] != 1:
            continue
        array = onnx.numpy_helper.to_array(weights[maker.input[0]])
        order = next((list(entry.ints) for entry in node.attribute if entry.name == 'perm'), list(range(array.ndim))[::-1])
        stored = onnx.numpy_helper.from_array(np.ascontiguousarray(array.transpose(order)), maker.input[0])
        weights[maker.input[0]].CopyFrom(stored)
        for entry in maker.attribute:
            if entry.name == 'axis':
                entry.i = order.index(entry.i % array.ndim)
        maker.output[0] = node.output[0]
        graph.node.remove(node)
        turned += 1
    if turned:
        del graph.value_info[:]  # shapes of what was turned
        path.write_bytes(model.SerializeToString())
    return turned


def _run_onnxruntime(path: Path, threads: int, precision: str) -> Run:
    return OnnxRuntimeSession(path, threads)


def _run_openvino(path: Path, threads: int, precision: str) -> Run:
    return OpenVinoSession(path, threads, precision)


# -- ExecuTorch -----------------------------------------------------------------------------------------------


def _xnnpack(is_qat: bool, reduce_range: bool) -> Any:
    return xnnpack_quantizer(is_qat)


def _write_pte(graph: GraphModule, example: Call, path: Path) -> None:
    exir = try_import('executorch.exir', 'executorch')
    partitions = try_import('executorch.backends.xnnpack.partition.xnnpack_partitioner', 'executorch')
    program = exported(graph, example, open_batch=False)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        edge = exir.to_edge_transform_and_lower(program, partitioner=[partitions.XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)


def _run_executorch(path: Path, threads: int, precision: str) -> Run:
    return Program(path.read_bytes(), threads)


_BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Backend(
                name='inductor', package='torch', modules=('torchao',), extra='quantization', suffix='.pt2',
                description='torch.compile on x86 CPUs',
                takes='U8 activations, S8 weights',
                fast='convolutions, linear layers and the additions after them, compiled with frozen weights; '
                'the graph without compilation is slower than float',
                per_channel=(True,), symmetric=(False, True), why_symmetry='',
                reduce_range=(False, True), open_batch=True,
                make_quantizer=_x86_quantizer, write=_write_program, load=_run_inductor, precisions=('f32', 'bf16'),
            ),
            Backend(
                name='onnxruntime', package='onnxruntime', modules=('torchao', 'onnx', 'onnxscript', 'onnxruntime'),
                extra='quantization,onnx', suffix='.onnx',
                description='ONNX Runtime on the CPU',
                takes='U8 activations, S8 weights (QDQ)',
                fast='U8 activations with S8 weights; S8 activations are not, and are not offered',
                per_channel=(True, False), symmetric=(False, True), why_symmetry='',
                reduce_range=(False, True), open_batch=True,
                make_quantizer=_affine_qdq, write=_write_onnx, load=_run_onnxruntime,
            ),
            Backend(
                name='openvino', package='openvino', modules=('torchao', 'onnx', 'onnxscript', 'openvino'),
                extra='quantization,onnx,openvino', suffix='.onnx',
                description='OpenVINO on the CPU',
                takes='U8 activations, S8 weights (QDQ)',
                fast='everything that it fuses with its neighbours: convolutions, linear layers, additions, pooling',
                per_channel=(True, False), symmetric=(False, True), why_symmetry='',
                reduce_range=(False, True), open_batch=True,
                make_quantizer=_affine_qdq, write=_write_onnx, load=_run_openvino, precisions=('f32', 'bf16'),
            ),
            Backend(
                name='executorch', package='executorch', modules=('torchao', 'executorch'),
                extra='quantization,executorch', suffix='.pte',
                description='ExecuTorch with XNNPACK, on phones and small devices',
                takes='S8 activations, S8 weights',
                fast='convolutions, linear layers and additions on ARM and x86; one batch size in each file',
                per_channel=(True, False), symmetric=(False,), why_symmetry='XNNPACK has a zero point for every activation.',
                reduce_range=(False,), open_batch=False,
                make_quantizer=_xnnpack, write=_write_pte, load=_run_executorch,
            ),
            Backend(
                name='tensorrt', package='onnx', modules=('torchao', 'onnx', 'onnxscript'),
                extra='quantization,onnx', suffix='.onnx',
                description='TensorRT, by its ONNX parser; written and looked over here, not run',
                takes='S8 activations, S8 weights, both symmetric (QDQ)',
                fast='quantized inputs of convolutions and matrix products; the engine fuses the rest',
                per_channel=(True, False), symmetric=(True,),
                why_symmetry='TensorRT takes zero points of 0 only.', reduce_range=(False,), open_batch=True,
                make_quantizer=_symmetric_qdq, write=_write_onnx, load=None,
            ),
        )
    }
)  # fmt: skip


def check_structure(path: Path) -> dict[str, int]:
    """Look over an ONNX file for TensorRT, which is not run here: opset, symmetric S8 everywhere, a scale for every tensor.

    Returns:
        How many nodes of each kind there are.

    Raises:
        ExportError: If TensorRT would not take it; the message names the node.
    """
    import numpy as np

    onnx = try_import('onnx', 'onnx')
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == 'Constant':
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
        if node.op_type not in ('QuantizeLinear', 'DequantizeLinear'):
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else np.zeros(1, np.int8)
        scale = constants.get(node.input[1])
        if zero is None or zero.dtype != np.int8 or np.any(zero) or scale is None or not np.all(scale > 0):
            raise ExportError(
                f'{node.op_type} {node.name or node.output[0]!r} is not symmetric S8 with constant positive scales, the only '
                'kind that TensorRT takes.'
            )
    opset = max(entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx'))
    if opset < 13:
        raise ExportError(f'TensorRT needs opset 13 for scales of each channel, but the file has {opset}.')
    return counts


def prepared(entry: Backend, path: Path, threads: int = 1, precision: str | None = None) -> Run:
    """Return the runnable of a written file.

    Raises:
        ConfigError: If the backend's files cannot be run here, or not in this precision.
        EstimateError: If its runtime refuses the file.
    """
    if entry.load is None:
        raise ConfigError(f'Files for {entry.name} are written here, but not run.')
    precision = entry.precisions[0] if precision is None else precision
    if precision not in entry.precisions:
        raise ConfigError(f'{entry.name} computes floats in {listed(entry.precisions)}, but got {precision!r}.')
    entry.require()
    try:
        with quiet():
            return entry.load(path, threads, precision)
    except ImportError:
        raise
    except Exception as error:
        raise EstimateError(f'{entry.name} cannot load {path.name}: {type(error).__name__}: {str(error)[:500]}') from error
