from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from strop.algorithms import SPOS
from strop.errors import ConfigError, ExportError
from strop.export import export, load_recipe
from strop.mutables import LayerChoice, dump_subnet, extract

from .conftest import CLASSIFIER, draw, supernet

pytest.importorskip('onnxscript')
ort = pytest.importorskip('onnxruntime')


def make() -> nn.Module:
    return nn.Sequential(LayerChoice([nn.Linear(3, 2), nn.Linear(3, 2, bias=False)]))


def test_an_algorithm_to_everything(tmp_path, images):
    algorithm = SPOS(supernet())
    subnet = draw(algorithm.architecture, 7)
    dump_subnet(subnet, tmp_path / 'best.yaml')
    written = export(
        algorithm, tmp_path / 'net', subnet=tmp_path / 'best.yaml', factory={'type': 'SPOS', 'architecture': CLASSIFIER},
        input_shape=(2, 3, 32, 32), note='of a test',
    )  # fmt: skip
    names = ['README.md', 'export.json', 'model.onnx', 'model.pt2', 'model.safetensors', 'recipe.json']
    assert sorted(os.listdir(tmp_path / 'net')) == names
    assert list(written) == ['recipe', 'pt2', 'onnx']
    assert all(result.path.exists() for result in written.values())
    plain = extract(algorithm.architecture, subnet).eval()
    loaded = load_recipe(tmp_path / 'net')
    program = torch.export.load(tmp_path / 'net' / 'model.pt2').module()
    session = ort.InferenceSession(tmp_path / 'net' / 'model.onnx')
    with torch.no_grad():
        for x in (images[:1], images, torch.randn(7, 3, 32, 32)):
            wanted = plain(x)
            assert torch.equal(loaded(x), wanted)
            torch.testing.assert_close(program(x), wanted, rtol=1e-5, atol=1e-6)
            found = torch.from_numpy(session.run(None, {'inputs': x.numpy()})[0])
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    report = json.loads((tmp_path / 'net' / 'export.json').read_text())
    assert report['formats']['onnx']['max_abs_error'] == written['onnx'].max_abs_error
    assert report['formats']['pt2']['batches'] == [1, 2, 3]
    assert algorithm.architecture.training


class OneIsSpecial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale if x.shape[0] == 1 else x * 2


def test_a_format_that_fails_leaves_what_was_there(tmp_path):
    export(make(), tmp_path / 'net', 'recipe', subnet={'0': 1}, factory=make)
    before = (tmp_path / 'net' / 'recipe.json').read_bytes()
    with pytest.raises(ExportError, match='at batch 1'):
        export(OneIsSpecial(), tmp_path / 'net', ('recipe', 'pt2'), factory=OneIsSpecial, input_shape=(2, 3))
    assert sorted(os.listdir(tmp_path / 'net')) == ['README.md', 'export.json', 'model.safetensors', 'recipe.json']
    assert (tmp_path / 'net' / 'recipe.json').read_bytes() == before
    assert os.listdir(tmp_path) == ['net']


def test_one_file(tmp_path):
    written = export(make(), tmp_path / 'a.onnx', subnet={'0': 0}, input_shape=(2, 3), dynamic_batch=False)
    assert list(written) == ['onnx']
    assert written['onnx'].inputs == {'input': [2, 3]}
    assert os.listdir(tmp_path) == ['a.onnx']


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'formats': 'tflite'}, "one of 'recipe', 'pt2', 'onnx', but got 'tflite'"),
        ({'formats': ['onx']}, "Did you mean 'onnx'"),
        ({'formats': []}, 'At least one format'),
        ({}, 'give factory='),
        ({'factory': make}, 'its inputs are needed'),
        ({'factory': make, 'input_shape': (2, 3), 'example_inputs': torch.zeros(2, 3)}, 'but got both'),
        ({'path': 'a.pt2', 'formats': ('pt2', 'onnx')}, "is one file of the format 'pt2'"),
    ],
)
def test_what_is_missing_is_said(kwargs, message, tmp_path):
    path = tmp_path / kwargs.pop('path', 'net')
    with pytest.raises(ConfigError, match=message):
        export(make(), path, subnet={'0': 0}, **kwargs)
    assert not list(tmp_path.iterdir())
