"""`WideResNet`: wide residual networks for small images, with pre-activation blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from strop.architectures.conv_module import Cfg, build_conv_layer, build_norm_layer
from strop.architectures.stages import StagedBackbone
from strop.errors import ConfigError
from strop.registry import MODELS

#: Defaults of arguments. They are copied before use, never changed.
BN: Cfg = {'type': 'BN', 'requires_grad': True}
INIT: list[Cfg] = [
    {'type': 'Kaiming', 'layer': ['Conv2d']},
    {'type': 'Constant', 'val': 1, 'layer': ['_BatchNorm', 'GroupNorm']},
]


class WideBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice, and a shortcut: `x`, or a 1x1 convolution of its activation where shapes differ.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the first convolution.
        dilation: Of the first convolution.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms.

    >>> WideBlock(4, 8, stride=2)(torch.rand(1, 4, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = BN,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, in_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        # Not in place: what is distilled here is the norm's output, before the activation.
        self.relu1 = nn.ReLU()
        self.conv1 = build_conv_layer(
            conv_cfg, in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, out_channels, postfix=2)
        self.add_module(self.norm2_name, norm2)
        self.relu2 = nn.ReLU()
        self.conv2 = build_conv_layer(conv_cfg, out_channels, out_channels, 3, padding=1, bias=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = build_conv_layer(conv_cfg, in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of residual and shortcut."""
        active = self.relu1(getattr(self, self.norm1_name)(x))
        residual = self.conv2(self.relu2(getattr(self, self.norm2_name)(self.conv1(active))))
        return residual + (x if self.downsample is None else self.downsample(active))


@MODELS.register_module()
class WideResNet(StagedBackbone):
    """A residual network of few, wide layers.

    `conv1`, then `layer1` to `layer3` of `(depth - 4) / 6` blocks each, then a norm and a ReLU. It gives one feature map.

    Args:
        depth: Number of layers, `6 n + 4`: 10, 16, 22, 28, 40.
        widen_factor: What the channels of each stage are multiplied by.
        in_channels: Channels of the images.
        stem_channels: Channels of `conv1`.
        base_channels: Channels of the first stage, before they are multiplied; each stage doubles them.
        expansion: Takes the place of `widen_factor`, if given.
        num_stages: Number of stages, 1 to 3.
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        frozen_stages: -1 freezes nothing, 0 the stem, `n` the stem and the first `n` stages.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms.
        norm_eval: Keep batch norms in evaluation while training.
        zero_init_residual: Start every block as its shortcut. The last convolution of the residual starts at 0; its norm must
            not, as no gradient would pass the ReLU behind it.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If a number is out of its range.

    >>> model = WideResNet(10, widen_factor=1, in_channels=1)
    >>> model(torch.rand(2, 1, 8, 8)).shape, model.feat_dim
    (torch.Size([2, 64, 2, 2]), 64)

    Reference: Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146
    """

    def __init__(
        self,
        depth: int,
        widen_factor: int = 4,
        in_channels: int = 3,
        stem_channels: int = 16,
        base_channels: int = 16,
        expansion: int | None = None,
        num_stages: int = 3,
        strides: Sequence[int] = (1, 2, 2),
        dilations: Sequence[int] = (1, 1, 1),
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = BN,
        norm_eval: bool = False,
        zero_init_residual: bool = False,
        init_cfg: Cfg | list[Cfg] | None = INIT,
    ) -> None:
        blocks, left = divmod(depth - 4, 6)
        if left or blocks < 1:
            nearest = 6 * max(1, round((depth - 4) / 6)) + 4
            raise ConfigError(f'depth of a WideResNet is 6 n + 4 (10, 16, 22, 28, 40); got {depth}. {nearest} is the nearest.')
        if num_stages not in (1, 2, 3) or min(len(strides), len(dilations)) < num_stages:
            raise ConfigError(
                'num_stages must be 1, 2 or 3, with a stride and a dilation for each stage; got '
                f'{num_stages=}, {strides=}, {dilations=}.'
            )
        factor = widen_factor if expansion is None else expansion
        if not isinstance(factor, int) or factor < 1:
            raise ConfigError(f'widen_factor and expansion must be positive integers; got {factor!r}.')
        super().__init__((num_stages - 1,), frozen_stages, num_stages + 1, norm_eval, False, init_cfg)
        self.zero_init_residual = zero_init_residual
        self.conv1 = build_conv_layer(conv_cfg, in_channels, stem_channels, 3, padding=1, bias=False)
        before = stem_channels
        #: Names of the stages.
        self.res_layers = [f'layer{stage + 1}' for stage in range(num_stages)]
        for stage, name in enumerate(self.res_layers):
            after = base_channels * factor * 2**stage
            options: Cfg = {'dilation': dilations[stage], 'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg}
            first = WideBlock(before, after, strides[stage], **options)
            self.add_module(name, nn.Sequential(first, *[WideBlock(after, after, **options) for _ in range(blocks - 1)]))
            before = after
        #: Channels of the output.
        self.feat_dim = self.out_channels = before
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, before, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.relu = nn.ReLU()
        self._built()

    def stages(self) -> list[nn.Module]:
        """Return the stages in the order in which they run."""
        return [self.get_submodule(name) for name in self.res_layers]

    def init_weights(self) -> None:
        """Initialise by `init_cfg`; then, with `zero_init_residual`, end every residual in zeros."""
        again = self.is_init
        super().init_weights()
        configs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        if again or not self.zero_init_residual or any('Pretrained' in str(cfg.get('type')) for cfg in configs):
            return
        for module in self.modules():
            if isinstance(module, WideBlock):
                nn.init.zeros_(module.conv2.get_parameter('weight'))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the feature map of the last stage, activated, of shape `(batch, feat_dim, height, width)`.

        Args:
            x: Shape `(batch, in_channels, height, width)`.
        """
        x = self.conv1(x)
        for stage in self.stages():
            x = stage(x)
        return self.relu(getattr(self, self.norm1_name)(x))
