"""A search space: key -> domain, with the conditions under which each decision matters."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from strop.errors import SpaceError, SubnetError, UnknownKeyError, listed, near
from strop.mutables.domain import Choice, Domain, Picks, Weights, domain_from_dict
from strop.mutables.subnet import Subnet


def chosen(choice: Choice) -> Picks:
    """Return the indices that a choice takes: the picked ones, or those of non-zero weight.

    >>> chosen(Weights([0.0, 2.0]))
    (1,)
    """
    if isinstance(choice, Weights):
        return tuple(index for index, weight in enumerate(choice) if weight != 0.0)
    return choice


@dataclass(frozen=True)
class Guard:
    """What must have been chosen elsewhere: one of the `allowed` combinations of indices at `keys`.

    >>> Guard.on('op', [1]).holds({'op': (1,)})
    True
    """

    keys: tuple[str, ...]
    allowed: frozenset[Picks]

    @classmethod
    def on(cls, key: str, indices: Iterable[int]) -> Guard:
        """Return the guard that `key` takes one of `indices`."""
        return cls((key,), frozenset((index,) for index in indices))

    def holds(self, choices: Mapping[str, Choice]) -> bool:
        """Tell whether `choices` (which lacks inactive keys) meets the guard."""
        if any(key not in choices for key in self.keys):
            return False
        if len(self.keys) == 1:
            return any((index,) in self.allowed for index in chosen(choices[self.keys[0]]))
        return any(
            combination in self.allowed for combination in itertools.product(*(chosen(choices[key]) for key in self.keys))
        )


Condition = tuple[Guard, ...]


class Space(Mapping[str, Domain]):
    """A mapping key -> `Domain`, validated; the rules of which decisions are active; draws and counts.

    A decision with conditions is *active* when all guards of at least one of its conditions hold. Subnets
    leave inactive decisions out, so two answers that give the same model are equal.

    Args:
        domains: The domain of each key.
        conditions: For a key, the alternatives (each a tuple of guards) that activate it; absent means always.
        paths: Other names of a key (the module paths where it occurs), accepted when files are read.

    Raises:
        SpaceError: On a guard over an unknown key or index, or a cycle of conditions.

    >>> from strop.mutables.domain import OneOf
    >>> space = Space({'op': OneOf(('skip', 'conv')), 'kernel': OneOf((3, 5))}, {'kernel': ((Guard.on('op', [1]),),)})
    >>> space.count()
    3
    >>> dict(space.subnet({'op': 'skip'}))
    {'op': 'skip'}
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        conditions: Mapping[str, tuple[Condition, ...]] | None = None,
        paths: Mapping[str, str] | None = None,
    ) -> None:
        self._domains = dict(domains)
        for key, domain in self._domains.items():
            if not isinstance(key, str) or not key:
                raise SpaceError(f'The keys of a space must be non-empty strings, but got {key!r}.')
            if not isinstance(domain, Domain):
                raise SpaceError(f'{key!r} needs a Domain, but got {domain!r} of type {type(domain).__name__}.')
        self.conditions = {key: tuple(rules) for key, rules in (conditions or {}).items() if rules and () not in rules}
        self.paths = dict(paths or {})
        for key, rules in self.conditions.items():
            self._check_conditions(key, rules)
        self.order = self._topological_order()

    def __getitem__(self, key: str) -> Domain:
        try:
            return self._domains[key]
        except KeyError:
            raise UnknownKeyError(
                f'{key!r} is not a decision of this space.{near(key, self._domains)} It has {listed(self._domains)}.'
            ) from None

    def __contains__(self, key: object) -> bool:
        return key in self._domains

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    def __repr__(self) -> str:
        try:
            count = f'{self.count():,}' if self.count() < 10**6 else f'about 10^{len(str(self.count())) - 1}'
        except SpaceError:
            count = 'uncounted'
        return f'Space({len(self)} decisions, {count} subnets)'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.digest == other.digest  # which tells True from 1

    def __hash__(self) -> int:
        return hash(self.digest)

    # -- which decisions matter ------------------------------------------------------------

    def is_active(self, key: str, choices: Mapping[str, Choice]) -> bool:
        """Tell whether `key` matters, given the choices of the decisions that it depends on."""
        rules = self.conditions.get(key)
        return rules is None or any(all(guard.holds(choices) for guard in rule) for rule in rules)

    @cached_property
    def parents(self) -> frozenset[str]:
        """The keys on which other decisions depend."""
        return frozenset(key for rules in self.conditions.values() for rule in rules for guard in rule for key in guard.keys)

    # -- subnets ---------------------------------------------------------------------------

    def subnet(self, choices: Mapping[str, Any]) -> Subnet:
        """Validate an answer and return it in canonical form.

        Args:
            choices: key -> choice in any form that `Domain.parse` reads. Choices of inactive decisions
                are checked and then left out.

        Raises:
            UnknownKeyError: If a key is not in the space; the message names the near miss.
            SubnetError: If an active decision is missing or a choice does not fit.
        """
        if isinstance(choices, Subnet) and choices.space is self:
            return choices
        given = choices.choices if isinstance(choices, Subnet) else choices
        if not isinstance(given, Mapping):
            raise SubnetError(f'A subnet is a mapping of keys to choices, but got {type(choices).__name__}: {choices!r}.')
        parsed: dict[str, Choice] = {}
        for name, choice in given.items():
            key = self.key_of(name)
            if key in parsed:
                raise SubnetError(f'The decision {key!r} is answered twice, the second time as {name!r}.')
            try:
                parsed[key] = self._read(key, choice, choices.space[key] if isinstance(choices, Subnet) else None)
            except SubnetError as error:
                raise SubnetError(f'{key!r}: {error}') from None
        return self._canonical(parsed)

    def from_picks(self, picks: Mapping[str, Choice]) -> Subnet:
        """Return the subnet of choices that are already indices or `Weights`, without parsing them.

        For strategies, whose choices come from the domains themselves; use `subnet` for anything given from outside.
        """
        return self._canonical(picks)

    def key_of(self, name: str) -> str:
        """Return the key that `name` (a key, or a path where it occurs) stands for."""
        if name in self._domains:
            return name
        if name in self.paths:
            return self.paths[name]
        raise UnknownKeyError(
            f'{name!r} is not a decision of this space.{near(name, self._domains)} It has {listed(self._domains)}.'
        )

    def first(self) -> Subnet:
        """Return the subnet of every decision's first choice."""
        return self._build(lambda key: self[key].first())

    def extreme(self, largest: bool = True) -> Subnet:
        """Return the subnet of greatest (or smallest) cost by the domains' own costs and order."""
        return self._build(lambda key: self[key].extreme(largest))

    def sample(self, rng: np.random.Generator) -> Subnet:
        """Draw every active decision uniformly."""
        return self._build(lambda key: self[key].sample(rng))

    def mutate(self, subnet: Subnet, rng: np.random.Generator, prob: float = 0.1, at_least_one: bool = False) -> Subnet:
        """Redraw each active decision with probability `prob`; newly active ones are drawn fresh.

        Args:
            at_least_one: Change one decision to another choice where chance changed none.
        """
        result = self._build(
            lambda key: self[key].sample(rng) if key not in subnet.choices or rng.random() < prob else subnet.choices[key]
        )
        if at_least_one and result == subnet:
            free = [key for key in subnet.choices if self[key].size > 1]
            if free:
                key = free[int(rng.integers(len(free)))]
                return self.replace(subnet, key, self[key].mutate(chosen(subnet.choices[key]), rng), rng)
        return result

    def crossover(self, first: Subnet, second: Subnet, rng: np.random.Generator, prob: float = 0.5) -> Subnet:
        """Take each decision from `second` with probability `prob`, otherwise from `first`."""

        def pick(key: str) -> Choice:
            sources = [parent.choices[key] for parent in (first, second) if key in parent.choices]
            if not sources:
                return self[key].sample(rng)
            return sources[-1] if rng.random() < prob else sources[0]

        return self._build(pick)

    def neighbours(self, subnet: Subnet, rng: np.random.Generator) -> Iterator[Subnet]:
        """Yield the subnets that differ from `subnet` in one decision (newly active ones are drawn)."""
        for key in subnet.choices:
            for picks in self[key].neighbours(chosen(subnet.choices[key])):
                yield self.replace(subnet, key, picks, rng)

    def replace(self, subnet: Subnet, key: str, choice: Choice, rng: np.random.Generator) -> Subnet:
        """Return `subnet` with another choice at `key`."""
        return self._build(
            lambda name: choice if name == key else subnet.choices[name] if name in subnet.choices else self[name].sample(rng)
        )

    def grid(self) -> Iterator[Subnet]:
        """Yield every subnet once, in a fixed order."""

        def walk(position: int, choices: dict[str, Choice]) -> Iterator[Subnet]:
            while position < len(self.order) and not self.is_active(self.order[position], choices):
                position += 1
            if position == len(self.order):
                yield self._ordered(choices)
                return
            key = self.order[position]
            for picks in self[key].grid():
                yield from walk(position + 1, {**choices, key: picks})

        return walk(0, {})

    def count(self) -> int:
        """Return the number of different subnets, exactly.

        Raises:
            SpaceError: If a decision has infinitely many choices, or conditions tie so many decisions together that
                counting would visit over 50,000 cases.
        """
        endless = [key for key, domain in self.items() if math.isinf(domain.size)]
        if endless:
            raise SpaceError(f'There are infinitely many subnets: {listed(endless)} may take any number of a range.')
        return self._size

    # -- as data ---------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON holds it."""
        content: dict[str, Any] = {'domains': {key: domain.to_dict() for key, domain in self.items()}}
        if self.conditions:
            content['conditions'] = {
                key: [
                    [{'keys': list(guard.keys), 'allowed': sorted(map(list, guard.allowed))} for guard in rule]
                    for rule in rules
                ]
                for key, rules in self.conditions.items()
            }
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Space:
        """Rebuild a space from `to_dict`.

        Raises:
            SpaceError: If `content` is not what `to_dict` gives.
        """
        try:
            domains = {key: domain_from_dict(value) for key, value in content['domains'].items()}
            conditions = {
                key: tuple(
                    tuple(Guard(tuple(guard['keys']), frozenset(map(tuple, guard['allowed']))) for guard in rule)
                    for rule in rules
                )
                for key, rules in content.get('conditions', {}).items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise SpaceError(
                f'This does not describe a space as `to_dict` writes it: {type(error).__name__} {error}.'
            ) from None
        return cls(domains, conditions)

    @cached_property
    def digest(self) -> str:
        """A hash of the space: equal for equal spaces, across processes."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    # -- internals -------------------------------------------------------------------------

    def _read(self, key: str, choice: Any, source: Domain | None) -> Choice:
        domain = self[key]
        if source is None:
            return domain.parse(choice)
        # The subnet of another space: the same indices only where they mean the same alternatives.
        if source == domain:
            return choice
        if isinstance(choice, Weights) and source.labels != domain.labels:
            raise SubnetError(f'Weights over {listed(source.labels)} do not fit the alternatives {listed(domain.labels)}.')
        return domain.parse(source.format(choice))

    def _canonical(self, choices: Mapping[str, Choice]) -> Subnet:
        def pick(key: str) -> Choice:
            if key not in choices:
                absent = [name for name in self.order if name not in choices and not self.conditions.get(name)]
                raise SubnetError(
                    f'The subnet has no choice for {key!r}, which is active.'
                    + (f' In all, {len(absent)} decisions are missing: {listed(absent)}.' if len(absent) > 1 else '')
                )
            return choices[key]

        return self._build(pick)

    def _build(self, pick: Any) -> Subnet:
        choices: dict[str, Choice] = {}
        for key in self.order:
            if self.is_active(key, choices):
                choices[key] = pick(key)
        return self._ordered(choices)

    def _ordered(self, choices: dict[str, Choice]) -> Subnet:
        return Subnet(self, {key: choices[key] for key in self._domains if key in choices} if self.conditions else choices)

    def _check_conditions(self, key: str, rules: tuple[Condition, ...]) -> None:
        if key not in self._domains:
            raise SpaceError(f'There is a condition for {key!r}, which is not a key of the space.')
        for guard in itertools.chain.from_iterable(rules):
            for parent in guard.keys:
                if parent not in self._domains:
                    raise SpaceError(f'{key!r} depends on {parent!r}, which is not a key of the space.')
            for combination in guard.allowed:
                whole = all(isinstance(index, int) and not isinstance(index, bool) for index in combination)
                if not whole or len(combination) != len(guard.keys):
                    raise SpaceError(
                        f'{key!r} depends on {listed(guard.keys)}: a combination has an index of an alternative for each, but '
                        f'one is {list(combination)!r}.'
                    )
                for parent, index in zip(guard.keys, combination, strict=True):
                    if not 0 <= index < len(self._domains[parent]):
                        raise SpaceError(
                            f'{key!r} depends on alternative {index} of {parent!r}, which has {len(self[parent])}.'
                        )

    def _topological_order(self) -> tuple[str, ...]:
        order: dict[str, None] = {}
        visiting: set[str] = set()

        def visit(key: str) -> None:
            if key in order:
                return
            if key in visiting:
                raise SpaceError(f'The decision {key!r} depends on itself through its conditions.')
            visiting.add(key)
            for rule in self.conditions.get(key, ()):
                for guard in rule:
                    for parent in guard.keys:
                        visit(parent)
            visiting.discard(key)
            order[key] = None

        for key in self._domains:
            visit(key)
        return tuple(order)

    @cached_property
    def _size(self) -> int:
        visited = 0

        def group_size(group: list[str], choices: Mapping[str, Choice]) -> int:
            # The first key of a group depends on nothing that is still open.
            nonlocal visited
            visited += 1
            if visited > 50_000:
                raise SpaceError(
                    f'Counting stops: the conditions tie so many of the {len(self)} decisions together that every combination '
                    f'would have to be visited, among them {listed(group)}.'
                )
            key, *rest = group
            if not self.is_active(key, choices):
                return size(rest, choices)
            if not any(key in self._depends_on.get(other, ()) for other in rest):
                return self[key].size * size(rest, choices)
            return sum(size(rest, {**choices, key: picks}) for picks in self[key].grid())

        def size(keys: list[str], choices: Mapping[str, Choice]) -> int:
            return math.prod(group_size(group, choices) for group in self._independent(keys, choices))

        return size(list(self.order), {})

    @cached_property
    def _depends_on(self) -> dict[str, frozenset[str]]:
        return {
            key: frozenset(itertools.chain.from_iterable(guard.keys for rule in rules for guard in rule))
            for key, rules in self.conditions.items()
        }

    def _independent(self, keys: list[str], choices: Mapping[str, Choice]) -> list[list[str]]:
        """Split the open `keys` into groups, in order, that the conditions left open by `choices` do not tie together."""
        root = {key: key for key in keys}

        def find(key: str) -> str:
            while root[key] != key:
                root[key] = root[root[key]]
                key = root[key]
            return key

        def possible(guard: Guard) -> bool:
            taken = [None if key in root else chosen(choices[key]) if key in choices else () for key in guard.keys]
            return any(
                all(indices is None or index in indices for index, indices in zip(combination, taken, strict=True))
                for combination in guard.allowed
            )

        for key in keys:
            for rule in self.conditions.get(key, ()):
                open_keys = {parent for guard in rule for parent in guard.keys if parent in root}
                if open_keys and all(map(possible, rule)):
                    for parent in open_keys:
                        root[find(parent)] = find(key)
        groups: dict[str, list[str]] = {}
        for key in keys:
            groups.setdefault(find(key), []).append(key)
        return list(groups.values())
