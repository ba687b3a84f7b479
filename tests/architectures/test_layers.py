from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strop.architectures.layers import DropPath, SELayer, channel_shuffle, drop_path, make_divisible, recomputed
from strop.errors import ConfigError


@given(st.floats(1, 5000), st.sampled_from([1, 4, 8, 16]))
def test_make_divisible_is_a_multiple_near_the_value(value: float, divisor: int) -> None:
    result = make_divisible(value, divisor)
    assert result % divisor == 0
    assert result >= 0.9 * value
    assert result <= max(divisor, value + divisor * 1.5)


def test_make_divisible_by_hand() -> None:
    assert [make_divisible(value, 8) for value in (16, 19, 20, 4, 10, 11.9)] == [16, 24, 24, 8, 16, 16]
    assert make_divisible(3, 8, min_value=1) == 8
    assert make_divisible(7, 2, min_value=10) == 10


@given(st.integers(1, 4), st.integers(1, 5))
def test_channel_shuffle_moves_each_channel_to_its_place(groups: int, each: int) -> None:
    x = torch.arange(groups * each).reshape(1, -1, 1, 1)
    y = channel_shuffle(x, groups).flatten()
    for group in range(groups):
        for index in range(each):
            assert y[index * groups + group] == group * each + index


def test_channel_shuffle_takes_channels_last_and_refuses_a_rest() -> None:
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(channel_shuffle(x.to(memory_format=torch.channels_last), 2), channel_shuffle(x, 2))
    with pytest.raises(ConfigError, match='5 channels and 2 groups'):
        channel_shuffle(torch.zeros(1, 5, 1, 1), 2)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    y = drop_path(torch.ones(20000, 3), 0.25, training=True)
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert bool((y == y[:, :1]).all())
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(DropPath(0.5).eval()(y), y)


@pytest.mark.parametrize('rate', [1.0, -0.1, True, 'a'])
def test_drop_path_rate_is_checked(rate) -> None:
    with pytest.raises(ConfigError, match=r'\[0, 1\)'):
        DropPath(rate)


def test_se_layer_by_hand() -> None:
    layer = SELayer(8, squeeze_channels=2).double()
    x = torch.randn(3, 8, 4, 5, dtype=torch.float64)
    mean = x.mean((2, 3))
    hidden = (mean @ layer.conv1.conv.weight.flatten(1).T + layer.conv1.conv.bias).relu()
    weight = (hidden @ layer.conv2.conv.weight.flatten(1).T + layer.conv2.conv.bias).sigmoid()
    torch.testing.assert_close(layer(x), x * weight[:, :, None, None])
    layer.return_weight = True
    assert layer(x).shape == (3, 8, 1, 1)
    assert sorted(dict(layer.named_parameters())) == [
        'conv1.conv.bias',
        'conv1.conv.weight',
        'conv2.conv.bias',
        'conv2.conv.weight',
    ]


def test_se_layer_checks_its_arguments() -> None:
    assert SELayer(64, ratio=4).conv1.out_channels == 16
    with pytest.raises(ConfigError, match='pair'):
        SELayer(8, act_cfg=({'type': 'ReLU'},))
    with pytest.raises(ConfigError, match='positive'):
        SELayer(8, squeeze_channels=0)


@pytest.mark.parametrize('momentum', [0.1, None])
def test_recomputed_changes_neither_output_nor_gradient_nor_statistics(momentum: float | None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(inplace=True), nn.Dropout(0.3))
    other = copy.deepcopy(plain)
    # The input needs no gradient: the parameters inside must get theirs all the same.
    x = torch.randn(5, 2, 6, 6)
    results = []
    for model, run in ((plain, plain), (other, lambda value: recomputed(other, other, value))):
        torch.manual_seed(1)
        y = run(x)
        y.square().sum().backward()
        results.append((y.detach(), *(p.grad for p in model.parameters()), *model.buffers()))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    assert other[1].momentum == momentum
    assert int(other[1].num_batches_tracked) == 1


def test_recomputed_keeps_less(monkeypatch) -> None:
    calls = []
    layer = nn.Linear(2, 2)

    def function(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return layer(x).exp()

    y = recomputed(layer, function, torch.ones(1, 2))
    assert len(calls) == 1
    y.sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        recomputed(layer, function, torch.ones(1, 2))
    assert len(calls) == 3
