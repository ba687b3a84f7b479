from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strop.graph.sizes import (
    AttributePath,
    Cell,
    LengthOf,
    Operation,
    Size,
    listening,
    node_of,
    read_attribute,
    tag_attributes,
    write_attribute,
)
from strop.graph.terms import Atom

PATH = AttributePath('layer', ('width',))


def value_of(node, width):
    """Compute an expression with the attribute at another value."""
    if isinstance(node, Operation):
        left, right = value_of(node.left, width), value_of(node.right, width)
        return {'+': left + right, '-': left - right, '*': left * right, '//': left // right, '%': left % right}[node.op]
    return width if isinstance(node, AttributePath) else node


class TestSize:
    @given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 9), st.sampled_from('+-*/%'), st.booleans())
    def test_arithmetic_carries_the_expression(self, value, other, factor, op, turned):
        compute = {
            '+': lambda a, b: a + b,
            '-': lambda a, b: a - b,
            '*': lambda a, b: a * b,
            '/': lambda a, b: a // b,
            '%': lambda a, b: a % b,
        }[op]

        def run(width):
            return compute(factor, width) if turned else compute(width, factor)

        got = run(Size(value, PATH))
        assert type(got) is Size
        assert got == run(value)
        assert value_of(got.node, value) == run(value)
        assert value_of(got.node, other) == run(other)

    def test_of_two_sizes(self):
        length = LengthOf(Atom(12))
        got = Size(12, length) // Size(4, PATH)
        assert (int(got), got.node.left, got.node.op, got.node.right) == (3, length, '//', PATH)

    def test_divmod_powers_and_signs(self):
        width = Size(7, PATH)
        whole, rest = divmod(width, 2)
        assert (whole, rest) == (3, 1)
        assert value_of(whole.node, 9) == 4
        assert value_of((-width).node, 9) == -9
        assert value_of((width**2).node, 9) == 81
        assert width**-0.5 == 7**-0.5
        assert type(width**0.5) is float

    def test_is_an_int(self):
        width = Size(7, PATH)
        assert hash(width) == hash(7)
        assert list(range(width)) == list(range(7))
        assert {7: 'a'}[width] == 'a'
        assert width * 0.5 == 3.5
        assert torch.zeros(width).shape == (7,)

    def test_leaves_copies_and_pickles_as_a_plain_int(self):
        width = Size(7, PATH)
        assert type(copy.deepcopy([width])[0]) is int
        assert type(pickle.loads(pickle.dumps(width))) is int

    def test_nodes(self):
        assert node_of(3) == 3
        assert node_of(True) == 1
        assert node_of(Size(3, PATH)) is PATH


class TestListening:
    @pytest.mark.parametrize(
        ('compare', 'wanted'),
        [
            (lambda width: width == 7, ('==', PATH, 7, True)),
            (lambda width: width != 7, ('==', PATH, 7, True)),
            (lambda width: width == 8, ('==', PATH, 8, False)),
            (lambda width: width < 8, ('<', PATH, 8, True)),
            (int, ('==', PATH, 7, True)),
            (lambda width: int(width * 0.5), ('==', PATH, 7, True)),
            (lambda width: round(width / 2), ('==', PATH, 7, True)),
            (lambda width: math.floor(width / 2), ('==', PATH, 7, True)),
            (lambda width: math.ceil(width / Size(2, 2)), ('==', PATH, 7, True)),
            (bool, ('==', PATH, 0, False)),
            (lambda width: not width, ('==', PATH, 0, False)),
            (lambda width: width <= 6, ('<=', PATH, 6, False)),
            (lambda width: width > 8, ('<', 8, PATH, False)),
            (lambda width: width >= 7, ('<=', 7, PATH, True)),
            (lambda width: width in (7, 9), ('==', PATH, 7, True)),
            (lambda width: max(width, 3), ('<', PATH, 3, False)),
        ],
    )
    def test_comparisons_are_told(self, compare, wanted):
        heard = []
        with listening(lambda *told: heard.append(told)):
            compare(Size(7, PATH))
        assert heard[0] == wanted or heard[0] == ('<', 3, PATH, True)

    def test_outside_nothing_is(self):
        heard = []
        with listening(lambda *told: heard.append(told)):
            pass
        assert Size(7, PATH) == 7
        assert not heard

    def test_floats_alone_pin_nothing(self):
        heard = []
        with listening(lambda *told: heard.append(told)):
            assert Size(9, PATH) ** -0.5 * 3 == math.sqrt(Size(9, PATH)) / 3 == float(Size(1, PATH)) == 1.0
            assert Size(9, PATH) / 2 * 2.0 == 9.0
            assert Size(9, PATH) * 0.5 == 4.5
        assert not heard

    def test_copies_of_floats_are_plain(self):
        half = Size(9, PATH) / 2
        assert type(copy.deepcopy(half)) is float
        assert type(pickle.loads(pickle.dumps(half))) is float

    def test_with_no_int_nothing_is(self):
        heard = []
        with listening(lambda *told: heard.append(told)):
            assert Size(7, PATH) != 'seven'
            assert Size(7, PATH) < 7.5
        assert not heard


class TestAttributes:
    def module(self):
        width = 8
        module = nn.Linear(3, 4)
        module.width = width
        module.flag = True
        module.sizes = (2, width, [width, {'inner': width}])
        module.config = SimpleNamespace(width=width, name='a')
        module.fold = lambda x: x.reshape(-1, width)
        return module

    def test_every_int_is_tagged(self):
        module = self.module()
        config, values = module.config, {}
        tag_attributes(module, 'layer', values)
        assert type(module.width) is Size
        assert module.flag is True
        assert module.sizes == (2, 8, [8, {'inner': 8}])
        assert type(module.sizes[2][1]['inner']) is Size
        assert type(module.config.width) is Size
        assert type(config.width) is int
        assert str(module.sizes[2][1]['inner'].node) == 'layer.sizes.2.1.inner'
        assert set(map(str, values)) == {
            *('layer.in_features', 'layer.out_features', 'layer.width', 'layer.config.width', 'layer.fold.width'),
            *('layer.sizes.0', 'layer.sizes.1', 'layer.sizes.2.0', 'layer.sizes.2.1.inner'),
        }

    def test_geometry_of_layers_is_not(self):
        values = {}
        tag_attributes(nn.Conv2d(3, 4, 5, stride=2), '', values)
        assert {path.keys[0] for path in values} == {'in_channels', 'out_channels', 'groups'}

    @pytest.mark.parametrize(
        'keys',
        [
            ('width',),
            ('sizes', 1),
            ('sizes', 2, 0),
            ('sizes', 2, 1, 'inner'),
            ('config', 'width'),
            ('fold', Cell('width')),
        ],
    )
    def test_read_and_write(self, keys):
        module, other = self.module(), self.module()
        module.config = other.config
        assert read_attribute(module, keys) == 8
        write_attribute(module, keys, 5)
        assert read_attribute(module, keys) == 5
        assert read_attribute(other, keys) == 8

    def test_functions_follow_their_closures(self):
        module = self.module()
        write_attribute(module, ('fold', Cell('width')), 4)
        assert module.fold(torch.zeros(8)).shape == (2, 4)
