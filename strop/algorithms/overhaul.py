"""Overhauled feature distillation: features before the activation, through margins, by a partial distance."""

from __future__ import annotations

from typing import Any

from strop.algorithms.single_teacher import SingleTeacherDistill
from strop.distill import OFDDistiller
from strop.errors import ComponentTypeError
from strop.registry import MODELS


@MODELS.register_module()
class OverhaulFeatureDistillation(SingleTeacherDistill):
    """Distil features that are recorded after a batch norm and before the activation, with `OFDDistiller`.

    The student's features pass a `ConvModuleConnector` (1 x 1 convolution and batch norm, no activation), the teacher's an
    `OFDTeacherConnector`; the loss is `OFDLoss`. Margins follow the teacher when a checkpoint is loaded.

    Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation, ICCV 2019,
    https://arxiv.org/abs/1904.01866. Official code: https://github.com/clovaai/overhaul-distillation.

    Args, Raises: as `SingleTeacherDistill`; the distiller must be an `OFDDistiller`.

    >>> import torch
    >>> from torch import nn
    >>> distiller = dict(
    ...     type='OFDDistiller',
    ...     student_recorders=dict(norm=dict(type='ModuleOutputs', source='1')),
    ...     teacher_recorders=dict(norm=dict(type='ModuleOutputs', source='1')),
    ...     connectors=dict(margin=dict(type='OFDTeacherConnector')),
    ...     distill_losses=dict(loss_ofd=dict(type='OFDLoss')),
    ...     loss_forward_mappings=dict(
    ...         loss_ofd=dict(
    ...             s_feature=dict(from_student=True, recorder='norm'),
    ...             t_feature=dict(from_student=False, recorder='norm', connector='margin'),
    ...         )
    ...     ),
    ... )
    >>> net = lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    >>> algorithm = OverhaulFeatureDistillation(distiller, net(), architecture=net())
    >>> losses = algorithm(torch.rand(4, 3, 3, 3), torch.tensor([0, 1, 0, 1]), mode='loss')
    >>> sorted(losses)
    ['distill.loss_ofd', 'student.loss']
    """

    def __init__(self, distiller: Any, teacher: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(distiller, teacher, *args, **kwargs)
        if not isinstance(self.distiller, OFDDistiller):
            raise ComponentTypeError(
                f'OverhaulFeatureDistillation needs an OFDDistiller, which finds the margins, not a '
                f'{type(self.distiller).__name__}.'
            )
        # The margins are computed from the teacher and are in no checkpoint.
        self.register_load_state_dict_post_hook(_follow_teacher)


def _follow_teacher(algorithm: OverhaulFeatureDistillation, keys: Any) -> None:
    algorithm.distiller.init_ofd_connectors(algorithm.teacher)
