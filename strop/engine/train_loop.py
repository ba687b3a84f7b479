"""Training loops whose every step is a function of (seed, step), so that a resumed run repeats an unbroken one."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop as _EpochBasedTrainLoop
from mmengine.runner import IterBasedTrainLoop as _IterBasedTrainLoop
from torch import nn

from strop.randomness import derive_seed, seed_everything
from strop.registry import LOOPS


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside a distributed wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def _seed(runner: Any, purpose: str, step: int) -> None:
    seed_everything(derive_seed(runner.seed or 0, f'{purpose}/{get_rank()}', step))


def _announce(runner: Any, step: int) -> None:
    algorithm = unwrapped(runner.model)
    if hasattr(algorithm, 'step'):
        algorithm.step = step
    if getattr(algorithm, 'seed', 0) is None:
        algorithm.seed = runner.seed or 0


@LOOPS.register_module()
class EpochBasedTrainLoop(_EpochBasedTrainLoop):
    """MMEngine's loop over epochs, which also resumes inside an epoch (`CheckpointHook(by_epoch=False, interval=...)`).

    Before each batch is fetched, and before each step, the global generators are seeded by (seed, rank, step): random
    augmentation, dropout and sampled subnets do not depend on what ran before.
    """

    def run_epoch(self) -> None:
        """Iterate over one epoch, or over what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        _seed(self.runner, 'epoch', self._epoch)
        done = self._iter - self._epoch * len(self.dataloader)
        batches = iter(self.dataloader)
        for index in range(len(self.dataloader)):
            _seed(self.runner, 'batch', self._epoch * len(self.dataloader) + index)
            batch = next(batches)
            if index < done:
                continue
            _seed(self.runner, 'step', self._iter)
            _announce(self.runner, self._iter)
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class IterBasedTrainLoop(_IterBasedTrainLoop):
    """MMEngine's loop over iterations, with each step seeded by (seed, rank, step)."""

    def run_iter(self, data_batch: Any) -> None:
        """Run one step."""
        _seed(self.runner, 'step', self._iter)
        _announce(self.runner, self._iter)
        super().run_iter(data_batch)
