from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from strop.errors import GraphError
from strop.graph import channel_units, inference
from strop.graph.inference import Axes, trace

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


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 4, 1))


class TestCalls:
    def test_operators_with_their_modules(self):
        calls = channel_units(small(), IMAGE).calls
        assert [(call.name, call.path) for call in calls if call.name != 'empty'] == [
            ('convolution', '0'),
            ('native_batch_norm', '1.0'),
            ('relu', '1.1'),
            ('convolution', '2'),
        ]
        assert repr(calls[0]) == "convolution in '0'"

    def test_tensors_are_axes(self):
        call = channel_units(small(), IMAGE).calls[0]
        image, weight, bias = call.args[:3]
        assert type(image) is type(weight) is type(bias) is Axes
        assert [term.size for term in weight.terms] == [8, 3, 3, 3]
        assert [term.size for term in call.out[0].terms] == [2, 8, 6, 6]
        assert call.args[3] == [1, 1]

    def test_a_module_that_is_used_twice(self):
        shared = nn.ReLU()
        model = Net(lambda net, x: net.act(net.act(net.stem(x))), stem=nn.Conv2d(3, 8, 1), act=shared)
        calls = channel_units(model, IMAGE).calls
        assert [(call.path, call.place) for call in calls if call.name == 'relu'] == [('act', 0), ('act', 1)]

    def test_the_path_after_a_module_that_fails(self):
        class Failing(nn.Module):
            def forward(self, x):
                raise KeyError

        def run(net, x):
            try:
                net.failing(x)
            except KeyError:
                return net.head(x).relu()

        calls = channel_units(Net(run, failing=Failing(), head=nn.Conv2d(3, 4, 1)), IMAGE).calls
        assert [call.path for call in calls] == ['head', '']


class TestLevels:
    """A forward runs without values, where it must look at some with real ones."""

    def test_nothing_is_computed(self):
        big = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.LazyLinear(4))
        big[3] = nn.Linear(64 * 512 * 512, 4, device='meta')  # a quarter of a gigabyte
        graph = channel_units(big, torch.zeros(1, 3, 512, 512, device='meta'))
        assert graph.note is None
        assert graph.units['0'].size == 64

    @pytest.mark.parametrize(
        'look',
        [
            lambda x: x.sum().item() > 0,
            lambda x: bool((x > 0).any()),
            lambda x: float(x.mean()) > 0,
            lambda x: x.mean().tolist() > 0,
            lambda x: len(x.flatten().nonzero()) > 0,
            lambda x: x[x > 0].shape[0] > 0,
        ],
    )
    def test_values_are_looked_at(self, look):
        model = Net(
            lambda net, x: net.head(net.stem(x).relu() if look(x) else net.stem(x)),
            stem=nn.Conv2d(3, 8, 1),
            head=nn.Conv2d(8, 4, 1),
        )
        graph = channel_units(model, IMAGE)
        assert list(graph.units) == ['stem']

    def test_the_note_says_so(self):
        model = Net(lambda net, x: net.head(x) if x.sum().item() < 1e9 else x, head=nn.Conv2d(3, 4, 1))
        found = trace(model, (IMAGE,), {})
        assert found.note.startswith('traced on real values')

    def test_tensors_of_the_cpu_inside(self):
        table = torch.rand(8, 1, 1)
        model = Net(lambda net, x: net.head(net.stem(x) + table.to(x.device)), stem=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1))
        graph = channel_units(model, IMAGE)
        assert not graph.units
        assert {axis.kind for axis in graph.frozen if (axis.tensor, axis.axis) == ('stem.weight', 0)} == {'constant'}

    def test_devices_are_their_own(self):
        def run(net, x):
            if x.device.type != 'cpu' or net.head.weight.device != torch.device('cpu'):
                raise RuntimeError('on another device')
            return net.head(x + torch.ones(1, device=x.device))

        assert channel_units(Net(run, head=nn.Conv2d(3, 4, 1)), IMAGE).note is None

    def test_half_precision(self):
        model = small().bfloat16()
        assert list(channel_units(model, IMAGE.bfloat16()).units) == ['0']


class TestErrors:
    def test_the_models_own_error_is_the_one_that_is_told(self):
        """Not one of those that a run without values may give first."""

        def run(net, x):
            if x.sum().item() < 1e9:
                raise ValueError('too small')

        with pytest.raises(GraphError, match=r'Tracing Net failed: .*ValueError: too small'):
            channel_units(Net(run), IMAGE)

    def test_a_wrong_shape_inside(self):
        with pytest.raises(GraphError, match='RuntimeError'):
            channel_units(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(9, 4, 1)), IMAGE)

    def test_modes_are_off_after_an_error(self):
        def run(net, x):
            raise RuntimeError

        with pytest.raises(GraphError):
            channel_units(Net(run), IMAGE)
        assert type(IMAGE.shape[0]) is int
        assert torch.is_grad_enabled()
        assert F.has_torch_function((IMAGE,)) is False
        assert torch.nn.modules.module._global_forward_pre_hooks == {}


def test_aliases_are_one_tensor():
    model = Net(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    model.b.weight = model.a.weight
    found = trace(model, (IMAGE,), {})
    assert found.aliases == {'b.weight': 'a.weight'}
    assert found.tensors['a.weight'] == found.tensors['b.weight']


def test_every_rule_is_of_an_operator_that_exists():
    names = [key for key in inference._rules if isinstance(key, str)]
    assert all(name in ('pointwise', 'unknown') or '.' in name for name in names)
