from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strop.errors import ConfigError, StoreError, StropError
from strop.mutables import OneOf, Ordered, Space, Subnet
from strop.search import Constraint, Outcome, RegularizedEvolution, SPOSEvolution, Trial, evaluate_trial, run
from strop.search.store import Store
from tests.scripts import Script

SPACE = Space({f'op{place}': OneOf((0, 1, 2, 3)) for place in range(6)})


def total(subnet: Subnet) -> float:
    return float(sum(subnet.values()))


def noisy(subnet: Subnet) -> float:
    """Draws from every global generator, as a training does."""
    return total(subnet) + random.random() + float(np.random.rand()) + float(torch.rand(()))


def sequence(trials: list[Trial]) -> list[Any]:
    return [(trial.number, dict(trial.subnet), trial.state, trial.values, trial.info, trial.error) for trial in trials]


class TestEvaluation:
    @pytest.mark.parametrize(
        ('returned', 'reason'),
        [
            (float('nan'), "'score' must be a finite number, but the evaluation returned nan"),
            (float('-inf'), 'must be a finite number'),
            ('0.9', "must be a number, but the evaluation returned '0.9' of type str"),
            (None, 'of type NoneType'),
            (True, 'of type bool'),
            (torch.tensor([1.0, 2.0]), 'must be one number, but got several'),
            ({'scor': 1.0}, "'score' is missing from 'scor'. Did you mean 'scor'"),
        ],
    )
    def test_what_is_no_score_fails_the_trial(self, returned: Any, reason: str) -> None:
        result = run(SPACE, lambda subnet: returned if subnet['op0'] == 0 else 1.0, strategy='random', trials=30)
        assert len(result.trials) == 30
        assert result.failed
        for trial in result.failed:
            assert trial.subnet['op0'] == 0
            assert trial.values is None
            assert reason in str(trial.error)

    @pytest.mark.parametrize('returned', [1, 1.0, np.float32(1), np.int64(1), torch.tensor(1.0), np.array([1.0])])
    def test_numbers_of_every_kind(self, returned: Any) -> None:
        assert run(SPACE, lambda subnet: returned, strategy='random', trials=2).best.values == {'score': 1.0}

    def test_an_exception_is_kept_and_the_search_goes_on(self) -> None:
        def evaluate(subnet: Subnet) -> float:
            if subnet['op1'] == 2:
                raise ValueError('loss is\nnan')
            return total(subnet)

        result = run(SPACE, evaluate, trials=60)
        assert len(result.trials) == 60
        assert {trial.error for trial in result.failed} == {'ValueError: loss is nan'}
        assert result.best.subnet['op1'] != 2

    def test_a_failure_is_kept_without_the_password_in_it(self, tmp_path: Path) -> None:
        def evaluate(subnet: Subnet) -> float:
            raise ValueError('no answer from postgresql://ada:s3cret@db/images')

        result = run(SPACE, evaluate, trials=2, store=tmp_path / 'search.journal')
        assert result.failed[0].error == 'ValueError: no answer from postgresql://ada:***@db/images'
        assert 's3cret' not in (tmp_path / 'search.journal').read_text()

    def test_ten_failures_at_the_start_stop_it(self) -> None:
        calls = []

        def evaluate(subnet: Subnet) -> float:
            calls.append(subnet)
            raise RuntimeError(f'call {len(calls)}')

        with pytest.raises(StropError, match=r'each of its first 10 trials failed, the last one with: RuntimeError: call 10'):
            run(SPACE, evaluate, trials=50)
        assert len(calls) == 10

    def test_further_entries_and_resources_are_kept(self) -> None:
        result = run(
            SPACE,
            lambda subnet: {'accuracy': total(subnet), 'curve': np.array([1, 2]), 'note': 'x', 'odd': object},
            objectives={'accuracy': 'maximize', 'macs': 'minimize'},
            constraints=[Constraint('macs', lambda subnet: 10.0 + subnet['op0'])],
            strategy='random',
            trials=5,
        )
        for trial in result.trials:
            assert trial.values == {'accuracy': total(trial.subnet), 'macs': 10.0 + trial.subnet['op0']}
            assert trial.info['curve'] == [1, 2]
            assert trial.info['note'] == 'x'
            assert trial.info['macs'] == 10.0 + trial.subnet['op0']

    def test_the_globals_are_seeded_by_number_and_put_back(self) -> None:
        torch.manual_seed(7)
        before = torch.rand(3)
        torch.manual_seed(7)
        first = run(SPACE, noisy, strategy='random', trials=5)
        assert torch.equal(torch.rand(3), before)
        np.random.seed(99)
        assert sequence(run(SPACE, noisy, strategy='random', trials=5).trials) == sequence(first.trials)


class TestArguments:
    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            ({'trials': 0}, 'positive whole number'),
            ({'trials': True}, 'positive whole number'),
            ({'objectives': 'maximise'}, "Did you mean 'maximize'"),
            ({'objectives': {}}, 'at least one objective'),
            ({'constraints': [('macs', 3)]}, 'must hold Constraint objects'),
            ({'constraints': [Constraint('a', total, high=1)] * 2}, 'name of its own'),
        ],
    )
    def test_bad_ones(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            run(SPACE, total, **options)

    def test_space_and_evaluate(self) -> None:
        with pytest.raises(ConfigError, match='must be a Space'):
            run({'a': 1}, total)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match='must be a function'):
            run(SPACE, 3)  # type: ignore[arg-type]

    def test_seconds_end_it(self) -> None:
        result = run(SPACE, lambda subnet: time.sleep(0.02) or 1.0, strategy='random', trials=10_000, seconds=0.2)
        assert result.stopped == 'seconds'
        assert 1 <= len(result.trials) <= 15

    def test_callbacks_and_progress(self, capsys: pytest.CaptureFixture[str]) -> None:
        numbers: list[int] = []
        run(SPACE, total, strategy='random', trials=4, callbacks=[lambda trial: numbers.append(trial.number)], progress=True)
        assert numbers == [0, 1, 2, 3]
        said = capsys.readouterr()
        assert 'best score' in said.err
        assert said.out == ''

    def test_a_constraint_may_only_measure(self) -> None:
        result = run(SPACE, total, strategy='random', trials=3, constraints=[Constraint('sum', total)])
        assert all(trial.info == {'sum': total(trial.subnet)} for trial in result.trials)


class TestOperators:
    def test_those_of_the_user_are_used_and_repeat_themselves(self) -> None:
        used: list[str] = []

        def sample() -> dict[str, Any]:
            used.append('sample')
            return {key: torch.nn.functional.one_hot(torch.randint(4, ()), 4).bool() for key in SPACE}

        def mutate(subnet: Subnet) -> dict[str, Any]:
            used.append('mutate')
            key = random.choice(list(subnet))
            return {**subnet, key: int(np.random.randint(4))}

        def crossover(first: Subnet, second: Subnet) -> dict[str, Any]:
            used.append('crossover')
            return {key: (first if random.random() < 0.5 else second)[key] for key in first}

        def search() -> list[Any]:
            strategy = SPOSEvolution(
                population=12, top_k=4, mutations=4, crossovers=4, sample=sample, mutate=mutate, crossover=crossover
            )
            return sequence(run(SPACE, total, strategy=strategy, trials=36, seed=1).trials)

        first = search()
        assert set(used) == {'sample', 'mutate', 'crossover'}
        random.seed(5)
        torch.manual_seed(5)
        assert search() == first

    def test_an_operator_that_gives_nonsense(self) -> None:
        strategy = RegularizedEvolution(population=4, sample_size=2, mutate=lambda subnet: {**subnet, 'op9': 1})
        with pytest.raises(StropError, match="'op9' is not a decision of this space"):
            run(SPACE, total, strategy=strategy, trials=10)


class Threads:
    """An executor whose trials end in another order than they began."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._running: list[Trial] = []
        self.most = 0

    def start(self, evaluate: Any, seed: int) -> None:
        self._evaluate, self._seed = evaluate, seed

    def submit(self, trial: Trial) -> None:
        self._running.append(trial)
        self.most = max(self.most, len(self._running))

    def wait(self) -> list[Outcome]:
        trial = self._running.pop()
        return [evaluate_trial(self._evaluate, trial, self._seed)]

    def close(self) -> None:
        self._running.clear()


@pytest.mark.parametrize('name', ['default', 'random', 'spos', 'regularized', 'local', 'nsga2', 'TPESampler', 'grid'])
def test_trials_may_end_in_any_order(name: str, tmp_path: Path) -> None:
    executor = Threads(4)
    result = run(SPACE, total, strategy=name, trials=50, executor=executor, store=tmp_path)
    assert executor.most == 4
    assert [trial.number for trial in result.trials] == list(range(50))
    assert len({trial.subnet for trial in result.trials}) == 50
    assert all(trial.values == {'score': total(trial.subnet)} for trial in result.trials)
    assert len(run(SPACE, total, strategy=name, trials=60, store=tmp_path).trials) == 60


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from tests.search.test_driver import SPACE, noisy
from strop.search import run
calls = open({log!r}, 'a')
def evaluate(subnet):
    time.sleep(0.004)
    calls.write('x'); calls.flush()
    return noisy(subnet)
run(SPACE, evaluate, strategy={strategy!r}, store={store!r}, trials=60, seed=4)
"""


@pytest.mark.parametrize('strategy', ['default', 'nsga2'])
@pytest.mark.parametrize('kind', ['journal', pytest.param('sqlite', marks=pytest.mark.slow)])
def test_a_killed_search_repeats_itself(strategy: str, kind: str, tmp_path: Path) -> None:
    store = str(tmp_path / 'search.journal') if kind == 'journal' else f'sqlite:///{tmp_path}/search.db'
    _kill_and_resume(strategy, store, tmp_path, kills=3)


@pytest.mark.slow
def test_a_search_killed_thirty_times_repeats_itself(tmp_path: Path) -> None:
    _kill_and_resume('default', str(tmp_path / 'search.journal'), tmp_path, kills=30)


def _kill_and_resume(strategy: str, store: str, folder: Path, kills: int) -> None:
    log = folder / 'calls'
    log.touch()
    root = str(Path(__file__).resolve().parents[2])
    script = SCRIPT.format(root=root, log=str(log), store=store, strategy=strategy)
    generator = random.Random(strategy)
    for _ in range(kills):
        process = Script(script, cwd=folder)
        goal = log.stat().st_size + generator.randrange(1, max(2, 50 // kills))
        while log.stat().st_size < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert log.stat().st_size < 60 + kills
    resumed = run(SPACE, noisy, strategy=strategy, store=store, trials=60, seed=4)
    whole = run(SPACE, noisy, strategy=strategy, trials=60, seed=4)
    assert sequence(resumed.trials) == sequence(whole.trials)
    assert [trial.number for trial in resumed.trials] == list(range(60))


def test_ctrl_c_leaves_a_store_that_resumes(tmp_path: Path) -> None:
    def evaluate(subnet: Subnet) -> float:
        calls.append(subnet)
        if len(calls) == 17:
            raise KeyboardInterrupt
        return noisy(subnet)

    calls: list[Subnet] = []
    with pytest.raises(KeyboardInterrupt):
        run(SPACE, evaluate, store=tmp_path, trials=30)
    resumed = run(SPACE, evaluate, store=tmp_path, trials=30)
    assert sequence(resumed.trials) == sequence(run(SPACE, noisy, trials=30).trials)
    assert calls[16] == calls[17]


def test_two_live_processes_share_a_store(tmp_path: Path) -> None:
    store = tmp_path / 'search.journal'
    code = (
        'import sys, time; sys.path.insert(0, sys.argv[1])\n'
        'from tests.search.test_driver import SPACE, total\n'
        'from strop.search import run\n'
        "run(SPACE, lambda subnet: time.sleep(0.01) or total(subnet), strategy='random', store=sys.argv[2], trials=80)\n"
    )
    processes = [Script(code, Path(__file__).resolve().parents[2], store, cwd=tmp_path) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    result = run(SPACE, total, strategy='random', store=store, trials=1)
    assert [trial.number for trial in result.trials] == list(range(len(result.trials)))
    assert 80 <= len(result.trials) <= 82
    complete = result.complete
    assert len({trial.subnet for trial in complete}) == len(complete) >= 70
    assert all('another process' in str(trial.error) for trial in result.failed)
    owners = {
        json.dumps(line.get('user_attrs', {}).get('owner')) for line in map(json.loads, store.open()) if line['op_code'] == 4
    }
    assert len(owners) == 2


def test_a_live_process_keeps_its_trial(tmp_path: Path) -> None:
    begun, release = threading.Event(), threading.Event()
    seen: list[str] = []

    def slow(subnet: Subnet) -> float:
        seen.append(subnet.digest)
        begun.set()
        release.wait(30)
        return 1.0

    thread = threading.Thread(target=run, args=(SPACE, slow), kwargs={'store': tmp_path, 'trials': 1, 'strategy': 'random'})
    thread.start()
    assert begun.wait(30)
    other = run(SPACE, lambda subnet: seen.append(subnet.digest) or 2.0, store=tmp_path, trials=3, strategy='random')
    assert [trial.number for trial in other.trials] == [1, 2]
    release.set()
    thread.join()
    assert len(set(seen)) == 3
    last = run(SPACE, total, store=tmp_path, trials=3, strategy='random')
    assert [trial.values for trial in last.trials] == [{'score': 1.0}, {'score': 2.0}, {'score': 2.0}]


HOLDS_THE_LAST = """
import sys
from dataclasses import replace
from strop.mutables import OneOf, Space
from strop.search.store import Store
space = Space({'a': OneOf((0, 1))})
store = Store(sys.argv[1], space, {'score': 'maximize'})
trial = store.create(space.subnet({'a': 1}), {})
print('begun', flush=True)
sys.stdin.readline()
store.finish(replace(trial, state='complete', values={'score': 7.0}))
"""


@pytest.mark.parametrize('dies', [False, True])
def test_the_last_trial_of_another_process_is_waited_for(dies: bool, tmp_path: Path) -> None:
    store = tmp_path / 'search.journal'
    command = [sys.executable, '-c', HOLDS_THE_LAST, store]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=Path(__file__).resolve().parents[2], **pipes) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == 'begun\n'
        space = Space({'a': OneOf((0, 1))})
        # What it waits for is no reason to go beyond a limit, nor not to hear that it is to end.
        assert run(space, total, strategy='random', store=store, trials=9, seconds=0.7).stopped == 'seconds'
        asked = iter([False, False, False, True])
        halted = run(space, total, strategy='random', store=store, trials=9, halt=lambda: next(asked, True))
        assert (len(halted.trials), halted.stopped) == (1, 'halt')
        end = other.kill if dies else other.stdin.close
        threading.Timer(1.5, end).start()
        result = run(space, total, strategy='random', store=store, trials=9)
    assert result.stopped == 'exhausted'
    values = {trial.subnet['a']: trial.values for trial in result.trials}
    assert values == {0: {'score': 0.0}, 1: {'score': 1.0 if dies else 7.0}}


def test_resuming_another_question(tmp_path: Path) -> None:
    run(SPACE, total, strategy='random', store=tmp_path, trials=2)
    with pytest.raises(StoreError, match=r"objectives \{'score': 'maximize'\}, but \{'score': 'minimize'\}"):
        run(SPACE, total, store=tmp_path, objectives='minimize')
    other = Space({**SPACE, 'op5': Ordered((1, 2)), 'new': OneOf((1, 2))})
    with pytest.raises(StoreError, match=r"over another space: the store lacks 'new'; 'op5' was .*one_of.* and is .*ordered"):
        run(other, total, store=tmp_path)
    with pytest.raises(StoreError, match=r'with the constraints \[\], but .*sum'):
        run(SPACE, total, store=tmp_path, constraints=[Constraint('sum', total, high=3)])
    with pytest.raises(StoreError, match='resume=True'):
        run(SPACE, total, store=tmp_path, resume=False)
    assert len(run(SPACE, total, strategy='random', store=tmp_path, name='other', objectives='minimize', trials=3).trials) == 3
    assert len(run(SPACE, total, strategy='random', store=tmp_path, trials=4).trials) == 4


def test_what_a_dead_process_left_is_evaluated_where_nothing_else_is_left(tmp_path: Path) -> None:
    space = Space({'a': OneOf((0, 1, 2))})
    others = []

    def evaluate(subnet: Subnet) -> float:
        if not others:
            other = Store(tmp_path, space, {'score': 'maximize'})
            other.create(space.subnet({'a': 2 - int(subnet['a']) // 2}), {})
            others.append(other)
        else:
            others[0].close()  # its process is gone
        return float(subnet['a'])

    result = run(space, evaluate, strategy='grid', store=tmp_path, trials=20)
    assert sorted(trial.values['score'] for trial in result.trials if trial.values) == [0.0, 1.0, 2.0]
    assert result.stopped == 'exhausted'


@pytest.mark.parametrize('executor', ['LocalProceses', 0, [1]])
def test_an_executor_that_is_none_is_told_before_anything_is_written(tmp_path: Path, executor: Any) -> None:
    with pytest.raises(ConfigError, match=r'executor|`workers`'):
        run(Space({'a': OneOf((0, 1))}), lambda subnet: 1.0, store=tmp_path / 's.journal', trials=1, executor=executor)
    assert not (tmp_path / 's.journal').exists()
