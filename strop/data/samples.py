"""The data sample that classifiers fill in, and how samples become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import FUNCTIONS
from mmengine.structures import BaseDataElement

from strop.errors import DataError


class DataSample(BaseDataElement):
    """What is known about one image: its label, and what a model says.

    `gt_label` and `pred_label` are long tensors of shape (1,), `gt_score` and `pred_score` float tensors of shape
    (classes,). The names are those of MMPretrain.

    >>> sample = DataSample().set_gt_label(3)
    >>> sample.gt_label.tolist(), 'pred_score' in sample
    ([3], False)
    """

    def set_gt_label(self, value: Any) -> DataSample:
        """Set the true class: an integer, or a tensor of one."""
        self.set_field(_label(value), 'gt_label', dtype=torch.Tensor)
        return self

    def set_gt_score(self, value: Any) -> DataSample:
        """Set the true probabilities of the classes."""
        self.set_field(_score(value), 'gt_score', dtype=torch.Tensor)
        return self

    def set_pred_label(self, value: Any) -> DataSample:
        """Set the predicted class: an integer, or a tensor of one."""
        self.set_field(_label(value), 'pred_label', dtype=torch.Tensor)
        return self

    def set_pred_score(self, value: Any) -> DataSample:
        """Set the predicted probabilities of the classes."""
        self.set_field(_score(value), 'pred_score', dtype=torch.Tensor)
        return self


#: The name of the same class in MMClassification 1.x.
ClsDataSample = DataSample


def _label(value: Any) -> torch.Tensor:
    label = torch.as_tensor(value).reshape(-1)
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool or label.numel() != 1:
        raise DataError(f'A label is one integer; got {value!r}.')
    return label.long()


def _score(value: Any) -> torch.Tensor:
    score = torch.as_tensor(value)
    if score.ndim != 1 or not score.is_floating_point():
        raise DataError(f'A score is a 1-D float tensor, one number a class; got {value!r}.')
    return score


def labels_of(data_samples: Any, device: torch.device | str | None = None) -> torch.Tensor:
    """Return the labels of a batch as one tensor, from whatever form they come in.

    Args:
        data_samples: A tensor of labels, a list of integers, or data samples with `gt_label` (or `gt_score`).
        device: Where the result should be.

    Returns:
        Shape (batch,) of longs, or (batch, classes) of probabilities where `gt_score` is set.

    Raises:
        DataError: If there are no labels.

    >>> labels_of([DataSample().set_gt_label(2), DataSample().set_gt_label(0)])
    tensor([2, 0])
    """
    if data_samples is None:
        raise DataError('Labels are needed here: a tensor of them, or data samples with gt_label; got None.')
    if isinstance(data_samples, torch.Tensor):
        return data_samples.to(device)
    if len(data_samples) == 0:
        raise DataError('Labels are needed here; got an empty batch.')
    first = data_samples[0]
    if isinstance(first, BaseDataElement):
        field = 'gt_score' if 'gt_score' in first else 'gt_label'
        try:
            values = [getattr(sample, field) for sample in data_samples]
        except AttributeError as error:
            raise DataError(f'Every data sample needs a gt_label; one of these has none: {error}') from error
        # MMClassification 1.0rc wraps the label once more.
        values = [getattr(value, 'label', value) for value in values]
        return (torch.stack(values) if field == 'gt_score' else torch.cat(values)).to(device)
    return torch.as_tensor([int(label) for label in data_samples], device=device)


@FUNCTIONS.register_module(name='strop_collate', force=True)
def collate(batch: Sequence[Any]) -> Any:
    """Join samples: images are stacked, labels become one tensor, data samples stay a list.

    It serves `torch.utils.data.DataLoader(collate_fn=collate)` and, by the name `strop_collate`, MMEngine's configs.

    Args:
        batch: Tuples `(image, label)`, or dicts with `inputs` and `data_samples`.

    Raises:
        DataError: If the batch is empty or its images differ in size.

    >>> images, labels = collate([(torch.zeros(1, 2, 2), 3), (torch.ones(1, 2, 2), 4)])
    >>> images.shape, labels
    (torch.Size([2, 1, 2, 2]), tensor([3, 4]))
    """
    if len(batch) == 0:
        raise DataError('A batch needs at least one sample.')
    first = batch[0]
    if isinstance(first, dict):
        return {
            'inputs': stack_images([sample['inputs'] for sample in batch]),
            'data_samples': [sample.get('data_samples') for sample in batch],
        }
    images, labels = zip(*batch, strict=True)
    return stack_images(images), torch.as_tensor([int(label) for label in labels])


def stack_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack images to a batch.

    Raises:
        DataError: If they differ in size; the message gives the sizes.

    >>> stack_images([torch.zeros(3, 4, 4)] * 2).shape
    torch.Size([2, 3, 4, 4])
    """
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(
            f'The images of a batch must have one shape; got {sorted(shapes)}. Resize them, for example with the size=... '
            'of the data set.'
        )
    return torch.stack(list(images))
