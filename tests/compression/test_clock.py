"""The clock of a budget: shares of what the budget is of, limits, and layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.compression import Judge
from strop.compression.budget import Budget
from strop.compression.clock import Clock, Pace
from strop.compression.progress import Progress
from strop.compression.stage import Surroundings


class Heavy(nn.Module):
    """Does `times` large products."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(times))
        self.out = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.out(x)


def clock(parts, tmp_path, backends=(), **budget):
    model = Heavy(40).eval()
    around = Surroundings(
        'prune', model, parts, Judge(parts, model), Budget.of(budget), 0, 1, tmp_path, tmp_path, Progress.of('quiet'), backends
    )
    return Clock(around)


def test_a_share_is_of_what_the_budget_is_of(parts, tmp_path):
    found = clock(parts, tmp_path, latency=0.5, runtime='eager')
    whole, part = found.time(Heavy(40).eval(), parts), found.time(Heavy(4).eval(), parts)
    assert part.share < 0.7 * whole.share
    assert part.milliseconds < whole.milliseconds
    assert found.precision == 'f32'


def test_the_excess_is_that_of_the_tightest_limit(parts, tmp_path):
    found = clock(parts, tmp_path, latency_ms=2.0, runtime='eager')
    assert found.excess(Pace(0.1, 1.0)) == pytest.approx(0.5)
    assert found.excess(Pace(0.1, 4.0)) == pytest.approx(2.0)


def test_layers_add_up_to_the_whole_forward(parts, tmp_path):
    found = clock(parts, tmp_path, latency=0.5, runtime='eager')
    times, measured = found.layers(Heavy(10).eval(), parts)
    assert set(times) == {*(f'layers.{index}' for index in range(10)), 'out'}
    assert sum(times.values()) >= 0.99 * measured.whole.median_ms


def test_a_quantized_clock_measures_integers(parts, tmp_path):
    pytest.importorskip('openvino')
    pytest.importorskip('nncf')
    found = clock(parts, tmp_path, ('openvino',), latency=0.5, runtime='openvino', relative_to='quantized')
    assert found.precision == 'int8'
    assert found.time(Heavy(4).eval(), parts).share < 1
