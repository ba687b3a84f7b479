"""Images as parts of a data set: arrays in memory, or files that are decoded when they are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from strop.compression.parts import NO_LABEL, DataParts
from strop.data.datasets import LabelledImages
from strop.data.images import checked, split_indices
from strop.data.sources import check_classes, class_names, open_image, parts_of, scan_folder
from strop.data.transforms import TensorNormalize, TensorRandomCrop, TensorRandomFlip
from strop.errors import DataError, listed
from strop.randomness import counter_rng

if TYPE_CHECKING:
    from strop.compression.data_source import DataSource


def image_parts(source: DataSource, seed: int, normalise: Mapping[str, Any] | None) -> DataParts:
    """Return the parts of a set of images.

    Args:
        source: What the recipe says.
        seed: Of the split, the choice of calibration samples, and the augmentation.
        normalise: `mean` and `std`, in pixels, that the model wants.

    Raises:
        DataError: If there is nothing, too much cannot be decoded, or something does not fit together.
    """
    kind = source.found_kind
    skipped: dict[str, str] = {}
    if kind == 'coco':
        files = coco_files(Path(source.source).expanduser())
        if source.limit is not None and source.limit < len(files):
            files = [files[index] for index in _spread(len(files), source.limit)]
        whole: dict[str, _Pixels] = {'all': _readable(files, [NO_LABEL] * len(files), (), source, skipped)}
    elif kind == 'folder':
        whole = _folders(source, skipped)
    else:
        whole = _arrays(source)
    train, validation, test = _split(whole, source, seed)
    mean, std = _normalisation(source, train, normalise)
    colour = len(mean) == 3
    augment: list[Any] = []
    if source.augment:
        if source.crop is not None:
            augment.append(TensorRandomCrop(source.crop, padding=0))
        elif train.side >= 16:
            augment.append(TensorRandomCrop(padding=max(1, train.side // 8)))
        if colour:
            augment.append(TensorRandomFlip())
    centre: list[Any] = [] if source.crop is None else [CentreCrop(source.crop)]
    normal = TensorNormalize(mean, std)
    chosen = counter_rng(seed, 'calibration').permutation(len(train))[: source.calibration]
    return DataParts(
        name=Path(source.source).name,
        train=_Images(train, [*(augment or centre), normal], seed),
        calibration=_Images(train.take(np.sort(chosen)), [*centre, normal], seed),
        validation=_Images(validation, [*centre, normal], seed),
        test=_Images(test, [*centre, normal], seed),
        classes=train.classes,
        labels=source.labels and kind != 'coco',
        batch_size=source.batch_size,
        skipped=skipped,
    )


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Images by number: in memory, or as files that are decoded when they are asked for; `side` is the shorter one.

    The fingerprint is a hash of all of them: of their pixels, or of the names and sizes of their files.
    """

    read: Callable[[int], Tensor]
    labels: np.ndarray
    classes: tuple[str, ...]
    side: int
    places: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: np.ndarray) -> _Pixels:
        """Return some of them."""
        return replace(self, labels=self.labels[chosen], places=self.places[chosen])


class _Images(LabelledImages):
    def __init__(self, pixels: _Pixels, transforms: Sequence[Any], seed: int) -> None:
        super().__init__(pixels.classes, transforms, 'tuple', seed)
        self.pixels = pixels

    @property
    def labels(self) -> np.ndarray:
        return self.pixels.labels

    @property
    def fingerprint(self) -> str:
        return self.pixels.fingerprint

    def read(self, index: int) -> Tensor:
        return self.pixels.read(int(self.pixels.places[index]))


class CentreCrop:
    """Cut the middle out of an image.

    Args:
        size: Pixels a side.

    >>> CentreCrop(2)(torch.arange(16).reshape(1, 4, 4)).flatten().tolist()
    [5, 6, 9, 10]
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        """Return the window.

        Raises:
            DataError: If the image is smaller.
        """
        height, width = image.shape[-2:]
        if min(height, width) < self.size:
            raise DataError(
                f'A crop of {self.size} pixels does not fit into an image of {height} x {width}; give a larger `size`.'
            )
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return image[..., top : top + self.size, left : left + self.size]


def _in_memory(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], where: str) -> _Pixels:
    found = checked(images, labels, classes, where)
    pixels = torch.from_numpy(found.images if found.images.flags.writeable else found.images.copy())
    content = hashlib.blake2b(np.ascontiguousarray(found.images).data, digest_size=8).hexdigest()
    return _Pixels(pixels.__getitem__, found.labels, found.classes, min(pixels.shape[-2:]), np.arange(len(pixels)), content)


def _arrays(source: DataSource) -> dict[str, _Pixels]:
    result = {}
    for part, load in parts_of(source.source, source.size).items():
        images, labels, classes = load()
        if source.limit is not None and source.limit < len(labels):
            chosen = _spread(len(labels), source.limit)
            images, labels = images[chosen], labels[chosen]
        result[part] = _in_memory(images, labels, classes, f'{source.source} ({part})')
    return result


def _spread(count: int, limit: int) -> np.ndarray:
    """Return `limit` places over the whole of a set, which is often sorted by class."""
    return np.linspace(0, count - 1, limit).round().astype(int)


def _folders(source: DataSource, skipped: dict[str, str]) -> dict[str, _Pixels]:
    root = Path(source.source).expanduser()
    folders = {part: root / part for part in source.found_parts} or {'all': root}
    result: dict[str, _Pixels] = {}
    check_classes({folder: class_names(folder) for folder in folders.values()})
    for part, folder in folders.items():
        files, labels, classes = scan_folder(folder)
        if len(classes) < 2:
            raise DataError(f'{folder} has the one class {classes[0]!r}; a classifier needs at least two classes.')
        if source.limit is not None and source.limit < len(files):
            chosen = _spread(len(files), source.limit)
            files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
        result[part] = _readable(files, labels, classes, source, skipped)
    return result


def _readable(
    files: Sequence[Path], labels: Sequence[int], classes: Sequence[str], source: DataSource, skipped: dict[str, str]
) -> _Pixels:
    """Decode every file once, and leave out those that cannot be decoded.

    Raises:
        DataError: If there are more of them than `max_unreadable`, or the sizes differ.
    """
    size = source.size or source.crop
    good: list[int] = []
    shapes: dict[tuple[int, ...], Path] = {}
    for number, path in enumerate(files):
        try:
            shape = open_image(path, size).shape
        except (OSError, SyntaxError, ValueError) as error:
            skipped[str(path)] = str(error).splitlines()[0] if str(error) else type(error).__name__
            if len(skipped) > source.max_unreadable:
                raise DataError(
                    f'{len(skipped)} image files cannot be decoded, more than '
                    f'max_unreadable={source.max_unreadable}; the last is '
                    f'{path}: {error}'
                ) from error
            continue
        good.append(number)
        shapes.setdefault(shape, path)
    if not good:
        raise DataError(f'{source.source} has no image that can be decoded.')
    if len(shapes) > 1:
        (first, one), (second, other), *_ = shapes.items()
        raise DataError(
            f'{one} has {first[:2]} pixels and {other} {second[:2]} (height, width): give `size` to make them equal.'
        )
    kept = [files[number] for number in good]

    def read(index: int) -> Tensor:
        return torch.from_numpy(open_image(kept[index], size).copy()).permute(2, 0, 1).contiguous()

    side = min(next(iter(shapes))[:2])
    named = repr([(path.parent.name, path.name, path.stat().st_size) for path in kept])
    content = hashlib.blake2b(named.encode(), digest_size=8).hexdigest()
    return _Pixels(read, np.array(labels)[good], tuple(classes), side, np.arange(len(kept)), content)


def annotation_files(folder: Path) -> list[Path]:
    """Return the files of annotations of a folder in COCO's layout."""
    return sorted(folder.glob('annotations/instances_*.json')) or sorted(folder.glob('instances_*.json'))


def coco_files(folder: Path) -> list[Path]:
    """Return the image files that the annotations of a COCO folder name.

    Raises:
        DataError: If there are no annotations, or they name files that are not there.
    """
    found: list[Path] = []
    files = annotation_files(folder)
    if not files:
        raise DataError(f'{folder} is no COCO folder: it has no annotations/instances_*.json.')
    for file in files:
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
            names = [str(entry['file_name']) for entry in content['images']]
            categories = {entry['id'] for entry in content.get('categories', ())}
            stray = sorted({entry['category_id'] for entry in content.get('annotations', ())} - categories)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{file} is no file of COCO annotations: {type(error).__name__}: {error}') from error
        if stray:
            raise DataError(f'{file} has annotations of the categories {listed(stray)}, which its `categories` does not list.')
        part = file.stem.removeprefix('instances_')
        places = [folder / part, folder / 'images' / part, folder / 'images', folder]
        for name in names:
            path = next((place / name for place in places if (place / name).is_file()), None)
            if path is None or not path.resolve().is_relative_to(folder.resolve()):
                raise DataError(f'{file} names the image {name!r}, which is in none of {listed(map(str, places))}.')
            found.append(path)
    if not found:
        raise DataError(f'The annotations of {folder} name no image.')
    return found


def _split(whole: Mapping[str, _Pixels], source: DataSource, seed: int) -> tuple[_Pixels, _Pixels, _Pixels]:
    """Return what is learned from, chosen by and scored on."""
    learned = whole.get('train', whole.get('all'))
    if learned is None:
        raise DataError(f'{source.source} has the parts {listed(whole)} only; there is nothing to learn from.')
    test = whole.get('test')
    if test is None and 'all' not in whole and 'val' in whole:
        test = whole['val']  # ImageNet's layout: what it calls validation is what everybody scores on
        whole = {name: part for name, part in whole.items() if name != 'val'}
    if test is None:
        if source.split == 'alternating':
            places = np.arange(len(learned))
            cut = [places[::2], places[1::2]]
        else:
            cut = split_indices(learned.labels, [1 - source.test, source.test], seed)
        learned, test = learned.take(cut[0]), learned.take(cut[1])
    if 'val' in whole:
        return learned, whole['val'], test
    inner = split_indices(learned.labels if source.labels else np.zeros(len(learned), int), [1 - source.val, source.val], seed)
    return learned.take(inner[0]), learned.take(inner[1]), test


def _normalisation(
    source: DataSource, train: _Pixels, wanted: Mapping[str, Any] | None
) -> tuple[Sequence[float], Sequence[float]]:
    channels = int(train.read(int(train.places[0])).shape[0])
    if source.mean is not None and source.std is not None:
        mean, std = source.mean, source.std
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise DataError(
                f'`mean` and `std` need one number for each of the {channels} channels, the deviations above 0; '
                f'got {mean} and {std}.'
            )
        return mean, std
    if wanted is not None and len(wanted['mean']) == channels:
        return wanted['mean'], wanted['std']
    chosen = train.places[:: max(1, len(train) // 500)]
    sample = torch.stack([train.read(int(place)) for place in chosen]).double()
    deviation = sample.std(dim=(0, 2, 3), correction=0).clamp_min(1.0)
    return sample.mean(dim=(0, 2, 3)).tolist(), deviation.tolist()


__all__ = ['CentreCrop', 'annotation_files', 'coco_files', 'image_parts']
