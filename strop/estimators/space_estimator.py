"""What each subnet of a model with mutables costs, from one trace and without a forward."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log
from rich.table import Table
from torch import nn

from strop.errors import ConfigError, EstimateError, listed, near
from strop.estimators.activation import PeakMemory
from strop.estimators.counting import Resources, count, example_arguments, human
from strop.estimators.guards import Answers, Array, GuardedSum
from strop.estimators.recorder import check_initialized
from strop.estimators.supernet import NotSeparableError, mac_terms, parameter_terms, trace_supernet
from strop.estimators.widths import WidthCosts
from strop.graph import channel_units
from strop.mutables import Binding, Guard, MutableChannelUnit, Space, Subnet, attachments, bind, extract
from strop.randomness import counter_rng

RESOURCES = ('macs', 'params', 'activation_bytes')
_ENUMERATED = 256  # a space of at most this many subnets is searched whole where the costs are no sums


class Extreme(NamedTuple):
    """The least or greatest value of a resource in a space, a subnet that has it, and whether that is proven."""

    value: int
    subnet: Subnet
    exact: bool


class SpaceEstimator:
    r"""Multiply-adds, parameters and activation memory of every subnet of a model with mutables.

    The model is traced once with every alternative run, each operator marked with the choices that lead to it:

    .. math:: \mathrm{MACs}(a) = \sum_{op} [a \text{ takes the choices of } op] \cdot \mathrm{MACs}_{op}

    and alike for parameters, by their places in the model. Activation memory follows the storages through the
    choices. A few subnets are compared with `count(extract(model, subnet))` when the estimator is built. Where
    they differ, or where one decision changes what another costs (alternatives of unequal output, values used
    inside a forward), subnets are extracted and run on tensors without values instead, each once; this is logged
    with its reason.

    Args:
        model: A model with mutables. It is not changed.
        inputs: Arguments of its forward: one tensor, or a tuple of what it takes.
        input_shape: Instead of `inputs`, the shape of one tensor, batch included.
        kwargs: Keyword arguments of its forward.
        binding: The decisions of the model, if they are known already (with groups, say).
        checks: How many random subnets to compare, besides the cheapest and the dearest.

    Raises:
        ConfigError: If neither or both of `inputs` and `input_shape` are given.
        EstimateError: If the model's forward fails.

    Attributes:
        measured: The resources that are measured by running extracted subnets.
        reason: Why, in a sentence; None in analytic mode.
        uncounted: Operators whose multiply-adds are unknown -> the modules that call them.

    >>> from strop.mutables import LayerChoice
    >>> model = nn.Sequential(LayerChoice([nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)], key='conv'))
    >>> estimator = SpaceEstimator(model, input_shape=(1, 3, 8, 8))
    >>> estimator.estimate({'conv': 1})
    {'macs': 13824, 'params': 224, 'activation_bytes': 2816}
    >>> estimator.smallest('macs').value
    1536
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any = None,
        *,
        input_shape: Sequence[int] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        binding: Binding | None = None,
        checks: int = 2,
    ) -> None:
        if (inputs is None) == (input_shape is None):
            raise ConfigError('A SpaceEstimator needs either `inputs` or `input_shape`, and not both.')
        check_initialized(model)
        self.model = model
        self.binding = bind(model) if binding is None else binding
        self.space = self.binding.space
        self.args = example_arguments(model, input_shape) if input_shape is not None else _as_arguments(inputs)
        self.kwargs = dict(kwargs or {})
        self.measured: frozenset[str] = frozenset()
        self.reason: str | None = None
        self.uncounted: Mapping[str, Sequence[str]] = {}
        self._runs: dict[str, Resources] = {}
        self._sums: dict[str, GuardedSum] = {'params': GuardedSum(self.space, parameter_terms(model, self.binding))}
        self._peak: Callable[[Answers], Array] | None = None
        self._widths = _WidthSpace.of(self)
        if self._widths is not None:
            del self._sums['params']
            self.measured = frozenset({'activation_bytes'})
            self.reason = 'the tensors that are alive at other widths are not known'
            self._check(checks)
            return
        try:
            traced = trace_supernet(model, self.binding, self.args, self.kwargs)
        except NotSeparableError as error:
            self._measure({'macs', 'activation_bytes'}, str(error))
        else:
            self.uncounted = traced.trace.uncounted
            self._sums['macs'] = GuardedSum(self.space, mac_terms(traced.trace))
            self._peak = PeakMemory(traced)
        self._check(checks)

    @property
    def mode(self) -> str:
        """`'analytic'`, or `'run'` if some resource is measured by running extracted subnets."""
        return 'run' if self.measured else 'analytic'

    def __repr__(self) -> str:
        return f'SpaceEstimator({len(self.space)} decisions, mode={self.mode!r})'

    # -- estimating ------------------------------------------------------------------------

    def estimate(self, subnet: Mapping[str, Any], resources: Sequence[str] = RESOURCES) -> dict[str, int]:
        """Return resource -> value of one subnet, given in any form that `Space.subnet` reads.

        Raises:
            SubnetError: If the subnet does not fit the space.
        """
        return {name: int(values[0]) for name, values in self.estimate_many([subnet], resources).items()}

    def estimate_many(self, subnets: Iterable[Mapping[str, Any]], resources: Sequence[str] = RESOURCES) -> dict[str, Array]:
        """Return resource -> array of the value of each subnet.

        A subnet with weights costs what its candidates of non-zero weight cost together.

        Args:
            subnets: Subnets of the space, or mappings that `Space.subnet` reads.
            resources: Which to estimate, of 'macs', 'params' and 'activation_bytes'.

        Raises:
            ConfigError: If a resource is unknown.
            SubnetError: If a subnet does not fit the space.
        """
        for name in resources:
            self._known(name)
        own = [self._own(subnet) for subnet in subnets]
        answers = Answers(self.space, own)
        result: dict[str, Array] = {}
        for name in resources:
            if name in self.measured:
                result[name] = np.array([getattr(self._run(subnet), name) for subnet in own], dtype=np.int64)
            elif self._widths is not None:
                result[name] = self._widths.estimate(own, name)
            elif name == 'activation_bytes':
                result[name] = self._peaks(answers, own)
            else:
                result[name] = self._sums[name](answers)
        return result

    def smallest(self, resource: str = 'macs') -> Extreme:
        """Return the least value that a subnet reaches: proven for sums, the best found where subnets are run.

        Raises:
            ConfigError: If the resource is unknown.
            EstimateError: If the decisions are tied together too closely to search all of them.
        """
        return self._extreme(resource, largest=False)

    def largest(self, resource: str = 'macs') -> Extreme:
        """Return the greatest value that a subnet reaches; see `smallest`."""
        return self._extreme(resource, largest=True)

    def alternatives(self) -> dict[str, dict[Any, tuple[int, int]]]:
        """Return key -> label of each alternative -> the (MACs, parameters) that it alone brings.

        What depends on several decisions at once (a choice inside another) is not in it. For a width, which has no cost of
        its own, they are those of the whole model with all other widths at their greatest.
        """
        result: dict[str, dict[Any, tuple[int, int]]] = {}
        if self._widths is not None:
            return self._widths.alternatives(self.space)
        for key, domain in self.space.items():
            result[key] = {}
            for index, label in enumerate(domain.labels):
                condition = frozenset({frozenset({Guard.on(key, [index])})})
                sums = [self._sums[name].terms.get(condition, 0) if name in self._sums else 0 for name in ('macs', 'params')]
                result[key][label] = sums[0], sums[1]
        return result

    def table(self) -> Table:
        """Return a `rich` table of what each alternative of each decision costs."""
        table = Table(title=f'{len(self.space)} decisions ({self.mode})')
        table.add_column('decision', no_wrap=True)
        table.add_column('alternative')
        table.add_column('MACs', justify='right')
        table.add_column('params', justify='right')
        for key, labels in self.alternatives().items():
            for position, (label, (macs, params)) in enumerate(labels.items()):
                table.add_row(key if position == 0 else '', str(label), human(macs), human(params))
        return table

    # -- internals -------------------------------------------------------------------------

    def _known(self, resource: str) -> None:
        if resource not in RESOURCES:
            raise ConfigError(
                f'A resource must be one of {listed(RESOURCES)}, but got {resource!r}.{near(resource, RESOURCES)}'
            )

    def _own(self, subnet: Mapping[str, Any]) -> Subnet:
        if isinstance(subnet, Subnet) and (subnet.space is self.space or subnet.space.digest == self.space.digest):
            return subnet
        return self.space.subnet(subnet)

    def _peaks(self, answers: Answers, subnets: Sequence[Subnet]) -> Array:
        assert self._peak is not None, 'set unless it is measured'
        weighted = [index for index, subnet in enumerate(subnets) if subnet.weighted]
        if not weighted:
            return self._peak(answers)
        # Weighting and summing candidates makes tensors that a choice of one does not.
        peaks = np.zeros(len(subnets), dtype=np.int64)
        rest = sorted(set(range(len(subnets))) - set(weighted))
        peaks[rest] = self._peak(Answers(self.space, [subnets[index] for index in rest]))
        peaks[weighted] = [self._run(subnets[index]).activation_bytes for index in weighted]
        return peaks

    def _run(self, subnet: Subnet) -> Resources:
        """Count the extracted subnet, once."""
        if subnet.digest not in self._runs:
            try:
                self._runs[subnet.digest] = count(extract(self.model, self._for_model(subnet)), *self.args, **self.kwargs)
            except EstimateError as error:
                raise EstimateError(f'{subnet!r} cannot be estimated: {error}') from error
        return self._runs[subnet.digest]

    def _for_model(self, subnet: Subnet) -> dict[str, Any]:
        # Where decisions were grouped, one of the space is several of the model.
        return {
            mutable.key: subnet[key] for key, mutables in self.binding.by_key.items() if key in subnet for mutable in mutables
        }

    def _measure(self, resources: Iterable[str], reason: str) -> None:
        self.measured |= frozenset(resources)
        self.reason = reason if self.reason is None else f'{self.reason}; {reason}'
        print_log(
            f'Subnets of {type(self.model).__name__} are extracted and run on tensors without values to estimate '
            f'{", ".join(sorted(resources))}: {reason}. Each takes about as long as a trace, and is done once.',
            logger='current',
            level=logging.WARNING,
        )

    def _check(self, checks: int) -> None:
        """Compare some subnets with the models they stand for; run one at least, so that a failing forward is noticed now."""
        subnets = [self.space.sample(counter_rng(0, 'estimator check', index)) for index in range(checks)]
        if 'macs' in self.measured:
            subnets = [self.space.first()]
        elif checks:
            for largest in (False, True):
                if self._widths is not None:
                    subnets.append(self.space.extreme(largest))
                    continue
                try:
                    subnets.append(self._sums['macs'].extreme(largest)[1])
                except EstimateError:
                    subnets.append(self.space.extreme(largest))
        for subnet in dict.fromkeys(subnets):
            counted = self._run(subnet)
            if self._widths is not None:
                self.uncounted = counted.uncounted
            expected = self.estimate(subnet)
            wrong = [name for name in RESOURCES if expected[name] != getattr(counted, name)]
            if wrong:
                given = ', '.join(f'{name} {expected[name]} instead of {getattr(counted, name)}' for name in wrong)
                self._measure(wrong, f'the trace gives {given} for {subnet!r}')
        self._runs = {} if not self.measured else self._runs

    def _extreme(self, resource: str, largest: bool) -> Extreme:
        self._known(resource)
        if resource not in self.measured and resource in self._sums:
            value, subnet = self._sums[resource].extreme(largest)
            return Extreme(value, subnet, True)
        if self._widths is not None and resource not in self.measured:
            # More channels never cost less; only where lengths are bound to each other may another subnet be as good.
            subnet = self.space.extreme(largest)
            return Extreme(int(self._widths.estimate([subnet], resource)[0]), subnet, not self._widths.tied)
        if self.space.count() <= _ENUMERATED:
            subnets = list(self.space.grid())
            exact = True
        else:
            subnets = [self.space.extreme(largest), *(self.space.sample(counter_rng(0, 'extreme', n)) for n in range(15))]
            exact = False
        values = self.estimate_many(subnets, [resource])[resource]
        best = int(values.argmax() if largest else values.argmin())
        if not exact:
            return Extreme(*self._climb(subnets[best], int(values[best]), resource, largest), exact=False)
        return Extreme(int(values[best]), subnets[best], True)

    def _climb(self, subnet: Subnet, value: int, resource: str, largest: bool) -> tuple[int, Subnet]:
        """Move to better neighbours for a bounded number of estimates."""
        sign = 1 if largest else -1
        rng = counter_rng(0, 'climb')
        left = _ENUMERATED
        while left > 0:
            nearby = list(itertools.islice(self.space.neighbours(subnet, rng), left))
            left -= len(nearby)
            if not nearby:
                break
            values = self.estimate_many(nearby, [resource])[resource]
            best = int((sign * values).argmax())
            if sign * values[best] <= sign * value:
                break
            subnet, value = nearby[best], int(values[best])
        return value, subnet


class _WidthSpace:
    """The costs of a model whose only decisions are the widths of its channel units."""

    def __init__(self, estimator: SpaceEstimator, widths: Any) -> None:
        self.widths = widths
        inputs = estimator.kwargs if estimator.kwargs else estimator.args
        with widths.suspended():
            self.costs = {'macs': WidthCosts(channel_units(estimator.model, inputs))}
        # Of the graph without the batch norms that the widths have beside the model's own.
        self.costs['params'] = WidthCosts(widths.graph)
        self.units = [
            (key, unit)
            for key, units in estimator.binding.by_key.items()
            for unit in units
            if isinstance(unit, MutableChannelUnit)
        ]
        self.tied = any(unit.ties for unit in widths.graph)

    @classmethod
    def of(cls, estimator: SpaceEstimator) -> _WidthSpace | None:
        """Return the widths of the estimator's model, if there are any, and nothing else is to decide."""
        found: list[Any] = [child for parent, child in attachments(estimator.model) if parent is estimator.model]
        channels = all(isinstance(mutable, MutableChannelUnit) for mutable in estimator.binding.mutables)
        if len(found) != 1 or not channels or not hasattr(found[0], 'graph') or (estimator.args and estimator.kwargs):
            return None
        return cls(estimator, found[0])

    def alternatives(self, space: Space) -> dict[str, dict[Any, tuple[int, int]]]:
        """Return key -> label -> (MACs, parameters) with everything else at its greatest."""
        full = dict(space.extreme(largest=True))
        result: dict[str, dict[Any, tuple[int, int]]] = {}
        for key, domain in space.items():
            subnets = [space.subnet({**full, key: label}) for label in domain.labels]
            columns = [self.estimate(subnets, resource).tolist() for resource in ('macs', 'params')]
            result[key] = dict(zip(domain.labels, zip(*columns, strict=True), strict=True))
        return result

    def estimate(self, subnets: Sequence[Subnet], resource: str) -> Array:
        """Return a resource of each subnet."""
        values = []
        for subnet in subnets:
            wanted = {unit.unit: unit.width(subnet.choices[key]) for key, unit in self.units}
            lengths = self.widths.graph.fit(wanted)
            costs = self.costs[resource]
            values.append(costs.macs(lengths) if resource == 'macs' else costs.params(lengths))
        return np.array(values, dtype=np.int64)


def _as_arguments(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, tuple) else (inputs,)
