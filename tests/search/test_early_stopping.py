from __future__ import annotations

import json
import math
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search import evaluations
from strop.errors import ConfigError, StoreError
from strop.mutables import OneOf, SearchSpaceFile, Space, Subnet
from strop.search import (
    EarlyStopping,
    InProcess,
    LocalProcesses,
    Trial,
    TrialCommand,
    report_intermediate_result,
    run,
)
from strop.search.store import Store
from tests.scripts import Script

SPACE = Space({'a': OneOf(tuple(range(40)))})
# The better a subnet, the higher its curve at each step.
STEPS = 6


def curve(subnet: Subnet) -> float:
    for epoch in range(1, STEPS + 1):
        report_intermediate_result(subnet['a'] * epoch / STEPS)
    return float(subnet['a'])


def facts(trials: list[Trial]) -> list[Any]:
    return [(trial.number, dict(trial.subnet), trial.state, trial.values, trial.error, trial.reports) for trial in trials]


def search(**options: Any) -> Any:
    return run(SPACE, curve, **{'strategy': 'random', 'trials': 40, 'pruner': 'median', **options})


class TestNames:
    @pytest.mark.parametrize(
        ('pruner', 'told'),
        [
            ('median', {'type': 'median'}),
            ('MedianPruner', {'type': 'median'}),
            ({'type': 'Medianstop', 'optimize_mode': 'maximize', 'start_step': 4}, {'type': 'median', 'n_warmup_steps': 4}),
            ({'type': 'percentile', 'percentile': 25.0}, {'type': 'percentile', 'percentile': 25.0}),
        ],
    )
    def test_names(self, pruner: Any, told: dict[str, Any]) -> None:
        stopping = EarlyStopping.of(pruner)
        assert stopping is not None
        assert stopping.to_dict() == told
        assert EarlyStopping.of(stopping) is stopping

    @pytest.mark.parametrize(
        ('pruner', 'message'),
        [
            ('medain', "no pruner 'medain'. Did you mean 'median'"),
            ('Curvefitting', "nearest are 'median' and 'hyperband'"),
            ({'type': 'median', 'warmup_steps': 3}, "no option 'warmup_steps'. Did you mean 'n_warmup_steps'"),
            ({'type': 'percentile', 'percentile': 250.0}, 'cannot be built'),
            ('percentile', 'cannot be built'),
            ({'type': 'patient', 'patience': 2, 'pruner': 'nope'}, "no pruner 'nope'"),
            ({'name': 'median'}, "a mapping with 'type'"),
            (3, 'must be a name'),
            (optuna.pruners.MedianPruner(), "Give Optuna's by name"),
        ],
    )
    def test_bad_ones(self, pruner: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            EarlyStopping.of(pruner)

    def test_one_objective_alone(self) -> None:
        with pytest.raises(ConfigError, match='one objective'):
            search(objectives={'up': 'maximize', 'down': 'minimize'})

    def test_an_executor_that_passes_nothing_on(self) -> None:
        class Deaf:
            capacity = 1
            start = submit = wait = close = print

        with pytest.raises(ConfigError, match='Deaf does not pass on'):
            search(executor=Deaf())


class TestDecisions:
    def test_the_median_by_hand(self) -> None:
        """Stopped where the best report so far is below the median of what complete trials had at that step."""
        result = search(pruner={'type': 'median', 'n_startup_trials': 3})
        complete: list[Trial] = []
        for trial in result.trials:
            expected = trial.subnet['a']
            if len(complete) >= 3:
                for step in range(1, STEPS + 1):
                    known = sorted(other.reports[step] for other in complete)
                    middle = len(known) // 2
                    median = known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2
                    if expected * step / STEPS < median - 1e-12:
                        assert trial.stopped
                        assert max(trial.reports) == step
                        break
                else:
                    assert trial.complete
            if trial.complete:
                complete.append(trial)
        assert len(result.stopped_early) > 10
        assert result.failed == []
        assert result.best.values == {'score': 39.0}

    @pytest.mark.parametrize(
        'pruner',
        [
            {'type': 'hyperband', 'min_resource': 1, 'max_resource': 6, 'reduction_factor': 2},
            {'type': 'successive_halving', 'min_resource': 1, 'reduction_factor': 2},
            {'type': 'percentile', 'percentile': 30.0, 'n_startup_trials': 2},
            {'type': 'threshold', 'lower': 1.0},
            {'type': 'patient', 'patience': 1, 'pruner': {'type': 'median', 'n_startup_trials': 2}},
        ],
        ids=lambda pruner: pruner['type'],
    )
    def test_each_stops_the_bad_and_keeps_the_best(self, pruner: dict[str, Any]) -> None:
        result = search(pruner=pruner, store=None)
        best = {'score': 39.0}
        if pruner['type'] != 'patient':  # these curves never fall, so patience never runs out
            assert result.stopped_early
        assert result.best.values == best
        assert len(result.trials) == 40
        assert all(trial.values is None and not trial.complete and trial.finished for trial in result.stopped_early)

    def test_the_optuna_study_of_the_same_reports_agrees(self) -> None:
        """Our decisions are those of `trial.should_prune` in a loop of Optuna's own."""
        options = {'min_resource': 1, 'reduction_factor': 3}
        result = search(pruner={'type': 'successive_halving', **options})
        study = optuna.create_study(direction='maximize', pruner=optuna.pruners.SuccessiveHalvingPruner(**options))
        for trial in result.trials:
            theirs = study.ask()
            last = None
            for step in range(1, STEPS + 1):
                theirs.report(trial.subnet['a'] * step / STEPS, step)
                if theirs.should_prune():
                    last = step
                    break
            study.tell(theirs, None if last else trial.subnet['a'], state=TrialState.PRUNED if last else TrialState.COMPLETE)
            assert trial.stopped == (last is not None)
            assert max(trial.reports) == (last or STEPS)

    def test_without_a_pruner_reports_are_kept_and_decide_nothing(self) -> None:
        result = search(pruner=None, trials=4)
        assert all(trial.complete and list(trial.reports) == list(range(1, STEPS + 1)) for trial in result.trials)
        assert result.to_dict()['trials'][0]['reports'][0] == [1, result.trials[0].subnet['a'] / STEPS]


class TestOddReports:
    def test_nan_twice_and_out_of_order(self, tmp_path: Path) -> None:
        def evaluate(subnet: Subnet) -> float:
            report_intermediate_result(5.0, step=3)
            report_intermediate_result(0.0, step=3)
            report_intermediate_result(1.0, step=1)
            report_intermediate_result(float('inf'), step=4)
            if subnet['a'] % 2:
                report_intermediate_result(float('nan'))
            return float(subnet['a'])

        pruner = {'type': 'threshold', 'lower': -1.0}
        result = run(SPACE, evaluate, strategy='grid', trials=8, pruner=pruner, store=tmp_path)
        for trial in result.trials:
            assert trial.stopped == bool(trial.subnet['a'] % 2)
            assert list(trial.reports)[:3] == [1, 3, 4]
            assert (trial.reports[1], trial.reports[3], trial.reports[4]) == (1.0, 5.0, math.inf)
            assert math.isnan(trial.reports[5]) if trial.stopped else 5 not in trial.reports
        again = run(SPACE, evaluate, strategy='grid', trials=8, pruner=pruner, store=tmp_path)
        assert repr(facts(again.trials)) == repr(facts(result.trials))

    def test_a_string_fails_its_trial_alone(self) -> None:
        def evaluate(subnet: Subnet) -> float:
            report_intermediate_result('good' if subnet['a'] == 3 else 1.0)
            return 1.0

        result = run(SPACE, evaluate, strategy='grid', trials=6, pruner='median')
        assert [trial.subnet['a'] for trial in result.failed] == [3]
        assert 'takes a number' in str(result.failed[0].error)


class TestStore:
    def test_optuna_sees_pruned_trials_with_their_curves(self, tmp_path: Path) -> None:
        pruner = {'type': 'median', 'n_startup_trials': 2}
        result = search(store=f'sqlite:///{tmp_path}/s.db', trials=8, pruner=pruner)
        study = optuna.load_study(study_name='search', storage=f'sqlite:///{tmp_path}/s.db')
        for frozen, trial in zip(study.trials, result.trials, strict=True):
            assert frozen.intermediate_values == trial.reports
            assert frozen.state == (TrialState.PRUNED if trial.stopped else TrialState.COMPLETE)
            if trial.stopped:
                assert frozen.value == trial.reports[max(trial.reports)]
        assert study.user_attrs['strop']['pruner'] == pruner
        assert result.stopped_early

    def test_a_stopped_trial_is_not_tried_again(self, tmp_path: Path) -> None:
        first = search(store=tmp_path, trials=20)
        again = search(store=tmp_path, trials=30)
        assert facts(again.trials)[:20] == facts(first.trials)
        assert len({trial.subnet for trial in again.trials}) == 30

    def test_a_store_that_breaks_ends_the_search_and_not_the_trial(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> None:
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(optuna.storages.InMemoryStorage, 'set_trial_intermediate_value', broken)
        with pytest.raises(StoreError, match='No space left'):
            search()

    def test_a_trial_that_another_process_ended_is_told_to_stop(self, tmp_path: Path) -> None:
        store = Store(tmp_path, SPACE, {'score': 'maximize'})
        trial = store.create(SPACE.first(), {})
        assert not store.report(0, 1, 0.5)
        other = Store(tmp_path, SPACE, {'score': 'maximize'})
        other._storage.set_trial_state_values(other._ids[trial.number], TrialState.FAIL)
        assert store.report(0, 2, 0.5)


@pytest.mark.parametrize('strategy', ['default', 'regularized', 'local', 'spos', 'nsga2', 'TPESampler', 'CmaEsSampler'])
def test_every_strategy_goes_on_after_stopped_trials_and_resumes(strategy: str, tmp_path: Path) -> None:
    whole = search(strategy=strategy, trials=30, seed=2)
    search(strategy=strategy, trials=11, seed=2, store=tmp_path)
    search(strategy=strategy, trials=18, seed=2, store=tmp_path)
    parts = search(strategy=strategy, trials=30, seed=2, store=tmp_path)
    assert facts(parts.trials) == facts(whole.trials)
    assert whole.stopped_early


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from search.test_early_stopping import PRUNER, SPACE, curve
from strop.search import report_intermediate_result, run
calls = open({log!r}, 'a')
def evaluate(subnet):
    calls.write('x'); calls.flush()
    time.sleep(0.004)
    return curve(subnet)
run(SPACE, evaluate, strategy='TPESampler', store={store!r}, trials=40, seed=4, pruner=PRUNER)
"""
PRUNER = {'type': 'hyperband', 'min_resource': 1, 'max_resource': STEPS, 'reduction_factor': 2}


def test_a_killed_search_stops_the_same_trials(tmp_path: Path) -> None:
    log, tests = tmp_path / 'calls', str(Path(__file__).resolve().parents[1])
    log.touch()
    script = SCRIPT.format(tests=tests, log=str(log), store=str(tmp_path / 'search.journal'))
    generator = random.Random(3)
    for _ in range(3):
        process = Script(script, cwd=tmp_path)
        goal = log.stat().st_size + generator.randrange(1, 10)
        while log.stat().st_size < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.015)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = search(strategy='TPESampler', store=tmp_path / 'search.journal', seed=4, pruner=PRUNER)
    whole = search(strategy='TPESampler', seed=4, pruner=PRUNER)
    assert facts(resumed.trials) == facts(whole.trials)
    assert whole.stopped_early


def test_what_an_attempt_that_was_cut_off_left_decides_nothing(tmp_path: Path) -> None:
    """Killed between the rung that says stop and the end of the trial: the new attempt is judged at that rung again."""
    stopping = EarlyStopping.of({'type': 'successive_halving', 'min_resource': 1, 'reduction_factor': 2})
    store = Store(tmp_path, SPACE, {'score': 'maximize'})
    good, bad = (store.create(SPACE.subnet({'a': value}), {}) for value in (9, 1))
    assert not store.report(good.number, 1, 9.0, stopping)
    assert store.report(bad.number, 1, 1.0, stopping)
    store.close()
    store = Store(tmp_path, SPACE, {'score': 'maximize'})
    assert [trial.number for trial in store.take_abandoned()] == [0, 1]
    assert not store.report(good.number, 1, 9.0, stopping)
    assert store.report(bad.number, 1, 1.0, stopping)


TRIAL = """
import json, os, sys, time
folder = os.environ['STROP_TRIAL_DIR']
value = json.load(open(folder + '/parameters.json'))['parameters']['a']
def write(kind, step, value):
    with open(folder + '/metrics.jsonl', 'a') as stream:
        stream.write(json.dumps({'type': kind, 'sequence': step, 'value': value}) + chr(10))
write('intermediate', 1, 'a string')
write('intermediate', 1, value)
write('intermediate', 'odd', {'default': value + 1})
print('reported', flush=True)
if value < 2:
    time.sleep(30)
write('final', 0, value)
"""


class TestScripts:
    @pytest.mark.parametrize('executor', [InProcess(), None], ids=['in process', 'local processes'])
    def test_a_script_is_killed_with_its_processes(self, executor: Any, tmp_path: Path) -> None:
        (tmp_path / 'trial.py').write_text(TRIAL)
        space = SearchSpaceFile({'a': {'_type': 'choice', '_value': [9, 8, 0, 7, 1]}})
        command = TrialCommand(f'{sys.executable} -S trial.py', space, tmp_path / 'trials', cwd=tmp_path, timeout=20)
        begin = time.monotonic()
        result = run(
            space.space,
            command,
            strategy='grid',
            trials=5,
            pruner={'type': 'threshold', 'lower': 2.0},
            executor=executor or LocalProcesses(1),
        )
        assert time.monotonic() - begin < 15 + (20 if executor is None else 0)
        assert [trial.state for trial in result.trials] == ['complete', 'complete', 'stopped', 'complete', 'stopped']
        assert [trial.reports for trial in result.trials][:3] == [{1: 9.0, 2: 10.0}, {1: 8.0, 2: 9.0}, {1: 0.0}]
        assert (tmp_path / 'trials' / 'trial_2' / 'trial.log').read_text() == 'reported\n'
        content = json.loads((tmp_path / 'trials' / 'trial_3' / 'parameters.json').read_text())
        assert content == {'parameter_id': 3, 'parameters': {'a': 7}}

    def test_a_second_attempt_keeps_what_the_first_left(self, tmp_path: Path) -> None:
        (tmp_path / 'trials' / 'trial_0').mkdir(parents=True)
        (tmp_path / 'trials' / 'trial_0' / 'metrics.jsonl').write_text('{"type": "final", "sequence": 0, "value": 77}\n')
        (tmp_path / 'trial.py').write_text(TRIAL)
        space = SearchSpaceFile({'a': {'_type': 'choice', '_value': [9]}})
        command = TrialCommand(f'{sys.executable} -S trial.py', space, tmp_path / 'trials', cwd=tmp_path)
        assert run(space.space, command, strategy='grid', trials=1).best.values == {'score': 9.0}
        assert sorted(path.name for path in (tmp_path / 'trials').iterdir()) == ['trial_0', 'trial_0.old1']


class TestProcesses:
    def test_the_trials_are_those_of_one_process(self) -> None:
        options = {'strategy': 'random', 'trials': 12, 'pruner': {'type': 'threshold', 'lower': 2.0}, 'seed': 3}
        space = Space({'a': OneOf(tuple(range(12))), 'b': OneOf((1, 2, 3, 4))})
        both = run(space, evaluations.reporting, executor=LocalProcesses(2), **options)
        alone = run(space, evaluations.reporting, **options)
        assert facts(both.trials) == facts(alone.trials)
        assert both.stopped_early

    def test_one_that_does_not_obey_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr('strop.search.processes._OBEY', 0.3)
        space = Space({'a': OneOf((0, 1, 2)), 'b': OneOf((1,))})
        result = run(
            space,
            evaluations.stubborn,
            strategy='grid',
            trials=3,
            pruner={'type': 'threshold', 'lower': 0.5},
            executor=LocalProcesses(1),
        )
        assert [trial.state for trial in result.trials] == ['stopped', 'complete', 'complete']


def test_the_readme_of_the_protocol_holds_for_an_executor_of_ones_own() -> None:
    """What `executor.py` asks of an executor is enough: here one that carries the question over by hand."""

    class Carrier(InProcess):
        def __init__(self) -> None:
            super().__init__()
            self.carried: list[tuple[int, int, float]] = []
            self._driver: Any = None

        @property  # type: ignore[override]
        def on_report(self) -> Any:
            return self._carry

        @on_report.setter
        def on_report(self, ask: Any) -> None:
            self._driver = ask

        def _carry(self, number: int, step: int, value: float) -> bool:
            self.carried.append((number, step, value))
            return bool(self._driver(number, step, value))

    executor = Carrier()
    result = search(executor=executor)
    assert facts(result.trials) == facts(search().trials)
    assert len(executor.carried) == sum(len(trial.reports) for trial in result.trials)


def test_the_search_space_of_a_study_with_another_pruner_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search(store=tmp_path, trials=5)
    assert len(search(store=tmp_path, trials=8, pruner='hyperband').trials) == 8
    assert 'another pruner' in caplog.text
