"""Lengths that belong together: equations between the sizes of a model, and the nearest whole numbers that satisfy them.

Python code computes with sizes: `C // num_heads` becomes a head's width, `reshape(B, N, C)` wants heads times
width to be `C` again, `chunk` wants equal pieces, `if n_rep == 1` takes another path. Tracing writes each of these
down as a `Relation` between the lengths of axes and the integer attributes of modules. Whoever wants other lengths
proposes them, and `LengthSystem.fit` answers with the nearest ones for which every relation still holds, together
with the attributes' new values.

The search has four steps, each of them exact where it applies. Equal unknowns become one. Bounds are narrowed until
nothing changes. A group of relations that hangs on the rest of the system by a single unknown (the heads and the
width of one attention block hang on the model's width) is tabulated and becomes a cost of that unknown alone, so
that a chain or star of such groups is solved like a tree. What remains is searched depth first, best candidate first,
and falls apart into independent parts as soon as values are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any, Union

from strop.errors import GraphError

_FAR = 10**15  # stands for "no bound"
_TABLE = 20_000  # combinations that may be tabulated for one group of relations
_SCOPE = 4  # unknowns of a group that may be tabulated
_SOFT = 50_000  # work (bounds looked at) after which a search takes what it finds first
_HARD = 300_000  # work after which a search gives up
_DEEP = 120  # depth from which a search stops going back
_NEAR = 1e-9
_FOLLOW = 1e-3  # weight of a length that nobody asked for
_FAINT = 1e-6  # weight of an attribute's original value


class Variable:
    """One unknown whole number: the length of an axis, or an integer attribute of a module.

    Args:
        name: What messages call it.
        size: Its value in the original model.
        minimum: The smallest length that an axis may get. An attribute may become any number from 0 on.
        fixed: Whether it must keep its size.
        attribute: Whether it is an attribute. An axis never grows beyond its size; an attribute may.

    >>> Variable('blocks.0.attn.heads', 3, minimum=2)
    Variable('blocks.0.attn.heads', 3)
    """

    __slots__ = ('attribute', 'fixed', 'minimum', 'name', 'size')

    def __init__(self, name: str, size: int, minimum: int = 1, fixed: bool = False, attribute: bool = False) -> None:
        self.name = name
        self.size = size
        self.minimum = minimum
        self.fixed = fixed
        self.attribute = attribute

    def __repr__(self) -> str:
        return f'Variable({self.name!r}, {self.size})'


class Number:
    """A known whole number in an expression.

    >>> text(Number(64))
    '64'
    """

    __slots__ = ('value',)

    def __init__(self, value: int) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f'Number({self.value})'


class Binary:
    """Two expressions under `+`, `-`, `*`, `//`, `%`, `max` or `min`, with the meaning that Python gives them.

    >>> text(Binary('//', Variable('width', 192), Number(3)))
    'width // 3'
    """

    __slots__ = ('left', 'op', 'right')

    def __init__(self, op: str, left: Expr, right: Expr) -> None:
        self.op = op
        self.left = left
        self.right = right

    def __repr__(self) -> str:
        return f'Binary({text(self)})'


Expr = Union[Number, Variable, Binary]


class Relation:
    """A comparison that the code made, or that an operator needs, and that must come out as it did.

    Args:
        op: `==`, `<` or `<=`.
        left: The left expression.
        right: The right expression.
        truth: What the comparison gave in the original model.
        where: The place in the model, for messages.

    >>> Relation('==', Variable('a', 4), Number(1), truth=False, where='attn')
    Relation(not a == 1, at attn)
    """

    __slots__ = ('left', 'op', 'right', 'truth', 'where')

    def __init__(self, op: str, left: Expr, right: Expr, truth: bool = True, where: str = '') -> None:
        self.op = op
        self.left = left
        self.right = right
        self.truth = truth
        self.where = where

    def __repr__(self) -> str:
        place = f', at {self.where}' if self.where else ''
        return f'Relation({self}{place})'

    def __str__(self) -> str:
        return f'{"" if self.truth else "not "}{text(self.left)} {self.op} {text(self.right)}'

    def holds(self, values: Mapping[Variable, int]) -> bool:
        """Tell whether the comparison comes out as in the original model; variables not in `values` have their size."""
        return _holds(self, values, {})


def evaluate(expr: Expr, values: Mapping[Variable, int] | None = None) -> int:
    """Return the value of an expression; variables that `values` does not name have their original size.

    Raises:
        ZeroDivisionError: As Python's own arithmetic does.

    >>> width = Variable('width', 192)
    >>> evaluate(Binary('//', width, Number(64))), evaluate(Binary('//', width, Number(64)), {width: 96})
    (3, 1)
    """
    return _evaluate(expr, values or {}, {})


def text(expr: Expr) -> str:
    """Return an expression as Python would write it.

    >>> heads, width = Variable('heads', 3), Variable('width', 64)
    >>> text(Binary('*', Binary('+', heads, Number(1)), width))
    '(heads + 1) * width'
    """

    def leaf(item: Number | Variable) -> str:
        return item.name if type(item) is Variable else str(item.value)  # type: ignore[union-attr]

    def join(item: Binary, left: str, right: str) -> str:
        if item.op in ('max', 'min'):
            return f'{item.op}({left}, {right})'
        if type(item.left) is Binary and item.left.op not in ('max', 'min') and item.op not in '+-':
            left = f'({left})'
        if type(item.right) is Binary and item.right.op not in ('max', 'min'):
            right = f'({right})'
        return f'{left} {item.op} {right}'

    return _walk(expr, leaf, join, {})


def variables(expr: Expr) -> tuple[Variable, ...]:
    """Return the variables of an expression, each once, from left to right.

    >>> a, b = Variable('a', 2), Variable('b', 3)
    >>> variables(Binary('*', b, Binary('+', a, b)))
    (Variable('b', 3), Variable('a', 2))
    """
    found: dict[Variable, None] = {}
    seen: set[int] = set()
    stack: list[Expr] = [expr]
    while stack:
        item = stack.pop()
        if type(item) is Variable:
            found[item] = None
        elif type(item) is Binary and id(item) not in seen:
            seen.add(id(item))
            stack += (item.right, item.left)
    return tuple(found)


def _walk(expr: Expr, leaf: Callable[[Any], Any], join: Callable[[Binary, Any, Any], Any], memo: dict[int, Any]) -> Any:
    """Compute bottom-up without recursion: code that adds in a loop gives expressions thousands of levels deep."""
    if type(expr) is not Binary:
        return leaf(expr)
    stack: list[Binary] = [expr]
    while stack:
        item = stack[-1]
        key = id(item)
        if key in memo:
            stack.pop()
            continue
        left, right = item.left, item.right
        if type(left) is Binary:
            if id(left) not in memo:
                stack.append(left)
                continue
            first = memo[id(left)]
        else:
            first = leaf(left)
        if type(right) is Binary:
            if id(right) not in memo:
                stack.append(right)
                continue
            second = memo[id(right)]
        else:
            second = leaf(right)
        memo[key] = join(item, first, second)
        stack.pop()
    return memo[id(expr)]


def _apply(op: str, left: int, right: int) -> int:
    if op == '*':
        return left * right
    if op == '+':
        return left + right
    if op == '-':
        return left - right
    if op == '//':
        return left // right
    if op == '%':
        return left % right
    if op == 'max':
        return max(left, right)
    if op == 'min':
        return min(left, right)
    raise GraphError(f'An expression of lengths knows +, -, *, //, %, max and min, but got {op!r}.')


def _evaluate(expr: Expr, values: Mapping[Variable, int], memo: dict[int, int]) -> int:
    def leaf(item: Number | Variable) -> int:
        if type(item) is Number:
            return item.value
        value = values.get(item)  # type: ignore[arg-type]
        return item.size if value is None else value  # type: ignore[union-attr]

    return _walk(expr, leaf, lambda item, left, right: _apply(item.op, left, right), memo)  # type: ignore[no-any-return]


def _holds(relation: Relation, values: Mapping[Variable, int], memo: dict[int, int]) -> bool:
    try:
        left = _evaluate(relation.left, values, memo)
        right = _evaluate(relation.right, values, memo)
    except ZeroDivisionError:
        return False
    if relation.op == '==':
        return (left == right) is relation.truth
    if relation.op == '<=':
        return (left <= right) is relation.truth
    if relation.op == '<':
        return (left < right) is relation.truth
    raise GraphError(f'A relation of lengths is one of ==, < and <=, but got {relation.op!r}.')


# ---------------------------------------------------------------------------------------------------------------------
# Relations as constraints on numbered unknowns

Monomial = tuple[int, ...]
Poly = dict[Monomial, int]


class _Sum:
    """A sum of products against zero: `==` (kind 0), `<=` (kind 1) or `!=` (kind 2)."""

    __slots__ = ('const', 'kind', 'scope', 'source', 'terms')

    def __init__(self, kind: int, poly: Poly, source: int) -> None:
        self.kind = kind
        self.const = poly.get((), 0)
        self.terms = tuple((coefficient, key) for key, coefficient in poly.items() if key)
        self.scope = tuple(dict.fromkeys(v for _, key in self.terms for v in key))
        self.source = source

    def key(self, place: Mapping[int, int]) -> tuple[Any, ...]:
        return (
            self.kind,
            self.const,
            tuple((coefficient, tuple(place[v] for v in key)) for coefficient, key in self.terms),
        )

    def true(self, value: Sequence[int]) -> bool:
        total = self.const
        for coefficient, key in self.terms:
            for v in key:
                coefficient *= value[v]
            total += coefficient
        return total == 0 if self.kind == 0 else total <= 0 if self.kind == 1 else total != 0

    def gives(self, v: int) -> bool:
        """Whether the other values determine `v`, if at all."""
        return self.kind == 0 and sum(key.count(v) for _, key in self.terms) == 1

    def solve(self, v: int, value: Sequence[int]) -> int | None:
        rest, slope = self.const, 0
        for coefficient, key in self.terms:
            if v in key:
                for other in key:
                    if other != v:
                        coefficient *= value[other]
                slope += coefficient
            else:
                for other in key:
                    coefficient *= value[other]
                rest += coefficient
        if not slope or rest % slope:
            return None
        return -rest // slope

    def revise(self, state: _State) -> bool:
        """Narrow the bounds; tell whether the constraint can still hold."""
        lo, hi = state.lo, state.hi
        low = high = self.const
        bounds = []
        for coefficient, key in self.terms:
            if len(key) == 1:
                v = key[0]
                a, b = lo[v], hi[v]
            else:
                a, b = _range(key, lo, hi)
            if coefficient > 0:
                a, b = coefficient * a, coefficient * b
            else:
                a, b = coefficient * b, coefficient * a
            low += a
            high += b
            bounds.append((a, b))
        if self.kind == 0:
            if low > 0 or high < 0:
                return False
            if low == high:
                return True
        elif self.kind == 1:
            if low > 0:
                return False
            if high <= 0:
                return True
        else:
            return self._differ(state, low, high)
        equal = self.kind == 0
        for (coefficient, key), (a, b) in zip(self.terms, bounds):
            top = a - low  # the term is at most this
            bottom = b - high if equal else -_FAR  # and at least this
            if top >= b and bottom <= a and (len(key) == 1 or a != b):
                continue
            top, bottom = min(top, b), max(bottom, a)
            if coefficient > 0:
                least, most = -(-bottom // coefficient), top // coefficient
            else:
                least, most = -(top // -coefficient), (-bottom) // -coefficient
            if least > most:
                return False
            if len(key) == 1:
                if not state.narrow(key[0], least, most):
                    return False
            elif not _narrow_factors(key, least, most, state):
                return False
        return True

    def _differ(self, state: _State, low: int, high: int) -> bool:
        if low > 0 or high < 0:
            return True
        if low == high:
            return False
        open_terms = [(c, key) for c, key in self.terms if any(state.lo[v] != state.hi[v] for v in key)]
        if len(open_terms) != 1 or len(open_terms[0][1]) != 1:
            return True
        coefficient, (v,) = open_terms[0]
        a, b = coefficient * state.lo[v], coefficient * state.hi[v]
        rest = low - min(a, b)
        if rest % coefficient:
            return True
        taboo = -rest // coefficient
        if taboo == state.lo[v]:
            return state.narrow(v, taboo + 1, state.hi[v])
        if taboo == state.hi[v]:
            return state.narrow(v, state.lo[v], taboo - 1)
        return True


class _Definition:
    """An unknown that is `//`, `%`, `max` or `min` of two others."""

    __slots__ = ('left', 'op', 'out', 'right', 'scope', 'source')

    def __init__(self, op: str, out: int, left: int, right: int, source: int) -> None:
        self.op, self.out, self.left, self.right = op, out, left, right
        self.scope = tuple(dict.fromkeys((left, right, out)))
        self.source = source

    def key(self, place: Mapping[int, int]) -> tuple[Any, ...]:
        return self.op, place[self.out], place[self.left], place[self.right]

    def true(self, value: Sequence[int]) -> bool:
        return self.solve(self.out, value) == value[self.out]

    def gives(self, v: int) -> bool:
        return v == self.out and v not in (self.left, self.right)

    def solve(self, v: int, value: Sequence[int]) -> int | None:
        right = value[self.right]
        if right == 0 and self.op in ('//', '%'):
            return None
        return _apply(self.op, value[self.left], right)

    def revise(self, state: _State) -> bool:
        lo, hi = state.lo, state.hi
        x, y, z = self.left, self.right, self.out
        if lo[x] == hi[x] and lo[y] == hi[y]:
            value = self.solve(z, lo)
            return value is not None and state.narrow(z, value, value)
        if self.op == 'max':
            if not state.narrow(z, max(lo[x], lo[y]), max(hi[x], hi[y])):
                return False
            if not (state.narrow(x, lo[x], min(hi[x], hi[z])) and state.narrow(y, lo[y], min(hi[y], hi[z]))):
                return False
            if hi[x] < lo[z]:
                return state.narrow(y, lo[z], hi[y])
            return hi[y] >= lo[z] or state.narrow(x, lo[z], hi[x])
        if self.op == 'min':
            if not state.narrow(z, min(lo[x], lo[y]), min(hi[x], hi[y])):
                return False
            if not (state.narrow(x, max(lo[x], lo[z]), hi[x]) and state.narrow(y, max(lo[y], lo[z]), hi[y])):
                return False
            if lo[x] > hi[z]:
                return state.narrow(y, lo[y], hi[z])
            return lo[y] <= hi[z] or state.narrow(x, lo[x], hi[z])
        if lo[y] == 0 and not state.narrow(y, 1, hi[y]):
            return False
        if lo[y] < 0:
            return True  # a negative divisor: only checked once everything is known
        return self._quotient(state, x, y, z) if self.op == '//' else self._remainder(state, x, y, z)

    @staticmethod
    def _quotient(state: _State, x: int, y: int, z: int) -> bool:
        lo, hi = state.lo, state.hi
        least = lo[x] // (hi[y] if lo[x] >= 0 else lo[y])
        most = hi[x] // (lo[y] if hi[x] >= 0 else hi[y])
        if not state.narrow(z, least, most):
            return False
        # z * y <= x < (z + 1) * y
        least = lo[z] * (lo[y] if lo[z] >= 0 else hi[y])
        most = (hi[z] + 1) * (hi[y] if hi[z] >= 0 else lo[y]) - 1
        if not state.narrow(x, least, most):
            return False
        if lo[z] > 0 and not state.narrow(y, lo[y], hi[x] // lo[z]):
            return False
        return lo[x] < 0 or hi[z] < 0 or state.narrow(y, lo[x] // (hi[z] + 1) + 1, hi[y])

    @staticmethod
    def _remainder(state: _State, x: int, y: int, z: int) -> bool:
        lo, hi = state.lo, state.hi
        if not state.narrow(z, 0, min(hi[y] - 1, hi[x]) if lo[x] >= 0 else hi[y] - 1):
            return False
        if lo[z] >= lo[y] and not state.narrow(y, lo[z] + 1, hi[y]):
            return False
        if lo[y] == hi[y]:
            by = lo[y]
            if lo[x] // by == hi[x] // by:
                base = lo[x] // by * by
                if not state.narrow(z, lo[x] - base, hi[x] - base):
                    return False
                return state.narrow(x, base + lo[z], base + hi[z])
            if lo[z] == hi[z]:
                rest = lo[z]
                return state.narrow(x, lo[x] + (rest - lo[x]) % by, hi[x] - (hi[x] - rest) % by)
        elif lo[x] == hi[x] and lo[z] == hi[z] and hi[y] - lo[y] <= 4096:
            least, most, value, rest = lo[y], hi[y], lo[x], lo[z]
            while least <= most and value % least != rest:
                least += 1
            while most > least and value % most != rest:
                most -= 1
            return state.narrow(y, least, most)
        return True


_Constraint = Union[_Sum, _Definition]


def _range(key: Iterable[int], lo: Sequence[int], hi: Sequence[int]) -> tuple[int, int]:
    """Return the bounds of a product."""
    a = b = 1
    for v in key:
        c, d = lo[v], hi[v]
        if a >= 0 and c >= 0:
            a, b = a * c, b * d
        else:
            corners = (a * c, a * d, b * c, b * d)
            a, b = min(corners), max(corners)
    return max(a, -_FAR), min(b, _FAR)


def _narrow_factors(key: Monomial, least: int, most: int, state: _State) -> bool:
    """Narrow the factors of a product that lies in `least..most`."""
    lo, hi = state.lo, state.hi
    for place, v in enumerate(key):
        if lo[v] < 0:
            continue
        if len(key) == 2:
            other = key[1 - place]
            a, b = lo[other], hi[other]
        else:
            a, b = _range(key[:place] + key[place + 1 :], lo, hi)
        bottom, top = lo[v], hi[v]
        if a > 0 and most >= 0:
            top = min(top, most // a)
        if b > 0 and least > 0:
            bottom = max(bottom, -(-least // b))
        if least == most > 0 and bottom < top <= 4096 and a >= 0:
            # A factor divides the product.
            bottom = max(bottom, 1)
            while bottom <= top and least % bottom:
                bottom += 1
            while top > bottom and least % top:
                top -= 1
        if not state.narrow(v, bottom, top):
            return False
    return True


class _State:
    """The bounds of all unknowns, with a trail to take changes back."""

    __slots__ = ('changed', 'constraints', 'dead', 'failures', 'hi', 'lo', 'occurs', 'reasons', 'revising', 'trail', 'work')

    def __init__(self, lo: list[int], hi: list[int], constraints: Sequence[_Constraint], occurs: list[list[int]]) -> None:
        self.lo, self.hi = lo, hi
        self.constraints, self.occurs = constraints, occurs
        self.trail: list[tuple[int, int, int]] = []
        self.changed: list[int] = []
        self.failures = [1] * len(constraints)
        self.reasons: dict[int, int] | None = None
        self.revising = -1
        self.work = 0
        self.dead: set[int] = set()  # constraints that a search has tabulated or put off

    def narrow(self, v: int, least: int, most: int) -> bool:
        a, b = self.lo[v], self.hi[v]
        if least <= a and most >= b:
            return True
        least, most = max(a, least), min(b, most)
        if least > most:
            return False
        self.trail.append((v, a, b))
        self.lo[v], self.hi[v] = least, most
        self.changed.append(v)
        if self.reasons is not None and least == most:
            self.reasons.setdefault(v, self.revising)
        return True

    def propagate(self, start: Iterable[int] | None = None) -> bool:
        """Narrow bounds until nothing changes (or for long enough); tell whether the constraints can still hold."""
        queue: dict[int, None] = dict.fromkeys(start or ())
        constraints, occurs, changed, dead = self.constraints, self.occurs, self.changed, self.dead
        for v in changed:
            for other in occurs[v]:
                if other not in dead:
                    queue[other] = None
        changed.clear()
        steps = 100 * len(queue) + 20 * len(constraints) + 1000
        while queue and steps:
            steps -= 1
            index = next(iter(queue))
            del queue[index]
            self.revising = index
            self.work += len(constraints[index].scope)
            if not constraints[index].revise(self):
                self.failures[index] += 1
                changed.clear()
                return False
            if changed:
                for v in changed:
                    for other in occurs[v]:
                        if other not in dead:
                            queue[other] = None
                changed.clear()
        return True

    def assign(self, v: int, value: int) -> bool:
        return self.narrow(v, value, value) and self.propagate()

    def undo(self, mark: int) -> None:
        trail, lo, hi = self.trail, self.lo, self.hi
        while len(trail) > mark:
            v, a, b = trail.pop()
            lo[v], hi[v] = a, b


class _Builder:
    """Turns relations into constraints on numbered unknowns."""

    def __init__(self, relations: Sequence[Relation]) -> None:
        self.relations = relations
        self.constraints: list[_Constraint] = []
        self.number: dict[Variable, int] = {}
        self.members: list[list[Variable]] = []
        self.parent: list[int] = []
        for relation in relations:
            left, right = relation.left, relation.right
            if relation.op == '==' and relation.truth and type(left) is Variable and type(right) is Variable:
                self.join(self.of(left), self.of(right))
        for _ in range(4):
            if not self.build():
                break
        self.alias = list(range(len(self.lo)))
        while self.merge():
            pass

    def merge(self) -> bool:
        """Replace unknowns that some constraint makes equal by one of them; tell whether there were any."""
        alias, equal = self.alias, []
        determined: dict[Any, int] = {}
        for constraint in self.constraints:
            if not isinstance(constraint, _Sum) or constraint.kind != 0 or len(constraint.scope) > _SCOPE:
                continue
            if not constraint.const and len(constraint.terms) == 2:
                (p, one), (q, two) = constraint.terms
                if p == -q and len(one) == len(two) == 1:
                    equal.append((one[0], two[0]))
                    continue
            # Where c == h * d and c == k * d, h and k are equal.
            for v in constraint.scope:
                around = [(coefficient, key) for coefficient, key in constraint.terms if v in key]
                if len(around) == 1 and around[0][1].count(v) == 1 and all(u == v or self.lo[u] > 0 for u in around[0][1]):
                    sign = 1 if around[0][0] > 0 else -1
                    form = frozenset(
                        (sign * coefficient, tuple(-1 if u == v else u for u in sorted(key, key=lambda u: (u != v, u))))
                        for coefficient, key in constraint.terms
                    )
                    other = determined.setdefault((form, sign * constraint.const), v)
                    if other != v:
                        equal.append((other, v))
        if not equal:
            return False

        def last(v: int) -> int:
            while alias[v] != v:
                alias[v] = alias[alias[v]]
                v = alias[v]
            return v

        for one_v, two_v in equal:
            a, b = sorted((last(one_v), last(two_v)))
            if a != b:
                alias[b] = a
                self.lo[a], self.hi[a] = max(self.lo[a], self.lo[b]), min(self.hi[a], self.hi[b])
        alias[:] = [last(v) for v in range(len(alias))]
        old, self.constraints = self.constraints, []
        known: set[Any] = set()
        for constraint in old:
            if isinstance(constraint, _Sum):
                poly: Poly = {(): constraint.const} if constraint.const else {}
                for coefficient, key in constraint.terms:
                    poly = _add(poly, {tuple(sorted(alias[v] for v in key)): coefficient}, 1)
                if constraint.kind == 0 or constraint.kind == 2:
                    poly = self.simplify(constraint.kind, poly)
                if not poly.keys() - {()}:
                    continue
                made: _Constraint = _Sum(constraint.kind, poly, constraint.source)
                mark: Any = (constraint.kind, frozenset(poly.items()))
            else:
                out, left, right = alias[constraint.out], alias[constraint.left], alias[constraint.right]
                made = _Definition(constraint.op, out, left, right, constraint.source)
                mark = (constraint.op, out, left, right)
            if mark not in known:
                known.add(mark)
                self.constraints.append(made)
        return True

    def of(self, variable: Variable) -> int:
        index = self.number.get(variable)
        if index is None:
            index = self.number[variable] = len(self.parent)
            self.parent.append(index)
            self.members.append([variable])
        return index

    def find(self, index: int) -> int:
        parent = self.parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            if len(self.members[a]) < len(self.members[b]):
                a, b = b, a
            self.parent[b] = a
            self.members[a] += self.members[b]
            self.members[b] = []

    def build(self) -> bool:
        """Build all constraints; tell whether new equal unknowns were found, so that building again gives fewer."""
        self.lo: list[int] = []
        self.hi: list[int] = []
        self.size: list[int] = []
        self.owner: dict[int, int] = {}  # class of equal variables -> its unknown
        self.root: dict[int, int] = {}  # and back
        self.constraints = []
        self.shared: dict[tuple[Any, ...], int] = {}
        self.known: set[tuple[Any, ...]] = set()
        self.memo: dict[int, Poly] = {}
        merged = False
        for index, relation in enumerate(self.relations):
            self.source = index
            left, right = self.poly(relation.left), self.poly(relation.right)
            kind = 0
            if relation.op == '==':
                poly = _add(left, right, -1)
                kind = 0 if relation.truth else 2
            else:
                kind = 1
                strict = relation.op == '<'
                if relation.truth:
                    poly = _add(left, right, -1)
                else:
                    poly = _add(right, left, -1)
                    strict = not strict
                if strict:
                    poly = _add(poly, {(): 1}, 1)
            poly = self.simplify(kind, poly)
            if not poly or set(poly) == {()}:
                continue
            if kind == 0 and len(poly) == 2 and () not in poly:
                (one, p), (two, q) = poly.items()
                if len(one) == len(two) == 1 and p == -q:
                    first, second = self.root.get(one[0]), self.root.get(two[0])
                    if first is not None and second is not None:
                        self.join(first, second)
                        merged = True
                        continue
            key = (kind, frozenset(poly.items()))
            if key not in self.known:
                self.known.add(key)
                self.constraints.append(_Sum(kind, poly, index))
        return merged

    def unknown(self, lo: int, hi: int, size: int) -> int:
        self.lo.append(lo)
        self.hi.append(hi)
        self.size.append(size)
        return len(self.lo) - 1

    def leaf(self, item: Number | Variable) -> Poly:
        if type(item) is Number:
            return {(): item.value} if item.value else {}
        assert type(item) is Variable, 'an expression has no other leaves'
        if item.fixed:
            return {(): item.size} if item.size else {}
        root = self.find(self.of(item))
        index = self.owner.get(root)
        if index is None:
            members = self.members[root]
            lo, hi = -_FAR, _FAR
            for member in members:
                if member.fixed:
                    lo = hi = member.size
                    break
                if member.attribute:
                    lo = max(lo, min(0, member.size))
                else:
                    lo, hi = max(lo, min(member.minimum, member.size)), min(hi, member.size)
            index = self.owner[root] = self.unknown(lo, hi, item.size)
            self.root[index] = root
        if self.lo[index] == self.hi[index]:
            return {(): self.lo[index]} if self.lo[index] else {}
        return {(index,): 1}

    def poly(self, expr: Expr) -> Poly:
        if type(expr) is not Binary or expr.op not in '+-':
            return _walk(expr, self.leaf, self.combine, self.memo)  # type: ignore[no-any-return]
        # A long sum in one go: adding its terms pair by pair takes quadratic time.
        result: Poly = {}
        stack: list[tuple[Expr, int]] = [(expr, 1)]
        while stack:
            item, sign = stack.pop()
            if type(item) is Binary and item.op in '+-' and id(item) not in self.memo:
                stack += ((item.right, sign if item.op == '+' else -sign), (item.left, sign))
                continue
            for key, coefficient in _walk(item, self.leaf, self.combine, self.memo).items():
                value = result.get(key, 0) + sign * coefficient
                if value:
                    result[key] = value
                else:
                    result.pop(key, None)
        return result

    def combine(self, item: Binary, left: Poly, right: Poly) -> Poly:
        op = item.op
        if op == '*':
            if len(left) * len(right) > 256:
                left, right = {(self.helper(left),): 1}, {(self.helper(right),): 1}
            return _multiply(left, right)
        if op == '+':
            return _add(left, right, 1)
        if op == '-':
            return _add(left, right, -1)
        if left.keys() <= {()} and right.keys() <= {()}:
            value = _apply(op, left.get((), 0), right.get((), 0))
            return {(): value} if value else {}
        if op in ('//', '%') and len(right) == 1 and all(self.lo[v] > 0 for key in right for v in key):
            quotient = _divide(left, right)
            if quotient is not None:
                return quotient if op == '//' else {}
        if op in ('max', 'min') and left == right:
            return left
        a, b = self.helper(left), self.helper(right)
        key = (op, a, b)
        out = self.shared.get(key)
        if out is None:
            size = _apply(op, self.size[a], self.size[b])
            out = self.shared[key] = self.unknown(-_FAR, _FAR, size)
            self.constraints.append(_Definition(op, out, a, b, self.source))
        return {(out,): 1}

    def helper(self, poly: Poly) -> int:
        """Return an unknown that equals `poly`."""
        if len(poly) == 1:
            ((monomial, coefficient),) = poly.items()
            if len(monomial) == 1 and coefficient == 1:
                return monomial[0]
        key = ('=', frozenset(poly.items()))
        index = self.shared.get(key)
        if index is None:
            size = sum(coefficient * prod(self.size[v] for v in monomial) for monomial, coefficient in poly.items())
            if poly.keys() <= {()}:
                index = self.unknown(size, size, size)
            else:
                index = self.unknown(-_FAR, _FAR, size)
                self.constraints.append(_Sum(0, _add({(index,): 1}, poly, -1), self.source))
            self.shared[key] = index
        return index

    def simplify(self, kind: int, poly: Poly) -> Poly:
        """Cancel what all terms share."""
        common = 0
        for coefficient in poly.values():
            common = gcd(common, coefficient)
        if common > 1:
            poly = {key: coefficient // common for key, coefficient in poly.items()}
        if () in poly or kind == 1:
            return poly
        shared: Monomial | None = None
        for key in poly:
            if shared is None:
                shared = key
            else:
                shared = tuple(v for v in dict.fromkeys(shared) if v in key)
            if not shared:
                return poly
        for v in dict.fromkeys(shared or ()):
            if self.lo[v] > 0 and all(v in key for key in poly):
                poly = {_without(key, v): coefficient for key, coefficient in poly.items()}
        return poly


def _without(key: Monomial, v: int) -> Monomial:
    place = key.index(v)
    return key[:place] + key[place + 1 :]


def _add(left: Poly, right: Poly, sign: int) -> Poly:
    total = dict(left)
    for key, coefficient in right.items():
        value = total.get(key, 0) + sign * coefficient
        if value:
            total[key] = value
        else:
            total.pop(key, None)
    return total


def _multiply(left: Poly, right: Poly) -> Poly:
    total: Poly = {}
    for one, p in left.items():
        for two, q in right.items():
            key = tuple(sorted(one + two)) if one and two else one or two
            value = total.get(key, 0) + p * q
            if value:
                total[key] = value
            else:
                total.pop(key, None)
    return total


def _divide(left: Poly, right: Poly) -> Poly | None:
    """Return `left / right` where it comes out even whatever the unknowns are."""
    ((factors, by),) = right.items()
    result: Poly = {}
    for key, coefficient in left.items():
        if coefficient % by:
            return None
        for v in factors:
            if v not in key:
                return None
            key = _without(key, v)
        result[key] = coefficient // by
    return result


# ---------------------------------------------------------------------------------------------------------------------
# What a value costs


class _Costs:
    """The distance of each unknown's value to what was asked for, plus the tables folded into it."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self.lo, self.hi = list(state.lo), list(state.hi)  # the bounds at the start: a search narrows those of `state`
        self.wishes: dict[int, list[tuple[int, float]]] = {}
        self.steps: dict[int, tuple[int, int, float]] = {}  # unknown -> (multiple, its size, penalty)
        self.tables: dict[int, dict[int, float]] = {}
        self.best: dict[int, int] = {}
        self.orders: dict[int, list[tuple[float, int]]] = {}

    def wish(self, v: int, target: int, weight: float) -> None:
        self.wishes.setdefault(v, []).append((target, weight))

    def settle(self) -> None:
        """Find the best value of each unknown: the weighted median of its targets."""
        for v, wishes in self.wishes.items():
            wishes.sort()
            half, seen = sum(weight for _, weight in wishes) / 2, 0.0
            for target, weight in wishes:
                seen += weight
                if seen >= half - _NEAR * half:
                    self.best[v] = target
                    break

    def cost(self, v: int, value: int) -> float:
        total = 0.0
        for target, weight in self.wishes.get(v, ()):
            total += weight * abs(value - target)
        step = self.steps.get(v)
        if step is not None and value % step[0] and value != step[1]:
            total += step[2]
        return total

    def least(self, v: int) -> float:
        """Return a lower bound of the cost within the unknown's present bounds."""
        a, b = self.state.lo[v], self.state.hi[v]
        if v in self.tables:
            for cost, value in self.order(v):
                if a <= value <= b:
                    return cost
            return float('inf')
        total = 0.0
        best = self.best.get(v)
        if best is not None:
            best = min(max(best, a), b)
            for target, weight in self.wishes[v]:
                total += weight * abs(best - target)
        if a == b:
            step = self.steps.get(v)
            if step is not None and a % step[0] and a != step[1]:
                total += step[2]
        return total

    def order(self, v: int) -> list[tuple[float, int]]:
        order = self.orders.get(v)
        if order is None:
            table = self.tables.get(v)
            if table is None:
                values: Iterable[int] = range(self.lo[v], self.hi[v] + 1)
                order = [(self.cost(v, value), value) for value in values]
            else:
                order = [(self.cost(v, value) + more, value) for value, more in table.items()]
            order.sort()
            self.orders[v] = order
        return order

    def candidates(self, v: int) -> Iterator[tuple[float, int]]:
        """Yield the cost and value of every allowed value, cheapest first."""
        a, b = self.state.lo[v], self.state.hi[v]
        if v in self.tables or v in self.steps:
            for cost, value in self.order(v):
                if a <= value <= b:
                    yield cost, value
            return
        below = min(max(self.best.get(v, a), a), b)
        above = below + 1
        down, up = self.cost(v, below), self.cost(v, above)
        while below >= a or above <= b:
            if above > b or (below >= a and down <= up):
                yield down, below
                below -= 1
                down = self.cost(v, below)
            else:
                yield up, above
                above += 1
                up = self.cost(v, above)

    def fold(self, v: int, table: Mapping[int, float]) -> None:
        """Add a cost for each value of an unknown; values that are not in the table are ruled out."""
        old = self.tables.get(v)
        self.tables[v] = dict(table) if old is None else {x: old[x] + more for x, more in table.items() if x in old}
        self.orders.pop(v, None)


# ---------------------------------------------------------------------------------------------------------------------
# One component


class _Search:
    """Finds values for the unknowns of one component, from bounds on which all constraints agree."""

    def __init__(self, state: _State, costs: _Costs, cache: dict[Any, Any]) -> None:
        self.state, self.costs, self.cache = state, costs, cache
        state.dead.clear()
        state.work = 0
        self.dead = state.dead
        self.undone: list[Callable[[dict[int, int]], None]] = []

    def run(self, unknowns: Sequence[int], constraints: Sequence[int]) -> dict[int, int] | None:
        self.peel(unknowns, constraints)
        self.fold(constraints)
        lo, hi = self.state.lo, self.state.hi
        gone = self.gone
        rest = [v for v in unknowns if v not in gone]
        found = self.solve(rest, float('inf'), 0)
        if found is None:
            return None
        values = found[1]
        for v in unknowns:
            if v not in values and lo[v] == hi[v]:
                values[v] = lo[v]
        for finish in reversed(self.undone):
            finish(values)
        return values

    def alive(self, v: int) -> list[int]:
        return [c for c in self.state.occurs[v] if c not in self.dead]

    def open(self, constraint: int) -> list[int]:
        lo, hi = self.state.lo, self.state.hi
        return [v for v in self.state.constraints[constraint].scope if lo[v] != hi[v]]

    def peel(self, unknowns: Sequence[int], constraints: Sequence[int]) -> None:
        """Put off unknowns that nobody cares for and that one constraint merely defines."""
        self.gone: set[int] = set()
        state, tasks = self.state, [v for v in unknowns if self.faint(v)]
        while tasks:
            v = tasks.pop()
            if v in self.gone or state.lo[v] == state.hi[v]:
                continue
            around = self.alive(v)
            if len(around) != 1:
                continue
            constraint = state.constraints[around[0]]
            if not constraint.gives(v) or not self.always(constraint, v):
                continue
            if v in self.costs.wishes and any(u != v and self.faint(u) for u in constraint.scope):
                continue  # its original value counts: the others are free too
            self.gone.add(v)
            self.dead.add(around[0])

            def finish(values: dict[int, int], constraint: _Constraint = constraint, v: int = v) -> None:
                value = constraint.solve(v, _Lookup(values, state.lo))
                values[v] = state.lo[v] if value is None else value

            self.undone.append(finish)
            tasks += [u for u in constraint.scope if self.faint(u)]

    def faint(self, v: int) -> bool:
        return all(weight <= _FAINT for _, weight in self.costs.wishes.get(v, ()))

    def always(self, constraint: _Constraint, v: int) -> bool:
        """Whether some allowed value of `v` follows whatever the others are."""
        lo = self.state.lo
        if isinstance(constraint, _Definition):
            if constraint.op in ('//', '%') and lo[constraint.right] < 1:
                return False
            return self.bounds_follow(constraint, v)
        for coefficient, key in constraint.terms:
            if v in key:
                return key == (v,) and abs(coefficient) == 1 and self.bounds_follow(constraint, v)
        return False

    def bounds_follow(self, constraint: _Constraint, v: int) -> bool:
        """Whether the bounds of `v` are no tighter than those that the constraint itself implies."""
        state = self.state
        mark = len(state.trail)
        a, b = state.lo[v], state.hi[v]
        state.trail.append((v, a, b))
        state.lo[v], state.hi[v] = -_FAR, _FAR
        others = {u: (state.lo[u], state.hi[u]) for u in constraint.scope if u != v}
        fine = constraint.revise(state) and state.lo[v] >= a and state.hi[v] <= b
        fine = fine and all((state.lo[u], state.hi[u]) == bounds for u, bounds in others.items())
        state.changed.clear()
        state.undo(mark)
        return fine

    def fold(self, constraints: Sequence[int]) -> None:
        """Turn groups of constraints that hang on one unknown into a cost of that unknown."""
        tasks = [c for c in constraints if c not in self.dead]
        while tasks:
            index = tasks.pop()
            if index in self.dead:
                continue
            scope = self.open(index)
            if not 2 <= len(scope) <= _SCOPE:
                continue
            around = [self.alive(v) for v in scope]
            if sum(len(each) > 8 for each in around) > 1:
                continue
            inside = set(scope)
            group = sorted({c for each in around if len(each) <= 8 for c in each if inside.issuperset(self.open(c))} | {index})
            members = set(group)
            outer = [v for v, each in zip(scope, around) if not members.issuperset(each)]
            if len(outer) > 1:
                continue
            hinge = outer[0] if outer else max(scope, key=lambda v: (self.state.hi[v] - self.state.lo[v], -v))
            inner = [v for v in scope if v != hinge]
            table = self.tabulate(group, hinge, inner)
            if table is None:
                continue
            if not table or not self.state.narrow(hinge, min(table), max(table)) or not self.state.propagate():
                self.state.changed.clear()
                return  # cannot be: the original sizes are in every table
            self.dead.update(group)
            self.gone.update(inner)
            self.costs.fold(hinge, {value: entry[0] for value, entry in table.items()})

            def finish(
                values: dict[int, int], hinge: int = hinge, inner: list[int] = inner, table: dict[int, Any] = table
            ) -> None:
                values.update(zip(inner, table[values[hinge]][1]))

            self.undone.append(finish)
            tasks += self.alive(hinge)

    def tabulate(self, group: list[int], hinge: int, inner: list[int]) -> dict[int, Any] | None:
        """Return, for each value of the hinge, the least cost of the inner unknowns and their values."""
        state, costs = self.state, self.costs
        every = [hinge, *inner]
        place = {v: i for i, v in enumerate(every)}
        local = {v: i for i, v in enumerate(dict.fromkeys(u for c in group for u in state.constraints[c].scope))}
        signature = (
            tuple(state.constraints[c].key(local) for c in group),
            tuple((local[v], state.lo[v], state.hi[v]) for v in local),
            tuple(local[v] for v in every),
            tuple((tuple(costs.wishes.get(v, ())), costs.steps.get(v)) for v in inner),
            tuple(tuple(costs.order(v)) if v in costs.tables else None for v in inner),
        )
        if signature in self.cache:
            return self.cache[signature]  # type: ignore[no-any-return]
        plan = self.plan([state.constraints[c] for c in group], every)
        table: dict[int, Any] | None = None
        if plan is not None:
            table = {}
            value = _Lookup({}, state.lo)
            self.enumerate(plan[0], plan[1], value, hinge, inner, place, table)
        self.cache[signature] = table
        return table

    def width(self, v: int) -> int:
        if v in self.costs.tables:
            return len(self.costs.tables[v])
        return self.state.hi[v] - self.state.lo[v] + 1

    def plan(self, constraints: list[_Constraint], every: list[int]) -> tuple[list[int], list[Any]] | None:
        """Choose unknowns to enumerate so that constraints give the others; return them and the steps."""
        best: tuple[int, list[int], list[Any]] | None = None
        for bits in range(1, 1 << len(every)):
            chosen = [v for i, v in enumerate(every) if bits >> i & 1]
            size = prod(self.width(v) for v in chosen)
            if size > _TABLE or (best is not None and size >= best[0]):
                continue
            known, open_constraints = set(chosen), list(constraints)
            steps: list[Any] = []
            progress = True
            while progress:
                progress = False
                for constraint in list(open_constraints):
                    missing = [v for v in constraint.scope if v in every and v not in known]
                    if not missing:
                        steps.append((constraint, None))
                    elif len(missing) == 1 and constraint.gives(missing[0]):
                        steps.append((constraint, missing[0]))
                        known.add(missing[0])
                    else:
                        continue
                    open_constraints.remove(constraint)
                    progress = True
            if not open_constraints and len(known) == len(every):
                best = size, chosen, steps
        return None if best is None else (best[1], best[2])

    def enumerate(
        self,
        chosen: list[int],
        steps: list[Any],
        value: _Lookup,
        hinge: int,
        inner: list[int],
        place: Mapping[int, int],
        table: dict[int, Any],
    ) -> None:
        state, costs = self.state, self.costs
        lo, hi = state.lo, state.hi
        price: dict[int, dict[int, float]] = {}
        for v in inner:
            if v in costs.tables:
                price[v] = {x: cost for cost, x in costs.order(v)}
            elif hi[v] - lo[v] < 4 * _TABLE:
                price[v] = {x: costs.cost(v, x) for x in range(lo[v], hi[v] + 1)}
        values = value.values

        def close() -> None:
            for constraint, v in steps:
                if v is None:
                    if not constraint.true(value):
                        return
                    continue
                x = constraint.solve(v, value)
                if x is None or not lo[v] <= x <= hi[v]:
                    return
                values[v] = x
            total = 0.0
            for v in inner:
                x = values[v]
                prices = price.get(v)
                if prices is None:
                    total += costs.cost(v, x)
                elif x in prices:
                    total += prices[x]
                else:
                    return
            entry = table.get(values[hinge])
            if entry is None or total < entry[0] - _NEAR:
                table[values[hinge]] = total, tuple(values[v] for v in inner)

        def descend(depth: int) -> None:
            if depth == len(chosen):
                close()
                return
            v = chosen[depth]
            for x in list(price[v]) if v in price and v in costs.tables else range(lo[v], hi[v] + 1):
                values[v] = x
                descend(depth + 1)

        descend(0)

    # The search proper: an AND-OR search, that is depth first, with independent parts solved apart.

    def split(self, unknowns: Sequence[int]) -> list[tuple[list[int], bool]]:
        """Return the independent parts of `unknowns`, and for each whether constraints are left in it."""
        state = self.state
        lo, hi, occurs, dead = state.lo, state.hi, state.occurs, self.dead
        inside = set(unknowns)
        seen: set[int] = set()
        used: set[int] = set()
        parts = []
        for start in unknowns:
            if start in seen:
                continue
            seen.add(start)
            part, stack, bound = [], [start], False
            while stack:
                v = stack.pop()
                part.append(v)
                if lo[v] == hi[v]:
                    continue
                for c in occurs[v]:
                    if c in dead or c in used:
                        continue
                    used.add(c)
                    bound = True
                    for u in state.constraints[c].scope:
                        if u in inside and u not in seen and lo[u] != hi[u]:
                            seen.add(u)
                            stack.append(u)
            parts.append((part, bound))
        return parts

    def solve(self, unknowns: Sequence[int], bound: float, depth: int) -> tuple[float, dict[int, int]] | None:
        costs, lo, hi = self.costs, self.state.lo, self.state.hi
        parts: list[tuple[int, int, list[int], float]] = []
        rest, total = 0.0, 0.0
        values: dict[int, int] = {}
        for part, tied in self.split(unknowns):
            if tied:
                least = sum(map(costs.least, part))
                parts.append((len(part), len(parts), part, least))
                rest += least
                continue
            for v in part:
                if lo[v] == hi[v]:
                    cost, value = costs.least(v), lo[v]
                else:
                    cost, value = next(costs.candidates(v), (float('inf'), lo[v]))
                total += cost
                values[v] = value
        if total + rest >= bound - _NEAR:
            return None
        parts.sort()
        for _, _, part, least in parts:
            rest -= least
            found = self.branch(part, bound - total - rest, depth)
            if found is None:
                return None
            total += found[0]
            values.update(found[1])
        return total, values

    def branch(self, part: list[int], bound: float, depth: int) -> tuple[float, dict[int, int]] | None:
        state, costs = self.state, self.costs
        lo, hi, occurs, dead, failures = state.lo, state.hi, state.occurs, self.dead, state.failures
        pick, best_score = -1, (False, False, 0.0, 0)
        for v in part:
            if lo[v] == hi[v]:
                continue
            width = hi[v] - lo[v]
            weight = sum(failures[c] for c in occurs[v] if c not in dead)
            score = (v in costs.wishes, width < 65536, float(weight), -width)
            if pick < 0 or score > best_score:
                pick, best_score = v, score
        others = [v for v in part if v != pick]
        rest = sum(map(costs.least, others))
        best: tuple[float, dict[int, int]] | None = None
        patience = max(8, 2048 >> depth)
        for tries, (cost, value) in enumerate(costs.candidates(pick)):
            if cost + rest >= bound - _NEAR or state.work > _HARD:
                break
            if best is not None and (state.work > _SOFT or depth > _DEEP or tries > patience):
                break
            if depth > _DEEP and tries > 64:
                break
            mark = len(state.trail)
            if state.assign(pick, value):
                found = self.solve(others, bound - cost, depth + 1)
                if found is not None:
                    best = found[0] + cost, found[1]
                    best[1][pick] = value
                    bound = best[0]
            else:
                state.changed.clear()
            state.undo(mark)
        return best


class _Lookup(Sequence[int]):
    """Values by number: those given, else the lower bounds of unknowns that are known."""

    __slots__ = ('other', 'values')

    def __init__(self, values: dict[int, int], other: Sequence[int]) -> None:
        self.values, self.other = values, other

    def __getitem__(self, v: int) -> int:  # type: ignore[override]
        value = self.values.get(v)
        return self.other[v] if value is None else value

    def __len__(self) -> int:
        return len(self.other)


# ---------------------------------------------------------------------------------------------------------------------
# The system


@dataclass(frozen=True)
class Component:
    """Variables that depend on each other, and the relations through which they do."""

    variables: tuple[Variable, ...]
    relations: tuple[Relation, ...]


@dataclass(frozen=True)
class Solution:
    """An answer that satisfies every relation.

    Args:
        values: The value of each variable.
        moved: The variables that did not get their target.
        locked: The variables that keep their original size because a relation allows nothing else, or because
            no other joint solution was found; each with the relation that stands in the way.
    """

    values: Mapping[Variable, int]
    moved: tuple[Variable, ...] = ()
    locked: Mapping[Variable, Relation] = field(default_factory=dict)


class LengthSystem:
    """Relations between lengths, ready to be solved for new ones.

    Args:
        relations: What must keep coming out as it does with the original sizes.

    Raises:
        GraphError: If a relation does not hold for the original sizes.

    >>> width, heads, head = Variable('width', 192), Variable('heads', 3, minimum=2), Variable('head', 64)
    >>> attribute = Variable('attn.head_dim', 64, attribute=True)
    >>> system = LengthSystem(
    ...     [
    ...         Relation('==', width, Binary('*', heads, head), where='attn'),
    ...         Relation('==', attribute, Binary('//', width, heads), where='attn'),
    ...     ]
    ... )
    >>> solution = system.fit({width: 96, heads: 2, head: 48})
    >>> [solution.values[each] for each in (width, heads, head, attribute)]
    [96, 2, 48, 48]
    >>> system.check({width: 96, heads: 2, head: 32})
    [Relation(width == heads * head, at attn), Relation(attn.head_dim == width // heads, at attn)]
    """

    def __init__(self, relations: Iterable[Relation]) -> None:
        self.relations = tuple(relations)
        memo: dict[int, int] = {}
        for relation in self.relations:
            if not _holds(relation, {}, memo):
                raise GraphError(f'A relation must hold for the original sizes, but {_told(relation, {})}.')
        self._free = [relation for relation in self.relations if _is_free(relation)]
        builder = _Builder(self._free)
        self._number, self._owner, self._find = builder.number, builder.owner, builder.find
        self._sizes, self._alias = builder.size, builder.alias
        constraints = builder.constraints
        occurs: list[list[int]] = [[] for _ in builder.lo]
        for index, constraint in enumerate(constraints):
            for v in constraint.scope:
                occurs[v].append(index)
        self._state = _State(builder.lo, builder.hi, constraints, occurs)
        self._members: dict[int, list[Variable]] = {}
        for index, root in builder.root.items():
            self._members.setdefault(builder.alias[index], []).extend(builder.members[root])
        self._root_reasons()
        self._parts = self._split()

    def _root_reasons(self) -> None:
        state = self._state
        reasons: dict[int, int] = {}
        state.reasons = reasons
        if not state.propagate(range(len(state.constraints))):
            raise GraphError('The relations contradict each other although each holds for the original sizes.')
        state.reasons = None
        state.trail.clear()
        self._locked: dict[Variable, Relation] = {}
        for v, index in reasons.items():
            for variable in self._members.get(v, ()):
                if not variable.fixed and not variable.attribute:
                    self._locked[variable] = self._free[state.constraints[index].source]
        for relation in self._free:
            left, right = relation.left, relation.right
            if relation.op == '==' and relation.truth and type(left) is Variable and type(right) is Variable:
                for one, two in ((left, right), (right, left)):
                    if one.fixed and not two.fixed:
                        for variable in self._members.get(self._unknown(two), ()):
                            if not variable.fixed and not variable.attribute:
                                self._locked[variable] = relation

    def _unknown(self, variable: Variable) -> int:
        """Return the number of the unknown that stands for a variable, -1 where it is known from the start."""
        index = self._owner.get(self._find(self._number[variable]))
        return -1 if index is None else self._alias[index]

    def _split(self) -> list[tuple[list[int], list[int]]]:
        state = self._state
        lo, hi = state.lo, state.hi
        parts = []
        seen: set[int] = set()
        for start in range(len(lo)):
            if start in seen or lo[start] == hi[start] or self._alias[start] != start:
                continue
            seen.add(start)
            unknowns, used, stack = [], dict[int, None](), [start]
            while stack:
                v = stack.pop()
                unknowns.append(v)
                for c in state.occurs[v]:
                    if c not in used:
                        used[c] = None
                        for u in state.constraints[c].scope:
                            if u not in seen and lo[u] != hi[u]:
                                seen.add(u)
                                stack.append(u)
            parts.append((sorted(unknowns), sorted(used)))
        return parts

    @property
    def locked(self) -> Mapping[Variable, Relation]:
        """The axis lengths that can only be what they are, each with the relation that says so."""
        return dict(self._locked)

    @property
    def components(self) -> tuple[Component, ...]:
        """The independent parts: variables joined by relations, without what is fixed."""
        parent: dict[Variable, Variable] = {}

        def find(variable: Variable) -> Variable:
            while parent[variable] is not variable:
                parent[variable] = parent[parent[variable]]
                variable = parent[variable]
            return variable

        scopes = []
        for relation in self._free:
            scope = [v for v in _scope(relation) if not v.fixed]
            for variable in scope:
                parent.setdefault(variable, variable)
            for variable in scope[1:]:
                parent[find(variable)] = find(scope[0])
            scopes.append(scope)
        members: dict[Variable, list[Variable]] = {}
        for variable in parent:
            members.setdefault(find(variable), []).append(variable)
        rules: dict[Variable, dict[tuple[Any, ...], Relation]] = {}
        for relation, scope in zip(self._free, scopes):
            rules.setdefault(find(scope[0]), {}).setdefault(_key(relation), relation)
        return tuple(Component(tuple(each), tuple(rules[root].values())) for root, each in members.items())

    def check(self, values: Mapping[Variable, int]) -> list[Relation]:
        """Return the relations that `values` break; variables that it does not name have their original size."""
        memo: dict[int, int] = {}
        return [relation for relation in self.relations if not _holds(relation, values, memo)]

    def fit(self, targets: Mapping[Variable, int], rounding: Mapping[Variable, int] | int = 1) -> Solution:
        """Return the values nearest to the targets for which every relation holds.

        The distance is the sum of |value - target| / size over the axes in `targets`. Axes that have no target stay
        near their original size where that costs the others nothing; attributes keep their value where they may.

        Args:
            targets: The wanted lengths; brought into `minimum..size` first.
            rounding: Multiples to prefer, for all axes or for each.

        Raises:
            GraphError: If a multiple is not positive.

        >>> left, right, whole = Variable('left', 29), Variable('right', 29), Variable('whole', 58)
        >>> halves = LengthSystem(
        ...     [
        ...         Relation('==', left, right, where='chunk'),
        ...         Relation('==', whole, Binary('+', left, right), where='chunk'),
        ...     ]
        ... )
        >>> solution = halves.fit({whole: 29, left: 14})
        >>> solution.values[whole], solution.values[right], solution.moved
        (28, 14, (Variable('whole', 58),))
        """
        for step in rounding.values() if isinstance(rounding, Mapping) else (rounding,):
            if step < 1:
                raise GraphError(f'Lengths can be rounded to multiples of 1 or more, but got {step}.')
        state = self._state
        goals = {variable: _clamped(variable, target) for variable, target in targets.items()}
        costs = self._costs(goals, rounding)
        cache: dict[Any, Any] = {}
        locked = dict(self._locked)
        known: dict[int, int] = {}
        for unknowns, constraints in self._parts:
            mark = len(state.trail)
            found = self._solve(unknowns, constraints, goals, costs, cache, locked)
            state.undo(mark)
            state.changed.clear()
            known.update(found)
        values: dict[Variable, int] = {}
        lo, hi = state.lo, state.hi
        for variable in self._number:
            index = self._unknown(variable)
            if index < 0 or variable.fixed:
                values[variable] = variable.size
            elif index in known:
                values[variable] = known[index]
            elif lo[index] == hi[index]:
                values[variable] = lo[index]
            else:
                values[variable] = variable.size
        for relation in self.relations:
            for variable in _scope(relation) if relation not in values else ():
                values.setdefault(variable, variable.size)
        for variable, goal in goals.items():
            if variable not in values:
                values[variable] = _rounded(variable, goal, _step(rounding, variable))
        moved = tuple(v for v, target in targets.items() if values[v] != target)
        return Solution(values, moved, {v: r for v, r in locked.items() if values.get(v) == v.size})

    def _costs(self, goals: Mapping[Variable, int], rounding: Mapping[Variable, int] | int) -> _Costs:
        costs = _Costs(self._state)
        for index, members in self._members.items():
            for variable in members:
                size = max(1, abs(variable.size))
                if variable in goals:
                    costs.wish(index, goals[variable], 1 / size)
                    step = _step(rounding, variable)
                    if step > 1 and not variable.attribute:
                        costs.steps[index] = (step, variable.size, step / size)
                elif variable.attribute:
                    costs.wish(index, variable.size, _FAINT / size)
                else:
                    costs.wish(index, variable.size, _FOLLOW / size)
        costs.settle()
        return costs

    def _solve(
        self,
        unknowns: list[int],
        constraints: list[int],
        goals: Mapping[Variable, int],
        costs: _Costs,
        cache: dict[Any, Any],
        locked: dict[Variable, Relation],
    ) -> dict[int, int]:
        """Solve one component: with all targets met, else with the least distance, else with a part kept as it was."""
        state = self._state
        members = [member for v in unknowns for member in self._members.get(v, ())]
        if all(goals.get(member, member.size) == member.size for member in members):
            return {v: self._sizes[v] for v in unknowns}
        wanted = [v for v in unknowns if any(member in goals for member in self._members.get(v, ()))]
        mark = len(state.trail)
        if not any(v in costs.steps for v in wanted) and all(state.narrow(v, costs.best[v], costs.best[v]) for v in wanted):
            found = self._search(unknowns, costs, cache, ()) if state.propagate() else None
            state.undo(mark)
            if found is not None:
                return found
        state.changed.clear()
        state.undo(mark)
        give_up = 1
        while True:
            found = self._search(unknowns, costs, cache, constraints)
            if found is not None and self._true(found, constraints):
                return found
            open_ones = [c for c in constraints if any(state.lo[v] != state.hi[v] for v in state.constraints[c].scope)]
            if not open_ones:
                return {v: state.lo[v] for v in unknowns}
            open_ones.sort(key=lambda c: -state.failures[c])
            for c in open_ones[:give_up]:
                for v in state.constraints[c].scope:
                    if state.lo[v] == state.hi[v]:
                        continue
                    for member in self._members.get(v, ()):
                        if not member.attribute:
                            locked.setdefault(member, self._free[state.constraints[c].source])
                    state.assign(v, self._sizes[v])
            give_up *= 2

    def _search(
        self, unknowns: list[int], costs: _Costs, cache: dict[Any, Any], constraints: Sequence[int]
    ) -> dict[int, int] | None:
        tables, orders = dict(costs.tables), dict(costs.orders)
        found = _Search(self._state, costs, cache).run(unknowns, constraints)
        costs.tables, costs.orders = tables, orders
        self._state.dead.clear()
        return found

    def _true(self, values: Mapping[int, int], constraints: Sequence[int]) -> bool:
        value = _Lookup(dict(values), self._state.lo)
        return all(self._state.constraints[c].true(value) for c in constraints)


def _scope(relation: Relation) -> tuple[Variable, ...]:
    return tuple(dict.fromkeys(variables(relation.left) + variables(relation.right)))


def _is_free(relation: Relation) -> bool:
    return any(not variable.fixed for variable in _scope(relation))


def _key(relation: Relation) -> tuple[Any, ...]:
    def leaf(item: Number | Variable) -> Any:
        return item if type(item) is Variable else item.value  # type: ignore[union-attr]

    def join(item: Binary, left: Any, right: Any) -> Any:
        return item.op, left, right

    left, right = _walk(relation.left, leaf, join, {}), _walk(relation.right, leaf, join, {})
    return relation.op, relation.truth, left, right


def _told(relation: Relation, values: Mapping[Variable, int]) -> str:
    """Word what a broken relation gives."""
    place = f' at {relation.where}' if relation.where else ''
    given = ', '.join(f'{v.name} = {values.get(v, v.size)}' for v in _scope(relation))
    return f'`{relation}`{place} does not, with {given}' if given else f'`{relation}`{place} does not'


def _clamped(variable: Variable, target: int) -> int:
    if variable.fixed:
        return variable.size
    if variable.attribute:
        return max(min(0, variable.size), target)
    return min(max(target, min(variable.minimum, variable.size)), variable.size)


def _step(rounding: Mapping[Variable, int] | int, variable: Variable) -> int:
    return rounding.get(variable, 1) if isinstance(rounding, Mapping) else rounding


def _rounded(variable: Variable, goal: int, step: int) -> int:
    """Return the multiple nearest to `goal` within the variable's range, or the goal where there is none."""
    if step == 1 or goal == variable.size or variable.fixed or variable.attribute:
        return goal
    near = goal // step * step
    fits = [x for x in (near, near + step) if _clamped(variable, x) == x and x > 0]
    return min(fits, key=lambda x: (abs(x - goal), x), default=goal)
