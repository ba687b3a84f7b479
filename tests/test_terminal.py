from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import TextColumn

from strop.terminal import progress_bars


def test_a_bar_says_what_how_far_and_how_long() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_bars(console) as bars:
        bars.update(bars.add_task('trials', total=10), completed=3)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert 'trials' in text
    assert '3/10' in text
    assert '0:00:00' in text


def test_the_middle_may_be_another() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_bars(console, TextColumn('{task.fields[note]}')) as bars:
        bars.add_task('prune', total=10, note='waiting')
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert 'waiting' in text
    assert '0/10' not in text


def test_stdout_is_left_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as bars:
        bars.add_task('trials', total=1)
    found = capsys.readouterr()
    assert found.out == ''
    assert 'trials' in found.err
