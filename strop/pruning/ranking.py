"""From scores to the indices that stay: every unit by its own ratio, or all units in one ranking."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from strop.errors import ConfigError, listed, near
from strop.graph.terms import Atom, Cat, Prod, Term, atoms, length, resolve
from strop.pruning.importance import normalised
from strop.pruning.placements import gives, owner

if TYPE_CHECKING:
    from strop.graph import ChannelGraph, ChannelUnit

Limit = Union[float, tuple[float, float]]

_UNROUNDED = ('heads', 'groups')
#: How much more than the ratio may go of whole heads or groups before the channels inside them are cut too.
_CLOSE = 0.05
_ATTENTION = {'heads': ('head_dim',), 'head_dim': ('heads',), 'both': (), 'none': ('heads', 'head_dim')}


def check_ratio(ratio: Any, name: str = 'ratio') -> float:
    """Return a ratio as a number.

    Raises:
        ConfigError: If it is not between 0 and 1, both excluded.

    >>> check_ratio(0.5)
    0.5
    """
    number = isinstance(ratio, (int, float, np.floating)) and not isinstance(ratio, bool)
    if not number or not 0 < ratio < 1:
        raise ConfigError(
            f'`{name}` is the share of channels to remove, more than 0 and less than 1, but got {ratio!r}. '
            '0.3 removes 30 % of them.'
        )
    return float(ratio)


def matches(pattern: str, unit: ChannelUnit, model: nn.Module) -> bool:
    """Whether a pattern names a unit: by its own name, or by a layer or parameter that gives these channels out.

    Args:
        pattern: A shell pattern over dotted names; a module's name stands for everything inside it too.
        unit: The unit.
        model: The model that it was found in.
    """
    if fnmatchcase(unit.name, pattern):
        return True
    return any(_named(pattern, p.tensor) and gives(model, p) for p in unit.placements)


def matching(pattern: str, graph: ChannelGraph, model: nn.Module) -> list[str]:
    """Return the names of the units that a pattern names; see `matches`.

    Raises:
        ConfigError: If it names nothing in this model.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f'A pattern is a text such as "layer1.*", but got {pattern!r}.')
    found = [unit.name for unit in graph.units.values() if matches(pattern, unit, model)]
    if not found and not _frozen(pattern, graph) and not any(_named(pattern, f'{path}.') for path, _ in model.named_modules()):
        known = [*graph.units, *(path for path, _ in model.named_modules() if path)]
        raise ConfigError(
            f'The pattern {pattern!r} names no channel unit, layer or parameter of the model.{near(pattern, known)} '
            f'Units are {listed(graph.units)}.'
        )
    return found


@dataclass(frozen=True)
class Selection:
    r"""Which units may be pruned, and how far.

    Args:
        scope: `'local'`: each unit loses the same share; `'global'`: one ranking over all units.
        round_to: Lengths are multiples of this where the unit is long enough. Heads and groups are not rounded.
        ignored: Patterns of units, layers or parameters that keep all the channels that they give out; see `matches`.
        limits: pattern -> the ratio of those units, or (least, most); the last pattern that names a unit counts.
        attention: Where attention is cut. `'heads'`: whole heads; `'head_dim'`: inside every head; `'both'`: whole
            heads first, and what the ratio still asks for inside them, so that heads × head_dim shrinks by the
            ratio; `'none'`: nowhere. (Groups of a convolution and the channels of each group share the ratio in
            the same way, the channels first.)
        max_ratio: No unit loses more than this share, unless `limits` says so.
        normalise: How scores of different units are made comparable; the importance's own way if None.

    Raises:
        ConfigError: If a value is not what it can be.
    """

    scope: str = 'local'
    round_to: int = 1
    ignored: tuple[str, ...] = ()
    limits: Mapping[str, Limit] = field(default_factory=dict)
    attention: str = 'both'
    max_ratio: float = 0.95
    normalise: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ('scope', self.scope, ('local', 'global')),
            ('attention', self.attention, tuple(_ATTENTION)),
        ):
            if value not in known:
                raise ConfigError(f'`{name}` must be one of {listed(known)}, but got {value!r}.{near(value, known)}')
        if not isinstance(self.round_to, int) or isinstance(self.round_to, bool) or self.round_to < 1:
            raise ConfigError(f'`round_to` must be a whole number of channels, 1 or more, but got {self.round_to!r}.')
        if self.normalise not in (None, 'none', 'mean', 'max'):
            raise ConfigError(f"`normalise` must be 'none', 'mean' or 'max', but got {self.normalise!r}.")
        check_ratio(self.max_ratio, 'max_ratio')
        object.__setattr__(self, 'ignored', _patterns(self.ignored))
        if not isinstance(self.limits, Mapping):
            raise ConfigError(f"`limits` must map patterns to ratios, as in {{'layer1.*': 0.2}}, but got {self.limits!r}.")
        object.__setattr__(self, 'limits', {pattern: _limit(pattern, limit) for pattern, limit in self.limits.items()})

    def part(self, progress: float) -> Selection:
        """Return the same for a part of the way: units with a ratio of their own, or a least one, lose that part of it.

        >>> Selection(limits={'layer4.*': 0.6, 'stem': (0.2, 0.4)}).part(0.5).limits
        {'layer4.*': (0.3, 0.3), 'stem': (0.1, 0.4)}
        """
        eased = {
            pattern: (least * progress, most * progress if least == most else most)
            for pattern, (least, most) in cast(Mapping[str, tuple[float, float]], self.limits).items()
        }
        return replace(self, limits=eased)


class Ranking:
    """The units of one model in the order in which their indices go.

    Args:
        graph: The units.
        model: The model.
        scores: Scores of the units that may be pruned; see `strop.pruning.score`.
        selection: What may be pruned, and how far.
        sizes: Sizes that ratios refer to, where the model has been pruned before; its present ones by default.
        costs: What one index of each unit costs; a ranking of all units then goes by score / cost.

    Raises:
        ConfigError: If a pattern names nothing, or only what cannot be pruned (with the reason), or nothing is left.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        model: nn.Module,
        scores: Mapping[str, Tensor],
        selection: Selection | None = None,
        sizes: Mapping[str, int] | None = None,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        self.graph = graph
        self.selection = selection = selection or Selection()
        self.sizes = {name: max((sizes or {}).get(name, unit.size), unit.size) for name, unit in graph.units.items()}
        whole = set(_ATTENTION[selection.attention])
        kept = {name for name, unit in graph.units.items() if unit.role in whole}
        self.unjudged = tuple(name for name in graph.units if name not in scores and name not in kept)
        kept.update(self.unjudged)
        for pattern in selection.ignored:
            kept.update(matching(pattern, graph, model))
        self.limits: dict[str, tuple[float, float]] = {}
        for pattern, limit in selection.limits.items():
            names = matching(pattern, graph, model)
            if not names:
                raise ConfigError(f'`limits` names {pattern!r}, whose channels cannot be pruned: {_why(pattern, graph)}')
            self.limits.update((name, limit) for name in names)  # type: ignore[misc]
        self.prunable = tuple(name for name, unit in graph.units.items() if name not in kept and unit.minimum < unit.size)
        if not self.prunable:
            raise ConfigError(_nothing(graph, kept))
        how = selection.normalise or 'none'
        prices = costs or {}
        self.scores = {n: normalised(scores[n].detach().cpu().double(), how) / prices.get(n, 1.0) for n in self.prunable}
        self._orders = {name: np.argsort(score.numpy(), kind='stable') for name, score in self.scores.items()}
        self._outer = _factors(graph, model, self.prunable)
        self._names = {unit.atom: name for name, unit in graph.units.items()} if self._outer else {}
        factors = {atom for terms in self._outer.values() for term in terms for atom in atoms(term)}
        #: Units that leave it to another factor of their axis to come closer to the ratio.
        self._coarse = {name for name in self.prunable if graph.units[name].placements and graph.units[name].atom in factors}
        self._coarse -= set(self._outer)
        self._order = sorted(self.prunable, key=lambda name: _precedence(graph.units[name], model))
        self._pool = self._pooled() if selection.scope == 'global' else None

    def lengths(self, ratio: float) -> dict[str, int]:
        """Return the lengths of all units when this share of the channels is removed, every tie between them kept.

        Args:
            ratio: From 0 (as little as the limits allow) to 1 (as much).
        """
        whole: set[str] = set()
        proposed = self._proposed(ratio)
        allowed = set(self.prunable)
        while True:
            fitted = self._fitted({name: self.graph.units[name].size if name in whole else n for name, n in proposed.items()})
            moved = {name for name, unit in self.graph.units.items() if name not in allowed and fitted[name] != unit.size}
            # A unit that must stay whole keeps whole what it is tied to.
            stay = (moved | {tie for name in moved for tie in self.graph.units[name].ties}) - whole
            if not stay:
                return fitted
            whole |= stay

    def keep(self, lengths: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the indices with the highest scores, in their old order, of every unit that gets shorter."""
        result = {}
        for name, number in lengths.items():
            unit = self.graph.units[name]
            if number < unit.size:
                # A unit without scores that a tie makes shorter loses its last indices.
                order = self._orders.get(name, np.arange(unit.size)[::-1])
                result[name] = torch.from_numpy(np.sort(order[unit.size - number :]).astype(np.int64))
        return result

    # -- internals -------------------------------------------------------------------------

    def _bounds(self, name: str) -> tuple[int, int]:
        """Return the least and the greatest number of indices that stay."""
        unit, size = self.graph.units[name], self.sizes[name]
        least, most = self.limits.get(name, (0.0, self.selection.max_ratio))
        # A single ratio is met as any other; the most of a range is never exceeded.
        kept = _floor(size * (1 - most)) if least == most else math.ceil(size * (1 - most) - 1e-9)
        low = max(unit.minimum, min(unit.size, kept))
        return low, max(low, min(unit.size, _floor(size * (1 - least))))

    def _proposed(self, ratio: float) -> dict[str, int]:
        lengths = {name: unit.size for name, unit in self.graph.units.items()}
        if self._pool is not None:
            lengths.update(self._taken(ratio))
        for name in self._order:
            low, high = self._bounds(name)
            outer = self._outer.get(name)
            if self._pool is None or outer:
                share = (
                    1 - ratio if name not in self.limits else 1 - min(max(ratio, self.limits[name][0]), self.limits[name][1])
                )
                if outer:
                    share = min(1.0, share / max(self._left(name, term, lengths) for term in outer))
                lengths[name] = min(max(self._share(name, share), low), high)
            lengths[name] = self._rounded(name, lengths[name], low)
        return lengths

    def _share(self, name: str, share: float) -> int:
        """Return the length that leaves a share of a unit."""
        size = self.sizes[name]
        number = _floor(size * share)
        if name in self._coarse:
            # Half of three heads is one and a half: two stay, and the channels inside them make up for it.
            return number if number >= size * (share - _CLOSE) else number + 1
        if self.graph.units[name].role == 'heads':
            return math.floor(size * share + 0.5)
        return number

    def _left(self, name: str, term: Term, lengths: Mapping[str, int]) -> float:
        """Return which part of an axis stays if the unit itself, a factor of it, stays whole."""
        atom = self.graph.units[name].atom
        parts = []
        for chosen in (lengths, self.sizes):
            values = {other: chosen[self._names[other]] for other in atoms(term) if other in self._names}
            values[atom] = self.sizes[name]
            parts.append(length(term, values) - length(term, {**values, atom: 0}))
        return parts[0] / parts[1]

    def _fitted(self, wanted: Mapping[str, int]) -> dict[str, int]:
        fitted, step = self.graph.fit(wanted), self.selection.round_to
        if step == 1:
            return fitted
        # The lengths asked for are multiples already; ties may have moved some of them off.
        if self._uneven(fitted) > self._uneven(wanted):
            other = self.graph.fit(wanted, step)
            if self._uneven(other) < self._uneven(fitted):
                return other
        return fitted

    def _uneven(self, lengths: Mapping[str, int]) -> int:
        step = self.selection.round_to
        return sum(n % step != 0 for name, n in lengths.items() if self.graph.units[name].role not in _UNROUNDED)

    def _rounded(self, name: str, length: int, low: int) -> int:
        unit, step = self.graph.units[name], self.selection.round_to
        if step == 1 or unit.role in _UNROUNDED or length == unit.size:
            return length
        nearest = (length + step // 2) // step * step
        while nearest < max(low, 1):
            nearest += step
        return min(nearest, unit.size)

    def _pooled(self) -> tuple[np.ndarray, int]:
        """Return the unit (its number) of each index that may go, the least important first, and how many must."""
        values, owners, forced = [], [], 0
        for number, name in enumerate(self.prunable):
            if self._outer.get(name):
                continue
            unit = self.graph.units[name]
            low, high = self._bounds(name)
            forced += unit.size - high
            rising = self.scores[name].numpy()[self._orders[name]][unit.size - high : unit.size - low]
            values.append(rising)
            owners.append(np.full(len(rising), number))
        if not values:
            return np.zeros(0, int), 0
        order = np.argsort(np.concatenate(values), kind='stable')
        return np.concatenate(owners)[order], forced

    def _taken(self, ratio: float) -> dict[str, int]:
        owners, forced = self._pool  # type: ignore[misc]
        pool = [name for name in self.prunable if not self._outer.get(name)]
        total = sum(self.sizes[name] for name in pool)
        gone = sum(self.sizes[name] - self.graph.units[name].size for name in pool)
        count = min(max(math.ceil(total * ratio - 1e-9) - gone - forced, 0), len(owners))
        removed = np.bincount(owners[:count], minlength=len(self.prunable))
        return {name: self._bounds(name)[1] - int(removed[n]) for n, name in enumerate(self.prunable) if name in set(pool)}


# -- internals ----------------------------------------------------------------------------------------------


def _floor(value: float) -> int:
    # 10 * (1 - 0.9) is a little below 1.
    return math.floor(value + 1e-9)


def _patterns(given: Any) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f'`ignored` must be patterns of names, such as ["stem.*", "layer4"], but got {given!r}.')
    return patterns


def _limit(pattern: str, limit: Any) -> tuple[float, float]:
    pair = tuple(limit) if isinstance(limit, (tuple, list)) else (limit, limit)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in pair)
    if len(pair) != 2 or not numbers or not 0 <= pair[0] <= pair[1] < 1:
        raise ConfigError(
            f'The limit of {pattern!r} must be the share of channels to remove (0 or more, less than 1) or a pair '
            f'(least, most) of such shares, but got {limit!r}.'
        )
    return float(pair[0]), float(pair[1])


def _named(pattern: str, name: str) -> bool:
    """Whether a pattern names a tensor or one of the modules that it is in."""
    parts = name.split('.')
    return any(fnmatchcase('.'.join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _frozen(pattern: str, graph: ChannelGraph) -> list[Any]:
    return [axis for axis in graph.frozen if axis.tensor and _named(pattern, axis.tensor)]


def _why(pattern: str, graph: ChannelGraph) -> str:
    axes = _frozen(pattern, graph)
    if not axes:
        return 'no unit passes there.'
    return '; '.join(f'axis {axis.axis} of {axis.tensor} ({axis.reason})' for axis in axes[:3]) + '.'


def _nothing(graph: ChannelGraph, kept: set[str]) -> str:
    if graph.units:
        long = [name for name in graph.units if name not in kept]
        if long:
            return f'Nothing is left to prune: {listed(long)} are as short as they can be.'
        return (
            f'Nothing is left to prune: all {len(graph.units)} units are ignored, without a score, or not what '
            '`attention` asks for.'
        )
    reasons = [f'{axis.tensor}[{axis.axis}]: {axis.reason}' for axis in list(graph.frozen)[:4]]
    return f'The model has no channels that can be pruned ({"; ".join(reasons) or "no parameter was used"}).'


def _precedence(unit: ChannelUnit, model: nn.Module) -> int:
    """Return which of two units whose product is one axis is cut first; the other makes up for what is left.

    Whole heads before the channels inside a head, so that no head changes. Groups of a norm before their channels, so that
    no group's statistics change; groups of a convolution after theirs, which takes twice as many weights away.
    """
    if unit.role == 'heads':
        return 0
    if unit.role != 'groups':
        return 1
    for placement in unit.placements:
        module, last = owner(model, placement.tensor)
        if isinstance(module, _ConvNd) and last == 'weight' and module.groups > 1:
            return 2
    return 0


def _factors(graph: ChannelGraph, model: nn.Module, names: Iterable[str]) -> dict[str, list[Term]]:
    """Return unit -> the axes that are products of it with units that are cut before it.

    Cutting heads and head dims, or groups and the channels of each group, by the ratio would cut their product twice.
    """
    units = [unit for unit in graph.units.values() if unit.placements]
    movable = {graph.units[name].atom for name in names if graph.units[name].placements}
    rank = {unit.atom: (_precedence(unit, model), number) for number, unit in enumerate(units)}
    result: dict[str, dict[frozenset[Atom], Term]] = {}
    met: dict[int, list[tuple[Atom, Atom]]] = {}
    for unit in units:
        for placement in unit.placements:
            if id(placement.term) not in met:
                met[id(placement.term)] = list(_products(placement.term, rank))
            before = frozenset(
                other
                for pair in met[id(placement.term)]
                for own, other in (pair, pair[::-1])
                if own is unit.atom and rank[other] < rank[own]
            )
            if before:
                result.setdefault(unit.name, {}).setdefault(before, placement.term)
    # A product with units that all stay whole anyway is none to share.
    return {name: list(found.values()) for name, found in result.items() if any(before & movable for before in found)}


def _products(term: Term, known: Mapping[Atom, Any]) -> Iterator[tuple[Atom, Atom]]:
    """Yield the pairs of known atoms that are multiplied with each other in an axis."""
    term = resolve(term)
    if isinstance(term, Prod):
        parts = [[atom for atom in atoms(factor) if atom in known] for factor in term.factors]
        for place, part in enumerate(parts):
            for other in parts[:place]:
                yield from itertools.product(other, part)
        for factor in term.factors:
            yield from _products(factor, known)
    elif isinstance(term, Cat):
        for segment in term.segments:
            yield from _products(segment, known)
