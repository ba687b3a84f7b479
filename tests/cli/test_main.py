from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import strop as package
from strop.cli.main import COMMANDS, main

from .running import environment, fresh, one_error, run


def test_help_starts_without_torch() -> None:
    code = (
        'import sys\n'
        'from strop.cli.main import main\n'
        'sys.argv = ["strop", "--help"]\n'
        'try:\n    main()\n'
        'except SystemExit as end:\n    assert end.code == 0\n'
        'print(sorted({"torch", "mmengine", "optuna", "rich.console"} & set(sys.modules)), file=sys.stderr)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stderr.strip() == '[]'
    for name in COMMANDS:
        assert re.search(rf'^  {name} ', done.stdout, re.MULTILINE)
    assert 'Exit codes' in done.stdout


def test_version_through_python_m(tmp_path: Path) -> None:
    out, _ = fresh('--version', cwd=tmp_path).communicate(timeout=60)
    assert out.strip() == f'strop, version {package.__version__}'


@pytest.mark.parametrize('name', [name for name in COMMANDS if name != 'demo'])
def test_every_help_has_examples_that_parse(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(name, '--help')
    assert done.exit_code == 0
    text = done.output.partition('Examples:')[2].replace('\\\n', ' ')
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith(f'strop {name}')]
    assert examples
    # Files of the examples come from other commands; here any file will do.
    monkeypatch.setattr(click.Path, 'convert', lambda self, value, parameter, context: value)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for example in examples:
        command.make_context(name, shlex.split(example)[2:])


def test_unknown_command_and_options_are_usage_errors() -> None:
    done = run('serach')
    assert done.exit_code == 2
    assert "Did you mean 'search'" in one_error(done)
    done = run('train', 'a.py', '--amb')
    assert done.exit_code == 2
    assert '--amp' in one_error(done)
    assert 'See: strop train --help' in one_error(done)
    done = run('train')
    assert done.exit_code == 2


@pytest.mark.parametrize('group', [[], ['experiment']])
def test_a_group_without_a_command_shows_its_help(group: list[str]) -> None:
    done = run(*group)
    shown = run(*group, '--help')
    assert shown.exit_code == 0
    assert (done.stdout + done.stderr).strip() == shown.stdout.strip()
    assert len(shown.stdout.splitlines()) > 5


def test_debug_shows_the_traceback_and_otherwise_one_line(tmp_path: Path) -> None:
    done = run('show', tmp_path / 'best.yaml')
    assert done.exit_code == 1
    assert 'There is no file' in one_error(done)
    for arguments in (['--debug', 'show', tmp_path / 'best.yaml'], ['show', tmp_path / 'best.yaml', '--debug']):
        done = run(*arguments)
        assert done.exit_code == 1
        assert 'Traceback (most recent call last)' in done.stderr
        assert done.stderr.splitlines()[-1].startswith('strop: error: There is no file')


def test_a_closed_pipe_is_no_error(project: Path) -> None:
    line = f'{sys.executable} -m strop show supernet.py --json | head -n 1'
    done = subprocess.run(['bash', '-c', line], cwd=project, capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == '{\n'
    assert 'Traceback' not in done.stderr
