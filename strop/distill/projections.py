"""Which connector makes a student's feature meet a teacher's, told by their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def connector_hint(student: Tensor, teacher: Tensor) -> str:
    """Return a sentence that names the connector which would make the shapes meet, or an empty string.

    >>> import torch
    >>> connector_hint(torch.zeros(2, 8), torch.zeros(2, 16))
    " The connector dict(type='TorchNNConnector', module_name='Linear', module_args=dict(in_features=8, ... make them meet."
    """
    configs = projection(student.shape, teacher.shape)
    if not configs:
        return ''
    words = ' and then '.join(_written(config) for config in configs)
    return f' The connector{"s" * (len(configs) > 1)} {words} would make them meet.'


def projection(student: Sequence[int], teacher: Sequence[int]) -> list[dict[str, Any]] | None:
    """Return the configs of connectors that take a student's feature to the shape of a teacher's, in order.

    Feature maps `(batch, channels, height, width)` get a 1 x 1 convolution and are interpolated, vectors and tokens
    `(..., channels)` get a linear layer.

    Returns:
        The configs; none are needed where the shapes are the same. None if no connector would do.

    >>> [config['type'] for config in projection((2, 8, 4, 4), (2, 16, 8, 8))]
    ['ConvModuleConnector', 'TorchFunctionalConnector']
    >>> projection((2, 8), (2, 8)), projection((2, 8), (2, 8, 4, 4))
    ([], None)
    """
    student, teacher = tuple(student), tuple(teacher)
    if len(student) != len(teacher) or len(student) < 2 or student[0] != teacher[0]:
        return None
    configs: list[dict[str, Any]] = []
    if len(student) == 4:
        if student[1] != teacher[1]:
            configs.append(dict(type='ConvModuleConnector', in_channel=student[1], out_channel=teacher[1], act_cfg=None))
        if student[2:] != teacher[2:]:
            sizes = dict(size=teacher[2:], mode='bilinear', align_corners=False)
            configs.append(dict(type='TorchFunctionalConnector', function_name='interpolate', func_args=sizes))
        return configs
    if student[1:-1] != teacher[1:-1]:
        return None
    if student[-1] != teacher[-1]:
        widths = dict(in_features=student[-1], out_features=teacher[-1])
        configs.append(dict(type='TorchNNConnector', module_name='Linear', module_args=widths))
    return configs


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={_written(item)}" for key, item in value.items())})'
    return repr(value)
