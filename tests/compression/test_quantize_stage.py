"""Quantized files are scored by the runtime that computes them, beside the original quantized alike."""

from __future__ import annotations

import json

import pytest
import torch

import strop
from strop.compression.quantize_stage import file_run
from strop.quantization import backend
from tests.compression.conftest import small_net

pytest.importorskip('torchao')
pytest.importorskip('onnxruntime')


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    from tests.compression.conftest import drawn

    torch.set_num_threads(1)
    return strop.compress(
        small_net(), {'train': drawn(128, 'train'), 'test': drawn(64, 'test')},
        stages=[
            {'finetune': {'epochs': 3, 'lr': 0.1}}, {'prune': {'ratio': 0.5}}, {'quantize': {'backend': 'onnxruntime'}},
            {'export': {'formats': ['onnx']}},
        ],
        budget={'size_mb': 0.05, 'accuracy_drop': 60}, output=tmp_path_factory.mktemp('quantized') / 'out', threads=1,
        runtimes=['onnxruntime'], progress='quiet',
    )  # fmt: skip


def test_the_score_of_the_stage_is_that_of_the_file_in_its_runtime(found, parts):
    run = file_run(backend('onnxruntime'), found.integers['onnxruntime'], 1)
    right = sum(int((run(x).argmax(1) == y).sum()) for x, y in parts.batches('test'))
    assert found.result.stage('quantize').scores['accuracy'] == right / 64


def test_both_quantized_models_are_measured_in_the_same_runtime(found):
    rows = {(entry.stage, entry.precision) for entry in found.result.measurements if entry.runtime == 'onnxruntime'}
    assert {('finetune', 'int8'), ('quantize', 'int8'), ('finetune', 'f32'), ('prune', 'f32')} <= rows
    assert any('int8' in entry.what for entry in found.result.ratios)


def test_the_files_of_the_artefact_were_compared_and_are_listed(found):
    exports = {export.path: export for export in found.result.exports}
    assert set(exports) == {'model', 'exports/onnxruntime-int8.onnx', 'exports/model.onnx'}
    assert 0 <= exports['exports/onnxruntime-int8.onnx'].difference < 0.1
    assert all((found.folder / path).exists() for path in exports)
    record = json.loads((found.folder / 'records' / '03-quantize-quantization.json').read_text())
    assert record['backend'] == 'onnxruntime'


def test_size_and_drop_are_judged_by_the_quantized_model(found):
    assert found.met is True
    assert len(found.result.outcome.sentences) == 2
