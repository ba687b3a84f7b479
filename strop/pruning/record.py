"""What was pruned: a table for people, JSON for programs, and enough to cut the original model the same way again."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from strop.errors import ConfigError, GraphError, listed
from strop.files import atomic_write, read_json

VERSION = 1


@dataclass(frozen=True)
class UnitChange:
    """One channel unit before and after.

    Args:
        name: Its name.
        role: `'channels'`, `'groups'`, `'heads'` or `'head_dim'`.
        before: Its size in the original model.
        after: Its size in the pruned one.
    """

    name: str
    role: str
    before: int
    after: int


@dataclass(frozen=True)
class Step:
    """One step of pruning.

    Args:
        ratio: The share of channels that this step was to reach, of the original's.
        kept: unit -> the indices that stayed, counted in the model that the step began with.
        macs: Multiply-adds after it.
        params: Parameters after it.
        error: Relative difference to the masked original found by the check, or None where it was not asked for.
    """

    ratio: float
    kept: Mapping[str, tuple[int, ...]]
    macs: int
    params: int
    error: float | None = None


@dataclass(frozen=True)
class PruneRecord:
    """What `prune` did.

    Args:
        units: Every channel unit.
        steps: Every step.
        macs: Multiply-adds before and after.
        params: Parameters before and after.
        importance: Name of the importance.
        scope: `'local'` or `'global'`.
        seed: The seed.
        ratio: The ratio asked for, or None.
        budget: The budget asked for, as text, or None.
        latency: Measured time relative to the original's and median in ms, where the budget limits latency.
        frozen: Number of parameter axes that cannot be pruned.
        removed: Blocks that were taken out.
        notes: What else is worth knowing.
    """

    units: tuple[UnitChange, ...]
    steps: tuple[Step, ...]
    macs: tuple[int, int]
    params: tuple[int, int]
    importance: str
    scope: str = 'local'
    seed: int = 0
    ratio: float | None = None
    budget: str | None = None
    latency: tuple[float, float] | None = None
    frozen: int = 0
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of all units, before and after."""
        return sum(unit.before for unit in self.units), sum(unit.after for unit in self.units)

    def table(self) -> Table:
        """Return a `rich` table with a row for each unit and the totals below."""
        asked = self.budget or (f'ratio {self.ratio:g}' if self.ratio is not None else 'blocks')
        table = Table(title=f'Pruned by {self.importance}, {self.scope}, {asked}', title_justify='left')
        table.add_column('unit')
        table.add_column('role')
        for column in ('before', 'after', 'kept'):
            table.add_column(column, justify='right')
        for unit in self.units:
            table.add_row(unit.name, unit.role, str(unit.before), str(unit.after), _percent(unit.before, unit.after))
        for name in self.removed:
            table.add_row(name, 'block', '1', '0', _percent(1, 0))
        table.add_section()
        for name, (before, after) in (('parameters', self.params), ('MACs', self.macs)):
            table.add_row(name, '', f'{before:,}', f'{after:,}', _percent(before, after))
        if self.latency is not None:
            share, milliseconds = self.latency
            table.add_row('latency', '', f'{milliseconds / share:.3f} ms', f'{milliseconds:.3f} ms', f'{100 * share:.1f} %')
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=100)
        console.print(self.table())
        errors = [step.error for step in self.steps if step.error is not None]
        if errors:
            console.print(f'Checked against the masked original: relative difference {max(errors):.1e}.')
        elif self.steps:
            console.print('Not checked against the masked original.')
        if self.frozen:
            console.print(f'{self.frozen} parameter axes cannot be pruned; the graph lists them with their reasons.')
        for note in self.notes:
            console.print(note)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON holds it."""
        return {'version': VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PruneRecord:
        """Return the record that `to_dict` wrote.

        Raises:
            ConfigError: If the content is no record, or of a newer version.
        """
        if not isinstance(content, Mapping) or content.get('version') != VERSION:
            version = content.get('version') if isinstance(content, Mapping) else None
            raise ConfigError(f'A record of pruning is a mapping with version {VERSION}, but this has version {version!r}.')
        fields = {key: value for key, value in content.items() if key != 'version'}
        try:
            fields['units'] = tuple(UnitChange(**unit) for unit in fields['units'])
            fields['steps'] = tuple(
                Step(**{**step, 'kept': {name: tuple(map(int, kept)) for name, kept in step['kept'].items()}})
                for step in fields['steps']
            )
            for name in ('macs', 'params', 'latency', 'removed', 'notes'):
                if fields.get(name) is not None:
                    fields[name] = tuple(fields[name])
            return cls(**fields)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ConfigError(f'This is no record of pruning: {type(error).__name__}: {error}') from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1) + '\n')

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruneRecord:
        """Read the record that `save` wrote.

        Raises:
            ConfigError: If the file holds something else.
            UnsafeFileError: If it is a pickle or another binary file.
        """
        return cls.from_dict(read_json(path, 'a record of pruning'))

    def replay(self, model: nn.Module, inputs: Any) -> nn.Module:
        """Return a copy of `model` cut as the record says: the architecture that a pruned state dict is loaded into.

        Args:
            model: A model of the original class and sizes; it stays as it is.
            inputs: Example inputs.

        Raises:
            GraphError: If the model does not have these units.
            ConfigError: If `prune_transformer` made the record.
        """
        from strop.pruning.depth import skip

        if self.scope == 'config':
            raise ConfigError(
                'A model that `prune_transformer` made is one of a smaller config, not a cut of its original: build it from '
                'that config (`from_pretrained` of its folder, or type(model)(config)) and load its weights.'
            )
        result = copy.deepcopy(model)
        if self.removed:
            skip(result, inputs, self.removed)
        for step in self.steps:
            _replayed(result, inputs, step)
        return result


@dataclass(frozen=True)
class Pruned:
    """A pruned model and the record of how it came about; unpacks as `model, record`.

    Args:
        model: The pruned model, plain PyTorch.
        record: What was done.
    """

    model: nn.Module
    record: PruneRecord

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.record))

    def __str__(self) -> str:
        return str(self.record)


# -- internals ----------------------------------------------------------------------------------------------


def _percent(before: int, after: int) -> str:
    return f'{100 * after / before:.1f} %' if before else ''


def _replayed(model: nn.Module, inputs: Any, step: Step) -> None:
    from strop.graph import channel_units

    graph = channel_units(model, inputs)
    missing = [name for name in step.kept if name not in graph.units]
    if missing:
        raise GraphError(
            f'This model has no channel units {listed(missing)}, which the record cuts. Is it of the class and the sizes '
            'of the original?'
        )
    graph.slicing({name: torch.tensor(kept) for name, kept in step.kept.items()}).apply(model, inplace=True)
