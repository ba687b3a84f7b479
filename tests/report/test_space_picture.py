from __future__ import annotations

import io

import numpy as np
import pytest

from strop.errors import ConfigError
from strop.mutables import AnyOf, Guard, KOf, Numeric, OneOf, Ordered, Space
from strop.report import draw_space

SPACE = Space(
    {
        'op': OneOf(('skip', 'conv')),
        'kernel': Ordered((3, 5, 7)),
        'inputs': KOf(('a', 'b', 'c'), k=2),
        'extras': AnyOf(('se', 'drop')),
        'rate': Numeric(law='loguniform', arguments=(1e-4, 1e-1)),
    },
    {'kernel': ((Guard.on('op', [1]),),)},
)


def _words(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def _boxes(figure) -> dict[str, tuple]:
    """Word in a box -> the box's colour and the width of its frame."""
    axis = figure.axes[0]
    found = {}
    for box in axis.patches:
        for text in axis.texts:
            x, y = text.get_position()
            if box.get_x() < x < box.get_x() + box.get_width() and box.get_y() < y < box.get_y() + box.get_height():
                found[text.get_text()] = (box.get_facecolor(), box.get_linewidth())
    return found


def test_every_decision_and_alternative_is_named() -> None:
    words = _words(draw_space(SPACE))
    for word in ('op', 'skip', 'conv', '3', '5', '7', 'inputs', 'a', 'b', 'c', 'extras', 'se', 'drop', 'rate'):
        assert word in words


def test_a_dependent_decision_has_an_arrow() -> None:
    words = _words(draw_space(SPACE))
    assert '↳ kernel' in words
    assert '↳ op' not in words


def test_what_was_chosen_more_often_is_darker() -> None:
    space = Space({'op': OneOf(('never', 'once', 'often'))})
    tried = [space.subnet({'op': name}) for name in ('once', 'often', 'often', 'often')]
    shade = {word: sum(colour[:3]) for word, (colour, _) in _boxes(draw_space(space, tried)).items()}
    assert shade['often'] < shade['once'] < shade['never']


def test_the_best_subnet_is_framed() -> None:
    best = SPACE.subnet({'op': 'conv', 'kernel': 5, 'inputs': ['a', 'c'], 'extras': [], 'rate': 0.01})
    boxes = _boxes(draw_space(SPACE, [best], best=best))
    framed = {word for word, (_, width) in boxes.items() if width > 1}
    assert framed == {'conv', '5', 'a', 'c'}


def test_a_range_of_many_values_keeps_both_ends() -> None:
    words = _words(draw_space(Space({'width': Ordered.integers(1, 500)})))
    assert '1' in words
    assert '500' in words
    assert len(words) < 40


def test_a_number_without_alternatives_shows_what_was_tried() -> None:
    rng = np.random.default_rng(0)
    tried = [SPACE.sample(rng) for _ in range(5)]
    ticks = [line for line in draw_space(SPACE, tried).axes[0].lines if line.get_marker() == '|']
    assert [len(line.get_xdata()) for line in ticks] == [5]


def test_decisions_beyond_the_limit_are_counted() -> None:
    space = Space({f'layer{place}': OneOf((0, 1)) for place in range(50)})
    words = _words(draw_space(space, rows=10))
    assert 'and 40 more decisions' in words
    assert 'layer10' not in words


def test_the_picture_can_be_written() -> None:
    stream = io.BytesIO()
    draw_space(SPACE).savefig(stream, format='png')
    assert stream.getvalue().startswith(b'\x89PNG')


def test_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match='rows'):
        draw_space(SPACE, rows=0)
