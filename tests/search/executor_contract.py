"""What every executor owes, and a hand that kills: shared by the tests of each executor."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from search import evaluations
from strop.mutables import OneOf, Space
from strop.search import Trial, run

SPACE = Space({'a': OneOf((0, 1, 2)), 'b': OneOf((1, 2, 3, 4))})
WIDE = Space({'a': OneOf(tuple(range(60)))})


def facts(result: Any) -> list[Any]:
    return sorted((trial.number, dict(trial.subnet), trial.state, trial.values, trial.error) for trial in result.trials)


def check(executor: Any) -> None:
    """One instance serves several searches: their trials are those of one process, also those that fail or are stopped."""
    options: Any = {'strategy': 'random', 'trials': 10, 'seed': 3, 'pruner': {'type': 'threshold', 'lower': 1.0}}
    there = run(SPACE, evaluations.of_all_kinds, executor=executor, **options)
    here = run(SPACE, evaluations.of_all_kinds, **options)
    assert facts(there) == facts(here)
    assert [trial.reports for trial in there.trials] == [trial.reports for trial in here.trials]
    assert {trial.state for trial in here.trials} == {'complete', 'failed', 'stopped'}
    executor.start(evaluations.plain, 0)
    executor.submit(Trial(7, SPACE.subnet({'a': 2, 'b': 1})))
    executor.close()
    executor.close()
    executor.start(evaluations.plain, 0)
    executor.submit(Trial(8, SPACE.subnet({'a': 2, 'b': 1})))
    outcomes = executor.wait()
    assert [(outcome.number, outcome.returned) for outcome in outcomes] == [(8, 21.0)], 'what was not waited for is dropped'
    executor.close()


class Marked:
    """A function of the trial's own seed that takes a moment; each process that evaluates it leaves its id in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, subnet: Any) -> float:
        (self.folder / f'pid_{os.getpid()}').touch()
        time.sleep(0.15)
        return subnet['a'] + float(torch.rand(()))


def check_kills(executor: Any, folder: Path, trials: int, kills: int, seed: int) -> None:
    """Kill processes that evaluate at random moments: no trial is lost, and none is counted twice."""
    evaluate = Marked(folder)
    alone = run(WIDE, evaluate, strategy='random', trials=trials, seed=seed)
    for path in folder.glob('pid_*'):
        path.unlink()
    rng, done, killed = random.Random(seed), threading.Event(), []

    def kill() -> None:
        while not done.is_set() and len(killed) < kills:
            time.sleep(rng.uniform(0.05, 0.4))
            for path in sorted(folder.glob('pid_*'), key=lambda path: path.stat().st_mtime)[-2:]:
                try:
                    os.kill(int(path.name[4:]), signal.SIGKILL)
                    killed.append(path.name)
                    break
                except ProcessLookupError:
                    path.unlink(missing_ok=True)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = run(WIDE, evaluate, strategy='random', trials=trials, seed=seed, executor=executor)
    finally:
        done.set()
        killer.join()
    assert killed
    assert facts(result) == facts(alone)
