import json

import pytest
import torch
from torch import nn

from strop.engine import ArchitectureCheckpoint, Callback, LRSchedulerCallback, ModelCheckpoint
from strop.errors import ComponentTypeError, ConfigError
from strop.mutables import apply_subnet, load_subnet
from strop.mutators import RandomMutator

from .test_trainer import Net, single


def scheduler(lr=1.0):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    made = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    return made, optimizer


@pytest.mark.parametrize(('mode', 'rate'), [('epoch', 0.03 * 0.5**2), ('batch', 0.03 * 0.5**12)])
def test_the_learning_rate_steps_by_epoch_or_by_batch(tmp_path, mode, rate):
    search = single(tmp_path, epochs=2)
    search.callbacks.append(LRSchedulerCallback(torch.optim.lr_scheduler.ExponentialLR(search.optimizer, 0.5), mode))
    search.train()
    assert search.optimizer.param_groups[0]['lr'] == pytest.approx(rate)


def test_a_scheduler_resumes():
    made, optimizer = scheduler()
    callback = LRSchedulerCallback(made)
    callback.on_epoch_end(0)
    other = LRSchedulerCallback(scheduler()[0])
    other.load_state_dict(callback.state_dict())
    assert other.scheduler.last_epoch == 1
    assert optimizer.param_groups[0]['lr'] == 0.5


def test_a_scheduler_of_another_kind_or_mode_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'epoch'"):
        LRSchedulerCallback(scheduler()[0], mode='epochs')
    with pytest.raises(ComponentTypeError, match='scheduler'):
        LRSchedulerCallback(0.1)


def test_architectures_are_written_after_every_epoch(tmp_path):
    search = single(tmp_path / 'work', epochs=2, callbacks=[ArchitectureCheckpoint(tmp_path / 'deep' / 'folder')])
    search.train()
    files = sorted((tmp_path / 'deep' / 'folder').iterdir())
    assert [path.name for path in files] == ['epoch_0.json', 'epoch_1.json']
    assert set(json.loads(files[0].read_text())) == {'first', 'second.op'}
    net = Net()
    apply_subnet(net, load_subnet(files[1], RandomMutator(net).space))
    assert net(torch.zeros(3, 4)).shape == (3, 2)


def test_weights_are_written_after_every_epoch(tmp_path):
    search = single(tmp_path / 'work', epochs=2, callbacks=[ModelCheckpoint(str(tmp_path / 'weights'))])
    search.train()
    assert sorted(path.name for path in (tmp_path / 'weights').iterdir()) == ['epoch_0.pth.tar', 'epoch_1.pth.tar']
    net = Net()
    net.load_state_dict(torch.load(tmp_path / 'weights' / 'epoch_1.pth.tar', weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), search.model.parameters()))


def test_the_events_of_a_plain_callback_do_nothing():
    callback = Callback()
    for event in ('on_epoch_begin', 'on_epoch_end', 'on_batch_begin', 'on_batch_end'):
        assert getattr(callback, event)(0) is None
