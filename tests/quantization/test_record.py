import json
from dataclasses import replace

import pytest

from strop.errors import ConfigError, UnsafeFileError
from strop.quantization import Check, LayerRecord, QuantizationRecord

RECORD = QuantizationRecord(
    backend='openvino',
    layers=(
        LayerRecord('stem', 'conv2d', 8, 8, 16, (0.001, 0.002), 0.05, 128, 40.0),
        LayerRecord('head', 'linear', 32, 32, reason="by the pattern 'head'"),
    ),
    scheme={'activation': 'histogram'},
    samples=64,
    sqnr_db=float('inf'),
    other_ops={'softmax': 2},
    metric=(0.9, 0.89),
    passes=('2 layer norms smoothed',),
)


def test_what_is_saved_is_what_is_read(tmp_path):
    RECORD.save(tmp_path / 'record.json')
    assert QuantizationRecord.load(tmp_path / 'record.json') == RECORD
    assert json.loads((tmp_path / 'record.json').read_text())['sqnr_db'] == 'inf'  # JSON has no infinity


def test_names_are_kept_whatever_they_are(tmp_path):
    layer = LayerRecord('Infinity', 'linear', 32, 32, reason='-Infinity', sqnr_db=float('inf'))
    record = replace(RECORD, layers=(layer,))
    record.save(tmp_path / 'record.json')
    assert QuantizationRecord.load(tmp_path / 'record.json') == record


def test_a_model_that_diverged_is_not_read_as_perfect(tmp_path):
    record = replace(RECORD, sqnr_db=float('-inf'), metric=(0.9, float('-inf')))
    record.save(tmp_path / 'record.json')
    assert QuantizationRecord.load(tmp_path / 'record.json') == record
    content = json.loads((tmp_path / 'record.json').read_text(), parse_constant=pytest.fail)
    (tmp_path / 'old.json').write_text(json.dumps({**content, 'sqnr_db': None}))
    assert QuantizationRecord.load(tmp_path / 'old.json').sqnr_db == float('inf')


def test_the_text_has_layers_reasons_and_totals():
    text = str(RECORD)
    for part in ('stem', '8 bit', '0.05', "by the pattern 'head': head", '1 of 2 layers', 'softmax (2)', '0.9', 'smoothed'):
        assert part in text


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('{}', 'is no record of quantization'),
        ('[]', 'is no record of quantization'),
        ('nonsense', 'is not JSON, so it is not a record of quantization'),
        ('{"version": 1, "layers": [{"nam": 1}]}', 'is no record of quantization'),
    ],
)
def test_another_file_is_refused(tmp_path, content, said):
    (tmp_path / 'record.json').write_text(content)
    with pytest.raises(ConfigError, match=said):
        QuantizationRecord.load(tmp_path / 'record.json')


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / 'record.json').write_bytes(b'\x80\x04K\x01.')
    with pytest.raises(UnsafeFileError):
        QuantizationRecord.load(tmp_path / 'record.json')


def test_a_check_says_whether_the_file_was_run():
    assert 'batch 8 and 1' in str(Check('openvino', '2026.4', 1e-3, 2e-2, (8, 1)))
    assert 'not run' in str(Check('tensorrt', '1.0', None, None, (), ran=False))
