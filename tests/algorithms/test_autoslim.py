"""AutoSlim: the sandwich rule and in-place distillation against steps written by hand, accumulation, retraining, search."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from engine.tiny import loader, train_config
from mmengine.optim import OptimWrapper
from torch import nn

from strop.algorithms import AutoSlim, BaseAlgorithm
from strop.distill import ConfigurableDistiller
from strop.engine import AmpOptimWrapper, build_runner
from strop.errors import BindingError, BudgetError, ComponentTypeError, ConfigError, TrainingError
from strop.mutables import attachments, extract, load_subnet
from strop.mutators import OneShotChannelMutator, OneShotMutator
from strop.registry import MODELS

DATA = (torch.randn(6, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)
RECORD = dict(logits=dict(type='ModuleOutputs', source='6'))
DISTILLER = dict(
    type='ConfigurableDistiller',
    teacher_recorders=RECORD,
    student_recorders=RECORD,
    distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=2.0)),
    loss_forward_mappings=dict(
        loss_kl=dict(preds_S=dict(from_student=True, recorder='logits'), preds_T=dict(from_student=False, recorder='logits'))
    ),
)
UNITS = dict(type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=[0.25, 0.5, 1.0], choice_mode='ratio'))
MUTATOR = dict(type='OneShotChannelMutator', channel_unit_cfg=UNITS, parse_cfg=dict(demo_input=(2, 3, 6, 6)))


def net():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 8, 3)
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).double()


def autoslim(**options):
    return AutoSlim(
        **{'mutator': copy.deepcopy(MUTATOR), 'distiller': copy.deepcopy(DISTILLER), 'architecture': net(), **options}
    )


def weights(algorithm):
    return {name: value.detach().clone() for name, value in algorithm.architecture.module.named_parameters()}


def sandwich(algorithm, subnets, data=DATA):
    """Return losses and the gradients that they have in the whole network, with every width as a static model."""
    full = dict(algorithm.architecture.module.named_parameters())
    gradients = {name: torch.zeros_like(value) for name, value in full.items()}
    losses, taught = [], None
    for subnet in subnets:
        algorithm.set_subnet(subnet)
        slicing = algorithm.mutator.widths.slicing
        plain = extract(algorithm.architecture).module
        logits = plain(data[0])
        if taught is None:
            loss, taught = F.cross_entropy(logits, data[1]), logits.detach()
        else:
            expected = (taught / 2).softmax(1)
            loss = 4 * (expected * (expected.log() - (logits / 2).log_softmax(1))).sum() / len(logits)
        loss.backward()
        losses.append(loss.item())
        for name, parameter in plain.named_parameters():
            where = gradients[name] if slicing is None else slicing.take(f'module.{name}', gradients[name])
            where += parameter.grad
    return losses, gradients


def drawn(algorithm):
    """Return the widths of the sandwich of the current step."""
    space = algorithm.mutator.space
    samples = [space.subnet(algorithm.sample_subnet(number)) for number in range(algorithm.num_samples)]
    return [space.extreme(largest=True), space.extreme(largest=False), *samples]


def test_a_step_is_the_sandwich_written_by_hand():
    algorithm = autoslim(seed=3)
    subnets = drawn(algorithm)
    losses, gradients = sandwich(algorithm, subnets)
    before = weights(algorithm)
    log = algorithm.train_step(DATA, torch.optim.SGD(algorithm.parameters(), lr=0.5))
    assert log['max_subnet.loss'].item() == pytest.approx(losses[0])
    assert log['min_subnet.loss_kl'].item() == pytest.approx(losses[1])
    assert [log[f'random_subnet_{i}.loss_kl'].item() for i in range(2)] == pytest.approx(losses[2:])
    assert log['loss'].item() == pytest.approx(sum(losses))
    for name, value in weights(algorithm).items():
        torch.testing.assert_close((before[name] - value) / 0.5, gradients[name], atol=1e-9, rtol=1e-7)
    assert len({repr(dict(subnet)) for subnet in subnets}) > 2


def test_random_widths_are_a_function_of_seed_and_step():
    first, second, other = autoslim(seed=1), autoslim(seed=1), autoslim(seed=2)
    optimizers = [torch.optim.SGD(algorithm.parameters(), lr=0.1) for algorithm in (first, second, other)]
    for algorithm, optimizer in zip((first, second, other), optimizers, strict=True):
        for _ in range(3):
            algorithm.train_step(DATA, optimizer)
            torch.randn(1)
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())
    assert not all(torch.equal(value, weights(other)[name]) for name, value in weights(first).items())


def test_records_are_gone_after_the_step():
    algorithm = autoslim()
    algorithm.train_step(DATA, torch.optim.SGD(algorithm.parameters(), lr=0.1))
    for manager in (algorithm.distiller.teacher_recorders, algorithm.distiller.student_recorders):
        assert not manager.get_recorder('logits').data_buffer


def test_deliveries_give_all_widths_the_draws_of_the_largest():
    drawn = []

    def add_noise(module, args):
        drawn.append(args[0] + torch.randn(6, 3, 6, 6, dtype=torch.float64))
        return drawn[-1]

    noise = dict(noise=dict(type='FunctionOutputs', func_path='torch.randn', max_keep_data=1))
    algorithm = autoslim(distiller=dict(copy.deepcopy(DISTILLER), distill_deliveries=noise))
    algorithm.architecture.module[0].register_forward_pre_hook(add_noise)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    for _ in range(2):
        algorithm.train_step(DATA, optimizer)
    assert len(drawn) == 8
    for step in (drawn[:4], drawn[4:]):
        assert all(torch.equal(one, step[0]) for one in step)
    assert not torch.equal(drawn[0], drawn[4])
    assert not algorithm.distiller.deliveries.deliveries['noise'].data_queue


def test_the_whole_of_a_plain_module_is_told_from_its_losses():
    whole = dict(logits=dict(type='ModuleOutputs', source=''))
    for side in ('teacher_recorders', 'student_recorders'):
        with pytest.raises(ConfigError, match="the Sequential itself gives is source='module'"):
            autoslim(distiller={**DISTILLER, side: whole})


def test_no_gradient_reaches_the_teacher_whatever_the_loss():
    mse = dict(loss_mse=dict(type='torch.nn.MSELoss'))
    arguments = dict(input=dict(from_student=True, recorder='logits'), target=dict(from_student=False, recorder='logits'))
    distiller = {**copy.deepcopy(DISTILLER), 'distill_losses': mse, 'loss_forward_mappings': dict(loss_mse=arguments)}
    algorithm = autoslim(distiller=distiller, num_samples=0)
    log = algorithm.train_step(DATA, torch.optim.SGD(algorithm.parameters(), lr=0.1))
    assert log['min_subnet.loss_mse'] > 0


def test_accumulation_counts_steps_or_as_old_configs_do_widths():
    lr = 0.5
    algorithm = autoslim(seed=0)
    subnets = drawn(algorithm)
    _, gradients = sandwich(algorithm, subnets)
    before = weights(algorithm)
    wrapper = OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=lr), accumulative_counts=4)
    algorithm.train_step(DATA, wrapper)
    for name, value in weights(algorithm).items():
        torch.testing.assert_close((before[name] - value) / lr, gradients[name] / 4, atol=1e-9, rtol=1e-7)

    algorithm = autoslim(seed=0)
    wrapper = OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=lr), accumulative_counts=2)
    before, total = weights(algorithm), dict.fromkeys(gradients, 0)
    for step in range(2):
        assert all(torch.equal(before[name], value) for name, value in weights(algorithm).items())
        algorithm.step = step
        _, gradients = sandwich(algorithm, drawn(algorithm))
        total = {name: total[name] + value / 2 for name, value in gradients.items()}
        algorithm.zero_grad() if step == 0 else None
        algorithm.train_step(DATA, wrapper)
    for name, value in weights(algorithm).items():
        torch.testing.assert_close((before[name] - value) / lr, total[name], atol=1e-9, rtol=1e-7)


def test_a_loop_that_counts_iterations_is_told_of_widths():
    algorithm = autoslim()
    wrapper = OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=0.1), accumulative_counts=8)
    wrapper.initialize_count_status(algorithm, 0, 3)  # three steps of four widths: an update after eight, and one at the end
    before = weights(algorithm)
    changed = []
    for _ in range(3):
        algorithm.train_step(DATA, wrapper)
        changed.append(any(not torch.equal(before[name], value) for name, value in weights(algorithm).items()))
        before = weights(algorithm)
    assert changed == [False, True, True]


def test_mixed_precision_trains():
    algorithm = autoslim(architecture=net().float())
    wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(algorithm.parameters(), lr=0.1), dtype='bfloat16')
    before = weights(algorithm)
    log = algorithm.train_step((DATA[0].float(), DATA[1]), wrapper)
    assert torch.isfinite(log['loss'])
    assert any(not torch.equal(before[name], value) for name, value in weights(algorithm).items())


def test_outside_of_a_step_losses_are_by_the_labels():
    algorithm = autoslim()
    algorithm.set_min_subnet()
    losses = algorithm(*DATA, mode='loss')
    expected = F.cross_entropy(extract(algorithm.architecture).module(DATA[0]), DATA[1])
    assert losses['loss'].item() == pytest.approx(expected.item())
    algorithm.set_max_subnet()
    assert torch.equal(algorithm(DATA[0]), net()(DATA[0]))


def test_a_bad_loss_is_named_and_changes_nothing():
    algorithm = autoslim()
    before = weights(algorithm)
    algorithm.distiller.distill_losses['loss_kl'].forward = lambda preds_S, preds_T: preds_S.sum() * float('nan')
    with pytest.raises(TrainingError, match=r'min_subnet\.loss_kl=nan'):
        algorithm.train_step(DATA, torch.optim.SGD(algorithm.parameters(), lr=0.1))
    assert all(torch.equal(before[name], value) for name, value in weights(algorithm).items())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in algorithm.parameters())


def test_norm_training_keeps_batch_norms_in_training_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)).double()
    recorders = dict(logits=dict(type='ModuleOutputs', source='3'))
    distiller = {**copy.deepcopy(DISTILLER), 'teacher_recorders': recorders, 'student_recorders': recorders}
    for norm_training in (True, False):
        algorithm = autoslim(architecture=copy.deepcopy(model), distiller=copy.deepcopy(distiller), norm_training=norm_training)
        assert algorithm.eval().architecture.module[1].training is norm_training


class TestArguments:
    def test_the_seeds_and_the_old_keywords(self):
        assert autoslim(num_samples=3).num_samples == 3
        assert autoslim(num_random_samples=1).num_samples == 1
        assert autoslim().num_samples == 2
        assert autoslim(data_preprocessor=None, init_cfg=None).num_samples == 2
        with pytest.raises(ConfigError, match='are the same, but got 1 and 3'):
            autoslim(num_samples=1, num_random_samples=3)
        with pytest.raises(ConfigError, match='whole number'):
            autoslim(num_samples=-1)

    def test_instances_and_names(self):
        mutator = OneShotChannelMutator(UNITS, dict(demo_input=(2, 3, 6, 6)))
        distiller = ConfigurableDistiller(**{name: value for name, value in DISTILLER.items() if name != 'type'})
        algorithm = MODELS.build(dict(type='mmrazor.AutoSlim', architecture=net(), mutator=mutator, distiller=distiller))
        assert algorithm.mutator is mutator
        assert algorithm.distiller is distiller

    def test_other_classes_are_named(self):
        with pytest.raises(TypeError, match='ChannelMutator, but got OneShotMutator'):
            autoslim(mutator=OneShotMutator())
        with pytest.raises(ComponentTypeError, match='ConfigurableDistiller, but got Linear'):
            autoslim(distiller=nn.Linear(1, 1))

    @pytest.mark.parametrize('part', ['architecture', 'mutator', 'distiller'])
    def test_missing_parts(self, part):
        with pytest.raises(ConfigError, match=part):
            autoslim(**{part: None})

    def test_the_mutator_comes_before_the_distiller(self):
        model = BaseAlgorithm(net()).architecture
        distiller = ConfigurableDistiller(**{name: value for name, value in DISTILLER.items() if name != 'type'})
        distiller.prepare_from_teacher(model)
        with pytest.raises(BindingError, match='prepare_from_supernet'):
            autoslim(architecture=model, distiller=distiller)


class TestRetraining:
    def test_the_found_widths_become_a_plain_network(self):
        searched = autoslim()
        subnet = searched.mutator.space.extreme(largest=False)
        searched.set_subnet(subnet)
        expected = extract(searched.architecture)(DATA[0])
        algorithm = autoslim(mutable_cfg=dict(subnet), distiller=None)
        assert algorithm.retraining
        assert algorithm.mutator is None
        assert not attachments(algorithm)
        torch.testing.assert_close(algorithm(DATA[0]), expected)
        log = algorithm.train_step(DATA, torch.optim.SGD(algorithm.parameters(), lr=0.1))
        assert sorted(log) == ['loss']


def config(**changes):
    """A config that trains a slim network of digits by AutoSlim."""
    model = dict(
        type='AutoSlim',
        architecture=dict(
            type='ImageClassifier',
            backbone=dict(type='SlimBackbone'),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=16, topk=(1,)),
            data_preprocessor=dict(type='ClsDataPreprocessor', mean=[78.0], std=[96.0]),
        ),
        mutator=dict(
            type='OneShotChannelMutator',
            channel_unit_cfg=UNITS,
            parse_cfg=dict(type='ChannelAnalyzer', demo_input=(1, 1, 8, 8), tracer_type='BackwardTracer'),
        ),
        distiller=dict(
            type='ConfigurableDistiller',
            teacher_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
            student_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
            distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=1, loss_weight=1)),
            loss_forward_mappings=dict(
                loss_kl=dict(preds_S=dict(recorder='fc', from_student=True), preds_T=dict(recorder='fc', from_student=False))
            ),
        ),
    )
    return train_config(model=model, **changes)


@pytest.fixture(scope='module')
def backbone():
    class SlimBackbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 16, 3, 2),
                nn.BatchNorm2d(16),
                nn.ReLU(),
            )

        def forward(self, x):
            return (self.layers(x),)

    MODELS.register_module(module=SlimBackbone, force=True)
    yield SlimBackbone
    MODELS.module_dict.pop('SlimBackbone')


class TestTheRealThing:
    def test_trains_then_searches_greedily_to_targets(self, backbone, tmp_path):
        build_runner(config(), work_dir=tmp_path / 'train').train()
        search = config(
            load_from=str(tmp_path / 'train' / 'epoch_2.pth'),
            test_cfg=dict(type='mmrazor.AutoSlimGreedySearchLoop', target_flops=[0.012, 0.006], calibrate_sample_num=32),
        )
        runner = build_runner(search, task='test', work_dir=tmp_path / 'search')
        metrics = runner.test()
        assert set(metrics) >= {'0.012/accuracy/top1', '0.006/accuracy/top1'}
        loop = runner.test_loop
        algorithm = runner.model
        counted = []
        for target in (0.012, 0.006):
            subnet = load_subnet(tmp_path / 'search' / f'subnet_{target:g}.yaml', algorithm.mutator.space)
            counted.append(loop._strategy.cost(subnet))
            assert counted[-1] <= target
            assert loop.scorer.metrics(subnet)['accuracy/top1'] == metrics[f'{target:g}/accuracy/top1']
        assert counted[0] > counted[1]
        rounds = [trial.subnet for trial in loop._strategy.path]
        for wider, narrower in pairwise(rounds):
            changed = [key for key in wider if wider.choices[key] != narrower.choices[key]]
            assert len(changed) == 1, 'one unit is narrowed in each round'
        search.test_cfg['resume_from'] = True
        resumed = build_runner(search, task='test', work_dir=tmp_path / 'search')
        assert resumed.test() == metrics, 'a finished search is replayed from its store'

    def test_two_workers_narrow_as_one_process(self, backbone, tmp_path):
        torch.set_num_threads(1)
        found = []
        for name, executor in (('one', None), ('two', dict(type='LocalProcesses', workers=2, threads=1))):
            loop = dict(type='AutoSlimGreedySearchLoop', target_flops=[0.006], calibrate_sample_num=32, executor=executor)
            runner = build_runner(config(test_cfg=loop), task='test', work_dir=tmp_path / name)
            metrics = runner.test()
            trials = runner.test_loop.result.trials
            found.append((metrics, [(trial.number, trial.subnet, trial.values) for trial in trials]))
        assert found[0] == found[1]
        assert len(found[0][1]) > 3, 'several rounds'

    def test_targets_out_of_reach(self, backbone, tmp_path):
        for target, error in ((1e-6, BudgetError), (5.0, ConfigError), ([], ConfigError), ('all', ConfigError)):
            cfg = config(test_cfg=dict(type='AutoSlimGreedySearchLoop', target_flops=target))
            with pytest.raises(error, match='multiply-adds'):
                build_runner(cfg, task='test', work_dir=tmp_path / str(target)).test()

    def test_retrains_what_was_found(self, backbone, tmp_path):
        supernet = build_runner(config(), work_dir=tmp_path / 'one').model
        subnet = dict(supernet.mutator.space.extreme(largest=False))
        cfg = config()
        cfg.model.mutable_cfg = subnet
        cfg.model.distiller = None
        cfg.val_dataloader = loader('val', 60, 60)
        runner = build_runner(cfg, work_dir=tmp_path / 'two')
        assert sum(p.numel() for p in runner.model.parameters()) < sum(p.numel() for p in supernet.parameters())
        runner.train()


def test_a_step_of_the_users_draws_other_widths_each_time():
    drawn = autoslim(num_samples=2, seed=3)
    fixed = [drawn.sample_subnet(number) for number in range(2)]
    first = [drawn.mutator.space.subnet(drawn.sample_subnet()) for _ in range(6)]
    assert [drawn.mutator.space.subnet(subnet) for subnet in fixed] == first[:2], 'as the sandwich of this step would'
    assert len(set(first)) > 3
    drawn.step = 1
    second = [drawn.mutator.space.subnet(drawn.sample_subnet()) for _ in range(6)]
    assert second != first
    again = autoslim(num_samples=2, seed=3)
    assert [again.mutator.space.subnet(again.sample_subnet()) for _ in range(6)] == first


def test_parts_in_another_order_are_refused_with_the_names():
    mutator = OneShotChannelMutator(**{key: value for key, value in MUTATOR.items() if key != 'type'})
    with pytest.raises(ConfigError, match='Give them by name'):
        AutoSlim(mutator, copy.deepcopy(DISTILLER), net())
