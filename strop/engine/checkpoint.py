"""Checkpoints that are read without executing anything, and written whole or not at all."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import CheckpointLoader

from strop.errors import StropError, UnsafeFileError
from strop.files import atomic_path, atomic_write


def _allowed() -> list[Any]:
    """Return the classes beyond tensors and plain data that MMEngine puts into its checkpoints."""
    import numpy as np

    multiarray = np.core.multiarray if np.lib.NumpyVersion(np.__version__) < '2.0.0' else np._core.multiarray
    dtypes = {type(np.dtype(code)) for code in ('f4', 'f8', 'i4', 'i8', 'u1', 'b1')}
    return [HistoryBuffer, np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, *dtypes]


def load_checkpoint_file(filename: str | os.PathLike[str], map_location: Any = 'cpu') -> Any:
    """Read a checkpoint with `weights_only=True` and a short list of MMEngine's own classes.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If the file would have to be unpickled, or is no checkpoint.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint at {path}.')
    if path.suffix == '.safetensors':
        from safetensors.torch import load_file

        return load_file(path, device=str(map_location or 'cpu'))
    try:
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r'(Unsupported (?:global|class|operand).*?|GLOBAL \S+|Unsupported [^.\n]*)(?: was|[.\n]|$)', str(error))
        raise UnsafeFileError(
            f'{path} holds more than tensors and plain data ({reason.group(1) if reason else "unknown objects"}), and reading it '
            'could execute code. It is not read. If you trust its origin, load it yourself and save its state_dict alone.'
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UnsafeFileError(f'{path} is not a readable checkpoint: {str(error).splitlines()[0]}') from None


def find_checkpoint(work_dir: str | os.PathLike[str]) -> Path | None:
    """Return the checkpoint in `work_dir` from which training resumes: the one that went furthest.

    Files are found by name (`epoch_3.pth`, `iter_600.pth`) and by the iteration written inside.
    """
    candidates = [path for path in Path(work_dir).glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+', path.stem)]
    best: tuple[int, Path] | None = None
    for path in sorted(candidates, key=lambda path: path.stat().st_mtime, reverse=True)[:3]:
        try:
            reached = int(load_checkpoint_file(path)['meta']['iter'])
        except (StropError, KeyError, TypeError, OSError):
            continue
        if best is None or reached > best[0]:
            best = (reached, path)
    return best[1] if best else None


class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, with writes that replace a file only when they are complete."""

    def put(self, obj: bytes | memoryview, filepath: str | os.PathLike[str]) -> None:
        """Write bytes to a file."""
        atomic_write(filepath, bytes(obj))

    def put_text(self, obj: str, filepath: str | os.PathLike[str], encoding: str = 'utf-8') -> None:
        """Write text to a file."""
        with atomic_path(filepath) as temporary:
            temporary.write_text(obj, encoding=encoding)


def install() -> None:
    """Make MMEngine read and write local checkpoints by the functions of this module."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_checkpoint_file, force=True)
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')


install()
