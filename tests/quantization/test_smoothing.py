import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.quantization.batches import Batches
from strop.quantization.flow import capture
from strop.quantization.layers import attribute, heavy_nodes, name_layers
from strop.quantization.smoothing import smooth
from tests.quantization.nets import Mlp, small_transformer, token_batches


@pytest.mark.parametrize('alpha', [0.0, 0.5, 1.0])
def test_a_smoothed_graph_computes_the_same_in_float(alpha):
    net, batches = small_transformer().double(), Batches.of([batch.double() for batch in token_batches()])
    graph = capture(net, batches.example())
    assert smooth(graph, batches, alpha) == 2
    tokens = batches[1][0][0]
    torch.testing.assert_close(graph(tokens), net(tokens), rtol=1e-12, atol=1e-12)
    assert torch.equal(net[0].norm.weight, small_transformer().double()[0].norm.weight)  # the model itself stays


def test_the_scales_are_those_of_the_formula():
    net, batches = nn.Sequential(small_transformer()[1]), Batches.of(token_batches())
    graph = capture(net, batches.example())
    name_layers(graph)
    smooth(graph, batches, 0.5)
    peaks = torch.stack([net[0].norm(call[0][0]).abs().amax((0, 1)) for call in batches]).amax(0)
    wanted = (peaks / net[0].up.weight.abs().amax(0)).sqrt()
    wanted = wanted / wanted.log().mean().exp()
    weight = attribute(graph, heavy_nodes(graph)['0.up'].args[1])
    torch.testing.assert_close(weight / net[0].up.weight, wanted.expand_as(weight), rtol=1e-4, atol=1e-5)


def test_a_norm_that_something_else_reads_too_is_left_alone():
    class Shared(Mlp):
        def forward(self, x):
            x = self.norm(x)
            return x + self.down(self.act(self.up(x)))

    batches = Batches.of(token_batches())
    assert smooth(capture(Shared().eval(), batches.example()), batches) == 0


def test_rms_norms_are_smoothed():
    net, batches = nn.Sequential(nn.RMSNorm(16), nn.Linear(16, 4)), Batches.of(token_batches())
    graph = capture(net, batches.example())
    assert smooth(graph, batches) == 1
    tokens = batches[0][0][0]
    torch.testing.assert_close(graph(tokens), net(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('alpha', [-0.1, 1.5, 'half', True])
def test_the_exponent_is_between_0_and_1(alpha):
    with pytest.raises(ConfigError, match='between 0 and 1'):
        smooth(None, None, alpha)
