"""Distillation and supernets in Lightning's loop, as a callback: the `LightningModule` stays as it is.

Needs `lightning` or `pytorch_lightning` (extra `lightning`), which nothing else in this room imports.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from strop.engine.compression_step import CompressionStep
from strop.errors import ComponentTypeError, ConfigError, MissingDependencyError, try_import

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:
        Callback = try_import('lightning.pytorch', 'lightning').Callback
    except MissingDependencyError:
        Callback = try_import('pytorch_lightning', 'lightning').Callback


class CompressionCallback(Callback):
    """Make each training step of a `LightningModule` a `CompressionStep`, and each evaluation one of a fixed subnet.

    What `training_step` returns gets the distiller's loss added; its parameters join the first optimizer. Checkpoints hold the
    step beside Lightning's own state, so that `fit(..., ckpt_path=...)` goes on with the subnets that come next; the weights in
    them are those of the module alone. Evaluations (`validate`, `test`, `predict` and those within `fit`) run as the step's
    `subnet`.

    A module that has `automatic_optimization` off calls `step.training()` and `step.loss()` itself where it distils.

    Args:
        step: The step; its student is the network inside the module.
        log_as: Name under which the distiller's loss is logged; None for not at all.

    Raises:
        ComponentTypeError: If `step` is no `CompressionStep`.
        ConfigError: When training starts, if the student is no part of the module, the module optimizes by hand, or the
            strategy spreads parameters over processes.

    >>> import torch
    >>> from torch import nn
    >>> from strop.distill import distiller_for
    >>> teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> distiller = distiller_for(student, teacher, torch.randn(2, 4))
    >>> callback = CompressionCallback(CompressionStep(student, distiller=distiller, teacher=teacher))
    >>> callback.state_dict()['count']
    0
    """

    def __init__(self, step: CompressionStep, log_as: str | None = 'distill_loss') -> None:
        super().__init__()
        if not isinstance(step, CompressionStep):
            raise ComponentTypeError(f'`step` must be a CompressionStep, but got {type(step).__name__}.')
        self.step = step
        self.log_as = log_as
        self._wrapped: Any = None
        self._evaluation = ExitStack()

    # -- training --------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand before the module's `training_step` while it is fitted."""
        if not any(module is self.step.student for module in pl_module.modules()):
            raise ConfigError(
                f'The student of the step is no part of {type(pl_module).__name__}. Give the step the network that the module '
                'calls: CompressionStep(module.net, ...).'
            )
        if stage != 'fit':
            return
        strategy = type(trainer.strategy).__name__
        if any(kind in strategy for kind in ('FSDP', 'DeepSpeed', 'ModelParallel')):
            raise ConfigError(
                f'{strategy} spreads parameters over processes, which can neither be recorded nor narrowed. Take '
                "strategy='ddp', or 'ddp_find_unused_parameters_true' for a supernet."
            )
        if self.step.distiller is not None and not pl_module.automatic_optimization:
            raise ConfigError(
                f'{type(pl_module).__name__} optimizes by hand, so the callback cannot add the distiller to its loss. Call '
                '`with step.training():` and `step.loss(loss)` in its training_step, without this callback.'
            )
        self._unwrap()
        original = pl_module.training_step

        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            with self.step.training():
                return self._with_loss(pl_module, original(*args, **kwargs))

        # In the module's own namespace, where it hides the method of the class.
        pl_module.training_step = training_step
        self._wrapped = pl_module

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Let the first optimizer train the connectors as well."""
        if trainer.optimizers:
            self.step.add_to(trainer.optimizers[0])

    def _with_loss(self, pl_module: Any, output: Any) -> Any:
        if self.step.distiller is None:
            return output
        if output is None:
            self.step.forget()
            return None
        if isinstance(output, Mapping):
            output = {**output, 'loss': self.step.loss(output.get('loss'))}
        else:
            output = self.step.loss(output)
        if self.log_as is not None:
            pl_module.log(self.log_as, self.step.distill_loss)
        return output

    def _unwrap(self) -> None:
        if self._wrapped is not None:
            self._wrapped.__dict__.pop('training_step', None)
            self._wrapped = None

    # -- evaluation ------------------------------------------------------------------------

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the subnet of evaluations current."""
        self._evaluation.enter_context(self.step.evaluating())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Put back what was current before."""
        self._evaluation.close()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    # -- state -----------------------------------------------------------------------------

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave module and student as they were found."""
        self.teardown(trainer, pl_module, 'fit')

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its `training_step` back."""
        self._evaluation.close()
        self._unwrap()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the step, for Lightning's checkpoints."""
        return self.step.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.step.load_state_dict(state_dict)
