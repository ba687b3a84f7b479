"""Cross entropy and label smoothing: the losses of classification, of which the first also serves distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from strop.errors import ConfigError, listed, near
from strop.registry import MODELS

_REDUCTIONS = ('mean', 'sum', 'none')


def _reduced(loss: torch.Tensor, weight: torch.Tensor | None, avg_factor: float | None, reduction: str) -> torch.Tensor:
    if weight is not None:
        loss = loss * weight.to(loss.dtype)
    if reduction == 'none':
        return loss
    if reduction == 'sum':
        return loss.sum()
    return loss.mean() if avg_factor is None else loss.sum() / avg_factor


@MODELS.register_module()
class CrossEntropyLoss(nn.Module):
    """`loss_weight * mean_i( -c[y_i] log softmax(z_i)[y_i] )`, against labels or against a teacher's first choice.

    How it is called says which: `cls_score` and `label` (in this order, or by name) are logits and labels, `preds_S` and
    `preds_T` (by name only, as a distiller does) are the logits of student and teacher, and the labels are then the teacher's
    largest logits. The shapes do not say it: soft labels and a teacher's logits have the same one.

    Args:
        reduction: 'mean', 'sum' or 'none'. The mean divides by the number of images, also with class weights.
        loss_weight: Factor of the loss.
        class_weight: One factor `c` for each class.

    Raises:
        ConfigError: If `reduction` is unknown.

    >>> CrossEntropyLoss(loss_weight=2.0)(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item() / torch.tensor(4.0).log().item()
    2.0
    >>> logits = torch.tensor([[1.0, 3.0]])
    >>> loss = CrossEntropyLoss()
    >>> bool(loss(preds_S=logits, preds_T=torch.tensor([[-5.0, 9.0]])) == loss(logits, torch.tensor([1])))
    True
    """

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0, class_weight: Sequence[float] | None = None) -> None:
        super().__init__()
        if reduction not in _REDUCTIONS:
            number = isinstance(reduction, (int, float))
            hint = f' For a factor write loss_weight={reduction!r}.' if number else near(reduction, _REDUCTIONS)
            raise ConfigError(f'reduction must be one of {listed(_REDUCTIONS)}; got {reduction!r}.{hint}')
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.class_weight = class_weight

    def forward(
        self,
        cls_score: torch.Tensor | None = None,
        label: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        *,
        preds_S: torch.Tensor | None = None,
        preds_T: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss.

        Args:
            cls_score: Logits, shape (n, classes).
            label: Classes, shape (n,), or probabilities, shape (n, classes).
            weight: One factor an image.
            avg_factor: What the mean divides by; `n` if not given.
            reduction_override: Used instead of `reduction`.
            preds_S: The student's logits, shape (n, classes, ...).
            preds_T: The teacher's, which get no gradient.

        Raises:
            ConfigError: If neither pair is given whole, both are, the student's and teacher's shapes differ, probabilities are
                negative, the reduction is unknown, or `avg_factor` comes with a sum.
        """
        cls_score, label = _logits_and_labels(cls_score, label, preds_S, preds_T)
        return self.against(cls_score, label, weight, avg_factor, reduction_override)

    def against(
        self,
        cls_score: torch.Tensor,
        label: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> torch.Tensor:
        """Return the loss against labels that need no check; the arguments are those of `forward`."""
        reduction = self.reduction if reduction_override is None else reduction_override
        if reduction not in _REDUCTIONS:
            raise ConfigError(
                f'reduction_override must be one of {listed(_REDUCTIONS)}; got {reduction!r}.{near(reduction, _REDUCTIONS)}'
            )
        if avg_factor is not None and reduction == 'sum':  # 'none' ignores it, since heads always give it
            raise ConfigError("avg_factor is what a mean divides by, but the reduction is 'sum'. Use 'mean'.")
        per_class = None if self.class_weight is None else cls_score.new_tensor(self.class_weight)
        loss = F.cross_entropy(cls_score, label, weight=per_class, reduction='none')
        return self.loss_weight * _reduced(loss, weight, avg_factor, reduction)


def _logits_and_labels(
    cls_score: torch.Tensor | None, label: torch.Tensor | None, preds_S: torch.Tensor | None, preds_T: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if cls_score is None and label is None and preds_S is not None and preds_T is not None:
        if preds_S.shape != preds_T.shape or preds_S.ndim < 2:
            raise ConfigError(
                'CrossEntropyLoss takes logits of student and teacher of one shape (n, classes, ...), but the student gave '
                f'{tuple(preds_S.shape)} and the teacher {tuple(preds_T.shape)}.'
            )
        return preds_S, preds_T.detach().argmax(1)
    if cls_score is None or label is None or preds_S is not None or preds_T is not None:
        given = {'cls_score': cls_score, 'label': label, 'preds_S': preds_S, 'preds_T': preds_T}
        raise ConfigError(
            'CrossEntropyLoss takes either cls_score and label, or preds_S and preds_T; got '
            f'{listed([name for name, value in given.items() if value is not None])}.'
        )
    # A teacher's logits in the place of probabilities would be read as such, and nothing would ever say so.
    if label.is_floating_point() and not torch.compiler.is_compiling() and bool((label < 0).any()):
        raise ConfigError(
            'Labels of CrossEntropyLoss are classes or probabilities, and some of these are negative. If they are the logits '
            'of a teacher, name both: preds_S=..., preds_T=...'
        )
    return cls_score, label


@MODELS.register_module()
class LabelSmoothLoss(nn.Module):
    """Cross entropy against labels that give a share `e` to all `K` classes.

    With `mode='original'` the target is `(1 - e) onehot + e / K`, with 'classy_vision' it is
    `(onehot + e / K) / (1 + e)`.

    Args:
        label_smooth_val: The share `e`, in [0, 1).
        num_classes: `K`; taken from the logits if not given, and compared with them if given.
        mode: 'original' or 'classy_vision'.
        reduction: 'mean', 'sum' or 'none'.
        loss_weight: Factor of the loss.

    Raises:
        ConfigError: If an argument is out of its range, or `num_classes` differs from the logits.

    >>> loss = LabelSmoothLoss(0.1)(torch.zeros(1, 4), torch.tensor([2]))
    >>> bool(torch.isclose(loss, torch.tensor(4.0).log()))
    True

    Reference: Szegedy et al., Rethinking the Inception Architecture, https://arxiv.org/abs/1512.00567
    """

    def __init__(
        self,
        label_smooth_val: float,
        num_classes: int | None = None,
        mode: str = 'original',
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        modes = ('original', 'classy_vision')
        if not 0 <= label_smooth_val < 1:
            raise ConfigError(f'label_smooth_val must be in [0, 1); got {label_smooth_val!r}.')
        if mode not in modes:
            raise ConfigError(f'mode of LabelSmoothLoss must be one of {listed(modes)}; got {mode!r}.{near(mode, modes)}')
        self.label_smooth_val = label_smooth_val
        self.num_classes = num_classes
        self.mode = mode
        self.ce = CrossEntropyLoss(reduction, loss_weight)

    def smoothed(self, label: torch.Tensor, classes: int) -> torch.Tensor:
        """Return the target probabilities, shape (n, classes), of `label`, shape (n,).

        Raises:
            ConfigError: If the labels are no classes.
        """
        if label.is_floating_point() or label.ndim != 1:
            raise ConfigError(
                f'LabelSmoothLoss takes classes of shape (n,), but got {str(label.dtype).removeprefix("torch.")} of shape '
                f'{tuple(label.shape)}. CrossEntropyLoss takes probabilities.'
            )
        hard = F.one_hot(label, classes).to(torch.get_default_dtype())
        if self.mode == 'original':
            return (1 - self.label_smooth_val) * hard + self.label_smooth_val / classes
        return (hard + self.label_smooth_val / classes) / (1 + self.label_smooth_val)

    def forward(
        self,
        cls_score: torch.Tensor,
        label: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> torch.Tensor:
        """Return the loss; the arguments are those of `CrossEntropyLoss`, `label` of shape (n,)."""
        classes = cls_score.shape[-1]
        if self.num_classes is not None and self.num_classes != classes:
            raise ConfigError(f'LabelSmoothLoss has num_classes={self.num_classes}, and the logits have {classes}.')
        target = self.smoothed(label, classes).to(cls_score.dtype)
        return self.ce.against(cls_score, target, weight, avg_factor, reduction_override)
