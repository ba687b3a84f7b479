"""MACs and parameters of any width equal those that are counted in the model cut to it."""

import pytest
import torch
from torch import nn

from strop.errors import GraphError
from strop.estimators import SpaceEstimator, WidthCosts, count
from strop.graph import channel_units
from strop.mutables import extract
from strop.mutators import ChannelMutator, OneShotChannelMutator
from strop.randomness import counter_rng


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5)
    )


X = torch.zeros(1, 3, 6, 6)


def test_by_hand():
    costs = WidthCosts(channel_units(net(), X))
    assert costs.macs() == 36 * 8 * 27 + 16 * 6 * 72 + 96 * 5
    assert costs.macs({'0': 4, '3': 2}) == 36 * 4 * 27 + 16 * 2 * 36 + 32 * 5
    assert costs.params({'0': 4, '3': 2}) == (4 * 27 + 4) + 8 + (2 * 36 + 2) + (32 * 5 + 5)
    with pytest.raises(GraphError, match='no unit'):
        costs.macs({'9': 2})


@pytest.mark.parametrize(
    ('name', 'size'), [('resnet18', 64), ('mobilenetv2_100', 64), ('vit_tiny_patch16_224', 64), ('shufflenet', 32)]
)
def test_equal_to_what_is_counted_in_the_cut_model(name, size):
    if name == 'shufflenet':
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=4), nn.PixelShuffle(2), nn.Conv2d(4, 6, 1))
    else:
        options = {'img_size': size} if name.startswith('vit') else {}
        model = pytest.importorskip('timm').create_model(name, **options)
    x = torch.zeros(2, 3, size, size)
    graph = channel_units(model, x)
    costs = WidthCosts(graph)
    original = count(model, x)
    assert (costs.macs(), costs.params()) == (original.macs, original.params)
    for number in range(2):
        rng = counter_rng(0, 'widths', number)
        lengths = graph.fit({unit.name: int(rng.integers(unit.minimum, unit.size + 1)) for unit in graph})
        counted = count(graph.prefix(lengths).apply(model), x)
        assert (costs.macs(lengths), costs.params(lengths)) == (counted.macs, counted.params)


def test_the_estimator_of_a_space_prices_widths():
    model = net()
    mutator = ChannelMutator(parse_cfg=dict(demo_input=(2, 3, 6, 6)), model=model)
    mutator.set_min_subnet()
    estimator = SpaceEstimator(model, torch.zeros(1, 3, 6, 6))
    assert 'macs' not in estimator.measured
    assert mutator.widths.current == {'0': 2, '3': 2}, 'pricing leaves the widths as they are'
    for kind in ('max', 'min', 'random'):
        subnet = mutator.space.subnet(mutator.sample_choices(kind))
        counted = count(extract(model, subnet), X)
        expected = {'macs': counted.macs, 'params': counted.params, 'activation_bytes': counted.activation_bytes}
        assert estimator.estimate(subnet) == expected
    assert estimator.alternatives()['3'][2] == (36 * 8 * 27 + 16 * 2 * 72 + 32 * 5, WidthCosts(mutator.graph).params({'3': 2}))
    assert estimator.smallest('macs').value == 36 * 2 * 27 + 16 * 2 * 18 + 32 * 5
    assert estimator.largest('params').exact
    many = estimator.estimate_many([{'0': 4, '3': 2}, {'0': 8, '3': 6}], ['macs'])['macs']
    assert many.tolist() == [36 * 4 * 27 + 16 * 2 * 36 + 32 * 5, 36 * 8 * 27 + 16 * 6 * 72 + 96 * 5]


def test_norms_of_other_widths_are_not_counted():
    model = net()
    mutator = OneShotChannelMutator(parse_cfg=dict(demo_input=(2, 3, 6, 6)), model=model)
    mutator.widths.switch_norms(model, [{'0': 2, '3': 2}])
    mutator.set_max_subnet()
    assert SpaceEstimator(model, X, checks=0).estimate(mutator.current_subnet(), ['params']) == {
        'params': count(net(), X).params
    }
