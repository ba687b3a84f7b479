import json

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from torch import nn

from strop.algorithms import SPOS, AutoSlim, BaseAlgorithm, MMArchitectureQuant, SlimmableNetwork
from strop.engine import DistributedAlgorithm, build_runner, start_process_group
from strop.errors import ConfigError
from strop.mutables import LayerChoice
from strop.registry import METRICS, MODEL_WRAPPERS, MODELS

from .forked import in_group
from .tiny import search_config, train_config

POINTS = (torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) // 2 % 2)


def linear_supernet():
    """A supernet without batch norms, whose losses are plain means over a batch."""
    torch.manual_seed(0)
    layers = [LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Identity()]) for _ in range(3)]
    return SPOS(nn.Sequential(*layers, nn.Linear(4, 2)), seed=0)


def slimmable():
    """A slimmable network without batch norms."""
    torch.manual_seed(0)
    units = dict(type='SlimmableChannelUnit', units={'module.0': dict(candidate_choices=[2, 5, 8])})
    mutator = dict(type='SlimmableChannelMutator', channel_unit_cfg=units, parse_cfg=dict(demo_input=(2, 4)))
    return SlimmableNetwork(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), mutator)


def autoslim():
    """Widths of a network with group norms, taught by the largest of them."""
    torch.manual_seed(0)
    logits = dict(logits=dict(type='ModuleOutputs', source='3'))
    distiller = dict(
        type='ConfigurableDistiller',
        teacher_recorders=logits,
        student_recorders=logits,
        distill_losses=dict(loss_kl=dict(type='KLDivergence')),
        loss_forward_mappings=dict(
            loss_kl=dict(
                preds_S=dict(from_student=True, recorder='logits'), preds_T=dict(from_student=False, recorder='logits')
            )
        ),
    )
    layers = nn.Linear(4, 8), nn.GroupNorm(1, 8), nn.Tanh(), nn.Linear(8, 2)
    return AutoSlim(nn.Sequential(*layers), dict(type='OneShotChannelMutator', parse_cfg=dict(demo_input=(2, 4))), distiller)


def quantized(qconfig='lsq4'):
    """A network with fake quantizers."""
    torch.manual_seed(0)
    quantizer = dict(type='TorchNativeQuantizer', global_qconfig=qconfig)
    return MMArchitectureQuant(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), quantizer
    )


class Old(BaseAlgorithm):
    """An algorithm in the style of MMRazor, with a training step of its own."""

    def train_step(self, data, optimizer):
        self.mutator.set_subnet(self.mutator.sample_subnet())
        return super().train_step(data, optimizer)


class Written(SPOS):
    """A training step that is written out, as in the tutorials of MMRazor: it calls the algorithm itself, several times."""

    def train_step(self, data, optim_wrapper):
        inputs, labels = self.data_preprocessor(data, True)
        for choose in (self.set_max_subnet, self.set_min_subnet):
            choose()
            self.retraining = True  # `loss` is not to draw another one
            loss, log = self.parse_losses(self(inputs, labels, mode='loss'))
            loss.backward()
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return log


def written():
    return Written(linear_supernet().architecture, seed=0)


def run(kind, rank, out):
    """Train the small supernet, and write which subnets saw which batches."""
    config = train_config()
    config.model.type = kind
    config.train_dataloader.dataset.limit = 192
    runner = build_runner(config, work_dir=f'{out}/{kind}', launcher='pytorch')
    subnets, batches = [], []

    def note(model, args, kwargs, output):
        if model.training:
            subnets.append(dict(model.mutator.current_subnet()))
            batches.append(float(kwargs['inputs'].sum()))

    runner.model.module.register_forward_hook(note, with_kwargs=True)
    runner.train()
    torch.save(dict(runner.model.module.named_parameters()), f'{out}/{kind}_{rank}.pt')
    (out / f'{kind}_{rank}.json').write_text(json.dumps([subnets, batches]))


def steps(algorithm, wrapped, count, rank):
    """Train for some steps on every other point, and return the state."""
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.5)
    for _ in range(count):
        wrapped.train_step(tuple(part[rank::2] for part in POINTS), optimizer)
    return algorithm.state_dict()


def on_one_of_two(rank, out):
    """Do everything, since starting two processes and their group is what takes the time."""
    MODELS.register_module(module=Old)
    run('SPOS', rank, out)
    run('Old', rank, out)
    spos, network, algorithm = linear_supernet(), slimmable(), autoslim()
    torch.save(steps(spos, DistributedAlgorithm(spos), 4, rank), f'{out}/linear_{rank}.pt')
    own = written()
    torch.save(steps(own, DistributedAlgorithm(own), 3, rank), f'{out}/written_{rank}.pt')
    wrapped = MODEL_WRAPPERS.build(dict(type='SlimmableNetworkDDP', module=network))
    torch.save(steps(network, wrapped, 3, rank), f'{out}/slimmable_{rank}.pt')
    wrapped = MODEL_WRAPPERS.build(dict(type='AutoSlimDDP', module=algorithm))
    torch.save(steps(algorithm, wrapped, 3, rank), f'{out}/autoslim_{rank}.pt')
    for name in ('lsq4', 'lsq+4', 'int8'):
        model = quantized(name)
        wrapped = MODEL_WRAPPERS.build(dict(type='mmrazor.MMArchitectureQuantDDP', module=model, find_unused_parameters=False))
        torch.save(steps(model, wrapped, 3, rank), f'{out}/{name}_{rank}.pt')
    search = build_runner(search_config(), task='search', work_dir=f'{out}/search', launcher='pytorch')
    search.train()
    assert (search.train_loop.result is None) == (rank == 1)
    METRICS.register_module(module=Fragile)
    config = search_config(evaluator=dict(type='Fragile'), score_key='score')
    build_runner(config, task='search', work_dir=f'{out}/fragile', launcher='pytorch').train()


class Fragile(BaseMetric):
    """A metric that rank 0, which computes it, cannot compute for every third subnet, and that breaks once on rank 1."""

    seen = computed = 0

    def process(self, data_batch, data_samples):
        self.results.append(1)
        Fragile.seen += 1
        if Fragile.seen == 2 and get_rank() == 1:
            raise ZeroDivisionError('rank 1 breaks')

    def compute_metrics(self, results):
        Fragile.computed += 1
        if Fragile.computed % 3 == 1:
            raise ZeroDivisionError('no score for this one')
        return {'score': float(Fragile.computed)}


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    out = tmp_path_factory.mktemp('distributed')
    in_group(on_one_of_two, out, folder=out)
    return out


@pytest.mark.parametrize('kind', ['SPOS', 'Old'])
def test_ranks_train_the_same_subnets_on_other_data_to_equal_weights(two_processes, kind):
    (first, seen), (second, seen_too) = (json.loads((two_processes / f'{kind}_{rank}.json').read_text()) for rank in (0, 1))
    assert first == second
    assert len(first) == 6
    assert len({json.dumps(subnet) for subnet in first}) > 3
    assert seen != seen_too
    weights, weights_too = (torch.load(two_processes / f'{kind}_{rank}.pt') for rank in (0, 1))
    assert all(torch.equal(weights[name], weights_too[name]) for name in weights)


def test_ranks_draw_the_subnets_that_one_process_draws(two_processes, tmp_path):
    config = train_config()
    runner = build_runner(config, work_dir=tmp_path)
    subnets = []
    runner.model.register_forward_hook(
        lambda model, *_: subnets.append(dict(model.mutator.current_subnet())) if model.training else None
    )
    runner.train()
    assert subnets == json.loads((two_processes / 'SPOS_0.json').read_text())[0]


@pytest.mark.parametrize(
    ('name', 'make', 'steps'),
    [
        ('linear', linear_supernet, 4),
        ('written', written, 3),
        ('slimmable', slimmable, 3),
        ('autoslim', autoslim, 3),
        ('lsq4', quantized, 3),
    ],
)
def test_gradients_are_those_of_the_whole_batch(two_processes, name, make, steps):
    algorithm = make()
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.5)
    for _ in range(steps):
        algorithm.train_step(POINTS, optimizer)
    states = [torch.load(two_processes / f'{name}_{rank}.pt') for rank in (0, 1)]
    for name, value in algorithm.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        assert torch.allclose(states[0][name], value, atol=1e-6)


@pytest.mark.parametrize('name', ['lsq4', 'lsq+4', 'int8'])
def test_steps_and_observed_ranges_are_equal_on_all_ranks(two_processes, name):
    states = [torch.load(two_processes / f'{name}_{rank}.pt') for rank in (0, 1)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any('input_fake_quant' in key for key in states[0])


def test_a_failure_on_one_rank_is_one_of_the_trial(two_processes):
    trials = json.loads((two_processes / 'fragile' / 'search.json').read_text())['trials']
    failed = {trial['number']: trial['error'] for trial in trials if trial['state'] == 'failed'}
    assert len(trials) == 8
    assert 'another rank: ZeroDivisionError: rank 1 breaks' in failed.pop(1)
    assert list(failed) == [0, 4, 7]
    assert all('no score for this one' in error for error in failed.values())


def test_search_on_two_ranks_is_the_search_of_one(two_processes, tmp_path):
    build_runner(search_config(), task='search', work_dir=tmp_path).train()
    results = [json.loads((folder / 'search.json').read_text()) for folder in (two_processes / 'search', tmp_path)]
    facts = [[(t['number'], t['choices'], t['values'], t['info']) for t in result['trials']] for result in results]
    assert facts[0] == facts[1]


def test_names_reach_the_wrapper():
    assert MODEL_WRAPPERS.get('MMDistributedDataParallel') is MODEL_WRAPPERS.get('mmrazor.DistributedAlgorithm')
    assert MODEL_WRAPPERS.get('DistributedAlgorithm') is DistributedAlgorithm


def test_launcher_without_torchrun_says_how_to_start(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r'RANK.*torchrun --nproc-per-node'):
        start_process_group()
    with pytest.raises(ConfigError, match='torchrun'):
        build_runner(train_config(), launcher='pytorch')
