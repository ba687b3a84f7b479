"""How much each index of a channel unit matters: scores by name, or by any function of yours.

An importance is a callable `(unit, model, graph)` that returns one number for each index of the unit, higher for what
should stay, or None where it has nothing to say about a unit (which then stays whole).
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, Union

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from strop.errors import ConfigError, listed, near
from strop.graph.forward import gives_second_axis, training_mode_kept
from strop.pruning.placements import (
    batches_of,
    chosen,
    forward,
    gathered,
    gives,
    is_norm,
    learned,
    loss_of,
    owner,
    rows,
    slices,
    tensor,
)
from strop.randomness import counter_rng, seeded

if TYPE_CHECKING:
    from strop.graph import ChannelGraph, ChannelUnit, Placement

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'mean': lambda scores: scores.mean(0),
    'sum': lambda scores: scores.sum(0),
    'max': lambda scores: scores.amax(0),
}
_NORMALISERS: dict[str, Callable[[Tensor], Tensor]] = {
    'none': lambda scores: scores,
    'mean': lambda scores: scores / _positive(scores.mean()),
    'max': lambda scores: scores / _positive(scores.amax()),
}


class Importance(ABC):
    r"""A score for each index of a unit: one for each tensor that the index lives in, reduced to one number.

    An index of a unit is a filter here, an input channel there and an entry of a bias elsewhere. Each such placement
    :math:`p` gives a score :math:`s_p(i)`, and the unit's is :math:`\operatorname{reduce}_p s_p(i)`.

    Args:
        reduce: `'mean'`, `'sum'` or `'max'` over the placements.

    Raises:
        ConfigError: If `reduce` is none of these.
    """

    name = ''
    #: Whether `gather` must see data before scores can be given.
    needs_data = False
    #: Whether the data must come with a loss.
    needs_loss = False
    #: How scores of different units are made comparable when all units are ranked together: see `normalised`.
    normalise = 'mean'
    #: Whether scores estimate a change of the loss. Under a budget, a ranking of all units then divides them by what an
    #: index costs: the most is saved for the least loss.
    is_loss = False

    def __init__(self, reduce: str = 'mean') -> None:
        _option('reduce', reduce, _REDUCTIONS)
        self.reduce = reduce

    @abstractmethod
    def __call__(self, unit: ChannelUnit, model: nn.Module, graph: ChannelGraph | None = None) -> Tensor | None:
        """Return the scores of the indices, `(unit.size,)`, or None for a unit that it cannot judge."""

    def gather(self, model: nn.Module, graph: ChannelGraph, data: Any, loss: Any = None) -> None:  # noqa: B027
        """Run the data through the model once, for all units; nothing to do for scores of weights alone."""

    def reduced(self, scores: list[Tensor], size: int) -> Tensor:
        """Return one score for each index from one for each placement."""
        return _REDUCTIONS[self.reduce](torch.stack(scores)) if scores else torch.zeros(size)


IMPORTANCES: dict[str, type[Importance]] = {}

ImportanceType = TypeVar('ImportanceType', bound=type[Importance])
ImportanceLike = Union[str, Importance, type[Importance], Mapping[str, Any], Callable[..., Any]]


def register_importance(name: str) -> Callable[[ImportanceType], ImportanceType]:
    """Return a class decorator that makes an importance reachable as `name`.

    Raises:
        ConfigError: If the name is taken.
    """

    def register(cls: ImportanceType) -> ImportanceType:
        if IMPORTANCES.setdefault(name, cls) is not cls:
            raise ConfigError(f'The importance name {name!r} is taken by {IMPORTANCES[name].__name__}.')
        cls.name = name
        return cls

    return register


def build_importance(importance: ImportanceLike, **defaults: Any) -> Callable[..., Any]:
    """Return the importance that is meant: a callable, a class, a name, or `{'type': name, option: value, ...}`.

    Args:
        importance: What is meant.
        defaults: Options for those importances that have them, such as `seed`.

    Raises:
        ConfigError: If there is no such importance (near matches are named) or it lacks an option.

    >>> build_importance({'type': 'l1', 'reduce': 'max'}).reduce
    'max'
    """
    options: dict[str, Any] = {}
    if isinstance(importance, Mapping):
        options = {key: value for key, value in importance.items() if key != 'type'}
        importance = importance.get('type', 'l1')
    if isinstance(importance, str):
        if importance not in IMPORTANCES:
            raise ConfigError(
                f'There is no importance {importance!r}.{near(importance, IMPORTANCES)} There are {listed(IMPORTANCES, 20)}.'
            )
        importance = IMPORTANCES[importance]
    if isinstance(importance, type) and issubclass(importance, Importance):
        known = inspect.signature(importance.__init__).parameters
        for option in options:
            if option not in known or option == 'self':
                raise ConfigError(
                    f'The importance {importance.name!r} has no option {option!r}.{near(option, known)} '
                    f'It has {listed([key for key in known if key != "self"])}.'
                )
        return importance(**{**{key: value for key, value in defaults.items() if key in known}, **options})
    if not callable(importance) or isinstance(importance, type):
        raise ConfigError(
            f'`importance` must be a name ({listed(IMPORTANCES, 20)}) or a function of (unit, model), but got {importance!r}.'
        )
    # What is gathered belongs to one call; an instance that is used twice must not keep the first one's.
    return copy.copy(importance) if isinstance(importance, Importance) else importance


def score(
    graph: ChannelGraph,
    model: nn.Module,
    importance: ImportanceLike = 'l1',
    *,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the scores of every unit that the importance can judge, as `unit name -> (unit.size,)`.

    Args:
        graph: The units of the model.
        model: The model; it is left as it is, gradients included.
        importance: A name, an instance, `{'type': name, ...}` or a function of `(unit, model)` or `(unit, model, graph)`.
        data: Batches, for an importance that needs them.
        loss: See `loss_of`; for an importance that needs gradients.
        seed: Seed of whatever is random.

    Raises:
        ConfigError: If data or a loss is missing, or scores are not one finite number for each index.
    """
    judge = build_importance(importance, seed=seed)
    if isinstance(judge, Importance):
        if judge.needs_data and data is None:
            raise ConfigError(
                f'The importance {judge.name!r} looks at data: give `data=` (batches)'
                f'{" and `loss=` (a function of (model, batch))" if judge.needs_loss else ""}.'
            )
        if judge.needs_loss and loss is None:
            raise ConfigError(
                f'The importance {judge.name!r} needs gradients: give `loss=`, a function of (model, batch) that returns a '
                'scalar, or a module such as nn.CrossEntropyLoss() for batches of (inputs, targets).'
            )
        if judge.needs_data and graph.units:
            judge.gather(model, graph, data, loss)
    with_graph = _takes_graph(judge)
    scores = {}
    for unit in graph.units.values():
        given = judge(unit, model, graph) if with_graph else judge(unit, model)
        if given is not None:
            scores[unit.name] = _checked(given, unit, judge)
    return scores


def normalised(scores: Tensor, how: str) -> Tensor:
    """Return scores on a scale that units can be compared on: `'none'`, or divided by their `'mean'` or `'max'`.

    >>> normalised(torch.tensor([1.0, 3.0]), 'mean')
    tensor([0.5000, 1.5000])
    """
    _option('normalise', how, _NORMALISERS)
    return _NORMALISERS[how](scores)


# -- of weights ---------------------------------------------------------------------------------------------


class _Norm(Importance):
    order = 1

    def __init__(self, reduce: str = 'mean', parts: str = 'all') -> None:
        super().__init__(reduce)
        self.parts = parts

    def __call__(self, unit: ChannelUnit, model: nn.Module, graph: ChannelGraph | None = None) -> Tensor:
        return self.reduced([self.norm(model, p, unit.size) for p in chosen(unit, model, self.parts)], unit.size)

    def norm(self, model: nn.Module, placement: Placement, size: int) -> Tensor:
        """Return the norm of what each index holds in one tensor."""
        weight = _wide(tensor(model, placement.tensor).detach())
        others = [dim for dim in range(weight.dim()) if dim != placement.axis]
        each = torch.linalg.vector_norm(weight, self.order, others) if others else weight.abs()
        if len(each) == size:
            return gathered(each, placement, size)
        return gathered(each**self.order, placement, size) ** (1 / self.order)


@register_importance('l1')
class L1(_Norm):
    r"""The sum of absolute weights, :math:`s_p(i) = \sum_{w \in W_p[i]} |w|`.

    Li et al., Pruning Filters for Efficient ConvNets, https://arxiv.org/abs/1608.08710. The paper judges a filter by its
    own weights (`parts='out'`); here the layers that read the channel count too, unless told otherwise.

    Args:
        reduce: `'mean'`, `'sum'` or `'max'` over the tensors that the index lives in.
        parts: `'all'` of them, those of layers that give the channel `'out'`, or that take it `'in'`.

    >>> from strop.graph import channel_units
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    >>> graph = channel_units(net, torch.rand(1, 2))
    >>> L1(parts='out')(graph.units['0'], net)
    tensor([3.0000, 0.5000])
    """

    order = 1


@register_importance('l2')
class L2(_Norm):
    r"""The Euclidean norm, :math:`s_p(i) = \sqrt{\sum_{w \in W_p[i]} w^2}`. Arguments as of `L1`."""

    order = 2


@register_importance('lamp')
class LAMP(_Norm):
    r"""The squared norm relative to that of everything at least as large in its unit: global ranking without tuning.

    .. math:: s(i) = \frac{\|W[i]\|^2}{\sum_{j:\, \|W[j]\| \ge \|W[i]\|} \|W[j]\|^2}

    Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, https://arxiv.org/abs/2010.07611. The paper
    scores single weights of a layer; here an index of a unit takes the place of a weight. Arguments as of `L1`.
    """

    order = 2
    normalise = 'none'

    def __call__(self, unit: ChannelUnit, model: nn.Module, graph: ChannelGraph | None = None) -> Tensor:
        squares = self.reduced([self.norm(model, p, unit.size) ** 2 for p in chosen(unit, model, self.parts)], unit.size)
        order = torch.argsort(squares, stable=True)
        rising = squares[order]
        above = rising.flip(0).cumsum(0).flip(0)
        result = torch.empty_like(squares)
        result[order] = rising / above.clamp_min(torch.finfo(squares.dtype).tiny)
        return result


@register_importance('fpgm')
class FPGM(Importance):
    r"""The distance to all other filters of the unit, :math:`s_p(i) = \sum_j \|W_p[i] - W_p[j]\|_2`.

    What lies near the geometric median of a layer can be replaced by the others. He et al., Filter Pruning via Geometric
    Median, https://arxiv.org/abs/1811.00250. Arguments as of `L1`, but by default only filters count, as in the paper.
    """

    def __init__(self, reduce: str = 'mean', parts: str = 'out') -> None:
        super().__init__(reduce)
        self.parts = parts

    def __call__(self, unit: ChannelUnit, model: nn.Module, graph: ChannelGraph | None = None) -> Tensor:
        scores = []
        for placement in chosen(unit, model, self.parts):
            held = slices(_wide(tensor(model, placement.tensor).detach()), placement, unit.size)
            scores.append(torch.cdist(held, held, compute_mode='donot_use_mm_for_euclid_dist').sum(1))
        return self.reduced(scores, unit.size)


@register_importance('bn_scale')
class NormScale(Importance):
    r"""The scale of the norms, :math:`s_p(i) = |\gamma_i|`; units without a norm are not judged, and stay whole.

    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, https://arxiv.org/abs/1708.06519: to
    be used after training with `ScaleL1`. The paper ranks all scales together as they are, and so does `scope='global'`.
    Scales of group, layer and RMS norms count as well.

    Args:
        reduce: `'mean'`, `'sum'` or `'max'` over the norms of the unit.
    """

    normalise = 'none'

    def __call__(self, unit: ChannelUnit, model: nn.Module, graph: ChannelGraph | None = None) -> Tensor | None:
        scores = []
        for placement in learned(unit, model):
            module, last = owner(model, placement.tensor)
            if last == 'weight' and is_norm(module) and tensor(model, placement.tensor).dim() == 1:
                scale = _wide(tensor(model, placement.tensor).detach()).abs()
                count = gathered(torch.ones_like(scale), placement, unit.size).clamp_min(1)
                scores.append(gathered(scale, placement, unit.size) / count)
        return self.reduced(scores, unit.size) if scores else None


@register_importance('random')
class Random(Importance):
    """Uniform random scores, a function of the seed and the unit's name: the baseline for all others.

    Args:
        seed: The seed.
    """

    normalise = 'none'

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def __call__(self, unit: ChannelUnit, model: nn.Module, graph: ChannelGraph | None = None) -> Tensor:
        return torch.from_numpy(counter_rng(self.seed, f'importance of {unit.name}').random(unit.size))


# -- of data ------------------------------------------------------------------------------------------------


class _Gathered(Importance):
    needs_data = True
    normalise = 'none'

    def __init__(self, reduce: str = 'mean') -> None:
        super().__init__(reduce)
        self.scores: dict[str, Tensor | None] | None = None

    def __call__(self, unit: ChannelUnit, model: nn.Module, graph: ChannelGraph | None = None) -> Tensor | None:
        if self.scores is None:
            raise ConfigError(
                f'The importance {self.name!r} has seen no data yet: call `gather(model, graph, data, loss)` first.'
            )
        if unit.name not in self.scores:
            raise ConfigError(f'The importance {self.name!r} was gathered on another graph, without the unit {unit.name!r}.')
        return self.scores[unit.name]


@register_importance('taylor')
class Taylor(_Gathered):
    r"""The squared first-order change of the loss when an index is removed, averaged over batches.

    .. math:: s_p(i) = \frac1B \sum_b \Bigl(\sum_{w \in W_p[i]} w\, \frac{\partial L_b}{\partial w}\Bigr)^2

    Molchanov et al., Importance Estimation for Neural Network Pruning, https://arxiv.org/abs/1906.10771, eq. 8 summed
    inside the square: the gate form of the paper. :math:`W_p[i]` is what one layer holds of the index on one side, its
    weights and bias together, so a batch norm's :math:`\gamma` and :math:`\beta` act as one gate. The model is in eval
    mode meanwhile.

    Args:
        reduce: `'mean'`, `'sum'` or `'max'` over layers and sides. What one removal changes in many layers adds up.
        signed: Whether contributions may cancel inside an index; otherwise each weight's is squared on its own, the
            form that the paper uses where it has no gates.
    """

    needs_loss = True
    is_loss = True

    def __init__(self, reduce: str = 'sum', signed: bool = True) -> None:
        super().__init__(reduce)
        self.signed = signed

    def gather(self, model: nn.Module, graph: ChannelGraph, data: Any, loss: Any = None) -> None:
        """Accumulate the contributions of all units in one pass over the data."""
        sites = {unit.name: _sites(unit, model) for unit in graph.units.values()}
        axes = {(p.tensor, p.axis) for parts in sites.values() for site in parts.values() for p in site}
        totals: dict[tuple[str, tuple[str, int]], Tensor] = {}
        count = 0
        for count, (weights, grads) in enumerate(_gradients(model, {name for name, _ in axes}, data, loss), 1):  # noqa: B007
            contribution = {name: _wide(weights[name]) * _wide(grads[name]) for name in weights}
            if not self.signed:
                contribution = {name: value**2 for name, value in contribution.items()}
            each = {(name, axis): rows(contribution[name], axis) for name, axis in axes}
            for unit in graph.units.values():
                for key, site in sites[unit.name].items():
                    total = torch.stack([gathered(each[p.tensor, p.axis], p, unit.size) for p in site]).sum(0)
                    total = total**2 if self.signed else total
                    totals[unit.name, key] = totals.get((unit.name, key), 0) + total
        self.scores = {
            unit.name: self.reduced([totals[unit.name, key] / count for key in sites[unit.name]], unit.size)
            for unit in graph.units.values()
        }


@register_importance('hessian')
class Hessian(_Gathered):
    r"""The second-order change of the loss when an index is removed, from the diagonal of the Hessian.

    .. math:: s_p(i) = \tfrac12 \sum_{w \in W_p[i]} h_w\, w^2

    LeCun et al., Optimal Brain Damage, NIPS 1989 (https://papers.nips.cc/paper/250-optimal-brain-damage), which computes
    :math:`h` by a second back-propagation. Here it is the empirical Fisher diagonal, the mean of squared gradients over
    batches (exact with batches of one sample), or Hutchinson's estimate :math:`E[v \odot Hv]` with random signs
    :math:`v`. Sums below zero count as zero. The model is in eval mode meanwhile.

    Args:
        reduce: `'mean'`, `'sum'` or `'max'` over the tensors that the index lives in.
        diagonal: `'fisher'` or `'hutchinson'`; the second differentiates twice.
        draws: Random vectors for each batch, for `'hutchinson'`.
        seed: Their seed.
    """

    needs_loss = True
    is_loss = True

    def __init__(self, reduce: str = 'sum', diagonal: str = 'fisher', draws: int = 1, seed: int = 0) -> None:
        super().__init__(reduce)
        _option('diagonal', diagonal, ('fisher', 'hutchinson'))
        if not isinstance(draws, int) or draws < 1:
            raise ConfigError(f'`draws` must be a number of random vectors, 1 or more, but got {draws!r}.')
        self.diagonal, self.draws, self.seed = diagonal, draws, seed

    def gather(self, model: nn.Module, graph: ChannelGraph, data: Any, loss: Any = None) -> None:
        """Accumulate the diagonal for all units in one pass over the data."""
        placements = {unit.name: learned(unit, model) for unit in graph.units.values()}
        axes = {(p.tensor, p.axis) for parts in placements.values() for p in parts}
        totals: dict[tuple[str, int], Tensor] = defaultdict(lambda: torch.zeros(()))
        count = 0
        twice = self.diagonal == 'hutchinson'
        names = {name for name, _ in axes}
        for count, (weights, grads) in enumerate(_gradients(model, names, data, loss, twice=twice), 1):
            if twice:
                curvature = self._hutchinson(weights, grads, count)
            else:
                curvature = {name: _wide(grad) ** 2 for name, grad in grads.items()}
            saliency = {name: curvature[name] * _wide(weights[name].detach()) ** 2 / 2 for name in weights}
            for name, axis in axes:
                each = rows(saliency[name], axis)
                totals[name, axis] = totals[name, axis].to(each) + each
        self.scores = {
            unit.name: self.reduced(
                [gathered(totals[p.tensor, p.axis] / count, p, unit.size).clamp_min(0) for p in placements[unit.name]],
                unit.size,
            )
            for unit in graph.units.values()
        }

    def _hutchinson(self, weights: dict[str, Tensor], grads: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        names = [name for name, grad in grads.items() if grad.requires_grad]
        result = {name: torch.zeros_like(_wide(weight.detach())) for name, weight in weights.items()}
        for draw in range(self.draws if names else 0):
            with seeded(self.seed, 'hutchinson', batch * self.draws + draw, gpus=False):
                signs = [torch.randint(0, 2, weights[name].shape).to(weights[name]) * 2 - 1 for name in names]
            products = torch.autograd.grad(
                [grads[name] for name in names], [weights[name] for name in names], signs, retain_graph=True, allow_unused=True
            )
            for name, sign, product in zip(names, signs, products):
                if product is not None:
                    result[name] += _wide(sign * product) / self.draws
        return result


@register_importance('activation')
class Activation(_Gathered):
    r"""The mean absolute activation of a channel, :math:`s(i) = E\,|x_i|`.

    Read where layers take the channel in, behind the non-linearity, or where layers give it out if none takes it in.
    In the spirit of Hu et al., Network Trimming, https://arxiv.org/abs/1607.03250, which counts zeros instead. The model
    is in eval mode meanwhile.

    Args:
        reduce: `'mean'`, `'sum'` or `'max'` over the layers.
    """

    normalise = 'mean'

    def gather(self, model: nn.Module, graph: ChannelGraph, data: Any, loss: Any = None) -> None:
        """Record the activations of all units in one pass over the data."""
        taken = {unit.name: _readings(unit, model) for unit in graph.units.values()}
        wanted = {(path, side) for readings in taken.values() for path, side, _ in readings}
        sums: dict[tuple[str, str], Tensor] = {}
        counts: dict[tuple[str, str], int] = defaultdict(int)

        def record(path: str, side: str, module: nn.Module, value: Any) -> None:
            if isinstance(value, Tensor) and value.is_floating_point():
                axis = _channel_axis(module, value)
                each = rows(_wide(value.detach()).abs(), axis)
                sums[path, side] = sums[path, side] + each if (path, side) in sums else each
                counts[path, side] += value.numel() // value.shape[axis]

        def taking(path: str) -> Callable[..., None]:
            def before(module: nn.Module, args: Any, kwargs: Any) -> None:
                record(path, 'in', module, args[0] if args else kwargs.get('input'))

            return before

        handles = []
        try:
            for path, side in wanted:
                module = model.get_submodule(path)
                if side == 'in':
                    handles.append(module.register_forward_pre_hook(taking(path), with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(lambda m, args, out, p=path: record(p, 'out', m, out)))
            with training_mode_kept(model), torch.no_grad():
                model.eval()
                for batch in batches_of(data):
                    forward(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        self.scores = {}
        for unit in graph.units.values():
            scores = []
            for path, side, placement in taken[unit.name]:
                if (path, side) in sums and len(sums[path, side]) == len(placement.index):
                    positions = gathered(torch.ones_like(sums[path, side]), placement, unit.size).clamp_min(1)
                    mean = sums[path, side] / counts[path, side]
                    scores.append(gathered(mean, placement, unit.size) / positions)
            self.scores[unit.name] = self.reduced(scores, unit.size) if scores else None


# -- internals ----------------------------------------------------------------------------------------------


def _positive(value: Tensor) -> Tensor:
    return torch.where(value > 0, value, torch.ones_like(value))


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _option(name: str, value: Any, known: Any) -> None:
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f'`{name}` must be one of {listed(known)}, but got {value!r}.{near(value, known)}')


def _takes_graph(judge: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(judge).parameters.values())
    except (TypeError, ValueError):
        return False
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) >= 3


def _checked(given: Any, unit: ChannelUnit, judge: Callable[..., Any]) -> Tensor:
    name = getattr(judge, 'name', '') or getattr(judge, '__name__', type(judge).__name__)
    if not isinstance(given, Tensor) or given.shape != (unit.size,):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ConfigError(
            f'An importance returns one number for each of the {unit.size} indices of {unit.name!r}, a tensor of shape '
            f'({unit.size},), but {name!r} returned {shape}.'
        )
    scores = given.detach().cpu().double()
    if not bool(torch.isfinite(scores).all()):
        raise ConfigError(f'The scores that the importance {name!r} gives to {unit.name!r} are not all finite.')
    return scores


def _sites(unit: ChannelUnit, model: nn.Module) -> dict[tuple[str, int], list[Placement]]:
    """Return (weight, axis) -> the placements that act as one gate: a layer's filters together with its bias."""
    sites: dict[tuple[str, int], list[Placement]] = defaultdict(list)
    for placement in learned(unit, model):
        path, _, last = placement.tensor.rpartition('.')
        name, axis = placement.tensor, placement.axis
        if last in ('bias', 'in_proj_bias'):
            name = f'{name.removesuffix("bias")}weight'
            axis = 1 if gives_second_axis(model.get_submodule(path)) else axis
        sites[name, axis].append(placement)
    return dict(sites)


def _gradients(
    model: nn.Module, names: set[str], data: Any, loss: Any, *, twice: bool = False
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield weights and gradients of each batch; the model's own `.grad`, mode and flags stay as they were."""
    weights = {name: tensor(model, name) for name in sorted(names)}
    flags = [(weight, weight.requires_grad) for weight in weights.values()]
    with training_mode_kept(model), torch.enable_grad():
        model.eval()
        try:
            for weight in weights.values():
                weight.requires_grad_(True)
            for batch in batches_of(data):
                # Fused attention has no second derivative.
                with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
                    value = loss_of(model, batch, loss)
                if not value.requires_grad:
                    raise ConfigError('`loss` returned a number without a gradient: was it computed under torch.no_grad()?')
                found = torch.autograd.grad(value.sum(), list(weights.values()), allow_unused=True, create_graph=twice)
                grads = {
                    name: torch.zeros_like(weight) if grad is None else grad
                    for (name, weight), grad in zip(weights.items(), found)
                }
                yield weights if twice else {name: weight.detach() for name, weight in weights.items()}, grads
        finally:
            for weight, flag in flags:
                weight.requires_grad_(flag)


def _readings(unit: ChannelUnit, model: nn.Module) -> list[tuple[str, str, Placement]]:
    """Return (module path, side, placement) for the layers whose inputs, or else outputs, are the unit's channels."""
    taken, given = [], []
    for placement in learned(unit, model):
        path, _, last = placement.tensor.rpartition('.')
        module = model.get_submodule(path)
        if last != 'weight':
            continue
        if isinstance(module, (_ConvNd, nn.Linear)):
            depthwise = isinstance(module, _ConvNd) and module.groups > 1
            # The input channels of a convolution with groups are counted on axis 0 where it is depthwise.
            aligned = placement.axis == 0 and module.in_channels == len(placement.index) if depthwise else True
            if aligned and gives(model, placement) == depthwise:
                taken.append((path, 'in', placement))
            elif gives(model, placement) and not (depthwise and isinstance(module, _ConvTransposeNd)):
                given.append((path, 'out', placement))
        elif isinstance(module, nn.Embedding) or (is_norm(module) and len(tensor(model, placement.tensor).shape) == 1):
            given.append((path, 'out', placement))
    return taken or given


def _channel_axis(module: nn.Module, value: Tensor) -> int:
    if isinstance(module, _ConvNd):
        return value.dim() - len(module.kernel_size) - 1
    if isinstance(module, (nn.Linear, nn.Embedding)):
        return value.dim() - 1
    count = len(module.weight)  # type: ignore[arg-type]
    # Norms of pictures hold their channels in the second axis, norms of tokens in the last.
    channels_last = type(module).__name__.lower().startswith(('layernorm', 'rms')) and '2d' not in type(module).__name__.lower()
    if channels_last and value.shape[-1] == count:
        return value.dim() - 1
    return 1 if value.dim() > 1 and value.shape[1] == count else value.dim() - 1
