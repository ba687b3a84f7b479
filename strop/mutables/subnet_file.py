"""Subnets as files: JSON or YAML with a version and a schema, and the forms that older toolkits wrote."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Hashable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from strop.errors import ComponentTypeError, SubnetError
from strop.files import atomic_write, read_text
from strop.mutables.space import Space
from strop.mutables.subnet import VERSION, Subnet


@cache
def subnet_schema() -> dict[str, Any]:
    """Return the JSON Schema of subnet files.

    >>> subnet_schema()['title']
    'Strop subnet'
    """
    return json.loads(files('strop.mutables').joinpath('subnet.schema.json').read_text(encoding='utf-8'))


def dump_subnet(subnet: Subnet, path: str | os.PathLike[str]) -> None:
    """Write a subnet; the suffix `.yaml` or `.yml` gives YAML, anything else JSON."""
    if not isinstance(subnet, Subnet):
        raise ComponentTypeError(
            f'A Subnet is written, which Space.subnet makes of choices, but got a {type(subnet).__name__}.'
        )
    content = subnet.to_dict()
    if Path(path).suffix.lower() in ('.yaml', '.yml'):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    else:
        text = json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    atomic_write(path, text)


def load_subnet(path: str | os.PathLike[str], space: Space) -> Subnet:
    """Read a subnet file and validate it against `space`.

    Reads Strop's own files; NNI's fixed architectures (`{"op": "conv3x3", "in": [0, 2]}`, names, indices,
    booleans); MMRazor's exported subnets (`key: {chosen: name, meta: ...}` or `key: name`, with or without `modules:`
    above them and `architecture.` before the keys).

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeFileError: If the file is a pickle or otherwise not text.
        SubnetError: If it is not a subnet, or not one of this space; the message starts with the path.
    """
    content = read_document(path, 'a subnet file')
    try:
        return space.subnet(choices_of(content, {*space, *space.paths}))
    except SubnetError as error:
        raise type(error)(f'{path}: {error}') from None


def choices_of(content: Any, known: Container[str] = ()) -> dict[str, Any]:
    """Return key -> choice from the parsed content of a subnet file of any accepted form.

    Args:
        content: The mapping that the file holds.
        known: Keys of the space. Others lose the prefix `architecture.`, which MMRazor's algorithms put before theirs.

    >>> choices_of({'backbone.layers.0': {'chosen': 'shuffle_3x3', 'meta': {}}})
    {'backbone.layers.0': 'shuffle_3x3'}
    """
    if not isinstance(content, Mapping):
        raise SubnetError(f'A subnet file holds a mapping of keys to choices, but this one holds a {type(content).__name__}.')
    if content.get('strop') is not None:
        check_schema(content)
        return dict(content['choices'])
    parts: list[Any] = [content.get('modules'), content.get('channels') or {}]
    if set(content) <= {'modules', 'channels'} and all(isinstance(part, Mapping) and 'chosen' not in part for part in parts):
        # MMRazor's first 1.x releases kept the decisions of operations and of channels apart.
        content = {**parts[0], **parts[1]}
    choices: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise SubnetError(f'The keys of a subnet file are strings, but got {key!r}.')
        if isinstance(value, Mapping) and 'chosen' in value:
            value = value['chosen']
        name = key if key in known else key.removeprefix('architecture.')
        if name in choices:
            raise SubnetError(f'The decision {name!r} is answered twice, the second time as {key!r}.')
        choices[name] = value
    return choices


def check_schema(content: Mapping[str, Any]) -> None:
    """Validate the content of one of Strop's own subnet files.

    Raises:
        SubnetError: If the version is newer than this package reads, or the content breaks the schema.
    """
    import jsonschema

    version = content.get('version')
    if isinstance(version, int) and version > VERSION:
        raise SubnetError(f'The file has version {version}; this Strop reads up to version {VERSION}. Upgrade Strop.')
    errors = sorted(jsonschema.Draft202012Validator(subnet_schema()).iter_errors(dict(content)), key=lambda e: list(e.path))
    if errors:
        place = '/'.join(map(str, errors[0].path)) or 'the file'
        raise SubnetError(f'{place} breaks the schema of subnet files: {errors[0].message}')


def read_document(path: str | os.PathLike[str], purpose: str, exponents: bool = False) -> Any:
    """Parse a JSON or YAML file safely: nothing is executed, and a repeated key is an error.

    Args:
        path: The file.
        purpose: What it should be, for messages.
        exponents: Whether 1e-3 is a number in YAML too. In files of subnets it is text, since choices may have such names.

    Raises:
        SubnetError: If it is neither, or a mapping in it has a key twice.
    """
    text = read_text(path, purpose)
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if Path(path).suffix.lower() == '.json':
            raise SubnetError(f'{path} is not JSON: {error}.') from None
    except SubnetError as error:
        raise SubnetError(f'{path}: {error}') from None
    except RecursionError:
        raise SubnetError(f'{path} is not {purpose}: it is nested too deeply.') from None
    try:
        return yaml.load(text, Loader=_NumbersLoader if exponents else _UniqueKeyLoader)
    except SubnetError as error:
        raise SubnetError(f'{path}: {error}') from None
    except yaml.YAMLError as error:
        raise SubnetError(f'{path} is not {purpose}: it is neither JSON nor plain YAML ({error}).') from None
    except RecursionError:
        raise SubnetError(f'{path} is not {purpose}: it is nested too deeply.') from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise SubnetError(f'The key {key!r} stands twice in one mapping.')
        result[key] = value
    return result


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself would take the last of two equal keys silently."""


class _NumbersLoader(_UniqueKeyLoader):
    """The same, for numbers as YAML 1.2 has them; PyYAML follows 1.1, where 1e-3 is text: an exponent needs a point before."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
    for position, key in enumerate(keys):
        if not isinstance(key, Hashable):
            raise SubnetError(f'The keys of a mapping are strings, but got {key!r}.')
        if key in keys[:position]:
            raise SubnetError(f'The key {key!r} stands twice in one mapping.')
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value)}  # type: ignore[no-untyped-call]


_NumbersLoader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    'tag:yaml.org,2002:float', re.compile(r'^[-+]?[0-9]+[eE][-+]?[0-9]+$'), list('-+0123456789')
)
_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
