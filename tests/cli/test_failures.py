from __future__ import annotations

from pathlib import Path

import click
import pytest

from strop.cli.failures import describe, one_line
from strop.errors import BudgetError, ConfigError, UnknownKeyError


@pytest.mark.parametrize(
    ('error', 'line', 'code'),
    [
        (ConfigError('a\n  b'), 'strop: error: a b', 1),
        (UnknownKeyError('no such key'), 'strop: error: no such key', 1),
        (BudgetError('too little'), 'strop: error: too little', 3),
        (FileNotFoundError(2, 'No such file or directory', 'x.py'), 'strop: error: x.py: No such file or directory', 1),
        (FileNotFoundError('There is no checkpoint at x.'), 'strop: error: There is no checkpoint at x.', 1),
        (KeyError('a sentence'), 'strop: error: KeyError: a sentence (--debug shows the traceback)', 1),
        (click.UsageError('wrong'), 'strop: error: wrong', 2),
        (KeyboardInterrupt(), 'strop: interrupted', 130),
        (click.Abort(), 'strop: interrupted', 130),
    ],
)
def test_describe(error: BaseException, line: str, code: int) -> None:
    assert describe(error) == (line, code)


def test_an_error_of_user_code_names_its_place(tmp_path: Path) -> None:
    file = tmp_path / 'mine.py'
    file.write_text('def broken():\n    raise RuntimeError("shapes differ")\n')
    scope: dict[str, object] = {}
    exec(compile(file.read_text(), str(file), 'exec'), scope)
    with pytest.raises(RuntimeError) as caught:
        scope['broken']()  # type: ignore[operator]
    line, code = describe(caught.value)
    assert line == f'strop: error: RuntimeError: shapes differ ({file}:2) (--debug shows the traceback)'
    assert code == 1


def test_very_long_messages_keep_their_ends() -> None:
    line = one_line('a' * 1000 + 'b' * 1000, limit=100)
    assert line == 'a' * 50 + ' ... ' + 'b' * 50
