"""Integers that remember where they come from.

What Python computes with sizes (`C // num_heads`, `reshape(B, N, C)`) never reaches an operator that could be
watched. While a model is traced, its int attributes and the sizes of its tensors are `Size`s: ints that carry an
expression over attributes and axes. Calls that take them give equations between lengths; comparisons give conditions
that must stay as they are.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import nn

from strop.graph.terms import Term


class AttributePath(NamedTuple):
    """An int that a module keeps: `module` is its path, `keys` lead from the module to the int.

    >>> str(AttributePath('blocks.0.attn', ('num_heads',)))
    'blocks.0.attn.num_heads'
    """

    module: str
    keys: tuple[Any, ...]

    def __str__(self) -> str:
        words = [self.module] if self.module else []
        return '.'.join([*words, *(str(getattr(key, 'name', key)) for key in self.keys)])


class Cell(NamedTuple):
    """A key of an `AttributePath`: the variable `name` that a function keeps in its closure."""

    name: str


class LengthOf:
    """The length of an axis."""

    __slots__ = ('term',)

    def __init__(self, term: Term) -> None:
        self.term = term


class Operation:
    """`left op right`, of ints, attributes, lengths and operations."""

    __slots__ = ('left', 'op', 'right')

    def __init__(self, op: str, left: Any, right: Any) -> None:
        self.op, self.left, self.right = op, left, right


#: An int, an attribute, the length of an axis, or an operation on them.
Node = int | AttributePath | LengthOf | Operation

_listener: ContextVar[Callable[[str, Node, Node, bool], None] | None] = ContextVar('listener', default=None)


@contextmanager
def listening(listener: Callable[[str, Node, Node, bool], None] | None) -> Iterator[None]:
    """Hand every comparison of a `Size` inside the block to `listener(op, left, right, truth)`.

    A `Size` that becomes a plain int is one that must stay as it is.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


_plain = int.__int__


def _pinned(node: Node, value: int) -> int:
    if (listener := _listener.get()) is not None:
        listener('==', node, value, True)
    return value


class Measure(float):
    """A float that was computed from a `Size`: `int(channels * 0.5)` pins the number of channels.

    With the float on the left, or after a second operation, it is an ordinary one, and nothing is pinned.
    """

    node: Node
    size: int

    def __new__(cls, value: float, size: int, node: Node) -> Measure:
        """Make the float `value`, which follows from `node` being `size`."""
        measure = float.__new__(cls, value)
        measure.node, measure.size = node, size
        return measure

    def _pin(self) -> None:
        _pinned(self.node, self.size)

    def __int__(self) -> int:
        self._pin()
        return float.__int__(self)

    __trunc__ = __int__

    def __floor__(self) -> int:
        self._pin()
        return float.__floor__(self)

    def __ceil__(self) -> int:
        self._pin()
        return float.__ceil__(self)

    def __round__(self, digits: Any = None) -> Any:
        self._pin()
        return float.__round__(self, digits)

    def __reduce__(self) -> Any:
        return float, (float(self),)

    def __deepcopy__(self, memo: Any) -> Any:
        return float(self)


def _arithmetic(op: str, compute: Callable[[int, int], int]) -> Any:
    def forward(self: Size, other: Any) -> Any:
        if type(other) is float and op == '*':
            return Measure(_plain(self) * other, _plain(self), self.node)
        value = compute(_plain(self), other) if type(other) is int or type(other) is Size else NotImplemented
        return value if value is NotImplemented else Size(value, Operation(op, self.node, node_of(other)))

    def backward(self: Size, other: Any) -> Any:
        value = compute(other, _plain(self)) if type(other) is int else NotImplemented
        return value if value is NotImplemented else Size(value, Operation(op, other, self.node))

    return forward, backward


def _comparison(op: str, compute: Callable[[int, Any], Any], swap: bool = False, negate: bool = False) -> Any:
    def compare(self: Size, other: Any) -> Any:
        truth = compute(_plain(self), other)
        if truth is not NotImplemented and (listener := _listener.get()) is not None and isinstance(other, int):
            left, right = self.node, node_of(other)
            listener(op, *((right, left) if swap else (left, right)), truth != negate)
        return truth

    return compare


class Size(int):
    """An int with the expression that it came from in `.node`.

    >>> heads = Size(3, AttributePath('attn', ('num_heads',)))
    >>> channels = heads * 64
    >>> channels, type(channels.node).__name__
    (192, 'Operation')
    """

    node: Node

    def __new__(cls, value: int, node: Node) -> Size:
        """Make the int `value` with the expression `node`."""
        size = int.__new__(cls, value)
        size.node = node
        return size

    __add__, __radd__ = _arithmetic('+', int.__add__)
    __sub__, __rsub__ = _arithmetic('-', int.__sub__)
    __mul__, __rmul__ = _arithmetic('*', int.__mul__)
    __floordiv__, __rfloordiv__ = _arithmetic('//', int.__floordiv__)
    __mod__, __rmod__ = _arithmetic('%', int.__mod__)

    __eq__ = _comparison('==', int.__eq__)
    __ne__ = _comparison('==', int.__ne__, negate=True)
    __lt__ = _comparison('<', int.__lt__)
    __le__ = _comparison('<=', int.__le__)
    __gt__ = _comparison('<', int.__gt__, swap=True)
    __ge__ = _comparison('<=', int.__ge__, swap=True)
    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        truth = int.__bool__(self)
        if (listener := _listener.get()) is not None:
            listener('==', self.node, 0, not truth)
        return truth

    def __int__(self) -> int:
        return _pinned(self.node, _plain(self))

    __trunc__ = __int__

    def __truediv__(self, other: Any) -> Any:
        value = int.__truediv__(_plain(self), _plain(other)) if isinstance(other, int) else _plain(self) / other
        return Measure(value, _plain(self), self.node) if type(value) is float else value

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __neg__(self) -> Any:
        return 0 - self

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        if type(other) is int and modulo is None and 1 <= other <= 3:
            return self if other == 1 else self * self if other == 2 else self * self * self
        return int.__pow__(_plain(self), other, modulo) if isinstance(other, int) else float(self) ** other

    def __reduce__(self) -> Any:
        return int, (_plain(self),)

    def __deepcopy__(self, memo: Any) -> Any:
        return _plain(self)


def node_of(value: Any) -> Node:
    """Return the expression of an int: that of a `Size`, or the number itself."""
    return value.node if type(value) is Size else int(value)


#: Ints of torch.nn's own layers that no axis depends on.
_GEOMETRY = frozenset(
    {
        'kernel_size',
        'stride',
        'padding',
        'dilation',
        'output_padding',
        '_reversed_padding_repeated_twice',
        'padding_idx',
        'training',
    }
)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEPTH = 4


def tag_attributes(module: nn.Module, path: str, values: dict[AttributePath, int]) -> None:
    """Replace the ints that `module` keeps by `Size`s, also those inside tuples, lists, dicts, plain objects and closures.

    What the module shares with others (a config object) is copied first. The caller puts the attributes back. Their
    values are written to `values`.
    """
    geometry = type(module).__module__.startswith('torch.nn.')
    for name, value in list(vars(module).items()):
        if name in _OF_EVERY_MODULE or (geometry and name in _GEOMETRY):
            continue
        tagged = _tagged(value, AttributePath(path, (name,)), _DEPTH, values)
        if tagged is not value:
            module.__dict__[name] = tagged


def _tagged(value: Any, path: AttributePath, depth: int, values: dict[AttributePath, int]) -> Any:
    kind = type(value)
    if kind is int:
        values[path] = value
        return Size(value, path)
    if not depth or kind in _OPAQUE:
        return value
    if kind in (tuple, list, dict, torch.Size):
        pairs = value.items() if kind is dict else enumerate(value)
        found = [(key, _tagged(item, _down(path, key), depth - 1, values)) for key, item in pairs]
        if not _changed(found, value):
            return value
        return dict(found) if kind is dict else kind(item for _, item in found)
    if kind is types.FunctionType:
        return _tagged_function(value, path, depth, values)
    if _is_plain(value):
        found = [(key, _tagged(item, _down(path, key), depth - 1, values)) for key, item in vars(value).items()]
        if not _changed(found, vars(value)):
            return value
        changed = copy.copy(value)
        changed.__dict__.update(found)
        return changed
    return value


_OPAQUE = frozenset({str, float, bool, type(None), complex, bytes, torch.dtype, torch.device, set, frozenset, type})


def _down(path: AttributePath, key: Any) -> AttributePath:
    return AttributePath(path.module, (*path.keys, key))


def _changed(found: list[tuple[Any, Any]], container: Any) -> bool:
    return any(item is not container[key] for key, item in found)


def _is_plain(value: Any) -> bool:
    """Say whether a value is an object of data that can be copied with other ints: a config, a namespace, a dataclass."""
    module = type(value).__module__ or ''
    return (
        hasattr(value, '__dict__')
        and not isinstance(value, (nn.Module, torch.Tensor, type, types.ModuleType))
        and not callable(value)
        and not module.startswith(('torch.', 'torch', 'numpy'))
        and type(value).__setattr__ in (object.__setattr__, getattr(type(value), '__setattr__', None))
    )


def _tagged_function(function: types.FunctionType, path: AttributePath, depth: int, values: dict[AttributePath, int]) -> Any:
    cells = function.__closure__ or ()
    if not cells:
        return function
    found = []
    for name, cell in zip(function.__code__.co_freevars, cells):
        try:
            value = cell.cell_contents
        except ValueError:
            value = None  # a variable that is not set yet
        found.append((value, _tagged(value, _down(path, Cell(name)), depth - 1, values)))
    if all(new is old for old, new in found):
        return function
    return with_cells(function, [new for _, new in found])


def with_cells(function: types.FunctionType, values: list[Any]) -> types.FunctionType:
    """Return a copy of a function whose closure holds `values`."""
    changed = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(types.CellType(value) for value in values),
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    changed.__dict__.update(function.__dict__)
    return changed


def read_attribute(module: nn.Module, keys: tuple[Any, ...]) -> Any:
    """Return what `keys` lead to from `module`."""
    value: Any = module
    for key in keys:
        value = _get(value, key)
    return value


def write_attribute(module: nn.Module, keys: tuple[Any, ...], new: Any) -> None:
    """Set what `keys` lead to from `module`. Containers, objects and functions on the way are replaced by copies."""
    first, *others = keys
    module.__dict__[first] = _written(module.__dict__[first], others, new)


def _written(value: Any, keys: list[Any], new: Any) -> Any:
    if not keys:
        return new
    key, *others = keys
    inner = _written(_get(value, key), others, new)
    if isinstance(key, Cell):
        names = value.__code__.co_freevars
        return with_cells(
            value, [inner if name == key.name else cell.cell_contents for name, cell in zip(names, value.__closure__)]
        )
    if isinstance(value, (tuple, list)):
        return type(value)(inner if number == key else item for number, item in enumerate(value))
    changed = copy.copy(value)
    if isinstance(value, dict):
        changed[key] = inner
    else:
        changed.__dict__[key] = inner
    return changed


def _get(value: Any, key: Any) -> Any:
    if isinstance(key, Cell):
        return value.__closure__[value.__code__.co_freevars.index(key.name)].cell_contents
    if isinstance(value, (tuple, list, dict)):
        return value[key]
    return value.__dict__[key]
