"""The automatic plan: units and blocks that cost little go first, and models that are measured decide."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import strop
import strop.compression.automatic as automatic
from strop.compression.automatic import Worth
from strop.estimators import count
from tests.compression.conftest import small_net


class Counted:
    """Stands for a runtime whose time is a fixed part and the multiply-adds."""

    def __init__(self, around, model):
        self.around, self.runtime, self.backend, self.precision = around, 'eager', None, 'f32'
        self.sample = around.data.example(1)
        self.whole = count(around.original, self.sample).macs
        self.share, self.limit = around.budget.latency, around.budget.latency_ms
        self.whole_ms = 1.0
        self.timed = []

    def time(self, model):
        share = 0.1 + 0.9 * count(model, self.sample).macs / self.whole
        self.timed.append(share)
        return share, share

    def compared(self, smaller, model):
        return self.time(smaller)[0] / self.time(model)[0]

    keeps = automatic._Clock.keeps


@pytest.fixture
def by_count(monkeypatch):
    monkeypatch.setattr(automatic, '_Clock', Counted)


def compress(folder, pictures, budget, **stage):
    return strop.compress(
        small_net(), pictures, stages=[{'finetune': {'epochs': 3, 'lr': 0.1}}, {'prune': {'round_to': 4, **stage}}],
        budget={'runtime': 'eager', **budget}, output=folder, threads=1, runtimes=['eager'], progress='quiet',
    )  # fmt: skip


def test_the_plan_keeps_the_budget_with_the_least_harm_and_says_why(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency': 0.5}, tries=8)
    stage = found.result.stage('prune')
    shares = {entry.label: entry.latency_ms for entry in found.result.tried}
    chosen = next(entry for entry in found.result.tried if entry.chosen)
    assert chosen.latency_ms <= 0.5
    # The rung before it was measured as well, and takes longer than allowed.
    step = int(chosen.label.split()[1])
    assert shares[chosen.label.replace(f'step {step} ', f'step {step - 1} ')] > 0.5
    assert any('Measured on eager' in sentence for sentence in stage.explanation)
    assert any(' went from ' in sentence or 'Taken out whole' in sentence for sentence in stage.explanation)
    assert stage.resources.macs < found.result.stage('source').resources.macs
    assert strop.load(found.folder, factory=small_net)(pictures['test'][0]).shape == (64, 4)


def test_a_budget_that_cannot_be_reached_gives_the_smallest_and_says_so(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency_ms': 0.01})
    assert 'cannot be reached by pruning' in found.result.stage('prune').warnings[0]
    assert found.met is False
    widths = [module.out_channels for module in found.model.modules() if isinstance(module, nn.Conv2d)]
    assert max(widths) <= 4


def test_a_model_that_keeps_the_budget_is_left_as_it_is(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency_ms': 100.0})
    assert 'keeps the budget as it is' in ' '.join(found.result.stage('prune').explanation)
    assert found.model[0].out_channels == 16


def test_blocks_stay_where_depth_is_not_to_be_touched(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency_ms': 0.01}, depth=False)
    assert isinstance(found.model[3].body[0], nn.Conv2d)


def test_counted_limits_are_kept_beside_the_measured_one(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency': 0.9, 'params': 0.3}, tries=8)
    first, last = found.result.stage('source').resources, found.result.stage('prune').resources
    assert last.params <= 0.3 * first.params


def test_lengths_are_multiples_where_they_are_cut(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency': 0.4}, tries=8)
    widths = [module.out_channels for module in found.model.modules() if isinstance(module, nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)


def test_harm_never_falls_and_rises_beyond_what_was_measured():
    worth = Worth('unit', 8, 1.0, {0.25: 0.2, 0.5: 0.1, 0.75: 0.4})
    values = [worth.at(share / 20) for share in range(21)]
    assert all(first <= second for first, second in pairwise(values))
    assert worth.at(0.125) == pytest.approx(0.1)
    assert worth.at(0.625) == pytest.approx(0.3)
    assert worth.at(0.9) > 0.4 + 0.15 * (0.2 / 0.25)


def test_a_unit_without_effect_is_found_harmless(tmp_path, pictures, by_count):
    class Idle(nn.Module):
        """Half of its channels are multiplied by zero."""

        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(64, 16), nn.Linear(64, 16)
            self.out = nn.Linear(32, 4)
            with torch.no_grad():
                self.out.weight[:, 16:] = 0

        def forward(self, x):
            x = x.flatten(1)
            return self.out(torch.cat([self.used(x).relu(), self.idle(x).relu()], 1))

    found = strop.compress(
        Idle(),
        pictures,
        stages=[{'prune': {'round_to': 4}}],
        budget={'latency': 0.7, 'runtime': 'eager'},
        output=tmp_path / 'out',
        threads=1,
        runtimes=['eager'],
        progress='quiet',
    )
    assert found.model.used.out_features == 16
    assert found.model.idle.out_features < 16
