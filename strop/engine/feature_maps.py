"""Pictures of feature maps while training: what a layer of student or teacher responds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook
from torch import nn

from strop.distill import RecorderManager
from strop.engine.hooks import as_picture
from strop.engine.train_loop import unwrapped
from strop.errors import ConfigError, listed, near
from strop.files import atomic_write
from strop.graph.forward import training_mode_kept
from strop.registry import HOOKS

#: How the channels of a map become one; None shows the strongest ones side by side.
REDUCTIONS = ('pixel_wise_max', 'squeeze_mean', 'select_max', None)

_MAPPING_KEYS = ('recorder', 'record_idx', 'data_idx')


def draw_feature_map(
    feature: torch.Tensor,
    image: np.ndarray | None = None,
    channel_reduction: str | None = 'pixel_wise_max',
    topk: int = 20,
    arrangement: Sequence[int] = (4, 5),
    resize_shape: Sequence[int] | None = None,
    alpha: float = 0.5,
) -> np.ndarray:
    """Draw a feature map in false colours, blue for its smallest and red for its largest value.

    Args:
        feature: The map, shape (channels, height, width).
        image: Picture that it is laid over, bytes of shape (height, width, 3).
        channel_reduction: 'pixel_wise_max' (the largest over channels at each place), 'squeeze_mean' (their mean), 'select_max'
            (the channel with the largest sum), or None for the `topk` channels with the largest sums side by side.
        topk: How many channels are shown.
        arrangement: Rows and columns of them.
        resize_shape: Height and width of the picture (of each channel's); the image's by default.
        alpha: Weight of the image, from 0 to 1.

    Returns:
        Bytes of shape (height, width, 3), red first.

    Raises:
        ConfigError: If the feature is no map, or an option is out of range.

    >>> draw_feature_map(torch.eye(4)[None], resize_shape=(8, 8)).shape
    (8, 8, 3)
    """
    if not isinstance(feature, torch.Tensor) or feature.ndim != 3 or 0 in feature.shape:
        what = tuple(feature.shape) if isinstance(feature, torch.Tensor) else type(feature).__name__
        raise ConfigError(f'A feature map has the shape (channels, height, width), but this one is {what}.')
    if channel_reduction not in REDUCTIONS:
        raise ConfigError(f'`channel_reduction` must be one of {listed(REDUCTIONS)}, but got {channel_reduction!r}.')
    rows, columns = arrangement
    if channel_reduction is None and not 0 < topk <= rows * columns:
        raise ConfigError(f'`topk` must be 1 to {rows * columns}, as many as `arrangement` has places, but got {topk!r}.')
    maps = feature.detach().float().cpu()
    if channel_reduction == 'pixel_wise_max':
        maps = maps.amax(0, keepdim=True)
    elif channel_reduction == 'squeeze_mean':
        maps = maps.mean(0, keepdim=True)
    else:
        strongest = maps.sum((1, 2)).topk(1 if channel_reduction else min(topk, len(maps))).indices
        maps = maps[strongest]
    shape = tuple(resize_shape or (maps.shape[1:] if image is None else image.shape[:2]))
    tiles = [_tile(one, image, shape, alpha) for one in F.interpolate(maps[None], shape, mode='bilinear')[0]]
    if channel_reduction is not None:
        return tiles[0]
    tiles += [np.zeros_like(tiles[0])] * (rows * columns - len(tiles))
    return np.vstack([np.hstack(tiles[row * columns : (row + 1) * columns]) for row in range(rows)])


def _tile(values: torch.Tensor, image: np.ndarray | None, shape: tuple[int, ...], alpha: float) -> np.ndarray:
    low, high = values.min(), values.max()
    heat = ((values - low) / (high - low).clamp(min=1e-12) * 255).round().byte().numpy()
    colours = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    if image is None:
        return colours
    return cv2.addWeighted(cv2.resize(image, shape[::-1]), alpha, colours, 1 - alpha, 0)


@HOOKS.register_module()
class RazorVisualizationHook(Hook):
    """Give pictures of recorded feature maps to the runner's visualizer, before training and after epochs.

    Args:
        recorders: name -> recorder config, for the trained algorithm: sources such as 'backbone.layer4', or
            'teacher.backbone.layer4' for a teacher.
        mappings: Name of the picture -> `dict(recorder=...)`, and perhaps `record_idx` and `data_idx`.
        enabled: Whether anything is done.
        data_idx: Number of the sample (or numbers of samples) of the validation data that is shown; of the training data where
            there is no validation.
        interval: Every so many epochs.
        show: Also open a window.
        wait_time: Seconds that the window stays.
        out_dir: Folder, in the work directory, where pictures are written as well.
        file_client_args: Accepted for MMRazor's configs; files are local.
        is_overlaid: Whether the map is laid over the image.
        visualization_cfg: Options of `draw_feature_map`.
        use_norm: Whether each channel is standardized first.

    Raises:
        ConfigError: If a mapping names no recorder, an option is unknown, or a source is not in the model.

    >>> hook = RazorVisualizationHook(
    ...     recorders=dict(last=dict(type='ModuleOutputs', source='backbone')), mappings=dict(last=dict(recorder='last'))
    ... )
    >>> hook.enabled
    False
    """

    def __init__(
        self,
        recorders: Mapping[str, Any],
        mappings: Mapping[str, Mapping[str, Any]],
        enabled: bool = False,
        data_idx: int | Sequence[int] = 0,
        interval: int = 1,
        show: bool = False,
        wait_time: float = 0.1,
        out_dir: str | None = None,
        file_client_args: Mapping[str, Any] | None = None,
        is_overlaid: bool = True,
        visualization_cfg: Mapping[str, Any] | None = None,
        use_norm: bool = False,
    ) -> None:
        self.enabled = enabled
        self.recorders = RecorderManager(recorders)
        self.mappings = {name: self._checked(name, mapping) for name, mapping in mappings.items()}
        self.samples = [data_idx] if isinstance(data_idx, int) else list(data_idx)
        self.interval = interval
        self.show = show
        self.wait_time = wait_time
        self.out_dir = out_dir
        self.is_overlaid = is_overlaid
        self.use_norm = use_norm
        self.options = dict(visualization_cfg or {})
        # Unknown or impossible options are told now.
        try:
            draw_feature_map(torch.zeros(1, 2, 2), **self.options)
        except TypeError as error:
            raise ConfigError(f'`visualization_cfg`: {error}.') from error

    def _checked(self, name: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
        for key in mapping:
            if key not in _MAPPING_KEYS:
                raise ConfigError(f'Picture {name!r}: unknown key {key!r}.{near(key, _MAPPING_KEYS)}')
        if mapping.get('recorder') not in self.recorders.recorders:
            known = self.recorders.recorders
            raise ConfigError(
                f'Picture {name!r}: there is no recorder {mapping.get("recorder")!r}.{near(mapping.get("recorder"), known)} '
                f'There is {listed(known) or "none"}.'
            )
        return dict(mapping)

    def before_run(self, runner: Any) -> None:
        """Find what is recorded."""
        if self.enabled:
            self.recorders.initialize(unwrapped(runner.model))

    def before_train(self, runner: Any) -> None:
        """Show the features before training."""
        if self.enabled:
            self._show(runner, runner.epoch)

    def after_train_epoch(self, runner: Any) -> None:
        """Show the features after an epoch where it is due."""
        if self.enabled and self.every_n_epochs(runner, self.interval):
            self._show(runner, runner.epoch + 1)

    @master_only
    @torch.no_grad()
    def _show(self, runner: Any, step: int) -> None:
        algorithm = unwrapped(runner.model)
        loader = runner.val_dataloader if runner.val_loop is not None else runner.train_dataloader
        collate = getattr(loader, 'collate_fn', None) or pseudo_collate
        for index in self.samples:
            batch = collate([loader.dataset[index]])
            images = batch['inputs'] if isinstance(batch, Mapping) else batch[0]
            image = as_picture(images[0], 1) if self.is_overlaid else None
            with training_mode_kept(algorithm), self.recorders:
                self._forward(algorithm, batch)
            for name, mapping in self.mappings.items():
                place = {key: value for key, value in mapping.items() if key != 'recorder'}
                feature = self.recorders.get_recorder(mapping['recorder']).get_record_data(**place)
                if not isinstance(feature, torch.Tensor) or feature.ndim != 4:
                    what = tuple(feature.shape) if isinstance(feature, torch.Tensor) else type(feature).__name__
                    raise ConfigError(
                        f'Picture {name!r} needs a feature map of shape (batch, channels, height, width), but its recorder has '
                        f'{what}. Choose a part of it with `data_idx`, or another source.'
                    )
                if self.use_norm:
                    feature = _standardized(feature)
                picture = draw_feature_map(feature[0], image, **self.options)
                self._give(runner, f'{name}_data_idx_{index}', picture, step)
            self.recorders.clear()

    def _forward(self, algorithm: Any, batch: Any) -> None:
        algorithm.eval()
        algorithm.val_step(batch)
        if not any(recorder.source.startswith('teacher.') for recorder in self.recorders.recorders.values()):
            return
        data = algorithm.data_preprocessor(batch, False)
        teachers: Mapping[str, nn.Module] = getattr(algorithm, 'teachers', {})
        for teacher in teachers.values():
            teacher(**data, mode='tensor') if isinstance(data, Mapping) else teacher(*data, mode='tensor')

    def _give(self, runner: Any, name: str, picture: np.ndarray, step: int) -> None:
        runner.visualizer.add_image(name, picture, step=step)
        if self.show:
            runner.visualizer.show(picture, win_name=name, wait_time=self.wait_time)
        if self.out_dir is not None:
            _, coded = cv2.imencode('.png', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            folder = Path(runner.work_dir) / self.out_dir
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / f'{name}_{step}.png', coded.tobytes())


def _standardized(feature: torch.Tensor) -> torch.Tensor:
    """Return maps of shape (batch, channels, height, width) with mean 0 and deviation 1 in each channel."""
    mean, deviation = feature.mean((0, 2, 3), keepdim=True), feature.std((0, 2, 3), keepdim=True)
    return (feature - mean) / (deviation + 1e-6)
