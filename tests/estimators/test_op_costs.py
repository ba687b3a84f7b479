from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from strop.errors import ConfigError, EstimateError
from strop.estimators import op_costs
from strop.estimators.counting import count
from strop.estimators.op_costs import has_rule, is_uncounted, macs_of, operator_name

aten = torch.ops.aten


class Apply(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> object:
        return self.function(*args)  # type: ignore[operator]


BY_HAND = {
    'conv': (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 9, 9), 2 * 8 * 5 * 5 * 3 * 9),
    'grouped': (nn.Conv2d(6, 4, 3, groups=2, bias=False), (1, 6, 5, 5), 4 * 3 * 3 * 3 * 9),
    'depthwise': (nn.Conv2d(6, 6, 5, padding=2, groups=6), (1, 6, 7, 7), 6 * 49 * 25),
    'dilated': (nn.Conv2d(2, 2, 3, dilation=2), (1, 2, 8, 8), 2 * 16 * 2 * 9),
    'conv1d': (nn.Conv1d(3, 5, 2), (1, 3, 10), 5 * 9 * 3 * 2),
    'conv3d': (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 27 * 2 * 8),
    'transposed': (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 4),
    'linear': (nn.Linear(7, 5), (3, 7), 3 * 7 * 5),
    'linear over tokens': (nn.Linear(7, 5, bias=False), (2, 4, 7), 8 * 7 * 5),
    'bilinear': (Apply(lambda x: nn.Bilinear(4, 3, 2)(x, x[..., :3])), (5, 4), 5 * (2 * 4 * 3 + 2 * 3)),
    'matmul': (Apply(lambda x: x @ x.transpose(-1, -2)), (2, 3, 4, 5), 6 * 4 * 4 * 5),
    'vector': (Apply(lambda x: x @ x[0]), (4, 6), 24),
    'dot': (Apply(lambda x: x[0] @ x[1]), (2, 6), 6),
    'baddbmm in place': (Apply(lambda x: x.new_zeros(2, 3, 3).baddbmm_(x, x.transpose(1, 2))), (2, 3, 4), 2 * 3 * 3 * 4),
    'addmm in place': (Apply(lambda x: x.new_zeros(3, 3).addmm_(x, x.t())), (3, 4), 3 * 3 * 4),
    'addmv in place': (Apply(lambda x: x.new_zeros(3).addmv_(x, x[0])), (3, 4), 12),
    'addbmm in place': (Apply(lambda x: x.new_zeros(3, 3).addbmm_(x, x.transpose(1, 2))), (2, 3, 4), 2 * 3 * 3 * 4),
    'einsum': (Apply(lambda x: torch.einsum('bij,bkj->bik', x, x)), (2, 3, 4), 2 * 3 * 3 * 4),
    'attention': (Apply(lambda x: F.scaled_dot_product_attention(x, x, x)), (2, 3, 5, 8), 2 * 3 * 2 * 5 * 5 * 8),
    'masked attention': (
        Apply(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(5, 5))),
        (2, 3, 5, 8),
        2 * 3 * 2 * 5 * 5 * 8,
    ),
    'lstm': (nn.LSTM(4, 8), (5, 2, 4), 10 * 4 * 8 * (4 + 8)),
    'two-way gru': (nn.GRU(4, 8, bidirectional=True), (5, 2, 4), 2 * 10 * 3 * 8 * (4 + 8)),
    'free': (nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.PReLU(), nn.GELU(), nn.AvgPool2d(2)), (1, 4, 4, 4), 0),
    'embedding': (Apply(lambda x: nn.Embedding(9, 4)(x.long())), (2, 3), 0),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_multiply_adds_by_hand(name: str):
    model, shape, expected = BY_HAND[name]
    resources = count(model, input_shape=shape)
    assert resources.macs == expected
    assert resources.uncounted == {}
    assert resources.note is None


def test_multi_head_attention_is_counted_inside_its_fused_operator():
    dim, heads, tokens = 8, 2, 5
    layer = nn.MultiheadAttention(dim, heads, batch_first=True).eval()
    x = torch.zeros(1, tokens, dim)
    assert count(layer, x, x, x).macs == 4 * tokens * dim * dim + 2 * tokens * tokens * dim


def test_a_rule_of_ones_own_is_used_and_replaces_torchs():
    before = dict(op_costs._RULES)
    try:

        @macs_of(aten.relu, 'aten::sigmoid')
        def elementwise(out: torch.Tensor, tensor: torch.Tensor) -> int:
            return out.numel()

        @macs_of(aten.mm.default)
        def nothing(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> int:
            return 7

        assert count(Apply(lambda x: x.relu().sigmoid() @ x), input_shape=(3, 3)).by_operator() == {
            'aten.relu': 9,
            'aten.sigmoid': 9,
            'aten.mm': 7,
        }
    finally:
        op_costs._RULES.clear()
        op_costs._RULES.update(before)


def test_a_failing_rule_is_named():
    before = dict(op_costs._RULES)
    try:

        @macs_of(aten.relu)
        def wrong(out: torch.Tensor) -> int:
            return 0

        with pytest.raises(EstimateError, match=r'rule .* of aten\.relu failed: TypeError'):
            count(nn.ReLU(), input_shape=(1,))
    finally:
        op_costs._RULES.clear()
        op_costs._RULES.update(before)


def test_names_that_are_no_operators():
    with pytest.raises(ConfigError, match='namespace::name'):
        macs_of('relu')
    assert operator_name(aten.mm.default) == 'aten.mm'
    assert has_rule('torchvision::deform_conv2d')


def test_what_takes_parameters_without_a_rule_is_listed():
    class Distance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres = nn.Parameter(torch.randn(30, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, self.centres)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.distance = Distance()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.distance(x)

    resources = count(Holder(), input_shape=(40, 4))
    assert list(resources.uncounted.values()) == [['distance']]
    assert list(resources.uncounted) == ['aten._euclidean_dist']
    assert '_euclidean_dist' in (resources.table().caption or '')
    assert is_uncounted(aten._fft_r2c, False)
    assert not is_uncounted(aten.mul.Tensor, True)
    assert not is_uncounted(aten.t.default, True)


def test_deformable_convolution():
    torchvision = pytest.importorskip('torchvision')
    layer = torchvision.ops.DeformConv2d(3, 4, 3, padding=1)
    assert count(layer, torch.zeros(1, 3, 6, 6), torch.zeros(1, 18, 6, 6)).macs == 4 * 36 * 3 * 9
