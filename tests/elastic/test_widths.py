"""A model at an active width equals the static one of that width, and is whole outside of its forward."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strop.elastic import ElasticWidths, l1_scores
from strop.elastic.widths import CHILD
from strop.errors import BindingError, ConfigError, GraphError
from strop.graph import channel_units
from strop.mutables import (
    L1MutableChannelUnit,
    OneShotMutableChannelUnit,
    SequentialMutableChannelUnit,
    apply_subnet,
    attachments,
    extract,
    space_of,
)
from strop.randomness import counter_rng


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1),
        nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    ).double()  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return model


X = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def static(model, widths):
    """Cut a copy by hand, without the machinery of the active width."""
    plain = copy.deepcopy(model)
    plain._modules.pop(CHILD)
    plain._forward_hooks.clear()
    plain._forward_pre_hooks.clear()
    plain._state_dict_pre_hooks.clear()
    if widths.slicing is not None:
        widths.slicing.apply(plain, inplace=True)
    return plain


def chain(model, inputs=None):
    return channel_units(model, X if inputs is None else inputs)


def elastic(seed=0, **options):
    model = small(seed)
    return model, ElasticWidths(model, chain(model), **options)


CASES = [{}, {'0': 3}, {'3': 2}, {'0': 5, '3': 4}, {'0': 2, '3': 2}]
INDICES = [{'0': [0, 4, 7]}, {'3': [1, 2, 5]}, {'0': [2, 3], '3': [0, 5]}]


def choose(widths, case):
    first = next(iter(case.values()), 0)
    widths.set_indices(case) if isinstance(first, list) else widths.set(case)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('case', CASES + INDICES, ids=str)
def test_active_equals_static(case, training):
    model, widths = elastic()
    choose(widths, case)
    model.train(training)
    plain = static(model, widths).train(training)
    torch.testing.assert_close(model(X), plain(X), rtol=0, atol=1e-12)
    extracted = widths.extract(model)
    assert not attachments(extracted)
    # In training mode the forwards above moved the statistics of both: the copy comes after them.
    torch.testing.assert_close(extracted.eval()(X), plain.eval()(X), rtol=0, atol=1e-12)


def test_full_width_is_the_model_itself():
    model = small()
    expected = model.eval()(X)
    ElasticWidths(model, chain(model))
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize('case', CASES + INDICES, ids=str)
def test_gradients_arrive_in_the_whole_parameters(case):
    model, widths = elastic()
    choose(widths, case)
    plain = static(model, widths)
    model(X).square().sum().backward()
    plain(X).square().sum().backward()
    small_grads = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter)
        places = torch.arange(parameter.numel()).view(parameter.shape)
        if widths.slicing is not None:
            places = widths.slicing.take(name, places)
        expected.view(-1)[places.reshape(-1)] = small_grads[name].reshape(-1)
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('case', [{'0': 3}, {'0': [0, 4, 7]}], ids=str)
def test_statistics_of_the_active_channels_are_updated_in_place(case):
    model, widths = elastic()
    choose(widths, case)
    before = model[1].running_mean.clone()
    plain = static(model, widths).train()
    model.train()(X)
    plain(X)
    active = list(range(3)) if isinstance(case['0'], int) else case['0']
    torch.testing.assert_close(model[1].running_mean[active], plain[1].running_mean)
    idle = [index for index in range(8) if index not in active]
    assert torch.equal(model[1].running_mean[idle], before[idle])
    assert model[1].num_batches_tracked == 1


def test_the_model_is_whole_outside_of_its_forward():
    model, widths = elastic()
    names = [name for name, _ in model.named_parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    widths.set({'0': 3})
    model.eval()(X)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert model[0].weight is dict(model.named_parameters())['0.weight']
    assert model[0].out_channels == 8


def test_a_forward_that_fails_leaves_the_model_whole():
    model, widths = elastic()
    widths.set({'0': 3})
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 4, 6, 6, dtype=torch.float64))
    assert model[0].weight.shape == (8, 3, 3, 3)
    assert model[0].out_channels == 8
    assert model(X).shape == (4, 5)


def test_an_interrupted_forward_leaves_nothing_behind():
    model, widths = elastic()
    widths.set({'0': 3})
    expected = model.eval()(X)
    names = {name: value.shape for name, value in model.state_dict().items()}

    def interrupt(*_):
        raise KeyboardInterrupt

    for _ in range(2):
        handle = model[4].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(X)
        handle.remove()
        assert {name: value.shape for name, value in model.state_dict().items()} == names
    with pytest.raises(KeyboardInterrupt):
        handle = model[4].register_forward_hook(interrupt)
        model(X)
    handle.remove()
    widths.set({})
    assert torch.equal(model(X), small().eval()(X))
    widths.set({'0': 3})
    assert torch.equal(model(X), expected)


def test_a_model_that_calls_itself():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x, again=True):
            x = self.last(torch.tanh(self.first(x)))
            return self.last(torch.tanh(self.first(self(x, again=False)))) if again else x

    model = Twice().double()
    x = torch.randn(4, 3, dtype=torch.float64)
    widths = ElasticWidths(model, chain(model, x))
    widths.set({'first': 5})
    torch.testing.assert_close(model(x), static(model, widths)(x))
    assert model.first.weight.shape == (8, 3)


def test_compiled_models_follow_the_widths():
    model, widths = elastic()
    model.eval()
    compiled = torch.compile(model, backend='eager')
    for case in ({'0': 3}, {'0': 5, '3': 2}, {}):
        widths.set(case)
        torch.testing.assert_close(compiled(X), model(X))


def test_copies_and_pickles_keep_their_own_widths():
    model, widths = elastic()
    widths.set({'0': 3, '3': 4})
    expected = model.eval()(X)
    for copied in (copy.deepcopy(model), pickle.load(io.BytesIO(pickle.dumps(model)))):
        assert torch.equal(copied(X), expected)
        copied._modules[CHILD].set({'0': 8})
        assert torch.equal(model(X), expected)
        assert not torch.equal(copied(X), expected)


def test_active_block_serves_recomputed_activations():
    from torch.utils.checkpoint import checkpoint_sequential

    class Checkpointed(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return checkpoint_sequential(self.body, 2, x, use_reentrant=False)

    body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    model = Checkpointed(body)
    x = torch.randn(4, 3, dtype=torch.float64)
    widths = ElasticWidths(model, chain(model, x))
    widths.set({'body.0': 3, 'body.2': 2})
    plain = static(model, widths)
    with widths.active(model):
        model(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(body[0].weight.grad[:3], plain.body[0].weight.grad)
    assert body[0].weight.shape == (8, 3)


def test_suspended_runs_at_full_width():
    model, widths = elastic()
    expected = model.eval()(X)
    widths.set({'0': 2})
    with widths.suspended():
        assert torch.equal(model(X), expected)
    assert not torch.equal(model(X), expected)


def test_release_gives_the_model_back():
    model, widths = elastic()
    expected = model.eval()(X)
    widths.set({'0': 2})
    widths.release(model)
    assert torch.equal(model(X), expected)
    assert len(model) == 9
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    ElasticWidths(model, chain(model))


def test_a_recurrent_layer_is_sliced():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 6)
            self.lstm = nn.LSTM(6, 4, batch_first=True)

        def forward(self, x):
            return self.lstm(self.first(x))[0]

    model = Recurrent().double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    widths = ElasticWidths(model, chain(model, x))
    widths.set({name: unit.size // 2 for name, unit in widths.graph.units.items()})
    assert widths.current['first'] == 3
    plain = static(model, widths)
    torch.testing.assert_close(model(x), plain(x))
    assert model.lstm.input_size == 6


# -- decisions ---------------------------------------------------------------------------------


def test_widths_follow_the_decisions():
    model = small()
    graph = chain(model)
    units = [OneShotMutableChannelUnit(8, [0.25, 0.5, 1.0], key='0'), SequentialMutableChannelUnit(6, key='3')]
    widths = ElasticWidths(model, graph, units)
    assert widths.full
    assert space_of(model).count() == 18
    apply_subnet(model, {'0': 0.5, '3': 3})
    output = model.eval()(X)
    assert widths.current == {'0': 4, '3': 3}
    plain = extract(model, {'0': 0.5, '3': 3})
    assert plain[0].out_channels == 4
    torch.testing.assert_close(plain(X), output)
    with pytest.raises(BindingError, match='decided by 2 mutables'):
        widths.set({'0': 2})


def test_ranked_units_keep_the_strongest_channels_until_the_width_changes():
    model = small()
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(8.0).flip(0).view(8, 1, 1, 1).expand(8, 3, 3, 3) + 0.1)
    unit = L1MutableChannelUnit(8, key='0')
    widths = ElasticWidths(model, chain(model), [unit])
    with torch.no_grad():
        model[0].weight[6] += 100
    unit.decide(3)
    output = model.eval()(X)
    assert unit.kept == (0, 1, 6)
    torch.testing.assert_close(extract(model)(X), output)
    with torch.no_grad():
        model[0].weight[5] += 1000
    model(X)
    assert unit.kept == (0, 1, 6), 'training does not exchange channels'
    unit.decide(4)
    model(X)
    assert unit.kept == (0, 1, 5, 6)
    unit.decide(2)
    model(X)
    assert unit.kept == (5, 6)
    assert list(widths.indices['0']) == [5, 6]


def test_l1_scores_by_hand():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 0.5], [3.0, 3.0]]))
    assert l1_scores(model, chain(model, torch.zeros(2, 2)).units['0']).tolist() == [3.0, 0.5, 6.0]


# -- batch norms of their own ---------------------------------------------------------------------


def test_each_width_has_batch_norms_of_its_own():
    model, widths = elastic()
    settings = [{'0': 2, '3': 2}, {'0': 4, '3': 3}, {}]
    widths.switch_norms(model, settings)
    outputs = []
    for setting in settings:
        widths.set(setting)
        outputs.append(model.eval()(X))
        torch.testing.assert_close(outputs[-1], static_without_norms(setting)(X))
    before = model[1].running_mean.clone()
    widths.set(settings[0])
    model.train()(X)
    assert torch.equal(model[1].running_mean, before)
    model.eval()
    expected = model(X)
    assert not torch.equal(expected, outputs[0])
    for setting, output in zip(settings[1:], outputs[1:]):
        widths.set(setting)
        assert torch.equal(model(X), output), 'one width must not move the statistics of another'
    widths.set(settings[0])
    torch.testing.assert_close(widths.extract(model)(X), expected)
    with pytest.raises(ConfigError, match='none of them'):
        widths.set({'0': 3})
        model(X)


def static_without_norms(setting):
    model, widths = elastic()
    widths.set(setting)
    return static(model, widths).eval()


def test_equal_widths_cannot_have_norms_of_their_own():
    model, widths = elastic()
    with pytest.raises(ConfigError, match='must differ'):
        widths.switch_norms(model, [{'0': 2}, {'0': 2}])


# -- bad input ----------------------------------------------------------------------------------


def test_bad_input_changes_nothing():
    model, widths = elastic()
    widths.set({'0': 3})
    for wrong in ({'nothing': 1}, {'0': 9}, {'0': 0}):
        with pytest.raises(GraphError):
            widths.set(wrong)
        assert widths.current == {'0': 3, '3': 6}
    with pytest.raises(BindingError, match='has elastic widths already'):
        ElasticWidths(model, chain(small()))


def test_decisions_must_fit_the_graph():
    model = small()
    with pytest.raises(GraphError, match='no channel unit'):
        ElasticWidths(model, chain(model), [SequentialMutableChannelUnit(8, key='9')])
    with pytest.raises(GraphError, match='has 8 channels'):
        ElasticWidths(model, chain(model), [SequentialMutableChannelUnit(7, key='0')])
    assert CHILD not in model._modules
    assert not model._forward_hooks


# -- real models and random ones -------------------------------------------------------------------


def chosen_at_random(graph, number, indices):
    """Return random lengths that fit together, or random channels of such lengths."""
    rng = counter_rng(0, 'widths', number)
    lengths = graph.fit({unit.name: int(rng.integers(unit.minimum, unit.size + 1)) for unit in graph})
    if not indices:
        return lengths
    return {name: sorted(rng.choice(graph.units[name].size, length, replace=False)) for name, length in lengths.items()}


def check_equal(model, widths, x):
    """Outputs, gradients and statistics of the active width must be those of the model that is cut to it."""
    plain = static(model, widths)
    model.train()
    plain.train()
    outputs = [net(x) for net in (model, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    model.zero_grad()
    for output in outputs:
        output.square().mean().backward()
    small_grads = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert small_grads[name] is None
            continue
        places = torch.arange(parameter.numel()).view(parameter.shape)
        if widths.slicing is not None:
            places = widths.slicing.take(name, places)
        expected = torch.zeros_like(parameter)
        expected.view(-1)[places.reshape(-1)] = small_grads[name].reshape(-1)
        scale = max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(parameter.grad / scale, expected / scale, rtol=1e-8, atol=1e-10)
    extracted = widths.extract(model).eval()
    torch.testing.assert_close(extracted(x), model.eval()(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(plain.eval()(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('indices', [False, True], ids=['first', 'any'])
@pytest.mark.parametrize(('name', 'size'), [('resnet18', 32), ('mobilenetv2_100', 32), ('vit_tiny_patch16_224', 32)])
def test_real_models(name, size, indices):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    options = {'img_size': size, 'depth': 4} if name.startswith('vit') else {'drop_rate': 0.0}
    model = timm.create_model(name, num_classes=10, **options).double()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    widths = ElasticWidths(model, chain(model, x))
    case = chosen_at_random(widths.graph, 1, indices)
    (widths.set_indices if indices else widths.set)(case)
    assert sum(widths.current.values()) < 0.8 * sum(unit.size for unit in widths.graph)
    check_equal(model, widths, x)


class Random(nn.Module):
    """A small network of randomly chosen parts: grouped and depthwise convolutions, residuals, concatenations, attention."""

    def __init__(self, parts, width):
        super().__init__()
        self.parts = parts
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        blocks = []
        for part in parts:
            if part == 'cat':
                blocks.append(nn.ModuleList([nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, width, 3, padding=1)]))
            elif part == 'attention':
                blocks.append(nn.ModuleList([nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)]))
            elif part == 'grouped':
                blocks.append(nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, groups=2), nn.GroupNorm(2, width)]))
            elif part == 'depthwise':
                blocks.append(nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width)]))
            else:
                inner = nn.Conv2d(width, width + 3, 3, padding=1), nn.BatchNorm2d(width + 3), nn.Conv2d(width + 3, width, 1)
                blocks.append(nn.ModuleList(inner))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.stem(x)
        for part, block in zip(self.parts, self.blocks):
            if part == 'cat':
                x = block[1](torch.cat([x, torch.tanh(block[0](x))], 1))
            elif part == 'attention':
                b, _, h, w = x.shape
                tokens = block[0](x.flatten(2).transpose(1, 2))
                q, k, v = block[1](tokens).reshape(b, h * w, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
                y = (q @ k.transpose(-2, -1) * 0.1).softmax(-1) @ v
                x = x + block[2](y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(b, -1, h, w)
            elif part in ('grouped', 'depthwise'):
                x = torch.tanh(block[1](block[0](x)))
            else:
                x = x + block[2](torch.relu(block[1](block[0](x))))
        return self.head(x.mean((2, 3)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    parts=st.lists(st.sampled_from(['cat', 'attention', 'grouped', 'depthwise', 'residual']), min_size=1, max_size=4),
    width=st.sampled_from([8, 12]),
    seed=st.integers(0, 100),
    indices=st.booleans(),
)
def test_random_networks(parts, width, seed, indices):
    torch.manual_seed(seed)
    model = Random(parts, width).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = model.eval()(x)
    widths = ElasticWidths(model, chain(model, x))
    assert torch.equal(model(x), expected)
    case = chosen_at_random(widths.graph, seed, indices)
    (widths.set_indices if indices else widths.set)(case)
    check_equal(model, widths, x)


def test_shared_weights_are_hidden_in_every_place():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 8)
            self.again = nn.Linear(6, 8)
            self.again.weight = self.first.weight
            self.last = nn.Linear(8, 2)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)) + torch.tanh(self.again(x)))

    model = Tied().double()
    x = torch.randn(3, 6, dtype=torch.float64)
    widths = ElasticWidths(model, chain(model, x))
    (name,) = widths.graph.units
    widths.set({name: 3})
    plain = static(model, widths)
    assert plain.again.weight is plain.first.weight
    torch.testing.assert_close(model(x), plain(x))
    model(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(model.first.weight.grad[:3], plain.first.weight.grad)


def test_a_buffer_that_the_forward_exchanges():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.last = nn.Linear(4, 2)
            self.register_buffer('average', torch.zeros(4, dtype=torch.float64))

        def forward(self, x):
            x = self.first(x)
            self.average = 0.5 * self.average + x.detach().mean(0)
            return self.last(x - self.average)

    model = Counter().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    widths = ElasticWidths(model, chain(model, x))
    (name,) = widths.graph.units
    for kept in (2, [1, 3]):
        before = model.average.clone()
        choose(widths, {name: kept})
        plain = static(model, widths)
        torch.testing.assert_close(model(x), plain(x))
        assert model.average.shape == (4,)
        active = [0, 1] if kept == 2 else kept
        idle = [index for index in range(4) if index not in active]
        assert torch.equal(model.average[idle], before[idle])
        torch.testing.assert_close(model.average[active], plain.average)
        assert 'average' in dict(model.named_buffers())


def test_sorting_by_scores():
    model, widths = elastic()
    expected = model.eval()(X)
    names = widths.graph.units
    widths.sort(model, {name: torch.rand(unit.size) for name, unit in names.items()})
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-12)
    widths.sort(model)
    assert model[0].weight.abs().sum((1, 2, 3)).diff().max() <= 0
    widths.switch_norms(model, [{'0': 2}])
    with pytest.raises(BindingError, match='Sort the channels before'):
        widths.sort(model)


def test_chosen_channels_are_followed_where_sorting_puts_them():
    scores = torch.tensor([1.0, 5.0, 2.0, 7.0, 3.0, 8.0, 4.0, 6.0])
    model, widths = elastic()
    widths.set_indices({'0': [0, 5, 6]})
    expected = model.eval()(X)
    widths.sort(model, {'0': scores})
    assert widths.indices['0'].tolist() == [0, 4, 7]  # 5 has the greatest score, 6 the fifth, 0 the least
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-12)
    widths.set({'0': 3})
    widths.sort(model, {'0': scores})
    assert widths.indices['0'].tolist() == [0, 1, 2], 'the first ones stay the first ones'

    model = small()
    with torch.no_grad():
        model[0].weight.copy_((torch.arange(8.0) + 1).view(8, 1, 1, 1).expand(8, 3, 3, 3))
    unit = L1MutableChannelUnit(8, key='0')
    widths = ElasticWidths(model, chain(model), [unit])
    unit.decide(3)
    expected = model.eval()(X)
    assert unit.kept == (5, 6, 7)
    widths.sort(model)
    assert unit.kept == (0, 1, 2)
    torch.testing.assert_close(model(X), expected)
    unit.decide(2)
    model(X)
    assert unit.kept == (0, 1)


def test_indices_that_are_none_are_refused():
    _, widths = elastic()
    size = widths.graph.units['0'].size
    for wrong, message in (
        (torch.tensor([True] * 3 + [False] * (size - 3)), 'got a mask'),
        ([99] * size, 'has indices 0 to'),
        ([0] * size, 'kept twice'),
        ([0.9, 2.2], 'are ints'),
    ):
        with pytest.raises(GraphError, match=message):
            widths.set_indices({'0': wrong})
        assert widths.current['0'] == size
    widths.set_indices({'0': list(range(size))})
    assert widths.current['0'] == size


def test_autocast_and_functional_calls():
    model, widths = elastic()
    model = model.float()
    widths.set({'0': 3})
    plain = static(model, widths).eval()
    model.eval()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(model(X.float()), plain(X.float()))
    doubled = {name: 2 * value for name, value in model.named_parameters()}
    slices = {name: 2 * value for name, value in plain.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(model, doubled, X.float()), torch.func.functional_call(plain, slices, X.float())
    )


def test_two_steps_of_an_optimizer_equal_those_of_the_static_model():
    model, widths = elastic()
    widths.set({'0': 4, '3': 3})
    plain = static(model, widths)
    for net in (model, plain):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            net.train()(X).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(widths.extract(model).eval()(X), plain.eval()(X))


class Concatenated(nn.Module):
    """A batch norm over the channels of two layers, so that what stays of it is no prefix."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.norm(torch.cat([x, self.b(x)], 1)))


def test_norms_of_a_width_over_concatenated_channels_are_extracted():
    torch.manual_seed(0)
    model, x = Concatenated().eval(), torch.rand(2, 3, 4, 4)
    widths = ElasticWidths(model, channel_units(model, x))
    widths.switch_norms(model, [{'a': 4, 'b': 4}])
    widths.set({'a': 4, 'b': 4})
    norm = widths.norms[0][0]
    with torch.no_grad():
        norm.weight.uniform_(1, 5)
        norm.running_mean.uniform_(-1, 1)
    assert torch.allclose(widths.extract(model)(x), model(x), atol=1e-5)


def test_plain_attributes_have_no_l1_scores_of_their_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
            self.scale = torch.rand(8) + 1

        def forward(self, x):
            return self.b(self.a(x) * self.scale)

    net, x = Scaled(), torch.rand(2, 3)
    (unit,) = channel_units(net, x).units.values()
    expected = net.a.weight.abs().sum(1).double()
    assert torch.allclose(l1_scores(net, unit) / l1_scores(net, unit).sum(), expected / expected.sum())
