from __future__ import annotations

from dataclasses import replace

import pytest

from strop.errors import ConfigError
from strop.mutables import OneOf, Space
from strop.report import draw_search
from strop.search import Trial

SPACE = Space({'x': OneOf(tuple(range(20)))})
BOTH = {'accuracy': 'maximize', 'macs': 'minimize'}


def _trials(*values: dict[str, float] | None) -> list[Trial]:
    return [
        Trial(number, SPACE.subnet({'x': number}), 'failed' if each is None else 'complete', each, error=None if each else 'no')
        for number, each in enumerate(values)
    ]


def _lines(figure) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines}


@pytest.mark.parametrize(('direction', 'best'), [('maximize', [1, 3, 3, 5]), ('minimize', [1, 1, 1, 1])])
def test_the_best_so_far_never_gets_worse(direction: str, best: list[float]) -> None:
    trials = _trials({'loss': 1}, {'loss': 3}, {'loss': 2}, {'loss': 5})
    lines = _lines(draw_search(trials, {'loss': direction}))
    assert lines['best so far'] == ([0, 1, 2, 3], best)
    assert lines['trials'][1] == [1, 3, 2, 5]


def test_failed_trials_are_marked_where_they_are() -> None:
    lines = _lines(draw_search(_trials({'loss': 1}, None, {'loss': 2}), {'loss': 'minimize'}))
    assert lines['without a value'][0] == [1]
    assert lines['best so far'] == ([0, 2], [1, 1])


def test_the_pareto_front_holds_what_nothing_dominates() -> None:
    trials = _trials({'accuracy': 0.9, 'macs': 9}, {'accuracy': 0.5, 'macs': 1}, {'accuracy': 0.4, 'macs': 5}, None)
    figure = draw_search(trials, BOTH)
    lines = _lines(figure)
    assert lines['Pareto front'] == ([1, 9], [0.5, 0.9])
    assert lines['trials'] == ([5], [0.4])
    assert {text.get_text() for text in figure.axes[0].texts} == {'0', '1'}


def test_three_objectives_make_two_panels() -> None:
    trials = _trials({'accuracy': 0.9, 'macs': 9, 'params': 1})
    figure = draw_search(trials, {**BOTH, 'params': 'minimize'}, title='three')
    assert [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes] == [
        ('macs (minimize)', 'accuracy (maximize)'),
        ('params (minimize)', 'accuracy (maximize)'),
    ]


@pytest.mark.parametrize('objectives', [{'score': 'maximize'}, BOTH])
def test_a_search_without_a_value_is_an_empty_picture(objectives: dict[str, str]) -> None:
    running = [replace(trial, state='running', error=None) for trial in _trials(None, None)]
    assert len(draw_search(running, objectives).axes) == 1
    assert len(draw_search([], objectives).axes) == 1


def test_no_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match='objective'):
        draw_search([], {})
