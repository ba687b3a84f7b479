from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from strop.data.datasets import EpochSampler, ImageDataset, ImageFolderDataset, LabelledImages
from strop.data.images import ImageArrays
from strop.data.samples import DataSample, collate
from strop.errors import ConfigError, DataError
from strop.registry import DATA_SAMPLERS, DATASETS

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 6, 6), dtype=np.uint8)
LABELS = np.arange(40) % 4
FLIP = {'type': 'TensorRandomFlip'}


def arrays(**options) -> ImageDataset:
    return ImageDataset((IMAGES, LABELS), 'all', **options)


def test_forms_of_a_sample() -> None:
    image, label = arrays()[5]
    assert torch.equal(image, torch.from_numpy(IMAGES[5]))
    assert label == 1
    sample = arrays(form='samples')[5]
    assert set(sample) == {'inputs', 'data_samples'}
    assert isinstance(sample['data_samples'], DataSample)
    assert sample['data_samples'].gt_label.tolist() == [1]
    assert torch.equal(arrays()[-1][0], torch.from_numpy(IMAGES[-1]))
    assert len(list(arrays())) == 40
    with pytest.raises(IndexError):
        arrays()[-41]
    with pytest.raises(ConfigError, match="Did you mean 'tuple'"):
        arrays(form='tuples')


def test_built_from_a_config_with_meta_information() -> None:
    pytest.importorskip('sklearn')
    data = DATASETS.build({'type': 'ImageDataset', 'source': 'digits', 'split': 'val', 'transforms': [FLIP]})
    assert data.metainfo == {'classes': tuple('0123456789')}
    assert isinstance(data, LabelledImages)


def test_sources_in_memory() -> None:
    given = ImageArrays(IMAGES, LABELS, tuple('abcd'), 'mine')
    train, val, test = (ImageDataset(given, split) for split in ('train', 'val', 'test'))
    assert [len(part) for part in (train, val, test)] == [28, 4, 8]
    assert train.classes == tuple('abcd')
    for wrong in (5, (IMAGES,), IMAGES):
        with pytest.raises(ConfigError, match='source'):
            ImageDataset(wrong)
    with pytest.raises(DataError, match='two classes'):
        ImageDataset((IMAGES, LABELS * 0), 'all')
    with pytest.raises(ConfigError, match='split'):
        ImageDataset(given, 'tests')


def test_limit_keeps_the_classes_even() -> None:
    data = arrays(limit=10)
    assert sorted(np.bincount(data.labels)) == [2, 2, 3, 3]
    assert torch.equal(arrays(limit=10).images, data.images)
    assert len(arrays(limit=100)) == 40
    with pytest.raises(ConfigError):
        arrays(limit=0)


def test_statistics_by_hand() -> None:
    images = np.zeros((2, 3, 2, 2), np.uint8)
    images[1] = np.array([2, 4, 6])[:, None, None]
    mean, std = ImageDataset((images, np.array([0, 1])), 'all').statistics()
    assert mean == pytest.approx([1.0, 2.0, 3.0])
    assert std == pytest.approx([1.0, 2.0, 3.0])


def test_epochs_are_numbered_in_the_index() -> None:
    data = arrays(transforms=[FLIP])
    seen = []
    for epoch in range(6):
        first = [data[(epoch + 1) * 40 + i][0] for i in range(40)]
        torch.manual_seed(epoch)
        again = [data[(epoch + 1) * 40 + i][0] for i in range(40)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        seen.append(tuple(torch.equal(a, torch.from_numpy(b)) for a, b in zip(first, IMAGES, strict=True)))
    assert len(set(seen)) == 6
    assert 0.4 < np.mean(seen) < 0.6


def batches(workers: int, epochs: int) -> list[torch.Tensor]:
    data = arrays(transforms=[FLIP, {'type': 'TensorRandomCrop', 'padding': 1}])
    sampler = EpochSampler(data, seed=3)
    loader = DataLoader(data, batch_size=16, sampler=sampler, num_workers=workers, collate_fn=collate)
    result = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        result += [images for images, _ in loader]
    return result


def test_order_and_augmentation_do_not_depend_on_processes_or_past() -> None:
    torch.manual_seed(0)
    here = batches(0, 2)
    torch.manual_seed(1)
    workers = batches(2, 2)
    assert all(torch.equal(a, b) for a, b in zip(here, workers, strict=True))
    assert not torch.equal(here[0], here[3])


@pytest.mark.parametrize('shuffle', [True, False])
def test_sampler_shares_the_images_among_processes(monkeypatch, shuffle: bool) -> None:
    seen = []
    for rank in range(3):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 3))
        sampler = DATA_SAMPLERS.build({'type': 'EpochSampler', 'dataset': arrays(), 'shuffle': shuffle, 'seed': 1})
        sampler.set_epoch(2)
        part = list(sampler)
        assert len(part) == len(sampler) == 14
        assert {index // 40 for index in part} == {3}
        seen.append([index % 40 for index in part])
    every = [index for row in zip(*seen, strict=True) for index in row]
    assert sorted(every[:40]) == list(range(40))
    assert every[40:] == every[:2]
    if not shuffle:
        assert every[:40] == list(range(40))


def test_sampler_gives_plain_indices_to_other_data_sets() -> None:
    sampler = EpochSampler(list(range(10)), seed=0)
    sampler.set_epoch(4)
    assert sorted(sampler) == list(range(10))
    assert list(EpochSampler(list(range(10)), seed=1)) != list(EpochSampler(list(range(10)), seed=2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image_module = pytest.importorskip('PIL.Image')
    for number, name in enumerate(('cat', 'dog')):
        (tmp_path / name).mkdir()
        for place in range(4):
            array = np.full((5 + place, 8, 3), 100 * number + place, np.uint8)
            image_module.fromarray(array).save(tmp_path / name / f'{place}.png')
    return tmp_path


def test_folder_is_read_lazily(folder: Path) -> None:
    data = DATASETS.build({'type': 'ImageFolderDataset', 'root': str(folder), 'size': 4})
    assert len(data) == 8
    assert data.classes == ('cat', 'dog')
    assert [int(image[0, 0, 0]) for image, _ in data] == [0, 1, 2, 3, 100, 101, 102, 103]
    assert data[0][0].shape == (3, 4, 4)
    assert ImageFolderDataset(folder)[1][0].shape == (3, 6, 8)
    with pytest.raises(DataError, match='size='):
        collate([ImageFolderDataset(folder)[0], ImageFolderDataset(folder)[1]])


def test_unreadable_files_are_counted_and_replaced_by_their_class(folder: Path) -> None:
    (folder / 'dog' / '3.png').write_bytes(b'no image')
    raw = (folder / 'dog' / '1.png').read_bytes()
    (folder / 'dog' / '1.png').write_bytes(raw[: len(raw) // 2])
    data = ImageFolderDataset(folder, size=4, max_unreadable=2)
    assert [int(image[0, 0, 0]) for image, _ in data] == [0, 1, 2, 3, 100, 102, 102, 100]
    assert {path.name for path in data.unreadable} == {'1.png', '3.png'}
    strict = ImageFolderDataset(folder, size=4, max_unreadable=1)
    with pytest.raises(DataError, match='2 image files cannot be decoded, more than max_unreadable=1'):
        list(strict)
    for place in (0, 2):
        (folder / 'dog' / f'{place}.png').write_bytes(b'')
    with pytest.raises(DataError, match="No image of class 'dog'"):
        list(ImageFolderDataset(folder, size=4))


def test_folder_of_one_class(folder: Path) -> None:
    for path in (folder / 'dog').iterdir():
        path.unlink()
    (folder / 'dog').rmdir()
    with pytest.raises(DataError, match='at least two classes'):
        ImageFolderDataset(folder)
    with pytest.raises(DataError, match='There is no folder'):
        ImageFolderDataset(folder / 'absent')
