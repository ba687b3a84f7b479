"""Batch-norm statistics measured again before quantization."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.graph.forward import training_mode_kept
from strop.quantization.batches import Batches


def reestimate_norms(model: nn.Module, batches: Batches) -> int:
    """Replace the running statistics of every batch norm by the average over the calibration data; return how many there are.

    Args:
        model: The model; changed in place.
        batches: Calibration data.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> reestimate_norms(net, Batches.of([torch.tensor([[0.0], [4.0]])])), float(net[0].running_mean)
    (1, 2.0)
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    with training_mode_kept(model), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over all batches
            norm.train()
        for args, kwargs in batches:
            model(*args, **kwargs)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return len(norms)
