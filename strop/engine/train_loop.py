"""Training loops whose every step is a function of (seed, step), so that a resumed run repeats an unbroken one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop as _EpochBasedTrainLoop
from mmengine.runner import IterBasedTrainLoop as _IterBasedTrainLoop
from torch import nn

from strop.errors import TrainingError
from strop.randomness import derive_seed, seed_everything
from strop.registry import LOOPS


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside a distributed wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def seed_data(runner: Any, purpose: str, counter: int) -> None:
    """Seed the global generators of this process for the data of a step."""
    seed_everything(derive_seed(runner.seed or 0, f'{purpose}/{get_rank()}', counter))


def _begin_step(runner: Any, step: int) -> None:
    # Alike on all ranks, so that a mutator which is asked by a user's own `train_step` draws one subnet for all.
    seed_everything(derive_seed(runner.seed or 0, 'step', step))
    algorithm = unwrapped(runner.model)
    if hasattr(algorithm, 'step'):
        algorithm.step = step
    if getattr(algorithm, 'seed', 0) is None:
        algorithm.seed = runner.seed or 0


def _check_finite(runner: Any, outputs: Any) -> None:
    """Stop where the loss is not finite, before hooks log or save it; algorithms check for themselves, before the update."""
    loss = outputs.get('loss') if isinstance(outputs, Mapping) else None
    wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', {'': runner.optim_wrapper}).values()
    scaled = any(getattr(wrapper, 'loss_scaler', None) is not None for wrapper in wrappers)
    if isinstance(loss, torch.Tensor) and not scaled and not torch.isfinite(loss.detach()).all():
        raise TrainingError(
            f'The loss of step {runner.iter} is not finite. Training stops, and no checkpoint of these weights is written. '
            'Usual causes: a learning rate that is too high, a missing warm-up, or NaN in the inputs.'
        )


def _run_step(loop: Any, index: int, batch: Any) -> None:
    runner = loop.runner
    _begin_step(runner, loop._iter)
    runner.call_hook('before_train_iter', batch_idx=index, data_batch=batch)
    outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    _check_finite(runner, outputs)
    runner.call_hook('after_train_iter', batch_idx=index, data_batch=batch, outputs=outputs)
    loop._iter += 1


class Orders:
    """Puts the orders of loaders at the beginning of an epoch: samplers by `set_epoch`, generators of their own by their seed.

    Where a generator is, no checkpoint says, so in each epoch it begins from (the seed that it was given, epoch).

    Args:
        loaders: Data loaders.
    """

    def __init__(self, *loaders: Any) -> None:
        samplers = [getattr(loader, 'sampler', None) for loader in loaders]
        batched = [getattr(getattr(loader, 'batch_sampler', None), 'sampler', None) for loader in loaders]
        self._parts: list[Any] = list({id(part): part for part in (*loaders, *samplers, *batched)}.values())
        generators = [getattr(part, 'generator', None) for part in self._parts]
        found = {id(one): one for one in generators if isinstance(one, torch.Generator)}
        self._generators = [(one, _given_seed(one)) for one in found.values()]

    def begin(self, epoch: int) -> None:
        """Begin an epoch."""
        for part in self._parts:
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)
        for generator, seed in self._generators:
            generator.manual_seed(derive_seed(seed, 'order', epoch))
            _SEEDS[generator] = seed, generator.initial_seed()


# Generator -> the seed that it was given, and the one that an epoch has put in its place.
_SEEDS: WeakKeyDictionary[torch.Generator, tuple[int, int]] = WeakKeyDictionary()


def _given_seed(generator: torch.Generator) -> int:
    """Return the seed that a user gave a generator, also if a training has begun epochs with it since."""
    given, last = _SEEDS.get(generator, (None, None))
    now = generator.initial_seed()
    return now if given is None or now != last else given


class _Batches:
    """Batches without end, each fetched under a seed of its own."""

    def __init__(self, runner: Any, dataloader: Any, purpose: str = 'batch') -> None:
        self._runner = runner
        self._purpose = purpose
        self._dataloader = dataloader
        self._orders = Orders(dataloader)
        self._iterator: Iterator[Any] | None = None
        self._epoch = 0
        self._count = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            batch = self._fetch()
        except StopIteration:
            self._epoch += 1
            self._iterator = None
            batch = self._fetch()
        self._count += 1
        return batch

    def _fetch(self) -> Any:
        iterator = self._begun()  # which draws from the global generator, so the seed comes after it
        seed_data(self._runner, self._purpose, self._count)
        return next(iterator)

    def _begun(self) -> Iterator[Any]:
        if self._iterator is None:
            self._orders.begin(self._epoch)
            # Workers fetch ahead from here on: the order and their own seeds are drawn now.
            seed_data(self._runner, f'{self._purpose}_epoch', self._epoch)
            self._iterator = iter(self._dataloader)
        return self._iterator

    def move_to(self, number: int) -> None:
        """Go to batch `number` of the whole training from the start, unless batches were fetched already."""
        if self._count == 0 and number > 0:
            self.skip_iter(number)

    def skip_iter(self, number: int) -> None:
        """Go to batch `number` of the whole training: to its epoch by counting, within it by fetching."""
        sampler = self._dataloader.sampler
        if hasattr(sampler, 'skip') and self._dataloader.batch_size:  # MMEngine's InfiniteSampler, which has no epochs
            sampler.skip(number * self._dataloader.batch_size)
            self._count = number
            return
        self._epoch, left = divmod(number, len(self._dataloader))
        self._count = number - left
        for _ in range(left):
            next(self)


@LOOPS.register_module()
class EpochBasedTrainLoop(_EpochBasedTrainLoop):
    """MMEngine's loop over epochs, which also resumes inside an epoch (`CheckpointHook(by_epoch=False, interval=...)`).

    Before each batch is fetched the global generators are seeded by (seed, rank, step), and before each step by
    (seed, step): random augmentation, dropout and sampled subnets do not depend on what ran before. (Augmentation in loaders
    with `persistent_workers`, which are seeded once, is the exception.)
    """

    def __init__(self, runner: Any, dataloader: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        self._orders = Orders(self.dataloader)

    def run_epoch(self) -> None:
        """Iterate over one epoch, or over what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self._orders.begin(self._epoch)
        seed_data(self.runner, 'epoch', self._epoch)
        done = self._iter - self._epoch * len(self.dataloader)
        batches = iter(self.dataloader)
        for index in range(len(self.dataloader)):
            seed_data(self.runner, 'batch', self._epoch * len(self.dataloader) + index)
            batch = next(batches)
            if index < done:
                continue
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one step."""
        _run_step(self, idx, data_batch)


@LOOPS.register_module()
class IterBasedTrainLoop(_IterBasedTrainLoop):
    """MMEngine's loop over iterations, with batches seeded by (seed, rank, iteration) and steps by (seed, iteration)."""

    def __init__(self, runner: Any, dataloader: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        self.dataloader_iterator = _Batches(runner, self.dataloader)

    def run_iter(self, data_batch: Any) -> None:
        """Run one step."""
        _run_step(self, self._iter, data_batch)
