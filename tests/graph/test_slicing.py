from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from strop.errors import GraphError, VerificationError
from strop.graph import channel_units, slicing, verify

TOKENS = torch.linspace(-1, 1, 2 * 6 * 12).sin().reshape(2, 6, 12)
IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).cos().reshape(2, 3, 8, 8)


class Attention(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.stem = nn.Linear(12, dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x):
        x = self.stem(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.head((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).reshape(b, n, c))


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(self.norm(self.stem(x)).relu()).mean((2, 3)))


class Kept(nn.Module):
    """Keeps its width in every place that a module can keep it."""

    def __init__(self):
        super().__init__()
        width = 8
        self.stem = nn.Linear(12, width)
        self.head = nn.Linear(width, 4)
        self.config = SimpleNamespace(width=width, name='kept', inner={'sizes': [2, width]})
        self.sizes = (2, 6, width)
        self.fold = lambda x: x.reshape(2, 6, width)
        self.scale = torch.linspace(1, 2, width)
        self.tables = {'bias': [torch.linspace(0, 1, width)]}

    def forward(self, x):
        x = self.fold(self.stem(x)).reshape(2, 6, self.config.width)
        x = x.reshape(self.sizes).reshape(2, 6, self.config.inner['sizes'][1])
        return self.head(x * self.scale + self.tables['bias'][0])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Convs()


@pytest.fixture
def graph(net):
    return channel_units(net, IMAGE)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


class TestShrink:
    def test_a_copy(self, net, graph):
        before = snapshot(net)
        slim = graph.shrink(net, {'stem': [1, 4, 6]})
        assert unchanged(net, before)
        assert torch.equal(slim.stem.weight, net.stem.weight[[1, 4, 6]])
        assert torch.equal(slim.norm.running_var, net.norm.running_var[[1, 4, 6]])
        assert torch.equal(slim.body.weight, net.body.weight[:, [1, 4, 6]])
        assert (slim.stem.out_channels, slim.norm.num_features, slim.body.in_channels) == (3, 3, 3)
        assert slim(IMAGE).shape == (2, 4)
        assert all(parameter.is_leaf for parameter in slim.parameters())

    def test_a_copy_shares_no_memory(self, net, graph):
        slim = graph.shrink(net, {'stem': range(3)})
        theirs = {tensor.data_ptr() for tensor in net.state_dict().values()}
        assert not theirs & {tensor.data_ptr() for tensor in slim.state_dict().values()}
        assert slim.stem.weight.untyped_storage().nbytes() == slim.stem.weight.numel() * 4

    def test_in_place_keeps_the_objects(self, net, graph):
        parameters = dict(net.named_parameters())
        buffers = dict(net.named_buffers())
        assert graph.shrink(net, {'stem': [1, 4, 6]}, inplace=True) is net
        assert all(parameter is parameters[name] for name, parameter in net.named_parameters())
        assert all(buffer is buffers[name] for name, buffer in net.named_buffers())
        assert net.stem.weight.shape == (3, 3, 3, 3)
        assert net.stem.weight.untyped_storage().nbytes() == net.stem.weight.numel() * 4
        assert net(IMAGE).shape == (2, 4)

    def test_both_ways_give_the_same(self, net, graph):
        keep = {'stem': [7, 0, 3], 'body': [2, 3, 5]}
        slim = graph.shrink(net, keep)
        graph.shrink(net, keep, inplace=True)
        assert all(torch.equal(one, two) for one, two in zip(slim.state_dict().values(), net.state_dict().values()))

    def test_the_order_of_the_indices_is_kept(self, net, graph):
        sorted_, mixed = graph.shrink(net, {'stem': [1, 4, 6]}), graph.shrink(net, {'stem': [6, 1, 4]})
        assert torch.equal(mixed.stem.weight, net.stem.weight[[6, 1, 4]])
        torch.testing.assert_close(mixed.eval()(IMAGE), sorted_.eval()(IMAGE))

    def test_a_permutation_of_all_indices_changes_nothing(self, net, graph):
        mixed = graph.shrink(net, {'stem': [7, 6, 5, 4, 3, 2, 1, 0], 'body': [5, 0, 1, 2, 3, 4]})
        assert not torch.equal(mixed.stem.weight, net.stem.weight)
        torch.testing.assert_close(mixed.eval()(IMAGE), net.eval()(IMAGE))

    def test_a_permuted_unit_beside_a_cut_one(self, net, graph):
        keep = {'stem': [7, 6, 5, 4, 3, 2, 1, 0], 'body': [2, 3, 5]}
        slim = graph.shrink(net, keep)
        graph.shrink(net, keep, inplace=True)
        assert not any(bool((one != two).any()) for one, two in zip(slim.state_dict().values(), net.state_dict().values()))

    def test_again_and_again(self, net):
        for width in (6, 5, 3):
            graph = channel_units(net, IMAGE)
            net = graph.shrink(net, {'stem': torch.arange(width), 'body': torch.arange(width)})
        assert (net.stem.weight.shape[0], net.body.weight.shape[:2]) == (3, (3, 3))
        assert channel_units(net, IMAGE).units['stem'].size == 3

    def test_an_old_graph_does_not_fit_a_cut_model(self, net, graph):
        graph.shrink(net, {'stem': [0, 1]}, inplace=True)
        with pytest.raises(GraphError, match=r"'stem.weight' had shape \(8, 3, 3, 3\) .* and has \(2, 3, 3, 3\) now"):
            graph.shrink(net, {'body': [0, 1]})

    def test_of_nothing_is_a_copy(self, net, graph):
        slim = graph.shrink(net, {})
        assert slim is not net
        assert unchanged(slim, snapshot(net))

    def test_heads_and_widths_together(self):
        model = Attention()
        graph = channel_units(model, TOKENS)
        keep = {name: torch.arange(length) for name, length in graph.fit({'stem': 6, 'qkv#0': 3, 'qkv#1': 2}).items()}
        slim = graph.shrink(model, keep)
        assert (slim.heads, slim.head_dim) == (len(keep['qkv#0']), len(keep['qkv#1']))
        assert slim.heads * slim.head_dim == slim.stem.out_features == len(keep['stem'])
        assert slim(TOKENS).shape == (2, 6, 4)

    def test_keeps_dtype_and_layout_and_gradients_asked_for(self):
        model = Convs().half().to(memory_format=torch.channels_last)
        model.stem.weight.requires_grad_(False)
        graph = channel_units(model, IMAGE.half())
        for inplace in (False, True):
            one = copy.deepcopy(model)
            slim = graph.shrink(one, {'stem': [0, 2, 3], 'body': [1, 2, 4]}, inplace=inplace)
            assert {parameter.dtype for parameter in slim.parameters()} == {torch.float16}
            assert not slim.stem.weight.requires_grad
            assert slim.body.weight.requires_grad
            assert slim.body.weight.is_contiguous(memory_format=torch.channels_last)

    def test_modes_and_hooks_stay(self, net, graph):
        net.norm.eval()
        calls = []
        net.stem.register_forward_hook(lambda *_: calls.append(1))
        slim = graph.shrink(net, {'stem': [0, 1]})
        assert slim.training
        assert not slim.norm.training
        slim(IMAGE)
        assert calls == [1]

    def test_tied_weights_stay_tied(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(9, 8)
                self.head = nn.Linear(8, 9, bias=False)
                self.head.weight = self.embed.weight
                self.norm = nn.LayerNorm(8)

            def forward(self, x):
                return self.head(self.norm(self.embed(x)))

        ids = torch.tensor([[1, 2], [3, 4]])
        for inplace in (False, True):
            model = Tied()
            graph = channel_units(model, ids)
            slim = graph.shrink(model, {next(iter(graph.units)): [0, 5, 2]}, inplace=inplace)
            assert slim.head.weight is slim.embed.weight
            assert slim.embed.weight.shape == (9, 3)
            assert (slim.head.in_features, slim.embed.embedding_dim) == (3, 3)

    def test_buffers_outside_the_state_dict(self):
        class Buffered(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Linear(12, 8)
                self.register_buffer('scale', torch.rand(8), persistent=False)
                self.head = nn.Linear(8, 4)

            def forward(self, x):
                return self.head(self.stem(x) * self.scale)

        model = Buffered()
        slim = channel_units(model, TOKENS).shrink(model, {'stem': [1, 2]})
        assert torch.equal(slim.scale, model.scale[[1, 2]])
        assert 'scale' not in slim.state_dict()

    def test_can_be_pickled(self, net, graph):
        slim = graph.shrink(net, {'stem': [0, 1]})
        again = pickle.loads(pickle.dumps(slim))
        assert unchanged(again, snapshot(slim))

    def test_a_compiled_model_is_cut_inside(self, net, graph):
        compiled = torch.compile(net, backend='eager')
        assert channel_units(compiled, IMAGE).units.keys() == graph.units.keys()
        graph.shrink(compiled, {'stem': [0, 1]}, inplace=True)
        assert net.stem.out_channels == 2


class TestMending:
    def test_every_place(self):
        model = Kept()
        config = model.config
        graph = channel_units(model, TOKENS)
        assert list(graph.units) == ['stem']
        slim = graph.shrink(model, {'stem': [0, 2, 5]})
        assert slim.config.width == slim.config.inner['sizes'][1] == slim.sizes[2] == 3
        assert slim.config.name == 'kept'
        assert torch.equal(slim.scale, model.scale[[0, 2, 5]])
        assert torch.equal(slim.tables['bias'][0], model.tables['bias'][0][[0, 2, 5]])
        assert slim(TOKENS).shape == (2, 6, 4)
        assert model.config is config
        assert (config.width, config.inner['sizes'][1], model.sizes[2]) == (8, 8, 8)
        assert model(TOKENS).shape == (2, 6, 4)

    def test_in_place(self):
        model = Kept()
        channel_units(model, TOKENS).shrink(model, {'stem': [0, 2, 5]}, inplace=True)
        assert model(TOKENS).shape == (2, 6, 4)

    def test_a_shared_config_of_others_stays(self):
        model = Kept()
        others = model.config
        channel_units(model, TOKENS).shrink(model, {'stem': [0, 2, 5]}, inplace=True)
        assert others.width == 8
        assert model.config.width == 3

    def test_for_a_while(self):
        model = Attention()
        graph = channel_units(model, TOKENS)
        chosen = graph.prefix(graph.fit({'qkv#0': 2}))
        with chosen.mended(model):
            assert model.heads == 2
        assert model.heads == 4
        with pytest.raises(KeyError), chosen.mended(model):
            raise KeyError
        assert (model.heads, model.head_dim) == (4, 4)

    def test_told(self):
        model = Attention()
        graph = channel_units(model, TOKENS)
        chosen = graph.prefix(graph.fit({'qkv#0': 2}))
        assert 'heads: 4 -> 2' in ' '.join(map(str, chosen.attributes))
        data = chosen.to_dict()
        assert {'module': '', 'keys': ['heads'], 'old': 4, 'new': 2} in data['attributes']
        assert data['units']['qkv#0'] == [0, 1]

    @pytest.mark.parametrize(
        ('layer', 'cut', 'wanted'),
        [
            (nn.Conv2d(8, 6, 1), {'weight': (4, 5, 1, 1)}, {'in_channels': 5, 'out_channels': 4}),
            (nn.Conv2d(8, 8, 1, groups=2), {'weight': (6, 3, 1, 1)}, {'in_channels': 6, 'out_channels': 6}),
            (nn.ConvTranspose2d(8, 6, 1, groups=2), {'weight': (4, 2, 1, 1)}, {'in_channels': 4, 'out_channels': 4}),
            (nn.Linear(8, 6), {'weight': (4, 5)}, {'in_features': 5, 'out_features': 4}),
            (nn.Embedding(9, 8), {'weight': (9, 5)}, {'num_embeddings': 9, 'embedding_dim': 5}),
            (nn.BatchNorm1d(8), {'weight': (5,), 'running_mean': (5,)}, {'num_features': 5}),
            (nn.BatchNorm1d(8, affine=False), {'running_mean': (5,)}, {'num_features': 5}),
            (nn.LayerNorm(8), {'weight': (5,)}, {'normalized_shape': (5,)}),
            (nn.RMSNorm(8), {'weight': (5,)}, {'normalized_shape': (5,)}),
            (nn.GroupNorm(1, 8), {'weight': (5,)}, {'num_channels': 5}),
            (nn.PReLU(8), {'weight': (5,)}, {'num_parameters': 5}),
            (nn.LSTM(8, 6), {'weight_ih_l0': (16, 5)}, {'input_size': 5, 'hidden_size': 4}),
            (nn.GRU(8, 6), {'weight_ih_l0': (12, 5)}, {'input_size': 5, 'hidden_size': 4}),
            (nn.LSTMCell(8, 6), {'weight_ih': (16, 5), 'weight_hh': (16, 4)}, {'input_size': 5, 'hidden_size': 4}),
        ],
    )
    def test_layers(self, layer, cut, wanted):
        for name, shape in cut.items():
            tensor = getattr(layer, name)
            tensor.data = torch.zeros(shape)
        slicing.mend_layer(layer)
        assert {name: getattr(layer, name) for name in wanted} == wanted

    def test_parametrized_layers(self):
        norm = nn.utils.parametrizations.weight_norm
        model = nn.Sequential(norm(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 4))
        graph = channel_units(model, TOKENS)
        slim = graph.shrink(model, {next(iter(graph.units)): [1, 2, 3]})
        assert slim[0].out_features == slim[2].in_features == 3
        torch.testing.assert_close(slim[0].weight, model[0].weight[1:4])


class TestOptimizers:
    def trained(self, make, net):
        optimizer = make(net.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            net(IMAGE).square().sum().backward()
            optimizer.step()
        return optimizer

    @pytest.mark.parametrize(
        ('make', 'keys'),
        [
            (lambda parameters: torch.optim.Adam(parameters, 1e-3, amsgrad=True), {'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq'}),
            (lambda parameters: torch.optim.SGD(parameters, 1e-3, momentum=0.9), {'momentum_buffer'}),
            (lambda parameters: torch.optim.RMSprop(parameters, 1e-3), {'square_avg'}),
        ],
    )
    def test_state_is_cut_along(self, net, graph, make, keys):
        optimizer = self.trained(make, net)
        before = copy.deepcopy(optimizer.state[net.stem.weight])
        grad = net.stem.weight.grad.clone()
        graph.shrink(net, {'stem': [1, 4, 6]}, inplace=True, optimizer=optimizer)
        state = optimizer.state[net.stem.weight]
        assert keys <= state.keys()
        for key in keys:
            assert torch.equal(state[key], before[key][[1, 4, 6]])
        if 'step' in before:
            assert state['step'] == before['step'] == 2
        assert torch.equal(net.stem.weight.grad, grad[[1, 4, 6]])
        net(IMAGE).square().sum().backward()
        optimizer.step()
        assert optimizer.state[net.stem.weight] is state

    def test_a_step_after_is_that_of_the_cut_state(self, net, graph):
        """Where the cut changes no gradient, a step of the cut optimizer is the cut of a step of the whole one."""
        optimizer = self.trained(lambda parameters: torch.optim.Adam(parameters, 1e-2), net)
        whole = copy.deepcopy((net, optimizer.state_dict()))
        for one, two in zip(whole[0].parameters(), net.parameters()):
            one.grad = two.grad.clone()
        graph.shrink(net, {'stem': [1, 4, 6]}, inplace=True, optimizer=optimizer)
        optimizer.step()  # with the cut gradients
        reference, state = whole
        other = torch.optim.Adam(reference.parameters(), 1e-2)
        other.load_state_dict(state)
        other.step()
        torch.testing.assert_close(net.stem.weight, reference.stem.weight[[1, 4, 6]])
        torch.testing.assert_close(net.body.weight, reference.body.weight[:, [1, 4, 6]])

    def test_a_fresh_optimizer_has_no_state_to_cut(self, net, graph):
        optimizer = torch.optim.Adam(net.parameters())
        graph.shrink(net, {'stem': [1, 4, 6]}, inplace=True, optimizer=optimizer)
        assert not optimizer.state

    def test_without_inplace_it_is_refused(self, net, graph):
        with pytest.raises(GraphError, match='inplace=True'):
            graph.shrink(net, {'stem': [0, 1]}, optimizer=torch.optim.SGD(net.parameters(), 0.1))

    def test_state_of_another_shape_is_refused_before_anything_changes(self, net, graph):
        optimizer = self.trained(lambda parameters: torch.optim.Adafactor(parameters), net)
        before = snapshot(net)
        with pytest.raises(GraphError, match='row_var'):
            graph.shrink(net, {'stem': [0, 1]}, inplace=True, optimizer=optimizer)
        assert unchanged(net, before)


class TestTake:
    def test_a_prefix_is_a_view(self, net, graph):
        weight = graph.prefix({'stem': 3}).take('stem.weight', net.stem.weight)
        assert weight.shape == (3, 3, 3, 3)
        assert weight.data_ptr() == net.stem.weight.data_ptr()

    def test_other_indices_are_selected(self, net, graph):
        weight = graph.slicing({'stem': [5, 2]}).take('body.weight', net.body.weight)
        assert torch.equal(weight, net.body.weight[:, [5, 2]])

    @pytest.mark.parametrize('indices', [[0, 1], [5, 2]])
    def test_gradients_flow_to_what_was_taken(self, net, graph, indices):
        graph.slicing({'stem': indices}).take('stem.bias', net.stem.bias).sum().backward()
        wanted = torch.zeros(8)
        wanted[indices] = 1
        assert torch.equal(net.stem.bias.grad, wanted)

    def test_a_tensor_that_stays_is_itself(self, net, graph):
        assert graph.prefix({'stem': 3}).take('head.weight', net.head.weight) is net.head.weight

    def test_another_shape(self, net, graph):
        with pytest.raises(GraphError, match=r"'stem.bias' had shape \(8,\) when it was traced and has \(7,\) now"):
            graph.prefix({'stem': 3}).take('stem.bias', torch.zeros(7))

    def test_masks_are_the_rest(self, net, graph):
        mask = graph.slicing({'stem': [1, 2]}).mask('body.weight')
        assert mask[0] is mask[2] is mask[3] is None
        assert mask[1].tolist() == [True, False, False, True, True, True, True, True]

    def test_lengths_and_touched(self, net, graph):
        chosen = graph.slicing({'stem': [1, 2], 'body': range(6)})
        assert chosen.lengths == {'stem': 2, 'body': 6}
        assert set(chosen.touched) == {
            *('stem.weight', 'stem.bias', 'body.weight'),
            *('norm.weight', 'norm.bias', 'norm.running_mean', 'norm.running_var'),
        }


class TestBadInput:
    @pytest.mark.parametrize(
        ('keep', 'told'),
        [
            ({'stam': [0, 1]}, "no unit 'stam'.*stem"),
            ({'stem': [0, 8]}, "'stem' has indices 0 to 7; got 8"),
            ({'stem': [-1, 2]}, "'stem' has indices 0 to 7; got -1"),
            ({'stem': [0, 1, 1]}, "index of unit 'stem' is kept twice"),
            ({'stem': []}, "'stem' must keep at least 2 of its 8 indices; got 0"),
            ({'stem': [3]}, "'stem' must keep at least 2 of its 8 indices; got 1"),
            ({'head': [0, 1]}, r"'head' cannot be cut: head.weight\[0\] \(4\): an axis of the output"),
            ({'head.weight': [0, 1]}, "'head.weight' cannot be cut"),
        ],
    )
    def test_indices(self, net, graph, keep, told):
        before = snapshot(net)
        with pytest.raises(GraphError, match=told):
            graph.shrink(net, keep, inplace=True)
        assert unchanged(net, before)

    @pytest.mark.parametrize('indices', [[0.5, 1.5], torch.tensor([0.0, 1.0]), 'ab', None, torch.ones(8, dtype=torch.bool)])
    def test_no_indices(self, graph, indices):
        with pytest.raises(GraphError, match='indices'):
            graph.slicing({'stem': indices})

    @pytest.mark.parametrize('length', [2.5, '3', None, True])
    def test_no_lengths(self, graph, length):
        for call in (graph.fit, graph.prefix):
            with pytest.raises(GraphError, match="length of unit 'stem' is an int"):
                call({'stem': length})

    def test_negative_lengths(self, graph):
        with pytest.raises(GraphError, match='must keep at least 2'):
            graph.prefix({'stem': -3})

    def test_broken_ties_name_the_nearest_lengths(self):
        graph = channel_units(Attention(), TOKENS)
        with pytest.raises(GraphError, match=r"do not fit together.*nearest that do have 'stem=8'.*graph.fit"):
            graph.slicing({'stem': range(7)})

    def test_distributed(self, graph):
        class Wrapped(nn.parallel.DistributedDataParallel):
            def __init__(self, module):
                nn.Module.__init__(self)
                self.module = module

        with pytest.raises(GraphError, match='Cut it first'):
            graph.shrink(Wrapped(Convs()), {'stem': [0, 1]})
        with pytest.raises(GraphError, match='Cut it first'):
            channel_units(Wrapped(Convs()), IMAGE)

    def test_another_model(self, graph):
        with pytest.raises(GraphError, match=r"The model has no 'stem\.weight'"):
            graph.shrink(nn.Linear(3, 4), {'stem': [0, 1]})


def test_a_loss_that_is_still_alive_does_not_mind_the_cut():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)), torch.rand(2, 3, 4, 4)
    graph = channel_units(net, x)
    loss = net(x).sum()
    loss.backward()
    graph.slicing({'0': [0, 2, 5]}).apply(net, inplace=True)
    after = net(x).sum()
    after.backward()
    assert net[0].weight.grad.shape == (3, 3, 1, 1)
    assert loss.requires_grad


def test_lengths_that_stay_whole_are_not_rounded():
    net = nn.Sequential(nn.Conv2d(3, 20, 1), nn.ReLU(), nn.Conv2d(20, 4, 1))
    assert channel_units(net, torch.zeros(2, 3, 4, 4)).fit({'0': 20}, 8) == {'0': 20}


def test_outputs_without_a_finite_number_prove_nothing():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    x = torch.full((2, 3, 4, 4), float('nan'))
    slicing = channel_units(net, x).slicing({'0': [0, 1]})
    with pytest.raises(VerificationError, match='NaN in inputs or weights'):
        verify(net, slicing.apply(net), slicing, x)


def test_indices_stay_on_the_cpu_whatever_the_default_device_is():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    graph = channel_units(net, torch.rand(2, 3, 8, 8))
    name = next(name for name, unit in graph.units.items() if unit.size == 8)
    with torch.device('meta'):
        cut = graph.slicing({name: [0, 2, 5]})
        slim, first = cut.apply(net), graph.prefix({name: 3}).apply(net)
        gone = cut.mask('0.weight')[0]
    assert torch.equal(slim[0].weight, net[0].weight[[0, 2, 5]])
    assert torch.equal(slim[3].weight, net[3].weight[:, [0, 2, 5]])
    assert torch.equal(first[0].weight, net[0].weight[:3])
    assert gone.nonzero().flatten().tolist() == [1, 3, 4, 6, 7]
