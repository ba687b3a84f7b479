"""The blocks of docs/openmmlab.md, run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='the codebases of OpenMMLab have an environment of their own: make test-openmmlab')

from pages import blocks  # by this name, since the codebases install a package called tests

from strop.cli.configs import load_config
from strop.cli.models import build_model

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'openmmlab.md'


@pytest.mark.parametrize('title', ['pruned_detector.py', 'teacher_and_student.py'])
def test_configs_are_built(tmp_path: Path, title: str) -> None:
    (text,) = (block.text for block in blocks(PAGE) if block.title == title)
    (tmp_path / title).write_text(text)
    model = build_model(load_config(str(tmp_path / title)))
    assert type(model).__module__.startswith('strop.algorithms')
    assert type(model.architecture).__module__.partition('.')[0] in ('mmdet', 'mmpretrain')


def test_a_segmentor_is_pruned_on_inputs_of_its_own() -> None:
    (text,) = (block.text for block in blocks(PAGE) if 'DefaultDemoInput' in block.text)
    found: dict = {}
    exec(text, found)
    assert set(found['inputs']) == {'inputs', 'data_samples'}
    assert 'decode.loss_ce' in found['losses']
    assert found['record'].params[1] < 0.4 * found['record'].params[0]
    assert found['slim'](**found['inputs'], mode='tensor').shape[:2] == (2, 19)
