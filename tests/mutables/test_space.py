from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from strop.errors import SpaceError, SubnetError, UnknownKeyError
from strop.mutables import AnyOf, Guard, KOf, OneOf, Ordered, Space, Weights

from .drawn import spaces

NESTED = Space(
    {
        'depth': Ordered((1, 2)),
        'op': OneOf(('conv', 'skip')),
        'kernel': Ordered((3, 5, 7)),
        'second': OneOf(('a', 'b')),
    },
    {'kernel': ((Guard.on('op', [0]),),), 'second': ((Guard.on('depth', [1]),),)},
)


class TestSubnets:
    def test_inactive_decisions_are_left_out_in_whatever_way_it_is_made(self) -> None:
        full = NESTED.subnet({'depth': 1, 'op': 'skip', 'kernel': 7, 'second': 'b'})
        bare = NESTED.subnet({'op': 'skip', 'depth': 1})
        assert dict(full) == {'depth': 1, 'op': 'skip'}
        assert full == bare
        assert hash(full) == hash(bare)
        assert full.digest == bare.digest
        assert len({full, bare}) == 1

    def test_count_by_hand(self) -> None:
        assert NESTED.count() == (1 + 2) * (3 + 1) == len(set(NESTED.grid()))

    def test_an_inactive_choice_is_checked_nevertheless(self) -> None:
        with pytest.raises(SubnetError, match="'kernel': 4 is none of"):
            NESTED.subnet({'depth': 1, 'op': 'skip', 'kernel': 4})

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(
            SubnetError, match=r"no choice for 'depth', which is active\. In all, 2 decisions are missing: 'depth', 'op'"
        ):
            NESTED.subnet({})
        with pytest.raises(SubnetError, match="no choice for 'kernel', which is active"):
            NESTED.subnet({'depth': 1, 'op': 'conv'})

    def test_unknown_keys(self) -> None:
        with pytest.raises(UnknownKeyError, match=r"'kernal' is not a decision of this space. Did you mean 'kernel'"):
            NESTED.subnet({'kernal': 3})
        with pytest.raises(KeyError):
            NESTED['nothing']
        assert 'nothing' not in NESTED

    def test_paths_are_names_too_and_count_once(self) -> None:
        space = Space({'op': OneOf(('a', 'b'))}, paths={'layers.0.op': 'op'})
        assert space.subnet({'layers.0.op': 'b'}) == space.subnet({'op': 'b'})
        with pytest.raises(SubnetError, match=r"'op' is answered twice, the second time as 'layers.0.op'"):
            space.subnet({'op': 'a', 'layers.0.op': 'b'})

    @pytest.mark.parametrize('given_', [None, 3, 'op', ['op'], [('op', 'a')]])
    def test_no_mapping(self, given_: object) -> None:
        with pytest.raises(SubnetError, match='is a mapping of keys'):
            NESTED.subnet(given_)

    def test_a_subnet_of_another_space_is_read_by_its_labels(self) -> None:
        one, other = Space({'op': OneOf(('a', 'b'))}), Space({'op': OneOf(('b', 'c', 'a'))})
        assert dict(other.subnet(one.subnet({'op': 'a'}))) == {'op': 'a'}
        with pytest.raises(SubnetError, match="'c' is none of"):
            one.subnet(other.subnet({'op': 'c'}))
        wide, narrow = (Space({'op': OneOf(labels, mixable=True)}) for labels in (('a', 'b'), ('b', 'a')))
        assert wide.subnet(Space(dict(wide)).subnet({'op': [0.5, 0.5]})).choices == {'op': Weights((0.5, 0.5))}
        with pytest.raises(SubnetError, match='do not fit'):
            narrow.subnet(wide.subnet({'op': [0.2, 0.8]}))

    def test_weights_activate_what_lies_under_every_weighted_alternative(self) -> None:
        space = Space(
            {'op': OneOf(('x', 'y', 'z'), mixable=True), **{f'in_{name}': OneOf((1, 2)) for name in 'xyz'}},
            {f'in_{name}': ((Guard.on('op', [index]),),) for index, name in enumerate('xyz')},
        )
        subnet = space.subnet({'op': [0.5, 0.0, 0.5], 'in_x': 1, 'in_y': 1, 'in_z': 2})
        assert list(subnet) == ['op', 'in_x', 'in_z']
        assert subnet.weighted


class TestMaking:
    @pytest.mark.parametrize(
        ('domains', 'conditions', 'text'),
        [
            ({'': OneOf((1,))}, {}, 'non-empty strings'),
            ({'a': (1, 2)}, {}, 'needs a Domain'),
            ({'a': OneOf((1, 2))}, {'b': ((Guard.on('a', [0]),),)}, "condition for 'b', which is not a key"),
            ({'a': OneOf((1, 2))}, {'a': ((Guard.on('b', [0]),),)}, "depends on 'b', which is not a key"),
            ({'a': OneOf((1,)), 'b': OneOf((1,))}, {'a': ((Guard.on('b', [1]),),)}, "alternative 1 of 'b', which has 1"),
            ({'a': OneOf((1,))}, {'a': ((Guard.on('a', [0]),),)}, 'depends on itself'),
            (
                {'a': OneOf((1,)), 'b': OneOf((1,))},
                {'a': ((Guard.on('b', [0]),),), 'b': ((Guard.on('a', [0]),),)},
                'depends on itself',
            ),
        ],
    )
    def test_malformed(
        self, domains: dict[str, OneOf], conditions: dict[str, tuple[tuple[Guard, ...], ...]], text: str
    ) -> None:
        with pytest.raises(SpaceError, match=text):
            Space(domains, conditions)

    @pytest.mark.parametrize(
        'content',
        [
            {},
            [],
            {'domains': {'a': {'kind': 'one_of'}}},
            {'domains': {'a': {'kind': 'one_of', 'labels': [1], 'size': 1}}},
            {'domains': {'a': {'kind': 'one_of', 'labels': 1}}},
            {'domains': {'a': 'one_of'}},
            {'domains': {'a': {'kind': 'one_of', 'labels': [1]}}, 'conditions': {'a': [[{'keys': ['a']}]]}},
        ],
    )
    def test_malformed_data(self, content: object) -> None:
        with pytest.raises(SpaceError):
            Space.from_dict(content)

    def test_counting_stops_rather_than_hangs(self) -> None:
        keys = [f'k{i:02}' for i in range(24)]
        pairs = {f'{one} {two}': Guard((one, two), frozenset({(0, 0)})) for one in keys for two in keys if one < two}
        space = Space({name: OneOf((0, 1)) for name in (*keys, *pairs)}, {pair: ((guard,),) for pair, guard in pairs.items()})
        with pytest.raises(SpaceError, match='Counting stops'):
            space.count()
        assert repr(space) == 'Space(300 decisions, uncounted subnets)'

    def test_tied_decisions_are_counted_without_visiting_every_combination(self) -> None:
        # A depth of 1 to 12 over blocks of three operations, of which one has two forms.
        blocks = {f'{i:02}': OneOf(('a', 'b', 'c')) for i in range(12)}
        space = Space(
            {'depth': Ordered(tuple(range(1, 13))), **blocks, **{f'{key} form': OneOf((1, 2)) for key in blocks}},
            {
                **{key: ((Guard.on('depth', range(int(key), 12)),),) for key in blocks},
                **{f'{key} form': ((Guard.on('depth', range(int(key), 12)), Guard.on(key, [2])),) for key in blocks},
            },
        )
        assert space.count() == sum(4**depth for depth in range(1, 13))
        keys = [f'k{i:02}' for i in range(24)]
        every = Guard(tuple(keys), frozenset({(0,) * 24}))
        assert (
            Space({**{key: OneOf((0, 1)) for key in keys}, 'last': OneOf((0, 1))}, {'last': ((every,),)}).count() == 2**24 + 1
        )

    def test_printing(self) -> None:
        assert repr(NESTED) == 'Space(4 decisions, 12 subnets)'
        assert (
            repr(Space({f'k{i}': OneOf(tuple(range(10))) for i in range(400)})) == 'Space(400 decisions, about 10^400 subnets)'
        )

    def test_large_spaces_are_counted_exactly(self) -> None:
        assert Space({f'k{i}': OneOf(tuple(range(4))) for i in range(20)}).count() == 4**20


@given(spaces())
@settings(deadline=None)
def test_count_is_the_length_of_the_grid(space: Space) -> None:
    assume(space.count() <= 300)
    grid = list(space.grid())
    assert len(grid) == len(set(grid)) == len({subnet.digest for subnet in grid}) == space.count()
    assert all(space.subnet(dict(subnet)) == subnet for subnet in grid)


@given(spaces(), st.integers(0, 2**32), st.floats(0, 1))
@settings(deadline=None)
def test_every_operation_stays_inside_the_space(space: Space, seed: int, prob: float) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng), space.sample(rng)
    made = [
        first, second, space.first(), space.extreme(True), space.extreme(False), space.mutate(first, rng, prob),
        space.mutate(first, rng, prob, at_least_one=True), space.crossover(first, second, rng),
        *list(space.neighbours(first, rng))[:6],
    ]  # fmt: skip
    for subnet in made:
        assert space.subnet(dict(subnet)) == subnet
        assert space.subnet({**subnet.masks()}) == subnet
        assert set(subnet) == {key for key in space if space.is_active(key, subnet.choices)}
    assert space.mutate(first, rng, 0.0) == first
    assert space.crossover(first, first, rng) == first
    assert first not in list(space.neighbours(first, rng))
    if any(space[key].size > 1 for key in first):
        assert space.mutate(first, rng, 0.0, at_least_one=True) != first


@given(spaces(), st.integers(0, 2**32))
@settings(deadline=None)
def test_spaces_and_subnets_survive_json_copying_and_pickling(space: Space, seed: int) -> None:
    subnet = space.sample(np.random.default_rng(seed))
    for twin in (
        Space.from_dict(json.loads(json.dumps(space.to_dict()))),
        copy.deepcopy(space),
        pickle.loads(pickle.dumps(space)),
    ):
        assert twin == space
        assert twin.digest == space.digest
        moved = twin.subnet(subnet)
        assert moved == subnet
        assert (moved.digest, hash(moved)) == (subnet.digest, hash(subnet))
    assert pickle.loads(pickle.dumps(subnet)) == subnet


def test_digests_agree_across_processes() -> None:
    code = (
        'import json\n'
        'from strop.mutables import AnyOf, Guard, OneOf, Ordered, Space\n'
        "space = Space({'b': OneOf(('x', 'y')), 'a': AnyOf(('é', 'q')), 'n': Ordered((1, 2.5))},"
        "{'n': ((Guard(('b',), frozenset({(0,), (1,)})),),)})\n"
        "print(space.digest, space.subnet({'b': 'x', 'a': ['é'], 'n': 2.5}).digest)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, '-c', code], env={'PYTHONHASHSEED': seed, 'PATH': ''}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ('1', '2')
    }
    assert len(outputs) == 1
    here = Space(
        {'b': OneOf(('x', 'y')), 'a': AnyOf(('é', 'q')), 'n': Ordered((1, 2.5))},
        {'n': ((Guard(('b',), frozenset({(0,), (1,)})),),)},
    )
    assert outputs.pop().split() == [here.digest, here.subnet({'n': 2.5, 'a': [True, False], 'b': 0}).digest]


def test_unequal_spaces_have_unequal_digests() -> None:
    spaces_ = [
        Space({'a': OneOf(('x', 'y'))}),
        Space({'a': OneOf(('y', 'x'))}),
        Space({'a': Ordered(('x', 'y'))}),
        Space({'a': KOf(('x', 'y'), k=1)}),
        Space({'a': KOf(('x', 'y'), k=2)}),
        Space({'b': OneOf(('x', 'y'))}),
    ]
    assert len({space.digest for space in spaces_}) == len(set(spaces_)) == len(spaces_)


def test_truth_values_are_no_numbers() -> None:
    assert Space({'a': OneOf((1, 0))}) != Space({'a': OneOf((True, False))})
    assert Space({'a': OneOf((1, 0))}) == Space({'a': OneOf((1, 0))})


@pytest.mark.parametrize('combination', [[0, 1], ['x'], [], [0.0], [True]])
def test_conditions_that_are_none(combination: list) -> None:
    content = Space({'a': OneOf(('x', 'y')), 'b': OneOf(('x', 'y'))}).to_dict()
    content['conditions'] = {'b': [[{'keys': ['a'], 'allowed': [combination]}]]}
    with pytest.raises(SpaceError, match="'b' depends on 'a': a combination has an index"):
        Space.from_dict(content)
