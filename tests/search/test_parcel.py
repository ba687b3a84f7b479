"""What is sent to workers: tensors in one block that is shared, ties kept, small ones copied, and what cannot be sent."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from search import evaluations
from strop.errors import ConfigError
from strop.search.parcel import Parcel, pack


def in_block(tensor, block):
    begin = block.data_ptr()
    return begin <= tensor.data_ptr() < begin + block.numel()


def test_parameters_and_large_tensors_lie_in_the_block_and_small_ones_do_not():
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    large, small = torch.rand(20_000), torch.rand(10)
    parcel = pack((net, large, small))
    again, again_large, again_small = parcel.open()
    assert all(in_block(parameter, parcel.block) for parameter in again.parameters())
    assert in_block(again_large, parcel.block)
    assert not in_block(again_small, parcel.block)
    assert not any(in_block(buffer, parcel.block) for buffer in again.buffers())
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert torch.equal(again_large, large)
    assert torch.equal(again_small, small)


def test_two_receivers_share_weights_and_keep_their_own_statistics():
    parcel = pack(nn.BatchNorm1d(4))
    first, second = parcel.open(), parcel.open()
    first.running_mean.fill_(3.0)
    assert second.running_mean.eq(0).all()
    with torch.no_grad():
        first.weight.fill_(2.0)
    assert second.weight.eq(2).all(), 'one memory'


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_kinds_views_and_ties_survive(dtype):
    whole = (torch.rand(400, 200) * 10).to(dtype)
    part = whole[3:, ::2].t()
    again, again_part, same = pack([whole, part, whole]).open()
    assert same is again
    assert torch.equal(again_part, part)
    assert again_part.stride() == part.stride()
    again[5, 4] = 0
    assert again_part[2, 2] == 0, 'a view of the same memory'
    assert again.dtype == dtype


def test_attributes_gradients_and_modes_of_parameters():
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    frozen.note = {'of': 'a kind'}
    trained = nn.Parameter(torch.ones(2))
    trained.partner = frozen
    again, again_frozen = pack((trained, frozen)).open()
    assert again.requires_grad
    assert not again_frozen.requires_grad
    assert again_frozen.note == {'of': 'a kind'}
    assert again.partner is again_frozen
    assert type(again) is nn.Parameter


def test_what_is_not_plain_memory_travels_in_the_pickle():
    sparse = torch.eye(200).to_sparse()
    conjugated = torch.rand(20_000, dtype=torch.complex64).conj()
    again = pack([sparse, conjugated, torch.empty(0), nn.Parameter(torch.empty(0, 3))]).open()
    assert torch.equal(again[0].to_dense(), torch.eye(200))
    assert torch.equal(again[1], conjugated)
    assert [tuple(each.shape) for each in again[2:]] == [(0,), (0, 3)]


def test_a_read_only_array_is_not_copied():
    parcel = pack(nn.Linear(100, 100))
    block = parcel.block.numpy().copy()
    block.flags.writeable = False
    again = Parcel.on(parcel.content, block).open()
    assert again.weight.data_ptr() - block.ctypes.data in range(block.size)
    assert again(torch.ones(1, 100)).shape == (1, 100)


def test_functions_travel_by_name_and_closures_with_their_tensors():
    assert pack(evaluations.plain).open() is evaluations.plain
    pytest.importorskip('cloudpickle')
    weight = torch.rand(50_000)
    parcel = pack(lambda subnet: weight.sum())
    assert torch.equal(parcel.open()(None), weight.sum())
    assert len(parcel.content) < 10_000 < parcel.block.numel()
    assert isinstance(parcel.block.numpy(), np.ndarray)


def test_what_cannot_be_sent_is_told():
    lock = threading.Lock()
    with pytest.raises(ConfigError, match='cannot be sent'):
        pack(lambda subnet: lock)
