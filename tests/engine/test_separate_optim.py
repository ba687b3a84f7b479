import pytest
import torch
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from torch import nn

from strop.algorithms import Darts
from strop.engine import AmpOptimWrapper, SeparateOptimWrapperConstructor
from strop.errors import ConfigError
from strop.mutables import LayerChoice
from strop.registry import OPTIM_WRAPPER_CONSTRUCTORS

SGD = dict(optimizer=dict(type='SGD', lr=0.1))


def darts():
    return Darts(nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Identity()], key='op'), nn.Linear(2, 2)))


def ids(wrapper):
    return {id(parameter) for group in wrapper.optimizer.param_groups for parameter in group['params']}


def test_each_child_has_its_optimizer():
    model = darts()
    cfg = dict(
        constructor='mmrazor.SeparateOptimWrapperConstructor',
        architecture=dict(optimizer=dict(type='SGD', lr=0.025, momentum=0.9), clip_grad=dict(max_norm=5, norm_type=2)),
        mutator=dict(type='strop.AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='Adam', lr=3e-4)),
    )
    wrappers = build_optim_wrapper(model, cfg)
    assert isinstance(wrappers, OptimWrapperDict)
    assert ids(wrappers['architecture']) == {id(p) for p in model.architecture.parameters()}
    assert ids(wrappers['mutator']) == {id(p) for p in model.mutator.parameters()}
    assert wrappers['architecture'].clip_grad_kwargs == dict(max_norm=5, norm_type=2)
    assert isinstance(wrappers['mutator'], AmpOptimWrapper)
    assert wrappers.get_lr() == {'architecture.lr': [0.025], 'mutator.lr': [3e-4]}


def test_a_part_may_have_its_own_rules_and_a_dotted_path():
    model = darts()
    rules = dict(bias_decay_mult=0.0)
    cfg = {'architecture.module.1': dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.5), paramwise_cfg=rules)}
    wrappers = SeparateOptimWrapperConstructor({**cfg, 'type': 'OptimWrapper'})(model)
    groups = wrappers['architecture.module.1'].optimizer.param_groups
    assert sorted(group['weight_decay'] for group in groups) == [0.0, 0.5]


def test_parameters_that_nobody_trains_are_told(monkeypatch):
    said = []
    monkeypatch.setattr('strop.engine.separate_optim.print_log', lambda text, **_: said.append(text))
    model = darts()
    SeparateOptimWrapperConstructor({'architecture': SGD})(model)
    assert len(said) == 1
    assert "'mutator.arch_params.op'" in said[0]
    for parameter in model.mutator.parameters():
        parameter.requires_grad = False
    SeparateOptimWrapperConstructor({'architecture': SGD})(model)
    assert len(said) == 1


@pytest.mark.parametrize(
    ('cfg', 'words'),
    [
        ({'architectur': SGD}, "Did you mean 'architecture'"),
        ({'architecture': dict(type='SGD')}, "needs an 'optimizer'"),
        ({}, 'names no child'),
        ([SGD], 'must map child modules'),
        ({'data_preprocessor': SGD}, 'no parameter to train'),
        ({'architecture': SGD, 'architecture.module': SGD}, 'in another part'),
    ],
)
def test_a_malformed_config_is_refused(cfg, words):
    with pytest.raises(ConfigError, match=words):
        SeparateOptimWrapperConstructor(cfg)(darts())


def test_rules_for_all_parts_at_once_are_refused():
    with pytest.raises(ConfigError, match='config of each part'):
        SeparateOptimWrapperConstructor({'architecture': SGD}, paramwise_cfg=dict(bias_lr_mult=2.0))


def test_both_scopes_reach_it():
    assert OPTIM_WRAPPER_CONSTRUCTORS.get('mmrazor.SeparateOptimWrapperConstructor') is SeparateOptimWrapperConstructor
    model = nn.ModuleDict({'a': nn.Linear(1, 1)})
    wrappers = SeparateOptimWrapperConstructor({'a': SGD})(model)
    loss = model['a'](torch.ones(1, 1)).sum()
    wrappers['a'].update_params(loss)
