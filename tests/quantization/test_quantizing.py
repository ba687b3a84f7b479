import copy
import json
import pickle

import pytest
import torch
from torch import nn

from strop.errors import BudgetError, ConfigError, DataError, EstimateError, ExportError, StropError
from strop.quantization import QuantizationRecord, backend, quantize
from strop.quantization.processor import adds_in_16_bits
from strop.quantization.quantizing import compared
from tests.quantization.nets import fragile_net, image_batches, small_net, small_transformer, sqnr, token_batches

pytest.importorskip('torchao')
pytest.importorskip('onnxscript')

NAMES = {
    'onnxruntime': ('onnxruntime',),
    'openvino': ('openvino',),
    'executorch': ('executorch',),
    'inductor': ('torch',),
}


@pytest.mark.parametrize('name', list(NAMES))
def test_a_file_run_in_its_runtime_computes_what_the_quantized_model_does(name, tmp_path):
    for module in NAMES[name]:
        pytest.importorskip(module)
    net, data = small_net(), image_batches()
    result = quantize(net, data, backend=name, check=False)
    assert len(result.record.quantized) == 6
    path = tmp_path / f'model{backend(name).suffix}'
    check = result.export(path)
    assert check.ran
    assert check.difference <= check.limit
    assert path.is_file()
    images = data[0][:1]
    assert sqnr(net(images), result(images)) > 25
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_model_stays_as_it_is():
    net = small_net().train()
    state = copy.deepcopy(net.state_dict())
    quantize(net, image_batches(), backend='tensorrt', recalibrate_norms=True, bias_correction=True)
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert type(net.block1.relu) is nn.ReLU


def test_copies_of_a_result_work_alike(tmp_path):
    data = image_batches()
    result = quantize(small_net(), data, backend='tensorrt')
    other = copy.deepcopy(result)
    assert torch.equal(other(data[0]), result(data[0]))
    assert str(other) == str(result)
    assert other.model.train().training
    assert not result.model.training
    other.model.eval().load_state_dict(result.model.state_dict())
    other.export(tmp_path / 'model.onnx')


def test_what_cannot_be_pickled_says_what_to_do():
    with pytest.raises(ExportError, match=r'cannot be pickled: .* `export\(path\)`'):
        pickle.dumps(quantize(small_net(), image_batches(), backend='tensorrt', check=False))


def test_the_record_tells_everything(tmp_path):
    result = quantize(small_net(), image_batches(), backend='tensorrt', ignored=['head', 'block1.*'])
    record = result.record
    assert record.left == {
        'block1.conv1': "by the pattern 'block1.*'",
        'block1.conv2': "by the pattern 'block1.*'",
        'head': "by the pattern 'head'",
    }
    first = record.quantized[0]
    assert (first.name, first.weight_bits, first.input_bits, first.scales) == ('stem', 8, 8, 8)
    assert first.sqnr_db > 25
    text = str(result)
    assert 'stem' in text
    assert "by the pattern 'head'" in text
    record.save(tmp_path / 'record.json')
    assert QuantizationRecord.load(tmp_path / 'record.json').layers == record.layers
    json.dumps(record.to_dict())


def test_scales_are_those_of_the_weights():
    net = small_net()
    result = quantize(net, image_batches(), backend='tensorrt', per_channel=True)
    scale = net.head.weight.detach().abs().amax(1) / 127
    low, high = result.record.layers[-1].weight_scale
    # The quantizer counts the levels of both signs: 254 steps for twice the range.
    assert low == pytest.approx(float(scale.min()), rel=1e-5)
    assert high == pytest.approx(float(scale.max()), rel=1e-5)


class AtTheEnds(nn.Module):
    """Products of the largest codes: pairs of them exceed 16 bits."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 8)
        with torch.no_grad():
            self.conv.weight.fill_(0.5)
            self.head.weight.fill_(0.25)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino', 'inductor'])
def test_seven_bits_are_exact_on_every_processor(name):
    if name != 'inductor':
        pytest.importorskip(name)
    data = [1 + torch.rand(4, 16, 6, 6) / 8 for _ in range(2)]
    result = quantize(AtTheEnds().eval(), data, backend=name, reduce_range=True)
    assert result.check.difference < 0.01
    side = 'input_bits' if name == 'inductor' else 'weight_bits'
    assert {getattr(layer, side) for layer in result.record.layers} == {7}
    assert result.record.scheme['reduce_range'] is True
    if adds_in_16_bits():
        with pytest.raises(ExportError, match='adds pairs of products in 16 bits'):
            quantize(AtTheEnds().eval(), data, backend=name, reduce_range=False)
        result = quantize(AtTheEnds().eval(), data, backend=name)
        assert result.check.difference < 0.01
        assert any('has no VNNI' in note and '7 bits' in note for note in result.record.notes)
    else:
        assert quantize(AtTheEnds().eval(), data, backend=name).record.scheme['reduce_range'] is False


@pytest.mark.parametrize('per_channel', [True, False])
@pytest.mark.parametrize(('weight', 'options'), [('mse', {}), ('percentile', {'percentile': 90})])
def test_every_observer_of_weights_gives_a_scale_for_each_channel_or_one(weight, options, per_channel):
    net = small_net()
    with torch.no_grad():
        # Outliers and channels of different size, so that no two ways of choosing a range agree.
        net.block1.conv1.weight.copy_(torch.randn(net.block1.conv1.weight.shape) ** 3 * torch.arange(1, 9).reshape(8, 1, 1, 1))
        net.head.weight.mul_(torch.arange(1, 11).unsqueeze(1))
    plain, other = (
        quantize(net, image_batches(), backend='openvino', check=False, weight=name, per_channel=per_channel, **options).record
        for name in ('min_max', weight)
    )
    assert [layer.scales for layer in other.layers] == ([8, 8, 8, 8, 8, 10] if per_channel else [1] * 6)
    largest = {layer.name: layer.weight_scale[1] for layer in plain.layers}
    assert all(layer.weight_scale[1] <= 1.001 * largest[layer.name] for layer in other.layers)
    if weight == 'percentile':
        scales = {layer.name: layer.weight_scale[1] for layer in other.layers}
        assert scales['block1.conv1'] < 0.9 * largest['block1.conv1']


def test_weights_with_one_scale_lose_more():
    net, data = small_net(), image_batches()
    with torch.no_grad():
        net.block1.conv1.weight[0] *= 100
        net.block1.norm1.bias[0] = -1e6  # what the large weights give is cut off by the ReLU
    levels = {
        kind: quantize(net, data, backend='tensorrt', per_channel=kind, check=False).record.sqnr_db for kind in (True, False)
    }
    assert levels[True] > levels[False] + 3


@pytest.mark.parametrize('activation', ['min_max', 'moving_average', 'percentile', 'mse'])
def test_every_observer_of_activations_quantizes(activation):
    result = quantize(small_net(), image_batches(), backend='tensorrt', activation=activation, weight='mse', check=False)
    assert result.record.sqnr_db > 15
    assert result.record.scheme['activation'] == activation


def test_smoothing_helps_where_a_few_channels_are_large():
    net, data = small_transformer(), token_batches()
    plain = quantize(net, data, backend='tensorrt', check=False)
    smoothed = quantize(net, data, backend='tensorrt', smooth_alpha=0.5, check=False)
    assert smoothed.record.sqnr_db > plain.record.sqnr_db + 3
    assert smoothed.record.passes == ('2 layer norms smoothed',)


def test_the_drop_is_kept_under_the_limit_by_leaving_the_worst_layers_in_float():
    net, data = fragile_net(), image_batches(4)
    truth = net(data[3]).detach()

    def metric(model):
        with torch.no_grad():
            return -float((model(data[3]) - truth).norm() / truth.norm())

    free = quantize(net, data, backend='tensorrt', metric=metric, check=False)
    limit = 0.3 * -free.record.metric[1]
    result = quantize(net, data, backend='tensorrt', metric=metric, max_drop=limit, check=False)
    assert result.record.metric[0] - result.record.metric[1] <= limit
    assert 1 <= len(result.record.left) < 6
    assert all('metric would fall' in reason for reason in result.record.left.values())
    assert set(result.record.left) <= set(list(result.sensitivity)[: len(result.record.left)])


def test_what_each_layer_costs_is_measured_on_request():
    result = quantize(fragile_net(), image_batches(), backend='tensorrt', sensitivity=True, check=False)
    assert next(iter(result.sensitivity)) == 'block1.conv2'
    assert len(result.sensitivity) == 6
    assert result.record.samples == 16  # the last batch was held out


def test_a_drop_that_no_layer_explains_is_refused():
    scores = iter([1.0])

    with pytest.raises(BudgetError, match='Even with all'):
        quantize(
            small_net(), image_batches(), backend='tensorrt', metric=lambda model: next(scores, 0.0), max_drop=0.1, check=False
        )


# -- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ([], 'empty'),
        ([torch.full((2, 3, 16, 16), float('nan'))], 'NaN'),
        ([torch.rand(2, 5, 16, 16)], r'2, 5, 16, 16'),
        ([torch.rand(2, 3, 16, 16), torch.rand(2, 3, 8, 8)], 'Batch 1'),
    ],
)
def test_calibration_data_that_means_nothing_is_refused(data, message):
    net = small_net()
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(DataError, match=message):
        quantize(net, data, backend='tensorrt')
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(metric=3), '`metric` is a function of a model'),
        (dict(metric=len, max_drop='a'), "max_drop='a'"),
        (dict(ignored=3), '`ignored` is a pattern .* not 3'),
        (dict(ignored=['head', 3]), '`ignored` is a pattern'),
        (dict(activation='percentile', percentile='a'), '`percentile` is the share'),
        (dict(backend=['openvino']), r"A backend is one of .* got \['openvino'\]"),
    ],
)
def test_arguments_of_other_types_are_refused_with_what_they_can_be(options, message):
    with pytest.raises(StropError, match=message):
        quantize(small_net(), image_batches(), **{'backend': 'tensorrt', 'check': False, **options})


def test_a_limit_that_leaves_nothing_to_quantize_says_so():
    net, (images, *rest) = small_net(), image_batches()
    truth = net(images).detach()
    with pytest.raises(BudgetError, match='every layer would have to stay float for the metric'):
        quantize(
            net,
            [images, *rest],
            backend='tensorrt',
            check=False,
            metric=lambda model: -float((model(images) - truth).square().mean() > 1e-10),
            max_drop=0.0,
        )


@pytest.mark.parametrize('dtype', ['float64', 'bfloat16', 'float16'])
def test_a_model_in_other_floats_is_refused(dtype):
    kind = getattr(torch, dtype)
    with pytest.raises(ConfigError, match=rf'parameters in {dtype}: quantize `copy\.deepcopy\(model\)\.float'):
        quantize(small_net().to(kind), [batch.to(kind) for batch in image_batches()], backend='tensorrt')


class TwoNamed(nn.Module):
    """Its two inputs have one shape and do not play one part."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, a, b):
        return self.first(a) - 3 * self.second(b)


def test_arguments_by_name_may_come_in_any_order():
    pytest.importorskip('onnxruntime')
    net, a, b = TwoNamed().eval(), torch.randn(8, 6), torch.randn(8, 6)
    result = quantize(net, [{'b': b, 'a': a}], backend='onnxruntime')
    run, wanted = result.prepare(), net(a, b)
    assert torch.equal(run(a=a, b=b)[0], run(b=b, a=a)[0])
    assert sqnr(wanted, run(a=a, b=b)[0]) > 25
    assert sqnr(wanted, result(a=a, b=b)) > 25
    for args, kwargs in (((a, b), {}), ((a,), {'b': b}), ((), {'a': a}), ((), {'a': a, 'c': b})):
        with pytest.raises(DataError, match="as the calibration data had them, 0 by position and 'b', 'a' by name, but got"):
            run(*args, **kwargs)
    with pytest.raises(DataError, match='2 by position and none by name, but got 0 by position'):
        quantize(net, [((a, b), None)], backend='onnxruntime', check=False).prepare()(a=a, b=b)


class Sized(nn.Module):
    """Its batch size is written down."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x):
        return self.layer(x).view(8, 5).relu()


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
def test_a_model_of_one_batch_size_is_quantized_for_that(name):
    pytest.importorskip(name)
    net, x = Sized().eval(), torch.randn(8, 6)
    result = quantize(net, [x], backend=name)
    assert result.check.batches == (8,)
    assert sqnr(net(x), result.prepare()(x)[0]) > 25
    assert result.latency(runs=2)['int8'].median_ms > 0


class One(Sized):
    """Its batch size is written down, and is one."""

    def forward(self, x):
        return self.layer(x).view(1, 5)


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
def test_a_model_of_batch_size_one_is_quantized_for_that(name):
    pytest.importorskip(name)
    net, data = One().eval(), [torch.rand(1, 6) + 0.1 for _ in range(4)]
    with torch.no_grad():
        net.layer.weight.abs_().add_(0.1)
    result = quantize(net, data, backend=name)
    assert result.check.batches == (1,)
    assert result.record.samples == 4
    assert sqnr(net(data[1]), result.prepare()(data[1])[0]) > 25
    assert result.latency(runs=2)['int8'].median_ms > 0


def test_norms_are_measured_on_the_batches_that_have_a_variance():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).train()
    state = copy.deepcopy(net.state_dict())
    batches = [torch.randn(8, 6), torch.randn(8, 6), torch.randn(1, 6)]
    some, more = (
        quantize(net, data, backend='tensorrt', recalibrate_norms=True, check=False) for data in (batches, batches[:2])
    )
    assert some.record.passes == ('1 batch norms measured again on 2 of 3 batches',)
    assert more.record.passes == ('1 batch norms measured again',)
    # One and the same float model, since the sample alone plays no part in it.
    torch.testing.assert_close(some.reference(batches[0]), more.reference(batches[0]))
    with pytest.raises(DataError, match=r'more than one value per channel, but of 1 read none does\. Give larger batches'):
        quantize(net, batches[2:], backend='tensorrt', recalibrate_norms=True, check=False)
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


class Recurrent(nn.Module):
    """A layer that no backend has integers for, before one that all have."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def test_recurrent_layers_are_listed_as_floats():
    record = quantize(Recurrent().eval(), [torch.randn(4, 7, 6)], backend='inductor', check=False).record
    assert record.other_ops['lstm'] == 1


class Exploding(nn.Module):
    """Infinite for large inputs, in what it gives or on the way."""

    def __init__(self, inside):
        super().__init__()
        self.first, self.second, self.inside = nn.Linear(6, 6), nn.Linear(6, 3), inside

    def forward(self, x):
        large = self.second(self.first(x).exp())
        return self.second(1 / (1 + self.first(x).exp())) + 0 * large.isinf() if self.inside else large


@pytest.mark.parametrize('activation', ['histogram', 'min_max', 'moving_average', 'percentile', 'mse'])
def test_what_becomes_infinite_in_a_later_batch_is_refused(activation):
    good = torch.randn(8, 6)
    with pytest.raises(DataError, match=r'batch 1 of the calibration data|has no range'):
        quantize(Exploding(False).eval(), [good, 1000 * good, good], backend='onnxruntime', activation=activation, check=False)


class Drawing(nn.Module):
    """Computes something else at each call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x):
        return self.layer(x + torch.rand_like(x))


def test_a_model_that_draws_numbers_is_refused():
    with pytest.raises(ExportError, match=r'gives something else than the model: output 0 differs by .* draw random numbers'):
        quantize(Drawing().eval(), [torch.rand(8, 6)], backend='tensorrt')


class Padded(nn.Module):
    """Reads some positions of an encoder that leaves padded ones out."""

    def __init__(self, reads):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.head, self.reads = nn.TransformerEncoder(layer, 1), nn.Linear(16, 3), reads

    def forward(self, x, mask):
        return self.reads(self.head(self.encoder(x, src_key_padding_mask=mask)))


@pytest.mark.filterwarnings('ignore:.*nested tensors')
def test_an_encoder_with_padding_is_quantized_unless_padded_positions_are_read():
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[:, 4:] = True
    mask[0, 2:] = True
    data = [{'x': torch.randn(4, 5, 16), 'mask': mask}]
    found = quantize(Padded(lambda outputs: outputs[:, 0]).eval(), data, backend='onnxruntime')
    assert found.check.ran
    with pytest.raises(ExportError, match='zeros for padded positions'):
        quantize(Padded(lambda outputs: outputs.mean(1)).eval(), data, backend='onnxruntime')


def test_a_model_that_already_gives_nan_is_refused():
    net = small_net()
    with torch.no_grad():
        net.head.weight[0, 0] = float('nan')
    with pytest.raises(DataError, match='NaN or infinite outputs'):
        quantize(net, image_batches(), backend='tensorrt')


class Branching(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


def test_a_model_that_does_not_export_is_refused_and_untouched():
    net = nn.Sequential(nn.Linear(3, 3), Branching()).train()
    with pytest.raises(ExportError, match=r'test_quantizing\.py:\d+: `return x if x\.mean'):
        quantize(net, [torch.rand(4, 3)], backend='tensorrt')
    assert net.training


def test_an_op_that_the_backend_has_no_integers_for_is_left_in_float_and_listed():
    pytest.importorskip('executorch')
    result = quantize(small_transformer(), token_batches(), backend='executorch', check=False)
    assert set(result.record.left) == {'0:matmul', '0:matmul_2'}
    assert result.record.other_ops['softmax'] == 1
    assert 'leaves this matmul in float' in str(result)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'ignored': 'heed'}, "Did you mean 'head'"),
        ({'ignored': '*'}, 'every layer is ignored'),
        ({'max_drop': 0.1}, 'needs the metric'),
        ({'max_drop': -1, 'metric': len}, 'needs the metric'),
        ({'backend': 'tensort'}, "Did you mean 'tensorrt'"),
        ({'batches': 0}, 'positive integer'),
        ({'smooth_alpha': 2}, 'between 0 and 1'),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        quantize(small_net(), image_batches(), **{'backend': 'tensorrt', **options})


def test_a_model_without_layers_is_refused():
    with pytest.raises(ConfigError, match='no layer that the backend'):
        quantize(nn.Sequential(nn.ReLU()), [torch.rand(4, 3)], backend='tensorrt')


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigError, match=r'takes an nn\.Module'):
        quantize(torch.relu, [torch.rand(4, 3)])


def test_a_file_with_another_ending_is_refused(tmp_path):
    result = quantize(small_net(), image_batches(), backend='tensorrt')
    with pytest.raises(ConfigError, match=r"ends in '\.onnx'"):
        result.export(tmp_path / 'model.pte')
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_computes_something_else_is_an_error_that_says_where(tmp_path, monkeypatch):
    import dataclasses

    net, data = small_net(), image_batches()

    def wrong(path, threads, precision):
        def run(tensors):
            found = [result.model(*tensors).detach().clone()]
            found[0][0, 7] += 100
            return found

        return run

    result = quantize(net, data, backend=dataclasses.replace(backend('onnxruntime'), load=wrong), check=False)
    with pytest.raises(ExportError, match=r'output 0 differs .* batch 8 .* at \(0, 7\)'):
        result.export(tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


def test_an_output_of_another_shape_is_an_error():
    with pytest.raises(ExportError, match='outputs of the shapes'):
        compared(lambda x: x, lambda tensors: [tensors[0][:1]], backend('onnxruntime'), [[((torch.rand(2, 3),), {})]], 0.1)


def test_latencies_are_measured_beside_the_float_model():
    pytest.importorskip('onnxruntime')
    result = quantize(small_net(), image_batches(), backend='onnxruntime', check=False)
    times = result.latency(runs=3)
    assert list(times) == ['int8', 'f32']
    assert times.ratio('int8', 'f32').value > 0
    run = result.prepare()
    assert sqnr(result(image_batches()[0][:2]), run(image_batches()[0][:2])[0]) > 25


@torch.no_grad()
@pytest.mark.parametrize('name', ['onnxruntime', 'openvino', 'inductor'])
def test_bound_calls_compute_what_the_runtime_does(name):
    for module in backend(name).modules:
        pytest.importorskip(module)
    net, x = small_net(), image_batches()[0][:1]
    result = quantize(net, image_batches(), backend=name, check=False)
    found = result.bind(x)()[0]
    torch.testing.assert_close(torch.as_tensor(found), result.prepare()(x)[0].reshape(found.shape))
    assert sqnr(net(x), torch.as_tensor(result.bind(x, floats=True)()[0]).reshape(net(x).shape)) > 60


@pytest.mark.parametrize('name', ['openvino', 'onnxruntime', 'inductor'])
def test_inputs_that_a_runtime_does_not_take_are_told(name):
    for module in backend(name).modules:
        pytest.importorskip(module)
    result = quantize(small_net(), image_batches(), backend=name, check=False)
    wrong = torch.rand(1, 5, 8, 8)
    with pytest.raises(EstimateError, match=r'does not take inputs of the shapes \(1, 5, 8, 8\)|failed while it was measured'):
        result.latency(wrong, runs=1)
    with pytest.raises(DataError, match='NaN'):
        result.bind(torch.full((1, 5, 8, 8), float('nan')))
    with pytest.raises(DataError, match='Arguments are given as the calibration data had them'):
        result.bind((image_batches()[0][:1],) * 2)


def test_samples_of_one_batch_size_are_held_to_the_limit_together():
    calls = [((torch.full((1, 4), float(number + 1)),), {}) for number in range(4)]

    def off_by(gaps):
        left = iter(gaps)
        return lambda tensors: [tensors[0] + next(left)]

    # The outputs have a mean square of 7.5; the differences one of 0.04 / 4 and 4 / 4.
    check = compared(lambda x: x, off_by([0.2, 0, 0, 0]), backend('onnxruntime'), [calls], 0.05)
    assert check.difference == pytest.approx((0.01 / 7.5) ** 0.5)
    with pytest.raises(ExportError, match=r'differs by 36\.5% .* at \(0, 0\) of sample 2: 5 instead of 3'):
        compared(lambda x: x, off_by([0, 0, 2.0, 0]), backend('onnxruntime'), [calls], 0.2)
    with pytest.raises(ExportError, match='differs by inf'):
        compared(lambda x: x, off_by([0, 0, float('nan'), 0]), backend('onnxruntime'), [calls], 0.2)


def test_labels_beside_scores_are_not_compared():
    scores = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    check = compared(
        lambda x: (x, x.argmax(1), x > 1),
        lambda tensors: [tensors[0], 1 - tensors[0].argmax(1), tensors[0] > 9],
        backend('onnxruntime'),
        [[((scores,), {})]],
        0.02,
    )
    assert (check.difference, check.limit) == (0, 0.02)
    with pytest.raises(ExportError, match='outputs of the shapes'):
        compared(
            lambda x: (x, x.argmax(1)),
            lambda tensors: [tensors[0], tensors[0].argmax(1)[:1]],
            backend('onnxruntime'),
            [[((scores,), {})]],
            0.02,
        )


def test_labels_alone_may_differ_in_a_fifth_of_them():
    calls = [[((torch.eye(10),), {})]]

    def wrong(count):
        return lambda tensors: [tensors[0].argmax(1).where(torch.arange(10) >= count, torch.tensor(77))]

    for count in (0, 2):
        check = compared(lambda x: x.argmax(1), wrong(count), backend('onnxruntime'), calls, 0.02)
        assert check.difference == pytest.approx(count / 10)
        assert check.limit == 0.2
    with pytest.raises(ExportError, match=r'differs in 30\.0% of its values at batch 10 \(at most 20\.0%\); .* at \(0,\): 77 '):
        compared(lambda x: x.argmax(1), wrong(3), backend('onnxruntime'), calls, 0.02)
    with pytest.raises(ExportError, match=r'differs in 100\.0% of its values'):
        compared(lambda x: x > 0.5, lambda tensors: [tensors[0] < 0.5], backend('onnxruntime'), calls, 0.02)


def test_a_backbone_whose_train_returns_nothing():
    """As those of mmpretrain and mmdet do, of which `eval()` gives None."""

    class Backbone(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)

    torch.manual_seed(0)
    net = Backbone(nn.Linear(8, 4), nn.ReLU())
    found = quantize(net, [torch.rand(4, 8)], backend='onnxruntime', activation='min_max')
    x = torch.rand(4, 8)
    assert (found.prepare()(x)[0] - net(x)).abs().max() < 0.05
