"""The store of a search: an Optuna study, so that Optuna's tools and dashboard read it as it is.

A finished trial costs two writes: one creates it (decisions, resources, who evaluates it), one ends it.
Everything is JSON or database columns; nothing is pickled.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Union

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from strop.errors import StoreError, StropError, SubnetError, listed
from strop.mutables import Domain, Numeric, Space, Subnet, chosen
from strop.search.database import PatientDatabase
from strop.search.early_stopping import EarlyStopping
from strop.search.journal import JournalFile
from strop.search.presence import is_alive, process_started, this_process
from strop.search.trial import COMPLETE, FAILED, RUNNING, STOPPED, Trial
from strop.search.urls import hide_secrets

VERSION = 1
StoreLike = Union[None, str, os.PathLike[str], BaseStorage]

_logger = logging.getLogger(__name__)
_STATES = {TrialState.COMPLETE: COMPLETE, TrialState.FAIL: FAILED, TrialState.PRUNED: STOPPED, TrialState.RUNNING: RUNNING}
_LIVE: set[str] = set()


def open_storage(store: StoreLike) -> tuple[BaseStorage, JournalFile | None]:
    """Return Optuna's storage for a path, a URL, or None (memory), and its journal if it is one.

    Args:
        store: A journal file; a folder, for `search.journal` in it; a database URL such as
            `sqlite:///search.db`; an Optuna storage; or None.

    Raises:
        StoreError: If it cannot be opened.
    """
    if store is None:
        return InMemoryStorage(), None
    if isinstance(store, BaseStorage):
        return store, None
    text = os.fspath(store)
    try:
        if '://' in text:
            return PatientDatabase(text), None
        path = Path(text)
        if path.is_dir() or not path.suffix:
            path = path / 'search.journal'
        journal = JournalFile(path)
        return JournalStorage(journal), journal
    except StropError:
        raise
    except Exception as error:
        # Without its cause, whose text may show the password.
        raise StoreError(
            f'The store {hide_secrets(text)} cannot be opened: {type(error).__name__}: {hide_secrets(_one_line(error))}'
        ) from None


def close_storage(storage: BaseStorage) -> None:
    """Give the connections of a storage back, if it has any."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


class Store:
    """The trials of one search in an Optuna study, kept in step with it at constant cost a trial.

    Args:
        store: Where; see `open_storage`.
        space: The space that is searched.
        objectives: Objective -> direction.
        name: Name of the study; one store may hold several.
        settings: What else describes the search (seed, strategy, constraints), for readers and for resuming.
        resume: Go on with a study of this name. `'takeover'` does so and also takes trials that a process on another
            machine, which cannot be seen from here, left unfinished.

    Raises:
        StoreError: If the store cannot be read, holds another search under this name, or holds this one
            and `resume` is false.
    """

    def __init__(
        self,
        store: StoreLike,
        space: Space,
        objectives: Mapping[str, str],
        *,
        name: str = 'search',
        settings: Mapping[str, Any] | None = None,
        resume: bool | str = True,
    ) -> None:
        self.space = space
        self.objectives = dict(objectives)
        self.name = name
        self._owned = not isinstance(store, BaseStorage)
        self.where = 'memory' if store is None else hide_secrets(str(store)) if self._owned else type(store).__name__
        self.run = uuid.uuid4().hex
        self.trials: list[Trial] = []
        self.order: list[int] = []
        self._ids: list[int] = []
        self._foreign: set[int] = set()
        self._unread: list[int] = []
        self._attempts: dict[int, _Attempt] = {}
        self._params = _Params(space)
        with self._errors():
            self._storage, self._journal = open_storage(store)
            self._study = self._open_study(dict(settings or {}), resume)
            # Reads only what may have changed, where the storage itself would read a whole database.
            self._all_trials = optuna.storages.get_storage(self._storage)
        _LIVE.add(self.run)

    @property
    def study(self) -> optuna.Study:
        """The Optuna study."""
        return optuna.load_study(study_name=self.name, storage=self._storage)

    def close(self) -> None:
        """Give unfinished trials up, for a later run to take."""
        _LIVE.discard(self.run)
        with suppress(StoreError):  # what cannot be written now is given up when this process ends
            for trial in self.trials:
                if not trial.finished and self._owner(trial.number).get('run') == self.run:
                    with self._errors():
                        self._storage.set_trial_user_attr(self._ids[trial.number], 'owner', {**this_process(), 'run': None})
        if self._owned:
            close_storage(self._storage)

    def create(self, subnet: Subnet, info: Mapping[str, Any]) -> Trial:
        """Write a new trial as running, evaluated by this process; one write.

        Trials that other processes created meanwhile come before it: its number may be larger than `len(trials)` was.
        """
        params, distributions = self._params.of(subnet)
        attributes: dict[str, Any] = {'subnet': dict(subnet), 'owner': {**this_process(), 'run': self.run}}
        if info:
            attributes['info'] = dict(info)
        template = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=params,
            distributions=distributions,
            user_attrs=attributes,
            system_attrs={},
            intermediate_values={},
        )
        with self._errors():
            trial_id = self._storage.create_new_trial(self._study, template_trial=template)
            number = self._storage.get_trial_number_from_id(trial_id)
        if number != len(self.trials):
            # What came with it is news for the next who asks.
            self._unread += [other.number for other in self.sync() if other.number != number]
            return self.trials[number]
        trial = Trial(number, subnet, RUNNING, info=dict(info))
        self.trials.append(trial)
        self._ids.append(trial_id)
        return trial

    def finish(self, trial: Trial) -> Trial:
        """Write the end of a trial; one write with a journal. Returns the trial as it stands in the store."""
        trial_id = self._ids[trial.number]
        notes: dict[str, Any] = {}
        if trial.info != self.trials[trial.number].info:
            notes['info'] = trial.info
        if trial.error is not None:
            notes['error'] = trial.error
        if trial.seconds is not None:
            notes['seconds'] = trial.seconds
        state = next(state for state, name in _STATES.items() if name == trial.state)
        values = [trial.values[name] for name in self.objectives] if trial.values is not None else None
        attempt = self._attempts.pop(trial.number, None)
        if attempt is not None:
            trial = replace(trial, reports=dict(sorted(attempt.reports.items())))
        if trial.stopped and trial.reports:
            # As Optuna does it: the last report stands for the value.
            last = trial.reports[max(trial.reports)]
            values = [last] if math.isfinite(last) and len(self.objectives) == 1 else None
        with self._errors():
            try:
                with self._journal.together() if self._journal is not None else nullcontext():
                    for key, value in notes.items():
                        self._storage.set_trial_user_attr(trial_id, key, value)
                    self._storage.set_trial_state_values(trial_id, state, values)
                if self._journal is not None:
                    self._storage.get_trial_number_from_id(trial_id)
            except optuna.exceptions.UpdateFinishedTrialError:
                trial = self._read(self._settled(trial_id, len(notes)))
        self._set(trial)
        return trial

    def report(self, number: int, step: int, value: float, stopping: EarlyStopping | None = None) -> bool:
        """Write what a trial reports on its way and tell whether it is to end; one write.

        The first report for a step stands. One for an earlier step than the last is kept, but decides nothing.
        """
        attempt = self._attempts.setdefault(number, _Attempt())
        if step in attempt.reports:
            return False
        decides = stopping is not None and step > max(attempt.reports, default=-1)
        attempt.reports[step] = value
        trial_id, stop, marks = self._ids[number], False, dict[str, Any]()
        with self._errors():
            if decides and stopping is not None:
                frozen = copy.copy(self._storage.get_trial(trial_id))
                frozen.intermediate_values = dict(attempt.reports)
                frozen._system_attrs = dict(attempt.marks)
                stop, marks = stopping.decide(self._all_trials, self._study, frozen)
                attempt.marks.update(marks)
            try:
                with self._journal.together() if self._journal is not None else nullcontext():
                    for key, mark in marks.items():
                        self._storage.set_trial_system_attr(trial_id, key, mark)
                    self._storage.set_trial_intermediate_value(trial_id, step, value)
                if self._journal is not None:
                    self._storage.get_trial_number_from_id(trial_id)
            except optuna.exceptions.UpdateFinishedTrialError:
                self._settled(trial_id, len(marks))
                return True  # another process took it over and has ended it
        return stop

    def take_abandoned(self) -> list[Trial]:
        """Return the trials whose process is gone, now marked as evaluated by this one."""
        taken = []
        for trial in self.trials:
            if trial.finished:
                continue
            if self._alive(self._owner(trial.number)):
                self._foreign.add(trial.number)
                continue
            mine = {**this_process(), 'run': self.run}
            try:
                with self._errors():
                    self._storage.set_trial_user_attr(self._ids[trial.number], 'owner', mine)
            except StoreError as error:
                if not isinstance(error.__cause__, optuna.exceptions.UpdateFinishedTrialError):
                    raise
                self._foreign.add(trial.number)
                continue
            # Of two processes that took it at one moment the later one has it.
            if self._owner(trial.number) == mine:
                self._foreign.discard(trial.number)
                taken.append(trial)
            else:
                self._foreign.add(trial.number)
        return taken

    def others_run(self) -> bool:
        """Tell whether another process evaluates a trial, as far as can be seen from here."""
        owners = (self._owner(trial.number) for trial in self.trials if not trial.finished)
        return any(self._seen(owner) and not _is_this(owner) for owner in owners)

    def sync(self) -> list[Trial]:
        """Read what other processes have added; returns the trials of theirs that are new or newly finished."""
        unread, self._unread = self._unread, []
        changed = [self.trials[number] for number in unread]
        with self._errors():
            for number in sorted(self._foreign):
                frozen = self._storage.get_trial(self._ids[number])
                if frozen.state.is_finished():
                    self._foreign.discard(number)
                    self._set(self._read(frozen))
                    changed.append(self.trials[number])
            if self._has_more():
                for frozen in self._storage.get_all_trials(self._study, deepcopy=False)[len(self.trials) :]:
                    changed.append(self._append(frozen))
        return list({trial.number: trial for trial in changed}.values())

    # -- internals -------------------------------------------------------------------------

    def _settled(self, trial_id: int, refused: int) -> FrozenTrial:
        """Return a trial that another process has ended, past the further records of ours that a journal refuses one by one."""
        for _ in range(refused):
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                return self._storage.get_trial(trial_id)
        return self._storage.get_trial(trial_id)

    def _has_more(self) -> bool:
        # Counting trials costs time in proportion to them; asking for the next one does not.
        try:
            self._storage.get_trial_id_from_study_id_trial_number(self._study, len(self.trials))
        except KeyError:
            return False
        return True

    def _append(self, frozen: FrozenTrial) -> Trial:
        trial = self._read(frozen)
        self.trials.append(trial)
        self._ids.append(frozen._trial_id)
        if trial.finished:
            self.order.append(trial.number)
        elif frozen.user_attrs.get('owner', {}).get('run') != self.run:
            self._foreign.add(trial.number)
        return trial

    def _set(self, trial: Trial) -> None:
        if not self.trials[trial.number].finished:
            self.order.append(trial.number)
        self.trials[trial.number] = trial

    def _owner(self, number: int) -> dict[str, Any]:
        with self._errors():
            return dict(self._storage.get_trial(self._ids[number]).user_attrs.get('owner', {}))

    def _alive(self, owner: Mapping[str, Any]) -> bool:
        seen = self._seen(owner)
        if seen is None:
            _logger.warning(
                'A trial of %s is held by process %s on %s, which cannot be seen from here. If that process is gone, '
                "resume='takeover' evaluates its trial again.",
                self.where,
                owner.get('pid'),
                owner.get('host'),
            )
        return seen is not False

    def _seen(self, owner: Mapping[str, Any]) -> bool | None:
        """Tell whether who owns a trial is alive; None if it cannot be seen from here."""
        if owner and owner.get('run') is None:
            return False  # it gave the trial up
        if owner.get('host') != this_process()['host']:
            if self.takeover:
                return False
            with self._errors():
                return is_alive(owner, self._storage.get_study_user_attrs(self._study))
        if _is_this(owner):
            return owner.get('run') in _LIVE
        return process_started(int(owner.get('pid', -1))) == owner.get('started')

    def _open_study(self, settings: dict[str, Any], resume: bool | str) -> int:
        self.takeover = resume == 'takeover'
        about = {'version': VERSION, 'space': self.space.digest, 'objectives': self.objectives, **settings}
        # The names of values in Optuna's tools, and the whole space, so that a store can be read on its own.
        attributes = {'strop': about, 'strop:space': self.space.to_dict(), 'study:metric_names': list(self.objectives)}
        directions = [
            optuna.study.StudyDirection.MAXIMIZE if direction == 'maximize' else optuna.study.StudyDirection.MINIMIZE
            for direction in self.objectives.values()
        ]
        with _quiet():
            try:
                study = self._storage.create_new_study(directions, self.name)
            except optuna.exceptions.DuplicatedStudyError:
                study = self._storage.get_study_id_from_name(self.name)
                self._check(study, about, resume, attributes)
            else:
                with self._journal.together() if self._journal is not None else nullcontext():
                    self._describe(study, attributes)
        stored = self._storage.get_all_trials(study, deepcopy=False)
        for frozen in stored:
            self._append(frozen)
        # The order of a search is that in which trials ended; Optuna lists them by number.
        ended = [frozen.datetime_complete or datetime.min for frozen in stored]
        self.order.sort(key=lambda number: (ended[number], number))
        self._foreign.clear()
        return study

    def _describe(self, study: int, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            if key.startswith('study:'):
                self._storage.set_study_system_attr(study, key, value)
            else:
                self._storage.set_study_user_attr(study, key, value)

    def _check(self, study: int, about: Mapping[str, Any], resume: bool | str, attributes: Mapping[str, Any]) -> None:
        stored = self._storage.get_study_user_attrs(study).get('strop')
        where = f'{self.where} holds a study named {self.name!r}'
        if stored is None:
            if not self._storage.get_all_trials(study, deepcopy=False):
                # Its maker died between creating and describing it.
                self._describe(study, attributes)
                return
            raise StoreError(f'{where} that Strop did not make. Give another name=, or another store.')
        if not resume:
            raise StoreError(f'{where} already. Give resume=True to go on with it, or another name=.')
        if stored.get('version', 0) > VERSION:
            raise StoreError(f'{where} written by a newer Strop (format {stored["version"]}, this one reads {VERSION}).')
        if stored['objectives'] != about['objectives'] or list(stored['objectives']) != list(about['objectives']):
            raise StoreError(f'{where} with the objectives {stored["objectives"]}, but {about["objectives"]} were given.')
        if stored['space'] != about['space']:
            raise StoreError(f'{where} over another space: {self._space_difference(study)}. Give another name= or store.')
        if stored.get('constraints', []) != about.get('constraints', []):
            raise StoreError(
                f'{where} with the constraints {stored.get("constraints", [])}, but {about.get("constraints", [])} were given.'
            )
        for key in ('seed', 'strategy', 'pruner'):
            if stored.get(key) != about.get(key):
                _logger.warning('The search goes on with another %s: %r, it had %r.', key, about.get(key), stored.get(key))

    def _space_difference(self, study: int) -> str:
        stored = self._storage.get_study_user_attrs(study).get('strop:space', {})
        old, new = stored.get('domains', {}), self.space.to_dict()['domains']
        parts = []
        if set(old) - set(new):
            parts.append(f'the store also has {listed(sorted(set(old) - set(new)), 4)}')
        if set(new) - set(old):
            parts.append(f'the store lacks {listed(sorted(set(new) - set(old)), 4)}')
        changed = [key for key in new if key in old and json.loads(json.dumps(new[key])) != old[key]]
        if changed:
            parts.append(f'{changed[0]!r} was {old[changed[0]]} and is {new[changed[0]]}')
        return '; '.join(parts) or 'the conditions or the order of decisions differ'

    def _read(self, frozen: FrozenTrial) -> Trial:
        attributes = frozen.user_attrs
        try:
            subnet = self.space.subnet(attributes['subnet'])
        except (KeyError, SubnetError) as error:
            raise StoreError(f'Trial {frozen.number} of {self.where} holds no subnet of this space: {error}') from error
        if frozen.state not in _STATES:
            raise StoreError(
                f'Trial {frozen.number} of {self.where} is in the state {frozen.state.name}, which Strop does not use.'
            )
        state = _STATES[frozen.state]
        return Trial(
            number=frozen.number,
            subnet=subnet,
            state=state,
            values=dict(zip(self.objectives, frozen.values, strict=True)) if state == COMPLETE else None,
            info=dict(attributes.get('info', {})),
            seconds=attributes.get('seconds'),
            error=attributes.get('error'),
            reports=dict(sorted(frozen.intermediate_values.items())) if state != RUNNING else {},
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f'The store {self.where} cannot be used: {hide_secrets(str(error))}') from error
        except Exception as error:
            # Optuna raises its own errors, SQLAlchemy's, KeyError and AssertionError for stores that do not hold together.
            raise StoreError(
                f'The store {self.where} cannot be used: {type(error).__name__}: {hide_secrets(_one_line(error))}'
            ) from error


@dataclass
class _Attempt:
    """What this process has reported of a trial; what an earlier one left in the store does not count."""

    reports: dict[int, float] = field(default_factory=dict)
    marks: dict[str, Any] = field(default_factory=dict)


class _Params:
    """Subnets as Optuna's parameters: what a person reads in the dashboard."""

    _LIMIT = 32

    def __init__(self, space: Space) -> None:
        self._space = space
        self._made: dict[str, BaseDistribution] = {}

    def of(self, subnet: Subnet) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        params: dict[str, Any] = {}
        for key, choice in subnet.choices.items():
            domain = self._space[key]
            if isinstance(domain, Numeric):
                params[key] = float(chosen(choice)[0])
                self._made.setdefault(key, self._range(domain))
                continue
            if domain.genes == (len(domain),) or domain.size <= self._LIMIT:
                params[key] = self._words(domain, tuple(int(index) for index in choice))
                if key not in self._made:
                    self._made[key] = CategoricalDistribution([self._words(domain, picks) for picks in domain.grid()])
                continue
            for index, label in enumerate(domain.labels):
                name = f'{key}: {label}'
                params[name] = index in choice
                self._made.setdefault(name, CategoricalDistribution((False, True)))
        return params, {name: self._made[name] for name in params}

    @staticmethod
    def _range(domain: Numeric) -> BaseDistribution:
        low, high = (float(end) for end in domain.bounds)
        if math.isinf(high):
            # Optuna knows no normal law; what is told here is only for its tools to draw.
            low, high = float(domain.at(0.0)), float(domain.at(1.0))
        return FloatDistribution(low, high, log='log' in domain.law and low > 0)

    @staticmethod
    def _words(domain: Domain, picks: tuple[int, ...]) -> Any:
        simple = all(isinstance(label, (str, int, float)) and not isinstance(label, bool) for label in domain.labels)
        if len(picks) == 1 and domain.genes == (len(domain),) and simple:
            return domain.labels[picks[0]]
        return ' + '.join(str(domain.labels[index]) for index in picks) or '(none)'


def _is_this(owner: Mapping[str, Any]) -> bool:
    here = this_process()
    return all(owner.get(key) == here[key] for key in ('host', 'pid', 'started'))


def _one_line(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    return text if len(text) <= 300 else f'{text[:300]}...'


@contextmanager
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
