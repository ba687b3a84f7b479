"""An executor of local processes: each trial can be killed, is limited in time and memory, and has its own log."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from strop.errors import ConfigError, try_import
from strop.mutables import Space
from strop.search.executor import Evaluate, OnReport, Outcome, evaluate_trial
from strop.search.parcel import Parcel, pack
from strop.search.reports import Decide
from strop.search.trial import Trial

_POLL = 0.2  # seconds between two looks at limits
_SECOND_LOOK = 0.1  # seconds between two looks at memory before a trial is killed for it
_STARTUP = 120.0  # seconds in which a worker must be ready
_OBEY = 10.0  # seconds in which a trial that is told to stop must have ended


class LocalProcesses:
    """Evaluates several trials at a time, each in a process of this machine.

    Workers live on from trial to trial; one that dies or breaks a limit is replaced, and its trial fails with the reason. They
    are started from a server that has run nothing, or as new processes where each has a device, so threads and locks of this
    process do no harm. Parameters and
    large tensors that the evaluation holds (a trained supernet, images) lie in memory that all workers share; they must not be
    written to. Small ones, such as the statistics of batch norms, are each worker's own.

    Args:
        workers: How many trials run at once.
        seconds: Time limit of one trial; None for none.
        memory: Limit in MiB of what a trial adds to the memory of its worker, children included; None for none.
        logs: Folder in which each trial's output is kept as `trial_<number>.log`; by default it goes where this process's goes.
        threads: PyTorch threads of each worker; by default the cores are divided among the workers.
        devices: What `CUDA_VISIBLE_DEVICES` is set to in each worker, such as `['0', '1']`: a slot for each.
        retries: How often a trial whose process died (not by a limit) is tried again before it fails.

    Raises:
        ConfigError: If an argument is out of range.

    The evaluation is a function that can be imported, an instance of such a class, or anything that cloudpickle (an optional
    package) can send. A script that uses this needs `if __name__ == '__main__':`, since workers import it.

    >>> LocalProcesses(workers=2, seconds=60).capacity
    2
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        seconds: float | None = None,
        memory: float | None = None,
        logs: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        devices: Sequence[str | int] | None = None,
        retries: int = 0,
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        workers = (len(devices) if devices else cores) if workers is None else workers
        for name, value in (('workers', workers), ('threads', 1 if threads is None else threads)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f'`{name}` must be a whole number, 1 or more, but got {value!r}.')
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise ConfigError(f'`retries` must be a whole number, 0 or more, but got {retries!r}.')
        for name, limit in (('seconds', seconds), ('memory', memory)):
            if limit is not None and (not isinstance(limit, (int, float)) or isinstance(limit, bool) or not limit > 0):
                raise ConfigError(f'`{name}` must be a positive number or None, but got {limit!r}.')
        if isinstance(devices, str):
            raise ConfigError(f"`devices` must be a list with a slot for each worker, such as ['0', '1'], but got {devices!r}.")
        if devices is not None and len(devices) < workers:
            raise ConfigError(f'`devices` has {len(devices)} slots for {workers} workers. Give one for each.')
        self.capacity = workers
        self.seconds, self.memory = seconds, memory
        self.logs = None if logs is None else Path(logs)
        self.threads = threads or max(cores // workers, 1)
        self.devices = [str(slot) for slot in devices or ()]
        self.retries = retries
        self.on_report: OnReport | None = None
        self._tried: dict[int, int] = {}
        self._workers: list[_Worker] = []
        self._psutil: Any = try_import('psutil', 'parallel') if memory is not None else None

    def start(self, evaluate: Evaluate, seed: int) -> None:
        """Start the workers and give them the evaluation.

        Raises:
            ConfigError: If the evaluation cannot be sent to another process, or the workers do not start.
        """
        self.close()
        self._tried = {}
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
        self._parcel, self._seed = pack(evaluate), seed
        self._parcel.block.share_memory_()
        try:
            self._workers = [self._begun(slot) for slot in range(self.capacity)]
            for worker in self._workers:
                self._await(worker)
        except BaseException:
            self.close()
            raise

    def submit(self, trial: Trial) -> None:
        """Give a trial to a worker that has none; one that died is replaced first."""
        place = next(place for place, worker in enumerate(self._workers) if worker.trial is None)
        if not self._workers[place].alive:
            self._workers[place].end()
            self._workers[place] = self._begun(place)
            self._await(self._workers[place])
        self._workers[place].send(trial)

    def wait(self) -> list[Outcome]:
        """Return the outcomes of the trials that have ended, killing those that break a limit; block until there is one."""
        while True:
            busy = [worker for worker in self._workers if worker.trial is not None]
            ready = wait([worker.connection for worker in busy], timeout=_POLL)
            outcomes = []
            for worker in busy:
                received = worker.receive() if worker.connection in ready else None
                if isinstance(received, _Report):
                    worker.answer(self._asked(received))
                    received = None
                # Reports do not put a limit off.
                outcome = self._broken_limit(worker) if received is None else received
                if outcome is None:
                    continue
                trial, worker.trial = worker.trial, None
                if worker.died and trial is not None and self._tried.get(trial.number, 0) < self.retries:
                    self._tried[trial.number] = self._tried.get(trial.number, 0) + 1
                    self.submit(trial)
                else:
                    outcomes.append(outcome)
            if outcomes:
                return outcomes

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            worker.end()
        self._workers = []

    # -- internals -------------------------------------------------------------------------

    def _begun(self, slot: int) -> _Worker:
        settings = _Settings(
            self._seed,
            self.threads,
            None if self.logs is None else str(self.logs.absolute()),
            self.devices[slot] if self.devices else None,
        )
        return _Worker(self._parcel, settings)

    def _await(self, worker: _Worker) -> None:
        worker.await_ready()
        if self.memory is not None:
            worker.held = _held(self._psutil, worker.process.pid)

    def _asked(self, report: _Report) -> bool:
        return self.on_report is not None and self.on_report(report.number, report.step, report.value)

    def _broken_limit(self, worker: _Worker) -> Outcome | None:
        assert worker.trial is not None, 'only of busy workers'
        taken = time.monotonic() - worker.since
        reason = None
        if worker.told is not None and time.monotonic() - worker.told > _OBEY:
            worker.kill()
            return Outcome(worker.trial.number, None, taken, stopped=True)
        if self.seconds is not None and taken > self.seconds:
            reason = f'the trial was killed after {taken:.3g} s: its limit is {self.seconds:g} s'
        elif self.memory is not None:
            held = over_limit(self._psutil, worker.process.pid, worker.held, self.memory)
            if held is not None:
                reason = f'the trial was killed: it held {held:.0f} MiB of memory, and its limit is {self.memory:g} MiB'
        if reason is None:
            return None
        worker.kill()
        return Outcome(worker.trial.number, None, taken, f'{reason}{self._log_text(worker.trial)}')

    def _log_text(self, trial: Trial) -> str:
        return '' if self.logs is None else f' (its output is in {log_file(self.logs, trial.number)})'


def log_file(folder: str | os.PathLike[str], number: int) -> Path:
    """Return where the output of a trial is kept.

    >>> str(log_file('logs', 7))
    'logs/trial_7.log'
    """
    return Path(folder) / f'trial_{number}.log'


@dataclass(frozen=True)
class _Settings:
    seed: int
    threads: int
    logs: str | None
    device: str | None


@dataclass(frozen=True)
class _Report:
    number: int
    step: int
    value: float


_STARTING = threading.Lock()


@contextlib.contextmanager
def _seeing(device: str | None) -> Iterator[None]:
    """Let processes that are started see this device alone."""
    with _STARTING:
        if device is None:
            yield
            return
        before = os.environ.get('CUDA_VISIBLE_DEVICES')
        os.environ['CUDA_VISIBLE_DEVICES'] = device
        try:
            yield
        finally:
            if before is None:
                del os.environ['CUDA_VISIBLE_DEVICES']
            else:
                os.environ['CUDA_VISIBLE_DEVICES'] = before


class _Worker:
    """A process, and the trial that it works on."""

    def __init__(self, parcel: Parcel, settings: _Settings) -> None:
        # The driver of a GPU reads which ones it may see when it is first asked, which a script may do while it is imported. So
        # it must stand in the environment that a process begins with, which those of a server have from the server.
        forks = sys.platform == 'linux' and settings.device is None
        context: Any = torch.multiprocessing.get_context('forkserver' if forks else 'spawn')
        if forks:
            context.set_forkserver_preload(['torch', 'strop.search.processes'])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, parcel, settings), daemon=False)
        try:
            with _seeing(settings.device):
                self.process.start()
        except RuntimeError as error:
            raise ConfigError(
                'Workers import the script that starts them: put what it runs under `if __name__ == "__main__":`. '
                f'({" ".join(str(error).split())[:120]})'
            ) from None
        finally:
            theirs.close()
        self.trial: Trial | None = None
        self.since = 0.0
        self.told: float | None = None
        self.held = 0.0
        self.killed = False
        self.died = False
        self._space: Space | None = None

    @property
    def alive(self) -> bool:
        return not self.killed and self.process.is_alive()

    def await_ready(self) -> None:
        """Wait for the worker's first word."""
        ready = False
        with contextlib.suppress(EOFError, OSError):
            ready = self.connection.poll(_STARTUP) and self.connection.recv()
        if not ready:
            self.end()
            raise ConfigError(
                'A worker process did not start; what it printed says why. The usual cause is a script without '
                '`if __name__ == "__main__":`, or an evaluation that cannot be imported there.'
            )

    def send(self, trial: Trial) -> None:
        space = trial.subnet.space
        new = space is not self._space
        self._space = space
        self.trial, self.since, self.told = trial, time.monotonic(), None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is noticed by `receive`
            self.connection.send((trial.number, trial.subnet.choices, space if new else None))

    def answer(self, stop: bool) -> None:
        if stop and self.told is None:
            self.told = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(stop)

    def receive(self) -> Outcome | _Report:
        assert self.trial is not None, 'only of busy workers'
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            self.kill()
            self.died = True
            why = f'signal {-code} ({signal.Signals(-code).name})' if code is not None and code < 0 else f'exit code {code}'
            hint = '; the system may have run out of memory' if code == -signal.SIGKILL else ''
            return Outcome(
                self.trial.number, None, time.monotonic() - self.since, f'the process of the trial ended by {why}{hint}'
            )

    def kill(self) -> None:
        """End the worker and everything that it started; once, since its number may be another process's later."""
        if self.killed:
            return
        self.killed = True
        pid = self.process.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # it leads a session of its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.process.join(10)
        self.connection.close()


def _held(psutil: Any, pid: int | None) -> float:
    """Return the MiB that a process and its children hold, without what they share with files or other processes."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                used = each.memory_info()
                total += (used.rss - getattr(used, 'shared', 0)) / 2**20
    return total


def over_limit(psutil: Any, pid: int | None, before: float, limit: float) -> float | None:
    """Return the MiB that a process and its children took on if they are more than a limit, at two looks in a row.

    A child that was just forked seems to hold all that its parent does, until it runs a program of its own.
    """
    held = _held(psutil, pid) - before
    if held > limit:
        time.sleep(_SECOND_LOOK)
        held = _held(psutil, pid) - before
    return held if held > limit else None


# -- in the worker -----------------------------------------------------------------------------


def _work(connection: Connection, parcel: Parcel, settings: _Settings) -> None:
    if hasattr(os, 'setsid'):
        os.setsid()  # Ctrl-C reaches the parent, which decides; and what the trial starts dies with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(settings.threads)
    evaluate = parcel.open()
    connection.send(True)
    space: Space | None = None
    while True:
        try:
            number, choices, given = connection.recv()
        except (EOFError, OSError):
            return
        space = given if given is not None else space
        assert space is not None, 'the first trial brings its space'
        decide = functools.partial(_ask, connection, number)
        outcome = evaluate_logged(evaluate, Trial(number, space.from_picks(choices)), settings.seed, decide, settings.logs)
        try:
            connection.send(outcome)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            text = f'what the evaluation returned cannot be sent back ({type(error).__name__}: {error}); return numbers'
            connection.send(replace(outcome, returned=None, error=text))


def _ask(connection: Connection, number: int, step: int, value: float) -> bool:
    connection.send(_Report(number, step, value))
    return bool(connection.recv())


def _die_with_parent() -> None:
    """A search that was killed leaves nobody behind."""
    search = multiprocessing.parent_process()  # not `os.getppid()`, which is that of the server that forks
    assert search is not None, 'workers are started by multiprocessing'
    search.join()
    os.killpg(0, signal.SIGKILL)


def evaluate_logged(evaluate: Evaluate, trial: Trial, seed: int, decide: Decide | None, logs: str | None) -> Outcome:
    """Evaluate a trial as `evaluate_trial` does, with its output in its log; where the disk is full, the log is cut off."""
    with _output_to(logs, trial.number):
        outcome = evaluate_trial(evaluate, trial, seed, decide)
        if outcome.trace is not None:
            with contextlib.suppress(OSError):
                print(outcome.trace, file=sys.stderr)
    return outcome


@contextlib.contextmanager
def _output_to(folder: str | None, number: int) -> Iterator[None]:
    """Write what is printed, also by libraries and children, to the log of a trial."""
    if folder is None:
        yield
        return
    _flush()
    kept = [os.dup(1), os.dup(2)]
    # Without a folder or a file its output goes nowhere; the trial itself is not at fault.
    try:
        log = open(log_file(folder, number), 'ab')  # noqa: SIM115
    except OSError:
        log = open(os.devnull, 'ab')  # noqa: SIM115
    with log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        _flush()
        for descriptor, stream in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, stream)
            os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
