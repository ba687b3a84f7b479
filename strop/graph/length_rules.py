"""What Python's calls say about lengths: `reshape(B, N, C)` demands that an axis is as long as `C`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from strop.graph.inference import Lengths, length_rule
from strop.graph.sizes import LengthOf, Size
from strop.graph.terms import Incompatible, Term, span, split_cat, split_prod

T = torch.Tensor


def _flat(values: Any) -> list[Any]:
    """Return sizes given as `f(a, b)` or `f((a, b))`."""
    if len(values) == 1 and isinstance(values[0], (tuple, list)):
        return list(values[0])
    return list(values)


def _given(args: Any, kwargs: Any, place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _shape(lengths: Lengths, out: torch.Tensor, sizes: Any) -> None:
    terms = lengths.axes(out)
    if len(sizes) != len(terms):
        return
    for size, term in zip(sizes, terms):
        number = size if isinstance(size, int) else int(size)  # an int of NumPy, or a tensor
        if int(number) == term.size:
            lengths.demand(number, term)


@length_rule(T.view, T.reshape, torch.reshape)
def _view(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    sizes = kwargs.get('shape', kwargs.get('size'))
    sizes = _flat(args[1:]) if sizes is None else list(sizes)
    if sizes and not isinstance(sizes[0], torch.dtype):
        _shape(lengths, out, sizes)


@length_rule(T.view_as, T.reshape_as, T.expand_as)
def _like(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    for one, two in zip(lengths.axes(out), lengths.axes(_given(args, kwargs, 1, 'other'))):
        lengths.same(one, two)


@length_rule(T.expand, torch.broadcast_to, T.broadcast_to)
def _expand(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    sizes = kwargs.get('size')
    _shape(lengths, out, _flat(args[1:]) if sizes is None else list(sizes))


@length_rule(T.repeat, T.tile, torch.tile)
def _repeat(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    times = kwargs.get('repeats', kwargs.get('dims'))
    times = _flat(args[1:]) if times is None else list(times)
    for count, term in zip(times[::-1], lengths.axes(out)[::-1]):
        if isinstance(count, int) and int(count) > 1:
            _outer(lengths, count, term)


def _outer(lengths: Lengths, count: Any, term: Term) -> None:
    try:
        lengths.demand(count, split_prod(term, int(count))[0])
    except Incompatible:
        lengths.demand(term.size, term)


@length_rule(T.repeat_interleave, torch.repeat_interleave)
def _repeat_interleave(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    count = _given(args, kwargs, 1, 'repeats')
    if isinstance(count, int) and int(count) > 1:
        dim = _given(args, kwargs, 2, 'dim')
        for term in lengths.axes(out) if dim is None else [lengths.axes(out)[dim]]:
            try:
                lengths.demand(count, split_prod(term, term.size // int(count))[1])
            except Incompatible:
                lengths.demand(term.size, term)


@length_rule(T.unflatten, torch.unflatten)
def _unflatten(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    dim, sizes = _given(args, kwargs, 1, 'dim'), _given(args, kwargs, 2, 'sizes')
    terms = lengths.axes(out)
    if isinstance(dim, int):
        before = len(terms) - len(sizes) + 1
        for size, term in zip(sizes, terms[dim % before :]):
            if int(size) == term.size:
                lengths.demand(size, term)


@length_rule(T.split, torch.split, T.split_with_sizes, torch.split_with_sizes, T.unsafe_split, torch.functional.split)
def _split(lengths: Lengths, out: Any, args: Any, kwargs: Any) -> None:
    sizes = _given(args, kwargs, 1, 'split_size', kwargs.get('split_size_or_sections', kwargs.get('split_sizes')))
    dim = _given(args, kwargs, 2, 'dim', 0)
    if isinstance(sizes, int):
        whole = [piece for piece in out if piece.shape[dim] == int(sizes)]
        for piece in whole:
            lengths.demand(sizes, lengths.axes(piece)[dim])
    else:
        for size, piece in zip(sizes, out):
            lengths.demand(size, lengths.axes(piece)[dim])


@length_rule(T.chunk, torch.chunk, T.unsafe_chunk, torch.unsafe_chunk)
def _chunk(lengths: Lengths, out: Any, args: Any, kwargs: Any) -> None:
    """Every piece has `ceil(length / chunks)` positions, the last one what is left."""
    dim, count = _given(args, kwargs, 2, 'dim', 0), len(out)
    whole = Size(args[0].shape[dim], LengthOf(lengths.axes(args[0])[dim]))
    for piece in out[:-1]:
        lengths.demand((whole + (count - 1)) // count, lengths.axes(piece)[dim])


@length_rule(T.tensor_split, torch.tensor_split)
def _tensor_split(lengths: Lengths, out: Any, args: Any, kwargs: Any) -> None:
    """Pieces of one length, the first ones longer by one, or those between indices."""
    where = _given(args, kwargs, 1, 'indices_or_sections', kwargs.get('indices', kwargs.get('sections')))
    dim = _given(args, kwargs, 2, 'dim', 0)
    whole = lengths.axes(args[0])[dim]
    where = where.tolist() if isinstance(where, torch.Tensor) else where
    if not isinstance(where, int):
        for index in where:
            _piece(lengths, whole, None, index)
        return
    size = Size(args[0].shape[dim], LengthOf(whole))
    for number, piece in enumerate(out):
        lengths.demand((size + (len(out) - 1 - number)) // len(out), lengths.axes(piece)[dim])


@length_rule(T.vsplit, torch.vsplit)
def _vsplit(lengths: Lengths, out: Any, args: Any, kwargs: Any) -> None:
    _tensor_split(lengths, out, args[:2], {**kwargs, 'dim': 0})


@length_rule(T.hsplit, torch.hsplit)
def _hsplit(lengths: Lengths, out: Any, args: Any, kwargs: Any) -> None:
    _tensor_split(lengths, out, args[:2], {**kwargs, 'dim': min(1, args[0].dim() - 1)})


@length_rule(T.dsplit, torch.dsplit)
def _dsplit(lengths: Lengths, out: Any, args: Any, kwargs: Any) -> None:
    _tensor_split(lengths, out, args[:2], {**kwargs, 'dim': 2})


@length_rule(T.narrow, torch.narrow)
def _narrow(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    dim, start, size = (_given(args, kwargs, place, name) for place, name in ((1, 'dim'), (2, 'start'), (3, 'length')))
    lengths.demand(size, lengths.axes(out)[dim])
    if isinstance(start, int) and int(start) > 0:
        lengths.demand(start, split_cat(lengths.axes(args[0])[dim], int(start))[0])


@length_rule(T.__getitem__, T.__setitem__)
def _getitem(lengths: Lengths, out: Any, args: Any, kwargs: Any) -> None:
    keys = args[1] if isinstance(args[1], tuple) else (args[1],)
    terms = lengths.axes(args[0])
    used = sum(_axes_of(key) for key in keys if key is not None and key is not Ellipsis)
    dim = 0
    for key in keys:
        if key is None:
            continue
        if key is Ellipsis:
            dim += len(terms) - used
            continue
        if isinstance(key, slice) and dim < len(terms):
            _piece(lengths, terms[dim], key.start, key.stop, key.step)
        dim += _axes_of(key)


def _axes_of(key: Any) -> int:
    """Return how many axes an index takes: a mask as many as it has."""
    return key.dim() if isinstance(key, torch.Tensor) and key.dtype in (torch.bool, torch.uint8) else 1


def _piece(lengths: Lengths, term: Term, start: Any, stop: Any, step: Any = None) -> None:
    """Note what a slice demands: each part that it cuts off, counted from the side that the code counts from."""
    size = term.size
    if not all(bound is None or isinstance(bound, int) for bound in (start, stop)):
        return
    first = 0 if start is None else min(max(int(start) + (size if start < 0 else 0), 0), size)
    last = size if stop is None else min(max(int(stop) + (size if stop < 0 else 0), first), size)
    step = int(step or 1)
    if step > 1 and first < step and last > size - step + first and size % step == 0:
        return  # one position of each group of `step`
    if 0 < first < size:
        before, after = split_cat(term, first)
        lengths.demand(*((start, before) if int(start) >= 0 else (-start, after)))
    if 0 < last < size:
        before, after = split_cat(term, last)
        lengths.demand(*((stop, before) if int(stop) >= 0 else (-stop, after)))


@length_rule(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, T.new_zeros, T.new_ones, T.new_empty)
def _made(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    rest = args[1:] if args and isinstance(args[0], torch.Tensor) else args
    sizes = kwargs.get('size')
    _shape(lengths, out, _flat(rest) if sizes is None else list(sizes))


@length_rule(torch.full, T.new_full)
def _full(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    rest = args[1:] if args and isinstance(args[0], torch.Tensor) else args
    sizes = rest[0] if rest else kwargs.get('size')
    _shape(lengths, out, list(sizes))


@length_rule(torch.arange, torch.eye, torch.randperm)
def _counted(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    if args and len(args) <= 2 and all(isinstance(value, int) for value in args):
        end = args[0] if len(args) == 1 else args[1] - args[0]
        for term in lengths.axes(out):
            if int(end) == term.size:
                lengths.demand(end, term)


@length_rule(F.pad, torch.constant_pad_nd, torch._C._nn.pad)
def _pad(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    widths = _given(args, kwargs, 1, 'pad')
    terms, before = lengths.axes(out), lengths.axes(_given(args, kwargs, 0, 'input'))
    for number in range(len(widths) // 2):
        term, whole = terms[len(terms) - 1 - number], before[len(terms) - 1 - number]
        left, right = widths[2 * number], widths[2 * number + 1]
        # Negative widths cut off.
        if int(left) < 0:
            lengths.demand(-left, split_cat(whole, -int(left))[0])
        if int(right) < 0:
            lengths.demand(-right, split_cat(whole, whole.size + int(right))[1])
        if int(left) > 0:
            lengths.demand(left, split_cat(term, int(left))[0])
        if int(right) > 0:
            lengths.demand(right, split_cat(term, term.size - int(right))[1])


@length_rule(torch.conv1d, torch.conv2d, torch.conv3d)
def _conv(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    _conv_groups(lengths, args, kwargs, 6)


@length_rule(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def _conv_transpose(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    _conv_groups(lengths, args, kwargs, 6)


def _conv_groups(lengths: Lengths, args: Any, kwargs: Any, place: int) -> None:
    groups = _given(args, kwargs, place, 'groups', 1)
    image, weight = _given(args, kwargs, 0, 'input'), _given(args, kwargs, 1, 'weight')
    if isinstance(groups, int) and int(groups) > 1:
        _outer(lengths, groups, lengths.axes(image)[-(weight.dim() - 1)])


@length_rule(F.group_norm, torch.group_norm)
def _group_norm(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    groups = _given(args, kwargs, 1, 'num_groups')
    if int(groups) > 1:
        _outer(lengths, groups, lengths.axes(args[0] if args else kwargs['input'])[1])


@length_rule(F.scaled_dot_product_attention)
def _attention(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    if kwargs.get('scale') is None:
        # The scale is computed from the head's width while it runs: what is left of a cut head is scaled anew.
        span(lengths.axes(_given(args, kwargs, 0, 'query'))[-1], 'scaled_dot_product_attention')


@length_rule(torch.channel_shuffle, torch.native_channel_shuffle)
def _channel_shuffle(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    _outer(lengths, _given(args, kwargs, 1, 'groups'), lengths.axes(args[0])[1])


@length_rule(torch.layer_norm, torch.rms_norm)
def _layer_norm(lengths: Lengths, out: torch.Tensor, args: Any, kwargs: Any) -> None:
    shape = _given(args, kwargs, 1, 'normalized_shape')
    for size, term in zip(list(shape)[::-1], lengths.axes(out)[::-1]):
        lengths.demand(size, term)
