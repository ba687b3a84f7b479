"""Pruning in steps: the schedule, what stays, what a checkpoint keeps, what comes out."""

import copy
import json

import pytest
import torch
from engine.tiny import preprocessor, supernet, train_config
from torch import nn

from strop.algorithms import ItePruneAlgorithm
from strop.engine import build_runner
from strop.errors import ComponentTypeError, ConfigError, GraphError
from strop.mutables import attachments
from strop.randomness import seeded
from strop.registry import MODELS

L1 = dict(type='ChannelMutator', channel_unit_cfg=dict(type='L1MutableChannelUnit'), parse_cfg=dict(demo_input=(2, 3, 6, 6)))
DATA = (torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2)


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
    return nn.Sequential(*layers).double()


def pruned(mutator=None, **options):
    options = {'target_pruning_ratio': 0.5, **options}
    return ItePruneAlgorithm(net(), copy.deepcopy(mutator or L1), **options)


def trained(algorithm, steps):
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.05)
    widths = []
    for _ in range(steps):
        algorithm.train_step(DATA, optimizer)
        widths.append(tuple(algorithm.mutator.current_choices.values()))
    return widths


def test_linear_schedule_by_hand():
    algorithm = pruned(prune_times=3, step_freq=2, target_pruning_ratio={'module.0': 0.25, 'module.3': 4})
    # 8 -> 2 in three parts of 2; 6 -> 4 in three parts of 2/3, rounded.
    assert trained(algorithm, 7) == [(6, 5), (6, 5), (4, 5), (4, 5), (2, 4), (2, 4), (2, 4)]
    assert algorithm.finished


def test_without_the_linear_schedule_the_first_step_prunes_all():
    assert trained(pruned(linear_schedule=False, prune_times=2), 1) == [(4, 3)]


def test_units_without_a_target_stay():
    assert trained(pruned(target_pruning_ratio={'module.3': 0.5}), 1) == [(8, 3)]


def test_the_channels_of_greatest_norm_stay():
    algorithm = pruned(target_pruning_ratio={'module.0': 3})
    with torch.no_grad():
        algorithm.architecture.module[0].weight[[1, 4, 6]] += 10
    trained(algorithm, 1)
    assert algorithm.mutator.widths.indices['module.0'].tolist() == [1, 4, 6]
    assert algorithm.kept_channels[:8].nonzero()[:, 0].tolist() == [1, 4, 6]


@pytest.mark.parametrize('unit', ['L1MutableChannelUnit', 'SequentialMutableChannelUnit'])
def test_extracted_equals_active_after_training(unit):
    algorithm = pruned({**L1, 'channel_unit_cfg': dict(type=unit)}, prune_times=3)
    trained(algorithm, 6)
    algorithm.eval()
    plain = algorithm.extract().eval()
    assert not attachments(plain)
    assert plain.module[0].out_channels == 4
    torch.testing.assert_close(plain(DATA[0]), algorithm(DATA[0]), rtol=0, atol=1e-12)


def test_evaluation_does_not_prune():
    algorithm = pruned().eval()
    algorithm(*DATA, mode='loss')
    assert int(algorithm.pruning_steps) == 0
    assert algorithm.mutator.widths.full


def test_checkpoints_keep_the_channels():
    first = pruned(prune_times=3, step_freq=2)
    trained(first, 4)
    state = copy.deepcopy(first.state_dict())
    fresh = pruned(prune_times=3, step_freq=2)
    with torch.no_grad():
        fresh.architecture.module[0].weight.mul_(torch.arange(8.0).view(8, 1, 1, 1))
    fresh.load_state_dict(state)
    fresh.step = first.step
    for name, kept in first.mutator.widths.indices.items():
        assert torch.equal(fresh.mutator.widths.indices[name], kept)
    with seeded(0, 'rest'):
        trained(first, 4)
    with seeded(0, 'rest'):
        trained(fresh, 4)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in first.state_dict().items())
    assert fresh.finished


def test_names_of_mmrazor():
    algorithm = pruned(target_pruning_ratio={'architecture.module.0_(0, 8)_8': 0.5})
    assert algorithm.target == {'module.0': 4}


def test_bad_input():
    for options, words in [
        (dict(target_pruning_ratio=None), 'says what stays'),
        (dict(target_pruning_ratio=1.5), r'ratio within \(0, 1\]'),
        (dict(target_pruning_ratio=0), 'integer within'),
        (dict(target_pruning_ratio={'module.0': 9}), r'1\.\.8'),
        (dict(step_freq=0), '`step_freq`'),
        (dict(prune_times=1.5), '`prune_times`'),
    ]:
        with pytest.raises(ConfigError, match=words):
            pruned(**options)
    with pytest.raises(GraphError, match=r"Did you mean 'module\.0'"):
        pruned(target_pruning_ratio={'modules.0': 0.5})
    with pytest.raises(ComponentTypeError, match='take any width'):
        pruned({**L1, 'channel_unit_cfg': dict(type='OneShotMutableChannelUnit')})
    with pytest.raises(ConfigError, match='nothing to decide'):
        pruned(dict(type='OneShotMutator'))


# -- with the runner -----------------------------------------------------------------------------

FIXED = dict.fromkeys(('backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0'), 'shuffle_3x3')


def test_training_and_validation_with_the_runner(tmp_path):
    model = dict(
        type='mmrazor.ItePruneAlgorithm',
        architecture=dict(type='sub_model', cfg=supernet, fix_subnet=FIXED),
        data_preprocessor=preprocessor,
        mutator_cfg=dict(
            type='mmrazor.ChannelMutator',
            channel_unit_cfg=dict(type='L1MutableChannelUnit', default_args=dict(choice_mode='ratio')),
            parse_cfg=dict(type='ChannelAnalyzer', demo_input=(2, 1, 8, 8), tracer_type='FxTracer'),
        ),
        target_pruning_ratio=0.5,
        step_freq=2,
        prune_times=2,
    )
    config = train_config(model=model, val_cfg=dict(type='mmrazor.ItePruneValLoop'))
    runner = build_runner(config, work_dir=tmp_path)
    runner.train()
    assert runner.model.finished
    metrics = runner.val_loop.run()
    plain = runner.model.extract().eval()
    assert metrics['params'] * 1e6 == pytest.approx(sum(value.numel() for value in plain.parameters()))
    written = json.loads((tmp_path / 'fix_subnet.json').read_text())
    assert written['choices'] == runner.model.mutator.current_choices
    weights = torch.load(tmp_path / 'fix_subnet_weight.pth', weights_only=True)['state_dict']
    images = torch.randn(3, 1, 8, 8)
    for value in weights.values():
        assert torch.isfinite(value.double()).all()
    fresh = MODELS.build(copy.deepcopy(model))
    fresh.load_state_dict(runner.model.state_dict())
    again = fresh.extract().eval()
    again.load_state_dict(weights)
    torch.testing.assert_close(again(images), runner.model.eval()(images))
