"""Strop's registries: children of MMEngine's roots, under the scopes `strop` and `mmrazor`.

`type='X'`, `type='strop.X'` and `type='mmrazor.X'` reach the same class. Looking a name up imports the rooms
that register classes, so nothing has to be imported for its side effects.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.registry import root as _root
from mmengine.registry.registry import Registry as _Registry

from strop.codebases import (
    check_codebase,
    current_name,
    installed,
    is_codebase,
    model_config,
    where_else,
    wrong_arguments,
)
from strop.errors import MissingDependencyError, UnknownTypeError, near
from strop.unsupported import not_yet

# Lets `_base_ = ['strop::spos/...py']` find the configs that ship with the package.
MODULE2PACKAGE.setdefault('strop', 'strop')

#: Whether MMRazor itself is installed: it then has its scope and its configs for itself.
MMRAZOR_INSTALLED = any(True for _ in importlib.metadata.distributions(name='mmrazor'))
if not MMRAZOR_INSTALLED:
    MODULE2PACKAGE['mmrazor'] = 'strop'  # `_base_ = ['mmrazor::_base_/...']` finds the ones of that name here

LOCATIONS = [
    'strop.mutables',
    'strop.data',
    'strop.estimators',
    'strop.elastic',
    'strop.distill',
    'strop.architectures',
    'strop.quantization',
    'strop.mutators',
    'strop.engine',
    'strop.algorithms',
    'strop.export',
]


# What was said already about names that are in two scopes.
_TOLD: set[tuple[str, str]] = set()


def _ours(module: Any) -> bool:
    return getattr(module, '__module__', '').split('.')[0] == 'strop'


class Registry(_Registry):
    """MMEngine's registry with near matches in its errors, and built-in names that a user may take over.

    A user who registers a class under a built-in name (a `SPOS` of their own, as the tutorials do) replaces
    the built-in one; two user classes of one name are an error, as in MMEngine.
    """

    def get(self, key: str) -> Any:
        """Return the class registered as `key`.

        Raises:
            UnknownTypeError: If there is none; the message names near matches, or the codebases that have it.
            MissingDependencyError: If it is of a codebase that is not installed, or cannot be imported.
        """
        try:
            found = super().get(key)
        except RuntimeError as error:
            if not str(error).startswith('Failed to get'):
                raise
            found = None
        if found is None:
            later = not_yet(key)
            if later:
                raise UnknownTypeError(later)
            current = DefaultScope.get_current_instance()
            scope = current.scope_name if current is not None else None
            # A registry of a codebase, such as one that `import mmcls` made, is asked for the bare name of `mmcls.VGG`.
            scoped = is_codebase(self.scope) and '.' not in key and self.scope != scope
            elsewhere = where_else(f'{self.scope}.{key}' if scoped else key, self.parent, scope)
            if elsewhere:
                raise UnknownTypeError(f'{key!r} is not in the {self.name} registry of {self.scope}.{elsewhere}')
            names = {name for known in (self, self.parent) if known is not None for name in known.module_dict}
            raise UnknownTypeError(
                f'{key!r} is not in the {self.name} registry of {self.scope}.{near(key.split(".")[-1], names)} If it is a '
                "class of your own, import its file first: custom_imports = dict(imports=['your.module'], "
                'allow_failed_imports=False).'
            )
        return found

    def build(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """Build an instance from its config.

        All inside `type='mmdet.RetinaNet'` is built as mmdet's, too. `cfg_path='mmdet::...'` instead of a type is the model of
        that config, with its published weights if `pretrained=True`.
        """
        if isinstance(cfg, Mapping) and 'cfg_path' in cfg and 'type' not in cfg:
            config, pretrained = model_config(cfg)
            model = self.build(config, *args, **kwargs)
            if pretrained:
                model.init_weights()
            return model
        kind = cfg.get('type') if isinstance(cfg, Mapping) else None
        if isinstance(kind, str) and '_scope_' not in cfg:
            scope = kind.rpartition('.')[0]
            if is_codebase(scope) and installed(current_name(scope)):
                check_codebase(scope, f'type={kind!r}')
                self._check_in(current_name(scope), kind.rpartition('.')[2])
                cfg = {**cfg, '_scope_': current_name(scope), 'type': f'{current_name(scope)}.{kind.rpartition(".")[2]}'}
        if isinstance(kind, str):
            self._tell_of_two(kind, cfg.get('_scope_'))
        try:
            return super().build(cfg, *args, **kwargs)
        except TypeError as error:
            told = wrong_arguments(error)
            if told is None:
                raise
            raise told from error

    def _check_in(self, codebase: str, name: str) -> None:
        other = self.parent.children.get(codebase)
        if other is not None:
            other.import_from_location()
            if name not in other.module_dict:
                raise UnknownTypeError(where_else(f'{codebase}.{name}', self.parent, None).strip())

    def _tell_of_two(self, name: str, scope: str | None) -> None:
        """Say it where a name is Strop's and a codebase's, and the scope decides for the codebase's."""
        current = DefaultScope.get_current_instance()
        scope = scope or (current.scope_name if current is not None else None)
        if scope is None or name not in self._module_dict or not is_codebase(scope) or (scope, name) in _TOLD:
            return
        other = self.parent.children.get(current_name(scope))
        if other is None:
            return
        other.import_from_location()
        if name in other.module_dict:
            _TOLD.add((scope, name))
            print_log(
                f'{name!r} is a type of {current_name(scope)} and one of Strop. Under the scope {scope!r} that of '
                f"{current_name(scope)} is built; type='strop.{name}' is the other.",
                logger='current',
            )

    def __contains__(self, key: str) -> bool:
        try:
            return self.get(key) is not None
        except (UnknownTypeError, MissingDependencyError):
            return False

    def _register_module(self, module: Any, module_name: str | list[str] | None = None, force: bool = False) -> None:
        names = [module_name] if isinstance(module_name, str) else list(module_name or [module.__name__])
        for name in names:
            existing = self._module_dict.get(name)
            if existing is not None and existing is not module and not force and _ours(existing) != _ours(module):
                if _ours(module):
                    continue  # the user's class was there first and stays
                print_log(f'{module.__module__}.{name} replaces the {name} that ships with Strop.', logger='current')
                super()._register_module(module, name, force=True)
                continue
            super()._register_module(module, name, force)


def _registry(parent: _Registry, build_func: Callable[..., Any] | None = None) -> Registry:
    registry = Registry(parent.name, build_func=build_func, parent=parent, scope='strop', locations=LOCATIONS)
    if 'mmrazor' not in parent.children and not MMRAZOR_INSTALLED:
        alias = Registry(parent.name, build_func=build_func, parent=parent, scope='mmrazor', locations=LOCATIONS)
        alias._module_dict = registry._module_dict
    return registry


MODELS = _registry(_root.MODELS)
MODEL_WRAPPERS = _registry(_root.MODEL_WRAPPERS)
DATASETS = _registry(_root.DATASETS)
DATA_SAMPLERS = _registry(_root.DATA_SAMPLERS)
TRANSFORMS = _registry(_root.TRANSFORMS)
METRICS = _registry(_root.METRICS)
EVALUATORS = _registry(_root.EVALUATOR)
LOOPS = _registry(_root.LOOPS)
HOOKS = _registry(_root.HOOKS)
RUNNERS = _registry(_root.RUNNERS)
OPTIMIZERS = _registry(_root.OPTIMIZERS)
OPTIM_WRAPPERS = _registry(_root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _registry(_root.OPTIM_WRAPPER_CONSTRUCTORS)
PARAM_SCHEDULERS = _registry(_root.PARAM_SCHEDULERS)
TASK_UTILS = _registry(_root.TASK_UTILS)
WEIGHT_INITIALIZERS = _registry(_root.WEIGHT_INITIALIZERS)
RUNNER_CONSTRUCTORS = _registry(_root.RUNNER_CONSTRUCTORS)
LOG_PROCESSORS = _registry(_root.LOG_PROCESSORS)
INFERENCERS = _registry(_root.INFERENCERS)
FUNCTIONS = _registry(_root.FUNCTIONS)
STRATEGIES = _registry(_root.STRATEGIES)
VISUALIZERS = _registry(_root.VISUALIZERS)
VISBACKENDS = _registry(_root.VISBACKENDS)

#: For `type='timm.TimmModel'`, which is written with the name of the package that the model comes from.
TIMM_MODELS = Registry(_root.MODELS.name, parent=_root.MODELS, scope='timm', locations=['strop.architectures'])

# Names under which MMRazor 0.x kept the same classes apart.
ALGORITHMS = MUTATORS = MUTABLES = DISTILLERS = PRUNERS = LOSSES = ARCHITECTURES = OPS = MODELS
