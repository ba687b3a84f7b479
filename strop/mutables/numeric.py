"""Numbers with a law: learning rates, weight decays, sizes. Ordinary hyper-parameters beside the decisions of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from strop.errors import SpaceError, SubnetError, listed, near
from strop.mutables.domain import KINDS, Choice, Domain, Label, Picks

#: Law -> the names of its arguments. With a `q` before it the drawn number is rounded to a multiple of the last one.
LAWS = {
    'uniform': ('low', 'high'),
    'quniform': ('low', 'high', 'q'),
    'loguniform': ('low', 'high'),
    'qloguniform': ('low', 'high', 'q'),
    'normal': ('mu', 'sigma'),
    'qnormal': ('mu', 'sigma', 'q'),
    'lognormal': ('mu', 'sigma'),
    'qlognormal': ('mu', 'sigma', 'q'),
    'randint': ('lower', 'upper'),
}

# A number without steps has so many codes, evenly spaced in probability.
_CODES = 2**32
_FEW = 64
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Numeric(Domain):
    r"""A number drawn by a law. A choice is the number itself, not an index.

    =============== ==================================================================
    law             a draw
    =============== ==================================================================
    ``uniform``     :math:`x \sim U(low, high)`
    ``loguniform``  :math:`x = e^u`, :math:`u \sim U(\log low, \log high)`
    ``normal``      :math:`x \sim N(\mu, \sigma^2)`
    ``lognormal``   :math:`x = e^z`, :math:`z \sim N(\mu, \sigma^2)`
    ``randint``     a whole number, :math:`lower \le x < upper`
    ``q...``        the same, then :math:`q \cdot round(x/q)`, kept within the bounds
    =============== ==================================================================

    Args:
        law: A name of `LAWS`.
        arguments: What the law takes, in the order of `LAWS`.

    Raises:
        SpaceError: If there is no such law, or the arguments do not fit it.

    >>> rate = Numeric(law='loguniform', arguments=(1e-4, 1e-1))
    >>> rate.parse(0.01)
    (0.01,)
    >>> [value for (value,) in Numeric(law='quniform', arguments=(8, 16, 4)).grid()]
    [8.0, 12.0, 16.0]
    """

    labels: tuple[Label, ...] = ()
    law: str = 'uniform'
    arguments: tuple[float, ...] = (0.0, 1.0)
    kind = 'numeric'

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise SpaceError(f'A number needs one of the laws {listed(LAWS, 20)}, but got {self.law!r}.{near(self.law, LAWS)}')
        names = LAWS[self.law]
        given = tuple(self.arguments) if isinstance(self.arguments, (list, tuple)) else (self.arguments,)
        if len(given) != len(names) or not all(map(_is_number, given)):
            raise SpaceError(f'{self.law!r} takes the numbers [{", ".join(names)}], but got {self.arguments!r}.')
        object.__setattr__(self, 'arguments', given)
        first, second = given[:2]
        if 'sigma' in names and second <= 0:
            raise SpaceError(f'{self.law!r} needs sigma > 0, but got {second}.')
        if names[0] == 'low' and first > second:
            raise SpaceError(f'{self.law!r} needs low <= high, but got {first} and {second}.')
        if 'log' in self.law and names[0] == 'low' and first <= 0:
            raise SpaceError(f'{self.law!r} needs low > 0, because it draws the logarithm, but got {first}.')
        if self.law == 'randint' and (int(first) != first or int(second) != second or first >= second):
            raise SpaceError(f"'randint' needs whole numbers lower < upper (upper is left out), but got {first} and {second}.")
        if names[-1] == 'q' and given[2] <= 0:
            raise SpaceError(f'{self.law!r} needs a step q > 0, but got {given[2]}.')

    # -- the law -----------------------------------------------------------------------------

    @property
    def step(self) -> float | None:
        """The step between neighbouring values; None where there is none."""
        return 1 if self.law == 'randint' else self.arguments[2] if len(self.arguments) == 3 else None

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value; infinite for normal laws."""
        first, second = self.arguments[:2]
        if self.law == 'randint':
            return first, second - 1
        if 'normal' in self.law:
            return (0.0 if 'log' in self.law else -math.inf), math.inf
        return first, second

    def at(self, level: float) -> float:
        """Return the value below which the law falls with probability `level`, rounded to the step.

        >>> Numeric(law='normal', arguments=(2.0, 1.0)).at(0.5)
        2.0
        """
        first, second = self.arguments[:2]
        if self.law == 'randint':
            return int(first) + min(int(level * (second - first)), int(second - first) - 1)
        if 'normal' in self.law:
            level = min(max(level, 0.5 / _CODES), 1 - 0.5 / _CODES)
            value = first + second * _NORMAL.inv_cdf(level)
        elif 'log' in self.law:
            first, second = math.log(first), math.log(second)
            value = first + level * (second - first)
        else:
            value = first + level * (second - first)
        return self._stepped(math.exp(value) if 'log' in self.law else value)

    def level(self, value: float) -> float:
        """Return the probability with which the law (before rounding) falls below `value`."""
        first, second = self.arguments[:2]
        if self.law == 'randint':
            return (value - first + 0.5) / (second - first)
        if 'log' in self.law:
            value = math.log(value) if value > 0 else -math.inf
        if 'normal' in self.law:
            return _NORMAL.cdf((value - first) / second)
        if 'log' in self.law:
            first, second = math.log(first), math.log(second)
        return min(max((value - first) / (second - first), 0.0), 1.0) if second > first else 0.5

    def _stepped(self, value: float) -> float:
        if self.step is not None:
            value = round(value / self.step) * self.step
        low, high = self.bounds
        value = min(max(value, low), high)
        return int(value) if self.law == 'randint' else float(value)

    @property
    def _ends(self) -> tuple[int, int] | None:
        """The first and the last multiple of the step, for a law of finitely many values."""
        low, high = self.bounds
        if self.step is None:
            return (0, 0) if low == high else None
        return None if math.isinf(high) else (round(low / self.step), round(high / self.step))

    def _value(self, position: int) -> float:
        ends = self._ends
        assert ends is not None, 'asked for laws of finitely many values'
        low = self.bounds[0]
        return self._stepped(low if self.step is None else (ends[0] + position) * self.step)

    # -- a domain ----------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of values; infinite (a float) where there is no step or no bound."""
        ends = self._ends
        return math.inf if ends is None else ends[1] - ends[0] + 1  # type: ignore[return-value]

    def sample(self, rng: np.random.Generator) -> Picks:
        return self._picks(self.at(float(rng.random())))

    def first(self) -> Picks:
        """Return the median."""
        return self._picks(self.at(0.5))

    def grid(self) -> Iterator[Picks]:
        if math.isinf(self.size):
            raise SpaceError(
                f'The values of {self.law}{list(self.arguments)} cannot be enumerated. Take a law with bounds and a step '
                "('quniform', 'qloguniform', 'randint'), or a strategy that draws."
            )
        return (self._picks(self._value(position)) for position in range(self.size))

    def neighbours(self, picks: Picks) -> Iterator[Picks]:
        """Yield every other value of a few; otherwise values at shrinking distances in probability on both sides."""
        if self.size <= _FEW:
            yield from (other for other in self.grid() if other != picks)
            return
        level = self.level(picks[0])
        found = {picks}
        levels = [level + sign * 2.0**-power for power in range(1, 11) for sign in (1, -1)]
        near_values = [] if self.step is None else [self._stepped(picks[0] + sign * self.step) for sign in (1, -1)]
        for value in [*(self.at(other) for other in levels if 0 <= other <= 1), *near_values]:
            if self._picks(value) not in found:
                found.add(self._picks(value))
                yield self._picks(value)

    @property
    def genes(self) -> tuple[int, ...]:
        return (_CODES if math.isinf(self.size) else self.size,)

    def encode(self, picks: Picks) -> tuple[int, ...]:
        if math.isinf(self.size):
            return (min(int(self.level(picks[0]) * _CODES), _CODES - 1),)
        ends = self._ends
        assert ends is not None, 'a finite size has ends'
        return (0 if self.step is None else round(picks[0] / self.step) - ends[0],)

    def decode(self, genes: Sequence[int]) -> Picks:
        """Return the value of a code; of laws without a step it is the middle of the code's share of probability."""
        return self._picks(self.at((genes[0] + 0.5) / _CODES) if math.isinf(self.size) else self._value(int(genes[0])))

    def extreme(self, largest: bool) -> Picks:
        return self._picks(self.at(1.0 if largest else 0.0))

    def check_count(self, count: int) -> str | None:
        return None if count == 1 else 'Exactly one value must be given'

    def parse(self, choice: Any) -> Choice:
        """Read a number that the law can give.

        Raises:
            SubnetError: If it is no finite number, out of bounds, or between two steps.
        """
        value = choice
        if isinstance(value, Mapping) and set(value) == {'chosen'}:
            value = value['chosen']
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and getattr(value, 'ndim', 0) == 0:
            value = value.item()
        if not _is_number(value):
            raise SubnetError(f'A finite number is needed for {self.law}{list(self.arguments)}, but got {choice!r}.')
        low, high = self.bounds
        if not low <= value <= high:
            raise SubnetError(f'{value} is out of the bounds of {self.law}{list(self.arguments)}: {low} to {high}.')
        if self.step is None:
            return self._picks(float(value))
        nearest = self._stepped(value)
        if not math.isclose(value, nearest, rel_tol=1e-9, abs_tol=1e-9 * self.step):
            raise SubnetError(
                f'{value} is no value of {self.law}{list(self.arguments)}, which has steps of {self.step}; the nearest is '
                f'{nearest}.'
            )
        return self._picks(nearest)

    def format(self, choice: Choice) -> Any:
        """Return the number."""
        return choice[0]

    def mask(self, choice: Choice) -> torch.Tensor:
        """Refuse: a number has no alternatives to mark."""
        raise SubnetError(f'{choice[0]} is a number, not one of several alternatives: it has no mask.')

    def to_dict(self) -> dict[str, Any]:
        return {'kind': self.kind, 'law': self.law, 'arguments': list(self.arguments)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Numeric:
        return cls(law=content['law'], arguments=tuple(content['arguments']))

    @staticmethod
    def _picks(value: float) -> Picks:
        # Typed as indices, which every other domain has; only this class looks inside.
        return (value,)  # type: ignore[return-value]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


KINDS[Numeric.kind] = Numeric
