from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import SpaceError, SubnetError
from strop.mutables import AnyOf, KOf, OneOf, Ordered, Weights, domain_from_dict

from .drawn import domains

OPS = OneOf(('conv', 'pool', 'skip'))
LAYERS = OneOf(('conv', 'pool', 'skip'), mixable=True)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


class TestParse:
    @pytest.mark.parametrize(
        'form',
        [
            'pool', 1, [1], ['pool'], ('pool',), [False, True, False], np.array([False, True, False]), np.array([0, 1, 0]),
            np.int64(1), np.str_('pool'), np.array([0.0, 1.0, 0.0]), torch.tensor([False, True, False]),
            torch.tensor([0, 1, 0]),
            torch.tensor([0.0, 1.0, 0.0]), [0.0, 1.0, 0.0], {'chosen': 'pool', 'meta': {}}, {'_value': 'pool', '_idx': 1},
            {'weights': [0, 1, 0]},
        ],
    )  # fmt: skip
    def test_every_form_of_one_choice(self, form: object) -> None:
        assert OPS.parse(form) == (1,)

    @pytest.mark.parametrize(
        'form',
        [
            ['conv', 'skip'], [2, 0], ['skip', 0], [True, False, True], torch.tensor([1, 0, 1], dtype=torch.uint8),
            np.array([1.0, 0.0, 1.0]), {'_value': ['conv', 'skip'], '_idx': [0, 2]}, {'chosen': ['conv', 'skip']},
        ],
    )  # fmt: skip
    def test_every_form_of_several(self, form: object) -> None:
        assert AnyOf(OPS.labels).parse(form) == (0, 2)
        assert KOf(OPS.labels, k=2).parse(form) == (0, 2)
        assert LAYERS.parse(form) == Weights((1.0, 0.0, 1.0))
        if not isinstance(form, np.ndarray):  # floats are weights, which an input choice of one may have, too
            with pytest.raises(SubnetError, match='Exactly one alternative'):
                OPS.parse(form)

    @pytest.mark.parametrize('dtype', DTYPES)
    def test_float_masks_of_every_precision_are_weights(self, dtype: torch.dtype) -> None:
        assert LAYERS.parse(torch.tensor([0.5, 0.25, 0.0], dtype=dtype)) == Weights((0.5, 0.25, 0.0))
        assert LAYERS.parse(torch.tensor([0.0, 0.0, 1.0], dtype=dtype)) == (2,)

    @pytest.mark.parametrize(
        ('form', 'text'),
        [
            ('conf', "Did you mean 'conv'"),
            (3, r'0\.\.2, but got 3'),
            (-1, r'0\.\.2, but got -1'),
            ([0, 3], r'0\.\.2, but got 3'),
            (True, 'True is none of'),
            (1.0, '1.0 is none of'),
            (None, 'None is none of'),
            ([False, True], r'shape \(3,\), but got shape \(2,\)'),
            ([True] * 4, r'but got shape \(4,\)'),
            ([0.5, 0.5], 'one number for each of 3'),
            (torch.tensor([0, 1]), r'but got shape \(2,\)'),
            (torch.tensor(1), r'but got shape \(\)'),
            (torch.ones(1, 3), r'but got shape \(1, 3\)'),
            (torch.tensor([0, 1, 2]), 'Give indices as a list'),
            (torch.tensor([-1, 1, 0]), 'Give indices as a list'),
            (torch.ones(3, dtype=torch.complex64), 'dtype torch.complex64'),
            (np.array(['a', 'b', 'c']), 'booleans, 0/1 integers or floats'),
            ([float('nan'), 1.0, 0.0], 'finite'),
            (torch.tensor([float('inf'), 0, 0]), 'finite'),
            (['conv', 'conv'], 'names one twice'),
            (['conv', 0], 'names one twice'),
            ([], 'Exactly one'),
            (torch.zeros(3, dtype=torch.bool), 'Exactly one'),
            ({'weights': [True, False, False]}, 'list of numbers'),
            ({'weights': 3}, 'list of numbers'),
            ({'_idx': 3}, '`_idx` must hold'),
            ({'_idx': True}, '`_idx` must hold'),
            ({'_idx': '1'}, '`_idx` must hold'),
            ({'_idex': [1]}, "must have the key 'weights', 'chosen' or '_idx'"),
            (object(), 'is none of the alternatives'),
        ],
    )
    def test_refusals(self, form: object, text: str) -> None:
        with pytest.raises(SubnetError, match=text):
            OPS.parse(form)

    def test_numbers_as_labels_are_values_never_positions(self) -> None:
        domain = Ordered((4, 2, 0))
        assert domain.parse(0) == (2,)
        assert domain.parse('4') == (0,)
        with pytest.raises(SubnetError, match='1 is none of'):
            domain.parse(1)

    def test_a_mask_of_zeros(self) -> None:
        assert AnyOf(('a', 'b')).parse([False, False]) == AnyOf(('a', 'b')).parse([]) == ()
        assert KOf(('a', 'b'), k=0).parse(torch.zeros(2)) == ()
        assert LAYERS.parse(np.zeros(3, dtype=bool)) == Weights((0.0, 0.0, 0.0))


class TestWeights:
    def test_they_are_never_taken_for_indices(self) -> None:
        assert Weights((0.0, 1.0)) != (0, 1)
        assert Weights((0.0, 1.0)) != (0, 1)
        assert len({Weights((0.0,)), (0,), Weights((0.0,))}) == 2
        assert Weights((0.5, 0.5)) == Weights((0.5, 0.5))
        assert Weights((0.5, 0.5)) == Weights((0.5, 0.5))


class TestLabels:
    @pytest.mark.parametrize('labels', [(), ('a', 'a'), (1, 1.0), ((1, 2), [1, 2]), (float('inf'),), (object(),)])
    def test_wrong_labels(self, labels: tuple[object, ...]) -> None:
        with pytest.raises(SpaceError):
            OneOf(labels)

    def test_costs_and_k_are_checked(self) -> None:
        with pytest.raises(SpaceError, match='one number for each of 2'):
            OneOf(('a', 'b'), costs=(1.0,))
        with pytest.raises(SpaceError, match=r'0\.\.2'):
            KOf(('a', 'b'), k=3)

    def test_unknown_kind(self) -> None:
        with pytest.raises(SpaceError, match="Did you mean 'one_of'"):
            domain_from_dict({'kind': 'oneof', 'labels': ['a']})


class TestExtremes:
    def test_by_cost(self) -> None:
        domain = OneOf(('big', 'none', 'small'), costs=(9.0, 0.0, 1.0))
        assert (domain.extreme(True), domain.extreme(False)) == ((0,), (1,))
        domain = KOf(('big', 'none', 'small'), costs=(9.0, 0.0, 1.0), k=2)
        assert (domain.extreme(True), domain.extreme(False)) == ((0, 2), (1, 2))

    def test_by_order_and_number(self) -> None:
        assert (Ordered((8, 16)).extreme(True), Ordered((8, 16)).extreme(False)) == ((1,), (0,))
        assert (AnyOf(('a', 'b')).extreme(True), AnyOf(('a', 'b')).extreme(False)) == ((0, 1), ())


@given(domains(), st.integers(0, 2**32))
def test_every_choice_survives_every_way_of_writing_it(domain: OneOf, seed: int) -> None:
    choices = list(domain.grid())
    assert len(choices) == len(set(choices)) == domain.size
    rng = np.random.default_rng(seed)
    for choice in [*choices[:8], domain.sample(rng)]:
        assert choice in choices
        assert domain.parse(domain.format(choice)) == choice
        assert domain.parse(domain.mask(choice)) == choice
        assert domain.parse(domain.mask(choice).numpy().astype(int)) == choice
        genes = domain.encode(choice)
        assert all(0 <= gene < size for gene, size in zip(genes, domain.genes, strict=True))
        assert domain.decode(genes) == choice
        near = list(domain.neighbours(choice))
        assert choice not in near
        assert set(near) <= set(choices)
        if domain.size > 1:
            assert domain.mutate(choice, rng) in set(choices) - {choice}
    assert domain_from_dict(domain.to_dict()) == domain


@given(domains())
def test_every_vector_of_genes_is_a_choice(domain: OneOf) -> None:
    choices = set(domain.grid())
    assert {domain.decode(genes) for genes in np.ndindex(*domain.genes)} == choices


def test_draws_are_uniform() -> None:
    rng = np.random.default_rng(0)
    for domain in (OneOf(('a', 'b', 'c')), KOf(('a', 'b', 'c'), k=2), AnyOf(('a', 'b'))):
        counts = dict.fromkeys(domain.grid(), 0)
        for _ in range(3000):
            counts[domain.sample(rng)] += 1
        expected = 3000 / domain.size
        # chi-square at p = 0.001 for 3 degrees of freedom
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 16.27


@pytest.mark.parametrize('given', [(0, 2), [np.int64(0), np.int64(2)], np.array([0, 2])])
def test_indices_may_be_what_numpy_and_itertools_give(given: object) -> None:
    assert KOf(('a', 'b', 'c'), k=2).parse({'_idx': given}) == (0, 2)
    assert OneOf(('a', 'b', 'c')).parse({'_idx': np.int64(1)}) == (1,)
