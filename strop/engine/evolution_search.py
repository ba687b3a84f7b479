"""The search of SPOS: evolution over the subnets of a trained supernet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import Evaluator

from strop.engine.scoring import ResourceMeter
from strop.engine.search_loop import SearchLoop
from strop.errors import ConfigError
from strop.mutables import Subnet, choices_of, dump_subnet, read_document
from strop.registry import LOOPS
from strop.search import Constraint, SearchResult, SPOSEvolution, Strategy, Trial
from strop.search.executor_choice import ExecutorLike


@LOOPS.register_module()
class EvolutionSearchLoop(SearchLoop):
    """Search a supernet by evolution under constraints; `train_cfg = dict(type='mmrazor.EvolutionSearchLoop', ...)`.

    Each candidate is applied to the supernet, batch norms are recalibrated if asked, and the evaluator scores it. The
    mutator's own `sample_subnet`, `mutation` and `crossover` make the candidates, overridden ones included. All
    trials are in `<work_dir>/search.journal` (an Optuna journal), from which a killed search goes on. The best subnet is
    written to `<work_dir>/best_fix_subnet.yaml`, everything to `search.json`.

    Guo et al., https://arxiv.org/abs/1904.00420. Differs from the paper: candidates are proposed one by one, each
    from a generator that is a function of (seed, trial), so that a killed search repeats itself; no candidate is scored twice.

    Args:
        runner: MMEngine's runner.
        dataloader: Data that candidates are scored on; neither training nor test data.
        evaluator: Evaluator of the scores.
        max_epochs: Number of generations.
        max_keep_ckpts: How many of the best subnets are written as files beside the best one.
        resume_from: True to go on with the trials in the work directory; a path for another store.
        num_candidates: Candidates in a generation.
        top_k: Parents are among this many best.
        num_mutation: Candidates of a generation that are mutated parents.
        num_crossover: Candidates of a generation that are crossovers of two parents.
        mutate_prob: Probability with which a mutation redraws each decision.
        crossover_prob: Accepted for MMRazor's configs; crossover takes each decision from either parent alike.
        calibrate_sample_num: Training images for batch-norm recalibration of each candidate; none if not positive.
        constraints_range: Resource -> (low, high): 'flops' and 'params' in millions, 'memory' in MiB, 'latency' in ms.
        estimator_cfg: MMRazor's estimator config; `input_shape` is used.
        predictor_cfg: Not supported; must be None.
        score_key: Metric to maximize.
        init_candidates: Subnets to score first: a list, or a file that holds one.
        seed: Seed of the search; the runner's by default.
        workers: How many candidates are scored at once, each in a process of this machine; in this process by default.
            A generation begins when the one before has ended, so that the trials are those of one process.
        executor: Where they are scored, instead of `workers`: what `strop.search.build_executor` takes.

    Raises:
        ConfigError: If an argument breaks a rule.
        BudgetError: If no subnet meets the constraints; it states the nearest value reached.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        evaluator: Evaluator | Mapping[str, Any] | list[Any],
        max_epochs: int = 20,
        max_keep_ckpts: int = 3,
        resume_from: str | bool | None = None,
        num_candidates: int = 50,
        top_k: int = 10,
        num_mutation: int = 25,
        num_crossover: int = 25,
        mutate_prob: float = 0.1,
        crossover_prob: float = 0.5,
        calibrate_sample_num: int = -1,
        constraints_range: Mapping[str, Any] | None = None,
        estimator_cfg: Mapping[str, Any] | None = None,
        predictor_cfg: Mapping[str, Any] | None = None,
        score_key: str = 'accuracy/top1',
        init_candidates: str | os.PathLike[str] | Iterable[Mapping[str, Any]] | None = None,
        seed: int | None = None,
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
            resume_from=resume_from,
            seed=seed,
            workers=workers,
            executor=executor,
        )
        if predictor_cfg is not None:
            raise ConfigError('`predictor_cfg` is not supported: candidates are scored by the supernet itself. Leave it out.')
        for name, value in {'max_epochs': max_epochs, 'num_candidates': num_candidates, 'top_k': top_k}.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f'`{name}` must be a positive integer, but got {value!r}.')
        if num_mutation + num_crossover > num_candidates:
            raise ConfigError(
                f'`num_mutation` + `num_crossover` must not exceed `num_candidates`, but {num_mutation} + {num_crossover} > '
                f'{num_candidates}.'
            )
        self._max_epochs = max_epochs
        self.max_keep_ckpts = max_keep_ckpts
        self.num_candidates = num_candidates
        self.top_k = top_k
        self.num_mutation = num_mutation
        self.num_crossover = num_crossover
        self.mutate_prob = mutate_prob
        self.crossover_prob = crossover_prob
        self.constraints_range = dict(flops=(0.0, 330.0)) if constraints_range is None else constraints_range
        self.init_candidates = init_candidates

    @property
    def max_epochs(self) -> int:
        """Number of generations."""
        return self._max_epochs

    @property
    def max_iters(self) -> int:
        """Number of trials."""
        return self._max_epochs * self.num_candidates

    @property
    def epoch(self) -> int:
        """Current generation."""
        return self._iter // self.num_candidates

    def strategy(self, mutator: Any, meter: ResourceMeter) -> Strategy:
        """Return an evolution whose candidates the mutator makes."""
        return SPOSEvolution(
            population=self.num_candidates,
            top_k=self.top_k,
            synchronous=not self.alone,
            mutations=self.num_mutation,
            crossovers=self.num_crossover,
            mutate_prob=self.mutate_prob,
            initial=self._initial(),
            sample=mutator.sample_subnet,
            mutate=lambda subnet: mutator.mutation(subnet.masks(), self.mutate_prob),
            crossover=lambda first, second: mutator.crossover(first.masks(), second.masks()),
        )

    def constraints(self, meter: ResourceMeter) -> Sequence[Constraint]:
        """Return those of `constraints_range`."""
        return meter.constraints(self.constraints_range)

    def label(self, trial: Trial) -> str:
        """Return the generation and the trial."""
        return f'[generation {trial.number // self.num_candidates + 1}/{self.max_epochs}] trial {trial.number + 1}'

    def write(self, result: SearchResult) -> None:
        """Write the best subnets, and make the best one current."""
        for rank, trial in enumerate(result.ranked()[: max(self.max_keep_ckpts, 0)]):
            dump_subnet(trial.subnet, Path(self.runner.work_dir) / f'subnet_top{rank + 1}.yaml')
        self.keep(result.best)

    def _initial(self) -> list[Mapping[str, Any]]:
        if self.init_candidates is None:
            return []
        given: Any = self.init_candidates
        if isinstance(given, (str, os.PathLike)):
            given = read_document(given, 'a list of subnets')
        if isinstance(given, Mapping):
            given = [given]
        return [subnet if isinstance(subnet, Subnet) else choices_of(subnet) for subnet in given]
