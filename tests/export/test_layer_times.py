from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, EstimateError
from strop.estimators import Latency
from strop.export.layer_times import LayerTime, LayerTimes, _Kernel, _Wiring, layer_times
from strop.quantization import quantize


class Residual(nn.Module):
    """A convolution with a norm, one whose sum with its input is activated, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.inner = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.norm(self.stem(image)))
        return self.head(torch.relu(first + self.inner(first)).mean((2, 3)))


class Slow(nn.Linear):
    def forward(self, given: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return super().forward(given)


IMAGE = torch.rand(2, 3, 48, 48)


def test_in_eager_each_module_has_its_own_time_and_the_rest_is_said() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Slow(4, 4), nn.ReLU()), nn.Linear(4, 2))
    times = layer_times(model, torch.rand(1, 4), rounds=4, warmup=1)
    assert list(times) == ['0', '1.0', '2']
    assert min(times['1.0'].latency.samples_ms) >= 10 > times['0'].latency.median_ms
    assert times.whole.median_ms >= 10
    assert list(times.other) == ['ReLU', 'between modules']
    assert all(len(layer.latency.samples_ms) == 4 for layer in times.values())


def test_what_a_layer_calls_inside_is_not_counted_twice() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 4))
            self.inner = Slow(4, 4)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.inner(given @ self.weight)

    times = layer_times(nn.Sequential(Outer()), torch.rand(1, 4), rounds=3, warmup=1)
    assert times['0.inner'].latency.median_ms >= 10 > times['0'].latency.median_ms


def test_a_layer_that_is_called_twice_has_the_sum() -> None:
    slow = Slow(4, 4)
    times = layer_times(nn.Sequential(slow, nn.ReLU(), slow), torch.rand(1, 4), rounds=3, warmup=0)
    assert list(times) == ['0']
    assert times['0'].latency.median_ms >= 20


def test_the_model_stays_as_it_is() -> None:
    model = Residual().train()
    layer_times(model, IMAGE, rounds=1, warmup=0)
    assert model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_layers_carry_what_they_cost() -> None:
    layer = layer_times(Residual(), IMAGE, rounds=1, warmup=0)['inner']
    assert layer.to_dict('f32') == {
        'shape': [32, 32, 3, 3],
        'macs': 2 * 48 * 48 * 32 * 32 * 9,
        'params': 32 * 32 * 9 + 32,
        'latency_ms': layer.latency.median_ms,
        'precision': 'f32',
    }


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_fused_programs_are_told_apart_by_the_layers_that_they_were_made_of(runtime: str) -> None:
    pytest.importorskip(runtime)
    times = layer_times(Residual(), IMAGE, runtime=runtime, rounds=5, warmup=1)
    assert list(times) == ['stem', 'inner', 'head']
    assert all(sum(layer.latency.samples_ms) > 0 for layer in times.values())
    assert not {'Conv', 'FusedConv', 'Convolution', 'Gemm', 'FullyConnected'} & set(times.other)
    # 80,000 times as many multiply-adds: whatever else the machine does, this order holds.
    assert times['inner'].latency.median_ms > times['head'].latency.median_ms


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_quantized_layers_are_named_as_those_of_the_model(runtime: str) -> None:
    pytest.importorskip(runtime)
    model = Residual().eval()
    quantized = quantize(model, [IMAGE], backend=runtime, activation='min_max', check=False)
    times = layer_times(model, IMAGE, quantized=quantized, rounds=5, warmup=1)
    assert (times.runtime, times.precision) == (runtime, 'int8')
    assert list(times) == ['stem', 'inner', 'head']
    assert all(sum(times[name].latency.samples_ms) > 0 for name in ('stem', 'inner'))


def test_keyword_inputs_are_taken() -> None:
    times = layer_times(Residual(), {'image': IMAGE}, runtime='onnxruntime', rounds=2, warmup=0)
    assert list(times) == ['stem', 'inner', 'head']
    assert times.batch == 2


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(runtime='compile'), "'compile'.*fused across layers"),
        (dict(runtime='onnxruntim'), "Did you mean 'onnxruntime'"),
        (dict(runtime='onnxruntime', precision='bf16'), "Got 'bf16'"),
        (dict(runtime='openvino', precision='int8'), 'needs what `quantize` returned'),
        (dict(rounds=0), '`rounds` must be a positive integer'),
    ],
)
def test_what_cannot_be_told_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        layer_times(Residual(), IMAGE, **options)


def test_a_model_that_fails_is_an_error_with_its_name() -> None:
    with pytest.raises(EstimateError, match='whole model'):
        layer_times(Residual(), torch.rand(1, 4, 8, 8), rounds=1)


def test_the_table_has_every_layer_and_the_rest() -> None:
    latency = Latency('a', (1.0, 2.0, 3.0))
    times = LayerTimes(
        {'a': LayerTime('a', 'Conv2d', (1, 1), 10, 1, latency)}, {'Reorder': 1.0}, Latency('w', (4.0,)), 'openvino', 'f32', 1, 1
    )
    assert times.explained == 0.75
    cells = [list(column.cells) for column in times.table().columns]
    assert cells[0] == ['a', 'Reorder', '(the whole model)']
    assert cells[4] == ['50.0', '25.0', '100.0']


# -- which kernel is whose ----------------------------------------------------------------------------------


def _node(name: str, kind: str, inputs: list[str], output: str, scopes: str = '[]') -> Any:
    props = [SimpleNamespace(key='pkg.torch.onnx.name_scopes', value=scopes)]
    return SimpleNamespace(name=name, op_type=kind, input=inputs, output=[output], metadata_props=props)


def _wiring() -> _Wiring:
    graph = SimpleNamespace(
        initializer=[SimpleNamespace(name=name, dims=[4, 4]) for name in ('model.a.weight', 'model.b.weight', 'val_3')],
        node=[
            _node('node_a', 'Conv', ['x', 'model.a.weight'], 'a'),
            _node('n1', 'Relu', ['a'], 'relu'),
            _node('node_b', 'Conv', ['relu', 'model.b.weight'], 'b'),
            _node('node_add', 'Add', ['relu', 'b'], 'sum'),
            _node('n2', 'Relu', ['sum'], 'relu_1'),
            _node('node_c', 'MatMul', ['relu_1', 'val_3'], 'c', "['', 'model', 'model.c', 'linear']"),
            _node('node_qk', 'MatMul', ['c', 'relu_1'], 'qk'),
        ],
    )
    owners = {name: nn.Linear(4, 4) for name in ('a', 'b', 'c')}
    return _Wiring(graph, owners)


def _layers(*kernels: tuple[str, str]) -> list[str | None]:
    return _wiring().layers_of([_Kernel(name, kind, (1.0,)) for name, kind in kernels])


def test_kernels_go_by_the_names_of_nodes_and_of_outputs() -> None:
    assert _layers(('node_a', 'Convolution'), ('node_c/WithoutBiases', 'FullyConnected')) == ['a', 'c']
    assert _layers(('relu_nchwc', 'Conv'), ('b', 'Conv')) == ['a', 'b']
    assert _layers(('node_a_token_12', 'QLinearConv')) == ['a']


def test_a_sum_that_was_fused_belongs_to_the_convolution_before_it() -> None:
    # The sum has two convolutions above it; the nearer one is the one that was fused.
    assert _layers(('relu_nchwc', 'Conv'), ('relu_1_nchwc', 'Conv')) == ['a', 'b']


def test_kernels_without_a_weight_are_of_no_layer() -> None:
    assert _layers(('node_add', 'Add'), ('reorder_7', 'Reorder')) == [None, None]
    names = (('node_a', 'Conv'), ('node_b', 'Conv'), ('node_c', 'MatMul'), ('node_qk', 'MatMul'))
    assert _layers(*names) == ['a', 'b', 'c', None]


def test_kernels_with_names_of_their_own_take_the_layers_that_are_left() -> None:
    assert _layers(('node_a', 'Conv'), ('node_b', 'Conv'), ('FC_99', 'FullyConnected')) == ['a', 'b', 'c']
    assert _layers(('node_a', 'Conv'), ('FC_99', 'FullyConnected')) == ['a', None]


def test_a_quantized_file_with_other_layers_is_refused() -> None:
    owners = {name: nn.Linear(4, 4) for name in ('a', 'b', 'c')}
    wiring = _wiring()
    wiring.rename(['a', 'b', 'c:2'], owners)
    assert wiring.layers_of([_Kernel('node_c', 'MatMul', (1.0,))]) == ['c']
    with pytest.raises(EstimateError, match='3 layers and the model 2'):
        wiring.rename(['a', 'b'], owners)
    with pytest.raises(EstimateError, match='cannot be told apart'):
        wiring.rename(['a', 'b', 'c'], {**owners, 'b': nn.Linear(4, 5)})


def test_steps_that_openvino_adds_may_have_another_number_in_each_program() -> None:
    pytest.importorskip('openvino')
    transformers = pytest.importorskip('transformers')
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    ids = torch.arange(8)[None]
    times = layer_times(model, {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}, runtime='openvino', rounds=3)
    assert {'encoder.layer.0.attention.self.query', 'encoder.layer.0.intermediate.dense'} <= set(times)
