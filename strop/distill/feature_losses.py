"""Losses between the features of student and teacher, at one place of both.

Gradients reach the teacher's side as well where it has any: a connector there (a paraphraser, an attention of FBKD) may be what
is trained. `teacher_detach=True` cuts them, for one network that is both student and teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strop.distill.loss_inputs import choice, levels, paired, positive, reduced
from strop.errors import ConfigError
from strop.registry import MODELS


@MODELS.register_module()
class L1Loss(nn.Module):
    r"""Absolute differences, :math:`w \, \mathrm{mean} |s - t|`.

    Args:
        loss_weight: The factor `w`.
        size_average: PyTorch's old option: False for a sum instead of a mean. If given, it overrides `reduction`.
        reduce: PyTorch's old option: False for no reduction. If given, it overrides `reduction`.
        reduction: 'mean', 'sum', 'batchmean' (the sum divided by the batch) or 'none'.
        teacher_detach: Whether the teacher's side gets no gradient.

    Raises:
        ConfigError: If `reduction` is unknown.

    >>> L1Loss(2.0)(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])).item()
    1.0
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = 'mean',
        *,
        teacher_detach: bool = False,
    ) -> None:
        super().__init__()
        if size_average is not None or reduce is not None:
            reduction = 'none' if reduce is False else 'sum' if size_average is False else 'mean'
        self.loss_weight = loss_weight
        self.reduction = choice(self, 'reduction', reduction, ('none', 'batchmean', 'sum', 'mean'))
        self.teacher_detach = teacher_detach

    def forward(self, s_feature: Tensor, t_feature: Tensor) -> Tensor:
        """Return the loss of features of one shape, (n, ...)."""
        student, teacher = paired(self, s_feature, t_feature, detach=self.teacher_detach)
        return self.loss_weight * reduced((student - teacher).abs(), self.reduction)


@MODELS.register_module()
class L2Loss(nn.Module):
    r"""Squared distance of normalized features, :math:`w m^2 / n \sum_n \| s_n / \|s_n\| - t_n / \|t_n\| \|^2`.

    Args:
        loss_weight: The factor `w`.
        normalize: Whether each sample's feature is brought to length `m`.
        mult: The length `m`.
        div_element: Whether the sum is divided by all numbers, not by the batch.
        dist: Whether the loss is the root of the sum, not divided.
        teacher_detach: Whether the teacher's side gets no gradient.

    >>> L2Loss(normalize=False)(torch.zeros(2, 3), torch.ones(2, 3)).item()
    3.0
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        normalize: bool = True,
        mult: float = 1.0,
        div_element: bool = False,
        dist: bool = False,
        *,
        teacher_detach: bool = False,
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.normalize = normalize
        self.mult = mult
        self.div_element = div_element
        self.dist = dist
        self.teacher_detach = teacher_detach

    def forward(self, s_feature: Tensor, t_feature: Tensor) -> Tensor:
        """Return the loss of features of one shape, (n, ...)."""
        student, teacher = paired(self, s_feature, t_feature, detach=self.teacher_detach)
        if self.normalize:
            student, teacher = (self.mult * F.normalize(x.flatten(1)) for x in (student, teacher))
        if self.dist:
            return self.loss_weight * torch.linalg.vector_norm(student - teacher)
        total = (student - teacher).square().sum()
        return self.loss_weight * total / (student.numel() if self.div_element else len(student))


@MODELS.register_module()
class ATLoss(nn.Module):
    r"""Attention transfer: where in space the energy is, :math:`w \, \mathrm{mean} (a(s) - a(t))^2`.

    :math:`a(x)` is the mean of :math:`x^2` over the channels, brought to length 1 for each sample. Channels may differ.

    Args:
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher's side gets no gradient.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> bool(ATLoss()(x, torch.cat([x, x], 1)) < 1e-12)
    True

    Reference: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, https://arxiv.org/abs/1612.03928
    """

    def __init__(self, loss_weight: float = 1.0, *, teacher_detach: bool = False) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, s_feature: Tensor, t_feature: Tensor) -> Tensor:
        """Return the loss of features of shape (n, channels, ...)."""
        student, teacher = paired(self, s_feature, t_feature, free='channels', detach=self.teacher_detach)
        _spatial(self, student)
        first, second = (F.normalize(x.square().mean(1).flatten(1)) for x in (student, teacher))
        return self.loss_weight * (first - second).square().mean()


@MODELS.register_module()
class ABLoss(nn.Module):
    r"""Activation boundaries: the student's responses must have the teacher's signs, with a margin.

    :math:`w \frac{3}{1000 n} \sum ( [t \le 0] \max(s + m, 0)^2 + [t > 0] \max(m - s, 0)^2 )`. Take features before the
    activation.

    Args:
        loss_weight: The factor `w`.
        margin: The margin `m`.
        teacher_detach: Whether the teacher's side gets no gradient (it never gets any: only its signs are used).

    >>> ABLoss(loss_weight=1000 / 3)(torch.tensor([[-1.0, 0.0]]), torch.tensor([[-3.0, 5.0]])).item()
    1.0

    Reference: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019,
    https://arxiv.org/abs/1811.03233; the factors are those of its code.
    """

    def __init__(self, loss_weight: float = 1.0, margin: float = 1.0, *, teacher_detach: bool = False) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.margin = margin
        self.teacher_detach = teacher_detach

    def forward(self, s_feature: Tensor, t_feature: Tensor) -> Tensor:
        """Return the loss of features of one shape, (n, ...)."""
        student, teacher = paired(self, s_feature, t_feature, detach=self.teacher_detach)
        over = torch.where(teacher > 0, self.margin - student, self.margin + student).clamp(min=0)
        return self.loss_weight * 3 / 1000 * over.square().sum() / len(student)


@MODELS.register_module()
class FTLoss(nn.Module):
    r"""Factor transfer, :math:`w \, \mathrm{mean} | \hat s - \hat t |`, each sample's factor brought to length 1.

    The factors come from a `Translator` on the student's side and a `Paraphraser` on the teacher's.

    Args:
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher's side gets no gradient.

    >>> FTLoss()(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.6, 0.8]])).item()
    0.0

    Reference: Kim, Park and Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
    https://arxiv.org/abs/1802.04977
    """

    def __init__(self, loss_weight: float = 1.0, *, teacher_detach: bool = False) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, s_feature: Tensor, t_feature: Tensor) -> Tensor:
        """Return the loss of features of one shape, (n, ...)."""
        student, teacher = paired(self, s_feature, t_feature, detach=self.teacher_detach)
        return self.loss_weight * (F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))).abs().mean()


@MODELS.register_module()
class OFDLoss(nn.Module):
    r"""Partial distance: a response may stay below the teacher's where the teacher's is not positive.

    :math:`\frac{w}{f n} \sum [s > t \text{ or } t > 0] \, (s - t)^2`. The teacher's feature comes from an
    `OFDTeacherConnector`, which bounds it by its margin.

    Args:
        loss_weight: The factor `w`.
        mul_factor: The divisor `f`.
        teacher_detach: Whether the teacher's side gets no gradient.

    Raises:
        ConfigError: If `mul_factor` is not above 0.

    >>> OFDLoss(mul_factor=1.0)(torch.tensor([[-3.0, 0.0, 1.0]]), torch.tensor([[-1.0, -1.0, 3.0]])).item()
    5.0

    Reference: Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019, https://arxiv.org/abs/1904.01866
    """

    def __init__(self, loss_weight: float = 1.0, mul_factor: float = 1000.0, *, teacher_detach: bool = False) -> None:
        super().__init__()
        positive(self, mul_factor=mul_factor)
        self.loss_weight = loss_weight
        self.mul_factor = mul_factor
        self.teacher_detach = teacher_detach

    def forward(self, s_feature: Tensor, t_feature: Tensor) -> Tensor:
        """Return the loss of features of one shape, (n, ...)."""
        student, teacher = paired(self, s_feature, t_feature, detach=self.teacher_detach)
        counts = (student > teacher) | (teacher > 0)
        return self.loss_weight * torch.where(counts, student - teacher, 0).square().sum() / (self.mul_factor * len(student))


@MODELS.register_module()
class FBKDLoss(nn.Module):
    r"""Attention-guided and non-local distillation, of what the FBKD connectors give.

    :math:`w ( w_f \| \sqrt m \odot (t - s) \| + w_c \| \bar t - c_s \| + w_s \| p_t - p_s \| + w_n \| r_t - r_s \| )`, where
    :math:`m` is the mean of both spatial masks, :math:`\bar t` the teacher's mean over space, :math:`c_s` the student's adapted
    one, :math:`p` spatial pools and :math:`r` non-local relations. The mask gets no gradient.

    Args:
        mask_l2_weight: Weight :math:`w_f` of the features.
        channel_weight: Weight :math:`w_c` of the channels.
        spatial_weight: Weight :math:`w_s` of the spatial pools.
        nonloacl_weight: Weight :math:`w_n` of the relations (the spelling is MMRazor's).
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher's side gets no gradient.

    >>> feature, mask = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)
    >>> student = (feature, mask, torch.ones(1, 1), feature, feature, 3 * feature)
    >>> FBKDLoss(mask_l2_weight=1.0)(student, (feature, mask, feature, feature, feature)).item()
    4.0

    Reference: Zhang and Ma, Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and Efficient
    Detectors, ICLR 2021, https://openreview.net/forum?id=uKhGRvM8QNH. As in its code the channel masks are not used.
    """

    def __init__(
        self,
        mask_l2_weight: float = 7e-5,
        channel_weight: float = 4e-3,
        spatial_weight: float = 4e-3,
        nonloacl_weight: float = 7e-5,
        loss_weight: float = 1.0,
        *,
        teacher_detach: bool = False,
    ) -> None:
        super().__init__()
        self.mask_l2_weight = mask_l2_weight
        self.channel_weight = channel_weight
        self.spatial_weight = spatial_weight
        self.nonloacl_weight = nonloacl_weight
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, s_input: Sequence[Tensor], t_input: Sequence[Tensor]) -> Tensor:
        """Return the loss.

        Args:
            s_input: What `FBKDStudentConnector` gives: the spatial mask (n, 1, h, w), the channel mask (n, c, 1, 1), the
                adapted channel pool (n, c), the adapted spatial pool (n, 1, h, w), the adapted relation and the adapted
                feature (n, c, h, w).
            t_input: What `FBKDTeacherConnector` gives: the spatial mask, the channel mask, the spatial pool, the relation and
                the feature, of the same shapes.

        Raises:
            ConfigError: If there are not six and five of them, or their shapes do not meet.
        """
        for side, given, number in (('Student', s_input, 6), ('Teacher', t_input, 5)):
            if isinstance(given, Tensor) or len(given) != number:
                raise ConfigError(
                    f'FBKDLoss takes the {number} tensors that FBKD{side}Connector gives as `{side[0].lower()}_input`, but got '
                    f'{"one tensor" if isinstance(given, Tensor) else len(given)}. Put that connector between.'
                )
        mask_S, _, channel_S, pool_S, relation_S, feature_S = s_input
        mask_T, _, pool_T, relation_T, feature_T = t_input
        cut = self.teacher_detach
        feature_S, feature_T = paired(self, feature_S, feature_T, detach=cut)
        masks = paired(self, mask_S, mask_T, detach=cut)
        mask = (masks[0] + masks[1]).detach() / 2
        differences = (
            (self.mask_l2_weight, mask.sqrt() * (feature_T - feature_S)),
            (self.channel_weight, _difference(self, channel_S, feature_T.mean((2, 3)), cut)),
            (self.spatial_weight, _difference(self, pool_S, pool_T, cut)),
            (self.nonloacl_weight, _difference(self, relation_S, relation_T, cut)),
        )
        return self.loss_weight * torch.stack([w * torch.linalg.vector_norm(d) for w, d in differences]).sum()


@MODELS.register_module()
class MGDLoss(nn.Module):
    r"""Masked generative distillation, :math:`w \alpha / n \sum (s - t)^2`.

    The student's feature comes from an `MGDConnector`, which hides a part of it and generates the teacher's from the rest.

    Args:
        alpha_mgd: The factor :math:`\alpha`.
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher's side gets no gradient.

    >>> MGDLoss(alpha_mgd=0.5)(torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)).item()
    6.0

    Reference: Yang et al., Masked Generative Distillation, ECCV 2022, https://arxiv.org/abs/2205.01529
    """

    def __init__(self, alpha_mgd: float = 2e-5, *, loss_weight: float = 1.0, teacher_detach: bool = False) -> None:
        super().__init__()
        self.alpha_mgd = alpha_mgd
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Return the loss of features of one shape, (n, ...)."""
        student, teacher = paired(self, preds_S, preds_T, detach=self.teacher_detach)
        return self.loss_weight * self.alpha_mgd * (student - teacher).square().sum() / len(student)


@MODELS.register_module()
class ChannelWiseDivergence(nn.Module):
    r"""Divergence of each channel's distribution over space (CWD).

    :math:`w \tau^2 / (n c) \sum_{n, c} \mathrm{KL}( \operatorname{softmax}_{hw}(t / \tau) \| \operatorname{softmax}_{hw}(s /
    \tau) )`: each channel says where, and how strong it is does not matter.

    Args:
        tau: The temperature.
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher's side gets no gradient.

    Raises:
        ConfigError: If `tau` is not above 0.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> bool(ChannelWiseDivergence()(x + 5, x).abs() < 1e-6)
    True

    Reference: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, https://arxiv.org/abs/2011.13256
    """

    def __init__(self, tau: float = 1.0, loss_weight: float = 1.0, *, teacher_detach: bool = False) -> None:
        super().__init__()
        positive(self, tau=tau)
        self.tau = tau
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Return the loss of features or logits of one shape, (n, channels, ...)."""
        student, teacher = paired(self, preds_S, preds_T, detach=self.teacher_detach)
        _spatial(self, student)
        log_q, log_p = (F.log_softmax(x.flatten(2) / self.tau, -1) for x in (student, teacher))
        return self.loss_weight * self.tau**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@MODELS.register_module()
class PKDLoss(nn.Module):
    r"""Pearson correlation of channels over batch and space, :math:`\frac{w}{2} \, \mathrm{mean} (z(s) - z(t))^2`.

    :math:`z` brings each channel to mean 0 and standard deviation 1 over the batch and space, so that the loss is
    :math:`1 - r` but for the factor :math:`(k - 1) / k` of `k` values. With several levels the losses are summed.

    Args:
        loss_weight: The factor `w`.
        resize_stu: Where spatial sizes differ, whether the student is resized to the teacher's size, or the teacher to the
            student's.
        teacher_detach: Whether the teacher's side gets no gradient.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> bool(PKDLoss()(7 * x + 1, x) < 1e-6)
    True

    Differs from MMRazor, which resized only where the heights differ.

    Reference: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient,
    NeurIPS 2022, https://arxiv.org/abs/2207.02039
    """

    def __init__(self, loss_weight: float = 1.0, resize_stu: bool = True, *, teacher_detach: bool = False) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.resize_stu = resize_stu
        self.teacher_detach = teacher_detach

    def forward(self, preds_S: Tensor | Sequence[Tensor], preds_T: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the loss of features of shape (n, channels, h, w), or of as many of them on both sides."""
        total = []
        for student, teacher in levels(self, preds_S, preds_T):
            student, teacher = paired(self, student, teacher, free='space', detach=self.teacher_detach)
            _spatial(self, student, 4)
            if student.shape != teacher.shape:
                if self.resize_stu:
                    student = F.interpolate(student, teacher.shape[2:], mode='bilinear')
                else:
                    teacher = F.interpolate(teacher, student.shape[2:], mode='bilinear')
            total.append((_normalised(student) - _normalised(teacher)).square().mean() / 2)
        return self.loss_weight * torch.stack(total).sum()


@MODELS.register_module()
class HCLLoss(nn.Module):
    r"""Hierarchical context: squared differences of whole features and of their averages over coarser and coarser grids.

    For each level :math:`w \sum_k 2^{-k} \mathrm{mean} (P_k s - P_k t)^2 / \sum_k 2^{-k}`, where :math:`P_0` is the identity
    and :math:`P_k` averages over a grid of `grids[k - 1]` cells a side; grids not below the feature's height are left out.
    With several levels the losses are summed.

    Args:
        grids: Cells a side of the coarser grids.
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher's side gets no gradient.

    Raises:
        ConfigError: If `grids` are not whole numbers above 0.

    >>> HCLLoss()(torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 8, 8)).item()
    1.0

    Reference: Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021, https://arxiv.org/abs/2104.09044
    """

    def __init__(self, grids: Sequence[int] = (4, 2, 1), loss_weight: float = 1.0, *, teacher_detach: bool = False) -> None:
        super().__init__()
        if not all(isinstance(cells, int) and cells > 0 for cells in grids):
            raise ConfigError(f'`grids` of HCLLoss are whole numbers above 0, such as (4, 2, 1), but got {grids!r}.')
        self.grids = tuple(grids)
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, preds_S: Tensor | Sequence[Tensor], preds_T: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the loss of features of shape (n, channels, h, w), or of as many of them on both sides."""
        total = []
        for student, teacher in levels(self, preds_S, preds_T):
            student, teacher = paired(self, student, teacher, detach=self.teacher_detach)
            _spatial(self, student, 4)
            difference = student - teacher  # averaging is linear: that of the difference is the difference of both
            used = [cells for cells in self.grids if cells < student.shape[2]]
            terms = [difference, *(F.adaptive_avg_pool2d(difference, cells) for cells in used)]
            shares = [0.5**k for k in range(len(terms))]
            context = torch.stack([share * term.square().mean() for share, term in zip(shares, terms)]).sum()
            total.append(context / sum(shares))
        return self.loss_weight * torch.stack(total).sum()


def _difference(loss: nn.Module, student: Tensor, teacher: Tensor, cut: bool) -> Tensor:
    first, second = paired(loss, student, teacher, detach=cut)
    return second - first


def _normalised(feature: Tensor) -> Tensor:
    centred = feature - feature.mean((0, 2, 3), keepdim=True)
    # A norm, not `std`: the gradient of the latter is not a number where a channel is constant.
    length = torch.linalg.vector_norm(centred, dim=(0, 2, 3), keepdim=True)
    count = feature.numel() // feature.shape[1]
    return centred / (length / max(count - 1, 1) ** 0.5 + 1e-6)


def _spatial(loss: nn.Module, feature: Tensor, axes: int | None = None) -> None:
    if feature.ndim < 3 or axes not in (None, feature.ndim):
        shape = '(n, channels, h, w)' if axes else '(n, channels, ...) with one spatial axis or more'
        raise ConfigError(f'{type(loss).__name__} takes features of shape {shape}, but got shape {tuple(feature.shape)}.')
