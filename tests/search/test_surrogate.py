from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from strop.mutables import AnyOf, Guard, KOf, OneOf, Ordered, Space, Subnet
from strop.search import SurrogateSearch, run
from strop.search.surrogate import _Coding, _normal_scores, _Process

DATA = Path(__file__).resolve().parents[2] / '..' / 'shared' / 'data'
SPACE = Space(
    {
        'op': OneOf(('a', 'b')),
        'width': Ordered((1, 2, 3)),
        'pair': KOf((1, 2, 3, 4), k=2),
        'any': AnyOf((1, 2)),
        'x': OneOf((1, 2)),
    },
    {'x': ((Guard.on('op', [1]),),)},
)


def test_distances_by_hand() -> None:
    coding = _Coding(SPACE)

    def row(**choices: object) -> np.ndarray:
        return coding.row(SPACE.subnet({'op': 'a', 'width': 1, 'pair': [1, 2], 'any': [], **choices}))[None]

    start = row()
    assert coding.distance(start, start).item() == 0
    assert coding.distance(start, row(width=2)).item() == pytest.approx((0.5 + 0.5 / 3) / 5)
    assert coding.distance(start, row(width=3)).item() == pytest.approx((0.5 + 1.0 / 3) / 5)
    assert coding.distance(start, row(pair=[1, 3])).item() == pytest.approx(0.5 / 5)
    assert coding.distance(start, row(pair=[3, 4])).item() == pytest.approx(1 / 5)
    assert coding.distance(start, row(any=[2])).item() == pytest.approx(0.5 / 5)
    assert coding.distance(start, row(op='b', x=1)).item() == pytest.approx(2 / 5)
    rows = np.concatenate([coding.row(subnet)[None] for subnet in SPACE.grid()])
    assert len(np.unique(rows, axis=0)) == SPACE.count()
    for additive in (0.0, 0.9):
        kernel = (1 - additive) * np.exp(-4 * coding.distance(rows, rows)) + additive * (1 - coding.distance(rows, rows))
        assert np.linalg.eigvalsh(kernel).min() > -1e-9


def test_the_process_against_the_textbook() -> None:
    rng = np.random.default_rng(0)
    points, new = rng.integers(3, size=(12, 6)), rng.integers(3, size=(5, 6))
    scores = rng.standard_normal(12)

    def distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (left[:, None] != right[None]).mean(-1)

    def kernel(gap: np.ndarray) -> np.ndarray:
        return 0.5 * np.exp(-4 * gap) + 0.5 * (1 - gap)

    noisy = kernel(distance(points, points)) + (0.1 + 1e-6) * np.eye(12)
    centred = scores - scores.mean()
    amplitude = centred @ np.linalg.inv(noisy) @ centred / 12
    cross = kernel(distance(new, points))
    mean = cross @ np.linalg.inv(noisy) @ centred + scores.mean()
    variance = amplitude * (1 - np.einsum('ij,jk,ik->i', cross, np.linalg.inv(noisy), cross))
    process = _Process(distance(points, points), scores, 4.0, 0.5, 0.1)
    got = process.predict(distance(new, points))
    np.testing.assert_allclose(got[0], mean, rtol=1e-9)
    np.testing.assert_allclose(got[1], np.sqrt(variance), rtol=1e-9)
    logdet = np.linalg.slogdet(amplitude * noisy)[1]
    full = -0.5 * (centred @ np.linalg.inv(amplitude * noisy) @ centred + logdet)
    assert process.likelihood == pytest.approx(full + 6)


def test_normal_scores_share_ties() -> None:
    np.testing.assert_allclose(_normal_scores(np.array([3.0, 1.0, 2.0])), [0.967422, 0 - 0.967422, 0], atol=1e-6)
    assert _normal_scores(np.ones(4)).tolist() == [0.0] * 4


def test_a_constant_score_and_a_climb_that_ends() -> None:
    space = Space({f'op{place}': OneOf((0, 1, 2)) for place in range(5)})
    strategy = SurrogateSearch(patience=5)
    assert len(run(space, lambda subnet: 1.0, strategy=strategy, trials=100).trials) == 100
    assert strategy._start > 0


def test_many_trials_are_fitted_to_some() -> None:
    space = Space({f'op{place}': OneOf(tuple(range(4))) for place in range(8)})
    strategy = SurrogateSearch(points=20)
    result = run(space, lambda subnet: float(sum(subnet.values())), strategy=strategy, trials=80)
    assert result.best.values == {'score': 24.0}
    kept = strategy._kept(strategy._scores(80, np.random.default_rng(0)))
    assert len(kept) == 20
    assert {78, 79} <= set(kept.tolist())


def test_several_objectives_spread_over_the_front() -> None:
    space = Space({f'op{place}': OneOf((0, 1, 2)) for place in range(6)})

    def evaluate(subnet: Subnet) -> dict[str, float]:
        values = list(subnet.values())
        return {'gain': float(sum(values)), 'cost': 1000.0 * sum(value * (place + 1) for place, value in enumerate(values))}

    objectives = {'gain': 'maximize', 'cost': 'minimize'}
    whole = run(space, evaluate, strategy='grid', trials=729, objectives=objectives)
    exact = {tuple((trial.values or {}).values()) for trial in whole.front}

    def found(strategy: str) -> int:
        results = [run(space, evaluate, strategy=strategy, trials=120, objectives=objectives, seed=seed) for seed in range(2)]
        return sum(len({tuple((trial.values or {}).values()) for trial in result.front} & exact) for result in results)

    assert found('default') > found('random') + len(exact) // 2


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason='the table is not beside this checkout: ../shared/data')
def test_on_nas_bench_macro() -> None:
    with gzip.open(DATA / 'nas_bench_macro_cifar10.json.gz') as stream:
        table = {code: entry['mean_acc'] for code, entry in json.load(stream).items()}
    space = Space({f'layer{place}': OneOf((0, 1, 2)) for place in range(8)})

    def accuracy(subnet: Subnet) -> float:
        return float(table[''.join(map(str, subnet.values()))])

    def best(strategy: str) -> float:
        results = [run(space, accuracy, strategy=strategy, trials=50, seed=seed) for seed in range(5)]
        return float(np.mean([(result.best.values or {})['score'] for result in results]))

    assert best('default') > 93.07 > best('random')
