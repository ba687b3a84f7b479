"""`CRDDataset`: each sample with the indices of those that it is told apart from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from strop.data.samples import DataSample
from strop.errors import ComponentTypeError, ConfigError, DataError, listed, near
from strop.randomness import counter_rng
from strop.registry import DATASETS

SAMPLE_MODES = ('exact', 'random')


@DATASETS.register_module()
class CRDDataset(Dataset):
    """A classification set whose samples carry what contrastive distillation needs: an index, and indices to compare with.

    The data sample of item `i` gets `sample_idx`, which is `i`, and `contrast_sample_idxs`: one positive index, then
    `neg_num` of samples of other classes, without repetition where there are enough. With `EpochSampler` they depend on
    (seed, epoch, i) alone; otherwise torch's global generator seeds them.

    Args:
        dataset: The set or its config. It gives dicts with `data_samples`, or pairs (image, label), and has its labels as
            `labels`, `get_gt_labels()`, `gt_labels` or `targets`.
        neg_num: Negative samples of each sample.
        percent: The share of the samples of other classes that a class draws from, in (0, 1].
        lazy_init: Read the labels with the first sample instead of at once.
        num_classes: Number of classes; labels are checked against it, if given.
        sample_mode: The positive index is 'exact', the sample itself, or 'random', any of its class.
        seed: Of the draws.

    Raises:
        ConfigError: If a number or the mode is out of its range.
        DataError: If there are no labels, or only one class.

    >>> digits = dict(type='ImageDataset', source='digits', split='test', form='samples')
    >>> contrast = CRDDataset(digits, neg_num=4, percent=1.0)
    >>> sample = contrast[7]['data_samples']
    >>> sample.sample_idx.item(), sample.contrast_sample_idxs.shape, sample.contrast_sample_idxs[0].item()
    (7, torch.Size([5]), 7)

    Reference: Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, https://arxiv.org/abs/1910.10699
    """

    def __init__(
        self,
        dataset: Dataset | Mapping[str, Any],
        neg_num: int,
        percent: float,
        lazy_init: bool = False,
        num_classes: int | None = None,
        sample_mode: str = 'exact',
        *,
        seed: int = 0,
    ) -> None:
        if neg_num < 1:
            raise ConfigError(f'neg_num must be positive; got {neg_num!r}.')
        if not 0 < percent <= 1:
            raise ConfigError(f'percent is a share in (0, 1]; got {percent!r}.')
        if sample_mode not in SAMPLE_MODES:
            raise ConfigError(
                f'sample_mode must be one of {listed(SAMPLE_MODES)}; got {sample_mode!r}.{near(sample_mode, SAMPLE_MODES)}'
            )
        built = DATASETS.build(dict(dataset)) if isinstance(dataset, Mapping) else dataset
        if not hasattr(built, '__getitem__') or not hasattr(built, '__len__'):
            raise ComponentTypeError(
                f'`dataset` must be a data set with a length, or its config; got {type(dataset).__name__}.'
            )
        self.dataset: Any = built
        self.neg_num, self.percent, self.sample_mode, self.seed = neg_num, percent, sample_mode, seed
        self.num_classes = num_classes
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Read the labels, and sort the samples by them."""
        if self._fully_initialized:
            return
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        self.gt_labels = labels = _labels(self.dataset)
        top = int(labels.max()) if len(labels) else -1
        if self.num_classes is not None and top >= self.num_classes:
            raise DataError(f'num_classes={self.num_classes} allows labels up to {self.num_classes - 1}, but one is {top}.')
        # Sorted once: the negatives of a class are all but one piece, so no list a class has to be kept.
        self._order = np.argsort(labels, kind='stable')
        self._counts = np.bincount(labels, minlength=self.num_classes or 0)
        if (self._counts > 0).sum() < 2:
            raise DataError('Contrast needs samples of two classes or more; here are only those of one.')
        self._starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._shares: dict[int, np.ndarray] = {}
        self._fully_initialized = True

    @property
    def metainfo(self) -> dict[str, Any]:
        """What is known about the whole set, as the wrapped one says it."""
        return dict(getattr(self.dataset, 'metainfo', {}))

    @property
    def counts_epochs(self) -> bool:
        """Whether items are numbered by epoch; see `LabelledImages`."""
        return bool(getattr(self.dataset, 'counts_epochs', False))

    def __len__(self) -> int:
        return len(self.dataset)

    def negatives(self, label: int) -> np.ndarray:
        """Return the indices of the samples that are told apart from a class: the share `percent` of all others."""
        start, count = self._starts[label], self._counts[label]
        if self.percent == 1:
            return np.concatenate([self._order[:start], self._order[start + count :]])
        if label not in self._shares:
            others = len(self._order) - count
            kept = max(1, int(others * self.percent))
            places = counter_rng(self.seed, 'contrast_share', label).permutation(others)[:kept]
            self._shares[label] = self._order[np.where(places < start, places, places + count)]
        return self._shares[label]

    def contrast(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the positive index and the negative ones of a sample."""
        label = int(self.gt_labels[index])
        start, count = self._starts[label], self._counts[label]
        positive = index if self.sample_mode == 'exact' else int(self._order[start + rng.integers(count)])
        if self.percent == 1:
            others = len(self._order) - count
            places = rng.choice(others, self.neg_num, replace=self.neg_num > others)
            drawn = self._order[np.where(places < start, places, places + count)]
        else:
            share = self.negatives(label)
            drawn = rng.choice(share, self.neg_num, replace=self.neg_num > len(share))
        return np.concatenate([[positive], drawn])

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.full_init()
        index, size = int(index), len(self)
        place = index % size if self.counts_epochs or -size <= index < size else None
        if place is None or index < -size:
            raise IndexError(f'Item {index} of a data set of {size} samples.')
        counted = self.counts_epochs and index >= size
        rng = counter_rng(self.seed, 'contrast', index) if counted else np.random.default_rng(int(torch.randint(2**62, ())))
        item = self.dataset[index]
        if isinstance(item, tuple) and len(item) == 2:
            item = {'inputs': item[0], 'data_samples': DataSample().set_gt_label(int(item[1]))}
        if not isinstance(item, Mapping) or not isinstance(item.get('data_samples'), BaseDataElement):
            raise DataError(
                'CRDDataset puts its indices into data samples, so the wrapped set gives dicts with `data_samples` or pairs '
                f'(image, label), but got {type(item).__name__}.'
            )
        sample = item['data_samples']
        for name, value in (('sample_idx', place), ('contrast_sample_idxs', self.contrast(place, rng))):
            tensor = torch.as_tensor(value, dtype=torch.long)
            # Some pipelines have put an index of their own into the meta information, where no field may be called the same.
            put = sample.set_metainfo if name in sample.metainfo_keys() else sample.set_data
            put({name: tensor})
        return dict(item)


def _labels(dataset: Any) -> np.ndarray:
    found: Any = None
    if hasattr(dataset, 'get_gt_labels'):
        found = dataset.get_gt_labels()
    for name in ('labels', 'gt_labels', 'targets'):
        found = getattr(dataset, name, None) if found is None else found
    if found is None:
        raise DataError(
            f'The labels of a {type(dataset).__name__} are not known. It needs an attribute `labels`, `gt_labels` or '
            '`targets`, or a method get_gt_labels().'
        )
    labels = np.asarray(found)
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or (labels.size and labels.min() < 0):
        raise DataError(f'Labels are integers from 0, one for each sample; got {labels.dtype} of shape {labels.shape}.')
    return labels.astype(np.int64)
