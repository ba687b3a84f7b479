"""Configs of MMRazor with its own bases and mmcls's, as they stand; only the data are small and of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmpretrain', reason='the codebases of OpenMMLab have an environment of their own: make test-openmmlab')

import numpy as np
from PIL import Image

from strop.cli.configs import load_config
from strop.compat.migration import examine
from strop.engine import build_runner

SPOS = """
_base_ = [
    'mmrazor::_base_/settings/imagenet_bs1024_spos.py',
    'mmrazor::_base_/nas_backbones/spos_shufflenet_supernet.py',
    'mmcls::_base_/default_runtime.py',
]

# model
supernet = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    data_preprocessor=_base_.preprocess_cfg,
    backbone=_base_.nas_backbone,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        loss=dict(
            type='LabelSmoothLoss',
            num_classes=1000,
            label_smooth_val=0.1,
            mode='original',
            loss_weight=1.0),
        topk=(1, 5)))

model = dict(
    type='mmrazor.SPOS',
    architecture=supernet,
    mutator=dict(type='mmrazor.NasMutator'))

find_unused_parameters = True
"""

AUTOSLIM = """
_base_ = [
    'mmrazor::_base_/settings/imagenet_bs2048_autoslim.py',
    'mmcls::_base_/models/mobilenet_v2_1x.py',
    'mmcls::_base_/default_runtime.py',
]

supernet = _base_.model
supernet.backbone.frozen_stages = -1
data_preprocessor = dict(
    type='mmcls.ClsDataPreprocessor',
    # RGB format normalization parameters
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    # convert image from BGR to RGB
    to_rgb=True)

# !autoslim algorithm config
model = dict(
    _delete_=True,
    _scope_='mmrazor',
    type='AutoSlim',
    num_random_samples=2,
    architecture=supernet,
    data_preprocessor=data_preprocessor,
    distiller=dict(
        type='ConfigurableDistiller',
        teacher_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        student_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        distill_losses=dict(
            loss_kl=dict(type='KLDivergence', tau=1, loss_weight=1)),
        loss_forward_mappings=dict(
            loss_kl=dict(
                preds_S=dict(recorder='fc', from_student=True),
                preds_T=dict(recorder='fc', from_student=False)))),
    mutator=dict(
        type='OneShotChannelMutator',
        channel_unit_cfg=dict(
            type='OneShotMutableChannelUnit',
            default_args=dict(
                candidate_choices=list(i / 12 for i in range(2, 13)),
                choice_mode='ratio',
                divisor=8)),
        parse_cfg=dict(
            type='ChannelAnalyzer',
            demo_input=(1, 3, 224, 224),
            tracer_type='BackwardTracer')))

optim_wrapper = dict(accumulative_counts=4)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two classes of three images."""
    rng = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / 'images' / str(label)).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(rng.integers(0, 255, (80, 72, 3), dtype=np.uint8)).save(
                tmp_path / 'images' / str(label) / f'{index}.png'
            )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runner_of(folder: Path, text: str) -> Any:
    (folder / 'config.py').write_text(text)
    config = load_config('config.py')
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = config[name]
        for step in loader.dataset.pipeline:
            step.update({key: 64 for key in ('scale', 'crop_size') if key in step})
        loader.dataset = dict(type='mmcls.CustomDataset', data_prefix='images', pipeline=loader.dataset.pipeline)
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    config.train_cfg.max_epochs = 1
    return build_runner(config, work_dir='work')


# MobileNetV2 has the widths of its stem, of 16 expansions, of 7 stages and of its last convolution.
@pytest.mark.parametrize(('name', 'decisions'), [('SPOS', 20), ('AutoSlim', 25)])
def test_a_config_on_the_bases_of_mmrazor_and_mmcls_is_trained(folder: Path, name: str, decisions: int) -> None:
    runner = runner_of(folder, {'SPOS': SPOS, 'AutoSlim': AUTOSLIM}[name])
    assert type(runner.model.architecture).__module__ == 'mmpretrain.models.classifiers.image'
    assert len(runner.model.mutator.space) == decisions
    runner.train()
    assert runner.iter == 3
    assert runner.optim_wrapper.optimizer.state
    assert all(torch.isfinite(value).all() for value in runner.model.parameters())
    assert 'accuracy/top1' in runner.val()
    assert examine(folder / 'config.py').runs
