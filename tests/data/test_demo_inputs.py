from __future__ import annotations

import pytest
import torch
from torch import nn

from strop import codebases
from strop.data import DefaultDemoInput, DefaultMMClsDemoInput, DefaultMMDetDemoInput
from strop.errors import ConfigError
from strop.estimators import example_arguments
from strop.mutators.channel import demo_inputs
from strop.registry import TASK_UTILS


def test_a_plain_model_gets_zeros_like_its_parameters():
    zeros = DefaultDemoInput((2, 3, 8, 8))(nn.Conv2d(3, 4, 1).double())
    assert (zeros.shape, zeros.dtype) == ((2, 3, 8, 8), torch.float64)
    assert not zeros.any()
    assert DefaultDemoInput()(nn.Conv2d(3, 4, 1)).shape == (1, 3, 224, 224)


def test_shape_and_more_arguments_can_be_given_for_one_call():
    inputs = DefaultDemoInput((2, 4), kwargs=dict(mode='tensor'))
    assert inputs.get_data(nn.Linear(4, 1), input_shape=(5, 4))['inputs'].shape == (5, 4)
    assert inputs(nn.Linear(4, 1))['mode'] == 'tensor'


def test_every_door_makes_them_by_the_same_class():
    model = nn.Linear(4, 1)
    config = dict(type='mmrazor.DefaultDemoInput', input_shape=(3, 4))
    assert TASK_UTILS.build(config)(model).shape == (3, 4)
    assert demo_inputs(model, config).shape == demo_inputs(model, (3, 4)).shape == (3, 4)
    (argument,) = example_arguments(model, (3, 4))
    assert argument.shape == (3, 4)


@pytest.mark.parametrize('shape', [(0, 3), (1.5, 2), 'large', (True, 3)])
def test_a_shape_is_positive_integers(shape):
    with pytest.raises(ConfigError, match='`input_shape` must be positive integers'):
        DefaultDemoInput(shape)


def test_an_unknown_scope_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'mmpretrain', 'mmdet', 'mmseg'.*got 'mmdett'\. Did you mean 'mmdet'"):
        DefaultDemoInput(scope='mmdett')
    assert DefaultDemoInput(scope='mmcls').scope == 'mmpretrain'


@pytest.mark.skipif(codebases.installed('mmdet'), reason='the real codebases are here')
@pytest.mark.parametrize('kind', [DefaultMMClsDemoInput, DefaultMMDetDemoInput])
def test_data_samples_of_a_codebase_that_is_not_there(kind):
    with pytest.raises(ImportError, match=r'needs the package mm.* which is not installed.*strop\[openmmlab\]'):
        kind((1, 3, 8, 8))(nn.Conv2d(3, 4, 1))
