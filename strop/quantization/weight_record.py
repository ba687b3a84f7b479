"""What rounding the weights of a model changed: a table for people, JSON for programs."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from strop.errors import ConfigError
from strop.files import atomic_write, json_number, number_of_json, read_json
from strop.graph.forward import in_double

VERSION = 1


@dataclass(frozen=True)
class RoundedLayer:
    r"""One linear layer.

    Args:
        name: Its path.
        grid: Its grid, as text.
        bits: Bits a weight.
        bytes: Bytes of its parameters before, and packed.
        sqnr: :math:`10 \log_{10}(\sum w^2 / \sum (w - \hat w)^2)` of its weight, in dB.
        error: :math:`\lVert X (W - \hat W)^\top \rVert^2 / \lVert X W^\top \rVert^2` on the calibration data; None without.
        nearest: The same for rounding to nearest on the same grid.
    """

    name: str
    grid: str
    bits: int
    bytes: tuple[int, int]
    sqnr: float
    error: float | None = None
    nearest: float | None = None


@dataclass(frozen=True)
class WeightRecord:
    """What `quantize_weights` did.

    Args:
        method: `'rtn'` or `'gptq'`.
        grid: The grid of layers without one of their own, as text.
        layers: Every rounded layer.
        left: Linear layers that stayed as they were -> why.
        bytes: Bytes of all parameters and buffers before, and with packed layers.
        packed: Whether the layers are packed; otherwise the rounded weights are kept as floats.
        latency: Time of the packed and of the unpacked model relative to the original's, where it was measured.
        notes: What else is worth knowing.
    """

    method: str
    grid: str
    layers: tuple[RoundedLayer, ...]
    left: Mapping[str, str]
    bytes: tuple[int, int]
    packed: bool = True
    latency: tuple[float, float] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def layer_bytes(self) -> tuple[int, int]:
        """Bytes of the rounded layers, before and packed."""
        return sum(layer.bytes[0] for layer in self.layers), sum(layer.bytes[1] for layer in self.layers)

    def table(self) -> Table:
        """Return a `rich` table with a row for each layer and the totals below."""
        table = Table(title=f'Weights by {self.method}: {self.grid}', title_justify='left')
        table.add_column('layer')
        for column in ('bits', 'before', 'packed', 'SQNR dB'):
            table.add_column(column, justify='right')
        calibrated = any(layer.error is not None for layer in self.layers)
        if calibrated:
            table.add_column('output error', justify='right')
            table.add_column('to nearest', justify='right')
        for layer in self.layers:
            row = [layer.name, str(layer.bits), *map(size, layer.bytes), f'{layer.sqnr:.1f}']
            table.add_row(*row, *([_error(layer.error), _error(layer.nearest)] if calibrated else []))
        table.add_section()
        table.add_row('rounded layers', '', *map(size, self.layer_bytes))
        table.add_row('whole model', '', *map(size, self.bytes))
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(self.table())
        if not self.packed:
            console.print('Kept as floats: the model computes with rounded weights at its old size and speed.')
        elif self.latency:
            packed, plain = self.latency
            console.print(
                f'Time of a forward, relative to the original: packed {packed:.2f}, unpacked {plain:.2f}. '
                + ('Packing saves memory and costs time here; `unpacked(model)` is the fast form.' if packed > 1.02 else '')
            )
        else:
            console.print(
                'Speed was not measured (`measure=` example inputs does). Packed layers unpack their weight in every forward: '
                'on a CPU that takes about the time of the original for long inputs, and several times its time for one token. '
                '`unpacked(model)` runs as fast as the original.'
            )
        for name, reason in self.left.items():
            console.print(f'{name} stays as it is: {reason}.')
        for note in self.notes:
            console.print(note)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON holds it; infinite ratios are written as text."""
        content = {'version': VERSION, **json.loads(json.dumps(asdict(self)))}
        for layer in content['layers']:
            layer.update({name: json_number(layer[name]) for name in _RATIOS if layer[name] is not None})
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> WeightRecord:
        """Return the record that `to_dict` wrote.

        Raises:
            ConfigError: If the content is no record, or of a newer version.
        """
        if not isinstance(content, Mapping) or content.get('version') != VERSION:
            version = content.get('version') if isinstance(content, Mapping) else None
            raise ConfigError(f'A record of rounded weights has version {VERSION}, but this has version {version!r}.')
        fields = {key: value for key, value in content.items() if key != 'version'}
        try:
            fields['layers'] = tuple(_layer_of(one) for one in fields['layers'])
            for name in ('bytes', 'latency', 'notes'):
                if fields.get(name) is not None:
                    fields[name] = tuple(fields[name])
            return cls(**fields)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ConfigError(f'This is no record of rounded weights: {type(error).__name__}: {error}') from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1) + '\n')

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeightRecord:
        """Read the record that `save` wrote.

        Raises:
            ConfigError: If the file holds something else.
            UnsafeFileError: If it is a pickle or another binary file.
        """
        return cls.from_dict(read_json(path, 'a record of rounded weights'))


@dataclass(frozen=True)
class QuantizedWeights:
    """A model with rounded weights and the record of how it came about; unpacks as `model, record`.

    Args:
        model: The model.
        record: What was done.
    """

    model: nn.Module
    record: WeightRecord

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.record))

    def __str__(self) -> str:
        return str(self.record)


def size(number: int) -> str:
    """Return a number of bytes as text.

    >>> size(2_500_000), size(900)
    ('2.50 MB', '900 B')
    """
    for unit, name in ((10**9, 'GB'), (10**6, 'MB'), (10**3, 'kB')):
        if number >= unit:
            return f'{number / unit:.2f} {name}'
    return f'{number} B'


def sqnr(weight: Tensor, rounded: Tensor) -> float:
    """Return the signal-to-noise ratio of rounded weights in dB; infinite where nothing changed."""
    noise = float(in_double(weight - rounded).square().sum())
    signal = float(in_double(weight).square().sum())
    return 10 * math.log10(signal / noise) if noise and signal else math.inf


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a module, shared ones once."""
    found = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def _layer_of(content: Mapping[str, Any]) -> RoundedLayer:
    ratios = {name: number_of_json(content[name]) for name in _RATIOS if content.get(name) is not None}
    return RoundedLayer(**{**content, **ratios, 'bytes': tuple(content['bytes'])})


_RATIOS = ('sqnr', 'error', 'nearest')


def _error(value: float | None) -> str:
    return '' if value is None else f'{value:.2e}'
