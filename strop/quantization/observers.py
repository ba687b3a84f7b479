"""How the range of a tensor is chosen: observers by name, and the two that torchao does not have.

`observer` gives the class for a name, a kind of tensor and a granularity. Those of torchao are used where it has them:
min-max, moving average and histogram. The percentile and the least squared error are ours, on torchao's histogram for
activations and on the values themselves for weights, which do not change during calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from strop.errors import ConfigError, listed, near
from strop.quantization.flow import pt2e

#: name -> what it takes for the range, for a person.
OBSERVERS: Mapping[str, str] = MappingProxyType(
    {
        'min_max': 'the smallest and the largest value seen',
        'moving_average': 'moving averages of the smallest and the largest value of each batch',
        'percentile': 'the range without the outermost values (`percentile=99.99` keeps all but 0.01 %)',
        'histogram': "the part of the histogram that loses least, by torchao's search",
        'mse': 'the range with the least squared error of what it rounds and cuts',
    }
)

# Scales below this are raised to it. torchao's own 2**-12 is coarse for weights whose batch norm was folded into them.
EPS = float(torch.finfo(torch.float32).eps)


def observer(name: str, *, weight: bool, per_channel: bool = False, percentile: float = 99.99) -> Any:
    """Return the constructor of an observer.

    Args:
        name: A name of `OBSERVERS`.
        weight: For a weight, or for an activation.
        per_channel: A range for each output channel; weights only.
        percentile: The share of values to keep, in percent, for `'percentile'`.

    Raises:
        ConfigError: If the name is unknown, or there is no such observer; the message has those that there are.

    >>> observer('mse', weight=True, per_channel=True).p.func.__name__
    'PerChannelMSEObserver'
    """
    if name not in OBSERVERS:
        raise ConfigError(f'An observer is one of {listed(OBSERVERS)}, but got {name!r}.{near(name, OBSERVERS)}')
    if not isinstance(percentile, (int, float)) or not 50 < percentile <= 100:
        raise ConfigError(f'`percentile` is the share of values to keep, above 50 and up to 100, but got {percentile!r}.')
    if per_channel and not weight:
        raise ConfigError(
            'Activations have one range for the whole tensor: no backend here multiplies integers whose scale differs from '
            'channel to channel of the activations. Weights can have one for each (`per_channel=True`).'
        )
    if weight and name == 'histogram':
        raise ConfigError(
            "'histogram' is for activations, whose values come batch by batch. For weights there are 'min_max', 'mse' and "
            "'percentile', which look at all values at once."
        )
    if weight and name == 'moving_average':
        raise ConfigError(
            "'moving_average' is for activations: a weight is the same in every batch. Use 'min_max' for weights."
        )
    made = _own() | {
        ('min_max', False, False): pt2e().MinMaxObserver,
        ('min_max', True, False): pt2e().MinMaxObserver,
        ('min_max', True, True): pt2e().PerChannelMinMaxObserver,
        ('moving_average', False, False): pt2e().MovingAverageMinMaxObserver,
        ('histogram', False, False): pt2e().HistogramObserver,
    }
    extra = {'percentile': percentile} if name == 'percentile' else {}
    return made[name, weight, per_channel].with_args(eps=EPS, **extra)


def shares(histogram: Tensor, low: Tensor, high: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Return the range that leaves out half of the other `100 - percentile` percent at either end of a histogram.

    >>> shares(torch.tensor([1.0, 98.0, 1.0]), torch.tensor(0.0), torch.tensor(3.0), 98.0)
    (tensor(1.), tensor(2.))
    """
    outside = (100 - percentile) / 200
    edges = torch.linspace(0, 1, len(histogram) + 1, dtype=torch.float64) * (high - low) + low
    below = torch.cat([torch.zeros(1, dtype=torch.float64), histogram.double().cumsum(0)]) / histogram.sum()
    first = int(torch.searchsorted(below, outside + 1e-12, right=True)) - 1
    last = int(torch.searchsorted(below, 1 - outside - 1e-12))
    return edges[first].to(low.dtype), edges[min(last, len(edges) - 1)].to(high.dtype)


def squared_error(values: Tensor, counts: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Return the mean squared error of quantizing `values`, of which there are `counts`.

    >>> squared_error(torch.tensor([0.25, 9.0]), torch.ones(2), torch.tensor(0.5), torch.tensor(0), -4, 4)
    tensor(24.5312)
    """
    levels = (torch.round(values / scale) + zero_point).clamp(quant_min, quant_max)
    return (((levels - zero_point) * scale - values).square() * counts).sum(-1) / counts.sum(-1)


_STEPS = 60


@cache
def _own() -> dict[tuple[str, bool, bool], Any]:
    """Return the observers that torchao lacks; made on first use, because torchao is optional."""
    torchao = pt2e()

    class PercentileObserver(torchao.HistogramObserver):  # type: ignore[misc, name-defined]
        """The range that holds a share of the values."""

        def __init__(self, *args: Any, percentile: float = 99.99, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.percentile = percentile

        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            return self._calculate_qparams(*shares(self.histogram, self.min_val, self.max_val, self.percentile))  # type: ignore[no-any-return]

    class MSEObserver(torchao.HistogramObserver):  # type: ignore[misc, name-defined]
        """The range with the least squared error over a histogram."""

        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            width = (self.max_val - self.min_val) / self.bins
            centres = self.min_val + width * (torch.arange(self.bins, device=self.histogram.device) + 0.5)

            def error(scale: Tensor, zero_point: Tensor) -> Tensor:
                return squared_error(centres, self.histogram, scale, zero_point, self.quant_min, self.quant_max)

            return _least(self._calculate_qparams, error, self.min_val, self.max_val)

    class _WeightObserver(torchao.PerChannelMinMaxObserver):  # type: ignore[misc, name-defined]
        """An observer that keeps the weight, one row for each range."""

        def __init__(self, ch_axis: int | None = None, qscheme: Any = torch.per_channel_symmetric, **kwargs: Any) -> None:
            super().__init__(ch_axis=0 if ch_axis is None else ch_axis, qscheme=torch.per_channel_symmetric, **kwargs)
            self.qscheme = qscheme
            self._whole = ch_axis is None
            self._rows = torch.empty(0)

        def forward(self, x_orig: Tensor) -> Tensor:
            x = x_orig.detach().float()
            self._rows = x.reshape(1, -1) if self._whole else x.movedim(self.ch_axis, 0).flatten(1)
            low, high = self._rows.aminmax(dim=1)
            self.min_val.resize_(low.shape).copy_(low)
            self.max_val.resize_(high.shape).copy_(high)
            return x_orig

    # torchao passes the axis of channels on to what has `PerChannel` in its name; without an axis there is one range.
    class PerChannelPercentileObserver(_WeightObserver):
        """The range of each channel that holds a share of its values."""

        def __init__(self, percentile: float = 99.99, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.percentile = percentile

        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            outside = (100 - self.percentile) / 200
            ordered = self._rows.sort(dim=1).values
            last = ordered.shape[1] - 1
            low, high = ordered[:, round(outside * last)], ordered[:, round((1 - outside) * last)]
            return self._calculate_qparams(low, high)  # type: ignore[no-any-return]

    class PerChannelMSEObserver(_WeightObserver):
        """The range of each channel with the least squared error."""

        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            counts = torch.ones_like(self._rows)

            def error(scale: Tensor, zero_point: Tensor) -> Tensor:
                return squared_error(
                    self._rows, counts, scale.unsqueeze(1), zero_point.unsqueeze(1), self.quant_min, self.quant_max
                )

            return _least(self._calculate_qparams, error, self.min_val, self.max_val)

    return {
        ('percentile', False, False): PercentileObserver,
        ('mse', False, False): MSEObserver,
        ('percentile', True, False): PerChannelPercentileObserver,
        ('percentile', True, True): PerChannelPercentileObserver,
        ('mse', True, False): PerChannelMSEObserver,
        ('mse', True, True): PerChannelMSEObserver,
    }


def _least(
    qparams: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    error: Callable[[Tensor, Tensor], Tensor],
    low: Tensor,
    high: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the shrunken range, from 1 down to 0.2 of the whole, with the least error."""
    scale, zero_point = qparams(low, high)
    least = error(scale, zero_point)
    for share in torch.linspace(1, 0.2, _STEPS).tolist()[1:]:
        new_scale, new_zero = qparams(low * share, high * share)
        found = error(new_scale, new_zero)
        better = found < least
        least = torch.where(better, found, least)
        mask = better.reshape(scale.shape) if better.numel() == scale.numel() else better
        scale, zero_point = torch.where(mask, new_scale, scale), torch.where(mask, new_zero, zero_point)
    return scale, zero_point


__all__ = ['EPS', 'OBSERVERS', 'observer', 'shares', 'squared_error']
