"""Runs tests/openmmlab in the environment of the codebases, and writes what it had and what came out.

    make test-openmmlab

The result has the versions of everything that matters, and each test with its outcome and seconds. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from record import ROOT, write_result

PACKAGES = (
    'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain', 'onedl-mmdetection', 'onedl-mmsegmentation', 'transformers', 'timm',
    'torchvision', 'opencv-python-headless', 'imaug', 'pycocotools', 'scikit-image', 'shapely', 'setuptools', 'pytest',
)  # fmt: skip
OUT = ROOT / 'benchmarks' / 'results' / 'openmmlab_environment.json'


def operators() -> str:
    """Return the file of mmcv's compiled operators, or say that there is none."""
    import mmcv

    found = sorted(Path(mmcv.__file__).parent.glob('_ext*.so'))
    return found[0].name if found else 'none: this mmcv was built without them'


def outcome_of(case: ElementTree.Element) -> str:
    """Return 'passed', 'failed', 'error', or 'skipped: ' and the reason."""
    for child in case:
        if child.tag in ('failure', 'error'):
            return f'{"failed" if child.tag == "failure" else "error"}: {(child.get("message") or "").splitlines()[0][:200]}'
        if child.tag == 'skipped':
            return f'skipped: {child.get("message")}'
    return 'passed'


def main() -> int:
    """Run pytest, write the result, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--jobs', type=int, default=1, help='test processes at a time')
    parser.add_argument('--out', type=Path, default=OUT, help='the result file')
    parser.add_argument('tests', nargs='*', default=['tests/openmmlab'], help='what pytest is given')
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        command = [sys.executable, '-m', 'pytest', *options.tests, '-p', 'no:cacheprovider', f'--junitxml={report}', '-rs']
        if options.jobs > 1:
            command += ['-n', str(options.jobs), '--dist', 'worksteal']
        code = subprocess.run(command, cwd=ROOT, env={'OMP_NUM_THREADS': '1', **os.environ}).returncode
        if not report.is_file():
            return code or 1
        cases = list(ElementTree.parse(report).iter('testcase'))
    tests = {
        f'{case.get("classname", "").removeprefix("tests.")}::{case.get("name")}': {
            'outcome': outcome_of(case),
            'seconds': round(float(case.get('time', 0)), 1),
        }
        for case in cases
    }
    kinds = [test['outcome'].partition(':')[0] for test in tests.values()]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    content = {
        'operators_of_mmcv': operators(),
        'processes': options.jobs,
        'seconds': round(time.perf_counter() - started),
        'counts': counts,
        'tests': tests,
    }
    write_result(options.out, 'openmmlab_environment', content, packages=PACKAGES)
    print(f'{options.out}: {counts}')
    return code


if __name__ == '__main__':
    sys.exit(main())
