"""GPTQ: weights rounded one input at a time, the error of each moved onto the inputs that come after it.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, ICLR 2023,
https://arxiv.org/abs/2210.17323. Official code: https://github.com/IST-DASLab/gptq.

Differences from it:

- With `act_order`, the groups keep their places in the original order and their ranges are those of the unchanged weights, so
  that no index of groups has to be stored; ranges are taken when a group is reached otherwise, as in the paper.
- Groups wider than a block of columns take all earlier errors into account before their range is measured.
- `round_by_blocks` keeps rounding to nearest for an output where that is better on the calibration data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.errors import ConfigError, DataError
from strop.graph.forward import in_double
from strop.quantization.grouping import Grid, Rounded, ranges

#: Columns whose errors are applied to the rest of the matrix at once, the paper's B.
COLUMNS = 128


def gptq_round(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    scale_dtype: torch.dtype | None = None,
    columns: int = COLUMNS,
) -> Rounded:
    r"""Round a weight matrix so that its outputs on the calibration data change little.

    It minimizes :math:`\lVert X (W - \hat W)^\top \rVert^2 = \operatorname{tr}((W - \hat W) H (W - \hat W)^\top)` greedily.
    With :math:`U` the upper Cholesky factor of :math:`(H + \lambda I)^{-1}`, input :math:`j` is rounded and the inputs
    :math:`k > j` take over its error, :math:`w_k \leftarrow w_k - (w_j - \hat w_j) U_{jk} / U_{jj}`.

    Args:
        weight: `(outputs, inputs)`, 32 or 64 bits; it stays as it is.
        hessian: :math:`H = X^\top X` over the calibration data, `(inputs, inputs)`, at any scale.
        grid: The grid.
        damping: :math:`\lambda` as a share of the mean diagonal of :math:`H`. Ten times more is tried where the factor of
            :math:`H` doesn't exist.
        act_order: Whether to take the inputs with the largest diagonal first.
        scale_dtype: What scales are kept in; see `ranges`.
        columns: How many inputs are rounded before the rest of the matrix is updated. It changes speed, not the result.

    Raises:
        ConfigError: If the shapes don't fit, or `damping` is not positive.
        DataError: If the Hessian is not finite, or has no Cholesky factor.

    >>> weight = torch.tensor([[0.4, 0.4, -1.0]])
    >>> inputs = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.9, 0.1]])
    >>> gptq_round(weight, inputs.T @ inputs, Grid(2, symmetric=True), act_order=False).values()
    tensor([[ 0.6667,  0.0000, -0.6667]])
    """
    rows, inputs = weight.shape
    if hessian.shape != (inputs, inputs):
        raise ConfigError(f'A weight of {inputs} inputs has a Hessian of {(inputs, inputs)}, but got {tuple(hessian.shape)}.')
    check_damping(damping)
    weight = weight.detach().clone()
    factor, order = _inverse_factor(hessian, damping, act_order)
    # Double precision may have taken them to the CPU.
    factor, order = factor.to(weight.dtype).to(weight.device), order.to(weight.device)
    size = grid.size(inputs)
    fixed = ranges(weight, grid, scale_dtype) if act_order or size == inputs else None
    if fixed is None:
        scales = weight.new_empty(rows, grid.groups(inputs))
        zeros = None if grid.symmetric else torch.empty(rows, grid.groups(inputs), dtype=torch.uint8, device=weight.device)
        kept_dtype = scale_dtype or weight.dtype
    else:
        scales, zeros = fixed[0].to(weight.dtype), fixed[1]
        kept_dtype = fixed[0].dtype
    if act_order:
        weight = weight[:, order]
    group_of = (order // size).tolist()
    codes = torch.empty(rows, inputs, dtype=torch.uint8, device=weight.device)
    middle = float(1 << (grid.bits - 1))
    for begin, end in _blocks(inputs, size if fixed is None else inputs, columns):
        block, triangle = weight[:, begin:end].clone(), factor[begin:end, begin:end]
        errors = torch.empty_like(block)
        for place in range(end - begin):
            group = group_of[begin + place]
            if fixed is None and (begin + place) % size == 0:
                # A group that goes beyond its block begins with it, so the matrix has all earlier errors taken over.
                inside = min(begin + place + size, inputs) <= end
                ahead = block[:, place : place + size] if inside else weight[:, begin : begin + size]
                taken, zero = ranges(ahead, Grid(grid.bits, None, grid.symmetric, grid.search), scale_dtype)
                if taken.dtype != kept_dtype:
                    kept_dtype = weight.dtype
                scales[:, group] = taken[:, 0].to(weight.dtype)
                if zeros is not None and zero is not None:
                    zeros[:, group] = zero[:, 0]
            column, scale = block[:, place], scales[:, group]
            centre = middle if zeros is None else zeros[:, group].to(weight.dtype)
            steps = (torch.round(column * (1.0 / scale)) + centre).clamp_(0, grid.levels)
            codes[:, begin + place] = steps.to(torch.uint8)
            error = (column - (steps - centre) * scale) / triangle[place, place]
            errors[:, place] = error
            block[:, place:].addr_(error, triangle[place, place:], alpha=-1)
        if end < inputs:
            weight[:, end:].addmm_(errors, factor[begin:end, end:], alpha=-1)
    if act_order:
        codes = codes[:, torch.argsort(order)].contiguous()
    return Rounded(grid, codes, scales.to(kept_dtype), zeros)


def output_errors(weight: Tensor, rounded: Tensor, hessian: Tensor) -> Tensor:
    r"""Return :math:`\lVert X (w - \hat w) \rVert^2` of each output, `(outputs,)`, from :math:`H = X^\top X`.

    >>> output_errors(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]]), torch.eye(2))
    tensor([1.])
    """
    difference = weight - rounded
    return ((difference @ hessian.to(difference.dtype)) * difference).sum(1)


# -- internals ----------------------------------------------------------------------------------------------


def check_damping(damping: float) -> None:
    """Raise a ConfigError if it cannot be the damping of GPTQ."""
    if not isinstance(damping, (int, float)) or isinstance(damping, bool) or not 0 < damping < float('inf'):
        raise ConfigError(f'`damping` is a positive share of the mean diagonal, such as 0.01, but got {damping!r}.')


def _inverse_factor(hessian: Tensor, damping: float, act_order: bool) -> tuple[Tensor, Tensor]:
    """Return the upper Cholesky factor of the damped inverse in the order of rounding, and that order."""
    hessian = in_double(hessian.detach()).clone()
    if not bool(hessian.isfinite().all()):
        raise DataError('The Hessian of the calibration data holds NaN or an infinity: some input of the layer overflows.')
    diagonal = hessian.diagonal()
    # An input that is always zero says nothing: it is rounded to nearest, and passes its error on to nobody.
    alive = diagonal > 0
    diagonal[~alive] = diagonal[alive].mean() if bool(alive.any()) else 1.0
    order = torch.arange(len(hessian), device=hessian.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        hessian = hessian[order][:, order]
    mean = float(hessian.diagonal().mean())
    for times in (1, 10, 100):
        damped = hessian.clone()
        damped.diagonal().add_(times * damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed):
            return upper, order
    raise DataError(
        f'The Hessian of the calibration data has no Cholesky factor, not even with a damping of {100 * damping:g}. Give more '
        'varied data, or more `damping`.'
    )


def _blocks(inputs: int, size: int, columns: int) -> list[tuple[int, int]]:
    """Cut the inputs into blocks that hold whole groups, or lie within one and begin where it begins."""
    if size <= columns:
        width = size * (columns // size)
        return [(begin, min(begin + width, inputs)) for begin in range(0, inputs, width)]
    return [
        (begin, min(begin + columns, start + size, inputs))
        for start in range(0, inputs, size)
        for begin in range(start, min(start + size, inputs), columns)
    ]
