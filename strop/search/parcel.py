"""An evaluation made ready for other processes: what it is as bytes, and the memory of its large tensors in one block."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from strop.errors import ConfigError

_LARGE = 2**16  # bytes from which on a tensor that is no parameter is shared, too
_ALIGNED = 64  # bytes; whole cache lines, and a multiple of every element


@dataclass(frozen=True)
class Parcel:
    """What `pack` returns; `open()` in another process gives the evaluation.

    Args:
        content: The evaluation without its shared tensors, pickled, behind the names of the modules to import before.
        block: Memory of the shared tensors, bytes of shape `(size,)`.
    """

    content: bytes
    block: torch.Tensor

    @classmethod
    def on(cls, content: bytes, block: np.ndarray) -> Parcel:
        """Return a parcel on an array, of which nothing is copied; it may be read-only."""
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that the array must not be written to is said where executors are documented
            return cls(content, torch.from_numpy(block))

    def open(self) -> Any:
        """Return the evaluation, its shared tensors lying in the block."""
        stream = io.BytesIO(self.content)
        for name in pickle.load(stream):
            importlib.import_module(name)
        return _Unpickler(stream, self.block).load()


def pack(evaluate: Any, picklers: Iterable[Any] | None = None) -> Parcel:
    """Make an evaluation ready to travel.

    Parameters, and other tensors of 64 KiB or more, lie in one block of memory that receivers share: a supernet of thousands of
    tensors takes one handle, and no receiver copies weights. Small tensors, such as the statistics of batch norms, are copied,
    so that each receiver may write to its own. Tensors that shared memory keep doing so.

    Args:
        evaluate: A function that can be imported, an instance of such a class, or anything that cloudpickle (an optional
            package) can send.
        picklers: Classes of picklers, tried in turn; by default that of the standard library, then that of cloudpickle.

    Raises:
        ConfigError: If the evaluation cannot be sent.

    >>> model = nn.BatchNorm1d(3)
    >>> received = pack(model).open()
    >>> torch.equal(received.weight, model.weight), list(received.state_dict()) == list(model.state_dict())
    (True, True)
    """
    refusal: Exception | None = None
    for pickler in _picklers() if picklers is None else picklers:
        try:
            return _packed(pickler, evaluate)
        except Exception as error:
            refusal = error
    text = ' '.join(str(refusal).split())
    raise ConfigError(
        f'The evaluation cannot be sent to other processes ({type(refusal).__name__}: {text}). Build what cannot be sent (open '
        'files, locks, runners) inside the evaluation; a function that is not at the top level of a module needs cloudpickle.'
    )


def _picklers() -> list[Any]:
    try:
        import cloudpickle
    except ImportError:
        return [pickle.Pickler]
    return [pickle.Pickler, cloudpickle.Pickler]


def _packed(pickler: Any, evaluate: Any) -> Parcel:
    memory = _Memory()

    class Pickler(pickler):
        def persistent_id(self, value: Any) -> Any:
            return memory.place(value)

    stream = io.BytesIO()
    pickle.dump(_finders(), stream)
    Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(evaluate)
    return Parcel(stream.getvalue(), memory.block())


def _finders() -> list[str]:
    """Return the modules of Strop that find other modules here, such as those of old packages, and so must there."""
    modules = (getattr(finder, '__module__', '') for finder in sys.meta_path)
    return sorted({name for name in modules if name.startswith('strop.')})


class _Memory:
    """The storages of tensors, one after another."""

    def __init__(self) -> None:
        self._size = 0
        self._starts: dict[int, int] = {}
        self._storages: list[torch.UntypedStorage] = []
        # Tensors that exist only while they are pickled must not make room for others of the same id.
        self._tensors: dict[int, torch.Tensor] = {}

    def place(self, value: Any) -> Any:
        """Return where a tensor lies and what it looks like; None for what is not shared."""
        parameter = type(value) is nn.Parameter
        if not parameter and type(value) is not torch.Tensor:
            return None
        plain = value.layout is torch.strided and value.device.type == 'cpu' and not value.is_quantized
        if not plain or value.is_conj() or value.is_neg():
            return None
        storage = value.untyped_storage()
        place = storage.data_ptr()
        if place not in self._starts:
            if not storage.nbytes() or (not parameter and storage.nbytes() < _LARGE):
                return None
            self._starts[place] = self._size
            self._storages.append(storage)
            self._size += -(-storage.nbytes() // _ALIGNED) * _ALIGNED
        self._tensors[id(value)] = value
        first = self._starts[place] // value.element_size() + value.storage_offset()
        look = (value.dtype, first, tuple(value.shape), value.stride(), value.requires_grad, parameter)
        return id(value), look, value.__dict__

    def block(self) -> torch.Tensor:
        block = torch.empty(self._size, dtype=torch.uint8)
        for storage, start in zip(self._storages, self._starts.values(), strict=True):
            block[start : start + storage.nbytes()] = torch.empty(0, dtype=torch.uint8).set_(storage)
        return block


class _Unpickler(pickle.Unpickler):
    """Reads a parcel: our own bytes, from the process that sent us here."""

    def __init__(self, content: io.BytesIO, block: torch.Tensor) -> None:
        super().__init__(content)
        self._storage = block.untyped_storage()
        self._made: dict[int, torch.Tensor] = {}

    def persistent_load(self, pid: Any) -> torch.Tensor:
        identity, (dtype, first, shape, stride, requires_grad, parameter), attributes = pid
        if identity not in self._made:
            tensor = torch.empty(0, dtype=dtype).set_(self._storage, first, shape, stride)
            tensor = nn.Parameter(tensor, requires_grad) if parameter else tensor.requires_grad_(requires_grad)
            tensor.__dict__.update(attributes)
            self._made[identity] = tensor
        return self._made[identity]
