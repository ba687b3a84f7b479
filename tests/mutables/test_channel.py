"""Units: which widths there are, how they are written and read, which channels a ranked one keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strop.errors import ConfigError, NotDecidedError, SubnetError
from strop.mutables import (
    Attachment,
    L1MutableChannelUnit,
    OneShotMutableChannelUnit,
    SequentialMutableChannelUnit,
    SlimmableChannelUnit,
    attachments,
    domain_from_dict,
    extract,
    round_width,
    space_of,
)
from strop.registry import MODELS


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ((34, 64, 8), 32),
        ((36, 64, 8), 40),  # a half is rounded up
        ((11, 64, 8), 16),  # 8 would be less than 90 % of 11
        ((3, 64, 8), 8),
        ((1, 64, 1), 1),
        ((66, 66, 8), 66),  # all of them, though no multiple
        ((65, 66, 8), 64),
        ((3, 6, 8), 6),  # never more than there are
        ((5, 64, 8, 24), 24),
        ((11, 64, 8, 1, 0.5), 8),
    ],
)
def test_rounding_by_hand(arguments, expected):
    assert round_width(*arguments) == expected


@given(value=st.integers(1, 300), most=st.integers(1, 300), divisor=st.integers(1, 40), least=st.integers(1, 50))
def test_rounded_widths_are_within_bounds(value, most, divisor, least):
    rounded = round_width(value, most, divisor, least)
    assert 1 <= rounded <= most
    assert rounded >= min(least, most) or value >= most
    assert rounded % divisor == 0 or rounded in (most, least)


def test_sequential_widths():
    unit = SequentialMutableChannelUnit(20, divisor=8, key='conv')
    assert unit.numbers() == [8, 16, 20]
    assert SequentialMutableChannelUnit(5, key='conv').numbers() == [1, 2, 3, 4, 5]
    assert SequentialMutableChannelUnit(5, min_value=3, key='conv').numbers() == [3, 4, 5]


def test_numbers_and_ratios_are_read():
    unit = SequentialMutableChannelUnit(20, divisor=4, key='conv')
    for given_choice, expected in [(8, 8), (0.4, 8), (1.0, 20), (1, 4), (10, 12), (9, 8), (0.01, 4), (0.99, 20)]:
        unit.current_choice = given_choice
        assert unit.current_choice == expected
        assert unit() == unit.activated_channels == expected
        assert unit.current_mask.tolist() == [index < expected for index in range(20)]
    for wrong in (0, -1, 21, 0.0, 1.01, 'all', True, None):
        with pytest.raises(SubnetError):
            unit.decide(wrong)
    assert unit() == 20


def test_ratios_as_labels():
    unit = SequentialMutableChannelUnit(8, choice_mode='ratio', divisor=2, key='conv')
    assert unit.domain.labels == (0.25, 0.5, 0.75, 1.0)
    unit.decide(0.6)
    assert (unit.current_choice, unit()) == (0.5, 4)
    unit.decide(1)
    assert unit() == 8
    assert unit.nearest(5) == 0.75


def test_candidates():
    unit = OneShotMutableChannelUnit(16, [1.0, 0.25, 0.26, 0.5], key='conv')
    assert unit.numbers() == [4, 8, 16]
    assert unit.domain.labels == (0.26, 0.5, 1.0)
    unit.decide(0.5)
    assert unit() == 8
    with pytest.raises(SubnetError, match='none of the alternatives'):
        unit.decide(0.3)
    numbers = OneShotMutableChannelUnit(16, [4, 16], choice_mode='number', key='conv')
    numbers.decide(0.25)
    assert numbers() == 4
    with pytest.raises(SubnetError):
        numbers.decide(5)
    assert (unit.max_choice, unit.min_choice, unit.is_mutable) == (1.0, 0.26, True)
    torch.manual_seed(0)
    assert {unit.sample_choice() for _ in range(40)} == {0.26, 0.5, 1.0}


def test_blocks_of_candidates():
    assert OneShotMutableChannelUnit(16, num_blocks=4, min_blocks=2, key='conv').domain.labels == (0.5, 0.75, 1.0)
    numbers = OneShotMutableChannelUnit(16, num_blocks=4, min_blocks=2, choice_mode='number', key='conv')
    assert numbers.domain.labels == (8, 12, 16)


def test_slimmable_positions():
    unit = SlimmableChannelUnit(16, [0.25, 0.25, 1.0], choice_mode='ratio', key='width', unit='conv')
    assert unit.domain.labels == (0, 1, 2)
    assert unit.numbers() == [4, 4, 16]
    unit.decide(2)
    assert (unit(), unit.unit, unit.key) == (16, 'conv', 'width')
    with pytest.raises(SubnetError):
        unit.decide(4)


def test_settings_make_the_unit_again():
    for unit in (
        SequentialMutableChannelUnit(20, divisor=8, key='a'),
        L1MutableChannelUnit(20, choice_mode='ratio', min_value=3, key='a'),
        OneShotMutableChannelUnit(20, [0.5, 1.0], divisor=2, key='a'),
        SlimmableChannelUnit(20, [4, 8], key='a'),
    ):
        again = MODELS.build(dict(type=f'mmrazor.{type(unit).__name__}', key='a', **unit.settings()))
        assert again.domain == unit.domain
        assert again.numbers() == unit.numbers()


def test_spaces_of_widths_are_data():
    model = nn.Sequential()
    model.add_module('unit', SequentialMutableChannelUnit(4, key='conv'))
    space = space_of(model)
    assert space.count() == 4
    domain = domain_from_dict(space['conv'].to_dict())
    assert domain.labels == (1, 2, 3, 4)
    assert type(space).from_dict(space.to_dict()).subnet({'conv': 3}) == space.subnet({'conv': 0.75})


def test_ranking():
    unit = L1MutableChannelUnit(5, key='conv')
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    unit.decide(3)
    assert unit.current_mask.tolist() == [True, True, True, False, False]
    assert unit.rank(scores) == (0, 2, 4)
    assert unit.rank(-scores) == (0, 2, 4), 'the same width keeps its channels'
    unit.decide(2)
    assert unit.rank(-scores) == (2, 4), 'a smaller width takes from those that are active'
    unit.decide(4)
    assert unit.rank(-scores) == (1, 2, 3, 4), 'a greater one adds to them'
    assert unit.current_mask.tolist() == [False, True, True, True, True]
    with pytest.raises(SubnetError, match='one number for each of 5'):
        unit.rank(scores[:3])
    unit.undecide()
    assert unit.kept is None
    with pytest.raises(NotDecidedError):
        unit()


def test_ties_keep_the_first():
    unit = L1MutableChannelUnit(4, key='conv')
    unit.decide(2)
    assert unit.rank(torch.ones(4)) == (0, 1)


def test_bad_arguments():
    for arguments, words in [
        (dict(num_channels=0), '`num_channels`'),
        (dict(num_channels=8, divisor=0), '`divisor`'),
        (dict(num_channels=8, min_value=True), '`min_value`'),
        (dict(num_channels=8, min_ratio=2), '`min_ratio`'),
        (dict(num_channels=8, choice_mode='numbers'), "Did you mean 'number'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            SequentialMutableChannelUnit(**arguments)
    for candidates, mode in [
        ([], 'ratio'),
        ('half', 'ratio'),
        ([2.0], 'ratio'),
        ([0], 'number'),
        ([9], 'number'),
        ([1.5], 'number'),
    ]:
        with pytest.raises(ConfigError, match='candidate_choices'):
            OneShotMutableChannelUnit(8, candidates, choice_mode=mode)
    with pytest.raises(ConfigError, match='min_blocks <= num_blocks'):
        OneShotMutableChannelUnit(8, num_blocks=2, min_blocks=3)


class Scaled(Attachment):
    """Multiplies the weight of the layer that holds it once its decision is permanent."""

    def __init__(self):
        super().__init__()
        self.unit = SequentialMutableChannelUnit(4, key='factor')

    def settle(self, parent):
        parent.weight.data *= self.unit()
        del parent.scaled


def test_attachments_are_settled_when_a_model_is_extracted():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].add_module('scaled', Scaled())
    assert attachments(model) == [(model[0], model[0].scaled)]
    plain = extract(model, {'factor': 3})
    assert torch.equal(plain[0].weight, 3 * model[0].weight)
    assert not attachments(plain)
    assert model[0].scaled(1, 2) == (1, 2)
