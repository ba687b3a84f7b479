"""Checkpoints that are read without executing anything, and written whole or not at all."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from strop.errors import ConfigError, StropError, UnsafeFileError
from strop.files import atomic_path, atomic_write

# Log buffers and the one-cycle schedule keep some of their own methods in their state.
_METHODS = {HistoryBuffer: ('mean', 'max', 'min', 'current'), OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear')}


def _own_method(owner: Any, name: str) -> Any:
    """Stand in for `getattr`, which pickles name methods by: it finds those of `_METHODS` and nothing else."""
    if isinstance(owner, type) and name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported operand getattr of {owner!r}')


def _allowed() -> list[Any]:
    """Return what MMEngine puts into its checkpoints beyond tensors and plain data."""
    import numpy as np

    # `numpy.core` became `numpy._core` with NumPy 2.
    multiarray: Any = importlib.import_module('numpy._core.multiarray' if hasattr(np, '_core') else 'numpy.core.multiarray')
    dtypes = {type(np.dtype(code)) for code in ('f4', 'f8', 'i4', 'i8', 'u1', 'b1')}
    names = [(_own_method, name) for name in ('builtins.getattr', '__builtin__.getattr', 'getattr')]
    return [*_METHODS, np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, *dtypes, *names]


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

        try:
            return load_file(path, device=str(map_location or 'cpu'))
        except Exception as error:
            raise UnsafeFileError(f'{path} is not a readable checkpoint: {error}') from None
    return _read(path, map_location, str(path))


def _read(file: Any, map_location: Any, name: str) -> Any:
    try:
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:
        # Whatever bytes may be in a file, they end here.
        found = re.search(r'GLOBAL (\S+)|Unsupported (?:global|class|operand)[: ]+(?!\d)(?:GLOBAL )?(\S+)', str(error))
        if not isinstance(error, pickle.UnpicklingError) or found is None:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if 'weights_only' in reason:
                # torch's text goes on to advise unpickling the file, which is the last thing to do with it.
                reason = 'its content is not what a checkpoint holds'
            raise UnsafeFileError(f'{name} is not a readable checkpoint: {reason}') from None
        raise UnsafeFileError(
            f'{name} holds more than tensors and plain data ({found.group(1) or found.group(2)}), and reading it could execute '
            'code. It is not read. If you trust its origin, load it yourself and save its state_dict alone.'
        ) from None


def _load_for_mmengine(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    if isinstance(file, (str, os.PathLike)):
        return load_checkpoint_file(file, map_location)
    return _read(file, map_location, 'The checkpoint')


def _load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True, **_: Any) -> Any:
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = folder / Path(urlparse(url).path).name
    fetched = not path.exists()
    if fetched:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=progress)
        except OSError as error:
            raise ConfigError(
                f'The weights at {url} could not be fetched ({error}). Without a network: put the file at {path}; or name a '
                "file in the config, init_cfg=dict(type='Pretrained', checkpoint='weights.pth'); or start from random weights, "
                'init_cfg=None (on the command line: --cfg-options model.architecture.backbone.init_cfg=None).'
            ) from error
    try:
        return load_checkpoint_file(path, map_location)
    except UnsafeFileError:
        if fetched:
            path.unlink()  # others that find it there may unpickle it
        raise


def check_readable(state: Any, owner: str) -> None:
    """Raise unless a state can be read again from a checkpoint, before one with it takes the place of another.

    Args:
        state: What goes into the checkpoint.
        owner: Whose state it is, for the message.

    Raises:
        ConfigError: If it holds more than tensors and plain data.

    >>> check_readable({'seen': [1, 2], 'weight': torch.ones(1)}, 'The callback')
    """
    stream = io.BytesIO()
    try:
        torch.save(state, stream)
        stream.seek(0)
        _read(stream, 'cpu', f'what {owner} keeps')
    except Exception as error:  # whatever its own pickling raises
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(', and reading it')[0]
        raise ConfigError(
            f'The state of {owner} cannot be kept in a checkpoint, which holds tensors and plain data alone (numbers, text, '
            f'lists, tuples and dicts of them): {reason}. Let its state_dict() return such.'
        ) from error


def find_checkpoint(work_dir: str | os.PathLike[str], strict: bool = False) -> Path | None:
    """Return the checkpoint in `work_dir` from which training resumes: the one that went furthest; None if there is none.

    Of the files of either name (`epoch_3.pth`, `iter_600.pth`) the highest one that can be read, by the iteration inside.

    Args:
        work_dir: The folder.
        strict: Raise if there are files of these names, but none can be read.

    Raises:
        ConfigError: If `strict` finds nothing but files that cannot be read.
    """
    best: tuple[int, Path] | None = None
    unreadable: tuple[Path, str] | None = None
    for unit in ('epoch', 'iter'):
        numbered = {
            int(match.group(1)): path
            for path in Path(work_dir).glob(f'{unit}_*.pth')
            if (match := re.fullmatch(rf'{unit}_(\d+)', path.stem)) is not None
        }
        for _, path in sorted(numbered.items(), reverse=True):
            try:
                reached = int(load_checkpoint_file(path)['meta']['iter'])
            except (StropError, KeyError, TypeError, OSError) as error:
                # A file of another origin, or damaged.
                reason = str(error) if isinstance(error, (StropError, OSError)) else 'it does not say how far it went'
                unreadable = unreadable or (path, reason)
                continue
            if best is None or reached > best[0]:
                best = (reached, path)
            break
    if best is None and unreadable is not None and strict:
        path, reason = unreadable
        raise ConfigError(
            f'There are checkpoints in {work_dir}, but none can be resumed from. Of {path.name}: {reason} Move them away to '
            'start anew.'
        )
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
    # MMEngine's own loaders (of URLs, of its model zoos) unpickle what weights_only refuses; they all end in these two.
    mmengine_checkpoint._safe_torch_load = _load_for_mmengine
    mmengine_checkpoint.load_url = _load_url
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')


install()
