from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strop.errors import SpaceError, SubnetError, UnknownKeyError
from strop.mutables import (
    LAWS,
    AnyOf,
    DiffChoiceRoute,
    InputChoice,
    KOf,
    LayerChoice,
    Numeric,
    OneOf,
    Ordered,
    SearchSpaceFile,
    Space,
    ValueChoice,
    space_of,
)

# The file and the parameters as the documentation of NNI 1.9 shows them.
DOCUMENTED = {
    'first': {'_type': 'layer_choice', '_value': ['op1_repr', 'op2_repr', 'op3_repr']},
    'second': {'_type': 'input_choice', '_value': {'candidates': ['in1_key', 'in2_key', 'in3_key'], 'n_chosen': 1}},
}
PARAMETERS = {'first': {'_value': 'op1_repr', '_idx': 0}, 'second': {'_value': ['in2_key'], '_idx': [1]}}

MIXED = {
    **DOCUMENTED,
    'free': {'_type': 'input_choice', '_value': {'candidates': ['', '', ''], 'n_chosen': None}},
    'two': {'_type': 'input_choice', '_value': {'candidates': ['', 'first', ''], 'n_chosen': 2}},
    'batch': {'_type': 'choice', '_value': [16, 32, 64]},
    'lr': {'_type': 'loguniform', '_value': [0.0001, 0.1]},
    'drop': {'_type': 'quniform', '_value': [0, 0.5, 0.1]},
    'units': {'_type': 'randint', '_value': [3, 12]},
    'noise': {'_type': 'qlognormal', '_value': [0, 1, 0.5]},
    'decay': {'_type': 'normal', '_value': [0, 1]},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice([nn.ReLU(), nn.Tanh()], key='op')
        self.named = LayerChoice(
            {'a': nn.ReLU(), 'b': nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], key='inner'))}, key='named'
        )
        self.one = InputChoice(choose_from=['op', 'named'], n_chosen=1, key='one')
        self.any = InputChoice(choose_from=['', 'op', ''], key='any')
        self.size = ValueChoice([3, 5, 7], key='size')


def test_the_documented_file_and_parameters() -> None:
    file = SearchSpaceFile(DOCUMENTED)
    assert file.space.count() == 9
    subnet = file.subnet(PARAMETERS)
    assert dict(subnet) == {'first': 'op1_repr', 'second': 'in2_key'}
    assert file.parameters(subnet) == PARAMETERS
    assert file.to_dict() == DOCUMENTED


def test_the_documents_idex_is_read_with_a_warning() -> None:
    written = {'first': PARAMETERS['first'], 'second': {'_value': ['in2_key'], '_idex': [1]}}
    file = SearchSpaceFile(DOCUMENTED)
    with pytest.warns(UserWarning, match="'second': '_idex' is read as '_idx'"):
        assert file.subnet(written) == file.subnet(PARAMETERS)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        file.subnet(PARAMETERS)


def test_every_type_in_one_space() -> None:
    file = SearchSpaceFile(MIXED)
    space = file.space
    assert [type(space[key]) for key in MIXED] == [OneOf, OneOf, AnyOf, KOf, OneOf, *[Numeric] * 5]
    rng = np.random.default_rng(0)
    for _ in range(50):
        subnet = space.sample(rng)
        parameters = json.loads(json.dumps(file.parameters(subnet)))
        assert list(parameters) == list(MIXED)
        assert file.subnet(parameters) == subnet
        assert parameters['batch'] in (16, 32, 64)
        assert set(parameters['two']) == {'_value', '_idx'}
        assert parameters['two']['_value'] == [['', 'first', ''][index] for index in parameters['two']['_idx']]
    again = SearchSpaceFile(json.loads(json.dumps(file.to_dict())))
    assert again.space == space


def test_a_models_file_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / 'space.json'
    file = SearchSpaceFile.of(Net())
    file.write(path)
    assert json.loads(path.read_text()) == {
        'any': {'_type': 'input_choice', '_value': {'candidates': ['', 'op', ''], 'n_chosen': None}},
        'inner': {'_type': 'layer_choice', '_value': ['0', '1']},
        'named': {'_type': 'layer_choice', '_value': ['a', 'b']},
        'one': {'_type': 'input_choice', '_value': {'candidates': ['op', 'named'], 'n_chosen': 1}},
        'op': {'_type': 'layer_choice', '_value': ['0', '1']},
        'size': {'_type': 'choice', '_value': [3, 5, 7]},
    }
    assert list(json.loads(path.read_text())) == sorted(file.entries)
    model_space, rng = space_of(Net()), np.random.default_rng(0)
    for _ in range(30):
        drawn = SearchSpaceFile.of(path).space.sample(rng)
        assert file.subnet(SearchSpaceFile.of(path).parameters(drawn)) == model_space.subnet(dict(drawn))


def test_inactive_decisions_are_left_out_or_filled() -> None:
    file = SearchSpaceFile.of(Net())
    subnet = file.space.subnet({'op': 0, 'named': 'a', 'one': 'op', 'any': [], 'size': 5})
    assert 'inner' not in file.parameters(subnet)
    assert file.parameters(subnet)['any'] == {'_value': [], '_idx': []}
    whole = file.parameters(subnet, complete=True)
    assert whole['inner'] == {'_value': '0', '_idx': 0}
    assert file.subnet(whole) == subnet


def test_a_plain_space_is_written_and_read_again() -> None:
    space = Space({'a': OneOf(('x', 'y')), 'b': Ordered((2, 4)), 'c': KOf((0, 1, 2), k=2), 'd': AnyOf(('p', 'q'))})
    file = SearchSpaceFile.of(space)
    assert file.to_dict()['a'] == {'_type': 'choice', '_value': ['x', 'y']}
    again, rng = SearchSpaceFile(file.to_dict()), np.random.default_rng(0)
    for _ in range(20):
        subnet = space.sample(rng)
        assert dict(again.subnet(file.parameters(subnet))) == dict(subnet)


def test_nested_choices_matter_where_they_are_taken() -> None:
    entries = {
        'layer': {
            '_type': 'choice',
            '_value': [
                {'_name': 'empty'},
                {
                    '_name': 'conv',
                    'kernel': {'_type': 'choice', '_value': [1, 3]},
                    'rate': {'_type': 'uniform', '_value': [0, 1]},
                },
            ],
        }
    }
    file = SearchSpaceFile(entries)
    assert list(file.space) == ['layer', 'layer/conv/kernel', 'layer/conv/rate']
    assert dict(file.subnet({'layer': {'_name': 'empty'}})) == {'layer': 'empty'}
    subnet = file.subnet({'layer': {'_name': 'conv', 'kernel': 3, 'rate': 0.25}})
    assert dict(subnet) == {'layer': 'conv', 'layer/conv/kernel': 3, 'layer/conv/rate': 0.25}
    assert file.parameters(subnet) == {'layer': {'_name': 'conv', 'kernel': 3, 'rate': 0.25}}
    with pytest.raises(UnknownKeyError, match=r"'conv' has no 'kernal'\. Did you mean 'kernel'"):
        file.subnet({'layer': {'_name': 'conv', 'kernal': 3, 'rate': 0.25}})


def test_two_spaces_in_one() -> None:
    file = SearchSpaceFile.of(Net())
    merged = file.merged(SearchSpaceFile({'lr': MIXED['lr']}))
    assert set(merged.space) == {*file.space, 'lr'}
    assert merged.space.conditions == file.space.conditions
    with pytest.raises(SpaceError, match="'op' are in both"):
        file.merged(SearchSpaceFile({'op': MIXED['lr']}))


@st.composite
def entries(draw: st.DrawFn) -> dict:
    names = st.lists(st.text('abc0123', min_size=1, max_size=4), min_size=1, max_size=4, unique=True)
    made = {}
    for key in draw(st.lists(st.text('xyz./', min_size=1, max_size=5), min_size=1, max_size=5, unique=True)):
        kind = draw(st.sampled_from(['layer_choice', 'input_choice', 'choice', *LAWS]))
        if kind == 'layer_choice':
            value: Any = draw(names)
        elif kind == 'input_choice':
            candidates = draw(st.one_of(names, st.lists(st.sampled_from(['', 'a']), min_size=1, max_size=4)))
            value = {'candidates': candidates, 'n_chosen': draw(st.one_of(st.none(), st.integers(0, len(candidates))))}
        elif kind == 'choice':
            label = st.one_of(st.integers(-5, 5), st.floats(-5.25, 5.25, width=32), st.text('ab', max_size=3), st.booleans())
            value = draw(st.lists(label, min_size=1, max_size=5, unique_by=repr))
            value = [item for place, item in enumerate(value) if item not in value[:place]]
        else:
            low = draw(st.integers(1, 50))
            value = [low, low + draw(st.integers(1, 50)), draw(st.floats(0.1, 4))][: len(LAWS[kind])]
            value = [value[0] / 10, value[1] / 20, *value[2:]] if 'normal' in kind else value
        made[key] = {'_type': kind, '_value': value}
    return made


@settings(max_examples=60, deadline=None)
@given(entries(), st.integers(0, 2**32 - 1))
def test_any_space_goes_through_its_file_and_its_answers_through_json(content: dict, seed: int) -> None:
    file = SearchSpaceFile(json.loads(json.dumps(content)))
    rng = np.random.default_rng(seed)
    for subnet in [file.space.sample(rng) for _ in range(4)]:
        parameters = json.loads(json.dumps(file.parameters(subnet)))
        assert file.subnet(parameters) == subnet
        assert SearchSpaceFile(file.to_dict()).subnet(parameters) == subnet
    again = SearchSpaceFile.of(file.space)
    assert [len(domain) for domain in again.space.values()] == [len(domain) for domain in file.space.values()]


@pytest.mark.parametrize(
    ('entry', 'text'),
    [
        (['a', 'b'], "has the keys '_type' and '_value'"),
        ({'_type': 'layer_choise', '_value': ['a']}, "Did you mean 'layer_choice'"),
        ({'_type': 'layer_choice', '_value': []}, 'at least one alternative'),
        ({'_type': 'layer_choice', '_value': 'abc'}, 'at least one alternative'),
        ({'_type': 'layer_choice', '_value': [1, 2]}, 'are names, but got 1, 2'),
        ({'_type': 'layer_choice', '_value': ['a', 'a']}, 'given twice'),
        ({'_type': 'input_choice', '_value': ['a', 'b']}, 'needs {'),
        ({'_type': 'input_choice', '_value': {'candidates': ['a'], 'n_chosen': 2}}, 'must be in 0..1'),
        ({'_type': 'input_choice', '_value': {'candidates': ['a'], 'n_chosen': [0, 1]}}, 'whole number, or null'),
        ({'_type': 'input_choice', '_value': {'candidates': [1, 2], 'n_chosen': 1}}, 'are keys, or ""'),
        ({'_type': 'choice', '_value': [{'kernel': 3}]}, "needs a '_name'"),
        ({'_type': 'uniform', '_value': [1, 0]}, 'low <= high'),
    ],
)
def test_an_entry_that_is_none_is_refused_with_its_key(entry: object, text: str) -> None:
    with pytest.raises(SpaceError, match=text) as caught:
        SearchSpaceFile({'the key': entry})  # type: ignore[dict-item]
    assert str(caught.value).startswith("'the key': ")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / 'space.json'
    path.write_text('{"a": ')
    with pytest.raises(SpaceError, match=r'space\.json is not JSON'):
        SearchSpaceFile.of(path)
    path.write_text('{"a": 3}')
    with pytest.raises(SpaceError, match=r"space\.json: 'a': an entry has"):
        SearchSpaceFile.of(path)
    path.write_text('[]')
    with pytest.raises(SpaceError, match='a mapping of keys to entries, but got a list'):
        SearchSpaceFile.of(path)
    with pytest.raises(FileNotFoundError):
        SearchSpaceFile.of(tmp_path / 'absent.json')
    with pytest.raises(SpaceError, match='Linear has nothing to choose'):
        SearchSpaceFile.of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'first': {'_value': 'op2_repr', '_idx': 0}}, "alternative 0 is 'op1_repr'"),
        ({'first': {'_value': 'op1_repr', '_idx': 5}}, '`_idx` must hold'),
        ({'second': {'_value': ['in1_key', 'in2_key'], '_idx': [1]}}, '`_value` names 2 alternatives and `_idx` 1'),
        ({'second': {'_value': ['in2_key', 'in2_key'], '_idx': [1, 1]}}, 'chosen once'),
        ({'second': {'_value': ['in1_key', 'in2_key'], '_idx': [0, 1]}}, 'Exactly one'),
        ({'free': {'_value': ['']}}, "told by '_idx'"),
        ({'batch': 48}, '48 is none of'),
        ({'lr': 1.0}, 'out of the bounds'),
        ({'units': 12}, 'out of the bounds'),
        ({'lr2': 1.0}, "Did you mean 'lr'"),
    ],
)
def test_parameters_that_do_not_fit(change: dict, text: str) -> None:
    file = SearchSpaceFile(MIXED)
    with pytest.raises(SubnetError, match=text):
        file.subnet({**file.parameters(file.space.first()), **change})


def test_parameters_that_lack_a_key() -> None:
    with pytest.raises(SubnetError, match="no choice for 'second'"):
        SearchSpaceFile(DOCUMENTED).subnet({'first': PARAMETERS['first']})
    with pytest.raises(SubnetError, match='mapping of keys to values, but got None'):
        SearchSpaceFile(DOCUMENTED).subnet(None)  # type: ignore[arg-type]


def test_the_decisions_of_a_model_among_hyper_parameters() -> None:
    file = SearchSpaceFile.of(Net())
    parameters = file.parameters(file.space.first())
    assert list(file.decisions_in({**parameters, 'lr': 0.1, 'opt': {'_name': 'adam'}})) == list(parameters)
    with pytest.raises(UnknownKeyError, match=r"decide 'opp', which the model does not have.*Did you mean 'op'"):
        file.decisions_in({**{key: value for key, value in parameters.items() if key != 'op'}, 'opp': parameters['op']})


def test_values_that_are_lists_are_parameters() -> None:
    file = SearchSpaceFile({'k': {'_type': 'choice', '_value': [[3, 3], [5, 5]]}})
    assert file.parameters(file.space.first()) == {'k': [3, 3]}


def test_a_route_chooses_as_many_edges_as_it_has_to(tmp_path: Path) -> None:
    model = nn.Sequential(DiffChoiceRoute({name: nn.Identity() for name in 'abcd'}, num_chosen=2, alias='r'))
    file = SearchSpaceFile.of(model)
    assert file.to_dict() == {'r': {'_type': 'input_choice', '_value': {'candidates': list('abcd'), 'n_chosen': 2}}}
    file.write(tmp_path / 'space.json')
    again = SearchSpaceFile.of(tmp_path / 'space.json')
    assert again.space.count() == file.space.count() == 6
    drawn = again.space.sample(np.random.default_rng(0))
    assert len(dict(file.subnet(json.loads(json.dumps(again.parameters(drawn)))))['r']) == 2


@pytest.mark.parametrize('given', [(1,), np.array([1]), [np.int64(1)], np.int64(1), 1])
def test_indices_of_tuners_may_be_what_numpy_and_itertools_give(given: object) -> None:
    file = SearchSpaceFile(DOCUMENTED)
    second = {'_value': ['in2_key'], '_idx': given}
    assert file.subnet({**PARAMETERS, 'second': second}) == file.subnet(PARAMETERS)
    with pytest.raises(SubnetError, match=r'`_value` .* and `_idx` 1 do not belong together'):
        file.subnet({**PARAMETERS, 'second': {**second, '_value': ['in1_key']}})


def test_a_file_of_a_space_tells_inputs_from_values() -> None:
    space = Space.from_dict(json.loads(json.dumps(space_of(Net()).to_dict())))
    assert SearchSpaceFile.of(space).to_dict()['one'] == {
        '_type': 'input_choice', '_value': {'candidates': ['op', 'named'], 'n_chosen': 1},
    }  # fmt: skip


def test_a_merged_space_knows_the_paths_of_both() -> None:
    space = Space({'op': OneOf(('a', 'b'))}, paths={'module.op': 'op'})
    merged = SearchSpaceFile.of(space).merged(SearchSpaceFile({'lr': {'_type': 'uniform', '_value': [0.0, 1.0]}}))
    assert merged.space.subnet({'module.op': 'b', 'lr': 0.5})['op'] == 'b'
