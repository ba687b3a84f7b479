import pytest
import torch
from torch import nn

from strop.errors import ConfigError, DataError
from strop.quantization import calibrate, deploy, prepare_qat, quantize
from tests.quantization.nets import image_batches, small_net
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
    ('name', 'backend', 'package'),
    [
        ('lsq8', 'onnxruntime', 'onnxruntime'),
        ('lsq4', 'openvino', 'openvino'),
        ('lsq+4', 'onnxruntime', 'onnxruntime'),
    ],
)
def test_a_trained_model_computes_the_same_in_its_runtime(name, backend, package):
    pytest.importorskip(package)
    pytest.importorskip('onnxscript')
    net = trained(name, smaller_net)
    result = deploy(net, DATA, backend=backend)
    assert result.check.ran
    assert result.check.batches == (8, 1)
    assert result.check.difference < 0.02  # a code that tips over, at most
    for images in DATA:
        with torch.no_grad():
            torch.testing.assert_close(result(images), net(images), rtol=1e-4, atol=1e-5)


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
    return trained('lsq4'), deploy(trained('lsq4'), DATA, backend='openvino', check=False)


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


def test_the_model_stays_as_it_is():
    net = trained('lsq8').train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    deploy(net, DATA, backend='openvino', check=False)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_backend_with_other_integers_is_refused_with_those_that_fit():
    with pytest.raises(ConfigError, match=r"'inductor', 'onnxruntime' and 'openvino'|'inductor', 'onnxruntime', 'openvino'"):
        deploy(trained('lsq8'), DATA, backend='executorch')


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
