"""A picture of a search: the best value so far, or the trials between two objectives with their Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from strop.errors import ConfigError, try_import
from strop.search import Trial, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRIALS, _BEST = '#33638d', '#d95f02'
_NAMED = 12


def draw_search(trials: Sequence[Trial], objectives: Mapping[str, str], *, title: str = '') -> Figure:
    """Draw what a search found.

    One objective: every complete trial, and the best value so far as a line; failed trials are crosses at the bottom.
    Several: the first against each further one, with the Pareto front over all of them; its trials carry their numbers
    where they are few.

    Args:
        trials: In the order of the horizontal axis.
        objectives: Objective -> direction.
        title: Above the picture.

    Raises:
        ConfigError: If there is no objective.
        MissingDependencyError: If matplotlib is not installed (extra `report`).

    >>> from strop.mutables import OneOf, Space
    >>> from strop.search import run
    >>> result = run(Space({'x': OneOf((1, 2, 3))}), lambda subnet: subnet['x'], strategy='grid')
    >>> axis = draw_search(result.trials, result.objectives).axes[0]
    >>> axis.get_ylabel(), axis.get_legend_handles_labels()[1]
    ('score (maximize)', ['trials', 'best so far'])
    """
    if not objectives:
        raise ConfigError('A picture of a search needs at least one objective, but got none.')
    figure_class = try_import('matplotlib.figure', 'report').Figure
    panels = max(1, len(objectives) - 1)
    figure: Figure = figure_class(figsize=(7.2 if panels == 1 else 5.4 * panels, 4.4), layout='constrained')
    complete = [trial for trial in trials if trial.complete]
    if len(objectives) == 1:
        _draw_progress(figure.add_subplot(), trials, complete, *next(iter(objectives.items())))
    else:
        first, *others = objectives
        front = {trial.number for trial in pareto_front(complete, objectives)}
        for place, other in enumerate(others):
            axis = figure.add_subplot(1, panels, place + 1)
            _draw_front(axis, complete, front, (other, first), objectives)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw_progress(axis: Axes, trials: Sequence[Trial], complete: Sequence[Trial], name: str, direction: str) -> None:
    better = max if direction == 'maximize' else min
    best: list[float] = []
    for trial in complete:
        value = (trial.values or {})[name]
        best.append(value if not best else better(best[-1], value))
    places = {trial.number: place for place, trial in enumerate(trials)}
    xs = [places[trial.number] for trial in complete]
    axis.plot(xs, [(trial.values or {})[name] for trial in complete], '.', color=_TRIALS, alpha=0.5, label='trials')
    axis.step(xs, best, where='post', color=_BEST, label='best so far')
    failed = [places[trial.number] for trial in trials if trial.finished and not trial.complete]
    if failed:
        axis.plot(
            failed,
            [0.01] * len(failed),
            'x',
            color='0.4',
            transform=axis.get_xaxis_transform(),
            clip_on=False,
            label='without a value',
        )
    axis.set_xlabel('trial')
    axis.set_ylabel(f'{name} ({direction})')
    axis.grid(alpha=0.3)
    axis.legend()


def _draw_front(
    axis: Axes, complete: Sequence[Trial], front: set[int], names: tuple[str, str], objectives: Mapping[str, str]
) -> None:
    def points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
        return [(trial.values or {})[names[0]] for trial in trials], [(trial.values or {})[names[1]] for trial in trials]

    inside = [trial for trial in complete if trial.number not in front]
    best = sorted((trial for trial in complete if trial.number in front), key=lambda trial: (trial.values or {})[names[0]])
    axis.plot(*points(inside), '.', color=_TRIALS, alpha=0.5, label='trials')
    axis.plot(
        *points(best), 'o-' if len(objectives) == 2 else 'o', color=_BEST, markersize=5, linewidth=1, label='Pareto front'
    )
    if len(best) <= _NAMED:
        for trial, x, y in zip(best, *points(best), strict=True):
            axis.annotate(str(trial.number), (x, y), textcoords='offset points', xytext=(4, 4), fontsize=8)
    axis.set_xlabel(f'{names[0]} ({objectives[names[0]]})')
    axis.set_ylabel(f'{names[1]} ({objectives[names[1]]})')
    axis.grid(alpha=0.3)
    axis.legend()
