"""Who works on a search: a record of each process in the store, a lock on the folder, and requests to stop.

A process that is alive renews its record, so that others tell a dead one on another machine; on their own machine they ask
the system.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from strop.errors import ConfigError, StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MANAGER, WORKER = 'manager', 'worker'
FINISH, NOW = 'finish', 'now'
LOCK_FILE = 'lock'
_PREFIX, _REQUEST = 'strop:process:', 'strop:stop'
_BEAT = 15.0  # seconds between two signs of life
_SILENT = 90.0  # seconds without one after which a process on another machine counts as dead

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """A process that works, or worked, on a search.

    Args:
        role: `'manager'`, of which there is one at a time, or `'worker'`.
        host: The name of its machine.
        pid: Its id there.
        started: What tells it from a later process of the same id.
        begun: When it joined, in seconds since 1970.
        beat: Its last sign of life.
    """

    role: str
    host: str
    pid: int
    started: str | None
    begun: float
    beat: float

    @property
    def key(self) -> str:
        """What names it in the store."""
        return f'{self.host}:{self.pid}:{self.started}'

    @property
    def visit(self) -> str:
        """What names this time that it joined: a process may stop, and go on with the search later."""
        return f'{self.key}@{self.begun}'

    @property
    def alive(self) -> bool:
        """Whether it still runs, as far as can be told from here."""
        if self.host == this_process()['host']:
            return process_started(self.pid) == self.started
        return time.time() - self.beat < _SILENT

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host}, since {time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.begun))}'


def processes(attributes: Mapping[str, Any]) -> list[Process]:
    """Return the processes that a study's attributes name, dead ones too.

    >>> processes({'strop:process:a:1:x': None})
    []
    """
    return [Process(**value) for key, value in attributes.items() if key.startswith(_PREFIX) and value is not None]


def is_alive(owner: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool | None:
    """Tell whether the process of another machine that owns a trial is alive; None if it has left no record."""
    record = attributes.get(f'{_PREFIX}{owner.get("host")}:{owner.get("pid")}:{owner.get("started")}', ...)
    if record is ...:
        return None
    return record is not None and Process(**record).alive


def request_stop(storage: BaseStorage, study: int, how: str) -> list[Process]:
    """Ask every process that works on a search to stop, and return them.

    Args:
        storage: Where the search is.
        study: Its id there.
        how: `'finish'` lets trials end, `'now'` kills them.
    """
    asked = [process for process in processes(storage.get_study_user_attrs(study)) if process.alive]
    storage.set_study_user_attr(study, _REQUEST, {'how': how, 'to': [process.visit for process in asked]})
    return asked


class Presence:
    """This process as one that works on a search, from `enter` to `leave`.

    Args:
        storage: A storage of its own, since a thread uses it.
        study: The study's id in it.
        role: `'manager'` or `'worker'`.
        on_stop: Called from a thread with `'finish'` or `'now'` when somebody asks this process to stop.
        look: Seconds between two looks at requests.

    Raises:
        StoreError: From `enter`, if it is a manager and another one is alive.
    """

    def __init__(self, storage: BaseStorage, study: int, role: str, on_stop: Callable[[str], None], look: float = 0.5) -> None:
        self._storage, self._study, self._role, self._on_stop, self._look = storage, study, role, on_stop, look
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name='strop presence')
        now = time.time()
        self.process = Process(role, **this_process(), begun=now, beat=now)

    def enter(self) -> None:
        self._refuse_second()
        self._write()
        self._thread.start()

    def leave(self) -> None:
        self._end.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(10)
        try:
            self._storage.set_study_user_attr(self._study, _PREFIX + self.process.key, None)
        except Exception as error:  # whoever comes next sees that the process is gone
            _logger.debug('The record of this process stays: %s', error)

    def rivals(self) -> list[Process]:
        """Return other managers that are alive."""
        known = processes(self._storage.get_study_user_attrs(self._study))
        return [one for one in known if one.role == MANAGER and one.key != self.process.key and one.alive]

    def _refuse_second(self) -> None:
        rivals = self.rivals() if self._role == MANAGER else []
        if rivals:
            raise StoreError(
                f'This experiment is run by {rivals[0]}. Two managers cannot run one experiment; `strop experiment stop` '
                'ends that one, and `strop experiment work` joins in as a worker.'
            )

    def _write(self) -> None:
        record = {**asdict(self.process), 'beat': time.time()}
        self._storage.set_study_user_attr(self._study, _PREFIX + self.process.key, record)

    def _watch(self) -> None:
        beaten, told = time.monotonic(), False
        while not self._end.wait(self._look):
            try:
                request = self._storage.get_study_user_attrs(self._study).get(_REQUEST) or {}
                if not told and self.process.visit in request.get('to', ()):
                    told = True
                    self._on_stop(request['how'])
                if time.monotonic() - beaten > _BEAT:
                    beaten = time.monotonic()
                    older = [one for one in self.rivals() if one.begun < self.process.begun] if self._role == MANAGER else []
                    if older and not told:
                        told = True
                        _logger.error('This experiment is also run by %s; this process stops.', older[0])
                        self._on_stop(NOW)
                    self._write()
            except Exception as error:
                _logger.debug('No sign of life could be given: %s', error)


class FolderLock:
    """The lock of an experiment's folder, by `flock`: the kernel gives it up when its holder dies.

    Args:
        folder: The folder.

    Raises:
        StoreError: From `acquire`, if another process holds it; the message says which.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder) / LOCK_FILE
        self._handle: int | None = None

    def acquire(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise StoreError(
                f'{self._path.parent} is in use by {holder(self._path.parent) or "another process"}. Two managers cannot run '
                'one experiment; `strop experiment stop` ends that one, and `strop experiment work` joins in as a worker.'
            ) from None
        now = time.time()
        content = json.dumps(asdict(Process(MANAGER, **this_process(), begun=now, beat=now)))
        os.ftruncate(handle, 0)
        os.pwrite(handle, content.encode(), 0)
        self._handle = handle

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def holder(folder: str | os.PathLike[str]) -> Process | None:
    """Return the process that wrote into the lock of a folder last; it may have ended since."""
    try:
        return Process(**json.loads((Path(folder) / LOCK_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def check_stop(how: str) -> str:
    """Return how to stop, checked.

    >>> check_stop('now')
    'now'
    """
    if how not in (FINISH, NOW):
        raise ConfigError(f"A search is stopped with 'finish' or 'now', but got {how!r}.")
    return how


def process_started(pid: int) -> str | None:
    """Return when a process started (boot and clock tick), None if it does not run; `'?'` where the system cannot tell."""
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
        fields = stat.rpartition(')')[2].split()
        if fields[0] == 'Z':
            return None
        return f'{_boot()}:{fields[19]}'
    except FileNotFoundError:
        if Path('/proc/self/stat').exists():
            return None
    except OSError:
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return None
    except PermissionError:
        pass
    return '?'


def _boot() -> str:
    try:
        return Path('/proc/sys/kernel/random/boot_id').read_text().strip()[:8]
    except OSError:
        return ''


@functools.lru_cache(maxsize=4)
def _describe(pid: int) -> tuple[str, str | None]:
    return socket.gethostname(), process_started(pid)


def this_process() -> dict[str, Any]:
    """Return host, pid and start of this process.

    >>> this_process()['pid'] == os.getpid()
    True
    """
    pid = os.getpid()
    host, started = _describe(pid)
    return {'host': host, 'pid': pid, 'started': started}
