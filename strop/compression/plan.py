"""What a plan is: the models that were compared, the one that was taken, and the notes of how it was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from strop.compression.clock import Pace
from strop.compression.ladder import Rung, Worth
from strop.files import atomic_write, read_json
from strop.graph import ChannelGraph
from strop.pruning import PruneRecord, Step, UnitChange
from strop.report.compression_result import StageResources, Tried


@dataclass
class Candidate:
    """A model that keeps the budget.

    Args:
        label: Which ladder it is of.
        rung: Where on it.
        pace: Its time.
        harm: How far its outputs are from the original's.
        score: On the validation samples, after it was taught for some steps.
        gap: How far its outputs are from the original's there: `Judge.gap`.
        steps: How many these were; 0 if it was not taught.
    """

    label: str
    rung: Rung
    pace: Pace
    harm: float
    score: float | None = None
    gap: float | None = None
    steps: int = 0


@dataclass
class Planned:
    """The plan, carried out.

    Args:
        model: The smaller model.
        records: What was removed.
        explanation: Why, in sentences.
        tried: The models that were measured.
        warnings: What the reader should know.
        latencies: Layer -> milliseconds in the model before.
        latencies_after: Likewise, in the smaller model; empty where it could not be measured alike.
        timed_in: Runtime and precision of these times.
        worths: What each unit and block is worth.
        candidates: The models that keep the budget, with what they score.
        lengths: Unit -> length.
        removed: Blocks that were taken out.
        side: Short side of the images that it takes; None if it takes those that it took.
    """

    model: nn.Module
    records: list[Any] = field(default_factory=list)
    explanation: list[str] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    latencies: dict[str, float] = field(default_factory=dict)
    latencies_after: dict[str, float] = field(default_factory=dict)
    timed_in: tuple[str, str] | None = None
    worths: list[Worth] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    side: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON holds it."""
        return {
            'units': [{**asdict(worth), 'harm': {str(cut): harm for cut, harm in worth.harm.items()}} for worth in self.worths],
            'lengths': self.lengths,
            'removed': list(self.removed),
            'side': self.side,
            'layers_ms': self.latencies,
            'layers_after_ms': self.latencies_after,
            'candidates': [
                {'label': found.label, 'lengths': dict(found.rung.lengths), 'removed': list(found.rung.removed),
                 'side': found.rung.side, 'share': found.pace.share, 'milliseconds': found.pace.milliseconds,
                 'harm': found.harm, 'score': found.score, 'gap': found.gap, 'steps': found.steps}
                for found in self.candidates
            ],
        }  # fmt: skip


def record_of(
    graph: ChannelGraph, slicing: Any, before: StageResources, after: StageResources, error: float | None, **options: Any
) -> PruneRecord:
    """Return the record of a cut that a plan makes.

    Args:
        graph: The units.
        slicing: The cut.
        before: What the model costs.
        after: What the smaller one costs.
        error: How far that is from the masked model.
        options: `importance`, `seed` and `budget` of the record.
    """
    lengths = slicing.lengths
    kept = {name: tuple(slicing.indices[name].tolist()) for name, n in lengths.items() if n < graph.units[name].size}
    channels = sum(graph.units[name].size for name in lengths) or 1
    units = [UnitChange(name, unit.role, unit.size, lengths.get(name, unit.size)) for name, unit in graph.units.items()]
    return PruneRecord(
        units=tuple(units),
        steps=(Step(1 - sum(lengths.values()) / channels, kept, int(after.macs or 0), int(after.params or 0), error),),
        macs=(int(before.macs or 0), int(after.macs or 0)),
        params=(int(before.params or 0), int(after.params or 0)),
        scope='planned',
        frozen=len(graph.frozen),
        **options,
    )


class Notes:
    """What a planner has found out, in a file, so that one that was killed does not find it out again, or otherwise.

    Args:
        file: Where.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = Notes(Path(folder, 'plan.json')).recall('a', lambda: 1.5)
    ...     again = Notes(Path(folder, 'plan.json')).recall('a', lambda: 2.5)
    >>> first, again
    (1.5, 1.5)
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, Any] = read_json(file, 'the notes of a plan') if file.is_file() else {}

    def recall(self, key: str, find: Callable[[], Any]) -> Any:
        """Return what is known under a key; if nothing is, find it out and write it down.

        Args:
            key: What it is.
            find: Returns something that JSON holds.
        """
        if key not in self.known:
            self.known[key] = json.loads(json.dumps(find()))
            atomic_write(self.file, json.dumps(self.known))
        return self.known[key]


__all__ = ['Candidate', 'Notes', 'Planned', 'record_of']
