"""Blocks that a choice picks from: ShuffleNetV2's, MobileNetV2's, plain and separable convolutions, the identity.

Every block takes `in_channels`, `out_channels` and `stride` (a backbone passes them as `module_kwargs`), so that any two
of them can stand for each other. Parameter names are MMRazor's, so its checkpoints load.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import nn

from strop.architectures.conv_module import BN, CONV2D, RELU, Cfg, ConvModule, DepthwiseSeparableConvModule, build_conv_layer
from strop.architectures.layers import SELayer, channel_shuffle, check_drop_rate, drop_path, recomputed
from strop.errors import ConfigError
from strop.registry import MODELS


class BaseOP(BaseModule):
    """What every block has: channels in, channels out, stride.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the block as a whole; the output has `ceil(size / stride)` pixels a side.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ConfigError: If one of the three is not a positive integer.

    >>> BaseOP(8, 16, stride=2).stride
    2
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, init_cfg: Cfg | list[Cfg] | None = None, **unknown: Any
    ) -> None:
        if unknown:
            raise ConfigError(
                f'{type(self).__name__} got unknown arguments {sorted(unknown)}; besides its own it takes '
                'in_channels, out_channels, stride and init_cfg.'
            )
        super().__init__(init_cfg)
        for name, value in (('in_channels', in_channels), ('out_channels', out_channels), ('stride', stride)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f'{name} of {type(self).__name__} must be a positive integer; got {value!r}.')
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride


def _odd(kernel_size: int, block: str) -> int:
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f'kernel_size of {block} must be an odd positive integer such as 3, 5 or 7; got {kernel_size!r}.')
    return kernel_size


class _TwoBranches(BaseOP):
    """ShuffleNetV2's unit around a main branch that the sub-class gives.

    At stride 1 the first half of the channels passes through and the other goes through the main branch; at stride 2
    everything goes through both branches. The halves are joined and shuffled.
    """

    def __init__(
        self, kernel_size: int, conv_cfg: Cfg | None, norm_cfg: Cfg | None, act_cfg: Cfg | None, with_cp: bool, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        if self.out_channels % 2:
            raise ConfigError(f'out_channels of {name} must be even, as it has two branches; got {self.out_channels}.')
        if self.stride == 1 and self.in_channels != self.out_channels:
            raise ConfigError(
                f'{name} at stride 1 keeps the number of channels; got in_channels={self.in_channels} and '
                f'out_channels={self.out_channels}. Use stride 2 where the channels change.'
            )
        self.kernel_size = _odd(kernel_size, name)
        self.conv_cfg, self.norm_cfg, self.act_cfg, self.with_cp = conv_cfg, norm_cfg, act_cfg, with_cp
        half = self.out_channels // 2
        if self.stride > 1:
            self.branch1 = nn.Sequential(
                self._depthwise(self.in_channels, self.stride),
                self._pointwise(self.in_channels, half),
            )
        self.branch2 = self._main_branch(self.in_channels if self.stride > 1 else half, half)

    def _depthwise(self, channels: int, stride: int) -> ConvModule:
        return ConvModule(
            channels,
            channels,
            self.kernel_size,
            stride=stride,
            padding=self.kernel_size // 2,
            groups=channels,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=None,
        )

    def _pointwise(self, in_channels: int, out_channels: int) -> ConvModule:
        return ConvModule(in_channels, out_channels, 1, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)

    def _main_branch(self, in_channels: int, out_channels: int) -> nn.Sequential:
        raise ConfigError(f'{type(self).__name__} has to define `_main_branch`.')

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride > 1:
            halves = (self.branch1(x), self.branch2(x))
        else:
            kept, changed = x.chunk(2, dim=1)
            halves = (kept, self.branch2(changed))
        return channel_shuffle(torch.cat(halves, dim=1), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, ceil(h / stride), ceil(w / stride))`."""
        return recomputed(self, self._compute, x) if self.with_cp else self._compute(x)


@MODELS.register_module()
class ShuffleBlock(_TwoBranches):
    """ShuffleNetV2's unit: 1x1, depthwise k x k, 1x1 on the main branch.

    Args:
        kernel_size: Odd; the SPOS space uses 3, 5 and 7.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms.
        act_cfg: Config of the activations.
        with_cp: Compute activations again in the backward pass instead of keeping them.
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`.

    Raises:
        ConfigError: If the channels are odd, change at stride 1, or the kernel is even.

    >>> ShuffleBlock(5, in_channels=16, out_channels=64, stride=2)(torch.rand(1, 16, 8, 8)).shape
    torch.Size([1, 64, 4, 4])

    Reference: Ma et al., ShuffleNet V2, https://arxiv.org/abs/1807.11164;
    Guo et al., Single Path One-Shot NAS, https://arxiv.org/abs/1904.00420
    """

    def __init__(
        self,
        kernel_size: int,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = RELU,
        with_cp: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(kernel_size, conv_cfg, norm_cfg, act_cfg, with_cp, **kwargs)

    def _main_branch(self, in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(
            self._pointwise(in_channels, out_channels),
            self._depthwise(out_channels, self.stride),
            self._pointwise(out_channels, out_channels),
        )


@MODELS.register_module()
class ShuffleXception(_TwoBranches):
    """ShuffleNetV2's unit with three separable 3x3 convolutions on the main branch.

    Args:
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms.
        act_cfg: Config of the activations after the pointwise convolutions.
        with_cp: Compute activations again in the backward pass instead of keeping them.
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`.

    Raises:
        ConfigError: If the channels are odd or change at stride 1.

    >>> ShuffleXception(in_channels=8, out_channels=8)(torch.rand(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])

    Reference: Guo et al., Single Path One-Shot NAS, https://arxiv.org/abs/1904.00420
    """

    def __init__(
        self,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = RELU,
        with_cp: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(3, conv_cfg, norm_cfg, act_cfg, with_cp, **kwargs)

    def _main_branch(self, in_channels: int, out_channels: int) -> nn.Sequential:
        self.mid_channels = out_channels
        return nn.Sequential(
            *(
                DepthwiseSeparableConvModule(
                    in_channels if i == 0 else self.mid_channels,
                    out_channels if i == 2 else self.mid_channels,
                    3,
                    stride=self.stride if i == 0 else 1,
                    padding=1,
                    conv_cfg=self.conv_cfg,
                    norm_cfg=self.norm_cfg,
                    dw_act_cfg=None,
                    act_cfg=self.act_cfg,
                )
                for i in range(3)
            )
        )


class ShortcutLayer(BaseOP):
    """AttentiveNAS's shortcut: average pooling where the block strides, a 1x1 convolution where the channels change.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        reduction: 1 or 2, the stride.
        conv_cfg: Config of the convolution.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ConfigError: If `reduction` is neither 1 nor 2.

    >>> ShortcutLayer(4, 8, reduction=2)(torch.rand(1, 4, 7, 7)).shape
    torch.Size([1, 8, 4, 4])

    Reference: Wang et al., AttentiveNAS, https://arxiv.org/abs/2011.09011
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        reduction: int = 1,
        conv_cfg: Cfg | None = CONV2D,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, init_cfg=init_cfg)
        if reduction not in (1, 2):
            raise ConfigError(f'reduction of a shortcut must be 1 or 2; got {reduction!r}.')
        self.reduction = reduction
        # Made only where it is used: a parameter without gradient stops DDP.
        self.conv: nn.Module | None = None
        if in_channels != out_channels:
            self.conv = build_conv_layer(conv_cfg, in_channels, out_channels, kernel_size=1, stride=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool, then change the channels."""
        if self.reduction > 1:
            x = F.avg_pool2d(x, self.reduction, padding=(x.shape[-2] % 2, x.shape[-1] % 2))
        return x if self.conv is None else self.conv(x)


@MODELS.register_module()
class MBBlock(BaseOP):
    """MobileNetV2's inverted residual: expand 1x1, depthwise k x k, project 1x1 without activation.

    Args:
        kernel_size: Odd.
        expand_ratio: Channels inside, as a multiple of those of the input; 1 leaves the expansion out.
        se_cfg: Arguments of a squeeze-and-excitation after the depthwise convolution; None means none.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms.
        act_cfg: Config of the activations.
        drop_path_rate: Probability that the residual branch of a sample is dropped in training.
        with_cp: Compute activations again in the backward pass instead of keeping them.
        with_attentive_shortcut: Use `ShortcutLayer` also where stride or channels change.
        kwargs: `in_channels`, `out_channels`, `stride` (1 or 2), `init_cfg`.

    Raises:
        ConfigError: If an argument is out of its range.

    >>> block = MBBlock(3, 6, in_channels=8, out_channels=8)
    >>> block(torch.rand(1, 8, 7, 7)).shape
    torch.Size([1, 8, 7, 7])
    >>> sum(p.numel() for p in block.parameters())  # 8*48 + 9*48 + 48*8 weights, two for each of 48 + 48 + 8 norm channels
    1408

    Reference: Sandler et al., MobileNetV2, https://arxiv.org/abs/1801.04381
    """

    def __init__(
        self,
        kernel_size: int,
        expand_ratio: int,
        se_cfg: Cfg | None = None,
        conv_cfg: Cfg | None = CONV2D,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = RELU,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        with_attentive_shortcut: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.stride not in (1, 2):
            raise ConfigError(f'stride of MBBlock must be 1 or 2; got {self.stride}.')
        if not isinstance(expand_ratio, (int, float)) or int(self.in_channels * expand_ratio) < 1:
            raise ConfigError(f'expand_ratio of MBBlock must be a number that leaves a channel; got {expand_ratio!r}.')
        if se_cfg is not None and not isinstance(se_cfg, dict):
            raise ConfigError(f'se_cfg of MBBlock must be a dict of arguments of SELayer, or None; got {se_cfg!r}.')
        self.kernel_size = _odd(kernel_size, 'MBBlock')
        self.conv_cfg, self.norm_cfg, self.act_cfg, self.with_cp = conv_cfg, norm_cfg, act_cfg, with_cp
        self._drop_path_rate = check_drop_rate(drop_path_rate)
        self.with_se = se_cfg is not None
        self.with_attentive_shortcut = with_attentive_shortcut
        same = self.stride == 1 and self.in_channels == self.out_channels
        self.with_res_shortcut = same and not with_attentive_shortcut
        self.mid_channels = int(self.in_channels * expand_ratio)
        self.with_expand_conv = self.mid_channels != self.in_channels

        layers: Cfg = {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg}
        if with_attentive_shortcut:
            self.shortcut = ShortcutLayer(self.in_channels, self.out_channels, reduction=self.stride, conv_cfg=conv_cfg)
        if self.with_expand_conv:
            self.expand_conv = ConvModule(self.in_channels, self.mid_channels, 1, act_cfg=act_cfg, **layers)
        self.depthwise_conv = ConvModule(
            self.mid_channels,
            self.mid_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.kernel_size // 2,
            groups=self.mid_channels,
            act_cfg=act_cfg,
            **layers,
        )
        if se_cfg is not None:
            self.se = SELayer(self.mid_channels, **se_cfg)
        self.linear_conv = ConvModule(self.mid_channels, self.out_channels, 1, act_cfg=None, **layers)

    @property
    def drop_path_rate(self) -> float:
        """Probability that a sample skips the residual branch in training; may be set."""
        return self._drop_path_rate

    @drop_path_rate.setter
    def drop_path_rate(self, value: float) -> None:
        self._drop_path_rate = check_drop_rate(value)

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        out = self.expand_conv(x) if self.with_expand_conv else x
        out = self.depthwise_conv(out)
        if self.with_se:
            out = self.se(out)
        out = self.linear_conv(out)
        if self.with_res_shortcut:
            return x + drop_path(out, self.drop_path_rate, self.training)
        if self.with_attentive_shortcut:
            if self.stride == 1 and self.in_channels == self.out_channels:
                out = drop_path(out, self.drop_path_rate, self.training)
            return self.shortcut(x) + out
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, ceil(h / stride), ceil(w / stride))`."""
        return recomputed(self, self._compute, x) if self.with_cp else self._compute(x)


@MODELS.register_module()
class Identity(BaseOP):
    """Nothing where the shape stays, else the cheapest change of shape: a strided 1x1 convolution and its norm.

    Args:
        conv_cfg: Config of the convolution.
        norm_cfg: Config of the norm.
        act_cfg: Config of the activation; None means none.
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`.

    >>> x = torch.rand(1, 4, 6, 6)
    >>> Identity(in_channels=4, out_channels=4)(x) is x
    True
    >>> Identity(in_channels=4, out_channels=8, stride=2)(x).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self, conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = BN, act_cfg: Cfg | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.conv_cfg, self.norm_cfg, self.act_cfg = conv_cfg, norm_cfg, act_cfg
        self.downsample: ConvModule | None = None
        if self.stride != 1 or self.in_channels != self.out_channels:
            self.downsample = ConvModule(
                self.in_channels,
                self.out_channels,
                1,
                stride=self.stride,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
                act_cfg=act_cfg,
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, or its projection."""
        return x if self.downsample is None else self.downsample(x)


@MODELS.register_module()
class ConvBnAct(BaseOP):
    """A convolution with norm and activation, optionally with a squeeze-and-excitation and a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Of the convolution.
        stride: Of the convolution.
        dilation: Of the convolution.
        padding: Of the convolution.
        skip: Add the input, where stride and channels allow it.
        conv_cfg: Config of the convolution.
        se_cfg: Arguments of a squeeze-and-excitation after the convolution; None means none.
        norm_cfg: Config of the norm.
        act_cfg: Config of the activation.

    Raises:
        ConfigError: If a shortcut is wanted and the padding changes the size.

    >>> ConvBnAct(3, 16, 3, stride=2, padding=1)(torch.rand(1, 3, 8, 8)).shape
    torch.Size([1, 16, 4, 4])

    Differs from MMRazor: there a configured squeeze-and-excitation is built and never applied.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        padding: int = 0,
        skip: bool = False,
        conv_cfg: Cfg | None = None,
        se_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = RELU,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.has_residual = skip and stride == 1 and in_channels == out_channels
        if self.has_residual and 2 * padding != dilation * (kernel_size - 1):
            raise ConfigError(
                f'skip of ConvBnAct needs a padding that keeps the size, {dilation * (kernel_size - 1) / 2:g} for '
                f'kernel_size={kernel_size} and dilation={dilation}; got {padding}.'
            )
        self.with_se = se_cfg is not None
        if se_cfg is not None:
            self.se = SELayer(out_channels, **se_cfg)
        self.convModule = ConvModule(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            padding=padding,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the convolution, scale its channels, add the input."""
        out = self.convModule(x)
        if self.with_se:
            out = self.se(out)
        return x + out if self.has_residual else out


@MODELS.register_module()
class DepthwiseSeparableConv(BaseOP):
    """MobileNet's separable convolution with an optional squeeze-and-excitation and shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dw_kernel_size: Odd; of the depthwise convolution.
        stride: Of the depthwise convolution.
        dilation: Of the depthwise convolution.
        noskip: Never add the input.
        pw_kernel_size: Odd; of the other convolution.
        pw_act: Put an activation after the second convolution as well.
        conv_cfg: Config of the convolutions.
        se_cfg: Arguments of a squeeze-and-excitation between the two; None means none.
        norm_cfg: Config of the norms.
        act_cfg: Config of the activations.

    Raises:
        ConfigError: If a kernel size is even.

    >>> DepthwiseSeparableConv(4, 4)(torch.rand(1, 4, 6, 6)).shape
    torch.Size([1, 4, 6, 6])

    Reference: Howard et al., MobileNets, https://arxiv.org/abs/1704.04861

    Differs from MMRazor: the squeeze-and-excitation has the channels that reach it (`in_channels`; there `out_channels`,
    which fails where they differ), and the padding follows the dilation, so the size is kept.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dw_kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        noskip: bool = False,
        pw_kernel_size: int = 1,
        pw_act: bool = False,
        conv_cfg: Cfg | None = None,
        se_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = RELU,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.has_residual = stride == 1 and in_channels == out_channels and not noskip
        self.has_pw_act = pw_act
        self.conv_dw = ConvModule(
            in_channels,
            in_channels,
            dw_kernel_size,
            stride=stride,
            dilation=dilation,
            padding=dilation * (_odd(dw_kernel_size, 'DepthwiseSeparableConv') // 2),
            groups=in_channels,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )
        self.se: nn.Module = SELayer(in_channels, **se_cfg) if se_cfg else nn.Identity()
        self.conv_pw = ConvModule(
            in_channels,
            out_channels,
            pw_kernel_size,
            padding=_odd(pw_kernel_size, 'DepthwiseSeparableConv') // 2,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg if pw_act else None,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Filter every channel, scale, mix the channels, add the input."""
        out = self.conv_pw(self.se(self.conv_dw(x)))
        return x + out if self.has_residual else out
