"""A fixed subnet, or a pruned model, as a recipe and its weights: `recipe.json` beside `model.safetensors`, data only."""

from __future__ import annotations

import copy
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

import strop
from strop.algorithms import BaseAlgorithm, PlainArchitecture
from strop.errors import ConfigError, ExportError, StropError, SubnetError, listed
from strop.export.comparison import ExportedFile, Inputs, compared, named_outputs, outputs_of, source_of
from strop.export.cut import Cut
from strop.export.factory import Trust, build, checked, describe, found_by_name, supernet_config
from strop.export.folder import atomic_folder
from strop.export.weights import FILE, digest_of, load_weights, read_weights, same_bits, write_weights
from strop.files import read_text
from strop.graph.forward import evaluated
from strop.mutables import (
    Attachment,
    Space,
    Subnet,
    attachments,
    bind,
    choices_of,
    current_subnet,
    extract,
    fix,
    mutables_of,
    read_document,
    space_of,
)
from strop.randomness import seeded

#: Recipes of pruned models are of version 2; others are still written as version 1.
VERSION = 2

AnySubnet = Mapping[str, Any] | str | os.PathLike[str]
AnyFactory = str | Callable[..., nn.Module] | Mapping[str, Any]


@cache
def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of `recipe.json`.

    >>> recipe_schema()['title']
    'Strop recipe'
    """
    return json.loads(files('strop.export').joinpath('recipe.schema.json').read_text(encoding='utf-8'))


def plain_of(model: nn.Module) -> nn.Module:
    """Return the network inside its wrappers: `torch.compile`, data parallel ones, an algorithm, `PlainArchitecture`.

    >>> plain_of(BaseAlgorithm(nn.Linear(3, 1)))
    Linear(in_features=3, out_features=1, bias=True)
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, BaseAlgorithm):
            model = model.architecture
        elif isinstance(model, parallel) or (isinstance(model, PlainArchitecture) and not _attached(model)):
            model = model.module
        elif isinstance(getattr(model, '_orig_mod', None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _attached(model: nn.Module) -> bool:
    # What is attached to a wrapper decides about the network inside, which must not be taken out before.
    return any(isinstance(child, Attachment) for child in model.children())


def plain_subnet(model: nn.Module, subnet: AnySubnet | None = None) -> nn.Module:
    """Return the plain model of `subnet`: extracted from a supernet, or `model` itself where nothing is left to decide.

    Args:
        model: A supernet, an extracted subnet, or an algorithm with one of them.
        subnet: A subnet, or a file with one; by default what the model has decided.

    Raises:
        ExportError: If no subnet is given and the model has not decided.
        SubnetError: If the subnet does not fit.
    """
    plain = plain_of(model)
    return plain_of(fix(_decided(plain, subnet))) if mutables_of(plain) else plain


def _decided(supernet: nn.Module, subnet: AnySubnet | None) -> nn.Module:
    """Return a copy of a supernet with a subnet applied to it."""
    # Copied first: a mutator may hold the supernet under other keys, and a copy is free of it.
    twin = copy.deepcopy(supernet)
    binding = bind(twin)
    if subnet is not None:
        binding.apply(answered(subnet, binding.space))
        return twin
    try:
        current_subnet(twin)
    except StropError as error:
        raise ExportError(
            f'The {type(supernet).__name__} still has decisions to make ({listed(binding.space, 4)}), and an export is of one '
            'subnet. Give subnet=..., or export strop.mutables.extract(model, subnet).'
        ) from error
    return twin


def answered(subnet: AnySubnet, space: Space) -> Subnet:
    """Validate a subnet, or a file with one, against `space`; keys may carry the prefixes of wrappers.

    Raises:
        SubnetError: If it does not fit.
    """
    known = {*space, *space.paths}
    origin = ''
    if isinstance(subnet, (str, os.PathLike)):
        origin = f'{os.fspath(subnet)}: '
        choices = choices_of(read_document(subnet, 'a subnet file'), known)
    elif isinstance(subnet, Subnet):
        choices = dict(subnet)
    else:
        choices = choices_of(subnet, known)
    stripped = {}
    for key, value in choices.items():
        name = key
        while name not in known and name.startswith(('architecture.', 'module.')):
            name = name.partition('.')[2]
        stripped[name if name in known else key] = value
    try:
        return space.subnet(stripped)
    except SubnetError as error:
        raise type(error)(f'{origin}{error}') from None


# -- writing ----------------------------------------------------------------------------------------------


def save_recipe(
    model: nn.Module,
    subnet: AnySubnet | None,
    folder: str | os.PathLike[str],
    *,
    factory: AnyFactory,
    factory_args: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    note: Any = None,
    check: bool = True,
) -> ExportedFile:
    """Write one subnet as `recipe.json`, `model.safetensors` and a `README.md` that says how to load it.

    The folder appears whole or not at all. An older export there is replaced; a folder with anything else in it is not.

    Args:
        model: The supernet, or the plain subnet taken out of it (and trained further), also inside an algorithm.
        subnet: The subnet, or a file with one; None for what the model, or the config, has decided.
        folder: Where to.
        factory: What builds the *supernet*: a model config, a function or class, or its name `'module:function'`. A config of
            an algorithm or of `sub_model` is unwrapped.
        factory_args: Keyword arguments of the function, of what JSON can hold.
        example_inputs: Inputs (a tensor, a tuple, or a mapping of keywords): the rebuilt model's outputs are then compared
            with the model's, bit by bit.
        note: Anything that JSON can hold, kept in the recipe.
        check: Build the model again from the recipe, and compare, before the folder counts.

    Raises:
        ConfigError: If `factory` or its arguments cannot be written down.
        SubnetError: If the subnet does not fit the supernet.
        ExportError: If what the factory builds is another model.

    >>> import tempfile
    >>> config = dict(
    ...     type='OneShotMutableOP', candidates=dict(relu=dict(type='torch.nn.ReLU'), id=dict(type='torch.nn.Identity'))
    ... )
    >>> from strop.registry import MODELS
    >>> folder = Path(tempfile.mkdtemp()) / 'net'
    >>> saved = save_recipe(MODELS.build(config), {'oneshotmutableop': 'relu'}, folder, factory=config)
    >>> load_recipe(folder)
    ReLU()
    """
    with atomic_folder(folder) as temporary:
        result = write_recipe(
            model,
            subnet,
            temporary,
            factory=factory,
            factory_args=factory_args,
            example_inputs=example_inputs,
            note=note,
            check=check,
        )
    return result.moved(Path(folder))


def write_recipe(
    model: nn.Module,
    subnet: AnySubnet | None,
    folder: Path,
    *,
    factory: AnyFactory,
    factory_args: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    note: Any = None,
    check: bool = True,
) -> ExportedFile:
    """Write the files of `save_recipe` into a folder that exists."""
    fixed: AnySubnet | None = None
    cut: Cut | None = None
    if isinstance(factory, Mapping):
        factory, fixed = supernet_config(factory)
        subnet = fixed if subnet is None else subnet
    supernet = describe(factory, factory_args)
    given = plain_of(model)
    if attachments(given):
        plain, whole, subnet = _widths_apart(_decided(given, subnet))
        subnet = fixed if subnet is None else subnet
        cut = Cut.between(whole, plain)
    elif mutables_of(given):
        twin = _decided(given, subnet)
        bind(twin, groups=[])  # groups are the mutator's; what the factory builds has none
        subnet = current_subnet(twin)
        plain = fix(twin)
    else:
        plain = given
    choices: dict[str, Any] = {}
    rebuilt: nn.Module | None = None
    if check:
        original = built_by(supernet, factory)
        choices = choices_for(original, subnet)
        rebuilt = reduced(original, choices)
    else:
        choices = given_choices(subnet)
    return write_files(
        plain,
        folder,
        {'supernet': supernet, 'choices': choices},
        rebuilt=rebuilt,
        cut=cut,
        example_inputs=example_inputs,
        note=note,
    )


def _widths_apart(twin: nn.Module) -> tuple[nn.Module, nn.Module, Subnet | None]:
    """Return the plain model of a decided one, the same at full width, and the decisions that are not about widths."""
    whole = copy.deepcopy(twin)
    for parent, attached in attachments(whole):
        attached.release(parent)
    subnet: Subnet | None = None
    if mutables_of(whole):
        bind(whole, groups=[])
        subnet = current_subnet(whole)
        whole = fix(whole)
    return plain_of(fix(twin)), plain_of(whole), subnet


def write_files(
    plain: nn.Module,
    folder: Path,
    parts: Mapping[str, Any],
    *,
    rebuilt: nn.Module | None = None,
    cut: Cut | None = None,
    example_inputs: Any = None,
    note: Any = None,
) -> ExportedFile:
    """Write weights, recipe and README of a plain model.

    Args:
        plain: The model.
        folder: An empty folder.
        parts: How it is built: `supernet` and `choices`.
        rebuilt: What they build; it is cut, given the weights and compared with `plain`. None for no comparison.
        cut: What pruning took away.
        example_inputs: Inputs to compare outputs on.
        note: Kept in the recipe.

    Raises:
        ConfigError: If the recipe cannot be written as JSON.
        ExportError: If the rebuilt model is another one.
    """
    table = write_weights(plain, folder / FILE, cut.tensors(plain) if cut is not None else {})
    if rebuilt is not None:
        weights = read_weights(folder / FILE, table)
        if cut is not None:
            cut.apply(rebuilt, weights, True, 'The recipe')
        check_same(plain, rebuilt, weights, example_inputs, cut.extra if cut is not None else ())
    inputs = Inputs.of(example_inputs).bound(plain)[0] if example_inputs is not None else None
    recipe = {
        'strop': 'recipe',
        'version': 1 if cut is None else VERSION,
        **parts,
        **({} if cut is None else {'cut': cut.to_dict()}),
        'weights': {'file': FILE, 'sha256': digest_of(folder / FILE), 'tensors': table},
        'inputs': inputs.shapes() if inputs is not None else {},
        'versions': {'strop': strop.__version__, 'torch': str(torch.__version__), 'python': platform.python_version()},
        'note': note,
    }
    try:
        text = json.dumps(recipe, indent=2, ensure_ascii=False, allow_nan=False) + '\n'
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f'The recipe cannot be written as JSON: {error}. `note` and the choices hold text, numbers, lists, mappings.'
        ) from None
    (folder / 'recipe.json').write_text(_compact(text), encoding='utf-8')
    (folder / 'README.md').write_text(_readme(plain, recipe), encoding='utf-8')
    checked_on = inputs if rebuilt is not None else None
    return ExportedFile(
        path=folder,
        format='recipe',
        size_bytes=sum(file.stat().st_size for file in (folder / FILE, folder / 'recipe.json', folder / 'README.md')),
        batches=(checked_on.batch,) if checked_on is not None and checked_on.batch is not None else (),
        max_abs_error=0.0 if checked_on is not None else None,
        max_rel_error=0.0 if checked_on is not None else None,
    )


def _compact(text: str) -> str:
    """Put lists of numbers on one line; a string of JSON has no line breaks, so none is touched."""
    return re.sub(r'\[\n[-\d,\s]*\]', lambda found: '[' + ' '.join(found.group()[1:-1].split()) + ']', text)


def built_by(supernet: Mapping[str, Any], factory: AnyFactory) -> nn.Module:
    """Build what the `supernet` part of a recipe describes, given what it was described from."""
    with seeded(0, 'recipe'):
        if callable(factory):
            return plain_of(checked(factory(**supernet['args']), f'the factory {supernet["factory"]!r}'))
        return plain_of(build(supernet, Trust(everything=True), 'the recipe'))


def choices_for(original: nn.Module, subnet: AnySubnet | None) -> dict[str, Any]:
    """Return the choices that make a plain model of `original`: none if it has nothing to decide."""
    if not mutables_of(original):
        return {}
    if subnet is None:
        raise ExportError(
            f'The {type(original).__name__} that the factory builds has decisions to make, so its recipe needs '
            'the subnet that the '
            'model was extracted with: give subnet=...'
        )
    return dict(answered(subnet, space_of(original)))


def given_choices(subnet: AnySubnet | None) -> dict[str, Any]:
    """Return the choices of a subnet as they are given, without a model to check them by."""
    if subnet is None:
        return {}
    return dict(subnet) if isinstance(subnet, Mapping) else choices_of(read_document(subnet, 'a subnet file'))


def reduced(original: nn.Module, choices: Mapping[str, Any]) -> nn.Module:
    """Return the subnet of `original`, or `original` itself where nothing is to be decided."""
    if mutables_of(original):
        return extract(original, choices)
    if choices:
        raise SubnetError(f'The recipe decides {listed(choices)}, but the {type(original).__name__} has nothing to decide.')
    return original


def check_same(
    plain: nn.Module,
    rebuilt: nn.Module,
    weights: dict[str, torch.Tensor],
    example_inputs: Any,
    extra: Sequence[str] = (),
) -> None:
    """Raise unless `rebuilt` with `weights` is `plain`: names, values, other buffers, and outputs if there are inputs.

    Raises:
        ExportError: If it is not.
    """
    try:
        load_weights(rebuilt, {name: value for name, value in weights.items() if name not in extra}, True, 'The recipe')
    except ExportError as error:
        raise ExportError(
            f'{error} The factory must build the supernet that the model was taken from, with the same arguments.'
        ) from None
    buffers = dict(rebuilt.named_buffers())
    for name, buffer in plain.named_buffers():
        if (name not in weights or name in extra) and (name not in buffers or not same_bits(buffer, buffers[name])):
            raise ExportError(
                f'The buffer {name!r} is not persistent, and the rebuilt model has other values in it, so it would be '
                'lost. Register it '
                'with persistent=True, or give the factory the arguments that it comes from.'
            )
    if example_inputs is not None:
        inputs = Inputs.of(example_inputs).to('cpu')
        # Kernels are chosen by how weights lie in memory, which is not saved, and round differently.
        reference = named_outputs(outputs_of(contiguous(source_of(plain)), inputs))
        other = named_outputs(outputs_of(contiguous(source_of(rebuilt)), inputs))
        found = compared(reference, list(other.values()), rtol=0.0, atol=0.0)
        if found.problem:
            raise ExportError(
                f'The model that the recipe builds has the same weights and other outputs: {found.problem}. It '
                'depends on something '
                'that is neither in its weights nor in its arguments.'
            )


def contiguous(model: nn.Module) -> nn.Module:
    """Lay the tensors of a model out in plain order, in place, and return it: so lies what is loaded, whatever built it."""
    return model.to(memory_format=torch.contiguous_format)


def _readme(plain: nn.Module, recipe: Mapping[str, Any]) -> str:
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    supernet = recipe.get('supernet')
    if supernet is None:
        what, call = f'a `{type(plain).__name__}`', "load_slim('path/to/this/folder', original)  # a model as before pruning"
    else:
        packages = [module.partition('.')[0] for module in supplied(supernet)]
        consent = f', allow={sorted(set(packages))!r}' if packages else ''
        if 'factory' in supernet and not found_by_name(supernet['factory']):
            consent = ', factory=...'  # no other program finds it by its name
        built = f'`{supernet["factory"]}`' if 'factory' in supernet else f'a config of type `{supernet["config"]["type"]}`'
        args = ', '.join(f'{name}={value!r}' for name, value in supernet.get('args', {}).items())
        built += f' with `{args}`' if 0 < len(args) <= 80 else ''
        what, call = f'the model that {built} builds', f"load_recipe('path/to/this/folder'{consent})"
    title, kind = ('A pruned model', 'Pruned from') if 'cut' in recipe else ('A subnet', 'One subnet of')
    lines = [
        f'# {title} with {parameters:,} parameters',
        '',
        f'{kind} {what}, saved by Strop {recipe["versions"]["strop"]}: `recipe.json` says how to build it,',
        f'`{FILE}` holds its weights. No pickle.',
        '',
        '```python',
        f'from strop.export import {call.partition("(")[0]}',
        f'model = {call}',
        'outputs = model(inputs)  # a plain torch.nn.Module, in eval mode',
        '```',
        '',
    ]
    if 'factory=...' in call:
        lines += ['`factory` is the function that built it: it had no name by which another program could import it.', '']
    shapes = ', '.join(f'`{name}` {tuple(entry["shape"])} {entry["dtype"]}' for name, entry in recipe['inputs'].items())
    return '\n'.join(lines + ([f'Inputs: {shapes}.', ''] if shapes else []))


def supplied(supernet: Mapping[str, Any]) -> Sequence[str]:
    """Return the modules outside Strop and torch that a recipe needs."""
    if 'factory' in supernet:
        module = supernet['factory'].partition(':')[0]
        return [] if module.startswith(('strop.', 'torch.nn')) else [module]
    return list(supernet.get('imports', ()))


# -- reading ----------------------------------------------------------------------------------------------


def read_recipe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and validate `recipe.json` of a folder, and build nothing.

    Raises:
        FileNotFoundError: If there is none.
        UnsafeFileError: If it is a pickle or otherwise not text.
        ExportError: If it is not JSON, of a newer version, or breaks the schema.
    """
    import jsonschema

    path = Path(folder).expanduser()
    path = path / 'recipe.json' if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f'There is no recipe at {path}. A recipe is a folder with recipe.json and {FILE}.')
    text = read_text(path, 'a recipe')
    try:
        recipe = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ExportError(
            f'{path} is not JSON: {error or "nested too deeply"}. The file is damaged; save the recipe again.'
        ) from None
    version = recipe.get('version') if isinstance(recipe, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ExportError(f'{path} has version {version}; this Strop reads up to version {VERSION}. Upgrade Strop.')
    errors = sorted(
        jsonschema.Draft202012Validator(recipe_schema()).iter_errors(recipe), key=lambda error: list(map(str, error.path))
    )
    if errors:
        place = '/'.join(map(str, errors[0].path)) or 'the file'
        raise ExportError(f'{path}: {place} breaks the schema of recipes: {errors[0].message[:300]}')
    return recipe


def load_recipe(
    folder: str | os.PathLike[str],
    *,
    factory: Callable[..., nn.Module] | None = None,
    allow: str | Sequence[str] = (),
    trust: bool = False,
    strict: bool = True,
    device: str | torch.device = 'cpu',
) -> nn.Module:
    """Build the subnet or pruned model of a recipe from its original class and load its weights.

    The result is a plain model in eval mode.

    Nothing is unpickled. Code runs only where the recipe names a class or function that is permitted: model classes of
    Strop and `torch.nn`, classes that are registered already, and what the arguments below add. The random state of the
    process is left as it was.

    Args:
        folder: What `save_recipe` wrote.
        factory: A function that builds the supernet, or the model as it was before pruning, to be called with the recipe's
            arguments instead of the named one.
        allow: Packages or modules whose functions and classes the recipe may name.
        trust: Let it name anything: only for recipes of known origin.
        strict: Refuse weights that differ in names, shapes or checksum; False loads what fits and logs the rest.
        device: Where to put the model.

    Raises:
        FileNotFoundError: If a file is missing.
        UnsafeFileError: If the recipe names something that is not permitted, or a file is a pickle.
        SubnetError: If the choices do not fit the rebuilt supernet.
        ExportError: If the recipe or the weights are damaged, or of another model.
    """
    consent = Trust.of(allow, trust)
    path = Path(folder).expanduser()
    path = path.parent if path.is_file() else path
    recipe = read_recipe(path)
    weights = read_weights(path / FILE, recipe['weights']['tensors'])
    supernet = recipe.get('supernet', {})
    if factory is None and not supernet:
        raise ExportError(
            f'{path / "recipe.json"} does not say what builds the original model: give factory=..., a function that returns '
            'one, or load it with load_slim(folder, original).'
        )
    with seeded(0, 'recipe'):
        if factory is None:
            built = build(supernet, consent, path / 'recipe.json')
        elif 'config' in supernet:
            built = checked(factory(**_arguments(supernet['config'])), '`factory`')
        else:
            built = checked(factory(**supernet.get('args', {})), '`factory`')
        try:
            model = reduced(plain_of(built), recipe['choices'])
        except SubnetError as error:
            raise type(error)(f'{path / "recipe.json"}: {error}') from None
    if 'cut' in recipe:
        cut = Cut.from_dict(recipe['cut'])
        cut.apply(model, weights, strict, path / 'recipe.json')
        weights = {name: value for name, value in weights.items() if name not in cut.extra}
    load_weights(model, weights, strict, path / FILE)
    if strict and digest_of(path / FILE) != recipe['weights']['sha256']:
        raise ExportError(
            f'{path / FILE} has another checksum than recipe.json says: its values were changed or damaged after '
            'they were saved. '
            'strict=False loads them all the same.'
        )
    return evaluated(contiguous(model).to(device))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ('type', '_scope_')}


def _no_constant(name: str) -> Any:
    raise ValueError(f'{name} is no JSON')


__all__ = ['answered', 'contiguous', 'load_recipe', 'plain_of', 'plain_subnet', 'read_recipe', 'recipe_schema', 'save_recipe']
