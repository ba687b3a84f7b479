"""Ladders: prices that follow what was measured, harm that never falls, steps that tie units together."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.compression.ladder import Pricing, Worth, greedy_ladder, uniform_ladder
from strop.estimators import WidthCosts
from strop.graph import channel_units
from strop.pruning import Ranking, Selection, build_importance, residual_blocks, score
from tests.compression.conftest import small_net


@pytest.fixture(scope='module')
def parts():
    """Return ranking, pricing and worths of the small network, a block of which is worth little."""
    model, example = small_net(), torch.rand(2, 1, 8, 8)
    graph = channel_units(model, example)
    ranking = Ranking(graph, model, score(graph, model, build_importance('l1')), Selection(round_to=4, max_ratio=0.75))
    pricing = Pricing(WidthCosts(graph), {'0': 1.0, '3.body.0': 4.0, '4': 3.0, '9': 0.5})
    worths = [Worth(name, graph.units[name].size, 1.0, {0.5: 0.1 * n, 0.75: 0.3 * n}) for n, name in enumerate(graph.units, 1)]
    blocks = list(residual_blocks(model, example))
    return ranking, pricing, [*worths, *(Worth(block, 0, 4.0, {1.0: 0.2}) for block in blocks)], blocks


def test_harm_never_falls_and_rises_beyond_what_was_measured():
    worth = Worth('unit', 8, 1.0, {0.25: 0.2, 0.5: 0.1, 0.75: 0.4})
    values = [worth.at(share / 20) for share in range(21)]
    assert all(first <= second for first, second in pairwise(values))
    assert worth.at(0.125) == pytest.approx(0.1)
    assert worth.at(0.625) == pytest.approx(0.3)
    assert worth.at(0.9) > 0.4 + 0.15 * (0.2 / 0.25)


def test_prices_go_through_what_was_measured(parts):
    ranking, pricing, _, _ = parts
    pricing = Pricing(pricing.costs, {'0': 1.0, '3.body.0': 4.0, '4': 3.0, '9': 0.5})
    assert pricing.milliseconds({}) == pytest.approx(8.5)
    lengths = ranking.lengths(0.5)
    measured = {'0': 0.9, '3.body.0': 2.0, '4': 1.5, '9': 0.5}
    pricing.learn(lengths, measured)
    assert pricing.milliseconds(lengths) == pytest.approx(sum(measured.values()))
    assert pricing.milliseconds({}) == pytest.approx(8.5)
    # Nothing is known below the smallest that was measured: the time of a layer is taken to stay.
    assert pricing.milliseconds(ranking.lengths(1.0)) == pytest.approx(sum(measured.values()))


@given(points=st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0, 3)), max_size=5), at=st.lists(st.floats(0, 1), min_size=2))
def test_a_layer_never_gets_slower_by_having_less_to_do(parts, points, at):
    pricing = Pricing(parts[1].costs, {'0': 1.0})
    pricing._points['0'] += [(share, min(time, 1.0)) for share, time in points]
    times = [pricing.share('0', share) for share in sorted(at)]
    assert all(first <= second + 1e-12 for first, second in pairwise(times))
    assert pricing.share('0', 1.0) == 1.0


@pytest.mark.parametrize('weight', [0.25, 1.0, 4.0, math.inf])
def test_every_rung_is_a_model_that_may_be_and_each_is_smaller_than_the_last(parts, weight):
    ranking, pricing, worths, blocks = parts
    ladder = greedy_ladder(worths, ranking, pricing, blocks, weight)
    smallest = ranking.lengths(1.0)
    for first, second in pairwise(ladder):
        assert all(second.lengths[name] <= first.lengths[name] for name in first.lengths)
        assert set(first.removed) <= set(second.removed)
        assert second.key != first.key
        assert second.harm >= first.harm
        assert ranking.graph.fit(second.lengths) == second.lengths
    assert all(ladder[-1].lengths[name] >= smallest[name] for name in smallest)
    assert set(ladder[-1].removed) == (set() if math.isinf(weight) else set(blocks))


def test_a_block_goes_the_earlier_the_less_its_harm_counts(parts):
    ranking, pricing, worths, blocks = parts
    places = [
        next(index for index, rung in enumerate(greedy_ladder(worths, ranking, pricing, blocks, weight)) if rung.removed)
        for weight in (0.1, 1.0, 100.0)
    ]
    assert places == sorted(places)
    assert places[0] < places[-1]


def test_the_uniform_ladder_takes_the_same_share_everywhere(parts):
    ranking, pricing, worths, _ = parts
    ladder = uniform_ladder(worths, ranking, pricing)
    assert ladder[0].milliseconds == pricing.milliseconds({})
    assert dict(ladder[-1].lengths) == ranking.lengths(1.0)
    assert all(second.milliseconds <= first.milliseconds for first, second in pairwise(ladder))
