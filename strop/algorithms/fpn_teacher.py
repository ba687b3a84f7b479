"""Distillation from a detector's features, whose teacher runs without its head."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModel

from strop.algorithms.plain_architecture import PlainArchitecture
from strop.algorithms.single_teacher import SingleTeacherDistill
from strop.errors import ConfigError
from strop.registry import MODELS


@MODELS.register_module()
class FpnTeacherDistill(SingleTeacherDistill):
    """Teach by what backbone and neck of the teacher give: its head, and its loss, do not run.

    Args, Raises: as `SingleTeacherDistill`; the teacher has an `extract_feat(inputs)` and does not learn.

    >>> import torch
    >>> from torch import nn
    >>> class Net(BaseModel):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.neck, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
    ...
    ...     def extract_feat(self, inputs):
    ...         return self.neck(inputs)
    ...
    ...     def forward(self, inputs, data_samples=None, mode='tensor'):
    ...         return {'loss': self.head(self.extract_feat(inputs)).square().mean()}
    >>> neck = dict(neck=dict(type='ModuleOutputs', source='neck'))
    >>> distiller = dict(
    ...     student_recorders=neck,
    ...     teacher_recorders=neck,
    ...     distill_losses=dict(loss_neck=dict(type='torch.nn.MSELoss')),
    ...     loss_forward_mappings=dict(
    ...         loss_neck=dict(input=dict(from_student=True, recorder='neck'), target=dict(from_student=False, recorder='neck'))
    ...     ),
    ... )
    >>> algorithm = FpnTeacherDistill(distiller, Net(), architecture=Net())
    >>> sorted(algorithm(torch.ones(3, 4), mode='loss'))
    ['distill.loss_neck', 'student.loss']
    """

    def __init__(self, distiller: Any, teacher: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(distiller, teacher, *args, **kwargs)
        if self.teacher_trainable:
            raise ConfigError('The teacher of FpnTeacherDistill runs without its head, so it has no loss to learn by.')
        for one in map(_whole, self.teachers.values()):
            if not callable(getattr(one, 'extract_feat', None)):
                raise ConfigError(
                    f'FpnTeacherDistill calls extract_feat(inputs) of its teacher, which {type(one).__name__} does not have. '
                    'Take SingleTeacherDistill.'
                )

    def _run_teacher(self, teacher: BaseModel, batch_inputs: Any, data_samples: Any) -> Any:
        return _whole(teacher).extract_feat(batch_inputs)


def _whole(teacher: BaseModel) -> Any:
    """Return the model that the user gave: one that is no `BaseModel` is wrapped."""
    return teacher.module if isinstance(teacher, PlainArchitecture) else teacher
