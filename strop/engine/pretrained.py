"""Weights of a file, and what of them fits a model: read without unpickling, compared whole before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import nn

from strop.engine.checkpoint import _load_url, load_checkpoint_file
from strop.errors import ConfigError, UnsafeFileError, listed, near

#: What may stand before the names of a model's tensors in a checkpoint, or be missing there.
PREFIXES = ('', 'module.', 'architecture.', 'architecture.module.', 'model.', 'teacher.', 'teacher.module.', 'student.')


def load_pretrained(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file of weights into a model that it fits whole; nothing is loaded if it does not.

    A prefix that all names share ('module.' of DDP, 'architecture.' of an algorithm) may be there or missing. Tensors that the
    model does not use are said.

    Args:
        model: The model; it keeps its dtypes.
        path: See `read_weights`.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If the file would have to be unpickled.
        ConfigError: If tensors are missing or of another shape; the message says which.

    >>> import tempfile
    >>> net = nn.Linear(2, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({'state_dict': {f'module.{name}': value for name, value in net.state_dict().items()}}, folder + '/a.pth')
    ...     load_pretrained(nn.Linear(2, 3), folder + '/a.pth')
    """
    say = partial(print_log, logger='current')
    model.load_state_dict(matching(model, read_weights(path), path, say=say), strict=False)


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read the tensors of a file by name; nothing is unpickled.

    Args:
        path: `.safetensors`, `.npz`, or a checkpoint of PyTorch, whose tensors may be alone or under 'state_dict', 'model' or
            'model_state_dict'; or the address of a checkpoint, which begins with http.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If it would have to be unpickled.
        ConfigError: If it holds no tensors by name.
    """
    address = str(path)
    if address.startswith(('http://', 'https://')):
        content = _load_url(address, map_location='cpu')
    elif address.endswith('.npz'):
        content = _arrays(Path(path).expanduser())
    else:
        content = load_checkpoint_file(path)
    for key in ('state_dict', 'model', 'model_state_dict'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ConfigError(
            f"{path} holds no weights: a checkpoint is a mapping of names to tensors, alone or under 'state_dict' or 'model'."
        )
    return tensors


def matching(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    prefixes: Sequence[str] = PREFIXES,
    buffers: bool = True,
    say: Callable[[str], Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Return those tensors of a file that a model has, by the model's names.

    Args:
        model: The model.
        weights: What the file holds.
        path: The file, for messages.
        prefixes: What may stand before the names in the file; the one with which most fit is taken.
        buffers: Whether those of the model must be there too, but for the counters of batch norms, which came to PyTorch later
            than many checkpoints.
        say: Called with a sentence if the file has tensors that the model does not use.

    Raises:
        ConfigError: If tensors are missing or of another shape; the message says which.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    given = own if buffers else dict(model.named_parameters())
    needed = [name for name in given if not name.endswith('num_batches_tracked')]
    best: dict[str, torch.Tensor] = {}
    for prefix in prefixes:
        found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if not best or sum(name in found for name in needed) > sum(name in best for name in needed):
            best = found
    absent = [name for name in needed if name not in best]
    other = [name for name in own if name in best and best[name].shape != own[name].shape]
    if absent or other:
        meant = near(absent[0], set(best) - set(own)) if absent else ''
        raise ConfigError(
            f'{path} is of another model than {type(model).__name__}: {_difference(own, best, absent, other)}.{meant}'
        )
    spare = sorted(set(best) - set(own))
    if spare and say is not None:
        say(f'{path} also has {listed(spare, 3)}, which {type(model).__name__} does not use.')
    return {name: value for name, value in best.items() if name in own}


def _arrays(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f'There is no file of weights at {path}.')
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name].copy()) for name in arrays.files}
    except Exception as error:  # a damaged archive, pickled objects, numbers that PyTorch does not have
        raise UnsafeFileError(f'{path} cannot be read as plain arrays: {error}') from None


def _difference(own: Mapping[str, Any], found: Mapping[str, Any], absent: list[str], other: list[str]) -> str:
    parts = []
    if absent:
        parts.append(f'it has no {listed(absent, 3)}')
    if other:
        name = other[0]
        parts.append(
            f'{name!r} has the shape {tuple(found[name].shape)} in it and {tuple(own[name].shape)} in the model '
            f'({len(other)} differ)'
        )
    spare = sorted(set(found) - set(own))
    if spare:
        parts.append(f'it has {listed(spare, 3)} instead')
    return '; '.join(parts)


__all__ = ['PREFIXES', 'load_pretrained', 'matching', 'read_weights']
