"""Batch-norm statistics of one subnet of a supernet, measured before it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_batch_norms(model: nn.Module) -> Iterator[None]:
    """Put the statistics, momentum and mode of every batch norm back at the end of the block."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    kept = [
        (m, m.momentum, m.training, {name: buffer.clone() for name, buffer in m.named_buffers(recurse=False)}) for m in norms
    ]
    try:
        yield
    finally:
        for module, momentum, training, buffers in kept:
            module.momentum, module.training = momentum, training
            for name, buffer in buffers.items():
                getattr(module, name).copy_(buffer)


def recalibrate_batch_norms(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any], images: int) -> int:
    """Replace batch-norm statistics by the plain average over the batches of at least `images` images.

    Everything but the batch norms stays in eval mode. Under distributed training, statistics are averaged over ranks.

    Args:
        model: Model with the subnet applied.
        batches: Batches; no more are taken than are needed.
        forward: Runs a batch through `model` and returns how many images it had.
        images: Number of images.

    Returns:
        The number of images used.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> data = [torch.tensor([[0.0], [4.0]])]
    >>> recalibrate_batch_norms(net, data, lambda batch: len(net(batch)), images=2)
    2
    >>> net[0].running_mean
    tensor([2.])
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch then keeps the cumulative average
        norm.train()
    used = 0
    with torch.no_grad():
        for batch in batches:
            if used >= images:
                break
            used += forward(batch)
    for norm in norms:
        norm.eval()
        if is_distributed():
            for buffer in (norm.running_mean, norm.running_var):
                if buffer is not None:
                    all_reduce(buffer, 'mean')
    return used
