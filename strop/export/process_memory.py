"""The memory of a runtime: what a file adds to a fresh process that loads and runs it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

# The high-water mark in /proc is that of this program; `ru_maxrss` would hold that of the process it was started from.
_CHILD = """
import sys
import numpy as np
path, folder, threads, precision = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
arrays = [array for array in np.load(folder).values()]
{start}
def status(word):
    with open('/proc/self/status') as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith(word + ':'))
before = status('VmRSS')
{run}
print(1024 * max(0, status('VmHWM') - before))
"""
_CHILDREN = {
    'onnxruntime': _CHILD.format(
        start='import onnxruntime as ort',
        run="""
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
session = ort.InferenceSession(path, options, providers=['CPUExecutionProvider'])
feed = {node.name: array for node, array in zip(session.get_inputs(), arrays)}
for _ in range(2):
    session.run(None, feed)
""",
    ),
    'openvino': _CHILD.format(
        start='import openvino as ov\ncore = ov.Core()',
        run="""
model = core.read_model(path)
model.reshape({port.any_name: list(array.shape) for port, array in zip(model.inputs, arrays)})
settings = {'INFERENCE_PRECISION_HINT': precision, 'INFERENCE_NUM_THREADS': threads, 'NUM_STREAMS': 1}
request = core.compile_model(model, 'CPU', settings).create_infer_request()
for _ in range(2):
    request.infer(arrays)
""",
    ),
}


def process_memory_mb(
    path: Path, runtime: str, tensors: Sequence[torch.Tensor], threads: int = 1, precision: str = 'f32'
) -> float | None:
    """Return what loading and running a file adds to a fresh process at most, in units of 10^6 bytes.

    The process has only the runtime in it; what that takes itself, before a file is loaded, does not count.

    Args:
        path: An ONNX file.
        runtime: `'onnxruntime'` or `'openvino'`.
        tensors: Inputs.
        threads: Threads to compute with.
        precision: What is not an integer is computed in this.

    Returns:
        None where it cannot be measured: not on Linux, or if the process fails or takes longer than five minutes.
    """
    if not sys.platform.startswith('linux') or runtime not in _CHILDREN:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'inputs.npz'
        np.savez(file, *(tensor.numpy() for tensor in tensors))
        hint = 'bf16' if precision == 'bf16' else 'f32'
        try:
            done = subprocess.run(
                [sys.executable, '-c', _CHILDREN[runtime], str(path), str(file), str(threads), hint],
                capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
    words = done.stdout.split()
    return int(words[-1]) / 1e6 if done.returncode == 0 and words else None


__all__ = ['process_memory_mb']
