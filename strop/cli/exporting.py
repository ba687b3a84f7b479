"""`strop export`: a subnet as a model that needs no Strop, in files that are compared with it."""

from __future__ import annotations

from typing import Any

import click

from strop.cli.options import ALLOW_OPTION, SETTINGS_OPTION, SHAPE_OPTION, command


@command(
    'export',
    """
    strop export strop::spos/spos_shufflenet_supernet_mnist.py --subnet runs/search/best_fix_subnet.yaml \\
        --checkpoint runs/supernet/epoch_10.pth --out runs/best
    strop export CONFIG --subnet best.yaml --checkpoint supernet.pth --format onnx --out best.onnx
    strop export torchvision.models:resnet18 --format pt2 --out resnet18.pt2
    """,
)
@click.argument('target', metavar='CONFIG|MODULE:FACTORY|timm:NAME|FOLDER')
@click.option('--subnet', type=click.Path(exists=True, dir_okay=False), help='The subnet, for a supernet.')
@click.option(
    '--checkpoint', type=click.Path(exists=True, dir_okay=False), help="The weights; the config's `load_from` by default."
)
@click.option(
    '--format',
    'formats',
    multiple=True,
    metavar='FORMAT',
    help='recipe (with safetensors), pt2 (torch.export) or onnx; all by default.',
)
@click.option('--out', required=True, type=click.Path(), help='Folder to write; or one file that ends in .pt2 or .onnx.')
@click.option(
    '--calibrate',
    type=click.IntRange(min=0),
    help='Training images to recalibrate batch norms on, where a subnet inherits its weights; by default as `strop test` does.',
)
@click.option('--fixed-batch', is_flag=True, help='Programs for the batch size of the inputs alone.')
@SHAPE_OPTION
@ALLOW_OPTION
@SETTINGS_OPTION
def export(
    target: str,
    subnet: str | None,
    checkpoint: str | None,
    formats: tuple[str, ...],
    out: str,
    calibrate: int | None,
    fixed_batch: bool,
    input_shape: tuple[int, ...] | None,
    allow: tuple[str, ...],
    settings: dict[str, Any],
) -> None:
    """Write a model, or a subnet of a supernet, as recipe and weights, torch.export program and ONNX.

    Every file is read back and compared with the model; a file that differs is not left behind. `strop.export.load_recipe`
    brings a recipe back as a plain PyTorch model. The FOLDER of a recipe, as `strop prune` writes it, becomes a program and an
    ONNX file.
    """
    from strop.cli.console import note, quiet_logs, show
    from strop.cli.models import open_target
    from strop.errors import ConfigError
    from strop.export import export as export_model
    from strop.mutables import apply_subnet, load_subnet, space_of

    quiet_logs()
    found = open_target(target, settings, input_shape, allow)
    if found.recipe is not None and 'recipe' in formats:
        raise ConfigError(f'{target} is a recipe already; --format pt2 and --format onnx are what it can become.')
    if found.recipe is not None and not out.endswith(('.pt2', '.onnx')):
        formats = formats or ('pt2', 'onnx')
    space = space_of(found.model)
    if subnet is None and len(space) > 0:
        raise ConfigError(f'{target} is a supernet with {len(space)} decisions: give the subnet to export, --subnet FILE.')
    if subnet is not None and not len(space):
        raise ConfigError(f'--subnet is for a supernet, but {target} has nothing to decide.')
    if calibrate and (subnet is None or found.config is None):
        raise ConfigError('--calibrate is for a --subnet of a config, which says what data to recalibrate batch norms on.')
    load_checkpoint(found, checkpoint)
    if subnet is not None:
        apply_subnet(found.model, load_subnet(subnet, space))
        _recalibrate(found, calibrate)
    factory, arguments = found.factory
    written = export_model(
        found.model,
        out,
        [*formats] or None,
        subnet=None if subnet is None else load_subnet(subnet, space),
        factory=factory,
        factory_args=arguments,
        example_inputs=found.inputs,
        dynamic_batch=not fixed_batch,
    )
    show(_table(written))
    if found.config is None and checkpoint is None:
        note(f'the weights are those that {target} gives; --checkpoint FILE gives others.')


def load_checkpoint(found: Any, checkpoint: str | None) -> None:
    """Load a checkpoint, or the one that the config names, into the model of a target."""
    from strop.cli.console import note
    from strop.cli.weights import load_weights

    path = checkpoint or (found.config.get('load_from') if found.config is not None else None)
    if path is not None:
        load_weights(found.algorithm if found.algorithm is not None else found.model, path)
    elif found.config is not None and 'checkpoint' not in str(found.config.get('model') or found.config.get('algorithm')):
        note('no --checkpoint is given: the weights are untrained.')


def _recalibrate(found: Any, images: int | None) -> None:
    from strop.cli.console import note
    from strop.cli.weights import calibration_images, recalibrate

    if found.config is None:
        return
    wanted = calibration_images(found.config, images)
    if wanted > 0:
        used = recalibrate(found.algorithm, found.config, wanted)
        note(f'batch norms were recalibrated on {used} training images (--calibrate 0 leaves them as they are).')


def _table(written: Any) -> Any:
    from rich.table import Table

    table = Table()
    for name in ('format', 'file', 'size', 'compared at batches', 'largest difference'):
        table.add_column(name, justify='right' if name == 'size' else 'left', overflow='fold')
    for name, file in written.items():
        difference = '-' if file.max_abs_error is None else f'{file.max_abs_error:.2g}'
        table.add_row(
            name, str(file.path), f'{file.size_bytes / 1024:.1f} KiB', ', '.join(map(str, file.batches)) or '-', difference
        )
    return table
