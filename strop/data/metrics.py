"""Classification accuracy for MMEngine's evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from strop.data.samples import labels_of
from strop.errors import ConfigError, DataError
from strop.registry import METRICS

#: Rank of the true class where a score is NaN: beyond every k.
_NEVER = 2**31


def ranks_of(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return how many classes are ranked before the true one; ties go to the lower class, NaN is never right.

    Args:
        scores: Shape (n, classes).
        labels: Shape (n,).

    Returns:
        Shape (n,) of longs; 0 means the true class came first.

    Raises:
        DataError: If a label is no class, or there is not one for each row.

    >>> ranks_of(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]]), torch.tensor([2, 1]))
    tensor([1, 1])
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or labels.is_floating_point():
        raise DataError(
            'Scores of shape (n, classes) go with n whole numbers, the true classes; got scores of shape '
            f'{tuple(scores.shape)} and {str(labels.dtype).removeprefix("torch.")} labels of shape {tuple(labels.shape)}.'
        )
    classes, labels = scores.shape[-1], labels.long()
    if labels.numel() and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(
            f'Labels must be in range(0, {classes}), the scored classes; got {int(labels.min())} to {int(labels.max())}.'
        )
    true = scores.gather(1, labels[:, None])
    before = torch.arange(classes, device=scores.device)[None] < labels[:, None]
    ranks = ((scores > true) | ((scores == true) & before)).sum(1)
    return torch.where(scores.isnan().any(1), _NEVER, ranks)


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of images, in percent, whose true class is among the `k` best scored: `accuracy/top1`, `accuracy/top5`, ...

    With fewer than `k` classes every image counts, as `k` is clamped to the number of classes; top5 of 3 classes is 100.

    Args:
        topk: One `k` or several.
        collect_device: 'cpu' or 'gpu', where the ranks of several processes meet.
        prefix: Of the names; 'accuracy' if not given.

    Raises:
        ConfigError: If a `k` is not positive.

    >>> metric = Accuracy(topk=(1, 2))
    >>> metric.process(None, [(torch.tensor([0.1, 0.7, 0.2]), 2), (torch.tensor([0.1, 0.7, 0.2]), 1)])
    >>> metric.evaluate(2)
    {'accuracy/top1': 50.0, 'accuracy/top2': 100.0}
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: int | Sequence[int] = (1,), collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or min(self.topk) < 1:
            raise ConfigError(f'topk must be one positive integer or several; got {topk!r}.')

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Rank the true class of every image of a batch.

        Args:
            data_batch: What the loader gave; its labels are used where the outputs carry none.
            data_samples: The outputs: data samples as dicts with `pred_score` and `gt_label`, pairs `(score, label)`, one
                pair of tensors `(scores, labels)`, or a tensor of scores.

        Raises:
            DataError: If scores or labels are missing.
        """
        scores, labels = self._scores_and_labels(data_batch, data_samples)
        self.results.extend(ranks_of(scores.float(), labels.to(scores.device)).tolist())

    @staticmethod
    def _scores_and_labels(data_batch: Any, outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(outputs, torch.Tensor):
            return outputs, _batch_labels(data_batch)
        if len(outputs) == 2 and isinstance(outputs[0], torch.Tensor) and outputs[0].ndim == 2:
            return outputs[0], torch.as_tensor(outputs[1])
        first = outputs[0]
        if isinstance(first, torch.Tensor):
            return torch.stack(list(outputs)), _batch_labels(data_batch)
        if isinstance(first, (tuple, list)):
            return torch.stack([score for score, _ in outputs]), torch.tensor([int(label) for _, label in outputs])
        if 'pred_score' not in first:
            raise DataError(f'Accuracy needs the pred_score of every sample; got one with {sorted(first.keys())}.')
        scores = torch.stack([sample['pred_score'] for sample in outputs])
        if 'gt_label' in first:
            return scores, torch.cat([torch.as_tensor(sample['gt_label']).reshape(-1) for sample in outputs])
        return scores, _batch_labels(data_batch)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Return the accuracies in percent.

        Raises:
            DataError: If no image was seen.
        """
        if not results:
            raise DataError('Accuracy has seen no image; is the data set empty?')
        ranks = torch.tensor(results)
        return {f'top{k}': 100.0 * (ranks < k).double().mean().item() for k in self.topk}


def _batch_labels(data_batch: Any) -> torch.Tensor:
    if isinstance(data_batch, dict):
        return labels_of(data_batch.get('data_samples'))
    if isinstance(data_batch, (tuple, list)) and len(data_batch) == 2:
        return labels_of(data_batch[1])
    raise DataError('Accuracy found no labels, neither in the outputs nor in the batch (inputs, labels).')
