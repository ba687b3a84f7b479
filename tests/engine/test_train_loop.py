import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.utils.data import DataLoader, Dataset

from strop.algorithms import SPOS
from strop.engine import (
    AmpOptimWrapper,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    build_runner,
    find_checkpoint,
    load_checkpoint_file,
)
from strop.engine.train_loop import Orders, _check_finite
from strop.errors import DataError, TrainingError
from strop.mutables import LayerChoice
from strop.registry import LOOPS

from .forked import die, forked
from .tiny import loader, train_config

BY_ITER = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1))


class Noisy(Dataset):
    """Data that draw from the global generator, as random augmentation does."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.rand(4) + index % 2, index % 2


def noisy_config(by_epoch, **changes):
    torch.manual_seed(0)
    layers = [LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))]) for _ in range(3)]
    model = SPOS(nn.Sequential(*layers, nn.Linear(4, 2)))
    return dict(
        model=model,
        train_dataloader=DataLoader(Noisy(), batch_size=8, shuffle=True),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.01)),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=9, by_epoch=False),
        train_cfg=dict(by_epoch=True, max_epochs=3) if by_epoch else dict(by_epoch=False, max_iters=9),
        default_hooks=BY_ITER,
        log_level='WARNING',
        **changes,
    )


def state_of(path):
    checkpoint = load_checkpoint_file(path)
    return {**checkpoint['state_dict'], **flat(checkpoint['optimizer'])}


def flat(value, name='optimizer'):
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    result = {}
    for key, item in items:
        result.update(flat(item, f'{name}.{key}'))
    return result


def assert_equal(first, second):
    first, second = state_of(first), state_of(second)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def train(config, work_dir, resume=False, die_at=None, die_in_checkpoint=None):
    """Train; die before step `die_at`, or while the checkpoint number `die_in_checkpoint` is being written."""
    runner = build_runner(config, work_dir=work_dir, resume=resume)
    if die_at is not None:
        step = runner.model.train_step

        def train_step(*args, **kwargs):
            if runner.iter == die_at:
                die()
            return step(*args, **kwargs)

        runner.model.train_step = train_step
    if die_in_checkpoint is not None:
        import os

        sync, count = os.fsync, iter(range(1, 1000))

        def fsync(descriptor):
            if next(count) == die_in_checkpoint:
                die()
            sync(descriptor)

        os.fsync = fsync
    runner.train()


# -- repeating --------------------------------------------------------------------------------------


@pytest.mark.parametrize('by_epoch', [True, False])
def test_training_repeats_itself(tmp_path, by_epoch):
    train(noisy_config(by_epoch), tmp_path / 'a')
    torch.rand(7)
    train(noisy_config(by_epoch), tmp_path / 'b')
    assert_equal(tmp_path / 'a' / 'iter_9.pth', tmp_path / 'b' / 'iter_9.pth')
    train(noisy_config(by_epoch, randomness=dict(seed=1)), tmp_path / 'c')
    one, other = state_of(tmp_path / 'a' / 'iter_9.pth'), state_of(tmp_path / 'c' / 'iter_9.pth')
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('stop', [1, 3, 4, 6, 8])
def test_resumed_training_is_bit_equal(tmp_path, by_epoch, stop):
    train(noisy_config(by_epoch), tmp_path / 'whole')
    (tmp_path / 'part').mkdir()
    for number in range(1, stop + 1):
        shutil.copy(tmp_path / 'whole' / f'iter_{number}.pth', tmp_path / 'part')
    assert find_checkpoint(tmp_path / 'part').name == f'iter_{stop}.pth'
    train(noisy_config(by_epoch), tmp_path / 'part', resume=True)
    assert_equal(tmp_path / 'whole' / 'iter_9.pth', tmp_path / 'part' / 'iter_9.pth')


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_resumed_batches_are_those_of_an_unbroken_run(tmp_path, by_epoch, workers):
    def config(seen):
        config = noisy_config(by_epoch)
        config['train_dataloader'] = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=workers)
        config['model'].register_forward_pre_hook(lambda model, args: seen.append(args[0].clone()))
        return config

    whole, rest = [], []
    train(config(whole), tmp_path)
    for number in (5, 6, 7, 8, 9):
        (tmp_path / f'iter_{number}.pth').unlink()
    train(config(rest), tmp_path, resume=True)
    assert len(whole) == 9
    assert len(rest) == 5
    assert all(torch.equal(first, second) for first, second in zip(whole[4:], rest))


def shuffled_endlessly():
    return DataLoader(Noisy(), batch_size=8, sampler=InfiniteSampler(Noisy(), seed=3))


def shuffled_by_its_own_generator():
    return DataLoader(Noisy(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ('loader', 'by_epoch'),
    [(shuffled_endlessly, False), (shuffled_by_its_own_generator, False), (shuffled_by_its_own_generator, True)],
)
def test_loaders_given_as_objects_resume(tmp_path, loader, by_epoch):
    (tmp_path / 'part').mkdir()
    train({**noisy_config(by_epoch), 'train_dataloader': loader()}, tmp_path / 'whole')
    shutil.copy(tmp_path / 'whole' / 'iter_5.pth', tmp_path / 'part')
    train({**noisy_config(by_epoch), 'train_dataloader': loader()}, tmp_path / 'part', resume=True)
    assert_equal(tmp_path / 'whole' / 'iter_9.pth', tmp_path / 'part' / 'iter_9.pth')


def test_a_loader_that_was_used_before_begins_with_the_same_seed():
    data = shuffled_by_its_own_generator()
    firsts = []
    for _ in range(2):
        orders = Orders(data)
        orders.begin(0)
        firsts.append(data.generator.initial_seed())
        orders.begin(1)
    assert firsts[0] == firsts[1]
    data.generator.manual_seed(4)
    Orders(data).begin(0)
    assert data.generator.initial_seed() != firsts[0]


def test_a_loss_scale_of_one_of_several_optimizers_takes_a_loss_that_is_not_finite():
    weight = nn.Parameter(torch.zeros(1))
    runner = SimpleNamespace(iter=0, optim_wrapper=OptimWrapperDict(a=OptimWrapper(torch.optim.SGD([weight], 0.1))))
    with pytest.raises(TrainingError, match='not finite'):
        _check_finite(runner, {'loss': torch.tensor(float('inf'))})
    runner.optim_wrapper.optim_wrappers['b'] = AmpOptimWrapper(dtype='float16', optimizer=torch.optim.SGD([weight], 0.1))
    _check_finite(runner, {'loss': torch.tensor(float('inf'))})


def test_workers_do_not_change_the_result(tmp_path):
    for workers in (0, 2):
        config = train_config(default_hooks=BY_ITER)
        config.train_dataloader.num_workers = workers
        config.train_dataloader.dataset.transforms = [dict(type='torchvision.transforms.v2.RandomHorizontalFlip')]
        train(config, tmp_path / str(workers))
    assert_equal(tmp_path / '0' / 'iter_6.pth', tmp_path / '2' / 'iter_6.pth')


def test_accumulation_resumes(tmp_path):
    def config():
        return train_config(
            default_hooks=BY_ITER, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=2)
        )

    train(config(), tmp_path / 'whole')
    (tmp_path / 'part').mkdir()
    shutil.copy(tmp_path / 'whole' / 'iter_4.pth', tmp_path / 'part')
    train(config(), tmp_path / 'part', resume=True)
    assert_equal(tmp_path / 'whole' / 'iter_6.pth', tmp_path / 'part' / 'iter_6.pth')


# -- killing ------------------------------------------------------------------------------------------


def kill_config():
    config = train_config(default_hooks=BY_ITER)
    config.train_cfg.max_epochs = 3
    config.param_scheduler = dict(type='CosineAnnealingLR', T_max=3, by_epoch=True)
    return config


def test_killed_training_resumes_to_the_same_weights(tmp_path):
    errors = tmp_path / 'error.txt'
    assert forked(train, kill_config(), tmp_path / 'unbroken', errors=errors) == 0, errors.read_text()
    work_dir = tmp_path / 'killed'
    # In the middle of the first epoch, while the second of the next checkpoints is written, in the last epoch.
    for resume, die_at, in_checkpoint in [(False, 2, None), (True, None, 2), (True, 8, None)]:
        assert forked(train, kill_config(), work_dir, resume, die_at, in_checkpoint, errors=errors) == -signal.SIGKILL
        for path in work_dir.glob('iter_*.pth'):
            assert load_checkpoint_file(path)['meta']['iter'] == int(path.stem.removeprefix('iter_'))
    assert forked(train, kill_config(), work_dir, True, errors=errors) == 0, errors.read_text()
    assert_equal(tmp_path / 'unbroken' / 'iter_9.pth', work_dir / 'iter_9.pth')


@pytest.mark.slow
def test_training_killed_at_any_time_resumes_to_the_same_weights(tmp_path):
    errors = tmp_path / 'error.txt'
    assert forked(train, kill_config(), tmp_path / 'unbroken', errors=errors) == 0

    def train_for(seconds, work_dir):
        signal.signal(signal.SIGALRM, lambda *_: die())
        signal.setitimer(signal.ITIMER_REAL, seconds)
        train(kill_config(), work_dir)

    for attempt in range(30):
        work_dir = tmp_path / f'killed{attempt}'
        forked(train_for, 0.2 + 0.04 * attempt, work_dir, errors=errors)
        assert forked(train, kill_config(), work_dir, True, errors=errors) == 0, errors.read_text()
        assert_equal(tmp_path / 'unbroken' / 'iter_9.pth', work_dir / 'iter_9.pth')
        shutil.rmtree(work_dir)


# -- the loops themselves ---------------------------------------------------------------------------------


def test_train_cfg_without_type_uses_these_loops(tmp_path):
    assert type(build_runner(train_config(), work_dir=tmp_path).train_loop) is EpochBasedTrainLoop
    by_iter = train_config(train_cfg=dict(by_epoch=False, max_iters=2))
    assert type(build_runner(by_iter, work_dir=tmp_path).train_loop) is IterBasedTrainLoop
    assert LOOPS.get('mmrazor.EpochBasedTrainLoop') is EpochBasedTrainLoop


def test_iterations_go_on_over_epochs_and_validate(tmp_path):
    config = train_config(train_cfg=dict(by_epoch=False, max_iters=7, val_interval=3))
    runner = build_runner(config, work_dir=tmp_path)
    validated = []
    runner.val_loop.run = lambda: validated.append(runner.iter)
    runner.train()
    assert runner.iter == 7
    assert validated == [3, 6, 7]


def test_data_of_one_class_are_refused(tmp_path):
    images, labels = torch.zeros(8, 8, 8, dtype=torch.uint8).numpy(), torch.zeros(8, dtype=torch.int64).numpy()
    config = train_config()
    config.train_dataloader = {**loader('all'), 'dataset': dict(type='ImageDataset', source=(images, labels), split='all')}
    with pytest.raises(DataError, match='two classes'):
        build_runner(config, work_dir=tmp_path).train()
