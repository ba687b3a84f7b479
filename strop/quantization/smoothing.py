r"""SmoothQuant: a few channels behind a layer norm are far larger than the rest; their size moves into the weights.

Guangxuan Xiao, Ji Lin, Mickael Seznec, Hao Wu, Julien Demouth, Song Han: SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models, ICML 2023, https://arxiv.org/abs/2211.10438. Channel :math:`j` between a norm and the
linear layers that read it is divided by :math:`s_j = \max|X_j|^\alpha / \max|W_j|^{1-\alpha}` and the columns of the weights
are multiplied by it: the same function in float. Differs from the paper: the norms are found in the captured graph, whatever
their modules are called, and the scales are normalised to a geometric mean of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from strop.errors import ConfigError
from strop.quantization.batches import Batches
from strop.quantization.parameters import attribute, is_parameter, replace_attribute

aten = torch.ops.aten

_PASSES_CHANNELS = (aten.dropout.default, aten.dropout_.default, aten.clone.default, aten.contiguous.default)


@dataclass(frozen=True)
class _Place:
    source: Node
    affine: tuple[Node, ...]
    linears: tuple[Node, ...]


def check_alpha(alpha: object) -> None:
    """Raise unless an exponent of `smooth` is one.

    Raises:
        ConfigError: If it is no number between 0 and 1.
    """
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 <= alpha <= 1:
        raise ConfigError(f'`smooth_alpha` is between 0 and 1 (0.5 is usual), but got {alpha!r}.')


def smooth(graph: GraphModule, batches: Batches, alpha: float = 0.5) -> int:
    """Smooth every layer norm whose output only linear layers read; return how many there were.

    Args:
        graph: A captured graph, changed in place.
        batches: Calibration data.
        alpha: How much of the size moves: 0 makes all channels of the weights equal, at the cost of the activations,
            and 1 those of the activations.

    Raises:
        ConfigError: If `alpha` is not between 0 and 1.
    """
    check_alpha(alpha)
    readers: dict[str, int] = {}
    for node in graph.graph.nodes:
        if is_parameter(node):
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    places = [
        place
        for node in graph.graph.nodes
        if (place := _place(node)) is not None
        and all(readers[str(parameter.target)] == 1 for parameter in place.affine)
        and all(readers[str(linear.args[1].target)] == 1 for linear in place.linears)  # type: ignore[union-attr]
    ]
    largest = _Largest(graph, [place.source for place in places])
    for args, kwargs in batches:
        largest.add(tree_leaves((args, kwargs)))
    for place in places:
        _apply(graph, place, largest.found[place.source], float(alpha))
    return len(places)


def _place(node: Node) -> _Place | None:
    affine: tuple[Any, ...]
    if node.op != 'call_function':
        return None
    if node.target is aten.layer_norm.default:
        affine = tuple(node.args[2:4])
    elif node.target is getattr(aten.rms_norm, 'default', None):
        affine = tuple(node.args[2:3])
    elif node.target is aten.mul.Tensor and any(_is_vector(arg) for arg in node.args):
        affine = tuple(arg for arg in node.args if _is_vector(arg))
    else:
        return None
    if not affine or not is_parameter(affine[0]):
        return None
    linears = _linears(node)
    if not linears or any(not is_parameter(linear.args[1]) for linear in linears):
        return None
    return _Place(node, tuple(parameter for parameter in affine if isinstance(parameter, Node)), linears)


def _is_vector(arg: Any) -> bool:
    return is_parameter(arg) and isinstance(arg.meta.get('val'), Tensor) and arg.meta['val'].dim() == 1 and len(arg.users) == 1


def _linears(node: Node) -> tuple[Node, ...]:
    """Return the linear layers that read a node, nothing else reading it; otherwise none."""
    found: list[Node] = []
    for user in node.users:
        if user.target is aten.linear.default and user.args[0] is node:
            found.append(user)
        elif user.target in _PASSES_CHANNELS and (behind := _linears(user)):
            found.extend(behind)
        else:
            return ()
    return tuple(found)


class _Largest(Interpreter):
    """Runs a graph and keeps the largest magnitude of each channel of some nodes."""

    def __init__(self, graph: GraphModule, nodes: list[Node]) -> None:
        super().__init__(graph)
        self._wanted = set(nodes)
        self.found: dict[Node, Tensor] = {}

    def add(self, inputs: list[Any]) -> None:
        with torch.no_grad():
            self.run(*inputs, enable_io_processing=False)

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if node in self._wanted:
            peak = result.detach().abs().flatten(0, -2).amax(0)
            self.found[node] = torch.maximum(self.found[node], peak) if node in self.found else peak
        return result


def _apply(graph: GraphModule, place: _Place, activations: Tensor, alpha: float) -> None:
    weights = torch.stack([attribute(graph, linear.args[1]).abs().amax(0) for linear in place.linears]).amax(0)  # type: ignore[arg-type]
    scales = activations.clamp_min(1e-5) ** alpha / weights.clamp_min(1e-5) ** (1 - alpha)
    scales = (scales / scales.log().mean().exp()).detach()
    for parameter in place.affine:
        replace_attribute(graph, parameter, attribute(graph, parameter) / scales)
    for linear in place.linears:
        weight = linear.args[1]
        replace_attribute(graph, weight, attribute(graph, weight) * scales)  # type: ignore[arg-type]
