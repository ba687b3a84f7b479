from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.errors import BudgetError, ConfigError
from strop.estimators import WidthCosts
from strop.graph import channel_units
from strop.pruning.budgets import Budget, cost_of, cost_of_indices, filled, measured_share, meet, smallest_ratio, within_latency


@pytest.mark.parametrize(
    ('resource', 'value', 'original', 'limit'),
    [
        ('macs', 0.5, 100, 50),
        ('macs', '0.25x', 100, 25),
        ('params', 30, 100, 30),
        ('macs', '200M', 1e9, 2e8),
        ('macs', '1.5 G', 1e10, 1.5e9),
        ('params', '1_000', 1e6, 1000),
        ('latency', 0.7, 10, 7),
        ('latency', '0.5ms', 10, 0.5),
        ('latency', '2s', 1e4, 2000),
        ('latency', '500us', 10, 0.5),
        ('latency', '1ms', 10, 1.0),
        ('latency', 3, 10, 3),
    ],
)
def test_values_are_shares_or_resources(resource, value, original, limit):
    assert Budget(**{resource: value}).limit(resource, original) == pytest.approx(limit)


@pytest.mark.parametrize(
    ('resource', 'value'),
    [('macs', v) for v in (0, -1, 1, 1.0, '1x', '2x', 'half', '5ms', True, float('nan'), float('inf'), [1], '-3M')]
    + [('latency', '3M'), ('latency', '0ms')],
)
def test_what_is_no_value_is_refused(resource, value):
    with pytest.raises(ConfigError, match=f'The budget of {resource}'):
        Budget(**{resource: value})


@pytest.mark.parametrize(
    ('budget', 'said'),
    [
        ({}, 'at least one of'),
        ({'mac': 0.5}, "Did you mean 'macs'"),
        ({'flops': 0.5}, 'has no'),
        (0.5, 'must be a mapping'),
        ('macs=0.5', 'must be a mapping'),
    ],
)
def test_what_is_no_budget_is_refused(budget, said):
    with pytest.raises(ConfigError, match=said):
        Budget.of(budget)


def test_a_budget_is_reached_step_by_step():
    budget = Budget(macs=0.4)
    assert [budget.eased('macs', 100, progress) for progress in (0.25, 0.5, 1)] == pytest.approx([85, 70, 40])
    # An original that is within the budget already stays as it is.
    assert Budget(macs=500).eased('macs', 100, 0.5) == 100


@pytest.mark.parametrize('limit', [0.0, 0.1, 1 / 3, 0.999, 1.0])
def test_halving_finds_the_smallest_ratio(limit):
    found = smallest_ratio(lambda ratio: ratio >= limit)
    assert limit <= found <= limit + 2**-17


def test_halving_tells_that_nothing_fits():
    assert smallest_ratio(lambda ratio: False) is None


@pytest.fixture
def costs():
    net = nn.Sequential(nn.Linear(3, 10), nn.Linear(10, 20), nn.Linear(20, 2))
    return WidthCosts(channel_units(net, torch.rand(1, 3)))


def lengths_of(ratio):
    return {'0': max(2, int(10 * (1 - ratio))), '1': max(2, int(20 * (1 - ratio)))}


def test_a_budget_is_met_with_nothing_to_spare(costs):
    original = {'macs': costs.macs(), 'params': costs.params()}
    for budget in (Budget(macs=0.5), Budget(params=0.5), Budget(macs=100), Budget(macs=0.6, params=0.4)):
        ratio, lengths = meet(budget, costs, lengths_of, original)
        for resource in budget.resources:
            assert cost_of(costs, resource, lengths) <= budget.limit(resource, original[resource])
        more = lengths_of(ratio - 1e-4)
        assert any(cost_of(costs, r, more) > budget.limit(r, original[r]) for r in budget.resources)


def test_room_that_a_ratio_leaves_is_filled(costs):
    original = {'macs': costs.macs(), 'params': costs.params()}
    assert original['macs'] == 30 + 200 + 40
    # At the ratio where both units lose one more index, one of them need not.
    lengths = filled(Budget(macs=210), costs, costs.graph, {'0': 8, '1': 16}, {'0': 9, '1': 18}, original)
    assert lengths == {'0': 9, '1': 16}
    assert cost_of(costs, 'macs', lengths) == 27 + 144 + 32
    assert cost_of(costs, 'macs', {'0': 9, '1': 18}) == 27 + 162 + 36


def test_an_index_costs_what_its_layers_do(costs):
    # An index of the first unit is 3 multiply-adds into it and 20 out of it, of the second 10 and 2.
    assert cost_of_indices(costs, 'macs') == {'0': 23, '1': 12}
    assert cost_of_indices(costs, 'params') == {'0': 24, '1': 13}


def test_a_budget_that_the_original_keeps_costs_nothing(costs):
    assert meet(Budget(macs=1000), costs, lengths_of, {'macs': costs.macs(), 'params': 1}) == (0, {'0': 10, '1': 20})


def test_the_smallest_that_can_be_reached_is_told(costs):
    least = costs.macs({'0': 2, '1': 2})
    assert least == 14
    with pytest.raises(BudgetError, match=rf'macs ≤ 10 .* smallest that can be reached is {least} \(0\.0'):
        meet(Budget(macs=10, params=10_000), costs, lengths_of, {'macs': costs.macs(), 'params': costs.params()})


def test_latency_is_kept_by_share_or_by_time():
    assert within_latency(Budget(latency=0.5), 0.5, 3.0)
    assert not within_latency(Budget(latency=0.5), 0.51, 3.0)
    assert within_latency(Budget(latency=0.5), 0.75, 3.0, progress=0.5)
    assert within_latency(Budget(latency='2ms'), 0.5, 2.0)
    assert not within_latency(Budget(latency='2ms'), 0.5, 2.1)
    # The original takes 4 ms; halfway to 2 ms is 3 ms.
    assert within_latency(Budget(latency='2ms'), 0.75, 3.0, progress=0.5)


def test_latency_is_measured_side_by_side():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, *, x):
            return self.linear(x)

    for model, inputs in ((nn.Linear(4, 4), torch.rand(1, 4)), (Named(), {'x': torch.rand(1, 4)})):
        share, milliseconds = measured_share(Budget(latency=0.5, runs=3), model, model, inputs)
        assert share > 0
        assert milliseconds > 0
