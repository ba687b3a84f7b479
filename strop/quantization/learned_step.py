"""Learned step size quantization, LSQ and LSQ+: observers that begin, a fake quantizer that goes on learning."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from torch import Tensor, nn

from strop.quantization.fake_quantize import (
    PER_CHANNEL,
    SYMMETRIC,
    FakeQuantizer,
    observer_of,
    observer_settings,
    shared_arguments,
)
from strop.quantization.rounding import fake_quantize, learned_step
from strop.registry import MODELS

#: So many values of a row tell how well a step rounds.
_SEEN = 65536


@MODELS.register_module()
class LSQObserver(nn.Module):
    """The first step of LSQ: `2 * mean(|x|) / sqrt(p)`, with `p` the highest code above zero.

    Symmetric codes that are all positive are for values that are all positive, too; where `x` has others, zero takes the
    middle code.

    Args:
        dtype: What codes are stored in; not looked at.
        qscheme: torch's name of the scheme. An affine one begins with the smallest value at the lowest code.
        quant_min: Lowest code.
        quant_max: Highest code.
        ch_axis: The axis of channels.
        kwargs: Arguments of other observers (`averaging_constant`, ...), which play no part.

    Esser et al.: Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153, section 2.1.

    >>> observer = LSQObserver(quant_min=-8, quant_max=7, qscheme=torch.per_tensor_symmetric)
    >>> observer(torch.tensor([1.0, -3.0]))
    tensor([ 1., -3.])
    >>> observer.calculate_qparams()  # 2 * 2 / sqrt(7)
    (tensor([1.5119]), tensor([0], dtype=torch.int32))
    """

    #: The step per channel whatever the scheme says.
    per_channel = False

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        quant_min: int = 0,
        quant_max: int = 255,
        ch_axis: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.dtype, self.qscheme = dtype, qscheme
        self.quant_min, self.quant_max = quant_min, quant_max
        self.ch_axis = ch_axis
        self.is_per_channel = self.per_channel or qscheme in PER_CHANNEL
        self.symmetric = qscheme in SYMMETRIC
        self._found: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Look at a tensor and return it as it is."""
        rows = x.transpose(0, self.ch_axis).flatten(1) if self.is_per_channel else x.reshape(1, -1)
        self._found = self.steps(rows)
        return x

    def steps(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step and the code of zero of each row."""
        lowest, highest, size = agreed(rows.amin(1), rows.amax(1), rows.abs().mean(1))
        if self.symmetric:
            signed = lowest.lt(0).any() if self.quant_min >= 0 else torch.zeros((), dtype=torch.bool)
            middle = (self.quant_min + self.quant_max + 1) // 2
            zero = torch.full_like(size, float(middle) if bool(signed) else 0.0)
            return 2 * size / (self.quant_max - zero).sqrt(), zero.to(torch.int32)
        return affine_range(lowest, highest, self.quant_min, self.quant_max)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the step and the code of zero, one each or one for each channel.

        Raises:
            RuntimeError: If nothing was seen.
        """
        if self._found is None:
            raise RuntimeError(f'{type(self).__name__} has seen no data.')
        scale, zero_point = self._found
        return scale.clamp_min(torch.finfo(torch.float32).eps), zero_point


@MODELS.register_module()
class LSQPerChannelObserver(LSQObserver):
    """`LSQObserver` with a step for each channel.

    >>> observer = LSQPerChannelObserver(quant_min=-8, quant_max=7, qscheme=torch.per_channel_symmetric)
    >>> _ = observer(torch.tensor([[1.0, -3.0], [2.0, 6.0]]))
    >>> observer.calculate_qparams()[0]
    tensor([1.5119, 3.0237])
    """

    per_channel = True


@MODELS.register_module()
class LeastErrorObserver(LSQObserver):
    """The first step that rounds with the least squared error, among 32 fractions of the range of a channel, or of all.

    At most 65,536 values of each row are looked at, evenly spread. In symmetric codes zero takes the middle one, or the lowest
    where no value is below zero.

    Args:
        kwargs: As for `LSQObserver`.

    >>> observer = LeastErrorObserver(quant_min=-2, quant_max=1, qscheme=torch.per_tensor_symmetric)
    >>> _ = observer(torch.tensor([-1.0, 0.5, 0.5, 0.5]))
    >>> observer.calculate_qparams()[0]
    tensor([0.5000])
    """

    def steps(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step and the code of zero of each row."""
        lowest, highest, _ = agreed(rows.amin(1), rows.amax(1), rows.abs().mean(1))
        # An odd stride goes through all columns of images, whose sides are even as a rule.
        seen = rows[:, :: -(-rows.shape[1] // _SEEN) | 1]
        find = symmetric_range if self.symmetric else affine_range
        candidates = []
        for part in torch.linspace(1.0, 1 / 32, 32).tolist():
            scale, zero = find(lowest * part, highest * part, self.quant_min, self.quant_max)
            error = (fake_quantize(seen, scale, zero, self.quant_min, self.quant_max, 0) - seen).square().mean(1)
            candidates.append((error, scale, zero.float()))
        errors, scales, zeros = (torch.stack(each) for each in zip(*candidates, strict=True))
        (errors,) = agreed_mean(errors)  # every process takes the same candidate: the best one for all of them together
        best = errors.argmin(0, keepdim=True)
        return scales.gather(0, best)[0], zeros.gather(0, best)[0].to(torch.int32)


@MODELS.register_module()
class LSQPlusObserver(LeastErrorObserver):
    """The first step and offset of LSQ+.

    Weights (signed codes): `max(|m - 3 d|, |m + 3 d|) / 2^(b-1)` with `m` the mean and `d` the standard deviation (equation
    8). Inputs: the range that rounds with the least squared error, among 32 fractions of the one from the smallest to the
    largest value.

    Args:
        kwargs: As for `LSQObserver`.

    Bhalgat et al.: LSQ+: Improving low-bit quantization through learnable offsets and better initialization, CVPR Workshops
    2020, https://arxiv.org/abs/2004.09576, section 3.2. Differs from the paper: the error of inputs is minimized over a grid
    on the first batch (at most 65,536 of its values), not by gradient descent over several batches.

    >>> observer = LSQPlusObserver(quant_min=0, quant_max=3)
    >>> _ = observer(torch.tensor([-0.5, 0.0, 0.5, 1.0]))
    >>> observer.calculate_qparams()
    (tensor([0.5000]), tensor([1], dtype=torch.int32))
    """

    def steps(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step and the code of zero of each row."""
        if self.quant_min < 0:
            mean, spread = rows.mean(1), 3 * rows.std(1, unbiased=False)
            size = torch.maximum((mean - spread).abs(), (mean + spread).abs())
            return size / (self.quant_max + 1), torch.zeros_like(size, dtype=torch.int32)
        return super().steps(rows)


def affine_range(lowest: Tensor, highest: Tensor, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """Return the step and the code of zero of ranges that hold zero."""
    lowest, highest = lowest.clamp_max(0), highest.clamp_min(0)
    scale = ((highest - lowest) / (quant_max - quant_min)).clamp_min(torch.finfo(torch.float32).eps)
    zero = (quant_min - torch.round(lowest / scale)).clamp(quant_min, quant_max)
    return scale, zero.to(torch.int32)


def symmetric_range(lowest: Tensor, highest: Tensor, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """Return the step and the code of zero of ranges around zero, or above it where nothing is below."""
    signed = quant_min < 0 or bool(lowest.lt(0).any())
    middle = (quant_min + quant_max + 1) // 2 if signed else quant_min
    scale = torch.maximum(-lowest, highest) / (quant_max - middle)
    return scale.clamp_min(torch.finfo(torch.float32).eps), torch.full_like(scale, middle, dtype=torch.int32)


def agreed(lowest: Tensor, highest: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the range and the mean over all processes."""
    if is_distributed():
        ends = torch.stack([-lowest, highest])
        all_reduce(ends, 'max')
        lowest, highest = -ends[0], ends[1]
        all_reduce(mean, 'mean')
    return lowest, highest, mean


def agreed_mean(*values: Tensor) -> tuple[Tensor, ...]:
    """Return each value's mean over all processes."""
    if is_distributed():
        for value in values:
            all_reduce(value, 'mean')
    return values


@MODELS.register_module()
class LearnableFakeQuantize(FakeQuantizer):
    """Steps, and with `zero_point_trainable` offsets, that are parameters and learn with the model.

    The first tensor that it sees begins (see the observer); from then on `scale` gets the gradients of `learned_step`. They
    are multiplied by `1 / sqrt(N p)`, where `p` is the highest code above zero and `N` the number of values that share a step:
    all of a weight, those of one sample of an input. Of a `scale` that a gradient makes negative the size counts.

    Args:
        observer: Class, name or config of what begins: `LSQObserver`, `LSQPlusObserver`, or any other observer. Those of this
            module begin signed codes of a weight around zero in any scheme: only such weights are folded with batch norms.
        quant_min: Lowest code.
        quant_max: Highest code.
        scale: The step until data was seen.
        zero_point: The code of zero until data was seen.
        use_grad_scaling: Whether to multiply gradients so.
        zero_point_trainable: Learn an offset (LSQ+), in units of the input; the code of zero is what it rounds to.
        observer_kwargs: What both know (`dtype`, `qscheme`, `ch_axis`, `is_weight`, see `FakeQuantizer`), and more for the
            observer.

    Esser et al.: Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153; for the offset see
    `learned_step`. Differs from the paper where each channel has a step of its own: `N` counts that channel's values.

    >>> quantizer = LearnableFakeQuantize(
    ...     LSQObserver, -2, 1, qscheme=torch.per_tensor_symmetric, dtype=torch.qint8, is_weight=True
    ... )
    >>> out = quantizer(torch.tensor([0.5, -0.5]))
    >>> out.sum().backward()
    >>> quantizer.scale
    Parameter containing:
    tensor([1.], requires_grad=True)
    """

    kind = 2

    def __init__(
        self,
        observer: Any = LSQObserver,
        quant_min: int = 0,
        quant_max: int = 255,
        scale: float = 1.0,
        zero_point: float = 0.0,
        use_grad_scaling: bool = True,
        zero_point_trainable: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        own, rest = shared_arguments(observer_kwargs)
        super().__init__(quant_min, quant_max, **own)
        begins = observer_of(observer, **observer_settings(self), **rest)
        if isinstance(begins, LSQObserver) and self.is_weight and quant_min < 0:
            begins.symmetric = True
        self.activation_post_process = begins
        self.use_grad_scaling = use_grad_scaling
        self.zero_point_trainable = zero_point_trainable
        self.scale = nn.Parameter(torch.tensor([float(scale)]))
        self.register_buffer('zero_point', torch.tensor([round(zero_point)], dtype=torch.int32))
        self.offset = nn.Parameter(torch.tensor([-float(zero_point) * scale])) if zero_point_trainable else None

    def _steps(self) -> list[Tensor]:
        return [*super()._steps(), *([] if self.offset is None else [self.offset])]

    def observes(self) -> bool:
        """Tell whether the next forward begins the steps."""
        return not self.observed and super().observes()

    def observe(self, x: Tensor) -> None:
        """Begin with the steps of the observer."""
        self.activation_post_process(x)
        self.begin(*self.activation_post_process.calculate_qparams())

    def begin(self, scale: Tensor, zero_point: Tensor) -> None:
        """Begin with given steps: those of an observed quantizer, for example."""
        for tensor, value in ((self.scale, scale), (self.zero_point, zero_point)):
            tensor.data = value.to(tensor.device, tensor.dtype).reshape(-1).clone()
        if self.offset is not None:
            self.offset.data = -self.zero_point * self.scale.data
        self.observed.fill_(1)

    @property
    def step(self) -> Tensor:
        """The step that is rounded with: the size of `scale`, whatever its sign, and never zero."""
        size = self.scale.abs()
        return size + (size.clamp_min(torch.finfo(torch.float32).eps) - size).detach()

    def _settle(self) -> None:
        """Make the code of zero that of the offset."""
        if self.offset is not None:
            with torch.no_grad():
                zero = -torch.round(self.offset / self.step)
                self.zero_point.copy_(zero.clamp(self.quant_min, self.quant_max))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the steps (float) and the codes of zero (whole numbers), one each or one for each channel."""
        self._settle()
        return self.step.detach(), super().calculate_qparams()[1]

    def gradient_scale(self, x: Tensor) -> float:
        """Return what the gradients of a step are multiplied by."""
        if not self.use_grad_scaling:
            return 1.0
        number = x.numel() if self.is_weight or x.dim() < 2 else math.prod(x.shape[1:])
        if self.is_per_channel:
            number = number // self.scale.numel() if self.is_weight else number
        highest = max(self.quant_max - int(self.zero_point.reshape(-1)[0]), 1)
        return 1.0 / math.sqrt(max(number, 1) * highest)

    def rounded(self, x: Tensor) -> Tensor:
        """Return the tensor in steps, which learn."""
        self._settle()
        scaled = self.gradient_scale(x)
        # Saved for the backward pass; training changes the buffer in place before it where a module runs twice.
        zero_point = self.zero_point.clone() if self.offset is not None else self.zero_point
        return learned_step(x, self.step, zero_point, self.quant_min, self.quant_max, self.axis, scaled, self.offset)


def learned_spec(spec: Any, *, is_weight: bool = False, observer: Any = LSQObserver, **options: Any) -> Any:
    """Return the spec of a PT2E quantizer with learned steps in the place of its observer or fake quantizer.

    Codes, scheme and axis stay those of the backend, so that its graph is what learns, and what conversion gives is what it
    runs.

    Args:
        spec: A `QuantizationSpec` of torchao, such as `config.weight` of an x86 quantizer's configuration.
        is_weight: Whether it is of a parameter.
        observer: What begins; see `LearnableFakeQuantize`.
        options: More of its arguments.

    >>> from torchao.quantization.pt2e.quantizer import QuantizationSpec
    >>> from torchao.quantization.pt2e import MinMaxObserver
    >>> spec = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_symmetric)
    >>> type(learned_spec(spec, is_weight=True).observer_or_fake_quant_ctr())
    <class 'strop.quantization.learned_step.LearnableFakeQuantize'>
    """
    make = LearnableFakeQuantize.with_args(observer=observer, is_weight=is_weight, **options)
    return dataclasses.replace(spec, observer_or_fake_quant_ctr=make)
