"""Docstrings as Markdown, for the reference of the documentation site: an extension of Griffe."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object


def as_markdown(docstring: str) -> str:
    r"""Fence the examples of a docstring, and give its formulas as code.

    >>> print(as_markdown('Sum :math:`a + b`.\n\n>>> 1 + 1\n2\n\nMore.'))
    Sum `a + b`.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    <BLANKLINE>
    More.
    """
    blocks = []
    for block in re.split(r'\n[ \t]*\n', docstring):
        if re.match(r'\s*>>> ', block):
            block = '```pycon\n' + textwrap.dedent(block).strip('\n') + '\n```'
        elif formula := re.match(r'\s*\.\. math:: (.*)', block, re.DOTALL):
            block = '```latex\n' + '\n'.join(line.strip() for line in formula[1].splitlines()) + '\n```'
        else:
            block = re.sub(r':math:`([^`]*)`', r'`\1`', block)
        blocks.append(block)
    return '\n\n'.join(blocks)


class Docstrings(Extension):
    """Rewrite every docstring by `as_markdown`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
