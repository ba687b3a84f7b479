"""Widths of channels as decisions: draws, verbs, configs, other decisions beside them, real models."""

import copy
import logging

import pytest
import torch
from torch import nn

from strop.errors import BindingError, ComponentTypeError, ConfigError, GraphError, SubnetError
from strop.mutables import (
    LayerChoice,
    MutableChannelUnit,
    OneShotMutableChannelUnit,
    Repeat,
    ValueChoice,
    attachments,
    dump_subnet,
    extract,
    load_subnet,
    space_of,
)
from strop.mutators import BaseMutator, ChannelAnalyzer, ChannelMutator, OneShotChannelMutator, SlimmableChannelMutator
from strop.mutators.channel import demo_inputs
from strop.randomness import seeded
from strop.registry import MODELS
from strop.testing import check_mutator


class Net(nn.Module):
    """Two coupled convolutions, a free one, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net().double()
        with torch.no_grad():
            model.bn.running_mean.uniform_(-1, 1)
            model.bn.running_var.uniform_(0.5, 1.5)
        return model.eval()


PARSE = dict(type='ChannelAnalyzer', demo_input=(2, 3, 8, 8))
X = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SLIM = dict(
    type='SlimmableChannelUnit', units={'stem': dict(candidate_choices=[2, 4, 8]), 'inner': dict(candidate_choices=[3, 6, 12])}
)


def one_shot(model, **config):
    return OneShotChannelMutator(config or None, PARSE, model=model)


# -- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'make',
    [
        lambda model: ChannelMutator(parse_cfg=PARSE, model=model),
        lambda model: ChannelMutator('L1MutableChannelUnit', PARSE, model=model),
        one_shot,
        lambda model: SlimmableChannelMutator(SLIM, PARSE, model=model, switch_norms=False),
    ],
)
def test_contract(make):
    check_mutator(make, net(), X)


def test_names_of_configs():
    for name, cls in [('ChannelMutator', ChannelMutator), ('mmrazor.OneShotChannelMutator', OneShotChannelMutator)]:
        assert type(MODELS.build(dict(type=name, parse_cfg=PARSE))) is cls


# -- equality ---------------------------------------------------------------------------------


def test_the_largest_subnet_is_the_original():
    model = net()
    expected = model(X)
    mutator = one_shot(model)
    assert torch.equal(model(X), expected)
    mutator.set_min_subnet()
    assert not torch.equal(model(X), expected)
    mutator.set_max_subnet()
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize('unit', ['SequentialMutableChannelUnit', 'L1MutableChannelUnit', 'OneShotMutableChannelUnit'])
def test_extracted_equals_active(unit):
    model = net()
    mutator = ChannelMutator(unit, PARSE, model=model)
    for step in range(5):
        with seeded(0, 'widths', step):
            mutator.set_subnet(mutator.sample_subnet())
        plain = extract(model)
        assert type(plain) is Net
        assert not attachments(plain)
        assert plain.inner.out_channels == mutator.widths.current['inner']
        torch.testing.assert_close(plain(X), model(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize(('name', 'size'), [('resnet18', 32), ('mobilenetv2_100', 32), ('vit_tiny_patch16_224', 64)])
def test_real_models(name, size):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    options = {'img_size': size} if name.startswith('vit') else {}
    model = timm.create_model(name, num_classes=10, **options).double().eval()
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        mutator = ChannelMutator(
            dict(type='SequentialMutableChannelUnit', default_args=dict(divisor=2)),
            dict(demo_input=(2, 3, size, size)),
            model=model,
        )
        assert torch.equal(model(x), expected)
        torch.manual_seed(1)
        mutator.set_subnet(mutator.sample_subnet())
        active = model(x)
        assert (active - expected).abs().max() > 1e-6
        torch.testing.assert_close(extract(model)(x), active, rtol=0, atol=1e-10)
        mutator.set_max_subnet()
        assert torch.equal(model(x), expected)


def test_sorting_changes_the_order_and_not_the_output():
    model = net()
    expected = model(X)
    mutator = one_shot(model)
    mutator.sort_channels()
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-12)
    norms = model.inner.weight.abs().sum((1, 2, 3)).tolist()
    assert norms == sorted(norms, reverse=True)
    mutator.sort_channels({'inner': torch.arange(12.0)})
    norms = model.inner.weight.abs().sum((1, 2, 3)).tolist()
    assert norms == sorted(norms)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-12)
    with pytest.raises(GraphError, match=r'shape \(12,\)'):
        mutator.sort_channels({'inner': torch.arange(3.0)})


# -- the space ----------------------------------------------------------------------------------


def test_choices_are_ratios_or_numbers():
    model = net()
    mutator = one_shot(model, type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=[0.25, 0.5, 1.0]))
    assert dict(mutator.sample_choices('min')) == {'stem': 0.25, 'inner': 0.25}
    mutator.set_choices({'stem': 0.5, 'inner': 1.0})
    assert mutator.current_choices == {'stem': 0.5, 'inner': 1.0}
    assert mutator.widths.current == {'stem': 4, 'inner': 12}
    mutator.release()
    mutator = one_shot(
        model, type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=[2, 8], choice_mode='number')
    )
    assert mutator.space['stem'].labels == (2, 8)
    assert space_of(model).count() == 4


def test_a_sequential_unit_takes_any_ratio():
    mutator = ChannelMutator(parse_cfg=PARSE, model=net())
    mutator.set_choices({'stem': 0.3, 'inner': 7})
    assert mutator.current_choices == {'stem': 2, 'inner': 7}
    with pytest.raises(SubnetError, match='none of the alternatives'):
        mutator.set_choices({'stem': 9, 'inner': 7})
    with pytest.raises(SubnetError, match='none of the alternatives'):
        mutator.set_choices({'stem': 1.5, 'inner': 7})
    assert mutator.current_choices == {'stem': 2, 'inner': 7}


def test_units_of_the_config():
    config = dict(
        type='OneShotMutableChannelUnit',
        default_args=dict(candidate_choices=[0.5, 1.0]),
        units={
            'stem_(0, 8)_8': dict(init_args=dict(num_channels=8, candidate_choices=[2, 4, 8], choice_mode='number'), choice=4),
            'inner': 0.5,
        },
    )
    mutator = OneShotChannelMutator(config, PARSE, model=net())
    assert mutator.current_choices == {'stem': 4, 'inner': 0.5}
    assert mutator.space['stem'].labels == (2, 4, 8)
    # `outer` is coupled to `stem`: its name means the same unit.
    mutator.set_choices({'architecture.outer_(0, 8)_8': 2, 'inner': 1.0})
    assert mutator.widths.current == {'stem': 2, 'inner': 12}


@pytest.mark.parametrize('unit', ['SequentialMutableChannelUnit', 'L1MutableChannelUnit', 'OneShotMutableChannelUnit'])
def test_the_config_is_dumped_and_read_back(unit):
    mutator = ChannelMutator(dict(type=unit, default_args=dict(divisor=2)), PARSE, model=net())
    torch.manual_seed(3)
    mutator.set_subnet(mutator.sample_subnet())
    for options in (dict(), dict(only_mutable_units=True), dict(with_unit_init_cfg=False)):
        again = MODELS.build(dict(mutator.config_template(**options)))
        again.prepare_from_supernet(net())
        assert again.current_choices == mutator.current_choices
        assert again.space == mutator.space
    axes = mutator.config_template(with_channels=True)['channel_unit_cfg']['units']['inner']['channels']
    assert axes == [['inner.weight', 0], ['inner.bias', 0], ['outer.weight', 1]]


def test_subnet_files(tmp_path):
    mutator = one_shot(net())
    mutator.set_min_subnet()
    dump_subnet(mutator.current_subnet(), tmp_path / 'subnet.json')
    model = net()
    other = one_shot(model)
    assert load_subnet(tmp_path / 'subnet.json', other.space) == mutator.current_subnet()
    other.set_subnet(load_subnet(tmp_path / 'subnet.json', other.space))
    expected = model(X)
    other.load_fix_subnet(tmp_path / 'subnet.json')
    assert model.stem.out_channels == 2
    assert not attachments(model)
    torch.testing.assert_close(model(X), expected)
    other = one_shot(net())
    other.load_fix_subnet(mutator.export_fix_subnet())


def test_groups_are_one_decision():
    model = net()
    mutator = OneShotChannelMutator(
        dict(type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0])),
        PARSE,
        model=model,
        custom_groups=[['stem', 'inner']],
    )
    assert list(mutator.space) == ['stem']
    mutator.set_min_subnet()
    assert mutator.widths.current == {'stem': 4, 'inner': 6}


def test_ignored_channels_do_not_vary():
    mutator = ChannelMutator(parse_cfg=PARSE, model=net(), ignored='head')
    assert [unit.unit for unit in mutator.units] == ['inner']


# -- other decisions beside them ---------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.op = LayerChoice({'wide': nn.Conv2d(8, 6, 5, padding=2), 'narrow': nn.Conv2d(8, 6, 1)}, key='op')
        self.tail = Repeat(lambda index: nn.Conv2d(6, 6, 3, padding=1), ValueChoice([1, 2], key='depth'))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.tail(self.op(torch.relu(self.stem(x)))).mean((2, 3)))


def test_widths_beside_operators_and_depths():
    torch.manual_seed(0)
    model = Mixed().double()
    mutator = OneShotChannelMutator(
        dict(type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0])), PARSE, model=model
    )
    assert {'op', 'depth', 'stem'} <= set(mutator.space)
    assert len(mutator.units) == 3  # the two depths end in one width
    assert mutator.space.count() == 2**5
    for subnet in mutator.space.grid():
        mutator.set_subnet(subnet)
        torch.testing.assert_close(extract(model, subnet)(X), model(X), rtol=0, atol=1e-12)


def test_tracing_leaves_other_decisions_as_they_were():
    model = Mixed().double()
    model.op.decide('narrow')
    one_shot(model)
    assert model.op.choice() == (1,)
    assert next(m for m in model.modules() if isinstance(m, ValueChoice)).decision is None


# -- slimmable ------------------------------------------------------------------------------------


def test_slimmable_units_switch_together():
    model = net()
    mutator = SlimmableChannelMutator(SLIM, PARSE, model=model)
    assert mutator.subnets == [{'stem': 2, 'inner': 3}, {'stem': 4, 'inner': 6}, {'stem': 8, 'inner': 12}]
    assert mutator.current_choices == {'width': 2}
    assert mutator.space.count() == 3
    for index, subnet in enumerate(mutator.subnets):
        mutator.set_choices(subnet)
        assert mutator.current_choices == {'width': index}
        assert mutator.widths.current == subnet
        torch.testing.assert_close(extract(model)(X), model(X))
    with pytest.raises(SubnetError, match='None of the 3 networks'):
        mutator.set_choices({'stem': 2, 'inner': 6})
    with pytest.raises(SubnetError):
        mutator.set_choices({'width': 3})


def test_slimmable_norms_are_the_models_parameters_and_survive_rebinding():
    model = net()
    mutator = SlimmableChannelMutator(SLIM, PARSE, model=model)
    names = [name for name, _ in model.named_parameters() if name.startswith('elastic_widths')]
    assert len(names) == 2 * 2, 'a weight and a bias for each narrow width; the full one has those of the model'
    with torch.no_grad():
        model.elastic_widths.norms[0][0].bias.fill_(7)
    mutator.set_choices({'width': 0})
    expected = model(X)
    mutator.release()
    again = SlimmableChannelMutator(SLIM, PARSE, model=model)
    again.set_choices({'width': 0})
    assert torch.equal(model(X), expected)


def test_slimmable_ratios_for_all_units():
    config = dict(type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.25, 0.5, 1.0], choice_mode='ratio'))
    mutator = SlimmableChannelMutator(config, PARSE, model=net())
    assert mutator.subnets == [{'stem': 2, 'inner': 3}, {'stem': 4, 'inner': 6}, {'stem': 8, 'inner': 12}]


def test_bad_slimmable_configs():
    with pytest.raises(ConfigError, match='needs `candidate_choices`'):
        SlimmableChannelMutator(None, PARSE, model=net())
    units = {'stem': dict(candidate_choices=[2, 8]), 'inner': dict(candidate_choices=[3, 6, 12])}
    with pytest.raises(ConfigError, match="'stem' has 2 and 'inner' has 3"):
        SlimmableChannelMutator(dict(type='SlimmableChannelUnit', units=units), PARSE, model=net())
    with pytest.raises(ConfigError, match='takes units of type SlimmableChannelUnit'):
        SlimmableChannelMutator('OneShotMutableChannelUnit', PARSE, model=net())
    same = {'stem': dict(candidate_choices=[2, 2])}
    model = net()
    with pytest.raises(ConfigError, match='must differ'):
        SlimmableChannelMutator(dict(type='SlimmableChannelUnit', units=same), PARSE, model=model)
    assert not attachments(model)


# -- binding -------------------------------------------------------------------------------------


def test_a_released_model_keeps_its_widths_for_the_next_mutator():
    model = net()
    mutator = one_shot(model)
    mutator.set_min_subnet()
    expected = model(X)
    mutator.release()
    assert torch.equal(model(X), expected)
    again = one_shot(model)
    assert again.current_choices == {'stem': 0.25, 'inner': 0.25}
    again.release()
    other = ChannelMutator(parse_cfg=PARSE, model=model)
    assert other.current_choices == {'stem': 8, 'inner': 12}
    assert len(attachments(model)) == 1


def test_copies_stay_apart():
    model = net()
    mutator = one_shot(model)
    copied_model, copied = copy.deepcopy((model, mutator))
    expected = model(X)
    copied.set_min_subnet()
    assert torch.equal(model(X), expected)
    assert copied.widths is not mutator.widths
    assert copied_model.elastic_widths is copied.widths


def test_another_mutator_is_refused_and_nothing_is_left():
    model = net()
    mutator = one_shot(model)
    with pytest.raises(BindingError, match='takes one mutator'):
        ChannelMutator(parse_cfg=PARSE, model=model)
    with pytest.raises(BindingError, match='bound to a Net already'):
        mutator.prepare_from_supernet(net())
    mutator.release()
    assert BaseMutator(model).space == space_of(model)


# -- bad input ----------------------------------------------------------------------------------


def test_the_tracers_of_the_first_releases_are_the_one_tracer():
    loss = dict(type='ImageClassifierPseudoLoss', input_shape=(2, 3, 8, 8))
    old = ChannelMutator(None, dict(type='mmrazor.BackwardTracer', loss_calculator=loss), model=net())
    assert old.parse_cfg == PARSE
    assert old.current_choices == ChannelMutator(None, PARSE, model=net()).current_choices
    bare = ChannelMutator(None, dict(type='BackwardTracer', loss_calculator=dict(type='SumPseudoLoss')))
    assert bare.parse_cfg['demo_input'] == (1, 3, 224, 224)


def test_what_the_analyzer_finds_is_a_config_of_units():
    model = net()
    units = ChannelAnalyzer(demo_input=(2, 3, 8, 8), tracer_type='FxTracer').analyze(model)
    mutator = ChannelMutator(dict(type='SequentialMutableChannelUnit', units=units), PARSE, model=model)
    assert list(units) == [unit.unit for unit in mutator.units]
    for unit in mutator.units:
        assert units[unit.unit]['init_args'] == {'num_channels': unit.num_channels}


def test_bad_configs():
    with pytest.raises(ConfigError, match="'default_args'"):
        ChannelMutator(dict(type='SequentialMutableChannelUnit', divisor=8), PARSE)
    with pytest.raises(ComponentTypeError, match='type of MutableChannelUnit'):
        ChannelMutator('OneShotMutableOP', PARSE)
    with pytest.raises(ConfigError, match='ChannelAnalyzer'):
        ChannelMutator(None, dict(type='Config'))
    with pytest.raises(ConfigError, match='demo_inputs'):
        ChannelMutator(None, dict(type='ChannelAnalyzer', demo_inputs=(1, 3)))
    with pytest.raises(ConfigError, match='cannot be made of'):
        ChannelMutator(dict(default_args=dict(divisors=8)), PARSE, model=net())
    with pytest.raises(ConfigError, match='has 16 channels, but in this model it has 8'):
        ChannelMutator(dict(units={'stem': dict(init_args=dict(num_channels=16))}), PARSE, model=net())
    with pytest.raises(GraphError, match="Did you mean 'stem'"):
        ChannelMutator(dict(units={'stemm': dict(divisor=2)}), PARSE, model=net())
    with pytest.raises(GraphError, match="'head' cannot be cut"):
        ChannelMutator(dict(units={'head': dict(divisor=2)}), PARSE, model=net())
    with pytest.raises(ComponentTypeError):
        ChannelMutator(parse_cfg=PARSE).prepare_from_supernet('model')


def test_a_model_without_channels():
    with pytest.raises(GraphError, match='No channels'):
        ChannelMutator(parse_cfg=dict(demo_input=(2, 4)), model=nn.Linear(4, 2))


def test_a_failing_forward_leaves_the_model_as_it_was():
    model = net()
    with pytest.raises(GraphError):
        ChannelMutator(parse_cfg=dict(demo_input=(2, 5, 8, 8)), model=model)
    assert not attachments(model)
    assert not model._forward_pre_hooks


def test_tracer_type_is_accepted_with_a_note(caplog):
    logger = logging.getLogger('mmengine')
    ChannelMutator(None, {**PARSE, 'tracer_type': 'FxTracer'})
    assert logger is not None


def test_demo_inputs():
    model = nn.Linear(4, 2).double()
    assert demo_inputs(model, [2, 4]).dtype is torch.float64
    assert demo_inputs(model, dict(type='DefaultDemoInput', input_shape=[2, 4])).shape == (2, 4)
    x = torch.zeros(3, 4)
    assert demo_inputs(model, x) is x
    assert demo_inputs(model, {'input': x})['input'] is x
    assert demo_inputs(model, [x])[0] is x
    assert demo_inputs(model, lambda module: x) is x
    for wrong in (None, 'shape', (), (1.5, 2), {'type': 'Other'}):
        with pytest.raises(ConfigError, match='demo_input'):
            demo_inputs(model, wrong)


def test_units_are_listed():
    mutator = one_shot(net())
    assert all(isinstance(unit, MutableChannelUnit) for unit in mutator.units)
    assert mutator.choice_template == {'stem': 1.0, 'inner': 1.0}
    fixed = OneShotMutableChannelUnit(8, [1.0], key='only')
    assert not fixed.is_mutable


def test_the_other_arguments_are_dumped_and_read_back():
    mutator = OneShotChannelMutator(parse_cfg=PARSE, model=net(), ignored=['bn'])
    assert mutator.config_template()['ignored'] == ['bn']
    again = MODELS.build(mutator.config_template())
    again.prepare_from_supernet(net())
    assert again.space == mutator.space != OneShotChannelMutator(parse_cfg=PARSE, model=net()).space
    units = dict(type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0]))
    grouped = OneShotChannelMutator(units, PARSE, model=net(), custom_groups=[['stem', 'inner']])
    assert grouped.config_template()['custom_groups'] == [['stem', 'inner']]
    config = dict(type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio'))
    slimmable = SlimmableChannelMutator(config, PARSE, model=net(), switch_norms=False)
    assert slimmable.config_template()['switch_norms'] is False
    assert 'switch_norms' not in SlimmableChannelMutator(config, PARSE, model=net()).config_template()


def test_candidates_of_one_unit_stand_beside_blocks_of_the_others():
    mutator = OneShotChannelMutator(parse_cfg=PARSE, model=net())
    template = mutator.config_template()
    template['channel_unit_cfg']['units']['inner']['init_args']['candidate_choices'] = [0.5, 1.0]
    again = MODELS.build(template)
    again.prepare_from_supernet(net())
    assert len(again.space['inner']) == 2
    assert again.space['stem'] == mutator.space['stem']
