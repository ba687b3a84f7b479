from __future__ import annotations

import torch
from torch import nn

from strop.estimators.activation import PeakMemory
from strop.estimators.guards import Answers
from strop.estimators.supernet import trace_supernet
from strop.mutables import LayerChoice, bind

KB = 4 * 16


def peaks(model: nn.Module, subnets: list[dict]) -> list[int]:
    binding = bind(model)
    supernet = trace_supernet(model, binding, (torch.zeros(1, 4, 2, 2),), {})
    return PeakMemory(supernet)(Answers(binding.space, [binding.space.subnet(subnet) for subnet in subnets])).tolist()


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def test_a_chosen_identity_keeps_the_input_alive_by_hand():
    wide = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    model = nn.Sequential(
        LayerChoice([nn.Identity(), nn.ReLU(), wide], key='a'), Residual(LayerChoice([nn.ReLU(), wide], key='b'))
    )
    # a: nothing of its own, x + relu, x + wide (8 + 8 channels: the input is dead by then)
    # b: x, relu, sum; x + 8 + 8 channels
    assert peaks(model, [{'a': a, 'b': b} for a in range(3) for b in range(2)]) == [
        3 * KB, 5 * KB,
        3 * KB, 5 * KB,
        4 * KB, 5 * KB,
    ]  # fmt: skip


def test_an_input_that_only_some_alternatives_use():
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.op = LayerChoice([nn.ReLU(), nn.Identity()], key='op')
            self.last = LayerChoice([First(), Second()], key='last')

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.op(x)
            for _ in range(2):
                y = y.sin()
            return self.last(x, y)

    class First(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.cos()

    class Second(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return y.cos()

    # the input lives to the end with `last` 0, which reads it, and dies early with 1
    assert peaks(Tail(), [{'op': 0, 'last': 0}, {'op': 0, 'last': 1}, {'op': 1, 'last': 0}, {'op': 1, 'last': 1}]) == [
        3 * KB, 2 * KB,
        3 * KB, 2 * KB,
    ]  # fmt: skip


def test_nothing_to_estimate():
    assert peaks(nn.Sequential(LayerChoice([nn.Identity()], key='op')), []) == []
    assert peaks(nn.Sequential(LayerChoice([nn.Identity()], key='op')), [{'op': 0}]) == [KB]
