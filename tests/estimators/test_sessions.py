"""Models in runtimes outside PyTorch: what they compute, and calls that are bound to their inputs."""

import gc
import json

import pytest
import torch
from torch import nn

from strop.errors import EstimateError
from strop.estimators.runtimes import onnx_bytes
from strop.estimators.sessions import OnnxRuntimeSession, OpenVinoSession, bound, openvino_core


class Gap(nn.Module):
    """A difference, of which the order of the inputs can be told."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x, y):
        """Return two outputs."""
        gap = self.layer(x - 2 * y)
        return gap, gap.mean((2, 3))


def gap_file(tmp_path, side=8):
    pytest.importorskip('onnxscript')
    torch.manual_seed(0)
    net = Gap().eval()
    path = tmp_path / 'gap.onnx'
    path.write_bytes(onnx_bytes(net, (torch.zeros(2, 3, side, side), torch.zeros(2, 3, side, side))))
    return net, path


@pytest.fixture(params=['onnxruntime', 'openvino'])
def session(request, tmp_path):
    pytest.importorskip(request.param)
    net, path = gap_file(tmp_path)
    return net, {'onnxruntime': OnnxRuntimeSession, 'openvino': OpenVinoSession}[request.param](path)


def images(seed):
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def assert_alike(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_session_computes_what_the_model_computes(session):
    net, run = session
    for seed in (1, 2):
        assert_alike(run([images(seed), images(seed + 10)]), net(images(seed), images(seed + 10)))


@torch.no_grad()
def test_outputs_of_a_call_with_tensors_are_not_overwritten(session):
    net, run = session
    first = run([images(1), images(2)])
    run([images(3), images(4)])
    assert_alike(first, net(images(1), images(2)))


@torch.no_grad()
def test_bound_calls_keep_their_own_inputs(session):
    net, run = session
    one, other = run.bind([images(1), images(2)]), run.bind([images(3), images(4)])
    run([images(5), images(6)])
    assert_alike(other(), net(images(3), images(4)))
    assert_alike(one(), net(images(1), images(2)))


@torch.no_grad()
def test_bound_calls_keep_inputs_alive_that_nobody_else_does(session):
    net, run = session
    turned = images(1).to(memory_format=torch.channels_last)  # a runtime reads a contiguous copy
    call = run.bind([turned, images(2)])
    del turned
    gc.collect()
    _ = [torch.full((2, 3, 8, 8), 1e9) for _ in range(64)]
    assert_alike(call(), net(images(1), images(2)))


@torch.no_grad()
def test_bound_calls_read_inputs_where_they_lie(session):
    net, run = session
    x, y = images(1), images(2)
    call = run.bind([x, y])
    call()
    x.mul_(3)
    assert_alike(call(), net(x, y))


@torch.no_grad()
def test_openvino_is_compiled_for_each_shape(tmp_path):
    pytest.importorskip('openvino')
    net, path = gap_file(tmp_path)
    run = OpenVinoSession(path)
    for size, side in ((2, 8), (5, 8), (1, 12)):
        x, y = torch.randn(size, 3, side, side), torch.randn(size, 3, side, side)
        assert_alike(run([x, y]), net(x, y))
        assert_alike(run.bind([x, y])(), net(x, y))


@torch.no_grad()
@pytest.mark.parametrize(('precision', 'capability'), [('bf16', 'BF16'), ('f16', 'FP16')])
def test_openvino_refuses_floats_that_the_processor_has_not(tmp_path, precision, capability):
    """By itself it would compute in f32, and times would be told of what was never computed."""
    pytest.importorskip('openvino')
    net, path = gap_file(tmp_path)
    inputs = [images(1), images(2)]
    if capability in openvino_core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        found = torch.as_tensor(OpenVinoSession(path, precision=precision)(inputs)[0])
        assert 0 < (found.float() - net(*inputs)[0]).abs().max() < 0.1
    else:
        with pytest.raises(EstimateError, match=f'computes no {precision} on this processor'):
            OpenVinoSession(path, precision=precision)(inputs)


def test_openvino_tells_what_each_step_takes(tmp_path):
    pytest.importorskip('openvino')
    _, path = gap_file(tmp_path)
    call = OpenVinoSession(path, profiled=True).bind([images(1), images(2)])
    call()
    assert any(
        step.node_type == 'Convolution' and step.real_time.total_seconds() > 0 for step in call.request.get_profiling_info()
    )


def test_onnxruntime_tells_what_each_kernel_takes(tmp_path):
    pytest.importorskip('onnxruntime')
    _, path = gap_file(tmp_path)
    run = OnnxRuntimeSession(path, profile=tmp_path / 'profile')
    run([images(1), images(2)])
    with open(run.session.end_profiling(), encoding='utf-8') as stream:
        events = json.load(stream)
    assert any(event.get('args', {}).get('op_name') in ('Conv', 'FusedConv') for event in events)


def test_there_is_one_core():
    pytest.importorskip('openvino')
    assert openvino_core() is openvino_core()


def test_what_has_no_bind_is_called_with_its_inputs():
    x = torch.ones(3)
    call = bound(lambda tensors: [tensors[0] + 1], [x])
    assert_alike(call(), [x + 1])
    x.add_(1)
    assert_alike(call(), [x + 1])
