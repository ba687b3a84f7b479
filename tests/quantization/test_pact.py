import pytest
import torch

from strop.errors import ConfigError
from strop.quantization import PACTFakeQuantize


def test_the_level_begins_with_the_largest_value_and_learns():
    quantizer = PACTFakeQuantize(quant_max=15)
    x = torch.tensor([0.0, 1.0, 4.0])
    quantizer(x)
    assert quantizer.alpha.item() == 4
    quantizer(2 * x).sum().backward()
    assert quantizer.alpha.grad.item() == 1
    scale, zero = quantizer.calculate_qparams()
    assert scale.item() == pytest.approx(4 / 15)
    assert zero.item() == 0


def test_values_below_zero_give_two_sides():
    quantizer = PACTFakeQuantize(quant_max=15)
    out = quantizer(torch.tensor([-3.0, 1.0, 2.0]))
    assert quantizer.zero_point.item() == 8
    assert out[0].item() == pytest.approx(-3)


def test_values_below_zero_are_clipped_at_the_level():
    quantizer = PACTFakeQuantize(quant_max=3)
    quantizer(torch.tensor([-3.0, 1.0, 2.0]))
    assert quantizer.alpha.item() == 3
    assert quantizer.zero_point.item() == 2
    assert (quantizer.quant_min, quantizer.quant_max) == (1, 3)
    assert quantizer.form[0] == 0  # as checkpoints have it
    quantizer.eval()
    assert quantizer(torch.tensor([-5.0, -1.6, 1.0, 5.0])).tolist() == [-3, -3, 0, 3]
    assert quantizer.codes(torch.tensor([-5.0, -1.6, 1.0, 5.0])).tolist() == [1, 1, 2, 3]
    other = PACTFakeQuantize(quant_max=3).eval()
    other.load_state_dict(quantizer.state_dict())
    assert other(torch.tensor([-5.0])).item() == -3


def test_without_values_below_zero_all_codes_are_used():
    quantizer = PACTFakeQuantize(quant_max=3)
    assert quantizer(torch.tensor([-0.0, 1.2, 3.0])).tolist() == [0, 1, 3]
    assert quantizer.quant_min == 0
    assert quantizer.eval()(torch.tensor([-5.0, 1.6])).tolist() == [0, 2]


@pytest.mark.parametrize(
    ('zero', 'middle', 'level', 'step'),
    [
        (0, 0, 15 * 0.25, 0.25),
        (8, 8, 7 * 0.25, 0.25),
        (3, 8, 12 * 0.25, 12 * 0.25 / 7),
        (12, 8, 12 * 0.25, 12 * 0.25 / 7),
        (15, 8, 15 * 0.25, 15 * 0.25 / 7),
    ],
)
def test_it_begins_with_any_zero_of_another_quantizer(zero, middle, level, step):
    quantizer = PACTFakeQuantize(quant_max=15)
    quantizer.begin(torch.tensor([0.25]), torch.tensor([zero], dtype=torch.int32))
    found, place = quantizer.calculate_qparams()
    assert quantizer.alpha.item() == level
    assert place.item() == middle
    assert found.item() == pytest.approx(step)
    ends = quantizer.eval()(torch.tensor([-99.0, 99.0])).tolist()
    assert ends == pytest.approx([-level if middle else 0, level])


def test_weight_decay_pulls_the_level_down():
    quantizer = PACTFakeQuantize(quant_max=3, alpha=10.0)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1, weight_decay=0.1)
    quantizer(torch.tensor([0.5])).sum().backward()
    optimizer.step()
    assert quantizer.alpha.item() == pytest.approx(9.9)


def test_levels_of_channels_and_signed_codes_are_refused():
    with pytest.raises(ConfigError, match='Take LSQ for weights'):
        PACTFakeQuantize(quant_min=-8, quant_max=7, dtype=torch.qint8)
    with pytest.raises(ConfigError, match='one level'):
        PACTFakeQuantize(qscheme=torch.per_channel_affine)
