import copy
import json

import pytest
import torch
from engine.tiny import preprocessor, search_config, supernet, train_config
from torch import nn

from strop.algorithms import SPOS
from strop.engine import build_runner
from strop.errors import ConfigError
from strop.estimators import count
from strop.mutables import LayerChoice, Subnet, dump_subnet, extract
from strop.mutators import OneShotMutator
from strop.registry import MODELS


def plain_supernet(layers=4):
    torch.manual_seed(0)
    choices = [LayerChoice({'linear': nn.Linear(4, 4), 'norm': nn.BatchNorm1d(4), 'id': nn.Identity()}) for _ in range(layers)]
    return nn.Sequential(*choices, nn.Linear(4, 2))


DATA = (torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2)


def trained(spos, steps, **kwargs):
    optimizer = torch.optim.SGD(spos.parameters(), lr=0.05)
    subnets = []
    for _ in range(steps):
        spos.train_step(DATA, optimizer, **kwargs)
        subnets.append(spos.mutator.current_subnet())
    return subnets


# -- paths -----------------------------------------------------------------------------------------


def test_each_step_draws_a_subnet_by_seed_and_step():
    first = trained(SPOS(plain_supernet(), seed=5), 12)
    assert len(set(first)) > 8
    assert trained(SPOS(plain_supernet(), seed=5), 12) == first
    assert trained(SPOS(plain_supernet(), seed=6), 12) != first


def test_the_draw_depends_on_the_step_alone():
    first = trained(SPOS(plain_supernet(), seed=5), 6)
    late = SPOS(plain_supernet(), seed=5)
    late.step = 4
    torch.manual_seed(1234)
    assert trained(late, 2) == first[4:]


def test_paths_are_uniform():
    spos = SPOS(plain_supernet(1), seed=0)
    drawn = []
    for spos.step in range(3000):
        drawn.append(int(spos.sample_subnet()['module.0'].argmax()))
    for choice in range(3):
        # Three standard deviations of a binomial of 3,000 draws at 1/3 are 77.
        assert abs(drawn.count(choice) - 1000) < 80


def test_only_the_path_is_trained():
    spos = SPOS(plain_supernet(1), seed=0)
    before = copy.deepcopy(spos.state_dict())
    (subnet,) = trained(spos, 1)
    moved = {name.split('.')[3] for name, value in spos.named_parameters() if not torch.equal(before[name], value)}
    taken = subnet['module.0']
    assert moved - {'weight', 'bias'} <= {taken}
    assert 'weight' in moved  # of the last layer, which has no choice


def test_validation_draws_nothing():
    spos = SPOS(plain_supernet(), seed=0)
    spos.mutator.set_min_subnet()
    smallest = spos.mutator.current_subnet()
    spos.eval()
    spos.loss(*DATA)
    spos.val_step(DATA)
    assert spos.mutator.current_subnet() == smallest


def test_runner_gives_its_seed_and_step(tmp_path):
    sequences = []
    for seed in (0, 0, 1):
        runner = build_runner(train_config(randomness=dict(seed=seed)), work_dir=tmp_path / str(len(sequences)))
        seen = []
        runner.model.register_forward_hook(
            lambda model, *_, seen=seen: seen.append(model.mutator.current_subnet()) if model.training else None
        )
        runner.train()
        sequences.append(seen)
    assert len(sequences[0]) == 6
    assert sequences[0] == sequences[1] != sequences[2]
    assert len(set(sequences[0])) > 3


# -- retraining --------------------------------------------------------------------------------------------


CHOICES = {f'module.{layer}': name for layer, name in enumerate(['linear', 'norm', 'id', 'linear'])}


@pytest.mark.parametrize('form', ['dict', 'file', 'subnet', 'mmrazor'])
def test_retraining_trains_the_one_subnet(tmp_path, form):
    model = plain_supernet()
    keys = {key.removeprefix('module.'): choice for key, choice in CHOICES.items()}
    given = CHOICES
    if form == 'file':
        given = tmp_path / 'subnet.yaml'
        given.write_text('strop: subnet\nversion: 1\nchoices:\n' + ''.join(f'  "module.{k}": {v}\n' for k, v in keys.items()))
    elif form == 'subnet':
        given = SPOS(copy.deepcopy(model)).mutator.space.subnet(CHOICES)
        assert isinstance(given, Subnet)
    elif form == 'mmrazor':
        given = {key: {'chosen': choice} for key, choice in CHOICES.items()}
    spos = SPOS(architecture=model, retraining=True, mutable_cfg=given)
    assert spos.mutator is None
    assert [type(layer).__name__ for layer in spos.architecture.module] == [
        'Linear', 'BatchNorm1d', 'Identity', 'Linear', 'Linear',
    ]  # fmt: skip
    before = copy.deepcopy(spos.state_dict())
    optimizer = torch.optim.SGD(spos.parameters(), lr=0.1)
    losses = [spos.train_step(DATA, optimizer)['loss'].item() for _ in range(30)]
    assert losses[-1] < losses[0]
    moved = [name for name, value in spos.named_parameters() if not torch.equal(before[name], value)]
    # The bias in front of a batch norm has no gradient.
    assert set(moved) >= {name for name, _ in spos.named_parameters()} - {'architecture.module.0.bias'}


def test_retraining_a_config_through_the_runner(tmp_path):
    runner = build_runner(train_config(), work_dir=tmp_path / 'supernet')
    runner.train()
    subnet = runner.model.mutator.current_subnet()
    dump_subnet(subnet, tmp_path / 'best.yaml')
    model = dict(
        type='SPOS',
        architecture=supernet,
        mutator=dict(type='OneShotMutator'),
        data_preprocessor=preprocessor,
        retraining=True,
        mutable_cfg=str(tmp_path / 'best.yaml'),
    )
    again = build_runner(train_config(model=model), work_dir=tmp_path / 'subnet')
    again.train()
    names = {name for name, _ in again.model.named_parameters()}
    assert not [name for name in names if '_candidates' in name or '.shuffle_' in name]
    assert len(names) < len(list(runner.model.named_parameters()))
    assert set(again.test()) == {'accuracy/top1'}


def test_retraining_what_still_has_decisions_is_refused():
    with pytest.raises(ConfigError, match='still has decisions'):
        SPOS(plain_supernet(), retraining=True)


# -- overridden verbs -----------------------------------------------------------------------------------------


class Recording(OneShotMutator):
    """Writes down what is called, with what; draws no 'norm' but in its mutations."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = []

    def sample_subnet(self):
        masks = super().sample_subnet()
        for mask in masks.values():
            if mask[1]:
                mask[0], mask[1] = 1, 0
        self.calls.append(('sample_subnet', None))
        return masks

    def set_subnet(self, subnet_dict):
        assert all(isinstance(mask, torch.Tensor) for mask in subnet_dict.values())
        self.calls.append(('set_subnet', {key: int(mask.float().argmax()) for key, mask in subnet_dict.items()}))
        super().set_subnet(subnet_dict)

    def mutation(self, subnet_dict, prob=0.1):
        self.calls.append(('mutation', prob))
        return super().mutation(subnet_dict, prob)

    @staticmethod
    def crossover(subnet_dict1, subnet_dict2):
        CROSSED.append((subnet_dict1, subnet_dict2))
        return OneShotMutator.crossover(subnet_dict1, subnet_dict2)


CROSSED = []


def test_overridden_verbs_take_effect_in_training():
    mutator = Recording()
    spos = SPOS(plain_supernet(), mutator=mutator, seed=0)
    subnets = trained(spos, 5)
    assert [name for name, _ in mutator.calls] == ['sample_subnet', 'set_subnet'] * 5
    assert all('norm' not in subnet.values() for subnet in subnets)


def test_overridden_verbs_and_flops_take_effect_in_the_search_loop(tmp_path, registries):
    MODELS.register_module(name='Recording', module=Recording)
    flops = []

    @MODELS.register_module()
    class Counting(SPOS):
        def get_subnet_flops(self):
            flops.append(self.mutator.current_subnet())
            return 2e6 if 'shuffle_xception' in flops[-1].values() else 1e6

    model = dict(type='Counting', architecture=supernet, mutator=dict(type='Recording'), data_preprocessor=preprocessor)
    config = search_config(model=model, mutate_prob=0.5, constraints_range=dict(flops=(0.0, 1.5)))
    CROSSED.clear()
    runner = build_runner(config, task='search', work_dir=tmp_path)
    runner.train()
    names = [name for name, _ in runner.model.mutator.calls]
    assert {'sample_subnet', 'set_subnet', 'mutation'} <= set(names)
    assert ('mutation', 0.5) in runner.model.mutator.calls
    assert CROSSED
    assert flops
    trials = runner.train_loop.result.trials
    assert len(trials) == 8
    assert all('shuffle_xception' not in trial.subnet.values() for trial in trials)
    assert all(trial.info['flops'] == 1.0 for trial in trials)
    assert len({trial.subnet for trial in trials}) == 8


def test_a_count_that_is_still_empty_is_made_by_strop(tmp_path, registries):
    @MODELS.register_module()
    class Template(SPOS):
        def _init_flops(self):
            pass

        def get_subnet_flops(self):
            pass

    config = search_config()
    config.model.type = 'Template'
    config.train_cfg.constraints_range = dict(flops=(0.0, 1e3))
    runner = build_runner(config, task='search', work_dir=tmp_path)
    runner.train()
    for trial in runner.train_loop.result.trials:
        plain = extract(runner.model.architecture, trial.subnet)
        assert trial.info['flops'] * 1e6 == pytest.approx(count(plain, torch.zeros(1, 1, 8, 8)).macs)


def test_overridden_init_flops():
    class Own(SPOS):
        def _init_flops(self):
            self.asked = True
            super()._init_flops()

    class Lacking(SPOS):
        def _init_flops(self):
            pass

    assert Own(plain_supernet(1)).get_subnet_flops({'module.0': 'id'}, (1, 4)) == 8
    own = Own(plain_supernet(1), input_shape=(1, 4))
    own.get_subnet_flops({'module.0': 'id'})
    assert own.asked
    with pytest.raises(ConfigError, match=r'super\(\)\._init_flops'):
        Lacking(plain_supernet(1)).get_subnet_flops({'module.0': 'id'}, (1, 4))


def test_overridden_init_flops_takes_effect_in_the_search_loop(tmp_path, registries):
    @MODELS.register_module()
    class Larger(SPOS):
        def _init_flops(self):
            self.input_shape = (1, 1, 32, 32)
            super()._init_flops()

    config = search_config()
    config.model.type = 'Larger'
    runner = build_runner(config, task='search', work_dir=tmp_path)
    runner.train()
    for trial in runner.train_loop.result.trials:
        assert trial.info['flops'] * 1e6 == runner.model.get_subnet_flops(trial.subnet) > 100_000


# -- batch norms ---------------------------------------------------------------------------------------------------


def test_norm_training_keeps_batch_statistics_under_eval():
    spos = SPOS(plain_supernet(), norm_training=True).eval()
    modes = {type(module).__name__: module.training for module in spos.architecture.modules()}
    assert modes['BatchNorm1d'] is True
    assert modes['Linear'] is False
    spos.mutator.set_subnet(dict.fromkeys(CHOICES, 'norm'))
    shifted = DATA[0] + 100.0
    assert torch.allclose(spos(shifted), spos(DATA[0]), atol=1e-4)
    spos.norm_training = False
    spos.eval()
    assert not any(module.training for module in spos.architecture.modules())
    assert not torch.allclose(spos(shifted), spos(DATA[0]), atol=1e-4)


# -- resources -----------------------------------------------------------------------------------------------------


def test_flops_of_subnets_are_those_of_the_extracted_models():
    spos = SPOS(supernet, input_shape=(1, 1, 16, 16), seed=0)
    for spos.step in range(12):
        subnet = spos.mutator.space.subnet(spos.sample_subnet())
        model = extract(spos.architecture, subnet)
        assert spos.get_subnet_flops(subnet) == count(model, torch.zeros(1, 1, 16, 16)).macs
    spos.mutator.set_subnet(subnet)
    assert spos.get_subnet_flops() == spos.get_subnet_flops(json.loads(json.dumps(dict(subnet))))
    assert spos.get_subnet_flops(input_shape=(2, 1, 16, 16)) == 2 * spos.get_subnet_flops(input_shape=(1, 1, 16, 16))
