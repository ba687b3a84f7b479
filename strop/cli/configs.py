"""Configs on the command line: found, parsed with errors that name the place, and changed by options."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.errors import ConfigError, StropError, listed, near

if TYPE_CHECKING:
    from mmengine.config import Config

SUFFIXES = ('.py', '.json', '.yaml', '.yml')
_OTHER_PACKAGES = re.compile(r'\b(mmrazor|mmcls|mmpretrain|mmdet|mmseg|mmcv|nni)\b')
# What users put classes of their own into: a package's folder, beside the config or in the current one.
_OLD_FOLDERS = ('mmrazor', 'mmcls', 'nni')
# Top-level keys that a config may have without MMEngine's Runner taking them as arguments.
_KEYS = (
    'algorithm',
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
)


def load_config(name: str, settings: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply `--cfg-options`, and import what its `custom_imports` name.

    The folder of the config and the current one can be imported from. Old import lines of MMRazor, NNI and mmcls, and configs
    and types of mmpretrain, mmdet and mmseg, work where the config names these packages or has `custom_imports`, and where one
    of these folders has a `mmrazor`, `mmcls` or `nni` of the user's, whose packages are imported.

    Args:
        name: A file, or `package::path` for a config of an installed package.
        settings: Key with dots -> value.

    Raises:
        ConfigError: If there is no such config, it cannot be parsed, or an option does not fit; the message names the
            place and near matches.
    """
    from mmengine.config import Config

    path = find_config(name)
    folders = (path.parent.resolve(), Path.cwd())
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    own = any((folder / name).is_dir() for folder in folders for name in _OLD_FOLDERS)
    _activate_old_names(f'{path.read_text(encoding="utf-8", errors="replace")} {settings or ""}', own)
    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except (SyntaxError, FileNotFoundError, ModuleNotFoundError) as error:
        raise _explained(path, error) from error
    except StropError:
        raise
    except Exception as error:
        raise ConfigError(f'{_place_in(path, error)}: {type(error).__name__}: {error}') from error
    if not isinstance(config._cfg_dict, Mapping):
        raise ConfigError(f'{path} must hold keys and values, but holds a {type(config._cfg_dict).__name__}.')
    _activate_old_names(config.text or '', bool(config.get('custom_imports')))
    if settings:
        change(config, settings)
    if 'algorithm' in config:
        config.model = config.algorithm  # as MMRazor 0.x wrote it, where `model` may be what the algorithm compresses
    _import_modules(path, config.get('custom_imports'))
    return config


def find_config(name: str) -> Path:
    """Return the path of a config.

    Raises:
        ConfigError: If there is none; the message names the files that are near.
    """
    if '::' in name:
        return _packaged(name)
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        raise ConfigError(f'{path} is a folder; a config is a file. In it there are {listed(found)}.')
    if not path.is_file():
        raise ConfigError(f'There is no config at {path}.{_near_files(path)}')
    if path.suffix not in SUFFIXES:
        raise ConfigError(f'A config ends with {", ".join(SUFFIXES)}, but got {path}.')
    return path


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f' The folder {folder} does not exist.'
    found = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
    return near(path.name, found) or (
        f' In {folder} there are {listed(found)}.' if found else f' There are no configs in {folder}.'
    )


def _packaged(name: str) -> Path:
    from mmengine.config import Config

    package, _, wanted = name.partition('::')
    importlib.import_module('strop.registry')  # which tells MMEngine of the configs that Strop ships
    codebases = importlib.import_module('strop.codebases')
    if codebases.is_codebase(package):
        return codebases.find_codebase_config(name)
    if not package.isidentifier() or importlib.util.find_spec(package) is None:
        raise ConfigError(f'{name}: the package {package!r} is not installed.{near(package, ["strop", "mmpretrain", "mmdet"])}')
    try:
        return Path(Config._get_cfg_path(name, '')[0])
    except (ImportError, OSError, ValueError, KeyError):
        root = Path(importlib.import_module(package).__path__[0]) / '.mim' / 'configs'
        found = sorted(file.relative_to(root).as_posix() for file in root.rglob('*.py')) if root.is_dir() else []
        hint = near(wanted, found) or (f' There are {listed(found)}.' if found else '')
        raise ConfigError(f'The package {package!r} ships no config {wanted!r}.{hint}') from None


def _activate_old_names(text: str, anyway: bool) -> None:
    if anyway or _OTHER_PACKAGES.search(text):
        importlib.import_module('strop.compat').activate()


def _explained(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, SyntaxError):
        for file in _with_bases(path):
            try:
                compile(file.read_text(encoding='utf-8'), str(file), 'exec')
            except SyntaxError as found:
                return ConfigError(f'{file}:{found.lineno}: {found.msg}: {(found.text or "").strip()}')
        return ConfigError(f'{path}: {error}')
    for file in _with_bases(path):
        for base in _bases(file):
            wanted = file.parent / base
            if '::' not in base and not wanted.is_file():
                return ConfigError(f'{file}: its `_base_` {base!r} does not exist.{_near_files(wanted)}')
    return ConfigError(f'{_place_in(path, error)}: {error}')


def _with_bases(path: Path) -> Iterator[Path]:
    """Yield a config and those that it inherits from, as far as they can be read."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop(0)
        if file.resolve() in seen or not file.is_file():
            continue
        seen.add(file.resolve())
        yield file
        waiting += [file.parent / base for base in _bases(file) if '::' not in base]


def _bases(path: Path) -> list[str]:
    try:
        body = ast.parse(path.read_text(encoding='utf-8')).body
    except (SyntaxError, ValueError):
        return []
    for node in body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == '_base_' for target in node.targets
        ):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return []
            return [value] if isinstance(value, str) else [str(item) for item in value]
    return []


def _place_in(path: Path, error: Exception) -> str:
    """Return `file:line` of the config, or of a base of it, that was being run when the error came."""
    files = {str(file.resolve()) for file in _with_bases(path)}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f'{frame.filename}:{frame.lineno}'
    return str(path)


def _import_modules(path: Path, wanted: Any) -> None:
    if not wanted:
        return
    names = wanted.get('imports') if isinstance(wanted, Mapping) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: `custom_imports` must be dict(imports=['module', ...]), but got {wanted!r}.")
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if wanted.get('allow_failed_imports', False):
                continue
            missing = isinstance(error, ModuleNotFoundError) and error.name is not None and name.startswith(error.name)
            hint = near(name, [file.stem for file in path.parent.glob('*.py')]) if missing else ''
            raise ConfigError(
                f'{path}: {name!r} of `custom_imports` could not be imported: {error}.{hint}'
                + (' It is looked for beside the config, in the current folder and in PYTHONPATH.' if missing else '')
            ) from error


def change(config: Config, settings: Mapping[str, Any]) -> None:
    """Merge `--cfg-options` into a config, in place.

    Raises:
        ConfigError: If a top-level key is neither in the config nor one that MMEngine knows, or a path leads nowhere.
    """
    from mmengine.runner import Runner

    # What a config may have without setting it: an optional argument is no typing error.
    known = [*config, *(name for name in inspect.signature(Runner.__init__).parameters if name not in ('self', 'cfg')), *_KEYS]
    for key in settings:
        first = key.partition('.')[0]
        if first not in known:
            raise ConfigError(
                f'--cfg-options {key}: the config has no {first!r}.{near(first, known)} It has {listed(config, 20)}.'
            )
        _check_path(config, key)
    try:
        config.merge_from_dict(dict(settings))
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(f'--cfg-options do not fit the config: {error.args[0] if error.args else error}') from error


def _check_path(config: Config, key: str) -> None:
    value: Any = config._cfg_dict
    parts = key.split('.')
    for position, part in enumerate(parts):
        where = '.'.join(parts[:position]) or 'the config'
        if not part:
            raise ConfigError(f'--cfg-options {key}: a name between the dots is missing.')
        if isinstance(value, Mapping):
            if part not in value:
                return
            value = value[part]
        elif isinstance(value, (list, tuple)):
            if not part.isdigit() or int(part) >= len(value):
                raise ConfigError(f'--cfg-options {key}: {where} is a list of {len(value)}, so {part!r} is no position in it.')
            value = value[int(part)]
        elif value is None:
            return
        else:
            raise ConfigError(f'--cfg-options {key}: {where} is {value!r} and has nothing inside.')


def use_mixed_precision(config: Config) -> None:
    """Turn the optimizer wrapper of a config into `AmpOptimWrapper`, as `--amp` asks.

    Raises:
        ConfigError: If the config has no optimizer, or another kind of wrapper.
    """
    wrapper = config.get('optim_wrapper')
    if not isinstance(wrapper, Mapping):
        raise ConfigError('--amp changes `optim_wrapper`, which the config does not have.')
    kind = wrapper.get('type', 'OptimWrapper')
    name = kind if isinstance(kind, str) else kind.__name__
    if name.rpartition('.')[2] == 'AmpOptimWrapper':
        return
    if name.rpartition('.')[2] != 'OptimWrapper':
        raise ConfigError(f"--amp needs an optim_wrapper of type 'OptimWrapper', but the config has {name!r}.")
    config.optim_wrapper = {**wrapper, 'type': 'strop.AmpOptimWrapper'}


def default_work_dir(config: Config, name: str, given: str | None) -> str:
    """Return the folder of a run: as given, else the config's own, else `work_dirs/<name of the config>`."""
    return given or config.get('work_dir') or str(Path('work_dirs') / Path(name.rpartition('::')[2]).stem)
