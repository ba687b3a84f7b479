"""Whole configs in the structure of MMRazor's, run as they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strop.cli.configs import load_config
from strop.compat.migration import examine
from strop.engine import build_runner
from strop.errors import UnknownTypeError
from strop.mutables import load_subnet
from strop.registry import MODELS

from .old_configs import FILES

DISTILLED = ['kd.py', 'cwd.py', 'dkd.py', 'rkd.py']
TRAINED = [name for name in FILES if name not in ('settings.py', 'shufflenet.py', 'ptq.py') and 'search' not in name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with the configs, images and a float checkpoint; it is the current one."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 10
    images = (rng.integers(0, 156, (24, 32, 32, 3)) + 10 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / 'images.npz', x_train=images, y_train=labels, x_test=images[:12], y_test=labels[:12])
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runner_of(name: str, task: str = 'train', **changes: Any) -> Any:
    config = load_config(name, changes)
    return build_runner(config, task=task, work_dir=f'work/{Path(name).stem}')


def prepared(name: str, folder: Path) -> None:
    """Make the files that a config names."""
    if name == 'spos_subnet.py':
        runner = runner_of('spos_supernet.py')
        choices = {key: domain.labels[1] for key, domain in runner.model.mutator.space.items()}
        lines = [f'{key}:\n  chosen: {choice}\n' for key, choice in choices.items()]
        (folder / 'best_fix_subnet.yaml').write_text(''.join(lines))
    if name in ('qat.py', 'lsq.py', 'ptq.py'):
        model = MODELS.build(load_config('wide_resnet.py').model)
        torch.save(dict(state_dict=model.state_dict()), folder / 'float.pth')


@pytest.mark.parametrize('name', TRAINED)
def test_a_config_is_trained_as_it_stands(name: str, folder: Path) -> None:
    prepared(name, folder)
    runner = runner_of(name)
    runner.train()
    assert runner.iter == (4 if runner.train_loop.__class__.__name__.endswith(('EpochBasedLoop', 'EpochBasedTrainLoop')) else 3)
    wrapper = runner.optim_wrapper
    moved = [part.optimizer.state for part in (wrapper.values() if hasattr(wrapper, 'values') else [wrapper])]
    assert all(moved)
    assert all(torch.isfinite(value).all() for value in runner.model.parameters())
    teachers = [value for key, value in runner.model.named_parameters() if key.startswith('teacher.')]
    assert len(teachers) > 0 if name in DISTILLED else not teachers
    assert not any(id(value) in {id(key) for state in moved for key in state} for value in teachers)
    scores = runner.val()
    assert any(key.endswith('accuracy/top1') for key in scores), scores


def test_a_subnet_is_searched_and_trained(folder: Path) -> None:
    runner_of('spos_supernet.py').train()
    runner = runner_of('spos_search.py', 'search', load_from='work/spos_supernet/iter_3.pth')
    runner.train()
    assert len(runner.train_loop.result.complete) == 8
    found = next((folder / 'work' / 'spos_search').glob('best_fix_subnet.yaml'))
    assert load_subnet(found, runner.model.mutator.space)
    subnet = runner_of('spos_subnet.py', **{'model.fix_subnet': str(found)})
    assert not [name for name, module in subnet.model.named_modules() if 'Mutable' in type(module).__name__]


def test_widths_are_searched_by_the_test_loop(folder: Path) -> None:
    runner_of('autoslim_supernet.py').train()
    runner = runner_of('autoslim_search.py', 'test', load_from='work/autoslim_supernet/iter_3.pth')
    runner.test()
    assert list((folder / 'work' / 'autoslim_search').glob('*subnet*'))


def test_steps_are_found_from_batches(folder: Path) -> None:
    prepared('ptq.py', folder)
    runner = runner_of('ptq.py', 'test')
    metrics = runner.test()
    assert any(key.endswith('accuracy/top1') for key in metrics)
    assert list((folder / 'work' / 'ptq').rglob('model_ptq.pth'))


@pytest.mark.parametrize('name', list(FILES))
def test_migrate_finds_nothing_that_must_be_changed(name: str, folder: Path) -> None:
    migration = examine(folder / name)
    assert migration.runs, [change for change in migration.changes if change.kind != 'note']


UNBUILT = {
    'DMCP': dict(distiller=dict(), architecture=dict(), mutator_cfg=dict(type='DMCPChannelMutator')),
    'DCFF': dict(architecture=dict(), mutator_cfg=dict(type='DCFFChannelMutator'), target_pruning_ratio={}),
    'GroupFisherAlgorithm': dict(architecture=dict(), interval=10, mutator=dict(type='GroupFisherChannelMutator')),
    'BigNAS': dict(architecture=dict(), mutator=dict(type='NasMutator')),
    'Autoformer': dict(architecture=dict(), mutator=dict(type='NasMutator')),
    'DSNAS': dict(architecture=dict(), mutator=dict(type='NasMutator')),
}


@pytest.mark.parametrize('name', UNBUILT)
def test_a_config_of_an_algorithm_that_is_missing_says_so_before_anything_is_built(name: str, folder: Path) -> None:
    text = f"_base_ = ['./settings.py']\nmodel = dict(_scope_='mmrazor', type={name!r}, **{UNBUILT[name]!r})\n"
    (folder / 'missing.py').write_text(text)
    with pytest.raises(UnknownTypeError, match=f'{name!r} of MMRazor is not supported yet by Strop. Nearest: '):
        runner_of('missing.py')
