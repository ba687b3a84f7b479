from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.pruning.calibration import recalibrate


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5), nn.Linear(4, 2))


def test_statistics_are_the_average_over_batches(net):
    net[0].eval()
    batches = [torch.rand(5, 3, 6, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    net = net[:2]
    net.train()
    assert recalibrate(net, [batches[0], (batches[1], 'labels'), {'input': batches[2]}]) == 3
    hidden = [net[0](batch).detach() for batch in batches]
    mean = torch.stack([h.mean((0, 2, 3)) for h in hidden]).mean(0)
    variance = torch.stack([h.var((0, 2, 3)) for h in hidden]).mean(0)
    assert torch.allclose(net[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(net[1].running_var, variance, atol=1e-6)
    assert net[1].momentum == 0.3


def test_modes_are_put_back(net):
    net.train()
    net[1].eval()
    recalibrate(net[:2], [torch.rand(2, 3, 6, 4)])
    assert [module.training for module in net] == [True, False, True, True]


def test_a_failing_batch_leaves_the_statistics(net):
    net = net[:2].train()
    net(torch.rand(4, 3, 6, 4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.rand(2, 3, 6, 4), torch.rand(2, 5, 6, 4)])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net[1].momentum == 0.3


def test_without_running_statistics_there_is_nothing_to_do():
    assert recalibrate(nn.Linear(2, 2), [torch.rand(1, 2)]) == 0
    assert recalibrate(nn.BatchNorm1d(2, track_running_stats=False), [torch.rand(3, 2)]) == 0
