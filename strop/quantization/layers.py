"""The layers of a captured graph by name, and which of their tensors are integers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from strop.errors import ConfigError, listed, near
from strop.quantization.parameters import attribute, is_parameter
from strop.quantization.patterns import matched, patterns_of

aten = torch.ops.aten

#: Ops whose cost is multiplications: what quantization is for.
HEAVY: Mapping[Any, str] = {
    aten.conv1d.default: 'conv1d',
    aten.conv2d.default: 'conv2d',
    aten.conv2d.padding: 'conv2d',
    aten.conv1d.padding: 'conv1d',
    aten.conv3d.default: 'conv3d',
    aten.conv3d.padding: 'conv3d',
    aten.conv_transpose2d.input: 'conv_transpose2d',
    aten.conv_transpose1d.default: 'conv_transpose1d',
    aten.conv_transpose3d.input: 'conv_transpose3d',
    aten.convolution.default: 'convolution',
    aten.linear.default: 'linear',
    aten.addmm.default: 'linear',
    aten.mm.default: 'matmul',
    aten.bmm.default: 'matmul',
    aten.matmul.default: 'matmul',
    aten.scaled_dot_product_attention.default: 'attention',
}

_NAME = 'strop_layer'


@dataclass(frozen=True)
class LayerRecord:
    """One layer after quantization.

    Args:
        name: The path of its module; for a matrix product, the module that computes it and the op.
        kind: `'conv2d'`, `'linear'`, `'matmul'`, ...
        weight_bits: Bits of its weight; 32 if it stayed float, 0 if it has none.
        input_bits: Bits of its inputs; 32 if they stayed float.
        scales: Number of scales of the weight: 1, or one for each output channel.
        weight_scale: The smallest and the largest of them.
        input_scale: Scale of the first input.
        input_zero_point: Zero point of the first input.
        sqnr_db: Signal to noise ratio of its output in the quantized model, in dB; None if it was not measured.
        reason: Why it stayed float; empty if it is quantized.
    """

    name: str
    kind: str
    weight_bits: int
    input_bits: int
    scales: int = 0
    weight_scale: tuple[float, float] | None = None
    input_scale: float | None = None
    input_zero_point: int | None = None
    sqnr_db: float | None = None
    reason: str = ''

    @property
    def quantized(self) -> bool:
        """Whether it computes with integers."""
        return self.input_bits < 32 and self.weight_bits < 32


def name_layers(graph: GraphModule) -> None:
    """Give each op of a captured graph the name of its layer, which later passes keep."""
    taken: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op != 'call_function':
            continue
        stack = list((node.meta.get('nn_module_stack') or {}).values())
        path = re.sub(r'@\d+', '', stack[-1][0]) if stack else ''
        path = path.removeprefix('L__self__').lstrip('.')
        word = HEAVY.get(node.target) or getattr(node.target, '_opname', str(node.target)).strip('_')
        weighty = node.target in HEAVY and len(node.args) > 1 and is_parameter(node.args[1])
        name = path if weighty and path else f'{path}:{word}'
        count = taken.get(name, 0)
        taken[name] = count + 1
        node.meta[_NAME] = name if not count else f'{name}:{count + 1}' if weighty else f'{name}_{count + 1}'


def rename_layers(graph: GraphModule, names: Mapping[str, str]) -> None:
    """Give the layers inside some modules other names.

    Args:
        graph: A graph whose layers have names.
        names: Path of the module that computes a layer -> the name of the layer.
    """
    taken: dict[str, int] = {}
    for node in heavy_nodes(graph).values():
        name = names.get(layer_name(node).partition(':')[0], layer_name(node))
        taken[name] = taken.get(name, 0) + 1
        node.meta[_NAME] = name if taken[name] == 1 else f'{name}:{taken[name]}'


def layer_name(node: Node) -> str:
    """Return the name of an op's layer; that of the node itself if it has none."""
    return str(node.meta.get(_NAME, node.name))


def heavy_nodes(graph: GraphModule) -> dict[str, Node]:
    """Return layer name -> node of every layer that multiplies, in the order of computation."""
    return {layer_name(node): node for node in graph.graph.nodes if node.op == 'call_function' and node.target in HEAVY}


def matching(patterns: Iterable[str] | str, names: Iterable[str]) -> dict[str, str]:
    """Return name -> the pattern that it matches; a pattern also takes everything inside the module that it names.

    Raises:
        ConfigError: If a pattern matches nothing; the message has near matches.

    >>> matching(['blocks.0', '*head'], ['blocks.0.fc', 'blocks.1.fc', 'head'])
    {'blocks.0.fc': 'blocks.0', 'head': '*head'}
    """
    patterns, names = patterns_of('ignored', patterns), list(names)
    for pattern in patterns:
        if not any(matched(name, [pattern]) for name in names):
            raise ConfigError(
                f'The pattern {pattern!r} of layers to ignore matches none.{near(pattern, names)} There are {listed(names)}.'
            )
    found = {name: matched(name, patterns) for name in names}
    return {name: pattern for name, pattern in found.items() if pattern is not None}


# -- what a converted graph says about its layers ------------------------------------------------------------


def is_quantize(node: Any) -> bool:
    """Whether a node makes integers of floats."""
    return (
        isinstance(node, Node) and node.op == 'call_function' and _opname(node).startswith(('quantize_per', 'quantize_affine'))
    )


def is_dequantize(node: Any) -> bool:
    """Whether a node makes floats of integers."""
    return (
        isinstance(node, Node)
        and node.op == 'call_function'
        and _opname(node).startswith(('dequantize_per', 'dequantize_affine'))
    )


def _opname(node: Node) -> str:
    return str(getattr(node.target, '_opname', ''))


def records(
    graph: GraphModule,
    reasons: Mapping[str, str],
    sqnr: Mapping[str, float] | None = None,
    bits: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[LayerRecord, ...]:
    """Return a record of every layer that multiplies.

    Args:
        graph: A converted graph.
        reasons: Layer -> why it was left in float.
        sqnr: Layer -> signal to noise ratio of its output.
        bits: Layer -> bits of its weight and of its input, where their codes are fewer than those of the type.
    """
    sqnr, bits = sqnr or {}, bits or {}
    found = {name: _record(graph, name, node, reasons, sqnr.get(name)) for name, node in heavy_nodes(graph).items()}
    return tuple(
        replace(record, weight_bits=bits[name][0], input_bits=bits[name][1]) if name in bits else record
        for name, record in found.items()
    )


def _record(graph: GraphModule, name: str, node: Node, reasons: Mapping[str, str], sqnr: float | None) -> LayerRecord:
    inputs = [arg for arg in node.args[:3] if isinstance(arg, Node)]
    linear = HEAVY[node.target] not in ('matmul', 'attention')
    weighty = linear and len(node.args) > 1
    values = [inputs[0]] if linear else inputs[:2]
    quantized = all(is_dequantize(behind(value)) for value in values)
    if weighty:
        weight = behind(node.args[1])
        quantized = quantized and is_dequantize(weight)
    if not quantized:
        reason = reasons.get(name) or f"the backend's quantizer leaves this {HEAVY[node.target]} in float"
        return LayerRecord(name, HEAVY[node.target], 32 if weighty else 0, 32, sqnr_db=sqnr, reason=reason)
    first = behind(values[0])
    scale, zero = _qparams(graph, first)
    record: dict[str, Any] = {
        'input_bits': _bits(first),
        'input_scale': float(scale.flatten()[0]),
        'input_zero_point': int(zero.flatten()[0]),
        'weight_bits': 0,
    }
    if weighty:
        scales, _ = _qparams(graph, weight)
        record |= {
            'weight_bits': _bits(weight),
            'scales': scales.numel(),
            'weight_scale': (float(scales.min()), float(scales.max())),
        }
    return LayerRecord(name, HEAVY[node.target], sqnr_db=sqnr, **record)


def behind(value: Any) -> Any:
    """Return the op that made a value, behind those that only rearrange it."""
    while isinstance(value, Node) and value.op == 'call_function' and value.target in _VIEWS:
        value = value.args[0]
    return value


_VIEWS = {
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ('t', 'default'), ('transpose', 'int'), ('permute', 'default'), ('view', 'default'), ('reshape', 'default'),
        ('_unsafe_view', 'default'), ('contiguous', 'default'), ('clone', 'default'), ('unsqueeze', 'default'),
        ('squeeze', 'dim'), ('expand', 'default'), ('select', 'int'), ('slice', 'Tensor'), ('flatten', 'using_ints'),
    )
}  # fmt: skip


def transparent(node: Node) -> bool:
    """Whether an op only rearranges values."""
    return node.op == 'call_function' and node.target in _VIEWS


def _qparams(graph: GraphModule, node: Node) -> tuple[torch.Tensor, torch.Tensor]:
    values = []
    for argument in node.args[1:3]:
        value = attribute(graph, argument) if isinstance(argument, Node) else argument
        values.append(torch.as_tensor(value, dtype=torch.float64))
    return values[0], values[1]


def _bits(node: Node) -> int:
    """Return the bits of the levels between the two bounds of a dequantize op."""
    low, high = [argument for argument in node.args[3:] if isinstance(argument, int)][-2:]
    return int(high - low).bit_length()
