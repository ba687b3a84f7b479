import copy
import dataclasses

import pytest
import torch
from torch import nn

from strop.quantization import (
    LearnableFakeQuantize,
    QConfig,
    calibrate,
    convert,
    fake_quantizers,
    learned_spec,
    prepare_qat,
)
from strop.quantization.qat_convert import QuantizedLayer

from .test_qat import NAMES, Named, X, net, trained

pytest.importorskip('torchao')


@pytest.mark.parametrize('name', NAMES)
def test_codes_and_factors_of_folded_batch_norms_give_the_weight_in_float64(name):
    prepared = prepare_qat(net(), name)
    trained(prepared, steps=2)
    folded = convert(prepared, X)
    for path, conv, norm in (('stem', prepared.stem, prepared.norm1), ('body.0', prepared.body[0], prepared.body[1])):
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = conv.weight_fake_quant(conv.weight).double() * factor[:, None, None, None]
        layer = folded.get_submodule(path)
        torch.testing.assert_close(layer.weight.double(), weight, rtol=1e-5, atol=1e-12)
        bias = 0.0 if conv.bias is None else conv.bias.double()
        torch.testing.assert_close(
            layer.layer.bias.double(), (bias - norm.running_mean) * factor + norm.bias, rtol=1e-4, atol=1e-6
        )
        if path == 'stem':
            assert (factor < 0).any()


@pytest.mark.parametrize('name', ['pact2', 'pact4', 'pact8'])
def test_values_below_the_level_of_pact_are_clipped_as_in_training(name):
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    prepared = calibrate(prepare_qat(nn.Sequential(nn.Linear(4, 2)), name, first_last=None), [data]).eval()
    highest = prepared[0].input_fake_quant.quant_max
    integers = convert(prepared)
    assert integers[0].input_range == (1, highest)
    assert torch.equal(integers(5 * data), prepared(5 * data))
    level = prepared[0].input_fake_quant.alpha.detach()
    torch.testing.assert_close(prepared(-9 * level.expand(1, 4)), prepared(-level.expand(1, 4)))


def test_a_batch_norm_stays_where_something_else_reads_the_convolution():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    model = Forked()
    nn.init.normal_(model.norm.bias)
    prepared = calibrate(prepare_qat(model, 'int8'), [X]).eval()
    integers = convert(prepared, X)
    assert isinstance(integers.norm, nn.BatchNorm2d)
    assert torch.equal(integers(X), prepared(X))


def test_a_batch_norm_stays_where_the_negative_of_a_code_is_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    nn.init.constant_(model[1].weight, -1.0)
    spec = dataclasses.replace(QConfig.of('lsq8').weight, narrow=False)
    prepared = calibrate(prepare_qat(model, QConfig(spec, None)), [X]).eval()
    with torch.no_grad():
        model_weight = prepared[0].weight
        model_weight[0, 0] = -1000.0
    integers = convert(prepared, X)
    assert isinstance(integers[1], nn.BatchNorm2d)
    assert torch.equal(integers(X), prepared(X))


def test_the_exported_graph_holds_the_integers():
    prepared = prepare_qat(net(), 'lsq4')
    trained(prepared, steps=2)
    integers = convert(prepared, X)
    program = torch.export.export(integers, (X,))
    torch.testing.assert_close(program.module()(X), integers(X))
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum('quantize_per_tensor' in target for target in targets) == 8
    assert sum('dequantize_per_channel' in target for target in targets) == 4
    stored = [value for name, value in program.state_dict.items() if name.endswith('codes')]
    assert len(stored) == 4
    assert all(value.dtype == torch.int8 for value in stored)


def test_a_model_that_is_one_layer_converts():
    prepared = calibrate(prepare_qat(nn.Linear(4, 2), 'int8'), [torch.rand(8, 4)]).eval()
    integers, x = convert(prepared), torch.rand(3, 4)
    assert isinstance(integers, QuantizedLayer)
    assert torch.equal(integers(x), prepared(x))


class Repeated(nn.Module):
    """One head after each layer under names of its own, as detectors have, and a norm with two names."""

    def __init__(self):
        super().__init__()
        self.norm, head = nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), self.norm)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.heads = nn.ModuleList([head] * 3)
        self.listed = [head]

    def forward(self, x):
        x, outputs = self.stem(x).mean((2, 3)), []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = layer(x).relu()
            outputs.append(head(x))
        return torch.stack([*outputs, self.listed[0](x)])


def test_a_layer_with_several_names_is_one_quantized_layer():
    torch.manual_seed(0)
    prepared = calibrate(prepare_qat(Repeated(), 'int8'), [X]).eval()
    integers = convert(prepared)
    assert torch.equal(integers(X), prepared(X))
    assert isinstance(integers.heads[0], QuantizedLayer)
    assert all(head is integers.heads[0] for head in (*integers.heads, *integers.listed))
    assert not fake_quantizers(integers)
    assert all(isinstance(head, nn.Linear) for head in (*prepared.heads, *prepared.listed))
    folded = convert(prepared, X)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(X), prepared(X), rtol=1e-2, atol=1e-3)


def test_a_layer_with_several_names_comes_back_from_a_checkpoint():
    prepared = calibrate(prepare_qat(Repeated(), 'lsq8'), [X]).eval()
    other = prepare_qat(Repeated(), 'lsq8').eval()
    other.load_state_dict(prepared.state_dict())
    assert torch.equal(other(X), prepared(X))


def test_layers_and_norms_that_are_called_by_keyword_convert():
    torch.manual_seed(0)
    model = Named(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    nn.init.normal_(model[1].bias)
    prepared = calibrate(prepare_qat(model, 'int8'), [X]).eval()
    wanted = prepared(X)
    assert torch.equal(convert(prepared)(X), wanted)
    folded = convert(prepared, X)
    assert isinstance(folded[1], nn.Identity)
    assert (folded(X) - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize('depth', [0, 2])
@pytest.mark.parametrize('mode', [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_transformer_layers_of_torch_compute_with_the_integers_in_each_mode(depth, mode):
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model, x = nn.TransformerEncoder(block, depth) if depth else block, torch.randn(3, 5, 16)
    prepared = calibrate(prepare_qat(model, 'int2', first_last=None), [x]).eval()
    integers = copy.deepcopy(convert(prepared, x))
    with mode():
        wanted = prepared(x)
        assert torch.equal(integers(x), wanted)
        assert (wanted - model.eval()(x)).abs().max() > 0.1


def test_sizes_and_settings_are_those_of_the_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(64, 2, bias=False))
    layers = convert(calibrate(prepare_qat(model, 'int8'), [X]))
    assert (layers[0].in_channels, layers[0].stride, layers[0].padding) == (3, (2, 2), (1, 1))
    assert torch.equal(layers[0].bias, model[0].bias)
    assert (layers[2].in_features, layers[2].out_features, layers[2].bias) == (64, 2, None)


def test_integers_are_saved_and_loaded():
    prepared = prepare_qat(net(), 'lsq4')
    trained(prepared, steps=2)
    first, second = convert(prepared, X), None
    fresh = prepare_qat(net(), 'lsq4')
    trained(fresh, steps=1)
    second = convert(fresh, X)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(X), first(X))


def test_learned_steps_go_through_the_flow_of_pt2e():
    """Put in the place of a backend's fake quantizers, they learn in its graph, and conversion keeps what they learned."""
    pt2e = pytest.importorskip('torchao.quantization.pt2e')
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(is_qat=True)

    config = dataclasses.replace(
        config, input_activation=learned_spec(config.input_activation), weight=learned_spec(config.weight, is_weight=True)
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    graph = torch.export.export(model.train(), (X,), strict=True).module()
    prepared = prepare_qat_pt2e(graph, x86.X86InductorQuantizer().set_global(config))
    learners = [module for module in prepared.modules() if isinstance(module, LearnableFakeQuantize)]
    assert len(learners) >= 3
    prepared(X)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(3):
        loss = nn.functional.cross_entropy(prepared(X), torch.arange(16) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    steps = [module.scale.grad for module in learners]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in steps)
    pt2e.move_exported_model_to_eval(prepared)
    wanted = prepared(X)
    scale = next(float(module.calculate_qparams()[0]) for module in learners if not module.is_weight)
    integers = convert_pt2e(prepared)
    assert (integers(X) - wanted).abs().max() < 0.02 * wanted.abs().max()
    constants = [argument for node in integers.graph.nodes for argument in node.args if isinstance(argument, float)]
    assert scale in constants
