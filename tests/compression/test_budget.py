"""Limits by hand, and what they say of what came out."""

from __future__ import annotations

import pytest

from strop.compression.budget import Budget, verdicts
from strop.errors import ConfigError


def test_every_limit_is_compared_with_what_came_out():
    budget = Budget(macs='0.5x', params=900, size_mb=1.5, latency=0.4, accuracy_drop=1.0, runtime='eager')
    before = {'macs': 1000.0, 'params': 2000.0, 'latency_ms': 10.0}
    after = {'macs': 500.0, 'params': 1000.0, 'size_mb': 1.0, 'latency_ms': 3.9, 'accuracy_drop': 1.4}
    found = {verdict.name: verdict for verdict in verdicts(budget, before, after)}
    assert {name: verdict.met for name, verdict in found.items()} == {
        'macs': True, 'params': False, 'size_mb': True, 'latency': True, 'accuracy_drop': False,
    }  # fmt: skip
    assert found['latency'].wanted == 4.0
    assert 'NOT met: 1.4 points of 1 points' in found['accuracy_drop'].sentence


def test_a_limit_without_a_figure_is_not_met():
    (found,) = verdicts(Budget(latency_ms=3.0, runtime='eager'), {}, {'macs': 1.0})
    assert not found.met
    assert found.sentence == 'The budget latency_ms ≤ 3.0 could not be judged: there is no such figure of what came out.'
    (found,) = verdicts(Budget(latency=0.5, runtime='eager'), {}, {'latency_ms': 1.0})
    assert not found.met
    assert found.sentence.endswith('no such figure of what it is a share of.')


@pytest.mark.parametrize(
    'given',
    [
        {'latency': 1.0}, {'latency': True}, {'latency': 0.5, 'latency_ms': 2}, {'latency': 0.5, 'runtime': ['openvino']},
        {'size_mb': 0}, {'macs': 'many'}, {'threads': 0},
    ],
)  # fmt: skip
def test_limits_that_cannot_be_read_are_refused(given):
    with pytest.raises(ConfigError):
        Budget.of(given)


def test_what_is_written_is_read_again():
    budget = Budget.of({'latency': 0.5, 'relative_to': 'quantized', 'runtime': 'openvino'})
    assert Budget.of(budget.to_dict()) == budget
    assert budget.timed
    assert Budget.of(None).limits == {}


@pytest.mark.parametrize(
    ('reached', 'met', 'words'),
    [
        (1.0, True, 'is met: 1 ms of 1 ms.'),
        (1.015, True, 'is met: 1.015 ms of 1 ms (differences below 2% are noise).'),
        (1.03, False, 'is NOT met: 1.03 ms of 1 ms.'),
    ],
)
def test_a_time_just_beyond_its_limit_is_met_and_says_why(reached, met, words):
    verdict = verdicts(Budget(latency=0.5), {'latency_ms': 2.0}, {'latency_ms': reached})[0]
    assert verdict.met is met
    assert verdict.sentence == f'The budget latency ≤ 0.5 {words}'
