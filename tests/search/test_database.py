from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy.exc
from optuna.storages import RDBStorage

from search import evaluations
from strop.errors import MissingDependencyError, StoreError
from strop.mutables import OneOf, Space, Subnet
from strop.search import Experiment, read_search, run
from strop.search import database as module
from strop.search.database import PatientDatabase, patiently, with_driver

from .postgres import PASSWORD, Postgres, postgres  # noqa: F401

SPACE = Space({'a': OneOf(tuple(range(10))), 'b': OneOf((1, 2, 3))})


def facts(trials: Any) -> list[Any]:
    return [(trial.number, dict(trial.subnet), trial.state, trial.values, trial.error, trial.reports) for trial in trials]


def lost() -> Exception:
    """What Optuna raises when the connection is lost."""
    error = optuna.exceptions.StorageInternalError('An exception is raised during the commit.')
    error.__cause__ = sqlalchemy.exc.OperationalError('SELECT 1', {}, Exception('server closed the connection'))
    return error


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f'sqlite:///{tmp_path}/search.db?timeout=0.05'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, '_FIRST_PAUSE', 0.01)
    monkeypatch.setattr(module, 'PATIENCE', 30.0)


@pytest.mark.parametrize(
    ('name', 'when'),
    [
        ('create_new_trial', 'before'),
        ('create_new_trial', 'after'),
        ('set_trial_state_values', 'before'),
        ('set_trial_state_values', 'after'),
        ('set_trial_intermediate_value', 'after'),
        ('set_trial_user_attr', 'after'),
        ('create_new_study', 'after'),
        ('get_trial', 'before'),
    ],
)
def test_no_trial_is_lost_or_doubled_by_a_lost_answer(
    name: str, when: str, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks before the database has done what it was asked, or after: then only the answer is lost."""
    plain, calls = getattr(RDBStorage, name), []

    def flaky(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        broken = len(calls) in (1, 4, 5)
        if broken and when == 'before':
            raise lost()
        answer = plain(self, *args, **kwargs)
        if broken:
            raise lost()
        return answer

    monkeypatch.setattr(RDBStorage, name, flaky)
    monkeypatch.setattr(
        PatientDatabase, name, getattr(PatientDatabase, name) if name == 'create_new_trial' else module._patient(name)
    )
    result = run(SPACE, evaluations.reporting, strategy='random', store=sqlite, trials=3, pruner='median')
    monkeypatch.undo()
    assert calls
    assert facts(result.trials) == facts(run(SPACE, evaluations.reporting, strategy='random', trials=3, pruner='median').trials)
    assert facts(read_search(sqlite.partition('?')[0]).trials) == facts(result.trials)


def test_a_locked_file_is_waited_for(sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    locked: list[threading.Thread] = []

    def hold() -> None:
        connection = sqlite3.connect(tmp_path / 'search.db')
        connection.execute('BEGIN EXCLUSIVE')
        begun.set()
        time.sleep(0.7)
        connection.rollback()
        connection.close()

    def evaluate(subnet: Subnet) -> float:
        if not locked:
            locked.append(threading.Thread(target=hold))
            locked[0].start()
            assert begun.wait(10)
        return float(subnet['a'])

    begun = threading.Event()
    result = run(SPACE, evaluate, strategy='random', store=sqlite, trials=4)
    locked[0].join()
    assert [trial.number for trial in result.complete] == [0, 1, 2, 3]
    assert 'does not answer' in caplog.text
    assert 'answers again' in caplog.text


def test_one_that_stays_away_ends_the_search_and_keeps_what_it_has(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'PATIENCE', 0.2)
    plain, broken = RDBStorage.set_trial_state_values, []

    def gone(self: Any, trial_id: int, *args: Any) -> Any:
        if trial_id > 3:
            broken.append(trial_id)
            raise lost()
        return plain(self, trial_id, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RDBStorage, 'set_trial_state_values', gone)
        patch.setattr(PatientDatabase, 'set_trial_state_values', module._patient('set_trial_state_values'))
        with pytest.raises(StoreError, match=r'has not answered for 0 s \(OperationalError: server closed .*resume the search'):
            run(SPACE, evaluations.drawn, strategy='random', store=sqlite, trials=8)
    assert len(broken) > 2
    resumed = run(SPACE, evaluations.drawn, strategy='random', store=sqlite, trials=8)
    assert facts(resumed.trials) == facts(run(SPACE, evaluations.drawn, strategy='random', trials=8).trials)


def test_what_no_waiting_mends_is_told_at_once(sqlite: str, tmp_path: Path) -> None:
    def evaluate(subnet: Subnet) -> float:
        connection = sqlite3.connect(tmp_path / 'search.db')
        connection.execute('DROP TABLE trials')
        connection.commit()
        return 1.0

    begin = time.monotonic()
    with pytest.raises(StoreError, match='cannot be used'):
        run(SPACE, evaluate, strategy='random', store=sqlite, trials=4)
    assert time.monotonic() - begin < 20
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 / 0, 'x')


def test_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_driver('postgresql+pg8000://h/d') == 'postgresql+pg8000://h/d'
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name if name == 'psycopg' else None)
    assert with_driver('postgres://h/d') == 'postgresql+psycopg://h/d'
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'strop\[postgresql\]'):
        with_driver('postgresql://h/d')


class TestPostgres:
    def test_a_restarted_server_is_waited_for(self, postgres: Postgres) -> None:  # noqa: F811
        restarts: list[int] = []

        def evaluate(subnet: Subnet) -> float:
            if len(restarts) < 2:
                restarts.append(subnet['a'])
                postgres.stop()
                threading.Timer(0.5, postgres.start).start()
            return evaluations.reporting(subnet)

        options: dict[str, Any] = {'strategy': 'random', 'trials': 6, 'seed': 2, 'pruner': 'median'}
        result = run(SPACE, evaluate, store=postgres.url, name='restarted', **options)
        assert len(restarts) == 2
        whole = run(SPACE, evaluations.reporting, name='restarted', **options)
        assert facts(result.trials) == facts(whole.trials)
        assert facts(read_search(postgres.url, 'restarted').trials) == facts(whole.trials)

    def test_a_server_that_stays_away(self, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
        monkeypatch.setattr(module, 'PATIENCE', 0.5)

        def evaluate(subnet: Subnet) -> float:
            if len(done) == 3:
                postgres.stop()
            done.append(subnet)
            return evaluations.drawn(subnet)

        done: list[Subnet] = []
        with pytest.raises(StoreError, match='has not answered') as caught:
            run(SPACE, evaluate, strategy='random', store=postgres.url, name='away', trials=6)
        assert PASSWORD not in str(caught.value)
        assert 'ada:***@127.0.0.1' in str(caught.value)
        postgres.start()
        resumed = run(SPACE, evaluations.drawn, strategy='random', store=postgres.url, name='away', trials=6)
        assert facts(resumed.trials) == facts(run(SPACE, evaluations.drawn, strategy='random', trials=6).trials)

    def test_an_experiment_with_a_worker_of_its_own_and_no_secret_anywhere(
        self,
        postgres: Postgres,  # noqa: F811
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv('STORE_PASSWORD', PASSWORD)
        caplog.set_level(logging.DEBUG)
        tests = str(Path(__file__).parents[1])
        experiment = Experiment(
            space={'a': {'_type': 'choice', '_value': list(range(12))}, 'b': {'_type': 'choice', '_value': [1, 2]}},
            trial={'function': 'search.evaluations:slow', 'folder': tests},
            strategy='random',
            trials=14,
            name='shared',
            store=postgres.url,
            folder=tmp_path / 'e',
        )
        workers: list[subprocess.Popen[str]] = []

        def callback(trial: Any) -> None:
            if not workers:
                where = ['--store', postgres.url, '--name', 'shared', '--json']
                command = [sys.executable, '-m', 'strop', 'experiment', 'work', *where]
                workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tests))
                # Until it has joined there is nothing to share.
                end = time.monotonic() + 60
                while len(read_search(postgres.url, 'shared').alive) < 2 and workers[0].poll() is None:
                    assert time.monotonic() < end
                    time.sleep(0.2)

        result = experiment.run(callbacks=[callback])
        out, err = workers[0].communicate(timeout=60)
        assert workers[0].returncode == 0, err
        own = [line for line in map(json.loads, out.splitlines()) if line['event'] == 'trial']
        assert 0 < len(own) < 14
        stored = read_search(postgres.url, 'shared')
        assert [trial.number for trial in stored.trials] == list(range(len(stored.trials)))
        assert 14 <= len(stored.trials) <= 15
        complete = [trial for trial in stored.trials if trial.complete]
        assert len({trial.subnet for trial in complete}) == len(complete)
        # Two that ask at one moment propose the same; one of them gives way.
        assert all('another process' in str(trial.error) for trial in stored.trials if not trial.complete)
        assert result.best.number == read_search(postgres.url, 'shared').result.best.number
        written = ''.join(path.read_text(errors='replace') for path in tmp_path.rglob('*') if path.is_file())
        for text in (written, out, err, caplog.text, json.dumps(stored.settings), repr(experiment.definition)):
            assert PASSWORD not in text
        assert Experiment.from_folder(tmp_path / 'e', store=postgres.url).store == postgres.url
        with pytest.raises(StoreError, match=r'no such|cannot be|not answered'):
            read_search(postgres.url.replace(PASSWORD, 'wrong'))
