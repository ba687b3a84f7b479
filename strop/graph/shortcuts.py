"""The commonest operators on tensors without values, many times faster than PyTorch's own meta kernels.

Those are written in Python with all of type promotion and broadcasting in them: half a millisecond for a batch norm,
most of the time of a trace. Anything unusual is left to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten


def _batch_norm(args: Any, kwargs: Any) -> Any:
    image = args[0]
    trained = args[5] if len(args) > 5 and isinstance(args[5], bool) else False
    if trained or kwargs:
        return None
    return torch.empty_like(image), image.new_empty(0), image.new_empty(0)


def _unary(args: Any, kwargs: Any) -> Any:
    return torch.empty_like(args[0]) if args[0].is_floating_point() and not kwargs else None


def _in_place(args: Any, kwargs: Any) -> Any:
    return args[0]


def _binary(args: Any, kwargs: Any) -> Any:
    one, two = args[0], args[1]
    if len(args) > 2 or kwargs or not isinstance(one, torch.Tensor):
        return None
    if not isinstance(two, torch.Tensor):
        return torch.empty_like(one) if one.is_floating_point() and isinstance(two, (int, float)) else None
    if one.dtype != two.dtype or one.dim() == 0:
        return None
    if one.shape == two.shape and one.stride() == two.stride():
        return torch.empty_like(one)
    if one.is_contiguous() and _fits(two, one):
        return torch.empty_like(one)
    return None


def _binary_in_place(args: Any, kwargs: Any) -> Any:
    one, two = args[0], args[1]
    fits = not isinstance(two, torch.Tensor) or (one.dtype == two.dtype and _fits(two, one))
    return one if fits and not kwargs else None


def _fits(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Say whether broadcasting `small` with `large` gives the shape of `large`."""
    if small.dim() > large.dim():
        return False
    return all(a == 1 or a == b for a, b in zip(small.shape[::-1], large.shape[::-1]))


#: Operator -> function of (args, kwargs) that returns its result, or None to leave it to PyTorch.
SHORTCUTS: dict[Any, Callable[[Any, Any], Any]] = {
    aten.native_batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: lambda args, kwargs: _batch_norm(args[:5], kwargs),
    **dict.fromkeys(
        [aten.relu.default, aten.silu.default, aten.sigmoid.default, aten.hardswish.default, aten.hardsigmoid.default], _unary
    ),
    **dict.fromkeys([aten.hardtanh.default, aten.tanh.default, aten.gelu.default], lambda args, kwargs: _unary(args, None)),
    **dict.fromkeys(
        [aten.relu_.default, aten.silu_.default, aten.sigmoid_.default, aten.hardswish_.default, aten.hardtanh_.default],
        _in_place,
    ),
    **dict.fromkeys([aten.add.Tensor, aten.mul.Tensor], _binary),
    **dict.fromkeys([aten.add_.Tensor, aten.mul_.Tensor], _binary_in_place),
}
