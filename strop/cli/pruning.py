"""`strop prune`: a smaller model from any model, checked by numbers and saved without pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import ALLOW_OPTION, SETTINGS_OPTION, SHAPE_OPTION, command

if TYPE_CHECKING:
    from torch import nn

    from strop.cli.models import Target
    from strop.pruning import PruneRecord


def _amount(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    """Read a share such as 0.5, a number, or a number with a unit such as 300M."""
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return value


@command(
    'prune',
    """
    strop prune timm:resnet18 --ratio 0.5
    strop prune torchvision.models:resnet18 --checkpoint resnet18.pth --macs 0.5 --scope global --out runs/slim
    strop prune mynets:make --input-shape 1 3 64 64 --params 2M --round-to 8 --ignored 'head*' --out runs/slim --onnx
    strop prune strop::spos/spos_shufflenet_supernet_mnist.py --subnet best_fix_subnet.yaml --checkpoint supernet.pth \\
        --macs 0.7 --importance taylor --calibrate --out runs/slim
    strop prune runs/slim --allow timm --ratio 0.3 --out runs/slimmer
    """,
)
@click.argument('target', metavar='CONFIG|MODULE:FACTORY|timm:NAME|FOLDER')
@click.option('--ratio', type=float, help='Share of the channels to remove.')
@click.option('--macs', callback=_amount, metavar='SHARE|NUMBER', help='Most multiply-adds: 0.5 of the original, or 300M.')
@click.option('--params', callback=_amount, metavar='SHARE|NUMBER', help='Most parameters: 0.5 of the original, or 2M.')
@click.option('--latency', callback=_amount, metavar='SHARE|TIME', help='Most measured time: 0.7 of the original, or 3.5ms.')
@click.option('--runtime', default='eager', show_default=True, help='Runtime to measure the latency on.')
@click.option('--threads', type=click.IntRange(min=1), default=1, show_default=True, help='Threads for the latency.')
@click.option('--blocks', type=click.IntRange(min=1), help='First take out this many residual blocks.')
@click.option(
    '--importance', default='l1', show_default=True, help='What channels are ranked by: l1, l2, lamp, fpgm, taylor, ...'
)
@click.option(
    '--scope', default='local', show_default=True, help="'local': each unit loses the same share; 'global': one ranking of all."
)
@click.option('--round-to', type=click.IntRange(min=1), default=1, show_default=True, help='Lengths are multiples of this.')
@click.option('--ignored', multiple=True, metavar='PATTERN', help='Keep the channels of these units, layers or parameters.')
@click.option('--max-ratio', type=float, default=0.95, show_default=True, help='No unit loses more than this share.')
@click.option(
    '--attention', default='both', show_default=True, help="What attention loses: 'both', 'heads', 'head_dim' or 'none'."
)
@click.option('--steps', type=click.IntRange(min=1), default=1, show_default=True, help='Prune in this many steps.')
@click.option('--subnet', type=click.Path(exists=True, dir_okay=False), help='The subnet, for a supernet.')
@click.option(
    '--checkpoint',
    '--weights',
    'checkpoint',
    type=click.Path(exists=True, dir_okay=False),
    help="The weights; the config's `load_from` by default.",
)
@click.option(
    '--data',
    metavar='MODULE:FUNCTION',
    help='Batches (inputs, targets) for an importance that looks at data; the training data of a config by default.',
)
@click.option('--batches', type=click.IntRange(min=1), default=8, show_default=True, help='How many batches to use.')
@click.option('--calibrate', is_flag=True, help='Measure batch-norm statistics again on the batches.')
@click.option('--seed', type=click.IntRange(min=0), default=0, show_default=True, help='Seed of whatever is random.')
@click.option('--out', type=click.Path(file_okay=False), help='Folder to write the recipe and the weights to.')
@click.option('--onnx', is_flag=True, help='Also write model.onnx to the folder.')
@click.option('--units', is_flag=True, help='Print every unit before and after.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
@SHAPE_OPTION
@ALLOW_OPTION
@SETTINGS_OPTION
def prune(
    target: str,
    ratio: float | None,
    blocks: int | None,
    subnet: str | None,
    checkpoint: str | None,
    data: str | None,
    batches: int,
    calibrate: bool,
    out: str | None,
    onnx: bool,
    units: bool,
    as_json: bool,
    input_shape: tuple[int, ...] | None,
    allow: tuple[str, ...],
    settings: dict[str, Any],
    **options: Any,
) -> None:
    """Remove the least important channels of a model, and save what is left.

    Say how far to go by --ratio, or by one or several of --macs, --params and --latency; or take out whole blocks with
    --blocks. Channels that belong together go together; the result is checked against the original with the removed
    channels masked. `strop.export.load_recipe` brings the saved model back as a plain PyTorch model.
    """
    from strop.cli.console import note, quiet_logs, show, show_json
    from strop.cli.exporting import load_checkpoint
    from strop.cli.models import open_target
    from strop.cli.units import plain_model
    from strop.errors import ConfigError, try_import
    from strop.pruning import IMPORTANCES, build_importance, recalibrate, remove_blocks
    from strop.pruning import prune as prune_channels

    budget = {name: options.pop(name) for name in ('macs', 'params', 'latency')}
    budget = {name: value for name, value in budget.items() if value is not None}
    timing = {name: options.pop(name) for name in ('runtime', 'threads')}
    if ratio is None and not budget and blocks is None:
        raise ConfigError('Say how far to prune: --ratio 0.5, or --macs, --params, --latency, or --blocks.')
    if ratio is not None and budget:
        raise ConfigError(f'Give --ratio or a budget, not both; got --ratio {ratio} and --{next(iter(budget))}.')
    if onnx and out is None:
        raise ConfigError('--onnx writes model.onnx to the folder of the recipe: give --out FOLDER.')
    build_importance(options['importance'])
    for package in ('onnx', 'onnxscript', 'onnxruntime') if onnx else ():
        try_import(package, 'onnx')
    if out is not None:
        _check_folder(out)
    quiet_logs()
    found = open_target(target, settings, input_shape, allow)
    load_checkpoint(found, checkpoint)
    original = plain_model(found, subnet)
    inputs = _inputs(found, original)
    looks = IMPORTANCES[options['importance']]
    given = _batches(found, data, batches, _NO_DATA) if looks.needs_data or calibrate or (blocks and data) else None
    model, records = original, []
    if blocks is not None:
        model, record = remove_blocks(model, inputs, count=blocks, data=given)
        records.append(record)
        if calibrate and ratio is None and not budget:
            recalibrate(model, given)
    if ratio is not None or budget:
        model, record = prune_channels(
            model,
            inputs,
            ratio=ratio,
            budget={**budget, **timing} if budget else None,
            data=given if looks.needs_data else None,
            loss=_loss(original) if looks.needs_loss else None,
            recalibrate=given if calibrate else None,
            **options,
        )
        records.append(record)
    files = {} if out is None else _saved(found, original, model, subnet, records, inputs, out, onnx)
    if as_json:
        show_json(
            {
                'target': target,
                'input_shape': found.input_shape,
                'macs': [records[0].macs[0], records[-1].macs[1]],
                'params': [records[0].params[0], records[-1].params[1]],
                'records': [record.to_dict() for record in records],
                'files': {name: str(file.path) for name, file in files.items()},
            }
        )
        return
    show(_table(target, found, records))
    if units:
        show(*(record.table() for record in records))
    show(*_remarks(records), *(str(file) for file in files.values()))
    if found.config is None and found.recipe is None and checkpoint is None:
        note(f'the weights are those that {target} gives; --checkpoint FILE gives others.')
    if out is None:
        note('nothing is saved; --out FOLDER writes the pruned model.')


def _check_folder(out: str) -> None:
    from pathlib import Path

    from strop.export.folder import check_replaceable

    check_replaceable(Path(out).expanduser().resolve())


def _inputs(found: Target, model: nn.Module) -> Any:
    """Return the inputs of a target, with random values where only their shape is known."""
    import torch

    from strop.export import random_inputs

    inputs = found.inputs
    if isinstance(inputs, torch.Tensor) and not inputs.any():
        return random_inputs(model, tuple(inputs.shape))
    return inputs


_NO_DATA = (
    'This importance, or --calibrate, looks at data: give --data MODULE:FUNCTION, which returns batches (inputs, targets), or '
    'a config with a `train_dataloader`.'
)


def _batches(found: Target, data: str | None, count: int, no_data: str) -> list[Any]:
    """Return batches of a function that is named, or of the training data of a config.

    Args:
        found: The model, and the config that it is from.
        data: The function.
        count: How many batches.
        no_data: What to say if there is neither.

    Raises:
        ConfigError: If there is neither, or what the name stands for gives no batches.
    """
    from collections.abc import Iterable
    from itertools import islice

    from strop.compression.model_source import located
    from strop.errors import ConfigError

    if data is not None:
        module, colon, name = data.partition(':')
        if not colon or not module or not name:
            raise ConfigError(f'--data is MODULE:FUNCTION, such as mydata:batches, but got {data!r}.')
        made = located(module, name)
        made = made() if callable(made) else made
        if not isinstance(made, Iterable):
            raise ConfigError(f'{data} must give batches (inputs, targets), but gives {type(made).__name__}.')
        return list(islice(made, count))
    if found.config is None or found.config.get('train_dataloader') is None:
        raise ConfigError(no_data)
    from mmengine.runner import Runner

    loader = Runner.build_dataloader({**found.config.train_dataloader, 'num_workers': 0, 'persistent_workers': False}, seed=0)
    preprocess = getattr(found.algorithm, 'data_preprocessor', None)
    return [preprocess(batch, False) if preprocess is not None else batch for batch in islice(loader, count)]


def _loss(model: nn.Module) -> Any:
    from mmengine.model import BaseModel
    from torch.nn import CrossEntropyLoss

    if not isinstance(model, BaseModel):
        return CrossEntropyLoss()
    return lambda pruned, batch: pruned.parse_losses(pruned(**batch, mode='loss'))[0]


def _saved(
    found: Target,
    original: nn.Module,
    model: nn.Module,
    subnet: str | None,
    records: list[PruneRecord],
    inputs: Any,
    out: str,
    onnx: bool,
) -> dict[str, Any]:
    from pathlib import Path

    from strop.export import export_onnx, save_slim

    factory, arguments = found.factory
    recipe = found.recipe or {}
    files = {
        'recipe': save_slim(
            model,
            out,
            # What a recipe gives was cut before: its original is what the factory builds.
            original=None if found.recipe is not None else original,
            factory=factory,
            factory_args=arguments,
            subnet=recipe.get('choices') or subnet,
            record=[*recipe.get('cut', {}).get('history', ()), *records],
            example_inputs=inputs,
        )
    }
    if onnx:
        files['onnx'] = export_onnx(model, inputs, Path(out) / 'model.onnx')
    return files


def _table(target: str, found: Target, records: list[PruneRecord]) -> Any:
    from rich.table import Table

    from strop.estimators.counting import human

    first, last = records[0], records[-1]
    inputs = 'x'.join(map(str, found.input_shape or ()))
    table = Table(title=f'{target}, pruned' + (f', on inputs of {inputs}' if inputs else ''))
    table.add_column('')
    for name in ('before', 'after', 'kept'):
        table.add_column(name, justify='right')
    removed = sum(len(record.removed) for record in records)
    rows = [('MACs', first.macs[0], last.macs[1]), ('parameters', first.params[0], last.params[1])]
    for name, before, after in rows:
        table.add_row(name, human(before), human(after), f'{after / before:.1%}' if before else '')
    if last.units:
        before, after = last.channels
        table.add_row('channels', f'{before:,}', f'{after:,}', f'{after / before:.1%}')
    if last.latency is not None:
        share, milliseconds = last.latency
        table.add_row('latency', f'{milliseconds / share:.3f} ms', f'{milliseconds:.3f} ms', f'{share:.1%}')
    if removed:
        table.add_row('blocks taken out', '', str(removed), '')
    return table


def _remarks(records: list[PruneRecord]) -> list[str]:
    lines = [f'Taken out: {", ".join(record.removed)}' for record in records if record.removed]
    errors = [step.error for record in records for step in record.steps if step.error is not None]
    if errors:
        lines.append(f'Checked against the masked original: relative difference {max(errors):.1e}.')
    return [*lines, *dict.fromkeys(text for record in records for text in record.notes)]
