"""Results on the way: how an evaluation tells them while it runs, and how it learns that its trial is to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from strop.errors import ComponentTypeError

#: (step, value) -> whether the trial is to end.
Decide = Callable[[int, float], bool]


class TrialStopped(BaseException):
    """Raised by a report in a trial that is to end early.

    It is no `Exception`, as `KeyboardInterrupt` is none, so that an evaluation which goes on after errors does not catch it;
    `finally` and context managers run. The trial counts as stopped even where it is caught.
    """


class Reporter:
    """What one trial reports to.

    Args:
        number: The trial's number.
        decide: Takes each report and tells whether the trial is to end.

    >>> reporter = Reporter(0, lambda step, value: value < 0.5)
    >>> reporter.report(0.9)
    >>> try:
    ...     reporter.report(0.1)
    ... except TrialStopped as end:
    ...     print(end)
    trial 0 is stopped early, after its report of 0.1 at step 2
    """

    def __init__(self, number: int, decide: Decide) -> None:
        self.number = number
        self.stopped = False
        self.broken: Exception | None = None
        self._decide = decide
        self._last = 0

    def report(self, value: float, step: int | None = None) -> None:
        """Hand a value on.

        Args:
            value: The result so far; NaN and infinity are values, too.
            step: How far the trial is, such as its epoch; by default one more than at the last report.

        Raises:
            TrialStopped: If the trial is to end.
            ComponentTypeError: If `step` is no whole number, 0 or more.
        """
        step = self._last + 1 if step is None else step
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ComponentTypeError(f'The step of a report is a whole number, 0 or more, but got {step!r}.')
        self._last = max(self._last, step)
        if not self.stopped:
            try:
                self.stopped = self._decide(step, float(value))
            except Exception as error:
                # The fault of the search, not of the trial: an evaluation must not take it for its own.
                self.broken, self.stopped = error, True
        if self.stopped:
            raise TrialStopped(f'trial {self.number} is stopped early, after its report of {value} at step {step}')


_current: ContextVar[Reporter | None] = ContextVar('reporter of the trial', default=None)


def current_reporter() -> Reporter | None:
    """Return the reporter of the evaluation that runs in this thread; None outside of one.

    >>> current_reporter() is None
    True
    """
    return _current.get()


@contextmanager
def reporting_to(reporter: Reporter | None) -> Iterator[None]:
    """Let the reports of the block go to a reporter."""
    token = _current.set(reporter)
    try:
        yield
    finally:
        _current.reset(token)
