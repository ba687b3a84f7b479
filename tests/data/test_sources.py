from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from strop.data.images import load_images
from strop.data.sources import open_image, open_picture, parts_of, read_idx
from strop.errors import DataError, UnsafeFileError

SHARED = Path(__file__).resolve().parents[2] / '..' / 'shared' / 'data'
RNG = np.random.default_rng(0)
LABELS = np.arange(20) % 4


def idx(array: np.ndarray) -> bytes:
    head = b'\x00\x00\x08' + bytes([array.ndim]) + b''.join(int(n).to_bytes(4, 'big') for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, suffix: str) -> np.ndarray:
    folder.mkdir()
    images = RNG.integers(0, 256, (20, 5, 4), dtype=np.uint8)
    for prefix, order in (('train', 1), ('t10k', -1)):
        for stem, array in (('images-idx3', images[::order]), ('labels-idx1', LABELS[::order])):
            raw = idx(array)
            (folder / f'{prefix}-{stem}-ubyte{suffix}').write_bytes(gzip.compress(raw) if suffix else raw)
    return images


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_idx(tmp_path: Path, suffix: str) -> None:
    images = write_idx(tmp_path / 'fashion', suffix)
    test = load_images(tmp_path / 'fashion', 'test')
    assert np.array_equal(test.images[:, 0], images[::-1])
    assert np.array_equal(test.labels, LABELS[::-1])
    assert test.classes[0] == 'T-shirt/top'
    assert len(load_images(str(tmp_path / 'fashion'), 'trainval')) == 20


def test_damaged_idx(tmp_path: Path) -> None:
    write_idx(tmp_path / 'set', '')
    path = tmp_path / 'set' / 'train-images-idx3-ubyte'
    raw = path.read_bytes()
    for broken, message in ((raw[:-1], 'cut short'), (raw[:9], 'cut short'), (b'PK' + raw, 'no IDX'), (b'', 'no IDX')):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=message):
            read_idx(path)
    path.unlink()
    with pytest.raises(DataError, match='not train-images-idx3-ubyte'):
        load_images(tmp_path / 'set')
    damaged = bytearray(gzip.compress(raw))
    damaged[10] = 0xFF  # no kind of block that there is
    (tmp_path / 'b.gz').write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r'b.gz cannot be read'):
        read_idx(tmp_path / 'b.gz')
    (tmp_path / 'a.gz').write_bytes(gzip.compress(raw)[:-9])
    with pytest.raises(DataError, match='cannot be read'):
        read_idx(tmp_path / 'a.gz')


def test_cifar_binary(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    rows = np.concatenate([LABELS[:, None].astype(np.uint8), images.reshape(20, -1)], axis=1)
    for number in range(2):
        (tmp_path / f'data_batch_{number + 1}.bin').write_bytes(rows[number * 8 : number * 8 + 8].tobytes())
    (tmp_path / 'test_batch.bin').write_bytes(rows[16:].tobytes())
    assert np.array_equal(load_images(tmp_path, 'test').images, images[16:])
    trainval = load_images(tmp_path, 'trainval')
    assert np.array_equal(trainval.images, images[:16])
    assert trainval.classes[:2] == ('airplane', 'automobile')
    (tmp_path / 'test_batch.bin').write_bytes(rows[16:].tobytes()[:-1])
    with pytest.raises(DataError, match='3073'):
        load_images(tmp_path, 'test')


class Bomb:
    def __reduce__(self):
        return (exec, ('raise SystemExit("unpickled")',))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / 'cifar').mkdir()
    (tmp_path / 'cifar' / 'data_batch_1').write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsafeFileError, match='binary version'):
        load_images(tmp_path / 'cifar')
    np.savez(tmp_path / 'bomb.npz', x=np.array([Bomb()], dtype=object), y=LABELS)
    with pytest.raises(UnsafeFileError, match='pickled object'):
        load_images(tmp_path / 'bomb.npz')
    (tmp_path / 'plain.npz').write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match='cannot be read'):
        load_images(tmp_path / 'plain.npz')


def test_npz(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / 'a.npz', x=x, y=LABELS, classes=np.array(list('abcd')))
    found = load_images(tmp_path / 'a.npz', 'all')
    assert np.array_equal(found.images, x.transpose(0, 3, 1, 2))
    assert found.classes == ('a', 'b', 'c', 'd')
    np.savez(tmp_path / 'c.npz', x_train=x, y_train=LABELS, x_test=x)
    with pytest.raises(DataError, match=r"has no 'y_test': each x_<part> comes with y_<part>"):
        load_images(tmp_path / 'c.npz', 'test')
    np.savez(tmp_path / 'b.npz', z=x)
    with pytest.raises(DataError, match=r"the arrays 'z'"):
        load_images(tmp_path / 'b.npz')


def jpegs(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image_module = pytest.importorskip('PIL.Image')
    files = []
    for image in images:
        stream = io.BytesIO()
        image_module.fromarray(image).save(stream, 'JPEG', quality=95)
        files.append(stream.getvalue())
    return np.frombuffer(b''.join(files), np.uint8), np.cumsum([0, *map(len, files)])


def test_jpeg_npz(tmp_path: Path) -> None:
    images = np.broadcast_to(RNG.integers(0, 256, (20, 1, 1, 3), dtype=np.uint8), (20, 8, 8, 3))
    raw, offsets = jpegs(np.ascontiguousarray(images))
    names = {'classes': np.array(list('abcd'))}
    np.savez(tmp_path / 'one.npz', jpeg=raw, offsets=offsets, labels=LABELS, **names)
    found = load_images(tmp_path / 'one.npz', 'all')
    assert found.images.shape == (20, 3, 8, 8)
    assert np.abs(found.images.astype(int) - images.transpose(0, 3, 1, 2)).max() <= 4
    assert load_images(tmp_path / 'one.npz', 'all', size=4).images.shape == (20, 3, 4, 4)
    np.savez(
        tmp_path / 'two.npz',
        train_jpeg=raw,
        train_offsets=offsets,
        train_labels=LABELS,
        test_jpeg=raw,
        test_offsets=offsets[:9],
        test_labels=LABELS[:8],
    )
    assert len(load_images(tmp_path / 'two.npz', 'test')) == 8
    np.savez(tmp_path / 'float.npz', jpeg=raw, offsets=offsets.astype(float), labels=LABELS)
    with pytest.raises(DataError, match=r'`offsets` of .* in whole numbers along one axis; it is float64'):
        load_images(tmp_path / 'float.npz', 'all')
    broken = raw.copy()
    broken[offsets[3] : offsets[4]] = 0
    np.savez(tmp_path / 'broken.npz', jpeg=broken, offsets=offsets, labels=LABELS)
    with pytest.raises(DataError, match=r'image 3 of .* cannot be decoded'):
        load_images(tmp_path / 'broken.npz')


@pytest.mark.shared
def test_shared_jpeg_sets() -> None:
    path = SHARED / 'cifar10_jpeg.npz'
    if not path.is_file():
        pytest.skip(f'{path} is not there')
    pytest.importorskip('PIL')
    parts = parts_of(path)
    assert set(parts) == {'train', 'test'}
    images, labels, classes = parts['test']()
    assert images.shape == (10000, 32, 32, 3)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert classes[3] == 'cat'


def write_folder(root: Path, sizes: dict[str, list[tuple[int, int]]]) -> None:
    image_module = pytest.importorskip('PIL.Image')
    for number, (name, shapes) in enumerate(sizes.items()):
        (root / name).mkdir(parents=True)
        for place, (height, width) in enumerate(shapes):
            array = np.full((height, width, 3), number * 50 + place, np.uint8)
            image_module.fromarray(array).save(root / name / f'{place}.png')


def test_folder_of_class_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / 'set', {'cat': [(4, 6)] * 5, 'dog': [(4, 6)] * 5})
    found = load_images(tmp_path / 'set', 'all')
    assert found.images.shape == (10, 3, 4, 6)
    assert found.classes == ('cat', 'dog')
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 50, 51, 52, 53, 54]
    for part in ('train', 'val', 'test'):
        write_folder(tmp_path / 'parts' / part, {'cat': [(4, 6)] * len(part), 'dog': [(4, 6)]})
    assert [len(load_images(tmp_path / 'parts', part)) for part in ('train', 'val', 'test', 'trainval')] == [6, 4, 5, 10]


def test_folders_that_are_unusable(tmp_path: Path) -> None:
    write_folder(tmp_path / 'mixed', {'cat': [(4, 6)], 'dog': [(4, 7)]})
    with pytest.raises(DataError, match=r'differ in size.*size='):
        load_images(tmp_path / 'mixed', 'all')
    assert load_images(tmp_path / 'mixed', 'all', size=4).images.shape == (2, 3, 4, 4)
    write_folder(tmp_path / 'single', {'cat': [(4, 6)] * 3})
    with pytest.raises(DataError, match='two classes'):
        load_images(tmp_path / 'single', 'all')
    (tmp_path / 'single' / 'dog').mkdir()
    with pytest.raises(DataError, match='dog has no image'):
        load_images(tmp_path / 'single', 'all')
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(DataError, match='is empty'):
        load_images(tmp_path / 'nothing')
    (tmp_path / 'file.txt').write_text('x')
    with pytest.raises(DataError, match='npz'):
        load_images(tmp_path / 'file.txt')
    with pytest.raises(DataError, match='There is no image set'):
        load_images(tmp_path / 'absent')


def test_parts_with_other_classes_are_refused(tmp_path: Path) -> None:
    """Their labels would mean something else: `fox` is the third class of one and the second of the other."""
    image = pytest.importorskip('PIL.Image')
    for part, classes in {'train': ('cat', 'dog', 'fox'), 'test': ('cat', 'fox')}.items():
        for name in (*classes, '.cache'):
            (tmp_path / part / name).mkdir(parents=True)
            image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / part / name / 'a.png')
    with pytest.raises(DataError, match=r"test has other classes than .*train: 'dog' are in one of them only"):
        load_images(tmp_path, 'test')
    (tmp_path / 'test' / 'dog').mkdir()
    image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / 'test' / 'dog' / 'a.png')
    assert load_images(tmp_path, 'test').classes == ('cat', 'dog', 'fox')


@pytest.mark.parametrize('ending', ['png', 'tiff'])
def test_grey_images_of_16_bits_keep_their_upper_eight(tmp_path: Path, ending: str) -> None:
    image = pytest.importorskip('PIL.Image')
    grey = np.array([[0, 255, 256], [4660, 32768, 65535]], np.uint16)
    image.fromarray(grey).save(tmp_path / f'a.{ending}')
    expected = np.repeat([[[0], [0], [1]], [[18], [128], [255]]], 3, axis=2)
    assert np.array_equal(open_image(tmp_path / f'a.{ending}', None), expected)
    assert np.array_equal(np.asarray(open_picture(tmp_path / f'a.{ending}', 'L')), expected[..., 0])


def test_pixels_of_32_bits_have_no_known_range(tmp_path: Path) -> None:
    image = pytest.importorskip('PIL.Image')
    image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / 'a.tiff')
    with pytest.raises(OSError, match='32 bits a pixel'):
        open_image(tmp_path / 'a.tiff', None)


def test_missing_part(tmp_path: Path) -> None:
    np.savez(tmp_path / 'a.npz', x_train=np.zeros((8, 2, 2), np.uint8), y_train=np.arange(8) % 2)
    with pytest.raises(DataError, match=r"the parts 'train' only; there is no 'test' part"):
        load_images(tmp_path / 'a.npz', 'test')


def test_fashion_mnist_of_debian() -> None:
    if not Path('/usr/share/datasets/fashion-mnist').is_dir():
        with pytest.raises(DataError, match='apt-get install dataset-fashion-mnist'):
            load_images('fashion-mnist')
        return
    test = load_images('fashion-mnist', 'test')
    assert test.images.shape == (10000, 1, 28, 28)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.classes[9] == 'Ankle boot'
