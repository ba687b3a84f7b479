"""What configs say of channel units: their types and arguments, files of them, and the words of MMRazor's first 1.x release."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from strop.errors import ComponentTypeError, ConfigError, SubnetError, listed, near
from strop.graph import ChannelGraph
from strop.mutables import MutableChannelUnit
from strop.mutables.subnet_file import read_document
from strop.registry import MODELS

#: How models are traced where the config doesn't say it.
PARSE = dict(type='ChannelAnalyzer', demo_input=(1, 3, 224, 224))

_UNIT_NAME = re.compile(r'_\((\d+), (\d+)\)_\d+$')
#: Types of `mutable_cfg` -> the units that do their work.
_FIRST_TYPES = {'OneShotMutableChannel': 'OneShotMutableChannelUnit', 'SlimmableMutableChannel': 'SlimmableChannelUnit'}
#: Endings of names in the subnet files of that release: what leaves a layer, and what enters it, which follows from the former.
_LEAVING = re.compile(r'\.(mutable_)?(out_channels|out_features|num_features)(_mutable)?$')
_ENTERING = re.compile(r'\.(mutable_)?(in_channels|in_features)(_mutable)?$')


def unit_config(given: Any, default: Mapping[str, Any]) -> tuple[type[MutableChannelUnit], dict[str, Any]]:
    """Return the class of the units, and what a mutator's `channel_unit_cfg` says as a config of three keys.

    Args:
        given: A name, a class, a config, or None.
        default: The config where `given` says nothing.

    Raises:
        ConfigError: If a part doesn't fit, or the file of the units cannot be read.
        ComponentTypeError: If the type is none of units.

    >>> unit_config(None, dict(type='SequentialMutableChannelUnit'))[1]
    {'type': 'SequentialMutableChannelUnit', 'default_args': {}, 'units': {}}
    """
    config = dict(given) if isinstance(given, Mapping) else dict(default) if given is None else {'type': given}
    unknown = [name for name in config if name not in ('type', '_scope_', 'default_args', 'units')]
    if unknown:
        raise ConfigError(
            f"`channel_unit_cfg` has the keys 'type', 'default_args' and 'units', but got {unknown[0]!r}."
            f'{near(unknown[0], ("default_args", "units"))} Arguments of the units belong into `default_args`.'
        )
    unit = config.get('type', default['type'])
    kind = MODELS.get(unit) if isinstance(unit, str) else unit
    if not (isinstance(kind, type) and issubclass(kind, MutableChannelUnit)):
        raise ComponentTypeError(f'The units must be of a type of MutableChannelUnit, but got {unit!r}.')
    arguments, units = config.get('default_args') or {}, config.get('units') or {}
    if not isinstance(arguments, Mapping):
        raise ConfigError(f'`default_args` of channel_unit_cfg is a dict of arguments of every unit, but got {arguments!r}.')
    return kind, {
        'type': unit if isinstance(unit, str) else unit.__name__,
        'default_args': dict(arguments),
        'units': units_of(units),
    }


def units_of(given: Any) -> dict[str, Any]:
    """Return unit -> its settings, from the dict itself or from a file of it.

    Args:
        given: A dict, or the path of a JSON or YAML file.

    Raises:
        ConfigError: If there is no such file, or it holds something else.

    >>> units_of({'stem': 8})
    {'stem': 8}
    """
    file = isinstance(given, (str, os.PathLike))
    content = _document(given, '`units` of channel_unit_cfg') if file else given
    if not isinstance(content, Mapping):
        where = f'{os.fspath(given)} holds a {type(content).__name__}' if file else f'got {given!r}'
        raise ConfigError(
            '`units` of channel_unit_cfg is a dict, or a JSON or YAML file of one: unit -> dict(init_args=..., choice=...) or '
            f'a width. But {where}.'
        )
    for name, value in content.items():
        arguments = value.get('init_args', {}) if isinstance(value, Mapping) else {}
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ConfigError(
                '`units` of channel_unit_cfg: names are strings, and `init_args` is a dict of arguments, but got '
                f'{name!r}: {value!r}.'
            )
    return dict(content)


def parse_config(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a mutator's `parse_cfg` as a config of a `ChannelAnalyzer`.

    Raises:
        ConfigError: If it is of another type or has keys of its own.

    >>> parse_config(dict(demo_input=(2, 4)))
    {'type': 'ChannelAnalyzer', 'demo_input': (2, 4)}
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"`parse_cfg` is a dict such as dict(type='ChannelAnalyzer', demo_input=...), but got {given!r}.")
    config = {**PARSE, **(given or {})}
    kind = str(config['type']).split('.')[-1]
    if kind == 'BackwardTracer':  # as the first releases of MMRazor 1.x had it
        loss = config.pop('loss_calculator', None)
        shape = loss.get('input_shape') if isinstance(loss, Mapping) else None
        config.update(type=PARSE['type'], tracer_type=kind, **({'demo_input': shape} if shape else {}))
    elif kind != 'ChannelAnalyzer':
        raise ConfigError(
            f"`parse_cfg` must be of type 'ChannelAnalyzer', but got {kind!r}: the model itself is traced, whatever its "
            'layers are. Widths of a config belong into `channel_unit_cfg`.'
        )
    unknown = [name for name in config if name not in ('type', '_scope_', 'demo_input', 'tracer_type')]
    if unknown:
        raise ConfigError(f"`parse_cfg` has the keys 'type' and 'demo_input', but got {unknown[0]!r}.")
    if config.pop('tracer_type', None) is not None:
        print_log('`tracer_type` makes no difference: models are traced by running them once.', logger='current')
    config.pop('_scope_', None)
    return config


def unit_config_of_first_release(mutable_cfg: Any) -> dict[str, Any]:
    """Return the `channel_unit_cfg` that a `mutable_cfg` of MMRazor's first 1.x release means.

    Args:
        mutable_cfg: `dict(type='OneShotMutableChannel', candidate_choices=..., candidate_mode=...)`, or of type
            'SlimmableMutableChannel'.

    Raises:
        ConfigError: If it is something else.

    >>> unit_config_of_first_release(dict(type='OneShotMutableChannel', candidate_choices=[0.5, 1.0], candidate_mode='ratio'))
    {'type': 'OneShotMutableChannelUnit', 'default_args': {'candidate_choices': [0.5, 1.0], 'choice_mode': 'ratio'}}
    """
    config = dict(mutable_cfg) if isinstance(mutable_cfg, Mapping) else {}
    kind = str(config.pop('type', '')).rpartition('.')[2]
    unknown = [name for name in config if name not in ('_scope_', 'candidate_choices', 'candidate_mode', 'num_channels')]
    if kind not in _FIRST_TYPES or unknown:
        raise ConfigError(
            "`mutable_cfg` of a channel mutator is dict(type='OneShotMutableChannel' or 'SlimmableMutableChannel', "
            f'candidate_choices=..., candidate_mode=...), but got {mutable_cfg!r}. Today it is channel_unit_cfg=dict(type='
            "'OneShotMutableChannelUnit', default_args=dict(candidate_choices=..., choice_mode=...))."
        )
    names = {'candidate_choices': 'candidate_choices', 'candidate_mode': 'choice_mode'}
    return {
        'type': _FIRST_TYPES[kind],
        'default_args': {names[name]: value for name, value in config.items() if name in names},
    }


def read_channel_configs(paths: Any) -> list[dict[str, Any]]:
    """Return the contents of the files that `channel_cfg_paths` names, one for each network.

    Args:
        paths: A file of `layer: {current_choice: width, origin_channels: width}`, or a list of them.

    Raises:
        ConfigError: If a file is missing or holds something else.
    """
    several = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    if not isinstance(several, Sequence) or not several or not all(isinstance(p, (str, os.PathLike)) for p in several):
        raise ConfigError(f'`channel_cfg_paths` is a file of widths, or a list of such files, but got {paths!r}.')
    found = []
    for path in several:
        content = _document(path, '`channel_cfg_paths`')
        if not isinstance(content, Mapping) or not content:
            raise ConfigError(f'{os.fspath(path)} holds no widths: they are {_FORM}.')
        found.append(dict(content))
    return found


_FORM = '`layer.out_channels_mutable: {current_choice: 8, origin_channels: 16}` for each layer'


def widths_of_networks(graph: ChannelGraph, contents: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return unit -> arguments of its `SlimmableChannelUnit`, from the widths of the layers of each network.

    Args:
        graph: Of the model.
        contents: What the files of `channel_cfg_paths` hold.

    Raises:
        ConfigError: If the files disagree, or two layers of one unit have different widths.
        GraphError: If a layer is none of the model, or may not vary.
    """
    names = list(dict.fromkeys(name for content in contents for name in content))
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if _ENTERING.search(name):
            continue  # it follows from what leaves the layers before
        entries = [content.get(name) for content in contents]
        if not all(isinstance(entry, Mapping) and {'current_choice', 'origin_channels'} <= set(entry) for entry in entries):
            raise ConfigError(f'{name!r} is not in each file of `channel_cfg_paths` as {_FORM}.')
        whole = {entry['origin_channels'] for entry in entries}  # type: ignore[index]
        widths = [entry['current_choice'] for entry in entries]  # type: ignore[index]
        if len(whole) > 1:
            raise ConfigError(f'The files are of different models: {name!r} has {listed(whole)} channels.')
        layer, settings = _LEAVING.sub('', name), {'num_channels': whole.pop(), 'candidate_choices': widths}
        if kept_whole(graph, layer, settings):
            continue
        unit = unit_of(graph, layer)
        if found.setdefault(unit, settings) != settings:
            raise ConfigError(
                f'{name!r} has the widths {widths}, but it hangs together with {unit!r}, which has '
                f'{found[unit]["candidate_choices"]}.'
            )
    return {unit: {**settings, 'choice_mode': 'number'} for unit, settings in found.items()}


def unit_of(graph: ChannelGraph, name: str) -> str:
    """Return the unit that a name of a config means: our own, a coupled layer's, or MMRazor's `module_(start, end)_channels`.

    Raises:
        GraphError: If there is none, with the reason where its channels may not vary.
    """
    if name in graph.units:
        return name
    module = _module(name)
    if module in graph.units:
        return module
    outputs = f'{module}.weight', graph.output_axis(f'{module}.weight')
    found = [unit.name for unit in graph for place in unit.placements if (place.tensor, place.axis) == outputs]
    if len(found) == 1:
        return found[0]
    return graph.unit(module).name  # raises, with the reason where the axis is frozen


def kept_whole(graph: ChannelGraph, name: str, settings: Any) -> bool:
    """Say whether a name means channels that may not vary, and the settings say that they do not.

    MMRazor's configs list the outputs of a network too, always at full width.
    """
    module = _module(name)
    if name in graph.units or module in graph.units:
        return False
    outputs = {(f'{module}.weight', graph.output_axis(f'{module}.weight')), (f'{module}.bias', 0)}
    sizes = [axis.size for axis in graph.frozen if (axis.tensor, axis.axis) in outputs]
    settings = settings if isinstance(settings, Mapping) else {'choice': settings}
    arguments = {**settings, **settings.get('init_args', {})}
    said = [arguments['choice']] if arguments.get('choice') is not None else []
    said += list(arguments.get('candidate_choices') or ())
    ratios = arguments.get('choice_mode') == 'ratio'
    return bool(said) and any(all(choice == (1 if ratios else size) for choice in said) for size in sizes)


def _module(name: str) -> str:
    return _UNIT_NAME.sub('', name).removeprefix('architecture.')


def _document(path: str | os.PathLike[str], purpose: str) -> Any:
    file = os.fspath(path)
    if file.startswith(('http://', 'https://')):
        raise ConfigError(f'{purpose}: nothing is downloaded. Fetch {file} and give the path of the file.')
    if not Path(file).is_file():
        folder = Path(file).parent
        known = [other.name for other in folder.iterdir()] if folder.is_dir() else []
        raise ConfigError(f'{purpose}: there is no file {file!r}.{near(Path(file).name, known)}')
    try:
        return read_document(file, 'a config of channels')
    except SubnetError as error:
        raise ConfigError(f'{purpose}: {error}') from None
