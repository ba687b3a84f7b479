from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from strop.quantization import QuantizationRecord

from .running import one_error, run

pytest.importorskip('torchao')
pytest.importorskip('onnxscript')

PLAIN = ('quantize', 'patches_parts:make_plain', '--input-shape', '2x3x8x8', '--backend', 'tensorrt')


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'data.npz', inputs=rng.standard_normal((40, 3, 8, 8)).astype(np.float32), labels=np.zeros(40))
    return tmp_path / 'data.npz'


def test_the_backends_are_listed_with_what_is_fast() -> None:
    done = run('quantize', '--list')
    assert done.exit_code == 0, done.stderr
    for name in ('inductor', 'onnxruntime', 'openvino', 'executorch', 'tensorrt'):
        assert name in done.stdout


def test_a_file_and_its_record_are_written(here: Path, arrays: Path, tmp_path: Path) -> None:
    out = tmp_path / 'model.onnx'
    done = run(*PLAIN, '--data', arrays, '--out', out, '--batches', 2, '--batch-size', 8, '--layers')
    assert done.exit_code == 0, done.stderr
    assert '2 of 2 layers compute with integers; ranges from 16 samples' in done.stdout
    assert out.is_file()
    record = QuantizationRecord.load(tmp_path / 'model.json')
    assert [layer.name for layer in record.layers] == ['0', '4']


def test_it_is_timed_beside_the_float_model_and_printed_as_json(here: Path, arrays: Path) -> None:
    pytest.importorskip('onnxruntime')
    done = run(*PLAIN[:-1], 'onnxruntime', '--data', arrays, '--ignored', '4', '--json')
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert [layer['reason'] for layer in content['record']['layers']] == ['', "by the pattern '4'"]
    assert content['check']['difference'] <= content['check']['limit']
    assert set(content['latency']['latency']) == {'int8', 'f32'}
    assert content['files'] == {}


def test_a_folder_of_images_calibrates(here: Path, tmp_path: Path) -> None:
    image = pytest.importorskip('PIL.Image')
    rng = np.random.default_rng(0)
    (tmp_path / 'images' / 'cat').mkdir(parents=True)
    for index in range(5):
        pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        image.fromarray(pixels).save(tmp_path / 'images' / 'cat' / f'{index}.png')
    done = run(*PLAIN, '--data', tmp_path / 'images', '--no-measure')
    assert done.exit_code == 0, done.stderr
    assert 'ranges from 5 samples' in done.stdout


def test_bad_input_is_said_in_one_line(here: Path, arrays: Path, tmp_path: Path) -> None:
    assert "Did you mean 'openvino'" in one_error(run(*PLAIN[:-1], 'openvin', '--data', arrays))
    assert "ends in '.onnx'" in one_error(run(*PLAIN, '--data', arrays, '--out', tmp_path / 'model.pte'))
    assert 'give --data' in one_error(run(*PLAIN))
    assert 'There is no file' in one_error(run(*PLAIN, '--data', tmp_path / 'none.npz'))
    np.savez(tmp_path / 'bytes.npz', images=np.zeros((4, 3, 8, 8), np.uint8))
    assert 'normalised floats' in one_error(run(*PLAIN, '--data', tmp_path / 'bytes.npz'))
    np.savez(tmp_path / 'two.npz', a=np.zeros(3), b=np.zeros(3))
    assert "to be called 'inputs'" in one_error(run(*PLAIN, '--data', tmp_path / 'two.npz'))
    (tmp_path / 'empty').mkdir()
    assert 'holds no images' in one_error(run(*PLAIN, '--data', tmp_path / 'empty'))
    np.savez(tmp_path / 'nan.npz', inputs=np.full((4, 3, 8, 8), np.nan, np.float32))
    assert 'NaN' in one_error(run(*PLAIN, '--data', tmp_path / 'nan.npz'))
    assert list(tmp_path.glob('model.*')) == []
