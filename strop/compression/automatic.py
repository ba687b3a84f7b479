"""The automatic plan: where the time goes, what each unit is worth, and the lengths that buy most time for least harm.

1. The time of each layer is measured in the runtime that the budget names, quantized if the recipe quantizes for it.
2. Each channel unit is cut alone to a few lengths and each residual block is skipped alone; what the model gives then is
   compared with what the whole model gives on calibration samples, without labels: the mean squared difference, in units of the
   variance of the whole model's outputs.
3. Steps (a unit to its next length, or a block out) are taken one after the other, always the one with the least harm for the
   time that it saves. That orders models from the original to the smallest that can be reached.
4. Some models of that order are built and measured whole, in the runtime, quantized if the recipe quantizes: the least
   harmed one that keeps the budget is the plan.

Step 3 is the greedy of NetAdapt (Yang et al., NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications, ECCV
2018, https://arxiv.org/abs/1804.03230) without training in between; the times of layers are shared out by multiply-adds.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from strop.compression.scoring import call, main_output
from strop.compression.stage import Surroundings, resources_of
from strop.errors import StropError
from strop.estimators import WidthCosts, measure
from strop.estimators.runtimes import runtime
from strop.export.layer_times import PRECISIONS, layer_times
from strop.graph import channel_units, verify
from strop.pruning import Budget as PruningBudget
from strop.pruning import (
    PruneRecord,
    Ranking,
    Step,
    UnitChange,
    build_importance,
    recalibrate,
    remove_blocks,
    residual_blocks,
    score,
)
from strop.quantization import backends, quantize
from strop.report.compression_result import Tried

if TYPE_CHECKING:
    from strop.pruning import Selection

#: Shares of a unit that are cut away to find out what it is worth.
GRID = (0.25, 0.5, 0.75)
#: The part of a layer's time that does not fall with its multiply-adds, before it is found out.
_FIXED = 0.15
_STEPS = 8
#: Seconds that finding out what units are worth may take, about.
_SECONDS = 240.0


@dataclass(frozen=True)
class Worth:
    """What a unit or block costs, and what the model loses without parts of it.

    Args:
        name: The unit, or the path of the block.
        size: Its length; 0 for a block.
        milliseconds: Time of all layers whose size follows it.
        harm: Share that is cut -> how far the outputs are from the original's.
    """

    name: str
    size: int
    milliseconds: float
    harm: Mapping[float, float]

    def at(self, share: float) -> float:
        """Return the harm of cutting a share, between the measured ones by straight lines, never falling."""
        points = [(0.0, 0.0)]
        for cut, harm in sorted(self.harm.items()):
            points.append((cut, max(harm, points[-1][1])))
        for (left, low), (right, high) in pairwise(points):
            if share <= right:
                return low + (high - low) * (share - left) / (right - left)
        (left, low), (right, high) = points[-2:]
        # Beyond what was measured the harm rises at least as fast as before.
        return high + (share - right) * max((high - low) / (right - left), high / right) * 2


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
        worths: What each unit and block is worth.
        lengths: Unit -> length.
        removed: Blocks that were taken out.
    """

    model: nn.Module
    records: list[Any] = field(default_factory=list)
    explanation: list[str] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    latencies: dict[str, float] = field(default_factory=dict)
    worths: list[Worth] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON holds it."""
        return {
            'units': [{**asdict(worth), 'harm': {str(cut): harm for cut, harm in worth.harm.items()}} for worth in self.worths],
            'lengths': self.lengths,
            'removed': list(self.removed),
            'layers_ms': self.latencies,
        }


@dataclass(frozen=True)
class _Rung:
    """One model of the order: lengths of the units, blocks taken out, predicted time and harm."""

    lengths: Mapping[str, int]
    removed: tuple[str, ...]
    milliseconds: float
    harm: float


class _Clock:
    """Measures whole models as the budget wants them measured."""

    def __init__(self, around: Surroundings, model: nn.Module) -> None:
        self.around = around
        budget = around.budget
        self.runtime = budget.chosen_runtime
        #: The backend that quantizes for this runtime, if the recipe does.
        wanted = {'compile': 'inductor'}.get(self.runtime, self.runtime)
        self.backend = wanted if wanted in around.backends and backends()[wanted].available else None
        self.precision = 'int8' if self.backend else 'f32'
        self.sample = around.data.example(1)
        self._whole = self.prepared(around.original) if budget.relative_to == 'quantized' else self._float(around.original)
        first = measure({'whole': self._whole}, runs=15, threads=budget.threads)['whole'].median_ms
        self.limit = float(budget.latency_ms) if budget.latency_ms is not None else None
        self.share = budget.latency
        self.whole_ms = first

    def _float(self, model: nn.Module) -> Callable[[], Any]:
        return runtime(self.runtime).prepare(*positional(model, self.sample), threads=self.around.budget.threads)

    def quantized(self, model: nn.Module) -> Any:
        batches = self.around.data.inputs('calibration', limit=2)
        # Ranges do not change what a kernel takes, so the quickest ones do.
        return quantize(model, batches, backend=str(self.backend), activation='min_max', check=False)

    def prepared(self, model: nn.Module) -> Callable[[], Any]:
        """Return a call that runs a model once, quantized if the recipe does that."""
        if self.backend is None:
            return self._float(model)
        result = self.quantized(model)
        run = result._runnable(result.model, self.around.budget.threads, None, _call_of(self.sample))
        args, kwargs = _call_of(self.sample)
        return partial(run, *args, **kwargs)

    def time(self, model: nn.Module) -> tuple[float, float]:
        """Return the time of a model relative to what the budget is of, and its median in milliseconds."""
        times = measure({'pruned': self.prepared(model), 'whole': self._whole}, runs=25, threads=self.around.budget.threads)
        return times.ratio('pruned', 'whole').value, times['pruned'].median_ms

    def compared(self, smaller: nn.Module, model: nn.Module) -> float:
        """Return the time of a model relative to another one's."""
        entries = {'smaller': self.prepared(smaller), 'model': self.prepared(model)}
        return measure(entries, runs=25, threads=self.around.budget.threads).ratio('smaller', 'model').value

    def keeps(self, share: float, milliseconds: float) -> bool:
        """Whether a time keeps the budget."""
        return (self.share is None or share <= self.share) and (self.limit is None or milliseconds <= self.limit)


def _call_of(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)), {}


class _Keywords(nn.Module):
    """A model whose keyword arguments are given by position."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        return main_output(self.model(**dict(zip(self.names, tensors))), dict(zip(self.names, tensors)))


def positional(model: nn.Module, sample: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a model and its inputs as positional arguments."""
    if isinstance(sample, Mapping):
        return _Keywords(model, list(sample)), tuple(sample.values())
    return model, _call_of(sample)[0]


def plan(
    model: nn.Module,
    around: Surroundings,
    *,
    importance: str,
    importance_data: Any,
    importance_loss: Any,
    selection: Selection,
    depth: bool,
    tries: int,
    calibration: list[Any],
) -> Planned:
    """Choose the lengths of all units, and the blocks that go, for the budget of a recipe; see the top of this module.

    Args:
        model: The model.
        around: The budget, the data and the original model.
        importance: What indices of a unit are ranked by.
        importance_data: Batches for an importance that looks at data.
        importance_loss: The loss for one.
        selection: What may be pruned, how far, in which multiples.
        depth: Whether residual blocks may go.
        tries: How many models are measured whole.
        calibration: Batches of inputs.

    Raises:
        ConfigError: If nothing can be pruned.
    """
    sample = around.data.example(1)
    graph = channel_units(model, sample)
    costs = WidthCosts(graph)
    judge = build_importance(importance, seed=around.seed)
    found = score(graph, model, judge, data=importance_data, loss=importance_loss, seed=around.seed)
    ranking = Ranking(graph, model, found, selection)
    clock = _Clock(around, model)
    planned = Planned(model)
    times = _layer_times(model, clock, planned)
    by_module = _Pricing(costs, times)
    units = list(ranking.prunable)
    blocks = list(residual_blocks(model, around.data.example(2))) if depth else []
    worths = _worths(model, around, graph, ranking, by_module, units, blocks, calibration)
    planned.worths = worths
    ladder = _ladder(worths, ranking, by_module, selection, blocks)
    if around.budget.timed:
        ladder = _calibrated(ladder, planned, model, around, clock, ranking, by_module, selection, blocks, importance)
    _choose(planned, ladder, model, around, clock, ranking, graph, tries, calibration, importance)
    _explain(planned, clock, by_module, ladder)
    return planned


def _layer_times(model: nn.Module, clock: _Clock, planned: Planned) -> dict[str, float]:
    """Measure the time of each layer where the budget wants it; elsewhere if that runtime does not tell."""
    runtime_name = clock.runtime if clock.runtime in PRECISIONS else 'eager'
    try:
        if clock.backend is not None and 'int8' in PRECISIONS[runtime_name]:
            found = layer_times(model, clock.sample, quantized=clock.quantized(model), threads=clock.around.budget.threads)
        else:
            found = layer_times(model, clock.sample, runtime=runtime_name, threads=clock.around.budget.threads)
    except StropError as error:
        found = layer_times(model, clock.sample, runtime='eager', threads=clock.around.budget.threads)
        planned.warnings.append(f'{error} The times of layers are those of eager PyTorch.')
    planned.latencies = {name: layer.latency.median_ms for name, layer in found.items()}
    planned.explanation.append(
        f'Measured on {found.runtime} in {found.precision} with {found.threads} '
        f'thread{"s" * (found.threads != 1)}, one sample takes '
        f'{found.whole.median_ms:.3f} ms; the slowest layers are '
        + ', '.join(
            f'{name} ({100 * ms / found.whole.median_ms:.0f} %)'
            for name, ms in sorted(planned.latencies.items(), key=lambda item: -item[1])[:4]
        )
        + '.'
    )
    # What belongs to no layer is shared out, since it shrinks with the tensors that the layers give.
    known = sum(planned.latencies.values())
    scale = max(found.whole.median_ms / known, 1.0) if known else 1.0
    return {name: ms * scale for name, ms in planned.latencies.items()}


class _Pricing:
    """Time of the whole model at any lengths, from the times of its layers and their multiply-adds at those lengths.

    The part `fixed` of a layer's time, such as starting its kernel, does not fall with its multiply-adds.
    """

    fixed = _FIXED

    def __init__(self, costs: WidthCosts, times: Mapping[str, float]) -> None:
        self.costs = costs
        self.whole = costs.macs_by_module()
        total = sum(self.whole.values()) or 1
        # A layer whose time a runtime hides in another's counts by its multiply-adds.
        mean = sum(times.values()) / total
        self.times = {name: times.get(name) or mean * macs for name, macs in self.whole.items()}

    def milliseconds(self, lengths: Mapping[str, int], removed: Sequence[str] = ()) -> float:
        """Return the predicted time."""
        macs = self.costs.macs_by_module(lengths)
        return sum(
            spent * (self.fixed + (1 - self.fixed) * macs.get(name, 0) / max(self.whole[name], 1))
            for name, spent in self.times.items()
            if not any(name == block or name.startswith(f'{block}.') for block in removed)
        )

    def inside(self, block: str) -> float:
        """Return the time of the layers of a block."""
        return sum(spent for name, spent in self.times.items() if name == block or name.startswith(f'{block}.'))


def _worths(
    model: nn.Module,
    around: Surroundings,
    graph: Any,
    ranking: Ranking,
    pricing: _Pricing,
    units: Sequence[str],
    blocks: Sequence[str],
    calibration: list[Any],
) -> list[Worth]:
    """Cut each unit alone, take out each block alone, and compare the outputs with the whole model's."""
    begun = time.monotonic()
    batch = calibration[0]
    with torch.no_grad():
        call(model, batch)
        once = time.monotonic() - begun
        trials = len(units) * len(GRID) + len(blocks)
        # Two forwards for each trial: one for the statistics of norms, one to compare.
        many = int(max(1, min(len(calibration) // 2 or 1, _SECONDS / max(2 * once * trials, 1e-9))))
        first, second = calibration[:many], calibration[many : 2 * many] or calibration[:many]
    # Its norms are measured on the same batches, or their change would be taken for harm.
    whole_model = copy.deepcopy(model)
    recalibrate(whole_model, first)
    with torch.no_grad():
        wanted = [main_output(call(whole_model, inputs), inputs) for inputs in second]
    done = 0

    def harm(smaller: nn.Module) -> float:
        nonlocal done
        recalibrate(smaller, first)
        with torch.no_grad():
            gaps = [_distance(main_output(call(smaller, inputs), inputs), answer) for inputs, answer in zip(second, wanted)]
        done += 1
        around.tell(done, trials)
        value = sum(gaps) / len(gaps)
        return value if math.isfinite(value) else 1e6

    whole = pricing.milliseconds({})
    result = []
    for name in units:
        unit = graph.units[name]
        gaps, saved = {}, 0.0
        for share in GRID:
            kept = max(unit.minimum, math.floor(unit.size * (1 - share)))
            lengths = graph.fit({name: kept})
            if lengths[name] >= unit.size:
                continue
            cut = 1 - lengths[name] / unit.size
            smaller = graph.shrink(model, ranking.keep(lengths)).eval()
            gaps[cut] = harm(smaller)
            saved = max(saved, (whole - pricing.milliseconds(lengths)) / cut)
        if gaps:
            result.append(Worth(name, unit.size, saved, gaps))
    for block in blocks:
        shorter, _ = remove_blocks(model, around.data.example(2), names=[block])
        result.append(Worth(block, 0, pricing.inside(block), {1.0: harm(shorter.eval())}))
    return result


def _distance(output: Tensor, wanted: Tensor) -> float:
    """Return the mean squared difference of outputs in units of the variance of the wanted ones.

    Unlike the divergence of classes it does not vanish where the model is sure of itself.
    """
    return float((output - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-12))


def _ladder(
    worths: Sequence[Worth], ranking: Ranking, pricing: _Pricing, selection: Selection, blocks: Sequence[str]
) -> list[_Rung]:
    """Order models from the whole one to the smallest: at each step the least harm for the time saved."""
    graph = ranking.graph
    sizes = {worth.name: worth.size for worth in worths if worth.size}
    by_name = {worth.name: worth for worth in worths}
    lengths = graph.fit({})
    removed: tuple[str, ...] = ()
    rungs = [_Rung(lengths, removed, pricing.milliseconds(lengths), 0.0)]
    smallest = ranking.lengths(1.0)

    def shorter(name: str, now: int) -> dict[str, int] | None:
        step = max(selection.round_to, round(sizes[name] / _STEPS))
        step = math.ceil(step / selection.round_to) * selection.round_to if sizes[name] > selection.round_to else 1
        wanted = max((now - 1) // step * step, smallest[name], graph.units[name].minimum)
        if wanted >= now:
            return None
        fitted = graph.fit({**lengths, name: wanted})
        # A tie may drag others along, but never below what they may lose.
        if fitted[name] >= now or any(value < smallest.get(other, 0) for other, value in fitted.items()):
            return None
        return fitted

    while True:
        last = rungs[-1]
        best: tuple[float, dict[str, int], tuple[str, ...], float, float] | None = None
        for name in sizes:
            fitted = shorter(name, lengths[name])
            if fitted is None:
                continue
            spent = pricing.milliseconds(fitted, removed)
            saved = last.milliseconds - spent
            if saved <= 1e-9:
                continue
            change = sum(
                by_name[other].at(1 - fitted[other] / sizes[other]) - by_name[other].at(1 - lengths[other] / sizes[other])
                for other in sizes
                if fitted[other] != lengths[other]
            )
            if best is None or change / saved < best[0]:
                best = change / saved, fitted, removed, spent, change
        for block in blocks:
            if block in removed or block not in by_name:
                continue
            without = (*removed, block)
            spent = pricing.milliseconds(lengths, without)
            saved = last.milliseconds - spent
            change = by_name[block].at(1.0)
            if saved > 1e-9 and (best is None or change / saved < best[0]):
                best = change / saved, dict(lengths), without, spent, change
        if best is None:
            return rungs
        _, lengths, removed, spent, change = best
        rungs.append(_Rung(lengths, removed, spent, last.harm + change))


def _calibrated(
    ladder: list[_Rung],
    planned: Planned,
    model: nn.Module,
    around: Surroundings,
    clock: _Clock,
    ranking: Ranking,
    pricing: _Pricing,
    selection: Selection,
    blocks: Sequence[str],
    importance: str,
) -> list[_Rung]:
    """Measure the smallest model, find out which part of the time does not fall with multiply-adds, and order anew by that."""
    last = ladder[-1]
    smallest, _ = _built(replace(last, removed=()), model, around, ranking, False, importance)
    measured = clock.compared(smallest, model)
    pricing.fixed = 0.0
    scaling = pricing.milliseconds(last.lengths) / pricing.milliseconds({})
    pricing.fixed = min(max((measured - scaling) / max(1 - scaling, 1e-6), 0.02), 0.9)
    planned.explanation.append(
        f'Cut as far as it goes, the model keeps {scaling:.0%} of its multiply-adds weighed by time, and '
        f'{measured:.0%} of its time: '
        f'about {pricing.fixed:.0%} of the time of a layer does not shrink with it.'
    )
    return _ladder(planned.worths, ranking, pricing, selection, blocks)


def _built(
    rung: _Rung, model: nn.Module, around: Surroundings, ranking: Ranking, check: bool, importance: str
) -> tuple[nn.Module, list[Any]]:
    """Cut a model to a rung: units first, by the names that they were ranked under, then blocks."""
    graph = ranking.graph
    slicing = graph.slicing(ranking.keep(rung.lengths))
    smaller, records = model, []
    if slicing.touched:
        smaller = slicing.apply(model)
        error = verify(model, smaller, slicing, around.data.example(1)) if check else None
        if check:
            records.append(_record(model, smaller, slicing, graph, around, error, importance))
    if rung.removed:
        smaller, record = remove_blocks(smaller, around.data.example(2), names=list(rung.removed))
        records.append(record)
    return smaller.eval(), records


def _record(
    model: nn.Module, smaller: nn.Module, slicing: Any, graph: Any, around: Surroundings, error: float | None, importance: str
) -> PruneRecord:
    example = around.data.example(1)
    before, after = resources_of(model, example), resources_of(smaller, example)
    lengths = slicing.lengths
    kept = {name: tuple(slicing.indices[name].tolist()) for name, n in lengths.items() if n < graph.units[name].size}
    channels = sum(graph.units[name].size for name in lengths) or 1
    ratio = 1 - sum(lengths.values()) / channels
    return PruneRecord(
        units=tuple(UnitChange(name, unit.role, unit.size, lengths.get(name, unit.size)) for name, unit in graph.units.items()),
        steps=(Step(ratio, kept, int(after.macs or 0), int(after.params or 0), error),),
        macs=(int(before.macs or 0), int(after.macs or 0)),
        params=(int(before.params or 0), int(after.params or 0)),
        importance=importance,
        scope='planned',
        seed=around.seed,
        budget=str(around.budget),
        frozen=len(graph.frozen),
    )


def _choose(
    planned: Planned,
    ladder: Sequence[_Rung],
    model: nn.Module,
    around: Surroundings,
    clock: _Clock,
    ranking: Ranking,
    graph: Any,
    tries: int,
    calibration: list[Any],
    importance: str,
) -> None:
    """Find the first rung that keeps the budget, by measuring some of them."""
    counted = _counted_limits(model, around)
    measured: dict[int, tuple[float, float, bool]] = {}
    example = around.data.example(1)

    def fits(index: int) -> bool:
        if index not in measured:
            smaller, _ = _built(ladder[index], model, around, ranking, False, importance)
            share, milliseconds = clock.time(smaller) if around.budget.timed else (0.0, 0.0)
            costs = resources_of(smaller, example)
            kept = clock.keeps(share, milliseconds) and all(
                float(getattr(costs, n) or 0) <= limit for n, limit in counted.items()
            )
            recalibrate(smaller, calibration[:2])
            planned.tried.append(
                Tried(
                    f'step {index} of {len(ladder) - 1}', around.name, costs.macs, costs.params,
                    milliseconds if around.budget.timed else None, around.judge.score(smaller, 'validation'), False,
                    'validation',
                )
            )  # fmt: skip
            measured[index] = share, milliseconds, kept
        return measured[index][2]

    low, high = 0, len(ladder) - 1
    if fits(low):
        planned.explanation.append('The model keeps the budget as it is; nothing was removed.')
        chosen = low
    elif not fits(high):
        share, milliseconds, _ = measured[high]
        chosen = high
        planned.warnings.append(
            f'The budget ({around.budget}) cannot be reached by pruning: the smallest model that can be reached takes '
            f'{milliseconds:.3f} ms, {share:.2f} of the {around.budget.relative_to} model, and was taken.'
        )
    else:
        guess = _predicted(ladder, clock, measured)
        for number in range(max(1, tries)):
            if high - low <= 1:
                break
            middle = guess if number == 0 and low < guess < high else (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        chosen = high
    rung = ladder[chosen]
    if chosen:
        planned.model, planned.records = _built(rung, model, around, ranking, True, importance)
    planned.lengths = {name: length for name, length in rung.lengths.items() if length < graph.units[name].size}
    planned.removed = rung.removed
    for entry in planned.tried:
        entry.chosen = entry.label.startswith(f'step {chosen} ')


def _predicted(ladder: Sequence[_Rung], clock: _Clock, measured: Mapping[int, tuple[float, float, bool]]) -> int:
    """Return the rung that the predicted times say is the first within the budget."""
    first, last = measured[0], measured[len(ladder) - 1]
    limits = [share for share in (clock.share,) if share is not None]
    if clock.limit is not None:
        limits.append(clock.limit * first[0] / max(first[1], 1e-9))
    if not limits:
        return len(ladder) // 2
    wanted = (first[0] - min(limits)) / max(first[0] - last[0], 1e-9)
    span = ladder[0].milliseconds - ladder[-1].milliseconds
    return next(
        (i for i, rung in enumerate(ladder) if ladder[0].milliseconds - rung.milliseconds >= wanted * span), len(ladder) // 2
    )


def _counted_limits(model: nn.Module, around: Surroundings) -> dict[str, float]:
    whole = resources_of(around.original, around.data.example(1))
    return {
        name: PruningBudget(**{name: given}).limit(name, float(getattr(whole, name) or 0))  # type: ignore[arg-type]
        for name, given in around.budget.counted.items()
    }


def _explain(planned: Planned, clock: _Clock, pricing: _Pricing, ladder: Sequence[_Rung]) -> None:
    by_name = {worth.name: worth for worth in planned.worths}
    whole = ladder[0].milliseconds
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
    whole_units = sorted((w for w in planned.worths if w.size and w.name not in planned.lengths), key=lambda w: -w.at(0.5))[:3]
    if whole_units and planned.lengths:
        planned.explanation.append(
            'Left whole, since half of it would cost more than it saves: '
            + ', '.join(f'{worth.name} (harm {worth.at(0.5):.3g})' for worth in whole_units)
            + '.'
        )
    chosen = next((entry for entry in planned.tried if entry.chosen), None)
    if chosen is not None and chosen.latency_ms:
        planned.explanation.append(
            f'{len(planned.tried)} models were measured on {clock.runtime} in {clock.precision}; the one chosen takes '
            f'{chosen.latency_ms:.3f} ms, where the {clock.around.budget.relative_to} model takes {clock.whole_ms:.3f} ms.'
        )


__all__ = ['GRID', 'Planned', 'Worth', 'plan']
