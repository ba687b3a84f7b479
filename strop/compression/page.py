"""The README of an artefact: what it is, what it scores, how to load it."""

from __future__ import annotations

from collections.abc import Sequence

from strop.compression.model_source import ModelSource
from strop.report.compression_result import CompressionResult


def readme(result: CompressionResult, source: ModelSource | None, images: Sequence[int] | None = None) -> str:
    """Return the README of a finished compression, as Markdown.

    Args:
        result: What was done and measured.
        source: What builds the original model.
        images: Shape (C, H, W) of the images that the model takes, if they are smaller than those of the data.
    """
    first = result.stages[0]
    lines = [
        f'# {result.model.name}, compressed',
        '',
        f'Made by `strop compress` from `{result.model.source}` on `{result.data.name}`.',
        '',
        '```python',
        'import strop',
        '',
        *_loading(source),
        '```',
        '',
        *_inputs(result.model.input_shape, images),
        '| | MACs | parameters | weights, MB | scores on test samples |',
        '|---|---:|---:|---:|---|',
    ]
    for stage in [first, *(stage for stage in result.stages[1:] if stage.scores)]:
        costs = stage.resources
        scores = ', '.join(f'{name} {value:.4f}' for name, value in stage.scores.items())
        size = '' if costs.size_mb is None else f'{costs.size_mb:.3f}'
        lines.append(f'| {stage.name} | {costs.macs or 0:,} | {costs.params or 0:,} | {size} | {scores} |')
    if result.outcome.sentences:
        lines += ['', '## Budget', '', *(f'- {sentence}' for sentence in result.outcome.sentences)]
    if result.exports:
        lines += [
            '',
            '## Files',
            '',
            '| file | for | computes in | difference to the model | bytes |',
            '|---|---|---|---:|---:|',
        ]
        for export in result.exports:
            gap = 'not run here' if export.difference is None else f'{export.difference:.1e}'
            lines.append(f'| `{export.path}` | {export.runtime} | {export.precision} | {gap} | {export.bytes:,} |')
    quick = [entry for entry in result.measurements if entry.batch == 1]
    if quick:
        lines += [
            '', f'## Time of one sample, on {result.environment.get("cpu", "this machine")}', '',
            '| model | runtime | computes in | threads | median ms | quartiles |', '|---|---|---|---:|---:|---|',
        ]  # fmt: skip
        for entry in quick:
            lines.append(
                f'| {entry.stage} | {entry.runtime} | {entry.precision} | {entry.threads} | {entry.median_ms:.3f} | '
                f'{entry.low_ms:.3f} to {entry.high_ms:.3f} |'
            )
    explained = [(stage.name, stage.explanation) for stage in result.stages if stage.explanation]
    if explained:
        lines += ['', '## What was done, and why', '']
        for name, sentences in explained:
            lines += [f'**{name}**', '', *(f'- {sentence}' for sentence in sentences), '']
    warnings = [*result.warnings, *(warning for stage in result.stages for warning in stage.warnings)]
    if warnings:
        lines += ['', '## Warnings', '', *(f'- {warning}' for warning in warnings)]
    lines += [
        '', '## The folder', '',
        '- `model/`: `recipe.json` says how the original class is cut, `model.safetensors` holds the weights; '
        'nothing is pickled.',
        '- `exports/`: files for runtimes, each run and compared with the model.',
        '- `report.html`: everything on one page. `result.json`: every figure.',
        '- `records/`: what each stage recorded. `recipe.json`: what was asked for.',
        '- `stages/`: checkpoints, from which the run goes on or is repeated from a stage; they may be deleted.',
    ]  # fmt: skip
    return '\n'.join(lines) + '\n'


def _inputs(whole: Sequence[int] | None, images: Sequence[int] | None) -> list[str]:
    if images is None:
        return []
    before, after = (' × '.join(map(str, shape)) for shape in ((whole or [])[1:], images[1:]))
    return [
        f'The model and its files take images of {after} pixels, where the original takes {before}. They were made smaller by',
        f"`torch.nn.functional.interpolate(images, size=({', '.join(map(str, images[1:]))}), mode='bilinear')`, after",
        'they were normalised.',
        '',
    ]


def _loading(source: ModelSource | None) -> list[str]:
    if source is None:
        return ['model = strop.load(folder, factory=make)  # make() returns a model of the original class']
    if source.kind == 'factory':
        return [f'model = strop.load(folder, allow={source.name.partition(":")[0]!r})']
    return ['model = strop.load(folder)']


__all__ = ['readme']
