"""Stores that are only looked at: opened without a lock, without a write, without making what is not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from strop.errors import StoreError, StropError, near
from strop.search.database import with_driver
from strop.search.journal import JournalFile
from strop.search.urls import HIDDEN, hide_secrets

READ_ONLY = 'This view of the store only reads; nothing was changed.'
JOURNAL, EXPERIMENT = 'search.journal', 'experiment.yaml'


class JournalReader(JournalFile):
    """A journal that nothing is appended to.

    Args:
        path: The file.

    Raises:
        StoreError: If the file is no journal.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse.

        Raises:
            StoreError: Always.
        """
        raise StoreError(READ_ONLY)


def open_read_only(store: str | os.PathLike[str] | BaseStorage) -> tuple[BaseStorage, Path | None]:
    """Return Optuna's storage for a store that exists, and the folder it lies in (None for a server's).

    Args:
        store: A journal, the folder of one or of an experiment, an SQLite file, a database URL, or an Optuna storage.

    Raises:
        StoreError: If there is none, or if it cannot be read; passwords in URLs are left out of the message.
    """
    if isinstance(store, BaseStorage):
        return store, None
    text = os.fspath(store)
    try:
        if '://' in text:
            return _open_database(text)
        if (Path(text) / EXPERIMENT).is_file() and not list(Path(text).glob('*.journal')):
            return _open_experiment(Path(text))
        path = _find(Path(text))
        with open(path, 'rb') as stream:
            if stream.read(15) == b'SQLite format 3':
                return _open_database(f'sqlite:///{path}')
        return JournalStorage(JournalReader(path)), path.parent
    except StropError:
        raise
    except ImportError as error:
        _refuse(text, error, " Stores in PostgreSQL need: pip install 'strop[postgresql]'.")
    except Exception as error:
        _refuse(text, error)


def _refuse(text: str, error: Exception, hint: str = '') -> NoReturn:
    # Optuna's own sentence guesses at the reason; what it wraps knows it.
    while isinstance(error, optuna.exceptions.StorageInternalError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    # What a driver prints may hold the URL again; the line says which database is meant.
    said = ' '.join(hide_secrets(str(error)).split())[:300]
    raise StoreError(f'The store {hide_secrets(text)} cannot be read: {type(error).__name__}: {said}{hint}') from None


def _find(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob('*.journal'))
        if (path / JOURNAL).is_file():
            return path / JOURNAL
        if len(found) == 1:
            return found[0]
        said = f'several: {", ".join(file.name for file in found)}; name one' if found else f'no {JOURNAL}'
        raise StoreError(f'{path} is no folder of a search: it holds {said}.')
    if not path.is_file():
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise StoreError(f'There is no store {path}.{near(path.name, names)} A search makes it when it starts.')
    return path


def _open_experiment(folder: Path) -> tuple[BaseStorage, Path | None]:
    content = yaml.safe_load((folder / EXPERIMENT).read_text(encoding='utf-8'))
    store = content.get('store') if isinstance(content, dict) else None
    if not isinstance(store, str):
        raise StoreError(f'The experiment in {folder} has no trials yet: there is no {JOURNAL}.')
    store = os.path.expandvars(store)
    if HIDDEN in store:
        raise StoreError(
            f'The trials of {folder} are in {store}. Give that address with its password, and the logs in {folder}.'
        )
    return open_read_only(store)[0], folder


def _open_database(url: str) -> tuple[BaseStorage, Path | None]:
    from sqlalchemy.engine import make_url

    url = with_driver(url)
    parsed = make_url(url)
    folder = None
    options: dict[str, Any] = {}
    if parsed.get_backend_name() == 'sqlite':
        path = Path(parsed.database or '')
        if not parsed.database or parsed.database == ':memory:' or not path.is_file():
            raise StoreError(f'There is no SQLite file {parsed.database or "(none named)"!r}, so there is nothing to show.')
        folder = path.parent
        url = f'sqlite:///file:{quote(str(path.absolute()))}?mode=ro&uri=true'
    elif parsed.get_backend_name() == 'postgresql':
        options = {'connect_args': {'options': '-c default_transaction_read_only=on'}, 'pool_pre_ping': True}
    storage = RDBStorage(url, options, skip_table_creation=True)
    # Finished trials are then read once, not at every look.
    return optuna.storages.get_storage(storage), folder
