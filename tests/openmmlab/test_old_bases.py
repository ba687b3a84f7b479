"""Configs of MMRazor with its own bases and mmcls's, as they stand; only the data are small and of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmpretrain', reason='the codebases of OpenMMLab have an environment of their own: make test-openmmlab')

import numpy as np
import yaml
from PIL import Image

import strop
from strop.cli.configs import load_config
from strop.compat.migration import examine
from strop.data import DefaultDemoInput
from strop.engine import build_runner
from strop.registry import MODELS

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

DARTS = """
_base_ = [
    'mmrazor::_base_/settings/cifar10_darts_supernet.py',
    'mmrazor::_base_/nas_backbones/darts_supernet.py',
    'mmcls::_base_/default_runtime.py',
]
model = dict(
    type='mmrazor.Darts',
    architecture=dict(
        type='ImageClassifier',
        backbone=_base_.nas_backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=256, topk=(1, 5), cal_acc=True)),
    mutator=dict(type='mmrazor.NasMutator'),
    unroll=True)
model_wrapper_cfg = dict(type='mmrazor.DartsDDP', broadcast_buffers=False, find_unused_parameters=False)
"""

# As the first 1.x release had it: widths in files of layers, and other words for the mutator.
SLIMMABLE = """
_base_ = [
    'mmrazor::_base_/settings/imagenet_bs2048_autoslim_pil.py',
    'mmcls::_base_/models/mobilenet_v2_1x.py',
    'mmcls::_base_/default_runtime.py',
]
supernet = _base_.model
channel_cfg_paths = ['small.yaml', 'large.yaml']
model = dict(
    _delete_=True,
    _scope_='mmrazor',
    type='SlimmableNetwork',
    architecture=supernet,
    channel_cfg_paths=channel_cfg_paths,
    mutator=dict(
        type='SlimmableChannelMutator',
        mutable_cfg=dict(type='SlimmableMutableChannel'),
        tracer_cfg=dict(type='BackwardTracer', loss_calculator=dict(type='ImageClassifierPseudoLoss'))))
model_wrapper_cfg = dict(type='mmrazor.SlimmableNetworkDDP', broadcast_buffers=False, find_unused_parameters=True)
optim_wrapper = dict(accumulative_counts=len(channel_cfg_paths))
val_cfg = dict(type='mmrazor.SlimmableValLoop')
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
    loaders = [config.train_dataloader, config.val_dataloader, config.test_dataloader]
    loaders += [config.train_cfg.mutator_dataloader] if 'mutator_dataloader' in config.train_cfg else []
    for loader in loaders:
        for step in loader.dataset.pipeline:
            step.update({key: 64 for key in ('scale', 'crop_size') if step.get(key, 0) > 64})
        pipeline = loader.dataset.pipeline
        if pipeline[0].type != 'mmcls.LoadImageFromFile':  # CIFAR-10 has its images in memory
            pipeline = [dict(type='mmcls.LoadImageFromFile'), *pipeline]
        loader.dataset = dict(type='mmcls.CustomDataset', data_prefix='images', pipeline=pipeline)
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


def test_darts_of_mmrazor_on_an_image_classifier_is_trained(folder: Path) -> None:
    runner = runner_of(folder, DARTS)
    assert type(runner.model.architecture).__module__ == 'mmpretrain.models.classifiers.image'
    assert examine(folder / 'config.py').runs
    before = [weight.clone() for weight in runner.model.mutator.parameters()]
    runner.model.train()
    batch = next(iter(runner.train_dataloader))
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.model.train_step([batch, batch], runner.optim_wrapper)
    changed = [not torch.equal(old, new) for old, new in zip(before, runner.model.mutator.parameters(), strict=True)]
    assert changed
    assert any(changed)


def test_widths_of_a_classifier_from_the_files_of_the_first_release(folder: Path) -> None:
    model = MODELS.build(dict(cfg_path='mmpretrain::_base_/models/mobilenet_v2_1x.py'))
    graph = strop.channel_units(model, DefaultDemoInput((1, 3, 64, 64))(model))
    for name, share in (('small', 2), ('large', 1)):
        layers = {'head.fc.out_features_mutable': dict(current_choice=1000, origin_channels=1000)}
        for unit in graph:
            for place in unit.placements:
                if place.axis == 0 and place.tensor.endswith('.weight'):
                    layer = place.tensor.removesuffix('.weight')
                    kind = 'num_features' if layer.endswith('bn') else 'out_channels'
                    layers[f'{layer}.{kind}_mutable'] = dict(current_choice=unit.size // share, origin_channels=unit.size)
        (folder / f'{name}.yaml').write_text(yaml.safe_dump(layers))
    runner = runner_of(folder, SLIMMABLE)
    small, large = runner.model.mutator.subnets
    assert small == {unit.name: unit.size // 2 for unit in graph}
    assert large == {unit.name: unit.size for unit in graph}
    runner.train()
    assert {name.partition('.')[0] for name in runner.val()} == {'subnet_0', 'subnet_1'}
    assert examine(folder / 'config.py').runs
