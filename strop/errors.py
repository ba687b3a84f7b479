"""Every error that Strop raises on purpose, and the two helpers that word them.

A message states the rule, what was given and what would work. Each concrete class also
inherits the built-in exception that callers of the field's older toolkits catch at that place.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from types import ModuleType


class StropError(Exception):
    """Root of every error raised by Strop."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument; a sentence should stay a sentence.
        return ' '.join(str(arg) for arg in self.args)


class ConfigError(StropError, ValueError):
    """A configuration or an argument breaks a rule."""


class SpaceError(StropError, ValueError):
    """A search space is malformed: conflicting keys, an empty domain, a cycle."""


class SubnetError(StropError, ValueError):
    """A subnet does not fit its search space."""


class UnknownKeyError(SubnetError, KeyError):
    """A subnet names a decision that the search space does not have."""


class NotDecidedError(StropError, RuntimeError):
    """A mutable was used before any decision was applied to it."""


class BindingError(StropError, RuntimeError):
    """A mutator and a model do not belong together, or are bound twice."""


class ModeError(StropError, RuntimeError):
    """`forward` was called with a mode that does not exist."""


class ComponentTypeError(StropError, TypeError):
    """A component (mutator, distiller, architecture, ...) is of the wrong class."""


class UnknownTypeError(StropError, KeyError):
    """A `type=` name is in no registry."""


class GraphError(StropError, ValueError):
    """A model cannot be traced, or its channels cannot be cut as asked."""


class VerificationError(StropError, RuntimeError):
    """A changed model does not compute what the original says it should."""


class BudgetError(StropError, ValueError):
    """No subnet can meet the given constraints."""


class StoreError(StropError, RuntimeError):
    """The store of trials cannot be used as asked."""


class EstimateError(StropError, RuntimeError):
    """A resource cannot be estimated or measured."""


class ExportError(StropError, RuntimeError):
    """A model could not be exported, or its export differs from it."""


class DifferenceError(ExportError):
    """An export was run, and does not compute what its source does."""


class DataError(StropError, ValueError):
    """A data set is missing, empty, or not usable for the task."""


class TrainingError(StropError, RuntimeError):
    """Training cannot go on, for example because the loss is not finite."""


class UnsafeFileError(StropError, ValueError):
    """A file would have to be unpickled or executed to be read."""


class MissingDependencyError(StropError, ImportError):
    """An optional package is not installed."""


def near(name: object, options: Iterable[object], *, prefix: str = ' Did you mean ') -> str:
    """Return a sentence that names the options closest to `name`, or an empty string.

    >>> near('shufle_3x3', ['shuffle_3x3', 'xception'])
    " Did you mean 'shuffle_3x3'?"
    >>> near('zzz', ['a'])
    ''
    """
    words = {str(option).lower(): str(option) for option in options}
    found = get_close_matches(str(name).lower(), list(words), n=3, cutoff=0.6)
    if not found:
        return ''
    return prefix + ' or '.join(repr(words[match]) for match in found) + '?'


def listed(options: Iterable[object], limit: int = 8) -> str:
    """Return `options` as text, shortened after `limit` of them.

    >>> listed(range(12), limit=3)
    '0, 1, 2, ... (12 in all)'
    """
    every = [repr(option) for option in options]
    if len(every) <= limit:
        return ', '.join(every)
    return ', '.join(every[:limit]) + f', ... ({len(every)} in all)'


def try_import(module: str, extra: str) -> ModuleType:
    """Import an optional package, or raise an error that names the extra to install.

    Args:
        module: Dotted name of the module.
        extra: The extra of `pip install 'strop[extra]'` that brings it.

    Raises:
        MissingDependencyError: If the package, or something it needs, is absent.

    >>> try_import('math', 'none').floor(1.5)
    1
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"`{module}` is needed here and could not be imported ({error}). Install it with: pip install 'strop[{extra}]'"
        ) from error
