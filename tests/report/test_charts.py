from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from strop.report.charts import axis_of, curve, front_of, thinned

numbers = st.floats(-1e9, 1e9, allow_nan=False, width=32)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_every_value_and_every_number_lies_on_its_axis(values: list[float]) -> None:
    axis = axis_of(values, 'x')
    assert all(-1e-6 <= axis.place(value) <= 100 + 1e-6 for value in values)
    assert axis.low < axis.high
    places = [tick.at for tick in axis.ticks]
    assert 2 <= len(places) <= 12
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-1] == 100


@given(st.lists(st.floats(1e-6, 1e9, allow_nan=False), min_size=1, max_size=20))
def test_equal_ratios_are_equal_distances(values: list[float]) -> None:
    axis = axis_of(values, 'x', log=True)
    assert all(0 <= axis.place(value) <= 100 for value in values)
    assert axis.ticks
    assert all(0 <= tick.at <= 100 for tick in axis.ticks)
    middle = (axis.low * axis.high) ** 0.5
    assert abs(axis.place(middle) - 50) < 1e-3


def test_numbers_beside_an_axis_are_round() -> None:
    assert [tick.text for tick in axis_of([88.1, 91.7], '%').ticks] == ['88', '89', '90', '91', '92']
    ends = axis_of([3], 'x')
    assert ends.low < 3 < ends.high
    assert axis_of([0.0003, 0.0011], 'x', text=lambda value: f'{value:.4f}').ticks[0].text == '0.0002'


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = front_of(points)
    kept = {points[index] for index in front}
    beaten = {
        (x, y) for x, y in points if any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points)
    }  # fmt: skip
    assert kept == set(points) - beaten
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)


@given(st.integers(1, 2000), st.integers(1, 400))
def test_a_thinned_curve_keeps_its_ends_and_its_mean(length: int, most: int) -> None:
    points = [(float(index), float(index % 7)) for index in range(length)]
    shown = thinned(points, most)
    assert len(shown) == min(length, most)
    assert shown == sorted(shown)
    low, high = min(y for _, y in points), max(y for _, y in points)
    assert all(low <= y <= high for _, y in shown)


def test_a_curve_fills_its_frame() -> None:
    plot = curve([(10, 1.0), (20, 0.5), (30, 0.0)], 'step', 'loss', 'words')
    assert plot.lines[0].points == ((0.0, 0.0), (50.0, 50.0), (100.0, 100.0))
    assert plot.lines[0].path == 'M0 0L50 50L100 100'
    assert [(tick.at, tick.text) for tick in plot.x.ticks] == [
        (0.0, '10'),
        (25.0, '15'),
        (50.0, '20'),
        (75.0, '25'),
        (100.0, '30'),
    ]
