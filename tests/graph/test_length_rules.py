from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from strop.graph import channel_units, length_rule, prove
from strop.graph import inference as inference_module

TOKENS = torch.linspace(-1, 1, 2 * 6 * 12).sin().reshape(2, 6, 12)


class Between(nn.Module):
    """Two linear layers with a function in between that may use the module's attributes."""

    def __init__(self, run, width=16, outputs=None, **attributes):
        super().__init__()
        self.stem = nn.Linear(12, width)
        self.head = nn.Linear(width if outputs is None else outputs, 4)
        self.run, self.width = run, width
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.head(self.run(self, self.stem(x)))


#: Functions whose sizes come from attributes, which follow the cut.
FOLLOWED = {
    'view': (lambda net, h: h.view(2, 6, net.width), {}),
    'view of heads': (lambda net, h: h.view(2, 6, net.heads, -1).softmax(-1).flatten(2), {'heads': 4}),
    'reshape with shape': (lambda net, h: torch.reshape(h, (2, 6, net.width)), {}),
    'reshape by size': (
        lambda net, h: h.reshape(h.size(0), h.size(1), net.heads, h.size(2) // net.heads).mT.flatten(2),
        {'heads': 4},
    ),
    'unflatten': (lambda net, h: h.unflatten(-1, net.shape).softmax(-1).flatten(-2), {'shape': (4, 4)}),
    'flatten': (lambda net, h: h.view(2, 6, net.heads, -1).transpose(-1, -2).flatten(2), {'heads': 4}),
    'split': (lambda net, h: torch.cat([part.relu() for part in h.split(net.part, -1)], -1), {'part': 4}),
    'split in sizes': (lambda net, h: torch.cat(torch.split(h, net.parts, -1)[::-1], -1), {'parts': [10, 6]}),
    'narrow': (
        lambda net, h: torch.cat([h.narrow(-1, 0, net.left), h.narrow(-1, net.left, net.rest) * 2], -1),
        {'left': 6, 'rest': 10},
    ),
    'slices': (lambda net, h: torch.cat([h[..., : net.left].tanh(), h[..., net.left :]], -1), {'left': 6}),
    'slices from the end': (lambda net, h: torch.cat([h[..., : -net.right].tanh(), h[..., -net.right :]], -1), {'right': 6}),
    'expand': (lambda net, h: h[..., None].expand(2, 6, net.width, 3).mean(-1), {}),
    'zeros': (lambda net, h: h + torch.zeros(net.width), {}),
    'new zeros': (lambda net, h: h + h.new_zeros(6, net.width), {}),
    'full': (lambda net, h: h * torch.full((net.width,), 2.0), {}),
    'layer norm': (lambda net, h: F.layer_norm(h, (net.width,)), {}),
    'a number of groups': (lambda net, h: F.group_norm(h.transpose(1, 2), net.groups).transpose(1, 2), {'groups': 4}),
    'channel shuffle': (
        lambda net, h: F.channel_shuffle(h.transpose(1, 2)[..., None], net.groups)[..., 0].transpose(1, 2),
        {'groups': 4},
    ),
    'sizes of another tensor': (lambda net, h: h.flatten(1).view_as(h), {}),
    'products of sizes': (lambda net, h: h.reshape(-1, net.heads * net.dim).view(2, 6, -1), {'heads': 4, 'dim': 4}),
    'pad': (lambda net, h: F.pad(h[..., net.cut :], (net.cut, 0)), {'cut': 6}),
}


@pytest.mark.parametrize('name', FOLLOWED)
def test_attributes_follow_the_cut(name):
    run, attributes = FOLLOWED[name]
    torch.manual_seed(0)
    model = Between(run, **attributes)
    proof = prove(model, TOKENS)
    assert proof.error < 1e-12, str(proof.graph)
    assert proof.holds, str(proof.graph)
    assert any(axis_name.startswith('stem') for axis_name in proof.graph.units)


#: Functions whose sizes are numbers in the code: the axis keeps its length.
LITERAL = {
    'view': lambda net, h: h.view(2, 6, 16),
    'view of all factors': lambda net, h: h.view(2, 6, 4, 4).softmax(-1).flatten(2),
    'split': lambda net, h: torch.cat(h.split([10, 6], -1), -1),
    'expand': lambda net, h: h[..., None].expand(2, 6, 16, 3).mean(-1),
    'zeros': lambda net, h: h + torch.zeros(16),
    'arange': lambda net, h: h + torch.arange(16),
    'layer norm': lambda net, h: F.layer_norm(h, (16,)),
    'unflatten': lambda net, h: h.unflatten(-1, (4, 4)).softmax(-1).flatten(-2),
    'a plain int': lambda net, h: torch.cat([h[..., : int(h.shape[-1]) // 2] * 2, h[..., int(h.shape[-1]) // 2 :]], -1),
    'a part': lambda net, h: torch.cat([h[..., : int(h.shape[-1] * 0.5)] * 2, h[..., int(h.shape[-1] * 0.5) :]], -1),
    'a comparison': lambda net, h: h * 2 if h.shape[-1] == 16 else h,
    'a table': lambda net, h: h * {16: 2.0, 8: 3.0}[h.shape[-1]],
}


@pytest.mark.parametrize('name', LITERAL)
def test_numbers_in_the_code_stay(name):
    graph = channel_units(Between(LITERAL[name]), TOKENS)
    kinds = {axis.kind for axis in graph.frozen if (axis.tensor, axis.axis) == ('stem.weight', 0)}
    assert kinds <= {'literal', 'constant'}
    assert kinds
    assert not graph.units, str(graph)


def test_the_reason_says_the_number_and_the_call():
    graph = channel_units(Between(LITERAL['view']), TOKENS)
    (axis,) = [axis for axis in graph.frozen if (axis.tensor, axis.axis) == ('stem.weight', 0)]
    assert str(axis).startswith('stem.weight[0] (16): the code says ')
    assert '16' in str(axis)
    assert 'view' in str(axis)


def assigned(net, h):
    h[..., :4] = 0
    return h


class TestPieces:
    """The numbers in the code say where pieces end; the rest may be cut."""

    def sizes(self, model, inputs=TOKENS):
        proof = prove(model, inputs)
        assert proof.error < 1e-12, str(proof.graph)
        return [unit.size for unit in proof.graph.units.values()]

    def test_what_is_assigned_to_keeps_its_end(self):
        assert self.sizes(Between(assigned)) == [12]

    def test_steps_from_somewhere_keep_their_start(self):
        model = Between(lambda net, h: h[..., 4::2], outputs=6)
        graph = channel_units(model, TOKENS)
        assert [axis.kind for axis in graph.frozen if axis.tensor == 'stem.weight' and axis.size == 4] == ['literal']
        assert sum(self.sizes(model)) in (6, 12)

    def test_one_of_each_pair_is_free(self):
        assert sum(self.sizes(Between(lambda net, h: h[..., 1::2], outputs=8))) in (8, 16)

    def test_a_mask_beside_a_slice(self):
        mask = torch.arange(12).reshape(2, 6) % 3 > 0
        assert self.sizes(Between(lambda net, h: h[mask, :8], outputs=8)) == [8]

    def test_pieces_between_indices(self):
        model = Between(lambda net, h: torch.cat(torch.tensor_split(h, [4, 10], -1)[::-1], -1))
        assert self.sizes(model) == [6]
        assert self.sizes(Between(lambda net, h: torch.cat(h.tensor_split((6, 11), dim=-1), -1))) == [5]

    @pytest.mark.parametrize('split', [torch.hsplit, torch.Tensor.hsplit])
    def test_halves(self, split):
        class Halves(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.left, self.right = nn.Linear(12, 16), nn.Linear(8, 3), nn.Linear(8, 3)

            def forward(self, x):
                left, right = split(self.stem(x), 2)
                return self.left(left) + self.right(right)

        torch.manual_seed(0)
        model = Halves()
        assert self.sizes(model, TOKENS[0]) == [8, 8]
        assert set(channel_units(model, TOKENS[0]).fit({'stem#0': 3}).values()) == {3}

    def test_the_other_splits(self):
        image = torch.rand(2, 12, 4, 4)
        conv = nn.Conv2d(12, 4, 1)
        for split in (torch.vsplit, torch.dsplit):
            model = nn.Sequential(conv, Joined(split))
            assert self.sizes(model, image) == []


class Joined(nn.Module):
    """What is split, and put together again in another order."""

    def __init__(self, split):
        super().__init__()
        self.split = split

    def forward(self, x):
        return torch.cat(self.split(x, 2)[::-1], 0 if self.split is torch.vsplit else 2)


class TestTies:
    def test_chunks_are_of_one_length(self):
        model = Between(lambda net, h: torch.cat([part * (1 + number) for number, part in enumerate(h.chunk(4, -1))], -1))
        graph = channel_units(model, TOKENS)
        assert len(graph.units) == 4
        lengths = graph.fit({'stem#0': 2})
        assert set(lengths.values()) == {2}
        assert set(graph.units['stem#0'].ties) == {'stem#1', 'stem#2', 'stem#3'}

    def test_uneven_chunks(self):
        torch.manual_seed(0)
        model = Between(lambda net, h: torch.cat(h.chunk(3, -1), -1), width=10)
        graph = channel_units(model, TOKENS)
        for wanted in range(2, 5):
            lengths = graph.fit({'stem#0': wanted})
            whole = sum(lengths.values())
            assert [lengths[f'stem#{number}'] for number in range(3)] == [len(part) for part in torch.arange(whole).chunk(3)]

    def test_tensor_split(self):
        model = Between(lambda net, h: torch.cat(torch.tensor_split(h, 3, -1), -1), width=11)
        graph = channel_units(model, TOKENS)
        lengths = graph.fit({'stem#0': 3})
        whole = sum(lengths.values())
        assert list(lengths.values()) == [len(part) for part in torch.arange(whole).tensor_split(3)]
        assert prove(model, TOKENS).error < 1e-12

    def test_halves_by_division(self):
        model = Between(lambda net, h: torch.cat([h[..., : h.shape[-1] // 2].relu(), h[..., h.shape[-1] // 2 :]], -1))
        proof = prove(model, TOKENS)
        assert proof.holds
        assert abs(proof.lengths['stem#0'] - proof.lengths['stem#1']) <= 1

    def test_a_whole_that_is_a_product(self):
        model = Between(
            lambda net, h: h.view(2, 6, net.heads, net.width // net.heads).softmax(-1).flatten(2), heads=4, width=16
        )
        graph = channel_units(model, TOKENS)
        slim = graph.shrink(model, {name: range(n) for name, n in graph.fit({'stem#0': 2}).items()})
        assert slim.width // slim.heads * slim.heads == slim.stem.out_features
        assert slim(TOKENS).shape == (2, 6, 4)

    def test_widths_that_must_divide(self):
        """`assert width % 4 == 0` holds afterwards, too."""

        def run(net, h):
            if h.shape[-1] % 4:
                raise RuntimeError('not divisible')
            return h.relu()

        graph = channel_units(Between(run), TOKENS)
        assert [graph.fit({'stem': wanted})['stem'] % 4 for wanted in range(1, 17)] == [0] * 16

    def test_a_branch_stays_the_same_branch(self):
        graph = channel_units(Between(lambda net, h: h * 2 if h.shape[-1] > 8 else h), TOKENS)
        assert graph.fit({'stem': 3}) == {'stem': 9}

    def test_the_larger_of_two(self):
        model = Between(lambda net, h: h.reshape(2, 6, max(h.shape[-1], 4)))
        graph = channel_units(model, TOKENS)
        assert prove(model, TOKENS).error < 1e-12
        assert graph.fit({'stem': 6}) == {'stem': 6}

    def test_square_roots_bind_nothing(self):
        graph = channel_units(Between(lambda net, h: h / math.sqrt(h.shape[-1])), TOKENS)
        assert graph.fit({'stem': 5}) == {'stem': 5}

    def test_repeats(self):
        model = Between(lambda net, h: h.repeat(1, 1, net.times), outputs=48, times=3)
        graph = channel_units(model, TOKENS)
        assert prove(model, TOKENS).error < 1e-12
        slim = graph.shrink(model, {'stem': range(5)})
        assert slim.head.in_features == 15
        assert slim.times == 3


def test_own_rules(monkeypatch):
    """A function of another library that is told a length."""

    def grouped(h, groups):
        if torch.overrides.has_torch_function((h,)):
            return torch.overrides.handle_torch_function(grouped, (h,), h, groups)
        return h.view(*h.shape[:-1], groups, -1).softmax(-1).flatten(-2)

    monkeypatch.setattr(inference_module, '_length_rules', dict(inference_module._length_rules))

    @length_rule(torch.Tensor.softmax)
    def rule(lengths, out, args, kwargs):
        lengths.demand(4, lengths.axes(out)[-1])

    model = Between(lambda net, h: h.view(2, 6, net.heads, -1).softmax(-1).flatten(2), heads=4)
    graph = channel_units(model, TOKENS)
    assert {axis.kind for axis in graph.frozen if (axis.tensor, axis.axis) == ('stem.weight', 0)} == {'literal'}
