import pytest
import torch

from strop.errors import ConfigError
from strop.quantization import FakeQuantize, LearnableFakeQuantize, PACTFakeQuantize, QConfig, QuantSpec
from strop.quantization.qconfig import from_mmrazor


@pytest.mark.parametrize('bits', [1, 0, -3, 9, 4.0, True, '8'])
def test_bits_outside_two_to_eight_are_refused(bits):
    with pytest.raises(ConfigError, match='2 to 8'):
        QuantSpec(bits=bits)


def test_names_of_one_bit_are_refused():
    with pytest.raises(ConfigError, match='2 to 8'):
        QConfig.of('lsq1')
    with pytest.raises(ConfigError, match="Did you mean 'lsq4'"):
        QConfig.of('lqs4')


@pytest.mark.parametrize(
    ('name', 'weight', 'inputs'),
    [
        ('int8', FakeQuantize, FakeQuantize),
        ('lsq4', LearnableFakeQuantize, LearnableFakeQuantize),
        ('lsq+3', LearnableFakeQuantize, LearnableFakeQuantize),
        ('pact2', FakeQuantize, PACTFakeQuantize),
    ],
)
def test_names_stand_for_methods_and_bits(name, weight, inputs):
    qconfig = QConfig.of(name)
    built = qconfig.weight.build(is_weight=True), qconfig.input.build()
    assert [type(quantizer) for quantizer in built] == [weight, inputs]
    bits = int(name[-1])
    assert built[0].quant_max == 2 ** (bits - 1) - 1
    assert (built[1].quant_min, built[1].quant_max) == (0, 2**bits - 1)
    assert built[0].is_per_channel
    assert not QConfig.of(name, per_channel=False).weight.build().is_per_channel
    if name == 'lsq+3':
        assert built[1].offset is not None


CONFIG = dict(
    w_observer=dict(type='mmrazor.LSQPerChannelObserver'),
    a_observer=dict(type='mmrazor.LSQObserver'),
    w_fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
    a_fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
    w_qscheme=dict(qdtype='qint8', bit=4, is_symmetry=True),
    a_qscheme=dict(qdtype='quint8', bit=4, is_symmetry=True, averaging_constant=0.1),
)


def test_a_qconfig_of_mmrazor_is_translated():
    qconfig = from_mmrazor(CONFIG)
    weight, inputs = qconfig.weight.build(is_weight=True), qconfig.input.build()
    assert isinstance(weight, LearnableFakeQuantize)
    assert (weight.quant_min, weight.quant_max, weight.qscheme) == (-8, 7, torch.per_channel_symmetric)
    assert (inputs.quant_min, inputs.quant_max, inputs.qscheme) == (0, 15, torch.per_tensor_symmetric)


def test_arguments_of_the_parts_reach_them():
    given = {**CONFIG, 'a_fake_quant': dict(type='LearnableFakeQuantize', zero_point_trainable=True)}
    assert from_mmrazor(given).input.build().zero_point_trainable
    moving = dict(type='MovingAverageMinMaxObserver')
    given = {**CONFIG, 'a_observer': moving, 'a_fake_quant': dict(type='FakeQuantize')}
    pytest.importorskip('torchao')
    assert from_mmrazor(given).input.build().activation_post_process.averaging_constant == 0.1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(w_obsever=dict(type='LSQObserver')), "Did you mean 'w_observer'"),
        (dict(w_observer=None), '`w_observer` of a qconfig must be a mapping with a type'),
        (dict(w_qscheme=dict(qdtype='int4')), "must be 'qint8' or 'quint8'"),
        (dict(w_qscheme=dict(qdtype='qint8', bit=1)), '2 to 8'),
    ],
)
def test_a_wrong_qconfig_says_what_is_wrong(change, message):
    with pytest.raises(ConfigError, match=message):
        from_mmrazor({**CONFIG, **change})


def test_a_fake_quantizer_that_is_none_is_refused():
    with pytest.raises(ConfigError, match='not a fake quantizer'):
        QuantSpec(fake_quant='torch.nn.Identity', observer='LSQObserver').build()
