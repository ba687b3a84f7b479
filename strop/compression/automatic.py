"""The automatic plan: where the time goes, what each unit is worth, and the lengths that buy most time for least harm.

1. The time of each layer is measured in the runtime that the budget names, quantized if the recipe quantizes for it: in the
   whole model and in models cut to several widths, which tell how much of it shrinks.
2. Each channel unit is cut alone to a few lengths and each residual block is skipped alone; what the model gives then is
   compared with what the whole model gives on calibration samples, without labels: the mean squared difference, in units of the
   variance of the whole model's outputs.
3. Steps (a unit to its next length, or a block out) are taken one after the other, always the one with the least harm for the
   time that it saves. That orders models from the original to the smallest that can be reached. What a block's harm counts
   beside that of channels is tried at several weights, since it says little about what training repairs; that makes several
   such ladders, beside one that takes the same share from every unit.
4. On each ladder models are built and measured whole until the least harmed one is found that keeps the budget. Where the
   recipe allows it, images are made smaller too: alone, and by some of that way together with the cuts of a ladder. Ends of
   ladders that are far within the budget by the times of step 1 are not measured; once six models keep the budget, nor are
   ladders whose model is far behind these without training.
5. Each of these, or the few that are best without training, is taught for some steps as the next stage of the recipe will teach
   it; the better half of more than three is taught anew for twice as many, since what heals slowly may come further, and so are
   those whose scores on the validation samples lie within the standard error of the best, up to four times as many steps. The
   best is the plan; of those that are level to the end, the one whose outputs there are nearest to the original's.

A recipe that limits only the drop of the score goes down the first ladder as far as models keep it that were taught for some
steps.

Step 3 is the greedy of NetAdapt (Yang et al., NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications, ECCV
2018, https://arxiv.org/abs/1804.03230), which trains between the steps; here the finished candidates are trained. Step 5 is the
successive halving of Jamieson and Talwalkar (Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS
2016, https://arxiv.org/abs/1502.07943), but each round starts anew: a schedule of learning rates ends with its steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from strop.compression.clock import Pace
from strop.compression.image_sizes import between, sized, smaller_sides
from strop.compression.ladder import Pricing, Rung, Worth, greedy_ladder, uniform_ladder
from strop.compression.plan import Candidate, Planned
from strop.compression.stage import Surroundings
from strop.compression.workshop import Workshop
from strop.estimators import WidthCosts
from strop.graph import channel_units
from strop.pruning import Ranking, build_importance, residual_blocks, score
from strop.pruning.importance import ImportanceLike
from strop.report.compression_result import Tried

if TYPE_CHECKING:
    from strop.pruning import Selection

#: Shares of a unit that are cut away to find out what it is worth.
GRID = (0.25, 0.5, 0.75)
#: Shares of what may go that are cut from all units to find out how the times of layers shrink.
_WIDTHS = (0.35, 0.7, 1.0)
#: What the harm of a block counts beside that of channels, in the ladders that are compared.
_DEPTH_WEIGHTS = (1.0, 0.25, 4.0, math.inf)
#: A measured time this little below the limit is near enough; one further below than the second wants more tries, so many.
_NEAR, _FAR, _MORE = 0.97, 0.8, 6
#: An end of a ladder that is expected to take no more than this share of the limit is not measured for that.
_SURE = 0.5
#: Nor is a beginning that others measured let expect to take at least so much of it.
_CLEAR = 1.1
#: Of more models within the budget than this only the best without training are taught.
_TAUGHT = 6
#: A model so far below those, or three standard errors below, is not measured.
_BEHIND = 0.1
#: Of more than so many that were taught alike the better half goes on, of no more those that are as good as the best.
_LAST = 3
#: They are taught for so many times the steps at most.
_LONGEST = 4


def most_steps(rehearse: int) -> int:
    """Return for how many steps all candidates of a plan are taught together, if there are many and they stay level.

    Args:
        rehearse: Steps that each is taught for at first.

    >>> most_steps(60)  # six of them for 60 steps, three for 120 and three for 240
    1440
    """
    total, count, steps = 0, _TAUGHT, rehearse
    while steps < _LONGEST * rehearse:
        total += count * steps
        count, steps = count if count <= _LAST else count // 2, 2 * steps
    return total + count * steps


class Planner:
    """Chooses the lengths of all units, and the blocks that go, for the budget of a recipe; see the top of this module.

    Args:
        model: The model.
        around: The budget, the data and the original model, and the stage that trains next.
        importance: What indices of a unit are ranked by.
        importance_data: Batches for an importance that looks at data.
        importance_loss: The loss for one.
        selection: What may be pruned, how far, in which multiples.
        depth: Whether residual blocks may go.
        resolution: Whether images may be made smaller.
        tries: How many models of a ladder are measured whole, beside its ends.
        rehearse: Steps that candidates are taught for at first; 0 takes the one that is harmed least.
        recalibrate: Whether norms are measured again where that does better.
        calibration: Batches of inputs.

    Raises:
        ConfigError: If nothing can be pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        around: Surroundings,
        *,
        importance: ImportanceLike,
        importance_data: Any,
        importance_loss: Any,
        selection: Selection,
        depth: bool,
        resolution: bool,
        tries: int,
        rehearse: int,
        recalibrate: bool,
        calibration: list[Any],
    ) -> None:
        self.model, self.around, self.tries, self.rehearse = model, around, tries, rehearse
        self.graph = channel_units(model, around.data.example(1))
        judge: Any = build_importance(importance, seed=around.seed)
        found = score(self.graph, model, judge, data=importance_data, loss=importance_loss, seed=around.seed)
        self.ranking = Ranking(self.graph, model, found, selection)
        needs = () if around.follows is None else around.follows.needs
        self.blocks = [
            block
            for block in (residual_blocks(model, around.data.example(2)) if depth else ())
            if not any(path == block or path.startswith(f'{block}.') for path in needs)
        ]
        self._trials = len(self.ranking.prunable) * len(GRID) + len(self.blocks)
        self.shop = Workshop(
            model, around, self.ranking, importance=judge.name, recalibrate=recalibrate, calibration=calibration,
        )  # fmt: skip
        self.planned = Planned(model)
        self._tried: dict[str, Tried] = {}
        self.sides: list[int] = []
        if resolution:
            self.sides, why = smaller_sides(model, around.data)
            self.planned.warnings += [f'Images cannot be made smaller than this: {why}.'] if why else []
        self._done, self._total = 0, 1
        self._missed: list[tuple[str, Rung]] = []

    def plan(self) -> Planned:
        """Make the plan and carry it out."""
        planned = self.planned
        ladders = 1 if self._only_score() else 1 + len(_DEPTH_WEIGHTS) * bool(self.blocks)
        ladders += 4 if self.sides and not self._only_score() else 0
        self._total = self._trials + len(_WIDTHS) + 2 + ladders * (2 + self.tries)
        self.pricing = self._priced()
        planned.worths = self._worths()
        self._ladders = self._ordered()
        if self._only_score():
            chosen = self._within_score()
        else:
            chosen = self._within_budget()
        if chosen.rung.key != self.shop.whole.key:
            planned.model, planned.records = self.shop.built(chosen.rung, check=True)
            after = self._layers(chosen.rung)
            if (after['runtime'], after['precision']) == planned.timed_in:
                planned.latencies_after = after['layers']
        planned.side = chosen.rung.side
        planned.lengths = {name: length for name, length in chosen.rung.lengths.items() if length < self.graph.units[name].size}
        planned.removed = chosen.rung.removed
        for key, entry in self._tried.items():
            entry.chosen = key == chosen.rung.key
        planned.tried = list(self._tried.values())
        planned.explanation += [self.shop.sampled] if self.shop.sampled and planned.tried else []
        self._explain(chosen)
        return planned

    # -- what is measured ------------------------------------------------------------------

    def _priced(self) -> Pricing:
        """Measure the layers of the whole model and of narrower ones."""
        planned, shop = self.planned, self.shop
        whole = self._layers(shop.whole)
        planned.latencies, planned.timed_in = whole['layers'], (whole['runtime'], whole['precision'])
        slowest = sorted(planned.latencies.items(), key=lambda item: -item[1])[:4]
        planned.explanation.append(
            f'Measured on {whole["runtime"]} in {whole["precision"]} with {whole["threads"]} '
            f'thread{"s" * (whole["threads"] != 1)}, one sample takes {whole["milliseconds"]:.3f} ms; the slowest layers are '
            + ', '.join(f'{name} ({100 * ms / whole["milliseconds"]:.0f} %)' for name, ms in slowest)
            + '.'
        )
        pricing = Pricing(WidthCosts(self.graph), whole['shared'])
        if not self.around.budget.timed:
            return pricing
        lengths: dict[str, int] = {}
        for share in _WIDTHS:
            lengths = self.ranking.lengths(share)
            narrow = Rung(lengths, (), 0.0, 0.0)
            times = self._layers(narrow)['shared']
            # Profiles are taken one after the other, in faster and slower moments of the machine; whole models in turns.
            part = shop.pace(narrow).share / shop.pace(shop.whole).share
            scale = part * sum(whole['shared'].values()) / (sum(times.values()) or 1)
            pricing.learn(lengths, {name: ms * scale for name, ms in times.items()})
        kept = pricing.milliseconds(lengths) / pricing.milliseconds({})
        macs = sum(pricing.costs.macs_by_module(lengths).values()) / max(sum(pricing.whole.values()), 1)
        planned.explanation.append(
            f'Narrowed as far as it goes, to {macs:.0%} of its multiply-adds, its layers keep {kept:.0%} of their time: '
            'that part goes only with whole blocks.'
        )
        return pricing

    def _layers(self, rung: Rung) -> dict[str, Any]:
        self._advance()
        known = self.shop.layers(rung)
        self.planned.warnings += [text for text in known['warnings'] if text not in self.planned.warnings]
        return known

    def _worths(self) -> list[Worth]:
        """Cut each unit alone, take out each block alone, and compare the outputs with the whole model's."""
        self.shop.compare(self._trials)
        whole = self.pricing.milliseconds({})
        result = []
        for name in self.ranking.prunable:
            unit = self.graph.units[name]
            gaps, saved = {}, 0.0
            for share in GRID:
                kept = max(unit.minimum, math.floor(unit.size * (1 - share)))
                lengths = self.graph.fit({name: kept})
                if lengths[name] >= unit.size:
                    continue
                cut = 1 - lengths[name] / unit.size
                gaps[cut] = self.shop.harm(Rung(lengths, (), 0.0, 0.0))
                self._advance()
                saved = max(saved, (whole - self.pricing.milliseconds(lengths)) / cut)
            if gaps:
                result.append(Worth(name, unit.size, saved, gaps))
        for block in self.blocks:
            harm = self.shop.harm(Rung(self.graph.fit({}), (block,), 0.0, 0.0))
            self._advance()
            result.append(Worth(block, 0, self.pricing.inside(block), {1.0: harm}))
        return result

    # -- what is chosen --------------------------------------------------------------------

    def _ordered(self) -> dict[str, list[Rung]]:
        """Return the ladders by what the reader calls them."""
        given = self.planned.worths, self.ranking, self.pricing
        if self._only_score():
            return {'least harm': greedy_ladder(*given, self.blocks)}
        if not self.blocks:
            return {'least harm': greedy_ladder(*given, ()), 'the same share everywhere': uniform_ladder(*given)}
        names = {1.0: 'least harm', math.inf: 'all blocks kept'}
        ladders = {
            names.get(weight, f'harm of blocks × {weight:g}'): greedy_ladder(*given, self.blocks, weight)
            for weight in _DEPTH_WEIGHTS
        }
        return {**ladders, 'the same share everywhere': uniform_ladder(*given)}

    def _only_score(self) -> bool:
        """Whether the budget limits nothing but the drop of the score."""
        return not self.around.budget.timed and not self.shop.counted

    def _within_budget(self) -> Candidate:
        """Find on each ladder the least harmed model within the budget; of these take the one that learns best."""
        planned, whole = self.planned, self.shop.whole
        if self._excess(whole, 'as it is') <= 1:
            planned.explanation.append('The model keeps the budget as it is; nothing was removed.')
            return Candidate('as it is', whole, self.shop.pace(whole), 0.0)
        if self.sides:
            self._smaller_images()
        behind = []
        for label, ladder in self._ladders.items():
            if self._is_behind(ladder):
                behind.append(label)
            else:
                self._reach(_steps(label, ladder), ladder)
        if behind:
            planned.explanation.append(
                f'Not measured, since {_TAUGHT} models within the budget are far better without training: {", ".join(behind)}.'
            )
        if not planned.candidates:
            label, rung = min(self._missed, key=lambda item: self._excess(item[1]))
            pace = self.shop.pace(rung)
            planned.warnings.append(
                f'The budget ({self.around.budget}) cannot be reached by pruning: the smallest model that can be reached '
                + (
                    f'takes {pace.milliseconds:.3f} ms, {pace.share:.2f} of the {self.around.budget.relative_to} model, '
                    if self.around.budget.timed
                    else ''
                )
                + 'and was taken.'
            )
            name = self._tried[rung.key].label if rung.key in self._tried else label
            return Candidate(name, rung, pace, self.shop.harm(rung))
        return self._best(planned.candidates)

    def _reach(self, labels: Sequence[str], ladder: Sequence[Rung], tries: int | None = None) -> int | None:
        """Look on a ladder for a model within the budget; return its place, or None if there is none."""
        index = self._first_within(labels, ladder, self.tries if tries is None else tries)
        if index is None:
            self._missed.append((labels[-1], ladder[-1]))
        elif all(found.rung.key != ladder[index].key for found in self.planned.candidates):
            rung = ladder[index]
            label = self._tried[rung.key].label
            self.planned.candidates.append(Candidate(label, rung, self.shop.pace(rung), self.shop.harm(rung)))
        return index

    def _is_behind(self, ladder: Sequence[Rung]) -> bool:
        """Whether the model that is expected to keep the budget has no chance to be among those that are taught."""
        candidates = self.planned.candidates
        if len(candidates) < _TAUGHT or not self._timed_alone() or self.around.follows is None or not self.rehearse:
            return False
        limit = ladder[0].milliseconds / max(self._excess(ladder[0]), 1e-9)
        likely = next((rung for rung in ladder if rung.milliseconds <= limit), ladder[-1])
        last = sorted((self.shop.untaught(found.rung) for found in candidates), reverse=True)[_TAUGHT - 1]
        return self.shop.untaught(likely) < last - max(_BEHIND, 3 * self.shop.screen.error(last))

    def _timed_alone(self) -> bool:
        return self.around.budget.timed and not self.shop.counted

    def _smaller_images(self) -> None:
        """Make images smaller until that alone keeps the budget, and by some of that way with cuts of least harm."""
        whole = self.around.data.side or self.around.data.image_side or 1
        first = next(iter(self._ladders))
        kept = self._ladders[first][0]
        # A step is several percent of the time: the search goes on until the first one within the budget is known.
        images = [kept, *(sized([kept], side, whole)[0] for side in self.sides)]
        index = self._reach(['as it is', *(f'images of {side} alone' for side in self.sides)], images, tries=len(images))
        for side in between(self.sides, None if index is None else index - 1):
            ladder = sized(self._ladders[first], side, whole)
            labels = [f'images of {side}, {step}' for step in _steps(first, ladder)]
            found = self._first_within(labels, ladder, self.tries, self._foreseen(ladder[0], images))
            if found is None:
                self._missed.append((labels[-1], ladder[-1]))
                continue
            # A step that takes a block may leave room for larger images.
            sides = [each for each in self.sides if each >= side]
            larger = [sized([self._ladders[first][found]], each, whole)[0] for each in sides]
            step = _steps(first, ladder)[found]
            self._reach([f'images of {each}, {step}' for each in sides], larger, tries=len(larger))

    def _foreseen(self, rung: Rung, others: Sequence[Rung]) -> float | None:
        """Return what a rung is expected to take as a share of the limit, by others measured; None if it may be within it."""
        known = sorted((each.milliseconds, self._excess(each)) for each in others if each.key in self._tried)
        if not self._timed_alone() or not known[0][0] <= rung.milliseconds <= known[-1][0]:
            return None
        expected = float(np.interp(rung.milliseconds, [time for time, _ in known], [share for _, share in known]))
        return expected if expected > _CLEAR else None

    def _best(self, candidates: list[Candidate]) -> Candidate:
        """Return the candidate that learns best; without a stage that trains the one that is harmed least."""
        planned, follows = self.planned, self.around.follows
        if len(candidates) == 1:
            return candidates[0]
        if follows is None or not self.rehearse:
            chosen = min(candidates, key=lambda found: found.harm)
            planned.explanation.append(
                f'{len(candidates)} models keep the budget; their outputs move by '
                + ', '.join(f'{found.harm:.3g} ({found.label})' for found in candidates)
                + f'. Taken was: {chosen.label}.'
            )
            return chosen
        if len(candidates) > _TAUGHT:
            planned.explanation.append(
                f'{len(candidates)} models keep the budget; the {_TAUGHT} best without training were taught.'
            )
            candidates = sorted(candidates, key=lambda found: -self.shop.untaught(found.rung))[:_TAUGHT]
        steps, more = self.rehearse, f'{len(candidates)} models that keep the budget were'
        while True:
            self._teach(candidates, steps, more)
            ranked, level, error = self._ranked(candidates)
            if steps >= _LONGEST * self.rehearse or (len(candidates) <= _LAST and level == 1):
                break
            candidates = ranked[: level if len(candidates) <= _LAST else len(candidates) // 2]
            steps, more = 2 * steps, f'The {len(candidates)} best of them were'
        if level > 1:
            gaps = ', '.join(f'{found.gap:.4f} ({found.label})' for found in ranked[:level])
            planned.explanation.append(
                f'{level} of them lie within the standard error of the best, {error:.4f}; how far their outputs are from '
                f"the original's tells them apart: {gaps}."
            )
        chosen = ranked[0]
        planned.explanation.append(f'Taken was: {chosen.label}.')
        return chosen

    def _teach(self, candidates: list[Candidate], steps: int, which: str) -> None:
        """Teach candidates for some steps; write down what they score then."""
        follows = self.around.follows
        assert follows is not None, 'without a stage that trains there is nothing to teach them as'
        for found in candidates:
            found.score, found.gap = self.shop.taught(found.rung, steps)
            found.steps = steps
            self._advance()
        self.planned.explanation.append(
            f'{which} taught for about {steps} steps, as the stage `{follows.kind}` will; their {self.around.judge.choice} on '
            'the validation samples is ' + ', '.join(f'{found.score:.4f} ({found.label})' for found in candidates) + '.'
        )

    def _ranked(self, candidates: list[Candidate]) -> tuple[list[Candidate], int, float]:
        """Return candidates that were taught alike, the best first, how many are as good as the best, and the standard error.

        As good are those within the standard error of the best score; they are ranked by how near they are to the original.
        """
        best = max(found.score or 0.0 for found in candidates)
        error = self.shop.judge.error(best)
        level = [found for found in candidates if (found.score or 0.0) >= best - error]
        others = [found for found in candidates if (found.score or 0.0) < best - error]
        nearest = sorted(level, key=lambda found: (found.gap or 0.0, found.harm))
        return nearest + sorted(others, key=lambda found: -(found.score or 0.0)), len(level), error

    def _first_within(
        self, labels: Sequence[str], ladder: Sequence[Rung], tries: int, begin: float | None = None
    ) -> int | None:
        """Return the first rung within the budget, or near it, by measuring some of them; None if the last one is not.

        Args:
            labels: What the reader calls the rungs.
            ladder: The rungs.
            tries: How many are measured beside the ends.
            begin: What the first one is expected to take as a share of the limit, if it need not be measured.
        """
        low, high = 0, len(ladder) - 1
        shares = {low: self._excess(ladder[low], labels[low]) if begin is None else begin}
        if shares[low] <= 1:
            return low
        if high == 0:
            return None
        shares[high] = shares[low] * ladder[high].milliseconds / max(ladder[low].milliseconds, 1e-9)
        foreseen = self._timed_alone() and shares[high] <= _SURE
        if not foreseen:
            shares[high] = self._excess(ladder[high], labels[high])
            if shares[high] > 1:
                return None
        for number in range(max(1, tries) + _MORE):
            enough = number >= tries and shares[high] > _FAR
            if high - low <= 1 or shares[high] > _NEAR or enough:
                break
            middle = _between(ladder, low, high, shares) if number % 3 != 2 else (low + high) // 2
            shares[middle] = self._excess(ladder[middle], labels[middle])
            low, high = (low, middle) if shares[middle] <= 1 else (middle, high)
        if foreseen and high == len(ladder) - 1 and self._excess(ladder[high], labels[high]) > 1:
            return None
        return high

    def _within_score(self) -> Candidate:
        """Go down the ladder as far as models that were taught for some steps keep the limit of the drop."""
        planned = self.planned
        (label, ladder), drop = next(iter(self._ladders.items())), float(self.around.budget.accuracy_drop or 0.0)
        whole = self.shop.judge.at(None).score(self.around.original, 'validation')
        low, high = 0, len(ladder)
        while high - low > 1 and len(planned.candidates) < max(1, self.tries):
            middle = (low + high) // 2
            rung = ladder[middle]
            found = Candidate(f'{label}, step {middle} of {len(ladder) - 1}', rung, Pace(0.0, 0.0), self.shop.harm(rung))
            found.score, found.gap = self.shop.taught(rung, self.rehearse)
            found.steps = self.rehearse
            planned.candidates.append(found)
            self._try(rung, found.label, found.score, None, self.rehearse)
            low, high = (middle, high) if 100 * (whole - found.score) <= drop + 1e-9 else (low, middle)
        name = f'{label}, step {low} of {len(ladder) - 1}'
        taught = f', taught for {self.rehearse} steps,' if self.around.follows is not None and self.rehearse else ''
        planned.explanation.append(
            f'Of {len(planned.candidates)} models that were tried{taught} the smallest within {drop:g} points of the original '
            f'on the validation samples was taken: {name}.'
            if low
            else f'Every model that was tried{taught} loses more than {drop:g} points; nothing was removed.'
        )
        if not low:
            planned.warnings.append(f'Pruning cannot keep accuracy_drop={drop:g}; nothing was removed.')
        return Candidate(name, ladder[low], Pace(0.0, 0.0), ladder[low].harm)

    def _excess(self, rung: Rung, label: str | None = None) -> float:
        """Return what a rung takes as a share of the tightest limit; written down as tried if it has a label."""
        if label is not None:
            self._advance()
            self._try(rung, label, self.shop.untaught(rung), self.shop.pace(rung))
        return self.shop.excess(rung)

    def _try(self, rung: Rung, label: str, found: float, pace: Pace | None, steps: int = 0) -> None:
        costs = self.shop.costs(rung)
        milliseconds = pace.milliseconds if pace is not None and self.around.budget.timed else None
        costly = (costs.macs, costs.params, milliseconds)
        metric = self.around.judge.choice
        if self.around.follows is not None:
            metric += f' after about {steps} steps of training' if steps else ' before training'
        tried = Tried(label, self.around.name, *costly, found, scored_on='validation', metric=metric)
        self._tried.setdefault(rung.key, tried)

    def _explain(self, chosen: Candidate) -> None:
        planned, pricing, shop = self.planned, self.pricing, self.shop
        by_name = {worth.name: worth for worth in planned.worths}
        whole = pricing.milliseconds({})
        if planned.side is not None:
            before = self.around.data.side or self.around.data.image_side
            planned.explanation.append(
                f'The images get smaller, from {before} pixels (the short side) to {planned.side}: the model and its files '
                'take such images.'
            )
        if planned.removed:
            planned.explanation.append(
                'Taken out whole: '
                + ', '.join(
                    f'{name} ({100 * pricing.inside(name) / whole:.0f} % of the time, harm {by_name[name].at(1.0):.3g})'
                    for name in planned.removed
                )
                + '.'
            )
        cuts = [(by_name[name], length) for name, length in planned.lengths.items() if name in by_name]
        for worth, length in sorted(cuts, key=lambda pair: -pair[0].milliseconds)[:8]:
            share = 1 - length / worth.size
            planned.explanation.append(
                f'{worth.name} went from {worth.size} to {length}: the layers that follow it take up to '
                f'{100 * worth.milliseconds / whole:.0f} % '
                f'of the time, and cutting {share:.0%} of it alone moves the outputs by {worth.at(share):.3g}.'
            )
        kept = sorted((w for w in planned.worths if w.size and w.name not in planned.lengths), key=lambda w: -w.at(0.5))[:3]
        if kept and planned.lengths:
            planned.explanation.append(
                'Left whole, since half of it would cost more than it saves: '
                + ', '.join(f'{worth.name} (harm {worth.at(0.5):.3g})' for worth in kept)
                + '.'
            )
        if self.around.budget.timed and chosen.rung.key != shop.whole.key:
            planned.explanation.append(
                f'{len(planned.tried)} models were measured on {shop.clock.runtime} in {shop.clock.precision}; the one chosen '
                f'takes {chosen.pace.milliseconds:.3f} ms, {chosen.pace.share:.2f} of what the '
                f'{self.around.budget.relative_to} model takes in turns with it.'
            )

    def _advance(self) -> None:
        self._done += 1
        self._total = max(self._total, self._done + 1)
        self.around.tell(self._done, self._total)


def _steps(label: str, ladder: Sequence[Rung]) -> list[str]:
    """Return what the reader calls the rungs of a ladder."""
    return [f'{label}, step {index} of {len(ladder) - 1}' for index in range(len(ladder))]


def _between(ladder: Sequence[Rung], low: int, high: int, shares: Mapping[int, float]) -> int:
    """Return the rung between two measured ones that the predicted times say is the first within the budget."""
    top, bottom = ladder[low].milliseconds, ladder[high].milliseconds
    fall = (shares[low] - 0.99) / max(shares[low] - shares[high], 1e-9)
    wanted = top - fall * (top - bottom)
    found = next((index for index in range(low + 1, high) if ladder[index].milliseconds <= wanted), high - 1)
    return min(max(found, low + 1), high - 1)


__all__ = ['GRID', 'Planner', 'most_steps']
