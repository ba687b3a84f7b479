"""Models side by side: accuracy against what they cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from strop.errors import ConfigError, try_import
from strop.files import atomic_path, atomic_write


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Args:
        name: What the reader calls it.
        kind: Group of the model ('winner', 'largest', 'random', ...); one colour of the plot.
        scores: One score for each training seed, in percent.
        macs: Multiply-adds of one sample.
        params: Number of parameters.
        latency_ms: Runtime -> (median, interquartile range) in milliseconds, batch 1.
        subnet: The choices, if it is a subnet.

    >>> Row('winner', 'winner', [97.0, 98.0], macs=10, params=5).mean
    97.5
    """

    name: str
    kind: str
    scores: Sequence[float]
    macs: int
    params: int
    latency_ms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    subnet: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not len(self.scores):
            raise ConfigError(f'The row {self.name!r} needs at least one score.')

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float | None:
        """Standard deviation of the scores (n - 1); None for a single one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """A titled list of rows with what was asked and what is to be said of it.

    >>> rows = [Row('winner', 'winner', [97.0], macs=2_000_000, params=5000)]
    >>> Comparison('Digits', rows).to_dict()['rows'][0]['mean']
    97.0
    """

    title: str
    rows: Sequence[Row]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def table(self) -> Table:
        """Return the comparison as a table for the terminal."""
        runtimes = list(dict.fromkeys(name for row in self.rows for name in row.latency_ms))
        table = Table(title=Text(self.title))
        table.add_column('model')
        for heading in ('accuracy %', 'MACs (M)', 'params (k)', *(escape(f'{name} (ms)') for name in runtimes)):
            table.add_column(heading, justify='right')
        for row in self.rows:
            spread = '' if row.spread is None else f' ± {row.spread:.2f}'
            times = [row.latency_ms.get(name) for name in runtimes]
            table.add_row(
                escape(row.name),
                f'{row.mean:.2f}{spread}',
                f'{row.macs / 1e6:.3f}',
                f'{row.params / 1e3:.1f}',
                *('' if time is None else f'{time[0]:.3f} (IQR {time[1]:.3f})' for time in times),
                style='bold' if row.kind == 'winner' else None,
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        rows = [{**asdict(row), 'mean': row.mean, 'spread': row.spread} for row in self.rows]
        return {'title': self.title, 'settings': dict(self.settings), 'rows': rows, 'notes': list(self.notes)}

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` to a file."""
        atomic_write(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + '\n')

    def write_plot(self, path: str | os.PathLike[str]) -> None:
        """Draw accuracy against MACs, and against the first measured latency, as a PNG.

        Raises:
            MissingDependencyError: If matplotlib is not installed (extra `report`).
        """
        matplotlib = try_import('matplotlib', 'report')
        matplotlib.use('Agg')
        pyplot = try_import('matplotlib.pyplot', 'report')
        runtime = next((name for row in self.rows for name in row.latency_ms), None)
        panels = [('MACs (millions)', self.rows, lambda row: row.macs / 1e6)]
        if runtime is not None:
            timed = [row for row in self.rows if runtime in row.latency_ms]
            panels.append((f'latency, {runtime}, batch 1 (ms)', timed, lambda row: row.latency_ms[runtime][0]))
        figure, axes = pyplot.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.2), sharey=True, squeeze=False)
        kinds = list(dict.fromkeys(row.kind for row in self.rows))
        for axis, (label, shown, value) in zip(axes[0], panels, strict=True):
            for position, kind in enumerate(kinds):
                rows = [row for row in shown if row.kind == kind]
                axis.errorbar(
                    [value(row) for row in rows],
                    [row.mean for row in rows],
                    yerr=[row.spread or 0.0 for row in rows],
                    fmt='*' if kind == 'winner' else 'osD^v'[position % 5],
                    markersize=14 if kind == 'winner' else 7,
                    capsize=3,
                    label=kind,
                )
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
        axes[0][0].set_ylabel('accuracy (%)')
        axes[0][0].legend()
        figure.suptitle(self.title)
        try:
            figure.tight_layout()
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=130, format='png')
        finally:
            pyplot.close(figure)
