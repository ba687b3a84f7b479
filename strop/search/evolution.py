"""Evolution: SPOS's generations of mutations and crossovers of the best, and regularized (aging) evolution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from strop.errors import ConfigError
from strop.mutables import Subnet
from strop.search.strategy import Strategy, register_strategy
from strop.search.trial import Trial


@register_strategy('spos')
class SPOSEvolution(Strategy):
    """The evolution search of SPOS.

    A generation is `population` candidates: `mutations` of subnets drawn from the `top_k` best so far,
    then `crossovers` of pairs of them, then random ones. The first generation is random.

    Args:
        population: Candidates of a generation.
        top_k: How many of the best are parents.
        mutations: Mutations in a generation.
        crossovers: Crossovers in a generation.
        mutate_prob: Probability with which a mutation redraws each decision.
        synchronous: Begin a generation when all of the one before have ended, so that several workers make the trials of one;
            by default a worker that is free begins at once.
        **options: `unique`, `initial`, `sample`, `mutate`, `crossover`, see `Strategy`.

    Reference:
        Guo et al., "Single path one-shot neural architecture search with uniform sampling", 2020,
        https://arxiv.org/abs/1904.00420.

    Differs from the paper: a subnet is evaluated once; with several objectives the best are those of lowest
    nondominated rank, then of largest crowding distance.

    >>> from strop.mutables import OneOf, Space
    >>> from strop.search import run
    >>> space = Space({f'op{layer}': OneOf((0, 1, 2)) for layer in range(4)})
    >>> strategy = SPOSEvolution(population=10, top_k=3, mutations=5, crossovers=5)
    >>> run(space, lambda subnet: sum(subnet.values()), strategy=strategy, trials=60).best.values
    {'score': 8.0}
    """

    def __init__(
        self,
        *,
        population: int = 50,
        top_k: int = 10,
        mutations: int = 25,
        crossovers: int = 25,
        mutate_prob: float = 0.1,
        synchronous: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if population < 1 or top_k < 1 or mutations < 0 or crossovers < 0 or mutations + crossovers > population:
            raise ConfigError(
                'SPOS evolution needs population >= 1, top_k >= 1 and mutations + crossovers <= population, but got '
                f'population={population}, top_k={top_k}, mutations={mutations}, crossovers={crossovers}.'
            )
        if not 0 < mutate_prob <= 1:
            raise ConfigError(f'`mutate_prob` must be in (0, 1], but got {mutate_prob}.')
        self.population, self.top_k = population, top_k
        self.mutations, self.crossovers, self.mutate_prob = mutations, crossovers, mutate_prob
        self.synchronous = synchronous

    def setup(self) -> None:
        self._told: Counter[int] = Counter()
        self._known: tuple[int, int] = (0, 0)
        self._best: list[Trial] = []

    def observe(self, trial: Trial) -> None:
        self._told[trial.number // self.population] += 1

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        generation, place = divmod(number, self.population)
        if self.synchronous and any(pending < generation * self.population for pending in self.pending):
            return None
        parents = [trial.subnet for trial in self._parents(generation)]
        if not parents or place >= self.mutations + self.crossovers:
            return self.random(rng)
        if place < self.mutations:
            return self.new(lambda: self.mutate(parents[int(rng.integers(len(parents)))], rng, self.mutate_prob), rng)

        def mix() -> Subnet:
            first, second = (parents[int(index)] for index in rng.choice(len(parents), 2, replace=len(parents) < 2))
            return self.crossover(first, second, rng)

        return self.new(mix, rng)

    def _parents(self, generation: int) -> list[Trial]:
        if generation == 0:
            return []
        # Ranking thousands of trials takes longer than evaluating some: once for all proposals that see the same ones.
        known = generation, sum(count for earlier, count in self._told.items() if earlier < generation)
        if known != self._known:
            ranked = self.ranked(trial for trial in self.trials if trial.number < generation * self.population)
            self._known, self._best = known, ranked[: self.top_k]
        return self._best


@register_strategy('regularized')
class RegularizedEvolution(Strategy):
    """Regularized (aging) evolution: the winner of a tournament is mutated, the oldest member dies.

    Args:
        population: Living members; so many random subnets come first.
        sample_size: Members drawn for each tournament.
        mutate_prob: None to change exactly one decision of the winner; otherwise the probability with which each
            decision is redrawn (at least one changes).
        **options: `unique`, `initial`, `sample`, `mutate`, see `Strategy`.

    Reference:
        Real et al., "Regularized evolution for image classifier architecture search", 2019,
        https://arxiv.org/abs/1802.01548.

    Differs from the paper: a child always differs from its parent and, with `unique`, from every earlier subnet;
    the paper's population is 100 and its sample 25, for searches of 20,000 evaluations.

    >>> from strop.mutables import OneOf, Space
    >>> from strop.search import run
    >>> space = Space({f'op{layer}': OneOf((0, 1, 2)) for layer in range(4)})
    >>> strategy = RegularizedEvolution(population=10, sample_size=4)
    >>> run(space, lambda subnet: sum(subnet.values()), strategy=strategy, trials=60).best.values
    {'score': 8.0}
    """

    def __init__(self, *, population: int = 20, sample_size: int = 5, mutate_prob: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        if not 1 <= sample_size <= population:
            raise ConfigError(
                f'Regularized evolution needs 1 <= sample_size <= population, but got {sample_size} and {population}.'
            )
        self.population, self.sample_size, self.mutate_prob = population, sample_size, mutate_prob

    def setup(self) -> None:
        self._living: list[Trial] = []

    def observe(self, trial: Trial) -> None:
        if trial.complete:
            self._living = [*self._living, trial][-self.population :]

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        if len(self._living) + len(self.pending) < self.population or not self._living:
            return self.random(rng)
        count = min(self.sample_size, len(self._living))
        drawn = rng.choice(len(self._living), count, replace=False)
        winner = self.ranked([self._living[int(index)] for index in drawn])[0].subnet
        return self.new(lambda: self._child(winner, rng), rng)

    def _child(self, parent: Subnet, rng: np.random.Generator) -> Subnet:
        return self.mutate(parent, rng, self.mutate_prob or 0.0)
