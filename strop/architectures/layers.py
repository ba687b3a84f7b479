"""Small parts that several blocks share: channel arithmetic, stochastic depth, squeeze-and-excitation, recomputation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from strop.architectures.conv_module import Cfg, ConvModule
from strop.errors import ConfigError


def make_divisible(value: float, divisor: int, min_value: int | None = None, min_ratio: float = 0.9) -> int:
    """Round a number of channels to a multiple of `divisor`, without losing more than `1 - min_ratio` of it.

    Args:
        value: The wanted number of channels.
        divisor: What the result is a multiple of.
        min_value: The least result; `divisor` if not given.
        min_ratio: The result is at least this share of `value`.

    >>> make_divisible(34, 8), make_divisible(3, 8), make_divisible(11, 8)
    (32, 8, 16)
    """
    rounded = int(value + divisor / 2) // divisor * divisor
    if rounded < min_ratio * value:
        rounded += divisor
    return max(rounded, divisor if min_value is None else min_value)


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Interleave the channels of `groups` groups: channel `g * n + i` goes to `i * groups + g`.

    Shape: `(batch, channels, height, width)` in and out.

    Raises:
        ConfigError: If the channels cannot be divided into `groups`.

    >>> channel_shuffle(torch.arange(6.0).reshape(1, 6, 1, 1), 2).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]

    Reference: Zhang et al., ShuffleNet, https://arxiv.org/abs/1707.01083
    """
    batch, channels, height, width = x.shape
    if channels % groups:
        raise ConfigError(f'channel_shuffle needs channels that groups divides; got {channels} channels and {groups} groups.')
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def drop_path(x: torch.Tensor, rate: float = 0.0, training: bool = False) -> torch.Tensor:
    """Zero whole samples with probability `rate` and divide the others by `1 - rate`; the identity in evaluation.

    Raises:
        ConfigError: If `rate` is not in [0, 1).

    >>> drop_path(torch.ones(2, 3), 0.5, training=False).sum().item()
    6.0

    Reference: Huang et al., Deep Networks with Stochastic Depth, https://arxiv.org/abs/1603.09382
    """
    check_drop_rate(rate)
    if rate == 0.0 or not training:
        return x
    keep = 1.0 - rate
    mask = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device) < keep
    return x / keep * mask


def check_drop_rate(rate: float) -> float:
    """Return `rate`, or say that it is no probability below 1."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 <= rate < 1.0:
        raise ConfigError(f'drop_path_rate must be a number in [0, 1); got {rate!r}.')
    return float(rate)


class DropPath(nn.Module):
    """Stochastic depth as a module: see `drop_path`.

    Args:
        drop_prob: Probability that a sample is zeroed in training.

    >>> DropPath(0.2).eval()(torch.ones(1)).item()
    1.0
    """

    def __init__(self, drop_prob: float = 0.1) -> None:
        super().__init__()
        self.drop_prob = check_drop_rate(drop_prob)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` with whole samples dropped."""
        return drop_path(x, self.drop_prob, self.training)

    def extra_repr(self) -> str:
        """Show the probability."""
        return f'drop_prob={self.drop_prob}'


class SELayer(BaseModule):
    """Squeeze-and-excitation: `x * act2(W2 act1(W1 mean(x)))`, one factor a channel.

    Args:
        channels: Channels of the input and the output.
        squeeze_channels: Channels between the two 1x1 convolutions; `make_divisible(channels // ratio, divisor)` if not given.
        ratio: See `squeeze_channels`.
        divisor: See `squeeze_channels`.
        bias: Of the convolutions; `'auto'` means True, as no norm follows.
        conv_cfg: Config of the convolutions.
        act_cfg: One activation for both places, or a pair.
        return_weight: Give the factors instead of the product.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ConfigError: If `act_cfg` is neither a dict nor a pair of dicts, or `squeeze_channels` is not positive.

    >>> SELayer(16, ratio=4)(torch.rand(2, 16, 5, 5)).shape
    torch.Size([2, 16, 5, 5])

    Reference: Hu et al., Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507
    """

    def __init__(
        self,
        channels: int,
        squeeze_channels: int | None = None,
        ratio: int = 16,
        divisor: int = 8,
        bias: bool | str = 'auto',
        conv_cfg: Cfg | None = None,
        act_cfg: Cfg | tuple[Cfg, Cfg] = ({'type': 'ReLU'}, {'type': 'Sigmoid'}),
        return_weight: bool = False,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        acts = (act_cfg, act_cfg) if isinstance(act_cfg, dict) else tuple(act_cfg)
        if len(acts) != 2 or not all(isinstance(act, dict) for act in acts):
            raise ConfigError(f'act_cfg of an SELayer must be one dict or a pair of dicts; got {act_cfg!r}.')
        squeezed = make_divisible(channels // ratio, divisor) if squeeze_channels is None else squeeze_channels
        if not isinstance(squeezed, int) or squeezed <= 0:
            raise ConfigError(f'squeeze_channels of an SELayer must be a positive integer; got {squeezed!r}.')
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = ConvModule(channels, squeezed, 1, bias=bias, conv_cfg=conv_cfg, act_cfg=acts[0])
        self.conv2 = ConvModule(squeezed, channels, 1, bias=bias, conv_cfg=conv_cfg, act_cfg=acts[1])
        self.return_weight = return_weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` with every channel scaled."""
        weight = self.conv2(self.conv1(self.global_avgpool(x)))
        return weight if self.return_weight else x * weight


class _KeptStatistics:
    """While entered, training batch norms normalise by their batch but leave the running statistics alone."""

    def __init__(self, module: nn.Module) -> None:
        self._norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
        self._before: list[list[tuple[float | None, torch.Tensor | None]]] = []

    def __enter__(self) -> None:
        counts = (norm.num_batches_tracked for norm in self._norms)
        self._before.append(
            [(norm.momentum, None if count is None else count.clone()) for norm, count in zip(self._norms, counts, strict=True)]
        )
        for norm in self._norms:
            norm.momentum = 0.0

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self._norms, self._before.pop(), strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def _contexts(module: nn.Module) -> tuple[Any, Any]:
    return _Nothing(), _KeptStatistics(module)


def recomputed(module: nn.Module, function: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
    """Return `function(x)`, keeping only `x` for the backward pass and computing the rest again there.

    Outputs, gradients and batch-norm statistics equal those of the plain call: the second computation does not count
    the batch again. Without gradients this is the plain call.

    Args:
        module: Whatever `function` runs; its batch norms are the ones protected.
        function: From one tensor to tensors.
        x: The input.

    >>> layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    >>> bool((recomputed(layer, layer, x) == layer(x)).all())
    True

    Reference: Chen et al., Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174
    """
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, context_fn=partial(_contexts, module))
