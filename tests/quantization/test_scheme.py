import pytest
import torch
from torch import nn

from strop.quantization.backends import backend
from strop.quantization.batches import Batches
from strop.quantization.flow import calibrate, capture, convert, prepare
from strop.quantization.layers import heavy_nodes, is_dequantize, is_quantize, records
from strop.quantization.scheme import Scheme, schemed
from tests.quantization.nets import image_batches, small_net, sqnr

pytest.importorskip('torchao')
pytest.importorskip('onnxscript')


def converted(net, data, name='onnxruntime', ignored=(), **scheme):
    entry, batches = backend(name), Batches.of(data)
    prepared = prepare(capture(net, batches.example()), schemed(entry.quantizer(), Scheme(**scheme).on(entry), ignored))
    calibrate(prepared, batches)
    return convert(prepared)


def test_what_is_left_in_float_computes_as_the_model_does():
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).eval()
    data = [torch.randn(8, 6)]
    graph = converted(net, data, ignored=['0', '1'])
    assert not any(is_quantize(node) for node in graph.graph.nodes)
    assert sqnr(net(data[0]), graph(data[0])) > 100


@pytest.mark.parametrize('name', ['inductor', 'onnxruntime'])
def test_layers_beside_an_ignored_one_keep_their_integers(name):
    graph = converted(small_net(), image_batches(), name, ignored=['block1.conv2', 'block1:add'])
    left = [record.name for record in records(graph, {}) if not record.quantized]
    assert left == ['block1.conv2']


@pytest.mark.parametrize('symmetric', [True, False])
def test_symmetric_activations_have_their_zero_in_the_middle(symmetric):
    graph = converted(small_net(), image_batches(), symmetric=symmetric)
    zeros = {record.input_zero_point for record in records(graph, {})}
    assert (zeros <= {127, 128}) == symmetric


def test_a_pool_passes_on_the_range_that_it_is_given():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten()).eval()
    graph = converted(net, [torch.randn(2, 3, 12, 12)])
    pool = next(node for node in graph.graph.nodes if 'max_pool2d' in str(node.target))
    before, after = pool.args[0], next(iter(pool.users))
    assert is_dequantize(before)
    assert is_quantize(after)
    assert before.args[1:3] == after.args[1:3]


def test_matrix_products_give_floats():
    net = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)).eval()
    graph = converted(net, [torch.randn(8, 6)])
    first = heavy_nodes(graph)['0']
    assert not any(is_quantize(user) for user in first.users)
