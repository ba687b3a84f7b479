"""The protocol of search strategies, and the table of their names.

A strategy is asked for the subnet of trial *n* and told of finished trials. Its state is the trials that it
was told, in order, and nothing else: telling the same trials again restores it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, Union
from warnings import warn

import numpy as np

from strop.errors import BindingError, ConfigError, SpaceError, SubnetError, listed, near
from strop.mutables import Space, Subnet
from strop.search.constraints import Constraints
from strop.search.trial import Objectives, Trial, best_first, losses, parse_objectives

SubnetLike = Mapping[str, Any]

_SCAN_LIMIT = 100_000


class Strategy(ABC):
    """What proposes subnets. Override `propose`; `self.trials` holds the finished trials in the order told.

    Args:
        unique: Never propose a subnet twice (in canonical form).
        initial: Subnets to evaluate first; those that break a constraint are left out with a warning.
        sample: `() -> subnet`, replaces the uniform draw from the space.
        mutate: `subnet -> subnet`, replaces the redrawing of decisions.
        crossover: `(subnet, subnet) -> subnet`, replaces the uniform crossover.

    The callables may return a subnet in any form that `Space.subnet` reads (masks too), and may draw from the
    global generators of `random`, NumPy and torch: the driver seeds these for each proposal.

    >>> from strop.mutables import OneOf, Space
    >>> class First(Strategy):
    ...     def propose(self, number, rng):
    ...         return self.space.first()
    >>> First(unique=False).bind(Space({'kernel': OneOf((3, 5))})).ask(0, np.random.default_rng(0))
    Subnet(kernel=3)
    """

    name = 'strategy'

    def __init__(
        self,
        *,
        unique: bool = True,
        initial: Iterable[SubnetLike] = (),
        sample: Callable[[], SubnetLike] | None = None,
        mutate: Callable[[Subnet], SubnetLike] | None = None,
        crossover: Callable[[Subnet, Subnet], SubnetLike] | None = None,
    ) -> None:
        self.unique = unique
        self._given = tuple(initial)
        self._sample, self._mutate, self._crossover = sample, mutate, crossover
        self._bound = False

    def bind(
        self,
        space: Space,
        objectives: Objectives = 'maximize',
        *,
        seed: int = 0,
        constraints: Constraints | None = None,
    ) -> Strategy:
        """Tie the strategy to a question, forgetting any earlier one, and return it."""
        self.space = space
        self.objectives = parse_objectives(objectives)
        self.seed = seed
        self.constraints = constraints or Constraints()
        self.trials: list[Trial] = []
        self.seen: set[Subnet] = set()
        self.pending: dict[int, Subnet] = {}
        self._bound = True
        self._size: float | None = None
        self._grid: Iterator[Subnet] | None = None
        self.initial = tuple(self._admitted())
        self.setup()
        return self

    def setup(self) -> None:  # noqa: B027
        """Prepare for a new question; `space`, `objectives`, `seed` and `constraints` are set."""

    def ask(self, number: int, rng: np.random.Generator) -> Subnet | None:
        """Return the subnet of trial `number`, or None when the space has no further one.

        A function of the trials told so far, of those pending, of `number` and of `rng`.

        Raises:
            BudgetError: If no subnet meets the constraints.
        """
        if not self._bound:
            raise BindingError('A strategy must be bound to a space before it is asked: strategy.bind(space, objectives).')
        subnet = next((subnet for subnet in self.initial if subnet not in self.seen), None)
        if subnet is None and not (self.unique and len(self.seen) >= self.size):
            subnet = self.propose(number, rng)
        if subnet is not None:
            self.pend(number, subnet)
        return subnet

    @abstractmethod
    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        """Return a feasible subnet (an unseen one if `unique`), or None when there is none left."""

    def pend(self, number: int, subnet: Subnet) -> None:
        """Learn that `subnet` is being evaluated as trial `number`."""
        self.seen.add(subnet)
        self.pending[number] = subnet

    def tell(self, trial: Trial) -> None:
        """Learn of a finished trial, whether or not it was asked for here."""
        self.pending.pop(trial.number, None)
        self.observe(trial)
        self.seen.add(trial.subnet)
        self.trials.append(trial)

    def observe(self, trial: Trial) -> None:  # noqa: B027
        """Update the strategy's own state with a finished trial, before it joins `self.trials`."""

    # -- for subclasses --------------------------------------------------------------------

    @property
    def size(self) -> float:
        """Number of subnets of the space; infinite where counting them would take too long."""
        if self._size is None:
            try:
                self._size = self.space.count()
            except SpaceError:
                self._size = float('inf')
        return self._size

    def losses(self, trial: Trial) -> tuple[float, ...]:
        """Return a complete trial's values, all to be minimized."""
        return losses(trial, self.objectives)

    def ranked(self, trials: Iterable[Trial] | None = None) -> list[Trial]:
        """Return complete trials from best to worst."""
        return best_first(list(self.trials if trials is None else trials), self.objectives)

    def sample(self, rng: np.random.Generator) -> Subnet:
        """Draw a subnet, feasible or not."""
        return self.space.sample(rng) if self._sample is None else self._read(self._sample())

    def mutate(self, subnet: Subnet, rng: np.random.Generator, prob: float = 0.1) -> Subnet:
        """Redraw decisions of `subnet`, feasible or not; at least one, unless the user's operator says otherwise."""
        if self._mutate is not None:
            return self._read(self._mutate(subnet))
        return self.space.mutate(subnet, rng, prob, at_least_one=True)

    def crossover(self, first: Subnet, second: Subnet, rng: np.random.Generator) -> Subnet:
        """Mix two subnets, feasible or not."""
        if self._crossover is not None:
            return self._read(self._crossover(first, second))
        return self.space.crossover(first, second, rng)

    def is_new(self, subnet: Subnet) -> bool:
        """Whether `subnet` may be proposed as far as repetition goes."""
        return not self.unique or subnet not in self.seen

    def new(self, make: Callable[[], Subnet], rng: np.random.Generator, tries: int = 20) -> Subnet | None:
        """Return the first of `tries` results of `make` that is new and feasible, if need be after repair.

        Where none is, a random new one; None if there is none left.
        """
        for _ in range(tries):
            subnet = make()
            if not self.is_new(subnet):
                continue
            if not self.constraints.feasible(subnet):
                subnet, violation = self.constraints.repair(self.space, subnet, rng)
                if violation > 0 or not self.is_new(subnet):
                    continue
            return subnet
        return self.random(rng)

    def random(self, rng: np.random.Generator, tries: int = 50) -> Subnet | None:
        """Return a random feasible subnet that is new, or None if there is none left.

        Raises:
            BudgetError: If no subnet meets the constraints.
        """
        for _ in range(tries):
            subnet = self.constraints.draw(self.space, lambda: self.sample(rng), rng)
            if self.is_new(subnet):
                return subnet
        return self._scan() or self._nearby(rng)

    def _scan(self) -> Subnet | None:
        if self.size > _SCAN_LIMIT:
            return None
        # What the scan has passed is seen or infeasible for good, so it never starts again.
        self._grid = self.space.grid() if self._grid is None else self._grid
        for subnet in self._grid:
            if subnet not in self.seen and self.constraints.feasible(subnet):
                return subnet
        return None

    def _nearby(self, rng: np.random.Generator) -> Subnet | None:
        if self.size <= _SCAN_LIMIT:
            return None
        for trial in reversed(self.trials[-100:]):
            for subnet in self.space.neighbours(trial.subnet, rng):
                if subnet not in self.seen and self.constraints.feasible(subnet):
                    return subnet
        return None

    def _read(self, given: SubnetLike) -> Subnet:
        subnet = self.space.subnet(given)
        if subnet.weighted:
            raise SubnetError(f'A search works on choices, but this subnet holds a weighted mixture: {subnet!r}.')
        return subnet

    def _admitted(self) -> Iterator[Subnet]:
        for position, given in enumerate(self._given):
            try:
                subnet = self._read(given)
            except SubnetError as error:
                raise SubnetError(f'Initial subnet {position}: {error}') from None
            if self.constraints.feasible(subnet):
                yield subnet
            else:
                values = {key: f'{value:g}' for key, value in self.constraints.measured(subnet).items()}
                warn(f'Initial subnet {position} breaks a constraint and is left out: it has {values}.', stacklevel=4)


STRATEGIES: dict[str, type[Strategy]] = {}

StrategyType = TypeVar('StrategyType', bound=type[Strategy])
StrategyLike = Union[str, Strategy, type[Strategy], Mapping[str, Any]]


def register_strategy(name: str) -> Callable[[StrategyType], StrategyType]:
    """Return a class decorator that makes a strategy reachable as `name`.

    Raises:
        ConfigError: If the name is taken.
    """

    def register(cls: StrategyType) -> StrategyType:
        if STRATEGIES.setdefault(name, cls) is not cls:
            raise ConfigError(f'The strategy name {name!r} is taken by {STRATEGIES[name].__name__}.')
        cls.name = name
        return cls

    return register


def build_strategy(strategy: StrategyLike) -> Strategy:
    """Return the strategy that is meant: an instance, a class, a name, or `{'type': name, option: value, ...}`.

    Args:
        strategy: Names are those of `STRATEGIES`; the name of an Optuna sampler, such as `'TPESampler'`, works too.

    Raises:
        ConfigError: If there is no such strategy (near matches are named) or it lacks an option.

    >>> build_strategy({'type': 'regularized', 'population': 20}).name
    'regularized'
    """
    if isinstance(strategy, Strategy):
        return strategy
    options: dict[str, Any] = {}
    if isinstance(strategy, Mapping):
        options = {key: value for key, value in strategy.items() if key != 'type'}
        strategy = strategy.get('type', 'default')
    if isinstance(strategy, str):
        if strategy.endswith('Sampler'):
            options = {'sampler': strategy, **options}
            strategy = 'optuna'
        if strategy not in STRATEGIES:
            raise ConfigError(
                f'There is no strategy {strategy!r}.{near(strategy, STRATEGIES)} There are {listed(STRATEGIES, 20)}.'
            )
        strategy = STRATEGIES[strategy]
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        hint = (
            ' A tuner by the contract of NNI is given as TunerStrategy(tuner).'
            if hasattr(strategy, 'receive_trial_result')
            else ''
        )
        raise ConfigError(f'`strategy` must be a name, a Strategy or a mapping with `type`, but got {strategy!r}.{hint}')
    try:
        return strategy(**options)
    except TypeError as error:
        raise ConfigError(f'{strategy.__name__} cannot be built with {listed(options)}: {error}.') from None
