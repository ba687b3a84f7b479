"""Attention masks, non-local relations, the fusion of levels: against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.distill.attention_connectors import (
    PAIRWISE,
    ABFConnector,
    FBKDStudentConnector,
    FBKDTeacherConnector,
    NonLocal2d,
    attention_masks,
)
from strop.errors import ComponentTypeError, ConfigError
from strop.registry import MODELS


def pooled(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Return the maxima of the whole stride x stride blocks of one image (channels, height, width)."""
    height, width = x.shape[1] // stride, x.shape[2] // stride
    blocks = x[:, : height * stride, : width * stride].reshape(-1, height, stride, width, stride)
    return blocks.amax(dim=(2, 4))


def answered(block: NonLocal2d, image: torch.Tensor, stride: int) -> torch.Tensor:
    """Return y of one image by loops over pixels, before `conv_out`."""

    def project(layer: torch.nn.Module) -> torch.Tensor:
        return torch.einsum('oc,chw->ohw', layer.conv.weight[:, :, 0, 0], image) + layer.conv.bias[:, None, None]

    g = pooled(project(block.g), stride).flatten(1)
    theta = image if block.mode == 'gaussian' else project(block.theta)
    phi = pooled(image if block.mode == 'gaussian' else project(block.phi), stride).flatten(1)
    theta = theta.flatten(1)
    columns = []
    for i in range(theta.shape[1]):
        row = []
        for j in range(phi.shape[1]):
            if block.mode == 'concatenation':
                w = block.concat_project.conv.weight.flatten()
                row.append((w @ torch.cat([theta[:, i], phi[:, j]])).clamp(min=0))
            else:
                product = theta[:, i] @ phi[:, j]
                row.append(product / math.sqrt(len(theta)) if block.mode == 'embedded_gaussian' else product)
        weights = torch.stack(row)
        weights = weights.exp() / weights.exp().sum() if 'gaussian' in block.mode else weights / len(weights)
        columns.append(g @ weights)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize('mode', PAIRWISE)
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_a_non_local_block_is_a_weighted_mean_over_pixels(mode: str, stride: int) -> None:
    torch.manual_seed(0)
    block = NonLocal2d(
        6, reduction=1 if mode == 'gaussian' else 2, norm_cfg=None, mode=mode, sub_sample=stride > 1, maxpool_stride=stride
    ).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 6, 4, 7, dtype=torch.float64)
    out, bias = block.conv_out.conv.weight[:, :, 0, 0], block.conv_out.conv.bias
    for image, found in zip(x, block(x)):
        expected = image + (out @ answered(block, image, stride) + bias[:, None]).reshape(6, 4, 7)
        assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize('mode', PAIRWISE)
def test_gradients_of_a_non_local_block_are_those_of_differences(mode: str) -> None:
    torch.manual_seed(1)
    block = NonLocal2d(2, reduction=1, norm_cfg=None, mode=mode, zeros_init=False).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    block(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN'), dict(type='GN', num_groups=2)])
def test_a_block_starts_as_the_identity_unless_told_otherwise(norm_cfg: dict | None) -> None:
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(NonLocal2d(4, norm_cfg=norm_cfg)(x), x)
    assert not torch.equal(NonLocal2d(4, norm_cfg=norm_cfg, zeros_init=False)(x), x)


def test_a_map_smaller_than_the_pooling_is_pooled_to_one_pixel() -> None:
    block = NonLocal2d(4, mode='dot_product', sub_sample=True, maxpool_stride=8)
    assert block.weights(torch.rand(2, 4, 3, 20)).shape == (2, 60, 2)


def test_without_scaling_an_embedded_gaussian_is_sharper() -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(1, 8, 3, 3)
    plain, scaled = NonLocal2d(8, use_scale=False), NonLocal2d(8)
    scaled.load_state_dict(plain.state_dict())
    product = torch.einsum('bci,bcj->bij', plain.theta(x).flatten(2), plain.phi(x).flatten(2))
    assert torch.allclose(plain.weights(x), product.softmax(-1), atol=1e-6)
    assert torch.allclose(scaled.weights(x), (product / 2).softmax(-1), atol=1e-6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mode='dot_produkt'), "Did you mean 'dot_product'"),
        (dict(reduction=0), 'positive'),
        (dict(maxpool_stride=0), 'positive'),
    ],
)
def test_options_of_a_block_are_checked(options: dict, message: str) -> None:
    for make in (NonLocal2d, FBKDStudentConnector, FBKDTeacherConnector):
        with pytest.raises(ConfigError, match=message):
            make(4, **options)


# -- FBKD -------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 3), st.floats(0.1, 3))
def test_masks_are_softmax_shares_with_mean_one(channels: int, height: int, width: int, spatial: float, channel: float) -> None:
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    pixels, maps = attention_masks(x, spatial, channel)
    for image, pixel_mask, map_mask in zip(x, pixels, maps):
        strength = {
            (h, w): math.exp(sum(abs(image[c, h, w].item()) for c in range(channels)) / channels / spatial)
            for h in range(height)
            for w in range(width)
        }
        for (h, w), value in strength.items():
            assert pixel_mask[0, h, w].item() == pytest.approx(height * width * value / sum(strength.values()), rel=1e-9)
        means = [math.exp(image[c].abs().mean().item() / channel) for c in range(channels)]
        for c, value in enumerate(means):
            assert map_mask[c, 0, 0].item() == pytest.approx(channels * value / sum(means), rel=1e-9)


@pytest.mark.parametrize('size', [(8, 8), (5, 7), (1, 3)])
def test_both_sides_give_what_the_loss_takes_in_its_order(size: tuple[int, int]) -> None:
    config = dict(in_channels=6, reduction=3, sub_sample=True, maxpool_stride=4, zeros_init=False)
    student = MODELS.build(dict(type='mmrazor.FBKDStudentConnector', **config)).double()
    teacher = MODELS.build(dict(type='mmrazor.FBKDTeacherConnector', **config)).double()
    x, y = torch.randn(2, 2, 6, *size, dtype=torch.float64)
    pixels, maps, channel_means, spatial_means, relation, feature = student(x)
    assert torch.equal(pixels, attention_masks(x, 0.5, 0.5)[0])
    assert torch.equal(maps, attention_masks(x, 0.5, 0.5)[1])
    linear = student.channel_wise_adaptation
    assert torch.allclose(channel_means, x.mean((2, 3)) @ linear.weight.T + linear.bias)
    conv = student.spatial_wise_adaptation
    assert torch.allclose(spatial_means, F.conv2d(x.mean(1, keepdim=True), conv.weight, conv.bias, padding=1))
    conv = student.adaptation_layers
    assert torch.allclose(feature, F.conv2d(x, conv.weight, conv.bias))
    assert relation.shape == x.shape
    pixels, maps, spatial_means, relation, feature = teacher(y)
    assert pixels.shape == (2, 1, *size)
    assert maps.shape == (2, 6, 1, 1)
    assert torch.equal(spatial_means, y.mean(1, keepdim=True))
    assert torch.allclose(relation, teacher.teacher_non_local(y))
    assert feature is y


def test_every_parameter_of_both_sides_gets_a_gradient() -> None:
    for connector in (FBKDStudentConnector(4, zeros_init=False), FBKDTeacherConnector(4, zeros_init=False)):
        sum(output.square().sum() for output in connector(torch.randn(2, 4, 3, 3))).backward()
        assert all(parameter.grad is not None for parameter in connector.parameters())


def test_temperatures_and_channels_are_checked() -> None:
    with pytest.raises(ConfigError, match='must be positive'):
        FBKDStudentConnector(4, spatial_T=0)
    with pytest.raises(ConfigError, match='must be positive'):
        FBKDTeacherConnector(4, channel_T=-1)
    with pytest.raises(ConfigError, match='in_channels=5 would fit'):
        FBKDTeacherConnector(4)(torch.zeros(1, 5, 3, 3))


# -- Review KD --------------------------------------------------------------------------------------


def test_levels_are_fused_from_the_deepest_by_the_formula() -> None:
    torch.manual_seed(0)
    connector = ABFConnector([3, 4, 6], [5, 7, 9], mid_channels=2).double().eval()
    features = [torch.randn(2, 3, 9, 9), torch.randn(2, 4, 5, 5), torch.randn(2, 6, 2, 3)]
    features = [feature.double() for feature in features]
    outputs = connector(tuple(features))
    deeper = None
    for level in (2, 1, 0):
        x = connector.conv1[level](features[level])
        if deeper is not None:
            rows = [h * deeper.shape[2] // x.shape[2] for h in range(x.shape[2])]
            columns = [w * deeper.shape[3] // x.shape[3] for w in range(x.shape[3])]
            up = deeper[:, :, rows][:, :, :, columns]
            att = connector.att_conv[level]
            logits = torch.einsum('oc,bchw->bohw', att.weight[:, :, 0, 0], torch.cat([x, up], 1)) + att.bias[:, None, None]
            shares = 1 / (1 + torch.exp(-logits))
            x = shares[:, 0:1] * x + shares[:, 1:2] * up
        assert torch.allclose(outputs[level], connector.conv2[level](x), atol=1e-12)
        deeper = x
    assert [tuple(output.shape) for output in outputs] == [(2, 5, 9, 9), (2, 7, 5, 5), (2, 9, 2, 3)]


def test_every_level_learns_from_the_first_output() -> None:
    connector = ABFConnector([3, 4], [5, 7]).train()
    connector((torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)))[0].square().sum().backward()
    for name in ('conv1.0', 'conv1.1', 'att_conv.0', 'conv2.0'):
        assert all(parameter.grad is not None for parameter in connector.get_submodule(name).parameters()), name


def test_outputs_take_the_sizes_of_the_teacher_where_they_differ() -> None:
    connector = ABFConnector([3, 4], [3, 4], out_sizes=[(6, 4), 7])
    outputs = connector([torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)])
    assert [tuple(output.shape[2:]) for output in outputs] == [(6, 4), (7, 7)]


def test_levels_are_checked() -> None:
    with pytest.raises(ConfigError, match='equally long'):
        ABFConnector([3, 4], [3])
    with pytest.raises(ConfigError, match='equally long'):
        ABFConnector([], [])
    connector = ABFConnector([3, 4], [3, 4])
    with pytest.raises(ConfigError, match='a Tensor'):
        connector(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match='1 of them'):
        connector([torch.zeros(1, 3, 4, 4)])
    with pytest.raises(ConfigError, match=r'in_channels\[1\]=4 .* got \(1, 5, 2, 2\)'):
        connector([torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 2, 2)])
    with pytest.raises(ComponentTypeError, match='one tensor'):
        connector([torch.zeros(1, 3, 4, 4), 1])


@pytest.mark.parametrize('mode', PAIRWISE)
def test_half_precision_is_finite_and_near(mode: str) -> None:
    torch.manual_seed(0)
    connector = FBKDStudentConnector(8, mode=mode, zeros_init=False)
    x = torch.randn(2, 8, 6, 6)
    exact = connector(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = connector(x)
    for a, b in zip(found, exact):
        assert torch.allclose(a.float(), b, atol=0.05, rtol=0.05)
