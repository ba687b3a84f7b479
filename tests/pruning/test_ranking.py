from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strop.errors import ConfigError
from strop.graph import channel_units
from strop.pruning.importance import score
from strop.pruning.ranking import Ranking, Selection, check_ratio, matches, matching


class Chain(nn.Sequential):
    """Linear layers of some widths."""

    def __init__(self, *widths):
        super().__init__(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


def ranked(model, inputs, importance='l1', **options):
    graph = channel_units(model, inputs)
    return Ranking(graph, model, score(graph, model, importance), Selection(**options))


def rising(unit, model):
    return torch.arange(unit.size, dtype=torch.float64)


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Chain(3, 10, 8, 3, 2)


@pytest.fixture
def inputs():
    return torch.rand(2, 3)


def test_each_unit_loses_its_share_and_never_more_than_it_can(chain, inputs):
    ranking = ranked(chain, inputs)
    assert ranking.lengths(0.5) == {'0': 5, '1': 4, '2': 2}
    assert ranking.lengths(0.3) == {'0': 7, '1': 5, '2': 2}
    assert ranking.lengths(0.9) == {'0': 2, '1': 2, '2': 2}
    assert ranking.lengths(0.0) == {'0': 10, '1': 8, '2': 3}


def test_what_stays_has_the_highest_scores_in_the_old_order(chain, inputs):
    values = torch.tensor([5.0, 1.0, 7.0, 2.0, 9.0, 0.0, 3.0, 8.0, 4.0, 6.0])
    ranking = ranked(chain, inputs, lambda unit, model: values[: unit.size])
    assert {name: kept.tolist() for name, kept in ranking.keep({'0': 4, '1': 8, '2': 2}).items()} == {
        '0': [2, 4, 7, 9],
        '2': [0, 2],
    }


def test_of_equal_scores_the_last_stay(chain, inputs):
    ranking = ranked(chain, inputs, lambda unit, model: torch.ones(unit.size))
    assert ranking.keep({'0': 3})['0'].tolist() == [7, 8, 9]


def test_one_ranking_takes_the_lowest_of_all(chain, inputs):
    # Units '0' has scores 0..9, '1' 0..7, '2' 0..2; 10 of 21 go: 0,0,0 1,1,1 2,2,(2 has none left) 3,3 4.
    ranking = ranked(chain, inputs, rising, scope='global', normalise='none')
    lengths = ranking.lengths(10 / 21)
    assert sum(lengths.values()) == 11
    assert lengths == {'0': 5, '1': 4, '2': 2}


def test_one_ranking_on_a_common_scale(chain, inputs):
    def importance(unit, model):
        return torch.arange(1, unit.size + 1) * (1000.0 if unit.name == '1' else 1.0)

    raw = ranked(chain, inputs, importance, scope='global', normalise='none').lengths(0.4)
    assert raw['1'] == 8
    assert raw['0'] == 2
    even = ranked(chain, inputs, importance, scope='global', normalise='max').lengths(0.4)
    assert even['1'] < 8
    assert even['0'] > 2


def test_no_unit_loses_more_than_the_most(chain, inputs):
    def importance(unit, model):
        return torch.arange(unit.size) + (0.0 if unit.name == '0' else 100.0)

    assert ranked(chain, inputs, importance, scope='global', max_ratio=0.6).lengths(0.4)['0'] == 4
    assert ranked(chain, inputs, importance, scope='global', max_ratio=0.6).lengths(1.0) == {'0': 4, '1': 4, '2': 2}
    assert ranked(chain, inputs, max_ratio=0.6).lengths(1.0) == {'0': 4, '1': 4, '2': 2}


def test_limits_are_ratios_or_ranges_and_the_last_counts(chain, inputs):
    local = ranked(chain, inputs, limits={'*': 0.1, '0': (0.2, 0.3), '1': 0.25})
    assert local.lengths(0.0) == {'0': 8, '1': 6, '2': 2}
    assert local.lengths(0.9) == {'0': 7, '1': 6, '2': 2}
    both = ranked(chain, inputs, rising, scope='global', limits={'0': (0.2, 0.3)})
    assert both.lengths(0.0)['0'] == 8
    assert both.lengths(1.0)['0'] == 7


def test_lengths_are_multiples_where_units_are_long_enough(chain, inputs):
    assert ranked(chain, inputs, round_to=4).lengths(0.5) == {'0': 4, '1': 4, '2': 3}
    assert ranked(chain, inputs, round_to=4).lengths(0.35) == {'0': 8, '1': 4, '2': 3}
    assert ranked(chain, inputs, round_to=4).lengths(0.9) == {'0': 4, '1': 4, '2': 3}


@pytest.mark.parametrize('pattern', ['1', '1.weight', '1.*', '1.bias', '[1]'])
def test_a_pattern_names_a_unit_by_the_layers_that_give_it_out(chain, inputs, pattern):
    graph = channel_units(chain, inputs)
    assert matching(pattern, graph, chain) == ['1']
    assert not matches(pattern, graph.units['0'], chain)


def test_what_is_ignored_stays_whole(chain, inputs):
    assert ranked(chain, inputs, ignored=['1']).lengths(0.5) == {'0': 5, '1': 8, '2': 2}
    assert ranked(chain, inputs, ignored='1').lengths(0.5) == {'0': 5, '1': 8, '2': 2}
    assert ranked(chain, inputs, ignored='1', scope='global').lengths(1.0)['1'] == 8
    # The head's outputs are the model's, which never change; naming it is no mistake.
    assert ranked(chain, inputs, ignored='3').lengths(0.5) == {'0': 5, '1': 4, '2': 2}


def test_a_module_stands_for_all_inside():
    model = nn.ModuleDict({'stem': Chain(3, 8), 'body': Chain(8, 8, 8), 'head': Chain(8, 2)})
    net = nn.Sequential(*model.values())
    graph = channel_units(net, torch.rand(2, 3))
    assert matching('1', graph, net) == ['1.0', '1.1']


def test_units_without_scores_stay_whole(chain, inputs):
    ranking = ranked(chain, inputs, lambda unit, model: None if unit.name == '0' else torch.ones(unit.size))
    assert ranking.unjudged == ('0',)
    assert ranking.lengths(0.5) == {'0': 10, '1': 4, '2': 2}


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'ignored': ['conv*']}, "'conv\\*' names no channel unit"),
        ({'ignored': '11'}, 'Units are'),
        ({'ignored': ['*']}, 'Nothing is left to prune'),
        ({'limits': {'3': 0.2}}, r'cannot be pruned: .*3\.weight.*output'),
        ({'limits': {'4': 0.2}}, 'names no channel unit'),
    ],
)
def test_patterns_that_name_nothing_are_told(options, said, chain, inputs):
    with pytest.raises(ConfigError, match=said):
        ranked(chain, inputs, **options)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'scope': 'globl'}, "Did you mean 'global'"),
        ({'attention': 'head'}, "'heads'"),
        ({'round_to': 0}, '1 or more'),
        ({'round_to': 1.5}, 'whole number'),
        ({'ignored': 3}, 'patterns of names'),
        ({'ignored': [3]}, 'patterns of names'),
        ({'limits': ['a']}, 'must map patterns'),
        ({'limits': {'a': 1.0}}, 'share of channels'),
        ({'limits': {'a': (0.5, 0.2)}}, 'share of channels'),
        ({'limits': {'a': 'half'}}, 'share of channels'),
        ({'max_ratio': 1}, 'max_ratio'),
        ({'normalise': 'sum'}, "'mean'"),
    ],
)
def test_what_is_no_selection_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Selection(**options)


@pytest.mark.parametrize('ratio', [0, 1, -0.1, 1.5, '0.5', None, True, float('nan')])
def test_ratios_are_between_zero_and_one(ratio):
    with pytest.raises(ConfigError, match='more than 0 and less than 1'):
        check_ratio(ratio)


def test_a_model_without_channels_says_what_holds_them():
    net = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match=r'no channels that can be pruned \(weight\[0\]'):
        ranked(net, torch.rand(2, 3))


def test_sizes_from_before_count(chain, inputs):
    graph = channel_units(chain, inputs)
    ranking = Ranking(graph, chain, score(graph, chain, rising), Selection(), sizes={'0': 20, '1': 8})
    assert ranking.lengths(0.5) == {'0': 10, '1': 4, '2': 2}
    assert ranking.lengths(0.75) == {'0': 5, '1': 2, '2': 2}
    together = Ranking(graph, chain, score(graph, chain, rising), Selection(scope='global'), sizes={'0': 20, '1': 8, '2': 3})
    assert sum(together.lengths(0.5).values()) == 15


class Attention(nn.Module):
    """Attention of 4 heads of 8 on 32 channels, between two linear layers."""

    def __init__(self, heads=4):
        super().__init__()
        self.stem, self.qkv, self.out, self.head = nn.Linear(3, 32), nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 2)
        self.heads = heads

    def forward(self, x):
        x = self.stem(x)
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(self.out(x.transpose(1, 2).reshape(batch, length, -1)))


@pytest.mark.parametrize(
    ('heads', 'attention', 'expected'),
    [
        (4, 'both', (2, 8)),
        (4, 'heads', (2, 8)),
        (4, 'head_dim', (4, 4)),
        (4, 'none', (4, 8)),
        # Of two heads none can go; the channels inside them do.
        (2, 'both', (2, 8)),
        (2, 'heads', (2, 16)),
    ],
)
def test_attention_shrinks_by_the_ratio_once(heads, attention, expected):
    model = Attention(heads)
    ranking = ranked(model, torch.rand(2, 5, 3), attention=attention)
    roles = {unit.role: name for name, unit in ranking.graph.units.items() if unit.role != 'channels'}
    lengths = ranking.lengths(0.5)
    assert (lengths[roles['heads']], lengths[roles['head_dim']]) == expected


def test_in_one_ranking_the_inside_of_heads_makes_up_for_heads_that_stay():
    model = Attention(4)

    def importance(unit, model):
        return torch.arange(unit.size) + (100.0 if unit.role == 'heads' else 0.0)

    ranking = ranked(model, torch.rand(2, 5, 3), importance, scope='global')
    roles = {unit.role: name for name, unit in ranking.graph.units.items() if unit.role != 'channels'}
    lengths = ranking.lengths(0.5)
    assert (lengths[roles['heads']], lengths[roles['head_dim']]) == (4, 4)


def test_groups_of_a_convolution_shrink_by_the_ratio_once():
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 2, 1))
    lengths = ranked(model, torch.rand(2, 3, 8, 8)).lengths(0.5)
    graph = channel_units(model, torch.rand(2, 3, 8, 8))
    groups = [lengths[name] for name, unit in graph.units.items() if unit.role == 'groups']
    others = [lengths[name] for name, unit in graph.units.items() if unit.role != 'groups']
    # The channels of each group first: 4 -> 2, and every group stays.
    assert (groups, others) == ([8], [2, 2])


def test_groups_make_up_for_channels_that_must_stay():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 3, groups=8), nn.Conv2d(24, 2, 1))
    ranking = ranked(model, torch.rand(2, 3, 8, 8))
    lengths = {unit.size: ranking.lengths(0.5)[name] for name, unit in ranking.graph.units.items()}
    # One of two inputs a group goes; of three outputs two stay, so that two of eight groups go for the outputs' sake.
    assert lengths == {2: 1, 3: 2, 8: 6}


def test_whole_groups_of_a_norm_go_first():
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GroupNorm(8, 32), nn.Conv2d(32, 2, 1))
    ranking = ranked(model, torch.rand(2, 3, 8, 8))
    assert {unit.role: ranking.lengths(0.5)[name] for name, unit in ranking.graph.units.items()} == {'groups': 4, 'channels': 4}


def fake(sizes, ties=()):
    """A graph whose tied units must have equal lengths: a move goes to the longest."""
    units = {
        name: SimpleNamespace(
            name=name,
            size=size,
            minimum=2,
            role='channels',
            placements=(),
            ties=tuple(t for t in ties if t != name and name in ties),
        )
        for name, size in sizes.items()
    }

    def fit(lengths):
        most = max((lengths[name] for name in ties), default=0)
        return {name: (min(most, units[name].size) if name in ties else lengths[name]) for name in units}

    return SimpleNamespace(units=units, frozen=(), fit=fit)


def test_lengths_satisfy_the_ties():
    graph = fake({'a': 10, 'b': 10, 'c': 10}, ties=('a', 'b'))
    scores = {name: torch.arange(10.0) for name in graph.units}
    ranking = Ranking(graph, nn.Identity(), scores, Selection(limits={'a': 0.3}))
    assert ranking.lengths(0.5) == {'a': 7, 'b': 7, 'c': 5}


def test_what_is_tied_to_an_ignored_unit_stays_whole():
    graph = fake({'a': 10, 'b': 10, 'c': 10}, ties=('a', 'b'))
    graph.fit = lambda lengths: {**lengths, 'a': min(lengths['a'], lengths['b']), 'b': min(lengths['a'], lengths['b'])}
    scores = {name: torch.arange(10.0) for name in graph.units}
    ranking = Ranking(graph, nn.Identity(), scores, Selection(ignored='a'))
    assert ranking.lengths(0.5) == {'a': 10, 'b': 10, 'c': 5}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    ratios=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    scope=st.sampled_from(['local', 'global']),
    round_to=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_lengths_fall_with_the_ratio_and_keep_their_bounds(sizes, ratios, scope, round_to, seed):
    graph = fake({f'u{n}': size for n, size in enumerate(sizes)})
    if all(size == 2 for size in sizes):
        return
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(unit.size, generator=generator) for name, unit in graph.units.items()}
    ranking = Ranking(graph, nn.Identity(), scores, Selection(scope=scope, round_to=round_to))
    few, many = (ranking.lengths(ratio) for ratio in sorted(ratios))
    for name, unit in graph.units.items():
        assert unit.minimum <= many[name] <= few[name] <= unit.size
        assert few[name] == unit.size or few[name] % round_to == 0
        assert len(ranking.keep(few).get(name, range(unit.size))) == few[name]
    if scope == 'global' and round_to == 1:
        loss = sum(sizes) - sum(few.values())
        possible = sum(unit.size - ranking._bounds(name)[0] for name, unit in graph.units.items() if name in ranking.prunable)
        assert loss == min(math.ceil(sum(graph.units[name].size for name in ranking.prunable) * min(ratios) - 1e-9), possible)


def test_a_vision_transformer_keeps_heads_times_head_dim():
    model = timm.create_model('vit_tiny_patch16_224', depth=2, img_size=64)
    ranking = ranked(model, torch.rand(2, 3, 64, 64))
    lengths = ranking.lengths(0.5)
    heads = [n for name, n in lengths.items() if ranking.graph.units[name].role == 'heads']
    dims = [n for name, n in lengths.items() if ranking.graph.units[name].role == 'head_dim']
    assert heads == [2, 2]
    assert set(dims) == {48}
