"""What a model costs at any widths of its channel units, from one trace and without cutting it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from strop.estimators.op_costs import has_rule, macs
from strop.graph import ChannelGraph
from strop.graph.inference import Axes, Call
from strop.graph.terms import Atom, atoms, length, resolve


class WidthCosts:
    r"""Multiply-adds and parameters of a model at any lengths of its units.

    .. math:: \mathrm{MACs}(l) = \sum_{call} \mathrm{MACs}_{call}(\text{shapes at the lengths } l)

    Every call of the traced forward is priced by the table of `macs_of`, with the shapes that its tensors have at those
    lengths; the sum is what `count` gives for the model cut to them. What a call costs is kept for the lengths that it
    depends on, so many widths are priced fast.

    Args:
        graph: What `strop.graph.channel_units` found; its example inputs decide the batch and the resolution.

    >>> from strop.graph import channel_units
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
    >>> costs = WidthCosts(channel_units(net, torch.rand(5, 3)))
    >>> costs.macs(), costs.macs({'0': 4}), costs.params({'0': 4})
    (200, 100, 26)
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._calls = [_Priced(call) for call in graph.calls if has_rule(call.func)]
        free = {atom for priced in self._calls for atom in priced.atoms}
        own = {unit.atom for unit in graph}
        # Axes that no parameter has follow the units; only where there are some is the slicing needed to know them.
        self._derived = any(atom not in own and atom.frozen is None for atom in free)
        parameters = [name for name in graph.trace.parameters if name not in graph.trace.aliases]
        self._parameters = [[resolve(term) for term in graph.tensors[name]] for name in parameters]

    def macs(self, lengths: Mapping[str, int] | None = None) -> int:
        """Return the multiply-adds of one forward on inputs of the traced shapes, their batch included.

        Args:
            lengths: Unit -> length, as `ChannelGraph.fit` gives them; units that are left out stay whole.

        Raises:
            GraphError: If a unit does not exist or the lengths do not fit together.
        """
        values = self._values(lengths, self._derived)
        return sum(call.macs(values) for call in self._calls)

    def macs_by_module(self, lengths: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return path of the module that calls an operator -> its multiply-adds, modules inside it not included.

        >>> from strop.graph import channel_units
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
        >>> WidthCosts(channel_units(net, torch.rand(5, 3))).macs_by_module({'0': 4})
        {'0': 60, '1': 40}
        """
        values = self._values(lengths, self._derived)
        found: dict[str, int] = {}
        for call in self._calls:
            found[call.call.path] = found.get(call.call.path, 0) + call.macs(values)
        return found

    def params(self, lengths: Mapping[str, int] | None = None) -> int:
        """Return the number of parameters, those that several modules share counted once."""
        values = self._values(lengths, derived=False)
        return sum(prod(length(term, values) for term in terms) for terms in self._parameters)

    def _values(self, lengths: Mapping[str, int] | None, derived: bool) -> dict[Atom, int]:
        if not lengths:
            return {}
        if derived:
            return {atom: len(index) for atom, index in self.graph.prefix(lengths).cut.items()}
        return {self.graph.unit(name).atom: int(value) for name, value in lengths.items()}


class _Priced:
    """A call, the atoms that its tensors are made of, and what it costs at the lengths seen so far."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.out = call.out[0] if len(call.out) == 1 else call.out
        found: dict[Atom, None] = {}

        def visit(value: Any) -> None:
            if isinstance(value, Axes):
                found.update((atom, None) for term in value.terms for atom in atoms(resolve(term)))
            elif isinstance(value, (tuple, list)):
                for item in value:
                    visit(item)

        visit((self.out, call.args, list(call.kwargs.values())))
        self.atoms = [atom for atom in found if atom.frozen is None]
        self.known: dict[tuple[int, ...], int] = {}

    def macs(self, values: Mapping[Atom, int]) -> int:
        key = tuple(values.get(atom, atom.size) for atom in self.atoms)
        if key not in self.known:
            args = _shaped(self.call.args, values)
            kwargs = {name: _shaped(value, values) for name, value in self.call.kwargs.items()}
            self.known[key] = macs(self.call.func, _shaped(self.out, values), args, kwargs)
        return self.known[key]


def _shaped(value: Any, lengths: Mapping[Atom, int]) -> Any:
    if isinstance(value, Axes):
        return torch.empty([length(term, lengths) for term in value.terms], device='meta')
    if type(value) in (tuple, list):
        return type(value)(_shaped(item, lengths) for item in value)
    return value
