"""Weights that must fit a model whole: what a teacher starts from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from strop.engine.checkpoint import _load_url, load_checkpoint_file
from strop.errors import ConfigError, listed, near

#: What may stand before the names of a model's tensors in a checkpoint, or be missing there.
_PREFIXES = ('', 'module.', 'architecture.', 'architecture.module.', 'model.', 'teacher.', 'teacher.module.', 'student.')


def load_pretrained(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint into a model that it fits whole; nothing is loaded if it does not.

    The tensors may be alone, or under 'state_dict', 'model' or 'model_state_dict'; a prefix that all share ('module.' of DDP,
    'architecture.' of an algorithm) may be there or missing. Tensors that the model does not use are said.

    Args:
        model: The model.
        path: A file, or an address that begins with http.

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
    address = str(path)
    content = (
        _load_url(address, map_location='cpu') if address.startswith(('http://', 'https://')) else load_checkpoint_file(path)
    )
    stored = _tensors(content, path)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    # The counter of batches came to PyTorch's batch norms later than many checkpoints.
    needed = [name for name in own if not name.endswith('num_batches_tracked')]
    best: dict[str, Any] = {}
    for prefix in _PREFIXES:
        found = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        if not best or sum(name in found for name in needed) > sum(name in best for name in needed):
            best = found
    absent = [name for name in needed if name not in best]
    other = [name for name in needed if name in best and best[name].shape != own[name].shape]
    if absent or other:
        raise ConfigError(f'{path} is of another model than {type(model).__name__}: {_difference(own, best, absent, other)}.')
    spare = sorted(set(best) - set(own))
    if spare:
        print_log(f'{path} also has {listed(spare, 3)}, which {type(model).__name__} does not use.', logger='current')
    model.load_state_dict({name: value for name, value in best.items() if name in own}, strict=False)


def _tensors(content: Any, path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    state = content
    for key in ('state_dict', 'model', 'model_state_dict'):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ConfigError(f'{Path(path).name} holds no weights: a checkpoint is a mapping of names to tensors.')
    return tensors


def _difference(own: Mapping[str, Any], found: Mapping[str, Any], absent: list[str], other: list[str]) -> str:
    parts = []
    if absent:
        parts.append(f'it has no {listed(absent, 3)}{near(absent[0], set(found) - set(own))}')
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
