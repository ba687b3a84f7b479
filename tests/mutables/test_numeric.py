from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import SpaceError, SubnetError
from strop.mutables import Guard, Numeric, OneOf, Space, domain_from_dict

LAWS = [
    Numeric(law='uniform', arguments=(-1.0, 3.0)),
    Numeric(law='quniform', arguments=(0.05, 1.0, 0.1)),
    Numeric(law='loguniform', arguments=(1e-5, 1e-1)),
    Numeric(law='qloguniform', arguments=(1, 1000, 5)),
    Numeric(law='normal', arguments=(2.0, 0.5)),
    Numeric(law='qnormal', arguments=(0.0, 10.0, 2.0)),
    Numeric(law='lognormal', arguments=(0.0, 1.0)),
    Numeric(law='qlognormal', arguments=(1.0, 1.0, 0.5)),
    Numeric(law='randint', arguments=(-3, 4)),
    Numeric(law='randint', arguments=(0, 10**9)),
]
FINITE = [law for law in LAWS if not math.isinf(law.size)]


@pytest.mark.parametrize('domain', LAWS, ids=lambda domain: domain.law)
class TestEveryLaw:
    def test_draws_are_values_that_are_read_again(self, domain: Numeric) -> None:
        rng = np.random.default_rng(0)
        for _ in range(200):
            picks = domain.sample(rng)
            assert domain.parse(domain.format(picks)) == picks
            assert domain.parse(json.loads(json.dumps(domain.format(picks)))) == picks

    def test_codes_of_every_gene_are_values_and_come_back(self, domain: Numeric) -> None:
        size = domain.genes[0]
        for gene in {0, 1, size // 3, size // 2, size - 2, size - 1}:
            picks = domain.decode((gene,))
            assert domain.parse(picks[0]) == picks
            if domain.step is None or not math.isinf(domain.size):
                assert abs(domain.encode(picks)[0] - gene) <= 1
            assert domain.decode(domain.encode(picks)) == pytest.approx(picks, rel=1e-6)

    def test_neighbours_are_other_values_on_both_sides(self, domain: Numeric) -> None:
        picks = domain.first()
        others = list(domain.neighbours(picks))
        assert picks not in others
        assert len(set(others)) == len(others) >= 2
        assert any(other < picks for other in others)
        assert any(other > picks for other in others)
        assert all(domain.parse(other[0]) == other for other in others)

    def test_it_goes_through_json(self, domain: Numeric) -> None:
        assert domain_from_dict(json.loads(json.dumps(domain.to_dict()))) == domain

    def test_a_mutation_is_another_value(self, domain: Numeric) -> None:
        rng = np.random.default_rng(1)
        assert all(domain.mutate(domain.first(), rng) != domain.first() for _ in range(20))

    def test_extremes_enclose_the_draws(self, domain: Numeric) -> None:
        rng = np.random.default_rng(2)
        drawn = [domain.sample(rng)[0] for _ in range(100)]
        assert domain.extreme(False)[0] <= min(drawn)
        assert max(drawn) <= domain.extreme(True)[0]


@pytest.mark.parametrize('domain', [law for law in FINITE if law.size < 1000], ids=lambda domain: domain.law)
def test_the_grid_has_every_value_once(domain: Numeric) -> None:
    grid = list(domain.grid())
    assert len(set(grid)) == len(grid) == domain.size
    assert grid == sorted(grid)
    rng = np.random.default_rng(0)
    assert {domain.sample(rng) for _ in range(5000)} <= set(grid)
    assert [domain.encode(picks) for picks in grid] == [(index,) for index in range(domain.size)]


def test_values_by_hand() -> None:
    assert [value for (value,) in Numeric(law='randint', arguments=(2, 5)).grid()] == [2, 3, 4]
    # Rounded to multiples of 0.1, then kept within the bounds: 0.05 and 0.95 themselves are values, as NNI has it.
    values = [value for (value,) in Numeric(law='quniform', arguments=(0.06, 0.34, 0.1)).grid()]
    assert values == pytest.approx([0.1, 0.2, 0.3])
    assert Numeric(law='loguniform', arguments=(1e-4, 1e-2)).at(0.5) == pytest.approx(1e-3)
    assert Numeric(law='lognormal', arguments=(1.0, 2.0)).at(0.5) == pytest.approx(math.e)
    assert Numeric(law='normal', arguments=(1.0, 2.0)).at(0.8413447460685429) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ('domain', 'mean', 'deviation', 'log'),
    [
        (LAWS[0], 1.0, 4 / math.sqrt(12), False),
        (LAWS[2], math.log(1e-3), math.log(1e4) / math.sqrt(12), True),
        (LAWS[4], 2.0, 0.5, False),
        (LAWS[6], 0.0, 1.0, True),
        (LAWS[8], 0.0, 2.0, False),
    ],
)
def test_the_moments_of_the_draws(domain: Numeric, mean: float, deviation: float, log: bool) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([domain.sample(rng)[0] for _ in range(20_000)], dtype=np.float64)
    drawn = np.log(drawn) if log else drawn
    assert drawn.mean() == pytest.approx(mean, abs=4 * deviation / math.sqrt(len(drawn)))
    assert drawn.std() == pytest.approx(deviation, rel=0.03)


@given(st.floats(-10, 10), st.floats(0.01, 20), st.floats(0.01, 3))
def test_steps_of_any_size_keep_to_the_bounds(low: float, width: float, step: float) -> None:
    domain = Numeric(law='quniform', arguments=(low, low + width, step))
    values = [value for (value,) in itertools.islice(domain.grid(), 5000)]
    assert all(low <= value <= low + width for value in values)
    assert all(a < b for a, b in itertools.pairwise(values))
    assert all(domain.parse(value) == (value,) for value in values[:50])


@pytest.mark.parametrize(
    ('law', 'arguments', 'text'),
    [
        ('unifrm', (0, 1), "Did you mean 'uniform'"),
        ('uniform', (0,), r'takes the numbers \[low, high\]'),
        ('uniform', 3, r'takes the numbers \[low, high\]'),
        ('uniform', (1, 0), 'low <= high, but got 1 and 0'),
        ('uniform', ('a', 1), 'takes the numbers'),
        ('uniform', (0, float('inf')), 'takes the numbers'),
        ('loguniform', (0, 1), 'low > 0'),
        ('normal', (0, 0), 'sigma > 0'),
        ('quniform', (0, 1, 0), 'q > 0'),
        ('randint', (3, 3), 'whole numbers lower < upper'),
        ('randint', (0.5, 3), 'whole numbers lower < upper'),
    ],
)
def test_a_law_that_is_none(law: str, arguments: object, text: str) -> None:
    with pytest.raises(SpaceError, match=text):
        Numeric(law=law, arguments=arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        ('0.1', "finite number .* but got '0.1'"),
        (True, 'finite number'),
        (None, 'finite number'),
        (float('nan'), 'finite number'),
        ([0.1, 0.2], 'finite number'),
        (torch.tensor([True, False]), 'finite number'),
        (1.5, r'out of the bounds of quniform\[0, 1, 0.25\]: 0 to 1'),
        (0.3, r'the nearest is 0.25'),
    ],
)
def test_a_value_that_does_not_fit(value: object, text: str) -> None:
    with pytest.raises(SubnetError, match=text):
        Numeric(law='quniform', arguments=(0, 1, 0.25)).parse(value)


def test_numbers_of_every_kind_are_read() -> None:
    domain = Numeric(law='quniform', arguments=(0, 1, 0.25))
    for value in (0.5, [0.5], np.float32(0.5), np.array(0.5), torch.tensor(0.5), {'chosen': 0.5}, 0.5 + 1e-13):
        assert domain.parse(value) == (0.5,)


def test_a_space_of_decisions_and_numbers() -> None:
    space = Space(
        {'op': OneOf(('adam', 'sgd')), 'lr': Numeric(law='loguniform', arguments=(1e-4, 1)), 'beta': LAWS[0]},
        {'beta': ((Guard.on('op', [0]),),)},
    )
    with pytest.raises(SpaceError, match="infinitely many subnets: 'lr', 'beta'"):
        space.count()
    assert repr(space) == 'Space(3 decisions, uncounted subnets)'
    assert [space.first()[key] for key in ('lr', 'beta')] == pytest.approx([0.01, 1.0])
    assert dict(space.subnet({'op': 'sgd', 'lr': 0.5, 'beta': 2.0})) == {'op': 'sgd', 'lr': 0.5}
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    with pytest.raises(SubnetError, match='has no mask'):
        space.first().masks()
    with pytest.raises(SpaceError, match="depends on alternative 0 of 'lr', which has 0"):
        Space({'lr': LAWS[2], 'op': OneOf((1, 2))}, {'op': ((Guard.on('lr', [0]),),)})
    with pytest.raises(SpaceError, match='cannot be enumerated'):
        next(Space({'lr': LAWS[2]}).grid())
