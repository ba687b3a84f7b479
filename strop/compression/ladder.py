"""Ladders: models from the whole one to the smallest, ordered by what they lose for the time that they save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from strop.estimators import WidthCosts
from strop.pruning import Ranking

#: The part of a layer's time that does not fall with its multiply-adds, before anything smaller was measured.
_FIXED = 0.15
#: A unit goes down in about so many steps.
_STEPS = 8


@dataclass(frozen=True)
class Worth:
    """What a unit or block costs, and what the model loses without parts of it.

    Args:
        name: The unit, or the path of the block.
        size: Its length; 0 for a block.
        milliseconds: Time of all layers whose size follows it.
        harm: Share that is cut -> how far the outputs are from the original's.
    """

    name: str
    size: int
    milliseconds: float
    harm: Mapping[float, float]

    def at(self, share: float) -> float:
        """Return the harm of cutting a share, between the measured ones by straight lines, never falling."""
        points = [(0.0, 0.0)]
        for cut, harm in sorted(self.harm.items()):
            points.append((cut, max(harm, points[-1][1])))
        for (left, low), (right, high) in pairwise(points):
            if share <= right:
                return low + (high - low) * (share - left) / (right - left)
        (left, low), (right, high) = points[-2:]
        # Beyond what was measured the harm rises at least as fast as before.
        return high + (share - right) * max((high - low) / (right - left), high / right) * 2


class Pricing:
    """The time of a whole model at any lengths, from times of its layers that were measured at some lengths.

    For each layer a curve, share of its multiply-adds -> share of its time, goes through what was measured, and never falls.
    Much of a layer's time may not shrink with it at all: kernels take channels by the sixteen, and starting them takes time.

    Args:
        costs: Multiply-adds of each layer at any lengths.
        times: Layer -> milliseconds in the whole model. A layer that is missing counts by its multiply-adds.
    """

    def __init__(self, costs: WidthCosts, times: Mapping[str, float]) -> None:
        self.costs = costs
        self.whole = costs.macs_by_module()
        total = sum(self.whole.values()) or 1
        mean = sum(times.values()) / total
        self.times = {name: times.get(name) or mean * macs for name, macs in self.whole.items()}
        self._points: dict[str, list[tuple[float, float]]] = {name: [(1.0, 1.0)] for name in self.times}

    def learn(self, lengths: Mapping[str, int], times: Mapping[str, float]) -> None:
        """Take in the times of the layers of a model of other lengths."""
        macs = self.costs.macs_by_module(lengths)
        for name, spent in times.items():
            share = macs.get(name, 0) / max(self.whole.get(name, 0), 1)
            if name in self.times and self.times[name] > 0 and 0 < share < 1:
                self._points[name].append((share, min(spent / self.times[name], 1.0)))

    def share(self, name: str, macs: float) -> float:
        """Return which share of its time a layer takes at a share of its multiply-adds."""
        points = sorted(self._points[name])
        if len(points) == 1:
            return _FIXED + (1 - _FIXED) * macs
        shares, times = zip(*points)
        return float(np.interp(macs, shares, np.maximum.accumulate(times)))

    def fixed(self) -> float:
        """Return the share of the time that the smallest sizes that were measured still take."""
        return sum(spent * self.share(name, 0.0) for name, spent in self.times.items()) / (sum(self.times.values()) or 1)

    def milliseconds(self, lengths: Mapping[str, int], removed: Sequence[str] = ()) -> float:
        """Return the predicted time."""
        macs = self.costs.macs_by_module(lengths)
        return sum(
            spent * self.share(name, macs.get(name, 0) / max(self.whole[name], 1))
            for name, spent in self.times.items()
            if not any(name == block or name.startswith(f'{block}.') for block in removed)
        )

    def inside(self, block: str) -> float:
        """Return the time of the layers of a block."""
        return sum(spent for name, spent in self.times.items() if name == block or name.startswith(f'{block}.'))


@dataclass(frozen=True)
class Rung:
    """One model of a ladder.

    Args:
        lengths: Unit -> length.
        removed: Blocks that are taken out.
        milliseconds: Predicted time.
        harm: Sum of what its cuts do alone.
        side: Short side of its images, in pixels; None if they are those that the model had.
    """

    lengths: Mapping[str, int]
    removed: tuple[str, ...]
    milliseconds: float
    harm: float
    side: int | None = None

    @property
    def key(self) -> str:
        """What tells rungs apart: equal models have equal keys."""
        return ', '.join(
            [
                *(f'{name} {length}' for name, length in self.lengths.items()),
                *(f'- {name}' for name in self.removed),
                *([] if self.side is None else [f'images of {self.side}']),
            ]
        )


def greedy_ladder(
    worths: Sequence[Worth], ranking: Ranking, pricing: Pricing, blocks: Sequence[str], depth_weight: float = 1.0
) -> list[Rung]:
    """Order models from the whole one to the smallest: each step has the least harm for the time that it saves.

    Args:
        worths: What units and blocks are worth.
        ranking: Which lengths may be.
        pricing: What time they take.
        blocks: Residual blocks that may go.
        depth_weight: What the harm of a block counts beside that of channels; infinite keeps all blocks.
    """
    graph, round_to = ranking.graph, ranking.selection.round_to
    sizes = {worth.name: worth.size for worth in worths if worth.size}
    by_name = {worth.name: worth for worth in worths}
    lengths = graph.fit({})
    removed: tuple[str, ...] = ()
    rungs = [Rung(lengths, removed, pricing.milliseconds(lengths), 0.0)]
    smallest = ranking.lengths(1.0)

    def shorter(name: str, now: int, steps: int) -> dict[str, int] | None:
        step = max(round_to, round(sizes[name] / _STEPS))
        step = math.ceil(step / round_to) * round_to if sizes[name] > round_to else 1
        wanted = max(((now - 1) // step - steps + 1) * step, smallest[name], graph.units[name].minimum)
        if wanted >= now:
            return None
        fitted = graph.fit({**lengths, name: wanted})
        # A tie may drag others along, but never below what they may lose.
        if fitted[name] >= now or any(value < smallest.get(other, 0) for other, value in fitted.items()):
            return None
        return fitted

    while True:
        last = rungs[-1]
        best: tuple[float, dict[str, int], tuple[str, ...], float, float] | None = None
        # Two steps at once may save what one does not, where kernels take channels by the sixteen.
        for name, steps in product(sizes, (1, 2)):
            fitted = shorter(name, lengths[name], steps)
            if fitted is None:
                continue
            spent = pricing.milliseconds(fitted, removed)
            saved = max(last.milliseconds - spent, 1e-6 * last.milliseconds)
            change = sum(
                by_name[other].at(1 - fitted[other] / sizes[other]) - by_name[other].at(1 - lengths[other] / sizes[other])
                for other in sizes
                if fitted[other] != lengths[other]
            )
            if best is None or change / saved < best[0]:
                best = change / saved, fitted, removed, spent, change
        for block in blocks:
            if block in removed or block not in by_name or math.isinf(depth_weight):
                continue
            without = (*removed, block)
            spent = pricing.milliseconds(lengths, without)
            saved = last.milliseconds - spent
            change = by_name[block].at(1.0)
            if saved > 1e-9 and (best is None or depth_weight * change / saved < best[0]):
                best = depth_weight * change / saved, dict(lengths), without, spent, change
        if best is None:
            return rungs
        _, lengths, removed, spent, change = best
        rungs.append(Rung(lengths, removed, spent, last.harm + change))


def uniform_ladder(worths: Sequence[Worth], ranking: Ranking, pricing: Pricing, steps: int = 24) -> list[Rung]:
    """Order models that take the same share from every unit, from none to all that may go; see `greedy_ladder`."""
    sizes = {worth.name: worth.size for worth in worths if worth.size}
    by_name = {worth.name: worth for worth in worths}
    rungs: list[Rung] = []
    for step in range(steps + 1):
        lengths = ranking.graph.fit({}) if step == 0 else ranking.lengths(step / steps)
        if rungs and lengths == rungs[-1].lengths:
            continue
        harm = sum(by_name[name].at(1 - lengths[name] / size) for name, size in sizes.items())
        rungs.append(Rung(lengths, (), pricing.milliseconds(lengths), harm))
    return rungs


__all__ = ['Pricing', 'Rung', 'Worth', 'greedy_ladder', 'uniform_ladder']
