"""The folder that comes out: recipe, weights, records, files for runtimes, a README and a loader; and the way back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from strop.compression.calling import call, main_output
from strop.compression.model_source import ModelSource, located
from strop.errors import ConfigError, ExportError, UnsafeFileError
from strop.export import load_recipe
from strop.export.factory import Trust
from strop.files import atomic_path, atomic_write, read_json
from strop.mutables import extract

#: Version of `artefact.json`.
VERSION = 1
FILE = 'artefact.json'
MODEL = 'model'

LOADER = '''"""Load the compressed model of this folder: `python load.py`, or `from load import model`."""

from pathlib import Path

import torch
import strop

folder = Path(__file__).parent
model = strop.load(folder{trust})
if __name__ == '__main__':
    inputs = torch.load(folder / 'example.pt', weights_only=True)
    print(model(**inputs) if isinstance(inputs, dict) else model(*inputs))
'''


@dataclass(frozen=True)
class Artefact:
    """What the folder says of itself.

    Args:
        model: What builds the original model; None where it was given in memory.
        example: Shapes and dtypes of the inputs.
        name: What reports call it.
        choices: The subnet, where the original is a supernet.
    """

    model: ModelSource | None
    example: Mapping[str, Any]
    name: str
    choices: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `artefact.json`."""
        content = {
            'strop': 'artefact',
            'version': VERSION,
            'name': self.name,
            'model': None if self.model is None else self.model.to_dict(),
            'choices': dict(self.choices),
            'inputs': dict(self.example),
        }
        atomic_write(folder / FILE, json.dumps(content, indent=2, default=str) + '\n')

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Artefact:
        """Read `artefact.json`; nothing is built.

        Raises:
            ConfigError: If the folder holds none, or one of a newer version.
        """
        path = Path(folder).expanduser() / FILE
        if not path.is_file():
            raise ConfigError(f'{folder} has no {FILE}: it is not a folder that `strop compress` finished.')
        content = read_json(path, 'an artefact')
        if not isinstance(content, dict) or content.get('strop') != 'artefact' or not isinstance(content.get('version'), int):
            raise ConfigError(f'{path} does not describe an artefact.')
        if content['version'] > VERSION:
            raise ConfigError(
                f'{path} has version {content["version"]}; this Strop reads up to version {VERSION}. Upgrade Strop.'
            )
        model = content.get('model')
        try:
            source = None if model is None else ModelSource.from_dict(model)
        except ConfigError as error:
            raise ConfigError(f'{path} does not say what builds the model: {error}') from error
        return cls(source, content.get('inputs') or {}, str(content.get('name', '')), content.get('choices') or {})


def load(
    folder: str | os.PathLike[str],
    *,
    factory: Callable[..., nn.Module] | None = None,
    allow: str | Sequence[str] = (),
    trust: bool = False,
    device: str | torch.device = 'cpu',
) -> nn.Module:
    """Load the model that `strop compress` made: the original class, cut as the records say, with its weights.

    Nothing is fetched and nothing is unpickled. Models of timm and transformers are built by these packages from a name or a
    config; what names a function of another module is built only where `allow` or `trust` says so.

    Args:
        folder: The artefact.
        factory: A function that builds the original model, where it was given in memory or nobody trusts the folder.
        allow: Packages whose functions may build the model.
        trust: Let it name anything: only for folders of known origin.
        device: Where to put the model.

    Returns:
        The model, in eval mode.

    Raises:
        ConfigError: If the folder is no artefact, or does not say what builds the model and `factory` is not given.
        UnsafeFileError: If it names a function that is not permitted.
        ExportError: If weights or records are damaged, or of another model.
    """
    path = Path(folder).expanduser()
    found = Artefact.read(path)
    consent = Trust.of(allow, trust)
    if factory is not None and not callable(factory):
        raise ConfigError(f'`factory` is a function that returns the original model, but got {factory!r}.')
    if factory is None:
        if found.model is None:
            raise ConfigError(
                f'{folder}: the model was given in memory, so the folder does not say what builds it: give '
                'factory=..., a function '
                'that returns the original model.'
            )
        source = found.model
        if source.kind == 'factory' and not consent.permits(source.name.partition(':')[0]):
            raise UnsafeFileError(
                f'{folder} names the function {source.name!r}, and building the model would run code. Nothing was run. If you '
                f'trust its origin: allow=[{source.name.partition(":")[0]!r}], trust=True, or factory=...'
            )
        if source.kind == 'factory':
            module, _, name = source.name.partition(':')
            target = located(module, name)
            # What a module has imported is not its own: `os.system` may be in reach of every one.
            if not isinstance(target, nn.Module) and not consent.permits_object(target):
                raise UnsafeFileError(
                    f'{folder} names {source.name!r}, which is no function or class of that package. Nothing was run. If you '
                    'trust its origin: trust=True, or factory=...'
                )
        permitted = consent.everything or source.kind == 'factory'

        def factory(**_: Any) -> nn.Module:
            return source.rebuild(permitted)

    made = factory

    def whole(**_: Any) -> nn.Module:
        return extract(made(), found.choices) if found.choices else made()

    return load_recipe(path / MODEL, factory=whole, device=device)


def write_loader(folder: Path, source: ModelSource | None, example: Any) -> None:
    """Write `load.py` and the inputs that it shows the model on."""
    trust = ''
    if source is None:
        trust = ', factory=...'
    elif source.kind == 'factory':
        trust = f', allow={source.name.partition(":")[0]!r}'
    inputs: Any = example
    if not isinstance(example, Mapping):
        inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    with atomic_path(folder / 'example.pt') as temporary:
        torch.save(inputs, temporary)
    atomic_write(folder / 'load.py', LOADER.replace('{trust}', trust))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file: all of it, or nothing."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def check_artefact(folder: Path, model: nn.Module, example: Any, factory: Callable[..., nn.Module] | None, trust: bool) -> None:
    """Load the artefact and compare it with the model, bit by bit.

    Raises:
        ExportError: If what is loaded gives other outputs.
    """
    try:
        again = load(folder, factory=factory, trust=trust)
        with torch.no_grad():
            first, second = (main_output(call(each, example), example) for each in (model, again))
        if not torch.equal(first, second):
            gap = float((first - second).abs().max())
            raise ExportError(
                f'The model that {folder} loads gives other outputs than the one that was saved: they differ by {gap:.3g}.'
            )
    except BaseException:
        (folder / FILE).unlink(missing_ok=True)
        raise


__all__ = ['FILE', 'MODEL', 'Artefact', 'check_artefact', 'copy_file', 'load', 'write_loader']
