"""Search without a memory: random draws, and every subnet in turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from strop.errors import BudgetError
from strop.mutables import Subnet
from strop.search.strategy import Strategy, register_strategy


@register_strategy('random')
class RandomSearch(Strategy):
    """Draws every active decision uniformly.

    Reference:
        Li and Talwalkar, "Random search and reproducibility for neural architecture search", 2019,
        https://arxiv.org/abs/1902.07638 (why it is the baseline to beat).

    >>> from strop.mutables import OneOf, Space
    >>> strategy = RandomSearch().bind(Space({'kernel': OneOf((3, 5))}))
    >>> rng = np.random.default_rng(0)
    >>> sorted(strategy.ask(number, rng)['kernel'] for number in range(2)), strategy.ask(2, rng)
    ([3, 5], None)
    """

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        return self.random(rng)


@register_strategy('grid')
class GridSearch(Strategy):
    """Takes every feasible subnet once, in the order of `Space.grid`.

    >>> from strop.mutables import OneOf, Space
    >>> strategy = GridSearch().bind(Space({'kernel': OneOf((3, 5))}))
    >>> [strategy.ask(number, np.random.default_rng(0)) for number in range(3)]
    [Subnet(kernel=3), Subnet(kernel=5), None]
    """

    def setup(self) -> None:
        self._walk: Iterator[Subnet] = self.space.grid()

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        for subnet in self._walk:
            if subnet not in self.seen and self.constraints.feasible(subnet):
                return subnet
        if not self.seen:
            self.constraints.draw(self.space, lambda: self.space.sample(rng), rng)
            raise BudgetError('No subnet of the space meets the constraints.')
        return None
