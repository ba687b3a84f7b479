"""The page on compression runs as it stands."""

import functools

import pytest

import strop
from strop.compression import measuring
from tests.pages import ROOT, run

pytest.importorskip('timm')


@pytest.mark.filterwarnings('ignore')
def test_its_recipe_and_its_python_run(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, 'measure_runtimes', functools.partial(measuring.measure_runtimes, rounds=2))
    names = run(ROOT / 'docs' / 'compress.md', tmp_path, monkeypatch)
    assert names['model'].num_classes == 10
    assert names['again'][0].out_features == 16
    assert (tmp_path / 'slim' / 'report.html').exists()
    assert strop.load(tmp_path / 'slim').conv1 is not None
