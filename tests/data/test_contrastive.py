"""Samples with indices to compare with: who is drawn, and that draws repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from strop.data import CRDDataset, DataSample, EpochSampler, ImageDataset, collate
from strop.errors import ComponentTypeError, ConfigError, DataError
from strop.registry import DATASETS

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0, 1, 2])


def images(labels: np.ndarray = LABELS, **options: object) -> ImageDataset:
    pixels = np.arange(len(labels) * 4, dtype=np.uint8).reshape(-1, 2, 2)
    return ImageDataset((pixels, labels), 'all', form='samples', **options)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda labels: len(set(labels)) > 1), st.integers(1, 8))
def test_negatives_are_of_other_classes_and_without_repetition_where_there_are_enough(labels: list[int], number: int) -> None:
    dataset = CRDDataset(images(np.array(labels)), number, 1.0)
    for index, label in enumerate(labels):
        sample = dataset[index]['data_samples']
        drawn = sample.contrast_sample_idxs.tolist()
        others = {place for place, other in enumerate(labels) if other != label}
        assert sample.sample_idx.item() == drawn[0] == index
        assert len(drawn) == number + 1
        assert set(drawn[1:]) <= others
        assert set(dataset.negatives(label).tolist()) == others
        if number <= len(others):
            assert len(set(drawn[1:])) == number


def test_every_negative_is_drawn_equally_often() -> None:
    dataset = CRDDataset(images(), 2, 1.0)
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([dataset.contrast(3, rng)[1:] for _ in range(3000)]), minlength=10)
    assert (counts[LABELS == 0] == 0).all()
    assert np.abs(counts[LABELS != 0] - 1000).max() < 5 * np.sqrt(1000 * 2 / 3)


def test_random_positives_are_all_those_of_the_class() -> None:
    dataset = CRDDataset(images(), 1, 1.0, sample_mode='random')
    rng = np.random.default_rng(0)
    assert {int(dataset.contrast(3, rng)[0]) for _ in range(100)} == {0, 3, 6, 7}


def test_a_share_of_the_negatives_stays_the_same_for_a_class() -> None:
    labels = np.arange(100) % 4
    dataset = CRDDataset(images(labels), 10, 0.2)
    allowed = set(dataset.negatives(1).tolist())
    assert len(allowed) == 15
    assert all(labels[index] != 1 for index in allowed)
    drawn = {int(i) for index in (1, 5, 9) for i in dataset[index]['data_samples'].contrast_sample_idxs[1:]}
    assert drawn <= allowed
    assert set(CRDDataset(images(labels), 10, 0.2).negatives(1).tolist()) == allowed
    assert set(CRDDataset(images(labels), 10, 0.2, seed=1).negatives(1).tolist()) != allowed


def test_draws_are_a_function_of_seed_epoch_and_sample() -> None:
    def epoch(number: int, seed: int = 0, workers: int = 0) -> list[list[int]]:
        dataset = CRDDataset(images(), 3, 1.0, seed=seed)
        sampler = EpochSampler(dataset, shuffle=True, seed=0)
        sampler.set_epoch(number)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=collate, num_workers=workers)
        return [sample.contrast_sample_idxs.tolist() for batch in loader for sample in batch['data_samples']]

    torch.manual_seed(1)
    first = epoch(0)
    torch.manual_seed(2)
    assert epoch(0) == first
    assert epoch(0, workers=1) == first
    assert sorted(row[0] for row in first) == list(range(10))
    assert epoch(1) != first
    assert epoch(0, seed=1) != first


def test_a_plain_index_draws_from_torchs_generator() -> None:
    dataset = CRDDataset(images(), 3, 1.0)
    torch.manual_seed(0)
    first = [dataset[index]['data_samples'].contrast_sample_idxs for index in range(10)]
    torch.manual_seed(0)
    again = [dataset[index - 10]['data_samples'].contrast_sample_idxs for index in range(10)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_pairs_of_image_and_label_become_data_samples() -> None:
    plain = TensorDataset(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))
    plain.targets = [0, 1, 0, 1]
    item = CRDDataset(plain, 1, 1.0)[2]
    assert torch.equal(item['inputs'], plain[2][0])
    assert item['data_samples'].gt_label.tolist() == [0]


def test_an_index_in_the_meta_information_is_kept_there() -> None:
    class Packed:
        gt_labels = [0, 1]

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict:
            return {'inputs': torch.zeros(1), 'data_samples': DataSample(metainfo={'sample_idx': index})}

    sample = CRDDataset(Packed(), 1, 1.0)[1]['data_samples']
    assert sample.sample_idx.item() == 1
    assert sample.contrast_sample_idxs.tolist() == [1, 0]


def test_it_is_built_from_a_config_and_may_wait() -> None:
    config = dict(type='ImageDataset', source='digits', split='test', form='samples')
    dataset = DATASETS.build(dict(type='mmrazor.CRDDataset', dataset=config, neg_num=5, percent=0.5, lazy_init=True))
    assert not hasattr(dataset, 'gt_labels')
    assert dataset.metainfo['classes'] == tuple('0123456789')
    assert len(dataset[3]['data_samples'].contrast_sample_idxs) == 6
    assert len(dataset.gt_labels) == len(dataset) == 359


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(neg_num=0), 'neg_num must be positive'),
        (dict(percent=0), r'\(0, 1\]'),
        (dict(percent=1.5), r'\(0, 1\]'),
        (dict(sample_mode='exakt'), "Did you mean 'exact'"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CRDDataset(images(), **{'neg_num': 2, 'percent': 1.0, **options})


def test_sets_that_do_not_fit_are_refused() -> None:
    bare = TensorDataset(torch.rand(2))
    bare.targets = [1, 1]
    with pytest.raises(DataError, match='two classes or more'):
        CRDDataset(bare, 1, 1.0)
    with pytest.raises(DataError, match='labels up to 1, but one is 2'):
        CRDDataset(images(), 1, 1.0, num_classes=2)
    with pytest.raises(DataError, match='labels of a TensorDataset are not known'):
        CRDDataset(TensorDataset(torch.rand(2)), 1, 1.0)
    with pytest.raises(ComponentTypeError, match='data set with a length'):
        CRDDataset(3, 1, 1.0)
    bare.targets = [0, 1]
    with pytest.raises(DataError, match='got tuple'):
        CRDDataset(bare, 1, 1.0)[0]
    with pytest.raises(IndexError):
        CRDDataset(images(), 1, 1.0)[-11]
    with pytest.raises(IndexError):
        CRDDataset(bare, 1, 1.0)[2]
