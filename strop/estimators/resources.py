"""What configs call `ResourceEstimator`: MMRazor's front on the counts and the latency protocol of this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch
from mmengine.logging import print_log
from torch import nn

from strop.errors import ConfigError, listed, near
from strop.estimators.counting import Resources, count, example_arguments, in_unit
from strop.estimators.latency import ByPosition, measure
from strop.estimators.space_estimator import SpaceEstimator
from strop.mutables import bind, current_subnet, extract, mutables_of
from strop.registry import TASK_UTILS

Value = Union[float, str]

_UNITS = {'flops': 'M', 'params': 'M', 'latency': 'ms'}
_SECONDS = {'s': 1e-3, 'ms': 1.0, 'us': 1e3}
_COUNT_KEYS = (
    'input_shape', 'input_constructor', 'units', 'as_strings', 'spec_modules', 'disabled_counters', 'print_per_layer_stat',
    'seperate_return', 'flops_params_verbose',
)  # fmt: skip
_LATENCY_KEYS = (
    'input_shape',
    'unit',
    'as_strings',
    'max_iter',
    'num_warmup',
    'log_interval',
    'repeat_num',
    'runtime',
    'threads',
)


@TASK_UTILS.register_module()
class BaseEstimator(ABC):
    """What every estimator of a model's resources has.

    Args:
        input_shape: Shape of the input, batch included.
        units: Unit of each result, by its name.
        as_strings: Return numbers with their units as text.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 3, 224, 224),
        units: Mapping[str, str | None] | None = None,
        as_strings: bool = False,
    ) -> None:
        if not isinstance(units, (Mapping, type(None))):
            raise ConfigError(f"`units` must be a mapping such as dict(flops='M'), but got {units!r}.")
        self.input_shape = _shape(input_shape)
        self.units = dict(units or {})
        self.as_strings = as_strings

    @abstractmethod
    def estimate(
        self, model: nn.Module, flops_params_cfg: Mapping[str, Any] | None = None, latency_cfg: Mapping[str, Any] | None = None
    ) -> dict[str, Value]:
        """Return resource -> value of `model`."""


@TASK_UTILS.register_module()
class ResourceEstimator(BaseEstimator):
    """MACs (called flops), parameters and latency of a model, or of the subnet that a supernet is set to.

    `flops` means multiply-adds, in millions unless `units` says otherwise: 1 MAC = 1 multiply-add, norms and
    activations count 0. The model is not run, except for latency and where its Python code looks at values.

    Args:
        input_shape: Shape of the input, batch included.
        units: Units of `flops` and `params` ('', 'K', 'M', 'G') and of `latency` ('s', 'ms', 'us').
        as_strings: Return texts such as `'1.814 G'` instead of numbers.
        flops_params_cfg: Defaults for counting: `input_shape`, `input_constructor` (input_shape -> keyword
            arguments of the forward), `spec_modules` (module paths to report apart), `disabled_counters` (module
            types whose multiply-adds are left out), `print_per_layer_stat`, `units`, `as_strings`.
        latency_cfg: Defaults for measuring: `max_iter` rounds, `num_warmup`, `repeat_num`, `threads`, `runtime`,
            `unit`, `input_shape`. Latency is measured only where this, or the argument of `estimate`, is not empty.

    Raises:
        ConfigError: If an option or a unit is unknown.

    >>> estimator = ResourceEstimator(input_shape=(1, 3, 8, 8), units=dict(flops='K', params=''))
    >>> estimator.estimate(nn.Conv2d(3, 8, 3, padding=1))
    {'flops': 13.824, 'params': 224.0, 'latency': 0.0}
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 3, 224, 224),
        units: Mapping[str, str | None] | None = None,
        as_strings: bool = False,
        flops_params_cfg: Mapping[str, Any] | None = None,
        latency_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(input_shape, _UNITS if units is None else units, as_strings)
        _checked('units', self.units, tuple(_UNITS))
        self.units = {**_UNITS, **self.units}
        self.flops_params_cfg = _checked('flops_params_cfg', flops_params_cfg, _COUNT_KEYS)
        self.latency_cfg = _checked('latency_cfg', latency_cfg, _LATENCY_KEYS)
        for name in ('flops', 'params'):
            in_unit(0, self.units[name] or '')
        self._latency_unit(self.units['latency'])
        self._space: tuple[Any, SpaceEstimator] | None = None

    def estimate(
        self, model: nn.Module, flops_params_cfg: Mapping[str, Any] | None = None, latency_cfg: Mapping[str, Any] | None = None
    ) -> dict[str, Value]:
        """Return `{'flops': ..., 'params': ..., 'latency': ...}`; latency is 0 where it is not asked for.

        Args:
            model: A plain model, or one with decisions made: then what is estimated is its current subnet.
            flops_params_cfg: Options for counting, over those of the constructor.
            latency_cfg: Options for measuring, over those of the constructor.

        Raises:
            ConfigError: If an option is unknown.
            NotDecidedError: If the model has decisions that were never made.
            EstimateError: If the forward fails.
        """
        counting = {**self.flops_params_cfg, **_checked('flops_params_cfg', flops_params_cfg, _COUNT_KEYS)}
        timing = {**self.latency_cfg, **_checked('latency_cfg', latency_cfg, _LATENCY_KEYS)}
        if counting.get('seperate_return'):
            raise ConfigError('`seperate_return` is what estimate_separation_modules(model, ...) does; call that instead.')
        macs, params = self._counted(model, counting)
        inputs: dict[str, Any] = {key: counting[key] for key in ('input_shape', 'input_constructor') if key in counting}
        latency = self._measured(model, {**inputs, **timing}) if timing else 0.0
        return self._formatted(macs, params, latency, counting, timing)

    def estimate_separation_modules(
        self, model: nn.Module, flops_params_cfg: Mapping[str, Any] | None = None, latency_cfg: Mapping[str, Any] | None = None
    ) -> dict[str, dict[str, Value]]:
        """Return module path -> `{'flops': ..., 'params': ..., 'latency': ...}` for each of `spec_modules`.

        What a module costs is what it costs inside the model; its latency is not measured apart and is 0.

        Raises:
            ConfigError: If `spec_modules` is missing, or names a module that the model does not have.
        """
        counting = {**self.flops_params_cfg, **_checked('flops_params_cfg', flops_params_cfg, _COUNT_KEYS)}
        _checked('latency_cfg', latency_cfg, _LATENCY_KEYS)
        if not counting.get('spec_modules'):
            raise ConfigError(
                "Which modules to estimate apart must be given: flops_params_cfg=dict(spec_modules=['backbone', 'head'])."
            )
        costs = _costs_of(self._resources(model, counting), counting)
        return {path: self._formatted(macs, params, 0.0, counting) for path, (macs, params) in costs.items()}

    # -- internals -------------------------------------------------------------------------

    def _counted(self, model: nn.Module, options: Mapping[str, Any]) -> tuple[int, int]:
        detailed = any(
            options.get(key) for key in ('spec_modules', 'disabled_counters', 'print_per_layer_stat', 'flops_params_verbose')
        )
        if mutables_of(model) and not detailed:
            values = self._space_estimator(model, options).estimate(current_subnet(model), ['macs', 'params'])
            return values['macs'], values['params']
        resources = self._resources(model, options)
        if options.get('print_per_layer_stat') or options.get('flops_params_verbose'):
            import rich

            rich.print(resources.table(depth=None))
        kinds = _left_out(resources, options)
        if options.get('spec_modules'):
            costs = _costs_of(resources, options)
            whole = [path for path in costs if not any(path != other and _within(path, other) for other in costs)]
            return resources.macs_inside(list(costs), kinds), sum(costs[path][1] for path in whole)
        return resources.macs_inside(without=kinds), resources.params

    def _inputs(self, model: nn.Module, options: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        shape = _shape(options.get('input_shape', self.input_shape))
        constructor = options.get('input_constructor')
        if constructor is None:
            return example_arguments(model, shape), {}
        made = constructor(shape)
        if not isinstance(made, Mapping):
            raise ConfigError(
                f'`input_constructor` must return keyword arguments of the forward, but got {type(made).__name__}.'
            )
        return (), dict(made)

    def _resources(self, model: nn.Module, options: Mapping[str, Any]) -> Resources:
        plain = extract(model, current_subnet(model)) if mutables_of(model) else model
        args, kwargs = self._inputs(model, options)
        return count(plain, *args, **kwargs)

    def _space_estimator(self, model: nn.Module, options: Mapping[str, Any]) -> SpaceEstimator:
        # One trace serves every subnet of a supernet, until its decisions or parameters change.
        shape = _shape(options.get('input_shape', self.input_shape))
        state = (
            id(model),
            bind(model).space.digest,
            sum(p.numel() for p in model.parameters()),
            shape,
            options.get('input_constructor'),
        )
        if self._space is None or self._space[0] != state:
            args, kwargs = self._inputs(model, options)
            self._space = state, SpaceEstimator(model, args, kwargs=kwargs)
        return self._space[1]

    def _measured(self, model: nn.Module, options: Mapping[str, Any]) -> float:
        """Return the median latency in milliseconds."""
        plain = extract(model, current_subnet(model)) if mutables_of(model) else model
        args, kwargs = self._inputs(model, options)
        times = measure(
            {'model': (ByPosition(plain, list(kwargs)), tuple(kwargs.values())) if kwargs else (plain, args)},
            runs=options.get('max_iter', 100) * options.get('repeat_num', 1),
            warmup=options.get('num_warmup', 5),
            threads=options.get('threads', 1),
            runtime_name=options.get('runtime', 'eager'),
        )
        return times['model'].median_ms

    def _formatted(
        self, macs: int, params: int, latency: float, options: Mapping[str, Any], timing: Mapping[str, Any] | None = None
    ) -> dict[str, Value]:
        given, timing = _checked('units', options.get('units'), tuple(_UNITS)), timing or {}
        units = {**self.units, **given, **({'latency': timing['unit']} if 'unit' in timing else {})}
        values = {
            'flops': in_unit(macs, units['flops'] or ''),
            'params': in_unit(params, units['params'] or ''),
            'latency': latency * self._latency_unit(units['latency']),
        }
        counted = options.get('as_strings', self.as_strings)
        texts = {'flops': counted, 'params': counted, 'latency': timing.get('as_strings', counted)}
        return {name: f'{value:.3f} {units[name] or ""}'.strip() if texts[name] else value for name, value in values.items()}

    @staticmethod
    def _latency_unit(unit: str | None) -> float:
        if (unit or 'ms') not in _SECONDS:
            raise ConfigError(f'The unit of latency must be one of {listed(_SECONDS)}, but got {unit!r}.')
        return _SECONDS[unit or 'ms']


def _checked(name: str, options: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f'`{name}` must be a mapping, but got {options!r}.')
    for key in options or {}:
        if key not in known:
            raise ConfigError(f'`{name}` has no option {key!r}.{near(key, known)} It has {listed(known, limit=10)}.')
    return dict(options or {})


def _shape(given: Any) -> tuple[int, ...]:
    if not isinstance(given, (tuple, list, torch.Size)):
        raise ConfigError(f'`input_shape` must be positive integers such as (1, 3, 224, 224), but got {given!r}.')
    return tuple(given)


def _names(name: str, given: Any) -> list[str]:
    """Return a list of names, also of a single one."""
    found = [given] if isinstance(given, str) else list(given or ()) if isinstance(given, (Sequence, set, type(None))) else None
    if found is None or not all(isinstance(each, str) for each in found):
        raise ConfigError(f'`{name}` must be a list of names, but got {given!r}.')
    return found


def _costs_of(resources: Resources, options: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the multiply-adds and parameters of each of `spec_modules`, without what is not to be counted.

    Raises:
        ConfigError: If the model has no such module.
    """
    modules, kinds, found = resources.by_module(), _left_out(resources, options), {}
    for path in _names('spec_modules', options['spec_modules']):
        if path not in modules:
            raise ConfigError(f'`spec_modules` names {path!r}, which the model does not have.{near(path, modules)}')
        found[path] = resources.macs_inside([path], kinds), modules[path].params
    return found


def _within(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(f'{other}.')


def _left_out(resources: Resources, options: Mapping[str, Any]) -> list[str]:
    """Return the classes whose multiply-adds are left out; `Conv2dCounter` names Conv2d."""
    names = [kind.removesuffix('Counter') for kind in _names('disabled_counters', options.get('disabled_counters'))]
    known = {cost.kind for cost in resources.by_module().values()}
    if missing := sorted(set(names) - known):
        # Lists of counters are shared between models, so this is no error.
        hint = near(missing[0], sorted(known))
        print_log(f'`disabled_counters` names {listed(missing)}, of which the model has none.{hint}', logger='current')
    return names
