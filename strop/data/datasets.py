"""Labelled images as torch data sets, and the sampler that makes order and augmentation a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.logging import print_log
from torch.utils.data import Dataset

from strop.data.images import SPLITS, ImageArrays, checked, load_images, split_indices
from strop.data.samples import DataSample
from strop.data.sources import open_image, scan_folder
from strop.data.transforms import Transforms
from strop.errors import ConfigError, DataError, listed, near
from strop.randomness import counter_rng
from strop.registry import DATA_SAMPLERS, DATASETS

_FORMS = ('tuple', 'samples')


class LabelledImages(Dataset):
    """What the data sets of this file share: transforms, the form of a sample, and the counting of epochs.

    Item `i + (e + 1) * len(self)` is image `i` as it looks in epoch `e`: what its transforms draw depends on (seed, e, i)
    alone, in whatever process it is loaded. `EpochSampler` asks for items in this way. A plain index draws from torch's
    global generator.

    Args:
        classes: Names of the classes.
        transforms: Callables or configs, applied to byte tensors of shape (channels, height, width).
        form: 'tuple' for `(image, label)`, 'samples' for `dict(inputs=image, data_samples=DataSample)`.
        seed: Of the transforms.

    Raises:
        ConfigError: If `form` is unknown.
    """

    #: Tells EpochSampler that the items are numbered by epoch.
    counts_epochs = True

    def __init__(self, classes: Sequence[str], transforms: Sequence[Any], form: str, seed: int) -> None:
        if form not in _FORMS:
            raise ConfigError(f'form must be one of {listed(_FORMS)}; got {form!r}.{near(form, _FORMS)}')
        self.metainfo = {'classes': tuple(classes)}
        self.form = form
        self.seed = seed
        self.transforms = Transforms(transforms, seed)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.metainfo['classes']

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels(self) -> np.ndarray:
        """The labels, shape (n,)."""
        raise ConfigError(f'{type(self).__name__} has to define labels.')

    def read(self, index: int) -> torch.Tensor:
        """Return image `index` as bytes of shape (channels, height, width)."""
        raise ConfigError(f'{type(self).__name__} has to define read(index).')

    def __getitem__(self, index: int) -> Any:
        size = len(self)
        index = int(index)
        if index < -size:
            raise IndexError(f'Item {index} of a data set of {size} images.')
        counter = None if index < size else index - size
        index %= size
        image, label = self.transforms(self.read(index), counter), int(self.labels[index])
        if self.form == 'tuple':
            return image, label
        return {'inputs': image, 'data_samples': DataSample().set_gt_label(label)}

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


@DATASETS.register_module()
class ImageDataset(LabelledImages):
    """Images in memory.

    Args:
        source: What `load_images` takes, an `ImageArrays`, or a pair of arrays (images, labels).
        split: 'train', 'val', 'trainval', 'test' or 'all'; of arrays only 'all' and the parts that `val` and `test` cut.
        transforms: Callables or configs, applied to byte tensors of shape (channels, height, width).
        form: 'tuple' for `(image, label)`, 'samples' for `dict(inputs=image, data_samples=DataSample)`.
        seed: Of the split and of the transforms.
        val: Share of the validation images.
        test: Share of the test images.
        size: Image files are scaled and cut to this size.
        limit: Keep only so many images, with the same share of every class.

    Raises:
        DataError: If the source is missing, empty, damaged or of one class.

    >>> digits = ImageDataset('digits', 'train', transforms=[dict(type='TensorNormalize', mean=[80.0], std=[96.0])])
    >>> image, label = digits[0]
    >>> image.shape, image.dtype, label
    (torch.Size([1, 8, 8]), torch.float32, 1)
    """

    def __init__(
        self,
        source: str | Path | ImageArrays | Sequence[np.ndarray],
        split: str = 'train',
        transforms: Sequence[Any] = (),
        form: str = 'tuple',
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        if isinstance(source, (str, Path)):
            arrays = load_images(source, split, seed=seed, val=val, test=test, size=size)
        else:
            arrays = _cut(_as_arrays(source), split, seed, val, test)
        if limit is not None and limit < len(arrays):
            if limit < 1:
                raise ConfigError(f'limit must be positive; got {limit}.')
            arrays = arrays.take(_spread(arrays.labels, limit, seed))
        super().__init__(arrays.classes, transforms, form, seed)
        self.name = arrays.name
        self.images = torch.from_numpy(arrays.images if arrays.images.flags.writeable else arrays.images.copy())
        self._labels = arrays.labels

    @property
    def labels(self) -> np.ndarray:
        """The labels, shape (n,)."""
        return self._labels

    def read(self, index: int) -> torch.Tensor:
        """Return image `index` as bytes of shape (channels, height, width)."""
        return self.images[index]

    def statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, in units of pixels, for normalisation.

        >>> mean, std = ImageDataset((np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.array([0, 1])), 'all').statistics()
        >>> mean, round(std[0], 4)
        ([3.5], 2.2913)
        """
        mean, std = [], []
        # One channel at a time keeps the floats small.
        for channel in self.images.unbind(1):
            values = channel.double()
            mean.append(values.mean().item())
            std.append(values.std(correction=0).item())
        return mean, std


def _as_arrays(source: Any) -> ImageArrays:
    if isinstance(source, ImageArrays):
        return checked(source.images, source.labels, source.classes, source.name or 'The image set')
    if not isinstance(source, Sequence) or len(source) != 2:
        raise ConfigError(
            f'source must be a name, a path, an ImageArrays or a pair (images, labels); got {type(source).__name__}.'
        )
    images, labels = (np.asarray(array) for array in source)
    classes = tuple(str(label) for label in range(int(labels.max()) + 1 if labels.size else 0))
    return checked(images, labels, classes)


def _cut(arrays: ImageArrays, split: str, seed: int, val: float, test: float) -> ImageArrays:
    if split not in SPLITS:
        raise ConfigError(f'split must be one of {listed(SPLITS)}; got {split!r}.{near(split, SPLITS)}')
    if split == 'all':
        return arrays
    cut = dict(zip(('train', 'val', 'test'), split_indices(arrays.labels, [1 - val - test, val, test], seed), strict=True))
    return arrays.take(np.sort(np.concatenate([cut['train'], cut['val']])) if split == 'trainval' else cut[split])


def _spread(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Return `limit` places that go round the classes, so that no class is ahead by more than one."""
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = counter_rng(seed, 'limit', int(label)).permutation(np.flatnonzero(labels == label))
        turn[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, turn))[:limit])


@DATASETS.register_module()
class ImageFolderDataset(LabelledImages):
    """Images in one folder for each class, decoded when they are asked for.

    A file that cannot be decoded is counted and replaced by the next one of its class, until there are too many.

    Args:
        root: The folder of the class folders.
        transforms: Callables or configs, applied to byte tensors of shape (3, height, width).
        form: 'tuple' for `(image, label)`, 'samples' for `dict(inputs=image, data_samples=DataSample)`.
        seed: Of the transforms.
        size: Images are scaled and cut to `size` x `size` pixels; left as they are if not given.
        max_unreadable: So many unreadable files are borne (in each loading process).

    Raises:
        DataError: If there is no image, one class only, or too many files turn out unreadable.
    """

    def __init__(
        self,
        root: str | Path,
        transforms: Sequence[Any] = (),
        form: str = 'tuple',
        seed: int = 0,
        size: int | None = None,
        max_unreadable: int = 10,
    ) -> None:
        self.paths, labels, classes = scan_folder(Path(root).expanduser())
        if len(classes) < 2:
            raise DataError(f'{root} has the one class {classes[0]!r}; a classifier needs at least two classes.')
        super().__init__(classes, transforms, form, seed)
        self._labels = np.array(labels)
        self.size = size
        self.max_unreadable = max_unreadable
        #: Files that could not be decoded, and why.
        self.unreadable: dict[Path, str] = {}

    @property
    def labels(self) -> np.ndarray:
        """The labels, shape (n,)."""
        return self._labels

    def read(self, index: int) -> torch.Tensor:
        """Return image `index`, or the next readable one of its class, as bytes of shape (3, height, width).

        Raises:
            DataError: If too many files were unreadable, or none of the class is left.
        """
        members = np.flatnonzero(self._labels == self._labels[index])
        start = int(np.searchsorted(members, index))
        for place in np.roll(members, -start):
            path = self.paths[place]
            if path in self.unreadable:
                continue
            try:
                return torch.from_numpy(open_image(path, self.size).copy()).permute(2, 0, 1).contiguous()
            except (OSError, SyntaxError, ValueError) as error:
                self.unreadable[path] = str(error)
                print_log(f'{path} cannot be decoded and is skipped: {error}', logger='current')
                if len(self.unreadable) > self.max_unreadable:
                    raise DataError(
                        f'{len(self.unreadable)} image files cannot be decoded, more than '
                        f'max_unreadable={self.max_unreadable}; the last is {path}: {error}'
                    ) from error
        raise DataError(f'No image of class {self.classes[int(self._labels[index])]!r} can be decoded.')


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """MMEngine's default sampler with order and augmentation as functions of (seed, epoch) alone.

    Args:
        dataset: A `LabelledImages`, or any other sized data set, which then only gets its order from here.
        shuffle: Whether the order changes; without it, images come as they are numbered.
        seed: Of the order; equal on all processes.
        round_up: Give every process the same number of images by repeating some.

    >>> digits = ImageDataset('digits', 'test')
    >>> sampler = EpochSampler(digits, seed=0)
    >>> first = list(sampler)
    >>> sampler.set_epoch(1)
    >>> len(first), sorted(i % len(digits) for i in sampler) == list(range(len(digits))), first == list(sampler)
    (359, True, False)
    """

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)
        rng = counter_rng(int(self.seed), 'order', self.epoch)
        order = rng.permutation(size) if self.shuffle else np.arange(size)
        if self.round_up:
            order = np.resize(order, self.total_size)
        if getattr(self.dataset, 'counts_epochs', False):
            order = order + (self.epoch + 1) * size
        return iter(order[self.rank : self.total_size : self.world_size].tolist())
