"""Checkpoints of stages: read back as they were, for the same settings only, and by one process at a time."""

from __future__ import annotations

import json
import os

import pytest

from strop.compression.checkpoint import Finished, locked, remove
from strop.compression.stage import IntegerFile
from strop.errors import ConfigError, StoreError
from strop.report import compression_result as results


def finished(folder):
    return Finished(
        results.Stage('prune', 'prune', scores={'accuracy': 0.5}),
        [results.Tried('step 1', 'prune', 10, 2, 0.5, 0.25, True, 'validation')],
        [results.Export('model.onnx', 'onnx', 'onnxruntime', 0.0, 12)],
        [IntegerFile('openvino', folder / 'model.xml', 'quantize', 0.5, {'accuracy': 0.5})],
        [], {'depth': 2}, 24, folder, ['plan.json'],
    )  # fmt: skip


def test_a_checkpoint_is_read_as_it_was_written_for_the_same_digest_alone(tmp_path):
    whole = finished(tmp_path)
    whole.write(tmp_path, 'a1')
    assert Finished.read(tmp_path, 'a1') == whole
    assert Finished.read(tmp_path, 'b2') is None
    assert Finished.read(tmp_path / 'nowhere', 'a1') is None


def test_a_folder_that_was_moved_finds_its_files(tmp_path):
    (tmp_path / 'old').mkdir()
    finished(tmp_path / 'old').write(tmp_path / 'old', 'a1')
    (tmp_path / 'old').rename(tmp_path / 'new')
    moved = Finished.read(tmp_path / 'new', 'a1')
    assert moved is not None
    assert moved.integers[0].path == tmp_path / 'new' / 'model.xml'


def test_what_is_half_deleted_is_no_checkpoint(tmp_path, monkeypatch):
    finished(tmp_path).write(tmp_path, 'a1')
    monkeypatch.setattr('strop.compression.checkpoint.shutil.rmtree', lambda *_, **__: None)  # killed at once
    remove(tmp_path)
    assert Finished.read(tmp_path, 'a1') is None


def test_the_lock_is_of_one_holder_until_it_is_given_back(tmp_path):
    handle = locked(tmp_path)
    if handle is None:
        pytest.skip('there are no such locks here')
    with pytest.raises(StoreError, match='Another process is compressing into'):
        locked(tmp_path)
    os.close(handle)
    os.close(locked(tmp_path))


def test_a_damaged_checkpoint_is_told_of(tmp_path):
    (tmp_path / 'stage.json').write_text(json.dumps({'digest': 'a1'})[:-3])
    with pytest.raises(ConfigError, match=r'stage\.json is not JSON'):
        Finished.read(tmp_path, 'a1')
