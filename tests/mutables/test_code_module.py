from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from strop.mutables import Expression, InputChoice, LayerChoice, ValueChoice, apply_subnet, extract


def test_a_choice_that_was_called_becomes_code_of_torch_for_what_it_was_called_with() -> None:
    x = torch.tensor([1.0, 2.0])
    for inputs in ([x, x * 3], {'a': x, 'b': x * 3}):
        model = nn.Sequential(LayerChoice([nn.ReLU()], key='a'), LayerChoice([nn.ReLU()], key='b'))
        model.append(InputChoice(choose_from=['a', 'b'], n_chosen=1))
        apply_subnet(model, {'a': 0, 'b': 0, '2': 'b'})
        assert torch.equal(model[2](inputs), x * 3)
        plain = extract(model)
        assert all(type(module).__module__.startswith('torch.') for module in plain.modules())
        assert torch.equal(plain[2](inputs), x * 3)


def test_candidates_are_called_by_position_by_keyword_and_with_defaults() -> None:
    class Scale(nn.Module):
        def forward(self, x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
            return x * factor

    class Shift(nn.Module):
        def forward(self, x: torch.Tensor, factor: float = 2.0, sign: int = 1) -> torch.Tensor:
            return x + sign * factor

    plain = extract(LayerChoice([Scale(), Shift()], key='op'), {'op': [0, 1]})
    assert isinstance(plain, torch.fx.GraphModule)
    x = torch.tensor([3.0])
    assert [float(y) for y in (plain(x), plain(x, 5.0), plain(x=x, factor=1.0))] == [11.0, 23.0, 7.0]


@pytest.mark.parametrize('name', ['graph', 'meta'])
def test_names_that_code_has_for_itself(name: str) -> None:
    plain = extract(LayerChoice({name: nn.ReLU(), 'b': nn.Identity()}, key='op'), {'op': [0, 1]})
    assert torch.equal(plain(torch.tensor([-1.0, 2.0])), torch.tensor([-1.0, 4.0]))


def test_candidates_of_any_arguments() -> None:
    class Any(nn.Module):
        def forward(self, *args: torch.Tensor, flip: bool = False) -> torch.Tensor:
            return -sum(args) if flip else sum(args)

    plain = extract(LayerChoice([Any(), Any()], key='op'), {'op': [0, 1]})
    assert float(plain(torch.ones(1), torch.ones(1), flip=True)) == -4


def test_a_value_that_is_no_literal() -> None:
    value = Expression(lambda name: getattr(torch, name), ValueChoice(['float16', 'float32'], key='v'))
    assert extract(value, {'v': 'float32'})() is torch.float32


def test_a_choice_of_nothing_is_code_that_gives_nothing() -> None:
    plain = extract(LayerChoice([nn.Linear(2, 2), nn.Tanh()], key='op', return_mask=True), {'op': [0.0, 0.0]})
    assert isinstance(plain, torch.fx.GraphModule)
    output, mask = plain(torch.ones(1, 2))
    assert output is None
    assert mask.tolist() == [0.0, 0.0]
    assert extract(LayerChoice([nn.Tanh()], reduction='none', key='op'), {'op': [0.0]})(torch.ones(1)) == []


def test_a_mask_never_goes_into_the_state_dict() -> None:
    plain = extract(LayerChoice([nn.ReLU(), nn.Tanh()], key='op', return_mask=True), {'op': [0, 1]})
    for module in (plain, copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert list(module.state_dict()) == []
        assert module.train(False).training is False
        assert module(torch.zeros(1))[1].tolist() == [True, True]
