from __future__ import annotations

import itertools
import json
import pickle

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, GraphError, UnsafeFileError
from strop.pruning.pruner import prune
from strop.pruning.record import PruneRecord


def make(widths=(3, 12, 8, 2)):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


@pytest.fixture
def pruned():
    return prune(make(), torch.rand(2, 3), ratio=0.5, steps=2, seed=3)


def test_a_record_says_what_was_done(pruned):
    model, record = pruned
    assert [(unit.name, unit.role, unit.before, unit.after) for unit in record.units] == [
        ('0', 'channels', 12, 6),
        ('1', 'channels', 8, 4),
    ]
    assert record.channels == (20, 10)
    assert record.params == (170, sum(p.numel() for p in model.parameters()))
    assert record.macs == (2 * (36 + 96 + 16), 2 * (18 + 24 + 8))
    assert [step.ratio for step in record.steps] == [0.25, 0.5]
    assert [len(step.kept['0']) for step in record.steps] == [9, 6]
    assert (record.importance, record.scope, record.seed, record.ratio, record.budget) == ('l1', 'local', 3, 0.5, None)
    assert all(step.error is not None and step.error < 1e-5 for step in record.steps)


def test_it_prints(pruned):
    text = str(pruned)
    for part in ('Pruned by l1, local, ratio 0.5', '50.0 %', 'parameters', 'MACs', 'Checked against the masked original'):
        assert part in text
    assert 'Not checked' in str(prune(make(), torch.rand(2, 3), ratio=0.5, verify=False).record)
    assert 'macs ≤ 0.5' in str(prune(make(), torch.rand(2, 3), budget={'macs': 0.5}).record)


def test_it_goes_through_json(pruned, tmp_path):
    record = pruned.record
    assert PruneRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    record.save(tmp_path / 'record.json')
    assert PruneRecord.load(tmp_path / 'record.json') == record


def test_the_original_can_be_cut_the_same_way_again(pruned, tmp_path):
    pruned.record.save(tmp_path / 'record.json')
    again = PruneRecord.load(tmp_path / 'record.json').replay(make(), torch.rand(2, 3))
    for one, other in zip(again.parameters(), pruned.model.parameters()):
        assert torch.equal(one, other)
    fresh = make()
    before = [parameter.clone() for parameter in fresh.parameters()]
    pruned.record.replay(fresh, torch.rand(2, 3))
    assert all(torch.equal(one, other) for one, other in zip(fresh.parameters(), before))


@pytest.mark.parametrize('widths', [(3, 10, 8, 2), (3, 12, 2)])
def test_another_model_is_refused(pruned, widths):
    with pytest.raises(GraphError):
        pruned.record.replay(make(widths), torch.rand(2, 3))


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ([], 'version None'),
        ({}, 'version None'),
        ({'version': 2}, 'version 2'),
        ({'version': 1}, 'no record of pruning'),
        ({'version': 1, 'units': [{'name': 'a'}], 'steps': []}, 'no record of pruning'),
        ({'version': 1, 'units': [], 'steps': [], 'macs': [1, 1], 'params': [1, 1], 'importance': 'l1', 'x': 1}, 'no record'),
    ],
)
def test_what_is_no_record_is_refused(content, said):
    with pytest.raises(ConfigError, match=said):
        PruneRecord.from_dict(content)


def test_files_are_text_and_never_unpickled(tmp_path):
    path = tmp_path / 'record.json'
    path.write_text('{')
    with pytest.raises(ConfigError, match='not JSON'):
        PruneRecord.load(path)
    path.write_bytes(pickle.dumps({'version': 1}))
    with pytest.raises(UnsafeFileError):
        PruneRecord.load(path)
