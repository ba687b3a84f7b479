from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from strop.errors import StoreError
from strop.mutables import OneOf, Space
from strop.search import presence as module
from strop.search.presence import (
    FolderLock,
    Presence,
    Process,
    holder,
    process_started,
    processes,
    request_stop,
    this_process,
)
from strop.search.store import Store

SPACE = Space({'a': OneOf((1, 2, 3))})


def make_store(tmp_path: Path) -> Store:
    return Store(tmp_path / 'search.journal', SPACE, {'score': 'maximize'})


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    child = subprocess.Popen([sys.executable, '-S', '-c', 'input()'], stdin=subprocess.PIPE)
    started = process_started(child.pid)
    assert started not in (None, process_started(os.getpid()))
    known = Process('worker', this_process()['host'], child.pid, started, 0.0, 0.0)
    later = Process('worker', this_process()['host'], child.pid, 'another', 0.0, 0.0)
    assert (known.alive, later.alive) == (True, False)
    child.communicate(b'\n')
    assert not known.alive


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = 'import sys, time; from strop.search.presence import FolderLock; FolderLock(sys.argv[1]).acquire(); '
    code += 'print(1, flush=True); time.sleep(60)'
    child = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b'1\n'
    with pytest.raises(StoreError, match=f'in use by process {child.pid} on '):
        FolderLock(tmp_path).acquire()
    child.kill()
    child.wait()
    lock = FolderLock(tmp_path)
    lock.acquire()
    found = holder(tmp_path)
    assert found is not None
    assert found.pid == os.getpid()
    lock.release()


def test_a_request_reaches_those_that_are_there_and_not_those_that_come_later(tmp_path: Path) -> None:
    store, asked, reached = make_store(tmp_path), [], threading.Event()

    def on_stop(how: str) -> None:
        asked.append(how)
        reached.set()

    first = Presence(store._storage, store._study, 'worker', on_stop, look=0.02)
    first.enter()
    assert [process.pid for process in request_stop(store._storage, store._study, 'finish')] == [os.getpid()]
    assert reached.wait(10)
    first.leave()
    assert asked == ['finish']
    assert processes(store._storage.get_study_user_attrs(store._study)) == []
    assert request_stop(store._storage, store._study, 'now') == []
    second = Presence(store._storage, store._study, 'worker', on_stop, look=0.02)
    second.enter()
    time.sleep(0.2)
    second.leave()
    assert asked == ['finish']


def test_the_younger_of_two_managers_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked before either wrote, on two machines."""
    monkeypatch.setattr(module, '_BEAT', 0.05)
    store, asked, reached = make_store(tmp_path), [], threading.Event()

    def on_stop(how: str) -> None:
        asked.append(how)
        reached.set()

    mine = Presence(store._storage, store._study, 'manager', on_stop, look=0.02)
    mine.enter()
    now = time.time()
    other: dict[str, Any] = {'role': 'manager', 'host': 'elsewhere', 'pid': 1, 'started': 'x', 'begun': now - 60, 'beat': now}
    store._storage.set_study_user_attr(store._study, 'strop:process:elsewhere:1:x', {**other, 'begun': now + 60})
    time.sleep(0.3)
    assert asked == []
    store._storage.set_study_user_attr(store._study, 'strop:process:elsewhere:1:x', other)
    assert reached.wait(10)
    mine.leave()
    assert asked == ['now']


@pytest.mark.parametrize(('silent', 'taken'), [(1.0, 0), (500.0, 1)])
def test_trials_of_another_machine_are_taken_once_it_is_silent(tmp_path: Path, silent: float, taken: int) -> None:
    store = make_store(tmp_path)
    trial = store.create(SPACE.first(), {})
    elsewhere = {'host': 'elsewhere', 'pid': 1, 'started': 'x'}
    store._storage.set_trial_user_attr(store._ids[trial.number], 'owner', {**elsewhere, 'run': 'r'})
    record = {'role': 'worker', **elsewhere, 'begun': 0.0, 'beat': time.time() - silent}
    store._storage.set_study_user_attr(store._study, 'strop:process:elsewhere:1:x', record)
    store.close()
    assert len(make_store(tmp_path).take_abandoned()) == taken


def test_a_thread_that_cannot_reach_the_store_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    one = Presence(store._storage, store._study, 'manager', lambda how: None, look=0.01)
    one.enter()

    def broken(*_: Any) -> None:
        raise OSError('gone')

    with monkeypatch.context() as patch:
        patch.setattr(store._storage, 'get_study_user_attrs', broken)
        patch.setattr(store._storage, 'set_study_user_attr', broken)
        time.sleep(0.1)
        assert one._thread.is_alive()
        one.leave()
    assert not one._thread.is_alive()
