"""Weights rounded in groups: a scale and a zero point for each run of inputs of each output.

A weight matrix `(outputs, inputs)` is cut along its inputs into groups of `group_size`, each with a grid of
:math:`2^b` evenly spaced values that holds zero exactly. One arithmetic serves rounding to nearest and GPTQ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strop.errors import ConfigError

#: The bits that weights can be rounded to.
BITS = range(2, 9)
# A chunk of the search for ranges holds at most this many weights, so that its memory does not depend on the layer.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Grid:
    r"""The values that weights may take: :math:`w = s\,(c - z)` for integer codes :math:`0 \le c < 2^b`.

    With `symmetric`, :math:`z = 2^{b-1}` and :math:`s = 2 \max|w| / (2^b - 1)`; otherwise
    :math:`s = (\max(w, 0) - \min(w, 0)) / (2^b - 1)` and :math:`z = \operatorname{round}(-\min(w, 0) / s)`. Both are those
    of torchao's affine quantization and of GPTQ.

    Args:
        bits: :math:`b`, 2 to 8.
        group_size: Inputs that share a scale; None for all inputs of an output (per channel). Where it doesn't divide the
            number of inputs, the last group is shorter.
        symmetric: Whether the zero point is fixed at the middle; None means for 8 bits only.
        search: Whether to shrink each group's range for the least squared error, instead of covering every weight.

    Raises:
        ConfigError: If a value is out of range.

    >>> Grid(4, 64)
    Grid(bits=4, group_size=64, symmetric=False, search=False)
    >>> Grid(1)
    Traceback (most recent call last):
    strop.errors.ConfigError: Weights are rounded to 2 to 8 bits, but `bits` is 1. One bit holds signs only...
    """

    bits: int = 4
    group_size: int | None = None
    symmetric: bool | None = None
    search: bool = False

    def __post_init__(self) -> None:
        bits = self.bits
        if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS:
            hint = ''
            if bits in (0, 1) and not isinstance(bits, bool):
                hint = (
                    ' One bit holds signs only and needs training of another kind.' if bits else ' Prune layers to drop them.'
                )
            raise ConfigError(f'Weights are rounded to 2 to 8 bits, but `bits` is {bits!r}.{hint}')
        size = self.group_size
        if size == -1:
            object.__setattr__(self, 'group_size', None)
        elif size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(
                f'`group_size` is a number of inputs such as 128, 64 or 32, or None for one scale an output, but got {size!r}.'
            )
        for name in ('symmetric', 'search'):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == 'symmetric' and value is None):
                raise ConfigError(f'`{name}` is True or False, but got {value!r}.')
        if self.symmetric is None:
            object.__setattr__(self, 'symmetric', bits == 8)

    @property
    def levels(self) -> int:
        """The largest code, :math:`2^b - 1`."""
        return 2**self.bits - 1

    def groups(self, inputs: int) -> int:
        """Return how many groups a row of `inputs` weights has.

        >>> Grid(4, 64).groups(100), Grid(4).groups(100)
        (2, 1)
        """
        return -(-inputs // self.size(inputs))

    def size(self, inputs: int) -> int:
        """Return the inputs in a group, at most `inputs`."""
        return inputs if self.group_size is None else min(self.group_size, inputs)

    def __str__(self) -> str:
        group = 'per channel' if self.group_size is None else f'groups of {self.group_size}'
        return f'int{self.bits}, {group}, {"symmetric" if self.symmetric else "asymmetric"}'


@dataclass(frozen=True)
class Rounded:
    """A rounded weight matrix.

    Args:
        grid: Its grid.
        codes: Integers of 0 to `grid.levels`, uint8 `(outputs, inputs)`.
        scales: A scale for each group, `(outputs, groups)`.
        zeros: The code of zero of each group, uint8 `(outputs, groups)`, or None where it is the middle one.
    """

    grid: Grid
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def values(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the rounded weights, `(outputs, inputs)`, in the dtype of the scales unless told otherwise."""
        return dequantized(self.codes, self.scales, self.zeros, self.grid, dtype)


def ranges(weight: Tensor, grid: Grid, scale_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the scales and the codes of zero of each group of a weight matrix.

    Args:
        weight: `(outputs, inputs)`.
        grid: The grid.
        scale_dtype: What scales are kept in; codes are computed with scales of that precision. None for the weight's own.
            Where a half-precision float cannot hold a scale, all scales stay in the weight's dtype.

    Returns:
        `(outputs, groups)` scales, and zeros as uint8 `(outputs, groups)`, or None for a symmetric grid.

    >>> ranges(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), Grid(2))
    (tensor([[1.]]), tensor([[0]], dtype=torch.uint8))
    """
    grouped = _grouped(weight, grid)
    if grid.search:
        shrunk = [_searched(chunk, grid) for chunk in grouped.split(max(1, _CHUNK // max(1, grouped[0].numel())))]
        low, high = (torch.cat(parts) for parts in zip(*shrunk))
    else:
        low, high = _extremes(grouped)
    scales, zeros = _parameters(low, high, grid)
    if scale_dtype is not None and scale_dtype != scales.dtype:
        kept = scales.to(scale_dtype)
        # Below the smallest normal number a half-precision scale loses bits. All-zero groups have such a scale and no loss.
        tiny = (kept < torch.finfo(scale_dtype).smallest_normal) & (high - low > 0)
        if not tiny.any() and kept.isfinite().all():
            scales = kept.clamp_min(torch.finfo(scale_dtype).smallest_normal)
    return scales, zeros


def round_weight(weight: Tensor, grid: Grid, scale_dtype: torch.dtype | None = None) -> Rounded:
    """Round each weight to the nearest value of its group's grid.

    Args:
        weight: `(outputs, inputs)`, floating point.
        grid: The grid.
        scale_dtype: See `ranges`.

    >>> round_weight(torch.tensor([[-1.0, 0.2, 0.9, 2.0]]), Grid(2)).values()
    tensor([[-1.,  0.,  1.,  2.]])
    """
    scales, zeros = ranges(weight, grid, scale_dtype)
    return Rounded(grid, codes_of(weight, scales, zeros, grid), scales, zeros)


def codes_of(weight: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid) -> Tensor:
    """Return the codes of the nearest values, uint8 of the shape of `weight`."""
    rows, inputs = weight.shape
    codes = _nearest(_grouped(weight, grid), scales, zeros, grid)
    return codes.to(torch.uint8).view(rows, -1)[:, :inputs].contiguous()


def dequantized(codes: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid, dtype: torch.dtype | None = None) -> Tensor:
    """Return the weights that codes stand for, computed and given in `dtype` (None: that of the scales).

    >>> grid = Grid(2)
    >>> dequantized(torch.tensor([[0, 1, 3]]), torch.tensor([[0.5]]), torch.tensor([[1]]), grid)
    tensor([[-0.5000,  0.0000,  1.0000]])
    """
    dtype = dtype or scales.dtype
    rows, inputs = codes.shape
    size = grid.size(inputs)
    middle = float(1 << (grid.bits - 1))
    scales = scales.to(dtype).unsqueeze(2)
    centre = middle if zeros is None else zeros.to(dtype).unsqueeze(2)
    if inputs % size:
        codes = torch.nn.functional.pad(codes, (0, -inputs % size))
    # In place: fresh memory for a whole weight costs more than the arithmetic.
    values = codes.view(rows, -1, size).to(dtype).sub_(centre).mul_(scales).view(rows, -1)
    return values[:, :inputs] if values.shape[1] != inputs else values


# -- internals ----------------------------------------------------------------------------------------------


def _grouped(weight: Tensor, grid: Grid) -> Tensor:
    # Ranges include zero and zero is on every grid, so zeros that fill the last group up change nothing.
    size = grid.size(weight.shape[1])
    missing = -weight.shape[1] % size
    if missing:
        weight = torch.nn.functional.pad(weight, (0, missing))
    return weight.reshape(len(weight), -1, size)


def _extremes(grouped: Tensor) -> tuple[Tensor, Tensor]:
    low, high = grouped.aminmax(dim=2)
    return low.clamp_max(0), high.clamp_min(0)


def _parameters(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    smallest = torch.finfo(low.dtype).smallest_normal
    if grid.symmetric:
        return (torch.maximum(-low, high) / (grid.levels / 2)).clamp_min(smallest), None
    scales = ((high - low) / grid.levels).clamp_min(smallest)
    zeros = (-torch.round(low / scales)).clamp(0, grid.levels)
    return scales, zeros.to(torch.uint8)


def _nearest(grouped: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid) -> Tensor:
    # Multiplied by the inverse, as torchao does, for the same codes at ties.
    steps = torch.round(grouped * (1.0 / scales.to(grouped.dtype)).unsqueeze(2))
    middle = 1 << (grid.bits - 1)
    steps += middle if zeros is None else zeros.to(grouped.dtype).unsqueeze(2)
    return steps.clamp_(0, grid.levels)


def _searched(grouped: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    # Ranges shrunk from all of the group's to a fifth, as GPTQ's code searches them, but for the squared error.
    low, high = _extremes(grouped)
    best, best_low, best_high = torch.full_like(low, float('inf')), low, high
    for step in range(_STEPS):
        share = 1 - step * _FARTHEST / _STEPS
        scales, zeros = _parameters(low * share, high * share, grid)
        codes = _nearest(grouped, scales, zeros, grid)
        codes -= float(1 << (grid.bits - 1)) if zeros is None else zeros.to(grouped.dtype).unsqueeze(2)
        error = codes.mul_(scales.unsqueeze(2)).sub_(grouped).square_().sum(2)
        better = error < best
        best = torch.where(better, error, best)
        best_low, best_high = torch.where(better, low * share, best_low), torch.where(better, high * share, best_high)
    return best_low, best_high


_STEPS, _FARTHEST = 40, 0.8
