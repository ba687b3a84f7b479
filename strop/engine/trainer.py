"""Trainers: one-shot searches as plain training loops, with MMEngine's runner underneath.

A trainer writes `train_one_epoch(epoch)` and `validate_one_epoch(epoch)` as it would without any toolkit; the runner calls
them. Logging, TensorBoard, checkpoints, resuming and distributed training come from the runner.
"""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, is_distributed, is_main_process
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.utils.data import DataLoader, Subset

from strop.data import EpochSampler
from strop.engine.distributed import start_process_group
from strop.engine.launch import build_runner
from strop.engine.meters import AverageMeterGroup
from strop.engine.precision import DTYPES, AmpOptimWrapper
from strop.engine.trainer_loop import SearchModel, TrainerLoop, TrainerStateHook
from strop.errors import ComponentTypeError, ConfigError, DataError, TrainingError, listed, near
from strop.files import atomic_write
from strop.graph.forward import training_mode_kept
from strop.mutators import BaseMutator
from strop.randomness import counter_rng, derive_seed, seed_everything


class BaseTrainer(ABC):
    """The four verbs of a trainer, for one that shares nothing else with `Trainer`."""

    @abstractmethod
    def train(self) -> None:
        """Train."""

    @abstractmethod
    def validate(self) -> Any:
        """Validate."""

    @abstractmethod
    def export(self, file: str | os.PathLike[str]) -> None:
        """Write the final architecture to a file."""

    @abstractmethod
    def checkpoint(self) -> Any:
        """Write what is needed to go on."""


class Trainer(BaseTrainer):
    """Train a model with choices together with its mutator.

    Sub-classes write `train_one_epoch` and `validate_one_epoch`. What they may use: `self.steps(loader, ...)` for batches,
    `self.network(x)` for the model (through the distributed wrapper, if any), `self.update(optimizer, loss)`,
    `self.autocast()`, `self.log(...)` and `self.evaluate(loader)`. A loop of their own with `loss.backward()` works as well.

    Every optimizer, module, scheduler or other thing with `state_dict` and `load_state_dict` that is an attribute of the
    trainer is in its checkpoints. Each epoch and each step of `steps` begins with generators seeded by (seed, number), and
    generators of loaders by (their own seed, epoch), so that a run which was killed and resumed ends with the same weights,
    bit by bit. (Random augmentation in loaders with `persistent_workers`, which are seeded once, is the exception.)

    Args:
        model: The model with the choices.
        mutator: A mutator of this model.
        loss: `loss(outputs, labels) -> Tensor`: a module or any function.
        metrics: `metrics(outputs, labels) -> dict` of numbers; None for the loss alone.
        optimizer: Optimizer of the model's weights.
        num_epochs: Number of epochs.
        dataset_train: Data to train on: a data set, or a `DataLoader`, which is then used as it is.
        dataset_valid: Data to validate on, likewise; may be None.
        batch_size: Batch size of each process.
        workers: Worker processes of each data loader.
        device: Device of model and data; a GPU if there is one by default.
        log_frequency: Log every so many steps; None logs at the ends of epochs.
        callbacks: See `strop.engine.callbacks`.
        work_dir: Folder of logs and checkpoints; `work_dirs/<class>` by default. Nothing is written before `train()`.
        seed: Seed of data order, augmentation and sampled architectures.
        precision: None, 'bfloat16' or 'float16' (with a dynamic loss scale), on the CPU too.
        launcher: 'pytorch' under `torchrun`, else 'none'.
        checkpoint_interval: A checkpoint every so many epochs, or with `checkpoint_by='step'` steps.
        checkpoint_by: 'epoch' or 'step'.
        max_keep_checkpoints: How many are kept, the latest.
        tensorboard: Write scalars for TensorBoard to the work directory.
        log_level: Level of the log on the terminal.

    Raises:
        ComponentTypeError: If model, mutator, loss, metrics or optimizer is of the wrong kind.
        ConfigError: If an option is unknown, or the mutator belongs to another model.
        DataError: If a data set is empty.

    A sub-class in full is in `strop/algorithms/single_path.py`.
    """

    def __init__(
        self,
        model: nn.Module,
        mutator: BaseMutator,
        loss: Callable[[Any, Any], torch.Tensor],
        metrics: Callable[[Any, Any], Mapping[str, Any]] | None,
        optimizer: torch.optim.Optimizer,
        num_epochs: int,
        dataset_train: Any,
        dataset_valid: Any,
        batch_size: int = 64,
        workers: int = 4,
        device: str | torch.device | None = None,
        log_frequency: int | None = None,
        callbacks: Sequence[Any] | None = None,
        *,
        work_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        precision: str | None = None,
        launcher: str = 'none',
        checkpoint_interval: int = 1,
        checkpoint_by: str = 'epoch',
        max_keep_checkpoints: int = 2,
        tensorboard: bool = False,
        log_level: str = 'INFO',
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ComponentTypeError(f'`model` must be an nn.Module, but got {type(model).__name__}.')
        if not isinstance(mutator, BaseMutator):
            raise ComponentTypeError(f'`mutator` must be a mutator (BaseMutator), but got {type(mutator).__name__}.')
        if mutator.model is not model:
            raise ConfigError(
                f'The {type(mutator).__name__} is bound to another model than the one given. Make the mutator of this model.'
            )
        if not callable(loss) or not (metrics is None or callable(metrics)):
            wrong = 'loss' if not callable(loss) else 'metrics'
            given = loss if wrong == 'loss' else metrics
            raise ComponentTypeError(f'`{wrong}` must be a function of (outputs, labels), but got {type(given).__name__}.')
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ComponentTypeError(f'`optimizer` must be an optimizer of torch.optim, but got {type(optimizer).__name__}.')
        if not isinstance(num_epochs, int) or num_epochs < 1:
            raise ConfigError(f'`num_epochs` must be a positive integer, but got {num_epochs!r}.')
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f'`batch_size` must be a positive integer, but got {batch_size!r}.')
        for name, value, options in (
            ('precision', precision, (None, *DTYPES)),
            ('launcher', launcher, ('none', 'pytorch')),
            ('checkpoint_by', checkpoint_by, ('epoch', 'step')),
        ):
            if value not in options:
                raise ConfigError(f'`{name}` must be one of {listed(options)}, but got {value!r}.{near(value, options)}')
        if launcher != 'none':
            start_process_group()
        self.model = model
        self.mutator: Any = mutator
        self.loss = loss
        # What has a state stays as it is, so that checkpoints hold that.
        self.metrics: Any = metrics if hasattr(metrics, 'state_dict') else _named_numbers(metrics)
        self.optimizer = optimizer
        self.num_epochs = num_epochs
        self.dataset_train = dataset_train
        self.dataset_valid = dataset_valid
        self.batch_size = batch_size
        self.workers = workers
        self.device = torch.device(device if device is not None else 'cuda' if torch.cuda.is_available() else 'cpu')
        self.log_frequency = log_frequency
        self.callbacks = _callbacks(callbacks or ())
        self.work_dir = Path(work_dir) if work_dir is not None else Path('work_dirs') / type(self).__name__
        self.seed = seed
        self.precision = precision
        self.launcher = launcher
        self.checkpoint_interval = checkpoint_interval
        self.checkpoint_by = checkpoint_by
        self.max_keep_checkpoints = max_keep_checkpoints
        self.tensorboard = tensorboard
        self.log_level = log_level
        #: The model with its mutator, in the distributed wrapper where there is one: what a training step calls.
        self.network: nn.Module = SearchModel(model, mutator).to(self.device)
        for part in (loss, metrics):
            if isinstance(part, nn.Module):
                part.to(self.device)
        self._runner: Any = None
        self._wrappers: dict[int, OptimWrapper] = {}
        self._outputs: dict[str, Any] = {}
        self._bad_losses = 0
        self._told_constant = False
        self._built: set[int] = set()
        self._build_callbacks()

    # -- what a sub-class writes -----------------------------------------------------------

    @abstractmethod
    def train_one_epoch(self, epoch: int) -> None:
        """Train for one epoch; epochs count from 0."""

    @abstractmethod
    def validate_one_epoch(self, epoch: int) -> Mapping[str, float] | None:
        """Validate; what is returned is logged. `epoch` is -1 for `validate()`."""

    def training_loader(self) -> DataLoader:
        """Return the loader whose length is that of an epoch: `self.train_loader`.

        Raises:
            ConfigError: If there is none.
        """
        loader = getattr(self, 'train_loader', None)
        if loader is None:
            raise ConfigError(
                f'{type(self).__name__} has no `train_loader`. Set it when the trainer is made: '
                'self.train_loader = self.loader(dataset_train), or override training_loader().'
            )
        return loader

    # -- verbs -----------------------------------------------------------------------------

    def train(self, validate: bool = True, resume: bool = False) -> None:
        """Train for `num_epochs` epochs.

        Args:
            validate: Validate after each epoch.
            resume: Go on from the furthest checkpoint of the work directory; from the start if there is none.

        Raises:
            TrainingError: If a loss is not finite, or processes of a distributed run do not agree.
        """
        self._prepare(validate, resume)
        self._runner.train()

    def validate(self) -> Mapping[str, float] | None:
        """Validate once, and return what `validate_one_epoch` returns."""
        return self.validate_one_epoch(-1)

    def export(self, file: str | os.PathLike[str]) -> None:
        """Write the final architecture of the mutator as JSON: names and indices by key."""
        if is_main_process():
            atomic_write(file, json.dumps(self.mutator.export(readable=True), indent=2, sort_keys=True) + '\n')

    def checkpoint(self, file: str | os.PathLike[str] | None = None) -> Path:
        """Write all that is needed to resume after the epochs, and the steps of `steps`, that are done; return the path.

        Args:
            file: The file; `epoch_N.pth` in the work directory by default, or `iter_N.pth` inside an epoch, which
                `train(resume=True)` finds.

        Raises:
            TrainingError: If it is called within a step, of which nobody knows how much is done.
        """
        if self._runner is None:
            self._prepare(validate=False, resume=False)
        loop = self._runner.train_loop
        if loop.stepping:
            raise TrainingError(
                'A checkpoint is written between steps, but `checkpoint()` was called within one. Call it in `on_batch_end` of '
                "a callback, or let checkpoint_by='step' write them."
            )
        steps, length = loop.steps_done, len(loop.dataloader)
        name = f'epoch_{loop.finished}.pth' if steps == loop.finished * length else f'iter_{steps}.pth'
        path = Path(file) if file is not None else self.work_dir / name
        if is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            meta = {'epoch': loop.finished, 'iter': steps}
            self._runner.optim_wrapper = self._runner.build_optim_wrapper(self._runner.optim_wrapper)
            self._runner.save_checkpoint(str(path.parent), path.name, meta=meta, save_param_scheduler=False)
        return path

    # -- for the loops of sub-classes --------------------------------------------------------

    def loader(self, dataset: Any, indices: Sequence[int] | None = None, shuffle: bool = True) -> DataLoader:
        """Return a loader over a data set, or over some of it; each process of a distributed run gets its share.

        Raises:
            DataError: If there is nothing to load.
            ComponentTypeError: If the data have no length.
        """
        _check_sized(dataset)
        if isinstance(dataset, DataLoader):
            _check_filled(len(dataset), 'The data loader has no batch')
            return dataset
        if indices is not None:
            dataset = Subset(dataset, list(indices))
        _check_filled(len(dataset), 'The data set is empty' if indices is None else 'A part of the data set is empty')
        sampler = EpochSampler(dataset, shuffle=shuffle, seed=self.seed, round_up=shuffle)
        return DataLoader(dataset, self.batch_size, sampler=sampler, num_workers=self.workers)

    def halves(self, dataset: Any) -> tuple[DataLoader, DataLoader]:
        """Return loaders of two halves of a data set, drawn by the seed.

        Raises:
            ComponentTypeError: If `dataset` is a `DataLoader`, which cannot be split, or has no length.
            DataError: If there are fewer than two samples.
        """
        if isinstance(dataset, DataLoader):
            raise ComponentTypeError(
                f'{type(self).__name__} splits its training data in two halves; give the data set, not a DataLoader of it.'
            )
        _check_sized(dataset)
        if len(dataset) < 2:
            raise DataError(
                f'{type(self).__name__} splits its training data in two halves, but they have {len(dataset)} samples; give '
                'a data set of at least two.'
            )
        order = counter_rng(self.seed, 'halves').permutation(len(dataset)).tolist()
        middle = len(order) // 2
        return self.loader(dataset, order[:middle]), self.loader(dataset, order[middle:])

    def steps(self, *loaders: Any) -> Iterator[tuple[int, Any]]:
        """Yield `(step, batch)` over a loader, or `(step, (batch, batch, ...))` over several, for one epoch.

        The first loader says how long the epoch is; shorter ones begin anew. Batches are on the device. Around each step
        the runner's hooks and the callbacks are called; steps that a checkpoint has behind it are left out.
        """
        loop = self._runner.train_loop if self._runner is not None else None
        epoch = loop.epoch if loop is not None else 0
        length = len(loaders[0])
        done = loop.take_done() if loop is not None else 0
        seed_everything(derive_seed(self.seed, f'loaders/{get_rank()}', epoch))
        sources = [iter(loaders[0]), *(_endless(loader) for loader in loaders[1:])]
        for step in range(length):
            number = epoch * length + step
            seed_everything(derive_seed(self.seed, f'batch/{get_rank()}', number))
            batches = [next(source) for source in sources]
            if step < done:
                continue
            seed_everything(derive_seed(self.seed, 'step', number))
            self._outputs = {}
            if loop is not None:
                self._runner.call_hook('before_train_iter', batch_idx=step, data_batch=batches)
            self._call_back('on_batch_begin', epoch)
            moved = [self.to_device(batch) for batch in batches]
            if loop is not None:
                loop.stepping = True
            yield step, moved[0] if len(moved) == 1 else tuple(moved)
            if loop is not None:
                loop.stepping, loop.stepped = False, True
            self._call_back('on_batch_end', epoch)
            if loop is not None:
                self._runner.call_hook('after_train_iter', batch_idx=step, data_batch=batches, outputs=self._outputs)
                loop._iter, loop.stepped = loop._iter + 1, False

    def to_device(self, batch: Any) -> Any:
        """Return a batch (a tensor, or nested lists and mappings of them) on the trainer's device."""
        return to_device(batch, self.device)

    @staticmethod
    def pair(batch: Any) -> tuple[Any, Any]:
        """Return the inputs and the labels of a batch.

        Raises:
            ConfigError: If it is not a pair.
        """
        if isinstance(batch, (list, tuple)) and len(batch) == 2:
            return batch[0], batch[1]
        given = f'a mapping with {listed(batch)}' if isinstance(batch, Mapping) else f'a {type(batch).__name__}'
        raise ConfigError(
            f"This trainer takes batches of (inputs, labels), but got {given}. Let the data set give pairs (form='tuple' of "
            'an ImageDataset), or override train_one_epoch and validate_one_epoch.'
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which forwards run in the trainer's precision."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def update(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, clip_grad: float | None = None) -> None:
        """Back-propagate a loss and make one step of an optimizer; gradients of all optimizers are cleared before.

        Args:
            optimizer: One that is an attribute of the trainer.
            loss: The loss, a scalar.
            clip_grad: Greatest norm of the gradients.

        Raises:
            TrainingError: If the loss is not finite; no parameter has changed then.
        """
        self.check_finite(loss)
        if not loss.requires_grad:
            if not self._told_constant:
                print_log(
                    'A loss depends on no parameter, so its step is left out. That is right for an architecture without '
                    'weights; otherwise the loss is detached somewhere.',
                    logger='current',
                    level=logging.WARNING,
                )
            self._told_constant = True
            return
        wrapper = self.wrapper_of(optimizer)
        for other in self.optimizers().values():
            other.zero_grad()
        optimizer.zero_grad()
        wrapper.backward(loss)
        self.step(optimizer, clip_grad)

    def step(self, optimizer: torch.optim.Optimizer, clip_grad: float | None = None) -> None:
        """Make a step of an optimizer with the (scaled) gradients that are there, and clear them."""
        wrapper = self.wrapper_of(optimizer)
        if clip_grad is not None:
            if getattr(wrapper, 'loss_scaler', None) is not None:
                wrapper.loss_scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
            nn.utils.clip_grad_norm_(parameters, clip_grad)
        wrapper.step()
        optimizer.zero_grad()

    @staticmethod
    def check_scalar(loss: Any) -> torch.Tensor:
        """Return a loss, or raise a `ComponentTypeError` if it is no tensor of one number."""
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            return loss
        given = f'a tensor of shape {tuple(loss.shape)}' if isinstance(loss, torch.Tensor) else f'a {type(loss).__name__}'
        raise ComponentTypeError(
            f"`loss` must return a tensor of one number, but it returned {given}. Losses of torch do so with reduction='mean'."
        )

    def check_finite(self, loss: torch.Tensor) -> None:
        """Raise a `TrainingError` if a loss is not finite; a few such losses are left to a dynamic loss scale."""
        self.check_scalar(loss)
        if bool(torch.isfinite(loss.detach()).all()):
            self._bad_losses = 0
            return
        self._bad_losses += 1
        if self.precision == 'float16' and self._bad_losses <= 10:
            return
        status = getattr(self.mutator, 'status', None)
        where = f' in epoch {self._runner.epoch}, step {self._runner.iter}' if self._runner is not None else ''
        raise TrainingError(
            f'The loss is not finite ({float(loss.detach()):.4g}){where}. Training stops before the weights are spoiled; the '
            'last checkpoint is good. Usual causes: a learning rate that is too high, or NaN in the inputs.'
            + (f' The architecture was {status()}.' if status is not None else '')
        )

    def log(self, **values: Any) -> None:
        """Note numbers of the current step for the log and TensorBoard."""
        self._outputs.update(
            {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        )

    @torch.no_grad()
    def evaluate(self, loader: Any) -> dict[str, float]:
        """Return the mean loss and metrics of the model, as it is decided now, over a loader and all processes.

        The model runs in evaluation mode, and has its own mode again afterwards.
        """
        meters = AverageMeterGroup()
        with training_mode_kept(self.model):
            self.model.eval()
            for batch in loader:
                x, y = self.pair(self.to_device(batch))
                with self.autocast():
                    outputs = self.model(x)
                    loss = self.loss(outputs, y)
                meters.update({'loss': loss, **self.metrics(outputs, y)}, n=len(y) if hasattr(y, '__len__') else 1)
        return meters.reduce().means()

    # -- state -----------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers that are attributes of the trainer, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer)}

    def wrapper_of(self, optimizer: torch.optim.Optimizer) -> OptimWrapper:
        """Return MMEngine's wrapper of an optimizer, which scales losses where the precision needs it."""
        if id(optimizer) not in self._wrappers:
            self._wrappers[id(optimizer)] = (
                OptimWrapper(optimizer)
                if self.precision is None
                else AmpOptimWrapper(dtype=self.precision, optimizer=optimizer)
            )
        return self._wrappers[id(optimizer)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of what the trainer holds beside model, mutator and optimizers; callbacks included."""
        return {
            'parts': {name: part.state_dict() for name, part in self._stateful().items()},
            'callbacks': [
                callback.state_dict() if callable(getattr(callback, 'state_dict', None)) else None
                for callback in self.callbacks
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for name, part in self._stateful().items():
            if name in state['parts']:
                part.load_state_dict(state['parts'][name])
        for callback, saved in zip(self.callbacks, state['callbacks']):
            if saved is not None:
                callback.load_state_dict(saved)

    def _stateful(self) -> dict[str, Any]:
        own = ('model', 'mutator', 'network', *self.optimizers())
        return {
            name: value
            for name, value in vars(self).items()
            if name not in own
            and name[0] != '_'
            and callable(getattr(value, 'state_dict', None))
            and callable(getattr(value, 'load_state_dict', None))
        }

    # -- the runner ------------------------------------------------------------------------

    def _prepare(self, validate: bool, resume: bool) -> None:
        self._build_callbacks()
        by_epoch = self.checkpoint_by == 'epoch'
        backends: list[dict[str, Any]] = [{'type': 'LocalVisBackend'}]
        if self.tensorboard:
            backends.append({'type': 'TensorboardVisBackend'})
        loader = self.training_loader()
        interval = self.log_frequency or max(1, len(loader))
        whole = self.network.module if hasattr(self.network, 'module') else self.network
        config = {
            'model': whole,
            'train_dataloader': loader,
            'train_cfg': {'by_epoch': True, 'max_epochs': self.num_epochs},
            'optim_wrapper': OptimWrapperDict(**{name: self.wrapper_of(one) for name, one in self.optimizers().items()}),
            'default_hooks': {
                'logger': {'type': 'LoggerHook', 'interval': interval, 'interval_exp_name': 10**9},
                'checkpoint': {
                    'type': 'CheckpointHook',
                    'interval': self.checkpoint_interval,
                    'by_epoch': by_epoch,
                    'max_keep_ckpts': self.max_keep_checkpoints,
                    'save_param_scheduler': False,
                },
            },
            'visualizer': {'type': 'Visualizer', 'vis_backends': backends},
            'randomness': {'seed': self.seed},
            'log_level': self.log_level,
        }
        self._runner = build_runner(config, work_dir=self.work_dir, resume=resume, launcher=self.launcher)
        # Given as objects, since what stands in a config is copied.
        self._runner._train_loop = TrainerLoop(self._runner, loader, self, self.num_epochs, validate)
        self._runner.register_hook(TrainerStateHook(self))
        # MMEngine puts models on the accelerator; the trainer's own device decides.
        whole.to(self.device)
        self.network = self._runner.model

    def _build_callbacks(self) -> None:
        for callback in self.callbacks:
            if id(callback) not in self._built:
                self._built.add(id(callback))
                callback.build(self.model, self.mutator, self)

    def _call_back(self, event: str, epoch: int) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(epoch)

    def _note(self, metrics: Mapping[str, Any], epoch: int) -> None:
        numbers = {name: float(value) for name, value in metrics.items()}
        text = '  '.join(f'{name}: {value:.4f}' for name, value in numbers.items())
        self._runner.logger.info(f'Epoch [{epoch + 1}/{self.num_epochs}] validation  {text}')
        self._runner.visualizer.add_scalars({f'val/{name}': value for name, value in numbers.items()}, step=epoch + 1)

    def _check_agreement(self) -> None:
        """Notice processes whose parameters have drifted apart, as they do when a step bypasses `self.network`."""
        if not is_distributed():
            return
        trained = [p.detach() for p in self._runner.model.parameters() if p.requires_grad]
        total = torch.stack([p.double().abs().sum() for p in trained]).sum().cpu()
        bounds = torch.stack([total, -total])
        all_reduce(bounds, 'max')
        if float(bounds[0]) != -float(bounds[1]):
            raise TrainingError(
                'The processes of this run have different parameters. Call self.network(x), not self.model(x), in the steps '
                'of a trainer: gradients are averaged through the former.'
            )


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Return a batch (a tensor, or nested lists, tuples and mappings of them) on a device.

    >>> to_device({'x': [torch.ones(1)]}, 'cpu')
    {'x': [tensor([1.])]}
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, '_fields'):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _check_sized(dataset: Any) -> None:
    try:
        len(dataset)
    except TypeError:
        raise ComponentTypeError(
            f'A trainer takes a data set with a length, or a DataLoader of one, but got {type(dataset).__name__}.'
        ) from None


def _named_numbers(metrics: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Mapping[str, Any]]:
    def named(outputs: Any, labels: Any) -> Mapping[str, Any]:
        result = {} if metrics is None else metrics(outputs, labels)
        if not isinstance(result, Mapping):
            raise ComponentTypeError(
                f"`metrics` must return a mapping of names to numbers, such as {{'acc1': 0.5}}, but it returned {result!r}."
            )
        return result

    return named


def _callbacks(given: Any) -> list[Any]:
    verbs = ('build', 'on_epoch_begin', 'on_epoch_end', 'on_batch_begin', 'on_batch_end')
    for callback in given if isinstance(given, Sequence) else [given]:
        if not isinstance(given, Sequence) or any(not callable(getattr(callback, verb, None)) for verb in verbs):
            raise ComponentTypeError(
                f'`callbacks` must be a list of callbacks (sub-classes of strop.engine.Callback), but has {callback!r}.'
                if isinstance(given, Sequence)
                else f'`callbacks` must be a list, but got {given!r}.'
            )
    return list(given)


def _check_filled(size: int, rule: str) -> None:
    if size == 0:
        raise DataError(f'{rule}: a trainer needs at least one sample to train on, and one for each part that it splits off.')


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
