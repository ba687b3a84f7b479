"""Greedy slimming: one decision is narrowed by one step at a time, the one that hurts least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from strop.errors import BudgetError, ConfigError
from strop.mutables import Ordered, Subnet
from strop.mutables.space import chosen
from strop.search.strategy import Strategy
from strop.search.trial import Trial


class GreedySlimming(Strategy):
    """The greedy search of AutoSlim.

    It starts at the largest subnet. In each round, every ordered decision (a width, a depth, ...) that is not at its least is
    narrowed by one step, in turn and alone; the best of these subnets is where the next round starts. The search ends when
    the subnet costs no more than the lowest target.

    Args:
        cost: Subnet -> what it costs, such as its MACs.
        targets: One cost to come down to, or several.
        per_cost: Judge a step by what it loses for each unit of cost that it saves, not by what is left. A step that saves
            next to nothing then has to lose next to nothing.
        **options: `unique`, see `Strategy`.

    Reference:
        Yu, Huang, "AutoSlim: Towards one-shot architecture search for channel numbers", 2019,
        https://arxiv.org/abs/1903.11728, section 3.

    Differs from the paper: `per_cost` is ours; a step that saves nothing (widths that are bound to each other) is skipped to
    the next one that does.

    >>> from strop.mutables import Space
    >>> from strop.search import run
    >>> space = Space({'a': Ordered((1, 2, 3)), 'b': Ordered((1, 2, 3))})
    >>> strategy = GreedySlimming(cost=lambda subnet: subnet['a'] * subnet['b'], targets=3)
    >>> result = run(space, lambda subnet: subnet['a'] + 2 * subnet['b'], strategy=strategy, trials=50)
    >>> [(trial.subnet['a'], trial.subnet['b']) for trial in strategy.path]
    [(3, 3), (2, 3), (1, 3)]
    >>> strategy.reached(3).subnet
    Subnet(a=1, b=3)
    """

    name = 'greedy'

    def __init__(
        self, *, cost: Callable[[Subnet], float] | None = None, targets: Any = None, per_cost: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        if not callable(cost):
            raise ConfigError(f'Greedy slimming needs `cost`, a function of a subnet such as its MACs, but got {cost!r}.')
        numbers = list(targets) if isinstance(targets, (list, tuple)) else [targets]
        if not numbers or not all(isinstance(n, (int, float)) and not isinstance(n, bool) and n > 0 for n in numbers):
            raise ConfigError(f'Greedy slimming needs `targets`, a positive cost or several, but got {targets!r}.')
        self.cost = cost
        self.per_cost = per_cost
        self.targets: Sequence[float] = tuple(sorted((float(number) for number in numbers), reverse=True))

    def setup(self) -> None:
        #: The trials that rounds started from.
        self.path: list[Trial] = []
        self._round = [self.space.extreme(largest=True)]
        self._results: dict[Subnet, Trial] = {}
        if self.constraints.bounded:
            raise ConfigError(
                'Greedy slimming begins at the largest subnet and narrows it, so it keeps no bounds of constraints: give them '
                'as `cost` and `targets`.'
            )
        least = self.space.extreme(largest=False)
        if self.cost(least) > self.targets[-1]:
            raise BudgetError(
                f'No subnet costs as little as {self.targets[-1]:g}: the smallest one costs {self.cost(least):g}. Raise the '
                'target, or give the decisions smaller alternatives.'
            )

    def observe(self, trial: Trial) -> None:
        self._results[trial.subnet] = trial
        while self._round and all(subnet in self._results for subnet in self._round):
            ranked = self.ranked(self._results[subnet] for subnet in self._round if self._results[subnet].complete)
            if not ranked:
                self._round = []
                return
            best = min(ranked, key=self._price) if self.per_cost and self.path else ranked[0]
            self.path.append(best)
            self._round = [] if self.cost(best.subnet) <= self.targets[-1] else list(self._narrower(best.subnet))

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        waiting = set(self.pending.values())
        return next((subnet for subnet in self._round if subnet not in self._results and subnet not in waiting), None)

    def reached(self, target: float) -> Trial | None:
        """Return the first subnet on the path that costs no more than `target`; None if the search didn't come so far."""
        return next((trial for trial in self.path if self.cost(trial.subnet) <= target), None)

    def _price(self, trial: Trial) -> float:
        """Return what a step from the present subnet loses for each unit of cost that it saves."""
        start = self.path[-1]
        return (self.losses(trial)[0] - self.losses(start)[0]) / (self.cost(start.subnet) - self.cost(trial.subnet))

    def _narrower(self, subnet: Subnet) -> Iterator[Subnet]:
        cost = self.cost(subnet)
        rng = np.random.default_rng(0)  # for decisions that a narrower choice makes active, of which widths have none
        for key, choice in subnet.choices.items():
            domain = self.space[key]
            if not isinstance(domain, Ordered):
                continue
            costs = domain.costs or tuple(range(len(domain)))
            here = costs[chosen(choice)[0]]
            for lower in sorted(
                (place for place in range(len(domain)) if costs[place] < here), key=lambda place: -costs[place]
            ):
                narrowed = self.space.replace(subnet, key, (lower,), rng)
                if self.cost(narrowed) < cost:
                    yield narrowed
                    break
