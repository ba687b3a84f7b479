"""Tables of subnets and trials, and the progress bar of a search."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from strop.mutables import Space
from strop.search import Trial


def trials_table(trials: Sequence[Trial], objectives: Mapping[str, str], title: str) -> Table:
    """Return a table of trials: rank, number, values, what else was measured, the decisions."""
    measured = list(
        dict.fromkeys(name for trial in trials for name, value in trial.info.items() if isinstance(value, (int, float)))
    )
    measured = [name for name in measured if name not in objectives]
    table = Table(title=title)
    for name in ('#', 'trial', *objectives, *measured):
        table.add_column(name, justify='right', no_wrap=True)
    table.add_column('subnet', overflow='fold', ratio=1)
    for rank, trial in enumerate(trials, 1):
        values = [f'{(trial.values or {})[name]:.4f}' for name in objectives]
        others = [f'{trial.info[name]:.4g}' if name in trial.info else '' for name in measured]
        table.add_row(str(rank), str(trial.number), *values, *others, ' '.join(map(str, trial.subnet.values())))
    return table


def space_table(space: Space, title: str) -> Table:
    """Return a table of the decisions of a space, their alternatives, and when each matters."""
    table = Table(title=title)
    table.add_column('decision', overflow='fold')
    table.add_column('kind', no_wrap=True)
    table.add_column('alternatives', overflow='fold')
    table.add_column('choices', justify='right')
    if space.conditions:
        table.add_column('matters if', overflow='fold')
    for key, domain in space.items():
        cells = [key, type(domain).__name__, ' '.join(map(str, domain.labels)), str(domain.size)]
        if space.conditions:
            cells.append(_condition(space, key))
        table.add_row(*cells)
    return table


def _condition(space: Space, key: str) -> str:
    ways = []
    for rule in space.conditions.get(key, ()):
        parts = []
        for guard in rule:
            answers = [
                ' & '.join(f'{parent}={space[parent].labels[index]}' for parent, index in zip(guard.keys, indices, strict=True))
                for indices in sorted(guard.allowed)
            ]
            parts.append(' or '.join(answers))
        ways.append(' and '.join(parts))
    return '; or '.join(ways)


@contextlib.contextmanager
def search_progress(runner: Any, loop: Any) -> Iterator[None]:
    """Show a bar with the best score and the time left while a search runs, if stderr is a terminal."""
    if not sys.stderr.isatty() or runner.rank != 0:
        yield
        return
    from strop.terminal import progress_bars

    with progress_bars() as progress, _logs_above(runner.logger):
        task = progress.add_task('search', total=loop.max_iters)
        best: list[float] = []

        def show(trial: Trial) -> None:
            best.extend(list((trial.values or {}).values())[:1])
            progress.update(
                task, completed=trial.number + 1, description=f'best {loop.score_key} {max(best):.4g}' if best else 'search'
            )

        loop.callbacks.append(show)
        yield


@contextlib.contextmanager
def _logs_above(logger: logging.Logger) -> Iterator[None]:
    """Write log lines through `sys.stdout` as it is now, which the bar keeps above itself."""
    handlers = [h for h in logger.handlers if isinstance(h, logging.StreamHandler) and not isinstance(h, logging.FileHandler)]
    before = [handler.setStream(sys.stdout) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
