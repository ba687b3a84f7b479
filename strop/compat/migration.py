"""What a config, a script or an experiment file of MMRazor or NNI needs to run here, found without running it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from strop import registry
from strop.codebases import HOW_TO_INSTALL, SUCCESSORS, current_name, find_codebase_config, installed, is_codebase
from strop.compat.config_source import Change, Edit, Settings, Source, edited
from strop.compat.finder import Finder, OldImportError, Table
from strop.compat.inheritance import (
    base_file,
    base_name,
    beside,
    calls_it_model,
    changed_file,
    changes_a_model,
    default_scope,
    lineage,
)
from strop.compat.mmrazor import MMRAZOR
from strop.compat.nni import NNI
from strop.compat.openmmlab import MMCLS, MMCV
from strop.compat.runtime_keys import MMCV_ONLY, RuntimeKeys
from strop.compat.shipped import near_shipped, shipped
from strop.errors import ConfigError, StropError, near
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
# Scopes whose types are looked up here.
_SCOPES = ('', 'mmrazor', 'strop', 'mmengine', 'timm')


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


def examine(path: str | Path, together: Collection[str | Path] = ()) -> Migration:
    """Find out what a file needs. It is parsed and never run.

    Args:
        path: A config or script (`.py`), or an experiment of NNI (`.yaml`, `.yml`, `.json`).
        together: Files that are migrated along with it. Of a base among them, the changed file is inherited.

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
    others = frozenset(Path(file).resolve() for file in together) - {path.resolve()}
    found = [*_imports(source), *_bases(source, path, others), *RuntimeKeys(source).changes()]
    found += [*_types(source, path), *_algorithm(source, path, others)]
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


def _bases(source: Source, path: Path, others: Collection[Path]) -> Iterator[Change]:
    for item in source.bases:
        if not base_name(item):
            yield Change(item.lineno, 'note', f'the base {source.of(item)} is not a plain string and was not looked at')
            continue
        base = base_name(item)
        package, found, name = base.partition('::')
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
                yield Change(item.lineno, 'change', f'the base {base!r} is {ours!r} here', (edit,))
        elif found:
            yield from _foreign_base(item, package, name)
        elif (path.parent / base).is_file():
            yield from _base_beside(source, item, path.parent / base, others)
        else:
            files = [file.name for file in (path.parent / base).parent.glob('*.py')]
            ours = shipped(base)
            hint = f'; Strop ships {ours!r}' if ours else near(Path(base).name, files) or near_shipped(base)
            yield Change(item.lineno, 'by hand', f'the base {base!r} does not exist{hint}')
    yield from _set_twice(source, path, others)


def _set_twice(source: Source, path: Path, others: Collection[Path]) -> Iterator[Change]:
    """Yield the names that two bases set, once they are changed; what they inherit themselves is not looked at."""
    first: dict[str, str] = {}
    for item in source.bases:
        file = base_file(item, path)
        if file is None or '::' in base_name(item) or file.suffix != '.py':
            continue
        base = examine(file, others) if file.resolve() in others else None
        try:
            names = Source(base.result if base is not None else read_text(file, 'a config'), str(file)).assigned
        except StropError:
            continue
        for name in names:
            if name != '_base_' and first.setdefault(name, base_name(item)) != base_name(item):
                text = f'the bases {first[name]!r} and {base_name(item)!r} both set `{name}`, which MMEngine refuses'
                yield Change(item.lineno, 'by hand', f'{text}: move one of them into this file')


def _base_beside(source: Source, item: ast.expr, file: Path, others: Collection[Path]) -> Iterator[Change]:
    name = base_name(item)
    if file.resolve() in others:
        base = examine(file, others)
        if base.result != base.text:
            new = name.removesuffix(file.name) + changed_file(file).name
            text = f'the base {name!r} is {new!r}, its changed file'
            yield Change(item.lineno, 'note' if base.runs else 'change', text, (source.replaced(item, repr(new)),))
    elif any(True for _, each in lineage(file) for _ in RuntimeKeys(each).changes()):
        text = f'the base {name!r} needs changes, too: give both files to `strop migrate`, and one new file inherits the other'
        yield Change(item.lineno, 'by hand', text)


def _foreign_base(item: ast.expr, package: str, name: str) -> Iterator[Change]:
    if not is_codebase(package):
        yield Change(item.lineno, 'by hand', f'the package {package!r} is none whose configs are known')
        return
    base = f'{package}::{name}'
    try:
        found = find_codebase_config(base)
    except Exception as error:  # a missing package, or one that cannot be imported
        yield Change(item.lineno, 'by hand', str(error).rstrip('.'))
        return
    if current_name(package) != package or found.name != Path(name).name:
        text = f'the base {base!r} is {found.name} of {current_name(package)} today, which is found'
        yield Change(item.lineno, 'note', text)


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


def _types(source: Source, path: Path) -> Iterator[Change]:
    known, default = _known(), default_scope(path)
    own = 'custom_imports' in source.assigned
    for settings in source.every():
        kind = settings.constant('type')
        if not isinstance(kind, str) or settings.root in MMCV_ONLY:
            continue
        yield from _without_effect(source, settings, kind)
        yield from _type(source, settings, kind, known, default, own)


def _type(
    source: Source, settings: Settings, kind: str, known: Mapping[str, list[Any]], default: str | None, own: bool
) -> Iterator[Change]:
    scope, _, name = kind.rpartition('.')
    home = scope or settings.scope or default
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
    if scope != 'mmcls' and _is_foreign(scope):
        yield from _foreign_type(node, kind, scope)
    elif name in RENAMED and kinds is None:
        new = kind.removesuffix(name) + RENAMED[name]
        yield Change(node.lineno, 'change', f'the type {kind!r} is {new!r}', (source.replaced(node, repr(new)),))
    elif name in REWRITTEN and kinds is None:
        yield Change(node.lineno, 'by hand', f'the type {name!r} of MMRazor 0.x is {REWRITTEN[name]}')
    elif kinds is None:
        if not _SHORT.search(settings.parent) and name not in _UNWRAPPED:
            yield from _unknown_type(node, kind, home, own, near(name, known))
    elif settings.whole and not _has_first(home):
        yield from _arguments(settings, name, kinds, own)


def _is_foreign(scope: str) -> bool:
    return scope not in _SCOPES and not hasattr(builtins, scope)


def _has_first(scope: str | None) -> bool:
    """Tell whether a scope is a codebase, whose types come before Strop's; for mmcls Strop stands in without mmpretrain."""
    return scope is not None and is_codebase(scope) and (scope not in SUCCESSORS or installed(current_name(scope)))


def _unknown_type(node: ast.expr, kind: str, home: str | None, own: bool, hint: str) -> Iterator[Change]:
    # Without mmpretrain what `mmcls` names is looked up in Strop's registries, where the user's classes are.
    if home and is_codebase(home) and not (own and not _has_first(home)):
        yield from _foreign_type(node, kind, home)
    elif own:
        yield Change(node.lineno, 'note', f'the type {kind!r} is none of Strop; `custom_imports` is to register it')
    elif home is None:
        text = f'the type {kind!r} is none of Strop; it is looked up in the scope of the bases, which is not to be seen.{hint}'
        yield Change(node.lineno, 'note', text.rstrip('.'))
    elif _is_foreign(home):
        yield from _foreign_type(node, kind, home)
    else:
        yield Change(node.lineno, 'by hand', f'the type {kind!r} is not known.{hint}'.rstrip('.'))


def _arguments(settings: Settings, name: str, kinds: list[Any], own: bool) -> Iterator[Change]:
    if any(getattr(each, 'makes_decisions', False) for each in kinds):
        for old, new in FIRST_RELEASE.items():
            if old in settings.values:
                yield Change(settings.values[old].lineno, 'note', f'`{old}` of {name} is `{new}` now; it is understood')
    unread = [each for each in _UNREAD if each in settings.values and ast.unparse(settings.values[each]) != 'None']
    for argument in [*unknown_arguments(kinds, settings.values), *unread]:
        if argument in _OF_UNITS and settings.parent == 'channel_unit_cfg':
            continue
        if argument in MOVED:
            yield Change(settings.values[argument].lineno, 'by hand', f'{name} takes no {argument!r}: {MOVED[argument]}')
            continue
        names = set().union(*(parameters_of(each) or () for each in kinds))
        hint = near(argument, names)
        line = settings.values[argument].lineno
        if own:
            text = (
                f'{name} of Strop takes no argument {argument!r}, but `custom_imports` may register a class of this name.{hint}'
            )
            yield Change(line, 'note', text.rstrip('.'))
        else:
            yield Change(line, 'by hand', f'{name} takes no argument {argument!r}.{hint}'.rstrip('.'))


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


def _algorithm(source: Source, path: Path, others: Collection[Path]) -> Iterator[Change]:
    statement = source.assigned.get('algorithm')
    if calls_it_model(path, others):
        yield from _called_model(source, path)
    elif statement is not None:
        text = '`algorithm` is `model` now; it is understood as it is, and keeps its name beside bases that may have it'
        yield Change(statement.lineno, 'note', text)
    if 'launcher' in source.assigned and ast.unparse(source.assigned['launcher'].value) not in ("'none'", 'None'):
        yield Change(source.assigned['launcher'].lineno, 'note', '`launcher` is an option: `--launcher pytorch` under torchrun')


def _called_model(source: Source, path: Path) -> Iterator[Change]:
    places: list[tuple[ast.expr, str]] = []
    for old, new in (('model', 'architecture_cfg'), ('algorithm', 'model')):
        places += [(node, new) for node in source.uses(old) if old in source.assigned]
        places += [(node, f'_base_.{new}') for node in source.inherited(old) if beside(source)]
    if not places:
        return
    late = changes_a_model(path)
    text = '`algorithm` is `model` now'
    if 'model' in source.assigned:
        text += ', and what was `model` is called `architecture_cfg`'
    text += ', as in the bases' if late else '; it is understood as it is'
    statement = source.assigned.get('algorithm')
    line = min(node.lineno for node, _ in places) if statement is None else statement.lineno
    edits = tuple(source.replaced(node, name) for node, name in places)
    yield Change(line, 'change' if late else 'note', text, edits)
