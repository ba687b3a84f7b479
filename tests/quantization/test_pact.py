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
