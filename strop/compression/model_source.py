"""Where a model comes from: a registered type, timm, transformers, a function of the user, or an object in memory."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from strop.architectures import create_timm
from strop.engine import load_pretrained
from strop.errors import ComponentTypeError, ConfigError, StropError, UnsafeFileError, listed, near, try_import
from strop.export.factory import Trust, build, check_names, describe, portable, without_weights
from strop.export.recipe import plain_of
from strop.export.weights import digest_of
from strop.graph.forward import evaluated
from strop.randomness import seeded
from strop.registry import MODELS

#: Arguments of timm that would fetch or read weights; a model that is rebuilt gets its own.
_FETCHING = ('pretrained', 'checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir')


#: Arguments of transformers' models that a recipe of strangers may give: none makes it fetch or run code.
_HARMLESS = ('architecture', 'dtype', 'torch_dtype', 'num_labels', 'add_pooling_layer', 'use_cache', 'gguf_file', 'subfolder')


def located(module: str, name: str) -> Any:
    """Return what a module of the current folder, or an installed one, calls `name`.

    Raises:
        ConfigError: If there is no such module or name.

    >>> located('torch.nn', 'ReLU')
    <class 'torch.nn.modules.activation.ReLU'>
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        hint = near(module, [path.stem for path in Path.cwd().glob('*.py')])
        raise ConfigError(
            f'{module}:{name} needs the module {module!r}, which is neither in the current folder nor installed.{hint}'
        ) from None
    for part in name.split('.'):
        if not hasattr(found, part):
            raise ConfigError(f'{module} has no {name!r}.{near(part, dir(found))}')
        found = getattr(found, part)
    return found


def made(module: str, factory: str, **args: Any) -> nn.Module:
    """Return the model that a function of the user returns, or that its module holds.

    Raises:
        ConfigError: If there is no such function, or it fails; the message says where.
        ComponentTypeError: If it gives something else than a module.
    """
    found = located(module, factory)
    try:
        model = found if isinstance(found, nn.Module) else found(**args) if callable(found) else found
    except StropError:
        raise
    except Exception as error:  # whatever a function of the user raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f'{place.filename}:{place.lineno}'
        raise ConfigError(f'{module}:{factory} failed with {type(error).__name__}: {error} ({where})') from error
    if not isinstance(model, nn.Module):
        raise ComponentTypeError(f'{module}:{factory} must give an nn.Module, but gives {type(model).__name__}.')
    return model


@dataclass(frozen=True)
class ModelSource:
    """What builds a model, as data.

    Args:
        name: `timm:NAME`, `transformers:FOLDER`, `module:factory`, or a registered type.
        args: Keyword arguments.
        weights: A file with the weights: `.safetensors`, `.npz` or a checkpoint of PyTorch, which the model must fit whole.
        config: The config of a transformers model, which rebuilds it without its folder.

    Raises:
        ConfigError: If the name says nothing.

    >>> ModelSource.of('timm:resnet10t', {'num_classes': 4}).rebuild().num_classes
    4
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    config: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, given: Any, args: Mapping[str, Any] | None = None, weights: str | None = None) -> ModelSource:
        """Read a name, or a mapping with `type` (a registered class and its arguments) or `source`, `args` and `weights`.

        Raises:
            ConfigError: If it is neither, or has an unknown key.
        """
        if isinstance(given, ModelSource):
            return given
        if isinstance(given, Mapping):
            if isinstance(given.get('type'), str):
                content = {str(key): value for key, value in given.items() if key not in ('type', 'weights')}
                return cls(given['type'], content, _file(given.get('weights', weights)))
            known = ('source', 'args', 'weights')
            for key in given:
                if key not in known:
                    raise ConfigError(
                        f"A model has no key {key!r}.{near(key, (*known, 'type'))} It has {listed(known)}; or 'type' and the "
                        'arguments of a registered class.'
                    )
            return cls.of(given.get('source'), given.get('args'), given.get('weights'))
        if not isinstance(given, str) or not given.strip(':'):
            raise ConfigError(
                "A model is named 'timm:resnet18', 'transformers:FOLDER', 'module:factory' or by a registered type, but got "
                f'{given!r}.'
            )
        if args is not None and not isinstance(args, Mapping):
            raise ConfigError(f"The `args` of a model are a mapping such as {{'num_classes': 10}}, but got {args!r}.")
        return cls(given, dict(args or {}), _file(weights))

    @property
    def kind(self) -> str:
        """'timm', 'transformers', 'factory' or 'type'."""
        head, colon, _ = self.name.partition(':')
        if not colon:
            return 'type'
        return head if head in ('timm', 'transformers') else 'factory'

    @property
    def rest(self) -> str:
        """The name behind the colon."""
        return self.name.partition(':')[2]

    def check(self, trust: bool = False) -> None:
        """Raise unless the model can be built here; nothing is built, and code of others is not imported.

        Raises:
            ConfigError: If there is no such model, folder or file.
            MissingDependencyError: If a package is missing.
            UnsafeFileError: If code would run that nobody trusts.
        """
        if self.kind == 'factory' and not trust:
            raise UnsafeFileError(
                f'The model {self.name!r} is a function of a Python module, and a recipe may not run code unless you say so: '
                'if you trust it, trust=True in Python, --trust on the command line.'
            )
        if self.kind == 'timm':
            self._check_timm()
            if not trust:
                self._check_args()
        elif self.kind == 'transformers':
            try_import('transformers', 'transformers')
            if not Path(self.rest).expanduser().is_dir():
                raise ConfigError(
                    f'{self.name!r} needs the folder of a model with its config.json, but there is no folder {self.rest!r}. '
                    'Nothing is fetched from a network.'
                )
            other = next((key for key in self.args if key not in _HARMLESS), None)
            if other is not None and not trust:
                raise UnsafeFileError(
                    f'The argument {other!r} of {self.name} is none of those that are harmless for sure ({listed(_HARMLESS)}); '
                    'others can make transformers unpickle files or fetch code. Leave it out, or trust the recipe.'
                )
        elif self.kind == 'type':
            # Before the registry looks the name up, which imports what it could be.
            check_names(without_weights({'type': self.name, **self.args}), Trust(everything=trust), 'the recipe')
            if self.name not in MODELS:
                MODELS.get(self.name)  # whose error names near matches
        if self.weights is not None and not Path(self.weights).expanduser().is_file():
            raise ConfigError(f'There is no file {self.weights!r} with the weights of {self.name}.')

    def build(self, trust: bool = False) -> nn.Module:
        """Build the model with its weights, in eval mode.

        Raises:
            ConfigError: If it cannot be built, or the weights are of another model.
            UnsafeFileError: If code would run that nobody trusts.
        """
        self.check(trust)
        if self.kind == 'timm':
            model = create_timm(self.rest, **self.args)
        elif self.kind == 'transformers':
            model = self._pretrained()
        elif self.kind == 'factory':
            module, _, factory = self.name.partition(':')
            model = made(module, factory, **self.args)
        else:
            model = self._registered(trust)
        if self.weights is not None:
            load_pretrained(model, self.weights)
        return evaluated(model)

    def rebuild(self, trust: bool = False) -> nn.Module:
        """Build a model of the same class and sizes, without its weights and without a network.

        Raises:
            ConfigError: If it cannot be built.
            UnsafeFileError: If code would run that nobody trusts.
        """
        with seeded(0, 'rebuild'):
            if self.kind == 'transformers':
                if self.config is None:
                    raise ConfigError(f'{self.name!r} is not described by a config, and nothing else says what to build.')
                return transformers_model(**self.config)
            if self.kind == 'timm':
                self._check_timm()
                return create_timm(self.rest, **{key: value for key, value in self.args.items() if key not in _FETCHING})
            return ModelSource(self.name, self.args).build(trust)

    def check_like(self, model: nn.Module) -> None:
        """Raise unless it builds models of the architecture of another, whatever their weights.

        Raises:
            ConfigError: If a tensor of one is missing in the other, or has another shape there.
        """
        with seeded(0, 'rebuild'):
            built = plain_of(self.build(trust=True)).state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in sorted({*shapes, *built}):
            if name not in built or name not in shapes or tuple(built[name].shape) != shapes[name]:
                there = f'of shape {tuple(built[name].shape)}' if name in built else 'missing'
                wanted = f'of shape {shapes[name]}' if name in shapes else 'none'
                raise ConfigError(
                    f'The factory {self.name!r} builds another model than the {type(model).__name__} that was given: its '
                    f'tensor {name!r} is {there}, that of the model is {wanted}.'
                )

    def known(self, model: nn.Module) -> ModelSource:
        """Return the same with what its model says of itself, which rebuilds it without its folder."""
        if self.kind != 'transformers' or self.config is not None:
            return self
        config: Any = model.config
        content = portable(_plain(config.to_dict()), 'the config')
        return ModelSource(
            self.name,
            self.args,
            self.weights,
            {'architecture': type(model).__name__, 'kind': config.model_type, 'config': content},
        )

    @property
    def factory(self) -> tuple[Any, dict[str, Any] | None]:
        """What builds the model, as recipes of `strop.export` name it, and its arguments; (None, None) where they cannot."""
        if self.kind == 'timm':
            kept = {key: value for key, value in self.args.items() if key not in _FETCHING}
            return 'timm:create_model', {'model_name': self.rest, **kept}
        if self.kind == 'factory':
            return self.name, dict(self.args)
        return ({'type': self.name, **self.args}, None) if self.kind == 'type' else (None, None)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            'source': self.name,
            **({'args': portable(self.args, 'the arguments of the model')} if self.args else {}),
            **({'weights': str(self.weights)} if self.weights is not None else {}),
            **({'config': dict(self.config)} if self.config is not None else {}),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelSource:
        """Return what `to_dict` gave.

        Raises:
            ConfigError: If it is something else.
        """
        wanted = {'source': str, 'args': Mapping, 'weights': (str, type(None)), 'config': (Mapping, type(None))}
        given = {'args': {}, 'weights': None, 'config': None, **content} if isinstance(content, Mapping) else {}
        wrong = next((key for key, kind in wanted.items() if not isinstance(given.get(key), kind)), None)  # type: ignore[arg-type]
        if wrong is not None:
            raise ConfigError(
                f'A model is a mapping with `source`, `args`, `weights` and `config`, but its {wrong!r} is '
                f'{given.get(wrong)!r}.'
            )
        return cls(*(given[key] for key in wanted))

    def digest(self) -> str:
        """Return a hash of what the model is made of, the contents of the file of weights included."""
        found = hashlib.sha256(repr(sorted(self.to_dict().items(), key=str)).encode())
        if self.weights is not None:
            found.update(digest_of(Path(self.weights).expanduser()).encode())
        return found.hexdigest()[:16]

    # -- internals -------------------------------------------------------------------------

    def _check_timm(self) -> None:
        timm = try_import('timm', 'timm')
        stem = self.rest.partition('.')[0]
        if not timm.is_model(stem):  # such as a name of a hub, or a folder
            raise ConfigError(f'timm {timm.__version__} has no model {self.rest!r}.{near(stem, timm.list_models())}')

    def _check_args(self) -> None:
        for key in ('checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay'):
            if self.args.get(key):
                raise UnsafeFileError(
                    f'The argument {key!r} of {self.name} would make timm read another file; give it as `weights`, or trust '
                    'the recipe.'
                )

    def _registered(self, trust: bool) -> nn.Module:
        described = describe({'type': self.name, **self.args}, None)
        return build(described, Trust(everything=trust), 'the recipe')

    def _pretrained(self) -> nn.Module:
        transformers = try_import('transformers', 'transformers')
        folder = str(Path(self.rest).expanduser())
        options = dict(self.args)
        name = options.pop('architecture', None)
        local = {'local_files_only': True, 'trust_remote_code': False}
        if name is None:
            gguf = {'gguf_file': options['gguf_file']} if 'gguf_file' in options else {}
            config = transformers.AutoConfig.from_pretrained(folder, **local, **gguf)
            name = next(iter(config.architectures or []), 'AutoModel')
        try:
            model: nn.Module = _architecture(name).from_pretrained(folder, **local, weights_only=True, **options)
        except Exception as error:  # of a damaged file, a pickle that does more than hold tensors, an argument it does not take
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f'transformers cannot load {folder}: {said}') from error
        return model


def transformers_model(architecture: str, kind: str, config: Mapping[str, Any]) -> nn.Module:
    """Build a model of transformers from its config alone, with random weights.

    Args:
        architecture: Name of its class.
        kind: The config's `model_type`.
        config: The config as data.

    Raises:
        ConfigError: If transformers has no such class.
    """
    transformers = try_import('transformers', 'transformers')
    content = {key: value for key, value in config.items() if key not in ('model_type', 'transformers_version', 'auto_map')}
    return _architecture(architecture)._from_config(transformers.AutoConfig.for_model(kind, **content))  # type: ignore[no-any-return]


def _architecture(name: str) -> Any:
    transformers = try_import('transformers', 'transformers')
    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not (issubclass(found, transformers.PreTrainedModel) or name.startswith('AutoModel')):
        raise ConfigError(f'transformers has no model class {name!r}.{near(name, dir(transformers))}')
    return found


def _file(weights: Any) -> str | None:
    if weights is not None and not isinstance(weights, (str, Path)):
        raise ConfigError(f'`weights` of a model is a file (.safetensors, .npz or a checkpoint of torch), but got {weights!r}.')
    return None if weights is None else str(weights)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value).removeprefix('torch.') if isinstance(value, torch.dtype) else value


def state_digest(model: nn.Module) -> str:
    """Return a hash of the structure of a model, as it describes itself, and of every value in its state.

    >>> state_digest(nn.Identity()) == state_digest(nn.Identity())
    True
    """
    # A function among the settings of a layer is described with its place in memory.
    structure = re.sub(r' at 0x[0-9a-fA-F]+', '', repr(model))
    found = hashlib.sha256(f'{type(model).__qualname__}{structure}'.encode())
    for name, tensor in model.state_dict().items():
        found.update(f'{name}{tuple(tensor.shape)}{tensor.dtype}'.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


__all__: Sequence[str] = ['ModelSource', 'located', 'made', 'state_digest', 'transformers_model']
