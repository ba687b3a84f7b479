"""Scripts run as `python -c` runs them, in processes that have PyTorch and other packages imported but nothing of Strop."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# The import of PyTorch, and of what MMEngine looks for, takes far longer than the scripts; MMEngine itself stays out, since old
# names wait for its import.
_SERVER = """
import atexit, gc, importlib, json, os, sys, traceback, types
for name in ('torch', 'torch.distributed.optim', 'torch.utils.flop_counter', 'transformers', 'cv2', 'yaml', 'optuna', 'pytest'):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
assert not [name for name in sys.modules if name.partition('.')[0] in ('strop', 'mmengine')]
gc.collect()
gc.freeze()
answers = os.fdopen(os.dup(1), 'w')
for line in sys.stdin:
    job = json.loads(line)
    if 'ended' in job:
        pid, status = os.waitpid(job['ended'], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), file=answers, flush=True)
        continue
    child = os.fork()
    if child:
        print(child, file=answers, flush=True)
        continue
    ended = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(job['streams'], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(job['cwd'])
        os.environ.clear()
        os.environ.update(job['environment'])
        sys.argv = ['-c', *job['arguments']]
        sys.path[1:1] = [place for place in os.environ.get('PYTHONPATH', '').split(os.pathsep) if place]
        main = sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(job['code'], '<string>', 'exec'), vars(main))
        ended = 0
    except SystemExit as error:
        ended = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, (int, type(None))):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': ''}
    process = subprocess.Popen(
        [sys.executable, '-c', _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd='/', env=environment
    )
    atexit.register(process.kill)
    return process


class Script:
    """A script that is running, with the part of `subprocess.Popen` that tests use; see `run_script`."""

    def __init__(self, code: str, *arguments: object, cwd: Path, environment: Mapping[str, Any] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ('stdout', 'stderr')]
        job = {
            'code': textwrap.dedent(code), 'arguments': [str(argument) for argument in arguments], 'cwd': str(cwd),
            'streams': [str(stream) for stream in self._streams],
            'environment': {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), **(environment or {})},
        }  # fmt: skip
        self.returncode: int | None = None
        self.pid: int = _answer(job)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _answer({'ended': self.pid})
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(f'The script took more than {timeout} s.')
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self) -> tuple[str, str]:
        """Return what it wrote, to stdout and to stderr."""
        out, err = (stream.read_text() for stream in self._streams)
        return out, err


def _answer(message: Mapping[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(message) + '\n')
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def run_script(
    code: str, *arguments: object, cwd: Path, environment: Mapping[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end and return its exit code and what it wrote.

    Args:
        code: Python, perhaps indented.
        *arguments: Its `sys.argv[1:]`.
        cwd: Where it runs; modules there can be imported.
        environment: Variables besides those of this process; Strop is found by `PYTHONPATH` unless they change that.
    """
    script = Script(code, *arguments, cwd=cwd, environment=environment)
    return subprocess.CompletedProcess([], script.wait(), *script.output())
