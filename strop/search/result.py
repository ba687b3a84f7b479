"""What a search returns, and its files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.errors import StropError
from strop.files import atomic_write, json_text
from strop.mutables import Space
from strop.search.trial import FAILED, Trial, best_first, pareto_front


@dataclass(frozen=True)
class SearchResult:
    """The finished trials of a search, those of earlier runs on the same store included.

    Args:
        space: What was searched.
        objectives: Objective -> direction.
        trials: Finished trials by number, failed ones and those stopped early too.
        stopped: Why it ended: `'trials'`, `'seconds'`, `'halt'` (it was asked to) or `'exhausted'` (the space has
            no further subnet).
        name: Name of the search.
        seed: Its seed.
        strategy: Name of its strategy.

    >>> from strop.mutables import OneOf, Space
    >>> from strop.search import run
    >>> result = run(Space({'kernel': OneOf((3, 5, 7))}), lambda subnet: subnet['kernel'], strategy='grid')
    >>> result.best.values, result.stopped
    ({'score': 7.0}, 'exhausted')
    """

    space: Space
    objectives: dict[str, str]
    trials: list[Trial]
    stopped: str
    name: str
    seed: int
    strategy: str

    @property
    def complete(self) -> list[Trial]:
        """The trials that have values."""
        return [trial for trial in self.trials if trial.complete]

    @property
    def failed(self) -> list[Trial]:
        """The trials that failed."""
        return [trial for trial in self.trials if trial.state == FAILED]

    @property
    def stopped_early(self) -> list[Trial]:
        """The trials that a pruner stopped."""
        return [trial for trial in self.trials if trial.stopped]

    @property
    def front(self) -> list[Trial]:
        """The trials that no other one dominates; with one objective, the best one."""
        return pareto_front(self.trials, self.objectives)

    @property
    def best(self) -> Trial:
        """The best trial; with several objectives, the one on the front that is best in the first of them.

        Raises:
            StropError: If no trial is complete.
        """
        if not self.complete:
            raise StropError('There is no best subnet: no trial of this search is complete.')
        first = next(iter(self.objectives.items()))
        return best_first(self.front, dict([first]))[0]

    def ranked(self) -> list[Trial]:
        """Return the complete trials from best to worst."""
        return best_first(self.trials, self.objectives)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON holds it; the space is named by its digest."""
        return {
            'strop': 'search',
            'version': 1,
            'name': self.name,
            'strategy': self.strategy,
            'seed': self.seed,
            'space': self.space.digest,
            'objectives': self.objectives,
            'stopped': self.stopped,
            'front': [trial.number for trial in self.front],
            'trials': [trial.to_dict() for trial in self.trials],
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` to a file."""
        atomic_write(path, json_text(self.to_dict(), indent=1) + '\n')

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row a trial: number, state, values, info, seconds, error, then a column for each decision."""
        names: dict[str, None] = {name: None for trial in self.trials for name in trial.info}
        stream = io.StringIO()
        writer = csv.writer(stream)
        head = ['number', 'state', *self.objectives, *names, 'seconds', 'error']
        writer.writerow([*head, *(f'choice: {key}' for key in self.space)])
        for trial in self.trials:
            values: Mapping[str, Any] = trial.values or {}
            row = [trial.number, trial.state, *(values.get(name) for name in self.objectives)]
            row += [_cell(trial.info.get(name)) for name in names]
            row += [trial.seconds, trial.error, *(_cell(trial.subnet.get(key)) for key in self.space)]
            writer.writerow(row)
        atomic_write(path, stream.getvalue())


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value
