"""One optimizer for each part of an algorithm: weights and architecture, generator and student, and the like."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.optim.optimizer import build_optim_wrapper
from torch import nn

from strop.engine.train_loop import unwrapped
from strop.errors import ConfigError, listed, near
from strop.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SeparateOptimWrapperConstructor:
    """Build an optimizer wrapper for each of the named child modules.

    Args:
        optim_wrapper_cfg: Name (or dotted path) of a child module -> the config of its optimizer wrapper, which may have a
            `paramwise_cfg` and a `constructor` of its own.
        paramwise_cfg: Not for all parts at once: None.

    Raises:
        ConfigError: If a config is none, `paramwise_cfg` is given, or a name is no child with parameters to train.

    >>> model = nn.ModuleDict({'architecture': nn.Linear(2, 2), 'mutator': nn.Linear(1, 1)})
    >>> optimizers = {'architecture': dict(optimizer=dict(type='SGD', lr=0.1)), 'mutator': dict(optimizer=dict(type='Adam'))}
    >>> wrappers = SeparateOptimWrapperConstructor(optimizers)(model)
    >>> [type(wrapper.optimizer).__name__ for wrapper in wrappers.values()]
    ['SGD', 'Adam']
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        if not isinstance(optim_wrapper_cfg, Mapping):
            raise ConfigError(f'`optim_wrapper_cfg` must map child modules to configs, but got {optim_wrapper_cfg!r}.')
        if paramwise_cfg is not None:
            raise ConfigError(
                '`paramwise_cfg` cannot be given for several optimizers at once: put it into the config of each part, as in '
                'architecture=dict(optimizer=..., paramwise_cfg=...).'
            )
        # A config that was written for one optimizer and overridden may still have its type.
        self.optim_wrapper_cfg = {name: cfg for name, cfg in optim_wrapper_cfg.items() if name != 'type'}
        for name, cfg in self.optim_wrapper_cfg.items():
            if not isinstance(cfg, Mapping) or 'optimizer' not in cfg:
                raise ConfigError(
                    f"The config of {name!r} needs an 'optimizer', as in dict(optimizer=dict(...)), but is {cfg!r}."
                )
        if not self.optim_wrapper_cfg:
            raise ConfigError('`optim_wrapper_cfg` names no child module, such as architecture=dict(optimizer=dict(...)).')

    def __call__(self, model: nn.Module) -> OptimWrapperDict:
        """Build the wrappers of a model, which may be in a distributed wrapper."""
        model = unwrapped(model)
        wrappers = {}
        trained: set[int] = set()
        for name, cfg in self.optim_wrapper_cfg.items():
            part = _child(model, name)
            parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
            if not parameters:
                raise ConfigError(f'The child {name!r} of {type(model).__name__} has no parameter to train; leave it out.')
            if trained & {id(parameter) for parameter in parameters}:
                raise ConfigError(f'Parameters of {name!r} are in another part as well; each belongs to one optimizer.')
            trained |= {id(parameter) for parameter in parameters}
            wrappers[name] = build_optim_wrapper(part, dict(cfg))
        left = [
            name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in trained
        ]
        if left:
            print_log(
                f'{len(left)} parameters are in none of the parts {listed(wrappers)} and are not trained: {listed(left)}.',
                logger='current',
                level=logging.WARNING,
            )
        return OptimWrapperDict(**wrappers)


def _child(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        children = [child for child, _ in model.named_children()]
        raise ConfigError(
            f'{type(model).__name__} has no child module {name!r}; it has {listed(children)}.{near(name, children)}'
        ) from None
