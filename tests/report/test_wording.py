from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from strop.report import wording


@given(st.floats(1e-6, 1e9, allow_nan=False))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert math.isclose(float(wording.digits(value).replace(',', '')), value, rel_tol=5.001e-3)


@given(st.floats(1, 1e15, allow_nan=False))
def test_counts_can_be_read_back(value: float) -> None:
    number, _, prefix = wording.counted(value).partition(' ')
    back = float(number.replace(',', '')) * {'': 1, 'k': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12}[prefix]
    assert math.isclose(back, value, rel_tol=5.001e-3)


def test_a_loss_of_accuracy_is_in_points_and_other_metrics_are_not() -> None:
    assert wording.score_change('top1_accuracy', 0.9, 0.8) == '−10.00 points'
    assert wording.score_change('accuracy', 90.0, 80.0) == '−10'
    assert wording.score_change('accuracy', None, 0.8) == ''
    assert wording.score('negative perplexity', -20.128) == '-20.13'


def test_what_is_not_known_has_a_dash() -> None:
    empty = (wording.counted, wording.milliseconds, wording.megabytes)
    assert {write(None) for write in empty} == {wording.NOTHING}
    assert wording.change(None, 3) == wording.change(3, None) == ''
    assert wording.shape(None) == ''
