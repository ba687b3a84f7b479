"""Widths as decisions: how many channels of a unit are active.

A channel unit is a set of tensor axes that keep one length. Its decision is an ordered domain of lengths, read and
written as numbers or as ratios. What a length does to a model is not known here: a mutator for channels finds the
units, and `Attachment` is how it leaves them in a model whose own modules know nothing of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from strop.errors import ConfigError, SubnetError, listed, near
from strop.mutables.domain import Choice, Domain, Ordered
from strop.mutables.mutable import Mutable
from strop.registry import MODELS

MODES = ('number', 'ratio')


def round_width(value: float, most: int, divisor: int = 1, min_value: int = 1, min_ratio: float = 0.9) -> int:
    r"""Round a number of channels to a multiple of `divisor`, within `min_value` and `most`.

    .. math:: w = \lfloor (v + d / 2) / d \rfloor \cdot d, \quad w \mathrel{+}= d \text{ if } w < r v

    Args:
        value: The wanted number, v.
        most: The number of channels that there are; all of them stay all, though they be no multiple.
        divisor: What the result is a multiple of, d.
        min_value: The least result.
        min_ratio: Rounding keeps at least this share of `value`, r.

    >>> round_width(34, 64, divisor=8), round_width(11, 64, divisor=8), round_width(66, 66, divisor=8)
    (32, 16, 66)
    """
    if value >= most:
        return most
    rounded = int(value + divisor / 2) // divisor * divisor
    if rounded < min_ratio * value:
        rounded += divisor
    return min(max(rounded, min_value, 1), most)


@dataclass(frozen=True)
class Widths(Ordered):
    """Numbers of channels in increasing order, labelled by the numbers, by ratios, or by positions.

    Where the labels are numbers, a float within (0, 1] is read as a ratio of `channels`. With `loose`, what is no label
    is read as the nearest one.

    >>> widths = Widths((4, 8, 16), numbers=(4, 8, 16), channels=16)
    >>> widths.parse(0.5), widths.parse(16)
    ((1,), (2,))
    """

    numbers: tuple[int, ...] = field(default=(), compare=False)
    channels: int = field(default=0, compare=False)
    loose: bool = field(default=False, compare=False)

    def _label_index(self, choice: Any) -> int | None:
        found = super()._label_index(choice) if not isinstance(choice, (float, np.floating)) else self._ratio(float(choice))
        if found is None and self.loose and isinstance(choice, (int, np.integer)) and not isinstance(choice, bool):
            if 1 <= choice <= self.channels and isinstance(self.labels[0], int):
                return self.nearest(int(choice))
        return found

    def _ratio(self, ratio: float) -> int | None:
        for index, label in enumerate(self.labels):
            if isinstance(label, float) and abs(label - ratio) < 1e-9:
                return index
        if not 0 < ratio <= 1:
            return super()._label_index(ratio)
        number = ratio * self.channels
        if self.loose:
            return self.nearest(number)
        if isinstance(self.labels[0], int) and self.numbers == self.labels:
            return next((index for index, width in enumerate(self.numbers) if abs(width - number) <= 0.5), None)
        return None

    def nearest(self, number: float) -> int:
        """Return the index of the width that is nearest to a number of channels, the greater of two."""
        return min(range(len(self.numbers)), key=lambda index: (abs(self.numbers[index] - number), -index))


@dataclass(frozen=True)
class Networks(Widths):
    """Positions of the networks of a slimmable one: a number is a position and never a width.

    >>> Networks((0, 1), numbers=(4, 8), channels=8).parse(1)
    (1,)
    """

    def _label_index(self, choice: Any) -> int | None:
        return Ordered._label_index(self, choice)


class MutableChannelUnit(Mutable):
    """A decision on how many channels of a unit are active; calling it gives that number.

    Args:
        num_channels: How many channels there are.
        choice_mode: 'number' or 'ratio': how choices are written.
        divisor: Numbers of channels are rounded to multiples of it.
        min_value: The least number of channels.
        min_ratio: Rounding keeps at least this share of a number.
        key: Name of the decision.
        unit: Name of the channel unit, where it differs from the key.

    Raises:
        ConfigError: If an argument is out of its range.

    Attributes:
        ranked: Whether the active channels are chosen by a score; otherwise they are the first ones.
    """

    ranked = False

    def __init__(
        self,
        num_channels: int,
        choice_mode: str = 'number',
        divisor: int = 1,
        min_value: int = 1,
        min_ratio: float = 0.9,
        *,
        key: str | None = None,
        unit: str | None = None,
    ) -> None:
        super().__init__(key)
        if choice_mode not in MODES:
            raise ConfigError(
                f'`choice_mode` must be one of {listed(MODES)}, but got {choice_mode!r}.{near(choice_mode, MODES)}'
            )
        for name, number in (('num_channels', num_channels), ('divisor', divisor), ('min_value', min_value)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ConfigError(f'`{name}` must be a positive integer, but got {number!r}.')
        if not 0 <= min_ratio <= 1:
            raise ConfigError(f'`min_ratio` is a share within [0, 1], but got {min_ratio!r}.')
        self.num_channels = num_channels
        self.choice_mode = choice_mode
        self.divisor = divisor
        self.min_value = min_value
        self.min_ratio = min_ratio
        self._unit = unit

    @property
    def unit(self) -> str:
        """Name of the channel unit; that of the decision by default."""
        return self._unit or self._given_key or self.key

    @abstractmethod
    def numbers(self) -> list[int]:
        """Return the numbers of channels that may be active, in increasing order."""

    def make_domain(self) -> Domain:
        """Return the domain of the widths."""
        numbers = tuple(self.numbers())
        labels = numbers if self.choice_mode == 'number' else tuple(number / self.num_channels for number in numbers)
        return Widths(labels, None, numbers=numbers, channels=self.num_channels, loose=self.loose)

    #: Whether any number or ratio may be given, and means the nearest width.
    loose = False

    def rounded(self, value: float) -> int:
        """Return a number of channels, rounded as the unit's settings say."""
        return round_width(value, self.num_channels, self.divisor, self.min_value, self.min_ratio)

    def width(self, choice: Choice) -> int:
        """Return the number of channels that a choice of the domain stands for."""
        domain = self.domain
        assert isinstance(domain, Widths), 'made by make_domain'
        return domain.numbers[int(choice[0])]

    def nearest(self, number: int) -> Any:
        """Return the width, as it is written, that is nearest to a number of channels."""
        domain = self.domain
        assert isinstance(domain, Widths), 'made by make_domain'
        return domain.labels[domain.nearest(number)]

    def run(self) -> int:
        """Return the number of active channels."""
        return self.width(self.choice())

    @property
    def activated_channels(self) -> int:
        """The number of active channels."""
        return self.run()

    @property
    def current_mask(self) -> torch.Tensor:
        """Which channels are active, booleans of shape `(num_channels,)`."""
        return torch.arange(self.num_channels) < self.run()

    @property
    def is_mutable(self) -> bool:
        """Whether there is more than one width."""
        return len(self.domain) > 1

    @property
    def current_choice(self) -> Any:
        """The current width: a number or a ratio. It may be set, too."""
        return self.domain.format(self.choice())

    @current_choice.setter
    def current_choice(self, choice: Any) -> None:
        self.decide(choice)

    @property
    def max_choice(self) -> Any:
        """The greatest width."""
        return self.domain.labels[-1]

    @property
    def min_choice(self) -> Any:
        """The least width."""
        return self.domain.labels[0]

    def sample_choice(self) -> Any:
        """Draw a width from torch's global generator."""
        return self.domain.labels[int(torch.randint(len(self.domain), ()))]

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this unit again, as a config holds them."""
        names = ('num_channels', 'choice_mode', 'divisor', 'min_value', 'min_ratio')
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return f'{self._given_key or self._path!r}, {self.num_channels} channels, {len(self.domain)} widths'


@MODELS.register_module(name=['SequentialMutableChannelUnit', 'SquentialMutableChannel'])
class SequentialMutableChannelUnit(MutableChannelUnit):
    """Any number of channels, the first ones, from the least to all.

    Any number within 1 to `num_channels` or ratio within (0, 1] may be given; it means the nearest width that the
    settings allow.

    >>> unit = SequentialMutableChannelUnit(32, divisor=8, key='conv')
    >>> unit.domain.labels
    (8, 16, 24, 32)
    >>> unit.decide(0.5)
    >>> unit()
    16
    """

    loose = True

    def numbers(self) -> list[int]:
        """Return every rounded number up to `num_channels`."""
        return sorted({self.rounded(number) for number in range(1, self.num_channels + 1)})


@MODELS.register_module()
class L1MutableChannelUnit(SequentialMutableChannelUnit):
    r"""Any number of channels, those whose weights have the greatest L1 norms.

    .. math:: s_i = \frac{1}{|P|} \sum_{W \in P} \lVert W_i \rVert_1

    over the weights P that produce the unit's channels. Li et al., Pruning Filters for Efficient ConvNets,
    https://arxiv.org/abs/1608.08710; there each layer is pruned by its own norms, here coupled layers share the mean.
    The channels are chosen when a width is applied to a model. A smaller width takes from those that are active, a
    greater one adds to them.

    >>> L1MutableChannelUnit(8, key='conv').ranked
    True
    """

    ranked = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: tuple[int, ...] | None = None

    def rank(self, scores: torch.Tensor, number: int | None = None) -> tuple[int, ...]:
        """Choose `number` channels (as many as decided, by default) by `scores`, shape `(num_channels,)`; return them in order.

        >>> unit = L1MutableChannelUnit(4, key='conv')
        >>> unit.decide(2)
        >>> unit.rank(torch.tensor([1.0, 4.0, 3.0, 2.0]))
        (1, 2)
        """
        if tuple(scores.shape) != (self.num_channels,):
            raise SubnetError(
                f'Scores of {self.unit!r} need one number for each of {self.num_channels} channels, but have shape '
                f'{tuple(scores.shape)}.'
            )
        number = self.run() if number is None else number
        before = set(range(self.num_channels) if self.kept is None else self.kept)
        values = scores.tolist()
        if number != len(before):
            inside = number < len(before)
            order = sorted(range(self.num_channels), key=lambda index: ((index in before) != inside, -values[index], index))
            before = set(order[:number]) if inside else before | set(order[: number - len(before)])
        self.kept = tuple(sorted(before))
        return self.kept

    @property
    def current_mask(self) -> torch.Tensor:
        """Which channels are active, booleans of shape `(num_channels,)`: the first ones until they are ranked."""
        if self.kept is None:
            return super().current_mask
        mask = torch.zeros(self.num_channels, dtype=torch.bool)
        mask[list(self.kept)] = True
        return mask

    def undecide(self) -> None:
        """Forget the decision and the chosen channels."""
        super().undecide()
        self.kept = None


@MODELS.register_module(name=['OneShotMutableChannelUnit', 'OneShotMutableChannel'])
class OneShotMutableChannelUnit(MutableChannelUnit):
    """One of a few widths, the first channels.

    Args:
        num_channels: How many channels there are.
        candidate_choices: The widths, as ratios or numbers; widths that round to the same number are one.
        choice_mode: 'ratio' or 'number': which of them they are.
        divisor: Widths are rounded to multiples of it.
        min_value: The least number of channels.
        min_ratio: Rounding keeps at least this share of a width.
        num_blocks: Instead of `candidate_choices`, the widths k / num_blocks ...
        min_blocks: ... for k from this to `num_blocks`.
        key: Name of the decision.
        unit: Name of the channel unit, where it differs from the key.

    Raises:
        ConfigError: If there is no candidate or one is out of range.

    >>> OneShotMutableChannelUnit(16, [0.25, 0.5, 1.0], key='conv').numbers()
    [4, 8, 16]
    """

    def __init__(
        self,
        num_channels: int,
        candidate_choices: Sequence[float] = (0.5, 1.0),
        choice_mode: str = 'ratio',
        divisor: int = 1,
        min_value: int = 1,
        min_ratio: float = 0.9,
        *,
        num_blocks: int | None = None,
        min_blocks: int = 1,
        key: str | None = None,
        unit: str | None = None,
    ) -> None:
        super().__init__(num_channels, choice_mode, divisor, min_value, min_ratio, key=key, unit=unit)
        if num_blocks is not None:
            if not 1 <= min_blocks <= num_blocks:
                raise ConfigError(f'1 <= min_blocks <= num_blocks must hold, but got {min_blocks} and {num_blocks}.')
            shares = [block / num_blocks for block in range(min_blocks, num_blocks + 1)]
            candidate_choices = shares if choice_mode == 'ratio' else [self.rounded(share * num_channels) for share in shares]
        self.candidate_choices = self._checked(candidate_choices)

    def _checked(self, candidates: Iterable[Any]) -> list[float]:
        if isinstance(candidates, str) or not isinstance(candidates, Iterable):
            raise ConfigError(f'`candidate_choices` must be a list of widths, but got {candidates!r}.')
        checked = list(candidates)
        if not checked:
            raise ConfigError(f'{type(self).__name__} needs `candidate_choices`, at least one width, but got none.')
        whole = self.choice_mode == 'number'
        for choice in checked:
            number = isinstance(choice, (int, float)) and not isinstance(choice, bool)
            if not number or not 0 < choice <= (self.num_channels if whole else 1) or (whole and choice != int(choice)):
                rule = f'integers within 1 to {self.num_channels}' if whole else 'ratios within (0, 1]'
                raise ConfigError(
                    f'`candidate_choices` of {self._given_key or "a unit"!r} must be {rule} with choice_mode='
                    f'{self.choice_mode!r}, but got {choice!r}.'
                )
        return checked

    def numbers(self) -> list[int]:
        """Return the rounded numbers of the candidates."""
        scale = 1 if self.choice_mode == 'number' else self.num_channels
        return sorted({self.rounded(choice * scale) for choice in self.candidate_choices})

    def make_domain(self) -> Domain:
        """Return the domain of the candidates, labelled as they were given."""
        scale = 1 if self.choice_mode == 'number' else self.num_channels
        labels: dict[int, float] = {}
        for choice in sorted(self.candidate_choices):
            number = self.rounded(choice * scale)
            # Of several that round to one number the greatest: it is nearest the full width that a reader expects.
            labels[number] = number if self.choice_mode == 'number' else float(choice)
        return Widths(tuple(labels.values()), None, numbers=tuple(labels), channels=self.num_channels)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this unit again, as a config holds them."""
        return {**super().settings(), 'candidate_choices': list(self.candidate_choices)}


@MODELS.register_module()
class SlimmableChannelUnit(OneShotMutableChannelUnit):
    """A unit of a slimmable network: the n-th width of every unit belongs to the n-th network.

    Args:
        num_channels: How many channels there are.
        candidate_choices: The widths in the order of the networks; equal ones stay apart.
        choice_mode: 'number' or 'ratio': which of them they are.
        divisor: Widths are rounded to multiples of it.
        min_value: The least number of channels.
        min_ratio: Rounding keeps at least this share of a width.
        key: Name of the decision that all units share.
        unit: Name of the channel unit, where it differs from the key.

    >>> unit = SlimmableChannelUnit(16, [4, 8, 16], key='width')
    >>> unit.decide(1)
    >>> unit()
    8
    """

    def __init__(
        self,
        num_channels: int,
        candidate_choices: Sequence[float] = (),
        choice_mode: str = 'number',
        divisor: int = 1,
        min_value: int = 1,
        min_ratio: float = 0.9,
        *,
        key: str | None = None,
        unit: str | None = None,
    ) -> None:
        super().__init__(num_channels, candidate_choices, choice_mode, divisor, min_value, min_ratio, key=key, unit=unit)

    def numbers(self) -> list[int]:
        """Return the rounded width of each network."""
        scale = 1 if self.choice_mode == 'number' else self.num_channels
        return [self.rounded(choice * scale) for choice in self.candidate_choices]

    def make_domain(self) -> Domain:
        """Return the domain of the networks: their positions."""
        numbers = tuple(self.numbers())
        costs = tuple(float(number) for number in numbers)
        # Equal positions of all units are one decision, so the labels can't be the widths.
        return Networks(tuple(range(len(numbers))), costs, numbers=numbers, channels=self.num_channels)


class Attachment(nn.Module):
    """A child that a mutator adds to a model, to hold decisions about parts that are no mutables themselves.

    `extract` and `fix` call `settle` with the module that holds it. Being called, as a `Sequential` calls its children,
    it returns what it got.

    >>> class Note(Attachment):
    ...     def settle(self, parent):
    ...         del parent.note
    ...
    ...     release = settle
    >>> Note()(3)
    3
    """

    @abstractmethod
    def settle(self, parent: nn.Module) -> None:
        """Make the current decisions permanent in `parent` and remove this child from it."""

    @abstractmethod
    def release(self, parent: nn.Module) -> None:
        """Leave `parent` as it was without this child; nothing of it becomes permanent."""

    def forward(self, *inputs: Any) -> Any:
        """Return what it got."""
        return inputs[0] if len(inputs) == 1 else inputs


def attachments(model: nn.Module) -> list[tuple[nn.Module, Attachment]]:
    """Return every attachment in `model` with the module that holds it.

    >>> attachments(nn.Linear(1, 1))
    []
    """
    return [
        (parent, child) for parent in model.modules() for child in parent._modules.values() if isinstance(child, Attachment)
    ]


__all__ = [
    'Attachment',
    'L1MutableChannelUnit',
    'MutableChannelUnit',
    'OneShotMutableChannelUnit',
    'SequentialMutableChannelUnit',
    'SlimmableChannelUnit',
    'Widths',
    'attachments',
    'round_width',
]
