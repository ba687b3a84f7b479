"""A PostgreSQL server for tests: on the loopback interface, in a temporary folder, for any user but root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD = 's3cret'
_PLACES = ('/usr/lib/postgresql/*/bin', '/usr/local/pgsql/bin')
# The server refuses to run as root; these users have no rights of their own.
_USERS = ('postgres', 'nobody')


class Postgres:
    """A server that can be stopped as by a lost machine, and started again.

    Args:
        programs: The folder of `initdb` and `pg_ctl`.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = _other_user() if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix='strop-postgres-'))
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        (self.folder / 'password').write_text(PASSWORD)
        (self.folder / 'password').chmod(0o644)
        options = [
            '--username=ada',
            f'--pwfile={self.folder}/password',
            '--auth=scram-sha-256',
            '--no-sync',
            '--locale=C',
            '--encoding=UTF8',
        ]
        self._call('initdb', f'--pgdata={self.folder}/data', *options)

    @property
    def url(self) -> str:
        """Its URL, with the password."""
        return f'postgresql://ada:{PASSWORD}@127.0.0.1:{self.port}/postgres'

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = f'-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off'
        self._call('pg_ctl', '-D', f'{self.folder}/data', '-l', f'{self.folder}/log', '-w', '-o', settings, 'start')

    def stop(self) -> None:
        """End it at once, as a crash does: connections break, the next start recovers."""
        self._call('pg_ctl', '-D', f'{self.folder}/data', '-m', 'immediate', '-w', 'stop', check=False)

    def close(self) -> None:
        """End it and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, program: str, *options: str, check: bool = True) -> None:
        done = subprocess.run(
            [str(self._programs / program), *options],
            user=self._user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        if check and done.returncode != 0:
            raise OSError(f'{program} ended with exit code {done.returncode}')


def _other_user() -> str | None:
    import pwd

    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in _USERS if name in known), None)


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; None without them."""
    found = shutil.which('initdb')
    if found is not None:
        return Path(found).parent
    folders = [path for place in _PLACES for path in sorted(Path('/').glob(place[1:]), reverse=True)]
    return next((folder for folder in folders if (folder / 'initdb').exists()), None)


@pytest.fixture(scope='module')
def postgres() -> Iterator[Postgres]:
    """A running server, one for each module of tests; without PostgreSQL the test is skipped."""
    pytest.importorskip('psycopg', reason='no driver of PostgreSQL (extra postgresql)')
    programs = find_programs()
    if programs is None:
        pytest.skip('no initdb: PostgreSQL is not installed')
    if os.getuid() == 0 and _other_user() is None:
        pytest.skip('PostgreSQL does not run as root, and there is no user postgres or nobody')
    server = Postgres(programs)
    try:
        server.start()
        yield server
    finally:
        server.close()
