"""One forward of a model that leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._pytree import tree_leaves, tree_map

from strop.errors import GraphError

Model = TypeVar('Model', bound=nn.Module)


@contextmanager
def training_mode_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into the mode, training or not, that it had.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with training_mode_kept(model):
    ...     _ = model.eval()
    >>> [module.training for module in model]
    [True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluated(model: Model) -> Model:
    """Put a model into eval mode and return it; `model.eval()` returns None where a `train` of the user's returns nothing.

    >>> class Frozen(nn.Linear):
    ...     def train(self, mode=True):
    ...         super().train(mode)
    >>> print(Frozen(2, 2).eval(), evaluated(Frozen(2, 2)).training)
    None False
    """
    model.eval()
    return model


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put everything that a forward may leave in the modules of `model` back afterwards: modes, caches, decisions.

    >>> model = nn.Dropout()
    >>> with untouched(model):
    ...     model.training, model.cache = False, torch.zeros(1)
    >>> model.training, hasattr(model, 'cache')
    (True, False)
    """
    scripted = [(script, script.training) for script in model.modules() if isinstance(script, torch.jit.ScriptModule)]
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(dict(vars(module)), dict(module._buffers), dict(module._parameters)) for module in modules]
    # Caches are also kept inside dicts and lists, which stay the same objects.
    containers = [
        (value, copy.copy(value))
        for attributes, _, _ in before
        for name, value in attributes.items()
        if (name not in OF_EVERY_MODULE or name in _HOOKS) and isinstance(value, (dict, list, set))
    ]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for script, training in scripted:
            script.training = training
        for module, (attributes, buffers, parameters) in zip(modules, before, strict=True):
            _refill(module.__dict__, attributes)
            _refill(module._buffers, buffers)
            _refill(module._parameters, parameters)
        for container, content in containers:
            _refill(container, content)


#: Names of the bookkeeping attributes that every module has.
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Some libraries hook modules during their first forward, and note in an attribute that they have done so.
_HOOKS = frozenset(name for name in OF_EVERY_MODULE if name.startswith('_forward'))


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, also of a model that keeps computed tensors as attributes, as the older `weight_norm` does.

    >>> layer = torch.nn.utils.weight_norm(nn.Linear(2, 2))
    >>> torch.equal(copied(layer)(torch.ones(1, 2)), layer(torch.ones(1, 2)))
    True
    """
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in kept if not value.is_leaf})


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)


def gives_second_axis(module: nn.Module) -> bool:
    """Whether the outputs of a layer are axis 1 of its weight: of transposed convolutions, and of transformers' `Conv1D`.

    >>> gives_second_axis(nn.ConvTranspose2d(3, 8, 2)), gives_second_axis(nn.Conv2d(3, 8, 2))
    (True, False)
    """
    return is_conv1d(module) or isinstance(module, _ConvTransposeNd)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is transformers' `Conv1D`, which GPT-2 is made of: a linear one with a transposed weight.

    >>> is_conv1d(nn.Conv1d(3, 8, 1))
    False
    """
    # It is told by what it is, because transformers is optional.
    return type(module).__name__ == 'Conv1D' and hasattr(module, 'nf') and hasattr(module, 'nx')


def module_paths(model: nn.Module) -> dict[int, str]:
    """Return id of a module -> its path; a module that is used twice has the first one."""
    paths: dict[int, str] = {}
    for path, module in model.named_modules():
        paths.setdefault(id(module), path)
    return paths


def output_tensors(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Yield the tensors in an output, also those in the fields of result objects (dataclasses, data samples)."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif depth < 3 and hasattr(leaf, '__dict__') and not isinstance(leaf, (nn.Module, type)):
            yield from output_tensors(list(vars(leaf).values()), depth + 1)


def moved_to(model: nn.Module, value: Any) -> Any:
    """Return inputs with their tensors on the device of a model; as they are where it has none, several, or moves them itself.

    Mappings stay what they are, such as what tokenizers give.

    >>> moved_to(nn.Linear(1, 1, device='meta'), (torch.zeros(1), 3))[0].device
    device(type='meta')
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    # Models whose weights are elsewhere until they are used (accelerate) have hooks that bring the inputs there.
    if len(devices) != 1 or any(hasattr(module, '_hf_hook') for module in model.modules()):
        return value
    return _on(devices.pop(), value)


def _on(device: torch.device, value: Any) -> Any:
    def one(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.to(device)
        if not isinstance(leaf, Mapping):
            return leaf
        moved = _on(device, dict(leaf))
        if not isinstance(leaf, MutableMapping):
            return moved
        again = copy.copy(leaf)
        again.update(moved)
        return again

    return tree_map(one, value)


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, on the CPU where its own device has none.

    >>> in_double(torch.ones(1)).dtype
    torch.float64
    """
    return (tensor.cpu() if tensor.device.type == 'mps' else tensor).double()


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that example inputs stand for.

    Args:
        inputs: A tensor (the only argument), a tuple or list (positional arguments) or a mapping (keyword arguments).

    Raises:
        GraphError: If it is none of these, or holds no tensor.

    >>> arguments_of({'x': torch.zeros(1)})
    ((), {'x': tensor([0.])})
    """
    rule = 'Example inputs are a tensor, a tuple of positional arguments or a dict of keyword arguments'
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, torch.Tensor):
        args = (inputs,)
    elif isinstance(inputs, (tuple, list)):
        args = tuple(inputs)
    elif isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    else:
        raise GraphError(
            f'{rule}; got {"nothing" if inputs is None else repr(inputs)[:80]}. '
            'For an image model: torch.randn(2, 3, 224, 224).'
        )
    if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves((args, kwargs))):
        raise GraphError(f'{rule}; the given {type(inputs).__name__} holds no tensor.')
    return args, kwargs


def shapes_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the arguments of a call as text, tensors by their shapes and other objects by their classes.

    >>> shapes_of([torch.zeros(2, 3)], {'mode': 'loss', 'samples': [torch.Generator()]})
    "((2, 3),){'mode': 'loss', 'samples': [Generator]}"
    """
    shown = tree_map(_shown, (tuple(args), dict(kwargs)))
    return f'{shown[0]}{shown[1] or ""}'


class _Named(str):
    """Text that stands for an object."""

    __slots__ = ()
    __repr__ = str.__str__


def _shown(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return value if isinstance(value, (int, float, str, type(None))) else _Named(type(value).__name__)


def first_line(error: BaseException) -> str:
    """Return an exception as one line of text."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


def map_tensors(
    value: Any, change: Callable[[torch.Tensor, tuple[Any, ...]], torch.Tensor], keys: tuple[Any, ...] = (), depth: int = 4
) -> Any:
    """Return `value` with every tensor in its tuples, lists and dicts changed; the same object if there is none.

    Args:
        value: A tensor, or containers of them.
        change: Called with a tensor and the keys that lead to it.
        keys: The keys that lead to `value`.
        depth: How many containers deep to look.
    """
    if isinstance(value, torch.Tensor):
        return change(value, keys)
    if depth and type(value) in (tuple, list):
        found = [map_tensors(item, change, (*keys, number), depth - 1) for number, item in enumerate(value)]
        return type(value)(found) if any(new is not old for new, old in zip(found, value)) else value
    if depth and type(value) is dict:
        changed = {key: map_tensors(item, change, (*keys, key), depth - 1) for key, item in value.items()}
        return changed if any(changed[key] is not value[key] for key in value) else value
    return value
