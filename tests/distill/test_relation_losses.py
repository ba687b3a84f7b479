"""Losses between relations, against their formulas written out in loops."""

from __future__ import annotations

import copy
import io
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from strop.data import DataSample
from strop.distill import AngleWiseRKD, CKALoss, CRDLoss, DistanceWiseRKD, DISTLoss
from strop.errors import ConfigError
from strop.registry import MODELS

GENERATOR = torch.Generator().manual_seed(0)
S, T = (torch.randn(5, 4, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
WIDE = torch.randn(5, 2, 3, dtype=torch.float64, generator=GENERATOR)


def close(loss: Tensor, expected: float, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=1e-12)


def correlation(a: list[float], b: list[float]) -> float:
    a, b = ([v - sum(x) / len(x) for v in x] for x in (a, b))
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def smooth(a: float, b: float) -> float:
    gap = abs(a - b)
    return gap * gap / 2 if gap < 1 else gap - 0.5


def rows(x: Tensor, unit: bool) -> list[list[float]]:
    found = x.flatten(1).tolist()
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in found] if unit else found


# -- by formula ---------------------------------------------------------------------------------------------------


def test_correlation_of_classes_and_of_samples() -> None:
    q, p = ((x / 2).exp() / (x / 2).exp().sum(1, keepdim=True) for x in (S, T))
    inter = sum(correlation(q[n].tolist(), p[n].tolist()) for n in range(5)) / 5
    intra = sum(correlation(q[:, c].tolist(), p[:, c].tolist()) for c in range(4)) / 4
    expected = 3 * 4 * (0.5 * (1 - inter) + 2 * (1 - intra))
    close(DISTLoss(0.5, 2.0, tau=2.0, loss_weight=3.0)(S, T), expected, 1e-5)


def test_pixels_are_more_samples() -> None:
    maps = [torch.stack([x[:3], x[2:]], -1)[..., None] for x in (S, T)]
    torch.testing.assert_close(DISTLoss()(*maps), DISTLoss()(*(torch.stack([x[:3], x[2:]], 1).flatten(0, 1) for x in (S, T))))


@pytest.mark.parametrize('unit', [True, False])
def test_distances_of_pairs_by_their_formula(unit) -> None:
    tables = []
    for x in (rows(S, unit), rows(WIDE, unit)):
        table = [[math.dist(a, b) for b in x] for a in x]
        mean = sum(map(sum, table)) / 20
        tables.append([d / mean for row in table for d in row])
    expected = 3 * sum(map(smooth, *tables)) / 25
    close(DistanceWiseRKD(3.0, unit)(S, WIDE), expected)


@pytest.mark.parametrize('unit', [True, False])
def test_angles_of_triples_by_their_formula(unit) -> None:
    def cosine(x: list[list[float]], i: int, j: int, k: int) -> float:
        if j in (i, k):
            return 0.0
        a, b = ([v - w for v, w in zip(x[end], x[j])] for end in (i, k))
        return sum(v * w for v, w in zip(a, b)) / math.hypot(*a) / math.hypot(*b)

    triples = [(i, j, k) for i in range(5) for j in range(5) for k in range(5)]
    student, teacher = rows(S, unit), rows(WIDE, unit)
    expected = 3 * sum(smooth(cosine(student, *triple), cosine(teacher, *triple)) for triple in triples) / 125
    close(AngleWiseRKD(3.0, unit)(S, WIDE), expected)


def test_a_right_angle_by_hand() -> None:
    student = torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0], [1, 0], [0.5, 0.75**0.5]], dtype=torch.float64)
    # Cosines are 0, r, r (r = 1 / sqrt 2) and thrice 1/2; each angle is counted twice.
    expected = 2 * (0.5**2 / 2 + 2 * (0.5**0.5 - 0.5) ** 2 / 2) / 27
    close(AngleWiseRKD(1.0, with_l2_norm=False)(student, teacher), expected)


def test_alignment_by_its_definition_with_covariances() -> None:
    x, y = S - S.mean(0), WIDE.flatten(1) - WIDE.flatten(1).mean(0)
    cross, own, other = y.T @ x, x.T @ x, y.T @ y
    expected = 1 - sum(v * v for v in cross.flatten().tolist()) / math.sqrt(
        sum(v * v for v in own.flatten().tolist()) * sum(v * v for v in other.flatten().tolist())
    )
    close(CKALoss(2.0)(S, WIDE), 2 * expected)


# -- all of them --------------------------------------------------------------------------------------------------

ALL: dict[str, nn.Module] = {
    'DISTLoss': DISTLoss(tau=2.0),
    'DistanceWiseRKD': DistanceWiseRKD(),
    'AngleWiseRKD': AngleWiseRKD(with_l2_norm=False),
    'CKALoss': CKALoss(),
}
EACH = pytest.mark.parametrize('loss', ALL.values(), ids=ALL)


@EACH
def test_gradients(loss: nn.Module) -> None:
    assert torch.autograd.gradcheck(lambda student: loss(student, T), S.clone().requires_grad_())


@EACH
def test_the_teacher_gets_no_gradient_unless_asked(loss: nn.Module) -> None:
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    loss(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None
    loss.teacher_detach = False
    try:
        loss(student, teacher).backward()
    finally:
        loss.teacher_detach = True
    assert teacher.grad.any()


@EACH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)), columns=st.permutations(range(4)))
def test_relations_have_no_order_and_vanish_at_equality(loss: nn.Module, seed, order, columns) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    value = loss(student, teacher)
    assert value >= 0
    torch.testing.assert_close(loss(student[order][:, columns], teacher[order][:, columns]), value)
    equal = teacher.clone().requires_grad_()
    least = loss(equal, teacher)
    least.backward()
    assert least.item() == pytest.approx(0, abs=1e-4)  # DISTLoss has an eps beside its lengths
    assert equal.grad.abs().max() < 1e-4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_neither_rotation_scale_nor_shift_changes_relations(seed, scale, shift) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    for loss in (CKALoss(), DistanceWiseRKD(with_l2_norm=False), AngleWiseRKD(with_l2_norm=False)):
        torch.testing.assert_close(loss(scale * student @ turn + shift, teacher), loss(student, teacher), rtol=1e-6, atol=1e-9)


@EACH
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_large_numbers_in_half_precision(loss: nn.Module, dtype) -> None:
    student = (1000 * S).to(dtype).requires_grad_()
    value = loss(student, (-1000 * T).to(dtype))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@EACH
def test_mixed_precision_does_not_touch_relations(loss: nn.Module) -> None:
    student, teacher = S.float(), T.float()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = loss(student, teacher)
    torch.testing.assert_close(mixed, loss(student, teacher))


@EACH
def test_equal_samples_and_single_ones_have_finite_gradients(loss: nn.Module) -> None:
    for student in (S[:1], S[:1].expand(5, 4), 1000 / 3 + 0 * S, torch.cat([S[:1], S[:1], S[2:]]), torch.zeros_like(S)):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, T[: len(leaf)])
        value.backward()
        assert value.isfinite()
        assert leaf.grad.abs().max() < 1e3


# -- contrast -----------------------------------------------------------------------------------------------------

INDEX = torch.tensor([0, 8, 3, 4, 5])


def units(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def crd(**options) -> CRDLoss:
    torch.manual_seed(0)
    return CRDLoss(**{'neg_num': 3, 'sample_n': 9, 'dim_out': 4, **options}).double()


def samples(contrast: bool = True) -> list[DataSample]:
    found = []
    for index in INDEX.tolist():
        sample = DataSample()
        sample.sample_idx = index
        if contrast:
            sample.contrast_sample_idxs = torch.tensor([index, (index + 1) % 9, (index + 5) % 9])
        found.append(sample)
    return found


def contrasted(loss: CRDLoss, student: Tensor, teacher: Tensor, scale: list[float] | None = None) -> tuple[float, list[float]]:
    """Return the loss and the constants Z for the negatives of `samples`, by the formula."""
    contrasts = [sample.contrast_sample_idxs.tolist() for sample in samples()]
    total, scales = 0.0, []
    for side, (features, memory) in enumerate(((student, loss.memory_T), (teacher, loss.memory_S))):
        scores = [
            [math.exp(sum(a * b for a, b in zip(f, memory[k].tolist())) / 0.5) for k in contrast]
            for f, contrast in zip(features.tolist(), contrasts)
        ]
        z = scale[side] if scale else sum(map(sum, scores)) / 15 * 9
        scales.append(z)
        for row in scores:
            e = [score / z for score in row]
            total -= math.log(e[0] / (e[0] + 2 / 9 + 1e-7))
            total -= sum(math.log(2 / 9 / (other + 2 / 9 + 1e-7)) for other in e[1:])
    return total / 5, scales


def test_contrast_by_its_formula_over_two_steps() -> None:
    loss = crd(temperature=0.5, momentum=0.3, loss_weight=2.0)
    student, teacher = units(S), units(T)
    memories = [loss.memory_S.clone(), loss.memory_T.clone()]
    expected, scale = contrasted(loss, student, teacher)
    close(loss(student, teacher, samples()), 2 * expected, 1e-6)
    torch.testing.assert_close(loss.scale, torch.tensor(scale, dtype=torch.float64))
    for memory, before, feature in zip((loss.memory_S, loss.memory_T), memories, (student, teacher)):
        for row, index in enumerate(INDEX.tolist()):
            torch.testing.assert_close(memory[index], units((0.3 * before[index] + 0.7 * feature[row])[None])[0])
        others = [index for index in range(9) if index not in INDEX.tolist()]
        assert torch.equal(memory[others], before[others])
    second, _ = contrasted(loss, teacher, student, scale)
    close(loss(teacher, student, samples()), 2 * second, 1e-6)


@pytest.mark.parametrize('total', [9, 200])
def test_drawn_negatives_are_other_samples(total) -> None:
    loss = crd(sample_n=total, neg_num=5)
    positions, contrasts = loss._samples(INDEX, S)
    assert torch.equal(positions, INDEX)
    assert torch.equal(contrasts[:, 0], INDEX)
    assert contrasts.shape == (5, 6)
    assert (contrasts[:, 1:] != INDEX[:, None]).all()
    assert contrasts.min() >= 0
    assert contrasts.max() < total


def test_all_products_and_wanted_rows_are_the_same_loss() -> None:
    # 200 memories and 2 negatives take the one way, the same memories with 24 negatives the other.
    loss = crd(sample_n=200)
    for negatives in (2, 24):
        for sample in (chosen := samples()):
            sample.contrast_sample_idxs = (sample.sample_idx + 7 * torch.arange(negatives + 1)) % 200
        wanted = torch.stack([sample.contrast_sample_idxs for sample in chosen])
        value = copy.deepcopy(loss)(units(S), units(T), chosen)
        e = torch.stack(
            [
                torch.stack([(f @ memory[k] / 0.07).exp() for f, row in zip(features, wanted) for k in row]).view(5, -1)
                for features, memory in ((units(S), loss.memory_T), (units(T), loss.memory_S))
            ]
        )
        e = e / (200 * e.mean((1, 2), keepdim=True))
        noise = negatives / 200
        expected = -(e[..., 0] / (e[..., 0] + noise + 1e-7)).log().sum() - (noise / (e[..., 1:] + noise + 1e-7)).log().sum()
        torch.testing.assert_close(value, expected / 5)


def test_gradients_of_contrast() -> None:
    loss = crd(temperature=0.5).eval()
    loss(units(S), units(T), samples())  # sets the constants
    student, teacher = units(S).requires_grad_(), units(T).requires_grad_()
    assert torch.autograd.gradcheck(lambda *pair: loss(*pair, samples()), (student, teacher))


@pytest.mark.parametrize('total', [9, 500])
def test_a_step_that_writes_its_memory_can_still_go_backward(total) -> None:
    torch.manual_seed(0)
    student = units(S.float()).requires_grad_()
    loss = CRDLoss(sample_n=total, neg_num=3, dim_out=4)
    loss(student, units(T.float()), INDEX).backward()
    assert student.grad.isfinite().all()
    assert student.grad.any()


def test_evaluation_leaves_the_memories() -> None:
    loss = crd().eval()
    before = loss.memory_S.clone()
    loss(units(S), units(T), samples())
    assert torch.equal(loss.memory_S, before)


def test_the_memories_are_saved_with_the_model() -> None:
    loss, file = crd(), io.BytesIO()
    loss(units(S), units(T), samples())
    torch.save(loss.state_dict(), file)
    file.seek(0)
    again = CRDLoss(neg_num=3, sample_n=9, dim_out=4).double()
    again.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(again(units(T), units(S), samples()), loss(units(T), units(S), samples()), rtol=0, atol=0)
    assert set(loss.state_dict()) == {'memory_S', 'memory_T', 'scale'}


def test_contrast_learns_to_tell_samples_apart() -> None:
    torch.manual_seed(0)
    teacher = units(torch.randn(32, 8))
    student = nn.Parameter(torch.randn(32, 8))
    loss = CRDLoss(neg_num=15, sample_n=32, dim_out=8, temperature=0.2)
    optimizer = torch.optim.SGD([student], lr=10.0)
    for _ in range(100):
        optimizer.zero_grad()
        loss(units(student), teacher, torch.arange(32)).backward()
        optimizer.step()
    nearest = (units(student) @ teacher.T).argmax(1)
    assert (nearest == torch.arange(32)).float().mean() > 0.9


@pytest.mark.parametrize(
    ('given_', 'words'),
    [
        (torch.tensor([0, 1, 2, 3, 9]), r'from 0 to 8 \(sample_n=9\), but got 9'),
        (torch.tensor([0, 1, 2]), 'one index for each of the 5 samples'),
        (torch.zeros(5), 'one index for each of the 5 samples'),
        ([SimpleNamespace()] * 5, 'sample_idx'),
        (None, 'but got NoneType'),
        (
            [SimpleNamespace(sample_idx=k, contrast_sample_idxs=torch.tensor([k, 12])) for k in range(5)],
            'contrast_sample_idxs must be from 0 to 8',
        ),
        (
            [SimpleNamespace(sample_idx=k, contrast_sample_idxs=torch.tensor([k])) for k in range(5)],
            'one negative or more',
        ),
    ],
)
def test_samples_that_contrast_cannot_use(given_, words) -> None:
    with pytest.raises(ConfigError, match=words):
        crd()(units(S), units(T), given_)


def test_contrast_names_the_connector_that_gives_its_width() -> None:
    with pytest.raises(ConfigError, match=r"type='CRDConnector', dim_in=6, dim_out=4"):
        crd()(WIDE.flatten(1), WIDE.flatten(1), INDEX)


@pytest.mark.parametrize('options', [{'momentum': 1.5}, {'temperature': 0}, {'sample_n': 1}, {'neg_num': 0}, {'dim_out': -1}])
def test_bad_options_of_contrast(options) -> None:
    with pytest.raises(ConfigError, match=f'`{next(iter(options))}`'):
        crd(**options)


def test_built_from_configs() -> None:
    loss = MODELS.build(dict(type='mmrazor.DISTLoss', inter_loss_weight=1.0, intra_loss_weight=1.0, tau=1, loss_weight=2))
    assert loss.loss_weight == 2
    assert MODELS.build(dict(type='mmrazor.AngleWiseRKD')).loss_weight == 50
    assert MODELS.build(dict(type='mmrazor.DistanceWiseRKD', with_l2_norm=False)).loss_weight == 25


def test_logits_are_needed_for_correlation() -> None:
    with pytest.raises(ConfigError, match='two classes or more'):
        DISTLoss()(torch.zeros(5, 1), torch.zeros(5, 1))
