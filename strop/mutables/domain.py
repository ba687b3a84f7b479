"""Domains: the alternatives of one decision, as data.

A *choice* from a domain is a tuple of indices into its labels (one index for a single choice, several for
a multiple one), or `Weights`, one float for each alternative; from `Numeric` (numeric.py) it is the number alone.
Domains know nothing of modules or tensors' owners: search strategies, tuners and files work on them alone.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np
import torch

from strop.errors import SpaceError, SubnetError, listed, near

Label = Union[None, bool, int, float, str, tuple['Label', ...]]


class Weights(tuple[float, ...]):
    """A choice that mixes the alternatives: one weight for each, zero for those that are left out.

    >>> Weights([0.5, 0.5, 0.0])
    Weights(0.5, 0.5, 0.0)
    """

    def __repr__(self) -> str:
        return f'Weights({", ".join(map(str, self))})'

    def __eq__(self, other: object) -> bool:
        # As tuples, the weights (0.0, 1.0) and the indices (0, 1) would be one choice.
        return isinstance(other, Weights) and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Weights, tuple(self)))


Picks = tuple[int, ...]
Choice = Union[Picks, Weights]


def as_label(value: Any) -> Label:
    """Return `value` as a label, with lists turned into tuples.

    Raises:
        SpaceError: If JSON could not hold the value.

    >>> as_label([3, 3])
    (3, 3)
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise SpaceError(f'An alternative must be a finite number, but got {value}.')
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(as_label(item) for item in value)
    raise SpaceError(
        'The alternatives of a value must be None, booleans, numbers, strings or (nested) lists of them, so that '
        f'a subnet file can hold them, but got {value!r} of type {type(value).__name__}. '
        'Use a LayerChoice to choose between modules.'
    )


def plain(label: Label) -> Any:
    """Return a label as JSON writes it: tuples become lists."""
    return [plain(item) for item in label] if isinstance(label, tuple) else label


def _identity(label: Label) -> Any:
    """Return what two labels share if they are equal, without taking True for 1, or '1' for 1."""
    if isinstance(label, tuple):
        return tuple(map(_identity, label))
    return (isinstance(label, bool), label)


def same_label(left: Label, right: Label) -> bool:
    """Return whether two labels are equal, without taking True for 1.

    >>> same_label(1, 1), same_label(1, True)
    (True, False)
    """
    return _identity(left) == _identity(right)


@dataclass(frozen=True)
class Domain(ABC):
    """The alternatives of one decision and the rule for how many of them are taken.

    Args:
        labels: What a person reads for each alternative: names, or values.
        costs: A relative size of each alternative where one is known (parameters, say); it decides
            which alternative is the largest and the smallest.
    """

    labels: tuple[Label, ...]
    costs: tuple[float, ...] | None = field(default=None, compare=False)

    kind = 'domain'
    mixable = False
    inputs = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'labels', tuple(as_label(label) for label in self.labels))
        if not self.labels:
            raise SpaceError(f'A {self.kind} domain needs at least one alternative, but got none.')
        known: set[Any] = set()
        for label in self.labels:
            if _identity(label) in known:
                raise SpaceError(f'The alternatives of a domain must differ, but {label!r} is given twice.')
            known.add(_identity(label))
        if self.costs is not None and len(self.costs) != len(self.labels):
            raise SpaceError(f'`costs` needs one number for each of {len(self)} alternatives, got {len(self.costs)}.')

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of different choices."""

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Picks:
        """Draw a choice uniformly."""

    @abstractmethod
    def grid(self) -> Iterator[Picks]:
        """Yield every choice once."""

    def first(self) -> Picks:
        """Return the choice that stands where nobody chooses: the first of the grid."""
        return next(self.grid())

    @abstractmethod
    def neighbours(self, picks: Picks) -> Iterator[Picks]:
        """Yield every choice that differs from `picks` in one alternative."""

    @property
    @abstractmethod
    def genes(self) -> tuple[int, ...]:
        """Sizes of the integers that `encode` gives, for optimizers that work on vectors."""

    @abstractmethod
    def encode(self, picks: Picks) -> tuple[int, ...]:
        """Return a choice as one integer for each gene."""

    @abstractmethod
    def decode(self, genes: Sequence[int]) -> Picks:
        """Return the choice of `encode`'s integers. Every vector within `genes` is a valid choice."""

    @abstractmethod
    def extreme(self, largest: bool) -> Picks:
        """Return the choice of greatest (or smallest) total cost."""

    @abstractmethod
    def check_count(self, count: int) -> str | None:
        """Return the rule that `count` chosen alternatives would break, or None."""

    def mutate(self, picks: Picks, rng: np.random.Generator) -> Picks:
        """Draw a choice other than `picks`, or `picks` itself where there is no other."""
        if self.size == 1:
            return picks
        while True:
            drawn = self.sample(rng)
            if drawn != picks:
                return drawn

    # -- reading and writing ---------------------------------------------------------------

    def parse(self, choice: Any) -> Choice:
        """Read a choice in any of the accepted forms.

        A tensor or array is a *mask* with one entry for each alternative: booleans or 0/1 integers mark the
        chosen ones, floats are weights. Anything else is read as a label, an index (where the labels are
        names), a list of either, a list of booleans (multi-hot) or a list of floats (weights).

        Raises:
            SubnetError: If it is none of these, of a wrong length, out of range, or chooses too few or many.

        >>> OneOf(('conv3x3', 'conv5x5')).parse('conv5x5')
        (1,)
        >>> OneOf(('conv3x3', 'conv5x5')).parse(torch.tensor([True, False]))
        (0,)
        >>> AnyOf(('a', 'b', 'c')).parse([0, 'c'])
        (0, 2)
        """
        if isinstance(choice, Weights):
            return self._weights(choice)
        if isinstance(choice, (torch.Tensor, np.ndarray)):
            return self._read_mask(choice)
        index = self._label_index(choice)
        if index is not None:
            return self._checked((index,), choice)
        if isinstance(choice, (list, tuple)):
            return self._read_list(list(choice))
        if isinstance(choice, Mapping):
            return self._read_mapping(choice)
        return self._checked((self._single(choice),), choice)

    def format(self, choice: Choice) -> Any:
        """Return a choice as a subnet file writes it: a label, a list of labels, or `{'weights': [...]}`."""
        if isinstance(choice, Weights):
            return {'weights': list(choice)}
        return [plain(self.labels[index]) for index in choice]

    def mask(self, choice: Choice) -> torch.Tensor:
        """Return a choice as a boolean tensor (or a float one for `Weights`) of shape `(len(self),)`."""
        if isinstance(choice, Weights):
            return torch.tensor(choice, dtype=torch.float32)
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[list(choice)] = True
        return mask

    def to_dict(self) -> dict[str, Any]:
        """Return the domain as JSON holds it."""
        return {'kind': self.kind, 'labels': [plain(label) for label in self.labels]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Domain:
        """Rebuild a domain of this kind from `to_dict`; `domain_from_dict` finds the kind."""
        arguments = {key: value for key, value in content.items() if key != 'kind'}
        return cls(**{**arguments, 'labels': tuple(as_label(label) for label in arguments['labels'])})

    @property
    def indexable(self) -> bool:
        """Whether an integer that is no label means a position: true where every label is a name."""
        return all(isinstance(label, str) for label in self.labels)

    @property
    def _numbered(self) -> bool:
        # Positions of candidates without names; of numbers that are values, `Ordered`, floats may be labels, too.
        return not isinstance(self, Ordered) and self.labels == tuple(range(len(self)))

    def _label_index(self, choice: Any) -> int | None:
        try:
            label = as_label(choice)
        except SpaceError:
            return None
        for index, known in enumerate(self.labels):
            if same_label(label, known):
                return index
        if isinstance(label, str):
            # A list of layers has the labels 0, 1, ...; files written elsewhere name them '0', '1'.
            for index, known in enumerate(self.labels):
                if isinstance(known, int) and not isinstance(known, bool) and str(known) == label:
                    return index
        return None

    def _single(self, item: Any) -> int:
        index = self._label_index(item)
        if index is not None:
            return index
        if isinstance(item, (int, np.integer)) and not isinstance(item, bool) and self.indexable:
            if 0 <= item < len(self):
                return int(item)
            raise SubnetError(
                f'An index must be in 0..{len(self) - 1}, but got {item}. The alternatives are {listed(self.labels)}.'
            )
        raise SubnetError(f'{item!r} is none of the alternatives {listed(self.labels)}.{near(item, self.labels)}')

    def _read_list(self, items: list[Any]) -> Choice:
        if items and all(isinstance(item, (bool, np.bool_)) for item in items):
            return self._read_mask(np.array(items, dtype=bool))
        if items and all(isinstance(item, float) for item in items):
            if (self._numbered and len(items) == len(self)) or not self._all_labels(items):
                return self._weights(items)
        picks = [self._single(item) for item in items]
        if len(set(picks)) != len(picks):
            raise SubnetError(f'An alternative may be chosen once, but {items!r} names one twice.')
        return self._checked(tuple(sorted(picks)), items)

    def _read_mapping(self, choice: Mapping[Any, Any]) -> Choice:
        if set(choice) == {'weights'}:
            return self._weights(choice['weights'])
        if 'chosen' in choice:
            return self.parse(choice['chosen'])
        if '_idx' in choice:
            given = choice['_idx']
            indices = list(given) if isinstance(given, (list, tuple, np.ndarray)) else [given]
            for index in indices:
                if not isinstance(index, (int, np.integer)) or isinstance(index, bool) or not 0 <= index < len(self):
                    raise SubnetError(f'`_idx` must hold indices in 0..{len(self) - 1}, but got {given!r}.')
            return self._checked(tuple(sorted({int(index) for index in indices})), choice)
        raise SubnetError(
            f"A mapping given as a choice must have the key 'weights', 'chosen' or '_idx', but got {dict(choice)!r}."
        )

    def _all_labels(self, items: Iterable[Any]) -> bool:
        return all(self._label_index(item) is not None for item in items)

    def _read_mask(self, mask: torch.Tensor | np.ndarray) -> Choice:
        if tuple(mask.shape) != (len(self),):
            raise SubnetError(
                f'A mask needs one entry for each of {len(self)} alternatives, shape ({len(self)},), '
                f'but got shape {tuple(mask.shape)}.'
            )
        values = mask.tolist()
        if not all(isinstance(value, (bool, int, float)) for value in values):
            raise SubnetError(f'A mask must be of booleans, 0/1 integers or floats, but got dtype {mask.dtype}.')
        if isinstance(values[0], float):
            return self._weights(values)
        if any(value not in (0, 1) for value in values):
            raise SubnetError(
                f'A mask of integers may hold 0 and 1 only, but got {values}. Give indices as a list, not as a tensor.'
            )
        picks = tuple(index for index, value in enumerate(values) if value)
        return self._checked(picks, values) if picks else self._weights([0.0] * len(self))

    def _weights(self, weights: Any) -> Choice:
        if not isinstance(weights, (list, tuple)) or not all(
            isinstance(item, (int, float)) and not isinstance(item, bool) for item in weights
        ):
            raise SubnetError(f'Weights must be a list of numbers, but got {weights!r}.')
        if len(weights) != len(self):
            raise SubnetError(f'Weights need one number for each of {len(self)} alternatives, but got {len(weights)}.')
        if not all(math.isfinite(item) for item in weights):
            raise SubnetError(f'Weights must be finite, but got {list(weights)}.')
        count = sum(item != 0 for item in weights)
        if count == 0 or all(item in (0, 1) for item in weights):
            # Weights of exactly 0 and 1 are a choice: one form for one meaning.
            rule = self.check_count(count)
            if rule is None:
                return tuple(index for index, item in enumerate(weights) if item)
            if count == 0 and not self.mixable:
                raise SubnetError(f'{rule}, but none is: {list(weights)}.')
        return Weights(float(item) for item in weights)

    def _checked(self, picks: Picks, given: Any) -> Choice:
        rule = self.check_count(len(picks))
        if rule:
            raise SubnetError(f'{rule}, but {given!r} chooses {len(picks)} of {listed(self.labels)}.')
        return picks


@dataclass(frozen=True)
class OneOf(Domain):
    """Exactly one of unordered alternatives.

    Args:
        mixable: Accept several at once, too, as a sum of theirs (`Weights` of ones), and a mask of zeros for none:
            what a `LayerChoice` can run.
        inputs: The alternatives are inputs, as those of an `InputChoice`; files of search spaces tell them apart.

    >>> OneOf(('a', 'b')).size
    2
    >>> OneOf(('a', 'b', 'c'), mixable=True).parse(['a', 'c'])
    Weights(1.0, 0.0, 1.0)
    """

    mixable: bool = field(default=False, compare=False)
    inputs: bool = field(default=False, compare=False)
    kind = 'one_of'

    def _checked(self, picks: Picks, given: Any) -> Choice:
        if self.mixable and len(picks) > 1:
            return Weights(float(index in picks) for index in range(len(self)))
        return super()._checked(picks, given)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **{name: True for name in ('mixable', 'inputs') if getattr(self, name)}}

    @property
    def size(self) -> int:
        return len(self)

    def sample(self, rng: np.random.Generator) -> Picks:
        return (int(rng.integers(len(self))),)

    def grid(self) -> Iterator[Picks]:
        return ((index,) for index in range(len(self)))

    def neighbours(self, picks: Picks) -> Iterator[Picks]:
        return ((index,) for index in range(len(self)) if (index,) != picks)

    @property
    def genes(self) -> tuple[int, ...]:
        return (len(self),)

    def encode(self, picks: Picks) -> tuple[int, ...]:
        return picks

    def decode(self, genes: Sequence[int]) -> Picks:
        return (int(genes[0]),)

    def extreme(self, largest: bool) -> Picks:
        costs = self.costs or tuple(range(len(self)))
        return (costs.index((max if largest else min)(costs)),)

    def check_count(self, count: int) -> str | None:
        return None if count == 1 else 'Exactly one alternative must be chosen'

    def format(self, choice: Choice) -> Any:
        return super().format(choice) if isinstance(choice, Weights) else plain(self.labels[choice[0]])


@dataclass(frozen=True)
class Ordered(OneOf):
    """Exactly one of values that have an order: widths, depths, kernel sizes, an integer range.

    >>> list(Ordered.integers(2, 8, step=2).labels)
    [2, 4, 6, 8]
    """

    kind = 'ordered'

    @classmethod
    def integers(cls, low: int, high: int, step: int = 1) -> Ordered:
        """Return the domain of `low, low + step, ...` up to and including `high`."""
        whole = all(isinstance(each, int) and not isinstance(each, bool) for each in (low, high, step))
        if not whole or step < 1 or high < low:
            raise SpaceError(
                f'A range of integers needs whole numbers, low <= high and step >= 1, got {low!r}, {high!r}, step {step!r}.'
            )
        return cls(tuple(range(low, high + 1, step)))

    def _weights(self, weights: Any) -> Choice:
        choice = super()._weights(weights)
        if isinstance(choice, Weights):
            raise SubnetError(f'A value cannot be a weighted mixture, but got the weights {list(choice)}.')
        return choice


@dataclass(frozen=True)
class KOf(Domain):
    """Exactly `k` of the alternatives.

    >>> KOf(('a', 'b', 'c'), k=2).size
    3
    """

    k: int = 1
    kind = 'k_of'

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.k <= len(self):
            raise SpaceError(f'`k` must be in 0..{len(self)} (the number of alternatives), but got {self.k}.')

    @property
    def size(self) -> int:
        return math.comb(len(self), self.k)

    def sample(self, rng: np.random.Generator) -> Picks:
        return tuple(sorted(int(index) for index in rng.choice(len(self), self.k, replace=False)))

    def grid(self) -> Iterator[Picks]:
        return itertools.combinations(range(len(self)), self.k)

    def neighbours(self, picks: Picks) -> Iterator[Picks]:
        for out in picks:
            for into in range(len(self)):
                if into not in picks:
                    yield tuple(sorted({*picks, into} - {out}))

    @property
    def genes(self) -> tuple[int, ...]:
        # One gene per pick: its rank among the alternatives not yet taken. Every vector is then valid.
        return tuple(len(self) - taken for taken in range(self.k))

    def encode(self, picks: Picks) -> tuple[int, ...]:
        left = list(range(len(self)))
        genes = []
        for index in sorted(picks):
            genes.append(left.index(index))
            left.remove(index)
        return tuple(genes)

    def decode(self, genes: Sequence[int]) -> Picks:
        left = list(range(len(self)))
        return tuple(sorted(left.pop(int(gene)) for gene in genes))

    def extreme(self, largest: bool) -> Picks:
        costs = self.costs or (0.0,) * len(self)
        order = sorted(range(len(self)), key=lambda index: (-costs[index] if largest else costs[index], index))
        return tuple(sorted(order[: self.k]))

    def check_count(self, count: int) -> str | None:
        return None if count == self.k else f'Exactly {self.k} alternatives must be chosen'

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), 'k': self.k}

    def format(self, choice: Choice) -> Any:
        written = super().format(choice)
        return written[0] if self.k == 1 and not isinstance(choice, Weights) else written


@dataclass(frozen=True)
class AnyOf(Domain):
    """Any subset of the alternatives, the empty one included.

    >>> AnyOf(('a', 'b', 'c')).size
    8
    """

    kind = 'any_of'

    @property
    def size(self) -> int:
        return int(2 ** len(self))

    def sample(self, rng: np.random.Generator) -> Picks:
        return tuple(int(index) for index in np.flatnonzero(rng.integers(2, size=len(self))))

    def grid(self) -> Iterator[Picks]:
        for count in range(len(self) + 1):
            yield from itertools.combinations(range(len(self)), count)

    def neighbours(self, picks: Picks) -> Iterator[Picks]:
        for index in range(len(self)):
            yield tuple(sorted(set(picks) ^ {index}))

    @property
    def genes(self) -> tuple[int, ...]:
        return (2,) * len(self)

    def encode(self, picks: Picks) -> tuple[int, ...]:
        return tuple(int(index in picks) for index in range(len(self)))

    def decode(self, genes: Sequence[int]) -> Picks:
        return tuple(index for index, gene in enumerate(genes) if int(gene))

    def extreme(self, largest: bool) -> Picks:
        return tuple(range(len(self))) if largest else ()

    def check_count(self, count: int) -> str | None:
        return None


KINDS: dict[str, type[Domain]] = {cls.kind: cls for cls in (OneOf, Ordered, KOf, AnyOf)}


def domain_from_dict(content: Mapping[str, Any]) -> Domain:
    """Rebuild a domain from `Domain.to_dict`.

    >>> domain_from_dict(KOf(('a', 'b'), k=1).to_dict())
    KOf(labels=('a', 'b'), costs=None, k=1)
    """
    kind = content.get('kind')
    if kind not in KINDS:
        raise SpaceError(f'A domain must be one of {listed(KINDS)}, but got {kind!r}.{near(kind, KINDS)}')
    try:
        return KINDS[kind].from_dict(content)
    except (KeyError, TypeError) as error:
        raise SpaceError(f'{dict(content)!r} does not describe a domain as `to_dict` writes it ({error}).') from None
