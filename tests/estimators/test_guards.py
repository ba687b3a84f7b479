from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import EstimateError
from strop.estimators.guards import ALWAYS, Answers, GuardedSum, Slot
from strop.mutables import AnyOf, Guard, KOf, OneOf, Ordered, Space, Weights

SPACE = Space(
    {
        'op': OneOf(('a', 'b', 'c')),
        'kernel': Ordered((3, 5)),
        'inputs': KOf(('x', 'y', 'z'), k=2),
        'extra': AnyOf(('u', 'v')),
        'depth': Ordered((1, 2, 4)),
    },
    {'kernel': ((Guard.on('op', [1, 2]),),)},
)

KEYS = st.sampled_from([(key, index) for key, domain in SPACE.items() for index in range(len(domain))])
GUARDS = st.one_of(
    KEYS.map(lambda pair: Guard.on(pair[0], [pair[1]])),
    st.tuples(st.integers(0, 1), st.integers(0, 2)).map(lambda pair: Slot('inputs', *pair)),
    st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=5).map(lambda s: Guard(('op', 'depth'), frozenset(s))),
)
CONDITIONS = st.frozensets(st.frozensets(GUARDS, max_size=3), min_size=1, max_size=2)


def by_loop(space: Space, terms: dict, subnet) -> int:
    def holds(guard) -> bool:
        picks = subnet.choices.get(guard.key, ()) if isinstance(guard, Slot) else ()
        if isinstance(guard, Slot):
            return len(picks) > guard.position and picks[guard.position] == guard.index
        return guard.holds(subnet.choices)

    return sum(cost for condition, cost in terms.items() if any(all(map(holds, guards)) for guards in condition))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(CONDITIONS, st.integers(-50, 50), max_size=8))
def test_many_at_once_equals_one_by_one_and_extremes_are_exact(terms: dict):
    subnets = list(SPACE.grid())
    total = GuardedSum(SPACE, terms)
    values = total(Answers(SPACE, subnets))
    assert values.tolist() == [by_loop(SPACE, terms, subnet) for subnet in subnets]
    for largest in (False, True):
        value, subnet = total.extreme(largest)
        assert value == (values.max() if largest else values.min())
        assert by_loop(SPACE, terms, subnet) == value


def test_weights_hold_the_guards_of_every_candidate_in_use():
    space = Space({'op': OneOf(('a', 'b', 'c'))})
    answers = Answers(space, [space.subnet({'op': Weights([0.5, 0.0, 0.5])}), space.subnet({'op': 'b'})])
    assert answers.members('op').tolist() == [[True, False, True], [False, True, False]]
    assert answers.holds(Guard.on('op', [2])).tolist() == [True, False]


def test_inactive_decisions_hold_nothing():
    rng = np.random.default_rng(0)
    inactive = SPACE.subnet({**SPACE.sample(rng), 'op': 'a'})
    answers = Answers(SPACE, [inactive])
    assert 'kernel' not in inactive
    assert not answers.holds(Guard.on('kernel', [0, 1]))[0]


def test_sums_beyond_float64_stay_exact():
    space = Space({'op': OneOf(('a', 'b'))})
    terms = {frozenset({ALWAYS}): 2**60, frozenset({frozenset({Guard.on('op', [1])})}): 1}
    values = GuardedSum(space, terms)(Answers(space, list(space.grid())))
    assert values.tolist() == [2**60, 2**60 + 1]


def test_decisions_tied_too_closely_are_an_error():
    keys = tuple(f'k{i}' for i in range(12))
    space = Space({key: OneOf(('a', 'b', 'c')) for key in keys})
    term = frozenset({frozenset({Guard(keys, frozenset({(0,) * 12}))})})
    with pytest.raises(EstimateError, match='tied too closely'):
        GuardedSum(space, {term: 1}).extreme(True, limit=1000)
    wide = Space({'any': AnyOf(tuple(range(17)))})
    with pytest.raises(EstimateError, match='has 131072 choices'):
        GuardedSum(wide, {frozenset({frozenset({Guard.on('any', [0])})}): 1}).extreme(True)
