"""Trials that are scripts: a shell command, run once for each subnet in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strop.errors import ConfigError
from strop.mutables import SearchSpaceFile, Subnet
from strop.mutables.search_space_file import SpaceLike
from strop.search.trial_side import FOLDER_VARIABLE, TrialReportError, read_report, write_parameters

LOG = 'trial.log'

# The command leads a session of its own, so that all its processes can be killed at once; for that, nobody else's kill reaches
# them. A watcher therefore reads from a pipe that this process holds open: it ends when this process does, however it ends.
_GUARDED = 'exec 3<&0 </dev/null; { cat <&3; kill -s KILL -- -$$; } >/dev/null 2>&1 & exec 3<&-; exec /bin/sh -c "$1"'


class TrialCommand:
    """An evaluation for `strop.search.run`: runs a command, gives it the parameters, and reads what it reports.

    The script calls `get_next_parameter` or `get_and_apply_next_architecture`, trains, and ends with
    `report_final_result`. Each trial has a folder with `parameters.json`, `metrics.jsonl` and its output, `trial.log`.

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
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f'{subnet.digest}-', dir=self.folder)).absolute()
        write_parameters(folder, self.space.parameters(subnet), self._started)
        self._started += 1
        code, output = run_command(
            self.command, self.cwd, {FOLDER_VARIABLE: str(folder), **self.environment}, folder / LOG, self.timeout
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


def run_command(
    command: str, cwd: Path, environment: Mapping[str, str], log: Path, timeout: float | None = None
) -> tuple[int | None, str]:
    """Run a shell command to its end and return its exit code and its output; the code is None if it took too long.

    However this call or this process ends, no process of the command is left.

    Args:
        command: What the shell is given.
        cwd: Where it runs.
        environment: Variables beside those of this process.
        log: The file that its output goes to.
        timeout: Seconds after which it is killed.
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
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    return code, log.read_text(encoding='utf-8', errors='replace')


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
