"""Batch norms are folded into the layer that they follow, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strop.quantization import quantize
from strop.quantization.backends import exported
from strop.quantization.flow import capture
from strop.quantization.folding import fold_norms
from strop.quantization.quantizing import float_graph

NORM = torch.ops.aten.batch_norm.default


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a model in eval mode whose norms have statistics."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=draw)
            module.running_var.uniform_(0.5, 4, generator=draw)
            if module.affine:
                module.weight.data.uniform_(-1.5, 2, generator=draw)
                module.bias.data.normal_(generator=draw)
    return model.eval()


class Siamese(nn.Module):
    """One layer and one norm, called for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)) - self.norm(self.conv(2 * x)).relu()


class Levels(nn.Module):
    """One layer with a norm for each level, as heads of detectors have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 8, 3), nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x):
        return self.norms[0](self.conv(x)), self.norms[1](self.conv(2 * x))


class Bare(nn.Module):
    """A layer that is read once through a norm and once without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.conv(x), self.norm(self.conv(2 * x))


class Read(nn.Module):
    """One result of a layer, read through a norm and without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        found = self.conv(x)
        return found.relu(), self.norm(found)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.first(x)) + self.second(x)


NETS = [Siamese, Levels, Bare, Read, Tied]


def outputs(model, x):
    found = model(x)
    return list(found) if isinstance(found, (tuple, list)) else [found]


def norms(graph) -> int:
    return sum(node.target is NORM for node in graph.graph.nodes)


@pytest.mark.parametrize('net', NETS)
def test_layers_that_are_called_or_read_twice_stay_right(net):
    model = trained(net()).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for found, wanted in zip(outputs(float_graph(capture(model, ((x,), {}))), x), outputs(model, x)):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino', 'inductor'])
@pytest.mark.parametrize('net', NETS)
def test_they_are_quantized_right(net, backend):
    pytest.importorskip(backend if backend != 'inductor' else 'torchao')
    model = trained(net())
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    result = quantize(model, [x], backend=backend, check=backend != 'inductor')
    with torch.no_grad():
        for found, wanted in zip(outputs(result.model, x), outputs(model, x)):
            assert (found - wanted).norm() < 0.03 * wanted.norm()


def test_what_is_called_twice_alike_keeps_one_weight():
    graph = capture(trained(Siamese()), ((torch.randn(2, 3, 8, 8),), {}))
    assert fold_norms(graph) == 2
    assert norms(graph) == 0
    reads = {node.args[1].target for node in graph.graph.nodes if node.target is torch.ops.aten.conv2d.default}
    assert len(reads) == 1
    graph = capture(trained(Read()), ((torch.randn(2, 3, 8, 8),), {}))
    assert fold_norms(graph) == 0
    assert norms(graph) == 1


class Held(nn.Module):
    """A norm with running statistics whose forward computes from the batch all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        norm = self.norm
        found = self.conv(x)
        return nn.functional.batch_norm(found, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)


def stateless(*layers: nn.Module) -> nn.Module:
    """Return layers in a row, with norms that keep no running statistics and have factors and shifts as after training."""
    model = nn.Sequential(*layers)
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data.uniform_(-1.5, 2, generator=draw)
            module.bias.data.normal_(generator=draw)
    return model.eval()


def without_statistics() -> list[tuple[nn.Module, torch.Tensor]]:
    return [
        (
            stateless(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 4, 3)),
            torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        ),
        (
            stateless(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Conv2d(8, 4, 3)),
            torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        ),
        (
            stateless(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 4)),
            torch.randn(8, 6, generator=torch.Generator().manual_seed(1)),
        ),
    ]


@pytest.mark.parametrize('place', [0, 1, 2, 3])
def test_norms_that_compute_from_the_batch_are_not_folded(place):
    cases = [*without_statistics(), (trained(Held()), torch.randn(8, 3, 8, 8))]
    model, x = cases[place][0].double(), cases[place][1].double()
    graph = capture(model, ((x,), {}))
    assert fold_norms(graph) == 0
    assert norms(graph) == 1
    reference = float_graph(capture(model, ((x,), {})))
    assert norms(reference) == 1
    torch.testing.assert_close(reference(x), model(x), rtol=1e-10, atol=1e-10)
    # In evaluation too, and so in what is written.
    for other in (copy.deepcopy(reference).eval(), reference.eval()):
        torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('backend', ['onnxruntime', 'inductor'])
@pytest.mark.parametrize('place', [0, 2])
def test_layers_before_norms_without_statistics_are_quantized(place, backend):
    pytest.importorskip(backend if backend != 'inductor' else 'torchao')
    model, x = without_statistics()[place]
    result = quantize(model, [x], backend=backend, check=backend != 'inductor')
    assert len(result.record.quantized) == 2
    assert result.record.other_ops['batch_norm'] == 1
    with torch.no_grad():
        assert (result.model(x) - model(x)).norm() < 0.1 * model(x).norm()
        # Writing sets modules to evaluation, which a norm without statistics has none of.
        torch.testing.assert_close(exported(result.model, ((x,), {})).module()(x)[0], result.model(x))


@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]), dims=st.integers(1, 3), transposed=st.booleans(), bias=st.booleans(),
    affine=st.booleans(), same=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_convolution(groups, dims, transposed, bias, affine, same, seed):
    name = f'Conv{"Transpose" * transposed}{dims}d'
    options = {} if transposed or not same else {'padding': 'same'}
    layer = getattr(nn, name)(4, 8, 3, groups=groups, bias=bias, **options)
    model = trained(nn.Sequential(layer, getattr(nn, f'BatchNorm{dims}d')(8, affine=affine)), seed).double()
    x = torch.randn(2, 4, *[5] * dims, dtype=torch.float64)
    graph = capture(model, ((x,), {}))
    assert fold_norms(graph) == 1
    torch.testing.assert_close(graph(x), model(x), rtol=1e-11, atol=1e-11)


def test_a_linear_layer_is_folded_where_its_features_are_the_second_axis():
    model = trained(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    graph = capture(model, ((x,), {}))
    assert fold_norms(graph) == 1
    torch.testing.assert_close(graph(x), model(x), rtol=1e-12, atol=1e-12)
    model = trained(nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(5))).double()
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    graph = capture(model, ((x,), {}))
    assert fold_norms(graph) == 0
    torch.testing.assert_close(float_graph(capture(model, ((x,), {})))(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('groups', [2, 4])
def test_grouped_transposed_convolutions_with_norms_are_quantized(groups):
    pytest.importorskip('onnxruntime')
    model = trained(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=groups), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    result = quantize(model, [x], backend='onnxruntime')
    with torch.no_grad():
        assert (result.model(x) - model(x)).norm() < 0.03 * model(x).norm()
