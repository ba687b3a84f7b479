"""Scripts run as `python -c` runs them, in processes that have PyTorch and other packages imported but nothing of Strop."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# The import of PyTorch, and of what MMEngine looks for, takes far longer than the scripts; MMEngine itself stays out, since old
# names wait for its import.
_SERVER = """
import atexit, gc, importlib, json, os, sys, traceback, types
for name in ('torch', 'torch.distributed.optim', 'torch.utils.flop_counter', 'transformers', 'cv2', 'yaml', 'sympy'):
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
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
        continue
    ended = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(job['streams'], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
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
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    variables = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), **(environment or {})}
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ('stdout', 'stderr')]
        job = {
            'code': textwrap.dedent(code), 'arguments': [str(argument) for argument in arguments], 'cwd': str(cwd),
            'streams': [str(stream) for stream in streams], 'environment': variables,
        }  # fmt: skip
        server.stdin.write(json.dumps(job) + '\n')
        server.stdin.flush()
        if not select.select([server.stdout], [], [], 300)[0]:
            server.kill()
            _server.cache_clear()
            raise TimeoutError('The script took more than five minutes.')
        ended = int(server.stdout.readline())
        return subprocess.CompletedProcess([], ended, *(stream.read_text() for stream in streams))
