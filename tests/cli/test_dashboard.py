from __future__ import annotations

import json
import re
import signal
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip('optuna_dashboard', reason='optuna-dashboard is not installed')

import strop.report.dashboard
from strop.cli.main import main
from strop.mutables import OneOf, Space
from strop.search import run

from .running import fresh


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run(Space({'x': OneOf((1, 2, 3))}), lambda subnet: subnet['x'], strategy='grid', store=tmp_path)
    return tmp_path


def _called(arguments: list[str], monkeypatch) -> tuple[int, str]:
    """Run the command, with a server that is interrupted at once."""

    def interrupted(self) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(strop.report.dashboard.Dashboard, 'serve', interrupted)
    answer = CliRunner().invoke(main, ['dashboard', *arguments])
    return answer.exit_code, answer.output


def test_it_serves_until_interrupted(folder: Path) -> None:
    process = fresh('dashboard', folder, '--port', '0', cwd=folder, PYTHONUNBUFFERED='1')
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r'http://127\.0\.0\.1:\d+', line)
        assert address, line
        answer = json.load(urllib.request.urlopen(f'{address[0]}/api/studies', timeout=30))
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=30)
    finally:
        process.kill()
    assert answer['study_summaries'][0]['study_name'] == 'search'
    assert process.returncode == 0
    assert out == ''
    assert rest == 'strop: the dashboard has ended\n'


def test_an_address_that_others_reach_is_said_loudly(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(strop.report.dashboard, '_is_loopback', lambda host: False)
    code, said = _called([str(folder), '--port', '0'], monkeypatch)
    assert code == 0
    assert 'WARNING' in said
    assert 'Nobody is asked for a password' in said


def test_the_loopback_address_is_not_warned_of(folder: Path, monkeypatch) -> None:
    assert 'WARNING' not in _called([str(folder), '--port', '0'], monkeypatch)[1]


def test_the_browser_is_opened_when_asked(folder: Path, monkeypatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr('webbrowser.open', lambda url: bool(opened.append(url)))
    code, said = _called([str(folder), '--port', '0', '--open'], monkeypatch)
    assert code == 0
    assert opened[0].startswith('http://127.0.0.1:')
    assert 'there is no browser here' in said


def test_the_password_of_a_database_is_not_printed(monkeypatch) -> None:
    code, said = _called(['postgresql+psycopg://ada:s3cret@127.0.0.1:1/trials'], monkeypatch)
    assert code == 1
    assert 's3cret' not in said
    assert 'ada:***@127.0.0.1' in said


@pytest.mark.parametrize(
    ('arguments', 'code', 'said'),
    [
        (['none.journal'], 1, 'There is no store none.journal'),
        (['.'], 1, 'no search.journal'),
        (['{}', '--port', '70000'], 2, '70000'),
        (['{}', '--logs', 'none'], 2, "'none' does not exist"),
        ([], 2, 'Missing argument'),
    ],
)
def test_bad_input_is_one_line(folder: Path, tmp_path_factory, monkeypatch, arguments: list[str], code: int, said: str) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp('empty'))
    got, line = _called([argument.format(folder) for argument in arguments], monkeypatch)
    assert got == code
    assert said in line
    assert line.count('\n') == 1
