"""Any `nn.Module` as an architecture: with a loss function and a metric it trains like an OpenMMLab model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, BaseModule
from torch import nn

from strop.errors import ComponentTypeError, ConfigError, ModeError
from strop.registry import METRICS, MODELS

MODES = ('loss', 'tensor', 'predict')


def check_mode(mode: str) -> None:
    """Raise a `ModeError` unless `mode` is one of loss, tensor, predict."""
    if mode not in MODES:
        raise ModeError(f"`mode` must be 'loss', 'tensor' or 'predict', but got {mode!r}.")


@MODELS.register_module()
class PlainArchitecture(BaseModel):
    """Wrap a module whose forward knows only inputs.

    Batches are `(inputs, labels)`, as a plain `DataLoader` gives them, or a mapping with the keys `inputs` and
    `data_samples`. Inputs that are a mapping are passed as keyword arguments.

    Args:
        module: The module, or its config.
        loss: `loss(outputs, labels) -> Tensor` or a dict of tensors; cross-entropy by default.
        metric: `metric(outputs, labels) -> float` or a dict of floats, used by validation where no evaluator is given.

    >>> architecture = PlainArchitecture(nn.Linear(4, 2))
    >>> losses = architecture(torch.zeros(3, 4), torch.tensor([0, 1, 0]), mode='loss')
    >>> sorted(losses)
    ['loss']
    """

    def __init__(
        self,
        module: nn.Module | Mapping[str, Any],
        loss: Callable[[Any, Any], Any] | Mapping[str, Any] | None = None,
        metric: Callable[[Any, Any], Any] | None = None,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(data_preprocessor, Mapping):
            data_preprocessor = MODELS.build({'type': 'BaseDataPreprocessor', **data_preprocessor})
        super().__init__(data_preprocessor, init_cfg)
        self._built = isinstance(module, Mapping)
        self.module = MODELS.build(dict(module)) if isinstance(module, Mapping) else module
        if not isinstance(self.module, nn.Module):
            raise ComponentTypeError(f'`module` must be an nn.Module or its config, but got {type(module).__name__}.')
        self.loss_function: Callable[[Any, Any], Any] = (
            nn.CrossEntropyLoss() if loss is None else MODELS.build(dict(loss)) if isinstance(loss, Mapping) else loss
        )
        if not callable(self.loss_function):
            raise ComponentTypeError(f'`loss` must be a function of (outputs, labels), but got {type(loss).__name__}.')
        self.metric = metric

    def init_weights(self) -> None:
        """Initialize by `init_cfg`; a module that was given keeps its weights, unless it is an MMEngine `BaseModule`.

        Models of timm and transformers have an `init_weights` that would replace pretrained weights.
        """
        keeps = not self._built and not isinstance(self.module, BaseModule) and 'is_init' not in vars(self.module)
        if keeps:
            self.module.is_init = True  # type: ignore[assignment]
        try:
            super().init_weights()
        finally:
            if keeps:
                del self.module.is_init

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Return losses, raw outputs, or one dict of `pred_score` and `gt_label` for each sample.

        Raises:
            ModeError: If the mode is unknown.
            ConfigError: If labels are missing, or predictions do not have a row for each sample.
        """
        check_mode(mode)
        if isinstance(inputs, tuple) and isinstance(data_samples, tuple) and len(inputs) == len(data_samples):
            # Samples that are tuples, as MMEngine's default collate function puts them together.
            inputs, data_samples = list(inputs), list(data_samples)
        inputs, data_samples = _stacked(inputs), _stacked(data_samples)
        outputs = self.module(**inputs) if isinstance(inputs, Mapping) else self.module(inputs)
        if mode == 'tensor':
            return outputs
        if mode == 'predict':
            self._check_rows(outputs, data_samples)
            labels = [None] * len(outputs) if data_samples is None else data_samples
            return [{'pred_score': output, 'gt_label': label} for output, label in zip(outputs, labels)]
        if data_samples is None:
            raise ConfigError("mode='loss' needs labels: give batches of (inputs, labels).")
        losses = self.loss_function(outputs, data_samples)
        return losses if isinstance(losses, Mapping) else {'loss': losses}

    def _check_rows(self, outputs: Any, labels: Any) -> None:
        """Raise unless there is one output for each label: a tuple or mapping is of several outputs, not of samples."""
        rows = isinstance(outputs, list) or (isinstance(outputs, torch.Tensor) and outputs.ndim > 0)
        if not rows or (labels is not None and len(outputs) != len(labels)):
            found = (
                f'a tensor of shape {tuple(outputs.shape)}' if isinstance(outputs, torch.Tensor)
                else f'a {type(outputs).__name__} of {len(outputs)}' if hasattr(outputs, '__len__')
                else f'a {type(outputs).__name__}'
            )  # fmt: skip
            of = '' if labels is None else f' for {len(labels)} labels'
            raise ConfigError(
                "mode='predict' needs one tensor with a row for each sample (or a list with an item for each), but the "
                f'{type(self.module).__name__} gave {found}{of}. Wrap it in a module whose forward returns the predictions.'
            )


def _stacked(batch: Any) -> Any:
    """Return a list of tensors or numbers as one tensor: MMEngine's default collate function gives such lists."""
    if isinstance(batch, list) and batch and all(isinstance(item, (torch.Tensor, int, float)) for item in batch):
        return torch.stack([torch.as_tensor(item) for item in batch])
    return batch


@METRICS.register_module()
class FunctionMetric(BaseMetric):
    """A metric made of a function of all outputs and labels.

    Args:
        function: `function(outputs, labels) -> float` or a dict of floats. Both arguments are stacked tensors.
        name: The metric's name where `function` returns one number.

    >>> metric = FunctionMetric(lambda outputs, labels: (outputs.argmax(1) == labels).float().mean().item(), name='hits')
    >>> metric.process({}, [{'pred_score': torch.tensor([0.0, 1.0]), 'gt_label': torch.tensor(1)}])
    >>> metric.evaluate(1)
    {'hits': 1.0}
    """

    def __init__(self, function: Callable[[Any, Any], Any], name: str = 'metric', **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.metric_name = name

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Collect the outputs and labels of one batch."""
        for sample in data_samples:
            label = torch.as_tensor(sample['gt_label'])
            self.results.append((torch.as_tensor(sample['pred_score']).detach().cpu(), label.cpu()))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Apply the function to everything collected."""
        outputs, labels = (torch.stack([result[part] for result in results]) for part in (0, 1))
        value = self.function(outputs, labels)
        return dict(value) if isinstance(value, Mapping) else {self.metric_name: float(value)}
