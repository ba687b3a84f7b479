"""How far the stage goes, and by what."""

from __future__ import annotations

import pytest
from torch import nn

import strop
from strop.compression.budget import Budget
from strop.compression.prune_stage import PruneStage
from strop.errors import ConfigError
from tests.compression.conftest import small_net


def compress(folder, pictures, stage, budget=None):
    return strop.compress(
        small_net(),
        pictures,
        stages=[{'prune': stage}],
        budget=budget,
        output=folder,
        threads=1,
        runtimes=['eager'],
        progress='quiet',
    )


def test_blocks_are_taken_out_and_come_back_from_the_records(tmp_path, pictures):
    found = compress(tmp_path / 'out', pictures, {'blocks': 1})
    assert isinstance(found.model[3], nn.Identity)
    assert isinstance(strop.load(tmp_path / 'out', factory=small_net)[3], nn.Identity)
    layers = {layer.name: layer.after for layer in found.result.stage('prune').layers}
    assert layers['3.body.0'] is None
    assert 'change what passes through them least' in found.result.stage('prune').explanation[0]


def test_layers_that_are_ignored_stay_whole(tmp_path, pictures):
    found = compress(tmp_path / 'out', pictures, {'ratio': 0.5, 'ignored': ['0'], 'round_to': 1})
    assert (found.model[0].out_channels, found.model[4].out_channels) == (16, 16)


def test_a_size_becomes_a_limit_of_parameters_and_is_met_by_the_file(tmp_path, pictures):
    found = compress(tmp_path / 'out', pictures, {'round_to': 1}, {'size_mb': 0.015})
    assert found.met is True
    assert found.result.stage('prune').resources.size_mb <= 0.015


def test_a_model_within_the_budget_is_left_as_it_is(tmp_path, pictures):
    found = compress(tmp_path / 'out', pictures, {}, {'params': 10_000_000})
    assert 'nothing was removed' in found.result.stage('prune').explanation[0]
    assert found.model[0].out_channels == 16


@pytest.mark.parametrize(
    'options',
    [
        {'ratio': 0.5, 'budget': {'macs': 0.5}}, {'ratio': 0.95}, {'how': 'best'}, {'how': 'automatic', 'ratio': 0.5},
        {'blocks': 0},
        {'budget': {'latency': 0.5}}, {'importance': 'none'}, {'round_to': 0}, {'recalibrate': 'yes'},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError):
        PruneStage.of(options)


def test_it_has_to_be_said_how_far():
    with pytest.raises(ConfigError, match='not told how far'):
        PruneStage().check(Budget())
    PruneStage().check(Budget(macs=0.5))


def test_a_limit_of_the_stage_is_of_one_sample_as_a_share_and_as_a_number(tmp_path, pictures):
    share = compress(tmp_path / 'share', pictures, {'budget': {'macs': 0.5}, 'round_to': 1})
    whole = share.result.stage('source').resources.macs
    number = compress(tmp_path / 'number', pictures, {'budget': {'macs': whole // 2}, 'round_to': 1})
    assert share.result.stage('prune').resources.macs == number.result.stage('prune').resources.macs
    assert 0.4 * whole < number.result.stage('prune').resources.macs <= 0.5 * whole


def test_an_importance_may_have_options(tmp_path, pictures):
    found = compress(tmp_path / 'out', pictures, {'ratio': 0.5, 'importance': {'type': 'l1', 'reduce': 'max'}})
    assert found.model[0].out_channels == 8
    assert 'ranked by l1' in found.result.stage('prune').explanation[0]
