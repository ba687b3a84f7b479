"""What an experiment survives: kills of its manager and its workers at random moments, a full disk."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from search import evaluations
from strop.search import Experiment, read_search, run
from strop.search.experiment_file import as_yaml
from tests.scripts import Script, run_script

TESTS = str(Path(__file__).parents[1])


def facts(trials: Any) -> dict[int, Any]:
    return {trial.number: (dict(trial.subnet), trial.state, trial.values, trial.error, trial.reports) for trial in trials}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        'space': {'a': {'_type': 'choice', '_value': list(range(400))}, 'b': {'_type': 'choice', '_value': [1, 2]}},
        'trial': {'function': 'search.evaluations:reporting', 'folder': TESTS},
        'strategy': 'regularized',
        'pruner': {'type': 'successive_halving', 'min_resource': 1, 'reduction_factor': 2},
        'folder': str(folder),
        **changes,
    }


MANAGER = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from strop.search import Experiment
    Experiment.from_file(sys.argv[2]).run(resume=True)
"""


class Manager:
    """A process that runs an experiment to its end, unless it is killed."""

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        (folder / 'exp.yaml').write_text(as_yaml(made))
        self._folder = folder
        self.process: Script | None = None

    def start(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.process = Script(MANAGER, TESTS, 'exp.yaml', cwd=self._folder)

    def kill(self) -> None:
        assert self.process is not None
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        left = psutil.wait_procs(family, timeout=60)[1]
        assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []

    def kill_worker(self, generator: random.Random) -> None:
        assert self.process is not None
        family = psutil.Process(self.process.pid).children(recursive=True)
        leaders = [child.pid for child in family if child.is_running() and os.getsid(child.pid) == child.pid]
        if leaders:
            os.kill(generator.choice(leaders), signal.SIGKILL)


def _wait_for_news(folder: Path, known: int, manager: Manager) -> int:
    """Wait until there is a finished trial more than known, and return how many there are."""
    journal, end = folder / 'search.journal', time.monotonic() + 120
    while time.monotonic() < end:
        count = journal.read_text().count('"op_code":6') if journal.exists() else 0
        if count > known or (manager.process is not None and manager.process.poll() is not None):
            return count
        time.sleep(0.01)
    raise AssertionError('nothing happens')


@pytest.mark.parametrize('kills', [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_in_one_process_leave_the_trials_of_an_unbroken_run(kills: int, tmp_path: Path) -> None:
    (tmp_path / 'broken').mkdir()
    trials = 10 * kills
    made = content(tmp_path / 'broken', trials=trials, trial={'function': 'search.evaluations:paced', 'folder': TESTS})
    manager, generator, known = Manager(tmp_path, made), random.Random(kills), 0
    for _ in range(kills):
        manager.start()
        known = _wait_for_news(tmp_path / 'broken', known + generator.randrange(6), manager)
        time.sleep(generator.random() * 0.05)
        manager.kill()
    result = Experiment.from_folder(tmp_path / 'broken').run(resume=True)
    whole = Experiment(**content(tmp_path / 'whole', trials=trials, trial=made['trial'])).run()
    assert facts(result.trials) == facts(whole.trials)
    assert len(result.trials) == trials
    assert whole.stopped_early


@pytest.mark.parametrize('kills', [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_of_manager_and_workers_lose_nothing_and_count_nothing_twice(kills: int, tmp_path: Path) -> None:
    (tmp_path / 'e').mkdir()
    trials = 10 * kills
    trial = {'function': 'search.evaluations:paced', 'folder': TESTS}
    made = content(tmp_path / 'e', trials=trials, executor=2, trial=trial, pruner=None)
    manager, generator, known = Manager(tmp_path, made), random.Random(kills), 0
    finished: dict[int, Any] = {}
    for kill in range(kills):
        manager.start()
        known = _wait_for_news(tmp_path / 'e', known + generator.randrange(5), manager)
        time.sleep(generator.random() * 0.1)
        if kill % 2 == 0:
            manager.kill_worker(generator)
            continue
        manager.kill()
        now = facts(trial for trial in read_search(tmp_path / 'e').trials if trial.finished)
        assert {number: now[number] for number in finished} == finished
        finished = now
    manager.start()
    assert manager.process is not None
    assert manager.process.wait(240) == 0
    stored = read_search(tmp_path / 'e')
    assert {number: facts(stored.trials)[number] for number in finished} == finished
    assert [one.number for one in stored.trials] == list(range(trials))
    assert stored.counts['running'] == 0
    assert len({one.subnet for one in stored.trials}) == trials
    assert all('SIGKILL' in str(one.error) for one in stored.trials if not one.complete)
    assert stored.counts['failed'] <= (kills + 1) // 2


LIMITED = """
import resource, sys
sys.path.insert(0, {tests!r})
from strop.errors import StoreError
from strop.search import run
from search.test_survival import FULL
from search import evaluations
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    run(FULL, evaluations.reporting, store={store!r}, strategy='random', trials=20, pruner='median')
except StoreError as error:
    print(error)
"""
FULL = Experiment(space={'a': {'_type': 'choice', '_value': list(range(60))}}, trial='builtins:len').plan().file.space


@pytest.mark.parametrize('limit', [4096, 7001])
def test_a_full_disk_ends_the_search_and_a_resumed_one_is_whole(limit: int, tmp_path: Path) -> None:
    """A limit on the size of files breaks a write in the middle, as a full disk does."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    store = tmp_path / 'search.journal'
    code = LIMITED.format(tests=TESTS, limit=limit, store=str(store))
    done = run_script(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'File too large' in done.stdout
    assert store.read_bytes().endswith(b'\n')
    kept = read_search(store)
    assert kept.trials
    result = run(FULL, evaluations.reporting, store=store, strategy='random', trials=20, pruner='median')
    assert facts(result.trials) == facts(run(FULL, evaluations.reporting, strategy='random', trials=20, pruner='median').trials)
    before = facts(trial for trial in kept.trials if trial.finished)
    assert {number: facts(result.trials)[number] for number in before} == before
