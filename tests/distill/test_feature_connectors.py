"""Factor transfer, masked generation, overhauled features, contrast, be your own teacher."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strop.distill.feature_connectors import (
    BYOTConnector,
    CRDConnector,
    MGDConnector,
    OFDTeacherConnector,
    Paraphraser,
    Translator,
    negative_mean,
)
from strop.errors import ComponentTypeError, ConfigError, ModeError
from strop.randomness import seed_everything
from strop.registry import MODELS


def gradients_flow(connector: nn.Module, *outputs: torch.Tensor) -> None:
    sum(output.float().square().sum() for output in outputs).backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


# -- factor transfer --------------------------------------------------------------------------------


@pytest.mark.parametrize('use_bn', [False, True])
def test_a_paraphraser_reconstructs_in_one_phase_and_gives_factors_in_the_other(use_bn: bool) -> None:
    paraphraser = Paraphraser(6, 3, use_bn=use_bn)
    feature = torch.randn(2, 6, 5, 7)
    reconstruction = paraphraser(feature)
    assert reconstruction.shape == feature.shape
    gradients_flow(paraphraser, reconstruction - feature)
    paraphraser.phase = 'train'
    factor = paraphraser(feature)
    assert factor.shape == (2, 3, 5, 7)
    assert not factor.requires_grad
    assert torch.equal(factor, paraphraser.encoder(feature))


def test_a_pretrained_paraphraser_stays_as_it_is() -> None:
    paraphraser = MODELS.build(
        dict(type='mmrazor.Paraphraser', in_channel=4, out_channel=2, phase='train', use_bn=True)
    ).train()
    before = {name: value.clone() for name, value in paraphraser.state_dict().items()}
    paraphraser(torch.randn(8, 4, 6, 6) + 3)
    assert not any(parameter.requires_grad for parameter in paraphraser.parameters())
    assert all(torch.equal(value, before[name]) for name, value in paraphraser.state_dict().items())


def test_training_a_paraphraser_lowers_its_reconstruction_error() -> None:
    seed_everything(0)
    paraphraser = Paraphraser(4, 2)
    feature = F.relu(torch.randn(16, 4, 4, 4))
    optimizer = torch.optim.Adam(paraphraser.parameters(), lr=1e-2)
    errors = []
    for _ in range(30):
        error = F.mse_loss(paraphraser(feature), feature)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]


def test_an_unknown_phase_is_refused_also_later() -> None:
    with pytest.raises(ModeError, match="Did you mean 'pretrain'"):
        Paraphraser(4, 2, phase='pretrian')
    paraphraser = Paraphraser(4, 2)
    with pytest.raises(ModeError, match="'pretrain' or 'train'"):
        paraphraser.phase = 'test'
    assert paraphraser.phase == 'pretrain'


def test_the_parameters_of_both_have_the_names_of_checkpoints_in_use() -> None:
    convolutions = {f'encoder.{place}.{kind}' for place in (0, 3, 6) for kind in ('weight', 'bias')}
    assert set(Translator(4, 2, use_bn=False).state_dict()) == convolutions
    assert convolutions < set(Paraphraser(4, 2).state_dict())
    assert 'encoder.4.running_mean' in Translator(4, 2).state_dict()


def test_a_translator_gives_a_factor_and_learns() -> None:
    translator = Translator(5, 3)
    factor = translator(torch.randn(2, 5, 3, 9))
    assert factor.shape == (2, 3, 3, 9)
    gradients_flow(translator, factor)


# -- masked generation ------------------------------------------------------------------------------


@pytest.mark.parametrize('on_channel', [False, True])
def test_what_is_generated_is_two_convolutions_of_the_masked_and_aligned_feature(on_channel: bool) -> None:
    connector = MGDConnector(4, 6, mask_on_channel=on_channel).double()
    feature = torch.randn(3, 4, 5, 7, dtype=torch.float64)
    seed_everything(3)
    result = connector(feature)
    seed_everything(3)
    mask = (torch.rand((3, 6, 1, 1) if on_channel else (3, 1, 5, 7)) >= 0.65).double()
    first, _, second = connector.generation
    aligned = F.conv2d(feature, connector.align.weight, connector.align.bias)
    hidden = F.conv2d(mask * aligned, first.weight, first.bias, padding=1).clamp(min=0)
    assert torch.allclose(result, F.conv2d(hidden, second.weight, second.bias, padding=1), atol=1e-12)
    gradients_flow(connector, result)


@pytest.mark.parametrize(('on_channel', 'shape'), [(True, (2, 50000, 1, 1)), (False, (2, 1, 250, 200))])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_share_that_is_hidden_is_lambda(on_channel: bool, shape: tuple, dtype: torch.dtype) -> None:
    seed_everything(0)
    connector = MGDConnector(2, 2, lambda_mgd=0.65, mask_on_channel=on_channel)
    feature = torch.empty(2, 50000, 1, 1, dtype=dtype) if on_channel else torch.empty(2, 2, 250, 200, dtype=dtype)
    mask = connector.draw_mask(feature)
    assert mask.shape == shape
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert 1 - mask.float().mean().item() == pytest.approx(0.65, abs=4 * math.sqrt(0.65 * 0.35 / 1e5))


def test_masks_repeat_under_one_seed_and_differ_under_another() -> None:
    connector, feature = MGDConnector(4, 4), torch.randn(2, 4, 6, 6)
    results = []
    for seed in (1, 1, 2):
        seed_everything(seed)
        results.append(connector(feature))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_nothing_is_hidden_in_evaluation_and_equal_channels_need_no_alignment() -> None:
    connector, feature = MGDConnector(4, 4).eval(), torch.randn(2, 4, 6, 6)
    assert connector.align is None
    assert torch.equal(connector(feature), connector.generation(feature))


@pytest.mark.parametrize('share', [-0.1, 1.0, 65])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r'\[0, 1\)'):
        MGDConnector(4, 4, lambda_mgd=share)


# -- overhauled features ----------------------------------------------------------------------------


def integrated(mean: float, std: float) -> float:
    """Return the mean of the negative part by the trapezoidal rule."""
    x = torch.linspace(min(mean - 12 * std, -12 * std), 0, 400_001, dtype=torch.float64)
    # The common factor of the density is chosen such that it cannot underflow at the upper end.
    log_density = -0.5 * ((x - mean) / std) ** 2
    density = (log_density - log_density.max()).exp()
    return (torch.trapezoid(x * density, x) / torch.trapezoid(density, x)).item()


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 6), st.floats(0.2, 3))
def test_the_mean_of_the_negative_values_is_that_of_numeric_integration(ratio: float, std: float) -> None:
    mean = ratio * std
    found = negative_mean(torch.tensor(mean, dtype=torch.float64), torch.tensor(-std, dtype=torch.float64), rare=0)
    assert found.item() == pytest.approx(integrated(mean, std), rel=1e-6)


def test_the_mean_of_the_negative_values_of_many_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 0.7 + 1.3 * torch.randn(400_000, generator=generator, dtype=torch.float64)
    below = draws[draws < 0]
    found = negative_mean(torch.tensor(0.7), torch.tensor(1.3)).item()
    assert below.mean().item() == pytest.approx(found, abs=4 * below.std().item() / math.sqrt(len(below)))


def test_channels_that_are_hardly_ever_negative_get_three_deviations() -> None:
    found = negative_mean(torch.tensor([3.0, 3.2, 100.0]), torch.tensor([1.0, -1.0, 2.0]))
    assert found[0].item() == pytest.approx(integrated(3.0, 1.0), rel=1e-6)
    assert found[1:].tolist() == [-3.0, -6.0]
    exact = negative_mean(torch.tensor([40.0, 1e4]), torch.tensor([1.0, 1.0]), rare=0)
    assert exact[0].item() == pytest.approx(-1 / 40, rel=2e-3)
    assert torch.isfinite(exact).all()


def test_a_constant_channel_has_its_own_negative_value() -> None:
    assert negative_mean(torch.tensor([-2.0, 2.0, 0.0]), torch.zeros(3)).tolist() == [-2.0, 0.0, 0.0]


def test_the_margin_relu_cuts_at_the_margin_of_each_channel() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    connector = MODELS.build(dict(type='mmrazor.OFDTeacherConnector'))
    connector.init_margin(norm)
    margins = [integrated(0, 1), integrated(1, 2), integrated(-1, 0.5)]
    feature = torch.randn(2, 3, 4, 5, requires_grad=True) * 3
    result = connector(feature)
    assert torch.allclose(result, torch.maximum(feature.detach(), torch.tensor(margins).reshape(1, 3, 1, 1)), atol=1e-6)
    assert not result.requires_grad
    assert connector(feature.to(torch.bfloat16)).dtype == torch.bfloat16


def test_margins_are_also_taken_as_numbers_and_from_a_norm_without_parameters() -> None:
    connector = OFDTeacherConnector()
    connector.init_margin(torch.tensor([-1.0, -2.0]))
    assert connector(torch.full((1, 2, 1, 1), -9.0)).flatten().tolist() == [-1.0, -2.0]
    connector.init_margin(nn.BatchNorm2d(2, affine=False))
    assert connector.margin.flatten().tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 2)
    assert not connector.state_dict()


def test_a_missing_or_wrong_source_of_margins_is_refused() -> None:
    connector = OFDTeacherConnector()
    with pytest.raises(ConfigError, match='OFDDistiller'):
        connector(torch.zeros(1, 2, 3, 3))
    with pytest.raises(ComponentTypeError, match='Conv2d'):
        connector.init_margin(nn.Conv2d(2, 2, 1))
    connector.init_margin(nn.BatchNorm2d(2))
    with pytest.raises(ConfigError, match=r'\(1, 3, 2, 2\)'):
        connector(torch.zeros(1, 3, 2, 2))


# -- contrast ---------------------------------------------------------------------------------------


def test_an_embedding_is_a_linear_layer_of_length_one() -> None:
    connector = MODELS.build(dict(type='mmrazor.CRDConnector', dim_in=12, dim_out=5)).double()
    feature = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    plain = feature.reshape(4, 12) @ connector.linear.weight.T + connector.linear.bias
    assert torch.allclose(connector(feature), plain / plain.square().sum(1, keepdim=True).sqrt(), atol=1e-14)
    gradients_flow(connector, connector(feature)[:, :2])


def test_a_feature_of_another_size_says_which_dim_in_would_fit() -> None:
    with pytest.raises(ConfigError, match='dim_in=16 would fit'):
        CRDConnector(12, 5)(torch.zeros(2, 4, 2, 2))
    with pytest.raises(ComponentTypeError, match='data_idx'):
        CRDConnector(12, 5)([torch.zeros(2, 12)])


# -- be your own teacher ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'size', 'pooled'),
    [
        (dict(in_channel=4, out_channel=32, expansion=1, stride=2), 32, 32),
        (dict(in_channel=2, out_channel=4, stride=2), 8, 16),
        (dict(in_channel=4, out_channel=16, expansion=1, pool_size=7), 7, 16),
        (dict(in_channel=4, out_channel=8, expansion=1, stride=2, kernel_size=5, pool_size=(3, 3)), 5, 8),
        (dict(in_channel=8, out_channel=8, expansion=1, pool_size=5), 5, 8),
    ],
)
def test_a_shallow_classifier_gives_a_feature_and_logits(options: dict, size: int, pooled: int) -> None:
    connector = MODELS.build(dict(type='mmrazor.BYOTConnector', num_classes=10, **options))
    channels = options['in_channel'] * options.get('expansion', 4)
    feature = torch.randn(3, channels, size, size)
    deep, logits = connector(feature)
    assert deep.shape == (3, pooled)
    assert torch.equal(logits, connector.fc(deep))
    gradients_flow(connector, deep, logits)


def test_the_attention_weighs_the_feature_before_it_is_made_deep() -> None:
    connector = BYOTConnector(4, 8, num_classes=3, expansion=1, pool_size=3, stride=2).double().eval()
    feature = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    weights = torch.sigmoid(F.interpolate(connector.attention(feature), size=(5, 5), mode='bilinear'))
    assert connector.attention(feature).shape[2:] == (3, 3)
    deep = connector.scala[0](feature * weights)
    assert torch.allclose(connector(feature)[0], deep.mean(dim=(2, 3)), atol=1e-12)


def test_channels_kernels_and_pools_that_cannot_meet_are_refused() -> None:
    for out_channel in (48, 8):
        with pytest.raises(ConfigError, match='power of two'):
            BYOTConnector(16, out_channel, num_classes=3)
    with pytest.raises(ConfigError, match='odd'):
        BYOTConnector(16, 32, num_classes=3, kernel_size=4)
    with pytest.raises(ConfigError, match=r'8x8 pixels.*pool_size=\(8, 8\)'):
        BYOTConnector(4, 4, num_classes=3, expansion=1)(torch.zeros(2, 4, 8, 8))
    with pytest.raises(ConfigError, match=r'in_channel \* expansion=16'):
        BYOTConnector(4, 4, num_classes=3)(torch.zeros(2, 4, 8, 8))


@pytest.mark.parametrize(
    'connector',
    [Paraphraser(4, 2), Translator(4, 2), MGDConnector(4, 6), BYOTConnector(4, 8, 3, expansion=1), CRDConnector(64, 8)],
    ids=lambda connector: type(connector).__name__,
)
def test_half_precision_is_finite(connector: nn.Module) -> None:
    feature = torch.randn(2, 4, 4, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = connector(feature)
    assert all(torch.isfinite(output).all() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
