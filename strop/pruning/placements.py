"""What one index of a channel unit stands for in the tensors of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from strop.errors import ConfigError
from strop.graph.forward import gives_second_axis, moved_to

if TYPE_CHECKING:
    from strop.graph import ChannelUnit, Placement


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds the parameter or buffer `name`, and its name there.

    >>> owner(nn.Sequential(nn.Linear(2, 3)), '0.weight')
    (Linear(in_features=2, out_features=3, bias=True), 'weight')
    """
    path, _, last = name.rpartition('.')
    return model.get_submodule(path), last


def tensor(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer with this state-dict name.

    Raises:
        ConfigError: If the model has no such tensor.
    """
    try:
        module, last = owner(model, name)
        found = getattr(module, last)
    except AttributeError:
        found = None
    if not isinstance(found, Tensor):
        raise ConfigError(f'This model has no parameter or buffer {name!r}. Was the graph made from it?')
    return found


def learned(unit: ChannelUnit, model: nn.Module) -> list[Placement]:
    """Return the placements of a unit in parameters; buffers and tensors kept as plain attributes are left out."""
    result = []
    for placement in unit.placements:
        path, _, last = placement.tensor.rpartition('.')
        try:
            weight = model.get_submodule(path)._parameters.get(last)
        except AttributeError:
            continue
        if weight is not None and weight.is_floating_point():
            result.append(placement)
    return result


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises and scales what it is given: batch, instance, group, layer and RMS norms.

    >>> is_norm(nn.BatchNorm2d(3)), is_norm(nn.Linear(3, 3))
    (True, False)
    """
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) or type(module).__name__.rstrip('0123456789d').endswith(
        'Norm'
    )


def gives(model: nn.Module, placement: Placement) -> bool:
    """Whether the placement is an axis that its layer gives out, and not one that it takes in.

    Axis 0 of a convolution or linear layer, axis 1 of a transposed convolution, of transformers' `Conv1D` or an embedding, and
    every vector. Of a tensor that belongs to no such layer both cannot be told apart, and every axis counts as given out.
    """
    path, _, last = placement.tensor.rpartition('.')
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return True
    if last == 'weight' and (gives_second_axis(module) or isinstance(module, (nn.Embedding, nn.EmbeddingBag))):
        return placement.axis == 1
    if isinstance(module, (_ConvNd, nn.Linear)) and last == 'weight':
        return placement.axis == 0
    return True


def chosen(unit: ChannelUnit, model: nn.Module, parts: str) -> tuple[Placement, ...]:
    """Return the placements of a unit that its weights are judged by.

    Matrices and filters only, as vectors (biases, scales) are of another size; vectors where there is nothing else.

    Args:
        unit: The unit.
        model: The model that it was found in.
        parts: `'all'`, `'out'` (layers that give these channels out) or `'in'` (layers that take them in). Where a unit
            has none of the kind, all are taken.

    Raises:
        ConfigError: If `parts` is none of these.
    """
    if parts not in ('all', 'out', 'in'):
        raise ConfigError(f"`parts` must be 'all', 'out' or 'in', but got {parts!r}.")
    every = learned(unit, model)
    weights = [p for p in every if tensor(model, p.tensor).dim() > 1] or every
    wanted = [p for p in weights if parts == 'all' or gives(model, p) == (parts == 'out')]
    return tuple(wanted or weights)


def rows(values: Tensor, axis: int) -> Tensor:
    """Return the sum over every axis but one.

    >>> rows(torch.ones(2, 3), 1)
    tensor([2., 2., 2.])
    """
    others = [dim for dim in range(values.dim()) if dim != axis]
    return values.sum(others) if others else values


def gathered(values: Tensor, placement: Placement, size: int) -> Tensor:
    """Return the sum over the positions of each index; positions of no index are left out.

    Args:
        values: `(axis length,)`.
        placement: Which index each position belongs to.
        size: Size of the unit.

    Returns:
        `(size,)`.
    """
    index = placement.index.to(values.device)
    if len(index) == size and torch.equal(index, torch.arange(size, device=index.device)):
        return values
    member = index >= 0
    return values.new_zeros(size).index_add_(0, index[member], values[member])


def slices(values: Tensor, placement: Placement, size: int) -> Tensor:
    """Return everything that each index holds in one tensor, as `(size, entries)`.

    Indices that hold less than others are filled up with zeros.
    """
    flat = values.movedim(placement.axis, 0).flatten(1) if values.dim() > 1 else values.unsqueeze(1)
    index = placement.index.to(values.device)
    if len(index) == size and torch.equal(index, torch.arange(size, device=index.device)):
        return flat
    order = torch.argsort(index, stable=True)
    order = order[index[order] >= 0]
    counts = torch.bincount(index[order], minlength=size)
    start = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(order), device=index.device) - start[index[order]]
    result = flat.new_zeros(size, int(counts.max()) if len(order) else 0, flat.shape[1])
    result[index[order], place] = flat[order]
    return result.flatten(1)


def batches_of(data: Any) -> Iterator[Any]:
    """Yield the batches of `data`, and refuse data without any.

    Raises:
        ConfigError: If `data` cannot be iterated over, or gives nothing.
    """
    if isinstance(data, (Tensor, str, Mapping)):
        raise ConfigError(f'`data` must be an iterable of batches, such as a DataLoader or a list, but got {kind(data)}.')
    try:
        iterator = iter(data)
    except TypeError:
        raise ConfigError(
            f'`data` must be an iterable of batches, such as a DataLoader or a list, but got {kind(data)}.'
        ) from None
    count = 0
    for count, batch in enumerate(iterator, 1):  # noqa: B007
        yield batch
    if not count:
        raise ConfigError('`data` gave no batches. An iterator can be used once only: give a list or a DataLoader.')


def kind(value: Any) -> str:
    """Return what a value is, in a few words for a message."""
    if isinstance(value, Tensor):
        return f'a tensor of shape {tuple(value.shape)}'
    return f'a {type(value).__name__}'


def forward(model: nn.Module, batch: Any) -> Any:
    """Run a model on the inputs of a batch.

    A tensor or mapping is the inputs; of a tuple or list the first item is (`(images, labels)`), itself a tensor, a tuple or
    list of positional or a mapping of keyword arguments. Tensors are moved to the model's device.
    """
    inputs = moved_to(model, batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def loss_of(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    """Return the loss of a batch.

    Args:
        model: The model.
        batch: A batch.
        loss: A function `(model, batch) -> scalar tensor`; or a module such as `nn.CrossEntropyLoss()`, which is given the
            model's output and the second item of the batch.

    Raises:
        ConfigError: If there is no loss, it does not fit the batch, or what it gives is not one number with a gradient.
    """
    if isinstance(loss, nn.Module):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ConfigError(
                f'A loss module takes batches of (inputs, targets), but got {kind(batch)}. '
                'Give a function of (model, batch) instead.'
            )
        value = loss(forward(model, batch), moved_to(model, batch[1]))
    elif callable(loss):
        value = loss(model, moved_to(model, batch))
    else:
        raise ConfigError(
            f'`loss` must be a function of (model, batch) or a module such as nn.CrossEntropyLoss(), got {loss!r}.'
        )
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ConfigError(f'`loss` must return a tensor with one number, but it returned {kind(value)}.')
    if not math.isfinite(float(value.detach())):
        raise ConfigError(f'`loss` returned {float(value.detach())}; scores of that would mean nothing.')
    return value
