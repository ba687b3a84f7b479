"""What losses say of inputs that do not fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from strop.data import DataSample
from strop.distill import ATLoss, DKDLoss, KDSoftCELoss, KLDivergence, L2Loss, OFDLoss, PKDLoss, TokenKLDivergence
from strop.distill.loss_inputs import class_labels, levels, paired, reduced
from strop.errors import ComponentTypeError, ConfigError


def shapes(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(size) for size in sizes]


# -- shapes that do not meet --------------------------------------------------------------------------------------


def test_other_channels_of_a_map_name_a_convolution() -> None:
    with pytest.raises(ConfigError, match=r'\(2, 64, 8, 8\).*\(2, 128, 8, 8\).*ConvModuleConnector.*64, out_channel=128'):
        L2Loss()(*shapes((2, 64, 8, 8), (2, 128, 8, 8)))


def test_other_sizes_of_a_map_name_an_interpolation() -> None:
    with pytest.raises(ConfigError, match=r"function_name='interpolate', func_args=dict\(size=\(16, 12\)\)"):
        OFDLoss()(*shapes((2, 64, 8, 6), (2, 64, 16, 12)))


def test_other_channels_and_sizes_name_both() -> None:
    with pytest.raises(ConfigError, match=r'ConvModuleConnector.*interpolate'):
        L2Loss()(*shapes((2, 3, 8, 8), (2, 4, 4, 4)))


def test_other_widths_of_rows_name_a_linear_layer() -> None:
    with pytest.raises(ConfigError, match=r"module_name='Linear', module_args=dict\(in_features=10, out_features=12\)"):
        KLDivergence()(*shapes((2, 10), (2, 12)))


def test_other_widths_of_tokens_name_a_linear_layer_over_the_last_axis() -> None:
    with pytest.raises(ConfigError, match=r'in_features=192, out_features=768'):
        L2Loss()(*shapes((2, 197, 192), (2, 197, 768)))


def test_other_numbers_of_tokens_say_so() -> None:
    with pytest.raises(ConfigError, match=r'Axis 1 \(the tokens'):
        L2Loss()(*shapes((2, 197, 192), (2, 198, 192)))


def test_other_batches_say_so() -> None:
    with pytest.raises(ConfigError, match='batches differ'):
        L2Loss()(*shapes((2, 3), (4, 3)))


def test_other_numbers_of_axes_say_so() -> None:
    with pytest.raises(ConfigError, match='2 and 4 axes'):
        L2Loss()(*shapes((2, 3), (2, 3, 1, 1)))


def test_only_what_is_free_may_differ() -> None:
    assert ATLoss()(*shapes((2, 3, 4, 4), (2, 5, 4, 4))) == 0
    with pytest.raises(ConfigError, match='interpolate'):
        ATLoss()(*shapes((2, 3, 4, 4), (2, 5, 8, 4)))
    assert PKDLoss()(*shapes((2, 3, 4, 4), (2, 3, 8, 8))) == 0
    with pytest.raises(ConfigError, match='ConvModuleConnector'):
        PKDLoss()(*shapes((2, 3, 4, 4), (2, 5, 8, 8)))


def test_the_connectors_that_a_message_names_make_the_shapes_meet() -> None:
    from strop.distill import ConvModuleConnector, TorchFunctionalConnector, TorchNNConnector

    small, big = shapes((2, 3, 4, 4), (2, 5, 8, 6))
    project = ConvModuleConnector(in_channel=3, out_channel=5)
    resize = TorchFunctionalConnector(function_name='interpolate', func_args=dict(size=(8, 6)))
    assert L2Loss()(resize(project(small)), big).isfinite()
    rows = TorchNNConnector(module_name='Linear', module_args=dict(in_features=3, out_features=5))
    assert L2Loss()(rows(torch.rand(2, 7, 3)), torch.rand(2, 7, 5)).isfinite()


# -- things that are no pair of tensors ---------------------------------------------------------------------------


def test_a_tuple_says_how_to_choose_one_of_it() -> None:
    with pytest.raises(ComponentTypeError, match=r'student gave a tuple.*data_idx'):
        L2Loss()(tuple(shapes((2, 3))), torch.zeros(2, 3))


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'teacher gave torch\.int64'):
        L2Loss()(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))


def test_two_devices_are_named() -> None:
    with pytest.raises(ConfigError, match='cpu and the teacher one on meta'):
        L2Loss()(torch.zeros(2, 3), torch.zeros(2, 3, device='meta'))


def test_pairs_are_compared_in_single_precision_or_better() -> None:
    half, double = torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.float64)
    assert {x.dtype for x in paired('L', half, half)} == {torch.float32}
    assert {x.dtype for x in paired('L', half, double)} == {torch.float64}


def test_levels_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match='student gave 2 and the teacher 1'):
        levels(PKDLoss(), shapes((1,), (1,)), shapes((1,)))
    with pytest.raises(ComponentTypeError, match='a tuple of each'):
        levels(PKDLoss(), torch.zeros(1), shapes((1,)))


# -- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('tau', [0, -1.0, float('inf'), float('nan'), '4', None, True])
def test_a_temperature_is_above_zero(tau) -> None:
    for loss in (KLDivergence, KDSoftCELoss, DKDLoss, TokenKLDivergence):
        with pytest.raises(ConfigError, match=r'`tau` .* must be a number above 0'):
            loss(tau=tau)


@pytest.mark.parametrize('loss', [KLDivergence, KDSoftCELoss, DKDLoss])
def test_a_wrong_reduction_names_the_near_one(loss) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mean'"):
        loss(reduction='meen')


def test_reductions_by_hand() -> None:
    each = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert [reduced(each, how).tolist() for how in ('sum', 'mean', 'batchmean', 'none')] == [12, 3, 6, each.tolist()]


# -- labels -------------------------------------------------------------------------------------------------------

LABELS = [2, 0, 1]


@pytest.mark.parametrize(
    'given',
    [
        torch.tensor(LABELS),
        torch.tensor(LABELS)[:, None],
        torch.tensor(LABELS, dtype=torch.int32),
        LABELS,
        torch.eye(3)[LABELS],
        list(torch.tensor(LABELS)),
        [DataSample().set_gt_label(label) for label in LABELS],
        [DataSample().set_gt_score(torch.eye(3)[label]) for label in LABELS],
        [SimpleNamespace(gt_label=SimpleNamespace(label=torch.tensor([label]))) for label in LABELS],
        [SimpleNamespace(gt_label=SimpleNamespace(score=torch.eye(3)[label])) for label in LABELS],
    ],
)
def test_labels_in_every_form(given) -> None:
    assert class_labels('L', given, torch.zeros(3, 3)).tolist() == LABELS


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (torch.tensor([0, 1, 3]), 'from 0 to 2 .* got 3'),
        (torch.tensor([0, -1, 2]), 'got -1'),
        (torch.tensor([0, 1]), r'each of the 3 rows'),
        (torch.tensor([0.0, 1.0, 2.0]), 'whole number'),
        ([SimpleNamespace(label=1)] * 3, 'no `gt_label`'),
        (None, 'but got None'),
        ([], 'but got list'),
    ],
)
def test_labels_that_do_not_fit(given, words) -> None:
    with pytest.raises(ConfigError, match=words):
        class_labels('L', given, torch.zeros(3, 3))
