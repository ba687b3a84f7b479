"""Measured latency, by one protocol: threads fixed, warmed up, interleaved, medians with their spread, machine noted."""

from __future__ import annotations

import gc
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from strop.errors import ConfigError, EstimateError, listed, near
from strop.estimators.runtimes import Call, check_positive, computing_with, other_floats, runtime, runtimes, synchronize
from strop.randomness import counter_rng

#: Milliseconds after which threads that wait for work sleep: 45 in ONNX Runtime, 10 in OpenMP, none to speak of elsewhere.
SPIN_MS = 60.0


@dataclass(frozen=True)
class Latency:
    """The time of one call, measured several times.

    Args:
        name: What was measured.
        samples_ms: Milliseconds of each round, in the order of the rounds.
    """

    name: str
    samples_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median, in milliseconds."""
        return float(np.median(self.samples_ms))

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """The first and third quartile, in milliseconds."""
        low, high = np.percentile(self.samples_ms, [25, 75])
        return float(low), float(high)

    @property
    def iqr_ms(self) -> float:
        """The interquartile range, in milliseconds.

        >>> Latency('a', (1.0, 2.0, 3.0, 4.0, 9.0)).iqr_ms
        2.0
        """
        low, high = self.quartiles_ms
        return high - low

    def to_dict(self, samples: bool = False) -> dict[str, Any]:
        """Return median, interquartile range and number of rounds, and on request every sample."""
        content: dict[str, Any] = {'median_ms': self.median_ms, 'iqr_ms': self.iqr_ms, 'runs': len(self.samples_ms)}
        return {**content, 'samples_ms': list(self.samples_ms)} if samples else content


@dataclass(frozen=True)
class Ratio:
    """A ratio of two latencies with the confidence interval of its median."""

    value: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f'{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, {100 * self.confidence:g} %)'


@dataclass(frozen=True)
class Machine:
    """Where something was measured."""

    cpu: str
    cores: int
    usable_cores: int
    threads: int
    load: float | None
    system: str
    python: str
    versions: Mapping[str, str]
    float32_matmul_precision: str

    @classmethod
    def here(cls, threads: int) -> Machine:
        """Return this machine as it is now."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        return cls(
            cpu=_cpu_model(),
            cores=os.cpu_count() or 1,
            usable_cores=usable,
            threads=threads,
            load=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
            system=platform.platform(),
            python=platform.python_version(),
            versions={entry.package: entry.version for entry in runtimes().values() if entry.version is not None},
            float32_matmul_precision=torch.get_float32_matmul_precision(),
        )


class ByPosition(nn.Module):
    """A model whose keyword arguments are given by position, as all runtimes take them.

    Args:
        model: The model.
        names: Its arguments, in the order in which they are given.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *values: Any) -> Any:
        """Run the model."""
        return self.model(**dict(zip(self.names, values)))


class Measurements(dict[str, Latency]):
    """Latencies by name, measured together, so that their ratios are of the same moments.

    Args:
        latencies: name -> latency.
        machine: Where.
        protocol: Rounds, warm-up calls, calls a round and precision.
    """

    def __init__(self, latencies: Mapping[str, Latency], machine: Machine, protocol: Mapping[str, Any]) -> None:
        super().__init__(latencies)
        self.machine = machine
        self.protocol = dict(protocol)

    def ratio(self, first: str, second: str, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Ratio:
        """Return how many times as long `first` takes as `second`; see `ratio`.

        Raises:
            ConfigError: If a name was not measured.
        """
        for name in (first, second):
            if name not in self:
                raise ConfigError(f'{name!r} was not measured.{near(name, self)} There are {listed(self)}.')
        return ratio(self[first], self[second], confidence, resamples, seed)

    def table(self) -> Table:
        """Return a `rich` table of all latencies, relative to the first."""
        table = Table(title=f'{self.machine.cpu}, {self.machine.threads} thread{"s" * (self.machine.threads != 1)}')
        table.add_column('name')
        for column in ('median ms', 'IQR ms', escape(f'× {next(iter(self))}')):
            table.add_column(column, justify='right')
        for name, latency in self.items():
            relative = str(self.ratio(name, next(iter(self))))
            table.add_row(escape(name), f'{latency.median_ms:.3f}', f'{latency.iqr_ms:.3f}', relative)
        return table

    def to_dict(self, samples: bool = False) -> dict[str, Any]:
        """Return latencies, protocol and machine as JSON holds them."""
        return {
            'latency': {name: latency.to_dict(samples) for name, latency in self.items()},
            'protocol': self.protocol,
            'machine': asdict(self.machine),
        }


def measure(
    entries: Mapping[str, Any],
    *,
    runs: int = 50,
    warmup: int = 5,
    settle: int = 1,
    settle_ms: float | None = None,
    calls: int = 1,
    threads: int = 1,
    runtime_name: str = 'eager',
    precision: str | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Measurements:
    """Time several models or functions side by side.

    Every round calls each entry, starting one further on than the round before (A B C, B C A, ...), so that a
    slow moment of the machine falls on all of them alike. The call before a sample was of another entry, which has left its own
    weights in the caches, and with several threads leaves some that wait for more work by spinning, on cores that the next one
    needs. So each entry is called untimed before its sample: once, and with several threads for `SPIN_MS` at least. Garbage
    collection waits meanwhile.

    Args:
        entries: name -> a function without arguments, or (model, inputs), or (model, inputs, runtime).
        runs: Rounds.
        warmup: Calls of each entry before the first round.
        settle: Untimed calls of an entry right before each of its samples, if there are several entries. 0 times models as
            they are where others run between their calls.
        settle_ms: Such calls go on for so many milliseconds at least; `SPIN_MS` with several threads, 0 with one, if left out.
        calls: Calls that one sample is the mean of; more for something very short.
        threads: Threads to compute with.
        runtime_name: The runtime of entries that name none.
        precision: What models compute in; the runtime's default (32-bit floats) if left out.
        clock: Nanoseconds, rising.

    Raises:
        ConfigError: If there are no entries, or one is of no accepted form.
        EstimateError: If an entry raises; the message has its name and its error.

    >>> times = measure({'add': lambda: 1 + 1, 'sum': lambda: sum(range(1000))}, runs=5, warmup=1)
    >>> list(times), len(times['add'].samples_ms)
    (['add', 'sum'], 5)
    """
    check_positive(runs=runs, calls=calls, threads=threads)
    for option, value in (('warmup', warmup), ('settle', settle)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f'`{option}` must be a number of calls, 0 or more, but got {value!r}.')
    if settle_ms is not None and not (isinstance(settle_ms, (int, float)) and 0 <= settle_ms < math.inf):
        raise ConfigError(f'`settle_ms` must be milliseconds, 0 or more, but got {settle_ms!r}.')
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError(f'`entries` must be a mapping of names to functions or (model, inputs), but got {entries!r}.')
    with computing_with(threads):
        ready = {name: _prepared(name, entry, runtime_name, threads, precision) for name, entry in entries.items()}
        machine = Machine.here(threads)
        for name, call in ready.items():
            for _ in range(warmup):
                _timed(name, call, 1, clock)
        samples: dict[str, list[float]] = {name: [] for name in ready}
        names = list(ready)
        before = settle if len(names) > 1 else 0
        pause = settling_ms(threads) if settle_ms is None else settle_ms
        with _no_garbage_collection():
            for index in range(runs):
                start = index % len(names)
                for name in names[start:] + names[:start]:
                    if before:
                        _settled(name, ready[name], before, pause, clock)
                    samples[name].append(_timed(name, ready[name], calls, clock))
    protocol = {
        'runs': runs,
        'warmup': warmup,
        'settle': settle,
        'settle_ms': pause,
        'calls': calls,
        'order': 'interleaved, rotating',
        'runtime': runtime_name,
        'precision': precision or _precision_of(entries, runtime_name),
    }
    return Measurements({name: Latency(name, tuple(values)) for name, values in samples.items()}, machine, protocol)


def settling_ms(threads: int) -> float:
    """Return for how long an entry is called before its sample, unless `measure` is told: until threads of others sleep."""
    return SPIN_MS if threads > 1 else 0.0


def ratio(first: Latency, second: Latency, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Ratio:
    r"""Return the median of the paired ratios :math:`a_i / b_i` with its bootstrap percentile interval.

    Args:
        first: The numerator.
        second: The denominator, measured in the same rounds.
        confidence: Coverage of the interval.
        resamples: Bootstrap samples.
        seed: Seed of the resampling.

    Raises:
        ConfigError: If the two do not have the same number of rounds.

    >>> ratio(Latency('a', (2.0, 4.0)), Latency('b', (1.0, 2.0)))
    Ratio(value=2.0, low=2.0, high=2.0, confidence=0.95)
    """
    if len(first.samples_ms) != len(second.samples_ms) or not first.samples_ms:
        raise ConfigError(
            f'A ratio pairs the rounds of two latencies, but {first.name!r} has {len(first.samples_ms)} and {second.name!r} '
            f'{len(second.samples_ms)}. Measure them in one call of `measure`.'
        )
    if not 0 < confidence < 1:
        raise ConfigError(f'`confidence` must be between 0 and 1, but got {confidence}.')
    pairs = np.asarray(first.samples_ms) / np.asarray(second.samples_ms)
    drawn = counter_rng(seed, 'bootstrap').integers(len(pairs), size=(resamples, len(pairs)))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.median(pairs[drawn], axis=1), [tail, 100 - tail])
    return Ratio(float(np.median(pairs)), float(low), float(high), confidence)


# -- internals --------------------------------------------------------------------------------------------


def _precision_of(entries: Mapping[str, Any], runtime_name: str) -> str:
    """Return what models compute in where nobody said it: the runtime's own, or what they are made of."""
    models = [entry[0] for entry in entries.values() if isinstance(entry, tuple) and entry and isinstance(entry[0], nn.Module)]
    made_of = sorted({each for model in models for each in other_floats(model)})
    return ', '.join(made_of) or runtime(runtime_name).precisions[0]


def _prepared(name: str, entry: Any, runtime_name: str, threads: int, precision: str | None) -> Call:
    if isinstance(entry, tuple) and len(entry) in (2, 3) and isinstance(entry[0], nn.Module):
        used = runtime(entry[2] if len(entry) == 3 else runtime_name)
        try:
            return used.prepare(entry[0], entry[1], threads, precision)
        except EstimateError as error:
            raise EstimateError(f'{name!r} cannot be measured: {error}') from error
    if callable(entry) and not isinstance(entry, nn.Module):
        return entry  # type: ignore[no-any-return]
    raise ConfigError(
        f'{name!r} must be a function without arguments, (model, inputs) or (model, inputs, runtime), but got {entry!r}.'
    )


def _settled(name: str, call: Call, calls: int, pause: float, clock: Callable[[], int]) -> None:
    """Call an entry so many times, and until so many milliseconds have passed."""
    start = clock()
    made = 0
    while made < calls or clock() - start < 1e6 * pause:
        _timed(name, call, 1, clock)
        made += 1


def _timed(name: str, call: Call, calls: int, clock: Callable[[], int]) -> float:
    try:
        synchronize()
        start = clock()
        for _ in range(calls):
            call()
        synchronize()  # a GPU may still be at it
        stop = clock()
    except Exception as error:
        raise EstimateError(f'{name!r} failed while it was measured: {type(error).__name__}: {error}') from error
    return (stop - start) / calls / 1e6


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cpu_model() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as stream:
            for line in stream:
                if line.startswith('model name'):
                    return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
