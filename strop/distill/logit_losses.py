"""Losses between the logits of student and teacher.

All take the teacher as given (`teacher_detach=True`): also where one network is both, no gradient reaches the teacher's side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strop.distill.loss_inputs import choice, class_labels, paired, positive, reduced
from strop.errors import ConfigError
from strop.registry import MODELS

_REDUCTIONS = ('none', 'batchmean', 'sum', 'mean')


def standardized(logits: Tensor, dim: int = 1) -> Tensor:
    r"""Return :math:`(z - \bar z) / \sigma(z)` along an axis, with the population's :math:`\sigma`; zeros where all are equal.

    >>> standardized(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    centred = logits - logits.mean(dim, keepdim=True)
    spread = torch.linalg.vector_norm(centred, dim=dim, keepdim=True) / logits.shape[dim] ** 0.5
    # Logits that are equal but for rounding (a head that starts at zero) would otherwise give a gradient of 1 / eps.
    rounding = 4 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim, keepdim=True)
    return centred / torch.where(spread > rounding, spread, 1)


@MODELS.register_module()
class KLDivergence(nn.Module):
    r"""Divergence of the student's distribution over axis 1 from the teacher's.

    :math:`w \tau^2 \sum_i p_i \log (p_i / q_i)` with :math:`p = \operatorname{softmax}(t / \tau)` of the teacher and
    :math:`q = \operatorname{softmax}(s / \tau)` of the student.

    Args:
        tau: The temperature.
        reduction: 'batchmean' divides the sum by the batch, 'mean' by all numbers, 'sum' by nothing; 'none' sums nothing.
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher gets no gradient.
        standardize: Whether both logits are standardized over axis 1 first; see `LSKDLoss`.

    Raises:
        ConfigError: If `tau` is not above 0, or `reduction` is unknown.

    >>> teacher = torch.tensor([[0.0, 2.0]])
    >>> KLDivergence(tau=2.0)(teacher, teacher).item()
    0.0

    Reference: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, NIPS workshop 2014,
    https://arxiv.org/abs/1503.02531
    """

    def __init__(
        self,
        tau: float = 1.0,
        reduction: str = 'batchmean',
        loss_weight: float = 1.0,
        teacher_detach: bool = True,
        *,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        positive(self, tau=tau)
        self.tau = tau
        self.reduction = choice(self, 'reduction', reduction, _REDUCTIONS)
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach
        self.standardize = standardize

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Return the loss of logits of shape (n, classes, ...)."""
        student, teacher = paired(self, preds_S, preds_T, detach=self.teacher_detach)
        _classes(self, student)
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        log_q, log_p = F.log_softmax(student / self.tau, dim=1), F.log_softmax(teacher / self.tau, dim=1)
        return self.loss_weight * self.tau**2 * reduced(kl_terms(log_p, log_q), self.reduction)


@MODELS.register_module()
class LSKDLoss(KLDivergence):
    r"""`KLDivergence` of standardized logits: student and teacher agree on relations, not on scale.

    :math:`w \tau^2 \mathrm{KL}(\operatorname{softmax}(Z(t) / \tau) \| \operatorname{softmax}(Z(s) / \tau))` with
    :math:`Z(z) = (z - \bar z) / \sigma(z)` over the classes of each sample.

    Args:
        tau: The temperature, in standard deviations of the logits.
        reduction: As in `KLDivergence`.
        loss_weight: The factor `w`; the paper uses 9 beside a cross entropy of weight 0.1.
        teacher_detach: Whether the teacher gets no gradient.

    >>> teacher = torch.tensor([[0.0, 1.0, 5.0]])
    >>> bool(LSKDLoss()(3 * teacher + 7, teacher) < 1e-6)
    True

    Differs from the authors' code: the standard deviation divides by the number of classes as in the paper, not by one less.

    Reference: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, https://arxiv.org/abs/2403.01427
    """

    def __init__(
        self, tau: float = 2.0, reduction: str = 'batchmean', loss_weight: float = 1.0, teacher_detach: bool = True
    ) -> None:
        super().__init__(tau, reduction, loss_weight, teacher_detach, standardize=True)


@MODELS.register_module()
class KDSoftCELoss(nn.Module):
    r"""Cross entropy of the student against the teacher's distribution over the last axis.

    :math:`w \tau^2 \, \mathrm{mean}_n ( -\sum_i p_i \log q_i )` with :math:`p, q` as in `KLDivergence`. Its gradient is that of
    the divergence, its smallest value the teacher's entropy.

    Args:
        tau: The temperature.
        reduction: 'mean', 'sum' or 'none' (or None) over the samples.
        mult_tem_square: Whether the factor `tau ** 2` is there.
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher gets no gradient.

    Raises:
        ConfigError: If `tau` is not above 0, or `reduction` is unknown.

    >>> KDSoftCELoss()(torch.zeros(1, 4), torch.zeros(1, 4)).item() == torch.tensor(4.0).log().item()
    True

    Differs from MMRazor, where the student's logits were detached, so that the loss trained nothing.

    Reference: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, NIPS workshop 2014,
    https://arxiv.org/abs/1503.02531
    """

    def __init__(
        self,
        tau: float = 1.0,
        reduction: str | None = 'mean',
        mult_tem_square: bool = True,
        loss_weight: float = 1.0,
        *,
        teacher_detach: bool = True,
    ) -> None:
        super().__init__()
        positive(self, tau=tau)
        self.tau = tau
        self.reduction = choice(self, 'reduction', reduction or 'none', ('none', 'sum', 'mean'))
        self.mult_tem_square = mult_tem_square
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(
        self,
        preds_S: Tensor,
        preds_T: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Return the loss of logits of shape (..., classes).

        Args:
            preds_S: The student's logits.
            preds_T: The teacher's.
            weight: A factor for each sample, shape (...).
            avg_factor: What a mean divides by; the number of samples if not given.
            reduction_override: Used instead of `reduction`.

        Raises:
            ConfigError: If shapes do not meet, or `avg_factor` comes without a mean.
        """
        reduction = self.reduction
        if reduction_override is not None:
            reduction = choice(self, 'reduction_override', reduction_override, ('none', 'sum', 'mean'))
        student, teacher = paired(self, preds_S, preds_T, detach=self.teacher_detach)
        each = cross_terms(F.log_softmax(teacher / self.tau, -1), F.log_softmax(student / self.tau, -1)).sum(-1)
        if weight is not None:
            if weight.shape != each.shape:
                raise ConfigError(
                    f'`weight` of KDSoftCELoss is one factor for each sample, shape {tuple(each.shape)}, but got shape '
                    f'{tuple(weight.shape)}.'
                )
            each = each * weight
        if avg_factor is not None and reduction != 'mean':
            raise ConfigError(f"`avg_factor` is what a mean divides by, but the reduction is {reduction!r}. Use 'mean'.")
        loss = reduced(each, reduction) if avg_factor is None else each.sum() / avg_factor
        return self.loss_weight * (self.tau**2 if self.mult_tem_square else 1) * loss


@MODELS.register_module()
class DKDLoss(nn.Module):
    r"""The divergence taken apart: of the true class against the rest, and among the rest.

    :math:`w \tau^2 ( \alpha \mathrm{KL}(b^T \| b^S) + \beta \mathrm{KL}(\hat p^T \| \hat p^S) )`, where :math:`b = (p_y, 1 -
    p_y)` and :math:`\hat p` is the distribution over all classes but the true one, both at temperature :math:`\tau`.

    Args:
        tau: The temperature.
        alpha: Weight of the true class.
        beta: Weight of the others; the paper's best is 8 on many pairs of networks, with `tau=4`.
        reduction: 'batchmean', 'sum', 'mean' (the two terms divided by 2n and by n classes) or 'none' (a number a sample).
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher gets no gradient.
        standardize: Whether both logits are standardized first; see `LSKDLoss`.

    Raises:
        ConfigError: If `tau` is not above 0, or `reduction` is unknown.

    >>> DKDLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 2])).item()
    0.0

    Differs from the authors' code: the true class is left out of the second term, not pushed down by a constant, and both
    terms are computed from logarithms, so that no probability vanishes.

    Reference: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, https://arxiv.org/abs/2203.08679
    """

    def __init__(
        self,
        tau: float = 1.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        reduction: str = 'batchmean',
        loss_weight: float = 1.0,
        *,
        teacher_detach: bool = True,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        positive(self, tau=tau)
        self.tau = tau
        self.alpha = alpha
        self.beta = beta
        self.reduction = choice(self, 'reduction', reduction, _REDUCTIONS)
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach
        self.standardize = standardize

    def forward(self, preds_S: Tensor, preds_T: Tensor, gt_labels: Any = None, data_samples: Any = None) -> Tensor:
        """Return the loss.

        Args:
            preds_S: The student's logits, shape (n, classes).
            preds_T: The teacher's.
            gt_labels: The true classes, in a form that `class_labels` reads: data samples or a tensor. Of soft labels
                the largest is taken.
            data_samples: The same, as MMRazor's configs called it before its version 1.0.

        Raises:
            ConfigError: If the true classes are given by neither name, or by both, or do not fit the logits.
        """
        if (gt_labels is None) == (data_samples is None):
            given = 'neither' if gt_labels is None else 'both'
            raise ConfigError(f'DKDLoss needs the true classes as `gt_labels`, or as `data_samples`, but got {given}.')
        student, teacher = paired(self, preds_S, preds_T, detach=self.teacher_detach)
        labels = class_labels(self, data_samples if gt_labels is None else gt_labels, _rows_of_logits(self, student))
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        true_S, rest_S = _split(student / self.tau, labels)
        true_T, rest_T = _split(teacher / self.tau, labels)
        target, others = kl_terms(true_T, true_S), kl_terms(rest_T, rest_S)
        if self.reduction == 'none':
            loss = self.alpha * target.sum(1) + self.beta * others.sum(1)
        else:
            per = {'sum': (1, 1), 'batchmean': (len(labels),) * 2, 'mean': (target.numel(), student.numel())}[self.reduction]
            loss = self.alpha * target.sum() / per[0] + self.beta * others.sum() / per[1]
        return self.loss_weight * self.tau**2 * loss


@MODELS.register_module()
class NKDLoss(nn.Module):
    r"""Normalized distillation: the true class by the teacher's confidence, the others as distributions of their own.

    :math:`w \, \mathrm{mean}_n ( -p_y \log q_y - \gamma \tau^2 \sum_{i \ne y} \hat p_i \log \hat q_i )` with :math:`p, q` at
    temperature 1, and :math:`\hat p, \hat q` over all classes but the true one at temperature :math:`\tau`.

    Args:
        tau: The temperature of the other classes.
        gamma: Weight of the other classes.
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher gets no gradient.

    Raises:
        ConfigError: If `tau` is not above 0.

    >>> NKDLoss(gamma=0.0)(torch.zeros(1, 4), torch.zeros(1, 4), [1]).item() == torch.tensor(4.0).log().item() / 4
    True

    The first term goes on falling where the student is surer than the teacher: its smallest value is not at equality.

    Reference: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
    and Customized Soft Labels, ICCV 2023, https://arxiv.org/abs/2303.13005
    """

    def __init__(self, tau: float = 1.0, gamma: float = 1.5, loss_weight: float = 1.0, *, teacher_detach: bool = True) -> None:
        super().__init__()
        positive(self, tau=tau)
        self.tau = tau
        self.gamma = gamma
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, preds_S: Tensor, preds_T: Tensor, gt_labels: Any) -> Tensor:
        """Return the loss.

        Args:
            preds_S: The student's logits, shape (n, classes).
            preds_T: The teacher's.
            gt_labels: The true classes, in a form that `class_labels` reads.
        """
        student, teacher = paired(self, preds_S, preds_T, detach=self.teacher_detach)
        labels = class_labels(self, gt_labels, _rows_of_logits(self, student))
        true_S, true_T = (F.log_softmax(logits, 1).gather(1, labels[:, None]) for logits in (student, teacher))
        rest_S, rest_T = (F.log_softmax(_without(logits, labels) / self.tau, 1) for logits in (student, teacher))
        target, others = cross_terms(true_T, true_S).sum(1), cross_terms(rest_T, rest_S).sum(1)
        return self.loss_weight * (target + self.gamma * self.tau**2 * others).mean()


@MODELS.register_module()
class WSLD(nn.Module):
    r"""Soft labels, weighted for each sample by how far the student is behind the teacher on the true class.

    :math:`w \tau^2 \, \mathrm{mean}_n ( (1 - e^{-r}) ( -\sum_i p_i \log q_i ) )` with :math:`p, q` as in `KLDivergence` and
    :math:`r = \log q^1_y / \log p^1_y` at temperature 1, which gets no gradient.

    Args:
        tau: The temperature.
        loss_weight: The factor `w`.
        num_classes: Compared with the logits; None to take whatever they have.
        teacher_detach: Whether the teacher gets no gradient.

    Raises:
        ConfigError: If `tau` is not above 0.

    >>> loss = WSLD(num_classes=2)(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([1]))
    >>> expected = (1 - torch.tensor(-1.0).exp()) * torch.tensor(2.0).log()
    >>> bool(torch.isclose(loss, expected))
    True

    Reference: Zhou et al., Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective, ICLR 2021,
    https://arxiv.org/abs/2102.00650
    """

    def __init__(
        self,
        tau: float = 1.0,
        loss_weight: float = 1.0,
        num_classes: int | None = 1000,
        *,
        teacher_detach: bool = True,
    ) -> None:
        super().__init__()
        positive(self, tau=tau)
        self.tau = tau
        self.loss_weight = loss_weight
        self.num_classes = num_classes
        self.teacher_detach = teacher_detach

    def forward(self, student: Tensor, teacher: Tensor, gt_labels: Any) -> Tensor:
        """Return the loss.

        Args:
            student: The student's logits, shape (n, classes).
            teacher: The teacher's.
            gt_labels: The true classes, in a form that `class_labels` reads.

        Raises:
            ConfigError: If the shapes do not meet, or the number of classes is another than `num_classes`.
        """
        student, teacher = paired(self, student, teacher, detach=self.teacher_detach)
        classes = _rows_of_logits(self, student).shape[1]
        if self.num_classes not in (None, classes):
            raise ConfigError(
                f'WSLD was made for num_classes={self.num_classes}, but the logits have {classes}. Set num_classes={classes} '
                '(or None).'
            )
        labels = class_labels(self, gt_labels, student)
        behind, ahead = (F.cross_entropy(logits.detach(), labels, reduction='none') for logits in (student, teacher))
        weight = -torch.expm1(-behind / (ahead + 1e-7))
        each = cross_terms(F.log_softmax(teacher / self.tau, 1), F.log_softmax(student / self.tau, 1)).sum(1)
        return self.loss_weight * self.tau**2 * (weight * each).mean()


def kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return p log (p / q) of each outcome, 0 where p is 0 (a logit of minus infinity).

    >>> kl_terms(torch.tensor([0.0, -torch.inf]), torch.tensor([-1.0, -torch.inf]))
    tensor([1., 0.])
    """
    return log_p.exp() * (log_p - log_q).masked_fill(log_p == -torch.inf, 0)


def cross_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return -p log q of each outcome, 0 where p is 0 (a logit of minus infinity).

    >>> cross_terms(torch.tensor([0.0, -torch.inf]), torch.tensor([-1.0, -torch.inf]))
    tensor([1., -0.])
    """
    return -log_p.exp() * log_q.masked_fill(log_p == -torch.inf, 0)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of all classes but the true ones, shape (n, classes - 1)."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, others + (others >= labels[:, None]))


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log (p_y, 1 - p_y), shape (n, 2), and the log-probabilities among the other classes, (n, classes - 1)."""
    rest = _without(logits, labels)
    pair = torch.cat([logits.gather(1, labels[:, None]), rest.logsumexp(1, keepdim=True)], 1)
    return F.log_softmax(pair, 1), F.log_softmax(rest, 1)


def _classes(loss: nn.Module, logits: Tensor) -> Tensor:
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ConfigError(
            f'{type(loss).__name__} takes logits of shape (n, classes, ...) with two classes or more, but got shape '
            f'{tuple(logits.shape)}.'
        )
    return logits


def _rows_of_logits(loss: nn.Module, logits: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise ConfigError(f'{type(loss).__name__} takes logits of shape (n, classes), but got shape {tuple(logits.shape)}.')
    return _classes(loss, logits)
