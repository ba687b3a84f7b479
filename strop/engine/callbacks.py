"""What happens beside a trainer's work at the beginning and the end of epochs and batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from torch import nn

from strop.errors import ComponentTypeError, ConfigError, listed, near
from strop.files import atomic_path


class Callback:
    """Override the events that matter; the others do nothing.

    `self.model`, `self.mutator` and `self.trainer` are there from `build` on. A callback with `state_dict` and
    `load_state_dict` has its state in the trainer's checkpoints.

    >>> class Count(Callback):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.batches = 0
    ...
    ...     def on_batch_end(self, epoch):
    ...         self.batches += 1
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.mutator: Any = None
        self.trainer: Any = None

    def build(self, model: nn.Module, mutator: nn.Module, trainer: Any) -> None:
        """Learn what belongs to the trainer; called once, before its training."""
        self.model = model
        self.mutator = mutator
        self.trainer = trainer

    def on_epoch_begin(self, epoch: int) -> None:
        """Act before an epoch; epochs count from 0."""

    def on_epoch_end(self, epoch: int) -> None:
        """Act after an epoch and its validation, before the trainer's checkpoint is written."""

    def on_batch_begin(self, epoch: int) -> None:
        """Act before a training step."""

    def on_batch_end(self, epoch: int) -> None:
        """Act after a training step."""


class LRSchedulerCallback(Callback):
    """Step a PyTorch learning rate scheduler.

    Args:
        scheduler: The scheduler. Its state is in the trainer's checkpoints.
        mode: 'epoch' or 'batch': when it steps.

    Raises:
        ConfigError: If `mode` is neither.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> callback = LRSchedulerCallback(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    >>> optimizer.step()
    >>> callback.on_epoch_end(0)
    >>> optimizer.param_groups[0]['lr']
    0.5
    """

    def __init__(self, scheduler: Any, mode: str = 'epoch') -> None:
        super().__init__()
        if not callable(getattr(scheduler, 'step', None)):
            raise ComponentTypeError(f'`scheduler` must be a learning rate scheduler of torch, but got {scheduler!r}.')
        modes = ('epoch', 'batch')
        if mode not in modes:
            raise ConfigError(f'`mode` must be one of {listed(modes)}, but got {mode!r}.{near(mode, modes)}')
        self.scheduler = scheduler
        self.mode = mode

    def on_epoch_end(self, epoch: int) -> None:
        """Step, if by epoch."""
        if self.mode == 'epoch':
            self.scheduler.step()

    def on_batch_end(self, epoch: int) -> None:
        """Step, if by batch."""
        if self.mode == 'batch':
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the scheduler's state.

        Raises:
            ConfigError: If it is the state of another kind of scheduler.
        """
        missing = sorted(set(self.scheduler.state_dict()) - set(state))
        if missing:
            raise ConfigError(
                f'The checkpoint has the state of another scheduler than {type(self.scheduler).__name__}: it lacks '
                f'{listed(missing)}. Resume with the scheduler that it was written with, or train anew in another work_dir.'
            )
        self.scheduler.load_state_dict(state)


class ArchitectureCheckpoint(Callback):
    """Write the architecture that the trainer would export to `epoch_N.json` after every epoch.

    Args:
        checkpoint_dir: Folder of the files; made if it is not there.
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.checkpoint_dir = Path(checkpoint_dir)

    def on_epoch_end(self, epoch: int) -> None:
        """Write the file."""
        self.trainer.export(self.checkpoint_dir / f'epoch_{epoch}.json')


class ModelCheckpoint(Callback):
    """Write the model's `state_dict` to `epoch_N.pth.tar` after every epoch: weights alone, not a state to resume from.

    Args:
        checkpoint_dir: Folder of the files; made if it is not there.
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.checkpoint_dir = Path(checkpoint_dir)

    def on_epoch_end(self, epoch: int) -> None:
        """Write the file."""
        if is_main_process():
            model = self.model.module if isinstance(self.model, nn.DataParallel) else self.model
            with atomic_path(self.checkpoint_dir / f'epoch_{epoch}.pth.tar') as temporary:
                torch.save(model.state_dict(), temporary)
