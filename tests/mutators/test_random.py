from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from strop.mutables import InputChoice, LayerChoice, Repeat, ValueChoice
from strop.mutators import BaseMutator, Mutator, NasMutator, OneShotModuleMutator, OneShotMutator, RandomMutator
from strop.registry import MODELS, MUTATORS


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice([nn.Linear(4, 4), nn.Identity(), nn.Tanh()], key='op')
        self.again = LayerChoice([nn.Linear(4, 4), nn.Identity(), nn.Tanh()], key='op')
        self.any = InputChoice(n_candidates=3)
        self.two = InputChoice(n_candidates=3, n_chosen=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        op, again = self.op(x), self.again(x)
        some = self.any([x, op, again])
        both = self.two([x, op, again])
        return both if some is None else both + some


X = torch.randn(2, 4)


def test_a_random_mutator_as_nnis_guide_writes_it() -> None:
    class RandomMutator(Mutator):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)  # don't forget to call super
            # do something else

        def sample_search(self) -> dict[str, torch.Tensor]:
            result = dict()
            for mutable in self.mutables:  # this is all the mutable modules in user model
                # mutables share the same key will be de-duplicated
                if isinstance(mutable, LayerChoice):
                    # decided that this mutable should choose `gen_index`
                    gen_index = np.random.randint(mutable.length)
                    result[mutable.key] = torch.tensor([i == gen_index for i in range(mutable.length)], dtype=torch.bool)
                elif isinstance(mutable, InputChoice):
                    if mutable.n_chosen is None:  # n_chosen is None, then choose any number
                        result[mutable.key] = torch.randint(high=2, size=(mutable.n_candidates,)).view(-1).bool()
                    else:
                        perm = torch.randperm(mutable.n_candidates)
                        mask = [i in perm[: mutable.n_chosen] for i in range(mutable.n_candidates)]
                        result[mutable.key] = torch.tensor(mask, dtype=torch.bool)
            return result

        def sample_final(self) -> dict[str, torch.Tensor]:
            return self.sample_search()  # use the same logic here. you can do something different

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model = Cells()
        mutator = RandomMutator(model)
        seen = set()
        for _ in range(20):
            mutator.reset()
            model(X.clone().requires_grad_()).sum().backward()
            seen.add(mutator.current_subnet())
            before = mutator.status()
            exported = mutator.export()
            assert {key: value.dtype for key, value in exported.items()} == dict.fromkeys(['op', 'any', 'two'], torch.bool)
            assert mutator.status() == before
            assert [int(exported[key].sum()) for key in ('op', 'two')] == [1, 2]
    assert len(seen) > 10


def test_a_one_shot_mutator_written_on_the_base_class() -> None:
    class OneShot(BaseMutator):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.calls: list[str] = []

        @staticmethod
        def get_random_mask(space_info: Mapping[str, Any]) -> torch.Tensor:
            mask = torch.zeros_like(space_info['space_mask'])
            allowed = torch.nonzero(space_info['space_mask']).flatten()
            count = space_info['num_chosen']
            count = len(allowed) if count is None else count
            mask[allowed[torch.randperm(len(allowed))[:count]]] = 1
            return mask

        def sample_subnet(self) -> dict[str, torch.Tensor]:
            self.calls.append('sample')
            return {key: self.get_random_mask(info) for key, info in self.search_spaces.items()}

        def set_subnet(self, subnet_dict: Mapping[str, Any]) -> None:
            self.calls.append('set')
            for key, mask in subnet_dict.items():
                for module in self.search_spaces[key]['modules']:
                    module.decide(mask)

        @staticmethod
        def reset_in_subnet(m: nn.Module, in_subnet: bool = True) -> None:
            m.inside = in_subnet

        def set_chosen_subnet(self, subnet_dict: Mapping[str, Any]) -> None:
            self.calls.append('fix')
            super().set_chosen_subnet(subnet_dict)

        def mutation(self, subnet_dict: Mapping[str, Any], prob: float = 0.1) -> dict[str, torch.Tensor]:
            return {
                key: self.get_random_mask(self.search_spaces[key]) if float(torch.rand(1)) < prob else mask
                for key, mask in subnet_dict.items()
            }

        @staticmethod
        def crossover(subnet_dict1: Mapping[str, Any], subnet_dict2: Mapping[str, Any]) -> dict[str, Any]:
            return {key: subnet_dict2[key] if float(torch.rand(1)) < 0.5 else mask for key, mask in subnet_dict1.items()}

    MODELS.register_module(module=OneShot, name='TestedOneShot', force=True)
    mutator = MUTATORS.build({'type': 'TestedOneShot'})
    model = Cells()
    mutator.prepare_from_supernet(model)
    first, second = mutator.sample_subnet(), mutator.sample_subnet()
    mutator.set_subnet(mutator.crossover(mutator.mutation(first, 0.5), second))
    assert model.op.decision == model.again.decision
    assert first['any'].tolist() == [1.0, 1.0, 1.0]
    assert model(X).shape == X.shape
    model.apply(mutator.reset_in_subnet)
    assert model.two.inside is True
    mutator.set_chosen_subnet(first)
    assert mutator.calls == ['sample', 'sample', 'set', 'fix']
    assert not any(isinstance(module, LayerChoice) for module in model.modules())


@pytest.mark.parametrize('cls', [RandomMutator, OneShotMutator])
def test_draws_are_uniform(cls: type[Mutator]) -> None:
    torch.manual_seed(0)
    mutator = cls(Cells())
    counts: dict[str, dict[object, int]] = {key: {} for key in mutator.space}
    n = 1200
    for _ in range(n):
        for key, choice in mutator.space.subnet(mutator.sample_search()).choices.items():
            counts[key][choice] = counts[key].get(choice, 0) + 1
    for key, seen in counts.items():
        size = mutator.space[key].size
        assert len(seen) == size
        # chi-square at p = 0.001 for 7 degrees of freedom, the most here
        assert sum((count - n / size) ** 2 / (n / size) for count in seen.values()) < 24.3


def test_forms_of_what_they_draw() -> None:
    assert {mask.dtype for mask in RandomMutator(Cells()).sample_search().values()} == {torch.bool}
    masks = OneShotMutator(Cells()).sample_subnet()
    assert all(set(mask.tolist()) <= {0.0, 1.0} for mask in masks.values())


def test_an_overridden_sample_subnet_is_what_reset_draws() -> None:
    class Last(OneShotMutator):
        def sample_subnet(self) -> dict[str, Any]:
            return {key: next(reversed(list(self.space[key].grid()))) for key in self.space}

        def set_subnet(self, subnet_dict: Mapping[str, Any]) -> None:
            raise AssertionError('reset applies by apply_on_model')

    mutator = Last(nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()])))
    mutator.reset()
    assert mutator.current_choices == {'0': 1}


@pytest.mark.parametrize('name', ['OneShotMutator', 'OneShotModuleMutator', 'NasMutator'])
@pytest.mark.parametrize('scope', ['', 'strop.', 'mmrazor.'])
def test_mmrazors_names_reach_one_class(name: str, scope: str) -> None:
    assert MODELS.get(scope + name) is MUTATORS.get(scope + name) is OneShotMutator is OneShotModuleMutator is NasMutator


def test_built_from_a_config() -> None:
    mutator = MODELS.build({'type': 'mmrazor.NasMutator', 'custom_groups': [['0', '1']], 'init_cfg': None})
    mutator.prepare_from_supernet(nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()]), LayerChoice([nn.ReLU(), nn.GELU()])))
    assert list(mutator.space) == ['0']


def test_nested_spaces() -> None:
    torch.manual_seed(0)
    inner = LayerChoice([nn.Sequential(LayerChoice([nn.Linear(4, 4), nn.Identity()])), nn.Tanh()])
    model = nn.Sequential(Repeat(inner, ValueChoice([1, 3])))
    mutator = RandomMutator(model)
    seen = set()
    for _ in range(400):
        mutator.reset()
        assert model(X).shape == X.shape
        seen.add(mutator.current_subnet())
    assert len(seen) == mutator.space.count() == 3 + 27
