"""What is told while a compression runs, to people and to programs."""

from __future__ import annotations

import io
import json

import pytest

from strop.compression.progress import Bars, JsonLines, Progress
from strop.errors import ConfigError


def _run(progress: Progress) -> None:
    progress.plan(['prune', 'distill'])
    progress.begin('distill', 'epochs 2')
    progress.advance('distill', 1, 4)
    progress.advance('distill', 4, 4)
    progress.done('distill')
    progress.end('distill', 1.5, {'accuracy': 0.9})
    progress.say('well')
    progress.close()


def test_lines_of_json_have_an_event_each_and_the_time_that_is_left():
    stream = io.StringIO()
    _run(JsonLines(stream, interval=0))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line['event'] for line in lines] == ['plan', 'begin', 'advance', 'advance', 'end', 'note']
    assert lines[2]['seconds_left'] >= 0
    assert lines[4] == {'event': 'end', 'stage': 'distill', 'seconds': 1.5, 'scores': {'accuracy': 0.9}, 'kept': False}


def test_advances_are_told_at_intervals_but_the_last_always():
    stream = io.StringIO()
    progress = JsonLines(stream, interval=60)
    for done in range(1, 101):
        progress.advance('train', done, 100)
    told = [json.loads(line)['done'] for line in stream.getvalue().splitlines()]
    assert told[-1] == 100
    assert len(told) <= 2


def test_without_a_terminal_each_stage_is_a_line_on_stderr(capsys):
    _run(Bars())
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.splitlines() == ['distill ...', 'distill: accuracy 0.9000, 1.5 s', 'well']


def test_on_a_terminal_there_is_a_bar_for_each_stage(monkeypatch):
    from rich.console import Console

    stream = io.StringIO()
    progress = Bars()
    progress._console = progress._bars.live.console = Console(file=stream, force_terminal=True, width=100)
    _run(progress)
    text = stream.getvalue()
    assert 'prune' in text
    assert 'accuracy 0.9000' in text


def test_modes_have_names():
    assert isinstance(Progress.of('json-lines'), JsonLines)
    with pytest.raises(ConfigError, match="Did you mean 'bars'"):
        Progress.of('bar')
