"""Fake quantization: modules that round a tensor to the codes of integers, and learn or observe the steps between them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from torch import Tensor, nn

from strop.errors import ConfigError, TrainingError, listed
from strop.quantization.flow import pt2e
from strop.quantization.rounding import fake_quantize
from strop.registry import MODELS

#: Observers of torchao that are registered under their names; torchao is imported when one is built.
TORCHAO_OBSERVERS = (
    'FixedQParamsObserver',
    'HistogramObserver',
    'MinMaxObserver',
    'MovingAverageMinMaxObserver',
    'MovingAveragePerChannelMinMaxObserver',
    'NoopObserver',
    'PerChannelMinMaxObserver',
    'PlaceholderObserver',
)
PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric)
SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)


def _observer(name: str, **kwargs: Any) -> nn.Module:
    return getattr(pt2e(), name)(**kwargs)  # type: ignore[no-any-return]


for _name in TORCHAO_OBSERVERS:
    _make = functools.partial(_observer, _name)
    _make.__name__ = _name  # type: ignore[attr-defined]
    _make.__module__ = __name__
    MODELS._register_module(module=_make, module_name=_name)


class FakeQuantizer(nn.Module):
    """What all fake quantizers share: the codes, the switches, and when they look at data.

    A fake quantizer observes in training mode, and in any mode within `calibrating` or while it has seen nothing and needs no
    data but its own (a weight). Its steps are in `scale` and `zero_point`, which `calculate_qparams` gives as a backend wants
    them.

    Args:
        quant_min: Lowest code.
        quant_max: Highest code.
        dtype: `torch.int8` or `torch.uint8` (also by their old names `qint8`, `quint8`), what a backend stores codes in.
        qscheme: torch's name of the scheme: symmetric or affine, for the tensor or for each channel.
        ch_axis: The axis of channels.
        is_weight: Whether what it sees is a parameter, alike in every process and in every forward of a step.
        is_dynamic: Must be False; steps of static quantization are learned.

    Raises:
        ConfigError: If there are fewer than three codes, they do not fit the dtype, or the scheme is dynamic.
    """

    fake_quant_enabled: Tensor
    observer_enabled: Tensor
    observed: Tensor
    form: Tensor
    scale: Tensor
    zero_point: Tensor
    activation_post_process: Any
    #: Distinguishes the kinds in checkpoints.
    kind = 0

    def __init__(
        self,
        quant_min: int,
        quant_max: int,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        ch_axis: int = 0,
        is_weight: bool = False,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__()
        if quant_max - quant_min < 2:
            raise ConfigError(
                f'A range of {max(quant_max - quant_min + 1, 0)} codes ({quant_min} to {quant_max}) is too small: 1 bit or '
                'less is not supported. Take 2, 3, 4 or 8 bits.'
            )
        lowest, highest = (0, 255) if dtype in (torch.uint8, torch.quint8) else (-128, 127)
        if quant_min < lowest or quant_max > highest:
            raise ConfigError(f'The codes {quant_min} to {quant_max} do not fit {dtype}, which has {lowest} to {highest}.')
        if is_dynamic:
            raise ConfigError('Learned and observed steps are static; a dynamic scheme computes them for each input.')
        self.quant_min, self.quant_max = quant_min, quant_max
        self.dtype, self.qscheme = dtype, qscheme
        self.is_per_channel = qscheme in PER_CHANNEL
        self.symmetric = qscheme in SYMMETRIC
        self.ch_axis = ch_axis if self.is_per_channel else -1
        self.is_weight = is_weight
        self.is_dynamic = False
        #: Set within `calibrating`.
        self.calibrating = False
        # Buffers, so that a checkpoint resumes with the same switches.
        self.register_buffer('fake_quant_enabled', torch.ones(1, dtype=torch.uint8))
        self.register_buffer('observer_enabled', torch.ones(1, dtype=torch.uint8))
        self.register_buffer('observed', torch.zeros(1, dtype=torch.uint8))
        form = [quant_min, quant_max, int(self.is_per_channel), int(self.symmetric), self.kind]
        self.register_buffer('form', torch.tensor(form, dtype=torch.int32))

    @property
    def axis(self) -> int | None:
        """The axis of channels, or None where the tensor has one step."""
        return self.ch_axis if self.is_per_channel else None

    @property
    def middle(self) -> int:
        """The code of zero of a signed tensor in symmetric codes."""
        return (self.quant_min + self.quant_max + 1) // 2 if self.quant_min >= 0 else 0

    def resize(self, x: Tensor) -> None:
        """Take the number of steps that a tensor like `x` needs."""
        number = x.shape[self.ch_axis] if self.is_per_channel else 1
        if self.scale.numel() != number:
            for tensor in self._steps():
                tensor.data = tensor.data.reshape(-1)[:1].expand(number).clone()

    def _steps(self) -> list[Tensor]:
        return [self.scale, self.zero_point]

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round from now on, or let everything through."""
        self.fake_quant_enabled.fill_(int(enabled))

    def disable_fake_quant(self) -> None:
        """Let everything through from now on."""
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Look at data from now on, or no longer."""
        self.observer_enabled.fill_(int(enabled))

    def disable_observer(self) -> None:
        """Keep the steps from now on."""
        self.enable_observer(False)

    def observe(self, x: Tensor) -> None:
        """Find steps for a tensor."""
        raise ConfigError(f'{type(self).__name__} must define observe().')

    def rounded(self, x: Tensor) -> Tensor:
        """Return the tensor in steps, with the gradients of the method."""
        raise ConfigError(f'{type(self).__name__} must define rounded().')

    def observes(self) -> bool:
        """Tell whether the next forward looks at what it gets."""
        if not self.observer_enabled:
            return False
        return self.training or self.calibrating or (self.is_weight and not self.observed)

    def forward(self, x: Tensor) -> Tensor:
        """Observe the tensor if it is time to, and return it in steps. An empty one is not observed.

        Raises:
            TrainingError: If it has no steps yet, or the data is not finite.
        """
        due = self.observes()
        waits = due and not self._has_values(x)
        if due and not waits:
            with torch.no_grad():
                seen = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
                # Before anything is kept of it: a moving average would not forget a NaN.
                if not bool(torch.isfinite(seen.sum())):
                    raise TrainingError(
                        'A quantizer is to find its steps from data with NaN or infinity in it. It keeps those that it had; '
                        'layers before it have seen this batch.'
                    )
                self.resize(x)
                self.observe(seen)
                self.observed.fill_(1)
        if not self.fake_quant_enabled:
            return x
        if not self.observed:
            if waits or not x.numel():
                return x
            raise TrainingError(
                'This quantizer has seen no data. Train the model, calibrate it (strop.quantization.calibrate, PTQLoop), or '
                'load a checkpoint of one that was.'
            )
        return self.rounded(x)

    def _has_values(self, x: Tensor) -> bool:
        """Tell whether there is something to observe, in every process: what is observed is agreed on by all."""
        if self.is_weight or not is_distributed():
            return x.numel() > 0
        filled = torch.tensor([float(x.numel() > 0)], device=x.device)
        all_reduce(filled, 'min')
        return bool(filled)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the steps (float) and the codes of zero (whole numbers), one each or one for each channel."""
        return self.scale.detach(), self.zero_point.detach().round().clamp(self.quant_min, self.quant_max).to(torch.int32)

    def codes(self, x: Tensor) -> Tensor:
        """Return the code of each value, as int8 or uint8."""
        scale, zero_point = self.calculate_qparams()
        rounded = fake_quantize(x, scale, zero_point, self.quant_min, self.quant_max, self.axis)
        shape = [-1 if axis == self.axis else 1 for axis in range(x.dim())] if self.is_per_channel else []
        codes = (rounded / scale.reshape(shape)).round() + zero_point.reshape(shape)
        return codes.to(torch.uint8 if self.dtype in (torch.uint8, torch.quint8) else torch.int8)

    def extra_repr(self) -> str:
        """Return what the module's repr shows."""
        place = f'channels of axis {self.ch_axis}' if self.is_per_channel else 'tensor'
        return f'codes {self.quant_min}..{self.quant_max}, {place}, {"symmetric" if self.symmetric else "affine"}'

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Steps of a module that has seen nothing have no definite number yet.
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            stored = state_dict.get(prefix + name)
            if tensor is not None and isinstance(stored, Tensor) and name != 'form' and stored.shape != tensor.shape:
                tensor.data = tensor.data.new_zeros(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def with_args(cls, **kwargs: Any) -> Constructor:
        """Return a constructor with these arguments, as the quantizers of PT2E want it."""
        return Constructor(cls, **kwargs)


class Constructor:
    """A class with some of its arguments, to be called or given more of them; what PT2E's specs are built from.

    >>> Constructor(dict, a=1).with_args(b=2)()
    {'a': 1, 'b': 2}
    """

    def __init__(self, make: Callable[..., Any], **kwargs: Any) -> None:
        self.make, self.kwargs = make, kwargs
        # torchao passes the axis of channels on to what has these words in its name.
        self.__name__ = f'PerChannel{getattr(make, "__name__", "")}'

    def with_args(self, **kwargs: Any) -> Constructor:
        """Return a constructor with more arguments."""
        return Constructor(self.make, **{**self.kwargs, **kwargs})

    def __call__(self, **kwargs: Any) -> Any:
        known_to_torchao()
        return self.make(**{**self.kwargs, **kwargs})


def known_to_torchao() -> None:
    """Let torchao take our fake quantizers for its own, which it knows by an abstract class.

    They do not inherit from it, so that learned steps work where torchao is not installed.

    Raises:
        MissingDependencyError: If torchao is absent.
    """
    pt2e().FakeQuantizeBase.register(FakeQuantizer)


def observer_of(observer: Any, **kwargs: Any) -> nn.Module:
    """Build an observer from a class, a constructor, a registered name or a config.

    Raises:
        ConfigError: If it is none of them, or takes other arguments.
    """
    if isinstance(observer, str):
        observer = {'type': observer}
    if isinstance(observer, dict):
        kwargs = {**kwargs, **observer}
        kind = kwargs.pop('type')
        observer = MODELS.get(kind) if isinstance(kind, str) else kind
    if not callable(observer):
        raise ConfigError(f'`observer` must be the class of one, its name or its config, but got {observer!r}.')
    try:
        return observer(**kwargs)
    except TypeError as error:
        name = getattr(observer, '__name__', type(observer).__name__)
        raise ConfigError(f'{name} does not take these arguments, {listed(kwargs)}: {error}') from error


@MODELS.register_module()
class FakeQuantize(FakeQuantizer):
    """Steps from the range that an observer sees.

    Inside that range gradients pass as they are, outside they are zero.

    Args:
        observer: Class, name or config of the observer: one of torchao's (`TORCHAO_OBSERVERS`), or `LSQObserver`.
        quant_min: Lowest code.
        quant_max: Highest code.
        observer_kwargs: What both know (`dtype`, `qscheme`, `ch_axis`, see `FakeQuantizer`), and more for the observer.

    Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018,
    https://arxiv.org/abs/1712.05877.

    >>> quantizer = FakeQuantize('MinMaxObserver', 0, 3, qscheme=torch.per_tensor_affine)
    >>> quantizer(torch.tensor([0.0, 0.4, 0.6, 3.0]))
    tensor([0., 0., 1., 3.])
    """

    kind = 1

    def __init__(
        self,
        observer: Any = 'MovingAverageMinMaxObserver',
        quant_min: int = 0,
        quant_max: int = 255,
        **observer_kwargs: Any,
    ) -> None:
        own, rest = shared_arguments(observer_kwargs)
        super().__init__(quant_min, quant_max, **own)
        self.activation_post_process = observer_of(observer, **observer_settings(self), **rest)
        self.register_buffer('scale', torch.ones(1))
        self.register_buffer('zero_point', torch.zeros(1, dtype=torch.int32))

    def observe(self, x: Tensor) -> None:
        """Let the observer see the tensor, and take its steps."""
        self.activation_post_process(x)
        shared = is_distributed() and not self.is_weight
        # A histogram's bins are those of its own range: it keeps them, and what comes of it is shared.
        by_bins = hasattr(self.activation_post_process, 'histogram')
        if shared and not by_bins:
            self._agree()
        scale, zero_point = self.activation_post_process.calculate_qparams()
        if shared and by_bins:
            scale, zero_point = self._mean_steps(scale, zero_point)
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.zero_point.copy_(zero_point.reshape(self.zero_point.shape))

    def _mean_steps(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """Return the steps of the mean of the ranges that all processes have steps for."""
        ends = torch.stack([(end - zero_point) * scale for end in (self.quant_min, self.quant_max)])
        all_reduce(ends, 'mean')
        scale = ((ends[1] - ends[0]) / (self.quant_max - self.quant_min)).to(scale.dtype)
        if not self.symmetric:
            zero_point = (self.quant_min - ends[0] / scale).round().clamp(self.quant_min, self.quant_max).to(zero_point.dtype)
        return scale, zero_point

    def _agree(self) -> None:
        """Give the observers of all processes one range: the mean of moving averages, else the widest."""
        low = getattr(self.activation_post_process, 'min_val', None)
        high = getattr(self.activation_post_process, 'max_val', None)
        if low is None or high is None:
            return
        if hasattr(self.activation_post_process, 'averaging_constant'):
            both = torch.stack([low, high])
            all_reduce(both, 'mean')
        else:
            both = torch.stack([-low, high])
            all_reduce(both, 'max')
            both[0].neg_()
        low.copy_(both[0])
        high.copy_(both[1])

    def rounded(self, x: Tensor) -> Tensor:
        """Return the tensor in steps; gradients pass where it is not clipped."""
        if x.dtype == torch.float32:
            if self.is_per_channel:
                return torch.fake_quantize_per_channel_affine(
                    x, self.scale, self.zero_point, self.ch_axis, self.quant_min, self.quant_max
                )
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.quant_min, self.quant_max)
        found = fake_quantize(x, self.scale, self.zero_point, self.quant_min, self.quant_max, self.axis)
        lowest = fake_quantize(
            torch.full_like(x, -torch.inf), self.scale, self.zero_point, self.quant_min, self.quant_max, self.axis
        )
        highest = fake_quantize(
            torch.full_like(x, torch.inf), self.scale, self.zero_point, self.quant_min, self.quant_max, self.axis
        )
        clipped = torch.maximum(torch.minimum(x, highest), lowest)
        return clipped + (found - clipped).detach()


def shared_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split arguments into those that every fake quantizer takes and the observer's own."""
    names = ('dtype', 'qscheme', 'ch_axis', 'is_weight', 'is_dynamic')
    own = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
    return own, {name: value for name, value in kwargs.items() if name not in names}


def observer_settings(quantizer: FakeQuantizer) -> dict[str, Any]:
    """Return what an observer has to know of its fake quantizer."""
    settings: dict[str, Any] = dict(
        dtype=quantizer.dtype, qscheme=quantizer.qscheme, quant_min=quantizer.quant_min, quant_max=quantizer.quant_max
    )
    if quantizer.is_per_channel:
        settings['ch_axis'] = quantizer.ch_axis
    return settings
