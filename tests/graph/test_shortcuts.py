from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.graph.shortcuts import SHORTCUTS

aten = torch.ops.aten
UNARY = [func for func in SHORTCUTS if 'Tensor' not in func._overloadname and 'norm' not in str(func)]
BINARY = [func for func in SHORTCUTS if func._overloadname == 'Tensor']
NORMS = [func for func in SHORTCUTS if 'norm' in str(func)]


@st.composite
def tensors(draw, shape=None, dtypes=(torch.float32, torch.float16, torch.float64, torch.int64)):
    if shape is None:
        shape = draw(st.lists(st.integers(1, 4), max_size=4))
    made = torch.empty(shape, dtype=draw(st.sampled_from(dtypes)), device='meta')
    kind = draw(st.sampled_from(['plain', 'plain', 'last', 'turned', 'expanded']))
    if kind == 'last' and len(shape) == 4:
        return made.to(memory_format=torch.channels_last)
    if kind == 'turned' and len(shape) > 1:
        return torch.empty(shape[::-1], dtype=made.dtype, device='meta').permute(*range(len(shape))[::-1])
    if kind == 'expanded' and shape:
        return torch.empty([1, *shape[1:]], dtype=made.dtype, device='meta').expand(shape)
    return made


@st.composite
def pairs(draw):
    one = draw(tensors())
    shape = list(one.shape)
    kind = draw(st.sampled_from(['same', 'same', 'narrow', 'short', 'number']))
    if kind == 'number':
        return one, draw(st.sampled_from([2, 0.5, True]))
    if kind == 'narrow':
        shape = [size if draw(st.booleans()) else 1 for size in shape]
    elif kind == 'short':
        shape = shape[draw(st.integers(0, len(shape))) :]
    return (one, draw(tensors(shape))) if draw(st.booleans()) else (draw(tensors(shape)), one)


def described(value):
    if isinstance(value, torch.Tensor):
        strides = [stride for size, stride in zip(value.shape, value.stride()) if size > 1]  # of one position it means nothing
        return tuple(value.shape), strides, value.dtype, value.device.type
    return [described(item) for item in value]


def same_as_the_kernel(func, *args):
    try:
        want = func(*args)
    except RuntimeError:
        return  # a forward would have stopped here
    got = SHORTCUTS[func](args, {})
    if got is not None:
        assert described(got) == described(want)
        if func._schema.is_mutable:
            assert got is args[0]


def test_all_kinds_are_tested():
    assert len(UNARY) + len(BINARY) + len(NORMS) == len(SHORTCUTS)
    assert len(BINARY) == 4


@given(st.sampled_from(UNARY), tensors())
@settings(max_examples=120, deadline=None)
def test_elementwise(func, tensor):
    same_as_the_kernel(func, tensor)


@given(st.sampled_from(BINARY), pairs())
@settings(max_examples=250, deadline=None)
def test_of_two(func, pair):
    same_as_the_kernel(func, *pair)


@pytest.mark.parametrize('func', BINARY)
def test_the_common_cases_are_short(func):
    one, two = torch.empty(2, 4, 3, 3, device='meta'), torch.empty(4, 1, 1, device='meta')
    assert SHORTCUTS[func]((one, one), {}) is not None
    assert SHORTCUTS[func]((one, two), {}) is not None
    assert SHORTCUTS[func]((one, 2.0), {}) is not None


def test_batch_norm():
    image = torch.empty(2, 4, 3, 3, device='meta').to(memory_format=torch.channels_last)
    four = [torch.empty(4, device='meta')] * 4
    plain, legit = aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default
    for func, args in ((plain, (image, *four, False, 0.1, 1e-5)), (legit, (image, *four, 0.1, 1e-5))):
        got = SHORTCUTS[func](args, {})
        assert described(got[0]) == described(func(*args)[0])
        # On the CPU, statistics of the batch are not kept in evaluation.
        real = [torch.ones(value.shape) if isinstance(value, torch.Tensor) else value for value in args]
        assert [tuple(part.shape) for part in got] == [tuple(part.shape) for part in func(*real)]
    assert SHORTCUTS[aten.native_batch_norm.default]((image, *four, False, 0.1, 1e-5), {}) is not None
    assert SHORTCUTS[aten.native_batch_norm.default]((image, *four, True, 0.1, 1e-5), {}) is None
