"""Bars on the terminal: how far something is, and how long it will take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


def progress_bars(console: Console | None = None, middle: ProgressColumn | None = None) -> Progress:
    """Return bars with what each is of, the time it took and the time that is left; nothing is drawn before they start.

    Args:
        console: Where to; stderr by default, since stdout is for results.
        middle: What stands behind a bar; by default how many of how many are done.

    >>> bars = progress_bars()
    >>> task = bars.add_task('trials', total=10)
    >>> bars.update(task, advance=3)
    >>> bars.tasks[0].percentage
    30.0
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        middle or MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console or Console(stderr=True))


__all__ = ['progress_bars']
