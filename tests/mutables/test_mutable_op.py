from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.errors import BindingError, ConfigError, SpaceError
from strop.mutables import OneShotMutableOP, OneShotProbMutableOP, space_of
from strop.mutators import OneShotMutator
from strop.registry import MODELS

CANDIDATES = {
    'conv3': {'type': 'torch.nn.Conv2d', 'kernel_size': 3, 'padding': 1},
    'conv5': {'type': 'torch.nn.Conv2d', 'kernel_size': 5, 'padding': 2},
    'same': {'type': 'torch.nn.Conv2d', 'kernel_size': 1},
}
KWARGS = {'in_channels': 2, 'out_channels': 4}


def made(**arguments: object) -> OneShotMutableOP:
    return OneShotMutableOP(CANDIDATES, module_kwargs=KWARGS, **arguments)


@pytest.mark.parametrize('name', ['OneShotMutableOP', 'strop.OneShotMutableOP', 'mmrazor.OneShotMutableOP'])
def test_built_from_a_config(name: str) -> None:
    op = MODELS.build({'type': name, 'candidates': CANDIDATES, 'module_kwargs': KWARGS, 'alias': 'stage_0', 'init_cfg': None})
    assert type(op) is OneShotMutableOP
    assert (op.choices, op.num_choices, op.alias, op.key) == (['conv3', 'conv5', 'same'], 3, 'stage_0', 'stage_0')
    assert [module.kernel_size[0] for module in op] == [3, 5, 1]
    assert all(module.out_channels == 4 for module in op)
    assert 'in_channels' not in CANDIDATES['conv3']


def test_current_choice() -> None:
    op = made()
    assert op.current_choice is None
    op.current_choice = 'conv5'
    assert (op.current_choice, op.decision) == ('conv5', (1,))
    op.current_choice = ['conv3', 'same']
    assert op.current_choice == ['conv3', 'same']
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(op(x), op['conv3'](x) + op['same'](x))


def test_fix_and_dump_chosen() -> None:
    op = made(alias='a')
    kept = op['conv5']
    op.fix_chosen('conv5')
    assert op.is_fixed
    assert (op.choices, op.current_choice) == (['conv5'], 'conv5')
    assert op.dump_chosen() == {'chosen': 'conv5', 'meta': {'all_choices': ['conv5']}}
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(op(x), kept(x))
    assert list(op.state_dict()) == ['conv5.weight', 'conv5.bias']
    with pytest.raises(SpaceError, match='fixed already'):
        op.fix_chosen('conv5')


def test_fixing_several_keeps_them_all() -> None:
    op = made()
    op.fix_chosen({'chosen': ['same', 'conv3']})
    assert (op.choices, op.current_choice) == (['conv3', 'same'], ['conv3', 'same'])


def test_fixing_what_is_not_there() -> None:
    op = made()
    with pytest.raises(SpaceError, match=r"no candidate 'conv7'.*Did you mean"):
        op.fix_chosen('conv7')
    with pytest.raises(SpaceError, match='At least one'):
        op.fix_chosen([])
    assert op.choices == ['conv3', 'conv5', 'same']
    mutator = OneShotMutator(nn.Sequential(op))
    with pytest.raises(BindingError, match='while a mutator is bound'):
        op.fix_chosen('same')
    mutator.load_fix_subnet({'0': {'chosen': 'same'}})
    assert type(mutator) is OneShotMutator


@pytest.mark.parametrize(
    ('candidates', 'text'),
    [
        ({}, 'at least one operation'),
        ([nn.ReLU()], 'must be a mapping'),
        (None, 'must be a mapping'),
        ({'a': 'relu'}, "'a' must be a config"),
    ],
)
def test_wrong_candidates(candidates: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        OneShotMutableOP(candidates)


@pytest.mark.parametrize('name', ['init_cfg', 'is_fixed', 'choices', 'alias'])
def test_names_that_are_attributes(name: str) -> None:
    with pytest.raises(SpaceError, match='cannot be the name of a candidate'):
        OneShotMutableOP({name: nn.ReLU()})


def test_an_unknown_type_names_the_near_one() -> None:
    with pytest.raises(
        KeyError, match=r"'OneShotMutableOp' is not in the model registry of strop. Did you mean 'OneShotMutableOP'"
    ):
        OneShotMutableOP({'a': {'type': 'OneShotMutableOp'}})


def test_probabilities_are_those_of_the_draws() -> None:
    op = OneShotProbMutableOP(CANDIDATES, module_kwargs=KWARGS, choice_probs=[0.7, 0.3, 0.0])
    mutator = OneShotMutator(nn.Sequential(op))
    torch.manual_seed(0)
    counts = sum(mutator.sample_subnet()['0'] for _ in range(1000))
    assert abs(counts[0] - 700) < 60
    assert counts[2] == 0
    assert space_of(nn.Sequential(op)).count() == 3
    for wrong in ([0.5, 0.5], [0.5, 0.6, 0.1], [-0.5, 0.5, 1.0]):
        with pytest.raises(ConfigError, match='sum to 1'):
            OneShotProbMutableOP(CANDIDATES, module_kwargs=KWARGS, choice_probs=wrong)


def test_probabilities_follow_the_candidates() -> None:
    def made(*probabilities: float) -> OneShotProbMutableOP:
        return OneShotProbMutableOP(CANDIDATES, module_kwargs=KWARGS, choice_probs=probabilities)

    op = made(0.7, 0.3, 0.0)
    del op[0]
    assert op.choice_probs == [1.0, 0.0]
    mutator = OneShotMutator(nn.Sequential(op))
    assert all(mutator.sample_subnet()['0'].tolist() == [1, 0] for _ in range(50))
    op = made(0.0, 0.5, 0.5)
    op.fix_chosen(op.names[0])
    assert op.choice_probs == [1.0], 'what is left is drawn'
    op = made(0.5, 0.25, 0.25)
    del op[2]
    assert op.choice_probs == pytest.approx([2 / 3, 1 / 3])
    mutator = OneShotMutator(nn.Sequential(made(0.0, 0.5, 0.5)))
    mutator.search_spaces['0']['space_mask'][1:] = 0
    with pytest.raises(SpaceError, match='only 0 of the 1 that `space_mask` allows have a probability above 0'):
        mutator.sample_subnet()


def test_mmrazor_checkpoints_load_strictly() -> None:
    model = nn.Sequential(made(), nn.Linear(1, 1))
    state = {
        f'0._candidates.{key[2:]}' if key.startswith('0.') else key: value + 1 for key, value in model.state_dict().items()
    }
    expected = model[0]['conv5'].weight + 1
    model.load_state_dict(state, strict=True)
    assert torch.equal(model[0]['conv5'].weight, expected)
