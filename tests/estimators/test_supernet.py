from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.estimators.guards import ALWAYS, Slot
from strop.estimators.supernet import NotSeparableError, mac_terms, parameter_terms, trace_supernet
from strop.mutables import Guard, LayerChoice, Mutable, OneOf, Repeat, ValueChoice, bind

X = (torch.zeros(1, 4, 3, 3),)


def test_every_operator_carries_the_choices_that_lead_to_it():
    inner = LayerChoice([nn.ReLU(), nn.Sigmoid()], key='inner')
    model = nn.Sequential(nn.Tanh(), LayerChoice([nn.Sequential(inner, nn.GELU()), nn.SiLU()], key='outer'))
    trace = trace_supernet(model, bind(model), X, {}).trace
    outer = [Guard.on('outer', [index]) for index in range(2)]
    assert [(op.name.removeprefix('aten.'), op.guard) for op in trace.ops] == [
        ('tanh', ALWAYS),
        ('relu', frozenset({outer[0], Guard.on('inner', [0])})),
        ('sigmoid', frozenset({outer[0], Guard.on('inner', [1])})),
        ('gelu', frozenset({outer[0]})),
        ('silu', frozenset({outer[1]})),
    ]


def test_a_join_names_the_storage_of_each_alternative():
    model = nn.Sequential(LayerChoice([nn.Identity(), nn.ReLU()], key='op'))
    supernet = trace_supernet(model, bind(model), X, {})
    (join,) = supernet.joins
    assert supernet.trace.outputs == (join,)
    (source,) = supernet.trace.inputs
    assert supernet.joins[join] == [
        (frozenset({Slot('op', 0, 0)}), source),
        (frozenset({Slot('op', 0, 1)}), supernet.trace.ops[0].born[0]),
    ]
    assert supernet.trace.sizes == [144, 144, 0]


def test_terms_of_parameters_and_multiply_adds():
    shared = nn.Conv2d(4, 4, 1, bias=False)
    depth = ValueChoice([1, 2], key='depth')
    model = nn.Sequential(
        LayerChoice([shared, nn.Conv2d(4, 4, 3, padding=1, bias=False)], key='a'),
        LayerChoice([nn.Identity(), shared], key='b'),
        Repeat(lambda _: nn.Conv2d(4, 4, 1, bias=False), depth),
    )
    binding = bind(model)
    first, second = frozenset({Guard.on('a', [0])}), frozenset({Guard.on('b', [1])})
    deep = frozenset({Guard.on('depth', [1])})
    assert parameter_terms(model, binding) == {
        frozenset({first, second}): 16,
        frozenset({frozenset({Guard.on('a', [1])})}): 144,
        frozenset({ALWAYS}): 16,
        frozenset({deep}): 16,
    }
    assert mac_terms(trace_supernet(model, binding, X, {}).trace) == {
        frozenset({first}): 144,
        frozenset({frozenset({Guard.on('a', [1])})}): 1296,
        frozenset({second}): 144,
        frozenset({ALWAYS}): 144,
        frozenset({deep}): 144,
    }


def test_an_unknown_kind_of_mutable_has_a_reason():
    class Odd(Mutable):
        def make_domain(self) -> OneOf:
            return OneOf(('a', 'b'))

        def run(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = nn.Sequential(Odd('odd'))
    with pytest.raises(NotSeparableError, match="'odd' is a Odd, a kind that cannot be traced"):
        trace_supernet(model, bind(model), X, {})


def test_structures_that_differ_have_a_reason():
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    model = nn.Sequential(LayerChoice([nn.ReLU(), Pair()], key='op'))
    with pytest.raises(NotSeparableError, match="0 and 1 of 'op' return different structures"):
        trace_supernet(model, bind(model), X, {})


def test_control_flow_on_values_has_a_reason():
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], key='op'), Looks())
    with pytest.raises(NotSeparableError, match='DataDependentOutputException'):
        trace_supernet(model, bind(model), X, {})
