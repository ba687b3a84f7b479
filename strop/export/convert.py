"""One call for all formats: a folder with recipe, weights, program and ONNX model, or a single file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import strop
from strop.errors import ConfigError, listed, near, try_import
from strop.export.comparison import ExportedFile, random_inputs
from strop.export.factory import supernet_config
from strop.export.folder import atomic_folder
from strop.export.programs import Source, export_onnx, export_program, write_onnx, write_program
from strop.export.recipe import AnyFactory, AnySubnet, plain_subnet, write_recipe

#: What a model can be exported to.
FORMATS = ('recipe', 'pt2', 'onnx')


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    formats: Sequence[str] | str | None = None,
    *,
    subnet: AnySubnet | None = None,
    factory: AnyFactory | None = None,
    factory_args: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    input_shape: Sequence[int] | None = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    check: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    note: Any = None,
) -> dict[str, ExportedFile]:
    """Export one subnet to a folder with every format in it, or to one `.pt2` or `.onnx` file.

    The folder gets `recipe.json`, `model.safetensors`, `README.md`, `model.pt2`, `model.onnx` and, with all figures,
    `export.json`. All of it appears, or nothing: a format that fails leaves what was there before.

    Args:
        model: A supernet, a plain model, or an algorithm with one of them.
        path: The folder, or a file ending in `.pt2` or `.onnx`.
        formats: Some of 'recipe', 'pt2', 'onnx'; by default what the ending says, or all of them.
        subnet: The subnet, or a file with one; by default what the model, or the config, has decided.
        factory: What builds the supernet, for the recipe: see `save_recipe`. A config is enough.
        factory_args: Keyword arguments of a factory function.
        example_inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments.
        input_shape: Instead of them, the shape of one tensor, batch included.
        dynamic_batch: Leave the batch size of programs open.
        opset: ONNX operator set.
        check: Compare every format with the model.
        rtol: Largest relative difference; see `export_program`.
        atol: Largest absolute difference.
        note: Kept in the recipe.

    Returns:
        Format -> what was written and how close it is.

    Raises:
        ConfigError: If a format is unknown, or something that a format needs is not given.
        ExportError: If a format cannot be written, or differs from the model.

    >>> import tempfile
    >>> written = export(nn.Linear(3, 2), Path(tempfile.mkdtemp()) / 'linear.pt2', input_shape=(2, 3))
    >>> list(written), written['pt2'].batches
    (['pt2'], (1, 2, 3))
    """
    target = Path(path).expanduser()
    single = target.suffix[1:] if target.suffix in ('.pt2', '.onnx') else None
    chosen = _chosen(formats, single)
    if single is not None and chosen != (single,):
        raise ConfigError(
            f'{target.name} is one file of the format {single!r}, but formats={chosen!r}. Give a folder for several.'
        )
    if 'recipe' in chosen and factory is None:
        raise ConfigError(
            'A recipe says what builds the supernet: give factory=... (a model config, a function or '
            "'module:function'), or leave it "
            "out with formats=('pt2', 'onnx')."
        )
    if example_inputs is not None and input_shape is not None:
        raise ConfigError('Give either example_inputs or input_shape, but got both.')
    if example_inputs is None and input_shape is None and chosen != ('recipe',):
        raise ConfigError('To trace a model its inputs are needed: example_inputs=..., or input_shape=(2, 3, 224, 224).')
    if subnet is None and isinstance(factory, Mapping):
        subnet = supernet_config(factory)[1]
    plain = plain_subnet(model, subnet)
    if input_shape is not None:
        example_inputs = random_inputs(plain, input_shape)
    options: dict[str, Any] = {'check': check, 'rtol': rtol, 'atol': atol}
    if single == 'pt2':
        return {'pt2': export_program(plain, example_inputs, target, dynamic_batch=dynamic_batch, **options)}
    if single == 'onnx':
        return {'onnx': export_onnx(plain, example_inputs, target, dynamic_batch=dynamic_batch, opset=opset, **options)}
    for package in ('onnx', 'onnxscript', 'onnxruntime') if 'onnx' in chosen else ():
        try_import(package, 'onnx')
    results: dict[str, ExportedFile] = {}
    with atomic_folder(target) as folder:
        if 'recipe' in chosen and factory is not None:
            results['recipe'] = write_recipe(
                model, subnet, folder, factory=factory, factory_args=factory_args,
                example_inputs=example_inputs, note=note, check=check,
            )  # fmt: skip
        if 'pt2' in chosen or 'onnx' in chosen:
            source = Source.of(plain, example_inputs, dynamic_batch)
            if 'pt2' in chosen:
                results['pt2'] = write_program(source, folder / 'model.pt2', **options)
            if 'onnx' in chosen:
                results['onnx'] = write_onnx(source, folder / 'model.onnx', opset, **options)
        (folder / 'export.json').write_text(_report(results), encoding='utf-8')
    return {name: result.moved(target if name == 'recipe' else target / result.path.name) for name, result in results.items()}


def _chosen(formats: Sequence[str] | str | None, single: str | None) -> tuple[str, ...]:
    if formats is None:
        return (single,) if single else FORMATS
    chosen = (formats,) if isinstance(formats, str) else tuple(dict.fromkeys(formats))
    for name in chosen:
        if name not in FORMATS:
            raise ConfigError(f'A format is one of {listed(FORMATS)}, but got {name!r}.{near(name, FORMATS)}')
    if not chosen:
        raise ConfigError(f'At least one format is needed, of {listed(FORMATS)}.')
    return chosen


def _report(results: Mapping[str, ExportedFile]) -> str:
    content = {
        'strop': 'export',
        'version': 1,
        'formats': {
            name: {**result.to_dict(), 'path': '.' if name == 'recipe' else result.path.name}
            for name, result in results.items()
        },
        'versions': {'strop': strop.__version__, 'torch': str(torch.__version__), 'python': platform.python_version()},
    }
    return json.dumps(content, indent=2) + '\n'
