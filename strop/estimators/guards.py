"""Costs that depend on choices: sums of terms under guards, for many subnets at once, and their extremes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from strop.errors import EstimateError
from strop.mutables import Choice, Guard, KOf, OneOf, Space, Subnet, Weights, chosen

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Slot:
    """The guard that the pick at `position` (in order) of the decision `key` is `index`."""

    key: str
    position: int
    index: int


AnyGuard = Union[Guard, Slot]
Conjunction = frozenset[AnyGuard]  # all guards hold; the empty one always does
Disjunction = frozenset[Conjunction]  # at least one conjunction holds

ALWAYS: Conjunction = frozenset()


class Answers:
    """Many subnets of one space as arrays, with the guards that hold in each.

    Args:
        space: The space.
        subnets: Its subnets.

    >>> space = Space({'op': OneOf(('a', 'b'))})
    >>> answers = Answers(space, [space.subnet({'op': 'a'}), space.subnet({'op': 'b'})])
    >>> answers.holds(Guard.on('op', [1])).tolist()
    [False, True]
    """

    def __init__(self, space: Space, subnets: Sequence[Subnet]) -> None:
        self.space = space
        self._choices = [subnet.choices for subnet in subnets]
        self._columns: dict[str, list[Choice]] = {}
        self._picks: dict[tuple[str, int], Array] = {}
        self._members: dict[str, Array] = {}
        self._guards: dict[AnyGuard, Array] = {}
        self._conjunctions: dict[Conjunction, Array] = {ALWAYS: np.ones(len(subnets), dtype=bool)}

    def __len__(self) -> int:
        return len(self._choices)

    def _column(self, key: str) -> list[Choice]:
        if key not in self._columns:
            if key in self.space.conditions:
                self._columns[key] = [choices.get(key, ()) for choices in self._choices]
            else:
                self._columns[key] = list(map(itemgetter(key), self._choices))
        return self._columns[key]

    def weighted(self, key: str) -> bool:
        """Tell whether some subnet mixes the alternatives of `key`."""
        return Weights in set(map(type, self._column(key)))

    def picks(self, key: str, position: int = 0) -> Array:
        """Return the index at `position` of each subnet's choice at `key`; -1 where there is none."""
        if (key, position) not in self._picks:
            column = [chosen(choice) for choice in self._column(key)] if self.weighted(key) else self._column(key)
            if position == 0 and isinstance(self.space[key], OneOf) and () not in column:
                picked: Iterable[int] = map(itemgetter(0), column)  # type: ignore[arg-type]
            else:
                picked = (choice[position] if len(choice) > position else -1 for choice in column)  # type: ignore[misc]
            self._picks[key, position] = np.fromiter(picked, dtype=np.int64, count=len(column))
        return self._picks[key, position]

    def members(self, key: str) -> Array:
        """Return, shape (subnets, alternatives), which alternatives of `key` each subnet takes."""
        if key not in self._members:
            domain, column = self.space[key], self._column(key)
            if isinstance(domain, OneOf) and not self.weighted(key):
                taken = self.picks(key)[:, None] == np.arange(len(domain))
            else:
                taken = np.zeros((len(self), len(domain)), dtype=bool)
                for row, choice in enumerate(column):
                    taken[row, list(chosen(choice))] = True
            self._members[key] = taken
        return self._members[key]

    def holds(self, guard: AnyGuard) -> Array:
        """Return, shape (subnets,), where a guard holds."""
        if guard not in self._guards:
            if isinstance(guard, Slot):
                held = self.picks(guard.key, guard.position) == guard.index
            elif len(guard.keys) == 1:
                held = self.members(guard.keys[0])[:, [index for (index,) in guard.allowed]].any(axis=1)
            else:
                held = np.zeros(len(self), dtype=bool)
                for combination in guard.allowed:
                    held |= np.logical_and.reduce(
                        [self.members(key)[:, index] for key, index in zip(guard.keys, combination, strict=True)]
                    )
            self._guards[guard] = held
        return self._guards[guard]

    def all_hold(self, guards: Conjunction) -> Array:
        """Return, shape (subnets,), where all `guards` hold."""
        if guards not in self._conjunctions:
            self._conjunctions[guards] = np.logical_and.reduce([self.holds(guard) for guard in guards])
        return self._conjunctions[guards]

    def any_hold(self, conjunctions: Disjunction) -> Array:
        """Return, shape (subnets,), where at least one conjunction holds."""
        return np.logical_or.reduce([self.all_hold(guards) for guards in conjunctions])


class GuardedSum:
    r"""The sum :math:`\sum_t [\mathrm{guard}_t] \cdot \mathrm{cost}_t` as a function of a subnet.

    Args:
        space: The space of the subnets.
        terms: Condition -> cost, an integer.

    >>> space = Space({'op': OneOf(('a', 'b'))})
    >>> cost = GuardedSum(space, {frozenset({ALWAYS}): 5, frozenset({frozenset({Guard.on('op', [1])})}): 2})
    >>> cost(Answers(space, [space.subnet({'op': 'a'}), space.subnet({'op': 'b'})])).tolist()
    [5, 7]
    >>> cost.extreme(largest=True)
    (7, Subnet(op='b'))
    """

    def __init__(self, space: Space, terms: Mapping[Disjunction, int]) -> None:
        self.space = space
        self.terms = {condition: cost for condition, cost in terms.items() if cost}
        # Most terms depend on one alternative of one decision: those are looked up instead of multiplied.
        self._tables: dict[str, Array] = {}
        self._others: dict[Disjunction, int] = {}
        for condition, cost in self.terms.items():
            single = _single(condition)
            if single is None:
                self._others[condition] = cost
            else:
                key, index = single
                # One entry more, at -1, for subnets in which the decision is inactive.
                self._tables.setdefault(key, np.zeros(len(space[key]) + 1, dtype=np.int64))[index] += cost

    def __call__(self, answers: Answers) -> Array:
        """Return the sum for each subnet, as 64-bit integers."""
        total = np.zeros(len(answers), dtype=np.int64)
        for key, table in self._tables.items():
            if isinstance(self.space[key], OneOf) and not answers.weighted(key):
                total += table[answers.picks(key)]
            else:
                total += answers.members(key).astype(np.int64) @ table[:-1]
        for condition, cost in self._others.items():
            total += cost * answers.any_hold(condition)
        return total

    def extreme(self, largest: bool, limit: int = 500_000) -> tuple[int, Subnet]:
        """Return the greatest or smallest sum and a subnet that has it, exactly.

        Decisions that no term or condition ties together are solved apart, so the work is that of the most
        entangled group: for nested choices, the number of alternatives along one path.

        Args:
            limit: Most partial answers to look at.

        Raises:
            EstimateError: If the limit is reached, or a decision has more than 65,536 choices that matter.
        """
        search = _Extreme(self.space, self.terms, largest, limit)
        value, choices = search.solve(list(self.space.order), {}, list(self.terms))
        return value, self.space.from_picks(choices)


class _Extreme:
    """Branch on decisions in their order and split the rest into independent groups."""

    def __init__(self, space: Space, terms: Mapping[Disjunction, int], largest: bool, limit: int) -> None:
        self.space = space
        self.costs = terms
        self.sign = 1 if largest else -1
        self.limit = limit
        self.visited = 0
        self.needed = {key for condition in terms for key in _keys(condition)} | set(space.parents)

    def solve(self, keys: list[str], fixed: dict[str, Choice], terms: list[Disjunction]) -> tuple[int, dict[str, Choice]]:
        total = sum(self.costs[term] for term in terms if not self._open(term, keys) and _holds(term, fixed))
        answer: dict[str, Choice] = {}
        pending = [term for term in terms if self._open(term, keys)]
        for group in self._groups(keys, pending):
            members = set(group)
            value, choices = self._branch(group, fixed, [term for term in pending if members & _keys(term)])
            total += value
            answer.update(choices)
        return total, answer

    def _branch(self, group: list[str], fixed: dict[str, Choice], terms: list[Disjunction]) -> tuple[int, dict[str, Choice]]:
        key, rest = group[0], group[1:]
        best: tuple[int, dict[str, Choice]] | None = None
        for picks in self._options(key, fixed):
            self.visited += 1
            if self.visited > self.limit:
                raise EstimateError(
                    f'The extreme of this space needs more than {self.limit} partial answers: its decisions are tied too '
                    f'closely (the group of {key!r} has {len(group)}).'
                )
            now = fixed if picks is None else {**fixed, key: picks}
            value, choices = self.solve(rest, now, terms)
            if best is None or self.sign * value > self.sign * best[0]:
                best = value, choices if picks is None else {key: picks, **choices}
        assert best is not None, 'every domain has a choice'
        return best

    def _options(self, key: str, fixed: dict[str, Choice]) -> Iterable[tuple[int, ...] | None]:
        if not self.space.is_active(key, fixed):
            return [None]
        domain = self.space[key]
        if key not in self.needed:
            return [next(domain.grid())]
        if domain.size > 65_536:
            raise EstimateError(
                f'{key!r} has {domain.size} choices; the extreme is searched over at most 65,536 of one decision.'
            )
        return domain.grid()

    @staticmethod
    def _open(term: Disjunction, keys: list[str]) -> bool:
        return not _keys(term).isdisjoint(keys)

    def _groups(self, keys: list[str], terms: list[Disjunction]) -> list[list[str]]:
        root = {key: key for key in keys}

        def find(key: str) -> str:
            while root[key] != key:
                root[key] = root[root[key]]
                key = root[key]
            return key

        ties: list[Iterable[str]] = [_keys(term) for term in terms]
        ties += [
            {key, *(name for rule in self.space.conditions.get(key, ()) for guard in rule for name in guard.keys)}
            for key in keys
        ]
        for tie in ties:
            inside = [key for key in tie if key in root]
            for key in inside[1:]:
                root[find(key)] = find(inside[0])
        groups: dict[str, list[str]] = {}
        for key in keys:
            groups.setdefault(find(key), []).append(key)
        return list(groups.values())


@lru_cache(maxsize=100_000)
def _keys(condition: Disjunction) -> frozenset[str]:
    return frozenset(
        key for guards in condition for guard in guards for key in ((guard.key,) if isinstance(guard, Slot) else guard.keys)
    )


def _single(condition: Disjunction) -> tuple[str, int] | None:
    """Return the one alternative of one decision that a condition asks for, if it is as simple as that."""
    if len(condition) != 1:
        return None
    (guards,) = condition
    if len(guards) != 1:
        return None
    (guard,) = guards
    if not isinstance(guard, Guard) or len(guard.keys) != 1 or len(guard.allowed) != 1:
        return None
    ((index,),) = guard.allowed
    return guard.keys[0], index


def _holds(condition: Disjunction, choices: Mapping[str, Choice]) -> bool:
    return any(all(_guard_holds(guard, choices) for guard in guards) for guards in condition)


def _guard_holds(guard: AnyGuard, choices: Mapping[str, Choice]) -> bool:
    if isinstance(guard, Guard):
        return guard.holds(choices)
    picks = chosen(choices.get(guard.key, ()))
    return len(picks) > guard.position and picks[guard.position] == guard.index


def slots_of(domain: Any) -> int | None:
    """Return how many alternatives a choice always takes, or None if that varies.

    >>> slots_of(KOf(('a', 'b', 'c'), k=2)), slots_of(OneOf(('a', 'b')))
    (2, 1)
    """
    if isinstance(domain, KOf):
        return domain.k
    return 1 if isinstance(domain, OneOf) else None
