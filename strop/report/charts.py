"""Plots as plain geometry: where points, lines and ticks lie in percent of a frame, for a page that draws them itself.

Percent instead of pixels keeps words and marks readable at any width, and the page decides about colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_MOST_POINTS = 400


@dataclass(frozen=True)
class Tick:
    """A number beside an axis, and where it is, in percent."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Args:
        label: What it shows, with its unit.
        low: The value at 0 %.
        high: The value at 100 %.
        ticks: Numbers beside it.
        log: Whether equal distances are equal ratios.
    """

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value is, in percent of the axis.

        >>> axis_of([0, 10], 'loss').place(5)
        50.0
        """
        scale = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return round(100 * (scale(value) - low) / (high - low), 3)


@dataclass(frozen=True)
class Mark:
    """A point of a plot.

    Args:
        x: Percent from the left.
        y: Percent from the top.
        number: What it is called in the table beside the plot; empty if it is not listed.
        title: What it is.
        series: Which colour and shape it has.
        strong: Whether it stands out.
    """

    x: float
    y: float
    number: str
    title: str
    series: int
    strong: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a plot: points in percent from the left and from the top."""

    points: tuple[tuple[float, float], ...]
    series: int = 0

    @property
    def path(self) -> str:
        """The line as SVG draws it in a frame of 100 by 100.

        >>> Line(((0.0, 100.0), (50.0, 0.0))).path
        'M0 100L50 0'
        """
        return 'M' + 'L'.join(f'{x:g} {y:g}' for x, y in self.points)


@dataclass(frozen=True)
class Plot:
    """A plot in a frame: axes, marks and lines, and what it shows in words."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    series: tuple[str, ...] = ()
    words: str = ''


def axis_of(
    values: Iterable[float], label: str, *, text: Callable[[float], str] | None = None, log: bool = False, wanted: int = 5
) -> Axis:
    """Return an axis that all values fit on, with round numbers beside it.

    Args:
        values: Finite numbers; positive ones on a logarithmic axis.
        label: What it shows.
        text: How a number is written.
        log: Make equal ratios equal distances.
        wanted: About how many numbers to show.

    >>> [tick.text for tick in axis_of([0.2, 3.9], 'ms').ticks]
    ['0', '1', '2', '3', '4']
    >>> [tick.text for tick in axis_of([0.5, 300], 'ms', log=True).ticks]
    ['1', '10', '100']
    """
    numbers = list(values)
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    write = text or (lambda value: f'{value:g}')
    if log:
        low, high = low / 1.15, high * 1.15
        if high < 3 * low:
            low, high = low / 1.5, high * 1.5
        axis = Axis(label, low, high, (), True)
        found = [step * 10.0**power for power in range(-12, 15) for step in (1, 2, 5) if low <= step * 10.0**power <= high]
        decades = [value for value in found if math.log10(value).is_integer()]
        if len(decades) > 1:
            found = decades
        return Axis(label, low, high, tuple(Tick(axis.place(value), write(value)) for value in found), True)
    if high == low:
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if low else (-1.0, 1.0)
    step = _round_step((high - low) / max(1, wanted - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    axis = Axis(label, first * step, last * step, ())
    places = [float(f'{index * step:.12g}') for index in range(first, last + 1)]
    return Axis(label, axis.low, axis.high, tuple(Tick(axis.place(value), write(value)) for value in places))


def thinned(points: Sequence[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most so many points of a curve: means of neighbours.

    >>> thinned([(0, 4), (1, 2), (2, 6), (3, 8)], 2)
    [(0.5, 3.0), (2.5, 7.0)]
    """
    if len(points) <= most:
        return list(points)
    found = []
    for index in range(most):
        part = points[index * len(points) // most : (index + 1) * len(points) // most]
        found.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return found


def front_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other is left of and above at once, from the left to the right.

    >>> front_of([(2, 0.8), (1, 0.5), (3, 0.7), (2, 0.9)])
    [1, 3]
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found


def curve(points: Sequence[tuple[float, float]], x: str, y: str, words: str) -> Plot:
    """Return a plot of one line.

    Args:
        points: (x, y) in the order of x.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        words: What it shows.
    """
    shown = thinned(points)
    across, up = axis_of([px for px, _ in shown], x), axis_of([py for _, py in shown], y, wanted=4)
    across = Axis(across.label, *_ends(across, [px for px, _ in shown]))
    line = Line(tuple((across.place(px), round(100 - up.place(py), 3)) for px, py in shown))
    return Plot(across, up, lines=(line,), words=words)


def _ends(axis: Axis, values: Sequence[float]) -> tuple[float, float, tuple[Tick, ...]]:
    """Let a line fill its frame: the axis ends where the values do, and numbers outside are left out."""
    low, high = min(values), max(values)
    if low == high:
        return axis.low, axis.high, axis.ticks
    cut = Axis(axis.label, low, high, ())
    kept = []
    for tick in axis.ticks:
        value = axis.low + (axis.high - axis.low) * tick.at / 100
        if low <= value <= high:
            kept.append(Tick(cut.place(value), tick.text))
    return low, high, tuple(kept)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= step * (1 - 1e-9))


__all__ = ['Axis', 'Line', 'Mark', 'Plot', 'Tick', 'axis_of', 'curve', 'front_of', 'thinned']
