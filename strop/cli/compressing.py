"""`strop compress`: a model, data and a budget in; a smaller model, its files and the evidence out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import command

if TYPE_CHECKING:
    from strop.compression import Compression
    from strop.compression.compressing import Estimate


def _pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read `latency=0.5 runtime=openvino`: several options, or several pairs in one with commas."""
    found: dict[str, Any] = {}
    for value in (part for given in values for part in given.split(',')):
        name, equals, text = value.partition('=')
        if not equals or not name.strip() or not text.strip():
            raise click.BadParameter(f'must be NAME=VALUE, such as latency=0.5, but got {value!r}.', ctx, parameter)
        found[name.strip()] = _value(text.strip())
    return found


def _value(text: str) -> Any:
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@command(
    'compress',
    """
    strop compress recipe.yaml --output runs/slim
    strop compress --model timm:resnet18 --weights resnet18.pth --data images/ --target latency=0.5 --dry-run
    strop compress --model timm:resnet18 --weights resnet18.pth --data images/ --data-option size=256,crop=224 \\
        --target latency=0.5,runtime=openvino,accuracy_drop=1 --output runs/slim
    strop compress --model mynets:make --data mydata:parts --trust --target macs=0.4 --output runs/slim
    strop compress recipe.yaml --output runs/slim --from quantize
    """,
)
@click.argument('recipe', required=False, type=click.Path(dir_okay=False))
@click.option(
    '--model', metavar='timm:NAME|transformers:FOLDER|MODULE:FACTORY|TYPE', help="What builds the model; replaces the recipe's."
)
@click.option('--model-arg', 'model_args', multiple=True, callback=_pairs, metavar='NAME=VALUE', help='Its arguments.')
@click.option('--weights', type=click.Path(dir_okay=False), help='Its weights: .safetensors, .npz or a checkpoint of torch.')
@click.option('--data', metavar='NAME|PATH|MODULE:FUNCTION', help="The data; replaces the recipe's.")
@click.option(
    '--data-option',
    'data_options',
    multiple=True,
    callback=_pairs,
    metavar='NAME=VALUE',
    help='size, crop, labels, batch_size, ...',
)
@click.option(
    '--target',
    multiple=True,
    callback=_pairs,
    metavar='NAME=VALUE',
    help='The budget: latency (share), latency_ms, macs, params, size_mb, accuracy_drop; runtime, threads, relative_to.',
)
@click.option('--output', '-o', default='compressed', show_default=True, type=click.Path(file_okay=False), help='The artefact.')
@click.option('--from', 'from_stage', metavar='STAGE', help='Run this stage and those after it again.')
@click.option('--seed', type=click.IntRange(min=0), help="Seed of everything random; the recipe's, or 0, by default.")
@click.option('--threads', type=click.IntRange(min=1), help='Threads of PyTorch; the same number gives the same bits.')
@click.option(
    '--runtime', 'runtimes', multiple=True, help='Measure on these runtimes alone; all that are installed by default.'
)
@click.option(
    '--trust', is_flag=True, help='Let the recipe name functions of Python modules, and be Python itself: this runs code.'
)
@click.option('--dry-run', is_flag=True, help='Check everything, print the plan with what it will take, and write nothing.')
@click.option('--quiet', is_flag=True, help='No progress.')
@click.option('--json-lines', is_flag=True, help='Progress as lines of JSON on stdout, and the result as the last.')
def compress(
    recipe: str | None,
    model: str | None,
    model_args: dict[str, Any],
    weights: str | None,
    data: str | None,
    data_options: dict[str, Any],
    target: dict[str, Any],
    output: str,
    from_stage: str | None,
    dry_run: bool,
    quiet: bool,
    json_lines: bool,
    **options: Any,
) -> None:
    """Make a model smaller and faster by one chain: search, prune, distil, fine-tune, quantize, export.

    Without a recipe the stages are chosen for --target: layers are timed in the runtime, channel units are weighed, and
    the model is cut, taught by the original, quantized and exported. Every stage is a checkpoint: a run that was killed
    goes on with the same command. Exit code 3: the budget is not met; the nearest that could be reached is in the folder.
    """
    from strop.cli.console import quiet_logs, show, show_json
    from strop.cli.failures import UNREACHABLE
    from strop.compression.compressing import dry_run as estimated
    from strop.compression.compressing import planned
    from strop.errors import ConfigError
    from strop.files import json_text
    from strop.report import CompressionReport

    if recipe is None and (model is None or data is None):
        raise ConfigError('Give a recipe, or --model and --data with --target.')
    if quiet and json_lines:
        raise ConfigError('Give --quiet or --json-lines, not both.')
    for name, given, owner in (
        ('--model-arg', model_args, model),
        ('--weights', weights, model),
        ('--data-option', data_options, data),
    ):
        if given and owner is None:
            raise ConfigError(f'{name} belongs to --{"data" if "data" in name else "model"}, which is not given.')
    quiet_logs()
    runtimes = options.pop('runtimes') or None
    job = planned(
        None if model is None else {'source': model, 'args': model_args, **({} if weights is None else {'weights': weights})},
        None if data is None else {'source': data, **data_options},
        recipe=recipe,
        budget=target or None,
        output=output,
        runtimes=runtimes,
        progress='quiet' if quiet else 'json-lines' if json_lines else 'bars',
        **options,
    )
    if dry_run:
        plan = estimated(job)
        if json_lines:
            show_json({'recipe': job.recipe.to_dict(), 'plan': plan.to_dict()})
        else:
            show(*_plan(job, plan))
        return
    found = job.run(from_stage=from_stage)
    if json_lines:
        click.echo(json_text({'event': 'result', 'folder': str(found.folder), 'outcome': vars(found.result.outcome)}))
    else:
        report = CompressionReport(found.result)
        show(report.table(), report.changes(), *report.sentences())
        show(f'\nThe artefact is in {found.folder}, the report in {found.folder / "report.html"}.')
    if found.met is False:
        click.get_current_context().exit(UNREACHABLE)


def _plan(job: Compression, plan: Estimate) -> list[Any]:
    from rich.table import Table

    from strop.estimators.counting import human

    recipe = job.recipe
    table = Table(title=f'{recipe.name}: the plan; nothing was run')
    for name in ('stage', 'what', 'training steps', 'about'):
        table.add_column(name, justify='right' if name in ('training steps', 'about') else 'left', overflow='fold')
    for stage in plan.stages:
        seconds = '' if stage.seconds is None else _duration(stage.seconds)
        steps = f'up to {stage.rehearsed}' if stage.rehearsed else str(stage.steps or '')
        table.add_row(stage.name, stage.what, steps, seconds)
    parts = ', '.join(f'{count} {part}' for part, count in plan.parts.items())
    rehearsed = ' at most, without what is measured' if any(stage.rehearsed for stage in plan.stages) else ''
    return [
        table,
        f'Model: {human(plan.macs)} MACs for one sample, {human(plan.params)} parameters, {plan.size_mb:.1f} MB of weights.',
        f'Data: {job.data.name}, {parts}; {len(job.data.skipped)} files could not be read. Scored by {job.judge.metric}.',
        f'Budget: {recipe.budget}.',
        f'Training takes about {_duration(plan.seconds)} with {job.threads} threads here{rehearsed}, and '
        f'{plan.peak_memory_mb:,.0f} MB of memory.',
        f'The artefact goes to {job.folder}.',
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
