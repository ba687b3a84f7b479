"""Choices between values, expressions over them, and blocks repeated a chosen number of times."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from strop.errors import ComponentTypeError, SpaceError, SubnetError
from strop.mutables.domain import Domain, Label, Ordered, Picks
from strop.mutables.mutable import Mutable
from strop.registry import MODELS


class Arithmetic:
    """Operators that make expressions of values; mixed into `ValueChoice` and `Expression`."""

    def __add__(self, other: Any) -> Expression:
        return Expression(operator.add, self, other)

    def __radd__(self, other: Any) -> Expression:
        return Expression(operator.add, other, self)

    def __sub__(self, other: Any) -> Expression:
        return Expression(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Expression:
        return Expression(operator.sub, other, self)

    def __mul__(self, other: Any) -> Expression:
        return Expression(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Expression:
        return Expression(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Expression:
        return Expression(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Expression:
        return Expression(operator.truediv, other, self)

    def __floordiv__(self, other: Any) -> Expression:
        return Expression(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> Expression:
        return Expression(operator.floordiv, other, self)

    def __mod__(self, other: Any) -> Expression:
        return Expression(operator.mod, self, other)

    def __pow__(self, other: Any) -> Expression:
        return Expression(operator.pow, self, other)

    def __neg__(self) -> Expression:
        return Expression(operator.neg, self)


class ValueChoice(Arithmetic, Mutable):
    """One of several values: a kernel size, a rate, a depth, a flag.

    Keep it as an attribute of a module; `v()` in any forward gives the current value, and `v * 2`, `maximum(v, w)`
    or `concat(v, w)` are expressions that are called alike.

    Args:
        candidates: The values, in order: numbers, strings, booleans, None, or lists of them.
        key: Name of the decision; the path in the model by default.
        default: The value before any decision is made; without it, asking then is an error.

    Raises:
        SpaceError: If there are no values, one is given twice, or JSON cannot hold one.

    >>> kernel = ValueChoice([3, 5, 7], key='kernel')
    >>> padding = kernel // 2
    >>> kernel.decide(5)
    >>> kernel(), padding()
    (5, 2)
    """

    def __init__(self, candidates: Sequence[Any], key: str | None = None, default: Any = None) -> None:
        super().__init__(key)
        if isinstance(candidates, str) or not isinstance(candidates, Iterable):
            raise ComponentTypeError(f'`candidates` must be a list of values, but got {candidates!r}.')
        self._domain = Ordered(tuple(candidates))
        if default is not None:
            self.decide(default)

    def make_domain(self) -> Domain:
        """Return the domain of the values."""
        return self.domain

    @property
    def values(self) -> tuple[Label, ...]:
        """The candidate values."""
        return self.domain.labels

    @property
    def length(self) -> int:
        """Number of values."""
        return len(self.domain)

    @property
    def n_candidates(self) -> int:
        """Number of values."""
        return len(self.domain)

    def run(self) -> Any:
        """Return the current value."""
        return self.domain.labels[int(self.choice()[0])]


class Expression(Arithmetic, nn.Module):
    """A function of values; calling it gives the function of their current values.

    Args:
        function: A function of as many arguments as there are operands. It must be importable by name if the
            model is to be pickled.
        operands: ValueChoices, expressions, or constants.

    >>> width = ValueChoice([8, 16], key='width')
    >>> half = Expression(operator.floordiv, width, 2)
    >>> width.decide(16)
    >>> half()
    8
    """

    def __init__(self, function: Callable[..., Any], *operands: Any) -> None:
        super().__init__()
        self.function = function
        self._constants: dict[int, Any] = {}
        self._count = len(operands)
        for index, operand in enumerate(operands):
            if isinstance(operand, (ValueChoice, Expression)):
                self.add_module(str(index), operand)
            elif isinstance(operand, nn.Module):
                raise ComponentTypeError(
                    f'An expression is made of ValueChoices, expressions and constants, but got a {type(operand).__name__}.'
                )
            else:
                self._constants[index] = operand

    def forward(self) -> Any:
        """Return the current value of the expression."""
        return self.function(*(self._operand(index) for index in range(self._count)))

    def _operand(self, index: int) -> Any:
        return self._constants[index] if index in self._constants else self._modules[str(index)]()  # type: ignore[misc]

    def choices(self) -> list[ValueChoice]:
        """The ValueChoices that the expression depends on, each once."""
        return [module for module in self.modules() if isinstance(module, ValueChoice)]


def _maximum(*values: Any) -> Any:
    return max(values)


def _minimum(*values: Any) -> Any:
    return min(values)


def _concat(*values: Any) -> Any:
    return sum(values)


def maximum(*values: Any) -> Expression:
    """Return the expression of the largest of `values`.

    >>> v = ValueChoice([1, 5], key='v')
    >>> v.decide(1)
    >>> maximum(v, 3)()
    3
    """
    return Expression(_maximum, *values)


def minimum(*values: Any) -> Expression:
    """Return the expression of the smallest of `values`.

    >>> v = ValueChoice([1, 5], key='v')
    >>> v.decide(5)
    >>> minimum(v, 3)()
    3
    """
    return Expression(_minimum, *values)


def concat(*values: Any) -> Expression:
    """Return the expression of the width of concatenated tensors: the sum of their widths.

    >>> v = ValueChoice([8, 16], key='v')
    >>> v.decide(8)
    >>> concat(v, v, 4)()
    20
    """
    return Expression(_concat, *values)


def truth_table(value: ValueChoice | Expression, test: Callable[[Any], bool]) -> tuple[tuple[ValueChoice, ...], set[Picks]]:
    """Return the choices that `value` depends on, and the combinations of their indices whose value passes `test`.

    Raises:
        SpaceError: If there are more than 100,000 combinations.
    """
    depends = [value] if isinstance(value, ValueChoice) else value.choices()
    sizes = [len(choice.domain) for choice in depends]
    total = 1
    for size in sizes:
        total *= size
    if total > 100_000:
        raise SpaceError(
            f'An expression over {len(depends)} values has {total} combinations; at most 100,000 can be enumerated.'
        )
    before = [(choice._decision, choice._callback) for choice in depends]
    passing: set[Picks] = set()
    try:
        for picks in itertools.product(*map(range, sizes)):
            for choice, index in zip(depends, picks, strict=True):
                choice._decision, choice._callback = (index,), None
            if test(value()):
                passing.add(picks)
    finally:
        for choice, (decision, callback) in zip(depends, before, strict=True):
            choice._decision, choice._callback = decision, callback
    return tuple(depends), passing


class Repeat(nn.Module):
    """Blocks in sequence, of which the first `depth` are run.

    Args:
        block: A module (copied for each position), a function of the position that returns a module, or a list
            of modules.
        depth: A number, a range `(low, high)`, a ValueChoice of integers or an expression over some.
        key: Key of the depth's decision if `depth` is a range.

    Decisions inside a block that is beyond the chosen depth are inactive.

    >>> stack = Repeat(nn.ReLU(), ValueChoice([1, 2], key='depth'))
    >>> len(stack)
    2
    """

    def __init__(
        self,
        block: nn.Module | Callable[[int], nn.Module] | Sequence[nn.Module],
        depth: int | tuple[int, int] | ValueChoice | Expression,
        key: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(depth, tuple):
            if len(depth) != 2:
                raise SpaceError(
                    f'A range of depths is (low, high), but got {depth}. Use ValueChoice({list(depth)}) for single ones.'
                )
            depth = ValueChoice(Ordered.integers(*depth).labels, key=key)
        if isinstance(depth, int) and not isinstance(depth, bool):
            self.depth: ValueChoice | Expression | None = None
            self._fixed_depth = depth
            depths = [depth]
        elif isinstance(depth, (ValueChoice, Expression)):
            self.depth = depth
            self._fixed_depth = 0
            depths = []
            truth_table(depth, lambda value: depths.append(value) or False)  # type: ignore[func-returns-value]
        else:
            raise ComponentTypeError(
                f'`depth` must be an integer, (low, high), a ValueChoice or an expression, but got {type(depth).__name__}.'
            )
        wrong = [value for value in depths if not isinstance(value, int) or isinstance(value, bool) or value < 0]
        if wrong:
            raise SpaceError(f'A depth must be a non-negative integer, but `depth` can be {wrong[0]!r}.')
        for name, module in self._make(block, max(depths)):
            if not isinstance(module, nn.Module):
                raise ComponentTypeError(f'Block {name} must be an nn.Module, but got {type(module).__name__}.')
            self.add_module(name, module)

    @staticmethod
    def _make(block: Any, length: int) -> Iterator[tuple[str, nn.Module]]:
        if isinstance(block, (list, tuple, nn.ModuleList)):
            if len(block) < length:
                raise SpaceError(f'The depth can be {length}, but only {len(block)} blocks are given.')
            # Blocks that no depth reaches would bring decisions that nothing depends on.
            yield from ((str(index), block[index]) for index in range(length))
        elif isinstance(block, nn.Module):
            yield from ((str(index), block if index == 0 else copy.deepcopy(block)) for index in range(length))
        elif callable(block):
            yield from ((str(index), block(index)) for index in range(length))
        else:
            raise ComponentTypeError(f'`block` must be a module, a list of them or a function, but got {type(block).__name__}.')

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, in order."""
        return [module for name, module in self._modules.items() if name.isdigit() and module is not None]

    def __len__(self) -> int:
        return len(self.blocks)

    def __bool__(self) -> bool:
        return True

    def current_depth(self) -> int:
        """Return how many blocks are run now."""
        return self._fixed_depth if self.depth is None else self.depth()

    def forward(self, x: Any) -> Any:
        """Run the first blocks, as many as the depth says."""
        for block in self.blocks[: self.current_depth()]:
            x = block(x)
        return x

    def init_weights(self) -> None:
        """Initialize the blocks that know how (MMEngine modules)."""
        for block in self.blocks:
            if callable(initialize := getattr(block, 'init_weights', None)):
                initialize()


@MODELS.register_module()
class MutableValue(ValueChoice):
    """MMRazor's name for a `ValueChoice` that has a default.

    Args:
        value_list: The values.
        default_value: The value before any decision; the first by default.
        alias: Key of the decision.
        init_cfg: Accepted for old configs; a value has no weights.

    >>> MutableValue([1, 2, 3], alias='depth')()
    1
    """

    def __init__(
        self,
        value_list: Sequence[Any],
        default_value: Any = None,
        alias: str | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(value_list, key=alias)
        self.init_cfg = init_cfg
        try:
            self.decide(self.values[0] if default_value is None else default_value)
        except SubnetError as error:
            raise SpaceError(f'`default_value`: {error}') from None

    @property
    def alias(self) -> str | None:
        """The key that was given, if any."""
        return self._given_key

    @property
    def choices(self) -> list[Any]:
        """The values."""
        return list(self.values)

    @property
    def num_choices(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def current_choice(self) -> Any:
        """The current value; assigning decides."""
        return self.run()

    @current_choice.setter
    def current_choice(self, value: Any) -> None:
        self.decide(value)


@MODELS.register_module()
class OneShotMutableValue(MutableValue):
    """MMRazor's name for a value that a one-shot mutator samples; see `MutableValue`."""
