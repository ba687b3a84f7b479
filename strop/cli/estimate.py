"""`strop estimate`: what a model, a subnet or a whole space costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import ALLOW_OPTION, SETTINGS_OPTION, SHAPE_OPTION, command

if TYPE_CHECKING:
    from torch import nn

    from strop.cli.models import Target


@command(
    'estimate',
    """
    strop estimate strop::spos/spos_shufflenet_supernet_mnist.py
    strop estimate strop::spos/spos_shufflenet_supernet_mnist.py --subnet best_fix_subnet.yaml --latency eager
    strop estimate torchvision.models:resnet18 --input-shape 1 3 224 224
    strop estimate timm:mobilenetv3_small_050 --depth 1
    strop estimate runs/slim --allow timm
    """,
)
@click.argument('target', metavar='CONFIG|MODULE:FACTORY|timm:NAME|FOLDER')
@click.option('--subnet', type=click.Path(exists=True, dir_okay=False), help='Estimate this subnet, module by module.')
@SHAPE_OPTION
@click.option(
    '--latency',
    'runtimes',
    multiple=True,
    metavar='RUNTIME',
    help='Also measure the latency: eager, compile, onnxruntime, openvino.',
)
@click.option('--threads', type=click.IntRange(min=1), default=1, show_default=True, help='Threads for the latency.')
@click.option('--runs', type=click.IntRange(min=1), default=50, show_default=True, help='Rounds of the latency.')
@click.option('--depth', type=click.IntRange(min=0), default=2, show_default=True, help='How deeply nested modules to show.')
@click.option('--samples', type=click.IntRange(min=1), default=1000, show_default=True, help='Random subnets for the mean.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
@ALLOW_OPTION
@SETTINGS_OPTION
def estimate(
    target: str,
    subnet: str | None,
    input_shape: tuple[int, ...] | None,
    runtimes: tuple[str, ...],
    threads: int,
    runs: int,
    depth: int,
    samples: int,
    as_json: bool,
    allow: tuple[str, ...],
    settings: dict[str, Any],
) -> None:
    """Count multiply-adds (MACs), parameters and activation memory; measure latency.

    A plain model or a subnet is shown module by module, a supernet by the range of its subnets and what each alternative
    costs. Nothing is trained and no weights are needed.
    """
    from strop.cli.console import quiet_logs, show, show_json
    from strop.cli.models import open_target
    from strop.errors import ConfigError
    from strop.estimators.runtimes import runtime
    from strop.mutables import space_of

    for name in runtimes:
        runtime(name)
    quiet_logs()
    found = open_target(target, settings, input_shape, allow)
    searchable = len(space_of(found.model)) > 0
    if subnet is not None and not searchable:
        raise ConfigError(f'--subnet needs a model with decisions, but {target} has none.')
    content: dict[str, Any] = {'target': target, 'input_shape': found.input_shape}
    if searchable and subnet is None:
        tables, models = _range(found, samples, content)
    else:
        tables, models = _modules(found, subnet, depth, content)
    show(*([] if as_json else tables))
    if runtimes:
        table = _latency(found, models, runtimes, threads, runs, content)
        show(*([] if as_json else [table]))
    if as_json:
        show_json(content)


def _modules(found: Target, path: str | None, depth: int, content: dict[str, Any]) -> tuple[list[Any], dict[str, nn.Module]]:
    from strop.estimators import count
    from strop.mutables import extract, load_subnet, space_of

    model, title = found.model, found.name
    if path is not None:
        model, title = extract(model, load_subnet(path, space_of(model))), path
        content['subnet'] = path
    resources = count(model, found.inputs)
    content.update(resources.to_dict())
    return [resources.table(depth, title)], {'subnet' if path else 'model': model}


def _range(found: Target, samples: int, content: dict[str, Any]) -> tuple[list[Any], dict[str, nn.Module]]:
    from rich.table import Table

    from strop.estimators import SpaceEstimator
    from strop.estimators.counting import human
    from strop.mutables import extract
    from strop.randomness import counter_rng

    estimator = SpaceEstimator(found.model, (found.inputs,))
    # Resources that have to be run, one subnet after the other, get a smaller sample.
    drawn = min(samples, 20) if estimator.measured else samples
    subnets = [estimator.space.sample(counter_rng(0, 'estimate', index)) for index in range(drawn)]
    values = estimator.estimate_many(subnets)
    table = Table(title=f'{found.name}: {estimator.space.count():.4g} subnets')
    for name in ('', 'smallest', f'mean of {drawn} random', 'largest'):
        table.add_column(name, justify='right' if name else 'left')
    content.update(subnets=estimator.space.count(), samples=drawn, mode=estimator.mode, range={})
    for name, label in (('macs', 'MACs'), ('params', 'parameters'), ('activation_bytes', 'activations (peak)')):
        low, high, mean = estimator.smallest(name), estimator.largest(name), float(values[name].mean())
        content['range'][name] = {
            'smallest': low.value, 'mean': mean, 'largest': high.value, 'exact': low.exact and high.exact,
        }  # fmt: skip
        cells = [
            human(value, name == 'activation_bytes') + 'B' * (name == 'activation_bytes')
            for value in (low.value, mean, high.value)
        ]
        table.add_row(label + ('' if low.exact and high.exact else ' (as found)'), *cells)
    extremes = {'smallest': estimator.smallest('macs').subnet, 'largest': estimator.largest('macs').subnet}
    return [table, estimator.table()], {name: extract(found.model, subnet) for name, subnet in extremes.items()}


def _latency(
    found: Target, models: dict[str, nn.Module], runtimes: tuple[str, ...], threads: int, runs: int, content: dict[str, Any]
) -> Any:
    from strop.estimators import measure

    entries = {
        f'{name}, {runtime}' if len(models) > 1 else runtime: (model, found.inputs, runtime)
        for name, model in models.items()
        for runtime in dict.fromkeys(runtimes)
    }
    measured = measure(entries, runs=runs, threads=threads)
    content['latency'] = measured.to_dict()
    return measured.table()
