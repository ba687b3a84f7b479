"""The default strategy: climbs guided by a small Gaussian process over the decisions, with restarts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from strop.errors import ConfigError
from strop.mutables import Numeric, Ordered, Space, Subnet, chosen
from strop.randomness import counter_rng
from strop.search.strategy import Strategy, register_strategy
from strop.search.trial import Trial

_LENGTHS = (2.0, 4.0, 8.0)
_ADDITIVE = (0.0, 0.5, 0.9)
_NOISES = (1e-3, 1e-1)
_NEIGHBOUR_LIMIT = 300
_CHUNK = 16
_LEVELS = 1000


@register_strategy('default')
class SurrogateSearch(Strategy):
    r"""Thompson sampling from a Gaussian process, over the neighbourhood of the best subnets of the current climb.

    The process has the kernel :math:`(1-a)\,e^{-d} + a\,(1-d/\theta)` on the scaled Hamming distance
    :math:`d(x, y) = \theta/D \sum_i [x_i \ne y_i]` over *D* decisions, fitted to the normal scores of the values.
    :math:`\theta`, the additive part *a* and the noise are those of the highest marginal likelihood on a small grid.
    Candidates are the neighbours of the climb's best subnets, mutations and crossovers of them, and random subnets.
    A climb that has not improved for `patience` trials ends; the next one starts from random subnets, with all that
    the process has learnt. With several objectives each proposal minimizes its own random weighting of their ranks.

    Args:
        first: Random subnets before the first fit.
        restart: Random subnets at the start of each later climb.
        patience: Trials without improvement that end a climb; None for two a decision, but at least 15.
        top: How many of a climb's best subnets the candidates come from.
        points: Most trials that the process is fitted to: the better half of that number, then the latest.
        **options: `unique`, `initial`, `sample`, `mutate`, `crossover`, see `Strategy`. With a `mutate` of your own
            the candidates come from it, not from the neighbours.

    Reference:
        White et al., "BANANAS: Bayesian optimization with neural architectures for neural architecture search", 2021,
        https://arxiv.org/abs/1910.11858 (a surrogate, Thompson sampling, candidates by mutating the best);
        Eriksson et al., "Scalable global optimization via local Bayesian optimization", 2019,
        https://arxiv.org/abs/1910.01739 (local searches that restart); Knowles, "ParEGO", 2006,
        https://doi.org/10.1109/TEVC.2005.851274 (random weightings).

    Differs from the papers: the surrogate is a Gaussian process on the decisions themselves, its samples are drawn for
    each candidate on its own, and ranks stand in for values.

    >>> from strop.mutables import OneOf
    >>> from strop.search import run
    >>> space = Space({f'op{layer}': OneOf((0, 1, 2)) for layer in range(5)})
    >>> run(space, lambda subnet: sum(subnet.values()), trials=40).best.values
    {'score': 10.0}
    """

    def __init__(
        self, *, first: int = 10, restart: int = 5, patience: int | None = None, top: int = 5, points: int = 150, **options: Any
    ) -> None:
        super().__init__(**options)
        smallest = min(first, restart, top, 1 if patience is None else patience)
        if smallest < 1 or first < 2 or points < 10:
            raise ConfigError(
                'The default strategy needs first >= 2, restart, patience and top >= 1 and points >= 10, but got '
                f'first={first}, restart={restart}, patience={patience}, top={top}, points={points}.'
            )
        self.first, self.restart, self.patience, self.top, self.points = first, restart, patience, top, points

    def setup(self) -> None:
        self._coding = _Coding(self.space)
        self._done: list[Trial] = []
        self._rows: list[np.ndarray] = []
        self._start = 0
        self._best = 0
        self._fitted: tuple[int, tuple[float, float, float]] = (0, (_LENGTHS[0], _ADDITIVE[0], _NOISES[0]))
        self._around: dict[int, tuple[list[Subnet], np.ndarray]] = {}

    def observe(self, trial: Trial) -> None:
        if not trial.complete:
            return
        self._done.append(trial)
        self._rows.append(self._coding.row(trial.subnet))
        if len(self.objectives) > 1:
            return
        last = len(self._done) - 1
        if last == self._start or self.losses(trial) < self.losses(self._done[self._best]):
            self._best = last
        patience = max(15, 2 * len(self.space)) if self.patience is None else self.patience
        if last - self._best >= max(patience, self.restart if self._start else self.first):
            self._start = self._best = last + 1
            self._around.clear()

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        climb = len(self._done) - self._start
        if climb < (self.restart if self._start else self.first):
            return self.random(rng)
        scores = self._scores(len(self._done), rng)
        recent = np.argsort(-scores[self._start :], kind='stable')[: self.top]
        parents = [self._done[self._start + int(index)] for index in recent]
        candidates, rows = self._candidates(parents, rng)
        if not candidates:
            return self.random(rng)
        mean, deviation = self._predict(scores, rows)
        drawn = mean + deviation * rng.standard_normal(len(candidates))
        order = np.argsort(-drawn, kind='stable')
        for start in range(0, len(order), _CHUNK):
            chunk = [candidates[int(index)] for index in order[start : start + _CHUNK]]
            for subnet, violation in zip(chunk, self.constraints.violations(chunk), strict=True):
                if violation == 0:
                    return subnet
        return self.new(lambda: self.mutate(parents[0].subnet, rng), rng)

    # -- the model -------------------------------------------------------------------------

    def _scores(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return the normal scores of the first `count` complete trials: the larger, the better."""
        points = np.array([self.losses(trial) for trial in self._done[:count]])
        if points.shape[1] == 1:
            return _normal_scores(-points[:, 0])
        # Ranks make objectives of any scale comparable.
        ranks = np.stack([_ranks(column) for column in points.T], 1) / max(count - 1, 1)
        weights = rng.dirichlet(np.ones(points.shape[1]))
        return _normal_scores(-((weights * ranks).max(1) + 0.05 * (weights * ranks).sum(1)))

    def _kept(self, scores: np.ndarray) -> np.ndarray:
        count = len(scores)
        if count <= self.points:
            return np.arange(count)
        best = np.argsort(-scores, kind='stable')[: self.points // 2]
        latest = [index for index in range(count - 1, -1, -1) if index not in set(best.tolist())]
        return np.sort(np.concatenate([best, latest[: self.points - len(best)]])).astype(int)

    def _predict(self, scores: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array(self._rows)
        # Fitted on the trials up to the last multiple of ten, so that a resumed search fits the same.
        mark = max(len(scores) // 10 * 10, min(len(scores), self.first))
        if self._fitted[0] != mark:
            past = self._scores(mark, counter_rng(self.seed, 'weights', mark))
            kept = self._kept(past)
            grid = [(length, additive, noise) for length in _LENGTHS for additive in _ADDITIVE for noise in _NOISES]
            distance = self._coding.distance(rows[kept], rows[kept])
            fits = [_Process(distance, past[kept], *settings).likelihood for settings in grid]
            self._fitted = (mark, grid[int(np.argmax(fits))])
        kept = self._kept(scores)
        known, values = rows[kept], scores[kept]
        if self.pending:
            # A trial under way counts as a middling one, so that others are not sent to the same place.
            waiting = np.array([self._coding.row(subnet) for subnet in self.pending.values()])
            known, values = np.concatenate([known, waiting]), np.concatenate([values, np.zeros(len(waiting))])
        process = _Process(self._coding.distance(known, known), values, *self._fitted[1])
        return process.predict(self._coding.distance(candidates, known))

    # -- the candidates --------------------------------------------------------------------

    def _candidates(self, parents: Sequence[Trial], rng: np.random.Generator) -> tuple[list[Subnet], np.ndarray]:
        found: dict[Subnet, np.ndarray] = {}
        if self._mutate is None:
            for parent in parents:
                subnets, rows = self._neighbours(parent)
                found.update(zip(subnets, rows, strict=True))
        drawn = []
        rate = min(1.0, 2.0 / max(len(parents[0].subnet), 1))
        for _ in range(40 if self._mutate is None else 200):
            drawn.append(self.mutate(parents[int(rng.integers(len(parents)))].subnet, rng, rate))
        for _ in range(10):
            first, second = (parents[int(index)].subnet for index in rng.integers(len(parents), size=2))
            drawn.append(self.crossover(first, second, rng))
        drawn.extend(self.sample(rng) for _ in range(10))
        for subnet in drawn:
            if subnet not in found:
                found[subnet] = self._coding.row(subnet)
        kept = [subnet for subnet in found if self.is_new(subnet)]
        return kept, np.array([found[subnet] for subnet in kept])

    def _neighbours(self, parent: Trial) -> tuple[list[Subnet], np.ndarray]:
        if parent.number not in self._around:
            rng = counter_rng(self.seed, 'neighbours', parent.number)
            if self._coding.neighbours <= _NEIGHBOUR_LIMIT:
                subnets = list(self.space.neighbours(parent.subnet, rng))
            else:
                subnets = [self.space.mutate(parent.subnet, rng, 0.0, at_least_one=True) for _ in range(_NEIGHBOUR_LIMIT)]
            self._around[parent.number] = subnets, np.array([self._coding.row(subnet) for subnet in subnets])
        return self._around[parent.number]


class _Coding:
    """Subnets as rows of numbers, and the distance between rows.

    A single choice is one column, a multiple one a 0/1 column for each alternative, and the decision weighs 1 in
    all. Half the weight of an ordered decision is on how far apart the choices are, all of it where the choice is a
    number, measured in probability. An inactive decision is -1.
    """

    def __init__(self, space: Space) -> None:
        weights: list[float] = []
        scales: list[float] = []
        self._columns: list[tuple[str, int]] = []
        self._numbers = {key: domain for key, domain in space.items() if isinstance(domain, Numeric)}
        self.neighbours = 0
        for key, domain in space.items():
            if key in self._numbers:
                weights.append(0.0)
                scales.append(1.0 / _LEVELS)
                self._columns.append((key, 0))
                self.neighbours += len(list(domain.neighbours(domain.first())))
            elif domain.genes == (len(domain),):
                ordered = isinstance(domain, Ordered) and len(domain) > 2
                weights.append(0.5 if ordered else 1.0)
                scales.append(0.5 / len(domain) if ordered else 0.0)
                self._columns.append((key, 0))
                self.neighbours += len(domain) - 1
            else:
                weights += [1.0 / len(domain)] * len(domain)
                scales += [0.0] * len(domain)
                self._columns.append((key, len(domain)))
                self.neighbours += len(domain) ** 2
        self.weights = np.array(weights) / max(len(space), 1)
        self.scales = np.array(scales) / max(len(space), 1)
        self.ordered = np.flatnonzero(self.scales)

    def row(self, subnet: Subnet) -> np.ndarray:
        """Return the row of a subnet, of shape `(columns,)`."""
        row: list[int] = []
        choices = subnet.choices
        for key, width in self._columns:
            choice = choices.get(key)
            if key in self._numbers and choice is not None:
                row.append(round(self._numbers[key].level(chosen(choice)[0]) * _LEVELS))
            elif not width:
                row.append(-1 if choice is None else int(choice[0]))
            else:
                row += [-1] * width if choice is None else [int(index in choice) for index in range(width)]
        return np.array(row, dtype=np.int16)

    def distance(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the distances between rows, from 0 to 1, of shape `(left, right)`."""
        result = (left[:, None, :] != right[None, :, :]) @ self.weights
        if len(self.ordered):
            gaps = np.abs(left[:, None, self.ordered] - right[None][:, :, self.ordered])
            result = result + gaps @ self.scales[self.ordered]
        return result


class _Process:
    """A Gaussian process with fixed settings, scaled to the amplitude of highest likelihood.

    Args:
        distance: Distances between the known points, of shape `(points, points)`.
        scores: Their values.
    """

    def __init__(self, distance: np.ndarray, scores: np.ndarray, length: float, additive: float, noise: float) -> None:
        self._length, self._additive = length, additive
        self._mean = float(scores.mean())
        kernel = torch.from_numpy(self._kernel(distance))
        kernel.diagonal().add_(noise + 1e-6)
        self._lower = torch.linalg.cholesky(kernel)
        half = torch.linalg.solve_triangular(self._lower, torch.from_numpy(scores - self._mean)[:, None], upper=False)
        self._solved = torch.linalg.solve_triangular(self._lower.T, half, upper=True)[:, 0].numpy()
        self._amplitude = max(float((half * half).mean()), 1e-12)
        volume = float(self._lower.diagonal().log().sum())
        self.likelihood = -0.5 * len(scores) * math.log(self._amplitude) - volume

    def _kernel(self, distance: np.ndarray) -> np.ndarray:
        return (1 - self._additive) * np.exp(-self._length * distance) + self._additive * (1 - distance)

    def predict(self, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of points at these distances, of shape `(new points, points)`."""
        kernel = self._kernel(distance)
        spread = torch.linalg.solve_triangular(self._lower, torch.from_numpy(kernel).T, upper=False)
        variance = np.maximum(1.0 - spread.square().sum(0).numpy(), 1e-9) * self._amplitude
        return kernel @ self._solved + self._mean, np.sqrt(variance)


def _ranks(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind='stable')
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    # Equal values share their mean rank.
    _, group = np.unique(values, return_inverse=True)
    return (np.bincount(group, weights=ranks) / np.bincount(group))[group]


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Return the standard normal quantiles of the values' ranks."""
    levels = torch.from_numpy((_ranks(values) + 0.5) / len(values))
    return torch.special.ndtri(levels).numpy()
