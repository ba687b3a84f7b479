"""Losses over tokens: text against plain Python, vision transformers against their formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strop.distill import KLDivergence, TokenKLDivergence, ViTKDLoss
from strop.errors import ConfigError

GENERATOR = torch.Generator().manual_seed(0)
S, T = (2 * torch.randn(2, 4, 6, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
LABELS = torch.tensor([[1, 2, -100, 3], [4, -100, -100, 5]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def softmax(logits: list[float], tau: float) -> list[float]:
    powers = [math.exp(z / tau) for z in logits]
    return [power / sum(powers) for power in powers]


def by_formula(positions, tau=1.0, top_k=None, tail='bucket', direction='forward', student=S, teacher=T) -> float:
    """Return the mean over (sample, token) pairs."""
    total = 0.0
    for sample, token in positions:
        q, p = softmax(student[sample, token].tolist(), tau), softmax(teacher[sample, token].tolist(), tau)
        if top_k:
            best = sorted(range(len(p)), key=lambda i: -p[i])[:top_k]
            p, q = ([x[i] for i in best] + [sum(x) - sum(x[i] for i in best)] for x in (p, q))
            if tail == 'renormalize':
                p, q = ([a / sum(x[:-1]) for a in x[:-1]] for x in (p, q))
        if direction == 'reverse':
            p, q = q, p
        total += tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q))
    return total / len(positions)


EVERY = [(sample, token) for sample in range(2) for token in range(4)]


@pytest.mark.parametrize('direction', ['forward', 'reverse'])
@pytest.mark.parametrize(
    ('top_k', 'tail'), [(None, 'bucket'), (1, 'bucket'), (3, 'bucket'), (3, 'renormalize'), (2, 'renormalize')]
)
def test_token_divergence_by_its_formula(top_k, tail, direction) -> None:
    loss = TokenKLDivergence(2.0, top_k, tail, direction, loss_weight=0.5)
    expected = 0.5 * by_formula(EVERY, 2.0, top_k, tail, direction)
    torch.testing.assert_close(loss(S, T), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize('tail', ['bucket', 'renormalize'])
def test_the_top_of_the_whole_vocabulary_is_the_vocabulary(tail) -> None:
    torch.testing.assert_close(TokenKLDivergence(top_k=6, tail=tail)(S, T), KLDivergence()(S.flatten(0, 1), T.flatten(0, 1)))


def test_tokens_that_do_not_count() -> None:
    loss = TokenKLDivergence()
    counting = {
        'labels': [(0, 0), (0, 1), (0, 3), (1, 0), (1, 3)],
        'mask': [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)],
        'both': [(0, 0), (0, 1), (1, 0), (1, 3)],
    }
    for name, given_ in {
        'labels': {'labels': LABELS},
        'mask': {'mask': MASK},
        'both': {'labels': LABELS, 'mask': MASK},
    }.items():
        expected = by_formula(counting[name])
        torch.testing.assert_close(loss(S, T, **given_), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(loss(S, T, mask=MASK.bool()), loss(S, T, mask=MASK))


def test_the_label_of_a_causal_model_is_of_the_position_before() -> None:
    expected = by_formula([(0, 0), (0, 2), (1, 2)])
    loss = TokenKLDivergence(shift=True)
    torch.testing.assert_close(loss(S, T, LABELS), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(loss(S, T), torch.tensor(by_formula([e for e in EVERY if e[1] < 3]), dtype=torch.float64))


def test_no_token_at_all_gives_zero_and_no_gradient() -> None:
    student = S.clone().requires_grad_()
    value = TokenKLDivergence(top_k=2)(student, T, torch.full((2, 4), -100))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_ignored_tokens_may_hold_anything() -> None:
    student = S.clone()
    student[0, 2] = float('nan')
    assert TokenKLDivergence()(student, T, LABELS).isfinite()


def test_the_tail_of_a_sure_teacher_is_not_rounded_away() -> None:
    student, teacher = torch.zeros(1, 1, 3), torch.tensor([[[30.0, 0.0, 0.0]]])
    loss = TokenKLDivergence(top_k=1, direction='reverse')(student, teacher)
    expected = by_formula([(0, 0)], top_k=1, direction='reverse', student=student.double(), teacher=teacher.double())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    'options', [{}, {'top_k': 2}, {'top_k': 2, 'tail': 'renormalize'}, {'top_k': 3, 'direction': 'reverse'}]
)
def test_gradients_of_token_divergences(options) -> None:
    loss = TokenKLDivergence(1.5, **options)
    teacher = T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda student: loss(student, teacher, LABELS), S.clone().requires_grad_())
    loss(S.clone().requires_grad_(), teacher).backward()
    assert teacher.grad is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, 6), reverse=st.booleans(), tau=st.floats(0.5, 5))
def test_merging_outcomes_never_raises_the_divergence(seed, top_k, reverse, tau) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(2, 3, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    direction = 'reverse' if reverse else 'forward'
    whole = TokenKLDivergence(tau, direction=direction)(student, teacher)
    part = TokenKLDivergence(tau, top_k, direction=direction)(student, teacher)
    assert -1e-12 <= part <= whole + 1e-9
    assert TokenKLDivergence(tau, top_k, direction=direction)(teacher, teacher).abs() < 1e-9


def test_text_in_half_precision() -> None:
    student = (300 * S).bfloat16().requires_grad_()
    for top_k in (None, 2):
        value = TokenKLDivergence(top_k=top_k)(student, (-300 * T).bfloat16(), LABELS)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'top_k': 0}, 'whole number above 0'),
        ({'top_k': 2.5}, 'whole number above 0'),
        ({'tail': 'buckets'}, "Did you mean 'bucket'"),
        ({'direction': 'backward'}, "'forward', 'reverse'"),
        ({'top_k': 1, 'tail': 'renormalize'}, 'nothing is compared'),
    ],
)
def test_bad_options_of_the_token_divergence(options, words) -> None:
    with pytest.raises(ConfigError, match=words):
        TokenKLDivergence(**options)


def test_bad_inputs_of_the_token_divergence() -> None:
    with pytest.raises(ConfigError, match='the vocabulary has 6'):
        TokenKLDivergence(top_k=7)(S, T)
    with pytest.raises(ConfigError, match=r'`labels` .* \(2, 4\), but got shape \(2, 3\)'):
        TokenKLDivergence()(S, T, LABELS[:, 1:])
    with pytest.raises(ConfigError, match=r'one vocabulary.*\(2, 4, 6\).*\(2, 4, 5\).*cut its logits to the first 5'):
        TokenKLDivergence()(S, T[..., :5])
    with pytest.raises(ConfigError, match='tokens, vocabulary'):
        TokenKLDivergence()(S[0, 0], T[0, 0])


# -- vision transformers ------------------------------------------------------------------------------------------


def vit(**options) -> tuple[ViTKDLoss, list[Tensor]]:
    torch.manual_seed(0)
    loss = ViTKDLoss(4, 6, **options).double()
    torch.nn.init.normal_(loss.token)
    return loss, [torch.randn(3, 9, width, dtype=torch.float64) for width in (4, 6, 4, 6, 4, 6)]


def test_shallow_layers_are_mimicked_through_linear_maps() -> None:
    loss, (low, low_T, mid, mid_T, high, high_T) = vit(alpha=2.0, beta=0.0)
    expected = 0.0
    for student, teacher, align in ((low, low_T, loss.align[0]), (mid, mid_T, loss.align[1])):
        expected += 2 * ((student @ align.weight.T + align.bias - teacher) ** 2).sum() / 3
    torch.testing.assert_close(loss((low, mid), (low_T, mid_T), high, high_T), expected)


def test_hidden_tokens_are_generated_from_the_others() -> None:
    loss, (low, low_T, _, _, high, high_T) = vit(alpha=0.0, beta=3.0, mask_ratio=0.4, shallow=1, loss_weight=0.5)
    torch.manual_seed(7)
    value = loss(low, low_T, high, high_T)
    torch.manual_seed(7)
    order = torch.rand(3, 9)
    hidden = torch.zeros(3, 9, dtype=torch.bool)
    for row in range(3):
        for token in order[row].sort().indices[int(9 * 0.6) :]:
            hidden[row, token] = True
    assert hidden.sum(1).tolist() == [4, 4, 4]
    tokens = loss.align[1](high).clone()
    tokens[hidden] = loss.token
    grid = torch.zeros(3, 6, 3, 3, dtype=torch.float64)
    for token in range(9):
        grid[:, :, token // 3, token % 3] = tokens[:, token]
    made = loss.generation(grid)
    total = sum(
        ((made[row, :, token // 3, token % 3] - high_T[row, token]) ** 2).sum()
        for row in range(3)
        for token in range(9)
        if hidden[row, token]
    )
    torch.testing.assert_close(value, 0.5 * 3 / 0.4 * total / 3)


def test_all_that_is_learned_gets_a_gradient() -> None:
    loss, (low, low_T, mid, mid_T, high, high_T) = vit()
    teacher = high_T.requires_grad_()
    loss.teacher_detach = True
    loss((low, mid), (low_T, mid_T), high, teacher).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())
    assert teacher.grad is None


def test_tokens_before_the_grid_are_left_out_on_each_side() -> None:
    loss, (low, low_T, _, _, high, high_T) = vit(shallow=1)
    torch.manual_seed(7)
    expected = loss(low, low_T, high, high_T)
    more, _ = vit(shallow=1, prefix_tokens=(2, 1))
    extra = [torch.cat([x.new_ones(3, count, x.shape[2]), x], 1) for x, count in ((low, 2), (low_T, 1), (high, 2), (high_T, 1))]
    torch.manual_seed(7)
    torch.testing.assert_close(more(*extra), expected)


def test_gradients_of_the_transformer_loss() -> None:
    loss, (low, low_T, _, _, high, high_T) = vit(shallow=1, alpha=1.0, beta=1.0)

    def seeded(*student):
        torch.manual_seed(7)
        return loss(student[0], low_T, student[1], high_T)

    assert torch.autograd.gradcheck(seeded, (low.requires_grad_(), high.requires_grad_()))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda x: (x[0], (x[1], x[1]), x[4], x[5]), 'a tuple of each'),
        (lambda x: ((x[0], x[0]), (x[1], x[1]), x[4], x[5]), 'Set shallow=2'),
        (lambda x: (x[1], x[1], x[4], x[5]), r'student_dims'),
        (lambda x: (x[0], x[0], x[4], x[5]), r'\(3, 9, 6\) and the teacher \(3, 9, 4\)'),
        (lambda x: (x[0][:, :8], x[1][:, :8], x[4][:, :8], x[5][:, :8]), 'square grid, but there are 8.*prefix_tokens'),
    ],
)
def test_bad_inputs_of_the_transformer_loss(change, words) -> None:
    loss, tensors = vit(shallow=1)
    with pytest.raises(Exception, match=words) as raised:
        loss(*change(tensors))
    assert isinstance(raised.value, (ConfigError, TypeError))


def test_a_share_of_hidden_tokens_is_between_0_and_1() -> None:
    for share in (0, 1, 1.5):
        with pytest.raises(ConfigError, match='mask_ratio'):
            ViTKDLoss(4, 6, mask_ratio=share)


@pytest.mark.parametrize('direction', ['forward', 'reverse'])
def test_tokens_that_both_rule_out_count_nothing(direction):
    loss = TokenKLDivergence(tau=2.0, direction=direction)
    given = torch.tensor([[[1.0, 2.0, 0.5]]], requires_grad=True)
    student = torch.cat([given, torch.full((1, 1, 2), -torch.inf)], -1)
    teacher = torch.tensor([[[0.0, 1.0, 2.0, -torch.inf, -torch.inf]]])
    masked, plain = loss(student, teacher), loss(given, teacher[..., :3])
    torch.testing.assert_close(masked, plain)
    (gradient,), (expected,) = torch.autograd.grad(masked, given), torch.autograd.grad(plain, given)
    torch.testing.assert_close(gradient, expected)
