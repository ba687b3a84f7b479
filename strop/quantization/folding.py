r"""Batch norms folded into the layers before them, each where it is: layers may share their weights, norms may differ.

.. math:: W' = g W, \qquad b' = g (b - \mu) + \beta, \qquad g = \gamma / \sqrt{\sigma^2 + \epsilon}

torchao folds as well, into the one weight that the graph has: where a module is called twice it would be folded twice, and
whoever else reads the layer would read the folded one. So nothing is left for it to fold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from strop.quantization.parameters import add_parameter, attribute, is_parameter, read_parameter, replace_attribute

aten = torch.ops.aten

_CONVOLUTIONS = (
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default,
    aten.conv3d.padding,
)  # fmt: skip
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, aten.linear.default)


def fold_norms(graph: GraphModule) -> int:
    """Fold the batch norms of a captured graph into the layers that they follow; return how many were folded.

    A layer that something else reads as well keeps its norm, which computes in float, and so does one whose norm computes from
    the batch: it keeps no statistics, or its forward holds it in training mode. Copies of a weight that are folded alike
    stay one.

    Args:
        graph: A graph of the forward in eval mode, changed in place.
    """
    readers: dict[int, int] = {}
    for node in graph.graph.nodes:
        if is_parameter(node):
            key = id(attribute(graph, node))
            readers[key] = readers.get(key, 0) + len(node.users)
    known: dict[Any, tuple[str, str]] = {}
    count = 0
    for norm in [node for node in graph.graph.nodes if node.op == 'call_function' and node.target is aten.batch_norm.default]:
        layer = norm.args[0]
        if not isinstance(layer, Node) or layer.op != 'call_function' or layer.target not in _LAYERS:
            continue
        if not _foldable(layer, norm):
            _keep_apart(graph, layer, norm)
            continue
        _fold(graph, layer, norm, readers, known)
        count += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return count


def _foldable(layer: Node, norm: Node) -> bool:
    bias = layer.args[2] if len(layer.args) > 2 else None
    # Without running statistics, or in training mode, a norm computes from the batch.
    constant = not norm.args[5] and is_parameter(layer.args[1]) and (bias is None or is_parameter(bias))
    constant = constant and all(is_parameter(arg) for arg in norm.args[3:5])
    constant = constant and all(arg is None or is_parameter(arg) for arg in norm.args[1:3])
    value = layer.meta.get('val')
    # A linear layer gives its features in the last axis, a norm works on the second.
    same_axis = layer.target is not aten.linear.default or (isinstance(value, Tensor) and value.dim() == 2)
    return constant and same_axis and len(layer.users) == 1 and not layer.kwargs


def _keep_apart(graph: GraphModule, layer: Node, norm: Node) -> None:
    """Put an op that does nothing between them, so that nobody takes them for a pair to fold."""
    with graph.graph.inserting_before(norm):
        between = graph.graph.call_function(aten.alias.default, (layer,))
    between.meta = {'val': layer.meta.get('val'), 'source_fn_stack': [(between.name, between.target)]}
    norm.args = (between, *norm.args[1:])


def _fold(graph: GraphModule, layer: Node, norm: Node, readers: dict[int, int], known: dict[Any, tuple[str, str]]) -> None:
    weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    assert isinstance(weight, Node), 'only layers whose weight is a parameter are folded'
    read = (weight, bias, *norm.args[1:5])
    alike = (*(getattr(arg, 'target', None) for arg in read), norm.args[7], layer.target, *layer.args[6:7])
    if alike in known:
        folded = [read_parameter(graph, name, layer) for name in known[alike]]
    else:
        old, offset, gamma, beta, mean, variance = (_value(graph, arg) for arg in read)
        gain = torch.rsqrt(variance + norm.args[7])
        gain = gain if gamma is None else gain * gamma
        shift = (-mean if offset is None else offset - mean) * gain
        shift = shift if beta is None else shift + beta
        stem = str(weight.target).replace('.', '_')
        if readers[id(attribute(graph, weight))] == 1:
            replace_attribute(graph, weight, old * _spread(gain, old, layer))
            folded = [weight]
        else:
            folded = [add_parameter(graph, f'{stem}_folded', old * _spread(gain, old, layer), layer)]
        folded.append(add_parameter(graph, f'{stem}_bias', shift, layer))
        known[alike] = (str(folded[0].target), str(folded[1].target))
    layer.args = (layer.args[0], *folded, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)


def _value(graph: GraphModule, argument: Any) -> Any:
    return None if argument is None else attribute(graph, argument).detach()


def _spread(gain: Tensor, weight: Tensor, layer: Node) -> Tensor:
    """Return one factor for each output channel in the shape that multiplies a weight."""
    ones = [1] * (weight.dim() - 2)
    if layer.target not in _TRANSPOSED:
        return gain.reshape(-1, 1, *ones)
    # Of a transposed convolution the weight is (inputs, outputs of one group, ...).
    groups = int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]
    spread = gain.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    return spread.reshape(weight.shape[0], weight.shape[1], *ones)


__all__ = ['fold_norms']
