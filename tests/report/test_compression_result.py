from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import get_args, get_type_hints

import jsonschema
import numpy as np
import pytest
import torch

from strop.errors import ConfigError, UnsafeFileError
from strop.report import CompressionResult, compression_result, result_schema
from strop.report.compression_result import (
    Asked,
    DataSource,
    Export,
    LayerChange,
    LayerState,
    Measurement,
    Missing,
    ModelSource,
    Outcome,
    SpeedRatio,
    Stage,
    StageResources,
    Tried,
)  # fmt: skip


def full() -> CompressionResult:
    layer = LayerChange('conv', 'Conv2d', LayerState([8, 3, 3, 3], 100, 216, 0.5, 'f32'), LayerState([4, 3, 3, 3], 50, 108))
    return CompressionResult(
        asked=Asked({'seed': 1}, {'latency': 0.5}),
        outcome=Outcome(True, ['It fits.']),
        environment={'cpu': 'one', 'versions': {'torch': '2'}},
        model=ModelSource('net', 'timm:net', [3, 8, 8]),
        data=DataSource('digits', {'train': 10, 'test': 5}, 1, {'train': 'weights'}),
        stages=[
            Stage('source', 'source', resources=StageResources(200, 300, 0.1, 0.2), scores={'accuracy': 0.9}),
            Stage('prune', 'prune', 'done', {'ratio': 0.5}, 2.5, ['Why.'], StageResources(100), {'accuracy': 0.8}, 'test',
                  [{'step': 1, 'loss': 2.0}], [layer, LayerChange('gone', 'Linear')], ['Careful.']),
        ],
        tried=[Tried('half', 'prune', 100, 200, 1.5, 0.8, True, 'validation')],
        measurements=[Measurement('prune', 'eager', 'f32', 1, 1, 2.0, 1.9, 2.1, 7, 0.8, 1000, 3.5)],
        exports=[Export('model.onnx', 'onnx', 'onnxruntime', 1e-6, 1000)],
        ratios=[SpeedRatio('a as b', 2.0, 1.9, 2.1)],
        missing=[Missing('openvino', 'it is not installed', 'openvino')],
        warnings=['Look.'],
    )  # fmt: skip


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = full().write(tmp_path)
    assert path == tmp_path / 'result.json'
    assert CompressionResult.read(tmp_path) == CompressionResult.read(path) == full()


def test_a_file_of_any_name_can_be_written(tmp_path: Path) -> None:
    assert full().write(tmp_path / 'a' / 'other.json') == tmp_path / 'a' / 'other.json'
    assert CompressionResult.read(tmp_path / 'a' / 'other.json') == full()


def test_a_file_with_the_least_in_it_is_read() -> None:
    assert CompressionResult.from_dict({'version': 1}) == CompressionResult()


def test_the_schema_has_each_field_and_no_other() -> None:
    schema = result_schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    def compare(kind: type, described: dict) -> None:
        hints = get_type_hints(kind)
        assert set(described['properties']) == {field.name for field in dataclasses.fields(kind)}, kind
        for name, hint in hints.items():
            inner = next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), None)
            if inner is None:
                continue
            part = described['properties'][name]
            part = part.get('items', part)
            part = part['anyOf'][0] if 'anyOf' in part else part
            compare(inner, schema['$defs'][part['$ref'].rpartition('/')[2]] if '$ref' in part else part)

    compare(CompressionResult, schema)


def test_numbers_of_arrays_and_tensors_become_plain_ones() -> None:
    result = CompressionResult()
    result.stages.append(Stage('source', 'source', scores={'a': np.float32(0.5)}, seconds=torch.tensor(2.0)))
    result.asked.recipe = {'folder': Path('data'), 'sizes': (np.int64(3), 4)}
    content = json.loads(json.dumps(result.to_dict()))
    assert content['stages'][0]['scores'] == {'a': 0.5}
    assert content['stages'][0]['seconds'] == 2.0
    assert content['asked']['recipe'] == {'folder': 'data', 'sizes': [3, 4]}


def test_a_loss_that_is_not_finite_is_left_open() -> None:
    result = CompressionResult(stages=[Stage('train', 'finetune', curve=[{'step': 1, 'loss': float('nan')}])])
    assert result.to_dict()['stages'][0]['curve'] == [{'step': 1, 'loss': None}]


def test_a_score_that_is_not_finite_is_refused_where_it_is_and_nothing_is_written(tmp_path: Path) -> None:
    result = full()
    result.write(tmp_path)
    result.stages[1].scores['accuracy'] = float('inf')
    with pytest.raises(ConfigError, match=r'stages\.1\.scores\.accuracy is inf'):
        result.write(tmp_path)
    assert CompressionResult.read(tmp_path) == full()


@pytest.mark.parametrize('number', ['1e999', '-Infinity', 'NaN'])
def test_a_file_with_a_number_that_is_not_finite_is_refused_with_its_place(tmp_path: Path, number: str) -> None:
    content = full().to_dict()
    content['stages'][0]['scores']['accuracy'] = 0.12345
    (tmp_path / 'result.json').write_text(json.dumps(content).replace('0.12345', number))
    with pytest.raises(ConfigError, match=r'result\.json cannot be read. .*finite.*stages\.0\.scores\.accuracy is (-?inf|nan)'):
        CompressionResult.read(tmp_path)


def test_what_json_cannot_hold_is_named() -> None:
    with pytest.raises(ConfigError, match=r'asked\.recipe\.model is a Linear'):
        CompressionResult(asked=Asked({'model': torch.nn.Linear(1, 1)})).to_dict()


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'version': 2}, 'version 2; this Strop reads up to version 1'),
        ({}, "'version' is a required property"),
        ({'version': 1, 'stage': []}, r"'stage' was unexpected.*Did you mean 'stages'"),
        ({'version': 1, 'stages': [{'name': 'a', 'kind': 'shrink'}]}, r"stages\.0\.kind: 'shrink'"),
        ({'version': 1, 'measurements': [{'stage': 'a'}]}, r'measurements\.0'),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused(tmp_path: Path, content: dict, said: str) -> None:
    (tmp_path / 'result.json').write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=said) as error:
        CompressionResult.read(tmp_path)
    assert 'result.json' in str(error.value)


def test_files_that_are_no_result_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'has no result\.json'):
        CompressionResult.read(tmp_path)
    (tmp_path / 'result.json').write_text('[1, 2]')
    with pytest.raises(ConfigError, match='it holds a list'):
        CompressionResult.read(tmp_path)
    (tmp_path / 'result.json').write_text('{"version": ')
    with pytest.raises(ConfigError, match='is not JSON'):
        CompressionResult.read(tmp_path)
    (tmp_path / 'result.json').write_bytes(pickle.dumps({'version': 1}))
    with pytest.raises(UnsafeFileError):
        CompressionResult.read(tmp_path)


def test_an_unknown_stage_is_told_with_near_matches() -> None:
    assert full().stage('prune').kind == 'prune'
    with pytest.raises(ConfigError, match=r"'prun'.*Did you mean 'prune'"):
        full().stage('prun')


def test_the_first_stage_has_a_name_that_writers_share() -> None:
    assert full().stage(compression_result.SOURCE) is not None
