"""Losses that train a generator by what a teacher says of its images (data-free learning, DAFL)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from torch import Tensor, nn

from strop.distill.loss_inputs import choice, tensor, wide
from strop.errors import ConfigError
from strop.registry import MODELS


@MODELS.register_module()
class ActivationLoss(nn.Module):
    r"""Images of the data's kind wake the teacher's features: minus the mean (or the norm) of their absolute values.

    :math:`-w \, \mathrm{mean} |f|` ('abs') or :math:`-w \|f\|` ('norm').

    Args:
        loss_weight: The factor `w`.
        norm_type: 'abs' or 'norm'.

    Raises:
        ConfigError: If `norm_type` is unknown.

    >>> (
    ...     ActivationLoss()(torch.tensor([[3.0, -5.0]])).item(),
    ...     ActivationLoss(norm_type='norm')(torch.tensor([[3.0, 4.0]])).item(),
    ... )
    (-4.0, -5.0)

    Reference: Chen et al., Data-Free Learning of Student Networks, ICCV 2019, https://arxiv.org/abs/1904.01186
    """

    def __init__(self, loss_weight: float = 1.0, norm_type: str = 'abs') -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.norm_type = choice(self, 'norm_type', norm_type, ('abs', 'norm'))

    def forward(self, feat_T: Tensor) -> Tensor:
        """Return the loss of the teacher's feature, any shape (n, ...)."""
        feature = wide(tensor(self, 'teacher', feat_T))
        return -self.loss_weight * (feature.abs().mean() if self.norm_type == 'abs' else torch.linalg.vector_norm(feature))


@MODELS.register_module()
class OnehotLikeLoss(nn.Module):
    r"""Images of the data's kind have a class: the teacher's cross entropy against its own first choice.

    :math:`-w \, \mathrm{mean}_n \log p_{\arg\max p}`.

    Args:
        loss_weight: The factor `w`.

    >>> OnehotLikeLoss()(torch.zeros(3, 4)).item() == torch.tensor(4.0).log().item()
    True

    Reference: Chen et al., Data-Free Learning of Student Networks, ICCV 2019, https://arxiv.org/abs/1904.01186
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, preds_T: Tensor) -> Tensor:
        """Return the loss of the teacher's logits, shape (n, classes)."""
        logits = _logits(self, preds_T)
        return self.loss_weight * F.cross_entropy(logits, logits.argmax(1))


@MODELS.register_module()
class InformationEntropyLoss(nn.Module):
    r"""All classes come equally often: minus the entropy of the batch's mean distribution, to base 10.

    :math:`w \sum_i \bar p_i \log_{10} \bar p_i`; the smallest value is :math:`-w \log_{10} c`.

    Args:
        gather: Whether the mean is over the batches of all processes.
        loss_weight: The factor `w`.

    >>> loss = InformationEntropyLoss()(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
    >>> bool(torch.isclose(loss, torch.tensor(0.5).log10()))
    True

    Differs from MMRazor: the processes exchange the mean distribution, not all logits, and their batches may differ in size.

    Reference: Chen et al., Data-Free Learning of Student Networks, ICCV 2019, https://arxiv.org/abs/1904.01186
    """

    def __init__(self, gather: bool = True, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.gather = gather
        self.loss_weight = loss_weight

    def forward(self, preds_T: Tensor) -> Tensor:
        """Return the loss of the teacher's logits, shape (n, classes)."""
        logits = _logits(self, preds_T)
        total = torch.cat([F.softmax(logits, 1).sum(0), logits.new_tensor([len(logits)])])
        if self.gather and get_world_size() > 1:
            total = _SumOverProcesses.apply(total)
        mean = total[:-1] / total[-1]
        # The smallest normal number, so that a class of no probability has a finite gradient.
        return self.loss_weight * (mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum() / math.log(10)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes. Gradients are summed too, so that their mean (DDP's) is that of the joined batch."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, given: Tensor) -> Tensor:
        total = given.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


def _logits(loss: nn.Module, given: Tensor) -> Tensor:
    logits = wide(tensor(loss, 'teacher', given))
    if logits.ndim != 2:
        raise ConfigError(f'{type(loss).__name__} takes logits of shape (n, classes), but got shape {tuple(logits.shape)}.')
    return logits
