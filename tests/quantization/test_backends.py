import dataclasses
import sys

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, EstimateError, ExportError, MissingDependencyError
from strop.quantization import backend, backend_table, backends, quantize
from strop.quantization.backends import check_structure, fuse_transposes, prepared
from strop.quantization.scheme import Scheme
from tests.quantization.nets import image_batches, small_net, small_transformer, sqnr, token_batches
from tests.scripts import run_script

pytest.importorskip('torchao')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')


def test_every_backend_says_what_it_takes_and_what_is_fast():
    for name, entry in backends().items():
        assert entry.name == name
        assert entry.takes
        assert entry.fast
        assert entry.suffix.startswith('.')
        assert entry.per_channel[0] is True


def test_the_table_has_a_row_for_each():
    assert backend_table().row_count == len(backends())


def test_an_unknown_backend_has_near_matches():
    with pytest.raises(ConfigError, match="Did you mean 'openvino'"):
        backend('openvno')


def test_a_backend_that_is_not_installed_names_its_extra():
    absent = dataclasses.replace(backend('executorch'), modules=('strop_has_no_such_module',))
    assert not absent.available
    with pytest.raises(MissingDependencyError, match=r"pip install 'strop\[quantization,executorch\]'"):
        quantize(small_net(), image_batches(), backend=absent)


@pytest.mark.parametrize(
    ('name', 'scheme', 'message'),
    [
        ('inductor', Scheme(per_channel=False), 'a scale for each output channel'),
        ('tensorrt', Scheme(symmetric=False), 'symmetric activations.*zero points of 0'),
        ('executorch', Scheme(symmetric=True), 'affine activations'),
        ('onnxruntime', Scheme(weight='histogram'), "'mse'"),
        ('tensorrt', Scheme(reduce_range=True), 'takes the whole range'),
        ('openvino', Scheme(reduce_range='auto'), "true, false, or None.*got 'auto'"),
        ('executorch', Scheme(reduce_range=True), 'takes the whole range'),
        ('openvino', Scheme(activation='minmax'), "Did you mean 'min_max'"),
    ],
)
def test_a_scheme_that_a_backend_cannot_run_is_refused_with_what_it_can(name, scheme, message):
    with pytest.raises(ConfigError, match=message):
        scheme.on(backend(name))


def test_integers_are_stored_as_matrix_products_read_them(tmp_path):
    result = quantize(small_transformer(), token_batches(), backend='tensorrt', check=False)
    path = tmp_path / 'model.onnx'
    result.export(path)
    model = onnx.load(str(path))
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type in ('MatMul', 'Gemm')]
    assert len(products) == 7
    assert all(
        makers[name] == 'DequantizeLinear' or makers[name] != 'Transpose' for node in products for name in node.input[1:2]
    )
    assert fuse_transposes(path) == 0


def test_a_file_for_tensorrt_is_symmetric(tmp_path):
    result = quantize(small_net(), image_batches(), backend='tensorrt')
    result.export(tmp_path / 'model.onnx')
    assert check_structure(tmp_path / 'model.onnx')['Conv'] == 5
    assert all(layer.input_zero_point == 0 for layer in result.record.layers)
    assert not result.check.ran


def test_an_affine_file_is_not_for_tensorrt(tmp_path):
    result = quantize(small_net(), image_batches(), backend='onnxruntime', check=False)
    result._write(result.model, tmp_path / 'model.onnx')
    with pytest.raises(ExportError, match='not symmetric S8'):
        check_structure(tmp_path / 'model.onnx')


def test_convolutions_become_integer_kernels_of_onnxruntime(tmp_path):
    ort = pytest.importorskip('onnxruntime')
    result = quantize(small_net(), image_batches(), backend='onnxruntime')
    result.export(tmp_path / 'model.onnx')
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
    options.log_severity_level = 3
    ort.InferenceSession(str(tmp_path / 'model.onnx'), options, providers=['CPUExecutionProvider'])
    kinds = [node.op_type for node in onnx.load(str(tmp_path / 'optimized.onnx')).graph.node]
    assert kinds.count('QLinearConv') == 5
    assert 'Conv' not in kinds
    assert kinds.count('QLinearAdd') == 2


def test_a_broken_file_is_refused_by_its_runtime(tmp_path):
    pytest.importorskip('onnxruntime')
    (tmp_path / 'model.onnx').write_bytes(b'nonsense')
    with pytest.raises(EstimateError, match='onnxruntime cannot load'):
        prepared(backend('onnxruntime'), tmp_path / 'model.onnx')


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, tokens, mask=None, scale=1.0):
        out = self.fc(tokens)
        return {'out': out * scale if mask is None else out * mask.unsqueeze(-1) * scale, 'mask': mask}


def test_keywords_and_constants_become_tensors_in_order(tmp_path):
    ort = pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    net = Gated().eval()
    data = [{'mask': torch.ones(3, 6), 'tokens': torch.randn(3, 6, 16), 'scale': 2.0} for _ in range(2)]
    result = quantize(net, data, backend='onnxruntime')
    result.export(tmp_path / 'model.onnx')
    session = ort.InferenceSession(str(tmp_path / 'model.onnx'), providers=['CPUExecutionProvider'])
    assert [node.name for node in session.get_inputs()] == ['mask', 'tokens']
    found = result.prepare()(mask=data[0]['mask'][:1], tokens=data[0]['tokens'][:1])[0]
    wanted = net(data[0]['tokens'][:1], data[0]['mask'][:1], 2.0)['out']
    assert sqnr(wanted, found) > 25


def test_files_for_tensorrt_are_not_run():
    result = quantize(small_net(), [torch.randn(4, 3, 16, 16)], backend='tensorrt')
    with pytest.raises(ConfigError, match='not run'):
        result.prepare()
    with pytest.raises(ConfigError, match='not run'):
        result.latency()


def test_a_backend_is_asked_for_without_warnings_of_the_packages_below(tmp_path):
    code = "from strop.quantization import backend, fake_quantize; backend('inductor').require()"
    done = run_script(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'KernelPreference' not in done.stderr


def test_without_torchao_the_extras_of_the_backend_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchao.quantization.pt2e', None)
    with pytest.raises(MissingDependencyError, match=r'strop\[quantization,onnx,openvino\]'):
        backend('openvino').require()


LOST = """
import sys, torch
from pathlib import Path
from strop.quantization.backends import backend, prepared
run = prepared(backend('inductor'), Path(sys.argv[1]))
from torch._dynamo.utils import counters
images = torch.randn(2, 3, 16, 16)
def call(given):
    run([given])
    print(counters['inductor'].pop('qconv_weight_prepack_matcher_count', 0))
call(images)
call(images.contiguous(memory_format=torch.channels_last))
call(images)
torch.compiler.reset()
call(images)
"""


def test_inductor_makes_integer_kernels_whenever_it_compiles(tmp_path):
    torch.manual_seed(0)
    result = quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), image_batches(), backend='inductor', check=False)
    result._write(result.model, tmp_path / 'model.pt2')
    done = run_script(LOST, tmp_path / 'model.pt2', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-4:] == ['1', '1', '0', '1']


def test_inductor_has_a_program_for_every_shape():
    # Beyond its limit of programs torch.compile would run in eager, and say so in a log only.
    torch.manual_seed(0)
    net, rows = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), torch.randn(8, 8)
    run = quantize(net, [rows], backend='inductor', check=False).prepare()
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for size in (2, 3, 2):
            assert sqnr(net(rows[:size]), run(rows[:size])[0]) > 20
