"""Where the models of a plan are built, timed, compared and taught, each once: a killed plan knows what it has found out."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from strop.compression.calling import as_batches, call, main_output
from strop.compression.clock import Clock, Pace
from strop.compression.ladder import Rung
from strop.compression.plan import Notes, record_of
from strop.compression.scoring import Judge, with_better_norms
from strop.compression.stage import Surroundings, resources_of
from strop.graph import verify
from strop.graph.forward import evaluated
from strop.pruning import Ranking, recalibrate, remove_blocks
from strop.report.compression_result import StageResources

#: Seconds that finding out what units are worth may take, about.
_SECONDS = 120.0
#: So many validation samples at most tell which models are far behind without training, and which of those taught are best.
_SCREENED, _JUDGED = 1_000, 10_000


class Workshop:
    """Builds the models of rungs and finds out what each takes, loses and learns.

    Args:
        model: The model that is cut.
        around: The budget, the data and the original model, and the stage that trains next.
        ranking: Which indices of each unit are the first to go.
        importance: By what they were ranked, for records.
        recalibrate: Whether norms are measured again where that does better.
        calibration: Batches of inputs.

    Attributes:
        screen: Scores models that were not taught, on few validation samples where there are many.
        judge: Scores those that were taught, on more.
    """

    def __init__(
        self,
        model: nn.Module,
        around: Surroundings,
        ranking: Ranking,
        *,
        importance: str,
        recalibrate: bool,
        calibration: list[Any],
    ) -> None:
        self.around, self.ranking, self.importance = around, ranking, importance
        self.screen, self.judge = (around.judge.fewer(most) for most in (_SCREENED, _JUDGED))
        self.clock = Clock(around)
        self.counted = around.counted_limits()
        self._model, self._graph, self._recalibrates = model, ranking.graph, recalibrate
        self._notes = Notes(around.work / 'plan.json')
        self._calibrations: dict[int | None, list[Any]] = {around.data.side: calibration}
        self._resources: dict[str, StageResources] = {}
        self._last: tuple[str, nn.Module] | None = None

    @property
    def whole(self) -> Rung:
        """The model as it is."""
        return Rung(self._graph.fit({}), (), 0.0, 0.0)

    def view(self, rung: Rung) -> Surroundings:
        """Return the data and the judge for the images that a rung's model takes."""
        return self.around if rung.side is None else self.around.at(rung.side)

    @property
    def sampled(self) -> str | None:
        """What models are scored on where there are more validation samples than that, in a sentence."""
        whole, few, more = (len(judge.data.validation) for judge in (self.around.judge, self.screen, self.judge))
        if few == whole:
            return None
        taught = f', those that were taught on {more:,} of them' if more < whole else ', those that were taught on all'
        return f'Models were scored on {few:,} of the {whole:,} validation samples{taught}.'

    # -- models ----------------------------------------------------------------------------

    def model(self, rung: Rung) -> nn.Module:
        """Return the model of a rung, which stays as it is; the last one is kept."""
        if self._last is None or self._last[0] != rung.key:
            self._last = rung.key, self.built(rung)[0]
        return self._last[1]

    def built(self, rung: Rung, check: bool = False) -> tuple[nn.Module, list[Any]]:
        """Cut a model to a rung: units first, by the names that they were ranked under, then blocks.

        Args:
            rung: The rung.
            check: Whether the cut model is compared with the masked one, and records are made of what goes.
        """
        slicing = self._graph.slicing(self.ranking.keep(rung.lengths))
        smaller, records = self._model, []
        if slicing.touched:
            smaller = slicing.apply(self._model)
            if check:
                example = self.around.data.example(1)
                error = verify(self._model, smaller, slicing, example)
                costs = [resources_of(model, example) for model in (self._model, smaller)]
                options = {'importance': self.importance, 'seed': self.around.seed, 'budget': str(self.around.budget)}
                records.append(record_of(self._graph, slicing, costs[0], costs[1], error, **options))
        if rung.removed:
            smaller, record = remove_blocks(smaller, self.around.data.example(2), names=list(rung.removed))
            records.append(record)
        return evaluated(copy.deepcopy(smaller) if smaller is self._model else smaller), records

    # -- what they take --------------------------------------------------------------------

    def layers(self, rung: Rung) -> dict[str, Any]:
        """Return the times of the layers of a rung's model, and how they were measured."""

        def find() -> dict[str, Any]:
            shared, found = self.clock.layers(self.model(rung), self.view(rung).data)
            return {
                'shared': shared, 'layers': {name: layer.latency.median_ms for name, layer in found.items()},
                'milliseconds': found.whole.median_ms, 'runtime': found.runtime, 'precision': found.precision,
                'threads': found.threads, 'warnings': list(self.clock.warnings),
            }  # fmt: skip

        known: dict[str, Any] = self._notes.recall(_mark('layers', rung), find)
        return known

    def pace(self, rung: Rung) -> Pace:
        """Return the time of a rung's model; zero if the budget is not of time."""
        if not self.around.budget.timed:
            return Pace(0.0, 0.0)

        def find() -> list[float]:
            pace = self.clock.time(self.model(rung), self.view(rung).data)
            return [pace.share, pace.milliseconds]

        return Pace(*self._notes.recall(_mark('time', rung), find))

    def costs(self, rung: Rung) -> StageResources:
        """Return what is counted of a rung's model."""
        if rung.key not in self._resources:
            self._resources[rung.key] = resources_of(self.model(rung), self.view(rung).data.example(1))
        return self._resources[rung.key]

    def excess(self, rung: Rung) -> float:
        """Return what a rung's model takes as a share of the tightest limit."""
        costs = self.costs(rung)
        counted = [float(getattr(costs, name) or 0) / limit for name, limit in self.counted.items()]
        return max([self.clock.excess(self.pace(rung)), *counted])

    # -- what they lose and learn ----------------------------------------------------------

    def compare(self, trials: int) -> None:
        """Choose the batches that `harm` compares models on, and keep what the whole model gives for them.

        Args:
            trials: How many models will be compared.
        """
        batches = self._calibration(self.whole)

        def find() -> int:
            begun = time.monotonic()
            with torch.no_grad():
                call(self._model, batches[0])
            once = time.monotonic() - begun
            # Two forwards for each trial: one for the statistics of norms, one to compare.
            return int(max(1, min(len(batches) // 2 or 1, _SECONDS / max(2 * once * trials, 1e-9))))

        self._many = int(self._notes.recall('batches', find))
        first, second = self._halves(self.whole)
        # Its norms are measured on the same batches, or their change would be taken for harm.
        whole = copy.deepcopy(self._model)
        recalibrate(whole, as_batches(first))
        with torch.no_grad():
            self._wanted = [main_output(call(whole, inputs), inputs) for inputs in second]

    def harm(self, rung: Rung) -> float:
        """Return how far the outputs of a rung's model are from the whole model's, on the batches that `compare` chose."""

        def find() -> float:
            smaller = copy.deepcopy(self.model(rung))
            first, second = self._halves(rung)
            recalibrate(smaller, as_batches(first))
            with torch.no_grad():
                gaps = [
                    _distance(main_output(call(smaller, inputs), inputs), answer)
                    for inputs, answer in zip(second, self._wanted)
                ]
            value = sum(gaps) / len(gaps)
            return value if math.isfinite(value) else 1e6

        return float(self._notes.recall(_mark('harm', rung), find))

    def untaught(self, rung: Rung) -> float:
        """Return the score of a rung's model on the validation samples."""

        def find() -> float:
            return self._of(self.screen, rung).score(self._normed(rung), 'validation')

        known = self._norms(rung)[1] if self._recalibrates else None
        return float(self._notes.recall(_mark('untaught', rung), find)) if known is None else known

    def taught(self, rung: Rung, steps: int) -> tuple[float, float]:
        """Return score and gap on the validation samples of a rung's model, taught for some steps if a stage will teach it."""

        def find() -> list[float]:
            around = self.view(rung)
            smaller = self._normed(rung)
            if around.follows is not None and steps:
                smaller = around.follows.rehearse(smaller, around, steps)
            return list(self._of(self.judge, rung).score_and_gap(smaller, 'validation'))

        score, gap = self._notes.recall(_mark(f'taught for {steps} steps', rung), find)
        return float(score), float(gap)

    # -- internals -------------------------------------------------------------------------

    def _of(self, judge: Judge, rung: Rung) -> Judge:
        return judge if rung.side is None else judge.at(rung.side)

    def _calibration(self, rung: Rung) -> list[Any]:
        around = self.view(rung)
        side = around.data.side
        if side not in self._calibrations:
            # Those of the images that it had, and of one other size: they may be large.
            self._calibrations = {self.around.data.side: self._calibrations[self.around.data.side]}
            self._calibrations[side] = around.calibration(self._model)
        return self._calibrations[side]

    def _halves(self, rung: Rung) -> tuple[list[Any], list[Any]]:
        """Return batches for the statistics of norms, and others to compare on."""
        batches, many = self._calibration(rung), self._many
        return batches[:many], batches[many : 2 * many] or batches[:many]

    def _norms(self, rung: Rung) -> tuple[bool, float | None]:
        """Return whether a rung's model does better with its norms measured again, and what it scores, if that was needed."""

        def find() -> tuple[bool, float | None]:
            found = with_better_norms(self.model(rung), self._calibration(rung), self._of(self.screen, rung))
            return found.again, found.score

        again, score = self._notes.recall(_mark('norms', rung), find)
        return again, score

    def _normed(self, rung: Rung) -> nn.Module:
        """Return a copy of a rung's model with the norms that it will have."""
        model = copy.deepcopy(self.model(rung))
        if self._recalibrates and self._norms(rung)[0]:
            recalibrate(model, as_batches(self._calibration(rung)))
        return model


def _mark(what: str, rung: Rung) -> str:
    return f'{what} {hashlib.sha256(rung.key.encode()).hexdigest()[:20]}'


def _distance(output: Tensor, wanted: Tensor) -> float:
    """Return the mean squared difference of outputs in units of the variance of the wanted ones.

    Unlike the divergence of classes it does not vanish where the model is sure of itself.
    """
    return float((output - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-12))


__all__ = ['Workshop']
