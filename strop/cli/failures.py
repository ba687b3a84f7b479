"""Errors as one line on the terminal, and the exit code that belongs to each."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import click

from strop.errors import BudgetError, StropError

FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = [Path(sysconfig.get_path(name)) for name in ('stdlib', 'purelib', 'platlib')]


def describe(error: BaseException) -> tuple[str, int]:
    """Return the line to print for an error and the exit code.

    Strop's own errors and missing files explain themselves. Any other error may come from a user's class as well as
    from a library, so its type and the place are added.

    >>> describe(StropError('Nothing to do.'))
    ('strop: error: Nothing to do.', 1)
    >>> describe(KeyboardInterrupt())
    ('strop: interrupted', 130)
    """
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 'strop: interrupted', INTERRUPTED
    if isinstance(error, click.ClickException):
        context = getattr(error, 'ctx', None)
        hint = f' See: {context.command_path} --help' if context is not None else ''
        return f'strop: error: {one_line(error.format_message())}{hint}', error.exit_code
    if isinstance(error, StropError):
        return f'strop: error: {one_line(str(error))}', UNREACHABLE if isinstance(error, BudgetError) else FAILED
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f'strop: error: {error.filename}: {error.strerror}', FAILED
    if isinstance(error, FileNotFoundError):
        return f'strop: error: {one_line(str(error))}', FAILED
    # KeyError shows the repr of its argument; a sentence should stay a sentence.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    place = place_of(error)
    where = f' ({place})' if place else ''
    return f'strop: error: {type(error).__name__}: {one_line(str(text))}{where} (--debug shows the traceback)', FAILED


def one_line(text: str, limit: int = 1200) -> str:
    """Return `text` without line breaks, shortened in the middle if it is very long.

    >>> one_line(' a   b ')
    'a b'
    """
    line = ' '.join(text.split())
    return line if len(line) <= limit else f'{line[: limit // 2]} ... {line[-limit // 2 :]}'


def place_of(error: BaseException) -> str:
    """Return `file:line` where an error left the user's own code, or an empty string if it never was there."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        libraries = [_PACKAGE, *_LIBRARIES]
        if path.is_absolute() and path.exists() and not any(path.is_relative_to(folder) for folder in libraries):
            return f'{path}:{frame.lineno}'
    return ''
