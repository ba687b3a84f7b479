"""Write the tables of UPGRADING.md from the tables that the old names are looked up in: `python tools/upgrade_tables.py`."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from strop import registry
from strop.compat import MMRAZOR, NNI
from strop.compat.migration import MOVED, RENAMED, REWRITTEN
from strop.compat.runtime_keys import REPLACED
from strop.search.tuner import NNI_TUNERS
from strop.unsupported import NEAREST

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'UPGRADING.md'
NAMES = ROOT / 'tests' / 'compat' / 'mmrazor_names.json'
ROOMS = {
    'MODELS': 'Models and their parts',
    'LOOPS': 'Loops',
    'HOOKS': 'Hooks',
    'TASK_UTILS': 'Recorders, deliveries, estimators, demo inputs',
    'MODEL_WRAPPERS': 'Wrappers for several processes',
    'DATASETS': 'Data sets',
    'OPTIM_WRAPPER_CONSTRUCTORS': 'Constructors of optimizers',
}


def home(found: Any) -> str:
    """Return the shortest public path of a class or a function."""
    module = found.__module__
    name = found.__name__
    room = '.'.join(module.split('.')[:2])
    public = hasattr(importlib.import_module(room), name) if room.startswith('strop.') else False
    return f'{room if public else module}.{name}'


def row(cells: Iterable[str]) -> str:
    """Return a row of a table."""
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table."""
    return '\n'.join([row(head), row('---' for _ in head), *map(row, rows)])


def registered() -> Iterator[str]:
    """Yield a table for each registry of MMRazor 1.x."""
    names = json.loads(NAMES.read_text(encoding='utf-8'))
    for kind, title in ROOMS.items():
        known = getattr(registry, kind)
        rows = [
            (f'`{name}`', f'not yet: {_code(NEAREST[name])}' if name in NEAREST else f'`{home(known.get(name))}`')
            for name in sorted(names[kind], key=str.lower)
        ]
        yield f'#### {title} (`{kind}`)\n\n{table(("`type=`", "class"), rows)}'


def _code(text: str) -> str:
    return re.sub(r"(type='[\w.]+'|(?<![\w`.])strop\.[\w.]+(?:\([^)]*\))?|\w+=(?:dict)?\([^)]*\)+)", r'`\1`', text)


def rooms(names: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table of old packages and the modules that their names come from."""
    rows = []
    for room in sorted(names):
        for path, words in names[room].items():
            renamed = [word.split('=') for word in words.split() if '=' in word]
            said = ', '.join(f'`{old}` is `{new}`' for old, new in renamed if (old, new) != (new, old))
            rows.append((f'`{room}`', f'`{path}`', said))
    return table(('package', 'its names come from', 'renamed'), rows)


def old_types() -> str:
    """Return the table of the types and parts of MMRazor 0.x."""
    unregistered = {name: why for name, why in MMRAZOR.nearest.items() if name not in NEAREST}
    rows = {name: f"`type='{new}'`" for name, new in RENAMED.items()}
    rows |= {name: _code(why) for name, why in {**unregistered, **REWRITTEN}.items()}
    rows |= {f'{name}=': _code(why) for name, why in MOVED.items()}
    return table(('0.x', 'today'), [(f'`{name}`', rows[name]) for name in sorted(rows, key=str.lower)])


def keys() -> str:
    """Return the table of the keys of configs of MMRazor 0.x."""
    return table(('0.x', 'today'), [(f'`{name}`', where) for name, where in REPLACED.items()])


def nni_names() -> str:
    """Return the table of the names of NNI 1.9."""
    rows = []
    for room, sources in NNI.names.items():
        for path, words in sources.items():
            for word in words.split():
                old, _, new = word.partition('=')
                found = getattr(importlib.import_module(path), new or old)
                where = home(found) if inspect.isclass(found) or inspect.isfunction(found) else f'{path}.{new or old}'
                rows.append((f'`{room}.{old}`', f'`{where}`'))
    rows += [(f'`{name}`', f'not yet: {_code(why)}') for name, why in NNI.nearest.items() if '.' not in name]
    return table(('NNI 1.9', 'today'), rows)


def nni_later() -> str:
    """Return the table of the modules of NNI 2 and 3."""
    rows = [(f'`{name}`', _code(why)) for name, why in NNI.nearest.items() if '.' in name]
    return table(('NNI 2 and 3', 'nearest'), rows)


def tuners() -> str:
    """Return the table of NNI's tuners."""
    return table(('tuner', '`strategy`'), [(f'`{name}`', f'`{config}`') for name, config in NNI_TUNERS.items()])


def tables() -> dict[str, str]:
    """Return marker -> table."""
    return {
        'registered': '\n\n'.join(registered()),
        'packages': rooms(MMRAZOR.names),
        'types of 0.x': old_types(),
        'keys of 0.x': keys(),
        'nni 1.9': nni_names(),
        'nni 2 and 3': nni_later(),
        'tuners': tuners(),
    }


def filled(text: str) -> str:
    """Return the page with its tables made anew.

    Raises:
        ValueError: If a marker is missing.
    """
    for name, made in tables().items():
        pattern = re.compile(rf'(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)', re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f'UPGRADING.md has no place for the table {name!r}: <!-- {name} --> ... <!-- end -->.')
        text = pattern.sub(lambda match, made=made: f'{match.group(1)}{made}\n{match.group(2)}', text, count=1)
    return text


if __name__ == '__main__':
    PAGE.write_text(filled(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
