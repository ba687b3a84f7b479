"""Trials that are scripts: a shell command, run once for each subnet in a folder of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from strop.errors import ConfigError
from strop.mutables import SearchSpaceFile, Subnet
from strop.mutables.search_space_file import SpaceLike
from strop.search.reports import current_reporter
from strop.search.trial_side import FOLDER_VARIABLE, ReportReader, TrialReportError, read_report, write_parameters

LOG = 'trial.log'
_POLL = 0.1  # seconds between two looks at what a trial reports

# The command leads a session of its own, so that all its processes can be killed at once; for that, nobody else's kill reaches
# them. A watcher therefore reads from a pipe that this process holds open: it ends when this process does, however it ends.
_GUARDED = 'exec 3<&0 </dev/null; { cat <&3; kill -s KILL -- -$$; } >/dev/null 2>&1 & exec 3<&-; exec /bin/sh -c "$1"'


class TrialCommand:
    """An evaluation for `strop.search.run`: runs a command, gives it the parameters, and reads what it reports.

    The script calls `get_next_parameter` or `get_and_apply_next_architecture`, trains, and ends with
    `report_final_result`. Each trial has a folder, `trial_<number>`, with `parameters.json`, `metrics.jsonl` and its output,
    `trial.log`; what an interrupted attempt at the trial left is kept as `trial_<number>.old1`. With a pruner, what the script
    reports by `report_intermediate_result` may end it: all its processes are killed then.

    Args:
        command: A shell command, such as `'python trial.py'`.
        space: The search space: a file, its path, a model or a `Space`.
        folder: Where the folders of trials are made.
        cwd: Where the command runs.
        timeout: Seconds after which a trial is killed, with all its processes, and counts as failed; None for no limit.
        objective: Name of the objective that the trial's number is.
        environment: Further environment variables.

    Raises:
        ConfigError: If the command is empty or `cwd` is no folder.

    >>> line = '{"type": "final", "sequence": 0, "value": 4}'
    >>> space = SearchSpaceFile({'x': {'_type': 'choice', '_value': [1, 2]}})
    >>> evaluate = TrialCommand(f"echo '{line}' > $STROP_TRIAL_DIR/metrics.jsonl", space, tempfile.mkdtemp())
    >>> evaluate(space.subnet({'x': 2}))
    {'score': 4.0}
    """

    def __init__(
        self,
        command: str,
        space: SpaceLike,
        folder: str | os.PathLike[str],
        *,
        cwd: str | os.PathLike[str] = '.',
        timeout: float | None = None,
        objective: str = 'score',
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(command, str) or not command.strip():
            raise ConfigError(f"A trial needs a command, such as 'python trial.py', but got {command!r}.")
        if not Path(cwd).is_dir():
            raise ConfigError(f'A trial runs in a folder, but {os.fspath(cwd)!r} is none.')
        self.command, self.space, self.folder = command, SearchSpaceFile.of(space), Path(folder)
        self.cwd, self.timeout, self.objective = Path(cwd), timeout, objective
        self.environment = dict(environment or {})
        self._started = 0

    def __call__(self, subnet: Subnet) -> dict[str, Any]:
        """Run one trial and return its result: the objective, and what stood beside it in the report.

        Raises:
            TrialReportError: If the command fails, takes too long, or reports no finite number; with its last output.
        """
        reporter = current_reporter()
        folder = self._new_folder(subnet, None if reporter is None else reporter.number)
        write_parameters(folder, self.space.parameters(subnet), self._started if reporter is None else reporter.number)
        self._started += 1
        reader = ReportReader(folder)
        watch = None if reporter is None else lambda: reader.forward(reporter)
        code, output = run_command(
            self.command, self.cwd, {FOLDER_VARIABLE: str(folder), **self.environment}, folder / LOG, self.timeout, watch
        )
        if code is None:
            raise TrialReportError(f'The trial was killed after {self.timeout:g} s. {tail(output)}')
        if code != 0:
            raise TrialReportError(f'The trial ended with exit code {code}. {tail(output)}')
        try:
            report = read_report(folder)
        except TrialReportError as error:
            raise TrialReportError(f'{error} {tail(output)}') from None
        return {self.objective: report.value, **report.more}

    def _new_folder(self, subnet: Subnet, number: int | None) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        if number is None:
            return Path(tempfile.mkdtemp(prefix=f'{subnet.digest}-', dir=self.folder)).absolute()
        folder = (self.folder / f'trial_{number}').absolute()
        if folder.exists():
            old = next(path for n in itertools.count(1) if not (path := folder.with_name(f'{folder.name}.old{n}')).exists())
            folder.rename(old)
        folder.mkdir()
        return folder


def run_command(
    command: str,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    timeout: float | None = None,
    watch: Callable[[], None] | None = None,
) -> tuple[int | None, str]:
    """Run a shell command to its end and return its exit code and its output; the code is None if it took too long.

    However this call or this process ends, no process of the command is left.

    Args:
        command: What the shell is given.
        cwd: Where it runs.
        environment: Variables beside those of this process.
        log: The file that its output goes to.
        timeout: Seconds after which it is killed.
        watch: Called now and then while it runs, and once after its end; what it raises ends the command.
    """
    with open(log, 'wb') as stream:
        process = subprocess.Popen(
            ['/bin/sh', '-c', _GUARDED, 'sh', command],
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _awaited(process, timeout, watch)
        finally:
            _end(process)
    return code, log.read_text(encoding='utf-8', errors='replace')


def _awaited(process: subprocess.Popen[bytes], timeout: float | None, watch: Callable[[], None] | None) -> int | None:
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if end is None else max(end - time.monotonic(), 0.0)
        pause = left if watch is None else _POLL if left is None else min(left, _POLL)
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(pause)
        if watch is not None:
            watch()
        if code is not None or (end is not None and time.monotonic() >= end):
            return code


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None, 'it was opened as a pipe'
    process.stdin.close()


def tail(output: str, lines: int = 8, width: int = 600) -> str:
    """Return the end of a command's output as a sentence.

    >>> tail('one')
    'Its output ends with: one'
    """
    text = '\n'.join(output.strip().splitlines()[-lines:])
    text = f'...{text[-width:]}' if len(text) > width else text
    return f'Its output ends with: {text}' if text else 'It printed nothing.'
