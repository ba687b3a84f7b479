"""Pruning in one call, or step by step with training in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from strop.errors import BudgetError, ConfigError, listed, near
from strop.estimators import WidthCosts
from strop.graph import channel_units, verify
from strop.graph.forward import moved_to
from strop.graph.slicing import put_data
from strop.pruning.budgets import (
    Budget,
    BudgetLike,
    cost_of,
    cost_of_indices,
    measured_share,
    meet,
    smallest_ratio,
    within_latency,
)
from strop.pruning.calibration import recalibrate as recalibrated
from strop.pruning.importance import ImportanceLike, build_importance, score
from strop.pruning.ranking import Limit, Ranking, Selection, check_ratio
from strop.pruning.record import Pruned, PruneRecord, Step, UnitChange
from strop.pruning.schedule import ScheduleLike, milestones

if TYPE_CHECKING:
    from strop.graph import ChannelGraph, Slicing

_LATENCY_TRIES = 6


def prune(
    model: nn.Module,
    inputs: Any,
    *,
    ratio: float | None = None,
    budget: BudgetLike | None = None,
    importance: ImportanceLike = 'l1',
    scope: str = 'local',
    steps: int = 1,
    between: Callable[[nn.Module, int], Any] | None = None,
    schedule: ScheduleLike = 'linear',
    round_to: int = 1,
    ignored: Iterable[str] | str = (),
    limits: Mapping[str, Limit] | None = None,
    attention: str = 'both',
    max_ratio: float = 0.95,
    normalise: str | None = None,
    weigh: str | None = None,
    data: Any = None,
    loss: Any = None,
    recalibrate: Any = None,
    verify: bool = True,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    inplace: bool = False,
) -> Pruned:
    """Remove channels from a model, everywhere where they are coupled, and return the smaller plain model.

    The model is traced on the example inputs, its channel units are scored, and the least important indices are cut out
    of every parameter, buffer and attribute that holds them. Outputs of the model, such as class scores, keep their size.
    If anything fails, the model is as it was.

    Args:
        model: Any model, not wrapped for parallel training.
        inputs: Example inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        ratio: Share of the channels of each unit (local) or of all units together (global) to remove. Give this or a budget.
        budget: Most that the pruned model may cost: `dict(macs=0.5)`, `dict(params='2M')`, `dict(latency=0.7)`, or
            several; see `Budget`. The ratio is then as small as the budget allows.
        importance: What the indices are ranked by: `'l1'`, `'l2'`, `'lamp'`, `'fpgm'`, `'bn_scale'`, `'random'`,
            `'taylor'`, `'hessian'`, `'activation'`, `{'type': name, option: value}`, or a function of `(unit, model)`
            or `(unit, model, graph)` that returns one score for each index.
        scope: `'local'` or `'global'`; see `Selection`.
        steps: Prune in this many steps, each with a new trace and new scores.
        between: `between(model, step)` is called after each step, the last included, to train.
        schedule: `'linear'`, `'cubic'` or a function: which part of the whole is gone after which part of the steps.
        round_to: Lengths are multiples of this where possible.
        ignored: Patterns of units, layers or parameters whose channels stay.
        limits: pattern -> ratio, or (least, most); with several steps they are gone after the last, as the ratio is.
        attention: `'both'`, `'heads'`, `'head_dim'` or `'none'`; see `Selection`.
        max_ratio: No unit loses more than this share.
        normalise: How scores of units are made comparable: `'none'`, `'mean'` or `'max'`; the importance's own way if None.
        weigh: What one ranking over all units divides scores by: the `'macs'` or `'params'` that an index costs, or
            `'none'`. By default what the budget limits if scores estimate the loss (`'taylor'`, `'hessian'`), else none:
            the most is saved for the least loss.
        data: Batches, for an importance that looks at data.
        loss: A function of `(model, batch)`, or a module such as `nn.CrossEntropyLoss()`, for one that needs gradients.
        recalibrate: Batches to measure batch-norm statistics on after each step; see `strop.pruning.recalibrate`.
        verify: Check by numbers that the pruned model computes what the original with the removed indices masked does.
        seed: Seed of whatever is random.
        optimizer: An optimizer of this model whose state is cut too; needs `inplace=True`.
        inplace: Change `model` itself instead of a copy.

    Returns:
        The model and the record; unpacks as `model, record`.

    Raises:
        ConfigError: If an argument is not what it can be, or nothing is left to prune.
        BudgetError: If the budget cannot be reached; the message has the smallest that can.
        GraphError: If the model cannot be traced.
        VerificationError: If the check fails; no unverified model is returned.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> slim, record = prune(net, torch.rand(2, 3, 8, 8), ratio=0.5)
    >>> slim[0].out_channels, slim[3].in_channels, slim[3].out_channels
    (4, 4, 4)
    """
    pruner = Pruner(
        model,
        inputs,
        ratio=ratio,
        budget=budget,
        importance=importance,
        scope=scope,
        steps=steps,
        schedule=schedule,
        round_to=round_to,
        ignored=ignored,
        limits=limits,
        attention=attention,
        max_ratio=max_ratio,
        normalise=normalise,
        weigh=weigh,
        data=data,
        loss=loss,
        recalibrate=recalibrate,
        verify=verify,
        seed=seed,
        optimizer=optimizer,
        inplace=inplace,
    )
    with _restored_on_failure(pruner.model, optimizer) if inplace else _nothing():
        for step in pruner:
            if between is not None:
                between(pruner.model, step)
        return Pruned(pruner.model, pruner.record)


@dataclass(frozen=True)
class _Options:
    ratio: float | None = None
    budget: BudgetLike | None = None
    importance: ImportanceLike = 'l1'
    scope: str = 'local'
    steps: int = 1
    schedule: ScheduleLike = 'linear'
    round_to: int = 1
    ignored: Iterable[str] | str = ()
    limits: Mapping[str, Limit] | None = None
    attention: str = 'both'
    max_ratio: float = 0.95
    normalise: str | None = None
    weigh: str | None = None
    data: Any = None
    loss: Any = None
    recalibrate: Any = None
    verify: bool = True
    seed: int = 0
    optimizer: torch.optim.Optimizer | None = None
    inplace: bool = False


class Pruner:
    """Pruning step by step, for a training loop of your own.

    Iterate over it, or call `step` until `finished`; `model` is the model so far, with new parameters after each step
    (give `optimizer` and `inplace=True`, or make a new optimizer). A step that fails changes nothing.

    Args:
        model: Any model, not wrapped for parallel training.
        inputs: Example inputs.
        options: The arguments of `prune` besides `between`.

    Raises:
        ConfigError: If an option is unknown or not what it can be.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> pruner = Pruner(net, torch.rand(2, 4), ratio=0.5, steps=2)
    >>> [pruner.model[0].out_features for step in pruner]
    [6, 4]
    """

    def __init__(self, model: nn.Module, inputs: Any, **options: Any) -> None:
        known = [field.name for field in fields(_Options)]
        for name in options:
            if name not in known:
                raise ConfigError(f'`Pruner` has no option {name!r}.{near(name, known)}')
        self._options = given = _Options(**options)
        _check_model(model)
        # A compiled model is a wrapper; what is cut is the model inside.
        model = getattr(model, '_orig_mod', model)
        self._budget = Budget.of(given.budget)
        if (given.ratio is None) == (self._budget is None):
            raise ConfigError(
                'Say how far to prune by `ratio=` (share of channels to remove) or by `budget=` (such as dict(macs=0.5)), '
                f'and by one of them only; got ratio={given.ratio!r}, budget={given.budget!r}.'
            )
        if given.ratio is not None and check_ratio(given.ratio) > check_ratio(given.max_ratio, 'max_ratio'):
            raise ConfigError(f'The ratio {given.ratio} is above max_ratio={given.max_ratio}. Raise `max_ratio` as well.')
        self._milestones = milestones(given.steps, given.schedule)
        self._judge = build_importance(given.importance, seed=given.seed)
        self._selection = Selection(
            scope=given.scope,
            round_to=given.round_to,
            ignored=given.ignored,  # type: ignore[arg-type]
            limits=given.limits or {},
            attention=given.attention,
            max_ratio=given.max_ratio,
            normalise=given.normalise or getattr(self._judge, 'normalise', 'mean'),
        )
        if given.weigh not in (None, 'macs', 'params', 'none'):
            raise ConfigError(f"`weigh` must be 'macs', 'params' or 'none', but got {given.weigh!r}.")
        if given.optimizer is not None and not given.inplace:
            raise ConfigError('An optimizer holds the parameters of the model it was made for: give `inplace=True` with it.')
        if given.optimizer is not None:
            own = {id(parameter) for parameter in model.parameters()}
            if not any(id(parameter) in own for group in given.optimizer.param_groups for parameter in group['params']):
                raise ConfigError('The optimizer holds no parameter of this model. Give the one that trains it.')
        if given.steps > 1:
            for name in ('data', 'recalibrate'):
                if getattr(given, name) is not None and isinstance(getattr(given, name), Iterator):
                    raise ConfigError(
                        f'`{name}` is an iterator, which {given.steps} steps would use up: give a list or a loader.'
                    )
        #: The model so far.
        self.model = model
        self._original, self._inputs = model, moved_to(model, inputs)
        self._sizes: dict[str, int] = {}
        self._roles: dict[str, str] = {}
        self._lengths: dict[str, int] = {}
        self._costs: dict[str, float] = {}
        self._steps: list[Step] = []
        self._latency: tuple[float, float] | None = None
        self._frozen = 0
        self._notes: list[str] = []
        self._reference: nn.Module | None = None

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return len(self._steps) >= len(self._milestones)

    def __len__(self) -> int:
        return len(self._milestones)

    def __iter__(self) -> Iterator[int]:
        while not self.finished:
            self.step()
            yield len(self._steps) - 1

    @property
    def record(self) -> PruneRecord:
        """What was done so far."""
        if not self._steps:
            raise ConfigError('Nothing was pruned yet: call `step` first.')
        given, last = self._options, self._steps[-1]
        name = getattr(self._judge, 'name', '') or getattr(self._judge, '__name__', type(self._judge).__name__)
        return PruneRecord(
            units=tuple(UnitChange(n, self._roles[n], size, self._lengths.get(n, 0)) for n, size in self._sizes.items()),
            steps=tuple(self._steps),
            macs=(int(self._costs['macs']), last.macs),
            params=(int(self._costs['params']), last.params),
            importance=name,
            scope=given.scope,
            seed=int(given.seed),
            ratio=None if given.ratio is None else float(given.ratio),
            budget=None if self._budget is None else str(self._budget),
            latency=self._latency,
            frozen=self._frozen,
            notes=tuple(dict.fromkeys(self._notes)),
        )

    def step(self) -> Step:
        """Prune once more, and return what that step did.

        Raises:
            ConfigError: If every step is done, or nothing can be pruned.
            BudgetError: If the budget cannot be reached.
            GraphError: If the model cannot be traced.
            VerificationError: If the pruned model fails the check.
        """
        if self.finished:
            raise ConfigError(f'All {len(self)} steps are done.')
        _check_model(self.model)
        progress = self._milestones[len(self._steps)]
        graph = channel_units(self.model, self._inputs)
        costs = WidthCosts(graph)
        self._remember(graph, costs)
        ranked = self._ranked(graph, costs)
        ranking = ranked(progress)
        if self._options.ratio is not None and not self._steps and not _cuts(ranked(1.0), self._options.ratio):
            raise ConfigError(
                f'The ratio {self._options.ratio} removes nothing here: every unit keeps its length after rounding to '
                f'multiples of {self._selection.round_to} and keeping the lengths that depend on each other consistent.'
            )
        ratio, lengths = self._goal(graph, costs, ranking, progress)
        slicing = graph.slicing(ranking.keep(lengths))
        if self._options.inplace and self._reference is None and self._budget and 'latency' in self._budget.resources:
            self._reference = copy.deepcopy(self.model)
        pruned, error = self._pruned(slicing)
        done = Step(
            ratio=float(ratio),
            kept={
                name: tuple(slicing.indices[name].tolist()) for name, n in slicing.lengths.items() if n < graph.units[name].size
            },
            macs=costs.macs(slicing.lengths),
            params=costs.params(slicing.lengths),
            error=error,
        )
        if pruned is not None and not self._options.inplace:
            self.model = pruned
        else:
            slicing.apply(self.model, optimizer=self._options.optimizer, inplace=True)
            if pruned is not None and self._options.recalibrate is not None:
                _copy_buffers(pruned, self.model)
        self._lengths.update(slicing.lengths)
        self._steps.append(done)
        self._notes.extend(self._remarks(graph, ranking))
        return done

    # -- internals -------------------------------------------------------------------------

    def _remember(self, graph: ChannelGraph, costs: WidthCosts) -> None:
        if not self._costs:
            self._costs = {resource: float(cost_of(costs, resource)) for resource in ('macs', 'params')}
            self._frozen = len(graph.frozen)
        for name, unit in graph.units.items():
            self._sizes.setdefault(name, unit.size)
            self._roles.setdefault(name, unit.role)
            self._lengths.setdefault(name, unit.size)

    def _ranked(self, graph: ChannelGraph, costs: WidthCosts) -> Callable[[float], Ranking]:
        """Score the model; return what ranks it for a part of the whole way, of which limits have their part too."""
        given = self._options
        scores = score(graph, self.model, self._judge, data=given.data, loss=given.loss, seed=given.seed)
        weighed = given.weigh
        if weighed is None and self._budget is not None and getattr(self._judge, 'is_loss', False):
            weighed = next((resource for resource in self._budget.resources if resource != 'latency'), None)
        prices = cost_of_indices(costs, weighed) if weighed in ('macs', 'params') and given.scope == 'global' else None
        return lambda progress: Ranking(graph, self.model, scores, self._selection.part(progress), self._sizes, prices)

    def _goal(self, graph: ChannelGraph, costs: WidthCosts, ranking: Ranking, progress: float) -> tuple[float, dict[str, int]]:
        """Return the ratio of this step and the lengths that it gives."""
        if self._budget is None:
            ratio = float(self._options.ratio) * progress  # type: ignore[arg-type]
            return ratio, ranking.lengths(ratio)
        ratio, lengths = 0.0, None
        if {'macs', 'params'} & set(self._budget.resources):
            ratio, lengths = meet(self._budget, costs, ranking.lengths, self._costs, progress)
        if 'latency' in self._budget.resources:
            ratio, lengths = self._by_latency(graph, ranking, progress, ratio), None
        if lengths is None:
            lengths = ranking.lengths(ratio)
        return max([ratio, *(step.ratio for step in self._steps)]), lengths

    def _by_latency(self, graph: ChannelGraph, ranking: Ranking, progress: float, least: float) -> float:
        budget = self._budget
        assert budget is not None, 'only called with a budget'
        original = self._original if self._reference is None else self._reference
        measured: dict[float, tuple[float, float]] = {}

        def fits(ratio: float) -> bool:
            trial = graph.shrink(self.model, ranking.keep(ranking.lengths(ratio)))
            measured[ratio] = measured_share(budget, original, trial, self._inputs)
            return within_latency(budget, *measured[ratio], progress)

        # A slow moment of the machine can make the whole model look fast enough; where nothing was cut, nothing is won.
        whole = not least and not self._steps and budget.is_share('latency')
        found = smallest_ratio(lambda ratio: (ratio > 0 or not whole) and fits(ratio), halvings=_LATENCY_TRIES, low=least)
        # The halving ends at the edge of the budget: what it found is measured once more, and so are some beyond it.
        beyond = [] if found is None else [min(1.0, found + 0.02 * number) for number in range(_LATENCY_TRIES)]
        found = next((ratio for ratio in dict.fromkeys([*beyond, 1.0]) if fits(ratio)), None) if beyond else None
        if found is None:
            share, milliseconds = measured[1.0]
            raise BudgetError(
                f'The budget latency ≤ {budget.latency} cannot be met: the smallest that can be reached was measured as '
                f'{milliseconds:.3f} ms ({share:.3f} of the original). Loosen the budget, `ignored`, `limits` or `max_ratio`.'
            )
        self._latency = measured[found]
        return found

    def _pruned(self, slicing: Slicing) -> tuple[nn.Module | None, float | None]:
        """Return a pruned, verified and recalibrated copy of the model, where one is needed, and the error of the check."""
        given = self._options
        if given.inplace and not given.verify and given.recalibrate is None:
            return None, None
        pruned = slicing.apply(self.model)
        error = verify(self.model, pruned, slicing, self._inputs) if self._options.verify else None
        if self._options.recalibrate is not None:
            recalibrated(pruned, self._options.recalibrate)
        return pruned, error

    def _remarks(self, graph: ChannelGraph, ranking: Ranking) -> Iterator[str]:
        if graph.note:
            yield graph.note
        if graph.unreached:
            yield (
                f'The forward in evaluation mode does not use {listed(graph.unreached, 5)}, which keep their sizes: what they '
                'are given in training may not fit. Take them out, or name the layers that feed them in `ignored`.'
            )
        if ranking.unjudged:
            names = listed(ranking.unjudged, 5)
            yield f'The importance has no scores for {len(ranking.unjudged)} units, which stay whole: {names}.'


# -- internals ----------------------------------------------------------------------------------------------


def _cuts(ranking: Ranking, ratio: float) -> bool:
    """Whether a ratio makes any unit shorter."""
    return any(number < ranking.graph.units[name].size for name, number in ranking.lengths(ratio).items())


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f'`model` must be an nn.Module, but got {type(model).__name__}.')
    for path, module in model.named_modules():
        name = type(module).__name__
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or name == 'FullyShardedDataParallel':
            where = f'its module {path!r}' if path else 'it'
            raise ConfigError(
                f'Prune before the model is wrapped: {where} is a {name}, whose buckets hold the old parameters. Prune '
                '`model.module` on every process alike (the same seed gives the same indices), then wrap the result.'
            )


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    found = dict(source.named_buffers())
    with torch.no_grad():
        for name, buffer in target.named_buffers():
            buffer.copy_(found[name])


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _restored_on_failure(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Put a model and its optimizer back as they were if the block raises."""
    modules = [(m, dict(vars(m)), [dict(store) for store in _stores(m)]) for m in model.modules()]
    tensors = [_Kept(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    groups, state = [], {}
    if optimizer is not None:
        groups = [(group, {**group, 'params': list(group['params'])}) for group in optimizer.param_groups]
        state = {parameter: copy.deepcopy(values) for parameter, values in optimizer.state.items()}
    try:
        yield
    except BaseException:
        for module, attributes, contents in modules:
            _refill(module.__dict__, attributes)
            for store, content in zip(_stores(module), contents):
                _refill(store, content)
        for kept in tensors:
            kept.put_back()
        if optimizer is not None:
            for group, content in groups:
                _refill(group, content)
            _refill(optimizer.state, state)
        raise


class _Kept:
    """A parameter or buffer as it was: its memory, what was in it, and its gradient."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.memory, self.values = tensor, tensor.data, tensor.data.clone()
        self.flag, self.grad = tensor.requires_grad, tensor.grad
        self.slope = None if self.grad is None else self.grad.clone()

    def put_back(self) -> None:
        with torch.no_grad():
            put_data(self.tensor, self.memory)
            self.tensor.data.copy_(self.values)
            if self.grad is not None and self.slope is not None:
                self.tensor.grad = self.grad.copy_(self.slope)
            self.tensor.requires_grad_(self.flag)


def _stores(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, module._modules


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.update(content)
