"""What commands print: tables and results on stdout, notes and logs on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from strop.files import json_text


def show(*parts: RenderableType) -> None:
    """Print tables or text on stdout, in colour on a terminal."""
    # A pipe has no width: lines are then as long as they need to be, for tools that read them.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for part in parts:
        # rich breaks a title at the width of its table.
        if isinstance(part, Table) and part.title is not None:
            console.print(f'\n{part.title}', soft_wrap=True, markup=False, style='bold')
            part.title = None
        console.print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str))


def show_json(content: Mapping[str, Any]) -> None:
    """Print data as JSON on stdout; NaN and infinities, which it does not know, as text."""
    sys.stdout.write(json_text(content, indent=2) + '\n')


def note(text: str) -> None:
    """Print one line on stderr."""
    print(f'strop: {text}', file=sys.stderr, flush=True)


def quiet_logs() -> None:
    """Send MMEngine's log to stderr, warnings and errors only, so that stdout holds results alone."""
    from mmengine.logging import MMLogger

    known = MMLogger.check_instance_created('strop')
    logger = MMLogger.get_instance('strop') if known else MMLogger.get_instance('strop', log_level='WARNING')
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setStream(sys.stderr)


def pairs(title: str | None, rows: Mapping[str, Any], names: tuple[str, str] = ('', '')) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, show_header=any(names))
    table.add_column(names[0], no_wrap=True)
    table.add_column(names[1], overflow='fold')
    for name, value in rows.items():
        table.add_row(escape(str(name)), f'{value:.4f}' if isinstance(value, float) else escape(str(value)))
    return table
