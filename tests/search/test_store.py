from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from strop.errors import StoreError
from strop.mutables import AnyOf, Guard, KOf, OneOf, Ordered, Space, Subnet
from strop.search import run
from strop.search.store import Store

SPACE = Space(
    {
        'op': OneOf(('skip', 'conv')),
        'kernel': Ordered((3, 5, 7)),
        'shape': OneOf(((1, 1), (2, 2))),
        'flag': OneOf((True, False, None)),
        'pair': KOf(('a', 'b', 'c'), k=2),
        'extras': AnyOf(('x', 'y')),
        'many': AnyOf(tuple(range(8))),
        'wide': OneOf(tuple(range(100))),
    },
    {'kernel': ((Guard.on('op', [1]),),)},
)


def width(subnet: Subnet) -> float:
    return float(subnet['wide'])


def test_optuna_reads_the_journal_as_it_is(tmp_path: Path) -> None:
    result = run(SPACE, lambda subnet: {'score': width(subnet), 'n': 3}, strategy='random', store=tmp_path, trials=12, seed=2)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / 'search.journal'))
    study = optuna.load_study(study_name='search', storage=optuna.storages.JournalStorage(backend))
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.metric_names == ['score']
    assert study.best_value == (result.best.values or {})['score']
    assert study.user_attrs['strop']['space'] == SPACE.digest
    assert study.user_attrs['strop']['seed'] == 2
    assert study.user_attrs['strop']['strategy'] == 'random'
    assert Space.from_dict(study.user_attrs['strop:space']) == SPACE
    for frozen, trial in zip(study.trials, result.trials, strict=True):
        assert frozen.state == optuna.trial.TrialState.COMPLETE
        assert SPACE.subnet(frozen.user_attrs['subnet']) == trial.subnet
        assert frozen.user_attrs['info'] == {'n': 3}
        assert frozen.params['op'] == trial.subnet['op']
        assert ('kernel' in frozen.params) == ('kernel' in trial.subnet)
        assert frozen.params['wide'] == trial.subnet['wide']
        assert frozen.params['pair'] == ' + '.join(trial.subnet['pair'])
        assert frozen.params['extras'] == (' + '.join(trial.subnet['extras']) or '(none)')
        assert frozen.params['shape'] == str(tuple(trial.subnet['shape']))
        assert [frozen.params[f'many: {label}'] for label in range(8)] == [label in trial.subnet['many'] for label in range(8)]


def test_two_writes_a_trial_and_no_pickle(tmp_path: Path) -> None:
    store = tmp_path / 'search.journal'

    def evaluate(subnet: Subnet) -> dict[str, float]:
        if subnet['op'] == 'skip':
            raise RuntimeError('no')
        return {'score': 1.0, 'other': 2.0}

    run(SPACE, evaluate, strategy='random', store=store, trials=30)
    records = [json.loads(line) for line in store.read_text().splitlines()]
    assert sum(record['op_code'] == 4 for record in records) == 30
    assert sum(record['op_code'] == 6 for record in records) == 30
    assert sum(record['op_code'] == 5 for record in records) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['search.journal']


def test_a_finished_trial_is_written_in_two_appends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda handle: synced.append(handle))
    run(SPACE, lambda subnet: {'score': 1.0, 'other': 2.0}, strategy='random', store=tmp_path, trials=10)
    opened = 2
    assert len(synced) == opened + 2 * 10


@pytest.mark.parametrize('cut', [1, 20, 150])
def test_a_record_cut_off_by_a_kill_is_dropped(tmp_path: Path, cut: int) -> None:
    store = tmp_path / 'search.journal'
    whole = run(SPACE, width, strategy='random', store=store, trials=8)
    store.write_bytes(store.read_bytes()[:-cut])
    resumed = run(SPACE, width, strategy='random', store=store, trials=12)
    assert [trial.subnet for trial in resumed.trials[:8]] == [trial.subnet for trial in whole.trials]
    fresh = run(SPACE, width, strategy='random', trials=12)
    assert [(t.subnet, t.values) for t in resumed.trials] == [(t.subnet, t.values) for t in fresh.trials]
    assert [json.loads(line)['op_code'] for line in store.read_text().splitlines()]


def test_any_prefix_of_a_journal_can_be_resumed(tmp_path: Path) -> None:
    store = tmp_path / 'search.journal'
    run(SPACE, width, strategy='regularized', store=store, trials=3)
    content = store.read_bytes()
    fresh = [(t.subnet, t.values) for t in run(SPACE, width, strategy='regularized', trials=4).trials]
    for length in range(0, len(content), 389):
        store.write_bytes(content[:length])
        resumed = run(SPACE, width, strategy='regularized', store=store, trials=4)
        assert [(t.subnet, t.values) for t in resumed.trials] == fresh


def test_a_corrupt_journal_is_one_clear_line(tmp_path: Path) -> None:
    store = tmp_path / 'search.journal'
    run(SPACE, width, strategy='random', store=store, trials=3)
    lines = store.read_bytes().splitlines(keepends=True)
    for damage in (b'{"op_code": 4, "wor\n', b'\xff\xfe\x00\n', b'[1, 2]\n', b'\n'):
        store.write_bytes(b''.join([*lines[:5], damage, *lines[6:]]))
        with pytest.raises(StoreError, match=r'search.journal cannot be read as a journal: line 6 is broken') as caught:
            run(SPACE, width, store=store)
        assert '\n' not in str(caught.value)
    store.write_bytes(b''.join([*lines[:5], lines[5].replace(b'"trial_id":0', b'"trial_if":0'), *lines[6:]]))
    with pytest.raises(StoreError, match='cannot be') as caught:
        run(SPACE, width, store=store)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'SQLite format 3\x00\n', 'sqlite:///PATH'),
        (b'\x80\x04\x95pickle\n', 'line 1 is broken'),
        (b'hello\nworld\n', 'line 1 is broken'),
        (b'{"a": 1}\n', 'it is no journal record'),
    ],
)
def test_a_file_that_is_no_journal(tmp_path: Path, content: bytes, message: str) -> None:
    store = tmp_path / 'other.bin'
    store.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        run(SPACE, width, store=store)
    assert store.read_bytes() == content


def test_a_trial_that_does_not_fit_the_space(tmp_path: Path) -> None:
    store = tmp_path / 'search.journal'
    run(SPACE, width, strategy='random', store=store, trials=2)
    store.write_text(store.read_text().replace('"op":"skip"', '"op":"ship"').replace('"op":"conv"', '"op":"ship"'))
    with pytest.raises(StoreError, match=r"Trial 0 of .* holds no subnet of this space: .*'ship'.*Did you mean 'skip'"):
        run(SPACE, width, store=store)


def test_a_study_of_another_program(tmp_path: Path) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / 'search.journal'))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(storage=storage, study_name='search')
    study.optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=1)
    with pytest.raises(StoreError, match='that Strop did not make'):
        run(SPACE, width, store=tmp_path)
    assert len(run(SPACE, width, strategy='random', store=tmp_path, name='mine', trials=2).trials) == 2


def test_sqlite_and_an_optuna_storage(tmp_path: Path) -> None:
    url = f'sqlite:///{tmp_path}/search.db'
    first = run(SPACE, width, strategy='regularized', store=url, trials=4)
    more = run(SPACE, width, strategy='regularized', store=url, trials=8)
    fresh = run(SPACE, width, strategy='regularized', trials=8)
    assert [trial.subnet for trial in more.trials[:4]] == [trial.subnet for trial in first.trials]
    assert [(trial.subnet, trial.values) for trial in more.trials] == [(trial.subnet, trial.values) for trial in fresh.trials]
    storage = optuna.storages.RDBStorage(url)
    assert len(run(SPACE, width, strategy='regularized', store=storage, trials=9).trials) == 9
    assert len(optuna.load_study(study_name='search', storage=storage).trials) == 9
    with pytest.raises(StoreError, match='objectives'):
        run(SPACE, width, store=url, objectives='minimize')


def test_addresses_that_cannot_be_opened(tmp_path: Path) -> None:
    for bad in ('nodatabase://x/y', f'sqlite:///{tmp_path}/no/such/folder/a.db'):
        with pytest.raises(StoreError, match='cannot be opened') as caught:
            run(SPACE, width, store=bad)
        assert '\n' not in str(caught.value)


def test_the_process_that_left_a_trial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / 'search.journal'
    run(SPACE, width, strategy='random', store=store, trials=3)
    lines = store.read_text().splitlines(keepends=True)
    mine = json.loads(lines[4])['user_attrs']['owner']

    def left_by(**owner: object) -> None:
        record = json.loads(lines[-2 - sum('op_code":8' in line for line in lines[-3:])])
        assert record['op_code'] == 4
        record['user_attrs']['owner'] = {**mine, **owner}
        store.write_text(''.join(lines[: [json.loads(line)['op_code'] for line in lines].index(4)]) + json.dumps(record) + '\n')

    def numbers(resume: bool | str = True) -> list[int]:
        return [trial.number for trial in run(SPACE, width, strategy='random', store=store, trials=2, resume=resume).trials]

    left_by(pid=2**22 + 5)  # no such process
    assert numbers() == [0, 1]
    left_by(started='another boot:1')  # its number was given to another process
    assert numbers() == [0, 1]
    left_by(pid=1, started='?')
    assert numbers() == [0, 1]
    left_by(host='elsewhere')
    assert numbers() == [1]
    assert "resume='takeover'" in caplog.text
    assert numbers('takeover') == [0, 1]


def test_a_trial_that_another_process_has_ended_stays_as_it_is(tmp_path: Path) -> None:
    objectives = {'score': 'maximize'}
    first = Store(tmp_path, SPACE, objectives)
    trial = first.create(SPACE.first(), {})
    first.close()
    second = Store(tmp_path, SPACE, objectives)
    assert [taken.number for taken in second.take_abandoned()] == [trial.number]
    second.finish(replace(trial, state='complete', values={'score': 1.0}, seconds=1.0))
    late = first.finish(replace(trial, state='complete', values={'score': 2.0}, seconds=2.0, info={'macs': 1.0}))
    assert late.values == {'score': 1.0}
    assert first.create(SPACE.first(), {}).number == 1


def test_what_came_while_a_trial_was_created_is_told_to_the_next_who_asks(tmp_path: Path) -> None:
    objectives = {'score': 'maximize'}
    first, second = (Store(tmp_path, SPACE, objectives) for _ in range(2))
    other = second.create(SPACE.first(), {})
    second.finish(replace(other, state='complete', values={'score': 1.0}))
    assert first.create(SPACE.first(), {}).number == 1
    assert [trial.number for trial in first.sync()] == [0]
    assert first.sync() == []
