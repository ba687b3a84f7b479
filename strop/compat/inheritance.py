"""What a config has from its bases, found by parsing: the files that they are, the default scope, the name of the algorithm.

MMEngine merges keys of one name, so that a file and its bases have to call the algorithm alike.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

from strop.codebases import is_codebase
from strop.compat.config_source import Source
from strop.compat.shipped import ROOT, shipped
from strop.errors import StropError
from strop.files import read_text


def changed_file(path: Path) -> Path:
    """Return where the changed file of a file is written.

    >>> changed_file(Path('configs/supernet.py')).name
    'supernet_strop.py'
    """
    return path.with_stem(f'{path.stem}_strop')


def base_name(base: ast.expr) -> str:
    """Return an entry of `_base_` if it is a plain string, else ''."""
    return base.value if isinstance(base, ast.Constant) and isinstance(base.value, str) else ''


def base_file(base: ast.expr, path: Path) -> Path | None:
    """Return the file that an entry of `_base_` means, if it is there and is no codebase's.

    Args:
        base: The entry.
        path: The file that has it.
    """
    package, packaged, name = base_name(base).partition('::')
    if not packaged:
        file = path.parent / package
    else:
        ours = shipped(name) if package in ('mmrazor', 'strop') else None
        file = ROOT / (ours or '').partition('::')[2]
    return file if file.is_file() else None


def lineage(path: Path) -> Iterator[tuple[Path, Source]]:
    """Yield a file and those that it inherits from, the nearest first, as far as they can be read."""
    waiting = [path]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop(0)
        if file.suffix != '.py' or file.resolve() in seen:
            continue
        seen.add(file.resolve())
        try:
            source = Source(read_text(file, 'a config'), str(file))
        except (StropError, OSError):
            continue
        yield file, source
        waiting += [found for found in (base_file(base, file) for base in source.bases) if found is not None]


def default_scope(path: Path) -> str | None:
    """Return the default scope that a file has, by itself or from its bases.

    '' is none, and None that it is not to be seen: a base cannot be read. A base of a codebase is taken to set its own.
    """
    files = list(lineage(path))
    for _, source in files:
        statement = source.assigned.get('default_scope')
        if statement is not None:
            return str(statement.value.value or '') if isinstance(statement.value, ast.Constant) else None
    bases = [(base, file) for file, source in files for base in source.bases]
    for base, _ in bases:
        package, packaged, _ = base_name(base).partition('::')
        if packaged and is_codebase(package):
            return package
    return None if any(base_file(base, file) is None for base, file in bases) else ''


def beside(source: Source) -> list[ast.expr]:
    """Return the entries of `_base_` that are files of the user's, not of a package."""
    return [base for base in source.bases if '::' not in base_name(base)]


def calls_it_model(path: Path, together: Collection[Path]) -> bool:
    """Tell whether the changed file of a file has `model` where the file has `algorithm`.

    So it is without a base beside it, and with one that calls it so: in its own changed file, or already. Under others
    `algorithm` stays, which is understood.

    Args:
        path: The file.
        together: Resolved paths of the files that are changed along with it.
    """
    source = next((source for _, source in lineage(path)), None)
    if source is None:
        return False
    bases = beside(source)
    if not bases:
        return 'algorithm' in source.assigned
    others = set(together) - {path.resolve()}
    files = [file for file in (base_file(base, path) for base in bases) if file is not None and file.resolve() in others]
    return any(calls_it_model(file, others) for file in files) or changes_a_model(path)


def changes_a_model(path: Path) -> bool:
    """Tell whether a file changes as `algorithm` what its bases have as `model`: they were migrated, and it was not."""
    source, *above = [source for _, source in lineage(path)]
    statement = source.assigned.get('algorithm')
    settings = source.settings(statement.value) if statement is not None else None
    if settings is None or not settings.whole or 'type' in settings.values:
        return False
    return any('model' in each.assigned for each in above) and not any('algorithm' in each.assigned for each in above)
