"""Files for runtimes count only if they compute what the model does."""

from __future__ import annotations

import pytest
import torch

import strop
import strop.compression.export_stage as module
from strop.errors import DifferenceError, ExportError
from strop.estimators.sessions import openvino_core
from tests.compression.conftest import drawn, small_net


def compress(folder, formats, model=None, data=None):
    return strop.compress(
        model or small_net(4),
        data or {'train': drawn(64, 'train'), 'test': drawn(16, 'test')},
        stages=[{'export': {'formats': formats}}],
        output=folder,
        threads=1,
        runtimes=['eager'],
        progress='quiet',
    )


def test_openvino_files_are_run_compared_and_both_parts_are_kept(tmp_path):
    pytest.importorskip('openvino')
    found = compress(tmp_path / 'out', ['openvino'])
    export = found.result.exports[1]
    folder = tmp_path / 'out' / 'exports'
    assert (export.path, export.runtime) == ('exports/openvino.xml', 'openvino')
    assert export.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert {path.name for path in folder.iterdir()} == {'openvino.xml', 'openvino.bin'}
    x = drawn(3, 'x')[0]
    result = openvino_core().compile_model(str(folder / 'openvino.xml'), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(x.numpy())
    assert torch.allclose(torch.from_numpy(next(iter(result.values()))), found.model(x), atol=1e-4)


def test_executorch_files_are_run_and_compared(tmp_path):
    pytest.importorskip('executorch.runtime')
    found = compress(tmp_path / 'out', ['executorch'])
    assert found.result.exports[1].difference < 1e-4
    assert (tmp_path / 'out' / 'exports' / 'model.pte').stat().st_size == found.result.exports[1].bytes


def test_a_file_that_differs_fails_the_stage_and_says_where(tmp_path, monkeypatch):
    pytest.importorskip('openvino')
    right = module.Source.distance

    def wrong(self, run, *args):
        return right(self, lambda given: [value + 1 for value in run(given)], *args)

    monkeypatch.setattr(module.Source, 'distance', wrong)
    with pytest.raises(
        ExportError, match=r'The model gives|gives different|openvino does not do what the model does: at batch'
    ):
        compress(tmp_path / 'out', ['openvino'])
    assert not (tmp_path / 'out' / 'exports').exists()


def test_formats_that_are_not_installed_are_told_where_none_are_named(tmp_path, monkeypatch):
    absent = module.Format('model.pte', 'executorch', ('no_such_module',), 'executorch')
    only = {'pt2': module.FORMATS['pt2'], 'executorch': absent}
    monkeypatch.setattr(module, 'FORMATS', only)
    found = compress(tmp_path / 'out', [])
    assert [export.format for export in found.result.exports] == ['recipe', 'pt2']
    assert "no_such_module is not installed (pip install 'strop[executorch]')" in found.result.stage('export').warnings[0]


class TestAModelThatOneRuntimeCannotRun:
    """ExecuTorch has no kernel for pooling in three dimensions; it says so when the file is loaded."""

    @staticmethod
    def given():
        pytest.importorskip('executorch')
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool3d(2), torch.nn.Flatten(),
            torch.nn.Linear(64, 2),
        )  # fmt: skip
        volumes = torch.rand(32, 1, 4, 4, 4)
        return model, {'train': (volumes, torch.arange(32) % 2), 'test': (volumes[:8], torch.arange(8) % 2)}

    def test_its_format_is_left_out_where_none_is_named(self, tmp_path):
        found = compress(tmp_path / 'out', [], *self.given())
        formats = [export.format for export in found.result.exports]
        assert 'pt2' in formats
        assert 'executorch' not in formats
        assert any(
            text.startswith('No file for executorch was written: ExecuTorch cannot run Sequential')
            for text in found.result.stage('export').warnings
        )
        assert not (tmp_path / 'out' / 'exports' / 'model.pte').exists()

    def test_its_format_fails_the_stage_where_it_is_named(self, tmp_path):
        with pytest.raises(ExportError, match='ExecuTorch cannot run Sequential'):
            compress(tmp_path / 'out', ['pt2', 'executorch'], *self.given())
        assert not (tmp_path / 'out' / 'exports').exists()


def test_a_file_that_differs_fails_the_stage_though_no_format_is_named(tmp_path, monkeypatch):
    pytest.importorskip('openvino')
    right = module._write_openvino

    def wrong(source, path, rtol, atol):
        distance = source.distance
        monkeypatch.setattr(source, 'distance', lambda run, *limits: distance(lambda g: [v + 1 for v in run(g)], *limits))
        return right(source, path, rtol, atol)

    monkeypatch.setattr(module, '_write_openvino', wrong)
    monkeypatch.setattr(module, 'FORMATS', {name: module.FORMATS[name] for name in ('pt2', 'openvino')})
    with pytest.raises(DifferenceError, match='openvino does not do what the model does: at batch'):
        compress(tmp_path / 'out', [])


def test_a_model_that_no_format_can_hold_fails_the_stage(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ExportError('It cannot be traced.')

    monkeypatch.setattr(module.ExportStage, '_written', refuse)
    with pytest.raises(ExportError, match='It cannot be traced'):
        compress(tmp_path / 'out', [])
