"""The record of rounded weights as JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.quantization import WeightRecord, quantize_weights


def strictly(text: str) -> dict:
    """Read JSON as other languages do, which know no infinities."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))


def dead() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    nn.init.zeros_(model[1].weight)
    return model


class TestInfiniteRatios:
    @pytest.mark.parametrize('how', [{}, {'method': 'gptq', 'data': [torch.ones(3, 8)]}], ids=['rtn', 'gptq'])
    def test_a_layer_of_zeros_is_written_as_json(self, tmp_path, how):
        _, record = quantize_weights(dead(), 4, 8, **how)
        assert record.layers[1].sqnr == math.inf
        record.save(tmp_path / 'record.json')
        content = strictly((tmp_path / 'record.json').read_text())
        assert content['layers'][0]['sqnr'] == record.layers[0].sqnr
        assert content['layers'][1]['sqnr'] == 'inf'
        assert WeightRecord.load(tmp_path / 'record.json') == record

    @pytest.mark.parametrize('name', ['sqnr', 'error', 'nearest'])
    @pytest.mark.parametrize('value', [math.inf, -math.inf, math.nan, 0.25, 3])
    def test_each_ratio_comes_back_with_its_sign(self, tmp_path, name, value):
        _, record = quantize_weights(dead(), 4, 8)
        object.__setattr__(record.layers[0], name, value)
        record.save(tmp_path / 'record.json')
        strictly((tmp_path / 'record.json').read_text())
        again = WeightRecord.load(tmp_path / 'record.json')
        assert str(getattr(again.layers[0], name)) == str(float(value))
        assert again.layers[1] == record.layers[1]

    def test_files_of_before_are_read(self, tmp_path):
        _, record = quantize_weights(dead(), 4, 8)
        record.save(tmp_path / 'record.json')
        text = (tmp_path / 'record.json').read_text()
        (tmp_path / 'record.json').write_text(text.replace('"inf"', 'Infinity'))
        assert WeightRecord.load(tmp_path / 'record.json') == record

    @pytest.mark.parametrize('value', ['much', True, [1.0]])
    def test_other_things_are_no_ratios(self, value):
        content = quantize_weights(dead(), 4, 8).record.to_dict()
        content['layers'][0]['sqnr'] = value
        with pytest.raises(ConfigError, match=r'no record of rounded weights.*A number in JSON is'):
            WeightRecord.from_dict(content)
