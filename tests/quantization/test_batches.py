import pytest
import torch

from strop.errors import ConfigError, DataError
from strop.quantization.batches import Batches, batch_size


def test_a_tuple_is_inputs_and_the_rest_a_mapping_is_keywords():
    images = torch.rand(2, 3)
    assert Batches.of([(images, torch.zeros(2))])[0][0][0] is images
    assert Batches.of([{'x': images}])[0][1]['x'] is images
    assert Batches.of([((images, images), None)])[0][0] == (images, images)
    assert len(Batches.of(images)) == 1


def test_only_as_many_batches_are_read_as_asked_for():
    read = []

    def batches():
        for index in range(10):
            read.append(index)
            yield torch.rand(2, 3)

    assert len(Batches.of(batches(), 3)) == 3
    assert read == [0, 1, 2]


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_not_finite_are_refused_with_their_place(value):
    bad = torch.rand(2, 3)
    bad[1, 2] = value
    with pytest.raises(DataError, match=r'Batch 1 .* at \(1, 2\)'):
        Batches.of([torch.rand(2, 3), bad])


def test_a_batch_of_another_shape_is_refused():
    with pytest.raises(DataError, match=r'Batch 1 .*5.* but batch 0 has .*3'):
        Batches.of([torch.rand(2, 3), torch.rand(2, 5)])
    with pytest.raises(DataError, match='built differently'):
        Batches.of([torch.rand(2, 3), {'x': torch.rand(2, 3)}])


def test_a_last_batch_may_be_shorter():
    assert Batches.of([torch.rand(4, 3), torch.rand(1, 3)]).samples == 5


@pytest.mark.parametrize('data', [[], iter(())])
def test_empty_data_is_refused(data):
    with pytest.raises(DataError, match='empty'):
        Batches.of(data)


@pytest.mark.parametrize('data', [None, 'images', 3, {'x': torch.rand(2)}])
def test_what_is_no_data_is_refused(data):
    with pytest.raises(ConfigError, match='iterable of batches'):
        Batches.of(data)


def test_a_batch_without_tensors_is_refused():
    with pytest.raises(DataError, match='holds no tensor'):
        Batches.of([['a', 'b']])


@pytest.mark.parametrize('limit', [0, -1, 1.5, True])
def test_a_limit_is_a_positive_integer(limit):
    with pytest.raises(ConfigError, match='positive integer'):
        Batches.of([torch.rand(2)], limit)


def test_the_held_out_batches_are_the_last_quarter_and_none_of_the_others():
    data = [torch.full((2, 1), float(index)) for index in range(8)]
    kept, held = Batches.of(data).split()
    assert [float(call[0][0][0]) for call in kept] == [0, 1, 2, 3, 4, 5]
    assert [float(call[0][0][0]) for call in held] == [6, 7]


def test_one_batch_is_split_along_its_samples():
    kept, held = Batches.of(torch.arange(5.0).reshape(5, 1)).split()
    assert kept[0][0][0].flatten().tolist() == [0, 1]
    assert held[0][0][0].flatten().tolist() == [2, 3, 4]


def test_an_example_of_one_sample_is_doubled():
    assert Batches.of(torch.rand(1, 3)).example()[0][0].shape == (2, 3)
    assert batch_size(((torch.rand(2), torch.rand(3)), {})) is None


class One(torch.nn.Module):
    """Its batch size is written down, and is one."""

    def forward(self, x):
        return x.view(1, 3)


def test_an_example_of_one_sample_stays_one_where_the_model_takes_no_two():
    data = Batches.of(torch.rand(1, 3))
    assert data.example(torch.nn.Linear(3, 2))[0][0].shape == (2, 3)
    assert data.example(One())[0][0] is data[0][0][0]
    several = Batches.of(torch.rand(4, 3))
    assert several.example(One()) is several[0]


@pytest.mark.parametrize('data', [[torch.zeros(0, 3)], [torch.rand(2, 3), torch.zeros(0, 3)], [{'x': torch.rand(2, 0)}]])
def test_a_batch_of_nothing_is_refused(data):
    with pytest.raises(
        DataError, match=rf'^Batch {len(data) - 1} of the calibration data holds nothing: .* the shape \([02], [03]\)'
    ):
        Batches.of(data)


@pytest.mark.parametrize('limit', [0, -1, '8', True])
def test_batches_that_were_read_are_limited_like_others(limit):
    read = Batches.of([torch.rand(2, 3)] * 3)
    assert len(Batches.of(read, 2)) == 2
    with pytest.raises(ConfigError, match='must be a positive integer'):
        Batches.of(read, limit)


def test_batches_that_were_read_are_moved_like_others():
    read = Batches.of([torch.rand(2, 3)] * 2)
    assert Batches.of(read, device=torch.device('meta'))[1][0][0].is_meta
