"""What every benchmark writes beside its figures: command, versions, commit, machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from strop.estimators import Machine
from strop.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments: str) -> str:
    """Return what a git command prints in the checkout, or an empty string."""
    return subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages."""
    found = {}
    for package in ('strop', 'torch', 'numpy', *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _as_from_here(argument: str) -> str:
    """Return an argument with an absolute path, or the script's, as a path from the checkout."""
    if argument != sys.argv[0] and not os.path.isabs(argument):
        return argument
    return os.path.relpath(Path(argument).resolve(), ROOT)


def write_result(path: str | Path, benchmark: str, content: dict[str, Any], *, packages: tuple[str, ...] = ()) -> None:
    """Write a result file: `content` after what identifies the run."""
    head = {
        'benchmark': benchmark,
        'command': ' '.join(['python', *map(_as_from_here, sys.argv)]),
        'commit': git('rev-parse', 'HEAD'),
        'changed_files_in_strop': bool(git('status', '--porcelain', '--', 'strop')),
        'versions': versions(*packages),
        'machine': vars(Machine.here(torch.get_num_threads())) if hasattr(Machine, '__dict__') else {},
    }
    atomic_write(path, json.dumps({**head, **content}, indent=2, default=str) + '\n')
