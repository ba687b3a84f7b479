from __future__ import annotations

import numpy as np
import pytest

from strop.errors import BindingError, ConfigError, SubnetError
from strop.mutables import OneOf, Space, Subnet
from strop.search import STRATEGIES, RandomSearch, Strategy, Trial, Tuner, build_strategy, register_strategy, run

SPACE = Space({'a': OneOf((0, 1, 2)), 'b': OneOf((0, 1, 2))})


def test_asking_before_binding() -> None:
    with pytest.raises(BindingError, match=r'strategy.bind\(space, objectives\)'):
        RandomSearch().ask(0, np.random.default_rng(0))


def test_a_strategy_of_the_user() -> None:
    class Smallest(Strategy):
        """Proposes the mutation of the smallest so far."""

        def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
            best = self.ranked()
            return self.random(rng) if not best else self.new(lambda: self.mutate(best[0].subnet, rng), rng)

    result = run(SPACE, lambda subnet: subnet['a'] + subnet['b'], strategy=Smallest(), objectives='minimize', trials=9)
    assert result.best.values == {'score': 0.0}
    assert len({trial.subnet for trial in result.trials}) == 9
    name = 'smallest-of-the-test'
    try:
        register_strategy(name)(Smallest)
        assert isinstance(build_strategy(name), Smallest)
        with pytest.raises(ConfigError, match='is taken by Smallest'):
            register_strategy(name)(RandomSearch)
    finally:
        STRATEGIES.pop(name)


def test_repetition_is_allowed_when_asked_for() -> None:
    result = run(SPACE, lambda subnet: 1.0, strategy=RandomSearch(unique=False), trials=40)
    assert len(result.trials) == 40
    assert len({trial.subnet for trial in result.trials}) <= 9


def test_a_trial_that_was_not_asked_for_is_learnt() -> None:
    strategy = RandomSearch().bind(SPACE)
    for number, subnet in enumerate(SPACE.grid()):
        if number:
            strategy.tell(Trial(number, subnet, 'complete', {'score': 1.0}))
    assert strategy.ask(9, np.random.default_rng(0)) == SPACE.first()
    assert strategy.ask(10, np.random.default_rng(0)) is None


def test_bad_initial_subnets() -> None:
    with pytest.raises(SubnetError, match="Initial subnet 1: 'b': 7 is none of"):
        run(SPACE, lambda subnet: 1.0, strategy=RandomSearch(initial=[{'a': 0, 'b': 0}, {'a': 0, 'b': 7}]))
    with pytest.raises(SubnetError, match='weighted mixture'):
        run(SPACE, lambda subnet: 1.0, strategy=RandomSearch(initial=[{'a': {'weights': [0.5, 0.5, 0.0]}, 'b': 0}]))


def test_a_huge_space_is_never_walked() -> None:
    space = Space({f'k{place}': OneOf(tuple(range(10))) for place in range(60)})
    for name in ('default', 'local', 'spos', 'random', 'grid', 'regularized'):
        assert len(run(space, lambda subnet: float(sum(subnet.values())), strategy=name, trials=15).trials) == 15


def test_a_tuner_in_place_of_a_strategy_is_told_how_it_is_given() -> None:
    with pytest.raises(ConfigError, match=r'given as TunerStrategy\(tuner\)'):
        build_strategy(Tuner())
