"""Distillation of a network into itself: deeper parts teach shallower ones in one forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strop.algorithms.algorithm import LossResults
from strop.algorithms.single_teacher import DistillAlgorithm, check_outputs, prefixed
from strop.distill import ConfigurableDistiller
from strop.errors import ConfigError
from strop.registry import MODELS


@MODELS.register_module()
class SelfDistill(DistillAlgorithm):
    """Teach the architecture by itself: one forward, seen by the student's and the teacher's recorders.

    Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation, ICCV 2019, https://arxiv.org/abs/1905.08094, is this with `BYOTDistiller`.

    Args:
        distiller: A `ConfigurableDistiller` or its config.
        student_trainable: Whether the architecture learns; if not, only the connectors do.
        calculate_student_loss: Whether it learns by the labels, too.
        kwargs: `architecture` and all else that `BaseAlgorithm` takes.

    Raises:
        ComponentTypeError: If the distiller is of the wrong class.
        ConfigError: If a path is not in the architecture, or nothing would learn.

    >>> import torch
    >>> from torch import nn
    >>> distiller = dict(
    ...     type='BYOTDistiller',
    ...     student_recorders=dict(early=dict(type='ModuleOutputs', source='0')),
    ...     teacher_recorders=dict(late=dict(type='ModuleOutputs', source='1')),
    ...     distill_losses=dict(loss_feature=dict(type='torch.nn.MSELoss')),
    ...     loss_forward_mappings=dict(
    ...         loss_feature=dict(
    ...             input=dict(from_student=True, recorder='early'), target=dict(from_student=False, recorder='late')
    ...         )
    ...     ),
    ... )
    >>> algorithm = SelfDistill(distiller, architecture=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    >>> optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    >>> log = algorithm.train_step((torch.ones(3, 4), torch.tensor([0, 1, 0])), optimizer)
    >>> sorted(log)
    ['distill.loss_feature', 'loss', 'student.loss']
    """

    def __init__(
        self,
        distiller: ConfigurableDistiller | Mapping[str, Any],
        student_trainable: bool = True,
        calculate_student_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(distiller, student_trainable, calculate_student_loss, **kwargs)
        if self.distiller.deliveries.deliveries:
            raise ConfigError(
                'SelfDistill runs one forward for both sides, so there is nobody to hand to what `distill_deliveries` keep. '
                'Leave them out, or take SingleTeacherDistill.'
            )
        self.distiller.prepare_from_teacher(self.student)
        if calculate_student_loss:
            check_outputs(self.distiller.teacher_recorders, self.student)

    def loss(self, batch_inputs: Any, data_samples: Any = None) -> LossResults:
        """Return the losses by the labels, and those of the distiller."""
        try:
            with self.distiller.teacher_recorders:
                losses = self._student_losses(batch_inputs, data_samples)
            if not self.distillation_stopped:
                losses.update(prefixed(self.distiller.compute_distill_losses(), 'distill'))
        finally:
            self.distiller.clear()
        return losses
