"""Searches as Optuna's tools see them, with Strop's artefacts: a view of a store that adds them while it is read.

Optuna keeps what it knows of an artefact as an attribute of the study or the trial. Here these attributes are made up
on the fly, so that nothing has to be written into the store of a search that runs.
"""

from __future__ import annotations

import copy
import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from strop.errors import StoreError
from strop.mutables import Space, Subnet
from strop.report.search_picture import draw_search
from strop.report.space_picture import draw_space
from strop.report.stores import READ_ONLY
from strop.search import Trial, pareto_front
from strop.search.trial import COMPLETE, FAILED, RUNNING, best_first
from strop.search.urls import hide_secrets

#: Where the logs of a search lie in its folder.
LOG_FOLDERS = ('', 'logs', 'trials')
_IDS = uuid.UUID('6f0ff3a5-5a4c-4c0e-9b4c-1d6e2f6f9a30')
_REDRAW = 10.0
_LOG_BYTES = 5 * 2**20
_PREFIX = 'artifacts:'
_PRIVATE = 'strop:'
_INTERNAL = ('subnet', 'ticket')
_STATES = {TrialState.COMPLETE: COMPLETE, TrialState.RUNNING: RUNNING, TrialState.WAITING: RUNNING}


@dataclass(frozen=True)
class Artefact:
    """A file that is made when somebody opens it.

    Args:
        name: File name.
        mimetype: Its type.
        content: Makes it.
    """

    name: str
    mimetype: str
    content: Callable[[], bytes]


class StudyView(BaseStorage):
    """A store of searches, read-only, with artefacts: the space, the course of the search, each trial's subnet and log.

    It is an Optuna storage and, by `open_reader`, an Optuna artefact store, both for `optuna_dashboard.create_app`.

    Args:
        storage: The store.
        logs: Folders that logs of trials are looked for in: `trial_<number>.log` as `LocalProcesses` names them, or
            `trial_<number>/trial.log` (outside of a search `<digest>-*/trial.log`) as `TrialCommand` does. Where the store
            holds several searches, those of one are in a folder of its name, or in the `logs` or `trials` of that.
        where: What the notes call the store; secrets of URLs are left out.

    Raises:
        StoreError: If the store holds no search that Strop made.
    """

    def __init__(self, storage: BaseStorage, logs: Iterable[Path] = (), where: str = '') -> None:
        self._storage = storage
        self.where = hide_secrets(where)
        self._logs = [Path(folder) for folder in logs]
        self._lock = threading.RLock()
        self._files: dict[str, Artefact] = {}
        self._searches: dict[int, _Search] = {}
        self._study_of: dict[int, int] = {}
        studies = [study for study in self._reading(storage.get_all_studies) if 'strop' in study.user_attrs]
        if not studies:
            raise StoreError(
                f'{self.where or "The store"} holds no search that Strop made'
                + ('.' if self._reading(storage.get_all_studies) else '; it is empty so far.')
            )
        for study in studies:
            self._search(study._study_id, study)

    # -- Optuna's artefact store -----------------------------------------------------------

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the content of an artefact."""
        with self._lock:
            artefact = self._files.get(artifact_id)
        if artefact is None:
            raise ArtifactNotFound(artifact_id)
        return io.BytesIO(artefact.content())

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Refuse."""
        self._refuse()

    def remove(self, artifact_id: str) -> None:
        """Refuse."""
        self._refuse()

    # -- Optuna's storage: reading ---------------------------------------------------------

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> Any:
        """Return the directions of a study."""
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return what describes a search, without the space itself, which is an artefact."""
        return _shown(self._storage.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return Optuna's attributes with the study's artefacts and note added."""
        attributes = self._storage.get_study_system_attrs(study_id)
        search = self._search(study_id)
        return attributes if search is None else {**attributes, **search.outdated, **self._study_extras(search, attributes)}

    def get_all_studies(self) -> list[Any]:
        """Return all studies; those of Strop with artefacts and a note."""
        studies = []
        for study in self._storage.get_all_studies():
            shown = copy.copy(study)
            search = self._search(study._study_id, study)
            if search is not None:
                shown.user_attrs = _shown(study.user_attrs)
                shown.system_attrs = {**study.system_attrs, **self._study_extras(search, study.system_attrs)}
            studies.append(shown)
        return studies

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial with its artefacts."""
        frozen = self._storage.get_trial(trial_id)
        if trial_id not in self._study_of:
            for study in self._storage.get_all_studies():
                self.get_all_trials(study._study_id, deepcopy=False)
        search = self._search(self._study_of[trial_id]) if trial_id in self._study_of else None
        return frozen if search is None else self._trial(search, frozen, self._log_files(search))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study with their artefacts."""
        stored = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        self._study_of.update((frozen._trial_id, study_id) for frozen in stored)
        search = self._search(study_id)
        if search is None:
            return stored
        files = self._log_files(search)
        return [self._trial(search, frozen, files) for frozen in stored]

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return a trial's attributes with its artefacts."""
        return dict(self.get_trial(trial_id)._system_attrs)

    def remove_session(self) -> None:
        """End the sessions of the store."""
        self._storage.remove_session()

    # -- Optuna's storage: writing, which is refused -----------------------------------------

    def create_new_study(self, directions: Any, study_name: str | None = None) -> int:
        """Refuse."""
        self._refuse()

    def delete_study(self, study_id: int) -> None:
        """Refuse."""
        self._refuse()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refuse."""
        self._refuse()

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refuse."""
        self._refuse()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Refuse."""
        self._refuse()

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: Any) -> None:
        """Refuse."""
        self._refuse()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Refuse."""
        self._refuse()

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Refuse."""
        self._refuse()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refuse."""
        self._refuse()

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refuse."""
        self._refuse()

    # -- internals -------------------------------------------------------------------------

    def _refuse(self) -> NoReturn:
        raise StoreError(READ_ONLY)

    def _reading(self, call: Callable[[], list[Any]]) -> list[Any]:
        try:
            return call()
        except Exception as error:
            said = ' '.join(hide_secrets(str(error)).split())[:300]
            raise StoreError(f'{self.where or "The store"} cannot be read: {type(error).__name__}: {said}') from None

    def _search(self, study_id: int, study: Any = None) -> _Search | None:
        with self._lock:
            if study_id not in self._searches:
                attributes = self._storage.get_study_user_attrs(study_id) if study is None else study.user_attrs
                if 'strop' not in attributes or 'strop:space' not in attributes:
                    return None
                name = self._storage.get_study_name_from_id(study_id) if study is None else study.study_name
                space = Space.from_dict(attributes['strop:space'])
                self._searches[study_id] = _Search(study_id, name, space, dict(attributes['strop']))
            return self._searches[study_id]

    def _trials(self, search: _Search) -> list[Trial]:
        stored = self._storage.get_all_trials(search.study_id, deepcopy=False)
        return [search.read(frozen) for frozen in stored if 'subnet' in frozen.user_attrs]

    # The study's artefacts and its note.

    def _study_extras(self, search: _Search, stored: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            trials = self._trials(search)
            ended = sum(trial.finished for trial in trials)
            now = time.monotonic()
            if ended != search.drawn and (ended < 20 or now - search.drawn_at > _REDRAW):
                search.drawn, search.drawn_at = ended, now
            content = json.dumps(search.space.to_dict(), indent=1).encode()
            several = len(search.objectives) > 1
            files = [
                (
                    f'picture {search.drawn}',
                    Artefact('pareto_front.png' if several else 'best_so_far.png', 'image/png', self._picture(search)),
                ),
                (f'space {search.drawn}', Artefact('search_space.png', 'image/png', self._space(search))),
                ('space.json', Artefact('search_space.json', 'application/json', lambda: content)),
            ]
            current = dict(self._issue(search, None, kind, artefact) for kind, artefact in files)
            # A page may still ask for the picture of a moment ago; it is listed no more, but it is answered.
            search.outdated = dict([*search.outdated.items(), *current.items()][-24:])
            return {**current, **_note(_about(search, trials, self.where), ended, stored)}

    def _picture(self, search: _Search) -> Callable[[], bytes]:
        def draw() -> bytes:
            return _png(draw_search(self._trials(search), search.objectives, title=search.name))

        return lambda: search.cached('picture', draw)

    def _space(self, search: _Search) -> Callable[[], bytes]:
        def draw() -> bytes:
            ranked = best_first(self._trials(search), search.objectives)
            return _png(draw_space(search.space, [trial.subnet for trial in ranked], ranked[0].subnet if ranked else None))

        return lambda: search.cached('space', draw)

    # A trial's artefacts.

    def _trial(self, search: _Search, frozen: FrozenTrial, files: Mapping[str, Path]) -> FrozenTrial:
        log = self._log_of(search, frozen, files)
        known = search.shown.get(frozen._trial_id)
        if known is not None and known[0] == log and frozen.state.is_finished():
            return known[1]
        shown = copy.copy(frozen)
        shown._user_attrs = _flat(frozen.user_attrs)
        extras: dict[str, str] = {}
        with self._lock:
            if 'subnet' in frozen.user_attrs:
                content = _subnet_file(frozen.user_attrs['subnet'])
                artefact = Artefact(f'subnet_{frozen.number}.json', 'application/json', lambda: content)
                extras.update([self._issue(search, frozen, 'subnet', artefact)])
            if log is not None:
                artefact = Artefact(f'trial_{frozen.number}.log', 'text/plain; charset=utf-8', lambda: _read_log(log))
                extras.update([self._issue(search, frozen, 'log', artefact)])
        shown._system_attrs = {**frozen._system_attrs, **extras}
        if frozen.state.is_finished():
            search.shown[frozen._trial_id] = (log, shown)
        return shown

    def _issue(self, search: _Search, frozen: FrozenTrial | None, kind: str, artefact: Artefact) -> tuple[str, str]:
        """Give an artefact an id, the same at every look, and return the attribute by which Optuna finds it."""
        of = 'study' if frozen is None else str(frozen.number)
        name = str(uuid.uuid5(_IDS, f'{search.study_id}/{search.name}/{of}/{kind}'))
        self._files[name] = artefact
        meta = {'artifact_id': name, 'filename': artefact.name, 'mimetype': artefact.mimetype, 'encoding': None}
        return _PREFIX + name, json.dumps(meta)

    def _log_files(self, search: _Search) -> dict[str, Path]:
        """Return what the folders of logs hold: `trial_<number>` and `<digest>` -> file."""
        found: dict[str, Path] = {}
        for folder in self._folders(search):
            for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
                if entry.suffix == '.log' and entry.is_file():
                    found[entry.stem] = entry
                elif (entry / 'trial.log').is_file():
                    name = entry.name if entry.name.startswith('trial_') else entry.name.partition('-')[0]
                    found[name] = entry / 'trial.log'
        return found

    def _folders(self, search: _Search) -> Iterator[Path]:
        for root in self._logs:
            own = root / search.name
            place = root.absolute()
            if own.is_dir():
                yield from (own / name for name in LOG_FOLDERS)
            elif len(self._searches) < 2 or search.name in (place.name, place.parent.name):
                yield root

    def _log_of(self, search: _Search, frozen: FrozenTrial, files: Mapping[str, Path]) -> Path | None:
        if not files or 'subnet' not in frozen.user_attrs:
            return None
        return files.get(f'trial_{frozen.number}') or files.get(search.read(frozen).subnet.digest)


class _Search:
    """What is known of one search in the store."""

    def __init__(self, study_id: int, name: str, space: Space, about: dict[str, Any]) -> None:
        self.study_id, self.name, self.space, self.about = study_id, name, space, about
        self.objectives: dict[str, str] = dict(about['objectives'])
        self.shown: dict[int, tuple[Path | None, FrozenTrial]] = {}
        self.outdated: dict[str, str] = {}
        self.drawn = -1
        self.drawn_at = 0.0
        self._trials: dict[int, Trial] = {}
        self._subnets: dict[int, Subnet] = {}
        self._pictures: dict[str, tuple[int, bytes]] = {}
        self._drawing = threading.Lock()

    def read(self, frozen: FrozenTrial) -> Trial:
        """Return a trial as a search has it."""
        known = self._trials.get(frozen._trial_id)
        if known is not None and known.finished:
            return known
        notes = frozen.user_attrs
        if frozen._trial_id not in self._subnets:
            self._subnets[frozen._trial_id] = self.space.subnet(notes['subnet'])
        state = _STATES.get(frozen.state, FAILED)
        trial = Trial(
            number=frozen.number,
            subnet=self._subnets[frozen._trial_id],
            state=state,
            values=dict(zip(self.objectives, frozen.values, strict=True)) if state == COMPLETE else None,
            info=dict(notes.get('info', {})),
            seconds=notes.get('seconds'),
            error=notes.get('error'),
        )
        self._trials[frozen._trial_id] = trial
        return trial

    def cached(self, kind: str, draw: Callable[[], bytes]) -> bytes:
        """Return a picture, drawn anew only when trials have ended since."""
        with self._drawing:
            if kind not in self._pictures or self._pictures[kind][0] != self.drawn:
                self._pictures[kind] = (self.drawn, draw())
            return self._pictures[kind][1]


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=110)
    return stream.getvalue()


def _subnet_file(choices: Mapping[str, Any]) -> bytes:
    return json.dumps({'strop': 'subnet', 'version': 1, 'choices': dict(choices)}, indent=1, ensure_ascii=False).encode()


def _read_log(path: Path) -> bytes:
    try:
        with open(path, 'rb') as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(max(0, size - _LOG_BYTES))
            text = stream.read(_LOG_BYTES).decode('utf-8', 'replace')
    except OSError as error:
        return f'[this log cannot be read: {error.strerror}]\n'.encode()
    head = f'[the first {size - _LOG_BYTES} bytes are left out]\n' if size > _LOG_BYTES else ''
    return hide_secrets(head + text).encode()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return hide_secrets(value)
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shown(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's attributes one by one, and the space by its digest: in full it is an artefact."""
    about = attributes['strop'] if isinstance(attributes.get('strop'), Mapping) else {}
    rest = {key: value for key, value in attributes.items() if not key.startswith(_PRIVATE) and not (key == 'strop' and about)}
    return {key: _clean(value) for key, value in {**about, **rest}.items()}


def _flat(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's attributes as columns of a table: what was measured by name, who evaluates it as one word."""
    shown: dict[str, Any] = {}
    for key, value in attributes.items():
        if key == 'info' and isinstance(value, Mapping):
            shown.update((name, _clean(item)) for name, item in value.items())
        elif key == 'owner' and isinstance(value, Mapping):
            shown['evaluated by'] = f'{value.get("host")}:{value.get("pid")}'
        elif key not in _INTERNAL:
            shown[key] = _clean(value)
    return shown


def _about(search: _Search, trials: Sequence[Trial], where: str) -> str:
    """Return what a reader of the study should know, as Markdown."""
    about, objectives = search.about, search.objectives
    complete = [trial for trial in trials if trial.complete]
    ended = [trial for trial in trials if trial.finished and not trial.complete]
    running = [trial for trial in trials if not trial.finished]
    lines = [
        f'**{search.name}**: ' + ', '.join(f'{direction} {name}' for name, direction in objectives.items()),
        '',
        f'- strategy `{about.get("strategy")}`, seed {about.get("seed")}',
        f'- space of {len(search.space)} decisions, digest `{about.get("space")}`',
    ]
    lines += [f'- constraint `{json.dumps(constraint)}`' for constraint in about.get('constraints', [])]
    lines.append(f'- {len(complete)} trials complete, {len(ended)} without a value, {len(running)} under way')
    if where:
        lines.append(f'- store `{where}`')
    if complete:
        front = pareto_front(complete, objectives)
        title = 'best' if len(objectives) == 1 else 'Pareto front'
        best = best_first(complete, objectives)[:5] if len(objectives) == 1 else front[:12]
        lines += ['', f'| {title}: trial | ' + ' | '.join(objectives) + ' |', '|---' * (len(objectives) + 1) + '|']
        for trial in best:
            lines.append(f'| {trial.number} | ' + ' | '.join(f'{value:.6g}' for value in (trial.values or {}).values()) + ' |')
        if len(objectives) > 1 and len(front) > len(best):
            lines.append(f'\n... {len(front)} in all')
    if ended and ended[-1].error:
        lines += ['', f'The last one without a value, trial {ended[-1].number}: {hide_secrets(ended[-1].error)[:300]}']
    return '\n'.join(lines)


def _note(body: str, ended: int, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's note as optuna-dashboard keeps it, before the one that somebody wrote there."""
    pieces = sorted(
        ((int(key.rpartition(':')[2]), text) for key, text in stored.items() if key.startswith('dashboard:note_str:')),
    )
    written = ''.join(text for _, text in pieces)
    text = f'{body}\n\n---\n\n{written}' if written else body
    # The page shows a note anew when its version has grown.
    version = int(stored.get('dashboard:note_ver', 0)) + 1 + ended
    blank = {f'dashboard:note_str:{index}': '' for index, _ in pieces}
    return {'dashboard:note_ver': version, **blank, 'dashboard:note_str:0': text}
