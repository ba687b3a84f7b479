from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from strop.data.samples import ClsDataSample, DataSample, collate, labels_of, stack_images
from strop.errors import DataError


def test_fields_are_tensors_of_fixed_shape() -> None:
    sample = DataSample().set_gt_label(3).set_pred_label(torch.tensor(2, dtype=torch.int32)).set_pred_score(torch.rand(5))
    assert isinstance(sample, BaseDataElement)
    assert sample.gt_label.tolist() == [3]
    assert sample.pred_label.dtype == torch.int64
    assert sample.pred_score.shape == (5,)
    assert DataSample().set_gt_label(np.int64(4)).gt_label.tolist() == [4]
    assert ClsDataSample is DataSample
    assert sample.to_dict()['gt_label'].tolist() == [3]


@pytest.mark.parametrize(
    'call',
    [
        lambda: DataSample().set_gt_label(1.5),
        lambda: DataSample().set_gt_label([1, 2]),
        lambda: DataSample().set_gt_label(True),
        lambda: DataSample().set_pred_score(torch.ones(2, 2)),
        lambda: DataSample().set_gt_score(torch.ones(2, dtype=torch.long)),
    ],
)
def test_fields_are_checked(call) -> None:
    with pytest.raises(DataError):
        call()


def test_labels_of_every_form() -> None:
    samples = [DataSample().set_gt_label(2), DataSample().set_gt_label(0)]
    for form in (samples, tuple(samples), [2, 0], [torch.tensor(2), torch.tensor(0)], torch.tensor([2, 0])):
        assert labels_of(form).tolist() == [2, 0]
    wrapped = [BaseDataElement(gt_label=BaseDataElement(label=torch.tensor([2]))) for _ in range(2)]
    assert labels_of(wrapped).tolist() == [2, 2]
    mixed = [DataSample().set_gt_score(torch.tensor([0.25, 0.75])) for _ in range(2)]
    assert labels_of(mixed).tolist() == [[0.25, 0.75]] * 2


@pytest.mark.parametrize('missing', [None, [], [DataSample()]])
def test_missing_labels(missing) -> None:
    with pytest.raises(DataError, match=r'[Ll]abel'):
        labels_of(missing)


def test_collate() -> None:
    images, labels = collate([(torch.zeros(1, 2, 2), 3), (torch.ones(1, 2, 2), 4)])
    assert images.shape == (2, 1, 2, 2)
    assert labels.tolist() == [3, 4]
    samples = [DataSample().set_gt_label(1), DataSample().set_gt_label(2)]
    batch = collate([{'inputs': torch.zeros(1, 2, 2), 'data_samples': sample} for sample in samples])
    assert batch['inputs'].shape == (2, 1, 2, 2)
    assert batch['data_samples'] == samples
    with pytest.raises(DataError, match='at least one'):
        collate([])
    with pytest.raises(DataError, match=r'\(1, 2, 2\), \(1, 3, 2\)'):
        stack_images([torch.zeros(1, 3, 2), torch.zeros(1, 2, 2)])
