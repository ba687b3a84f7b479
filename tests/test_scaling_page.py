"""The Python of docs/scaling.md runs as it stands, and its commands parse."""

import re
import shlex
from pathlib import Path

import click
import pytest

from strop.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / 'docs' / 'scaling.md').read_text(encoding='utf-8')
LINES = [
    line.partition(' #')[0].strip()
    for block in re.findall(r'```bash\n(.*?)```', PAGE, re.DOTALL)
    for line in block.splitlines()
]
OURS = sorted({line for line in LINES if line.startswith('strop ')})


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {'__name__': '__main__'}
    for block in re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL):
        exec(compile(block, 'scaling.md', 'exec'), names)
    assert len(names['result'].complete) == 20
    assert (tmp_path / 'runs' / 'first' / 'search.journal').exists()
    assert len(list((tmp_path / 'runs' / 'second' / 'logs').glob('trial_*.log'))) == 20


@pytest.mark.parametrize('line', OURS)
def test_its_commands_parse(line, monkeypatch):
    name, *arguments = shlex.split(line)[1:]
    if name not in COMMANDS:
        pytest.skip(f'`strop {name}` is not there yet')
    # Files and folders of the commands are the reader's; here any will do.
    monkeypatch.setattr(click.Path, 'convert', lambda self, value, parameter, context: value)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    while isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(name, arguments)


def test_it_has_commands_for_every_way_to_search():
    said = '\n'.join(LINES)
    for words in ('ray start --head', 'strop experiment work --store', 'strop dashboard', 'python search.py', 'ssh -L'):
        assert words in said


def test_its_extras_exist():
    project = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    for extra in re.findall(r'strop\[(\w+)\]', PAGE):
        assert re.search(rf'^{extra} = \[', project, re.MULTILINE)


@pytest.mark.parametrize('path', re.findall(r'\]\(([\w/.]+)\)', PAGE))
def test_the_files_it_names_exist(path):
    assert (ROOT / 'docs' / path).exists()
