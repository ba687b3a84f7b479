"""GPTQ of one matrix: against a naive reference in float64, against rounding to nearest, and at its limits."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError, DataError
from strop.quantization import Grid, gptq_round, round_weight
from strop.quantization.gptq import output_errors
from strop.quantization.grouping import ranges


def problem(rows=5, inputs=24, samples=60, seed=0):
    """A weight, and the Hessian of correlated inputs."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=rng, dtype=torch.float64) / inputs**0.5
    data = torch.randn(samples, inputs, generator=rng, dtype=torch.float64) @ (mixing + 0.3)
    return torch.randn(rows, inputs, generator=rng, dtype=torch.float64), data.T @ data


def by_elimination(weight, hessian, grid, damping, order):
    """Optimal brain quantization in a given order: the whole inverse is updated after each input, as in the OBQ paper."""
    weight = weight.clone()
    inputs = weight.shape[1]
    size = grid.size(inputs)
    inverse = torch.linalg.inv(hessian + damping * hessian.diagonal().mean() * torch.eye(inputs, dtype=torch.float64))
    fixed = ranges(weight, grid) if order != list(range(inputs)) or size == inputs else None
    result = torch.zeros_like(weight)
    left = list(range(inputs))
    parameters = {}
    for index in order:
        group = index // size
        if fixed is not None:
            scale, zero = fixed[0][:, group], None if fixed[1] is None else fixed[1][:, group]
        else:
            if index % size == 0:
                taken = ranges(weight[:, index : index + size], Grid(grid.bits, None, grid.symmetric))
                parameters[group] = taken[0][:, 0], None if taken[1] is None else taken[1][:, 0]
            scale, zero = parameters[group]
        zero = 2 ** (grid.bits - 1) if zero is None else zero.double()
        result[:, index] = (((weight[:, index] / scale).round() + zero).clamp(0, 2**grid.bits - 1) - zero) * scale
        error = (weight[:, index] - result[:, index]) / inverse[index, index]
        for row in range(len(weight)):
            for other in left:
                if other != index:
                    weight[row, other] -= error[row] * inverse[index, other]
        inverse = inverse - torch.outer(inverse[:, index], inverse[index]) / inverse[index, index]
        left.remove(index)
    return result


class TestReference:
    @pytest.mark.parametrize('symmetric', [True, False])
    @pytest.mark.parametrize('group', [None, 8, 7, 20])
    @pytest.mark.parametrize('columns', [128, 5])
    def test_blocks_by_cholesky_equal_elimination_one_by_one(self, group, symmetric, columns):
        weight, hessian = problem()
        # The largest weight of a symmetric group lies half a step beyond its last code; above zero, clipping breaks that tie.
        weight = weight.abs() if symmetric else weight
        grid = Grid(3, group, symmetric)
        ours = gptq_round(weight, hessian, grid, act_order=False, columns=columns).values()
        theirs = by_elimination(weight, hessian, grid, 0.01, list(range(24)))
        assert torch.allclose(ours, theirs, atol=1e-9)

    @pytest.mark.parametrize('group', [None, 8])
    def test_so_they_do_in_the_order_of_the_largest_inputs(self, group):
        weight, hessian = problem(seed=1)
        order = hessian.diagonal().argsort(descending=True).tolist()
        ours = gptq_round(weight, hessian, Grid(3, group), columns=7).values()
        assert torch.allclose(ours, by_elimination(weight, hessian, Grid(3, group), 0.01, order), atol=1e-9)

    def test_two_inputs_by_hand(self):
        # H = [[2, 1], [1, 2]] without damping to speak of: the second weight takes over H01 / H11 = 1/2 of the first's error.
        weight = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
        hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        grid = Grid(2, symmetric=True)  # scale 0.4: 0.6 -> 0.4 (the top code); then 0.4 + 0.2 / 2 = 0.5 -> 0.4
        rounded = gptq_round(weight, hessian, grid, damping=1e-12, act_order=False)
        assert torch.allclose(rounded.values(), torch.tensor([[0.4, 0.4]], dtype=torch.float64))
        weight = torch.tensor([[0.7, 0.4]], dtype=torch.float64)  # scale 0.4667: 0.7 -> 0.4667; 0.4 + 0.2333 / 2 -> 0.4667
        rounded = gptq_round(weight, hessian, grid, damping=1e-12, act_order=False)
        assert rounded.codes.tolist() == [[3, 3]]


class TestObjective:
    @pytest.mark.parametrize('act_order', [True, False])
    @pytest.mark.parametrize('bits', [2, 3, 4])
    def test_its_outputs_are_nearer_than_those_of_rounding_to_nearest_in_the_mean(self, bits, act_order):
        ratios = []
        for seed in range(12):
            weight, hessian = problem(rows=16, inputs=32, seed=seed)
            grid = Grid(bits, 16)
            ours = output_errors(weight, gptq_round(weight, hessian, grid, act_order=act_order).values(), hessian).sum()
            ratios.append(float(ours / output_errors(weight, round_weight(weight, grid).values(), hessian).sum()))
        assert sum(ratios) / len(ratios) < 0.8

    def test_without_correlations_it_rounds_to_nearest(self):
        weight, _ = problem()
        hessian = torch.diag(torch.rand(24, dtype=torch.float64) + 0.1)
        for act_order in (True, False):
            assert torch.equal(
                gptq_round(weight, hessian, Grid(3, 8), act_order=act_order).codes, round_weight(weight, Grid(3, 8)).codes
            )

    def test_a_weight_on_the_grid_stays_exactly(self):
        _, hessian = problem()
        codes = torch.randint(16, (5, 24), generator=torch.Generator().manual_seed(0))
        codes[:, ::8], codes[:, 1::8] = 0, 15
        weight = 0.25 * (codes - 5).double()
        for act_order in (True, False):
            assert torch.equal(gptq_round(weight, hessian, Grid(4, 8), act_order=act_order).values(), weight)

    def test_the_error_falls_by_about_six_decibels_a_bit(self):
        weight, hessian = problem(rows=32)
        errors = [
            output_errors(weight, gptq_round(weight, hessian, Grid(bits)).values(), hessian).sum() for bits in range(2, 9)
        ]
        for more, fewer in pairwise(errors):
            assert 2.2 < more / fewer < 9
        signal = output_errors(weight, torch.zeros_like(weight), hessian).sum()
        assert errors[-1] < 1e-4 * signal

    @settings(max_examples=20, deadline=None)
    @given(columns=st.integers(1, 40), group=st.one_of(st.none(), st.integers(1, 30)), act_order=st.booleans())
    def test_the_width_of_blocks_changes_nothing(self, columns, group, act_order):
        weight, hessian = problem()
        grid = Grid(3, group)
        one = gptq_round(weight, hessian, grid, act_order=act_order, columns=columns)
        other = gptq_round(weight, hessian, grid, act_order=act_order, columns=24)
        assert torch.allclose(one.values(), other.values(), atol=1e-9)

    def test_output_errors_are_those_of_the_outputs(self):
        weight, _ = problem()
        data = torch.randn(10, 24, dtype=torch.float64)
        rounded = round_weight(weight, Grid(3)).values()
        theirs = ((data @ weight.T - data @ rounded.T) ** 2).sum(0)
        assert torch.allclose(output_errors(weight, rounded, data.T @ data), theirs)


class TestLimits:
    def test_inputs_that_are_always_zero_are_rounded_to_nearest(self):
        weight, hessian = problem()
        hessian[3], hessian[:, 3] = 0, 0
        for act_order in (True, False):
            ours = gptq_round(weight, hessian, Grid(4), act_order=act_order)
            assert torch.equal(ours.codes[:, 3], round_weight(weight, Grid(4)).codes[:, 3])

    def test_no_data_at_all_is_rounding_to_nearest(self):
        weight, _ = problem()
        assert torch.equal(gptq_round(weight, torch.zeros(24, 24), Grid(4)).values(), round_weight(weight, Grid(4)).values())

    def test_fewer_samples_than_inputs_work(self):
        weight, hessian = problem(samples=3)
        found = gptq_round(weight, hessian, Grid(3, 8)).values()
        plain = round_weight(weight, Grid(3, 8)).values()
        assert output_errors(weight, found, hessian).sum() < output_errors(weight, plain, hessian).sum()

    def test_neither_weight_nor_hessian_is_changed(self):
        weight, hessian = problem()
        kept = weight.clone(), hessian.clone()
        gptq_round(weight, hessian, Grid(3, 8))
        assert torch.equal(weight, kept[0])
        assert torch.equal(hessian, kept[1])

    def test_scales_of_half_precision_are_the_ones_that_codes_are_for(self):
        weight, hessian = problem()
        for act_order in (True, False):
            rounded = gptq_round(weight.float(), hessian, Grid(4, 8), act_order=act_order, scale_dtype=torch.float16)
            assert rounded.scales.dtype == torch.float16
            assert (rounded.values(torch.float32) - weight.float()).abs().max() < 2


class TestBadInput:
    def test_a_hessian_of_other_sizes(self):
        weight, _ = problem()
        with pytest.raises(ConfigError, match=r'Hessian of \(24, 24\)'):
            gptq_round(weight, torch.eye(23), Grid(4))

    def test_a_hessian_with_nan(self):
        weight, hessian = problem()
        hessian[2, 2] = float('nan')
        with pytest.raises(DataError, match='NaN'):
            gptq_round(weight, hessian, Grid(4))

    @pytest.mark.parametrize('damping', [0, -1.0, float('inf'), 'a'])
    def test_damping_is_a_positive_number(self, damping):
        weight, hessian = problem()
        with pytest.raises(ConfigError, match='`damping` is a positive share'):
            gptq_round(weight, hessian, Grid(4), damping=damping)

    def test_a_hessian_that_no_damping_mends(self):
        weight, hessian = problem()
        with pytest.raises(DataError, match='no Cholesky factor'):
            gptq_round(weight, hessian - 100 * hessian.diagonal().max(), Grid(4))

    @pytest.mark.parametrize('damping', [0, -1, float('nan'), float('inf')])
    def test_damping_is_positive(self, damping):
        weight, hessian = problem()
        with pytest.raises(ConfigError, match='`damping`'):
            gptq_round(weight, hessian, Grid(4), damping=damping)
