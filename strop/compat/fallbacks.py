"""What MMEngine does not find by itself: renamed configs of the codebases, renamed types, Strop's types under their scopes."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import Registry as MMEngineRegistry

from strop.codebases import current_name, find_codebase_config, is_codebase

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
    if found and is_codebase(package):
        return str(find_codebase_config(cfg_path)), current_name(package)
    return _mmengines_path(cfg_path, filename)


def _get(self: MMEngineRegistry, key: str) -> Any:
    """Return the class registered as `key`: the codebase's own, else Strop's."""
    # By its name: where the registries are what imports MMEngine, their module is not complete when this one is imported.
    if type(self).__module__ == 'strop.registry' or not is_codebase(self.scope):
        return _mmengines_get(self, key)
    try:
        found = _mmengines_get(self, key)
    except RuntimeError as error:
        if not str(error).startswith('Failed to get'):
            raise
        found = None
    if found is not None:
        return found
    codebase = current_name(self.scope)
    new = _RENAMED.get(key.rpartition('.')[2])
    if new is not None and new in self.module_dict:
        _say(self, key, f'{key!r} is called {new!r} in {codebase}; that is built.')
        return self.module_dict[new]
    own = self.parent.children.get('strop') if self.parent is not None else None
    if own is None:
        return _mmengines_get(self, key)
    found = own.get(key)
    if '.' not in key:
        _say(self, key, f'{codebase} has no {key!r}, and Strop has; that is built.')
    return found


def _say(registry: MMEngineRegistry, key: str, text: str) -> None:
    if (registry.scope, key) not in _said:
        _said.add((registry.scope, key))
        print_log(text, logger='current')
