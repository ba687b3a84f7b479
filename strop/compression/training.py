"""Training of a stage: MMEngine's runner on a model and an objective, which goes on where it was killed, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from strop.compression.calling import Compiled, laid
from strop.engine import build_runner
from strop.errors import ConfigError, listed, near
from strop.graph.forward import evaluated
from strop.quantization.qat import freeze_batch_norms
from strop.randomness import seeded

#: (student, or what runs it compiled; inputs, targets, step) -> name -> loss.
Objective = Callable[[Callable[..., Any], Any, Any, int], Mapping[str, Tensor]]

OPTIMIZERS = ('sgd', 'adamw')
_POINTS = 60


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Args:
        epochs: How often to go through the training samples.
        lr: The largest learning rate; it rises for `warmup` of the steps and falls by a cosine to zero.
        optimizer: `sgd` (with Nesterov momentum 0.9) or `adamw`.
        weight_decay: Of all weights.
        warmup: Share of the steps in which the rate rises.
        clip: Largest norm of the gradients.
        precision: None, `bfloat16` or `float16`.
        checkpoint_steps: A checkpoint every so many steps; one an epoch by default.
        freeze_norms: Keep the statistics of batch norms as they are. Those of a few hundred samples are worse than those that
            the model was trained with.
        compile: Run whole batches by `torch.compile`: seconds to minutes at the start, faster steps from then on.

    Raises:
        ConfigError: If a value is not what it can be.

    >>> Schedule(epochs=2).lr
    0.02
    """

    epochs: int = 5
    lr: float = 0.02
    optimizer: str = 'sgd'
    weight_decay: float = 5e-4
    warmup: float = 0.1
    clip: float | None = 5.0
    precision: str | None = None
    checkpoint_steps: int | None = None
    freeze_norms: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ('freeze_norms', 'compile'):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f'`{name}` is true or false, but got {getattr(self, name)!r}.')
        for name in ('epochs', 'checkpoint_steps'):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f'`{name}` must be a positive whole number, but got {value!r}.')
        for name, least in (('lr', 1e-12), ('weight_decay', 0.0), ('warmup', 0.0), ('clip', 1e-12)):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (value is None and name == 'clip') and not (number and least <= value < 1e6):
                raise ConfigError(f'`{name}` must be a number of at least {least:g}, but got {value!r}.')
        if self.warmup >= 1:
            raise ConfigError(f'`warmup` is a share of the steps below 1, but got {self.warmup!r}.')
        for name, options in (('optimizer', OPTIMIZERS), ('precision', (None, 'bfloat16', 'float16'))):
            value = getattr(self, name)
            if value not in options:
                raise ConfigError(f'`{name}` must be one of {listed(options)}, but got {value!r}.{near(value, options)}')


class Lesson(BaseModel):
    """A student and what it learns by, as the runner calls it; other models take part without being in the checkpoints.

    Args:
        student: The model that learns.
        objective: Gives the losses of a batch.
        trained: Modules of the objective that are trained along, such as projections of a distiller.
        freeze_norms: Whether batch norms of the student stay in eval mode.
        layout: Of images and of the weights of convolutions.
        example: Inputs of a batch, as the student sees them, for whose shapes it is compiled; None runs it as it is.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        trained: nn.Module | None = None,
        freeze_norms: bool = False,
        layout: torch.memory_format = torch.contiguous_format,
        example: Any = None,
    ) -> None:
        super().__init__()
        self.student = student.to(memory_format=layout)
        self.compiled = None if example is None else Compiled(self.student, example)
        self.layout = layout
        self.trained = trained if trained is not None else nn.Identity()
        self.objective = objective
        self.freeze_norms = freeze_norms
        self.step = 0

    def train(self, mode: bool = True) -> Lesson:
        """Set the mode, which frozen norms do not follow."""
        super().train(mode)
        if self.freeze_norms:
            freeze_batch_norms(self.student)
        return self

    def forward(self, inputs: Any, targets: Any = None, mode: str = 'tensor') -> Any:
        """Return the losses, or in any other mode what the student gives."""
        if mode != 'loss':
            return self.student(inputs)
        return dict(self.objective(self.compiled or self.student, laid(inputs, self.layout), targets, self.step))


class _Watch(Hook):
    """Write the losses down and tell how far the training is."""

    def __init__(self, total: int, tell: Callable[[int, int], None] | None) -> None:
        self.total, self.tell = total, tell
        self.every = max(1, total // _POINTS)
        self.points: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._count = 0

    def before_train(self, runner: Any) -> None:
        if self.tell is not None:
            self.tell(int(runner.iter), self.total)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        step = int(runner.iter) + 1
        for name, value in (outputs or {}).items():
            if isinstance(value, Tensor) and value.numel() == 1:
                self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._count += 1
        if step % self.every == 0 or step == self.total:
            means = {name: value / self._count for name, value in self._sums.items()}
            self.points.append({'step': step, **means, 'lr': float(runner.optim_wrapper.param_groups[0]['lr'])})
            self._sums, self._count = {}, 0
        if self.tell is not None:
            self.tell(step, self.total)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        # Inside the checkpoint: a file of its own would be of another step where the process dies between the two.
        checkpoint['curve'] = {'points': list(self.points), 'sums': dict(self._sums), 'count': self._count}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint['curve']
        self.points, self._sums, self._count = list(kept['points']), dict(kept['sums']), int(kept['count'])


@dataclass
class Trained:
    """What a training gave.

    Args:
        model: The trained model, on the CPU and in eval mode.
        curve: Points with `step`, `loss` and its parts, and `lr`.
    """

    model: nn.Module
    curve: list[dict[str, float]] = field(default_factory=list)


def train(
    student: nn.Module,
    loader: DataLoader,
    objective: Objective,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int,
    trained: nn.Module | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    example: Any = None,
    tell: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train a model, from the last checkpoint in `folder` if there is one; the folder may be deleted afterwards.

    Every step depends on (seed, step) alone, so that a training which was killed ends with the same bits as one that was not.

    Args:
        student: The model; it is changed in place.
        loader: Batches (inputs, targets).
        objective: Gives the losses of a batch.
        schedule: How long and how fast.
        folder: For checkpoints.
        seed: Of everything random.
        trained: Modules of the objective that are trained along.
        layout: Of images; see `strop.compression.calling.layout_for`.
        example: Inputs of a whole batch, as the student sees them: what a schedule with `compile` compiles for.
        tell: Called with (steps done, steps in all).

    Raises:
        ConfigError: If it is to be compiled and cannot be.
        TrainingError: If a loss is not finite.
    """
    total = schedule.epochs * len(loader)
    lesson = Lesson(student, objective, trained, schedule.freeze_norms, layout, example if schedule.compile else None)
    optimizer: dict[str, Any] = {'lr': schedule.lr, 'weight_decay': schedule.weight_decay}
    optimizer |= {'type': 'SGD', 'momentum': 0.9, 'nesterov': True} if schedule.optimizer == 'sgd' else {'type': 'AdamW'}
    wrapper: dict[str, Any] = {'type': 'OptimWrapper', 'optimizer': optimizer}
    if schedule.precision is not None:
        wrapper |= {'type': 'strop.AmpOptimWrapper', 'dtype': schedule.precision}
    if schedule.clip is not None:
        wrapper['clip_grad'] = {'max_norm': schedule.clip}
    rising = round(schedule.warmup * total)
    schedulers: list[dict[str, Any]] = []
    if rising:
        schedulers.append({'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': rising})
    schedulers.append(
        {'type': 'CosineAnnealingLR', 'by_epoch': False, 'begin': rising, 'end': total, 'T_max': max(1, total - rising)}
    )
    watch = _Watch(total, tell)
    config = {
        'model': lesson,
        'train_dataloader': loader,
        'optim_wrapper': wrapper,
        'param_scheduler': schedulers,
        'train_cfg': {'type': 'strop.EpochBasedTrainLoop', 'max_epochs': schedule.epochs, 'val_interval': schedule.epochs + 1},
        'default_hooks': {
            'logger': None,
            'timer': None,
            'checkpoint': {
                'type': 'CheckpointHook',
                'by_epoch': schedule.checkpoint_steps is None,
                'interval': schedule.checkpoint_steps or 1,
                'max_keep_ckpts': 1,
            },
        },
        'custom_hooks': [watch],
        'randomness': {'seed': seed},
        'log_level': 'ERROR',
    }
    with seeded(seed, 'training'):
        runner = build_runner(config, work_dir=folder, resume=True)
        try:
            runner.train()
        finally:
            if schedule.compile:
                torch.compiler.reset()  # what it made is of no use to the next stages, which share its limit of programs
    model = evaluated(student.cpu())
    model.zero_grad(set_to_none=True)
    return Trained(model, watch.points)


def forget(folder: Path) -> None:
    """Delete the checkpoints of a training."""
    shutil.rmtree(folder, ignore_errors=True)


__all__ = ['OPTIMIZERS', 'Lesson', 'Objective', 'Schedule', 'Trained', 'forget', 'train']
