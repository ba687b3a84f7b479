"""Hiding whole tensors by their slices while a forward runs, and putting everything back."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from strop.graph.sizes import read_attribute, write_attribute


class Entry(NamedTuple):
    """A parameter or buffer that is cut: its name, the dict and key that hold it, and each dict and key to put the slice.

    Slices of parameters go into the attributes of modules, where they hide the parameters. Slices of buffers take the place
    of the buffers, so that a forward may exchange them.
    """

    name: str
    holder: Any
    key: str
    places: list[tuple[dict[str, Any], str]]


class Hidden:
    """What a forward hid, to be put back."""

    def __init__(self) -> None:
        self.added: list[tuple[dict[str, Any], str]] = []
        self.replaced: list[tuple[dict[str, Any], str, Any]] = []
        self.buffers: list[HiddenBuffer] = []

    def restore(self) -> None:
        """Put everything back as it was."""
        for namespace, name in self.added:
            namespace.pop(name, None)
        for namespace, name, value in reversed(self.replaced):
            namespace[name] = value
        for buffer in self.buffers:
            buffer.write_back()


class HiddenBuffer:
    """A buffer and the slice that stood for it, which the forward may have written to or exchanged."""

    def __init__(self, slicing: Any, entry: Entry, full: torch.Tensor, cut: torch.Tensor) -> None:
        self.slicing, self.entry, self.full, self.cut = slicing, entry, full, cut

    def write_back(self) -> None:
        """Put the whole buffer back, with what the forward wrote."""
        found = [namespace[attribute] for namespace, attribute in self.entry.places]
        for namespace, attribute in self.entry.places:
            namespace[attribute] = self.full
        value = next((value for value in found if value is not self.cut), self.cut)
        if value is None or (value is self.cut and value._base is not None):
            return  # a view wrote through
        with torch.no_grad():
            places = torch.arange(self.full.numel(), device=self.full.device).view(self.full.shape)
            places = self.slicing.take(self.entry.name, places).reshape(-1)
            self.full.view(-1)[places] = value.detach().reshape(-1).to(self.full.dtype)


class Plan:
    """What has to be hidden in one model at one width."""

    def __init__(self, model: nn.Module, slicing: Any, switched: Sequence[tuple[nn.Module, nn.Module]]) -> None:
        self.model = weakref.ref(model)
        self.slicing = slicing
        self.parameters: list[Entry] = []
        self.buffers: list[Entry] = []
        self.attributes: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
        self.recurrent: list[nn.RNNBase] = []
        self.switched = [(norm.__dict__, narrow, [name for name, _ in own_tensors(norm)]) for norm, narrow in switched]
        self.sizes: list[tuple[dict[str, Any], str, Any]] = []
        apart = {(id(norm), name) for norm, _ in switched for name, _ in own_tensors(norm)}
        places = places_of(model)
        touched = slicing.touched
        modules = dict(model.named_modules(remove_duplicate=False))
        seen: set[int] = set()
        for name in touched:
            if name in slicing.graph.kept_attributes:
                path = slicing.graph.kept_attributes[name]
                self.attributes.append((name, modules[path.module], path.keys))
                continue
            module_path, _, key = name.rpartition('.')
            module = modules[module_path]
            holder = module._parameters if key in module._parameters else module._buffers
            tensor = holder[key]
            if tensor is None or id(tensor) in seen or (id(module), key) in apart:
                continue
            seen.add(id(tensor))
            if holder is module._parameters:
                shown = [(owner.__dict__, attribute) for owner, attribute in places[id(tensor)]]
                self.parameters.append(Entry(name, holder, key, shown))
            else:
                shown = [(owner._buffers, attribute) for owner, attribute in places[id(tensor)]]
                self.buffers.append(Entry(name, holder, key, shown))
            for owner, _ in places[id(tensor)]:
                if isinstance(owner, nn.RNNBase) and all(owner is not known for known in self.recurrent):
                    self.recurrent.append(owner)
        self._find_sizes(model, modules)

    def _find_sizes(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        """Mend the sizes that modules keep once, with the slices in place, and note what changed."""
        before = [(module.__dict__, dict(module.__dict__)) for module in dict.fromkeys(modules.values())]
        hidden = Hidden()
        try:
            self.install(hidden)
            self.slicing.mend(model)
            for namespace, old in before:
                for key, value in namespace.items():
                    if key in old and value is not old[key] and key != '_flat_weights':
                        self.sizes.append((namespace, key, value))
        finally:
            for namespace, key, _ in self.sizes:
                namespace[key] = next(old[key] for other, old in before if other is namespace)
            hidden.restore()

    def install(self, hidden: Hidden) -> None:
        """Hide what is whole by its slices; note in `hidden` what was done."""
        take = self.slicing.take
        for entry in self.parameters:
            cut = take(entry.name, entry.holder[entry.key])
            for namespace, attribute in entry.places:
                namespace[attribute] = cut
                hidden.added.append((namespace, attribute))
        for entry in self.buffers:
            full = entry.holder[entry.key]
            cut = take(entry.name, full)
            for namespace, attribute in entry.places:
                namespace[attribute] = cut
            hidden.buffers.append(HiddenBuffer(self.slicing, entry, full, cut))
        for namespace, narrow, names in self.switched:
            for name in names:
                namespace[name] = getattr(narrow, name)
                hidden.added.append((namespace, name))
        for name, module, keys in self.attributes:
            hidden.replaced.append((module.__dict__, keys[0], module.__dict__[keys[0]]))
            write_attribute(module, keys, take(name, read_attribute(module, keys)))
        for recurrent in self.recurrent:
            # Recurrent layers keep a list of their weights beside the attributes.
            hidden.replaced.append((recurrent.__dict__, '_flat_weights', recurrent._flat_weights))
            recurrent.__dict__['_flat_weights'] = [getattr(recurrent, name) for name in recurrent._flat_weights_names]
        for namespace, key, value in self.sizes:
            hidden.replaced.append((namespace, key, namespace[key]))
            namespace[key] = value


def places_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return id of a parameter or buffer -> every (module, attribute) that holds it."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append((module, name))
    return found


def own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return (name, tensor) of the parameters and buffers that a module holds itself.

    >>> [name for name, _ in own_tensors(nn.Linear(1, 1))]
    ['weight', 'bias']
    """
    pairs = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor) for name, tensor in pairs if tensor is not None]
