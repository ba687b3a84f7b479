from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from engine.forked import in_group
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from strop.errors import NotDecidedError, SpaceError
from strop.mutables import (
    InputChoice,
    LayerChoice,
    Mutable,
    MutableScope,
    OneOf,
    Repeat,
    ValueChoice,
    apply_subnet,
    mutables_of,
    space_of,
)
from strop.mutators import OneShotMutator, RandomMutator
from strop.randomness import seeded


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())])
        self.stack = Repeat(LayerChoice([nn.Linear(4, 4), nn.Identity()]), ValueChoice([1, 2]))
        self.pick = InputChoice(n_candidates=2)
        self.scale = ValueChoice([1.0, 3.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.pick([x, self.stack(x)]) * self.scale()


SUBNET = {'first': 1, 'stack.depth': 2, 'stack.0': 0, 'stack.1': 1, 'pick': [0, 1], 'scale': 3.0}
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def decided() -> Net:
    torch.manual_seed(0)
    model = Net()
    apply_subnet(model, SUBNET)
    return model


class TestCopies:
    @pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    @pytest.mark.parametrize('bound', [False, True])
    def test_a_copy_is_unbound_and_keeps_the_decision(self, copied: object, bound: bool) -> None:
        model = decided()
        mutator = RandomMutator(model) if bound else None
        twin = copied(model)
        assert torch.equal(twin(X), model(X))
        assert all(mutable.owner is None for mutable in mutables_of(twin))
        assert [mutable.key for mutable in mutables_of(twin)] == [mutable.key for mutable in mutables_of(model)]
        other = RandomMutator(twin)
        other.set_subnet({**SUBNET, 'scale': 1.0})
        torch.testing.assert_close(twin(X) * 3, model(X))
        assert mutator is None or mutator.current_choices['scale'] == 3.0

    def test_weights_with_a_gradient_are_detached_in_the_copy_only(self) -> None:
        model = decided()
        alpha = torch.zeros(2, requires_grad=True)
        model.first.decide((alpha * 2).softmax(0))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert not twin.first.decision.requires_grad
            assert torch.equal(twin(X), model(X))
        model(X).sum().backward()
        assert alpha.grad is not None

    def test_by_torch_save(self) -> None:
        buffer = io.BytesIO()
        torch.save(decided(), buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(X), decided()(X))


class TestState:
    def test_decisions_are_not_in_the_state_dict(self) -> None:
        model = Net()
        names = list(model.state_dict())
        apply_subnet(model, {**SUBNET, 'first': [0.5, 0.5]})
        RandomMutator(model)
        assert list(model.state_dict()) == names
        assert all(name.rsplit('.', 1)[1] in ('weight', 'bias') for name in names)

    def test_moving_the_model(self) -> None:
        model = decided().to(torch.float64)
        assert model(X.double()).dtype == torch.float64
        model.first.decide(torch.tensor([0.5, 0.25]))
        assert model(X.double()).dtype == torch.float64
        half = decided().to(torch.bfloat16)
        half.first.decide([0.5, 0.25])
        assert half(X.bfloat16()).dtype == torch.bfloat16

    def test_the_decision_survives_training_mode_and_freezing(self) -> None:
        model = decided().eval().requires_grad_(False)
        assert model(X).shape == (2, 4)

    def test_undecided(self) -> None:
        with pytest.raises(NotDecidedError, match='ModuleList'):
            Net()(X)

    def test_printing(self) -> None:
        assert "(pick): InputChoice(key='pick', any_of of 2)" in repr(decided())
        assert 'key=None, one_of of 2' in repr(Net())


class TestOwnKinds:
    def test_a_kind_of_ones_own(self) -> None:
        class Gate(Mutable):
            def make_domain(self) -> OneOf:
                return OneOf(('open', 'shut'))

            def run(self, x: torch.Tensor) -> torch.Tensor:
                return x if self.decided() == (0,) else x * 0

        model = nn.Sequential(Gate())
        RandomMutator(model).set_subnet({'0': 'shut'})
        assert model(torch.ones(1)).item() == 0.0

    def test_what_it_must_define_is_said(self) -> None:
        with pytest.raises(SpaceError, match=r'must define make_domain\(\)'):
            Mutable('a').domain
        with pytest.raises(SpaceError, match=r'must define run\(\)'):
            Mutable('a')()


def train_on_one_of_two(rank: int, folder: Path) -> None:
    """Train random subnets, and write which ones they were and what was learned."""
    torch.distributed.init_process_group('gloo')
    torch.manual_seed(0)
    choices = [LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())]) for _ in range(3)]
    model = nn.Sequential(*choices, nn.Linear(4, 1))
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    mutator = OneShotMutator(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    steps: list[tuple[str, list[float | None]]] = []
    torch.manual_seed(rank)  # data differ, and so does the state of the global generators
    for step in range(6):
        with seeded(0, 'subnet', step):
            mutator.reset()
        optimizer.zero_grad()
        wrapped(torch.randn(8, 4)).square().mean().backward()
        gradients = [None if p.grad is None else p.grad.double().sum().item() for p in model.parameters()]
        steps.append((mutator.current_subnet().digest, gradients))
        optimizer.step()
    steps.append(('weights', [p.double().sum().item() for p in model.parameters()]))
    (folder / f'{rank}.json').write_text(json.dumps(steps))
    torch.distributed.destroy_process_group()


def test_two_ddp_processes_agree(tmp_path: Path) -> None:
    in_group(train_on_one_of_two, tmp_path, folder=tmp_path)
    first, second = (json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1))
    assert first == second
    digests = [digest for digest, _ in first[:-1]]
    assert len(set(digests)) > 1
    assert any(gradient for _, gradients in first[:-1] for gradient in gradients)


def test_the_name_is_the_path_unless_a_sub_class_sets_its_own() -> None:
    class Cell(MutableScope):
        def __init__(self) -> None:
            super().__init__('cell')
            self.name = 'mine'
            self.op = LayerChoice([nn.ReLU(), nn.Tanh()], key='act')

    model = nn.Sequential(Cell())
    assert model[0].op.name is None
    space_of(model)
    assert (model[0].op.name, model[0].op.key, model[0].name, model[0].path) == ('0.op', 'act', 'mine', '0')
