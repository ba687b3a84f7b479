"""A journal file that survives a SIGKILL at any byte.

Optuna's journal is one JSON record a line, appended. Two things are added here: a record that was cut off by
the death of its writer is dropped before the next one is appended, and the lock is the kernel's, which dies
with its owner, so that resuming never waits for a lock file left behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock

from strop.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class KernelLock:
    """A lock on the journal file itself by `flock`: the kernel releases it when its owner dies.

    Args:
        path: The journal.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Wait until the lock is ours."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle
        return True

    def release(self) -> None:
        """Give the lock up."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class JournalFile(BaseJournalBackend):
    """The backend for `optuna.storages.JournalStorage`; any Optuna program reads the same file.

    Args:
        path: The file, created with its folder where it is missing.

    Raises:
        StoreError: If the file exists and is no journal; the message names the line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise StoreError(f'{self.path} is a folder, but a journal is a file.')
        self._lock: Any = KernelLock(str(self.path)) if fcntl is not None else JournalFileOpenLock(str(self.path))
        self._file = JournalFileBackend(str(self.path), lock_obj=self._lock)
        self._held: list[dict[str, Any]] | None = None
        self.check()

    def check(self) -> None:
        """Read the whole file once, so that damage is reported where it is.

        Raises:
            StoreError: If a line other than a cut-off last one is no record.
        """
        with open(self.path, 'rb') as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b'\n'):
                    break
                try:
                    record = json.loads(line)
                    broken = None if isinstance(record, dict) and 'op_code' in record else 'it is no journal record'
                except ValueError as error:
                    broken = str(error)
                if broken:
                    kind = ' It is an SQLite file: give it as sqlite:///PATH.' if line.startswith(b'SQLite format 3') else ''
                    raise StoreError(
                        f'{self.path} cannot be read as a journal: line {number} is broken ({broken}).{kind} '
                        'Restore it from a copy, or give another file.'
                    )

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the records from a number on, without a cut-off last one."""
        return self._file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records durably, or keep them for the end of `together`."""
        if self._held is not None:
            self._held.extend(logs)
            return
        content = ''.join(json.dumps(log, separators=(',', ':')) + '\n' for log in logs).encode()
        self._lock.acquire()
        try:
            with open(self.path, 'rb+', buffering=0) as stream:
                self._drop_torn_record(stream)
                end = stream.tell()
                try:
                    left = memoryview(content)
                    while left:
                        left = left[stream.write(left) :]
                    os.fsync(stream.fileno())
                except OSError:
                    # The disk is full: all of the records or none.
                    os.truncate(self.path, end)
                    raise
        finally:
            self._lock.release()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write all records of the block at once, at its end."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self.append_logs(held)

    @staticmethod
    def _drop_torn_record(stream: Any) -> None:
        end = stream.seek(0, os.SEEK_END)
        if end == 0:
            return
        stream.seek(end - 1)
        if stream.read(1) == b'\n':
            stream.seek(end)
            return
        position = end
        while position > 0:
            start = max(0, position - 65536)
            stream.seek(start)
            newline = stream.read(position - start).rfind(b'\n')
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        stream.truncate(position)
        stream.seek(position)
