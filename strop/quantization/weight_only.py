"""Weight-only quantization: the weights of linear layers in 2 to 8 bits, activations in floats.

Made for language models, whose time and memory go into reading weights; it takes any model with linear layers.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from strop.errors import ConfigError, DataError, listed, near
from strop.graph.forward import evaluated
from strop.quantization.blockwise import Options, round_by_blocks
from strop.quantization.grouping import Grid, round_weight
from strop.quantization.linear_layers import Target, copied, memory_shared, select, stand_in
from strop.quantization.packed import PackedLinear, unpacked
from strop.quantization.weight_record import QuantizedWeights, RoundedLayer, WeightRecord, bytes_of, sqnr

METHODS = ('rtn', 'gptq')


def quantize_weights(
    model: nn.Module,
    bits: int = 4,
    group_size: int | None = 64,
    *,
    method: str = 'rtn',
    symmetric: bool | None = None,
    search: bool = False,
    layers: str | Iterable[str] = '*',
    ignored: str | Iterable[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    scale_dtype: torch.dtype | None = torch.float16,
    data: Any = None,
    damping: float = 0.01,
    act_order: bool = True,
    folder: str | os.PathLike[str] | None = None,
    packed: bool = True,
    inplace: bool = False,
    measure: Any = None,
) -> QuantizedWeights:
    """Round the weights of linear layers to a few bits: to nearest, or by GPTQ.

    Args:
        model: Any model; its `nn.Linear` layers and transformers' `Conv1D` layers are rounded. It stays as it is.
        bits: 2 to 8.
        group_size: Inputs that share a scale; None for one scale an output. A last group may be shorter.
        method: `'rtn'` rounds to nearest; `'gptq'` moves what rounding changed onto weights that are not rounded yet, so that
            the layer's outputs on `data` change least (https://arxiv.org/abs/2210.17323; see `strop.quantization.gptq_round`).
        symmetric: Whether the grid is centred on zero; None means for 8 bits only.
        search: Whether to shrink ranges for the least squared error of the weights.
        layers: Patterns (`fnmatch`) of paths of layers or of modules that they are in.
        ignored: Patterns of layers to leave out. None leaves out the output embedding (`lm_head`, and what a transformers model
            says is one), which costs the most accuracy; `()` leaves out nothing. Embedding tables are never rounded.
        overrides: pattern -> options of `Grid` for those layers, `{'*.down_proj': {'bits': 8}}`; the first match counts.
        scale_dtype: What scales are kept in. None for the weight's own; narrow scales that would overflow stay as they are.
        data: Calibration batches, for GPTQ: tensors, mappings, or tuples whose first item is the inputs. See `token_windows`.
        damping: GPTQ: share of the mean diagonal that is added to the Hessian's diagonal.
        act_order: GPTQ: whether to begin with the inputs that are largest on the data.
        folder: GPTQ: where to keep finished blocks; a run that was killed goes on from there to the same result.
        packed: Whether to return packed layers (small), or the original's layers with rounded weights (float).
        inplace: Whether to change `model` itself, for models that don't fit twice. Nothing is changed before all is done.
        measure: Example inputs: time a forward of the original and of the result, packed and unpacked, for the record.

    Returns:
        The model and the record; unpacks as `model, record`.

    Raises:
        ConfigError: If an option is out of range, a pattern matches no layer, or data is missing.
        DataError: If the data is empty or holds NaN, or a weight does.

    >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> small, record = quantize_weights(net, bits=4, group_size=32)
    >>> small[0]
    PackedLinear(in_features=64, out_features=32, bias=True, int4, groups of 32, asymmetric)
    >>> record.layer_bytes
    (9376, 1664)
    """
    grid = Grid(bits, group_size, symmetric, search)
    if method not in METHODS:
        raise ConfigError(f'`method` is one of {listed(METHODS)}, but got {method!r}.{near(method, METHODS)}')
    if scale_dtype is not None and scale_dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ConfigError(f'`scale_dtype` is a floating-point dtype such as torch.float16, or None, but got {scale_dtype!r}.')
    if method == 'gptq' and data is None:
        raise ConfigError("GPTQ looks at calibration data: give `data=`, batches as the model takes them. 'rtn' needs none.")
    targets, left = select(model, grid, layers, ignored, overrides)
    notes = [*_ties(model, targets), *_fused(model)]
    figures: dict[str, tuple[float | None, float | None]] = {}
    with memory_shared(model) as work:
        # The same layers in a model with modules of its own: blocks may be replaced in it and the original stays whole.
        if method == 'gptq':
            options = Options(damping, act_order, scale_dtype, folder)
            rounded, figures, said = round_by_blocks(work, targets, data, options)
            notes += said
        else:
            if data is not None:
                notes.append('Rounding to nearest looks at no data; `data` was not read.')
            rounded = {target.path: round_weight(target.weight, target.grid, scale_dtype) for target in targets}
    replaced: dict[str, PackedLinear] = {}
    described = []
    shared: dict[int, PackedLinear] = {}
    for target in targets:
        values = rounded[target.path].values(target.weight.dtype)
        if not values.isfinite().all():
            raise DataError(f'The weight of {target.path!r} became infinite or NaN when it was rounded.')
        replaced[target.path] = stand_in(target, rounded[target.path], shared)
        size = bytes_of(target.layer), bytes_of(replaced[target.path])
        error, nearest = figures.get(target.path, (None, None))
        described.append(
            RoundedLayer(target.path, str(target.grid), target.grid.bits, size, sqnr(target.weight, values), error, nearest)
        )
    size_of_all = bytes_of(model), _bytes_with(model, replaced)
    latency = _measured(model, copied(model, replaced), measure) if measure is not None else None
    if not packed:
        result = _with_values(model, targets, replaced, inplace)
    else:
        result = _replaced_in(model, replaced) if inplace else copied(model, replaced)
    record = WeightRecord(method, str(grid), tuple(described), left, size_of_all, packed, latency, tuple(dict.fromkeys(notes)))
    return QuantizedWeights(result, record)


# -- internals ----------------------------------------------------------------------------------------------


def _ties(model: nn.Module, targets: list[Target]) -> list[str]:
    """Say which chosen weights other layers use, too."""
    chosen = {id(target.layer): target.path for target in targets}
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((path, module))
    notes = []
    for target in targets:
        users = owners[id(target.layer.weight)]
        others = [path for path, module in users if id(module) not in chosen]
        same = [path for path, module in users if id(module) in chosen and path != target.path]
        if others:
            notes.append(
                f'{target.path} shared its weight with {listed(others)}, which keeps the float one: they are no longer tied, '
                'and the packed weight comes on top.'
            )
        elif same and target.path == users[0][0]:
            notes.append(f'{target.path} and {listed(same)} share one weight; it was rounded once and is still shared.')
    return notes


def _fused(model: nn.Module) -> list[str]:
    """Say which large weights of three axes stay as they are."""
    every = sum(parameter.numel() for parameter in model.parameters())
    found = [
        f'{path}.{name}' if path else name
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
        and parameter.dim() == 3
        and not isinstance(module, _ConvNd)
        and parameter.numel() > every / 100
    ]
    return (
        [f'Weights of three axes, such as fused experts, are not linear layers and stay floats: {listed(found)}.']
        if found
        else []
    )


def _measured(model: nn.Module, packed: nn.Module, inputs: Any) -> tuple[float, float]:
    from strop.estimators import measure as times

    args: dict[str, Any] = {}
    plain = unpacked(packed)
    for name, each in (('original', model), ('packed', packed), ('unpacked', plain)):
        args[name] = _forward_of(each, inputs)
    found = times(args, runs=10, warmup=2, threads=torch.get_num_threads())
    base = found['original'].median_ms
    return found['packed'].median_ms / base, found['unpacked'].median_ms / base


def _forward_of(model: nn.Module, inputs: Any) -> Any:
    from strop.graph.forward import arguments_of, training_mode_kept

    args, kwargs = arguments_of(inputs)

    def call() -> Any:
        with torch.no_grad(), training_mode_kept(model):
            return evaluated(model)(*args, **kwargs)

    return call


def _bytes_with(model: nn.Module, replaced: Mapping[str, nn.Module]) -> int:
    swapped = {id(model.get_submodule(path)): layer for path, layer in replaced.items()}
    found = {}
    for module in model.modules():
        module = swapped.get(id(module), module)
        found.update({id(one): one for one in [*module._parameters.values(), *module._buffers.values()] if one is not None})
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def _replaced_in(model: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    if '' in replaced:
        raise ConfigError('The model is itself the linear layer that is rounded; it cannot be replaced in place.')
    originals = {id(model.get_submodule(path)): layer for path, layer in replaced.items()}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and id(child) in originals:
                module._modules[name] = originals[id(child)]
    return model


def _with_values(model: nn.Module, targets: list[Target], replaced: Mapping[str, PackedLinear], inplace: bool) -> nn.Module:
    """Return the original's layers with the rounded weights as floats."""
    floats: dict[int, nn.Parameter] = {}
    for target in targets:
        old: Any = target.layer.weight
        if id(old) not in floats:
            floats[id(old)] = nn.Parameter(replaced[target.path].weight.contiguous(), requires_grad=old.requires_grad)
    if inplace:
        for target in targets:
            target.layer.weight = floats[id(target.layer.weight)]  # type: ignore[arg-type]
        return model
    memo: dict[int, Any] = {}
    for target in targets:
        # Copied without its weight, which is not kept.
        plain = copy.copy(target.layer)
        plain._parameters = {**target.layer._parameters, 'weight': None}
        plain = copy.deepcopy(plain)
        plain._parameters['weight'] = floats[id(target.layer.weight)]
        memo[id(target.layer)] = plain
    return memo[id(model)] if id(model) in memo else copy.deepcopy(model, memo)  # type: ignore[no-any-return]
