from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from strop.cli.reporting import compare, report
from strop.errors import ConfigError
from tests.report.compressed import compressed


def _run(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    compressed().write(tmp_path / 'out' / 'result.json')
    return tmp_path / 'out'


def test_a_report_is_written_into_the_folder_and_told_in_the_terminal(folder: Path) -> None:
    done = _run(report, folder)
    assert done.exit_code == 0
    assert (folder / 'report.html').read_text('utf-8').startswith('<!DOCTYPE html>')
    for words in ('bars, compressed', 'finetune', 'accuracy', 'it has less', 'report.html'):
        assert words in done.stdout


def test_a_report_goes_where_it_is_wanted(folder: Path) -> None:
    assert _run(report, folder / 'result.json', '--output', folder / 'page.html').exit_code == 0
    assert (folder / 'page.html').is_file()
    assert not (folder / 'report.html').exists()


def test_json_is_printed_alone(folder: Path) -> None:
    done = _run(report, folder, '--json')
    assert json.loads(done.stdout) == json.loads((folder / 'result.json').read_text())
    assert not (folder / 'report.html').exists()


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    done = _run(report, tmp_path)
    assert isinstance(done.exception, ConfigError)
    assert 'has no result.json' in str(done.exception)


def test_runs_are_compared_in_the_terminal_and_as_a_page(folder: Path, tmp_path: Path) -> None:
    other = compressed()
    other.stages[2].scores['accuracy'] = 0.25
    other.write(tmp_path / 'other' / 'result.json')
    done = _run(compare, folder, tmp_path / 'other', '--html', tmp_path / 'both.html')
    assert done.exit_code == 0
    assert '25.00 %' in done.stdout
    assert 'same rounds' in done.stdout
    assert '25.00' in (tmp_path / 'both.html').read_text('utf-8')
    content = json.loads(_run(compare, folder, tmp_path / 'other', '--json').stdout)
    assert list(content['runs']) == ['out', 'other']


def test_one_folder_is_not_enough(folder: Path) -> None:
    done = _run(compare, folder)
    assert done.exit_code == 2
    assert 'two or more folders, but got 1' in done.stderr
