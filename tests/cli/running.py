"""Ways to run a command in tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner, Result
from engine.forked import SERVER

from strop.cli.main import main


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a command: one thread, no colours."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'NO_COLOR': '1', 'COLUMNS': '200', **extra}


class Command:
    """A running command.

    It has a process of its own, forked off a server that has only imported: seconds sooner than `python -m strop`.
    """

    def __init__(self, arguments: list[str], cwd: Path, extra: dict[str, str]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.streams = [str(Path(self.folder.name) / name) for name in ('stdout', 'stderr')]
        self.process = SERVER.Process(target=_child, args=(arguments, str(cwd), environment(**extra), *self.streams))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for the end and return what was written."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, 'the command does not end'
        out, err = (Path(stream).read_text() for stream in self.streams)
        return subprocess.CompletedProcess([], self.process.exitcode, out, err)


def _child(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    import torch

    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, 'w', 1, closefd=False) for number in (1, 2))
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(1)
    main(arguments)


def start(*arguments: object, cwd: Path, **extra: str) -> Command:
    """Start a command in a process of its own."""
    return Command([str(argument) for argument in arguments], cwd, extra)


def strop(*arguments: object, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own to its end."""
    return start(*arguments, cwd=cwd, **extra).wait()


def fresh(*arguments: object, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    """Start `python -m strop ...`."""
    return subprocess.Popen(
        [sys.executable, '-m', 'strop', *map(str, arguments)],
        cwd=cwd,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_interrupts,
    )


def _hear_interrupts() -> None:
    # A shell that runs the tests in the background has its children ignore Ctrl-C, and so would this process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner(env={'COLUMNS': '200'}).invoke(main, [str(argument) for argument in arguments], prog_name='strop')


def one_error(result: Result | subprocess.CompletedProcess[str]) -> str:
    """Return the one line of an error, and check that there is no other on stderr."""
    lines = [line for line in result.stderr.splitlines() if line.startswith('strop: error: ')]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert 'Traceback' not in result.stderr
    return lines[0].removeprefix('strop: error: ')
