"""The modules that carry a decision, and the scope that groups them.

A mutable holds its current decision; its forward is a function of that decision and of its inputs. It knows of
no mutator: binding leaves a weak mark, and a weak callback only where a mutator wants to run the forward itself.
Neither goes into copies, pickles or the state dict.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Union

import torch
from mmengine.logging import print_log
from torch import nn

from strop.errors import NotDecidedError, SpaceError
from strop.mutables.domain import Choice, Domain, Weights

Decision = Union[Choice, torch.Tensor]
Handler = Callable[..., Any]


class Keyed(nn.Module):
    """A module with a stable key: the one given, or its path in the model once that is known."""

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        if key is not None and not isinstance(key, str):
            print_log(f'A key should be a string; {key!r} is taken as {str(key)!r}.', logger='current')
            key = str(key)
        if key == '':
            raise SpaceError('A key must not be empty; leave it out to get the path in the model as the key.')
        self._given_key = key
        self._group: str | None = None
        self._path: str | None = None
        self._owner: weakref.ref[Any] | None = None
        self._callback: Callable[[], Handler | None] | None = None

    @property
    def key(self) -> str:
        """The name of the decision: that of its group, else the key given, else the path in the model.

        Raises:
            NotDecidedError: If no key was given and the path is not known yet.
        """
        if self._group is not None:
            return self._group
        if self._given_key is not None:
            return self._given_key
        if self._path is None:
            raise NotDecidedError(
                f'This {type(self).__name__} has no key yet: without key=... its key is its path in the model, '
                'known after a mutator is bound or space_of(model) is called.'
            )
        return self._path

    @property
    def path(self) -> str | None:
        """Where the module is in the model that was searched last; None before that."""
        return self._path

    @property
    def name(self) -> str | None:
        """NNI's word for `path`; a sub-class may set a name of its own."""
        return self.__dict__.get('_own_name', self._path)

    @name.setter
    def name(self, value: str) -> None:
        self.__dict__['_own_name'] = value

    @property
    def owner(self) -> Any:
        """The mutator that the module is bound to, or None."""
        return self._owner() if self._owner is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_owner': None, '_callback': None}


class MutableScope(Keyed):
    """A group of decisions with a key of its own, such as a cell. It is listed by mutators and has no domain.

    Subclass it and write `forward`. A mutator's `enter_mutable_scope` and `exit_mutable_scope` are called around it.

    >>> class Cell(MutableScope):
    ...     def forward(self, x):
    ...         return x + 1
    >>> Cell('cell')(torch.zeros(1))
    tensor([1.])
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        owner = self.owner
        if owner is None:
            return super().__call__(*args, **kwargs)
        owner.enter_mutable_scope(self)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            owner.exit_mutable_scope(self)


class Mutable(Keyed):
    """A module with one decision to make.

    Args:
        key: Name of the decision. Two mutables with one key are one decision; without a key it is the
            module's path in the model.
    """

    def __init__(self, key: str | None = None) -> None:
        super().__init__(key)
        self._decision: Decision | None = None
        self._domain: Domain | None = None

    def make_domain(self) -> Domain:
        """Build the domain; called once, and again after the mutable was edited."""
        raise SpaceError(f'{type(self).__name__} must define make_domain(), which returns its Domain.')

    @property
    def domain(self) -> Domain:
        """The alternatives of this decision."""
        if self._domain is None:
            self._domain = self.make_domain()
        return self._domain

    @property
    def decision(self) -> Decision | None:
        """The current decision: chosen indices, or one weight for each alternative; None before any."""
        return self._decision

    def decide(self, choice: Any) -> None:
        """Set the decision; see `Domain.parse` for the accepted forms.

        A float tensor is kept as it is, with its gradient history, and weights the alternatives.

        Raises:
            SubnetError: If the choice does not fit the domain.
        """
        self.take(self.domain.parse(choice), choice)

    def take(self, choice: Choice, given: Any = None) -> None:
        """Set a decision that is valid already: indices or `Weights`, and the float tensor they were read from, if any."""
        differentiable = isinstance(given, torch.Tensor) and given.is_floating_point()
        self._decision = given if differentiable and (isinstance(choice, Weights) or given.requires_grad) else choice

    def undecide(self) -> None:
        """Forget the decision."""
        self._decision = None

    def decided(self) -> Decision:
        """Return the decision.

        Raises:
            NotDecidedError: If there is none.
        """
        if self._decision is None:
            name = self._given_key or self._path
            raise NotDecidedError(
                f'{type(self).__name__}{f" {name!r}" if name else ""} has no decision yet. Call mutator.reset() or apply a '
                'subnet first. If it was not found by the mutator, it is not a registered sub-module: assign it as an '
                'attribute of a module or keep it in a ModuleList.'
            )
        return self._decision

    def choice(self) -> Choice:
        """Return the decision as data, detached: indices or `Weights`."""
        decision = self.decided()
        return self.domain.parse(decision.detach()) if isinstance(decision, torch.Tensor) else decision

    def mask(self) -> torch.Tensor:
        """Return the decision as a mask: boolean, or float weights (with their gradient)."""
        decision = self.decided()
        return decision if isinstance(decision, torch.Tensor) else self.domain.mask(decision)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the current decision, or hand over to the mutator that took this forward on."""
        handler = self._callback() if self._callback is not None else None
        if handler is not None:
            return handler(self, *args, **kwargs)
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output of the current decision."""
        raise SpaceError(f'{type(self).__name__} must define run(), which computes the output of its decision.')

    def extra_repr(self) -> str:
        return f'key={self._given_key or self._path!r}, {self.domain.kind} of {len(self.domain)}'

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if isinstance(self._decision, torch.Tensor):
            state['_decision'] = self._decision.detach()
        return state
