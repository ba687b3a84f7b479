from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from strop.errors import BindingError, ComponentTypeError, NotDecidedError, SpaceError, SubnetError, UnknownKeyError
from strop.mutables import InputChoice, LayerChoice, extract, space_of
from strop.mutators import RandomMutator


class Times(nn.Module):
    """Multiply by a number and count the calls."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.calls = 0

    def forward(self, x: torch.Tensor, plus: float = 0.0) -> torch.Tensor:
        self.calls += 1
        return x * self.factor + plus


def times(*factors: float, **arguments: object) -> LayerChoice:
    return LayerChoice([Times(factor) for factor in factors], key='op', **arguments)


X = torch.tensor([[1.0, 2.0]], dtype=torch.float64)


class TestLayerChoiceAsContainer:
    def test_a_list_numbers_its_candidates(self) -> None:
        choice = LayerChoice([nn.Linear(2, 3), nn.Identity()])
        assert choice.names == ['0', '1']
        assert len(choice) == choice.length == 2
        assert list(choice.state_dict()) == ['0.weight', '0.bias']

    def test_an_ordered_dict_names_them(self) -> None:
        choice = LayerChoice(OrderedDict([('conv3x3', nn.Linear(1, 1)), ('skip', nn.Identity())]))
        assert choice.names == ['conv3x3', 'skip']
        assert 'conv3x3.weight' in choice.state_dict()

    def test_indexing(self) -> None:
        modules = [nn.ReLU(), nn.GELU(), nn.Tanh()]
        choice = LayerChoice(OrderedDict(zip('abc', modules)))
        assert choice[0] is choice['a'] is modules[0]
        assert choice[-1] is modules[2]
        assert choice[1:] == modules[1:]
        assert list(choice) == modules
        with pytest.raises(IndexError, match='out of range'):
            choice[3]
        with pytest.raises(KeyError, match=r"no candidate 'bb'.*Did you mean 'b'"):
            choice['bb']
        with pytest.raises(TypeError, match='number or name'):
            choice[1.0]

    def test_replacing_a_candidate(self) -> None:
        choice = LayerChoice(OrderedDict(a=nn.ReLU(), b=nn.GELU()))
        choice['a'], choice[-1] = nn.Tanh(), nn.Sigmoid()
        assert [type(module) for module in choice] == [nn.Tanh, nn.Sigmoid]
        assert choice.names == ['a', 'b']
        with pytest.raises(TypeError, match=r'nn.Module'):
            choice[0] = 'not a module'
        with pytest.raises(TypeError, match='number or name'):
            choice[0:1] = nn.ReLU()

    @pytest.mark.parametrize(('index', 'left'), [(1, ['0', '2']), ('0', ['1', '2']), (-1, ['0', '1']), (slice(0, 2), ['2'])])
    def test_deleting_keeps_the_other_names(self, index: object, left: list[str]) -> None:
        choice = LayerChoice([nn.ReLU(), nn.GELU(), nn.Tanh()])
        kept = {name: choice[name] for name in left}
        del choice[index]
        assert choice.names == left
        assert [choice[name] for name in left] == list(kept.values())
        assert choice.domain.labels == tuple(map(int, left))

    def test_deleted_candidates_are_addressed_by_their_names_ever_after(self) -> None:
        choice = times(10, 20, 30)
        del choice[1]
        choice.decide(2)
        assert choice(X).tolist() == [[30.0, 60.0]]
        with pytest.raises(SubnetError, match='none of the alternatives 0, 2'):
            choice.decide(1)

    def test_the_last_candidate_stays(self) -> None:
        choice = LayerChoice([nn.ReLU()])
        with pytest.raises(SpaceError, match='last candidate'):
            del choice[0]

    def test_no_deleting_under_a_mutator(self) -> None:
        model = nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()]))
        mutator = RandomMutator(model)
        with pytest.raises(BindingError, match='release'):
            del model[0][0]
        mutator.release()
        del model[0][0]
        assert model[0].names == ['1']

    @pytest.mark.parametrize(
        'name',
        [
            'length',
            'reduction',
            'return_mask',
            'key',
            'names',
            'forward',
            'domain',
            'training',
            '_modules',
            '_mine',
            'a.b',
            '',
            3,
        ],
    )
    def test_forbidden_names(self, name: object) -> None:
        with pytest.raises(SpaceError, match='cannot be the name of a candidate'):
            LayerChoice(OrderedDict([('fine', nn.ReLU()), (name, nn.ReLU())]))

    @pytest.mark.parametrize('given', ['relu', 3, nn.ReLU(), None, {nn.ReLU()}])
    def test_wrong_containers(self, given: object) -> None:
        with pytest.raises(TypeError, match='must be a list or an OrderedDict'):
            LayerChoice(given)

    def test_wrong_candidates(self) -> None:
        with pytest.raises(ComponentTypeError, match=r"Candidate '1' must be an nn.Module, but got type"):
            LayerChoice([nn.ReLU(), nn.ReLU])
        with pytest.raises(SpaceError, match='at least one'):
            LayerChoice([])
        with pytest.raises(SpaceError, match=r"must be one of.*'men'.*Did you mean 'mean'"):
            LayerChoice([nn.ReLU()], reduction='men')

    def test_digits_that_are_no_plain_numbers_are_names(self) -> None:
        assert LayerChoice(OrderedDict([('03', nn.ReLU()), ('3', nn.ReLU())])).domain.labels == ('03', '3')
        assert LayerChoice(OrderedDict([('²', nn.ReLU())])).domain.labels == ('²',)

    def test_lazy_candidates_can_be_searched(self) -> None:
        assert space_of(nn.Sequential(LayerChoice([nn.LazyLinear(2), nn.Identity()]))).count() == 2

    def test_a_key_that_is_no_string_is_taken_as_text(self) -> None:
        assert LayerChoice([nn.ReLU()], key=7).key == '7'
        with pytest.raises(SpaceError, match='empty'):
            LayerChoice([nn.ReLU()], key='')
        with pytest.raises(NotDecidedError, match='no key yet'):
            LayerChoice([nn.ReLU()]).key


class TestLayerChoiceForward:
    def test_one_chosen(self) -> None:
        choice = times(1, 10, 100)
        choice.decide(2)
        assert choice(X, plus=1.0).tolist() == [[101.0, 201.0]]
        assert [module.calls for module in choice] == [0, 0, 1]

    @pytest.mark.parametrize(
        ('reduction', 'expected'),
        [('sum', [[101.0, 202.0]]), ('mean', [[50.5, 101.0]]), ('concat', [[1.0, 2.0, 100.0, 200.0]])],
    )
    def test_several_chosen(self, reduction: str, expected: list[list[float]]) -> None:
        choice = times(1, 10, 100, reduction=reduction)
        choice.decide(torch.tensor([True, False, True]))
        assert choice(X).tolist() == expected
        assert [module.calls for module in choice] == [1, 0, 1]

    def test_no_reduction_gives_a_list(self) -> None:
        choice = times(1, 10, reduction='none')
        choice.decide(['0', '1'])
        assert [output.tolist() for output in choice(X)] == [[[1.0, 2.0]], [[10.0, 20.0]]]
        choice.decide(1)
        assert [output.tolist() for output in choice(X)] == [[[10.0, 20.0]]]

    @pytest.mark.parametrize(('reduction', 'expected'), [('sum', None), ('mean', None), ('concat', None), ('none', [])])
    @pytest.mark.parametrize('mask', [torch.zeros(2, dtype=torch.bool), torch.zeros(2), [False, False]])
    def test_a_mask_of_zeros_chooses_nothing(self, reduction: str, expected: object, mask: object) -> None:
        choice = times(1, 10, reduction=reduction)
        choice.decide(mask)
        assert choice(X) == expected
        assert extract(nn.Sequential(choice), None)[0](X) == expected

    def test_an_empty_list_is_no_mask(self) -> None:
        with pytest.raises(SubnetError, match='Exactly one alternative'):
            times(1, 10).decide([])

    def test_weights_multiply_and_zero_is_not_executed(self) -> None:
        choice = times(1, 10, 100)
        choice.decide(torch.tensor([0.5, 0.0, 0.25]))
        assert choice(X).tolist() == [[25.5, 51.0]]
        assert [module.calls for module in choice] == [1, 0, 1]

    def test_the_mean_of_weighted_outputs_divides_by_their_number(self) -> None:
        choice = times(1, 3, 7, reduction='mean')
        choice.decide([0.5, 0.5, 0.0])
        assert choice(torch.ones(1)).tolist() == [1.0]

    def test_a_single_weight_other_than_one_is_applied(self) -> None:
        choice = times(1, 10)
        choice.decide([0.0, 0.5])
        assert choice(X).tolist() == [[5.0, 10.0]]

    def test_gradients_flow_into_weights_and_candidates(self) -> None:
        alpha = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
        choice = LayerChoice([nn.Linear(2, 1, dtype=torch.float64), nn.Linear(2, 1, dtype=torch.float64)])
        weights = alpha.softmax(0)
        choice.decide(weights)
        choice(X).sum().backward()
        outputs = torch.cat([choice[0](X), choice[1](X)]).flatten().detach()
        p = weights.detach()
        expected = p * (outputs - (p * outputs).sum())
        torch.testing.assert_close(alpha.grad, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(choice[0].weight.grad, p[0] * X)

    def test_a_hard_mask_with_a_gradient_keeps_it(self) -> None:
        soft = torch.tensor([0.6, 0.4], requires_grad=True)
        hard = torch.tensor([1.0, 0.0]) + soft - soft.detach()
        choice = times(2, 3)
        choice.decide(hard)
        choice(torch.ones(1)).sum().backward()
        assert soft.grad.tolist() == [2.0, 0.0]
        assert [module.calls for module in choice] == [1, 0]

    def test_return_mask(self) -> None:
        choice = times(1, 10, return_mask=True)
        choice.decide(1)
        output, mask = choice(X)
        assert output.tolist() == [[10.0, 20.0]]
        assert torch.equal(mask, torch.tensor([False, True]))
        weights = torch.tensor([0.5, 0.5], requires_grad=True)
        choice.decide(weights)
        assert choice(X)[1] is weights

    def test_undecided(self) -> None:
        with pytest.raises(NotDecidedError, match=r"LayerChoice 'op' has no decision yet. Call mutator.reset\(\)"):
            times(1)(X)

    def test_mmrazor_checkpoints_load(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), LayerChoice(OrderedDict(a=nn.Linear(2, 2), b=nn.BatchNorm1d(2))))
        state = {key: torch.randn_like(value.float()).to(value.dtype) for key, value in model.state_dict().items()}
        old = {key.replace('1.', '1._candidates.', 1) if key.startswith('1.') else key: value for key, value in state.items()}
        assert '1._candidates.b.running_mean' in old
        before = dict(old)
        model.load_state_dict(old, strict=True)
        assert old == before
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        root = LayerChoice(OrderedDict(a=nn.Linear(2, 2)))
        root.load_state_dict({f'_candidates.{key}': value for key, value in root.state_dict().items()}, strict=True)
        with pytest.raises(RuntimeError, match='Unexpected key'):
            model.load_state_dict({**old, '1._candidates.c.weight': torch.zeros(1)}, strict=True)


class TestInputChoice:
    @pytest.mark.parametrize(
        ('arguments', 'error', 'text'),
        [
            ({}, SpaceError, 'needs `n_candidates` or `choose_from`'),
            ({'n_candidates': 2, 'choose_from': ['a']}, SpaceError, '`n_candidates` is 2, but `choose_from` has 1'),
            ({'n_candidates': 0}, SpaceError, 'at least one'),
            ({'n_candidates': -1}, SpaceError, 'at least one'),
            ({'choose_from': []}, SpaceError, 'at least one'),
            ({'n_candidates': 2, 'n_chosen': 3}, SpaceError, r'in 0\.\.2 or None'),
            ({'n_candidates': 2, 'n_chosen': -1}, SpaceError, r'in 0\.\.2 or None'),
            ({'n_candidates': 2.0}, ComponentTypeError, 'must be an integer'),
            ({'n_candidates': 2, 'n_chosen': True}, ComponentTypeError, 'must be an integer'),
            ({'choose_from': 'abc'}, ComponentTypeError, 'list of keys'),
            ({'choose_from': [None, 'a']}, ComponentTypeError, 'list of keys'),
            ({'n_candidates': 2, 'reduction': 'max'}, SpaceError, '`reduction` must be one of'),
        ],
    )
    def test_arguments(self, arguments: dict[str, object], error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            InputChoice(**arguments)

    def test_choose_from_is_copied_and_counted(self) -> None:
        sources = ['a', 'b']
        choice = InputChoice(choose_from=sources, n_chosen=1)
        sources.append('c')
        assert (choice.choose_from, choice.n_candidates, choice.length, choice.n_chosen) == (['a', 'b'], 2, 2, 1)
        assert InputChoice(n_candidates=2).choose_from == [InputChoice.NO_KEY] * 2

    @pytest.mark.parametrize(
        ('n_chosen', 'reduction', 'picked', 'expected'),
        [
            (None, 'sum', [], None),
            (None, 'none', [], []),
            (0, 'sum', [], None),
            (1, 'sum', 1, 2.0),
            (2, 'sum', [0, 2], 5.0),
            (2, 'mean', [0, 2], 2.5),
            (None, 'sum', [True, True, True], 7.0),
            (None, 'mean', [0.5, 0.0, 0.5], 1.25),
        ],
    )
    def test_forward(self, n_chosen: int | None, reduction: str, picked: object, expected: object) -> None:
        choice = InputChoice(n_candidates=3, n_chosen=n_chosen, reduction=reduction, key='in')
        choice.decide(picked)
        tensors = [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)]
        assert choice(tensors) == expected
        assert extract(nn.Sequential(choice))[0](tensors) == expected

    def test_one_chosen_is_the_tensor_itself(self) -> None:
        choice = InputChoice(n_candidates=2, n_chosen=1, return_mask=True, key='in')
        choice.decide(0)
        tensors = [torch.ones(1), torch.ones(1)]
        output, mask = choice(tensors)
        assert output is tensors[0]
        assert mask.tolist() == [True, False]

    def test_concat_is_along_axis_one(self) -> None:
        choice = InputChoice(n_candidates=2, reduction='concat', key='in')
        choice.decide([0, 1])
        assert choice([torch.zeros(2, 1), torch.zeros(2, 3)]).shape == (2, 4)

    def test_a_mapping_is_ordered_by_choose_from(self) -> None:
        choice = InputChoice(choose_from=['b', 'a'], n_chosen=1, key='in')
        choice.decide('a')
        assert choice({'a': 1.0, 'b': 2.0, 'other': 3.0}) == 1.0
        model = nn.Sequential(*(LayerChoice([nn.ReLU()], key=key) for key in 'ab'), choice)
        assert extract(model, {'a': 0, 'b': 0, 'in': 'a'})[2]({'a': 1.0, 'b': 2.0}) == 1.0
        with pytest.raises(KeyError, match=r"lack 'b'"):
            choice({'a': 1.0})

    def test_a_mapping_needs_keys(self) -> None:
        choice = InputChoice(choose_from=['a', InputChoice.NO_KEY], key='in')
        choice.decide([0])
        with pytest.raises(SubnetError, match='Give a list of 2 tensors'):
            choice({'a': 1.0, '': 2.0})

    @pytest.mark.parametrize(('inputs', 'error'), [([1.0], SubnetError), ([1.0] * 3, SubnetError), (torch.ones(2), TypeError)])
    def test_wrong_inputs(self, inputs: object, error: type[Exception]) -> None:
        choice = InputChoice(n_candidates=2, n_chosen=1, key='in')
        choice.decide(0)
        with pytest.raises(error):
            choice(inputs)

    @pytest.mark.parametrize(('n_chosen', 'wrong'), [(1, [0, 1]), (2, [0]), (2, [True, False, False]), (0, 0)])
    def test_the_number_chosen_is_checked(self, n_chosen: int, wrong: object) -> None:
        with pytest.raises(SubnetError, match='xactly'):
            InputChoice(n_candidates=3, n_chosen=n_chosen, key='in').decide(wrong)

    def test_labels_are_keys_only_where_they_tell_inputs_apart(self) -> None:
        assert InputChoice(choose_from=['a', 'b']).domain.labels == ('a', 'b')
        assert InputChoice(choose_from=['a', 'a']).domain.labels == (0, 1)
        assert InputChoice(choose_from=['a', InputChoice.NO_KEY]).domain.labels == (0, 1)
        assert InputChoice(n_candidates=1).domain.labels == (0,)


class TestSources:
    @staticmethod
    def model(first: nn.Module, second: nn.Module) -> nn.Module:
        model = nn.Module()
        model.first, model.second = first, second
        return model

    def test_they_must_come_before(self) -> None:
        op, pick = LayerChoice([nn.ReLU()], key='op'), InputChoice(choose_from=['op', ''], key='in')
        assert list(space_of(self.model(op, pick))) == ['op', 'in']
        with pytest.raises(
            SpaceError, match="'op', from which the InputChoice 'in' chooses, is no key of a mutable that comes"
        ):
            space_of(self.model(pick, op))

    def test_a_path_an_own_key_and_a_given_key_are_names(self) -> None:
        space_of(self.model(LayerChoice([nn.ReLU()]), InputChoice(choose_from=['first', 'in'], key='in')))
        model = self.model(LayerChoice([nn.ReLU()], key='op'), InputChoice(choose_from=['op'], key='in'))
        model.third = LayerChoice([nn.ReLU()], key='third')
        RandomMutator(model, custom_groups=[['third', 'op']])

    def test_the_near_match_is_named(self) -> None:
        with pytest.raises(SpaceError, match="Did you mean 'first_op'"):
            space_of(self.model(LayerChoice([nn.ReLU()], key='first_op'), InputChoice(choose_from=['frst_op'])))

    def test_unknown_names_raise_key_errors_too(self) -> None:
        assert issubclass(UnknownKeyError, KeyError)


def test_candidates_under_nnis_old_name() -> None:
    choice = LayerChoice([nn.ReLU(), nn.Tanh()])
    with pytest.warns(DeprecationWarning, match='`choices` of a LayerChoice'):
        assert choice.choices == choice.candidates
