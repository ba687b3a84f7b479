"""`strop units`: which channels of a model can be pruned together, and what keeps the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import ALLOW_OPTION, SETTINGS_OPTION, SHAPE_OPTION, command

if TYPE_CHECKING:
    from rich.tree import Tree

    from strop.graph import ChannelGraph, ChannelUnit


@command(
    'units',
    """
    strop units timm:resnet18
    strop units torchvision.models:resnet18 --frozen --input-shape 1 3 64 64
    strop units strop::spos/spos_shufflenet_supernet_mnist.py --subnet best_fix_subnet.yaml --ignored 'head'
    strop units timm:vit_tiny_patch16_224 --placements --json
    """,
)
@click.argument('target', metavar='CONFIG|MODULE:FACTORY|timm:NAME|FOLDER')
@click.option('--subnet', type=click.Path(exists=True, dir_okay=False), help='The subnet, for a supernet.')
@SHAPE_OPTION
@click.option(
    '--ignored', multiple=True, metavar='PATTERN', help='Keep the channels of these modules or parameters (fnmatch patterns).'
)
@click.option('--frozen', is_flag=True, help='List every axis that keeps its length, not only how many for each reason.')
@click.option('--placements', is_flag=True, help='List the axes of tensors that each unit occurs in.')
@click.option('--out', type=click.Path(dir_okay=False), help='Also write the JSON to this file.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
@ALLOW_OPTION
@SETTINGS_OPTION
def units(
    target: str,
    subnet: str | None,
    input_shape: tuple[int, ...] | None,
    ignored: tuple[str, ...],
    frozen: bool,
    placements: bool,
    out: str | None,
    as_json: bool,
    allow: tuple[str, ...],
    settings: dict[str, Any],
) -> None:
    """Show the channel units of a model: what can be pruned, and what keeps the rest.

    A unit is a set of axes of parameters that keep the same length: an index that is cut from one is cut from all. The
    model is traced without computing anything; no weights are needed.
    """
    import json

    from strop.cli.console import quiet_logs, show, show_json
    from strop.cli.models import open_target
    from strop.files import atomic_write
    from strop.graph import channel_units

    quiet_logs()
    found = open_target(target, settings, input_shape, allow)
    graph = channel_units(plain_model(found, subnet), found.inputs, ignored=ignored)
    content = {
        'target': target,
        'input_shape': found.input_shape,
        'params': graph.parameters(),
        'locked_share': graph.locked_share(),
        **graph.to_dict(),
    }
    if out is not None:
        atomic_write(out, json.dumps(content, indent=2, ensure_ascii=False) + '\n')
    if as_json:
        show_json(content)
    else:
        show(*trees(target, graph, frozen, placements))


def plain_model(found: Any, subnet: str | None) -> Any:
    """Return the plain model of a target: the subnet of a supernet, or the model without its wrappers.

    Raises:
        ConfigError: If a supernet comes without a subnet, or a subnet without a supernet.
    """
    from strop.errors import ConfigError
    from strop.export import plain_subnet
    from strop.mutables import space_of

    decisions = len(space_of(found.model))
    if subnet is None and decisions:
        raise ConfigError(f'{found.name} is a supernet with {decisions} decisions: give the subnet to look at, --subnet FILE.')
    if subnet is not None and not decisions:
        raise ConfigError(f'--subnet is for a supernet, but {found.name} has nothing to decide.')
    return plain_subnet(found.model, subnet)


def trees(title: str, graph: ChannelGraph, every: bool = False, placements: bool = False) -> list[Any]:
    """Return what is printed of a graph: the units by module, what is frozen by reason, notes.

    Args:
        title: The name of the model.
        graph: Its graph.
        every: Whether to list every frozen axis.
        placements: Whether to list where each unit occurs.
    """
    from rich.text import Text
    from rich.tree import Tree

    from strop.estimators.counting import human

    channels = sum(unit.size for unit in graph)
    units = Tree(Text(f'{title}: {len(graph)} units, {channels:,} channels, {human(graph.parameters())} parameters'))
    nodes: dict[str, Tree] = {'': units}
    for name, unit in graph.units.items():
        leaf = _branch(nodes, name, list(graph.units)).add(Text(_line(unit)))
        for place in unit.placements if placements else ():
            leaf.add(Text(str(place)))
    if not graph.units:
        units.add('nothing can be pruned')
    wanting = graph.locked_share()
    told = f' ({wanting:.1%} of the parameters for want of a rule or a solution)' if wanting else ''
    frozen = Tree(Text(f'{len(graph.frozen)} axes keep their length{told}'))
    for reason, axes in _by_kind(graph):
        leaf = frozen.add(Text(f'{reason}: {len(axes)}' + ('' if every else f' ({_few(axes)})')))
        for axis in axes if every else ():
            leaf.add(Text(str(axis)))
    parts: list[Any] = [units, *([frozen] if graph.frozen else [])]
    if graph.unreached:
        names = graph.unreached if every else graph.unreached[:6]
        rest = '' if len(names) == len(graph.unreached) else f' and {len(graph.unreached) - len(names)} more'
        parts.append(f'Not reached by the forward: {", ".join(names)}{rest}')
    if graph.note:
        parts.append(graph.note)
    return parts


#: Kind of a reason -> what it says to a person.
KINDS = {
    'input': 'size of an input',
    'output': 'what the model returns',
    'kernel': 'extent of a kernel',
    'position': 'positions that nothing else shares',
    'index': 'read by index',
    'constant': 'meets a constant',
    'ignored': 'ignored',
    'rule': 'an operator without a rule',
    'layout': 'a view that cuts through channels',
    'tie': 'lengths that the code ties together',
    'literal': 'a number written in the code',
}


def _by_kind(graph: ChannelGraph) -> list[tuple[str, list[Any]]]:
    kinds: dict[str, list[Any]] = {}
    for axis in graph.frozen:
        kinds.setdefault(axis.kind, []).append(axis)
    return [(KINDS.get(kind, kind), axes) for kind, axes in sorted(kinds.items(), key=lambda pair: -len(pair[1]))]


def _few(axes: list[Any]) -> str:
    names = [f'{axis.tensor}[{axis.axis}]' for axis in axes[:3]]
    return ', '.join(names) + (', ...' if len(axes) > 3 else '')


def _line(unit: ChannelUnit) -> str:
    tensors = len({place.tensor for place in unit.placements})
    parts = [f'{unit.name}: {unit.size}', *([unit.role] if unit.role != 'channels' else []), f'in {tensors} tensors']
    if unit.spans:
        parts.append(f'under {", ".join(unit.spans)}')
    if unit.ties:
        parts.append(f'tied to {", ".join(unit.ties[:2])}' + (f' and {len(unit.ties) - 2} more' if len(unit.ties) > 2 else ''))
    return ', '.join(parts)


def _branch(nodes: dict[str, Tree], name: str, names: list[str]) -> Tree:
    """Return the node of the innermost module that holds this unit and others; modules with one alone get no node."""
    from rich.text import Text

    parts = name.partition('#')[0].partition('[')[0].split('.')
    current = ''
    for count in range(1, len(parts)):
        path = '.'.join(parts[:count])
        inside = sum(other.startswith(f'{path}.') for other in names)
        outside = sum(other.startswith(f'{current}.') for other in names) if current else len(names)
        if inside > 1 and inside < outside:
            if path not in nodes:
                nodes[path] = nodes[current].add(Text(path))
            current = path
    return nodes[current]
