"""Configs that were written for MMRazor, mmdet 2 and mmcls, run by today's codebases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain', reason='the codebases of OpenMMLab have an environment of their own: make test-openmmlab')
pytest.importorskip('mmdet', reason='needs mmdet: make test-openmmlab')

from mmengine.config import Config
from mmengine.registry import TRANSFORMS, VISUALIZERS, DefaultScope

from strop.cli.configs import load_config
from strop.cli.models import build_model
from strop.data import DefaultDemoInput
from strop.engine import build_runner
from strop.registry import MODELS

from .coco import coco_folder, detection_data, need_file
from .conftest import losses_of, training

DETECTOR = """
_base_ = [
    'mmdet::_base_/models/faster_rcnn_r50_fpn.py',
]

architecture = _base_.model

model = dict(
    type='BaseAlgorithm',
    architecture=architecture)
"""

CLASSIFIER = """
default_scope='mmcls'
architecture = dict(
    type='ImageClassifier',
    backbone=dict(type='VGG', depth=11, num_classes=1000),
    neck=None,
    head=dict(
        type='ClsHead',
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ))
model = dict(
    type='BaseAlgorithm',
    architecture=architecture)
"""


def test_a_vgg_of_mmcls_is_trained(tmp_path: Path, image_loaders: dict) -> None:
    (tmp_path / 'vgg.py').write_text(CLASSIFIER)
    config = load_config(str(tmp_path / 'vgg.py'))
    config.merge_from_dict(training(2, lr=1e-5))
    # Its linear layers want what is left of images of 224 pixels.
    loader = {**image_loaders['train_dataloader'], 'batch_size': 2}
    loader['dataset'] = {**loader['dataset']}
    loader['dataset']['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=224), dict(type='PackInputs')]
    config.train_dataloader = loader
    runner = build_runner(config, work_dir=tmp_path)
    network = runner.model.architecture
    assert type(network).__module__ == 'mmpretrain.models.classifiers.image'
    assert type(network.backbone).__module__ == 'mmpretrain.models.backbones.vgg'
    assert network.neck is None
    assert network.head.topk == (1, 5)
    before = network.backbone.features[0].conv.weight.detach().clone()
    runner.train()
    losses = losses_of(runner)
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)  # the config normalises nothing
    assert not torch.equal(network.backbone.features[0].conv.weight, before)


def test_a_detector_from_a_renamed_base_is_trained(tmp_path: Path) -> None:
    need_file()
    from mmdet.datasets import CocoDataset

    (tmp_path / 'detector.py').write_text(DETECTOR)
    # The base names weights that are fetched from the network; everything else is as it is written.
    config = load_config(str(tmp_path / 'detector.py'), {'model.architecture.backbone.init_cfg': None})
    data = detection_data(coco_folder(tmp_path / 'coco', CocoDataset.METAINFO['classes'], 8))
    config.merge_from_dict(dict(default_scope='mmdet', train_dataloader=data['train_dataloader'], **training(2, lr=0.002)))
    runner = build_runner(config, work_dir=tmp_path / 'run')
    assert type(runner.model.architecture).__name__ == 'FasterRCNN'
    runner.train()
    for part in ('loss', 'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox'):
        assert len(losses_of(runner, part)) == 2
    assert all(loss > 0 for loss in losses_of(runner))


def test_weights_that_cannot_be_fetched_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    from strop.errors import ConfigError

    def offline(url: str, *_: object, **__: object) -> None:
        raise URLError('no network')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'detector.py').write_text(DETECTOR)
    config = load_config(str(tmp_path / 'detector.py'))
    model = build_model(config)
    with pytest.raises(ConfigError, match=r'resnet50.*could not be fetched.*init_cfg=None'):
        model.init_weights()


def test_renamed_configs_are_found_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in (
        ('mmdet::_base_/models/faster_rcnn_r50_fpn.py', '_base_/models/faster-rcnn_r50_fpn.py'),
        ('mmdet::gfl/gfl_r101_fpn_mstrain_2x_coco.py', 'gfl/gfl_r101_fpn_ms-2x_coco.py'),
        ('mmseg::pspnet/pspnet_r50-d8_512x1024_80k_cityscapes.py', 'pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py'),
        ('mmcls::mobilenet_v2/mobilenet_v2_b32x8_imagenet.py', 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py'),
        ('mmcls::_base_/models/resnet18.py', '_base_/models/resnet18.py'),
    ):
        path, scope = Config._get_cfg_path(old, '')
        assert path.endswith(new)
        assert scope == {'mmcls': 'mmpretrain'}.get(old[:5], old[:5])


def test_one_config_inherits_from_three_codebases(tmp_path: Path) -> None:
    (tmp_path / 'three.py').write_text(
        "_base_ = ['mmpretrain::_base_/default_runtime.py', 'mmdet::_base_/models/retinanet_r50_fpn.py',\n"
        "          'mmseg::_base_/datasets/ade20k.py']\n"
    )
    config = load_config(str(tmp_path / 'three.py'))
    assert config.default_scope == 'mmpretrain'
    assert (config.model.type, config.model._scope_) == ('RetinaNet', 'mmdet')
    assert config.train_dataloader.dataset._scope_ == 'mmseg'


def test_types_that_mmpretrain_renamed_are_built_with_a_note() -> None:
    import strop.compat  # noqa: F401, as the command line does

    with DefaultScope.overwrite_default_scope('mmcls'):
        assert type(TRANSFORMS.build(dict(type='PackClsInputs'))).__name__ == 'PackInputs'
        assert type(TRANSFORMS.build(dict(type='mmcls.PackClsInputs'))).__name__ == 'PackInputs'
        assert TRANSFORMS.get('mmcls.Resize').__module__.startswith('mmcv.')
        assert VISUALIZERS.get('mmcls.ClsVisualizer').__name__ == 'UniversalVisualizer'


def test_a_decoder_of_mmseg_takes_a_backbone_of_mmpretrain() -> None:
    head = dict(type='FCNHead', in_channels=1280, in_index=0, channels=16, num_convs=1, num_classes=3)
    backbone = dict(type='mmpretrain.MobileNetV2', out_indices=(7,))
    model = MODELS.build(dict(type='mmseg.EncoderDecoder', backbone=backbone, decode_head=head))
    kinds = [type(part).__module__.partition('.')[0] for part in (model, model.backbone, model.decode_head)]
    assert kinds == ['mmseg', 'mmpretrain', 'mmseg']
    inputs = DefaultDemoInput((2, 3, 64, 64))(model)
    assert inputs['data_samples'][0].gt_sem_seg.data.unique().tolist() == [0, 1, 2]
    assert float(model(**inputs, mode='loss')['decode.loss_ce'].detach()) > 0
