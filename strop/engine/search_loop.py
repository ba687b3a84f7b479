"""Loops that search the subnets of a trained supernet, through the one search driver."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_distributed, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.runner.base_loop import BaseLoop

from strop.engine.scoring import NO_SUCH_KEY, ResourceMeter, Scorer, SubnetScores, mutator_of, sample_batch, set_subnet
from strop.engine.train_loop import unwrapped
from strop.errors import BudgetError, ConfigError, StoreError, StropError
from strop.files import atomic_write
from strop.graph.forward import training_mode_kept
from strop.mutables import Subnet, dump_subnet
from strop.search import Constraint, InProcess, SearchResult, Strategy, Trial, build_executor, run
from strop.search.executor_choice import ExecutorLike

BEST_FILE = 'best_fix_subnet.yaml'
RESULT_FILE = 'search.json'
STORE_FILE = 'search.journal'


class SearchLoop(BaseLoop):
    """Score the subnets that a strategy proposes by the evaluator; a subclass says which strategy, and what is written.

    All trials are in `<work_dir>/search.journal` (an Optuna journal), from which a killed search goes on; in the end they
    are in `search.json` too. Under DDP, rank 0 proposes and all ranks score. With `workers` or an `executor`, several
    subnets are scored at once, each by one process; all of them read the same weights.

    Args:
        runner: MMEngine's runner.
        dataloader: Data that subnets are scored on; neither training nor test data.
        evaluator: Evaluator of the scores.
        score_key: Metric to maximize.
        calibrate_sample_num: Training images for batch-norm recalibration of each subnet; none if not positive.
        estimator_cfg: MMRazor's estimator config; `input_shape` is used.
        resume_from: True to go on with the trials in the work directory; a path for another store.
        seed: Seed of the search; the runner's by default.
        workers: How many subnets are scored at once, each in a process of this machine; in this process by default.
        executor: Where they are scored, instead of `workers`: what `strop.search.build_executor` takes, such as
            `dict(type='RayExecutor', address='auto')`.
    """

    #: The hooks that are called before and after.
    phase = 'train'

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        evaluator: Evaluator | Mapping[str, Any] | list[Any],
        *,
        score_key: str = 'accuracy/top1',
        calibrate_sample_num: int = -1,
        estimator_cfg: Mapping[str, Any] | None = None,
        resume_from: str | bool | None = None,
        seed: int | None = None,
        workers: int | None = None,
        executor: ExecutorLike = None,
    ) -> None:
        super().__init__(runner, dataloader)
        if workers is not None and executor is not None:
            raise ConfigError('Give `workers` or an `executor`, which has workers of its own, but not both.')
        self.executor = build_executor(workers if executor is None else executor)
        if is_distributed() and not self.alone:
            raise ConfigError('Under DDP all ranks score each subnet together: leave `workers` and `executor` out.')
        self.evaluator = evaluator if isinstance(evaluator, Evaluator) else runner.build_evaluator(evaluator)
        if hasattr(self.dataloader.dataset, 'metainfo'):
            self.evaluator.dataset_meta = self.dataloader.dataset.metainfo
        self.score_key = score_key
        self.estimator_cfg = estimator_cfg
        self.resume_from = resume_from
        self.seed = seed
        self._iter = 0
        self.scorer = Scorer(runner, self.dataloader, self.evaluator, calibrate_sample_num)
        self.result: SearchResult | None = None
        #: Functions that are called with each finished trial.
        self.callbacks: list[Callable[[Trial], Any]] = []

    @property
    def alone(self) -> bool:
        """Whether subnets are scored one after another in this process."""
        return isinstance(self.executor, InProcess)

    @property
    @abstractmethod
    def max_iters(self) -> int:
        """Number of trials, or a bound of it."""

    @property
    def iter(self) -> int:
        """Current trial."""
        return self._iter

    @property
    def max_epochs(self) -> int:
        """Number of generations; 1 where there are none."""
        return 1

    @property
    def epoch(self) -> int:
        """Current generation."""
        return 0

    @abstractmethod
    def strategy(self, mutator: Any, meter: ResourceMeter) -> Strategy:
        """Return what proposes the subnets."""

    def constraints(self, meter: ResourceMeter) -> Sequence[Constraint]:
        """Return the bounds that every subnet meets; none by default."""
        return ()

    def label(self, trial: Trial) -> str:
        """Return how a trial is counted in the log."""
        return f'trial {trial.number + 1}'

    @abstractmethod
    def write(self, result: SearchResult) -> None:
        """Write the subnets that were found; `search.json` is written already."""

    def run(self) -> Any:
        """Search; rank 0 proposes, all ranks score."""
        self.runner.call_hook(f'before_{self.phase}')
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
        self.runner.call_hook(f'after_{self.phase}')
        return self.outcome()

    def outcome(self) -> Any:
        """Return what `run` returns."""
        return self.runner.model

    def _search(self, algorithm: Any, mutator: Any) -> SearchResult:
        self._began, self._scored = time.monotonic(), 0
        meter = ResourceMeter(algorithm, sample_batch(self.runner, self.dataloader), self.estimator_cfg)
        strategy = self.strategy(mutator, meter)
        store = self._store()
        fresh = '://' not in store and not Path(store).exists()
        try:
            return run(
                mutator.space,
                self._evaluate if self.alone else SubnetScores(self.scorer, self.score_key),
                strategy=strategy,
                executor=self.executor,
                store=store,
                trials=self.max_iters,
                objectives={self.score_key: 'maximize'},
                constraints=self.constraints(meter),
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
                f'{store} holds a search already. Resume it (--resume, or resume_from=True beside the type of the loop), or '
                'give another work_dir.'
            )
        return str(store)

    def _evaluate(self, subnet: Subnet) -> dict[str, float]:
        self._tell_ranks(subnet)
        return SubnetScores(self.scorer, self.score_key)(subnet)

    def _tell_ranks(self, subnet: Subnet | None) -> None:
        if is_distributed():
            broadcast_object_list([None if subnet is None else dict(subnet)], src=0)

    def _hear(self) -> dict[str, Any] | None:
        heard: list[Any] = [None]
        broadcast_object_list(heard, src=0)
        return heard[0]

    def _report(self, trial: Trial) -> None:
        if trial.error is not None and trial.error.startswith(f'ConfigError: {NO_SUCH_KEY}'):
            # No other subnet can do better: the search stops instead of recording failures.
            raise ConfigError(trial.error.removeprefix('ConfigError: '))
        self._iter = max(self._iter, trial.number + 1)
        resources = ' '.join(f'{name}={value:.4g}' for name, value in trial.info.items() if isinstance(value, float))
        if trial.values is None:
            self.runner.logger.warning(f'{self.label(trial)} failed: {trial.error}')
            return
        score = trial.values[self.score_key]
        self._scored += 1
        left = (time.monotonic() - self._began) / self._scored * (self.max_iters - trial.number - 1)
        eta = timedelta(seconds=round(left))
        self.runner.logger.info(f'{self.label(trial)}/{self.max_iters} eta: {eta} {self.score_key}={score:.4f} {resources}')
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
        self.write(result)

    def keep(self, trial: Trial) -> None:
        """Write a trial's subnet as the best one, and make it current."""
        path = Path(self.runner.work_dir) / BEST_FILE
        dump_subnet(trial.subnet, path)
        set_subnet(unwrapped(self.runner.model), trial.subnet)
        self.runner.logger.info(f'best {self.score_key}={(trial.values or {})[self.score_key]:.4f}, written to {path}')
