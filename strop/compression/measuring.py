"""The times of what came out beside what went in, on every runtime that is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from strop.compression.automatic import positional
from strop.compression.parts import DataParts
from strop.compression.recipe import Recipe
from strop.compression.scoring import Judge
from strop.compression.stage import REFERENCE, IntegerFile
from strop.errors import StropError
from strop.estimators import measure, runtimes
from strop.files import atomic_write
from strop.quantization import backend
from strop.quantization.backends import prepared
from strop.quantization.flow import tensors_of
from strop.report import compression_result as results

_RUNTIMES = {'inductor': 'compile'}


def measured(
    result: results.CompressionResult,
    reference: str,
    original: nn.Module,
    model: nn.Module,
    integers: list[IntegerFile],
    data: DataParts,
    judge: Judge,
    recipe: Recipe,
    threads: int,
    cache: Path,
    tell: Callable[[int, int], None],
) -> None:
    """Measure both models on every runtime and put the times into the result."""
    last = next(stage.name for stage in reversed(result.stages) if stage.kind != 'export')
    final = next((stage.name for stage in reversed(result.stages) if stage.kind not in ('export', 'quantize')), last)
    jobs = [
        (name, batch)
        for name, entry in runtimes().items()
        if entry.available and name in (recipe.runtimes or runtimes())
        for batch in recipe.batches
    ]
    limit = recipe.budget.threads
    for number, (name, batch) in enumerate(jobs):
        tell(number, len(jobs))
        sample = data.example(batch)
        entries: dict[str, Any] = {}
        try:
            for stage, net in {reference: original, final: model}.items():
                entries[f'{stage}|f32'] = (*positional(net, sample), name)
            for integer in integers:
                if _RUNTIMES.get(integer.backend, integer.backend) == name and (
                    backend(integer.backend).open_batch or batch == 1
                ):
                    run = prepared(backend(integer.backend), integer.path, limit)
                    of = reference if integer.of == REFERENCE else integer.of
                    entries[f'{of}|int8'] = partial(run, tensors_of(sample))
            times = measure(entries, runs=25, threads=limit)
        except StropError as error:
            result.missing.append(results.Missing(name, str(error)[:300]))
            continue
        for key, latency in times.items():
            stage, precision = key.split('|')
            low, high = latency.quartiles_ms
            result.measurements.append(
                results.Measurement(stage, name, precision, batch, limit, latency.median_ms, low, high, len(latency.samples_ms))
            )
    atomic_write(cache, json.dumps([asdict(entry) for entry in result.measurements]))


__all__ = ['measured']
