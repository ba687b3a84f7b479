"""Finding what a dotted path names: a module or attribute of a model, or a function or class that can be imported."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from strop.errors import ConfigError, listed, near

#: Children that only wrap a model (`PlainArchitecture`, DDP; `torch.compile`; an algorithm): a path may leave them out.
WRAPPING = ('module', '_orig_mod', 'architecture')


def find_module(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path; an empty path is the model itself.

    Names of wrappers (`module` of DDP and of `PlainArchitecture`, `architecture`, `_orig_mod`) may be left out.

    Raises:
        ConfigError: If there is none; the message names near matches.

    >>> find_module(nn.DataParallel(nn.Sequential(nn.ReLU(), nn.Tanh())), '1')
    Tanh()
    """
    found = next((value for value in _walk(model, path.split('.') if path else []) if isinstance(value, nn.Module)), None)
    if found is None:
        names = [name for name, _ in model.named_modules()]
        raise ConfigError(f'{type(model).__name__} has no module {path!r}.{_hint(model, path, names)}')
    return found


def find_attribute(model: nn.Module, path: str) -> tuple[Any, str] | None:
    """Return the owner and the name of an attribute at a dotted path of a model, or None if the model has none."""
    *parents, name = path.split('.')
    for owner in _walk(model, parents):
        if hasattr(owner, name):
            return owner, name
    return None


def find_parameter(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module and the name of a parameter or buffer at a dotted path.

    Raises:
        ConfigError: If there is none; the message names near matches.
    """
    *parents, name = path.split('.')
    for owner in _walk(model, parents):
        if isinstance(owner, nn.Module) and (name in owner._parameters or name in owner._buffers):
            return owner, name
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    raise ConfigError(f'{type(model).__name__} has no parameter or buffer {path!r}.{_hint(model, path, names)}')


def _walk(node: Any, parts: list[str]) -> Iterator[Any]:
    """Yield what `parts` may lead to, the literal way first and then with wrappers left out."""
    if not parts:
        yield node
        return
    child = node._modules.get(parts[0]) if isinstance(node, nn.Module) else None
    if child is None:
        # A missing attribute that the model computes may raise anything.
        child = inspect.getattr_static(node, parts[0], None) and getattr(node, parts[0], None)
    if child is not None:
        yield from _walk(child, parts[1:])
    if isinstance(node, nn.Module):
        for name in WRAPPING:
            inner = node._modules.get(name)
            if inner is not None and name != parts[0]:
                yield from _walk(inner, parts)


def _hint(model: nn.Module, path: str, names: list[str]) -> str:
    """Say what is near to a path, or what there is at the last part of it that exists."""
    short = [name for name in names if name]
    close = near(path, [*short, *(_without_wrappers(name) for name in short)])
    if close:
        return close
    parts = path.split('.')
    for cut in range(len(parts) - 1, -1, -1):
        node = next((value for value in _walk(model, parts[:cut]) if isinstance(value, nn.Module)), None)
        if node is not None:
            where = f'{".".join(parts[:cut])!r}' if cut else 'the model'
            children = [name for name, _ in node.named_children()]
            return f' In {where} ({type(node).__name__}) there is {listed(children) or "nothing"}.'
    return ''


def _without_wrappers(name: str) -> str:
    return '.'.join(part for part in name.split('.') if part not in WRAPPING)


def import_path(path: str) -> tuple[Any, str]:
    """Import what a dotted path starts with; return the owner (a Python module or a class) and the name in it.

    Raises:
        ConfigError: If nothing of that name can be imported; the message names near matches.

    >>> owner, name = import_path('torch.nn.functional.relu')
    >>> owner.__name__, name
    ('torch.nn.functional', 'relu')
    """
    parts = path.split('.')
    if len(parts) < 2 or not all(parts):
        raise ConfigError(f"A function or method is given by its import path, as 'package.module.function', not {path!r}.")
    owner: Any = None
    for cut in range(len(parts) - 1, 0, -1):
        name = '.'.join(parts[:cut])
        try:
            owner = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + '.')):
                continue  # not a module, so an attribute of one
            raise ConfigError(f'{path!r} cannot be imported, since {name!r} needs {error.name!r}: {error}.') from error
        except ImportError as error:
            raise ConfigError(f'{path!r} cannot be imported: {error}.') from error
        break
    if owner is None:
        raise ConfigError(f'{path!r} cannot be imported: there is no package {parts[0]!r}.{near(parts[0], sys.modules)}')
    for done, part in enumerate(parts[cut:], start=cut):
        if not hasattr(owner, part):
            raise ConfigError(f'{path!r} cannot be found: {".".join(parts[:done])} has no {part!r}.{near(part, dir(owner))}')
        if done < len(parts) - 1:
            owner = getattr(owner, part)
    return owner, parts[-1]
