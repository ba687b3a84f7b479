"""A tiny project: a supernet of 27 subnets on dark and bright patches, and the commands run on it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from .running import fresh, strop

PARTS = """
import os
import time

import torch
from torch import nn

from strop.mutables import LayerChoice
from strop.registry import DATASETS, MODELS


def choice(width):
    return LayerChoice(
        {
            'k1': nn.Conv2d(width, width, 1),
            'k3': nn.Conv2d(width, width, 3, padding=1),
            'k5': nn.Conv2d(width, width, 5, padding=2),
        }
    )


@MODELS.register_module()
class TinySupernet(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.first = choice(width)
        self.norm = nn.BatchNorm2d(width)
        self.second = choice(width)
        self.third = choice(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.norm(self.first(self.stem(x))).relu()
        x = x + self.third(self.second(x).relu())
        return self.head(self.drop(x.mean((2, 3))))


@MODELS.register_module()
class PlainPatches(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 2))


@DATASETS.register_module()
class Patches(torch.utils.data.Dataset):
    metainfo = {'classes': ('dark', 'bright')}

    def __init__(self, size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(size) % 2
        noise = torch.randn(size, 1, 8, 8, generator=generator)
        self.images = noise + 0.5 * self.labels.view(-1, 1, 1, 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        # So that a test can kill a run before it is over.
        time.sleep(float(os.environ.get('PATCH_SECONDS', 0)))
        return self.images[index], int(self.labels[index])


def make_plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def make_nothing():
    return 'nothing'
"""

SUPERNET = """
custom_imports = dict(imports=['patches_parts'], allow_failed_imports=False)
model = dict(type='SPOS', architecture=dict(type='PlainArchitecture', module=dict(type='TinySupernet')))
_loader = dict(batch_size=8, num_workers=0, collate_fn=dict(type='default_collate'))
_in_order = dict(type='DefaultSampler', shuffle=False)
train_dataloader = dict(**_loader, dataset=dict(type='Patches', size=40), sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(**_loader, dataset=dict(type='Patches', size=24, seed=1), sampler=_in_order)
test_dataloader = dict(**_loader, dataset=dict(type='Patches', size=32, seed=2), sampler=_in_order)
val_evaluator = test_evaluator = dict(type='strop.Accuracy', topk=(1,))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
param_scheduler = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=20)
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
val_cfg = dict(type='mmrazor.SubnetValLoop', calibrate_sample_num=16)
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3, save_last=True),
    logger=dict(type='LoggerHook', interval=1),
)
randomness = dict(seed=3)
"""

SEARCH = """
_base_ = './supernet.py'
train_cfg = dict(
    _delete_=True,
    type='mmrazor.EvolutionSearchLoop',
    dataloader=_base_.val_dataloader,
    evaluator=_base_.val_evaluator,
    max_epochs=3,
    num_candidates=4,
    top_k=2,
    num_mutation=2,
    num_crossover=1,
    calibrate_sample_num=16,
    constraints_range=dict(flops=(0.0, 0.05)),
)
param_scheduler = None
"""


@pytest.fixture(scope='session')
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `supernet.py`, `search.py` and the module of their classes."""
    folder = tmp_path_factory.mktemp('project')
    for name, text in {'patches_parts.py': PARTS, 'supernet.py': SUPERNET, 'search.py': SEARCH}.items():
        (folder / name).write_text(textwrap.dedent(text).lstrip())
    return folder


@pytest.fixture(scope='session')
def trained(project: Path) -> Path:
    """The work directory of an unbroken training run."""
    process = fresh('train', 'supernet.py', '--work-dir', 'runs/whole', cwd=project)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return project / 'runs' / 'whole'


@pytest.fixture(scope='session')
def checkpoint(trained: Path) -> Path:
    """The last checkpoint of the supernet."""
    return trained / 'iter_20.pth'


@pytest.fixture(scope='session')
def searched(project: Path, checkpoint: Path) -> Path:
    """The work directory of an unbroken search."""
    done = strop('search', 'search.py', '--checkpoint', checkpoint, '--work-dir', 'runs/search', cwd=project)
    assert done.returncode == 0, done.stderr
    assert 'The best of 12 subnets' in done.stdout
    assert 'best_fix_subnet.yaml' in done.stdout
    return project / 'runs' / 'search'
