"""Channel units: which axes of which parameters belong together, and which lengths they may get."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from numbers import Integral
from typing import Any

import torch
from torch import nn

from strop.errors import GraphError, listed, near
from strop.graph import elementwise_rules, layer_rules, layout_rules, length_rules  # noqa: F401  (they register themselves)
from strop.graph.forward import arguments_of
from strop.graph.inference import Axes, Call, Trace, trace
from strop.graph.lengths import Binary, Expr, LengthSystem, Number, Variable, text
from strop.graph.lengths import Relation as Equation
from strop.graph.sizes import AttributePath, LengthOf, Node, Operation
from strop.graph.slicing import Change, Slicing
from strop.graph.terms import NATURAL, Atom, Cat, Prod, Reason, Term, atoms, freeze, is_constant, length, owners, resolve, sizes


@dataclass(frozen=True)
class Placement:
    """One axis of one tensor in which a unit occurs.

    Args:
        tensor: Name of the parameter or buffer, as in the state dict.
        axis: The axis.
        term: What the whole axis is made of.
        atom: The unit's atom.
    """

    tensor: str
    axis: int
    term: Term = field(repr=False)
    atom: Atom = field(repr=False)

    @cached_property
    def index(self) -> torch.Tensor:
        """For every position of the axis, the index of the unit that it belongs to; -1 where it belongs to none."""
        return owners(self.term, self.atom)

    def __str__(self) -> str:
        return f'{self.tensor}[{self.axis}]'


@dataclass(frozen=True)
class FrozenAxis:
    """An axis of a parameter, or a part of it, that keeps its length.

    Args:
        tensor: Name of the parameter or buffer.
        axis: The axis.
        size: Length of the part that is kept.
        reason: What keeps it.
    """

    tensor: str
    axis: int
    size: int
    reason: Reason

    @property
    def kind(self) -> str:
        """Kind of the reason, as in `Reason`: `output`, `kernel`, `index`, `rule`, `tie`, ..."""
        return self.reason.kind

    def __str__(self) -> str:
        return f'{self.tensor}[{self.axis}] ({self.size}): {self.reason}'


@dataclass(frozen=True)
class ChannelUnit:
    """A set of axes that keep the same length: an index that is cut from one is cut from all.

    Args:
        name: The module whose outputs they are; `#n` tells several units of one axis apart.
        size: The number of indices.
        minimum: The smallest number that may stay.
        role: `channels`, `groups` (of a convolution or a norm), `heads` or `head_dim`.
        placements: Where the unit occurs.
        spans: Operators that mix values over its indices. Cutting then changes what the others become.
        ties: Units whose lengths are bound to this one's by what the code computes.
    """

    name: str
    size: int
    minimum: int
    role: str
    placements: tuple[Placement, ...] = field(repr=False)
    spans: tuple[str, ...] = ()
    ties: tuple[str, ...] = field(default=(), repr=False)
    atom: Atom = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """Return the unit as plain data."""
        return {
            'name': self.name,
            'size': self.size,
            'minimum': self.minimum,
            'role': self.role,
            'placements': [[place.tensor, place.axis] for place in self.placements],
            'structure': [layout(place.term, place.atom) for place in self.placements],
            'spans': list(self.spans),
            'ties': list(self.ties),
        }

    def __str__(self) -> str:
        notes = f', {self.role}' if self.role != 'channels' else ''
        notes += f', under {", ".join(self.spans)}' if self.spans else ''
        return f'{self.name}: {self.size}{notes}; ' + ', '.join(map(str, self.placements))


def layout(term: Term, atom: Atom) -> str:
    """Return the structure of an axis as text; `*` marks the unit.

    >>> one, two = Atom(3), Atom(4)
    >>> layout(Prod((one, two), 12), two)
    '3x*4'
    """
    term = resolve(term)
    if type(term) is Atom:
        return f'{"*" if term is atom else ""}{term.size}'
    if type(term) is Prod:
        return 'x'.join(
            f'({layout(part, atom)})' if type(resolve(part)) is Cat else layout(part, atom) for part in term.factors
        )
    return '+'.join(layout(part, atom) for part in term.segments)  # type: ignore[union-attr]


class ChannelGraph:
    """How the channels of a model hang together.

    Args:
        found: What a forward told.
        minimum: The smallest length of a unit. A length of 1 means "broadcast me" to many operators, so it is 2.
        ignored: Patterns of names of tensors or modules whose axes keep their lengths.

    Attributes:
        units: Name -> unit, in the order of the model's parameters.
        frozen: The axes of parameters that keep their lengths, with reasons.
        tensors: Name of each parameter and buffer -> its axes.
        shapes: Name of each parameter and buffer -> its shape.
        calls: The operator calls of the forward, tensors as axes.
        unreached: Parameters that the forward did not use.
        note: Why the model was run on real values, if it was.
    """

    def __init__(self, found: Trace, minimum: int = 2, ignored: Sequence[str] = ()) -> None:
        self.trace = found
        self.note = found.note
        self.calls: list[Call] = found.calls
        self.tensors = dict(found.tensors)
        self.tensors.update({str(path): terms for path, terms in found.attributes.items()})
        self.kept_attributes = {str(path): path for path in found.attributes}
        self.shapes = {name: sizes(terms) for name, terms in self.tensors.items()}
        self.unreached = tuple(name for name in found.parameters if name not in found.reached)
        self._minimum = minimum
        self._ignore(ignored)
        self._solve()
        self._name()

    # -- construction ----------------------------------------------------------------------

    def _ignore(self, ignored: Sequence[str]) -> None:
        for pattern in ignored:
            names = [name for name in self.tensors if fnmatch.fnmatchcase(name, pattern) or _inside(name, pattern)]
            if not names:
                raise GraphError(f'ignored={pattern!r} matches no parameter or module.{near(pattern, self._modules())}')
            for name in names:
                for term in self.tensors[name]:
                    freeze(term, Reason('ignored', repr(pattern)))

    def _modules(self) -> set[str]:
        return {name.rpartition('.')[0] for name in self.tensors}

    def _solve(self) -> None:
        self._variables: dict[Atom, Variable] = {}
        self._attributes: dict[AttributePath, Variable] = {}
        equations = []
        for relation in self.trace.relations:
            left, right = self._expression(relation.left), self._expression(relation.right)
            if type(left) is Number and type(right) is Number:
                continue
            where = f'{relation.what} in {relation.path!r}' if relation.path else relation.what
            equations.append(Equation(relation.op, left, right, relation.truth, where))
        self._whole = self._whole_axes()
        for atom, variable in self._variables.items():
            variable.minimum = self._least(atom)
            variable.fixed = atom.frozen is not None
        self.system = LengthSystem(equations)
        atom_of = {variable: atom for atom, variable in self._variables.items()}
        for variable, equation in self.system.locked.items():
            if variable in atom_of:
                literal = type(equation.left) is Number or type(equation.right) is Number
                told = f'{text(equation.left)} {equation.op} {text(equation.right)} ({equation.where})'
                freeze(atom_of[variable], Reason('literal' if literal else 'tie', told))

    def _least(self, atom: Atom) -> int:
        return min(1 if atom.size <= _SMALL and atom not in self._whole else self._minimum, atom.size)

    def _whole_axes(self) -> set[Atom]:
        """Return the small atoms that are an axis by themselves somewhere. The others are only ever parts of one."""
        whole: set[Atom] = set()
        for call in self.calls:
            for axes in call.out:
                for term in axes.terms:
                    if term.size <= _SMALL:
                        term = resolve(term)
                        if type(term) is Atom:
                            whole.add(term)
        return whole

    def _expression(self, node: Node) -> Expr:
        if type(node) is LengthOf:
            return self._length(node.term)
        if type(node) is AttributePath:
            variable = self._attributes.get(node)
            if variable is None:
                variable = Variable(str(node), self.trace.ints[node], attribute=True)
                self._attributes[node] = variable
            return variable
        if type(node) is Operation:
            left, right = self._expression(node.left), self._expression(node.right)
            if type(left) is Number and type(right) is Number:
                return Number(_COMPUTE[node.op](left.value, right.value))
            return Binary(node.op, left, right)
        return Number(node)  # type: ignore[arg-type]

    def _length(self, term: Term) -> Expr:
        term = resolve(term)
        if is_constant(term):
            return Number(term.size)
        if type(term) is Atom:
            return self._variable(term)
        parts, op = (term.factors, '*') if type(term) is Prod else (term.segments, '+')  # type: ignore[union-attr]
        total = self._length(parts[0])
        for part in parts[1:]:
            one = self._length(part)
            total = (
                Number(_COMPUTE[op](total.value, one.value)) if type(total) is type(one) is Number else Binary(op, total, one)
            )
        return total

    def _variable(self, atom: Atom) -> Variable:
        variable = self._variables.get(atom)
        if variable is None:
            variable = self._variables[atom] = Variable(f'axis {atom.serial}', atom.size)
        return variable

    def _name(self) -> None:
        places: dict[Atom, list[Placement]] = {}
        first: dict[Atom, tuple[str, int]] = {}
        self.frozen = []
        aliases = self.trace.aliases
        for name, terms in self.tensors.items():
            if name in aliases:
                continue
            for number, term in enumerate(terms):
                term = resolve(term)
                for atom in dict.fromkeys(atoms(term)):
                    if atom.frozen is not None:
                        self.frozen.append(FrozenAxis(name, number, atom.size, atom.frozen))
                    else:
                        places.setdefault(atom, []).append(Placement(name, number, term, atom))
        for atom in [atom for atom, found in places.items() if len(found) == 1 and _once(found[0], atom)]:
            # Tokens, latents, rows of a codebook: nothing else would become smaller with them.
            (place,) = places.pop(atom)
            freeze(atom, Reason('position', 'a parameter that nothing else shares'))
            self.frozen.append(FrozenAxis(place.tensor, place.axis, atom.size, atom.frozen))  # type: ignore[arg-type]
        # A unit is named after the weight that makes it, or else after whatever holds it.
        for least, gives in ((2, True), (1, True), (1, False)):
            for atom, found in places.items():
                if atom not in first:
                    for place in found:
                        given = not gives or place.axis == self.output_axis(place.tensor)
                        if given and len(self.tensors[place.tensor]) >= least:
                            first[atom] = place.tensor, place.axis
                            break
        order = {name: number for number, name in enumerate(self.tensors)}
        names: dict[Atom, str] = {}
        shared: dict[str, list[Atom]] = {}
        for atom in sorted(places, key=lambda atom: (order[first[atom][0]], first[atom][1], atom.serial)):
            tensor, number = first[atom]
            module = tensor.removesuffix('.weight') if tensor.endswith('.weight') else tensor
            if number and len(self.tensors[tensor]) > 1 and tensor.endswith('.weight') is False:
                module = f'{tensor}[{number}]'
            elif number != self.output_axis(tensor):
                module = f'{module}[{number}]'
            shared.setdefault(module, []).append(atom)
        for module, members in shared.items():
            for number, atom in enumerate(members):
                whole = len(members) == 1 and resolve(self.tensors[first[atom][0]][first[atom][1]]) is atom
                names[atom] = module if whole else f'{module}#{number}'
        for atom, name in names.items():
            if atom in self._variables:
                self._variables[atom].name = name
        ties: dict[Atom, list[str]] = {}
        backwards = {variable: atom for atom, variable in self._variables.items()}
        for component in self.system.components:
            members = [backwards[variable] for variable in component.variables if variable in backwards]
            units = [atom for atom in members if atom in names]
            for atom in units:
                ties[atom] = [names[other] for other in units if other is not atom]
        self.units: dict[str, ChannelUnit] = {}
        for atom, name in names.items():
            role = next((role for role in ('heads', 'head_dim', 'groups') if role in atom.marks), 'channels')
            self.units[name] = ChannelUnit(
                name,
                atom.size,
                self._least(atom),
                role,
                tuple(places[atom]),
                tuple(sorted(atom.spans)),
                tuple(ties.get(atom, ())),
                atom,
            )

    # -- lengths ---------------------------------------------------------------------------

    def unit(self, name: str) -> ChannelUnit:
        """Return a unit by name.

        Raises:
            GraphError: If there is none of that name; says why if an axis of that name is frozen.
        """
        if name in self.units:
            return self.units[name]
        for axis in self.frozen:
            if axis.kind not in ('kernel', 'input') and (axis.tensor == name or axis.tensor.rpartition('.')[0] == name):
                raise GraphError(f'{name!r} cannot be cut: {axis}.')
        raise GraphError(
            f'There is no unit {name!r}.{near(name, self.units)} There are {len(self.units)} units: {listed(self.units)}.'
        )

    def output_axis(self, tensor: str) -> int:
        """Return the axis of a weight that its layer gives out: 1 of a transposed convolution, 0 of most others."""
        return int(tensor in self.trace.second)

    def fit(self, lengths: Mapping[str, int], rounding: int = 1) -> dict[str, int]:
        """Return the nearest lengths of all units that satisfy every tie and minimum.

        Args:
            lengths: Wanted lengths, by unit. The others stay whole where the ties let them.
            rounding: Multiples to prefer.

        Raises:
            GraphError: If a unit does not exist, or a length is no int.
        """
        wanted = {self.unit(name).atom: _whole(name, value) for name, value in lengths.items()}
        values = self._fitted(wanted, rounding)
        return {name: values.get(unit.atom, unit.size) for name, unit in self.units.items()}

    def _fitted(self, wanted: Mapping[Atom, int], rounding: int = 1) -> dict[Atom, int]:
        values: dict[Atom, int] = {}
        targets = {}
        for atom, target in wanted.items():
            if atom in self._variables:
                targets[self._variables[atom]] = target
            else:
                least = self._least(atom)
                values[atom] = _rounded(min(max(target, least), atom.size), rounding, least, atom.size)
        self._solution = self.system.fit(targets, rounding)
        for atom, variable in self._variables.items():
            if variable in self._solution.values:
                values[atom] = self._solution.values[variable]
        return values

    def slicing(self, keep: Mapping[str, Sequence[int] | torch.Tensor]) -> Slicing:
        """Return what has to be cut and mended so that each named unit keeps only those indices, in that order.

        Raises:
            GraphError: If a unit does not exist or cannot be cut, an index is out of range or twice there, too few stay,
                or the lengths break a tie (the message names the nearest lengths that do not).
        """
        indices: dict[str, torch.Tensor] = {}
        for name, chosen in keep.items():
            unit = self.unit(name)
            index = _index(name, chosen)
            if index.numel() and (int(index.min()) < 0 or int(index.max()) >= unit.size):
                wrong = int(index.max()) if int(index.max()) >= unit.size else int(index.min())
                raise GraphError(f'Unit {name!r} has indices 0 to {unit.size - 1}; got {wrong}.')
            if index.unique().numel() != index.numel():
                raise GraphError(f'An index of unit {name!r} is kept twice. Every index may be kept once.')
            if index.numel() < unit.minimum:
                raise GraphError(
                    f'Unit {name!r} must keep at least {unit.minimum} of its {unit.size} indices; got {index.numel()}.'
                )
            indices[name] = index
        wanted = {self.units[name].atom: len(index) for name, index in indices.items()}
        values = self._fitted(wanted)
        moved = {
            name: values[unit.atom]
            for name, unit in self.units.items()
            if values.get(unit.atom, unit.size) != wanted.get(unit.atom, unit.size)
        }
        if moved:
            broken = self.system.check({self._variables[a]: n for a, n in wanted.items() if a in self._variables})
            told = f' ({broken[0].where})' if broken else ''
            raise GraphError(
                f'These lengths do not fit together{told}: the nearest that do have '
                f'{listed(f"{n}={v}" for n, v in moved.items())}. graph.fit(lengths) returns lengths that do.'
            )
        cut = {self.units[name].atom: index for name, index in indices.items()}
        for atom, value in values.items():
            if atom not in cut and value != atom.size:
                cut[atom] = torch.arange(value, device='cpu')  # an axis that no parameter has
        changes = []
        for path, variable in self._attributes.items():
            new = self._solution.values.get(variable, variable.size)
            if new != variable.size:
                changes.append(Change(path.module, path.keys, variable.size, new))
        return Slicing(self, indices, cut, tuple(changes))

    def prefix(self, lengths: Mapping[str, int]) -> Slicing:
        """Return the slicing that keeps the first indices of each unit.

        Raises:
            GraphError: As `slicing`.
        """
        return self.slicing({name: torch.arange(max(_whole(name, value), 0), device='cpu') for name, value in lengths.items()})

    def shrink(
        self,
        model: nn.Module,
        keep: Mapping[str, Sequence[int] | torch.Tensor],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        inplace: bool = False,
    ) -> nn.Module:
        """Return `model` with only the kept indices of each unit.

        Args:
            model: The model that was traced.
            keep: Unit -> indices that stay.
            optimizer: An optimizer of the model, whose state is cut along; only with `inplace`.
            inplace: Whether to cut the given model. Its parameters stay the same objects then.

        Raises:
            GraphError: As `slicing`; nothing is changed then.
        """
        return self.slicing(keep).apply(model, optimizer=optimizer, inplace=inplace)

    # -- counting --------------------------------------------------------------------------

    def shape(self, name: str, lengths: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Return the shape of a tensor when the units have `lengths`."""
        values = {self.units[unit].atom: value for unit, value in (lengths or {}).items()}
        return tuple(length(term, values) for term in self.tensors[name])

    def parameters(self, lengths: Mapping[str, int] | None = None) -> int:
        """Return the number of parameters when the units have `lengths` (fitted ones: `fit`); tied ones count once."""
        values = {self.unit(unit).atom: value for unit, value in (lengths or {}).items()}
        return sum(
            prod(length(term, values) for term in self.tensors[name])
            for name in self.trace.parameters
            if name not in self.trace.aliases
        )

    def locked_share(self) -> float:
        """Return the share of the parameters that keep an axis for want of a rule or of a solved tie."""
        total = locked = 0.0
        for name in self.trace.parameters:
            if name in self.trace.aliases:
                continue
            count = prod(self.shapes[name])
            total += count
            locked += count * max((_locked(term) / term.size for term in self.tensors[name] if term.size), default=0.0)
        return locked / total if total else 0.0

    # -- telling ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[ChannelUnit]:
        return iter(self.units.values())

    def __len__(self) -> int:
        return len(self.units)

    def __str__(self) -> str:
        lines = [f'{len(self.units)} units, {sum(unit.size for unit in self)} channels']
        lines += [f'  {unit}' for unit in self]
        frozen = [axis for axis in self.frozen if axis.kind not in ('kernel', 'input')]
        if frozen:
            lines.append('frozen')
            lines += [f'  {axis}' for axis in frozen]
        if self.unreached:
            lines.append(f'not reached by the forward: {listed(self.unreached)}')
        if self.note:
            lines.append(self.note)
        return '\n'.join(lines)

    def __repr__(self) -> str:
        return f'ChannelGraph({len(self.units)} units, {sum(unit.size for unit in self)} channels)'

    def to_dict(self) -> dict[str, Any]:
        """Return units and frozen axes as plain data."""
        return {
            'units': [unit.to_dict() for unit in self],
            'frozen': [
                {'tensor': axis.tensor, 'axis': axis.axis, 'size': axis.size, 'kind': axis.kind, 'reason': str(axis.reason)}
                for axis in self.frozen
            ],
            'unreached': list(self.unreached),
            'note': self.note,
        }


_SMALL = 16

_COMPUTE = {
    '+': lambda a, b: a + b,
    '-': lambda a, b: a - b,
    '*': lambda a, b: a * b,
    '//': lambda a, b: a // b,
    '%': lambda a, b: a % b,
}


def _whole(name: str, value: Any) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise GraphError(f'The length of unit {name!r} is an int; got {value!r}.')


def _index(name: str, chosen: Any) -> torch.Tensor:
    try:
        index = chosen.detach().cpu() if isinstance(chosen, torch.Tensor) else torch.as_tensor(chosen, device='cpu')
    except (TypeError, ValueError, RuntimeError):
        raise GraphError(f'The indices of unit {name!r} are a sequence of ints; got {chosen!r}.') from None
    if not index.numel():
        return torch.zeros(0, dtype=torch.long, device='cpu')
    if index.dtype == torch.bool:
        raise GraphError(f'The indices of unit {name!r} are ints; got a mask. mask.nonzero() gives its indices.')
    if index.is_floating_point() or index.is_complex():
        raise GraphError(f'The indices of unit {name!r} are ints; got {index.dtype}.')
    return index.long().flatten()


def _once(place: Placement, atom: Atom) -> bool:
    """Say whether an atom occurs once in an axis; queries and keys of one projection share theirs."""
    return sum(part is atom for part in atoms(place.term)) == 1


def _inside(name: str, module: str) -> bool:
    parts = name.split('.')
    return any(fnmatch.fnmatchcase('.'.join(parts[:count]), module) for count in range(1, len(parts)))


def _rounded(target: int, step: int, least: int, size: int) -> int:
    if step <= 1 or target == size or size < 2 * step:
        return target
    return min(max(round(target / step) * step, step, least), size)


def _locked(term: Term) -> int:
    """Return how many positions of an axis stay for want of a rule or of a solved tie."""
    term = resolve(term)
    if type(term) is Cat:
        return sum(_locked(part) for part in term.segments)
    every = list(atoms(term))
    frozen = [atom.frozen for atom in every if atom.frozen is not None]
    wanting = any(reason.kind not in NATURAL for reason in frozen)
    return term.size if every and len(frozen) == len(every) and wanting else 0


def channel_units(model: nn.Module, inputs: Any, *, ignored: str | Iterable[str] = (), minimum: int = 2) -> ChannelGraph:
    """Run `model` once and return which channels hang together.

    The forward computes nothing and leaves the model untouched. Only where it must look at values does it run on real
    tensors; `ChannelGraph.note` says so then.

    Args:
        model: Any module. What it returns keeps its shape.
        inputs: Example inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments. A batch of 2 or
            more tells axes of the batch from axes of length 1.
        ignored: Patterns (`fnmatch`) of names of parameters or modules whose axes keep their lengths.
        minimum: The smallest length that a unit may get.

    Raises:
        GraphError: If there are no example inputs, or the model raises on them.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    >>> print(channel_units(model, torch.zeros(2, 3, 8, 8)).units['0'])
    0: 8; 0.weight[0], 0.bias[0], 1.weight[0], 1.bias[0], 1.running_mean[0], 1.running_var[0], 2.weight[1]
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError('A model inside DistributedDataParallel cannot be cut. Cut it first (model.module), then wrap it.')
    if not isinstance(model, nn.Module):
        raise GraphError(f'The model is an nn.Module; got {type(model).__name__}.')
    args, kwargs = arguments_of(inputs)
    patterns = [ignored] if isinstance(ignored, str) else list(ignored)
    return ChannelGraph(trace(getattr(model, '_orig_mod', model), args, kwargs), minimum, patterns)


__all__ = ['Axes', 'ChannelGraph', 'ChannelUnit', 'FrozenAxis', 'Placement', 'channel_units', 'layout']
