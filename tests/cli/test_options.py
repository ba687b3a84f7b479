from __future__ import annotations

from typing import Any

import click
import pytest

from strop.cli.options import parse_settings, parse_shape, spread


def _context() -> tuple[click.Context, click.Parameter]:
    return click.Context(click.Command('x')), click.Option(['--cfg-options'])


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (['c.py'], ['c.py']),
        (['--cfg-options', 'a=1', 'c.py'], ['--cfg-options', 'a=1', 'c.py']),
        (['--cfg-options', 'a=1', 'b=2', '--amp', 'x=1'], ['--cfg-options', 'a=1', '--cfg-options', 'b=2', '--amp', 'x=1']),
        (['--input-shape', '1', '3', '8', 'c.py'], ['--input-shape', '1', '--input-shape', '3', '--input-shape', '8', 'c.py']),
        (['--cfg-options'], ['--cfg-options']),
        (['--cfg-options=a=1', 'c.py'], ['--cfg-options=a=1', 'c.py']),
        (['--', '--cfg-options', 'a=1', 'b=2'], ['--', '--cfg-options', 'a=1', 'b=2']),
        (['--cfg-options', 'a=-1', 'b=[(1,2),3]'], ['--cfg-options', 'a=-1', '--cfg-options', 'b=[(1,2),3]']),
    ],
)
def test_spread(given: list[str], expected: list[str]) -> None:
    assert spread(given) == expected


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('a=1', 1),
        ('a=1e-3', 1e-3),
        ('a=true', True),
        ('a=None', None),
        ('a=x=y', 'x=y'),
        ('a=1,2', [1, 2]),
        ('a=[1,2]', [1, 2]),
        ('a=(1,2)', (1, 2)),
        ('a=[(1,2),[c,d]]', [(1, 2), ['c', 'd']]),
        ('a=-1', -1),
        ('a=', ''),
    ],
)
def test_settings_are_read_as_dict_action_does(text: str, value: Any) -> None:
    assert parse_settings(*_context(), (text,)) == {'a': value}


def test_later_settings_win_and_keys_keep_their_dots() -> None:
    assert parse_settings(*_context(), ('a.b=1', '-c=2', 'a.b=3')) == {'a.b': 3, '-c': 2}


@pytest.mark.parametrize('text', ['a', '=1', ' =1', 'a=[(1,2]'])
def test_malformed_settings(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r'KEY=VALUE|cannot be read'):
        parse_settings(*_context(), (text,))


@pytest.mark.parametrize('values', [('1', '3', '8', '8'), ('1,3,8,8',), ('1x3x8x8',), ('(1, 3, 8, 8)',)])
def test_shapes(values: tuple[str, ...]) -> None:
    assert parse_shape(*_context(), values) == (1, 3, 8, 8)


@pytest.mark.parametrize('values', [('a',), ('1', '0'), ('',), ('1.5',)])
def test_bad_shapes(values: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter, match='positive integers'):
        parse_shape(*_context(), values)


def test_no_shape() -> None:
    assert parse_shape(*_context(), ()) is None
