from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from strop.cli import doctor
from strop.cli.doctor import BROKEN, OK, files, packages, registries

from .running import run


def test_this_installation_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compilers and converters take a while; each runtime has its own tests.
    from strop.estimators import runtimes

    eager = {'eager': runtimes()['eager']}
    monkeypatch.setattr('strop.estimators.runtimes', lambda: eager)
    done = run('doctor', '--work-dir', tmp_path, '--json')
    assert done.exit_code == 0, done.stdout
    content = json.loads(done.stdout)
    assert content['ok']
    states = {check['name']: check['state'] for check in content['checks']}
    assert states['torch'] == states['cv2' if 'cv2' in states else 'opencv-python-headless'] == states['eager'] == OK
    assert states['registries'] == states['work directory'] == states['shipped configs'] == OK
    done = run('doctor', '--work-dir', tmp_path)
    assert 'Everything that Strop needs works.' in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_cv2(name: str, *rest: Any) -> ModuleType:
        if name == 'cv2':
            raise ImportError('libGL.so.1: cannot open shared object file')
        return real(name, *rest)

    monkeypatch.setattr(doctor.importlib, 'import_module', without_cv2)
    broken = [check for check in packages() if check.state == BROKEN]
    assert [check.name for check in broken] == ['opencv-python-headless']
    assert 'libGL' in broken[0].detail
    for name in ('runtimes', 'registries', 'devices'):
        monkeypatch.setattr(doctor, name, list)
    done = run('doctor')
    assert done.exit_code == 1
    assert 'Broken: opencv-python-headless.' in done.stdout


def test_an_empty_shell_of_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib, 'import_module', lambda name: ModuleType(name))
    with pytest.raises(ImportError, match='uninstall every opencv'):
        doctor._version('opencv-python-headless', 'cv2')


def test_a_runtime_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from strop.estimators import runtimes

    entry = runtimes()['eager']
    monkeypatch.setattr(type(entry), 'prepare', lambda self, model, inputs: lambda: torch.zeros(1, 4))
    monkeypatch.setattr('strop.estimators.runtimes', lambda: {'eager': entry})
    (check,) = doctor.runtimes()
    assert check.state == BROKEN
    assert 'differs from PyTorch' in check.detail


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    found = {check.name: check.state for check in files(tmp_path / 'file' / 'below')}
    assert found['work directory'] == BROKEN


def test_registries() -> None:
    assert all(check.state == OK for check in registries())
