"""The search of AutoSlim: widths are narrowed one by one, each time the one that costs the least accuracy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import Evaluator

from strop.engine.scoring import ResourceMeter
from strop.engine.search_loop import SearchLoop
from strop.errors import BudgetError, ConfigError
from strop.mutables import Ordered, Subnet, dump_subnet
from strop.registry import LOOPS
from strop.search import GreedySlimming, SearchResult, Strategy
from strop.search.executor_choice import ExecutorLike


@LOOPS.register_module()
class AutoSlimGreedySearchLoop(SearchLoop):
    """Search the widths of a trained supernet greedily; `test_cfg = dict(type='AutoSlimGreedySearchLoop', ...)`.

    From the largest widths on, each unit in turn is narrowed by one step and scored; the best of these becomes the next
    start. The first widths that are within a target are written to `<work_dir>/subnet_<target>.yaml`, those of the lowest
    target also to `best_fix_subnet.yaml`; all trials are in `search.journal` and `search.json`.

    Yu, Huang, https://arxiv.org/abs/1903.11728; the rule is in `strop.search.GreedySlimming`.

    Args:
        runner: MMEngine's runner.
        dataloader: Data that widths are scored on; neither training nor test data.
        evaluator: Evaluator of the scores.
        target_flops: Millions of multiply-adds of one sample to come down to; one or several.
        estimator_cfg: MMRazor's estimator config; `input_shape` is used.
        score_key: Metric to maximize.
        resume_from: True to go on with the trials in the work directory; a path for another store.
        calibrate_sample_num: Training images for batch-norm recalibration of each subnet; none if not positive.
        seed: Seed of the search; the runner's by default.
        per_cost: Judge a step by what it loses for what it saves; see `GreedySlimming`.
        workers: How many widths are scored at once, each in a process of this machine; in this process by default.
        executor: Where they are scored, instead of `workers`: what `strop.search.build_executor` takes.

    Raises:
        ConfigError: If a target is no positive number, or the whole network is within it.
        BudgetError: If a target is below the smallest widths.
    """

    phase = 'test'

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        evaluator: Evaluator | Mapping[str, Any] | list[Any],
        target_flops: float | Sequence[float],
        estimator_cfg: Mapping[str, Any] | None = None,
        score_key: str = 'accuracy/top1',
        resume_from: str | os.PathLike[str] | bool | None = None,
        *,
        calibrate_sample_num: int = -1,
        seed: int | None = None,
        per_cost: bool = False,
        workers: int | None = None,
        executor: ExecutorLike = None,
    ) -> None:
        super().__init__(
            runner,
            dataloader,
            evaluator,
            score_key=score_key,
            calibrate_sample_num=calibrate_sample_num,
            estimator_cfg=estimator_cfg,
            resume_from=str(resume_from) if isinstance(resume_from, os.PathLike) else resume_from,
            seed=seed,
            workers=workers,
            executor=executor,
        )
        targets: list[Any] = list(target_flops) if isinstance(target_flops, (list, tuple)) else [target_flops]
        if not targets or not all(isinstance(t, (int, float)) and not isinstance(t, bool) and t > 0 for t in targets):
            raise ConfigError(
                f'`target_flops` must be millions of multiply-adds, such as [500.0, 300.0], but got {target_flops!r}.'
            )
        self.targets = sorted((float(target) for target in targets), reverse=True)
        self.per_cost = per_cost
        self._bound = 1
        self._strategy: GreedySlimming | None = None
        #: Target -> the metrics of the subnet that was found for it.
        self.found: dict[float, dict[str, float]] = {}

    @property
    def max_iters(self) -> int:
        """Number of trials at most."""
        return self._bound

    def strategy(self, mutator: Any, meter: ResourceMeter) -> Strategy:
        """Return the greedy rule, with the multiply-adds of this model."""
        known: dict[Subnet, float] = {}

        def cost(subnet: Subnet) -> float:
            if subnet not in known:
                known[subnet] = meter.measure_many([subnet], 'flops')[0]
            return known[subnet]

        space = mutator.space
        largest, smallest = cost(space.extreme(largest=True)), cost(space.extreme(largest=False))
        if self.targets[0] >= largest:
            raise ConfigError(
                f'`target_flops` are millions of multiply-adds below the {largest:g} of the largest widths, but got '
                f'{self.targets[0]:g}.'
            )
        if self.targets[-1] < smallest:
            raise BudgetError(
                f'The smallest widths have {smallest:g} million multiply-adds: {self.targets[-1]:g} cannot be reached. Raise '
                '`target_flops`, or give the units smaller `candidate_choices`.'
            )
        ordered = [len(space[key]) - 1 for key in space if isinstance(space[key], Ordered)]
        self._bound = 1 + sum(ordered) * len(ordered)
        self._strategy = GreedySlimming(cost=cost, targets=self.targets, per_cost=self.per_cost)
        return self._strategy

    def write(self, result: SearchResult) -> None:
        """Write the widths of each target, and make those of the lowest one current."""
        assert self._strategy is not None, 'the search has run'
        last = None
        for target in self.targets:
            trial = self._strategy.reached(target)
            if trial is None:
                self.runner.logger.warning(f'The search ended before it came down to {target:g} million multiply-adds.')
                continue
            cost = self._strategy.cost(trial.subnet)
            path = Path(self.runner.work_dir) / f'subnet_{target:g}.yaml'
            dump_subnet(trial.subnet, path)
            self.found[target] = {**(trial.values or {}), 'flops': cost}
            self.runner.logger.info(
                f'{target:g} million multiply-adds: {self.score_key}={(trial.values or {})[self.score_key]:.4f} with {cost:g}, '
                f'written to {path}'
            )
            last = trial
        if last is not None:
            self.keep(last)

    def outcome(self) -> Any:
        """Return the metrics of each target, as a test loop does."""
        return {f'{target:g}/{name}': value for target, found in self.found.items() for name, value in found.items()}
