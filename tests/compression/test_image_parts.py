"""Folders of images: what cannot be read, what cannot be decoded together, COCO's layout."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch

from strop.compression import open_data
from strop.compression.image_parts import CentreCrop, coco_files
from strop.compression.parts import NO_LABEL
from strop.errors import DataError, UnsafeFileError
from tests.compression.conftest import source_of


def test_unreadable_files_are_left_out_and_counted(image_folder):
    (image_folder / 'cat' / '03.png').write_bytes(b'no image')
    parts = open_data(source_of(image_folder, max_unreadable=1))
    assert list(parts.skipped) == [str(image_folder / 'cat' / '03.png')]
    assert sum(parts.counts().values()) - parts.counts()['calibration'] == 39
    assert parts.classes == ('cat', 'dog')


def test_more_unreadable_files_than_allowed_stop_it(image_folder):
    for name in ('03.png', '05.png'):
        (image_folder / 'dog' / name).write_bytes(b'')
    with pytest.raises(DataError, match=r'2 image files cannot be decoded, more than max_unreadable=1; the last is .*05\.png'):
        open_data(source_of(image_folder, max_unreadable=1))


def test_images_of_several_sizes_need_one(image_folder):
    image = pytest.importorskip('PIL.Image')
    image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(image_folder / 'dog' / '00.png')
    with pytest.raises(DataError, match=r'\(12, 12\) pixels and .*\(20, 20\).*`size`'):
        open_data(source_of(image_folder))
    assert open_data(source_of(image_folder, size=8)).example(1).shape == (1, 3, 8, 8)


def test_a_crop_is_taken_at_the_centre_for_scoring_and_anywhere_for_training(image_folder):
    parts = open_data(source_of(image_folder, size=12, crop=8))
    assert parts.example(1).shape == (1, 3, 8, 8)
    first = parts.train[len(parts.train)][0]
    again = parts.train[2 * len(parts.train)][0]
    assert first.shape == again.shape == (3, 8, 8)
    assert not torch.equal(first, again)
    with pytest.raises(DataError, match='A crop of 9 pixels does not fit'):
        CentreCrop(9)(torch.zeros(1, 8, 8))


def test_every_second_sample_is_scored_on_where_the_split_alternates(tmp_path):
    images = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    np.savez(tmp_path / 'set.npz', x=images, y=np.arange(40) % 2)
    parts = open_data(source_of(tmp_path / 'set.npz', split='alternating', mean=[0], std=[1], augment=False))
    assert [int(parts.test[index][0][0, 0, 0]) for index in range(3)] == [1, 3, 5]
    learned = [int(parts.train[index][0][0, 0, 0]) for index in range(len(parts.train))]
    assert all(value % 2 == 0 for value in learned)


def test_inputs_are_normalised_by_what_is_given_or_by_the_training_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (60, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / 'set.npz', x=images, y=np.arange(60) % 3)
    parts = open_data(source_of(tmp_path / 'set.npz', augment=False))
    whole = torch.stack([parts.train[index][0] for index in range(len(parts.train))])
    assert abs(float(whole.mean())) < 1e-4
    assert abs(float(whole.std(correction=0)) - 1) < 1e-3
    with pytest.raises(DataError, match='one number for each of the 1 channels'):
        open_data(source_of(tmp_path / 'set.npz', mean=[0, 0, 0], std=[1, 1, 1]))


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.savez(tmp_path / 'set.npz', x=np.array([{}], dtype=object), y=np.array([0]))
    with pytest.raises(UnsafeFileError, match='pickled'):
        open_data(source_of(tmp_path / 'set.npz'))


@pytest.mark.parametrize('at', [0.2, 0.5, 0.97])
@pytest.mark.parametrize('cut', [True, False])
def test_an_archive_that_is_cut_short_or_damaged_is_told_by_its_name(tmp_path, at, cut):
    images = np.random.default_rng(0).integers(0, 255, (60, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / 'set.npz', x=images, y=np.arange(60) % 3)
    content = (tmp_path / 'set.npz').read_bytes()
    place = int(at * len(content))
    rest = b'' if cut else bytes(byte ^ 255 for byte in content[place : place + 9]) + content[place + 9 :]
    (tmp_path / 'set.npz').write_bytes(content[:place] + rest)
    with pytest.raises(DataError, match=r'set\.npz'):
        open_data(source_of(tmp_path / 'set.npz'))


def test_labels_that_are_words_are_refused_by_a_sentence(tmp_path):
    np.savez(tmp_path / 'set.npz', x=np.zeros((60, 6, 6), np.uint8), y=np.array(['a', 'b', 'c'] * 20))
    with pytest.raises(DataError, match='labels must be integers'):
        open_data(source_of(tmp_path / 'set.npz'))


def test_an_image_too_large_to_be_decoded_is_skipped_like_one_that_is_damaged(tmp_path, image_folder):
    header = (image_folder / 'cat' / '00.png').read_bytes()
    size = (100_000).to_bytes(4, 'big')
    chunk = b'IHDR' + size + size + header[24:29]
    (image_folder / 'cat' / '00.png').write_bytes(header[:12] + chunk + zlib.crc32(chunk).to_bytes(4, 'big') + header[33:])
    parts = open_data(source_of(image_folder))
    assert 'DecompressionBombError' in parts.skipped[str(image_folder / 'cat' / '00.png')]


def _coco(folder, image_folder, annotations=()):
    (folder / 'val').mkdir(parents=True)
    (folder / 'annotations').mkdir()
    names = []
    for number, path in enumerate(sorted(image_folder.rglob('*.png'))):
        (folder / 'val' / f'{number}.png').write_bytes(path.read_bytes())
        names.append({'id': number, 'file_name': f'{number}.png'})
    content = {'images': names, 'categories': [{'id': 1, 'name': 'cat'}], 'annotations': list(annotations)}
    (folder / 'annotations' / 'instances_val.json').write_text(json.dumps(content))


def test_a_coco_folder_gives_its_images_without_labels(tmp_path, image_folder):
    _coco(tmp_path / 'coco', image_folder)
    parts = open_data(source_of(tmp_path / 'coco'))
    assert sum(parts.counts().values()) - parts.counts()['calibration'] == 40
    assert not parts.labels
    assert parts.test[0][1] == NO_LABEL


def test_annotations_of_unknown_categories_and_missing_files_are_named(tmp_path, image_folder):
    _coco(tmp_path / 'coco', image_folder, [{'category_id': 9}])
    with pytest.raises(DataError, match='categories 9'):
        coco_files(tmp_path / 'coco')
    other = tmp_path / 'other'
    _coco(other, image_folder)
    (other / 'val' / '0.png').unlink()
    with pytest.raises(DataError, match=r"names the image '0\.png'"):
        coco_files(other)


@pytest.mark.parametrize('shape', [(20, 30), (30, 20)])
def test_images_that_are_not_square_are_learned_from_as_they_are_scored(tmp_path, shape):
    image = pytest.importorskip('PIL.Image')
    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'set.npz', x=rng.integers(0, 255, (40, *shape), dtype=np.uint8), y=np.arange(40) % 2)
    for number in range(40):
        folder = tmp_path / 'images' / 'ab'[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(folder / f'{number}.png')
    for path in (tmp_path / 'set.npz', tmp_path / 'images'):
        parts = open_data(source_of(path))
        assert {tuple(parts.train[index][0].shape[1:]) for index in range(8)} == {shape}
        assert parts.test[0][0].shape[1:] == shape
        assert not torch.equal(parts.train[0][0], parts.train[len(parts.train)][0])  # shifted otherwise in the next epoch


def test_a_coco_folder_may_be_read_in_part(tmp_path, image_folder):
    _coco(tmp_path / 'coco', image_folder)
    parts = open_data(source_of(tmp_path / 'coco', limit=25))
    assert sum(parts.counts().values()) - parts.counts()['calibration'] == 25
