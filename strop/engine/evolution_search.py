"""The search loop: evolution over the subnets of a trained supernet, through the one search driver."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_distributed, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.runner.base_loop import BaseLoop

from strop.engine.scoring import ResourceMeter, Scorer, mutator_of, sample_batch, set_subnet, training_mode_kept
from strop.engine.train_loop import unwrapped
from strop.errors import BudgetError, ConfigError, StoreError, StropError, listed, near
from strop.files import atomic_write
from strop.mutables import Subnet, choices_of, dump_subnet, read_document
from strop.registry import LOOPS
from strop.search import SearchResult, SPOSEvolution, Trial, run

BEST_FILE = 'best_fix_subnet.yaml'
RESULT_FILE = 'search.json'
STORE_FILE = 'search.journal'


@LOOPS.register_module()
class EvolutionSearchLoop(BaseLoop):
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
    ) -> None:
        super().__init__(runner, dataloader)
        if predictor_cfg is not None:
            raise ConfigError('`predictor_cfg` is not supported: candidates are scored by the supernet itself. Leave it out.')
        self.evaluator = evaluator if isinstance(evaluator, Evaluator) else runner.build_evaluator(evaluator)
        if hasattr(self.dataloader.dataset, 'metainfo'):
            self.evaluator.dataset_meta = self.dataloader.dataset.metainfo
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
        self.resume_from = resume_from
        self.num_candidates = num_candidates
        self.top_k = top_k
        self.num_mutation = num_mutation
        self.num_crossover = num_crossover
        self.mutate_prob = mutate_prob
        self.crossover_prob = crossover_prob
        self.constraints_range = dict(flops=(0.0, 330.0)) if constraints_range is None else constraints_range
        self.estimator_cfg = estimator_cfg
        self.score_key = score_key
        self.init_candidates = init_candidates
        self.seed = seed
        self._iter = 0
        self.scorer = Scorer(runner, self.dataloader, self.evaluator, calibrate_sample_num)
        self.result: SearchResult | None = None
        #: Functions that are called with each finished trial.
        self.callbacks: list[Callable[[Trial], Any]] = []
        self._fatal: ConfigError | None = None

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

    @property
    def iter(self) -> int:
        """Current trial."""
        return self._iter

    def run(self) -> Any:
        """Search; rank 0 proposes, all ranks score."""
        self.runner.call_hook('before_train')
        algorithm = unwrapped(self.runner.model)
        mutator = mutator_of(algorithm)
        self.scorer.prepare()
        with training_mode_kept(algorithm):
            if is_main_process():
                try:
                    self.result = self._search(algorithm, mutator)
                finally:
                    self._tell_ranks(None)
                self._write(self.result)
            else:
                while (subnet := self._hear()) is not None:
                    # What fails here fails on rank 0 too, which records it.
                    with suppress(Exception):
                        self.scorer.metrics(subnet)
        self.runner.call_hook('after_train')
        return self.runner.model

    def _search(self, algorithm: Any, mutator: Any) -> SearchResult:
        self._began, self._scored = time.monotonic(), 0
        meter = ResourceMeter(algorithm, sample_batch(self.runner, self.dataloader), self.estimator_cfg)
        strategy = SPOSEvolution(
            population=self.num_candidates,
            top_k=self.top_k,
            mutations=self.num_mutation,
            crossovers=self.num_crossover,
            mutate_prob=self.mutate_prob,
            initial=self._initial(),
            sample=mutator.sample_subnet,
            mutate=lambda subnet: mutator.mutation(subnet.masks(), self.mutate_prob),
            crossover=lambda first, second: mutator.crossover(first.masks(), second.masks()),
        )
        store = self._store()
        fresh = '://' not in store and not Path(store).exists()
        try:
            return run(
                mutator.space,
                self._evaluate,
                strategy=strategy,
                store=store,
                trials=self.max_iters,
                objectives={self.score_key: 'maximize'},
                constraints=meter.constraints(self.constraints_range),
                seed=self.runner.seed or 0 if self.seed is None else self.seed,
                callbacks=[self._report, *self.callbacks],
            )
        except BudgetError:
            # A store without a trial would only stand in the way of the same search with another budget.
            if fresh and self._iter == 0:
                Path(store).unlink(missing_ok=True)
            raise

    def _store(self) -> str:
        store = Path(self.runner.work_dir) / STORE_FILE
        if isinstance(self.resume_from, str):
            return self.resume_from
        if store.exists() and not self.resume_from:
            raise StoreError(
                f'{store} holds a search already. Resume it (--resume, or resume_from=True in train_cfg), or give another '
                'work_dir.'
            )
        return str(store)

    def _initial(self) -> list[Mapping[str, Any]]:
        if self.init_candidates is None:
            return []
        given: Any = self.init_candidates
        if isinstance(given, (str, os.PathLike)):
            given = read_document(given, 'a list of subnets')
        if isinstance(given, Mapping):
            given = [given]
        return [subnet if isinstance(subnet, Subnet) else choices_of(subnet) for subnet in given]

    def _evaluate(self, subnet: Subnet) -> dict[str, float]:
        self._tell_ranks(subnet)
        metrics = self.scorer.metrics(subnet)
        if self.score_key not in metrics:
            # No other candidate can do better: `_report` stops the search instead of recording failures.
            self._fatal = ConfigError(
                f'`score_key` {self.score_key!r} is none of the metrics of the evaluator: {listed(metrics)}.'
                f'{near(self.score_key, metrics)}'
            )
            raise self._fatal
        return {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}

    def _tell_ranks(self, subnet: Subnet | None) -> None:
        if is_distributed():
            broadcast_object_list([None if subnet is None else dict(subnet)], src=0)

    def _hear(self) -> dict[str, Any] | None:
        heard: list[Any] = [None]
        broadcast_object_list(heard, src=0)
        return heard[0]

    def _report(self, trial: Trial) -> None:
        if self._fatal is not None:
            raise self._fatal
        self._iter = trial.number + 1
        resources = ' '.join(f'{name}={value:.4g}' for name, value in trial.info.items() if isinstance(value, float))
        generation = f'[generation {trial.number // self.num_candidates + 1}/{self.max_epochs}]'
        if trial.values is None:
            self.runner.logger.warning(f'{generation} trial {trial.number} failed: {trial.error}')
            return
        score = trial.values[self.score_key]
        self._scored += 1
        left = (time.monotonic() - self._began) / self._scored * (self.max_iters - trial.number - 1)
        self.runner.logger.info(
            f'{generation} trial {trial.number + 1}/{self.max_iters} eta: {timedelta(seconds=round(left))} '
            f'{self.score_key}={score:.4f} {resources}'
        )
        self.runner.visualizer.add_scalars({'search/score': score}, step=trial.number)

    def _write(self, result: SearchResult) -> None:
        work_dir = Path(self.runner.work_dir)
        if not result.complete:
            last = result.trials[-1]
            raise StropError(
                f'No subnet was found: all {len(result.trials)} trials failed, the last one with: {last.error} '
                f'({last.subnet!r}). The trials are in {work_dir / STORE_FILE}.'
            )
        atomic_write(work_dir / RESULT_FILE, json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + '\n')
        dump_subnet(result.best.subnet, work_dir / BEST_FILE)
        for rank, trial in enumerate(result.ranked()[: max(self.max_keep_ckpts, 0)]):
            dump_subnet(trial.subnet, work_dir / f'subnet_top{rank + 1}.yaml')
        set_subnet(unwrapped(self.runner.model), result.best.subnet)
        self.runner.logger.info(
            f'best {self.score_key}={(result.best.values or {})[self.score_key]:.4f}, written to {work_dir / BEST_FILE}'
        )
