"""Functions whose work no operator shows, as those of compiled extensions: here numpy does it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from strop.errors import GraphError, VerificationError
from strop.graph import axis_rule, channel_units, inference, prove
from strop.graph.autograd_functions import whole_functions

IMAGE = torch.linspace(-1, 1, 2 * 3 * 6 * 6).cos().reshape(2, 3, 6, 6)


class Doubled(torch.autograd.Function):
    """Twice the input, written into memory behind the back of every operator."""

    @staticmethod
    def forward(ctx, x, times):
        out = x.new_zeros(x.shape[0], x.shape[1], *(int(size) for size in x.shape[2:]))
        out.numpy()[...] = x.numpy() * times
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad * 2, None


class Tripled(torch.autograd.Function):
    """Three times the input by operators, in the newer style without a context."""

    @staticmethod
    def forward(x):
        return x * 3

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


doubled = Doubled.apply  # bound early, as packages do


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.stem(x)))


@pytest.fixture
def rule() -> Iterator[None]:
    name = f'{__name__}.Doubled'
    axis_rule(name)(lambda call: call.axes(call.args[0]))
    yield
    del inference._rules[name]
    inference._found.clear()


def test_what_a_function_without_a_rule_does_unseen_freezes_what_it_takes_and_gives() -> None:
    graph = channel_units(Net(lambda x: doubled(x, 2)), IMAGE)
    assert not graph.units
    reasons = {(axis.tensor, axis.axis): str(axis.reason) for axis in graph.frozen}
    assert reasons['stem.weight', 0] == reasons['last.weight', 1] == f'no axis rule for {__name__}.Doubled'


def test_a_rule_couples_what_it_takes_with_what_it_gives(rule: None) -> None:
    model = Net(lambda x: doubled(x, 2))
    graph = channel_units(model, IMAGE)
    assert [(place.tensor, place.axis) for place in graph.units['stem'].placements] == [
        ('stem.weight', 0),
        ('stem.bias', 0),
        ('last.weight', 1),
    ]
    assert [call.name for call in graph.calls] == ['convolution', f'{__name__}.Doubled', 'convolution']
    assert prove(model, IMAGE).holds


def test_a_rule_that_forgets_the_coupling_is_found_out(rule: None) -> None:
    axis_rule(f'{__name__}.Doubled')(lambda call: [call.fresh(size) for size in call.out.shape])
    with pytest.raises(VerificationError, match='cannot run after it was cut'):
        prove(Net(lambda x: doubled(x, 2)), IMAGE)


class Single(Doubled):
    """As compiled code that was built for single precision only."""

    @staticmethod
    def forward(ctx, x, times):
        if x.dtype != torch.float32:
            raise RuntimeError('expected scalar type Float but found Double')
        return Doubled.forward(ctx, x, times)


def test_a_proof_in_double_precision_of_code_that_has_none() -> None:
    axis_rule(Single)(lambda call: call.axes(call.args[0]))
    assert prove(Net(lambda x: Single.apply(x, 2)), IMAGE).holds


def test_what_is_wrong_in_single_precision_is_told() -> None:
    with pytest.raises(GraphError, match='expected scalar type Float but found Double'):
        channel_units(Net(lambda x: Single.apply(x.double().long(), 2)), IMAGE)


def test_a_function_made_of_operators_needs_no_rule() -> None:
    model = Net(lambda x: Tripled.apply(x))
    assert [unit.name for unit in channel_units(model, IMAGE)] == ['stem']
    assert prove(model, IMAGE).holds


def test_the_functions_are_as_before_afterwards() -> None:
    before = [vars(cls)['forward'] for cls in (Doubled, Tripled)]
    with pytest.raises(KeyError), whole_functions(lambda cls: cls is Doubled):
        assert vars(Doubled)['forward'] is not before[0]
        assert vars(Tripled)['forward'] is before[1]
        raise KeyError
    assert [vars(cls)['forward'] for cls in (Doubled, Tripled)] == before


def test_gradients_pass_while_functions_are_watched() -> None:
    x = torch.ones(2, requires_grad=True)
    with whole_functions(lambda cls: True):
        Tripled.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3]
