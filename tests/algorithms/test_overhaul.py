import pytest
import torch
from torch import nn

from strop.algorithms import OverhaulFeatureDistillation
from strop.errors import ComponentTypeError
from strop.registry import MODELS

DATA = (torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)


def net(width):
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 2),
    )


def distiller(kind='OFDDistiller'):
    return dict(
        type=kind,
        student_recorders=dict(norm=dict(type='ModuleOutputs', source='1')),
        teacher_recorders=dict(norm=dict(type='ModuleOutputs', source='1')),
        connectors=dict(
            up=dict(type='ConvModuleConnector', in_channel=2, out_channel=4, norm_cfg=dict(type='BN'), act_cfg=None),
            margin=dict(type='OFDTeacherConnector'),
        ),
        distill_losses=dict(loss_ofd=dict(type='OFDLoss', mul_factor=10)),
        loss_forward_mappings=dict(
            loss_ofd=dict(
                s_feature=dict(from_student=True, recorder='norm', connector='up'),
                t_feature=dict(from_student=False, recorder='norm', connector='margin'),
            )
        ),
    )


def test_features_come_closer_and_the_teacher_stays():
    algorithm = MODELS.build(
        dict(type='mmrazor.OverhaulFeatureDistillation', architecture=net(2), teacher=net(4), distiller=distiller())
    )
    before = algorithm.teacher.module[0].weight.clone()
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.05)
    losses = [float(algorithm.train_step(DATA, optimizer)['distill.loss_ofd'].detach()) for _ in range(40)]
    assert losses[-1] < losses[0] * 0.8
    assert torch.equal(before, algorithm.teacher.module[0].weight)


def test_margins_follow_a_teacher_that_is_loaded():
    algorithm = OverhaulFeatureDistillation(distiller(), net(4), architecture=net(2))
    margin = algorithm.distiller.connectors['margin']
    state = algorithm.state_dict()
    assert not any('margin' in name for name in state)
    state['teacher.module.1.bias'] = state['teacher.module.1.bias'] + 1
    before = margin.margin.clone()
    algorithm.load_state_dict(state)
    assert (margin.margin != before).all()


def test_another_distiller_is_refused():
    with pytest.raises(ComponentTypeError, match='needs an OFDDistiller'):
        OverhaulFeatureDistillation(distiller('ConfigurableDistiller'), net(4), architecture=net(2))
