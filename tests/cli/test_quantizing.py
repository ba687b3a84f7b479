from __future__ import annotations

import gzip
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from strop.architectures import ClsDataPreprocessor
from strop.cli.quantizing import _images
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


def test_images_are_normalised_as_the_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grey image of 51, which is a fifth: by the model's preprocessor, by its own settings, and else by ImageNet's."""
    image = pytest.importorskip('PIL.Image')
    image.fromarray(np.full((9, 9, 3), 51, np.uint8)).save(tmp_path / 'a.png')
    notes: list[str] = []
    monkeypatch.setattr('strop.cli.console.note', notes.append)

    def value(shape: tuple[int, ...] = (1, 3, 8, 8), settings: Any = None, **preprocessor: Any) -> list[float]:
        own = ClsDataPreprocessor(**preprocessor) if preprocessor else None
        found = SimpleNamespace(
            input_shape=shape, model=SimpleNamespace(pretrained_cfg=settings), algorithm=SimpleNamespace(data_preprocessor=own)
        )
        (batch,) = _images(found, tmp_path, 1, 4)
        assert batch.shape == shape
        return [round(number, 4) for number in batch.amax(dim=(0, 2, 3)).tolist()]

    assert value(mean=[127.5] * 3, std=[127.5] * 3) == [-0.6] * 3
    assert value((1, 1, 8, 8), mean=[25.5], std=[51.0]) == [0.5]
    assert value(settings={'mean': (0.1,) * 3, 'std': (0.2, 0.1, 0.4)}) == [0.5, 1.0, 0.25]
    assert notes == []
    assert value() == [round((0.2 - mean) / std, 4) for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    assert len(notes) == 1


def test_bad_input_is_said_in_one_line(here: Path, arrays: Path, tmp_path: Path) -> None:
    assert "Did you mean 'openvino'" in one_error(run(*PLAIN[:-1], 'openvin', '--data', arrays))
    assert "ends in '.onnx'" in one_error(run(*PLAIN, '--data', arrays, '--out', tmp_path / 'model.pte'))
    assert 'patches_parts:make_plain brings none: give --data, a folder of images, a .npz' in one_error(run(*PLAIN))
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


def test_damaged_files_are_named_in_one_line(here: Path, arrays: Path, tmp_path: Path) -> None:
    image = pytest.importorskip('PIL.Image')
    whole = arrays.read_bytes()
    np.savez_compressed(tmp_path / 'small.npz', inputs=np.zeros((4, 3, 8, 8), np.float32))
    small = (tmp_path / 'small.npz').read_bytes()
    np.save(tmp_path / 'one.npy', np.zeros((4, 3, 8, 8), np.float32))
    one = (tmp_path / 'one.npy').read_bytes()
    damaged = {
        'cut.npz': whole[: len(whole) // 2],
        'none.npz': b'',
        'flipped.npz': whole[:1000] + bytes([whole[1000] ^ 255]) + whole[1001:],
        'stream.npz': small[:60] + b'\xff' * 20 + small[80:],
        'version.npz': whole.replace(b'PK\x01\x02-\x03-\x00', b'PK\x01\x02-\x03\xab\x00'),
        'head.npy': one.replace(b'}', b' '),
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        assert one_error(run(*PLAIN, '--data', tmp_path / name)).startswith(f'{tmp_path / name} cannot be read as arrays: '), (
            name
        )
    (tmp_path / 'images').mkdir()
    picture = tmp_path / 'images' / 'a.png'
    image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(picture)
    content = picture.read_bytes()
    start = content.index(b'IDAT')
    length = content[: start - 4] + (100).to_bytes(4, 'big') + content[start:]
    for name, wrong in {'cut': content[:99], 'length of a chunk': length}.items():
        picture.write_bytes(wrong)
        said = one_error(run(*PLAIN, '--data', tmp_path / 'images'))
        assert said.startswith(f'{picture} cannot be read as an image: '), name


TEXT = 'the strop keeps a razor sharp and the razor keeps a face smooth '


@pytest.fixture(scope='module')
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small language model of transformers, random weights, and a tokenizer of words."""
    transformers = pytest.importorskip('transformers')
    tokenizers = pytest.importorskip('tokenizers')
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    words = {word: index for index, word in enumerate(['[UNK]', *dict.fromkeys(TEXT.split())])}
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(words),
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='[UNK]').save_pretrained(folder)
    (folder / 'text.txt').write_text(TEXT * 60)
    return folder


def test_weights_of_a_language_model_are_rounded_by_gptq_on_text(language_model: Path, tmp_path: Path) -> None:
    from strop.compression.model_source import ModelSource
    from strop.quantization import WeightRecord, load_packed, packed_layers

    text, out = language_model / 'text.txt', tmp_path / 'small.safetensors'
    window = ('--context', 16, '--batches', 4, '--group-size', 16)
    common = ('quantize', f'transformers:{language_model}', '--weight-only', 'int3', *window)
    done = run(*common, '--method', 'gptq', '--data', text, '--score', text, '--out', out)
    assert done.exit_code == 0, done.stderr
    assert '14 layers in int3, groups of 16, asymmetric, by gptq' in done.stdout
    assert 'lm_head stays as it is' in done.stdout
    before, after = re.search(r'Perplexity ([\d.]+) before, ([\d.]+) after', done.stdout).groups()  # type: ignore[union-attr]
    assert float(after) == pytest.approx(float(before), rel=0.3)
    record = WeightRecord.load(tmp_path / 'small.json')
    assert {layer.bits for layer in record.layers} == {3}
    assert all(layer.error is not None for layer in record.layers)
    again = load_packed(ModelSource.of(f'transformers:{language_model}').build(), out)
    assert len(packed_layers(again)) == 14


def test_weights_of_any_model_are_rounded_to_nearest(here: Path, tmp_path: Path) -> None:
    done = run(
        'quantize', 'patches_parts:make_plain', '--input-shape', '2x3x8x8', '--weight-only', 'int8', '--group-size', 0, '--json'
    )
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content['record']['method'] == 'rtn'
    assert [layer['name'] for layer in content['record']['layers']] == ['4']
    assert content['perplexity'] is None


def test_bad_input_of_weight_only_is_said_in_one_line(here: Path, language_model: Path, tmp_path: Path) -> None:
    model = ('quantize', f'transformers:{language_model}')
    assert 'int2 to int8' in one_error(run(*model, '--weight-only', 'int1'))
    assert 'give --data' in one_error(run(*model, '--weight-only', 'int4', '--method', 'gptq'))
    assert '--backend is not for --weight-only' in one_error(run(*model, '--weight-only', 'int4', '--backend', 'openvino'))
    assert '--method is for --weight-only' in one_error(run(*PLAIN, '--method', 'gptq'))
    assert '.safetensors' in one_error(run(*model, '--weight-only', 'int4', '--out', tmp_path / 'model.onnx'))
    assert 'no file' in one_error(run(*model, '--weight-only', 'int4', '--method', 'gptq', '--data', 'none.txt'))
    (tmp_path / 'short.txt').write_text('razor sharp')
    given = ('--weight-only', 'int4', '--method', 'gptq', '--data', tmp_path / 'short.txt')
    assert 'need' in one_error(run(*model, *given))
    assert 'transformers:FOLDER' in one_error(run(*PLAIN[:4], *given))
    assert list(tmp_path.glob('model.*')) == []


def test_damaged_text_is_named_in_one_line(language_model: Path, tmp_path: Path) -> None:
    whole = gzip.compress((TEXT * 60).encode())
    damaged = {
        'cut': whole[:-12],
        'head': whole[:5],
        'stream': whole[:12] + b'\xff' * 9 + whole[21:],
        'sum': whole[:-8] + b'\0' * 8,
    }
    common = ('quantize', f'transformers:{language_model}', '--weight-only', 'int4')
    for name, content in damaged.items():
        file = tmp_path / f'{name}.txt.gz'
        file.write_bytes(content)
        for given in (('--method', 'gptq', '--data', file), ('--score', file)):
            assert one_error(run(*common, *given)).startswith(f'{file} cannot be read as text: '), name


def strictly(text: str) -> Any:
    """Read JSON as other languages do, which know no infinities."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))


def test_infinities_are_printed_as_json(
    monkeypatch: pytest.MonkeyPatch, arrays: Path, language_model: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip('transformers')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'dead_parts.py').write_text(
        'from torch import nn\n\n\ndef make():\n    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))\n'
        '    nn.init.zeros_(model[1].weight)\n    return model\n'
    )
    model = ('quantize', 'dead_parts:make', '--input-shape', '2x3x8x8', '--json')
    done = run(*model, '--weight-only', 'int4')
    assert done.exit_code == 0, done.stderr
    assert [layer['sqnr'] for layer in strictly(done.stdout)['record']['layers']] == ['inf']
    done = run(*model, '--backend', 'tensorrt', '--data', arrays, '--sensitivity', '--no-measure')
    assert done.exit_code == 0, done.stderr
    assert strictly(done.stdout)['sensitivity'] == [{'layer': '1', 'sqnr_db': 'inf', 'drop': None}]
    sure = transformers.LlamaForCausalLM.from_pretrained(language_model)
    sure.lm_head.weight.data *= 1e6
    shutil.copytree(language_model, tmp_path / 'sure')
    sure.save_pretrained(tmp_path / 'sure')
    given = ('--weight-only', 'int4', '--group-size', 16, '--score', language_model / 'text.txt', '--json')
    done = run('quantize', f'transformers:{tmp_path / "sure"}', *given)
    assert done.exit_code == 0, done.stderr
    assert strictly(done.stdout)['perplexity'] == {'before': 'inf', 'after': 'inf'}


def test_a_slower_model_is_told_with_what_to_do(here: Path, arrays: Path) -> None:
    pytest.importorskip('onnxruntime')
    from strop.quantization import backends

    load = backends()['onnxruntime'].load
    assert load is not None

    def slow(path: Path, threads: int, precision: str) -> Any:
        program = load(path, threads, precision)
        integers = b'QuantizeLinear' in path.read_bytes()
        return lambda tensors: (time.sleep(0.02 if integers else 0), program(tensors))[1]

    object.__setattr__(backends()['onnxruntime'], 'load', slow)
    try:
        done = run(*PLAIN[:-1], 'onnxruntime', '--data', arrays)
    finally:
        object.__setattr__(backends()['onnxruntime'], 'load', load)
    assert done.exit_code == 0, done.stderr
    assert 'SLOWER than float here in onnxruntime' in done.stdout
