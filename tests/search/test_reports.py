from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from strop.errors import ComponentTypeError
from strop.mutables import OneOf, Space
from strop.search import InProcess, Trial, TrialStopped, evaluate_trial, report_intermediate_result, run
from strop.search.reports import Reporter, current_reporter, reporting_to

SPACE = Space({'a': OneOf(tuple(range(8)))})


def test_steps_count_from_one_and_go_on_from_the_highest() -> None:
    seen: list[tuple[int, float]] = []
    reporter = Reporter(0, lambda step, value: bool(seen.append((step, value))))
    for value, step in ((0.1, None), (0.2, None), (0.3, 7), (0.4, 5), (0.5, None)):
        reporter.report(value, step)
    assert seen == [(1, 0.1), (2, 0.2), (7, 0.3), (5, 0.4), (8, 0.5)]


@pytest.mark.parametrize('step', [-1, 1.5, True, '3'])
def test_a_step_is_a_whole_number(step: Any) -> None:
    with pytest.raises(ComponentTypeError, match='whole number, 0 or more'):
        Reporter(0, lambda *_: False).report(0.1, step)


def test_a_stop_passes_handlers_of_exceptions_and_runs_finally() -> None:
    ran: list[str] = []

    def evaluate(subnet: Any) -> float:
        for value in (3.0, 2.0, 1.0):
            try:
                report_intermediate_result(value)
            except Exception:
                ran.append('caught')
            finally:
                ran.append('finally')
        return 9.0

    outcome = evaluate_trial(evaluate, Trial(4, SPACE.first()), 0, lambda step, value: value < 2.5)
    assert (outcome.stopped, outcome.returned, outcome.error) == (True, None, None)
    assert ran == ['finally', 'finally']


def test_a_trial_that_catches_even_that_is_stopped_all_the_same() -> None:
    asked: list[float] = []

    def evaluate(subnet: Any) -> float:
        for value in (1.0, 2.0):
            try:
                report_intermediate_result(value)
            except TrialStopped:
                continue
        raise ValueError('too late')

    outcome = evaluate_trial(evaluate, Trial(0, SPACE.first()), 0, lambda step, value: bool(asked.append(value)) or True)
    assert (outcome.stopped, outcome.error) == (True, None)
    assert asked == [1.0]


def test_what_breaks_in_the_search_is_not_the_trials_fault() -> None:
    def evaluate(subnet: Any) -> float:
        try:
            report_intermediate_result(0.5)
        except Exception:
            return 1.0
        return 2.0

    def broken(step: int, value: float) -> bool:
        raise OSError('the disk is full')

    with pytest.raises(OSError, match='the disk is full'):
        evaluate_trial(evaluate, Trial(0, SPACE.first()), 0, broken)


def test_the_reporter_is_that_of_the_innermost_search() -> None:
    def outer(subnet: Any) -> float:
        before = current_reporter()
        inner = run(SPACE, lambda inside: report_intermediate_result(1.0) or 2.0, strategy='random', trials=2)
        assert current_reporter() is before
        assert [trial.reports for trial in inner.trials] == [{1: 1.0}, {1: 1.0}]
        report_intermediate_result(5.0)
        return 1.0

    result = run(SPACE, outer, strategy='random', trials=2)
    assert [trial.reports for trial in result.trials] == [{1: 5.0}, {1: 5.0}]
    assert current_reporter() is None


def test_numbers_of_every_kind_and_no_strings() -> None:
    seen: list[float] = []
    with reporting_to(Reporter(0, lambda step, value: bool(seen.append(value)))):
        for value in (1, np.float32(0.5), torch.tensor(2.0), {'default': 3, 'loss': 'x'}, float('nan')):
            report_intermediate_result(value)
        for value in ('0.5', None, [1], True, {'loss': 1}):
            with pytest.raises(ComponentTypeError):
                report_intermediate_result(value)
    assert seen[:4] == [1.0, 0.5, 2.0, 3.0]
    assert math.isnan(seen[4])


def test_an_executor_alone_needs_nobody_to_ask() -> None:
    executor = InProcess()
    executor.start(lambda subnet: report_intermediate_result(1.0) or 4.0, seed=0)
    executor.submit(Trial(0, SPACE.first()))
    assert executor.wait()[0].returned == 4.0
