"""What operators on values say about axes: elementwise ones, tensors that appear, reductions.

Each rule returns the axes of the output. Equal axes are unified; an axis whose *positions* matter (an index, a
kernel, pixels) is frozen; one over which values are mixed (a norm, softmax, a mean) is only marked as spanned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strop.graph.inference import Call, axis_rule
from strop.graph.terms import ONE, Term, span, unify

aten = torch.ops.aten
Axes = list[Term]


# -- elementwise -------------------------------------------------------------------------------


def broadcast(call: Call, tensors: Sequence[torch.Tensor]) -> Axes:
    """Unify the axes that meet when tensors are broadcast; return those of the result."""
    return broadcast_axes(call, [call.axes(tensor) for tensor in tensors])


def broadcast_axes(call: Call, shapes: Sequence[Axes]) -> Axes:
    """Unify axes that meet when shapes are broadcast, the last with the last; return those of the result."""
    result: Axes = []
    for place in range(1, max(map(len, shapes), default=0) + 1):
        found: Term = ONE
        for axes in shapes:
            if len(axes) >= place and (term := axes[-place]).size != 1:
                if found.size == 1:
                    found = term
                else:
                    unify(found, term, call.reason('layout'))
        result.append(found)
    return result[::-1]


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return the tensors among values and in their lists, in order."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found.extend(item for item in value if isinstance(item, torch.Tensor))
    return found


@axis_rule('pointwise', aten.add, aten.add_, aten.rsub, aten.where, aten.lerp, aten.clamp, aten.hardswish, aten.hardswish_)
@axis_rule(aten.masked_fill, aten.masked_fill_, aten._prelu_kernel, aten.hardtanh, aten.hardtanh_, aten.rrelu_with_noise)
@axis_rule(aten.bernoulli, aten.bernoulli_, aten._fused_dropout, aten.gelu, aten.logit, aten.isclose, aten.complex, aten.polar)
@axis_rule(aten._to_copy, aten.clone, aten.detach, aten.detach_, aten.alias, aten.contiguous, aten.lift, aten.view_as_real_copy)
@axis_rule(aten.fill, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.exponential_, aten.random_, aten.zero)
@axis_rule(aten.zeros_like, aten.ones_like, aten.empty_like, aten.full_like, aten.rand_like, aten.randn_like, aten.randint_like)
@axis_rule(aten._conj, aten._conj_physical, aten._neg_view, aten.resolve_conj, aten.resolve_neg, aten.real, aten.imag)
@axis_rule(aten.log_sigmoid_forward, aten.native_dropout, aten.celu, aten.elu, aten.softplus, aten.nan_to_num)
def pointwise(call: Call) -> Any:
    """Elementwise: axes that meet are the same."""
    axes = broadcast(call, tensors_in((*call.args, *(value for key, value in call.kwargs.items() if key != 'out'))))
    if isinstance(call.out, torch.Tensor):
        return axes
    return [list(axes) for _ in call.out]


@axis_rule(aten.copy_, aten.copy)
def _copy(call: Call) -> Axes:
    broadcast(call, tensors_in(call.args))
    return call.axes(call.args[0])


@axis_rule('unknown')
def unknown(call: Call) -> Any:
    """Freeze whatever an operator without a rule takes and gives."""
    for tensor in tensors_in((*call.args, *call.kwargs.values())):
        for term in call.axes(tensor):
            call.freeze(term)
    return constants(call, 'rule')


def constants(call: Call, kind: str = 'constant') -> Any:
    """Return frozen axes for what an operator makes, `kind` being the reason."""
    if isinstance(call.out, torch.Tensor):
        return [call.fresh(size, kind) for size in call.out.shape]
    return [[call.fresh(size, kind) for size in tensor.shape] for tensor in tensors_in([call.out])]


# -- tensors that appear ------------------------------------------------------------------------


@axis_rule(aten.zeros, aten.ones, aten.empty, aten.full, aten.new_zeros, aten.new_ones, aten.new_empty, aten.new_full)
@axis_rule(aten.empty_strided, aten.new_empty_strided, aten.rand, aten.randn, aten.empty_permuted)
def _free(call: Call) -> Axes:
    return [call.fresh(size) for size in call.out.shape]


@axis_rule(
    aten.arange, aten.linspace, aten.logspace, aten.eye, aten.randint, aten.randperm, aten.scalar_tensor, aten.lift_fresh
)
@axis_rule(aten.tril_indices, aten.triu_indices, aten.hann_window, aten._efficientzerotensor, aten.lift_fresh_copy)
def _constant(call: Call) -> Any:
    return constants(call)


# -- reductions --------------------------------------------------------------------------------


def _dims(call: Call, axes: Axes, dims: Any) -> set[int]:
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        return set(range(len(axes)))
    return {dim % max(len(axes), 1) for dim in ([dims] if isinstance(dims, int) else dims)}


def _reduce(call: Call, dims: Any, keepdim: bool, kind: str | None = None) -> Axes:
    axes = call.axes(call.args[0])
    gone = _dims(call, axes, dims)
    for dim in gone:
        if dim < len(axes):
            span(axes[dim], call.name)
            if kind is not None:
                call.freeze(axes[dim], kind)
    if keepdim:
        return [ONE if dim in gone else term for dim, term in enumerate(axes)]
    return [term for dim, term in enumerate(axes) if dim not in gone]


@axis_rule(
    aten.sum, aten.mean, aten.amax, aten.amin, aten.nansum, aten.all, aten.any, aten.prod, aten.logsumexp, aten.max.default
)
@axis_rule(aten.min.default, aten.sum.default, aten.mean.default, aten.count_nonzero)
def _sum(call: Call) -> Axes:
    return _reduce(call, call.get('dim', 1), bool(call.get('keepdim', 2, False)))


@axis_rule(aten.var, aten.std)
def _var(call: Call) -> Axes:
    dims = call.get('dim', 1)
    return _reduce(
        call, None if isinstance(dims, bool) else dims, bool(call.kwargs.get('keepdim', call.get('keepdim', 3, False)))
    )


@axis_rule(aten.var_mean, aten.std_mean)
def _var_mean(call: Call) -> list[Axes]:
    axes = _var(call)
    return [axes, list(axes)]


@axis_rule(aten.linalg_vector_norm, aten.norm)
def _norm(call: Call) -> Axes:
    return _reduce(call, call.get('dim', 2), bool(call.get('keepdim', 3, False)))


@axis_rule(aten.max.dim, aten.min.dim, aten.median.dim, aten.mode, aten.kthvalue)
def _max_dim(call: Call) -> list[Axes]:
    place = 2 if call.name == 'kthvalue' else 1
    axes = _reduce(call, call.get('dim', place), bool(call.get('keepdim', place + 1, False)), 'index')
    return [axes, list(axes)]


@axis_rule(aten.argmax, aten.argmin)
def _argmax(call: Call) -> Axes:
    return _reduce(call, call.get('dim', 1), bool(call.get('keepdim', 2, False)), 'index')


@axis_rule(aten._softmax, aten._log_softmax, aten._safe_softmax, aten.softmax, aten.log_softmax)
def _softmax(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    if axes:
        span(axes[call.args[1]], 'softmax')
    return axes


@axis_rule(aten.nll_loss_forward, aten.nll_loss2d_forward)
def _nll_loss(call: Call) -> Any:
    for tensor in tensors_in(call.args[:3]):
        for number, term in enumerate(call.axes(tensor)):
            # The targets are numbers of classes, and every other position counts in the mean.
            call.freeze(term, 'index' if number == 1 or tensor.dim() == 1 else 'position')
    return constants(call, 'index')


@axis_rule(aten.cumsum, aten.cumprod, aten.logcumsumexp, aten.cumsum_)
def _cumsum(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    if axes:
        call.freeze(axes[call.args[1]], 'position')
    return axes


@axis_rule(aten.sort, aten.topk)
def _sort(call: Call) -> list[Axes]:
    axes = list(call.axes(call.args[0]))
    stable = call.name == 'sort' and isinstance(call.kwargs.get('stable'), bool)
    dim = call.get('dim', 1 if call.name == 'sort' and not stable else 2, call.kwargs.get('dim', -1))
    call.freeze(axes[dim], 'index')
    axes[dim] = call.fresh(call.out[0].shape[dim], 'index')
    return [axes, list(axes)]
