"""`torch.autograd.Function`s whose work no operator shows: those of compiled extensions.

Such a function allocates its output with an ordinary operator and has compiled code fill it. Seen from ATen the output
is unrelated to the input. So a function that has a rule is recorded whole, like an operator; one that has none, and
whose output is as it was allocated as far as operators tell, is recorded as an operator without a rule.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import _SingleLevelFunction
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

Record = Callable[[type, tuple[Any, ...], Any, int], None]


def function_name(function: type) -> str:
    """Return how rules name an autograd function: by its package and its class.

    >>> function_name(torch.autograd.Function)
    'torch.Function'
    """
    return f'{function.__module__.partition(".")[0]}.{function.__name__}'


@contextmanager
def whole_functions(
    is_whole: Callable[[type], bool], begin: Callable[[], int] | None = None, record: Record | None = None
) -> Iterator[None]:
    """Hide from all modes what those autograd functions do inside that are recorded whole.

    Args:
        is_whole: Says of a function, a class, whether it is.
        begin: Called before each function that is not hidden; what it returns is given to `record`.
        record: Called after each function as `record(function, args, out, begun)`; `begun` is -1 if it was hidden.
    """

    def watched(cls: Any, forward: Callable[..., Any], skip: int, whole: bool) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            begun = -1 if whole or begin is None else begin()
            if whole:
                with _disable_current_modes(), torch._C.DisableTorchFunction():
                    out = _in_some_precision(forward, args, kwargs)
            else:
                out = forward(*args, **kwargs)
            if record is not None:
                record(cls, args[skip:], out, begun)
            return out

        return run

    before = []
    try:
        for cls in _functions():
            whole = is_whole(cls)
            if whole or record is not None:
                own = vars(cls)['forward']
                before.append((cls, own))
                # `apply` is compiled and often bound to another name long before; `forward` is looked up at each call.
                context = cls.setup_context is _SingleLevelFunction.setup_context
                cls.forward = staticmethod(watched(cls, cls.forward, int(context), whole))  # type: ignore[assignment]
        yield
    finally:
        for cls, own in before:
            cls.forward = own  # type: ignore[method-assign]


def _in_some_precision(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function; proofs are made in double precision, which some compiled code does not have."""
    try:
        return forward(*args, **kwargs)
    except RuntimeError:
        narrow = tree_map_only(torch.Tensor, lambda tensor: _cast(tensor, torch.float64, torch.float32), (args, kwargs))
        if all(new is old for new, old in zip(tree_leaves(narrow), tree_leaves((args, kwargs)))):
            raise
        out = forward(*narrow[0], **narrow[1])
        return tree_map_only(torch.Tensor, lambda tensor: _cast(tensor, torch.float32, torch.float64), out)


def _cast(tensor: torch.Tensor, old: torch.dtype, new: torch.dtype) -> torch.Tensor:
    return tensor.to(new) if tensor.dtype == old else tensor


def _functions() -> Iterator[type[torch.autograd.Function]]:
    """Yield all autograd functions outside torch that have a forward of their own."""
    left = list(torch.autograd.Function.__subclasses__())
    found = set()
    while left:
        cls = left.pop()
        if cls not in found:
            found.add(cls)
            left.extend(cls.__subclasses__())
            if isinstance(vars(cls).get('forward'), staticmethod) and not cls.__module__.startswith('torch.'):
                yield cls


__all__ = ['function_name', 'whole_functions']
