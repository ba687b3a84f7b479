"""Packed layers: exact bits, their size, files, and what doesn't fit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strop.errors import ConfigError, UnsafeFileError
from strop.quantization import (
    Grid,
    PackedLinear,
    load_packed,
    packed_layers,
    quantize_weights,
    round_weight,
    save_packed,
    unpacked,
)
from strop.quantization.packed import pack, unpack
from tests.quantization.nets import sqnr


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.LayerNorm(40), nn.Linear(40, 12, bias=False))


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), rows=st.integers(1, 4), number=st.integers(1, 41), seed=st.integers(0, 5))
def test_packing_loses_nothing_and_wastes_nothing(bits, rows, number, seed):
    codes = torch.randint(2**bits, (rows, number), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-number // 8) * bits)
    assert torch.equal(unpack(packed, bits, number), codes)


class TestLayer:
    @pytest.mark.parametrize('bits', range(2, 9))
    @pytest.mark.parametrize('symmetric', [True, False])
    def test_its_output_is_that_of_the_rounded_weights(self, bits, symmetric):
        torch.manual_seed(bits)
        plain = nn.Linear(50, 7)
        rounded = round_weight(plain.weight.detach(), Grid(bits, 16, symmetric))
        layer = PackedLinear(rounded, plain.bias, torch.float32)
        inputs = torch.randn(3, 2, 50)
        assert torch.equal(layer.weight, rounded.values())
        assert torch.equal(layer(inputs), nn.functional.linear(inputs, rounded.values(), plain.bias))

    def test_a_large_layer_is_computed_in_parts_that_change_nothing(self, monkeypatch):
        torch.manual_seed(0)
        plain = nn.Linear(40, 30).double()
        layer = PackedLinear(round_weight(plain.weight.detach(), Grid(3, 16)), plain.bias, torch.float64)
        inputs = torch.randn(2, 3, 40, dtype=torch.float64)
        whole = layer(inputs)
        monkeypatch.setattr('strop.quantization.packed._CHUNK', 7 * 40)
        assert torch.allclose(layer(inputs), whole, atol=1e-12)
        assert layer(inputs).shape == whole.shape

    def test_three_bits_take_three_bits_a_weight(self):
        layer = PackedLinear(round_weight(torch.randn(16, 64), Grid(3, 64), torch.float16), None, torch.float32)
        assert layer.codes.numel() == 16 * 64 * 3 // 8
        assert layer.scales.numel() * layer.scales.element_size() == 16 * 2

    def test_gradients_flow_to_its_inputs(self):
        layer = PackedLinear(round_weight(torch.randn(4, 8), Grid(4)), None, torch.float32)
        inputs = torch.randn(2, 8, requires_grad=True)
        layer(inputs).sum().backward()
        assert torch.allclose(inputs.grad, layer.weight.sum(0).expand(2, 8))

    def test_a_model_cast_to_bfloat16_computes_in_it_and_keeps_its_scales(self):
        small, _ = quantize_weights(net(), 4, 16)
        scales = small[0].scales.clone()
        small.to(torch.bfloat16)
        assert small(torch.randn(2, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert small[0].scales.dtype == torch.float16
        assert torch.equal(small[0].scales, scales)

    def test_it_computes_in_half_precision_under_autocast(self):
        small, _ = quantize_weights(net(), 4, 16)
        with torch.autocast('cpu', torch.bfloat16):
            assert small(torch.randn(2, 48)).dtype == torch.bfloat16

    def test_a_copy_is_independent(self):
        small, _ = quantize_weights(net(), 4, 16)
        twin = copy.deepcopy(small)
        twin[0].scales.zero_()
        assert small[0].scales.abs().sum() > 0

    def test_it_compiles_without_a_graph_break(self):
        small, _ = quantize_weights(net(), 3, 16)
        inputs = torch.randn(2, 48)
        compiled = torch.compile(small, backend='eager', fullgraph=True)
        assert torch.equal(compiled(inputs), small(inputs))

    def test_unpacked_gives_plain_layers_with_the_same_outputs(self):
        small, _ = quantize_weights(net(), 4, 16)
        plain = unpacked(small)
        assert not packed_layers(plain)
        assert packed_layers(small)
        inputs = torch.randn(5, 48)
        assert torch.equal(plain(inputs), small(inputs))


class TestFile:
    @pytest.mark.parametrize(('bits', 'symmetric'), [(2, False), (3, True), (4, False), (8, True)])
    def test_what_was_saved_comes_back_into_a_float_model(self, tmp_path, bits, symmetric):
        small, _ = quantize_weights(net(), bits, 16, symmetric=symmetric)
        save_packed(small, tmp_path / 'm.safetensors')
        original = net(seed=1)
        before = {name: value.clone() for name, value in original.state_dict().items()}
        again = load_packed(original, tmp_path / 'm.safetensors')
        inputs = torch.randn(4, 48)
        assert torch.equal(again(inputs), small(inputs))
        assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
        assert isinstance(original[0], nn.Linear)

    def test_it_loads_into_a_model_that_is_packed_in_the_same_way(self, tmp_path):
        small, _ = quantize_weights(net(), 4, 16)
        save_packed(small, tmp_path / 'm.safetensors')
        other, _ = quantize_weights(net(1), 4, 16)
        inputs = torch.randn(4, 48)
        assert torch.equal(load_packed(other, tmp_path / 'm.safetensors')(inputs), small(inputs))

    def test_the_file_is_as_small_as_the_record_says(self, tmp_path):
        small, record = quantize_weights(net(), 2, 16)
        save_packed(small, tmp_path / 'm.safetensors')
        size = (tmp_path / 'm.safetensors').stat().st_size
        assert record.bytes[1] <= size < record.bytes[1] + 3000

    def test_shared_tensors_are_written_once(self, tmp_path):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(500, 16)
                self.inner = nn.Linear(16, 16)
                self.lm_head = nn.Linear(16, 500, bias=False)
                self.lm_head.weight = self.table.weight

            def forward(self, ids):
                return self.lm_head(self.inner(self.table(ids)))

        small, _ = quantize_weights(Tied(), 4, 16)
        save_packed(small, tmp_path / 'm.safetensors')
        assert (tmp_path / 'm.safetensors').stat().st_size < 1.2 * 500 * 16 * 4
        ids = torch.arange(9)
        again = load_packed(Tied(), tmp_path / 'm.safetensors')
        assert torch.equal(again(ids), small(ids))
        assert again.lm_head.weight is again.table.weight

    def test_a_layer_with_several_names_comes_back_as_one(self, tmp_path):
        def heads(seed):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(8, 8), *[nn.Linear(8, 8)] * 2)

        small, _ = quantize_weights(heads(0), 4, 8)
        save_packed(small, tmp_path / 'm.safetensors')
        inputs = torch.randn(4, 8)
        for other in (heads(1), quantize_weights(heads(1), 4, 8).model):
            again = load_packed(other, tmp_path / 'm.safetensors')
            assert torch.equal(again(inputs), small(inputs))
            assert again[1] is again[2]
            assert again[1] is not again[0]

    def test_several_layers_where_the_file_has_one_under_their_names_load_alike(self, tmp_path):
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        small, _ = quantize_weights(nn.Sequential(layer, layer), 4, 8)
        save_packed(small, tmp_path / 'm.safetensors')
        again = load_packed(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), tmp_path / 'm.safetensors')
        inputs = torch.randn(4, 8)
        assert torch.equal(again(inputs), small(inputs))


class TestWhatDoesNotFit:
    @pytest.fixture
    def file(self, tmp_path):
        save_packed(quantize_weights(net(), 4, 16).model, tmp_path / 'm.safetensors')
        return tmp_path / 'm.safetensors'

    def test_layers_that_the_file_keeps_apart_are_not_loaded_into_one(self, tmp_path):
        small, _ = quantize_weights(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), 4, 8)
        save_packed(small, tmp_path / 'm.safetensors')
        layer = nn.Linear(8, 8)
        with pytest.raises(ConfigError, match=r"'0.*' and '1.*' are one tensor in this model, and two in the file"):
            load_packed(nn.Sequential(layer, layer), tmp_path / 'm.safetensors')

    @pytest.mark.parametrize('options', [(3, 16), (4, 8), (8, 16)])
    def test_another_configuration_is_refused_with_what_differs(self, file, options):
        other, _ = quantize_weights(net(), *options)
        with pytest.raises(ConfigError, match=r"'0' was packed in another way: (bits 4 there|group size 16 there)"):
            load_packed(other, file)

    def test_a_state_dict_of_another_configuration_is_refused(self):
        small, _ = quantize_weights(net(), 4, 16)
        other, _ = quantize_weights(net(), 4, 16, symmetric=True)
        with pytest.raises(RuntimeError, match='packed in another way: symmetric 0 there and 1 here'):
            other.load_state_dict(small.state_dict())

    def test_a_model_without_the_layer_is_refused_with_near_names(self, file):
        with pytest.raises(ConfigError, match="packed layer '3', which this model does not have"):
            load_packed(nn.Sequential(nn.Linear(48, 40)), file)

    def test_a_model_of_other_sizes_is_refused(self, file):
        other = nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.LayerNorm(40), nn.Linear(40, 13, bias=False))
        with pytest.raises(ConfigError, match='40 inputs and 12 outputs'):
            load_packed(other, file)

    def test_a_model_with_more_tensors_is_refused(self, file):
        with pytest.raises(ConfigError, match=r"it lacks '4\.weight'"):
            load_packed(nn.Sequential(*net(), nn.LayerNorm(12)), file)

    def test_a_layer_with_a_bias_too_many_is_refused(self, file):
        other = nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.LayerNorm(40), nn.Linear(40, 12))
        with pytest.raises(ConfigError, match="'3' has no bias"):
            load_packed(other, file)

    def test_a_pickle_is_never_read(self, tmp_path):
        (tmp_path / 'm.bin').write_bytes(pickle.dumps({'a': 1}))
        with pytest.raises(UnsafeFileError, match='not a safetensors file'):
            load_packed(net(), tmp_path / 'm.bin')

    def test_a_file_without_packed_layers_is_refused(self, tmp_path):
        from safetensors.torch import save_file

        save_file(net().state_dict(), tmp_path / 'm.safetensors')
        with pytest.raises(ConfigError, match='holds no packed layers'):
            load_packed(net(), tmp_path / 'm.safetensors')

    def test_a_float_model_is_not_saved_as_packed(self, tmp_path):
        with pytest.raises(ConfigError, match='no packed layers'):
            save_packed(net(), tmp_path / 'm.safetensors')


@pytest.mark.parametrize(('saved', 'wanted'), [(torch.float32, torch.float16), (torch.bfloat16, torch.float32)])
def test_a_file_is_read_into_a_model_of_another_precision(tmp_path, saved, wanted):
    small, _ = quantize_weights(net().to(saved))
    save_packed(small, tmp_path / 'a.safetensors')
    loaded = load_packed(net(1).to(wanted), tmp_path / 'a.safetensors')
    x = torch.randn(5, 48).to(wanted)
    assert loaded(x).dtype == wanted
    assert {tensor.dtype for tensor in loaded.parameters()} == {wanted}
    assert sqnr(small.to(torch.float32)(x.float()), loaded(x).float()) > 40


def test_scales_keep_their_precision_in_a_packed_model_that_had_another(tmp_path):
    """The first layer has a row of very small weights, whose scales half precision does not hold."""
    tiny = net()
    with torch.no_grad():
        tiny[0].weight[3] *= 1e-7
    small, other = quantize_weights(tiny).model, quantize_weights(net(1)).model
    assert (small[0].scales.dtype, other[0].scales.dtype) == (torch.float32, torch.float16)
    save_packed(small, tmp_path / 'a.safetensors')
    by_file = load_packed(other, tmp_path / 'a.safetensors')
    other.load_state_dict(small.state_dict())
    for found in (by_file, other):
        assert torch.equal(found[0].weight, small[0].weight)
        assert torch.equal(found[0].scales, small[0].scales)


def test_all_buffers_of_a_packed_layer_are_on_one_device():
    small = quantize_weights(net()).model
    layouts = {path: layer.layout.tolist() for path, layer in packed_layers(small).items()}
    moved = copy.deepcopy(small).to('meta')
    assert {tensor.device.type for tensor in (*moved.buffers(), *moved.parameters())} == {'meta'}
    back = moved.to_empty(device='cpu')
    assert {path: layer.layout.tolist() for path, layer in packed_layers(back).items()} == layouts
