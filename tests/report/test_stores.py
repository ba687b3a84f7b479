from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from strop.errors import StoreError
from strop.mutables import OneOf, Space
from strop.report.stores import open_read_only
from strop.search import run

SPACE = Space({'x': OneOf((1, 2, 3))})


def _searched(store: str | Path) -> str | Path:
    run(SPACE, lambda subnet: subnet['x'], strategy='grid', store=store)
    return store


def _numbers(store: str | Path) -> list[int]:
    storage, _ = open_read_only(store)
    study = storage.get_all_studies()[0]
    return [trial.number for trial in storage.get_all_trials(study._study_id)]


@pytest.mark.parametrize('form', ['{}/search.journal', '{}', '{}/own.journal', 'sqlite:///{}/trials.db'])
def test_every_kind_of_store_is_read(tmp_path: Path, form: str) -> None:
    store = form.format(tmp_path)
    _searched(store)
    assert _numbers(store) == [0, 1, 2]


def test_a_folder_with_one_journal_of_another_name_is_enough(tmp_path: Path) -> None:
    _searched(tmp_path / 'own.journal')
    assert _numbers(tmp_path) == [0, 1, 2]


def test_an_sqlite_file_may_be_given_by_its_path(tmp_path: Path) -> None:
    _searched(f'sqlite:///{tmp_path}/trials.db')
    assert _numbers(tmp_path / 'trials.db') == [0, 1, 2]


def test_an_optuna_storage_is_taken_as_it_is() -> None:
    storage = InMemoryStorage()
    assert open_read_only(storage) == (storage, None)


@pytest.mark.parametrize('form', ['{}/search.journal', 'sqlite:///{}/trials.db'])
def test_what_was_opened_cannot_be_written(tmp_path: Path, form: str) -> None:
    store = form.format(tmp_path)
    _searched(store)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    storage, _ = open_read_only(store)
    with pytest.raises(Exception, match=r'only reads|exception is raised during the commit'):
        storage.set_study_user_attr(storage.get_all_studies()[0]._study_id, 'x', 1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_without_the_right_to_write_is_read(tmp_path: Path) -> None:
    store = _searched(tmp_path / 'search.journal')
    os.chmod(store, stat.S_IRUSR)
    os.chmod(tmp_path, stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert _numbers(store) == [0, 1, 2]
    finally:
        os.chmod(tmp_path, stat.S_IRWXU)


def test_a_store_that_is_missing_is_not_made(tmp_path: Path) -> None:
    _searched(tmp_path / 'search.journal')
    for store in (tmp_path / 'serach.journal', f'sqlite:///{tmp_path}/none.db', tmp_path / 'none' / 'search.journal'):
        with pytest.raises(StoreError, match=r'There is no'):
            open_read_only(store)
    assert [path.name for path in tmp_path.iterdir()] == ['search.journal']


def test_a_missing_journal_names_the_near_one(tmp_path: Path) -> None:
    _searched(tmp_path / 'search.journal')
    with pytest.raises(StoreError, match=r"Did you mean 'search.journal'"):
        open_read_only(tmp_path / 'serach.journal')


def test_a_folder_without_a_journal_and_one_with_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r'no search\.journal'):
        open_read_only(tmp_path)
    for name in ('a.journal', 'b.journal'):
        (tmp_path / name).touch()
    with pytest.raises(StoreError, match=r'several: a\.journal, b\.journal'):
        open_read_only(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'notes.txt').write_text('hello\nthere\n')
    with pytest.raises(StoreError, match='line 1 is broken'):
        open_read_only(tmp_path / 'notes.txt')


def test_a_database_of_another_program_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / 'other.db'
    with sqlite3.connect(path) as connection:
        connection.execute('create table songs (name text)')
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r'other.db cannot be read'):
        open_read_only(f'sqlite:///{path}')
    assert path.read_bytes() == before


@pytest.mark.parametrize('url', ['postgresql+psycopg://ada:s3cret@127.0.0.1:1/trials', 'nosuch://ada:s3cret@127.0.0.1/trials'])
def test_a_database_that_does_not_answer_is_an_error_without_its_password(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_read_only(url)
    assert 's3cret' not in str(caught.value)
    assert ':***@127.0.0.1' in str(caught.value)


def test_the_folder_of_an_experiment_leads_to_its_store(tmp_path: Path, monkeypatch) -> None:
    _searched(f'sqlite:///{tmp_path}/trials.db')
    folder = tmp_path / 'experiment'
    folder.mkdir()
    monkeypatch.setenv('TRIALS', str(tmp_path))
    (folder / 'experiment.yaml').write_text('name: search\nstore: sqlite:///$TRIALS/trials.db\n')
    assert _numbers(folder) == [0, 1, 2]
    assert open_read_only(folder)[1] == folder


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('name: search\n', 'has no trials yet'),
        (
            'store: postgresql://ada:***@db/trials\n',
            r'are in postgresql://ada:\*\*\*@db/trials. Give that address with its password',
        ),
    ],
)
def test_an_experiment_whose_store_is_not_known_says_what_to_give(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / 'experiment.yaml').write_text(content)
    with pytest.raises(StoreError, match=said):
        open_read_only(tmp_path)


def test_a_server_that_does_not_answer_is_said_in_the_words_of_its_driver() -> None:
    pytest.importorskip('psycopg', reason='psycopg is not installed')
    with pytest.raises(StoreError, match=r'connection to server .* failed') as caught:
        open_read_only('postgresql+psycopg://ada:s3cret@127.0.0.1:1/trials')
    assert 'exceeding max length' not in str(caught.value)
