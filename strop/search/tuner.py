"""Tuners by NNI's contract: a user's own as a strategy of our search, and our strategies as tuners of another one.

A tuner is told the search space once, is asked for the parameters of each trial by a number, and is told what came of
them. `TunerStrategy` makes it a `Strategy`, so that one driver runs it; `StrategyTuner` is the way back.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Union

import numpy as np

from strop.errors import BudgetError, ComponentTypeError, ConfigError, SpaceError, StropError, SubnetError, listed, near
from strop.mutables import SearchSpaceFile, Subnet
from strop.mutables.search_space_file import SpaceLike
from strop.randomness import counter_rng, seeded
from strop.search.constraints import Constraint, Constraints
from strop.search.optuna_sampler import sampler_names
from strop.search.strategy import STRATEGIES, Strategy, StrategyLike, build_strategy
from strop.search.trial import COMPLETE, FAILED, Trial

_TRIES = 50


class NoMoreTrialError(StropError):
    """A tuner has no parameters to give: for good, or until one of the trials under way has ended."""


class TunerError(StropError, RuntimeError):
    """A tuner raised an error, or gave what is not in the search space."""


class OptimizeMode(Enum):
    """Whether the greatest or the smallest result is the best one."""

    Minimize = 'minimize'
    Maximize = 'maximize'


def extract_scalar_reward(value: Any, scalar_key: str = 'default') -> float:
    """Return the number of a result: the number itself, or what a mapping has under `scalar_key`.

    Raises:
        TunerError: If it is neither.

    >>> extract_scalar_reward({'default': 0.5, 'loss': 1.2})
    0.5
    """
    number = value.get(scalar_key) if isinstance(value, Mapping) else value
    if isinstance(number, bool) or not isinstance(number, (int, float, np.number)):
        raise TunerError(f'A result is a number, or a mapping with a number under {scalar_key!r}, but got {value!r}.')
    return float(number)


class ClassArgsValidator:
    """What NNI's tuners inherit to check their arguments before they are made; override `validate_class_args`.

    >>> ClassArgsValidator().choices('optimize_mode', 'maximize', 'minimize')('maximize')
    True
    """

    def validate_class_args(self, **kwargs: Any) -> None:
        """Raise an error if the arguments of the tuner break a rule."""

    def choices(self, key: str, *options: Any) -> Callable[[Any], bool]:
        """Return a check that a value is one of `options`."""
        return lambda value: value in options

    def range(self, key: str, kind: type[Any], start: float, end: float, **_: Any) -> Callable[[Any], bool]:
        """Return a check that a value is of a kind and within `start` and `end`."""
        return lambda value: isinstance(value, kind) and bool(start <= value <= end)

    def path(self, key: str) -> Callable[[Any], bool]:
        """Return a check that a value is the path of an existing file or folder."""
        return lambda value: os.path.exists(value)


class Tuner:
    """What NNI's tuners inherit: override `update_search_space`, `generate_parameters` and `receive_trial_result`.

    >>> class First(Tuner):
    ...     def update_search_space(self, search_space):
    ...         self.space = search_space
    ...
    ...     def generate_parameters(self, parameter_id, **kwargs):
    ...         return {key: entry['_value'][0] for key, entry in self.space.items()}
    ...
    ...     def receive_trial_result(self, parameter_id, parameters, value, **kwargs):
    ...         self.best = value
    >>> tuner = First()
    >>> tuner.update_search_space({'lr': {'_type': 'choice', '_value': [0.1, 0.01]}})
    >>> tuner.generate_multiple_parameters([0, 1])
    [{'lr': 0.1}, {'lr': 0.1}]
    """

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Learn the search space: key -> `{'_type': ..., '_value': ...}`. Called before anything else, and when it changes."""
        raise ConfigError(f'{type(self).__name__} must define update_search_space(search_space).')

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, Any]:
        """Return the parameters of one trial, key -> value.

        Raises:
            NoMoreTrialError: If there are none (now).
        """
        raise ConfigError(
            f'{type(self).__name__} must define generate_parameters(parameter_id, **kwargs) or '
            'generate_multiple_parameters(parameter_id_list, **kwargs).'
        )

    def generate_multiple_parameters(self, parameter_id_list: list[int], **kwargs: Any) -> list[dict[str, Any]]:
        """Return the parameters of several trials; fewer than asked where there are no more.

        Args:
            parameter_id_list: The numbers of the trials.
            **kwargs: `st_callback`, a function of a number and parameters, by which a tuner may send those of a number
                that it was asked for later, when a trial has ended.
        """
        result = []
        for parameter_id in parameter_id_list:
            try:
                result.append(self.generate_parameters(parameter_id, **_accepted(self.generate_parameters, kwargs)))
            except NoMoreTrialError:
                break
        return result

    def receive_trial_result(self, parameter_id: int, parameters: dict[str, Any], value: Any, **kwargs: Any) -> None:
        """Learn the final result of a trial: a number, or a mapping with the number under 'default'."""
        raise ConfigError(f'{type(self).__name__} must define receive_trial_result(parameter_id, parameters, value, **kwargs).')

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Learn that a trial has ended, after its result if it had one."""

    def import_data(self, data: list[dict[str, Any]]) -> None:
        """Learn results that were not asked for here: a list of `{'parameter': {...}, 'value': ...}`."""

    def _accept_customized_trials(self, accept: bool = True) -> None:
        """Nothing to do: results of trials that somebody added are always told, by `receive_trial_result`."""

    def load_checkpoint(self) -> None:
        """Nothing to do: the state of a search is the replay of its trials."""

    def save_checkpoint(self) -> None:
        """Nothing to do: the state of a search is the replay of its trials."""


TunerLike = Union[Any, Callable[[], Any]]


class TunerStrategy(Strategy):
    """A tuner written by NNI's contract, as a strategy of `strop.search.run`.

    The tuner gets the search space in NNI's form, then is asked and told as NNI's manager does it. Parameters that it
    sends later, by `st_callback`, are waited for while trials are under way; with `NoMoreTrialError` and no trial under
    way the search ends. On resuming, a fresh copy of the tuner goes through the finished trials: it is asked again, and
    if it proposes what was evaluated then, it is told the result by `receive_trial_result`, else by `import_data`. Tuners
    that draw from the global generators of `random`, NumPy or torch, or from generators of their own, come back the same.

    Args:
        tuner: A tuner, or a function (or class) that makes one. Of a tuner that is given, each search gets a copy.
        space: The search space as the tuner shall see it, where NNI's form says more than the `Space` that is searched, such
            as the names of inputs; by default it is made from that.
        unique: Never evaluate a subnet twice: a repeated proposal is told to have failed, and the tuner is asked again.
        **options: `initial`, see `Strategy`.

    Raises:
        ComponentTypeError: If `tuner` lacks a method of the contract.

    >>> from strop.mutables import OneOf, Space
    >>> from strop.search import run
    >>> space = Space({'kernel': OneOf((3, 5, 7))})
    >>> run(space, lambda subnet: subnet['kernel'], strategy=TunerStrategy(StrategyTuner('random')), trials=9).best.values
    {'score': 7.0}
    """

    name = 'tuner'

    def __init__(self, tuner: TunerLike, space: SpaceLike | None = None, *, unique: bool = False, **options: Any) -> None:
        super().__init__(unique=unique, **options)
        self._file = None if space is None else SearchSpaceFile.of(space)
        is_maker = isinstance(tuner, type) or (callable(tuner) and not hasattr(tuner, 'receive_trial_result'))
        self._make: Callable[[], Any] = tuner if is_maker else lambda: copy.deepcopy(tuner)
        made = tuner() if is_maker else tuner  # type: ignore[operator]
        for verbs in (('update_search_space',), _GENERATE, ('receive_trial_result',)):
            if not any(callable(getattr(made, verb, None)) for verb in verbs):
                raise ComponentTypeError(
                    f'A tuner has update_search_space, generate_parameters (or generate_multiple_parameters) and '
                    f'receive_trial_result, but {type(made).__name__} lacks {" and ".join(verbs)}.'
                )
        self.name = f'tuner {type(made).__name__}'

    def setup(self) -> None:
        self.file = self._file if self._file is not None else SearchSpaceFile.of(self.space)
        if set(self.file.space) != set(self.space):
            raise SpaceError(
                f'The search space of the tuner has the keys {listed(self.file.space)}, the search {listed(self.space)}.'
            )
        try:
            self.tuner = self._make()
        except Exception as error:
            raise TunerError(f'{self.name} cannot be copied for a search: {error}. Give a function that makes it.') from error
        self._next_id = 0
        self._asked: dict[int, None] = {}
        self._arrived: deque[tuple[int, dict[str, Any]]] = deque()
        self._ids: dict[int, tuple[int, dict[str, Any]]] = {}
        self._refused_at = -1
        with seeded(self.seed, 'tuner'):
            self._call('update_search_space', self.file.to_dict())

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        for _ in range(_TRIES):
            found = self._proposal()
            if found is None:
                return None
            parameter_id, parameters, subnet = found
            if self.is_new(subnet) and self.constraints.feasible(subnet):
                self._ids[number] = parameter_id, parameters
                return subnet
            self._end(parameter_id, success=False)
        raise BudgetError(
            f'{self.name} proposed {_TRIES} subnets in a row that {"repeat one or " if self.unique else ""}break a constraint. '
            'Take a tuner that knows the constraints, or one of the strategies here.'
        )

    def observe(self, trial: Trial) -> None:
        # A tuner that draws from the global generators when it is told shall draw the same after a restart.
        with seeded(self.seed, 'tuner', trial.number + 1):
            self._learn(trial)

    def _learn(self, trial: Trial) -> None:
        if trial.number in self._ids:
            parameter_id, parameters = self._ids.pop(trial.number)
            self._receive(parameter_id, parameters, trial)
            return
        if trial.subnet not in self.initial:
            found = self._replayed(trial)
            if found is not None and found[2] == trial.subnet:
                self._receive(found[0], found[1], trial)
                return
            if found is not None:
                self._end(found[0], success=False)
        if trial.complete:
            parameters = self.file.parameters(trial.subnet, complete=True)
            self._call('import_data', [{'parameter': parameters, 'value': self._value(trial)}], optional=True)

    # -- talking to the tuner ----------------------------------------------------------------

    def _proposal(self) -> tuple[int, dict[str, Any], Subnet] | None:
        """Return the next parameters that arrive, with their number; None if there are none now."""
        if not self._arrived and self._refused_at < len(self.trials):
            self._request()
        if not self._arrived:
            return None
        parameter_id, parameters = self._arrived.popleft()
        return parameter_id, parameters, self._read_proposal(parameter_id, parameters)

    def _request(self) -> None:
        parameter_id = self._next_id
        self._next_id += 1
        self._asked[parameter_id] = None
        try:
            if hasattr(self.tuner, 'generate_multiple_parameters'):
                given = self._call('generate_multiple_parameters', [parameter_id], st_callback=self._send)
            else:
                given = [self._call('generate_parameters', parameter_id, st_callback=self._send)]
        except NoMoreTrialError:
            given = []
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) > 1:
            raise TunerError(
                f'{self.name} must return a list of one mapping for one parameter id (or of none, for no more trials), but '
                f'returned {given!r}.'
            )
        if given:
            self._send(parameter_id, given[0])
        elif parameter_id in self._asked:
            # It is asked again when there is news: another finished trial.
            self._refused_at = len(self.trials)

    def _send(self, parameter_id: int, parameters: dict[str, Any]) -> None:
        if parameter_id not in self._asked:
            raise TunerError(f'{self.name} sent parameters for the number {parameter_id!r}, for which it was not asked.')
        del self._asked[parameter_id]
        self._arrived.append((parameter_id, parameters))

    def _read_proposal(self, parameter_id: int, parameters: Any) -> Subnet:
        try:
            subnet = self.file.subnet(parameters)
            subnet = self._read(subnet if self.file.space is self.space else dict(subnet))
        except SubnetError as error:
            raise TunerError(
                f'{self.name} proposed what is not in the search space, for the parameter id {parameter_id}: {error} It '
                f'proposed {parameters!r}.'
            ) from error
        return subnet

    def _replayed(self, trial: Trial) -> tuple[int, dict[str, Any], Subnet] | None:
        with seeded(self.seed, 'proposal', trial.number):
            while True:
                found = self._proposal()
                if found is None:
                    return None
                fresh = not self.unique or all(found[2] != told.subnet for told in self.trials)
                if found[2] == trial.subnet or (fresh and self.constraints.feasible(found[2])):
                    return found
                self._end(found[0], success=False)

    def _receive(self, parameter_id: int, parameters: dict[str, Any], trial: Trial) -> None:
        if trial.complete:
            job: dict[str, Any] = {'customized': False, 'trial_job_id': str(trial.number)}
            self._call('receive_trial_result', parameter_id, copy.deepcopy(parameters), self._value(trial), **job)
        self._end(parameter_id, trial.complete)

    def _end(self, parameter_id: int, success: bool) -> None:
        self._call('trial_end', parameter_id, success, optional=True)

    def _value(self, trial: Trial) -> Any:
        values = dict(trial.values or {})
        default = values.pop(next(iter(self.objectives)))
        more = {**values, **{key: value for key, value in trial.info.items() if key not in values}}
        return {'default': default, **more} if more else default

    def _call(self, verb: str, *args: Any, optional: bool = False, **kwargs: Any) -> Any:
        function = getattr(self.tuner, verb, None)
        if function is None and optional:
            return None
        try:
            return function(*args, **_accepted(function, kwargs))  # type: ignore[misc]
        except NoMoreTrialError:
            if 'generate' in verb:
                raise
            return None
        except StropError:
            raise
        except Exception as error:
            raise TunerError(
                f'{self.name} raised {type(error).__name__} in {verb}: {error}. The finished trials are in the store: '
                'the search goes on from there once the tuner is mended.'
            ) from error


_GENERATE = ('generate_parameters', 'generate_multiple_parameters')


class StrategyTuner(Tuner):
    """One of our strategies, or a sampler of Optuna, as a tuner by NNI's contract.

    Args:
        strategy: As in `strop.search.run`: a name, the name of an Optuna sampler, a mapping with options, or a `Strategy`;
            the names of NNI's own tuners in `NNI_TUNERS` are understood, too.
        optimize_mode: `'maximize'` or `'minimize'`.
        seed: Seed of all that is random.
        constraints: Bounds that every proposal meets.

    Raises:
        ConfigError: If there is no such strategy.

    >>> tuner = StrategyTuner('TPESampler', optimize_mode='minimize')
    >>> tuner.update_search_space({'lr': {'_type': 'loguniform', '_value': [0.001, 0.1]}})
    >>> for number in range(3):
    ...     parameters = tuner.generate_parameters(number)
    ...     tuner.receive_trial_result(number, parameters, parameters['lr'])
    >>> 0.001 <= tuner.best['lr'] <= 0.1
    True
    """

    def __init__(
        self,
        strategy: StrategyLike = 'default',
        optimize_mode: str = 'maximize',
        *,
        seed: int = 0,
        constraints: Iterable[Constraint] = (),
    ) -> None:
        mode = OptimizeMode(optimize_mode).value if isinstance(optimize_mode, OptimizeMode) else optimize_mode
        if mode not in ('maximize', 'minimize'):
            raise ConfigError(f"`optimize_mode` is 'maximize' or 'minimize', but got {optimize_mode!r}.")
        self.optimize_mode, self.seed = mode, seed
        self.strategy = build_strategy(_named(strategy))
        self._constraints = tuple(constraints)
        self.file: SearchSpaceFile | None = None
        self._known: list[Trial] = []
        self._open: dict[Any, Trial] = {}
        self._ended: set[Any] = set()
        self._next = 0

    def update_search_space(self, search_space: Mapping[str, Any]) -> None:
        """Start on a search space, or go on with a changed one: results that fit it are kept.

        Raises:
            SpaceError: If an entry of it breaks a rule.
        """
        self.file = SearchSpaceFile.of(search_space)
        self.strategy.bind(
            self.file.space, self.optimize_mode, seed=self.seed, constraints=Constraints([*self._constraints, *self.bounds()])
        )
        kept, self._known = self._known, []
        for trial in kept:
            try:
                subnet = self.file.space.subnet(dict(trial.subnet))
            except SubnetError:
                continue
            self._tell(Trial(trial.number, subnet, trial.state, trial.values))
        self._open = {}

    def bounds(self) -> Iterable[Constraint]:
        """Return further constraints, once the search space is known; for sub-classes."""
        return ()

    def generate_parameters(self, parameter_id: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the parameters of a trial.

        Raises:
            NoMoreTrialError: If the search space has been gone through.
        """
        file = self._space()
        number = self._next
        with seeded(self.seed, 'proposal', number):
            subnet = self.strategy.ask(number, counter_rng(self.seed, 'proposal', number))
        if subnet is None:
            raise NoMoreTrialError(f'{self.strategy.name} has proposed every subnet of the search space.')
        self._next += 1
        self._open[parameter_id] = Trial(number, subnet)
        return file.parameters(subnet, complete=True)

    def receive_trial_result(self, parameter_id: Any, parameters: Mapping[str, Any], value: Any, **kwargs: Any) -> None:
        """Learn a result. One that is not a finite number counts as a failure, a second one for the same trial not at all."""
        file = self._space()
        if parameter_id in self._ended:
            warnings.warn(f'The trial {parameter_id!r} has a result already; {value!r} is left out.', stacklevel=2)
            return
        if parameter_id not in self._open:
            # Added by hand, or asked for before the search space changed.
            try:
                self._open[parameter_id] = Trial(self._next, file.subnet(parameters))
            except SubnetError as error:
                warnings.warn(f'The result of {parameter_id!r} is left out: {error}', stacklevel=2)
                return
            self._next += 1
        trial = self._open.pop(parameter_id)
        self._ended.add(parameter_id)
        self._tell(_finished(trial, value, parameter_id))

    def trial_end(self, parameter_id: Any, success: bool, **kwargs: Any) -> None:
        """Learn that a trial has ended; one without a result has failed."""
        trial = self._open.pop(parameter_id, None)
        if trial is not None:
            self._ended.add(parameter_id)
            self._tell(Trial(trial.number, trial.subnet, FAILED, error='ended without a result'))

    def import_data(self, data: Iterable[Mapping[str, Any]]) -> None:
        """Learn results of another search; those that do not fit the search space are left out with a warning.

        Raises:
            ComponentTypeError: If an entry is no mapping with 'parameter' and 'value'.
        """
        file = self._space()
        for entry in data:
            if not isinstance(entry, Mapping) or not {'parameter', 'value'} <= set(entry):
                raise ComponentTypeError(f"Data to import is a list of {{'parameter': ..., 'value': ...}}, but has {entry!r}.")
            try:
                subnet = file.subnet(entry['parameter'])
            except SubnetError as error:
                warnings.warn(f'Imported data is left out: {error}', stacklevel=2)
                continue
            self._tell(_finished(Trial(self._next, subnet), entry['value'], 'imported'))
            self._next += 1

    @property
    def best(self) -> dict[str, Any] | None:
        """The parameters of the best result so far; None before any."""
        ranked = self.strategy.ranked() if self.file is not None else []
        return self._space().parameters(ranked[0].subnet) if ranked else None

    def _tell(self, trial: Trial) -> None:
        self._known.append(trial)
        self.strategy.tell(trial)

    def _space(self) -> SearchSpaceFile:
        if self.file is None:
            raise ConfigError(f'{type(self).__name__} needs update_search_space(search_space) first.')
        return self.file


#: Name of a tuner that came with NNI -> the strategy that does its work here, with NNI's own settings.
NNI_TUNERS: dict[str, dict[str, Any]] = {
    'Random': {'type': 'random'},
    'GridSearch': {'type': 'grid'},
    'TPE': {'type': 'TPESampler'},
    'GPTuner': {'type': 'GPSampler'},
    'Evolution': {'type': 'regularized', 'population': 32},
    'RegularizedEvolutionTuner': {'type': 'regularized', 'population': 100, 'sample_size': 25},
    'SPOSEvolution': {'type': 'spos', 'population': 50, 'top_k': 10, 'mutations': 25, 'crossovers': 25, 'mutate_prob': 0.1},
    'PPOTuner': {'type': 'policy'},
}
_NNI_OPTIONS = {
    'population_size': 'population',
    'num_population': 'population',
    'num_select': 'top_k',
    'num_mutation': 'mutations',
    'num_crossover': 'crossovers',
    'm_prob': 'mutate_prob',
}


def _accepted(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that a function takes: tuners written before NNI 1.0 take none."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return dict(options)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return dict(options)
    return {name: value for name, value in options.items() if name in known}


def tuner_names() -> list[str]:
    """Return every name that `StrategyTuner` takes, without NNI's own.

    >>> {'random', 'spos', 'TPESampler'} <= set(tuner_names())
    True
    """
    return [*STRATEGIES, *sampler_names()]


def _named(strategy: StrategyLike) -> StrategyLike:
    """Return what `build_strategy` understands, for the names and the options of NNI's tuners, too."""
    if isinstance(strategy, str):
        strategy = {'type': strategy}
    if not isinstance(strategy, Mapping) or not isinstance(strategy.get('type'), str):
        return strategy
    name = strategy['type']
    if name in NNI_TUNERS:
        given = {_NNI_OPTIONS.get(option, option): value for option, value in strategy.items() if option != 'type'}
        return {**NNI_TUNERS[name], **given}
    if name not in STRATEGIES and not name.endswith('Sampler'):
        names = [*tuner_names(), *NNI_TUNERS]
        raise ConfigError(f'There is no tuner {name!r}.{near(name, names)} There are {listed(names, 30)}.')
    return strategy


def _finished(trial: Trial, value: Any, name: Any) -> Trial:
    try:
        number = extract_scalar_reward(value)
    except TunerError as error:
        number, reason = math.nan, str(error)
    else:
        reason = f'the result is {number}, which is no finite number'
    if math.isfinite(number):
        return Trial(trial.number, trial.subnet, COMPLETE, {'score': number})
    warnings.warn(f'The trial {name!r} counts as failed: {reason}', stacklevel=3)
    return Trial(trial.number, trial.subnet, FAILED, error=reason)
