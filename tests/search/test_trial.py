from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.mutables import OneOf, Space
from strop.search.trial import (
    COMPLETE,
    FAILED,
    Trial,
    best_first,
    crowding_distance,
    nondominated_ranks,
    pareto_front,
    parse_objectives,
    read_values,
)

SUBNET = Space({'a': OneOf((1, 2))}).first()
BOTH = {'up': 'maximize', 'down': 'minimize'}


def trials(points: list[tuple[float, float]]) -> list[Trial]:
    return [Trial(n, SUBNET, COMPLETE, {'up': up, 'down': down}) for n, (up, down) in enumerate(points)]


def test_objectives() -> None:
    assert parse_objectives('minimize') == {'score': 'minimize'}
    with pytest.raises(ConfigError, match="'maximize' or 'minimize', but got 'max'"):
        parse_objectives({'a': 'max'})


def test_values_with_measured_objectives() -> None:
    assert read_values(0.5, {'acc': 'maximize', 'macs': 'minimize'}, {'macs': 3.0}) == ({'acc': 0.5, 'macs': 3.0}, {})
    assert read_values({'acc': 0.5, 'macs': 4}, {'acc': 'maximize', 'macs': 'minimize'}, {'macs': 3.0})[0]['macs'] == 4.0
    with pytest.raises(ConfigError, match='With several objectives'):
        read_values(0.5, {'acc': 'maximize', 'macs': 'minimize'}, {})
    with pytest.raises(ConfigError, match="'macs' is missing"):
        read_values({'acc': 1}, {'acc': 'maximize', 'macs': 'minimize'}, {})


def test_ranks_and_crowding_by_hand() -> None:
    points = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], [3.0, 3.0], [5.0, 5.0], [2.0, 2.0]])
    assert nondominated_ranks(points).tolist() == [0, 0, 0, 1, 2, 0]
    distance = crowding_distance(np.array([[0.0, 10.0], [1.0, 4.0], [4.0, 2.0], [10.0, 0.0]]))
    assert distance.tolist() == [np.inf, pytest.approx(0.4 + 0.8), pytest.approx(0.9 + 0.4), np.inf]
    assert crowding_distance(np.array([[1.0, 1.0]])).tolist() == [np.inf]


def test_order_with_one_objective_and_failures() -> None:
    made = [Trial(n, SUBNET, COMPLETE, {'s': value}) for n, value in enumerate((1.0, 3.0, 3.0, 2.0))] + [
        Trial(4, SUBNET, FAILED)
    ]
    assert [trial.number for trial in best_first(made, {'s': 'maximize'})] == [1, 2, 3, 0]
    assert [trial.number for trial in best_first(made, {'s': 'minimize'})] == [0, 3, 1, 2]
    assert [trial.number for trial in pareto_front(made, {'s': 'maximize'})] == [1]
    assert best_first([], BOTH) == pareto_front([], BOTH) == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30))
def test_the_front_is_that_of_the_definition(points: list[tuple[int, int]]) -> None:
    made = trials([(float(up), float(down)) for up, down in points])
    brute = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)}
    front = pareto_front(made, BOTH)
    assert [points[trial.number] for trial in front] == [points[n] for n in sorted(points.index(p) for p in brute)]
    order = best_first(made, BOTH)
    if made:
        assert points[order[0].number] in brute
    assert sorted(trial.number for trial in order) == list(range(len(points)))
