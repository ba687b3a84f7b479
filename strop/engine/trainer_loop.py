"""The runner's side of a trainer: the model and its mutator in one module, the loop over epochs, the state in checkpoints."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop as _EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from strop.engine.checkpoint import check_readable
from strop.engine.train_loop import Orders
from strop.errors import ConfigError, TrainingError
from strop.randomness import derive_seed, seed_everything


class SearchModel(nn.Module):
    """A model and its mutator as one module, so that a distributed wrapper reduces the gradients of both.

    Args:
        model: The model with the choices.
        mutator: Its mutator.

    >>> import torch
    >>> from strop.mutables import LayerChoice
    >>> from strop.mutators import RandomMutator
    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()]))
    >>> both = SearchModel(model, RandomMutator(model))
    >>> both.mutator.reset()
    >>> both(torch.ones(1))
    tensor([1.])
    """

    def __init__(self, model: nn.Module, mutator: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mutator = mutator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with its current decisions."""
        return self.model(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        """Refuse: steps are the trainer's."""
        raise TrainingError('The steps of a search are those of its trainer: call trainer.train().')


class TrainerLoop(_EpochBasedTrainLoop):
    """MMEngine's loop over epochs, each of which is the trainer's own.

    Args:
        runner: MMEngine's runner.
        dataloader: The loader whose length is that of an epoch.
        trainer: The trainer.
        max_epochs: Number of epochs.
        validate: Call the trainer's validation after each epoch.
    """

    def __init__(self, runner: Any, dataloader: Any, trainer: Any, max_epochs: int, validate: bool = True) -> None:
        super().__init__(runner, dataloader, max_epochs)
        self.trainer = trainer
        self.validate = validate
        self._ended = False
        self._done: int | None = None
        #: Within a step; after one that the loop does not count yet.
        self.stepping, self.stepped = False, False
        self._orders = Orders(*(value for value in vars(trainer).values() if isinstance(value, DataLoader)))

    @property
    def finished(self) -> int:
        """Number of epochs that are trained and validated."""
        return self._epoch + int(self._ended)

    @property
    def steps_done(self) -> int:
        """Number of steps that are done in all epochs."""
        return max(self.iter + int(self.stepped), self.finished * len(self.dataloader))

    def take_done(self) -> int:
        """Return how many steps of this epoch a checkpoint has behind it; asked once in an epoch.

        Raises:
            ConfigError: If an epoch has a second pass, inside of which no checkpoint can be resumed.
        """
        if self._done is None and self.trainer.checkpoint_by == 'step':
            raise ConfigError(
                "With checkpoint_by='step' a trainer goes over `steps` once in an epoch, or the position in it would not be "
                "known. Use checkpoint_by='epoch'."
            )
        done, self._done = self._done or 0, None
        return done

    def run(self) -> nn.Module:
        """Train until the last epoch."""
        self.runner.call_hook('before_train')
        while self._epoch < self._max_epochs:
            self.run_epoch()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Run one epoch of the trainer, its validation and its callbacks."""
        trainer, epoch = self.trainer, self._epoch
        self.runner.call_hook('before_train_epoch')
        self._orders.begin(epoch)
        self._done = self.iter - epoch * len(self.dataloader)
        seed_everything(derive_seed(trainer.seed, 'epoch', epoch))
        trainer._call_back('on_epoch_begin', epoch)
        trainer.train_one_epoch(epoch)
        self.stepping = self.stepped = False  # the epoch may have left its steps early
        trainer._check_agreement()
        if self.validate:
            seed_everything(derive_seed(trainer.seed, 'validate', epoch))
            metrics = trainer.validate_one_epoch(epoch)
            if metrics:
                trainer._note(metrics, epoch)
        self._ended = True
        trainer._call_back('on_epoch_end', epoch)
        # A loop that counts its steps otherwise than once by `steps` moves on alike.
        self._iter = (epoch + 1) * len(self.dataloader)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._ended = False


class TrainerStateHook(Hook):
    """Keeps the trainer's own state in the runner's checkpoints, and sees that it can be read again."""

    priority = 'VERY_LOW'

    def __init__(self, trainer: Any) -> None:
        self.trainer, self._checked = trainer, False

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the state."""
        state = self.trainer.state_dict()
        if not self._checked:
            for name, part in state['parts'].items():
                check_readable(part, f'`{name}` of the {type(self.trainer).__name__}')
            for callback, part in zip(self.trainer.callbacks, state['callbacks']):
                check_readable(part, f'the callback {type(callback).__name__}')
            self._checked = True
        checkpoint['trainer'] = state

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Read the state."""
        if 'trainer' in checkpoint:
            self.trainer.load_state_dict(checkpoint['trainer'])
