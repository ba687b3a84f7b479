"""Models in runtimes outside PyTorch: called with tensors, or bound to inputs that already lie where the runtime reads them.

A latency is of bound inputs. Handing new ones over is work of the binding for Python, not of the model, and for a network of
a fraction of a millisecond it may take longer than the network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from strop.errors import EstimateError, try_import

#: A call without arguments that runs a model once.
Call = Callable[[], Any]
#: Runs a model: the tensors of its arguments in, the tensors of its outputs out. It may have a method `bind`; see `bound`.
Run = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


def bound(run: Run, tensors: Sequence[torch.Tensor]) -> Call:
    """Return a call that runs on these inputs, as latencies are measured.

    What the call returns is the runtime's own, and the next one may overwrite it. With a method `bind(tensors)` a runtime says
    how to do without handing over the inputs and copying the outputs each time.

    Args:
        run: Runs a model.
        tensors: Its inputs.

    >>> bound(lambda tensors: [2 * tensor for tensor in tensors], [torch.ones(2)])()
    [tensor([2., 2.])]
    """
    bind: Callable[[Sequence[torch.Tensor]], Call] | None = getattr(run, 'bind', None)
    return partial(run, tensors) if bind is None else bind(tensors)


class OnnxRuntimeSession:
    """An ONNX model in ONNX Runtime.

    Args:
        model: The file, or what it holds.
        threads: Threads to compute with.
        profile: Where to write what each kernel takes; such a session is slower.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
    """

    def __init__(self, model: Path | bytes, threads: int = 1, profile: Path | None = None) -> None:
        ort = try_import('onnxruntime', 'onnx')
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = os.fspath(profile)
        source = model if isinstance(model, bytes) else os.fspath(model)
        #: The session of ONNX Runtime.
        self.session: Any = ort.InferenceSession(source, options, providers=['CPUExecutionProvider'])
        self._names = [node.name for node in self.session.get_inputs()]

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs for inputs in the order of the file."""
        return [torch.from_numpy(array) for array in self.bind(tensors)()]

    def bind(self, tensors: Sequence[torch.Tensor]) -> Call:
        """Return a call on these inputs that gives a list of NumPy arrays."""
        feed = dict(zip(self._names, _arrays(tensors), strict=True))
        return lambda: self.session.run(None, feed)


class OpenVinoSession:
    """A model in OpenVINO, compiled for each shape of inputs that comes: shapes that are known are faster than open ones.

    Args:
        model: The file, or a model of OpenVINO.
        threads: Threads to compute with.
        precision: What is not integer is computed in this; some CPUs would take bf16 unasked.
        profiled: Count what each step takes.

    Raises:
        MissingDependencyError: If OpenVINO is not installed.
        EstimateError: When it compiles, if this processor has no such precision: OpenVINO takes another one without a word.
    """

    def __init__(self, model: Any, threads: int = 1, precision: str = 'f32', profiled: bool = False) -> None:
        self._core = openvino_core()
        self._model = self._core.read_model(os.fspath(model)) if isinstance(model, (str, os.PathLike)) else model
        self._settings: dict[str, Any] = {
            'INFERENCE_PRECISION_HINT': precision,
            'INFERENCE_NUM_THREADS': threads,
            'NUM_STREAMS': 1,
            'PERFORMANCE_HINT': 'LATENCY',
        }
        if profiled:
            self._settings['PERF_COUNT'] = True
        self._compiled: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs for inputs in the order of the file."""
        compiled, request = self._for(tensors)
        result = request.infer(_arrays(tensors))
        return [torch.from_numpy(result[output].copy()) for output in compiled.outputs]

    def bind(self, tensors: Sequence[torch.Tensor]) -> OpenVinoCall:
        """Return a call on these inputs, which has a request of its own."""
        return OpenVinoCall(self._for(tensors)[0], tensors)

    def _for(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, Any]:
        """Return the model compiled for these shapes, and a request for calls."""
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        if shapes not in self._compiled:
            fixed = self._model.clone()
            known = [tuple(port.shape) if port.partial_shape.is_static else None for port in fixed.inputs]
            if known != list(shapes):
                fixed.reshape({port.any_name: list(shape) for port, shape in zip(fixed.inputs, shapes, strict=True)})
            compiled = self._core.compile_model(fixed, 'CPU', self._settings)
            wanted, taken = self._settings['INFERENCE_PRECISION_HINT'], compiled.get_property('INFERENCE_PRECISION_HINT')
            if taken.get_type_name() != wanted:
                raise EstimateError(
                    f'OpenVINO computes no {wanted} on this processor; it would take {taken.get_type_name()} for it.'
                )
            self._compiled[shapes] = compiled, compiled.create_infer_request()
        return self._compiled[shapes]


class OpenVinoCall:
    """A model in OpenVINO on inputs that it reads where they lie.

    Args:
        compiled: An `openvino.CompiledModel`.
        tensors: Its inputs.
    """

    def __init__(self, compiled: Any, tensors: Sequence[torch.Tensor]) -> None:
        ov = try_import('openvino', 'openvino')
        self._outputs = compiled.outputs
        self._arrays = _arrays(tensors)  # the request does not keep them alive
        #: The `openvino.InferRequest`.
        self.request: Any = compiled.create_infer_request()
        for index, array in enumerate(self._arrays):
            self.request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))

    def __call__(self) -> list[Any]:
        """Return the outputs as NumPy arrays in the runtime's own memory."""
        result = self.request.infer(share_outputs=True)
        return [result[output] for output in self._outputs]


def openvino_core() -> Any:
    """Return the one core of OpenVINO that this process has.

    Each core gives the thread that it is made in a stack for signal handlers, and takes it back when it is freed. Where one is
    freed before a later one, the thread is left with a stack that is gone, and the next signal (Ctrl-C, say) kills the process.

    Raises:
        MissingDependencyError: If OpenVINO is not installed.
    """
    ov = try_import('openvino', 'openvino')
    with _ONE_AT_A_TIME:
        process = os.getpid()  # a forked process has none of the threads of its parent's
        if process not in _CORES:
            _CORES[process] = ov.Core()
        return _CORES[process]


_CORES: dict[int, Any] = {}
_ONE_AT_A_TIME = threading.Lock()


def _arrays(tensors: Sequence[torch.Tensor]) -> list[Any]:
    return [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]


__all__ = ['Call', 'OnnxRuntimeSession', 'OpenVinoCall', 'OpenVinoSession', 'Run', 'bound', 'openvino_core']
