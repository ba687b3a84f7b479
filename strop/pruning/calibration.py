"""Batch-norm statistics of a pruned model, measured again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.graph.forward import training_mode_kept
from strop.pruning.placements import batches_of, forward


def recalibrate(model: nn.Module, batches: Any) -> int:
    """Replace the running statistics of every batch norm by the plain average over some batches.

    Cutting a layer's inputs changes the mean and variance of what it gives out; a few batches, without any training,
    repair much of it. Everything but the batch norms stays in eval mode meanwhile, and the model's mode is put back.
    If a batch fails, the statistics are those from before.

    Args:
        model: The model; changed in place.
        batches: Tensors, mappings, or `(inputs, ...)` tuples.

    Returns:
        The number of batches used; 0 for a model without running statistics.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> recalibrate(net, [torch.tensor([[0.0], [4.0]])])
    1
    >>> net[0].running_mean
    tensor([2.])
    """
    norms = _norms(model)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    with training_mode_kept(model):
        try:
            model.eval()
            return average_statistics(model, batches_of(batches), lambda batch: forward(model, batch))
        except BaseException:
            for norm, buffers in zip(norms, before):
                for name, buffer in buffers.items():
                    getattr(norm, name).copy_(buffer)
            raise
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum


def average_statistics(model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> int:
    """Replace running statistics by the plain average over `batches`, each handed to `run`; return how many there were.

    The norms are left in train mode and without momentum: PyTorch then keeps the cumulative average.

    >>> norm = nn.BatchNorm1d(1)
    >>> average_statistics(norm, [torch.tensor([[0.0], [4.0]])], norm), float(norm.running_mean)
    (1, 2.0)
    """
    for norm in _norms(model):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(batches, 1):  # noqa: B007
            run(batch)
    return count


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
