"""The executor of local processes: same trials as in one process, limits, deaths, logs, shared weights, no orphans."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

import strop.search.processes as processes
from search import evaluations
from strop.errors import ConfigError
from strop.mutables import OneOf, Space
from strop.search import LocalProcesses, Trial, run
from strop.search.parcel import pack
from strop.search.processes import log_file

from .executor_contract import check_kills

PLAIN = Space({'a': OneOf((0, 1, 2)), 'b': OneOf((1, 2, 3, 4))})


def facts(result):
    return sorted((trial.number, dict(trial.subnet), trial.values, trial.error) for trial in result.trials)


@pytest.fixture(scope='module')
def two():
    executor = LocalProcesses(2)
    yield executor
    executor.close()


@pytest.mark.parametrize('evaluate', [evaluations.plain, evaluations.drawn])
def test_the_trials_are_those_of_one_process(two, evaluate):
    alone = run(PLAIN, evaluate, strategy='random', trials=10, seed=3)
    both = run(PLAIN, evaluate, strategy='random', trials=10, seed=3, executor=two)
    assert facts(both) == facts(alone)


def test_two_trials_run_at_once(two):
    two.start(evaluations.slow, 0)
    subnet = PLAIN.subnet({'a': 0, 'b': 2})
    two.submit(Trial(0, subnet))
    two.submit(Trial(1, subnet))
    assert len(psutil.Process().children(recursive=True)) >= 2
    outcomes = []
    while len(outcomes) < 2:
        outcomes += two.wait()
    assert sorted(outcome.number for outcome in outcomes) == [0, 1]


def test_every_way_to_fail_is_told_and_the_others_go_on(tmp_path):
    executor = LocalProcesses(2, seconds=3, memory=150, logs=tmp_path)
    space = Space({'a': OneOf(tuple(range(8))), 'b': OneOf((1,))})
    result = run(space, evaluations.mixed, strategy='grid', trials=8, executor=executor)
    told = {trial.subnet['a']: trial for trial in result.trials}
    assert told[7].values == {'score': 1.0}
    for kind, words in {
        0: 'ValueError: this one breaks',
        1: 'SIGKILL',
        2: 'exit code 3',
        3: 'its limit is 3 s',
        4: 'its limit is 150 MiB',
        5: 'cannot be sent back',
        6: 'nan',
    }.items():
        assert told[kind].state == 'failed'
        assert words in told[kind].error, told[kind].error
    log = log_file(tmp_path, told[7].number).read_text()
    assert log.splitlines() == ['line of 1', 'from a child']
    assert 'on the way out' in log_file(tmp_path, told[1].number).read_text()
    assert 'Traceback' in log_file(tmp_path, told[0].number).read_text()
    assert str(log_file(tmp_path, told[3].number)) in told[3].error


def test_a_log_that_cannot_be_written_takes_no_worker_with_it(tmp_path):
    def evaluate(subnet):
        print('x' * 20000)
        if subnet['b'] == 2:
            raise ValueError('two')
        return 1

    for number in range(3):
        (tmp_path / f'trial_{number}.log').symlink_to('/dev/full')
    (tmp_path / 'trial_3.log').mkdir()
    (tmp_path / 'trial_4.log').mkdir()
    result = run(PLAIN, evaluate, strategy='random', trials=6, executor=LocalProcesses(1, logs=tmp_path))
    assert {trial.error for trial in result.trials[:3]} <= {
        None,
        'OSError: [Errno 28] No space left on device',
        'ValueError: two',
    }
    assert {trial.error for trial in result.trials[3:]} <= {None, 'ValueError: two'}


def test_weights_are_shared_and_threads_divided(two):
    result = run(PLAIN, evaluations.Supernet(1000), strategy='random', trials=6, executor=LocalProcesses(2, threads=1))
    assert all(trial.values == {'score': 1000.0 + trial.subnet['b']} for trial in result.trials)
    assert len({trial.info['pid'] for trial in result.trials}) == 2
    assert {trial.info['threads'] for trial in result.trials} == {1}


def test_a_worker_that_dies_between_two_trials_is_replaced():
    executor = LocalProcesses(1)
    executor.start(evaluations.plain, 0)
    try:
        for number in range(2):
            executor.submit(Trial(number, PLAIN.subnet({'a': number, 'b': 2})))
            (outcome,) = executor.wait()
            assert (outcome.number, outcome.returned, outcome.error) == (number, number * 10.0 + 2, None)
            worker = executor._workers[0].process
            os.kill(worker.pid, signal.SIGKILL)
            worker.join(10)
    finally:
        executor.close()


def test_a_trial_whose_process_died_is_tried_again(tmp_path):
    def evaluate(subnet):
        mark = tmp_path / str(subnet['a'])
        tries = len(mark.read_text()) if mark.exists() else 0
        mark.write_text('x' * (tries + 1))
        if tries < subnet['a']:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(tries)

    space = Space({'a': OneOf((0, 1, 2))})
    result = run(space, evaluate, strategy='grid', trials=3, executor=LocalProcesses(2, retries=1))
    assert [trial.values for trial in result.trials] == [{'score': 0.0}, {'score': 1.0}, None]
    assert 'SIGKILL' in result.trials[2].error


def test_workers_killed_at_random_moments_lose_no_trial_and_count_none_twice(tmp_path):
    check_kills(LocalProcesses(2, retries=100), tmp_path, trials=16, kills=3, seed=1)


@pytest.mark.slow
def test_thirty_workers_killed_at_random_moments(tmp_path):
    check_kills(LocalProcesses(2, retries=100), tmp_path, trials=60, kills=30, seed=2)


def test_a_closure_travels_by_value():
    factor = 3
    result = run(PLAIN, lambda subnet: factor * subnet['b'], strategy='random', trials=4, executor=LocalProcesses(1))
    assert all(trial.values == {'score': 3.0 * trial.subnet['b']} for trial in result.trials)


def test_slots_of_devices():
    def visible(subnet):
        return int(os.environ['CUDA_VISIBLE_DEVICES'])

    result = run(PLAIN, visible, strategy='random', trials=6, executor=LocalProcesses(devices=['3', 5]))
    assert {trial.values['score'] for trial in result.trials} <= {3.0, 5.0}


def test_reports_do_not_put_a_limit_off():
    executor = LocalProcesses(1, seconds=1)
    result = run(PLAIN, evaluations.reports_without_end, strategy='random', trials=1, executor=executor)
    assert 'its limit is 1 s' in str(result.trials[0].error)


def test_what_a_killed_trial_started_dies_with_it():
    before = {p.pid for p in psutil.process_iter(['cmdline']) if '61.25' in (p.info['cmdline'] or [])}
    run(PLAIN, evaluations.hangs_with_a_child, strategy='random', trials=1, executor=LocalProcesses(1, seconds=1))
    time.sleep(0.2)
    left = {
        p.pid
        for p in psutil.process_iter(['cmdline', 'status'])
        if '61.25' in (p.info['cmdline'] or []) and p.info['status'] != psutil.STATUS_ZOMBIE
    }
    assert left <= before


def test_a_killed_search_leaves_no_workers_and_loses_no_trial(tmp_path):
    tests = Path(__file__).resolve().parents[1]
    script = tmp_path / 'search.py'
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(tests)!r})
        from search import evaluations
        from strop.mutables import OneOf, Space
        from strop.search import LocalProcesses, run

        if __name__ == '__main__':
            space = Space({{'a': OneOf(tuple(range(12))), 'b': OneOf((1, 2))}})
            run(space, evaluations.slow, strategy='random', trials=20, seed=1, store={str(tmp_path / 'trials.journal')!r},
                executor=LocalProcesses(2), callbacks=[lambda trial: print(trial.number, flush=True)])
        """)
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ})
    seen = {int(process.stdout.readline()) for _ in range(4)}
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    space = Space({'a': OneOf(tuple(range(12))), 'b': OneOf((1, 2))})
    result = run(
        space,
        evaluations.slow,
        strategy='random',
        trials=20,
        seed=1,
        store=str(tmp_path / 'trials.journal'),
        executor=LocalProcesses(2),
    )
    assert seen <= {trial.number for trial in result.trials if trial.complete}
    assert sorted(trial.number for trial in result.trials) == list(range(20))
    assert len({trial.subnet for trial in result.trials}) == 20


def started(process, word):
    try:
        return word in process.cmdline()
    except psutil.Error:
        return False


def test_a_killed_search_takes_its_workers_with_it(tmp_path):
    tests = Path(__file__).resolve().parents[1]
    script = tmp_path / 'search.py'
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(tests)!r})
        from search import evaluations
        from strop.mutables import OneOf, Space
        from strop.search import LocalProcesses, run

        if __name__ == '__main__':
            space = Space({{'a': OneOf(tuple(range(12))), 'b': OneOf((1, 2))}})
            run(space, evaluations.waits_with_a_child, strategy='random', trials=20, executor=LocalProcesses(2))
        """)
    )
    process = subprocess.Popen([sys.executable, str(script)])
    end = time.monotonic() + 120
    try:
        while True:
            family = psutil.Process(process.pid).children(recursive=True)
            if sum(started(one, '62.75') for one in family) == 2:
                break
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_bad_arguments():
    for options in (
        {'workers': 0},
        {'workers': 1.5},
        {'seconds': -1},
        {'seconds': float('nan')},
        {'memory': 0},
        {'threads': 0},
        {'retries': -1},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            LocalProcesses(**options)
    with pytest.raises(ConfigError, match='1 slots for 2 workers'):
        LocalProcesses(2, devices=['0'])
    with pytest.raises(ConfigError, match=r"a list with a slot for each worker.*but got '0'"):
        LocalProcesses(1, devices='0')
    with pytest.raises(ConfigError, match='cannot be sent'):
        lock = threading.Lock()
        pack(lambda subnet: lock)


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / 'unguarded.py'
    script.write_text(
        textwrap.dedent("""
        from strop.mutables import OneOf, Space
        from strop.search import LocalProcesses, run

        def score(subnet):
            return 1.0

        run(Space({'a': OneOf((1, 2))}), score, trials=2, executor=LocalProcesses(1))
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert '__main__' in done.stderr.splitlines()[-1]


def test_memory_that_is_gone_at_a_second_look_breaks_no_limit(monkeypatch):
    """A child that was just forked seems to hold what its parent does."""
    looks = iter([100.0, 500.0, 100.0, 500.0, 600.0])
    monkeypatch.setattr(processes, '_held', lambda psutil, pid: next(looks))
    assert processes.over_limit(None, 1, before=50.0, limit=300.0) is None
    assert processes.over_limit(None, 1, before=50.0, limit=300.0) is None
    assert processes.over_limit(None, 1, before=50.0, limit=300.0) == 550.0


def test_a_script_sees_its_device_from_the_beginning(tmp_path):
    """The driver of a GPU looks once, which may be while the script is imported."""
    script = tmp_path / 'search.py'
    script.write_text(
        textwrap.dedent("""
        import os
        SEEN = os.environ.get('CUDA_VISIBLE_DEVICES')
        from strop.mutables import OneOf, Space
        from strop.search import LocalProcesses, run

        def visible(subnet):
            return int(SEEN)

        if __name__ == '__main__':
            found = run(Space({'a': OneOf(tuple(range(12)))}), visible, strategy='random', trials=4,
                        executor=LocalProcesses(devices=['3', '5']))
            print(sorted({trial.values['score'] for trial in found.trials}), os.environ.get('CUDA_VISIBLE_DEVICES'))
        """)
    )
    environment = {name: value for name, value in os.environ.items() if name != 'CUDA_VISIBLE_DEVICES'}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    seen, _, after = done.stdout.strip().rpartition(' ')
    assert set(json.loads(seen)) <= {3.0, 5.0}
    assert after == 'None'
