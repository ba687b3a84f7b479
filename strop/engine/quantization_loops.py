"""Loops that train with fake quantizers, calibrate them, and validate with and without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.runner import TestLoop
from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu
from torch.utils.data import DataLoader

from strop.engine.distill_validation import CombinedLoop
from strop.engine.train_loop import EpochBasedTrainLoop, seed_data, unwrapped
from strop.errors import ConfigError, DataError
from strop.files import atomic_path
from strop.graph.forward import training_mode_kept
from strop.quantization import apply_schedule, calibrating, fake_quantizers, float_again
from strop.quantization.qat import check_calibrated, check_looks
from strop.registry import LOOPS


def _check_quantized(runner: Any, loop: str) -> None:
    if not fake_quantizers(runner.model):
        raise ConfigError(
            f'{loop} is for models with fake quantizers, but {type(unwrapped(runner.model)).__name__} has none. Take '
            'MMArchitectureQuant, or prepare the model by strop.quantization.prepare_qat.'
        )


def _check_begin(**begins: Any) -> None:
    for name, value in begins.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < -1 or value == 0:
            raise ConfigError(f'`{name}` must be an epoch, counted from 1, or -1 for never, but got {value!r}.')


@LOOPS.register_module()
class QATEpochBasedLoop(EpochBasedTrainLoop):
    """Training by epochs, in which the switches of fake quantizers and batch norms are set by the epoch.

    They are a function of the epoch alone, so that a resumed run, also inside an epoch, repeats an unbroken one.

    Args:
        runner: MMEngine's runner.
        dataloader: Training data.
        max_epochs: Epochs.
        val_begin: First epoch, from 1, that is validated.
        val_interval: Epochs between validations.
        disable_observer_begin: First epoch, from 1, in which observed steps stay as they are; -1 for never.
        freeze_bn_begin: First epoch, from 1, in which statistics of batch norms stay as they are; -1 for never.
        dynamic_intervals: MMEngine's other intervals of validation.
        fake_quant_begin: First epoch, from 1, that rounds; before it, observers look at the float model. -1 for all.

    Raises:
        ConfigError: If an epoch is none, or the model has no fake quantizers.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader[Any] | dict[str, Any],
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
        disable_observer_begin: int = -1,
        freeze_bn_begin: int = -1,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
        fake_quant_begin: int = -1,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval, dynamic_intervals)
        self.begins = dict(
            disable_observer_begin=disable_observer_begin, freeze_bn_begin=freeze_bn_begin, fake_quant_begin=fake_quant_begin
        )
        _check_begin(**self.begins)
        self._prepared = -1

    def run(self) -> Any:
        """Train."""
        _check_quantized(self.runner, type(self).__name__)
        return super().run()

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one step; the first of an epoch sets the switches."""
        if self._prepared != self._epoch:
            self._prepared = self._epoch
            apply_schedule(self.runner.model, self._epoch + 1, **self.begins)
        super().run_iter(idx, data_batch)


@LOOPS.register_module()
class LSQEpochBasedLoop(QATEpochBasedLoop):
    """`QATEpochBasedLoop` for learned steps: they begin with the first batch and are never switched off.

    Args:
        runner: MMEngine's runner.
        dataloader: Training data.
        max_epochs: Epochs.
        val_begin: First epoch, from 1, that is validated.
        val_interval: Epochs between validations.
        freeze_bn_begin: First epoch, from 1, in which statistics of batch norms stay as they are; -1 for never.
        dynamic_intervals: MMEngine's other intervals of validation.

    Raises:
        ConfigError: If an epoch is none, or the model has no fake quantizers.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader[Any] | dict[str, Any],
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
        freeze_bn_begin: int = -1,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(
            runner,
            dataloader,
            max_epochs,
            val_begin,
            val_interval,
            freeze_bn_begin=freeze_bn_begin,
            dynamic_intervals=dynamic_intervals,
        )


@LOOPS.register_module()
class QATValLoop(CombinedLoop):
    """Validate with fake quantizers, metrics prefixed `qat.`, and the same weights without them, prefixed `original.`.

    Args:
        runner: MMEngine's runner.
        dataloader: Validation data.
        evaluator: Evaluator of the metrics.
        fp16: Validate under autocast.

    Raises:
        ConfigError: If the model has no fake quantizers.
    """

    def metrics(self, algorithm: Any) -> dict[str, float]:
        """Return the metrics with and without fake quantizers."""
        _check_quantized(self.runner, type(self).__name__)
        found = {f'qat.{name}': value for name, value in self.evaluated(algorithm).items()}
        with float_again(algorithm):
            found.update({f'original.{name}': value for name, value in self.evaluated(algorithm).items()})
        return found


@LOOPS.register_module()
class PTQLoop(TestLoop):
    """Find the steps of fake quantizers from some batches, write `model_ptq.pth`, and test the quantized model.

    Args:
        runner: MMEngine's runner.
        dataloader: Test data.
        evaluator: Evaluator of the metrics.
        calibrate_dataloader: Data whose inputs the quantizers look at; never that of the test.
        calibrate_steps: So many of its batches are used.
        fp16: Test under autocast.
        only_val: Test a calibrated model as it was loaded.

    Raises:
        ConfigError: If the model has no fake quantizers, all of them keep the steps that they have, or `calibrate_steps` is no
            positive number.
        DataError: If there is no batch, or a layer was not reached.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader[Any] | dict[str, Any],
        evaluator: Evaluator | dict[str, Any] | list[Any],
        calibrate_dataloader: DataLoader[Any] | dict[str, Any],
        calibrate_steps: int = 32,
        fp16: bool = False,
        only_val: bool = False,
    ) -> None:
        super().__init__(runner, dataloader, evaluator, fp16)
        if not isinstance(calibrate_steps, int) or isinstance(calibrate_steps, bool) or calibrate_steps < 1:
            raise ConfigError(f'`calibrate_steps` must be a positive whole number, but got {calibrate_steps!r}.')
        self.calibrate_dataloader = (
            runner.build_dataloader(calibrate_dataloader, seed=runner.seed)
            if isinstance(calibrate_dataloader, Mapping)
            else calibrate_dataloader
        )
        self.calibrate_steps = calibrate_steps
        self.only_val = only_val

    def run(self) -> dict[str, float]:
        """Calibrate, write the checkpoint, and return the metrics of the test."""
        _check_quantized(self.runner, type(self).__name__)
        if not self.only_val:
            self._calibrate()
            if is_main_process():
                with atomic_path(Path(self.runner.work_dir) / 'model_ptq.pth') as path:
                    torch.save({'state_dict': weights_to_cpu(get_state_dict(self.runner.model))}, path)
        return super().run()

    @torch.no_grad()
    def _calibrate(self) -> None:
        algorithm = unwrapped(self.runner.model)
        seen = 0
        seed_data(self.runner, 'calibrate', 0)
        with training_mode_kept(algorithm), calibrating(algorithm):
            algorithm.eval()
            check_looks(algorithm)
            for batch in self.calibrate_dataloader:
                if seen == self.calibrate_steps:
                    break
                data = algorithm.data_preprocessor(batch, False)
                algorithm(**data, mode='tensor') if isinstance(data, Mapping) else algorithm(*data, mode='tensor')
                seen += 1
        if not seen:
            raise DataError('`calibrate_dataloader` gave no batch.')
        check_calibrated(algorithm)
