"""What follows from a result: which model to compare with which, what each stage gave, where fewer MACs were no gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strop.report import wording
from strop.report.compression_result import SOURCE, CompressionResult, LayerChange, Measurement, Stage, Tried

# A stage or a layer has fewer MACs from this ratio on, and is faster from that ratio of times on.
_FEWER_MACS = 0.9
_FASTER = 0.97


@dataclass(frozen=True)
class Pair:
    """One runtime in one precision at one batch size: the model before and after; one of them may not be measured."""

    runtime: str
    precision: str
    batch: int
    before: Measurement | None
    after: Measurement | None

    @property
    def speedup(self) -> float | None:
        """How many times as fast the second is, by the medians."""
        if self.before is None or self.after is None or not self.after.median_ms:
            return None
        return self.before.median_ms / self.after.median_ms


@dataclass(frozen=True)
class Part:
    """What one stage gave.

    Args:
        stage: The stage.
        measured: Its model where the whole is judged by time, if it was measured there.
        speedup: How many times as fast as the last measured stage before it.
        share: Its part of the whole speed-up, by logarithms; None if it cannot be told.
        since: The stages whose work the speed-up is, if not of this one alone.
    """

    stage: Stage
    measured: Measurement | None = None
    speedup: float | None = None
    share: float | None = None
    since: tuple[str, ...] = ()


class Findings:
    """What follows from a result.

    Args:
        result: What was measured.
    """

    def __init__(self, result: CompressionResult) -> None:
        self.result = result
        names = [stage.name for stage in result.stages if stage.status == 'done']
        measured = {entry.stage for entry in result.measurements}
        known = [name for name in names if name in measured]
        #: The stages whose models are compared: the first and the last that were measured.
        self.baseline: str | None = known[0] if known else None
        self.final: str | None = known[-1] if len(known) > 1 else None
        self._order = {name: index for index, name in enumerate(names)}

    # -- stages --------------------------------------------------------------------------------

    @property
    def first(self) -> Stage | None:
        """The given model: what the baseline of the times is, or the first stage that has scores."""
        stages = self.result.stages
        if self.baseline is not None:
            return self.result.stage(self.baseline)
        return next((stage for stage in stages if stage.scores), stages[0] if stages else None)

    @property
    def last(self) -> Stage | None:
        """The result: the stage whose model the headline's time is of, or the last finished one that made a model."""
        headline = self.headline()
        if headline is not None and headline.after is not None:
            return self.result.stage(headline.after.stage)
        made = [stage for stage in self.result.stages if stage.status == 'done' and stage.kind != 'export']
        return made[-1] if made else None

    @property
    def metric(self) -> str | None:
        """The metric that the report speaks of first."""
        return next((name for stage in self.result.stages for name in stage.scores), None)

    # -- times ---------------------------------------------------------------------------------

    @property
    def batches(self) -> list[int]:
        """Every batch size, the smallest first."""
        return sorted({entry.batch for entry in self.result.measurements})

    def pairs(self, batch: int) -> list[Pair]:
        """Return before and after on every runtime, in each precision that one of them was measured in."""
        found: dict[tuple[str, str], list[Measurement | None]] = {}
        for entry in self.result.measurements:
            if entry.batch != batch:
                continue
            pair = found.setdefault((entry.runtime, entry.precision), [None, None])
            if entry.stage == self.baseline:
                pair[0] = entry
            elif pair[1] is None or self._order.get(entry.stage, -1) >= self._order.get(pair[1].stage, -1):
                pair[1] = entry
        return [Pair(runtime, precision, batch, *pair) for (runtime, precision), pair in found.items()]

    def fastest(self, batch: int, floats: bool = False, before: bool = False) -> Measurement | None:
        """Return the fastest measurement of the model before or after, of floats only if asked."""
        entries = [pair.before if before else pair.after for pair in self.pairs(batch)]
        found = [entry for entry in entries if entry is not None and not (floats and entry.precision.startswith('int'))]
        return min(found, key=lambda entry: entry.median_ms, default=None)

    @property
    def runtime(self) -> str | None:
        """Where the whole is judged by time: the budget's runtime, or where the result is fastest at the smallest batch."""
        measured = {entry.runtime for entry in self.result.measurements}
        wanted = _asked_runtime(self.result.asked.budget)
        if wanted in measured:
            return wanted
        best = self.fastest(self.batches[0]) if self.batches else None
        return None if best is None else best.runtime

    def headline(self) -> Pair | None:
        """Return the given float model and the result on the runtime where the whole is judged: in integers, or else in f32."""
        if self.runtime is None:
            return None
        batch = self.batches[0]
        pairs = [pair for pair in self.pairs(batch) if pair.runtime == self.runtime]
        before = next((pair.before for pair in pairs if pair.precision == 'f32' and pair.before is not None), None)
        forms = {pair.precision: pair.after for pair in pairs if pair.after is not None}
        after = forms.get('int8', forms.get('f32'))
        return Pair(self.runtime, after.precision if after else 'f32', batch, before, after)

    def parts(self) -> list[Part]:
        """Return every stage with what it gave; times are those of the headline's runtime and batch size."""
        headline = self.headline()
        whole = headline.speedup if headline is not None else None
        times: dict[str, Measurement] = {}
        for entry in self.result.measurements:
            if headline is None or (entry.runtime, entry.batch) != (headline.runtime, headline.batch):
                continue
            stage = next((stage for stage in self.result.stages if stage.name == entry.stage), None)
            wanted = headline.precision if stage is not None and stage.kind == 'quantize' else 'f32'
            if stage is not None and entry.precision == wanted:
                times[entry.stage] = entry
        found: list[Part] = []
        last: Measurement | None = None
        since: list[str] = []
        for stage in self.result.stages:
            now = times.get(stage.name)
            if now is None or not now.median_ms:
                gave = stage.status == 'done' and stage.kind not in (SOURCE, 'quantize', 'export')
                since += [stage.name] if gave and last is not None else []
                found.append(Part(stage))
                continue
            speedup = None if last is None else last.median_ms / now.median_ms
            share = math.log(speedup) / math.log(whole) if speedup and whole and abs(math.log(whole)) > 0.05 else None
            found.append(Part(stage, now, speedup, share, (*since, stage.name) if since and speedup else ()))
            last, since = now, []
        return found

    # -- what should be said ---------------------------------------------------------------------

    def warnings(self) -> list[str]:
        """Return what the result warns of, what its stages do, and where integers or fewer MACs were no gain in time."""
        found = list(self.result.warnings)
        for stage in self.result.stages:
            found += [f'{stage.name}: {warning}' for warning in stage.warnings]
            if stage.status in ('failed', 'running'):
                ended = 'failed' if stage.status == 'failed' else 'has not ended'
                found.append(f'The stage {stage.name} {ended}; what is shown is what was finished before it.')
        return [*found, *self.idle_integers(), *self.idle_macs(), *self.idle_layers()]

    def idle_integers(self) -> list[str]:
        """Return a sentence wherever the quantized result is no faster than the result in floats on the same runtime."""
        found = []
        for batch in self.batches:
            after = {(pair.runtime, pair.precision): pair.after for pair in self.pairs(batch) if pair.after is not None}
            for (runtime, precision), integers in after.items():
                floats = [entry for (where, form), entry in after.items() if where == runtime and form != 'int8']
                best = min(floats, key=lambda entry: entry.median_ms, default=None)
                if precision == 'int8' and best is not None and integers.median_ms > _FASTER * best.median_ms:
                    found.append(
                        f'Integers are no gain in {wording.runtime(runtime)} at batch {batch}: {integers.stage} takes '
                        f'{wording.milliseconds(integers.median_ms)} in int8, {best.stage} '
                        f'{wording.milliseconds(best.median_ms)} in {best.precision}.'
                    )
        return found

    def idle_macs(self) -> list[str]:
        """Return a sentence for every batch size at which fewer MACs did not make the model faster somewhere."""
        first, last = self.first, self.last
        if first is None or last is None or not first.resources.macs or last.resources.macs is None:
            return []
        ratio = last.resources.macs / first.resources.macs
        if ratio > _FEWER_MACS:
            return []
        found = []
        for batch in self.batches:
            slow = [pair for pair in self.pairs(batch) if pair.speedup is not None and 1 / pair.speedup > _FASTER]
            if slow:
                places = ', '.join(
                    f'{wording.runtime(pair.runtime)} {pair.precision} ({wording.milliseconds(pair.before.median_ms)} → '
                    f'{wording.milliseconds(pair.after.median_ms)})'
                    for pair in slow
                    if pair.before is not None and pair.after is not None
                )
                found.append(f'MACs fell by {100 * (1 - ratio):.0f} %, but at batch {batch} this is not faster in {places}.')
        return found

    def idle_layers(self) -> list[str]:
        """Return a sentence for each stage that left layers with fewer MACs that take as long as before."""
        found = []
        for stage in self.result.stages:
            idle = [change for change in stage.layers if is_idle(change)]
            if idle:
                names = ', '.join(change.name for change in idle[:5])
                more = f' and {len(idle) - 5} more' if len(idle) > 5 else ''
                found.append(f'{stage.name}: fewer MACs, but not less time in {len(idle)} layers: {names}{more}.')
        return found

    # -- what was tried --------------------------------------------------------------------------

    def tried(self) -> tuple[str, list[Tried]]:
        """Return which cost the most models that were tried have (`latency_ms`, `macs` or `params`), and those that have it."""
        scored = [entry for entry in self.result.tried if entry.score is not None]
        for cost in ('latency_ms', 'macs', 'params'):
            known = [entry for entry in scored if getattr(entry, cost) is not None]
            if known and 2 * len(known) >= len(scored):
                return cost, known
        return 'macs', []


def is_idle(change: LayerChange) -> bool:
    """Whether a layer has clearly fewer MACs and takes as long as before."""
    before, after = change.before, change.after
    if after is None or not before.macs or after.macs is None or not before.latency_ms or after.latency_ms is None:
        return False
    return after.macs <= _FEWER_MACS * before.macs and after.latency_ms > _FASTER * before.latency_ms


def budget_lines(budget: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each limit of a budget and its value in words.

    >>> budget_lines({'latency': 0.5, 'runtime': 'openvino', 'accuracy_drop': 1.0})
    [('latency', '0.5 × the original'), ('runtime', 'OpenVINO'), ('accuracy drop', '1 point')]
    """
    found = []
    for name, value in budget.items():
        if isinstance(value, Mapping):
            text = ', '.join(f'{key} {item}' for key, item in value.items())
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            text = wording.runtime(str(value)) if name == 'runtime' else str(value)
        elif name == 'latency_ms':
            text = wording.milliseconds(value)
        elif name in ('macs', 'params', 'latency', 'size') and value <= 1:
            quantized = name == 'latency' and budget.get('relative_to') == 'quantized'
            text = f'{value:g} × the {"quantized " * quantized}original'
        elif name in ('macs', 'params'):
            text = wording.counted(value)
        elif name == 'size_mb':
            text = wording.megabytes(value)
        elif name == 'accuracy_drop':
            text = f'{value:g} point{"s" * (value != 1)}'
        else:
            text = f'{value:g}'
        found.append((name.removesuffix('_ms').removesuffix('_mb').replace('_', ' '), text))
    return found


def changed_layers(changes: Sequence[LayerChange]) -> list[LayerChange]:
    """Return the layers that a stage changed."""
    return [change for change in changes if change.after is None or _state(change.after) != _state(change.before)]


def _state(state: Any) -> tuple[Any, ...]:
    return state.shape, state.macs, state.params, state.precision


def _asked_runtime(budget: Mapping[str, Any]) -> str | None:
    for value in (budget.get('runtime'), *(value.get('runtime') for value in budget.values() if isinstance(value, Mapping))):
        if isinstance(value, str):
            return value
    return None


__all__ = ['Findings', 'Pair', 'Part', 'budget_lines', 'changed_layers', 'is_idle']
