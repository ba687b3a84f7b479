"""The times of what came out beside what went in, on every runtime that is installed; kept, so that they are measured once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from strop.compression.model_source import state_digest
from strop.compression.parts import DataParts
from strop.compression.recipe import Recipe
from strop.compression.scoring import Judge
from strop.compression.stage import REFERENCE, IntegerFile
from strop.export.runtime_times import RuntimeFile, measure_runtimes
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
) -> None:
    """Measure both models, in floats and quantized, on every runtime, and put the times into the result.

    Args:
        result: Where to.
        reference: The stage of the model before compression.
        original: That model.
        model: The model that came out.
        integers: Quantized files of both.
        data: For inputs.
        judge: Scores what each runtime computes.
        recipe: Runtimes, batch sizes and threads.
        cache: A file in which the times are kept.
        tell: Called with (done, in all).
    """
    floats = next((stage.name for stage in reversed(result.stages) if stage.kind not in ('export', 'quantize')), reference)
    subjects: dict[str, list[Any]] = {reference: [original]}
    if floats != reference:
        subjects[floats] = [model]
    for integer in integers:
        stage = reference if integer.of == REFERENCE else integer.of
        subjects.setdefault(stage, []).append(RuntimeFile(integer.path, integer.backend))
    threads = recipe.budget.threads
    key: list[Any] = [state_digest(original), state_digest(model), recipe.runtimes, recipe.batches, threads]
    key += [[integer.of, digest_of(integer.path)] for integer in integers]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    content = read_json(cache, 'measurements') if cache.is_file() else {}
    if content.get('digest') != digest:
        content = {'digest': digest, **_times(subjects, reference, data, judge, recipe, tell)}
        atomic_write(cache, json.dumps(content, indent=1) + '\n')
    result.measurements = [results.Measurement(**entry) for entry in content['measurements']]
    result.missing = [results.Missing(**entry) for entry in content['missing']]
    result.ratios = [results.SpeedRatio(**entry) for entry in content['ratios']]


def _times(
    subjects: dict[str, list[Any]],
    reference: str,
    data: DataParts,
    judge: Judge,
    recipe: Recipe,
    tell: Callable[[int, int], None],
) -> dict[str, Any]:
    def score(run: nn.Module) -> float:
        return judge.score(run, 'test')

    times = measure_runtimes(
        subjects,
        data.example(2),
        batches=recipe.batches,
        threads=recipe.budget.threads,
        only=recipe.runtimes or None,
        score=score if len(data.test) <= _SCORED else None,
        tell=tell,
    )
    found = times.to_dict()
    ratios = [entry for stage in subjects if stage != reference for entry in times.speedups(reference, stage)]
    return {'measurements': found['measurements'], 'missing': found['missing'], 'ratios': ratios}


__all__ = ['measured']
