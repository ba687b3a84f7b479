"""The script that builds mmcv's wheel, with a stand-in for the build itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / 'tools' / 'mmcv_wheel.py'
NAME = 'onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl'
FACTS = dict(python=sys.executable, tag='cp311', platform='linux_x86_64', headers=True, missing=[])


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location('mmcv_wheel', FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    facts = dict(FACTS, torch='2.15.0+cpu')
    monkeypatch.setattr(module, 'asked', lambda python: facts)
    monkeypatch.setattr(module.shutil, 'which', lambda name: name)
    return module


def wheel(file: Path, operators: bool = True) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('mmcv/__init__.py', '')
        if operators:
            archive.writestr('mmcv/_ext.cpython-311-x86_64-linux-gnu.so', b'')
    return file


def building(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, operators: bool = True, code: int = 0) -> list[dict[str, Any]]:
    """Replace the build by one that makes a wheel at once; return the list of its calls."""
    calls: list[dict[str, Any]] = []

    def run(command: list[str], env: dict[str, str], stdout: Any, stderr: Any) -> subprocess.CompletedProcess:
        calls.append(dict(command=command, env=env, wrapper=Path(env['CXX']).read_text()))
        stdout.write('first line\nerror: this and that\n')
        if not code:
            wheel(Path(command[command.index('--wheel-dir') + 1], NAME), operators)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(tool.subprocess, 'run', run)
    return calls


def test_a_wheel_is_built_once_for_each_torch(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = building(tool, monkeypatch)
    found = tool.wheel_for('python', cache=tmp_path, jobs=2)
    assert found == tmp_path / 'onedl_mmcv-2.3.6-torch2.15.0+cpu-cp311-linux_x86_64' / NAME
    assert tool.wheel_for('python', cache=tmp_path) == found
    assert len(calls) == 1
    assert {'--no-build-isolation', '--no-deps', '--no-cache-dir'} < set(calls[0]['command'])
    assert calls[0]['env']['MAX_JOBS'] == '2'
    assert '"$@" -std=c++20' in calls[0]['wrapper']
    monkeypatch.setattr(tool, 'asked', lambda python: dict(FACTS, torch='2.16.0'))
    assert tool.wheel_for('python', cache=tmp_path) != found
    assert len(calls) == 2


def test_a_build_that_fails_leaves_no_wheel(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    building(tool, monkeypatch, code=1)
    with pytest.raises(SystemExit, match=r'failed\. The end of .*\.log:\nfirst line\nerror: this and that'):
        tool.wheel_for('python', cache=tmp_path)
    building(tool, monkeypatch, operators=False)
    with pytest.raises(SystemExit, match='without operators'):
        tool.wheel_for('python', cache=tmp_path)
    assert not [*tmp_path.rglob('*.whl')]
    assert not [*tmp_path.glob('building-*')]


@pytest.mark.parametrize('damage', ['torn', 'without operators'])
def test_a_wheel_that_is_damaged_or_lacks_operators_is_built_again(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    calls = building(tool, monkeypatch)
    file = wheel(tmp_path / 'onedl_mmcv-2.3.6-torch2.15.0+cpu-cp311-linux_x86_64' / NAME, operators=False)
    if damage == 'torn':
        file.write_bytes(b'PK')
    assert tool.has_operators(tool.wheel_for('python', cache=tmp_path))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ('facts', 'message'),
    [
        (dict(torch=None), 'has no torch'),
        (dict(torch='2', missing=['pkg_resources']), r'lacks pkg_resources: install requirements/openmmlab\.txt'),
        (dict(torch='2', headers=False), r'Python\.h.*apt-get install python3-dev'),
    ],
)
def test_what_is_missing_for_a_build_is_named(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(tool, 'asked', lambda python: {**FACTS, **facts})
    with pytest.raises(SystemExit, match=message):
        tool.wheel_for('python', cache=tmp_path)


def test_a_missing_compiler_is_named(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.shutil, 'which', lambda name: None)
    monkeypatch.setenv('CXX', 'clang++-99')
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler 'clang\+\+-99'"):
        tool.wheel_for('python', cache=tmp_path)
