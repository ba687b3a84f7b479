"""Parts of data in memory, and labels that are no class of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from strop.compression.parts import NO_LABEL, check_classes, check_range, given_parts
from strop.errors import DataError


def test_validation_and_calibration_are_cut_from_training_and_nothing_is_scored_that_is_learned_from(pictures):
    parts = given_parts(pictures, val=0.25, calibration=10)
    assert parts.counts() == {'train': 96, 'calibration': 10, 'validation': 32, 'test': 64}
    seen = {tuple(parts.train[index][0].flatten().tolist()) for index in range(96)}
    chosen = {tuple(parts.validation[index][0].flatten().tolist()) for index in range(32)}
    assert not seen & chosen
    assert {tuple(parts.calibration[index][0].flatten().tolist()) for index in range(10)} <= seen


def test_parts_may_be_tensors_data_sets_or_loaders():
    x = torch.arange(20.0).reshape(20, 1)
    parts = given_parts(
        {'train': TensorDataset(x, torch.arange(20)), 'test': DataLoader(TensorDataset(x)), 'validation': x[:4]}
    )
    assert parts.train[3][1] == 3
    assert parts.test[2][1] == NO_LABEL
    assert parts.validation[1][1] == NO_LABEL
    assert parts.labels


def test_the_order_of_training_is_a_function_of_seed_and_epoch(parts):
    def order(seed: int, epoch: int) -> list[int]:
        loader = parts.loader(seed)
        loader.sampler.set_epoch(epoch)
        return list(loader.sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'train': torch.zeros(4, 1)}, "'train' and 'test'"),
        ([1, 2], 'got a list'),
        ({'train': torch.zeros(4, 1), 'tset': 1, 'test': torch.zeros(4, 1)}, "Did you mean 'test'"),
        ({'train': torch.zeros(0, 1), 'test': torch.zeros(4, 1)}, "'train' of the data is empty"),
        ({'train': iter([1]), 'test': torch.zeros(4, 1)}, 'must have a length'),
        ({'train': (torch.zeros(4, 1), torch.zeros(3)), 'test': torch.zeros(4, 1)}, '4 inputs and 3 targets'),
        ({'train': torch.zeros(1, 1), 'test': torch.zeros(4, 1)}, 'too few'),
    ],
)
def test_what_is_no_set_of_parts_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        given_parts(given)


def test_a_label_out_of_range_is_named_with_its_part_and_place(pictures):
    labels = pictures['test'][1].clone()
    labels[5] = 7
    parts = given_parts({**pictures, 'test': (pictures['test'][0], labels)})
    with pytest.raises(DataError, match="1 labels of the part 'test' are none of 0 to 3: sample 5 has 7"):
        check_classes(parts, 4)
    check_classes(parts, 8)


def test_other_samples_have_another_digest(pictures):
    first = given_parts(pictures)
    images, labels = pictures['test']
    second = given_parts({**pictures, 'test': (images + 1, labels)})
    assert first.digest() == given_parts(pictures).digest() != second.digest()


@pytest.mark.parametrize('part', ['train', 'test'])
def test_one_changed_sample_or_real_target_is_another_digest(part):
    def digest(change=0.0, targets=0.0):
        given = {name: [torch.ones(40, 3), torch.ones(40, 1)] for name in ('train', 'test')}
        given[part][0][7] += change
        given[part][1][7] += targets
        return given_parts(given).digest()

    assert digest() == digest()
    assert len({digest(), digest(change=1.0), digest(targets=1.0)}) == 3


def test_calibration_samples_are_drawn_from_all_that_is_left():
    """Samples in the order of their classes: the first of them would be of one class alone."""
    labels = torch.arange(8).repeat_interleave(25)
    parts = given_parts({'train': (torch.zeros(200, 1), labels), 'test': (torch.zeros(8, 1), torch.arange(8))}, calibration=40)
    found = {target for _, target in (parts.calibration[index] for index in range(40))}
    assert len(parts.calibration) == 40
    assert found == set(range(8))


def test_a_loader_of_some_batches_gives_the_first_of_the_epoch(parts):
    whole = [inputs for inputs, _ in parts.loader(3)]
    some = [inputs for inputs, _ in parts.loader(3, 2)]
    assert len(some) == len(parts.loader(3, 2)) == 2
    assert all(torch.equal(first, second) for first, second in zip(some, whole))
    assert len(parts.loader(3, 99)) == len(parts.loader(3))


def test_a_model_of_smaller_images_sees_them_and_its_teacher_whole_ones(parts):
    half = parts.at(4)
    assert half.example(2).shape == (2, 1, 4, 4)
    assert half.inputs('test', limit=1)[0].shape[2:] == (4, 4)
    whole, _ = next(iter(half.loader(0)))
    assert whole.shape[2:] == (8, 8)
    assert half.seen(whole).shape[2:] == (4, 4)
    assert half.image_side == parts.image_side == 8
    assert half.digest() == parts.digest()
    assert parts.example(2).shape == (2, 1, 8, 8)
    assert torch.equal(half.at(None).example(2), parts.example(2))


def test_another_label_of_a_training_sample_is_another_digest(pictures):
    images, labels = pictures['train']
    other = labels.clone()
    other[5] = (other[5] + 1) % 4
    first, second = (given_parts({**pictures, 'train': (images, given)}, calibration=4) for given in (labels, other))
    assert first.digest() != second.digest()


class Noisy(Dataset):
    """Gives other inputs each time, by the global generators of both libraries, as transforms do."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.tensor([float(index), torch.randn(()).item(), np.random.default_rng(np.random.randint(9**9)).normal()]), 1


def test_samples_that_are_drawn_are_the_same_at_each_reading_but_in_training():
    parts, again = (given_parts({'train': Noisy(), 'test': Noisy()}, val=0.25, seed=3) for _ in range(2))
    for part in ('calibration', 'validation', 'test'):
        torch.rand(1)
        first, second = getattr(parts, part), getattr(again, part)
        assert all(torch.equal(first[index][0], second[index][0]) for index in range(len(first)))
        assert not torch.equal(first[0][0][1:], first[1][0][1:])
    assert parts.digest() == again.digest() != given_parts({'train': Noisy(), 'test': Noisy()}, val=0.25, seed=4).digest()
    assert not torch.equal(parts.train[0][0], parts.train[0][0])


def test_reading_a_sample_leaves_the_generators_as_they_were():
    parts = given_parts({'train': Noisy(), 'test': Noisy()})
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    parts.test[0]
    assert torch.equal(torch.rand(1), wanted)


class Torchvision(Dataset):
    def __init__(self, targets, target_transform=None):
        self.targets, self.target_transform = targets, target_transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        target = self.targets[index]
        return torch.zeros(1), target if self.target_transform is None else self.target_transform(target)


@pytest.mark.parametrize(
    'given',
    [
        TensorDataset(torch.zeros(6, 1), torch.tensor([0, 1, 0, 1, 0, 9])),
        [(torch.zeros(1), label) for label in (0, 1, 0, 1, 0, 9)],
        Torchvision([0, 1, 0, 1, 0, 9]),
        Subset(Torchvision([9, 0, 1, 0, 1, 0, 9]), [1, 2, 3, 4, 5, 6]),
    ],
)
def test_labels_of_every_kind_of_set_are_looked_at(given):
    with pytest.raises(DataError, match="1 labels of the part 'test' are none of 0 to 1: sample 5 has 9"):
        check_classes(given_parts({'train': torch.zeros(8, 1), 'test': given}), 2)


def test_small_unsigned_labels_are_labels():
    labels = torch.tensor([0, 1, 0, 1], dtype=torch.uint8)
    check_range(labels, 2, 'it')
    with pytest.raises(DataError, match='it has the label 200'):
        check_range(torch.tensor([0, 200], dtype=torch.uint8), 2, 'it')
    check_classes(given_parts({'train': torch.zeros(8, 1), 'test': TensorDataset(torch.zeros(4, 1), labels)}), 2)
    parts = given_parts({'train': torch.zeros(8, 1), 'test': [(torch.zeros(1), label) for label in labels.numpy()]})
    assert parts.test[1][1] == 1


def test_labels_left_behind_by_a_set_that_was_filtered_are_not_believed():
    given = Torchvision([10, 11, 10, 11])
    given.__class__ = type('Filtered', (Torchvision,), {'__getitem__': lambda self, index: (torch.zeros(1), index % 2)})
    check_classes(given_parts({'train': torch.zeros(8, 1), 'test': given}), 2)
    given.targets = [0, 1]
    given.__class__ = type('Longer', (type(given),), {'__len__': lambda self: 4})
    check_classes(given_parts({'train': torch.zeros(8, 1), 'test': Subset(given, [3])}), 2)


def test_a_set_of_which_some_cannot_be_read_may_be_used_without_them():
    class Broken(Torchvision):
        def __getitem__(self, index):
            if index == 0:
                raise OSError('image file is truncated')
            return super().__getitem__(index)

    parts = given_parts({'train': torch.zeros(8, 1), 'test': Subset(Broken([0, 1, 0, 1]), [1, 2, 3])})
    check_classes(parts, 2)
    assert parts.digest()


def test_targets_that_nothing_reads_may_be_anything_and_learning_from_shares_works():
    x, y = torch.zeros(8, 1), torch.tensor([0, 1] * 4)
    soft = {'train': (x, torch.full((8, 2), 0.5)), 'validation': (x, y), 'test': (x, y)}
    check_classes(given_parts(soft), 2)
    boxes = {**soft, 'train': [(torch.zeros(1), {'boxes': torch.zeros(4)}) for _ in range(8)]}
    check_classes(given_parts(boxes, labels=False), 2)
    with pytest.raises(DataError, match="the part 'train'"):
        check_classes(given_parts(boxes), 2)


def test_labels_that_are_changed_on_reading_are_not_judged_by_what_they_were():
    given = Torchvision([10, 11, 10], lambda target: target - 10)
    check_classes(given_parts({'train': torch.zeros(8, 1), 'test': given}), 2)


def test_labels_in_columns_are_refused_with_what_would_work():
    x, y = torch.zeros(8, 1), torch.zeros(8, 1, dtype=torch.long)
    with pytest.raises(DataError, match=r"the part 'train' is of shape \(1,\) and type int64.*y.squeeze\(1\)"):
        check_classes(given_parts({'train': (x, y), 'test': (x, y)}), 2)


class Elsewhere(torch.Tensor):
    """Stands for a tensor on a GPU: NumPy cannot read it before it is on the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        return super().__torch_function__(function, types, args, kwargs or {})

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_samples_and_labels_may_be_on_a_gpu():
    x, y = torch.rand(20, 3).as_subclass(Elsewhere), (torch.arange(20) % 4).as_subclass(Elsewhere)
    parts = given_parts({'train': (x, y), 'test': (x, y)})
    inputs, targets = next(parts.batches('test'))
    assert type(inputs) is type(targets) is torch.Tensor
    check_classes(parts, 4)
    with pytest.raises(DataError, match=r'sample \d+ has 3'):
        check_classes(parts, 3)
