"""The README's Python runs as it stands, and the files it names exist."""

import re

import pytest

from tests.pages import ROOT, run_python

README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    names = run_python(ROOT / 'README.md', tmp_path, monkeypatch)
    assert names['plain'](names['torch'].zeros(1, 3, 32, 32)).shape == (1, 10)
    # Of the six subnets, the three with the 5x5 convolution are over the budget.
    assert names['mutator'].space.count() == 6
    assert len(names['result'].trials) == 3
    assert (tmp_path / 'my_search.journal').exists()


def test_the_page_on_one_shot_search_runs(tmp_path, monkeypatch):
    run_python(ROOT / 'docs' / 'one_shot.md', tmp_path, monkeypatch)
    assert [path.name for path in (tmp_path / 'two_paths').glob('*.pth')]


@pytest.mark.parametrize('path', re.findall(r'\]\(([\w/.]+)\)', README) + re.findall(r'configs/[\w/.]+\.py', README))
def test_named_files_exist(path):
    assert (ROOT / path).exists()
