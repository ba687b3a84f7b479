"""Models as runtimes compute them, behind the arguments that the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from strop.estimators.sessions import Call, Run, bound
from strop.export.comparison import Inputs
from strop.quantization.flow import tensors_of


class RuntimeModel(nn.Module):
    """A model as a runtime computes it, for scoring: takes the arguments of the model, gives its tensor, or a list of them.

    Runtimes that compile do so once for each batch size, which may take a minute; other sizes are put together from those that
    have run.

    Args:
        run: Runs the model.
        names: Of keyword arguments, in the order in which `run` takes their tensors.
        batches: Batch sizes that have run.
    """

    def __init__(self, run: Run, names: Sequence[str] = (), batches: Sequence[int] = ()) -> None:
        super().__init__()
        self._run = run
        self._names = tuple(names)
        self._batches = sorted(batches, reverse=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute it."""
        kwargs = {name: kwargs[name] for name in dict.fromkeys((*self._names, *kwargs)) if name in kwargs}
        found = self._in_parts([tensor.contiguous() for tensor in tensors_of((args, kwargs))])
        return found[0] if len(found) == 1 else found

    def _in_parts(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
        (size,) = sizes if len(sizes) == 1 else (0,)
        if not size or not self._batches or size in self._batches:
            return self._run(tensors)
        parts: list[list[torch.Tensor]] = []
        start = 0
        while start < size:
            batch = next((batch for batch in self._batches if batch <= size - start), self._batches[-1])
            rows = torch.arange(start, start + batch).clamp_max(size - 1)  # a last part that is short repeats a sample
            found = self._run([tensor[rows] for tensor in tensors])
            if any(not tensor.ndim or len(tensor) != batch for tensor in found):
                return self._run(tensors)  # outputs of the whole batch, not of samples
            parts.append([tensor[: size - start] for tensor in found])
            start += batch
        return [torch.cat(found) for found in zip(*parts)]


def ordered(run: Run, inputs: Inputs, in_file: Inputs) -> Run:
    """Give a file its tensors in the order that it was written with, which that of keyword arguments may not be."""
    tensors = list(inputs.tensors().values())
    order = [next(i for i, tensor in enumerate(tensors) if tensor is each) for each in in_file.tensors().values()]
    return run if order == sorted(order) else Reordered(run, order)


class Reordered:
    """A file that takes its tensors in another order."""

    def __init__(self, run: Run, order: Sequence[int]) -> None:
        self._run, self._order = run, order

    def ordered(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tensors[index] for index in self._order]

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self._run(self.ordered(tensors))

    def bind(self, tensors: Sequence[torch.Tensor]) -> Call:
        return bound(self._run, self.ordered(tensors))


class Eager:
    """A model as PyTorch runs it."""

    def __init__(self, model: nn.Module, inputs: Inputs, precision: str) -> None:
        self._model, self._inputs, self._precision = model, inputs, precision

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return tensors_of(self.bind(tensors)())

    def bind(self, tensors: Sequence[torch.Tensor]) -> Call:
        given = iter(tensors)
        filled = self._inputs.map(lambda _: next(given))

        def call() -> Any:
            lower = torch.autocast('cpu', torch.bfloat16) if self._precision == 'bf16' else nullcontext()
            with torch.inference_mode(), lower:
                return self._model(*filled.args, **filled.kwargs)

        return call


__all__ = ['Eager', 'Reordered', 'RuntimeModel', 'ordered']
