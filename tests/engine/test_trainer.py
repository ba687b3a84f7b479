"""The trainer's own work, by trainers that are a few lines each; those of papers have tests of their own."""

import json
import os
import shutil
import signal
from collections import deque
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from strop.algorithms import Darts, DartsTrainer, SinglePathTrainer
from strop.engine import BaseTrainer, Callback, LRSchedulerCallback, SearchBatches, Trainer, load_checkpoint_file
from strop.errors import ComponentTypeError, ConfigError, DataError, TrainingError
from strop.mutables import LayerChoice
from strop.mutators import DartsMutator, RandomMutator
from strop.registry import MODEL_WRAPPERS

from .forked import die, forked, in_group


class Net(nn.Module):
    """A small network with dropout and a batch norm, so that both must be resumed."""

    def __init__(self):
        super().__init__()
        self.first = LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Identity()], key='first')
        self.second = LayerChoice([nn.Linear(4, 4), nn.Tanh()], key='second.op')
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.second(self.first(x)))))


def data(number=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 4, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def accuracy(outputs, labels):
    return {'acc': (outputs.argmax(1) == labels).float().mean()}


def parts(seed=0):
    torch.manual_seed(seed)
    net = Net()
    return net, torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)


def options(tmp_path, **changes):
    return dict(batch_size=4, workers=0, device='cpu', work_dir=tmp_path, log_level='WARNING', **changes)


def single(tmp_path, epochs=3, **changes):
    net, sgd = parts()
    return SinglePathTrainer(
        net, nn.CrossEntropyLoss(), accuracy, sgd, epochs, data(), data(8, 1), **options(tmp_path, **changes)
    )


def darts(tmp_path, epochs=3, unrolled=True, **changes):
    net, sgd = parts()
    schedule = LRSchedulerCallback(torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 9), mode='batch')
    made = dict(arc_learning_rate=0.1, unrolled=unrolled, callbacks=[schedule], **changes)
    return DartsTrainer(net, nn.CrossEntropyLoss(), accuracy, sgd, epochs, data(), data(8, 1), **options(tmp_path, **made))


def flat(value, name=''):
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    if not isinstance(value, (dict, list, tuple)):
        return {name: torch.tensor(float(value))} if isinstance(value, (int, float)) else {}
    result = {}
    for key, item in items:
        result.update(flat(item, f'{name}.{key}'))
    return result


def assert_equal(first, second):
    first, second = (load_checkpoint_file(path) for path in (first, second))
    for part in ('state_dict', 'optimizer', 'trainer'):
        one, other = flat(first[part]), flat(second[part])
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


# -- inherit and override, copy and modify ------------------------------------------------------------------------


class Plain(Trainer):
    """A trainer written without any of the helpers: a plain PyTorch loop."""

    def __init__(self, model, loss, optimizer, num_epochs, dataset, **more):
        super().__init__(model, RandomMutator(model), loss, None, optimizer, num_epochs, dataset, None, **more)
        self.train_loader = DataLoader(dataset, batch_size=4, shuffle=True)
        self.seen = []

    def train_one_epoch(self, epoch):
        self.model.train()
        for x, y in self.train_loader:
            self.mutator.reset()
            loss = self.loss(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.seen.append(float(loss.detach()))

    def validate_one_epoch(self, epoch):
        self.mutator.reset()
        return self.evaluate(self.train_loader)


def plain(tmp_path, epochs=3, **changes):
    net, sgd = parts()
    return Plain(net, nn.CrossEntropyLoss(), sgd, epochs, data(), **options(tmp_path, **changes))


def test_a_plain_loop_is_a_trainer(tmp_path):
    search = plain(tmp_path, epochs=8)
    search.train()
    assert len(search.seen) == 8 * 6
    assert sum(search.seen[-18:]) < sum(search.seen[:18])
    assert set(search.validate()) == {'loss'}
    assert sorted(path.name for path in tmp_path.glob('epoch_*.pth')) == ['epoch_7.pth', 'epoch_8.pth']


def test_a_plain_loop_resumes_to_the_same_weights(tmp_path):
    plain(tmp_path / 'whole').train()
    plain(tmp_path / 'part', epochs=1).train()
    again = plain(tmp_path / 'part')
    torch.rand(5)
    again.train(resume=True)
    assert len(again.seen) == 2 * 6
    assert_equal(tmp_path / 'whole' / 'epoch_3.pth', tmp_path / 'part' / 'epoch_3.pth')


def test_a_trainer_is_inherited_and_overridden(tmp_path):
    class Halved(SinglePathTrainer):
        def validate_one_epoch(self, epoch):
            found = super().validate_one_epoch(epoch)
            return {**found, 'half': found['loss'] / 2}

    net, sgd = parts()
    search = Halved(net, nn.CrossEntropyLoss(), accuracy, sgd, 1, data(), data(8, 1), **options(tmp_path))
    search.train()
    assert set(search.validate()) == {'loss', 'acc', 'half'}


# -- what is written ----------------------------------------------------------------------------------------------


def test_making_a_trainer_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, sgd = parts()
    search = SinglePathTrainer(net, nn.CrossEntropyLoss(), accuracy, sgd, 1, data(), None, workers=0, batch_size=8)
    search.train_one_epoch(0)
    assert list(tmp_path.iterdir()) == []
    assert search.work_dir == Path('work_dirs/SinglePathTrainer')


def test_a_metric_with_a_state_goes_to_the_device_of_the_trainer(tmp_path):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('weights', torch.ones(3))

        def forward(self, outputs, labels):
            return {'acc': (outputs * self.weights).mean()}

    net, sgd = parts()
    search = SinglePathTrainer(net, nn.CrossEntropyLoss(), Weighted(), sgd, 1, data(), None, work_dir=tmp_path, device='meta')
    assert search.metrics.weights.is_meta


def test_scalars_are_logged_every_so_many_steps_and_for_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    single(tmp_path, epochs=2, log_frequency=2, tensorboard=True).train()
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    steps = [row for row in rows if 'acc' in row]
    assert [row['step'] for row in steps] == [2, 4, 6, 8, 10, 12]
    assert all({'loss', 'acc', 'optimizer.lr'} <= set(row) or 'lr' in row for row in steps)
    assert [row['step'] for row in rows if 'val/loss' in row] == [1, 2]
    assert list(tmp_path.glob('*/vis_data/events.out.tfevents*'))


def test_the_checkpoint_holds_all_that_has_a_state(tmp_path):
    search = darts(tmp_path, epochs=1)
    search.controller = nn.Linear(2, 2)
    search.train()
    checkpoint = load_checkpoint_file(tmp_path / 'epoch_1.pth')
    assert {name.split('.')[0] for name in checkpoint['state_dict']} == {'model', 'mutator'}
    assert set(checkpoint['optimizer']) == {'optimizer', 'ctrl_optim'}
    assert set(checkpoint['trainer']['parts']) == {'controller', 'loss'}
    assert checkpoint['trainer']['callbacks'][0]['last_epoch'] == 3
    assert checkpoint['meta']['epoch'] == 1


def test_a_checkpoint_on_demand_is_one_to_resume_from(tmp_path):
    class Save(Callback):
        def on_epoch_end(self, epoch):
            if epoch == 1:
                self.trainer.checkpoint(tmp_path / 'mine' / 'epoch_2.pth')

    single(tmp_path / 'whole', callbacks=[Save()]).train()
    single(tmp_path / 'mine', callbacks=[Callback()]).train(resume=True)
    assert_equal(tmp_path / 'whole' / 'epoch_3.pth', tmp_path / 'mine' / 'epoch_3.pth')
    search = single(tmp_path / 'fresh')
    path = search.checkpoint()
    assert path.name == 'epoch_0.pth'
    assert load_checkpoint_file(path)['meta']['epoch'] == 0


def test_checkpoints_after_single_steps_are_ones_to_resume_from(tmp_path):
    class Save(Callback):
        left = 8

        def on_batch_end(self, epoch):
            self.left -= 1
            if not self.left:
                self.path = self.trainer.checkpoint(tmp_path / 'mine' / 'epoch_1.pth')
                self.found = self.trainer.checkpoint()

    (tmp_path / 'mine').mkdir()
    save = Save()
    darts(tmp_path / 'whole', epochs=3).train()
    search = darts(tmp_path / 'part', epochs=3)
    save.build(search.model, search.mutator, search)
    search.callbacks.append(save)
    search.train()
    length = len(search.train_loader)
    assert 8 % length, 'it is inside an epoch'
    assert save.found.name == 'iter_8.pth'
    assert load_checkpoint_file(save.path)['meta']['iter'] == 8
    darts(tmp_path / 'mine', epochs=3, checkpoint_by='epoch').train(resume=True)
    assert_equal(tmp_path / 'whole' / 'epoch_3.pth', tmp_path / 'mine' / 'epoch_3.pth')


def test_a_checkpoint_after_an_epoch_that_left_its_steps_is_one_of_the_epoch(tmp_path):
    class Short(SinglePathTrainer):
        def train_one_epoch(self, epoch):
            self.batches = self.steps(self.train_loader)  # held, so that it is not closed
            next(self.batches)

    class Save(Callback):
        def on_epoch_end(self, epoch):
            self.path = self.trainer.checkpoint()

    net, sgd = parts()
    save = Save()
    Short(net, nn.CrossEntropyLoss(), accuracy, sgd, 1, data(), None, **options(tmp_path, callbacks=[save])).train()
    assert save.path.name == 'epoch_1.pth'


def test_a_checkpoint_within_a_step_is_refused(tmp_path):
    class Early(SinglePathTrainer):
        def log(self, **values):
            self.checkpoint()

    net, sgd = parts()
    search = Early(net, nn.CrossEntropyLoss(), accuracy, sgd, 1, data(), None, **options(tmp_path))
    with pytest.raises(TrainingError, match=r'between steps.*on_batch_end'):
        search.train()


def test_what_a_callback_keeps_must_be_readable_before_it_replaces_a_checkpoint(tmp_path):
    class Early(Callback):
        def state_dict(self):
            return {'seen': deque([1.0])}

        def load_state_dict(self, state):
            pass

    with pytest.raises(ConfigError, match=r'the callback Early cannot be kept .*collections\.deque.*state_dict'):
        single(tmp_path, callbacks=[Early()]).train()
    assert not list(tmp_path.glob('*.pth'))


def test_the_last_checkpoint_goes_only_when_the_next_is_written(tmp_path):
    class Full(Callback):
        """A disk that is full from the second epoch on."""

        def on_epoch_end(self, epoch):
            if epoch == 1:
                self.trainer._runner.save_checkpoint = self.fail

        def fail(self, *args, **kwargs):
            raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space'):
        single(tmp_path, max_keep_checkpoints=1, callbacks=[Full()]).train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    single(tmp_path, max_keep_checkpoints=1).train(resume=True)
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_3.pth']


# -- callbacks ----------------------------------------------------------------------------------------------------


def test_all_four_events_reach_a_callback(tmp_path):
    class Note(Callback):
        def __init__(self):
            super().__init__()
            self.events = []

        def on_epoch_begin(self, epoch):
            self.events.append(f'<{epoch}')

        def on_epoch_end(self, epoch):
            self.events.append(f'{epoch}>')

        def on_batch_begin(self, epoch):
            self.events.append(f'({epoch}')

        def on_batch_end(self, epoch):
            self.events.append(f'{epoch})')

    note = Note()
    search = single(tmp_path, epochs=2, callbacks=[note])
    search.train()
    assert note.events == [event for epoch in (0, 1) for event in (f'<{epoch}', *[f'({epoch}', f'{epoch})'] * 6, f'{epoch}>')]
    assert (note.model, note.mutator, note.trainer) == (search.model, search.mutator, search)


# -- repeating and resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', [single, darts])
def test_training_repeats_itself(tmp_path, make):
    make(tmp_path / 'a').train()
    torch.rand(3)
    make(tmp_path / 'b').train()
    assert_equal(tmp_path / 'a' / 'epoch_3.pth', tmp_path / 'b' / 'epoch_3.pth')
    make(tmp_path / 'c', seed=1).train()
    one, other = (load_checkpoint_file(tmp_path / name / 'epoch_3.pth')['state_dict'] for name in 'ac')
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(('make', 'by'), [(single, 'step'), (darts, 'step'), (darts, 'epoch')])
def test_a_resumed_run_is_bit_equal_from_anywhere(tmp_path, make, by):
    make(tmp_path / 'whole', checkpoint_by=by, max_keep_checkpoints=-1).train()
    files = sorted((tmp_path / 'whole').glob('*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    last = files[-1]
    for number, path in enumerate(files[:-1][:: 4 if len(files) > 9 else 2]):
        (tmp_path / str(number)).mkdir()
        shutil.copy(path, tmp_path / str(number))
        make(tmp_path / str(number), checkpoint_by=by).train(resume=True)
        assert_equal(last, tmp_path / str(number) / last.name)


def test_loaders_with_generators_of_their_own_are_resumed_too(tmp_path):
    def make(work_dir, **changes):
        generator = torch.Generator().manual_seed(3)
        sampler = RandomSampler(data(), generator=torch.Generator().manual_seed(5))
        net, sgd = parts()
        train = DataLoader(data(), 4, sampler=sampler, generator=generator)
        return SinglePathTrainer(net, nn.CrossEntropyLoss(), accuracy, sgd, 3, train, None, **options(work_dir, **changes))

    make(tmp_path / 'whole', checkpoint_by='step', max_keep_checkpoints=-1).train()
    for stop in (6, 10):
        (tmp_path / str(stop)).mkdir()
        shutil.copy(tmp_path / 'whole' / f'iter_{stop}.pth', tmp_path / str(stop))
        make(tmp_path / str(stop), checkpoint_by='step').train(resume=True)
        assert_equal(tmp_path / 'whole' / 'iter_18.pth', tmp_path / str(stop) / 'iter_18.pth')


def test_an_evaluation_leaves_the_mode_as_it_is(tmp_path):
    search = single(tmp_path)
    search.model.train()
    search.model.drop.eval()
    search.mutator.reset()
    before = [module.training for module in search.model.modules()]
    search.evaluate(search.valid_loader)
    assert [module.training for module in search.model.modules()] == before


def test_resuming_without_a_checkpoint_starts(tmp_path):
    single(tmp_path / 'a').train(resume=True)
    single(tmp_path / 'b').train()
    assert_equal(tmp_path / 'a' / 'epoch_3.pth', tmp_path / 'b' / 'epoch_3.pth')


class Dying(Callback):
    """Dies in a batch."""

    def __init__(self, batch=None):
        super().__init__()
        self.left = batch

    def on_batch_end(self, epoch):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                die()


def run(work_dir, resume=False, by='step', die_in_write=None, **death):
    search = darts(work_dir, checkpoint_by=by)
    search.callbacks.append(Dying(**death))
    if die_in_write is not None:
        sync, count = os.fsync, iter(range(1, 1000))

        def fsync(descriptor):
            if next(count) == die_in_write:
                die()
            sync(descriptor)

        os.fsync = fsync
    search.train(resume=resume)
    search.export(work_dir / 'final.json')


def run_dying(work_dir, resume, by, die_in_write, death):
    run(work_dir, resume, by, die_in_write, **death)


@pytest.mark.parametrize(
    ('by', 'deaths'),
    [
        ('step', [(False, None, dict(batch=4)), (True, 2, {}), (True, None, dict(batch=1))]),
        ('epoch', [(False, None, dict(batch=4))]),
    ],
)
def test_a_killed_trainer_resumes_to_the_same_architecture_and_weights(tmp_path, by, deaths):
    errors = tmp_path / 'error.txt'
    assert forked(run_dying, tmp_path / 'unbroken', False, by, None, {}, errors=errors) == 0, errors.read_text()
    work_dir = tmp_path / 'killed'
    for resume, in_write, death in deaths:
        code = forked(run_dying, work_dir, resume, by, in_write, death, errors=errors)
        assert code == -signal.SIGKILL, errors.read_text() if errors.exists() else code
    assert forked(run_dying, work_dir, True, by, None, {}, errors=errors) == 0, errors.read_text()
    name = 'iter_9.pth' if by == 'step' else 'epoch_3.pth'
    assert_equal(tmp_path / 'unbroken' / name, work_dir / name)
    assert (tmp_path / 'unbroken' / 'final.json').read_bytes() == (work_dir / 'final.json').read_bytes()


@pytest.mark.slow
def test_a_trainer_killed_at_any_time_resumes_to_the_same_weights(tmp_path):
    errors = tmp_path / 'error.txt'
    assert forked(run_dying, tmp_path / 'unbroken', False, 'step', None, {}, errors=errors) == 0
    for attempt in range(30):
        work_dir = tmp_path / f'killed{attempt}'
        forked(run_for, 0.1 + 0.02 * attempt, work_dir, errors=errors)
        assert forked(run_dying, work_dir, True, 'step', None, {}, errors=errors) == 0, errors.read_text()
        assert_equal(tmp_path / 'unbroken' / 'iter_9.pth', work_dir / 'iter_9.pth')
        shutil.rmtree(work_dir)


def run_for(seconds, work_dir):
    signal.signal(signal.SIGALRM, lambda *_: die())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    run(work_dir)


def test_a_second_pass_in_an_epoch_cannot_be_resumed_inside(tmp_path):
    class Twice(SinglePathTrainer):
        def train_one_epoch(self, epoch):
            super().train_one_epoch(epoch)
            super().train_one_epoch(epoch)

    net, sgd = parts()
    arguments = (net, nn.CrossEntropyLoss(), accuracy, sgd, 2, data(), None)
    with pytest.raises(ConfigError, match="checkpoint_by='epoch'"):
        Twice(*arguments, **options(tmp_path, checkpoint_by='step'), mutator=(mutator := RandomMutator(net))).train()
    search = Twice(*arguments, **options(tmp_path / 'b'), mutator=mutator)
    search.train()
    assert load_checkpoint_file(tmp_path / 'b' / 'epoch_2.pth')['meta']['epoch'] == 2


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(model='net'), ComponentTypeError, '`model` must be an nn.Module'),
        (dict(mutator=nn.Linear(1, 1)), ComponentTypeError, '`mutator` must be a mutator'),
        (dict(loss='mse'), ComponentTypeError, '`loss` must be a function'),
        (dict(metrics=3), ComponentTypeError, '`metrics` must be a function'),
        (dict(optimizer='SGD'), ComponentTypeError, '`optimizer` must be an optimizer'),
        (dict(num_epochs=0), ConfigError, '`num_epochs` must be a positive'),
        (dict(precision='bfloat'), ConfigError, "Did you mean 'bfloat16'"),
        (dict(launcher='slurm'), ConfigError, '`launcher` must be one of'),
        (dict(checkpoint_by='iter'), ConfigError, '`checkpoint_by` must be one of'),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, change, error, words):
    net, sgd = parts()

    class Nothing(Trainer):
        def train_one_epoch(self, epoch):
            """Do nothing."""

        def validate_one_epoch(self, epoch):
            """Do nothing."""

    arguments = dict(model=net, mutator=RandomMutator(net), loss=nn.MSELoss(), metrics=None, optimizer=sgd, num_epochs=1)
    with pytest.raises(error, match=words):
        Nothing(**{**arguments, 'dataset_train': data(), 'dataset_valid': None, **change})


def test_a_trainer_without_a_loader_is_told(tmp_path):
    class Loaderless(SinglePathTrainer):
        def loader(self, *args, **kwargs):
            """Make none."""

    net, sgd = parts()
    search = Loaderless(net, nn.CrossEntropyLoss(), None, sgd, 1, data(), None, **options(tmp_path))
    with pytest.raises(ConfigError, match='no `train_loader`'):
        search.train()


@pytest.mark.parametrize('empty', [TensorDataset(torch.zeros(0, 4)), DataLoader(TensorDataset(torch.zeros(0, 4)))])
def test_empty_data_are_refused(tmp_path, empty):
    net, sgd = parts()
    with pytest.raises(DataError, match='at least one sample'):
        SinglePathTrainer(net, nn.CrossEntropyLoss(), None, sgd, 1, empty, None, **options(tmp_path))


@pytest.mark.parametrize('trainer', [SinglePathTrainer, DartsTrainer])
@pytest.mark.parametrize('nothing', [None, iter([])])
def test_data_without_a_length_are_refused(tmp_path, trainer, nothing):
    net, sgd = parts()
    with pytest.raises(ComponentTypeError, match='a data set with a length, or a DataLoader'):
        trainer(net, nn.CrossEntropyLoss(), None, sgd, 1, nothing, None, **options(tmp_path))


@pytest.mark.parametrize('options_of', [{}, {'unrolled': True}])
@pytest.mark.parametrize(
    ('loss', 'given'), [(nn.CrossEntropyLoss(reduction='none'), r'a tensor of shape \(4,\)'), (lambda *_: 1.0, 'a float')]
)
def test_a_loss_that_is_no_single_number_is_refused(tmp_path, options_of, loss, given):
    net, sgd = parts()
    search = DartsTrainer(net, loss, None, sgd, 1, data(), None, **options(tmp_path), **options_of)
    with pytest.raises(ComponentTypeError, match=f'`loss` must return a tensor of one number, but it returned {given}'):
        search.train()


def test_a_loss_of_one_step_is_checked_too(tmp_path):
    net, sgd = parts()
    search = SinglePathTrainer(net, nn.CrossEntropyLoss(reduction='none'), None, sgd, 1, data(), None, **options(tmp_path))
    with pytest.raises(ComponentTypeError, match="reduction='mean'"):
        search.train()


def test_metrics_without_names_are_refused(tmp_path):
    net, sgd = parts()
    search = SinglePathTrainer(net, nn.CrossEntropyLoss(), lambda *_: 0.5, sgd, 1, data(), None, **options(tmp_path))
    with pytest.raises(ComponentTypeError, match=r'`metrics` must return a mapping of names to numbers.* returned 0\.5'):
        search.train()


@pytest.mark.parametrize(('given', 'text'), [([3], 'but has 3'), (Callback(), 'must be a list, but got')])
def test_what_is_no_callback_is_refused(tmp_path, given, text):
    with pytest.raises(ComponentTypeError, match=text):
        single(tmp_path, callbacks=given)


def test_a_batch_has_a_sample():
    net, sgd = parts()
    with pytest.raises(ConfigError, match='`batch_size` must be a positive integer, but got 0'):
        SinglePathTrainer(net, nn.CrossEntropyLoss(), None, sgd, 1, data(), None, batch_size=0)


def test_a_loss_of_nan_is_told_with_step_and_architecture(tmp_path):
    net, sgd = parts()
    steps = iter(range(100))

    def loss(outputs, labels):
        return nn.functional.cross_entropy(outputs, labels) * (float('nan') if next(steps) == 8 else 1.0)

    search = SinglePathTrainer(net, loss, None, sgd, 3, data(), None, **options(tmp_path))
    with pytest.raises(TrainingError, match=r'not finite \(nan\) in epoch 1, step 8.*second\.op'):
        search.train()
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


def test_batches_that_are_no_pairs_are_told(tmp_path):
    net, sgd = parts()
    rows = [{'inputs': x, 'data_samples': y} for x, y in data(8)]
    search = SinglePathTrainer(net, nn.CrossEntropyLoss(), None, sgd, 1, rows, rows, **options(tmp_path))
    for action in (search.train, search.validate):
        with pytest.raises(ConfigError, match=r"mapping with 'inputs', 'data_samples'.*give pairs"):
            action()


def test_a_base_trainer_has_four_verbs_to_write():
    class Own(BaseTrainer):
        def train(self):
            return 'trained'

        validate = export = checkpoint = train

    assert Own().train() == 'trained'
    with pytest.raises(TypeError, match='abstract'):
        BaseTrainer()


def test_a_data_loader_cannot_be_split(tmp_path):
    net, sgd = parts()
    with pytest.raises(ComponentTypeError, match='give the data set'):
        DartsTrainer(net, nn.CrossEntropyLoss(), None, sgd, 1, DataLoader(data()), None, **options(tmp_path))


# -- two processes ------------------------------------------------------------------------------------------------


class Smooth(nn.Module):
    """Without batch norm and dropout, so that two halves of a batch have the gradient of the whole."""

    def __init__(self):
        super().__init__()
        self.first = LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Identity()], key='first')
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.first(x))


class Ordered(DartsTrainer):
    """`DartsTrainer` on batches that are the same however many processes share them."""

    def __init__(self, *args, rank=0, world=1, **kwargs):
        super().__init__(*args, **kwargs)
        parts = [data(16, seed) for seed in (1, 2)]
        loaders = [[tuple(t[i : i + 8][rank::world] for t in part.tensors) for i in (0, 8)] for part in parts]
        self.train_batches, self.valid_batches = loaders
        self.train_loader = DataLoader(data(8), batch_size=4)

    def steps(self, *loaders):
        for step, _ in super().steps(self.train_loader):
            yield step, (self.train_batches[step], self.valid_batches[step])


def smooth(work_dir, unrolled, rank=0, world=1, **changes):
    torch.manual_seed(0)
    net = Smooth()
    sgd = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    mutator = DartsMutator(net)
    made = dict(mutator=mutator, arc_learning_rate=0.1, unrolled=unrolled, rank=rank, world=world, **changes)
    return Ordered(net, nn.CrossEntropyLoss(), accuracy, sgd, 3, data(), data(10, 1), **options(work_dir, **made))


def algorithm():
    """A Darts algorithm of the same model, and its two optimizers."""
    torch.manual_seed(0)
    made = Darts(Smooth(), unroll=True)
    optimizers = OptimWrapperDict(
        architecture=OptimWrapper(torch.optim.SGD(made.architecture.parameters(), lr=0.3, momentum=0.9)),
        mutator=OptimWrapper(torch.optim.SGD(made.mutator.parameters(), lr=2.0)),
    )
    return made, optimizers


def algorithm_steps(train_step, optimizers, rank=0, world=1):
    for seed in range(4):
        batches = [tuple(t[rank::world] for t in data(8, 10 * seed + part).tensors) for part in (1, 2)]
        train_step(SearchBatches(*batches), optimizers)


def on_one_of_two(rank, out):
    """Do everything, since starting two processes and their group is what takes the time."""
    for unrolled in (False, True):
        search = smooth(f'{out}/smooth{unrolled}', unrolled, rank, 2, launcher='pytorch')
        search.train()
        torch.save(search.network.module.state_dict(), f'{out}/smooth{unrolled}_{rank}.pt')
    for name, make in (('single', single), ('darts', darts)):
        search = make(f'{out}/{name}', launcher='pytorch')
        search.train()
        torch.save(search.network.module.state_dict(), f'{out}/{name}_{rank}.pt')
        torch.save(search.validate(), f'{out}/{name}_{rank}_metrics.pt')
    made, optimizers = algorithm()
    algorithm_steps(MODEL_WRAPPERS.build(dict(type='DartsDDP', module=made)).train_step, optimizers, rank, 2)
    torch.save(made.state_dict(), f'{out}/algorithm_{rank}.pt')
    search = plain(f'{out}/plain', launcher='pytorch')
    search.train_loader = DataLoader(torch.utils.data.Subset(search.dataset_train, range(rank, 24, 2)), 4)
    try:
        search.train()
    except TrainingError as error:
        (out / f'plain_{rank}.txt').write_text(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    out = tmp_path_factory.mktemp('distributed')
    in_group(on_one_of_two, out, folder=out)
    return out


@pytest.mark.parametrize('unrolled', [False, True])
def test_two_processes_make_the_steps_of_one_on_the_whole_batch(two_processes, tmp_path, unrolled):
    states = [torch.load(two_processes / f'smooth{unrolled}_{rank}.pt') for rank in (0, 1)]
    search = smooth(tmp_path, unrolled)
    search.train()
    expected = search.network.state_dict()
    assert 'mutator.arch_params.first' in expected
    for name, value in expected.items():
        assert torch.equal(states[0][name], states[1][name])
        assert torch.allclose(states[0][name], value, atol=2e-5), name


def test_two_processes_make_the_steps_of_the_algorithm_on_the_whole_batch(two_processes):
    states = [torch.load(two_processes / f'algorithm_{rank}.pt') for rank in (0, 1)]
    made, optimizers = algorithm()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    algorithm_steps(made.train_step, optimizers)
    for name, value in made.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        assert torch.allclose(states[0][name], value, atol=2e-5), name
    assert (made.state_dict()['mutator.arch_params.first'] - before['mutator.arch_params.first']).abs().max() > 1e-2


@pytest.mark.parametrize('name', ['single', 'darts'])
def test_processes_agree_on_weights_architecture_and_metrics(two_processes, name):
    first, second = (torch.load(two_processes / f'{name}_{rank}.pt') for rank in (0, 1))
    learned = [key for key in first if 'running' not in key and 'num_batches' not in key]
    assert all(torch.equal(first[key], second[key]) for key in learned)
    metrics = [torch.load(two_processes / f'{name}_{rank}_metrics.pt') for rank in (0, 1)]
    assert metrics[0] == metrics[1]


def test_a_loop_whose_gradients_are_not_reduced_is_noticed(two_processes):
    for rank in (0, 1):
        assert 'Call self.network(x), not self.model(x)' in (two_processes / f'plain_{rank}.txt').read_text()
