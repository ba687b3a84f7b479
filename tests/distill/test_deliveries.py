import copy
import random

import pytest
import torch
from torch import nn

from strop.distill import ConfigurableDistiller, DistillDeliveryManager, FunctionOutputsDelivery, MethodOutputsDelivery
from strop.errors import ConfigError, TrainingError


class Draws(nn.Module):
    """A model that draws noise, more than once if asked."""

    def __init__(self, times=1):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.times = times
        self.drawn = []

    def noise(self, x):
        return torch.rand_like(x)

    def forward(self, x):
        for _ in range(self.times):
            noise = self.noise(x)
            self.drawn.append(noise)
            x = x + noise
        return self.fc(x)


X = torch.zeros(2, 3)
PATH = f'{__name__}.Draws.noise'


def manager(times=1, **more):
    return DistillDeliveryManager(dict(noise=dict(type='MethodOutputs', max_keep_data=times, method_path=PATH, **more)))


def test_the_student_gets_what_the_teacher_got_in_the_same_order():
    deliveries = manager(3)
    teacher, student = Draws(3), Draws(3)
    with deliveries:
        teacher(X)
    deliveries.override_data = True
    with deliveries:
        student(X)
    assert all(mine is its for mine, its in zip(student.drawn, teacher.drawn))
    student(X)
    assert len({noise.sum().item() for noise in student.drawn}) == 6, 'outside of the block it draws for itself'


def test_each_of_several_students_gets_the_same():
    deliveries = manager(2)
    teacher, student = Draws(2), Draws(2)
    with deliveries:
        teacher(X)
    deliveries.override_data = True
    for _ in range(2):
        with deliveries:
            student(X)
    assert [id(noise) for noise in student.drawn] == [id(noise) for noise in teacher.drawn] * 2


def test_the_next_step_begins_anew():
    deliveries = manager(1)
    for _ in range(3):
        teacher, student = Draws(), Draws()
        for override, model in ((False, teacher), (True, student)):
            deliveries.override_data = override
            with deliveries:
                model(X)
        assert student.drawn[0] is teacher.drawn[0]


def test_functions():
    delivery = FunctionOutputsDelivery('random.random', max_keep_data=2)
    with delivery:
        drawn = [random.random(), random.random()]
    delivery.override_data = True
    with delivery:
        assert [random.random(), random.random()] == drawn
    assert random.random() not in drawn


def test_a_teacher_that_calls_more_often_than_kept():
    with pytest.raises(TrainingError, match=r'at most 2 outputs \(`max_keep_data`\)'), manager(2):
        Draws(3)(X)


def test_a_student_that_calls_more_often_than_the_teacher():
    deliveries = manager(2)
    with deliveries:
        Draws(2)(X)
    deliveries.override_data = True
    with (
        pytest.raises(
            TrainingError, match='kept 2 outputs of the teacher, but the student, or another teacher, asks for one more'
        ),
        deliveries,
    ):
        Draws(3)(X)
    assert not deliveries.deliveries['noise'].data_queue
    assert 'noise' not in vars(Draws(1))


def test_a_student_that_calls_less_often_is_said(monkeypatch):
    said = []
    monkeypatch.setattr('strop.distill.deliveries.print_log', lambda text, **_: said.append(text))
    deliveries = manager(2)
    for _ in range(2):
        for override, times in ((False, 2), (True, 1)):
            deliveries.override_data = override
            with deliveries:
                Draws(times)(X)
    assert len(said) == 1
    assert 'kept 2 outputs of the teacher, and the student asked for 1' in said[0]


def test_a_student_before_any_teacher():
    deliveries = manager(1)
    deliveries.override_data = True
    with pytest.raises(TrainingError, match='the teacher goes first'), deliveries:
        Draws()(X)


def test_the_plain_door_switches_by_itself():
    distiller = ConfigurableDistiller(
        student_recorders=dict(fc=dict(type='ModuleOutputs', source='fc')),
        teacher_recorders=dict(fc=dict(type='ModuleOutputs', source='fc')),
        distill_deliveries=dict(noise=dict(type='MethodOutputs', max_keep_data=1, method_path=PATH)),
        distill_losses=dict(loss=dict(type='torch.nn.MSELoss')),
        loss_forward_mappings=dict(
            loss=dict(input=dict(from_student=True, recorder='fc'), target=dict(from_student=False, recorder='fc'))
        ),
    )
    teacher = Draws()
    student = copy.deepcopy(teacher)
    for _ in range(2):
        with distiller.record(teacher, student):
            teacher(X)
            student(X)
        assert distiller.loss() == 0
        assert not distiller.distill_deliveries.deliveries['noise'].data_queue
    assert student.drawn[1] is teacher.drawn[1]


def test_a_copy_keeps_nothing():
    delivery = MethodOutputsDelivery(PATH, 1)
    with delivery:
        Draws()(X)
    copied = copy.deepcopy(delivery)
    assert delivery.data_queue
    assert not copied.data_queue
    with copied:
        Draws()(X)
    assert len(copied.data_queue) == 1


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (dict(type='MethodOutput', max_keep_data=1, method_path=PATH), "Did you mean 'MethodOutputs'"),
        (dict(type='MethodOutputs', max_keep_data=0, method_path=PATH), '`max_keep_data` must be a whole number'),
        (dict(type='MethodOutputs', max_keep_data=True, method_path=PATH), '`max_keep_data` must be a whole number'),
        (dict(type='MethodOutputs', method_path=PATH), 'max_keep_data'),
        (dict(type='MethodOutputs', max_keep_data=1, method_path=PATH + 's'), "has no 'noises'. Did you mean 'noise'"),
        (dict(type='FunctionOutputs', max_keep_data=1, func_path=PATH), 'Take MethodOutputs'),
        (PATH, "key 'type'"),
    ],
)
def test_bad_configs(config, words):
    with pytest.raises(ConfigError, match=words):
        DistillDeliveryManager(dict(noise=config))


def test_deliveries_are_a_mapping():
    with pytest.raises(ConfigError, match='mapping'):
        DistillDeliveryManager([PATH])
