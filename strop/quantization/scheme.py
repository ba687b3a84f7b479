"""What becomes an integer and how its range is found: a quantizer of a backend with the names of a user put into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule, Node

from strop.errors import ConfigError
from strop.quantization.flow import ANNOTATION, pt2e
from strop.quantization.layers import HEAVY, layer_name, matching, name_layers
from strop.quantization.observers import observer
from strop.quantization.parameters import is_parameter
from strop.quantization.processor import adds_in_16_bits

if TYPE_CHECKING:
    from strop.quantization.backends import Backend


@dataclass(frozen=True)
class Scheme:
    """How ranges are found, and for what.

    Args:
        activation: Observer of activations, a name of `OBSERVERS`.
        weight: Observer of weights.
        per_channel: One scale for each output channel of a weight; None takes the backend's default.
        symmetric: Activations with their zero in the middle; None takes the backend's default.
        percentile: The share of values that `'percentile'` keeps, in percent.
        reduce_range: Seven bits for one side of each product, so that processors that add pairs of them in 16 bits (x86
            without VNNI) compute what is meant: for weights, or for activations where the backend prefers that. None reduces
            where this processor is such a one.

    >>> Scheme(activation='percentile').activation
    'percentile'
    """

    activation: str = 'histogram'
    weight: str = 'min_max'
    per_channel: bool | None = None
    symmetric: bool | None = None
    percentile: float = 99.99
    reduce_range: bool | None = None

    def on(self, backend: Backend) -> Scheme:
        """Return the scheme with the backend's defaults filled in.

        Raises:
            ConfigError: If the backend cannot run it; the message says what it can.
        """
        per_channel = backend.per_channel[0] if self.per_channel is None else bool(self.per_channel)
        symmetric = backend.symmetric[0] if self.symmetric is None else bool(self.symmetric)
        if per_channel not in backend.per_channel:
            raise ConfigError(
                f'{backend.name} takes weights with {_granularity(backend.per_channel[0])}, but got per_channel={per_channel}.'
            )
        if symmetric not in backend.symmetric:
            raise ConfigError(
                f'{backend.name} takes {_symmetry(backend.symmetric[0])} activations, but got symmetric={symmetric}. '
                f'{backend.why_symmetry}'
            )
        if self.reduce_range not in (None, True, False):
            raise ConfigError(
                f'`reduce_range` is true, false, or None for what this processor needs, but got {self.reduce_range!r}.'
            )
        pairs = backend.reduce_range[-1]
        reduce_range = pairs and adds_in_16_bits() if self.reduce_range is None else bool(self.reduce_range)
        if reduce_range not in backend.reduce_range:
            raise ConfigError(
                f'{backend.name} multiplies eight bits exactly on every processor and takes the whole range, but got '
                'reduce_range=True.'
            )
        observer(self.activation, weight=False, percentile=self.percentile)
        observer(self.weight, weight=True, per_channel=per_channel, percentile=self.percentile)
        return replace(self, per_channel=per_channel, symmetric=symmetric, reduce_range=reduce_range)


def _granularity(per_channel: bool) -> str:
    return 'a scale for each output channel' if per_channel else 'one scale for the whole tensor'


def _symmetry(symmetric: bool) -> str:
    return 'symmetric' if symmetric else 'affine'


def schemed(inner: Any, scheme: Scheme | None, ignored: Iterable[str] | str = ()) -> Any:
    """Return a quantizer that annotates as `inner` does, with the ranges of a scheme and without the ignored layers.

    Args:
        inner: A quantizer of `torchao.quantization.pt2e`.
        scheme: The scheme, filled in for the backend; None keeps the quantizer's own observers, as training needs.
        ignored: Patterns of layers that stay float.
    """

    class Schemed(pt2e('quantizer').Quantizer):  # type: ignore[misc]
        """A backend's quantizer with the ranges and exceptions of a user."""

        def __init__(self) -> None:
            super().__init__()
            self.left: dict[str, str] = {}

        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            name_layers(model)
            return inner.transform_for_annotation(model)  # type: ignore[no-any-return]

        def annotate(self, model: GraphModule) -> GraphModule:
            inner.annotate(model)
            if ignored:
                names = [layer_name(node) for node in model.graph.nodes if node.op == 'call_function']
                self.left = matching(ignored, names)
                for node in model.graph.nodes:
                    if node.op == 'call_function' and layer_name(node) in self.left:
                        _unannotate(model, node)
            if scheme is not None:
                _rewrite(model, scheme)
            return model

        def validate(self, model: GraphModule) -> None:
            inner.validate(model)

        def prepare_obs_or_fq_callback(self, model: Any, edge_or_node_to_obs_or_fq: Any) -> None:
            inner.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)

    return Schemed()


def _unannotate(model: GraphModule, node: Node) -> None:
    """Leave an op in float, and give those that share a range with it the range itself."""
    shared = pt2e('quantizer').SharedQuantizationSpec
    specs: dict[Any, Any] = {}
    annotation = node.meta.get(ANNOTATION)
    if annotation is None:
        return
    for source, spec in annotation.input_qspec_map.items():
        specs[source, node] = spec
    if annotation.output_qspec is not None:
        specs[node] = annotation.output_qspec

    def own(spec: Any) -> Any:
        while isinstance(spec, shared) and spec.edge_or_node in specs:
            spec = specs[spec.edge_or_node]
        return spec

    del node.meta[ANNOTATION]
    for other in model.graph.nodes:
        found = other.meta.get(ANNOTATION)
        if found is None:
            continue
        found.input_qspec_map = {source: own(spec) for source, spec in found.input_qspec_map.items()}
        found.output_qspec = own(found.output_qspec)


def _rewrite(model: GraphModule, scheme: Scheme) -> None:
    specification = pt2e('quantizer').QuantizationSpec
    made: dict[Any, Any] = {}

    def changed(spec: Any, weight: bool) -> Any:
        if not isinstance(spec, specification) or spec.is_dynamic or spec.dtype == torch.int32:
            return spec
        if (spec, weight) not in made:
            per_channel = weight and bool(scheme.per_channel)
            if weight:
                qscheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
                name, axis = scheme.weight, (spec.ch_axis or 0) if per_channel else None
            else:
                qscheme = torch.per_tensor_symmetric if scheme.symmetric else torch.per_tensor_affine
                name, axis = scheme.activation, None
            made[spec, weight] = replace(
                spec,
                observer_or_fake_quant_ctr=observer(name, weight=weight, per_channel=per_channel, percentile=scheme.percentile),
                qscheme=qscheme,
                ch_axis=axis,
            )
        return made[spec, weight]

    for node in model.graph.nodes:
        annotation = node.meta.get(ANNOTATION)
        if annotation is None:
            continue
        # Only layers have weights; what else reads a parameter, such as the sum with a position embedding, has one range.
        weights = node.args[1:2] if node.target in HEAVY else ()
        annotation.input_qspec_map = {
            source: changed(spec, is_parameter(source) and source in weights)
            for source, spec in annotation.input_qspec_map.items()
        }
        annotation.output_qspec = changed(annotation.output_qspec, False)
