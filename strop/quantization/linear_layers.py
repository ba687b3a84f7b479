"""The linear layers of a model: which of them are meant, and packed ones in their place."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from strop.errors import ConfigError, DataError, listed, near
from strop.graph.forward import evaluated, is_conv1d
from strop.quantization.grouping import Grid, Rounded
from strop.quantization.packed import PackedLinear, packed_layers
from strop.quantization.patterns import matched, patterns_of


@dataclass(frozen=True)
class Target:
    """A linear layer that is to be rounded.

    Args:
        path: Its path.
        layer: The layer: an `nn.Linear` or transformers' `Conv1D`.
        grid: Its grid.
        transposed: Whether its weight is `(inputs, outputs)`.
    """

    path: str
    layer: nn.Module
    grid: Grid
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """The weight as `(outputs, inputs)`, in 32 bits or more."""
        weight: Any = self.layer.weight
        weight = weight.detach()
        weight = weight if weight.dtype == torch.float64 else weight.float()
        return (weight.t().contiguous() if self.transposed else weight).contiguous()


def select(
    model: nn.Module,
    grid: Grid,
    layers: str | Iterable[str] = '*',
    ignored: str | Iterable[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Target], dict[str, str]]:
    """Return the layers that the patterns choose, and the linear layers that are left as they are, with the reason.

    Raises:
        ConfigError: If a pattern matches no linear layer, nothing is left to round, or layers that share a weight are to be
            rounded in different ways.
        DataError: If a chosen weight holds NaN or an infinity.

    >>> targets, left = select(nn.ModuleDict({'a': nn.Linear(2, 2), 'lm_head': nn.Linear(2, 9)}), Grid(4))
    >>> [target.path for target in targets], left
    (['a'], {'lm_head': 'it gives the output (`ignored=()` rounds it, too)'})
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f'`model` is a torch.nn.Module, but got {type(model).__name__}.')
    candidates = {path: layer for path, layer in model.named_modules() if _is_linear(layer)}
    if not candidates:
        already = ' Its layers are packed already.' if packed_layers(model) else ''
        raise ConfigError(f'{type(model).__name__} has no linear layers whose weights could be rounded.{already}')
    wanted = patterns_of('layers', layers)
    unwanted = _output_embeddings(model, candidates) if ignored is None else patterns_of('ignored', ignored)
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(f'`overrides` maps patterns of layers to options, but got {type(overrides).__name__}.')
    grids = {pattern: _overridden(grid, pattern, options) for pattern, options in (overrides or {}).items()}
    asked = [('layers', wanted), ('ignored', [] if ignored is None else unwanted), ('overrides', list(grids))]
    for name, patterns in asked:
        for pattern in patterns:
            if not any(matched(path, [pattern]) for path in candidates):
                raise ConfigError(
                    f'The pattern {pattern!r} in `{name}` matches no linear layer.{_near_layers(pattern, candidates)} '
                    f'There are {listed(candidates)}.'
                )
    targets, left = [], {}
    for path, layer in candidates.items():
        if not matched(path, wanted):
            left[path] = 'it matches no pattern in `layers`'
        elif matched(path, unwanted):
            left[path] = 'it gives the output (`ignored=()` rounds it, too)' if ignored is None else 'it matches `ignored`'
        elif is_parametrized(layer):
            left[path] = 'its weight is computed by a parametrization'
        else:
            own = grids.get(matched(path, grids) or '', grid)
            targets.append(Target(path, layer, own, is_conv1d(layer)))
    if not targets:
        raise ConfigError(f'No linear layer is left to round: {listed(f"{path}: {why}" for path, why in left.items())}.')
    for target in targets:
        if target.weight.device.type == 'meta':
            raise ConfigError(f'The weight of {target.path!r} is on the meta device: load the weights first.')
        if not bool(target.weight.isfinite().all()):
            raise DataError(f'The weight of {target.path!r} holds NaN or an infinity, so there is no range to round it in.')
    _check_shared(targets)
    return targets, left


def stand_in(target: Target, rounded: Rounded, shared: dict[int, PackedLinear] | None = None) -> PackedLinear:
    """Return the packed layer that takes the place of a target; layers that share a weight share the packed one."""
    layer: Any = target.layer
    result = PackedLinear(rounded, layer.bias, layer.weight.dtype, target.transposed).to(layer.weight.device)
    if shared is not None:
        first = shared.setdefault(id(layer.weight), result)
        if first is not result:
            result._buffers.update(first._buffers)
    return result.train(layer.training)


def copied(model: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of `model` with some layers replaced; the weights of these are not copied."""
    memo: dict[int, Any] = {id(model.get_submodule(path)): layer for path, layer in replaced.items()}
    return memo[id(model)] if id(model) in memo else copy.deepcopy(model, memo)  # type: ignore[no-any-return]


@contextmanager
def memory_shared(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy that has its own modules and shares every parameter and buffer, in eval mode, without key-value caches."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    work = evaluated(copy.deepcopy(model, memo))
    for module in work.modules():
        config: Any = getattr(module, 'config', None)
        if config is not None and hasattr(config, 'use_cache'):
            config.use_cache = False
    yield work


# -- internals ----------------------------------------------------------------------------------------------


def _is_linear(layer: nn.Module) -> bool:
    weight = layer._parameters.get('weight')
    if is_parametrized(layer) and isinstance(layer, nn.Linear):
        return True
    if weight is None or weight.dim() != 2 or not weight.is_floating_point() or type(weight.data) is not Tensor:
        return False
    return (isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward) or is_conv1d(layer)


def _near_layers(pattern: str, candidates: Iterable[str]) -> str:
    names = dict.fromkeys(name for path in candidates for name in (path, path.rpartition('.')[2]))
    found = near(pattern, names)
    if found:
        return found
    inside = [path for path in names if pattern.strip('*.') and path.endswith(pattern.strip('*.'))]
    return f" To match it anywhere, write '*{pattern}'." if inside else ''


def _check_shared(targets: Iterable[Target]) -> None:
    """Refuse layers that share a weight, which is rounded once, where they would have it rounded in different ways."""
    first: dict[int, Target] = {}
    for target in targets:
        other = first.setdefault(id(target.layer.weight), target)
        both = f'{other.path!r} and {target.path!r} share one weight, which is rounded once'
        if target.grid != other.grid:
            one, two = (f'{each.grid}{", with a search" if each.grid.search else ""}' for each in (other, target))
            raise ConfigError(
                f'{both}, but they are to have unlike grids: {one}, and {two}. Give both the same `overrides`, or leave one '
                'out by `ignored`.'
            )
        if target.transposed != other.transposed:
            raise ConfigError(f'{both}, but one of them reads it transposed. Leave one out by `ignored`.')


def _output_embeddings(model: nn.Module, candidates: Mapping[str, nn.Module]) -> list[str]:
    found = [path for path in candidates if path.rpartition('.')[2] == 'lm_head']
    for module in model.modules():
        getter = getattr(module, 'get_output_embeddings', None)
        try:
            output = getter() if callable(getter) else None
        except (NotImplementedError, AttributeError, TypeError):
            continue
        found += [path for path, layer in candidates.items() if layer is output]
    return found


def _overridden(grid: Grid, pattern: str, options: Any) -> Grid:
    known = ('bits', 'group_size', 'symmetric', 'search')
    if not isinstance(options, Mapping):
        raise ConfigError(f"`overrides` maps patterns to options such as {{'bits': 8}}, but {pattern!r} has {options!r}.")
    for option in options:
        if option not in known:
            raise ConfigError(
                f'The override of {pattern!r} has an option {option!r}.{near(option, known)} There are {listed(known)}.'
            )
    # Whether 8 bits are symmetric is a default of the bits, so it follows them.
    default = {'symmetric': None} if 'bits' in options and grid.symmetric == (grid.bits == 8) else {}
    return replace(grid, **{**default, **options})
