"""Modules that are a few lines of generated code: what is left of a choice that is made.

They are `torch.fx.GraphModule`s, which are pickled as code: a file with them is loaded by PyTorch alone.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from strop.mutables.choice import Reduction, reduce_outputs

Weighting = Sequence[float] | None


def constant(value: Any) -> nn.Module | None:
    """Return a module that returns `value`; None if that is nothing that code can hold (numbers, strings, tuples of them).

    >>> constant(5)()
    5
    """
    if not _is_literal(value):
        return None
    graph = fx.Graph()
    graph.output(value)
    return fx.GraphModule(nn.Module(), graph, 'Constant')


def combined_inputs(
    sources: Sequence[int | str], weights: Weighting, reduction: Reduction, mask: torch.Tensor | None
) -> fx.GraphModule:
    """Return a module of a list (or mapping) of inputs, some of which it weights and reduces as an `InputChoice` does.

    Args:
        sources: Indices in the list, or keys of the mapping.
        weights: One weight for each source; None for 1.
        reduction: As of `reduce_outputs`.
        mask: What is returned beside the output; None to return that alone.

    >>> combined_inputs([0, 2], [0.5, 2.0], 'sum', None)([torch.ones(1), torch.zeros(1), torch.ones(1)])
    tensor([2.5000])
    """
    graph = fx.Graph()
    given = graph.placeholder('inputs')
    picked = [graph.call_function(operator.getitem, (given, source)) for source in sources]
    return _finished(nn.Module(), graph, picked, weights, reduction, mask, 'CombinedInputs')


def combined_edges(
    picks: Sequence[int], layers: Mapping[str, nn.Module], weights: Weighting, reduction: Reduction, mask: torch.Tensor | None
) -> fx.GraphModule | None:
    """Return a module that applies each layer to an input of its own; None if a layer's name is one of a `GraphModule`."""
    root = _root(layers)
    if root is None:
        return None
    graph = fx.Graph()
    given = graph.placeholder('inputs')
    inputs = [graph.call_function(operator.getitem, (given, pick)) for pick in picks]
    outputs = [graph.call_module(name, (each,)) for name, each in zip(layers, inputs, strict=True)]
    return _finished(root, graph, outputs, weights, reduction, mask, 'CombinedEdges')


def combined_layers(
    layers: Mapping[str, nn.Module],
    weights: Weighting,
    reduction: Reduction,
    mask: torch.Tensor | None,
    candidates: Iterable[nn.Module] = (),
) -> fx.GraphModule | None:
    """Return a module that applies every layer to what it is called with; `candidates` say that where there is no layer.

    None if code cannot say how: the layers take `*args` or keywords alone, or have different defaults, or a layer's
    name is one of a `GraphModule`.

    >>> layers = {'a': nn.ReLU(), 'b': nn.Identity()}
    >>> combined_layers(layers, None, 'sum', None)(torch.tensor([-1.0, 1.0]))
    tensor([-1.,  2.])
    """
    parameters = _shared_parameters(layers.values() or candidates)
    root = _root(layers)
    if parameters is None or root is None:
        return None
    graph = fx.Graph()
    given = tuple(graph.placeholder(each.name, default_value=each.default) for each in parameters)
    outputs = [graph.call_module(name, given) for name in layers]
    return _finished(root, graph, outputs, weights, reduction, mask, 'CombinedLayers')


def _finished(
    root: nn.Module,
    graph: fx.Graph,
    outputs: list[Any],
    weights: Weighting,
    reduction: Reduction,
    mask: torch.Tensor | None,
    name: str,
) -> fx.GraphModule:
    """Add the weighted reduction of the outputs to a graph, and make it a module."""
    if weights is not None:
        scale: Callable[..., Any] = functools.partial(graph.call_function, operator.mul)
        outputs = [output if weight == 1 else scale((output, weight)) for output, weight in zip(outputs, weights, strict=True)]
    # On nodes as on tensors: nodes are no proxies, so the reduction is recorded through some.
    tracer = fx.proxy.GraphAppendingTracer(graph)
    reduced: Any = reduce_outputs([fx.Proxy(output, tracer) for output in outputs], reduction)
    result = fx.node.map_aggregate(reduced, lambda each: each.node if isinstance(each, fx.Proxy) else each)
    if mask is not None:
        root.register_buffer('_mask', mask, persistent=False)
        result = (result, graph.get_attr('_mask'))
    graph.output(result)
    module = fx.GraphModule(root, graph, name)
    if mask is not None:
        # Once more: older versions of torch forget that it does not go into the state dict.
        module.register_buffer('_mask', mask, persistent=False)
    return module


def _root(layers: Mapping[str, nn.Module]) -> nn.Module | None:
    if any(name.startswith('_') or name in _names_of_graph_modules() for name in layers):
        return None
    root = nn.Module()
    for name, layer in layers.items():
        root.add_module(name, layer)
    return root


@functools.cache
def _names_of_graph_modules() -> frozenset[str]:
    return frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def _shared_parameters(layers: Iterable[nn.Module]) -> list[inspect.Parameter] | None:
    """Return the parameters by which all layers can be called, as the first one names them; None if they differ in kind."""
    each = [list(inspect.signature(layer.forward).parameters.values()) for layer in layers]
    if not each:
        return None
    count = min(len(parameters) for parameters in each)
    shared = each[0][:count]
    for parameters in each:
        if any(parameter.kind is not parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
            return None
        if [parameter.default for parameter in parameters[:count]] != [parameter.default for parameter in shared]:
            return None
        if any(parameter.default is parameter.empty for parameter in parameters[count:]):
            return None
    names = {name for parameters in each for name in [parameter.name for parameter in parameters[count:]]}
    odd = [parameter for parameter in shared if not (parameter.default is parameter.empty or _is_literal(parameter.default))]
    clash = len({parameter.name for parameter in shared} | names) < count + len(names)
    return None if odd or clash or any(keyword.iskeyword(parameter.name) for parameter in shared) else shared


def _is_literal(value: Any) -> bool:
    if type(value) is tuple:
        return all(_is_literal(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)
