import dataclasses
import math

import pytest
import torch

from strop.quantization import (
    LearnableFakeQuantize,
    LeastErrorObserver,
    LSQObserver,
    LSQPerChannelObserver,
    LSQPlusObserver,
    QConfig,
    fake_quantize,
)

SIGNED = dict(qscheme=torch.per_tensor_symmetric, dtype=torch.qint8)
ROWS = dict(qscheme=torch.per_channel_symmetric, dtype=torch.qint8, is_weight=True)
UNSIGNED = dict(qscheme=torch.per_tensor_symmetric, dtype=torch.quint8)
X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(('low', 'high'), [(-128, 127), (-8, 7), (-4, 3), (-2, 1)])
def test_the_first_step_is_that_of_the_paper(low, high):
    quantizer = LearnableFakeQuantize(LSQObserver, low, high, is_weight=True, **SIGNED)
    quantizer(X)
    torch.testing.assert_close(quantizer.scale.detach(), (2 * X.abs().mean() / math.sqrt(high))[None])
    rows = LearnableFakeQuantize(LSQPerChannelObserver, low, high, **ROWS)
    rows(X)
    torch.testing.assert_close(rows.scale.detach(), 2 * X.abs().mean(1) / math.sqrt(high))


def test_zero_takes_the_middle_code_where_values_are_below_it():
    positive, mixed = (LearnableFakeQuantize(LSQObserver, 0, 15, **UNSIGNED) for _ in range(2))
    positive(X.relu())
    mixed(X)
    assert positive.calculate_qparams()[1].item() == 0
    assert mixed.calculate_qparams()[1].item() == 8
    assert positive.scale.item() == pytest.approx(2 * X.relu().mean().item() / math.sqrt(15), rel=1e-6)
    assert mixed.scale.item() == pytest.approx(2 * X.abs().mean().item() / math.sqrt(7), rel=1e-6)


@pytest.mark.parametrize(('low', 'high'), [(-127, 127), (-8, 7), (-2, 1), (0, 255), (0, 3)])
def test_the_first_step_of_least_error_is_the_best_of_the_grid(low, high):
    rows = X.relu() if low == 0 else X
    scheme = {**(UNSIGNED if low == 0 else SIGNED), 'qscheme': torch.per_channel_symmetric}
    observer = LeastErrorObserver(quant_min=low, quant_max=high, **scheme)
    observer(rows)
    scale, zero = observer.calculate_qparams()
    assert not zero.any()
    for index, row in enumerate(rows.double()):
        steps = row.abs().max() / high * torch.arange(1, 33, dtype=torch.float64) / 32
        errors = torch.stack([((row / step).round().clamp(low, high) * step - row).square().sum() for step in steps])
        torch.testing.assert_close(scale[index].double(), steps[errors.argmin()], rtol=1e-5, atol=0)


def test_least_error_sees_every_column_of_large_images():
    # Values of one kind in the even columns and of another in the odd ones; ten images of 128 x 128 are a row.
    rows = torch.zeros(1, 10, 128, 128)
    rows[..., 1::2] = torch.linspace(0, 1, 10 * 128 * 64).reshape(1, 10, 128, 64) ** 8
    rows[..., 0, 1] = 4.0
    observer = LeastErrorObserver(quant_min=0, quant_max=3, **UNSIGNED)
    observer(rows)
    step = observer.calculate_qparams()[0].double().item()
    steps = 4 / 3 * torch.arange(1, 33, dtype=torch.float64) / 32
    values = rows.double().flatten()
    errors = torch.stack([((values / each).round().clamp(0, 3) * each - values).square().mean() for each in steps])
    at_step = ((values / step).round().clamp(0, 3) * step - values).square().mean()
    assert at_step < 1.02 * errors.min()


def test_least_error_has_codes_below_zero_where_there_are_values():
    observer = LeastErrorObserver(quant_min=0, quant_max=15, **UNSIGNED)
    observer(X)
    assert observer.calculate_qparams()[1].item() == 8


@pytest.mark.parametrize('observer', [LSQObserver, LeastErrorObserver])
def test_an_affine_scheme_of_inputs_begins_with_the_smallest_value_at_the_lowest_code(observer):
    x = torch.arange(16.0)
    quantizer = LearnableFakeQuantize(
        observer, -8, 7, zero_point_trainable=True, qscheme=torch.per_tensor_affine, dtype=torch.qint8
    )
    assert torch.equal(quantizer(x), x)
    scale, zero = quantizer.calculate_qparams()
    assert (scale.item(), zero.item(), quantizer.offset.item()) == (1, -8, 8)


@pytest.mark.parametrize('observer', [LSQObserver, LeastErrorObserver, LSQPlusObserver])
def test_signed_codes_of_a_weight_begin_around_zero_in_an_affine_scheme(observer):
    affine = {**SIGNED, 'qscheme': torch.per_tensor_affine}
    found = [LearnableFakeQuantize(observer, -8, 7, is_weight=True, **scheme) for scheme in (SIGNED, affine)]
    outputs = [quantizer(X + 1) for quantizer in found]
    assert torch.equal(*outputs)
    assert found[1].calculate_qparams()[1].item() == 0


def test_steps_begin_with_less_error_than_in_the_paper():
    weights = torch.randn(16, 144, generator=torch.Generator().manual_seed(3))
    for bits in (2, 4, 8):
        errors = []
        for name in ('LSQObserver', 'LeastErrorObserver'):
            spec = dataclasses.replace(QConfig.of(f'lsq{bits}').weight, observer=name)
            errors.append((spec.build(is_weight=True)(weights) - weights).square().mean().item())
        assert errors[1] < 0.7 * errors[0], bits


def test_the_first_steps_of_lsq_plus_are_those_of_the_paper_for_weights():
    quantizer = LearnableFakeQuantize(LSQPlusObserver, -8, 7, is_weight=True, **SIGNED)
    quantizer(X)
    mean, spread = X.mean(), X.std(unbiased=False)
    wanted = max(abs(mean - 3 * spread), abs(mean + 3 * spread)) / 8
    torch.testing.assert_close(quantizer.scale.item(), wanted.item())


def test_the_first_steps_of_lsq_plus_round_better_than_the_range_for_inputs():
    x = torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(2)), torch.tensor([12.0])])
    observer = LSQPlusObserver(quant_min=0, quant_max=15)
    observer(x)
    scale, zero = observer.calculate_qparams()
    error = (fake_quantize(x, scale, zero, 0, 15) - x).square().mean()
    span = torch.tensor([(12 - x.min()) / 15])
    plain = (fake_quantize(x, span, (-x.min() / span).round(), 0, 15) - x).square().mean()
    assert error < 0.8 * plain


@pytest.mark.parametrize(('is_weight', 'rows', 'number'), [(True, False, 40), (True, True, 5), (False, False, 5)])
def test_gradients_are_scaled_by_the_values_that_share_a_step(is_weight, rows, number):
    observer, scheme = (LSQPerChannelObserver, ROWS) if rows else (LSQObserver, {**SIGNED, 'is_weight': is_weight})
    grads = []
    for scaled in (True, False):
        quantizer = LearnableFakeQuantize(observer, -8, 7, use_grad_scaling=scaled, **scheme)
        quantizer(X).pow(2).sum().backward()
        grads.append(quantizer.scale.grad)
    torch.testing.assert_close(grads[0], grads[1] / math.sqrt(number * 7))


def test_gradients_are_scaled_alike_for_any_number_of_samples():
    quantizer = LearnableFakeQuantize(LSQObserver, -8, 7, **SIGNED)
    quantizer(X)
    for number in (0, 1, 8):
        assert quantizer.gradient_scale(torch.empty(number, 5, 3, 2)) == 1 / math.sqrt(30 * 7)


def test_only_the_first_batch_begins_a_step():
    quantizer = LearnableFakeQuantize(LSQObserver, -8, 7, **SIGNED)
    quantizer(X)
    before = quantizer.scale.detach().clone()
    quantizer(10 * X)
    assert torch.equal(quantizer.scale.detach(), before)
    assert quantizer.scale.requires_grad


def test_the_offset_learns_and_rounds_to_a_whole_code():
    quantizer = LearnableFakeQuantize(
        LSQPlusObserver, 0, 15, zero_point_trainable=True, qscheme=torch.per_tensor_affine, dtype=torch.quint8
    )
    quantizer(X)
    scale, zero = quantizer.calculate_qparams()
    assert zero.item() == round(-quantizer.offset.item() / scale.item())
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.5)
    quantizer(X).sum().backward()
    optimizer.step()
    assert quantizer.offset.grad.item() != 0
    out = quantizer(X)
    scale, zero = quantizer.calculate_qparams()
    assert torch.equal(out, fake_quantize(X, scale, zero, 0, 15))
    assert set(quantizer.codes(X).unique().tolist()) <= set(range(16))


@pytest.mark.parametrize('scale', [-1.0, 0.0])
def test_of_a_step_that_becomes_negative_the_size_counts(scale):
    quantizer = LearnableFakeQuantize(LSQObserver, -8, 7, **SIGNED)
    quantizer(X)
    with torch.no_grad():
        quantizer.scale.fill_(scale)
    step = max(abs(scale), torch.finfo(torch.float32).eps)
    assert torch.equal(quantizer(X), fake_quantize(X, torch.tensor([step]), torch.tensor([0]), -8, 7))
    assert quantizer.scale.item() == scale  # a forward changes no parameter
    assert quantizer.calculate_qparams()[0].item() == pytest.approx(step)


def test_gradients_of_a_negative_step_are_those_of_its_size():
    grads = []
    for sign in (1, -1):
        quantizer = LearnableFakeQuantize(LSQObserver, -8, 7, **SIGNED)
        quantizer(X)
        with torch.no_grad():
            quantizer.scale.mul_(sign)
        quantizer(X).pow(2).sum().backward()
        grads.append(quantizer.scale.grad)
    assert torch.equal(grads[0], -grads[1])


@pytest.mark.parametrize('bits', [8, 4, 3, 2])
def test_learning_makes_the_error_of_rounding_smaller(bits):
    high = 2 ** (bits - 1) - 1
    quantizer = LearnableFakeQuantize(LSQObserver, -high - 1, high, is_weight=True, use_grad_scaling=False, **SIGNED)
    x = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    quantizer(x)
    with torch.no_grad():
        quantizer.scale.mul_(1.7)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02 * quantizer.scale.item())
    errors = []
    for _ in range(60):
        loss = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.9 * errors[0]
