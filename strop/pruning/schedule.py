"""How the ratio grows over the steps of iterative pruning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Union

from strop.errors import ConfigError, listed, near

Schedule = Callable[[float], float]
ScheduleLike = Union[str, Schedule]


def linear(progress: float) -> float:
    """Remove the same number of channels at each step.

    >>> linear(0.5)
    0.5
    """
    return progress


def cubic(progress: float) -> float:
    r"""Remove much at first, when much is redundant, and less and less: :math:`1 - (1 - t)^3`.

    Zhu and Gupta, To prune, or not to prune, https://arxiv.org/abs/1710.01878.

    >>> cubic(0.5)
    0.875
    """
    return 1 - (1 - progress) ** 3


SCHEDULES: dict[str, Schedule] = {'linear': linear, 'cubic': cubic}


def milestones(steps: int, schedule: ScheduleLike = 'linear') -> list[float]:
    """Return which part of the whole is gone after each step; the last is 1.

    Args:
        steps: Number of steps.
        schedule: A name, or a function from (0, 1] to [0, 1] that rises to 1.

    Raises:
        ConfigError: If there are no steps, no such schedule, or it falls, leaves [0, 1] or does not end at 1.

    >>> milestones(4)
    [0.25, 0.5, 0.75, 1.0]
    >>> milestones(2, 'cubic')
    [0.875, 1.0]
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(f'`steps` must be a whole number, 1 or more, but got {steps!r}.')
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ConfigError(f'There is no schedule {schedule!r}.{near(schedule, SCHEDULES)} There are {listed(SCHEDULES)}.')
        schedule = SCHEDULES[schedule]
    if not callable(schedule):
        raise ConfigError(f'`schedule` must be one of {listed(SCHEDULES)} or a function, but got {schedule!r}.')
    values: list[Any] = [schedule((step + 1) / steps) for step in range(steps)]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise ConfigError(f'A schedule returns a number between 0 and 1, but got {listed(values)}.')
    rises = all(first <= second + 1e-9 for first, second in zip([0.0, *values], values))
    if not rises or abs(values[-1] - 1) > 1e-6:
        raise ConfigError(f'A schedule rises from 0 to 1, but over {steps} steps it gave {listed(values)}.')
    return [float(value) for value in values[:-1]] + [1.0]
