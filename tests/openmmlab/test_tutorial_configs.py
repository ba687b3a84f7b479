"""The configs of the tutorials that need mmdet are built, and give losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmdet', reason='needs the codebases of OpenMMLab: make test-openmmlab')

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pages import blocks  # by this name, since the codebases install a package called tests

import strop.compat  # noqa: F401, as the command line does
from strop.engine import prepare_config
from strop.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]


def model_of(page: str, title: str, folder: Path) -> Any:
    (text,) = (block.text for block in blocks(ROOT / 'docs' / 'tutorials' / page) if block.title == title)
    (folder / title).write_text(text)
    config = Config.fromfile(folder / title)
    config.model.architecture.backbone.init_cfg = None  # weights of ImageNet, which would be fetched
    if 'teacher' in config.model:
        config.model.teacher_ckpt = None
    for part in ('train_cfg', 'train_dataloader', 'optim_wrapper'):
        config.setdefault(part, dict(max_epochs=1))  # a page about models alone leaves these out
    config = prepare_config(config)
    init_default_scope('mmdet')
    return MODELS.build(config.model)


def losses(algorithm: Any) -> dict[str, Any]:
    data = algorithm.data_preprocessor(demo_mm_inputs(2, [[3, 64, 64]] * 2), True)
    return algorithm(**data, mode='loss')


def test_a_detector_of_mmdet_is_an_architecture(tmp_path: Path) -> None:
    algorithm = model_of('algorithm.md', 'detector.py', tmp_path)
    assert {'loss_rpn_cls', 'loss_cls', 'loss_bbox'} <= set(losses(algorithm))


def test_a_detector_of_mmdet_is_taught(tmp_path: Path) -> None:
    algorithm = model_of('distil_detector.md', 'pkd_retinanet_r50_r18.py', tmp_path)
    found = losses(algorithm)
    distilled = [value for name, value in found.items() if name.startswith('distill.loss_pkd')]
    assert len(distilled) == 4
    assert all(torch.isfinite(value) and value > 0 for value in distilled)
    sum(distilled).backward()
    assert algorithm.student.neck.fpn_convs[0].conv.weight.grad.abs().sum() > 0
