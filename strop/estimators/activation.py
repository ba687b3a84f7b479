"""Peak activation memory of many subnets from one trace of their supernet."""

from __future__ import annotations

import numpy as np

from strop.estimators.guards import Answers, Array, Conjunction
from strop.estimators.supernet import SupernetTrace

CHUNK = 512  # subnets at once: bounds the (subnets, times) matrix


class PeakMemory:
    r"""The peak :math:`\max_t \sum_{s: b_s \le t \le l_s} \mathrm{bytes}_s` as a function of a subnet.

    When a storage dies depends on the choices: the output of a decision *is* the chosen alternative's storage,
    which lives until the last use of either. Times are those of the supernet; operators that a subnet does not
    run neither make nor use anything, and memory grows only where a storage is made, so no time is lost.

    Args:
        supernet: The traced supernet.
    """

    def __init__(self, supernet: SupernetTrace) -> None:
        trace = supernet.trace
        self.end = len(trace.ops)
        self.sizes = trace.sizes
        self.births = trace.births
        self.outputs = frozenset(trace.outputs)
        self.joins = supernet.joins
        made_under: dict[int, Conjunction] = dict.fromkeys(trace.inputs, frozenset())
        uses: list[dict[Conjunction, int]] = [{} for _ in trace.sizes]
        for time, op in enumerate(trace.ops, start=1):
            made_under.update(dict.fromkeys(op.born, op.guard))
            for node in op.uses:
                uses[node][op.guard] = time
        self.made_under = made_under
        self.uses = uses
        # Memory can only grow where something is made: these times are the columns.
        made = sorted({self.births[node] for node in made_under if self.sizes[node]} | {0})
        self.columns = np.array(made)
        sources = {source for alternatives in self.joins.values() for _, source in alternatives}
        self._moving = [node for node in sorted(made_under) if self.sizes[node] and not self._is_fixed(node, sources)]
        self._conjunctions, self._profiles = self._fixed_profiles(set(self._moving))

    def _is_fixed(self, node: int, sources: set[int]) -> bool:
        """Tell whether a storage, where it exists, dies at the same time in every subnet."""
        made_under = self.made_under[node]
        return node in self.outputs or (node not in sources and all(guards <= made_under for guards in self.uses[node]))

    def _column_after(self, time: Array | int) -> Array:
        return np.searchsorted(self.columns, time, side='right')

    def _fixed_profiles(self, moving: set[int]) -> tuple[list[Conjunction], Array]:
        """Return guards, and for each the change in bytes at every column by the storages whose life is known."""
        profiles: dict[Conjunction, Array] = {}
        for node, guards in self.made_under.items():
            if node in moving or not self.sizes[node]:
                continue
            last = self.end if node in self.outputs else max((self.births[node], *self.uses[node].values()))
            profile = profiles.setdefault(guards, np.zeros(len(self.columns) + 1))
            profile[np.searchsorted(self.columns, self.births[node])] += self.sizes[node]
            profile[self._column_after(last)] -= self.sizes[node]
        return list(profiles), np.stack(list(profiles.values())) if profiles else np.zeros((0, len(self.columns) + 1))

    def __call__(self, answers: Answers) -> Array:
        """Return the peak of each subnet in bytes."""
        parts = [self._peaks(answers, start) for start in range(0, len(answers), CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _peaks(self, answers: Answers, start: int) -> Array:
        rows = slice(start, min(start + CHUNK, len(answers)))
        count = rows.stop - rows.start

        def held(guards: Conjunction) -> Array:
            return answers.all_hold(guards)[rows]

        change = np.zeros((count, len(self.columns) + 1))
        if self._conjunctions:
            change += np.stack([held(guards) for guards in self._conjunctions]).T.astype(np.float64) @ self._profiles
        everyone = np.arange(count)
        last = self._last_uses(held, count)
        for node in self._moving:
            size = self.sizes[node] * held(self.made_under[node]).astype(np.float64)
            change[:, np.searchsorted(self.columns, self.births[node])] += size
            change[everyone, self._column_after(last[node])] -= size
        return np.cumsum(change, axis=1).max(axis=1).astype(np.int64)

    def _last_uses(self, held: object, count: int) -> dict[int, Array]:
        """Return for each moving storage (and each join) the time of its last use in each subnet."""
        last: dict[int, Array] = {}
        wanted = {*self._moving, *self.joins, *(source for alternatives in self.joins.values() for _, source in alternatives)}
        for node in wanted:
            # A join that nothing uses keeps nothing alive; a storage lives at least while it is made.
            times = np.full(count, -1 if node in self.joins else self.births[node])
            for guards, time in self.uses[node].items():
                np.maximum(times, np.where(held(guards), time, -1), out=times)  # type: ignore[operator]
            if node in self.outputs:
                times[:] = self.end
            last[node] = times
        for node in sorted(self.joins, reverse=True):  # a join is numbered after everything that it can be
            for guards, source in self.joins[node]:
                np.maximum(last[source], np.where(held(guards), last[node], -1), out=last[source])  # type: ignore[operator]
        return last
