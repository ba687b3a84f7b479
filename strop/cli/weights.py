"""A checkpoint is compared with the model before it is used: a wrong one would otherwise only give bad numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from strop.cli.console import note
from strop.engine import load_checkpoint_file
from strop.engine.train_loop import unwrapped
from strop.errors import ConfigError, listed, near


def check_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Check that a checkpoint has every parameter of a model, in its shape.

    Raises:
        ConfigError: If parameters are missing or of another shape; the message names some.
        UnsafeFileError: If the file would have to be unpickled.
    """
    own: dict[str, Any] = dict(unwrapped(model).named_parameters())
    stored = weights_of(load_checkpoint_file(path), path)
    absent = [name for name in own if name not in stored]
    if absent:
        raise ConfigError(
            f'{path} is of another model: of its {len(stored)} tensors none is called {listed(absent, 3)}.'
            f'{near(absent[0], stored)} The file has {listed(stored, 3)}.'
        )
    other = [name for name in own if tuple(stored[name].shape) != tuple(own[name].shape)]
    if other:
        name = other[0]
        raise ConfigError(
            f'{path} is of another model: {name!r} has the shape {tuple(stored[name].shape)} in it, and {tuple(own[name].shape)} in '
            f'the model of the config ({len(other)} tensors differ).'
        )
    spare = sorted(set(stored) - set(unwrapped(model).state_dict()))
    if spare:
        note(f'{path} also has {listed(spare, 3)}, which the model does not use.')


def weights_of(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tensors of a checkpoint that was read, without the prefix `module.` of a distributed wrapper.

    Raises:
        ConfigError: If it holds none.
    """
    state = content.get('state_dict', content) if isinstance(content, Mapping) else None
    tensors = {str(name): value for name, value in (state or {}).items() if hasattr(value, 'shape')}
    if not tensors:
        raise ConfigError(f"{path} holds no weights: a checkpoint is a mapping of names to tensors, alone or under 'state_dict'.")
    return {name.removeprefix('module.') if name.startswith('module.') else name: value for name, value in tensors.items()}
