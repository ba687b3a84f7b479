"""A subnet: one answer to all decisions of a space. Data, never code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from strop.errors import UnknownKeyError, near
from strop.mutables.domain import Choice, Weights

if TYPE_CHECKING:
    from strop.mutables.space import Space

VERSION = 1


class Subnet(Mapping[str, Any]):
    """A validated, hashable, readable mapping key -> choice. Made by `Space.subnet`, not by hand.

    Reading it as a mapping gives what a person reads (`'shuffle_5x5'`, `7`, `['a', 'c']`); `choices` gives
    the indices (or `Weights`) behind it. Inactive decisions are absent.

    >>> from strop.mutables import OneOf, Space
    >>> space = Space({'kernel': OneOf((3, 5, 7))})
    >>> subnet = space.subnet({'kernel': 5})
    >>> subnet['kernel'], subnet.choices
    (5, {'kernel': (1,)})
    >>> subnet == space.subnet({'kernel': [5]})
    True
    """

    __slots__ = ('__dict__', 'choices', 'space')

    def __init__(self, space: Space, choices: Mapping[str, Choice]) -> None:
        self.space = space
        self.choices = dict(choices)

    def __getitem__(self, key: str) -> Any:
        if key not in self.choices:
            hint = ' It is inactive in this subnet.' if key in self.space else near(key, self.choices)
            raise UnknownKeyError(f'{key!r} is not decided by this subnet.{hint}')
        return self.space[key].format(self.choices[key])

    def __contains__(self, key: object) -> bool:
        return key in self.choices

    def __iter__(self) -> Iterator[str]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Subnet):
            return NotImplemented
        if self.choices != other.choices:
            return False
        return self.space is other.space or dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(frozenset(self.choices.items()))

    def __repr__(self) -> str:
        return f'Subnet({", ".join(f"{key}={value!r}" for key, value in self.items())})'

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits: the same for equal subnets in every process and version.

        >>> from strop.mutables import OneOf, Space
        >>> Space({'kernel': OneOf((3, 5))}).subnet({'kernel': 3}).digest
        '0b06c5cb372e15e3'
        """
        text = json.dumps(dict(self), sort_keys=True, separators=(',', ':'), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def weighted(self) -> bool:
        """Whether any decision is a weighted mixture instead of a choice."""
        return any(isinstance(choice, Weights) for choice in self.choices.values())

    def diff(self, other: Subnet) -> dict[str, tuple[Any, Any]]:
        """Return the decisions in which two subnets differ; None stands for an inactive one.

        >>> from strop.mutables import OneOf, Space
        >>> space = Space({'a': OneOf((1, 2)), 'b': OneOf((1, 2))})
        >>> space.subnet({'a': 1, 'b': 1}).diff(space.subnet({'a': 1, 'b': 2}))
        {'b': (1, 2)}
        """
        keys = [*self, *(key for key in other if key not in self)]
        pairs = {key: (self.get(key), other.get(key)) for key in keys}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

    def masks(self) -> dict[str, torch.Tensor]:
        """Return key -> mask: boolean of shape `(alternatives,)`, or float for weights."""
        return {key: self.space[key].mask(choice) for key, choice in self.choices.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a subnet file, version included."""
        return {'strop': 'subnet', 'version': VERSION, 'choices': dict(self)}
