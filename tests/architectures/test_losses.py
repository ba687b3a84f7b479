from __future__ import annotations

import pytest
import torch

from strop.architectures.losses import CrossEntropyLoss, LabelSmoothLoss
from strop.errors import ConfigError
from strop.registry import MODELS


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 3, 3, 1])


def nll(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy against probabilities, by its definition."""
    logp = logits - logits.exp().sum(1, keepdim=True).log()
    return -(target * logp).sum(1)


def onehot(labels: torch.Tensor) -> torch.Tensor:
    return torch.eye(4, dtype=torch.float64)[labels]


def test_cross_entropy_by_hand(batch) -> None:
    logits, labels = batch
    each = nll(logits, onehot(labels))
    torch.testing.assert_close(CrossEntropyLoss()(logits, labels), each.mean())
    torch.testing.assert_close(CrossEntropyLoss('sum', 0.5)(logits, labels), 0.5 * each.sum())
    torch.testing.assert_close(CrossEntropyLoss('none')(logits, labels), each)
    torch.testing.assert_close(CrossEntropyLoss('none')(logits, labels, reduction_override='sum'), each.sum())
    weight = torch.tensor([0.0, 1, 2, 0, 1, 1])
    torch.testing.assert_close(CrossEntropyLoss()(logits, labels, weight, avg_factor=5), (each * weight).sum() / 5)
    factors = [1.0, 2.0, 0.5, 0.0]
    expected = (each * torch.tensor(factors, dtype=torch.float64)[labels]).mean()
    torch.testing.assert_close(CrossEntropyLoss(class_weight=factors)(logits, labels), expected)


def test_cross_entropy_takes_probabilities(batch) -> None:
    logits, labels = batch
    target = 0.7 * onehot(labels) + 0.3 * onehot(labels.flip(0))
    torch.testing.assert_close(CrossEntropyLoss()(logits, target), nll(logits, target).mean())


def test_label_smoothing_by_hand(batch) -> None:
    logits, labels = batch
    target = 0.9 * onehot(labels) + 0.1 / 4
    loss = LabelSmoothLoss(0.1, num_classes=4)
    torch.testing.assert_close(loss(logits, labels), nll(logits, target).mean())
    torch.testing.assert_close(loss(logits, labels), torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))
    target = (onehot(labels) + 0.1 / 4) / 1.1
    loss = LabelSmoothLoss(0.1, mode='classy_vision', loss_weight=2.0)
    torch.testing.assert_close(loss(logits, labels), 2 * nll(logits, target).mean())
    torch.testing.assert_close(LabelSmoothLoss(0.0)(logits, labels), CrossEntropyLoss()(logits, labels))


def test_arguments_are_checked(batch) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mean'"):
        CrossEntropyLoss('means')
    with pytest.raises(ConfigError, match=r'\[0, 1\)'):
        LabelSmoothLoss(1.0)
    with pytest.raises(ConfigError, match="'original', 'classy_vision'"):
        LabelSmoothLoss(0.1, mode='origin')
    with pytest.raises(ConfigError, match='the logits have 4'):
        LabelSmoothLoss(0.1, num_classes=5)(*batch)
    with pytest.raises(ConfigError, match=r"reduction_override must be one of .*Did you mean 'sum'"):
        CrossEntropyLoss()(*batch, reduction_override='summ')
    with pytest.raises(ConfigError, match="the reduction is 'sum'"):
        CrossEntropyLoss('sum')(*batch, avg_factor=2)
    with pytest.raises(ConfigError, match='LabelSmoothLoss takes classes of shape'):
        LabelSmoothLoss(0.1)(batch[0], batch[0].softmax(1))


def test_built_from_configs() -> None:
    loss = MODELS.build({'type': 'mmrazor.LabelSmoothLoss', 'label_smooth_val': 0.1, 'num_classes': 10, 'mode': 'original'})
    assert isinstance(loss, LabelSmoothLoss)


# -- against a teacher -----------------------------------------------------------------------------------------------


def test_a_teachers_first_choice_is_the_label_where_both_are_named(batch) -> None:
    student, teacher = batch[0].requires_grad_(), batch[0].flip(0).detach().requires_grad_()
    loss = CrossEntropyLoss(loss_weight=2.0)(preds_S=student, preds_T=teacher)
    choices = [max(range(4), key=row.__getitem__) for row in teacher.tolist()]
    torch.testing.assert_close(loss, 2 * nll(student, onehot(torch.tensor(choices))).mean())
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_a_teachers_choice_at_each_pixel() -> None:
    student, teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    by_pixel = [
        CrossEntropyLoss()(preds_S=student[:, :, i, j], preds_T=teacher[:, :, i, j]) for i in range(4) for j in range(5)
    ]
    torch.testing.assert_close(CrossEntropyLoss()(preds_S=student, preds_T=teacher), torch.stack(by_pixel).mean())


def test_soft_labels_of_the_logits_shape_stay_probabilities(batch) -> None:
    logits, labels = batch
    soft = 0.6 * onehot(labels) + 0.1
    torch.testing.assert_close(CrossEntropyLoss()(logits, soft), nll(logits, soft).mean())


def test_a_teachers_logits_are_not_taken_for_probabilities(batch) -> None:
    with pytest.raises(ConfigError, match='preds_T='):
        CrossEntropyLoss()(batch[0], -batch[0].abs())


@pytest.mark.parametrize('names', [['preds_S'], ['cls_score'], ['cls_score', 'preds_T'], ['cls_score', 'label', 'preds_S'], []])
def test_half_a_pair_of_cross_entropy_is_an_error(names, batch) -> None:
    with pytest.raises(ConfigError, match='either cls_score and label, or preds_S and preds_T'):
        CrossEntropyLoss()(**dict.fromkeys(names, batch[0]))


def test_a_factor_in_the_place_of_the_reduction_is_explained() -> None:
    with pytest.raises(ConfigError, match=r'loss_weight=2\.0'):
        CrossEntropyLoss(2.0)


def test_logits_of_other_classes_are_an_error(batch) -> None:
    with pytest.raises(ConfigError, match=r'\(6, 4\) and the teacher \(6, 3\)'):
        CrossEntropyLoss()(preds_S=batch[0], preds_T=batch[0][:, :3])
