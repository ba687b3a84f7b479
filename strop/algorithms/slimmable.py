"""Slimmable networks: one network that runs at a few widths, each with batch norms of its own.

Yu, Yang, Xu, Yang, Huang: Slimmable Neural Networks, ICLR 2019, https://arxiv.org/abs/1812.08928.
Official code: https://github.com/JiahuiYu/slimmable_networks.

Implemented here: training of all widths in each step, and switchable batch norms for any model that can be traced. Differs
from the paper: coupled layers are found by tracing, so one width belongs to a channel unit and not to a layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn

from strop.algorithms.algorithm import BaseAlgorithm
from strop.algorithms.several_subnets import SeveralSubnets
from strop.errors import ComponentTypeError, ConfigError
from strop.mutators import BaseMutator, SlimmableChannelMutator
from strop.mutators.channel_configs import read_channel_configs
from strop.registry import MODELS


@MODELS.register_module()
class SlimmableNetwork(SeveralSubnets):
    """Train every width of a slimmable network in each step.

    The losses of all widths are added: each has its own backward, and one update follows. The full width keeps the batch
    norms of the architecture, so a network that starts from pretrained weights is the original at its full width.

    Args:
        architecture: The network: its config, a `BaseModel`, or any `nn.Module`.
        mutator: A `SlimmableChannelMutator` or its config.
        deploy_index: Of the networks of the mutator, the one to become: the architecture is then that static network. -1
            trains all. Weights of a trained slimmable network are loaded first: then `deploy(index)`.
        data_preprocessor: MMEngine's data preprocessor.
        init_cfg: MMEngine's initialization config.
        channel_cfg_paths: As in MMRazor's first 1.x release: files with the widths of layers, one for each network. The
            mutator is a config without widths then; with one file alone the architecture becomes that static network.
        kwargs: `loss`, `metric`: see `BaseAlgorithm`.

    Raises:
        ConfigError: If there is no mutator, `deploy_index` is out of range, or the widths are said twice or cannot be read.
        ComponentTypeError: If the mutator is none of slimmable channels.

    >>> from strop.mutators import SlimmableChannelMutator
    >>> units = dict(type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio'))
    >>> mutator = dict(type='SlimmableChannelMutator', channel_unit_cfg=units, parse_cfg=dict(demo_input=(2, 4)))
    >>> network = SlimmableNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), mutator)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> log = network.train_step((torch.ones(3, 4), torch.tensor([0, 1, 0])), optimizer)
    >>> sorted(log)
    ['loss', 'subnet_0.loss', 'subnet_1.loss']
    """

    def __init__(
        self,
        architecture: BaseModel | nn.Module | Mapping[str, Any],
        mutator: BaseMutator | Mapping[str, Any] | None = None,
        deploy_index: int = -1,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        channel_cfg_paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        if channel_cfg_paths is not None:
            widths = read_channel_configs(channel_cfg_paths)
            if not isinstance(mutator, Mapping) or 'channel_cfgs' in mutator:
                raise ConfigError('With `channel_cfg_paths` the mutator is a config, without `channel_cfgs` in it.')
            mutator = {**mutator, 'channel_cfgs': widths}
            if len(widths) == 1:
                deploy_index = 0
        if mutator is None:
            raise ConfigError(
                "SlimmableNetwork needs a mutator, for example dict(type='SlimmableChannelMutator', channel_unit_cfg="
                "dict(type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio')))."
            )
        super().__init__(architecture, data_preprocessor, init_cfg, mutator=mutator, **kwargs)
        if not isinstance(self.mutator, SlimmableChannelMutator):
            raise ComponentTypeError(f'SlimmableNetwork needs a SlimmableChannelMutator, not a {type(self.mutator).__name__}.')
        self.register_load_state_dict_post_hook(_start_missing_norms)
        networks = len(self.mutator.subnets)
        if not -1 <= deploy_index < networks:
            raise ConfigError(f'`deploy_index` must be within 0..{networks - 1}, or -1 to train all, but got {deploy_index}.')
        self.deploy_index = deploy_index
        if deploy_index >= 0:
            self.deploy(deploy_index)

    @property
    def is_deployed(self) -> bool:
        """Whether the architecture is one static network."""
        return self.mutator is None

    def deploy(self, index: int) -> None:
        """Become the static network number `index`, with the weights and batch norms that it has now."""
        self.mutator.load_fix_subnet({self.mutator.key: index})
        self.mutator = None

    def init_weights(self) -> None:
        """Initialize the architecture; the batch norms of narrow widths then start from those of the full one."""
        super().init_weights()
        if not self.is_deployed:
            self.mutator.restart_norms()

    def passes(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """Return every network; none but the architecture itself once it is deployed."""

        def switch(index: int) -> Callable[[], None]:
            return lambda: self.mutator.set_subnet({self.mutator.key: index})

        return [(f'subnet_{index}', switch(index)) for index in range(len(self.mutator.subnets))]

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Add up the gradients of all widths and update the parameters once.

        Args:
            data: A batch, before the data preprocessor.
            optim_wrapper: MMEngine's `OptimWrapper`, or a plain `torch.optim.Optimizer`.

        Returns:
            The losses of network i as 'subnet_i.<name>', the sum of all as 'loss'.

        Raises:
            TrainingError: If a loss is not finite; no parameter has changed then.
        """
        if self.is_deployed:
            return BaseAlgorithm.train_step(self, data, optim_wrapper)
        return super().train_step(data, optim_wrapper)


def _start_missing_norms(network: SlimmableNetwork, keys: Any) -> None:
    """After weights without narrow batch norms were loaded, start those from the full ones."""
    if not network.is_deployed and any('.norms.' in name for name in keys.missing_keys):
        network.mutator.restart_norms()
        keys.missing_keys[:] = [name for name in keys.missing_keys if '.norms.' not in name]
