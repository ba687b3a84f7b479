"""Regularisers for training that makes whole channels small before they are pruned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from strop.errors import ConfigError
from strop.pruning.placements import gathered, is_norm, learned, rows, tensor

if TYPE_CHECKING:
    from strop.graph import ChannelGraph, ChannelUnit


class Sparsity(ABC):
    """A penalty on a model's weights that drives whole indices of its channel units to zero.

    Call it for the penalty, and add that to the loss; or call `add_gradients` between `backward` and the optimizer's
    step, which costs no graph. Both give the same gradient.

    Args:
        weight: The penalty's weight.
    """

    def __init__(self, weight: float) -> None:
        if not isinstance(weight, (int, float)) or not weight >= 0:
            raise ConfigError(f'`weight` must be a number, 0 or more, but got {weight!r}.')
        self.weight = weight

    @abstractmethod
    def penalty(self, model: nn.Module) -> Tensor:
        """Return the penalty without its weight, of the model as the graph knows it."""

    @abstractmethod
    def names(self, model: nn.Module) -> list[str]:
        """Return the parameters that the penalty looks at."""

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the weighted penalty, a scalar with a gradient."""
        return self.weight * self.penalty(_unwrapped(model))

    def add_gradients(self, model: nn.Module) -> float:
        """Add the penalty's gradient to `.grad` of the parameters, and return the weighted penalty."""
        model = _unwrapped(model)
        weights = [w for w in (tensor(model, name) for name in self.names(model)) if w.requires_grad]
        with torch.enable_grad():
            value = self(model)
        if weights and value.requires_grad:
            for weight, grad in zip(weights, torch.autograd.grad(value, weights, allow_unused=True)):
                if grad is not None:
                    weight.grad = grad if weight.grad is None else weight.grad + grad
        return float(value.detach())


class GroupLasso(Sparsity):
    r"""The sum of the Euclidean norms of all that each index holds, over all units.

    .. math:: \Omega = \lambda \sum_u \sum_i \gamma_{u,i} \sqrt{\textstyle\sum_p \|W_p[i]\|^2}

    Wen et al., Learning Structured Sparsity in Deep Neural Networks, https://arxiv.org/abs/1608.03665, over coupled
    groups as in Fang et al., DepGraph, https://arxiv.org/abs/2301.12900, whose emphasis on the small ones is
    :math:`\gamma_{u,i} = 2^{\alpha (\max_j I_j - I_i) / (\max_j I_j - \min_j I_j)}` with :math:`I_i` the squared norm;
    with :math:`\alpha = 0`, :math:`\gamma = 1`. The paper penalises the squared norm (`squared=True`).

    Args:
        graph: The units of the model.
        weight: :math:`\lambda`.
        emphasis: :math:`\alpha`; the paper's is 4.
        squared: Penalise the squared norms.

    >>> from strop.graph import channel_units
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0], [0.0]]))
    >>> _ = net[1].weight.data.copy_(torch.tensor([[4.0, 2.0]]))
    >>> float(GroupLasso(channel_units(net, torch.rand(1, 1)), weight=1)(net).detach())
    7.0
    """

    def __init__(self, graph: ChannelGraph, weight: float = 1e-4, *, emphasis: float = 0.0, squared: bool = False) -> None:
        super().__init__(weight)
        self.graph, self.emphasis, self.squared = graph, emphasis, squared

    def names(self, model: nn.Module) -> list[str]:
        """Return the parameters that some unit lives in."""
        return _held(self.graph, model)

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the sum of the norms of all indices."""
        squares = {name: tensor(model, name) ** 2 for name in self.names(model)}
        each: dict[tuple[str, int], Tensor] = {}
        total: Tensor = torch.zeros(())
        for unit in self.graph.units.values():
            found = self._squares(unit, squares, each)
            if found is not None:
                gamma = self._gamma(found.detach())
                # The norm has no gradient at zero; there nothing is left to shrink.
                norms = found if self.squared else torch.where(found > 0, found, 1).sqrt() * (found > 0)
                total = total.to(norms) + (gamma * norms).sum()
        return total

    def _squares(self, unit: ChannelUnit, squares: dict[str, Tensor], each: dict[tuple[str, int], Tensor]) -> Tensor | None:
        parts = []
        for placement in unit.placements:
            if placement.tensor in squares:
                key = placement.tensor, placement.axis
                if key not in each:
                    each[key] = rows(squares[placement.tensor], placement.axis)
                parts.append(gathered(each[key], placement, unit.size))
        return torch.stack(parts).sum(0) if parts else None

    def _gamma(self, squared: Tensor) -> Tensor:
        if not self.emphasis:
            return torch.ones_like(squared)
        spread = squared.max() - squared.min()
        return 2 ** (self.emphasis * (squared.max() - squared) / torch.where(spread > 0, spread, 1))


class ScaleL1(Sparsity):
    r"""The absolute scales of batch norms, :math:`\lambda \sum |\gamma|`; prune by `importance='bn_scale'` afterwards.

    Liu et al., Network Slimming, https://arxiv.org/abs/1708.06519. Only scales that some unit holds are taken: those
    that can be pruned.

    Args:
        graph: The units of the model.
        weight: :math:`\lambda`; the paper's is 1e-4 to 1e-5.

    Raises:
        ConfigError: When it is called on a model without such scales.
    """

    def __init__(self, graph: ChannelGraph, weight: float = 1e-4) -> None:
        super().__init__(weight)
        self.graph = graph

    def names(self, model: nn.Module) -> list[str]:
        """Return the scales."""
        found = []
        for name in _held(self.graph, model):
            path, _, last = name.rpartition('.')
            if last == 'weight' and is_norm(model.get_submodule(path)) and tensor(model, name).dim() == 1:
                found.append(name)
        if not found:
            raise ConfigError('This model has no norm whose scales can be pruned. `GroupLasso` works on any weights.')
        return found

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the sum of absolute scales."""
        return torch.stack([tensor(model, name).abs().sum() for name in self.names(model)]).sum()


# -- internals ----------------------------------------------------------------------------------------------


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a wrapper of several processes or devices, in which every name has a prefix."""
    return model.module if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else model


def _held(graph: ChannelGraph, model: nn.Module) -> list[str]:
    """Return the parameters that some unit of a graph lives in.

    Raises:
        ConfigError: If the model has none of them.
    """
    names = sorted({placement.tensor for unit in graph.units.values() for placement in learned(unit, model)})
    if not names:
        raise ConfigError(
            f'This {type(model).__name__} has no parameter that a unit of the graph lives in. Was the graph made from it? Give '
            'the model itself, not a module that holds it.'
        )
    return names
