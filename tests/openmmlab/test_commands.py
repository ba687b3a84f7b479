"""The commands on configs of the codebases, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip('mmpretrain', reason='the codebases of OpenMMLab have an environment of their own: make test-openmmlab')
pytest.importorskip('mmdet', reason='needs mmdet: make test-openmmlab')

from strop.cli.main import main
from strop.export import load_recipe


def strop(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_config_of_mmcls_is_pruned_and_its_recipe_read_back(tmp_path: Path) -> None:
    out = tmp_path / 'slim'
    strop(
        'prune', 'mmcls::resnet/resnet18_b32x8_imagenet.py', '--ratio', '0.5', '--input-shape', '1,3,64,64', '--out', str(out)
    )
    slim = load_recipe(out, allow=['mmpretrain'])
    assert type(slim).__module__ == 'mmpretrain.models.classifiers.image'
    assert slim.backbone.layer4[1].conv1.out_channels == 256
    assert slim.data_preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert slim.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_units_of_a_detector_are_listed_from_its_renamed_config() -> None:
    text = strop('units', 'mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', '--input-shape', '1,3,128,128')
    assert 'backbone.layer1.0.conv1: 64' in text
    assert 'roi_head.bbox_head.fc_cls.weight' in text  # among what is kept: the model returns it


def test_a_config_that_is_not_there_is_an_error_of_one_line() -> None:
    done = CliRunner().invoke(main, ['units', 'mmdet::retinanet/retinanet_r50_fpn_9x_coco.py'])
    assert done.exit_code == 1
    assert "Did you mean 'retinanet/retinanet_r50_fpn_2x_coco.py'" in ' '.join(done.output.split())
