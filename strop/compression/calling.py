"""How models are called on the inputs of a batch: in which memory layout, compiled or not, and which output counts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_any, tree_flatten, tree_leaves, tree_map_only

from strop.errors import ConfigError, DataError, StropError
from strop.estimators.runtimes import quiet
from strop.graph.forward import evaluated


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """Call a model on the inputs of a batch: a tensor, a tuple of arguments, or a mapping of keywords.

    >>> call(torch.nn.Identity(), torch.ones(1))
    tensor([1.])
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


class Answers:
    """What a model gives for the inputs of batches that come again, such as a teacher's for all candidates of a plan.

    Args:
        most: Bytes to keep at most; what comes after that is found anew each time, as is all on a GPU, where that is cheap.

    >>> answers = Answers()
    >>> answers.of(torch.ones(1), lambda: torch.zeros(1)), answers.of(torch.ones(1), lambda: torch.ones(1))
    (tensor([0.]), tensor([0.]))
    """

    def __init__(self, most: int = 2**28) -> None:
        self._left = most
        self._known: dict[bytes, Tensor] = {}

    def of(self, inputs: Any, find: Callable[[], Tensor]) -> Tensor:
        """Return the answer to the inputs of a batch.

        Args:
            inputs: The inputs; equal ones have equal answers.
            find: Returns the answer.
        """
        leaves, structure = tree_flatten(inputs)
        if any(leaf.device.type != 'cpu' for leaf in leaves if isinstance(leaf, Tensor)):
            return find()
        content = hashlib.sha256(str(structure).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                content.update(f'{leaf.dtype} {tuple(leaf.shape)}'.encode())
                content.update(leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            else:
                content.update(repr(leaf).encode())
        mark = content.digest()
        if mark not in self._known:
            answer = find()
            size = answer.numel() * answer.element_size()
            if size > self._left:
                return answer
            self._left -= size
            # A view, such as the first token of each sample, would keep all that it is a part of.
            self._known[mark] = answer.clone() if answer.untyped_storage().nbytes() > size else answer
        return self._known[mark]


def as_batches(several: Iterable[Any]) -> list[Any]:
    """Return the inputs of batches as calibrations take them, for which the first item of a tuple or list is the inputs.

    >>> as_batches([torch.ones(1), [torch.ones(1), torch.zeros(1)]])
    [tensor([1.]), ([tensor([1.]), tensor([0.])],)]
    """
    return [(inputs,) if isinstance(inputs, (tuple, list)) else inputs for inputs in several]


def main_output(outputs: Any, inputs: Any = None) -> Tensor:
    """Return the tensor that a model is judged by: the logits, or the embedding of each text, or its only tensor.

    The hidden states of the tokens of a text are averaged where its mask says that there is a token.

    Raises:
        DataError: If there is no such tensor.

    >>> main_output({'logits': torch.ones(1, 2), 'loss': torch.zeros(())}).shape
    torch.Size([1, 2])
    """
    if isinstance(outputs, Mapping):
        for name in ('logits', 'last_hidden_state'):
            if isinstance(outputs.get(name), Tensor):
                return outputs[name] if name == 'logits' else _pooled(outputs[name], inputs)
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not tensors:
        raise DataError(f'The model gives a {type(outputs).__name__} without a tensor of numbers, which cannot be judged.')
    first = tensors[0]
    if isinstance(inputs, Mapping) and first.ndim == 3 and 'attention_mask' in inputs:
        return _pooled(first, inputs)
    return first


def _pooled(states: Tensor, inputs: Any) -> Tensor:
    mask = inputs.get('attention_mask') if isinstance(inputs, Mapping) else None
    if mask is None:
        return states.mean(1)
    weight = mask[..., None].to(states)
    return (states * weight).sum(1) / weight.sum(1).clamp_min(1)


def laid(inputs: Any, layout: torch.memory_format) -> Any:
    """Return inputs with every tensor of four axes (N, C, H, W) in a layout; the values are the same.

    >>> laid(torch.ones(1, 3, 8, 8), torch.channels_last).stride()
    (192, 1, 24, 3)
    >>> laid(torch.ones(1, 1, 8, 8), torch.channels_last).stride()
    (64, 1, 8, 1)
    """
    return tree_map_only(Tensor, lambda each: _laid(each, layout) if each.ndim == 4 else each, inputs)


def _laid(images: Tensor, layout: torch.memory_format) -> Tensor:
    images = images.contiguous(memory_format=layout)
    if images.shape[1] != 1:
        return images
    # One channel is contiguous either way, so that its strides are what PyTorch tells the layout of all that follows by.
    _, _, height, width = images.shape
    channel = 1 if layout is torch.channels_last else height * width
    return images.as_strided(images.shape, (height * width, channel, width, 1))


def layout_for(model: nn.Module, inputs: Any, weights: bool = False) -> torch.memory_format:
    """Return `torch.channels_last` if a model takes images that way, `torch.contiguous_format` otherwise.

    One that flattens by `view` where `flatten` or `reshape` would do raises on it, as does a traced graph in which a `view` was
    written down.

    Args:
        model: The model; it and its mode stay as they are.
        inputs: Inputs of a batch; no more than two samples of it are used.
        weights: Whether its weights will be in that layout as well: what a convolution gives follows them too.

    Raises:
        NotDecidedError: If the model has decisions to make.

    >>> layout_for(nn.Conv2d(3, 4, 3), torch.ones(2, 3, 8, 8))
    torch.channels_last
    >>> layout_for(nn.Linear(3, 4), torch.ones(2, 3))
    torch.contiguous_format
    """
    if not tree_any(lambda leaf: isinstance(leaf, Tensor) and leaf.ndim == 4, inputs):
        return torch.contiguous_format
    few = tree_map_only(Tensor, lambda each: each[:2] if each.ndim else each, inputs)
    if weights:
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            call(evaluated(model), laid(few, torch.channels_last))
    except StropError:
        raise
    except Exception:  # whatever it is, the layout that models are written for will tell
        return torch.contiguous_format
    finally:
        for module, training in modes:
            module.training = training
    return torch.channels_last


class Compiled:
    """A model that `torch.compile` runs on inputs of one shape, and PyTorch as always on all others.

    With one shape alone, the program that runs depends on the inputs and not on those that came before, so that a training
    which was killed goes on with the same bits.

    Args:
        model: The model; what it learns or keeps, it keeps itself.
        example: Inputs of a batch of that shape, as `call` takes them.

    Raises:
        ConfigError: When it is first called on that shape, if it cannot be compiled here.

    >>> doubled = Compiled(torch.nn.Linear(2, 3), torch.ones(4, 2))
    >>> doubled(torch.ones(1, 2)).shape  # another shape, so that nothing is compiled
    torch.Size([1, 3])
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self._shapes = _shapes(example)
        self._function = torch.compile(model, dynamic=False)
        self._ran = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model gives."""
        if _shapes((args, kwargs)) != self._shapes:
            return self.model(*args, **kwargs)
        if self._ran:
            return self._function(*args, **kwargs)
        try:
            with quiet():
                outputs = self._function(*args, **kwargs)
        except Exception as error:  # whatever dynamo, Inductor or a C++ compiler raise
            with torch.no_grad():
                self.model(*args, **kwargs)  # if it is the model's own fault, then that is what is told
            said = (str(error).strip().splitlines() or [''])[0][:300]  # what follows is advice to PyTorch's developers
            raise ConfigError(
                f'torch.compile cannot compile {type(self.model).__name__} here: {type(error).__name__}: {said}. '
                'It needs a C++ compiler, and a model that it can trace. Leave `compile` out to train without.'
            ) from error
        self._ran = True
        return outputs


def _shapes(inputs: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


__all__ = ['Answers', 'Compiled', 'as_batches', 'call', 'laid', 'layout_for', 'main_output']
