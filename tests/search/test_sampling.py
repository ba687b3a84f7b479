from __future__ import annotations

import pytest

from strop.errors import BudgetError
from strop.mutables import OneOf, Space
from strop.search import Constraint, run

SPACE = Space({'a': OneOf(tuple(range(10))), 'b': OneOf(tuple(range(10)))})


def test_random_is_uniform_over_the_feasible_when_rejection_suffices() -> None:
    counts = dict.fromkeys(range(10), 0)
    bounds = [Constraint('a', lambda subnet: subnet['a'], high=4)]
    for seed in range(40):
        result = run(
            SPACE,
            lambda subnet: 1.0,
            strategy='random',
            trials=20,
            seed=seed,
            constraints=bounds,
        )
        for trial in result.trials:
            counts[trial.subnet['a']] += 1
    assert all(counts[value] == 0 for value in range(5, 10))
    # 800 draws over 5 values: 160 expected of each, standard deviation below 11.3.
    assert all(abs(counts[value] - 160) < 45 for value in range(5))


def test_grid_follows_the_space_and_resumes(tmp_path: object) -> None:
    store = f'{tmp_path}/search.journal'
    run(SPACE, lambda subnet: 1.0, strategy='grid', trials=33, store=store)
    result = run(SPACE, lambda subnet: 1.0, strategy='grid', trials=200, store=store)
    assert [trial.subnet for trial in result.trials] == list(SPACE.grid())


def test_grid_without_a_feasible_subnet() -> None:
    with pytest.raises(BudgetError, match='smallest sum reached is 0'):
        run(SPACE, lambda subnet: 1.0, strategy='grid', constraints=[Constraint('sum', lambda s: s['a'] + s['b'], high=-1)])
