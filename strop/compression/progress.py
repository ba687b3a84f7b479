"""How far a compression is: bars with the time that is left, lines of JSON for programs, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from strop.errors import ConfigError, listed, near
from strop.files import json_text
from strop.terminal import progress_bars

MODES = ('bars', 'json-lines', 'quiet')


class Progress:
    """Tells nothing; the other modes are its sub-classes.

    A stage begins, advances and ends; lines of text may come in between.
    """

    def plan(self, stages: Sequence[str]) -> None:
        """Say which stages there are."""

    def begin(self, stage: str, note: str = '') -> None:
        """Say that a stage begins."""

    def advance(self, stage: str, done: int, total: int) -> None:
        """Say how far it is."""

    def done(self, stage: str) -> None:
        """Say that its work is done."""

    def end(self, stage: str, seconds: float, scores: dict[str, float], kept: bool = False) -> None:
        """Say that it ended; `kept` if an earlier run had done it."""

    def say(self, text: str) -> None:
        """Say a sentence."""

    def close(self) -> None:
        """Leave the terminal as it was."""

    @staticmethod
    def of(mode: str | Progress) -> Progress:
        """Return the progress of a mode: `bars`, `json-lines` or `quiet`.

        Raises:
            ConfigError: If there is no such mode.

        >>> type(Progress.of('quiet')).__name__
        'Progress'
        """
        if isinstance(mode, Progress):
            return mode
        if mode not in MODES:
            raise ConfigError(f'`progress` must be one of {listed(MODES)}, but got {mode!r}.{near(mode, MODES)}')
        return {'bars': Bars, 'json-lines': JsonLines, 'quiet': Progress}[mode]()


class JsonLines(Progress):
    """One JSON object a line, on stdout: `event`, `stage` and what belongs to it.

    Args:
        stream: Where to.
        interval: Seconds between two lines of one stage's advance.
    """

    def __init__(self, stream: IO[str] | None = None, interval: float = 0.5) -> None:
        self._stream = stream
        self._interval = interval
        self._last = 0.0

    def plan(self, stages: Sequence[str]) -> None:
        self._tell(event='plan', stages=list(stages))

    def begin(self, stage: str, note: str = '') -> None:
        self._begun = time.monotonic()
        self._tell(event='begin', stage=stage, note=note)

    def advance(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < self._interval and done < total:
            return
        self._last = now
        spent = now - getattr(self, '_begun', now)
        left = spent / done * (total - done) if done else None
        self._tell(event='advance', stage=stage, done=done, total=total, seconds_left=None if left is None else round(left, 1))

    def end(self, stage: str, seconds: float, scores: dict[str, float], kept: bool = False) -> None:
        self._tell(event='end', stage=stage, seconds=round(seconds, 3), scores=scores, kept=kept)

    def say(self, text: str) -> None:
        self._tell(event='note', text=text)

    def _tell(self, **content: Any) -> None:
        stream = self._stream or sys.stdout
        stream.write(json_text(content) + '\n')
        stream.flush()


class Bars(Progress):
    """A bar for each stage on stderr, with the time that is left; lines where stderr is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import TextColumn

        self._console = Console(stderr=True, width=None if sys.stderr.isatty() else 160, highlight=False)
        self._bars = progress_bars(self._console, TextColumn('{task.fields[note]}'))
        self._tasks: dict[str, Any] = {}
        self._live = False

    def plan(self, stages: Sequence[str]) -> None:
        if not self._console.is_terminal:
            return
        if not self._live:
            self._bars.start()
            self._live = True
        for stage in stages:
            self._tasks[stage] = self._bars.add_task(stage, total=None, start=False, note='waiting')

    def begin(self, stage: str, note: str = '') -> None:
        if stage in self._tasks:
            self._bars.start_task(self._tasks[stage])
            self._bars.update(self._tasks[stage], note=note or 'running')
        elif not self._console.is_terminal:
            self._console.print(f'{stage} ...', markup=False)

    def advance(self, stage: str, done: int, total: int) -> None:
        if stage in self._tasks:
            self._bars.update(self._tasks[stage], completed=done, total=total, note=f'{done}/{total}')

    def done(self, stage: str) -> None:
        if stage in self._tasks:
            self._bars.update(self._tasks[stage], note='scoring')

    def end(self, stage: str, seconds: float, scores: dict[str, float], kept: bool = False) -> None:
        name, value = next(iter(scores.items()), ('', 0.0))
        text = f'{name} {value:.4f}' if name else 'done'
        text += ' (kept from an earlier run)' if kept else ''
        if stage in self._tasks:
            self._bars.update(self._tasks[stage], completed=1, total=1, note=text)
        elif not self._console.is_terminal:
            self._console.print(f'{stage}: {text}, {seconds:.1f} s', markup=False)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def close(self) -> None:
        if self._live:
            self._bars.stop()
            self._live = False


__all__ = ['MODES', 'Bars', 'JsonLines', 'Progress']
