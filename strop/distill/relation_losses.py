"""Losses between relations: of samples with each other, and of classes with each other, in student and in teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, get_world_size
from torch import Tensor, nn

from strop.distill.loss_inputs import exact, indices, paired, positive
from strop.errors import ConfigError
from strop.registry import MODELS


@MODELS.register_module()
class DISTLoss(nn.Module):
    r"""Correlation instead of a match: of the classes within each sample, and of the samples within each class.

    :math:`w \tau^2 ( \beta (1 - \mathrm{mean}_n \, r(q_n, p_n)) + \gamma (1 - \mathrm{mean}_i \, r(q^i, p^i)) )` with Pearson's
    :math:`r` and :math:`p, q` the distributions of teacher and student at temperature :math:`\tau`, by samples :math:`n` and by
    classes :math:`i`.

    Args:
        inter_loss_weight: Weight :math:`\beta` of the classes within a sample.
        intra_loss_weight: Weight :math:`\gamma` of the samples within a class.
        tau: The temperature.
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher gets no gradient.

    Raises:
        ConfigError: If `tau` is not above 0.

    >>> logits = torch.rand(4, 3)
    >>> bool(DISTLoss()(logits, logits).abs() < 1e-4)
    True

    Axes after the classes (space) are taken as more samples.

    Reference: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, https://arxiv.org/abs/2205.10536
    """

    def __init__(
        self,
        inter_loss_weight: float = 1.0,
        intra_loss_weight: float = 1.0,
        tau: float = 1.0,
        loss_weight: float = 1.0,
        teacher_detach: bool = True,
    ) -> None:
        super().__init__()
        positive(self, tau=tau)
        self.inter_loss_weight = inter_loss_weight
        self.intra_loss_weight = intra_loss_weight
        self.tau = tau
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, logits_S: Tensor, logits_T: Tensor) -> Tensor:
        """Return the loss of logits of shape (n, classes, ...)."""
        student, teacher = paired(self, logits_S, logits_T, detach=self.teacher_detach)
        if student.ndim < 2 or student.shape[1] < 2:
            raise ConfigError(
                'DISTLoss takes logits of shape (n, classes, ...) with two classes or more, but got shape '
                f'{tuple(student.shape)}.'
            )
        q, p = ((logits.movedim(1, -1).flatten(0, -2) / self.tau).softmax(1) for logits in (student, teacher))
        inter, intra = 1 - _correlation(q, p, 1).mean(), 1 - _correlation(q, p, 0).mean()
        return self.loss_weight * self.tau**2 * (self.inter_loss_weight * inter + self.intra_loss_weight * intra)


class _RelationalLoss(nn.Module):
    """Features of all kinds, one row a sample, their relations, and the smooth L1 distance of these."""

    relations: Callable[[Tensor], Tensor]

    def __init__(self, loss_weight: float, with_l2_norm: bool = True, *, teacher_detach: bool = True) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.with_l2_norm = with_l2_norm
        self.teacher_detach = teacher_detach

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Return the loss of features of shape (n, ...); all but the batch may differ."""
        rows = [x.reshape(len(x), -1) for x in paired(self, preds_S, preds_T, free='features', detach=self.teacher_detach)]
        if self.with_l2_norm:
            rows = [F.normalize(x) for x in rows]
        with exact(rows[0]):
            student, teacher = (type(self).relations(x) for x in rows)
        return self.loss_weight * F.smooth_l1_loss(student, teacher)


@MODELS.register_module()
class DistanceWiseRKD(_RelationalLoss):
    r"""Relations of pairs: :math:`w \, \mathrm{mean}_{ij} \, h( d^S_{ij} / \bar d^S - d^T_{ij} / \bar d^T )`.

    :math:`d` are Euclidean distances between samples, :math:`\bar d` the mean of those above 0, :math:`h` is the smooth L1
    distance. A batch of one sample has no pairs; its loss is 0.

    Args:
        loss_weight: The factor `w`.
        with_l2_norm: Whether each sample's feature is brought to length 1 first.
        teacher_detach: Whether the teacher gets no gradient.

    >>> x = torch.rand(4, 3)
    >>> bool(DistanceWiseRKD(with_l2_norm=False)(5 * x, x) < 1e-9)
    True

    Reference: Park et al., Relational Knowledge Distillation, CVPR 2019, https://arxiv.org/abs/1904.05068
    """

    def __init__(self, loss_weight: float = 25.0, with_l2_norm: bool = True, *, teacher_detach: bool = True) -> None:
        super().__init__(loss_weight, with_l2_norm, teacher_detach=teacher_detach)

    @staticmethod
    def relations(rows: Tensor) -> Tensor:
        """Return the distances of all pairs in units of their mean, (n, n)."""
        distances = torch.cdist(rows, rows, compute_mode='donot_use_mm_for_euclid_dist')
        apart = (distances > 0).sum().clamp(min=1)
        mean = distances.sum() / apart
        return distances / torch.where(mean > 0, mean, 1)


@MODELS.register_module()
class AngleWiseRKD(_RelationalLoss):
    r"""Relations of triples: :math:`w \, \mathrm{mean}_{ijk} \, h( \cos \angle^S_{ijk} - \cos \angle^T_{ijk} )`.

    The angle is at sample :math:`j`, between the directions to :math:`i` and :math:`k`; :math:`h` is the smooth L1 distance.
    Memory grows with the cube of the batch.

    Args:
        loss_weight: The factor `w`.
        with_l2_norm: Whether each sample's feature is brought to length 1 first.
        teacher_detach: Whether the teacher gets no gradient.

    >>> x = torch.rand(4, 3)
    >>> bool(AngleWiseRKD(with_l2_norm=False)(5 * x + 1, x) < 1e-6)
    True

    Reference: Park et al., Relational Knowledge Distillation, CVPR 2019, https://arxiv.org/abs/1904.05068
    """

    def __init__(self, loss_weight: float = 50.0, with_l2_norm: bool = True, *, teacher_detach: bool = True) -> None:
        super().__init__(loss_weight, with_l2_norm, teacher_detach=teacher_detach)

    @staticmethod
    def relations(rows: Tensor) -> Tensor:
        """Return the cosines of the angles of all triples, (n, n, n)."""
        apart = rows[None] - rows[:, None]
        length = torch.linalg.vector_norm(apart, dim=2, keepdim=True)
        # Two equal samples have no direction, and should have no gradient of 1 / eps either.
        directions = apart / torch.where(length > 0, length, 1)
        return directions @ directions.transpose(1, 2)


@MODELS.register_module()
class CKALoss(nn.Module):
    r"""One minus the linear centred kernel alignment of the two features over the batch.

    :math:`w ( 1 - \langle K, L \rangle / (\|K\| \|L\|) )` with the centred Gram matrices :math:`K = X X^\top, L = Y Y^\top`
    of student and teacher, one row a sample. Neither rotation, scale nor shift of a feature changes it, and widths may differ.
    With fewer than two different samples the loss is `w`, or 0 for a batch of one.

    Args:
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher gets no gradient.

    >>> x = torch.rand(6, 3)
    >>> bool(CKALoss()(2 * x.flip(1) + 1, x).abs() < 1e-5)
    True

    Reference: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019,
    https://arxiv.org/abs/1905.00414. The estimate over a batch is biased upwards where the batch is small beside the width.
    """

    def __init__(self, loss_weight: float = 1.0, *, teacher_detach: bool = True) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Return the loss of features of shape (n, ...); all but the batch may differ."""
        student, teacher = paired(self, preds_S, preds_T, free='features', detach=self.teacher_detach)
        if len(student) < 2:
            return self.loss_weight * 0.0 * student.sum()
        with exact(student):
            first, second = (_gram(x.reshape(len(x), -1)) for x in (student, teacher))
        lengths = torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)
        return self.loss_weight * (1 - (first * second).sum() / torch.where(lengths > 0, lengths, 1))


@MODELS.register_module()
class CRDLoss(nn.Module):
    r"""Contrastive distillation: each student's feature must find its own sample's teacher among many others, and vice versa.

    A memory holds one feature for every sample of the data, :math:`N` in all. Of a feature :math:`f` and a memory :math:`m`,
    :math:`e = e^{f \cdot m / \tau} / Z`. Each side's loss is

    :math:`-\frac{1}{n} \sum_n ( \log \frac{e_{n0}}{e_{n0} + c} + \sum_{j=1}^{k} \log \frac{k / N}{e_{nj} + c} ), \quad
    c = k / N + \epsilon,`

    with the sample's own memory at 0 and `k` negatives. The student's features are held against the memory of the teacher's and
    the teacher's against the student's; the loss is `w` times the sum of both. :math:`Z` is set by the first batch: its mean of
    :math:`e^{f \cdot m / \tau}`, times :math:`N`.

    After each step in training the memories of the batch's samples become the normalized mean of `momentum` parts old and the
    rest new. All state is in buffers: it is saved, moved and resumed with the model. In several processes the memories are
    kept equal: each learns what the others saw.

    Args:
        loss_weight: The factor `w`.
        temperature: The temperature :math:`\tau`.
        neg_num: Negatives `k` of each sample, where the data gives none.
        sample_n: Number of samples in the data, :math:`N`.
        dim_out: Width of the features.
        momentum: Share of the old memory that stays, from 0 to 1.
        eps: The constant :math:`\epsilon`.

    Raises:
        ConfigError: If a number is out of its range.

    >>> loss = CRDLoss(neg_num=2, sample_n=10, dim_out=4)
    >>> feature = torch.nn.functional.normalize(torch.rand(3, 4))
    >>> loss(feature, feature, torch.tensor([0, 4, 7])).shape
    torch.Size([])

    Differs from MMRazor: the loss is a scalar and `loss_weight` is applied; a sample is never its own negative where negatives
    are drawn here; evaluation leaves the memories as they are.

    Reference: Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020, https://arxiv.org/abs/1910.10699
    """

    memory_S: Tensor
    memory_T: Tensor
    scale: Tensor

    def __init__(
        self,
        loss_weight: float = 1.0,
        temperature: float = 0.07,
        neg_num: int = 16384,
        sample_n: int = 50000,
        dim_out: int = 128,
        momentum: float = 0.5,
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        positive(self, temperature=temperature, neg_num=neg_num, sample_n=sample_n, dim_out=dim_out)
        if not 0 <= momentum <= 1:
            raise ConfigError(f'`momentum` of CRDLoss must be from 0 to 1, but got {momentum!r}.')
        if sample_n < 2:
            raise ConfigError('`sample_n` of CRDLoss must be 2 or more: a sample needs another one to differ from.')
        self.loss_weight = loss_weight
        self.temperature = temperature
        self.neg_num = neg_num
        self.momentum = momentum
        self.eps = eps
        bound = (3 / dim_out) ** 0.5
        self.register_buffer('memory_S', torch.empty(sample_n, dim_out).uniform_(-bound, bound))
        self.register_buffer('memory_T', torch.empty(sample_n, dim_out).uniform_(-bound, bound))
        #: The constants Z of student and teacher; 0 until the first batch.
        self.register_buffer('scale', torch.zeros(2))

    def forward(self, s_feats: Tensor, t_feats: Tensor, data_samples: Any) -> Tensor:
        """Return the loss.

        Args:
            s_feats: The student's features of length 1, shape (n, dim_out), as a `CRDConnector` gives them.
            t_feats: The teacher's.
            data_samples: Data samples with `sample_idx`, and with `contrast_sample_idxs` (the sample itself, then its
                negatives) where the data set chose them; or a tensor of the samples' indices, (n,), for drawn negatives.

        Raises:
            ConfigError: If the width is not `dim_out`, indices are missing, or they are not those of `sample_n` samples.
        """
        student, teacher = paired(self, s_feats, t_feats)
        if student.ndim != 2 or student.shape[1] != self.memory_S.shape[1]:
            width = self.memory_S.shape[1]
            raise ConfigError(
                f'CRDLoss was made for features of shape (n, {width}), but got {tuple(student.shape)}. Give both sides a '
                f"connector dict(type='CRDConnector', dim_in={student[0].numel()}, dim_out={width})."
            )
        positions, contrasts = self._samples(data_samples, student)
        scores = [
            _scores(feature, memory, contrasts) / self.temperature
            for feature, memory in ((student, self.memory_T), (teacher, self.memory_S))
        ]
        likeness = torch.stack([score.exp() for score in scores])
        if not bool((self.scale > 0).all()):
            totals = torch.cat([likeness.detach().sum((1, 2)), likeness.new_tensor([contrasts.numel()])])
            if get_world_size() > 1:
                all_reduce(totals)
            self.scale.copy_(totals[:2] / totals[2] * len(self.memory_S))
        likeness = likeness / self.scale[:, None, None].to(likeness.dtype)
        noise = (contrasts.shape[1] - 1) / len(self.memory_S)
        found = torch.log(likeness[..., 0] / (likeness[..., 0] + noise + self.eps))
        told_apart = torch.log(noise / (likeness[..., 1:] + noise + self.eps))
        if self.training:
            self._remember(positions, student.detach(), teacher.detach())
        return -self.loss_weight * (found.sum() + told_apart.sum()) / len(student)

    def _samples(self, data_samples: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples' indices, (n,), and with each its negatives', (n, 1 + k)."""
        device, total = features.device, len(self.memory_S)
        contrasts = None
        if isinstance(data_samples, Tensor):
            positions = data_samples.reshape(-1)
        elif isinstance(data_samples, Sequence) and data_samples and all(hasattr(s, 'sample_idx') for s in data_samples):
            positions = torch.stack([torch.as_tensor(sample.sample_idx).reshape(()) for sample in data_samples])
            if all(getattr(sample, 'contrast_sample_idxs', None) is not None for sample in data_samples):
                contrasts = torch.stack([torch.as_tensor(sample.contrast_sample_idxs) for sample in data_samples]).to(device)
        else:
            raise ConfigError(
                'CRDLoss must know which samples it sees: give data samples with `sample_idx` (as CRDDataset does), or a '
                f'tensor of indices, but got {type(data_samples).__name__}.'
            )
        if len(positions) != len(features) or positions.is_floating_point():
            raise ConfigError(
                f'CRDLoss needs one index for each of the {len(features)} samples, but got {positions.dtype} of shape '
                f'{tuple(positions.shape)}.'
            )
        positions = indices('CRDLoss', 'indices of samples', positions.long().to(device), total, f'sample_n={total}')
        if contrasts is None:
            steps = torch.randint(1, total, (len(positions), self.neg_num), device=device)
            contrasts = torch.cat([positions[:, None], (positions[:, None] + steps) % total], 1)
        elif contrasts.ndim != 2 or contrasts.shape[1] < 2:
            raise ConfigError(
                '`contrast_sample_idxs` of CRDLoss are the sample itself and one negative or more, but got shape '
                f'{tuple(contrasts.shape[1:])}.'
            )
        return positions, indices('CRDLoss', 'contrast_sample_idxs', contrasts.long(), total, f'sample_n={total}')

    @torch.no_grad()
    def _remember(self, positions: Tensor, student: Tensor, teacher: Tensor) -> None:
        if get_world_size() > 1:
            positions, student, teacher = _from_all(positions), _from_all(student), _from_all(teacher)
        for memory, feature in ((self.memory_S, student), (self.memory_T, teacher)):
            mixed = self.momentum * memory[positions] + (1 - self.momentum) * feature.to(memory.dtype)
            memory.index_copy_(0, positions, F.normalize(mixed))


def _correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Return Pearson's correlation; 0 where the first does not vary (a head that starts at zero), with a bounded gradient."""
    (first, varies), (second, _) = _centred(first, dim), _centred(second, dim)
    lengths = torch.linalg.vector_norm(first, dim=dim) * torch.linalg.vector_norm(second, dim=dim)
    return (first * second).sum(dim) / torch.where(varies.squeeze(dim), lengths + 1e-8, 1)


def _centred(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the values less their mean, and whether what is left is more than rounding."""
    left = values - values.mean(dim, keepdim=True)
    whole, rest = (torch.linalg.vector_norm(x, dim=dim, keepdim=True) for x in (values.detach(), left.detach()))
    return left, rest > 8 * torch.finfo(values.dtype).eps * whole


def _gram(rows: Tensor) -> Tensor:
    left, varies = _centred(rows, 0)
    left = torch.where(varies, left, 0)
    return left @ left.T


def _scores(features: Tensor, memory: Tensor, wanted: Tensor) -> Tensor:
    """Return the products of each feature with the memories that are wanted of it, (n, 1 + k)."""
    with exact(features):
        # All products cost less memory than a copy of the wanted rows for every sample, unless few are wanted of many.
        if len(memory) <= 8 * wanted.shape[1]:
            # A copy: the step writes into the memory before the backward reads what was used here.
            return (features @ memory.to(features.dtype, copy=True).T).gather(1, wanted)
        return torch.einsum('nd,nkd->nk', features, memory[wanted].to(features.dtype))


def _from_all(given: Tensor) -> Tensor:
    """Return the rows of all processes, whose numbers may differ."""
    counts = all_gather(torch.tensor([len(given)], device=given.device))
    padded = given.new_zeros(max(int(count) for count in counts), *given.shape[1:])
    padded[: len(given)] = given
    return torch.cat([rows[: int(count)] for rows, count in zip(all_gather(padded), counts)])
