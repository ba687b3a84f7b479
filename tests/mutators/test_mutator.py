from __future__ import annotations

import copy
import gc
import pickle
import time
import warnings
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from strop.errors import BindingError, ConfigError, NotDecidedError, SpaceError, SubnetError, UnknownKeyError
from strop.mutables import InputChoice, LayerChoice, Mutable, MutableScope, Repeat, ValueChoice, dump_subnet, mutables_of
from strop.mutators import BaseMutator, Mutator, RandomMutator


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice(
            OrderedDict(conv=nn.Linear(4, 4), wide=nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 4)), skip=nn.Identity())
        )
        self.plain = LayerChoice([nn.Linear(4, 4), nn.Identity()])
        self.pick = InputChoice(n_candidates=3, n_chosen=2)
        self.named = InputChoice(choose_from=['op', 'plain'])
        self.scale = ValueChoice([2.0, 1.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        op = self.op(x)
        plain = self.plain(op)
        extra = self.named([op, plain])
        x = self.pick([x, op, plain]) * self.scale()
        return x if extra is None else x + extra


SUBNET = {'op': 'skip', 'plain': 1, 'pick': [0, 2], 'named': ['op'], 'scale': 1.0}
X = torch.randn(2, 4)


class Fixed(Mutator):
    """Returns what it is told to."""

    def __init__(self, model: nn.Module, **final: Any) -> None:
        super().__init__(model)
        self.final = final

    def sample_search(self) -> dict[str, Any]:
        return self.final

    sample_final = sample_search


class TestBinding:
    def test_a_mutator_takes_one_model_once(self) -> None:
        model = Net()
        mutator = RandomMutator(model)
        assert mutator.model is model
        with pytest.raises(RuntimeError, match=r'bound to a Net already. A mutator belongs to exactly one model'):
            mutator.prepare_from_supernet(Net())
        with pytest.raises(BindingError, match='cannot be exchanged'):
            mutator.model = Net()

    @pytest.mark.parametrize('wrap', [lambda model: model, nn.Sequential, lambda model: model.op])
    def test_a_model_takes_one_mutator(self, wrap: Any) -> None:
        model = Net()
        first = RandomMutator(model)
        keys = [mutable.key for mutable in first.mutables]
        with pytest.raises(RuntimeError, match=r"'op' is bound to a RandomMutator already.*release\(\).*deepcopy"):
            RandomMutator(wrap(model))
        assert [mutable.key for mutable in first.mutables] == keys
        first.reset()

    def test_later(self) -> None:
        mutator = RandomMutator()
        for use in (
            lambda: mutator.model,
            lambda: mutator.space,
            mutator.reset,
            lambda: mutator.mutables,
            mutator.sample_subnet,
        ):
            with pytest.raises(BindingError, match='bound to no model yet'):
                use()
        mutator.prepare_from_supernet(Net())
        mutator.reset()

    def test_a_copy_of_the_model_is_free(self) -> None:
        model = Net()
        first = RandomMutator(model)
        first.reset()
        second = RandomMutator(copy.deepcopy(model))
        second.set_subnet({**SUBNET, 'scale': 2.0})
        first.set_subnet(SUBNET)
        assert (first.current_choices['scale'], second.current_choices['scale']) == (1.0, 2.0)

    def test_release(self) -> None:
        model = Net()
        first = RandomMutator(model)
        first.set_subnet(SUBNET)
        expected = model(X)
        first.release()
        assert torch.equal(model(X), expected)
        assert all(mutable.owner is None for mutable in mutables_of(model))
        with pytest.raises(BindingError, match='no model yet'):
            first.reset()
        assert RandomMutator(model).current_choices == SUBNET
        first.release()

    def test_a_deleted_mutator_leaves_the_model_free(self) -> None:
        model = Net()
        mutator = RandomMutator(model)
        gone = weakref.ref(mutator)
        mutator.reset()
        del mutator
        gc.collect()
        assert gone() is None
        RandomMutator(model).reset()

    def test_what_is_no_model(self) -> None:
        with pytest.raises(TypeError, match=r'must be an nn.Module, but got list'):
            RandomMutator([LayerChoice([nn.ReLU()])])

    def test_a_model_without_mutables(self) -> None:
        mutator = RandomMutator(nn.Linear(1, 1))
        mutator.reset()
        assert (mutator.mutables, mutator.export(), mutator.space.count()) == ([], {}, 1)

    def test_its_parameters_are_only_its_own(self) -> None:
        class Learned(RandomMutator):
            def __init__(self, model: nn.Module) -> None:
                super().__init__(model)
                self.alpha = nn.Parameter(torch.zeros(3))

        mutator = Learned(Net())
        assert list(dict(mutator.named_parameters())) == ['alpha']
        assert list(mutator.state_dict()) == ['alpha']
        assert len(list(mutator.modules())) == 1
        mutator.double()
        assert next(mutator.model.parameters()).dtype == torch.float32

    def test_forward_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match='A mutator has no forward'):
            RandomMutator(Net())(X)


class TestListing:
    def test_order_scopes_and_duplicates(self) -> None:
        class Cell(MutableScope):
            def __init__(self) -> None:
                super().__init__('cell')
                self.op = LayerChoice([nn.ReLU()], key='a')

        model = nn.Sequential(Cell(), LayerChoice([nn.ReLU()], key='a'), LayerChoice([nn.ReLU()], key='b'))
        mutator = RandomMutator(model)
        assert [mutable.key for mutable in mutator.mutables] == ['cell', 'a', 'b']
        assert [mutable.key for mutable in mutator.undedup_mutables] == ['cell', 'a', 'a', 'b']
        assert mutator.mutables[1] is model[0].op
        assert mutator.search_groups == {0: [model[0].op, model[1]], 1: [model[2]]}

    def test_attributes_that_mutators_read(self) -> None:
        op, _, pick, named, scale = RandomMutator(Net()).mutables
        assert (op.key, op.length, op.names) == ('op', 3, ['conv', 'wide', 'skip'])
        assert (pick.n_candidates, pick.n_chosen, pick.length) == (3, 2, 3)
        assert (named.n_chosen, named.choose_from) == (None, ['op', 'plain'])
        assert scale.values == (2.0, 1.0)


class TestResetAndExport:
    def test_reset_stays_in_effect(self) -> None:
        mutator = RandomMutator(Net())
        with pytest.raises(NotDecidedError, match=r'Call mutator\.reset\(\)'):
            mutator.model(X)
        mutator.reset()
        assert torch.equal(mutator.model(X), mutator.model(X))

    def test_export_changes_nothing_in_the_model(self) -> None:
        mutator = Fixed(Net(), **SUBNET)
        mutator.set_subnet({'op': 'conv', 'plain': 0, 'pick': [1, 2], 'named': [], 'scale': 2.0})
        state = {key: value.clone() for key, value in mutator.model.state_dict().items()}
        before, status = mutator.current_choices, mutator.status()
        mutator.export()
        mutator.export(readable=True)
        assert (mutator.current_choices, mutator.status()) == (before, status)
        assert all(torch.equal(value, state[key]) for key, value in mutator.model.state_dict().items())

    def test_exported_tensors(self) -> None:
        alpha = torch.tensor([0.5, 0.25, 0.25], requires_grad=True)
        exported = Fixed(Net(), **{**SUBNET, 'op': alpha, 'plain': torch.tensor([True, False])}).export()
        assert {key: (value.dtype, value.tolist()) for key, value in exported.items()} == {
            'op': (torch.float32, [0.5, 0.25, 0.25]),
            'plain': (torch.bool, [True, False]),
            'pick': (torch.bool, [True, False, True]),
            'named': (torch.bool, [True, False]),
            'scale': (torch.bool, [False, True]),
        }
        assert not exported['op'].requires_grad
        alpha.data.zero_()
        assert exported['op'].tolist() == [0.5, 0.25, 0.25]

    @pytest.mark.parametrize(
        ('key', 'mask', 'readable'),
        [
            ('op', torch.tensor([False, True, False]), 'wide'),
            ('op', torch.tensor([1.0, 0.0, 0.0]), 'conv'),
            ('op', torch.tensor([True, False, True]), ['conv', 'skip']),
            ('op', torch.tensor([0.5, 0.5, 0.0]), [0.5, 0.5, 0.0]),
            ('op', torch.zeros(3, dtype=torch.bool), [0.0, 0.0, 0.0]),
            ('plain', torch.tensor([False, True]), 1),
            ('pick', torch.tensor([True, False, True]), [0, 2]),
            ('named', torch.tensor([True, True]), ['op', 'plain']),
            ('named', torch.tensor([False, True]), 'plain'),
            ('named', torch.tensor([False, False]), []),
            ('scale', torch.tensor([True, False]), 2.0),
        ],
    )
    def test_readable_form(self, key: str, mask: torch.Tensor, readable: object) -> None:
        mutator = Fixed(Net(), **{**SUBNET, key: mask})
        exported = mutator.export(readable=True)
        assert exported[key] == readable
        assert mutator.space.subnet(exported) == mutator.space.subnet(mutator.export())

    @pytest.mark.parametrize(
        ('change', 'error', 'text'),
        [
            ({'opp': 0}, UnknownKeyError, "Did you mean 'op'"),
            ({'op': None}, SubnetError, "'op': None is none of"),
            ({'op': torch.tensor([True, False])}, SubnetError, r"'op': A mask needs one entry for each of 3"),
            ({'pick': torch.ones(3, dtype=torch.bool)}, SubnetError, 'Exactly 2 alternatives'),
            ({'op': torch.tensor([0, 2, 0])}, SubnetError, '0 and 1 only'),
        ],
    )
    def test_wrong_masks(self, change: dict[str, object], error: type[Exception], text: str) -> None:
        mutator = Fixed(Net(), **{**SUBNET, **change})
        mutator.set_subnet(SUBNET)
        for use in (mutator.export, mutator.reset):
            with pytest.raises(error, match=text):
                use()
        assert mutator.current_choices == SUBNET

    def test_missing_keys(self) -> None:
        with pytest.raises(SubnetError, match="no choice for 'plain'"):
            Fixed(Net(), op=0).export()

    def test_inactive_keys_may_be_given_or_left_out(self) -> None:
        model = nn.Sequential(Repeat(LayerChoice([nn.ReLU(), nn.Tanh()]), (1, 2), key='depth'))
        for final in ({'depth': 1, '0.0': 0}, {'depth': 1, '0.0': 0, '0.1': 1}):
            mutator = Fixed(model, **final)
            assert mutator.export(readable=True) == {'depth': 1, '0.0': 0}
            mutator.release()

    def test_status(self) -> None:
        mutator = RandomMutator(Net())
        assert mutator.status() == {}
        mutator.set_subnet({**SUBNET, 'op': torch.tensor([0.5, 0.25, 0.25], requires_grad=True)})
        assert mutator.status() == {
            'op': [0.5, 0.25, 0.25], 'plain': [0.0, 1.0], 'pick': [1.0, 0.0, 1.0], 'named': [1.0, 0.0], 'scale': [0.0, 1.0],
        }  # fmt: skip

    def test_reset_is_apply_on_model_of_sample_search(self) -> None:
        class Recorded(RandomMutator):
            def apply_on_model(self, decisions: Any) -> None:
                self.applied = decisions
                super().apply_on_model(decisions)

        mutator = Recorded(Net())
        mutator.reset()
        assert mutator.space.subnet(mutator.applied) == mutator.current_subnet()

    def test_gradients_reach_the_mutators_parameters(self) -> None:
        class Soft(Mutator):
            def __init__(self, model: nn.Module) -> None:
                super().__init__(model)
                self.alphas = nn.ParameterDict({m.key: torch.zeros(m.length) for m in self.mutables})

            def sample_search(self) -> dict[str, torch.Tensor]:
                return {key: alpha.softmax(0) for key, alpha in self.alphas.items()}

            def sample_final(self) -> dict[str, torch.Tensor]:
                return {key: torch.arange(len(alpha)) == alpha.argmax() for key, alpha in self.alphas.items()}

        model = nn.Sequential(
            LayerChoice([nn.Linear(4, 4), nn.Identity()], key='x'), LayerChoice([nn.Linear(4, 4), nn.Identity()], key='x')
        )
        mutator = Soft(model)
        optimizer = torch.optim.SGD(mutator.parameters(), lr=1.0)
        for _ in range(2):
            mutator.reset()
            (model(X) - X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert mutator.export(readable=True) == {'x': 1}

    @pytest.mark.parametrize('verb', ['sample_search', 'sample_final'])
    def test_what_a_sub_class_must_write(self, verb: str) -> None:
        with pytest.raises(BindingError, match=rf'Mutator must define {verb}\(\)'):
            getattr(Mutator(Net()), verb)()


class TestOverriddenForward:
    class Doubling(BaseMutator):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.calls: list[str] = []

        def on_forward_layer_choice(self, mutable: LayerChoice, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:
            self.calls.append(mutable.key)
            return mutable[0](*args, **kwargs) * 2, torch.tensor([True, False])

        def on_forward_input_choice(self, mutable: InputChoice, tensor_list: list[Any]) -> tuple[Any, torch.Tensor]:
            self.calls.append(mutable.key)
            return tensor_list[-1], torch.tensor([False, True])

    @staticmethod
    def model(return_mask: bool = False) -> nn.Module:
        return nn.Sequential(LayerChoice([nn.Identity(), nn.Tanh()], return_mask=return_mask))

    def test_it_runs_without_a_decision(self) -> None:
        model = self.model()
        mutator = self.Doubling(model)
        assert torch.equal(model(X), X * 2)
        assert mutator.calls == ['0']

    def test_masks_and_input_choices(self) -> None:
        model = self.model(return_mask=True)
        self_mutator = self.Doubling(model)
        output, mask = model(X)
        assert (torch.equal(output, X * 2), mask.tolist()) == (True, [True, False])
        pick = InputChoice(n_candidates=2, return_mask=True)
        other = self.Doubling(nn.Sequential(pick))
        assert pick([1, 2])[0] == 2
        with pytest.raises(SubnetError, match='among 2 inputs'):
            pick([1])
        assert (self_mutator.calls, other.calls) == (['0'], ['0'])

    def test_what_it_must_return(self) -> None:
        class Wrong(BaseMutator):
            def on_forward_layer_choice(self, mutable: LayerChoice, *args: Any, **kwargs: Any) -> Any:
                return mutable[0](*args, **kwargs)

        model = self.model()
        mutator = Wrong(model)
        assert X.shape[0] == 2  # which would unpack
        with pytest.raises(
            TypeError, match=r'on_forward_layer_choice must return \(output, mask\), but Wrong returned a Tensor'
        ):
            model(X)
        mutator.release()

    def test_without_an_override_nothing_is_installed(self) -> None:
        model = Net()
        mutator = RandomMutator(model)
        assert all(mutable._callback is None for mutable in mutables_of(model))

        class Half(RandomMutator):
            on_forward_input_choice = self.Doubling.on_forward_input_choice

        mutator.release()
        mutator = Half(model)
        assert [mutable.key for mutable in mutables_of(model) if mutable._callback] == ['pick', 'named']

    def test_the_default_callbacks_give_output_and_mask(self) -> None:
        mutator = RandomMutator(Net())
        mutator.set_subnet(SUBNET)
        output, mask = mutator.on_forward_layer_choice(mutator.model.op, X)
        assert (output is X, mask.tolist()) == (True, [False, False, True])
        output, mask = mutator.on_forward_input_choice(mutator.model.pick, [1, 2, 4])
        assert (output, mask.tolist()) == (5, [True, False, True])

    def test_the_callback_is_weak(self) -> None:
        model = self.model()
        mutator = self.Doubling(model)
        gone = weakref.ref(mutator)
        gc.disable()
        try:
            del mutator
            assert gone() is None
        finally:
            gc.enable()
        with pytest.raises(NotDecidedError):
            model(X)

    def test_release_takes_it_off(self) -> None:
        model = self.model()
        mutator = self.Doubling(model)
        mutator.set_subnet({'0': 1})
        mutator.release()
        assert torch.equal(model(X), X.tanh())

    @pytest.mark.parametrize('copied', [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    def test_a_copy_of_model_and_mutator_together_works_at_once(self, copied: Any) -> None:
        held = nn.ModuleDict({'model': self.model(), 'mutator': TestOverriddenForward.Doubling()})
        held['mutator'].prepare_from_supernet(held['model'])
        twin = copied(held)
        assert twin['mutator'].model is twin['model']
        assert torch.equal(twin['model'](X), X * 2)
        assert (twin['mutator'].calls, held['mutator'].calls) == (['0'], [])
        assert torch.equal(held['model'](X), X * 2)
        assert held['mutator'].calls == ['0']

    def test_mutator_before_model_and_mutator_inside_its_model(self) -> None:
        held = nn.Module()
        held.mutator, held.model = self.Doubling(), self.model()
        held.mutator.prepare_from_supernet(held.model)
        twin = copy.deepcopy(held)
        assert torch.equal(twin.model(X), X * 2)
        assert twin.model[0].owner is twin.mutator

        model = self.model()
        model.mutator = RandomMutator(model)
        twin = copy.deepcopy(model)
        twin.mutator.reset()
        assert twin[0].decision is not None
        assert model[0].decision is None
        assert twin[0].owner is twin.mutator

    def test_a_copy_of_the_mutator_alone_has_a_model_of_its_own(self) -> None:
        mutator = RandomMutator(Net(), custom_groups=[['op']])
        mutator.set_subnet(SUBNET)
        twin = copy.deepcopy(mutator)
        assert twin.current_choices == SUBNET
        twin.set_subnet({**SUBNET, 'op': 'conv'})
        assert mutator.current_choices == SUBNET
        assert twin.model is not mutator.model

    def test_exponential_moving_average_of_both(self) -> None:
        held = nn.ModuleDict({'model': self.model(), 'mutator': TestOverriddenForward.Doubling()})
        held['mutator'].prepare_from_supernet(held['model'])
        average = torch.optim.swa_utils.AveragedModel(held)
        average.update_parameters(held)
        assert torch.equal(average.module['model'](X), X * 2)


class TestOneShotVerbs:
    @pytest.mark.parametrize(
        ('info', 'allowed', 'ones'),
        [
            ({'space_mask': torch.tensor([1.0, 1.0, 1.0]), 'num_chosen': 1}, {0, 1, 2}, {1}),
            ({'space_mask': torch.tensor([0, 1, 0, 1]), 'num_chosen': 1}, {1, 3}, {1}),
            ({'space_mask': torch.tensor([1, 1, 0, 1]), 'num_chosen': 2, 'modules': []}, {0, 1, 3}, {2}),
            ({'space_mask': torch.tensor([True, False, True]), 'num_chosen': 2}, {0, 2}, {2}),
            ({'space_mask': torch.tensor([1.0, 0.0]), 'num_chosen': 0}, set(), {0}),
            ({'space_mask': torch.tensor([1.0, 0.0, 1.0]), 'num_chosen': None}, {0, 2}, {0, 1, 2}),
            ({'space_mask': torch.ones(3), 'num_chosen': 1, 'probs': torch.tensor([0.5, 0.5, 0.0])}, {0, 1}, {1}),
        ],
    )
    def test_get_random_mask(self, info: dict[str, Any], allowed: set[int], ones: set[int]) -> None:
        torch.manual_seed(0)
        masks = [BaseMutator.get_random_mask(info) for _ in range(60)]
        assert all(mask.shape == info['space_mask'].shape and mask.dtype == info['space_mask'].dtype for mask in masks)
        assert {int(mask.sum()) for mask in masks} == ones
        assert {index for mask in masks for index in mask.nonzero().flatten().tolist()} == allowed

    def test_too_few_allowed(self) -> None:
        with pytest.raises(SpaceError, match='2 alternatives are to be chosen, but `space_mask` allows only 1'):
            BaseMutator.get_random_mask({'space_mask': torch.tensor([0, 1]), 'num_chosen': 2})

    def test_search_spaces(self) -> None:
        mutator = BaseMutator(Net())
        spaces = mutator.search_spaces
        assert {key: (info['space_mask'].tolist(), info['num_chosen']) for key, info in spaces.items()} == {
            'op': ([1.0] * 3, 1), 'plain': ([1.0] * 2, 1), 'pick': ([1.0] * 3, 2), 'named': ([1.0] * 2, None),
            'scale': ([1.0] * 2, 1),
        }  # fmt: skip
        assert spaces['op']['modules'] == [mutator.model.op]
        spaces['op']['space_mask'][:2] = 0
        for _ in range(20):
            assert mutator.space.subnet(mutator.sample_subnet())['op'] == 'skip'
            assert mutator.space.subnet(mutator.mutation({**SUBNET, 'op': 'conv'}, prob=1.0))['op'] == 'skip'

    def test_sample_and_set(self) -> None:
        mutator = BaseMutator(Net())
        for _ in range(10):
            subnet = mutator.sample_subnet()
            assert all(mask.shape == (len(mutator.space[key]),) for key, mask in subnet.items())
            mutator.set_subnet(subnet)
            assert mutator.current_subnet() == mutator.space.subnet(subnet)
            assert mutator.model(X).shape == X.shape
        mutator.set_subnet(mutator.space.subnet(SUBNET))
        assert mutator.current_choices == SUBNET

    def test_mutation(self) -> None:
        torch.manual_seed(0)
        mutator = BaseMutator(Net())
        for form in (SUBNET, mutator.space.subnet(SUBNET), mutator.space.subnet(SUBNET).masks()):
            kept = mutator.mutation(form, prob=0.0)
            assert dict(mutator.space.subnet(kept)) == SUBNET
        drawn = [mutator.space.subnet(mutator.mutation(SUBNET, prob=1.0)) for _ in range(400)]
        assert len(set(drawn)) > 60
        changed = [mutator.space.subnet(mutator.mutation(SUBNET, prob=0.1))['op'] != 'skip' for _ in range(2000)]
        # redrawn with 0.1, and another one than before with 2/3
        assert abs(sum(changed) / 2000 - 0.1 * 2 / 3) < 0.02
        for wrong in (-0.1, 1.1):
            with pytest.raises(ConfigError, match=r'\[0, 1\]'):
                mutator.mutation(SUBNET, prob=wrong)

    def test_crossover(self) -> None:
        torch.manual_seed(0)
        mutator = BaseMutator(Net())
        first = mutator.space.subnet({'op': 0, 'plain': 0, 'pick': [0, 1], 'named': [], 'scale': 2.0})
        second = mutator.space.subnet({'op': 2, 'plain': 1, 'pick': [1, 2], 'named': ['op', 'plain'], 'scale': 1.0})
        children = {mutator.space.subnet(BaseMutator.crossover(first.masks(), second.masks())) for _ in range(300)}
        assert len(children) == 2**5
        assert all(child.choices[key] in (first.choices[key], second.choices[key]) for child in children for key in child)
        assert dict(mutator.space.subnet(BaseMutator.crossover(first, dict(first)))) == dict(first)

    def test_operators_keep_nested_spaces_valid(self) -> None:
        torch.manual_seed(0)
        depth = ValueChoice([0, 1], key='a') + ValueChoice([0, 1], key='b')
        mutator = BaseMutator(nn.Sequential(Repeat(LayerChoice([nn.ReLU(), nn.Tanh()]), depth)))
        subnets = list(mutator.space.grid())
        # Of these two, a child may be two blocks deep though neither parent decides the second block.
        assert '0.1' not in {
            *mutator.space.subnet({'a': 1, 'b': 0, '0.0': 0}),
            *mutator.space.subnet({'a': 0, 'b': 1, '0.0': 0}),
        }
        for first in subnets:
            for second in subnets:
                for made in (mutator.mutation(first, 0.5), mutator.crossover(first, second)):
                    mutator.set_subnet(made)
                    assert mutator.current_subnet() in subnets

    def test_reset_in_subnet(self) -> None:
        model = Net()
        model.apply(BaseMutator.reset_in_subnet)
        assert all(module.__in_subnet__ is True for module in model.modules())
        model.apply(lambda module: BaseMutator.reset_in_subnet(module, in_subnet=False))
        assert all(module.__in_subnet__ is False for module in model.modules())

    def test_set_chosen_subnet_fixes_in_place(self) -> None:
        model = Net()
        mutator = BaseMutator(model)
        mutator.set_subnet({**SUBNET, 'op': 'wide'})
        expected, wide = model(X), model.op['wide']
        mutator.set_chosen_subnet({**SUBNET, 'op': 'wide'})
        assert model.op is wide
        assert mutables_of(model) == []
        assert torch.equal(model(X), expected)
        assert not any(name.startswith(('op.conv', 'op.skip')) for name in model.state_dict())
        with pytest.raises(BindingError, match='no model yet'):
            mutator.sample_subnet()

    def test_set_chosen_subnet_refuses_before_it_changes(self) -> None:
        model = Net()
        mutator = BaseMutator(model)
        with pytest.raises(SubnetError):
            mutator.set_chosen_subnet({**SUBNET, 'op': 'wid'})
        assert len(mutables_of(model)) == 5
        for root in (LayerChoice([nn.ReLU()]), Repeat(nn.ReLU(), (1, 2), key='d')):
            mutator = BaseMutator(root)
            with pytest.raises(BindingError, match='cannot be replaced in place'):
                mutator.set_chosen_subnet(mutator.sample_subnet())


class TestMMRazorVerbs:
    def test_extremes_by_parameters_and_order(self) -> None:
        mutator = BaseMutator(Net())
        mutator.set_max_subnet()
        assert mutator.current_choices == {'op': 'wide', 'plain': 0, 'pick': [0, 1], 'named': ['op', 'plain'], 'scale': 1.0}
        mutator.set_min_subnet()
        assert mutator.current_choices == {'op': 'skip', 'plain': 1, 'pick': [0, 1], 'named': [], 'scale': 2.0}

    def test_sample_and_set_choices(self) -> None:
        mutator = BaseMutator(Net())
        choices = mutator.sample_choices()
        mutator.set_choices(choices)
        assert mutator.current_choices == choices
        assert mutator.sample_choices('max')['op'] == 'wide'
        with pytest.raises(
            ConfigError, match=r"`kind` must be one of 'random', 'max', 'min', but got 'maxi'. Did you mean 'max'"
        ):
            mutator.sample_choices('maxi')

    def test_export_and_load_fix_subnet(self, tmp_path: Path) -> None:
        mutator = BaseMutator(Net())
        mutator.set_subnet(SUBNET)
        fixed = mutator.export_fix_subnet()
        assert fixed['op'] == {'chosen': 'skip', 'meta': {'all_choices': ['conv', 'wide', 'skip']}}
        (tmp_path / 'mmrazor.yaml').write_text(yaml.safe_dump({f'architecture.{key}': value for key, value in fixed.items()}))
        dump_subnet(mutator.current_subnet(), tmp_path / 'strop.json')
        expected = mutator.model(X)
        forms = [fixed, mutator.current_subnet(), tmp_path / 'mmrazor.yaml', str(tmp_path / 'strop.json'), SUBNET]
        for form in forms:
            model = copy.deepcopy(mutator.model)
            BaseMutator(model).load_fix_subnet(form)
            assert mutables_of(model) == []
            assert torch.equal(model(X), expected)

    def test_undecided(self) -> None:
        for use in (lambda m: m.current_choices, lambda m: m.current_subnet(), lambda m: m.export_fix_subnet()):
            with pytest.raises(NotDecidedError, match="'op' has no decision"):
                use(BaseMutator(Net()))


def test_a_step_of_twenty_choices_takes_well_under_a_millisecond() -> None:
    mutator = BaseMutator(nn.Sequential(*(LayerChoice([nn.Identity() for _ in range(4)]) for _ in range(20))))
    masks = mutator.sample_subnet()
    subnet = mutator.space.subnet(masks)
    for use in (lambda: mutator.set_subnet(masks), lambda: mutator.set_subnet(subnet), mutator.sample_subnet):
        times = []
        for _ in range(200):
            start = time.perf_counter()
            use()
            times.append(time.perf_counter() - start)
        assert sorted(times)[20] < 0.001  # 0.04 to 0.13 ms on an idle core


def test_binding_and_drawing_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        mutator = RandomMutator(Net())
        mutator.reset()
        mutator.model(X).sum().backward()
        mutator.export()


def test_all_exported_kinds_are_mutables() -> None:
    assert all(isinstance(mutable, Mutable) for mutable in RandomMutator(Net()).mutables)
