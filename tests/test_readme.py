"""The README's Python runs as it stands, and the files it names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, 'README.md', 'exec'), names)
    assert names['plain'](names['torch'].zeros(1, 3, 32, 32)).shape == (1, 10)
    # Of the six subnets, the three with the 5x5 convolution are over the budget.
    assert names['mutator'].space.count() == 6
    assert len(names['result'].trials) == 3
    assert (tmp_path / 'my_search.journal').exists()


@pytest.mark.parametrize('path', re.findall(r'\]\(([\w/.]+)\)', README) + re.findall(r'configs/[\w/.]+\.py', README))
def test_named_files_exist(path):
    assert (ROOT / path).exists()
