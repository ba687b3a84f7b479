"""The steps of quantization, one by one: capture a model, prepare it, calibrate, convert.

Everything here is the public API of `torchao.quantization.pt2e`; a backend brings the quantizer that says which tensors
become integers (`strop.quantization.backends`). `strop.quantize` does all steps in one call.
"""

from __future__ import annotations

import copy
import linecache
import logging
import operator
import os
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils._pytree import tree_leaves

from strop.errors import ConfigError, DataError, ExportError, try_import
from strop.estimators.runtimes import quiet
from strop.quantization.batches import Batches, Call, batch_size, check_outputs, taken_by
from strop.quantization.folding import fold_norms
from strop.quantization.parameters import is_parameter

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer

aten = torch.ops.aten

#: Where quantizers of PT2E write down what becomes an integer, in the `meta` of a node.
ANNOTATION = 'quantization_annotation'

# What an ATen op came from, as the quantizers of torchao look it up.
_SOURCES: dict[Any, Any] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.linear.default: nn.Linear,
    aten.batch_norm.default: nn.BatchNorm2d,
    aten.relu.default: nn.ReLU,
    aten.relu_.default: nn.ReLU,
    aten.hardtanh.default: nn.Hardtanh,
    aten.hardtanh_.default: nn.Hardtanh,
    aten.relu6.default: nn.ReLU6,
    aten.relu6_.default: nn.ReLU6,
    aten.silu.default: nn.SiLU,
    aten.silu_.default: nn.SiLU,
    aten.hardswish.default: nn.Hardswish,
    aten.hardswish_.default: nn.Hardswish,
    aten.gelu.default: nn.GELU,
    aten.add.Tensor: operator.add,
    aten.add_.Tensor: operator.add,
    aten.mul.Tensor: operator.mul,
    aten.mul_.Tensor: operator.mul,
    aten.matmul.default: torch.matmul,
}


def pt2e(part: str = '', extra: str = 'quantization') -> Any:
    """Import `torchao.quantization.pt2e`, or a part of it.

    Args:
        part: The part, such as 'quantizer'.
        extra: The extra that the message names where torchao is missing.

    Raises:
        MissingDependencyError: If torchao is not installed.

    >>> pt2e('quantizer').Quantizer.__name__
    'Quantizer'
    """
    logger = logging.getLogger('torch.utils._pytree')
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # torchao registers some of its enums in a way that newer torch warns of
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return try_import('.'.join(filter(None, ('torchao.quantization.pt2e', part))), extra)
    finally:
        logger.setLevel(level)


def capture(model: nn.Module, example: Call, *, training: bool = False, dynamic_batch: bool = True) -> GraphModule:
    """Return the graph of ATen ops that a model computes, as a module of its own; the model stays as it is.

    Args:
        model: Any model that `torch.export` takes.
        example: The positional and keyword arguments of one forward.
        training: Capture the forward of training, for quantization-aware training.
        dynamic_batch: Leave the size of the first axis open where the model allows it.

    Raises:
        ExportError: If it cannot be exported; the message has the op and the line of the model's code.
        ConfigError: If a weight is computed from others, so that the model cannot be copied; see `check_copyable`.

    >>> graph = capture(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), ((torch.rand(4, 3),), {}))
    >>> graph(torch.rand(5, 3)).shape
    torch.Size([5, 2])
    """
    check_copyable(model)
    twin = copy.deepcopy(getattr(model, '_orig_mod', model))
    twin.train(training)
    program = traced(twin, example, dynamic_batch, type(model).__name__)
    graph = program.module(check_guards=False) if _takes_check_guards(program) else program.module()
    if not isinstance(graph, GraphModule):
        raise ExportError(f'torch.export gave a {type(graph).__name__} for {type(model).__name__}, not a graph.')
    _label_sources(graph)
    _mark_held_norms(graph, training)
    return graph


def check_copyable(model: nn.Module) -> None:
    """Raise if a weight is computed from others before each forward, as by `weight_norm` and `torch.nn.utils.prune`.

    PyTorch cannot copy such a tensor.

    Raises:
        ConfigError: With the layer, and what to call.
    """
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                raise ConfigError(
                    f'{name!r} of {path or type(model).__name__!r} is no parameter, but computed from others, so that the '
                    'model cannot be copied. Call torch.nn.utils.prune.remove, remove_weight_norm or remove_spectral_norm on '
                    'the layer first, or `.detach()` what was kept of a forward.'
                )


def traced(model: nn.Module, example: Call, dynamic_batch: bool = True, name: str = 'The model') -> Any:
    """Return a model, as it is and in its mode, as a program of `torch.export`.

    Raises:
        ExportError: If it cannot be exported; see `capture`.
    """
    args, kwargs = example
    shapes = None
    if dynamic_batch and (batch_size(example) or 0) > 1:
        auto = torch.export.Dim.AUTO  # type: ignore[attr-defined]
        named = _named_arguments(model, args, kwargs)
        shapes = None if named is None else {key: _mapped(value, auto) for key, value in named.items()}
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ExportError(_where_it_failed(name, error)) from error


def prepare(graph: GraphModule, quantizer: Quantizer) -> GraphModule:
    """Return a captured graph with an observer at every tensor that the quantizer makes integer; batch norms are folded.

    Args:
        graph: What `capture` gave; it is used up.
        quantizer: A quantizer of `torchao.quantization.pt2e`.
    """
    with _understandable('prepared'):
        fold_norms(graph)
        return pt2e('quantize_pt2e').prepare_pt2e(graph, quantizer)  # type: ignore[no-any-return]


def prepare_qat(graph: GraphModule, quantizer: Quantizer) -> GraphModule:
    """Return a captured graph with fake quantization, to be trained; batch norms are folded the way training needs it.

    `train()` and `eval()` of the result switch batch norms and dropout, as they do in the model.

    Args:
        graph: What `capture(..., training=True)` gave; it is used up.
        quantizer: A quantizer of `torchao.quantization.pt2e` that is set up for training.
    """
    literals = {
        node.args[4].target: node.args[5:8]
        for node in graph.graph.nodes
        if node.target in _BATCH_NORMS and is_parameter(node.args[4])
    }
    with _understandable('prepared for training'):
        prepared = pt2e('quantize_pt2e').prepare_qat_pt2e(graph, quantizer)
    _restore_literals(prepared, literals)
    return switchable(prepared)


def calibrate(prepared: GraphModule, batches: Batches | Iterable[Any], limit: int | None = None) -> int:
    """Show a prepared graph some batches, so that its observers see the ranges; return how many there were.

    Args:
        prepared: What `prepare` gave.
        batches: Calibration data; see `Batches.of`.
        limit: Use at most this many.

    Raises:
        DataError: If the data is empty, not finite, or of another shape than the graph takes.
    """
    checked = Batches.of(batches, limit)
    with torch.no_grad(), quiet():
        for index, (args, kwargs) in enumerate(checked):
            with taken_by('The model', (args, kwargs), index):
                outputs = prepared(*args, **kwargs)
            check_outputs(outputs, 'The model', index)
    for node in prepared.graph.nodes:
        observer = prepared.get_submodule(str(node.target)) if node.op == 'call_module' else None
        if observer is not None and _saw_no_number(observer):
            raise DataError(
                f'What {node.args[0]} gives is NaN or infinite for the calibration data, so that it has no range. Leave its '
                'layer in float (`ignored`), or look at the data.'
            )
    return len(checked)


def convert(prepared: GraphModule, *, fold: bool = True) -> GraphModule:
    """Return a calibrated or trained graph with quantize and dequantize ops in place of the observers.

    It computes what the integers would, in floats: the reference that every runtime is compared with.

    Args:
        prepared: What `prepare` or `prepare_qat` gave, calibrated or trained; it is used up.
        fold: Keep weights as integers; otherwise as floats with their quantization behind them.
    """
    blind = [name for name, module in prepared.named_modules() if _saw_nothing(module) or _has_no_steps(module)]
    if blind:
        raise ConfigError(
            f'{len(blind)} observers have seen no data, {blind[0]} for one: call `calibrate` with the prepared graph, or train '
            'it, before `convert`.'
        )
    with _understandable('converted'):
        converted = pt2e('quantize_pt2e').convert_pt2e(prepared, fold_quantize=fold)
    _drop_unread(converted)
    return switchable(converted)


def _drop_unread(graph: GraphModule) -> None:
    """Remove tensors that nothing reads, such as the float weights behind integers: they would go into every file."""
    nodes = graph.graph.nodes
    read = {str(node.target) for node in nodes if node.op == 'get_attr'}
    called = tuple(f'{node.target}.' for node in nodes if node.op == 'call_module')
    for name in [name for name, _ in (*graph.named_parameters(), *graph.named_buffers())]:
        if name not in read and not name.startswith(called):
            path, _, last = name.rpartition('.')
            delattr(graph.get_submodule(path), last)


def switchable(graph: GraphModule) -> GraphModule:
    """Give a graph of ATen ops a working `train()` and `eval()`: they set batch norms, dropout and the modules inside.

    torchao's own switch gives every batch norm the momentum and epsilon of its defaults; this one keeps them. Copies of the
    graph have it, too.

    >>> graph = switchable(capture(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), ((torch.rand(4, 3),), {}), training=True))
    >>> graph.eval().training, graph.train().training
    (False, True)
    """
    # What torch.export and torchao put in their place refuses to switch.
    for name in ('train', 'eval'):
        graph.__dict__.pop(name, None)
    if not isinstance(graph, SwitchableGraph):
        # The code of a graph is kept in a class of its own.
        graph.__class__ = type('GraphModuleImpl', (SwitchableGraph,), {})
        graph.recompile()
    return graph


class SwitchableGraph(GraphModule):
    """A graph of ATen ops in which `train()` and `eval()` work; see `switchable`."""

    def train(self, mode: bool = True) -> SwitchableGraph:
        """Set batch norms, dropout and the modules inside."""
        for place, ops in ((5, _BATCH_NORMS), (2, _DROPOUTS)):
            for node in self.graph.nodes:
                if node.op == 'call_function' and node.target in ops and len(node.args) > place and not _held(node):
                    node.update_arg(place, mode)
        self.recompile()
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def __reduce__(self) -> Any:
        raise ExportError(
            'A graph of ATen ops cannot be pickled: torch.fx would trace it anew, which turns integer weights into floats. '
            "Write it with the result's `export(path)`, or with torch.export.save."
        )


def _restore_literals(prepared: GraphModule, literals: Mapping[Any, tuple[bool, float, float]]) -> None:
    """Put back mode, momentum and epsilon of batch norms: torchao's fused pattern has those of its own example."""
    for node in prepared.graph.nodes:
        if node.op != 'call_function':
            continue
        if node.target in _BATCH_NORMS and is_parameter(node.args[4]) and node.args[4].target in literals:
            for place, value in zip((5, 6, 7), literals[node.args[4].target]):
                node.update_arg(place, value)
        elif node.target is aten.add.Tensor and is_parameter(node.args[0]) and node.args[0].target in literals:
            node.update_arg(1, literals[node.args[0].target][2])
    prepared.recompile()


_BATCH_NORMS = (aten.batch_norm.default,)
_DROPOUTS = (aten.dropout.default, aten.dropout_.default)


#: Where a norm is marked that no mode of the model switches, in the `meta` of its node.
_HELD = 'held_in_training'


def _mark_held_norms(graph: GraphModule, training: bool) -> None:
    """Note which norms of a graph are in the other mode than it is, since the forward or the model's `train` says so."""
    for node in graph.graph.nodes:
        if node.op == 'call_function' and node.target in _BATCH_NORMS and bool(node.args[5]) != training:
            node.meta[_HELD] = True


def _held(node: Node) -> bool:
    """Whether an op is a norm that no mode of the model switches: without running statistics it has but one."""
    return node.target in _BATCH_NORMS and (node.args[3] is None or _HELD in node.meta)


def _saw_nothing(module: nn.Module) -> bool:
    least = getattr(module, 'min_val', None)
    return isinstance(least, torch.Tensor) and bool(torch.isinf(least).any()) and bool((least > 0).any())


def _has_no_steps(module: nn.Module) -> bool:
    """Whether it is a fake quantizer whose steps are still to be found."""
    observed = getattr(module, 'observed', None)
    return isinstance(observed, torch.Tensor) and not bool(observed)


def _saw_no_number(module: nn.Module) -> bool:
    ends = [end for name in ('min_val', 'max_val') if isinstance(end := getattr(module, name, None), torch.Tensor)]
    return not _saw_nothing(module) and any(not bool(torch.isfinite(end).all()) for end in ends)


def takes_any_batch(graph: GraphModule) -> bool:
    """Whether a captured graph leaves the size of the first axis open; a model that writes it down does not."""
    values = [node.meta.get('val') for node in graph.graph.nodes if node.op == 'placeholder']
    return any(isinstance(value, torch.Tensor) and value.dim() and not is_concrete_int(value.shape[0]) for value in values)


# -- internals --------------------------------------------------------------------------------------------


def _takes_check_guards(program: Any) -> bool:
    import inspect

    return 'check_guards' in inspect.signature(program.module).parameters


def _named_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return parameter name -> value, as `dynamic_shapes` wants them; None where a signature has no names for them."""
    import inspect

    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    if any(kinds[name] is inspect.Parameter.VAR_KEYWORD for name in bound.arguments):
        extra = next(name for name in bound.arguments if kinds[name] is inspect.Parameter.VAR_KEYWORD)
        return {name: value for name, value in bound.arguments.items() if name != extra} | {extra: bound.arguments[extra]}
    return dict(bound.arguments)


def _mapped(value: Any, axis: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, axis) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, axis) for key, item in value.items()}
    return {0: axis} if isinstance(value, torch.Tensor) else None


def _label_sources(graph: GraphModule) -> None:
    """Note at each node what it came from, with a name of its own.

    Quantizers look for layers by this note. `torch.export` gives all calls of one module the same name, so that a ReLU that
    is used twice looks like one layer with two outputs.
    """
    for node in graph.graph.nodes:
        if node.op != 'call_function':
            continue
        source = _SOURCES.get(node.target)
        if source is None:
            stack = list((node.meta.get('nn_module_stack') or {}).values())
            source = stack[-1][1] if stack else node.target
        node.meta['source_fn_stack'] = [(node.name, source)]


@contextmanager
def _understandable(what: str) -> Iterator[None]:
    """Word an error of the quantizer as one of ours, and keep its warnings off the screen."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except (ImportError, ConfigError):
        raise
    except Exception as error:
        raise ExportError(f'The graph could not be {what}: {type(error).__name__}: {str(error).strip()[:800]}') from error


_TORCH = os.path.dirname(torch.__file__)
_HERE = str(Path(__file__).resolve().parent)


def _where_it_failed(name: str, error: BaseException) -> str:
    """Return a message with the op and the line of the model's code at which an export failed."""
    line, op = '', ''
    seen: BaseException | None = error
    while seen is not None:
        trace = seen.__traceback__
        found_line, found_op = '', ''
        while trace is not None:
            frame = trace.tb_frame
            file = frame.f_code.co_filename
            if not file.startswith((_TORCH, _HERE, '<')) and f'{os.sep}torch{os.sep}' not in file:
                text = linecache.getline(file, trace.tb_lineno).strip()
                found_line, found_op = f'{file}:{trace.tb_lineno}' + (f': `{text}`' if text else ''), ''
            function = frame.f_locals.get('func')
            if type(function).__name__ == 'OpOverload':
                found_op = str(function)
            elif isinstance(function, types.MethodDescriptorType):
                found_op = f'Tensor.{function.__name__}'
            trace = trace.tb_next
        line, op = line or found_line, op or found_op
        seen = seen.__cause__ or seen.__context__
    reason = ' '.join(str(error).split())[:400]
    return (
        f'{name} cannot be exported, so it cannot be quantized'
        + (f': the op {op} fails' if op else '')
        + (f' at {line}' if line else '')
        + f'. {type(error).__name__}: {reason} Make the computation independent of values in tensors there, or quantize '
        'the part of the model that does not contain it.'
    )


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors in the outputs of a model, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
