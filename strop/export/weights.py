"""Weights as safetensors: every tensor once, shared ones named as such, and read back bit by bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from strop.errors import ExportError, listed, near
from strop.files import atomic_path

FILE = 'model.safetensors'
Table = dict[str, dict[str, Any]]


def write_weights(model: nn.Module, path: str | os.PathLike[str], extra: Mapping[str, torch.Tensor] | None = None) -> Table:
    """Write the `state_dict` of `model`, and `extra` tensors beside it, and return what was written.

    Tensors that are one and the same memory (tied weights) are written once; views are written as what they show.

    Returns:
        Name -> `{'dtype', 'shape'}`, and `'same_as'` for a name that shares the memory of another.

    Raises:
        ExportError: If the state holds something that is no dense tensor.

    >>> import tempfile
    >>> table = write_weights(nn.Linear(3, 1), Path(tempfile.mkdtemp()) / 'model.safetensors')
    >>> table['weight']
    {'dtype': 'float32', 'shape': [1, 3]}
    """
    table: Table = {}
    tensors: dict[str, torch.Tensor] = {}
    first_of: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, value in {**model.state_dict(), **(extra or {})}.items():
        _check_tensor(name, value)
        table[name] = {'dtype': str(value.dtype).removeprefix('torch.'), 'shape': list(value.shape)}
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and place in first_of:
            table[name]['same_as'] = first_of[place]
            continue
        first_of[place] = name
        tensor = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    with atomic_path(path) as temporary:  # it writes a file that only its owner can read
        save_file(tensors, temporary, metadata={'format': 'pt'})
    return table


def read_weights(path: str | os.PathLike[str], table: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Read the tensors of `table` from a safetensors file, shared ones included.

    Raises:
        FileNotFoundError: If there is no such file.
        ExportError: If it is truncated, no safetensors file, or not the one that `table` describes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'The weights of the recipe are missing: there is no file {path}.')
    try:
        tensors = load_file(os.fspath(path), device='cpu')
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ExportError(
            f'{path} is not a whole safetensors file ({error}). Copy it again, or save the recipe again.'
        ) from None
    written = {name: tuple(entry['shape']) for name, entry in table.items() if 'same_as' not in entry}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = differences(written, found, 'the file', 'the recipe')
    for name, entry in table.items():
        if name in tensors and str(tensors[name].dtype) != f'torch.{entry["dtype"]}':
            problems.append(f'{name!r} is {tensors[name].dtype} in the file and {entry["dtype"]} in the recipe')
        if entry.get('same_as', name) not in written and 'same_as' in entry:
            problems.append(f'{name!r} is the same as {entry["same_as"]!r}, which is not in the file')
    if problems:
        raise ExportError(f'{path} holds other weights than recipe.json lists: {"; ".join(problems)}.')
    return {name: tensors[str(entry.get('same_as', name))] for name, entry in table.items()}


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], strict: bool, origin: object) -> None:
    """Put `weights` into `model`, with the dtypes that they have, and check that the model then holds them.

    Args:
        model: The rebuilt model.
        weights: Name -> tensor.
        strict: Refuse any difference; else what fits is loaded and the rest is logged.
        origin: Where the weights come from, for messages.

    Raises:
        ExportError: If names or shapes differ, or tied parameters are given different values.
    """
    state = model.state_dict()
    problems = differences(
        {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)},
        {name: tuple(value.shape) for name, value in weights.items()},
        'the weights',
        'the rebuilt model',
    )
    if problems and strict:
        raise ExportError(
            f'{origin}: the weights are of another model than the rebuilt {type(model).__name__}: '
            f'{"; ".join(problems)}. Either the '
            'class or its arguments changed since, or the folder was put together from two. strict=False loads what fits.'
        )
    fitting = {name: value for name, value in weights.items() if name in state and state[name].shape == value.shape}
    _adopt_dtypes(model, fitting)
    model.load_state_dict(fitting, strict=False)
    state = model.state_dict()
    unequal = [name for name, value in fitting.items() if not same_bits(state[name], value)]
    if unequal:
        problems.append(f'{listed(unequal)} did not take the values of the file (tied parameters with different values?)')
        if strict:
            raise ExportError(f'{origin}: {problems[-1]}.')
    if problems:
        print_log(
            f'{origin}: loaded {len(fitting)} of {len(state)} tensors: {"; ".join(problems)}.', logger='current', level=30
        )


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors are equal in dtype, shape and every bit, so that NaN equals NaN.

    >>> same_bits(torch.tensor([float('nan')]), torch.tensor([float('nan')]))
    True
    """
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    views = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return torch.equal(views[0], views[1])


def differences(
    wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], giver: str, wanter: str
) -> list[str]:
    """Return in words how two tables name -> shape differ.

    >>> differences({'conv.weight': (1,), 'b': (2,)}, {'conv.weigth': (1,), 'b': (3,)}, 'the file', 'the model')[0]
    "missing in the file: 'conv.weight' (did you mean 'conv.weigth'?)"
    """
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [name for name in wanted if name in given and tuple(wanted[name]) != tuple(given[name])]
    problems = []
    if missing:
        hint = near(missing[0], unexpected, prefix=' (did you mean ')
        problems.append(f'missing in {giver}: {listed(missing)}{hint + ")" if hint else ""}')
    if unexpected:
        problems.append(f'not known to {wanter}: {listed(unexpected)}')
    for name in shapes[:4]:
        problems.append(f'{name!r} has shape {given[name]} in {giver} and {wanted[name]} in {wanter}')
    if len(shapes) > 4:
        problems.append(f'and {len(shapes) - 4} more of other shapes')
    return problems


def digest_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise ExportError(
            f'{name!r} in the state of the model is a {type(value).__name__}. A recipe holds tensors only: return '
            'a tensor from '
            'get_extra_state, or rebuild the value in __init__.'
        )
    if value.is_meta or isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise ExportError(f'{name!r} has no values yet (it is on the meta device, or lazy). Run the model once before saving.')
    if value.layout is not torch.strided or value.is_quantized:
        raise ExportError(f'{name!r} is a {value.layout} tensor of {value.dtype}; safetensors holds dense, unquantized ones.')


def _adopt_dtypes(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    # By replacing the data, not the parameter: tied parameters stay one object.
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        if name in weights and tensor.dtype != weights[name].dtype:
            tensor.data = tensor.data.to(weights[name].dtype)
