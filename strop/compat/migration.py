"""What a config, a script or an experiment file of MMRazor or NNI needs to run here, found without running it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from strop import registry
from strop.codebases import HOW_TO_INSTALL, current_name, find_codebase_config, installed, is_codebase
from strop.compat.config_source import Edit, Settings, Source, edited
from strop.compat.finder import Finder, OldImportError, Table
from strop.compat.mmrazor import MMRAZOR
from strop.compat.nni import NNI
from strop.compat.openmmlab import MMCLS, MMCV
from strop.compat.runtime_keys import MMCV_ONLY, Change, RuntimeKeys
from strop.compat.shipped import near_shipped, shipped
from strop.errors import ConfigError, near
from strop.files import read_text
from strop.search.experiment_file import read_experiment
from strop.unsupported import RENAMED_ARGUMENTS, not_yet

TABLES = {table.root: table for table in (MMRAZOR, NNI, MMCLS, MMCV)}
KINDS = ('change', 'by hand', 'note')
ACTIVATE = 'import strop.compat  # lets the old import lines below reach Strop'

#: Types of MMRazor's early releases -> the type that does their work. What they were configured with differs.
RENAMED = {
    'DetNAS': 'SPOS',
    'OneShotOP': 'OneShotMutableOP',
    'DifferentiableOP': 'DiffMutableOP',
    'GumbelOP': 'OneHotMutableOP',
    'AutoSlimValLoop': 'SubnetValLoop',
}
REWRITTEN = {
    'GeneralDistill': "type='SingleTeacherDistill' with `teacher` beside the distiller",
    'SelfDistiller': "type='ConfigurableDistiller': recorders, distill_losses and loss_forward_mappings, not components",
    'SingleTeacherDistiller': (
        "type='ConfigurableDistiller': recorders, distill_losses and loss_forward_mappings, not components; `teacher` goes "
        'into the algorithm'
    ),
    'RatioPruner': "type='OneShotChannelMutator' as the `mutator`; ratios are candidate_choices of its channel_unit_cfg",
    'StructurePruner': "type='ChannelMutator' as the `mutator`",
    'EvolutionSearcher': "train_cfg = dict(type='mmrazor.EvolutionSearchLoop', ...)",
    'GreedySearcher': "test_cfg = dict(type='mmrazor.AutoSlimGreedySearchLoop', ...)",
}
#: (type, argument) -> why the argument makes no difference; '' stands for any type.
NO_EFFECT = {
    ('ChannelAnalyzer', 'tracer_type'): 'models are traced by running them once',
    ('', 'file_client_args'): 'files are written to the local disk',
    ('SearchableImageClassifier', 'connect_head'): 'a head follows the widths of its backbone by itself',
    ('MMArchitectureQuant', 'deploy_cfg'): '`strop quantize` and `strop export` write what is deployed',
}
#: Arguments of MMRazor's early releases -> where what they said goes.
MOVED = {**RENAMED_ARGUMENTS, 'input_shape': '`input_shape` of the ResourceEstimator in `estimator_cfg` of the loop'}
# Arguments that are taken where they say nothing, and refused otherwise.
_UNREAD = ('channel_cfg',)
#: Arguments of a channel mutator in MMRazor's first 1.x release, which are understood -> their names today.
FIRST_RELEASE = {'mutable_cfg': 'channel_unit_cfg', 'tracer_cfg': 'parse_cfg', 'skip_prefixes': 'ignored'}
# What is read as data, or unwrapped, rather than built.
_UNWRAPPED = ('MMClsArchitecture', 'MMDetArchitecture', 'MMSegArchitecture')
# Names inside these are layers' short names, which the layers themselves look up.
_SHORT = re.compile(r'(norm|act|conv|padding|upsample|init|paramwise|mp|dist|env|plugin)_cfg$')
_SUFFIXES = ('', 'Recorder', 'Delivery')
_HANDLED = re.compile(r'observer$|fake_quant$|^quantizer_.*')
# What every config may have, and what a mutator reads from the config of its units.
_RESERVED = ('type', '_scope_', '_delete_', '_base_', 'name', 'init_cfg')
_OF_UNITS = ('default_args', 'units')


@dataclass(frozen=True)
class Migration:
    """What one file needs.

    Args:
        path: The file.
        changes: What was found, by line.
        text: The file's text.
    """

    path: Path
    changes: tuple[Change, ...]
    text: str

    @property
    def result(self) -> str:
        """The text with every change made that can be."""
        return edited(self.text, [edit for change in self.changes for edit in change.edits])

    def of(self, kind: str) -> list[Change]:
        """Return what was found of one kind: 'change', 'by hand' or 'note'."""
        return [change for change in self.changes if change.kind == kind]

    @property
    def runs(self) -> bool:
        """Whether the file works as it is."""
        return not self.of('change') and not self.of('by hand')


def examine(path: str | Path) -> Migration:
    """Find out what a file needs. It is parsed and never run.

    Args:
        path: A config or script (`.py`), or an experiment of NNI (`.yaml`, `.yml`, `.json`).

    Raises:
        ConfigError: If there is no such file, it is of another kind, or it cannot be parsed.
    """
    path = Path(path)
    if path.suffix not in ('.py', '.yaml', '.yml', '.json'):
        raise ConfigError(f'A config ends with .py, an experiment with .yaml, .yml or .json, but got {path}.')
    if not path.is_file():
        known = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f'There is no file {path}.{near(path.name, known)}')
    text = read_text(path, 'a config')
    if path.suffix != '.py':
        return Migration(path, tuple(_experiment(path)), text)
    source = Source(text, str(path))
    found = [*_imports(source), *_bases(source, path), *RuntimeKeys(source).changes(), *_types(source), *_algorithm(source)]
    return Migration(path, tuple(sorted(found, key=lambda change: (change.line or 0, KINDS.index(change.kind)))), text)


# -- experiments ------------------------------------------------------------------------------


def _experiment(path: Path) -> Iterator[Change]:
    try:
        _, notes = read_experiment(path)
    except ConfigError as error:
        yield Change(None, 'by hand', str(error).removeprefix(f'{path}: ').rstrip('.'))
        return
    for text in notes:
        yield Change(None, 'note', text.rstrip('.'))
    yield Change(None, 'note', f'`strop experiment run {path.name}` runs it as it is')


# -- imports ----------------------------------------------------------------------------------


def _imports(source: Source) -> Iterator[Change]:
    finder = Finder([])
    activated, first = False, None
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, '') for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            wanted = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        activated = activated or any(
            module == 'strop.compat' or (module, name) == ('strop', 'compat') for module, name in wanted
        )
        for module, name in wanted:
            table = TABLES.get(module.partition('.')[0])
            if table is None or finder.installed(table.root):
                continue
            problem = _unserved(table, module, name)
            if problem:
                yield Change(node.lineno, 'by hand', problem)
            elif first is None or node.lineno < first.lineno:
                first = node
    if first is not None and not activated:
        at = next((n for n in source.tree.body if n.lineno <= first.lineno <= (n.end_lineno or 0)), first)
        start, _ = source.span(at)
        yield Change(
            first.lineno,
            'change',
            'old import lines need `import strop.compat` before them',
            (Edit(start, start, f'{ACTIVATE}\n'),),
        )


def _unserved(table: Table, module: str, name: str) -> str:
    """Return why an import does not work, or ''."""
    try:
        found = importlib.import_module(module)
        if name and name != '*' and not hasattr(found, name):
            getattr(found, name)
    except (ImportError, AttributeError) as error:
        if isinstance(error, OldImportError) or type(error).__module__.startswith('strop'):
            return str(error).rstrip('.')
        return _answer(table, module) or f'{module} cannot be imported: {error}'
    return ''


def _answer(table: Table, module: str) -> str:
    parts = module.split('.')
    for length in range(len(parts), 0, -1):
        nearest = table.nearest.get('.'.join(parts[:length]))
        if nearest is not None:
            return f'{".".join(parts[:length])} is not supported yet by Strop. Nearest: {nearest}'
    return f'{module} is no module of {table.root} that Strop answers for'


# -- bases ------------------------------------------------------------------------------------


def _bases(source: Source, path: Path) -> Iterator[Change]:
    statement = source.assigned.get('_base_')
    if statement is None:
        return
    items = statement.value.elts if isinstance(statement.value, (ast.List, ast.Tuple)) else [statement.value]
    for item in items:
        if not isinstance(item, ast.Constant) or not isinstance(item.value, str):
            yield Change(item.lineno, 'note', f'the base {source.of(item)} is not a plain string and was not looked at')
            continue
        package, found, name = item.value.partition('::')
        if found and package in ('mmrazor', 'strop'):
            ours = shipped(name)
            if ours is None:
                yield Change(
                    item.lineno,
                    'by hand',
                    f'Strop ships no config {name!r}: copy the file beside this one{near_shipped(name)}',
                )
            elif ours != f'{package}::{name}' and ours != f'strop::{name}':
                edit = source.replaced(item, repr(ours))
                yield Change(item.lineno, 'change', f'the base {item.value!r} is {ours!r} here', (edit,))
        elif found:
            yield from _foreign_base(item, package, name)
        elif not (path.parent / item.value).is_file():
            files = [file.name for file in (path.parent / item.value).parent.glob('*.py')]
            ours = shipped(item.value)
            hint = f'; Strop ships {ours!r}' if ours else near(Path(item.value).name, files) or near_shipped(item.value)
            yield Change(item.lineno, 'by hand', f'the base {item.value!r} does not exist{hint}')


def _foreign_base(item: ast.Constant, package: str, name: str) -> Iterator[Change]:
    if not is_codebase(package):
        yield Change(item.lineno, 'by hand', f'the package {package!r} is none whose configs are known')
        return
    try:
        found = find_codebase_config(f'{package}::{name}')
    except Exception as error:  # a missing package, or one that cannot be imported
        yield Change(item.lineno, 'by hand', str(error).rstrip('.'))
        return
    if current_name(package) != package or found.name != Path(name).name:
        yield Change(
            item.lineno, 'note', f'the base {item.value!r} is {found.name} of {current_name(package)} today, which is found'
        )


# -- types and arguments ----------------------------------------------------------------------


def _known() -> dict[str, list[Any]]:
    """Return registered name -> the classes under it, of Strop and of MMEngine."""
    for module in ('hooks', 'runner', 'optim', 'visualization', 'evaluator', 'dataset', 'model', 'infer', '_strategy'):
        importlib.import_module(f'mmengine.{module}')
    found: dict[str, list[Any]] = {}
    for value in vars(registry).values():
        if isinstance(value, registry.Registry):
            value.import_from_location()
            for known in (value, value.parent):
                for name, cls in known.module_dict.items() if known is not None else ():
                    found.setdefault(name, []).append(cls)
    return found


def parameters_of(kind: Any) -> set[str] | None:
    """Return the arguments that a class or function takes, those of its parents with them; None if it takes any.

    >>> sorted(parameters_of(nn.ReLU))
    ['inplace']
    """
    names: set[str] = set()
    for parent in kind.__mro__ if isinstance(kind, type) else [kind]:
        if isinstance(parent, type) and '__init__' not in vars(parent):
            continue
        if parent in (object, nn.Module):
            return names
        try:
            parameters = inspect.signature(vars(parent)['__init__'] if isinstance(parent, type) else parent).parameters.values()
        except (TypeError, ValueError):
            return None
        names |= {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)} - {'self'}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            return names
    return None


def unknown_arguments(kinds: list[Any], given: Mapping[str, Any]) -> list[str]:
    """Return the arguments that none of some classes takes, but for those that configs give to any."""
    taken: set[str] = set()
    for kind in kinds:
        names = parameters_of(kind)
        if names is None or not getattr(kind, '__module__', '').startswith('strop.'):
            return []
        taken |= names
    return [name for name in given if name not in taken and name not in _RESERVED]


def _types(source: Source) -> Iterator[Change]:
    known = _known()
    scope = source.assigned.get('default_scope')
    default = ast.literal_eval(scope.value) if scope is not None and isinstance(scope.value, ast.Constant) else ''
    own = 'custom_imports' in source.assigned
    for settings in source.every():
        kind = settings.constant('type')
        if not isinstance(kind, str) or settings.root in MMCV_ONLY:
            continue
        yield from _without_effect(source, settings, kind)
        yield from _type(source, settings, kind, known, str(default or ''), own)


def _type(
    source: Source, settings: Settings, kind: str, known: Mapping[str, list[Any]], default: str, own: bool
) -> Iterator[Change]:
    scope, _, name = kind.rpartition('.')
    node = settings.values['type']
    later = not_yet(kind)
    if settings.parent == 'mutable_cfg' and name in ('OneShotMutableChannel', 'SlimmableMutableChannel'):
        return  # a channel mutator understands it
    kinds = next((known[name + suffix] for suffix in _SUFFIXES if name + suffix in known), None)
    if _HANDLED.search(settings.parent) or (scope and '.' in scope):
        return
    if later and kinds is None:
        if settings.parent not in ('parse_cfg', 'tracer_cfg', 'loss_calculator'):  # there, a mutator of channels understands it
            yield Change(node.lineno, 'by hand', later.rstrip('.'))
        return
    if scope not in ('', 'mmrazor', 'strop', 'mmengine', 'mmcls', 'timm') and not hasattr(builtins, scope):
        yield from _foreign_type(node, kind, scope)
        return
    if name in RENAMED and kinds is None:
        new = kind.removesuffix(name) + RENAMED[name]
        yield Change(node.lineno, 'change', f'the type {kind!r} is {new!r}', (source.replaced(node, repr(new)),))
    elif name in REWRITTEN and kinds is None:
        yield Change(node.lineno, 'by hand', f'the type {name!r} of MMRazor 0.x is {REWRITTEN[name]}')
    elif kinds is None:
        if _SHORT.search(settings.parent) or name in _UNWRAPPED:
            return
        if default in ('mmcls', 'mmpretrain', 'mmdet', 'mmseg') or scope == 'mmcls':
            yield from _foreign_type(node, kind, default or scope)
        elif own:
            yield Change(node.lineno, 'note', f'the type {kind!r} is none of Strop; `custom_imports` is to register it')
        else:
            yield Change(node.lineno, 'by hand', f'the type {kind!r} is not known.{near(name, known)}'.rstrip('.'))
    elif settings.whole:
        if any(getattr(each, 'makes_decisions', False) for each in kinds):
            for old, new in FIRST_RELEASE.items():
                if old in settings.values:
                    yield Change(settings.values[old].lineno, 'note', f'`{old}` of {name} is `{new}` now; it is understood')
        unread = [name for name in _UNREAD if name in settings.values and ast.unparse(settings.values[name]) != 'None']
        for argument in [*unknown_arguments(kinds, settings.values), *unread]:
            if argument in _OF_UNITS and settings.parent == 'channel_unit_cfg':
                continue
            if argument in MOVED:
                yield Change(settings.values[argument].lineno, 'by hand', f'{name} takes no {argument!r}: {MOVED[argument]}')
                continue
            names = set().union(*(parameters_of(each) or () for each in kinds))
            text = f'{name} takes no argument {argument!r}.{near(argument, names)}'
            yield Change(settings.values[argument].lineno, 'by hand', text.rstrip('.'))


def _foreign_type(node: ast.expr, kind: str, scope: str) -> Iterator[Change]:
    package = current_name(scope)
    if installed(package):
        return
    how = HOW_TO_INSTALL if is_codebase(scope) else f'Install {package}.'
    yield Change(
        node.lineno, 'by hand', f'type={kind!r} needs the package {package}, which is not installed. {how}'.rstrip('.')
    )


def _without_effect(source: Source, settings: Settings, kind: str) -> Iterator[Change]:
    name = kind.rpartition('.')[2]
    for (of, argument), why in NO_EFFECT.items():
        if argument in settings.values and of in ('', name) and settings.constant(argument) is not False:
            yield Change(settings.values[argument].lineno, 'note', f'`{argument}` of {name} makes no difference: {why}')


# -- the algorithm ----------------------------------------------------------------------------


def _algorithm(source: Source) -> Iterator[Change]:
    statement = source.assigned.get('algorithm')
    if statement is not None:
        edits: list[Edit] = []
        if 'model' in source.assigned:
            edits += [source.replaced(node, 'architecture_cfg') for node in source.uses('model')]
        edits += [source.replaced(node, 'model') for node in source.uses('algorithm')]
        text = '`algorithm` is `model` now'
        if 'model' in source.assigned:
            text += ', and what was `model` is called `architecture_cfg`'
        yield Change(statement.lineno, 'note', f'{text}; it is understood as it is', tuple(edits))
    if 'launcher' in source.assigned and ast.unparse(source.assigned['launcher'].value) not in ("'none'", 'None'):
        yield Change(source.assigned['launcher'].lineno, 'note', '`launcher` is an option: `--launcher pytorch` under torchrun')
