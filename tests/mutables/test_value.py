from __future__ import annotations

import copy
import operator
import pickle

import pytest
import torch
from torch import nn

from strop.errors import ComponentTypeError, NotDecidedError, SpaceError, SubnetError
from strop.mutables import (
    Expression,
    LayerChoice,
    MutableValue,
    OneShotMutableValue,
    Ordered,
    Repeat,
    ValueChoice,
    apply_subnet,
    concat,
    extract,
    maximum,
    minimum,
    space_of,
)
from strop.mutators import RandomMutator
from strop.registry import MODELS


def decided(values: list[object], value: object, key: str = 'v') -> ValueChoice:
    choice = ValueChoice(values, key=key)
    choice.decide(value)
    return choice


class Add(nn.Module):
    def __init__(self, amount: float = 1.0) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.amount


class TestValueChoice:
    @pytest.mark.parametrize(
        ('values', 'value'),
        [([3, 5, 7], 5), (['a', 'b'], 'b'), ([True, False], False), ([None, 0.5], None), ([[3, 3], [1, 3]], (1, 3))],
    )
    def test_calling_gives_the_current_value(self, values: list[object], value: object) -> None:
        choice = decided(values, value)
        assert choice() == value
        assert choice.length == choice.n_candidates == len(values)

    def test_values_that_look_like_positions(self) -> None:
        model = nn.Module()
        model.v = ValueChoice([2, 1, 0])
        mutator = RandomMutator(model)
        for value in (0, 1, 2):
            mutator.set_subnet({'v': value})
            assert model.v() == value
            mutator.set_subnet(mutator.space.subnet({'v': value}))
            assert model.v() == value
            assert apply_subnet(copy.deepcopy(model), {'v': value})['v'] == value
            assert extract(model, {'v': value}).v() == value
            assert mutator.current_choices == {'v': value}

    def test_a_position_is_no_value(self) -> None:
        with pytest.raises(SubnetError, match='0 is none of the alternatives 3, 5, 7'):
            decided([3, 5, 7], 0)

    def test_true_is_not_one(self) -> None:
        assert decided([1, True], True)() is True
        assert decided([1, True], 1)() == 1
        with pytest.raises(SubnetError):
            decided([1, 2], True)

    @pytest.mark.parametrize(
        ('values', 'text'),
        [
            ([], 'at least one'),
            ([1, 1], 'given twice'),
            ([1, 1.0], 'given twice'),
            ([nn.ReLU()], 'Use a LayerChoice'),
            ([float('nan')], 'finite'),
        ],
    )
    def test_wrong_values(self, values: list[object], text: str) -> None:
        with pytest.raises(SpaceError, match=text):
            ValueChoice(values)

    @pytest.mark.parametrize('values', ['abc', 5, None])
    def test_no_list_of_values(self, values: object) -> None:
        with pytest.raises(ComponentTypeError, match='must be a list of values'):
            ValueChoice(values)

    def test_default(self) -> None:
        assert ValueChoice([1, 2], default=2)() == 2
        with pytest.raises(NotDecidedError, match="ValueChoice 'v' has no decision"):
            ValueChoice([1, 2], key='v')()

    def test_no_mixture_of_values(self) -> None:
        with pytest.raises(SubnetError, match='weighted mixture'):
            decided([1, 2], torch.tensor([0.5, 0.5]))
        assert decided([1, 2], torch.tensor([0.0, 1.0]))() == 2


class TestExpression:
    def test_operators(self) -> None:
        v, w = decided([2, 7], 7), decided([3, 5], 3, 'w')
        cases = [
            (v + 1, 8), (1 + v, 8), (v - w, 4), (10 - v, 3), (v * 2, 14), (2 * v, 14), (v / 2, 3.5), (21 / v, 3.0),
            (v // w, 2), (23 // v, 3), (v % w, 1), (v**2, 49), (-v, -7), (maximum(v, w, 5), 7), (minimum(v, w, 5), 3),
            (concat(v, w, 4), 14), ((v + w) * (v - w), 40), (Expression(operator.pow, 2, w), 8),
        ]  # fmt: skip
        assert [expression() for expression, _ in cases] == [value for _, value in cases]

    def test_it_follows_the_decision(self) -> None:
        v = decided([2, 7], 7)
        double = v * 2
        v.decide(2)
        assert double() == 4
        assert double.choices() == [v]

    def test_copies_and_pickles_stay_coupled(self) -> None:
        model = nn.Module()
        model.v = decided([2, 7], 7)
        model.e = maximum(model.v // 2, 2)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            twin.v.decide(2)
            assert (twin.e(), model.e()) == (2, 3)

    def test_in_a_model_it_is_one_decision(self) -> None:
        model = nn.Module()
        model.v = ValueChoice([2, 7])
        model.e = model.v * 2
        space = space_of(model)
        assert list(space) == ['v']
        assert space.subnet({'e.0': 7}) == space.subnet({'v': 7})
        plain = extract(model, {'v': 7})
        assert (plain.v(), plain.e()) == (7, 14)

    def test_modules_are_no_operands(self) -> None:
        with pytest.raises(ComponentTypeError, match='got a ReLU'):
            maximum(nn.ReLU(), 1)


class TestRepeat:
    @pytest.mark.parametrize('depth', [2, ValueChoice([2], key='d'), ValueChoice([1], key='d') * 2])
    def test_depths_of_every_kind(self, depth: object) -> None:
        model = nn.Sequential(Repeat(Add(), depth))
        assert len(model[0]) == 2
        if not isinstance(depth, int):
            apply_subnet(model, {'d': 2 if isinstance(depth, ValueChoice) else 1})
        assert model(torch.zeros(1)).item() == 2.0
        assert isinstance(extract(model)[0], nn.Sequential)

    def test_a_range(self) -> None:
        model = nn.Sequential(Repeat(lambda i: Add(10.0**i), (0, 3), key='depth'))
        assert space_of(model)['depth'] == Ordered((0, 1, 2, 3))
        for depth, expected in enumerate([0.0, 1.0, 11.0, 111.0]):
            apply_subnet(model, {'depth': depth})
            assert model(torch.zeros(1)).item() == expected
            assert extract(model)(torch.zeros(1)).item() == expected

    def test_copies_of_a_block_have_weights_of_their_own(self) -> None:
        repeat = Repeat(nn.Linear(2, 2), 3)
        assert len({id(block.weight) for block in repeat.blocks}) == 3
        assert len(Repeat([nn.ReLU(), nn.GELU(), nn.Tanh()], 2)) == 2

    @pytest.mark.parametrize(
        ('block', 'depth', 'error', 'text'),
        [
            (Add(), -1, SpaceError, 'non-negative integer'),
            (Add(), ValueChoice([1, 1.5]), SpaceError, 'can be 1.5'),
            (Add(), ValueChoice([1, 3]) - 2, SpaceError, 'can be -1'),
            (Add(), True, ComponentTypeError, '`depth` must be'),
            (Add(), 'deep', ComponentTypeError, '`depth` must be'),
            (Add(), (3, 1), SpaceError, 'low <= high'),
            (Add(), (1, 2, 3), SpaceError, r'Use ValueChoice\(\[1, 2, 3\]\)'),
            (lambda i: i, 2, ComponentTypeError, 'Block 0 must be an nn.Module, but got int'),
            ([Add()], 2, SpaceError, 'only 1 blocks'),
            (3, 2, ComponentTypeError, '`block` must be'),
        ],
    )
    def test_wrong_arguments(self, block: object, depth: object, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            Repeat(block, depth)

    def test_decisions_beyond_the_depth_are_inactive(self) -> None:
        model = nn.Sequential(Repeat(LayerChoice([nn.ReLU(), nn.Tanh()]), ValueChoice([1, 3], key='depth')))
        space = space_of(model)
        assert list(space) == ['depth', '0.0', '0.1', '0.2']
        short = space.subnet({'depth': 1, '0.0': 0, '0.1': 1, '0.2': 1})
        assert dict(short) == {'depth': 1, '0.0': 0}
        assert short == space.subnet({'depth': 1, '0.0': 0})
        assert space.count() == 2 + 2**3 == len(list(space.grid()))

    def test_decisions_that_every_depth_reaches_are_active(self) -> None:
        space = space_of(nn.Sequential(Repeat(LayerChoice([nn.ReLU(), nn.Tanh()]), ValueChoice([1, 2], key='depth'))))
        assert '0.0' not in space.conditions

    def test_the_depth_as_an_expression_of_two_values(self) -> None:
        depth = ValueChoice([0, 1], key='a') + ValueChoice([0, 1], key='b')
        space = space_of(nn.Sequential(Repeat(LayerChoice([nn.ReLU(), nn.Tanh()]), depth)))
        # depth 0: 1; depth 1 (two ways): 2 each; depth 2: 4
        assert space.count() == 1 + 2 * 2 + 4 == len(list(space.grid()))

    def test_undecided_blocks_beyond_the_depth_do_not_matter(self) -> None:
        model = nn.Sequential(Repeat(LayerChoice([nn.ReLU(), nn.Tanh()]), (1, 2), key='depth'))
        apply_subnet(model, {'depth': 1, '0.0': 0})
        assert model(torch.tensor([-1.0])).item() == 0.0
        assert len(extract(model)[0]) == 1

    def test_blocks_of_one_given_key_are_one_decision(self) -> None:
        model = nn.Sequential(Repeat(LayerChoice([Add(1), Add(2)], key='op'), (1, 2), key='depth'))
        assert space_of(model).count() == 4
        apply_subnet(model, {'depth': 2, 'op': 1})
        assert model(torch.zeros(1)).item() == 4.0


class TestMutableValue:
    @pytest.mark.parametrize('name', ['MutableValue', 'mmrazor.MutableValue', 'strop.OneShotMutableValue'])
    def test_mmrazors_names(self, name: str) -> None:
        value = MODELS.build({'type': name, 'value_list': [1, 2, 3], 'default_value': 2, 'alias': 'depth'})
        assert isinstance(value, MutableValue)
        assert (value.current_choice, value.choices, value.num_choices, value.alias, value.key) == (
            2,
            [1, 2, 3],
            3,
            'depth',
            'depth',
        )
        value.current_choice = 3
        assert value() == 3
        assert (value * 2)() == 6

    def test_the_default_is_the_first_and_is_checked(self) -> None:
        assert OneShotMutableValue([4, 5])() == 4
        with pytest.raises(SpaceError, match='`default_value`'):
            MutableValue([4, 5], default_value=6)


def test_a_one_hot_decision_is_the_value_that_it_marks():
    choice = ValueChoice([3, 5, 7], key='k')
    for index, value in enumerate((3, 5, 7)):
        weights = torch.nn.functional.one_hot(torch.tensor(index), 3).float().requires_grad_()
        choice.decide(weights)
        assert choice() == value
        assert choice.choice() == (index,)
