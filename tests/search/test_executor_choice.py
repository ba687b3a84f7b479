from __future__ import annotations

from typing import Any

import pytest

from strop.errors import ConfigError
from strop.search import EXECUTORS, InProcess, LocalProcesses, RayExecutor, build_executor

from .executor_contract import check


def test_names_numbers_and_configs() -> None:
    assert isinstance(build_executor(None), InProcess)
    assert isinstance(build_executor(1), InProcess)
    assert isinstance(build_executor('in-process'), InProcess)
    three = build_executor(3)
    assert isinstance(three, LocalProcesses)
    assert three.capacity == 3
    assert build_executor(three) is three
    made = build_executor({'type': 'strop.LocalProcesses', 'workers': 2, 'memory': 100, 'threads': 1})
    assert isinstance(made, LocalProcesses)
    assert (made.capacity, made.memory, made.threads) == (2, 100, 1)
    assert isinstance(build_executor('local'), LocalProcesses)


def test_ray_by_name() -> None:
    pytest.importorskip('ray', reason='Ray is not installed')
    assert build_executor({'type': 'ray', 'workers': 5, 'cpus': 0.5}).capacity == 5


@pytest.mark.parametrize('make', [InProcess, lambda: LocalProcesses(2)])
def test_executors_keep_their_contract(make: Any) -> None:
    check(make())


def test_every_executor_is_under_the_contract() -> None:
    assert set(EXECUTORS.values()) == {InProcess, LocalProcesses, RayExecutor}, 'test_ray_actors.py has the last one'


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ('LocalProceses', "Did you mean 'LocalProcesses'"),
        ({'type': 'LocalProcesses', 'worker': 2}, 'cannot be built with .*worker'),
        ({'workers': 2}, "needs the key 'type'"),
        (0, '`workers` must be'),
        (True, 'An executor is a name'),
        (2.0, 'An executor is a name'),
        (object(), 'An executor is a name'),
    ],
)
def test_what_is_no_executor(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_executor(given)  # type: ignore[arg-type]
