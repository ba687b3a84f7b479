from __future__ import annotations

import copy

import pytest
import torch

from strop.architectures.blocks import (
    BaseOP,
    ConvBnAct,
    DepthwiseSeparableConv,
    Identity,
    MBBlock,
    ShortcutLayer,
    ShuffleBlock,
    ShuffleXception,
)
from strop.errors import ConfigError
from strop.registry import MODELS


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def check_backward(block: torch.nn.Module, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    y = block(x)
    assert y.shape == expected
    y.square().sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize('kernel', [3, 5, 7])
@pytest.mark.parametrize(('inputs', 'outputs', 'stride'), [(16, 64, 2), (16, 16, 2), (64, 64, 1)])
def test_shuffle_block(kernel: int, inputs: int, outputs: int, stride: int) -> None:
    block = ShuffleBlock(kernel, in_channels=inputs, out_channels=outputs, stride=stride)
    half, area = outputs // 2, kernel * kernel
    main_in = inputs if stride == 2 else half
    expected = main_in * half + area * half + half * half + 2 * 3 * half
    if stride == 2:
        expected += area * inputs + inputs * half + 2 * (inputs + half)
    assert count(block) == expected
    check_backward(block, (2, inputs, 9, 7), (2, outputs, -(-9 // stride), -(-7 // stride)))


@pytest.mark.parametrize(('inputs', 'outputs', 'stride'), [(16, 64, 2), (64, 64, 1)])
def test_shuffle_xception(inputs: int, outputs: int, stride: int) -> None:
    block = ShuffleXception(in_channels=inputs, out_channels=outputs, stride=stride)
    half = outputs // 2
    first = inputs if stride == 2 else half
    separable = [9 * c + c * half + 2 * c + 2 * half for c in (first, half, half)]
    expected = sum(separable)
    if stride == 2:
        expected += 9 * inputs + inputs * half + 2 * (inputs + half)
    assert count(block) == expected
    check_backward(block, (2, inputs, 8, 8), (2, outputs, 8 // stride, 8 // stride))


def test_shuffle_block_at_stride_one_passes_half_of_the_channels() -> None:
    block = ShuffleBlock(3, in_channels=8, out_channels=8).eval()
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block(x)[:, ::2], x[:, :4])


def test_shuffle_parameters_have_the_names_of_mmrazor() -> None:
    names = set(ShuffleBlock(3, in_channels=4, out_channels=8, stride=2).state_dict())
    assert {'branch1.0.conv.weight', 'branch1.0.bn.weight', 'branch1.1.conv.weight', 'branch2.2.bn.running_mean'} <= names
    names = set(ShuffleXception(in_channels=8, out_channels=8).state_dict())
    assert {'branch2.0.depthwise_conv.conv.weight', 'branch2.2.pointwise_conv.bn.bias'} <= names
    assert not any(name.startswith('branch1') for name in names)
    names = set(MBBlock(3, 6, in_channels=4, out_channels=8, se_cfg={'ratio': 4}).state_dict())
    assert {'expand_conv.conv.weight', 'depthwise_conv.bn.weight', 'se.conv1.conv.weight', 'linear_conv.conv.weight'} <= names
    assert 'downsample.conv.weight' in Identity(in_channels=4, out_channels=8).state_dict()
    assert 'convModule.conv.weight' in ConvBnAct(4, 4, 1).state_dict()
    assert {'conv_dw.conv.weight', 'conv_pw.conv.weight'} <= set(DepthwiseSeparableConv(4, 4).state_dict())


@pytest.mark.parametrize('kernel', [3, 5, 7])
@pytest.mark.parametrize('expand', [1, 3, 6])
@pytest.mark.parametrize(('inputs', 'outputs', 'stride'), [(8, 8, 1), (8, 16, 1), (8, 8, 2)])
def test_mb_block(kernel: int, expand: int, inputs: int, outputs: int, stride: int) -> None:
    block = MBBlock(kernel, expand, in_channels=inputs, out_channels=outputs, stride=stride)
    mid = inputs * expand
    expected = kernel * kernel * mid + mid * outputs + 2 * (mid + outputs)
    if expand > 1:
        expected += inputs * mid + 2 * mid
    assert count(block) == expected
    check_backward(block, (2, inputs, 7, 7), (2, outputs, -(-7 // stride), -(-7 // stride)))
    assert block.with_res_shortcut is (stride == 1 and inputs == outputs)


def test_mb_block_adds_its_input() -> None:
    block = MBBlock(3, 6, in_channels=8, out_channels=8).eval()
    torch.nn.init.zeros_(block.linear_conv.bn.weight)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(x), x)


def test_mb_block_drops_its_path_in_training_only() -> None:
    torch.manual_seed(0)
    block = MBBlock(3, 2, in_channels=4, out_channels=4, drop_path_rate=0.5)
    x = torch.randn(64, 4, 3, 3)
    kept = (block(x) != x).flatten(1).any(1)
    assert 10 < int(kept.sum()) < 54
    block.eval()
    assert bool((block(x) != x).flatten(1).any(1).all())
    block.drop_path_rate = 0.0
    assert block.drop_path_rate == 0.0
    with pytest.raises(ConfigError):
        block.drop_path_rate = 1.5


@pytest.mark.parametrize(('inputs', 'outputs', 'stride', 'size'), [(4, 4, 1, 7), (4, 8, 1, 7), (4, 8, 2, 7), (4, 4, 2, 8)])
def test_attentive_shortcut(inputs: int, outputs: int, stride: int, size: int) -> None:
    block = MBBlock(
        3, 2, in_channels=inputs, out_channels=outputs, stride=stride, with_attentive_shortcut=True, drop_path_rate=0.1
    )
    check_backward(block, (2, inputs, size, size), (2, outputs, -(-size // stride), -(-size // stride)))
    assert (block.shortcut.conv is None) is (inputs == outputs)
    with pytest.raises(ConfigError, match='1 or 2'):
        ShortcutLayer(4, 4, reduction=3)


def test_identity() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert Identity(in_channels=4, out_channels=4)(x) is x
    assert count(Identity(in_channels=4, out_channels=4)) == 0
    for inputs, outputs, stride in ((4, 4, 2), (4, 8, 1), (4, 8, 2)):
        block = Identity(in_channels=inputs, out_channels=outputs, stride=stride)
        assert count(block) == inputs * outputs + 2 * outputs
        check_backward(block, (2, 4, 6, 6), (2, outputs, 6 // stride, 6 // stride))


def test_conv_bn_act() -> None:
    block = ConvBnAct(4, 4, 3, padding=1, skip=True, se_cfg={'squeeze_channels': 2}).eval()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x + block.se(block.convModule(x)))
    check_backward(ConvBnAct(4, 6, 3, stride=2, padding=1), (2, 4, 6, 6), (2, 6, 3, 3))
    with pytest.raises(ConfigError, match='keeps the size, 1 for'):
        ConvBnAct(4, 4, 3, skip=True)


def test_depthwise_separable_conv() -> None:
    block = DepthwiseSeparableConv(4, 4, dw_kernel_size=5, dilation=2).eval()
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(block(x), x + block.conv_pw(block.conv_dw(x)))
    block.has_residual = False
    assert torch.equal(block(x), block.conv_pw(block.conv_dw(x)))
    assert not DepthwiseSeparableConv(4, 4, noskip=True).has_residual
    check_backward(
        DepthwiseSeparableConv(4, 6, stride=2, pw_act=True, se_cfg={'squeeze_channels': 2}), (2, 4, 8, 8), (2, 6, 4, 4)
    )
    with pytest.raises(ConfigError, match='odd'):
        DepthwiseSeparableConv(4, 4, pw_kernel_size=2)


@pytest.mark.parametrize(
    'make',
    [
        lambda cp: ShuffleBlock(5, in_channels=8, out_channels=16, stride=2, with_cp=cp),
        lambda cp: ShuffleXception(in_channels=8, out_channels=8, with_cp=cp),
        lambda cp: MBBlock(3, 3, in_channels=8, out_channels=8, with_cp=cp, drop_path_rate=0.3, se_cfg={'ratio': 4}),
    ],
)
def test_checkpointing_changes_nothing(make) -> None:
    torch.manual_seed(0)
    plain, saving = make(False), make(True)
    saving.load_state_dict(plain.state_dict())
    results = []
    for block in (plain, saving):
        torch.manual_seed(1)
        x = torch.randn(3, 8, 6, 6, requires_grad=True)
        y = block(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, *(p.grad for p in block.parameters()), *block.buffers()))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: ShuffleBlock(4, in_channels=8, out_channels=8), 'odd positive'),
        (lambda: ShuffleBlock(3, in_channels=8, out_channels=16), 'Use stride 2'),
        (lambda: ShuffleBlock(3, in_channels=8, out_channels=9, stride=2), 'even'),
        (lambda: ShuffleXception(in_channels=8, out_channels=6), 'Use stride 2'),
        (lambda: MBBlock(3, 6, in_channels=8, out_channels=8, stride=3), '1 or 2'),
        (lambda: MBBlock(3, 0, in_channels=8, out_channels=8), 'expand_ratio'),
        (lambda: MBBlock(3, 6, in_channels=8, out_channels=8, se_cfg=True), 'se_cfg'),
        (lambda: Identity(in_channels=0, out_channels=8), 'in_channels of Identity'),
        (lambda: Identity(in_channels=8, out_channels=8, strides=2), "unknown arguments .'strides'"),
        (lambda: BaseOP(8, 8.0), 'out_channels'),
    ],
)
def test_arguments_are_checked(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize('scope', ['strop', 'mmrazor'])
def test_blocks_are_built_from_configs(scope: str) -> None:
    shape = {'in_channels': 4, 'out_channels': 4}
    block = MODELS.build(
        {'type': f'{scope}.MBBlock', 'kernel_size': 3, 'expand_ratio': 6, 'act_cfg': {'type': 'ReLU6'}, **shape}
    )
    assert isinstance(block, MBBlock)
    assert isinstance(block.expand_conv.activate, torch.nn.ReLU6)
    assert torch.equal(copy.deepcopy(block).linear_conv.conv.weight, block.linear_conv.conv.weight)
