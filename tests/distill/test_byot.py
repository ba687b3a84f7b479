import torch
from torch import nn

from strop.distill import BYOTDistiller


class Pair(nn.Module):
    def forward(self, x):
        return x, {'double': 2 * x}


def test_what_the_teacher_gives_is_detached_whole_and_the_students_is_not():
    net = nn.Sequential(nn.Linear(2, 2), Pair())
    sources = dict(pair=dict(type='ModuleOutputs', source='1'))
    distiller = BYOTDistiller(student_recorders=sources, teacher_recorders=sources)
    with distiller.record(None, net):
        net(torch.ones(1, 2))
    for from_student in (True, False):
        first, second = distiller.get_record('pair', from_student)
        assert first.requires_grad == second['double'].requires_grad == from_student
    assert not distiller.get_record('pair', False, data_idx=0, connector=None).requires_grad


def test_pooled_maps_of_the_teacher_are_vectors():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1))
    sources = dict(maps=dict(type='ModuleOutputs', source='0'), pooled=dict(type='ModuleOutputs', source='1'))
    distiller = BYOTDistiller(student_recorders=sources, teacher_recorders=sources)
    with distiller.record(None, net):
        net(torch.ones(2, 1, 4, 4))
    assert distiller.get_record('pooled', False).shape == (2, 3)
    assert distiller.get_record('pooled', True).shape == (2, 3, 1, 1)
    assert distiller.get_record('maps', False).shape == (2, 3, 4, 4)
