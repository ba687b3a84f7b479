import pytest
import torch
import torch.nn.functional as F
from torch import nn

from strop.distill import DistillDeliveryManager, RecorderManager
from strop.distill.recording import recorded

X = torch.ones(2, 3)


class Net(nn.Module):
    def __init__(self, depth=1):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.depth = depth

    def forward(self, x):
        x = F.relu(self.fc(x))
        return x if self.depth == 1 else Net.forward_again(self, x)

    def forward_again(self, x):
        self.depth -= 1
        try:
            return self(x)
        finally:
            self.depth += 1


def sides(teacher, student):
    managers = [
        RecorderManager(
            dict(
                relu=dict(type='FunctionInputs', source='torch.nn.functional.relu'),
                fc=dict(type='ModuleOutputs', source='fc'),
                method=dict(type='MethodInputs', source='fc.forward'),
            )
        )
        for _ in range(2)
    ]
    managers[0].initialize(teacher)
    managers[1].initialize(student)
    return managers


def counts(manager):
    return [len(recorder.data_buffer) for recorder in manager.recorders.values()]


def test_calls_belong_to_the_model_whose_forward_runs():
    teacher, student = Net(), Net()
    mine, its = sides(teacher, student)
    with recorded(mine, its, DistillDeliveryManager(), teacher, student):
        teacher(X)
        student(X)
        F.relu(X)
        student(X)
    assert counts(mine) == [1, 1, 1]
    assert counts(its) == [2, 2, 2]
    assert not any(recorder.muted for manager in (mine, its) for recorder in manager.recorders.values())


def test_forwards_within_forwards():
    teacher, student = Net(depth=3), Net()
    mine, its = sides(teacher, student)
    with recorded(mine, its, DistillDeliveryManager(), teacher, student):
        teacher(X)
        student(X)
    assert counts(mine) == [3, 3, 3]
    assert counts(its) == [1, 1, 1]


def test_without_a_teacher_everything_is_the_students():
    student = Net()
    mine, its = sides(student, student)
    with recorded(mine, its, DistillDeliveryManager(), None, student):
        student(X)
        F.relu(X)
    assert counts(mine) == counts(its) == [2, 1, 1]


def test_parts_of_a_model_may_be_called_for_what_belongs_to_it_alone():
    teacher, student = Net(), Net()
    mine, its = sides(teacher, student)
    with recorded(mine, its, DistillDeliveryManager(), teacher, student):
        F.relu(student.fc(X))
    assert counts(its) == [0, 1, 1]


class Noisy(nn.Module):
    error = None

    def forward(self, x):
        x = x + torch.randn(2, 3)
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_a_forward_that_is_broken_off_leaves_nothing_behind(error):
    teacher, student = Noisy(), Noisy()
    managers = RecorderManager(), RecorderManager()
    deliveries = DistillDeliveryManager(dict(noise=dict(type='FunctionOutputs', func_path='torch.randn', max_keep_data=1)))
    before = torch.randn
    student.error = error()
    with pytest.raises(error), recorded(*managers, deliveries, teacher, student):
        teacher(X)
        student(X)
    assert torch.randn is before
    assert not deliveries.deliveries['noise'].data_queue
    student.error = None
    with recorded(*managers, deliveries, teacher, student):
        torch.testing.assert_close(teacher(X), student(X))
