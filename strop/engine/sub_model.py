"""`type='sub_model'`: a supernet's config and a subnet in, the plain model of that subnet out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from strop.errors import ConfigError, UnknownKeyError, listed, near
from strop.mutables import Subnet, bind, choices_of, fix, read_document
from strop.mutators import BaseMutator
from strop.registry import MODELS

MODES = ('mutable', 'mutator')


@MODELS.register_module()
def sub_model(
    cfg: Mapping[str, Any] | nn.Module,
    fix_subnet: str | os.PathLike[str] | Mapping[str, Any],
    mode: str = 'mutable',
    prefix: str = '',
    extra_prefix: str = '',
    init_weight_from_supernet: bool = False,
    init_cfg: Mapping[str, Any] | None = None,
    mutator: BaseMutator | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a supernet and return the subnet of it as a plain model.

    Args:
        cfg: Config of the supernet, or the supernet (which is then changed in place).
        fix_subnet: A subnet file or mapping, in any form that `load_subnet` reads.
        mode: 'mutable' or 'mutator', MMRazor's two ways of saying the same.
        prefix: Taken off the model's keys before they are looked up in `fix_subnet`.
        extra_prefix: Put before a key that `fix_subnet` lacks: 'backbone.' if the file is of a whole classifier and
            `cfg` is its backbone alone.
        init_weight_from_supernet: Initialize the supernet (by `init_cfg`, a checkpoint of the supernet, say) before
            the subnet is taken out of it, so that its weights are inherited.
        init_cfg: Initialization config of the supernet or, without `init_weight_from_supernet`, of the subnet.
        mutator: A mutator of channels or its config, where the subnet has widths: the one that it was searched or pruned
            with. (Which channels `L1MutableChannelUnit`s keep follows from the weights that the model has here.)
        kwargs: Further arguments of the model's config, such as `data_preprocessor`.

    Raises:
        ConfigError: If `mode` is unknown.
        UnknownKeyError: If a decision of the model is not answered by `fix_subnet`.

    >>> cfg = dict(type='OneShotMutableOP', candidates=dict(relu=dict(type='torch.nn.ReLU'), id=dict(type='torch.nn.Identity')))
    >>> sub_model(cfg, {'oneshotmutableop': 'relu'})
    ReLU()
    """
    if mode not in MODES:
        raise ConfigError(f'`mode` must be one of {listed(MODES)}, but got {mode!r}.{near(mode, MODES)}')
    model: Any = cfg if isinstance(cfg, nn.Module) else MODELS.build({**cfg, **kwargs})
    if init_cfg is not None:
        model.init_cfg = dict(init_cfg)
    if init_weight_from_supernet:
        if not hasattr(model, 'init_weights'):
            raise ConfigError(
                f'`init_weight_from_supernet` needs an MMEngine model with init_weights(), not a {type(model).__name__}.'
            )
        model.init_weights()
    if mutator is not None:
        channels: Any = MODELS.build(dict(mutator)) if isinstance(mutator, Mapping) else mutator
        channels.prepare_from_supernet(model)
        channels.set_subnet(_matched(channels.space, fix_subnet, prefix, extra_prefix))
        channels.release()
        return fix(model)
    binding = bind(model)
    binding.apply(binding.space.subnet(_matched(binding.space, fix_subnet, prefix, extra_prefix)))
    return fix(model)


def _matched(space: Any, fix_subnet: Any, prefix: str, extra_prefix: str) -> Mapping[str, Any]:
    if isinstance(fix_subnet, (str, os.PathLike)):
        choices = choices_of(read_document(fix_subnet, 'a subnet file'))
    else:
        choices = dict(fix_subnet) if isinstance(fix_subnet, Subnet) else choices_of(fix_subnet)
    if not prefix and not extra_prefix:
        return choices
    matched: dict[str, Any] = {}
    for key in space:
        names = [key.removeprefix(prefix), extra_prefix + key.removeprefix(prefix)]
        name = next((name for name in names if name in choices), None)
        if name is not None:
            matched[key] = choices[name]
        elif key not in space.conditions:
            raise UnknownKeyError(
                f'The subnet has no choice for {key!r} (looked for as {listed(names)}).{near(names[-1], choices)} It has '
                f'{listed(choices)}.'
            )
    return matched
