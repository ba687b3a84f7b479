"""The four parts of a data set: what is learned from or chosen by is never what is scored on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from strop.data import EpochSampler
from strop.data.datasets import LabelledImages
from strop.errors import DataError, listed, near
from strop.randomness import counter_rng, seeded

PARTS = ('train', 'calibration', 'validation', 'test')

#: What stands for the target of a sample that has none.
NO_LABEL = -1


@dataclass
class DataParts:
    """The four parts of a data set; each item is (inputs, target), the target `NO_LABEL` where there is none.

    Calibration samples are some of the training samples without augmentation. Validation is for choices between models, test
    for the scores that are reported: no stage learns from, calibrates on or chooses by a test sample.

    Args:
        name: What reports call it.
        train: To learn from, with augmentation.
        calibration: To measure ranges and statistics on.
        validation: To choose by.
        test: To score on.
        classes: Names of the classes, if the targets are classes.
        labels: Whether stages may learn from the targets.
        batch_size: Samples in a batch.
        skipped: File that could not be read -> why.
        tokens: Whether the samples are texts.
        side: Short side of the images as the model sees them, in pixels; None are whole ones. The samples themselves, and what
            `loader` gives, are whole in any case, since a teacher sees whole images.
    """

    name: str
    train: Any
    calibration: Any
    validation: Any
    test: Any
    classes: tuple[str, ...] = ()
    labels: bool = True
    batch_size: int = 32
    skipped: dict[str, str] = field(default_factory=dict)
    tokens: bool = False
    side: int | None = None

    def at(self, side: int | None) -> DataParts:
        """Return the same samples as a model of images with another short side sees them; None are whole ones."""
        return replace(self, side=side)

    def fewer(self, most: int) -> DataParts:
        """Return the same with so many validation samples at most, drawn from all of them."""
        count = len(self.validation)
        if count <= most:
            return self
        drawn = counter_rng(0, 'fewer').choice(count, most, replace=False)
        return replace(self, validation=Subset(self.validation, sorted(drawn.tolist())))

    def seen(self, inputs: Any) -> Any:
        """Return whole inputs as the model sees them."""
        return inputs if self.side is None else smaller_images(inputs, self.side)

    @property
    def image_side(self) -> int | None:
        """The short side of the whole images, in pixels; None if inputs are no single batch of images."""
        inputs = self.at(None).example(1)
        images = isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point()
        return int(min(inputs.shape[-2:])) if images else None

    @property
    def scored_by_label(self) -> bool:
        """Whether test samples have targets."""
        return len(self.test) > 0 and not _missing(self.test[0][1])

    def counts(self) -> dict[str, int]:
        """Return part -> number of samples."""
        return {part: len(getattr(self, part)) for part in PARTS}

    def batches(self, part: str, size: int | None = None) -> Iterator[tuple[Any, Any]]:
        """Yield (inputs, targets) of a part, in order and without augmentation, except for `train`, which is as it is."""
        for inputs, targets in DataLoader(getattr(self, part), size or self.batch_size, num_workers=0, collate_fn=collated):
            yield self.seen(inputs), targets

    def inputs(self, part: str, size: int | None = None, limit: int | None = None) -> list[Any]:
        """Return the inputs of the first batches of a part."""
        found = []
        for number, (inputs, _) in enumerate(self.batches(part, size)):
            if limit is not None and number >= limit:
                break
            found.append(inputs)
        return found

    def example(self, size: int = 2) -> Any:
        """Return the inputs of the first `size` calibration samples, repeated if there are fewer."""
        chosen = [self.calibration[index % len(self.calibration)] for index in range(size)]
        return self.seen(collated(chosen)[0])

    @property
    def full_batch(self) -> int:
        """How many samples the batches of `loader` have."""
        return min(self.batch_size, len(self.train))

    def loader(self, seed: int, batches: int | None = None) -> DataLoader:
        """Return a loader of the training part, of whole inputs, whose order and augmentation are a function of (seed, epoch).

        Args:
            seed: Of the order.
            batches: So many batches of an epoch at most.
        """
        most = None if batches is None else batches * self.batch_size
        sampler = _FirstOfEpoch(self.train, most, shuffle=True, seed=seed)
        return DataLoader(
            self.train, self.batch_size, sampler=sampler, num_workers=0, collate_fn=collated,
            drop_last=len(self.train) > self.batch_size,
        )  # fmt: skip

    def digest(self) -> str:
        """Return a hash of the samples: of all that is in memory, of the names and sizes of image files, and of labels.

        Of data sets of the user's own, the first, middle and last sample of each part but `train`, whose samples may come out
        otherwise each time; calibration samples are some of them.
        """
        found = hashlib.sha256(json.dumps([self.name, self.counts(), self.labels, self.batch_size]).encode())
        known: dict[int, int] = {}
        for part in PARTS:
            _add_content(found, getattr(self, part), known)
        for part in PARTS:
            labels = _labels_of(getattr(self, part))
            found.update(b'' if labels is None else np.ascontiguousarray(labels).tobytes())
        for part in PARTS[1:]:
            samples = getattr(self, part)
            for index in {0, len(samples) // 2, len(samples) - 1}:
                for leaf in tree_leaves(samples[index]):
                    found.update(np.ascontiguousarray(torch.as_tensor(leaf).cpu().numpy()).tobytes())
        return found.hexdigest()[:16]


def _add_content(found: Any, samples: Any, known: dict[int, int]) -> None:
    """Add to a hash what a set of samples holds in memory, each object once, and what it says of its files."""
    if isinstance(samples, Subset):
        found.update(np.asarray(samples.indices, np.int64).tobytes())
        _add_content(found, samples.dataset, known)
    elif isinstance(samples, Pairs):
        _add_content(found, samples.items, known)
        _add_content(found, samples.targets, known)
    elif isinstance(samples, TensorDataset):
        _add_content(found, samples.tensors, known)
    elif id(samples) in known:
        found.update(str(known[id(samples)]).encode())
    elif isinstance(samples, (Tensor, np.ndarray, list, tuple)):
        known[id(samples)] = len(known)
        for leaf in tree_leaves(samples):
            if isinstance(leaf, Tensor):
                found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in 'iufcb':
                found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
            else:
                found.update((repr(leaf) if isinstance(leaf, (int, float, str)) else type(leaf).__name__).encode())
    else:
        found.update(str(getattr(samples, 'fingerprint', '')).encode())


class _FirstOfEpoch(EpochSampler):
    """So many samples of each epoch, at most."""

    def __init__(self, dataset: Any, most: int | None, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.most = most

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.most)

    def __len__(self) -> int:
        return super().__len__() if self.most is None else min(self.most, super().__len__())


def collated(samples: Sequence[Any]) -> tuple[Any, Any]:
    """Join samples to a batch (inputs, targets).

    >>> collated([(torch.zeros(2), 1), (torch.ones(2), 0)])[1]
    tensor([1, 0])
    """
    inputs, targets = torch.utils.data.default_collate(list(samples))
    # Models are built, cut and timed on the CPU; a training moves its batches to where it runs.
    return tree_map_only(Tensor, Tensor.cpu, (inputs, targets))  # type: ignore[no-any-return]


def smaller_images(images: Tensor, side: int) -> Tensor:
    """Return images with another short side, between pixels by straight lines (bilinear, centres of pixels aligned).

    Args:
        images: Shape (N, C, H, W).
        side: Pixels of the shorter of H and W; the longer keeps its proportion, rounded.

    >>> smaller_images(torch.ones(1, 3, 8, 16), 4).shape
    torch.Size([1, 3, 4, 8])
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    if short == side:
        return images
    size = (round(height * side / short), round(width * side / short))
    return F.interpolate(images, size=size, mode='bilinear', align_corners=False)


def _missing(target: Any) -> bool:
    return isinstance(target, int) and target == NO_LABEL


def is_class(target: Any) -> bool:
    """Whether a target is one whole number or truth value: that of a class, or `NO_LABEL`.

    >>> is_class(3), is_class(torch.tensor(3)), is_class(0.5), is_class(torch.tensor([3]))
    (True, True, False, False)
    """
    if isinstance(target, Tensor):
        return target.ndim == 0 and not target.is_floating_point() and not target.is_complex()
    if isinstance(target, np.ndarray):
        return target.ndim == 0 and target.dtype.kind in 'iub'
    return isinstance(target, (int, np.integer, np.bool_))


def _plain(target: Any) -> Any:
    return int(target) if is_class(target) else target


def given_parts(
    given: Any, seed: int = 0, *, val: float = 0.1, calibration: int = 256, batch_size: int = 32, labels: bool = True
) -> DataParts:
    """Read parts that a user gives: a mapping with `train`, `test` and perhaps `validation` and `calibration`.

    Each is a data set of (inputs, target) or of inputs alone, a pair of tensors, or one tensor. What is missing is cut from the
    training part.

    Args:
        given: The parts, and perhaps `name` and `classes`.
        seed: Of what is cut.
        val: Share of the training samples that is cut for validation.
        calibration: How many training samples are calibrated on.
        batch_size: Samples in a batch.
        labels: Whether stages may learn from the targets.

    Raises:
        DataError: If a part is missing, empty or not sized.
    """
    if isinstance(given, DataParts):
        return given
    if not isinstance(given, Mapping) or 'train' not in given or 'test' not in given:
        what = f'a mapping with {listed(given)}' if isinstance(given, Mapping) else f'a {type(given).__name__}'
        raise DataError(
            "Data in memory is a mapping with 'train' and 'test' (and perhaps 'validation' and 'calibration'), "
            'each a data set, '
            f'a tensor of inputs or a pair (inputs, targets); got {what}.'
        )
    for key in given:
        if key not in (*PARTS, 'name', 'classes'):
            raise DataError(f'Data in memory has no part {key!r}.{near(key, PARTS)} It has {listed(PARTS)}.')
    parts = {
        part: Pairs.of(given[part], part, None if part == 'train' else seed) for part in PARTS if given.get(part) is not None
    }
    train = parts['train']
    order = counter_rng(seed, 'calibration').permutation(len(train)).tolist()
    if 'validation' not in parts:
        held = max(1, round(val * len(train)))
        if held >= len(train):
            raise DataError(f'{len(train)} training samples are too few to set some aside for validation: give more.')
        parts['validation'] = Pairs(Subset(train, sorted(order[:held])), seed=seed)
        parts['train'] = Pairs(Subset(train, sorted(order[held:])))
        order = counter_rng(seed, 'calibration', 1).permutation(len(parts['train'])).tolist()
    if 'calibration' not in parts:
        parts['calibration'] = Pairs(Subset(parts['train'], sorted(order[:calibration])), seed=seed)
    labelled = all(not _missing(parts['train'][index][1]) for index in (0, len(parts['train']) - 1))
    return DataParts(
        name=str(given.get('name', 'data in memory')),
        train=parts['train'],
        calibration=parts['calibration'],
        validation=parts['validation'],
        test=parts['test'],
        classes=tuple(given.get('classes', ())),
        labels=labels and labelled,
        batch_size=batch_size,
    )


class Pairs(Dataset):
    """A data set of the user, as pairs of inputs and target.

    Args:
        items: The samples, or their inputs.
        targets: Their targets, if the samples are inputs alone.
        seed: Samples are a function of this and their number, also where a transform draws from the global generators; None
            leaves those as they are.
    """

    def __init__(self, items: Any, targets: Any = None, seed: int | None = None) -> None:
        self.items, self.targets = items, targets
        self.seed = None if isinstance(items, (Tensor, list, tuple)) else seed

    @classmethod
    def of(cls, given: Any, part: str, seed: int | None = None) -> Pairs:
        if isinstance(given, DataLoader):
            given = given.dataset
        if isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(item, Tensor) for item in given):
            if len(given[0]) != len(given[1]):
                raise DataError(f'The part {part!r} has {len(given[0])} inputs and {len(given[1])} targets.')
            found = cls(given[0], given[1])
        else:
            found = cls(given, seed=seed)
        try:
            size = len(found)
        except TypeError:
            raise DataError(
                f'The part {part!r} must have a length and numbered items; a {type(given).__name__} has not.'
            ) from None
        if size == 0:
            raise DataError(f'The part {part!r} of the data is empty.')
        return found

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        index = int(index)
        with nullcontext() if self.seed is None else seeded(self.seed, 'sample', index, gpus=False):
            item = self.items[index]
        if self.targets is not None:
            return item, _plain(self.targets[index])
        if isinstance(item, (tuple, list)) and len(item) == 2:
            return item[0], _plain(item[1])
        return (item[0] if isinstance(item, (tuple, list)) else item), NO_LABEL


def check_classes(data: DataParts, outputs: int) -> None:
    """Raise unless every label of every part is a class that the model knows.

    Args:
        data: The parts.
        outputs: How many classes the model tells apart.

    Raises:
        DataError: If a label is out of range, or no whole number; the message says which, and where.
    """
    for part in PARTS:
        samples = getattr(data, part)
        if part != 'test' and not data.labels:
            continue  # nothing reads them
        first = samples[0][1]
        soft = isinstance(first, Tensor) and first.is_floating_point() and first.shape == (outputs,)
        if not is_class(first) and not (part in ('train', 'calibration') and soft):
            cut = " If only `train` has such targets, give a part 'validation' of its own." if part == 'validation' else ''
            raise DataError(
                f'The labels of a classifier are one whole number for each sample, but the first of the part {part!r} is '
                f'{_shown(first)}. Give targets of shape (N,) and an integer type, such as y.squeeze(1) or y.argmax(1).{cut}'
            )
        labels = _labels_of(samples)
        missing = _missing(first) or (labels is not None and bool((labels == NO_LABEL).any()))
        if missing:
            otherwise = '' if part == 'test' else ', or say labels: false to learn from the original alone'
            raise DataError(
                f'Samples of the part {part!r} have no label ({NO_LABEL}), though others have. Give each one a label, or leave '
                f'out those that have none{otherwise}.'
            )
        if labels is None:
            continue
        wrong = np.flatnonzero((labels >= outputs) | (labels < 0))
        if len(wrong):
            label = int(labels[wrong[0]])
            name = f' ({data.classes[label]})' if 0 <= label < len(data.classes) else ''
            raise DataError(
                f'The model tells {outputs} classes apart, but {len(wrong)} labels of the part {part!r} are none of 0 to '
                f'{outputs - 1}: sample {int(wrong[0])} has {label}{name}. Give a model of '
                f'{max(label + 1, len(data.classes))} classes '
                "(such as args: {num_classes: ...}), or data with the model's classes."
            )


def check_range(labels: Tensor, outputs: int, where: str) -> None:
    """Raise unless the labels of a batch are classes that the model knows.

    Raises:
        DataError: If one is out of range.
    """
    labels = labels.long()  # compared with a negative number, unsigned ones would wrap around
    wrong = labels[(labels >= outputs) | (labels < 0)]
    if len(wrong):
        raise DataError(f'The model tells {outputs} classes apart, but {where} has the label {int(wrong[0])}.')


def _shown(target: Any) -> str:
    if isinstance(target, (Tensor, np.ndarray)):
        return f'of shape {tuple(target.shape)} and type {str(target.dtype).removeprefix("torch.")}'
    return repr(target)[:100]


def _labels_of(samples: Any) -> np.ndarray | None:
    """Return the labels of all samples where they are known without reading the samples."""
    if isinstance(samples, Subset):
        found = _labels_of(samples.dataset)
        return None if found is None else found[np.asarray(samples.indices, dtype=np.int64)]
    if isinstance(samples, Pairs):
        return _labels_of(samples.items) if samples.targets is None else _whole_numbers(samples.targets)
    if isinstance(samples, TensorDataset):
        return _whole_numbers(samples.tensors[1]) if len(samples.tensors) == 2 else None
    if isinstance(samples, (list, tuple)):
        pairs = all(isinstance(item, (list, tuple)) and len(item) == 2 and is_class(item[1]) for item in samples)
        return np.array([int(item[1]) for item in samples]) if pairs else None
    if getattr(samples, 'target_transform', None):  # these are not what a model sees
        return None
    if isinstance(samples, LabelledImages):
        return samples.labels
    found = _whole_numbers(getattr(samples, 'targets', getattr(samples, 'labels', None)))
    return found if found is not None and _are_read(samples, found) else None


def _are_read(samples: Any, labels: np.ndarray) -> bool:
    """Whether a few samples have these labels when they are read: an attribute may be left behind where some were left out."""
    try:
        if len(labels) != len(samples):
            return False
        for place in {0, len(labels) // 2, len(labels) - 1}:
            with seeded(0, 'labels'):
                _, target = samples[place]
            if not is_class(target) or int(target) != labels[place]:
                return False
    except Exception:  # of a set of the user's, of which perhaps other samples are taken
        return False
    return True


def _whole_numbers(targets: Any) -> np.ndarray | None:
    if not isinstance(targets, (Tensor, np.ndarray, list)):
        return None
    try:
        found = np.asarray(targets.detach().cpu() if isinstance(targets, Tensor) else targets)
    except ValueError:  # of several lengths
        return None
    return found if found.ndim == 1 and found.dtype.kind in 'iu' else None


__all__ = [
    'NO_LABEL', 'PARTS', 'DataParts', 'Pairs', 'check_classes', 'check_range', 'collated', 'given_parts', 'is_class',
    'smaller_images',
]  # fmt: skip
