r"""Bias correction: rounding a weight shifts the mean of what its layer gives; the bias takes the shift back.

Markus Nagel, Mart van Baalen, Tijmen Blankevoort, Max Welling: Data-Free Quantization Through Weight Equalization and Bias
Correction, ICCV 2019, https://arxiv.org/abs/1906.04721, section 4.2. With :math:`\epsilon = \hat W - W`, the shift of output
channel :math:`i` is :math:`E[\epsilon x]_i`. Differs from the paper: the expectation is measured on calibration data (its
appendix D does so too), all layers at once and on the inputs that the float model has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from strop.quantization.batches import Batches
from strop.quantization.layers import HEAVY
from strop.quantization.parameters import add_parameter, attribute, is_parameter

_CORRECTED = ('conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d', 'linear')


def correct_biases(prepared: GraphModule, batches: Batches) -> int:
    """Correct the bias of every layer whose weight is observed; return how many were corrected.

    Args:
        prepared: A calibrated graph, changed in place: layers without a bias get one.
        batches: Calibration data.
    """
    layers = {node: observer for node in prepared.graph.nodes if (observer := _weight_observer(prepared, node)) is not None}
    errors = {node: _rounding_error(prepared, node, observer) for node, observer in layers.items()}
    shifts = _Shifts(prepared, errors)
    for args, kwargs in batches:
        shifts.add(tree_leaves((args, kwargs)))
    for index, (node, shift) in enumerate(shifts.mean().items()):
        bias = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias, Node):
            new = attribute(prepared, bias).detach() - shift
        else:
            new = -shift
        read = add_parameter(prepared, f'corrected_bias_{index}', new, node)
        node.args = (*node.args[:2], read, *node.args[3:])
    prepared.graph.eliminate_dead_code()
    prepared.recompile()
    return len(layers)


def _weight_observer(graph: GraphModule, node: Node) -> nn.Module | None:
    """Return the observer of a layer's weight, None for anything that is not corrected."""
    if node.op != 'call_function' or HEAVY.get(node.target) not in _CORRECTED or len(node.args) < 2:
        return None
    weight = node.args[1]
    if not isinstance(weight, Node) or weight.op != 'call_module' or not is_parameter(weight.args[0]):
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, Node) and not is_parameter(bias):
        return None  # a bias that is computed, or observed, is somebody else's
    return graph.get_submodule(str(weight.target))


def _rounding_error(graph: GraphModule, node: Node, observer: Any) -> Tensor:
    weight = attribute(graph, node.args[1].args[0]).detach()  # type: ignore[union-attr, arg-type]
    scale, zero_point = observer.calculate_qparams()
    low, high = observer.quant_min, observer.quant_max
    shape = [1] * weight.dim()
    if scale.numel() > 1:
        shape[observer.ch_axis] = -1
    scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    levels = (torch.round(weight / scale) + zero_point).clamp(low, high)
    return (levels - zero_point) * scale - weight


class _Shifts(Interpreter):
    """Runs a graph in float, and sums up what the rounding errors of weights would add to each layer's output."""

    def __init__(self, graph: GraphModule, errors: dict[Node, Tensor]) -> None:
        super().__init__(graph)
        self._errors = errors
        self._sums: dict[Node, Tensor] = {}
        self._counts: dict[Node, int] = {}

    def add(self, inputs: list[Any]) -> None:
        with torch.no_grad():
            self.run(*inputs, enable_io_processing=False)

    def run_node(self, node: Node) -> Any:
        if node in self._errors:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            added = node.target(args[0], self._errors[node], None, *args[3:], **kwargs)  # type: ignore[operator]
            axis = -1 if HEAVY[node.target] == 'linear' else added.dim() - _spatial(node) - 1
            channels = added.movedim(axis, 0).flatten(1).double()
            self._sums[node] = self._sums.get(node, torch.zeros(())) + channels.sum(1)
            self._counts[node] = self._counts.get(node, 0) + channels.shape[1]
        if node.op == 'call_module' and 'activation_post_process' in str(node.target):
            return self.fetch_args_kwargs_from_env(node)[0][0]  # the ranges are measured; looking again would count twice
        return super().run_node(node)

    def mean(self) -> dict[Node, Tensor]:
        return {node: (total / self._counts[node]).float() for node, total in self._sums.items()}


def _spatial(node: Node) -> int:
    return int(HEAVY[node.target].removesuffix('d')[-1])
