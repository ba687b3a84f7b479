"""The general connectors: a convolution, a norm, any function or module of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from strop.distill.connectors import (
    BaseConnector,
    ConvModuleConnector,
    NormConnector,
    TorchFunctionalConnector,
    TorchNNConnector,
    torch_functions,
    torch_modules,
)
from strop.errors import ComponentTypeError, ConfigError, UnknownTypeError
from strop.registry import MODELS


def test_a_connector_of_the_users_own_is_called_through_forward_train() -> None:
    class Twice(BaseConnector):
        def forward_train(self, feature):
            return 2 * feature

    assert Twice()(torch.ones(3)).tolist() == [2.0] * 3


def test_a_connector_without_forward_train_says_what_is_missing() -> None:
    with pytest.raises(ComponentTypeError, match=r'Half has no forward_train'):
        type('Half', (BaseConnector,), {})()(torch.ones(1))


# -- convolution and norm -------------------------------------------------------------------------


def test_a_1x1_projection_is_a_matrix_product_at_every_pixel() -> None:
    connector = ConvModuleConnector(3, 5, act_cfg=None).double()
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    weight, bias = connector.conv_module.conv.weight[:, :, 0, 0], connector.conv_module.conv.bias
    assert torch.allclose(connector(x), torch.einsum('oc,bchw->bohw', weight, x) + bias[:, None, None], atol=1e-14)


def test_the_options_of_conv_module_arrive() -> None:
    connector = MODELS.build(
        dict(
            type='mmrazor.ConvModuleConnector',
            in_channel=4,
            out_channel=8,
            kernel_size=3,
            stride=2,
            padding=2,
            dilation=2,
            groups=2,
            bias=False,
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='LeakyReLU', negative_slope=0.3),
            with_spectral_norm=True,
            padding_mode='reflect',
            order=('conv', 'act', 'norm'),
        )
    )
    made = connector.conv_module
    assert (made.kernel_size, made.stride, made.padding, made.dilation, made.groups) == (3, 2, 2, 2, 2)
    assert made.conv.bias is None
    assert hasattr(made.conv, 'weight_orig')
    assert made.conv.padding_mode == 'reflect'
    assert made.activate.negative_slope == 0.3
    assert made.order == ('conv', 'act', 'norm')
    assert connector(torch.rand(2, 4, 9, 11)).shape == (2, 8, 5, 6)


def test_what_was_recorded_is_never_changed_in_place() -> None:
    x = torch.randn(2, 3, 4, 4)
    before = x.clone()
    for order in (('act', 'conv', 'norm'), ('conv', 'norm', 'act')):
        ConvModuleConnector(3, 3, norm_cfg=dict(type='BN'), order=order)(x)
        assert torch.equal(x, before)


def test_a_weight_file_fills_a_connector(tmp_path) -> None:
    source = ConvModuleConnector(3, 4)
    state = {f'distiller.connectors.stage1.{key}': value for key, value in source.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'connectors.pth')
    connector = ConvModuleConnector(
        3,
        4,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'connectors.pth'), prefix='distiller.connectors.stage1.'),
    )
    connector.init_weights()
    assert torch.equal(connector.conv_module.conv.weight, source.conv_module.conv.weight)


def test_a_batch_norm_without_parameters_standardises_each_channel() -> None:
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64) * torch.tensor([2.0, 9.0]).reshape(1, 2, 1, 1).double() + 7
    connector = NormConnector(2, dict(type='BN', affine=False, track_running_stats=False, eps=1e-12)).double()
    flat = x.transpose(0, 1).flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True, correction=0)
    assert torch.allclose(connector(x).transpose(0, 1).flatten(1), expected, atol=1e-9)
    assert not list(connector.parameters())


def test_other_norms_are_built_by_their_configs() -> None:
    assert isinstance(NormConnector(4, dict(type='GN', num_groups=2)).norm, nn.GroupNorm)
    frozen = NormConnector(4, dict(type='BN', requires_grad=False))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert MODELS.build(dict(type='NormConnector', in_channels=4, norm_cfg=dict(type='LN2d')))(
        torch.rand(1, 4, 2, 3)
    ).shape == (
        1,
        4,
        2,
        3,
    )


def test_tokens_are_normalised_over_their_last_axis() -> None:
    connector = NormConnector(6, dict(type='LN'))
    tokens = torch.randn(2, 9, 6) + 3
    assert torch.allclose(connector(tokens).mean(-1), torch.zeros(2, 9), atol=1e-5)


@pytest.mark.parametrize(('kind', 'sizes'), [('Conv1d', (7,)), ('Conv3d', (3, 4, 5))])
def test_convolutions_of_other_dimensions_take_features_of_their_own(kind: str, sizes: tuple) -> None:
    connector = ConvModuleConnector(3, 4, conv_cfg=dict(type=kind))
    assert connector(torch.rand(2, 3, *sizes)).shape == (2, 4, *sizes)
    with pytest.raises(ConfigError, match=r'but got \(2, 3, 4, 4\)'):
        connector(torch.rand(2, 3, 4, 4))


def test_bad_norms_are_refused() -> None:
    with pytest.raises(UnknownTypeError, match="Did you mean 'BN"):
        NormConnector(4, dict(type='BNN'))
    with pytest.raises(ConfigError, match='num_groups'):
        NormConnector(4, dict(type='GN'))


@pytest.mark.parametrize('make', [lambda: ConvModuleConnector(3, 4), lambda: NormConnector(3, dict(type='BN'))])
def test_a_feature_of_other_channels_says_which_number_would_fit(make) -> None:
    with pytest.raises(ConfigError, match=r'\(batch, 3, height, width\), but got \(2, 5, 4, 4\).*=5 would fit'):
        make()(torch.rand(2, 5, 4, 4))
    with pytest.raises(ConfigError, match=r'but got \(2, 3\)'):
        make()(torch.rand(2, 3))
    with pytest.raises(ComponentTypeError, match='data_idx'):
        make()((torch.rand(2, 3, 4, 4),))


# -- functions and modules of torch ---------------------------------------------------------------


def test_a_function_gets_the_feature_first_and_its_arguments() -> None:
    x = torch.randn(2, 3, 6, 6)
    for name, args in [
        ('interpolate', dict(size=(3, 9), mode='bilinear', align_corners=False)),
        ('adaptive_avg_pool2d', dict(output_size=1)),
        ('avg_pool2d', dict(kernel_size=2)),
        ('max_pool2d', dict(kernel_size=3)),
        ('normalize', dict(dim=1)),
        ('softmax', dict(dim=1)),
        ('relu', {}),
        ('gelu', {}),
        ('pad', dict(pad=(1, 1))),
    ]:
        config = dict(type='TorchFunctionalConnector', function_name=name, func_args=args)
        assert torch.equal(MODELS.build(config)(x), getattr(F, name)(x, **args)), name


def test_only_public_functions_that_compute_are_reachable() -> None:
    names = set(torch_functions())
    assert {'interpolate', 'conv2d', 'softplus', 'pixel_shuffle', 'layer_norm', 'one_hot'} <= names
    unwanted = {'relu_', '_in_projection', 'has_torch_function', 'handle_torch_function', 'boolean_dispatch', 'torch', 'Tensor'}
    assert not names & unwanted
    assert not [name for name in names if name.endswith('_') or name.startswith('_')]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('interpolat', "Did you mean 'interpolate'"),
        ('relu_', "Did you mean 'relu"),
        ('__import__', 'public function'),
        ('torch', 'public function'),
        ('warnings', 'public function'),
        (None, 'got None'),
    ],
)
def test_an_unknown_function_is_refused(name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchFunctionalConnector(name)


@pytest.mark.parametrize('name', ['Conv3', 'Parameter', 'Module', 'init', '_reduction', None])
def test_an_unknown_module_is_refused(name) -> None:
    with pytest.raises(ConfigError, match='public module class'):
        TorchNNConnector(name)


def test_arguments_that_do_not_fit_are_refused_when_it_is_built() -> None:
    with pytest.raises(ConfigError, match='scale_facto'):
        TorchFunctionalConnector('interpolate', dict(scale_facto=2))
    with pytest.raises(ConfigError, match=r"takes 'kernel_size', 'stride'"):
        TorchNNConnector('AvgPool2d', dict(kernel=2))
    with pytest.raises(ConfigError, match='must be a dict'):
        TorchNNConnector('AvgPool2d', [2])


def test_arguments_of_a_builtin_that_do_not_fit_are_refused_when_it_is_called() -> None:
    with pytest.raises(ConfigError, match='pixel_shuffle cannot be called'):
        TorchFunctionalConnector('pixel_shuffle', dict(factor=2))(torch.rand(1, 4, 2, 2))


def test_working_in_place_is_refused() -> None:
    with pytest.raises(ConfigError, match='inplace=True'):
        TorchFunctionalConnector('relu', dict(inplace=True))
    with pytest.raises(ConfigError, match='inplace=True'):
        TorchNNConnector('ReLU', dict(inplace=True))


def test_a_module_is_trained_with_the_connector() -> None:
    connector = MODELS.build(
        dict(
            type='mmrazor.TorchNNConnector',
            module_name='Conv2d',
            module_args=dict(in_channels=2, out_channels=3, kernel_size=1),
        )
    )
    connector(torch.rand(1, 2, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in connector.parameters())
    assert 'Parameter' not in torch_modules()
    assert {'Conv2d', 'Upsample', 'Flatten', 'LayerNorm'} <= set(torch_modules())
