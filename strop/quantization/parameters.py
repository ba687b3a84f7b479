"""The parameters and buffers that a captured graph reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node


def is_parameter(node: Any) -> bool:
    """Whether a node of a graph reads a parameter or buffer."""
    return isinstance(node, Node) and node.op == 'get_attr'


def attribute(graph: GraphModule, node: Node) -> Tensor:
    """Return the tensor that a `get_attr` node reads."""
    value: Any = graph
    for part in str(node.target).split('.'):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def replace_attribute(graph: GraphModule, node: Node, value: Tensor) -> None:
    """Put another tensor of the same shape where a `get_attr` node reads."""
    path, _, name = str(node.target).rpartition('.')
    setattr(graph.get_submodule(path), name, nn.Parameter(value.detach(), requires_grad=False))


def add_parameter(graph: GraphModule, name: str, value: Tensor, before: Node) -> Node:
    """Give a graph one more parameter, and return a node that reads it.

    Args:
        graph: The graph.
        name: The name of the parameter, without a dot; where it is taken a number is put behind it.
        value: Its value.
        before: The node that the new one goes in front of.
    """
    taken, number, free = {key for key, _ in graph.named_parameters()}, 0, name
    while free in taken or hasattr(graph, free):
        number += 1
        free = f'{name}_{number}'
    graph.register_parameter(free, nn.Parameter(value.detach(), requires_grad=False))
    return read_parameter(graph, free, before)


def read_parameter(graph: GraphModule, name: str, before: Node) -> Node:
    """Return a new node in front of another that reads a parameter which the graph has."""
    with graph.graph.inserting_before(before):
        read = graph.graph.get_attr(name)
    example = before.meta.get('val')
    if isinstance(example, Tensor) and hasattr(example, 'fake_mode'):
        read.meta['val'] = example.fake_mode.from_tensor(attribute(graph, read), static_shapes=True)
    return read


__all__ = ['add_parameter', 'attribute', 'is_parameter', 'read_parameter', 'replace_attribute']
