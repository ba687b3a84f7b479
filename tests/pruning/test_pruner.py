from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from strop.errors import BudgetError, ConfigError, GraphError, VerificationError
from strop.estimators import count
from strop.pruning import pruner as pruner_module
from strop.pruning.importance import IMPORTANCES
from strop.pruning.pruner import Pruner, prune
from strop.pruning.record import PruneRecord


class Convs(nn.Module):
    """A residual network of three convolutions, a depthwise one and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 1))
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.inner(x)
        return self.head(self.depthwise(x).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Convs()


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}, [module.training for module in model.modules()]


def assert_untouched(model, state):
    now = state_of(model)
    assert now[0].keys() == state[0].keys()
    assert all(torch.equal(value, state[0][name]) for name, value in now[0].items())
    assert now[1] == state[1]


def test_the_channels_with_the_least_weight_go_everywhere():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    net[0].weight.data = torch.tensor([[3.0, -4.0], [0.1, 0.1], [5.0, 1.0]]).double()
    net[2].weight.data = torch.tensor([[1.0, 9.0, 2.0], [3.0, 9.0, 4.0]]).double()
    slim = prune(net, torch.rand(2, 2).double(), ratio=0.4, importance={'type': 'l1', 'parts': 'out'}).model
    assert slim[0].weight.tolist() == [[3.0, -4.0], [5.0, 1.0]]
    assert slim[0].bias.tolist() == net[0].bias[[0, 2]].tolist()
    assert slim[2].weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert slim[2].bias.tolist() == net[2].bias.tolist()
    assert (slim[0].out_features, slim[2].in_features) == (2, 2)


def test_a_pruned_model_computes_what_the_original_does_without_those_channels(net, images):
    net.double().eval()
    images = images.double()
    slim, record = prune(net, images, ratio=0.5, importance='random', seed=1)
    masked = copy.deepcopy(net)
    step = record.steps[0]
    for name, tensors in {
        'stem': ['stem.weight', 'stem.bias', 'norm.weight', 'norm.bias', 'inner.3.weight', 'inner.3.bias'],
        'inner.0': ['inner.0.weight', 'inner.0.bias', 'inner.1.weight', 'inner.1.bias'],
    }.items():
        for tensor in tensors:
            value = masked.state_dict()[tensor]
            gone = [i for i in range(len(value)) if i not in step.kept[name]]
            value[gone] = 0
    assert torch.allclose(slim(images), _without_bias(masked, step.kept['stem'])(images), rtol=1e-12, atol=0)
    assert record.steps[0].error < 1e-12
    assert not torch.allclose(slim(images), net(images), rtol=1e-3)


def _without_bias(masked, kept):
    # The bias of the depthwise convolution is added behind the mask of its input.
    gone = [i for i in range(16) if i not in kept]
    masked.depthwise.bias.data[gone] = 0
    return masked


def real(name):
    torch.manual_seed(0)
    if name == 'densenet':
        return timm.models.DenseNet(growth_rate=16, block_config=(2, 2, 2, 2))
    return timm.create_model(name)


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_100', 'densenet', 'regnetx_002', 'convnext_atto'])
@pytest.mark.parametrize('scope', ['local', 'global'])
def test_real_models_lose_half_their_channels(name, scope):
    model = real(name).train()
    inputs = torch.rand(2, 3, 64, 64)
    state = state_of(model)
    slim, record = prune(model, inputs, ratio=0.5, scope=scope)
    assert_untouched(model, state)
    assert slim.training
    assert record.params[1] == sum(parameter.numel() for parameter in slim.parameters())
    assert record.params[1] < 0.42 * record.params[0]
    if scope == 'global':
        assert record.channels[1] <= 0.52 * record.channels[0] or name == 'regnetx_002'
    slim.eval()
    assert slim(inputs).shape == (2, 1000)


@pytest.mark.parametrize('attention', ['both', 'heads', 'head_dim', 'none'])
def test_a_vision_transformer(attention):
    torch.manual_seed(0)
    model = timm.create_model('vit_tiny_patch16_224', depth=2, img_size=64).double().eval()
    inputs = torch.rand(2, 3, 64, 64).double()
    slim, record = prune(model, inputs, ratio=0.5, attention=attention)
    shape = {'both': (2, 48), 'heads': (2, 64), 'head_dim': (3, 32), 'none': (3, 64)}[attention]
    assert all((block.attn.num_heads, block.attn.head_dim) == shape for block in slim.blocks)
    assert record.steps[0].error < 1e-12
    assert slim.blocks[0].mlp.fc1.out_features == 384
    assert slim.head.weight.shape == (1000, 96)


@pytest.mark.parametrize('importance', sorted(IMPORTANCES))
@pytest.mark.parametrize('scope', ['local', 'global'])
def test_every_importance_prunes(net, images, importance, scope):
    data = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])) for _ in range(2)]
    slim, record = prune(net, images, ratio=0.5, importance=importance, scope=scope, data=data, loss=nn.CrossEntropyLoss())
    assert record.importance == importance
    assert record.channels[1] == 20
    assert slim(images).shape == (2, 5)


def test_a_function_ranks(net, images):
    def last(unit, model):
        return torch.arange(unit.size)

    record = prune(net, images, ratio=0.5, importance=last).record
    assert record.importance == 'last'
    assert record.steps[0].kept['stem'] == tuple(range(8, 16))


def test_the_same_seed_removes_the_same(net, images):
    kept = [prune(net, images, ratio=0.5, importance='random', seed=seed).record.steps[0].kept for seed in (1, 1, 2)]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize(
    'budget', [{'macs': 0.5}, {'params': 0.4}, {'macs': '0.6x', 'params': 0.3}, {'params': 500}, {'macs': '50K'}]
)
@pytest.mark.parametrize('scope', ['local', 'global'])
def test_budgets_are_kept(net, images, budget, scope):
    before = count(net, images)
    slim, record = prune(net, images, budget=budget, scope=scope)
    after = count(slim, images)
    assert record.macs == (before.macs, after.macs)
    assert record.params == (before.params, after.params)
    for resource, value in budget.items():
        limit = {'0.6x': 0.6, '50K': 50_000}.get(value, value)
        original = getattr(before, resource)
        assert getattr(after, resource) <= (limit * original if limit < 1 else limit)
    assert slim(images).shape == (2, 5)


def test_scores_of_the_loss_are_weighed_by_what_an_index_costs():
    # An index of the first unit costs 4 + 16 products, of the second 16 + 64, of the third 16 + 2.
    net = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 64), nn.Linear(64, 2))

    def even(unit, model):
        return torch.ones(unit.size)

    even.is_loss = True
    options = {'budget': {'macs': 0.6}, 'importance': even, 'scope': 'global', 'max_ratio': 0.5}
    slim = prune(net, torch.rand(2, 4), **options).model
    assert (slim[0].out_features, slim[2].out_features) == (16, 64)
    assert 8 <= slim[1].out_features <= 9
    # Without prices the first of equal scores go first.
    assert prune(net, torch.rand(2, 4), weigh='none', **options).model[0].out_features == 8
    even.is_loss = False
    assert prune(net, torch.rand(2, 4), **options).model[0].out_features == 8
    assert prune(net, torch.rand(2, 4), weigh='macs', **options).model[0].out_features == 16


def test_a_budget_is_used_up():
    model = timm.create_model('mobilenetv2_100').eval()
    record = prune(model, torch.rand(2, 3, 64, 64), budget={'macs': 0.5}, verify=False).record
    assert 0.48 < record.macs[1] / record.macs[0] <= 0.5


def test_a_budget_out_of_reach_names_the_smallest(net, images):
    state = state_of(net)
    with pytest.raises(BudgetError, match='smallest that can be reached') as caught:
        prune(net, images, budget={'params': 0.01}, inplace=True)
    assert_untouched(net, state)
    least = int(str(caught.value).partition('can be reached is ')[2].split()[0])
    slim, record = prune(net, images, budget={'params': least})
    assert sum(parameter.numel() for parameter in slim.parameters()) == least == record.params[1]


def test_limits_make_the_smallest_larger(net, images):
    with pytest.raises(BudgetError, match='loosen'):
        prune(net, images, budget={'params': 0.3}, max_ratio=0.2)


def test_a_latency_budget_is_found_by_measuring(net, images, monkeypatch):
    measured = []

    def measure(budget, original, pruned, inputs):
        # A machine whose time is proportional to the channels of the stem.
        measured.append(pruned.stem.out_channels)
        return pruned.stem.out_channels / 16, float(pruned.stem.out_channels)

    monkeypatch.setattr(pruner_module, 'measured_share', measure)
    slim, record = prune(net, images, budget={'latency': 0.5})
    assert slim.stem.out_channels == 8
    assert record.latency == (0.5, 8.0)
    assert len(measured) <= 9
    assert '50.0 %' in str(record)
    assert prune(net, images, budget={'latency': '4ms'}).model.stem.out_channels == 4
    with pytest.raises(BudgetError, match=r'measured as 2\.000 ms'):
        prune(net, images, budget={'latency': 0.01})


def test_a_slow_moment_of_the_machine_is_measured_again(net, images, monkeypatch):
    tries = []

    def measure(budget, original, pruned, inputs):
        tries.append(pruned.stem.out_channels)
        # Every first look at a width is by luck 10 % too fast.
        share = pruned.stem.out_channels / 16 * (0.9 if tries.count(tries[-1]) == 1 else 1.0)
        return share, share

    monkeypatch.setattr(pruner_module, 'measured_share', measure)
    slim, record = prune(net, images, budget={'latency': 0.5})
    assert slim.stem.out_channels <= 8
    assert record.latency[0] <= 0.5


def test_latency_is_really_measured():
    model = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 8)).eval()
    record = prune(model, torch.rand(32, 64), budget={'latency': 0.7, 'runs': 3}).record
    assert record.latency[0] <= 0.7
    assert record.macs[1] < record.macs[0]


def test_steps_remove_more_and_more_with_training_between(net, images):
    seen = []

    def between(model, step):
        seen.append((step, model.stem.out_channels, model.inner[0].out_channels))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)

    slim, record = prune(net, images, ratio=0.5, steps=4, between=between)
    assert seen == [(0, 14, 21), (1, 12, 18), (2, 10, 15), (3, 8, 12)]
    assert [step.ratio for step in record.steps] == [0.125, 0.25, 0.375, 0.5]
    assert record.channels == (40, 20)
    assert net.stem.out_channels == 16
    assert slim.stem.out_channels == 8


@pytest.mark.parametrize('scope', ['local', 'global'])
@pytest.mark.parametrize('options', [{'ratio': 0.5}, {'budget': {'macs': 0.4}}])
def test_steps_reach_what_one_step_reaches(net, images, scope, options):
    one = prune(net, images, scope=scope, normalise='none', **options).record
    many = prune(net, images, scope=scope, normalise='none', steps=3, **options).record
    if 'ratio' in options:
        assert many.channels[1] == one.channels[1]
    else:
        assert many.macs[1] <= 0.4 * many.macs[0]
        assert many.steps[0].macs > many.steps[1].macs > many.steps[2].macs


def test_step_by_step(net, images):
    pruner = Pruner(net, images, ratio=0.5, steps=2)
    assert len(pruner) == 2
    with pytest.raises(ConfigError, match='Nothing was pruned yet'):
        pruner.record
    first = pruner.step()
    assert first.ratio == 0.25
    assert not pruner.finished
    assert pruner.model.stem.out_channels == 12
    pruner.step()
    assert pruner.finished
    with pytest.raises(ConfigError, match='All 2 steps are done'):
        pruner.step()
    assert len(pruner.record.steps) == 2


def test_a_pruned_model_can_be_pruned_again(net, images):
    first = prune(net, images, ratio=0.5).model
    second, record = prune(first, images, ratio=0.5)
    assert (second.stem.out_channels, second.inner[0].out_channels) == (4, 6)
    assert record.channels == (20, 10)
    vit = timm.create_model('vit_tiny_patch16_224', depth=1, img_size=64).eval()
    inputs = torch.rand(2, 3, 64, 64)
    twice = prune(prune(vit, inputs, ratio=0.3).model, inputs, ratio=0.3).model
    assert twice(inputs).shape == (2, 1000)


def test_in_place_with_an_optimizer(net, images):
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    net(images).sum().backward()
    optimizer.step()
    weight, moment = net.stem.weight, optimizer.state[net.stem.weight]['exp_avg'].clone()
    model, record = prune(net, images, ratio=0.5, optimizer=optimizer, inplace=True)
    assert model is net
    assert net.stem.out_channels == 8
    assert net.stem.weight is weight
    kept = list(record.steps[0].kept['stem'])
    assert torch.equal(optimizer.state[net.stem.weight]['exp_avg'], moment[kept])
    before = net.stem.weight.detach().clone()
    optimizer.zero_grad()
    net(images).sum().backward()
    optimizer.step()
    assert not torch.equal(net.stem.weight, before)


def test_in_place_without_a_check_needs_no_copy(net, images):
    expected = prune(net, images, ratio=0.5).model
    model, record = prune(net, images, ratio=0.5, verify=False, inplace=True)
    assert model is net
    assert record.steps[0].error is None
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), expected.parameters()))


def test_in_place_over_steps_with_training(net, images):
    optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)

    def between(model, step):
        optimizer.zero_grad()
        model(images).sum().backward()
        optimizer.step()

    model, _ = prune(net, images, ratio=0.5, steps=3, between=between, optimizer=optimizer, inplace=True)
    assert model is net
    assert all(optimizer.state[parameter]['momentum_buffer'].shape == parameter.shape for parameter in net.parameters())


def test_whatever_fails_the_model_and_its_optimizer_are_as_they_were(net, images):
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    net(images).sum().backward()
    optimizer.step()
    state, moments = state_of(net), copy.deepcopy(optimizer.state_dict())
    parameters = list(net.parameters())
    grads = [parameter.grad.clone() for parameter in parameters]

    def between(model, step):
        model(images).sum().backward()
        optimizer.step()
        if step == 1:
            raise RuntimeError('out of data')

    with pytest.raises(RuntimeError, match='out of data'):
        prune(net, images, ratio=0.5, steps=3, between=between, optimizer=optimizer, inplace=True)
    assert_untouched(net, state)
    assert net.stem.out_channels == 16
    assert all(one is other for one, other in zip(net.parameters(), parameters))
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(parameters, grads))
    again = optimizer.state_dict()
    assert again['param_groups'] == moments['param_groups']
    for number, values in moments['state'].items():
        assert all(torch.equal(value, again['state'][number][key]) for key, value in values.items())
    net(images).sum().backward()
    optimizer.step()


@pytest.mark.parametrize('inplace', [False, True])
def test_an_unverified_model_is_never_returned(net, images, monkeypatch, inplace):
    def refuse(original, slim, slicing, inputs):
        raise VerificationError('differs')

    monkeypatch.setattr(pruner_module, 'verify', refuse)
    state = state_of(net)
    with pytest.raises(VerificationError):
        prune(net, images, ratio=0.5, inplace=inplace)
    assert_untouched(net, state)
    assert prune(net, images, ratio=0.5, verify=False).record.steps[0].error is None


def test_batch_norms_are_measured_again(net, images):
    batches = [torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    net.train()
    net(torch.rand(4, 3, 8, 8))
    slim = prune(net, images, ratio=0.5, recalibrate=batches).model
    hidden = [slim.stem(batch).mean((0, 2, 3)).detach() for batch in batches]
    assert torch.allclose(slim.norm.running_mean, torch.stack(hidden).mean(0), atol=1e-6)
    assert net.norm.running_mean.shape == (16,)
    own, _ = prune(net, images, ratio=0.5, recalibrate=batches, inplace=True)
    assert own is net
    assert torch.allclose(net.norm.running_mean, slim.norm.running_mean, atol=1e-6)


def test_lengths_are_rounded_for_the_machine():
    model = timm.create_model('mobilenetv2_100').eval()
    record = prune(model, torch.rand(2, 3, 64, 64), ratio=0.4, round_to=8, verify=False).record
    assert all(unit.after % 8 == 0 for unit in record.units)


def test_layers_can_be_left_out_and_limited(net, images):
    slim = prune(net, images, ratio=0.5, ignored=['inner.0']).model
    assert (slim.inner[0].out_channels, slim.stem.out_channels) == (24, 8)
    slim = prune(net, images, ratio=0.5, limits={'inner.*': (0, 0.25), 'stem': 0.25}).model
    assert (slim.inner[0].out_channels, slim.stem.out_channels) == (18, 12)


def test_several_inputs_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, a, b=None):
            return self.head((self.one(a) + self.two(b)).relu())

    for inputs in ({'a': torch.rand(2, 3), 'b': torch.rand(2, 4)}, (torch.rand(2, 3), torch.rand(2, 4))):
        slim = prune(Two(), inputs, ratio=0.5).model
        assert (slim.one.out_features, slim.two.out_features, slim.head.in_features) == (4, 4, 4)


def test_units_without_scores_are_noted(images):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))
    slim, record = prune(net, images, ratio=0.5, importance='bn_scale')
    assert (slim[0].out_channels, slim[2].out_channels) == (4, 6)
    assert "no scores for 1 units, which stay whole: '2'" in record.notes[0]


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({}, 'ratio=None, budget=None'),
        ({'ratio': 0.5, 'budget': {'macs': 0.5}}, 'one of them only'),
        ({'ratio': 0}, 'more than 0'),
        ({'ratio': 1.0}, 'less than 1'),
        ({'ratio': -0.5}, 'more than 0'),
        ({'ratio': 0.97}, 'above max_ratio'),
        ({'ratio': 0.5, 'importance': 'tailor'}, "Did you mean 'taylor'"),
        ({'ratio': 0.5, 'importance': 'taylor'}, 'give `data='),
        ({'ratio': 0.5, 'steps': 0}, '1 or more'),
        ({'ratio': 0.5, 'ignored': ['layer9']}, "'layer9' names no channel unit"),
        ({'ratio': 0.5, 'limits': {'head': 0.5}}, r'head\.weight.*output'),
        ({'ratio': 0.5, 'scope': 'all'}, "'local', 'global'"),
        ({'ratio': 0.2, 'round_to': 32}, 'removes nothing'),
        ({'ratio': 0.2, 'round_to': 32, 'steps': 2}, 'removes nothing'),
        ({'ratio': 0.5, 'optimizer': torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)}, 'inplace=True'),
        ({'ratio': 0.5, 'steps': 2, 'importance': 'activation', 'data': iter([1])}, 'is an iterator'),
        ({'budget': {'mac': 0.5}}, "Did you mean 'macs'"),
        ({'ratio': 0.5, 'weigh': 'flops'}, "'macs', 'params'"),
    ],
)
def test_bad_arguments_are_told_and_change_nothing(net, images, options, said):
    state = state_of(net)
    with pytest.raises(ConfigError, match=said):
        prune(net, images, **{'inplace': 'optimizer' not in options, **options})
    assert_untouched(net, state)


def test_an_optimizer_of_another_model_is_told(net, images):
    with pytest.raises(ConfigError, match='no parameter of this model'):
        prune(net, images, ratio=0.5, optimizer=torch.optim.SGD(Convs().parameters(), 0.1), inplace=True)


def test_a_compiled_model_gives_the_plain_one(net, images):
    slim = prune(torch.compile(net), images, ratio=0.5).model
    assert type(slim) is Convs
    assert slim.stem.out_channels == 8


def test_tensors_kept_as_plain_attributes_are_cut_too():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)
            self.scale = torch.rand(8) + 1

        def forward(self, x):
            return self.two(self.one(x) * self.scale)

    for importance in ('l1', 'bn_scale', 'taylor'):
        net, x = Plain(), torch.rand(2, 3)
        options = {'data': [(x, torch.tensor([0, 1]))], 'loss': nn.CrossEntropyLoss()}
        if importance == 'bn_scale':
            with pytest.raises(ConfigError, match='without a score'):
                prune(net, x, ratio=0.5, importance=importance)
            continue
        slim = prune(net, x, ratio=0.5, importance=importance, **options).model
        assert slim.scale.shape == (4,)
        assert slim(x).shape == (2, 2)


def test_recurrent_layers_and_embeddings():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.lstm, self.head = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, tokens):
            return self.head(self.lstm(self.words(tokens))[0])

    tokens = torch.randint(0, 20, (2, 5))
    data = [(tokens, torch.randint(0, 3, (2, 5)))]

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).transpose(1, 2), batch[1])

    for importance in ('l2', 'fpgm', 'taylor', 'hessian', 'activation'):
        slim = prune(Words(), tokens, ratio=0.5, importance=importance, data=data, loss=loss).model
        assert slim.words.weight.shape == (20, 4)
        assert slim.lstm.hidden_size == 6
        assert slim(tokens).shape == (2, 5, 3)


def test_an_unknown_option_of_a_pruner_is_told(net, images):
    with pytest.raises(ConfigError, match="Did you mean 'ratio'"):
        Pruner(net, images, ration=0.5)


@pytest.mark.parametrize('inputs', [None, 'images', torch.rand(2, 5, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.long)])
def test_inputs_that_do_not_fit_are_told(net, inputs):
    state = state_of(net)
    with pytest.raises(GraphError):
        prune(net, inputs, ratio=0.5)
    assert_untouched(net, state)


def test_a_model_that_raises_is_told_with_its_own_error(images):
    class Raising(Convs):
        def forward(self, x):
            raise KeyError('nothing here')

    with pytest.raises(GraphError, match='nothing here'):
        prune(Raising(), images, ratio=0.5)


def test_something_else_than_a_model_is_refused(images):
    with pytest.raises(ConfigError, match=r'must be an nn\.Module'):
        prune(lambda x: x, images, ratio=0.5)


def test_wrapped_models_are_refused(net, images, tmp_path):
    with pytest.raises(ConfigError, match='before the model is wrapped: it is a DataParallel'):
        prune(nn.DataParallel(net), images, ratio=0.5)
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(net)
        with pytest.raises(ConfigError, match='it is a DistributedDataParallel'):
            prune(wrapped, images, ratio=0.5)
        with pytest.raises(ConfigError, match="its module '0' is a DistributedDataParallel"):
            prune(nn.Sequential(wrapped), images, ratio=0.5)
    finally:
        torch.distributed.destroy_process_group()


def test_limits_are_spread_over_the_steps_too(net, images):
    lengths = []
    slim, _ = prune(
        net, images, ratio=0.25, limits={'inner.0': 0.75, 'stem': (0.5, 0.6)}, steps=3,
        between=lambda model, step: lengths.append((model.inner[0].out_channels, model.stem.out_channels)),
    )  # fmt: skip
    assert lengths[:2] == [(18, 13), (12, 10)]
    assert (slim.inner[0].out_channels, slim.stem.out_channels) == (6, 8)


def test_a_latency_that_is_never_seen_again_is_a_budget_error(net, images, monkeypatch):
    looks = []

    def measure(budget, original, pruned, inputs):
        looks.append(pruned.stem.out_channels / 16)
        return (looks[-1], looks[-1]) if len(looks) <= 7 else (0.6, 0.6)

    monkeypatch.setattr(pruner_module, 'measured_share', measure)
    with pytest.raises(BudgetError, match=r'measured as 0\.600 ms'):
        prune(net, images, budget={'latency': 0.5})


def test_numbers_of_numpy_are_recorded(net, images, tmp_path):
    record = prune(net, images, ratio=np.float32(0.5), seed=np.int64(3)).record
    record.save(tmp_path / 'record.json')
    assert PruneRecord.load(tmp_path / 'record.json') == record


def test_layers_that_only_training_uses_are_named():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.auxiliary = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x):
            x = self.body(x).relu()
            return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)

    notes = prune(Auxiliary(), torch.rand(2, 4), ratio=0.5).record.notes
    assert any('auxiliary.weight' in note and 'training' in note for note in notes)


def test_a_model_without_channels_is_told_whatever_the_importance():
    data = [(torch.rand(2, 4), torch.tensor([0, 1]))]
    for options in ({}, {'importance': 'taylor', 'data': data, 'loss': nn.CrossEntropyLoss()}):
        with pytest.raises(ConfigError, match='no channels that can be pruned'):
            prune(nn.Linear(4, 2), torch.rand(2, 4), ratio=0.5, **options)


def test_a_record_of_a_smaller_config_is_not_replayed(net, images):
    record = dataclasses.replace(prune(net, images, ratio=0.5).record, scope='config')
    with pytest.raises(ConfigError, match='from_pretrained'):
        record.replay(net, images)
