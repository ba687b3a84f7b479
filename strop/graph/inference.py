"""Infer what the axes of every tensor are made of, while a model runs once.

Two modes watch the forward. The dispatch mode sees ATen operators and asks a rule for each what it says about axes
(`@axis_rule`). The function mode sees Python's calls and notes what they say about *lengths* (`sizes.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from strop.errors import GraphError
from strop.graph.autograd_functions import function_name, whole_functions
from strop.graph.forward import (
    first_line,
    gives_second_axis,
    map_tensors,
    module_paths,
    moved_to,
    output_tensors,
    shapes_of,
    untouched,
)
from strop.graph.shortcuts import SHORTCUTS
from strop.graph.sizes import AttributePath, LengthOf, Node, Size, listening, tag_attributes
from strop.graph.terms import Atom, Reason, Term, axis, freeze, resolve
from strop.randomness import seeded

AxisRule = Callable[['Call'], Any]

_rules: dict[Any, AxisRule] = {}
_found: dict[Any, AxisRule] = {}
_length_rules: dict[Any, Callable[..., None]] = {}


def axis_rule(*operators: Any) -> Callable[[AxisRule], AxisRule]:
    """Register the decorated function as what ATen (or custom) operators say about axes.

    The function takes a `Call`, unifies or freezes axes of its tensors, and returns the axes of the output: a list of
    terms, or a list of such lists for several outputs. A rule for an overload (`aten.add.Tensor`) goes before one for
    its packet (`aten.add`), which may also be given by name (`'torchvision.nms'`). Operators that PyTorch tags as
    pointwise share one rule; the others without a rule freeze every axis of what they take. A `torch.autograd.Function`
    that compiled code works for is an operator too; it is given as the class or by name (`'mmcv.RoIAlignFunction'`).

    >>> from torch.library import custom_op
    >>> @custom_op('docs::halve', mutates_args=())
    ... def halve(x: torch.Tensor) -> torch.Tensor:
    ...     return x / 2
    >>> @axis_rule(torch.ops.docs.halve)
    ... def _(call):
    ...     return call.axes(call.args[0])
    """

    def register(rule: AxisRule) -> AxisRule:
        for operator in operators:
            _rules[operator] = rule
        _found.clear()
        return rule

    return register


def length_rule(*functions: Any) -> Callable[[Any], Any]:
    """Register the decorated `rule(lengths, out, args, kwargs)` as what Python functions say about lengths."""

    def register(rule: Any) -> Any:
        for function in functions:
            _length_rules[function] = rule
        return rule

    return register


class Axes(NamedTuple):
    """What stands for a tensor in a recorded call: the terms of its axes."""

    terms: tuple[Term, ...]


class Relation(NamedTuple):
    """`left op right` gave `truth` in the module at `path`, and must give it again.

    Args:
        op: `'=='`, `'<'` or `'<='`.
        left: An expression of lengths and attributes.
        right: Another.
        truth: What it gave.
        path: Path of the module.
        what: The call that says so.
    """

    op: str
    left: Node
    right: Node
    truth: bool
    path: str
    what: str


class Call:
    """One call of an operator, as a rule sees it and as the graph keeps it.

    Args:
        func: The operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: What it returned.
        path: Path of the module that called it.
        place: How many calls of this operator the module made before.
    """

    __slots__ = ('args', 'func', 'kwargs', 'out', 'path', 'place', 'tracer')

    def __init__(self, tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any, path: str, place: int) -> None:
        self.tracer, self.func, self.args, self.kwargs = tracer, func, args, kwargs
        self.out, self.path, self.place = out, path, place

    def __repr__(self) -> str:
        return f'{self.name} in {self.path!r}'

    @property
    def name(self) -> str:
        """Name of the operator, as `convolution` or `torchvision.nms`."""
        return _name_of(self.func).removeprefix('aten.')

    def axes(self, tensor: torch.Tensor) -> list[Term]:
        """Return the axes of an argument."""
        return self.tracer.axes(tensor)

    def get(self, name: str, position: int, default: Any = None) -> Any:
        """Return an argument by name or position."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def reason(self, kind: str) -> Reason:
        """Return a reason to freeze that names this call."""
        return Reason(kind, self.name, self.path)

    def freeze(self, term: Term, kind: str = 'rule') -> None:
        """Keep the length of an axis."""
        freeze(term, self.reason(kind))

    def fresh(self, size: int, kind: str | None = None) -> Term:
        """Return a new axis; frozen if `kind` is given."""
        return axis(size, None if kind is None else self.reason(kind))


class Tracer:
    """The state of one trace: axes of tensors, recorded calls, relations between lengths, the stack of modules."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        self.calls: list[Call] = []
        self.relations: list[Relation] = []
        self.touched: set[str] = set()
        self.paths = paths
        self.stack: list[str] = ['']
        self.names: dict[int, list[str]] = {}
        self.thread = threading.get_ident()
        self._strangers: list[torch.Tensor] = []
        self._places: dict[tuple[str, Any], int] = {}

    # -- axes ------------------------------------------------------------------------------

    def axes(self, tensor: torch.Tensor) -> list[Term]:
        """Return the axes of a tensor; those of one that appeared from nowhere are constants."""
        known = getattr(tensor, '_strop_axes', None)
        if known is None or known[0] is not self:
            reason = Reason('constant', 'a tensor without a name', self.stack[-1])
            terms = [axis(size, reason) for size in tensor.shape]
            tensor._strop_axes = (self, terms)  # type: ignore[attr-defined]
            self._strangers.append(tensor)
            return terms
        return known[1]

    def declare(self, tensor: torch.Tensor, terms: list[Term]) -> None:
        """Say what the axes of a tensor are."""
        tensor._strop_axes = (self, terms)  # type: ignore[attr-defined]

    def forget(self) -> None:
        """Take the notes off tensors that outlive the trace: of closures, of modules that the model does not know of."""
        for tensor in self._strangers:
            vars(tensor).pop('_strop_axes', None)
        self._strangers.clear()

    # -- lengths ---------------------------------------------------------------------------

    def compare(self, op: str, left: Node, right: Node, truth: bool) -> None:
        """Note a comparison that Python made."""
        self.relations.append(Relation(op, left, right, truth, self.stack[-1], 'a comparison'))

    def relate(self, size: Any, term: Term, what: str) -> None:
        """Note that a call demanded an axis of length `size`."""
        if type(size) is Size or type(size) is int:
            node = size.node if type(size) is Size else size
            if type(node) is LengthOf and node.term is term:
                return
            self.relations.append(Relation('==', node, LengthOf(term), True, self.stack[-1], what))

    # -- operators -------------------------------------------------------------------------

    def record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Apply the rule of an operator to what it took and returned."""
        path = self.stack[-1]
        place = self._places.get((path, func), 0)
        self._places[path, func] = place + 1
        call = Call(self, func, args, kwargs, out, path, place)
        rule = _found.get(func) or _find_rule(func)
        taken = _stand_ins(args, self), {key: _stand_in(value, self) for key, value in kwargs.items()} if kwargs else {}
        found = rule(call)
        outs = [out] if isinstance(out, torch.Tensor) else [item for item in tree_leaves(out) if isinstance(item, torch.Tensor)]
        if isinstance(out, torch.Tensor) or (outs and (not found or not isinstance(found[0], list))):
            found = [found]
        for number, tensor in enumerate(outs):
            terms = found[number] if number < len(found) else [call.fresh(size, 'constant') for size in tensor.shape]
            if len(terms) != tensor.dim() or any(term.size != size for term, size in zip(terms, tensor.shape)):
                raise GraphError(
                    f'The axis rule of {call.name} gave axes {terms} for an output of shape {tuple(tensor.shape)}.'
                )
            self.declare(tensor, terms)
        call.args, call.kwargs = taken
        call.out = tuple(Axes(tuple(self.axes(tensor))) for tensor in outs)
        self.calls.append(call)

    def record_function(self, function: type, args: tuple[Any, ...], out: Any, begun: int) -> None:
        """Record an autograd function: one that has a rule, or whose output nothing was told of since call `begun`."""
        if threading.get_ident() != self.thread:
            return
        if begun < 0 or any(self._untold(tensor, begun) for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)):
            self.record(function, args, {}, out)

    def _untold(self, tensor: torch.Tensor, begun: int) -> bool:
        """Say whether a tensor was allocated since call `begun` and no operator that wrote to it was seen."""
        terms = [term for term in self.axes(tensor) if term.size > 1]
        if not terms or any(resolve(term) is not term or type(term) is not Atom or term.frozen for term in terms):
            return False
        seen = [call for call in self.calls[begun:] if any(term in axes.terms for axes in call.out for term in terms)]
        return bool(seen) and all(call.func in _ALLOCATING for call in seen)  # or hands the memory on


aten = torch.ops.aten
_ALLOCATING = frozenset(
    overload
    for packet in (aten.empty, aten.zeros, aten.ones, aten.full, aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full)
    for overload in (getattr(packet, name) for name in packet.overloads())
) | {aten.empty_strided.default, aten.detach.default, aten.alias.default}


def _find_rule(func: Any) -> AxisRule:
    packet = getattr(func, '_overloadpacket', func)
    default = 'pointwise' if torch.Tag.pointwise in getattr(func, 'tags', ()) else 'unknown'
    rule = _rules.get(func) or _rules.get(packet) or _rules.get(_name_of(func)) or _rules[default]
    _found[func] = rule
    return rule


def _name_of(func: Any) -> str:
    return function_name(func) if isinstance(func, type) else str(getattr(func, '_overloadpacket', func))


def has_axis_rule(func: Any) -> bool:
    """Say whether an operator or an autograd function has a rule."""
    return (_found.get(func) or _find_rule(func)) is not _rules['unknown']


def _stand_in(value: Any, tracer: Tracer) -> Any:
    if isinstance(value, torch.Tensor):
        if id(value) in tracer.names:
            tracer.touched.update(tracer.names[id(value)])
        return Axes(tuple(tracer.axes(value)))
    return _stand_ins(value, tracer) if isinstance(value, (tuple, list)) else value


def _stand_ins(values: Any, tracer: Tracer) -> Any:
    return [_stand_in(value, tracer) for value in values]


class OperatorMode(TorchDispatchMode):
    """Hand every ATen operator to the tracer."""

    supports_higher_order_operators = True

    def __init__(self, tracer: Tracer, meta: bool = False) -> None:
        super().__init__()
        self.tracer = tracer
        self.meta = meta

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):
            if func.namespace == 'prim' or func is torch.ops.aten.sym_size.int:
                return func(*args, **kwargs)
            if not has_axis_rule(func) and func._can_decompose():
                with self:
                    decomposed = func.decompose(*args, **kwargs)
                if decomposed is not NotImplemented:
                    return decomposed
        return self.run(func, args, kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator and record it."""
        shortcut = SHORTCUTS.get(func) if self.meta else None
        out = None if shortcut is None else shortcut(args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        self.tracer.record(func, args, kwargs, out)
        return out


# Getters are new objects at every access, which are equal but not identical.
_SIZES = frozenset({torch.Tensor.shape.__get__, torch.Tensor.size})  # type: ignore[attr-defined]
# On the meta device tensors still tell their own one: what Python does may depend on it, caches are kept by it.
_DEVICES = frozenset({torch.Tensor.device.__get__})  # type: ignore[attr-defined]
_MOVES = frozenset({torch.Tensor.to, torch.Tensor.type})
_STAYS = frozenset({torch.Tensor.cpu, torch.Tensor.cuda})
_META = torch.device('meta')
_NUMEL = frozenset({torch.Tensor.numel, torch.Tensor.nelement})


class FunctionMode(TorchFunctionMode):
    """Give sizes with expressions to Python, and note which lengths its calls demand."""

    def __init__(self, tracer: Tracer, device: torch.device | None) -> None:
        super().__init__()
        self.tracer = tracer
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SIZES:
            return self._size(func, args, kwargs)
        if func in _NUMEL:
            return self._numel(args[0])
        if self.device is not None:
            if func in _DEVICES:
                return self.device
            if 'device' in kwargs or func in _device_constructors():
                kwargs = {**kwargs, 'device': 'meta'}
            if any(isinstance(value, torch.device) or (type(value) is str and func in _MOVES) for value in args):
                args = [_META if isinstance(value, torch.device) or type(value) is str else value for value in args]
            elif func in _STAYS:
                return args[0]
        out = func(*args, **kwargs)
        rule = _length_rules.get(func)
        if rule is not None:
            with listening(None):
                rule(Lengths(self.tracer, getattr(func, '__name__', str(func))), out, args, kwargs)
        return out

    def _size(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        dim = args[1] if len(args) > 1 else kwargs.get('dim')
        terms = self.tracer.axes(tensor)
        if dim is not None:
            return Size(func(*args, **kwargs), LengthOf(terms[dim]))
        return torch.Size([Size(term.size, LengthOf(term)) for term in terms])

    def _numel(self, tensor: torch.Tensor) -> Any:
        total: Any = 1
        for term in self.tracer.axes(tensor):
            total = Size(term.size, LengthOf(term)) * total if term.size != 1 else total
        return total


class Lengths:
    """What a length rule works with."""

    def __init__(self, tracer: Tracer, what: str) -> None:
        self.tracer = tracer
        self.what = what

    def axes(self, tensor: torch.Tensor) -> list[Term]:
        """Return the axes of a tensor."""
        return self.tracer.axes(tensor)

    def demand(self, size: Any, term: Term) -> None:
        """Note that the call demands an axis of length `size`."""
        self.tracer.relate(size, term, self.what)

    def same(self, one: Term, two: Term) -> None:
        """Note that the call demands two axes of one length."""
        if one is not two:
            self.tracer.relations.append(Relation('==', LengthOf(one), LengthOf(two), True, self.tracer.stack[-1], self.what))


class Trace(NamedTuple):
    """What one forward told.

    Args:
        tensors: Name of each parameter and buffer -> its axes.
        attributes: Tensors that modules keep as plain attributes: path -> axes.
        calls: The operator calls, in order.
        relations: What Python demanded of lengths.
        reached: Names of the parameters and buffers that some operator used.
        parameters: Names of the parameters.
        aliases: Other names of tensors that have several -> the first one.
        ints: The values of the tagged attributes.
        second: Names of the weights whose axis 1 is what their layer gives out; of others it is axis 0.
        note: Why the forward was run on real values, if it was.
    """

    tensors: dict[str, tuple[Term, ...]]
    attributes: dict[AttributePath, tuple[Term, ...]]
    calls: list[Call]
    relations: list[Relation]
    reached: frozenset[str]
    parameters: tuple[str, ...]
    aliases: dict[str, str]
    ints: dict[AttributePath, int]
    second: frozenset[str]
    note: str | None


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Run `model` once in eval mode on tensors without values and return what its axes are made of.

    The model is neither moved, copied nor changed. Where it must look at values, or insists on its device, tensors
    that only pretend to have values are tried next, and real ones last; `Trace.note` then says why.

    Raises:
        GraphError: If the model raises on real tensors too; the original error is its cause.
    """
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise GraphError(f'{type(model).__name__} has lazy modules without shapes. Run the model once before tracing it.')
    levels = ['meta', 'fake', 'real']
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        levels = ['real']
    on_meta = any(tensor.device.type == 'meta' for tensor in model.parameters())
    if not on_meta:
        args, kwargs = moved_to(model, (args, dict(kwargs)))
    note = None
    for level in levels:
        if level == 'real' and on_meta:
            raise GraphError(
                f'{type(model).__name__} is on the meta device and looks at values ({note}), so it cannot be traced.'
            )
        try:
            found = _run(model, args, kwargs, level)
        except GraphError:
            raise
        except Exception as error:
            if level == 'real':
                raise GraphError(
                    f'Tracing {type(model).__name__} failed: its forward raised on inputs {shapes_of(args, kwargs)}: '
                    f'{type(error).__name__}: {error}'
                ) from error
            note = first_line(error)
            continue
        if level == 'real' and note is not None:
            note = f'traced on real values, as the model looks at them ({note}); what it does may depend on the example inputs'
            return found._replace(note=note)
        return found
    raise AssertionError


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], level: str) -> Trace:
    tracer = Tracer(module_paths(model))
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device('cpu'))
    fake = FakeTensorMode(allow_non_fake_inputs=True) if level == 'fake' else None
    with untouched(model), seeded(0, 'trace'), torch.no_grad(), ExitStack() as stack:
        stack.callback(tracer.forget)
        torch.backends.mha.set_fastpath_enabled(False)  # one fused operator would hide every axis
        tensors, attributes, ints = _substitute(model, tracer, level, fake)
        inputs = tree_map_only(torch.Tensor, lambda tensor: _alias(tensor, level, fake), (args, dict(kwargs)))
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, torch.Tensor):
                tracer.declare(tensor, [axis(size, Reason('input')) for size in tensor.shape])
        stack.enter_context(without_mkldnn())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(module_stack(tracer))
        stack.enter_context(python_functionals())
        stack.enter_context(listening(tracer.compare))
        if fake is not None:
            stack.enter_context(fake)
        stack.enter_context(whole_functions(has_axis_rule, lambda: len(tracer.calls), tracer.record_function))
        stack.enter_context(OperatorMode(tracer, level == 'meta'))
        stack.enter_context(FunctionMode(tracer, device if level == 'meta' else None))
        out = model(*inputs[0], **inputs[1])
    for tensor in output_tensors(out):
        for term in tracer.axes(tensor):
            freeze(term, Reason('output', 'of the model'))
    tracer.forget()
    names = tuple(name for name, _ in model.named_parameters(remove_duplicate=False) if name in tensors)
    aliases = {name: group[0] for group in tracer.names.values() for name in group[1:]}
    layers = model.named_modules(remove_duplicate=False)
    second = frozenset(f'{path}.weight'.lstrip('.') for path, layer in layers if gives_second_axis(layer))
    told = tracer.calls, tracer.relations, frozenset(tracer.touched)
    return Trace(tensors, attributes, *told, names, aliases, ints, second, None)


def _alias(tensor: torch.Tensor, level: str, fake: FakeTensorMode | None) -> torch.Tensor:
    if level == 'real':
        return tensor.detach().clone()
    if fake is not None:
        return fake.from_tensor(tensor.detach())
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device='meta')


def _substitute(model: nn.Module, tracer: Tracer, level: str, fake: FakeTensorMode | None) -> tuple[dict, dict, dict]:
    """Put stand-ins for every parameter, buffer and kept tensor into `model`, and tag its ints. `untouched` puts them back."""
    tensors: dict[str, tuple[Term, ...]] = {}
    attributes: dict[AttributePath, tuple[Term, ...]] = {}
    known: dict[int, torch.Tensor] = {}
    ints: dict[AttributePath, int] = {}

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        found = known.get(id(tensor))
        if found is None:
            found = tensor.detach() if level == 'real' and isinstance(tensor, nn.Parameter) else _alias(tensor, level, fake)
            tracer.declare(found, [axis(size) for size in found.shape])
            known[id(tensor)] = found
        return found

    def kept(path: str, tensor: torch.Tensor, keys: tuple[Any, ...]) -> torch.Tensor:
        found = stand_in(tensor)
        if id(tensor) not in named:
            attributes[AttributePath(path, keys)] = tuple(tracer.axes(found))
        return found

    named = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        prefix = f'{path}.' if path else ''
        again = tracer.paths[id(module)] != path
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    found = tensor if again else stand_in(tensor)
                    store[name] = found  # type: ignore[assignment]
                    tensors[prefix + name] = tuple(tracer.axes(found))
                    tracer.names.setdefault(id(found), []).append(prefix + name)
        if again:
            continue
        module.training = False
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor) or type(value) in (tuple, list, dict):
                if name not in _BOOKKEEPING:
                    # Also what an earlier forward left in a cache.
                    changed = map_tensors(value, partial(kept, path), (name,))
                    if changed is not value:
                        module.__dict__[name] = changed
        tag_attributes(module, path, ints)
    return tensors, attributes, ints


_BOOKKEEPING = frozenset(vars(nn.Module()))


@contextmanager
def module_stack(tracer: Any) -> Iterator[None]:
    """Keep `tracer.stack` at the path of the module that runs."""

    def enter(module: nn.Module, args: Any) -> None:
        path = tracer.paths.get(id(module))
        if path is not None and threading.get_ident() == tracer.thread:
            tracer.stack.append(path)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if id(module) in tracer.paths and threading.get_ident() == tracer.thread:
            tracer.stack.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def without_mkldnn(wanted: bool = True) -> Iterator[None]:
    """Switch oneDNN off: its fused recurrent layers hide their axes."""
    before = torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(before and not wanted)
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def python_functionals() -> Iterator[None]:
    """Let the Python bodies of `torch.nn.functional` run under a function mode instead of being handed to it whole.

    What `multi_head_attention_forward` computes with sizes would be invisible otherwise.
    """
    names = ('has_torch_function', 'has_torch_function_unary', 'has_torch_function_variadic')
    before = {name: getattr(F, name) for name in names}
    try:
        for name in names:
            setattr(F, name, lambda *tensors: False)
        yield
    finally:
        for name, value in before.items():
            setattr(F, name, value)


__all__ = [
    'Axes',
    'Call',
    'Lengths',
    'Relation',
    'Trace',
    'Tracer',
    'axis_rule',
    'has_axis_rule',
    'length_rule',
    'trace',
]
