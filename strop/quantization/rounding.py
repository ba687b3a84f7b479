"""Rounding to a grid of steps, and the gradients that learned quantizers let through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop.errors import ConfigError

_HALF = (torch.float16, torch.bfloat16)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int | None = None
) -> Tensor:
    """Round to the nearest of the codes `quant_min` ... `quant_max`, and return what they stand for.

    `(clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale`, bit for bit what
    `torch.fake_quantize_per_tensor_affine` and its form for channels give. It has no gradient of its own.

    Args:
        x: Any tensor; halves are computed as floats.
        scale: Size of a step, one number, or one for each index of `axis`.
        zero_point: The code of zero, of the shape of `scale`; whole numbers.
        quant_min: Lowest code.
        quant_max: Highest code.
        axis: The axis of `x` along which steps differ.

    >>> fake_quantize(torch.tensor([-1.0, 0.24, 0.26, 9.0]), torch.tensor(0.5), torch.tensor(0), 0, 3)
    tensor([0.0000, 0.0000, 0.5000, 1.5000])
    """
    wide = x.float() if x.dtype in _HALF else x
    step, lowest, highest = _grid(wide, scale, zero_point, quant_min, quant_max, axis)
    found = (wide * (1.0 / step)).round_()
    return torch.clamp(found, lowest, highest).mul_(step).to(x.dtype)


def _grid(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the step and the bounds in steps, in the shape that multiplies `x`."""
    step, zero = scale.to(x.dtype), zero_point.to(x.dtype)
    if axis is None or scale.numel() == 1:
        step, zero = step.reshape(()), zero.reshape(())
    else:
        shape = [1] * x.dim()
        shape[axis] = -1
        step, zero = step.reshape(shape), zero.reshape(shape)
    return step, quant_min - zero, quant_max - zero


def _reduced(values: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Sum to the shape of a scale."""
    if axis is None or like.numel() == 1:
        return values.sum().reshape(like.shape)
    return values.sum([other for other in range(values.dim()) if other != axis % values.dim()]).reshape(like.shape)


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        zero_point: Tensor,
        quant_min: int,
        quant_max: int,
        axis: int | None,
        gradient_scale: float,
    ) -> Tensor:
        out = fake_quantize(x, scale, zero_point, quant_min, quant_max, axis)
        ctx.save_for_backward(x, out, scale, zero_point)
        ctx.settings = (quant_min, quant_max, axis, gradient_scale, None if offset is None else offset.shape)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, out, scale, zero_point = ctx.saved_tensors
        quant_min, quant_max, axis, gradient_scale, offset_shape = ctx.settings
        half = x.dtype in _HALF
        grad, x, out = (tensor.float() if half else tensor for tensor in (grads[0], x, out))
        step, lowest, highest = _grid(x, scale, zero_point, quant_min, quant_max, axis)
        v = x * (1.0 / step)
        inside = (v > lowest) & (v < highest)
        grad_x = grad * inside
        # Inside, x moves by round(v) - v with a unit of the step; outside, by the code where it was clipped.
        moved = torch.addcmul(out, x, inside.to(x.dtype), value=-1).mul_(grad)
        by_scale = _reduced(moved, scale, axis) / scale.to(x.dtype)
        by_offset = None
        if offset_shape is not None:
            clipped = _reduced(grad, scale, axis) - _reduced(grad_x, scale, axis)
            # With an offset the clipped codes count from it, not from zero.
            by_scale = by_scale + clipped * zero_point.to(x.dtype).reshape(scale.shape)
            by_offset = (clipped * gradient_scale).reshape(offset_shape).to(scale.dtype)
        by_scale = (by_scale * gradient_scale).to(scale.dtype)
        grad_x = grad_x.to(grads[0].dtype)
        return grad_x, by_scale, by_offset, None, None, None, None, None


def learned_step(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    gradient_scale: float = 1.0,
    offset: Tensor | None = None,
) -> Tensor:
    r"""Round as `fake_quantize` does, with the gradients of learned step size quantization.

    With $v = x / s$, and $n$, $p$ the lowest and the highest code less the zero point (LSQ, equations 3 and 5):

    $$ \frac{\partial \hat x}{\partial s} = \begin{cases} \mathrm{round}(v) - v & n < v < p \\ n & v \le n \\ p & v \ge p
    \end{cases} \qquad \frac{\partial \hat x}{\partial x} = [n < v < p] $$

    With an `offset` $\beta$ (LSQ+, equations 4 to 6; $\hat x = s \bar x + \beta$) the codes themselves are what a clipped
    value moves by with the step, and it moves by 1 with the offset.

    Args:
        x: Any tensor.
        scale: Size of a step, one number, or one for each index of `axis`.
        zero_point: The code of zero, of the shape of `scale`.
        quant_min: Lowest code.
        quant_max: Highest code.
        axis: The axis of `x` along which steps differ.
        gradient_scale: What the gradients of `scale` and `offset` are multiplied by.
        offset: The learned offset, of the shape of `scale`. It takes part by its gradient alone: `zero_point` is what it
            rounds to.

    Esser et al.: Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153. Bhalgat et al.: LSQ+: Improving
    low-bit quantization through learnable offsets and better initialization, CVPR Workshops 2020,
    https://arxiv.org/abs/2004.09576. Differs from LSQ+: the offset is rounded to a whole number of steps, so that zero, and
    with it the padding of convolutions, has a code, and integer kernels can run it.

    >>> x, scale = torch.tensor([0.9, 7.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    >>> learned_step(x, scale, torch.tensor([0]), 0, 3).sum().backward()
    >>> x.grad, scale.grad  # round(1.8) - 1.8, and 3 where it is clipped
    (tensor([1., 0.]), tensor([3.2000]))
    """
    return _LearnedStep.apply(x, scale, offset, zero_point, quant_min, quant_max, axis, gradient_scale)


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
        zero = int(zero_point)
        if zero >= quant_max:
            raise ConfigError(
                f'PACT has the highest code for its level, so the code of zero must be below {quant_max}, but got {zero}.'
            )
        # No more codes below zero than above it: the lowest of them is then that of -alpha.
        lowest = max(quant_min, 2 * zero - quant_max)
        scale = alpha / (quant_max - zero_point)
        ctx.save_for_backward(x, alpha)
        ctx.signed, ctx.low = zero > quant_min, (lowest - zero) / (quant_max - zero)
        return fake_quantize(x, scale, zero_point, lowest, quant_max)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, alpha = ctx.saved_tensors
        grad, bound = grads[0], alpha.reshape(()).to(x.dtype)
        above = x >= bound
        below = x <= ctx.low * bound if ctx.signed else x < 0
        by_alpha = (grad * above).sum()
        if ctx.signed:
            by_alpha = by_alpha + ctx.low * (grad * below).sum()
        return grad * ~(above | below), by_alpha.reshape(alpha.shape).to(alpha.dtype), None, None, None


def learned_clip(x: Tensor, alpha: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    r"""Clip at a learned level and round, with the gradients of PACT.

    $y = \mathrm{round}(\mathrm{clip}(x, 0, \alpha) \cdot (2^k - 1) / \alpha) \cdot \alpha / (2^k - 1)$, where $\partial y /
    \partial \alpha$ is 1 for $x \ge \alpha$ and 0 below it, and $\partial y / \partial x$ is 1 for $0 \le x < \alpha$ and 0
    elsewhere.

    Args:
        x: Any tensor.
        alpha: The level, one number.
        zero_point: The code of zero. Above `quant_min`, values below zero have codes too, and are clipped at `-alpha`, where
            $\partial y / \partial \alpha$ is -1: there are as many codes below zero as above it, and those under them are not
            used. Where there are fewer, values are clipped at the lowest.
        quant_min: Lowest code.
        quant_max: Highest code.

    Raises:
        ConfigError: If zero has the highest code, since there is no level then.

    Choi et al.: PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018, https://arxiv.org/abs/1805.06085.
    The form with two sides is ours, for inputs that no ReLU made.

    >>> x, alpha = torch.tensor([-1.0, 0.9, 7.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    >>> y = learned_clip(x, alpha, torch.tensor([0]), 0, 3)
    >>> y.sum().backward()
    >>> y.detach(), x.grad, alpha.grad
    (tensor([0., 1., 3.]), tensor([0., 1., 0.]), tensor([1.]))
    """
    return _LearnedClip.apply(x, alpha, zero_point, quant_min, quant_max)
