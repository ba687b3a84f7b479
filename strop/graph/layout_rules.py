"""What operators that move values say about axes: views, joining and splitting, padding, indexing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strop.graph.elementwise_rules import Axes, broadcast, constants, tensors_in, unknown
from strop.graph.inference import Call, axis_rule
from strop.graph.terms import (
    ONE,
    Incompatible,
    Term,
    concatenation,
    is_constant,
    product,
    resolve,
    split_cat,
    split_prod,
    unify,
)

aten = torch.ops.aten


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


@axis_rule(aten.triu, aten.tril, aten.triu_, aten.tril_)
def _triangle(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    for term in axes[-2:]:
        call.freeze(term, 'position')
    return list(axes)


@axis_rule(aten.diagonal, aten.diagonal_copy)
def _diagonal(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    met = {call.get('dim1', 2, 0) % len(axes), call.get('dim2', 3, 1) % len(axes)}
    for dim in met:
        call.freeze(axes[dim], 'position')
    return [*(term for dim, term in enumerate(axes) if dim not in met), call.fresh(call.out.shape[-1], 'position')]


@axis_rule(aten.diag_embed)
def _diag_embed(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    call.freeze(axes[-1], 'position')
    result = list(axes[:-1])
    for dim in sorted((call.get('dim1', 2, -2) % call.out.dim(), call.get('dim2', 3, -1) % call.out.dim())):
        result.insert(dim, call.fresh(call.out.shape[dim], 'position'))
    return result


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
        width = index.dim() if index.dtype in _MASKS else 1
        for place in range(dim, dim + width):
            call.freeze(axes[place], 'index')
            taken.append(place)
        dim += width
        shapes.append(index)
    rest = [term for place, term in enumerate(axes) if place not in taken]
    together = taken == list(range(taken[0], taken[-1] + 1)) if taken else True
    start = taken[0] if taken and together else 0
    if 'put' in call.name:
        _put(call, rest, start, max((1 if index.dtype in _MASKS else index.dim() for index in shapes), default=0))
        return list(axes)
    if any(index.dtype in _MASKS for index in shapes):
        lead = call.out.dim() - (len(axes) - len(taken))
        inner: Axes = [call.fresh(size, 'index') for size in call.out.shape[:lead]]
        if taken and taken[0] != 0:
            start = taken[0] if taken == list(range(taken[0], taken[-1] + 1)) else 0
            inner = [call.fresh(size, 'index') for size in call.out.shape[start : start + lead]]
    else:
        inner = broadcast(call, shapes)
    return [*rest[:start], *inner, *rest[start:]]


_MASKS = (torch.bool, torch.uint8)


def _put(call: Call, rest: Axes, start: int, chosen: int) -> None:
    """Unify axes of the values that are put with those axes of the tensor that are put into whole.

    Args:
        call: The call.
        rest: The axes of the tensor that have no index.
        start: The values have the axes of the chosen positions after so many of them.
        chosen: Number of these axes.
    """
    places: list[Term | None] = [*rest[:start], *[None] * chosen, *rest[start:]]
    for tensor in tensors_in(call.args[2:3]):
        for number, term in enumerate(reversed(call.axes(tensor)), start=1):
            target = places[-number] if number <= len(places) else None
            if target is None:
                call.freeze(term, 'index')
            elif term.size != 1:
                unify(target, term, call.reason('layout'))


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
    found = constants(call, 'index')
    found[0][1] = columns
    return found


@axis_rule(aten.gather, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_, aten.scatter_reduce, aten.index_add)
@axis_rule(aten.index_add_, aten.index_copy, aten.index_copy_, aten.index_fill, aten.index_fill_, aten.take_along_dim)
def _gather(call: Call) -> Axes:
    axes = call.axes(call.args[0])
    dim = call.args[1] % max(len(axes), 1)
    others = [tensor for tensor in tensors_in(call.args[2:]) if tensor.dim() == len(axes)]
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
