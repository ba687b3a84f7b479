"""`strop quantize`: integers for one runtime from any model, checked in that runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import ALLOW_OPTION, SETTINGS_OPTION, SHAPE_OPTION, command

if TYPE_CHECKING:
    from strop.cli.models import Target


def _listed(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from strop.cli.console import show
    from strop.quantization import backend_table

    show(backend_table())
    ctx.exit()


@command(
    'quantize',
    """
    strop quantize timm:resnet18 --checkpoint resnet18.pth --backend openvino --data images/ --out resnet18_int8.onnx
    strop quantize mynets:make --input-shape 1 3 64 64 --data calibration.npz --backend inductor --out small.pt2
    strop quantize configs/mine.py --checkpoint best.pth --backend onnxruntime --ignored 'head' --bias-correction
    strop quantize runs/slim --allow timm --data mydata:batches --backend executorch --out slim.pte
    strop quantize transformers:smollm --weight-only int4 --method gptq --data wiki.txt --out small.safetensors
    """,
)
@click.argument('target', metavar='CONFIG|MODULE:FACTORY|timm:NAME|transformers:FOLDER|FOLDER')
@click.option('--list', is_flag=True, callback=_listed, expose_value=False, is_eager=True, help='List the backends and leave.')
@click.option('--backend', default='inductor', show_default=True, help='The runtime to quantize for; see --list.')
@click.option(
    '--data',
    metavar='FOLDER|FILE.npz|FILE.txt|MODULE:FUNCTION',
    help='Calibration data: a folder of images, arrays, a text (for GPTQ), or a function that gives batches; the training data '
    'of a config by default.',
)
@click.option(
    '--checkpoint', type=click.Path(exists=True, dir_okay=False), help="The weights; the config's `load_from` by default."
)
@click.option('--subnet', type=click.Path(exists=True, dir_okay=False), help='The subnet, for a supernet.')
@click.option('--batches', type=click.IntRange(min=1), default=16, show_default=True, help='How many batches to calibrate on.')
@click.option('--batch-size', type=click.IntRange(min=1), default=16, show_default=True, help='Of images and arrays.')
@click.option(
    '--activation',
    default='histogram',
    show_default=True,
    help='Ranges of activations: min_max, moving_average, percentile, histogram or mse.',
)
@click.option('--weight', default='min_max', show_default=True, help='Ranges of weights: min_max, percentile or mse.')
@click.option('--per-channel/--per-tensor', default=None, help="Scales of weights; the backend's default if neither is given.")
@click.option('--symmetric/--affine', default=None, help="Activations; the backend's default if neither is given.")
@click.option('--percentile', type=float, default=99.99, show_default=True, help='Share of values that percentile keeps.')
@click.option(
    '--reduce-range/--full-range',
    default=None,
    help='Seven bits for weights, as processors without VNNI need; by what this one needs if neither is given.',
)
@click.option('--ignored', multiple=True, metavar='PATTERN', help='Layers that stay float.')
@click.option('--bias-correction', is_flag=True, help='Take back the shift of the mean that rounding of weights makes.')
@click.option('--smooth', 'smooth_alpha', type=float, metavar='ALPHA', help='SmoothQuant with this exponent, such as 0.5.')
@click.option('--calibrate-norms', is_flag=True, help='Measure batch-norm statistics again first.')
@click.option('--measure/--no-measure', default=True, show_default=True, help="Time it beside the runtime's float model.")
@click.option('--threads', type=click.IntRange(min=1), default=1, show_default=True, help='Threads to time with.')
@click.option('--sensitivity', is_flag=True, help='Also quantize each layer alone, and print what it costs.')
@click.option('--layers', is_flag=True, help='Print every layer.')
@click.option('--weight-only', metavar='int2..int8', help='Round only weights, to compute with floats: for language models.')
@click.option('--method', type=click.Choice(['rtn', 'gptq']), default='rtn', show_default=True, help='Of --weight-only.')
@click.option(
    '--group-size', type=click.IntRange(min=0), default=64, show_default=True, help='Inputs that share a scale; 0: all.'
)
@click.option('--context', type=click.IntRange(min=2), default=512, show_default=True, help='Tokens in a window of text.')
@click.option('--score', metavar='FILE.txt', help='Text to score before and after --weight-only, by perplexity.')
@click.option('--out', type=click.Path(dir_okay=False), help='File to write; the record goes beside it as .json.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
@SHAPE_OPTION
@ALLOW_OPTION
@SETTINGS_OPTION
@click.pass_context
def quantize(
    ctx: click.Context,
    target: str,
    backend: str,
    data: str | None,
    checkpoint: str | None,
    subnet: str | None,
    batches: int,
    batch_size: int,
    calibrate_norms: bool,
    measure: bool,
    threads: int,
    layers: bool,
    weight_only: str | None,
    method: str,
    group_size: int,
    context: int,
    score: str | None,
    out: str | None,
    as_json: bool,
    input_shape: tuple[int, ...] | None,
    allow: tuple[str, ...],
    settings: dict[str, Any],
    **options: Any,
) -> None:
    """Quantize a model to 8 bits for one runtime, run it there, and compare.

    Ranges are measured on calibration data; a few hundred samples of what the model will see. The file is written only if the
    runtime computes with it what the quantized model does. `--list` shows the backends and what is fast on each.
    """
    from pathlib import Path

    from strop.cli.console import note, quiet_logs, show, show_json
    from strop.cli.exporting import load_checkpoint
    from strop.cli.models import open_target
    from strop.cli.units import plain_model
    from strop.errors import ConfigError
    from strop.quantization import backend as backend_of
    from strop.quantization import quantize as quantize_model

    _check_options(ctx, weight_only)
    if weight_only is not None:
        from strop.cli import weight_only as weights

        weights.bits_of(weight_only)
        quiet_logs()
        found = open_target(target, settings, input_shape, allow)
        load_checkpoint(found, checkpoint)
        found = dataclasses.replace(found, model=plain_model(found, subnet))
        chosen = dict(method=method, group_size=group_size, data=data, score=score, batches=batches, batch_size=batch_size)
        chosen |= {'context': context, 'ignored': options['ignored']}
        weights.run(target, found, weight_only, out, as_json, layers, chosen)
        return
    entry = backend_of(backend)
    if out is not None and Path(out).suffix != entry.suffix:
        raise ConfigError(f'A file for {entry.name} ends in {entry.suffix!r}, but --out is {out!r}.')
    entry.require()
    quiet_logs()
    found = open_target(target, settings, input_shape, allow)
    load_checkpoint(found, checkpoint)
    model = plain_model(found, subnet)
    given = calibration_data(found, data, batches, batch_size)
    result = quantize_model(
        model, given, backend=entry, batches=batches, recalibrate_norms=calibrate_norms, check=out is None, **options
    )
    files = {}
    if out is not None:
        result.export(out)
        record = Path(out).with_suffix('.json')
        result.record.save(record)
        files = {'model': out, 'record': str(record)}
    times = result.latency(threads=threads) if measure and entry.load is not None else None
    if as_json:
        show_json(
            {
                'target': target,
                'record': result.record.to_dict(),
                'check': None if result.check is None else vars(result.check),
                'sensitivity': None if result.sensitivity is None else [vars(cost) for cost in result.sensitivity.values()],
                'latency': None if times is None else times.to_dict(),
                'files': files,
            }
        )
        return
    if layers:
        show(result.record.table())
    if result.sensitivity is not None:
        show(result.sensitivity.table())
    show(f'{target}, quantized for {entry.name}:', *result.record.remarks(), str(result.check))
    if times is not None:
        show(*result.speed_remarks())
    show(*files.values())
    if found.config is None and found.recipe is None and checkpoint is None:
        note(f'the weights are those that {target} gives; --checkpoint FILE gives others.')
    if out is None:
        note(f'nothing is saved; --out FILE{entry.suffix} writes the quantized model.')


def _check_options(ctx: click.Context, weight_only: str | None) -> None:
    """Refuse options that the other kind of quantization has."""
    from click.core import ParameterSource

    from strop.cli.weight_only import FOR_WEIGHTS, NOT_FOR_WEIGHTS
    from strop.errors import ConfigError

    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(str(parameter.name)) == ParameterSource.COMMANDLINE
        if given and parameter.name in (FOR_WEIGHTS if weight_only is None else NOT_FOR_WEIGHTS):
            without = 'is for --weight-only' if weight_only is None else 'is not for --weight-only, which computes with floats'
            raise ConfigError(f'{parameter.opts[0]} {without}.')


def calibration_data(found: Target, data: str | None, count: int, batch_size: int) -> list[Any]:
    """Return batches from a folder of images, a file of arrays, a function, or the training data of a config.

    Args:
        found: The model and an example of its inputs.
        data: Where from.
        count: How many batches.
        batch_size: Samples in each, of images and arrays.

    Raises:
        ConfigError: If there is none of these.
        DataError: If a folder or file does not hold what the model takes.
    """
    from pathlib import Path

    from strop.cli.pruning import _batches

    if data is None or (':' in data and not Path(data).exists()):
        no_data = (
            f'Ranges are measured on data, and {found.name} brings none: give --data, a folder of images, a .npz or .npy file, '
            'or MODULE:FUNCTION, which returns batches; or a config with a `train_dataloader`.'
        )
        given = _batches(found, data, count, no_data)
        return [_inputs_alone(batch) for batch in given]
    path = Path(data).expanduser()
    if path.is_dir():
        return _images(found, path, count, batch_size)
    return _arrays(path, count, batch_size)


def _inputs_alone(batch: Any) -> Any:
    """Return a batch of MMEngine without its data samples."""
    return batch['inputs'] if isinstance(batch, dict) and 'data_samples' in batch and 'inputs' in batch else batch


def _arrays(path: Any, count: int, batch_size: int) -> list[Any]:
    import numpy as np
    import torch

    from strop.errors import ConfigError, DataError, listed

    if path.suffix not in ('.npz', '.npy'):
        raise ConfigError(f'--data is a folder of images, a .npz or .npy file, or MODULE:FUNCTION, but got {str(path)!r}.')
    if not path.is_file():
        raise ConfigError(f'There is no file {str(path)!r} to calibrate on.')
    try:
        content = np.load(path, allow_pickle=False)
        names = list(getattr(content, 'files', ()))
        wanted = next((name for name in ('inputs', 'images', 'x') if name in names), names[0] if len(names) == 1 else None)
        if names and wanted is None:
            raise DataError(f"{path} holds {listed(names)}; the inputs are to be called 'inputs'.")
        array = content[wanted] if names else content
    except DataError:
        raise
    except Exception as error:  # at a damaged file zipfile, zlib, tokenize and NumPy raise what has no other class in common
        raise DataError(f'{path} cannot be read as arrays: {error}') from error
    if array.ndim < 1 or not np.issubdtype(array.dtype, np.number):
        raise DataError(f'{path} must hold numbers with samples along the first axis, but holds {array.dtype} {array.shape}.')
    if array.dtype == np.uint8:
        raise DataError(
            f'{path} holds 8-bit images, but a model takes normalised floats: store what its preprocessing gives, as float32.'
        )
    tensor = torch.from_numpy(np.ascontiguousarray(array[: count * batch_size]))
    return list((tensor.float() if tensor.is_floating_point() else tensor).split(batch_size)) if len(tensor) else []


def _images(found: Target, folder: Any, count: int, batch_size: int) -> list[Any]:
    import torch

    from strop.errors import ConfigError, DataError, try_import

    shape = found.input_shape
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3):
        raise ConfigError(f'A folder of images is for models of images, but this one takes {shape}: give a .npz file.')
    image = try_import('PIL.Image', 'vision')
    import numpy as np

    from strop.data.sources import open_picture

    endings = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in endings)
    if not files:
        raise DataError(f'{folder} holds no images ({", ".join(endings)}).')
    step = max(1, len(files) // (count * batch_size))  # from the whole folder, which is often sorted by class
    settings = getattr(found.model, 'pretrained_cfg', None) or {}
    mean, std = _normalisation(found, settings)
    made = []
    for file in files[::step][: count * batch_size]:
        try:
            picture = open_picture(file, 'RGB' if shape[1] == 3 else 'L')
        except OSError as error:
            raise DataError(f'{file} cannot be read as an image: {error}') from error
        height, width = shape[2:]
        scale = max(height / picture.height, width / picture.width) / float(settings.get('crop_pct') or 0.875)
        size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
        picture = picture.resize(size, image.Resampling.BICUBIC)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        array = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32) / 255
        array = (array - mean) / std if shape[1] == 3 else (array[..., None] - mean.mean()) / std.mean()
        made.append(torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32)))
    return [torch.stack(made[start : start + batch_size]) for start in range(0, len(made), batch_size)]


def _normalisation(found: Target, settings: Mapping[str, Any]) -> list[Any]:
    """Return mean and standard deviation of the channels R, G, B in 0 to 1: the model's own, or else ImageNet's."""
    import numpy as np

    from strop.cli.console import note

    preprocessor = getattr(found.algorithm, 'data_preprocessor', None)
    own: list[Any] = [getattr(preprocessor, name, None) for name, _ in _IMAGENET]
    if not settings and all(values is not None and values.numel() in (1, 3) for values in own):
        return [values.detach().cpu().numpy().reshape(-1).astype(np.float32) / 255 for values in own]
    if not all(name in settings for name, _ in _IMAGENET):
        note("the model does not say how its images are normalised: ImageNet's mean and standard deviation are taken.")
    return [np.asarray(settings.get(name, usual), np.float32) for name, usual in _IMAGENET]


_IMAGENET = (('mean', (0.485, 0.456, 0.406)), ('std', (0.229, 0.224, 0.225)))
