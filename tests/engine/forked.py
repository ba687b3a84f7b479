"""Functions run in child processes: in one that a test may let die, or in several that train together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

SERVER = multiprocessing.get_context('forkserver')
_ROOMS = ('algorithms', 'architectures', 'cli.weights', 'compression', 'data', 'search.processes')
forkserver.set_forkserver_preload([*(f'strop.{room}' for room in _ROOMS), 'mmengine.visualization'])
# A process has one server. What it has imported must not depend on whose test comes first: searches ask for less.
forkserver.set_forkserver_preload = lambda *names, **options: None


def forked(function: Callable[..., Any], *args: Any, errors: Path) -> int:
    """Run `function` in a child process and return its exit code; an error is written.

    The child is forked from a server that has imported what it needs and has run nothing: a process in which autograd
    started threads cannot be forked.
    """
    process = SERVER.Process(target=_main, args=(function, args, errors))
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
        raise TimeoutError('The child process took more than four minutes.')
    return process.exitcode or 0


def in_group(function: Callable[..., Any], *args: Any, folder: Path, world: int = 2) -> None:
    """Run `function(rank, *args)` in processes that find one another by the variables which `torchrun` sets."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    errors = [folder / f'error_{rank}.txt' for rank in range(world)]
    processes = [SERVER.Process(target=_rank, args=(function, args, rank, world, port, errors[rank])) for rank in range(world)]
    for process in processes:
        process.start()
    end = time.monotonic() + 240
    # One that fails leaves the others waiting for it.
    while any(process.is_alive() for process in processes) and not any(process.exitcode for process in processes):
        if time.monotonic() > end:
            break
        processes[0].join(0.05)
        time.sleep(0.01)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    assert codes == [0] * world, (codes, *(path.read_text()[-3000:] for path in errors if path.exists()))


def _rank(function: Callable[..., Any], args: Any, rank: int, world: int, port: int, errors: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), CUDA_VISIBLE_DEVICES='')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    _main(function, (rank, *args), errors)


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
