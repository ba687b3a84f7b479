"""Folders that appear whole or not at all, also over an older one and also when the process is killed."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strop.errors import ConfigError, listed

#: Every file that an export writes; a folder with others in it is never replaced.
OURS = frozenset({'recipe.json', 'model.safetensors', 'README.md', 'model.pt2', 'model.onnx', 'model.onnx.data', 'export.json'})

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`.

    On an exception, or if the process dies, `path` keeps what it had before: nothing, or an older export. A killed
    process leaves its temporary folder `.<name>.<hexadecimal digits>` behind, which may be deleted.

    Raises:
        ConfigError: If `path` is a file, or a folder with something in it that is no export.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / 'net'
    >>> with atomic_folder(target) as temporary:
    ...     _ = (temporary / 'recipe.json').write_text('{}')
    ...     target.exists()
    False
    >>> [file.name for file in target.iterdir()]
    ['recipe.json']
    """
    target = Path(path).expanduser().resolve()
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{target.name}.{secrets.token_hex(6)}')
    temporary.mkdir()
    try:
        yield temporary
        for file in (*temporary.iterdir(), temporary):
            _sync(file)
        check_replaceable(target)
        if target.exists():
            _swap(temporary, target)
        else:
            os.rename(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(target: Path) -> None:
    """Raise a `ConfigError` if writing an export at `target` would destroy something else."""
    if target.is_file():
        raise ConfigError(f'An export is a folder, but {target} is a file. Choose another name, or delete it.')
    if target.is_dir():
        foreign = sorted(file.name for file in target.iterdir() if file.name not in OURS or not file.is_file())
        if foreign:
            raise ConfigError(
                f'{target} holds {listed(foreign)}, which no export wrote, so it is not replaced. Choose another folder.'
            )


def _swap(new: Path, old: Path) -> None:
    """Exchange two folders: in one step where the system can, else with a moment in which `old` is absent."""
    if _exchange(new, old):
        return
    aside = old.with_name(f'.{old.name}.{secrets.token_hex(6)}')
    os.rename(old, aside)
    os.rename(new, old)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    if not sys.platform.startswith('linux'):
        return False
    function = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
    if function is None:
        return False
    return bool(function(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == 'nt':
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
