"""`SearchableShuffleNetV2`: a ShuffleNetV2 whose every block is a choice.

Reference: Ma et al., ShuffleNet V2, https://arxiv.org/abs/1807.11164; the space of choices is that of Guo et al.,
Single Path One-Shot NAS with Uniform Sampling, https://arxiv.org/abs/1904.00420
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmengine.model import ModuleList, Sequential, constant_init, normal_init
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.architectures.conv_module import BN, RELU, Cfg, ConvModule
from strop.architectures.stages import StagedBackbone, build_mutable, check_rows, stack
from strop.errors import ConfigError
from strop.registry import MODELS


@MODELS.register_module()
class SearchableShuffleNetV2(StagedBackbone):
    """ShuffleNetV2 with a choice in the place of every block.

    `conv1`, a 3x3 convolution, then one stage for each row of `arch_setting`, then a 1x1 convolution. The first block
    of a stage has stride 2.

    Args:
        arch_setting: Rows `[channels, num_blocks, mutable_cfg]`. `mutable_cfg` is copied for every block and gets
            `module_kwargs` with `in_channels`, `out_channels` and `stride`.
        stem_multiplier: The stem has `16 * stem_multiplier` channels.
        widen_factor: Multiplies the channels of every row.
        out_indices: Stages whose outputs are given; the 1x1 convolution counts as the last.
        frozen_stages: -1 freezes nothing, 0 the stem, `n` the stem and the first `n` stages.
        with_last_layer: Whether the 1x1 convolution is there.
        conv_cfg: Config of the convolutions of stem and last layer.
        norm_cfg: Config of their norms.
        act_cfg: Config of their activations. The candidates have configs of their own.
        norm_eval: Keep batch norms in evaluation while training.
        with_cp: Compute each block again in the backward pass instead of keeping its activations.
        init_cfg: MMEngine's initialisation config.
        in_channels: Channels of the images.
        last_channels: Channels of the 1x1 convolution.
        stem_stride: Stride of the stem; 1 suits images of 28 or 32 pixels.
        strides: Stride of the first block of each row; 2 for all unless given.

    Raises:
        ConfigError: If an index of `out_indices`, `frozen_stages` or a row is out of its range.

    >>> choice = dict(type='ShuffleBlock', kernel_size=3)
    >>> mutable = dict(type='OneShotMutableOP', candidates=dict(shuffle_3x3=choice))
    >>> from strop.errors import ConfigError
    >>> try:
    ...     SearchableShuffleNetV2([[64, 4, mutable]] * 4, out_indices=(5,))
    ... except ConfigError as error:
    ...     print(str(error)[:52])
    Every item of out_indices must be in range(0, 5), it
    """

    def __init__(
        self,
        arch_setting: Sequence[Sequence[Any]],
        stem_multiplier: int = 1,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (4,),
        frozen_stages: int = -1,
        with_last_layer: bool = True,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = RELU,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Cfg | list[Cfg] | None = None,
        in_channels: int = 3,
        last_channels: int = 1024,
        stem_stride: int = 2,
        strides: Sequence[int] | None = None,
    ) -> None:
        check_rows(arch_setting, ('channels', 'num_blocks', 'mutable_cfg'))
        n_stages = len(arch_setting) + bool(with_last_layer)
        super().__init__(out_indices, frozen_stages, n_stages, norm_eval, with_cp, init_cfg)
        if strides is not None and len(strides) != len(arch_setting):
            raise ConfigError(f'strides needs one stride for each of the {len(arch_setting)} rows; got {strides!r}.')
        self.arch_setting = arch_setting
        self.widen_factor = widen_factor
        self.conv_cfg, self.norm_cfg, self.act_cfg = conv_cfg, norm_cfg, act_cfg
        layers: Cfg = {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg, 'act_cfg': act_cfg}

        #: Channels that the next block receives; `_make_layer` moves it on.
        self.in_channels = 16 * stem_multiplier
        self.conv1 = ConvModule(in_channels, self.in_channels, 3, stride=stem_stride, padding=1, **layers)
        self.layers = ModuleList()
        for number, (channels, num_blocks, mutable_cfg) in enumerate(arch_setting):
            #: Stride of the first block of the stage that is being made.
            self.stage_stride = 2 if strides is None else strides[number]
            out_channels = round(channels * widen_factor)
            self.layers.append(self._make_layer(out_channels, num_blocks, copy.deepcopy(mutable_cfg)))
        if with_last_layer:
            self.layers.append(ConvModule(self.in_channels, last_channels, 1, **layers))
            self.in_channels = last_channels
        #: Channels of the last output.
        self.out_channels = self.in_channels
        self._built()

    def _make_layer(self, out_channels: int, num_blocks: int, mutable_cfg: Cfg) -> Sequential:
        """Make one stage.

        Args:
            out_channels: Channels of every block of the stage.
            num_blocks: Number of choices in a row.
            mutable_cfg: Config of the choice.
        """
        blocks = []
        for number in range(num_blocks):
            blocks.append(build_mutable(mutable_cfg, self.in_channels, out_channels, self.stage_stride if number == 0 else 1))
            self.in_channels = out_channels
        return stack(blocks)

    def init_weights(self) -> None:
        """Initialise as ShuffleNetV2 does, unless `init_cfg` loads a checkpoint.

        Weights are normal with standard deviation 0.01 in the stem and `1 / (in_channels / groups)` elsewhere; norms start
        as the identity with a bias of 1e-4.
        """
        again = self.is_init
        super().init_weights()
        configs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        if again or any('Pretrained' in str(cfg.get('type')) for cfg in configs):
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                normal_init(module, mean=0, std=0.01 if name.startswith('conv1.') else 1.0 / module.weight.shape[1])
            elif isinstance(module, (_BatchNorm, nn.GroupNorm)):
                constant_init(module, val=1, bias=0.0001)
                if isinstance(module, _BatchNorm) and module.running_mean is not None:
                    nn.init.constant_(module.running_mean, 0)
