"""Pages in one file: templates with every value escaped, styles inside, no script, nothing fetched."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import Any

import jinja2

# A number and its unit stay on one line.
_UNIT = re.compile(r'(?<=[0-9]) (?=(?:%|×|ms|µs|s|min|h|MB|kB|points?|[kMGT])(?![A-Za-z]))')


def rendered(template: str, **values: Any) -> str:
    """Return a template of this folder, filled in; what values hold is text and never markup.

    Args:
        template: The name of the file.
        values: What the template speaks of; a name that it does not get is an error.

    >>> '&lt;script&gt;' in rendered('bare.html.j2', title='<script>')
    True
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    # Kept, since it keeps what it compiled: a page takes far longer to compile than to fill in.
    source = files('strop.report')
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: source.joinpath(name).read_text('utf-8')),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        finalize=lambda value: _UNIT.sub('\u00a0', value) if type(value) is str else value,
    )  # fmt: skip
