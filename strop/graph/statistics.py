"""Batch-norm statistics, measured again by forwards of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.errors import DataError
from strop.graph.forward import training_mode_kept


def tracking_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that keep running statistics.

    >>> len(tracking_norms(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))))
    1
    """
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def average_statistics(model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> int:
    """Replace running statistics by the plain average over `batches`, each handed to `run`; return how many were used.

    The norms are left in train mode and without momentum: PyTorch then keeps the cumulative average. A batch of which a norm
    sees one value per channel, as of a single sample behind a linear layer, has no variance there and is left out.

    Raises:
        DataError: If all batches are such.

    >>> norm = nn.BatchNorm1d(1)
    >>> average_statistics(norm, [torch.tensor([[0.0], [4.0]]), torch.tensor([[9.0]])], norm), float(norm.running_mean)
    (1, 2.0)
    """
    norms = tracking_norms(model)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    used = left_out = 0
    with torch.no_grad():
        for batch in batches:
            before = _statistics(norms)
            try:
                run(batch)
            except ValueError as error:
                if _ONE_VALUE not in str(error):
                    raise
                # The norms in front of the one that refuses it have seen it already.
                _restore(norms, before)
                left_out += 1
            else:
                used += 1
    if left_out and not used:
        raise DataError(
            'Statistics of batch norms are measured on batches that give each norm more than one value per channel, but of '
            f'{left_out} read none does. Give larger batches, of two samples or more.'
        )
    return used


def measure_again(model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> int:
    """Replace running statistics as `average_statistics` does, and leave everything else as it was.

    Everything but the batch norms is in eval mode meanwhile. If a batch fails, the statistics are those from before.

    Args:
        model: The model; its statistics are changed in place.
        batches: Anything that `run` takes.
        run: Runs the model on one of them.

    Returns:
        The number of batches used; 0 for a model without running statistics.

    Raises:
        DataError: If every batch gives a norm one value per channel only.

    >>> net = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3))
    >>> measure_again(net, [torch.tensor([[0.0], [4.0]])], net), float(net[0].running_mean), net[0].momentum
    (1, 2.0, 0.3)
    """
    norms = tracking_norms(model)
    if not norms:
        return 0
    momenta, before = [norm.momentum for norm in norms], _statistics(norms)
    with training_mode_kept(model):
        try:
            model.eval()
            return average_statistics(model, batches, run)
        except BaseException:
            _restore(norms, before)
            raise
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum


#: What PyTorch says where a norm in training gets one value per channel.
_ONE_VALUE = 'Expected more than 1 value per channel'


def _statistics(norms: list[_BatchNorm]) -> list[dict[str, Tensor]]:
    return [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]


def _restore(norms: list[_BatchNorm], statistics: list[dict[str, Tensor]]) -> None:
    for norm, buffers in zip(norms, statistics):
        for name, buffer in buffers.items():
            getattr(norm, name).copy_(buffer)
