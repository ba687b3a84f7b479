"""From a config to a runner: the few settings that every door of Strop adds to MMEngine's defaults."""

from __future__ import annotations

import copy
import inspect
import itertools
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from pprint import pformat
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner import Runner

from strop.codebases import check_scope
from strop.engine.checkpoint import find_checkpoint, install
from strop.engine.distributed import start_process_group
from strop.errors import ConfigError, listed, near
from strop.registry import MODELS

_RUNS = itertools.count(1)

TASKS = ('train', 'search', 'test')


def prepare_config(cfg: Config | Mapping[str, Any], task: str = 'train') -> Config:
    """Return a copy of `cfg` with Strop's defaults filled in; nothing that the config sets is overridden.

    - `algorithm = dict(...)` (MMRazor 0.x) is read as `model = dict(...)`, also where `model` is what the algorithm compresses;
    - the default scope is `strop`, the seed 0;
    - `train_cfg = dict(by_epoch=True, ...)` uses the loop that resumes inside an epoch;
    - where there is data to validate or test on but no evaluator, the metric of a plain module is used;
    - `NaiveVisualizationHook` is Strop's in every scope: MMEngine's fails on today's batches;
    - for testing, training parts are left out.

    Raises:
        ConfigError: If there is no model, or the config lacks what the task needs.
        MissingDependencyError: If the default scope is a codebase that cannot be imported.
    """
    if task not in TASKS:
        raise ConfigError(f'`task` must be one of {listed(TASKS)}, but got {task!r}.{near(task, TASKS)}')
    config = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(dict(cfg))
    if 'algorithm' in config:
        config.model = config.algorithm
    if 'model' not in config:
        raise ConfigError(f"A config needs `model = dict(type='SPOS', ...)`, but has only {listed(config)}.")
    check_scope(config.get('default_scope'))
    config.model = without_inherited(config.model)
    config.setdefault('default_scope', 'strop')
    config.setdefault('randomness', dict(seed=0))
    train_cfg = config.get('train_cfg')
    if task != 'test' and not train_cfg:
        raise ConfigError(
            f'To {task}, the config needs `train_cfg`, `train_dataloader` and `optim_wrapper`; it has no `train_cfg`.'
        )
    if train_cfg and 'type' not in train_cfg:
        by_epoch = train_cfg.pop('by_epoch', True)
        config.train_cfg = {**train_cfg, 'type': f'strop.{"EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"}'}
    drawing = 'NaiveVisualizationHook'
    for hook in config.get('custom_hooks') or ():
        if isinstance(hook, MutableMapping) and hook.get('type') in (drawing, f'mmengine.{drawing}'):
            hook['type'] = f'strop.{drawing}'
    for name in ('val', 'test'):
        # `val_cfg = dict()` in a search config means the default loop.
        if config.get(f'{name}_dataloader') is None:
            config[f'{name}_cfg'] = config[f'{name}_evaluator'] = config[f'{name}_dataloader'] = None
            continue
        if config.get(f'{name}_cfg') is None:
            config[f'{name}_cfg'] = dict()
        if config.get(f'{name}_evaluator') is None:
            config[f'{name}_evaluator'] = _own_evaluator(config, name)
    if task == 'test':
        if config.get('test_dataloader') is None:
            raise ConfigError('To test, the config needs `test_dataloader` and `test_evaluator`; it has no `test_dataloader`.')
        config.train_cfg = config.train_dataloader = config.optim_wrapper = config.param_scheduler = None
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    return config


def without_inherited(model: Any) -> Any:
    """Return the config of an algorithm without what it got from the `model` of a base that is its architecture.

    `_base_ = ['mmdet::...']` and `model = dict(type='BaseAlgorithm', architecture=_base_.model)` give an algorithm that has the
    base's `backbone` beside its `architecture`, since MMEngine merges the two models.

    >>> model = dict(type='BaseAlgorithm', architecture=dict(type='Net', backbone=dict(type='VGG')))
    >>> without_inherited(model) == model
    True
    """
    architecture = model.get('architecture') if isinstance(model, Mapping) else None
    if not isinstance(architecture, Mapping):
        return model
    own = {name for name in architecture if name != 'type'}
    if not own or not own <= set(model) or not isinstance(model.get('type'), (str, type)):
        return model
    kind = MODELS.get(model['type']) if isinstance(model['type'], str) else model['type']
    taken = {name for base in getattr(kind, '__mro__', ()) for name in inspect.signature(base.__init__).parameters}
    inherited = {name for name in own if name not in taken or model[name] == architecture[name]}
    print_log(
        f'`model` has {listed(sorted(inherited - {"_scope_"}))} from the base that is its architecture; that is left out '
        '(`_delete_=True` in `model` says so in MMEngine).',
        logger='current',
    )
    left = {name: value for name, value in model.items() if name not in inherited}
    return ConfigDict(left) if isinstance(model, ConfigDict) else left


class _PrintableConfig(Config):
    """A config that is laid out by `pprint`: MMEngine's layout of a large search space takes seconds, for each checkpoint."""

    @property
    def pretty_text(self) -> str:
        """The config as Python code."""
        parts = {name: pformat(value, width=120, compact=True, sort_dicts=False) for name, value in self.to_dict().items()}
        return ''.join(f'{name} = {text}\n' for name, text in parts.items())


def _runner(config: Config) -> Runner:
    """Build a runner; unlike `Runner.from_cfg`, from the very objects that the config holds, and with any of them printable."""
    names = [name for name in inspect.signature(Runner).parameters if name in config and name != 'cfg']
    printable = _PrintableConfig({name: _printable(value) for name, value in config.items()}, filename=config.filename)
    return Runner(**{name: config[name] for name in names}, cfg=printable)


def _printable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _printable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_printable(item) for item in value)
    if value is None or isinstance(value, (str, bytes, int, float, os.PathLike)):
        return value
    return f'<{getattr(value, "__qualname__", type(value).__qualname__)}>'


def _own_evaluator(config: Config, name: str) -> dict[str, Any]:
    model = config.model
    parts = [model, model.get('architecture')] if isinstance(model, Mapping) else [model, getattr(model, 'architecture', None)]
    for part in parts:
        metric = part.get('metric') if isinstance(part, Mapping) else getattr(part, 'metric', None)
        if callable(metric):
            return dict(type='strop.FunctionMetric', function=metric)
    raise ConfigError(
        f"The config has `{name}_dataloader` but no `{name}_evaluator`, such as dict(type='Accuracy'), and its model has no "
        'metric(outputs, labels) of its own.'
    )


def build_runner(
    cfg: Config | Mapping[str, Any],
    task: str = 'train',
    work_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    launcher: str = 'none',
) -> Runner:
    """Build MMEngine's runner for a config, ready for `train()` or `test()`.

    Args:
        cfg: A config, of a file or in memory.
        task: 'train', 'search' (a `train_cfg` with a search loop) or 'test'.
        work_dir: Folder of logs, checkpoints and results; the config's own by default.
        resume: Go on with what the work directory holds: the furthest checkpoint of a training, or the trials of a search. Of
            a search that is the loop of a test, `test_cfg.resume_from` says so.
        launcher: 'pytorch' under `torchrun`, else 'none'.

    Raises:
        ConfigError: If the config lacks what the task needs, or no checkpoint that is there can be read to resume from.
    """
    install()
    config = prepare_config(cfg, task)
    if work_dir is not None:
        config.work_dir = str(work_dir)
    config.setdefault('work_dir', 'work_dirs')
    if launcher != 'none':
        start_process_group()
        config.launcher = launcher
        config.setdefault('model_wrapper_cfg', ConfigDict(type='strop.DistributedAlgorithm'))
    if task == 'search':
        # The supernet comes by load_from; what is resumed is the search, by its own store.
        config.resume = False
        if resume and not config.train_cfg.get('resume_from'):
            config.train_cfg['resume_from'] = True
    elif task == 'test':
        config.resume = False  # there is no training; a search that is a test goes on by its own store
    elif resume:
        found = find_checkpoint(config.work_dir, strict=True)
        config.resume = found is not None
        if found is not None:
            config.load_from = str(found)
    # MMEngine tells runs apart by the second of their start: two within one would share messages and visualizer.
    stem = Path(config.filename).stem if config.filename else 'run'
    config.setdefault('experiment_name', f'{stem}_{next(_RUNS)}')
    Path(config.work_dir).mkdir(parents=True, exist_ok=True)
    runner = _runner(config)
    if task == 'test':
        # Not built for testing, but what subnets' batch norms are recalibrated on.
        runner._train_dataloader = cfg.get('train_dataloader')
    return runner
