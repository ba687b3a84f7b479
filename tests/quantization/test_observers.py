import pytest
import torch

from strop.errors import ConfigError
from strop.quantization.observers import EPS, OBSERVERS, observer, shares, squared_error

pytest.importorskip('torchao')

AFFINE = dict(dtype=torch.uint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=255)
WEIGHT = dict(dtype=torch.int8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127, ch_axis=0)


def fake_quantized(values, scale, zero_point, low, high):
    return ((torch.round(values / scale) + zero_point).clamp(low, high) - zero_point) * scale


def seen(made, *batches):
    for batch in batches:
        made(batch)
    return made.calculate_qparams()


def test_min_max_takes_the_whole_range_of_all_batches():
    scale, zero = seen(observer('min_max', weight=False)(**AFFINE), torch.tensor([0.0, 3.0]), torch.tensor([-2.1, 1.0]))
    assert float(scale) == pytest.approx(5.1 / 255)
    assert int(zero) == 105


def test_moving_average_forgets_an_outlier_slowly():
    made = observer('moving_average', weight=False)(**AFFINE)
    scale, _ = seen(made, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 101.0]))
    assert float(scale) == pytest.approx((1.0 + 0.01 * 100) / 255)


def test_percentile_leaves_outliers_out():
    torch.manual_seed(0)
    values = torch.cat([torch.rand(100_000), torch.tensor([50.0])])
    scale, _ = seen(observer('percentile', weight=False, percentile=99.9)(**AFFINE), values)
    assert 0.95 < float(scale) * 255 < 1.1
    whole, _ = seen(observer('min_max', weight=False)(**AFFINE), values)
    assert float(whole) * 255 == pytest.approx(50)


def test_all_of_a_percentile_of_100_is_kept():
    low, high = shares(torch.tensor([1.0, 5.0, 1.0]), torch.tensor(-1.0), torch.tensor(2.0), 100.0)
    assert (float(low), float(high)) == (-1.0, 2.0)


def test_the_range_of_least_error_loses_less_than_the_whole_one():
    name = 'mse'
    torch.manual_seed(0)
    values = torch.randn(50_000).pow(3)  # heavy tails
    low, high = 0, 15
    errors = {}
    for kind in ('min_max', name):
        scale, zero = seen(observer(kind, weight=False)(**(AFFINE | {'quant_max': high})), values)
        errors[kind] = float((fake_quantized(values, scale, zero, low, high) - values).square().mean())
    assert errors[name] < 0.8 * errors['min_max']


def test_the_mse_of_weights_is_the_least_of_the_ranges_tried_for_each_channel():
    torch.manual_seed(0)
    weight = torch.randn(4, 200).pow(3)
    scale, zero = seen(observer('mse', weight=True, per_channel=True)(**(WEIGHT | {'quant_min': -7, 'quant_max': 7})), weight)
    best = torch.full((4,), float('inf'))
    for share in torch.linspace(1, 0.2, 60):
        step = weight.abs().amax(1) * share / 7
        best = torch.minimum(best, (fake_quantized(weight, step[:, None], 0, -7, 7) - weight).square().mean(1))
    found = (fake_quantized(weight, scale[:, None], zero[:, None], -7, 7) - weight).square().mean(1)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-7)


def test_the_percentile_of_weights_is_that_of_each_channel():
    weight = torch.stack([torch.linspace(-1, 1, 1001), torch.linspace(-3, 3, 1001)])
    scale, _ = seen(observer('percentile', weight=True, per_channel=True, percentile=90)(**WEIGHT), weight)
    torch.testing.assert_close(scale * 127, torch.tensor([0.9, 2.7]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('name', ['min_max', 'mse', 'percentile'])
def test_a_weight_with_one_scale_has_that_of_all_its_values(name):
    settings = dict(dtype=torch.int8, qscheme=torch.per_tensor_symmetric, quant_min=-127, quant_max=127, ch_axis=None)
    if name == 'min_max':
        del settings['ch_axis']
    scale, zero = seen(observer(name, weight=True)(**settings), torch.randn(6, 50))
    assert scale.numel() == 1
    assert int(zero) == 0


def test_small_weights_keep_their_own_scale():
    weight = torch.randn(2, 50) * 1e-3
    scale, _ = seen(observer('min_max', weight=True, per_channel=True)(**WEIGHT), weight)
    torch.testing.assert_close(scale, weight.abs().amax(1) / 127)
    assert float(scale.min()) > EPS


def test_the_squared_error_is_that_of_float64_arithmetic():
    values, counts = torch.tensor([0.26, -1.4, 3.0]), torch.tensor([1.0, 2.0, 1.0])
    # 0.26 -> 0.5 * 1 = 0.5; -1.4 -> -1.5; 3.0 -> clamped to 2.0
    expected = ((0.5 - 0.26) ** 2 + 2 * 0.1**2 + 1.0) / 4
    assert float(squared_error(values, counts, torch.tensor(0.5), torch.tensor(0), -4, 4)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(name='histgram', weight=False), "Did you mean 'histogram'"),
        (dict(name='min_max', weight=False, per_channel=True), 'one range for the whole tensor'),
        (dict(name='histogram', weight=True), "'mse'"),
        (dict(name='moving_average', weight=True), "Use 'min_max'"),
        (dict(name='percentile', weight=False, percentile=0.999), 'above 50'),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(arguments, message):
    with pytest.raises(ConfigError, match=message):
        observer(arguments.pop('name'), **arguments)


def test_every_name_is_described():
    assert all(OBSERVERS.values())
