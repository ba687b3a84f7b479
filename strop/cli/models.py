"""Models that a command is pointed at: a config, a Python factory, a model of timm, or the folder of a recipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from strop.cli.configs import SUFFIXES, load_config
from strop.cli.console import note
from strop.errors import ComponentTypeError, ConfigError, UnsafeFileError
from strop.graph.forward import evaluated

DEFAULT_SHAPE = (1, 3, 224, 224)


@dataclass(frozen=True)
class Target:
    """A model and one batch of what it takes.

    Args:
        name: What the user asked for.
        model: The plain module or, of an algorithm, its architecture.
        inputs: Its inputs: a tensor, or what the data of the config gives.
        algorithm: The algorithm around the model, if it came from a config.
        config: That config.
        recipe: The recipe that the model was loaded from.
    """

    name: str
    model: nn.Module
    inputs: Any
    algorithm: nn.Module | None = None
    config: Any = None
    recipe: Mapping[str, Any] | None = None

    @property
    def input_shape(self) -> list[int] | None:
        """The shape of the inputs, if they are one tensor."""
        return list(self.inputs.shape) if isinstance(self.inputs, torch.Tensor) else None

    @property
    def factory(self) -> tuple[Any, dict[str, Any] | None]:
        """What builds the model, as a recipe names it, and its arguments; (None, None) for a finished model of a module."""
        if self.config is not None:
            return _model_of(self.config), None
        if self.recipe is not None:
            supernet = self.recipe.get('supernet', {})
            return supernet.get('config', supernet.get('factory')), supernet.get('args')
        kind, _, rest = self.name.partition(':')
        if kind == 'timm':
            return 'timm:create_model', {'model_name': rest}
        from strop.compression.model_source import located

        return (None, None) if isinstance(located(kind, rest), nn.Module) else (self.name, None)


def open_target(
    name: str,
    settings: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    allow: Sequence[str] = (),
) -> Target:
    """Build the model that `name` stands for, and inputs for it.

    Args:
        name: A config (a file, or `package::path`), `module:factory`, `timm:model`, or the folder of a recipe.
        settings: `--cfg-options`, for a config.
        input_shape: Shape of one batch; otherwise the config's `estimator_cfg`, its data, timm's, the recipe's, or
            (1, 3, 224, 224).
        allow: Packages whose functions a recipe may call.

    Raises:
        ConfigError: If there is no such model.
        ComponentTypeError: If a factory returns something else than a module.
        ExportError: If a recipe or its weights are damaged.
        UnsafeFileError: If a recipe names a package that is not allowed.
    """
    if (Path(name) / 'recipe.json').is_file():
        return _of_recipe(name, settings, input_shape, allow)
    if '::' in name or name.endswith(SUFFIXES) or ':' not in name:
        return _of_config(name, settings, input_shape)
    if settings:
        raise ConfigError(f'--cfg-options change a config, but {name!r} is none.')
    from strop.compression.model_source import ModelSource

    model = ModelSource.of(name).build(trust=True)
    shape = input_shape or _own_shape(model)
    return Target(name, evaluated(model), torch.zeros(tuple(shape), device=_device(model)))


def _of_recipe(
    name: str, settings: Mapping[str, Any] | None, input_shape: Sequence[int] | None, allow: Sequence[str]
) -> Target:
    from strop.export import load_recipe, random_inputs, read_recipe

    if settings:
        raise ConfigError(f'--cfg-options change a config, but {name!r} is a recipe.')
    recipe = read_recipe(name)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        model = load_recipe(name, allow=allow)
    except UnsafeFileError as error:
        raise UnsafeFileError(f'{str(error).partition(" If you trust")[0]} If you trust it: --allow PACKAGE.') from None
    known = list(recipe.get('inputs', {}).values())
    shape = input_shape or (known[0]['shape'] if len(known) == 1 else _own_shape(model))
    return Target(name, model, random_inputs(model, tuple(shape)), recipe=recipe)


def _of_config(name: str, settings: Mapping[str, Any] | None, input_shape: Sequence[int] | None) -> Target:
    config = load_config(name, settings)
    algorithm = build_model(config)
    if input_shape is None:
        for part in ('train_cfg', 'val_cfg'):
            input_shape = input_shape or ((config.get(part) or {}).get('estimator_cfg') or {}).get('input_shape')
    if input_shape is not None:
        inputs: Any = _of_shape(algorithm, input_shape)
    else:
        inputs = _sample(config, algorithm)
    return Target(name, evaluated(getattr(algorithm, 'architecture', algorithm)), inputs, algorithm, config)


def build_model(config: Any) -> nn.Module:
    """Build the model of a config, without a runner and without data."""
    from mmengine.registry import init_default_scope

    from strop.codebases import check_scope
    from strop.registry import MODELS

    check_scope(config.get('default_scope'))
    init_default_scope(config.get('default_scope') or 'strop')
    cfg = _model_of(config)
    model = MODELS.build(cfg)
    if not isinstance(model, nn.Module):
        raise ComponentTypeError(
            f'The model of a config must be an nn.Module, but {cfg.get("type")!r} gives {type(model).__name__}.'
        )
    return model


def _model_of(config: Any) -> dict[str, Any]:
    """Return the model of a config as it is built alone: with the data preprocessor and the scope that the config gives it."""
    from strop.codebases import is_codebase
    from strop.engine.launch import without_inherited

    cfg = config.get('model') or config.get('algorithm')
    if not isinstance(cfg, Mapping):
        raise ConfigError(f"A config needs `model = dict(type='SPOS', ...)`, but has only {', '.join(config)}.")
    cfg = dict(without_inherited(cfg))
    if config.get('data_preprocessor') is not None:
        cfg.setdefault('data_preprocessor', config.data_preprocessor)
    if is_codebase(config.get('default_scope') or ''):
        cfg.setdefault('_scope_', config.default_scope)
    return cfg


def _sample(config: Any, algorithm: nn.Module) -> Any:
    """Return the inputs of one sample of the config's data, or zeros of the usual shape of an image."""
    from mmengine.runner import Runner

    for name in ('val_dataloader', 'test_dataloader', 'train_dataloader'):
        if config.get(name) is None:
            continue
        try:
            loader = Runner.build_dataloader({**config[name], 'num_workers': 0, 'persistent_workers': False}, seed=0)
            batch = next(iter(loader))
        except (OSError, ValueError, ImportError) as error:
            note(f'the shape of the inputs is not read from the data ({error}); {DEFAULT_SHAPE} is taken. Give --input-shape.')
            return _of_shape(algorithm, DEFAULT_SHAPE)
        preprocess = getattr(algorithm, 'data_preprocessor', None)
        batch = preprocess(batch, False) if preprocess is not None else batch
        inputs = batch['inputs'] if isinstance(batch, Mapping) else batch[0]
        if isinstance(inputs, Mapping):
            return {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        return inputs[:1] if _takes_a_tensor(algorithm) else _of_shape(algorithm, (1, *inputs.shape[1:]))
    note(f'the config has no data to read the shape of the inputs from; {DEFAULT_SHAPE} is taken. Give --input-shape.')
    return _of_shape(algorithm, DEFAULT_SHAPE)


def _takes_a_tensor(algorithm: nn.Module) -> bool:
    """Tell whether images are all that the model needs; detectors and segmentors also ask their data samples."""
    from strop.codebases import codebase_of

    return codebase_of(getattr(algorithm, 'architecture', algorithm)) not in ('mmdet', 'mmseg')


def _of_shape(algorithm: nn.Module, shape: Sequence[int]) -> Any:
    from strop.data import DefaultDemoInput

    if _takes_a_tensor(algorithm):
        return torch.zeros(tuple(shape), device=_device(algorithm))
    return DefaultDemoInput(tuple(shape))(algorithm)


def _own_shape(model: nn.Module) -> Sequence[int]:
    settings = getattr(model, 'default_cfg', None) or getattr(model, 'pretrained_cfg', None)
    if isinstance(settings, Mapping) and settings.get('input_size'):
        return (1, *settings['input_size'])
    note(f'the shape of the inputs is taken to be {DEFAULT_SHAPE}; give --input-shape for another.')
    return DEFAULT_SHAPE


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device('cpu'))
