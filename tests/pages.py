"""Pages of the documentation, run as a reader would: what they show is written, called and compared."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner

from strop import registry
from strop.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r'^```(\w+)([^\n]*)\n(.*?)^```', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, the file name that it is titled with (perhaps empty), and its text."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    content = page.read_text(encoding='utf-8')
    found = []
    for match in FENCE.finditer(content):
        title = re.search(r'title="([^"]+)"', match[2])
        found.append(Block(match[1], title[1] if title else '', match[3], content.count('\n', 0, match.start()) + 1))
    return found


def run(page: Path, folder: Path, monkeypatch: Any, commands: bool = True) -> dict[str, Any]:
    """Run the blocks of a page in order in a folder, and return the names that they leave.

    Python runs in one namespace; a block with a title is a file, which is written; of shell blocks the lines that begin with
    `strop` are called. What the page registers is forgotten afterwards.
    """
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    registries = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    registered = [dict(one._module_dict) for one in registries]
    names: dict[str, Any] = {'__name__': '__main__'}
    try:
        for block in blocks(page):
            if block.title:
                (folder / block.title).write_text(block.text, encoding='utf-8')
            elif block.language == 'python':
                # The lines of the page, for tracebacks.
                code = compile('\n' * block.line + block.text, str(page), 'exec')
                exec(code, names)
            elif block.language == 'bash' and commands:
                for line in block.text.replace('\\\n', ' ').splitlines():
                    if line.startswith('strop '):
                        _command(line)
    finally:
        home = str(folder)
        made = {name for name in set(sys.modules) - before if str(getattr(sys.modules[name], '__file__', '')).startswith(home)}
        for one, classes in zip(registries, registered):
            for name, cls in list(one._module_dict.items()):
                if cls.__module__ in {'__main__', *made}:
                    one._module_dict.pop(name)
                    if name in classes:
                        one._module_dict[name] = classes[name]
        for name in made:
            del sys.modules[name]
    return names


def run_python(page: Path, folder: Path, monkeypatch: Any) -> dict[str, Any]:
    """Run a page whose commands are about files of the reader's."""
    return run(page, folder, monkeypatch, commands=False)


def _command(line: str) -> None:
    result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, f'{line}\n{result.output}\n{result.exception!r}'
