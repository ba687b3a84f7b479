"""Constraints on subnets, and how a subnet is brought within them.

A strategy proposes feasible subnets only: it draws, and where a draw is out of bounds it is repaired, one
decision at a time, by descent on the violation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from strop.errors import BudgetError, ConfigError, EstimateError, StropError, listed, near
from strop.mutables import Space, Subnet, chosen

Measured = Union[float, Mapping[str, float]]

_REPAIR_STARTS = 8
_CACHE_LIMIT = 200_000


@dataclass(frozen=True)
class Constraint:
    """Bounds on one measured resource of a subnet.

    Args:
        name: Name of the resource, such as `'macs'`.
        measure: Subnet -> its value, or subnet -> mapping with `name` among its keys; one function that
            measures several resources at once is called once for a subnet, whichever constraints share it.
        low: Smallest allowed value.
        high: Largest allowed value. Without either bound the resource is measured and recorded only.
        measure_many: Subnets -> values in the same order, where measuring many at once is faster.

    Raises:
        ConfigError: If `low` exceeds `high`, or one is NaN.

    >>> Constraint('macs', lambda subnet: 3e8, high=2e8).excess(3e8)
    0.5
    """

    name: str
    measure: Callable[[Subnet], Measured] | None = None
    low: float | None = None
    high: float | None = None
    measure_many: Callable[[Sequence[Subnet]], Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if self.measure is None and self.measure_many is None:
            raise ConfigError(f'The constraint {self.name!r} needs `measure` or `measure_many`, but got neither.')
        for bound in (self.low, self.high):
            if bound is not None and bound != bound:
                raise ConfigError(f'The bounds of the constraint {self.name!r} are numbers, but one is {bound}.')
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ConfigError(f'The constraint {self.name!r} needs low <= high, but got {self.low} and {self.high}.')

    def excess(self, value: float) -> float:
        """Return how far a value is out of bounds, relative to the bound; 0 within."""
        above = 0.0 if self.high is None or value <= self.high else (value - self.high) / (abs(self.high) or 1.0)
        below = 0.0 if self.low is None or value >= self.low else (self.low - value) / (abs(self.low) or 1.0)
        return max(above, below, 0.0)

    @property
    def rule(self) -> str:
        """The bounds as a person reads them."""
        if self.low is not None and self.high is not None:
            return f'{self.low:g} <= {self.name} <= {self.high:g}'
        if self.high is not None:
            return f'{self.name} <= {self.high:g}'
        return f'{self.name} >= {self.low:g}' if self.low is not None else f'{self.name} measured'

    def to_dict(self) -> dict[str, Any]:
        """Return the bounds as JSON holds them."""
        return {'name': self.name, 'low': self.low, 'high': self.high}


class Constraints:
    """Several constraints together, with what they measured so far.

    >>> from strop.mutables import Ordered
    >>> space = Space({'width': Ordered((8, 16)), 'depth': Ordered((1, 2, 3))})
    >>> bounds = Constraints([Constraint('size', lambda subnet: subnet['width'] * subnet['depth'], high=16)])
    >>> bounds.violation(space.subnet({'width': 16, 'depth': 2}))
    1.0
    """

    def __init__(self, constraints: Iterable[Constraint] = ()) -> None:
        self.all = tuple(constraints)
        for constraint in self.all:
            if not isinstance(constraint, Constraint):
                raise ConfigError(f'`constraints` must hold Constraint objects, but got {constraint!r}.')
        names = [constraint.name for constraint in self.all]
        if len(set(names)) != len(names):
            raise ConfigError(f'Each constraint needs a name of its own, but got {listed(names)}.')
        self.bounded = any(constraint.low is not None or constraint.high is not None for constraint in self.all)
        self._known: dict[Subnet, dict[str, float]] = {}

    def __bool__(self) -> bool:
        return bool(self.all)

    def measured(self, subnet: Subnet) -> dict[str, float]:
        """Return resource -> value of one subnet."""
        return self.measured_many([subnet])[0] if self.all else {}

    def measured_many(self, subnets: Sequence[Subnet]) -> list[dict[str, float]]:
        """Return resource -> value of each subnet, measuring those not seen before.

        Raises:
            EstimateError: If a measure fails or gives something that is not a finite number.
        """
        fresh = list(dict.fromkeys(subnet for subnet in subnets if subnet not in self._known))
        known: dict[Subnet, dict[str, float]] = {subnet: {} for subnet in fresh}
        shared: dict[tuple[int, Subnet], Mapping[str, float]] = {}
        for constraint in self.all:
            if not fresh:
                break
            for subnet, value in zip(fresh, self._ask(constraint, fresh, shared), strict=True):
                known[subnet][constraint.name] = value
        known.update((subnet, self._known[subnet]) for subnet in subnets if subnet in self._known)
        if len(self._known) > _CACHE_LIMIT:
            self._known.clear()
        self._known.update(known)
        return [known[subnet] for subnet in subnets]

    def _ask(
        self, constraint: Constraint, subnets: Sequence[Subnet], shared: dict[tuple[int, Subnet], Mapping[str, float]]
    ) -> list[float]:
        try:
            if constraint.measure_many is not None and (len(subnets) > 1 or constraint.measure is None):
                raw: list[Any] = list(constraint.measure_many(subnets))
            else:
                raw = [self._one(constraint, subnet, shared) for subnet in subnets]
        except StropError:
            raise
        except Exception as error:
            raise EstimateError(f'Measuring {constraint.name!r} failed: {type(error).__name__}: {error}') from error
        if len(raw) != len(subnets):
            raise EstimateError(f'`measure_many` of {constraint.name!r} returned {len(raw)} values for {len(subnets)} subnets.')
        values = []
        for value in raw:
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise EstimateError(f'The measure of {constraint.name!r} must give a finite number, but gave {value!r}.')
            values.append(number)
        return values

    @staticmethod
    def _one(constraint: Constraint, subnet: Subnet, shared: dict[tuple[int, Subnet], Mapping[str, float]]) -> Any:
        assert constraint.measure is not None, 'called for constraints that measure one at a time'
        key = (id(constraint.measure), subnet)
        result = shared[key] if key in shared else constraint.measure(subnet)
        if not isinstance(result, Mapping):
            return result
        shared[key] = result
        if constraint.name not in result:
            raise EstimateError(
                f'The measure of {constraint.name!r} gave {listed(result)}, which lacks it.{near(constraint.name, result)}'
            )
        return result[constraint.name]

    def violation(self, subnet: Subnet) -> float:
        """Return the sum of the relative excesses; 0 for a feasible subnet."""
        return self.violations([subnet])[0]

    def violations(self, subnets: Sequence[Subnet]) -> list[float]:
        """Return the violation of each subnet."""
        if not self.bounded:
            return [0.0] * len(subnets)
        return [
            sum(constraint.excess(values[constraint.name]) for constraint in self.all) for values in self.measured_many(subnets)
        ]

    def feasible(self, subnet: Subnet) -> bool:
        """Whether a subnet meets every constraint."""
        return not self.bounded or self.violation(subnet) == 0.0

    def repair(self, space: Space, subnet: Subnet, rng: np.random.Generator) -> tuple[Subnet, float]:
        """Change one decision at a time, in random order, until the violation is 0 or no change lowers it.

        Returns the subnet that was reached and its violation. Of several choices that reach 0, one is drawn.
        """
        violation = self.violation(subnet)
        improved = True
        while violation > 0 and improved:
            improved = False
            keys = list(subnet.choices)
            for position in rng.permutation(len(keys)):
                key = keys[position]
                if key not in subnet.choices:
                    continue
                options = [space.replace(subnet, key, picks, rng) for picks in _alternatives(space, subnet, key)]
                if not options:
                    continue
                found = self.violations(options)
                lowest = min(found)
                if lowest < violation:
                    ties = [option for option, value in zip(options, found, strict=True) if value == lowest]
                    subnet, violation, improved = ties[int(rng.integers(len(ties)))], lowest, True
                if violation == 0:
                    break
        return subnet, violation

    def draw(self, space: Space, sample: Callable[[], Subnet], rng: np.random.Generator, tries: int = 20) -> Subnet:
        """Return a feasible subnet: the first feasible of `tries` draws, else a repaired one.

        Raises:
            BudgetError: If no start leads to a feasible subnet; it states the nearest one that was found.
        """
        best: tuple[float, Subnet] | None = None
        for _ in range(tries):
            subnet = sample()
            violation = self.violation(subnet)
            if violation == 0:
                return subnet
            if best is None or violation < best[0]:
                best = (violation, subnet)
        assert best is not None, 'there is at least one start'
        starts = [best[1], *(space.extreme(largest) for largest in (False, True))]
        for attempt in range(_REPAIR_STARTS):
            subnet, violation = self.repair(space, starts[attempt] if attempt < len(starts) else space.sample(rng), rng)
            if violation == 0:
                return subnet
            if violation < best[0]:
                best = (violation, subnet)
        raise BudgetError(self._impossible(best[1]))

    def _impossible(self, nearest: Subnet) -> str:
        values = self.measured(nearest)
        parts = []
        for constraint in self.all:
            value = values[constraint.name]
            if constraint.high is not None and value > constraint.high:
                parts.append(f'the smallest {constraint.name} reached is {value:g} ({constraint.rule} was asked)')
            elif constraint.low is not None and value < constraint.low:
                parts.append(f'the largest {constraint.name} reached is {value:g} ({constraint.rule} was asked)')
        return (
            f'No subnet meets {" and ".join(constraint.rule for constraint in self.all)}: {"; ".join(parts)}, '
            f'by the subnet {json.dumps(dict(nearest))}. Widen the bounds, or the space.'
        )


def _alternatives(space: Space, subnet: Subnet, key: str) -> list[Any]:
    domain = space[key]
    current = chosen(subnet.choices[key])
    # All of a small domain, so that a decision can jump; the neighbours of a large one.
    return [picks for picks in (domain.grid() if domain.size <= 64 else domain.neighbours(current)) if picks != current]
