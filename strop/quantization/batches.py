"""Calibration data: batches as a model takes them, looked over before anything is computed from them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from strop.errors import ConfigError, DataError, StropError, listed

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Batches(Sequence[Call]):
    """Batches of inputs, each as the positional and keyword arguments of one forward.

    Args:
        calls: (positional arguments, keyword arguments) of each batch.

    >>> batches = Batches.of([(torch.rand(4, 3), torch.zeros(4)), (torch.rand(4, 3), torch.zeros(4))])
    >>> len(batches), batches[0][0][0].shape, batches.samples
    (2, torch.Size([4, 3]), 8)
    """

    calls: tuple[Call, ...]

    @classmethod
    def of(cls, data: Any, limit: int | None = None, device: torch.device | None = None) -> Batches:
        """Read batches and check them.

        A batch is a tensor, a mapping of keyword arguments, or a tuple or list whose first item is the inputs, as
        `(images, labels)` is; that item may itself be a tuple of positional or a mapping of keyword arguments.
        All batches are kept in memory, because they are looked at several times.

        Args:
            data: An iterable of batches, such as a DataLoader or a list; one tensor is taken as one batch.
            limit: Read at most this many.
            device: Where to move them.

        Raises:
            DataError: If there are none, one holds a NaN or an infinity, or one has another shape than the first.
            ConfigError: If it is nothing to iterate over, or `limit` is not positive.
        """
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise ConfigError(f'The number of calibration batches must be a positive integer, but got {limit!r}.')
        if isinstance(data, Batches):
            chosen = data.calls[:limit]
            return cls(chosen if device is None else tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), chosen))
        if isinstance(data, torch.Tensor):
            data = [data]
        if data is None or isinstance(data, (str, Mapping)):
            raise ConfigError(
                f'Calibration data is an iterable of batches, such as a DataLoader or a list, but got {type(data).__name__}.'
            )
        try:
            iterator = iter(data)
        except TypeError:
            raise ConfigError(
                f'Calibration data is an iterable of batches, such as a DataLoader or a list, but got {type(data).__name__}.'
            ) from None
        calls: list[Call] = []
        for index, batch in enumerate(islice(iterator, limit)):
            call = call_of(batch, index)
            if device is not None:
                call = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), call)
            _check_values(call, index)
            if calls:
                _check_shapes(calls[0], call, index)
            calls.append(call)
        if not calls:
            raise DataError(
                'The calibration data is empty: ranges of activations cannot be measured without a batch. An iterator can be '
                'used once only: give a list or a DataLoader.'
            )
        return cls(tuple(calls))

    def __len__(self) -> int:
        return len(self.calls)

    def __getitem__(self, index: Any) -> Any:
        return self.calls[index]

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    @property
    def samples(self) -> int:
        """Number of samples, by the first axis of the inputs."""
        return sum(size for size in map(batch_size, self.calls) if size is not None)

    def split(self) -> tuple[Batches, Batches]:
        """Return the batches to calibrate on and those to judge by: the last quarter, at least one.

        A single batch is cut into halves along its first axis; one sample cannot be held out of itself and is in both.
        """
        if len(self.calls) > 1:
            held = max(1, len(self.calls) // 4)
            return Batches(self.calls[:-held]), Batches(self.calls[-held:])
        size = batch_size(self.calls[0])
        if size is None or size < 2:
            return self, self
        return Batches((rows(self.calls[0], 0, size // 2),)), Batches((rows(self.calls[0], size // 2, size),))

    def example(self, model: torch.nn.Module | None = None) -> Call:
        """Return the first batch, twice over if it has one sample: a batch of one would be taken for a constant.

        Args:
            model: What is to take it. Where it takes one sample only, since its forward has the batch size written down, the
                batch is returned as it is.
        """
        call = self.calls[0]
        if batch_size(call) != 1:
            return call
        double = tree_map_only(torch.Tensor, lambda tensor: tensor.repeat(2, *[1] * (tensor.dim() - 1)), call)
        return double if model is None or _takes(model, double) else call


def call_of(batch: Any, index: int = 0) -> Call:
    """Return the arguments that a batch stands for.

    Raises:
        DataError: If it holds no tensor.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if isinstance(inputs, Mapping):
        call: Call = ((), dict(inputs))
    elif isinstance(inputs, (tuple, list)):
        call = (tuple(inputs), {})
    else:
        call = ((inputs,), {})
    if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(call)):
        raise DataError(
            f'Batch {index} of the calibration data holds no tensor; it is a {type(batch).__name__}. A batch is a tensor, '
            'a mapping of keyword arguments, or a tuple whose first item is one of these.'
        )
    return call


def batch_size(call: Call) -> int | None:
    """Return the length of the first axis if all tensors share it, else None.

    >>> batch_size(((torch.zeros(4, 3),), {'mask': torch.zeros(4)}))
    4
    """
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in tree_leaves(call) if isinstance(leaf, torch.Tensor)}
    return sizes.pop() if len(sizes) == 1 else None


def rows(call: Call, start: int, stop: int) -> Call:
    """Return the samples `start` to `stop` of a batch."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor[start:stop], call)


def in_order(example: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Return the arguments of a call in the order of another one: a file of a runtime tells its inputs by their place.

    Constants of the example may be left out.

    Raises:
        DataError: If there are other tensors than in the example.

    >>> one, two = torch.zeros(1), torch.ones(1)
    >>> in_order(((), {'b': two, 'scale': 3, 'a': one}), (), {'a': one, 'b': two})
    ((), {'b': tensor([1.]), 'a': tensor([0.])})
    """
    tensors = {name for name, value in example[1].items() if tensors_in(value)}
    if sum(map(tensors_in, args)) != sum(map(tensors_in, example[0])) or not tensors <= set(kwargs) <= set(example[1]):
        wanted, given = (
            f'{len(positional)} by position and {listed(named) if named else "none"} by name'
            for positional, named in (example, (args, kwargs))
        )
        raise DataError(f'Arguments are given as the calibration data had them, {wanted}, but got {given}.')
    return tuple(args), {name: kwargs[name] for name in example[1] if name in kwargs}


def tensors_in(value: Any) -> int:
    """Return how many tensors a value holds; constants are none, and files of runtimes do not take them.

    >>> tensors_in({'x': torch.zeros(2), 'scale': 2.0})
    1
    """
    return sum(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def check_outputs(outputs: Any, name: str, index: int = 0) -> None:
    """Raise if a model gives something that is not finite.

    Args:
        outputs: What it gives.
        name: What to call the model.
        index: Number of the batch.

    Raises:
        DataError: If it does.
    """
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            raise DataError(
                f'{name} gives NaN or infinite outputs for batch {index} of the calibration data before it is quantized.'
            )


@contextmanager
def taken_by(name: str, call: Call, index: int = 0) -> Iterator[None]:
    """Word what a model raises on a batch as an error of the data; errors of this package stay what they are.

    Args:
        name: What to call the model.
        call: The batch.
        index: Its number.

    Raises:
        DataError: If the model does not take the batch.

    >>> with taken_by('Linear', ((torch.rand(2, 3),), {})):  # doctest: +ELLIPSIS
    ...     _ = torch.nn.Linear(4, 1)(torch.rand(2, 3))
    Traceback (most recent call last):
    strop.errors.DataError: Linear does not take batch 0 of the calibration data, which has inputs ((2, 3, 'float32'),): ...
    """
    try:
        yield
    except StropError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        reason = str(error).strip().splitlines() or ['']
        raise DataError(
            f'{name} does not take batch {index} of the calibration data, which has inputs {_shape(call)}: '
            f'{type(error).__name__}: {reason[0][:300]}'
        ) from error


def _takes(model: torch.nn.Module, call: Call) -> bool:
    """Whether a model takes a batch; a copy of it is tried."""
    args, kwargs = call
    try:
        with torch.no_grad():
            copy.deepcopy(model)(*args, **kwargs)
    except Exception:  # whatever a forward raises
        return False
    return True


def _check_values(call: Call, index: int) -> None:
    for leaf in tree_leaves(call):
        if isinstance(leaf, torch.Tensor) and not leaf.numel():
            raise DataError(
                f'Batch {index} of the calibration data holds nothing: a tensor in it has the shape {tuple(leaf.shape)}. Leave '
                'empty batches out.'
            )
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            kind = 'NaN' if bool(torch.isnan(leaf).any()) else 'an infinity'
            place = tuple(int(i) for i in (~torch.isfinite(leaf)).nonzero()[0])
            raise DataError(
                f'Batch {index} of the calibration data holds {kind}, at {place} of a tensor of shape {tuple(leaf.shape)}. '
                'The ranges measured from it would mean nothing: clean the data.'
            )


def _check_shapes(first: Call, call: Call, index: int) -> None:
    (known, structure), (given, other) = tree_flatten(first), tree_flatten(call)
    if structure != other:
        raise DataError(
            f'Batch {index} of the calibration data is built differently from batch 0: {_shape(call)} after {_shape(first)}.'
        )
    for old, new in zip(known, given):
        if not isinstance(old, torch.Tensor):
            continue
        if not isinstance(new, torch.Tensor) or old.shape[1:] != new.shape[1:] or old.dtype != new.dtype:
            raise DataError(
                f'Batch {index} of the calibration data has inputs {_shape(call)}, but batch 0 has {_shape(first)}. '
                'Only the size of the first axis, the batch, may vary.'
            )


def _shape(call: Call) -> str:
    shown = tree_map_only(torch.Tensor, lambda tensor: (*tensor.shape, str(tensor.dtype).removeprefix('torch.')), call)
    return f'{shown[0] or ""}{shown[1] or ""}'
