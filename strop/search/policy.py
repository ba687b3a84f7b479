"""Search by policy gradient: a distribution over the decisions that moves towards what did well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from strop.errors import ConfigError
from strop.mutables import AnyOf, Domain, KOf, Numeric, Picks, Space, Subnet, chosen
from strop.search.strategy import Strategy, register_strategy
from strop.search.trial import Trial

_BINS = 16
_LARGEST = 6.0


@register_strategy('policy')
class PolicyGradient(Strategy):
    r"""REINFORCE over independent decisions.

    The policy has one logit :math:`\theta_i` for each alternative. A set of *k* alternatives has the probability
    :math:`p(S) \propto \exp \sum_{i \in S} \theta_i` (for *k* = 1 a softmax), any number of alternatives are independent
    coins, and a number is drawn from one of 16 parts of equal probability of its law. After each trial

    .. math:: \theta \leftarrow (1 - decay)\,\theta + rate \cdot A\,\nabla_\theta \log p(S), \qquad
              \partial_{\theta_i} \log p(S) = [i \in S] - P(i \in S)

    where the advantage *A*, in [-1, 1], is the share of the last `window` trials that the trial dominates minus the share
    that dominates it; a failed trial has -1. Being a function of ranks, it needs no baseline and no scale of the values,
    and serves several objectives.

    Args:
        rate: Size of a step.
        decay: How fast logits fall back to the uniform policy, which keeps it exploring.
        window: Number of trials that a trial is compared with.
        first: Uniform trials before the policy proposes.
        **options: `unique`, `initial`, see `Strategy`.

    Reference:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992,
        https://doi.org/10.1007/BF00992696; Zoph and Le, "Neural architecture search with reinforcement learning", 2017,
        https://arxiv.org/abs/1611.01578.

    Differs from the papers: decisions are independent instead of emitted by a recurrent network, and ranks stand in
    for rewards. There is no memory of the policy that a trial was drawn from, so the state is the replay of the trials.

    >>> from strop.mutables import OneOf
    >>> from strop.search import run
    >>> space = Space({f'op{layer}': OneOf((0, 1, 2)) for layer in range(4)})
    >>> run(space, lambda subnet: sum(subnet.values()), strategy='policy', trials=70).best.values
    {'score': 8.0}
    """

    def __init__(self, *, rate: float = 0.5, decay: float = 0.01, window: int = 40, first: int = 10, **options: Any) -> None:
        super().__init__(**options)
        if not rate > 0 or not 0 <= decay < 1 or window < 1 or first < 1:
            raise ConfigError(
                'The policy gradient needs rate > 0, 0 <= decay < 1, window >= 1 and first >= 1, but got '
                f'rate={rate}, decay={decay}, window={window}, first={first}.'
            )
        self.rate, self.decay, self.window, self.first = rate, decay, window, first

    def setup(self) -> None:
        self.policy = Policy(self.space)
        self._recent: list[tuple[float, ...]] = []

    def observe(self, trial: Trial) -> None:
        advantage = -1.0
        if trial.complete:
            losses = self.losses(trial)
            advantage = _advantage(losses, self._recent)
            self._recent = [*self._recent, losses][-self.window :]
        self.policy.step(trial.subnet, self.rate * advantage, self.decay)

    def propose(self, number: int, rng: np.random.Generator) -> Subnet | None:
        if len(self.trials) + len(self.pending) < self.first:
            return self.random(rng)
        return self.new(lambda: self.policy.sample(rng), rng)


class Policy:
    """A distribution over the subnets of a space, with a logit for each alternative.

    >>> from strop.mutables import OneOf
    >>> policy = Policy(Space({'op': OneOf(('a', 'b'))}))
    >>> policy.step(policy.space.subnet({'op': 'a'}), 2.0)
    >>> policy.probabilities('op').round(3).tolist()
    [0.881, 0.119]
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.logits = {key: np.zeros(_width(domain)) for key, domain in space.items()}

    def probabilities(self, key: str) -> np.ndarray:
        """Return the probability that each alternative of `key` is among the chosen ones."""
        logits, domain = self.logits[key], self.space[key]
        if isinstance(domain, AnyOf):
            return 1 / (1 + np.exp(-logits))
        return inclusion(np.exp(logits - logits.max()), _chosen_count(domain))

    def sample(self, rng: np.random.Generator) -> Subnet:
        """Draw a subnet."""
        choices: dict[str, Picks] = {}
        for key in self.space.order:
            if self.space.is_active(key, choices):
                choices[key] = self._draw(key, rng)
        return self.space.from_picks(choices)

    def step(self, subnet: Subnet, size: float, decay: float = 0.0) -> None:
        """Move by `size` along the gradient of the log-probability of a subnet; inactive decisions stay."""
        for key, choice in subnet.choices.items():
            taken = np.zeros_like(self.logits[key])
            taken[_alternatives(self.space[key], chosen(choice))] = 1.0
            moved = (1 - decay) * self.logits[key] + size * (taken - self.probabilities(key))
            self.logits[key] = np.clip(moved, -_LARGEST, _LARGEST)

    def _draw(self, key: str, rng: np.random.Generator) -> Picks:
        domain, logits = self.space[key], self.logits[key]
        if isinstance(domain, AnyOf):
            return tuple(int(index) for index in np.flatnonzero(rng.random(len(logits)) < self.probabilities(key)))
        picks = draw_set(np.exp(logits - logits.max()), _chosen_count(domain), rng)
        if not isinstance(domain, Numeric):
            return picks
        if domain.size == len(logits):
            return domain.decode(picks)
        level = (picks[0] + float(rng.random())) / len(logits)
        return domain.decode((min(int(level * domain.genes[0]), domain.genes[0] - 1),))


def _width(domain: Domain) -> int:
    return int(min(domain.size, _BINS)) if isinstance(domain, Numeric) else len(domain)


def _chosen_count(domain: Domain) -> int:
    return domain.k if isinstance(domain, KOf) else 1


def _alternatives(domain: Domain, picks: Picks) -> list[int]:
    if not isinstance(domain, Numeric):
        return list(picks)
    return [domain.encode(picks)[0] * _width(domain) // domain.genes[0]]


def sums_of_products(weights: np.ndarray, count: int) -> np.ndarray:
    """Return the elementary symmetric polynomials of degree 0 to `count`: sums over all sets of the products of weights.

    >>> sums_of_products(np.array([1.0, 2.0, 3.0]), 2).tolist()
    [1.0, 6.0, 11.0]
    """
    sums = np.zeros(count + 1)
    sums[0] = 1.0
    for weight in weights:
        sums[1:] = sums[1:] + weight * sums[:-1]
    return sums


def inclusion(weights: np.ndarray, count: int) -> np.ndarray:
    """Return the probability of each index to be in a set of `count`, where a set's is proportional to its product.

    >>> inclusion(np.array([1.0, 1.0, 2.0]), 1).tolist()
    [0.25, 0.25, 0.5]
    """
    if count == 0:
        return np.zeros(len(weights))
    whole = sums_of_products(weights, count)[count]
    rest = [sums_of_products(np.delete(weights, index), count - 1)[count - 1] for index in range(len(weights))]
    return np.asarray(weights * np.array(rest) / whole)


def draw_set(weights: np.ndarray, count: int, rng: np.random.Generator) -> Picks:
    """Draw a set of `count` indices with a probability proportional to the product of its weights; return it sorted."""
    picks: list[int] = []
    for index in range(len(weights)):
        left = count - len(picks)
        if left == 0:
            break
        after = weights[index + 1 :]
        within = weights[index] * sums_of_products(after, left - 1)[left - 1]
        without = sums_of_products(after, left)[left]
        if rng.random() * (within + without) < within:
            picks.append(index)
    return tuple(picks)


def _advantage(losses: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> float:
    """Return the share of `others` that these losses dominate minus the share that dominates them."""
    if not others:
        return 0.0
    table, own = np.array(others), np.array(losses)
    below = (own <= table).all(1) & (own < table).any(1)
    above = (own >= table).all(1) & (own > table).any(1)
    return float(below.mean() - above.mean())
