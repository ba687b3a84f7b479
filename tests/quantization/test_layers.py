import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.quantization.batches import Batches
from strop.quantization.flow import capture
from strop.quantization.layers import heavy_nodes, matching, name_layers
from tests.quantization.nets import image_batches, small_net, small_transformer, token_batches


def test_layers_have_the_paths_of_their_modules():
    graph = capture(small_net(), Batches.of(image_batches()).example())
    name_layers(graph)
    assert list(heavy_nodes(graph)) == ['stem', 'block1.conv1', 'block1.conv2', 'block2.conv1', 'block2.conv2', 'head']


def test_products_of_activations_are_named_by_the_module_around_them():
    graph = capture(small_transformer(), Batches.of(token_batches()).example())
    name_layers(graph)
    assert list(heavy_nodes(graph)) == ['0.qkv', '0:matmul', '0:matmul_2', '0.proj', '1.up', '1.down', '2']


def test_a_pattern_takes_what_is_inside_a_module():
    names = ['a.b.fc', 'a.b:matmul', 'a.c', 'ab']
    assert list(matching('a.b', names)) == ['a.b.fc', 'a.b:matmul']
    assert list(matching(['*:matmul', 'a?'], names)) == ['a.b:matmul', 'ab']


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'head'"):
        matching(['heed'], ['head', 'stem'])


@pytest.mark.parametrize(('layer', 'dims'), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
@pytest.mark.parametrize('padding', ['same', 'valid', 1])
def test_convolutions_are_layers_however_they_are_padded(layer, dims, padding):
    graph = capture(nn.Sequential(layer(2, 3, 3, padding=padding), nn.ReLU()), ((torch.rand(2, 2, *(5,) * dims),), {}))
    name_layers(graph)
    assert list(heavy_nodes(graph)) == ['0']
