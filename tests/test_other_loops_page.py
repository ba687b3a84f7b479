"""The page on other loops runs as it stands."""

import pytest

from tests.pages import ROOT, run

pytest.importorskip('lightning')
pytest.importorskip('accelerate')


@pytest.mark.filterwarnings('ignore')
def test_its_loops_run(tmp_path, monkeypatch):
    names = run(ROOT / 'docs' / 'other_loops.md', tmp_path, monkeypatch)
    assert names['saved']['count'] == 4
    assert names['step'].count == 32
    assert names['accuracy'] > 0.1
    assert {path.name for path in (tmp_path / 'small-vit').iterdir()} == {'config.json', 'model.safetensors'}
