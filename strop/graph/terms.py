"""What an axis is made of: atoms, products and concatenations of them, and the unification that couples axes.

An axis of a tensor is described by a *term*:

- `Atom`: an axis of which nothing more is known. Atoms are what gets pruned.
- `Prod`: what `view` flattens or takes apart; the outermost factor comes first. A fused `qkv` projection is
  `Prod(3, heads, head_dim)`.
- `Cat`: what `cat`, `split`, slices and padding put together or take apart.

Operators say that two axes are the same (`unify`); an atom is refined into factors (`split_prod`) or segments
(`split_cat`) when a view or a slice demands it. The size of a term always equals the size of its axis, and refining
never loses an equality that was found before. `kept` is the only map from indices of atoms to positions of an axis:
cutting, masking and counting all use it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

#: Kinds of reasons that lie in the model itself. The others (`rule`, `layout`, `tie`, `literal`) lie in what could be inferred.
NATURAL = frozenset({'input', 'output', 'position', 'kernel', 'index', 'constant', 'ignored'})

_serials = itertools.count()


class Reason(NamedTuple):
    """Why an axis keeps its length.

    Args:
        kind: One of `NATURAL`, or `rule` (an operator without a rule), `layout` (a view that cuts through
            channels), `tie` (an equation between lengths without another solution), `literal` (a number in the code).
        op: The operator or expression that froze it.
        path: Path of the module in which that happened.
    """

    kind: str
    op: str = ''
    path: str = ''

    def __str__(self) -> str:
        what = _WORDS.get(self.kind, self.kind).format(op=self.op)
        return f'{what} in {self.path!r}' if self.path else what


_WORDS = {
    'input': 'an axis of the input',
    'output': 'an axis of the output ({op})',
    'position': 'positions of {op}',
    'kernel': 'extent of a kernel ({op})',
    'index': 'indexed by {op}',
    'constant': 'a constant made in the forward ({op})',
    'ignored': 'ignored by request ({op})',
    'rule': 'no axis rule for {op}',
    'layout': '{op} cuts through channels',
    'tie': 'no other lengths satisfy {op}',
    'literal': 'the code says {op}',
}


class Incompatible(Exception):
    """A term cannot be taken apart as asked."""


class Atom:
    """An axis, or a part of one, of which nothing more is known."""

    __slots__ = ('bound', 'frozen', 'marks', 'serial', 'size', 'spans')

    def __init__(self, size: int, frozen: Reason | None = None) -> None:
        self.size = size
        self.bound: Term | None = None
        self.frozen = frozen
        self.marks: frozenset[str] = _NOTHING
        self.spans: frozenset[str] = _NOTHING
        self.serial = next(_serials)

    def __repr__(self) -> str:
        if self.bound is not None:
            return repr(resolve(self))
        return f'{"" if self.frozen is None else "!"}a{self.serial}:{self.size}'


class Prod:
    """A flattened axis: `position = ((i_0 * |f_1| + i_1) * |f_2| + i_2) ...`, the outermost factor first."""

    __slots__ = ('factors', 'size')

    def __init__(self, factors: tuple[Term, ...], size: int) -> None:
        self.factors = factors
        self.size = size

    def __repr__(self) -> str:
        return f'({" * ".join(map(repr, self.factors))})' if self.factors else '1'


class Cat:
    """A concatenated axis, first segment first."""

    __slots__ = ('segments', 'size')

    def __init__(self, segments: tuple[Term, ...], size: int) -> None:
        self.segments = segments
        self.size = size

    def __repr__(self) -> str:
        return f'[{" + ".join(map(repr, self.segments))}]'


Term = Atom | Prod | Cat

_NOTHING: frozenset[str] = frozenset()
#: An axis of size 1. It is never pruned: a length of 1 means "broadcast me".
ONE = Prod((), 1)
EMPTY = Cat((), 0)


def axis(size: int, frozen: Reason | None = None) -> Term:
    """Return a new atom, or `ONE` and `EMPTY` for the sizes that have no choice."""
    if size > 1:
        return Atom(size, frozen)
    return ONE if size == 1 else EMPTY


def resolve(term: Term) -> Term:
    """Return `term` with every binding followed and nested products and concatenations flattened."""
    if type(term) is Atom:
        if term.bound is None:
            return term
        chain, found = [], term  # a loop: a thousand residual blocks bind a thousand atoms in a row
        while type(found) is Atom and found.bound is not None:
            chain.append(found)
            found = found.bound  # type: ignore[assignment]
        found = resolve(found)  # type: ignore[assignment]
        for atom in chain:
            atom.bound = found
        return found
    if type(term) is Prod:
        factors = [resolve(factor) for factor in term.factors]
        if all(new is old for new, old in zip(factors, term.factors)):
            return term
        return product(factors)
    segments = [resolve(segment) for segment in term.segments]  # type: ignore[union-attr]
    if all(new is old for new, old in zip(segments, term.segments)):  # type: ignore[union-attr]
        return term
    return concatenation(segments)


def product(factors: Sequence[Term]) -> Term:
    """Return the flattened axis of `factors`.

    >>> product([Atom(3), ONE, Atom(4)]).size
    12
    """
    flat: list[Term] = []
    for factor in factors:
        if type(factor) is Prod:
            flat.extend(factor.factors)
        elif factor.size != 1:
            flat.append(factor)
    if len(flat) == 1:
        return flat[0]
    size = 1
    for factor in flat:
        size *= factor.size
    return Prod(tuple(flat), size) if flat else ONE


def concatenation(segments: Sequence[Term]) -> Term:
    """Return the concatenated axis of `segments`.

    >>> concatenation([Atom(3), EMPTY, Atom(4)]).size
    7
    """
    flat: list[Term] = []
    for segment in segments:
        if type(segment) is Cat:
            flat.extend(segment.segments)
        elif segment.size:
            flat.append(segment)
    if len(flat) == 1:
        return flat[0]
    return Cat(tuple(flat), sum(segment.size for segment in flat)) if flat else EMPTY


def atoms(term: Term) -> Iterator[Atom]:
    """Yield the atoms of a term, in order; one that occurs twice comes twice."""
    term = resolve(term)
    if type(term) is Atom:
        yield term
    elif type(term) is Prod:
        for factor in term.factors:
            yield from atoms(factor)
    else:
        for segment in term.segments:  # type: ignore[union-attr]
            yield from atoms(segment)


def is_constant(term: Term) -> bool:
    """Say whether no atom of the term can change."""
    return all(atom.frozen is not None for atom in atoms(term))


def freeze(term: Term, reason: Reason) -> None:
    """Keep the length of every atom of `term`. A reason that lies in the model wins over one that lies in the inference."""
    for atom in atoms(term):
        if atom.frozen is None or (reason.kind in NATURAL and atom.frozen.kind not in NATURAL):
            atom.frozen = reason


def span(term: Term, name: str) -> None:
    """Note that `name` mixes the values along this axis: its length may change, and values change with it."""
    for atom in atoms(term):
        if name not in atom.spans:
            atom.spans |= {name}


def mark(term: Term, role: str) -> None:
    """Note what the atoms of an axis are used as (`heads`, `head_dim`, `groups`)."""
    for atom in atoms(term):
        if role not in atom.marks:
            atom.marks |= {role}


def bind(atom: Atom, term: Term) -> None:
    """Make `atom` stand for `term`, of the same size."""
    atom.bound = term
    if atom.frozen is not None:
        freeze(term, atom.frozen)
    if atom.marks or atom.spans:
        for part in atoms(term):
            part.marks |= atom.marks
            part.spans |= atom.spans


def split_prod(term: Term, outer: int) -> tuple[Term, Term]:
    """Take an axis apart into an outer factor of size `outer` and the inner rest.

    Raises:
        Incompatible: If the structure that is known forbids it.

    >>> split_prod(Atom(12), 3)[1].size
    4
    """
    term = resolve(term)
    size = term.size
    if outer == 1:
        return ONE, term
    if outer == size:
        return term, ONE
    if outer < 1 or not size or size % outer:
        raise Incompatible
    inner = size // outer
    if type(term) is Atom:
        one, two = Atom(outer), Atom(inner)
        bind(term, Prod((one, two), size))
        return one, two
    if type(term) is Prod:
        return _split_factors(term, outer)
    segments = term.segments  # type: ignore[union-attr]
    if all(segment.size % inner == 0 for segment in segments):
        pairs = [split_prod(segment, segment.size // inner) for segment in segments]
        for _, rest in pairs[1:]:
            unify(pairs[0][1], rest)
        return concatenation([resolve(first) for first, _ in pairs]), resolve(pairs[0][1])
    rows, rest = [], term
    for _ in range(outer):
        row, rest = split_cat(rest, inner)
        rows.append(row)
    for row in rows[1:]:
        unify(rows[0], row)
    return Cat((ONE,) * outer, outer), resolve(rows[0])


def _split_factors(term: Prod, outer: int) -> tuple[Term, Term]:
    done = 1
    factors = term.factors
    for number, factor in enumerate(factors):
        if done == outer:
            return product(factors[:number]), product(factors[number:])
        if done * factor.size > outer:
            wanted, rest = divmod(outer, done)
            if rest or factor.size % wanted:
                raise Incompatible
            left, right = split_prod(factor, wanted)
            return product([*factors[:number], left]), product([right, *factors[number + 1 :]])
        done *= factor.size
    raise Incompatible


def split_cat(term: Term, offset: int) -> tuple[Term, Term]:
    """Take an axis apart into its first `offset` positions and the others.

    >>> [part.size for part in split_cat(Atom(12), 5)]
    [5, 7]
    """
    term = resolve(term)
    size = term.size
    if offset <= 0:
        return EMPTY, term
    if offset >= size:
        return term, EMPTY
    if type(term) is Atom:
        one, two = axis(offset), axis(size - offset)
        bind(term, Cat((one, two), size))
        return one, two
    if type(term) is Cat:
        done = 0
        for number, segment in enumerate(term.segments):
            if done == offset:
                return concatenation(term.segments[:number]), concatenation(term.segments[number:])
            if done + segment.size > offset:
                left, right = split_cat(segment, offset - done)
                return (
                    concatenation([*term.segments[:number], left]),
                    concatenation([right, *term.segments[number + 1 :]]),
                )
            done += segment.size
        raise Incompatible
    first, *others = term.factors  # type: ignore[union-attr]
    rest = product(others)
    row, inside = divmod(offset, rest.size)
    before, after = split_cat(first, row)
    if not inside:
        return _times(before, rest), _times(after, rest)
    _, after = split_cat(after, 1)
    left, right = split_cat(rest, inside)
    return concatenation([_times(before, rest), left]), concatenation([right, _times(after, rest)])


def _times(outer: Term, inner: Term) -> Term:
    return product([outer, inner]) if outer.size else EMPTY


def unify(one: Term, two: Term, reason: Reason | None = None) -> None:
    """Make two axes the same axis. What cannot be made the same is frozen on both sides, with `reason`.

    >>> a, b = Atom(12), Atom(12)
    >>> heads, dims = split_prod(a, 3)
    >>> unify(a, b)
    >>> resolve(b) is resolve(a)
    True
    """
    work = [(one, two)]
    while work:
        a, b = work.pop()
        a, b = resolve(a), resolve(b)
        if a is b or a.size == 1:
            continue
        if type(a) is Atom:
            bind(a, b)
        elif type(b) is Atom:
            bind(b, a)
        else:
            try:
                work.extend(_aligned(a, b))
            except Incompatible:
                reason = reason or Reason('layout', 'a view')
                freeze(a, reason)
                freeze(b, reason)


def _aligned(a: Any, b: Any) -> list[tuple[Term, Term]]:
    if type(a) is Cat and type(b) is Cat:
        if len(a.segments) == len(b.segments) and all(x.size == y.size for x, y in zip(a.segments, b.segments)):
            return list(zip(a.segments, b.segments))[::-1]
        first = min(a.segments[0].size, b.segments[0].size)
        a_left, a_right = split_cat(a, first)
        b_left, b_right = split_cat(b, first)
    else:
        first = min(term.factors[0].size for term in (a, b) if type(term) is Prod)
        a_left, a_right = split_prod(a, first)
        b_left, b_right = split_prod(b, first)
    return [(a_right, b_right), (a_left, b_left)]


def length(term: Term, lengths: Mapping[Atom, int]) -> int:
    """Return the length of an axis when the atoms in `lengths` have those lengths and the others their own."""
    term = resolve(term)
    if type(term) is Atom:
        return lengths.get(term, term.size)
    if type(term) is Prod:
        total = 1
        for factor in term.factors:
            total *= length(factor, lengths)
        return total
    whole = 0
    for segment in term.segments:  # type: ignore[union-attr]
        whole += length(segment, lengths)
    return whole


def kept(term: Term, indices: Mapping[Atom, torch.Tensor]) -> torch.Tensor:
    """Return the positions of an axis that stay when the atoms in `indices` keep only those indices, in that order.

    >>> heads, dims = Atom(2), Atom(3)
    >>> kept(product([heads, dims]), {heads: torch.tensor([1]), dims: torch.tensor([0, 2])}).tolist()
    [3, 5]
    """
    term = resolve(term)
    if type(term) is Atom:
        chosen = indices.get(term)
        return torch.arange(term.size, device='cpu') if chosen is None else chosen
    if not any(atom in indices for atom in atoms(term)):
        return torch.arange(term.size, device='cpu')
    if type(term) is Prod:
        positions = torch.zeros(1, dtype=torch.long, device='cpu')
        for factor in term.factors:
            positions = (positions[:, None] * factor.size + kept(factor, indices)[None, :]).flatten()
        return positions
    parts, offset = [], 0
    for segment in term.segments:  # type: ignore[union-attr]
        parts.append(kept(segment, indices) + offset)
        offset += segment.size
    return torch.cat(parts)


def owners(term: Term, atom: Atom) -> torch.Tensor:
    """Return, for every position of an axis, which index of `atom` it belongs to; -1 where to none.

    >>> heads, dims = Atom(2), Atom(3)
    >>> owners(product([heads, dims]), heads).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    term = resolve(term)
    if term is atom:
        return torch.arange(term.size, device='cpu')
    if type(term) is Atom:
        return torch.full((term.size,), -1, device='cpu')
    if type(term) is Prod:
        owner = torch.full((1,), -1, device='cpu')
        for factor in term.factors:
            inner = owners(factor, atom)
            owner = torch.where(owner[:, None] >= 0, owner[:, None], inner[None, :]).flatten()
        return owner
    parts = [owners(segment, atom) for segment in term.segments]  # type: ignore[union-attr]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device='cpu')


def sizes(terms: Iterable[Term]) -> tuple[int, ...]:
    """Return the sizes of some axes: the shape of a tensor."""
    return tuple(term.size for term in terms)
