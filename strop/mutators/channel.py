"""Mutators of channels: the widths of any traced model as decisions beside its other ones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from strop.data import DefaultDemoInput
from strop.elastic import ElasticWidths
from strop.errors import BindingError, ComponentTypeError, ConfigError, GraphError, SubnetError, listed
from strop.graph import ChannelGraph, channel_units
from strop.mutables import (
    InputChoice,
    LayerChoice,
    Mutable,
    MutableChannelUnit,
    Repeat,
    SlimmableChannelUnit,
    Subnet,
    bind,
    intercept,
)
from strop.mutables.choice import reduce_outputs
from strop.mutables.value import truth_table
from strop.mutators.channel_configs import (
    PARSE,
    kept_whole,
    parse_config,
    unit_config,
    unit_config_of_first_release,
    unit_of,
    widths_of_networks,
)
from strop.mutators.random import OneShotMutator
from strop.registry import MODELS, TASK_UTILS


def demo_inputs(model: nn.Module, demo_input: Any) -> Any:
    """Return example inputs for `model` from what a config or a person gives.

    Args:
        model: The model; inputs that are made here get the device and dtype of its parameters.
        demo_input: A shape, the config `dict(type='DefaultDemoInput', input_shape=...)` of one, tensors (in a tuple or
            dict), or a function of the model that returns them. Of a shape, a model of mmpretrain, mmdet or mmseg gets a batch
            with data samples.

    Raises:
        ConfigError: If it is none of these.

    >>> demo_inputs(nn.Linear(4, 2), (2, 4)).shape
    torch.Size([2, 4])
    """
    if isinstance(demo_input, Mapping) and ('input_shape' in demo_input or str(demo_input.get('type')).endswith('DemoInput')):
        return TASK_UTILS.build({'type': 'DefaultDemoInput', **demo_input})(model)
    if isinstance(demo_input, (list, tuple, torch.Size)) and demo_input and all(type(size) is int for size in demo_input):
        return DefaultDemoInput(demo_input)(model)
    if isinstance(demo_input, torch.Tensor):
        return demo_input
    if isinstance(demo_input, Mapping) and demo_input and 'type' not in demo_input:
        return dict(demo_input)
    if isinstance(demo_input, (list, tuple)) and any(isinstance(part, torch.Tensor) for part in demo_input):
        return tuple(demo_input)
    if callable(demo_input):
        return demo_input(model)
    raise ConfigError(
        "`demo_input` must be a shape such as (1, 3, 224, 224), dict(type='DefaultDemoInput', input_shape=...), tensors, or a "
        f'function of the model that returns them, but got {demo_input!r}.'
    )


@TASK_UTILS.register_module()
class ChannelAnalyzer:
    """MMRazor's name for finding the channel units of a model; `strop.channel_units` tells more.

    Args:
        demo_input: What the model is run on; see `demo_inputs`.
        tracer_type: Accepted and without effect: models are traced by running them once.

    >>> analyzer = ChannelAnalyzer(demo_input=(2, 4))
    >>> analyzer.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    {'0': {'init_args': {'num_channels': 8}, 'channels': [['0.weight', 0], ['0.bias', 0], ['2.weight', 1]]}}
    """

    def __init__(self, demo_input: Any = PARSE['demo_input'], tracer_type: str = 'BackwardTracer') -> None:
        self.demo_input = demo_input
        self.tracer_type = tracer_type

    def analyze(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """Return unit -> its number of channels and the axes of tensors in it; a mutator takes it as the `units` of its config.

        Raises:
            ConfigError: If `demo_input` is none.
            GraphError: If the model cannot be traced.
        """
        return {
            unit.name: {
                'init_args': {'num_channels': unit.size},
                'channels': [[place.tensor, place.axis] for place in unit.placements],
            }
            for unit in channel_units(model, demo_inputs(model, self.demo_input))
        }


@MODELS.register_module()
class ChannelMutator(OneShotMutator):
    """The widths of a model's channel units as decisions.

    The model is traced once, each unit gets a decision, and all of them start at full width, where the model computes
    what it did before. Other decisions of the model (`LayerChoice`, ...) are in the same space. Where code binds the
    lengths of units to each other, the nearest lengths that it allows are active; `widths` has them.

    Args:
        channel_unit_cfg: Type of the units: a name, a class, or a config with `type`, `default_args` (arguments of every
            unit) and `units`: name -> arguments of one unit, `dict(init_args=..., choice=...)`, or a width; or a JSON or YAML
            file of that. Units that may not vary are passed over where they have their full width there.
        parse_cfg: How the model is traced: `dict(type='ChannelAnalyzer', demo_input=...)`; see `demo_inputs`. A
            `tracer_type` is accepted and makes no difference.
        init_cfg: MMEngine's initialization config.
        model: The model to bind; leave it out and call `prepare_from_supernet` later.
        ignored: Patterns of names of modules or parameters, no axis of which is to vary.
        custom_groups: Lists of units that are to be one decision; they need the same alternatives.
        mutable_cfg: The name of `channel_unit_cfg` in MMRazor's first 1.x release:
            `dict(type='OneShotMutableChannel', candidate_choices=..., candidate_mode=...)`.
        tracer_cfg: The name of `parse_cfg` there.
        skip_prefixes: The name of `ignored` there: beginnings of names.

    Raises:
        ConfigError: If an argument doesn't fit, or is given under both of its names.
        GraphError: If the model cannot be traced, or a unit of the config is not in it.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> mutator = ChannelMutator('SequentialMutableChannelUnit', dict(demo_input=(2, 4)), model=model)
    >>> mutator.set_subnet({'0': 3})
    >>> mutator.widths.current, model(torch.zeros(1, 4)).shape
    ({'0': 3}, torch.Size([1, 2]))
    """

    #: Type and arguments of the units where the config gives none.
    default_units: Mapping[str, Any] = {'type': 'SequentialMutableChannelUnit'}
    #: For an algorithm: the decisions are put into the model, which has none before.
    makes_decisions = True

    def __init__(
        self,
        channel_unit_cfg: Mapping[str, Any] | str | type[MutableChannelUnit] | None = None,
        parse_cfg: Mapping[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        model: nn.Module | None = None,
        ignored: str | Sequence[str] = (),
        custom_groups: Sequence[Sequence[str]] | None = None,
        mutable_cfg: Mapping[str, Any] | None = None,
        tracer_cfg: Mapping[str, Any] | None = None,
        skip_prefixes: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(None, init_cfg, custom_groups)
        if mutable_cfg is not None:
            _once('mutable_cfg', 'channel_unit_cfg', channel_unit_cfg)
            channel_unit_cfg = unit_config_of_first_release(mutable_cfg)
        if tracer_cfg is not None:
            _once('tracer_cfg', 'parse_cfg', parse_cfg)
            parse_cfg = tracer_cfg
        if skip_prefixes is not None:
            _once('skip_prefixes', 'ignored', ignored or None)
            ignored = [f'{name}*' for name in ([skip_prefixes] if isinstance(skip_prefixes, str) else skip_prefixes)]
        self._kind, self.channel_unit_cfg = unit_config(channel_unit_cfg, self.default_units)
        self.parse_cfg = parse_config(parse_cfg)
        self.ignored = ignored
        if model is not None:
            self.prepare_from_supernet(model)

    # -- binding ---------------------------------------------------------------------------

    def prepare_from_supernet(self, supernet: nn.Module) -> None:
        """Trace `supernet`, put a decision for each unit into it, and bind it.

        Raises:
            BindingError: If this mutator or the model is bound already.
            GraphError: If the model cannot be traced or has no channels that may vary.
        """
        if not isinstance(supernet, nn.Module):
            raise ComponentTypeError(f'A model must be an nn.Module, but got {type(supernet).__name__}.')
        attached = None if self._model is not None else self._attach(supernet)
        try:
            super().prepare_from_supernet(supernet)
        except Exception:
            if attached is not None:
                attached.release(supernet)
            raise

    def _attach(self, model: nn.Module) -> ElasticWidths | None:
        """Put elastic widths into the model; return them unless those that were there serve."""
        present = _widths_of(model)
        if present is not None:
            if any(unit.owner is not None for unit in _units_of(present)):
                return None  # binding it then says whose it is
            if present.origin == self._origin():
                return None
            print_log(
                'The widths that another mutator left in the model are replaced.', logger='current', level=logging.WARNING
            )
            present.release(model)
        graph = self._analyse(model)
        units = self._make_units(graph)
        if not units:
            raise GraphError(
                f'No channels of this {type(model).__name__} may vary. Its axes are kept by: '
                f'{listed(sorted({str(axis) for axis in graph.frozen}), 4)}.'
            )
        for unit in units:
            if unit.decision is None:
                unit.take(unit.domain.extreme(largest=True))
        widths = ElasticWidths(model, graph, units)
        widths.origin = self._origin()
        try:
            self._attached(model, widths)
        except Exception:
            widths.release(model)
            raise
        return widths

    def _attached(self, model: nn.Module, widths: ElasticWidths) -> None:
        """Called when the widths are in the model."""

    def _origin(self) -> str:
        return repr((type(self).__name__, self.channel_unit_cfg, self.ignored))

    def _analyse(self, model: nn.Module) -> ChannelGraph:
        inputs = demo_inputs(model, self.parse_cfg['demo_input'])
        binding = bind(model)
        if not binding.by_key:
            return channel_units(model, inputs, ignored=self.ignored)
        # Every alternative must agree with the channels around it: they are run together, each depth at its greatest.
        before = [(mutable, mutable.decision) for mutable in binding.mutables]
        try:
            binding.apply(binding.space.extreme(largest=True))
            for mutable in binding.mutables:
                if mutable.decision is None:
                    mutable.take(mutable.domain.extreme(largest=True))
            with intercept(model, _run_all), _all_depths(model):
                return channel_units(model, inputs, ignored=self.ignored)
        finally:
            for mutable, decision in before:
                mutable._decision = decision

    def _make_units(self, graph: ChannelGraph) -> list[MutableChannelUnit]:
        settings: dict[str, Any] = {}
        for name, value in self._settings(graph).items():
            if kept_whole(graph, name, value):
                continue
            known = unit_of(graph, name)
            if settings.setdefault(known, value) != value:
                raise ConfigError(f'`units` of channel_unit_cfg names {known!r} twice, the second time as {name!r}.')
        units = []
        for name, unit in graph.units.items():
            arguments = {**self.channel_unit_cfg['default_args']}
            choice = None
            if name in settings:
                given = settings[name]
                if isinstance(given, Mapping):
                    own = given.get('init_args', {k: v for k, v in given.items() if k != 'choice'})
                    if 'candidate_choices' in own and 'num_blocks' not in own:
                        # Its own candidates stand, where those of the others are computed.
                        arguments = {k: v for k, v in arguments.items() if k not in ('num_blocks', 'min_blocks')}
                    arguments.update(own)
                    choice = given.get('choice')
                else:
                    choice = given
            made = self._make_unit(name, unit, arguments)
            if made is not None:
                if choice is not None and not isinstance(made, SlimmableChannelUnit):
                    made.decide(choice)
                units.append(made)
        return units

    def _settings(self, graph: ChannelGraph) -> Mapping[str, Any]:
        """Return what the config says of single units, by name."""
        return self.channel_unit_cfg['units']

    def _make_unit(self, name: str, unit: Any, arguments: Mapping[str, Any]) -> MutableChannelUnit | None:
        arguments = dict(arguments)
        channels = arguments.pop('num_channels', unit.size)
        if channels != unit.size:
            raise ConfigError(
                f'The config says that {name!r} has {channels} channels, but in this model it has {unit.size}. It was written '
                'for another model, or for this one after pruning.'
            )
        least = arguments.get('min_value', 1)
        if isinstance(least, int):
            arguments['min_value'] = min(max(least, unit.minimum), unit.size)
        try:
            return self._kind(unit.size, **{'key': name, 'unit': name, **arguments})
        except TypeError as error:
            raise ConfigError(f'{self._kind.__name__} cannot be made of {arguments}: {error}.') from None

    # -- what is bound ---------------------------------------------------------------------

    @property
    def widths(self) -> ElasticWidths:
        """The elastic widths in the bound model: `widths.current` has the active numbers of channels."""
        widths = _widths_of(self.model)
        if widths is None:
            raise BindingError('The elastic widths are gone from the model: it was fixed, or they were released.')
        return widths

    @property
    def graph(self) -> ChannelGraph:
        """The channel units of the bound model."""
        return self.widths.graph

    @property
    def units(self) -> list[MutableChannelUnit]:
        """The decisions about channels, in the order of the model."""
        return _units_of(self.widths)

    @property
    def mutable_units(self) -> list[MutableChannelUnit]:
        """The decisions about channels that have more than one width."""
        return [unit for unit in self.units if unit.is_mutable]

    def unit_named(self, name: str) -> str:
        """Return the unit that a name means: our own, a coupled module's, or MMRazor's `module_(start, end)_channels`.

        Raises:
            GraphError: If there is none, with the reason where its channels may not vary.
        """
        return unit_of(self.graph, name)

    @property
    def choice_template(self) -> dict[str, Any]:
        """The current width of every unit that may vary, for a config to start from."""
        return {unit.unit: unit.current_choice for unit in self.mutable_units}

    # -- verbs -----------------------------------------------------------------------------

    def apply_on_model(self, decisions: Mapping[str, Any]) -> None:
        """Write decisions into the mutables and make the widths current.

        Raises:
            SubnetError: If they do not fit the model; nothing is changed then.
        """
        super().apply_on_model(self._translated(decisions))
        self.widths.sync(self.model)

    def _translated(self, decisions: Mapping[str, Any]) -> Mapping[str, Any]:
        if isinstance(decisions, Subnet) or not isinstance(decisions, Mapping):
            return decisions
        known = {*self.space, *self.space.paths}
        if all(name in known for name in decisions):
            return decisions
        translated = {}
        for name, choice in decisions.items():
            try:
                translated[name if name in known else unit_of(self.graph, name)] = choice
            except GraphError:
                translated[name] = choice  # the space says what is wrong with it
        return translated

    def set_max_subnet(self) -> None:
        """Make the full widths (and the largest of other decisions) current."""
        self.set_choices(self.sample_choices('max'))

    def sort_channels(self, scores: Mapping[str, torch.Tensor] | None = None) -> None:
        """Order the channels of every unit by importance, so that a narrow width keeps the best; see `ElasticWidths.sort`."""
        self.widths.sort(self.model, scores)

    # -- configs ---------------------------------------------------------------------------

    def config_template(
        self, only_mutable_units: bool = False, with_unit_init_cfg: bool = True, with_channels: bool = False
    ) -> dict[str, Any]:
        """Return the config of this mutator with every unit in it, to be edited and read back.

        Args:
            only_mutable_units: Leave out units with one width.
            with_unit_init_cfg: Give the arguments of each unit.
            with_channels: Give the axes of tensors of each unit, to read; ignored when read back.

        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mutator = OneShotChannelMutator(parse_cfg=dict(demo_input=(2, 4)), model=model)
        >>> mutator.config_template()['channel_unit_cfg']['units']['0']['choice']
        1.0
        """
        units: dict[str, Any] = {}
        for unit in self.mutable_units if only_mutable_units else self.units:
            entry: dict[str, Any] = {'init_args': unit.settings()} if with_unit_init_cfg else {}
            entry['choice'] = unit.current_choice
            if with_channels:
                entry['channels'] = [[place.tensor, place.axis] for place in self.graph.units[unit.unit].placements]
            units[unit.unit] = entry
        return {
            'type': type(self).__name__,
            'channel_unit_cfg': {**copy.deepcopy(self.channel_unit_cfg), 'units': units},
            'parse_cfg': dict(self.parse_cfg),
            **self._other_settings(),
        }

    def _other_settings(self) -> dict[str, Any]:
        """Return the arguments beside units and tracing, where they are not the usual ones."""
        others: dict[str, Any] = {}
        if self.ignored:
            others['ignored'] = self.ignored if isinstance(self.ignored, str) else list(self.ignored)
        if self.custom_groups:
            others['custom_groups'] = [list(group) for group in self.custom_groups]
        return others


@MODELS.register_module()
class OneShotChannelMutator(ChannelMutator):
    """A channel mutator with a few widths for each unit: an eighth to all, unless the config says otherwise.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> mutator = OneShotChannelMutator(parse_cfg=dict(demo_input=(2, 4)), model=model)
    >>> mutator.space['0'].labels
    (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    """

    default_units = {'type': 'OneShotMutableChannelUnit', 'default_args': {'num_blocks': 8, 'min_blocks': 2}}


@MODELS.register_module()
class SlimmableChannelMutator(ChannelMutator):
    """A channel mutator of a few networks: one decision, `width`, switches all units together.

    Yu et al., Slimmable Neural Networks, https://arxiv.org/abs/1812.08928.

    Args:
        channel_unit_cfg: Config of `SlimmableChannelUnit`s; the n-th of each unit's `candidate_choices` belongs to the n-th
            network. With `candidate_choices` (and `choice_mode='ratio'`) in `default_args` alone, all units have them; units
            that have none keep their full width.
        switch_norms: Give each network batch norms of its own.
        channel_cfgs: The widths of layers, one dict for each network, `layer.out_channels_mutable: {current_choice: 8,
            origin_channels: 16}`, as subnet files of MMRazor's first 1.x release hold them.
        kwargs: See `ChannelMutator`.

    Raises:
        ConfigError: If the units have different numbers of candidates, or `channel_cfgs` and `units` are both given.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> config = dict(type='SlimmableChannelUnit', units={'0': dict(candidate_choices=[2, 4, 8])})
    >>> mutator = SlimmableChannelMutator(config, dict(demo_input=(2, 4)), model=model)
    >>> mutator.subnets
    [{'0': 2}, {'0': 4}, {'0': 8}]
    >>> mutator.set_subnet({'width': 1})
    >>> mutator.widths.current
    {'0': 4}
    """

    default_units = {'type': 'SlimmableChannelUnit'}
    #: Key of the one decision.
    key = 'width'

    def __init__(
        self,
        *args: Any,
        switch_norms: bool = True,
        channel_cfgs: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.__dict__.update(switch_norms=switch_norms, channel_cfgs=[dict(config) for config in channel_cfgs or ()])
        super().__init__(*args, **kwargs)

    def _other_settings(self) -> dict[str, Any]:
        return super()._other_settings() | ({} if self.switch_norms else {'switch_norms': False})

    def _settings(self, graph: ChannelGraph) -> Mapping[str, Any]:
        said = super()._settings(graph)
        if not self.channel_cfgs:
            return said
        if said:
            raise ConfigError('The widths of the networks stand in `units` of channel_unit_cfg or in files, not in both.')
        return widths_of_networks(graph, self.channel_cfgs)

    def _origin(self) -> str:
        return f'{super()._origin()}{self.channel_cfgs or ""}'

    def _make_unit(self, name: str, unit: Any, arguments: Mapping[str, Any]) -> MutableChannelUnit | None:
        if not issubclass(self._kind, SlimmableChannelUnit):
            raise ConfigError(f'{type(self).__name__} takes units of type SlimmableChannelUnit, not {self._kind.__name__}.')
        if not arguments.get('candidate_choices'):
            return None
        return super()._make_unit(name, unit, {**arguments, 'key': self.key, 'unit': name})

    def _make_units(self, graph: ChannelGraph) -> list[MutableChannelUnit]:
        units = super()._make_units(graph)
        if not units:
            raise ConfigError(
                f'{type(self).__name__} needs `candidate_choices`: in `units` of channel_unit_cfg for each unit, or in '
                f'`default_args` as ratios. The units are {listed(graph.units)}.'
            )
        counts = {unit.unit: len(unit.domain) for unit in units}
        if len(set(counts.values())) > 1:
            few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            raise ConfigError(
                f'Every unit needs one width for each network, but {few!r} has {counts[few]} and {many!r} has {counts[many]}.'
            )
        slimmable = [unit for unit in units if isinstance(unit, SlimmableChannelUnit)]
        # The largest network is that of the most channels in all, for every unit.
        totals = tuple(float(sum(numbers)) for numbers in zip(*(unit.numbers() for unit in slimmable), strict=True))
        for unit in slimmable:
            unit._domain = replace(unit.domain, costs=totals)
        return units

    def _attached(self, model: nn.Module, widths: ElasticWidths) -> None:
        if self.switch_norms:
            widths.switch_norms(model, _subnets(widths))

    @property
    def subnets(self) -> list[dict[str, int]]:
        """The networks: unit -> number of channels, in the order of the candidates."""
        return _subnets(self.widths)

    def restart_norms(self) -> None:
        """Start the batch norms of narrow networks from those of the model: after its weights were loaded, say."""
        if self.switch_norms:
            self.widths.restart_norms(self.model)

    def _translated(self, decisions: Mapping[str, Any]) -> Mapping[str, Any]:
        if isinstance(decisions, Subnet) or not isinstance(decisions, Mapping) or not self._names_units(decisions):
            return super()._translated(decisions)
        rest = {name: choice for name, choice in decisions.items() if not self._names_units({name: choice})}
        wanted = {unit_of(self.graph, name): choice for name, choice in decisions.items() if name not in rest}
        for index, subnet in enumerate(self.subnets):
            if all(subnet.get(name) == choice for name, choice in wanted.items()):
                return {**rest, self.key: index}
        raise SubnetError(f'None of the {len(self.subnets)} networks has the widths {wanted}.')

    def _names_units(self, decisions: Mapping[str, Any]) -> bool:
        for name in decisions:
            if name in self.space or name in self.space.paths:
                continue
            try:
                unit_of(self.graph, name)
            except GraphError:
                continue
            return True
        return False


def _once(old: str, new: str, value: Any) -> None:
    if value is not None:
        raise ConfigError(f'`{old}` is the old name of `{new}`: give one of them.')


def _subnets(widths: ElasticWidths) -> list[dict[str, int]]:
    units = [unit for unit in _units_of(widths) if isinstance(unit, SlimmableChannelUnit)]
    return [{unit.unit: unit.numbers()[index] for unit in units} for index in range(len(units[0].domain))]


def _widths_of(model: nn.Module) -> ElasticWidths | None:
    return next((child for child in model._modules.values() if isinstance(child, ElasticWidths)), None)


def _units_of(widths: ElasticWidths) -> list[MutableChannelUnit]:
    return [unit for unit in widths.units if isinstance(unit, MutableChannelUnit)]


def _run_all(mutable: Mutable, *args: Any, **kwargs: Any) -> Any:
    """Run a choice so that every alternative takes part: what they return is added."""
    if isinstance(mutable, LayerChoice):
        outputs = [mutable.run_candidate(index, *args, **kwargs) for index in range(len(mutable))]
    elif isinstance(mutable, InputChoice):
        outputs = mutable.inputs(*args, **kwargs)
    else:
        return mutable.run(*args, **kwargs)
    total = _added(outputs)
    taken = len(mutable.domain.extreme(largest=True))
    result = reduce_outputs([total] * max(taken, 1), mutable.reduction)
    return mutable.returned(result, mutable.mask()) if mutable.return_mask else result


@contextmanager
def _all_depths(model: nn.Module) -> Iterator[None]:
    """While active, a `Repeat` returns the sum of what each of its depths gives."""

    def run(repeat: Repeat, depths: set[int], x: Any) -> Any:
        outputs = [x]
        for block in repeat.blocks[: max(depths)]:
            outputs.append(block(outputs[-1]))
        return _added([outputs[depth] for depth in sorted(depths, reverse=True)])

    changed = []
    try:
        for module in model.modules():
            if isinstance(module, Repeat) and module.depth is not None:
                depths: set[int] = set()
                truth_table(module.depth, lambda value, depths=depths: depths.add(value) or False)  # type: ignore[misc]
                module.forward = partial(run, module, depths)  # type: ignore[method-assign]
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _added(outputs: Sequence[Any]) -> Any:
    if not all(isinstance(output, torch.Tensor) for output in outputs):
        return outputs[0]
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    return total
