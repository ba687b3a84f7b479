"""Files that are either wholly written or not there at all."""

from __future__ import annotations

import errno
import json
import math
import numbers
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strop.errors import ConfigError, StropError, UnsafeFileError

# What `atomic_path` writes to, and what folders are made as, before they are renamed.
_TEMPORARY = re.compile(r'\..+\.[0-9a-f]{12}(\.[^.]+)*')


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`.

    On any exception, or if the process dies, `path` keeps what it had before. Who can read the new file is what the umask
    says, also where the temporary one was replaced by another file. Where `path` is a symbolic link, the file that it leads to
    is replaced.

    Raises:
        OSError: If `path` is a device, a pipe or a socket, which cannot be replaced by a file.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / 'a.txt') as temporary:
    ...     _ = temporary.write_text('whole')
    >>> (folder / 'a.txt').read_text()
    'whole'
    """
    if _is_stream(path):
        raise OSError(errno.EINVAL, 'It is a device or a pipe, but what is written here must be a file', os.fspath(path))
    target = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{target.stem}.{secrets.token_hex(6)}{target.suffix}')
    # Not by tempfile, which makes files that only their owner can read; this mode is subject to the umask.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield temporary
        # safetensors writes a file of its own, which only its owner can read, and renames it to the one it was given.
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        with open(temporary, 'rb+') as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the temporary files and folders that killed processes left, or others are just writing, in a folder.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ('a.txt', '.a.0123456789ab.txt', '.hidden', '.model.0123456789ab'):
    ...     _ = (folder / name).write_text('')
    >>> sorted(path.name for path in leftovers(folder))
    ['.a.0123456789ab.txt', '.model.0123456789ab']
    """
    return [path for path in Path(folder).iterdir() if _TEMPORARY.fullmatch(path.name)]


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` to `path`: all of it, or nothing; a device or a pipe, such as /dev/stdout, is written to as it is.

    Raises:
        OSError: If it cannot be written; it names the file, which a full disk alone does not.
    """
    raw = content.encode() if isinstance(content, str) else content
    try:
        if _is_stream(path):
            Path(path).write_bytes(raw)
            return
        with atomic_path(path) as temporary:
            temporary.write_bytes(raw)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def _is_stream(path: str | os.PathLike[str]) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_text(path: str | os.PathLike[str], purpose: str) -> str:
    """Read a small text file, refusing pickles and other binary files by name.

    Args:
        path: The file.
        purpose: What the file should be, for the message (`'a subnet'`).

    Raises:
        UnsafeFileError: If the file is a pickle, an archive or not UTF-8 text.
        FileNotFoundError: If it does not exist.
    """
    raw = Path(path).read_bytes()
    # A zip archive is what torch.save writes; 0x80 opens every binary pickle.
    if raw[:2] in (b'PK', b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05'):
        raise UnsafeFileError(
            f'{path} looks like a pickle or a torch checkpoint. {purpose[0].upper()}{purpose[1:]} is JSON or '
            'YAML text and is never unpickled.'
        )
    try:
        return raw.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise UnsafeFileError(f'{path} is not UTF-8 text, so it is not {purpose} (JSON or YAML).') from error


def read_json(path: str | os.PathLike[str], purpose: str) -> Any:
    """Read a JSON file, refusing pickles and other binary files by name.

    Args:
        path: The file.
        purpose: What the file should be, for the message (`'a record of pruning'`).

    Raises:
        ConfigError: If it is not JSON.
        UnsafeFileError: If the file is a pickle, an archive or not UTF-8 text.
        FileNotFoundError: If it does not exist.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'record.json'
    >>> atomic_write(file, '{"version": 1}')
    >>> read_json(file, 'a record')
    {'version': 1}
    """
    try:
        return json.loads(read_text(path, purpose))
    except StropError:
        raise
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise ConfigError(f'{path} is not JSON, so it is not {purpose}: {error}') from error


def json_number(value: float) -> float | str:
    """Return a number as JSON holds it: NaN and infinities, which it does not know, as text.

    >>> json_number(0.5), json_number(-float('inf')), json_number(float('nan'))
    (0.5, '-inf', 'nan')
    """
    return value if math.isfinite(value) else str(float(value))


def json_text(content: Any, indent: int | None = None) -> str:
    """Return data as JSON that every reader takes: NaN and infinities, and what it has no form for, as text.

    >>> json_text({'score': float('nan'), 'file': Path('a.onnx'), 'values': (1, 2.5)})
    '{"score": "nan", "file": "a.onnx", "values": [1, 2.5]}'
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        if isinstance(value, numbers.Real) and not isinstance(value, int):  # those of NumPy, too
            return int(value) if isinstance(value, numbers.Integral) else json_number(float(value))
        return value

    return json.dumps(plain(content), indent=indent, ensure_ascii=False, default=str, allow_nan=False)


def number_of_json(value: Any) -> float:
    """Return the number that `json_number` wrote; null is an infinity, as older files have it.

    Raises:
        ConfigError: If it is something else.

    >>> number_of_json('-inf'), number_of_json(None), number_of_json(3)
    (-inf, inf, 3.0)
    """
    if value is None:
        return math.inf
    known = value in _NOT_FINITE if isinstance(value, str) else isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known:
        raise ConfigError(f"A number in JSON is a number or one of 'nan', 'inf' and '-inf', but got {value!r}.")
    return float(value)


_NOT_FINITE = ('nan', 'inf', '-inf')
