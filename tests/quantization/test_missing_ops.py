import re

import pytest
import torch
from torch import nn

from strop.errors import ExportError
from strop.quantization import quantize
from strop.quantization.flow import capture
from strop.quantization.missing_ops import missing_op

pytest.importorskip('torchao')


class Bessel(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return torch.special.bessel_j0(self.fc(x))


@pytest.mark.parametrize(('name', 'package'), [('onnxruntime', 'onnxscript'), ('executorch', 'executorch')])
def test_an_op_without_a_form_is_named_with_its_line_and_what_would_work(name, package, tmp_path):
    pytest.importorskip(package)
    result = quantize(Bessel().eval(), [torch.randn(4, 3)], backend=name, check=False)
    with pytest.raises(ExportError) as caught:
        result.export(tmp_path / f'model{result.backend.suffix}')
    message = str(caught.value)
    assert re.search(
        rf'^{name} has no form of the op \w+\.\w*bessel_j0, computed at .*test_missing_ops\.py:\d+: '
        r"`return torch\.special\.bessel_j0\(self\.fc\(x\)\)`, .* backend='inductor'",
        message,
    )
    assert '\n' not in message
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_taken_for_it():
    graph = capture(nn.Linear(3, 3), ((torch.rand(2, 3),), {}))
    assert missing_op(graph, RuntimeError('out of memory'), 'openvino') is None


def test_an_op_that_no_line_is_known_of_is_named_alone():
    graph = capture(nn.Linear(3, 3), ((torch.rand(2, 3),), {}))
    error = RuntimeError("No ONNX function found for <OpOverload(op='mine.fold', overload='default')>.")
    assert missing_op(graph, error, 'openvino').startswith('openvino has no form of the op mine.fold, so')
