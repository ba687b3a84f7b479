from __future__ import annotations

import random

import pytest

from strop.mutables import OneOf, Space, Subnet
from strop.search import InProcess, Trial, TrialReportError, evaluate_trial

SUBNET = Space({'a': OneOf((1, 2))}).first()


def test_an_evaluation_is_a_function_of_seed_and_number() -> None:
    def draw(seed: int, number: int) -> float:
        return evaluate_trial(lambda subnet: random.random(), Trial(number, SUBNET), seed).returned

    assert draw(0, 1) == draw(0, 1)
    assert len({draw(seed, number) for seed in range(3) for number in range(3)}) == 9


def test_errors_are_one_line_with_their_trace() -> None:
    outcome = evaluate_trial(lambda subnet: {}['missing\nkey'], Trial(3, SUBNET), 0)
    assert outcome.number == 3
    assert outcome.error == "KeyError: 'missing\\nkey'"
    assert 'Traceback' in str(outcome.trace)
    with pytest.raises(SystemExit):
        evaluate_trial(lambda subnet: exit(1), Trial(0, SUBNET), 0)


def test_what_a_broken_trial_printed_cannot_command_a_terminal() -> None:
    def evaluate(subnet: Subnet) -> float:
        raise ValueError('\x1b[31mred\x0e \x00')

    assert evaluate_trial(evaluate, Trial(0, SUBNET), 0).error == 'ValueError: \ufffd[31mred\ufffd \ufffd'


def test_a_script_without_a_result_is_told_without_the_lines_of_this_package() -> None:
    def evaluate(subnet: Subnet) -> float:
        raise TrialReportError('The trial ended with exit code 1.')

    outcome = evaluate_trial(evaluate, Trial(0, SUBNET), 0)
    assert outcome.error == 'TrialReportError: The trial ended with exit code 1.'
    assert outcome.trace is None


def test_in_process_keeps_the_order_and_forgets_on_close() -> None:
    executor = InProcess()
    executor.start(lambda subnet: subnet['a'], seed=0)
    for number in range(3):
        executor.submit(Trial(number, SUBNET))
    assert [executor.wait()[0].number for _ in range(2)] == [0, 1]
    executor.close()
    with pytest.raises(IndexError):
        executor.wait()
