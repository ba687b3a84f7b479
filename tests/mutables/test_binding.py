from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from strop.errors import ComponentTypeError, SpaceError, UnknownKeyError
from strop.mutables import (
    InputChoice,
    LayerChoice,
    MutableScope,
    Repeat,
    ValueChoice,
    apply_subnet,
    bind,
    current_subnet,
    extract,
    intercept,
    mutables_of,
    space_of,
)
from strop.mutators import RandomMutator


def layers(n: int = 2, key: str | None = None) -> LayerChoice:
    return LayerChoice([nn.Linear(1, 1) for _ in range(n)], key=key)


def holding(**children: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, child in children.items():
        setattr(model, name, child)
    return model


class TestKeys:
    def test_paths_or_given_keys(self) -> None:
        model = holding(a=layers(), inner=holding(b=layers(key='named'), c=ValueChoice([1, 2])))
        assert list(space_of(model)) == ['a', 'named', 'inner.c']
        assert [mutable.path for mutable in mutables_of(model)] == ['a', 'inner.b', 'inner.c']

    def test_they_do_not_depend_on_what_was_built_before(self) -> None:
        assert list(space_of(holding(a=layers()))) == list(space_of(holding(a=layers())))

    def test_a_root_that_is_a_choice(self) -> None:
        root = layers()
        assert list(space_of(root)) == ['layerchoice']
        assert extract(root, {'layerchoice': 1}).weight.equal(root[1].weight)

    def test_one_key_twice_is_one_decision(self) -> None:
        model = holding(a=layers(key='op'), b=layers(key='op'), c=layers())
        assert space_of(model).count() == 4
        apply_subnet(model, {'op': 1, 'c': 0})
        assert [mutable.decision for mutable in mutables_of(model)] == [(1,), (1,), (0,)]

    def test_a_module_under_two_names_is_one_decision(self) -> None:
        shared = layers()
        model = holding(a=shared, b=nn.Sequential(shared))
        space = space_of(model)
        assert list(space) == ['a']
        assert space.subnet({'b.0': 1}) == space.subnet({'a': 1})
        plain = extract(model, {'a': 1})
        assert plain.a is plain.b[0]

    @pytest.mark.parametrize(
        ('first', 'second', 'text'),
        [
            (layers(2, 'op'), layers(3, 'op'), 'not the same alternatives'),
            (layers(2, 'op'), InputChoice(2, n_chosen=1, key='op'), 'One decision cannot be both'),
            (InputChoice(3, n_chosen=1, key='op'), InputChoice(3, n_chosen=2, key='op'), 'not the same alternatives'),
            (ValueChoice([1, 2], key='op'), ValueChoice([2, 1], key='op'), 'not the same alternatives'),
            (layers(), layers(2, 'first'), "'first' given to one mutable is also the path of another"),
        ],
    )
    def test_conflicts_are_found_at_binding(self, first: nn.Module, second: nn.Module, text: str) -> None:
        model = holding(first=copy.deepcopy(first), second=copy.deepcopy(second))
        with pytest.raises(SpaceError, match=text):
            RandomMutator(model)
        assert all(mutable.owner is None and mutable.path is None for mutable in mutables_of(model))

    def test_no_module(self) -> None:
        with pytest.raises(ComponentTypeError, match=r'must be an nn.Module, but got dict'):
            space_of({})


class TestBoundModels:
    def test_looking_at_a_part_does_not_rename_its_decisions(self) -> None:
        model = nn.Sequential(nn.Sequential(layers(), layers()))
        mutator = RandomMutator(model)
        wrapped = nn.ModuleDict({'module': model})
        for part in (model[0], wrapped):
            assert list(space_of(part)) == ['0.0', '0.1']
            apply_subnet(part, {'0.0': 1, '0.1': 0})
        assert [mutable.key for mutable in mutator.mutables] == ['0.0', '0.1']
        assert mutator.current_choices == {'0.0': 1, '0.1': 0}
        assert dict(current_subnet(model[0])) == {'0.0': 1, '0.1': 0}
        mutator.reset()

    def test_parts_of_two_mutators_are_not_coupled_by_their_names(self) -> None:
        model = nn.Sequential(nn.Sequential(layers()), nn.Sequential(layers()))
        mutators = [RandomMutator(part) for part in model]
        assert [list(mutator.space) for mutator in mutators] == [['0'], ['0']]
        with pytest.raises(SpaceError, match="Two mutables are called '0'"):
            space_of(model)
        for mutator in mutators:
            mutator.reset()
        assert extract(model)[0][0].weight.equal(model[0][0][model[0][0].decision[0]].weight)
        mutators[0].release()
        assert list(space_of(nn.ModuleDict({'x': model[0], 'y': model[1]}))) == ['x.0', '0']

    def test_a_free_model_is_named_anew(self) -> None:
        model = nn.Sequential(nn.Sequential(layers()))
        assert list(space_of(model)) == ['0.0']
        assert list(space_of(model[0])) == ['0']


class TestNesting:
    @staticmethod
    def model() -> nn.Module:
        inner = LayerChoice([nn.Identity(), nn.Tanh()], key='inner')
        outer = LayerChoice([nn.Sequential(inner, ValueUser()), nn.ReLU()], key='outer')
        return nn.Sequential(Repeat([nn.Identity(), outer], ValueChoice([1, 2], key='depth')))

    def test_three_levels(self) -> None:
        space = space_of(self.model())
        # depth 1; depth 2 with ReLU; depth 2 with the branch: 2 layers x 2 values
        assert space.count() == 1 + 1 + 4 == len(list(space.grid()))
        assert dict(space.subnet({'depth': 1, 'outer': 0, 'inner': 1, 'value': 3.0})) == {'depth': 1}

    def test_every_subnet_runs_and_equals_its_extraction(self) -> None:
        model = self.model()
        x = torch.tensor([-1.0, 2.0])
        outputs = set()
        for subnet in space_of(model).grid():
            apply_subnet(model, subnet)
            assert current_subnet(model) == subnet
            torch.testing.assert_close(extract(model, subnet)(x), model(x), rtol=0, atol=0)
            outputs.add(tuple(model(x).tolist()))
        assert len(outputs) == 6

    def test_using_an_inactive_decision_is_noticed(self) -> None:
        model = self.model()
        apply_subnet(model, {'depth': 2, 'outer': 0, 'inner': 1, 'value': 3.0})
        apply_subnet(model, {'depth': 2, 'outer': 1})
        with pytest.raises(RuntimeError, match="'inner' has no decision"):
            model[0].blocks[1][0](torch.zeros(1))

    def test_a_decision_under_two_branches_is_active_under_either(self) -> None:
        shared = layers(key='shared')
        model = LayerChoice([nn.Sequential(shared), nn.Sequential(shared), nn.Identity()], key='outer')
        space = space_of(model)
        assert space.count() == 2 + 2 + 1
        assert 'shared' in space.subnet({'outer': 1, 'shared': 0})
        assert 'shared' not in space.subnet({'outer': 2})


class ValueUser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = ValueChoice([2.0, 3.0], key='value')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value()


class TestGroups:
    @staticmethod
    def model() -> nn.Module:
        return holding(a=layers(), b=layers(key='bee'), c=layers(), d=layers(3))

    @pytest.mark.parametrize('group', [['a', 'b', 'c'], ['a', 'bee', 'c']])
    def test_members_are_one_decision(self, group: list[str]) -> None:
        model = self.model()
        mutator = RandomMutator(model, custom_groups=[group])
        assert list(mutator.space) == ['a', 'd']
        assert mutator.space.count() == 6
        assert [mutable.key for mutable in mutator.mutables] == ['a', 'd']
        assert [mutable.key for mutable in mutator.undedup_mutables] == ['a', 'a', 'a', 'd']
        mutator.set_subnet({'bee': 1, 'd': 2})
        assert [mutable.decision for mutable in mutables_of(model)] == [(1,), (1,), (1,), (2,)]
        assert mutator.search_groups[0] == [model.a, model.b, model.c]
        for _ in range(5):
            mutator.reset()
            assert model.a.decision == model.b.decision == model.c.decision

    def test_extraction_knows_them(self) -> None:
        model = self.model()
        mutator = RandomMutator(model, custom_groups=[['a', 'c'], ['bee']])
        mutator.set_subnet({'a': 1, 'bee': 0, 'd': 0})
        plain = extract(model, mutator.current_subnet())
        assert plain.a.weight.equal(model.a[1].weight)
        assert plain.c.weight.equal(model.c[1].weight)
        assert current_subnet(model) == mutator.current_subnet()

    def test_they_end_with_the_mutator(self) -> None:
        model = self.model()
        mutator = RandomMutator(model, custom_groups=[['a', 'c']])
        twin = copy.deepcopy(model)
        mutator.release()
        assert list(space_of(model)) == ['a', 'bee', 'c', 'd']
        assert list(space_of(twin)) == ['a', 'bee', 'd']
        assert list(RandomMutator(twin).space) == ['a', 'bee', 'c', 'd']

    @pytest.mark.parametrize(
        ('groups', 'error', 'text'),
        [
            ([['a', 'cc']], UnknownKeyError, "names 'cc', which is no decision"),
            ([['a', 'c'], ['c', 'bee']], SpaceError, "'c' is in two groups"),
            ([['a', 'a']], SpaceError, "'a' is in two groups, or twice"),
            ([['a', 'd']], SpaceError, 'not the same alternatives'),
            (['a'], SpaceError, "list of keys or module paths, but got 'a'"),
            ([[]], SpaceError, 'list of keys or module paths'),
        ],
    )
    def test_wrong_groups(self, groups: list[list[str]], error: type[Exception], text: str) -> None:
        model = self.model()
        with pytest.raises(error, match=text):
            RandomMutator(model, custom_groups=groups)
        assert list(space_of(model)) == ['a', 'bee', 'c', 'd']

    def test_conditions_follow_the_group(self) -> None:
        model = holding(
            a=LayerChoice([nn.Sequential(layers(key='in_a')), nn.ReLU()]),
            b=LayerChoice([nn.Sequential(layers(key='in_b')), nn.ReLU()]),
        )
        assert space_of(model).count() == 9
        assert RandomMutator(model, custom_groups=[['b', 'a']]).space.count() == 4 + 1


class TestBinding:
    def test_apply_is_all_or_nothing(self) -> None:
        model = holding(a=layers(), b=layers())
        binding = bind(model)
        binding.apply({'a': 1, 'b': 1})
        for wrong in ({'a': 0}, {'a': 0, 'b': 2}, {'a': 0, 'b': 0, 'c': 0}):
            with pytest.raises(ValueError):
                binding.apply(wrong)
        assert [mutable.decision for mutable in binding.mutables] == [(1,), (1,)]

    def test_intercept_restores(self) -> None:
        model = nn.Sequential(layers())
        apply_subnet(model, {'0': 0})
        seen = []
        with pytest.raises(ZeroDivisionError), intercept(model, lambda mutable, x: seen.append(mutable.key) or 1 // 0):
            model(torch.zeros(1, 1))
        assert seen == ['0']
        assert model(torch.zeros(1, 1)).shape == (1, 1)


class TestScope:
    class Cell(MutableScope):
        def __init__(self, key: str, fails: bool = False) -> None:
            super().__init__(key)
            self.op = layers()
            self.fails = fails

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.fails:
                raise ZeroDivisionError
            return self.op(x)

    class Watching(RandomMutator):
        def __init__(self, model: nn.Module) -> None:
            self.seen: list[str] = []
            super().__init__(model)

        def enter_mutable_scope(self, mutable_scope: MutableScope) -> None:
            self.seen.append(f'enter {mutable_scope.key}')

        def exit_mutable_scope(self, mutable_scope: MutableScope) -> None:
            self.seen.append(f'exit {mutable_scope.key}')

    def test_listed_without_a_decision(self) -> None:
        model = nn.Sequential(self.Cell('cell'))
        mutator = RandomMutator(model)
        assert [type(mutable) for mutable in mutator.mutables] == [self.Cell, LayerChoice]
        assert list(mutator.space) == list(mutator.export()) == ['0.op']

    def test_a_scope_does_not_hide_a_mutable_of_its_key(self) -> None:
        model = nn.Sequential(self.Cell('0.op'))
        assert len(RandomMutator(model).mutables) == 2

    def test_enter_and_exit_also_on_exceptions_and_nested(self) -> None:
        outer = self.Cell('outer')
        outer.op = self.Cell('inner', fails=True)
        mutator = self.Watching(nn.Sequential(outer))
        mutator.reset()
        with pytest.raises(ZeroDivisionError):
            mutator.model(torch.zeros(1, 1))
        assert mutator.seen == ['enter outer', 'enter inner', 'exit inner', 'exit outer']

    def test_unbound(self) -> None:
        cell = self.Cell('cell')
        with pytest.raises(RuntimeError, match=r'LayerChoice has no decision yet\. Call mutator\.reset'):
            cell(torch.zeros(1, 1))
        cell.op.decide(0)
        assert cell(torch.zeros(1, 1)).shape == (1, 1)

    def test_a_key_is_needed(self) -> None:
        with pytest.raises(TypeError):
            MutableScope()
