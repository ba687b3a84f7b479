"""`SearchableMobileNetV2`: a MobileNetV2 whose every block is a choice.

Reference: Sandler et al., MobileNetV2, https://arxiv.org/abs/1801.04381; spaces of this form are those of Cai et al.,
ProxylessNAS, https://arxiv.org/abs/1812.00332
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmengine.model import Sequential
from torch import nn

from strop.architectures.conv_module import BN, RELU6, Cfg, ConvModule
from strop.architectures.layers import make_divisible
from strop.architectures.stages import StagedBackbone, build_mutable, check_rows, stack
from strop.registry import MODELS

_INIT: list[Cfg] = [
    {'type': 'Kaiming', 'layer': ['Conv2d']},
    {'type': 'Constant', 'val': 1, 'layer': ['_BatchNorm', 'GroupNorm']},
]


@MODELS.register_module(name=['SearchableMobileNetV2', 'SearchableMobileNet'])
class SearchableMobileNetV2(StagedBackbone):
    """MobileNetV2 with a choice in the place of every block.

    `conv1`, a 3x3 convolution, then the stages `layer1`, `layer2`, ... of `arch_setting`, then `conv2`, a 1x1 convolution.

    Args:
        arch_setting: Rows `[channels, num_blocks, stride, mutable_cfg]`; the stride is that of the first block.
            `mutable_cfg` is copied for every block and gets `module_kwargs` with `in_channels`, `out_channels`, `stride`.
        first_channels: Channels of the stem.
        last_channels: Channels of `conv2`; only a `widen_factor` above 1 widens them.
        widen_factor: Multiplies the channels of stem and stages, which are rounded to multiples of 8.
        out_indices: Stages whose outputs are given; `conv2` counts as the last.
        frozen_stages: -1 freezes nothing, 0 the stem, `n` the stem and the first `n` stages.
        conv_cfg: Config of the convolutions of stem and `conv2`.
        norm_cfg: Config of their norms.
        act_cfg: Config of their activations. The candidates have configs of their own.
        norm_eval: Keep batch norms in evaluation while training.
        with_cp: Compute each block again in the backward pass instead of keeping its activations.
        init_cfg: MMEngine's initialisation config.
        in_channels: Channels of the images.
        stem_stride: Stride of the stem; 1 suits images of 28 or 32 pixels.

    Raises:
        ConfigError: If an index of `out_indices`, `frozen_stages` or a row is out of its range.

    >>> mutable = dict(type='OneShotMutableOP', candidates=dict(k3=dict(type='MBBlock', kernel_size=3, expand_ratio=6)))
    >>> from strop.errors import ConfigError
    >>> try:
    ...     SearchableMobileNetV2([[16, 1, 1, mutable]] * 7, frozen_stages=8)
    ... except ConfigError as error:
    ...     print(str(error)[:42])
    frozen_stages must be in range(-1, 8); rec
    """

    def __init__(
        self,
        arch_setting: Sequence[Sequence[Any]],
        first_channels: int = 32,
        last_channels: int = 1280,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (7,),
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = RELU6,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Cfg | list[Cfg] | None = _INIT,
        in_channels: int = 3,
        stem_stride: int = 2,
    ) -> None:
        check_rows(arch_setting, ('channels', 'num_blocks', 'stride', 'mutable_cfg'))
        super().__init__(out_indices, frozen_stages, len(arch_setting) + 1, norm_eval, with_cp, init_cfg)
        self.arch_setting = arch_setting
        self.widen_factor = widen_factor
        self.conv_cfg, self.norm_cfg, self.act_cfg = conv_cfg, norm_cfg, act_cfg
        layers: Cfg = {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg, 'act_cfg': act_cfg}

        #: Channels that the next block receives; `_make_layer` moves it on.
        self.in_channels = make_divisible(first_channels * widen_factor, 8)
        self.conv1 = ConvModule(in_channels, self.in_channels, 3, stride=stem_stride, padding=1, **layers)
        #: Names of the stages.
        self.layers: list[str] = []
        for number, (channels, num_blocks, stride, mutable_cfg) in enumerate(arch_setting, start=1):
            stage = self._make_layer(
                out_channels=make_divisible(channels * widen_factor, 8),
                num_blocks=num_blocks,
                stride=stride,
                mutable_cfg=copy.deepcopy(mutable_cfg),
            )
            self.add_module(f'layer{number}', stage)
            self.layers.append(f'layer{number}')
        #: Channels of the last output.
        self.out_channel = int(last_channels * widen_factor) if widen_factor > 1.0 else last_channels
        self.conv2 = ConvModule(self.in_channels, self.out_channel, 1, **layers)
        self.layers.append('conv2')
        self._built()

    def stages(self) -> list[nn.Module]:
        """Return the stages in the order in which they run."""
        return [getattr(self, name) for name in self.layers]

    def _make_layer(self, out_channels: int, num_blocks: int, stride: int, mutable_cfg: Cfg) -> Sequential:
        """Make one stage.

        Args:
            out_channels: Channels of every block of the stage.
            num_blocks: Number of choices in a row.
            stride: Stride of the first block.
            mutable_cfg: Config of the choice.
        """
        blocks = []
        for number in range(num_blocks):
            blocks.append(build_mutable(mutable_cfg, self.in_channels, out_channels, stride if number == 0 else 1))
            self.in_channels = out_channels
        return stack(blocks)
