"""Necks and heads that make classes of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.structures import BaseDataElement
from torch import nn

from strop.architectures.conv_module import Cfg
from strop.data import DataSample, labels_of
from strop.errors import ConfigError, DataError
from strop.registry import MODELS

_CROSS_ENTROPY: Cfg = {'type': 'CrossEntropyLoss', 'loss_weight': 1.0}
_NORMAL: Cfg = {'type': 'Normal', 'layer': 'Linear', 'std': 0.01}


@MODELS.register_module()
class GlobalAveragePooling(nn.Module):
    """Mean over all positions of a feature map.

    Args:
        dim: Number of the axes that are averaged: 1, 2 or 3.

    Raises:
        ConfigError: If `dim` is another number.

    >>> GlobalAveragePooling()(torch.ones(2, 8, 3, 3)).shape
    torch.Size([2, 8])
    """

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        pools = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
        if dim not in pools:
            raise ConfigError(f'dim of GlobalAveragePooling must be 1, 2 or 3; got {dim!r}.')
        self.gap = pools[dim](1)

    def forward(self, inputs: Any) -> Any:
        """Map `(batch, channels, ...)` to `(batch, channels)`, or each of a tuple."""
        if isinstance(inputs, (tuple, list)):
            return tuple(self.gap(x).flatten(1) for x in inputs)
        return self.gap(inputs).flatten(1)


@MODELS.register_module()
class ClsHead(BaseModule):
    """A head without layers: the last feature is the logits.

    Args:
        loss: Config of the loss, or a module `(logits, labels) -> loss`.
        topk: Which accuracies `cal_acc` adds.
        cal_acc: Add the accuracy of the batch, in percent, to the losses (`accuracy_top-1`).
        init_cfg: MMEngine's initialisation config.

    >>> head = ClsHead()
    >>> round(head.loss((torch.zeros(2, 4),), torch.tensor([0, 3]))['loss'].item(), 4)
    1.3863
    """

    def __init__(
        self,
        loss: Cfg | nn.Module = _CROSS_ENTROPY,
        topk: int | Sequence[int] = (1,),
        cal_acc: bool = False,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or min(self.topk) < 1:
            raise ConfigError(f'topk of {type(self).__name__} must be one positive integer or several; got {topk!r}.')
        self.loss_module: nn.Module = loss if isinstance(loss, nn.Module) else MODELS.build(loss)
        self.cal_acc = cal_acc

    def pre_logits(self, feats: Any) -> torch.Tensor:
        """Return what the last layer receives: the last feature."""
        return feats[-1] if isinstance(feats, (tuple, list)) else feats

    def forward(self, feats: Any) -> torch.Tensor:
        """Return the logits, shape (batch, classes)."""
        return self.pre_logits(feats)

    def loss(self, feats: Any, data_samples: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the losses of a batch.

        Args:
            feats: Features.
            data_samples: Data samples, or a tensor of labels.
            kwargs: Passed to the loss.

        Raises:
            DataError: If there are no labels.
        """
        logits = self(feats)
        labels = labels_of(data_samples, logits.device)
        if labels.shape[0] != logits.shape[0]:
            raise DataError(f'Every image needs one label; got {logits.shape[0]} images and {labels.shape[0]} labels.')
        losses = {'loss': self.loss_module(logits, labels, **kwargs)}
        if self.cal_acc:
            if labels.ndim > 1:
                raise ConfigError('cal_acc=True needs labels that are classes; these are probabilities.')
            best = logits.detach().topk(min(max(self.topk), logits.shape[-1])).indices
            for k in self.topk:
                losses[f'accuracy_top-{k}'] = 100.0 * (best[:, :k] == labels[:, None]).any(1).float().mean()
        return losses

    def predict(self, feats: Any, data_samples: Any = None) -> list[BaseDataElement]:
        """Return one data sample an image, with `pred_score` and `pred_label` added.

        Args:
            feats: Features.
            data_samples: Data samples to fill in; new ones are made from a tensor of labels or from nothing.
        """
        scores = F.softmax(self(feats).float(), dim=1).detach()
        given = isinstance(data_samples, (list, tuple)) and all(isinstance(item, BaseDataElement) for item in data_samples)
        samples: list[Any] = list(data_samples) if given else [DataSample() for _ in scores]
        if len(samples) != len(scores):
            raise DataError(f'Every image needs one data sample; got {len(scores)} images and {len(samples)} samples.')
        if not given and data_samples is not None:
            for sample, label in zip(samples, labels_of(data_samples, scores.device).unsqueeze(1).unbind(0), strict=True):
                sample.gt_label = label
        for sample, score, label in zip(samples, scores, scores.argmax(1, keepdim=True), strict=True):
            sample.pred_score, sample.pred_label = score, label
        return samples


@MODELS.register_module()
class LinearClsHead(ClsHead):
    """A head of one linear layer, `fc`.

    Args:
        num_classes: Number of classes.
        in_channels: Length of the feature.
        init_cfg: MMEngine's initialisation config.
        kwargs: Arguments of `ClsHead`.

    Raises:
        ConfigError: If one of the numbers is not positive.

    >>> LinearClsHead(num_classes=10, in_channels=8)((torch.rand(2, 8),)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, in_channels: int, init_cfg: Cfg | list[Cfg] | None = _NORMAL, **kwargs: Any) -> None:
        if num_classes < 1 or in_channels < 1:
            raise ConfigError(f'num_classes and in_channels must be positive; got {num_classes!r} and {in_channels!r}.')
        super().__init__(init_cfg=init_cfg, **kwargs)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, feats: Any) -> torch.Tensor:
        """Return the logits, shape (batch, classes).

        Raises:
            ConfigError: If the feature has another length.
        """
        x = self.pre_logits(feats)
        if x.ndim != 2 or x.shape[1] != self.in_channels:
            raise ConfigError(
                f'LinearClsHead has in_channels={self.in_channels} and received features of shape {tuple(x.shape)}; it needs '
                "(batch, in_channels). A feature map needs a neck, such as dict(type='GlobalAveragePooling')."
            )
        return self.fc(x)
