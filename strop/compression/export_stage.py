"""The stage that writes the model for runtimes; every file is run and compared with the model before it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from strop.compression.budget import Budget
from strop.compression.stage import Outcome, StageSettings, State, Surroundings
from strop.errors import ConfigError, DifferenceError, EstimateError, ExportError, StropError, listed, near, try_import
from strop.estimators.runtimes import advice, quiet
from strop.estimators.sessions import openvino_core
from strop.export.comparison import Inputs
from strop.export.programs import Source, write_onnx, write_program
from strop.quantization import backend
from strop.quantization.backends import prepared
from strop.quantization.flow import capture, switchable
from strop.report.compression_result import Export


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        file: Its name.
        runtime: What runs it.
        modules: What must be importable.
        extra: The extra that brings them.
    """

    file: str
    runtime: str
    modules: tuple[str, ...]
    extra: str

    @property
    def missing(self) -> tuple[str, ...]:
        """The modules that are not installed."""
        absent = []
        for module in self.modules:
            try:
                try_import(module, self.extra)
            except ImportError:
                absent.append(module)
        return tuple(absent)


FORMATS: Mapping[str, Format] = {
    'pt2': Format('model.pt2', 'torch', (), ''),
    'onnx': Format('model.onnx', 'onnxruntime', ('onnx', 'onnxscript', 'onnxruntime'), 'onnx'),
    'openvino': Format('openvino.xml', 'openvino', ('openvino',), 'openvino'),
    'executorch': Format('model.pte', 'executorch', ('executorch.runtime', 'torchao'), 'executorch'),
}


@dataclass(frozen=True)
class ExportStage(StageSettings):
    """Write the float model as files of runtimes.

    A file that does not compute what the model does fails the stage; so does a format that is named and cannot hold the model.
    One that is not named is then left out, with a warning.

    Args:
        formats: Some of `pt2` (torch.export), `onnx`, `openvino` and `executorch`; by default all that are installed.
        dynamic_batch: Leave the batch size open; `executorch` takes single samples in any case.
        opset: ONNX operator set.
        rtol: Largest difference relative to the largest output; by dtype if not given.
        atol: Largest absolute difference beside it.
    """

    kind: ClassVar[str] = 'export'
    changes_model: ClassVar[bool] = False

    formats: Any = field(default_factory=list)
    dynamic_batch: bool = True
    opset: int | None = None
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.formats, (str, list, tuple, type(None))):
            raise ConfigError(f'`formats` of the stage `export` is a list of {listed(FORMATS)}, but got {self.formats!r}.')
        names = [self.formats] if isinstance(self.formats, str) else list(self.formats or ())
        for name in names:
            if name not in FORMATS:
                raise ConfigError(
                    f'A format of the stage `export` is one of {listed(FORMATS)}, but got {name!r}.{near(name, FORMATS)}'
                )
        object.__setattr__(self, 'formats', names)
        if not isinstance(self.dynamic_batch, bool):
            raise ConfigError(f'`dynamic_batch` of the stage `export` is true or false, but got {self.dynamic_batch!r}.')
        if self.opset is not None and (not isinstance(self.opset, int) or isinstance(self.opset, bool) or self.opset < 1):
            raise ConfigError(f'`opset` of the stage `export` is a positive whole number, but got {self.opset!r}.')
        for name in ('rtol', 'atol'):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0):
                raise ConfigError(f'`{name}` of the stage `export` is a number of 0 or more, but got {value!r}.')

    def check(self, budget: Budget, learns: bool | None = None) -> None:
        """Raise if a format that is asked for is not installed."""
        for name in self.formats:
            for module in FORMATS[name].modules:
                try_import(module, FORMATS[name].extra)

    def installed(self) -> list[str]:
        """Return the formats that are written because they can be."""
        return [] if self.formats else [name for name, entry in FORMATS.items() if not entry.missing]

    def describe(self) -> str:
        """Return the formats."""
        return ', '.join(self.formats or self.installed())

    def run(self, state: State, around: Surroundings) -> Outcome:
        """Write and compare."""
        found = Outcome()
        example = around.data.example(2)
        chosen = self.formats or self.installed()
        source = Source.of(state.model, example, self.dynamic_batch)
        for number, name in enumerate(chosen):
            around.tell(number, len(chosen))
            path = around.folder / FORMATS[name].file
            try:
                difference = self._written(name, path, state.model, source, around)
            except DifferenceError:
                raise
            except ExportError as error:
                if self.formats or (number == len(chosen) - 1 and not found.exports):
                    raise
                for left in (path, path.with_suffix('.bin')):
                    left.unlink(missing_ok=True)
                found.warnings.append(f'No file for {FORMATS[name].runtime} was written: {error}')
                continue
            size = sum(part.stat().st_size for part in path.parent.glob(f'{path.stem}.*') if part.suffix in _parts(path))
            found.exports.append(Export(path.name, name, FORMATS[name].runtime, difference, size))
        for entry in FORMATS.values():
            if not self.formats and entry.missing:
                found.warnings.append(
                    f'No file for {entry.runtime} was written: {", ".join(entry.missing)} is not installed '
                    f"(pip install 'strop[{entry.extra}]')."
                )
        around.progress.done(around.name)
        found.explanation.append(
            'Every file was read back, run and compared with the model: '
            + ', '.join(f'{export.path} within {export.difference or 0.0:.1e}' for export in found.exports)
            + ' (relative).'
        )
        return found

    def _written(self, name: str, path: Path, model: nn.Module, source: Source, around: Surroundings) -> float | None:
        limits: dict[str, Any] = {'rtol': self.rtol, 'atol': self.atol}
        if name == 'pt2':
            return write_program(source, path, **limits).max_rel_error
        if name == 'onnx':
            return write_onnx(source, path, self.opset, **limits).max_rel_error
        if name == 'openvino':
            return _write_openvino(source, path, **limits)
        return _write_executorch(model, around.data.example(1), path, **limits)


def _parts(path: Path) -> Sequence[str]:
    return ('.xml', '.bin') if path.suffix == '.xml' else (path.suffix, '.data')


def _write_openvino(source: Source, path: Path, rtol: float | None, atol: float | None) -> float:
    ov = try_import('openvino', 'openvino')
    try:
        with quiet(), torch.no_grad():
            ov.save_model(ov.convert_model(source.program), path, compress_to_fp16=False)
        settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
        compiled = openvino_core().compile_model(str(path), 'CPU', settings)
    except Exception as error:
        raise ExportError(
            f'OpenVINO cannot convert {type(source.model).__name__}: {type(error).__name__}: {str(error)[:800]}'
            f'{advice(source.model)}'
        ) from error

    def run(given: Inputs) -> list[torch.Tensor]:
        result = compiled([tensor.contiguous().numpy() for tensor in given.tensors().values()])
        return [torch.from_numpy(result[output].copy()) for output in compiled.outputs]

    return _kept(source.distance(run, rtol, atol), 'openvino', path)


def _write_executorch(model: nn.Module, example: Any, path: Path, rtol: float | None, atol: float | None) -> float:
    entry = backend('executorch')
    entry.require()
    source = Source.of(model, example, False)
    call = (source.inputs.args, dict(source.inputs.kwargs))
    try:
        with quiet():
            entry.write(switchable(capture(source.model, call, dynamic_batch=False)), call, path)
            run = prepared(entry, path)
    except EstimateError as error:
        raise ExportError(f'ExecuTorch cannot run {type(model).__name__}: {error}') from error
    except StropError:
        raise
    except Exception as error:
        raise ExportError(
            f'ExecuTorch cannot convert {type(model).__name__}: {type(error).__name__}: {str(error)[:800]}'
        ) from error
    return _kept(source.distance(lambda given: run(list(given.tensors().values())), rtol, atol), 'executorch', path)


def _kept(found: Any, name: str, path: Path) -> float:
    if found.problem:
        raise DifferenceError(
            f'The file for {name} does not do what the model does: {found.problem}. {path.name} is not kept. '
            '`rtol` and `atol` of the '
            'stage set what counts as equal.'
        )
    return float(found.max_rel)


__all__ = ['FORMATS', 'ExportStage']
