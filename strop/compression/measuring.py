"""The times of what came out beside what went in, on every runtime that is installed; kept, so that they are measured once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from strop.compression.model_source import state_digest
from strop.compression.parts import DataParts
from strop.compression.recipe import Recipe
from strop.compression.scoring import Judge
from strop.compression.stage import REFERENCE, IntegerFile
from strop.estimators import Machine, runtimes
from strop.export.runtime_times import RuntimeFile, RuntimeTimes, measure_runtimes
from strop.export.weights import digest_of
from strop.files import atomic_write, read_json
from strop.report import compression_result as results

#: Scores are computed again by every runtime up to so many test samples.
_SCORED = 2000


def measured(
    result: results.CompressionResult,
    reference: str,
    original: nn.Module,
    model: nn.Module,
    integers: list[IntegerFile],
    data: DataParts,
    judge: Judge,
    recipe: Recipe,
    cache: Path,
    tell: Callable[[int, int], None],
) -> list[results.Measurement]:
    """Measure both models, in floats and quantized, on every runtime, and put the times into the result.

    What a budget of time is judged by is measured once more, on its runtime alone: beside a dozen other models in turns, each
    of which empties the caches, something short takes longer than where it is used.

    Args:
        result: Where to.
        reference: The stage of the model before compression.
        original: That model.
        model: The model that came out.
        integers: Quantized files of both.
        data: For inputs, as the model that came out sees them.
        judge: Scores what each runtime computes of that.
        recipe: Runtimes, batch sizes and threads.
        cache: A file in which the times are kept.
        tell: Called with (done, in all).

    Returns:
        The times for the budget; empty where it limits none.
    """
    floats = next((stage.name for stage in reversed(result.stages) if stage.kind not in ('export', 'quantize')), reference)
    subjects: dict[str, list[Any]] = {reference: [original]}
    if floats != reference:
        subjects[floats] = [model]
    for integer in integers:
        stage = reference if integer.of == REFERENCE else integer.of
        subjects.setdefault(stage, []).append(RuntimeFile(integer.path, integer.backend))
    threads = recipe.budget.threads
    chosen = recipe.runtimes or [name for name, entry in runtimes().items() if entry.available]
    key: list[Any] = [state_digest(original), state_digest(model), chosen, recipe.batches, threads, 'alone']
    key += [{name: value for name, value in asdict(Machine.here(threads)).items() if name != 'load'}]
    key += [recipe.budget.chosen_runtime if recipe.budget.timed else None]
    key += [data.side, data.digest(), list(subjects)]
    key += [[integer.of, digest_of(integer.path)] for integer in integers]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    content = read_json(cache, 'measurements') if cache.is_file() else {}
    if content.get('digest') != digest:
        content = {'digest': digest, **_times(subjects, reference, data, judge, recipe, tell)}
        atomic_write(cache, json.dumps(content, indent=1) + '\n')
    result.measurements = [results.Measurement(**entry) for entry in content['measurements']]
    result.missing = [results.Missing(**entry) for entry in content['missing']]
    result.ratios = [results.SpeedRatio(**entry) for entry in content['ratios']]
    return [results.Measurement(**entry) for entry in content['alone']]


def _times(
    subjects: dict[str, list[Any]],
    reference: str,
    data: DataParts,
    judge: Judge,
    recipe: Recipe,
    tell: Callable[[int, int], None],
) -> dict[str, Any]:
    judges = {stage: judge.at(None) if stage == reference else judge for stage in subjects}
    scores = {stage: partial(each.score, part='test') for stage, each in judges.items()}
    times = measure_runtimes(
        subjects,
        data.example(2),
        inputs_of={reference: data.at(None).example(2)},
        batches=recipe.batches,
        threads=recipe.budget.threads,
        only=recipe.runtimes or None,
        score=scores if len(data.test) <= _SCORED else None,
        tell=tell,
    )
    found = times.to_dict()
    others = [stage for stage in subjects if stage != reference]
    ratios = [entry for stage in others for entry in times.speedups(reference, stage)]
    alone = _alone(subjects, reference, data, recipe)
    if alone is not None:
        pairs = [entry for stage in others for entry in alone.speedups(reference, stage)]
        ratios += [{**entry, 'what': f'{entry["what"]}, with no other runtime in turns'} for entry in pairs]
    return {
        'measurements': found['measurements'],
        'missing': found['missing'],
        'ratios': ratios,
        'alone': [] if alone is None else alone.to_dict()['measurements'],
    }


def _alone(subjects: dict[str, list[Any]], reference: str, data: DataParts, recipe: Recipe) -> RuntimeTimes | None:
    """Measure the models for one sample on the runtime of the budget, in 32-bit floats and in integers, and nothing else."""
    if not recipe.budget.timed:
        return None
    return measure_runtimes(
        subjects,
        data.example(2),
        inputs_of={reference: data.at(None).example(2)},
        batches=(1,),
        threads=recipe.budget.threads,
        only=(recipe.budget.chosen_runtime,),
        precisions=('f32',),
        rounds=60,
        memory=False,
    )


__all__ = ['measured']
