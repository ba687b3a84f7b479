"""Functions run in a child process that a test may let die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def forked(function: Callable[..., Any], *args: Any, errors: Path) -> int:
    """Run `function` in a child process and return its exit code; an error is written.

    The child is forked from a server that has imported what it needs and has run nothing: a process in which autograd
    started threads cannot be forked.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'strop.algorithms', 'strop.engine', 'strop.data'])
    process = context.Process(target=_main, args=(function, args, errors))
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
        raise TimeoutError('The child process took more than four minutes.')
    return process.exitcode or 0


def _main(function: Callable[..., Any], args: Any, errors: Path) -> None:
    torch.set_num_threads(1)
    try:
        function(*args)
    except BaseException:
        errors.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def die() -> None:
    """End this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)
