"""The whole numbers of a transformers config that say how large a model is, and the lengths of channel units they ask for."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from strop.errors import ConfigError, listed, near
from strop.graph.forward import evaluated
from strop.graph.terms import Atom, Term, atoms, length

if TYPE_CHECKING:
    from strop.graph import ChannelGraph

#: Numbers that are no sizes, though they are whole.
_NO_SIZES = (
    'token',
    'vocab',
    'position',
    'label',
    'seed',
    'pretraining',
    'chunk',
    'version',
    'patch',
    'image',
    'kernel',
    'stride',
)


def sizes_of(config: Any, aliases: bool = True) -> dict[str, int]:
    """Return the names of a config's whole numbers, and the numbers; those of a part are `part.name`.

    Args:
        config: A `PreTrainedConfig`.
        aliases: Whether to add the common names that it answers to, such as `hidden_size` for GPT-2's `n_embd`.
    """
    found: dict[str, int] = {}
    for prefix, part in _parts(config):
        names = [*part.to_dict(), *(getattr(type(part), 'attribute_map', {}) if aliases else ())]
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 1 and not any(w in name for w in _NO_SIZES):
                found[prefix + name] = value
    return found


def _parts(config: Any) -> Iterator[tuple[str, Any]]:
    yield '', config
    for name in getattr(type(config), 'sub_configs', None) or {}:
        if hasattr(getattr(config, name, None), 'to_dict'):
            yield f'{name}.', getattr(config, name)


def check_sizes(config: Any, sizes: Any) -> dict[str, int]:
    """Return the sizes that are asked for, the ones that change alone.

    Raises:
        ConfigError: If one is no number of the config, or larger than it is now, or nothing changes.
    """
    known = sizes_of(config)
    kind = type(config).__name__
    if not isinstance(sizes, Mapping):
        raise ConfigError(f'`sizes` maps names of the config to numbers, such as dict(hidden_size=256), but got {sizes!r}.')
    for name, value in sizes.items():
        if name not in known:
            raise ConfigError(f'A {kind} has no size {name!r}.{near(name, known)} It has {listed(known, 20)}.')
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= known[name]:
            raise ConfigError(
                f'{name} must be a whole number from 1 to {known[name]}, what it is now, but got {value!r}. Pruning only makes '
                'a model smaller.'
            )
    changed = {name: int(value) for name, value in sizes.items() if value != known[name]}
    if not changed:
        raise ConfigError(f'Nothing is to be pruned: {dict(sizes)} are the sizes that the model has.')
    return changed


def configured(config: Any, sizes: Mapping[str, int]) -> Any:
    """Return a copy of a config with these sizes."""
    result = copy.deepcopy(config)
    for name, value in sizes.items():
        path, _, last = name.rpartition('.')
        setattr(getattr(result, path) if path else result, last, value)
    return result


def unquantized(model: nn.Module, config: Any) -> Any:
    """Return a config without its note that the weights were packed, where the model holds them as floats again.

    Models that were read from a GGUF file are such. Saved with that note, they could not be read back.

    Raises:
        ConfigError: If the weights are packed.
    """
    if getattr(config, 'quantization_config', None) is None:
        return config
    packed = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if packed:
        raise ConfigError(f'The weights of this model are quantized ({listed(packed, 3)}): prune it first, then quantize it.')
    del config.quantization_config
    return config


def layer_lists(config: Any, count: int) -> list[tuple[Any, str]]:
    """Return the lists in a config that have one entry for each of `count` layers, as (part, name)."""
    return [
        (part, name)
        for _, part in _parts(config)
        for name, value in part.to_dict().items()
        if isinstance(value, (list, tuple)) and len(value) == count and 'layer' in name
    ]


def built(model: nn.Module, config: Any, meta: bool = False) -> nn.Module:
    """Return a model of the same class with random weights, as a config describes it; or without any, on the meta device.

    Raises:
        ConfigError: If the class refuses the config.
    """
    kwargs = {}
    if 'add_pooling_layer' in inspect.signature(type(model)).parameters:
        kwargs['add_pooling_layer'] = getattr(model, 'pooler', None) is not None
    try:
        if hasattr(config, 'validate'):
            # What saving the model would refuse is better refused now.
            config.validate()
        with torch.random.fork_rng(devices=[]), torch.device('meta') if meta else nullcontext():
            result: nn.Module = type(model)(config, **kwargs)
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f'{type(model).__name__} cannot be built with these sizes: {type(cause).__name__}: {str(cause).rstrip(".")}.'
            f'{advice(model.config)}'
        ) from error
    first = next(model.parameters())
    return evaluated(result if meta else result.to(first.device, first.dtype))


def head_dim_of(config: Any) -> int | None:
    """Return the width of an attention head that a config describes, or None if it says nothing about heads."""
    for name in ('head_dim', 'd_kv'):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    hidden, heads = (getattr(config, name, None) for name in ('hidden_size', 'num_attention_heads'))
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


def has_head_dim(config: Any) -> bool:
    """Whether a config has a number for the width of a head."""
    return any(isinstance(getattr(config, name, None), int) for name in ('head_dim', 'd_kv'))


def advice(config: Any) -> str:
    """Return what sizes of heads a config can express."""
    if has_head_dim(config):
        heads, groups = (getattr(config, name, None) for name in ('num_attention_heads', 'num_key_value_heads'))
        if isinstance(heads, int) and isinstance(groups, int) and groups < heads:
            return (
                ' With grouped queries, num_attention_heads is a multiple of num_key_value_heads, twice as many or more; '
                'prune both together. Some classes also want hidden_size to be a multiple of num_attention_heads.'
            )
        return ' Some classes want hidden_size to be a multiple of num_attention_heads even so; prune both together.'
    width = head_dim_of(config)
    if width is None:
        return ''
    return (
        f' A {type(config).__name__} has no number for the width of a head: it is hidden_size / num_attention_heads, '
        f'{width} now, and attention is scaled by it. Prune both together: num_attention_heads=n, hidden_size=n * {width}.'
    )


def lengths_for(graph: ChannelGraph, shapes: Mapping[str, Sequence[int]], old: Any, new: Any) -> dict[str, int]:
    """Return the lengths of units that give the tensors of a model these shapes.

    A unit that is alone in an axis has its length from there. Where heads and the channels of each are one axis, the
    config says how wide a head is, and the axis how many there are.

    Args:
        graph: The units.
        shapes: Tensor -> its shape in the model to come; others are left alone.
        old: The present config.
        new: The config to come.

    Raises:
        ConfigError: If no lengths give these shapes; the message names a tensor and what keeps it.
    """
    names = {unit.atom: name for name, unit in graph.units.items()}
    values = _widths(graph, old, new)
    wanted = [(name, axis, term, shapes[name][axis]) for name in graph.tensors if name in shapes
              for axis, term in enumerate(graph.tensors[name])]  # fmt: skip
    pending = [entry for entry in wanted if any(atom in names for atom in atoms(entry[2]))]
    while True:
        left = []
        for entry in pending:
            _, _, term, size = entry
            unknown = {atom for atom in atoms(term) if atom in names and atom not in values}
            if len(unknown) == 1:
                (atom,) = unknown
                found = _solved(term, atom, size, values)
                if found is not None:
                    values[atom] = found
            elif unknown:
                left.append(entry)
        if len(left) == len(pending):
            break
        pending = left
    lengths = {names[atom]: value for atom, value in values.items() if atom in names}
    fitted = graph.fit(lengths)
    for name, axis, term, size in wanted:
        chosen = {unit.atom: fitted[other] for other, unit in graph.units.items()}
        if length(term, chosen) != size:
            frozen = [str(found.reason) for found in graph.frozen if found.tensor == name and found.axis == axis]
            raise ConfigError(
                f'The config asks for {size} at axis {axis} of {name!r}, which pruning cannot give: '
                f'{length(term, chosen)} is the nearest{f" ({frozen[0]})" if frozen else ""}.{advice(old)}'
            )
    return {name: value for name, value in fitted.items() if value != graph.units[name].size}


def _widths(graph: ChannelGraph, old: Any, new: Any) -> dict[Atom, int]:
    """Return the lengths of the units inside heads: whole heads, or the halves that rotary embeddings turn."""
    before, after = head_dim_of(old), head_dim_of(new)
    values: dict[Atom, int] = {}
    if before is None or after is None:
        return values
    if after > before:
        raise ConfigError(
            f'These sizes make every head {after} channels wide, and it has {before}: pruning only takes away.{advice(old)}'
        )
    for unit in graph.units.values():
        if unit.role == 'head_dim':
            share = before // unit.size if before % unit.size == 0 else 0
            if share and after % share == 0:
                values[unit.atom] = after // share
    return values


def _solved(term: Term, atom: Atom, size: int, values: Mapping[Atom, int]) -> int | None:
    low, high = 1, atom.size
    while low < high:
        middle = (low + high) // 2
        if length(term, {**values, atom: middle}) < size:
            low = middle + 1
        else:
            high = middle
    return low if length(term, {**values, atom: low}) == size else None


__all__ = [
    'advice',
    'built',
    'check_sizes',
    'configured',
    'has_head_dim',
    'head_dim_of',
    'layer_lists',
    'lengths_for',
    'sizes_of',
]
