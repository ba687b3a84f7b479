"""Hooks: subnets written while training, resources logged, and a picture of what was sampled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.hooks import Hook
from mmengine.hooks import NaiveVisualizationHook as _NaiveVisualizationHook
from mmengine.visualization import Visualizer

from strop.engine.scoring import ResourceMeter, mutator_of, sample_arguments, sample_batch
from strop.engine.train_loop import unwrapped
from strop.errors import ConfigError, NotDecidedError
from strop.estimators import count
from strop.mutables import Subnet, Weights, dump_subnet
from strop.registry import HOOKS


def current_or_sampled(mutator: Any) -> Subnet:
    """Return the current subnet of a mutator, or a fresh draw where nothing was decided yet.

    A differentiable mutator mixes all subnets in search; what counts of it is the best one.
    """
    if callable(best := getattr(mutator, 'best_subnet', None)):
        return best()
    try:
        return mutator.current_subnet()
    except NotDecidedError:
        return mutator.space.subnet(mutator.sample_subnet())


class _Periodic(Hook):
    """A hook that acts every `interval` epochs or iterations, and at the end if `save_last`."""

    def __init__(self, interval: int, by_epoch: bool, save_last: bool) -> None:
        if not isinstance(interval, int):
            raise ConfigError(f'`interval` must be an integer (-1 for never), but got {interval!r}.')
        self.interval = interval
        self.by_epoch = by_epoch
        self.save_last = save_last

    def after_train_epoch(self, runner: Any) -> None:
        """Act at the end of an epoch where it is due."""
        if self.by_epoch and (
            self.every_n_epochs(runner, self.interval) or (self.save_last and self.is_last_train_epoch(runner))
        ):
            self.act(runner, runner.epoch + 1, 'epoch')

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Act after an iteration where it is due."""
        if not self.by_epoch and (
            self.every_n_train_iters(runner, self.interval) or (self.save_last and self.is_last_train_iter(runner))
        ):
            self.act(runner, runner.iter + 1, 'iter')

    def act(self, runner: Any, number: int, unit: str) -> None:
        """Do the hook's work."""
        raise ConfigError(f'{type(self).__name__} must define act().')


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's hook that writes checkpoints; the oldest of those to keep goes only when the new one is written."""

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: Any) -> None:
        outdated = None
        if 0 < self.max_keep_ckpts == len(self.keep_ckpt_ids) and self.keep_ckpt_ids[-1] != step:
            outdated = self.keep_ckpt_ids.popleft()
        super()._save_checkpoint_with_step(runner, step, meta)
        if outdated is not None and is_main_process():
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # as DeepSpeed writes them
                self.file_backend.rmtree(path)


@HOOKS.register_module()
class DumpSubnetHook(_Periodic):
    """Write the current subnet to `subnet_epoch_N.yaml` (or `subnet_iter_N.yaml`).

    Args:
        interval: Every so many epochs or iterations; -1 for never but the last.
        by_epoch: Count epochs, not iterations.
        out_dir: Folder of the files; the work directory by default.
        max_keep_subnets: How many files are kept, the latest; -1 for all.
        save_last: Write one at the end in any case.
        file_client_args: Accepted for MMRazor's configs; files are local.
    """

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        out_dir: str | None = None,
        max_keep_subnets: int = -1,
        save_last: bool = True,
        file_client_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(interval, by_epoch, save_last)
        self.out_dir = out_dir
        self.max_keep_subnets = max_keep_subnets

    @master_only
    def act(self, runner: Any, number: int, unit: str) -> None:
        """Write the subnet and remove files beyond the number to keep."""
        folder = Path(self.out_dir or runner.work_dir)
        dump_subnet(current_or_sampled(mutator_of(unwrapped(runner.model))), folder / f'subnet_{unit}_{number}.yaml')
        if self.max_keep_subnets > 0:
            files = sorted(folder.glob(f'subnet_{unit}_*.yaml'), key=lambda path: int(path.stem.rsplit('_', 1)[1]))
            for path in files[: -self.max_keep_subnets]:
                path.unlink()


@HOOKS.register_module()
class DropPathProbHook(Hook):
    """Raise the probability with which paths are dropped, evenly from 0 to `max_prob` over the training.

    It goes to every part of the model that has a method `set_drop_path(prob)`, such as `DartsBackbone`.

    Args:
        max_prob: The probability at the end.
        interval: Set it every so many iterations; -1 for once an epoch.
        by_epoch: Accepted for MMRazor's configs.

    Raises:
        ConfigError: If `max_prob` is not within [0, 1).
    """

    def __init__(self, max_prob: float, interval: int = -1, by_epoch: bool = True) -> None:
        if not 0 <= max_prob < 1:
            raise ConfigError(f'`max_prob` is a probability in [0, 1), but got {max_prob!r}.')
        self.max_prob = max_prob
        self.interval = interval
        self._since: int | None = None

    def before_train(self, runner: Any) -> None:
        """Say so where nothing can be dropped."""
        self._since = None
        if not self._targets(runner):
            raise ConfigError(
                'DropPathProbHook found no part of the model with set_drop_path(); it goes with a backbone such as '
                'DartsBackbone.'
            )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Set the probability where it is due: it depends on the iteration alone, so that resumed runs have the same."""
        period = self.interval if self.interval > 0 else len(runner.train_dataloader)
        since = runner.iter // period * period
        if since != self._since:
            self._since = since
            for part in self._targets(runner):
                part.set_drop_path(self.max_prob * since / runner.max_iters)

    def _targets(self, runner: Any) -> list[Any]:
        return [part for part in unwrapped(runner.model).modules() if callable(getattr(part, 'set_drop_path', None))]


@HOOKS.register_module()
class EstimateResourcesHook(_Periodic):
    """Log the MACs and parameters (millions) of the current subnet, or of the model where nothing is to decide.

    Args:
        interval: Every so many epochs or iterations; -1 for never.
        by_epoch: Count epochs, not iterations.
        estimator_cfg: MMRazor's estimator config; `input_shape` is used, else a batch of the training data.
    """

    def __init__(self, interval: int = -1, by_epoch: bool = True, estimator_cfg: Mapping[str, Any] | None = None) -> None:
        super().__init__(interval, by_epoch, save_last=False)
        self.estimator_cfg = estimator_cfg
        self._meter: ResourceMeter | None = None

    @master_only
    def act(self, runner: Any, number: int, unit: str) -> None:
        """Estimate, log, and pass on to the visualizer."""
        algorithm = unwrapped(runner.model)
        if getattr(algorithm, 'mutator', None) is None:
            inputs = sample_arguments(runner, runner.train_dataloader)
            counted = count(getattr(algorithm, 'architecture', algorithm), *inputs)
            resources = {'flops': counted.macs / 1e6, 'params': counted.params / 1e6}
        else:
            if self._meter is None:
                self._meter = ResourceMeter(algorithm, sample_batch(runner, runner.train_dataloader), self.estimator_cfg)
            resources = self._meter.measure(current_or_sampled(algorithm.mutator))
        runner.logger.info(f'{unit} {number}: ' + ', '.join(f'{name} {value:.4g} M' for name, value in resources.items()))
        runner.visualizer.add_scalars({f'subnet/{name}': value for name, value in resources.items()}, step=runner.iter)


@HOOKS.register_module()
class SubnetVisualizationHook(_Periodic):
    """Draw how often each alternative of each decision was taken since the last picture.

    One row for each decision, one cell for each alternative, white for always and black for never; given to the
    runner's visualizer as the image `sampled_choices`.

    Args:
        interval: Every so many epochs or iterations.
        by_epoch: Count epochs, not iterations.
        cell: Side of a cell in pixels.
    """

    def __init__(self, interval: int = 1, by_epoch: bool = True, cell: int = 12) -> None:
        super().__init__(interval, by_epoch, save_last=False)
        self.cell = cell
        self.counts: dict[str, np.ndarray] = {}

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Count the current subnet's choices."""
        mutator = mutator_of(unwrapped(runner.model))
        subnet = current_or_sampled(mutator)
        for key, choice in subnet.choices.items():
            counts = self.counts.setdefault(key, np.zeros(len(mutator.space[key])))
            if isinstance(choice, Weights):
                counts += np.abs(choice)
            else:
                counts[list(choice)] += 1
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def picture(self) -> np.ndarray:
        """Return the picture, shape (decisions * cell, alternatives * cell, 3), dtype uint8."""
        width = max(len(counts) for counts in self.counts.values())
        rows = [np.pad(counts / max(counts.sum(), 1), (0, width - len(counts))) for counts in self.counts.values()]
        gray = torch.tensor(np.stack(rows)).repeat_interleave(self.cell, 0).repeat_interleave(self.cell, 1)
        return np.repeat((gray.numpy()[..., None] * 255).round().astype(np.uint8), 3, axis=2)

    @master_only
    def act(self, runner: Any, number: int, unit: str) -> None:
        """Give the picture to the visualizer and start counting anew."""
        if self.counts:
            runner.visualizer.add_image('sampled_choices', self.picture(), step=number)
            self.counts.clear()


@HOOKS.register_module()
class NaiveVisualizationHook(_NaiveVisualizationHook):
    """Give the images of validation and test, with true and predicted labels, to the runner's visualizer.

    MMEngine's hook of this name expects batches in a form that its own loaders no longer give, so it fails on any
    batch of `inputs` and `data_samples`; its arguments (`interval`, `draw_gt`, `draw_pred`) are the same. A visualizer
    with an `add_datasample` of its own is left to draw; MMEngine's plain one gets the labels written into the image.
    """

    #: Images are enlarged by a whole factor to at least this many pixels, or the labels could not be read.
    side = 96

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show the images of a validation batch."""
        self._show(runner, 'val', batch_idx, data_batch, outputs)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show the images of a test batch."""
        self._show(runner, 'test', batch_idx, data_batch, outputs)

    @master_only
    def _show(self, runner: Any, phase: str, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if not self.every_n_inner_iters(batch_idx, self._interval) or outputs is None:
            return
        images = data_batch['inputs'] if isinstance(data_batch, Mapping) else data_batch[0]
        for index, (image, output) in enumerate(zip(images, outputs)):
            name = Path(str(_field(output, 'img_path') or f'{phase}_{batch_idx}_{index}')).name
            picture = as_picture(image, self.side)
            if type(runner.visualizer).add_datasample is not Visualizer.add_datasample:
                runner.visualizer.add_datasample(name, picture, output, draw_gt=self.draw_gt, draw_pred=self.draw_pred)
                continue
            words = [f'true {_label(output, "gt")}'] * self.draw_gt + [f'predicted {_label(output, "pred")}'] * self.draw_pred
            runner.visualizer.set_image(picture)
            runner.visualizer.draw_texts('\n'.join(words), torch.tensor([2, 2]), font_sizes=8, colors='r')
            runner.visualizer.add_image(name, runner.visualizer.get_image(), step=runner.iter)


def _field(sample: Any, name: str) -> Any:
    return sample.get(name) if hasattr(sample, 'get') else getattr(sample, name, None)


def _label(sample: Any, kind: str) -> Any:
    label = _field(sample, f'{kind}_label')
    if label is None and (score := _field(sample, f'{kind}_score')) is not None:
        label = torch.as_tensor(score).argmax()
    return 'unknown' if label is None else int(label)


def as_picture(image: torch.Tensor, side: int) -> np.ndarray:
    """Return an image of shape (channels, height, width) as bytes of shape (height, width, 3), perhaps enlarged."""
    values = image.detach().cpu().float()
    if image.is_floating_point():
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp(min=1e-12) * 255
    picture = values.round().byte().permute(1, 2, 0).numpy()
    factor = max(1, -(-side // min(picture.shape[:2])))
    return np.repeat(picture[..., :3], 1 if picture.shape[-1] >= 3 else 3, axis=2).repeat(factor, 0).repeat(factor, 1).copy()
