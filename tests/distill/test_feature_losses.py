"""Losses between features, against their formulas written out in loops."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from strop.distill import (
    ABLoss,
    ATLoss,
    ChannelWiseDivergence,
    FBKDLoss,
    FTLoss,
    HCLLoss,
    L1Loss,
    L2Loss,
    MGDLoss,
    OFDLoss,
    PKDLoss,
)
from strop.errors import ConfigError
from strop.registry import MODELS

GENERATOR = torch.Generator().manual_seed(0)
S, T = (torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
SPOTS = list(product(range(4), range(5)))


def numbers(x: Tensor) -> list[float]:
    return x.flatten().tolist()


def close(loss: Tensor, expected: float) -> None:
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# -- by formula ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'divisor'),
    [
        ({}, 120),
        ({'reduction': 'sum'}, 1),
        ({'reduction': 'batchmean'}, 2),
        ({'size_average': False}, 1),
        ({'size_average': True, 'reduction': 'sum'}, 120),
        ({'reduce': True, 'reduction': 'sum'}, 120),
        ({'reduce': True, 'size_average': False}, 1),
    ],
)
def test_l1_by_its_formula(options, divisor) -> None:
    expected = 0.5 * sum(abs(a - b) for a, b in zip(numbers(S), numbers(T))) / divisor
    close(L1Loss(0.5, **options)(S, T), expected)


@pytest.mark.parametrize('options', [{'reduction': 'none'}, {'reduce': False}, {'reduce': False, 'size_average': False}])
def test_l1_of_each_element(options) -> None:
    torch.testing.assert_close(L1Loss(**options)(S, T), (S - T).abs())


@pytest.mark.parametrize(('options', 'divisor'), [({}, 2), ({'div_element': True}, 120), ({'dist': True}, None)])
@pytest.mark.parametrize('normalize', [True, False])
def test_l2_by_its_formula(options, divisor, normalize) -> None:
    total = 0.0
    for s, t in zip(S, T):
        s, t = numbers(s), numbers(t)
        if normalize:
            s, t = ([3 * a / math.sqrt(sum(b * b for b in x)) for a in x] for x in (s, t))
        total += sum((a - b) ** 2 for a, b in zip(s, t))
    expected = 0.5 * (total / divisor if divisor else math.sqrt(total))
    close(L2Loss(0.5, normalize, 3.0, **options)(S, T), expected)


def test_attention_transfer_by_its_formula() -> None:
    def attention(x: Tensor) -> list[float]:
        energy = [sum(x[c, i, j].item() ** 2 for c in range(len(x))) / len(x) for i, j in SPOTS]
        return [e / math.sqrt(sum(f * f for f in energy)) for e in energy]

    total = sum((a - b) ** 2 for s, t in zip(S, T[:, :2]) for a, b in zip(attention(s), attention(t)))
    close(ATLoss(10.0)(S, T[:, :2]), 10 * total / 40)


def test_activation_boundaries_by_their_formula() -> None:
    total = 0.0
    for s, t in zip(numbers(S), numbers(T)):
        if t > 0 and s <= 0.5:
            total += (s - 0.5) ** 2
        if t <= 0 and s > -0.5:
            total += (s + 0.5) ** 2
    close(ABLoss(2.0, margin=0.5)(S, T), 2 * total / 2 / 1000 * 3)


def test_factor_transfer_by_its_formula() -> None:
    total = 0.0
    for s, t in zip(S, T):
        a, b = (math.sqrt(sum(v * v for v in numbers(x))) for x in (s, t))
        total += sum(abs(x / a - y / b) for x, y in zip(numbers(s), numbers(t)))
    close(FTLoss(7.0)(S, T), 7 * total / 120)


def test_partial_distance_by_its_formula() -> None:
    total = sum((s - t) ** 2 for s, t in zip(numbers(S), numbers(T)) if s > t or t > 0)
    close(OFDLoss(3.0, mul_factor=100)(S, T), 3 * total / 2 / 100)


def test_masked_generation_by_its_formula() -> None:
    close(MGDLoss(0.01, loss_weight=3.0)(S, T), 3 * 0.01 * sum((a - b) ** 2 for a, b in zip(numbers(S), numbers(T))) / 2)


def test_channel_wise_divergence_by_its_formula() -> None:
    total = 0.0
    for n, c in product(range(2), range(3)):
        q, p = ([math.exp(v / 4) for v in numbers(x[n, c])] for x in (S, T))
        q, p = ([v / sum(x) for v in x] for x in (q, p))
        total += sum(a * math.log(a / b) for a, b in zip(p, q))
    close(ChannelWiseDivergence(tau=4.0, loss_weight=3.0)(S, T), 3 * 16 * total / 6)


def test_pearson_distillation_is_one_minus_the_correlation() -> None:
    total = 0.0
    for c in range(3):
        s, t = numbers(S[:, c]), numbers(T[:, c])
        s, t = ([v - sum(x) / 40 for v in x] for x in (s, t))
        r = sum(a * b for a, b in zip(s, t)) / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))
        total += (1 - r) * 39 / 40
    loss = PKDLoss(6.0)
    torch.testing.assert_close(loss(S, T), torch.tensor(6 * total / 3, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss((S, 2 * S), [T, T + 1]), 2 * loss(S, T), rtol=1e-5, atol=0)


@pytest.mark.parametrize('size', [(4, 5), (2, 5), (4, 3), (8, 10)])
def test_pearson_distillation_resizes_the_side_that_was_named(size) -> None:
    def resized(x: Tensor, to) -> Tensor:
        return nn.functional.interpolate(x, to, mode='bilinear')

    other = resized(T, size)
    torch.testing.assert_close(PKDLoss()(S, other), PKDLoss()(resized(S, size), other))
    torch.testing.assert_close(PKDLoss(resize_stu=False)(S, other), PKDLoss()(S, resized(other, (4, 5))))


def test_hierarchical_context_by_its_formula() -> None:
    def pooled(x: Tensor, cells: int) -> list[float]:
        def bins(length: int) -> list[range]:
            return [range(k * length // cells, -(-(k + 1) * length // cells)) for k in range(cells)]

        found = []
        for n, c, rows, columns in product(range(2), range(3), bins(4), bins(5)):
            values = [x[n, c, i, j].item() for i in rows for j in columns]
            found.append(sum(values) / len(values))
        return found

    def distance(s: list[float], t: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(s, t)) / len(s)

    whole, two, one = distance(numbers(S), numbers(T)), *(distance(pooled(S, k), pooled(T, k)) for k in (2, 1))
    expected = (whole + two / 2 + one / 4) / 1.75  # four cells are no coarser than a height of four
    close(HCLLoss(loss_weight=3.0)(S, T), 3 * expected)
    close(HCLLoss()([S, S], [T, T]), 2 * expected)
    close(HCLLoss(grids=())(S, T), whole)


def fbkd(x: Tensor, student: bool) -> tuple[Tensor, ...]:
    """Return what the FBKD connectors would give, each part another function of the feature."""
    masks = (x.abs().mean(1, keepdim=True), x.abs().mean((2, 3), keepdim=True))
    parts = (x.square().mean(1, keepdim=True), x.sin(), 2 * x)
    return (*masks, x.square().mean((2, 3)), *parts) if student else (*masks, *parts)


def test_attention_guided_distillation_by_its_formula() -> None:
    s, t = fbkd(S, True), fbkd(T, False)
    feature = channel = pool = relation = 0.0
    for n, c, (i, j) in product(range(2), range(3), SPOTS):
        mask = (s[0][n, 0, i, j].item() + t[0][n, 0, i, j].item()) / 2
        feature += mask * (2 * S[n, c, i, j].item() - 2 * T[n, c, i, j].item()) ** 2
        relation += (math.sin(S[n, c, i, j]) - math.sin(T[n, c, i, j])) ** 2
    for n, c in product(range(2), range(3)):
        channel += (sum(2 * T[n, c, i, j].item() for i, j in SPOTS) / 20 - s[2][n, c].item()) ** 2
    for n, (i, j) in product(range(2), SPOTS):
        pool += (s[3][n, 0, i, j].item() - t[2][n, 0, i, j].item()) ** 2
    parts = [0.1 * feature**0.5, 0.2 * channel**0.5, 0.3 * pool**0.5, 0.4 * relation**0.5]
    close(FBKDLoss(0.1, 0.2, 0.3, 0.4, loss_weight=5.0)(s, t), 5 * sum(parts))


def test_the_attention_mask_gets_no_gradient() -> None:
    s = [x.requires_grad_() for x in fbkd(S, True)]
    t = [x.requires_grad_() for x in fbkd(T, False)]
    FBKDLoss()(s, t).backward()
    assert [x.grad is not None for x in s] == [False, False, True, True, True, True]
    assert [x.grad is not None for x in t] == [False, False, True, True, True]


# -- all of them --------------------------------------------------------------------------------------------------

ALL: dict[str, nn.Module] = {
    'L1Loss': L1Loss(),
    'L2Loss': L2Loss(),
    'L2Loss of distances': L2Loss(dist=True, normalize=False),
    'ATLoss': ATLoss(),
    'ABLoss': ABLoss(),
    'FTLoss': FTLoss(),
    'OFDLoss': OFDLoss(),
    'MGDLoss': MGDLoss(),
    'ChannelWiseDivergence': ChannelWiseDivergence(2.0),
    'PKDLoss': PKDLoss(),
    'HCLLoss': HCLLoss(),
}


def each_but(*names: str) -> pytest.MarkDecorator:
    chosen = {name: loss for name, loss in ALL.items() if name not in names}
    return pytest.mark.parametrize('loss', chosen.values(), ids=chosen)


@each_but()
def test_gradients_of_the_student(loss: nn.Module) -> None:
    assert torch.autograd.gradcheck(lambda student: loss(student, T), S.clone().requires_grad_())


@each_but('ABLoss')  # which uses the teacher's signs alone
def test_gradients_reach_a_connector_of_the_teacher_unless_cut(loss: nn.Module) -> None:
    assert torch.autograd.gradcheck(lambda teacher: loss(S, teacher), T.clone().requires_grad_())
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    loss.teacher_detach = True
    try:
        loss(student, teacher).backward()
    finally:
        loss.teacher_detach = False
    assert student.grad.any()
    assert teacher.grad is None


def test_gradients_of_attention_guided_distillation() -> None:
    # The masks are constants by definition; the numeric gradient must not move them.
    s, t = fbkd(S, True), fbkd(T, False)

    def loss(channel: Tensor, pool: Tensor, relation: Tensor, feature: Tensor) -> Tensor:
        return FBKDLoss(1.0, 1.0, 1.0, 1.0)((*s[:2], channel, pool, relation, feature), t)

    assert torch.autograd.gradcheck(loss, tuple(x.clone().requires_grad_() for x in s[2:]))


@each_but('ABLoss')
@pytest.mark.parametrize('scale', [1.0, 0.0])
def test_equality_is_the_minimum_with_a_gradient_of_zero(loss: nn.Module, scale) -> None:
    student = (scale * T).requires_grad_()
    value = loss(student, scale * T)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(T), atol=1e-9, rtol=0)


def test_activation_boundaries_are_met_beyond_the_margin() -> None:
    assert ABLoss(margin=0.5)(T.sign() * (0.5 + T.abs()), T) == 0
    assert ABLoss(margin=0.5)(T.sign() * 0.4, T) > 0


@each_but()
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_large_features_in_half_precision_are_finite(loss: nn.Module, dtype) -> None:
    student = (1000 * S).to(dtype).requires_grad_()
    value = loss(student, (-1000 * T).to(dtype))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@each_but()
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.permutations(range(4)), channels=st.permutations(range(3)), flip=st.booleans())
def test_features_have_no_order(loss: nn.Module, seed, rows, channels, flip) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    value = loss(student, teacher)
    assert value >= 0
    moved = [x[rows][:, channels].transpose(2, 3) if flip else x[rows][:, channels] for x in (student, teacher)]
    torch.testing.assert_close(loss(*moved), value)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_what_each_loss_does_not_see(scale, shift) -> None:
    for loss, changed in (
        (ATLoss(), scale * S),
        (FTLoss(), scale * S),
        (L2Loss(), scale * S),
        (ChannelWiseDivergence(), S + shift),
        (PKDLoss(), scale * S + shift),
    ):
        torch.testing.assert_close(loss(changed, T), loss(S, T), rtol=1e-3, atol=1e-9)


def test_a_constant_channel_has_a_finite_gradient() -> None:
    student = S.clone()
    student[:, 1] = 2.0
    student.requires_grad_()
    PKDLoss()(student, T).backward()
    assert student.grad.isfinite().all()


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('loss', [ATLoss(), ChannelWiseDivergence()])
def test_rows_are_refused_where_space_is_needed(loss) -> None:
    with pytest.raises(ConfigError, match=r'one spatial axis or more, but got shape \(2, 3\)'):
        loss(S[:, :, 0, 0], T[:, :, 0, 0])


@pytest.mark.parametrize('loss', [PKDLoss(), HCLLoss()])
def test_tokens_are_refused_where_images_are_needed(loss) -> None:
    with pytest.raises(ConfigError, match=r'\(n, channels, h, w\), but got shape \(2, 3, 4\)'):
        loss(S[..., 0], T[..., 0])


def test_attention_guided_distillation_names_its_connectors() -> None:
    with pytest.raises(ConfigError, match=r'6 tensors that FBKDStudentConnector .* `s_input`, but got one tensor'):
        FBKDLoss()(S, fbkd(T, False))
    with pytest.raises(ConfigError, match=r'5 tensors that FBKDTeacherConnector .* `t_input`, but got 6'):
        FBKDLoss()(fbkd(S, True), fbkd(T, True))


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'batchmean'"):
        L1Loss(reduction='batch_mean')
    with pytest.raises(ConfigError, match='mul_factor'):
        OFDLoss(mul_factor=0)
    with pytest.raises(ConfigError, match='tau'):
        ChannelWiseDivergence(tau=0)
    for grids in ((4, 0), (2.5,)):
        with pytest.raises(ConfigError, match='grids'):
            HCLLoss(grids=grids)


def test_built_from_configs() -> None:
    loss = MODELS.build(dict(type='mmrazor.ChannelWiseDivergence', tau=4, loss_weight=5))
    assert (loss.tau, loss.loss_weight) == (4, 5)
    assert isinstance(MODELS.build(dict(type='mmrazor.ABLoss', loss_weight=1.0, margin=1.0)), ABLoss)
