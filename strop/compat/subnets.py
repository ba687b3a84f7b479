"""MMRazor's two functions between a supernet and a subnet file, `export_fix_subnet` and `load_fix_subnet`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from strop.engine import sub_model
from strop.errors import ConfigError, listed, near
from strop.mutables import LayerChoice, bind, current_subnet, extract

EXPORT_MODES = ('mutable', 'mutator')


class DumpChosen(NamedTuple):
    """One answer of an exported subnet: what was chosen, and what there was to choose from.

    >>> DumpChosen('shuffle_3x3').chosen
    'shuffle_3x3'
    """

    chosen: Any
    meta: dict[str, Any] | None = None


def export_fix_subnet(
    model: nn.Module, export_subnet_mode: str = 'mutable', slice_weight: bool = False, export_channel: bool = False
) -> tuple[dict[str, DumpChosen], nn.Module | None]:
    """Return the current decisions of a model and, if asked for, the plain model of them.

    Args:
        model: A model with mutables, each of them decided.
        export_subnet_mode: 'mutable' or 'mutator', MMRazor's two ways of saying the same.
        slice_weight: Also return a copy of the model with every decision made; `model` itself is not changed.
        export_channel: Accepted: widths are decisions like any other and always among them.

    Raises:
        ConfigError: If the mode is unknown.
        NotDecidedError: If a decision that is needed was never made.

    >>> model = nn.Sequential(LayerChoice({'relu': nn.ReLU(), 'id': nn.Identity()}, key='act'))
    >>> model[0].decide('id')
    >>> export_fix_subnet(model, slice_weight=True)
    ({'act': DumpChosen(chosen='id', meta={'all_choices': ['relu', 'id']})}, Sequential(
      (0): Identity()
    ))
    """
    if export_subnet_mode not in EXPORT_MODES:
        raise ConfigError(
            f'`export_subnet_mode` must be one of {listed(EXPORT_MODES)}, but got {export_subnet_mode!r}.'
            f'{near(export_subnet_mode, EXPORT_MODES)}'
        )
    mutables = bind(model).by_key
    subnet = {key: DumpChosen(choice, _meta(mutables[key][0])) for key, choice in current_subnet(model).items()}
    return subnet, extract(model) if slice_weight else None


def _meta(mutable: Any) -> dict[str, Any]:
    labels = list(mutable.names) if isinstance(mutable, LayerChoice) else getattr(mutable.domain, 'labels', None)
    return {} if labels is None else {'all_choices': list(labels)}


def convert_fix_subnet(fix_subnet: Mapping[str, DumpChosen]) -> dict[str, dict[str, Any]]:
    """Return an exported subnet as plain mappings, for JSON and YAML.

    >>> convert_fix_subnet({'act': DumpChosen('id', {'all_choices': ['relu', 'id']})})
    {'act': {'chosen': 'id'}}
    """
    return {key: {'chosen': getattr(value, 'chosen', value)} for key, value in fix_subnet.items()}


def load_fix_subnet(
    model: nn.Module,
    subnet_dict: str | os.PathLike[str] | Mapping[str, Any],
    load_subnet_mode: str = 'mutable',
    prefix: str = '',
    extra_prefix: str = '',
) -> None:
    """Make every decision of a model, in place: what is left of it is a plain model.

    Args:
        model: A model with mutables; weights are kept.
        subnet_dict: A subnet file, or its content, in any form that `load_subnet` reads, or what `export_fix_subnet` returns.
        load_subnet_mode: 'mutable' or 'mutator', as in `sub_model`.
        prefix: Taken off the model's keys before they are looked up.
        extra_prefix: Put before keys that are not found.

    Raises:
        ConfigError: If `model` is itself a choice, which cannot be replaced in place, or the mode is unknown.
        SubnetError: If the subnet does not fit the model.

    >>> model = nn.Sequential(LayerChoice({'relu': nn.ReLU(), 'id': nn.Identity()}, key='act'))
    >>> load_fix_subnet(model, {'act': {'chosen': 'id'}})
    >>> model
    Sequential(
      (0): Identity()
    )
    """
    if isinstance(subnet_dict, Mapping) and any(isinstance(value, DumpChosen) for value in subnet_dict.values()):
        subnet_dict = convert_fix_subnet(subnet_dict)
    if isinstance(model, LayerChoice):
        raise ConfigError('The model itself is a choice, which cannot be replaced in place; use strop.extract(model, subnet).')
    sub_model(model, subnet_dict, mode=load_subnet_mode, prefix=prefix, extra_prefix=extra_prefix)
