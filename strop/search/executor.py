"""Where trials are evaluated: the protocol, and the executor that does it in this process.

Reports on the way (`report_intermediate_result`) take one path everywhere. Where the evaluation runs, `evaluate_trial` is
given `decide`, a function (step, value) -> whether the trial is to end. In this process that is the driver's own function. An
executor whose evaluations run elsewhere carries the question over and the answer back: it asks the driver by its attribute
`on_report`, a function (trial number, step, value) -> whether to end, which must be called from within `wait`, and returns the
`Outcome` that `evaluate_trial` makes, with `stopped` set. A trial that does not obey may be killed; its outcome is stopped all
the same.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from strop.mutables import Subnet
from strop.randomness import derive_seed, gpus_begin_with, seeded
from strop.search.reports import Decide, Reporter, TrialStopped, reporting_to
from strop.search.trial import Trial
from strop.search.trial_side import TrialReportError

Evaluate = Callable[[Subnet], Any]
#: (trial number, step, value) -> whether the trial is to end.
OnReport = Callable[[int, int, float], bool]


@dataclass(frozen=True)
class Outcome:
    """What became of one evaluation.

    Args:
        number: The trial's number.
        returned: What the evaluation returned.
        seconds: How long it took.
        error: One line on what it raised, or None.
        trace: The traceback, for the log.
        stopped: Whether it was stopped early, by the answer to one of its reports.
    """

    number: int
    returned: Any
    seconds: float
    error: str | None = None
    trace: str | None = None
    stopped: bool = False


def evaluate_trial(evaluate: Evaluate, trial: Trial, seed: int, decide: Decide | None = None) -> Outcome:
    """Evaluate one trial with the global generators seeded by (`seed`, its number); what it raises becomes its error.

    Args:
        evaluate: The evaluation.
        trial: What to evaluate.
        seed: Seed of the search.
        decide: Takes what the evaluation reports on its way and tells whether it is to end; what it raises is raised here.

    >>> from strop.mutables import OneOf, Space
    >>> trial = Trial(0, Space({'kernel': OneOf((3, 5))}).subnet({'kernel': 3}))
    >>> evaluate_trial(lambda subnet: 1 / 0, trial, seed=0).error
    'ZeroDivisionError: division by zero'
    """
    begin = time.perf_counter()
    reporter = Reporter(trial.number, decide or (lambda step, value: False))
    returned, text, trace = None, None, None
    gpus = gpus_begin_with(derive_seed(seed, 'evaluate', trial.number))
    with gpus, seeded(seed, 'evaluate', trial.number), reporting_to(reporter):
        try:
            returned = evaluate(trial.subnet)
        except TrialStopped:
            if not reporter.stopped:
                raise  # of another search, inside which this one runs
        except TrialReportError as error:
            text = _line(error)  # it tells of a script, whose own output is kept; where we noticed says nothing
        except Exception as error:
            text, trace = _line(error), traceback.format_exc()
    if reporter.broken is not None:
        raise reporter.broken
    seconds = time.perf_counter() - begin
    if reporter.stopped:
        return Outcome(trial.number, None, seconds, stopped=True)
    return Outcome(trial.number, returned, seconds, text, trace)


def _line(error: Exception) -> str:
    # What a broken trial printed may be part of it: no control character may reach a terminal.
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return ''.join(letter if letter.isprintable() else '\N{REPLACEMENT CHARACTER}' for letter in text)


class Executor(Protocol):
    """Runs evaluations. The driver submits while fewer than `capacity` trials are under way, then waits.

    One that also has an attribute `on_report` (an `OnReport`, or None before the driver has set it) passes on what trials
    report on their way, and can be given a pruner; without it reports are not kept.

    Args:
        capacity: How many trials may be under way at once.
    """

    capacity: int

    def start(self, evaluate: Evaluate, seed: int) -> None:
        """Get ready for the evaluations of one search."""

    def submit(self, trial: Trial) -> None:
        """Begin to evaluate a trial."""

    def wait(self) -> list[Outcome]:
        """Return at least one outcome of the submitted trials, in any order; block until there is one."""
        ...

    def close(self) -> None:
        """End; outcomes not waited for are dropped."""


class InProcess:
    """Evaluates one trial at a time, in this process.

    >>> from strop.mutables import OneOf, Space
    >>> executor = InProcess()
    >>> executor.start(lambda subnet: subnet['kernel'], seed=0)
    >>> executor.submit(Trial(0, Space({'kernel': OneOf((3, 5))}).subnet({'kernel': 3})))
    >>> executor.wait()[0].returned
    3
    """

    capacity = 1

    def __init__(self) -> None:
        self.on_report: OnReport | None = None
        self._queue: deque[Trial] = deque()
        self._evaluate: Evaluate = lambda subnet: None
        self._seed = 0

    def start(self, evaluate: Evaluate, seed: int) -> None:
        """Get ready for the evaluations of one search."""
        self._queue.clear()
        self._evaluate, self._seed = evaluate, seed

    def submit(self, trial: Trial) -> None:
        """Put a trial in the queue."""
        self._queue.append(trial)

    def wait(self) -> list[Outcome]:
        """Evaluate the first trial of the queue."""
        trial = self._queue.popleft()
        ask = self.on_report
        decide: Decide | None = None if ask is None else lambda step, value: ask(trial.number, step, value)
        return [evaluate_trial(self._evaluate, trial, self._seed, decide)]

    def close(self) -> None:
        """Forget the queue."""
        self._queue.clear()
