import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn

from strop.algorithms import FpnTeacherDistill
from strop.errors import ConfigError
from strop.registry import MODELS

DATA = (torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)


class Detector(BaseModel):
    def __init__(self, width=4):
        super().__init__()
        self.neck, self.head = nn.Linear(4, width), nn.Linear(width, 2)

    def extract_feat(self, inputs):
        return self.neck(inputs)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return {'loss_cls': F.cross_entropy(self.head(self.extract_feat(inputs)), data_samples)}


def distiller(source='neck'):
    neck = dict(neck=dict(type='ModuleOutputs', source=source))
    return dict(
        student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
        teacher_recorders=neck,
        distill_losses=dict(loss_neck=dict(type='torch.nn.MSELoss')),
        loss_forward_mappings=dict(
            loss_neck=dict(input=dict(from_student=True, recorder='neck'), target=dict(from_student=False, recorder='neck'))
        ),
    )


def test_the_teachers_head_does_not_run():
    algorithm = MODELS.build(
        dict(type='mmrazor.FpnTeacherDistill', architecture=Detector(), teacher=Detector(), distiller=distiller())
    )
    calls = []
    algorithm.teacher.head.register_forward_hook(lambda *_: calls.append(1))
    losses = algorithm(*DATA, mode='loss')
    assert not calls
    expected = F.mse_loss(algorithm.student.neck(DATA[0]), algorithm.teacher.neck(DATA[0]))
    torch.testing.assert_close(losses['distill.loss_neck'], expected)
    assert not algorithm.distiller.teacher_recorders.get_recorder('neck').data_buffer


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.neck = nn.Linear(4, 4)

    def extract_feat(self, inputs):
        return self.neck(inputs)

    def forward(self, inputs):
        raise AssertionError('its head does not run')


def test_a_teacher_may_be_any_module_with_extract_feat():
    algorithm = FpnTeacherDistill(distiller(), Plain(), architecture=Detector())
    expected = F.mse_loss(algorithm.student.neck(DATA[0]), algorithm.teacher.module.neck(DATA[0]))
    torch.testing.assert_close(algorithm(*DATA, mode='loss')['distill.loss_neck'], expected)


def test_teachers_that_cannot():
    with pytest.raises(ConfigError, match=r'extract_feat.* which Sequential does not have'):
        FpnTeacherDistill(distiller('0'), nn.Sequential(nn.Linear(4, 4)), architecture=Detector())
    with pytest.raises(ConfigError, match='no loss to learn by'):
        FpnTeacherDistill(distiller(), Detector(), teacher_trainable=True, architecture=Detector())
