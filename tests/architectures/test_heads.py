from __future__ import annotations

import pytest
import torch

from strop.architectures.heads import ClsHead, GlobalAveragePooling, LinearClsHead
from strop.data import DataSample
from strop.errors import ConfigError, DataError
from strop.registry import MODELS


def test_pooling() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(GlobalAveragePooling()(x), x.mean((2, 3)))
    pooled = GlobalAveragePooling()((x, x[:, :1]))
    assert [tuple(y.shape) for y in pooled] == [(2, 3), (2, 1)]
    assert GlobalAveragePooling(1)(torch.ones(2, 3, 7)).shape == (2, 3)
    with pytest.raises(ConfigError, match='1, 2 or 3'):
        GlobalAveragePooling(4)


def test_linear_head_is_a_linear_layer_on_the_last_feature() -> None:
    head = LinearClsHead(4, 3)
    feats = (torch.randn(2, 9), torch.randn(2, 3))
    assert torch.equal(head(feats), head.fc(feats[1]))
    assert torch.equal(head(feats[1]), head.fc(feats[1]))
    head.init_weights()
    assert head.fc.bias.abs().max() == 0
    assert set(head.state_dict()) == {'fc.weight', 'fc.bias'}


def test_labels_in_every_form_give_one_loss() -> None:
    head = ClsHead()
    logits = torch.randn(3, 5)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 4, 0]))
    samples = [DataSample().set_gt_label(label) for label in (1, 4, 0)]
    for labels in (torch.tensor([1, 4, 0]), [1, 4, 0], samples):
        assert torch.equal(head.loss((logits,), labels)['loss'], expected)


def test_accuracy_of_the_batch() -> None:
    head = MODELS.build({'type': 'ClsHead', 'topk': (1, 2, 5), 'cal_acc': True})
    logits = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    losses = head.loss((logits,), torch.tensor([2, 0]))
    assert {name: value.item() for name, value in losses.items() if name != 'loss'} == {
        'accuracy_top-1': 50.0,
        'accuracy_top-2': 100.0,
        'accuracy_top-5': 100.0,
    }


def test_predict_fills_in_samples() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]], requires_grad=True)
    samples = [DataSample().set_gt_label(2), DataSample().set_gt_label(0)]
    results = ClsHead().predict((logits,), samples)
    assert results[0] is samples[0]
    assert torch.equal(results[0].pred_score, logits.detach()[0].softmax(0))
    assert not results[0].pred_score.requires_grad
    assert [int(result.pred_label) for result in results] == [1, 0]
    assert [int(result.gt_label) for result in results] == [2, 0]
    results = ClsHead().predict((logits,), torch.tensor([2, 0]))
    assert [result.gt_label.tolist() for result in results] == [[2], [0]]
    assert 'gt_label' not in ClsHead().predict(logits)[0]


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: LinearClsHead(0, 3), ConfigError, 'positive'),
        (lambda: LinearClsHead(4, 3)(torch.rand(2, 5)), ConfigError, r'features of shape \(2, 5\)'),
        (lambda: LinearClsHead(4, 3)(torch.rand(2, 3, 4, 4)), ConfigError, 'GlobalAveragePooling'),
        (lambda: ClsHead(topk=0), ConfigError, 'topk'),
        (lambda: ClsHead().loss(torch.rand(2, 3), None), DataError, 'Labels are needed'),
        (lambda: ClsHead().loss(torch.rand(2, 3), torch.tensor([1])), DataError, '2 images and 1 labels'),
        (lambda: ClsHead().predict(torch.rand(2, 3), [DataSample()]), DataError, '2 images and 1 samples'),
    ],
)
def test_misuse(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
