"""Training loops that give two batches a step: one to train weights on, one to train the architecture on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.runner import Runner

from strop.engine.train_loop import EpochBasedTrainLoop, IterBasedTrainLoop, _Batches
from strop.registry import LOOPS


class SearchBatches(NamedTuple):
    """The two batches of a step.

    >>> SearchBatches('a', 'b').valid
    'b'
    """

    train: Any
    valid: Any


def _second(runner: Any, dataloader: Any) -> _Batches:
    if isinstance(dataloader, Mapping):
        dataloader = Runner.build_dataloader(dict(dataloader), seed=runner.seed)
    return _Batches(runner, dataloader, purpose='mutator_batch')


@LOOPS.register_module()
class DartsEpochBasedTrainLoop(EpochBasedTrainLoop):
    """A loop over epochs of the training data, with a batch of other data beside each of theirs.

    Args:
        runner: MMEngine's runner.
        dataloader: The data that train weights.
        mutator_dataloader: The data that train the architecture; it begins anew where it is shorter.
        max_epochs: Number of epochs.
        val_begin: Validate from this epoch on.
        val_interval: Validate every so many epochs.
        kwargs: `dynamic_intervals`: see MMEngine's `EpochBasedTrainLoop`.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        mutator_dataloader: Any,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval, **kwargs)
        self.mutator_batches = _second(runner, mutator_dataloader)

    def run_epoch(self) -> None:
        """Iterate over one epoch, or over what is left of it."""
        self.mutator_batches.move_to(self._iter)
        super().run_epoch()

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one step with both batches."""
        super().run_iter(idx, SearchBatches(data_batch, next(self.mutator_batches)))


@LOOPS.register_module()
class DartsIterBasedTrainLoop(IterBasedTrainLoop):
    """A loop over iterations, each with a batch of the training data and one of other data.

    Args:
        runner: MMEngine's runner.
        dataloader: The data that train weights.
        mutator_dataloader: The data that train the architecture.
        max_iters: Number of iterations.
        val_begin: Validate from this iteration on.
        val_interval: Validate every so many iterations.
        kwargs: `dynamic_intervals`: see MMEngine's `IterBasedTrainLoop`.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        mutator_dataloader: Any,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(runner, dataloader, max_iters, val_begin, val_interval, **kwargs)
        self.mutator_batches = _second(runner, mutator_dataloader)

    def run_iter(self, data_batch: Any) -> None:
        """Run one step with both batches."""
        self.mutator_batches.move_to(self._iter)
        super().run_iter(SearchBatches(data_batch, next(self.mutator_batches)))
