"""Search spaces as NNI's JSON: key -> `_type` and `_value`; and what a tuner proposes for them, key -> value.

Decisions of a model and ordinary hyper-parameters stand side by side in one file and make one `Space`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Union
from warnings import warn

import numpy as np
from torch import nn

from strop.errors import SpaceError, SubnetError, UnknownKeyError, listed, near
from strop.files import atomic_write
from strop.mutables.binding import bind
from strop.mutables.choice import InputChoice, LayerChoice
from strop.mutables.domain import AnyOf, Choice, Domain, KOf, Label, OneOf, plain
from strop.mutables.numeric import LAWS, Numeric
from strop.mutables.space import Condition, Guard, Space, chosen
from strop.mutables.subnet import Subnet
from strop.mutables.subnet_file import read_document

LAYER, INPUT, VALUE = 'layer_choice', 'input_choice', 'choice'
TYPES = (LAYER, INPUT, VALUE, *LAWS)

Entry = Mapping[str, Any]
SpaceLike = Union['SearchSpaceFile', Space, nn.Module, str, os.PathLike[str], Mapping[str, Entry]]


class SearchSpaceFile:
    """A search space in NNI's form, the `Space` that it means, and the way between their answers.

    Args:
        entries: key -> `{'_type': ..., '_value': ...}`. Types are `layer_choice` (names of the candidates), `input_choice`
            (`{'candidates': [...], 'n_chosen': number or None}`), `choice` (values; values that are mappings with `_name`
            bring entries of their own, which matter where that value is taken) and the laws of `Numeric`.
        space: The space that the entries mean; by default it is built from them. Give a model's own, which also knows
            which decisions depend on others: NNI's form cannot say so.

    Raises:
        SpaceError: If an entry breaks a rule; the message starts with its key.

    >>> file = SearchSpaceFile(
    ...     {
    ...         'op': {'_type': 'layer_choice', '_value': ['conv3x3', 'skip']},
    ...         'in': {'_type': 'input_choice', '_value': {'candidates': ['', '', ''], 'n_chosen': 2}},
    ...         'lr': {'_type': 'loguniform', '_value': [0.0001, 0.1]},
    ...     }
    ... )
    >>> subnet = file.subnet({'op': {'_value': 'skip', '_idx': 1}, 'in': {'_value': ['', ''], '_idx': [0, 2]}, 'lr': 0.01})
    >>> subnet
    Subnet(op='skip', in=[0, 2], lr=0.01)
    >>> file.parameters(subnet)['in']
    {'_value': ['', ''], '_idx': [0, 2]}
    """

    def __init__(self, entries: Mapping[str, Entry], space: Space | None = None) -> None:
        if not isinstance(entries, Mapping):
            raise SpaceError(f'A search space is a mapping of keys to entries, but got a {type(entries).__name__}.')
        self.entries = {key: dict(entry) if isinstance(entry, Mapping) else entry for key, entry in entries.items()}
        self._flat: dict[str, Entry] = {}
        self._inner: dict[str, dict[str, dict[str, str]]] = {}
        domains: dict[str, Domain] = {}
        conditions: dict[str, tuple[Condition, ...]] = {}
        for key, entry in self.entries.items():
            self._add(key, entry, domains, conditions)
        self.space = Space(domains, conditions) if space is None else space

    @classmethod
    def of(cls, source: SpaceLike) -> SearchSpaceFile:
        """Return the file of a model, of a `Space`, of entries, or the one at a path.

        Raises:
            SpaceError: If the source has no decision, or is no search space.
            FileNotFoundError: If there is no such file.

        >>> SearchSpaceFile.of(nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))).to_dict()
        {'act': {'_type': 'layer_choice', '_value': ['0', '1']}}
        """
        if isinstance(source, SearchSpaceFile):
            return source
        if isinstance(source, Space):
            return cls({key: _entry(domain) for key, domain in source.items()}, source)
        if isinstance(source, nn.Module):
            return cls._of_model(source)
        if isinstance(source, (str, os.PathLike)):
            try:
                content = read_document(source, 'a search space')
                return cls(content)
            except SpaceError as error:
                raise SpaceError(f'{os.fspath(source)}: {error}') from None
            except SubnetError as error:
                raise SpaceError(str(error)) from None
        return cls(source)

    @classmethod
    def _of_model(cls, model: nn.Module) -> SearchSpaceFile:
        binding = bind(model)
        if not binding.space:
            raise SpaceError(
                f'{type(model).__name__} has nothing to choose: no LayerChoice, InputChoice or ValueChoice is a registered '
                'sub-module of it.'
            )
        entries: dict[str, Entry] = {}
        for key, mutables in binding.by_key.items():
            mutable = mutables[0]
            if isinstance(mutable, LayerChoice) and isinstance(mutable.domain, KOf):
                value = {'candidates': list(mutable.names), 'n_chosen': mutable.domain.k}
                entries[key] = {'_type': INPUT, '_value': value}
            elif isinstance(mutable, LayerChoice):
                entries[key] = {'_type': LAYER, '_value': list(mutable.names)}
            elif isinstance(mutable, InputChoice):
                value = {'candidates': list(mutable.choose_from), 'n_chosen': mutable.n_chosen}
                entries[key] = {'_type': INPUT, '_value': value}
            else:
                entries[key] = _entry(mutable.domain)
        return cls(entries, binding.space)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries, as a tuner gets them in `update_search_space`."""
        return json.loads(json.dumps(self.entries))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the entries as JSON, sorted by key."""
        atomic_write(path, json.dumps(self.entries, indent=2, sort_keys=True, ensure_ascii=False) + '\n')

    def merged(self, other: SearchSpaceFile) -> SearchSpaceFile:
        """Return this space with the entries of another one, such as hyper-parameters beside the choices of a model.

        Raises:
            SpaceError: If both have a key.
        """
        both = [key for key in other.entries if key in self.entries]
        if both:
            raise SpaceError(f'{listed(both)} are in both search spaces; a key names one decision.')
        domains = {**self.space, **other.space}
        conditions = {**self.space.conditions, **other.space.conditions}
        paths = {**self.space.paths, **other.space.paths}
        return SearchSpaceFile({**self.entries, **other.entries}, Space(domains, conditions, paths=paths))

    # -- answers -----------------------------------------------------------------------------

    def parameters(self, subnet: Subnet, complete: bool = False) -> dict[str, Any]:
        """Return a subnet as a tuner's parameters: the form that `generate_parameters` returns.

        Args:
            subnet: A subnet of `space`.
            complete: Also give the first choice of decisions that are inactive. NNI's own classes expect every key.
        """
        choices = dict(subnet.choices)
        if complete:
            choices.update({key: domain.first() for key, domain in self.space.items() if key not in choices})
        return {key: self._parameter(key, choices[key], choices) for key in self.entries if key in choices}

    def subnet(self, parameters: Mapping[str, Any]) -> Subnet:
        """Read what a tuner proposes.

        Reads the form of `parameters`, `_idex` for `_idx` (with a warning), and every form of `Domain.parse`.

        Raises:
            SubnetError: If a key is missing or a value does not fit its entry.
            UnknownKeyError: If there is a key too many.
        """
        return self.space.subnet(self._choices(parameters))

    def decisions_in(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return key -> choice of the keys in `parameters` that this space has; others must be plain hyper-parameters.

        Raises:
            UnknownKeyError: If another key has the form of a model's decision (`_idx`), and so is one of another model.
        """
        known = {name: value for name, value in parameters.items() if name in self.space or name in self.space.paths}
        strange = [
            name
            for name, value in parameters.items()
            if name not in known and isinstance(value, Mapping) and {'_idx', '_idex'} & set(value)
        ]
        if strange:
            rest = [key for key in self.space if key not in self._named(known)]
            raise UnknownKeyError(
                f'The parameters decide {listed(strange)}, which the model does not have: they belong to the search space of '
                f'another model. This one decides {listed(self.space)}.{near(strange[0], rest)}'
            )
        return self._choices(known)

    def _named(self, names: Mapping[str, Any]) -> set[str]:
        return {self.space.key_of(name) for name in names}

    def _choices(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(parameters, Mapping):
            raise SubnetError(f'Parameters are a mapping of keys to values, but got {parameters!r}.')
        choices: dict[str, Any] = {}
        for name, value in parameters.items():
            key = name if name in self._flat else self.space.paths.get(name, name)
            if key in self._inner and isinstance(value, Mapping) and '_name' in value:
                self._unfold(key, value, choices)
            else:
                choices[key] = self._choice(key, value)
        return choices

    def _choice(self, key: str, value: Any) -> Any:
        if not isinstance(value, Mapping) or not {'_value', '_idx', '_idex'} & set(value):
            return value
        value = dict(value)
        if '_idex' in value and '_idx' not in value:
            warn(f"{key!r}: '_idex' is read as '_idx', which is the key that NNI reads.", stacklevel=5)
            value['_idx'] = value.pop('_idex')
        if '_idx' not in value:
            if '' in _items(value['_value']):
                raise SubnetError(f"{key!r}: inputs without a key are told by '_idx', but got {value!r}.")
            return value['_value']
        indices = _items(value['_idx'])
        if len(set(map(repr, indices))) != len(indices):
            raise SubnetError(f'{key!r}: an alternative may be chosen once, but `_idx` is {value["_idx"]!r}.')
        if '_value' in value:
            self._check_names(key, _items(value['_value']), indices)
        return {'_idx': indices if isinstance(value['_idx'], (list, tuple, np.ndarray)) else indices[0]}

    def _check_names(self, key: str, names: list[Any], indices: list[Any]) -> None:
        """Refuse a pair of `_value` and `_idx` that mean different alternatives."""
        candidates = _candidates(self._flat.get(key, {}))
        if len(names) != len(indices):
            raise SubnetError(f'{key!r}: `_value` names {len(names)} alternatives and `_idx` {len(indices)}.')
        for name, index in zip(names, indices, strict=True):
            if isinstance(index, int) and 0 <= index < len(candidates) and str(name) != str(candidates[index]):
                raise SubnetError(
                    f'{key!r}: `_value` {name!r} and `_idx` {index} do not belong together: alternative {index} is '
                    f'{candidates[index]!r}.'
                )

    def _unfold(self, key: str, value: Mapping[str, Any], choices: dict[str, Any]) -> None:
        name = value['_name']
        choices[key] = name
        inner = self._inner[key].get(name, {})
        for part, given in value.items():
            if part == '_name':
                continue
            if part not in inner:
                raise UnknownKeyError(f'{key!r}: {name!r} has no {part!r}.{near(part, inner)} It has {listed(inner)}.')
            nested = inner[part]
            if nested in self._inner and isinstance(given, Mapping) and '_name' in given:
                self._unfold(nested, given, choices)
            else:
                choices[nested] = self._choice(nested, given)

    def _parameter(self, key: str, choice: Choice, choices: Mapping[str, Choice]) -> Any:
        entry, domain = self._flat[key], self.space[key]
        if entry['_type'] in (LAYER, INPUT):
            indices = [int(index) for index in chosen(choice)]
            names = [_candidates(entry)[index] for index in indices]
            if entry['_type'] == LAYER and len(indices) == 1:
                return {'_value': names[0], '_idx': indices[0]}
            return {'_value': names, '_idx': indices}
        value = domain.format(choice)
        if not isinstance(value, str) or value not in self._inner.get(key, {}):
            return value
        parts = self._inner[key][value]
        return {'_name': value, **{part: self._parameter(nested, choices[nested], choices) for part, nested in parts.items()}}

    # -- reading entries ---------------------------------------------------------------------

    def _add(self, key: str, entry: Any, domains: dict[str, Domain], conditions: dict[str, tuple[Condition, ...]]) -> None:
        if not isinstance(entry, Mapping) or not {'_type', '_value'} <= set(entry):
            raise SpaceError(f"{key!r}: an entry has the keys '_type' and '_value', but got {entry!r}.")
        kind, value = entry['_type'], entry['_value']
        if kind not in TYPES:
            raise SpaceError(f'{key!r}: there is no type {kind!r}.{near(kind, TYPES)} There are {listed(TYPES, 20)}.')
        self._flat[key] = entry
        try:
            if kind == INPUT:
                domains[key] = _inputs(value)
            elif kind in LAWS:
                domains[key] = Numeric(law=kind, arguments=value)
            else:
                if not isinstance(value, Sequence) or isinstance(value, str) or not value:
                    raise SpaceError(f'a {kind} needs a list of at least one alternative, but got {value!r}.')
                domains[key] = _layers(value) if kind == LAYER else OneOf(tuple(_label(item) for item in value))
        except SpaceError as error:
            raise SpaceError(f'{key!r}: {error}') from None
        if kind != VALUE:
            return
        for index, item in enumerate(value):
            if not isinstance(item, Mapping):
                continue
            inner = self._inner.setdefault(key, {}).setdefault(item['_name'], {})
            for part, nested in item.items():
                if part != '_name':
                    inner[part] = f'{key}/{item["_name"]}/{part}'
                    self._add(inner[part], nested, domains, conditions)
                    conditions[inner[part]] = ((Guard.on(key, [index]),),)


def _entry(domain: Domain) -> Entry:
    if isinstance(domain, Numeric):
        return {'_type': domain.law, '_value': list(domain.arguments)}
    labels = [plain(label) for label in domain.labels]
    if isinstance(domain, (KOf, AnyOf)) or domain.inputs:
        named = all(isinstance(label, str) for label in labels)
        chosen_number = None if isinstance(domain, AnyOf) else getattr(domain, 'k', 1)
        return {'_type': INPUT, '_value': {'candidates': labels if named else [''] * len(labels), 'n_chosen': chosen_number}}
    if domain.mixable:
        return {'_type': LAYER, '_value': [str(label) for label in labels]}
    return {'_type': VALUE, '_value': labels}


def _layers(names: Sequence[Any]) -> Domain:
    strange = [name for name in names if not isinstance(name, str)]
    if strange:
        raise SpaceError(f'the candidates of a layer_choice are names, but got {listed(strange)}.')
    numbered = list(names) == [str(index) for index in range(len(names))]
    return OneOf(tuple(range(len(names))) if numbered else tuple(names), mixable=True)


def _inputs(value: Any) -> Domain:
    if not isinstance(value, Mapping) or not isinstance(value.get('candidates'), (list, tuple)) or not value['candidates']:
        raise SpaceError(f"an input_choice needs {{'candidates': [...], 'n_chosen': number or null}}, but got {value!r}.")
    names, number = tuple(value['candidates']), value.get('n_chosen')
    if not all(isinstance(name, str) for name in names):
        raise SpaceError(f'the candidates of an input_choice are keys, or "" for inputs without one, but got {list(names)}.')
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise SpaceError(f'`n_chosen` is a whole number, or null for any number, but got {number!r}.')
    labels: tuple[Label, ...] = names
    if InputChoice.NO_KEY in names or len(set(names)) != len(names):
        labels = tuple(range(len(names)))
    if number is None:
        return AnyOf(labels)
    return OneOf(labels) if number == 1 else KOf(labels, k=number)


def _label(item: Any) -> Label:
    if not isinstance(item, Mapping):
        return item
    if not isinstance(item.get('_name'), str):
        raise SpaceError(f"a value that is a mapping needs a '_name', but got {dict(item)!r}.")
    return item['_name']


def _candidates(entry: Entry) -> list[Any]:
    value = entry.get('_value', [])
    return list(value['candidates']) if isinstance(value, Mapping) else list(value)


def _items(value: Any) -> list[Any]:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return [item.item() if isinstance(item, np.generic) else item for item in items]
