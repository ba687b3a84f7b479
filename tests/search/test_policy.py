from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.mutables import AnyOf, Guard, KOf, Numeric, OneOf, Space
from strop.search import PolicyGradient, run
from strop.search.policy import Policy, draw_set, inclusion, sums_of_products

WEIGHTS = st.lists(st.floats(0.01, 5), min_size=1, max_size=6)


def by_hand(weights: np.ndarray, count: int) -> dict[tuple[int, ...], float]:
    """The probability of every set, by listing them."""
    products = {picks: math.prod(weights[list(picks)]) for picks in itertools.combinations(range(len(weights)), count)}
    whole = sum(products.values())
    return {picks: product / whole for picks, product in products.items()}


@given(WEIGHTS, st.data())
def test_inclusion_against_the_list_of_all_sets(given_weights: list[float], data: st.DataObject) -> None:
    weights = np.array(given_weights)
    count = data.draw(st.integers(0, len(weights)))
    every = by_hand(weights, count)
    expected = [sum(p for picks, p in every.items() if index in picks) for index in range(len(weights))]
    assert inclusion(weights, count) == pytest.approx(expected)
    assert sums_of_products(weights, count)[count] == pytest.approx(
        sum(math.prod(weights[list(picks)]) for picks in itertools.combinations(range(len(weights)), count))
    )


def test_drawn_sets_have_their_probabilities() -> None:
    weights, rng = np.array([0.5, 1.0, 2.0, 4.0]), np.random.default_rng(0)
    drawn = Counter(draw_set(weights, 2, rng) for _ in range(20_000))
    for picks, probability in by_hand(weights, 2).items():
        assert drawn[picks] / 20_000 == pytest.approx(probability, abs=0.015)


@pytest.mark.parametrize('domain', [OneOf(('a', 'b', 'c')), KOf(('a', 'b', 'c', 'd'), k=2), AnyOf(('a', 'b', 'c'))])
def test_a_step_is_along_the_gradient_of_the_log_probability(domain: OneOf | KOf | AnyOf) -> None:
    space = Space({'x': domain})
    rng = np.random.default_rng(1)
    logits = rng.normal(size=len(domain))
    picks = domain.sample(rng)

    def log_probability(theta: np.ndarray) -> float:
        if isinstance(domain, AnyOf):
            taken = np.isin(np.arange(len(domain)), picks)
            return float(np.where(taken, -np.log1p(np.exp(-theta)), -np.log1p(np.exp(theta))).sum())
        return math.log(by_hand(np.exp(theta), len(picks))[tuple(picks)])

    policy = Policy(space)
    policy.logits['x'] = logits.copy()
    policy.step(space.from_picks({'x': picks}), 1.0)
    moves = np.eye(len(domain)) * 1e-6
    gradient = [(log_probability(logits + move) - log_probability(logits - move)) / 2e-6 for move in moves]
    assert policy.logits['x'] - logits == pytest.approx(np.array(gradient), abs=1e-6)


def test_inactive_decisions_stay() -> None:
    space = Space({'op': OneOf(('skip', 'conv')), 'kernel': OneOf((3, 5))}, {'kernel': ((Guard.on('op', [1]),),)})
    policy = Policy(space)
    policy.step(space.subnet({'op': 'skip'}), 1.0)
    assert policy.logits['kernel'].tolist() == [0.0, 0.0]
    assert policy.logits['op'].tolist() == [0.5, -0.5]


@pytest.mark.parametrize('law', [('uniform', (0.0, 1.0)), ('normal', (0.0, 1.0)), ('randint', (0, 5)), ('randint', (0, 100))])
def test_numbers_follow_the_part_that_did_well(law: tuple) -> None:
    space = Space({'x': Numeric(law=law[0], arguments=law[1])})
    policy, rng = Policy(space), np.random.default_rng(0)
    best = space.subnet({'x': space['x'].at(0.9)})
    for _ in range(30):
        policy.step(best, 1.0)
    drawn = [space['x'].level(policy.sample(rng)['x']) for _ in range(50)]
    assert np.mean(np.abs(np.array(drawn) - 0.9) < 0.15) > 0.9


def test_the_policy_moves_to_the_best_and_back_without_reward() -> None:
    space = Space({f'op{place}': OneOf((0, 1, 2)) for place in range(3)})
    strategy = PolicyGradient(unique=False, decay=0.0)
    result = run(space, lambda subnet: float(sum(subnet.values())), strategy=strategy, trials=80)
    assert result.best.values == {'score': 6.0}
    assert all(strategy.policy.probabilities(key)[2] > 0.6 for key in space)
    policy = strategy.policy
    for _ in range(400):
        policy.step(space.first(), 0.0, decay=0.05)
    assert policy.probabilities('op0') == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_failures_are_avoided() -> None:
    space = Space({'op': OneOf(('a', 'b', 'c', 'd'))})

    def evaluate(subnet: object) -> float:
        if subnet['op'] in ('a', 'b'):  # type: ignore[index]
            raise RuntimeError('no memory')
        return 1.0

    strategy = PolicyGradient(unique=False)
    run(space, evaluate, strategy=strategy, trials=40, seed=1)
    assert strategy.policy.probabilities('op')[:2].sum() < 0.2


@pytest.mark.parametrize('option', [{'rate': 0}, {'decay': 1}, {'window': 0}, {'first': 0}])
def test_options_that_break_a_rule(option: dict) -> None:
    with pytest.raises(ConfigError, match='rate > 0, 0 <= decay < 1, window >= 1 and first >= 1'):
        PolicyGradient(**option)
