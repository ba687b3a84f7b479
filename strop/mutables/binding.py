"""Finding the mutables of a model: their keys, the space they form, and how a subnet is applied to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from strop.errors import ComponentTypeError, SpaceError, UnknownKeyError, listed, near
from strop.mutables.choice import InputChoice, LayerChoice
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
    depth: int = 0


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

    def apply(self, choices: Mapping[str, Any]) -> None:
        """Write choices into the mutables: all of a full answer, checked one by one by their domains.

        Decisions that `choices` leaves out are forgotten, so that using an inactive one is noticed.
        """
        given = choices.choices if isinstance(choices, Subnet) else choices
        for key in given:
            if key not in self.by_key:
                self.space[key]  # raises, with the near match
        for key, mutables in self.by_key.items():
            for mutable in mutables:
                if key in given:
                    mutable.decide(given[key])
                else:
                    mutable.undecide()


def bind(model: nn.Module, groups: Sequence[Sequence[str]] = ()) -> Binding:
    """Find the mutables of `model`, name them by their paths, and build their space.

    Args:
        model: Any module.
        groups: Lists of keys or paths that are to be one decision, named by the first of each list.

    Raises:
        ComponentTypeError: If `model` is no module.
        SpaceError: If mutables of one key have different alternatives, or an `InputChoice` names a source that
            does not come before it.
    """
    if not isinstance(model, nn.Module):
        raise ComponentTypeError(f'A model must be an nn.Module, but got {type(model).__name__}.')
    found: dict[int, Found] = {}
    for path, module, condition in walk(model):
        item = found.setdefault(id(module), Found(module))
        item.paths.append(path)
        item.conditions.append(condition)
    items = list(found.values())
    for item in items:
        item.module._path = item.paths[0] or type(item.module).__name__.lower()
    renamed = _grouped(items, groups)

    def key_of(module: Keyed) -> str:
        return renamed.get(module.key, module.key)

    # Paths inside conditions are spelled by module until every key is known.
    by_key: dict[str, list[Mutable]] = {}
    conditions: dict[str, list[Condition]] = {}
    paths: dict[str, str] = {}
    for item in items:
        if not isinstance(item.module, Mutable):
            continue
        key = key_of(item.module)
        _check_same(key, item, by_key.get(key, []), bool(groups) and key in renamed.values())
        by_key.setdefault(key, []).append(item.module)
        conditions.setdefault(key, []).extend(
            tuple(Guard(tuple(renamed.get(name, name) for name in guard.keys), guard.allowed) for guard in condition)
            for condition in item.conditions
        )
        paths.update({path: key for path in item.paths if path})
    _check_sources(items)
    domains = {key: mutables[0].domain for key, mutables in by_key.items()}
    unique = {key: tuple(dict.fromkeys(rules)) for key, rules in conditions.items()}
    space = Space(domains, unique, {path: key for path, key in paths.items() if path not in domains})
    return Binding(items, space, by_key)


def walk(model: nn.Module) -> Iterator[tuple[str, Keyed, Condition]]:
    """Yield (path, module, condition) for every occurrence of a keyed module, depth first in registration order."""

    def guards_of(parent: nn.Module, name: str) -> Condition:
        if isinstance(parent, LayerChoice) and name in parent.names:
            return (Guard.on(_key(parent, paths), [parent.names.index(name)]),)
        if isinstance(parent, Repeat) and name.isdigit() and parent.depth is not None:
            position = int(name)
            choices, allowed = truth_table(parent.depth, lambda value: value > position)
            full = 1
            for choice in choices:
                full *= len(choice.domain)
            if len(allowed) == full:
                return ()
            return (Guard(tuple(_key(choice, paths) for choice in choices), frozenset(allowed)),)
        return ()

    def visit(module: nn.Module, path: str, condition: Condition) -> Iterator[tuple[str, Keyed, Condition]]:
        if isinstance(module, Keyed):
            yield path, module, condition
        for name, child in module._modules.items():
            if child is not None:
                below = f'{path}.{name}' if path else name
                yield from visit(child, below, condition + guards_of(module, name))

    paths: dict[int, str] = {}
    for name, module in model.named_modules():
        paths.setdefault(id(module), name)
    return visit(model, '', ())


def _key(module: Keyed, paths: Mapping[int, str]) -> str:
    if module._given_key is not None:
        return module._given_key
    if id(module) not in paths:
        raise SpaceError(f'A {type(module).__name__} that decides a depth is not a sub-module of the model.')
    return paths[id(module)] or type(module).__name__.lower()


def _grouped(items: list[Found], groups: Sequence[Sequence[str]]) -> dict[str, str]:
    names = {name: item.module.key for item in items for name in (*item.paths, item.module.key)}
    renamed: dict[str, str] = {}
    for group in groups:
        for name in group:
            if name not in names:
                raise UnknownKeyError(f'A group names {name!r}, which is no decision of the model.{near(name, names)}')
            if names[name] in renamed:
                raise SpaceError(f'{name!r} is in two groups; a decision can be in one.')
            renamed[names[name]] = names[group[0]]
    return renamed


def _check_same(key: str, item: Found, others: list[Mutable], grouped: bool) -> None:
    module = item.module
    assert isinstance(module, Mutable), 'only mutables have domains'
    for other in others:
        if other.domain != module.domain:
            raise SpaceError(
                f'{other._path!r} ({type(other).__name__} of {listed(other.domain.labels)}) and {module._path!r} '
                f'({type(module).__name__} of {listed(module.domain.labels)}) have the key {key!r} but not the same alternatives. '
                'Mutables of one key are one decision: give them different keys, or the same alternatives.'
            )
        if type(other) is not type(module) and not (isinstance(other, LayerChoice) and isinstance(module, LayerChoice)):
            raise SpaceError(
                f'{other._path!r} is a {type(other).__name__} and {module._path!r} a {type(module).__name__}, but both have the '
                f'key {key!r}. One decision cannot be both: give them different keys.'
            )
        if (other._given_key is None) != (module._given_key is None) and not grouped:
            raise SpaceError(
                f'The key {key!r} given to one mutable is also the path of another ({other._path!r}, {module._path!r}). '
                'They would be coupled by accident: choose another key, or give it to both.'
            )


def _check_sources(items: list[Found]) -> None:
    earlier: list[str] = []
    for item in items:
        module = item.module
        earlier.append(module.key)
        if isinstance(module, InputChoice):
            for source in module.choose_from:
                if source != InputChoice.NO_KEY and source not in earlier:
                    raise SpaceError(
                        f'{source!r}, from which the InputChoice {module.key!r} chooses, is no key of a mutable that comes before '
                        f'it.{near(source, earlier)} The keys before it are {listed(earlier)}; NO_KEY stands for any other input.'
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
    binding = bind(model)
    valid = binding.space.subnet(subnet)
    binding.apply(valid)
    return valid


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


__all__ = ['Binding', 'Found', 'MutableScope', 'apply_subnet', 'bind', 'intercept', 'mutables_of', 'space_of', 'walk']
