"""The quantizer for runtimes that read quantize and dequantize nodes from ONNX: ONNX Runtime, OpenVINO, TensorRT.

None of them brings a quantizer for PyTorch's graphs. What they fuse is documented and alike: a convolution or matrix product
becomes an integer kernel if its inputs and its weight are quantized; between convolutions what they give out, and additions
of it, are integers too; pooling and rearrangement pass integers through when both sides share one range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from strop.quantization.flow import ANNOTATION, pt2e
from strop.quantization.layers import HEAVY
from strop.quantization.parameters import is_parameter

aten = torch.ops.aten

# An activation that a runtime computes in the integer kernel before it, so that only what comes out of it is quantized.
_FUSED: tuple[Any, ...] = (
    aten.relu.default,
    aten.relu_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.relu6.default,
    aten.relu6_.default,
)
_FUNCTIONS: tuple[Any, ...] = (
    aten.add.Tensor,
    aten.add_.Tensor,
)
_PASSING: tuple[Any, ...] = (
    aten.max_pool2d.default,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.dropout.default,
    aten.dropout_.default,
)
_AVERAGING: tuple[Any, ...] = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim)


def qdq_quantizer(
    activation: torch.dtype, *, is_qat: bool = False, outputs: bool = True, matmul: bool = True, reduce_range: bool = False
) -> Any:
    """Return a quantizer of `torchao.quantization.pt2e` that marks what a runtime of QDQ graphs fuses.

    Args:
        activation: `torch.uint8` or `torch.int8`.
        is_qat: For training.
        outputs: Also quantize what convolutions give out, and additions of it; runtimes that fuse on their own, as TensorRT
            does, go without.
        matmul: Quantize products of two activations, as in attention.
        reduce_range: Seven bits for weights: 255 * 63 + 255 * 63 still fits 16 bits, in which some processors add pairs of
            products.
    """
    torchao = pt2e()
    quantizer = pt2e('quantizer')
    low, high = (0, 255) if activation == torch.uint8 else (-128, 127)
    largest = 63 if reduce_range else 127
    fake = torchao.FusedMovingAvgObsFakeQuantize
    act = quantizer.QuantizationSpec(
        dtype=activation,
        quant_min=low,
        quant_max=high,
        qscheme=torch.per_tensor_affine if activation == torch.uint8 else torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=fake if is_qat else torchao.HistogramObserver,
    )
    weight = quantizer.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-largest,  # one level less, so that -128 * -128 never overflows and zero stays in the middle
        quant_max=largest,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=fake.with_args(observer=torchao.MovingAveragePerChannelMinMaxObserver)
        if is_qat
        else torchao.PerChannelMinMaxObserver,
    )

    class QDQ(quantizer.Quantizer):  # type: ignore[misc, name-defined]
        """Marks the tensors around layers that QDQ runtimes compute with integers."""

        def annotate(self, model: GraphModule) -> GraphModule:
            quantized: set[Node] = set()
            for node in model.graph.nodes:
                if node.op != 'call_function' or not _is_float(node):
                    continue
                kind = HEAVY.get(node.target)
                if kind in ('matmul', 'attention') and not any(map(is_parameter, node.args[:2])):
                    if kind == 'matmul' and matmul:
                        self._annotate(node, dict.fromkeys(node.args[:2], act), None)
                elif kind in _WEIGHTED and is_parameter(node.args[1]):
                    axis = 1 if 'transpose' in kind else 0
                    inputs = {node.args[0]: act, node.args[1]: replace(weight, ch_axis=axis)}
                    if kind == 'linear':
                        # What a matrix product gives is summed up in 32 bits and read as float by norms and activations:
                        # eight bits for it, and for the sums of residual branches of transformers, would only lose.
                        self._annotate(node, inputs, None)
                    else:
                        self._mark(node, inputs, quantized)
                elif outputs and node.target in _FUNCTIONS and _two_tensors(node):
                    if any(self._comes_from(arg, quantized) for arg in node.args[:2]):
                        self._mark(node, dict.fromkeys(node.args[:2], act), quantized)
                elif outputs and node.target in (*_PASSING, *_AVERAGING) and self._comes_from(node.args[0], quantized):
                    source = node.args[0]
                    shared = quantizer.SharedQuantizationSpec((source, node))
                    passed = node.target in _PASSING
                    self._annotate(node, {source: act}, shared if passed else act)
                    quantized.add(node)
            return model

        def _mark(self, node: Node, inputs: Mapping[Any, Any], quantized: set[Node]) -> None:
            last = _fused_end(node)
            self._annotate(node, inputs, act if outputs and last is node and not _is_output(node) else None)
            if outputs and last is not node and not _is_output(last):
                self._annotate(last, {}, act)
            quantized.update((node, last))

        @staticmethod
        def _annotate(node: Node, inputs: Mapping[Any, Any], output: Any) -> None:
            node.meta[ANNOTATION] = quantizer.QuantizationAnnotation(
                input_qspec_map=dict(inputs), output_qspec=output, _annotated=True
            )

        @staticmethod
        def _comes_from(node: Any, quantized: set[Node]) -> bool:
            return isinstance(node, Node) and node in quantized

        def validate(self, model: GraphModule) -> None:
            return None

    return QDQ()


_WEIGHTED = ('conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'linear')


def _is_float(node: Node) -> bool:
    value = node.meta.get('val')
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _two_tensors(node: Node) -> bool:
    first, second = node.args[:2]
    return (
        isinstance(first, Node)
        and isinstance(second, Node)
        and first is not second
        and not is_parameter(first)
        and not is_parameter(second)
        and _is_float(first)
        and _is_float(second)
        and first.meta['val'].shape == second.meta['val'].shape
    )


def _fused_end(node: Node) -> Node:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in _FUSED else node


def _is_output(node: Node) -> bool:
    return any(user.op == 'output' for user in node.users)
