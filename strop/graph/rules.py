"""What ATen operators say about the axes of their tensors.

Each rule returns the axes of the output. Equal axes are unified; an axis whose *positions* matter (an index, a
kernel, pixels) is frozen; one over which values are mixed (a norm, softmax, a mean) is only marked as spanned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strop.graph.inference import Call, axis_rule
from strop.graph.terms import (
    ONE,
    Incompatible,
    Term,
    concatenation,
    is_constant,
    mark,
    product,
    resolve,
    span,
    split_cat,
    split_prod,
    unify,
)

aten = torch.ops.aten
Axes = list[Term]


# -- elementwise -------------------------------------------------------------------------------


def _broadcast(call: Call, tensors: Sequence[torch.Tensor]) -> Axes:
    """Unify the axes that meet when tensors are broadcast; return those of the result."""
    return _broadcast_axes(call, [call.axes(tensor) for tensor in tensors])


def _broadcast_axes(call: Call, shapes: Sequence[Axes]) -> Axes:
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


def _tensors(values: Any) -> list[torch.Tensor]:
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
    axes = _broadcast(call, _tensors((*call.args, *(value for key, value in call.kwargs.items() if key != 'out'))))
    if isinstance(call.out, torch.Tensor):
        return axes
    return [list(axes) for _ in call.out]


@axis_rule(aten.copy_, aten.copy)
def _copy(call: Call) -> Axes:
    _broadcast(call, _tensors(call.args))
    return call.axes(call.args[0])


@axis_rule('unknown')
def unknown(call: Call) -> Any:
    """Freeze whatever an operator without a rule takes and gives."""
    for tensor in _tensors((*call.args, *call.kwargs.values())):
        for term in call.axes(tensor):
            call.freeze(term)
    return _constants(call, 'rule')


def _constants(call: Call, kind: str = 'constant') -> Any:
    if isinstance(call.out, torch.Tensor):
        return [call.fresh(size, kind) for size in call.out.shape]
    return [[call.fresh(size, kind) for size in tensor.shape] for tensor in _tensors([call.out])]


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
    return _constants(call)


# -- layout ------------------------------------------------------------------------------------


def reshaped(call: Call, axes: Sequence[Term], shape: Sequence[int]) -> Axes:
    """Return the axes of a tensor that is viewed in another shape."""
    if 0 in shape or any(not term.size for term in axes):
        return [call.fresh(size, 'constant') for size in shape]
    result: Axes = []
    i = j = 0
    while i < len(axes) or j < len(shape):
        if j < len(shape) and shape[j] == 1:
            result.append(ONE)
            j += 1
            continue
        if i < len(axes) and axes[i].size == 1:
            i += 1
            continue
        if i >= len(axes) or j >= len(shape):
            break
        start, before = i, j
        have, want = axes[i].size, shape[j]
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                have *= axes[i].size
                i += 1
            else:
                want *= shape[j]
                j += 1
        result.extend(_regrouped(call, axes[start:i], shape[before:j]))
    if len(result) != len(shape):  # a tensor without elements
        return [call.fresh(size, 'constant') for size in shape]
    return result


def _regrouped(call: Call, axes: Sequence[Term], shape: Sequence[int]) -> Axes:
    if len(axes) == 1 and len(shape) == 1:
        return [axes[0]]
    # Axes that cannot change have no structure worth keeping, and none that could clash.
    parts = [call.fresh(term.size, 'constant') if is_constant(term) else term for term in axes]
    if all(is_constant(term) for term in parts):
        return [call.fresh(size, 'constant') for size in shape]
    if len(shape) == 1:
        return [product([resolve(term) for term in parts])]
    result: Axes = []
    try:
        rest: Term = product([resolve(term) for term in parts])
        for size in shape[:-1]:
            first, rest = split_prod(rest, size)
            result.append(first)
    except Incompatible:
        for term in axes:
            call.freeze(term, 'layout')
        return [call.fresh(size, 'layout') for size in shape]
    return [*result, rest]


@axis_rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.view_copy)
def _view(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    if isinstance(call.args[1], torch.dtype):
        if len(axes) == call.out.dim() and all(term.size == size for term, size in zip(axes, call.out.shape)):
            return axes
        call.freeze(axes[-1])
        return [*axes[:-1], call.fresh(call.out.shape[-1], 'rule')]
    return reshaped(call, axes, call.out.shape)


@axis_rule(aten.permute, aten.permute_copy)
def _permute(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    return [axes[dim] for dim in call.args[1]]


@axis_rule(aten.transpose, aten.transpose_, aten.swapaxes)
def _transpose(call: Call) -> Axes:
    axes = list(call.axes(call.args[0]))
    one, two = call.args[1], call.args[2]
    if axes:
        axes[one], axes[two] = axes[two], axes[one]
    return axes


@axis_rule(aten.t, aten.t_, aten.numpy_T)
def _t(call: Call) -> Axes:
    return call.axes(call.args[0])[::-1]


@axis_rule(aten.unsqueeze, aten.unsqueeze_)
def _unsqueeze(call: Call) -> Axes:
    axes = list(call.axes(call.args[0]))
    axes.insert(call.args[1] % (len(axes) + 1), ONE)
    return axes


@axis_rule(aten.squeeze, aten.squeeze_)
def _squeeze(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    dims = call.get('dim', 1)
    if dims is None:
        return [term for term in axes if term.size != 1]
    chosen = {dim % max(len(axes), 1) for dim in ([dims] if isinstance(dims, int) else dims)}
    return [term for dim, term in enumerate(axes) if dim not in chosen or term.size != 1]


@axis_rule(aten.expand, aten.expand_copy)
def _expand(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    shape = call.out.shape
    lead = len(shape) - len(axes)
    return [
        axes[dim - lead] if dim >= lead and axes[dim - lead].size == size else call.fresh(size)
        for dim, size in enumerate(shape)
    ]


@axis_rule(aten.repeat)
def _repeat(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    times = call.args[1]
    axes = [ONE] * (len(times) - len(axes)) + list(axes)
    return [product([call.fresh(count), resolve(term)]) if count != 1 else term for count, term in zip(times, axes)]


@axis_rule(aten.cat, aten.concat)
def _cat(call: Call) -> Axes:
    tensors = [tensor for tensor in call.args[0] if tensor.dim() != 1 or tensor.shape[0]]
    if not tensors:
        return call.axes(call.args[0][0])
    shapes = [call.axes(tensor) for tensor in tensors]
    dim = call.get('dim', 1, 0) % len(shapes[0])
    for axes in shapes[1:]:
        for number, (one, two) in enumerate(zip(shapes[0], axes)):
            if number != dim:
                unify(one, two, call.reason('layout'))
    result = list(shapes[0])
    result[dim] = concatenation([resolve(axes[dim]) for axes in shapes])
    return result


@axis_rule(aten.stack)
def _stack(call: Call) -> Axes:
    shapes = [call.axes(tensor) for tensor in call.args[0]]
    for axes in shapes[1:]:
        for one, two in zip(shapes[0], axes):
            unify(one, two, call.reason('layout'))
    result = list(shapes[0])
    result.insert(call.get('dim', 1, 0) % (len(result) + 1), concatenation([ONE] * len(shapes)))
    return result


def _pieces(call: Call, axes: Axes, dim: int) -> list[Axes]:
    dim %= len(axes)
    rest, result = axes[dim], []
    for tensor in call.out:
        first, rest = split_cat(rest, tensor.shape[dim])
        result.append([*axes[:dim], first, *axes[dim + 1 :]])
    return result


@axis_rule(aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.split_copy, aten.split_with_sizes_copy)
@axis_rule(aten.unsafe_split, aten.unsafe_split_with_sizes, aten.unsafe_chunk)
def _split(call: Call) -> list[Axes]:
    return _pieces(call, call.axes(call.args[0]), call.get('dim', 2, 0))


@axis_rule(aten.narrow)
def _narrow(call: Call) -> Axes:
    return _cut(call, call.axes(call.args[0]), call.args[1], call.args[2], call.args[2] + call.args[3], 1)


@axis_rule(aten.slice, aten.slice_copy)
def _slice(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    return _cut(call, axes, call.get('dim', 1, 0), call.get('start', 2), call.get('end', 3), call.get('step', 4, 1))


def _cut(call: Call, axes: Axes, dim: int, start: int | None, end: int | None, step: int) -> Axes:
    dim %= len(axes)
    term = axes[dim]
    size = term.size
    start = 0 if start is None else min(max(start + size if start < 0 else start, 0), size)
    end = size if end is None else min(max(end + size if end < 0 else end, start), size)
    if step > 1 and start < step and end > size - step + start and size % step == 0:
        start, end = 0, size  # one position of each group of `step`, whichever
    return [*axes[:dim], strided(call, split_cat(split_cat(term, end)[0], start)[1], step), *axes[dim + 1 :]]


def strided(call: Call, term: Term, step: int) -> Term:
    """Return every `step`-th position of an axis."""
    if step == 1 or term.size <= 1:
        return term
    if not is_constant(term) and term.size % step == 0:
        try:
            outer, inner = split_prod(term, term.size // step)
        except Incompatible:
            pass
        else:
            call.freeze(inner, 'position')
            return outer
    call.freeze(term, 'position')
    return call.fresh(-(-term.size // step), 'position')


@axis_rule(aten.select, aten.select_copy)
def _select(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    dim = call.args[1] % len(axes)
    call.freeze(axes[dim], 'index')
    return [*axes[:dim], *axes[dim + 1 :]]


@axis_rule(aten.unbind, aten.unbind_copy)
def _unbind(call: Call) -> list[Axes]:
    axes = call.axes(call.args[0])
    dim = call.get('dim', 1, 0) % len(axes)
    call.freeze(axes[dim], 'index')
    return [[*axes[:dim], *axes[dim + 1 :]] for _ in call.out]


@axis_rule(aten.roll, aten.flip)
def _moved(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    dims = call.get('dims', 2, ()) if call.name == 'roll' else call.get('dims', 1, ())
    for dim in dims or range(len(axes)):
        call.freeze(axes[dim], 'position')
    return axes


@axis_rule(aten.constant_pad_nd, aten.constant_pad_nd.default)
def _pad(call: Call) -> Axes:
    axes = list(call.axes(call.args[0]))
    widths = call.args[1]
    for number in range(len(widths) // 2):
        left, right = widths[2 * number], widths[2 * number + 1]
        if not left and not right:
            continue
        dim = len(axes) - 1 - number
        term = axes[dim]
        if left < 0:
            term, left = split_cat(term, -left)[1], 0
        if right < 0:
            term, right = split_cat(term, term.size + right)[0], 0
        sides = [call.fresh(left), call.fresh(right)]
        if call.get('value', 2, 0):
            # Padding with something else than zero is no absent channel.
            for side in sides:
                call.freeze(side, 'constant')
        axes[dim] = concatenation([sides[0], resolve(term), sides[1]])
    return axes


@axis_rule(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d)
@axis_rule(aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d, aten._pad_circular)
def _pad_pixels(call: Call) -> Axes:
    return _leading(call, len(call.args[1]) // 2)


@axis_rule(aten.as_strided, aten.as_strided_, aten.set_, aten.resize_)
def _as_strided(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    shape, strides = call.out.shape, call.out.stride()
    dense = torch.empty(shape, device='meta').stride()
    same = all(size == 1 or one == two for size, one, two in zip(shape, strides, dense))
    if same and len(axes) == len(shape) and all(term.size == size for term, size in zip(axes, shape)):
        return axes  # only the strides of axes of length 1 are new
    return unknown(call)


@axis_rule(aten.unfold)
def _unfold(call: Call) -> Axes:
    axes = list(call.axes(call.args[0]))
    dim = call.args[1] % len(axes)
    call.freeze(axes[dim], 'position')
    axes[dim] = call.fresh(call.out.shape[dim], 'position')
    return [*axes, call.fresh(call.out.shape[-1], 'position')]


@axis_rule(aten.triu, aten.tril, aten.triu_, aten.tril_, aten.diagonal, aten.diag_embed)
def _triangle(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    for term in axes[-2:]:
        call.freeze(term, 'position')
    return list(axes) if len(axes) == call.out.dim() and call.name in ('triu', 'tril', 'triu_', 'tril_') else _constants(call)


@axis_rule(aten.view_as_complex, aten.view_as_complex_copy)
def _view_as_complex(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    call.freeze(axes[-1], 'position')
    return axes[:-1]


@axis_rule(aten.view_as_real)
def _view_as_real(call: Call) -> Axes:
    return [*call.axes(call.args[0]), call.fresh(2, 'position')]


# -- indexing ----------------------------------------------------------------------------------


@axis_rule(aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._unsafe_index_put)
def _index(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    indices = list(call.args[1])
    taken: list[int] = []
    dim = 0
    shapes: list[torch.Tensor] = []
    for index in indices:
        if index is None:
            dim += 1
            continue
        width = index.dim() if index.dtype in (torch.bool, torch.uint8) else 1
        for place in range(dim, dim + width):
            call.freeze(axes[place], 'index')
            taken.append(place)
        dim += width
        shapes.append(index)
    if 'put' in call.name:
        for tensor in _tensors(call.args[2:3]):
            for term in call.axes(tensor):
                call.freeze(term, 'index')
        if len(taken) != len(axes):
            for term in axes:
                call.freeze(term, 'index')
        return list(axes)
    if any(index.dtype in (torch.bool, torch.uint8) for index in shapes):
        lead = call.out.dim() - (len(axes) - len(taken))
        inner: Axes = [call.fresh(size, 'index') for size in call.out.shape[:lead]]
        if taken and taken[0] != 0:
            start = taken[0] if taken == list(range(taken[0], taken[-1] + 1)) else 0
            inner = [call.fresh(size, 'index') for size in call.out.shape[start : start + lead]]
    else:
        inner = _broadcast(call, shapes)
    rest = [term for place, term in enumerate(axes) if place not in taken]
    together = taken == list(range(taken[0], taken[-1] + 1)) if taken else True
    start = taken[0] if taken and together else 0
    return [*rest[:start], *inner, *rest[start:]]


@axis_rule(aten.index_select)
def _index_select(call: Call) -> Axes:
    axes = list(call.axes(call.args[0]))
    dim = call.args[1] % len(axes)
    call.freeze(axes[dim], 'index')
    axes[dim] = call.axes(call.args[2])[0] if call.args[2].dim() else ONE
    return axes


@axis_rule(aten.embedding)
def _embedding(call: Call) -> Axes:
    rows, columns = call.axes(call.args[0])
    call.freeze(rows, 'index')
    return [*call.axes(call.args[1]), columns]


@axis_rule(aten._embedding_bag, aten._embedding_bag_forward_only)
def _embedding_bag(call: Call) -> Any:
    rows, columns = call.axes(call.args[0])
    call.freeze(rows, 'index')
    found = _constants(call, 'index')
    found[0][1] = columns
    return found


@axis_rule(aten.gather, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_, aten.scatter_reduce, aten.index_add)
@axis_rule(aten.index_add_, aten.index_copy, aten.index_copy_, aten.index_fill, aten.index_fill_, aten.take_along_dim)
def _gather(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    dim = call.args[1] % max(len(axes), 1)
    others = [tensor for tensor in _tensors(call.args[2:]) if tensor.dim() == len(axes)]
    if axes:
        call.freeze(axes[dim], 'index')
    for tensor in others:
        for place, (one, two) in enumerate(zip(axes, call.axes(tensor))):
            if place != dim and one.size == two.size:
                unify(one, two, call.reason('layout'))
            else:
                call.freeze(two, 'index')
                call.freeze(one, 'index')
    if call.name == 'gather' and others:
        return call.axes(others[0])
    return axes


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
    for tensor in _tensors(call.args[:3]):
        for number, term in enumerate(call.axes(tensor)):
            # The targets are numbers of classes, and every other position counts in the mean.
            call.freeze(term, 'index' if number == 1 or tensor.dim() == 1 else 'position')
    return _constants(call, 'index')


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


# -- layers ------------------------------------------------------------------------------------


def _pixels(call: Call, axes: Sequence[Term], sizes: Sequence[int]) -> Axes:
    """Freeze axes of pixels and return those of the result."""
    for term in axes:
        call.freeze(term, 'position')
    return [call.fresh(size, 'position') for size in sizes]


def _leading(call: Call, spatial: int) -> Axes:
    """Return the axes of a layer that works on the last `spatial` axes only."""
    axes = call.axes(call.args[0])
    lead = len(axes) - spatial
    return [*axes[:lead], *_pixels(call, axes[lead:], call.out.shape[lead:])]


@axis_rule(aten.convolution, aten._convolution, aten.convolution_overrideable)
def _convolution(call: Call) -> Axes:
    image, weight = call.axes(call.args[0]), call.axes(call.args[1])
    stride, padding, transposed, groups = call.args[3], call.args[4], call.args[6], call.args[8]
    batched = len(image) == len(weight)
    inputs = image[1] if batched else image[0]
    reason = call.reason('layout')
    if transposed:
        outputs, ins = weight[1], weight[0]
        if groups > 1:
            try:
                group, inner = split_prod(ins, groups)
                mark(group, 'groups')
                unify(inputs, ins, reason)
                outputs = product([resolve(group), resolve(outputs)])
            except Incompatible:
                call.freeze(ins, 'layout')
                call.freeze(inputs, 'layout')
                outputs = call.fresh(call.out.shape[1], 'layout')
        else:
            unify(inputs, ins, reason)
    elif groups > 1:
        outputs = weight[0]
        try:
            group, inner = split_prod(inputs, groups)
            group_of_weight, _ = split_prod(outputs, groups)
            unify(group, group_of_weight, reason)
            unify(inner, weight[1], reason)
            if inner.size > 1:
                mark(group, 'groups')
        except Incompatible:
            for term in (inputs, outputs, weight[1]):
                call.freeze(term, 'layout')
    else:
        outputs = weight[0]
        unify(inputs, weight[1], reason)
    bias = call.args[2]
    if bias is not None:
        unify(call.axes(bias)[0], outputs, reason)
    for term in weight[2:]:
        call.freeze(term, 'kernel')
    lead = 2 if batched else 1
    pixels: Axes = []
    for number, size in enumerate(call.out.shape[lead:]):
        term = image[lead + number]
        same = weight[2 + number].size == 1 and stride[number % len(stride)] == 1 and padding[number % len(padding)] == 0
        pixels.extend([term] if same and term.size == size else _pixels(call, [term], [size]))
    return [*image[: lead - 1], outputs, *pixels]


@axis_rule(aten.mm, aten.dot, aten.mv, aten.vdot)
def _mm(call: Call) -> Axes:
    one, two = call.axes(call.args[0]), call.axes(call.args[1])
    unify(one[-1], two[0], call.reason('layout'))
    return [*one[:-1], *two[1:]]


@axis_rule(aten.addmm, aten.addmv, aten.addmm_, aten._addmm_activation)
def _addmm(call: Call) -> Axes:
    one, two = call.axes(call.args[1]), call.axes(call.args[2])
    unify(one[-1], two[0], call.reason('layout'))
    result = [*one[:-1], *two[1:]]
    for term, added in zip(result[::-1], call.axes(call.args[0])[::-1]):
        if added.size != 1:
            unify(term, added, call.reason('layout'))
    return result


@axis_rule(aten.bmm)
def _bmm(call: Call) -> Axes:
    return _batched(call, call.axes(call.args[0]), call.axes(call.args[1]))


@axis_rule(aten.baddbmm, aten.baddbmm_)
def _baddbmm(call: Call) -> Axes:
    result = _batched(call, call.axes(call.args[1]), call.axes(call.args[2]))
    for term, added in zip(result[::-1], call.axes(call.args[0])[::-1]):
        if added.size != 1:
            unify(term, added, call.reason('layout'))
    return result


def _batched(call: Call, one: Axes, two: Axes) -> Axes:
    unify(one[0], two[0], call.reason('layout'))
    unify(one[2], two[1], call.reason('layout'))
    if not is_constant(one[0]):  # else it is a batch of ordinary products
        mark(one[0], 'heads')
        mark(one[2], 'head_dim')
        mark(two[2], 'head_dim')
    return [one[0], one[1], two[2]]


@axis_rule(aten._grouped_mm)
def _grouped_mm(call: Call) -> Axes:
    one, two = call.axes(call.args[0]), call.axes(call.args[1])
    unify(one[-1], two[-2], call.reason('layout'))
    for experts in (one[:-2], two[:-2]):
        for term in experts:
            call.freeze(term, 'index')
    if len(one) == 2 and len(two) == 2:
        return [call.fresh(call.out.shape[0], 'index'), one[0], two[1]]
    return [*([two[0]] if call.out.dim() == 3 else []), one[-2], two[-1]]


@axis_rule(aten.addbmm)
def _addbmm(call: Call) -> Axes:
    axes = _batched(call, call.axes(call.args[1]), call.axes(call.args[2]))[1:]
    for term, added in zip(axes[::-1], call.axes(call.args[0])[::-1]):
        if added.size != 1:
            unify(term, added, call.reason('layout'))
    return axes


@axis_rule(aten.linear, torch.ops.mkldnn._linear_pointwise if hasattr(torch.ops.mkldnn, '_linear_pointwise') else aten.linear)
def _linear(call: Call) -> Axes:
    image, weight = call.axes(call.args[0]), call.axes(call.args[1])
    unify(image[-1], weight[-1], call.reason('layout'))
    bias = call.get('bias', 2)
    if isinstance(bias, torch.Tensor):
        unify(call.axes(bias)[-1], weight[0], call.reason('layout'))
    return [*image[:-1], *weight[:-1]]


@axis_rule(aten._trilinear, aten.bilinear)
def _trilinear(call: Call) -> Axes:
    return unknown(call)


@axis_rule(aten.native_layer_norm, aten._fused_rms_norm, aten.rms_norm)
def _layer_norm(call: Call) -> Any:
    axes = call.axes(call.args[0])
    lead = len(axes) - len(call.args[1])
    for term in axes[lead:]:
        span(term, 'layer_norm' if call.name == 'native_layer_norm' else 'rms_norm')
    for tensor in _tensors(call.args[2:4]):
        for one, two in zip(axes[lead:], call.axes(tensor)):
            unify(one, two, call.reason('layout'))
    if isinstance(call.out, torch.Tensor):
        return list(axes)
    statistics = [*axes[:lead], *([ONE] * (len(axes) - lead))]
    return [list(axes), *(statistics[: tensor.dim()] for tensor in call.out[1:])]


@axis_rule(aten.native_group_norm)
def _group_norm(call: Call) -> list[Axes]:
    axes = call.axes(call.args[0])
    groups = call.args[6]
    try:
        group, inner = split_prod(axes[1], groups)
        mark(group, 'groups')
        span(inner, 'group_norm')
    except Incompatible:
        call.freeze(axes[1], 'layout')
        group = call.fresh(groups, 'layout')
    for term in axes[2:]:
        span(term, 'group_norm')
    for tensor in call.args[1:3]:
        if tensor is not None:
            unify(call.axes(tensor)[0], axes[1], call.reason('layout'))
    return [list(axes), [axes[0], group], [axes[0], group]]


@axis_rule(aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training)
@axis_rule(aten.cudnn_batch_norm, aten.miopen_batch_norm, aten._batch_norm_with_update, aten._batch_norm_no_update)
@axis_rule(aten._batch_norm_impl_index, aten._native_batch_norm_legit_functional, aten._batch_norm_with_update_functional)
def _batch_norm(call: Call) -> list[Axes]:
    axes = call.axes(call.args[0])
    trained = call.args[5] if len(call.args) > 5 and isinstance(call.args[5], bool) else 'with_update' in call.name
    for tensor in _tensors(call.args[1:5]):
        unify(call.axes(tensor)[0], axes[1], call.reason('layout'))
    if trained:
        for number, term in enumerate(axes):
            if number != 1:
                span(term, 'batch_norm')
    outs = [list(axes)]
    for tensor in _tensors([call.out])[1:]:
        outs.append(
            [axes[1]] if tensor.dim() == 1 and tensor.shape[0] == axes[1].size else [call.fresh(s) for s in tensor.shape]
        )
    return outs


@axis_rule(aten._weight_norm_interface)
def _weight_norm(call: Call) -> list[Axes]:
    values, scales = call.axes(call.args[0]), call.axes(call.args[1])
    dim = call.get('dim', 2, 0) % len(values)
    for number, term in enumerate(values):
        if number != dim:
            span(term, 'weight_norm')
    for one, two in zip(values, scales):
        if two.size != 1:
            unify(one, two, call.reason('layout'))
    return [list(values), list(scales)]


@axis_rule(aten.glu)
def _glu(call: Call) -> Axes:
    axes = list(call.axes(call.args[0]))
    dim = call.get('dim', 1, -1)
    one, two = split_cat(axes[dim], axes[dim].size // 2)
    unify(one, two, call.reason('layout'))
    axes[dim] = one
    return axes


@axis_rule(aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_efficient_attention)
@axis_rule(aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_cudnn_attention)
@axis_rule(aten._scaled_dot_product_attention_math, aten._scaled_dot_product_attention_math_for_mps)
@axis_rule(aten._scaled_dot_product_fused_attention_overrideable)
def _attention(call: Call) -> list[Axes]:
    query, key, value = (call.axes(tensor) for tensor in call.args[:3])
    reason = call.reason('layout')
    for dim in (0, 1):
        unify(query[dim], key[dim], reason)
        unify(query[dim], value[dim], reason)
    unify(query[3], key[3], reason)
    unify(key[2], value[2], reason)
    mark(query[1], 'heads')
    mark(query[3], 'head_dim')
    mark(value[3], 'head_dim')
    span(key[2], 'softmax')
    span(query[3], 'scaled_dot_product_attention')
    for tensor in _tensors(call.args[3:]):
        for one, two in zip(call.axes(tensor)[::-1], [key[2], query[2], query[1], query[0]]):
            if one.size == two.size:
                unify(one, two, reason)
    found = _constants(call)
    found[0] = [query[0], query[1], query[2], value[3]]
    return found


# -- pixels ------------------------------------------------------------------------------------


@axis_rule(
    aten.avg_pool1d, aten.adaptive_avg_pool1d, aten.upsample_nearest1d, aten.upsample_linear1d, aten._upsample_nearest_exact1d
)
@axis_rule(aten.adaptive_max_pool1d, aten.max_pool1d_with_indices)
def _pool1d(call: Call) -> Any:
    return _pool(call, 1)


@axis_rule(aten.avg_pool2d, aten.max_pool2d_with_indices, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d, aten.max_pool2d)
@axis_rule(aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten._upsample_nearest_exact2d)
@axis_rule(aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, aten.fractional_max_pool2d, aten.adaptive_avg_pool2d)
@axis_rule(aten.mkldnn_max_pool2d, aten.mkldnn_adaptive_avg_pool2d, aten._upsample_lanczos2d_aa)
def _pool2d(call: Call) -> Any:
    return _pool(call, 2)


@axis_rule(aten.avg_pool3d, aten.max_pool3d_with_indices, aten._adaptive_avg_pool3d, aten.adaptive_max_pool3d)
@axis_rule(aten.upsample_nearest3d, aten.upsample_trilinear3d, aten._upsample_nearest_exact3d)
def _pool3d(call: Call) -> Any:
    return _pool(call, 3)


def _pool(call: Call, spatial: int) -> Any:
    axes = call.axes(call.args[0])
    lead = len(axes) - spatial
    out = call.out if isinstance(call.out, torch.Tensor) else call.out[0]
    result = [*axes[:lead], *_pixels(call, axes[lead:], out.shape[lead:])]
    return result if isinstance(call.out, torch.Tensor) else [list(result) for _ in call.out]


@axis_rule(aten.max_unpool2d, aten.max_unpool3d)
def _max_unpool(call: Call) -> Axes:
    image, indices = call.axes(call.args[0]), call.axes(call.args[1])
    for one, two in zip(image, indices):
        unify(one, two, call.reason('layout'))
    return _pool(call, 2 if call.name == 'max_unpool2d' else 3)


@axis_rule(aten.grid_sampler_2d, aten.grid_sampler_3d, aten.grid_sampler, aten.cudnn_grid_sampler)
def _grid_sampler(call: Call) -> Axes:
    image, grid = call.axes(call.args[0]), call.axes(call.args[1])
    unify(image[0], grid[0], call.reason('layout'))
    for term in (*image[2:], *grid[1:]):
        call.freeze(term, 'position')
    return [image[0], image[1], *grid[1:-1]]


@axis_rule(aten.pixel_shuffle)
def _pixel_shuffle(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    channels, height, width = axes[-3:]
    try:
        channel, inner = split_prod(channels, channels.size // call.args[1] ** 2)
        call.freeze(inner, 'position')
    except Incompatible:
        call.freeze(channels, 'layout')
        channel = call.fresh(call.out.shape[-3], 'layout')
    return [*axes[:-3], channel, *_pixels(call, [height, width], call.out.shape[-2:])]


@axis_rule(aten.pixel_unshuffle)
def _pixel_unshuffle(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    channels, height, width = axes[-3:]
    inner = call.fresh(call.args[1] ** 2, 'position')
    return [*axes[:-3], product([resolve(channels), inner]), *_pixels(call, [height, width], call.out.shape[-2:])]


@axis_rule(aten.native_channel_shuffle, aten.channel_shuffle)
def _channel_shuffle(call: Call) -> Axes:
    axes = list(call.axes(call.args[0]))
    try:
        group, inner = split_prod(axes[1], call.args[1])
        axes[1] = product([inner, group])
    except Incompatible:
        call.freeze(axes[1], 'layout')
    return axes


@axis_rule(aten.im2col)
def _im2col(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    lead = len(axes) - 3
    for term in axes[lead + 1 :]:
        call.freeze(term, 'position')
    inner = call.fresh(call.out.shape[lead] // axes[lead].size, 'kernel')
    return [*axes[:lead], product([resolve(axes[lead]), inner]), call.fresh(call.out.shape[-1], 'position')]


@axis_rule(aten.col2im)
def _col2im(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    lead = len(axes) - 2
    call.freeze(axes[-1], 'position')
    try:
        channel, inner = split_prod(axes[lead], call.out.shape[lead])
        call.freeze(inner, 'kernel')
    except Incompatible:
        call.freeze(axes[lead], 'layout')
        channel = call.fresh(call.out.shape[lead], 'layout')
    return [*axes[:lead], channel, *(call.fresh(size, 'position') for size in call.out.shape[lead + 1 :])]


@axis_rule(aten._fft_r2c, aten._fft_c2r, aten._fft_c2c)
def _fft(call: Call) -> Axes:
    axes = list(call.axes(call.args[0]))
    for dim in call.args[1]:
        call.freeze(axes[dim], 'position')
        axes[dim] = call.fresh(call.out.shape[dim], 'position')
    return axes


@axis_rule(aten._cdist_forward, aten._euclidean_dist)
def _cdist(call: Call) -> Axes:
    one, two = call.axes(call.args[0]), call.axes(call.args[1])
    unify(one[-1], two[-1], call.reason('layout'))
    span(one[-1], 'cdist')
    return [*_broadcast_axes(call, [one[:-2], two[:-2]]), one[-2], two[-2]]


# -- custom operators ----------------------------------------------------------------------------


@axis_rule('torchvision.roi_align', 'torchvision.roi_pool')
def _roi_pool(call: Call) -> Any:
    axes = call.axes(call.args[0])
    for term in axes[2:]:
        call.freeze(term, 'position')
    result = [
        [call.fresh(tensor.shape[0], 'index'), axes[1], *(call.fresh(size, 'position') for size in tensor.shape[2:])]
        for tensor in _tensors([call.out])
    ]
    return result[0] if isinstance(call.out, torch.Tensor) else result


@axis_rule('torchvision.nms')
def _nms(call: Call) -> Axes:
    return _constants(call, 'index')


@axis_rule('torchvision.deform_conv2d')
def _deform_conv2d(call: Call) -> Axes:
    image, weight = call.axes(call.args[0]), call.axes(call.args[1])
    groups = weight[1].size and image[1].size // weight[1].size
    for tensor in _tensors(call.args[2:4]):
        for term in call.axes(tensor)[1:]:
            call.freeze(term, 'position')
    if groups == 1:
        unify(image[1], weight[1], call.reason('layout'))
    else:
        for term in (image[1], weight[0], weight[1]):
            call.freeze(term, 'layout')
    offset_groups = call.args[12] if len(call.args) > 12 and isinstance(call.args[12], int) else 1
    if offset_groups > 1:
        call.freeze(image[1], 'layout')
    for term in weight[2:]:
        call.freeze(term, 'kernel')
    for tensor in _tensors(call.args[4:5]):
        unify(call.axes(tensor)[0], weight[0], call.reason('layout'))
    return [image[0], weight[0], *_pixels(call, image[2:], call.out.shape[2:])]


__all__ = ['pointwise', 'reshaped', 'strided', 'unknown']
