"""UPGRADING.md says what the tables of old names say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from strop.cli.main import COMMANDS
from strop.compat.config_source import Source
from strop.compat.runtime_keys import REPLACED, RuntimeKeys

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'UPGRADING.md').read_text(encoding='utf-8')
# A value that each key may have had.
VALUES = {
    'optimizer': "dict(type='SGD')",
    'lr_config': "dict(policy='fixed')",
    'runner': "dict(type='EpochBasedRunner', max_epochs=1)",
    'data': 'dict(train=dict())',
    'searcher': "dict(type='EvolutionSearcher')",
    'checkpoint_config': 'dict(interval=1)',
    'log_config': 'dict(interval=1)',
    'evaluation': 'dict(interval=1)',
}


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('upgrade_tables', ROOT / 'tools' / 'upgrade_tables.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_up_to_date(tool: ModuleType) -> None:
    assert tool.filled(PAGE) == PAGE, 'Run: python tools/upgrade_tables.py'


def test_every_old_name_is_on_the_page(tool: ModuleType) -> None:
    from strop.compat import MMRAZOR, NNI

    for name in [*MMRAZOR.nearest, *NNI.nearest]:
        assert f'`{name}`' in PAGE, name
    for table in (MMRAZOR, NNI):
        for room in table.names:
            assert f'`{room}' in PAGE, room


def test_a_page_without_a_place_for_a_table_is_refused(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="no place for the table 'registered'"):
        tool.filled('# Nothing')


def test_commands_on_the_page_exist() -> None:
    found = set(re.findall(r'`strop ([a-z][a-z-]*)', PAGE))
    assert {'train', 'search', 'test', 'migrate', 'experiment'} <= found <= set(COMMANDS)


@pytest.mark.parametrize('key', [key for key in REPLACED if key != 'algorithm'])
def test_a_key_of_the_page_is_found_in_a_config(key: str) -> None:
    changes = list(RuntimeKeys(Source(f'{key} = {VALUES.get(key, 1)}')).changes())
    assert [change.line for change in changes][:1] == [1]
    assert any(f'`{key}' in change.text for change in changes)
