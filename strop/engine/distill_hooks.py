"""The hook that ends distillation."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop

from strop.engine.train_loop import unwrapped
from strop.errors import ConfigError
from strop.registry import HOOKS


@HOOKS.register_module()
class StopDistillHook(Hook):
    """Let the student learn by the labels alone from an epoch on.

    Args:
        stop_epoch: First epoch, from 0, without distillation.

    Raises:
        ConfigError: If `stop_epoch` is no whole number; before training, if the algorithm does not distil, or not learn from
            labels, or its loop has no epochs.

    >>> StopDistillHook(stop_epoch=100).stop_epoch
    100
    """

    priority = 'LOW'

    def __init__(self, stop_epoch: int) -> None:
        if not isinstance(stop_epoch, int) or isinstance(stop_epoch, bool) or stop_epoch < 0:
            raise ConfigError(f'`stop_epoch` must be a whole number, 0 or more, but got {stop_epoch!r}.')
        self.stop_epoch = stop_epoch

    def before_train(self, runner: Any) -> None:
        """Check that there is something to stop, and something to go on with."""
        algorithm = unwrapped(runner.model)
        if not hasattr(algorithm, 'stop_distillation'):
            raise ConfigError(
                f'StopDistillHook stops distillation, but {type(algorithm).__name__} does none. Take it out of '
                'custom_hooks, or train SingleTeacherDistill or another algorithm of distillation.'
            )
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ConfigError(
                f'StopDistillHook counts epochs, which {type(runner.train_loop).__name__} has none of: distillation would not '
                'stop. Train by epochs (EpochBasedTrainLoop), or take the hook out of custom_hooks.'
            )
        if not getattr(algorithm, 'calculate_student_loss', True) and self.stop_epoch < runner.max_epochs:
            raise ConfigError(
                f'StopDistillHook would stop distillation in epoch {self.stop_epoch}, and nothing would be left to learn from: '
                'calculate_student_loss is False. Set it to True, or take the hook out of custom_hooks.'
            )

    def before_train_epoch(self, runner: Any) -> None:
        """Stop where the epoch is reached, also after a resume beyond it."""
        algorithm = unwrapped(runner.model)
        if runner.epoch >= self.stop_epoch and not algorithm.distillation_stopped:
            print_log(
                f'Distillation stops: epoch {runner.epoch} is not before `stop_epoch` {self.stop_epoch}.', logger='current'
            )
            algorithm.stop_distillation()
