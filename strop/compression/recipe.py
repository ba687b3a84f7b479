"""The recipe of a compression: model, data, stages, budget and seed, checked whole before anything runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from strop.compression.budget import Budget
from strop.compression.data_source import DataSource
from strop.compression.export_stage import ExportStage
from strop.compression.learning import DistillStage, FinetuneStage, LearningStage
from strop.compression.model_source import ModelSource
from strop.compression.prune_stage import PruneStage
from strop.compression.quantize_stage import FOR_RUNTIME, QuantizeStage, planned_backends
from strop.compression.search_stage import SearchStage
from strop.compression.stage import StageSettings
from strop.errors import ConfigError, StropError, SubnetError, UnsafeFileError, listed, near, try_import
from strop.estimators.runtimes import runtime
from strop.mutables import read_document
from strop.quantization import backends

VERSION = 1

STAGES: Mapping[str, type[StageSettings]] = {
    stage.kind: stage for stage in (SearchStage, PruneStage, DistillStage, FinetuneStage, QuantizeStage, ExportStage)
}
_KEYS = ('version', 'name', 'model', 'data', 'budget', 'stages', 'seed', 'threads', 'runtimes', 'batches')
_RUNS_CODE = ('.py',)


@dataclass(frozen=True)
class NamedStage:
    """A stage and its name, which is unique in the recipe: its kind, with a number from the second of a kind on."""

    name: str
    settings: StageSettings

    @property
    def kind(self) -> str:
        """What it does."""
        return self.settings.kind


@dataclass(frozen=True)
class Recipe:
    """What to compress, on which data, how, and how far.

    Args:
        model: What builds the model; None where it is given in memory.
        data: Where the data comes from; None where it is given in memory.
        stages: What is done, in order.
        budget: The limits.
        seed: Of everything random.
        threads: Threads of PyTorch; the same number gives the same bits. All usable cores by default.
        name: What reports call it.
        automatic: Whether the stages were chosen here, since the recipe named none.
        runtimes: Runtimes that both models are measured on at the end; all that are installed by default.
        batches: Batch sizes that they are measured at.

    >>> recipe = Recipe.of({'model': 'timm:resnet10t', 'data': 'digits', 'stages': [{'prune': {'ratio': 0.5}}, 'finetune']})
    >>> [stage.name for stage in recipe.stages]
    ['prune', 'finetune']
    """

    model: ModelSource | None
    data: DataSource | None
    stages: tuple[NamedStage, ...]
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    threads: int | None = None
    name: str = ''
    automatic: bool = False
    runtimes: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 32)

    @classmethod
    def of(cls, given: Any) -> Recipe:
        """Read a recipe from a mapping.

        Raises:
            ConfigError: If a key is unknown, something is missing, a value is not what it can be, or the stages are in an order
                that makes no sense.
        """
        if isinstance(given, Recipe):
            return given
        if not isinstance(given, Mapping):
            raise ConfigError(
                f'A recipe is a mapping with `model`, `data`, `stages` and `budget`, but got {type(given).__name__}.'
            )
        for key in given:
            if key not in _KEYS:
                raise ConfigError(f'A recipe has no key {key!r}.{near(key, _KEYS)} It has {listed(_KEYS, 12)}.')
        version = given.get('version', VERSION)
        if version != VERSION:
            raise ConfigError(f'This Strop reads recipes of version {VERSION}, but this one says {version!r}.')
        budget = _at('budget', Budget.of, given.get('budget'))
        model = None if given.get('model') is None else _at('model', ModelSource.of, given['model'])
        data = None if given.get('data') is None else _at('data', DataSource.of, given['data'])
        listed_stages = given.get('stages')
        automatic = not listed_stages
        if automatic and not budget.limits:
            raise ConfigError(
                'A recipe names its `stages`, or says by `budget` what the automatic ones should reach, such as {latency: 0.5}.'
            )
        stages = automatic_stages(budget) if automatic else _stages(listed_stages)
        seed, threads = given.get('seed', 0), given.get('threads')
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f'`seed` is a whole number, 0 or more, but got {seed!r}.')
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ConfigError(f'`threads` is a positive whole number, but got {threads!r}.')
        batches = given.get('batches', (1, 32))
        if not isinstance(batches, Sequence) or not batches or not all(isinstance(b, int) and b > 0 for b in batches):
            raise ConfigError(
                f'`batches` are the batch sizes that runtimes are measured at, such as [1, 32], but got {batches!r}.'
            )
        chosen = given.get('runtimes')
        if chosen is not None:
            if not isinstance(chosen, (str, list, tuple)):
                raise ConfigError(f'`runtimes` is a list of names, such as [openvino, eager], but got {chosen!r}.')
            for name in [chosen] if isinstance(chosen, str) else chosen:
                runtime(name)
            chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
        name = str(given.get('name') or (model.name if model is not None else 'model'))
        return cls(model, data, stages, budget, seed, threads, name, automatic, chosen, tuple(batches))

    @classmethod
    def read(cls, path: str | os.PathLike[str], trust: bool = False) -> Recipe:
        """Read a recipe from YAML or JSON, or from a Python file that defines `recipe`. Relative paths are of the working
        folder.

        Raises:
            FileNotFoundError: If there is no such file.
            ConfigError: If it is neither, or breaks a rule; the message names the place.
            UnsafeFileError: If it is a Python file and nobody says that it may run, or a pickle.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f'There is no recipe {os.fspath(path)!r}.')
        if file.suffix in _RUNS_CODE:
            if not trust:
                raise UnsafeFileError(
                    f'{path} is Python, which runs when it is read. If you trust it: trust=True, or --trust on '
                    'the command line. '
                    'Recipes in YAML run nothing.'
                )
            content = _of_python(file)
        else:
            try:
                content = read_document(file, 'a recipe', exponents=True)
            except SubnetError as error:
                raise ConfigError(str(error)) from None
        try:
            return cls.of(content)
        except StropError as error:
            raise type(error)(f'{path}: {error}') from None

    def check(self, trust: bool = False, own: Sequence[str] = ()) -> None:
        """Raise what would stop the recipe later: missing files and packages, code that nobody trusts.

        Nothing is built, and no code of others is imported.

        Args:
            trust: Whether the recipe may name functions of Python modules.
            own: Which of `model` and `data` the caller named by itself, and not the recipe: those may.
        """
        if self.model is not None:
            _at('model', self.model.check, trust or 'model' in own)
        if self.data is not None:
            _at('data', self.data.check, trust or 'data' in own)
        learns = False if self.data is not None and not self.data.labels else None
        for stage in self.stages:
            _at(f'stage {stage.name!r}', stage.settings.check, self.budget, learns)
        targets = [stage.settings.chosen(self.budget) for stage in self.stages if isinstance(stage.settings, QuantizeStage)]
        twice = next((name for name in targets if targets.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f'Two stages `quantize` are for the same backend, {twice}; name another one in each.')
        if self.budget.timed:
            chosen = runtime(self.budget.chosen_runtime)
            for module in chosen.modules:
                try_import(module, chosen.extra or 'demo')
        if self.budget.latency is not None and self.budget.relative_to == 'quantized':
            if self.budget.chosen_runtime == 'eager':
                raise ConfigError(
                    'The budget is a share of the time of the quantized original (relative_to: quantized), but runtime: eager '
                    'does not compute with integers: name `runtime: compile`, or another one.'
                )
            wanted = FOR_RUNTIME[self.budget.chosen_runtime]
            quantizers = [stage.settings for stage in self.stages if isinstance(stage.settings, QuantizeStage)]
            if not any(settings.baseline and settings.chosen(self.budget) == wanted for settings in quantizers):
                raise ConfigError(
                    'The budget is a share of the time of the quantized original (relative_to: quantized), but no stage '
                    f'`quantize` makes that for {self.budget.chosen_runtime}: add {{quantize: {{backend: {wanted}}}}} with its '
                    '`baseline`, or leave relative_to out.'
                )

    def stage(self, name: str) -> NamedStage:
        """Return a stage by its name.

        Raises:
            ConfigError: If there is none.
        """
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ConfigError(f'The recipe has no stage {name!r}.{near(name, names)} It has {listed(names)}.')
        return self.stages[names.index(name)]

    def teacher_after(self, name: str) -> LearningStage | None:
        """Return the settings of the next stage after one that trains; None if nothing trains after it."""
        names = [stage.name for stage in self.stages]
        later = (stage.settings for stage in self.stages[names.index(name) + 1 :])
        return next((settings for settings in later if isinstance(settings, LearningStage)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON holds it; `Recipe.of` reads it."""
        stages = [{stage.kind: stage.settings.to_dict()} for stage in self.stages]
        return {
            'version': VERSION,
            'name': self.name,
            **({} if self.model is None else {'model': self.model.to_dict()}),
            **({} if self.data is None else {'data': {'source': self.data.source, **self.data.to_dict()}}),
            **({'budget': self.budget.to_dict()} if self.budget.to_dict() else {}),
            'stages': stages,
            'seed': self.seed,
            **({} if self.threads is None else {'threads': self.threads}),
            **({} if self.runtimes is None else {'runtimes': list(self.runtimes)}),
            'batches': list(self.batches),
        }

    def digests(self, model: str, data: str, threads: int) -> list[str]:
        """Return a hash for each stage, of itself and everything before it: equal hashes mean equal results.

        Args:
            model: Hash of the model.
            data: Hash of the data.
            threads: Threads that are computed with.
        """
        given = [None if self.model is None else self.model.args, None if self.data is None else self.data.to_dict()]
        begun = json.dumps([VERSION, model, data, self.seed, threads, self.budget.to_dict(), *given], default=str)
        current = hashlib.sha256(begun.encode()).hexdigest()
        backends = planned_backends([stage.settings for stage in self.stages], self.budget)
        found = []
        for stage in self.stages:
            ahead = self.teacher_after(stage.name)
            settings: list[Any] = [stage.settings.to_dict()]
            if ahead is not None and stage.settings.rehearsed(self.budget):
                settings += [ahead.kind, ahead.to_dict()]
            elif ahead is not None and ahead.needs and stage.settings.plans(self.budget):
                settings += [sorted(ahead.needs)]
            settings += [backends, self.budget.chosen_runtime] if stage.settings.sees_backends(self.budget) else []
            settings += stage.settings.installed()
            text = json.dumps([current, stage.kind, *settings], sort_keys=True, default=str)
            current = hashlib.sha256(text.encode()).hexdigest()
            found.append(current[:16])
        return found


@cache
def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes, for editors and other programs.

    >>> recipe_schema()['title']
    'Recipe of a compression'
    """
    content: dict[str, Any] = json.loads(files('strop.compression').joinpath('recipe.schema.json').read_text(encoding='utf-8'))
    return content


def automatic_stages(budget: Budget) -> tuple[NamedStage, ...]:
    """Return the stages for a budget: plan and prune, learn from the original, quantize where that can be done, export."""
    learning: list[Any] = [{'prune': {}}, {'distill': {}}]
    name = FOR_RUNTIME[budget.chosen_runtime]
    quantizes = backends()[name].available and (budget.runtime in (None, 'openvino', 'onnxruntime', 'compile'))
    last: list[Any] = [{'quantize': {'backend': name}}] if quantizes else []
    return _stages([*learning, *last, 'export'])


def _stages(given: Any) -> tuple[NamedStage, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f'`stages` are a list such as [{{prune: {{ratio: 0.5}}}}, finetune], but got {given!r}.')
    found: list[NamedStage] = []
    counts: dict[str, int] = {}
    for number, entry in enumerate(given, 1):
        if isinstance(entry, StageSettings):
            kind, settings = entry.kind, entry
        else:
            kind, content = _entry(entry, number)
            settings = _at(f'stage {number}', STAGES[kind].of, content)
        counts[kind] = counts.get(kind, 0) + 1
        found.append(NamedStage(kind if counts[kind] == 1 else f'{kind}-{counts[kind]}', settings))
    _check_order(found)
    return tuple(found)


def _entry(entry: Any, number: int) -> tuple[str, Any]:
    if isinstance(entry, str):
        kind, content = entry, None
    elif isinstance(entry, Mapping) and isinstance(entry.get('kind'), str):
        kind, content = entry['kind'], {key: value for key, value in entry.items() if key != 'kind'}
    elif isinstance(entry, Mapping) and len(entry) == 1:
        kind, content = next(iter(entry.items()))
    else:
        raise ConfigError(
            f'Stage {number} is a name such as `finetune`, or one with settings such as '
            f'{{prune: {{ratio: 0.5}}}}; got {entry!r}.'
        )
    if kind not in STAGES:
        raise ConfigError(f'There is no stage {kind!r}.{near(kind, STAGES)} There are {listed(STAGES)}.')
    return kind, content


def _check_order(stages: Sequence[NamedStage]) -> None:
    """Refuse orders in which a stage would undo another, or work on nothing."""
    kinds = [stage.kind for stage in stages]
    if 'search' in kinds[1:]:
        raise ConfigError('The stage `search` comes first, and once: it makes the model that the other stages work on.')
    first = next((place for place, kind in enumerate(kinds) if kind in ('quantize', 'export')), len(kinds))
    late = next((kind for kind in kinds[first:] if kind in ('prune', 'distill', 'finetune')), None)
    if late is not None:
        raise ConfigError(
            f'The stage `{late}` comes after `{kinds[first]}`, but files that were quantized or exported do not '
            'change with the model. '
            f'Put `{late}` before.'
        )
    targets = [stage.settings.to_dict().get('backend') for stage in stages if stage.kind == 'quantize']
    if len(targets) != len(set(targets)):
        raise ConfigError('Two stages `quantize` are for the same backend; name one backend in each.')
    if kinds.count('export') > 1:
        raise ConfigError('Give one stage `export`, with all `formats`.')


def _of_python(file: Path) -> Any:
    import runpy

    found = runpy.run_path(str(file))
    if 'recipe' not in found:
        raise ConfigError(f'{file} must define `recipe`, a mapping; it defines {listed([n for n in found if n[0] != "_"])}.')
    return found['recipe']


def _at(place: str, function: Any, *args: Any) -> Any:
    """Call a function, and say in its errors which part of the recipe they are about."""
    try:
        return function(*args)
    except StropError as error:
        raise type(error)(f'{place}: {error}') from error


__all__ = ['STAGES', 'VERSION', 'NamedStage', 'Recipe', 'automatic_stages', 'recipe_schema']
