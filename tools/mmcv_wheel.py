"""Build a wheel of onedl-mmcv with its operators, once for each torch and Python, and print its path.

On the package index onedl-mmcv is source code only, and what a plain `pip install` makes of it has no operators (no NMS, no
RoIAlign), without a word: the build does not see torch. Detectors do not import then. So the wheel is built here, against the
torch of a given Python, and kept in a cache outside the checkout. Two cores take about fifteen minutes.

    python tools/mmcv_wheel.py --python .venv-openmmlab/bin/python

Only the path of a finished wheel goes to standard output. Needs g++ and Python's headers, and in that Python: torch, setuptools
below 81, wheel, ninja.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = '2.3.6'
_ASK = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps({
    'python': sys.executable,
    'tag': f'cp{sys.version_info.major}{sys.version_info.minor}',
    'platform': sysconfig.get_platform().replace('-', '_').replace('.', '_'),
    'headers': os.path.isfile(os.path.join(sysconfig.get_path('include'), 'Python.h')),
    'missing': [name for name in 'setuptools pkg_resources wheel ninja'.split() if importlib.util.find_spec(name) is None],
    'torch': __import__('torch').__version__ if importlib.util.find_spec('torch') else None,
}))
"""


class BuildError(SystemExit):
    """The wheel cannot be built; the message says why and what to do. As an exit code it is 1."""


def asked(python: str) -> dict[str, object]:
    """Return what matters of the Python that the wheel is for."""
    done = subprocess.run([python, '-c', _ASK], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f'{python} does not run: {done.stderr.strip()[-500:] or done.returncode}')
    return json.loads(done.stdout.splitlines()[-1])


def has_operators(wheel: Path) -> bool:
    """Tell whether a wheel is whole and has the compiled operators in it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return any(name.startswith('mmcv/_ext') and name.endswith(('.so', '.pyd')) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def cached(folder: Path) -> Path | None:
    """Return the wheel in a folder of the cache."""
    return next((wheel for wheel in sorted(folder.glob('*.whl')) if has_operators(wheel)), None)


def check_tools(facts: dict[str, object], compiler: str) -> None:
    """Raise a `BuildError` that names what is missing for a build."""
    if facts['missing']:
        raise BuildError(
            f'{facts["python"]} lacks {", ".join(facts["missing"])}: install requirements/openmmlab.txt there first, which has '
            'setuptools below 81 for pkg_resources.'
        )
    if shutil.which(compiler) is None:
        raise BuildError(f'There is no C++ compiler {compiler!r}. On Debian: apt-get install g++; or set CXX.')
    if not facts['headers']:
        raise BuildError('The headers of Python (Python.h) are missing. On Debian: apt-get install python3-dev.')


def build(facts: dict[str, object], version: str, folder: Path, jobs: int) -> Path:
    """Build the wheel in a temporary folder beside `folder`, which appears only when the wheel is whole."""
    compiler = os.environ.get('CXX', 'g++')
    check_tools(facts, compiler)
    log = folder.parent / f'{folder.name}.log'
    with tempfile.TemporaryDirectory(prefix='building-', dir=folder.parent) as temporary:
        # The newest torch needs C++20, while the package asks for C++17; of two such options the last one counts.
        wrapper = Path(temporary, 'c++')
        wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" -std=c++20\n')
        wrapper.chmod(0o755)
        made = Path(temporary, 'wheel')
        command = [str(facts['python']), '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps', '--wheel-dir', str(made)]
        # pip's cache may hold a wheel of the same name that was built without torch, and so without operators.
        command += ['--no-cache-dir', '--no-binary', 'onedl-mmcv', f'onedl-mmcv=={version}']
        bin_folder = str(Path(str(facts['python'])).parent)
        path = os.pathsep.join([bin_folder, os.environ.get('PATH', '')])
        print(f'Building onedl-mmcv {version} with {jobs} jobs: about half an hour of CPU. The log is {log}', file=sys.stderr)
        with log.open('w') as output:
            done = subprocess.run(
                command,
                env={**os.environ, 'CXX': str(wrapper), 'MAX_JOBS': str(jobs), 'PATH': path},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            tail = '\n'.join(log.read_text(errors='replace').splitlines()[-15:])
            raise BuildError(f'The build of onedl-mmcv {version} failed. The end of {log}:\n{tail}')
        if cached(made) is None:
            raise BuildError(
                f'The build of onedl-mmcv {version} made a wheel without operators: it did not see torch. See {log}'
            )
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    return cached(folder)  # type: ignore[return-value]


def wheel_for(python: str, version: str = VERSION, cache: Path | None = None, jobs: int | None = None) -> Path:
    """Return the wheel for a Python, from the cache or built now; a second process waits for the first."""
    root = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    cache = cache or root / 'strop' / 'wheels'
    facts = asked(python)
    if facts['torch'] is None:
        raise BuildError(f'{python} has no torch, which the operators are compiled against.')
    folder = cache / f'onedl_mmcv-{version}-torch{facts["torch"]}-{facts["tag"]}-{facts["platform"]}'
    folder.parent.mkdir(parents=True, exist_ok=True)
    found = cached(folder)
    if found is not None:
        return found
    with (folder.parent / f'{folder.name}.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'Another process builds {folder.name}; waiting for it.', file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return cached(folder) or build(facts, version, folder, jobs or os.cpu_count() or 1)


def main() -> None:
    """Read the command line and print the path of the wheel."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--python', default=sys.executable, help='the Python that the wheel is for; it has torch')
    parser.add_argument('--version', default=VERSION, help='of onedl-mmcv (default: %(default)s)')
    parser.add_argument('--cache', type=Path, help='folder of the wheels (default: strop/wheels in XDG_CACHE_HOME or ~/.cache)')
    parser.add_argument('--jobs', type=int, help='compilers at a time (default: one for each core)')
    options = parser.parse_args()
    print(wheel_for(options.python, options.version, options.cache, options.jobs))


if __name__ == '__main__':
    main()
