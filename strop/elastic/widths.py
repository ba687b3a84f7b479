"""A model at an active width: the slices of its tensors take the place of the whole ones during a forward."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.elastic.hiding import Hidden, Plan, own_tensors
from strop.errors import BindingError, ConfigError, GraphError, listed, near
from strop.graph.forward import in_double
from strop.graph.sizes import read_attribute
from strop.graph.terms import atoms, kept
from strop.mutables import Attachment, L1MutableChannelUnit, MutableChannelUnit, extract

#: Name of the child that `ElasticWidths` becomes in its model.
CHILD = 'elastic_widths'

_PLANS = 32  # as many widths are kept ready


class ElasticWidths(Attachment):
    """The active widths of a model's channel units.

    During a forward at less than full width, each parameter and buffer that is cut is hidden by its slice, and sizes
    that Python code reads (`groups`, `num_heads`, ...) are mended. Outside of a forward the model is whole: its
    `parameters()` and `state_dict()` are the full ones, gradients arrive in them, and running statistics are updated in
    place. At full width nothing is done at all. The widths act in forwards of `model` itself: a child of it that is called
    by itself (`model.backbone(x)`) is whole, unless that happens within `active`.

    It becomes the child `elastic_widths` of the model, so copies and pickles of the model have their own.

    Args:
        model: The model that `graph` was made of. It gets this child and two forward hooks.
        graph: What `strop.graph.channel_units` found in it.
        units: Decisions of widths, one for each unit that may vary. Without them widths are set by `set`.

    Raises:
        BindingError: If the model has widths already.
        GraphError: If a decision names no unit of the graph, or has another number of channels.

    >>> from strop.graph import channel_units
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> widths = ElasticWidths(model, channel_units(model, torch.zeros(1, 4)))
    >>> widths.set({'0': 3})
    >>> model(torch.zeros(1, 4)).shape, model[0].weight.shape
    (torch.Size([1, 2]), torch.Size([8, 4]))
    >>> widths.extract(model)[0]
    Linear(in_features=4, out_features=3, bias=True)
    """

    def __init__(self, model: nn.Module, graph: Any, units: Sequence[MutableChannelUnit] = ()) -> None:
        super().__init__()
        if any(isinstance(child, ElasticWidths) for child in model.children()):
            raise BindingError(
                f'This {type(model).__name__} has elastic widths already. Call release(model) on its {CHILD!r} first.'
            )
        self._held = _Shared(graph)
        #: What made these widths, so that the same one may take them over.
        self.origin: str | None = None
        for unit in units:
            self._check_unit(unit)
        self.units = nn.ModuleList(units)
        self._kept: dict[str, torch.Tensor] = {}
        self._lengths: dict[str, int] = {}
        self._state: Any = None
        self._norm_paths: list[str] = []
        self._settings: list[dict[str, int]] = []
        self.norms = nn.ModuleList()
        self._clear()
        model.add_module(CHILD, self)
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after, always_call=True)
        model.register_state_dict_pre_hook(self._recover)
        self.sync(model)

    def _clear(self) -> None:
        self._slicing: Any = None
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._open: list[Hidden] = []
        self._suspended = 0
        self._kept_open = 0

    def __getstate__(self) -> dict[str, Any]:
        # Plans hold references to the modules of this model, and are made anew where they are needed.
        state = dict(self.__dict__)
        for name in ('_plans', '_open', '_suspended', '_kept_open', '_slicing'):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._clear()
        self._slicing = self._sliced(self._lengths, self._kept)

    def _check_unit(self, unit: MutableChannelUnit) -> None:
        known = self.graph.units
        if unit.unit not in known:
            raise GraphError(f'{unit.unit!r} is no channel unit of the model.{near(unit.unit, known)} It has {listed(known)}.')
        if known[unit.unit].size != unit.num_channels:
            raise GraphError(
                f'The unit {unit.unit!r} has {known[unit.unit].size} channels, but its decision is about {unit.num_channels}.'
            )

    # -- widths ----------------------------------------------------------------------------

    @property
    def graph(self) -> Any:
        """The channel units of the model."""
        return self._held.value

    @property
    def current(self) -> dict[str, int]:
        """The active number of channels of every unit."""
        return {name: self._lengths.get(name, unit.size) for name, unit in self.graph.units.items()}

    @property
    def indices(self) -> dict[str, torch.Tensor]:
        """The active channels of every unit, in order."""
        return {name: self._kept.get(name, torch.arange(length)) for name, length in self.current.items()}

    @property
    def full(self) -> bool:
        """Whether every unit has its full width."""
        return not self._lengths

    @property
    def slicing(self) -> Any:
        """The `Slicing` of the current widths; None at full width."""
        return self._slicing

    def set(self, lengths: Mapping[str, int]) -> None:
        """Make widths current: the first channels of each unit. Units that are left out have their full width.

        Where Python code binds the lengths of units to each other, the nearest lengths that it allows are taken;
        `current` has them.

        Raises:
            GraphError: If a unit is unknown or a length is out of range; nothing changes then.
            BindingError: If the widths are decided by mutables.
        """
        self._refuse_decided('set')
        self._set(lengths)

    def set_indices(self, indices: Mapping[str, Any]) -> None:
        """Make some channels of each unit current, given as sorted indices. Units that are left out stay whole.

        Raises:
            GraphError: If a unit is unknown, an index is out of range or no whole number, or lengths that are bound to each
                other don't fit.
            BindingError: If the widths are decided by mutables.
        """
        self._refuse_decided('set_indices')
        checked = self.graph.slicing(dict(indices)).indices
        self._set_indices({name: checked[name] for name in indices})

    def _refuse_decided(self, verb: str) -> None:
        if len(self.units):
            raise BindingError(
                f'These widths are decided by {len(self.units)} mutables: use set_subnet of their mutator, not {verb}().'
            )

    def _set(self, lengths: Mapping[str, int]) -> None:
        units = self.graph.units
        for name, length in lengths.items():
            if not 1 <= int(length) <= self.graph.unit(name).size:
                raise GraphError(f'The unit {name!r} has 1 to {units[name].size} channels, but {length} are asked for.')
        fitted = self.graph.fit({name: int(length) for name, length in lengths.items()})
        cut = {name: length for name, length in fitted.items() if length != units[name].size}
        self._slicing = self._sliced(cut, {})
        self._lengths, self._kept = cut, {}

    def _set_indices(self, indices: Mapping[str, torch.Tensor]) -> None:
        units = self.graph.units
        cut = {name: kept for name, kept in indices.items() if name not in units or len(kept) != units[name].size}
        self._slicing = self._sliced({name: len(kept) for name, kept in cut.items()}, cut)
        self._lengths, self._kept = {name: len(kept) for name, kept in cut.items()}, dict(cut)

    def _sliced(self, lengths: Mapping[str, int], kept: Mapping[str, torch.Tensor]) -> Any:
        if not lengths:
            return None
        return self.graph.slicing(kept) if kept else self.graph.prefix(lengths)

    def sync(self, model: nn.Module) -> None:
        """Bring the widths into line with the decisions of the units, if there are any.

        A unit that is undecided has its full width.
        """
        if not len(self.units):
            return
        state = [unit._decision for unit in self.units]
        if state == self._state:
            return
        lengths = {unit.unit: unit() for unit in self._decided()}
        if any(unit.ranked for unit in self._decided()):
            self._set_indices(self._ranked(model, self.graph.fit(lengths)))
        else:
            self._set(lengths)
        self._state = state

    def forget(self) -> None:
        """Look at the decisions anew at the next `sync`, though they are the same: the chosen channels were exchanged."""
        self._state = None

    def _decided(self) -> list[MutableChannelUnit]:
        return [unit for unit in self.units if isinstance(unit, MutableChannelUnit) and unit.decision is not None]

    def _ranked(self, model: nn.Module, lengths: Mapping[str, int]) -> dict[str, torch.Tensor]:
        kept = {name: torch.arange(length) for name, length in lengths.items()}
        for unit in self._decided():
            if isinstance(unit, L1MutableChannelUnit):
                kept[unit.unit] = torch.tensor(unit.rank(l1_scores(model, self.graph.units[unit.unit]), lengths[unit.unit]))
        return kept

    # -- the forward -----------------------------------------------------------------------

    # Not to be traced by a compiler, which would not see that the attributes of other modules change. It does what
    # torch.compiler.disable does without importing the compiler for everybody, as torch's own optimizers have it.
    @torch._disable_dynamo
    def _before(self, model: nn.Module, inputs: Any) -> None:
        self._recover(model)
        if self._suspended:
            return
        self.sync(model)
        if self._slicing is not None:
            self._install(model)

    @torch._disable_dynamo
    def _after(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if self._open and not self._suspended:
            self._open.pop().restore()

    def _recover(self, model: nn.Module, *unused: Any) -> None:
        """Put back what a forward hid that was interrupted (Ctrl-C), after which torch calls no hooks."""
        if self._open and not self._kept_open and not _calls_itself(model):
            while self._open:
                self._open.pop().restore()

    def _install(self, model: nn.Module) -> None:
        if self._open:
            # A model that calls itself, or one within `active`: what is there stays until the first one is done.
            self._open.append(Hidden())
            return
        installed = Hidden()
        try:
            self._plan(model).install(installed)
        except BaseException:
            installed.restore()
            raise
        self._open.append(installed)

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[None]:
        """Keep the slices in place for a block: for methods other than the forward, and for checkpointed activations.

        What recomputes activations in the backward needs the widths then, too: put both into the block. The model
        can't be copied or saved inside of it.

        >>> from strop.graph import channel_units
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> widths = ElasticWidths(model, channel_units(model, torch.zeros(1, 4)))
        >>> widths.set({'0': 3})
        >>> with widths.active(model):
        ...     model[0].weight.shape
        torch.Size([3, 4])
        """
        self._before(model, ())
        self._kept_open += 1
        try:
            yield
        finally:
            self._kept_open -= 1
            self._after(model, (), None)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Run the model at full width inside the block, whatever is decided."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    def _plan(self, model: nn.Module) -> Plan:
        setting = self._setting()
        key = (id(model), setting, tuple(self._lengths.items()), None if not self._kept else id(self._slicing))
        plan = self._plans.get(key)
        if plan is None or plan.model() is not model:
            plan = self._plans[key] = Plan(model, self._slicing, self._switched(model, setting))
            while len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return plan

    # -- batch norms of their own ----------------------------------------------------------

    def switch_norms(self, model: nn.Module, settings: Sequence[Mapping[str, int]]) -> None:
        """Give each of several widths batch norms of its own, as slimmable networks have them.

        Yu et al., Slimmable Neural Networks, https://arxiv.org/abs/1812.08928. The model's own batch norms stay those of the
        full width; those of other widths start from slices of them and are parameters of this child.

        Args:
            model: The model.
            settings: The widths, each as unit -> length.

        Raises:
            ConfigError: If two of the widths are the same.
        """
        fitted = [self._cut(self.graph.fit(dict(lengths))) for lengths in settings]
        if any(fitted[index] in fitted[:index] for index in range(len(fitted))):
            raise ConfigError('Widths with batch norms of their own must differ, but two of them are the same.')
        paths = [path for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
        paths = [path for path in paths if path.split('.')[0] != CHILD]
        norms = []
        for lengths in fitted:
            slicing = self._sliced(lengths, {})
            norms.append(nn.ModuleList(() if slicing is None else (_narrow_norm(model, path, slicing) for path in paths)))
        self._norm_paths, self._settings = paths, fitted
        self.norms = nn.ModuleList(norms)
        self._plans.clear()

    @torch.no_grad()
    def restart_norms(self, model: nn.Module) -> None:
        """Start the batch norms of narrow widths anew, from slices of the model's own."""
        for lengths, norms in zip(self._settings, self.norms, strict=True):
            slicing = self._sliced(lengths, {})
            for path, norm in zip(self._norm_paths, norms, strict=False):  # type: ignore[call-overload]
                fresh = dict(own_tensors(_narrow_norm(model, path, slicing)))
                for name, tensor in own_tensors(norm):
                    tensor.copy_(fresh[name])

    def _cut(self, lengths: Mapping[str, int]) -> dict[str, int]:
        return {name: length for name, length in lengths.items() if length != self.graph.units[name].size}

    def _setting(self) -> int | None:
        if not self._settings:
            return None
        if self._lengths not in self._settings:
            if not self._lengths:
                return None
            raise ConfigError(
                f'Batch norms were made for {len(self._settings)} widths, and the current one is none of them: {self._lengths}.'
            )
        return self._settings.index(self._lengths)

    def _switched(self, model: nn.Module, setting: int | None) -> list[tuple[nn.Module, nn.Module]]:
        if setting is None or not self._lengths:
            return []
        norms: Any = self.norms[setting]
        return [(model.get_submodule(path), norm) for path, norm in zip(self._norm_paths, norms, strict=True)]

    # -- the order of channels -------------------------------------------------------------

    @torch.no_grad()
    def sort(self, model: nn.Module, scores: Mapping[str, torch.Tensor] | None = None) -> None:
        """Reorder the channels of each unit, in place, by falling score: a narrow width then has the best ones.

        The model computes what it did, up to the rounding of sums in another order. Do it before training: the state of
        an optimizer does not follow.

        Args:
            model: The model.
            scores: Unit -> score of each channel, shape `(size,)`; the L1 norms of `l1_scores` for all units by default.

        Raises:
            GraphError: If a unit is unknown or its scores have another shape; nothing changes then.
            BindingError: If batch norms were switched already.
        """
        if self._settings:
            raise BindingError('Sort the channels before batch norms are made for each width: their slices would not follow.')
        graph = self.graph
        if scores is None:
            scores = {name: l1_scores(model, unit) for name, unit in graph.units.items()}
        orders = {}
        for name, values in scores.items():
            unit = graph.unit(name)
            if tuple(values.shape) != (unit.size,):
                raise GraphError(f'Scores of {name!r} need the shape ({unit.size},), but have {tuple(values.shape)}.')
            orders[unit.atom] = torch.argsort(values.cpu(), descending=True, stable=True)
        seen: set[int] = set()
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, terms in graph.tensors.items():
            if name in graph.kept_attributes:
                tensor = read_attribute(modules[graph.kept_attributes[name].module], graph.kept_attributes[name].keys)
            else:
                path, _, key = name.rpartition('.')
                tensor = getattr(modules[path], key)
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            for axis, term in enumerate(terms):
                if any(atom in orders for atom in atoms(term)):
                    tensor.copy_(tensor.index_select(axis, kept(term, orders).to(tensor.device)))
        # Channels that were chosen by what they are, and not as the first ones, are elsewhere now.
        places = {name: torch.argsort(orders[unit.atom]) for name, unit in graph.units.items() if unit.atom in orders}
        if not len(self.units):
            moved = {name: places[name][chosen].sort().values for name, chosen in self._kept.items() if name in places}
            if moved:
                self._set_indices({**self._kept, **moved})
            return
        for unit in self._decided():
            if isinstance(unit, L1MutableChannelUnit) and unit.kept is not None and unit.unit in places:
                unit.kept = tuple(sorted(places[unit.unit][list(unit.kept)].tolist()))
        self.forget()
        self.sync(model)

    # -- leaving ---------------------------------------------------------------------------

    def extract(self, model: nn.Module) -> nn.Module:
        """Return a static copy of `model` at the current widths, without this child."""
        return extract(model)

    def settle(self, parent: nn.Module) -> None:
        """Cut `parent` to the current widths, in place, and leave it."""
        self.sync(parent)
        switched = self._switched(parent, self._setting())
        slicing = self._slicing
        self.release(parent)
        if slicing is None:
            return
        slicing.apply(parent, inplace=True)
        with torch.no_grad():
            for norm, narrow in switched:
                for name, tensor in own_tensors(norm):
                    tensor.copy_(getattr(narrow, name))

    def release(self, parent: nn.Module) -> None:
        """Leave `parent`, the model: it is whole again, and this child and its hooks are gone from it."""
        model = parent
        self._recover(model)
        for hooks in (model._forward_pre_hooks, model._forward_hooks, model._state_dict_pre_hooks):
            for number in [number for number, hook in hooks.items() if getattr(hook, '__self__', None) is self]:
                del hooks[number]
                model._forward_hooks_always_called.pop(number, None)
        for name in [name for name, child in model._modules.items() if child is self]:
            del model._modules[name]

    def extra_repr(self) -> str:
        cut = sum(self.graph.units[name].size != length for name, length in self.current.items())
        return f'{len(self.graph.units)} channel units, {cut} of them narrowed'


class _Shared:
    """Holds what copies of a model may share, since it is never changed."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Calls name operators, which cannot be pickled; a slice needs the terms of the tensors and the equations alone.
        graph = copy.copy(self.value)
        graph.trace = graph.trace._replace(calls=[])
        graph.calls = []
        return {'value': graph}


def _calls_itself(model: nn.Module) -> bool:
    """Tell whether a call of `model` is under way on this thread, beside the one that asks."""
    frame, calls = sys._getframe(1), 0
    while frame is not None:
        if frame.f_code.co_name == '_call_impl' and frame.f_locals.get('self') is model:
            calls += 1
        frame = frame.f_back  # type: ignore[assignment]
    return calls > 1


def _narrow_norm(model: nn.Module, path: str, slicing: Any) -> nn.Module:
    norm = copy.deepcopy(model.get_submodule(path))
    for name, tensor in own_tensors(norm):
        full = f'{path}.{name}'
        if full in slicing.graph.tensors:
            cut = slicing.take(full, tensor.detach()).clone()
            holder: dict[str, Any] = norm._parameters if name in norm._parameters else norm._buffers
            holder[name] = nn.Parameter(cut, tensor.requires_grad) if name in norm._parameters else cut
            norm.num_features = norm.num_features if cut.dim() == 0 else len(cut)  # type: ignore[assignment]
    return norm


def l1_scores(model: nn.Module, unit: Any) -> torch.Tensor:
    """Return the mean L1 norm of the weights that produce each channel of a unit, shape `(size,)`.

    Those are the matrices and kernels that have the channels on their first axis; where there is none, all that have them.
    """
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    # Tensors that are plain attributes are none of these.
    known = [place for place in unit.placements if place.tensor in tensors]
    floats = [place for place in known if tensors[place.tensor].is_floating_point()]
    weights = [place for place in floats if tensors[place.tensor].dim() > 1]
    producers = [place for place in weights if place.axis == 0] or weights or floats
    scores = torch.zeros(unit.size, dtype=torch.float64)
    for place in producers:
        tensor = tensors[place.tensor].detach().transpose(0, place.axis).flatten(1 if tensors[place.tensor].dim() > 1 else 0)
        norms = in_double(tensor.abs()).reshape(tensor.shape[0], -1).sum(1).cpu()
        inside = place.index >= 0
        scores.index_add_(0, place.index[inside].cpu(), norms[inside.cpu()])
    return scores / max(len(producers), 1)
