"""What pruning took away from a model, as data: enough to cut a fresh model of the original class the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import nn

from strop.errors import ConfigError, ExportError, listed
from strop.export.weights import differences, same_bits
from strop.graph import Slicing
from strop.graph.sizes import AttributePath, Cell, read_attribute, tag_attributes, write_attribute
from strop.graph.slicing import Change, mend_layer
from strop.pruning import Pruned, PruneRecord, Skip

#: What tells how a model was pruned.
AnyRecord = Union[PruneRecord, Pruned, Slicing, Mapping[str, Any]]

_RECORDS = (PruneRecord, Pruned, Slicing, Mapping)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Cut:
    """The difference between a pruned model and its original, whatever number of steps lies between them.

    Args:
        original: Tensor of the original's state -> its shape there.
        attributes: The ints that modules keep, with the values of the original and of the pruned model.
        removed: Block that was taken out -> what stands for it: `{'type': 'Identity'}` or `{'type': 'Skip', 'length': n}`.
        extra: Tensors outside the state (buffers that are not persistent, plain attributes) whose values changed.
        history: What each pruning says about itself, as data; cutting needs none of it.
    """

    original: Mapping[str, tuple[int, ...]]
    attributes: tuple[Change, ...] = ()
    removed: Mapping[str, Mapping[str, Any]] | None = None
    extra: tuple[str, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()

    # -- finding it ------------------------------------------------------------------------

    @classmethod
    def between(cls, original: nn.Module, slim: nn.Module, history: Sequence[AnyRecord] = ()) -> Cut:
        """Compare a pruned model with its original.

        Raises:
            ExportError: If they differ by more than lengths and removed blocks.

        >>> from strop.pruning import prune
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> cut = Cut.between(net, prune(net, torch.rand(2, 4), ratio=0.5).model)
        >>> [str(change) for change in cut.attributes]
        ['0.out_features: 8 -> 4', '2.in_features: 8 -> 4']
        """
        removed = _removed(original, slim)
        gone = tuple(f'{path}.' for path in removed)
        shapes = _shapes(original)
        found = _shapes(slim)
        problems = differences(
            {name: found.get(name, shape) for name, shape in shapes.items() if not name.startswith(gone)},
            found,
            'the pruned model',
            'the original',
        )
        if problems:
            raise ExportError(
                f'The {type(slim).__name__} was not pruned from the given {type(original).__name__}: {"; ".join(problems)}.'
            )
        before, after = _ints(original), _ints(slim)
        attributes = tuple(
            Change(path.module, path.keys, value, after[path])
            for path, value in before.items()
            if path in after and after[path] != value
        )
        old, new = dict(_outside(original)), dict(_outside(slim))
        extra = tuple(name for name, tensor in new.items() if name in old and not same_bits(old[name], tensor))
        return cls(shapes, attributes, removed, extra, _told(history))

    @classmethod
    def of_slicings(cls, slim: nn.Module, slicings: Sequence[Slicing]) -> Cut:
        """Put together what slicings did, one after the other, where the original is no longer there.

        Raises:
            ExportError: If the last of them does not give the shapes of `slim`.
        """
        shapes, found = slicings[0].graph.shapes, _shapes(slim)
        last = slicings[-1]
        wanted = {name: last.graph.shape(name, last.lengths) for name in found if name in last.graph.shapes}
        problems = differences(wanted, found, 'the model', 'the slicing')
        if problems:
            raise ExportError(
                f'The slicing does not lead to the given {type(slim).__name__}: {"; ".join(problems)}. Give every '
                'slicing that the model went through, in order.'
            )
        changes: dict[tuple[str, Any], Change] = {}
        for change in (change for slicing in slicings for change in slicing.attributes):
            first = changes.get((change.module, change.keys), change)
            changes[change.module, change.keys] = first._replace(new=change.new)
        touched = {name for slicing in slicings for name in slicing.touched}
        return cls(
            {name: shapes[name] for name in found if name in shapes},
            tuple(change for change in changes.values() if change.new != change.old),
            {},
            tuple(name for name, _ in _outside(slim) if name in touched),
            _told(slicings),
        )

    def tensors(self, slim: nn.Module) -> dict[str, torch.Tensor]:
        """Return the tensors outside the state of a pruned model that go with its weights."""
        outside = dict(_outside(slim))
        return {name: outside[name] for name in self.extra}

    # -- doing it again --------------------------------------------------------------------

    def apply(self, model: nn.Module, weights: Mapping[str, torch.Tensor], strict: bool, origin: object) -> None:
        """Cut a model of the original class, in place: shapes, ints, blocks, and the tensors outside its state.

        The values of its parameters are for the caller to load.

        Args:
            model: The model.
            weights: Name -> tensor of the pruned model, `extra` included.
            strict: Refuse a model whose names, shapes or ints are not those of the original.
            origin: Where the cut comes from, for messages.

        Raises:
            ExportError: If the model is not like the original; nothing is changed then.
        """
        problems = differences(self.original, _shapes(model), 'the given model', 'the recipe')
        changes, wrong = self._fitting(model)
        absent = [path for path in self.removed or {} if not _has(model, path)]
        if absent:
            problems.append(f'it has no blocks {listed(absent)}, which are taken out')
        outside = dict(_outside(model))
        lost = [name for name in self.extra if name not in outside]
        if lost:
            problems.append(f'it keeps no tensors {listed(lost)} outside its state')
        if (problems or wrong) and strict:
            raise ExportError(
                f'{origin}: the {type(model).__name__} is not like the model that was pruned: '
                f'{"; ".join([*problems, *wrong[:4]])}. Build it with the class and the arguments of the original, before '
                'any pruning.'
            )
        for path, stand_in in (self.removed or {}).items():
            if path not in absent:
                parent, _, name = path.rpartition('.')
                replacement = Skip(int(stand_in['length'])) if stand_in['type'] == 'Skip' else nn.Identity()
                replacement.training = model.get_submodule(path).training
                setattr(model.get_submodule(parent), name, replacement)
        self._resize(model, weights)
        for change in changes:
            if _has(model, change.module):
                write_attribute(model.get_submodule(change.module), change.keys, change.new)
        # The tensors of a parametrized layer are two modules further down.
        paths = [name.partition('.parametrizations.')[0] for name in self.original if '.parametrizations.' in name]
        paths += [name.rpartition('.')[0] for name in self.original if self._moved(name, weights)]
        for path in dict.fromkeys(paths):
            if _has(model, path):
                mend_layer(model.get_submodule(path))

    def _moved(self, name: str, weights: Mapping[str, torch.Tensor]) -> bool:
        return name in weights and tuple(weights[name].shape) != tuple(self.original[name])

    def _fitting(self, model: nn.Module) -> tuple[list[Change], list[str]]:
        """Return the changes that can be made, and what is wrong with the others."""
        fitting, wrong = [], []
        for change in self.attributes:
            try:
                value = read_attribute(model.get_submodule(change.module), change.keys)
            except (AttributeError, KeyError, IndexError, TypeError, ValueError):
                wrong.append(f'it has no {change}')
                continue
            if type(value) is int and value == change.old:
                fitting.append(change)
            else:
                wrong.append(f'{str(change).partition(":")[0]} is {value!r:.40}, and was {change.old}')
        return fitting, wrong

    def _resize(self, model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
        # The data is replaced, not the parameter: tied parameters stay one object, and lists of them stay true.
        for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
            if name in weights and name in self.original and tensor.shape != weights[name].shape:
                tensor.grad = None
                tensor.data = torch.zeros(weights[name].shape, dtype=tensor.dtype, device=tensor.device)
        for name, tensor in _outside(model):
            if name in self.extra and name in weights:
                tensor.data = weights[name].to(tensor.device, copy=True)

    # -- as data ---------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the cut as JSON holds it.

        Raises:
            ExportError: If the path to an int has a key that JSON does not hold.
        """
        return {
            'original': {name: list(shape) for name, shape in self.original.items()},
            'attributes': [
                {**change._asdict(), 'keys': [_key(key, change) for key in change.keys]} for change in self.attributes
            ],
            'removed': {path: dict(stand_in) for path, stand_in in (self.removed or {}).items()},
            'extra': list(self.extra),
            'history': [dict(entry) for entry in self.history],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Cut:
        """Return the cut that `to_dict` wrote; `content` fits the schema of recipes.

        >>> cut = Cut({'weight': (2, 3)}, (Change('', ('out_features',), 2, 1),), {})
        >>> Cut.from_dict(cut.to_dict()) == cut
        True
        """
        return cls(
            {name: tuple(shape) for name, shape in content['original'].items()},
            tuple(
                Change(
                    change['module'],
                    tuple(Cell(key['cell']) if isinstance(key, Mapping) else key for key in change['keys']),
                    change['old'],
                    change['new'],
                )
                for change in content['attributes']
            ),
            content.get('removed', {}),
            tuple(content.get('extra', ())),
            tuple(content.get('history', ())),
        )


def records_of(record: AnyRecord | Sequence[AnyRecord] | None) -> list[AnyRecord]:
    """Return a list of records; those of an older recipe are mappings.

    Raises:
        ConfigError: If something else is given.
    """
    given = [] if record is None else [record] if isinstance(record, _RECORDS) else list(record)
    for entry in given:
        if not isinstance(entry, _RECORDS):
            raise ConfigError(
                f'`record` is what `prune` returned, a slicing of a channel graph, or a list of them in order; got '
                f'{type(entry).__name__}.'
            )
    return given


# -- internals ----------------------------------------------------------------------------------------------


def _told(records: Sequence[AnyRecord]) -> tuple[dict[str, Any], ...]:
    told = []
    for entry in records:
        entry = entry.record if isinstance(entry, Pruned) else entry
        told.append(dict(entry) if isinstance(entry, Mapping) else entry.to_dict())
    return tuple(told)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def _class_of(module: nn.Module) -> str:
    # By name: the classes of parametrized modules are made anew for each of them.
    return f'{type(module).__module__}.{type(module).__qualname__}'


def _removed(original: nn.Module, slim: nn.Module) -> dict[str, dict[str, Any]]:
    found = dict(slim.named_modules(remove_duplicate=False))
    removed: dict[str, dict[str, Any]] = {}
    for path, module in original.named_modules(remove_duplicate=False):
        if any(path.startswith(f'{gone}.') for gone in removed):
            continue
        other = found.get(path)
        if other is not None and _class_of(other) == _class_of(module):
            continue
        if type(other) is Skip:
            removed[path] = {'type': 'Skip', 'length': other.length}
        elif type(other) is nn.Identity:
            removed[path] = {'type': 'Identity'}
        else:
            what = 'nothing' if other is None else f'a {type(other).__name__}'
            raise ExportError(
                f'The pruned model has {what} at {path!r}, where the original has a {type(module).__name__}. A recipe holds '
                'lengths and removed blocks; other changes belong into the function that builds the original.'
            )
    return removed


def _ints(model: nn.Module) -> dict[AttributePath, int]:
    """Return every int that a module keeps, by its path."""
    values: dict[AttributePath, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            stand_in = object.__new__(type(module))  # tagging writes to the attributes
            stand_in.__dict__.update(vars(module))
            tag_attributes(stand_in, path, values)
    return values


def _outside(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the tensors that the state does not have: buffers that are not persistent, and plain attributes."""
    for path, module in model.named_modules():
        prefix = f'{path}.' if path else ''
        for name, buffer in module._buffers.items():
            if buffer is not None and name in module._non_persistent_buffers_set:
                yield prefix + name, buffer
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and name not in _OF_EVERY_MODULE:
                yield prefix + name, value


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _key(key: Any, change: Change) -> Any:
    if isinstance(key, Cell):
        return {'cell': key.name}
    if type(key) in (str, int):
        return key
    raise ExportError(f'{change}: the key {key!r} is a {type(key).__name__}; a recipe holds text and integers as keys.')


__all__ = ['AnyRecord', 'Cut', 'records_of']
