import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from strop.errors import ConfigError, DataError, TrainingError
from strop.quantization import (
    LearnableFakeQuantize,
    QConfig,
    QuantSpec,
    apply_schedule,
    calibrate,
    convert,
    fake_quantizers,
    float_again,
    parameter_groups,
    prepare_qat,
    quantizable,
)

NAMES = ['int8', 'int4', 'lsq8', 'lsq4', 'lsq3', 'lsq2', 'lsq+4', 'pact4']
X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Net(nn.Module):
    """Convolutions with batch norms, one with channels of negative scale, a fork, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Linear(4, 3)
        nn.init.normal_(self.norm1.weight)
        nn.init.normal_(self.norm1.bias)

    def forward(self, x):
        x = torch.relu(self.norm1(self.stem(x)))
        x = x + self.body(x)
        return self.head(self.up(x).mean((2, 3)))


class Named(nn.Sequential):
    """Layers that are called by keyword."""

    def forward(self, x):
        for layer in self:
            x = layer(input=x)
        return x


def net():
    torch.manual_seed(0)
    return Net()


def trained(model, steps=8, lr=0.05):
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    losses = []
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def test_the_model_keeps_its_names_classes_and_weights():
    model = net()
    prepared = prepare_qat(model, 'lsq4')
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in prepared.named_parameters() if 'fake_quant' not in name
    ]
    assert type(prepared.stem) is nn.Conv2d
    assert not fake_quantizers(model)
    prepared.load_state_dict(model.state_dict(), strict=False)
    with float_again(prepared):
        assert torch.equal(prepared.eval()(X), model.eval()(X))
    assert 'weight' not in vars(prepared.stem)


@pytest.mark.parametrize('name', NAMES)
def test_it_trains_and_converts_to_the_same_outputs(name):
    prepared = prepare_qat(net(), name)
    losses = trained(prepared)
    assert losses[-1] < losses[0]
    grads = {name for name, parameter in prepared.named_parameters() if parameter.grad is None}
    assert grads == set()
    wanted = prepared(X)
    integers = convert(prepared)
    assert torch.equal(integers(X), wanted)
    assert {module.codes.dtype for module in integers.modules() if hasattr(module, 'codes')} == {torch.int8}
    assert not fake_quantizers(integers)
    # Folding changes floats in their last digits; a code may tip over, by a step of one input.
    folded = convert(prepared, X)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert (folded(X) - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_first_and_last_layer_have_eight_bits_where_the_others_have_fewer():
    highest = {name: quantizer.quant_max for name, quantizer in fake_quantizers(prepare_qat(net(), 'lsq4')).items()}
    assert highest['stem.weight_fake_quant'] == highest['head.weight_fake_quant'] == 127
    assert highest['body.0.weight_fake_quant'] == highest['up.weight_fake_quant'] == 7
    same = fake_quantizers(prepare_qat(net(), QConfig.of('lsq4'), first_last=None))
    assert {quantizer.quant_max for name, quantizer in same.items() if 'weight' in name} == {7}
    other = fake_quantizers(prepare_qat(net(), 'lsq2', first_last='lsq4'))
    assert other['head.weight_fake_quant'].quant_max == 7


def test_options_by_name():
    prepared = prepare_qat(net(), 'lsq4', overrides={'body': 'lsq2', 'up': None}, ignored=['head'])
    highest = {name: quantizer.quant_max for name, quantizer in fake_quantizers(prepared).items() if 'weight' in name}
    assert highest == {'stem.weight_fake_quant': 127, 'body.0.weight_fake_quant': 1}
    with pytest.raises(ConfigError, match=r"matches 'hed'.*Did you mean 'head'"):
        prepare_qat(net(), ignored=['hed'])
    with pytest.raises(ConfigError, match='Nothing is left'):
        prepare_qat(net(), ignored=['*'])
    with pytest.raises(ConfigError, match='no convolution or linear'):
        prepare_qat(nn.ReLU())


def test_attention_reads_its_output_layer_without_calling_it_so_it_stays_in_float():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert list(quantizable(model)) == ['linear1', 'linear2']
    prepared = prepare_qat(model, 'lsq8')
    assert torch.isfinite(prepared(torch.randn(2, 3, 8))).all()


@pytest.mark.parametrize('name', ['int4', 'lsq4'])
def test_inputs_given_by_keyword_are_quantized(name):
    torch.manual_seed(0)
    layers, data = (nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), X[:, 0, 0]
    plain, named = (
        calibrate(prepare_qat(kind(*layers), name, first_last=None), [data]).eval() for kind in (nn.Sequential, Named)
    )
    assert torch.equal(named(data), plain(data))
    assert not torch.equal(named(data), Named(*layers)(data))
    again = prepare_qat(named, name, first_last=None)
    for layer in (again[0], again[2]):
        assert list(layer._forward_pre_hooks_with_kwargs) == list(layer._forward_pre_hooks)


def test_calibration_alone_is_post_training_quantization():
    model = net().eval()
    prepared = calibrate(prepare_qat(model, 'int8'), [X[:8], X[8:]])
    error = (prepared.eval()(X) - model(X)).abs().max()
    assert 0 < error < 0.1 * model(X).abs().max()
    assert prepared.training is False


def test_training_goes_on_from_calibrated_steps():
    observed = calibrate(prepare_qat(net(), QConfig.of('int8')), [X])
    learned = prepare_qat(observed, 'lsq8')
    quantizer = learned.stem.weight_fake_quant
    assert torch.equal(learned.eval()(X), observed.eval()(X))
    assert isinstance(quantizer, LearnableFakeQuantize)
    assert torch.equal(quantizer.scale.detach(), observed.stem.weight_fake_quant.scale)
    again = prepare_qat(observed, QConfig(QConfig.of('int8').weight, None))
    assert torch.equal(again.stem.weight_fake_quant.scale, observed.stem.weight_fake_quant.scale)
    assert not hasattr(again.stem, 'input_fake_quant')


def test_the_weight_is_shown_again_where_a_forward_fails():
    prepared = prepare_qat(nn.Sequential(nn.Linear(3, 2)), 'lsq8')
    with pytest.raises(RuntimeError):
        prepared(torch.ones(2, 5))
    assert 'weight' not in vars(prepared[0])
    assert prepared[0].weight is prepared[0]._parameters['weight']


def test_copies_and_pickles_work_alike():
    prepared = prepare_qat(net(), 'lsq4')
    trained(prepared, steps=2)
    wanted = prepared(X)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(other(X), wanted)
        with torch.no_grad():
            other.stem.weight.zero_()
        assert torch.equal(prepared(X), wanted)


def test_schedules_follow_the_epoch():
    prepared = prepare_qat(net(), 'int8')
    options = dict(fake_quant_begin=2, disable_observer_begin=3, freeze_bn_begin=4)
    seen = []
    for epoch in (1, 2, 3, 4):
        prepared.train()
        apply_schedule(prepared, epoch, **options)
        quantizer = prepared.stem.input_fake_quant
        seen.append((bool(quantizer.fake_quant_enabled), bool(quantizer.observer_enabled), prepared.norm1.training))
        before = quantizer.scale.clone()
        prepared(epoch * X)
        assert torch.equal(before, quantizer.scale) == (epoch >= 3)
    assert seen == [(False, True, True), (True, True, True), (True, False, True), (True, False, False)]


def test_a_checkpoint_comes_back_with_steps_and_observers():
    prepared = prepare_qat(net(), 'int8')
    trained(prepared, steps=3)
    other = prepare_qat(net(), 'int8')
    other.load_state_dict(prepared.state_dict())
    assert torch.equal(other.eval()(X), prepared(X))
    prepared.train()(X)
    other.train()(X)
    for first, second in zip(prepared.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('lsq4', {}, 'lowest code -128, not -8'),
        ('lsq8', dict(ignored=['up']), 'up.weight_fake_quant is only in the checkpoint'),
        ('int8', {}, 'kind 2, not 1'),
    ],
)
def test_a_checkpoint_of_another_qconfig_is_refused_with_what_differs(name, options, message):
    weight = QConfig.of('lsq8')
    stored = prepare_qat(net(), QConfig(weight.weight, weight.input), first_last=None)
    trained(stored, steps=1)
    other = prepare_qat(net(), name, first_last=None, **options)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    state = stored.state_dict()
    if message.startswith('lowest'):
        state = dict(state)
        state['stem.weight_fake_quant.form'] = torch.tensor([-128, 127, 1, 1, 2])
    with pytest.raises(ConfigError, match=message):
        other.load_state_dict(state, strict=False)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_weights_of_a_float_model_load():
    prepared = prepare_qat(net(), 'lsq4')
    other = net()
    nn.init.normal_(other.head.weight)
    prepared.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(prepared.head.weight, other.head.weight)


def test_without_data_conversion_and_evaluation_say_so():
    prepared = prepare_qat(net(), 'lsq8')
    with pytest.raises(ConfigError, match=r"'stem.weight_fake_quant', .* has seen no data"):
        convert(prepared)
    with pytest.raises(TrainingError, match='has seen no data'):
        prepared.eval()(X)
    with pytest.raises(ConfigError, match='call prepare_qat first'):
        convert(net())
    with pytest.raises(ConfigError, match='call prepare_qat first'):
        calibrate(net(), [X])


def test_bad_calibration_data_are_refused_and_change_nothing():
    prepared = prepare_qat(net(), 'int8')
    for data, message in (([], 'no'), ([X + float('nan')], 'NaN')):
        with pytest.raises(DataError, match=message):
            calibrate(prepared, data)
    assert not any(quantizer.observed for quantizer in fake_quantizers(prepared).values())


@pytest.mark.parametrize('name', ['int8', 'lsq8', 'pact8'])
def test_a_calibration_that_would_change_nothing_is_refused(name):
    prepared = calibrate(prepare_qat(net(), name), [X])
    before = {key: value.clone() for key, value in prepared.state_dict().items()}
    if name == 'int8':
        calibrate(prepared, [9 * X])
        assert prepared.stem.input_fake_quant.scale > before['stem.input_fake_quant.scale']
    else:
        with pytest.raises(ConfigError, match='change nothing: learned steps begin with the first data'):
            calibrate(prepared, [9 * X])
        assert all(torch.equal(value, before[key]) for key, value in prepared.state_dict().items())
    apply_schedule(prepared, 2, disable_observer_begin=2)
    with pytest.raises(ConfigError, match='observers are switched off'):
        calibrate(prepared, [9 * X])
    fresh = prepare_qat(net(), name)
    apply_schedule(fresh, 2, disable_observer_begin=2)
    with pytest.raises(ConfigError, match='observers are switched off'):
        calibrate(fresh, [X])
    for quantizer in fake_quantizers(fresh).values():
        quantizer.enable_observer()
    assert calibrate(fresh, [X]).stem.input_fake_quant.observed


def test_weights_alone_are_calibrated_once_where_their_steps_are_learned():
    weight = QConfig.of('lsq4').weight
    prepared = calibrate(prepare_qat(net(), QConfig(weight, None)), [X])
    with pytest.raises(ConfigError, match='would change nothing'):
        calibrate(prepared, [X])


def test_calibration_data_of_another_shape_are_refused():
    prepared = prepare_qat(net(), 'int8')
    with pytest.raises(DataError, match=r"Net does not take batch 0 of the calibration data.*16, 4, 8, 8, 'float32'"):
        calibrate(prepared, [torch.rand(16, 4, 8, 8)])


def test_a_bad_qconfig_leaves_a_model_that_is_prepared_in_place_as_it_is():
    model = net()
    with pytest.raises(ConfigError, match='must be 2 to 8'):
        prepare_qat(model, 'int8', overrides={'head': 'int1'}, inplace=True)
    with pytest.raises(ConfigError, match='PACT clips inputs'):
        pact = QConfig(QuantSpec(fake_quant='PACTFakeQuantize'))
        prepare_qat(model, 'int8', overrides={'head': pact}, inplace=True)
    with pytest.raises(ConfigError, match='every layer is ignored'):
        prepare_qat(model, 'int8', ignored='*', inplace=True)
    assert not fake_quantizers(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ('compute', 'remove', 'message'),
    [
        (parametrizations.weight_norm, lambda layer: parametrize.remove_parametrizations(layer, 'weight'), 'or ignore'),
        (parametrizations.spectral_norm, lambda layer: parametrize.remove_parametrizations(layer, 'weight'), 'or ignore'),
        (nn.utils.spectral_norm, nn.utils.remove_spectral_norm, 'remove_spectral_norm'),
        (nn.utils.weight_norm, nn.utils.remove_weight_norm, 'remove_weight_norm'),
        (
            lambda layer: prune.l1_unstructured(layer, 'weight', 0.5),
            lambda layer: prune.remove(layer, 'weight'),
            'prune.remove',
        ),
    ],
)
@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_a_layer_whose_weight_is_computed_is_refused_with_what_makes_it_plain(compute, remove, message):
    model = nn.Sequential(compute(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(ConfigError, match=rf"'0'.*{message}"):
        prepare_qat(model, 'int2', first_last=None)
    assert not any(hasattr(module, 'weight_fake_quant') for module in model.modules())
    remove(model[0])
    prepared = calibrate(prepare_qat(model, 'int2', first_last=None), [X]).eval()
    assert prepared[0].weight_fake_quant(prepared[0].weight)[0].unique().numel() <= 4
    assert torch.equal(convert(prepared)(X), prepared(X))


def test_a_parametrized_layer_may_be_ignored():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 2, 1)).eval()
    prepared = calibrate(prepare_qat(model, 'int8', ignored='0'), [X]).eval()
    assert torch.equal(prepared[0](X), model[0](X))
    assert torch.equal(convert(prepared)(X), prepared(X))


@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_an_ignored_layer_that_cannot_be_copied_is_named():
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 2, 1))
    with pytest.raises(ConfigError, match="'0' is no parameter"):
        prepare_qat(model, 'int8', ignored='0')
    assert list(fake_quantizers(prepare_qat(model, 'int8', ignored='0', inplace=True))) == [
        '1.weight_fake_quant',
        '1.input_fake_quant',
    ]


def test_a_step_for_each_channel_of_an_input_is_refused():
    model = net()
    spec = QuantSpec(per_channel=True, observer='PerChannelMinMaxObserver')
    with pytest.raises(ConfigError, match=r'one step for the whole tensor.*per_channel=False'):
        prepare_qat(model, QConfig(QConfig.of('int8').weight, spec), inplace=True)
    assert not fake_quantizers(model)
    assert fake_quantizers(prepare_qat(model, QConfig(spec, None)))


def test_one_pattern_of_ignored_layers_may_be_a_string():
    assert list(quantizable(net(), ignored='body')) == ['stem', 'up', 'head']
    assert not any(name.startswith('head') for name in fake_quantizers(prepare_qat(net(), ignored='head')))


def test_a_layer_that_is_never_called_is_named():
    model = nn.Sequential(nn.Linear(3, 3))
    model.spare = nn.Identity()
    model.spare.layer = nn.Linear(3, 3)
    with pytest.raises(DataError, match=r'spare\.layer'):
        calibrate(prepare_qat(model, 'int8'), [torch.rand(4, 3)])


def test_elastic_slices_and_quantized_weights_share_their_place():
    prepared = prepare_qat(nn.Sequential(nn.Linear(4, 3)), 'lsq8')
    layer = prepared[0]
    cut = layer.weight[:, :2].detach()
    layer.__dict__['weight'] = cut
    prepared(torch.rand(2, 2))
    assert layer.__dict__['weight'] is cut


@pytest.mark.parametrize('name', ['int8', 'lsq4', 'lsq+4', 'pact4'])
def test_it_trains_in_mixed_precision(name):
    prepared = prepare_qat(net(), name)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16):
            loss = nn.functional.cross_entropy(prepared(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    grads = {key: parameter.grad for key, parameter in prepared.named_parameters()}
    assert all(grad is not None and grad.dtype == torch.float32 and torch.isfinite(grad).all() for grad in grads.values())


@pytest.mark.parametrize('name', ['resnet10t', 'vit_tiny_patch16_224'])
def test_models_of_timm_train_and_convert(name):
    timm = pytest.importorskip('timm')
    pytest.importorskip('torchao')
    torch.manual_seed(0)
    small = dict(img_size=32, patch_size=8, depth=2) if 'vit' in name else {}
    model = timm.create_model(name, num_classes=4, **small)
    prepared = prepare_qat(model, 'lsq4')
    images = torch.randn(8, 3, 32, 32)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    prepared.train()
    for _ in range(2):
        loss = nn.functional.cross_entropy(prepared(images), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = prepared.eval()(images)
    assert torch.equal(convert(prepared)(images), wanted)
    folded = convert(prepared, images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert (folded(images) - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize(('name', 'number'), [('lsq4', 4), ('lsq+4', 6), ('pact4', 0), ('int4', 0)])
def test_learned_steps_are_not_decayed(name, number):
    model = prepare_qat(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), name, first_last=None)
    groups = parameter_groups(model, 0.5)
    assert [group['weight_decay'] for group in groups] == ([0.5, 0.0] if number else [0.5])
    found = [id(parameter) for group in groups for parameter in group['params']]
    assert sorted(found) == sorted(map(id, model.parameters()))
    assert len(groups[-1]['params']) == (number or len(found))


def test_a_config_leaves_learned_steps_undecayed_by_their_names():
    from mmengine.optim import build_optim_wrapper

    model = prepare_qat(nn.Sequential(nn.Linear(4, 4)), 'lsq+8')
    keys = {'_fake_quant.scale': dict(decay_mult=0), '_fake_quant.offset': dict(decay_mult=0)}
    optimizer = dict(type='SGD', lr=0.1, weight_decay=0.5)
    wrapper = build_optim_wrapper(model, dict(optimizer=optimizer, paramwise_cfg=dict(custom_keys=keys)))
    free = {id(parameter) for group in wrapper.param_groups if not group['weight_decay'] for parameter in group['params']}
    assert free == {id(parameter) for name, parameter in model.named_parameters() if 'fake_quant' in name}
