"""Ways to run a command in tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from strop.cli.main import cli


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a command: one thread, no colours."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'NO_COLOR': '1', 'COLUMNS': '200', **extra}


def start(*arguments: object, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    """Start `python -m strop ...`."""
    return subprocess.Popen(
        [sys.executable, '-m', 'strop', *map(str, arguments)],
        cwd=cwd,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def strop(*arguments: object, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m strop ...` to its end."""
    process = start(*arguments, cwd=cwd, **extra)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner(env={'COLUMNS': '200'}).invoke(cli, [str(argument) for argument in arguments], prog_name='strop')


def one_error(result: Result | subprocess.CompletedProcess[str]) -> str:
    """Return the one line of an error, and check that there is no other on stderr."""
    lines = [line for line in result.stderr.splitlines() if line.startswith('strop: error: ')]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert 'Traceback' not in result.stderr
    return lines[0].removeprefix('strop: error: ')
