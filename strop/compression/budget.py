"""What the compressed model may cost at most, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.errors import ConfigError, listed, near
from strop.estimators import runtimes
from strop.estimators.runtimes import check_positive
from strop.pruning import Budget as PruningBudget

#: Limits that a number can be set for; each is kept.
LIMITS = ('macs', 'params', 'size_mb', 'latency', 'latency_ms', 'accuracy_drop')
_HOW = ('runtime', 'threads', 'relative_to')
#: Latencies scatter; a difference below this share cannot be told from noise.
_SCATTER = 1.02


@dataclass(frozen=True)
class Budget:
    """The limits of a compression; all that are given are kept.

    Args:
        macs: Multiply-adds of one sample: a share of the original (0.5), a number, or a text with a unit (`'200M'`).
        params: Parameters, likewise.
        size_mb: Size of the smallest file of weights that comes out, in units of 10^6 bytes.
        latency: Share of the original's time for one sample, measured on `runtime`.
        latency_ms: Time for one sample on `runtime`, in milliseconds.
        accuracy_drop: Most that the main score may fall, in points of a hundred.
        runtime: What the latency is measured on; by default OpenVINO or ONNX Runtime where they are installed, else eager.
        threads: Threads that it computes with.
        relative_to: What a share of the latency is of: the `original` as it was given, in floats, or the original `quantized`
            as the recipe does it.

    Raises:
        ConfigError: If a limit cannot be read, or the runtime is unknown.

    >>> Budget.of({'latency': 0.5, 'runtime': 'eager'}).limits
    {'latency': 0.5}
    """

    macs: float | str | None = None
    params: float | str | None = None
    size_mb: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    accuracy_drop: float | None = None
    runtime: str | None = None
    threads: int = 1
    relative_to: str = 'original'

    def __post_init__(self) -> None:
        for name in ('macs', 'params'):
            if getattr(self, name) is not None:
                PruningBudget(**{name: getattr(self, name)})
        for name in ('size_mb', 'latency', 'latency_ms', 'accuracy_drop'):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            most = 1.0 if name == 'latency' else float('inf')
            least = name == 'accuracy_drop'
            if value is not None and not (number and (0 < value < most or (least and value == 0))):
                rule = {
                    'latency': 'a share of the original between 0 and 1, such as 0.5 (milliseconds are `latency_ms`)',
                    'accuracy_drop': 'a number of points, 0 or more, such as 1.0',
                }.get(name, 'a positive number')
                raise ConfigError(f'The budget `{name}` must be {rule}, but got {value!r}.')
        if self.latency is not None and self.latency_ms is not None:
            raise ConfigError('Give the budget `latency`, a share, or `latency_ms`, but not both.')
        if self.runtime is not None and (not isinstance(self.runtime, str) or self.runtime not in runtimes()):
            raise ConfigError(
                f'`runtime` of the budget must be one of {listed(runtimes())}, but got {self.runtime!r}.'
                f'{near(self.runtime, runtimes())}'
            )
        if self.relative_to not in ('original', 'quantized'):
            raise ConfigError(
                f"`relative_to` of the budget must be 'original' or 'quantized', but got {self.relative_to!r}."
                f'{near(self.relative_to, ("original", "quantized"))}'
            )
        check_positive(threads=self.threads)

    @classmethod
    def of(cls, given: Any) -> Budget:
        """Read a mapping of limits; None is a budget without any.

        Raises:
            ConfigError: If it is no mapping, or has an unknown key.
        """
        if isinstance(given, Budget):
            return given
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise ConfigError(f'The budget is a mapping such as {{latency: 0.5}}, but got {given!r}.')
        known = (*LIMITS, *_HOW)
        for key in given:
            if key not in known:
                raise ConfigError(f'The budget has no {key!r}.{near(key, known)} It has {listed(known, 12)}.')
        return cls(**{str(key): value for key, value in given.items()})

    @property
    def limits(self) -> dict[str, float | str]:
        """The limits that are given."""
        return {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}

    @property
    def timed(self) -> bool:
        """Whether a latency is limited."""
        return self.latency is not None or self.latency_ms is not None

    @property
    def counted(self) -> dict[str, float | str]:
        """The limits that are counted, not measured, as `strop.prune` takes them."""
        return {name: value for name, value in self.limits.items() if name in ('macs', 'params')}

    @property
    def chosen_runtime(self) -> str:
        """The runtime that latencies are measured on."""
        if self.runtime is not None:
            return self.runtime
        return next((name for name in ('openvino', 'onnxruntime') if runtimes()[name].available), 'eager')

    def to_dict(self) -> dict[str, Any]:
        """Return what is given, as JSON holds it."""
        usual = {name: entry.default for name, entry in type(self).__dataclass_fields__.items()}
        return {name: getattr(self, name) for name in usual if getattr(self, name) != usual[name]}

    def __str__(self) -> str:
        words = {
            'latency': lambda value: f'latency ≤ {value:g} of the {self.relative_to} model on {self.chosen_runtime}',
            'latency_ms': lambda value: f'latency ≤ {value:g} ms on {self.chosen_runtime}',
            'accuracy_drop': lambda value: f'at most {value:g} points lost',
            'size_mb': lambda value: f'size ≤ {value:g} MB',
        }
        shown = [words[n](v) if n in words else f'{n} ≤ {v}' for n, v in self.limits.items()]
        return ', '.join(shown) or 'none'


@dataclass(frozen=True)
class Verdict:
    """What came out for one limit.

    Args:
        name: The limit.
        wanted: What was allowed; NaN where that is not known.
        reached: What came out; likewise.
        met: Whether that is within the limit.
        sentence: The same in words.
    """

    name: str
    wanted: float
    reached: float
    met: bool
    sentence: str


def verdicts(budget: Budget, before: Mapping[str, float], after: Mapping[str, float]) -> list[Verdict]:
    """Compare what came out with every limit; one without a figure is not met.

    Args:
        budget: The limits.
        before: `macs` and `params` of the original; `latency_ms` of what shares are of.
        after: `macs`, `params`, `size_mb`, `latency_ms` and `accuracy_drop` of what came out.

    >>> [verdict.met for verdict in verdicts(Budget(macs=0.5), {'macs': 100}, {'macs': 40})]
    [True]
    """
    found = []
    for name, given in budget.limits.items():
        figure = 'latency_ms' if name == 'latency' else name
        if figure not in after or (name in ('macs', 'params', 'latency') and figure not in before):
            sentence = f'The budget {name} ≤ {given} could not be judged: there is no such figure of what came out.'
            if figure in after:
                sentence = f'The budget {name} ≤ {given} could not be judged: there is no such figure of what it is a share of.'
            found.append(Verdict(name, math.nan, float(after.get(figure, math.nan)), False, sentence))
            continue
        if name == 'latency':
            wanted = float(given) * before[figure]
        elif name in ('macs', 'params'):
            wanted = PruningBudget(**{name: given}).limit(name, before[figure])  # type: ignore[arg-type]
        else:
            wanted = float(given)
        reached = float(after[figure])
        met = reached <= wanted * (_SCATTER if figure == 'latency_ms' else 1.0) + 1e-9
        beyond = f' (differences below {_SCATTER - 1:.0%} are noise)' if met and reached > wanted + 1e-9 else ''
        unit = {'latency_ms': ' ms', 'size_mb': ' MB', 'accuracy_drop': ' points'}.get(figure, '')
        state = 'is met' if met else 'is NOT met'
        found.append(
            Verdict(
                name,
                wanted,
                reached,
                met,
                f'The budget {name} ≤ {given} {state}: {_shown(reached)}{unit} of {_shown(wanted)}{unit}{beyond}.',
            )
        )
    return found


def _shown(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


__all__ = ['LIMITS', 'Budget', 'Verdict', 'verdicts']
