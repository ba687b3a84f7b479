"""Trials and objectives: what a search knows of one evaluation, and what makes one better than another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np

from strop.errors import ConfigError, listed, near
from strop.mutables import Subnet

RUNNING = 'running'
COMPLETE = 'complete'
FAILED = 'failed'
STOPPED = 'stopped'

DIRECTIONS = ('maximize', 'minimize')
Objectives = Union[str, Mapping[str, str]]


@dataclass(frozen=True)
class Trial:
    """One evaluation of one subnet.

    Args:
        number: Position in the search, from 0.
        subnet: What is evaluated.
        state: `'running'`, `'complete'`, `'failed'` or `'stopped'` (early, by a pruner).
        values: Objective -> value, once complete.
        info: Anything else that was measured: the resources that constraints bound, and what the
            evaluation returned beside its objectives.
        seconds: How long the evaluation took.
        error: Why it failed.
        reports: Step -> value of what it reported on its way.

    >>> from strop.mutables import OneOf, Space
    >>> subnet = Space({'kernel': OneOf((3, 5))}).subnet({'kernel': 3})
    >>> Trial(0, subnet, 'complete', {'score': 0.5}).to_dict()['values']
    {'score': 0.5}
    """

    number: int
    subnet: Subnet
    state: str = RUNNING
    values: dict[str, float] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    error: str | None = None
    reports: dict[int, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the trial has values."""
        return self.state == COMPLETE

    @property
    def finished(self) -> bool:
        """Whether the trial has ended: with values, with an error, or early."""
        return self.state != RUNNING

    @property
    def stopped(self) -> bool:
        """Whether the trial was stopped early."""
        return self.state == STOPPED

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as JSON holds it."""
        return {
            'number': self.number,
            'state': self.state,
            'values': self.values,
            'info': self.info,
            'seconds': self.seconds,
            'error': self.error,
            'choices': dict(self.subnet),
            **({'reports': [[step, value] for step, value in self.reports.items()]} if self.reports else {}),
        }


def parse_objectives(objectives: Objectives) -> dict[str, str]:
    """Return objective -> direction; a lone direction names the objective `'score'`.

    Raises:
        ConfigError: If there is no objective, or a direction is neither 'maximize' nor 'minimize'.

    >>> parse_objectives('maximize')
    {'score': 'maximize'}
    >>> parse_objectives({'accuracy': 'maximize', 'macs': 'minimize'})
    {'accuracy': 'maximize', 'macs': 'minimize'}
    """
    named = {'score': objectives} if isinstance(objectives, str) else dict(objectives)
    if not named:
        raise ConfigError("A search needs at least one objective, such as {'accuracy': 'maximize'}, but got none.")
    for name, direction in named.items():
        if direction not in DIRECTIONS:
            raise ConfigError(
                f"The objective {name!r} must be 'maximize' or 'minimize', but got {direction!r}.{near(direction, DIRECTIONS)}"
            )
    return named


def losses(trial: Trial, objectives: Mapping[str, str]) -> tuple[float, ...]:
    """Return the values of a complete trial with every objective turned into one to minimize."""
    values = trial.values or {}
    return tuple(-values[name] if direction == 'maximize' else values[name] for name, direction in objectives.items())


def read_values(
    returned: Any, objectives: Mapping[str, str], measured: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Split what an evaluation returned into objective values and further information.

    Args:
        returned: A number where one objective is left to the evaluation, otherwise a mapping with each of them.
        objectives: Objective -> direction.
        measured: Resources that are already measured; an objective of the same name may be left out.

    Raises:
        ConfigError: If an objective is missing or is not a finite number.

    >>> read_values({'accuracy': 0.9, 'loss': 0.3}, {'accuracy': 'maximize'}, {})
    ({'accuracy': 0.9}, {'loss': 0.3})
    """
    open_names = [name for name in objectives if name not in measured]
    if not isinstance(returned, Mapping):
        if len(open_names) > 1 or (not open_names and len(objectives) > 1):
            raise ConfigError(
                f'With several objectives the evaluation must return a mapping with {listed(objectives)}, but got {returned!r}.'
            )
        returned = {(open_names or list(objectives))[0]: returned}
    given = {**{name: measured[name] for name in objectives if name in measured}, **returned}
    absent = [name for name in objectives if name not in given]
    if absent:
        raise ConfigError(
            f'The evaluation must return {listed(objectives)}, but {listed(absent)} is missing from {listed(given)}.'
            + near(absent[0], given)
        )
    values = {name: _number(given[name], name) for name in objectives}
    return values, {str(name): _as_json(value) for name, value in given.items() if name not in objectives}


def _number(value: Any, name: str) -> float:
    if hasattr(value, 'item') and getattr(value, 'size', None) != 0:
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError):
            raise ConfigError(f'{name!r} must be one number, but got several: {value!r}.') from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f'{name!r} must be a number, but the evaluation returned {value!r} of type {type(value).__name__}.')
    if not math.isfinite(value):
        raise ConfigError(f'{name!r} must be a finite number, but the evaluation returned {value}.')
    return float(value)


def _as_json(value: Any) -> Any:
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return repr(value)


def nondominated_ranks(points: np.ndarray) -> np.ndarray:
    """Return the front that each point lies on: 0 for those that no other dominates, and so on.

    Args:
        points: Losses, all to be minimized, of shape `(points, objectives)`.

    Reference:
        Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002.

    >>> nondominated_ranks(np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 2.0]])).tolist()
    [0, 0, 1]
    """
    count = len(points)
    ranks = np.full(count, -1)
    if count == 0:
        return ranks
    pairs = points[:, None], points[None]
    below = np.asarray((pairs[0] <= pairs[1]).all(-1) & (pairs[0] < pairs[1]).any(-1))
    remaining = np.ones(count, dtype=bool)
    front = 0
    while remaining.any():
        current = remaining & ~below[remaining].any(0)
        ranks[current] = front
        remaining &= ~current
        front += 1
    return ranks


def crowding_distance(points: np.ndarray) -> np.ndarray:
    """Return how alone each point of one front is: the larger, the more alone; infinite at the ends.

    Args:
        points: Losses of shape `(points, objectives)`.

    >>> crowding_distance(np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])).tolist()
    [inf, 2.0, inf]
    """
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind='stable')
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = math.inf
        if len(points) > 2 and span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def best_first(trials: Sequence[Trial], objectives: Mapping[str, str]) -> list[Trial]:
    """Return complete trials from best to worst.

    One objective: by its value. Several: by nondominated rank, then by crowding distance. Ties go to the earlier trial.
    """
    complete = [trial for trial in trials if trial.complete]
    if len(objectives) == 1 or not complete:
        return sorted(complete, key=lambda trial: (losses(trial, objectives), trial.number))
    points = np.array([losses(trial, objectives) for trial in complete])
    ranks = nondominated_ranks(points)
    alone = np.zeros(len(points))
    for front in range(int(ranks.max()) + 1):
        members = ranks == front
        alone[members] = crowding_distance(points[members])
    order = sorted(range(len(complete)), key=lambda index: (ranks[index], -alone[index], complete[index].number))
    return [complete[index] for index in order]


def pareto_front(trials: Sequence[Trial], objectives: Mapping[str, str]) -> list[Trial]:
    """Return the trials that no other one dominates, by number; of equal values the first stands."""
    complete = sorted((trial for trial in trials if trial.complete), key=lambda trial: trial.number)
    points = [losses(trial, objectives) for trial in complete]
    front: list[int] = []
    # Sorted lexicographically, a point can only be dominated by (or equal to) an earlier one.
    for index in sorted(range(len(points)), key=lambda index: (points[index], index)):
        if not any(all(a <= b for a, b in zip(points[kept], points[index], strict=True)) for kept in front):
            front.append(index)
    return [complete[index] for index in sorted(front)]
