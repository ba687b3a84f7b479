from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.graph import channel_units
from strop.pruning.pruner import prune
from strop.pruning.sparsity import GroupLasso, ScaleL1


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()


@pytest.fixture
def graph(net):
    return channel_units(net, torch.rand(2, 3, dtype=torch.float64))


def squares(net):
    """The squared norm of all that each hidden channel holds."""
    return (net[0].weight ** 2).sum(1) + net[0].bias ** 2 + net[1].weight ** 2 + net[1].bias ** 2 + (net[3].weight ** 2).sum(0)


def test_group_lasso_is_the_sum_of_the_norms_of_channels(net, graph):
    expected = 0.1 * squares(net).sqrt().sum()
    assert float(GroupLasso(graph, 0.1)(net)) == pytest.approx(float(expected), rel=1e-12)
    assert float(GroupLasso(graph, 0.1, squared=True)(net)) == pytest.approx(float(0.1 * squares(net).sum()), rel=1e-12)


def test_emphasis_is_on_the_small_channels(net, graph):
    found = squares(net).detach()
    gamma = 2 ** (4 * (found.max() - found) / (found.max() - found.min()))
    assert float(gamma.min()) == 1
    assert float(gamma.max()) == 16
    expected = float((gamma * squares(net)).sum())
    assert float(GroupLasso(graph, 1, emphasis=4, squared=True)(net)) == pytest.approx(expected, rel=1e-12)


def test_scales_are_those_of_norms(net, graph):
    net[1].weight.data = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    assert float(ScaleL1(graph, 0.1)(net)) == pytest.approx(0.35)
    assert ScaleL1(graph).names(net) == ['1.weight']
    ScaleL1(graph, 0.1).add_gradients(net)
    assert net[1].weight.grad.tolist() == pytest.approx([0.1, -0.1, 0.0, 0.1])


@pytest.mark.parametrize(
    'penalty', [lambda g: GroupLasso(g, 0.3), lambda g: GroupLasso(g, 0.3, emphasis=4), lambda g: ScaleL1(g, 0.3)]
)
def test_gradients_can_be_added_after_backward(net, graph, penalty):
    regulariser = penalty(graph)
    x = torch.rand(5, 3, dtype=torch.float64)
    (net(x).sum() + regulariser(net)).backward()
    together = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    value = regulariser.add_gradients(net)
    assert value == pytest.approx(float(regulariser(net)))
    for parameter, expected in zip(net.parameters(), together):
        assert torch.allclose(parameter.grad, expected, rtol=1e-12)


def test_channels_at_zero_have_no_gradient(net, graph):
    for name, parameter in net.named_parameters():
        if name != '3.bias':
            parameter.data.zero_()
    GroupLasso(graph, 1).add_gradients(net)
    assert all(torch.equal(net[n].weight.grad, torch.zeros_like(net[n].weight)) for n in (0, 1, 3))


def test_frozen_parameters_get_no_gradient(net, graph):
    net[0].weight.requires_grad_(False)
    GroupLasso(graph, 1).add_gradients(net)
    assert net[0].weight.grad is None
    assert net[3].weight.grad is not None


def test_training_with_it_makes_whole_channels_small_enough_to_remove():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.rand(64, 4)
    y = x[:, :1] - x[:, 1:2]
    lasso = GroupLasso(channel_units(net, x), 2e-2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        ((net(x) - y) ** 2).mean().backward()
        lasso.add_gradients(net)
        optimizer.step()
    slim = prune(net, x, ratio=0.5, importance='l2').model
    assert slim[0].out_features == 8
    assert float((slim(x) - net(x)).abs().max()) < 0.02


def test_a_model_without_norms_has_no_scales():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match='no norm whose scales'):
        ScaleL1(channel_units(net, torch.rand(2, 3)))(net)


@pytest.mark.parametrize('weight', [-1, 'a', float('nan')])
def test_a_weight_is_not_negative(graph, weight):
    with pytest.raises(ConfigError, match='0 or more'):
        GroupLasso(graph, weight)


@pytest.mark.parametrize('kind', [GroupLasso, ScaleL1])
def test_a_wrapper_is_looked_through_and_another_model_refused(net, graph, kind):
    penalty = kind(graph, 0.1)
    wrapped = nn.DataParallel(net)
    assert float(penalty(wrapped)) == float(penalty(net)) > 0
    assert penalty.add_gradients(wrapped) == pytest.approx(float(penalty(net)))
    with pytest.raises(ConfigError, match='no parameter that a unit of the graph lives in'):
        penalty(nn.ModuleDict({'net': net}))
