"""From a model with decisions to a plain PyTorch model without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from strop.errors import SubnetError
from strop.mutables.binding import bind
from strop.mutables.channel import MutableChannelUnit, attachments
from strop.mutables.choice import InputChoice, LayerChoice, Reduction, reduce_outputs
from strop.mutables.code_module import combined_edges, combined_inputs, combined_layers, constant
from strop.mutables.differentiable_op import DiffChoiceRoute
from strop.mutables.domain import Choice, Weights
from strop.mutables.mutable import Mutable
from strop.mutables.space import chosen
from strop.mutables.subnet import Subnet
from strop.mutables.value import Expression, Repeat, ValueChoice


class Constant(nn.Module):
    """A module that returns a value of any kind, where generated code cannot hold it.

    >>> Constant(5)()
    5
    """

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Any:
        """Return the value."""
        return self.value

    def extra_repr(self) -> str:
        return repr(self.value)


class CombinedLayers(nn.Module):
    """Several modules on one input, weighted and reduced, where generated code cannot say how they are called."""

    def __init__(
        self, layers: Mapping[str, nn.Module], weights: list[float] | None, reduction: Reduction, mask: torch.Tensor | None
    ) -> None:
        super().__init__()
        # Private names, which those of candidates cannot be.
        self._names = list(layers)
        self._weights = weights
        self._reduction = reduction
        self.register_buffer('_mask', mask, persistent=False)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Apply every layer and combine the outputs; with a mask, return `(output, mask)`."""
        return self._combined([self._modules[name](*args, **kwargs) for name in self._names])  # type: ignore[misc]

    def _combined(self, outputs: list[Any]) -> Any:
        if self._weights is not None:
            outputs = [output if weight == 1 else output * weight for output, weight in zip(outputs, self._weights)]
        output = reduce_outputs(outputs, self._reduction)
        return output if self._mask is None else (output, self._mask)

    def extra_repr(self) -> str:
        return f'weights={self._weights}, reduction={self._reduction!r}'


class CombinedEdges(CombinedLayers):
    """Several modules, each on an input of its own, weighted and reduced, where generated code cannot hold their names."""

    def __init__(self, picks: tuple[int, ...], *args: Any) -> None:
        super().__init__(*args)
        self._picks = picks

    def forward(self, inputs: Any) -> Any:
        """Apply every layer to its input and combine the outputs."""
        outputs = [self._modules[name](inputs[pick]) for name, pick in zip(self._names, self._picks)]  # type: ignore[misc]
        return self._combined(outputs)

    def extra_repr(self) -> str:
        return f'picks={self._picks}, {super().extra_repr()}'


class CombinedInputs(nn.Module):
    """Some of several tensors, weighted and reduced, given as a list or as a mapping.

    Generated code takes one of the two. This module stands in where an `InputChoice` was never called and may be given
    either; it is pickled as code for what it was called with last, a list by default.
    """

    def __init__(self, picks: tuple[int, ...], sources: list[str], *rest: Any) -> None:
        super().__init__()
        self.listed = combined_inputs(picks, *rest)
        self.named = combined_inputs([sources[pick] for pick in picks], *rest)
        self._last = 'listed'

    def forward(self, optional_inputs: Any) -> Any:
        """Pick and combine; with a mask, return `(output, mask)`."""
        form = 'named' if isinstance(optional_inputs, Mapping) else 'listed'
        if form != self._last:
            self._last = form
        return self.named(optional_inputs) if form == 'named' else self.listed(optional_inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CombinedInputs:
        clone = object.__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr(self, self._last).train(self.training).__reduce_ex__(protocol)


def extract(model: nn.Module, subnet: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a copy of `model` with every decision made: a plain PyTorch model, weights included.

    A `LayerChoice` becomes the chosen module (so `choice.<name>.weight` becomes `choice.weight`), a `Repeat` a
    `Sequential` of its first blocks. What combines several layers or inputs, and a value, becomes a `torch.fx.GraphModule`
    of a few lines of generated code, so that the pickled model needs PyTorch alone; the exceptions are a `LayerChoice` of
    several whose candidates take `*args`, keywords alone or different defaults, and a value that is no literal. `model` is
    not changed.

    Args:
        model: A model with mutables, or a mutable itself.
        subnet: The answer to its decisions, in any form that `Space.subnet` reads; the current decisions by default.

    Raises:
        SubnetError: If `subnet` does not fit the model.
        NotDecidedError: If no subnet is given and a decision that is needed was never made.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()]))
    >>> extract(model, {'0': 1})
    Sequential(
      (0): GELU(approximate='none')
    )
    """
    plain = copy.deepcopy(model)
    binding = bind(plain)
    if subnet is not None:
        binding.apply(subnet)
    return fix(plain)


def current_subnet(model: nn.Module) -> Subnet:
    """Return the current decisions of `model` as a `Subnet`.

    Raises:
        NotDecidedError: If an active decision was never made.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()]))
    >>> model[0].decide(0)
    >>> current_subnet(model)
    Subnet(0=0)
    """
    binding = bind(model)
    choices: dict[str, Choice] = {}
    for key in binding.space.order:
        if binding.space.is_active(key, choices):
            choices[key] = binding.by_key[key][0].choice()
    return binding.space.from_picks(choices)


def fix(model: nn.Module) -> nn.Module:
    """Replace every decided mutable inside `model`, in place, and return the result.

    `extract` is the safe way; this one is for a model that nobody else holds.

    Raises:
        SubnetError: If a decision is needed that is reachable but was never made.
    """
    # What is attached names parts of the model by their paths, which replacing choices changes.
    for parent, attached in attachments(model):
        attached.settle(parent)
    memo: dict[int, nn.Module] = {}
    fixed = _fixed(model, memo)
    left = [name for name, module in fixed.named_modules() if isinstance(module, (Mutable, Repeat, Expression))]
    if left:
        raise SubnetError(f'The model still has undecided parts at {left}.')
    return fixed


def _fixed(module: nn.Module, memo: dict[int, nn.Module]) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]
    result = module
    if isinstance(module, LayerChoice):
        result = _fixed_layers(module, memo)
    elif isinstance(module, InputChoice):
        choice = module.choice()
        weights = [weight for weight in choice if weight] if isinstance(choice, Weights) else None
        mask = module.mask().detach().clone() if module.return_mask else None
        rest = weights, module.reduction, mask
        if InputChoice.NO_KEY in module.choose_from or module.named is False:
            result = combined_inputs(chosen(choice), *rest)
        elif module.named:
            result = combined_inputs([module.choose_from[pick] for pick in chosen(choice)], *rest)
        else:
            result = CombinedInputs(chosen(choice), module.choose_from, *rest)
    elif isinstance(module, (ValueChoice, Expression, MutableChannelUnit)):
        value = module()
        result = constant(value) or Constant(value)
    elif isinstance(module, Repeat):
        result = nn.Sequential(*(_fixed(block, memo) for block in module.blocks[: module.current_depth()]))
    elif callable(static := getattr(module, 'to_static_op', None)):
        result = static()
    elif isinstance(module, Mutable):
        raise SubnetError(f'A {type(module).__name__} cannot be extracted: it is a mutable of an unknown kind.')
    if isinstance(result, (Constant, CombinedLayers, CombinedInputs, GraphModule, nn.Sequential)) and result is not module:
        result.training = module.training
    memo[id(module)] = result
    if result is module:
        for name, child in list(module._modules.items()):
            if child is not None:
                replaced = _fixed(child, memo)
                if replaced is not child:
                    module._modules[name] = replaced
    return result


def _fixed_layers(choice: LayerChoice, memo: dict[int, nn.Module]) -> nn.Module:
    decision = choice.decided()
    if isinstance(decision, torch.Tensor):
        decision = Weights(float(weight) for weight in decision.detach().tolist())
    picks = chosen(decision)
    route = isinstance(choice, DiffChoiceRoute)
    single = len(picks) == 1 and not isinstance(decision, Weights) and not choice.return_mask and choice.reduction != 'none'
    if single and not route:
        return _fixed(choice.candidates[picks[0]], memo)
    layers = {choice.names[index]: _fixed(choice.candidates[index], memo) for index in picks}
    weights = [decision[index] for index in picks] if isinstance(decision, Weights) else None
    mask = choice.mask().detach().clone() if choice.return_mask else None
    if route:
        code = combined_edges(picks, layers, weights, choice.reduction, mask)
        return code or CombinedEdges(picks, layers, weights, choice.reduction, mask)
    rest = weights, choice.reduction, mask
    return combined_layers(layers, *rest, choice.candidates) or CombinedLayers(layers, *rest)
