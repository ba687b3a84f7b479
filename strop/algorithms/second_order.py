"""Gradients of architecture parameters: through the weights as they are, or through a step that they are about to make.

Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019, https://arxiv.org/abs/1806.09055, section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.optim import OptimWrapper
from torch import nn

from strop.errors import ConfigError, listed, near

Gradients = list[torch.Tensor]
SECOND_ORDER = ('exact', 'finite_difference')


def architecture_gradient(loss: torch.Tensor, arch: Sequence[nn.Parameter]) -> Gradients:
    """Return the first-order gradient of a validation loss, averaged over the processes of a distributed run.

    Gradients of weights are neither computed nor touched.

    >>> logits = nn.Parameter(torch.zeros(2))
    >>> architecture_gradient((torch.softmax(logits, 0) * torch.tensor([0.0, 4.0])).sum(), [logits])
    [tensor([-1.,  1.])]
    """
    return _averaged(_filled(torch.autograd.grad(loss, list(arch), allow_unused=True), arch))


def hypergradient(
    train_loss: Callable[[], torch.Tensor],
    valid_loss: Callable[[], torch.Tensor],
    arch: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    model: nn.Module | None = None,
    method: str = 'exact',
    radius: float = 0.01,
) -> tuple[Gradients, torch.Tensor]:
    r"""Return the second-order gradient of the architecture and the validation loss at the virtual weights.

    The virtual step is that which `optimizer` would make now: with its learning rate, momentum (also Nesterov's and with
    dampening) and weight decay. Weights, gradients, optimizer state and buffers are left exactly as they were.

    Args:
        train_loss: Computes :math:`L_{train}` at the current weights and architecture parameters, in training mode.
        valid_loss: Computes :math:`L_{val}` likewise.
        arch: The architecture parameters.
        optimizer: `torch.optim.SGD` of the weights.
        model: The model, whose buffers (batch-norm statistics) are put back afterwards.
        method: 'exact', or 'finite_difference' as in the paper.
        radius: Of the finite difference: the two points are so far from the weights.

    Raises:
        ConfigError: If the optimizer is not SGD, or `method` is unknown.

    >>> w, a = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([3.0]))
    >>> sgd = torch.optim.SGD([w], lr=0.1)
    >>> # w' = w - 0.1 * a, so that the loss w'^2 has the derivative -0.2 * w' = -0.14 by a.
    >>> gradients, loss = hypergradient(lambda: (w * a).sum(), lambda: (w**2).sum(), [a], sgd)
    >>> gradients, loss
    ([tensor([-0.1400])], tensor(0.4900))
    """
    if method not in SECOND_ORDER:
        raise ConfigError(f'`method` must be one of {listed(SECOND_ORDER)}, but got {method!r}.{near(method, SECOND_ORDER)}')
    if type(optimizer) is not torch.optim.SGD:
        raise ConfigError(
            f'The second order of DARTS makes a virtual step of SGD, but the optimizer of the weights is '
            f'{type(optimizer).__name__}. Use torch.optim.SGD, or the first order (unrolled=False).'
        )
    weights = [p for group in optimizer.param_groups for p in group['params'] if p.requires_grad]
    exact = method == 'exact'
    arch = list(arch)
    with _kept_buffers(model):
        random = _RandomState()
        found = torch.autograd.grad(train_loss(), weights, create_graph=exact, allow_unused=True)
        values = _averaged([None if g is None else g.detach() for g in found])
        moved, factors = _virtual_step(optimizer, weights, values)
        with _at(weights, moved):
            loss = valid_loss()
            both = torch.autograd.grad(loss, [*weights, *arch], allow_unused=True)
        by_weights = _averaged(list(both[: len(weights)]))
        by_arch = _averaged(_filled(both[len(weights) :], arch))
        # What of the virtual weights depends on the architecture is -factor * the training gradient.
        vector = [
            None if g is None or v is None else factor * v for g, v, factor in zip(values, by_weights, factors, strict=True)
        ]
        if exact:
            mixed = _mixed_product(found, vector, arch)
        else:
            mixed = _mixed_difference(train_loss, weights, vector, arch, radius, random)
    mixed = _averaged(mixed)
    return [first - second for first, second in zip(by_arch, mixed, strict=True)], loss.detach()


def _mixed_product(gradients: Sequence[Any], vector: Sequence[Any], arch: list[nn.Parameter]) -> Gradients:
    """Return the derivative by `arch` of the product of the training gradient and a constant vector."""
    product: Any = sum((g * v).sum() for g, v in zip(gradients, vector) if v is not None and g.requires_grad)
    if not isinstance(product, torch.Tensor) or not product.requires_grad:
        return [torch.zeros_like(p) for p in arch]
    return _filled(torch.autograd.grad(product, arch, allow_unused=True), arch)


def _mixed_difference(
    train_loss: Callable[[], torch.Tensor],
    weights: list[nn.Parameter],
    vector: Sequence[Any],
    arch: list[nn.Parameter],
    radius: float,
    random: _RandomState,
) -> Gradients:
    wide = [v if v.device.type == 'mps' else v.double() for v in vector if v is not None]  # Metal has no double precision
    norm = torch.stack([v.pow(2).sum() for v in wide]).sum().sqrt()
    if not norm:
        return [torch.zeros_like(p) for p in arch]
    step = float(radius / norm)
    sides = []
    for sign in (1, -1):
        at = [p.detach() if v is None else p.detach() + sign * step * v for p, v in zip(weights, vector, strict=True)]
        with _at(weights, at), random.repeated():
            sides.append(_filled(torch.autograd.grad(train_loss(), arch, allow_unused=True), arch))
    return [(plus - minus) / (2 * step) for plus, minus in zip(*sides, strict=True)]


def _virtual_step(
    optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], gradients: Sequence[Any]
) -> tuple[Gradients, list[float]]:
    """Return the weights after a step of SGD, and how many times each gradient is subtracted in it."""
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    moved, factors = [], []
    for weight, gradient in zip(weights, gradients, strict=True):
        group = groups[id(weight)]
        if gradient is None:  # SGD leaves such a weight alone
            moved.append(weight.detach())
            factors.append(0.0)
            continue
        rate, momentum = float(group['lr']), float(group['momentum'])
        sign = -1.0 if group['maximize'] else 1.0
        direction = sign * gradient
        if group['weight_decay']:
            direction = direction + group['weight_decay'] * weight.detach()
        # The step is `now` times the direction and `before` times the buffer of the steps before.
        buffer = optimizer.state.get(weight, {}).get('momentum_buffer') if momentum else None
        now, before = 1.0, 0.0
        if momentum:
            now, before = (1.0, 0.0) if buffer is None else (1.0 - group['dampening'], momentum)
            if group['nesterov']:
                now, before = 1.0 + momentum * now, momentum * before
        step = now * direction if buffer is None else now * direction + before * buffer
        moved.append(weight.detach() - rate * step)
        factors.append(rate * now * sign)
    return moved, factors


@contextmanager
def _at(weights: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> Iterator[None]:
    """While active, `weights` have other values; theirs are the same tensors as before afterwards."""
    before = [weight.data for weight in weights]
    try:
        for weight, value in zip(weights, values, strict=True):
            weight.data = value
        yield
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.data = value


@contextmanager
def _kept_buffers(model: nn.Module | None) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in (() if model is None else model.buffers())]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


class _RandomState:
    """The state of torch's generators at one time, in which a computation can be repeated: dropout drops the same."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    @contextmanager
    def repeated(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=range(len(self.cuda or ()))):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state_all(self.cuda)
            yield


def _filled(gradients: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> Gradients:
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like, strict=True)]


def _averaged(gradients: list[Any]) -> list[Any]:
    """Return the mean over all processes of each gradient, which is None on all of them or on none."""
    if is_distributed():
        there = [g for g in gradients if g is not None]
        flat = torch.cat([g.reshape(-1) for g in there])
        all_reduce(flat, 'mean')
        parts = iter(flat.split([g.numel() for g in there]))
        return [None if g is None else next(parts).view_as(g) for g in gradients]
    return gradients


def scaled(loss: torch.Tensor, wrapper: OptimWrapper) -> torch.Tensor:
    """Return a loss as a wrapper for float16 wants it back-propagated, or as it is."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return loss if scaler is None else scaler.scale(loss)
