"""`ImageClassifier`: backbone, neck and head on MMEngine's `BaseModel`, for use without MMPretrain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import nn

from strop.architectures.conv_module import Cfg
from strop.data.samples import labels_of, stack_images
from strop.errors import ConfigError, DataError, ModeError, near
from strop.registry import MODELS


@MODELS.register_module()
class ClsDataPreprocessor(BaseDataPreprocessor):
    """Move a batch to the model's device, make it one float tensor, and normalise it.

    Args:
        mean: One number a channel, in units of pixels (0 to 255).
        std: One positive number a channel.
        to_rgb: Reverse the order of three channels, as OpenCV reads them the other way round.
        num_classes: Labels are checked against it, if given.
        non_blocking: Passed to `Tensor.to`.

    Raises:
        ConfigError: If only one of `mean` and `std` is given, they differ in length, or a `std` is not positive.

    >>> preprocess = ClsDataPreprocessor(mean=[100.0], std=[50.0])
    >>> batch = preprocess((torch.full((2, 1, 4, 4), 150, dtype=torch.uint8), torch.tensor([0, 1])))
    >>> batch[0].mean().item(), batch[0].dtype
    (1.0, torch.float32)
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_rgb: bool = False,
        num_classes: int | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking)
        if (mean is None) != (std is None):
            raise ConfigError(f'mean and std are given together or not at all; got mean={mean!r} and std={std!r}.')
        if mean is not None and std is not None:
            if len(mean) != len(std) or not mean or min(std) <= 0:
                raise ConfigError(f'mean and std need one number a channel, std above 0; got mean={mean!r}, std={std!r}.')
            self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
            self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.normalises = mean is not None
        self.to_rgb = to_rgb
        self.num_classes = num_classes

    def forward(self, data: Any, training: bool = False) -> Any:
        """Return the batch in the form in which it came.

        Args:
            data: `(inputs, labels)`, or a dict with `inputs` and perhaps `data_samples`. The inputs are a batch or a list
                of images.
            training: Accepted for MMEngine; both phases are alike.

        Raises:
            DataError: If there are no inputs, their channels do not fit, or a label is no class.
        """
        data = self.cast_data(data)
        if isinstance(data, dict):
            if 'inputs' not in data:
                raise DataError(f"A batch needs 'inputs'; got the keys {sorted(data)}.")
            samples = data.get('data_samples')
            if self.num_classes is not None and samples is not None:
                self._check(samples)
            return {**data, 'inputs': self._floats(data['inputs']), 'data_samples': samples}
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise DataError('A batch is (inputs, labels) or a dict with inputs and data_samples.')
        inputs, labels = data
        labels = labels_of(labels, self.device) if labels is not None else None
        if self.num_classes is not None and labels is not None:
            self._check(labels)
        return self._floats(inputs), labels

    def _check(self, labels: Any) -> None:
        values = labels_of(labels)
        if values.ndim == 1 and values.numel() and not 0 <= int(values.min()) <= int(values.max()) < int(self.num_classes or 0):
            raise DataError(f'Labels must be in range(0, {self.num_classes}); got {int(values.min())} to {int(values.max())}.')

    def _floats(self, inputs: Any) -> torch.Tensor:
        batch = inputs if isinstance(inputs, torch.Tensor) else stack_images(inputs)
        if self.to_rgb and batch.shape[1] == 3:
            batch = batch.flip(1)
        if not batch.is_floating_point():
            batch = batch.float()
        if not self.normalises:
            return batch
        if self.mean.shape[0] not in (1, batch.shape[1]):
            raise DataError(f'mean and std have {self.mean.shape[0]} channels, and the images have {batch.shape[1]}.')
        return (batch - self.mean) / self.std


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A classifier of backbone, neck and head.

    Args:
        backbone: Config or module: images to feature maps (a tensor or a tuple of them).
        neck: Config or module between the two.
        head: Config or module with `forward`, `loss` and `predict`, such as `LinearClsHead`.
        pretrained: Checkpoint to start from.
        train_cfg: Only None or an empty dict; batch augmentations are MMPretrain's.
        data_preprocessor: Config or module; a `ClsDataPreprocessor` by default.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ConfigError: If `train_cfg` asks for something, or `pretrained` and `init_cfg` both name a checkpoint.

    >>> model = ImageClassifier(
    ...     nn.Conv2d(1, 8, 3), dict(type='GlobalAveragePooling'), dict(type='LinearClsHead', num_classes=4, in_channels=8)
    ... )
    >>> images, labels = torch.rand(2, 1, 6, 6), torch.tensor([0, 3])
    >>> sorted(model(images, labels, mode='loss')), model(images).shape, len(model(images, mode='predict'))
    (['loss'], torch.Size([2, 4]), 2)
    """

    def __init__(
        self,
        backbone: Cfg | nn.Module,
        neck: Cfg | nn.Module | None = None,
        head: Cfg | nn.Module | None = None,
        pretrained: str | None = None,
        train_cfg: Cfg | None = None,
        data_preprocessor: Cfg | nn.Module | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        if train_cfg:
            raise ConfigError(
                f'train_cfg of this ImageClassifier must be empty; got {train_cfg!r}. Batch augmentations are in MMPretrain: '
                "install it and use type='mmpretrain.ImageClassifier'."
            )
        if pretrained is not None:
            if init_cfg is not None:
                raise ConfigError(f'Give either pretrained or init_cfg, not both; got {pretrained!r} and {init_cfg!r}.')
            init_cfg = {'type': 'Pretrained', 'checkpoint': pretrained}
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build({'type': 'ClsDataPreprocessor', **(data_preprocessor or {})})
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = _built(backbone)
        if neck is not None:
            self.neck = _built(neck)
        if head is not None:
            self.head = _built(head)

    @property
    def with_neck(self) -> bool:
        """Whether there is a neck."""
        return getattr(self, 'neck', None) is not None

    @property
    def with_head(self) -> bool:
        """Whether there is a head."""
        return getattr(self, 'head', None) is not None

    def forward(self, inputs: torch.Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Run the classifier.

        Args:
            inputs: Shape `(batch, channels, height, width)`.
            data_samples: A tensor of labels, or data samples.
            mode: 'loss' gives a dict of losses, 'tensor' the logits (features without a head), 'predict' data samples with
                scores and labels.

        Raises:
            ModeError: If the mode is another.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'tensor':
            feats = self.extract_feat(inputs)
            return self.head(feats) if self.with_head else feats
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise ModeError(f"mode must be 'loss', 'tensor' or 'predict'; got {mode!r}.{near(mode, ('loss', 'tensor', 'predict'))}")

    def extract_feat(self, inputs: torch.Tensor, stage: str = 'neck') -> Any:
        """Return features.

        Args:
            inputs: Shape `(batch, channels, height, width)`.
            stage: After the 'backbone', after the 'neck', or 'pre_logits', what the last layer of the head receives.

        Raises:
            ConfigError: If the stage is another, or there is no head to ask.
        """
        stages = ('backbone', 'neck', 'pre_logits')
        if stage not in stages:
            raise ConfigError(f'stage must be one of {stages}; got {stage!r}.{near(stage, stages)}')
        feats = self.backbone(inputs)
        if stage == 'backbone':
            return feats
        if self.with_neck:
            feats = self.neck(feats)
        return self._head().pre_logits(feats) if stage == 'pre_logits' else feats

    def loss(self, inputs: torch.Tensor, data_samples: Any) -> dict[str, torch.Tensor]:
        """Return the losses of a batch."""
        return self._head().loss(self.extract_feat(inputs), data_samples)

    def predict(self, inputs: torch.Tensor, data_samples: Any = None, **kwargs: Any) -> list[Any]:
        """Return one data sample an image, with scores and label."""
        return self._head().predict(self.extract_feat(inputs), data_samples, **kwargs)

    def _head(self) -> Any:
        if not self.with_head:
            raise ConfigError("This needs a head, such as head=dict(type='LinearClsHead', num_classes=10, in_channels=1024).")
        return self.head


@MODELS.register_module()
class SearchableImageClassifier(ImageClassifier):
    """MMRazor's name of an `ImageClassifier` with a searchable backbone.

    Args:
        args: As of `ImageClassifier`.
        input_resizer_cfg: Only None: the size of the images is no decision here.
        connect_head: Accepted and without effect: a head follows the widths of its backbone by itself, since the whole model
            is traced.
        kwargs: As of `ImageClassifier`.

    Raises:
        ConfigError: If `input_resizer_cfg` asks for something.

    >>> SearchableImageClassifier(nn.Conv2d(1, 8, 3), connect_head=None).with_head
    False
    """

    def __init__(
        self, *args: Any, input_resizer_cfg: Cfg | None = None, connect_head: Cfg | None = None, **kwargs: Any
    ) -> None:
        if input_resizer_cfg:
            raise ConfigError(
                f'`input_resizer_cfg` is not supported yet; got {input_resizer_cfg!r}. The images have one size, that of the '
                'pipeline of the data. Leave it out.'
            )
        super().__init__(*args, **kwargs)


def _built(part: Cfg | nn.Module) -> nn.Module:
    return part if isinstance(part, nn.Module) else MODELS.build(part)
