"""What a recipe says of its data, and the way from there to the parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from strop.compression.image_parts import annotation_files, image_parts
from strop.compression.model_source import located
from strop.compression.parts import DataParts, given_parts
from strop.compression.text_parts import text_parts
from strop.data.sources import NAMED, parts_of, scan_folder
from strop.errors import ConfigError, DataError, UnsafeFileError, listed, near, try_import
from strop.randomness import seeded

KINDS = ('images', 'folder', 'coco', 'text', 'factory')

#: Stands for the source of data that are given in memory.
IN_MEMORY = 'data in memory'
#: Options of all data, also of those in memory.
_SHARED = ('val', 'calibration', 'batch_size', 'labels')
_OF_IMAGES = ('crop', 'limit', 'test', 'split', 'mean', 'std', 'augment')
_OF_FILES = (*_OF_IMAGES, 'size', 'max_unreadable')
#: Kind -> what it is, and its further options.
_OPTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    'images': ('a set of images', _OF_IMAGES),
    'folder': ('a folder of images', _OF_FILES),
    'coco': ('a COCO folder', _OF_FILES),
    'text': ('a text', ('limit', 'test', 'tokenizer', 'length', 'chunk')),
    'factory': ('a function of a module, whose parts are taken as they are', ()),
}
#: Arrays of pixels in an .npz file; others hold JPEG files.
_ARRAYS = ({'x', 'y'}, {'x_train', 'y_train'})


@dataclass(frozen=True)
class DataSource:
    """What a recipe says of its data.

    Args:
        source: A name (`digits`, `mnist`, `fashion-mnist`), a path (`.npz`, folders of MNIST, of CIFAR-10, of images by
            class, of
            COCO, a text), or `module:function`, which returns part -> data set.
        kind: One of `KINDS`; found out by default.
        size: Image files, and JPEG files in an .npz file, are scaled and cut to so many pixels a side.
        crop: Window that is cut out of each image, at its centre; at random places where `augment` is on.
        limit: Take only so many samples of each part that the source publishes.
        val: Share for validation, by which choices are made.
        test: Share for scoring, where the source publishes no test part.
        split: `random` (the same share of every class) or `alternating` (samples with an odd number are scored on).
        labels: Whether stages may learn from labels; scores use them all the same.
        calibration: How many training samples are calibrated on.
        batch_size: Samples in a batch.
        mean: Of each channel, in pixels (0 to 255); by default those that a model of timm was trained with, or the training
            images' own.
        std: Likewise.
        augment: Random shifts and mirror images in training. By default both for images in colour, shifts alone for others.
        max_unreadable: So many image files that cannot be decoded are skipped; more are an error.
        tokenizer: Folder of the tokenizer of a text; the model's own by default.
        length: Tokens in a sample of a text.
        chunk: `lines` (each line of a text is a sample) or `windows`; windows for models that give a prediction for each token.

    Raises:
        ConfigError: If a value is not what it can be.
    """

    source: str
    kind: str | None = None
    size: int | None = None
    crop: int | None = None
    limit: int | None = None
    val: float = 0.1
    test: float = 0.2
    split: str = 'random'
    labels: bool = True
    calibration: int = 256
    batch_size: int = 32
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: bool = True
    max_unreadable: int = 10
    tokenizer: str | None = None
    length: int = 128
    chunk: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise ConfigError(
                f"`source` of the data is a name ({listed(NAMED)}), a path or 'module:function', but got {self.source!r}."
            )
        for name, options in (
            ('kind', (None, *KINDS)),
            ('split', ('random', 'alternating')),
            ('chunk', (None, 'lines', 'windows')),
        ):
            value = getattr(self, name)
            if value not in options:
                raise ConfigError(
                    f'`{name}` of the data must be one of {listed(options)}, but got {value!r}.{near(value, options)}'
                )
        for name in ('size', 'crop', 'limit', 'calibration', 'batch_size', 'length'):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f'`{name}` of the data must be a positive whole number, but got {value!r}.')
        if not isinstance(self.max_unreadable, int) or isinstance(self.max_unreadable, bool) or self.max_unreadable < 0:
            raise ConfigError(f'`max_unreadable` is a number of files, 0 or more, but got {self.max_unreadable!r}.')
        for name in ('val', 'test'):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 0.9:
                raise ConfigError(f'`{name}` of the data is a share between 0 and 0.9, but got {value!r}.')
        if self.found_kind == 'text' and self.val + self.test > 0.9:
            raise ConfigError(
                '`val` and `test` are shares of the whole text, and something must be left to learn from: together at most '
                f'0.9, but got {self.val:g} and {self.test:g}.'
            )
        for name in ('labels', 'augment'):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f'`{name}` of the data is true or false, but got {getattr(self, name)!r}.')
        for name in ('mean', 'std'):
            value = getattr(self, name)
            if value is not None:
                numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
                if not numbers or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
                    raise ConfigError(f'`{name}` of the data has a number for each channel, in pixels, but got {value!r}.')
                object.__setattr__(self, name, tuple(float(number) for number in numbers))
        if (self.mean is None) != (self.std is None):
            raise ConfigError('`mean` and `std` of the data are given together, or neither.')

    @classmethod
    def of(cls, given: Any) -> DataSource:
        """Read a source by itself, or a mapping with further keys.

        Raises:
            ConfigError: If it is neither, or has an unknown key.
        """
        if isinstance(given, DataSource):
            return given
        if isinstance(given, (str, Path)):
            return cls(str(given))
        known = list(cls.__dataclass_fields__)
        if not isinstance(given, Mapping):
            raise ConfigError(f'The data is a path, a name or a mapping with `source`, but got {given!r}.')
        for key in given:
            if key not in known:
                raise ConfigError(f'The data has no key {key!r}.{near(key, known)} It has {listed(known, 20)}.')
        if 'source' not in given:
            raise ConfigError(f'The data needs a `source`; it has only {listed(given)}.')
        return cls(**{str(key): value for key, value in given.items()})

    @property
    def found_kind(self) -> str:
        """The kind that is given, or that the source looks like."""
        path = Path(self.source).expanduser()
        if self.kind is not None:
            return self.kind
        if self.source in NAMED:
            return 'images'
        if ':' in self.source and not path.exists():
            return 'factory'
        if path.name.endswith(('.txt', '.txt.gz')):
            return 'text'
        if path.is_dir() and annotation_files(path):
            return 'coco'
        if path.is_dir() and not any(path.glob('*.bin')) and not any(path.glob('*idx3-ubyte*')):
            return 'folder'
        return 'images'

    def check(self, trust: bool = False) -> None:
        """Raise unless the data is there; nothing is decoded, and code of others is not imported.

        Raises:
            ConfigError: If an option is given that data of this kind do not have.
            DataError: If there is no such data.
            UnsafeFileError: If code would run that nobody trusts.
        """
        kind, path = self.found_kind, Path(self.source).expanduser()
        if kind == 'factory':
            if not trust:
                raise UnsafeFileError(
                    f'The data {self.source!r} is a function of a Python module, and a recipe may not run code '
                    'unless you say so: '
                    'if you trust it, trust=True in Python, --trust on the command line.'
                )
        elif self.source not in NAMED and not path.exists():
            raise DataError(
                f'There is no data {self.source!r}: neither a known name ({listed(NAMED)}) nor an existing path.'
                f'{near(self.source, NAMED)}'
            )
        elif kind == 'images':
            parts_of(self.source, self.size)
        elif kind == 'folder' and not self.found_parts:
            scan_folder(path)
        if kind in ('folder', 'coco'):
            try_import('PIL', 'vision')
        self._check_options(kind)

    def _check_options(self, kind: str) -> None:
        what, further = _OPTIONS[kind]
        usable = (*_SHARED, *further, *(['size'] if self.size is not None and self._decodes else []))
        idle = [name for name in self.to_dict() if name not in (*usable, 'source', 'kind')]
        if idle:
            told = ' Only image files have a `size` to choose; `crop` cuts other images.' if 'size' in idle else ''
            raise ConfigError(
                f'The data {self.source!r} is {what} (kind: {kind}), for which {listed(idle, 20)} would do nothing: leave it '
                f'out. Options of such data are {listed(usable, 20)}.{told}'
            )

    @property
    def _decodes(self) -> bool:
        """Whether the images of `kind: images` are files that can be scaled when they are decoded."""
        path = Path(self.source).expanduser()
        if self.found_kind != 'images' or self.source in NAMED:
            return False
        if path.is_dir():
            return replace(self, kind=None).found_kind != 'images'
        with np.load(path, allow_pickle=False) as archive:
            return not any(names <= set(archive.files) for names in _ARRAYS)

    @property
    def found_parts(self) -> list[str]:
        """The parts that a folder of images publishes."""
        return [part for part in ('train', 'val', 'test') if (Path(self.source).expanduser() / part).is_dir()]

    def in_memory(self) -> DataSource | None:
        """Return what holds of parts that are given in memory instead; None if that is as by default."""
        kept = {name: value for name, value in self.to_dict().items() if name in _SHARED}
        return DataSource(IN_MEMORY, **kept) if kept else None

    def given(self, parts: Any, seed: int = 0) -> DataParts:
        """Read parts that a user gives; see `given_parts`."""
        return given_parts(
            parts, seed, val=self.val, calibration=self.calibration, batch_size=self.batch_size, labels=self.labels
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as JSON holds it."""
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        usual = {key: field.default for key, field in type(self).__dataclass_fields__.items()}
        return {key: value for key, value in given.items() if value != usual[key]}


def open_data(
    source: DataSource,
    *,
    seed: int = 0,
    trust: bool = False,
    normalise: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    windows: bool = False,
) -> DataParts:
    """Read the data of a recipe.

    Args:
        source: What the recipe says.
        seed: Of the split, the choice of calibration samples, and the augmentation.
        trust: Whether a function of the user may run.
        normalise: `mean` and `std`, in pixels, that the model wants.
        tokenizer: Folder of the model's tokenizer.
        windows: Whether the model gives a prediction for each token.

    Raises:
        DataError: If the data is missing, empty, damaged, too small for its parts, or has labels that are no class.
        ConfigError: If an option is given that data of this kind do not have.
        UnsafeFileError: If it would have to be unpickled, or code would run that nobody trusts.
    """
    source.check(trust)
    kind = source.found_kind
    if kind == 'factory':
        module, _, name = source.source.partition(':')
        found = located(module, name)
        with seeded(seed, 'data'):
            parts = found() if callable(found) else found
        return source.given(parts, seed)
    if kind == 'text':
        return text_parts(source, seed, tokenizer, windows)
    return image_parts(source, seed, normalise)


__all__ = ['KINDS', 'DataSource', 'open_data']
