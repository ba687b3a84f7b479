"""Segmentors of mmseg: distilled by the shipped config, and pruned, on real images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmseg', reason='needs the codebases of OpenMMLab: make test-openmmlab')

from strop.engine import build_runner
from strop.registry import MODELS

from .coco import coco_folder, need_file, segmentation_data, shortened, taught

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'segmentation' / 'cwd_pspnet_r101_r18_cityscapes.py'


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_file()
    return coco_folder(tmp_path_factory.mktemp('coco'), [f'class {number}' for number in range(80)], 6)


def small(images: Path, work_dir: Path, iterations: int) -> Config:
    """The shipped config with three classes, and a teacher of 50 layers instead of 101 whose class maps are sharp."""
    config = Config.fromfile(CONFIG)
    heads = {f'model.{who}.{head}.num_classes': 3 for who in ('architecture', 'teacher') for head in _HEADS}
    config.merge_from_dict({**heads, 'model.teacher.backbone.depth': 50, 'data_preprocessor.size': (64, 64)})
    torch.manual_seed(0)
    teacher = MODELS.build(config.model.teacher)
    torch.nn.init.normal_(teacher.decode_head.conv_seg.weight, std=1.0)
    torch.save(teacher.state_dict(), work_dir / 'teacher.pth')
    config.model.teacher_ckpt = str(work_dir / 'teacher.pth')
    config.model.distiller.distill_losses.loss_cwd.loss_weight = 20
    return shortened(config, segmentation_data(images, 64), iterations, work_dir / 'student', lr=0.01)


_HEADS = ('decode_head', 'auxiliary_head')


@pytest.mark.shared
def test_a_pspnet_learns_from_the_channels_of_a_larger_one(images: Path, tmp_path: Path) -> None:
    runner = build_runner(small(images, tmp_path, 6))
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    untaught, learned = taught(runner)
    assert learned < untaught
    after = runner.model.state_dict().items()
    changed = {name.partition('.')[0] for name, value in after if not torch.equal(value, before[name])}
    assert changed == {'architecture'}  # the teacher, its statistics included, is as it was
    assert 0 < runner.test()['mIoU'] <= 100
