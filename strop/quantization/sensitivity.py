"""Which layer costs how much, and how many have to stay float so that the whole loses no more than a limit."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.fx import GraphModule

from strop.errors import BudgetError, ConfigError
from strop.quantization.batches import Batches
from strop.quantization.layers import records
from strop.quantization.reference import Partly, output_sqnr

#: Judges a model, higher is better: a function of a callable with the signature of the original model.
Metric = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Cost:
    """What quantizing one layer alone costs.

    Args:
        layer: Its name.
        sqnr_db: Signal to noise ratio of the model's output if only this layer is quantized, in dB: the lower, the worse.
        drop: How much the metric falls then; None without a metric.
    """

    layer: str
    sqnr_db: float
    drop: float | None = None


class Sensitivity(Mapping[str, Cost]):
    """Layer -> what it costs, the most expensive first.

    Args:
        costs: One for each quantized layer.
    """

    def __init__(self, costs: Sequence[Cost]) -> None:
        ranked = sorted(costs, key=lambda cost: (-(cost.drop or 0.0) if cost.drop is not None else 0.0, cost.sqnr_db))
        self._costs = {cost.layer: cost for cost in ranked}

    def __getitem__(self, layer: str) -> Cost:
        return self._costs[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._costs)

    def __len__(self) -> int:
        return len(self._costs)

    def table(self) -> Table:
        """Return a `rich` table, the most expensive layer first."""
        table = Table(title='Cost of quantizing one layer alone', title_justify='left')
        table.add_column('layer')
        table.add_column('output SQNR dB', justify='right')
        table.add_column('metric falls by', justify='right')
        for cost in self.values():
            table.add_row(cost.layer, f'{cost.sqnr_db:.1f}', '' if cost.drop is None else f'{cost.drop:.4g}')
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=100)
        console.print(self.table())
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]


def sensitivity(reference: GraphModule, unfolded: GraphModule, held: Batches, metric: Metric | None = None) -> Sensitivity:
    """Quantize each layer alone, and measure what the model loses.

    Args:
        reference: The float graph.
        unfolded: The converted graph with float weights, from `convert(..., fold=False)`.
        held: Batches that were not calibrated on.
        metric: Judges a model, higher is better.

    Raises:
        ConfigError: If the metric is not a finite number.
    """
    names = [record.name for record in records(unfolded, {}) if record.quantized]
    whole = None if metric is None else measured(metric, reference)
    costs = []
    for name in names:
        alone = Partly(unfolded, {name})
        drop = None if metric is None or whole is None else whole - measured(metric, alone)
        costs.append(Cost(name, output_sqnr(reference, alone, held), drop))
    return Sensitivity(costs)


def fewest_in_float(
    unfolded: GraphModule, ranking: Sequence[str], metric: Metric, least: float, start: int = 0
) -> tuple[int, float]:
    """Return how many of the first layers of a ranking have to stay float for the metric to reach `least`, and what it is then.

    The number is doubled until it is enough and then narrowed down, so that a few evaluations do.

    Raises:
        BudgetError: If not even the float model's layers reach it.
    """
    tried: dict[int, float] = {}

    def at(count: int) -> float:
        if count not in tried:
            quantized = set(ranking[count:])
            tried[count] = measured(metric, Partly(unfolded, quantized))
        return tried[count]

    low, high = start - 1, start
    while at(high) < least:
        if high >= len(ranking):
            raise BudgetError(
                f'Even with all {len(ranking)} layers in float the metric is {at(high):.4g}, below {least:.4g}: what is '
                'lost is lost in other ops. Ignore those (`ignored=`), or allow a larger drop.'
            )
        low, high = high, min(len(ranking), max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) >= least else (middle, high)
    return high, at(high)


def measured(metric: Metric, model: Any) -> float:
    """Return the metric of a model.

    Raises:
        ConfigError: If it is not a finite number.
    """
    with torch.no_grad():
        value = metric(model)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f'`metric` must return one number, higher is better, but returned {value!r}.') from None
    if not math.isfinite(number):
        raise ConfigError(f'`metric` returned {number}, which nothing can be compared with.')
    return number
