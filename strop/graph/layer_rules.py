"""What layers say about axes: convolutions, products, norms, attention, pixels, and custom operators of other packages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strop.graph.elementwise_rules import Axes, broadcast_axes, constants, tensors_in, unknown
from strop.graph.inference import Call, axis_rule
from strop.graph.terms import ONE, Incompatible, Term, is_constant, mark, product, resolve, span, split_cat, split_prod, unify

aten = torch.ops.aten


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
    for tensor in tensors_in(call.args[2:4]):
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
    for tensor in tensors_in(call.args[1:5]):
        unify(call.axes(tensor)[0], axes[1], call.reason('layout'))
    if trained:
        for number, term in enumerate(axes):
            if number != 1:
                span(term, 'batch_norm')
    outs = [list(axes)]
    for tensor in tensors_in([call.out])[1:]:
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
    for tensor in tensors_in(call.args[3:]):
        for one, two in zip(call.axes(tensor)[::-1], [key[2], query[2], query[1], query[0]]):
            if one.size == two.size:
                unify(one, two, reason)
    found = constants(call)
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


@axis_rule(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d)
@axis_rule(aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d, aten._pad_circular)
def _pad_pixels(call: Call) -> Axes:
    return _leading(call, len(call.args[1]) // 2)


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
    return [*broadcast_axes(call, [one[:-2], two[:-2]]), one[-2], two[-2]]


# -- custom operators ----------------------------------------------------------------------------


@axis_rule('torchvision.roi_align', 'torchvision.roi_pool', 'mmcv.RoIAlignFunction', 'mmcv.RoIPoolFunction')
def _roi_pool(call: Call) -> Any:
    axes = call.axes(call.args[0])
    for term in axes[2:]:
        call.freeze(term, 'position')
    result = [
        [call.fresh(tensor.shape[0], 'index'), axes[1], *(call.fresh(size, 'position') for size in tensor.shape[2:])]
        for tensor in tensors_in([call.out])
    ]
    return result[0] if isinstance(call.out, torch.Tensor) else result


@axis_rule('torchvision.nms', 'mmcv.NMSop', 'mmcv.SoftNMSop')
def _nms(call: Call) -> Axes:
    return constants(call, 'index')


@axis_rule('torchvision.deform_conv2d')
def _deform_conv2d(call: Call) -> Axes:
    image, weight = call.axes(call.args[0]), call.axes(call.args[1])
    groups = weight[1].size and image[1].size // weight[1].size
    for tensor in tensors_in(call.args[2:4]):
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
    for tensor in tensors_in(call.args[4:5]):
        unify(call.axes(tensor)[0], weight[0], call.reason('layout'))
    return [image[0], weight[0], *_pixels(call, image[2:], call.out.shape[2:])]
