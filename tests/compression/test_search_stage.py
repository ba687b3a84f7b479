"""A supernet is trained, searched under the budget, and goes on through the chain as a plain model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import strop
import strop.compression.search_stage as module
from strop.compression.training import train
from strop.errors import ConfigError
from strop.mutables import LayerChoice
from tests.compression.conftest import small_net


def supernet() -> nn.Module:
    torch.manual_seed(0)
    kernels = [nn.Conv2d(8, 8, size, padding=size // 2) for size in (1, 3, 5)]
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), LayerChoice(kernels, key='first'), nn.BatchNorm2d(8), nn.ReLU(),
        LayerChoice([nn.Identity(), nn.Conv2d(8, 8, 3, padding=1)], key='second'), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 4),
    )  # fmt: skip


def test_the_winner_keeps_the_budget_is_pruned_further_and_comes_back(tmp_path, pictures):
    found = strop.compress(
        supernet(), pictures, stages=[{'search': {'epochs': 2, 'trials': 6}}, {'prune': {'ratio': 0.5, 'round_to': 1}}],
        budget={'macs': 0.5}, output=tmp_path / 'out', threads=1, runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    first, searched = found.result.stage('source').resources, found.result.stage('search').resources
    assert searched.macs <= 0.5 * first.macs
    assert found.met is True
    assert found.result.stage('prune').resources.macs < searched.macs
    assert len(found.result.tried) >= 2
    assert sum(entry.chosen for entry in found.result.tried) == 1
    x = pictures['test'][0]
    assert torch.equal(strop.load(found.folder, factory=supernet)(x), found.model(x))


def test_it_is_trained_in_the_layout_that_its_subnets_take(tmp_path, pictures, monkeypatch):
    layouts = []

    def seen(*args, **options):
        layouts.append(options['layout'])
        return train(*args, **options)

    monkeypatch.setattr(module, 'train', seen)
    options = dict(threads=1, runtimes=['eager'], progress='quiet')
    stages = [{'search': {'epochs': 1, 'trials': 2}}]
    strop.compress(supernet(), pictures, stages=stages, output=tmp_path / 'out', **options)
    assert layouts == [torch.channels_last]


class Gate(nn.Module):
    """Has many parameters and few multiply-adds."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 900, 1), nn.Conv2d(900, 8, 1))

    def forward(self, x):
        return x + self.inner(x)


def test_a_share_is_of_one_model_where_the_most_parameters_have_not_the_most_macs(tmp_path, pictures):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        LayerChoice([Gate(), nn.Conv2d(8, 8, 5, padding=2), nn.Conv2d(8, 8, 3, padding=1), nn.Identity()], key='first'),
        LayerChoice([nn.Conv2d(8, 8, 3, padding=1), nn.Identity()], key='second'),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    found = strop.compress(
        net, pictures, stages=[{'search': {'epochs': 1, 'trials': 8, 'strategy': 'random'}}], budget={'macs': 0.75},
        output=tmp_path / 'out', threads=1, runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    first, searched = (found.result.stage(name).resources for name in ('source', 'search'))
    assert found.met is True
    assert searched.macs <= 0.75 * first.macs


def test_a_supernet_needs_a_search_and_a_search_a_supernet(tmp_path, pictures):
    options = dict(threads=1, runtimes=['eager'], progress='quiet')
    with pytest.raises(ConfigError, match='give the recipe a stage `search`'):
        strop.compress(supernet(), pictures, stages=['finetune'], output=tmp_path / 'a', **options)
    with pytest.raises(ConfigError, match='has nothing to decide'):
        strop.compress(small_net(), pictures, stages=['search'], output=tmp_path / 'b', **options)


def test_a_share_is_of_the_largest_subnet_also_when_the_budget_is_judged(tmp_path, pictures):
    found = strop.compress(
        supernet(), pictures, stages=[{'search': {'epochs': 1, 'trials': 4}}, 'prune'], budget={'macs': 0.5},
        output=tmp_path / 'out', threads=1, runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    first, searched, pruned = (found.result.stage(name).resources for name in ('source', 'search', 'prune'))
    assert found.met is True
    assert searched.macs <= 0.5 * first.macs
    assert pruned.macs == searched.macs  # it keeps the budget already
    assert 'nothing was removed' in found.result.stage('prune').explanation[0]
