from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from strop.export import export_onnx
from strop.export.process_memory import process_memory_mb


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is read from /proc')
@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_memory_holds_the_weights_and_little_else(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    net = nn.Linear(2048, 4096, bias=False)  # 33.6 MB
    path = export_onnx(net, torch.rand(1, 2048), tmp_path / 'net.onnx', check=False).path
    peak = process_memory_mb(path, runtime, [torch.rand(1, 2048)])
    assert peak is not None
    assert 33 < peak < 330


def test_memory_of_a_file_that_does_not_run_is_unknown(tmp_path: Path) -> None:
    (tmp_path / 'net.onnx').write_bytes(b'no model')
    assert process_memory_mb(tmp_path / 'net.onnx', 'onnxruntime', [torch.rand(1, 8)]) is None
    assert process_memory_mb(tmp_path / 'net.onnx', 'compile', [torch.rand(1, 8)]) is None


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is read from /proc')
def test_memory_of_a_file_that_takes_too_long_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def slow(command: list[str], *, timeout: float, **options: Any) -> None:
        limits.append(timeout)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, 'run', slow)
    assert process_memory_mb(tmp_path / 'net.onnx', 'onnxruntime', [torch.rand(1, 8)]) is None
    assert limits == [300]
