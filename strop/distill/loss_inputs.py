"""What distillation losses take: pairs of tensors that meet, labels, options; and what is said where they do not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from strop.errors import ComponentTypeError, ConfigError, listed, near


def paired(loss: object, student: Any, teacher: Any, *, free: str = '', detach: bool = False) -> tuple[Tensor, Tensor]:
    """Return two tensors that a loss may compare, in float32 or better.

    Args:
        loss: The loss that asks, for the message.
        student: The student's tensor, shape (n, channels, ...).
        teacher: The teacher's tensor.
        free: What may differ: nothing, 'channels' (axis 1), 'space' (axes 2 and on), or 'features' (all but the batch).
        detach: Whether the teacher gets no gradient.

    Raises:
        ComponentTypeError: If one is not a tensor.
        ConfigError: If they are not floating, lie on different devices, or their shapes do not meet. The message names both
            shapes and the connector that would make them meet.

    >>> paired('L1Loss', torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bfloat16))[1].dtype
    torch.float32
    """
    name = loss if isinstance(loss, str) else type(loss).__name__
    first, second = tensor(name, 'student', student), tensor(name, 'teacher', teacher)
    if first.device != second.device:
        raise ConfigError(
            f'{name} compares tensors of one device, but the student gave one on {first.device} and the teacher one on '
            f'{second.device}. Move both models to one device.'
        )
    wrong = _differences(first.shape, second.shape, free)
    if wrong:
        raise ConfigError(
            f'{name}: shapes of student and teacher must meet, but the student gave {tuple(first.shape)} and the teacher '
            f'{tuple(second.shape)}. {" ".join(wrong)}'
        )
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype), (second.detach() if detach else second).to(dtype)


def tensor(loss: object, side: str, given: Any) -> Tensor:
    """Return `given` if it is a floating tensor with at least one axis.

    Raises:
        ComponentTypeError: If it is no tensor; the message says how to choose one of several.
        ConfigError: If it is not floating, or a scalar.
    """
    name = loss if isinstance(loss, str) else type(loss).__name__
    if not isinstance(given, Tensor):
        several = isinstance(given, (Sequence, Mapping)) and not isinstance(given, str)
        hint = ' Choose one of them with `data_idx` in loss_forward_mappings.' if several else ''
        raise ComponentTypeError(f'{name} takes a tensor, but the {side} gave a {type(given).__name__}.{hint}')
    if not given.is_floating_point() or not given.ndim:
        raise ConfigError(
            f'{name} takes a floating tensor of shape (n, ...), but the {side} gave {given.dtype} of shape '
            f'{tuple(given.shape)}.'
        )
    return given


def wide(given: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is where it is wider."""
    return given.to(torch.promote_types(given.dtype, torch.float32))


def exact(given: Tensor) -> torch.autocast:
    """Return a context in which matrix products of this tensor keep its precision, also under automatic mixed precision."""
    return torch.autocast(given.device.type, enabled=False)


def levels(loss: object, preds_S: Any, preds_T: Any) -> list[tuple[Any, Any]]:
    """Return pairs of features, of two tensors or of two sequences of as many.

    Raises:
        ComponentTypeError: If one side is a tensor and the other is not.
        ConfigError: If their numbers differ, or there are none.
    """
    if isinstance(preds_S, Tensor) and isinstance(preds_T, Tensor):
        return [(preds_S, preds_T)]
    if not isinstance(preds_S, (tuple, list)) or not isinstance(preds_T, (tuple, list)):
        raise ComponentTypeError(
            f'{type(loss).__name__} takes a tensor of each side, or a tuple of each, but the student gave a '
            f'{type(preds_S).__name__} and the teacher a {type(preds_T).__name__}.'
        )
    if len(preds_S) != len(preds_T) or not preds_S:
        raise ConfigError(
            f'{type(loss).__name__} compares level with level, but the student gave {len(preds_S)} and the teacher '
            f'{len(preds_T)}.'
        )
    return list(zip(preds_S, preds_T))


#: Losses of PyTorch that take tensors of different shapes and compare every pair that broadcasting makes of them.
_STRETCHING = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.KLDivLoss)


def check_not_stretched(loss: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Check that a loss of PyTorch compares tensors of one shape; others check what they get themselves.

    Args:
        loss: The loss; one that only weights another names it as `weighted`.
        inputs: Its arguments.

    Raises:
        ValueError: If it would stretch one tensor over the other.

    >>> check_not_stretched(nn.MSELoss(), dict(input=torch.zeros(2, 1), target=torch.zeros(2, 5)))
    Traceback (most recent call last):
    ValueError: MSELoss would stretch one over the other: input is (2, 1), target is (2, 5). Bring them to one shape.
    """
    loss = getattr(loss, 'weighted', loss)
    shapes = {name: tuple(given.shape) for name, given in inputs.items() if isinstance(given, Tensor)}
    if isinstance(loss, _STRETCHING) and len(set(shapes.values())) > 1:
        told = ', '.join(f'{name} is {shape}' for name, shape in shapes.items())
        raise ValueError(f'{type(loss).__name__} would stretch one over the other: {told}. Bring them to one shape.')


def _differences(student: torch.Size, teacher: torch.Size, free: str) -> list[str]:
    if student[0] != teacher[0]:
        return ['Their batches differ: both must see the same inputs in the same step.']
    if free == 'features' or student == teacher:
        return []
    if len(student) != len(teacher):
        return [
            f'They have {len(student)} and {len(teacher)} axes: bring both to one form, for example with a connector '
            "dict(type='TorchFunctionalConnector', function_name='adaptive_avg_pool2d', func_args=dict(output_size=1)) and one "
            "dict(type='TorchNNConnector', module_name='Flatten')."
        ]
    if len(student) == 3:
        return [] if free == 'channels' and student[2:] == teacher[2:] else _sequences(student, teacher)
    wrong = []
    if student[1] != teacher[1] and free != 'channels':
        wrong.append(_projection(student, teacher))
    if student[2:] != teacher[2:] and free != 'space':
        wrong.append(
            'Their spatial sizes differ: give the student a connector '
            "dict(type='TorchFunctionalConnector', function_name='interpolate', "
            f'func_args=dict(size={tuple(teacher[2:])})).'
        )
    return wrong


def _projection(student: torch.Size, teacher: torch.Size) -> str:
    linear = len(student) < 4
    axis = -1 if linear else 1
    kind = (
        f"dict(type='TorchNNConnector', module_name='Linear', module_args=dict(in_features={student[axis]}, "
        f'out_features={teacher[axis]}))'
        if linear
        else f"dict(type='ConvModuleConnector', in_channel={student[axis]}, out_channel={teacher[axis]})"
    )
    return f'Their channels differ: give the student a connector {kind}.'


def _sequences(student: torch.Size, teacher: torch.Size) -> list[str]:
    wrong = []
    if student[1] != teacher[1]:
        wrong.append('Axis 1 (the tokens of a transformer) differs: both must give the same tokens.')
    if student[2] != teacher[2]:
        wrong.append(_projection(student, teacher))
    return wrong


# -- options ------------------------------------------------------------------------------------------------------


def choice(loss: object, option: str, given: Any, options: Iterable[str]) -> str:
    """Return `given` if it is one of `options`.

    Raises:
        ConfigError: If it is not; near matches are named.
    """
    options = list(options)
    if given not in options:
        raise ConfigError(
            f'`{option}` of {type(loss).__name__} must be one of {listed(options)}, but got {given!r}.{near(given, options)}'
        )
    return str(given)


def positive(loss: object, **numbers: float) -> None:
    """Check that each number is above zero and finite.

    Raises:
        ConfigError: If one is not.
    """
    for option, given in numbers.items():
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < math.inf:
            raise ConfigError(f'`{option}` of {type(loss).__name__} must be a number above 0, but got {given!r}.')


def reduced(each: Tensor, reduction: str) -> Tensor:
    """Return the sum, the mean, the sum over `each.shape[0]` ('batchmean'), or the numbers themselves ('none').

    >>> reduced(torch.ones(2, 3), 'batchmean').item()
    3.0
    """
    if reduction == 'none':
        return each
    if reduction == 'sum':
        return each.sum()
    return each.mean() if reduction == 'mean' else each.sum() / each.shape[0]


# -- labels -------------------------------------------------------------------------------------------------------


def class_labels(loss: object, labels: Any, logits: Tensor) -> Tensor:
    """Return the true class of each sample, shape (n,), on the device of the logits.

    Args:
        loss: The loss that asks, for the message.
        labels: A tensor of classes, shape (n,); of probabilities, shape (n, classes), whose largest is taken; a list of
            integers; or data samples with a `gt_label` (a tensor, or an object with `label` or `score`) or `gt_score`.
        logits: Shape (n, classes).

    Raises:
        ConfigError: If there is not one label for each row of the logits, or a label is not a class of theirs.

    >>> class_labels('DKDLoss', [2, 0], torch.zeros(2, 3))
    tensor([2, 0])
    """
    name = loss if isinstance(loss, str) else type(loss).__name__
    if isinstance(labels, Tensor):
        found = labels
    elif isinstance(labels, Sequence) and labels and not isinstance(labels, str):
        found = torch.stack([_label(name, sample) for sample in labels])
    else:
        raise ConfigError(
            f'{name} needs the true classes: a tensor of shape (n,) or a list of data samples with a `gt_label`, but got '
            f'{type(labels).__name__ if labels is not None else None}.'
        )
    if found.is_floating_point() and found.ndim == 2 and found.shape[1] > 1:
        found = found.argmax(1)
    found = found.to(logits.device)
    if found.is_floating_point() or found.numel() != len(logits):
        raise ConfigError(
            f'{name} needs one whole number for each of the {len(logits)} rows of the logits, but got labels of {found.dtype} '
            f'and shape {tuple(found.shape)}.'
        )
    found = found.reshape(-1).long()
    return indices(name, 'labels', found, logits.shape[1], 'the classes of the logits')


def indices(loss: str, what: str, given: Tensor, size: int, meaning: str) -> Tensor:
    """Return `given` if every entry is from 0 to `size` - 1.

    Raises:
        ConfigError: If one is not. Without the check an accelerator would stop at an assertion that nothing can catch.
    """
    # A compiled graph would be cut here, and whoever compiles has run the loss before.
    if not torch.compiler.is_compiling() and given.numel():
        low, high = torch.stack(given.aminmax()).tolist()
        if low < 0 or high >= size:
            raise ConfigError(f'{loss}: {what} must be from 0 to {size - 1} ({meaning}), but got {low if low < 0 else high}.')
    return given


def _label(name: str, sample: Any) -> Tensor:
    if isinstance(sample, (int, Tensor)) and not isinstance(sample, bool):
        return torch.as_tensor(sample).reshape(-1)[0] if not _soft(sample) else torch.as_tensor(sample).argmax()
    given = getattr(sample, 'gt_label', None)
    if given is None:
        given = getattr(sample, 'gt_score', None)
    for part in ('label', 'score'):
        if getattr(given, part, None) is not None:
            given = getattr(given, part)
            break
    if not isinstance(given, (int, Tensor)):
        raise ConfigError(
            f'{name} needs the true classes, but a data sample of type {type(sample).__name__} has no `gt_label` with one.'
        )
    return _label(name, given)


def _soft(sample: Any) -> bool:
    return isinstance(sample, Tensor) and sample.is_floating_point() and sample.numel() > 1
