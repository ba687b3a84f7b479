"""Units from files, and the words that configs of MMRazor's first 1.x release have for them."""

import json

import pytest
import torch
import yaml
from torch import nn

from mutators.test_channel import PARSE, net
from strop.errors import ComponentTypeError, ConfigError, GraphError, StropError
from strop.mutables import extract
from strop.mutators import ChannelMutator, OneShotChannelMutator, SlimmableChannelMutator
from strop.mutators.channel_configs import read_channel_configs, unit_config, unit_config_of_first_release, units_of
from strop.registry import MODELS

#: Two networks as the first release wrote them: what enters a layer stands there, too, and the outputs of the network.
LAYERS = {
    'stem.out_channels': (8, (2, 6)),
    'bn.num_features': (8, (2, 6)),
    'inner.in_channels': (8, (2, 6)),
    'inner.out_channels': (12, (3, 12)),
    'outer.in_channels': (12, (3, 12)),
    'outer.out_channels': (8, (2, 6)),
    'head.in_features': (8, (2, 6)),
    'head.out_features': (4, (4, 4)),
}


def networks(pattern='{}_mutable', **changes):
    return [
        {
            pattern.format(name): dict(current_choice=changes.get(name, widths)[number], origin_channels=whole)
            for name, (whole, widths) in LAYERS.items()
        }
        for number in range(2)
    ]


# -- units from a file --------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['.json', '.yaml'])
def test_units_may_stand_in_a_file(tmp_path, suffix):
    units = {
        'stem_(0, 8)_8': dict(init_args=dict(num_channels=8, candidate_choices=[2, 4, 8], choice_mode='number'), choice=8),
        'inner_(0, 12)_12': dict(
            init_args=dict(num_channels=12, candidate_choices=[3, 3, 12], choice_mode='number'), choice=12
        ),
        # MMRazor lists the outputs of a network as well, at their full width.
        'head_(0, 4)_4': dict(init_args=dict(num_channels=4, candidate_choices=[4, 4, 4], choice_mode='number'), choice=4),
    }
    file = tmp_path / f'units{suffix}'
    file.write_text(json.dumps(units) if suffix == '.json' else yaml.safe_dump(units))
    mutator = SlimmableChannelMutator(dict(type='SlimmableChannelUnit', units=str(file)), PARSE, model=net())
    assert mutator.subnets == [{'stem': 2, 'inner': 3}, {'stem': 4, 'inner': 3}, {'stem': 8, 'inner': 12}]
    assert units_of(file) == units


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('[1, 2]', 'holds a list'),
        ('"stem"', 'holds a str'),
        ('{"stem": 8', 'is not JSON'),
        ('{"stem": 8, "stem": 4}', 'stands twice'),
        ('{"stem": {"init_args": [8]}}', 'is a dict of arguments'),
        ('null', 'holds a NoneType'),
    ],
)
def test_a_file_of_something_else_is_told(tmp_path, content, words):
    file = tmp_path / 'units.json'
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        ChannelMutator(dict(type='SequentialMutableChannelUnit', units=str(file)), PARSE)


def test_a_missing_file_is_named_with_what_is_there(tmp_path):
    (tmp_path / 'units.json').write_text('{}')
    with pytest.raises(ConfigError, match=r"there is no file .*unit\.json'.* Did you mean 'units\.json'"):
        ChannelMutator(dict(units=str(tmp_path / 'unit.json')))
    with pytest.raises(ConfigError, match='nothing is downloaded'):
        ChannelMutator(dict(units='https://example.com/units.json'))
    (tmp_path / 'pickled.json').write_bytes(b'\x80\x04.')
    with pytest.raises(StropError, match='never unpickled'):
        ChannelMutator(dict(units=str(tmp_path / 'pickled.json')))


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (dict(units=['stem']), 'is a dict, or a JSON or YAML file of one'),
        (dict(units={1: 8}), 'names are strings'),
        (dict(default_args=['divisor']), '`default_args` of channel_unit_cfg is a dict'),
        (dict(default_args=dict(min_value='two')), '`min_value` must be'),
        (dict(units={'stem': 8, 'outer': 4}), "names 'stem' twice, the second time as 'outer'"),
    ],
)
def test_bad_settings_of_units(config, words):
    with pytest.raises(ConfigError, match=words):
        ChannelMutator(config, PARSE, model=net())


def test_an_axis_that_is_kept_may_be_named_at_its_full_width_only():
    settings = dict(init_args=dict(num_channels=4), choice=4)
    mutator = ChannelMutator(dict(units={'head': settings, 'stem': 4}), PARSE, model=net())
    assert mutator.widths.current['stem'] == 4
    ratio = dict(init_args=dict(choice_mode='ratio'), choice=1.0)
    ChannelMutator(dict(units={'head': ratio}), PARSE, model=net())
    for narrower in (dict(settings, choice=2), 2, dict(init_args=dict(num_channels=4))):
        with pytest.raises(GraphError, match="'head' cannot be cut"):
            ChannelMutator(dict(units={'head': narrower}), PARSE, model=net())


def test_the_outputs_of_a_transposed_convolution_have_its_name():
    layers = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 4, 1)
    whole = dict(init_args=dict(num_channels=4), choice=4)
    mutator = ChannelMutator(dict(units={'2': 4, '4': whole}), PARSE, model=nn.Sequential(*layers))
    assert mutator.widths.current['2'] == 4
    assert mutator.widths.current.get('0', 8) == 8


def test_a_parse_config_is_a_dict():
    with pytest.raises(ConfigError, match='`parse_cfg` is a dict'):
        ChannelMutator(None, 'ChannelAnalyzer')
    with pytest.raises(ComponentTypeError, match='MutableChannelUnit'):
        unit_config(3, dict(type='SequentialMutableChannelUnit'))


# -- the first release --------------------------------------------------------------------------


def test_a_mutator_of_the_first_release():
    loss = dict(type='ImageClassifierPseudoLoss', input_shape=(2, 3, 8, 8))
    old = MODELS.build(
        dict(
            type='mmrazor.OneShotChannelMutator',
            mutable_cfg=dict(type='OneShotMutableChannel', candidate_choices=[0.25, 0.5, 1.0], candidate_mode='ratio'),
            tracer_cfg=dict(type='BackwardTracer', loss_calculator=loss),
            skip_prefixes=['hea'],
        )
    )
    model = net()
    old.prepare_from_supernet(model)
    units = dict(type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=[0.25, 0.5, 1.0], choice_mode='ratio'))
    today = OneShotChannelMutator(units, PARSE, ignored='head', model=net())
    assert old.space == today.space
    assert list(old.space) == ['inner']


@pytest.mark.parametrize(
    'given', ['OneShotMutableChannel', dict(type='OneShotMutableOP'), dict(type='OneShotMutableChannel', candidates=[1])]
)
def test_another_mutable_config_names_the_argument_of_today(given):
    with pytest.raises(ConfigError, match='channel_unit_cfg'):
        unit_config_of_first_release(given)


@pytest.mark.parametrize(
    'names',
    [
        dict(mutable_cfg=dict(type='OneShotMutableChannel'), channel_unit_cfg='OneShotMutableChannelUnit'),
        dict(tracer_cfg=PARSE, parse_cfg=PARSE),
        dict(skip_prefixes='inn', ignored='inner'),
    ],
)
def test_an_argument_is_given_under_one_of_its_names(names):
    with pytest.raises(ConfigError, match='is the old name of'):
        OneShotChannelMutator(**names)


@pytest.mark.parametrize('pattern', ['{}_mutable', '{}'])
def test_widths_of_layers_are_widths_of_units(pattern):
    mutator = SlimmableChannelMutator(parse_cfg=PARSE, model=net(), channel_cfgs=networks(pattern))
    assert mutator.subnets == [{'stem': 2, 'inner': 3}, {'stem': 6, 'inner': 12}]
    mutator.set_subnet({'width': 0})
    plain = extract(mutator.model)
    assert plain.inner.weight.shape == (3, 2, 3, 3)
    assert plain(torch.zeros(1, 3, 8, 8, dtype=torch.float64)).shape == (1, 4)


def test_widths_of_layers_must_fit_each_other_and_the_model():
    def made(contents, **more):
        return SlimmableChannelMutator(parse_cfg=PARSE, model=net(), channel_cfgs=contents, **more)

    with pytest.raises(ConfigError, match=r"'outer.out_channels_mutable' .* hangs together with 'stem'"):
        made(networks(**{'outer.out_channels': (4, 6)}))
    with pytest.raises(GraphError, match="'head' cannot be cut"):
        made(networks(**{'head.out_features': (2, 4)}))
    with pytest.raises(ConfigError, match='in `units` of channel_unit_cfg or in files'):
        made(networks(), channel_unit_cfg=dict(units={'stem': dict(candidate_choices=[2, 8])}))
    one, other = networks()
    with pytest.raises(ConfigError, match=r"'inner\.out_channels_mutable' is not in each file"):
        made([one, {name: entry for name, entry in other.items() if not name.startswith('inner.out')}])
    with pytest.raises(ConfigError, match='different models'):
        made([one, {**other, 'stem.out_channels_mutable': dict(current_choice=4, origin_channels=16)}])
    with pytest.raises(ConfigError, match='has 10 channels, but in this model it has 8'):
        made([{'stem.out_channels_mutable': dict(current_choice=4, origin_channels=10)}])


@pytest.mark.parametrize('given', [[], 3, [3], {'a': 1}])
def test_channel_configs_are_files(given):
    with pytest.raises(ConfigError, match='is a file of widths, or a list of such files'):
        read_channel_configs(given)


def test_a_file_without_widths(tmp_path):
    file = tmp_path / 'empty.yaml'
    file.write_text('')
    with pytest.raises(ConfigError, match='holds no widths'):
        read_channel_configs([file])
    with pytest.raises(ConfigError, match='there is no file'):
        read_channel_configs('nowhere.yaml')
