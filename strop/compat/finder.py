"""The import finder that answers for old packages: virtual modules made on demand from tables of names.

A virtual package is only made where the real one is not installed. Files that a user keeps under the old path
(`mmrazor/models/algorithms/my.py` in any folder of `sys.path`, with or without `__init__.py`) are part of it: they are
imported under their old name, their relative imports reach Strop's classes, and a user's `__init__.py` runs on top.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from strop.errors import StropError, near


class OldImportError(StropError, ModuleNotFoundError):
    """An old import line asks for a module or a name that Strop does not have."""


class OldNameError(StropError, AttributeError):
    """A virtual module is asked for an attribute that Strop does not have."""


@dataclass(frozen=True)
class Table:
    """What one old package offers.

    Args:
        root: The package's name.
        names: Room -> {module that has them: names}. A room is a sub-package by its dotted name; its names can be imported
            from it, from every module in it, and from the packages above it (but not from the root). One word a name,
            `Old=New` where it was renamed; `*` stands for everything the module exports.
        modules: Package -> the names of the modules and packages in it.
        later: Names of the old package that Strop may not have yet, so that an error can say so.
        nearest: Name -> what comes nearest to it, as the end of a sentence, for names of `later` and for dotted modules that
            later versions of the old package had.
        successor: Package that took over; where it is installed, all imports go to it.
        registries: Module whose registries, or those of `successor.registry`, also answer to the scope `root`.
        grafts: Modules of this table that are also offered beside, or added to, an installed package that lacks them.
    """

    root: str
    names: Mapping[str, Mapping[str, str]]
    modules: Mapping[str, str] = field(default_factory=dict)
    later: str = ''
    nearest: Mapping[str, str] = field(default_factory=dict)
    successor: str = ''
    registries: str = ''
    grafts: tuple[str, ...] = ()

    def has_module(self, fullname: str) -> bool:
        """Tell whether the old package had a module of this dotted name."""
        package, _, name = fullname.rpartition('.')
        return fullname == self.root or fullname in self.names or name in self.modules.get(package, '').split()

    def children(self, package: str) -> list[str]:
        """Return the names of the modules in a package."""
        start = f'{package}.'
        rooms = [room[len(start) :].split('.')[0] for room in (*self.names, *self.modules) if room.startswith(start)]
        return sorted({*self.modules.get(package, '').split(), *rooms})

    def packages(self) -> list[str]:
        """Return the dotted name of every package, parents first."""
        return sorted({self.root, *self.names, *self.modules})

    def sources(self, module: str) -> Iterator[tuple[str, str]]:
        """Yield (target module, its words) for the names that can be imported from `module`."""
        if module != self.root:
            for room in self.names:
                if room == module or room.startswith(f'{module}.'):
                    yield from self.names[room].items()
        room = module
        while room != self.root and room not in self.names:
            room = room.rpartition('.')[0]
        if room != module or room == self.root:
            yield from self.names.get(room, {}).items()


def _target(path: str) -> ModuleType | None:
    """Import a module that a table points to; None where there is none (yet)."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f'{error.name}.')):
            return None
        raise


def _exported(module: ModuleType) -> list[str]:
    public = [name for name, value in vars(module).items() if not name.startswith('_') and not isinstance(value, ModuleType)]
    return list(getattr(module, '__all__', public))


_NOTHING = object()


class VirtualModule(ModuleType):
    """A module without a file of its own: its names are looked up in a table when they are asked for."""

    __strop_table__: Table

    def _lookup(self, name: str) -> Any:
        table, here = self.__strop_table__, self.__name__
        for package in table.packages():
            below = sys.modules.get(package) if package.startswith(f'{here}.') and here != table.root else None
            if below is not None and name in vars(below) and not isinstance(vars(below)[name], ModuleType):
                return vars(below)[name]  # from a user's own __init__.py
        stars = []
        for path, words in table.sources(here):
            for word in words.split():
                old, _, new = word.partition('=')
                if old == '*':
                    stars.append(path)
                elif old == name:
                    target = _target(path)
                    if target is not None and hasattr(target, new or old):
                        return getattr(target, new or old)
        for path in stars:
            target = _target(path)
            if target is not None and name in _exported(target):
                return getattr(target, name)
        return _NOTHING

    def _offered(self) -> list[str]:
        names = {name for name, value in vars(self).items() if not name.startswith('_') and not isinstance(value, ModuleType)}
        for path, words in self.__strop_table__.sources(self.__name__):
            target = _target(path)
            if target is None:
                continue
            for word in words.split():
                old, _, new = word.partition('=')
                names.update(_exported(target) if old == '*' else [old] if hasattr(target, new or old) else [])
        return sorted(names)

    def __getattr__(self, name: str) -> Any:
        if name == '__all__':
            return self._offered()
        if name.startswith('__') and name != '__version__':
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        found = self._lookup(name)
        if found is not _NOTHING:
            return found
        child = f'{self.__name__}.{name}'
        if child in sys.modules:
            return sys.modules[child]
        if self.__strop_table__.has_module(child):
            return importlib.import_module(child)
        raise OldNameError(missing(self.__strop_table__, self.__name__, name))

    def __repr__(self) -> str:
        return f'<module {self.__name__!r} (strop.compat)>'

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._offered(), *self.__strop_table__.children(self.__name__)})


def missing(table: Table, module: str, name: str) -> str:
    """Word the error for a name that is neither a module nor a class here."""
    nearest = table.nearest.get(name) or table.nearest.get(f'{module}.{name}')
    if nearest is not None:
        return f'{name!r} of {table.root} is not supported yet by Strop. Nearest: {nearest}.'
    if name in table.later.split() or table.has_module(f'{module}.{name}'):
        text = f'{name!r} of {table.root} is not supported yet by Strop.'
    else:
        text = f'{module} has no {name!r}.'
    offered = sys.modules.get(module)
    names = offered._offered() if isinstance(offered, VirtualModule) else []
    return text + near(name, [*names, *table.children(module)])


class _VirtualLoader(Loader):
    """Make a virtual module, and run the user's `__init__.py` in it if there is one."""

    def __init__(self, table: Table, user: Loader | None = None) -> None:
        self.table = table
        self.user = user

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = VirtualModule(spec.name, f'{spec.name}, as far as Strop offers it.')
        module.__strop_table__ = self.table
        return module

    def exec_module(self, module: ModuleType) -> None:
        if self.user is not None:
            self.user.exec_module(module)
        if self.table.registries and module.__name__ == f'{self.table.root}.registry':
            _answer_to(self.table.root, self.table.registries)

    def get_source(self, fullname: str) -> str | None:
        """Return the source of the user's `__init__.py`, for tracebacks."""
        return getattr(self.user, 'get_source', lambda _: None)(fullname)


class _AliasLoader(Loader):
    """Put the module of a successor under the old name; it is the same module object."""

    def __init__(self, table: Table, path: str) -> None:
        self.table = table
        self.path = path

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system make an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self.path)
        if self.table.registries and self.path == f'{self.table.successor}.registry':
            _answer_to(self.table.root, self.path)


def _answer_to(scope: str, registries: str) -> None:
    # Imported late: the import system alone needs neither torch nor MMEngine.
    importlib.import_module('strop.compat.fronts').answer_to_scope(scope, importlib.import_module(registries))


class _GraftLoader(Loader):
    """Load a module of an installed package, then add the names that it no longer has."""

    def __init__(self, table: Table, loader: Any) -> None:
        self.table = table
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        for path, words in self.table.sources(module.__name__):
            for word in words.split():
                old, _, new = word.partition('=')
                if old != '*' and not hasattr(module, old):
                    setattr(module, old, getattr(importlib.import_module(path), new or old))


class Finder(MetaPathFinder):
    """Answer for the packages of some tables, each only where the real package is not installed.

    Args:
        tables: One for each old package.
    """

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables = {table.root: table for table in tables}

    # -- the import system's call ------------------------------------------------------------

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to make a module of an old package, or None to leave it to the other finders.

        Raises:
            OldImportError: If an import statement asks for something that is not there; it names what is.
        """
        table = self.tables.get(fullname.partition('.')[0])
        if table is None:
            return None
        if fullname == table.root:
            if self.installed(table.root):
                return None
        elif not isinstance(sys.modules.get(table.root), VirtualModule):
            return self._beside_real(table, fullname, path)
        if table.successor and self._elsewhere(table.successor) is not None:
            return self._alias(table, fullname)
        folders = list(dict.fromkeys([*(path or ()), *self.folders(fullname.rpartition('.')[0])]))
        own = PathFinder.find_spec(fullname, folders)
        return self._merged(table, fullname, own)

    def _merged(self, table: Table, fullname: str, own: ModuleSpec | None) -> ModuleSpec | None:
        known = table.has_module(fullname)
        if own is not None and (not known or own.submodule_search_locations is None):
            return own  # a file or a package that only the user has
        if own is None and not known:
            package, _, name = fullname.rpartition('.')
            if not name.startswith('_') and _imported_by_statement():
                # Not `name=fullname`: the import system would swallow it and word an error of its own.
                raise OldImportError(missing(table, package, name), name=table.root)
            return None
        user = own.loader if own is not None and own.origin else None
        loader = _VirtualLoader(table, user)
        origin = own.origin if own is not None and user is not None else None  # which tells mmengine.utils.is_installed "no"
        spec = ModuleSpec(fullname, loader, origin=origin, is_package=True)
        spec.has_location = user is not None
        spec.submodule_search_locations = self.folders(fullname)
        return spec

    def _alias(self, table: Table, fullname: str) -> ModuleSpec | None:
        successor = table.successor + fullname[len(table.root) :]
        try:
            found = importlib.util.find_spec(successor)
        except ModuleNotFoundError:
            found = None
        if found is None:
            if _imported_by_statement():
                raise OldImportError(f'{fullname} is {successor} now, and the installed {table.successor} has no such module.')
            return None
        return ModuleSpec(fullname, _AliasLoader(table, successor), is_package=found.submodule_search_locations is not None)

    def _beside_real(self, table: Table, fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
        if isinstance(sys.modules.get(fullname.rpartition('.')[0]), VirtualModule):
            return self._merged(table, fullname, None)
        if table.successor and sys.modules.get(table.root) is sys.modules.get(table.successor) is not None:
            return self._alias(table, fullname)
        if fullname not in table.grafts:
            return None
        spec = self._elsewhere(fullname, path)
        if spec is None:
            return self._merged(table, fullname, None)
        spec.loader = _GraftLoader(table, spec.loader)
        return spec

    # -- what is installed -------------------------------------------------------------------

    def _elsewhere(self, fullname: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, 'find_spec'):
                spec = finder.find_spec(fullname, path)
                if spec is not None:
                    return spec
        return None

    def installed(self, root: str) -> bool:
        """Tell whether the real package is installed.

        It is, if another finder gives a package with an `__init__.py` and it shows a version: a distribution of
        that name is installed, a version file lies beside, or `__version__` stands in it. A folder without `__init__.py`, or
        with one that a user wrote to import classes, does not count; a single file `root.py` does.
        """
        spec = self._elsewhere(root)
        if spec is None or spec.origin is None:
            return False
        if spec.submodule_search_locations is None or not spec.origin.endswith('.py'):
            return True
        init = Path(spec.origin)
        if any((init.parent / name).exists() for name in ('version.py', '_version.py', '__version__.py')):
            return True
        try:
            importlib.metadata.distribution(root)
        except importlib.metadata.PackageNotFoundError:
            return '__version__' in init.read_text(encoding='utf-8', errors='replace')
        return True

    @staticmethod
    def folders(package: str) -> list[str]:
        """Return the folders of `sys.path` that hold a user's files of a package; those of '' are `sys.path` itself."""
        parts = package.split('.') if package else []
        entries = dict.fromkeys(os.path.join(entry or os.getcwd(), *parts) for entry in sys.path)
        return [folder for folder in entries if os.path.isdir(folder)]

    # -- switching on ------------------------------------------------------------------------

    def activate(self) -> None:
        """Put this finder first, and import the packages in which a user wrote an `__init__.py`.

        Calling it again only imports such packages in folders that came to `sys.path` since.
        """
        if self not in sys.meta_path:
            for root in self.tables:
                if not self.installed(root):
                    self._forget_namespaces(root)
            sys.meta_path.insert(0, self)
        for table in self.tables.values():
            if not self.folders(table.root) or self.installed(table.root):
                continue
            for package in table.packages():
                if any(os.path.isfile(os.path.join(folder, '__init__.py')) for folder in self.folders(package)):
                    importlib.import_module(package)

    @staticmethod
    def _forget_namespaces(root: str) -> None:
        # A bare folder that was imported before would hide the virtual package of the same name.
        for name in [name for name in sys.modules if name == root or name.startswith(f'{root}.')]:
            module = sys.modules[name]
            if getattr(module, '__file__', None) is None and type(getattr(module, '__path__', [])) is not list:
                del sys.modules[name]


def _imported_by_statement() -> bool:
    """Tell an import statement from `importlib.util.find_spec`, which should be told "no" rather than fail."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get('__name__') == __name__:
        frame = frame.f_back  # type: ignore[assignment]
    caller = frame.f_back if frame is not None else None
    return caller is not None and caller.f_code.co_name == '_find_and_load_unlocked'
