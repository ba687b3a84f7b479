"""Early stopping: a pruner of Optuna looks at what a trial reports on its way and says when to give it up.

A pruner is built anew for each decision and sees the stored trials alone, so that a resumed search decides as one
that was never broken.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any, Union

import optuna
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from strop.errors import ConfigError, listed, near

PrunerLike = Union[None, str, Mapping[str, Any], 'EarlyStopping']

#: Name -> class of `optuna.pruners`.
PRUNERS = {
    'median': 'MedianPruner',
    'percentile': 'PercentilePruner',
    'hyperband': 'HyperbandPruner',
    'successive_halving': 'SuccessiveHalvingPruner',
    'threshold': 'ThresholdPruner',
    'patient': 'PatientPruner',
    'wilcoxon': 'WilcoxonPruner',
}
# NNI's assessors: which pruner does the work, and how its options are called there.
_ASSESSORS = {'medianstop': ('median', {'start_step': 'n_warmup_steps'})}
_LEFT_OUT = ('optimize_mode',)


class EarlyStopping:
    """A pruner by its name, with its options.

    Args:
        pruner: A name of `PRUNERS`, a class name of `optuna.pruners`, or `'Medianstop'` as NNI calls its assessor.
        **options: Arguments of the pruner. Those of `'patient'` are `patience`, `min_delta` and `pruner`, the one that decides
            once patience has run out (any form that `EarlyStopping.of` takes; None to stop at once).

    Raises:
        ConfigError: If there is no such pruner, or an option does not fit it.

    The steps of reports count from 1, unless a trial gives them: a resource of n is spent at step n.

    References:
        Golovin et al., "Google Vizier: a service for black-box optimization", KDD 2017,
        https://doi.org/10.1145/3097983.3098043 (the median rule);
        Li et al., "Hyperband: a novel bandit-based approach to hyperparameter optimization", JMLR 2018,
        https://jmlr.org/papers/v18/16-558.html;
        Li et al., "A system for massively parallel hyperparameter tuning" (asynchronous successive halving), MLSys 2020,
        https://arxiv.org/abs/1810.05934.

    Differs from Optuna: with `max_resource='auto'` the brackets of hyperband follow from the longest complete trial so far
    at each decision, not from the one at its first decision.

    >>> EarlyStopping('median', n_startup_trials=3).to_dict()
    {'type': 'median', 'n_startup_trials': 3}
    """

    def __init__(self, pruner: str, /, **options: Any) -> None:
        self.name, self.options = _named(pruner, options)
        self.make()

    @classmethod
    def of(cls, pruner: PrunerLike) -> EarlyStopping | None:
        """Return the pruner that is meant by a name or by `{'type': name, option: value, ...}`; None for none.

        >>> EarlyStopping.of({'type': 'threshold', 'lower': 0.1}).name
        'threshold'
        """
        if pruner is None or isinstance(pruner, EarlyStopping):
            return pruner
        if isinstance(pruner, str):
            return cls(pruner)
        if isinstance(pruner, Mapping) and isinstance(pruner.get('type'), str):
            return cls(pruner['type'], **{str(key): value for key, value in pruner.items() if key != 'type'})
        hint = " Give Optuna's by name: {'type': 'median', option: value}." if isinstance(pruner, BasePruner) else ''
        raise ConfigError(f"`pruner` must be a name, or a mapping with 'type' and options, but got {pruner!r}.{hint}")

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the options, as `of` takes them."""
        return {'type': self.name, **self.options}

    def check(self, objectives: Mapping[str, str]) -> None:
        """Raise an error if a search for these objectives cannot stop trials early.

        Raises:
            ConfigError: If there are several.
        """
        if len(objectives) > 1:
            raise ConfigError(
                f'Early stopping compares one number per step, but this search has the objectives {listed(objectives)}. Leave '
                'the pruner out, or search for one objective and bound the others by constraints.'
            )

    def make(self) -> BasePruner:
        """Build the pruner."""
        options = dict(self.options)
        if self.name == 'patient':
            inner = EarlyStopping.of(options.pop('pruner', None))
            options['wrapped_pruner'] = None if inner is None else inner.make()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
            try:
                return getattr(optuna.pruners, PRUNERS[self.name])(**options)
            except ImportError as error:
                raise ConfigError(f'The pruner {self.name!r} needs a package that is not installed: {error}') from error
            except (TypeError, ValueError) as error:
                raise ConfigError(f'The pruner {self.name!r} cannot be built with {self.options}: {error}') from error

    def decide(self, storage: BaseStorage, study: int, trial: FrozenTrial) -> tuple[bool, dict[str, Any]]:
        """Tell whether a trial is to end.

        Args:
            storage: Where the other trials are.
            study: The study's id in it.
            trial: The trial as it stands, with what it has reported.

        Returns:
            The decision, and what the pruner wants to be written beside the report (the rungs of successive halving).
        """
        view = _View(storage, study, trial)
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                name = storage.get_study_name_from_id(study)
                pruner = self.make()
                stop = pruner.prune(optuna.Study(name, view, optuna.samplers.RandomSampler(0), pruner), trial)
        finally:
            optuna.logging.set_verbosity(level)
        return bool(stop), view.marks


def _named(pruner: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    classes = {name: short for short, name in PRUNERS.items()}
    given = dict(options)
    if pruner.lower() in _ASSESSORS:
        pruner, translation = _ASSESSORS[pruner.lower()]
        given = {translation.get(key, key): value for key, value in given.items() if key not in _LEFT_OUT}
    name = classes.get(pruner, pruner)
    if name not in PRUNERS:
        hint = near(pruner, [*PRUNERS, *classes])
        if pruner.lower() == 'curvefitting':
            hint = " NNI's curve fitting has no counterpart; nearest are 'median' and 'hyperband'."
        raise ConfigError(f'There is no pruner {pruner!r}.{hint} There are {listed(PRUNERS, 20)}.')
    known = [
        'pruner' if key == 'wrapped_pruner' else key
        for key in inspect.signature(getattr(optuna.pruners, PRUNERS[name])).parameters
    ]
    for option in given:
        if option not in known:
            raise ConfigError(f'The pruner {name!r} has no option {option!r}.{near(option, known)} It has {listed(known, 20)}.')
    return name, given


class _View(InMemoryStorage):
    """The study as a pruner shall see it: the trial under decision as it stands now, nothing left of earlier attempts at it.

    What the pruner writes is kept aside in `marks`.
    """

    def __init__(self, storage: BaseStorage, study: int, trial: FrozenTrial) -> None:
        super().__init__()
        self._real, self._trial, self._id = storage, trial, study
        self.marks: dict[str, Any] = {}

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._id

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._real.get_study_directions(study_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials: Sequence[FrozenTrial] = self._real.get_all_trials(study_id, deepcopy=False)
        seen = [self._trial if trial.number == self._trial.number else trial for trial in trials]
        return [trial for trial in seen if states is None or trial.state in states]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return BaseStorage.get_best_trial(self, study_id)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.marks[key] = value
