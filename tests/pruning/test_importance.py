from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.graph import channel_units
from strop.pruning.importance import (
    FPGM,
    IMPORTANCES,
    L1,
    L2,
    LAMP,
    Activation,
    Hessian,
    Importance,
    NormScale,
    Taylor,
    build_importance,
    normalised,
    register_importance,
    score,
)


def net_of(first, second, bias=None):
    """Two linear layers around a ReLU, in float64."""
    first, second = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    net = nn.Sequential(
        nn.Linear(first.shape[1], len(first), bias=bias is not None, dtype=torch.float64),
        nn.ReLU(),
        nn.Linear(second.shape[1], len(second), bias=False, dtype=torch.float64),
    )
    net[0].weight.data, net[2].weight.data = first, second
    if bias is not None:
        net[0].bias.data = torch.tensor(bias, dtype=torch.float64)
    return net


@pytest.fixture
def small():
    net = net_of([[3.0, -4.0], [1.0, 0.0], [0.0, 2.0]], [[1.0, -1.0, 2.0], [2.0, 1.0, 0.0]], [5.0, 6.0, 7.0])
    return net, channel_units(net, torch.rand(2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ('importance', 'expected'),
    [
        (L1(parts='out'), [7, 1, 2]),
        (L1(parts='in'), [3, 2, 2]),
        (L1(), [5, 1.5, 2]),
        (L1(reduce='sum'), [10, 3, 4]),
        (L1(reduce='max'), [7, 2, 2]),
        (L2(parts='out'), [5, 1, 2]),
        (L2(reduce='sum', parts='all'), [5 + 5**0.5, 1 + 2**0.5, 4]),
        # Squares 25, 1, 4: 25/25, 1/(1 + 4 + 25), 4/(4 + 25).
        (LAMP(parts='out'), [1, 1 / 30, 4 / 29]),
        # Distances: |a-b| = sqrt(4+16), |a-c| = sqrt(9+36), |b-c| = sqrt(1+4).
        (FPGM(), [20**0.5 + 45**0.5, 20**0.5 + 5**0.5, 45**0.5 + 5**0.5]),
    ],
)
def test_scores_of_weights_by_hand(small, importance, expected):
    net, graph = small
    scores = importance(graph.units['0'], net)
    assert scores.tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_norms_share_in_order_under_lamp():
    net = net_of([[1.0], [1.0]], [[1.0, 1.0]])
    graph = channel_units(net, torch.rand(2, 1, dtype=torch.float64))
    assert LAMP(parts='out')(graph.units['0'], net).tolist() == [0.5, 1.0]


def test_an_index_of_several_positions_counts_all_of_them():
    # A pixel shuffle of the first layer's outputs: a channel is four filters of the first and one input of the second.
    net = nn.Sequential(nn.Conv2d(1, 12, 1, bias=False), nn.PixelShuffle(2), nn.Conv2d(3, 1, 1, bias=False))
    net[0].weight.data = torch.arange(12.0).reshape(12, 1, 1, 1)
    net[2].weight.data = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    graph = channel_units(net, torch.rand(2, 1, 4, 4))
    (unit,) = (unit for unit in graph.units.values() if unit.size == 3)
    sums = [sum(range(4 * i, 4 * i + 4)) for i in range(3)]
    assert L1(parts='out')(unit, net).tolist() == sums
    norms = [sum(v**2 for v in range(4 * i, 4 * i + 4)) ** 0.5 for i in range(3)]
    assert L2(parts='out')(unit, net).tolist() == pytest.approx(norms)
    # Filters differ by (4, 4, 4, 4) and (8, 8, 8, 8): distances 8 and 16.
    assert FPGM()(unit, net).tolist() == pytest.approx([24, 16, 24])


def test_norm_scales_average_over_norms_and_leave_out_units_without_one():
    net = nn.Sequential(
        nn.Linear(2, 2),
        nn.BatchNorm1d(2),
        nn.BatchNorm1d(2),
        nn.Linear(2, 3),
        nn.LayerNorm(3),
        nn.Linear(3, 4),
        nn.Linear(4, 1),
    )
    net[1].weight.data, net[2].weight.data = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 1.0])
    net[4].weight.data = torch.tensor([0.5, -0.25, 4.0])
    graph = channel_units(net, torch.rand(3, 2))
    scores = score(graph, net, 'bn_scale')
    assert {name: value.tolist() for name, value in scores.items()} == {'0': [2, 1.5], '3': [0.5, 0.25, 4]}
    assert NormScale(reduce='max')(graph.units['3'], net).tolist() == [0.5, 0.25, 4.0]
    assert NormScale()(graph.units['5'], net) is None
    assert '5' not in scores


def test_random_scores_are_a_function_of_seed_and_unit(small):
    net, graph = small
    first = score(graph, net, 'random', seed=1)['0']
    assert torch.equal(first, score(graph, net, 'random', seed=1)['0'])
    assert not torch.equal(first, score(graph, net, 'random', seed=2)['0'])
    state = torch.random.get_rng_state()
    score(graph, net, 'random', seed=3)
    assert torch.equal(state, torch.random.get_rng_state())


def squared(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).sum()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(4, 2, generator=generator, dtype=torch.float64), torch.rand(4, 2, generator=generator, dtype=torch.float64))
        for _ in range(3)
    ]


def gate_gradients(net, data, loss):
    """Return the gradient of each batch's loss by a factor on each hidden channel."""
    result = []
    for batch in data:
        gate = torch.ones(3, dtype=torch.float64, requires_grad=True)
        gated = nn.Sequential(net[0], net[1], Gate(gate), net[2])
        result.append(torch.autograd.grad(loss(gated, batch), gate)[0])
    return torch.stack(result)


class Gate(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def forward(self, x):
        return x * self.gate


def test_taylor_is_the_mean_squared_gradient_of_a_gate(small, data):
    net, graph = small
    expected = (gate_gradients(net, data, squared) ** 2).mean(0)
    scores = score(graph, net, Taylor(reduce='mean'), data=data, loss=squared)['0']
    # ReLU passes positive numbers on as they are, so the layers before and behind the gate agree.
    assert scores.tolist() == pytest.approx(expected.tolist(), rel=1e-10)
    doubled = score(graph, net, Taylor(), data=data, loss=squared)['0']
    assert doubled.tolist() == pytest.approx((2 * expected).tolist(), rel=1e-10)


def test_taylor_without_signs_squares_every_weight(small, data):
    net, graph = small
    expected = torch.zeros(3, dtype=torch.float64)
    for batch in data:
        grads = torch.autograd.grad(squared(net, batch), [net[0].weight, net[0].bias, net[2].weight])
        first = ((grads[0] * net[0].weight) ** 2).sum(1) + (grads[1] * net[0].bias) ** 2
        expected += (first + ((grads[2] * net[2].weight) ** 2).sum(0)).detach() / 2 / len(data)
    scores = score(graph, net, Taylor(reduce='mean', signed=False), data=data, loss=squared)['0']
    assert scores.tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_taylor_judges_linear_layers_of_transformers_like_those_of_torch(small, data):
    conv1d = pytest.importorskip('transformers.pytorch_utils').Conv1D
    net, graph = small
    other = nn.Sequential(conv1d(3, 2), nn.ReLU(), conv1d(2, 3)).double()
    other[0].weight.data, other[2].weight.data = (net[i].weight.data.t().contiguous() for i in (0, 2))
    other[0].bias.data = net[0].bias.data.clone()
    units = channel_units(other, torch.rand(4, 2, dtype=torch.float64))
    expected = score(graph, net, 'taylor', data=data, loss=squared)['0']
    (found,) = score(units, other, 'taylor', data=data, loss=squared).values()
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_taylor_takes_the_projections_of_attention_with_their_bias_for_one_gate():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(12, 16), nn.Linear(16, 4)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.head(self.attention(*[self.stem(x)] * 3, need_weights=False)[0])

    torch.manual_seed(0)
    net, x = Attending().double(), torch.randn(2, 6, 12, dtype=torch.float64)
    nn.init.normal_(net.attention.in_proj_bias)
    graph = channel_units(net, x)
    scores = score(graph, net, 'taylor', data=[x], loss=lambda model, batch: (model(batch) ** 2).sum())
    parameters = [net.attention.in_proj_weight, net.attention.in_proj_bias, net.attention.out_proj.weight]
    grads = torch.autograd.grad((net(x) ** 2).sum(), parameters)
    weight, bias, out = ((value * grad).detach() for value, grad in zip(parameters, grads))
    # Queries, keys and values; heads; what a head has of each.
    given, taken = (weight.sum(1) + bias).reshape(3, 4, 4), out.sum(0).reshape(4, 4)
    expected = {'heads': given.sum((0, 2)) ** 2 + taken.sum(1) ** 2, 'head_dim': given.sum((0, 1)) ** 2 + taken.sum(0) ** 2}
    found = {unit.role: scores[unit.name].tolist() for unit in graph.units.values() if unit.role in expected}
    assert found == {role: pytest.approx(value.tolist(), rel=1e-10) for role, value in expected.items()}


def test_hessian_by_fisher_is_half_the_mean_of_squared_products(small, data):
    net, graph = small
    totals = [torch.zeros(3, dtype=torch.float64) for _ in range(3)]
    for batch in data:
        parameters = [net[0].weight, net[0].bias, net[2].weight]
        products = [(g * w).detach() ** 2 / 2 for g, w in zip(torch.autograd.grad(squared(net, batch), parameters), parameters)]
        for total, part in zip(totals, (products[0].sum(1), products[1], products[2].sum(0))):
            total += part / len(data)
    scores = score(graph, net, Hessian(reduce='mean'), data=data, loss=squared)['0']
    assert scores.tolist() == pytest.approx((sum(totals) / 3).tolist(), rel=1e-10)


def test_hutchinson_finds_the_diagonal_of_a_quadratic_exactly():
    # L = sum over hidden i of c_i (a_i + b_i)^2 / 2 has the same second derivatives c_i, and no others within a vector.
    net = net_of([[1.0], [2.0]], [[3.0, 4.0]])
    graph = channel_units(net, torch.rand(2, 1, dtype=torch.float64))
    curvature = torch.tensor([5.0, 7.0], dtype=torch.float64)

    def loss(model, batch):
        return (curvature * model[0].weight[:, 0] ** 2).sum() / 2 + 3 * (model[2].weight ** 2).sum() / 2

    scores = score(graph, net, Hessian('sum', 'hutchinson', draws=2), data=[0], loss=loss)['0']
    assert scores.tolist() == pytest.approx([0.5 * 5 * 1 + 0.5 * 3 * 9, 0.5 * 7 * 4 + 0.5 * 3 * 16], rel=1e-12)


def test_hutchinson_takes_a_loss_without_curvature_for_zero(small):
    net, graph = small
    scores = score(graph, net, Hessian(diagonal='hutchinson'), data=[0], loss=lambda model, batch: model[0].weight.sum())
    assert scores['0'].tolist() == [0, 0, 0]


def test_activations_are_read_behind_the_non_linearity(small, data):
    net, graph = small
    hidden = torch.cat([net[1](net[0](batch[0])) for batch in data])
    scores = score(graph, net, 'activation', data=data)['0']
    assert scores.tolist() == pytest.approx(hidden.abs().mean(0).tolist(), rel=1e-12)


def test_activations_are_read_where_layers_are_called_by_keyword(small, data):
    class Named(nn.Sequential):
        def forward(self, x):
            for layer in self:
                x = layer(input=x)
            return x

    net, graph = small
    assert torch.equal(*(score(graph, model, 'activation', data=data)['0'] for model in (net, Named(*net))))


def test_activations_of_pictures_are_read_by_channel():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    ).double()
    graph = channel_units(net, torch.rand(2, 3, 8, 8, dtype=torch.float64))
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    net.eval()
    inner = net[1](net[0](images))
    outer = net[3](net[2](inner))
    expected = (inner.abs().mean((0, 2, 3)) + outer.abs().mean((0, 2, 3))) / 2
    assert score(graph, net, Activation(), data=[images])['0'].tolist() == pytest.approx(expected.tolist(), rel=1e-10)


@pytest.mark.parametrize('name', ['taylor', 'hessian', 'activation'])
def test_looking_at_data_leaves_the_model_as_it_was(name, small, data):
    net, graph = small
    net.insert(1, nn.BatchNorm1d(3).double())
    graph = channel_units(net, torch.rand(2, 2, dtype=torch.float64))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[0].bias.grad = torch.ones(3, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    score(graph, net, name, data=data, loss=squared)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training
    assert not net[1].training
    assert not net[0].weight.requires_grad
    assert net[0].bias.grad.tolist() == [1, 1, 1]
    assert net[3].weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_failing_loss_leaves_the_model_as_it_was(small, data):
    net, graph = small
    net[0].weight.requires_grad_(False)
    net.train()

    def loss(model, batch):
        raise RuntimeError('no labels')

    with pytest.raises(RuntimeError, match='no labels'):
        score(graph, net, 'taylor', data=data, loss=loss)
    assert net.training
    assert not net[0].weight.requires_grad


def test_functions_of_the_user_are_importances(small):
    net, graph = small
    assert score(graph, net, lambda unit, model: torch.arange(unit.size))['0'].tolist() == [0, 1, 2]
    assert score(graph, net, lambda unit, model, graph: torch.full((unit.size,), len(graph.units)))['0'].tolist() == [1, 1, 1]
    assert score(graph, net, lambda unit, model: None) == {}


@pytest.mark.parametrize(
    ('function', 'said'),
    [
        (lambda unit, model: torch.zeros(2), r'\(3,\).*\(2,\)'),
        (lambda unit, model: [1, 2, 3], 'list'),
        (lambda unit, model: torch.tensor([1.0, math.nan, 0.0]), 'not all finite'),
    ],
)
def test_scores_must_be_one_finite_number_for_each_index(function, said, small):
    net, graph = small
    with pytest.raises(ConfigError, match=said):
        score(graph, net, function)


@pytest.mark.parametrize(
    ('importance', 'said'),
    [
        ('tailor', "Did you mean 'taylor'"),
        ({'type': 'l1', 'reduc': 'max'}, "Did you mean 'reduce'"),
        ({'type': 'l1', 'reduce': 'median'}, "'mean', 'sum', 'max'"),
        ({'type': 'hessian', 'diagonal': 'exact'}, 'fisher'),
        ({'type': 'hessian', 'draws': 0}, '1 or more'),
        (3, 'must be a name'),
        (nn.Linear, 'must be a name'),
    ],
)
def test_what_is_no_importance_is_refused(importance, said):
    with pytest.raises(ConfigError, match=said):
        build_importance(importance)


@pytest.mark.parametrize(
    ('name', 'given', 'said'),
    [
        ('activation', {}, 'give `data=`'),
        ('taylor', {}, 'and `loss=`'),
        ('taylor', {'data': [0]}, 'needs gradients'),
        ('hessian', {'data': [], 'loss': squared}, 'no batches'),
        ('taylor', {'data': [0], 'loss': lambda model, batch: torch.tensor(1.0)}, 'without a gradient'),
    ],
)
def test_missing_data_is_told(name, given, said, small):
    net, graph = small
    with pytest.raises(ConfigError, match=said):
        score(graph, net, name, **given)


def test_scores_that_were_never_gathered_are_told(small, data):
    net, graph = small
    with pytest.raises(ConfigError, match='no data yet'):
        Taylor()(graph.units['0'], net)
    judge = Taylor()
    judge.gather(net, graph, data, squared)
    other = channel_units(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)), torch.rand(2, 2))
    with pytest.raises(ConfigError, match='another graph'):
        judge(other.units['1'], net)


def test_names_are_registered_once():
    @register_importance('constant')
    class Constant(Importance):
        def __call__(self, unit, model, graph=None):
            return torch.ones(unit.size)

    try:
        assert isinstance(build_importance('constant'), Constant)
        with pytest.raises(ConfigError, match='is taken by Constant'):
            register_importance('constant')(L1)
    finally:
        del IMPORTANCES['constant']


def test_normalising():
    scores = torch.tensor([1.0, 3.0])
    assert normalised(scores, 'none').tolist() == [1, 3]
    assert normalised(scores, 'mean').tolist() == [0.5, 1.5]
    assert normalised(scores, 'max').tolist() == pytest.approx([1 / 3, 1])
    assert normalised(torch.zeros(2), 'mean').tolist() == [0, 0]
    with pytest.raises(ConfigError, match='normalise'):
        normalised(scores, 'softmax')


def test_hutchinson_works_on_fused_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x):
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(mixed.transpose(1, 2).flatten(2)).mean(1)

    torch.manual_seed(0)
    net, x = Attention(), torch.randn(4, 5, 8)
    data = [(x, torch.tensor([0, 1, 2, 0]))]
    found = score(
        channel_units(net, x), net, Hessian(diagonal='hutchinson'), data=data, loss=nn.CrossEntropyLoss()
    )  # fmt: skip
    assert found
    assert all(torch.isfinite(each).all() for each in found.values())
