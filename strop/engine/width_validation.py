"""Validation of models whose widths vary: each network of a slimmable one, and a model that is being pruned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.runner import ValLoop

from strop.engine.scoring import Scorer, mutator_of, sample_arguments
from strop.engine.train_loop import unwrapped
from strop.errors import ConfigError
from strop.estimators import count
from strop.files import atomic_path
from strop.graph.forward import training_mode_kept
from strop.mutables import dump_subnet, extract
from strop.registry import LOOPS


@LOOPS.register_module()
class SlimmableValLoop(ValLoop):
    """Validate every network of a `SlimmableNetwork`; metrics are prefixed `subnet_0.`, `subnet_1.`, ...

    A network that is deployed already is validated as it is, and its metrics are not prefixed.

    Args:
        runner: MMEngine's runner.
        dataloader: Validation data.
        evaluator: Evaluator of the metrics.
        fp16: Validate under autocast.

    Raises:
        ConfigError: If the algorithm has no slimmable networks.
    """

    def __init__(
        self, runner: Any, dataloader: Any, evaluator: Evaluator | Mapping[str, Any] | list[Any], fp16: bool = False
    ) -> None:
        super().__init__(runner, dataloader, evaluator, fp16)
        self.scorer = Scorer(runner, self.dataloader, self.evaluator, fp16=fp16)

    def run(self) -> dict[str, float]:
        """Validate and return the metrics."""
        stage = 'val' if self.runner.val_loop is self else 'test'
        self.runner.call_hook(f'before_{stage}')
        self.runner.call_hook(f'before_{stage}_epoch')
        algorithm = unwrapped(self.runner.model)
        with training_mode_kept(algorithm):
            metrics = self.scorer.metrics() if getattr(algorithm, 'is_deployed', False) else self._networks(algorithm)
        self.runner.call_hook(f'after_{stage}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{stage}')
        return metrics

    def _networks(self, algorithm: Any) -> dict[str, float]:
        mutator = mutator_of(algorithm)
        if not hasattr(mutator, 'subnets'):
            raise ConfigError(
                f'SlimmableValLoop validates the networks of a SlimmableChannelMutator, but the mutator is a '
                f'{type(mutator).__name__}. SubnetValLoop validates subnets of any other one.'
            )
        before = mutator.current_subnet()
        metrics: dict[str, float] = {}
        try:
            for index in range(len(mutator.subnets)):
                subnet = mutator.space.subnet({mutator.key: index})
                metrics.update({f'subnet_{index}.{name}': value for name, value in self.scorer.metrics(subnet).items()})
        finally:
            mutator.set_subnet(before)
        return metrics


@LOOPS.register_module()
class ItePruneValLoop(ValLoop):
    """Validate a model that is being pruned, at its active width, and write that width down.

    `<work_dir>/fix_subnet.json` is the subnet, `<work_dir>/fix_subnet_weight.pth` the `state_dict` of the plain
    pruned model. The metrics `flops` and `params`, in millions, are those of that model for one sample.
    """

    def run(self) -> dict[str, float]:
        """Validate, write the files, and return the metrics."""
        metrics = super().run()
        algorithm = unwrapped(self.runner.model)
        if getattr(algorithm, 'mutator', None) is None:
            return metrics
        slim = extract(algorithm.architecture)
        resources = count(slim, *sample_arguments(self.runner, self.dataloader))
        if is_main_process():
            folder = Path(self.runner.work_dir)
            dump_subnet(algorithm.mutator.current_subnet(), folder / 'fix_subnet.json')
            with atomic_path(folder / 'fix_subnet_weight.pth') as temporary:
                torch.save({'meta': {}, 'state_dict': slim.state_dict()}, temporary)
        return {**metrics, 'flops': resources.macs / 1e6, 'params': resources.params / 1e6}
