"""Distillation and supernets in the `Trainer` of transformers, as a mixin of any class on it.

Nothing here imports transformers before it is used: the class that the mixin is put before brings it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from strop.engine.checkpoint import load_checkpoint_file
from strop.engine.compression_step import CompressionStep
from strop.errors import ComponentTypeError, ConfigError
from strop.files import atomic_path

#: The file of the step in each checkpoint folder.
STEP_FILE = 'strop_step.pth'


class CompressionTrainerMixin:
    """Make each training step of a transformers `Trainer` a `CompressionStep`, and each evaluation one of a fixed subnet.

    Put it first: `class MyTrainer(CompressionTrainerMixin, Trainer): pass` (or `Seq2SeqTrainer`, or a class of yours), and give
    the step as `compression=`. The distiller's loss is added to what `compute_loss` gives; connectors join the optimizer that
    the trainer makes; checkpoints get the file `strop_step.pth`, from which `train(resume_from_checkpoint=...)` goes on.
    `evaluate` and `predict` run as the step's `subnet`.

    With `gradient_accumulation_steps`, each small batch is a step and has a subnet of its own. In a distributed run of a
    supernet, `ddp_find_unused_parameters=True` is needed.

    Args:
        compression: The step; its student is the model of the trainer, or a part of it.
        args: All that the trainer takes.
        kwargs: All that the trainer takes.

    Raises:
        ComponentTypeError: If `compression` is no `CompressionStep`.
        ConfigError: If the student is no part of the model, or the trainer copies the model to several devices.

    >>> class Loop:  # in life a transformers.Trainer
    ...     def __init__(self, model):
    ...         self.model = model
    ...
    ...     def evaluate(self):
    ...         return self.model(torch.ones(1)).item()
    >>> from strop.mutables import LayerChoice
    >>> from strop.mutators import RandomMutator
    >>> class SupernetLoop(CompressionTrainerMixin, Loop):
    ...     pass
    >>> model = torch.nn.Sequential(LayerChoice([torch.nn.Identity(), torch.nn.Threshold(2, 0)], key='op'))
    >>> step = CompressionStep(model, mutator=RandomMutator(model), subnet={'op': 1})
    >>> SupernetLoop(model, compression=step).evaluate()
    0.0
    """

    model: Any
    args: Any

    def __init__(self, *args: Any, compression: CompressionStep, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(compression, CompressionStep):
            raise ComponentTypeError(f'`compression` must be a CompressionStep, but got {type(compression).__name__}.')
        if not any(module is compression.student for module in self.model.modules()):
            raise ConfigError(
                f'The student of the step is no part of the {type(self.model).__name__} that is trained. Give the same model '
                'to CompressionStep and to the trainer (not model_init, which makes another).'
            )
        if getattr(getattr(self, 'args', None), 'n_gpu', 1) > 1:
            raise ConfigError(
                'The trainer would copy the model to several GPUs of one process, where nothing can be recorded. Start it with '
                '`torchrun` or `accelerate launch`, or show it one GPU (CUDA_VISIBLE_DEVICES=0).'
            )
        self.compression = compression

    # -- training --------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """Return the trainer's loss, with the distiller's added where the model is in training."""
        kwargs.update(return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if not model.training:
            return super().compute_loss(model, inputs, **kwargs)  # type: ignore[misc]
        if all(parameter.grad is None for parameter in self.model.parameters()):
            # The trainer clears the gradients of its model, not those of its optimizer.
            for parameter in self.compression.parameters():
                parameter.grad = None
        with self.compression.training() as step:
            result = super().compute_loss(model, inputs, **kwargs)  # type: ignore[misc]
            loss, rest = (result[0], result[1:]) if return_outputs else (result, ())
            loss = step.loss(loss, self._share(num_items_in_batch))
        return (loss, *rest) if return_outputs else loss

    def _share(self, num_items_in_batch: Any) -> float:
        """Return the part of a batch's distillation loss that counts: all of it, where the trainer divides it itself."""
        scaled = getattr(self, 'loss_is_scaled_for_ga', None)
        if scaled is None:
            takes_number = getattr(self, 'model_accepts_loss_kwargs', False) and num_items_in_batch is not None
            scaled = takes_number or getattr(self, 'compute_loss_func', None) is not None
        batches = getattr(self, 'current_gradient_accumulation_steps', self.args.gradient_accumulation_steps)
        return 1 / batches if scaled else 1.0

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer, which trains the connectors as well."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        self.compression.add_to(optimizer)
        return optimizer

    # -- evaluation ------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the step's subnet."""
        with self.compression.evaluating():
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as the step's subnet."""
        with self.compression.evaluating():
            return super().predict(*args, **kwargs)  # type: ignore[misc]

    # -- state -----------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and in checkpoints the step beside it."""
        super().save_model(output_dir, _internal_call=_internal_call)  # type: ignore[misc]
        if _internal_call and output_dir is not None and self.args.should_save and not self.args.save_only_model:
            with atomic_path(Path(output_dir) / STEP_FILE) as temporary:
                torch.save(self.compression.state_dict(), temporary)

    def train(self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint: a folder, or True for the latest of `output_dir`.

        Raises:
            ConfigError: If the checkpoint has no state of a `CompressionStep`, or that of another; or if parameters are
                spread over processes.
        """
        if getattr(self, 'is_fsdp_enabled', False) or getattr(self, 'is_deepspeed_enabled', False):
            raise ConfigError(
                'FSDP and DeepSpeed spread parameters over processes, which can neither be recorded nor narrowed. Train '
                'without them: `torchrun` alone gives each process the whole model.'
            )
        folder = resume_from_checkpoint
        if folder is True:
            from transformers.trainer_utils import get_last_checkpoint

            folder = get_last_checkpoint(self.args.output_dir)
        if folder and Path(folder).is_dir():
            file = Path(folder) / STEP_FILE
            if not file.is_file():
                raise ConfigError(
                    f'{folder} has no {STEP_FILE}, so it was written by a trainer without CompressionTrainerMixin (or with '
                    'save_only_model). Load its weights into the model and train from the start.'
                )
            self.compression.load_state_dict(load_checkpoint_file(file))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
