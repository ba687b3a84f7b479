import pytest
import torch
from torch import nn

from strop.quantization.backends import backend
from strop.quantization.batches import Batches
from strop.quantization.correction import correct_biases
from strop.quantization.flow import calibrate, capture, convert, prepare
from strop.quantization.scheme import Scheme, schemed

pytest.importorskip('torchao')
pytest.importorskip('onnxscript')


def prepared_of(net, batches):
    entry = backend('tensorrt')
    graph = prepare(capture(net.eval(), batches.example()), schemed(entry.quantizer(), Scheme(per_channel=False).on(entry)))
    calibrate(graph, batches)
    return graph


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('kind', ['linear', 'conv', 'transposed'])
def test_the_mean_of_each_channel_is_that_of_the_float_model(kind, bias):
    torch.manual_seed(0)
    if kind == 'linear':
        net, data = nn.Sequential(nn.Linear(12, 5, bias=bias)), [torch.rand(64, 12) + 1 for _ in range(2)]
    else:
        layer = nn.Conv2d(3, 5, 3, bias=bias) if kind == 'conv' else nn.ConvTranspose2d(4, 6, 3, groups=2, bias=bias)
        net, data = nn.Sequential(layer), [torch.rand(8, layer.in_channels, 6, 6) + 1 for _ in range(2)]
    with torch.no_grad():
        net[0].weight[0].flatten()[0] = 12.0  # coarse steps for everything else
    batches = Batches.of(data)
    inputs = torch.cat(data)
    truth = net(inputs).movedim(1, 0).flatten(1).mean(1).detach()
    plain = convert(prepared_of(net, batches))
    graph = prepared_of(net, batches)
    assert correct_biases(graph, batches) == 1
    corrected = convert(graph)
    errors = [(model(inputs).movedim(1, 0).flatten(1).mean(1) - truth).abs().max().item() for model in (plain, corrected)]
    assert errors[1] < 0.1 * errors[0]
    assert errors[1] < 0.01
