"""What a run has come to: its figures beside the limits of the budget."""

from __future__ import annotations

from collections.abc import Sequence

from strop.compression.budget import verdicts
from strop.compression.quantize_stage import FOR_RUNTIME, QuantizeStage
from strop.compression.recipe import Recipe
from strop.report import compression_result as results


def outcome_of(
    recipe: Recipe, result: results.CompressionResult, reference: str, metric: str, alone: Sequence[results.Measurement]
) -> results.Outcome:
    """Return whether the budget was met, and a sentence for each limit.

    Args:
        recipe: The budget and the stages.
        result: Scores, sizes and files of every stage.
        reference: The stage of the model before compression.
        metric: The main score.
        alone: Times for one sample on the runtime of the budget, measured with no other runtime in turns.
    """
    budget = recipe.budget
    first, last = result.stage(reference), _counts(recipe, result)
    given = result.stage(results.SOURCE).resources  # of a supernet the largest subnet, as in the search
    before: dict[str, float] = {'macs': float(given.macs or 0), 'params': float(given.params or 0)}
    after: dict[str, float] = {'macs': float(last.resources.macs or 0), 'params': float(last.resources.params or 0)}
    files = [export.bytes for export in result.exports if export.precision == 'int8']
    after['size_mb'] = min(files) / 1e6 if files else float(last.resources.size_mb or 0)
    whole, now = first.scores.get(metric), last.scores.get(metric)
    if whole is not None and now is not None:
        after['accuracy_drop'] = 100 * (whole - now)
    if budget.timed:
        times = {(entry.stage, entry.precision): entry.median_ms for entry in alone}
        own = {precision: ms for (stage, precision), ms in times.items() if stage != reference and precision in ('int8', 'f32')}
        floats = [stage for stage in result.stages if stage.kind not in ('export', 'quantize')]
        if not own and floats[-1].name == reference and (reference, 'f32') in times:
            own = {'f32': times[reference, 'f32']}  # nothing came after it: it is what came out
        if own:
            after['latency_ms'] = own.get('int8', own.get('f32', 0.0))
        share_of = times.get((reference, 'int8' if budget.relative_to == 'quantized' else 'f32'))
        if share_of is None and budget.relative_to == 'quantized':
            share_of = own.get('int8')  # nothing was taken away: it is the quantized original itself
        if share_of is not None:
            before['latency_ms'] = share_of
    found = verdicts(budget, before, after)
    met = all(verdict.met for verdict in found) if found else None
    sentences = [verdict.sentence for verdict in found]
    if met is False:
        sentences.append('The nearest that could be reached is in this folder, whole and checked.')
    return results.Outcome(met, sentences)


def _counts(recipe: Recipe, result: results.CompressionResult) -> results.Stage:
    """Return the stage whose figures count: the last, and of several quantized ones that for the budget's runtime."""
    budget, made = recipe.budget, [stage for stage in result.stages if stage.kind != 'export']
    if budget.timed or budget.runtime is not None:
        wanted = FOR_RUNTIME[budget.chosen_runtime]
        for stage in recipe.stages:
            if isinstance(stage.settings, QuantizeStage) and stage.settings.chosen(budget) == wanted:
                return next((entry for entry in made if entry.name == stage.name), made[-1])
    return made[-1]


__all__ = ['outcome_of']
