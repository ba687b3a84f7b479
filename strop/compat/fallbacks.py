"""What MMEngine does not find by itself: renamed configs of the codebases, renamed types, Strop's types under their scopes."""

from __future__ import annotations

import importlib
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import print_log
from mmengine.registry import Registry as MMEngineRegistry

# As a module: it may be the one that imports MMEngine, and then is not complete when this one is imported.
from strop import codebases
from strop.compat.shipped import near_shipped, shipped
from strop.errors import ConfigError, UnknownTypeError, near
from strop.unsupported import not_yet

# Registered names of mmcls 1.0 that mmpretrain has under another name.
_RENAMED = {'ClsVisualizer': 'UniversalVisualizer', 'PackClsInputs': 'PackInputs'}

_mmengines_path = Config._get_cfg_path
_mmengines_get = MMEngineRegistry.get
_said: set[tuple[str, str]] = set()


def extend_mmengine() -> None:
    """Let configs inherit from codebases whose files were renamed, and find Strop's types under the scope of a codebase.

    Calling it again does no harm.

    >>> extend_mmengine()
    """
    Config._get_cfg_path = staticmethod(_config_path)
    MMEngineRegistry.get = _get


def _config_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
    package, found, _ = cfg_path.partition('::')
    if found and codebases.is_codebase(package):
        return str(codebases.find_codebase_config(cfg_path)), codebases.current_name(package)
    if found and package in ('mmrazor', 'strop'):
        importlib.import_module('strop.registry')  # which tells MMEngine whose configs these are
        cfg_path = _of_mmrazor(cfg_path) if package == 'mmrazor' else cfg_path
    return _mmengines_path(cfg_path, filename)


def _of_mmrazor(name: str) -> str:
    """Return where Strop has a config of MMRazor, under its path or alone under its name, unless MMRazor is installed."""
    if MODULE2PACKAGE.get('mmrazor') != 'strop':
        return name
    ours = shipped(name.partition('::')[2])
    if ours is None:
        raise ConfigError(
            f'Strop ships no config {name!r}: copy the file beside the one that inherits from it.{near_shipped(name)} '
            '`strop migrate` says what else a config needs.'
        )
    return ours


def _get(self: MMEngineRegistry, key: str) -> Any:
    """Return the class registered as `key`: the codebase's own, else Strop's."""
    # By its name: where the registries are what imports MMEngine, their module is not complete when this one is imported.
    if type(self).__module__ == 'strop.registry' or not codebases.is_codebase(self.scope):
        return _mmengines_get(self, key)
    try:
        found = _mmengines_get(self, key)
    except RuntimeError as error:
        if not str(error).startswith('Failed to get'):
            raise
        found = None
    if found is not None:
        return found
    codebase = codebases.current_name(self.scope)
    new = _RENAMED.get(key.rpartition('.')[2])
    if new is not None and new in self.module_dict:
        _say(self, key, f'{key!r} is called {new!r} in {codebase}; that is built.')
        return self.module_dict[new]
    scope, _, name = key.rpartition('.')
    if codebases.is_codebase(scope) and codebases.current_name(scope) == codebase:
        raise UnknownTypeError(f'{codebase} {codebases.version_of(codebase)} has no {name!r}.{near(name, self.module_dict)}')
    own = self.parent.children.get('strop') if self.parent is not None else None
    if own is None:
        return _mmengines_get(self, key)
    if scope:
        return own.get(key)
    own.import_from_location()
    if name not in own.module_dict:
        if later := not_yet(name):
            raise UnknownTypeError(later)
        elsewhere = codebases.where_else(name, self.parent, None) or near(name, [*self.module_dict, *own.module_dict])
        raise UnknownTypeError(f'{name!r} is neither in {codebase} {codebases.version_of(codebase)} nor in Strop.{elsewhere}')
    _say(self, key, f'{codebase} has no {key!r}, and Strop has; that is built.')
    return own.module_dict[name]


def _say(registry: MMEngineRegistry, key: str, text: str) -> None:
    if (registry.scope, key) not in _said:
        _said.add((registry.scope, key))
        print_log(text, logger='current')
