"""An experiment: a search described by data, with a folder of its own, that can be watched, stopped, resumed and shared."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn

from strop.errors import ConfigError, StoreError, StropError, near
from strop.files import atomic_write
from strop.mutables import SearchSpaceFile, Space
from strop.search.constraints import Constraint, Constraints
from strop.search.driver import Callback, run
from strop.search.early_stopping import EarlyStopping
from strop.search.executor import Evaluate, Executor, InProcess
from strop.search.executor_choice import EXECUTORS, build_executor
from strop.search.experiment_file import (
    FILE,
    as_yaml,
    duration,
    read_experiment,
    understood,
    with_paths,
    without_secrets,
)
from strop.search.presence import FINISH, MANAGER, NOW, WORKER, FolderLock, Presence, Process, check_stop, request_stop
from strop.search.processes import LocalProcesses
from strop.search.result import SearchResult
from strop.search.store import close_storage, open_storage
from strop.search.stored import StoredSearch, check_exists, read_search
from strop.search.strategy import Strategy
from strop.search.trial import Trial, parse_objectives
from strop.search.trial_command import TrialCommand
from strop.search.trial_function import REFERENCE, FunctionTrial, load, reference_to
from strop.search.trial_side import EXPERIMENT_VARIABLE
from strop.search.tuner import StrategyTuner, TunerStrategy
from strop.search.urls import HIDDEN, hide_secrets

STORE, LOG, TRIALS = 'search.journal', 'experiment.log', 'trials'
RESULT, TABLE, BEST = 'result.json', 'result.csv', 'best.json'
_LIVE = 'live:object'
_VARIABLE = re.compile(r'\$(?:(\w+)|\{(\w+)\})')

_logger = logging.getLogger('strop.search.experiment')


@dataclass(frozen=True)
class Plan:
    """What an experiment is going to do, checked and built.

    Args:
        file: The search space.
        evaluate: What a trial runs.
        executor: Where trials run.
        strategy: Who proposes.
        objectives: Objective -> direction.
        constraints: Bounds of every subnet.
        pruner: What stops trials early, or None.
        store: Where trials are kept; it may hold a password.
        folder: Where logs, trials and results go.
        seconds: Time limit of a run, or None.
    """

    file: SearchSpaceFile
    evaluate: Evaluate
    executor: Executor
    strategy: Strategy
    objectives: dict[str, str]
    constraints: tuple[Constraint, ...]
    pruner: EarlyStopping | None
    store: str
    folder: Path
    seconds: float | None


class Experiment:
    """A search with a folder, described by the keys of an experiment file.

    The folder gets `experiment.yaml` (without secrets), `experiment.log`, the trials' own folders or logs in `trials`, the
    store `search.journal` unless another one is given, and at the end `result.json`, `result.csv` and `best.json`. One process
    manages an experiment at a time; others join as workers.

    Args:
        space: A search space in NNI's form (a file or entries), `'module:name'`, a `Space` or a model.
        trial: `'module:function'`, `{'command': ...}` or `{'function': ...}`, or a function of a subnet.
        name: Name of the search in the store.
        trials: How many finished trials there shall be.
        duration: Time limit of one run, such as `'2h'`.
        executor: As in `build_executor`; a mapping may also have `gpus` (of each trial) and `devices` (those to use).
        strategy: As in `run`, the name of a tuner of NNI, or `{'tuner': 'module:Class', 'folder': ..., 'options': {...}}`.
        objectives: As in `run`. A command reports the first one; the others stand beside it in its report.
        constraints: Resource -> `{'function': 'module:function', 'low': ..., 'high': ...}`, or `Constraint` objects.
        pruner: As in `run`.
        seed: Seed of all that is random.
        store: A journal file or the URL of a database, in which `$VARIABLES` are replaced.
        folder: By default `experiments/<name>`.

    Raises:
        ConfigError: If something breaks a rule; unknown keys are named with near matches.

    What is given as data can be resumed from the folder and joined by workers; an object (a model, a strategy, a lambda) can
    be used where the experiment is made alone.

    >>> import tempfile
    >>> experiment = Experiment(
    ...     space={'x': {'_type': 'choice', '_value': [1, 2, 3]}},
    ...     trial=lambda subnet: subnet['x'],
    ...     strategy='grid',
    ...     folder=tempfile.mkdtemp(),
    ... )
    >>> experiment.run().best.values
    {'score': 3.0}
    """

    def __init__(self, **given: Any) -> None:
        self.notes: list[str] = []
        self._objects = {key: value for key, value in given.items() if _is_object(key, value)}
        data = {key: _as_data(value) for key, value in given.items() if key not in self._objects and value is not None}
        for key in list(self._objects):
            reference = reference_to(self._objects[key]) if key == 'trial' else None
            if reference is not None:
                data[key] = reference
                del self._objects[key]
            elif key in ('space', 'trial'):
                data[key] = _LIVE
        content, self.notes = understood(data)
        self._content = with_paths(content, Path.cwd())
        self._asked: str | None = None
        self._lock, self._heard = threading.Lock(), False

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **changes: Any) -> Experiment:
        """Return the experiment of a file; `changes` replace what it says.

        Raises:
            ConfigError: As `Experiment`.
            FileNotFoundError: If there is no such file.
        """
        content, notes = read_experiment(path)
        made = cls(**{**content, **{key: value for key, value in changes.items() if value is not None}})
        made.notes = [*notes, *made.notes]
        return made

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], **changes: Any) -> Experiment:
        """Return the experiment that a folder holds.

        Raises:
            ConfigError: If it holds none.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise ConfigError(f'{os.fspath(folder)} is no folder of an experiment that can be resumed: it has no {FILE}.')
        return cls.from_file(path, **{'folder': str(Path(folder).absolute()), **changes})

    @classmethod
    def from_store(cls, store: str | os.PathLike[str], name: str | None = None, **changes: Any) -> Experiment:
        """Return the experiment that a store tells of.

        Raises:
            StoreError: If it holds no such experiment, or one that was made of objects.
        """
        found = read_search(store, name)
        if found.definition is None:
            raise StoreError(
                f'The search {found.name!r} in {found.where} was made of Python objects, which a store cannot hold. Give what '
                "it is made of as data: the trial as 'module:function', strategies and executors by name."
            )
        return cls(**{**found.definition, 'store': os.fspath(store), **{k: v for k, v in changes.items() if v is not None}})

    @property
    def name(self) -> str:
        """Name of the search in the store."""
        return str(self._content.get('name', 'experiment'))

    @property
    def folder(self) -> Path:
        """Where logs, trials and results go."""
        return Path(self._content.get('folder', Path('experiments') / self.name)).absolute()

    @property
    def definition(self) -> dict[str, Any] | None:
        """The experiment as data, without secrets; None if objects are part of it."""
        return None if self._objects else without_secrets({**self._content, 'name': self.name})

    @property
    def store(self) -> str:
        """Where trials are kept; it may hold a password.

        Raises:
            ConfigError: If it names a variable that is not set, or its password has been hidden.
        """
        given = self._content.get('store')
        if given is None:
            return str(self.folder / STORE)
        text = _VARIABLE.sub(lambda found: os.environ.get(found[1] or found[2], found[0]), given)
        if any((found[1] or found[2]) not in os.environ for found in _VARIABLE.finditer(given)):
            raise ConfigError(
                f'The store {hide_secrets(given)} names a variable that is not set. A $ of a password is written as %24.'
            )
        if HIDDEN in text:
            raise ConfigError(f'The password of the store {given} is not kept. Give the whole URL with --store (store=).')
        return text

    @property
    def kept_store(self) -> str:
        """The address of the store as it was given, variables by their names and passwords hidden."""
        return hide_secrets(str(self._content.get('store', self.folder / STORE)))

    @property
    def mixes_variables(self) -> bool:
        """Whether variables of the environment are parts of the store's address; one that is the whole of it is none."""
        given = str(self._content.get('store') or '')
        return bool(_VARIABLE.search(given)) and not _VARIABLE.fullmatch(given)

    def plan(self) -> Plan:
        """Check and build everything that the experiment needs; nothing runs and nothing is written.

        Raises:
            StropError: If something is wrong; the message names the key.
        """
        content = self._content
        file = self._space()
        objectives = parse_objectives(content.get('objectives', 'maximize'))
        constraints = self._constraints()
        strategy = self._strategy(file)
        seed = content.get('seed', 0)
        strategy.bind(file.space, objectives, seed=seed, constraints=Constraints(constraints))
        pruner = EarlyStopping.of(self._objects.get('pruner', content.get('pruner')))
        evaluate, limit = self._trial(file, next(iter(objectives)))
        executor = self._executor(limit)
        if pruner is not None:
            pruner.check(objectives)
        seconds = duration(content['duration']) if 'duration' in content else None
        return Plan(file, evaluate, executor, strategy, objectives, constraints, pruner, self.store, self.folder, seconds)

    def summary(self) -> dict[str, str]:
        """Return what `plan` found, in words."""
        plan = self.plan()
        space = plan.file.space
        try:
            size = f'{space.count():.4g} subnets'
        except StropError:
            size = 'subnets without number'
        trial = self._content['trial']
        evaluate = plan.evaluate
        by = f'command {evaluate.command!r} in {evaluate.cwd}' if isinstance(evaluate, TrialCommand) else trial.get('function')
        limits = ', '.join(
            f'{name} {value}' for name in ('seconds', 'memory', 'gpus') if (value := self._option(name)) is not None
        )
        trials = self._content.get('trials', 100)
        return {
            'name': self.name,
            'folder': str(plan.folder),
            'store': hide_secrets(plan.store),
            'space': f'{len(space)} decisions, {size}',
            'trial': 'a function in this process' if by in (None, _LIVE) else str(by),
            'executor': f'{type(plan.executor).__name__}, {plan.executor.capacity} at once'
            + (f' ({limits})' if limits else ''),
            'strategy': plan.strategy.name,
            'objectives': ', '.join(f'{direction} {name}' for name, direction in plan.objectives.items()),
            'constraints': ', '.join(constraint.name for constraint in plan.constraints) or 'none',
            'pruner': 'none' if plan.pruner is None else json.dumps(plan.pruner.to_dict()),
            'ends after': f'{trials} trials' * (trials < 10**9)
            + ' or ' * (trials < 10**9 and plan.seconds is not None)
            + (f'{plan.seconds:g} s' if plan.seconds is not None else ''),
            'seed': str(self._content.get('seed', 0)),
        }

    def run(self, *, resume: bool | str = False, callbacks: Sequence[Callback] = (), progress: bool = False) -> SearchResult:
        """Run the experiment as its manager, to its end or until somebody asks it to stop.

        Args:
            resume: Go on with what the store holds; `'takeover'` as in `run`.
            callbacks: Called with each finished trial.
            progress: Show a bar.

        Raises:
            StoreError: If another process manages it, or if the store holds it already and `resume` is false.
            StropError: As `plan` and `strop.search.run`.
        """
        plan = self.plan()
        with ExitStack() as stack:
            plan.folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(plan.folder)
            lock.acquire()
            stack.callback(lock.release)
            if not resume:
                self._refuse_existing(plan)
            if self.definition is not None:
                atomic_write(plan.folder / FILE, as_yaml(self.definition))
            result = self._search(plan, MANAGER, resume or True, callbacks, progress)
            result.write_json(plan.folder / RESULT)
            result.write_csv(plan.folder / TABLE)
            if result.complete:
                best = {'trial': result.best.number, 'values': result.best.values, 'parameters': dict(result.best.subnet)}
                atomic_write(plan.folder / BEST, json.dumps(best, indent=2, ensure_ascii=False) + '\n')
            return result

    def work(self, *, callbacks: Sequence[Callback] = (), progress: bool = False) -> SearchResult:
        """Join an experiment as one more worker, to its end or until somebody asks it to stop.

        Raises:
            StoreError: If the store does not hold the experiment.
        """
        plan = self.plan()
        read_search(plan.store, self.name)
        plan.folder.mkdir(parents=True, exist_ok=True)
        return self._search(plan, WORKER, True, callbacks, progress)

    def stop(self, how: str = FINISH) -> list[Process]:
        """Ask every process that works on the experiment to stop, and return them; `'now'` kills the trials under way."""
        return stop_search(self.store, self.name, how)

    def stored(self) -> StoredSearch:
        """Read the experiment's trials and processes from its store."""
        return read_search(self.store, self.name)

    # -- internals -------------------------------------------------------------------------

    def _search(self, plan: Plan, role: str, resume: bool | str, callbacks: Sequence[Callback], progress: bool) -> SearchResult:
        self._asked = None
        storage, _ = open_storage(plan.store)
        study = _study(storage, self.name, plan.objectives)
        presence = Presence(storage, study, role, self._on_stop, look=0.5 if '://' not in plan.store else 2.0)
        with ExitStack() as stack:
            stack.callback(close_storage, storage)
            stack.enter_context(_logged(plan.folder / LOG))
            stack.enter_context(self._interruptible())
            presence.enter()
            stack.callback(presence.leave)
            _logger.info('%s: %s, store %s', role, presence.process, hide_secrets(plan.store))
            about = None if self.definition is None else {'experiment': self.definition}
            stored = storage.get_study_user_attrs(study).get('strop')
            if role == MANAGER and stored is not None and about is not None and stored.get('experiment') != about['experiment']:
                # Workers that join from now on see what a resumed run changed.
                storage.set_study_user_attr(study, 'strop', {**stored, **about})
            try:
                with self._hearing():
                    result = run(
                        plan.file.space,
                        plan.evaluate,
                        strategy=plan.strategy,
                        store=plan.store,
                        name=self.name,
                        executor=plan.executor,
                        trials=self._content.get('trials', 100),
                        seconds=plan.seconds,
                        objectives=plan.objectives,
                        constraints=plan.constraints,
                        pruner=plan.pruner,
                        seed=self._content.get('seed', 0),
                        resume=resume,
                        halt=lambda: self._asked is not None,
                        about=about,
                        callbacks=[_log_trial, *callbacks],
                        progress=progress,
                    )
            except KeyboardInterrupt:
                _logger.info('stopped; trials under way are left for a resumed run')
                if self._asked != NOW:
                    raise
                result = replace(read_search(plan.store, self.name).result, stopped='halt')
            except Exception as error:
                _logger.error('%s: %s', type(error).__name__, hide_secrets(str(error)))
                raise
            _logger.info('ended: %s', result.stopped)
        return result

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Hear a request to stop now also where Ctrl-C is ignored, as in what a shell runs in the background."""
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        if not ignored or threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(*_: object) -> None:
            if self._asked == NOW:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Let a request to stop now interrupt what is done in it, and nothing after it."""
        with self._lock:
            self._heard = threading.current_thread() is threading.main_thread()
        try:
            yield
        finally:
            with self._lock:
                self._heard = False

    def _on_stop(self, how: str) -> None:
        self._asked = how
        _logger.info('asked to stop: %s', how)
        main = threading.main_thread().ident
        with self._lock:
            if how == NOW and self._heard and main is not None:
                signal.pthread_kill(main, signal.SIGINT)

    def _refuse_existing(self, plan: Plan) -> None:
        try:
            check_exists(plan.store)
            found = read_search(plan.store, self.name)
        except StoreError as error:
            if 'broken' in str(error) or 'cannot be' in str(error):
                raise
            return
        raise StoreError(
            f'{found.where} holds the experiment {self.name!r} already, with {len(found.trials)} trials. `strop experiment '
            f'resume {plan.folder}` (resume=True) goes on with it; another name or folder begins anew.'
        )

    def _space(self) -> SearchSpaceFile:
        given = self._objects.get('space', self._content['space'])
        if isinstance(given, str) and REFERENCE.match(given):
            given = load(given, self._content['trial']['folder'], 'space')
            if not isinstance(given, (Space, SearchSpaceFile, nn.Module, Mapping)):
                given = given()
        if isinstance(given, Mapping) and not isinstance(given, Space) and 'domains' in given:
            given = Space.from_dict(given)
        if isinstance(given, str) and not Path(given).is_file():
            raise ConfigError(f'space: there is no file {given}.')
        file = SearchSpaceFile.of(given)
        if not file.space:
            raise ConfigError('space: the search space has no decision.')
        return file

    def _trial(self, file: SearchSpaceFile, objective: str) -> tuple[Evaluate, float | None]:
        """Return the evaluation, and the limit in seconds that is left to the executor."""
        trial = self._content['trial']
        seconds = trial.get('seconds', self._option('seconds'))
        limit = None if seconds is None else duration(seconds)
        if 'trial' in self._objects:
            return self._objects['trial'], limit
        if 'function' in trial:
            if 'environment' in trial:
                raise ConfigError('trial.environment is for commands; a function finds the environment of the experiment.')
            load(trial['function'], trial['folder'], 'trial.function')
            return FunctionTrial(trial['function'], trial['folder']), limit
        if not Path(trial['folder']).is_dir():
            raise ConfigError(f'trial.folder: there is no folder {trial["folder"]}.')
        environment = {EXPERIMENT_VARIABLE: self.name}
        for name, value in trial.get('environment', {}).items():
            if value == HIDDEN and name not in os.environ:
                raise ConfigError(f'The value of the variable {name} is not kept. Set it in the environment of this process.')
            environment[name] = os.environ[name] if value == HIDDEN else str(value)
        command = TrialCommand(
            trial['command'],
            file,
            self.folder / TRIALS,
            cwd=trial['folder'],
            timeout=limit,
            objective=objective,
            environment=environment,
        )
        return command, None

    def _option(self, name: str) -> Any:
        given = self._content.get('executor')
        return given.get(name) if isinstance(given, Mapping) else None

    def _executor(self, limit: float | None) -> Executor:
        if 'executor' in self._objects:
            return build_executor(self._objects['executor'])
        given = self._content.get('executor', 1)
        options: dict[str, Any] = {'workers': given} if isinstance(given, int) else {'type': given}
        if isinstance(given, Mapping):
            options = dict(given)
        options.pop('seconds', None)
        if limit is not None:
            options['seconds'] = limit
        if 'type' not in options:
            alone = options.get('workers', 1) == 1 and not set(options) - {'workers'}
            options['type'] = 'InProcess' if alone else 'LocalProcesses'
        kind = EXECUTORS.get(str(options['type']).split('.')[-1])
        if kind is InProcess and options.pop('workers', 1) != 1:
            raise ConfigError('executor: InProcess runs one trial at a time. LocalProcesses runs several.')
        if kind is LocalProcesses:
            slots = gpu_slots(options.get('workers', 1), options.pop('gpus', None), options.pop('devices', None))
            options.update({'workers': options.get('workers', 1)}, **({} if slots is None else {'devices': slots}))
        if kind is not InProcess and 'command' not in self._content['trial']:
            options.setdefault('logs', str(self.folder / TRIALS))
        return build_executor(options)

    def _strategy(self, file: SearchSpaceFile) -> Strategy:
        given = self._objects.get('strategy', self._content.get('strategy', 'default'))
        if isinstance(given, Mapping) and 'tuner' in given:
            unknown = [key for key in given if key not in ('tuner', 'folder', 'options', 'unique')]
            if unknown:
                raise ConfigError(f'strategy: a tuner has no key {unknown[0]!r}.{near(unknown[0], ("folder", "options"))}')
            made = load(given['tuner'], given['folder'], 'strategy.tuner')
            return TunerStrategy(partial(made, **given.get('options', {})), file, unique=given.get('unique', False))
        return StrategyTuner(given).strategy

    def _constraints(self) -> tuple[Constraint, ...]:
        if 'constraints' in self._objects:
            return tuple(self._objects['constraints'])
        folder = self._content['trial']['folder']
        return tuple(
            Constraint(
                name, load(bound['function'], folder, f'constraints.{name}'), low=bound.get('low'), high=bound.get('high')
            )
            for name, bound in self._content.get('constraints', {}).items()
        )


def gpu_slots(workers: int, gpus: float | None, devices: Sequence[int | str] | None) -> list[str] | None:
    """Return what `CUDA_VISIBLE_DEVICES` is for each worker; None to leave it as it is.

    Args:
        workers: How many trials run at once.
        gpus: GPUs of each trial; 0 hides them all.
        devices: Those to use; by default all that this process sees.

    Raises:
        ConfigError: If there are too few.

    >>> gpu_slots(2, 2, [0, 1, 4, 5]), gpu_slots(2, 0, None)
    (['0,1', '4,5'], ['', ''])
    """
    if gpus is None and devices is None:
        return None
    each = 1 if gpus is None else gpus
    if each == 0:
        return [''] * workers
    if int(each) != each:
        raise ConfigError(f'executor.gpus: a part of a GPU ({each:g}) can be had with RayExecutor alone.')
    each = int(each)
    if devices is None:
        seen = os.environ.get('CUDA_VISIBLE_DEVICES')
        devices = [name for name in seen.split(',') if name] if seen is not None else list(range(torch.cuda.device_count()))
    if len(devices) < workers * each:
        raise ConfigError(
            f'executor.gpus: {workers} trials at once with {each} GPUs each need {workers * each}, not {len(devices)}.'
        )
    return [','.join(map(str, devices[worker * each : (worker + 1) * each])) for worker in range(workers)]


def stop_search(store: str | os.PathLike[str], name: str | None = None, how: str = FINISH) -> list[Process]:
    """Ask every process that works on a search as an experiment to stop, and return them.

    Args:
        store: Where the search is.
        name: Its name; may be left out where the store holds one search.
        how: `'finish'` lets trials end, `'now'` kills them; a resumed run does them again.

    Raises:
        StoreError: If there is no such search.
    """
    found = read_search(store, name)
    storage, _ = open_storage(store)
    try:
        return request_stop(storage, storage.get_study_id_from_name(found.name), check_stop(how))
    finally:
        close_storage(storage)


def _study(storage: Any, name: str, objectives: Mapping[str, str]) -> int:
    directions = [optuna.study.StudyDirection[direction.upper()] for direction in objectives.values()]
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        return storage.create_new_study(directions, name)
    except optuna.exceptions.DuplicatedStudyError:
        return storage.get_study_id_from_name(name)
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what this package logs to a file, too."""
    logger = logging.getLogger('strop')
    handler = logging.FileHandler(path, encoding='utf-8')
    handler.setFormatter(logging.Formatter('%(asctime)s %(process)d %(levelname)s %(message)s'))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.WARNING, logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()


def _log_trial(trial: Trial) -> None:
    _logger.info('trial %d %s %s', trial.number, trial.state, trial.values or hide_secrets(trial.error or ''))


def _is_object(key: str, value: Any) -> bool:
    if key == 'constraints':
        return not isinstance(value, Mapping)
    return (value is not None and not isinstance(value, (str, int, float, Mapping, os.PathLike))) or isinstance(value, Space)


def _as_data(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
