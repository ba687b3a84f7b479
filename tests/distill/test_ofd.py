import pytest
import torch
from torch import nn

from strop.distill import OFDDistiller, negative_mean
from strop.errors import ConfigError


def net(width):
    torch.manual_seed(width)
    layers = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    nn.init.normal_(layers[1].bias)
    return layers


def make(teacher='1'):
    return OFDDistiller(
        student_recorders=dict(norm=dict(type='ModuleOutputs', source='1')),
        teacher_recorders=dict(norm=dict(type='ModuleOutputs', source=teacher)),
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


def test_the_loss_is_that_of_the_paper():
    teacher, student, distiller = net(4).eval(), net(2), make()
    x = torch.randn(5, 3, 6, 6)
    with distiller.record(teacher, student):
        with torch.no_grad():
            teacher(x)
        student(x)
    expected = teacher[1](teacher[0](x))
    record = distiller.get_record('norm', True, connector='up')
    margin = negative_mean(teacher[1].bias, teacher[1].weight).float().view(1, -1, 1, 1)
    target = torch.maximum(expected, margin)
    total = sum(float((s - t) ** 2) for s, t in zip(record.detach().flatten(), target.flatten()) if s > t or t > 0)
    torch.testing.assert_close(float(distiller.loss().detach()), total / 50, rtol=1e-4, atol=1e-5)


def test_margins_come_from_the_batch_norm_and_nothing_else():
    with pytest.raises(ConfigError, match=r"'loss_ofd' gets '0' of the teacher through the connector 'margin'.*batch norm"):
        make('0').prepare_from_teacher(net(4))
