from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from .running import Command, environment, fresh, one_error, run, start, strop


def _weights(path: Path) -> dict[str, torch.Tensor]:
    from strop.engine import load_checkpoint_file

    return load_checkpoint_file(path)['state_dict']


def _trials(path: Path) -> list[tuple[dict[str, str], dict[str, float]]]:
    return [(trial['choices'], trial['values']) for trial in json.loads((path / 'search.json').read_text())['trials']]


def _kill_when(command: Command, condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert command.poll() is None, command.wait()
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait().returncode == -signal.SIGKILL


def test_training_writes_checkpoints_and_says_where(trained: Path) -> None:
    assert (trained / 'iter_20.pth').is_file()
    assert (trained / 'supernet.py').is_file()
    weights = _weights(trained / 'iter_20.pth')
    assert any(name.startswith('architecture.') for name in weights)


def test_killed_training_resumes_to_the_same_weights(project: Path, trained: Path) -> None:
    folder = project / 'runs' / 'killed'
    rng = random.Random(os.urandom(4))
    # Kill at random places: some time after one more checkpoint than the last time was written.
    for at_least in (3, 9, 15):
        process = start('train', 'supernet.py', '--resume', '--work-dir', folder, cwd=project, PATCH_SECONDS='0.03')
        _kill_when(process, (folder / f'iter_{at_least}.pth').exists)
        assert not (folder / 'iter_20.pth').exists()
        time.sleep(rng.random() * 0.1)
    done = strop('train', 'supernet.py', '--resume', '--work-dir', folder, cwd=project)
    assert done.returncode == 0, done.stderr
    assert 'resumed epoch' in done.stdout
    whole, broken = _weights(trained / 'iter_20.pth'), _weights(folder / 'iter_20.pth')
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_resume_without_a_checkpoint_starts_anew_and_says_so(project: Path, trained: Path) -> None:
    done = strop(
        'train', 'supernet.py', '--resume', '--seed', 5, '--amp', '--work-dir', 'runs/seed5',
        '--cfg-options', 'train_cfg.max_epochs=1', 'optim_wrapper.optimizer.lr=0.05', 'val_cfg.calibrate_sample_num=0',
        cwd=project,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'no checkpoint in runs/seed5 to resume from' in done.stderr
    config = Config.fromfile(project / 'runs' / 'seed5' / 'supernet.py', import_custom_modules=False)
    assert config.randomness.seed == 5
    assert config.optim_wrapper.optimizer.lr == 0.05
    assert config.optim_wrapper.type == 'strop.AmpOptimWrapper'
    assert (project / 'runs' / 'seed5' / 'iter_5.pth').is_file()


def test_search_prints_and_writes_the_best(searched: Path) -> None:
    trials = _trials(searched)
    assert len(trials) == 12
    best = max(trials, key=lambda trial: trial[1]['accuracy/top1'])
    content = yaml.safe_load((searched / 'best_fix_subnet.yaml').read_text())
    assert content['strop'] == 'subnet'
    written = next(values for choices, values in trials if choices == content['choices'])
    assert written == best[1]


def test_killed_search_resumes_to_the_same_trials(project: Path, checkpoint: Path, searched: Path) -> None:
    folder = project / 'runs' / 'killed_search'
    arguments = ('search', 'search.py', '--checkpoint', checkpoint, '--resume', '--work-dir', folder)
    journal = folder / 'search.journal'

    def finished() -> int:
        return journal.read_text().count('"state": 1') + journal.read_text().count('"state":1') if journal.exists() else 0

    for at_least in (2, 5, 8):
        process = start(*arguments, cwd=project, PATCH_SECONDS='0.01')
        _kill_when(process, lambda at_least=at_least: finished() >= at_least)
        assert not (folder / 'search.json').exists()
    done = strop(*arguments, cwd=project)
    assert done.returncode == 0, done.stderr
    assert _trials(folder) == _trials(searched)
    assert (folder / 'best_fix_subnet.yaml').read_text() == (searched / 'best_fix_subnet.yaml').read_text()


def test_a_search_is_not_mixed_with_an_older_one(project: Path, checkpoint: Path, searched: Path) -> None:
    done = strop('search', 'search.py', '--checkpoint', checkpoint, '--work-dir', searched, cwd=project)
    assert done.returncode == 1
    assert 'holds a search already' in one_error(done)


def test_impossible_budget_names_the_smallest_reachable(project: Path, checkpoint: Path) -> None:
    arguments = ('search', 'search.py', '--checkpoint', checkpoint, '--work-dir', 'runs/poor')
    done = strop(*arguments, '--cfg-options', 'train_cfg.constraints_range.flops=(0,0.001)', cwd=project)
    assert done.returncode == 3
    # 8 x 8 places: a stem of 9 * 4, three 1 x 1 convolutions of 16, and the head of 8.
    assert str((64 * (36 + 3 * 16) + 8) / 1e6) in one_error(done)
    # The same folder can be used again with a budget that can be met.
    done = strop(*arguments, '--cfg-options', 'train_cfg.max_epochs=1', cwd=project)
    assert done.returncode == 0, done.stderr


def test_a_greedy_search_of_widths_is_killed_and_resumed(tmp_path: Path) -> None:
    config = 'strop::autoslim/autoslim_mobilenet_search_mnist.py'
    options = ['test_cfg.target_flops=[0.85]', 'test_cfg.calibrate_sample_num=6', 'test_dataloader.dataset.limit=60']
    arguments = ['search', config, '--cfg-options', *options, '--work-dir']
    whole = strop(*arguments, 'whole', cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert 'subnet_0.85.yaml' in {path.name for path in (tmp_path / 'whole').iterdir()}
    command = start(*arguments, 'killed', cwd=tmp_path)
    journal = tmp_path / 'killed' / 'search.journal'
    _kill_when(command, lambda: journal.exists() and len(journal.read_text().splitlines()) >= 12)
    resumed = strop(*arguments, 'killed', '--resume', cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert _trials(tmp_path / 'killed') == _trials(tmp_path / 'whole')
    refused = strop(*arguments[:3], 'test_cfg.target_flops=[0.0001]', '--work-dir', 'low', cwd=tmp_path)
    assert refused.returncode == 3
    assert 'cannot be reached' in refused.stderr.splitlines()[-1]


def test_search_needs_a_search_loop(project: Path, checkpoint: Path) -> None:
    done = run('search', project / 'supernet.py', '--checkpoint', checkpoint)
    assert done.exit_code == 1
    assert 'EvolutionSearchLoop' in one_error(done)


def test_test_of_a_supernet_shows_its_range(project: Path, checkpoint: Path) -> None:
    done = strop('test', 'supernet.py', '--checkpoint', checkpoint, '--out', 'metrics.json', cwd=project)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((project / 'metrics.json').read_text())
    assert {'max_subnet.accuracy/top1', 'min_subnet.accuracy/top1', 'random_subnet.flops'} <= metrics.keys()
    assert metrics['max_subnet.flops'] > metrics['min_subnet.flops']
    assert 'max_subnet.accuracy/top1' in done.stdout


def test_a_loop_of_the_config_calibrates_as_asked(project: Path, checkpoint: Path) -> None:
    (project / 'bare.py').write_text(
        "_base_ = './supernet.py'\n"
        'train_dataloader = train_cfg = optim_wrapper = param_scheduler = None\n'
        "test_cfg = dict(type='SubnetValLoop')\n"
    )
    # There is nothing to recalibrate on, so that nothing is by default.
    done = strop('test', 'bare.py', '--checkpoint', checkpoint, cwd=project)
    assert done.returncode == 0, done.stderr
    done = strop('test', 'bare.py', '--checkpoint', checkpoint, '--calibrate', 8, cwd=project)
    assert done.returncode == 1
    assert 'has no `train_dataloader`' in one_error(done)


def test_what_nothing_would_calibrate_is_refused(project: Path, tmp_path: Path) -> None:
    (project / 'plain.py').write_text(
        "_base_ = './supernet.py'\nmodel = dict(_delete_=True, type='PlainArchitecture', module=dict(type='PlainPatches'))\n"
    )
    torch.save({'state_dict': {'module.1.weight': torch.rand(2, 64), 'module.1.bias': torch.zeros(2)}}, tmp_path / 'plain.pth')
    done = strop('test', 'plain.py', '--checkpoint', tmp_path / 'plain.pth', cwd=project)
    assert done.returncode == 0, done.stderr
    done = strop('test', 'plain.py', '--checkpoint', tmp_path / 'plain.pth', '--calibrate', 8, cwd=project)
    assert done.returncode == 1
    assert '--calibrate is for a supernet' in one_error(done)


def test_test_of_a_subnet_takes_the_furthest_checkpoint(project: Path, trained: Path, searched: Path) -> None:
    subnet = searched / 'best_fix_subnet.yaml'
    done = strop('test', 'search.py', '--subnet', subnet, '--work-dir', trained, '--out', 'subnet.json', cwd=project)
    assert done.returncode == 0, done.stderr
    assert 'the weights are those of' in done.stderr
    assert 'iter_20.pth' in done.stderr
    assert 'recalibrated on 16 training images' in done.stderr
    metrics = json.loads((project / 'subnet.json').read_text())
    # On the data that it was searched on, it scores what the search wrote down.
    again = strop(
        'test', 'search.py', '--subnet', subnet, '--work-dir', trained, '--out', 'again.json',
        '--cfg-options', 'test_dataloader.dataset.size=24', 'test_dataloader.dataset.seed=1', cwd=project,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    score = json.loads((project / 'again.json').read_text())['accuracy/top1']
    choices = yaml.safe_load(subnet.read_text())['choices']
    assert score == next(values for found, values in _trials(searched) if found == choices)['accuracy/top1']
    assert set(metrics) == {'accuracy/top1', 'flops', 'params'}


class Boom:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, 'w')


@pytest.mark.parametrize('command', ['search', 'test'])
def test_a_malicious_checkpoint_is_not_executed(project: Path, tmp_path: Path, command: str) -> None:
    trap, sprung = tmp_path / 'trap.pth', tmp_path / 'sprung'
    torch.save({'state_dict': {}, 'boom': Boom(str(sprung))}, trap)
    done = strop(command, 'search.py', '--checkpoint', trap, '--work-dir', tmp_path / 'work', cwd=project)
    assert done.returncode == 1
    assert 'could execute code' in one_error(done)
    assert not sprung.exists()
    # The trap is one: unpickling it creates the file.
    torch.load(trap, weights_only=False)
    assert sprung.exists()


def test_weights_are_needed_to_test(project: Path, tmp_path: Path) -> None:
    done = run('test', project / 'supernet.py', '--work-dir', tmp_path / 'empty')
    assert done.exit_code == 1
    assert '--checkpoint' in one_error(done)
    done = run('test', project / 'supernet.py', '--checkpoint', tmp_path / 'missing.pth')
    assert done.exit_code == 2
    assert 'missing.pth' in one_error(done)


def test_bad_subnets_are_refused_before_anything_runs(project: Path, checkpoint: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / 'best.yaml'
    corrupt.write_text('strop: subnet\nversion: 1\nchoices: {module.first: k7}\n')
    done = strop('test', 'supernet.py', '--checkpoint', checkpoint, '--subnet', corrupt, '--work-dir', tmp_path, cwd=project)
    assert done.returncode == 1
    assert 'k7' in one_error(done)


def test_a_pickled_subnet_is_refused(project: Path, checkpoint: Path, tmp_path: Path) -> None:
    subnet, sprung = tmp_path / 'best.yaml', tmp_path / 'sprung'
    subnet.write_bytes(pickle.dumps(Boom(str(sprung))))
    done = strop('test', 'supernet.py', '--checkpoint', checkpoint, '--subnet', subnet, '--work-dir', tmp_path, cwd=project)
    assert done.returncode == 1
    assert 'never unpickled' in one_error(done)
    assert not sprung.exists()


def test_interrupt_gives_130(project: Path) -> None:
    folder = project / 'runs' / 'interrupted'
    process = fresh('train', 'supernet.py', '--work-dir', folder, cwd=project, PATCH_SECONDS='0.1')
    end = time.monotonic() + 120
    while not (folder / 'iter_3.pth').exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == 'strop: interrupted'
    assert 'Traceback' not in err


def test_two_processes_train(project: Path) -> None:
    arguments = [
        '-m',
        'torch.distributed.run',
        '--nproc-per-node',
        '2',
        '-m',
        'strop',
        'train',
        'supernet.py',
        '--launcher',
        'pytorch',
    ]
    arguments += ['--work-dir', 'runs/two', '--cfg-options', 'train_cfg.max_epochs=1', 'val_cfg.calibrate_sample_num=0']
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # Half as many steps of the same batch size, and one voice.
    assert (project / 'runs' / 'two' / 'iter_3.pth').is_file()
    assert done.stderr.count('done; the files are in runs/two') == 1


def test_the_launcher_needs_torchrun(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    done = run('train', project / 'supernet.py', '--launcher', 'pytorch', '--work-dir', tmp_path)
    assert done.exit_code == 1
    assert 'torchrun --nproc-per-node 2 -m strop train' in one_error(done)


@pytest.mark.skipif(not hasattr(os, 'openpty'), reason='needs a pseudo-terminal')
def test_a_bar_on_a_terminal(project: Path, checkpoint: Path) -> None:
    ours, theirs = os.openpty()
    arguments = ['search', 'search.py', '--checkpoint', str(checkpoint), '--work-dir', 'runs/bar']
    arguments += ['--cfg-options', 'train_cfg.max_epochs=1']
    process = subprocess.Popen(
        [sys.executable, '-m', 'strop', *arguments],
        cwd=project,
        env=environment(TERM='xterm'),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b''
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait(timeout=120) == 0, shown
    text = shown.decode(errors='replace')
    assert 'best accuracy/top1' in text
    assert '4/4' in text
    # Log lines go above the bar, to the same terminal.
    assert 'trial 4/4' in text
    assert process.stdout is not None
    assert 'The best of 4 subnets' in process.stdout.read()
