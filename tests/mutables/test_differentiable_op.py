import math

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, SubnetError
from strop.estimators import SpaceEstimator, count
from strop.mutables import (
    DiffChoiceRoute,
    DiffMutableOP,
    GumbelChoiceRoute,
    OneHotMutableOP,
    apply_subnet,
    extract,
    gumbel_weights,
    mutables_of,
    one_hot,
    space_of,
)
from strop.registry import MODELS

OPERATIONS = dict(relu=dict(type='torch.nn.ReLU'), tanh=dict(type='torch.nn.Tanh'), none=dict(type='torch.nn.Identity'))
X = torch.tensor([-1.0, 2.0])


class Node(nn.Module):
    """A node with three edges, each a choice of its own."""

    def __init__(self, kind='DiffChoiceRoute', **more):
        super().__init__()
        candidates = dict(a=dict(type='torch.nn.Linear', bias=False), b=dict(type='torch.nn.Linear'))
        edges = {
            f'e{index}': dict(
                type='DiffMutableOP',
                candidates=candidates,
                module_kwargs=dict(in_features=4, out_features=4),
                alias=f'op{index}',
            )
            for index in range(3)
        }
        self.route = MODELS.build(dict(type=kind, edges=edges, alias='route', **more))

    def forward(self, x):
        return self.route([x, 2 * x, 3 * x])


def test_one_hot_is_exact_and_keeps_the_gradient():
    logits = torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64, requires_grad=True)
    hard = one_hot(torch.softmax(logits, 0), 1)
    assert hard.tolist() == [0, 1, 0]
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((hard * values).sum(), logits)
    soft = torch.softmax(logits, 0)
    (expected,) = torch.autograd.grad((soft * values).sum(), logits)
    assert torch.equal(gradient, expected)


def test_gumbel_draws_follow_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0])
    shares = torch.stack([gumbel_weights(logits) for _ in range(3000)]).mean(0)
    assert torch.allclose(shares, torch.softmax(logits, 0), atol=0.03)


def test_soft_gumbel_weights_sum_to_one_and_sharpen_with_the_temperature():
    torch.manual_seed(0)
    logits = torch.randn(5)
    warm = torch.stack([gumbel_weights(logits, tau=10.0, hard=False) for _ in range(50)])
    cold = torch.stack([gumbel_weights(logits, tau=0.01, hard=False) for _ in range(50)])
    assert torch.allclose(warm.sum(1), torch.ones(50))
    assert warm.amax(1).mean() < 0.4
    assert cold.amax(1).mean() > 0.95


def test_a_mixed_operation_adds_what_each_gives_by_its_weight():
    op = DiffMutableOP(OPERATIONS)
    logits = torch.tensor([0.0, math.log(2), math.log(5)], requires_grad=True)
    op.decide(op.arch_weights(logits))
    output = op(X)
    expected = X.relu() / 8 + X.tanh() * 2 / 8 + X * 5 / 8
    assert torch.allclose(output, expected)
    (gradient,) = torch.autograd.grad(output.sum(), logits)
    outputs = torch.stack([X.relu().sum(), X.tanh().sum(), X.sum()])
    p = torch.tensor([1, 2, 5]) / 8
    assert torch.allclose(gradient, p * (outputs - (p * outputs).sum()), atol=1e-6)


def test_beyond_the_threshold_one_operation_is_computed_and_its_logits_get_no_gradient():
    op = DiffMutableOP(OPERATIONS, fix_threshold=0.8)
    below = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
    above = torch.tensor([0.0, 0.0, 4.0], requires_grad=True)
    assert op.arch_weights(below).requires_grad
    weights = op.arch_weights(above)
    assert weights.tolist() == [0, 0, 1]
    assert not weights.requires_grad
    op.decide(weights)
    assert torch.equal(op(X), X)


@pytest.mark.parametrize('threshold', [0, -1, 1.5])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ConfigError, match='fix_threshold'):
        DiffMutableOP(OPERATIONS, fix_threshold=threshold)


def test_one_hot_operation_runs_one_candidate_drawn_by_the_probabilities():
    torch.manual_seed(0)
    op = OneHotMutableOP(OPERATIONS)
    calls = []
    for name in op.names:
        op[name].register_forward_hook(lambda *_, name=name: calls.append(name))
    logits = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    for _ in range(600):
        op.decide(op.arch_weights(logits))
        op(X)
    assert len(calls) == 600
    shares = torch.tensor([calls.count(name) / 600 for name in op.names])
    assert torch.allclose(shares, torch.softmax(logits.detach(), 0), atol=0.06)
    op(X).sum().backward()
    assert logits.grad.abs().min() > 0


def test_a_route_gives_each_edge_its_own_input():
    model = Node()
    apply_subnet(model, {'route': ['e0', 'e2'], 'op0': 'a', 'op2': 'b'})
    x = torch.randn(2, 4)
    edges = model.route
    expected = edges['e0']['a'](x) + edges['e2']['b'](3 * x)
    assert torch.allclose(model(x), expected)
    assert edges.current_choice == ['e0', 'e2']
    assert edges.dump_chosen() == {'chosen': ['e0', 'e2'], 'meta': {'all_choices': ['e0', 'e1', 'e2']}}


def test_decisions_in_edges_that_are_not_chosen_are_inactive():
    model = Node()
    subnet = apply_subnet(model, {'route': ['e0', 'e2'], 'op0': 'a', 'op1': 'b', 'op2': 'b'})
    assert dict(subnet) == {'route': ['e0', 'e2'], 'op0': 'a', 'op2': 'b'}
    # Three pairs of edges, two operations on each of the two.
    assert space_of(model).count() == 12
    assert space_of(Node(num_chosen=1)).count() == 6


@pytest.mark.parametrize(('number', 'taken'), [(1, ['e1']), (2, ['e0', 'e2']), (3, ['e0', 'e1', 'e2'])])
def test_an_extracted_route_has_the_chosen_edges_and_no_choice(number, taken):
    model = Node(num_chosen=number).eval()
    ops = {f'op{index}': 'ab'[index % 2] for index in range(3)}
    x = torch.randn(2, 4)
    plain = extract(model, {'route': taken, **ops})
    apply_subnet(model, {'route': taken, **ops})
    assert torch.equal(plain(x), model(x))
    assert mutables_of(plain) == []
    expected = sum(20 if name == 'e1' else 16 for name in taken)
    assert sum(parameter.numel() for parameter in plain.parameters()) == expected


def test_a_weighted_route_extracts_to_what_it_computed():
    model = Node()
    decisions = {'route': torch.tensor([0.5, 0.0, 1.5]), 'op0': torch.tensor([0.25, 0.75]), 'op1': 'a', 'op2': 'b'}
    apply_subnet(model, decisions)
    x = torch.randn(2, 4)
    assert torch.allclose(extract(model)(x), model(x))


def test_a_route_is_estimated_without_running_each_subnet():
    model = Node()
    estimator = SpaceEstimator(model, torch.zeros(1, 4))
    subnets = list(space_of(model).grid())
    estimated = [estimator.estimate(subnet, ['macs', 'params']) for subnet in subnets]
    counted = [count(extract(model, subnet), torch.zeros(1, 4)) for subnet in subnets]
    assert [row['macs'] for row in estimated] == [one.macs for one in counted]
    assert [row['params'] for row in estimated] == [one.params for one in counted]


def test_a_gumbel_route_draws_one_edge_or_weighs_all():
    torch.manual_seed(0)
    route = GumbelChoiceRoute({name: nn.Identity() for name in 'abc'}, with_arch_param=True)
    assert sorted(route.arch_weights(torch.zeros(3)).tolist()) == [0, 0, 1]
    soft = GumbelChoiceRoute({name: nn.Identity() for name in 'abc'}, hard=False, with_arch_param=True)
    weights = soft.arch_weights(torch.zeros(3))
    assert (weights > 0).all()
    assert float(weights.sum()) == pytest.approx(1)
    with pytest.raises(ConfigError, match='positive'):
        soft.set_temperature(0)


def test_the_final_edges_are_those_of_the_greatest_logits():
    route = DiffChoiceRoute({name: nn.Identity() for name in 'abcd'}, with_arch_param=True)
    assert route.sample_choice(torch.tensor([0.1, 3.0, -1.0, 2.0])) == ['b', 'd']


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(edges={}), 'at least one edge'),
        (dict(edges=[nn.Identity()]), 'mapping'),
        (dict(edges=dict(a=nn.Identity()), num_chosen=2), r'within 1\.\.1'),
        (dict(edges=dict(a=nn.Identity()), num_chosen=0), r'within 1\.\.1'),
    ],
)
def test_a_malformed_route_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        DiffChoiceRoute(**arguments)


@pytest.mark.parametrize('inputs', [[X], X, (X, X, X, X)])
def test_a_wrong_number_of_inputs_is_told(inputs):
    route = DiffChoiceRoute({name: nn.Identity() for name in 'abc'})
    route.decide(['a', 'b'])
    with pytest.raises(SubnetError, match='list of 3 inputs'):
        route(inputs)


def test_a_route_can_be_fixed_by_the_name_that_was_dumped():
    route = DiffChoiceRoute({name: nn.Identity() for name in 'abc'})
    route.fix_chosen({'chosen': ['a', 'c'], 'meta': {}})
    assert route.current_choice == ['a', 'c']
    with pytest.raises(SubnetError, match="'d' is none"):
        route.fix_chosen(['a', 'd'])
