import http.server
import pickle
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import load_checkpoint
from safetensors.torch import save_file
from torch import nn

from strop.algorithms import BaseAlgorithm
from strop.engine import build_runner, find_checkpoint, load_checkpoint_file
from strop.engine.checkpoint import AtomicLocalBackend
from strop.errors import ConfigError, UnsafeFileError
from tests.scripts import run_script

from .tiny import train_config

ROOT = Path(__file__).resolve().parents[2]


# A bare pickle is not even in the form of a checkpoint.
REFUSED = 'reading it could execute code|is not a readable checkpoint'


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, 'w')


@pytest.fixture(params=['torch', 'legacy', 'pickle', 'nested'])
def malicious(tmp_path, request):
    mark, path = tmp_path / 'executed', tmp_path / 'evil.pth'
    content = {'state_dict': {'weight': torch.zeros(1)}, 'meta': Evil(mark)}
    if request.param == 'pickle':
        path.write_bytes(pickle.dumps(Evil(mark)))
    elif request.param == 'nested':
        torch.save({'state_dict': {'weight': [Evil(mark)]}}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=request.param == 'torch')
    yield path
    assert not mark.exists(), 'the pickle was executed'


def test_malicious_pickle_is_not_executed(malicious):
    with pytest.raises(UnsafeFileError, match=REFUSED) as caught:
        load_checkpoint_file(malicious)
    assert len(str(caught.value).splitlines()) == 1
    assert 'evil.pth' in str(caught.value)


def test_malicious_pickle_as_load_from(malicious, tmp_path):
    runner = build_runner(train_config(load_from=str(malicious)), work_dir=tmp_path / 'work')
    with pytest.raises(UnsafeFileError, match=REFUSED):
        runner.train()


def test_malicious_pickle_as_pretrained(malicious):
    algorithm = BaseAlgorithm(nn.Linear(1, 1), init_cfg=dict(type='Pretrained', checkpoint=str(malicious)))
    with pytest.raises(UnsafeFileError, match=REFUSED):
        algorithm.init_weights()


def test_malicious_pickle_to_resume_from(malicious, tmp_path):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    malicious.rename(work_dir / 'epoch_9.pth')
    assert find_checkpoint(work_dir) is None
    config = train_config(resume=True, load_from=str(work_dir / 'epoch_9.pth'))
    with pytest.raises(UnsafeFileError, match=REFUSED):
        build_runner(config, work_dir=work_dir).train()


def test_malicious_pickle_of_a_url(malicious, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/'
        with pytest.raises(UnsafeFileError, match=REFUSED):
            load_checkpoint(nn.Linear(1, 1), url + 'evil.pth')
        assert not list((tmp_path / 'home').rglob('evil.pth'))
        torch.save(nn.Linear(1, 1).state_dict(), tmp_path / 'good.pth')
        assert set(load_checkpoint(nn.Linear(1, 1), url + 'good.pth')) == {'weight', 'bias'}
        server.shutdown()


def test_algorithms_alone_are_safe_too(tmp_path):
    torch.save({'state_dict': Evil(tmp_path / 'executed')}, tmp_path / 'evil.pth')
    code = (
        'from torch import nn\n'
        'from strop.algorithms import BaseAlgorithm\n'
        f'cfg = dict(type="Pretrained", checkpoint={str(tmp_path / "evil.pth")!r})\n'
        'BaseAlgorithm(nn.Linear(1, 1), init_cfg=cfg).init_weights()\n'
    )
    done = run_script(code, cwd=tmp_path)
    assert 'UnsafeFileError' in done.stderr
    assert not (tmp_path / 'executed').exists()


class Odd:
    """A harmless object that a foreign checkpoint may hold."""


def test_foreign_checkpoint_with_objects_is_refused_with_a_hint(tmp_path):
    torch.save({'state_dict': {}, 'args': Odd()}, tmp_path / 'odd.pth')
    with pytest.raises(UnsafeFileError, match='save its state_dict alone') as caught:
        load_checkpoint_file(tmp_path / 'odd.pth')
    assert 'Odd' in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'not a checkpoint at all', b'PK\x03\x04 torn'])
def test_broken_files(tmp_path, content):
    path = tmp_path / 'broken.pth'
    path.write_bytes(content)
    with pytest.raises(UnsafeFileError, match=r'broken\.pth is not a readable checkpoint'):
        load_checkpoint_file(path)


def test_torn_checkpoint(tmp_path):
    torch.save({'weight': torch.zeros(1000)}, tmp_path / 'whole.pth')
    (tmp_path / 'torn.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:2000])
    with pytest.raises(UnsafeFileError, match='not a readable checkpoint'):
        load_checkpoint_file(tmp_path / 'torn.pth')
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        load_checkpoint_file(tmp_path / 'absent.pth')


def test_safetensors(tmp_path):
    save_file({'weight': torch.arange(3.0)}, tmp_path / 'a.safetensors')
    assert load_checkpoint_file(tmp_path / 'a.safetensors')['weight'].tolist() == [0.0, 1.0, 2.0]
    (tmp_path / 'b.safetensors').write_bytes(b'nothing')
    with pytest.raises(UnsafeFileError, match='not a readable checkpoint'):
        load_checkpoint_file(tmp_path / 'b.safetensors')


def test_checkpoints_of_mmengine_are_read(tmp_path):
    import numpy as np

    config = train_config(
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        param_scheduler=[dict(type='LinearLR', end=2), dict(type='OneCycleLR', eta_max=0.1, total_steps=6, by_epoch=False)],
    )
    runner = build_runner(config, work_dir=tmp_path)
    runner.message_hub.update_scalar('train/of_numpy', np.float64(1.5))
    runner.message_hub.update_info('array', np.arange(3))
    runner.train()
    kept = load_checkpoint_file(tmp_path / 'epoch_2.pth')
    assert kept['meta']['epoch'] == 2
    assert kept['message_hub']['log_scalars']['train/of_numpy'].current() == 1.5
    assert kept['message_hub']['runtime_info']['array'].tolist() == [0, 1, 2]
    config.train_cfg.max_epochs = 3
    again = build_runner(config, work_dir=tmp_path, resume=True)
    assert again._load_from == str(tmp_path / 'epoch_2.pth')
    again.train()
    assert again.epoch == 3
    assert again.iter == 9


def test_plain_runner_of_mmengine_reads_and_writes_by_this_module(tmp_path):
    assert CheckpointLoader._get_checkpoint_loader('some/file.pth') is load_checkpoint_file
    assert type(get_file_backend(str(tmp_path / 'x.pth'))) is AtomicLocalBackend
    assert issubclass(Runner, object)


# -- written whole or not at all -----------------------------------------------------------------------------


def test_checkpoint_hook_writes_through_the_atomic_backend(tmp_path, monkeypatch):
    written = []
    put = AtomicLocalBackend.put

    def spy(self, obj, filepath):
        written.append(Path(filepath).name)
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', spy)
    build_runner(train_config(), work_dir=tmp_path).train()
    assert written == ['epoch_1.pth', 'epoch_2.pth']


def test_failing_write_leaves_what_was_there(tmp_path, monkeypatch):
    backend = AtomicLocalBackend()
    target = tmp_path / 'file'
    backend.put(b'first', str(target))

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr('os.fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        backend.put(b'second', str(target))
    with pytest.raises(OSError, match='disk full'):
        backend.put_text('third', str(target))
    assert target.read_bytes() == b'first'
    assert list(tmp_path.iterdir()) == [target]


# -- which one to resume from ----------------------------------------------------------------------------------


def fake(path, iteration):
    torch.save({'meta': {'iter': iteration}, 'state_dict': {}}, path)


def test_furthest_checkpoint_is_found(tmp_path):
    assert find_checkpoint(tmp_path) is None
    fake(tmp_path / 'epoch_1.pth', 100)
    fake(tmp_path / 'iter_150.pth', 150)
    fake(tmp_path / 'best_accuracy_top1_epoch_9.pth', 900)
    assert find_checkpoint(tmp_path).name == 'iter_150.pth'
    fake(tmp_path / 'epoch_2.pth', 200)
    assert find_checkpoint(tmp_path).name == 'epoch_2.pth'
    (tmp_path / 'epoch_3.pth').write_bytes(b'torn')
    assert find_checkpoint(tmp_path).name == 'epoch_2.pth'


def test_many_torn_checkpoints_do_not_hide_a_whole_one(tmp_path):
    fake(tmp_path / 'epoch_1.pth', 100)
    for number in range(2, 8):
        (tmp_path / f'epoch_{number}.pth').write_bytes(b'torn')
    assert find_checkpoint(tmp_path).name == 'epoch_1.pth'


def test_checkpoints_none_of_which_can_be_read_are_no_reason_to_start_anew(tmp_path):
    (tmp_path / 'epoch_1.pth').write_bytes(b'torn')
    (tmp_path / 'epoch_2.pth').write_bytes(b'torn as well')
    assert find_checkpoint(tmp_path) is None
    with pytest.raises(ConfigError, match=r'none can be resumed from. Of epoch_2\.pth: .*Move them away'):
        build_runner(train_config(), work_dir=tmp_path, resume=True)
    fake(tmp_path / 'epoch_1.pth', 100)
    assert find_checkpoint(tmp_path, strict=True).name == 'epoch_1.pth'


def test_copied_checkpoints_are_found_by_what_they_hold(tmp_path):
    import os

    for number in range(1, 7):
        fake(tmp_path / f'epoch_{number}.pth', number * 10)
        os.utime(tmp_path / f'epoch_{number}.pth', (1e9 - number, 1e9 - number))
    assert find_checkpoint(tmp_path).name == 'epoch_6.pth'


def test_a_text_file_is_refused_without_advice_to_unpickle_it(tmp_path):
    path = tmp_path / 'README.pth'
    path.write_text('# Not a checkpoint\n' * 20)
    with pytest.raises(UnsafeFileError, match='is not a readable checkpoint') as caught:
        load_checkpoint_file(path)
    assert 'weights_only' not in str(caught.value)
    assert 'torch.load' not in str(caught.value)
