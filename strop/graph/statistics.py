"""Batch-norm statistics, measured again by forwards of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.graph.forward import training_mode_kept


def tracking_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that keep running statistics.

    >>> len(tracking_norms(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))))
    1
    """
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def average_statistics(model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> int:
    """Replace running statistics by the plain average over `batches`, each handed to `run`; return how many there were.

    The norms are left in train mode and without momentum: PyTorch then keeps the cumulative average.

    >>> norm = nn.BatchNorm1d(1)
    >>> average_statistics(norm, [torch.tensor([[0.0], [4.0]])], norm), float(norm.running_mean)
    (1, 2.0)
    """
    for norm in tracking_norms(model):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(batches, 1):  # noqa: B007
            run(batch)
    return count


def measure_again(model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> int:
    """Replace running statistics as `average_statistics` does, and leave everything else as it was.

    Everything but the batch norms is in eval mode meanwhile. If a batch fails, the statistics are those from before.

    Args:
        model: The model; its statistics are changed in place.
        batches: Anything that `run` takes.
        run: Runs the model on one of them.

    Returns:
        The number of batches used; 0 for a model without running statistics.

    >>> net = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3))
    >>> measure_again(net, [torch.tensor([[0.0], [4.0]])], net), float(net[0].running_mean), net[0].momentum
    (1, 2.0, 0.3)
    """
    norms = tracking_norms(model)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    with training_mode_kept(model):
        try:
            model.eval()
            return average_statistics(model, batches, run)
        except BaseException:
            for norm, buffers in zip(norms, before):
                for name, buffer in buffers.items():
                    getattr(norm, name).copy_(buffer)
            raise
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
