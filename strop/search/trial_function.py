"""Functions by name: a trial that is a function of a module, imported where it runs."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

from strop.errors import ConfigError, near
from strop.mutables import Subnet

#: A name of a function or class, `module:name`.
REFERENCE = re.compile(r'^[\w.]+:[\w.]+$')


class FunctionTrial:
    """A trial that is a function of a module; the module is imported where the trial runs.

    Args:
        reference: `'module:function'`.
        folder: Where the module lies, if Python does not find it.

    >>> FunctionTrial('builtins:len', '.')({'a': 1})
    1
    """

    def __init__(self, reference: str, folder: str) -> None:
        self.reference, self.folder = reference, folder
        self._function: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_function': None}

    def __call__(self, subnet: Subnet) -> Any:
        if self._function is None:
            self._function = load(self.reference, self.folder, 'trial.function')
        return self._function(subnet)


def load(reference: str, folder: str, key: str) -> Any:
    """Return what `'module:name'` means; the module may lie in a folder.

    Raises:
        ConfigError: If it cannot be imported, or the module has no such name (near matches are named).

    >>> load('math:sqrt', '.', 'trial.function')(9.0)
    3.0
    """
    module, _, name = reference.partition(':')
    if not REFERENCE.match(reference):
        raise ConfigError(f"{key}: a function is named as 'module:name', but got {reference!r}.")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(f'{key}: the module {module!r} cannot be imported ({type(error).__name__}: {error}).') from error
    for part in name.split('.'):
        if not hasattr(found, part):
            raise ConfigError(f'{key}: {reference!r} has no {part!r}.{near(part, dir(found))}')
        found = getattr(found, part)
    if not callable(found) and key != 'space':
        raise ConfigError(f'{key}: {reference!r} is no function, but a {type(found).__name__}.')
    return found


def reference_to(function: Any) -> str | None:
    """Return `'module:name'` of a function; None where it cannot be imported by that.

    >>> import math
    >>> reference_to(math.sqrt), reference_to(lambda: 0)
    ('math:sqrt', None)
    """
    module, name = getattr(function, '__module__', None), getattr(function, '__qualname__', None)
    if not module or not name or module == '__main__' or '<' in name:
        return None
    try:
        found: Any = importlib.import_module(module)
        for part in name.split('.'):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return f'{module}:{name}' if found is function else None
