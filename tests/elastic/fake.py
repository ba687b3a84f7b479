"""A hand-written graph for chains of layers: the part of `strop.graph` that elastic widths use."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from strop.errors import GraphError


@dataclass
class Placement:
    tensor: str
    axis: int
    index: torch.Tensor


@dataclass
class Unit:
    name: str
    size: int
    placements: tuple
    minimum: int = 1
    role: str = 'channels'
    spans: tuple = ()
    ties: tuple = ()


class Slicing:
    def __init__(self, graph, indices):
        self.graph, self.indices = graph, indices
        self.lengths = {name: len(kept) for name, kept in indices.items()}
        self.cuts = {}
        for name, kept in indices.items():
            unit = graph.units[name]
            if len(kept) != unit.size:
                for place in unit.placements:
                    positions = torch.cat([(place.index == k).nonzero()[:, 0] for k in kept]).sort().values
                    self.cuts.setdefault(place.tensor, []).append((place.axis, positions))
        self.touched = tuple(self.cuts)

    def take(self, name, tensor):
        for axis, positions in self.cuts.get(name, ()):
            if torch.equal(positions, torch.arange(len(positions))):
                tensor = tensor.narrow(axis, 0, len(positions))
            else:
                tensor = tensor.index_select(axis, positions)
        return tensor

    def attributes_of(self, model):
        for path, attribute, tensor, axis in self.graph.attributes:
            module = model.get_submodule(path)
            yield module, attribute, self.take(tensor, model.get_submodule(path)._parameters['weight']).shape[axis]

    @contextmanager
    def mended(self, model):
        found = [(module, name, getattr(module, name), new) for module, name, new in self.attributes_of(model)]
        for module, name, _, new in found:
            setattr(module, name, new)
        try:
            yield
        finally:
            for module, name, old, _ in found:
                setattr(module, name, old)

    def apply(self, model, optimizer=None):
        for module, name, new in list(self.attributes_of(model)):
            setattr(module, name, new)
        for name in self.touched:
            path, _, key = name.rpartition('.')
            module = model.get_submodule(path)
            for holder in (module._parameters, module._buffers):
                if key in holder:
                    cut = self.take(name, holder[key].detach()).clone()
                    holder[key] = nn.Parameter(cut) if holder is module._parameters else cut


class Graph:
    def __init__(self, units, attributes):
        self.units, self.attributes = units, attributes

    def fit(self, lengths):
        for name, length in lengths.items():
            if name not in self.units:
                raise GraphError(f'no unit {name!r}')
            if not 1 <= length <= self.units[name].size:
                raise GraphError(f'length {length} of {name!r}')
        return {name: lengths.get(name, unit.size) for name, unit in self.units.items()}

    def slicing(self, indices):
        full = {name: torch.arange(unit.size) for name, unit in self.units.items()}
        return Slicing(self, {**full, **indices})

    def prefix(self, lengths):
        return self.slicing({name: torch.arange(length) for name, length in self.fit(lengths).items()})


def chain(model: nn.Module) -> Graph:
    """Return the graph of a model whose layers run one after the other, in the order of registration."""
    units, attributes, before = {}, [], None
    layers = [(path, module) for path, module in model.named_modules() if not list(module.children())]
    heavy = [path for path, module in layers if isinstance(module, (nn.Conv2d, nn.Linear))]
    for path, module in layers:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            names = ('out_channels', 'in_channels') if isinstance(module, nn.Conv2d) else ('out_features', 'in_features')
            if before is not None:
                size = units[before].size
                repeat = module.weight.shape[1] // size
                index = torch.arange(size).repeat_interleave(repeat)
                units[before].placements += (Placement(f'{path}.weight', 1, index),)
                attributes.append((path, names[1], f'{path}.weight', 1))
            if path != heavy[-1]:
                size = module.weight.shape[0]
                places = [Placement(f'{path}.weight', 0, torch.arange(size))]
                if module.bias is not None:
                    places.append(Placement(f'{path}.bias', 0, torch.arange(size)))
                units[path] = Unit(path, size, tuple(places))
                attributes.append((path, names[0], f'{path}.weight', 0))
                before = path
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            index = torch.arange(module.num_features)
            names = ('weight', 'bias', 'running_mean', 'running_var')
            units[before].placements += tuple(Placement(f'{path}.{name}', 0, index) for name in names)
            attributes.append((path, 'num_features', f'{path}.weight', 0))
    return Graph(units, attributes)
