"""Weights from a checkpoint, compared with the model before they are used, and batch norms recalibrated for a subnet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmengine.runner import Runner
from torch import nn

from strop.cli.console import note
from strop.engine import recalibrate_batch_norms
from strop.engine.pretrained import matching, read_weights
from strop.engine.train_loop import unwrapped
from strop.errors import ConfigError
from strop.randomness import seeded


def check_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Check that a checkpoint has every parameter of a model, in its shape.

    Raises:
        ConfigError: If parameters are missing or of another shape; the message names some.
        UnsafeFileError: If the file would have to be unpickled.
    """
    matching(unwrapped(model), read_weights(path), path, prefixes=('', 'module.'), buffers=False, say=note)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint into a model that it fits; see `check_weights`.

    A checkpoint of the plain model serves an algorithm around it as well, and the other way round.
    """
    target, stored = unwrapped(model), read_weights(path)
    inner = getattr(target, 'architecture', None)
    if isinstance(inner, nn.Module) and not any('architecture.' in name for name in stored):
        target = inner
    target.load_state_dict(matching(target, stored, path, buffers=False, say=note), strict=False)


def calibration_images(config: Any, given: int | None) -> int:
    """Return on how many training images the batch norms of an inherited subnet are recalibrated.

    As given, else as the config's loops do, else 4096; none without training data, or where the algorithm keeps
    batch norms in training mode.
    """
    if given is not None:
        return given
    if config.get('train_dataloader') is None or (config.get('model') or config.get('algorithm') or {}).get('norm_training'):
        return 0
    for name in ('test_cfg', 'train_cfg', 'val_cfg'):
        if 'calibrate_sample_num' in (config.get(name) or {}):
            return max(int(config[name]['calibrate_sample_num']), 0)
    return 4096


def recalibrate(algorithm: nn.Module, config: Any, images: int) -> int:
    """Recalibrate the batch norms of the current subnet on training images of a config; returns how many were used.

    Raises:
        ConfigError: If the config has no training data.
    """
    if config.get('train_dataloader') is None:
        raise ConfigError(
            '--calibrate needs the training data of the config, which has no `train_dataloader`. Give --calibrate 0.'
        )
    seed = (config.get('randomness') or {}).get('seed') or 0
    loader = Runner.build_dataloader(config.train_dataloader, seed=seed)
    preprocess = getattr(algorithm, 'data_preprocessor', None)

    def forward(batch: Any) -> int:
        data = preprocess(batch, False) if preprocess is not None else batch
        inputs = data['inputs'] if isinstance(data, Mapping) else data[0]
        algorithm(inputs, mode='tensor')
        return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)

    with seeded(seed, 'calibration/0'):
        return recalibrate_batch_norms(algorithm, loader, forward, images)


__all__ = ['calibration_images', 'check_weights', 'load_weights', 'recalibrate']
