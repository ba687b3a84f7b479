"""What a source is taken for, and what is refused before anything is read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from strop.compression import DataSource, open_data
from strop.errors import ConfigError, DataError


def test_the_kind_follows_from_the_source(tmp_path, image_folder):
    (tmp_path / 'a.txt').write_text('text')
    (tmp_path / 'coco' / 'annotations').mkdir(parents=True)
    (tmp_path / 'coco' / 'annotations' / 'instances_val.json').write_text(json.dumps({'images': []}))
    np.savez(tmp_path / 'a.npz', x=np.zeros((4, 2, 2), np.uint8), y=np.arange(4))
    sources = {
        'digits': 'images', str(tmp_path / 'a.npz'): 'images', str(image_folder): 'folder', str(tmp_path / 'coco'): 'coco',
        str(tmp_path / 'a.txt'): 'text', 'mine:parts': 'factory',
    }  # fmt: skip
    assert {source: DataSource(source).found_kind for source in sources} == sources
    assert DataSource(str(tmp_path / 'coco'), kind='folder').found_kind == 'folder'


@pytest.mark.parametrize(
    'options',
    [
        {'split': 'even'}, {'kind': 'video'}, {'size': 0}, {'batch_size': True}, {'test': 0.0}, {'labels': 1},
        {'mean': [1.0]}, {'mean': ['a'], 'std': [1]}, {'max_unreadable': -1}, {'chunk': 'words'},
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError):
        DataSource('digits', **options)


def test_parts_that_a_folder_publishes_are_kept_apart(image_folder, tmp_path):
    whole = tmp_path / 'published'
    for part in ('train', 'test'):
        for label in ('cat', 'dog'):
            (whole / part / label).mkdir(parents=True)
            for file in sorted((image_folder / label).iterdir())[:: 1 if part == 'train' else 4]:
                (whole / part / label / file.name).write_bytes(file.read_bytes())
    parts = open_data(DataSource(str(whole)))
    assert parts.counts()['test'] == 10
    assert parts.counts()['train'] + parts.counts()['validation'] == 40


def test_an_empty_class_and_a_missing_folder_are_told(tmp_path):
    (tmp_path / 'set' / 'cat').mkdir(parents=True)
    with pytest.raises(DataError, match='has no image'):
        DataSource(str(tmp_path / 'set')).check()
    with pytest.raises(DataError, match='There is no data'):
        DataSource(str(tmp_path / 'none')).check()


def test_a_limit_takes_samples_from_all_over_the_set():
    parts = open_data(DataSource('mnist', limit=100))
    labels = [parts.test[index][1] for index in range(len(parts.test))]
    assert len(set(labels)) == 10


@pytest.mark.parametrize(
    ('source', 'options', 'message'),
    [
        ('digits', {'size': 16}, r"'digits' is a set of images .*'size' would do nothing.*`crop` cuts other images"),
        ('arrays.npz', {'size': 16}, r"set of images \(kind: images\), for which 'size'"),
        ('mnist', {'size': 16, 'chunk': 'lines'}, "for which 'size', 'chunk'"),
        ('a.txt', {'crop': 4, 'split': 'alternating'}, r"a text \(kind: text\), for which 'crop', 'split' .*'tokenizer'"),
        ('mine:parts', {'limit': 5, 'test': 0.5}, r"a function of a module, .* for which 'limit', 'test' .*'calibration'"),
        ('images', {'length': 8}, r"a folder of images \(kind: folder\), for which 'length'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, image_folder, monkeypatch, source, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.txt').write_text('text')
    np.savez(tmp_path / 'arrays.npz', x=np.zeros((4, 2, 2), np.uint8), y=np.arange(4))
    with pytest.raises(ConfigError, match=message):
        DataSource(source, **options).check(trust=True)
    DataSource(source, val=0.2, calibration=8, batch_size=8, labels=False).check(trust=True)


def test_a_size_is_for_images_that_are_decoded(tmp_path, image_folder):
    np.savez(tmp_path / 'files.npz', jpeg=np.zeros(4, np.uint8), offsets=np.array([0, 2, 4]), labels=np.arange(2))
    DataSource(str(tmp_path / 'files.npz'), size=8).check()
    DataSource(str(image_folder), size=8, max_unreadable=1).check()
    DataSource(str(image_folder), kind='images', size=8).check()
