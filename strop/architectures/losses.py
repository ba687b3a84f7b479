"""Classification losses that heads build from configs."""

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
    """`loss_weight * mean_i( -c[y_i] log softmax(z_i)[y_i] )`.

    Args:
        reduction: 'mean', 'sum' or 'none'. The mean divides by the number of images, also with class weights.
        loss_weight: Factor of the loss.
        class_weight: One factor `c` for each class.

    Raises:
        ConfigError: If `reduction` is unknown.

    >>> CrossEntropyLoss(loss_weight=2.0)(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item() / torch.tensor(4.0).log().item()
    2.0
    """

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0, class_weight: Sequence[float] | None = None) -> None:
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise ConfigError(
                f'reduction must be one of {listed(_REDUCTIONS)}; got {reduction!r}.{near(reduction, _REDUCTIONS)}'
            )
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.class_weight = class_weight

    def forward(
        self,
        cls_score: torch.Tensor,
        label: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> torch.Tensor:
        """Return the loss.

        Args:
            cls_score: Logits, shape (n, classes).
            label: Classes, shape (n,), or probabilities, shape (n, classes).
            weight: One factor an image.
            avg_factor: What the mean divides by; `n` if not given.
            reduction_override: Used instead of `reduction`.
        """
        per_class = None if self.class_weight is None else cls_score.new_tensor(self.class_weight)
        loss = F.cross_entropy(cls_score, label, weight=per_class, reduction='none')
        return self.loss_weight * _reduced(loss, weight, avg_factor, reduction_override or self.reduction)


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
        """Return the target probabilities, shape (n, classes), of `label`, shape (n,)."""
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
        return self.ce(cls_score, target, weight, avg_factor, reduction_override)
