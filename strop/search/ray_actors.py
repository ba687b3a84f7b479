"""An executor of Ray actors: trials on the machines of a cluster, or on this one as if it were one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strop.errors import ConfigError, StropError, try_import
from strop.mutables import Space
from strop.search.executor import Evaluate, Outcome
from strop.search.parcel import Parcel, pack
from strop.search.processes import _held, evaluate_logged, log_file, over_limit
from strop.search.trial import Trial

_POLL = 0.5  # seconds between two looks at limits
_WATCH = 0.2  # seconds between two looks of an actor at its memory
_PLACEMENT = 300.0  # seconds in which an actor that fits must be there; a busy machine is slow
_CONNECT = 10.0  # seconds in which the head of a cluster must answer
_OBEY = 10.0  # seconds in which a trial that is told to stop must have ended
_STARTS = 5  # actors that may fail to start, one after another


class RayExecutor:
    """Evaluates trials in Ray actors (https://docs.ray.io), which may be on other machines.

    Ray starts on this machine by itself. For a cluster: `ray start --head` on one machine, `ray start --address=HOST:6379` on
    the others, then `address='auto'` on the first, or `'HOST:6379'`. Each actor holds its CPUs and GPUs until the search ends.
    Anyone who reaches the ports of a cluster can run code on it: keep it in a network of your own.

    An actor that dies (its machine is lost, the system killed it) is replaced, and its trial goes to whichever actor is free
    first, `retries` times; then it fails with the reason. Ray's own restarts are switched off (`max_restarts=0`,
    `max_task_retries=0`): they would wait for the room of a lost machine, and repeat a trial that broke a limit.

    The evaluation is sent once, through Ray's object store. Parameters and large tensors that it holds (a trained supernet,
    images) are not copied: the actors of a machine read one memory, and must not write to it. Small ones, such as the
    statistics of batch norms, are each actor's own.

    Args:
        workers: How many trials run at once; by default as many as fit.
        cpus: CPUs of each trial, part of one included.
        gpus: GPUs of each trial, part of one included; Ray sets `CUDA_VISIBLE_DEVICES`.
        address: Address of a running cluster; by default the environment variable `RAY_ADDRESS`, or else one that starts here.
        seconds: Time limit of one trial; None for none.
        memory: Limit in MiB of what a trial adds to the memory of its actor, children included; None for none. Ray kills actors
            when a machine is nearly out of memory in any case.
        logs: Folder, on the machine of the actor, in which each trial's output is kept as `trial_<number>.log`; by default it
            goes to Ray's own logs.
        threads: PyTorch threads of each actor; by default its whole CPUs.
        retries: How often a trial whose actor died is tried again.

    Raises:
        ConfigError: If an argument is out of range.
        MissingDependencyError: If Ray is not installed: `pip install 'strop[ray]'`.

    >>> try:
    ...     RayExecutor(cpus=-1)
    ... except ConfigError as error:
    ...     print(error)
    `cpus` must be a number, 0 or more, but got -1.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        address: str | None = None,
        seconds: float | None = None,
        memory: float | None = None,
        logs: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        retries: int = 1,
    ) -> None:
        for name, value in (('cpus', cpus), ('gpus', gpus)):
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float('inf'):
                raise ConfigError(f'`{name}` must be a number, 0 or more, but got {value!r}.')
        for name, number, least in (('workers', workers, 1), ('threads', threads, 1), ('retries', retries, 0)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < least):
                raise ConfigError(f'`{name}` must be a whole number, {least} or more, but got {number!r}.')
        for name, limit in (('seconds', seconds), ('memory', memory)):
            if limit is not None and (not isinstance(limit, (int, float)) or isinstance(limit, bool) or not limit > 0):
                raise ConfigError(f'`{name}` must be a positive number or None, but got {limit!r}.')
        self._ray: Any = try_import('ray', 'ray')
        if memory is not None:
            try_import('psutil', 'parallel')
        self.workers, self.cpus, self.gpus = workers, float(cpus), float(gpus)
        self.address, self.seconds, self.memory, self.retries = address, seconds, memory, retries
        self.logs = None if logs is None else Path(logs)
        self.threads = threads or max(int(cpus), 1)
        self.capacity = workers or 1
        #: Takes what trials report on their way; see `strop.search.executor`.
        self.on_report: Any = None
        self._actors: list[_Actor] = []
        self._queue: deque[tuple[Trial, int]] = deque()
        self._desk: Any = None
        self._question: Any = None
        self._failed_starts = 0
        self._alive = 0.0
        self._started = False

    def start(self, evaluate: Evaluate, seed: int) -> None:
        """Connect to Ray, send the evaluation, and start the actors; those that come later join.

        Raises:
            ConfigError: If what the trials need is more than the cluster has, for which they would wait for ever; or if the
                evaluation cannot be sent.
            StropError: If Ray cannot be reached, or starts no actor.
        """
        self.close()
        parcel = pack(evaluate, [self._ray.cloudpickle.Pickler])
        self._connect()
        try:
            self.capacity = self._fitting()
            if self.on_report is not None or self.memory is not None:
                here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    self._ray.get_runtime_context().get_node_id(), soft=False
                )
                self._desk = self._ray.remote(_desk()).options(num_cpus=0, scheduling_strategy=here).remote()
            settings = {
                'seed': seed,
                'threads': self.threads,
                'memory': self.memory,
                'logs': None if self.logs is None else str(self.logs.absolute()),
                'paths': [path for path in sys.path if path],
            }
            self._content = self._ray.put((parcel.content, parcel.block.numpy(), settings))
            self._alive, self._failed_starts = time.monotonic(), 0
            self._actors = [self._begun() for _ in range(self.capacity)]
            while not any(actor.ready for actor in self._actors):
                self._step()
        except BaseException:
            self.close()
            raise

    def submit(self, trial: Trial) -> None:
        """Give a trial to an actor that has none, or keep it until there is one."""
        self._queue.append((trial, 0))
        self._dispatch()

    def wait(self) -> list[Outcome]:
        """Return the outcomes of the trials that have ended, killing those that break a limit; block until there is one."""
        while True:
            outcomes = self._step()
            if outcomes:
                return outcomes

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for handle in [*(actor.handle for actor in self._actors), self._desk]:
            if handle is not None:
                self._kill(handle)
        self._actors, self._desk, self._question, self._content = [], None, None, None
        self._queue.clear()
        if self._started:
            self._started = False
            self._ray.shutdown()

    # -- internals -------------------------------------------------------------------------

    def _connect(self) -> None:
        ray = self._ray
        if ray.is_initialized():
            connected = ray.get_runtime_context().gcs_address
            if self.address not in (None, 'auto', 'local', connected):
                raise ConfigError(
                    f'This process is connected to the Ray cluster at {connected}, and `address` is {self.address!r}. Call '
                    'ray.shutdown() first, or leave `address` out.'
                )
            return
        address = self.address or os.environ.get('RAY_ADDRESS') or 'local'
        _answers(address)
        try:
            # Ray takes SIGTERM for itself; what is started here ends with this process in any case.
            with _kept_signal(signal.SIGTERM), _environment(RAY_USAGE_STATS_ENABLED='0', RAY_process_group_cleanup_enabled='1'):
                ray.init(
                    address, include_dashboard=False if address == 'local' else None, log_to_driver=False, logging_level='ERROR'
                )
        except Exception as error:
            where = 'start on this machine' if address == 'local' else f'be reached at {address!r}'
            raise StropError(f'Ray could not {where}: {_words(error)}') from error
        self._started = True

    def _fitting(self) -> int:
        """Return how many actors are started; each must fit on one machine, and all of them at once."""
        nodes = [node['Resources'] for node in self._ray.nodes() if node.get('Alive')]
        needs = {name: need for name, need in (('CPU', self.cpus), ('GPU', self.gpus)) if need}
        fitting = sum(int(min(node.get(name, 0.0) / need + 1e-6 for name, need in needs.items())) for node in nodes if needs)
        if not needs:
            fitting = self.workers or len(nodes)
        total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ('CPU', 'GPU')}
        if fitting < (self.workers or 1):
            count = 'A trial' if (self.workers or 1) == 1 else f'{self.workers} trials at once, each'
            machines = '1 machine' if len(nodes) == 1 else f'{len(nodes)} machines'
            raise ConfigError(
                f'{count} with {self._needs()} would wait for ever: the cluster has {machines} with {total["CPU"]:g} CPUs and '
                f'{total["GPU"]:g} GPUs, room for {fitting}. Ask for fewer workers, or for less for each.'
            )
        return self.workers or fitting

    def _needs(self) -> str:
        return f'{self.cpus:g} CPUs' + (f' and {self.gpus:g} GPUs' if self.gpus else '')

    def _begun(self) -> _Actor:
        remote = self._ray.remote(_Evaluator).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0, max_task_retries=0
        )
        return _Actor(remote.remote(self._content, self._desk))

    def _kill(self, handle: Any) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(handle)

    def _dispatch(self) -> None:
        for actor in self._actors:
            if not self._queue:
                return
            if actor.ready and actor.trial is None:
                actor.send(*self._queue.popleft(), asks=self.on_report is not None)

    def _step(self) -> list[Outcome]:
        """Wait a moment, and deal with all that has happened."""
        references: dict[Any, _Actor | None] = {each.reference: each for each in self._actors if each.reference is not None}
        if self.on_report is not None and self._desk is not None:
            self._question = self._question or self._desk.next.remote()
            references[self._question] = None
        try:
            ready, _ = self._ray.wait(list(references), num_returns=1, timeout=_POLL)
        except self._ray.exceptions.RayError as error:
            raise StropError(f'The Ray cluster is lost: {_words(error)}') from error
        outcomes = []
        for reference in ready:
            actor = references[reference]
            if actor is None:
                self._answer()
            elif (outcome := self._heard(actor)) is not None:
                outcomes.append(outcome)
        outcomes += [outcome for actor in list(self._actors) if (outcome := self._late(actor)) is not None]
        if any(actor.ready for actor in self._actors):
            self._alive = time.monotonic()
        elif time.monotonic() - self._alive > _PLACEMENT:
            raise StropError(
                f'Ray placed no actor within {_PLACEMENT:g} s (each needs {self._needs()}): something else has the resources, '
                'or machines were lost. `ray status` says what.'
            )
        self._dispatch()
        return outcomes

    def _heard(self, actor: _Actor) -> Outcome | None:
        """Take what an actor said: that it is ready, an outcome, or nothing any more."""
        errors = self._ray.exceptions
        trial, taken = actor.trial, actor.taken
        try:
            said = self._ray.get(actor.reference)
        except errors.RayTaskError as error:
            if trial is None:
                raise StropError(f'A Ray actor could not open the evaluation: {_words(error.cause or error)}') from error
            actor.free()
            return Outcome(trial.number, None, taken, f'the trial ended by {_words(error.cause or error)}')
        except errors.RayError as error:
            return self._lost(actor, error)
        actor.free()
        self._failed_starts = 0
        return None if trial is None else said

    def _lost(self, actor: _Actor, error: Exception) -> Outcome | None:
        trial, attempts, taken = actor.trial, actor.attempts + 1, actor.taken
        self._replace(actor)
        if trial is None:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise StropError(
                    f'{_STARTS} Ray actors in a row could not start, the last one with: {_words(error)}'
                ) from error
            return None
        held_mib = self._noted(trial.number)
        if held_mib is not None:
            text = f'the trial was killed: it held {held_mib:.0f} MiB of memory, and its limit is {self.memory:g} MiB'
        elif attempts > self.retries:
            times = 'once' if attempts == 1 else f'{attempts} times'
            text = f'the actor of the trial was lost, {times}: {_words(error)}'
        else:
            self._queue.appendleft((trial, attempts))
            return None
        return Outcome(trial.number, None, taken, f'{text}{self._log_text(trial)}')

    def _late(self, actor: _Actor) -> Outcome | None:
        trial, taken = actor.trial, actor.taken
        if trial is None:
            return None
        if actor.told is not None and time.monotonic() - actor.told > _OBEY:
            self._replace(actor)
            return Outcome(trial.number, None, taken, stopped=True)
        if self.seconds is None or taken <= self.seconds:
            return None
        self._replace(actor)
        text = f'the trial was killed after {taken:.3g} s: its limit is {self.seconds:g} s'
        return Outcome(trial.number, None, taken, f'{text}{self._log_text(trial)}')

    def _replace(self, actor: _Actor) -> None:
        # Also where Ray only says that it cannot be reached: it must not go on with a trial that another one has.
        self._kill(actor.handle)
        self._actors[self._actors.index(actor)] = self._begun()

    def _answer(self) -> None:
        """Ask the driver what a trial asked, and hand the answer back."""
        reference, self._question = self._question, None
        try:
            question, number, step, value = self._ray.get(reference)
        except self._ray.exceptions.RayError:
            self._desk = None  # trials go on to their ends
            return
        asker = next((each for each in self._actors if each.trial is not None and each.trial.number == number), None)
        stop = asker is None or bool(self.on_report(number, step, value))
        if asker is not None and stop and asker.told is None:
            asker.told = time.monotonic()
        self._desk.answer.remote(question, stop)

    def _noted(self, number: int) -> float | None:
        if self.memory is None or self._desk is None:
            return None
        try:
            return self._ray.get(self._desk.noted.remote(number))
        except self._ray.exceptions.RayError:
            return None

    def _log_text(self, trial: Trial) -> str:
        return '' if self.logs is None else f' (its output is in {log_file(self.logs, trial.number)} of its machine)'


class _Actor:
    """An actor as the search sees it, and the trial that it works on."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.ready = False
        self.trial: Trial | None = None
        self.attempts = 0
        self.told: float | None = None
        self.reference = handle.ready.remote()
        self._since = 0.0
        self._space: Space | None = None

    @property
    def taken(self) -> float:
        """Seconds since it was given its trial."""
        return time.monotonic() - self._since

    def send(self, trial: Trial, attempts: int, asks: bool) -> None:
        space = trial.subnet.space
        given = space if space is not self._space else None
        self.trial, self.attempts, self.told, self._space = trial, attempts, None, space
        self._since = time.monotonic()
        self.reference = self.handle.evaluate.remote(trial.number, trial.subnet.choices, given, asks)

    def free(self) -> None:
        self.ready, self.trial, self.reference = True, None, None


def _words(error: BaseException) -> str:
    text = ' '.join(re.sub('\x1b\\[[0-9;]*m', '', str(error)).split())  # Ray colours its texts
    # Which actor of which address it was stands before why it died.
    text = text.rpartition('Worker exit detail: ')[2]
    return f'{type(error).__name__}: {text[:300]}'


def _answers(address: str) -> None:
    """Raise an error where nothing listens at an address, for which Ray would wait for minutes."""
    parts = re.fullmatch(r'(?:ray://)?\[?([^/\[\]]+?)\]?:(\d+)', address)
    if parts is None:
        return
    try:
        socket.create_connection((parts[1], int(parts[2])), timeout=_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise StropError(
            f'Ray could not be reached at {address!r}: {error}. `ray start --head` starts a cluster, and prints its address.'
        ) from None


@contextlib.contextmanager
def _kept_signal(number: int) -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    kept = signal.getsignal(number)
    try:
        yield
    finally:
        if main and kept is not None:
            signal.signal(number, kept)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _desk() -> type:
    """Return the class of the actor where others leave what the search has to know while they evaluate.

    A class without a place is sent as its code, so that its process need not import anything.
    """

    class Desk:
        def __init__(self) -> None:
            self.questions: asyncio.Queue[tuple[int, int, int, float]] = asyncio.Queue()
            self.answers: list[asyncio.Future[bool]] = []
            self.notes: dict[int, float] = {}

        async def ask(self, number: int, step: int, value: float) -> bool:
            answer = asyncio.get_running_loop().create_future()
            self.answers.append(answer)
            await self.questions.put((len(self.answers) - 1, number, step, value))
            return await answer

        async def next(self) -> tuple[int, int, int, float]:
            return await self.questions.get()

        async def answer(self, question: int, stop: bool) -> None:
            self.answers[question].set_result(stop)

        async def note(self, number: int, held_mib: float) -> None:
            self.notes[number] = held_mib

        async def noted(self, number: int) -> float | None:
            return self.notes.pop(number, None)

    return Desk


# -- in the cluster ----------------------------------------------------------------------------


class _Evaluator:
    """The actor."""

    def __init__(self, content: tuple[bytes, np.ndarray, dict[str, Any]], desk: Any) -> None:
        self.pickled, self.block, self.settings = content
        # So that what the search could import can be imported here, where it is there.
        sys.path += [path for path in self.settings['paths'] if path not in sys.path and os.path.exists(path)]
        torch.set_num_threads(self.settings['threads'])
        self.desk = desk
        self.evaluate_subnet: Any = None
        self.space: Space | None = None
        self.number: int | None = None
        if self.settings['logs'] is not None:
            os.makedirs(self.settings['logs'], exist_ok=True)

    def ready(self) -> bool:
        # Here and not before: what is raised in the making of an actor reaches the search as text alone.
        self.evaluate_subnet = Parcel.on(self.pickled, self.block).open()
        if self.settings['memory'] is not None:
            threading.Thread(target=self._watch, daemon=True).start()
        return True

    def evaluate(self, number: int, choices: Any, space: Space | None, asks: bool) -> Outcome:
        self.space = space if space is not None else self.space
        assert self.space is not None, 'the first trial brings its space'
        trial = Trial(number, self.space.from_picks(choices))
        self.number = number
        try:
            decide = self._decide if asks else None
            return evaluate_logged(self.evaluate_subnet, trial, self.settings['seed'], decide, self.settings['logs'])
        finally:
            self.number = None

    def _decide(self, step: int, value: float) -> bool:
        import ray

        try:
            return ray.get(self.desk.ask.remote(self.number, step, value))
        except ray.exceptions.RayError:
            return False  # nobody decides any more; the trial goes on to its end

    def _watch(self) -> None:
        """End this process, and all that it started, when its trial holds too much."""
        import psutil
        import ray

        before = _held(psutil, os.getpid())
        while True:
            time.sleep(_WATCH)
            number = self.number
            if number is None:
                continue
            held = over_limit(psutil, os.getpid(), before, self.settings['memory'])
            if held is not None:
                with contextlib.suppress(Exception):
                    ray.get(self.desk.note.remote(number, held))
                for child in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        child.kill()
                os.kill(os.getpid(), signal.SIGKILL)
