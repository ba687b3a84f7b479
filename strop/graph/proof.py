"""Proof by numbers: the cut model computes what the original computes with the cut indices masked.

Shapes alone prove nothing: a forgotten coupling or a reversed concatenation still runs. So the original is run with
every cut index of every parameter set to zero, and its output must be that of the cut model. Two things differ by
right, and are replayed: operators that mix values over a cut axis (norms, softmax, means) are computed over what
stays, and numbers that Python computed from lengths (`head_dim ** -0.5`) are taken from the cut model's run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from strop.errors import GraphError, VerificationError
from strop.graph.autograd_functions import whole_functions
from strop.graph.forward import (
    arguments_of,
    copied,
    evaluated,
    in_double,
    map_tensors,
    module_paths,
    moved_to,
    output_tensors,
    shapes_of,
    untouched,
)
from strop.graph.inference import Axes, Call, OperatorMode, has_axis_rule, module_stack, python_functionals, without_mkldnn
from strop.graph.slicing import Slicing
from strop.graph.terms import Incompatible, length, split_prod
from strop.graph.units import ChannelGraph, channel_units
from strop.randomness import counter_rng, seeded

aten = torch.ops.aten


@dataclass(frozen=True)
class Proof:
    """What the comparison of a cut model with the masked original gave.

    Args:
        error: Largest relative distance of an output of the cut model from that of the masked original.
        difference: Largest relative distance from the output of the original without masks. A proof needs one.
        tolerance: The error up to which the proof holds.
        pruned: The cut model.
        graph: The graph that it was cut by.
        lengths: The length of every unit.
        note: What could not be followed, if anything.
    """

    error: float
    difference: float
    tolerance: float
    pruned: nn.Module = field(repr=False)
    graph: ChannelGraph = field(repr=False)
    lengths: dict[str, int] = field(repr=False)
    note: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the outputs are equal, and cutting changed them."""
        return self.error <= self.tolerance and (self.difference > 100 * self.tolerance or self.difference > 1e-3)


class _Recording:
    """Stands for the tracer in `OperatorMode`: calls `meet` for each operator with the key of the call."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = module_paths(model)
        self.stack = ['']
        self.thread = threading.get_ident()
        self.places: dict[tuple[str, Any], int] = {}

    def key(self, func: Any) -> tuple[str, Any, int]:
        path = self.stack[-1]
        place = self.places.get((path, func), 0)
        self.places[path, func] = place + 1
        return path, func, place


class _Mode(OperatorMode):
    """Run the operators of a forward; `numbers` are written by the cut model's run and read by the masked one's."""

    def __init__(self, recording: _Recording, numbers: dict[Any, Any], replay: _Replay | None, widen: bool) -> None:
        super().__init__(recording)  # type: ignore[arg-type]
        self.numbers = numbers
        self.replay = replay
        self.widen = widen

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        key = self.tracer.key(func)  # type: ignore[attr-defined]
        if self.widen and kwargs.get('dtype') in _NARROW:
            kwargs = {**kwargs, 'dtype': torch.float64}
        if func is aten.lift_fresh.default and args[0].dim() == 0:
            if self.replay is None:
                self.numbers[key] = args[0].clone()
            elif key in self.numbers:
                args = (self.numbers[key].clone(),)
        elif any(isinstance(value, (int, float)) for value in args) and (_is_pointwise(func) or func in _FILLED):
            if self.replay is None:
                self.numbers[key] = args
            elif key in self.numbers and len(self.numbers[key]) == len(args):
                args = tuple(
                    new if isinstance(old, (int, float)) and isinstance(new, (int, float)) else old
                    for old, new in zip(args, self.numbers[key])
                )
        if self.replay is not None:
            return self.replay.run(key, func, args, kwargs)
        return func(*args, **kwargs)


_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_FILLED = frozenset({aten.scalar_tensor.default})


def _is_pointwise(func: Any) -> bool:
    return torch.Tag.pointwise in getattr(func, 'tags', ()) or func in _ARITHMETIC


_ARITHMETIC = frozenset(
    {aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.add_.Tensor, aten.add_.Scalar, aten.rsub.Scalar}
)

#: Operators that mix values over an axis which they do not freeze. Products of two activations are among them: what is
#: left of a masked channel need not be zero (`elu(x) + 1`). Products with weights are not, as those are masked.
_MIXING = frozenset(
    {
        *('native_layer_norm', '_fused_rms_norm', 'native_group_norm', 'native_batch_norm', '_native_batch_norm_legit'),
        *('_batch_norm_with_update', '_weight_norm_interface', '_softmax', '_log_softmax', '_safe_softmax', 'logsumexp'),
        *('mean', 'sum', 'nansum', 'prod', 'any', 'all', 'amax', 'amin', 'max', 'min', 'count_nonzero'),
        *(
            'bmm',
            'baddbmm',
            'var',
            'std',
            'var_mean',
            'std_mean',
            'linalg_vector_norm',
            'norm',
            '_cdist_forward',
            '_euclidean_dist',
        ),
    }
)


#: Operators that are there to be divided by.
_DIVISORS = frozenset({'linalg_vector_norm', 'norm', 'std'})


class _Replay:
    """Compute mixing operators over what stays of their axes."""

    def __init__(self, slicing: Slicing) -> None:
        self.slicing = slicing
        self.calls: dict[Any, Call] = {}
        for call in slicing.graph.calls:
            if call.name in _MIXING and self._cut(call):
                self.calls[call.path, call.func, call.place] = call
        self.met: set[Any] = set()

    def _cut(self, call: Call) -> bool:
        return any(
            self.slicing.positions(term) is not None for value in call.args if type(value) is Axes for term in value.terms
        )

    def run(self, key: Any, func: Any, args: Any, kwargs: Any) -> Any:
        call = self.calls.get(key)
        if call is None:
            return func(*args, **kwargs)
        self.met.add(key)
        taken = [
            self._take(value, axes) if isinstance(value, torch.Tensor) and type(axes) is Axes else value
            for value, axes in zip(args, call.args)
        ]
        name = call.name
        if name in ('native_layer_norm', '_fused_rms_norm'):
            taken[1] = list(taken[0].shape[taken[0].dim() - len(args[1]) :])
        elif name == 'native_group_norm':
            shape = taken[0].shape
            taken[3:7] = [shape[0], shape[1], shape[2:].numel(), self._groups(call, args[6])]
        out, around = func(*taken, **kwargs), func(*args, **kwargs)
        if name in _DIVISORS:
            around = around.masked_fill(around == 0, 1)
        if isinstance(out, torch.Tensor):
            return self._put(out, around, call.out[0])
        return type(out)(self._put(part, whole, axes) for part, whole, axes in zip(out, around, call.out))

    def _groups(self, call: Call, groups: int) -> int:
        lengths = {atom: len(index) for atom, index in self.slicing.cut.items()}
        try:
            return length(split_prod(call.args[0].terms[1], groups)[0], lengths)
        except Incompatible:
            return groups

    def _take(self, tensor: torch.Tensor, axes: Axes) -> torch.Tensor:
        for dim, term in enumerate(axes.terms):
            found = self.slicing.positions(term)
            if found is not None and tensor.shape[dim] == term.size:
                tensor = (
                    tensor.narrow(dim, 0, found)
                    if isinstance(found, int)
                    else tensor.index_select(dim, found.to(tensor.device))
                )
        return tensor

    def _put(self, tensor: torch.Tensor, around: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Return `around`, which was computed over everything, with what was computed over what stays in its place.

        What is left of masked channels must be finite numbers: a zero may be divided by.
        """
        places = []
        for dim, term in enumerate(axes.terms):
            found = self.slicing.positions(term)
            if found is None:
                continue
            index = (torch.arange(found, device='cpu') if isinstance(found, int) else found).to(tensor.device)
            if dim < tensor.dim() and tensor.shape[dim] == len(index) and around.shape[dim] == term.size:
                places.append((dim, index))
        if places and around.is_floating_point():
            around = around.nan_to_num(0.0, 0.0, 0.0)
        frames = [around]
        for dim, index in places[:-1]:
            frames.append(frames[-1].index_select(dim, index))
        for (dim, index), frame in zip(places[::-1], frames[::-1]):
            tensor = frame.index_copy(dim, index, tensor)
        return tensor


def _forward(
    model: nn.Module,
    args: Any,
    kwargs: Any,
    numbers: dict[Any, Any],
    replay: _Replay | None,
    masked: Mapping[str, Any],
    widen: bool,
) -> list[torch.Tensor]:
    recording = _Recording(model)
    with untouched(model), seeded(0, 'proof'), torch.no_grad(), ExitStack() as stack:
        torch.backends.mha.set_fastpath_enabled(False)
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            module.training = False
            prefix = f'{path}.' if path else ''
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        found = masked.get(prefix + name, tensor.detach())
                        # A forward may write into buffers.
                        store[name] = found.clone() if store is module._buffers else found
            for name in [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]:
                if prefix + name in masked:
                    module.__dict__[name] = masked[prefix + name]
        args, kwargs = moved_to(model, (args, kwargs))
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs))
        stack.enter_context(without_mkldnn(widen))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(module_stack(recording))
        stack.enter_context(python_functionals())
        stack.enter_context(whole_functions(has_axis_rule))
        stack.enter_context(_Mode(recording, numbers, replay, widen))
        out = model(*args, **kwargs)
        return [tensor.detach().clone() for tensor in output_tensors(out)]


def masked_tensors(model: nn.Module, slicing: Slicing) -> dict[str, torch.Tensor]:
    """Return copies of the parameters that the slicing cuts, with zeros where it cuts.

    Buffers stay as they are: a table of periods is divided by, and whatever it meets is masked already.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, torch.Tensor] = {}
    for name in slicing.touched:
        if name not in tensors:
            continue
        tensor = tensors[name].detach().clone()
        for dim, gone in enumerate(slicing.mask(name)):
            if gone is not None:
                tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)
        found[name] = tensor
    return found


def _distance(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> float:
    if len(one) != len(two):
        return float('inf')
    worst = 0.0
    for a, b in zip(one, two):
        if a.shape != b.shape:
            return float('inf')
        if not (a.is_floating_point() or a.is_complex()):
            continue
        a, b = (x if x.is_complex() else in_double(x) for x in (a, b))
        same = (a == b) | (a.isnan() & b.isnan())
        if same.all():
            continue
        scale = b[b.isfinite()].abs().pow(2).mean().sqrt().item() if b.isfinite().any() else 1.0
        apart = torch.where(same, torch.zeros_like(a), a - b).abs().pow(2).mean().sqrt().item()
        value = apart / max(scale, 1e-300)
        worst = max(worst, value if value == value else float('inf'))
    return worst


def compare(
    original: nn.Module, slim: nn.Module, slicing: Slicing, inputs: Any, *, widen: bool = False
) -> tuple[float, str | None]:
    """Return the relative distance between the outputs of a cut model and of its masked original, and what was not followed.

    Both run in eval mode and are left as they were.

    Raises:
        VerificationError: If the cut model raises, or neither gives any number that could differ.
    """
    args, kwargs = arguments_of(inputs)
    numbers: dict[Any, Any] = {}
    try:
        got = _forward(slim, args, kwargs, numbers, None, {}, widen)
    except Exception as error:
        raise VerificationError(
            f'{type(slim).__name__} cannot run after it was cut, on inputs {shapes_of(args, kwargs)}: '
            f'{type(error).__name__}: {error}'
        ) from error
    replay = _Replay(slicing)
    want = _forward(original, args, kwargs, numbers, replay, masked_tensors(original, slicing), widen)
    numeric = [tensor for tensor in (*got, *want) if tensor.is_floating_point() or tensor.is_complex()]
    if not any(bool(tensor.isfinite().any()) for tensor in numeric):
        raise VerificationError(
            f'{type(slim).__name__} gives no numbers to compare on inputs {shapes_of(args, kwargs)}: a detector that finds '
            'nothing, for example, or NaN in inputs or weights. Give inputs on which it does, or a mode with raw outputs: '
            "mode='tensor' in OpenMMLab."
        )
    missed = set(replay.calls) - replay.met
    note = f'{len(missed)} operators were not met again: {sorted({str(key[1]) for key in missed})}' if missed else None
    return _distance(got, want), note


def verify(original: nn.Module, slim: nn.Module, slicing: Slicing, inputs: Any, *, tolerance: float | None = None) -> float:
    """Check that a cut model computes what its original computes with the cut indices masked; return the error.

    Args:
        original: The model before cutting.
        slim: The cut one.
        slicing: What was cut.
        inputs: Example inputs.
        tolerance: The largest relative error; by default 1e-2 for models of 32 bits and less, 1e-8 for those of 64.
            A wrong cut gives errors near 1.

    Raises:
        VerificationError: If the error is larger, the cut model raises, or there is nothing to compare.
    """
    dtypes = {parameter.dtype for parameter in original.parameters() if parameter.is_floating_point()}
    if tolerance is None:
        tolerance = 1e-8 if dtypes == {torch.float64} else 1e-2
    error, note = compare(original, slim, slicing, inputs)
    if not error <= tolerance and dtypes != {torch.float64}:
        # A model that sorts and selects (a detector) turns rounding into other outputs; with double precision it rarely does.
        wide = tree_map_only(torch.Tensor, lambda tensor: _cast(tensor, torch.float64), inputs)
        with _default_dtype(torch.float64):
            models = [converted(model, torch.float64) for model in (original, slim)]
            error, note = compare(models[0], models[1], slicing, wide, widen=True)
    if not error <= tolerance:
        raise VerificationError(
            f'The cut {type(slim).__name__} does not compute what the original does with the cut channels masked: '
            f'relative error {error:.2g}, allowed {tolerance:.2g}{f" ({note})" if note else ""}. Some operator has a wrong '
            'rule: please report it; naming the modules in `ignored` avoids it.'
        )
    return error


def converted(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in another precision, tensors that modules keep as plain attributes included.

    It is on the CPU where the model's own device has no double precision.
    """
    model = copied(model)
    devices = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    model = (model.cpu() if dtype == torch.float64 and 'mps' in devices else model).to(dtype)
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            for name, value in list(vars(module).items()):
                if name not in ('_parameters', '_buffers', '_modules'):
                    changed = map_tensors(value, lambda tensor, _: _cast(tensor, dtype))
                    if changed is not value:
                        module.__dict__[name] = changed
    return model


def randomized(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a copy in another precision and eval mode, with random batch norm statistics and no constant parameters.

    Freshly made models hide errors: a bias of zeros, a scale of ones or a token of zeros is the same in every order, and
    a head that starts near zero drowns in its bias.
    """
    model = evaluated(converted(model, dtype))
    generator = torch.Generator('cpu').manual_seed(seed)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device='cpu')  # the same numbers on every device

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.copy_(drawn(module.running_mean).normal_(0.0, 0.3, generator=generator))
            module.running_var.copy_(drawn(module.running_mean).uniform_(0.5, 1.5, generator=generator))  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() > 1:
                low, high = parameter.aminmax()
                if low == high:
                    ends = (0.5, 1.5) if low != 0 else (-0.2, 0.2)
                    parameter.copy_(drawn(parameter).uniform_(*ends, generator=generator))
                elif parameter.dim() > 1 and max(-low, high) < 0.01:
                    parameter.mul_(0.1 / max(-low, high))
    return model


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return in_double(tensor) if dtype == torch.float64 else tensor.to(dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make tensors that a forward makes without a dtype (`torch.zeros(n)`) in the precision of the proof."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def random_kept(graph: ChannelGraph, ratio: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random indices to keep for every unit: a bit less than `1 - ratio` of each, a different share for each."""
    rng = counter_rng(seed, 'kept')
    wanted = {}
    for unit in graph:
        share = min(max(ratio + rng.uniform(0.0, 0.12), 0.0), 1.0)
        wanted[unit.name] = max(unit.minimum, round(unit.size * (1 - share)))
    fitted = graph.fit(wanted)
    return {
        name: torch.as_tensor(sorted(rng.choice(graph.units[name].size, count, replace=False)), dtype=torch.long)
        for name, count in fitted.items()
    }


def prove(
    model: nn.Module,
    inputs: Any,
    keep: Mapping[str, Sequence[int] | torch.Tensor] | None = None,
    *,
    ratio: float = 0.5,
    seed: int = 0,
    graph: ChannelGraph | None = None,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
) -> Proof:
    """Cut random indices of every unit of a float64 copy of `model` and compare with the masked original.

    Statistics of batch norms and constant parameters are randomized first. The model itself is not changed.

    Args:
        model: Any module.
        inputs: As for `channel_units`.
        keep: Unit -> indices that stay; random ones by default, a different share for each unit.
        ratio: The share to cut where `keep` is not given.
        seed: Seed of what is random.
        graph: The graph, if the model has been traced already.
        dtype: The precision to compute in; float32 for models with operators that have no other.
        tolerance: The largest relative error of a proof that holds, by default 1e-6 (1e-3 in float32). In float64 it is
            about 1e-15; models that cast to float32 inside get 1e-7.

    Raises:
        GraphError: If the model cannot be traced.
        VerificationError: If the cut model raises.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> prove(model, torch.randn(2, 3, 8, 8)).holds
    True
    """
    if tolerance is None:
        tolerance = 1e-6 if dtype == torch.float64 else 1e-3
    widen = dtype == torch.float64
    wide = tree_map_only(torch.Tensor, lambda tensor: _cast(tensor, dtype), arguments_of(inputs))
    example: Any = wide[0] if not wide[1] else wide[1]
    if wide[0] and wide[1]:
        raise GraphError('Give example inputs either as positional or as keyword arguments.')
    original = randomized(model, seed, dtype)
    with _default_dtype(dtype):
        graph = channel_units(original, example) if graph is None else graph
        slicing = graph.slicing(random_kept(graph, ratio, seed) if keep is None else keep)
        slim = slicing.apply(original)
        error, note = compare(original, slim, slicing, example, widen=widen)
        plain = _forward(original, wide[0], wide[1], {}, None, {}, widen)
        changed = _forward(slim, wide[0], wide[1], {}, None, {}, widen)
    return Proof(error, _distance(changed, plain), tolerance, slim, graph, slicing.lengths, note)


__all__ = ['Proof', 'compare', 'masked_tensors', 'prove', 'random_kept', 'randomized', 'verify']
