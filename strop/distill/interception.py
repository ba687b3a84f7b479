"""Standing between a function and its callers for a while: what recorders and deliveries of functions do.

One table holds the attributes that are replaced at the moment, each with all who listen. The original goes back when the last
of them leaves, in whatever order they leave. Listeners hear only calls from the thread that they listen in.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from strop.distill.sources import find_attribute, import_path
from strop.errors import ConfigError

#: `around(call, args, kwargs)` returns what the caller gets; `call(*args, **kwargs)` goes on to the original.
Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Target:
    """An attribute that can be called: of a Python module, of a class, or of one object.

    Args:
        owner: The module's name, the class, or the object.
        name: Name of the attribute.
        receives_self: Whether its first argument is `self` (or `cls`).
        everywhere: Whether other Python modules that imported the function by its name call the same one.
    """

    owner: Any
    name: str
    receives_self: bool = False
    everywhere: bool = False

    @property
    def holder(self) -> Any:
        """The object whose attribute it is."""
        return sys.modules[self.owner] if isinstance(self.owner, str) else self.owner

    def __str__(self) -> str:
        owner = self.owner
        return f'{owner if isinstance(owner, str) else getattr(owner, "__qualname__", type(owner).__name__)}.{self.name}'

    def parameters(self) -> inspect.Signature | None:
        """Return the signature without `self`, or None where Python cannot tell it."""
        function = unwrapped(getattr(self.holder, self.name))
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return None
        if self.receives_self and not inspect.ismethod(function):
            return signature.replace(parameters=list(signature.parameters.values())[1:])
        return signature


def function_target(path: str) -> Target:
    """Return the function at an import path.

    Where the path is that of the function's own module, calls through every name are meant, also those in modules that did
    `from module import function`. Any other path means the calls through that name only.

    Raises:
        ConfigError: If there is no such function.

    >>> str(function_target('torch.nn.functional.relu'))
    'torch.nn.functional.relu'
    """
    owner, name = import_path(path)
    function = unwrapped(getattr(owner, name))
    if not isinstance(owner, ModuleType):
        raise ConfigError(
            f'{path!r} is an attribute of a class. Take MethodOutputs, MethodInputs or MethodOutputsDelivery for methods.'
        )
    if isinstance(function, type) or not callable(function):
        raise ConfigError(f'{path!r} is no function, but a {type(function).__name__}.')
    home = getattr(function, '__module__', None)
    return Target(owner.__name__, name, everywhere=home == owner.__name__)


def method_target(path: str, model: nn.Module | None = None) -> Target:
    """Return the method at a dotted path of the model, or at an import path that ends in a class and its method.

    Raises:
        ConfigError: If there is no such method.

    >>> str(method_target('torch.nn.Linear.forward')), str(method_target('1.forward', nn.Sequential(nn.Tanh(), nn.ReLU())))
    ('Linear.forward', 'ReLU.forward')
    """
    found = find_attribute(model, path) if model is not None else None
    if found is not None:
        owner, name = found
        if isinstance(getattr(owner, name), nn.Module):
            raise ConfigError(f'{path!r} of the model is a module. Take ModuleOutputs or ModuleInputs, or name a method of it.')
        if not callable(getattr(owner, name)):
            raise ConfigError(f'{path!r} of the model is no method, but a {type(getattr(owner, name)).__name__}.')
        return Target(owner, name)
    try:
        cls, name = import_path(path)
    except ConfigError as error:
        where = '' if model is None else f' Nor does {type(model).__name__} have such a method.'
        raise ConfigError(f'{error}{where}') from None
    if not isinstance(cls, type):
        raise ConfigError(
            f'{path!r} is a function, not a method. Take FunctionOutputs, FunctionInputs or FunctionOutputsDelivery.'
        )
    raw = inspect.getattr_static(cls, name)
    if not callable(raw) and not isinstance(raw, (staticmethod, classmethod)):
        raise ConfigError(f'{path!r} is no method, but a {type(raw).__name__}.')
    return Target(cls, name, receives_self=not isinstance(raw, staticmethod))


def unwrapped(function: Any) -> Any:
    """Return the function that is being listened to, given what stands in for it."""
    return getattr(function, '_strop_original', function)


class _Site:
    """An attribute that is replaced at the moment, and who listens."""

    def __init__(self, target: Target) -> None:
        self.target = target
        # Replaced as a whole, never changed, so that calls need no lock.
        self.listeners: tuple[tuple[int, Around], ...] = ()
        self.places: list[tuple[Any, str, Any]] = []

    def install(self) -> None:
        holder, name = self.target.holder, self.target.name
        raw = inspect.getattr_static(holder, name)
        if isinstance(raw, (staticmethod, classmethod)) and isinstance(holder, type):
            self.stand_in: Any = type(raw)(self._wrap(raw.__func__))
        elif isinstance(holder, (type, ModuleType)):
            self.stand_in = self._wrap(raw)
        else:
            self.stand_in = self._wrap(getattr(holder, name))
        self.original = raw
        self._put(holder, name)
        self.spread()

    def spread(self) -> None:
        """Replace the function in all modules that have imported it by name, also in those loaded since the last time."""
        if not self.target.everywhere:
            return
        for module, name in _namesakes(self.target, self.original):
            if vars(module).get(name) is self.original:
                self._put(module, name)

    def _put(self, holder: Any, name: str) -> None:
        self.places.append((holder, name, vars(holder).get(name, _NOTHING)))
        if isinstance(holder, type):
            setattr(holder, name, self.stand_in)
        else:
            # Past a module's own __setattr__.
            vars(holder)[name] = self.stand_in

    def restore(self) -> None:
        for holder, name, before in reversed(self.places):
            if vars(holder).get(name) is not self.stand_in:
                continue  # replaced by someone else since
            while isinstance(site := getattr(before, '_strop_site', None), _Site) and not site.listeners:
                before = site.original  # one who left while this one stood before it
            if isinstance(holder, type):
                delattr(holder, name) if before is _NOTHING else setattr(holder, name, before)
            elif before is _NOTHING:
                del vars(holder)[name]
            else:
                vars(holder)[name] = before
        self.places = []

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original, updated=())
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            thread = threading.get_ident()
            call = original
            # Who came first stands outermost.
            for listens_in, around in reversed(self.listeners):
                if listens_in == thread:
                    call = functools.partial(_through, around, call)
            return call(*args, **kwargs)

        stand_in._strop_original = original  # type: ignore[attr-defined]
        stand_in._strop_site = self  # type: ignore[attr-defined]
        return stand_in


_NOTHING = object()
_LOCK = threading.RLock()
_SITES: dict[tuple[int, str], _Site] = {}
_NAMESAKES: dict[Target, tuple[int, Any, list[tuple[ModuleType, str]]]] = {}


def _namesakes(target: Target, function: Any) -> list[tuple[ModuleType, str]]:
    """Return where loaded modules hold a function; looked up anew only when modules were loaded since."""
    count, known, places = _NAMESAKES.get(target, (0, None, []))
    if count != len(sys.modules) or known is not function:
        modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
        places = [(module, name) for module in modules for name, value in list(vars(module).items()) if value is function]
        _NAMESAKES[target] = (len(sys.modules), function, places)
    return places


def _through(around: Around, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return around(call, args, kwargs)


class Interception:
    """Listen to the calls of a target, from `start` to `stop`.

    >>> heard = []
    >>> def listen(call, args, kwargs):
    ...     heard.append(args)
    ...     return call(*args, **kwargs)
    >>> listening = Interception(method_target('torch.nn.ReLU.extra_repr'), listen)
    >>> listening.start()
    >>> _ = repr(nn.ReLU())
    >>> listening.stop()
    >>> _ = repr(nn.ReLU())
    >>> len(heard)
    1
    """

    def __init__(self, target: Target, around: Around) -> None:
        self.target = target
        self.around = around
        self._entry: tuple[int, Around] | None = None

    def start(self) -> None:
        """Begin to listen in this thread."""
        with _LOCK:
            key = (id(self.target.holder), self.target.name)
            site = _SITES.get(key)
            if site is None:
                site = _Site(self.target)
                site.install()
                _SITES[key] = site
            else:
                site.spread()
            self._entry = (threading.get_ident(), self.around)
            site.listeners = (*site.listeners, self._entry)

    def stop(self) -> None:
        """Stop listening; the last to leave puts the original back."""
        with _LOCK:
            key = (id(self.target.holder), self.target.name)
            site = _SITES[key]
            site.listeners = tuple(entry for entry in site.listeners if entry is not self._entry)
            self._entry = None
            if not site.listeners:
                site.restore()
                del _SITES[key]
