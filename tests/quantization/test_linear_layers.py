"""Which linear layers are chosen, where they share a weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.quantization import packed_layers, quantize_weights


class Shared(nn.Module):
    """Two layers with one weight, and one between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.between, self.b = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.between(self.a(x)))


METHODS = [{'method': 'rtn'}, {'method': 'gptq', 'data': [torch.randn(8, 16, generator=torch.Generator().manual_seed(0))]}]


class TestLayersThatShareAWeight:
    @pytest.mark.parametrize('how', METHODS, ids=['rtn', 'gptq'])
    @pytest.mark.parametrize(
        ('option', 'grid'),
        [
            ({'bits': 8}, 'int8, groups of 8, symmetric'),
            ({'group_size': 4}, 'int4, groups of 4, asymmetric'),
            ({'symmetric': True}, 'int4, groups of 8, symmetric'),
            ({'search': True}, 'int4, groups of 8, asymmetric, with a search'),
        ],
    )
    def test_unlike_grids_are_refused_with_both_names(self, how, option, grid):
        model = Shared()
        with pytest.raises(ConfigError) as raised:
            quantize_weights(model, 4, 8, overrides={'b': option}, inplace=True, **how)
        assert str(raised.value) == (
            "'a' and 'b' share one weight, which is rounded once, but they are to have unlike grids: int4, groups of 8, "
            f'asymmetric, and {grid}. Give both the same `overrides`, or leave one out by `ignored`.'
        )
        assert not packed_layers(model)

    @pytest.mark.parametrize('how', METHODS, ids=['rtn', 'gptq'])
    def test_what_the_message_says_works(self, how):
        small, record = quantize_weights(Shared(), 4, 8, overrides={'[ab]': {'bits': 8}}, **how)
        assert {layer.name: layer.bits for layer in record.layers} == {'a': 8, 'between': 4, 'b': 8}
        assert small.a.codes is small.b.codes
        small, record = quantize_weights(Shared(), 4, 8, overrides={'b': {'bits': 8}}, ignored='a', **how)
        assert {layer.name: layer.bits for layer in record.layers} == {'between': 4, 'b': 8}
        assert torch.equal(small.a.weight, Shared().a.weight)

    def test_one_that_reads_it_transposed_is_refused(self):
        conv1d = pytest.importorskip('transformers.pytorch_utils').Conv1D
        model = Shared()
        model.b = conv1d(16, 16)
        model.b.weight = model.a.weight
        with pytest.raises(ConfigError, match=r"'a' and 'b' share one weight.*reads it transposed"):
            quantize_weights(model, 4, 8)
