import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from strop.errors import ConfigError, DataError, ExportError
from strop.quantization import learned_spec, quantize
from strop.quantization.batches import Batches
from strop.quantization.flow import calibrate, capture, convert, prepare, prepare_qat, switchable
from tests.quantization.nets import SmallNet, image_batches, small_net, sqnr

pytest.importorskip('torchao')


def x86(is_qat=False):
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=is_qat))


@pytest.fixture
def net():
    return small_net()


@pytest.fixture
def batches():
    return Batches.of(image_batches())


def test_the_captured_graph_computes_what_the_model_does_at_any_batch_size(net, batches):
    graph = capture(net, batches.example())
    for size in (1, 3, 8):
        images = torch.randn(size, 3, 16, 16)
        assert torch.equal(graph(images), net(images))


def test_a_relu_that_is_used_twice_is_quantized_like_two(net, batches):
    prepared = prepare(capture(net, batches.example()), x86())
    assert calibrate(prepared, batches) == 3
    images = batches[0][0][0]
    converted = convert(prepared)
    quantized = [node for node in converted.graph.nodes if 'quantize_per_tensor' in str(node.target)]
    assert len(quantized) >= 5
    assert sqnr(net(images), converted(images)) > 25


def test_neither_the_model_nor_its_mode_changes(net, batches):
    net[2].train()
    state, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    prepared = prepare(capture(net, batches.example()), x86())
    calibrate(prepared, batches)
    convert(prepared)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_training_and_evaluation_of_a_prepared_graph_are_those_of_the_model(net, batches):
    from torchao.quantization.pt2e import disable_fake_quant, disable_observer

    net.drop.p = 0.0  # random masks could not be compared
    images = batches[0][0][0]
    prepared = prepare_qat(capture(net, batches.example(), training=True), x86(is_qat=True))
    prepared.eval()(images)
    prepared.apply(disable_fake_quant)
    prepared.apply(disable_observer)
    torch.testing.assert_close(prepared(images), net(images), rtol=1e-5, atol=1e-6)
    net.train()
    torch.testing.assert_close(prepared.train()(images), net(images), rtol=1e-4, atol=1e-5)
    # One step of training moved the running statistics of both alike, with the momentum and epsilon of each norm.
    torch.testing.assert_close(prepared.eval()(images), net.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_norm_that_the_model_keeps_in_evaluation_stays_there_in_training():
    class Frozen(nn.Module):
        """Keeps its first norm in evaluation, as detectors do with their backbones."""

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x):
            return self.body(x)

        def train(self, mode=True):
            super().train(mode)
            self.body[1].eval()
            return self

    torch.manual_seed(0)
    net = Frozen()
    net.body[1].running_mean.uniform_()
    images = torch.randn(6, 3, 8, 8)
    prepared = prepare_qat(capture(net, ((images,), {}), training=True), x86(is_qat=True)).train()
    before = {name: value.clone() for name, value in prepared.named_buffers() if name.startswith('body')}
    assert {'body.1.running_mean', 'body.1.running_var', 'body.4.running_mean', 'body.4.running_var'} <= set(before)
    prepared(images)
    moved = {name for name, value in before.items() if not torch.equal(value, prepared.get_buffer(name))}
    assert {name.split('.')[1] for name in moved} == {'4'}
    prepared.eval()(images)
    prepared.train()
    frozen = [node for node in prepared.graph.nodes if str(node.target) == 'aten.batch_norm.default']
    assert sorted(bool(node.args[5]) for node in frozen) == [False, True]


def test_learned_steps_that_saw_no_data_are_not_converted(net, batches):
    config = copy.copy(x86(is_qat=True).global_config)
    learned = {
        'input_activation': learned_spec(config.input_activation), 'weight': learned_spec(config.weight, is_weight=True),
    }  # fmt: skip
    quantizer = x86(is_qat=True).set_global(dataclasses.replace(config, **learned))
    prepared = prepare_qat(capture(net, batches.example(), training=True), quantizer)
    with pytest.raises(ConfigError, match='observers have seen no data'):
        convert(prepared)
    prepared.train()(batches[0][0][0])
    images = batches[0][0][0]
    assert sqnr(prepared.eval()(images), convert(prepared)(images)) > 25


@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
@pytest.mark.parametrize('how', ['pruned', 'weight_norm'])
def test_weights_that_are_computed_from_others_are_refused(how):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    if how == 'pruned':
        prune.l1_unstructured(net[2], 'weight', 0.5)
    else:
        torch.nn.utils.weight_norm(net[2])
    images = torch.rand(4, 3, 8, 8)
    for call in (
        lambda: capture(net, ((images,), {})),
        lambda: quantize(net, [images]),
    ):
        with pytest.raises(ConfigError, match=r"'weight' of '2' is no parameter.*prune\.remove"):
            call()
    net[2] = nn.Linear(144, 2)
    capture(net, ((images,), {}))


def test_a_trained_graph_converts_to_what_it_computed_in_evaluation(net, batches):
    from torchao.quantization.pt2e import disable_observer

    prepared = prepare_qat(capture(net, batches.example(), training=True), x86(is_qat=True)).train()
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for (images,), _ in batches:
        optimizer.zero_grad()
        prepared(images).square().mean().backward()
        optimizer.step()
    prepared.eval().apply(disable_observer)
    images = batches[1][0][0]
    expected = prepared(images)
    assert sqnr(expected, convert(prepared)(images)) > 40


def test_dropout_is_switched_with_the_mode(batches):
    torch.manual_seed(0)
    net = SmallNet()
    graph = switchable(capture(net, batches.example(), training=True))
    images = batches[0][0][0]
    graph.eval()
    assert torch.equal(graph(images), graph(images))
    graph.train()
    assert not torch.equal(graph(images), graph(images))
    assert graph.training


def test_converting_before_calibrating_is_refused(net, batches):
    with pytest.raises(ConfigError, match='seen no data'):
        convert(prepare(capture(net, batches.example()), x86()))


def test_data_of_another_shape_than_the_model_takes_is_refused(net, batches):
    prepared = prepare(capture(net, batches.example()), x86())
    with pytest.raises(DataError, match=r'batch 0 .*2, 4, 16, 16'):
        calibrate(prepared, [torch.rand(2, 4, 16, 16)])


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line that cannot be exported
            return x
        return -x


def test_a_model_that_does_not_export_is_refused_with_the_op_and_the_line():
    with pytest.raises(ExportError, match=r'(?s)the op Tensor.__bool__ fails at .*test_flow\.py:\d+: `if x\.sum\(\) > 0'):
        capture(nn.Sequential(nn.Linear(3, 3), Branching()), ((torch.rand(2, 3),), {}))


def test_keyword_arguments_are_captured(batches):
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + 2 * b

    graph = capture(Sum(), ((), {'a': torch.rand(2, 3), 'b': torch.rand(2, 3)}))
    a, b = torch.rand(5, 3), torch.rand(5, 3)
    assert torch.equal(graph(a=a, b=b), a + 2 * b)


def test_nothing_is_kept_of_weights_that_became_integers(net, batches):
    prepared = prepare(capture(net, batches.example()), x86())
    calibrate(prepared, batches)
    converted = convert(prepared)
    kept = converted.state_dict()
    assert 'stem.weight' not in kept
    assert sum(value.numel() for value in kept.values() if value.dtype == torch.int8) == sum(
        parameter.numel() for parameter in net.parameters() if parameter.dim() > 1
    )
    assert max(value.numel() for value in kept.values() if value.is_floating_point()) <= 10
