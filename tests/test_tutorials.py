"""The tutorials run as they stand, and lead where they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pages import ROOT, run

PAGES = ROOT / 'docs' / 'tutorials'


@pytest.fixture
def names(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return run(PAGES / request.param, tmp_path, monkeypatch)


def page(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize('names', [name], indirect=True)


@page('nas_algorithm.md')
def test_a_nas_algorithm_of_ones_own_trains_fairly_and_is_searched(names: dict[str, Any]) -> None:
    for key, times in (('first', 2), ('second', 3)):
        assert set(Counter(str(subnet[key]) for subnet in names['seen']).values()) == {times}
    found = Path('runs/search/best_fix_subnet.yaml').read_text()
    assert any(name in found for name in ('shuffle_3x3', 'shuffle_5x5', 'shuffle_xception'))


@page('mixed_algorithm.md')
def test_widths_teach_each_other_and_are_searched(names: dict[str, Any]) -> None:
    assert {'largest.loss', 'smallest.loss_kl', 'random_1.loss_kl'} <= set(names['log'])
    assert names['estimator'].estimate(names['best'])['macs'] <= 0.5 * names['largest']
    assert max(names['result'].best.values.values()) > 0.3
    count = sum(parameter.numel() for parameter in names['network'].parameters())
    assert sum(parameter.numel() for parameter in names['slim'].parameters()) < count


@page('nni_style.md')
def test_trainers_mutators_and_tuners_of_ones_own_work(names: dict[str, Any]) -> None:
    assert set(names['mutator'].space) == {'conv', 'skip'}
    model = names['model']
    x = names['data'][:2][0]
    first, second = (candidate(x) for candidate in model.conv)
    hidden = ((first + second) / 2).relu()
    skipped = model.skip([hidden, model.more(hidden).relu()])
    torch.testing.assert_close(names['averaged'], model.head(skipped.amax((2, 3))))
    assert {tuple(trial.subnet.values()) for trial in names['found'].trials} == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert Path('architecture.json').exists()


@page('algorithm.md')
def test_an_algorithm_of_ones_own_adds_its_loss(names: dict[str, Any]) -> None:
    assert names['losses'].keys() == {'loss'}
    assert names['outputs'].shape == (4, 10)
    log = names['log']
    torch.testing.assert_close(log['loss'], log['loss_labels'] + log['loss_divergence'])
    assert log['loss_divergence'] > 0
    assert Path('runs/plain/epoch_1.pth').exists()


@page('architecture.md')
def test_a_backbone_of_ones_own_is_trained_and_extracted(names: dict[str, Any]) -> None:
    assert len(names['subnet']) == 3
    assert Path('runs/plain_net/epoch_1.pth').exists()


@page('prune_timm.md')
def test_a_model_of_timm_is_pruned_and_taught(names: dict[str, Any]) -> None:
    before, after = names['record'].macs
    assert after <= 0.5 * before
    assert torch.isfinite(names['loss'])


@page('distil_detector.md')
def test_a_detector_is_taught(names: dict[str, Any]) -> None:
    assert len(names['history']) == 4
    assert all(0 < entry['distillation'] < float('inf') for entry in names['history'])
    assert not any(parameter.requires_grad for parameter in names['teacher'].parameters())
    assert set(names['found'][0]) == {'boxes', 'scores', 'labels'}


def test_every_tutorial_is_run_here() -> None:
    marks = [mark for value in globals().values() for mark in getattr(value, 'pytestmark', ())]
    tested = {name for mark in marks if mark.name == 'parametrize' for name in mark.args[1]}
    assert tested == {path.name for path in PAGES.glob('*.md')}
