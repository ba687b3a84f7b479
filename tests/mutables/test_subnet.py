from __future__ import annotations

import pytest
import torch

from strop.mutables import AnyOf, Guard, OneOf, Ordered, Space, Weights

SPACE = Space(
    {'op': OneOf(('conv', 'skip'), mixable=True), 'inputs': AnyOf(('a', 'b', 'c')), 'kernel': Ordered((3, 5))},
    {'kernel': ((Guard.on('op', [0]),),)},
)


def test_it_reads_as_a_person_writes_it() -> None:
    subnet = SPACE.subnet({'op': 0, 'inputs': [2, 0], 'kernel': 5})
    assert dict(subnet) == {'op': 'conv', 'inputs': ['a', 'c'], 'kernel': 5}
    assert subnet.choices == {'op': (0,), 'inputs': (0, 2), 'kernel': (1,)}
    assert repr(subnet) == "Subnet(op='conv', inputs=['a', 'c'], kernel=5)"
    assert not subnet.weighted
    assert len(subnet) == 3


def test_an_absent_key_says_why() -> None:
    subnet = SPACE.subnet({'op': 'skip', 'inputs': []})
    assert 'kernel' not in subnet
    assert subnet.get('kernel') is None
    with pytest.raises(KeyError, match='inactive in this subnet'):
        subnet['kernel']
    with pytest.raises(KeyError, match="Did you mean 'inputs'"):
        subnet['input']


def test_diff() -> None:
    one = SPACE.subnet({'op': 'conv', 'inputs': ['a'], 'kernel': 3})
    other = SPACE.subnet({'op': 'skip', 'inputs': ['a']})
    assert one.diff(other) == {'op': ('conv', 'skip'), 'kernel': (3, None)}
    assert other.diff(one) == {'op': ('skip', 'conv'), 'kernel': (None, 3)}
    assert one.diff(one) == {}


def test_masks_read_back() -> None:
    subnet = SPACE.subnet({'op': [0.25, 0.75], 'inputs': 'b', 'kernel': 5})
    masks = subnet.masks()
    assert {key: mask.dtype for key, mask in masks.items()} == {'op': torch.float32, 'inputs': torch.bool, 'kernel': torch.bool}
    assert SPACE.subnet(masks) == subnet
    assert subnet.choices['op'] == Weights((0.25, 0.75))


def test_it_cannot_be_written_to() -> None:
    with pytest.raises(TypeError):
        SPACE.first()['op'] = 'skip'


def test_equal_only_to_the_same_answer() -> None:
    assert SPACE.first() != dict(SPACE.first())
    assert Space({'a': OneOf((1, 2))}).first() != Space({'a': OneOf((3, 4))}).first()
    assert Space({'a': OneOf((1, 2))}).first() == Space({'a': OneOf((1, 2, 3))}).first()
