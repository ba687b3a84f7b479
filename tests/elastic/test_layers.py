"""Layers with an active size equal the plain layer of that size, gradients and statistics included."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from strop.elastic import (
    DynamicBatchNorm1d,
    DynamicBatchNorm2d,
    DynamicBatchNorm3d,
    DynamicConv2d,
    DynamicLayerNorm,
    DynamicLinear,
)
from strop.errors import ComponentTypeError, ConfigError, NotDecidedError, SubnetError
from strop.mutables import (
    L1MutableChannelUnit,
    OneShotMutableChannelUnit,
    SequentialMutableChannelUnit,
    ValueChoice,
    extract,
    mutables_of,
    space_of,
)
from strop.registry import MODELS


class Mask:
    def __init__(self, *mask):
        self.current_mask = torch.tensor(mask, dtype=torch.bool)


CASES = [
    (lambda: DynamicConv2d(4, 6, 3), dict(in_channels=3, out_channels=2), (2, 3, 5, 5)),
    (lambda: DynamicConv2d(4, 6, 3, bias=False, padding_mode='circular', padding=1), dict(out_channels=5), (2, 4, 5, 5)),
    (lambda: DynamicConv2d(4, 4, 3, groups=4), dict(out_channels=3), (2, 3, 5, 5)),
    (lambda: DynamicConv2d(4, 4, 3, groups=4), dict(in_channels=Mask(1, 0, 1, 1)), (2, 3, 5, 5)),
    (lambda: DynamicConv2d(4, 6, 3), dict(in_channels=Mask(0, 1, 0, 1), out_channels=Mask(1, 0, 1, 1, 0, 0)), (2, 2, 5, 5)),
    (lambda: DynamicLinear(5, 7), dict(in_channels=2, out_channels=4), (3, 2)),
    (lambda: DynamicLinear(5, 7, bias=False), dict(in_features=2), (3, 2)),
    (lambda: DynamicBatchNorm1d(6), dict(num_features=4), (3, 4)),
    (lambda: DynamicBatchNorm2d(6), dict(in_channels=4), (3, 4, 2, 2)),
    (lambda: DynamicBatchNorm2d(6), dict(num_features=Mask(0, 1, 1, 0, 0, 1)), (3, 3, 2, 2)),
    (lambda: DynamicBatchNorm2d(6, affine=False), dict(num_features=2), (3, 2, 2, 2)),
    (lambda: DynamicBatchNorm3d(6, track_running_stats=False), dict(num_features=2), (3, 2, 2, 2, 2)),
    (lambda: DynamicLayerNorm(6), dict(num_features=4), (3, 4)),
    (lambda: DynamicLayerNorm(6, elementwise_affine=False), dict(normalized_shape=4), (3, 4)),
]


def made(make, attributes):
    torch.manual_seed(0)
    layer = make().double()
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    for name, value in attributes.items():
        layer.register_mutable_attr(name, value)
    return layer


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(('make', 'attributes', 'shape'), CASES)
def test_active_equals_static(make, attributes, shape, training):
    layer = made(make, attributes).train(training)
    static = layer.to_static_op()
    assert type(static) is layer.static_class
    assert static.training is training
    x = torch.randn(shape, dtype=torch.float64)
    y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    before = {name: value.shape for name, value in layer.state_dict().items()}
    outputs = layer(y), static(z)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(y.grad, z.grad)
    cut = layer.cut()
    for name, parameter in layer.named_parameters():
        own = static.get_parameter(name).grad
        part = cut.take(name, parameter.grad) if name in cut.axes else parameter.grad
        torch.testing.assert_close(part, own)
        assert parameter.grad.abs().sum().item() == pytest.approx(own.abs().sum().item()), 'elsewhere the gradient is zero'
    for name, buffer in layer.named_buffers():
        part = cut.take(name, buffer) if name in cut.axes else buffer
        torch.testing.assert_close(part, static.get_buffer(name))
    assert {name: value.shape for name, value in layer.state_dict().items()} == before
    assert repr(static) == repr(static.__class__(**_arguments(static)))


def _arguments(layer):
    if isinstance(layer, nn.Linear):
        return dict(in_features=layer.in_features, out_features=layer.out_features, bias=layer.bias is not None)
    if isinstance(layer, nn.Conv2d):
        names = ('in_channels', 'out_channels', 'kernel_size', 'padding', 'groups', 'padding_mode')
        return {**{name: getattr(layer, name) for name in names}, 'bias': layer.bias is not None}
    if isinstance(layer, nn.LayerNorm):
        return dict(normalized_shape=layer.normalized_shape, elementwise_affine=layer.elementwise_affine)
    return dict(num_features=layer.num_features, affine=layer.affine, track_running_stats=layer.track_running_stats)


def test_full_size_is_the_plain_layer():
    plain = nn.Conv2d(3, 4, 3)
    layer = DynamicConv2d.convert_from(plain)
    layer.register_mutable_attr('out_channels', ValueChoice([2, 4], default=4))
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(layer(x), plain(x))
    assert layer.weight is plain.weight


def test_layers_that_share_a_decision():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = MODELS.build(dict(type='mmrazor.DynamicConv2d', in_channels=3, out_channels=8, kernel_size=1))
            self.norm = DynamicBatchNorm2d(8)
            self.last = DynamicConv2d(8, 2, 1)
            unit = OneShotMutableChannelUnit(8, [0.25, 0.5, 1.0], key='width')
            self.first.register_mutable_attr('out_channels', unit)
            self.norm.register_mutable_attr('num_features', unit)
            self.last.register_mutable_attr('in_channels', unit)

        def forward(self, x):
            return self.last(self.norm(self.first(x)))

    model = Net().eval()
    assert space_of(model).count() == 3
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(NotDecidedError):
        model(x)
    for choice in (0.25, 0.5, 1.0):
        mutables_of(model)[0].decide(choice)
        plain = extract(model)
        assert not mutables_of(plain)
        assert type(plain.first) is nn.Conv2d
        assert plain.norm.num_features == 8 * choice
        torch.testing.assert_close(plain(x), model(x))
        for copied in (copy.deepcopy(model.first), pickle.load(io.BytesIO(pickle.dumps(model.first)))):
            torch.testing.assert_close(copied(x), model.first(x))


def test_ranked_channels():
    unit = L1MutableChannelUnit(4, key='out')
    layer = DynamicLinear(3, 4)
    layer.register_mutable_attr('out_channels', unit)
    unit.decide(2)
    assert layer(torch.zeros(1, 3)).tolist()[0] == layer.bias[:2].tolist(), 'the first ones until they are ranked'
    unit.rank(torch.tensor([0.0, 2.0, 0.0, 1.0]))
    assert layer(torch.zeros(1, 3)).tolist()[0] == layer.bias[[1, 3]].tolist()


def test_a_failing_forward_leaves_the_layer_whole():
    layer = made(*CASES[0][:2])
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 1, 5, 5, dtype=torch.float64))
    assert layer.weight.shape == (6, 4, 3, 3)
    assert layer.out_channels == 6


def test_bad_input():
    layer = DynamicConv2d(4, 6, 3)
    with pytest.raises(ConfigError, match="Did you mean 'out_channels'"):
        layer.register_mutable_attr('out_channel', 3)
    with pytest.raises(ConfigError, match='about 8 channels'):
        layer.register_mutable_attr('out_channels', SequentialMutableChannelUnit(8))
    layer.register_mutable_attr('out_channels', 7)
    with pytest.raises(SubnetError, match='1 to 6 channels'):
        layer(torch.zeros(1, 4, 5, 5))
    for wrong in (3.0, 'half', True, [True, False]):
        with pytest.raises(ConfigError, match='A size follows a whole number'):
            layer.register_mutable_attr('out_channels', wrong)
    assert layer.get_mutable_attr('out_channels') == 7
    layer.register_mutable_attr('out_channels', Mask(0, 0, 0, 0, 0, 0))
    with pytest.raises(SubnetError, match='at least one'):
        layer.cut()
    with pytest.raises(ConfigError, match='in 2 groups'):
        DynamicConv2d(4, 6, 3, groups=2).register_mutable_attr('out_channels', 3)
    with pytest.raises(ConfigError, match='several axes'):
        DynamicLayerNorm((4, 4)).register_mutable_attr('num_features', 3)
    with pytest.raises(ComponentTypeError, match='made of a Linear'):
        DynamicLinear.convert_from(nn.Conv2d(1, 1, 1))
    assert layer.get_mutable_attr('in_channels') is None
    assert layer.accepted_mutable_attrs == {'in_channels', 'out_channels'}


def test_the_last_decision_that_is_registered_counts():
    layer, x = DynamicConv2d(4, 6, 3), torch.zeros(1, 4, 5, 5)
    unit = SequentialMutableChannelUnit(6, key='unit')
    unit.decide(2)
    for decision, width in ((3, 3), (unit, 2), (4, 4)):
        layer.register_mutable_attr('out_channels', decision)
        assert layer(x).shape[1] == width
    assert 'out_channels' not in layer.mutable_attrs
