"""optuna-dashboard over a store of searches, with Strop's artefacts; it reads, and answers this machine alone."""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import os
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optuna.storages import BaseStorage

from strop.errors import ConfigError, try_import
from strop.report.stores import READ_ONLY, open_read_only
from strop.report.study_view import LOG_FOLDERS, StudyView
from strop.search.urls import hide_secrets


class Dashboard:
    """The trials of a store in the browser, live while the search runs.

    Nothing is written: not to the store, not beside it. Requests that would change something are refused. Whoever
    reaches the port can read everything, so it is that of the loopback interface unless `host` says otherwise; there
    also pages of other sites are kept out, which could reach the port under a name of their own (DNS rebinding).

    Args:
        store: A journal, the folder of one, an SQLite file, a database URL, or an Optuna storage.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        logs: Folders with logs of trials, see `StudyView`; the store's own folder with its `logs` and `trials` too.

    Raises:
        ConfigError: If the address or the port cannot be used.
        StoreError: If the store is missing, unreadable, or holds no search that Strop made.
        MissingDependencyError: If optuna-dashboard is not installed (extra `dashboard`).

    >>> import json, tempfile, urllib.request
    >>> from strop.mutables import OneOf, Space
    >>> from strop.search import run
    >>> folder = tempfile.mkdtemp()
    >>> _ = run(Space({'x': OneOf((1, 2, 3))}), lambda subnet: subnet['x'], strategy='grid', store=folder)
    >>> with Dashboard(folder, port=0) as dashboard:
    ...     answer = json.load(urllib.request.urlopen(f'{dashboard.url}/api/studies'))
    >>> [study['study_name'] for study in answer['study_summaries']]
    ['search']
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | BaseStorage,
        *,
        host: str = '127.0.0.1',
        port: int = 8080,
        logs: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        create_app: Callable[..., Any] = try_import('optuna_dashboard._app', 'dashboard').create_app
        if not 0 <= port <= 65535:
            raise ConfigError(f'`port` must be between 0 (any free one) and 65535, but got {port}.')
        missing = [os.fspath(folder) for folder in logs if not Path(folder).is_dir()]
        if missing:
            raise ConfigError(f'Logs are in a folder, but {missing[0]!r} is none.')
        storage, folder = open_read_only(store)
        around = [] if folder is None else [folder / name for name in LOG_FOLDERS]
        where = type(store).__name__ if isinstance(store, BaseStorage) else os.fspath(store)
        self.view = StudyView(storage, [*around, *map(Path, logs)], where)
        # What the page's own code logs when a store does not answer may hold the store's address.
        logging.getLogger('optuna_dashboard._bottle_util').addFilter(_without_secrets)
        self.host = host
        self.local = _is_loopback(host)
        guarded = _Guard(create_app(self.view, artifact_store=self.view), self.local)
        self._server = _listen(host, port, guarded)
        self.port: int = self._server.server_port
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address for a browser on this machine."""
        host = {'0.0.0.0': '127.0.0.1', '::': '[::1]'}.get(self.host, self.host)
        return f'http://{f"[{host}]" if ":" in host and not host.startswith("[") else host}:{self.port}'

    def serve(self) -> None:
        """Answer until interrupted."""
        self._server.serve_forever(poll_interval=0.2)

    def start(self) -> None:
        """Answer from a thread of this process."""
        self._thread = threading.Thread(target=self.serve, name='strop-dashboard', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, and give the port back."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self.view.remove_session()

    def open_browser(self) -> bool:
        """Show the page in the browser of this machine; whether there is one."""
        return webbrowser.open(self.url)

    def __enter__(self) -> Dashboard:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_secrets(record: logging.LogRecord) -> bool:
    record.msg, record.args = hide_secrets(record.getMessage()), ()
    return True


class _Guard:
    """What every request passes: nothing is changed, and a loopback port answers only to this machine's names."""

    def __init__(self, app: Callable[..., Any], local: bool) -> None:
        self._app, self._local = app, local

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ['REQUEST_METHOD'] not in ('GET', 'HEAD'):
            return self._refused(start_response, f'{READ_ONLY} Change it with the tools that own it.')
        if self._local and not _is_loopback(_host_name(environ.get('HTTP_HOST', ''))):
            return self._refused(start_response, 'This dashboard answers at 127.0.0.1 and localhost only.')
        environ.setdefault('HTTP_ACCEPT_ENCODING', '')  # optuna-dashboard takes it for granted

        def respond(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            # Artefacts hold what trials printed: a browser must not take it for a page, nor another site read it.
            kept = [(name, value) for name, value in headers if name.lower() != 'access-control-allow-origin']
            return start_response(status, [*kept, ('X-Content-Type-Options', 'nosniff')], *rest)

        return self._app(environ, respond)

    @staticmethod
    def _refused(start_response: Callable[..., Any], reason: str) -> list[bytes]:
        start_response('403 Forbidden', [('Content-Type', 'application/json')])
        return [json.dumps({'reason': reason}).encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:
        # The parent asks the name service for this machine's name, which can take seconds where there is none.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of visitors who hang up."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Print no line for each request."""


def _listen(host: str, port: int, app: Callable[..., Any]) -> _Server:
    try:
        server = (_Server6 if ':' in host else _Server)((host.strip('[]'), port), _Handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f'Port {port} of {host} is in use. Give another one, or 0 for any free one.') from None
        if error.errno == errno.EACCES:
            raise ConfigError(f'Port {port} of {host} is reserved for the system. Give one above 1023, or 0.') from None
        raise ConfigError(
            f'It is not possible to listen on {host!r}: {error.strerror or error}. Give an address of this machine, such '
            'as 127.0.0.1, or 0.0.0.0 for all of them.'
        ) from None
    server.set_app(app)
    return server


def _host_name(header: str) -> str:
    return header.partition(']')[0].lstrip('[') if header.startswith('[') else header.partition(':')[0]


def _is_loopback(host: str) -> bool:
    if host.lower() == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host.strip('[]')).is_loopback
    except ValueError:
        return False
