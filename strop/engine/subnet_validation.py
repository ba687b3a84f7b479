"""Validation of a supernet by a few of its subnets, and of a fixed subnet with its resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.runner import TestLoop, ValLoop

from strop.engine.scoring import ResourceMeter, Scorer, sample_arguments, sample_batch
from strop.engine.train_loop import unwrapped
from strop.estimators import count
from strop.graph.forward import training_mode_kept
from strop.mutables import extract, mutables_of
from strop.randomness import seeded
from strop.registry import LOOPS

KINDS = ('max', 'min', 'random')


@LOOPS.register_module()
class SubnetValLoop(ValLoop):
    """Validate the largest, the smallest and a random subnet, or the one subnet that is left.

    Metrics are prefixed `max_subnet.`, `min_subnet.` and `random_subnet.`; a fixed subnet's are not, and come
    with `flops` and `params` in millions.

    Args:
        runner: MMEngine's runner.
        dataloader: Validation data.
        evaluator: Evaluator of the metrics.
        fp16: Validate under autocast.
        evaluate_fixed_subnet: The architecture is one fixed subnet; taken for granted where it has no decisions.
        calibrate_sample_num: Training images for batch-norm recalibration of each subnet; none if not positive.
        estimator_cfg: MMRazor's estimator config; `input_shape` is used.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        evaluator: Evaluator | Mapping[str, Any] | list[Any],
        fp16: bool = False,
        evaluate_fixed_subnet: bool = False,
        calibrate_sample_num: int = 4096,
        estimator_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(runner, dataloader, evaluator, fp16)
        self.evaluate_fixed_subnet = evaluate_fixed_subnet
        self.estimator_cfg = estimator_cfg
        self.scorer = Scorer(runner, self.dataloader, self.evaluator, calibrate_sample_num, fp16)
        self._meter: ResourceMeter | None = None

    def run(self) -> dict[str, float]:
        """Validate and return the metrics."""
        # As `test_cfg`, the loop is a test: its hooks look for the runner's test loop, and there may be no validation loop.
        stage = 'val' if self.runner.val_loop is self else 'test'
        self.runner.call_hook(f'before_{stage}')
        self.runner.call_hook(f'before_{stage}_epoch')
        algorithm = unwrapped(self.runner.model)
        mutator = getattr(algorithm, 'mutator', None)
        with training_mode_kept(algorithm):
            if self.evaluate_fixed_subnet or mutator is None:
                metrics = {**self.scorer.metrics(), **self._resources(algorithm)}
            else:
                metrics = self._subnets(algorithm, mutator)
        self.runner.call_hook(f'after_{stage}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{stage}')
        return metrics

    def _subnets(self, algorithm: Any, mutator: Any) -> dict[str, float]:
        # It runs every choice once, which takes longer than validating; what subnets cost does not change with their weights.
        if self._meter is None or self._meter.algorithm is not algorithm:
            self._meter = ResourceMeter(algorithm, sample_batch(self.runner, self.dataloader), self.estimator_cfg)
        metrics: dict[str, float] = {}
        for kind in KINDS:
            with seeded(self.runner.seed or 0, 'validation', self.runner.iter):
                subnet = mutator.space.subnet(mutator.sample_choices(kind))
            values = {**self.scorer.metrics(subnet), **self._meter.measure(subnet)}
            metrics.update({f'{kind}_subnet.{name}': value for name, value in values.items()})
        return metrics

    def _resources(self, algorithm: Any) -> dict[str, float]:
        model = getattr(algorithm, 'architecture', algorithm)
        resources = count(extract(model) if mutables_of(model) else model, *sample_arguments(self.runner, self.dataloader))
        return {'flops': resources.macs / 1e6, 'params': resources.params / 1e6}


@LOOPS.register_module()
class SubnetTestLoop(TestLoop):
    """Test the fixed subnet of a model as it is; MMEngine's loop under a name of its own."""
