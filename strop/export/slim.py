"""Pruned models as files: how to cut a model of the original class again, and the weights that are left."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from strop.errors import ConfigError
from strop.export.comparison import ExportedFile
from strop.export.cut import AnyRecord, Cut, records_of
from strop.export.factory import describe, supernet_config
from strop.export.folder import atomic_folder
from strop.export.recipe import (
    AnyFactory,
    AnySubnet,
    built_by,
    choices_for,
    given_choices,
    load_recipe,
    plain_of,
    reduced,
    write_files,
)
from strop.graph import Slicing


def save_slim(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    original: nn.Module | None = None,
    factory: AnyFactory | None = None,
    factory_args: Mapping[str, Any] | None = None,
    subnet: AnySubnet | None = None,
    record: AnyRecord | Sequence[AnyRecord] | None = None,
    example_inputs: Any = None,
    note: Any = None,
    check: bool = True,
) -> ExportedFile:
    """Write a pruned model as a recipe, with the weights that are left as safetensors, and a README.

    The recipe holds the shapes of the original and of the pruned model, the ints of its modules that changed, the blocks
    that were taken out, and what the pruning recorded. It does not matter how often the model was pruned, nor whether it was
    trained since. The folder appears whole or not at all.

    Args:
        model: The pruned model.
        folder: Where to.
        original: The model before any pruning.
        factory: What builds it: a function, its name `'module:function'`, or a config; `load_recipe` then needs no model.
            Give this, `original`, or slicings as `record`.
        factory_args: Keyword arguments of the function.
        subnet: Where the factory builds a supernet: the subnet of it that was pruned.
        record: What `prune` returned, or the slicings that were applied, in order; kept in the recipe.
        example_inputs: Inputs on which the rebuilt model is compared with `model`, bit by bit.
        note: Anything that JSON can hold, kept in the recipe.
        check: Build the model again from the recipe, and compare, before the folder counts.

    Raises:
        ConfigError: If it is not said what the original is, or something cannot be written down.
        ExportError: If the model differs from the original by more than pruning, or what is rebuilt is another model.

    >>> import tempfile, torch
    >>> from strop.pruning import prune
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> slim, record = prune(net, torch.rand(2, 4), ratio=0.5)
    >>> folder = Path(tempfile.mkdtemp()) / 'slim'
    >>> written = save_slim(slim, folder, original=net, record=record, example_inputs=torch.rand(2, 4))
    >>> load_slim(folder, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))[0]
    Linear(in_features=4, out_features=4, bias=True)
    """
    records = records_of(record)
    if isinstance(factory, Mapping):
        factory, fixed = supernet_config(factory)
        subnet = fixed if subnet is None else subnet
    supernet = describe(factory, factory_args) if factory is not None else None
    slim = plain_of(model)
    slicings = [entry for entry in records if isinstance(entry, Slicing)]
    choices: dict[str, Any] = {}
    rebuilt: nn.Module | None = None
    if factory is not None and supernet is not None and (check or original is None):
        built = built_by(supernet, factory)
        choices = choices_for(built, subnet)
        rebuilt = reduced(built, choices)
    if original is not None:
        base = plain_of(original)
        given = choices_for(base, subnet)
        base = reduced(base, given)
        if supernet is not None and rebuilt is None:
            choices = given or given_choices(subnet)
    elif rebuilt is not None:
        base = rebuilt
    elif slicings and len(slicings) == len(records):
        base = None
    else:
        raise ConfigError(
            'A pruned model is written as the difference from its original: give original=..., the model before pruning, '
            "or factory=..., what builds it (a function, a config or 'module:function')."
        )
    cut = Cut.between(base, slim, records) if base is not None else Cut.of_slicings(slim, slicings)
    if rebuilt is None and base is not None and check:
        rebuilt = copy.deepcopy(base)
    with atomic_folder(folder) as temporary:
        result = write_files(
            slim,
            temporary,
            {**({} if supernet is None else {'supernet': supernet}), 'choices': choices},
            rebuilt=rebuilt if check else None,
            cut=cut,
            example_inputs=example_inputs,
            note=note,
        )
    return result.moved(Path(folder))


def load_slim(
    folder: str | os.PathLike[str],
    original: nn.Module | Callable[..., nn.Module],
    *,
    strict: bool = True,
    device: Any = 'cpu',
) -> nn.Module:
    """Cut a model of the original class as a recipe says and load its weights; nothing is traced, nothing unpickled.

    Args:
        folder: What `save_slim` wrote.
        original: A model as it was before pruning, with any weights, which stays as it is; or a function that builds one,
            called with the arguments in the recipe.
        strict: Refuse a model whose names, shapes or ints are not those of the original, and damaged weights; False loads
            what fits and logs the rest.
        device: Where to put the model.

    Returns:
        The pruned model, in eval mode.

    Raises:
        FileNotFoundError: If a file is missing.
        UnsafeFileError: If a file is a pickle.
        ExportError: If the recipe or the weights are damaged, or of another model.
    """
    if isinstance(original, nn.Module):
        return load_recipe(folder, factory=lambda **_: copy.deepcopy(plain_of(original)), strict=strict, device=device)
    if not callable(original):
        raise ConfigError(f'`original` is a model or a function that builds one, but got {type(original).__name__}.')
    return load_recipe(folder, factory=original, strict=strict, device=device)


__all__ = ['load_slim', 'save_slim']
