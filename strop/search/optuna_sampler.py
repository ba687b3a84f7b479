"""Optuna's samplers as strategies: TPE, NSGA-II, CMA-ES, Gaussian processes and all the others.

The sampler works on a study in memory that is rebuilt from the told trials; a new sampler is made for each
proposal, seeded by the search's seed and the trial's number.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Union

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, TrialState, create_trial

from strop.errors import ConfigError, MissingDependencyError, listed, near, try_import
from strop.mutables import Numeric, Ordered, Picks, Space, Subnet, chosen
from strop.randomness import counter_rng, derive_seed, seeded
from strop.search.strategy import Strategy, register_strategy
from strop.search.trial import Trial

SamplerLike = Union[str, Callable[[int], BaseSampler]]

# What these propose follows from the finished trials alone; the others keep a count or a generation in the study
# while they are asked, so that replaying them means asking again.
_STATELESS = frozenset({'RandomSampler', 'TPESampler', 'GPSampler'})
# These hand categorical parameters to a random sampler; as integers they search them.
_NUMERIC = frozenset({'CmaEsSampler', 'QMCSampler'})
# These list every combination of values.
_LISTING = frozenset({'GridSampler', 'BruteForceSampler'})
_LISTED = 10_000
_TRIES = 4


def sampler_names() -> list[str]:
    """Return the names of Optuna's samplers.

    >>> 'TPESampler' in sampler_names()
    True
    """
    return [name for name in optuna.samplers.__all__ if name.endswith('Sampler') and not name.startswith('Base')]


@register_strategy('optuna')
class OptunaStrategy(Strategy):
    """Any sampler of Optuna.

    Args:
        sampler: Name of a class of `optuna.samplers`, or a function seed -> sampler.
        unique: As in `Strategy`. A repeated or infeasible proposal is asked again a few times, then
            mutated; what the sampler learns of is what was evaluated.
        initial: As in `Strategy`.
        mutate: As in `Strategy`, for repeated proposals.
        **options: Arguments of the sampler.

    Raises:
        ConfigError: If there is no such sampler, or an option does not fit it.
        MissingDependencyError: If the sampler needs a package that is not installed.

    >>> from strop.mutables import OneOf, Space
    >>> from strop.search import run
    >>> space = Space({f'op{layer}': OneOf((0, 1, 2)) for layer in range(3)})
    >>> run(space, lambda subnet: sum(subnet.values()), strategy=OptunaStrategy('TPESampler'), trials=27).best.values
    {'score': 6.0}
    """

    def __init__(
        self,
        sampler: SamplerLike = 'TPESampler',
        *,
        unique: bool = True,
        initial: Any = (),
        mutate: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(unique=unique, initial=initial, mutate=mutate)
        if isinstance(sampler, str):
            if sampler not in sampler_names():
                names = sampler_names()
                raise ConfigError(f'Optuna has no sampler {sampler!r}.{near(sampler, names)} It has {listed(names, 20)}.')
            known = inspect.signature(getattr(optuna.samplers, sampler)).parameters
            for option in options:
                if option not in known:
                    raise ConfigError(f'{sampler} has no option {option!r}.{near(option, known)} It has {listed(known, 20)}.')
        elif not callable(sampler):
            raise ConfigError(f"`sampler` must be a sampler's name or a function of a seed, but got {sampler!r}.")
        elif options:
            raise ConfigError(f'Options go into the function that makes the sampler, but got {listed(options)} beside it.')
        self._sampler, self._options = sampler, options
        self._kind = sampler if isinstance(sampler, str) else ''

    def setup(self) -> None:
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(directions=list(self.objectives.values()))
        finally:
            optuna.logging.set_verbosity(level)
        # Grid and brute-force samplers stop a study that they have been through; when a search ends is the driver's part.
        self.study.stop = lambda: None  # type: ignore[method-assign]
        self._genes = _Genes(self.space, numeric=self._kind in _NUMERIC)
        self._open: dict[int, tuple[optuna.Trial, Subnet]] = {}
        endless = [key for key, domain in self.space.items() if max(domain.genes, default=1) > _LISTED]
        if self._kind in _LISTING and endless:
            raise ConfigError(
                f'{self._kind} lists every value, but {listed(endless)} have too many. Give them a law with bounds and a '
                "step ('quniform'), or take a sampler that draws, such as 'TPESampler'."
            )
        if self._kind == 'CmaEsSampler':
            try_import('cmaes', 'samplers')  # Optuna imports it late, in the middle of a search
        self.study.sampler = self._make(0)

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        for attempt in range(_TRIES):
            trial, start = self._ask(number, attempt)
            fits = self.is_new(start) and self.constraints.feasible(start)
            if fits and self._genes.agree(trial.params, start, exactly=self._kind in _STATELESS):
                self._open[number] = trial, start
                return start
            self.study.tell(trial, state=TrialState.FAIL)
            if fits:
                # k of n has several codes for one choice; the sampler shall learn of one.
                self._open[number] = self._enqueue(number, start), start
                return start
        subnet = self.new(lambda: self.mutate(start, rng) if start in self.seen else start, rng)
        if subnet is not None:
            self._open[number] = self._enqueue(number, subnet), subnet
        return subnet

    def observe(self, trial: Trial) -> None:
        opened = self._opened(trial)
        learns = trial.complete or (trial.stopped and bool(trial.reports))
        if opened is None and self._kind in _STATELESS:
            if learns:
                params, distributions = self._genes.of(trial.subnet)
                told: dict[str, Any] = {'intermediate_values': dict(trial.reports)}
                if trial.complete:
                    told['values'] = [(trial.values or {})[name] for name in self.objectives]
                else:
                    told['state'] = TrialState.PRUNED
                self.study.add_trial(create_trial(params=params, distributions=distributions, **told))
            return
        if opened is None:
            opened = self._ask_again(trial)
        if learns and len(self.objectives) == 1:
            for step, value in trial.reports.items():
                opened.report(value, step)
        if trial.complete:
            self.study.tell(opened, [(trial.values or {})[name] for name in self.objectives])
        elif learns:
            self.study.tell(opened, state=TrialState.PRUNED)
        else:
            self.study.tell(opened, state=TrialState.FAIL)

    def _ask_again(self, trial: Trial) -> optuna.Trial:
        # What the sampler keeps in the study while it is asked comes back by asking the same question again.
        if self.unique:
            self.seen.discard(trial.subnet)
        with seeded(self.seed, 'proposal', trial.number):
            subnet = self.propose(trial.number, counter_rng(self.seed, 'proposal', trial.number))
        opened = self._opened(trial)
        if opened is not None:
            return opened
        if subnet is not None:
            self._grid = None  # the scan has passed it, and it has not been seen
        return self._enqueue(trial.number, trial.subnet)

    def _opened(self, trial: Trial) -> optuna.Trial | None:
        """Return what was asked for a trial; None if it is not what became of that number, as another process had it first."""
        opened, subnet = self._open.pop(trial.number, (None, None))
        if opened is not None and subnet != trial.subnet:
            self.study.tell(opened, state=TrialState.FAIL)
            return None
        return opened

    def _ask(self, number: int, attempt: int = 0) -> tuple[optuna.Trial, Subnet]:
        self.study.sampler = self._make(derive_seed(self.seed, f'sampler {attempt}', number) % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            trial = self.study.ask()
            return trial, self._genes.suggest(trial)

    def _enqueue(self, number: int, subnet: Subnet) -> optuna.Trial:
        self.study.enqueue_trial(self._genes.of(subnet)[0])
        return self._ask(number)[0]

    def _make(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                if not isinstance(self._sampler, str):
                    made = self._sampler(seed)
                else:
                    cls = getattr(optuna.samplers, self._sampler)
                    options = dict(self._options)
                    if 'seed' in inspect.signature(cls).parameters:
                        options['seed'] = seed
                    if 'warn_independent_sampling' in inspect.signature(cls).parameters:
                        options.setdefault('warn_independent_sampling', False)
                    if self._sampler == 'GridSampler':
                        options.setdefault('search_space', self._genes.grid())
                    made = cls(**options)
            except ImportError as error:
                hint = "Install it with: pip install 'strop[samplers]'"
                raise MissingDependencyError(
                    f'{self._sampler} needs a package that is not installed ({error}). {hint}'
                ) from error
            except (TypeError, ValueError) as error:
                raise ConfigError(f'{self._sampler} cannot be built with {self._options}: {error}') from error
        if not isinstance(made, BaseSampler):
            raise ConfigError(f'`sampler` must make an Optuna sampler, but made {made!r}.')
        return made


@register_strategy('nsga2')
class NSGA2(OptunaStrategy):
    """NSGA-II, by Optuna: evolution by nondominated rank and crowding distance.

    Args:
        population: Members of a generation.
        **options: Arguments of `optuna.samplers.NSGAIISampler` and of `Strategy`.

    Reference:
        Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002,
        https://doi.org/10.1109/4235.996017.
    """

    def __init__(self, *, population: int = 50, **options: Any) -> None:
        super().__init__('NSGAIISampler', population_size=population, **options)


class _Genes:
    """Subnets as parameters of Optuna: for each decision, the integers that its domain encodes a choice by."""

    def __init__(self, space: Space, numeric: bool) -> None:
        self._space = space
        self._made: dict[str, list[tuple[str, BaseDistribution]]] = {}
        for key, domain in space.items():
            ordered = numeric or isinstance(domain, (Ordered, Numeric))
            self._made[key] = [
                (key if len(domain.genes) == 1 else f'{key}[{place}]', _distribution(size, ordered))
                for place, size in enumerate(domain.genes)
            ]

    def suggest(self, trial: optuna.Trial | FixedTrial) -> Subnet:
        choices: dict[str, Picks] = {}
        for key in self._space.order:
            if self._space.is_active(key, choices):
                genes = [_suggest(trial, name, distribution) for name, distribution in self._made[key]]
                choices[key] = self._space[key].decode(genes)
        return self._space.from_picks(choices)

    def of(self, subnet: Subnet) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        for key, choice in subnet.choices.items():
            genes = self._space[key].encode(chosen(choice))
            for (name, distribution), gene in zip(self._made[key], genes, strict=True):
                middle = 0.5 if isinstance(distribution, FloatDistribution) else 0
                params[name], distributions[name] = int(gene) + middle, distribution
        return params, distributions

    def agree(self, params: Mapping[str, Any], subnet: Subnet, exactly: bool) -> bool:
        """Tell whether these are the parameters that `of` gives.

        Of many codes the next one is as good, unless a resumed search tells what `of` gives where this one told these:
        what is proposed next would not be the same.
        """
        given, distributions = self.of(subnet)
        slack = {name: 2 if isinstance(kind, FloatDistribution) and not exactly else 0 for name, kind in distributions.items()}
        return set(params) == set(given) and all(abs(params[name] - value) <= slack[name] for name, value in given.items())

    def grid(self) -> dict[str, list[int]]:
        return {name: list(range(_size(distribution))) for made in self._made.values() for name, distribution in made}


def _distribution(size: int, ordered: bool) -> BaseDistribution:
    if size > _LISTED:
        # Samplers such as GPSampler list the values of an integer.
        return FloatDistribution(0.0, float(size))
    return IntDistribution(0, size - 1) if ordered else CategoricalDistribution(tuple(range(size)))


def _suggest(trial: optuna.Trial | FixedTrial, name: str, distribution: BaseDistribution) -> int:
    if isinstance(distribution, FloatDistribution):
        return int(min(trial.suggest_float(name, 0.0, distribution.high), distribution.high - 1))
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high)
    assert isinstance(distribution, CategoricalDistribution), 'genes are integers or categories'
    return int(trial.suggest_categorical(name, distribution.choices))  # type: ignore[arg-type]


def _size(distribution: BaseDistribution) -> int:
    if isinstance(distribution, IntDistribution):
        return distribution.high + 1
    assert isinstance(distribution, CategoricalDistribution), 'genes are integers or categories'
    return len(distribution.choices)
