"""A headless Chromium for tests, driven over two pipes by its DevTools protocol; no driver program is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next((path for name in ('chromium', 'chromium-browser', 'google-chrome') if (path := shutil.which(name))), None)

_FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-extensions',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-default-apps',
    '--disable-sync',
    '--enable-unsafe-swiftshader',
    '--window-size=1400,1600',
    '--remote-debugging-pipe',
)


class Browser:
    """One page of a fresh profile; `errors` are what its console was told."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        self._process = subprocess.Popen(
            # The protocol is read from descriptor 3 and written to 4.
            ['bash', '-c', f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} 2>/dev/null', 'bash', CHROMIUM, *_FLAGS]
            + [f'--user-data-dir={profile}', 'about:blank'],
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._read, self._write = ours_in, ours_out
        self._buffer = b''
        self._count = 0
        self._session: str | None = None
        self.errors: list[str] = []
        targets = self.send('Target.getTargets')['targetInfos']
        page = next(target['targetId'] for target in targets if target['type'] == 'page')
        self._session = self.send('Target.attachToTarget', targetId=page, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log'):
            self.send(f'{domain}.enable')

    def send(self, method: str, timeout: float = 60.0, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {'id': self._count, 'method': method, 'params': params}
        if self._session is not None:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        limit = time.monotonic() + timeout
        while True:
            answer = self._receive(limit)
            if answer.get('id') == self._count:
                assert 'error' not in answer, f'{method}: {answer["error"]}'
                return answer['result']

    def run(self, script: str) -> Any:
        answer = self.send('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, f'{script}: {answer["exceptionDetails"]}'
        return answer['result'].get('value')

    def open(self, url: str) -> None:
        self.send('Page.navigate', url=url)

    def text(self) -> str:
        return self.run('document.body ? document.body.innerText : ""') or ''

    def wait(self, condition: str, timeout: float = 60.0) -> None:
        """Wait until a JavaScript condition holds."""
        limit = time.monotonic() + timeout
        while not self.run(f'Boolean({condition})'):
            assert time.monotonic() < limit, f'{condition} did not come true; the page says:\n{self.text()[:2000]}'
            time.sleep(0.2)

    def wait_for(self, *words: str, timeout: float = 60.0) -> None:
        """Wait until the page shows every word."""
        for word in words:
            self.wait(f'(document.body ? document.body.innerText : "").includes({json.dumps(word)})', timeout)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send('Page.captureScreenshot', captureBeyondViewport=True)['data']))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _receive(self, limit: float) -> dict[str, Any]:
        while b'\0' not in self._buffer:
            assert select.select([self._read], [], [], max(0.0, limit - time.monotonic()))[0], 'Chromium does not answer'
            piece = os.read(self._read, 1 << 20)
            assert piece, 'Chromium has ended'
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b'\0')
        message = json.loads(line)
        self._note(message.get('method'), message.get('params', {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == 'Runtime.exceptionThrown':
            self.errors.append(str(params['exceptionDetails'].get('exception', params['exceptionDetails'])))
        elif method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'assert'):
            self.errors.append(' '.join(str(each.get('value', each.get('description'))) for each in params['args']))
        elif method == 'Log.entryAdded' and params['entry']['level'] == 'error':
            self.errors.append(f'{params["entry"]["text"]} {params["entry"].get("url", "")}')
