from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

from tests.scripts import ROOT, run_script


class Workspace:
    """A user's folder: files are put into it, and scripts run in it, each in a process without Strop and MMEngine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    def run(self, script: str, *, fails: bool = False, fresh: bool = False) -> str:
        """Run a script; `fresh` in a Python that has not even imported PyTorch."""
        environment = {'PYTHONPATH': f'{self.folder}{os.pathsep}{ROOT}'}
        if fresh:
            command = [sys.executable, '-c', textwrap.dedent(script)]
            variables = {**os.environ, **environment, 'OMP_NUM_THREADS': '1'}
            done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=300)
        else:
            done = run_script(script, cwd=self.folder, environment=environment)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout


@pytest.fixture(autouse=True)
def scope_of_its_own() -> Iterator[None]:
    """Leave the default scope as it was: a runner of a config sets it for the process."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)
