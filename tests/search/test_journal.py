from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from strop.errors import StoreError
from strop.search.journal import JournalFile, KernelLock

fcntl = pytest.importorskip('fcntl')


def record(number: int) -> dict[str, int]:
    return {'op_code': 4, 'number': number}


def test_records_come_back_and_a_torn_one_goes(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'a.journal'
    journal = JournalFile(path)
    journal.append_logs([record(0), record(1)])
    with open(path, 'ab') as stream:
        stream.write(b'{"op_code": 4, "num')
    again = JournalFile(path)
    assert list(again.read_logs(0)) == [record(0), record(1)]
    again.append_logs([record(2)])
    assert list(again.read_logs(2)) == [record(2)]
    # A reader that saw the torn record reads on.
    assert [entry['number'] for entry in journal.read_logs(0)] == [0, 1, 2]
    assert path.read_text().count('\n') == 3


def test_a_torn_record_longer_than_a_block_and_a_file_of_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / 'a.journal'
    path.write_bytes(b'{"op_code": "' + b'x' * 200_000)
    journal = JournalFile(path)
    journal.append_logs([record(0)])
    assert path.read_text() == '{"op_code":4,"number":0}\n'
    with open(path, 'ab') as stream:
        stream.write(b'{"op_code": "' + b'x' * 200_000)
    journal.append_logs([record(1)])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record(0), record(1)]


def test_together_is_one_append_even_where_the_block_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalFile(tmp_path / 'a.journal')
    synced = []
    monkeypatch.setattr(os, 'fsync', synced.append)
    with journal.together():
        journal.append_logs([record(0)])
        journal.append_logs([record(1)])
        assert list(journal.read_logs(0)) == []
    assert len(synced) == 1

    def interrupted() -> None:
        with journal.together():
            journal.append_logs([record(2)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(list(journal.read_logs(0))) == 3


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match='is a folder'):
        JournalFile(tmp_path)


def _hold(path: str, ready: multiprocessing.synchronize.Event) -> None:
    KernelLock(path).acquire()
    ready.set()
    time.sleep(60)


def _append(path: str, start: int) -> None:
    journal = JournalFile(path)
    for number in range(start, start + 100):
        journal.append_logs([record(number)])


def test_the_lock_dies_with_its_owner(tmp_path: Path) -> None:
    path = str(tmp_path / 'a.journal')
    context = multiprocessing.get_context('fork')
    ready = context.Event()
    process = context.Process(target=_hold, args=(path, ready))
    process.start()
    assert ready.wait(30)
    with open(path) as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.join()
    begin = time.perf_counter()
    JournalFile(path).append_logs([record(0)])
    assert time.perf_counter() - begin < 5


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / 'a.journal')
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=_append, args=(path, start)) for start in (0, 1000)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    numbers = [entry['number'] for entry in JournalFile(path).read_logs(0)]
    assert sorted(numbers) == [*range(100), *range(1000, 1100)]
