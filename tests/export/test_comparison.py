from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strop.errors import ConfigError, DataError
from strop.export import ExportedFile, Inputs, random_inputs
from strop.export.comparison import compared, named_outputs

T = torch.tensor


@pytest.mark.parametrize(
    ('wanted', 'given_', 'max_abs', 'max_rel', 'problem'),
    [
        (T([1.0, -4.0]), T([1.0, -4.0]), 0.0, 0.0, ''),
        (T([1.0, -4.0]), T([1.0, -4.0001]), 1e-4, 2.5e-5, ''),
        (T([1.0, -4.0]), T([1.5, -4.0]), 0.5, 0.125, 'x differs by 0.5 (0.125 of its largest magnitude 4'),
        (T([0.0]), T([1e-9]), 1e-9, math.inf, ''),
        (T([0.0]), T([1e-3]), 1e-3, math.inf, 'x differs by 0.001'),
        (T([1e-8]), T([2e-8]), 1e-8, 1.0, ''),
        (T([1e-4, 0.0]), T([2e-4, 0.0]), 1e-4, 1.0, 'x differs by 0.0001'),
        (T([math.nan, 1.0]), T([math.nan, 1.0]), 0.0, 0.0, ''),
        (T([math.inf, -math.inf]), T([math.inf, -math.inf]), 0.0, 0.0, ''),
        (T([math.inf]), T([-math.inf]), math.inf, math.inf, 'not finite'),
        (T([1.0]), T([math.nan]), math.inf, math.inf, 'not finite'),
        (T([1, 2, 3]), T([1, 2, 4]), 1.0, 1.0, 'x differs in 1 of 3 elements'),
        (T([True]), T([True]), 0.0, 0.0, ''),
        (T([1.0]), T([1.0, 2.0]), math.inf, math.inf, 'x is (2,) of torch.float32 instead of (1,)'),
        (T([1.0]), T([1.0]).double(), math.inf, math.inf, 'torch.float64 instead of'),
        (T([1.0]), 'text', math.inf, math.inf, 'x is str instead of'),
        (3, 4, math.inf, math.inf, 'x is 4 instead of 3'),
        (torch.zeros(0), torch.zeros(0), 0.0, 0.0, ''),
        (T([1 + 1j]), T([1 + 1j]), 0.0, 0.0, ''),
        (T([1.0]).half(), T([1.004]).half(), 0.00390625, 0.00390625, ''),
    ],
)
def test_numbers_by_hand(wanted, given_, max_abs, max_rel, problem):
    found = compared({'x': wanted}, [given_])
    assert found.max_abs == pytest.approx(max_abs, rel=5e-3)
    assert found.max_rel == pytest.approx(max_rel, rel=5e-3)
    assert problem in found.problem
    assert bool(found.problem) == bool(problem)


def test_the_worst_of_several_outputs_and_the_first_problem():
    wanted = {'a': T([1.0]), 'b': T([2.0]), 'c': T([4.0])}
    found = compared(wanted, [T([1.0]), T([2.5]), T([5.0])])
    assert (found.max_abs, found.max_rel) == (1.0, 0.25)
    assert found.problem.startswith('b differs by 0.5')
    assert 'there are 1 outputs instead of 3' in compared(wanted, [T([1.0])]).problem
    assert not compared(wanted, [T([1.0]), T([2.5]), T([5.0])], rtol=0.25, atol=0.0).problem
    assert not compared(wanted, [T([1.0]), T([2.5]), T([5.0])], rtol=0.0, atol=1.0).problem


@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]))
def test_other_batches_keep_the_first_rows_and_the_range_of_indices(batch, size, dtype):
    tensor = torch.arange(12.0).reshape(1, 12).repeat(batch, 1).add(torch.arange(batch)[:, None]).to(dtype)
    inputs = Inputs.of((tensor, torch.tensor(3.0), {'n': 5}))
    (resized, scalar, rest), again = inputs.with_batch(size).args, inputs.with_batch(size).args[0]
    assert resized.shape == (size, 12)
    assert resized.dtype == dtype
    assert torch.equal(resized, again)
    assert torch.equal(resized[:batch], tensor[:size])
    assert scalar.item() == 3.0
    assert rest == {'n': 5}
    if dtype == torch.int64:
        assert set(resized.flatten().tolist()) <= set(tensor.flatten().tolist())
    if dtype.is_floating_point and size > batch:
        assert len({tuple(row) for row in resized.tolist()}) >= size - batch + 1


def test_which_inputs_have_the_batch():
    inputs = Inputs.of({'x': torch.zeros(4, 3), 'mask': torch.zeros(4), 'table': torch.zeros(3, 4), 'scale': torch.tensor(1.0)})
    assert inputs.batch == 4
    assert [name for name, value in inputs.tensors().items() if inputs.has_batch(value)] == ['x', 'mask']
    assert inputs.with_batch(2).describe() == 'x (2, 3) float32, mask (2,) float32, table (3, 4) float32, scale () float32'
    assert Inputs.of((torch.tensor(1.0),)).batch is None


def test_names_follow_the_forward():
    class Net(nn.Module):
        def forward(self, first, *rest, flag=None, **more):
            return first

    x = torch.zeros(2)
    inputs, arguments = Inputs((x, x, x), {'extra': x, 'flag': x}).bound(Net())
    assert list(inputs.tensors()) == ['first', 'rest_0', 'rest_1', 'flag', 'extra']
    assert list(arguments) == ['first', 'rest', 'flag', 'more']
    assert list(named_outputs([x, (x, {'a': x})])) == ['output[0]', 'output[1][0]', "output[1][1]['a']"]


def test_tensors_of_result_objects_are_outputs() -> None:
    class Boxes:
        def __init__(self, x: torch.Tensor) -> None:
            self.scores, self.inner, self.label = x, {'boxes': 2 * x}, 'cat'

    x = torch.ones(2)
    found = named_outputs([Boxes(x), x])
    assert list(found) == ['output[0]<0>', 'output[0]<1>', 'output[1]']
    assert found['output[0]<1>'].tolist() == [2, 2]
    assert compared(found, list(named_outputs([Boxes(3 * x), x]).values())).problem.startswith('output[0]<0> differs by 2')


def test_random_inputs():
    model = nn.Linear(3, 1).half()
    first = random_inputs(model, (5, 3))
    assert first.dtype == torch.float16
    assert torch.equal(first, random_inputs(model, [5, 3]))
    assert not torch.equal(first, random_inputs(model, (5, 3), seed=1))
    for wrong in (5, (0, 3), (2.0, 3), '23'):
        with pytest.raises(ConfigError, match='positive integers'):
            random_inputs(model, wrong)


def test_results_as_text():
    result = ExportedFile(Path('a.pt2'), 'pt2', 2**20, (1, 4), 2e-7, 1e-6, {'x': ['batch', 3]}, ('output',))
    assert str(result) == 'a.pt2: pt2, 1.00 MiB, outputs within 2.0e-07 (relative 1.0e-06) at batch 1, 4'
    assert result.to_dict()['inputs'] == {'x': ['batch', 3]}
    assert ExportedFile(Path('a'), 'pt2', 1, (1,), 1e-9, math.inf).to_dict()['max_rel_error'] is None
    assert 'outputs equal at batch 1' in str(ExportedFile(Path('a'), 'pt2', 1, (1,), 0.0, 0.0))


def test_inputs_are_drawn_alike_whatever_the_default_device_is():
    given = Inputs.of(torch.rand(2, 3))
    expected, drawn = given.with_batch(5), random_inputs(nn.Linear(3, 1), (2, 3))
    linear = nn.Linear(3, 1)
    with torch.device('meta'):
        again, other = given.with_batch(5), random_inputs(linear, (2, 3))
    assert torch.equal(again.args[0], expected.args[0])
    assert torch.equal(other, drawn)


def test_arguments_come_in_the_order_of_a_file():
    one, two = torch.zeros(2, 1), torch.ones(2, 1)
    named = Inputs.of({'second': two, 'first': one})
    found = named.in_order(((), {'first': two, 'second': one}))
    assert [float(value[0]) for value in found.tensors().values()] == [0.0, 1.0]
    assert named.in_order(((two, one), {})) is named
    with pytest.raises(DataError, match='as the calibration data had them'):
        named.in_order(((), {'first': two, 'third': one}))
