"""Batch-norm statistics of a pruned model, measured again."""

from __future__ import annotations

from typing import Any

from torch import nn

from strop.graph.statistics import measure_again, tracking_norms
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

    >>> import torch
    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> recalibrate(net, [torch.tensor([[0.0], [4.0]])])
    1
    >>> net[0].running_mean
    tensor([2.])
    """
    if not tracking_norms(model):
        return 0
    return measure_again(model, batches_of(batches), lambda batch: forward(model, batch))
