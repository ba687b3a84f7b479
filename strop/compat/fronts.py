"""What no class of Strop has: the base of mmcls's backbones, 0.x's build functions, registries under an old scope."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope, Registry
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn

from strop.engine.checkpoint import find_checkpoint
from strop.errors import ConfigError
from strop.registry import MODELS

# What code that asks an old package for its version is told: the last release whose names are answered for.
__version__ = '1.0.0'
version_info = (1, 0, 0)

VALID_PATH_TYPE = str | Path
FixMutable = dict[str, Any]
ValidFixMutable = str | Path | dict[str, Any]
SingleMutatorRandomSubnet = dict[Any, Any]
MultiMutatorsRandomSubnet = dict[str, dict[Any, Any]]
SupportRandomSubnet = dict[Any, Any]


class BaseBackbone(BaseModule):
    """Base of a backbone, for files written for mmcls: an MMEngine `BaseModule` that must have a `forward`.

    Args:
        init_cfg: MMEngine's initialization config.

    >>> class Stem(BaseBackbone):
    ...     def forward(self, x):
    ...         return (x,)
    >>> Stem().eval().training
    False
    """

    def __init__(self, init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None) -> None:
        super().__init__(init_cfg)

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """Return the feature maps of a batch of images."""

    def train(self, mode: bool = True) -> BaseBackbone:
        """Set the mode; override to keep frozen stages and norms in `eval`."""
        super().train(mode)
        return self


def build(cfg: Mapping[str, Any], default_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a module from its config: `build_algorithm`, `build_mutator`, `build_backbone` and their like.

    Args:
        cfg: `type` and arguments.
        default_args: Arguments used where `cfg` doesn't give them.

    Raises:
        ConfigError: If `cfg` is no mapping with a type.
        UnknownTypeError: If the type is not registered.

    >>> build({'type': 'torch.nn.Linear', 'in_features': 2}, {'out_features': 3})
    Linear(in_features=2, out_features=3, bias=True)
    """
    merged = {**(default_args or {}), **cfg} if isinstance(cfg, Mapping) else {}
    if 'type' not in merged:
        raise ConfigError(f"A config is a mapping with the key 'type', but got {cfg!r}.")
    return MODELS.build(merged)


def add_prefix(inputs: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return a mapping with `prefix.` before each name, as the losses of several subnets are logged.

    >>> add_prefix({'loss': 1.0}, 'max_subnet')
    {'max_subnet.loss': 1.0}
    """
    return {f'{prefix}.{name}': value for name, value in inputs.items()}


class TorchTensorEncoder(json.JSONEncoder):
    """Encoder for `json.dump(mutator.export(), file, cls=TorchTensorEncoder)`: tensors are written as lists.

    >>> json.dumps({'op': torch.tensor([0.5, 0.25])}, cls=TorchTensorEncoder)
    '{"op": [0.5, 0.25]}'
    """

    def default(self, o: Any) -> Any:
        """Return a tensor as a list."""
        return o.tolist() if isinstance(o, torch.Tensor) else super().default(o)


def reinitialize_optim_wrapper_count_status(
    model: nn.Module, optim_wrapper: Any, accumulative_counts: int, verbose: bool = True
) -> None:
    """Tell an optim wrapper that its loop's every iteration has `accumulative_counts` backwards.

    Args:
        model: The model.
        optim_wrapper: MMEngine's `OptimWrapper`, whose counts a training loop has set.
        accumulative_counts: Backwards in an iteration.
        verbose: Accepted for old code; nothing is logged.
    """
    counts = optim_wrapper._inner_count * accumulative_counts, optim_wrapper._max_counts * accumulative_counts
    if counts[1] >= 0:
        optim_wrapper.initialize_count_status(model, *counts)


def parse_version_info(version_str: str) -> tuple[int | str, ...]:
    """Return a version as a tuple, numbers as numbers.

    >>> parse_version_info('1.0.0rc2')
    (1, 0, 0, 'rc2')
    """
    parts: list[int | str] = []
    for part in version_str.split('.'):
        number, mark, release = part.partition('rc')
        parts += [int(number) if number.isdigit() else number, *([mark + release] if mark else [])]
    return tuple(parts)


def register_all_modules(init_default_scope: bool = True) -> None:
    """Import every room that registers classes, and make `mmrazor` the default scope, as training scripts ask.

    Args:
        init_default_scope: Whether to set the default scope, unless there is one.

    >>> register_all_modules(init_default_scope=False)
    """
    MODELS.import_from_location()
    if init_default_scope and DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance('mmrazor', scope_name='mmrazor')


def setup_multi_processes(cfg: Config | Mapping[str, Any]) -> None:
    """Set how processes start and how many threads they take, from a config's `env_cfg.mp_cfg` or its own keys.

    Args:
        cfg: With `mp_start_method`, `opencv_num_threads`, `omp_num_threads` or `mkl_num_threads`; on Windows nothing is forked.

    >>> setup_multi_processes({})
    """
    given = {**((cfg.get('env_cfg') or {}).get('mp_cfg') or {}), **cfg}
    set_multi_processing(given.get('mp_start_method', 'fork'), given.get('opencv_num_threads', 0))
    for name in ('omp_num_threads', 'mkl_num_threads'):
        if name in given:
            os.environ[name.upper()] = str(given[name])


def find_latest_checkpoint(path: str | os.PathLike[str], suffix: str = 'pth') -> str | None:
    """Return the checkpoint of a work directory from which training goes on, or None.

    Args:
        path: The folder.
        suffix: Only 'pth'.

    >>> find_latest_checkpoint('no/such/folder') is None
    True
    """
    if suffix != 'pth':
        raise ConfigError(f"Checkpoints end with '.pth', but the suffix asked for is {suffix!r}.")
    found = find_checkpoint(path)
    return None if found is None else str(found)


def answer_to_scope(scope: str, registries: ModuleType) -> None:
    """Let the registries of a module answer to one more scope, so that `type='scope.Name'` and `default_scope` find them.

    Args:
        scope: The old scope, for example 'mmcls'.
        registries: A module with MMEngine registries whose parents are MMEngine's roots.

    >>> import strop.registry
    >>> answer_to_scope('an_old_scope', strop.registry)
    >>> MODELS.get('an_old_scope.SPOS') is MODELS.get('SPOS')
    True
    """
    for registry in list(vars(registries).values()):
        if isinstance(registry, Registry) and registry.parent is not None and scope not in registry.parent.children:
            same = type(registry)(
                registry.name,
                build_func=registry.build_func,
                parent=registry.parent,
                scope=scope,
                locations=registry._locations,
            )
            same._module_dict = registry._module_dict
