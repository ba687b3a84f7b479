"""What quantization did: a table for people, JSON for programs."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from strop.errors import ConfigError
from strop.files import atomic_write, json_number, number_of_json, read_json
from strop.quantization.layers import LayerRecord

VERSION = 1


@dataclass(frozen=True)
class Check:
    """How close a file, run in its runtime, is to the quantized model.

    Args:
        backend: The runtime.
        version: Its version.
        difference: The root mean square of the difference, relative to that of the output; the largest of all batch sizes. Of a
            model that gives whole numbers only, such as labels, the share of those that differ.
        limit: The most that it may be.
        batches: The batch sizes that were run.
        ran: Whether the file was run; otherwise it was only looked over.
    """

    backend: str
    version: str | None
    difference: float | None
    limit: float | None
    batches: tuple[int, ...]
    ran: bool = True

    def __str__(self) -> str:
        if not self.ran:
            return f'The file for {self.backend} was looked over, not run.'
        sizes = ' and '.join(map(str, self.batches))
        return (
            f'Run in {self.backend} {self.version or ""} at batch {sizes}: relative difference {self.difference:.1e} to the '
            f'quantized model (at most {self.limit:.1e}).'
        )


@dataclass(frozen=True)
class QuantizationRecord:
    """What `quantize` did.

    Args:
        backend: The runtime that it was done for.
        layers: Every layer that multiplies.
        scheme: Observers and granularity.
        samples: Calibration samples.
        sqnr_db: Signal to noise ratio of the output in dB: on batches that were held out for `max_drop` or `sensitivity`, else
            on the last calibration batch.
        other_ops: Ops without multiplications of weights that stayed float, and how many of each.
        metric: The metric of the float and of the quantized model, if there is one.
        passes: What was done besides, such as bias correction.
        notes: What else is worth knowing.
    """

    backend: str
    layers: tuple[LayerRecord, ...]
    scheme: Mapping[str, Any]
    samples: int
    sqnr_db: float
    other_ops: Mapping[str, int] = field(default_factory=dict)
    metric: tuple[float, float] | None = None
    passes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[LayerRecord, ...]:
        """The layers that compute with integers."""
        return tuple(layer for layer in self.layers if layer.quantized)

    @property
    def left(self) -> dict[str, str]:
        """Layer -> why it stayed float."""
        return {layer.name: layer.reason for layer in self.layers if not layer.quantized}

    def table(self) -> Table:
        """Return a `rich` table with a row for each layer."""
        table = Table(title=f'Quantized for {self.backend}', title_justify='left')
        table.add_column('layer', overflow='fold')
        table.add_column('kind')
        for column in ('weight', 'scales', 'input', 'scale', 'zero', 'SQNR dB'):
            table.add_column(column, justify='right')
        for layer in self.layers:
            if layer.quantized:
                table.add_row(
                    layer.name,
                    layer.kind,
                    f'{layer.weight_bits} bit' if layer.weight_bits else '',
                    str(layer.scales or ''),
                    f'{layer.input_bits} bit',
                    f'{layer.input_scale:.3g}',
                    str(layer.input_zero_point),
                    '' if layer.sqnr_db is None else f'{layer.sqnr_db:.1f}',
                )
            else:
                table.add_row(layer.name, layer.kind, 'float', '', 'float', '', '', '')
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=110)
        console.print(self.table())
        for line in self.remarks():
            console.print(line, markup=False, highlight=False)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]

    def remarks(self) -> list[str]:
        """Return what stands below the table."""
        lines = [
            f'{len(self.quantized)} of {len(self.layers)} layers compute with integers; ranges from {self.samples} samples; '
            f'the output has {self.sqnr_db:.1f} dB.'
        ]
        if self.metric is not None:
            lines.append(f'Metric: {self.metric[0]:.4g} in float, {self.metric[1]:.4g} quantized.')
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f'In float, {reason}: {", ".join(names)}.' for reason, names in reasons.items()]
        if self.other_ops:
            lines.append(
                'Other ops in float: ' + ', '.join(f'{name} ({count})' for name, count in self.other_ops.items()) + '.'
            )
        if self.passes:
            lines.append(f'Also: {", ".join(self.passes)}.')
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON holds it; infinite ratios are written as text."""
        return {'version': VERSION, **_plain(asdict(self))}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1) + '\n')

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QuantizationRecord:
        """Read the record that `save` wrote.

        Raises:
            ConfigError: If the file holds something else.
            UnsafeFileError: If it is a pickle or another binary file.
        """
        content = read_json(path, 'a record of quantization')
        try:
            if not isinstance(content, dict) or content.pop('version', None) != VERSION:
                raise ConfigError(f'{path} is no record of quantization of version {VERSION}.')
            content['layers'] = tuple(
                LayerRecord(
                    **{
                        **layer,
                        'weight_scale': layer['weight_scale'] and tuple(map(number_of_json, layer['weight_scale'])),
                        'input_scale': _known(layer['input_scale']),
                        'sqnr_db': _known(layer['sqnr_db']),
                    }
                )
                for layer in content['layers']
            )
            for name in ('passes', 'notes'):
                content[name] = tuple(content[name])
            content['metric'] = content['metric'] and tuple(map(number_of_json, content['metric']))
            content['sqnr_db'] = number_of_json(content['sqnr_db'])
            return cls(**content)
        except (TypeError, KeyError) as error:
            raise ConfigError(f'{path} is no record of quantization: {type(error).__name__}: {error}') from error


def _known(value: Any) -> float | None:
    return None if value is None else number_of_json(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it; see `json_number`."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return json_number(value) if isinstance(value, float) else value
