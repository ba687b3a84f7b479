"""Models with elastic widths are exported at their active widths, never whole."""

import json

import pytest
import torch
from torch import nn

from strop.algorithms import ItePruneAlgorithm, SlimmableNetwork
from strop.export import load_recipe, plain_subnet, save_recipe
from strop.mutables import attachments
from strop.mutators import ChannelMutator

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
UNITS = dict(type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio'))
SLIMMABLE = dict(type='SlimmableChannelMutator', channel_unit_cfg=UNITS, parse_cfg=dict(demo_input=(2, 3, 6, 6)))
L1 = dict(type='ChannelMutator', channel_unit_cfg='L1MutableChannelUnit', parse_cfg=dict(demo_input=(2, 3, 6, 6)))


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


def made(kind):
    torch.manual_seed(0)
    if kind == 'slimmable':
        algorithm = SlimmableNetwork(net(), SLIMMABLE)
        algorithm.mutator.set_subnet({'width': 0})
        return algorithm
    if kind == 'pruned':
        algorithm = ItePruneAlgorithm(net(), L1, target_pruning_ratio=0.5)
        algorithm.prune(1)
        return algorithm
    model = net()
    ChannelMutator(parse_cfg=dict(demo_input=(2, 3, 6, 6)), model=model).set_subnet({'0': 4})
    return model


@pytest.mark.parametrize('kind', ['slimmable', 'pruned', 'model'])
def test_what_is_exported_is_the_active_width(kind, tmp_path):
    model = made(kind).eval()
    plain = plain_subnet(model).eval()
    assert type(plain) is nn.Sequential
    assert plain[0].out_channels == 4
    assert not attachments(plain)
    torch.testing.assert_close(plain(X), model(X))
    save_recipe(model, None, tmp_path / 'net', factory=net, example_inputs=X)
    assert json.loads((tmp_path / 'net' / 'recipe.json').read_text())['cut']
    loaded = load_recipe(tmp_path / 'net', factory=net).eval()
    assert loaded[0].out_channels == 4
    torch.testing.assert_close(loaded(X), model(X))
    assert attachments(model), 'exporting changes nothing'


def test_another_width_than_the_current_one(tmp_path):
    network = made('slimmable').eval()
    save_recipe(network, {'width': 1}, tmp_path / 'net', factory=net)
    assert load_recipe(tmp_path / 'net', factory=net)[0].out_channels == 8
    assert network.mutator.current_choices == {'width': 0}
