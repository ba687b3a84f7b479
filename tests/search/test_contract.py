"""What every strategy owes, whatever its idea: each registered one, and Optuna's samplers, over the same table of demands."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strop.errors import BudgetError, ConfigError, MissingDependencyError, SpaceError
from strop.mutables import AnyOf, Guard, KOf, Numeric, OneOf, Ordered, Space, Subnet
from strop.search import STRATEGIES, Constraint, OptunaStrategy, Strategy, build_strategy, pareto_front, run, sampler_names

# CMA-ES needs `cmaes`; PartialFixedSampler cannot be built without a sampler to wrap.
SAMPLERS = ['TPESampler', 'NSGAIIISampler', 'QMCSampler', 'BruteForceSampler', 'GridSampler', 'RandomSampler']
ALL = [*STRATEGIES, *SAMPLERS]


def nested() -> Space:
    """Every kind of domain, and decisions that depend on others: 1,440 subnets."""
    return Space(
        {
            'op': OneOf(('skip', 'conv', 'mix')),
            'kernel': Ordered((3, 5, 7)),
            'branches': KOf(('a', 'b', 'c', 'd'), k=2),
            'extras': AnyOf(('se', 'bn', 'act')),
            'deep': OneOf((True, False)),
            'width': Ordered.integers(8, 16, 4),
        },
        {'kernel': ((Guard.on('op', [1, 2]),),), 'deep': ((Guard.on('op', [2]), Guard.on('kernel', [1, 2])),)},
    )


def value(subnet: Subnet) -> float:
    """A score with one best subnet (17.0): additive, with one interaction."""
    score = sum(
        subnet.space[key].encode(choice)[0] for key, choice in subnet.choices.items() if key not in ('branches', 'extras')
    )
    score += len(subnet['extras']) + sum(subnet.choices['branches'])
    return float(score + 2 * (subnet['op'] == 'mix' and subnet['kernel'] == 5))


def fast(name: str) -> Strategy:
    return build_strategy({'type': name, 'population': 12} if name in ('nsga2', 'regularized') else name)


def small() -> Space:
    return Space({'a': OneOf((0, 1, 2)), 'b': OneOf((0, 1)), 'c': AnyOf((1, 2))}, {'b': ((Guard.on('a', [1, 2]),),)})


@pytest.mark.parametrize('name', ALL)
class TestEveryStrategy:
    def test_exhausts_a_small_space_once(self, name: str) -> None:
        space = small()
        result = run(space, lambda subnet: subnet['a'] + len(subnet['c']), strategy=name, trials=60)
        assert result.stopped == 'exhausted'
        assert len(result.trials) == space.count() == 20
        assert {trial.subnet for trial in result.trials} == set(space.grid())
        assert result.best.values == {'score': 4.0}

    def test_is_deterministic_and_the_seed_matters(self, name: str) -> None:
        def sequence(seed: int) -> list[Subnet]:
            return [trial.subnet for trial in run(nested(), value, strategy=fast(name), trials=30, seed=seed).trials]

        first = sequence(0)
        assert first == sequence(0)
        assert len(set(first)) == 30
        if name not in ('grid', 'GridSampler', 'BruteForceSampler', 'QMCSampler'):
            assert first != sequence(1)

    def test_one_instance_serves_two_searches(self, name: str) -> None:
        strategy = fast(name)
        first = run(nested(), value, strategy=strategy, trials=20)
        second = run(nested(), value, strategy=strategy, trials=20)
        assert [trial.subnet for trial in first.trials] == [trial.subnet for trial in second.trials]

    def test_constraints_hold_for_every_proposal(self, name: str) -> None:
        bounds = [Constraint('value', value, low=5, high=8), Constraint('width', lambda subnet: subnet['width'], high=12)]
        result = run(nested(), value, strategy=fast(name), trials=40, constraints=bounds)
        assert len(result.trials) == 40
        for trial in result.trials:
            assert 5 <= value(trial.subnet) <= 8
            assert trial.subnet['width'] <= 12
            assert trial.info == {'value': value(trial.subnet), 'width': trial.subnet['width']}

    def test_several_objectives_and_failures(self, name: str) -> None:
        def evaluate(subnet: Subnet) -> dict[str, float]:
            if subnet['width'] == 16:
                raise RuntimeError('no memory for this width')
            return {'score': value(subnet), 'cost': float(len(subnet['extras']) + subnet['width'])}

        result = run(
            nested(), evaluate, strategy=fast(name), trials=40, objectives={'score': 'maximize', 'cost': 'minimize'}, seed=3
        )
        assert len(result.trials) == 40
        assert all(trial.complete == (trial.subnet['width'] != 16) for trial in result.trials)
        assert all('no memory' in str(trial.error) for trial in result.failed)
        for trial in result.front:
            assert trial.values is not None
            for other in result.complete:
                assert other.values is not None
                better = other.values['score'] >= trial.values['score'] and other.values['cost'] <= trial.values['cost']
                assert not better or other.values == trial.values

    def test_an_impossible_budget_states_the_nearest_value(self, name: str) -> None:
        size = Constraint('size', lambda subnet: 100.0 + value(subnet), high=50)
        with pytest.raises(BudgetError, match=r'smallest size reached is 101 \(size <= 50 was asked\).*"op": "skip"'):
            run(nested(), value, strategy=name, constraints=[size])

    def test_initial_subnets_come_first(self, name: str) -> None:
        space = nested()
        first = [space.first(), space.extreme()]
        strategy = build_strategy({'type': name, 'initial': [dict(subnet) for subnet in first]})
        result = run(space, value, strategy=strategy, trials=6)
        assert [trial.subnet for trial in result.trials[:2]] == first
        assert len({trial.subnet for trial in result.trials}) == 6

    @pytest.mark.parametrize('fails', [False, True])
    def test_replay_equals_going_on(self, name: str, fails: bool, tmp_path: object) -> None:
        def evaluate(subnet: Subnet) -> float:
            if fails and subnet['width'] == 12:
                raise RuntimeError('no memory for this width')
            return value(subnet)

        store = f'{tmp_path}/search.journal'
        whole = run(nested(), evaluate, strategy=fast(name), trials=45, seed=5)
        for stop in (1, 13, 29, 45):
            parts = run(nested(), evaluate, strategy=fast(name), trials=stop, seed=5, store=store)
        assert [(trial.subnet, trial.values) for trial in parts.trials] == [
            (trial.subnet, trial.values) for trial in whole.trials
        ]
        assert bool(whole.failed) == fails


@pytest.mark.parametrize('name', ['default', 'regularized', 'spos', 'local', 'policy', 'TPESampler', 'nsga2'])
def test_finds_the_optimum_of_a_small_space(name: str) -> None:
    space = Space({f'op{place}': OneOf((0, 1, 2)) for place in range(4)})
    for seed in range(3):
        result = run(space, lambda subnet: float(sum(subnet.values())), strategy=fast(name), trials=60, seed=seed)
        assert result.best.values == {'score': 8.0}


@pytest.mark.parametrize('name', ['default', 'regularized', 'local', 'policy'])
def test_better_than_random_on_a_larger_space(name: str) -> None:
    space = Space({f'op{place}': OneOf(tuple(range(5))) for place in range(12)})

    def evaluate(subnet: Subnet) -> float:
        values = list(subnet.values())
        return float(sum(values) - sum(abs(a - b) for a, b in itertools.pairwise(values)) / 2)

    def reached(strategy: str) -> float:
        return float(
            np.mean([run(space, evaluate, strategy=fast(strategy), trials=120, seed=s).best.values['score'] for s in range(2)])
        )

    assert reached(name) > reached('random') + 2


def numbers() -> Space:
    return Space(
        {
            'lr': Numeric(law='loguniform', arguments=(1e-4, 1e-1)),
            'decay': Numeric(law='qnormal', arguments=(0.0, 1.0, 0.5)),
            'size': Numeric(law='randint', arguments=(3, 9)),
            'op': OneOf(('a', 'b')),
            'beta': Numeric(law='uniform', arguments=(0.0, 1.0)),
        },
        {'beta': ((Guard.on('op', [1]),),)},
    )


def bowl(subnet: Subnet) -> float:
    beta = 1 - abs(subnet['beta'] - 0.5) if 'beta' in subnet else 0.0
    return float(-((np.log10(subnet['lr']) + 2) ** 2) - abs(subnet['decay'] - 1) + subnet['size'] / 2 + beta)


@pytest.mark.parametrize('name', [name for name in ALL if name not in ('grid', 'GridSampler', 'BruteForceSampler')])
def test_numbers_beside_decisions(name: str, tmp_path: object) -> None:
    store = f'{tmp_path}/search.journal'
    whole = run(numbers(), bowl, strategy=fast(name), trials=25, seed=2)
    for stop in (7, 25):
        parts = run(numbers(), bowl, strategy=fast(name), trials=stop, seed=2, store=store)
    assert [(trial.subnet, trial.values) for trial in parts.trials] == [(trial.subnet, trial.values) for trial in whole.trials]
    assert len({trial.subnet for trial in whole.trials}) == 25
    assert {3, 8} & {trial.subnet['size'] for trial in whole.trials}


@pytest.mark.parametrize(('name', 'trials'), [('TPESampler', 40), ('GPSampler', 20)])
@pytest.mark.parametrize('seed', range(3))
def test_numbers_of_samplers_past_their_random_start(name: str, trials: int, seed: int, tmp_path: object) -> None:
    space = Space({key: Numeric(law='uniform', arguments=(0.0, 1.0)) for key in ('a', 'b')})

    def hill(subnet: Subnet) -> float:
        return -((subnet['a'] - 0.3) ** 2) - (subnet['b'] - 0.7) ** 2

    whole = run(space, hill, strategy=name, trials=trials, seed=seed)
    for stop in (trials - 8, trials - 3, trials):
        parts = run(space, hill, strategy=name, trials=stop, seed=seed, store=f'{tmp_path}/search.journal')
    assert [trial.subnet for trial in parts.trials] == [trial.subnet for trial in whole.trials]


def test_the_default_finds_the_best_numbers() -> None:
    assert run(numbers(), bowl, trials=80).best.values['score'] > 4.9  # of 5.0


@pytest.mark.parametrize(('name', 'text'), [('grid', 'cannot be enumerated'), ('BruteForceSampler', 'lists every value')])
def test_strategies_that_list_refuse_what_has_no_list(name: str, text: str) -> None:
    with pytest.raises((ConfigError, SpaceError), match=text):
        run(numbers(), bowl, strategy=name, trials=3)


def test_grid_gives_the_exact_pareto_front() -> None:
    space = nested()

    def evaluate(subnet: Subnet) -> dict[str, float]:
        return {'score': value(subnet), 'cost': float(subnet['width'] * (1 + len(subnet['extras'])))}

    objectives = {'score': 'maximize', 'cost': 'minimize'}
    result = run(space, evaluate, strategy='grid', trials=10_000, objectives=objectives)
    points = {(trial.values['score'], trial.values['cost']) for trial in result.complete if trial.values}
    brute = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)}
    assert len(result.trials) == space.count()
    assert {(trial.values['score'], trial.values['cost']) for trial in result.front if trial.values} == brute
    assert pareto_front(result.trials, objectives) == result.front


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    domains: dict[str, object] = {}
    conditions: dict[str, object] = {}
    for place in range(draw(st.integers(1, 5))):
        key, labels = f'k{place}', tuple(range(draw(st.integers(1, 4))))
        kind = draw(st.sampled_from(['one', 'ordered', 'kof', 'any']))
        if kind == 'kof':
            domains[key] = KOf(labels, k=draw(st.integers(0, len(labels))))
        else:
            domains[key] = {'one': OneOf, 'ordered': Ordered, 'any': AnyOf}[kind](labels)
        if place and draw(st.booleans()):
            parent = f'k{draw(st.integers(0, place - 1))}'
            conditions[key] = ((Guard.on(parent, [draw(st.integers(0, len(domains[parent]) - 1))]),),)  # type: ignore[arg-type]
    return Space(domains, conditions)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    space=spaces(),
    name=st.sampled_from(['default', 'random', 'spos', 'regularized', 'local', 'policy', 'TPESampler', 'nsga2']),
    data=st.data(),
)
def test_random_spaces_are_searched_within_bounds(space: Space, name: str, data: st.DataObject) -> None:
    def size(subnet: Subnet) -> float:
        return float(sum(sum(choice) for choice in subnet.choices.values()) + len(subnet))

    every = list(space.grid())
    high = data.draw(st.sampled_from(sorted({size(subnet) for subnet in every})))
    feasible = {subnet for subnet in every if size(subnet) <= high}
    result = run(space, size, strategy=name, trials=40, constraints=[Constraint('size', size, high=high)], seed=1)
    proposed = [trial.subnet for trial in result.trials]
    assert len(set(proposed)) == len(proposed)
    assert set(proposed) <= feasible
    assert len(proposed) == min(40, len(feasible))


def test_every_sampler_of_optuna_is_reachable() -> None:
    buildable = set(SAMPLERS) | {'NSGAIISampler', 'GPSampler', 'CmaEsSampler'}
    assert set(sampler_names()) - buildable == {'PartialFixedSampler'}
    space = small()
    for name in ('GPSampler', 'CmaEsSampler'):
        try:
            result = run(space, lambda subnet: subnet['a'], strategy=name, trials=12)
        except MissingDependencyError as error:
            assert 'strop[samplers]' in str(error)  # noqa: PT017
        else:
            assert len(result.complete) == 12


def test_a_sampler_may_be_a_function_of_a_seed() -> None:
    import optuna

    def make(seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=5)

    assert run(small(), lambda subnet: subnet['a'], strategy=OptunaStrategy(make), trials=20).best.values == {'score': 2.0}


@pytest.mark.parametrize(
    ('given_as', 'message'),
    [
        ('regularised', "Did you mean 'regularized'"),
        ('TPSampler', "Did you mean 'TPESampler'"),
        ({'type': 'regularized', 'poplation': 3}, 'poplation'),
        ({'type': 'TPESampler', 'n_startup': 3}, "Did you mean 'n_startup_trials'"),
        ({'type': 'PartialFixedSampler'}, 'cannot be built'),
        ({'type': 'regularized', 'population': 3, 'sample_size': 5}, 'sample_size <= population'),
        ({'type': 'spos', 'mutations': 40, 'crossovers': 40}, 'mutations'),
        ({'type': 'default', 'first': 1}, 'first >= 2'),
        (3, 'must be a name'),
    ],
)
def test_a_strategy_that_does_not_exist(given_as: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(small(), lambda subnet: 1.0, strategy=given_as)  # type: ignore[arg-type]
