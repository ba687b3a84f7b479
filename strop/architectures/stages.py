"""What searchable backbones share: a stem, stages in a row, several outputs, frozen stages, norms kept in evaluation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, Sequential
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.architectures.conv_module import Cfg
from strop.architectures.layers import recomputed
from strop.errors import ConfigError
from strop.registry import MODELS


class StagedBackbone(BaseModule):
    """A backbone that runs `conv1` and then its stages, and gives the outputs of some of them.

    A sub-class builds `conv1` and the stages, says with `stages` which they are, and calls `_built` last.

    Args:
        out_indices: Stages whose outputs are given, counted from 0 without the stem.
        frozen_stages: -1 freezes nothing, 0 the stem, `n` the stem and the first `n` stages.
        n_stages: How many stages there are.
        norm_eval: Keep batch norms in evaluation while training.
        with_cp: Compute each block again in the backward pass instead of keeping its activations.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ConfigError: If an index is out of range.
    """

    conv1: nn.Module

    def __init__(
        self,
        out_indices: Sequence[int],
        frozen_stages: int,
        n_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg: Cfg | list[Cfg] | None,
    ) -> None:
        for index in out_indices:
            if index not in range(n_stages):
                raise ConfigError(
                    f'Every item of out_indices must be in range(0, {n_stages}), its stages; received {index!r}. '
                    f'out_indices=({n_stages - 1},) gives the last one.'
                )
        if frozen_stages not in range(-1, n_stages):
            raise ConfigError(
                f'frozen_stages must be in range(-1, {n_stages}); received {frozen_stages!r}. -1 freezes nothing, 0 the stem.'
            )
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

    def stages(self) -> list[nn.Module]:
        """Return the stages in the order in which they run."""
        return list(self.layers)

    def _built(self) -> None:
        # A sub-class that freezes in its own way may not be complete yet; its method runs with the first train().
        if type(self)._freeze_stages is StagedBackbone._freeze_stages:
            self._freeze_stages()

    def _freeze_stages(self) -> None:
        """Stop training of the stem and the first `frozen_stages` stages, and keep them in evaluation."""
        if self.frozen_stages < 0:
            return
        for module in (self.conv1, *self.stages()[: self.frozen_stages]):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad = False

    def _through(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not self.with_cp:
            return stage(x)
        for block in stage if isinstance(stage, nn.Sequential) else (stage,):
            x = recomputed(block, block, x)
        return x

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the feature maps of the stages in `out_indices`, in the order of the stages.

        Args:
            x: Shape `(batch, in_channels, height, width)`.
        """
        outputs = []
        x = self.conv1(x)
        for index, stage in enumerate(self.stages()):
            x = self._through(stage, x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> StagedBackbone:
        """Switch between training and evaluation; frozen stages, and with `norm_eval` all batch norms, stay in evaluation."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def check_rows(arch_setting: Sequence[Sequence[Any]], columns: tuple[str, ...]) -> None:
    """Say which row of an `arch_setting` is malformed.

    Args:
        arch_setting: One row a stage.
        columns: Names of what a row has.

    Raises:
        ConfigError: If it is empty, or a row has another length.

    >>> check_rows([[64, 4, {'type': 'OneShotMutableOP'}]], ('channels', 'num_blocks', 'mutable_cfg'))
    """
    rule = f'arch_setting is a list of rows [{", ".join(columns)}]'
    if isinstance(arch_setting, (str, dict)) or not arch_setting:
        raise ConfigError(f'{rule}, one for each stage; got {arch_setting!r}.')
    for number, row in enumerate(arch_setting):
        if isinstance(row, (str, dict)) or len(row) != len(columns):
            raise ConfigError(f'{rule}; row {number} is {row!r}.')
        for name, value in zip(columns, row, strict=True):
            if name == 'mutable_cfg':
                if not isinstance(value, dict) or 'type' not in value:
                    raise ConfigError(f"mutable_cfg must be a dict with a 'type'; row {number} of arch_setting has {value!r}.")
            elif not isinstance(value, int) or value < 1:
                raise ConfigError(f'{name} must be a positive integer; row {number} of arch_setting has {value!r}.')


def build_mutable(mutable_cfg: Cfg, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build one choice of a stage: a copy of `mutable_cfg` with the shape put into its `module_kwargs`.

    Args:
        mutable_cfg: Config of the choice; `module_kwargs` already in it are kept.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the block.
    """
    cfg = copy.deepcopy(mutable_cfg)
    shape = {'in_channels': in_channels, 'out_channels': out_channels, 'stride': stride}
    cfg['module_kwargs'] = {**(cfg.get('module_kwargs') or {}), **shape}
    return MODELS.build(cfg)


def stack(blocks: Sequence[nn.Module]) -> Sequential:
    """Return the blocks as MMEngine's `Sequential`, which passes `init_weights` on."""
    return Sequential(*blocks)
