"""What ExecuTorch's XNNPACK backend quantizes here, and the threads that its runtime computes with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from strop.errors import try_import
from strop.quantization.flow import ANNOTATION, pt2e, tensors_of
from strop.quantization.layers import HEAVY, transparent
from strop.quantization.parameters import is_parameter

aten = torch.ops.aten

_COMBINING = (aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.cat.default)
_CLAMPS = (aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default, aten.relu6_.default)
_CONVOLUTIONS = frozenset(op for op, kind in HEAVY.items() if kind.startswith('conv'))
#: What XNNPACK clamps the output of by itself.
_CLAMPED = _CONVOLUTIONS | {aten.linear.default, aten.batch_norm.default}
# What stays between the integers of a convolution and an op that combines them with others.
_BETWEEN = (
    aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default,
    aten.hardswish.default, aten.hardswish_.default, aten.silu.default, aten.silu_.default, aten.sigmoid.default,
    aten.hardsigmoid.default, aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.mean.dim, aten.dropout.default, aten.dropout_.default, aten.batch_norm.default,
)  # fmt: skip


def xnnpack_quantizer(is_qat: bool = False) -> Any:
    """Return ExecuTorch's quantizer, kept from three things that it does left to itself.

    It quantizes all sums, products and concatenations. The residual stream of a transformer, or a position embedding, loses
    more by eight bits than it gains: these ops read memory and multiply nothing. Only those of convolutions are left to it.

    And of activations it takes only ReLU into the layer before. What a convolution gives to a ReLU6 would be rounded over its
    whole range, most of which is cut off next. XNNPACK clamps inside the convolution: only the clamped values are rounded.

    It also makes a float of every number that is added, which turns the positions that a model counts into floats.

    Args:
        is_qat: For training.

    Raises:
        MissingDependencyError: If ExecuTorch is not installed.
    """
    xnnpack = try_import('executorch.backends.xnnpack.quantizer.xnnpack_quantizer', 'executorch')
    settings = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=is_qat)

    base: Any = xnnpack.XNNPACKQuantizer

    class Quantizer(base):  # type: ignore[misc]
        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            return _with_integers(super().transform_for_annotation(model))

        def annotate(self, model: GraphModule) -> GraphModule:
            return _with_clamps(super().annotate(model))

    return Quantizer().set_global(settings).set_filter_function(_taken)


def _with_integers(model: GraphModule) -> GraphModule:
    """Give sums and products of integers their numbers back."""
    for node in model.graph.nodes:
        value = node.meta.get('val')
        if node.target not in _COMBINING or not isinstance(value, torch.Tensor) or value.is_floating_point():
            continue
        for number in [found for found in node.all_input_nodes if found.op == 'get_attr']:
            constant = getattr(model, str(number.target), None)
            if isinstance(constant, torch.Tensor) and constant.is_floating_point() and constant.numel() == 1:
                node.args = tuple(int(constant) if given is number else given for given in node.args)
    model.recompile()
    return model


def _with_clamps(model: GraphModule) -> GraphModule:
    """Have the output of a layer rounded after its clamp, where it goes nowhere else."""
    annotation = pt2e('quantizer').QuantizationAnnotation
    for node in model.graph.nodes:
        layer = node.args[0] if node.target in _CLAMPS else None
        if not isinstance(layer, Node) or layer.target not in _CLAMPED or len(layer.users) != 1:
            continue
        found = layer.meta.get(ANNOTATION)
        if found is not None and found.output_qspec is not None:
            node.meta[ANNOTATION] = annotation(output_qspec=found.output_qspec, _annotated=True)
            found.output_qspec = None
    return model


def _taken(node: Node) -> bool:
    return node.target not in _COMBINING or all(_of_convolutions(source) for source in node.all_input_nodes)


def _of_convolutions(node: Node) -> bool:
    """Whether a value comes from convolutions alone, and numbers."""
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node in seen or node.target in _CONVOLUTIONS:
            continue
        seen.add(node)
        if is_parameter(node):
            if _size(node) != 1:
                return False
        elif node.target in _COMBINING:
            waiting += node.all_input_nodes
        elif node.target in _BETWEEN or transparent(node):
            waiting += node.all_input_nodes[:1]
        else:
            return False
    return True


def _size(node: Node) -> int:
    value = node.meta.get('val')
    return value.numel() if isinstance(value, torch.Tensor) else 0


class Program:
    """A program of ExecuTorch that computes with a number of threads.

    The runtime has one pool of threads in a process, and a method that was loaded keeps pointing at the pool of that time. So
    the pool is changed only where another number is asked for, and then every program of this class loads its method again.

    Args:
        content: What the file holds.
        threads: Threads to compute with.

    Raises:
        MissingDependencyError: If ExecuTorch is not installed.
    """

    _pools = 0

    def __init__(self, content: bytes, threads: int) -> None:
        self._content, self._threads = content, threads
        self._pool = -1
        self._load()

    def _load(self) -> None:
        bindings = try_import('executorch.extension.pybindings.portable_lib', 'executorch')
        if bindings._threadpool_get_thread_count() != self._threads:
            bindings._unsafe_reset_threadpool(self._threads)
            Program._pools += 1
        if self._pool != Program._pools:
            runtime = try_import('executorch.runtime', 'executorch').Runtime.get()
            self._method = runtime.load_program(self._content).load_method('forward')
            self._pool = Program._pools

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs; they are copies, since the program writes into the same memory every time."""
        return [value.clone() for value in tensors_of(self.bind(tensors)())]

    def bind(self, tensors: Sequence[torch.Tensor]) -> Callable[[], Any]:
        """Return a call on these inputs that gives the program's own memory."""
        given = [tensor.contiguous() for tensor in tensors]

        def call() -> Any:
            self._load()
            return self._method.execute(given)

        return call
