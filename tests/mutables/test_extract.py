from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strop.errors import NotDecidedError, SubnetError
from strop.mutables import (
    Expression,
    InputChoice,
    Keyed,
    LayerChoice,
    MutableScope,
    Repeat,
    Space,
    ValueChoice,
    apply_subnet,
    current_subnet,
    extract,
    mutables_of,
    space_of,
)

from .drawn import WIDTH, models


def is_plain(model: nn.Module) -> bool:
    return not any(isinstance(module, (Keyed, Repeat, Expression)) for module in model.modules())


@given(models(), st.integers(0, 2**32), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_extracted_model_is_the_active_one(model: nn.Module, seed: int, weighted: bool) -> None:
    model = nn.Sequential(model)
    x = torch.randn(2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(seed)
    space = space_of(model)
    state = copy.deepcopy(model.state_dict())
    if weighted:
        subnet = apply_subnet(
            model,
            {
                key: list(rng.random(len(domain))) if domain.mixable else domain.format(domain.sample(rng))
                for key, domain in space.items()
            },
        )
    else:
        subnet = apply_subnet(model, space.sample(rng))
    assert current_subnet(model) == subnet
    expected = model(x)
    plain = extract(model, subnet)
    assert is_plain(plain)
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in model.parameters()}
    output = plain(x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    if output.requires_grad:
        expected.square().sum().backward()
        output.square().sum().backward()
        sizes = [sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None) for net in (model, plain)]
        torch.testing.assert_close(*sizes, rtol=1e-9, atol=1e-12)
    # The original is as it was, and gives the same again.
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(extract(model)(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(extract(plain)(x), output, rtol=0, atol=0)
    assert current_subnet(model) == subnet


@given(models(), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_spaces_of_models_are_counted_right(model: nn.Module, seed: int) -> None:
    space = space_of(model)
    if space.count() <= 200:
        assert len({subnet.digest for subnet in space.grid()}) == space.count()
    assert Space.from_dict(space.to_dict()) == space
    subnet = space.sample(np.random.default_rng(seed))
    assert apply_subnet(model, subnet) == subnet


class Net(nn.Module):
    """One of each kind, weighted and plain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = LayerChoice([nn.Conv2d(3, 8, k, padding=k // 2) for k in (1, 3)])
        self.stack = Repeat(
            LayerChoice([nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)), nn.Identity()]), (1, 3)
        )
        self.mix = LayerChoice([nn.Conv2d(8, 8, 1), nn.Identity()], reduction='mean', return_mask=True)
        self.pick = InputChoice(n_candidates=3, n_chosen=2, reduction='concat', return_mask=True)
        self.named = InputChoice(choose_from=['stem', 'mix'], n_chosen=1)
        self.slope = ValueChoice([0.1, 0.2])
        self.twice = self.slope * 2
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x)
        deep = self.stack(stem)
        mixed, mask = self.mix(deep)
        joined, chosen = self.pick([stem, deep, mixed])
        extra = self.named({'stem': stem, 'mix': mixed})
        joined = nn.functional.leaky_relu(joined, self.slope()) * mask.sum() + self.twice() * chosen.sum()
        return self.head(joined.mean((2, 3))) + extra.mean()


SUBNET = {
    'stem': 1, 'stack.depth': 2, 'stack.0': 0, 'stack.1': 1, 'mix': [0.25, 0.5], 'pick': [0, 2], 'named': 'mix', 'slope': 0.2,
}  # fmt: skip


class TestPlainness:
    @pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
    def test_it_compiles_without_a_graph_break(self, backend: str) -> None:
        model = Net().eval()
        apply_subnet(model, SUBNET)
        plain = extract(model)
        x = torch.randn(2, 3, 4, 4)
        torch._dynamo.reset()
        compiled = torch.compile(plain, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(x), model(x))
        compiled(x).sum().backward()
        assert plain.head.weight.grad is not None

    def test_a_scope_compiles_too(self) -> None:
        class Cell(MutableScope):
            def __init__(self) -> None:
                super().__init__('cell')
                self.op = LayerChoice([nn.ReLU(), nn.Tanh()])

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.op(x)

        plain = extract(nn.Sequential(Cell()), {'0.op': 1})
        torch._dynamo.reset()
        assert torch.equal(torch.compile(plain, fullgraph=True, backend='eager')(torch.ones(2)), torch.ones(2).tanh())

    def test_it_exports(self) -> None:
        plain = extract(Net().eval(), SUBNET)
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(torch.export.export(plain, (x,)).module()(x), plain(x))

    def test_the_names_of_the_weights(self) -> None:
        plain = extract(Net(), SUBNET)
        assert is_plain(plain)
        names = list(plain.state_dict())
        assert names[:3] == ['stem.weight', 'stem.bias', 'stack.0.0.weight']
        assert not any('mask' in name for name in names)
        assert mutables_of(plain) == []


class TestRoots:
    def test_choices_of_every_kind(self) -> None:
        layers = [nn.Linear(1, 1), nn.Linear(1, 1)]
        assert type(extract(LayerChoice(layers), {'layerchoice': 1})) is nn.Linear
        assert extract(ValueChoice([1, 2], key='v'), {'v': 2})() == 2
        assert isinstance(extract(Repeat(nn.ReLU(), (0, 2), key='d'), {'d': 0}), nn.Sequential)
        assert extract(InputChoice(2, n_chosen=1, key='i'), {'i': 1})(['a', 'b']) == 'b'
        value = ValueChoice([1, 2], key='v') * 5
        assert extract(value, {'v': 2})() == 10

    def test_a_plain_model_comes_back_as_a_copy(self) -> None:
        model = nn.Sequential(nn.Linear(1, 1))
        plain = extract(model)
        assert plain[0] is not model[0]
        assert plain[0].weight.equal(model[0].weight)


class TestModes:
    def test_training_flags_are_kept(self) -> None:
        frozen = nn.BatchNorm1d(2).eval()
        model = nn.Sequential(
            LayerChoice([frozen, nn.Sequential(nn.BatchNorm1d(2).eval(), nn.ReLU())]), Repeat(nn.ReLU(), (1, 2), key='d')
        )
        assert model.training
        plain = extract(model, {'0': 0, 'd': 1})
        assert plain.training
        assert plain[1].training
        assert not plain[0].training
        plain = extract(model, {'0': 1, 'd': 1})
        assert plain[0].training
        assert not plain[0][0].training
        assert not any(module.training for module in extract(model.eval(), {'0': 1, 'd': 1}).modules())

    def test_shared_weights_stay_shared(self) -> None:
        linear = nn.Linear(2, 2)
        model = nn.Sequential(LayerChoice([linear, nn.ReLU()], key='a'), LayerChoice([linear, nn.Tanh()], key='b'))
        plain = extract(model, {'a': 0, 'b': 0})
        assert plain[0] is plain[1]


def test_candidates_may_have_any_name_that_a_choice_accepts() -> None:
    names = ['weights', 'names', 'mask', 'layers', 'picks']
    allowed = [name for name in names if name not in ('names', 'mask')]
    model = nn.Sequential(LayerChoice({name: nn.Linear(1, 1) for name in allowed}, return_mask=True))
    x = torch.ones(1)
    for choice in (allowed, [0.5, 0.25, 0.25]):
        subnet = apply_subnet(model, {'0': choice})
        plain = extract(model, subnet)
        torch.testing.assert_close(plain(x)[0], model(x)[0])
        assert list(plain.state_dict()) == list(model.state_dict())


class TestErrors:
    def test_undecided(self) -> None:
        with pytest.raises(NotDecidedError, match='has no decision'):
            extract(Net())
        with pytest.raises(NotDecidedError):
            current_subnet(Net())

    def test_wrong_subnets(self) -> None:
        with pytest.raises(SubnetError, match="no choice for 'stem'"):
            extract(Net(), {})
        with pytest.raises(SubnetError, match="Did you mean 'stem'"):
            extract(Net(), {**SUBNET, 'stemm': 0})
