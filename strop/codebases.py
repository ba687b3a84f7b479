"""The codebases of OpenMMLab: what they are called, whether they are there and work, and where their configs are."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import print_log
from mmengine.registry import Registry

from strop.errors import ConfigError, MissingDependencyError, near

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
        own = root.children.get(current_name(before))
        names = own.module_dict if own is not None else {}
        return f' {current_name(before)} {version_of(current_name(before))} has no {bare!r}.{near(bare, names)}'
    if before:
        return ''
    found = []
    for package in DISTRIBUTIONS:
        if not installed(package):
            continue
        try:
            check_codebase(package, name)
        except MissingDependencyError:
            continue
        registry = root.children.get(package)
        if registry is not None:
            registry.import_from_location()
            found += [package] if bare in registry.module_dict else []
    if found:
        several = f'{" and ".join(found)} have' if len(found) > 1 else f'{found[0]} has'
        return f" {several} a {bare!r}: write type='{found[0]}.{bare}', or _scope_='{found[0]}' in the dict around it."
    if scope is not None and is_codebase(scope) and not installed(current_name(scope)):
        called = '' if current_name(scope) == scope else f', today {current_name(scope)},'
        return f' The default scope is {scope!r}, which{called} is not installed. {HOW_TO_INSTALL}'
    return ''


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
