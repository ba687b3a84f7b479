"""Layers chosen by patterns of their names, alike in all that quantizes."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from strop.errors import ConfigError


def patterns_of(argument: str, given: Any) -> list[str]:
    """Return one pattern or several as a list.

    Args:
        argument: What the user calls them, for the message.
        given: A string or an iterable of strings.

    Raises:
        ConfigError: If it is neither, or one is empty.

    >>> patterns_of('ignored', 'head')
    ['head']
    """
    patterns = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f'`{argument}` is a pattern of names of layers such as "blocks.*", or several, not {pattern!r}.')
    return patterns


def matched(name: str, patterns: Iterable[str]) -> str | None:
    """Return the first pattern (`fnmatch`) that a layer, or a module around it, is named by; None without one.

    Args:
        name: Path of a layer, with `:op` behind it where it is an op of a module.
        patterns: The patterns.

    >>> matched('blocks.0.fc', ['head', 'blocks.0']), matched('blocks.1:add', ['blocks.1']), matched('ab', ['a'])
    ('blocks.0', 'blocks.1', None)
    """
    path, _, op = name.partition(':')
    parts = path.split('.')
    names = ['.'.join(parts[:end]) for end in range(1, len(parts) + 1)] + ([name] if op else [])
    return next((pattern for pattern in patterns if any(fnmatchcase(each, pattern) for each in names)), None)
