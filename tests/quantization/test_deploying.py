import importlib.util

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, DataError
from strop.quantization import QConfig, QuantSpec, TensorRTQuantizer, calibrate, deploy, prepare_qat, quantize
from strop.quantization.backends import backend, check_structure
from tests.quantization.nets import image_batches, small_net, sqnr
from tests.scripts import run_script

pytest.importorskip('torchao')
DATA = image_batches()


def smaller_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)
    )


def trained(name, make=small_net):
    """A network that has learned its steps and weights for a few steps of training."""
    torch.manual_seed(0)
    net = prepare_qat(make(), name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    net.train()
    for images in DATA:
        nn.functional.cross_entropy(net(images), torch.arange(8)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@pytest.mark.parametrize(
    ('name', 'runtime', 'package'),
    [
        ('lsq8', 'onnxruntime', 'onnxruntime'),
        ('lsq4', 'openvino', 'openvino'),
        ('lsq+4', 'onnxruntime', 'onnxruntime'),
    ],
)
def test_a_trained_model_computes_the_same_in_its_runtime(name, runtime, package):
    pytest.importorskip(package)
    pytest.importorskip('onnxscript')
    net = trained(name, smaller_net)
    result = deploy(net, DATA, backend=runtime)
    assert result.check.ran
    assert result.check.batches == (8, 1)
    assert result.check.difference < 0.02  # a code that tips over, at most
    same = deploy(net, DATA, backend=runtime, reduce_range=False, check=False)  # where VNNI is, the one above is it
    for images in DATA:
        with torch.no_grad():
            torch.testing.assert_close(same(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('backend_name', ['onnxruntime', 'openvino', 'inductor'])
def test_weights_of_7_bits_give_the_same_on_every_processor(backend_name):
    pytest.importorskip('onnxscript')
    if backend_name != 'inductor':
        pytest.importorskip(backend_name)
    net = trained('lsq8', smaller_net)
    result = deploy(net, DATA, backend=backend_name, reduce_range=True)
    assert {(layer.weight_bits, layer.input_bits) for layer in result.record.layers} == {(7, 8)}
    assert result.record.notes == ('The weights of 3 layers were rounded from 8 bits to 7.',)
    assert result.check.difference < 0.02
    with torch.no_grad():
        assert sqnr(net(DATA[0]), result(DATA[0])) > 25  # half a step of 1/63, in three layers


def test_inputs_of_four_bits_leave_the_weights_their_range():
    quantizers = QConfig(QConfig.of('lsq8').weight, QConfig.of('lsq4').input)
    net = calibrate(prepare_qat(smaller_net(), quantizers, first_last=None), DATA).eval()
    result = deploy(net, DATA, backend='openvino', reduce_range=True, check=False)
    assert {(layer.weight_bits, layer.input_bits) for layer in result.record.layers} == {(8, 4)}
    assert result.record.notes == ()


def test_inductor_makes_integer_kernels_of_it_in_a_fresh_process(tmp_path):
    deploy(trained('lsq8', smaller_net), DATA, check=False).export(tmp_path / 'model.pt2')
    code = (
        'import sys, torch\n'
        'from pathlib import Path\n'
        'from strop.quantization.backends import backend, prepared\n'
        "prepared(backend('inductor'), Path(sys.argv[1]))([torch.randn(2, 3, 16, 16)])\n"
        'from torch._dynamo.utils import counters\n'
        "print(counters['inductor']['qconv_weight_prepack_matcher_count'])\n"
    )
    done = run_script(code, tmp_path / 'model.pt2', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == 2


@pytest.fixture(scope='module')
def deployed():
    return trained('lsq4'), deploy(trained('lsq4'), DATA, backend='openvino', reduce_range=False, check=False)


def test_steps_and_bits_are_those_that_were_learned(deployed):
    net, result = deployed
    layers = {layer.name: layer for layer in result.record.layers}
    assert list(layers) == ['stem', 'block1.conv1', 'block1.conv2', 'block2.conv1', 'block2.conv2', 'head']
    assert [(layer.weight_bits, layer.input_bits) for layer in layers.values()] == [(8, 8), *[(4, 4)] * 4, (8, 8)]
    assert layers['head'].input_scale == pytest.approx(net.head.input_fake_quant.step.item(), rel=1e-6)
    assert layers['stem'].weight_scale[1] == pytest.approx(net.stem.weight_fake_quant.step.max().item(), rel=1e-6)
    assert layers['block1.conv1'].input_zero_point == 0


def test_the_float_model_beside_it_has_the_trained_weights(deployed):
    net, result = deployed
    plain = small_net()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if name in plain.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(result.reference(DATA[0]), plain.eval()(DATA[0]), rtol=1e-4, atol=1e-5)


def test_a_layer_with_several_names_is_deployed_under_each():
    torch.manual_seed(0)
    layer, data = nn.Linear(4, 4), [torch.randn(8, 4)]
    net = calibrate(prepare_qat(nn.Sequential(layer, nn.ReLU(), layer), 'int8'), data).eval()
    result = deploy(net, data, backend='openvino', reduce_range=False, check=False)
    torch.testing.assert_close(result(data[0]), net(data[0]))
    names = [(each.name, each.weight_bits, each.input_bits) for each in result.record.layers]
    assert names == [('0', 8, 8), ('2', 8, 8)]
    reduced = deploy(net, data, backend='openvino', reduce_range=True, check=False)
    assert [(each.weight_bits, each.input_bits) for each in reduced.record.layers] == [(7, 8), (7, 8)]
    assert sqnr(net(data[0]), reduced(data[0])) > 25
    assert all(each.sqnr_db > 20 for each in result.record.layers)


@pytest.mark.parametrize('name', ['pact2', 'pact8'])
def test_values_below_the_level_of_pact_are_clipped_in_what_is_deployed(name):
    torch.manual_seed(0)
    data = [torch.randn(8, 4)]
    net = calibrate(prepare_qat(nn.Sequential(nn.Linear(4, 4)), name, first_last=None), data).eval()
    result = deploy(net, data, backend='openvino', reduce_range=False, check=False)
    torch.testing.assert_close(result(5 * data[0]), net(5 * data[0]))
    layer = result.record.layers[0]
    assert (layer.weight_bits, layer.input_bits) == (int(name[-1]), int(name[-1]))


class One(nn.Module):
    """Its batch size is written down, and is one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x):
        return self.layer(x).view(1, 5)


def test_a_model_of_batch_size_one_is_deployed_for_that():
    pytest.importorskip('openvino')
    torch.manual_seed(0)
    data = [torch.randn(1, 6) for _ in range(4)]
    net = calibrate(prepare_qat(One(), 'int8'), data).eval()
    result = deploy(net, data, backend='openvino')
    assert result.check.batches == (1,)
    result = deploy(net, data, backend='openvino', reduce_range=False, check=False)
    torch.testing.assert_close(result(data[1]), net(data[1]), rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    """One layer, called for two inputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.head((self.conv(x) - self.conv(x.flip(3)).relu()).amax((2, 3)))


def test_a_layer_that_is_called_twice_has_a_record_of_each_call():
    net = trained('lsq8', Twice)
    result = deploy(net, DATA, backend='openvino', reduce_range=False, check=False)
    assert [layer.name for layer in result.record.layers] == ['conv', 'conv:2', 'head']
    assert all(layer.sqnr_db > 20 for layer in result.record.layers)
    with torch.no_grad():
        torch.testing.assert_close(result(DATA[0]), net(DATA[0]), rtol=1e-4, atol=1e-5)


def test_the_model_stays_as_it_is():
    net = trained('lsq8').train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    deploy(net, DATA, backend='openvino', reduce_range=False, check=False)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_backend_with_other_integers_is_refused_with_those_that_fit():
    with pytest.raises(ConfigError, match=r"'inductor', 'onnxruntime' and 'openvino'|'inductor', 'onnxruntime', 'openvino'"):
        deploy(trained('lsq8'), DATA, backend='executorch')


SYMMETRIC = QConfig(QConfig.of('int8').weight, QuantSpec(8))


@pytest.mark.parametrize(
    ('qconfig', 'name', 'message'),
    [
        (SYMMETRIC, 'onnxruntime', "U8 activations.*'stem.input_fake_quant' has S8 codes. Take 'tensorrt', or"),
        (SYMMETRIC, 'openvino', "has S8 codes. Take 'tensorrt', or"),
        (SYMMETRIC, 'executorch', "graphs of its own quantizer only. Take 'tensorrt', or"),
        (QConfig(SYMMETRIC.weight, QuantSpec(8, symmetric=False)), 'tensorrt', 'a zero point that is not 0. Quantize the'),
        (QConfig(QuantSpec(8, signed=False), SYMMETRIC.input), 'tensorrt', "'stem.weight_fake_quant' has U8 codes. Quantize"),
        ('lsq8', 'tensorrt', "'stem.input_fake_quant' has U8 codes. Take 'inductor', 'onnxruntime'"),
    ],
)
def test_codes_that_a_backend_does_not_compute_with_are_refused(qconfig, name, message):
    net = calibrate(prepare_qat(small_net(), qconfig), DATA)
    with pytest.raises(ConfigError, match=message):
        deploy(net, DATA, backend=name)


def test_codes_around_zero_are_written_for_tensorrt(tmp_path):
    pytest.importorskip('onnxscript')
    scheme = dict(qdtype='qint8', bit=8, is_symmetry=True)
    quantizer = TensorRTQuantizer(
        dict(
            w_observer=dict(type='PerChannelMinMaxObserver'),
            a_observer=dict(type='MovingAverageMinMaxObserver'),
            w_fake_quant=dict(type='FakeQuantize'),
            a_fake_quant=dict(type='FakeQuantize'),
            w_qscheme=dict(scheme, is_symmetric_range=True),
            a_qscheme=scheme,
        )
    )
    net = calibrate(quantizer.prepare(smaller_net()), DATA).eval()
    result = deploy(net, DATA, backend='tensorrt')
    assert not result.check.ran
    assert all((layer.weight_bits, layer.input_bits, layer.input_zero_point) == (8, 8, 0) for layer in result.record.layers)
    result.export(tmp_path / 'model.onnx')
    counts = check_structure(tmp_path / 'model.onnx')
    assert (counts['QuantizeLinear'], counts['DequantizeLinear']) == (3, 6)
    with torch.no_grad():
        torch.testing.assert_close(result(DATA[0]), net(DATA[0]), rtol=1e-4, atol=1e-5)
        if importlib.util.find_spec('onnxruntime') is not None:
            found = backend('onnxruntime').load(tmp_path / 'model.onnx', 1, 'f32')([DATA[0]])[0]
            assert (found - net(DATA[0])).norm() < 0.02 * net(DATA[0]).norm()  # a code that tips over, at most


def test_a_model_with_fake_quantizers_is_not_quantized_again():
    with pytest.raises(ConfigError, match='deploy'):
        quantize(trained('lsq8'), DATA, backend='openvino')


def test_a_float_model_is_refused():
    with pytest.raises(ConfigError, match='no fake quantizers: call prepare_qat'):
        deploy(small_net(), DATA)


def test_a_model_without_steps_is_refused_by_the_layer():
    with pytest.raises(ConfigError, match='has seen no data'):
        deploy(calibrated_but_one(), DATA, backend='openvino')


def calibrated_but_one():
    net = calibrate(prepare_qat(small_net(), 'int8'), DATA)
    net.head.input_fake_quant.observed.zero_()
    net.head.input_fake_quant.disable_fake_quant()
    return net


def test_data_of_another_shape_is_refused():
    with pytest.raises(DataError):
        deploy(trained('int8'), [torch.rand(4, 7)], backend='openvino')
