"""What a plain model costs: multiply-adds, parameters and activation memory, in all and for each module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.logging import print_log
from rich.table import Table
from torch import nn

from strop.codebases import codebase_of
from strop.errors import ConfigError, listed, near
from strop.estimators.recorder import Trace, record
from strop.registry import TASK_UTILS

UNITS: dict[str, float] = {'': 1.0, 'K': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12, 'Ki': 2.0**10, 'Mi': 2.0**20, 'Gi': 2.0**30}


@dataclass(frozen=True)
class ModuleCost:
    """What one module costs, everything inside it included."""

    macs: int
    params: int
    kind: str


@dataclass(frozen=True)
class Resources:
    """What one forward of a model costs. 1 MAC = 1 multiply-add; norms and activations count 0.

    Args:
        macs: Multiply-adds.
        params: Parameters, those that several modules share counted once.
        activation_bytes: The most activation memory that is alive at once, inputs and outputs included.
        uncounted: Operators whose multiply-adds are unknown -> the modules that call them.
        note: Why the forward was computed on real tensors, if it was.
        modules: Path -> what the module costs; one that several share has its first path, and the cost of all its calls.
        operators: Operator -> multiply-adds.
        calls: Paths of modules, each called by the one before it -> multiply-adds of what ran there.
    """

    macs: int
    params: int
    activation_bytes: int
    uncounted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    note: str | None = None
    modules: Mapping[str, ModuleCost] = field(default_factory=dict, repr=False)
    operators: Mapping[str, int] = field(default_factory=dict, repr=False)
    calls: Mapping[tuple[str, ...], int] = field(default_factory=dict, repr=False)

    def by_module(self, depth: int | None = None) -> dict[str, ModuleCost]:
        """Return path -> cost, children included; `''` is the whole model.

        Args:
            depth: Leave out modules that are nested deeper.
        """
        return {
            path: cost
            for path, cost in self.modules.items()
            if depth is None or not path or path.count('.') < depth  # '' has depth 0, 'a' 1, 'a.b' 2
        }

    def by_operator(self) -> dict[str, int]:
        """Return operator -> multiply-adds, the largest first, operators that cost nothing left out."""
        return dict(sorted(self.operators.items(), key=lambda item: -item[1]))

    def macs_inside(self, paths: Sequence[str] = ('',), without: Sequence[str] = ()) -> int:
        """Return the multiply-adds of what runs inside of some modules, each once.

        Args:
            paths: The modules.
            without: Classes of modules; what runs inside of these, further in, is left out.

        >>> resources = count(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), torch.zeros(1, 4))
        >>> resources.macs_inside(['0']), resources.macs_inside(['', '0']), resources.macs_inside(without=['Linear'])
        (16, 20, 0)
        """
        left = {path for path, cost in self.modules.items() if cost.kind in without}
        total = 0
        for inside, macs in self.calls.items():
            first = next((index for index, path in enumerate(inside) if path in paths), None)
            if first is not None and not left.intersection(inside[first:]):
                total += macs
        return total

    def table(self, depth: int | None = 2, title: str | None = None) -> Table:
        """Return a `rich` table of the modules; print it with `rich.print(resources.table())`.

        Args:
            depth: How deeply nested modules to show; None shows all.
        """
        note = '' if not self.uncounted else f'Not counted: {", ".join(self.uncounted)}'
        table = Table(title=title, caption=note or None)
        table.add_column('module', no_wrap=True)
        table.add_column('type', style='dim')
        for name in ('MACs', '%', 'params', '%'):
            table.add_column(name, justify='right')
        for path, cost in self.by_module(depth).items():
            if not cost.macs and not cost.params:
                continue
            indent = '' if not path else '  ' * (path.count('.') + 1)
            table.add_row(
                indent + (path.rpartition('.')[2] or 'total'),
                cost.kind,
                human(cost.macs),
                _percent(cost.macs, self.macs),
                human(cost.params),
                _percent(cost.params, self.params),
                style='bold' if not path else None,
            )
        table.add_section()
        table.add_row('activations (peak)', '', human(self.activation_bytes, binary=True) + 'B', '', '', '')
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        return {
            'macs': self.macs,
            'params': self.params,
            'activation_bytes': self.activation_bytes,
            'uncounted': {name: list(paths) for name, paths in self.uncounted.items()},
            'note': self.note,
            'by_module': {path: {'macs': cost.macs, 'params': cost.params} for path, cost in self.modules.items()},
            'by_operator': self.by_operator(),
        }


def human(value: float, binary: bool = False) -> str:
    """Return a number with a unit prefix.

    >>> human(1_814_073_344), human(512), human(6422528, binary=True)
    ('1.814 G', '512', '6.125 Mi')
    """
    base, names = (1024.0, ('', 'Ki', 'Mi', 'Gi', 'Ti')) if binary else (1000.0, ('', 'K', 'M', 'G', 'T'))
    index = 0
    while abs(value) >= base and index < len(names) - 1:
        value, index = value / base, index + 1
    return f'{value:g}' + (' ' if binary else '') if index == 0 else f'{value:.3f} {names[index]}'


def in_unit(value: float, unit: str) -> float:
    """Return `value` counted in `unit`: '', 'K', 'M', 'G', 'T', or 'Ki', 'Mi', 'Gi' for powers of two.

    Raises:
        ConfigError: If the unit is unknown.

    >>> in_unit(2_500_000, 'M')
    2.5
    """
    if unit not in UNITS:
        raise ConfigError(f'A unit must be one of {listed(UNITS)}, but got {unit!r}.{near(unit, UNITS)}')
    return value / UNITS[unit]


def example_inputs(model: nn.Module, input_shape: Sequence[int]) -> torch.Tensor:
    """Return zeros of `input_shape` on the device and in the dtype of the model's parameters.

    Raises:
        ConfigError: If the shape is no sequence of positive integers.

    >>> example_inputs(nn.Linear(3, 1).double(), (2, 3)).dtype
    torch.float64
    """
    if not isinstance(input_shape, (tuple, list, torch.Size)) or not all(
        isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in input_shape
    ):
        raise ConfigError(f'`input_shape` must be positive integers such as (1, 3, 224, 224), but got {input_shape!r}.')
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return torch.zeros(tuple(input_shape), dtype=parameter.dtype, device=parameter.device)
    return torch.zeros(tuple(input_shape))


def example_arguments(model: nn.Module, input_shape: Sequence[int]) -> tuple[Any, ...]:
    """Return the arguments of a forward of `model`: zeros, and data samples for a model of mmpretrain, mmdet or mmseg.

    Raises:
        ConfigError: If the shape is no sequence of positive integers.

    >>> [argument.shape for argument in example_arguments(nn.Linear(3, 1), (2, 3))]
    [torch.Size([2, 3])]
    """
    if codebase_of(getattr(model, 'architecture', model)) is None:
        return (example_inputs(model, input_shape),)
    batch = TASK_UTILS.build({'type': 'DefaultDemoInput', 'input_shape': input_shape})(model)
    return batch['inputs'], batch['data_samples']


def count(model: nn.Module, *inputs: Any, input_shape: Sequence[int] | None = None, **kwargs: Any) -> Resources:
    """Count what one forward of a plain model costs, without computing it.

    The model may be on any device and in any mode; it is neither moved, copied nor changed, and counted in eval
    mode. A model whose Python code looks at values is run once on real tensors; `Resources.note` then says why.

    Args:
        model: A module without open decisions.
        inputs: Arguments of its forward: tensors, or tuples, lists and dicts of them.
        input_shape: Instead of `inputs`, the shape of one tensor, batch included.
        kwargs: Keyword arguments of its forward.

    Raises:
        ConfigError: If neither or both of `inputs` and `input_shape` are given.
        EstimateError: If the forward fails.

    >>> resources = count(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), input_shape=(1, 3, 4, 4))
    >>> resources.macs, resources.params, resources.activation_bytes
    (3456, 224, 1024)
    >>> resources.by_operator()
    {'aten.convolution': 3456}
    """
    if input_shape is not None:
        if inputs:
            raise ConfigError('Give either inputs or `input_shape`, but got both.')
        inputs = example_arguments(model, input_shape)
    elif not inputs and not kwargs:
        raise ConfigError(
            'To count a model its inputs are needed: count(model, x) or count(model, input_shape=(1, 3, 224, 224)).'
        )
    trace = record(model, inputs, kwargs)
    if trace.note is not None:
        print_log(
            f'{type(model).__name__} was run once on real tensors to be counted, as it cannot be traced without values: '
            f'{trace.note}',
            logger='current',
        )
    return resources_of(model, trace)


def resources_of(model: nn.Module, trace: Trace) -> Resources:
    """Return the resources of a forward of `model` that was recorded."""
    model = getattr(model, '_orig_mod', model)
    operators: dict[str, int] = {}
    inclusive: dict[str, int] = {}
    calls: dict[tuple[str, ...], int] = {}
    for op in trace.ops:
        if op.macs:
            operators[op.name] = operators.get(op.name, 0) + op.macs
            calls[op.inside] = calls.get(op.inside, 0) + op.macs
            for path in op.inside:
                inclusive[path] = inclusive.get(path, 0) + op.macs
    modules = {
        path: ModuleCost(inclusive.get(path, 0), parameters_of(module), type(module).__name__)
        for path, module in model.named_modules()
    }
    return Resources(
        macs=trace.macs,
        params=modules[''].params,
        activation_bytes=trace.peak_bytes(),
        uncounted=trace.uncounted,
        note=trace.note,
        modules=modules,
        operators=operators,
        calls=calls,
    )


def parameters_of(module: nn.Module) -> int:
    """Return the number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _percent(part: int, whole: int) -> str:
    return f'{100 * part / whole:.1f}' if whole else '-'
