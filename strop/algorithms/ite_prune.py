"""Pruning while training: channels are given up in steps until each unit has its target.

Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, ICLR 2017, https://arxiv.org/abs/1608.08710, prunes
once by L1 norms and trains again. Here the same choice can be made in several steps of training. Differs from the paper:
layers whose channels are coupled are pruned together, by the mean of their norms.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import nn

from strop.algorithms.algorithm import BaseAlgorithm, LossResults
from strop.errors import ComponentTypeError, ConfigError, listed, near
from strop.mutables import L1MutableChannelUnit, extract
from strop.mutators import BaseMutator, ChannelMutator
from strop.registry import MODELS


@MODELS.register_module()
class ItePruneAlgorithm(BaseAlgorithm):
    r"""Prune the channels of an architecture in steps of its training.

    With the linear schedule, after the k-th of K steps a unit of n channels and the target t has

    .. math:: n_k = n - (n - t) \cdot k / K

    of them, rounded as the unit's settings say; without it, the first step prunes to the target at once. Steps come every
    `step_freq` iterations, the first one before the first update. Which channels stay is kept in the state dict.

    Args:
        architecture: The model: its config, a `BaseModel`, or any `nn.Module`.
        mutator_cfg: A `ChannelMutator` or its config, with `L1MutableChannelUnit` (the channels of the greatest norms stay) or
            `SequentialMutableChannelUnit` (the first ones do).
        data_preprocessor: MMEngine's data preprocessor.
        target_pruning_ratio: What stays of each unit: a ratio within (0, 1] or a number of channels, for all units or as a
            mapping from their names. Units that a mapping leaves out are not pruned.
        step_freq: Iterations from one step to the next.
        prune_times: Number of steps.
        init_cfg: MMEngine's initialization config.
        linear_schedule: Whether to prune in equal parts.
        kwargs: `loss`, `metric`: see `BaseAlgorithm`.

    Raises:
        ConfigError: If a target or a number is out of range, or a target names no unit.
        ComponentTypeError: If the mutator is none of channels, or its units take fixed widths only.

    >>> mutator = dict(type='ChannelMutator', channel_unit_cfg='L1MutableChannelUnit', parse_cfg=dict(demo_input=(2, 4)))
    >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> algorithm = ItePruneAlgorithm(layers, mutator, target_pruning_ratio=0.25, prune_times=3)
    >>> optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    >>> for _ in range(3):
    ...     log = algorithm.train_step((torch.ones(3, 4), torch.tensor([0, 1, 0])), optimizer)
    ...     algorithm.mutator.current_choices
    {'module.0': 6}
    {'module.0': 4}
    {'module.0': 2}
    """

    def __init__(
        self,
        architecture: BaseModel | nn.Module | Mapping[str, Any],
        mutator_cfg: BaseMutator | Mapping[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        target_pruning_ratio: float | Mapping[str, float] | None = None,
        step_freq: int = 1,
        prune_times: int = 1,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        linear_schedule: bool = True,
        **kwargs: Any,
    ) -> None:
        if mutator_cfg is None:
            mutator_cfg = {'type': 'strop.ChannelMutator', 'channel_unit_cfg': {'type': 'SequentialMutableChannelUnit'}}
        for name, number in (('step_freq', step_freq), ('prune_times', prune_times)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ConfigError(f'`{name}` must be a positive integer, but got {number!r}.')
        if target_pruning_ratio is None:
            raise ConfigError(
                '`target_pruning_ratio` says what stays of each unit: a ratio or a number of channels for all, or a mapping '
                'from unit names; `strop units` lists the units of a model.'
            )
        super().__init__(architecture, data_preprocessor, init_cfg, mutator=mutator_cfg, **kwargs)
        if not isinstance(self.mutator, ChannelMutator):
            raise ComponentTypeError(f'ItePruneAlgorithm needs a ChannelMutator, not a {type(self.mutator).__name__}.')
        fixed = [unit for unit in self.mutator.units if not unit.loose]
        if fixed:
            raise ComponentTypeError(
                'ItePruneAlgorithm needs units that take any width, such as L1MutableChannelUnit, not '
                f'{type(fixed[0]).__name__}.'
            )
        self.step_freq = step_freq
        self.prune_times = prune_times
        self.linear_schedule = linear_schedule
        self.target = self._targets(target_pruning_ratio)
        sizes = [unit.num_channels for unit in self.mutator.units]
        # Buffers, so that checkpoints hold them; the masks of the units stand one after the other.
        self.register_buffer('kept_channels', torch.ones(sum(sizes), dtype=torch.bool))
        self.register_buffer('pruning_steps', torch.zeros((), dtype=torch.long))

    def _targets(self, given: Any) -> dict[str, int]:
        units = {unit.unit: unit for unit in self.mutator.units}
        if isinstance(given, Mapping):
            named = {}
            for name, value in given.items():
                unit = self.mutator.unit_named(name)
                if unit not in units:
                    raise ConfigError(
                        f'`target_pruning_ratio` names {name!r}, which is no unit of the model.{near(name, units)} It has '
                        f'{listed(units)}.'
                    )
                named[unit] = value
        else:
            named = dict.fromkeys(units, given)
        targets = {}
        for name, value in named.items():
            size = units[name].num_channels
            ratio = isinstance(value, float) and 0 < value <= 1
            number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= size
            if not ratio and not number:
                raise ConfigError(
                    f'The target of {name!r} must be a ratio within (0, 1] or an integer within 1..{size}, but got {value!r}.'
                )
            targets[name] = units[name].rounded(value * size if ratio else value)
        return targets

    # -- the schedule ----------------------------------------------------------------------

    def steps_due(self, iteration: int) -> int:
        """Return how many steps of pruning are due at an iteration."""
        return min(iteration // self.step_freq + 1, self.prune_times)

    def choices_after(self, steps: int) -> dict[str, Any]:
        """Return decision -> width, as its unit writes it, after so many steps of pruning."""
        choices = {}
        for unit in self.mutator.units:
            target = self.target.get(unit.unit, unit.num_channels)
            share = steps / self.prune_times if self.linear_schedule else float(steps > 0)
            number = unit.num_channels - (unit.num_channels - target) * share
            choices[unit.key] = unit.nearest(target if steps == self.prune_times else unit.rounded(round(number)))
        return choices

    def prune(self, steps: int) -> None:
        """Make the widths after so many steps current, by the present weights."""
        self.mutator.set_subnet(self.choices_after(steps))
        indices = self.mutator.widths.indices
        masks = []
        for unit in self.mutator.units:
            mask = torch.zeros(unit.num_channels, dtype=torch.bool)
            mask[indices[unit.unit]] = True
            masks.append(mask)
        self.kept_channels.copy_(torch.cat(masks))
        self.pruning_steps.fill_(steps)
        print_log(
            f'Pruning step {steps} of {self.prune_times}: {int(self.kept_channels.sum())} of {self.kept_channels.numel()} '
            'channels are left.',
            logger='current',
            level=logging.INFO,
        )

    @property
    def finished(self) -> bool:
        """Whether every unit has its target."""
        return int(self.pruning_steps) == self.prune_times

    def loss(self, batch_inputs: Any, data_samples: Any = None) -> LossResults:
        """Prune if a step is due, and return the architecture's losses."""
        if self.training and self.steps_due(self.step) > int(self.pruning_steps):
            self.prune(self.steps_due(self.step))
        return super().loss(batch_inputs, data_samples)

    def extract(self) -> nn.Module:
        """Return the architecture at its current widths as a plain model."""
        return extract(self.architecture)

    # -- checkpoints -----------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f'{prefix}kept_channels' in state_dict:
            self._restore()

    def _restore(self) -> None:
        """Make the channels of the mask current: those of a checkpoint."""
        units = self.mutator.units
        for unit, mask in zip(units, self.kept_channels.cpu().split([unit.num_channels for unit in units]), strict=True):
            if isinstance(unit, L1MutableChannelUnit):
                unit.kept = tuple(mask.nonzero()[:, 0].tolist())
        self.mutator.widths.forget()
        self.mutator.set_subnet(self.choices_after(int(self.pruning_steps)))
