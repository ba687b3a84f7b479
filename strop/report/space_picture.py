"""A picture of a search space: its decisions, their alternatives, and where a search has gone among them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from strop.errors import ConfigError, try_import
from strop.mutables import Domain, Numeric, Space, Subnet, chosen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BOXES = 16
_WORD = 22
_BEST = '#d95f02'


def draw_space(space: Space, subnets: Iterable[Subnet] = (), best: Subnet | None = None, *, rows: int = 40) -> Figure:
    """Draw one row a decision, one box an alternative; darker boxes were chosen more often.

    Numbers without an end of alternatives (learning rates, say) are a line with a tick for each value that was tried.
    Decisions that depend on others have an arrow.

    Args:
        space: The space.
        subnets: What was tried.
        best: The subnet whose choices get an orange frame.
        rows: Most decisions to draw; a line says how many are left out.

    Raises:
        ConfigError: If `rows` is not positive.
        MissingDependencyError: If matplotlib is not installed (extra `report`).

    >>> from strop.mutables import OneOf
    >>> space = Space({'op': OneOf(('skip', 'conv')), 'kernel': OneOf((3, 5, 7))})
    >>> figure = draw_space(space, [space.first()], best=space.first())
    >>> [text.get_text() for text in figure.axes[0].texts][:4]
    ['op', 'skip', 'conv', 'kernel']
    """
    if rows < 1:
        raise ConfigError(f'`rows` must be positive, but got {rows}.')
    figure_class = try_import('matplotlib.figure', 'report').Figure
    tried = list(subnets)
    keys = list(islice(space, rows))
    left = len(space) - len(keys)
    figure: Figure = figure_class(figsize=(10, 1.2 + 0.34 * (len(keys) + bool(left))), layout='constrained')
    axis = figure.add_subplot()
    for row, key in enumerate(keys):
        depth = _depth(space, key)
        axis.text(-0.02, -row, f'{"↳ " * depth}{_short(key, 30)}', ha='right', va='center', fontsize=9)
        domain = space[key]
        picks = [chosen(subnet.choices[key]) for subnet in tried if key in subnet.choices]
        own = chosen(best.choices[key]) if best is not None and key in best.choices else ()
        if isinstance(domain, Numeric):
            _draw_line(axis, row, domain, [float(pick[0]) for pick in picks], [float(value) for value in own])
        else:
            _draw_boxes(axis, row, domain, picks, own)
    if left:
        axis.text(0, -len(keys), f'and {left} more decisions', va='center', fontsize=9, style='italic')
    axis.set_xlim(-0.38, 1.01)
    axis.set_ylim(-len(keys) - bool(left) + 0.4, 0.8)
    axis.axis('off')
    said = f'{len(space)} decisions, {_size(space)} subnets'
    if tried:
        said += f'; {len(tried)} tried, darker where chosen more often' + (', orange: the best' if best is not None else '')
    axis.set_title(said, fontsize=10, loc='left')
    return figure


def _draw_boxes(axis: Axes, row: int, domain: Domain, picks: list[Any], own: tuple[int, ...]) -> None:
    patches = try_import('matplotlib.patches', 'report')
    shown = min(len(domain), _BOXES)
    # Of a long range the ends are drawn and what lies between them evenly.
    places = [round(place * (len(domain) - 1) / max(shown - 1, 1)) for place in range(shown)]
    counts = [0] * shown
    marked = set()
    for pick in picks:
        for index in pick:
            counts[_nearest(places, index)] += 1
    for index in own:
        marked.add(_nearest(places, index))
    width = 1.0 / shown
    for place, index in enumerate(places):
        share = counts[place] / len(picks) if picks else 0.0
        best = place in marked
        axis.add_patch(
            patches.Rectangle(
                (place * width + 0.003, -row - 0.38),
                width - 0.006,
                0.76,
                facecolor=(0.95 - 0.75 * share, 0.96 - 0.52 * share, 0.98 - 0.26 * share),
                edgecolor=_BEST if best else '0.6',
                linewidth=2.2 if best else 0.6,
                zorder=3 if best else 2,
            )
        )
        word = _short(str(domain.labels[index]), min(_WORD, max(3, 90 // shown)))
        axis.text(
            (place + 0.5) * width,
            -row,
            word,
            ha='center',
            va='center',
            fontsize=8 if shown <= 8 else 6,
            color='white' if share > 0.6 else 'black',
            zorder=4,
        )


def _draw_line(axis: Axes, row: int, domain: Numeric, values: list[float], own: list[float]) -> None:
    low, high = float(domain.at(0.001)), float(domain.at(0.999))
    scale = math.log if 'log' in domain.law and low > 0 else float
    start, span = scale(low), (scale(high) - scale(low)) or 1.0

    def at(value: float) -> float:
        return min(1.0, max(0.0, (scale(value) - start) / span)) * 0.8 + 0.1

    axis.plot([0.1, 0.9], [-row, -row], color='0.6', linewidth=0.8)
    axis.text(0.09, -row, f'{low:.3g}', ha='right', va='center', fontsize=8)
    axis.text(0.91, -row, f'{high:.3g}', ha='left', va='center', fontsize=8)
    axis.plot([at(value) for value in values], [-row] * len(values), '|', color='#33638d', markersize=8, alpha=0.5)
    axis.plot([at(value) for value in own], [-row] * len(own), 'D', color=_BEST, markersize=5)


def _nearest(places: list[int], index: int) -> int:
    return min(range(len(places)), key=lambda place: abs(places[place] - index))


def _depth(space: Space, key: str) -> int:
    """How many decisions deep a decision lies, at most three."""
    depth = 0
    while depth < 3 and key in space.conditions:
        key = space.conditions[key][0][0].keys[0]
        depth += 1
    return depth


def _size(space: Space) -> str:
    said = repr(space).partition(' decisions, ')[2].removesuffix(' subnets)')
    return 'endlessly many' if said == 'uncounted' else said


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f'{text[: limit - 1]}…'
