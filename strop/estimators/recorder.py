"""One forward in which nothing is computed: every ATen operator, what it costs, and the storages it makes and uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from strop.errors import EstimateError
from strop.estimators.op_costs import is_uncounted, macs, operator_name, priced_whole
from strop.graph.forward import first_line, module_paths, output_tensors, shapes_of, untouched
from strop.randomness import seeded

CONSTANT = -1  # a parameter, a buffer or a tensor kept by a module: not an activation


@dataclass(slots=True)
class Op:
    """One operator call.

    Args:
        name: `'aten.convolution'` and the like.
        path: Path of the innermost module that called it; `''` is the model itself.
        macs: Its multiply-adds.
        born: Ids of the storages that it made.
        uses: Ids of the activation storages that it read or wrote.
        guard: Whatever `Recorder.guard` was when it ran.
        inside: Paths of all modules that it ran in, the model itself included.
    """

    name: str
    path: str
    macs: int
    born: tuple[int, ...]
    uses: tuple[int, ...]
    guard: Any
    inside: tuple[str, ...] = ('',)


@dataclass
class Trace:
    """The operators of one forward, in order.

    Args:
        ops: The operators; operator `i` runs at time `i + 1`, time 0 is the call with its inputs.
        sizes: Bytes of each storage, by id.
        births: Time at which each storage is made, by id.
        inputs: Ids of the model's inputs.
        outputs: Ids of the model's outputs.
        uncounted: Operators whose multiply-adds are unknown, with the paths that call them.
        note: Why the forward was computed on real tensors, if it was.
    """

    ops: list[Op] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    births: list[int] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    uncounted: dict[str, list[str]] = field(default_factory=dict)
    note: str | None = None

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole forward."""
        return sum(op.macs for op in self.ops)

    def peak_bytes(self) -> int:
        r"""Return :math:`\max_t \sum_{s: b_s \le t \le l_s} \mathrm{bytes}_s`, the most activation memory alive at once.

        A storage is alive from the operator that makes it (`b`; inputs from the start) to its last use (`l`;
        outputs to the end). Parameters, buffers and an operator's inner workspace are not activations.
        """
        last = list(self.births)
        for time, op in enumerate(self.ops, start=1):
            for node in op.uses:
                last[node] = time
        for node in self.outputs:
            last[node] = len(self.ops)
        change = [0] * (len(self.ops) + 2)
        for size, start, stop in zip(self.sizes, self.births, last, strict=True):
            change[start] += size
            change[stop + 1] -= size
        alive = peak = 0
        for difference in change:
            alive += difference
            peak = max(peak, alive)
        return peak


class Recorder(TorchDispatchMode):
    """Write down every operator that runs inside the `with` block.

    Args:
        paths: id of a module -> its path.
        real: Whether values are computed, in which case storages may be freed and their addresses reused.
    """

    supports_higher_order_operators = True

    def __init__(self, paths: Mapping[int, str], real: bool = False) -> None:
        super().__init__()
        self.trace = Trace()
        self.guard: Any = ()
        self.paused = False
        self._paths = paths
        self._real = real
        self._stack: list[str] = ['']
        self._inside: list[tuple[str, ...]] = [('',)]
        self._nodes: dict[int, int] = {}
        self._references: list[Any] = []
        self._parameters: set[int] = set()
        self._thread = threading.get_ident()
        self._hooks: list[Any] = []
        self._depth = 0

    # -- storages --------------------------------------------------------------------------

    def declare(self, tensors: Any, constant: bool, parameter: bool = False) -> tuple[int, ...]:
        """Make the storages of `tensors` known: as constants, or as activations born now. Return their ids."""
        nodes = []
        for tensor in tree_leaves(tensors):
            storage = _storage(tensor)
            if storage is None:
                continue
            address = storage._cdata
            if address not in self._nodes:
                self._keep(storage, tensor)
                self._nodes[address] = CONSTANT if constant else self._new(storage.nbytes())
                if parameter:
                    self._parameters.add(address)
            nodes.append(self._nodes[address])
        return tuple(dict.fromkeys(nodes))

    def node_of(self, tensor: Any) -> int:
        """Return the id of the storage of a tensor; `CONSTANT` if it is not an activation."""
        storage = _storage(tensor)
        return CONSTANT if storage is None else self._nodes.get(storage._cdata, CONSTANT)

    def _new(self, size: int) -> int:
        self.trace.sizes.append(int(size))
        self.trace.births.append(len(self.trace.ops))
        return len(self.trace.sizes) - 1

    def _keep(self, storage: torch.UntypedStorage, tensor: Any) -> None:
        # An address identifies a storage as long as a reference keeps it from being reused.
        self._references.append(StorageWeakRef(storage) if self._real else tensor)

    # -- operators -------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operator_name(func)
        if self.paused or name.startswith('prim.'):
            return func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload) and func._can_decompose() and not priced_whole(func):
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        out = func(*args, **kwargs)
        self._record(func, name, out, args, kwargs)
        return out

    def _record(self, func: Any, name: str, out: Any, args: Any, kwargs: Any) -> None:
        taken = [storage for storage in map(_storage, tree_leaves((args, kwargs))) if storage is not None]
        made = [(storage, tensor) for tensor in tree_leaves(out) if (storage := _storage(tensor)) is not None]
        cost = macs(func, out, args, kwargs)
        self.trace.ops.append(Op(name, self._stack[-1], cost, (), (), self.guard, self._inside[-1]))
        uses = [self._nodes.get(storage._cdata, CONSTANT) for storage in taken]
        born = []
        for storage, tensor in made:
            address = storage._cdata
            if address in self._nodes:
                uses.append(self._nodes[address])
                continue
            self._keep(storage, tensor)
            if getattr(func, 'is_view', False):
                self._nodes[address] = CONSTANT  # a view of a tensor that a module keeps
                continue
            self._nodes[address] = self._new(storage.nbytes())
            born.append(self._nodes[address])
        op = self.trace.ops[-1]
        op.born = tuple(born)
        op.uses = tuple(dict.fromkeys(node for node in uses if node != CONSTANT and node not in born))
        if is_uncounted(func, any(storage._cdata in self._parameters for storage in taken)):
            paths = self.trace.uncounted.setdefault(name, [])
            if op.path not in paths:
                paths.append(op.path)

    # -- modules ---------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        if not self._hooks:
            self._hooks = [
                register_module_forward_pre_hook(self._enter_module),
                register_module_forward_hook(self._leave_module, always_call=True),
            ]
        self._depth += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._depth -= 1
        if not self._depth:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
        super().__exit__(*error)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._paths and threading.get_ident() == self._thread:
            path = self._paths[id(module)]
            self._inside.append(tuple(dict.fromkeys((*self._inside[-1], *_down_to(path, self._stack[-1])))))
            self._stack.append(path)

    def _leave_module(self, module: nn.Module, args: Any, out: Any) -> None:
        if id(module) in self._paths and threading.get_ident() == self._thread:
            self._stack.pop()
            self._inside.pop()


def _down_to(path: str, caller: str) -> list[str]:
    """Return the paths from a module's caller, without it, down to the module: lists of modules between them are never called.

    A module that is shared has its first path, perhaps inside another module than the one that calls it.
    """
    if caller and not path.startswith(f'{caller}.'):
        return [path]
    parts = path.split('.')
    return ['.'.join(parts[:length]) for length in range(caller.count('.') + 2 if caller else 1, len(parts) + 1)]


def _storage(value: Any) -> torch.UntypedStorage | None:
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None  # sparse and nested tensors have none


def check_initialized(model: nn.Module) -> None:
    """Raise an `EstimateError` if a lazy module has not seen an input yet, so that its shapes are unknown."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise EstimateError(f'{name!r} has no shape before the first forward (a lazy module). Run the model once first.')


def record(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    around: Callable[[Recorder], Any] | None = None,
    real: bool | None = None,
) -> Trace:
    """Run `model` once in eval mode, on tensors without values, and return what ran.

    The model is neither moved, copied nor changed. A model that must look at values (`.item()`, `nonzero`, masks
    that decide what runs) is run once on real tensors instead; `Trace.note` then says why.

    Args:
        model: Any module.
        args: Positional arguments of its forward: tensors, or tuples, lists and dicts of them.
        kwargs: Keyword arguments of its forward.
        around: Called with the recorder; returns a context manager to run the forward in.
        real: True runs on real tensors at once, False never does, None where it must.

    Raises:
        EstimateError: If the model raises on real tensors too (or has none, being on the meta device, or lazy).

    >>> record(nn.Linear(4, 3), (torch.zeros(2, 4),)).macs
    24
    """
    kwargs = dict(kwargs or {})
    model = getattr(model, '_orig_mod', model)
    check_initialized(model)
    note = None
    if not real:
        try:
            return _run(model, args, kwargs, around, real=False)
        except EstimateError:
            raise
        except Exception as error:
            if real is False:
                raise
            note = first_line(error)
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if any(tensor.device.type == 'meta' or isinstance(tensor, FakeTensor) for tensor in (*model.parameters(), *given)):
        raise EstimateError(f'{type(model).__name__} is on the meta device and cannot be traced there ({note}).')
    try:
        trace = _run(model, args, kwargs, around, real=True)
    except EstimateError:
        raise
    except Exception as error:
        raise EstimateError(
            f'The forward of {type(model).__name__} failed on inputs of shape {shapes_of(args, kwargs)}: '
            f'{type(error).__name__}: {error}'
        ) from error
    trace.note = note
    return trace


def _run(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], around: Any, real: bool) -> Trace:
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if real else fake.from_tensor(tensor)

    recorder = Recorder(module_paths(model), real)
    with untouched(model), seeded(0, 'record'), torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)  # one fused operator would hide every product
        for module in model.modules():
            module.training = False
        parameters = {name: convert(parameter) for name, parameter in model.named_parameters()}
        buffers = {name: buffer.clone() if real else convert(buffer) for name, buffer in model.named_buffers()}
        inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.clone() if real else convert(tensor), (tuple(args), kwargs))
        recorder.declare(parameters, constant=True, parameter=True)
        recorder.declare(buffers, constant=True)
        recorder.trace.inputs = recorder.declare(inputs, constant=False)
        with nullcontext() if real else fake, recorder, nullcontext() if around is None else around(recorder):
            out = _call(model, {**parameters, **buffers}, inputs[0], inputs[1], real)
        recorder.trace.outputs = tuple(
            dict.fromkeys(node for tensor in output_tensors(out) if (node := recorder.node_of(tensor)) != CONSTANT)
        )
    return recorder.trace


def _call(model: nn.Module, state: dict[str, torch.Tensor], args: Any, kwargs: Any, real: bool) -> Any:
    if not real or not any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return torch.func.functional_call(model, state, args, kwargs)
    # Scripted modules keep their tensors in C++, where they cannot be exchanged: write buffers back instead.
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        return model(*args, **kwargs)
    finally:
        for buffer, value in before:
            buffer.copy_(value)
