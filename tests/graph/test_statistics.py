import pytest
import torch
from torch import nn

from strop.errors import DataError
from strop.graph.statistics import average_statistics, measure_again, tracking_norms

BATCHES = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])]


def net():
    return nn.Sequential(nn.BatchNorm1d(1, momentum=0.3), nn.Dropout()).train()


def test_norms_get_the_average_over_all_batches_and_keep_their_momentum():
    model = net()
    assert measure_again(model, BATCHES, model) == 2
    assert float(model[0].running_mean) == 3.0
    assert float(model[0].running_var) == 2.0  # the mean of the unbiased variances of the batches
    assert model[0].momentum == 0.3
    assert model[1].training


def test_a_failing_batch_leaves_the_statistics():
    model = net()
    model(BATCHES[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        measure_again(model, [BATCHES[0], torch.rand(2, 3)], model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].momentum == 0.3
    assert model.training


def test_a_batch_without_a_variance_is_left_out_of_all_norms():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(1)).eval()
    lone = torch.full((1, 1, 2, 2), 100.0)  # the first norm takes it, the second does not
    batches = [torch.tensor([[[[0.0, 2.0]]], [[[4.0, 6.0]]]]), torch.tensor([[[[8.0, 8.0]]], [[[8.0, 8.0]]]])]
    assert measure_again(model, [lone, batches[0], lone, batches[1]], model) == 2
    assert float(model[0].running_mean) == 5.5  # of 3 and 8
    assert int(model[0].num_batches_tracked) == int(model[3].num_batches_tracked) == 2


def test_batches_without_a_variance_alone_are_refused():
    model = net()
    model(BATCHES[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match='more than one value per channel, but of 2 read none does'):
        measure_again(model, [torch.ones(1, 1), torch.ones(1, 1)], model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match='another reason'):
        measure_again(model, BATCHES, refuse)


def refuse(batch):
    raise ValueError('another reason')


def test_averages_alone_leave_the_norms_in_train_mode():
    model = net().eval()
    assert average_statistics(model, iter(BATCHES), model) == 2
    assert model[0].training
    assert model[0].momentum is None
    assert not model[1].training


def test_without_statistics_nothing_is_run():
    model = nn.BatchNorm1d(1, track_running_stats=False)
    assert tracking_norms(model) == []
    assert measure_again(model, BATCHES, lambda batch: 1 / 0) == 0
