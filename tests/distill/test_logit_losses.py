"""Losses between logits, against their formulas written out in plain Python."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from strop.distill import WSLD, DKDLoss, KDSoftCELoss, KLDivergence, LSKDLoss, NKDLoss
from strop.distill.logit_losses import standardized
from strop.errors import ConfigError
from strop.registry import MODELS

GENERATOR = torch.Generator().manual_seed(0)
S, T = (3 * torch.randn(5, 4, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
Y = torch.tensor([0, 3, 1, 1, 2])
ROWS = list(zip(S.tolist(), T.tolist(), Y.tolist()))


def softmax(logits: list[float], tau: float = 1.0) -> list[float]:
    powers = [math.exp(z / tau) for z in logits]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def without(values: list[float], index: int) -> list[float]:
    return values[:index] + values[index + 1 :]


def close(loss: Tensor, expected: float) -> None:
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# -- by formula ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('reduction', 'divisor'), [('batchmean', 5), ('mean', 20), ('sum', 1)])
def test_divergence_by_its_formula(reduction, divisor) -> None:
    expected = 0.5 * 9 * sum(kl(softmax(t, 3), softmax(s, 3)) for s, t, _ in ROWS) / divisor
    close(KLDivergence(3.0, reduction, loss_weight=0.5)(S, T), expected)


def test_divergence_without_reduction_is_elementwise() -> None:
    each = KLDivergence(reduction='none')(S, T)
    p, q = softmax(T[1].tolist()), softmax(S[1].tolist())
    close(each[1, 2], p[2] * math.log(p[2] / q[2]))
    assert each.shape == S.shape


def test_divergence_at_each_pixel_is_over_the_classes() -> None:
    maps = [torch.stack([x, x.flip(0)], -1) for x in (S, T)]
    close(KLDivergence()(*maps), 2 * sum(kl(softmax(t), softmax(s)) for s, t, _ in ROWS) / 5)


def test_divergence_by_hand() -> None:
    close(
        KLDivergence()(torch.zeros(1, 2).double(), torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)),
        0.75 * math.log(1.5) - 0.25 * math.log(2),
    )


def test_standardized_logits_have_mean_0_and_deviation_1() -> None:
    z = standardized(S)
    for row, logits in zip(z.tolist(), S.tolist()):
        mean = sum(logits) / 4
        deviation = math.sqrt(sum((x - mean) ** 2 for x in logits) / 4)
        assert row == pytest.approx([(x - mean) / deviation for x in logits])


def test_standardized_divergence_sees_relations_only() -> None:
    expected = KLDivergence(2.0)(standardized(S), standardized(T))
    torch.testing.assert_close(KLDivergence(2.0, standardize=True)(S, T), expected)
    torch.testing.assert_close(LSKDLoss()(4 * S - 3, T / 5 + 1), expected)


@pytest.mark.parametrize('value', [0.0, 1000 / 3])
def test_a_head_that_starts_alike_for_all_has_a_bounded_gradient_when_standardized(value) -> None:
    logits = torch.full((5, 4), value, dtype=torch.float64, requires_grad=True)
    LSKDLoss()(logits, T).backward()
    assert logits.grad.abs().max() < 10
    assert logits.grad.any()


@pytest.mark.parametrize('square', [True, False])
def test_soft_cross_entropy_by_its_formula(square) -> None:
    each = [-sum(a * math.log(b) for a, b in zip(softmax(t, 2), softmax(s, 2))) for s, t, _ in ROWS]
    factor = 0.5 * (4 if square else 1)
    options = dict(tau=2.0, mult_tem_square=square, loss_weight=0.5)
    close(KDSoftCELoss(**options)(S, T), factor * sum(each) / 5)
    close(KDSoftCELoss(reduction='sum', **options)(S, T), factor * sum(each))
    torch.testing.assert_close(
        KDSoftCELoss(reduction=None, **options)(S, T), factor * torch.tensor(each).double(), rtol=1e-6, atol=0
    )
    weight = torch.tensor([0.0, 1, 2, 0, 1])
    weighted = factor * sum(w * e for w, e in zip(weight.tolist(), each))
    close(KDSoftCELoss(**options)(S, T, weight=weight), weighted / 5)
    close(KDSoftCELoss(**options)(S, T, weight=weight, avg_factor=4), weighted / 4)
    close(KDSoftCELoss(**options)(S, T, weight, reduction_override='sum'), weighted)


def test_soft_cross_entropy_trains_the_student() -> None:
    student = S.clone().requires_grad_()
    KDSoftCELoss(tau=3.0)(student, T).backward()
    other = S.clone().requires_grad_()
    KLDivergence(tau=3.0)(other, T).backward()
    torch.testing.assert_close(student.grad, other.grad)


def decoupled(s: list[float], t: list[float], y: int, tau: float) -> tuple[float, float]:
    q, p = softmax(s, tau), softmax(t, tau)
    return kl([p[y], 1 - p[y]], [q[y], 1 - q[y]]), kl(softmax(without(t, y), tau), softmax(without(s, y), tau))


@pytest.mark.parametrize('reduction', ['batchmean', 'mean', 'sum'])
def test_decoupled_distillation_by_its_formula(reduction) -> None:
    parts = [decoupled(*row, 4.0) for row in ROWS]
    first, second = {'batchmean': (5, 5), 'mean': (10, 20), 'sum': (1, 1)}[reduction]
    expected = 2 * 16 * (0.7 * sum(a for a, _ in parts) / first + 8 * sum(b for _, b in parts) / second)
    close(DKDLoss(4.0, 0.7, 8.0, reduction, 2.0)(S, T, Y), expected)


def test_decoupled_distillation_of_each_sample() -> None:
    each = DKDLoss(2.0, reduction='none')(S, T, Y)
    for value, row in zip(each, ROWS):
        close(value, 4 * sum(decoupled(*row, 2.0)))


def test_decoupled_parts_weighted_by_the_teacher_are_the_divergence() -> None:
    whole = KLDivergence(reduction='sum')
    for s, t, y in zip(S, T, Y):
        others = 1 - t.softmax(0)[y].item()
        parts = DKDLoss(alpha=1.0, beta=others, reduction='sum')(s[None], t[None], y[None])
        torch.testing.assert_close(parts, whole(s[None], t[None]))


def test_decoupled_distillation_keeps_classes_that_single_precision_would_lose() -> None:
    student = torch.tensor([[60.0, 0.0, 1.0]], requires_grad=True)
    loss = DKDLoss()(student, torch.tensor([[60.0, 1.0, 0.0]]), [0])
    loss.backward()
    p = softmax([1.0, 0.0])
    assert loss.item() == pytest.approx(kl(p, p[::-1]), rel=1e-5)
    assert student.grad.abs().max() > 0.1


def test_normalized_distillation_by_its_formula() -> None:
    total = 0.0
    for s, t, y in ROWS:
        total -= softmax(t)[y] * math.log(softmax(s)[y])
        rest = zip(softmax(without(t, y), 2), softmax(without(s, y), 2))
        total -= 1.5 * 4 * sum(a * math.log(b) for a, b in rest)
    close(NKDLoss(tau=2.0, gamma=1.5, loss_weight=0.5)(S, T, Y), 0.5 * total / 5)


def test_weighted_soft_labels_by_their_formula() -> None:
    total = 0.0
    for s, t, y in ROWS:
        ratio = math.log(softmax(s)[y]) / (math.log(softmax(t)[y]) - 1e-7)
        total -= (1 - math.exp(-ratio)) * sum(a * math.log(b) for a, b in zip(softmax(t, 2), softmax(s, 2)))
    close(WSLD(2.0, 2.5, num_classes=4)(S, T, Y), 2.5 * 4 * total / 5)


def test_the_weight_of_a_sample_gets_no_gradient() -> None:
    student = S.clone().requires_grad_()
    WSLD(num_classes=4)(student, T, Y).backward()
    ratio = torch.tensor([math.log(softmax(s)[y]) / (math.log(softmax(t)[y]) - 1e-7) for s, t, y in ROWS]).double()
    expected = (1 - torch.exp(-ratio))[:, None] * (S.softmax(1) - T.softmax(1)) / 5
    torch.testing.assert_close(student.grad, expected, rtol=1e-5, atol=1e-8)


# -- all of them --------------------------------------------------------------------------------------------------

ALL = {
    'KLDivergence': (KLDivergence(2.0), ()),
    'standardized': (LSKDLoss(), ()),
    'KDSoftCELoss': (KDSoftCELoss(2.0), ()),
    'DKDLoss': (DKDLoss(2.0, beta=4.0), (Y,)),
    'DKDLoss standardized': (DKDLoss(standardize=True), (Y,)),
    'NKDLoss': (NKDLoss(2.0), (Y,)),
    'WSLD': (WSLD(2.0, num_classes=4), (Y,)),
}


def each_but(*names: str) -> pytest.MarkDecorator:
    chosen = {name: row for name, row in ALL.items() if name not in names}
    return pytest.mark.parametrize(('loss', 'more'), chosen.values(), ids=chosen)


EACH = each_but()


@EACH
def test_the_teacher_gets_no_gradient_unless_asked(loss: nn.Module, more) -> None:
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    loss(student, teacher, *more).backward()
    assert student.grad.any()
    assert teacher.grad is None
    loss.teacher_detach = False
    try:
        loss(student, teacher, *more).backward()
    finally:
        loss.teacher_detach = True
    assert teacher.grad.any()


@each_but('WSLD')  # its weight is a constant by definition: see test_the_weight_of_a_sample_gets_no_gradient
def test_gradients_are_those_of_the_loss(loss: nn.Module, more) -> None:
    assert torch.autograd.gradcheck(lambda student: loss(student, T, *more), S.clone().requires_grad_())


@each_but('NKDLoss')  # by its definition a student that is surer than the teacher has a smaller loss
def test_at_equality_the_gradient_is_zero(loss: nn.Module, more) -> None:
    student = T.clone().requires_grad_()
    loss(student, T, *more).backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(S), atol=1e-9, rtol=0)


@EACH
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_extreme_logits_in_half_precision_are_finite(loss: nn.Module, more, dtype) -> None:
    student = (1000 * S).to(dtype).requires_grad_()
    value = loss(student, (-1000 * T).to(dtype), *more)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@EACH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-5, 5), order=st.permutations(range(4)), rows=st.permutations(range(5)))
def test_neither_order_of_classes_nor_of_samples_nor_a_constant_matters(loss, more, seed, shift, order, rows) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    expected = loss(student, teacher, *more)
    moved = [torch.tensor([order.index(label) for label in Y.tolist()])[rows]] if more else []
    changed = loss(student[rows][:, order] + shift, teacher[rows][:, order] - shift, *moved)
    torch.testing.assert_close(changed, expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), tau=st.floats(0.3, 10), scale=st.floats(0, 30))
def test_divergences_are_never_negative_and_zero_at_equality(seed, tau, scale) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    for loss, more in ((KLDivergence(tau), ()), (LSKDLoss(tau), ()), (DKDLoss(tau), (Y,))):
        assert loss(student, teacher, *more) >= -1e-12
        assert loss(teacher, teacher, *more) == pytest.approx(0, abs=1e-9)


# -- bad input ----------------------------------------------------------------------------------------------------


def test_other_numbers_of_classes_are_named() -> None:
    with pytest.raises(ConfigError, match=r'num_classes=1000, but the logits have 4'):
        WSLD()(S, T, Y)
    torch.testing.assert_close(WSLD(num_classes=None)(S, T, Y), WSLD(num_classes=4)(S, T, Y))


def test_the_true_classes_of_dkd_go_by_either_of_their_names():
    loss = DKDLoss()
    assert torch.equal(loss(S, T, gt_labels=Y), loss(S, T, data_samples=Y))
    with pytest.raises(ConfigError, match='got neither'):
        loss(S, T)
    with pytest.raises(ConfigError, match='got both'):
        loss(S, T, gt_labels=Y, data_samples=Y)


@pytest.mark.parametrize('loss', [DKDLoss(), NKDLoss(), WSLD(num_classes=4)])
def test_a_class_that_does_not_exist_is_named(loss) -> None:
    with pytest.raises(ConfigError, match=r'from 0 to 3 .* got 4'):
        loss(S, T, Y + 1)
    with pytest.raises(ConfigError, match='true classes'):
        loss(S, T, None)


@pytest.mark.parametrize('loss', [DKDLoss(), NKDLoss(), WSLD(num_classes=4)])
def test_logits_of_pixels_are_refused_where_labels_are_of_samples(loss) -> None:
    with pytest.raises(ConfigError, match=r'\(n, classes\), but got shape \(5, 4, 2, 2\)'):
        loss(torch.zeros(5, 4, 2, 2), torch.zeros(5, 4, 2, 2), Y)


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match='two classes or more'):
        KLDivergence()(torch.zeros(5, 1), torch.zeros(5, 1))


def test_weights_and_factors_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r'shape \(5,\), but got shape \(4,\)'):
        KDSoftCELoss()(S, T, weight=torch.ones(4))
    with pytest.raises(ConfigError, match=r"'sum'\. Use 'mean'"):
        KDSoftCELoss(reduction='sum')(S, T, avg_factor=3)
    with pytest.raises(ConfigError, match='reduction_override'):
        KDSoftCELoss()(S, T, reduction_override='max')


def test_built_from_configs() -> None:
    loss = MODELS.build(dict(type='mmrazor.KLDivergence', tau=1, loss_weight=5, reduction='batchmean', teacher_detach=False))
    assert (loss.tau, loss.loss_weight, loss.teacher_detach) == (1, 5, False)
    assert isinstance(MODELS.build(dict(type='DKDLoss', tau=4, beta=0.5, loss_weight=1, reduction='mean')), DKDLoss)


@pytest.mark.parametrize('last', [-1.0, -torch.inf])
@pytest.mark.parametrize('kind', [KLDivergence, KDSoftCELoss, DKDLoss, NKDLoss, partial(WSLD, num_classes=4)])
def test_classes_that_the_teacher_rules_out_count_nothing(kind, last):
    student = torch.tensor([[1.0, 2.0, 0.5, last]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    labels = () if kind in (KLDivergence, KDSoftCELoss) else (torch.tensor([1]),)
    loss = kind(tau=2.0)(student, teacher, *labels).sum()
    nearly = kind(tau=2.0)(student.clamp(min=-200), teacher.clamp(min=-200), *labels).sum()
    torch.testing.assert_close(loss, nearly)
    (gradient,), (expected,) = torch.autograd.grad(loss, student), torch.autograd.grad(nearly, student)
    torch.testing.assert_close(gradient, expected)
