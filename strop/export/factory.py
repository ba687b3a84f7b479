"""What builds a supernet, as data: a config, or the name of a function; and which of them a recipe may name.

A recipe comes from anywhere, so a name in it is a request, not an order: classes of Strop and `torch.nn`, and classes
that are registered already, are built; any other module is imported only with the reader's consent.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mmengine.registry.root as roots
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.utils import get_object_from_string
from torch import nn

from strop.algorithms import BaseAlgorithm
from strop.codebases import model_config
from strop.errors import ConfigError, ExportError, StropError, UnsafeFileError, near
from strop.mutables import Subnet, choices_of, read_document
from strop.registry import MODELS

_NAME = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*')
_OWN = ('strop', 'torch.nn')
_PATHS = ('func_path', 'method_path', 'source')
# Arguments that name files, or addresses, of weights: of any class, of Strop's, and what timm fetches by.
_CHECKPOINTS = ('init_weight_from_supernet', 'checkpoint_path')
_OWN_CHECKPOINTS = ('teacher_ckpt', 'float_checkpoint', 'ckpt_path')
_PRETRAINED = ('pretrained_cfg', 'pretrained_cfg_overlay')
_FETCHING = ('url', 'file', 'source', 'custom_load', 'state_dict', 'hf_hub_id', 'hf_hub_filename')
_REGISTRIES = tuple(registry for registry in vars(roots).values() if isinstance(registry, roots.Registry))


@dataclass(frozen=True)
class Trust:
    """What the reader of a recipe lets it name.

    Args:
        allow: Packages or modules whose functions and classes may be called.
        everything: No limit.

    >>> Trust(('mypkg',)).permits('mypkg.models'), Trust(('mypkg',)).permits('mypkgs')
    (True, False)
    """

    allow: tuple[str, ...] = ()
    everything: bool = False

    @classmethod
    def of(cls, allow: str | Sequence[str], trust: bool) -> Trust:
        """Return the trust of the arguments `allow` and `trust`."""
        names = (allow,) if isinstance(allow, str) else tuple(allow)
        wrong = [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(f'{name}:x')]
        if wrong:
            raise ConfigError(f"`allow` lists packages or modules, such as ['mypkg', 'other.models'], but got {wrong[0]!r}.")
        return cls(names, bool(trust))

    def permits(self, module: str) -> bool:
        """Whether a module may be imported and its functions called."""
        return self.everything or any(module == name or module.startswith(name + '.') for name in self.allow)

    def permits_object(self, target: Any) -> bool:
        """Whether what a name led to is itself of a permitted package, and not something that its module imported."""
        tops = {name.partition('.')[0] for name in self.allow}
        return self.everything or str(getattr(target, '__module__', None)).partition('.')[0] in tops


# -- from a recipe to a model -----------------------------------------------------------------------------


def build(supernet: Mapping[str, Any], trust: Trust, origin: object) -> nn.Module:
    """Build what the `supernet` part of a recipe describes.

    Args:
        supernet: `{'config': ..., 'imports': [...]}` or `{'factory': 'module:name', 'args': {...}}`.
        trust: What it may name.
        origin: Where it comes from, for messages.

    Raises:
        UnsafeFileError: If it names something that is not permitted; nothing was imported or called then.
        ExportError: If it cannot be found or built, or what it builds is no module.
    """
    if 'config' in supernet:
        what = f'the config of type {supernet["config"]["type"]!r}'
        check_names(supernet['config'], trust, origin, supernet.get('imports', ()))
        call = lambda: _from_config(supernet['config'])  # noqa: E731
    else:
        what = f'the factory {supernet["factory"]!r}'
        check_names(supernet.get('args', {}), trust, origin, permitted=trust.permits(supernet['factory'].partition(':')[0]))
        function = _located(supernet['factory'], trust, origin)
        call = lambda: function(**supernet.get('args', {}))  # noqa: E731
    try:
        return checked(call(), what)
    except StropError as error:
        raise type(error)(f'{origin}: {error}') from error
    except Exception as error:
        raise ExportError(f'{origin}: {what} failed: {type(error).__name__}: {error}') from error


def checked(built: Any, what: str) -> nn.Module:
    """Return what a factory built.

    Raises:
        ExportError: If it is no module.
    """
    if not isinstance(built, nn.Module):
        raise ExportError(f'{what} must build an nn.Module, but returned a {type(built).__name__}.')
    return built


def check_names(value: Any, trust: Trust, origin: object, imports: Sequence[str] = (), *, permitted: bool = False) -> None:
    """Check every type, scope, import path, other config and checkpoint inside arguments, importing permitted `imports`.

    Args:
        value: The arguments.
        trust: What they may name.
        origin: Where they come from, for messages.
        imports: Modules that register classes.
        permitted: Whether they are of a function that `trust` permits: how it calls its weights is its own affair.

    Raises:
        UnsafeFileError: If one of them is not permitted.
    """
    if trust.everything:
        _import(imports, origin)
        return
    known = [module for module in imports if trust.permits(module)]
    _import(known, origin)
    for key, name in _names_in(value, trust, permitted):
        if key == '_scope_':
            if name not in MODELS.parent.children and name != MODELS.parent.scope and not trust.permits(name):
                raise _unsafe(origin, f'the scope {name!r}', name)
        elif key == 'type' and not name.rpartition('.')[2].startswith('Pretrained'):
            _check_type(name, trust, origin, imports)
        elif key in _PATHS:
            if not name.startswith(tuple(f'{own}.' for own in _OWN)) and not trust.permits(name):
                raise _unsafe(origin, f'{key}={name!r}', name.partition('.')[0])
        elif key == 'cfg_path':
            raise UnsafeFileError(
                f'{origin}: {key}={name!r} would read another config, which may run code. A recipe holds the config of its '
                'model itself; trust=True, or --trust on the command line, reads others.'
            )
        else:
            raise UnsafeFileError(f'{origin}: {key}={name!r} would read another checkpoint. A recipe has its own weights.')


def _check_type(name: str, trust: Trust, origin: object, imports: Sequence[str]) -> None:
    top, _, rest = name.partition('.')
    _check_reader(_registered(name), f'type={name!r}', origin)
    if _registered(name, (MODELS.parent,)) is not None or (_registered(name) is not None and (rest or not _importable(top))):
        return
    if rest and (name.startswith(tuple(f'{own}.' for own in _OWN)) or trust.permits(name) or trust.permits(top)):
        hidden = any(part.startswith('__') for part in rest.split('.'))
        targets = [] if hidden else _leads_to(name)
        for target in targets:
            _check_reader(target, f'type={name!r}', origin)
        if not hidden and all(_own_module(target) or trust.permits_object(target) for target in targets):
            return  # a name that leads nowhere is for the registry to refuse
        raise _unsafe(origin, f'type={name!r}, which is no class of a module of that package', top)
    if trust.permits(top):
        return
    # A word in no registry is looked for as a module to import by MMEngine; harmless only where there is no such module.
    missing = [module for module in imports if not trust.permits(module)]
    if missing and not rest:
        raise _unsafe(origin, f'type={name!r}, registered by {missing[0]!r}', missing[0].partition('.')[0])
    if rest or _importable(top):
        raise _unsafe(origin, f'type={name!r}', top)


def _leads_to(name: str) -> list[Any]:
    """Return what a dotted name leads to, as the registry follows it (a function before a module) and as Python does."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        found = None
    return [target for target in (get_object_from_string(name), found) if target is not None]


def _check_reader(target: Any, what: str, origin: object) -> None:
    if getattr(target, 'reads_recipe', False):
        raise UnsafeFileError(
            f'{origin}: names {what}, which would read another recipe with consent of its own. A recipe has its own weights; '
            'trust=True, or --trust on the command line, reads others.'
        )


def _own_module(target: Any) -> bool:
    return (
        isinstance(target, type)
        and issubclass(target, nn.Module)
        and f'{target.__module__}.'.startswith(('strop.', 'torch.nn.'))
    )


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return True


def _registered(name: str, registries: Sequence[Any] = _REGISTRIES) -> Any:
    """Return what a name stands for in any registry, without importing anything for it."""
    MODELS.import_from_location()
    scope, dot, rest = name.partition('.')
    for root in registries:
        for registry in (root, *root.children.values()):
            if dot and scope == registry.scope and rest in registry.module_dict:
                return registry.module_dict[rest]
            if not dot and registry.scope in (MODELS.scope, MODELS.parent.scope) and name in registry.module_dict:
                return registry.module_dict[name]
    return None


def _located(name: str, trust: Trust, origin: object) -> Callable[..., Any]:
    if not _NAME.fullmatch(name):
        raise ExportError(f"{origin}: a factory is named 'module:function', but got {name!r}.")
    module, _, path = name.partition(':')
    own = module.startswith('strop.') or f'{module}.'.startswith('torch.nn.')
    if not own and not trust.permits(module):
        raise _unsafe(origin, f'the factory {name!r}', module.partition('.')[0])
    try:
        target: Any = importlib.import_module(module)
    except ImportError as error:
        raise ExportError(f'{origin}: the module of the factory {name!r} cannot be imported ({error}).') from error
    for part in path.split('.'):
        if not hasattr(target, part):
            raise ExportError(f'{origin}: there is no {part!r} in the factory {name!r}.{near(part, dir(target))}')
        target = getattr(target, part)
    if not trust.everything:
        _check_reader(target, f'the factory {name!r}', origin)
    if not (_own_module(target) if own and not trust.permits(module) else trust.permits_object(target)):
        raise _unsafe(origin, f'{name!r}, which is no model class or function of that package', module.partition('.')[0])
    if not callable(target):
        raise ExportError(f'{origin}: the factory {name!r} is a {type(target).__name__}, which cannot be called.')
    return target  # type: ignore[no-any-return]


def _unsafe(origin: object, what: str, package: str) -> UnsafeFileError:
    return UnsafeFileError(
        f'{origin}: names {what}, and building it would run code outside Strop and torch.nn. Nothing was run. If you trust '
        f'the origin of the recipe, allow that package (allow=[{package!r}]), allow all (trust=True), or give the function '
        'that builds the supernet yourself (factory=...).'
    )


def _names_in(value: Any, trust: Trust | None = None, permitted: bool = False) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        permitted = permitted or (trust is not None and _is_permitted(value.get('type'), trust))
        records_calls = str(value.get('type')).rpartition('.')[2].startswith(('Function', 'Method'))
        names = {'type', '_scope_', *_PATHS} - ({'source'} if not records_calls else set())
        for key, item in value.items():
            if isinstance(item, str) and key in names:
                yield key, item
            elif (item and key in (*_CHECKPOINTS, 'cfg_path')) or (
                item and not permitted and (key in _OWN_CHECKPOINTS or (key == 'pretrained' and isinstance(item, str)))
            ):
                yield key, str(item)
            elif key in _PRETRAINED and isinstance(item, Mapping):
                yield from ((f'{key}.{entry}', str(item[entry])) for entry in _FETCHING if item.get(entry))
            else:
                yield from _names_in(item, trust)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _names_in(item, trust)


def _is_permitted(kind: Any, trust: Trust) -> bool:
    """Whether the class of a config is of a package that the reader permits."""
    if not isinstance(kind, str):
        return False
    return trust.permits(kind) or trust.permits(str(getattr(_registered(kind), '__module__', '')))


def _import(modules: Sequence[str], origin: object) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ExportError(
                f'{origin}: the module {module!r}, which registers its classes, cannot be imported ({error}).'
            ) from error


def _from_config(config: Mapping[str, Any]) -> Any:
    with DefaultScope.overwrite_default_scope('strop'):
        return MODELS.build(_copied(config))


def _copied(value: Any) -> Any:
    # Classes may take their arguments apart; the recipe stays as it is. Those of mmdet read them as attributes.
    if isinstance(value, Mapping):
        return ConfigDict({key: _copied(item) for key, item in value.items()})
    return [_copied(item) for item in value] if isinstance(value, list) else value


# -- from a factory to a recipe ---------------------------------------------------------------------------


def describe(factory: str | Callable[..., Any] | Mapping[str, Any], args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the `supernet` part of a recipe.

    Args:
        factory: A config, a function or class, or its name 'module:function'.
        args: Keyword arguments of the function.

    Raises:
        ConfigError: If it is none of these, or holds something that JSON does not.

    >>> describe('torch.nn:Linear', {'in_features': 3, 'out_features': 1})
    {'factory': 'torch.nn:Linear', 'args': {'in_features': 3, 'out_features': 1}}
    """
    if isinstance(factory, Mapping):
        if args is not None:
            raise ConfigError('`factory_args` are for a function; a config has its arguments inside.')
        if not isinstance(factory.get('type'), (str, type)):
            raise ConfigError(f"A config needs the key 'type', but has only {sorted(map(str, factory))}.")
        config = portable(factory, 'the config', config=True)
        scope = DefaultScope.get_current_instance()
        if scope is not None and scope.scope_name not in ('strop', 'mmrazor', 'mmengine'):
            config.setdefault('_scope_', scope.scope_name)
        return {'config': config, 'imports': _imports(config)}
    if isinstance(factory, str):
        if not _NAME.fullmatch(factory):
            raise ConfigError(
                f"A factory is named 'module:function', such as 'mypkg.models:make_supernet', but got {factory!r}."
            )
        name = factory
    elif callable(factory) and hasattr(factory, '__qualname__'):
        name = f'{factory.__module__}:{factory.__qualname__}'
        if not found_by_name(name, factory):
            print_log(
                f'The factory {name!r} cannot be imported by other programs: give one at the top of a module, or '
                'load_recipe(folder, factory=...) when the folder is read.',
                logger='current', level=logging.WARNING,
            )  # fmt: skip
    else:
        raise ConfigError(f"`factory` is a config, a function, a class or 'module:function', but got {type(factory).__name__}.")
    return {'factory': name, 'args': portable(args or {}, 'factory_args')}


def found_by_name(name: str, factory: Any = None) -> bool:
    """Whether another program can find a factory by its name 'module:function'.

    A script, a function inside another one and a bound method cannot be imported.

    Args:
        name: The name.
        factory: What the name has to lead to in this program, if given.

    >>> found_by_name('torch.nn:Linear'), found_by_name('__main__:make'), found_by_name('nets:make.<locals>.inner')
    (True, False, False)
    """
    module, _, path = name.partition(':')
    if not _NAME.fullmatch(name) or module == '__main__':
        return False
    if factory is None:
        return True
    found: Any = sys.modules.get(module)
    for part in path.split('.'):
        found = getattr(found, part, None)
    return bool(found == factory)  # a class method is another object each time


def portable(value: Any, place: str, config: bool = False) -> Any:
    """Return arguments as JSON holds them: tuples become lists, classes their dotted names.

    Args:
        value: The arguments.
        place: What they are, for messages.
        config: Also take out what would read another file: a `fix_subnet` file and the model of a `cfg_path` are put in, and
            `Pretrained` initializations and `pretrained` checkpoints are left out, because the recipe brings the weights.

    Raises:
        ConfigError: If something has no such form.

    >>> portable({'type': nn.ReLU, 'out_indices': (3,)}, 'cfg')
    {'type': 'torch.nn.modules.activation.ReLU', 'out_indices': [3]}
    """
    if isinstance(value, Mapping):
        result = {}
        if config:
            value = without_weights(model_config(value)[0] if 'cfg_path' in value and 'type' not in value else value)
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f'{place} has the key {key!r}; the keys in a recipe are strings.')
            if config and key == 'fix_subnet' and isinstance(item, str):
                item = choices_of(read_document(item, 'a subnet file'))
            elif config and key == 'fix_subnet' and isinstance(item, Subnet):
                item = dict(item)
            result[key] = portable(item, f'{place}[{key!r}]', config)
        return result
    if isinstance(value, (list, tuple)):
        return [portable(item, f'{place}[{number}]', config) for number, item in enumerate(value)]
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and abs(value) < float('inf')):
        return value
    raise ConfigError(
        f'{place} is a {type(value).__name__} ({value!r:.60}), which a recipe cannot hold. Give text, '
        'numbers, lists and mappings, '
        'or a factory that makes the object.'
    )


def supernet_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Take the architecture out of a model config, and the subnet that it is fixed to, if any.

    `dict(type='SPOS', architecture=..., mutable_cfg=...)`, `dict(type='sub_model', cfg=..., fix_subnet=...)`,
    `dict(type='PlainArchitecture', module=...)` and MMRazor 0.x's `dict(type='MMClsArchitecture', model=...)` are unwrapped.

    Returns:
        The config of the supernet, and a subnet (file or mapping) or None.

    >>> supernet_config(dict(type='SPOS', architecture=dict(type='sub_model', cfg=dict(type='Net'), fix_subnet={'a': 1})))
    ({'type': 'Net'}, {'a': 1})
    """
    config = dict(config)
    name = config.get('type', '')
    short = str(getattr(name, '__name__', name)).rpartition('.')[2]
    found = name if isinstance(name, type) else _registered(str(name))
    subnet = None
    if short == 'sub_model':
        inner, subnet = config.get('cfg'), config.get('fix_subnet')
    elif isinstance(found, type) and issubclass(found, BaseAlgorithm):
        inner, subnet = config.get('architecture'), config.get('mutable_cfg')
    elif short == 'PlainArchitecture':
        inner = config.get('module')
    elif short.endswith('Architecture') and isinstance(config.get('model'), Mapping):
        inner = config['model']
    else:
        return config, None
    if not isinstance(inner, Mapping):
        raise ConfigError(
            f'The architecture inside type={short!r} is a {type(inner).__name__}, not a config, so the recipe '
            'cannot say how it is '
            "built. Give factory='module:function' that makes it."
        )
    config, deeper = supernet_config(inner)
    return config, deeper if deeper is not None else subnet


def without_weights(value: Any) -> Any:
    """Return a config without what would read weights from elsewhere, and change nothing else of the model.

    >>> without_weights({'type': 'Net', 'pretrained': 'x.pth', 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'x.pth'}})
    {'type': 'Net', 'init_cfg': None}
    """
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if key in _CHECKPOINTS or (key == 'pretrained' and item):
                continue
            if key == 'init_cfg':
                item = _without_pretrained(item)
            elif key in _PRETRAINED and isinstance(item, Mapping):
                item = {entry: each for entry, each in item.items() if entry not in _FETCHING}
            result[key] = without_weights(item)
        return result
    return [without_weights(item) for item in value] if isinstance(value, (list, tuple)) else value


def _without_pretrained(init_cfg: Any) -> Any:
    if isinstance(init_cfg, Mapping):
        return None if str(init_cfg.get('type')).rpartition('.')[2].startswith('Pretrained') else init_cfg
    if isinstance(init_cfg, (list, tuple)):
        return [item for item in map(_without_pretrained, init_cfg) if item is not None]
    return init_cfg


def _imports(config: Any) -> list[str]:
    """Return the modules outside Strop, MMEngine and torch that registered the classes of a config."""
    modules = set()
    for key, name in _names_in(config):
        module = str(getattr(_registered(name), '__module__', '')) if key == 'type' else ''
        if module and module.partition('.')[0] not in ('strop', 'mmengine', 'torch'):
            modules.add(module)
    return sorted(modules)
