"""Models of timm by name: built with near matches for unknown names, and as architectures of configs.

timm, Ross Wightman's PyTorch Image Models: https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn

from strop.architectures.conv_module import Cfg
from strop.errors import ConfigError, ModeError, near, try_import
from strop.registry import MODELS, TIMM_MODELS

_MODES = ('loss', 'tensor', 'predict')


def create_timm(model_name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a model of timm.

    Args:
        model_name: Its name, with or without the tag of its weights: `'resnet18'`, `'resnet18.a1_in1k'`.
        pretrained: Whether to start from timm's weights, which are fetched from the Hugging Face hub once.
        kwargs: What `timm.create_model` takes besides: `num_classes`, `in_chans`, `drop_path_rate`, `checkpoint_path`, ...

    Raises:
        MissingDependencyError: If timm is not installed.
        ConfigError: If timm has no such model, it does not take the arguments, or its weights cannot be fetched.

    >>> create_timm('resnet18', num_classes=10).num_classes
    10
    """
    timm = try_import('timm', 'timm')
    if not isinstance(model_name, str):
        raise ConfigError(f"`model_name` is the name of a model of timm, such as 'resnet18', but got {model_name!r}.")
    if ':' not in model_name and not timm.is_model(model_name):
        hint = near(model_name.partition('.')[0], timm.list_models())
        raise ConfigError(
            f'timm {timm.__version__} has no model {model_name!r}.{hint} `timm.list_models("*word*")` lists them.'
        )
    try:
        model: nn.Module = timm.create_model(model_name, pretrained=pretrained, **kwargs)
    except Exception as error:
        # The hub's client, timm and the model itself raise errors of many kinds.
        told = f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}'
        if pretrained or ':' in model_name:
            raise ConfigError(
                f'timm cannot give {model_name!r} with its weights ({told}). Without a network: fetch them once where there is '
                "one and take the cache along (HF_HOME), or give a file by checkpoint_path='model.safetensors' and "
                'pretrained=False.'
            ) from error
        raise ConfigError(f'timm cannot build {model_name!r} with {kwargs}: {told}.') from error
    return model


@TIMM_MODELS.register_module()
@MODELS.register_module()
class TimmModel(BaseModel):
    """A classifier of timm as an architecture: `forward(inputs, data_samples, mode)`.

    In a config, `dict(type='TimmModel', model_name='resnet18')`, or `type='timm.TimmModel'`.

    Args:
        model_name: Name of the model, which is kept as `model`.
        pretrained: Whether to start from timm's weights.
        head: Config or module that makes losses and predictions of logits; a `ClsHead` with cross-entropy by default.
        data_preprocessor: Config or module; `'pretrained'` normalises bytes as the model's weights want it. A
            `ClsDataPreprocessor` that normalises nothing by default.
        init_cfg: MMEngine's initialisation config, such as `dict(type='Pretrained', checkpoint='file.pth')`. timm has
            initialised the model already, so nothing happens without it.
        kwargs: Arguments of `create_timm`.

    Raises:
        MissingDependencyError: If timm is not installed.
        ConfigError: As `create_timm`.

    >>> model = TimmModel('resnet10t', num_classes=4)
    >>> images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 3])
    >>> sorted(model(images, labels, mode='loss')), model(images).shape, len(model(images, mode='predict'))
    (['loss'], torch.Size([2, 4]), 2)
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool = False,
        head: Cfg | nn.Module | None = None,
        data_preprocessor: Cfg | nn.Module | str | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
        **kwargs: Any,
    ) -> None:
        model = create_timm(model_name, pretrained, **kwargs)
        if isinstance(data_preprocessor, str):
            data_preprocessor = normalisation_of(model, data_preprocessor)
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build({'type': 'ClsDataPreprocessor', **(data_preprocessor or {})})
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.model = model
        self.head: Any = head if isinstance(head, nn.Module) else MODELS.build({'type': 'ClsHead', **(head or {})})

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """What timm knows of the model: `input_size`, `mean`, `std`, `crop_pct`, ..."""
        return getattr(self.model, 'default_cfg', None) or {}

    def init_weights(self) -> None:
        """Initialise by `init_cfg` only: timm's own `init_weights` would throw pretrained weights away."""
        self.model.is_init = True  # type: ignore[assignment]
        try:
            super().init_weights()
        finally:
            del self.model.is_init

    def forward(self, inputs: torch.Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Run the model.

        Args:
            inputs: Shape `(batch, channels, height, width)`.
            data_samples: A tensor of labels, or data samples.
            mode: 'loss' gives a dict of losses, 'tensor' the logits, 'predict' data samples with scores and labels.

        Raises:
            ModeError: If the mode is another.
        """
        if mode not in _MODES:
            raise ModeError(f"mode must be 'loss', 'tensor' or 'predict'; got {mode!r}.{near(mode, _MODES)}")
        logits = self.model(inputs)
        if mode == 'tensor':
            return logits
        return self.head.loss(logits, data_samples) if mode == 'loss' else self.head.predict(logits, data_samples)

    def extract_feat(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what timm's `forward_features` does: a feature map, or tokens."""
        return self.model.forward_features(inputs)  # type: ignore[operator]


def normalisation_of(model: nn.Module, which: str = 'pretrained') -> Cfg:
    """Return the config of a `ClsDataPreprocessor` that normalises bytes as a model of timm wants its inputs.

    Raises:
        ConfigError: If `which` is another word than `'pretrained'`, or timm knows no mean and deviation of the model.

    >>> normalisation_of(create_timm('resnet10t'))['mean']
    [123.675, 116.28, 103.53]
    """
    if which != 'pretrained':
        raise ConfigError(f"`data_preprocessor` is a config, a module or 'pretrained', but got {which!r}.")
    known = getattr(model, 'default_cfg', None) or {}
    if not known.get('mean') or not known.get('std'):
        raise ConfigError('timm knows no mean and std of this model: give data_preprocessor=dict(mean=[...], std=[...]).')
    return {name: [round(255 * value, 3) for value in known[name]] for name in ('mean', 'std')}
