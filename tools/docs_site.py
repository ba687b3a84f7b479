"""Gather the pages of the documentation site, and build it: `make docs`.

The pages are Markdown files of the checkout that also read well where they lie. They are copied in the same layout, so that
their links lead to the same places, together with the files that they link to; a page for each room lists its public names.
The build fails at links to nothing, at names without a docstring, and at pages that the navigation leaves out.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / 'build' / 'docs_source'
LINK = re.compile(r'(?<!\\)\]\(<?([^)\s>#]+)')
FENCED = re.compile(r'^(```|~~~).*?^\1', re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """Return the Markdown files of the site, relative to the checkout."""
    return sorted(path.relative_to(ROOT) for path in [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')])


def linked_files() -> set[Path]:
    """Return the files of the checkout, other than pages, that pages link to, and files that these link to."""
    found, rest = set(pages()), pages()
    while rest:
        page = rest.pop()
        text = FENCED.sub('', (ROOT / page).read_text(encoding='utf-8'))
        targets = {((ROOT / page).parent / link).resolve() for link in LINK.findall(text) if not re.match(r'[a-z]+:', link)}
        new = {target.relative_to(ROOT) for target in targets if target.is_file() and target.is_relative_to(ROOT)} - found
        found |= new
        rest += [path for path in new if path.suffix == '.md']
    return found - set(pages())


def public_names(room: Path) -> tuple[str, list[str]]:
    """Return the first line of a room's docstring, and its `__all__`, without importing it."""
    tree = ast.parse((room / '__init__.py' if room.is_dir() else room).read_text(encoding='utf-8'))
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '__all__'
    ]
    if not listed:
        # A module says what is public by the names that it defines.
        kinds = (ast.FunctionDef, ast.ClassDef)
        listed = [[node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith('_')]]
    return (ast.get_docstring(tree) or '').partition('\n')[0], list(listed[0])


def rooms() -> dict[str, Path]:
    """Return the rooms and modules of the package that have public names, by their dotted name."""
    package = ROOT / 'strop'
    found = {f'strop.{path.parent.name}': path.parent for path in sorted(package.glob('*/__init__.py'))}
    found |= {f'strop.{path.stem}': path for path in sorted(package.glob('*.py')) if not path.stem.startswith('_')}
    # Imported by those alone who have its package.
    found['strop.engine.lightning'] = package / 'engine' / 'lightning.py'
    return {name: path for name, path in sorted(found.items()) if public_names(path)[1]}


def reference(folder: Path) -> list[dict[str, str]]:
    """Write a page of each room's public names, and return their entries of the navigation."""
    folder.mkdir(parents=True)
    for name, path in rooms().items():
        title, names = public_names(path)
        parts = [f'# {name}', title, *(f'::: {name}.{public}' for public in names if not public.startswith('_'))]
        (folder / f'{name}.md').write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
    return [{name: f'reference/{name}.md'} for name in rooms()]


def gather() -> Path:
    """Copy the pages and what they link to, and write the configuration of the site beside it."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path in {*pages(), *linked_files()}:
        target = SOURCE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    entries = reference(SOURCE / 'reference')
    settings = (ROOT / 'zensical.toml').read_text(encoding='utf-8')
    written = ', '.join(f'{{ "{name}" = "{page}" }}' for entry in entries for name, page in entry.items())
    config = SOURCE.parent / 'zensical.toml'
    config.write_text(
        settings.replace('"reference/"', f'[{written}]')
        .replace('"build/', '"')
        .replace('["."]', '[".."]')
        .replace('"tools/', '"../tools/'),
        encoding='utf-8',
    )
    return config


def left_out(config: Path) -> list[str]:
    """Return the pages that the navigation has not, and those of it that do not exist."""
    nav = tomllib.loads(config.read_text(encoding='utf-8'))['project']['nav']
    there = {*map(str, pages()), *(str(path.relative_to(SOURCE)) for path in (SOURCE / 'reference').glob('*.md'))}
    return sorted(there ^ set(_leaves(nav)))


def _leaves(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [leaf for part in parts for leaf in _leaves(part)]


def main() -> int:
    """Build the site into build/site."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--serve', action='store_true', help='show it in the browser instead, until it is interrupted')
    options = parser.parse_args()
    config = gather()
    wrong = left_out(config)
    if wrong:
        print(f'Pages and the `nav` of zensical.toml differ: {", ".join(wrong)}', file=sys.stderr)
        return 1
    command = ['serve'] if options.serve else ['build', '--clean', '--strict']
    ended = subprocess.run([sys.executable, '-m', 'zensical', *command, '--config-file', str(config)], check=False)
    if ended.returncode == 0 and not options.serve:
        print(f'The site is in {ROOT / "build" / "site"}.')
    return ended.returncode


if __name__ == '__main__':
    sys.exit(main())
