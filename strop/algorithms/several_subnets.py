"""Training steps of several subnets: their gradients are added up, and one update follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict

from strop.algorithms.algorithm import BaseAlgorithm
from strop.errors import ComponentTypeError


class SeveralSubnets(BaseAlgorithm):
    r"""Base of algorithms that train several subnets on each batch.

    With the losses :math:`L_1 \dots L_n` of the subnets, a step follows the gradient of :math:`\sum_i L_i`. Each subnet has
    its own backward, so that the activations of one only are kept.

    An optim wrapper with `accumulative_counts=k` updates the weights every k steps, by gradients that are divided by k. Where
    k is a multiple of n it counts subnets, as MMRazor's configs do: `accumulative_counts=n` updates in each step by the mean
    over the subnets.

    A subclass says what the subnets are in `passes`; what is computed for each is its `loss`.
    """

    def passes(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """Return the subnets of this step, in order: a name, and what makes the subnet current.

        The base has one, the architecture as it is.
        """
        return [('subnet', lambda: None)]

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Add up the gradients of all subnets and update the parameters once.

        Args:
            data: A batch, before the data preprocessor.
            optim_wrapper: MMEngine's `OptimWrapper`, or a plain `torch.optim.Optimizer`.

        Returns:
            The losses of each subnet as '<subnet>.<name>', the sum of all as 'loss'.

        Raises:
            TrainingError: If a loss is not finite; no parameter has changed then.
        """
        if isinstance(optim_wrapper, torch.optim.Optimizer):
            optim_wrapper = OptimWrapper(optim_wrapper)
        if not isinstance(optim_wrapper, OptimWrapper) or isinstance(optim_wrapper, OptimWrapperDict):
            raise ComponentTypeError(
                f'train_step needs one OptimWrapper or torch optimizer, but got {type(optim_wrapper).__name__}.'
            )
        # Not of the distributed wrapper, which would reduce gradients in the last backward alone: parameters that the last
        # subnet doesn't use would be left out.
        with optim_wrapper.optim_context(self):
            batch = self.data_preprocessor(data, True)
        passes = self.passes()
        each = counts_subnets(optim_wrapper, len(passes))
        if each:
            _count_subnets(optim_wrapper, len(passes), self)
        log: dict[str, torch.Tensor] = {}
        total: Any = 0.0
        for number, (name, begin) in enumerate(passes):
            begin()
            with optim_wrapper.optim_context(self):
                losses = self._run_forward(batch, mode='loss')
            loss, parsed = self.parse_losses(losses)
            self._check_loss(loss, {f'{name}.{key}': value for key, value in parsed.items()}, optim_wrapper)
            log.update({f'{name}.{key}': value for key, value in parsed.items()})
            total = total + loss.detach()
            if each or number == len(passes) - 1:
                optim_wrapper.update_params(loss)
            else:
                # The wrapper counts backwards; all of them are one step.
                count = optim_wrapper._inner_count
                optim_wrapper.backward(optim_wrapper.scale_loss(loss))
                optim_wrapper._inner_count = count
        self.step += 1
        return {**log, 'loss': total}

    def _check_loss(self, loss: torch.Tensor, log: Mapping[str, torch.Tensor], optim_wrapper: Any) -> None:
        try:
            self._check_finite(loss, log, optim_wrapper)
        except Exception:
            # The gradients of the subnets before this one must not be added to a later step.
            optim_wrapper.zero_grad()
            raise


def counts_subnets(optim_wrapper: OptimWrapper, subnets: int) -> bool:
    """Tell whether the accumulation of an optim wrapper counts subnets, as in MMRazor's configs, or steps.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> [counts_subnets(OptimWrapper(optimizer, accumulative_counts=k), 4) for k in (1, 2, 4, 8)]
    [False, False, True, True]
    """
    counts = optim_wrapper._accumulative_counts
    return counts > 1 and counts % subnets == 0


def _count_subnets(optim_wrapper: Any, subnets: int, model: Any) -> None:
    """Tell the optim wrapper once that it sees so many backwards in an iteration; its loop told it of iterations."""
    seen = (optim_wrapper._inner_count, optim_wrapper._max_counts)
    if getattr(optim_wrapper, '_subnets_counted', None) == subnets or optim_wrapper._max_counts < 0:
        return
    optim_wrapper.initialize_count_status(model, seen[0] * subnets, seen[1] * subnets)
    optim_wrapper._subnets_counted = subnets
