from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from strop.errors import BudgetError, ConfigError, EstimateError
from strop.mutables import Guard, OneOf, Ordered, Space, Subnet
from strop.search import Constraint, Constraints, run

SPACE = Space({f'w{place}': Ordered((1, 2, 3, 4)) for place in range(10)})


def size(subnet: Subnet) -> float:
    return float(sum(subnet.values()))


def test_excess_is_relative() -> None:
    bounds = Constraint('a', size, low=10, high=20)
    assert [bounds.excess(value) for value in (5, 10, 15, 20, 30)] == [0.5, 0, 0, 0, 0.5]
    assert Constraint('a', size, high=0).excess(3) == 3
    assert [Constraint('a', size, low=1).rule, Constraint('a', size, low=1, high=2e9).rule] == ['a >= 1', '1 <= a <= 2e+09']


def test_repair_changes_one_decision_at_a_time_until_it_fits() -> None:
    bounds = Constraints([Constraint('size', size, high=12), Constraint('first', lambda subnet: subnet['w0'], low=3)])
    rng = np.random.default_rng(0)
    for _ in range(50):
        subnet, violation = bounds.repair(SPACE, SPACE.sample(rng), rng)
        assert violation == 0
        assert size(subnet) <= 12
        assert subnet['w0'] >= 3


def test_repair_finds_the_one_feasible_subnet_of_an_additive_measure() -> None:
    bounds = Constraints([Constraint('size', size, high=10)])
    subnet = bounds.draw(SPACE, lambda: SPACE.sample(np.random.default_rng(1)), np.random.default_rng(2))
    assert set(subnet.values()) == {1}


def test_repair_through_conditions() -> None:
    space = Space(
        {'op': OneOf(('skip', 'conv')), 'width': Ordered((8, 16)), 'next': Ordered((8, 16))},
        {'width': ((Guard.on('op', [1]),),)},
    )
    bounds = Constraints(
        [Constraint('sum', lambda subnet: sum(v for v in subnet.values() if v not in ('skip', 'conv')), high=8)]
    )
    rng = np.random.default_rng(0)
    subnet, violation = bounds.repair(space, space.subnet({'op': 'conv', 'width': 16, 'next': 16}), rng)
    assert (dict(subnet), violation) == ({'op': 'skip', 'next': 8}, 0)


def test_the_nearest_value_on_either_side() -> None:
    with pytest.raises(BudgetError, match=r'smallest size reached is 10 \(size <= 9 was asked\)'):
        run(SPACE, size, constraints=[Constraint('size', size, high=9)])
    with pytest.raises(BudgetError, match=r'largest size reached is 40 \(41 <= size <= 50 was asked\)'):
        run(SPACE, size, constraints=[Constraint('size', size, low=41, high=50)])
    both = [Constraint('size', size, high=13), Constraint('w0', lambda subnet: subnet['w0'], low=5)]
    with pytest.raises(BudgetError, match=r'size <= 13 and w0 >= 5: the largest w0 reached is 4'):
        run(SPACE, size, constraints=both)


def test_one_function_may_measure_several_and_is_called_once() -> None:
    calls: list[Subnet] = []

    def measure(subnet: Subnet) -> dict[str, float]:
        calls.append(subnet)
        return {'macs': size(subnet), 'params': float(subnet['w0'])}

    constraints = [Constraint('macs', measure, high=30), Constraint('params', measure, high=3)]
    result = run(SPACE, size, strategy='random', constraints=constraints, trials=20)
    assert len(calls) == len(set(calls))
    assert all(trial.info == {'macs': size(trial.subnet), 'params': trial.subnet['w0']} for trial in result.trials)


def test_many_are_measured_at_once() -> None:
    counts: list[int] = []

    def many(subnets: Sequence[Subnet]) -> np.ndarray:
        counts.append(len(subnets))
        return np.array([size(subnet) for subnet in subnets])

    result = run(SPACE, size, constraints=[Constraint('size', high=20, measure_many=many)], trials=40)
    assert max(counts) > 1
    assert max(trial.info['size'] for trial in result.trials) <= 20
    single = run(SPACE, size, constraints=[Constraint('size', size, high=20)], trials=40)
    assert [trial.subnet for trial in single.trials] == [trial.subnet for trial in result.trials]


def test_the_budget_is_used() -> None:
    result = run(SPACE, size, constraints=[Constraint('size', size, high=25)], trials=60)
    assert result.best.values == {'score': 25.0}


@pytest.mark.parametrize(
    ('constraint', 'message'),
    [
        (Constraint('a', lambda subnet: float('nan'), high=1), 'must give a finite number, but gave nan'),
        (Constraint('a', lambda subnet: 'big', high=1), "finite number, but gave 'big'"),  # type: ignore[arg-type,return-value]
        (Constraint('macs', lambda subnet: {'mac': 1.0}, high=1), "Did you mean 'mac'"),
        (Constraint('a', lambda subnet: 1 / 0, high=1), 'ZeroDivisionError'),
        (Constraint('a', high=1, measure_many=lambda subnets: [1.0, 2.0]), 'returned 2 values for 1'),
    ],
)
def test_a_measure_that_fails(constraint: Constraint, message: str) -> None:
    with pytest.raises(EstimateError, match=message):
        run(SPACE, size, strategy='random', constraints=[constraint])


def test_bounds_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match='low <= high'):
        Constraint('a', size, low=3, high=2)
    with pytest.raises(ConfigError, match='needs `measure`'):
        Constraint('a', high=2)


def test_initial_subnets_out_of_bounds_are_left_out_aloud() -> None:
    from strop.search import RandomSearch

    strategy = RandomSearch(initial=[SPACE.extreme(True), SPACE.extreme(False)])
    with pytest.warns(UserWarning, match=r"Initial subnet 0 breaks a constraint.*'size': '40'"):
        result = run(SPACE, size, strategy=strategy, constraints=[Constraint('size', size, high=20)], trials=3)
    assert result.trials[0].subnet == SPACE.extreme(False)


def test_an_infinite_bound_is_none() -> None:
    bound = Constraint('size', lambda subnet: 3.0, low=-math.inf, high=math.inf)
    assert bound.excess(3.0) == 0
    with pytest.raises(ConfigError, match='one is nan'):
        Constraint('size', lambda subnet: 3.0, high=math.nan)
