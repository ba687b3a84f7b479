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
    """Run `function` in a forked process (which needs no imports anew) and return its exit code; an error is written."""

    def main() -> None:
        # A forked process must not use the threads of its parent.
        torch.set_num_threads(1)
        try:
            function(*args)
        except BaseException:
            errors.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context('fork').Process(target=main)
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
        raise TimeoutError('The child process took more than four minutes.')
    return process.exitcode or 0


def die() -> None:
    """End this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)
