"""Hiding whole tensors by their slices while a forward runs, and putting everything back."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Hidden:
    """What a forward hid, to be put back."""

    def __init__(self) -> None:
        self.hidden: list[tuple[dict[str, Any], str]] = []
        self.replaced: list[tuple[dict[str, Any], str, Any]] = []
        self.buffers: list[HiddenBuffer] = []
        self.mended: Any = None

    def restore(self) -> None:
        """Put everything back as it was."""
        for namespace, name in self.hidden:
            namespace.pop(name, None)
        for namespace, name, value in self.replaced:
            namespace[name] = value
        if self.mended is not None:
            self.mended.__exit__(None, None, None)
        for buffer in self.buffers:
            buffer.write_back()


class HiddenBuffer:
    """A buffer and the slice that stood for it, which the forward may have written to or exchanged."""

    def __init__(
        self, slicing: Any, name: str, holder: dict[str, Any], key: str, full: torch.Tensor, cut: torch.Tensor
    ) -> None:
        self.slicing, self.name, self.holder, self.key = slicing, name, holder, key
        self.full, self.cut = full, cut
        self.view = cut._base is not None

    def write_back(self) -> None:
        """Write changes of the slice into the whole buffer."""
        value = self.holder[self.key]
        if value is not self.full:
            self.holder[self.key] = self.full
        elif self.view:
            return
        else:
            value = self.cut
        if value is None:
            return
        with torch.no_grad():
            places = torch.arange(self.full.numel(), device=self.full.device).view(self.full.shape)
            places = self.slicing.take(self.name, places).reshape(-1)
            self.full.view(-1)[places] = value.detach().reshape(-1).to(self.full.dtype)


class Plan:
    """What has to be hidden in one model at one width."""

    def __init__(self, model: nn.Module, slicing: Any, switched: Sequence[tuple[nn.Module, nn.Module]]) -> None:
        self.model = weakref.ref(model)
        self.slicing = slicing
        self.parameters: list[tuple[str, dict[str, Any], str, list[tuple[dict[str, Any], str]]]] = []
        self.buffers: list[tuple[str, dict[str, Any], str, list[tuple[dict[str, Any], str]]]] = []
        self.recurrent: list[tuple[dict[str, Any], nn.Module]] = []
        self.switched = [(norm.__dict__, narrow, [name for name, _ in own_tensors(norm)]) for norm, narrow in switched]
        apart = {(id(norm), name) for norm, narrow in switched for name, _ in own_tensors(norm)}
        places = places_of(model)
        touched = () if slicing is None else slicing.touched
        seen: set[int] = set()
        for name in touched:
            path, _, key = name.rpartition('.')
            module = model.get_submodule(path)
            holder = module._parameters if key in module._parameters else module._buffers
            tensor = holder.get(key)
            if tensor is None or id(tensor) in seen or (id(module), key) in apart:
                continue
            seen.add(id(tensor))
            entry = (name, holder, key, [(owner.__dict__, attribute) for owner, attribute in places[id(tensor)]])
            (self.parameters if holder is module._parameters else self.buffers).append(entry)
            for owner, _ in places[id(tensor)]:
                if isinstance(owner, nn.RNNBase) and all(owner is not known for _, known in self.recurrent):
                    self.recurrent.append((owner.__dict__, owner))

    def install(self, installed: Hidden) -> None:
        """Hide what is whole by its slices; note in `installed` what was done."""
        if self.slicing is not None:
            mended = self.slicing.mended(self.model())
            mended.__enter__()
            installed.mended = mended
            take = self.slicing.take
            for name, holder, key, places in self.parameters:
                cut = take(name, holder[key])
                for namespace, attribute in places:
                    namespace[attribute] = cut
                    installed.hidden.append((namespace, attribute))
            for name, holder, key, places in self.buffers:
                full = holder[key]
                cut = take(name, full)
                for namespace, attribute in places:
                    namespace[attribute] = cut
                    installed.hidden.append((namespace, attribute))
                installed.buffers.append(HiddenBuffer(self.slicing, name, holder, key, full, cut))
        for namespace, narrow, names in self.switched:
            for name in names:
                namespace[name] = getattr(narrow, name)
                installed.hidden.append((namespace, name))
        for namespace, module in self.recurrent:
            # Recurrent layers keep a list of their weights beside the attributes.
            installed.replaced.append((namespace, '_flat_weights', namespace['_flat_weights']))
            namespace['_flat_weights'] = [getattr(module, name) for name in namespace['_flat_weights_names']]


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
