"""Where trials are evaluated: the protocol, and the executor that does it in this process."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from strop.mutables import Subnet
from strop.randomness import seeded
from strop.search.trial import Trial

Evaluate = Callable[[Subnet], Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one evaluation.

    Args:
        number: The trial's number.
        returned: What the evaluation returned.
        seconds: How long it took.
        error: One line on what it raised, or None.
        trace: The traceback, for the log.
    """

    number: int
    returned: Any
    seconds: float
    error: str | None = None
    trace: str | None = None


def evaluate_trial(evaluate: Evaluate, trial: Trial, seed: int) -> Outcome:
    """Evaluate one trial with the global generators seeded by (`seed`, its number); what it raises becomes its error.

    >>> from strop.mutables import OneOf, Space
    >>> trial = Trial(0, Space({'kernel': OneOf((3, 5))}).subnet({'kernel': 3}))
    >>> evaluate_trial(lambda subnet: 1 / 0, trial, seed=0).error
    'ZeroDivisionError: division by zero'
    """
    begin = time.perf_counter()
    with seeded(seed, 'evaluate', trial.number):
        try:
            returned = evaluate(trial.subnet)
        except Exception as error:
            text = ' '.join(f'{type(error).__name__}: {error}'.split())
            return Outcome(trial.number, None, time.perf_counter() - begin, text, traceback.format_exc())
    return Outcome(trial.number, returned, time.perf_counter() - begin)


class Executor(Protocol):
    """Runs evaluations. The driver submits while fewer than `capacity` trials are under way, then waits.

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
        return [evaluate_trial(self._evaluate, self._queue.popleft(), self._seed)]

    def close(self) -> None:
        """Forget the queue."""
        self._queue.clear()
