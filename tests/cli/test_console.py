"""What commands print."""

from __future__ import annotations

import json

from strop.cli.console import show_json


def test_json_holds_what_it_does_not_know_as_text(capsys):
    show_json({'times': [1.5, float('inf'), (float('nan'), 2)], 'inside': {'least': -float('inf')}, 'file': 'ä', 'none': None})
    printed = capsys.readouterr().out
    assert 'ä' in printed

    def refuse(name):
        raise AssertionError(f'{name} is no JSON')

    assert json.loads(printed, parse_constant=refuse) == {
        'times': [1.5, 'inf', ['nan', 2]], 'inside': {'least': '-inf'}, 'file': 'ä', 'none': None,
    }  # fmt: skip
