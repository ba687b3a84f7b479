from __future__ import annotations

import random

import pytest

from strop.mutables import OneOf, Space
from strop.search import InProcess, Trial, evaluate_trial

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


def test_in_process_keeps_the_order_and_forgets_on_close() -> None:
    executor = InProcess()
    executor.start(lambda subnet: subnet['a'], seed=0)
    for number in range(3):
        executor.submit(Trial(number, SUBNET))
    assert [executor.wait()[0].number for _ in range(2)] == [0, 1]
    executor.close()
    with pytest.raises(IndexError):
        executor.wait()
