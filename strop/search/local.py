"""Local search: move to the first better neighbour, and start anew where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from strop.mutables import Subnet
from strop.randomness import counter_rng
from strop.search.strategy import Strategy, register_strategy
from strop.search.trial import Trial


@register_strategy('local')
class LocalSearch(Strategy):
    """First-improvement hill climbing with random restarts.

    The neighbours of a subnet differ from it in one decision; they are tried in random order, and the first one
    that is better becomes the new centre. With several objectives each climb minimizes its own random weighting of
    them (augmented Chebyshev, after scaling to the range seen so far).

    Args:
        **options: `unique`, `initial`, `sample`, see `Strategy`.

    Reference:
        White et al., "Local search is state of the art for neural architecture search benchmarks", 2020,
        https://arxiv.org/abs/2005.02960.

    Differs from the paper: neighbours that were evaluated in an earlier climb are not evaluated again.

    >>> from strop.mutables import OneOf, Space
    >>> from strop.search import run
    >>> space = Space({f'op{layer}': OneOf((0, 1, 2)) for layer in range(4)})
    >>> run(space, lambda subnet: sum(subnet.values()), strategy=LocalSearch(), trials=40).best.values
    {'score': 8.0}
    """

    def setup(self) -> None:
        self._centre: Trial | None = None
        self._climb = 0
        self._left: list[Subnet] | None = None

    def observe(self, trial: Trial) -> None:
        if self._centre is not None and self._next() is None and trial.subnet not in self._around():
            self._centre = None
        if not trial.complete:
            return
        if self._centre is None:
            self._centre, self._climb, self._left = trial, trial.number, None
        elif self._better(trial, self._centre):
            self._centre, self._left = trial, None

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        return self._next() or self.random(rng)

    def _around(self) -> list[Subnet]:
        if self._left is None:
            assert self._centre is not None, 'set before neighbours are asked for'
            # Drawn from the centre's number, so that a resumed search walks the same way.
            rng = counter_rng(self.seed, 'neighbours', self._centre.number)
            found = list(self.space.neighbours(self._centre.subnet, rng))
            self._left = [found[int(index)] for index in rng.permutation(len(found))]
        return self._left

    def _next(self) -> Subnet | None:
        if self._centre is None:
            return None
        return next(self._untried(), None)

    def _untried(self) -> Iterator[Subnet]:
        for subnet in self._around():
            if subnet not in self.seen and self.constraints.feasible(subnet):
                yield subnet

    def _better(self, trial: Trial, centre: Trial) -> bool:
        if len(self.losses(trial)) == 1:
            return self.losses(trial)[0] < self.losses(centre)[0]
        # Both on the scale of the same points, the new one among them.
        points = np.array([self.losses(other) for other in [*self.trials, trial] if other.complete])
        low, high = points.min(0), points.max(0)
        weights = counter_rng(self.seed, 'weights', self._climb).dirichlet(np.ones(len(low)))
        weighted = weights * (np.array([self.losses(trial), self.losses(centre)]) - low) / np.where(high > low, high - low, 1.0)
        costs = weighted.max(1) + 0.05 * weighted.sum(1)
        return bool(costs[0] < costs[1])
