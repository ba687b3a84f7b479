"""Does an export compute what the model computes: inputs of several batch sizes, and how far outputs are apart."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn
from torch.utils import _pytree as pytree

from strop.errors import ConfigError, ExportError
from strop.estimators import counting
from strop.graph.forward import copied, evaluated, output_tensors
from strop.quantization.batches import in_order
from strop.randomness import derive_seed

#: Largest difference that counts as equal, relative to the largest magnitude of the output.
RTOL = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
ATOL = {torch.float64: 1e-14, torch.float32: 1e-7, torch.float16: 1e-5, torch.bfloat16: 1e-5}


@dataclass(frozen=True)
class ExportedFile:
    """What an export wrote, and how close it is to the model.

    Args:
        path: The file, or the folder of a recipe.
        format: 'recipe', 'pt2' or 'onnx'.
        size_bytes: Size of everything written.
        batches: Batch sizes at which outputs were compared; empty if they were not.
        max_abs_error: Largest absolute difference of an output; None if not compared.
        max_rel_error: The same, relative to the largest magnitude of that output.
        inputs: Name -> shape, with 'batch' where it may vary.
        outputs: Names of the outputs.
        opset: ONNX operator set.
    """

    path: Path
    format: str
    size_bytes: int
    batches: tuple[int, ...] = ()
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    inputs: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    opset: int | None = None

    def moved(self, path: Path) -> ExportedFile:
        """Return the same with another path."""
        return dataclasses.replace(self, path=path)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it, with the file's name for its path.

        >>> ExportedFile(Path('a/model.pt2'), 'pt2', 10).to_dict()['path']
        'model.pt2'
        """
        shapes = {name: list(shape) for name, shape in self.inputs.items()}
        content = dataclasses.asdict(dataclasses.replace(self, inputs=shapes))
        for name in ('max_abs_error', 'max_rel_error'):  # JSON has no infinity, which is what 1e-9 beside 0 is
            content[name] = content[name] if content[name] is not None and math.isfinite(content[name]) else None
        return {**content, 'path': self.path.name, 'batches': list(self.batches), 'outputs': list(self.outputs)}

    def __str__(self) -> str:
        text = f'{self.path}: {self.format}, {self.size_bytes / 2**20:.2f} MiB'
        if self.max_abs_error is None or self.max_rel_error is None:
            return text + ', outputs not compared'
        if self.max_abs_error == 0:
            return text + f', outputs equal at batch {", ".join(map(str, self.batches))}'
        return text + (
            f', outputs within {self.max_abs_error:.1e} (relative {self.max_rel_error:.1e}) at batch '
            f'{", ".join(map(str, self.batches))}'
        )


@dataclass(frozen=True)
class Inputs:
    """Arguments of a forward, and which of their tensors have a batch.

    The batch is the first axis of the first tensor that has one, and of every other tensor whose first axis is as long.

    >>> inputs = Inputs.of({'image': torch.zeros(2, 3), 'scale': torch.tensor(1.0)})
    >>> inputs.batch, list(inputs.with_batch(5).shapes())
    (2, ['image', 'scale'])
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Any) -> Inputs:
        """Read a tensor, a tuple or list of arguments, or a mapping of keyword arguments.

        Raises:
            ConfigError: If there is no tensor in it.
        """
        if isinstance(value, Inputs):
            return value
        if isinstance(value, Mapping):
            inputs = cls((), dict(value))
        else:
            inputs = cls(tuple(value) if isinstance(value, (tuple, list)) else (value,), {})
        if not inputs.tensors():
            raise ConfigError(
                'Example inputs are a tensor, a tuple of arguments or a mapping of keyword arguments, but got '
                f'{type(value).__name__} '
                'without a tensor in it. random_inputs(model, (2, 3, 224, 224)) makes some.'
            )
        return inputs

    def leaves(self) -> list[tuple[str, Any]]:
        """Return (name, value) of everything inside, in order."""
        found = []
        for path, value in pytree.tree_flatten_with_path((self.args, self.kwargs))[0]:
            parts = [str(getattr(key, 'key', getattr(key, 'idx', key))) for key in path]
            if parts[0] == '0':
                position = int(parts[1])
                parts[1] = self.names[position] if position < len(self.names) else f'input_{position}'
            found.append((re.sub(r'\W', '_', '_'.join(parts[1:])), value))
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return name -> tensor."""
        return {name: value for name, value in self.leaves() if isinstance(value, torch.Tensor)}

    def shapes(self) -> dict[str, dict[str, Any]]:
        """Return name -> shape and dtype."""
        return {
            name: {'shape': list(tensor.shape), 'dtype': str(tensor.dtype).removeprefix('torch.')}
            for name, tensor in self.tensors().items()
        }

    @property
    def batch(self) -> int | None:
        """The batch size; None if no tensor has an axis."""
        return next((int(tensor.shape[0]) for tensor in self.tensors().values() if tensor.ndim), None)

    def has_batch(self, value: Any) -> bool:
        """Whether a value inside has the batch as its first axis."""
        return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == self.batch

    def map(self, function: Any) -> Inputs:
        """Return the same structure with `function` applied to each tensor."""
        args, kwargs = pytree.tree_map(
            lambda value: function(value) if isinstance(value, torch.Tensor) else value, (self.args, self.kwargs)
        )
        return Inputs(args, kwargs, self.names)

    def to(self, device: Any) -> Inputs:
        """Return a copy on a device, detached: a model may write into what it is given."""
        return self.map(lambda tensor: tensor.detach().to(device, copy=True))

    def with_batch(self, size: int) -> Inputs:
        """Return inputs of another batch size whose rows all differ: rows of these, disturbed after the first round.

        Integers and booleans are drawn from the values of the same tensor, so that indices stay in range.
        """
        generator = torch.Generator('cpu').manual_seed(derive_seed(0, 'batch', size))

        def resized(tensor: torch.Tensor) -> torch.Tensor:
            if not self.has_batch(tensor) or not tensor.numel():
                return tensor
            rows = tensor[torch.arange(size, device='cpu') % tensor.shape[0]].clone()
            new = rows[tensor.shape[0] :]
            if new.is_floating_point():
                spread = float(tensor.cpu().double().std()) if tensor.numel() > 1 else 0.0
                new += (torch.randn(new.shape, generator=generator, device='cpu') * (spread or 1.0)).to(new)
            elif not new.is_complex():
                values = tensor.reshape(-1)
                new.copy_(values[torch.randint(values.numel(), new.shape, generator=generator, device='cpu')])
            return rows

        return self.map(resized)

    def bound(self, model: nn.Module) -> tuple[Inputs, dict[str, Any]]:
        """Return the same, named and ordered as the forward of `model` does it, and its arguments by parameter.

        Raises:
            ConfigError: If they do not fit the forward.
        """
        try:
            arguments = inspect.signature(model.forward).bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise ConfigError(
                f'The example inputs ({self.describe()}) do not fit the forward of {type(model).__name__}: {error}. '
                'Positional arguments '
                'are a tuple, keyword arguments a mapping.'
            ) from None
        names: list[str] = []
        for name, parameter in arguments.signature.parameters.items():
            if name not in arguments.arguments or name in self.kwargs:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                names.extend(f'{name}_{number}' for number in range(len(arguments.arguments[name])))
            elif parameter.kind is not parameter.VAR_KEYWORD:
                names.append(name)
        order = [*(name for name in arguments.signature.parameters if name in self.kwargs), *self.kwargs]
        kwargs = {name: self.kwargs[name] for name in dict.fromkeys(order)}
        return Inputs(self.args, kwargs, tuple(names)), dict(arguments.arguments)

    def in_order(self, example: tuple[tuple[Any, ...], dict[str, Any]]) -> Inputs:
        """Return the same in the order of the arguments that a file was written with.

        Arguments by name and those by position are taken for the same, by their places.

        Raises:
            DataError: If there are other tensors than in these, and more than one.
        """
        by_place = bool(self.kwargs) != bool(example[1]) and len(self.tensors()) == len(Inputs(*example).tensors())
        if len(self.tensors()) == 1 or by_place:
            return self
        return Inputs(*in_order(example, self.args, self.kwargs), self.names)

    def describe(self) -> str:
        """Return names, shapes and dtypes as text."""
        return ', '.join(f'{name} {tuple(entry["shape"])} {entry["dtype"]}' for name, entry in self.shapes().items())


def random_inputs(model: nn.Module, input_shape: Sequence[int], *, seed: int = 0) -> torch.Tensor:
    """Return normally distributed inputs on the device and in the dtype of a model.

    Args:
        model: Any module.
        input_shape: Shape of one batch, the batch included, such as (2, 3, 224, 224).
        seed: Equal seeds give equal inputs.

    Raises:
        ConfigError: If the shape is no sequence of positive integers.

    >>> random_inputs(nn.Linear(3, 1).double(), (2, 3)).dtype
    torch.float64
    """
    zeros = counting.example_inputs(model, input_shape)
    generator = torch.Generator('cpu').manual_seed(derive_seed(seed, 'inputs'))
    return torch.randn(zeros.shape, generator=generator, device='cpu').to(zeros)


class TensorForward(nn.Module):
    """The forward of an MMEngine model as a plain module, in its mode 'tensor' unless the inputs say otherwise."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Return raw outputs, or what another mode returns."""
        return self.model(inputs, mode=mode) if data_samples is None else self.model(inputs, data_samples, mode=mode)


def source_of(model: nn.Module) -> nn.Module:
    """Return a copy of a plain model on the CPU, in eval mode and without gradients, called with inputs alone.

    Raises:
        ExportError: If it cannot be copied.
    """
    try:
        twin = copied(model)
    except Exception as error:
        raise ExportError(
            f'{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and an export never '
            'touches the model itself.'
        ) from error
    twin = evaluated(twin.cpu().requires_grad_(False))
    return TensorForward(twin).eval() if isinstance(model, BaseModel) else twin


def outputs_of(model: nn.Module, inputs: Inputs) -> Any:
    """Return what a model gives for a copy of inputs, without gradients.

    Raises:
        ExportError: If its forward fails.
    """
    given = inputs.map(torch.clone)
    try:
        with torch.no_grad():
            return model(*given.args, **given.kwargs)
    except Exception as error:
        raise ExportError(f'{type(model).__name__} fails on {inputs.describe()}: {type(error).__name__}: {error}') from error


def named_outputs(outputs: Any) -> dict[str, Any]:
    """Return name -> value of everything inside the outputs of a model; of result objects, each tensor in them.

    >>> list(named_outputs((torch.zeros(1), {'mask': torch.zeros(1)})))
    ['output[0]', "output[1]['mask']"]
    """
    found: dict[str, Any] = {}
    for path, value in pytree.tree_flatten_with_path(outputs)[0]:
        name = 'output' + pytree.keystr(path)
        tensors = [] if isinstance(value, torch.Tensor) else list(output_tensors(value))
        found.update({f'{name}<{number}>': tensor for number, tensor in enumerate(tensors)} if tensors else {name: value})
    return found


@dataclass(frozen=True)
class Comparison:
    """How far outputs are apart.

    Args:
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the largest magnitude of its output.
        problem: The first output that differs too much, and by how much; empty if none does.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    problem: str = ''


def compared(
    reference: Mapping[str, Any], actual: Sequence[Any], rtol: float | None = None, atol: float | None = None
) -> Comparison:
    """Compare outputs one by one.

    An output counts as equal if no element differs by more than `atol + rtol * max|reference|`; NaN and infinities
    must be at the same places; integers and booleans must be equal.

    Args:
        reference: Name -> output of the model.
        actual: Outputs of the export, in the same order.
        rtol: Relative tolerance; by default that of the dtype in `RTOL`.
        atol: Absolute tolerance; by default that of the dtype in `ATOL`.

    >>> compared({'a': torch.tensor([1.0, 4.0])}, [torch.tensor([1.0, 5.0])]).problem
    'a differs by 1 (0.25 of its largest magnitude 4; allowed are 0.0004)'
    """
    if len(reference) != len(actual):
        return Comparison(float('inf'), float('inf'), f'there are {len(actual)} outputs instead of {len(reference)}')
    pairs = list(_differences(reference, actual, rtol, atol))
    problems = [pair.problem for pair in pairs if pair.problem]
    return Comparison(
        max((pair.max_abs for pair in pairs), default=0.0),
        max((pair.max_rel for pair in pairs), default=0.0),
        problems[0] if problems else '',
    )


def _differences(
    reference: Mapping[str, Any], actual: Sequence[Any], rtol: float | None, atol: float | None
) -> Iterator[Comparison]:
    worst = float('inf')
    for (name, wanted), given in zip(reference.items(), actual, strict=True):
        if not isinstance(wanted, torch.Tensor):
            yield Comparison() if wanted == given else Comparison(worst, worst, f'{name} is {given!r} instead of {wanted!r}')
            continue
        if not isinstance(given, torch.Tensor) or given.shape != wanted.shape or given.dtype != wanted.dtype:
            what = f'{tuple(given.shape)} of {given.dtype}' if isinstance(given, torch.Tensor) else type(given).__name__
            yield Comparison(worst, worst, f'{name} is {what} instead of {tuple(wanted.shape)} of {wanted.dtype}')
            continue
        if not wanted.numel():
            yield Comparison()
            continue
        if not wanted.is_floating_point() and not wanted.is_complex():
            wrong = int((wanted != given).sum())
            yield (
                Comparison(float(wrong), 1.0, f'{name} differs in {wrong} of {wanted.numel()} elements')
                if wrong
                else Comparison()
            )
            continue
        yield _distance(name, wanted.detach().cpu(), given.detach().cpu(), rtol, atol)


def _distance(name: str, wanted: torch.Tensor, given: torch.Tensor, rtol: float | None, atol: float | None) -> Comparison:
    kind = wanted.dtype
    wide = torch.complex128 if kind.is_complex else torch.float64
    first, second = wanted.to(wide), given.to(wide)
    finite = torch.isfinite(first)
    same = (first == second) | (torch.isnan(first) & torch.isnan(second))
    if bool((~same & ~(finite & torch.isfinite(second))).any()):
        return Comparison(float('inf'), float('inf'), f'{name} is not finite at other places than the output of the model')
    gap = torch.where(same, torch.zeros_like(first), first - second).abs()
    largest = float(gap.max())
    scale = float(first[finite].abs().max()) if bool(finite.any()) else 0.0
    relative = 0.0 if largest == 0 else largest / scale if scale else float('inf')
    allowed = (ATOL.get(kind, 1e-7) if atol is None else atol) + (RTOL.get(kind, 1e-4) if rtol is None else rtol) * scale
    if largest <= allowed:
        return Comparison(largest, relative)
    return Comparison(
        largest,
        relative,
        f'{name} differs by {largest:.4g} ({relative:.4g} of its largest magnitude {scale:.4g}; allowed are {allowed:.3g})',
    )
