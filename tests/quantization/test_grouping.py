"""Rounding in groups: values by hand, torchao's where they coincide, properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.quantization import Grid, round_weight
from strop.quantization.grouping import ranges


def weights(rows: int, inputs: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class TestByHand:
    def test_asymmetric_grid_holds_both_ends_and_zero(self):
        rounded = round_weight(torch.tensor([[-1.0, 0.0, 0.4, 2.0]]), Grid(2, symmetric=False))
        assert rounded.scales.tolist() == [[1.0]]
        assert rounded.zeros.tolist() == [[1]]
        assert rounded.codes.tolist() == [[0, 1, 1, 3]]
        assert rounded.values().tolist() == [[-1.0, 0.0, 0.0, 2.0]]

    def test_symmetric_grid_is_scaled_by_the_largest_weight(self):
        rounded = round_weight(torch.tensor([[-3.0, 1.0, 2.9, 0.0]]), Grid(2, symmetric=True))
        assert rounded.scales.tolist() == [[2.0]]  # 3 / 1.5
        assert rounded.values().tolist() == [[-4.0, 0.0, 2.0, 0.0]]

    def test_each_group_has_its_own_scale(self):
        rounded = round_weight(torch.tensor([[3.0, 0.0, 300.0, 0.0]]), Grid(2, 2, symmetric=False))
        assert rounded.scales.tolist() == [[1.0, 100.0]]

    def test_a_last_group_may_be_shorter(self):
        rounded = round_weight(torch.tensor([[3.0, 0.0, 1.0, 0.0, 6.0]]), Grid(2, 2, symmetric=False))
        assert rounded.scales.shape == (1, 3)
        assert rounded.scales[0, 2] == 2.0
        assert rounded.values().tolist() == [[3.0, 0.0, 1.0, 0.0, 6.0]]

    def test_zero_weights_stay_zero(self):
        for symmetric in (False, True):
            assert round_weight(torch.zeros(2, 4), Grid(3, 2, symmetric), torch.float16).values().tolist() == [[0.0] * 4] * 2

    def test_eight_bits_are_symmetric_by_default_and_fewer_are_not(self):
        assert Grid(8).symmetric
        assert not Grid(4).symmetric


class TestTorchao:
    @pytest.mark.parametrize('bits', [2, 3, 4, 8])
    @pytest.mark.parametrize('symmetric', [True, False])
    @pytest.mark.parametrize('group', [None, 32])
    def test_values_are_those_of_intx_weight_only(self, bits, symmetric, group):
        pytest.importorskip('torchao')
        from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup, quantize_

        layer = torch.nn.Linear(96, 8, bias=False)
        weight = weights(8, 96, seed=bits)
        layer.weight.data.copy_(weight)
        config = IntxWeightOnlyConfig(
            getattr(torch, f'int{bits}'),
            PerGroup(group) if group else PerAxis(0),
            MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC,
        )
        quantize_(layer, config)
        ours = round_weight(weight, Grid(bits, group, symmetric))
        assert torch.equal(ours.values(), layer.weight.dequantize())
        assert torch.equal(ours.codes.int() - 2 ** (bits - 1), layer.weight.qdata.int())

    def test_values_are_those_of_int8_weight_only(self):
        pytest.importorskip('torchao')
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        layer = torch.nn.Linear(96, 8, bias=False)
        weight = layer.weight.detach().clone()
        quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
        assert torch.equal(round_weight(weight, Grid(8)).values(), layer.weight.dequantize())


class TestSearch:
    @pytest.mark.parametrize('symmetric', [True, False])
    def test_searched_ranges_never_raise_the_squared_error(self, symmetric):
        weight = weights(16, 64)
        plain = round_weight(weight, Grid(3, 16, symmetric)).values()
        searched = round_weight(weight, Grid(3, 16, symmetric, search=True)).values()
        before, after = ((weight - each).square().view(16, -1, 16).sum(2) for each in (plain, searched))
        assert (after <= before * (1 + 1e-6)).all()
        assert after.sum() < 0.95 * before.sum()

    def test_search_cuts_an_outlier_off_when_that_pays(self):
        weight = torch.cat([weights(1, 63), torch.tensor([[9.0]])], dim=1)
        plain, searched = ranges(weight, Grid(2))[0], ranges(weight, Grid(2, search=True))[0]
        assert searched.item() < 0.7 * plain.item()


class TestScales:
    def test_codes_suit_the_narrow_scales_that_are_kept(self):
        weight = weights(4, 64)
        rounded = round_weight(weight, Grid(4, 32), torch.float16)
        assert rounded.scales.dtype == torch.float16
        error = (rounded.values(torch.float32) - weight).abs().view(4, 2, 32)
        assert (error <= 0.502 * rounded.scales.float()[..., None] + 1e-2 * error.amax()).all()

    @pytest.mark.parametrize('factor', [1e-6, 1e7])
    def test_scales_that_half_precision_cannot_hold_stay_wide(self, factor):
        assert round_weight(weights(2, 8) * factor, Grid(4), torch.float16).scales.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    inputs=st.integers(1, 40),
    group=st.one_of(st.none(), st.integers(1, 50)),
    symmetric=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_error_is_at_most_half_a_step(bits, inputs, group, symmetric, seed):
    weight = weights(3, inputs, seed, torch.float64)
    grid = Grid(bits, group, symmetric)
    rounded = round_weight(weight, grid)
    steps = rounded.scales.repeat_interleave(grid.size(inputs), dim=1)[:, :inputs]
    # The symmetric grid has one step more below zero than above it; zeros are rounded, which shifts an end by half a step.
    assert ((rounded.values() - weight).abs() <= 1.0001 * steps).all()
    inner = (rounded.codes > 0) & (rounded.codes < grid.levels)
    assert ((rounded.values() - weight).abs() <= 0.50001 * steps)[inner].all()
    again = round_weight(rounded.values(), grid)
    assert again.codes.max() <= grid.levels


class TestBadInput:
    @pytest.mark.parametrize('bits', [0, 1, 9, 16, -3, 4.0, True, '4'])
    def test_bits_are_two_to_eight(self, bits):
        with pytest.raises(ConfigError, match='2 to 8 bits'):
            Grid(bits)

    @pytest.mark.parametrize('size', [0, -2, 1.5, True, '64'])
    def test_group_sizes_are_positive(self, size):
        with pytest.raises(ConfigError, match='group_size'):
            Grid(4, size)

    def test_minus_one_is_per_channel_as_elsewhere(self):
        assert Grid(4, -1) == Grid(4)

    def test_symmetric_is_true_or_false(self):
        with pytest.raises(ConfigError, match='`symmetric`'):
            Grid(4, symmetric='yes')
