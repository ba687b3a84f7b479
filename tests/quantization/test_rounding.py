import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.quantization import fake_quantize, learned_clip, learned_step


def lsq_by_hand(x, scale, low, high):
    """Equations 3 and 5 of the paper of LSQ, one value at a time, in float64: d out / d scale and d out / d x."""
    by_scale, by_x = [], []
    for value in x.tolist():
        v = value / scale
        if v <= low:
            by_scale.append(low)
            by_x.append(0.0)
        elif v >= high:
            by_scale.append(high)
            by_x.append(0.0)
        else:
            by_scale.append(round(v) - v)
            by_x.append(1.0)
    return torch.tensor(by_scale, dtype=torch.float64), torch.tensor(by_x, dtype=torch.float64)


@pytest.mark.parametrize(('low', 'high'), [(-128, 127), (-8, 7), (-4, 3), (-2, 1), (0, 255), (0, 15), (0, 3)])
def test_gradients_are_those_of_the_paper_of_lsq(low, high):
    scale = 0.5  # whose inverse is exact, so that the ends are ends
    # Values of all three cases, the ends of the range themselves, and halves beyond them.
    inside = torch.linspace(low + 0.01, high - 0.01, 41, dtype=torch.float64)
    ends = torch.tensor([low - 7, low - 0.4, low, high, high + 0.4, high + 9], dtype=torch.float64)
    x = (torch.cat([inside, ends]) * scale).requires_grad_()
    step = torch.tensor([scale], dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(-2, 3, len(x), dtype=torch.float64)
    (learned_step(x, step, torch.tensor([0]), low, high, gradient_scale=0.25) * weights).sum().backward()
    by_scale, by_x = lsq_by_hand(x.detach(), scale, low, high)
    torch.testing.assert_close(step.grad, 0.25 * (by_scale * weights).sum()[None], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, by_x * weights, rtol=0, atol=0)


def test_steps_of_channels_get_the_gradients_of_their_channels():
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    scale = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    learned_step(x, scale, torch.zeros(4), -4, 3, axis=1).sum().backward()
    wanted = [lsq_by_hand(x[:, row].reshape(-1), scale[row].item(), -4, 3)[0].sum() for row in range(4)]
    torch.testing.assert_close(scale.grad, torch.stack(wanted))


@pytest.mark.parametrize('zero', [0, 3, 15])
def test_gradients_are_those_of_the_paper_of_lsq_plus(zero):
    """Equations 4 to 6 with the offset -zero * scale: x_hat = scale * x_bar + offset, x_bar in 0 ... 15."""
    scale, high = 0.25, 15
    offset = -zero * scale
    x = torch.linspace(-9, 9, 67, dtype=torch.float64).add(0.013).requires_grad_()
    steps = torch.tensor([scale], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([offset], dtype=torch.float64, requires_grad=True)
    learned_step(x, steps, torch.tensor([zero]), 0, high, offset=shift).sum().backward()
    by_scale = by_offset = 0.0
    for value in x.tolist():
        v = (value - offset) / scale
        by_scale += 0 if v <= 0 else high if v >= high else round(v) - v
        by_offset += float(v <= 0 or v >= high)
    assert steps.grad.item() == pytest.approx(by_scale, rel=1e-12)
    assert shift.grad.item() == by_offset


def test_gradients_of_pact_are_one_where_it_clips():
    x = torch.tensor([-1.0, 0.0, 0.5, 1.9, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    y = learned_clip(x, alpha, torch.tensor([0]), 0, 15)
    (y * torch.arange(1.0, 7.0)).sum().backward()
    assert torch.equal(y.detach(), torch.tensor([0, 0, 4, 14, 15, 15], dtype=torch.float64) * (2.0 / 15))
    assert x.grad.tolist() == [0, 2, 3, 4, 0, 0]
    assert alpha.grad.item() == 5 + 6


def test_pact_with_two_sides_clips_at_both():
    x = torch.tensor([-9.0, -1.0, 9.0], requires_grad=True)
    alpha = torch.tensor([2.0], requires_grad=True)
    y = learned_clip(x, alpha, torch.tensor([8]), 0, 15)
    (y * torch.tensor([1.0, 1.0, 3.0])).sum().backward()
    assert alpha.grad.item() == 3 - 1
    assert x.grad.tolist() == [0, 1, 0]
    assert y[2] == 2


def test_pact_with_two_sides_clips_at_the_level_where_there_are_more_codes_below_zero():
    """Codes 0 to 3 with zero at 2: -1, 0 and 1 steps of 3 are used, and -2 is not."""
    x = torch.tensor([-5.0, -3.0, -2.0, -1.0, 0.5, 1.0, 4.0], requires_grad=True)
    alpha = torch.tensor([3.0], requires_grad=True)
    y = learned_clip(x, alpha, torch.tensor([2]), 0, 3)
    (y * torch.arange(1.0, 8.0)).sum().backward()
    assert y.tolist() == [-3, -3, -3, 0, 0, 0, 3]
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0]
    assert alpha.grad.item() == 7 - 1 - 2


def test_gradients_of_pact_are_those_of_where_it_clips_for_fewer_codes_below_zero():
    """Codes 0 to 3 with zero at 1: a step is half the level, and one is below zero."""
    x = torch.tensor([-9.0, -2.0, -1.5, 9.0], dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)
    y = learned_clip(x, alpha, torch.tensor([1]), 0, 3)
    (y * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert y.tolist() == [-2, -2, -2, 4]
    assert x.grad.tolist() == [0, 0, 100, 0]
    assert alpha.grad.item() == 1000 - 0.5 * 11


def test_pact_without_a_code_above_zero_is_refused():
    with pytest.raises(ConfigError, match='the code of zero must be below 3, but got 3'):
        learned_clip(torch.tensor([-1.0]), torch.tensor([1.0]), torch.tensor([3]), 0, 3)


def test_float32_gradients_of_steps_do_not_cancel():
    """Far inside the range round(v) - v is small beside v: a difference of two large sums would lose it."""
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 10
    grads = []
    for dtype in (torch.float32, torch.float64):
        scale = torch.tensor([0.1], dtype=dtype, requires_grad=True)
        learned_step(x.to(dtype), scale, torch.tensor([0]), -128, 127).pow(2).sum().backward()
        grads.append(scale.grad.double())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 8]),
    scale=st.floats(1e-4, 10),
    signed=st.booleans(),
    zero=st.integers(0, 255),
)
def test_rounding_is_that_of_torch_bit_for_bit(seed, bits, scale, signed, zero):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    zero = 0 if signed else zero % (high + 1)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * scale * high
    steps, zeros = torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)
    ours = fake_quantize(x, steps, zeros, low, high)
    assert torch.equal(ours, torch.fake_quantize_per_tensor_affine(x, steps, zeros, low, high))
    rows, row_zeros = steps * torch.linspace(0.5, 2, 5), zeros.expand(5).clone()
    ours = fake_quantize(x, rows, row_zeros, low, high, axis=0)
    assert torch.equal(ours, torch.fake_quantize_per_channel_affine(x, rows, row_zeros, 0, low, high))


def test_halves_are_rounded_as_floats():
    x = torch.linspace(-1, 1, 31, dtype=torch.bfloat16, requires_grad=True)
    scale = torch.tensor([1 / 127], requires_grad=True)
    out = learned_step(x, scale, torch.tensor([0]), -127, 127)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, fake_quantize(x.float(), scale, torch.tensor([0]), -127, 127).bfloat16())
    out.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert scale.grad.dtype == torch.float32
