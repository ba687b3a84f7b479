"""Validation of distillation: the student, and its teachers beside it on the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.runner import TestLoop, ValLoop
from mmengine.runner.amp import autocast
from torch import nn

from strop.engine.train_loop import unwrapped
from strop.errors import ConfigError
from strop.graph.forward import training_mode_kept
from strop.registry import LOOPS


class CombinedLoop(ValLoop):
    """A loop whose metrics are put together before hooks see them; it serves for validation and for test."""

    @property
    def stage(self) -> str:
        """'val' or 'test'."""
        return 'val' if self.runner.val_loop is self else 'test'

    def run(self) -> dict[str, float]:
        """Validate and return the metrics."""
        stage = self.stage
        self.runner.call_hook(f'before_{stage}')
        self.runner.call_hook(f'before_{stage}_epoch')
        algorithm = unwrapped(self.runner.model)
        with training_mode_kept(algorithm):
            metrics = self.metrics(algorithm)
        self.runner.call_hook(f'after_{stage}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{stage}')
        return metrics

    def metrics(self, algorithm: Any) -> dict[str, float]:
        """Return all metrics."""
        return self.evaluated(algorithm)

    def evaluated(self, algorithm: Any) -> dict[str, float]:
        """Run the algorithm over the data and return the metrics."""
        algorithm.eval()
        # Hooks look at the loader of the stage that they are called for.
        one: Any = ValLoop if self.stage == 'val' else TestLoop
        self.val_loss: dict[str, Any] = {}
        self.test_loss: dict[str, Any] = {}
        for index, batch in enumerate(self.dataloader):
            one.run_iter(self, index, batch)
        return dict(self.evaluator.evaluate(len(self.dataloader.dataset)))


@LOOPS.register_module()
class SingleTeacherDistillValLoop(CombinedLoop):
    """Validate the student and then each teacher, whose metrics are prefixed `teacher.` (`teacher.<name>.` for several).

    Args:
        runner: MMEngine's runner.
        dataloader: Validation data.
        evaluator: Evaluator of the metrics.
        fp16: Validate under autocast.

    Raises:
        ConfigError: If the algorithm has no teacher.
    """

    def metrics(self, algorithm: Any) -> dict[str, float]:
        """Return the metrics of student and teachers."""
        teacher = getattr(algorithm, 'teacher', None)
        if not isinstance(teacher, nn.Module):
            raise ConfigError(
                f'SingleTeacherDistillValLoop validates a teacher, but {type(algorithm).__name__} has none. Leave the type of '
                'the loop out, or take SingleTeacherDistill.'
            )
        metrics = self.evaluated(algorithm)
        teachers: Mapping[str, nn.Module] = getattr(algorithm, 'teachers', {'': teacher})
        for name, one in teachers.items():
            prefix = f'teacher.{name}.' if name else 'teacher.'
            metrics.update({prefix + key: value for key, value in self._teacher(algorithm, one).items()})
        return metrics

    @torch.no_grad()
    def _teacher(self, algorithm: Any, teacher: Any) -> dict[str, float]:
        teacher.eval()
        for batch in self.dataloader:
            # By the algorithm's preprocessor: the teacher gets what it gets in training.
            data = algorithm.data_preprocessor(batch, False)
            with autocast(enabled=self.fp16):
                outputs = teacher(**data, mode='predict') if isinstance(data, Mapping) else teacher(*data, mode='predict')
            self.evaluator.process(data_samples=outputs, data_batch=batch)
        return dict(self.evaluator.evaluate(len(self.dataloader.dataset)))


@LOOPS.register_module()
class SelfDistillValLoop(CombinedLoop):
    """Validate the architecture that teaches itself; metrics are prefixed `student.`.

    Args:
        runner: MMEngine's runner.
        dataloader: Validation data.
        evaluator: Evaluator of the metrics.
        fp16: Validate under autocast.
    """

    def metrics(self, algorithm: Any) -> dict[str, float]:
        """Return the metrics of the architecture."""
        return {f'student.{name}': value for name, value in self.evaluated(algorithm).items()}
