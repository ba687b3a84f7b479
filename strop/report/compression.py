"""The report of a compression: one page that needs no network, and a table for the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from strop.files import atomic_write
from strop.report import wording
from strop.report.charts import Line, Mark, Plot, axis_of, curve, front_of
from strop.report.compression_findings import Findings, Part, budget_lines, changed_layers, is_idle
from strop.report.compression_result import CompressionResult, LayerChange, Measurement, Stage
from strop.report.pages import rendered

#: How many layers and tried models a page shows before the rest is folded away.
_SHOWN = 14


@dataclass(frozen=True)
class Figure:
    """One figure of the result: what it is now, what it was, how it changed."""

    name: str
    value: str
    before: str
    change: str
    note: str = ''


class CompressionReport:
    """A result of `strop compress` for people.

    Args:
        result: What was done and measured, or the folder or file that holds it.

    >>> from strop.report.compression_result import ModelSource
    >>> page = CompressionReport(CompressionResult(model=ModelSource('net <1>', 'demo'))).html()
    >>> '<title>net &lt;1&gt;' in page, '<script' in page
    (True, False)
    """

    def __init__(self, result: CompressionResult | str | os.PathLike[str]) -> None:
        self.result = result if isinstance(result, CompressionResult) else CompressionResult.read(result)
        self.findings = Findings(self.result)

    def html(self) -> str:
        """Return the page: styles and pictures inside, no script, nothing fetched."""
        return rendered('compression.html.j2', page=self._page())

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, or as `report.html` into a folder; all of it, or nothing."""
        target = Path(path).expanduser()
        if target.is_dir() or target.suffix not in ('.html', '.htm'):
            target = target / 'report.html'
        atomic_write(target, self.html())
        return target

    def table(self) -> Table:
        """Return a `rich` table of what each stage gave."""
        metric = self.findings.metric
        table = Table(title=Text(f'{self.result.model.name}, compressed'))
        table.add_column('stage')
        for name in (metric or 'score', 'MACs', 'parameters', 'size', self._clock(), 'faster', 'took'):
            table.add_column(escape(name), justify='right')
        for part in self.findings.parts():
            stage, costs = part.stage, part.stage.resources
            table.add_row(
                escape(stage.name + ('' if stage.status == 'done' else f' ({stage.status})')),
                wording.score(metric or '', stage.scores.get(metric or '')),
                wording.counted(costs.macs),
                wording.counted(costs.params),
                wording.megabytes(costs.size_mb),
                _time_of(part),
                '' if part.speedup is None else wording.times(part.speedup),
                wording.duration(stage.seconds),
            )
        return table

    def changes(self) -> Table:
        """Return a `rich` table of each figure before and after, and of the fastest of all runtimes."""
        table = Table()
        table.add_column('')
        for name in ('before', 'after', 'change'):
            table.add_column(name, justify='right')
        table.add_column('', style='dim')
        for figure in [*self.figures(), *self._elsewhere()]:
            table.add_row(*map(escape, (figure.name, figure.before, figure.value, figure.change, figure.note)))
        return table

    def _elsewhere(self) -> list[Figure]:
        """Return the time where the result is fastest of all runtimes, if that is not where the whole is judged."""
        batch = min(self.findings.batches, default=1)
        best, plain = self.findings.fastest(batch), self.findings.fastest(batch, floats=True, before=True)
        if best is None or plain is None or best.runtime == self.findings.runtime:
            return []
        return [
            Figure(
                'fastest of all',
                wording.milliseconds(best.median_ms),
                wording.milliseconds(plain.median_ms),
                f'{wording.times(plain.median_ms / best.median_ms)} as fast',
                f'{wording.runtime(best.runtime)}, {best.precision}, after {best.stage}; '
                f'before {wording.runtime(plain.runtime)}, {plain.precision}',
            )
        ]

    def sentences(self) -> list[str]:
        """Return what became of the budget, and what the reader should know."""
        return [*self.result.outcome.sentences, *(f'Note: {warning}' for warning in self.findings.warnings())]

    # -- the parts of the page ---------------------------------------------------------------

    def figures(self) -> list[Figure]:
        """Return the figures that the page begins with."""
        first, last, metric = self.findings.first, self.findings.last, self.findings.metric
        if first is None or last is None:
            return []
        found = []
        if metric is not None and last.scores.get(metric) is not None:
            whole, reached = first.scores.get(metric), last.scores[metric]
            found.append(
                Figure(
                    metric,
                    wording.score(metric, reached),
                    wording.score(metric, whole),
                    wording.score_change(metric, whole, reached),
                    f'scored on {last.scored_on}' if last.scored_on else '',
                )
            )
        pair = self.findings.headline()
        if pair is not None and pair.after is not None:
            before = pair.before
            found.append(
                Figure(
                    'latency',
                    wording.milliseconds(pair.after.median_ms),
                    wording.milliseconds(None if before is None else before.median_ms),
                    '' if pair.speedup is None else f'{wording.times(pair.speedup)} as fast',
                    f'{wording.runtime(pair.runtime)}, {pair.after.precision}, batch {pair.batch}',
                )
            )
        for name, key, write in (
            ('MACs', 'macs', wording.counted),
            ('parameters', 'params', wording.counted),
            ('size', 'size_mb', wording.megabytes),
            ('peak memory', 'peak_memory_mb', wording.megabytes),
        ):
            was, now = getattr(first.resources, key), getattr(last.resources, key)
            note = {'size_mb': 'weights as stored', 'peak_memory_mb': 'weights and activations, one sample'}.get(key, '')
            if key == 'size_mb' and last.kind == 'quantize':
                note = 'weights as stored, now in the quantized file'
            if key == 'peak_memory_mb' and now is None and pair is not None and pair.after is not None:
                was, now = None if pair.before is None else pair.before.peak_memory_mb, pair.after.peak_memory_mb
                note = f'added to a process that loads and runs it in {wording.runtime(pair.runtime)}'
            if now is not None:
                found.append(Figure(name, write(now), write(was), wording.change(was, now), note))
        return found

    def _page(self) -> dict[str, Any]:
        result, findings = self.result, self.findings
        least = min(findings.batches, default=1)
        return {
            'result': result,
            'figures': self.figures(),
            'summary': self._summary(),
            'budget': budget_lines(result.asked.budget),
            'warnings': findings.warnings(),
            'first': findings.first,
            'metric': findings.metric,
            'explained': [stage for stage in result.stages if stage.explanation],
            'metrics': list(dict.fromkeys(name for stage in result.stages for name in stage.scores)),
            'parts': [self._part(part) for part in findings.parts()],
            'clock': self._clock(),
            'latencies': [self._latencies(batch) for batch in findings.batches],
            'memory': [entry for entry in result.measurements if entry.peak_memory_mb is not None and entry.batch == least],
            'baseline': findings.baseline,
            'final': findings.final,
            'tried': self._tried(),
            'layers': [found for stage in result.stages if (found := self._layers(stage)) is not None],
            'curves': [self._curves(stage) for stage in result.stages if len(stage.curve) > 1],
            'recipe': json.dumps(result.asked.recipe, indent=2, ensure_ascii=False),
            'machine': self._machine(),
            'w': wording,
        }

    def _summary(self) -> str:
        """Return what came out, in one sentence."""
        first, last, metric = self.findings.first, self.findings.last, self.findings.metric
        if first is None or last is None or not any(stage.status == 'done' for stage in self.result.stages[1:]):
            return 'No stage has finished yet.'
        if first is last:
            return 'Nothing was taken away from the model.'
        parts = []
        pair = self.findings.headline()
        if pair is not None and pair.speedup is not None:
            where = f'{wording.runtime(pair.runtime)} at batch {pair.batch}'
            parts.append(f'{wording.times(pair.speedup)} as fast on {where}')
        if first.resources.size_mb and last.resources.size_mb is not None:
            parts.append(f'size {wording.change(first.resources.size_mb, last.resources.size_mb)}')
        if metric is not None and first.scores.get(metric) is not None and last.scores.get(metric) is not None:
            parts.append(f'{metric} {wording.score_change(metric, first.scores[metric], last.scores[metric])}')
        return ', '.join(parts) + '.' if parts else ''

    def _clock(self) -> str:
        pair = self.findings.headline()
        return 'latency' if pair is None else f'latency, {wording.runtime(pair.runtime)}, batch {pair.batch}'

    def _part(self, part: Part) -> dict[str, Any]:
        stage = part.stage
        measured = part.measured
        return {
            'stage': stage,
            'time': _time_of(part),
            'spread': '' if measured is None else wording.spread(measured.low_ms, measured.high_ms, measured.median_ms),
            'speedup': '' if part.speedup is None else wording.times(part.speedup),
            'share': '' if part.share is None else f'{100 * part.share:.0f} % of the gain',
            'since': ' + '.join(part.since),
        }

    def _latencies(self, batch: int) -> dict[str, Any]:
        pairs = self.findings.pairs(batch)
        longest = max(
            (entry.high_ms for pair in pairs for entry in (pair.before, pair.after) if entry is not None), default=1.0
        )
        rows = [
            {
                'pair': pair,
                'runtime': wording.runtime(pair.runtime),
                'bars': [
                    _bar(entry, longest, kind)
                    for kind, entry in (('before', pair.before), ('after', pair.after))
                    if entry is not None
                ],
                'speedup': '' if pair.speedup is None else wording.times(pair.speedup),
                'slower': pair.speedup is not None and pair.speedup < 1,
            }
            for pair in pairs
        ]
        best = self.findings.fastest(batch)
        plain = self.findings.fastest(batch, floats=True, before=True)
        sentence = ''
        if best is not None and plain is not None:
            sentence = (
                f'Fastest after: {wording.runtime(best.runtime)} in {best.precision}, {wording.milliseconds(best.median_ms)}. '
                f'Fastest float before, of all runtimes: {wording.runtime(plain.runtime)} in {plain.precision}, '
                f'{wording.milliseconds(plain.median_ms)}; that is {wording.times(plain.median_ms / best.median_ms)} as fast.'
            )
        threads = sorted({entry.threads for entry in self.result.measurements if entry.batch == batch})
        rounds = sorted({entry.rounds for entry in self.result.measurements if entry.batch == batch})
        return {
            'batch': batch,
            'rows': rows,
            'sentence': sentence,
            'threads': ' or '.join(map(str, threads)),
            'rounds': f'{rounds[0]}' if len(rounds) == 1 else f'{rounds[0]} to {rounds[-1]}',
            'longest': wording.milliseconds(longest),
        }

    def _tried(self) -> dict[str, Any] | None:
        cost, entries = self.findings.tried()
        if len(entries) < 2:
            return None
        metric = next((entry.metric for entry in entries if entry.metric), self.findings.metric or 'score')
        values = [float(getattr(entry, cost)) for entry in entries]
        scores = [float(entry.score or 0.0) for entry in entries]
        share = all(0 <= score <= 1 for score in scores) and wording.is_share(metric, scores[0])
        label = {'latency_ms': 'latency (ms)', 'macs': 'MACs', 'params': 'parameters'}[cost]
        write = (lambda value: f'{value:g}') if cost == 'latency_ms' else wording.round_count
        x = axis_of(values, label, text=write, log=min(values) > 0 and max(values) > 20 * min(values))
        y = axis_of([100 * score if share else score for score in scores], f'{metric} (%)' if share else metric)
        stages = list(dict.fromkeys(entry.stage for entry in entries))
        best = front_of(list(zip(values, scores, strict=True)))
        named = [*best, *(index for index, entry in enumerate(entries) if entry.chosen and index not in best)]
        numbers = {index: str(number) for number, index in enumerate(named, 1)}
        places = [
            (x.place(value), round(100 - y.place(100 * score if share else score), 3))
            for value, score in zip(values, scores, strict=True)
        ]
        marks = tuple(
            Mark(*places[index], numbers.get(index, ''), entry.label, stages.index(entry.stage), entry.chosen)
            for index, entry in enumerate(entries)
        )
        words = (
            f'{metric[:1].upper()}{metric[1:]} against {label} of {len(entries)} models that were tried; {len(best)} of them '
            'are not beaten on both axes.'
        )
        rows = [
            {
                'number': numbers.get(index, ''),
                'entry': entry,
                'front': index in best,
                'score': wording.score(metric if share else '', entry.score),
            }
            for index, entry in sorted(
                enumerate(entries), key=lambda item: (int(numbers.get(item[0], len(entries) + 1)), values[item[0]])
            )
        ]
        shown = max(len(named), 1)
        line = Line(tuple(places[index] for index in best))
        return {
            'plot': Plot(x, y, marks, (line,) if len(best) > 1 else (), tuple(stages), words),
            'rows': rows[: min(shown, 20)],
            'rest': rows[min(shown, 20) :],
            'scored_on': ', '.join(sorted({entry.scored_on for entry in entries if entry.scored_on})),
            'any_chosen': any(entry.chosen for entry in entries),
        }

    def _layers(self, stage: Stage) -> dict[str, Any] | None:
        changed = changed_layers(stage.layers)
        if not changed:
            return None
        timed = any(change.before.latency_ms is not None for change in changed)
        cost: Callable[[Any], float] = lambda state: float((state.latency_ms if timed else state.macs) or 0.0)  # noqa: E731
        most = max((max(cost(change.before), cost(change.after) if change.after else 0.0) for change in changed), default=0.0)
        order = {change.name: index for index, change in enumerate(changed)}
        slowest = sorted(changed, key=lambda change: -cost(change.before))[:_SHOWN]
        shown = sorted(slowest, key=lambda change: order[change.name])
        rest = [change for change in changed if change not in shown]
        measured_after = any(change.after is not None and change.after.latency_ms is not None for change in changed)
        return {
            'stage': stage,
            'timed': timed,
            'measured_after': measured_after,
            'same': len(stage.layers) - len(changed),
            'rows': [_layer(change, cost, most) for change in shown],
            'rest': [_layer(change, cost, most) for change in rest],
            'count': len(changed),
        }

    def _curves(self, stage: Stage) -> dict[str, Any]:
        names = list(dict.fromkeys(name for point in stage.curve for name in point if name not in ('step', 'epoch', 'lr')))
        plots: list[Plot] = []
        drawn: list[list[tuple[float, float]]] = []
        for name in names[:4]:
            points = [
                (float(point['step'] or 0), float(value))
                for point in stage.curve
                if (value := point.get(name)) is not None and point.get('step') is not None
            ]
            if len(points) > 1 and points not in drawn:  # a loss that is the only part of the whole is shown once
                drawn.append(points)
                first, last = points[0][1], points[-1][1]
                words = (
                    f'{name} of {stage.name}: from {wording.digits(first)} to {wording.digits(last)} in {len(points)} points.'
                )
                plots.append(curve(points, 'step', name.replace('_', ' '), words))
        return {'stage': stage, 'plots': plots}

    def _machine(self) -> list[tuple[str, str]]:
        found = []
        for name, value in self.result.environment.items():
            if isinstance(value, dict):
                value = ', '.join(f'{key} {item}' for key, item in value.items())
            found.append((name.replace('_', ' '), wording.digits(value) if isinstance(value, float) else str(value)))
        return found


def _time_of(part: Part) -> str:
    if part.measured is None:
        return ''
    precision = '' if part.measured.precision == 'f32' else f' {part.measured.precision}'
    return wording.milliseconds(part.measured.median_ms) + precision


def _bar(entry: Measurement, longest: float, kind: str) -> dict[str, Any]:
    def percent(value: float) -> float:
        return round(100 * value / longest, 2) if longest else 0.0

    low, high = percent(entry.low_ms), percent(entry.high_ms)
    return {'kind': kind, 'width': percent(entry.median_ms), 'low': low, 'spread': round(high - low, 2), 'entry': entry}


def _layer(change: LayerChange, cost: Callable[[Any], float], most: float) -> dict[str, Any]:
    def percent(state: Any) -> float:
        return round(100 * cost(state) / most, 2) if most and state is not None else 0.0

    return {
        'change': change, 'before': percent(change.before), 'after': percent(change.after), 'idle': is_idle(change),
    }  # fmt: skip


__all__ = ['CompressionReport', 'Figure']
