from __future__ import annotations

import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from strop.errors import ConfigError, UnsafeFileError
from strop.files import atomic_path, atomic_write, json_number, json_text, number_of_json, read_json, read_text


@pytest.fixture
def umask() -> object:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


class TestAtomicWrites:
    @pytest.mark.parametrize('content', ['text: é\n', b'\x00\xff', '', 'x' * 3_000_000])
    def test_the_content(self, tmp_path: Path, content: str | bytes) -> None:
        path = tmp_path / 'new' / 'folder' / 'a.bin'
        atomic_write(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert [child.name for child in path.parent.iterdir()] == ['a.bin']

    def test_the_suffix_is_that_of_the_target(self, tmp_path: Path) -> None:
        with atomic_path(tmp_path / 'weights.tar.gz') as temporary:
            assert temporary.suffix == '.gz'
            assert temporary.parent == tmp_path
            assert temporary.name.startswith('.')
            temporary.write_text('x')

    def test_an_exception_leaves_the_old_content(self, tmp_path: Path) -> None:
        path = tmp_path / 'a.txt'
        atomic_write(path, 'old')

        def fail() -> None:
            with atomic_path(path) as temporary:
                temporary.write_text('half of the n')
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert path.read_text() == 'old'
        assert [child.name for child in tmp_path.iterdir()] == ['a.txt']

    def test_a_first_write_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(UnicodeEncodeError):
            atomic_write(tmp_path / 'a.txt', '\ud800')
        assert list(tmp_path.iterdir()) == []

    def test_nested_writers_of_one_file_do_not_meet(self, tmp_path: Path) -> None:
        path = tmp_path / 'a.txt'
        with atomic_path(path) as outer, atomic_path(path) as inner:
            assert outer != inner
            outer.write_text('outer')
            inner.write_text('inner')
        assert path.read_text() == 'outer'

    @pytest.mark.parametrize(('mask', 'mode'), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_the_umask_decides_who_can_read(self, tmp_path: Path, umask: object, mask: int, mode: int) -> None:
        umask(mask)
        atomic_write(tmp_path / 'a.txt', 'x')
        assert stat.S_IMODE((tmp_path / 'a.txt').stat().st_mode) == mode
        assert os.umask(mask) == mask

    @pytest.mark.parametrize(('mask', 'mode'), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_the_umask_decides_for_libraries_that_replace_the_file(
        self, tmp_path: Path, umask: object, mask: int, mode: int
    ) -> None:
        umask(mask)
        for before in (None, 0o600, 0o666):
            path = tmp_path / f'{before}.safetensors'
            if before is not None:
                path.touch()
                path.chmod(before)
            with atomic_path(path) as temporary:
                save_file({'a': torch.arange(3)}, temporary)
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert load_file(path)['a'].tolist() == [0, 1, 2]

    @pytest.mark.parametrize('moment', ['before writing', 'in the middle', 'before the rename'])
    def test_sigkill(self, tmp_path: Path, moment: str) -> None:
        path = tmp_path / 'a.txt'
        atomic_write(path, 'old')
        code = f"""
import os, signal, sys
from strop.files import atomic_path
with atomic_path({str(path)!r}) as temporary:
    stream = open(temporary, 'w')
    for part in range(3):
        if {moment!r} == ('before writing', 'in the middle')[min(part, 1)] and part < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        stream.write('new' * 100_000)
        stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, '-c', code], check=False, timeout=120)
        assert done.returncode == -signal.SIGKILL
        assert path.read_text() == 'old'

    def test_sigkill_at_random_moments(self, tmp_path: Path) -> None:
        path = tmp_path / 'a.txt'
        code = f"""
from strop.files import atomic_write
for step in range(10**9):
    atomic_write({str(path)!r}, str(step % 10) * 500_000)
"""
        for wait in (0.0, 0.013, 0.05):
            path.unlink(missing_ok=True)
            process = subprocess.Popen([sys.executable, '-c', code])
            try:
                deadline = time.monotonic() + 60
                while not path.exists() and time.monotonic() < deadline:
                    time.sleep(0.002)
                time.sleep(wait)
            finally:
                process.kill()
                process.wait()
            text = path.read_text()
            assert len(text) == 500_000
            assert len(set(text)) == 1


class TestReading:
    @pytest.mark.parametrize('content', [b'PK\x03\x04', b'\x80\x02}', b'\x80\x04\x95', b'\x80\x05'])
    def test_pickles_are_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / 'a').write_bytes(content)
        with pytest.raises(UnsafeFileError, match=r'a looks like a pickle or a torch checkpoint\. A recipe is JSON or YAML'):
            read_text(tmp_path / 'a', 'a recipe')

    def test_other_binaries(self, tmp_path: Path) -> None:
        (tmp_path / 'a').write_bytes(b'\xff\xd8\xff\xe0')
        with pytest.raises(ValueError, match='not UTF-8 text, so it is not a recipe'):
            read_text(tmp_path / 'a', 'a recipe')

    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / 'a').write_text('é', encoding='utf-8')
        (tmp_path / 'b').write_text('é', encoding='utf-8-sig')
        assert read_text(tmp_path / 'a', 'a recipe') == read_text(tmp_path / 'b', 'a recipe') == 'é'
        with pytest.raises(FileNotFoundError):
            read_text(tmp_path / 'c', 'a recipe')


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match=r"No space left on device: '.*result\.json'"):
        atomic_write(tmp_path / 'result.json', 'text')
    assert not list(tmp_path.iterdir())


class TestReadingJson:
    @pytest.mark.parametrize('content', ['', '{"a": ', '[' * 100_000])
    def test_what_is_none_is_named(self, tmp_path: Path, content: str) -> None:
        (tmp_path / 'a.json').write_text(content)
        with pytest.raises(ConfigError, match=r'a\.json is not JSON, so it is not a record'):
            read_json(tmp_path / 'a.json', 'a record')

    def test_a_pickle_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / 'a.json').write_bytes(b'\x80\x04K')
        with pytest.raises(UnsafeFileError, match='A record is JSON'):
            read_json(tmp_path / 'a.json', 'a record')


class TestNumbersInJson:
    @pytest.mark.parametrize(
        ('value', 'text'), [(math.inf, '"inf"'), (-math.inf, '"-inf"'), (math.nan, '"nan"'), (1.5, '1.5'), (-2, '-2')]
    )
    def test_what_json_holds_comes_back_with_its_sign(self, value: float, text: str) -> None:
        assert json.dumps(json_number(value), allow_nan=False) == text
        assert str(number_of_json(json.loads(text))) == str(float(value))

    def test_a_whole_text_has_no_number_that_a_reader_refuses(self) -> None:
        content = {
            'score': math.nan, 'array': np.float32(0.5), 'count': np.int64(3), 'file': Path('a.onnx'),
            'inside': [(1, -math.inf), {'yes': True, 'none': None}],
        }  # fmt: skip
        assert json.loads(json_text(content), parse_constant=pytest.fail) == {
            'score': 'nan', 'array': 0.5, 'count': 3, 'file': 'a.onnx',
            'inside': [[1, '-inf'], {'yes': True, 'none': None}],
        }  # fmt: skip
        assert json_text({'ä': 1}, indent=1) == '{\n "ä": 1\n}'

    def test_older_files_have_null_or_no_json(self) -> None:
        assert number_of_json(None) == math.inf
        assert number_of_json(json.loads('-Infinity')) == -math.inf

    @pytest.mark.parametrize('value', ['Infinity', '1.5', '', True, [], {}])
    def test_other_things_are_refused(self, value: object) -> None:
        with pytest.raises(ConfigError, match="a number or one of 'nan', 'inf' and '-inf', but got"):
            number_of_json(value)


def test_a_number_of_too_many_digits_is_no_json(tmp_path):
    (tmp_path / 'a.json').write_text('{"macs": ' + '9' * 5000 + '}')
    with pytest.raises(ConfigError, match='is not JSON'):
        read_json(tmp_path / 'a.json', 'a result')


def test_a_link_leads_to_the_file_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs' / 'a.json').write_text('old')
    (tmp_path / 'latest.json').symlink_to(tmp_path / 'runs' / 'a.json')
    (tmp_path / 'next.json').symlink_to(tmp_path / 'runs' / 'b.json')
    atomic_write(tmp_path / 'latest.json', 'new')
    atomic_write(tmp_path / 'next.json', 'first')
    assert (tmp_path / 'latest.json').is_symlink()
    assert (tmp_path / 'next.json').is_symlink()
    assert {path.name: path.read_text() for path in (tmp_path / 'runs').iterdir()} == {'a.json': 'new', 'b.json': 'first'}


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    reader = subprocess.Popen([sys.executable, '-c', f'print(open({str(pipe)!r}).read())'], stdout=subprocess.PIPE, text=True)
    atomic_write(pipe, 'through')
    assert reader.communicate(timeout=60)[0] == 'through\n'
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(OSError, match='device or a pipe'), atomic_path(pipe):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ['pipe']
