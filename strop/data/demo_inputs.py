"""Inputs for one forward of a model, made from the model itself: what tracing, counting and pruning run it on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import nn

from strop.codebases import check_codebase, codebase_of, current_name
from strop.errors import ConfigError, listed, near
from strop.registry import TASK_UTILS

_SHAPE = (1, 3, 224, 224)


@TASK_UTILS.register_module()
class DefaultDemoInput:
    """Example inputs of a model: zeros for a plain one, a batch with data samples for one of mmpretrain, mmdet or mmseg.

    The images of a batch are noise, normalised by the model's own data preprocessor. Its data samples have what a training
    batch has: sizes of images, and a label, two boxes or a map of classes.

    Args:
        input_shape: Shape of the batch: `(1, 3, 224, 224)` by default.
        training: Whether the data preprocessor is to treat the batch as one for training.
        scope: The codebase whose data samples are made; by default the one that the model's class is from.
        kwargs: More keyword arguments of the forward.

    Raises:
        ConfigError: If the shape or the scope is none.

    >>> DefaultDemoInput((2, 4))(nn.Linear(4, 1).double())
    tensor([[0., 0., 0., 0.],
            [0., 0., 0., 0.]], dtype=torch.float64)
    """

    def __init__(
        self,
        input_shape: Sequence[int] | None = None,
        training: bool | None = False,
        scope: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        shape = _SHAPE if input_shape is None else input_shape
        if not isinstance(shape, (tuple, list, torch.Size)) or not all(type(size) is int and size > 0 for size in shape):
            raise ConfigError(f'`input_shape` must be positive integers such as (1, 3, 224, 224), but got {input_shape!r}.')
        scope = None if scope is None else current_name(scope)
        if scope is not None and scope not in _SAMPLES:
            raise ConfigError(
                f'`scope` must be one of {listed(_SAMPLES)}, whose data samples are known, but got {scope!r}.'
                f'{near(scope, _SAMPLES)} For other models give tensors, or a function of the model that returns its inputs.'
            )
        self.input_shape = tuple(shape)
        self.training = bool(training)
        self.scope = scope
        self.kwargs = dict(kwargs or {})

    def __call__(
        self, model: nn.Module, input_shape: Sequence[int] | None = None, training: bool | None = None
    ) -> torch.Tensor | dict[str, Any]:
        """Return the inputs for `model`: one tensor, or keyword arguments of its forward."""
        return self.get_data(model, input_shape, training)

    def get_data(
        self, model: nn.Module, input_shape: Sequence[int] | None = None, training: bool | None = None
    ) -> torch.Tensor | dict[str, Any]:
        """Return the inputs for `model`: one tensor, or keyword arguments of its forward.

        Args:
            model: A model, or an algorithm around one.
            input_shape: Instead of the shape that was given before.
            training: Instead of the phase that was given before.
        """
        shape = tuple(input_shape or self.input_shape)
        inner = getattr(model, 'architecture', model)
        scope = self.scope or codebase_of(inner)
        if scope is None or len(shape) != 4:
            zeros = _like_parameters(torch.zeros(shape), model)
            return {'inputs': zeros, **self.kwargs} if self.kwargs else zeros
        batch = _batch(scope, inner, shape, self.training if training is None else training)
        return {**batch, **self.kwargs}


def _like_parameters(tensor: torch.Tensor, model: nn.Module) -> torch.Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    return tensor if parameter is None else tensor.to(parameter)


def _batch(scope: str, model: nn.Module, shape: tuple[int, ...], training: bool) -> dict[str, Any]:
    count, _, height, width = shape
    module, name, annotate = _SAMPLES[scope]
    check_codebase(scope, f'A batch of {scope}')
    kind = getattr(importlib.import_module(module), name)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = []
    for number in range(count):
        size = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width))
        sample = kind(metainfo=dict(**size, batch_input_shape=(height, width), scale_factor=(1.0, 1.0), img_id=number))
        annotate(sample, model, height, width)
        samples.append(sample)
    batch: Any = dict(inputs=list(images), data_samples=samples)
    preprocess = getattr(model, 'data_preprocessor', None)
    if preprocess is not None:
        batch = preprocess(batch, training)
    inputs = batch['inputs']
    if not isinstance(inputs, torch.Tensor):
        # MMEngine's plain data preprocessor leaves a list of images a list.
        inputs = torch.stack([image.float() for image in inputs]) / 255
    return {**batch, 'inputs': _like_parameters(inputs, model)}


def _with_label(sample: Any, model: nn.Module, height: int, width: int) -> None:
    sample.set_gt_label(0)


def _with_boxes(sample: Any, model: nn.Module, height: int, width: int) -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.9]]) * torch.tensor([width, height, width, height])
    instances = InstanceData(bboxes=boxes, labels=torch.zeros(2, dtype=torch.long))
    if getattr(model, 'with_mask', False):
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
        instances.masks = importlib.import_module('mmdet.structures.mask').BitmapMasks(masks.numpy(), height, width)
    sample.gt_instances = instances


def _with_map(sample: Any, model: nn.Module, height: int, width: int) -> None:
    head = getattr(model, 'decode_head', None)
    classes = getattr(head[-1] if isinstance(head, nn.ModuleList) else head, 'num_classes', 1) or 1
    rows = torch.arange(height).view(1, -1, 1).expand(1, height, width)
    sample.gt_sem_seg = PixelData(data=rows * classes // height)


# Codebase -> module and name of its data samples, and what gives one of them an annotation.
_SAMPLES: dict[str, tuple[str, str, Callable[[Any, nn.Module, int, int], None]]] = {
    'mmpretrain': ('mmpretrain.structures', 'DataSample', _with_label),
    'mmdet': ('mmdet.structures', 'DetDataSample', _with_boxes),
    'mmseg': ('mmseg.structures', 'SegDataSample', _with_map),
}


class _OfOneCodebase(DefaultDemoInput):
    """Example inputs with the data samples of one codebase, whatever the model's class."""

    codebase: str | None = None

    def __init__(
        self,
        input_shape: Sequence[int] | None = None,
        training: bool | None = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(input_shape, training, self.codebase, kwargs)


@TASK_UTILS.register_module()
class DefaultMMDemoInput(_OfOneCodebase):
    """Example inputs of any model of OpenMMLab; see `DefaultDemoInput`."""


@TASK_UTILS.register_module()
class DefaultMMClsDemoInput(_OfOneCodebase):
    """Example inputs with mmpretrain's data samples; see `DefaultDemoInput`."""

    codebase = 'mmpretrain'


@TASK_UTILS.register_module()
class DefaultMMDetDemoInput(_OfOneCodebase):
    """Example inputs with mmdet's data samples; see `DefaultDemoInput`."""

    codebase = 'mmdet'


@TASK_UTILS.register_module()
class DefaultMMSegDemoInput(_OfOneCodebase):
    """Example inputs with mmseg's data samples; see `DefaultDemoInput`."""

    codebase = 'mmseg'
