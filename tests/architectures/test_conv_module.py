from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from strop.architectures.conv_module import (
    ConvModule,
    DepthwiseSeparableConvModule,
    HSigmoid,
    LayerNorm2d,
    build_activation_layer,
    build_conv_layer,
    build_norm_layer,
    norm_short_name,
)
from strop.errors import ConfigError, UnknownTypeError
from strop.registry import MODELS

BN = {'type': 'BN'}


def keys(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('mode', ['zeros', 'reflect', 'replicate', 'circular'])
def test_equals_the_same_layers_in_a_sequential(training: bool, mode: str) -> None:
    torch.manual_seed(0)
    module = ConvModule(4, 6, 3, stride=2, padding=1, groups=2, norm_cfg=BN, padding_mode=mode)
    plain = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False, padding_mode=mode), nn.BatchNorm2d(6), nn.ReLU()
    )
    plain[0].load_state_dict(module.conv.state_dict())
    module.train(training)
    plain.train(training)
    x = torch.randn(3, 4, 7, 7)
    assert torch.equal(module(x), plain(x))
    assert torch.equal(module.bn.running_mean, plain[1].running_mean)


@pytest.mark.parametrize('order', list(itertools.permutations(('conv', 'norm', 'act'))))
def test_every_order_equals_the_layers_in_that_order(order: tuple[str, str, str]) -> None:
    torch.manual_seed(0)
    module = ConvModule(3, 5, 3, padding=1, norm_cfg=BN, order=order, inplace=False)
    module.bn.weight.data.uniform_(0.5, 1.5)
    parts = {'conv': module.conv, 'norm': module.bn, 'act': module.activate}
    x = torch.randn(2, 3, 6, 6)
    module.eval()
    assert torch.equal(module(x), nn.Sequential(*(parts[name] for name in order))(x))
    assert module.bn.num_features == (5 if order.index('norm') > order.index('conv') else 3)


def test_order_and_padding_mode_are_checked() -> None:
    with pytest.raises(ConfigError, match='permutation'):
        ConvModule(1, 1, 1, order=('conv', 'act', 'act'))
    with pytest.raises(ConfigError, match="Did you mean 'reflect'"):
        ConvModule(1, 1, 1, padding_mode='reflected')


@pytest.mark.parametrize(
    ('norm_cfg', 'name'),
    [
        ({'type': 'BN'}, 'bn'),
        ({'type': 'SyncBN'}, 'bn'),
        ({'type': 'GN', 'num_groups': 2}, 'gn'),
        ({'type': 'IN', 'affine': True}, 'in'),
        ({'type': 'LN2d'}, 'ln'),
    ],
)
def test_parameter_names_are_those_of_mmcv(norm_cfg: dict, name: str) -> None:
    module = ConvModule(2, 4, 1, norm_cfg=norm_cfg)
    assert keys(module) == ['conv.weight', f'{name}.weight', f'{name}.bias']
    assert module.norm is getattr(module, name)
    assert module.norm_name == name


def test_bias_is_there_exactly_without_a_norm() -> None:
    assert keys(ConvModule(2, 4, 1)) == ['conv.weight', 'conv.bias']
    assert keys(ConvModule(2, 4, 1, bias=False)) == ['conv.weight']
    with pytest.warns(UserWarning, match='no effect'):
        assert 'conv.bias' in keys(ConvModule(2, 4, 1, bias=True, norm_cfg=BN))


def test_norm_and_activation_can_be_left_out_of_a_call() -> None:
    module = ConvModule(2, 3, 1, norm_cfg=BN).eval()
    module.bn.bias.data.fill_(-1.0)
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(module(x, activate=False), module.bn(module.conv(x)))
    assert torch.equal(module(x, norm=False), module.conv(x).relu())
    assert torch.equal(module(x, activate=False, norm=False), module.conv(x))


def test_no_norm_and_no_activation() -> None:
    module = ConvModule(2, 3, 1, act_cfg=None)
    assert module.norm is None
    assert not hasattr(module, 'activate')
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(module(x), module.conv(x))


def test_spectral_norm_gives_a_weight_of_norm_one() -> None:
    torch.manual_seed(0)
    module = ConvModule(3, 4, 1, act_cfg=None, with_spectral_norm=True)
    for _ in range(50):
        module(torch.randn(1, 3, 2, 2))
    largest = torch.linalg.svdvals(module.conv.weight.detach().reshape(4, 3))[0]
    assert largest.item() == pytest.approx(1.0, abs=1e-4)
    assert 'conv.weight_orig' in module.state_dict()


def test_convolution_starts_with_the_variance_of_he() -> None:
    torch.manual_seed(0)
    weight = ConvModule(64, 128, 3).conv.weight
    assert weight.var().item() == pytest.approx(2 / (128 * 9), rel=0.05)


def test_an_init_cfg_of_the_parent_wins() -> None:
    from mmengine.model import Sequential

    parent = Sequential(ConvModule(2, 2, 1), init_cfg={'type': 'Constant', 'val': 3.0, 'layer': 'Conv2d'})
    parent.init_weights()
    assert bool((parent[0].conv.weight == 3).all())


def test_norm_options() -> None:
    _, norm = build_norm_layer({'type': 'BN', 'momentum': 0.01, 'eps': 1e-3, 'requires_grad': False}, 4, postfix=2)
    assert (norm.momentum, norm.eps) == (0.01, 1e-3)
    assert not any(parameter.requires_grad for parameter in norm.parameters())
    assert build_norm_layer({'type': 'BN'}, 4, postfix='_a')[0] == 'bn_a'


def test_configs_are_not_changed() -> None:
    conv, norm, act = {'type': 'Conv2d'}, {'type': 'BN', 'requires_grad': True}, {'type': 'ReLU'}
    ConvModule(2, 2, 1, conv_cfg=conv, norm_cfg=norm, act_cfg=act)
    assert (conv, norm, act) == ({'type': 'Conv2d'}, {'type': 'BN', 'requires_grad': True}, {'type': 'ReLU'})


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: build_norm_layer({'type': 'BN2'}, 4), "Did you mean 'BN2d' or 'BN'"),
        (lambda: build_activation_layer({'type': 'Relu7'}), "'ReLU"),
        (lambda: build_conv_layer({'type': 'Conv2D_'}, 1, 1, 1), "Did you mean 'Conv2d'"),
    ],
)
def test_unknown_types_name_the_near_ones(call, message: str) -> None:
    with pytest.raises(UnknownTypeError, match=message):
        call()


def test_configs_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match='num_groups'):
        build_norm_layer({'type': 'GN'}, 4)
    with pytest.raises(ConfigError, match="with a 'type'"):
        build_norm_layer({'momentum': 0.1}, 4)
    with pytest.raises(ConfigError, match=r"'num_groups': 32.*num_channels=16.*divisible by num_groups"):
        build_norm_layer({'type': 'GN', 'num_groups': 32}, 16)
    with pytest.raises(ConfigError, match=r"'groups': 2.*Conv2d\(3, 8, kernel_size=3, groups=2\).*divisible by groups"):
        build_conv_layer({'type': 'Conv2d', 'groups': 2}, 3, 8, kernel_size=3)
    with pytest.raises(ConfigError, match='slope'):
        build_activation_layer({'type': 'ReLU', 'slope': 0.1})


@pytest.mark.parametrize(
    ('name', 'function'),
    [
        ('ReLU6', torch.nn.functional.relu6),
        ('HSwish', lambda x: x * (x + 3).clamp(0, 6) / 6),
        ('Swish', lambda x: x * x.sigmoid()),
        ('SiLU', lambda x: x * x.sigmoid()),
        ('HSigmoid', lambda x: (x + 3).clamp(0, 6) / 6),
        ('GELU', torch.nn.functional.gelu),
        ('Sigmoid', torch.sigmoid),
    ],
)
def test_activations_by_name(name: str, function) -> None:
    x = torch.linspace(-5, 5, 41, dtype=torch.float64)
    torch.testing.assert_close(build_activation_layer({'type': name}, inplace=True)(x.clone()), function(x))


def test_hsigmoid_takes_the_older_form() -> None:
    assert HSigmoid(bias=1, divisor=2)(torch.tensor([0.5])).item() == 0.75
    with pytest.raises(ConfigError):
        HSigmoid(divisor=0)


def test_a_layer_of_the_user_is_found_by_name() -> None:
    @MODELS.register_module(name='TestTwice', force=True)
    class Twice(nn.Module):
        _abbr_ = 'twice'

        def __init__(self, features: int, eps: float) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    module = ConvModule(1, 1, 1, norm_cfg={'type': 'TestTwice'}, act_cfg=None)
    x = torch.ones(1, 1, 1, 1)
    assert module.norm_name == 'twice'
    assert torch.equal(module(x), 2 * module.conv(x))
    assert norm_short_name(nn.LayerNorm) == 'ln'
    assert norm_short_name(nn.Identity) == 'norm_layer'


def test_layer_norm_over_channels_by_hand() -> None:
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(LayerNorm2d(5, eps=1e-5).double()(x), expected)


def test_depthwise_separable_module() -> None:
    module = DepthwiseSeparableConvModule(4, 6, 3, stride=2, padding=1, norm_cfg=BN, dw_act_cfg=None)
    assert module.depthwise_conv.conv.groups == 4
    assert not module.depthwise_conv.with_activation
    assert module.pointwise_conv.with_activation
    # 4 * 9 depthwise, 4 * 6 pointwise, and two numbers for each of 4 + 6 norm channels
    assert sum(p.numel() for p in module.parameters()) == 36 + 24 + 20
    assert module(torch.rand(1, 4, 5, 5)).shape == (1, 6, 3, 3)
    with pytest.raises(ConfigError, match='groups'):
        DepthwiseSeparableConvModule(4, 6, 3, groups=2)
