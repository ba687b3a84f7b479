"""Validation of widths, and search over them by the same loop that searches operators."""

import json

import pytest
import torch

from strop.engine import build_runner
from strop.errors import ConfigError
from strop.estimators import count
from strop.mutables import extract, load_subnet
from strop.registry import MODELS

from .tiny import preprocessor, search_config, supernet, train_config

FIXED = dict.fromkeys(('backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0'), 'shuffle_3x3')
PARSE = dict(type='mmrazor.ChannelAnalyzer', demo_input=dict(type='mmrazor.DefaultDemoInput', input_shape=(2, 1, 8, 8)))
RATIOS = dict(candidate_choices=[0.5, 1.0], choice_mode='ratio')


def model(kind, mutator, units, **more):
    return dict(
        type=kind,
        architecture=dict(type='sub_model', cfg=supernet, fix_subnet=FIXED),
        data_preprocessor=preprocessor,
        mutator=dict(type=mutator, channel_unit_cfg=dict(type=units, default_args=RATIOS), parse_cfg=PARSE),
        **more,
    )


def widths_of(runner):
    return runner.model.mutator.widths.current


def test_each_network_is_validated_and_the_current_one_stays(tmp_path):
    config = train_config(
        model=model('SlimmableNetwork', 'SlimmableChannelMutator', 'SlimmableChannelUnit'),
        val_cfg=dict(type='SlimmableValLoop'),
    )
    runner = build_runner(config, work_dir=tmp_path)
    runner.model.mutator.set_subnet({'width': 0})
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    metrics = runner.val_loop.run()
    assert set(metrics) == {'subnet_0.accuracy/top1', 'subnet_1.accuracy/top1'}
    assert runner.model.mutator.current_choices == {'width': 0}
    assert all(torch.equal(before[name], value) for name, value in runner.model.state_dict().items())


def test_a_deployed_network_is_validated_as_it_is(tmp_path):
    config = train_config(
        model=model('SlimmableNetwork', 'SlimmableChannelMutator', 'SlimmableChannelUnit', deploy_index=0),
        val_cfg=dict(type='SlimmableValLoop'),
    )
    runner = build_runner(config, work_dir=tmp_path)
    assert set(runner.val_loop.run()) == {'accuracy/top1'}


def test_slimmable_validation_of_something_else(tmp_path):
    config = train_config(val_cfg=dict(type='SlimmableValLoop'))
    runner = build_runner(config, work_dir=tmp_path)
    with pytest.raises(ConfigError, match='SubnetValLoop'):
        runner.val_loop.run()


def test_an_algorithm_without_widths_is_only_validated(tmp_path):
    config = train_config(
        model=dict(type='sub_model', cfg=dict(supernet, data_preprocessor=preprocessor), fix_subnet=FIXED),
        val_cfg=dict(type='ItePruneValLoop'),
    )
    runner = build_runner(config, work_dir=tmp_path)
    assert set(runner.val_loop.run()) == {'accuracy/top1'}
    assert not (tmp_path / 'fix_subnet.json').exists()


def test_widths_are_validated_like_other_subnets(tmp_path):
    config = train_config(
        model=model('SPOS', 'OneShotChannelMutator', 'OneShotMutableChannelUnit'),
        val_cfg=dict(type='SubnetValLoop', calibrate_sample_num=32),
    )
    runner = build_runner(config, work_dir=tmp_path)
    metrics = runner.val_loop.run()
    smallest = extract(runner.model.architecture, runner.model.mutator.sample_choices('min'))
    assert metrics['min_subnet.flops'] * 1e6 == pytest.approx(count(smallest, torch.zeros(1, 1, 8, 8)).macs)
    assert metrics['min_subnet.params'] < metrics['max_subnet.params']


def test_search_over_widths(tmp_path):
    config = search_config(
        model=model('SPOS', 'OneShotChannelMutator', 'OneShotMutableChannelUnit'), constraints_range=dict(flops=(0.0, 0.006))
    )
    runner = build_runner(config, work_dir=tmp_path)
    mutator = runner.model.mutator
    largest = count(extract(runner.model.architecture, mutator.sample_choices('max')), torch.zeros(1, 1, 8, 8)).macs
    assert largest > 6000, 'the constraint binds'
    runner.train()
    best = load_subnet(tmp_path / 'best_fix_subnet.yaml', mutator.space)
    plain = extract(runner.model.architecture, best)
    assert count(plain, torch.zeros(1, 1, 8, 8)).macs <= 6000
    assert json.loads((tmp_path / 'search.json').read_text())
    again = MODELS.build(
        dict(
            type='sub_model',
            cfg=dict(type='sub_model', cfg=supernet, fix_subnet=FIXED),
            fix_subnet=str(tmp_path / 'best_fix_subnet.yaml'),
            mutator=config.model.mutator,
        )
    )
    assert {name: value.shape for name, value in again.named_parameters()} == {
        name: value.shape for name, value in plain.named_parameters()
    }
    mutator.load_fix_subnet(tmp_path / 'best_fix_subnet.yaml')
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(runner.model.architecture.eval()(x), plain.eval()(x))
