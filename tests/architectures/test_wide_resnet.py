"""Wide residual networks: parameters, the pre-activation block, frozen stages, starts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from strop.architectures import WideResNet
from strop.architectures.wide_resnet import WideBlock
from strop.errors import ConfigError
from strop.registry import MODELS


@pytest.mark.parametrize(('depth', 'widen', 'millions'), [(40, 1, 0.56), (16, 2, 0.69), (28, 4, 5.85), (22, 8, 17.2)])
def test_parameters_with_a_classifier_are_those_of_the_paper(depth: int, widen: int, millions: float) -> None:
    with torch.device('meta'):
        model = WideResNet(depth, widen, norm_cfg={'type': 'BN'})
    count = sum(parameter.numel() for parameter in model.parameters()) + model.feat_dim * 10 + 10
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(('stride', 'out'), [(1, 4), (2, 4), (1, 6)])
def test_a_block_activates_first_and_takes_the_shortcut_from_there_where_shapes_differ(stride: int, out: int) -> None:
    block = WideBlock(4, out, stride).double().eval()
    for norm in (block.bn1, block.bn2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)

    def normal(norm: nn.Module, y: torch.Tensor) -> torch.Tensor:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    active = normal(block.bn1, x).clamp(min=0)
    hidden = normal(block.bn2, F.conv2d(active, block.conv1.weight, stride=stride, padding=1)).clamp(min=0)
    shortcut = x if block.downsample is None else F.conv2d(active, block.downsample.weight, stride=stride)
    assert (block.downsample is None) == (stride == 1 and out == 4)
    assert torch.allclose(block(x), F.conv2d(hidden, block.conv2.weight, padding=1) + shortcut, atol=1e-12)


def test_what_a_norm_gave_is_not_overwritten_by_the_activation() -> None:
    model = WideResNet(10, 1)
    kept = {}
    for name in ('bn1', 'layer2.0.bn1', 'layer3.0.bn2'):
        hook = lambda module, inputs, output, name=name: kept.update({name: (output, output.clone())})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    model(torch.randn(2, 3, 16, 16))
    for output, copy in kept.values():
        assert torch.equal(output, copy)
        assert (output < 0).any()


@pytest.mark.parametrize('scope', ['strop', 'mmrazor'])
def test_built_from_a_config(scope: str) -> None:
    model = MODELS.build(
        dict(type=f'{scope}.WideResNet', depth=10, in_channels=1, base_channels=4, expansion=3, num_stages=2, dilations=(1, 2))
    )
    assert model.feat_dim == 24
    assert model.layer2[0].conv1.dilation == (2, 2)
    assert model(torch.rand(2, 1, 9, 9)).shape == (2, 24, 5, 5)
    names = {'conv1.weight', 'layer1.0.bn1.weight', 'layer1.0.downsample.weight', 'layer2.0.conv2.weight', 'bn1.running_mean'}
    assert names <= set(model.state_dict())


def test_a_classifier_takes_it_as_a_backbone() -> None:
    classifier = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='WideResNet', depth=10, widen_factor=1),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
        )
    )
    losses = classifier(torch.rand(2, 3, 16, 16), torch.tensor([0, 4]), mode='loss')
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3])
def test_frozen_stages_neither_learn_nor_count(frozen: int) -> None:
    model = WideResNet(10, 1, frozen_stages=frozen).train()
    for number, part in enumerate([model.conv1, *model.stages()]):
        assert all(parameter.requires_grad == (number > frozen) for parameter in part.parameters())
        assert part.training == (number > frozen)


def test_norms_can_stay_in_evaluation() -> None:
    model = WideResNet(10, 1, norm_eval=True).train()
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert model.layer1.training


def test_every_block_can_start_as_its_shortcut_and_still_learn() -> None:
    model = WideResNet(16, 1, zero_init_residual=True)
    model.init_weights()
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(model.layer1[1](x), x)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(module.conv2.weight.grad.abs().sum() > 0 for module in model.modules() if isinstance(module, WideBlock))
    plain = WideResNet(16, 1)
    plain.init_weights()
    assert not torch.equal(plain.layer1[1](x), x)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(depth=26), r'6 n \+ 4.*got 26. 28 is the nearest'),
        (dict(depth=4), '10 is the nearest'),
        (dict(depth=10, num_stages=4), 'num_stages must be 1, 2 or 3'),
        (dict(depth=10, strides=(1, 2)), 'a stride and a dilation'),
        (dict(depth=10, widen_factor=0), 'positive integers'),
        (dict(depth=10, expansion=1.5), 'positive integers'),
        (dict(depth=10, frozen_stages=4), 'frozen_stages'),
    ],
)
def test_numbers_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WideResNet(**options)
