"""Greedy slimming: the path by hand, several targets, ties, replay, several workers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import BudgetError, ConfigError
from strop.mutables import OneOf, Ordered, Space
from strop.search import Constraint, GreedySlimming, build_strategy, run
from strop.search.executor import evaluate_trial

SPACE = Space({'a': Ordered((1, 2, 3)), 'b': Ordered((10, 20, 30)), 'op': OneOf(('x', 'y'))})


def cost(subnet):
    return subnet['a'] * 10 + subnet['b']


def test_the_path_by_hand():
    # Narrowing a costs 3 points a step, narrowing b 2 and then 5.
    scores = {'a': {3: 0, 2: -3, 1: -6}, 'b': {30: 0, 20: -2, 10: -7}}
    strategy = GreedySlimming(cost=cost, targets=[45, 25])
    result = run(SPACE, lambda s: scores['a'][s['a']] + scores['b'][s['b']], strategy=strategy, trials=100)
    assert [(trial.subnet['a'], trial.subnet['b']) for trial in strategy.path] == [(3, 30), (3, 20), (2, 20), (1, 20), (1, 10)]
    assert [len(result.trials), result.stopped] == [1 + 2 + 2 + 2 + 1, 'exhausted']
    assert cost(strategy.reached(45).subnet) == 40
    assert cost(strategy.reached(25).subnet) == 20
    assert strategy.reached(5) is None
    assert {trial.subnet['op'] for trial in result.trials} == {strategy.path[0].subnet['op']}, 'what has no order stays'


def test_by_what_is_lost_for_what_is_saved():
    # A step of a loses 3 points and saves 10, one of b loses 2 and saves 1.
    def score(subnet):
        return 3 * subnet['a'] + 2 * subnet['b'] / 10

    paths = {}
    for per_cost in (False, True):
        strategy = GreedySlimming(cost=lambda s: s['a'] * 10 + s['b'] / 10, targets=12, per_cost=per_cost)
        run(SPACE, score, strategy=strategy, trials=100)
        paths[per_cost] = [(trial.subnet['a'], trial.subnet['b']) for trial in strategy.path]
    assert paths[False] == [(3, 30), (3, 20), (3, 10), (2, 10), (1, 10)]
    assert paths[True] == [(3, 30), (2, 30), (1, 30), (1, 20)]


def test_a_step_that_saves_nothing_is_skipped():
    strategy = GreedySlimming(cost=lambda s: max(s['a'], 2) * 10 + s['b'], targets=31)
    run(SPACE, lambda s: s['b'], strategy=strategy, trials=100)
    assert all(trial.subnet['a'] >= 2 for trial in strategy.path)


def test_failed_trials_are_passed_over():
    def evaluate(subnet):
        if subnet['b'] == 20:
            raise ValueError('this one breaks')
        return subnet['a']

    strategy = GreedySlimming(cost=cost, targets=40)
    run(SPACE, evaluate, strategy=strategy, trials=100)
    assert [(trial.subnet['a'], trial.subnet['b']) for trial in strategy.path] == [(3, 30), (2, 30), (1, 30)]


@given(
    st.lists(st.floats(-10, 10), min_size=9, max_size=9),
    st.lists(st.integers(20, 59), min_size=1, max_size=3),
    st.integers(1, 12),
)
def test_a_search_that_was_cut_off_goes_on_the_same_way(values, targets, first):
    table = dict(zip(itertools.product((1, 2, 3), (10, 20, 30)), values, strict=True))

    def score(subnet):
        return table[subnet['a'], subnet['b']]

    whole = GreedySlimming(cost=cost, targets=targets)
    expected = run(SPACE, score, strategy=whole, trials=100)
    import optuna

    store = optuna.storages.InMemoryStorage()
    run(SPACE, score, strategy=GreedySlimming(cost=cost, targets=targets), trials=first, store=store)
    resumed = GreedySlimming(cost=cost, targets=targets)
    result = run(SPACE, score, strategy=resumed, trials=100, store=store)
    assert [trial.subnet for trial in result.trials] == [trial.subnet for trial in expected.trials]
    assert [trial.subnet for trial in resumed.path] == [trial.subnet for trial in whole.path]
    assert cost(whole.path[-1].subnet) <= min(targets)


class Late:
    """An executor of two workers, the later trial of which ends first."""

    capacity = 2

    def start(self, evaluate, seed):
        self.evaluate, self.seed, self.running = evaluate, seed, []

    def submit(self, trial):
        self.running.append(trial)

    def wait(self):
        return [evaluate_trial(self.evaluate, self.running.pop(), self.seed)]

    def close(self):
        pass


def test_two_workers_find_the_same_path():
    alone, both = (GreedySlimming(cost=cost, targets=20) for _ in range(2))
    run(SPACE, lambda s: s['a'] + s['b'] / 7, strategy=alone, trials=100)
    run(SPACE, lambda s: s['a'] + s['b'] / 7, strategy=both, trials=100, executor=Late())
    assert [trial.subnet for trial in both.path] == [trial.subnet for trial in alone.path]


def test_bad_arguments():
    with pytest.raises(ConfigError, match='`cost`'):
        GreedySlimming(targets=3)
    for targets in (None, [], -1, ['many']):
        with pytest.raises(ConfigError, match='`targets`'):
            GreedySlimming(cost=cost, targets=targets)
    with pytest.raises(BudgetError, match='the smallest one costs 20'):
        run(SPACE, cost, strategy=GreedySlimming(cost=cost, targets=19), trials=3)
    assert build_strategy(GreedySlimming(cost=cost, targets=19)).name == 'greedy'
    assert GreedySlimming(cost=cost, targets=30).bind(SPACE).ask(0, np.random.default_rng(0))['b'] == 30


def test_bounds_of_constraints_are_refused():
    bound = Constraint('cost', cost, high=40)
    with pytest.raises(ConfigError, match='`targets`'):
        run(SPACE, cost, strategy=GreedySlimming(cost=cost, targets=40), constraints=[bound], trials=5)
