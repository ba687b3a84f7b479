import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from torch import nn

from strop.algorithms import BaseAlgorithm, FunctionMetric, PlainArchitecture
from strop.errors import ComponentTypeError, ConfigError, ModeError
from strop.registry import METRICS, MODELS


def linear():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.eye(2)
    return layer


def test_modes_of_a_plain_module():
    architecture = PlainArchitecture(linear(), loss=nn.MSELoss(reduction='sum'))
    inputs, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert architecture(inputs).tolist() == [[1.0, 2.0]]
    assert architecture(inputs, labels, mode='loss')['loss'].item() == 1.0 + 4.0
    (sample,) = architecture(inputs, labels, mode='predict')
    assert sample['pred_score'].tolist() == [1.0, 2.0]
    assert sample['gt_label'].tolist() == [0.0, 4.0]
    assert architecture(inputs, mode='predict')[0]['gt_label'] is None
    with pytest.raises(ModeError):
        architecture(inputs, mode='val')


def test_cross_entropy_is_the_loss_where_none_is_given():
    losses = PlainArchitecture(linear())(torch.tensor([[1.0, 1.0]]), torch.tensor([1]), mode='loss')
    assert losses['loss'].item() == pytest.approx(0.6931471805599453)


def test_loss_may_be_a_config_or_return_several():
    built = PlainArchitecture(linear(), loss=dict(type='torch.nn.L1Loss'))
    assert built(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]), mode='loss')['loss'].item() == 1.0
    several = PlainArchitecture(linear(), loss=lambda outputs, labels: {'loss_a': outputs.sum(), 'loss_b': outputs.max()})
    assert set(several(torch.ones(1, 2), torch.ones(1), mode='loss')) == {'loss_a', 'loss_b'}


def test_inputs_that_are_a_mapping_become_keywords():
    class Both(nn.Module):
        def forward(self, first, second):
            return first - second

    inputs = {'second': torch.ones(1, 2), 'first': torch.zeros(1, 2)}
    assert PlainArchitecture(Both())(inputs).tolist() == [[-1.0, -1.0]]


def test_module_may_be_a_config():
    built = MODELS.build(dict(type='PlainArchitecture', module=dict(type='torch.nn.Linear', in_features=2, out_features=3)))
    assert built(torch.zeros(1, 2)).shape == (1, 3)


def test_what_is_refused():
    with pytest.raises(ComponentTypeError, match='`module`'):
        PlainArchitecture('linear')
    with pytest.raises(ComponentTypeError, match='`loss`'):
        PlainArchitecture(linear(), loss=3)
    with pytest.raises(ConfigError, match='needs labels'):
        PlainArchitecture(linear())(torch.zeros(1, 2), mode='loss')


def test_predictions_need_a_row_for_each_sample():
    class Gives(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.make = make

        def forward(self, x):
            return self.make(x)

    x, labels = torch.zeros(8, 2), torch.arange(8)
    for make, found in (
        (lambda x: (x, x), 'a tuple of 2 for 8 labels'),
        (lambda x: {'out': x}, 'a dict of 1 for 8 labels'),
        (lambda x: x[:3], r'a tensor of shape \(3, 2\) for 8 labels'),
        (lambda x: x.sum(), r'a tensor of shape \(\) for 8 labels'),
        (lambda x: [x[0]], 'a list of 1 for 8 labels'),
    ):
        with pytest.raises(ConfigError, match=f'the Gives gave {found}'):
            PlainArchitecture(Gives(make))(x, labels, mode='predict')
    found = PlainArchitecture(Gives(lambda x: [{'boxes': row} for row in x]))(x, labels, mode='predict')
    assert [sample['gt_label'].item() for sample in found] == list(range(8))


def test_function_metric_sees_all_batches_at_once():
    seen = []

    def metric(outputs, labels):
        seen.append((outputs.shape, labels.tolist()))
        return {'share': float((outputs.argmax(1) == labels).double().mean())}

    evaluator = Evaluator(METRICS.build(dict(type='FunctionMetric', function=metric)))
    architecture = PlainArchitecture(linear())
    for inputs, labels in [([[1.0, 0.0]], [0]), ([[1.0, 0.0], [0.0, 1.0]], [1, 1])]:
        evaluator.process(architecture(torch.tensor(inputs), torch.tensor(labels), mode='predict'))
    assert evaluator.evaluate(3) == {'share': 2 / 3}
    assert seen == [((3, 2), [0, 1, 1])]


def test_function_metric_of_one_number_has_a_name():
    metric = FunctionMetric(lambda outputs, labels: 3, name='three')
    metric.process({}, [{'pred_score': torch.zeros(1), 'gt_label': 0}])
    assert metric.evaluate(1) == {'three': 3.0}


def test_lists_of_samples_are_stacked_as_mmengine_collates_them():
    architecture = PlainArchitecture(nn.Linear(4, 2))
    inputs = torch.randn(3, 4)
    stacked = architecture(inputs, torch.tensor([0, 1, 0]), mode='loss')['loss']
    assert torch.equal(architecture(list(inputs), [0, 1, 0], mode='loss')['loss'], stacked)
    samples = pseudo_collate(torch.utils.data.TensorDataset(inputs, torch.tensor([0, 1, 0])))
    assert torch.equal(architecture(*samples, mode='loss')['loss'], stacked)


def test_a_tuple_of_inputs_is_given_as_it_is():
    class Siamese(nn.Module):
        def forward(self, inputs):
            first, second = inputs
            return first * second

    inputs = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(PlainArchitecture(Siamese())(inputs, torch.tensor([0, 1])), inputs[0] * inputs[1])


class Foreign(nn.Module):
    """As timm's and transformers' models, it can initialize itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def init_weights(self):
        nn.init.zeros_(self.layer.weight)

    def forward(self, x):
        return self.layer(x)


def test_a_pretrained_module_keeps_its_weights():
    module = Foreign()
    before = module.layer.weight.clone()
    algorithm = BaseAlgorithm(module)
    algorithm.init_weights()
    assert torch.equal(module.layer.weight, before)
    assert not hasattr(module, 'is_init')


def test_a_module_that_is_built_here_is_initialized():
    MODELS.register_module(module=Foreign, force=True)
    try:
        architecture = PlainArchitecture(dict(type='Foreign'))
        architecture.init_weights()
        assert not architecture.module.layer.weight.any()
    finally:
        MODELS.module_dict.pop('Foreign')
