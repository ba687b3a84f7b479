from __future__ import annotations

import pytest

from strop.errors import ConfigError
from strop.pruning.schedule import milestones


def test_progress_rises_to_one():
    assert milestones(1) == [1.0]
    assert milestones(5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert milestones(4, 'cubic') == pytest.approx([1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1])
    assert milestones(2, lambda t: t**2) == [0.25, 1.0]


@pytest.mark.parametrize('steps', [0, -1, 1.5, True, None])
def test_steps_are_counted_from_one(steps):
    with pytest.raises(ConfigError, match='whole number, 1 or more'):
        milestones(steps)


@pytest.mark.parametrize(
    ('schedule', 'said'),
    [
        ('liner', "Did you mean 'linear'"),
        (3, 'or a function'),
        (lambda t: 1 - t, 'rises from 0 to 1'),
        (lambda t: t / 2, 'rises from 0 to 1'),
        (lambda t: 'half', 'a number between'),
        (lambda t: float('nan'), 'a number between'),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, said):
    with pytest.raises(ConfigError, match=said):
        milestones(2, schedule)
