from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.registry import MODELS

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'ecosystem.md'
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.S)


def test_the_config_with_models_of_timm_is_built_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip('timm')
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model('resnet18', num_classes=10).state_dict(), 'teacher.pth')
    found: dict[str, Any] = {}
    exec(BLOCKS[0], found)
    algorithm = MODELS.build(found['model'])
    losses = algorithm(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]), mode='loss')
    sum(losses.values()).backward()
    assert any('loss_kl' in name for name in losses)


def test_the_blocks_about_transformers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('transformers')
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in BLOCKS[2:]:
        exec(block, found)
    with torch.no_grad():
        model, again, inputs = found['model'], found['again'].eval(), found['inputs']
        assert again(**inputs).last_hidden_state.shape == (2, 12, 64)
    assert len(again.encoder.layer) == 3
    assert found['record'].params[1] <= 0.5 * sum(parameter.numel() for parameter in model.parameters())
