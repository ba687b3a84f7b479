"""Several compressions side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from strop.errors import ConfigError
from strop.files import atomic_write
from strop.report import wording
from strop.report.charts import Line, Mark, Plot, axis_of
from strop.report.compression import CompressionReport
from strop.report.compression_findings import Findings, budget_lines
from strop.report.compression_result import CompressionResult
from strop.report.pages import rendered


class RunComparison:
    """Several runs of `strop compress` side by side.

    Args:
        runs: Folders or files, or (name, result).

    Raises:
        ConfigError: If there are fewer than two.
    """

    def __init__(self, runs: Sequence[str | os.PathLike[str] | tuple[str, CompressionResult]]) -> None:
        if len(runs) < 2:
            raise ConfigError(f'A comparison needs two or more runs, but got {len(runs)}.')
        pairs = [run if isinstance(run, tuple) else (os.fspath(run), CompressionResult.read(run)) for run in runs]
        names = _short_names([name for name, _ in pairs])
        self.reports = {name: CompressionReport(result) for name, (_, result) in zip(names, pairs, strict=True)}

    def rows(self) -> list[tuple[str, list[str]]]:
        """Return what is compared, and what each run has of it."""
        reports = list(self.reports.values())
        found: list[tuple[str, list[str]]] = [
            ('model', [report.result.model.name for report in reports]),
            ('data', [report.result.data.name for report in reports]),
            ('asked', [', '.join(f'{name} {value}' for name, value in budget_lines(report.result.asked.budget)) or 'no budget'
                       for report in reports]),
            ('met', [_met(report.result) for report in reports]),
            ('stages', [' → '.join(stage.name for stage in report.result.stages[1:]) or wording.NOTHING for report in reports]),
        ]  # fmt: skip
        figures = [{figure.name: figure for figure in report.figures()} for report in reports]
        for name in dict.fromkeys(name for each in figures for name in each):
            cells = []
            for each in figures:
                figure = each.get(name)
                cells.append(
                    wording.NOTHING
                    if figure is None
                    else f'{figure.value} ({figure.change})'
                    if figure.change
                    else figure.value
                )
            found.append((name, cells))
        keys = dict.fromkeys(
            (pair.batch, pair.runtime, pair.precision)
            for report in reports
            for batch in report.findings.batches
            for pair in report.findings.pairs(batch)
        )
        for batch, runtime, precision in sorted(keys, key=lambda key: key[0]):
            cells = [_cell(report.findings, batch, runtime, precision) for report in reports]
            if any(cell != wording.NOTHING for cell in cells):
                found.append((f'{wording.runtime(runtime)} {precision}, batch {batch}', cells))
        found.append(('took', [wording.duration(sum(stage.seconds for stage in report.result.stages)) for report in reports]))
        return found

    def notes(self) -> list[str]:
        """Return why figures of these runs may not be comparable."""
        found = []
        results = [report.result for report in self.reports.values()]
        for what, values in (
            ('CPUs', [str(result.environment.get('cpu', 'unknown')) for result in results]),
            ('data', [_data(result) for result in results]),
            ('given models', [f'{result.model.name} ({result.model.source})' for result in results]),
            ('numbers of threads', [str(threads) for result in results if (threads := _threads(result))]),
        ):
            if len(set(values)) > 1:
                found.append(f'The runs have different {what}: {"; ".join(dict.fromkeys(values))}.')
        return [*found, 'Times of different runs were not measured in the same rounds: small differences may be the machine.']

    def table(self) -> Table:
        """Return a `rich` table: a row for each figure, a column for each run."""
        table = Table(title='Runs side by side', caption=escape(' '.join(self.notes())), caption_justify='left')
        table.add_column('')
        for name in self.reports:
            table.add_column(escape(name), overflow='fold')
        for name, cells in self.rows():
            table.add_row(*map(escape, (name, *cells)))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        return {
            'runs': {name: report.result.to_dict() for name, report in self.reports.items()},
            'rows': [{'what': name, **dict(zip(self.reports, cells, strict=True))} for name, cells in self.rows()],
            'notes': self.notes(),
        }

    def plot(self) -> Plot | None:
        """Return score against latency of every run, before and after; None if fewer than two have both."""
        marks: list[tuple[float, float, str, int, bool]] = []
        metrics = {report.findings.metric for report in self.reports.values()}
        for index, (name, report) in enumerate(self.reports.items()):
            findings, metric = report.findings, report.findings.metric
            pair = findings.headline()
            if pair is None or metric is None or findings.first is None or findings.last is None:
                continue
            for entry, stage, after in ((pair.before, findings.first, False), (pair.after, findings.last, True)):
                score = stage.scores.get(metric)
                if entry is not None and score is not None:
                    marks.append((entry.median_ms, score, f'{name}, {"after" if after else "before"}', index, after))
        if len(marks) < 2 or len(metrics) != 1:
            return None
        metric = next(iter(metrics)) or 'score'
        share = all(wording.is_share(metric, score) for _, score, *_ in marks)
        scale = 100 if share else 1
        spans = [ms for ms, *_ in marks]
        x = axis_of(spans, 'latency (ms)', log=max(spans) > 20 * min(spans))
        y = axis_of([scale * score for _, score, *_ in marks], f'{metric} (%)' if share else metric)
        drawn = tuple(
            Mark(x.place(ms), round(100 - y.place(scale * score), 3), str(index + 1) if after else '', title, index, after)
            for ms, score, title, index, after in marks
        )
        ends = [[(mark.x, mark.y) for mark in drawn if mark.series == index] for index in range(len(self.reports))]
        lines = tuple(Line(tuple(pair), index) for index, pair in enumerate(ends) if len(pair) == 2)
        words = f'{metric[:1].upper()}{metric[1:]} against latency of {len(self.reports)} runs, before and after.'
        return Plot(x, y, drawn, lines, tuple(self.reports), words)

    def html(self) -> str:
        """Return the page: styles and pictures inside, no script, nothing fetched."""
        page = {
            'names': list(self.reports), 'rows': self.rows(), 'notes': self.notes(), 'plot': self.plot(), 'w': wording,
            'warnings': {name: report.findings.warnings() for name, report in self.reports.items()},
        }  # fmt: skip
        return rendered('compression_runs.html.j2', page=page)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file; all of it, or nothing."""
        target = Path(path).expanduser()
        atomic_write(target, self.html())
        return target


def _data(result: CompressionResult) -> str:
    parts = ', '.join(f'{count:,} {name}' for name, count in result.data.parts.items())
    return f'{result.data.name} ({parts})' if parts else result.data.name


def _threads(result: CompressionResult) -> list[int]:
    return sorted({entry.threads for entry in result.measurements})


def _met(result: CompressionResult) -> str:
    return {True: 'yes', False: 'no', None: wording.NOTHING}[result.outcome.met]


def _cell(findings: Findings, batch: int, runtime: str, precision: str) -> str:
    pair = next((p for p in findings.pairs(batch) if (p.runtime, p.precision) == (runtime, precision)), None)
    if pair is None or pair.after is None:
        return wording.NOTHING
    factor = '' if pair.speedup is None else f' ({wording.times(pair.speedup)} as fast)'
    return wording.milliseconds(pair.after.median_ms) + factor


def _short_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart."""
    for count in range(1, 6):
        short = [os.path.join(*Path(name).parts[-count:]) if Path(name).parts else name for name in names]
        if len(set(short)) == len(names):
            return short
    return [f'{index}: {name}' for index, name in enumerate(names, 1)]


__all__ = ['RunComparison']
