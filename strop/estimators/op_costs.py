"""What one operator costs: the table of multiply-adds (MACs) for each ATen operator.

1 MAC = 1 multiply-add. Matrix products, convolutions and attention are counted; norms, activations, pooling,
resizing and other elementwise work count 0. The formulas are those of `torch.utils.flop_counter` (halved, as it
counts two FLOPs a multiply-add); `macs_of` adds to them or replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import flop_registry

from strop.errors import ConfigError, EstimateError

Rule = Callable[..., int]
_Rule = TypeVar('_Rule', bound=Rule)

aten = torch.ops.aten

_RULES: dict[str, Rule] = {}

# Work that is not made of products that are summed: 0 on purpose, and so never listed as uncounted.
_FREE_NAMES = """
    native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    _batch_norm_with_update batch_norm_elemt native_layer_norm native_group_norm _fused_rms_norm _weight_norm_interface
    linalg_vector_norm embedding _embedding_bag _embedding_bag_forward_only cat stack index index_select gather repeat
    constant_pad_nd pad roll flip slice_scatter _prelu_kernel prelu rrelu_with_noise clone copy_ copy _to_copy contiguous
    _unsafe_view unsafe_split unsafe_chunk lift_fresh detach_ resize_ sum mean amax amin max min var var_mean std std_mean
    argmax argmin cumsum _softmax _log_softmax upsample_nearest2d upsample_bilinear2d upsample_bicubic2d im2col
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa unfold_copy grid_sampler_2d _unsafe_index sort topk where masked_fill
    tril triu diagonal_copy is_same_size _local_scalar_dense equal any all nonzero zero_ fill_ _pack_padded_sequence
"""
_FREE = frozenset(f'aten.{name}' for name in _FREE_NAMES.split())

# Heavy work that takes no parameter and that the table cannot price.
_HEAVY = ('aten._fft_', 'aten.linalg_', 'aten._linalg_', 'aten._cdist', 'aten._euclidean_dist', 'aten.cholesky', 'aten._flex')


def operator_name(operator: Any) -> str:
    """Return `'namespace.name'` of an operator, an overload of it, or a text that names one.

    >>> operator_name(torch.ops.aten.mm.default), operator_name('torchvision::nms')
    ('aten.mm', 'torchvision.nms')
    """
    if isinstance(operator, str):
        return operator.replace('::', '.')
    packet = getattr(operator, '_overloadpacket', operator)
    return str(packet).replace('::', '.')


def _as_priced(operator: Any) -> tuple[str, Any]:
    """Return name and packet of the operator whose cost is known: that of `baddbmm_`, in place, is `baddbmm`'s."""
    name, packet = operator_name(operator), getattr(operator, '_overloadpacket', operator)
    if name.startswith('aten.') and name.endswith('_') and name not in _RULES and packet not in flop_registry:
        plain = name.removesuffix('_')
        return plain, getattr(aten, plain.removeprefix('aten.'), packet)
    return name, packet


def macs_of(*operators: Any) -> Callable[[_Rule], _Rule]:
    """Register how many multiply-adds an operator does; a later rule replaces an earlier one and torch's own.

    The rule is called as `rule(out, *args, **kwargs)` with what the operator returned and received; its tensors
    have shapes but no values.

    Args:
        operators: `torch.ops.aten.name`, an overload of it, or `'namespace::name'` for one that may not be loaded.

    Raises:
        ConfigError: If something that names no operator is given.

    >>> @macs_of('mylib::scaled_dot')
    ... def scaled_dot(out, left, right, scale):
    ...     return left.numel()
    """
    for operator in operators:
        name = operator_name(operator)
        if '.' not in name or ' ' in name:
            raise ConfigError(
                f'`macs_of` needs operators such as torch.ops.aten.mm or the text "namespace::name", but got {operator!r}.'
            )

    def register(rule: _Rule) -> _Rule:
        for operator in operators:
            _RULES[operator_name(operator)] = rule
        return rule

    return register


def has_rule(operator: Any) -> bool:
    """Tell whether the multiply-adds of an operator are known.

    >>> has_rule(torch.ops.aten.mm), has_rule(torch.ops.aten.relu)
    (True, False)
    """
    name, packet = _as_priced(operator)
    return name in _RULES or packet in flop_registry


def priced_whole(operator: Any) -> bool:
    """Tell whether an operator has a rule from `macs_of`, so that it is not split into the ones it is made of."""
    name, _ = _as_priced(operator)
    return name in _RULES and name != 'aten.linear'


def macs(operator: Any, out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the multiply-adds of one call; 0 for an operator without a rule.

    Raises:
        EstimateError: If the rule of the operator fails on these arguments.

    >>> left, right = torch.empty(2, 3), torch.empty(3, 5)
    >>> macs(torch.ops.aten.mm, left @ right, (left, right), {})
    30
    """
    name, packet = _as_priced(operator)
    rule = _RULES.get(name)
    try:
        if rule is not None:
            return int(rule(out, *args, **kwargs))
        formula = flop_registry.get(packet)
        return 0 if formula is None else int(formula(*args, **kwargs, out_val=out)) // 2
    except Exception as error:
        raise EstimateError(f'The rule for the multiply-adds of {name} failed: {type(error).__name__}: {error}') from error


def is_uncounted(operator: Any, takes_parameters: bool) -> bool:
    """Tell whether a call of this operator should be reported as work that is not in the count.

    That is one without a rule which takes a parameter and is neither elementwise, a view nor a norm; or one from
    outside ATen; or a transform or decomposition that the table cannot price.
    """
    name = operator_name(operator)
    if has_rule(operator) or name in _FREE or name.startswith('prim'):
        return False
    if not name.startswith('aten.') or name.startswith(_HEAVY):
        return True
    tags = getattr(operator, 'tags', ())
    if torch.Tag.pointwise in tags or getattr(operator, 'is_view', False):
        return False
    return takes_parameters


# -- operators that torch's table leaves out ------------------------------------------------------------


@macs_of(aten.linear)
def _linear(out: torch.Tensor, tensor: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> int:
    return tensor.numel() * weight.shape[0]


@macs_of(aten.mv)
def _mv(out: torch.Tensor, matrix: torch.Tensor, vector: torch.Tensor) -> int:
    return matrix.numel()


@macs_of(aten.addmv)
def _addmv(out: torch.Tensor, addend: torch.Tensor, matrix: torch.Tensor, vector: torch.Tensor, **kwargs: Any) -> int:
    return matrix.numel()


@macs_of(aten.dot, aten.vdot)
def _dot(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> int:
    return left.numel()


@macs_of(aten.addbmm)
def _addbmm(out: torch.Tensor, addend: torch.Tensor, left: torch.Tensor, right: torch.Tensor, **kwargs: Any) -> int:
    return left.numel() * right.shape[-1]


@macs_of(aten._int_mm)
def _int_mm(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> int:
    return left.numel() * right.shape[-1]


@macs_of(aten._trilinear)
def _trilinear(out: torch.Tensor, left: torch.Tensor, weight: torch.Tensor, right: torch.Tensor, *args: Any) -> int:
    # nn.Bilinear: left (N, I), weight (O, I, J), right (N, J); first over I, then over J.
    outputs = weight.shape[0]
    return out.numel() // outputs * (weight.numel() + outputs * weight.shape[2])


@macs_of(aten.mkldnn_rnn_layer)
def _mkldnn_rnn(out: Any, tensor: torch.Tensor, w_input: torch.Tensor, w_hidden: torch.Tensor, *args: Any) -> int:
    return tensor.shape[0] * tensor.shape[1] * (w_input.numel() + w_hidden.numel())


@macs_of(aten._cudnn_rnn)
def _cudnn_rnn(out: Any, tensor: torch.Tensor, weights: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> int:
    # Every matrix is used once for each token; `tensor` is (T, B, I), (B, T, I), or (tokens, I) when packed.
    return prod(tensor.shape[:-1]) * sum(weight.numel() for weight in weights if weight.dim() == 2)


@macs_of('torchvision::deform_conv2d')
def _deform_conv2d(out: torch.Tensor, tensor: torch.Tensor, weight: torch.Tensor, *args: Any) -> int:
    return out.numel() * prod(weight.shape[1:])
