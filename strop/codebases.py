"""The codebases of OpenMMLab: what they are called, whether they are there and work, and where their configs are."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE, _get_cfg_metainfo
from mmengine.logging import print_log
from mmengine.registry import Registry

from strop.errors import ConfigError, MissingDependencyError, listed, near
from strop.unsupported import RENAMED_ARGUMENTS

#: Import name of a codebase -> its name on the package index.
DISTRIBUTIONS = {
    'mmpretrain': 'onedl-mmpretrain',
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
}
#: What codebases were called before.
SUCCESSORS = {'mmcls': 'mmpretrain'}

# MMEngine asks for mmseg under the name that its older distribution had.
MODULE2PACKAGE['mmseg'] = 'mmseg'

#: The sentence that ends every error about a codebase that is not there or does not import.
HOW_TO_INSTALL = (
    "pip install 'strop[openmmlab]' brings mmpretrain, mmdet and mmseg; for mmcv's operators, which detectors need, `make "
    'openmmlab` in a checkout builds them (docs/openmmlab.md).'
)


def current_name(name: str) -> str:
    """Return what a codebase is called today.

    >>> current_name('mmcls'), current_name('mmdet')
    ('mmpretrain', 'mmdet')
    """
    return SUCCESSORS.get(name, name)


def is_codebase(name: str) -> bool:
    """Tell whether `name` is, or was, the import name of a codebase that is known here."""
    return current_name(name) in DISTRIBUTIONS


def codebase_of(model: object) -> str | None:
    """Return the codebase that a model's class comes from or is built on, such as 'mmdet', if there is one.

    >>> codebase_of(object()) is None
    True
    """
    packages = (kind.__module__.partition('.')[0] for kind in type(model).__mro__)
    return next((package for package in packages if package in DISTRIBUTIONS), None)


def installed(name: str) -> bool:
    """Tell whether a codebase is installed; it is not imported for that."""
    spec = importlib.util.find_spec(name)
    # Python gives a bare folder of that name a spec without a file, and old import lines may be answered for by Strop.
    return spec is not None and spec.origin is not None


def version_of(name: str) -> str:
    """Return the installed version of a codebase, or 'of an unknown version'."""
    for distribution in (DISTRIBUTIONS.get(name, name), name):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return 'of an unknown version'


def check_codebase(name: str, wanted: str) -> None:
    """Import the registries of a codebase, or say why that is not possible.

    Args:
        name: Import name of the codebase, today's or an old one.
        wanted: What is needed of it, for the message.

    Raises:
        MissingDependencyError: If it is not installed, or cannot be imported.

    >>> check_codebase('mmdet3d', "type='mmdet3d.VoxelNet'")
    Traceback (most recent call last):
    strop.errors.MissingDependencyError: type='mmdet3d.VoxelNet' needs the package mmdet3d, which is not installed...
    """
    package = current_name(name)
    known_as = '' if package == name else f' ({name} is called {package} today)'
    how = HOW_TO_INSTALL if package in DISTRIBUTIONS else f'Install {package}.'
    if not installed(package):
        raise MissingDependencyError(f'{wanted} needs the package {package}, which is not installed{known_as}. {how}')
    try:
        importlib.import_module(f'{package}.registry')
        importlib.import_module(f'{package}.models')
    except Exception as error:
        raise MissingDependencyError(
            f'{wanted} needs the package {package}, which is installed ({version_of(package)}) but cannot be imported: '
            f'{type(error).__name__}: {error}. {_cause(package, error)}'
        ) from error


def check_scope(scope: str | None) -> None:
    """Check that the codebase of a default scope can be imported; MMEngine only warns, and then misses its types.

    For a codebase under its old name Strop stands in as far as it can, so that it may be missing.

    Raises:
        MissingDependencyError: If it is not installed, or cannot be imported.

    >>> check_scope('strop')
    """
    if scope is not None and is_codebase(scope) and (scope not in SUCCESSORS or installed(current_name(scope))):
        check_codebase(scope, f'default_scope={scope!r}')


def _cause(package: str, error: Exception) -> str:
    if 'mmcv._ext' in str(error):
        return f'mmcv was installed without its operators: {HOW_TO_INSTALL}'
    if 'transformers' in str(error) or isinstance(error, TypeError):
        found = version_of('transformers')
        return f"{package} needs transformers 4 (found {found}): pip install 'transformers>=4.57,<5'."
    return HOW_TO_INSTALL


def where_else(name: str, root: Registry, scope: str | None) -> str:
    """Return which codebases have a registered name that was not found, as the end of an error message.

    Args:
        name: The registered name, perhaps with a scope before it.
        root: MMEngine's registry of that kind.
        scope: The default scope.

    Raises:
        MissingDependencyError: If the scope before the name is a codebase that is not installed or cannot be imported.
    """
    before, _, bare = name.rpartition('.')
    if is_codebase(before):
        check_codebase(before, f'type={name!r}')
        package = current_name(before)
        own = root.children.get(package)
        if own is not None:
            own.import_from_location()
        others = [*_owners(bare, root, but=package), *(['strop'] if _has(root.children.get('strop'), bare) else [])]
        instead = f' {_have(others)} one: ' + ' or '.join(f"type='{other}.{bare}'" for other in others) + '.' if others else ''
        return f' {package} {version_of(package)} has no {bare!r}.{instead or near(bare, own.module_dict if own else {})}'
    if before:
        return ''
    found = _owners(bare, root)
    if found:
        return f" {_have(found)} a {bare!r}: write type='{found[0]}.{bare}', or _scope_='{found[0]}' in the dict around it."
    if scope is not None and is_codebase(scope) and not installed(current_name(scope)):
        called = '' if current_name(scope) == scope else f', today {current_name(scope)},'
        return f' The default scope is {scope!r}, which{called} is not installed. {HOW_TO_INSTALL}'
    return ''


def _owners(bare: str, root: Registry, but: str = '') -> list[str]:
    found = []
    for package in DISTRIBUTIONS:
        if package == but or not installed(package):
            continue
        try:
            check_codebase(package, bare)
        except MissingDependencyError:
            continue
        found += [package] if _has(root.children.get(package), bare) else []
    return found


def _has(registry: Registry | None, bare: str) -> bool:
    if registry is None:
        return False
    registry.import_from_location()
    return bare in registry.module_dict


def _have(packages: list[str]) -> str:
    names = ' and '.join('Strop' if package == 'strop' else package for package in packages)
    return f'{names} {"have" if len(packages) > 1 else "has"}'


def wrong_arguments(error: TypeError) -> ConfigError | None:
    """Return an error that says which class takes no such argument or lacks one, if that is what `error` is about.

    It is one for the classes of codebases, whose arguments change with their versions, and for those of Strop, where a
    config of MMRazor may have an older name. Those of others keep their `TypeError`.

    Args:
        error: What building from a config raised.
    """
    unknown = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
    lacking = re.search(r'missing \d+ required (?:positional|keyword-only) arguments?: (.+)', str(error))
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not (unknown or lacking):
        return None
    known = trace.tb_frame.f_locals
    # MMEngine's function that calls the class; with a wrong argument the call ends before the class's own code begins, but
    # where the class hands what it doesn't know on to its parent.
    kind = known.get('obj_cls')
    if kind is None and unknown and trace.tb_frame.f_code.co_name == '__init__' and unknown[1] in (known.get('kwargs') or {}):
        kind = type(known.get('self'))
    package = kind.__module__.partition('.')[0] if isinstance(kind, type) else ''
    if not isinstance(kind, type) or package not in (*DISTRIBUTIONS, 'strop'):
        return None
    taken = list(
        dict.fromkeys(
            parameter
            for base in kind.__mro__[:-1]
            for parameter in inspect.signature(base.__init__).parameters  # type: ignore[misc]
            if parameter not in ('self', 'args', 'kwargs')
        )
    )
    takes = f'It takes {listed(taken, 20)}.'
    version = '' if package == 'strop' else f' of {package} {version_of(package)}'
    if lacking:
        return ConfigError(f'{kind.__name__}{version} needs {lacking[1]}, which the config does not give. {takes}')
    assert unknown is not None, 'it is one of the two'
    name = unknown[1]
    if package == 'strop':
        instead = f' Today it is {RENAMED_ARGUMENTS[name]}.' if name in RENAMED_ARGUMENTS else near(name, taken)
        return ConfigError(f'{kind.__name__} takes no {name!r}.{instead} {takes}')
    instead = " Today it is init_cfg=dict(type='Pretrained', checkpoint=...) of the backbone." if name == 'pretrained' else ''
    return ConfigError(
        f'{kind.__name__}{version} takes no {name!r}: the config is of an older or newer {package}, or misspelled.'
        f'{instead or near(name, taken)} {takes}'
    )


# -- configs ------------------------------------------------------------------------------------

_BATCH = re.compile(r'b\d+x\d+|\d+xb\d+')
_SYNONYMS = {'imagenet': 'in1k', 'mstrain': 'ms'}


def config_folder(package: str) -> Path | None:
    """Return the folder of the configs that an installed codebase ships, if there is one."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    return next((folder for folder in (root / '.mim' / 'configs', root.parent / 'configs') if folder.is_dir()), None)


def find_codebase_config(name: str) -> Path:
    """Return the file that `package::path` means; a file that was renamed since is found, and that is said.

    A name is the same when it differs in hyphens and underscores, or in the order of its parts, in the size of the batch, or in
    words that were replaced by others (`faster_rcnn_r50_fpn_1x_coco`, `faster-rcnn_r50_fpn_1x_coco`).

    Args:
        name: For example 'mmdet::_base_/models/faster_rcnn_r50_fpn.py'. `mmcls::` means mmpretrain.

    Raises:
        MissingDependencyError: If the package is not installed.
        ConfigError: If it ships no such config, or several that may be meant; the message names them, or near ones.
    """
    scope, _, wanted = name.partition('::')
    package = current_name(scope)
    if not installed(package):
        check_codebase(scope, f'The config {name!r}')
    folder = config_folder(package)
    if folder is None:
        raise ConfigError(f'{name!r}: the package {package} ({version_of(package)}) ships no configs.')
    wanted = wanted if Path(wanted).suffix else f'{wanted}.py'
    file = folder / wanted
    if folder.resolve() not in file.resolve().parents:
        raise ConfigError(f'{name!r} leads out of the configs of {package}.')
    if file.is_file():
        return file
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob(f'*{file.suffix}'))}
    for key in (_spelling, _parts):
        found = [other for other in files if key(other) == key(wanted)]
        if len(found) == 1:
            print_log(
                f'{name!r} is called {f"{package}::{found[0]}"!r} in {package} {version_of(package)}; that is read.', 'current'
            )
            return files[found[0]]
        if found:
            raise ConfigError(
                f'{package} {version_of(package)} ships no config {wanted!r}, and it may have become '
                f'{" or ".join(repr(other) for other in found[:6])}. Name the one that is meant.'
            )
    others = near(wanted, files) or _of_the_same_folder(wanted, files)
    raise ConfigError(
        f'{package} {version_of(package)} ships no config {wanted!r}: it is of an older or newer {package}, or misspelled.'
        f'{others}'
    )


def model_config(given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the model of the config that `cfg_path` names, and whether its pretrained weights are asked for.

    Args:
        given: `cfg_path`, perhaps `pretrained`, and keys that replace those of the model.

    Raises:
        MissingDependencyError: If the codebase is not installed.
        ConfigError: If there is no such config, it has no model, or no weights are known for it.
    """
    changes = {name: value for name, value in given.items() if name not in ('cfg_path', 'pretrained')}
    pretrained = bool(given.get('pretrained'))
    name = str(given['cfg_path'])
    package = current_name(name.partition('::')[0]) if '::' in name else None
    file = find_codebase_config(name) if package is not None else Path(name)
    if not file.is_file():
        raise ConfigError(f'`cfg_path` is a file or package::path, but there is nothing at {name!r}.')
    config = Config.fromfile(file, import_custom_modules=False)
    if not isinstance(config.get('model'), Mapping):
        raise ConfigError(f'The config {name!r} has no `model`; it has {listed(config)}.')
    model = Config._merge_a_into_b(changes, config.model)
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    scope = package or config.get('default_scope')
    if scope is not None:
        model.setdefault('_scope_', scope)
    if pretrained:
        model['init_cfg'] = dict(type='Pretrained', checkpoint=_weights_of(name, package, file))
    return model, pretrained


def _weights_of(name: str, package: str | None, file: Path) -> str:
    folder = None if package is None else config_folder(package)
    try:
        meta = {} if folder is None else _get_cfg_metainfo(str(folder.parent.parent), file.relative_to(folder).as_posix())
    except (OSError, ValueError, KeyError):
        meta = {}
    if 'Weights' not in meta:
        raise ConfigError(
            f'No pretrained weights are known for {name!r}. Give those of your own instead of pretrained=True: '
            "init_cfg=dict(type='Pretrained', checkpoint=...)."
        )
    return str(meta['Weights'])


def _spelling(path: str) -> str:
    return path.lower().replace('-', '_')


def _parts(path: str) -> tuple[str, list[str]]:
    folder, _, name = _spelling(path).rpartition('/')
    parts = [part for part in Path(name).stem.split('_') if not _BATCH.fullmatch(part)]
    return folder, sorted(_SYNONYMS.get(part, part) for part in parts)


def _of_the_same_folder(wanted: str, files: Iterator[str] | dict[str, Path]) -> str:
    folder = _spelling(wanted).rpartition('/')[0]
    found = [other for other in files if _spelling(other).rpartition('/')[0] == folder]
    return f' In {folder} there are {", ".join(found[:6])}{" and more" if len(found) > 6 else ""}.' if found else ''
