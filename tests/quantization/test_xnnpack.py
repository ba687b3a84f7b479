import pytest
import torch
from torch import nn

from strop.quantization import quantize
from tests.quantization.nets import Attention, Mlp, image_batches, small_net

pytest.importorskip('torchao')
pytest.importorskip('executorch')


class SmallViT(nn.Module):
    """Patches, a class token, position embeddings and one block, as in timm's vision transformers."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.block = nn.Sequential(Attention(), Mlp())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.block(x)[:, 0])


@pytest.fixture(scope='module')
def transformer():
    torch.manual_seed(0)
    return quantize(SmallViT().eval(), image_batches(), backend='executorch')


def test_a_vision_transformer_with_position_embeddings_runs(transformer):
    assert transformer.check.difference <= transformer.check.limit
    assert {'patches', 'block.0.qkv', 'block.1.up', 'head'} <= {layer.name for layer in transformer.record.quantized}


def test_sums_with_parameters_and_of_linear_layers_are_left_in_float_and_listed(transformer):
    assert transformer.record.other_ops['add'] == 3
    assert 'add (3)' in str(transformer)
    assert transformer.record.sqnr_db > 20


def test_sums_of_convolutions_stay_integers():
    result = quantize(small_net(), image_batches(), backend='executorch', check=False)
    assert not result.record.other_ops
    assert len(result.record.quantized) == len(result.record.layers)


def test_programs_of_one_and_of_two_threads_run_side_by_side():
    bindings = pytest.importorskip('executorch.extension.pybindings.portable_lib')
    net, x = small_net(), image_batches()[0][:1]
    result = quantize(net, [x], backend='executorch', check=False)
    runs = {threads: result.bind(x, threads, floats=True) for threads in (1, 2)}
    for threads in (1, 2, 2, 1, 2):
        torch.testing.assert_close(runs[threads]()[0], net(x), atol=1e-5, rtol=1e-5)
        assert bindings._threadpool_get_thread_count() == threads


@pytest.mark.parametrize('clamp', [nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(-1.0, 2.0)])
def test_what_is_clamped_is_rounded_after_the_clamp_alone(clamp):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), clamp, nn.Conv2d(8, 8, 3), clamp, nn.Flatten(), nn.Linear(1152, 4)
    )
    with torch.no_grad():
        net[0].weight.mul_(50)  # most of what comes out of it is cut off
    images = image_batches()
    result = quantize(net.eval(), images, backend='executorch')
    clamps = [node for node in result.model.graph.nodes if 'hardtanh' in str(node.target)]
    assert len(clamps) == 2
    assert all('conv' in str(node.args[0].target) for node in clamps)
    assert result.check.difference <= result.check.limit
    assert result.record.sqnr_db > 25


def test_a_layer_that_others_read_before_the_clamp_is_rounded_itself():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            x = self.conv(x)
            return torch.nn.functional.relu6(x) + x

    result = quantize(Net().eval(), image_batches(), backend='executorch')
    (clamp,) = [
        node for node in result.model.graph.nodes if str(node.target) in ('aten.relu6.default', 'aten.hardtanh.default')
    ]
    assert 'dequantize' in str(clamp.args[0].target)
    assert result.check.difference <= result.check.limit


def test_positions_that_a_model_counts_stay_integers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.embedding = nn.Conv2d(3, 4, 3, padding=1), nn.Embedding(20, 16)

        def forward(self, x):
            positions = torch.arange(x.shape[-1]) + 2
            return self.conv(x) + self.embedding(positions * 1)

    net = Net().eval()
    result = quantize(net, image_batches(), backend='executorch')
    assert result.check.difference <= result.check.limit
    assert result.record.sqnr_db > 25
