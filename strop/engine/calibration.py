"""Batch-norm statistics of one subnet of a supernet, measured before it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import all_reduce, is_distributed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.graph.statistics import average_statistics


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

    >>> import torch
    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> data = [torch.tensor([[0.0], [4.0]])]
    >>> recalibrate_batch_norms(net, data, lambda batch: len(net(batch)), images=2)
    2
    >>> net[0].running_mean
    tensor([2.])
    """
    model.eval()
    used = 0

    def enough() -> Iterator[Any]:
        for batch in batches:
            if used >= images:
                break
            yield batch

    def run(batch: Any) -> None:
        nonlocal used
        used += forward(batch)

    average_statistics(model, enough(), run)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            if is_distributed():
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        all_reduce(buffer, 'mean')
    return used
