"""Trials in Ray actors of two real nodes: the trials of one process, deaths, limits, and requests that cannot be met."""

import os
import random
import signal
import sys
import threading
import time

import psutil
import pytest
import torch

from search import evaluations
from strop.errors import ConfigError, MissingDependencyError, StropError
from strop.mutables import OneOf, Space
from strop.search import RayExecutor, run
from strop.search.processes import log_file

SPACE = Space({'a': OneOf((0, 1, 2)), 'b': OneOf((1, 2, 3, 4))})
WIDE = Space({'a': OneOf(tuple(range(40)))})


def facts(result):
    return sorted((trial.number, dict(trial.subnet), trial.values, trial.error) for trial in result.trials)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(MissingDependencyError, match=r'strop\[ray\]'):
        RayExecutor()


def test_bad_arguments():
    pytest.importorskip('ray', reason='Ray is not installed')
    bad = [{'workers': 0}, {'cpus': -1}, {'gpus': 'one'}, {'seconds': 0}, {'memory': -5}, {'threads': 1.5}, {'retries': -1}]
    for options in bad:
        with pytest.raises(ConfigError, match=next(iter(options))):
            RayExecutor(**options)


@pytest.fixture(scope='module')
def cluster():
    """A head with two CPUs and a second node with one, as `ray start` makes them."""
    ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'strop[ray]'")
    from ray.cluster_utils import Cluster

    os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
    made = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'include_dashboard': False})
    made.second = made.add_node(num_cpus=1)
    ray.init(made.address, log_to_driver=False, logging_level='ERROR')
    yield made
    ray.shutdown()
    made.shutdown()


class Shown:
    """A function of the trial's own seed, that also tells where its weights lie."""

    def __init__(self):
        self.net = torch.nn.Sequential(torch.nn.Linear(1000, 500), torch.nn.BatchNorm1d(500))

    def __call__(self, subnet):
        self.net[1].running_mean += 1  # each actor's own
        place = self.net[0].weight.data_ptr()
        found = 'nowhere'
        with open('/proc/self/maps') as lines:
            for line in lines:
                first, last = (int(end, 16) for end in line.split()[0].split('-'))
                found = line.strip() if first <= place < last else found
        return {
            'score': float(torch.rand(()) + self.net[0].weight.detach().sum()),
            'memory': found,
            'threads': torch.get_num_threads(),
        }


def test_the_trials_are_those_of_one_process_and_weights_lie_in_one_memory(cluster):
    evaluate = Shown()
    alone = run(SPACE, evaluate, strategy='random', trials=8, seed=3)
    both = run(SPACE, evaluate, strategy='random', trials=8, seed=3, executor=RayExecutor(2, threads=1))
    assert facts(both) == facts(alone)
    for trial in both.trials:
        assert trial.info['memory'].split()[1].endswith('s'), 'shared'
        assert 'plasma' in trial.info['memory']
        assert trial.info['threads'] == 1


def test_every_way_to_fail_is_told_and_the_others_go_on(cluster, tmp_path):
    def evaluate(subnet):
        if subnet['a'] == 4:
            print('before it grows', flush=True)
            kept = [b'x' * 2**20 for _ in range(400)]
            time.sleep(60)
            return len(kept)
        if subnet['a'] == 7 and not (tmp_path / 'died').exists():
            (tmp_path / 'died').touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluations.mixed(subnet)

    space = Space({'a': OneOf((0, 1, 3, 4, 6, 7, 8)), 'b': OneOf((1,))})
    executor = RayExecutor(seconds=8, memory=200, logs=tmp_path)
    result = run(space, evaluate, strategy='grid', trials=7, executor=executor)
    told = {trial.subnet['a']: trial for trial in result.trials}
    assert executor.capacity == 3
    assert told[7].values == told[8].values == {'score': 1.0}, 'an actor that died once is replaced, and its trial tried again'
    for kind, words in {
        0: 'ValueError: this one breaks',
        1: 'was lost, 2 times',
        3: 'its limit is 8 s',
        4: 'its limit is 200 MiB',
        6: 'nan',
    }.items():
        assert told[kind].state == 'failed'
        assert words in told[kind].error, told[kind].error
    assert log_file(tmp_path, told[8].number).read_text().splitlines() == ['line of 1', 'from a child']
    assert 'Traceback' in log_file(tmp_path, told[0].number).read_text()
    assert log_file(tmp_path, told[4].number).read_text() == 'before it grows\n'
    assert str(log_file(tmp_path, told[3].number)) in told[3].error


def test_reports_reach_the_pruner_and_who_does_not_obey_is_killed(cluster, monkeypatch):
    monkeypatch.setattr('strop.search.ray_actors._OBEY', 0.3)

    def evaluate(subnet):
        return evaluations.stubborn(subnet) if subnet['b'] == 4 else evaluations.reporting(subnet)

    options = {'strategy': 'grid', 'trials': 4, 'pruner': {'type': 'threshold', 'lower': 1.0}, 'seed': 3}
    result = run(SPACE, evaluate, executor=RayExecutor(1), **options)
    alone = run(SPACE, evaluations.reporting, **options)
    assert [trial.state for trial in result.trials] == ['stopped'] * 4 == [trial.state for trial in alone.trials]
    assert [trial.reports for trial in result.trials][:3] == [trial.reports for trial in alone.trials][:3]


def test_what_does_not_fit_is_refused_instead_of_waiting_for_ever(cluster):
    for options in ({'workers': 4}, {'cpus': 3}, {'gpus': 1}):
        with pytest.raises(ConfigError, match='wait for ever'):
            run(SPACE, evaluations.plain, trials=2, executor=RayExecutor(**options))
    with pytest.raises(ConfigError, match='connected to the Ray cluster'):
        run(SPACE, evaluations.plain, trials=2, executor=RayExecutor(address='192.0.2.1:6379'))
    executor = RayExecutor(cpus=0.5)
    executor._connect()
    assert executor._fitting() == 6


def test_an_evaluation_that_cannot_be_opened_there_is_told(cluster):
    class Broken:
        def __reduce__(self):
            return int, ('no number',)

        def __call__(self, subnet):
            return 1.0

    with pytest.raises(StropError, match=r'could not open the evaluation: ValueError: .*no number'):
        run(SPACE, Broken(), trials=2, executor=RayExecutor(1))


def kill_some(marks, stop, rng, count):
    """Kill the process of an actor now and then; each wrote its id as it began a trial."""
    while not stop.is_set() and count:
        time.sleep(rng.uniform(0.1, 0.6))
        known = sorted(marks.glob('pid_*'), key=lambda path: path.stat().st_mtime)
        for path in known[-2:]:
            try:
                os.kill(int(path.name[4:]), signal.SIGKILL)
                count -= 1
                break
            except ProcessLookupError:
                path.unlink()


def killed_at_random(tmp_path, trials, kills, seed):
    def evaluate(subnet):
        (tmp_path / f'pid_{os.getpid()}').touch()
        time.sleep(0.15)
        return subnet['a'] + float(torch.rand(()))

    alone = run(WIDE, evaluate, strategy='random', trials=trials, seed=seed)
    for path in tmp_path.glob('pid_*'):
        path.unlink()
    stop = threading.Event()
    killer = threading.Thread(target=kill_some, args=(tmp_path, stop, random.Random(seed), kills))
    killer.start()
    try:
        executor = RayExecutor(2, retries=100)
        result = run(WIDE, evaluate, strategy='random', trials=trials, seed=seed, executor=executor)
    finally:
        stop.set()
        killer.join()
    assert facts(result) == facts(alone)


def test_actors_killed_at_random_moments_lose_no_trial_and_count_none_twice(cluster, tmp_path):
    killed_at_random(tmp_path, trials=16, kills=3, seed=1)


@pytest.mark.slow
def test_thirty_actors_killed_at_random_moments(cluster, tmp_path):
    killed_at_random(tmp_path, trials=40, kills=30, seed=2)


def test_a_lost_machine_takes_no_trial_with_it(cluster, tmp_path):
    """The last test on the cluster: afterwards it has one node."""
    import ray

    def evaluate(subnet):
        (tmp_path / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(0.4)
        return float(subnet['a'])

    def kill_second(trial):
        if cluster.second is not None and (tmp_path / cluster.second.node_id).exists():
            cluster.remove_node(cluster.second, allow_graceful=False)
            cluster.second = None

    executor = RayExecutor(3)
    result = run(WIDE, evaluate, strategy='random', trials=24, seed=4, executor=executor, callbacks=[kill_second])
    assert cluster.second is None, 'the second node had a trial'
    assert sorted(trial.number for trial in result.trials) == list(range(24))
    assert all(trial.values == {'score': float(trial.subnet['a'])} for trial in result.trials)


def test_it_starts_by_itself_and_leaves_nothing(tmp_path):
    """After the cluster is gone: a Ray of this machine alone, for one search."""
    ray = pytest.importorskip('ray', reason='Ray is not installed')
    if ray.is_initialized():
        ray.shutdown()
    handler = signal.getsignal(signal.SIGTERM)
    children = set(psutil.Process().children(recursive=True))
    executor = RayExecutor(1, cpus=0.5)
    result = run(SPACE, evaluations.plain, strategy='random', trials=3, executor=executor)
    assert all(trial.values == {'score': evaluations.plain(trial.subnet)} for trial in result.trials)
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - children, timeout=20)
    assert not alive


def test_a_cluster_that_is_not_there_is_told():
    pytest.importorskip('ray', reason='Ray is not installed')
    with pytest.raises(StropError, match=r"could not be reached at 'nowhere'"):
        run(SPACE, evaluations.plain, trials=2, executor=RayExecutor(address='nowhere'))
