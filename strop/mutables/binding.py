"""Finding the mutables of a model: their keys, the space they form, and how a subnet is applied to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from strop.errors import ComponentTypeError, SpaceError, UnknownKeyError, listed, near
from strop.mutables.choice import InputChoice, LayerChoice
from strop.mutables.domain import same_label
from strop.mutables.mutable import Handler, Keyed, Mutable, MutableScope
from strop.mutables.space import Condition, Guard, Space
from strop.mutables.subnet import Subnet
from strop.mutables.value import Repeat, truth_table


@dataclass
class Found:
    """A keyed module of a model: where it occurs, and under which choices each occurrence is reached."""

    module: Keyed
    paths: list[str] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)


@dataclass
class Binding:
    """The decisions of a model.

    Args:
        found: Every mutable and scope once, in the order of registration.
        space: The space that the mutables form.
    """

    found: list[Found]
    space: Space
    by_key: dict[str, list[Mutable]]

    @property
    def keyed(self) -> list[Keyed]:
        """Every mutable and scope."""
        return [item.module for item in self.found]

    @property
    def mutables(self) -> list[Mutable]:
        """Every mutable, duplicates of a key included."""
        return [item.module for item in self.found if isinstance(item.module, Mutable)]

    def apply(self, decisions: Mapping[str, Any]) -> Subnet:
        """Validate an answer in any form that `Space.subnet` reads, write it into the mutables, and return it.

        Float tensors are kept with their gradient. Inactive decisions are forgotten, so that using one is noticed.

        Raises:
            SubnetError: If the answer does not fit the space; no mutable is changed then.
        """
        subnet = self.space.subnet(decisions)
        given = {} if isinstance(decisions, Subnet) else {self.space.key_of(name): value for name, value in decisions.items()}
        for key, mutables in self.by_key.items():
            for mutable in mutables:
                if key in subnet.choices:
                    mutable.take(subnet.choices[key], given.get(key))
                else:
                    mutable.undecide()
        return subnet


def bind(model: nn.Module, groups: Sequence[Sequence[str]] | None = None) -> Binding:
    """Find the mutables of `model`, name them by their paths, and build their space.

    Mutables that a mutator holds keep the names that they have there, also where `model` is a part of its model.

    Args:
        model: Any module.
        groups: Lists of keys or paths that are to be one decision, named by the first of each list. By default
            the groups stay as they are.

    Raises:
        ComponentTypeError: If `model` is no module.
        UnknownKeyError: If a group names no decision of the model.
        SpaceError: If mutables of one key have different alternatives, or an `InputChoice` names a source that
            does not come before it.
    """
    if not isinstance(model, nn.Module):
        raise ComponentTypeError(f'A model must be an nn.Module, but got {type(model).__name__}.')
    found: dict[int, Found] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Keyed):
            found.setdefault(id(module), Found(module)).paths.append(path)
    items = list(found.values())
    names = [(item.module, item.module._path, item.module._group) for item in items]
    try:
        for item in items:
            if item.module.owner is None:
                item.module._path = item.paths[0] or type(item.module).__name__.lower()
        if groups is not None:
            _set_groups(items, groups)
        for module, condition in _occurrences(model):
            found[id(module)].conditions.append(condition)
        return _bound(items)
    except Exception:
        for module, before, group in names:
            module._path, module._group = before, group
        raise


def _bound(items: list[Found]) -> Binding:
    by_key: dict[str, list[Mutable]] = {}
    conditions: dict[str, list[Condition]] = {}
    other_names: dict[str, str] = {}
    for item in items:
        module = item.module
        if isinstance(module, Mutable):
            _check_same(module, by_key.get(module.key, []))
            by_key.setdefault(module.key, []).append(module)
            conditions.setdefault(module.key, []).extend(item.conditions)
            other_names.update({name: module.key for name in (module._given_key, module._path, *item.paths) if name})
    _check_sources(items)
    domains = {key: mutables[0].domain for key, mutables in by_key.items()}
    unique = {key: tuple(dict.fromkeys(rules)) for key, rules in conditions.items()}
    return Binding(
        items, Space(domains, unique, {name: key for name, key in other_names.items() if name not in domains}), by_key
    )


def _occurrences(model: nn.Module) -> Iterator[tuple[Keyed, Condition]]:
    """Yield (module, condition) for every occurrence of a keyed module, depth first in registration order."""

    def guards_of(parent: nn.Module, name: str) -> Condition:
        if isinstance(parent, LayerChoice) and name in parent.names:
            return (Guard.on(parent.key, [parent.names.index(name)]),)
        if isinstance(parent, Repeat) and name.isdigit() and parent.depth is not None:
            position = int(name)
            choices, allowed = truth_table(parent.depth, lambda value: value > position)
            if len(allowed) == math.prod(len(choice.domain) for choice in choices):
                return ()
            return (Guard(tuple(choice.key for choice in choices), frozenset(allowed)),)
        return ()

    def visit(module: nn.Module, condition: Condition) -> Iterator[tuple[Keyed, Condition]]:
        if isinstance(module, Keyed):
            yield module, condition
        for name, child in module._modules.items():
            if child is not None:
                yield from visit(child, condition + guards_of(module, name))

    return visit(model, ())


def _set_groups(items: list[Found], groups: Sequence[Sequence[str]]) -> None:
    for item in items:
        item.module._group = None
    keys = {name: item.module.key for item in items for name in (*item.paths, item.module.key)}
    targets: dict[str, str] = {}
    for group in groups:
        if isinstance(group, str) or not group:
            raise SpaceError(f'A group is a list of keys or module paths, but got {group!r}.')
        for name in group:
            if name not in keys:
                raise UnknownKeyError(f'A group names {name!r}, which is no decision of the model.{near(name, keys)}')
            if keys[name] in targets:
                raise SpaceError(f'{name!r} is in two groups, or twice in one; a decision can be in one.')
            targets[keys[name]] = keys[group[0]]
    for item in items:
        item.module._group = targets.get(item.module.key)


def _same_labels(left: Mutable, right: Mutable) -> bool:
    """Tell True from 1, which are equal to Python."""
    return all(map(same_label, left.domain.labels, right.domain.labels))


def _check_same(module: Mutable, others: list[Mutable]) -> None:
    for other in others:
        if other.domain != module.domain or not _same_labels(other, module):
            raise SpaceError(
                f'{other._path!r} ({type(other).__name__} of {listed(other.domain.labels)}) and {module._path!r} '
                f'({type(module).__name__} of {listed(module.domain.labels)}) have the key {module.key!r} but not the same '
                'alternatives. Mutables of one key are one decision: give them different keys, or the same alternatives.'
            )
        if type(other) is not type(module) and not (isinstance(other, LayerChoice) and isinstance(module, LayerChoice)):
            raise SpaceError(
                f'{other._path!r} is a {type(other).__name__} and {module._path!r} a {type(module).__name__}, but both have '
                f'the key {module.key!r}. One decision cannot be both: give them different keys.'
            )
        if other._given_key is None and module._given_key is None and module._group is None:
            raise SpaceError(
                f'Two mutables are called {module.key!r} by their paths in different models that mutators hold. Give them '
                'keys, or release the mutators.'
            )
        if (other._given_key is None) != (module._given_key is None) and module._group is None:
            raise SpaceError(
                f'The key {module.key!r} given to one mutable is also the path of another ({other._path!r}, {module._path!r}). '
                'They would be coupled by accident: choose another key, or give it to both.'
            )


def _check_sources(items: list[Found]) -> None:
    earlier: list[str] = []
    for item in items:
        module = item.module
        earlier.extend(name for name in dict.fromkeys((module.key, module._given_key, *item.paths)) if name)
        if isinstance(module, InputChoice):
            for source in module.choose_from:
                if source != InputChoice.NO_KEY and source not in earlier:
                    raise SpaceError(
                        f'{source!r}, from which the InputChoice {module.key!r} chooses, is no key of a mutable that comes '
                        f'before it.{near(source, earlier)} The keys before it are {listed(earlier)}; NO_KEY stands for any '
                        'other input.'
                    )


def mutables_of(model: nn.Module) -> list[Mutable]:
    """Return every mutable of `model`, in order of registration.

    >>> len(mutables_of(nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()]))))
    1
    """
    return [module for module in model.modules() if isinstance(module, Mutable)]


def space_of(model: nn.Module) -> Space:
    """Return the search space of `model`; its mutables get their paths as keys where none was given.

    >>> space_of(nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()]))).count()
    2
    """
    return bind(model).space


def apply_subnet(model: nn.Module, subnet: Mapping[str, Any]) -> Subnet:
    """Validate `subnet` against the model's space and make it the current decision; return it.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()]))
    >>> apply_subnet(model, {'0': 1})
    Subnet(0=1)
    """
    return bind(model).apply(subnet)


@contextmanager
def intercept(model: nn.Module, handler: Handler) -> Iterator[None]:
    """While active, every mutable of `model` calls `handler(mutable, *args, **kwargs)` instead of its own forward.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()]))
    >>> with intercept(model, lambda mutable, x: 'seen'):
    ...     model(1.0)
    'seen'
    """
    mutables = mutables_of(model)
    before = [mutable._callback for mutable in mutables]
    for mutable in mutables:
        mutable._callback = lambda: handler
    try:
        yield
    finally:
        for mutable, callback in zip(mutables, before, strict=True):
            mutable._callback = callback


__all__ = ['Binding', 'Found', 'MutableScope', 'apply_subnet', 'bind', 'intercept', 'mutables_of', 'space_of']
