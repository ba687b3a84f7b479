from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.graph import channel_units
from strop.pruning.placements import (
    batches_of,
    chosen,
    forward,
    gathered,
    gives,
    is_norm,
    learned,
    loss_of,
    rows,
    slices,
    tensor,
)


class Place:
    """One axis of one tensor, as a unit holds it."""

    def __init__(self, index, axis=0, tensor='weight'):
        self.index, self.axis, self.tensor = torch.tensor(index), axis, tensor


def test_positions_of_an_index_are_summed_and_positions_of_none_left_out():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert gathered(values, Place([1, 0, 1, -1, 0]), 2).tolist() == [18.0, 5.0]
    assert gathered(values, Place([1, 0, 1, -1, 0]), 3).tolist() == [18.0, 5.0, 0.0]


def test_slices_hold_everything_of_an_index():
    values = torch.arange(8.0).reshape(4, 2)
    assert slices(values, Place([0, 1, 0, 1]), 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert slices(values, Place([0, 1, 2, 3]), 4).tolist() == values.tolist()
    assert slices(values, Place([1, 0], axis=1), 2).tolist() == [[1, 3, 5, 7], [0, 2, 4, 6]]
    assert slices(values, Place([1, -1, 0, 0]), 2).tolist() == [[4, 5, 6, 7], [0, 1, 0, 0]]
    assert slices(torch.tensor([3.0, 4.0]), Place([1, 0]), 2).tolist() == [[4.0], [3.0]]


def test_rows_sum_every_other_axis():
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(rows(values, 1), values.sum((0, 2)))
    assert torch.equal(rows(torch.arange(3.0), 0), torch.arange(3.0))


@pytest.mark.parametrize(
    ('layer', 'out'),
    [
        (nn.Linear(3, 4), 0),
        (nn.Conv2d(3, 4, 1), 0),
        (nn.ConvTranspose2d(3, 4, 1), 1),
        (nn.Embedding(3, 4), 1),
    ],
)
def test_which_axis_of_a_layer_gives_channels_out(layer, out):
    net = nn.Sequential(layer)
    assert gives(net, Place([0], axis=out, tensor='0.weight'))
    assert not gives(net, Place([0], axis=1 - out, tensor='0.weight'))


def test_linear_layers_of_transformers_give_out_their_second_axis():
    conv1d = pytest.importorskip('transformers.pytorch_utils').Conv1D
    test_which_axis_of_a_layer_gives_channels_out(conv1d(4, 3), 1)


def test_vectors_and_loose_parameters_are_given_out():
    net = nn.Sequential(nn.Linear(3, 4))
    net.token = nn.Parameter(torch.zeros(1, 1, 4))
    assert gives(net, Place([0], tensor='0.bias'))
    assert gives(net, Place([0], axis=2, tensor='token'))


def test_norms_are_known_by_class_or_name():
    class LayerNorm2d(nn.Module):
        pass

    class FrozenBatchNorm(nn.Module):
        pass

    norms = nn.BatchNorm1d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.RMSNorm(2), LayerNorm2d(), FrozenBatchNorm()
    assert all(map(is_norm, norms))
    assert not is_norm(nn.Conv2d(1, 1, 1))


def test_what_a_unit_is_judged_by():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    unit = channel_units(net, torch.rand(2, 3, 4, 4)).units['0']
    names = {parts: [str(p) for p in chosen(unit, net, parts)] for parts in ('all', 'out', 'in')}
    assert names == {'all': ['0.weight[0]', '2.weight[1]'], 'out': ['0.weight[0]'], 'in': ['2.weight[1]']}
    with pytest.raises(ConfigError, match="'all', 'out' or 'in'"):
        chosen(unit, net, 'outer')


def test_a_name_that_is_no_tensor_is_refused():
    with pytest.raises(ConfigError, match='no parameter or buffer'):
        tensor(nn.Sequential(nn.Linear(2, 2, bias=False)), '0.bias')
    with pytest.raises(ConfigError, match='no parameter or buffer'):
        tensor(nn.Sequential(nn.Linear(2, 2)), '1.bias')


def test_only_parameters_are_learned():
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    unit = channel_units(net, torch.rand(3, 2)).units['0']
    assert [p.tensor for p in learned(unit, net)] == ['0.weight', '0.bias', '1.weight', '1.bias', '2.weight']
    elsewhere = SimpleNamespace(placements=(Place([0], tensor='0.cache'), Place([0], tensor='5.weight')))
    assert learned(elsewhere, net) == []
    assert gives(net, elsewhere.placements[1])


def test_a_batch_is_inputs_alone_or_with_more():
    net = nn.Bilinear(2, 2, 1)
    one, two = torch.rand(3, 2), torch.rand(3, 2)
    expected = net(one, two)
    assert torch.equal(forward(net, ((one, two), 'label')), expected)
    assert torch.equal(forward(net, {'input1': one, 'input2': two}), expected)
    assert torch.equal(forward(net, [{'input1': one, 'input2': two}, 'label']), expected)
    layer = nn.Linear(2, 1)
    assert torch.equal(forward(layer, one), layer(one))
    assert torch.equal(forward(layer, (one, 0)), layer(one))


@pytest.mark.parametrize('data', [5, torch.rand(3), 'text', {'a': 1}])
def test_data_that_is_no_iterable_of_batches_is_refused(data):
    with pytest.raises(ConfigError, match='iterable of batches'):
        list(batches_of(data))


def test_data_without_batches_is_refused():
    used = iter([1])
    assert list(batches_of(used)) == [1]
    with pytest.raises(ConfigError, match='no batches'):
        list(batches_of(used))


def test_a_loss_is_a_function_or_a_criterion():
    net = nn.Linear(2, 3)
    batch = torch.rand(4, 2), torch.tensor([0, 1, 2, 0])
    by_module = loss_of(net, batch, nn.CrossEntropyLoss())
    by_function = loss_of(net, batch, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
    assert torch.equal(by_module, by_function)


@pytest.mark.parametrize(
    ('loss', 'said'),
    [
        (None, 'must be a function'),
        (lambda model, batch: 1.0, 'a float'),
        (lambda model, batch: model(batch[0]), r'shape \(4, 3\)'),
        (lambda model, batch: model(batch[0]).sum() * float('nan'), 'nan'),
    ],
)
def test_a_loss_that_is_not_one_number_is_refused(loss, said):
    with pytest.raises(ConfigError, match=said):
        loss_of(nn.Linear(2, 3), (torch.rand(4, 2), torch.zeros(4)), loss)


def test_a_criterion_needs_targets():
    with pytest.raises(ConfigError, match=r'\(inputs, targets\)'):
        loss_of(nn.Linear(2, 3), torch.rand(4, 2), nn.CrossEntropyLoss())


def test_batches_go_to_where_the_model_is():
    model = nn.Linear(4, 2, device='meta')
    assert forward(model, torch.rand(2, 4)).is_meta
    assert forward(model, ({'input': torch.rand(2, 4)}, torch.rand(2))).is_meta

    class Noting(nn.Module):
        def forward(self, outputs, targets):
            seen.append((outputs.device.type, targets.device.type))
            return torch.ones(1)

    seen = []
    loss_of(model, (torch.rand(2, 4), torch.rand(2, 2)), Noting())
    loss_of(model, (torch.rand(2, 4), torch.rand(2, 2)), lambda model, batch: Noting()(*batch))
    assert seen == [('meta', 'meta')] * 2
