from __future__ import annotations

import json
from pathlib import Path

import pytest

from strop.compat.migration import examine

from .running import strop

OLD = "optimizer = dict(type='SGD', lr=0.1)\nworkflow = [('train', 1)]\n"
HARD = "model = dict(type='BigNAS')\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / 'old.py'
    path.write_text(OLD)
    return path


def test_a_file_that_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / 'new.py').write_text("model = dict(type='SPOS')\nlauncher = 'pytorch'\n")
    done = strop('migrate', 'new.py', cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        'new.py:2: note: `launcher` is an option: `--launcher pytorch` under torchrun.',
        'new.py works as it is.',
    ]
    assert strop('migrate', 'new.py', '--quiet', cwd=tmp_path).stdout == 'new.py works as it is.\n'


def test_what_is_to_be_changed_is_printed_with_lines_and_nothing_is_written(old: Path) -> None:
    done = strop('migrate', 'old.py', cwd=old.parent)
    assert done.returncode == 1
    assert [line.split(':')[:3] for line in done.stdout.splitlines()[:2]] == [
        ['old.py', '1', ' change'],
        ['old.py', '2', ' change'],
    ]
    assert done.stdout.splitlines()[2] == 'old.py needs 2 changes to make; --write makes them.'
    assert [path.name for path in old.parent.iterdir()] == ['old.py']


def test_the_changed_file_is_written_beside_and_never_over_another(old: Path) -> None:
    done = strop('migrate', 'old.py', '--write', cwd=old.parent)
    assert done.returncode == 0
    written = old.parent / 'old_strop.py'
    assert 'old_strop.py is the changed file.' in done.stdout
    assert written.read_text() == examine(old).result != OLD
    assert old.read_text() == OLD
    written.write_text('mine')
    again = strop('migrate', 'old.py', '--write', cwd=old.parent)
    assert again.returncode == 1
    assert again.stderr == 'strop: error: old_strop.py is there already; --force writes over it.\n'
    assert written.read_text() == 'mine'
    assert strop('migrate', 'old.py', '--write', '--force', cwd=old.parent).returncode == 0
    assert examine(written).runs
    assert strop('migrate', 'old.py', '--output', 'x.py', cwd=old.parent).returncode == 0
    assert (old.parent / 'x.py').read_text() == written.read_text()


def test_what_is_left_by_hand_is_told_by_the_exit_code(old: Path) -> None:
    old.write_text(OLD + HARD)
    done = strop('migrate', 'old.py', '--write', cwd=old.parent)
    assert done.returncode == 1
    assert 'old.py needs 2 changes to make and 1 change by hand.' in done.stdout
    assert (old.parent / 'old_strop.py').is_file()


def test_json_of_several_files(old: Path) -> None:
    (old.parent / 'hard.py').write_text(HARD)
    done = strop('migrate', 'old.py', 'hard.py', '--json', cwd=old.parent)
    assert done.returncode == 1
    files = json.loads(done.stdout)['files']
    assert [(item['file'], item['runs'], item['written'], len(item['changes'])) for item in files] == [
        ('old.py', False, None, 2),
        ('hard.py', False, None, 1),
    ]
    assert files[1]['changes'][0]['kind'] == 'by hand'


def test_one_name_is_not_given_to_two_files(old: Path) -> None:
    done = strop('migrate', 'old.py', 'old.py', '--output', 'x.py', cwd=old.parent)
    assert done.returncode == 2
    assert '--output names one file' in done.stderr


@pytest.mark.parametrize(
    ('name', 'text', 'words'),
    [
        ('absent.py', None, "There is no file absent.py. Did you mean 'absent2.py'?"),
        ('bad.py', 'a = (', 'bad.py:1 is not Python'),
        ('bad.txt', 'a', 'A config ends with .py'),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    (tmp_path / (name if text is not None else 'absent2.py')).write_text(text or '')
    done = strop('migrate', name, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f'strop: error: {words}')


BASE = "algorithm = dict(type='BaseAlgorithm')\n" + OLD
CHILD = "_base_ = ['./base.py']\nalgorithm = dict(retraining=True)\n"


def test_a_config_and_its_base_are_written_as_a_pair_and_neither_alone(tmp_path: Path) -> None:
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'child.py').write_text(CHILD)
    alone = strop('migrate', 'child.py', '--write', cwd=tmp_path)
    assert alone.returncode == 1
    assert alone.stdout.splitlines() == [
        "child.py:1: by hand: the base './base.py' needs changes, too: give both files to `strop migrate`, and one new file "
        'inherits the other.',
        'child.py:2: note: `algorithm` is `model` now; it is understood as it is, and keeps its name beside bases that may '
        'have it.',
        'child.py needs 1 change by hand.',
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['base.py', 'child.py']
    both = strop('migrate', 'child.py', 'base.py', '--write', cwd=tmp_path)
    assert both.returncode == 0
    assert both.stdout.splitlines()[:4] == [
        "child.py:1: change: the base './base.py' is './base_strop.py', its changed file.",
        'child.py:2: note: `algorithm` is `model` now; it is understood as it is.',
        'child.py needs 1 change to make.',
        'child_strop.py is the changed file.',
    ]
    assert (tmp_path / 'base_strop.py').read_text().startswith("model = dict(type='BaseAlgorithm')\noptim_wrapper = ")
    assert (tmp_path / 'child_strop.py').read_text() == "_base_ = ['./base_strop.py']\nmodel = dict(retraining=True)\n"
