from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.compat.config_source import Edit, Source, edited
from strop.errors import ConfigError


def test_settings_are_found_in_calls_literals_and_lists() -> None:
    source = Source("a = dict(type='A', b={'type': 'B'}, c=[dict(type='C')])\nd: dict = dict(type='D', **a)\n")
    assert [(each.constant('type'), each.parent, each.root, each.whole) for each in source.every()] == [
        ('A', 'a', 'a', True),
        ('B', 'b', 'a', True),
        ('C', 'c', 'a', True),
        ('D', 'd', 'd', False),
    ]


def test_positions_count_characters_though_python_counts_bytes() -> None:
    source = Source("u = 'äöü'; v = 'x'\n")
    assert source.of(source.assigned['v'].value) == "'x'"
    assert edited(source.text, [source.replaced(source.assigned['v'].value, '1')]) == "u = 'äöü'; v = 1\n"


def test_a_statement_is_taken_away_with_its_line_and_its_comment() -> None:
    source = Source('a = 1\nb = dict(\n    x=1,\n)  # why\nc = 2\n')
    assert edited(source.text, [source.replaced(source.assigned['b'], '')]) == 'a = 1\nc = 2\n'


def test_of_two_statements_on_a_line_one_is_left() -> None:
    source = Source('a = 1; b = 2')
    assert edited(source.text, [source.replaced(source.assigned['a'], '')]) == 'pass; b = 2'


def test_uses_of_a_name_are_not_keywords_nor_strings() -> None:
    source = Source("model = 1\nx = dict(model=model, y='model')\n")
    renamed = edited(source.text, [source.replaced(node, 'm') for node in source.uses('model')])
    assert renamed == "m = 1\nx = dict(model=m, y='model')\n"


def test_a_scope_holds_for_what_is_inside() -> None:
    source = Source(
        "a = dict(_scope_='mmdet', type='A', b=[dict(type='B')], c=dict(_scope_='mmrazor', d={'type': 'D'}))\n"
        "e = dict(type='mmdet.E', f=dict(type='F'), _delete_=True)\n"
        "g = dict(type='mmrazor.G', h=dict(type='H', _scope_=scope))\n"
    )
    assert [(each.constant('type'), each.scope) for each in source.every()] == [
        ('A', 'mmdet'),
        ('B', 'mmdet'),
        (None, 'mmrazor'),
        ('D', 'mmrazor'),
        ('mmdet.E', ''),
        ('F', 'mmdet'),
        ('mmrazor.G', ''),
        ('H', ''),
    ]


def test_bases_and_what_is_read_of_them() -> None:
    source = Source("_base_ = ['a.py', here + 'b.py']\nx = dict(y=_base_.model.head, z={{_base_.model}}, model=_base_.other)\n")
    assert [source.of(base) for base in source.bases] == ["'a.py'", "here + 'b.py'"]
    renamed = edited(source.text, [source.replaced(node, '_base_.net') for node in source.inherited('model')])
    assert renamed.splitlines()[1] == 'x = dict(y=_base_.net.head, z={{_base_.net}}, model=_base_.other)'
    single = Source("_base_ = 'a.py'")
    assert [single.of(base) for base in single.bases] == ["'a.py'"]
    assert Source('a = 1').bases == []


def test_text_that_is_no_python_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r'config\.py:2 is not Python'):
        Source('a = 1\nb = (\n', 'config.py')


@given(
    st.text(alphabet='ab\n', max_size=20), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.text('xy', max_size=3)))
)
def test_edits_never_lose_what_lies_outside_of_them(text: str, spans: list[tuple[int, int, str]]) -> None:
    edits = [Edit(min(a, len(text)), min(a + n, len(text)), new) for a, n, new in spans]
    touched = {place for edit in edits for place in range(edit.start, edit.end)}
    kept = ''.join(letter for place, letter in enumerate(text) if place not in touched)
    rest = iter(edited(text, edits))
    assert all(letter in rest for letter in kept)
