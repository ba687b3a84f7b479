"""Which sizes of images a model takes, and which are tried."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strop.compression.image_sizes import between, smaller_sides
from strop.compression.parts import given_parts, smaller_images


def parts_of(height: int, width: int):
    images = torch.rand(8, 1, height, width)
    return given_parts({'train': images, 'test': images})


POOLED = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_classifier_that_averages_over_places_takes_every_size_down_to_half():
    assert smaller_sides(POOLED, parts_of(32, 32)) == ([*range(31, 15, -1)], '')
    assert smaller_sides(POOLED, parts_of(24, 40))[0] == [*range(23, 11, -1)]
    assert smaller_sides(POOLED, parts_of(64, 64))[0] == [*range(60, 31, -4)]
    assert smaller_sides(POOLED, parts_of(224, 224))[0] == [*range(216, 111, -8)]


def test_sizes_go_on_from_those_that_the_model_sees_now():
    assert smaller_sides(POOLED, parts_of(32, 32).at(24))[0] == [*range(23, 11, -1)]


def test_outputs_of_another_shape_are_no_classifier():
    found, why = smaller_sides(nn.Conv2d(1, 1, 3), parts_of(8, 8))
    assert found == []
    assert why == 'Conv2d gives outputs of another shape for images of 7 pixels'


def test_a_model_that_fails_on_other_sizes_keeps_its_own():
    found, why = smaller_sides(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), parts_of(8, 8))
    assert found == []
    assert why.startswith('Sequential does not take images of 7 pixels (RuntimeError: ')


def test_sizes_that_a_model_refuses_are_passed_over():
    class Picky(nn.Module):
        def forward(self, x):
            assert x.shape[-1] % 16 == 0
            return x.mean((2, 3))

    assert smaller_sides(Picky(), parts_of(32, 32)) == ([16], '')


def test_whatever_a_model_raises_is_a_reason():
    class Odd(nn.Module):
        def forward(self, x):
            if x.shape[-1] < 8:
                raise TypeError
            return x.mean((2, 3))

    assert smaller_sides(Odd(), parts_of(8, 8)) == ([], 'Odd does not take images of 7 pixels (TypeError: )')


def test_rows_are_no_images():
    rows = torch.rand(8, 5)
    assert smaller_sides(nn.Linear(5, 2), given_parts({'train': rows, 'test': rows})) == ([], 'its inputs are no images')


@given(count=st.integers(1, 20), data=st.data())
def test_sides_between_are_larger_than_the_one_that_is_small_enough(count, data):
    sides = [200 - 8 * place for place in range(count)]
    index = data.draw(st.none() | st.integers(0, count - 1))
    found = between(sides, index)
    assert found == sorted(set(found), reverse=True)
    assert all(side in sides for side in found)
    if index is None:
        assert found[-1] == sides[-1]
    else:
        assert all(side > sides[index] for side in found)


def test_the_longer_side_keeps_its_proportion_and_a_plain_picture_its_value():
    shrunk = smaller_images(torch.full((1, 2, 12, 18), 0.5), 8)
    assert shrunk.shape == (1, 2, 8, 12)
    assert torch.allclose(shrunk, torch.full((), 0.5))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    # Each new pixel is the mean of the two that it covers.
    assert smaller_images(ramp, 4)[0, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
