"""Quantized files are scored by the runtime that computes them, beside the original quantized alike."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch

import strop
from strop.compression.quantize_stage import file_run
from strop.compression.recipe import Recipe
from strop.errors import ConfigError, MissingDependencyError
from strop.quantization import backend, backends
from strop.report import CompressionReport
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


def test_the_size_of_a_quantized_stage_is_that_of_its_file(found):
    written = found.integers['onnxruntime'].stat().st_size
    stages = {stage.name: stage.resources for stage in found.result.stages}
    assert stages['quantize'].size_mb == pytest.approx(written / 1e6)
    assert stages['quantize'].macs == stages['prune'].macs
    assert stages['quantize'].peak_memory_mb is None
    assert stages['export'] == stages['quantize']  # an export changes nothing
    content = json.loads((found.folder / 'result.json').read_text())
    assert content['stages'][3]['resources']['size_mb'] == pytest.approx(written / 1e6)
    rows = {cells[0]: cells[4] for cells in zip(*(column.cells for column in CompressionReport(found.result).table().columns))}
    assert rows['quantize'] == f'{written / 1e3:.3g} kB'


def test_the_figures_of_the_report_are_of_the_file_and_of_memory_as_it_was_measured(found):
    result = copy.deepcopy(found.result)
    for entry in result.measurements:
        if entry.stage == 'quantize':
            entry.median_ms = 1e-4  # a network this small gains nothing from integers
    figures = {figure.name: figure for figure in CompressionReport(result).figures()}
    assert figures['size'].note == 'weights as stored, now in the quantized file'
    assert 'in ONNX Runtime' in figures['peak memory'].note


def test_an_optional_stage_is_left_out_with_a_word_where_its_backend_is_missing(tmp_path, pictures, monkeypatch):
    def compress():
        return strop.compress(
            small_net(4), pictures, stages=[{'quantize': {'optional': True}}, {'export': {'formats': ['pt2']}}],
            output=tmp_path / 'out', threads=1, runtimes=['eager'], progress='quiet',
        )  # fmt: skip

    absent = {name: replace(entry, modules=('no_such_module',)) for name, entry in backends().items()}
    with monkeypatch.context() as patch:
        patch.setattr(import_module('strop.quantization.backends'), '_BACKENDS', absent)
        with pytest.raises(MissingDependencyError):
            Recipe.of({'stages': ['quantize']}).check()
        found = compress()
    stage = found.result.stage('quantize')
    assert stage.status == 'skipped'
    assert "no_such_module of the backend 'inductor' is not installed (pip install 'strop[quantization]')" in stage.warnings[0]
    assert stage.scores == found.result.stage('source').scores
    assert found.integers == {}
    # Once it can be done, it is.
    assert compress().result.stage('quantize').status == 'done'


def test_size_and_drop_are_judged_by_the_quantized_model(found):
    assert found.met is True
    assert len(found.result.outcome.sentences) == 2


def test_a_drop_that_integers_cannot_keep_gives_the_nearest_whole_and_says_so(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8), torch.nn.Unflatten(1, (4, 2)))
    x = torch.randn(96, 6)
    stages = [{'quantize': {'backend': 'onnxruntime'}}]
    options = dict(output=tmp_path / 'out', threads=1, runtimes=['onnxruntime'], progress='quiet')
    found = strop.compress(net, {'train': x, 'test': x[:32]}, stages=stages, budget={'accuracy_drop': 0}, **options)
    assert found.met is False
    stage = found.result.stage('quantize')
    assert any('every layer would have to stay float' in text and 'every layer is quantized' in text for text in stage.warnings)
    assert 0.9 < stage.scores['similarity'] < 1
    assert (found.folder / 'exports' / 'onnxruntime-int8.onnx').is_file()


def test_a_drop_that_the_stage_itself_is_told_is_kept_or_an_error(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8), torch.nn.Unflatten(1, (4, 2)))
    x = torch.randn(96, 6)
    stages = [{'quantize': {'backend': 'onnxruntime', 'max_drop': 0.0}}]
    options = dict(output=tmp_path / 'out', threads=1, runtimes=['onnxruntime'], progress='quiet')
    with pytest.raises(ConfigError, match='Allow a larger drop'):
        strop.compress(net, {'train': x, 'test': x[:32]}, stages=stages, **options)
