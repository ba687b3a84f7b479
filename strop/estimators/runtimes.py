"""The runtimes that a model can be timed on, as a table: what each needs, and how it is prepared."""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType, MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from strop.errors import ConfigError, EstimateError, MissingDependencyError, StropError, listed, near, try_import
from strop.estimators.sessions import Call, OnnxRuntimeSession, OpenVinoSession
from strop.graph.forward import copied, evaluated


@dataclass(frozen=True)
class Runtime:
    """One way to run a model.

    Args:
        name: What it is asked for by.
        package: The package that it needs.
        modules: Modules that must be importable.
        extra: The extra of `pip install 'strop[extra]'` that brings them; None if torch is enough.
        precisions: The precisions that it can be asked for; the first is the default.
        description: One line for a person.
        make: (model, inputs, threads, precision) -> a call without arguments that runs once.
    """

    name: str
    package: str
    modules: tuple[str, ...]
    extra: str | None
    precisions: tuple[str, ...]
    description: str
    make: Callable[[nn.Module, tuple[Any, ...], int, str], Call]

    @property
    def available(self) -> bool:
        """Whether everything that it needs is installed."""
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    @property
    def version(self) -> str | None:
        """The version of its package, or None if that is not installed."""
        return _version(self.package)

    def prepare(self, model: nn.Module, inputs: Any, threads: int = 1, precision: str | None = None) -> Call:
        """Return a call without arguments that runs the model once, in eval mode and without gradients.

        Model and inputs are copied, so neither the model's mode nor anything else in them changes. What the call returns is the
        runtime's own, and the next call may overwrite it: tensors for eager and compile, a list of NumPy arrays for the others.
        The inputs are handed over once, before: a model that changes them in place sees what it left.

        Args:
            model: A plain model.
            inputs: One tensor, or a tuple of what its forward takes.
            threads: Threads that the runtime computes with.
            precision: What to compute in; the runtime's first by default.

        Raises:
            ConfigError: If the precision is not one of the runtime's, or 'f32' is asked for and the model has other floats, or
                `threads` is not positive.
            MissingDependencyError: If something it needs is not installed.
            EstimateError: If the model cannot be brought to this runtime, with the runtime's own error.
        """
        plain = getattr(model, '_orig_mod', model)
        others = other_floats(plain)
        if precision == 'f32' and others:
            raise ConfigError(
                f'{type(plain).__name__} computes in {listed(others)}, but precision={precision!r} was asked for: give '
                'model.float() and inputs of 32 bits, or leave `precision` out to measure it as it is.'
            )
        precision = self.precisions[0] if precision is None else precision
        if precision not in self.precisions:
            raise ConfigError(
                f'{self.name} computes in {listed(self.precisions)}, but got {precision!r}.{near(precision, self.precisions)}'
            )
        check_positive(threads=threads)
        for module in self.modules:
            try_import(module, self.extra or 'demo')
        arguments = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        try:
            arguments = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), arguments)
            with quiet():
                return self.make(evaluated(copied(plain)), arguments, threads, precision)
        except MissingDependencyError:
            raise
        except Exception as error:
            raise EstimateError(
                f'{type(model).__name__} could not be prepared for {self.name}: {type(error).__name__}: {error}{advice(plain)}'
            ) from error


def runtimes() -> Mapping[str, Runtime]:
    """Return name -> runtime, those that are not installed included.

    >>> list(runtimes())
    ['eager', 'compile', 'onnxruntime', 'openvino']
    >>> runtimes()['eager'].available
    True
    """
    return _RUNTIMES


def runtime(name: str) -> Runtime:
    """Return the runtime called `name`.

    Raises:
        ConfigError: If there is none; the message names near matches.
    """
    if name not in _RUNTIMES:
        raise ConfigError(f'A runtime must be one of {listed(_RUNTIMES)}, but got {name!r}.{near(name, _RUNTIMES)}')
    return _RUNTIMES[name]


def other_floats(model: nn.Module) -> list[str]:
    """Return the types of a model's parameters that are floats of more or fewer than 32 bits.

    >>> other_floats(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).half()))
    ['float16']
    """
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return sorted(str(each).removeprefix('torch.') for each in types - {torch.float32})


def check_positive(**numbers: Any) -> None:
    """Raise a `ConfigError` unless every keyword is a positive integer."""
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f'`{name}` must be a positive integer, but got {number!r}.')


def advice(model: nn.Module) -> str:
    """Return a sentence on what stands in the way of bringing a model to a runtime, where that is known; else nothing.

    >>> advice(nn.Linear(1, 1))
    ''
    """
    if getattr(getattr(model, 'config', None), 'use_cache', False):
        return (
            f' {type(model).__name__} gives its cache of keys and values out with every forward, which some runtimes refuse: '
            '`model.config.use_cache = False` leaves it out.'
        )
    return ''


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and logs of exporters off the screen."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir', 'torch.export')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -- how each is prepared ---------------------------------------------------------------------------------


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _eager(model: nn.Module, inputs: tuple[Any, ...], threads: int, precision: str) -> Call:
    devices = {tensor.device for tensor in (*model.parameters(), *inputs) if isinstance(tensor, torch.Tensor)}
    accelerators = [device for device in devices if device.type in ('cuda', 'mps')]

    def call() -> Any:
        if torch.get_num_threads() != threads:  # setting it takes longer than asking
            with computing_with(threads):
                return run()
        return run()

    def run() -> Any:
        kind = accelerators[0].type if accelerators else 'cpu'
        # An autocast around the call is none of the model's.
        lowers = precision == 'bf16' or torch.is_autocast_enabled(kind)
        lower = torch.autocast(kind, torch.bfloat16, enabled=precision == 'bf16') if lowers else nullcontext()
        with torch.inference_mode(), lower:
            out = model(*inputs)
        synchronize(accelerators)
        return out

    return call


def synchronize(devices: Iterable[torch.device] | None = None) -> None:
    """Wait until GPUs have done what they were given.

    Args:
        devices: Which ones; by default the current one, if one is in use.
    """
    if devices is None:
        devices = [torch.device('cuda')] if torch.cuda.is_initialized() else []
        devices += [torch.device('mps')] if _has_metal() and torch.mps.current_allocated_memory() else []
    for device in devices:
        if device.type == 'mps':
            torch.mps.synchronize()
        else:
            torch.cuda.synchronize(device)


@functools.cache
def _has_metal() -> bool:
    return torch.backends.mps.is_available()


class _Whole(nn.Module):
    """A model of any class, called by code of this file: PyTorch calls its own classes through code that they share."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)


def apart(module: nn.Module) -> nn.Module:
    """Return a module with the state of another, to compile: its forward is the same, but of code of its own.

    `torch.compile` keeps what it made by code: models of one class, and shapes of inputs, would share its limit of programs,
    beyond which it runs them in eager without an error, and each call would look through the programs of all of them.

    Args:
        module: A module of a class that is not PyTorch's own.
    """
    forward: Any = type(module).forward
    code = forward.__code__.replace(co_name=f'forward_{next(_NUMBERS)}')
    own = FunctionType(code, forward.__globals__, 'forward', forward.__defaults__, forward.__closure__)
    own.__kwdefaults__ = forward.__kwdefaults__
    # Not by calling the class: those of exported programs cannot be called, and nothing is to be copied.
    twin: nn.Module = object.__new__(type(type(module).__name__, (type(module),), {'forward': own}))
    twin.__dict__.update(module.__dict__)
    return twin


_NUMBERS = itertools.count()


def _compile(model: nn.Module, inputs: tuple[Any, ...], threads: int, precision: str) -> Call:
    compiled = torch.compile(apart(_Whole(model)), dynamic=False)
    call = _eager(compiled, inputs, threads, precision)  # type: ignore[arg-type]
    call()  # compiles: Inductor's C++ code is generated for a number of threads
    return call


def onnx_bytes(model: nn.Module, inputs: tuple[Any, ...]) -> bytes:
    """Return `model` as a serialized ONNX model, for inputs of these shapes."""
    buffer = io.BytesIO()
    with torch.no_grad(), redirect_stdout(io.StringIO()):
        program = torch.onnx.export(model, inputs, dynamo=True, external_data=False, verbose=False)
    if program is None:
        raise StropError('torch.onnx.export gave no model.')
    buffer.write(program.model_proto.SerializeToString())
    return buffer.getvalue()


def out_of_place(program: Any) -> Any:
    """Write results of operators that overwrite their input beside it, where nothing else reads that input; return the program.

    The export to ONNX would do the same, but by taking each such operator apart: with an open batch size that is half of the
    time that a network with clamps after all layers takes.

    Args:
        program: An `ExportedProgram`; it is changed.
    """
    for node in program.graph.nodes:
        source: Any = node.args[0] if node.op == 'call_function' and node.args else None
        schema = getattr(node.target, '_schema', None)
        made_by = getattr(getattr(source, 'target', None), '_schema', None)
        if schema is None or made_by is None or len(source.users) != 1 or not schema.name.endswith('_'):
            continue
        # What an operator gives may be a view of something that others read.
        fresh = all(value.alias_info is None for value in made_by.returns)
        name, overload = schema.name.removeprefix('aten::'), schema.overload_name or 'default'
        beside = getattr(getattr(torch.ops.aten, name.removesuffix('_'), None), overload, None)
        if not fresh or not schema.name.startswith('aten::') or name.startswith('_') or beside is None:
            continue
        if [value.name for value in beside._schema.arguments] == [value.name for value in schema.arguments]:
            node.target = beside
    program.graph_module.recompile()
    return program


def _onnxruntime(model: nn.Module, inputs: tuple[Any, ...], threads: int, precision: str) -> Call:
    return OnnxRuntimeSession(onnx_bytes(model, inputs), threads).bind(inputs)


def _openvino(model: nn.Module, inputs: tuple[Any, ...], threads: int, precision: str) -> Call:
    ov = try_import('openvino', 'openvino')
    with torch.no_grad():
        program = torch.export.export(model, inputs, strict=False)
    converted = ov.convert_model(program)
    return OpenVinoSession(converted, threads, precision).bind(inputs)


_RUNTIMES: Mapping[str, Runtime] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Runtime('eager', 'torch', ('torch',), None, ('f32', 'bf16'), 'PyTorch as it is', _eager),
            Runtime('compile', 'torch', ('torch',), None, ('f32', 'bf16'), 'torch.compile with its default back end', _compile),
            Runtime(
                'onnxruntime', 'onnxruntime', ('onnx', 'onnxscript', 'onnxruntime'), 'onnx', ('f32',),
                'ONNX Runtime on the CPU', _onnxruntime,
            ),
            Runtime(
                'openvino', 'openvino', ('openvino',), 'openvino', ('f32', 'bf16', 'f16'),
                'OpenVINO on the CPU', _openvino,
            ),
        )
    }
)  # fmt: skip
