"""Trials in Ray actors of two real nodes: the trials of one process, deaths, limits, and requests that cannot be met."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch
from engine.tiny import search_config

from search import evaluations
from strop.engine import build_runner
from strop.errors import ConfigError, MissingDependencyError, StropError
from strop.mutables import OneOf, Space
from strop.search import RayExecutor, run
from strop.search.processes import log_file

from .executor_contract import SPACE, WIDE, check, check_kills, facts


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(MissingDependencyError, match=r'strop\[ray\]'):
        RayExecutor()


def test_bad_arguments():
    pytest.importorskip('ray', reason='Ray is not installed')
    bad = [
        {'workers': 0},
        {'cpus': -1},
        {'gpus': 'one'},
        {'seconds': 0},
        {'memory': float('nan')},
        {'threads': 1.5},
        {'retries': -1},
    ]
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


def test_every_way_to_fail_is_told_and_the_others_go_on(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr('strop.search.ray_actors._OBEY', 0.3)

    def evaluate(subnet):
        if subnet['a'] == 4:
            print('before it grows', flush=True)
            kept = [b'x' * 2**20 for _ in range(400)]
            time.sleep(60)
            return len(kept)
        if subnet['a'] == 7 and not (tmp_path / 'died').exists():
            (tmp_path / 'died').touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if subnet['a'] == 9:
            return evaluations.stubborn({'a': -1})
        return evaluations.mixed(subnet)

    space = Space({'a': OneOf((0, 1, 3, 4, 6, 7, 8, 9)), 'b': OneOf((1,))})
    executor = RayExecutor(2, seconds=8, memory=200, logs=tmp_path)
    result = run(space, evaluate, strategy='grid', trials=8, executor=executor, pruner={'type': 'threshold', 'lower': 0.0})
    told = {trial.subnet['a']: trial for trial in result.trials}
    assert told[9].state == 'stopped', 'one that does not obey is killed'
    assert told[7].values == told[8].values == {'score': 1.0}, 'an actor that died once is replaced, and its trial tried again'
    for kind, words in {
        0: 'ValueError: this one breaks',
        1: 'was lost, 2 times: ActorDiedError: Worker ',
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


def test_it_keeps_the_contract(cluster):
    check(RayExecutor(1))


def test_subnets_of_a_supernet_are_scored_as_in_one_process(cluster, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    for name, executor in (('one', None), ('two', dict(type='RayExecutor', workers=2, threads=1))):
        config = search_config(calibrate_sample_num=64, executor=executor)
        runner = build_runner(config, task='search', work_dir=tmp_path / name)
        runner.train()
        found.append(facts(runner.train_loop.result))
    torch.set_num_threads(threads)
    assert found[0] == found[1]
    assert len(found[0]) == 8


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


def test_actors_killed_at_random_moments_lose_no_trial_and_count_none_twice(cluster, tmp_path):
    check_kills(RayExecutor(2, retries=100), tmp_path, trials=16, kills=3, seed=1)


@pytest.mark.slow
def test_thirty_actors_killed_at_random_moments(cluster, tmp_path):
    check_kills(RayExecutor(2, retries=100), tmp_path, trials=60, kills=30, seed=2)


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
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
        with pytest.raises(StropError, match=rf"could not be reached at '{address}': .*refused.* `ray start"):
            run(SPACE, evaluations.plain, trials=2, executor=RayExecutor(address=address))


@pytest.mark.slow
def test_a_killed_search_takes_its_actors_with_it_and_goes_on(tmp_path):
    pytest.importorskip('ray', reason='Ray is not installed')
    store = tmp_path / 'trials.journal'
    script = tmp_path / 'killed_search.py'
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
        from search import evaluations
        from strop.mutables import OneOf, Space
        from strop.search import RayExecutor, run

        space = Space({{'a': OneOf(tuple(range(12))), 'b': OneOf((1, 2))}})
        run(space, evaluations.slow, strategy='random', trials=20, seed=1, store={str(store)!r},
            executor=RayExecutor(2, cpus=0.5), callbacks=[lambda trial: print(trial.number, flush=True)])
        """)
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    seen = {int(process.stdout.readline()) for _ in range(4)}
    family = psutil.Process(process.pid).children(recursive=True)
    actors = [each for each in family if '_Evaluator' in ' '.join(each.cmdline())]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(actors, timeout=60)
    assert len(actors) == 2
    assert not alive
    space = Space({'a': OneOf(tuple(range(12))), 'b': OneOf((1, 2))})
    result = run(space, evaluations.slow, strategy='random', trials=20, seed=1, store=str(store))
    assert seen <= {trial.number for trial in result.trials if trial.complete}
    assert sorted(trial.number for trial in result.trials) == list(range(20))
    assert len({trial.subnet for trial in result.trials}) == 20
