import copy
import math

import pytest
import torch
from mutables.test_differentiable_op import Node
from torch import nn

from strop.errors import BindingError, ConfigError, SpaceError, SubnetError, UnknownKeyError
from strop.mutables import (
    DiffChoiceRoute,
    DiffMutableOP,
    InputChoice,
    LayerChoice,
    OneHotMutableOP,
    ValueChoice,
    extract,
    mutables_of,
)
from strop.mutators import DartsMutator, DifferentiableMutator, GumbelMutator, ProxylessMutator, RandomMutator
from strop.registry import MODELS

ALL = [DifferentiableMutator, DartsMutator, GumbelMutator, ProxylessMutator]


class Pair(nn.Module):
    """Two choices of three layers each, in float64 where asked."""

    def __init__(self, keys=('first', 'second')):
        super().__init__()
        self.first = LayerChoice([nn.Linear(4, 4), nn.Tanh(), nn.Identity()], key=keys[0])
        self.second = LayerChoice([nn.Linear(4, 4), nn.ReLU(), nn.Identity()], key=keys[1])

    def forward(self, x):
        return self.second(self.first(x))


class Cell(nn.Module):
    """A node as NNI's examples write it: an op on each input, and a switch that takes two of three."""

    def __init__(self):
        super().__init__()
        keys = [f'cell.edge{index}' for index in range(3)]
        self.ops = nn.ModuleList(
            LayerChoice({'conv': nn.Linear(4, 4), 'pool': nn.Identity(), 'none': nn.Threshold(math.inf, 0)}, key=key)
            for key in keys
        )
        self.switch = InputChoice(choose_from=keys, n_chosen=2, key='switch')

    def forward(self, x):
        return self.switch([op(x * (index + 1)) for index, op in enumerate(self.ops)])


def with_logits(mutator, **logits):
    for key, values in logits.items():
        mutator.logits(key.replace('__', '.')).data = torch.as_tensor(values, dtype=torch.float32)
    return mutator


# -- architecture parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ALL)
def test_parameters_are_the_mutators_own(kind):
    model = Pair()
    mutator = kind(model)
    extra = kind is DartsMutator
    assert {key: len(logits) for key, logits in mutator.choices.items()} == {'first': 3 + extra, 'second': 3 + extra}
    assert len(list(mutator.parameters())) == 2
    assert not {id(p) for p in mutator.parameters()} & {id(p) for p in model.parameters()}
    assert max(float(p.detach().abs().max()) for p in mutator.parameters()) < 0.01


@pytest.mark.parametrize('key', ['a.b', 'keys', 'update', 'training', 'a%2Eb', '_modules', 'ops.0.conv'])
def test_any_key_can_name_a_parameter(key):
    model = Pair(keys=(key, 'other'))
    mutator = DartsMutator(model)
    state = mutator.state_dict()
    mutator.reset()
    assert model(torch.randn(2, 4)).requires_grad
    again = DartsMutator(Pair(keys=(key, 'other')))
    again.load_state_dict(state)
    assert torch.equal(again.logits(key), mutator.logits(key))


def test_keys_that_differ_by_escaping_do_not_collide():
    mutator = DartsMutator(Pair(keys=('a.b', 'a%2Eb')))
    assert len(mutator.arch_params) == 2


def test_choices_of_one_key_share_their_logits():
    model = nn.Sequential(Pair(keys=('same', 'x')), Pair(keys=('same', 'y')))
    mutator = DifferentiableMutator(model)
    mutator.reset()
    assert model[0].first.decision is model[1].first.decision
    model(torch.randn(2, 4)).sum().backward()
    assert mutator.logits('same').grad.abs().sum() > 0


def test_an_unknown_key_names_the_near_one():
    with pytest.raises(UnknownKeyError, match="Did you mean 'first'"):
        DartsMutator(Pair()).logits('firsst')


@pytest.mark.parametrize('kind', ALL)
def test_values_have_no_mixture(kind):
    class Valued(Pair):
        def __init__(self):
            super().__init__()
            self.scale = ValueChoice([1, 2], key='scale')

    model = Valued()
    with pytest.raises(SpaceError, match=r"'scale'.*RandomMutator"):
        kind(model)
    RandomMutator(model)  # it was given back


@pytest.mark.parametrize('kind', ALL)
def test_a_bound_model_takes_no_second_mutator(kind):
    model = Pair()
    mutator = kind(model)
    with pytest.raises(BindingError, match='bound'):
        RandomMutator(model)
    with pytest.raises(BindingError, match='exactly one model'):
        mutator.prepare_from_supernet(Pair())


@pytest.mark.parametrize('mask', [torch.tensor([True]), torch.tensor([1, 2, 0]), [0.5, 0.5], 'sevn'])
def test_a_wrong_mask_is_refused_and_changes_nothing(mask):
    model = Pair()
    mutator = DartsMutator(model)
    mutator.reset()
    before = mutator.status()
    with pytest.raises(SubnetError, match='first'):
        mutator.apply_on_model({'first': mask, 'second': torch.tensor([True, False, False])})
    with pytest.raises(UnknownKeyError, match="Did you mean 'first'"):
        mutator.apply_on_model({'firs': torch.tensor([True, False, False])})
    assert mutator.status() == before


# -- in search ----------------------------------------------------------------------------------------------


def test_the_gradient_of_the_logits_is_that_of_the_softmax_mixture():
    torch.manual_seed(0)
    model = Pair().double()
    mutator = DartsMutator(model).double()
    for logits in mutator.parameters():
        logits.data = torch.randn(4, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)

    def loss(first, second):
        weights = [torch.softmax(logits, 0) for logits in (first, second)]
        hidden = sum(weights[0][i] * layer(x) for i, layer in enumerate(model.first))
        return sum(weights[1][i] * layer(hidden) for i, layer in enumerate(model.second)).pow(2).sum()

    mutator.reset()
    model(x).pow(2).sum().backward()
    arch = [mutator.logits(key) for key in ('first', 'second')]
    expected = torch.autograd.grad(loss(*arch), arch)
    for logits, gradient in zip(arch, expected):
        assert torch.allclose(logits.grad, gradient, rtol=1e-12)


def test_the_bare_loop_trains_weights_and_logits_and_stays_until_the_next_reset():
    torch.manual_seed(0)
    model = nn.Sequential(Pair(), nn.Linear(4, 2))
    mutator = DartsMutator(model)
    optimizer = torch.optim.SGD([*model.parameters(), *mutator.parameters()], lr=0.5)
    x, y = torch.randn(32, 4), torch.arange(32) % 2
    x[:, 0] += y * 4
    losses = []
    for _ in range(30):
        mutator.reset()
        decided = mutator.status()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert mutator.status() == decided
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    model.eval()
    assert torch.equal(model(x), model(x))


def test_inputs_are_all_added_in_search():
    model = Cell()
    mutator = DartsMutator(model)
    mutator.reset()
    x = torch.randn(3, 4)
    expected = sum(op(x * (index + 1)) for index, op in enumerate(model.ops))
    assert torch.allclose(model(x), expected)
    # "none" is among the candidates, so that no logit is added for it.
    assert {len(logits) for logits in mutator.choices.values()} == {3}


def test_a_cut_branch_is_not_computed():
    model = Pair()
    mutator = with_logits(DifferentiableMutator(model), first=[-math.inf, 0, 0])
    model.first[0].register_forward_hook(lambda *_: pytest.fail('a branch of weight zero was run'))
    mutator.reset()
    model(torch.randn(2, 4))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_reaches_the_logits(dtype):
    model = Pair()
    mutator = DartsMutator(model)
    mutator.reset()
    with torch.autocast('cpu', dtype=dtype):
        output = model(torch.randn(4, 4))
    output.float().pow(2).sum().backward()
    assert all(logits.grad.abs().sum() > 0 and logits.grad.dtype == torch.float32 for logits in mutator.parameters())


def test_the_none_of_darts_takes_weight_from_the_others():
    mutator = with_logits(DartsMutator(Pair()), first=[0.0, 0.0, 0.0, math.log(3)])
    mutator.reset()
    assert mutator.status()['first'] == pytest.approx([1 / 6] * 3)
    plain = DartsMutator(Pair(), with_none=False)
    plain.reset()
    assert sum(plain.status()['first']) == pytest.approx(1)


@pytest.mark.parametrize('kind', [DiffMutableOP, OneHotMutableOP])
def test_a_choice_may_say_itself_what_its_logits_mean(kind):
    operations = dict(relu=dict(type='torch.nn.ReLU'), id=dict(type='torch.nn.Identity'))
    model = nn.Sequential(kind(operations, alias='op'))
    mutator = with_logits(MODELS.build(dict(type='mmrazor.DiffModuleMutator', model=model)), op=[0.0, math.log(3)])
    mutator.reset()
    weights = mutator.status()['op']
    assert weights == pytest.approx([0.25, 0.75]) if kind is DiffMutableOP else sorted(weights) == [0, 1]


# -- at the end ---------------------------------------------------------------------------------------------


def test_the_final_choice_is_the_greatest_logit_and_never_none():
    mutator = with_logits(
        DartsMutator(Cell()), cell__edge0=[0.5, 0.0, 9.0], cell__edge1=[0.0, 2.0, 0.0], cell__edge2=[1.0, 0.0, 0.0]
    )
    status = copy.deepcopy(mutator.status())
    final = mutator.export()
    # Edge 0 is nearly all "none", so the other two are stronger, and what is on edge 0 is not computed.
    assert final['switch'].tolist() == [False, True, True]
    assert [final[f'cell.edge{index}'].tolist() for index in range(3)] == [
        [False] * 3,
        [False, True, False],
        [True, False, False],
    ]
    assert mutator.status() == status
    assert mutator.export(readable=True)['switch'] == ['cell.edge1', 'cell.edge2']


def test_the_final_cell_extracts_to_its_chosen_operations():
    model = Cell()
    mutator = with_logits(
        DartsMutator(model), cell__edge0=[0.5, 0.0, 9.0], cell__edge1=[0.0, 2.0, 0.0], cell__edge2=[1.0, 0.0, 0.0]
    )
    plain = extract(model, mutator.export())
    x = torch.randn(2, 4)
    assert torch.allclose(plain(x), 2 * x + model.ops[2][0](3 * x), atol=1e-6)
    assert mutables_of(plain) == []
    assert len(list(plain.parameters())) == 2


def test_an_edge_that_another_node_takes_is_kept():
    class Two(Cell):
        def __init__(self):
            super().__init__()
            self.other = InputChoice(choose_from=['cell.edge0'], n_chosen=1, key='other')

        def forward(self, x):
            outputs = [op(x * (index + 1)) for index, op in enumerate(self.ops)]
            return self.switch(outputs) + self.other(outputs[:1])

    mutator = with_logits(
        DartsMutator(Two()), cell__edge0=[0.5, 0.0, 9.0], cell__edge1=[0.0, 2.0, 0.0], cell__edge2=[1.0, 0.0, 0.0]
    )
    assert mutator.export()['cell.edge0'].tolist() == [True, False, False]


def test_inputs_without_a_source_are_taken_last():
    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = LayerChoice([nn.Tanh(), nn.ReLU()], key='op')
            self.pick = InputChoice(choose_from=[InputChoice.NO_KEY, 'op'], n_chosen=1, key='pick')
            self.some = InputChoice(n_candidates=2, key='some')

        def forward(self, x):
            return self.some([x, self.pick([x, self.op(x)])])

    final = DartsMutator(Open()).export()
    assert final['pick'].tolist() == [False, True]
    assert final['some'].tolist() == [True, True]


def test_edges_of_a_route_are_ranked_by_their_operations():
    model = Node()
    mutator = with_logits(DifferentiableMutator(model), op0=[2.0, 0.0], op1=[0.1, 0.0], op2=[0.0, 3.0])
    assert 'route' not in mutator.choices
    assert dict(mutator.best_subnet()) == {'route': ['e0', 'e2'], 'op0': 'a', 'op2': 'b'}
    assert mutator.sample_choices() == dict(mutator.best_subnet())
    weighted = Node(with_arch_param=True)
    other = with_logits(DifferentiableMutator(weighted), route=[0.0, 1.0, 2.0], op0=[9.0, 0.0])
    assert other.best_subnet()['route'] == ['e1', 'e2']


def test_a_route_that_no_input_takes_chooses_its_edges_all_the_same():
    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.r1, self.r2 = (
                DiffChoiceRoute({name: nn.Linear(4, 4) for name in 'abc'}, num_chosen=2, with_arch_param=True, alias=key)
                for key in ('r1', 'r2')
            )
            self.switch = InputChoice(choose_from=['r1', 'r2'], n_chosen=1, key='switch')

        def forward(self, x):
            return self.switch([self.r1(x), self.r2(x)])

    final = DifferentiableMutator(Switched()).export()
    assert [int(final[key].sum()) for key in ('r1', 'r2', 'switch')] == [2, 2, 1]


def test_other_kinds_of_choices_are_those_of_every_mutator():
    mutator = DartsMutator(Pair())
    assert set(mutator.sample_choices('max')) == {'first', 'second'}
    torch.manual_seed(0)
    assert len({tuple(mutator.sample_choices('random').values()) for _ in range(60)}) == 9
    with pytest.raises(ConfigError, match="'minimum'"):
        mutator.sample_choices('minimum')


def test_choices_inside_choices_learn_and_only_the_reached_ones_are_final():
    inner = LayerChoice([nn.Tanh(), nn.ReLU()], key='inner')
    model = nn.Sequential(LayerChoice([nn.Sequential(nn.Linear(4, 4), inner), nn.Identity()], key='outer'))
    mutator = with_logits(DifferentiableMutator(model), outer=[0.0, 1.0], inner=[2.0, 0.0])
    mutator.reset()
    model(torch.randn(2, 4)).pow(2).sum().backward()
    assert all(logits.grad.abs().sum() > 0 for logits in mutator.parameters())
    assert dict(mutator.best_subnet()) == {'outer': 1}
    with_logits(mutator, outer=[1.0, 0.0])
    assert dict(mutator.best_subnet()) == {'outer': 0, 'inner': 0}


# -- copies and state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ALL)
def test_a_copy_keeps_its_logits_and_decides_alone(kind):
    model = Pair()
    mutator = kind(model)
    mutator.reset()
    other_model, other = copy.deepcopy((model, mutator))
    assert all(torch.equal(first, second) for first, second in zip(mutator.parameters(), other.parameters()))
    other.logits('first').data[0] = 50
    other.reset()
    assert other.model is other_model
    assert other_model.first.decision is not model.first.decision
    assert mutator.logits('first')[0] < 1


# -- Gumbel and ProxylessNAS ----------------------------------------------------------------------------------


def test_hard_gumbel_runs_one_candidate_of_each_choice():
    torch.manual_seed(0)
    model = Pair()
    mutator = GumbelMutator(model)
    runs = []
    for layer in (*model.first, *model.second):
        layer.register_forward_hook(lambda module, *_: runs.append(module))
    mutator.reset()
    model(torch.randn(2, 4)).sum().backward()
    assert len(runs) == 2
    assert all(logits.grad.abs().sum() > 0 for logits in mutator.parameters())
    soft = GumbelMutator(Pair(), hard=False)
    soft.reset()
    assert all(0 < weight < 1 for weight in soft.status()['first'])


@pytest.mark.parametrize('tau', [0, -1.0, math.nan])
def test_a_temperature_must_be_positive(tau):
    with pytest.raises(ConfigError, match='tau'):
        GumbelMutator(Pair(), tau=tau)


def test_proxyless_trains_weights_on_one_path_without_gradient_for_the_logits():
    torch.manual_seed(0)
    model = Pair()
    mutator = with_logits(ProxylessMutator(model), first=[0.0, 1.0, 2.0])
    taken = torch.zeros(3)
    for _ in range(1500):
        mutator.reset()
        taken += torch.tensor(mutator.status()['first'])
    assert torch.allclose(taken / 1500, torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0), atol=0.05)
    assert not model(torch.randn(2, 4)).pow(2).sum().requires_grad or all(p.grad is None for p in mutator.parameters())


def test_binary_gates_give_the_gradient_of_the_paper():
    torch.manual_seed(3)
    model = nn.Sequential(LayerChoice([nn.Linear(4, 4) for _ in range(5)], key='op')).double()
    mutator = ProxylessMutator(model).double()
    logits = mutator.logits('op')
    logits.data = torch.randn(5, dtype=torch.float64)
    x, target = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    with mutator.binary_gates():
        mutator.reset()
    (first, second), (active,) = mutator._pairs['op'], [i for i, w in enumerate(mutator.status()['op']) if w]
    output = model(x)
    assert torch.equal(output, model[0][active](x))
    loss = (output - target).pow(2).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    # The paper's formula: gradients of the gates by hand, then the softmax of the two.
    outer = 2 * (output - target).detach()
    gates = {index: float((outer * model[0][index](x).detach()).sum()) for index in (first, second)}
    p = torch.softmax(logits.detach()[[first, second]], 0)
    mean = float(p[0]) * gates[first] + float(p[1]) * gates[second]
    expected = torch.zeros(5, dtype=torch.float64)
    expected[first], expected[second] = p[0] * (gates[first] - mean), p[1] * (gates[second] - mean)
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_the_inactive_path_costs_no_backward():
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice([nn.Linear(4, 4) for _ in range(3)], key='op'))
    mutator = ProxylessMutator(model)
    with mutator.binary_gates():
        mutator.reset()
        model(torch.randn(2, 4)).sum().backward()
    (active,) = [i for i, weight in enumerate(mutator.status()['op']) if weight]
    assert [layer.weight.grad is not None for layer in model[0]] == [index == active for index in range(3)]


def test_rescaling_leaves_the_probabilities_of_the_other_paths():
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice([nn.Linear(4, 4) for _ in range(5)], key='op'))
    mutator = ProxylessMutator(model, init_std=1.0)
    before = mutator.probabilities()['op']
    optimizer = torch.optim.SGD(mutator.parameters(), lr=2.0)
    with mutator.binary_gates():
        mutator.reset()
        model(torch.randn(2, 4)).pow(2).sum().backward()
    optimizer.step()
    mutator.rescale()
    after = mutator.probabilities()['op']
    pair = mutator._pairs['op']
    others = [index for index in range(5) if index not in pair]
    assert torch.allclose(after[others], before[others], rtol=1e-5)
    assert not torch.allclose(after[pair], before[pair], rtol=1e-3)


@pytest.mark.parametrize('reduction', ['sum', 'mean', 'concat'])
def test_binary_gates_give_the_active_path_whatever_the_reduction(reduction):
    model = nn.Sequential(LayerChoice([nn.Identity() for _ in range(3)], reduction=reduction, key='c'))
    mutator = ProxylessMutator(model)
    with mutator.binary_gates():
        mutator.reset()
        assert torch.equal(model(torch.ones(1, 4)), torch.ones(1, 4))
