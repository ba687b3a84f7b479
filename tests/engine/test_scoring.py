"""Subnets of one supernet scored by several workers at once: the numbers of one process, one memory of weights, deaths."""

import json
import os
import signal

import pytest
import torch
from mmengine.dataset import InfiniteSampler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strop.algorithms import SPOS
from strop.engine import Scorer, build_runner
from strop.engine.scoring import ResourceMeter, SubnetScores, sample_arguments, sample_batch
from strop.errors import ConfigError
from strop.mutables import LayerChoice
from strop.mutators import RandomMutator
from strop.search import LocalProcesses, run
from strop.search.parcel import pack

from .forked import forked
from .tiny import search_config

TWO = dict(type='LocalProcesses', workers=2, threads=1)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as the workers have: sums of floats depend on it
    yield
    torch.set_num_threads(threads)


def searched(work_dir, **changes):
    runner = build_runner(search_config(max_epochs=3, calibrate_sample_num=64, **changes), task='search', work_dir=work_dir)
    runner.train()
    return runner, runner.train_loop.result


def facts(result):
    return [(trial.number, dict(trial.subnet), trial.values, trial.info) for trial in result.trials]


def test_a_sample_takes_nothing_from_the_loader(tmp_path):
    runner = build_runner(search_config(max_epochs=1), task='search', work_dir=tmp_path)
    data = TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4))
    loader = DataLoader(data, 2, sampler=InfiniteSampler(data, shuffle=False))
    batches = iter(loader)
    next(batches)
    with pytest.raises(RuntimeError, match='iterated'):
        next(iter(NeverIterated(data)))
    assert sample_batch(runner, NeverIterated(data)).shape == (1, 3, 8, 8)
    assert sample_arguments(runner, loader)[0].shape == (1, 3, 8, 8)
    assert next(batches)[1].tolist() == [2, 3]


class NeverIterated(DataLoader):
    def __iter__(self):
        raise RuntimeError('it was iterated')


def test_two_workers_make_the_trials_of_one_process(tmp_path):
    _, alone = searched(tmp_path / 'one')
    runner, both = searched(tmp_path / 'two', executor=TWO)
    assert facts(both) == facts(alone)
    assert len(both.trials) == 12
    assert (tmp_path / 'two' / 'best_fix_subnet.yaml').read_text() == (tmp_path / 'one' / 'best_fix_subnet.yaml').read_text()
    assert runner.train_loop.executor.capacity == 2


class Shown(SubnetScores):
    """Tells where the weights lie, and who scored."""

    def __call__(self, subnet):
        weights = list(self.scorer.algorithm.parameters())
        shared = all(weight.is_shared() for weight in weights)
        return {**super().__call__(subnet), 'shared': float(shared), 'pid': os.getpid()}


def test_workers_read_one_memory_of_weights(tmp_path):
    runner = build_runner(search_config(), task='search', work_dir=tmp_path)
    scorer = runner.train_loop.scorer
    space = runner.model.mutator.space
    evaluate = Shown(scorer, 'accuracy/top1')
    result = run(
        space, evaluate, strategy='random', trials=8, objectives={'accuracy/top1': 'maximize'}, executor=LocalProcesses(2)
    )
    assert {trial.info['shared'] for trial in result.trials} == {1.0}
    assert os.getpid() not in {trial.info['pid'] for trial in result.trials}


def test_a_scorer_travels_without_its_runner_and_scores_the_same(tmp_path):
    config = search_config(calibrate_sample_num=64)
    config.train_cfg.dataloader.update(num_workers=1, persistent_workers=True)
    runner = build_runner(config, task='search', work_dir=tmp_path)
    scorer = runner.train_loop.scorer
    next(iter(scorer.dataloader))  # its processes run and cannot be sent
    again = pack(scorer).open()
    assert isinstance(again, Scorer)
    assert again.runner is None
    subnet = runner.model.mutator.space.first()
    before = {name: value.clone() for name, value in again.algorithm.state_dict().items()}
    assert again.metrics(subnet) == scorer.metrics(subnet)
    assert all(torch.equal(before[name], value) for name, value in again.algorithm.state_dict().items())


class Classified:
    """What a user writes: a supernet, its mutator and images."""

    def __init__(self):
        torch.manual_seed(0)
        candidates = [nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Identity()]
        self.net = nn.Sequential(*(LayerChoice(candidates) for _ in range(3)), nn.Linear(8, 2)).eval()
        self.mutator = RandomMutator(self.net)
        self.images = torch.randn(3000, 8)

    @torch.no_grad()
    def __call__(self, subnet):
        self.mutator.set_subnet(subnet)
        return float(self.net(self.images).softmax(1)[:, 0].mean())


def test_a_plain_evaluation_that_holds_a_supernet():
    evaluate = Classified()
    alone = run(evaluate.mutator.space, evaluate, strategy='random', trials=10)
    both = run(evaluate.mutator.space, evaluate, strategy='random', trials=10, executor=LocalProcesses(2, threads=1))
    assert facts(both) == facts(alone)


def test_a_wrong_score_key_stops_the_search_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"'accuracy/top_1'.*Did you mean 'accuracy/top1'"):
        searched(tmp_path, executor=TWO, score_key='accuracy/top_1')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(workers=0), '`workers` must be'),
        (dict(workers=2, executor='local'), 'not both'),
        (dict(executor='LocalProces'), "Did you mean 'LocalProcesses'"),
    ],
)
def test_bad_executors(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        searched(tmp_path, **changes)


def test_under_ddp_workers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('strop.engine.search_loop.is_distributed', lambda: True)
    with pytest.raises(ConfigError, match='Under DDP'):
        searched(tmp_path, workers=2)


# -- deaths ----------------------------------------------------------------------------------------------


def search(work_dir, resume, kill):
    """Search with two workers; after `kill` trials, kill a worker or, if negative, this process."""
    executor = LocalProcesses(2, threads=1, retries=3)
    config = search_config(max_epochs=2, calibrate_sample_num=64)
    runner = build_runner(config, task='search', work_dir=work_dir, resume=resume)
    loop = runner.train_loop
    loop.executor = executor
    count = iter(range(1, 1000))

    def after(trial):
        if next(count) == abs(kill):
            os.kill(executor._workers[0].process.pid if kill > 0 else os.getpid(), signal.SIGKILL)

    loop.callbacks.append(after)
    runner.train()


def trials_of(work_dir):
    return [
        (trial['number'], trial['choices'], trial['values'], trial['state'])
        for trial in json.loads((work_dir / 'search.json').read_text())['trials']
    ]


def test_killed_workers_and_killed_searches_lose_nothing(tmp_path):
    errors = tmp_path / 'error.txt'
    assert forked(search, tmp_path / 'killed', False, -3, errors=errors) == -signal.SIGKILL
    search(tmp_path / 'killed', True, 2)
    config = search_config(max_epochs=2, calibrate_sample_num=64)
    build_runner(config, task='search', work_dir=tmp_path / 'unbroken').train()
    assert trials_of(tmp_path / 'killed') == trials_of(tmp_path / 'unbroken')
    assert len(trials_of(tmp_path / 'killed')) == 8


class Detector(nn.Module):
    """A backbone to be searched and a head that costs more."""

    def __init__(self):
        super().__init__()
        self.body = nn.Module()
        self.body.stem = nn.Sequential(LayerChoice([nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 8, 3, bias=False)]))
        self.head = nn.Linear(8, 1000)

    def forward(self, images):
        return self.head(self.body.stem(images).mean((2, 3)))


def test_resources_of_a_part_alone():
    algorithm = SPOS(Detector())
    whole = ResourceMeter(algorithm, torch.zeros(1, 3, 4, 4))
    part = ResourceMeter(algorithm, None, dict(part='module.body.stem', input_shape=(1, 3, 4, 4)))
    for choice, macs, params in ((0, 16 * 3 * 8, 3 * 8), (1, 4 * 27 * 8, 27 * 8)):
        subnet = algorithm.mutator.space.subnet({'module.body.stem.0': choice})
        assert part.measure(subnet) == {'flops': macs / 1e6, 'params': params / 1e6}
        assert whole.measure(subnet) == {'flops': (macs + 8000) / 1e6, 'params': (params + 9000) / 1e6}
    assert part.measure(subnet, ['latency'])['latency'] > 0


def test_a_part_that_is_not_there_or_without_inputs():
    algorithm = SPOS(Detector())
    with pytest.raises(ConfigError, match=r"path of a module .* but got 'backbone'"):
        ResourceMeter(algorithm, None, dict(part='backbone', input_shape=(1, 3, 4, 4)))
    with pytest.raises(ConfigError, match='input_shape'):
        ResourceMeter(algorithm, torch.zeros(1, 3, 4, 4), dict(part='module.body.stem'))
