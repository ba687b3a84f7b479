from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from strop.errors import GraphError
from strop.graph.forward import (
    arguments_of,
    evaluated,
    first_line,
    map_tensors,
    module_paths,
    moved_to,
    output_tensors,
    shapes_of,
    untouched,
)


class TestUntouched:
    def test_puts_everything_back(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        model[0].cache, model[0].seen = {'a': 1}, [1]
        cache, seen, weight = model[0].cache, model[0].seen, model[0].weight
        with pytest.raises(KeyError), untouched(model):
            model.eval()
            model[0].new = 3
            model[0].cache['b'] = 2
            model[0].seen.append(2)
            del model[1]._buffers['running_mean']
            model[0]._parameters['weight'] = torch.zeros(2, 2)
            model[0].register_forward_hook(print)
            raise KeyError
        assert model.training
        assert model[1].training
        assert not hasattr(model[0], 'new')
        assert (model[0].cache, model[0].seen) == ({'a': 1}, [1])
        assert model[0].cache is cache
        assert model[0].seen is seen
        assert model[0].weight is weight
        assert 'running_mean' in model[1]._buffers
        assert not model[0]._forward_hooks

    def test_the_fast_path_of_attention_is_as_before(self):
        before = torch.backends.mha.get_fastpath_enabled()
        with untouched(nn.Identity()):
            torch.backends.mha.set_fastpath_enabled(not before)
        assert torch.backends.mha.get_fastpath_enabled() == before


class TestArguments:
    def test_three_kinds(self):
        x = torch.zeros(1)
        assert arguments_of(x) == ((x,), {})
        assert arguments_of([x, 2]) == ((x, 2), {})
        assert arguments_of({'x': x}) == ((), {'x': x})
        assert arguments_of(([{'image': x}],)) == (([{'image': x}],), {})

    @pytest.mark.parametrize('inputs', [None, 2, 'x', (), {}, [[1, 2]]])
    def test_nothing_to_run_on(self, inputs):
        with pytest.raises(GraphError, match='Example inputs are a tensor'):
            arguments_of(inputs)

    def test_told(self):
        assert shapes_of((torch.zeros(2, 3), 4), {}) == '((2, 3), 4)'
        assert shapes_of((), {'x': torch.zeros(2)}) == "(){'x': (2,)}"


class TestOutputs:
    def test_wherever_they_are(self):
        @dataclass
        class Result:
            scores: torch.Tensor
            more: list

        Pair = namedtuple('Pair', 'a b')
        one, two, three, four = (torch.zeros(number) for number in range(4))
        value = {'a': [one], 'b': (Result(two, [three]), 'text', None), 'c': Pair(four, 2)}
        assert [tensor.shape[0] for tensor in output_tensors(value)] == [0, 1, 2, 3]

    def test_paths_of_shared_modules(self):
        shared = nn.Linear(2, 2)
        model = nn.Sequential(shared, nn.Sequential(shared))
        assert module_paths(model) == {id(model): '', id(shared): '0', id(model[1]): '1'}


class TestMapTensors:
    def test_containers_are_copied_only_where_something_changes(self):
        tensor = torch.zeros(2)
        plain, holding = ['a', (1,)], {'t': [tensor, 2]}
        found = []
        assert map_tensors(plain, lambda value, keys: value + 1) is plain
        changed = map_tensors(holding, lambda value, keys: found.append(keys) or value + 1)
        assert found == [('t', 0)]
        assert torch.equal(changed['t'][0], torch.ones(2))
        assert changed['t'][1] == 2
        assert holding['t'][0] is tensor


def test_first_line():
    assert first_line(ValueError('one\ntwo')) == 'ValueError: one'
    assert first_line(KeyError()) == 'KeyError'


def test_inputs_go_to_where_the_model_is():
    model = nn.Linear(2, 2, device='meta')
    moved = moved_to(model, {'x': torch.rand(1), 'more': (torch.rand(2), 3)})
    assert {moved['x'].device.type, moved['more'][0].device.type} == {'meta'}
    assert moved['more'][1] == 3
    both = nn.Sequential(nn.Linear(2, 2), model)  # in several places: the user knows where inputs belong
    x = torch.rand(1)
    assert moved_to(both, x) is x
    assert moved_to(nn.ReLU(), x) is x
    model._hf_hook = object()  # weights that accelerate brings when they are used
    assert moved_to(model, x) is x


def test_mappings_stay_what_they_are_when_they_are_moved():
    class Encoding(UserDict):
        """Stands for what tokenizers give, which pytrees do not know."""

    given = Encoding(input_ids=torch.ones(2, 3), length=3)
    for moved in (moved_to(nn.Linear(1, 1, device='meta'), given), moved_to(nn.Linear(1, 1, device='meta'), (given, 1))[0]):
        assert type(moved) is Encoding
        assert moved['input_ids'].is_meta
        assert moved['length'] == 3
    assert not given['input_ids'].is_meta


def test_a_train_that_returns_nothing_gives_no_model_away():
    class Frozen(nn.Linear):
        def train(self, mode=True):
            super().train(mode)

    layer = Frozen(2, 2)
    assert layer.eval() is None
    layer.train()
    assert evaluated(layer) is layer
    assert not layer.training
