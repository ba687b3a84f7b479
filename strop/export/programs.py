"""A plain model as one file for a runtime: `torch.export` programs and ONNX, each compared with the model before it counts."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from strop.errors import ConfigError, DifferenceError, ExportError, MissingDependencyError, try_import
from strop.estimators.runtimes import out_of_place, quiet
from strop.estimators.sessions import OnnxRuntimeSession
from strop.export.comparison import Comparison, ExportedFile, Inputs, compared, named_outputs, outputs_of, source_of
from strop.export.recipe import plain_subnet
from strop.files import atomic_path

#: A protocol-buffer file ends at 2 GiB; above this size of the weights, they go into a second file (torch's own limit).
ONNX_LIMIT = 1536 * 2**20

Run = Callable[[Inputs], Sequence[Any]]


@dataclass
class Source:
    """A model to export: a copy of it on the CPU, inputs, what it gives for them, and its traced program.

    Args:
        model: The copy.
        inputs: Example inputs, as its forward names them.
        arguments: The same by parameter.
        dynamic_batch: Whether the batch size stays open.
        references: Batch size -> (inputs, outputs by name).
    """

    model: nn.Module
    inputs: Inputs
    arguments: dict[str, Any]
    dynamic_batch: bool
    references: dict[int | None, tuple[Inputs, dict[str, Any]]]
    _program: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any, dynamic_batch: bool, batches: Sequence[int] | None = None) -> Source:
        """Prepare a model; `batches` are the batch sizes to compare at.

        Raises:
            ConfigError: If the inputs do not fit the forward, or have no batch that could be dynamic.
            ExportError: If the model has decisions to make, fails, or gives different outputs for equal inputs.
        """
        twin = source_of(plain_subnet(model))
        inputs, arguments = Inputs.of(example_inputs).to('cpu').bound(twin)
        if dynamic_batch and not inputs.batch:
            raise ConfigError(f'The inputs ({inputs.describe()}) have no batch axis with rows in it: set dynamic_batch=False.')
        if batches is not None and (not batches or not all(isinstance(size, int) and size > 0 for size in batches)):
            raise ConfigError(f'`batches` are positive batch sizes such as (1, 8), but got {batches!r}.')
        if batches is not None and not dynamic_batch and set(batches) != {inputs.batch}:
            raise ConfigError(
                f'With dynamic_batch=False the only batch size is {inputs.batch}, but `batches` is {tuple(batches)}.'
            )
        sizes: list[int | None] = [inputs.batch]
        if dynamic_batch:
            sizes = sorted({1, inputs.batch, 3} if batches is None else set(batches))  # type: ignore[arg-type, type-var]
        references: dict[int | None, tuple[Inputs, dict[str, Any]]] = {}
        for size in sorted(sizes, key=lambda size: size != inputs.batch):  # the example first: if it fails, that is said
            given = inputs if size in (None, inputs.batch) else inputs.with_batch(size)  # type: ignore[arg-type]
            references[size] = (given, named_outputs(outputs_of(twin, given)))
        source = cls(twin, inputs, arguments, dynamic_batch, {size: references[size] for size in sizes})
        again = source.distance(lambda given: list(named_outputs(outputs_of(twin, given)).values()))
        if again.problem:
            raise ExportError(
                f'{type(model).__name__} gives different outputs for equal inputs ({again.problem}): it draws random '
                'numbers in eval '
                'mode, or keeps state from call to call. Such a model has no program that equals it.'
            )
        return source

    def distance(self, run: Run, rtol: float | None = None, atol: float | None = None) -> Comparison:
        """Compare what `run` gives with the model, at every batch size; the first problem says the batch size."""
        worst = Comparison()
        for size, (inputs, reference) in self.references.items():
            try:
                actual = run(inputs.map(torch.clone))
            except MissingDependencyError:
                raise
            except Exception as error:
                reason = str(error).strip().splitlines() or ['']
                problem = f'it fails there: {type(error).__name__}: {reason[0][:300]}'
                found = Comparison(float('inf'), float('inf'), problem)
            else:
                found = compared(reference, actual, rtol, atol)
            problem = f'at batch {size}, {found.problem}' if found.problem else ''
            worst = Comparison(max(worst.max_abs, found.max_abs), max(worst.max_rel, found.max_rel), worst.problem or problem)
        return worst

    @property
    def program(self) -> Any:
        """The model as a `torch.export` program.

        Raises:
            ExportError: If it cannot be traced.
        """
        if self._program is None:
            inputs, arguments = self.inputs, self.arguments
            shapes = None
            if self.dynamic_batch:
                if inputs.batch == 1:  # a batch of one would be taken for a constant
                    inputs, arguments = inputs.with_batch(2).bound(self.model)
                axis = torch.export.Dim('batch')
                shapes = pytree.tree_map(lambda value: {0: axis} if inputs.has_batch(value) else None, arguments)
            try:
                with quiet(), torch.no_grad(), _silent():
                    self._program = torch.export.export(
                        self.model, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False
                    )
            except Exception as error:
                hint = ' If its batch size cannot vary, export with dynamic_batch=False.' if self.dynamic_batch else ''
                raise ExportError(
                    f'{type(self.model).__name__} cannot be traced by torch.export: {type(error).__name__}: '
                    f'{str(error).strip()[:1500]}{hint}'
                ) from error
        return self._program

    def shapes(self) -> dict[str, list[int | str]]:
        """Return name -> shape of every input tensor, with 'batch' for the open axis."""
        return {
            name: [
                'batch' if axis == 0 and self.dynamic_batch and self.inputs.has_batch(tensor) else size
                for axis, size in enumerate(tensor.shape)
            ]
            for name, tensor in self.inputs.tensors().items()
        }

    def result(self, path: Path, kind: str, found: Comparison | None, **details: Any) -> ExportedFile:
        """Return what was exported and how close it is."""
        return ExportedFile(
            path=path,
            format=kind,
            batches=tuple(size for size in self.references if size is not None) if found is not None else (),
            max_abs_error=None if found is None else found.max_abs,
            max_rel_error=None if found is None else found.max_rel,
            inputs=self.shapes(),
            **details,
        )


def export_program(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    check: bool = True,
    batches: Sequence[int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> ExportedFile:
    """Write a model as a `torch.export` program (`.pt2`), read it back, and compare it with the model.

    The model is copied to the CPU for this; neither its mode nor its device nor anything else in it changes.

    Args:
        model: A plain model; an algorithm or a supernet is reduced to the subnet that it has decided. MMEngine models are
            exported in their mode 'tensor'.
        example_inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments.
        path: The file, ending in `.pt2`. It appears only if the program equals the model.
        dynamic_batch: Leave the batch size open.
        check: Compare outputs.
        batches: Batch sizes to compare at; by default 1, 3 and that of the example.
        rtol: Largest difference relative to the largest magnitude of an output; by dtype if not given (float32: 1e-4).
        atol: Largest absolute difference beside it; by dtype if not given (float32: 1e-7).

    Raises:
        ConfigError: If the inputs do not fit the model, or the path has another ending.
        ExportError: If the model cannot be traced, or its program computes something else: then there is no file.

    >>> import tempfile
    >>> model = nn.Linear(3, 2)
    >>> exported = export_program(model, torch.rand(4, 3), Path(tempfile.mkdtemp()) / 'model.pt2')
    >>> exported.max_abs_error < 1e-6, exported.batches, model.training
    (True, (1, 3, 4), True)
    """
    target = _target(path, '.pt2')
    return write_program(Source.of(model, example_inputs, dynamic_batch, batches), target, check, rtol, atol)


def write_program(
    source: Source, target: Path, check: bool = True, rtol: float | None = None, atol: float | None = None
) -> ExportedFile:
    """Write the program of a prepared model; see `export_program`."""
    found = None
    with atomic_path(target) as temporary:
        with quiet(), _silent():
            try:
                torch.export.save(source.program, temporary)
            except ExportError:
                raise
            except Exception as error:
                raise ExportError(f'torch.export.save failed: {type(error).__name__}: {error}') from error
            if check:
                program = _loaded(temporary)
                found = source.distance(lambda given: _flat(program(*given.args, **given.kwargs)), rtol, atol)
        _refuse(found, 'torch.export program', target)
        size = temporary.stat().st_size
    return source.result(target, 'pt2', found, size_bytes=size, outputs=_names(source))


def _loaded(path: Path) -> nn.Module:
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise ExportError(
            f'The program was written, but torch.export.load cannot read it: {type(error).__name__}: {error} Outputs that are '
            'neither tensors nor numbers are a usual cause.'
        ) from error


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    check: bool = True,
    batches: Sequence[int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> ExportedFile:
    """Write a model as ONNX, run it in ONNX Runtime, and compare it with the model.

    One file; weights above 1.6 GB go into a second one, `<path>.data`. For the other arguments see `export_program`.

    Args:
        model: A plain model.
        example_inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments.
        path: The file, ending in `.onnx`.
        dynamic_batch: Leave the batch size open, as the axis `batch`.
        opset: ONNX operator set; PyTorch's choice by default.
        check: Compare outputs in ONNX Runtime.
        batches: Batch sizes to compare at.
        rtol: Largest relative difference.
        atol: Largest absolute difference.

    Raises:
        MissingDependencyError: If onnx, onnxscript or (for the check) onnxruntime is missing.
        ConfigError: If the inputs do not fit the model, or the path has another ending.
        ExportError: If the model cannot be converted, or computes something else in ONNX Runtime: then there is no file.
    """
    for package in ('onnx', 'onnxscript', *(['onnxruntime'] if check else [])):
        try_import(package, 'onnx')
    if opset is not None and (not isinstance(opset, int) or isinstance(opset, bool) or opset < 18):
        raise ConfigError(
            f'`opset` is an ONNX operator set of at least 18, the oldest that the exporter writes, but got {opset!r}.'
        )
    target = _target(path, '.onnx')
    return write_onnx(Source.of(model, example_inputs, dynamic_batch, batches), target, opset, check, rtol, atol)


def write_onnx(
    source: Source,
    target: Path,
    opset: int | None = None,
    check: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
) -> ExportedFile:
    """Write a prepared model as ONNX; see `export_onnx`."""
    wanted = next(iter(source.references.values()))[1]
    extra = [name for name, value in wanted.items() if not isinstance(value, torch.Tensor)]
    if extra:
        raise ExportError(
            f'ONNX outputs are tensors, but {extra[0]} is a {type(wanted[extra[0]]).__name__}. Return tensors only.'
        )
    inputs, outputs = list(source.inputs.tensors()), list(_names(source))
    try:
        program = out_of_place(source.program)
        with quiet(), torch.no_grad(), _silent():
            converted: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=opset, input_names=inputs, output_names=outputs
            )
            _name_batch(converted, program)
    except Exception as error:
        raise ExportError(
            f'{type(source.model).__name__} cannot be converted to ONNX: {type(error).__name__}: {str(error).strip()[:1500]}'
        ) from error
    weights = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    external = weights > ONNX_LIMIT
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f'.{target.name}.{secrets.token_hex(6)}')
    folder.mkdir()
    try:
        file = folder / target.name
        with quiet(), _silent():
            converted.save(os.fspath(file), external_data=external)
        found = source.distance(_in_onnxruntime(file, source), rtol, atol) if check else None
        _refuse(found, 'ONNX model', target)
        size = sum(part.stat().st_size for part in folder.iterdir())
        # The weights first: a model file without them would be a broken one.
        for part in sorted(folder.iterdir(), key=lambda part: part.name == target.name):
            with open(part, 'rb+') as stream:
                os.fsync(stream.fileno())
            os.replace(part, target.with_name(part.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return source.result(
        target, 'onnx', found, size_bytes=size, outputs=tuple(outputs), opset=int(converted.model.opset_imports[''])
    )


def _name_batch(converted: Any, program: Any) -> None:
    symbols = [str(symbol) for symbol in program.range_constraints]
    if len(symbols) == 1 and hasattr(converted, 'rename_axes'):  # older releases of torch keep their own names of axes
        converted.rename_axes({symbols[0]: 'batch'})


def _in_onnxruntime(file: Path, source: Source) -> Run:
    try_import('onnxruntime', 'onnx')
    threads = torch.get_num_threads()
    session: list[Any] = []

    def run(given: Inputs) -> Sequence[Any]:
        if not session:
            session.append(OnnxRuntimeSession(file, threads).session)
        tensors = given.tensors()
        wanted = {node.name for node in session[0].get_inputs()}
        feed = {name: tensor.contiguous().numpy() for name, tensor in tensors.items() if name in wanted}
        return [torch.from_numpy(array) for array in session[0].run(list(_names(source)), feed)]

    return run


def _names(source: Source) -> tuple[str, ...]:
    """Return names for the outputs: `output`, or `output_0`, `output_mask`, ..."""
    paths = list(next(iter(source.references.values()))[1])
    names = ['_'.join(part for part in _words(path) if part) for path in paths]
    taken = set(source.inputs.tensors())
    return tuple(f'{name}_' if name in taken else name for name in names)


def _words(path: str) -> list[str]:
    return ''.join(letter if letter.isalnum() or letter == '_' else ' ' for letter in path).split()


def _flat(outputs: Any) -> list[Any]:
    return list(named_outputs(outputs).values())


def _refuse(found: Comparison | None, what: str, target: Path) -> None:
    if found is not None and found.problem:
        raise DifferenceError(
            f'The {what} does not do what the model does: {found.problem}. {target.name} is not written. Usual causes: '
            'a forward that depends on '
            'Python values (a counter, the batch size, the mode); rtol and atol set what counts as equal.'
        )


def _target(path: str | os.PathLike[str], suffix: str) -> Path:
    target = Path(path).expanduser()
    if target.suffix != suffix:
        raise ConfigError(f'The file must end in {suffix!r}, but got {os.fspath(path)!r}.')
    if target.is_dir():
        raise ConfigError(f'{target} is a folder; give the name of a file.')
    return target


@contextlib.contextmanager
def _silent() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


__all__ = ['Source', 'export_onnx', 'export_program', 'write_onnx', 'write_program']
