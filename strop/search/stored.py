"""A search as its store tells of it, without its code: what was asked, who works on it, what came out. Nothing is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.errors import StoreError, listed, near
from strop.mutables import Space
from strop.search.presence import Process, processes
from strop.search.result import SearchResult
from strop.search.store import Store, close_storage, open_storage
from strop.search.trial import Trial
from strop.search.urls import hide_secrets


@dataclass(frozen=True)
class StoredSearch:
    """A search in a store.

    Args:
        where: The store, without secrets.
        settings: What the search was given: seed, strategy, constraints, pruner, experiment.
        trials: All trials, those under way too.
        processes: Who works on it, or did.
        result: The finished trials.
    """

    where: str
    settings: dict[str, Any]
    trials: list[Trial]
    processes: list[Process]
    result: SearchResult

    @property
    def name(self) -> str:
        """The name of the search."""
        return self.result.name

    @property
    def definition(self) -> dict[str, Any] | None:
        """The experiment that it is part of, by the keys of experiment files; None if it cannot be said in a file."""
        return self.settings.get('experiment')

    @property
    def counts(self) -> dict[str, int]:
        """How many trials are in each state."""
        found = {'complete': 0, 'failed': 0, 'stopped': 0, 'running': 0}
        for trial in self.trials:
            found[trial.state] += 1
        return found

    @property
    def alive(self) -> list[Process]:
        """The processes that work on it now."""
        return [process for process in self.processes if process.alive]


def read_search(store: str | os.PathLike[str], name: str | None = None) -> StoredSearch:
    """Read a search.

    Args:
        store: A journal, the folder of one, or the URL of a database.
        name: Its name; may be left out where the store holds one search.

    Raises:
        StoreError: If there is no such store, or no such search in it.

    >>> import tempfile
    >>> from strop.mutables import OneOf
    >>> from strop.search import run
    >>> folder = tempfile.mkdtemp()
    >>> _ = run(Space({'kernel': OneOf((3, 5))}), lambda subnet: subnet['kernel'], strategy='grid', store=folder)
    >>> read_search(folder).result.best.values
    {'score': 5.0}
    """
    check_exists(store)
    storage, _ = open_storage(store)
    where = hide_secrets(os.fspath(store))
    try:
        known = {study.study_name: study for study in storage.get_all_studies() if 'strop' in study.user_attrs}
    except Exception as error:
        raise StoreError(f'The store {where} cannot be read: {hide_secrets(str(error))}') from None
    finally:
        close_storage(storage)
    if not known:
        raise StoreError(f'{where} holds no search.')
    if name is None and len(known) > 1:
        raise StoreError(f'{where} holds several searches: {listed(known, 20)}. Say which one by `--name` or `name=`.')
    name = next(iter(known)) if name is None else name
    if name not in known:
        raise StoreError(f'{where} holds no search named {name!r}.{near(name, known)} It holds {listed(known, 20)}.')
    attributes = known[name].user_attrs
    about = attributes['strop']
    space = Space.from_dict(attributes['strop:space'])
    settings = {key: value for key, value in about.items() if key not in ('version', 'space', 'objectives')}
    kept = Store(store, space, about['objectives'], name=name, settings=settings)
    kept.close()
    result = SearchResult(
        space=space,
        objectives=dict(about['objectives']),
        trials=[trial for trial in kept.trials if trial.finished],
        stopped='trials',
        name=name,
        seed=about.get('seed', 0),
        strategy=about.get('strategy', ''),
    )
    return StoredSearch(where, settings, kept.trials, processes(attributes), result)


def check_exists(store: str | os.PathLike[str]) -> None:
    """Raise an error if a store that is a file is missing, so that reading does not make it.

    Raises:
        StoreError: If it is.
    """
    text = os.fspath(store)
    if '://' not in text:
        path = Path(text)
        path = path / 'search.journal' if path.is_dir() else path
    elif text.startswith('sqlite:///') and '?' not in text:
        path = Path(text.removeprefix('sqlite:///'))
    else:
        return
    if not path.is_file():
        raise StoreError(f'There is no store {path}.')
