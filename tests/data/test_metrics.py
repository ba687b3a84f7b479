from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.data.metrics import Accuracy, ranks_of
from strop.data.samples import DataSample
from strop.errors import ConfigError, DataError
from strop.registry import METRICS

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]])
LABELS = torch.tensor([1, 2, 2, 1])


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 2**31))
def test_equals_torch_topk_where_scores_differ(classes: int, images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(classes, generator=generator) for _ in range(images)]).float()
    labels = torch.randint(classes, (images,), generator=generator)
    ranks = ranks_of(scores, labels)
    for k in (1, 2, 5):
        best = scores.topk(min(k, classes)).indices
        assert torch.equal(ranks < k, (best == labels[:, None]).any(1))


def test_ties_go_to_the_lower_class_and_nan_is_never_right() -> None:
    assert ranks_of(torch.zeros(3, 4), torch.tensor([0, 1, 3])).tolist() == [0, 1, 3]
    metric = Accuracy(topk=(1, 5))
    metric.process(None, (torch.tensor([[float('nan'), 0.0], [1.0, 0.0]]), torch.tensor([0, 0])))
    assert metric.evaluate(2) == {'accuracy/top1': 50.0, 'accuracy/top5': 50.0}


def samples(with_label: bool) -> list[dict]:
    result = []
    for score, label in zip(SCORES, LABELS, strict=True):
        sample = DataSample().set_pred_score(score)
        result.append((sample.set_gt_label(label) if with_label else sample).to_dict())
    return result


@pytest.mark.parametrize(
    ('batch', 'outputs'),
    [
        (None, samples(True)),
        ((None, LABELS), samples(False)),
        ({'inputs': None, 'data_samples': [DataSample().set_gt_label(label) for label in LABELS]}, samples(False)),
        ((None, LABELS.tolist()), SCORES),
        ([None, LABELS], list(SCORES)),
        (None, (SCORES, LABELS)),
        (None, list(zip(SCORES, LABELS.tolist(), strict=True))),
    ],
)
def test_every_form_of_output(batch, outputs) -> None:
    metric = METRICS.build({'type': 'Accuracy', 'topk': (1, 2, 5)})
    metric.process(batch, outputs)
    assert metric.evaluate(4) == {'accuracy/top1': 50.0, 'accuracy/top2': 75.0, 'accuracy/top5': 100.0}


def test_padded_images_do_not_count() -> None:
    metric = Accuracy()
    metric.process(None, (SCORES, LABELS))
    metric.process(None, (SCORES[1:2], LABELS[1:2]))
    assert metric.evaluate(4) == {'accuracy/top1': 50.0}


def test_prefix() -> None:
    metric = Accuracy(topk=1, prefix='own')
    metric.process(None, (SCORES, LABELS))
    assert metric.evaluate(4) == {'own/top1': 50.0}


def test_misuse() -> None:
    with pytest.raises(ConfigError, match='topk'):
        Accuracy(topk=(0,))
    with pytest.raises(DataError, match=r'range\(0, 3\)'):
        Accuracy().process(None, (SCORES, LABELS + 1))
    for labels in (LABELS[:1], LABELS[:-1], LABELS[:, None], LABELS.float(), torch.rand(len(LABELS), 3)):
        with pytest.raises(DataError, match='go with n whole numbers'):
            ranks_of(SCORES, labels)
    assert torch.equal(ranks_of(SCORES, LABELS.int()), ranks_of(SCORES, LABELS))
    with pytest.raises(DataError, match='no labels'):
        Accuracy().process(None, SCORES)
    with pytest.raises(DataError, match='pred_score'):
        Accuracy().process(None, [{'gt_label': torch.tensor([1])}] * 3)
    with pytest.raises(DataError, match='no image'):
        Accuracy().compute_metrics([])
