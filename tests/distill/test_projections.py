import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strop.distill.projections import connector_hint, projection
from strop.registry import MODELS


def built(configs):
    return nn.Sequential(*[MODELS.build(config) for config in configs])


sizes = st.integers(1, 6)


@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes))
def test_maps_of_any_two_shapes_meet(student, teacher):
    feature = torch.zeros(2, *student)
    assert built(projection((2, *student), (2, *teacher)))(feature).shape == (2, *teacher)


@given(st.lists(sizes, max_size=2), sizes, sizes)
def test_vectors_and_tokens_of_any_width_meet(between, student, teacher):
    if len(between) == 2:
        between = between[:1]
    feature = torch.zeros(2, *between, student)
    assert built(projection(feature.shape, (2, *between, teacher)))(feature).shape == (2, *between, teacher)


def test_nothing_is_needed_where_shapes_meet():
    assert projection((2, 3), (2, 3)) == []
    assert connector_hint(torch.zeros(2, 3), torch.zeros(2, 3)) == ''


def test_what_no_connector_makes_meet():
    for student, teacher in (((2, 3), (3, 3)), ((2, 3, 4), (2, 5, 4)), ((2, 3, 4, 4), (2, 3)), ((2,), (2,))):
        assert projection(student, teacher) is None
        assert connector_hint(torch.zeros(student), torch.zeros(teacher)) == ''


def test_the_hint_names_both_connectors_and_can_be_pasted():
    hint = connector_hint(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 8, 8))
    assert 'connectors' in hint
    configs = [eval(part) for part in hint.split('The connectors ')[1].split(' would')[0].split(' and then ')]
    assert built(configs)(torch.zeros(2, 3, 4, 4)).shape == (2, 5, 8, 8)
