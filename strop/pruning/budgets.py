"""What a pruned model may cost, and the search for the ratio that meets it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

from torch import nn

from strop.errors import BudgetError, ConfigError, listed, near
from strop.estimators import WidthCosts, measure
from strop.graph import ChannelGraph

RESOURCES = ('macs', 'params', 'latency')
BudgetLike = Union['Budget', Mapping[str, Union[float, str]]]

_SCALES = {'k': 1e3, 'm': 1e6, 'g': 1e9}
_SECONDS = {'us': 1e-3, 'ms': 1.0, 's': 1e3}
_HALVINGS = 18


@dataclass(frozen=True)
class Budget:
    """What the pruned model may cost at most; several resources are all kept.

    A number between 0 and 1, or a text with an `x`, is a share of the original: `0.5`, `'0.5x'`. A number above 1 is
    the resource itself, with latency in milliseconds; texts may carry a unit: `'200M'` MACs, `'3.5ms'`.

    Args:
        macs: Multiply-adds.
        params: Parameters.
        latency: Measured time of one call, by `strop.estimators.measure`.
        runs: Rounds of each latency measurement.
        threads: Threads to measure with.
        runtime: Runtime to measure on.

    Raises:
        ConfigError: If nothing is limited, or a value cannot be read.

    >>> Budget(macs='0.5x').limit('macs', 1000)
    500.0
    >>> Budget(params='2M').limit('params', 10_000_000)
    2000000.0
    """

    macs: float | str | None = None
    params: float | str | None = None
    latency: float | str | None = None
    runs: int = 20
    threads: int = 1
    runtime: str = 'eager'

    def __post_init__(self) -> None:
        if not self.resources:
            raise ConfigError(f'A budget limits at least one of {listed(RESOURCES)}, as in dict(macs=0.5).')
        for resource in self.resources:
            self.limit(resource, 1.0)

    @classmethod
    def of(cls, budget: BudgetLike | None) -> Budget | None:
        """Return the budget that is meant.

        Raises:
            ConfigError: If it is neither a budget nor a mapping with its options.
        """
        if budget is None or isinstance(budget, Budget):
            return budget
        if not isinstance(budget, Mapping):
            raise ConfigError(f"`budget` must be a mapping such as dict(macs=0.5) or dict(params='2M'), but got {budget!r}.")
        known = tuple(cls.__dataclass_fields__)
        for key in budget:
            if key not in known:
                raise ConfigError(f'A budget has no {key!r}.{near(key, known)} It has {listed(known)}.')
        return cls(**budget)  # type: ignore[arg-type]

    @property
    def resources(self) -> tuple[str, ...]:
        """The resources that it limits."""
        return tuple(resource for resource in RESOURCES if getattr(self, resource) is not None)

    def is_share(self, resource: str) -> bool:
        """Whether a resource is limited to a share of the original's."""
        return _read(resource, getattr(self, resource))[0]

    def limit(self, resource: str, original: float) -> float:
        """Return the most that a model may cost whose original costs `original`."""
        share, value = _read(resource, getattr(self, resource))
        return value * original if share else value

    def eased(self, resource: str, original: float, progress: float) -> float:
        """Return the limit on the way from the original (progress 0) to the budget (1)."""
        limit = self.limit(resource, original)
        return limit if progress >= 1 else original - (original - min(limit, original)) * progress

    def __str__(self) -> str:
        return ', '.join(f'{resource} ≤ {getattr(self, resource)}' for resource in self.resources)


def smallest_ratio(
    fits: Callable[[float], bool], *, halvings: int = _HALVINGS, low: float = 0.0, high: float = 1.0
) -> float | None:
    """Return about the smallest ratio in [low, high] for which `fits` is true, by halving; None if `high` does not fit.

    >>> smallest_ratio(lambda ratio: ratio >= 0.25, halvings=2)
    0.25
    """
    if fits(low):
        return low
    if not fits(high):
        return None
    for _ in range(halvings):
        middle = (low + high) / 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def cost_of(costs: WidthCosts, resource: str, lengths: Mapping[str, int] | None = None) -> int:
    """Return the `'macs'` (of one forward on the traced shapes, their batch included) or `'params'` at some lengths."""
    return costs.macs(lengths) if resource == 'macs' else costs.params(lengths)


def cost_of_indices(costs: WidthCosts, resource: str) -> dict[str, float]:
    """Return what one index of each unit costs on average over half of the unit, with all that is tied to it."""
    graph, whole = costs.graph, cost_of(costs, resource)
    result = {}
    for name, unit in graph.units.items():
        fitted = graph.fit({name: max(unit.minimum, unit.size // 2)})
        gone = unit.size - fitted[name]
        result[name] = max((whole - cost_of(costs, resource, fitted)) / gone, 1.0) if gone else 1.0
    return result


def filled(
    budget: Budget,
    costs: WidthCosts,
    graph: ChannelGraph,
    lengths: Mapping[str, int],
    longer: Mapping[str, int],
    original: Mapping[str, float],
    progress: float = 1.0,
) -> dict[str, int]:
    """Return `lengths` with those units as in `longer` for which the budget has room, one after the other.

    Many units get longer at the same ratio, and all of them together may be too much where some of them are not.

    Args:
        budget: The budget; its latency is not looked at.
        costs: What the model costs at any lengths.
        graph: The units.
        lengths: Lengths within the budget.
        longer: Longer ones, beyond it.
        original: resource -> what the original model costs.
        progress: How far on the way from the original to the budget to go, 0 to 1.
    """
    limits = {r: budget.eased(r, original[r], progress) for r in budget.resources if r != 'latency'}
    result = dict(lengths)
    # The last units have the most weights in most models: with the first ones there is more to choose from.
    for name in lengths:
        if longer[name] > result[name]:
            trial = graph.fit({**result, name: longer[name]})
            grows = all(result[other] <= trial[other] <= max(longer[other], result[other]) for other in trial)
            if grows and all(cost_of(costs, resource, trial) <= limit for resource, limit in limits.items()):
                result = trial
    return result


def meet(
    budget: Budget,
    costs: WidthCosts,
    lengths: Callable[[float], dict[str, int]],
    original: Mapping[str, float],
    progress: float = 1.0,
) -> tuple[float, dict[str, int]]:
    """Return the smallest ratio whose lengths keep the MACs and parameters within the budget, and its lengths.

    Where the budget leaves room, some units are longer than at that ratio; see `filled`.

    Args:
        budget: The budget; its latency is not looked at.
        costs: What the model costs at any lengths.
        lengths: ratio -> lengths of all units.
        original: resource -> what the original model costs.
        progress: How far on the way from the original to the budget to go, 0 to 1.

    Raises:
        BudgetError: If the limits leave more than the budget allows; the message has the least that can be reached.
    """
    limits = {r: budget.eased(r, original[r], progress) for r in budget.resources if r != 'latency'}
    seen: dict[tuple[int, ...], bool] = {}

    def fits(ratio: float) -> bool:
        chosen = lengths(ratio)
        key = tuple(chosen.values())
        if key not in seen:
            seen[key] = all(cost_of(costs, resource, chosen) <= limit for resource, limit in limits.items())
        return seen[key]

    found = smallest_ratio(fits)
    if found is None:
        least = lengths(1.0)
        raise BudgetError(
            'The budget cannot be met: '
            + '; '.join(
                f'{resource} ≤ {_shown(limit)} was asked for, and the smallest that can be reached is '
                f'{_shown(cost_of(costs, resource, least))} '
                f'({cost_of(costs, resource, least) / max(original[resource], 1):.3f} of the original)'
                for resource, limit in limits.items()
                if cost_of(costs, resource, least) > limit
            )
            + '. Allow more, or loosen `ignored`, `limits`, `max_ratio`, `round_to` or `attention`.'
        )
    # Halving ends this close to the largest ratio that does not fit.
    longer = lengths(max(found - 2.0 ** -(_HALVINGS - 1), 0.0))
    return found, filled(budget, costs, costs.graph, lengths(found), longer, original, progress)


def measured_share(budget: Budget, original: nn.Module, pruned: nn.Module, inputs: Any) -> tuple[float, float]:
    """Return the time of a pruned model relative to the original's, and its median in milliseconds.

    Args:
        budget: How to measure.
        original: The original model.
        pruned: The pruned model.
        inputs: Example inputs.
    """
    times = measure(
        {'pruned': _timed(pruned, inputs), 'original': _timed(original, inputs)},
        runs=budget.runs,
        threads=budget.threads,
        runtime_name=budget.runtime,
    )
    return times.ratio('pruned', 'original').value, times['pruned'].median_ms


def within_latency(budget: Budget, share: float, milliseconds: float, progress: float = 1.0) -> bool:
    """Whether a measured latency keeps the budget."""
    relative, value = _read('latency', budget.latency)
    if relative:
        return share <= 1 - (1 - value) * progress
    original = milliseconds / share
    return milliseconds <= budget.eased('latency', original, progress)


# -- internals ----------------------------------------------------------------------------------------------


def _timed(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return copy.deepcopy(_Keywords(model, inputs)), ()
    return model, tuple(inputs) if isinstance(inputs, list) else inputs


class _Keywords(nn.Module):
    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.inputs = model, dict(inputs)

    def forward(self) -> Any:
        """Run the model on its keyword arguments."""
        return self.model(**self.inputs)


def _read(resource: str, given: Any) -> tuple[bool, float]:
    """Return whether a limit is a share, and its number."""
    value, scale, share, unit = given, 1.0, False, ''
    if isinstance(given, str):
        text = given.strip().lower().replace('_', '').replace(' ', '')
        scales = _SECONDS if resource == 'latency' else _SCALES
        share = text.endswith('x')
        unit = 'x' if share else next((unit for unit in scales if text.endswith(unit)), '')
        scale = scales.get(unit, 1.0)
        try:
            value = float(text.removesuffix(unit))
        except ValueError:
            value = None
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    share = share or (number and not isinstance(given, str) and value < 1)
    if not number or (share and value >= 1) or (value == 1 and not unit):
        units = 'us, ms or s' if resource == 'latency' else 'K, M or G'
        raise ConfigError(
            f"The budget of {resource} must be a share of the original between 0 and 1 (0.5, '0.5x'), or a value above 1, "
            f'as a text with or without {units}, but got {given!r}.'
        )
    return share, float(value * scale)  # type: ignore[arg-type]


def _shown(value: float) -> str:
    for unit, scale in (('G', 1e9), ('M', 1e6), ('K', 1e3)):
        if value >= scale:
            return f'{value / scale:.4g} {unit}'
    return f'{value:.4g}'
