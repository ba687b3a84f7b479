from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from strop.errors import GraphError
from strop.graph import channel_units
from strop.graph.terms import Atom, Cat, Prod
from strop.graph.units import layout

timm = pytest.importorskip('timm')

TOKENS = torch.linspace(-1, 1, 2 * 6 * 12).sin().reshape(2, 6, 12)
IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).cos().reshape(2, 3, 8, 8)


class Net(nn.Module):
    """A module of the given parts whose forward is a function of itself and the inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


class Attention(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.stem = nn.Linear(12, dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x):
        x = self.stem(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.head(self.proj((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).reshape(b, n, c)))


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def state_of(model):
    """Return everything that a forward may leave in a model."""
    return {
        path: (
            {name: id(value) for name, value in vars(module).items()},
            {name: id(value) for name, value in module._parameters.items()},
            {name: id(value) for name, value in module._buffers.items()},
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            module.training,
        )
        for path, module in model.named_modules()
    }


class TestUnits:
    def test_a_unit(self):
        graph = channel_units(small(), IMAGE)
        (unit,) = graph
        assert (unit.name, unit.size, unit.minimum, unit.role, unit.spans, unit.ties) == ('0', 8, 2, 'channels', (), ())
        assert [str(place) for place in unit.placements] == [
            *('0.weight[0]', '0.bias[0]', '1.weight[0]', '1.bias[0]', '1.running_mean[0]', '1.running_var[0]', '3.weight[1]')
        ]
        assert unit.placements[0].index.tolist() == list(range(8))

    def test_positions_of_heads(self):
        graph = channel_units(Attention(), TOKENS)
        heads = next(unit for unit in graph if unit.role == 'heads')
        dims = [unit for unit in graph if unit.role == 'head_dim']
        place = next(place for place in heads.placements if place.tensor == 'qkv.weight')
        assert place.index.tolist() == [index for _ in range(3) for index in range(4) for _ in range(4)]
        assert heads.name.startswith('qkv#')
        owned = next(place for place in dims[0].placements if place.tensor == 'qkv.weight').index
        # queries and keys share what is inside a head; where they lie in the projection:
        assert owned.tolist() == [*[0, 1, 2, 3] * 12] or owned.tolist() == [*[0, 1, 2, 3] * 8, *[-1] * 16]

    def test_ties_between_units(self):
        graph = channel_units(Attention(), TOKENS)
        names = set(graph.units)
        for unit in graph:
            assert set(unit.ties) <= names - {unit.name}
        tied = graph.units['stem'].ties
        assert {graph.units[name].role for name in tied} == {'heads', 'head_dim'}
        lengths = graph.fit({'stem': 6})
        heads, dims = (lengths[unit.name] for unit in graph if unit.role in ('heads', 'head_dim'))
        assert heads * dims == lengths['stem']

    def test_spans(self):
        model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 4))
        unit = channel_units(model, TOKENS).units['0']
        assert unit.spans == ('layer_norm',)
        assert 'under layer_norm' in str(unit)

    def test_order_is_that_of_the_model(self):
        graph = channel_units(timm.create_model('resnet18').eval(), torch.zeros(2, 3, 64, 64))
        assert len(graph.units) == 12
        assert list(graph.units)[:3] == ['conv1', 'layer1.0.conv1', 'layer1.1.conv1']
        assert [unit.size for unit in graph][:5] == [64, 64, 64, 128, 128]

    def test_minimum(self):
        assert channel_units(small(), IMAGE, minimum=4).units['0'].minimum == 4
        assert channel_units(small(), IMAGE, minimum=4).fit({'0': 1}) == {'0': 4}

    def test_batches_of_one(self):
        graph = channel_units(small(), IMAGE[:1])
        assert list(graph.units) == ['0']

    def test_plain_data(self):
        graph = channel_units(Attention(), TOKENS)
        data = json.loads(json.dumps(graph.to_dict()))
        assert [unit['name'] for unit in data['units']] == list(graph.units)
        assert data['note'] is None
        assert data['unreached'] == []
        stem = next(unit for unit in data['units'] if unit['name'] == 'stem')
        assert stem['placements'][0] == ['stem.weight', 0]
        assert stem['structure'][0] == '*16'
        assert {entry['kind'] for entry in data['frozen']} <= {'input', 'output', 'index', 'kernel'}

    def test_printing(self):
        graph = channel_units(small(), IMAGE)
        assert repr(graph) == 'ChannelGraph(1 units, 8 channels)'
        lines = str(graph).splitlines()
        assert lines[0] == '1 units, 8 channels'
        assert lines[1].startswith('  0: 8; 0.weight[0]')
        assert '  3.weight[0] (4): an axis of the output (of the model)' in lines

    def test_layout(self):
        one, two, three = Atom(2), Atom(3), Atom(4)
        assert layout(Cat((Prod((one, two), 6), three), 10), two) == '2x*3+4'
        assert layout(Prod((one, Cat((two, three), 7)), 14), three) == '2x(3+*4)'

    def test_counting(self):
        model = small()
        graph = channel_units(model, IMAGE)
        assert graph.parameters() == sum(parameter.numel() for parameter in model.parameters())
        slim = graph.shrink(model, {'0': range(5)})
        assert graph.parameters({'0': 5}) == sum(parameter.numel() for parameter in slim.parameters())
        assert graph.shape('3.weight', {'0': 5}) == (4, 5, 1, 1)

    def test_unknown_unit(self):
        with pytest.raises(GraphError, match=r"There is no unit '1'.*There are 1 units: '0'"):
            channel_units(small(), IMAGE).unit('1')


class TestTensors:
    def test_unreached_parameters(self):
        model = Net(lambda net, x: net.head(x), head=nn.Linear(12, 4), spare=nn.Linear(12, 7))
        graph = channel_units(model, TOKENS)
        assert graph.unreached == ('spare.weight', 'spare.bias')
        assert 'not reached by the forward' in str(graph)
        assert not graph.units

    def test_a_parameter_that_nothing_shares(self):
        model = Net(
            lambda net, x: net.head(torch.cat([net.tokens.expand(2, -1, -1), x], 1)).mean(1),
            tokens=nn.Parameter(torch.rand(1, 5, 12)),
            head=nn.Linear(12, 4),
        )
        graph = channel_units(model, TOKENS)
        assert not graph.units
        (axis,) = [axis for axis in graph.frozen if (axis.tensor, axis.axis) == ('tokens', 1)]
        assert axis.kind == 'position'

    def test_ignored(self):
        model = timm.create_model('resnet18').eval()
        image = torch.zeros(2, 3, 64, 64)
        for pattern in ('layer1', 'layer1.*', ['layer1.0', 'layer1.1'], ('*layer1*',)):
            graph = channel_units(model, image, ignored=pattern)
            assert len(graph.units) == 12 - 3, pattern
            assert not any(name.startswith('layer1') for name in graph.units)
            assert {axis.kind for axis in graph.frozen if axis.tensor == 'layer1.0.conv1.weight' and axis.axis == 0} == {
                'ignored'
            }

    def test_ignored_names_that_do_not_exist(self):
        with pytest.raises(GraphError, match="ignored='layer9' matches no parameter or module"):
            channel_units(small(), IMAGE, ignored='layer9')

    def test_locked_share(self):
        assert channel_units(small(), IMAGE).locked_share() == 0


class TestInputs:
    @pytest.mark.parametrize('inputs', [None, 3, 'image', [], (), {}, [1, 2], {'x': 3}])
    def test_missing(self, inputs):
        with pytest.raises(GraphError, match='Example inputs are a tensor, a tuple of positional arguments or a dict'):
            channel_units(small(), inputs)

    def test_integers_where_floats_are_expected(self):
        with pytest.raises(GraphError, match=r'forward raised on inputs \(\(2, 3, 8, 8\),\)'):
            channel_units(small(), torch.zeros(2, 3, 8, 8, dtype=torch.long))

    def test_shapes_that_do_not_fit(self):
        with pytest.raises(GraphError, match=r'Tracing Sequential failed: its forward raised on inputs \(\(2, 5, 8, 8\),\)'):
            channel_units(small(), torch.zeros(2, 5, 8, 8))

    def test_no_module(self):
        with pytest.raises(GraphError, match=r'The model is an nn\.Module; got function'):
            channel_units(lambda x: x, IMAGE)

    def test_the_error_of_the_model_is_named(self):
        def run(net, x):
            raise KeyError('no such thing')

        with pytest.raises(GraphError, match="KeyError: 'no such thing'") as caught:
            channel_units(Net(run), IMAGE)
        assert isinstance(caught.value.__cause__, KeyError)

    def test_is_not_changed(self):
        image = IMAGE.clone()
        model = Net(lambda net, x: net.head(x.add_(1)), head=nn.Conv2d(3, 4, 1))
        channel_units(model, image)
        assert torch.equal(image, IMAGE)
        assert not vars(image)

    def test_nested(self):
        model = Net(lambda net, pair, scale: net.head(net.a(pair['a'][0]) + net.b(pair['b'])) * scale)
        model.a, model.b, model.head = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 4)
        graph = channel_units(model, ({'a': [TOKENS], 'b': TOKENS}, 2.0))
        assert list(graph.units) == ['a']


class TestModelStaysAsItWas:
    def check(self, model, inputs, error=None):
        model.train()
        before, state = state_of(model), copy.deepcopy(model.state_dict())
        random = torch.get_rng_state()
        if error is None:
            channel_units(model, inputs)
        else:
            with pytest.raises(error):
                channel_units(model, inputs)
        assert state_of(model) == before
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        for tensor in (*model.parameters(), *model.buffers()):
            assert not getattr(tensor, '__dict__', None)
        for module in model.modules():
            for value in vars(module).values():
                if isinstance(value, torch.Tensor):
                    assert not vars(value)

    @pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_100'])
    def test_real_models(self, name):
        self.check(timm.create_model(name), torch.zeros(2, 3, 64, 64))

    def test_attention(self):
        self.check(nn.TransformerEncoderLayer(12, 4, 16, batch_first=True), TOKENS)

    def test_caches_and_counters(self):
        def run(net, x):
            net.calls += 1
            net.cache['last'] = x
            net.seen.append(x)
            net.made = net.head(x)
            return net.made

        self.check(Net(run, head=nn.Linear(12, 4), calls=0, cache={}, seen=[]), TOKENS)

    def test_kept_tensors(self):
        self.check(Net(lambda net, x: net.head(x * net.scale), head=nn.Linear(12, 4), scale=torch.rand(12)), TOKENS)

    def test_values_looked_at(self):
        def run(net, x):
            return net.head(net.stem(x)) if x.sum().item() < 1e9 else x

        self.check(Net(run, stem=nn.Linear(12, 8), head=nn.Linear(8, 4)), TOKENS)

    def test_dropout_and_batch_statistics(self):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 4, 1))
        self.check(model, IMAGE)
        assert model[1].num_batches_tracked == 0

    def test_a_forward_that_fails(self):
        def run(net, x):
            net.cache = net.stem(x)
            raise RuntimeError('in the middle')

        self.check(Net(run, stem=nn.Linear(12, 8)), TOKENS, GraphError)

    def test_a_hidden_module(self):
        """Parameters that the model does not know of are constants, and keep no traces either."""
        hidden = nn.Linear(8, 8)
        model = Net(lambda net, x: net.head(hidden(net.stem(x))), stem=nn.Linear(12, 8), head=nn.Linear(8, 4))
        self.check(model, TOKENS)
        assert not vars(hidden.weight)
        assert not channel_units(model, TOKENS).units

    def test_tensors_of_a_closure(self):
        scale = torch.rand(8)
        model = Net(lambda net, x: net.head(net.stem(x) * scale), stem=nn.Linear(12, 8), head=nn.Linear(8, 4))
        graph = channel_units(model, TOKENS)
        channel_units(Net(lambda net, x: (net.head(x), scale), head=nn.Linear(12, 4)), TOKENS)
        assert not vars(scale)
        assert [axis.kind for axis in graph.frozen if (axis.tensor, axis.axis) == ('stem.weight', 0)] == ['constant']


class TestDevices:
    def test_a_model_without_values(self):
        with torch.device('meta'):
            model = timm.create_model('resnet18')
        graph = channel_units(model, torch.zeros(2, 3, 64, 64))
        assert len(graph.units) == 12
        slim = graph.shrink(model, {'conv1': range(40)})
        assert slim.conv1.weight.shape == (40, 3, 7, 7)

    def test_a_language_model_of_seven_billion_parameters(self):
        transformers = pytest.importorskip('transformers')
        config = transformers.LlamaConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=2,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=32000,
        )
        with torch.device('meta'):
            model = transformers.LlamaForCausalLM(config)
        graph = channel_units(model, {'input_ids': torch.zeros(2, 8, dtype=torch.long), 'use_cache': False})
        sizes = {unit.name: unit.size for unit in graph}
        assert sorted(sizes.values()).count(11008) == 2
        assert 4096 in sizes.values()
        assert graph.locked_share() < 0.01

    def test_values_looked_at_are_told(self):
        def run(net, x):
            return net.head(net.stem(x) if x.sum().item() < 1e9 else x)

        graph = channel_units(Net(run, stem=nn.Linear(12, 12), head=nn.Linear(12, 4)), TOKENS)
        assert 'real values' in graph.note
        assert graph.note in str(graph)
        assert list(graph.units) == ['stem']

    def test_scripted_parts_are_constants(self):
        part = torch.jit.script(nn.Sequential(nn.Linear(8, 6), nn.ReLU()))
        model = nn.Sequential(nn.Linear(12, 8), part, nn.Linear(6, 4))
        assert not channel_units(model, TOKENS).units

    def test_long_models(self):
        """More residual blocks in a row than Python has stack frames."""

        class Deep(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Linear(12, 8)
                self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(1100))

            def forward(self, x):
                x = self.stem(x)
                for block in self.blocks:
                    x = x + block(x)
                return x.sum(-1)

        graph = channel_units(Deep(), TOKENS)
        assert len(graph.units) == 1
        assert len(graph.units['stem'].placements) == 2 + 2 * 1100


class TestNames:
    """A unit is named after the layer whose outputs it is."""

    def test_transposed_convolutions(self):
        net = nn.Sequential(
            nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1)
        )
        graph = channel_units(net, IMAGE)
        assert {name: unit.size for name, unit in graph.units.items()} == {'0': 8, '2': 6}
        slim = graph.shrink(net, {'2': [0, 3]})
        assert (slim[0].out_channels, slim[2].out_channels, slim[4].in_channels) == (8, 2, 2)

    def test_linear_layers_of_transformers(self):
        conv1d = pytest.importorskip('transformers.pytorch_utils').Conv1D
        graph = channel_units(nn.Sequential(conv1d(10, 12), nn.ReLU(), conv1d(6, 10), nn.ReLU(), conv1d(4, 6)), TOKENS)
        assert {name: unit.size for name, unit in graph.units.items()} == {'0': 10, '2': 6}
