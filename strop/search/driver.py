"""The one search driver: asks a strategy, evaluates through an executor, keeps every trial in a store.

The proposal of trial *n* is drawn from (seed, 'proposal', n) and its evaluation runs under
(seed, 'evaluate', n); the strategy's state is the replay of the store's finished trials. So a search that was
killed goes on where it was, and in one process ends with the very trials of one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from strop.errors import ConfigError, StropError
from strop.mutables import Space, Subnet
from strop.randomness import counter_rng, seeded
from strop.search.constraints import Constraint, Constraints
from strop.search.early_stopping import EarlyStopping, PrunerLike
from strop.search.executor import Evaluate, Executor, Outcome
from strop.search.executor_choice import ExecutorLike, build_executor
from strop.search.result import SearchResult
from strop.search.store import Store, StoreLike
from strop.search.strategy import Strategy, StrategyLike, build_strategy
from strop.search.trial import COMPLETE, FAILED, STOPPED, Objectives, Trial, best_first, parse_objectives, read_values
from strop.search.urls import hide_secrets
from strop.terminal import progress_bars

_LOOK = 0.5  # seconds between two looks at what other processes do

Callback = Callable[[Trial], Any]

FIRST_FAILURES = 10

_logger = logging.getLogger(__name__)


def run(
    space: Space,
    evaluate: Evaluate,
    *,
    strategy: StrategyLike = 'default',
    store: StoreLike = None,
    name: str = 'search',
    executor: ExecutorLike = None,
    trials: int = 100,
    seconds: float | None = None,
    objectives: Objectives = 'maximize',
    constraints: Iterable[Constraint] = (),
    pruner: PrunerLike = None,
    seed: int = 0,
    resume: bool | str = True,
    halt: Callable[[], bool] | None = None,
    about: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
) -> SearchResult:
    """Search a space for the subnets that an evaluation rates best.

    An evaluation that raises, or returns anything but finite numbers, makes a failed trial with its reason, and
    the search goes on. One that a pruner stops makes a stopped trial; neither is tried again. Ctrl-C leaves a store
    from which the search resumes. Where nothing is left to propose while other processes evaluate trials of the same
    search, it waits for them: a strategy may know more then, and trials of a process that dies are taken over.

    Args:
        space: What to search.
        evaluate: Subnet -> value, or -> mapping with every objective; further entries are kept in `Trial.info`.
            It runs with the global generators of `random`, NumPy and torch (CPU) seeded for its trial.
        strategy: A name of `STRATEGIES` or of an Optuna sampler, `{'type': name, option: value}`, or a `Strategy`.
        store: A journal file, a folder for one, a database URL, an Optuna storage, or None for memory.
        name: Name of the search in the store.
        executor: Where to evaluate, as `build_executor` takes it: a number of processes, a name, or an executor; by default
            in this process.
        trials: How many finished trials there shall be in all, those already in the store included.
        seconds: Time limit of this call; the trial under way at its end is finished.
        objectives: `'maximize'`, `'minimize'`, or name -> direction. An objective that is named like a constraint
            takes that resource's value where the evaluation does not return it.
        constraints: Bounds that every proposed subnet meets.
        pruner: What stops trials early, by what they report with `report_intermediate_result`: a name of `PRUNERS` such as
            `'median'` or `'hyperband'`, or `{'type': name, option: value}`; see `EarlyStopping`. None lets every trial end.
        seed: Seed of all that is random.
        resume: Go on with what the store holds; with False a store that holds this search is an error. `'takeover'`
            also evaluates again what a process on another machine left unfinished.
        halt: Asked before each new trial; once it returns True the trials under way are finished, and no more are begun.
        about: What else the store shall say of the search, as JSON.
        callbacks: Called with each finished trial.
        progress: Show a bar with the best value and the time left.

    Raises:
        ConfigError: On an argument that breaks a rule.
        BudgetError: If no subnet meets the constraints; it states the nearest value that was reached.
        StoreError: If the store cannot be used, or holds another search.
        StropError: If every one of the first ten trials of this call fails; it shows the last reason.

    >>> from strop.mutables import OneOf, Space
    >>> space = Space({'kernel': OneOf((3, 5, 7)), 'width': OneOf((8, 16))})
    >>> run(space, lambda subnet: subnet['kernel'] * subnet['width'], trials=6).best.subnet
    Subnet(kernel=7, width=16)
    """
    if not isinstance(space, Space):
        raise ConfigError(f'`space` must be a Space, but got {type(space).__name__}.')
    if not callable(evaluate):
        raise ConfigError(f'`evaluate` must be a function of a subnet, but got {evaluate!r}.')
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
        raise ConfigError(f'`trials` must be a positive whole number, but got {trials!r}.')
    directions = parse_objectives(objectives)
    bounds = Constraints(constraints)
    chosen = build_strategy(strategy)
    stopping = EarlyStopping.of(pruner)
    executor = build_executor(executor)
    if stopping is not None:
        stopping.check(directions)
        if not hasattr(executor, 'on_report'):
            raise ConfigError(f'{type(executor).__name__} does not pass on what trials report, so no pruner can work with it.')
    settings = {
        'seed': seed,
        'strategy': chosen.name,
        'constraints': [constraint.to_dict() for constraint in bounds.all],
        **({} if stopping is None else {'pruner': stopping.to_dict()}),
        **(about or {}),
    }
    kept = Store(store, space, directions, name=name, settings=settings, resume=resume)
    with ExitStack() as stack:
        stack.callback(kept.close)
        chosen.bind(space, directions, seed=seed, constraints=bounds)
        search = _Search(kept, chosen, executor, bounds, directions, seed, stopping)
        if progress:
            callbacks = [*callbacks, stack.enter_context(_Bar(trials, directions, kept.trials))]
        if hasattr(executor, 'on_report'):
            executor.on_report = search.report
        search.executor.start(evaluate, seed)
        stack.callback(search.executor.close)
        stopped = search.loop(trials, seconds, callbacks, halt or (lambda: False))
        return SearchResult(
            space=space,
            objectives=directions,
            trials=[trial for trial in kept.trials if trial.finished],
            stopped=stopped,
            name=name,
            seed=seed,
            strategy=chosen.name,
        )


class _Search:
    """The loop of one call."""

    def __init__(
        self,
        store: Store,
        strategy: Strategy,
        executor: Executor,
        bounds: Constraints,
        directions: dict[str, str],
        seed: int,
        stopping: EarlyStopping | None,
    ) -> None:
        self.store, self.strategy, self.executor = store, strategy, executor
        self.bounds, self.directions, self.seed, self.stopping = bounds, directions, seed, stopping
        self.running: dict[int, Trial] = {}
        self.ended = 0
        self.failed_only = True
        for number in store.order:
            strategy.tell(store.trials[number])
        self.queue = store.take_abandoned()
        for trial in store.trials:
            if not trial.finished:
                strategy.pend(trial.number, trial.subnet)

    def loop(self, trials: int, seconds: float | None, callbacks: Sequence[Callback], halt: Callable[[], bool]) -> str:
        begin = time.monotonic()
        stopped = 'trials'
        asking = True

        def timed_out() -> bool:
            return seconds is not None and time.monotonic() - begin >= seconds

        while True:
            while asking and len(self.running) < self.executor.capacity:
                if timed_out():
                    asking, stopped = False, 'seconds'
                elif halt():
                    asking, stopped = False, 'halt'
                elif not self.queue and self.planned >= trials:
                    asking = False
                elif not self.start():
                    if self.running:
                        break  # a strategy may know more when one of these has ended
                    asking, stopped = False, 'exhausted'
            if self.running:
                for outcome in self.executor.wait():
                    self.end(outcome, callbacks)
            elif stopped in ('trials', 'exhausted') and self.retake():
                asking, stopped = True, 'trials'
            elif stopped == 'exhausted' and self.store.others_run():
                # A strategy may know more when a trial of another process has ended; or that process dies.
                _logger.info('There is nothing else to evaluate until the trials of other processes have ended; waiting.')
                while not (timed_out() or halt() or self.learn()) and self.store.others_run():
                    time.sleep(_LOOK)
                asking, stopped = True, 'trials'
            else:
                return stopped

    def retake(self) -> bool:
        """Take the trials of processes that have died meanwhile; True if there are any, or there is news of others."""
        news = self.learn()
        self.queue = self.store.take_abandoned()
        return news or bool(self.queue)

    @property
    def planned(self) -> int:
        return len(self.store.trials)

    def start(self) -> bool:
        """Start one trial; False if the strategy has no further one now."""
        if self.queue:
            trial = self.queue.pop(0)
        else:
            self.learn()
            number = len(self.store.trials)
            subnet = self.propose(number)
            if subnet is None:
                return False
            trial = self.store.create(subnet, self.bounds.measured(subnet))
            if trial.number != number:
                self.strategy.pending.pop(number, None)
                self.learn()
                self.strategy.pend(trial.number, subnet)
                if self.strategy.unique and any(other.subnet == subnet for other in self.store.trials[number : trial.number]):
                    twin = replace(trial, state=FAILED, error='another process proposed this subnet at the same moment')
                    self.strategy.tell(self.store.finish(twin))
                    return True
        self.running[trial.number] = trial
        self.executor.submit(trial)
        return True

    def propose(self, number: int) -> Subnet | None:
        with seeded(self.seed, 'proposal', number):
            return self.strategy.ask(number, counter_rng(self.seed, 'proposal', number))

    def learn(self) -> bool:
        """Tell the strategy what other processes have added; False if that is nothing."""
        added = self.store.sync()
        for trial in added:
            if trial.finished:
                self.strategy.tell(trial)
            elif trial.number not in self.running:
                self.strategy.pend(trial.number, trial.subnet)
        return bool(added)

    def report(self, number: int, step: int, value: float) -> bool:
        return self.store.report(number, step, value, self.stopping)

    def end(self, outcome: Outcome, callbacks: Sequence[Callback]) -> None:
        trial = self.running.pop(outcome.number)
        if outcome.stopped:
            trial = replace(trial, state=STOPPED)
        elif outcome.error is None:
            try:
                values, info = read_values(outcome.returned, self.directions, trial.info)
                trial = replace(trial, state=COMPLETE, values=values, info={**trial.info, **info})
            except ConfigError as error:
                trial = replace(trial, state=FAILED, error=str(error))
        else:
            trial = replace(trial, state=FAILED, error=hide_secrets(outcome.error))
            _logger.debug('%s', outcome.trace)
        trial = self.store.finish(replace(trial, seconds=outcome.seconds))
        if trial.state == FAILED:
            _logger.warning('Trial %d failed: %s', trial.number, trial.error)
        self.strategy.tell(trial)
        self.ended += 1
        self.failed_only = self.failed_only and trial.state == FAILED
        for callback in callbacks:
            callback(trial)
        if self.failed_only and self.ended >= FIRST_FAILURES:
            raise StropError(
                f'The search stops: each of its first {self.ended} trials failed, the last one with: {trial.error} '
                f'(trial {trial.number}, {trial.subnet!r}).'
            )


class _Bar:
    """A progress bar on the terminal, as a callback."""

    def __init__(self, trials: int, directions: dict[str, str], known: Sequence[Trial]) -> None:
        self._progress = progress_bars()
        self._directions = dict(list(directions.items())[:1])
        self._best: Trial | None = None
        finished = [trial for trial in known if trial.finished]
        self._task = self._progress.add_task('search', total=trials, completed=len(finished))
        for trial in finished:
            self._note(trial)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, trial: Trial) -> None:
        self._note(trial)
        self._progress.advance(self._task)

    def _note(self, trial: Trial) -> None:
        rivals = [trial] if self._best is None else [self._best, trial]
        ranked = best_first(rivals, self._directions)
        if ranked:
            self._best = ranked[0]
            name = next(iter(self._directions))
            self._progress.update(self._task, description=f'best {name} {(self._best.values or {})[name]:.4g}')
