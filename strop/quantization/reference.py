"""Running captured graphs layer by layer: how far a quantized graph is from the float one, and which layer costs how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from strop.quantization.batches import Batches
from strop.quantization.flow import tensors_of
from strop.quantization.layers import HEAVY, behind, heavy_nodes, is_dequantize, is_quantize, layer_name


def sqnr_db(reference: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    r"""Return the signal to quantization noise ratio, :math:`10 \\log_{10} \\sum r^2 / \\sum (r - o)^2`, in dB.

    >>> round(sqnr_db([torch.ones(4)], [torch.full((4,), 0.9)]), 3)
    20.0
    """
    signal = noise = 0.0
    for first, second in zip(reference, other, strict=True):
        first, second = first.double(), second.double()
        signal += float(first.square().sum())
        noise += float((first - second).square().sum())
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


class Partly(nn.Module):
    """A converted graph of which only some layers are quantized; the others compute in float.

    Args:
        graph: What `convert(..., fold=False)` gave.
        layers: Names of the quantized layers; None means all.
    """

    def __init__(self, graph: GraphModule, layers: Collection[str] | None = None) -> None:
        super().__init__()
        self.graph = graph
        self._active = None if layers is None else _feeding(graph, layers)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        return self.run(args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], seen: Callable[[str, Tensor], None] | None = None) -> Any:
        """Run the graph, and show what each layer gives to `seen`."""
        return _Run(self.graph, self._active, seen).whole(args, kwargs)


class _Run(Interpreter):
    def __init__(
        self, graph: GraphModule, active: set[Node] | None = None, seen: Callable[[str, Tensor], None] | None = None
    ) -> None:
        super().__init__(graph)
        self._active, self._seen = active, seen

    def whole(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            flat = tree_leaves((tuple(args), self._in_order(kwargs)))
            return self.graph.process_outputs(self.run(*flat, enable_io_processing=False))

    def _in_order(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return keyword arguments in the order in which the model was captured with them."""
        spec = getattr(self.module, '_in_spec', None)
        names = spec.children()[1].context if spec is not None and kwargs else None
        return dict(kwargs) if not names else {name: kwargs[name] for name in names if name in kwargs}

    def run_node(self, node: Node) -> Any:
        if self._active is not None and (is_quantize(node) or is_dequantize(node)):
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            if is_quantize(node):
                wanted = any(user in self._active for user in node.users)
                return _Both(args[0], node.target(*args, **kwargs) if wanted else None)  # type: ignore[operator]
            if isinstance(args[0], _Both):
                if node not in self._active:
                    return args[0].value
                args = (args[0].levels, *args[1:])
            return node.target(*args, **kwargs)  # type: ignore[operator]
        result = super().run_node(node)
        if self._seen is not None and node.op == 'call_function' and node.target in HEAVY:
            self._seen(layer_name(node), result)
        return result


class _Both(NamedTuple):
    """A tensor before and, where somebody reads them, its levels after quantization."""

    value: Tensor
    levels: Tensor | None


def _feeding(graph: GraphModule, layers: Collection[str]) -> set[Node]:
    """Return the dequantize nodes that the layers read."""
    return {
        found
        for name, node in heavy_nodes(graph).items()
        if name in layers
        for found in map(behind, node.args)
        if is_dequantize(found)
    }


def layer_outputs(graph: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return layer name -> what it gives for one batch."""
    found: dict[str, Tensor] = {}
    _Run(graph, seen=found.__setitem__).whole(args, kwargs)
    return found


def layer_sqnr(reference: GraphModule, graph: GraphModule, batches: Batches) -> dict[str, float]:
    """Return layer name -> signal to noise ratio of its output in `graph`, with `reference` as the truth, in dB."""
    first: dict[str, list[Tensor]] = {}
    second: dict[str, list[Tensor]] = {}
    for args, kwargs in batches:
        for store, module in ((first, reference), (second, graph)):
            for name, value in layer_outputs(module, args, kwargs).items():
                store.setdefault(name, []).append(value)
    return {name: sqnr_db(first[name], values) for name, values in second.items() if name in first}


def output_sqnr(reference: Callable[..., Any], other: Callable[..., Any], batches: Batches) -> float:
    """Return the signal to noise ratio of what a model gives, in dB."""
    first, second = [], []
    with torch.no_grad():
        for args, kwargs in batches:
            first += tensors_of(reference(*args, **kwargs))
            second += tensors_of(other(*args, **kwargs))
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.is_floating_point()]
    return sqnr_db([a for a, _ in pairs], [b for _, b in pairs])
