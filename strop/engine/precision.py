"""Automatic mixed precision on every device, the CPU included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from strop.errors import ConfigError, listed, near
from strop.registry import OPTIM_WRAPPERS

DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """Run the forward in half precision; scale the loss where float16 needs it.

    MMEngine's class of this name refuses to work without an accelerator.

    Args:
        loss_scale: 'dynamic', a number, or the arguments of `torch.amp.GradScaler`. Used with float16 only.
        dtype: 'float16' or 'bfloat16'; by default bfloat16 on the CPU and float16 elsewhere.
        kwargs: See MMEngine's `OptimWrapper` (`optimizer`, `accumulative_counts`, `clip_grad`).

    >>> layer = nn.Linear(2, 2)
    >>> wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(layer.parameters(), lr=0.1), dtype='bfloat16')
    >>> with wrapper.optim_context(layer):
    ...     layer(torch.zeros(1, 2)).dtype
    torch.bfloat16
    """

    def __init__(self, loss_scale: Any = 'dynamic', dtype: str | torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.device_type = next(
            (parameter.device.type for group in self.optimizer.param_groups for parameter in group['params']), 'cpu'
        )
        if dtype is None:
            dtype = torch.bfloat16 if self.device_type == 'cpu' else torch.float16
        if isinstance(dtype, str):
            if dtype not in DTYPES:
                raise ConfigError(f'`dtype` must be one of {listed(DTYPES)}, but got {dtype!r}.{near(dtype, DTYPES)}')
            dtype = DTYPES[dtype]
        self.cast_dtype = dtype
        self._fixed_scale: float | None = None
        options: dict[str, Any] = {}
        if isinstance(loss_scale, dict):
            options = dict(loss_scale)
        elif isinstance(loss_scale, (int, float)):
            self._fixed_scale = float(loss_scale)
            options = {'init_scale': self._fixed_scale}
        elif loss_scale != 'dynamic':
            raise ConfigError(f"`loss_scale` must be 'dynamic', a number or a dict, but got {loss_scale!r}.")
        self.loss_scaler = torch.amp.GradScaler(self.device_type, **options) if dtype is torch.float16 else None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the block in mixed precision, without gradient synchronization while gradients accumulate."""
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.cast_dtype):
            yield

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Back-propagate the (scaled) loss."""
        if self.loss_scaler is not None:
            loss = self.loss_scaler.scale(loss)
        loss.backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        """Update the parameters, or skip the step where scaled gradients overflowed."""
        if self.loss_scaler is None:
            super().step(**kwargs)
            return
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._fixed_scale)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and the loss scale."""
        state = super().state_dict()
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        state = dict(state_dict)
        scale = state.pop('loss_scaler', None)
        if scale is not None and self.loss_scaler is not None:
            self.loss_scaler.load_state_dict(scale)
        super().load_state_dict(state)
