"""`strop doctor`: what is installed, what runs, and what is known to go wrong here."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from strop.cli.options import command

# Distribution -> module. Without one of the first Strop does not work, without one of the second a part of it.
NEEDED = {
    'torch': 'torch',
    'numpy': 'numpy',
    'onedl-mmengine': 'mmengine',
    'opencv-python-headless': 'cv2',
    'optuna': 'optuna',
    'safetensors': 'safetensors',
    'pyyaml': 'yaml',
    'jsonschema': 'jsonschema',
    'jinja2': 'jinja2',
    'rich': 'rich',
    'click': 'click',
}
OPTIONAL = {
    'torchvision': ('torchvision', 'vision'),
    'pillow': ('PIL', 'vision'),
    'onnx': ('onnx', 'onnx'),
    'onnxscript': ('onnxscript', 'onnx'),
    'onnxruntime': ('onnxruntime', 'onnx'),
    'openvino': ('openvino', 'openvino'),
    'matplotlib': ('matplotlib', 'report'),
    'tensorboard': ('tensorboard', 'tensorboard'),
    'cmaes': ('cmaes', 'samplers'),
    'mlxtend': ('mlxtend', 'demo'),
    'timm': ('timm', 'timm'),
    'transformers': ('transformers', 'transformers'),
}
OK, ABSENT, WARNING, BROKEN = 'ok', 'absent', 'warning', 'broken'
_STYLES = {OK: 'green', ABSENT: 'dim', WARNING: 'yellow', BROKEN: 'bold red'}


@dataclass(frozen=True)
class Check:
    """What was found about one thing."""

    part: str
    name: str
    state: str
    detail: str


@command(
    'doctor',
    """
    strop doctor
    strop doctor --json
    """,
)
@click.option('--work-dir', type=click.Path(file_okay=False), default='.', help='Folder to write a file to, as a run would.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
@click.pass_context
def doctor(ctx: click.Context, work_dir: str, as_json: bool) -> None:
    """Look over the installation: versions, runtimes (each runs a small model), devices, threads, files, known traps.

    Exit code 1 if something that Strop needs is broken; what is optional and absent is only listed.
    """
    from strop.cli.console import show, show_json

    checks = [*packages(), *registries(), *runtimes(), *quantization(), *devices(), *files(Path(work_dir))]
    broken = [check.name for check in checks if check.state == BROKEN]
    if as_json:
        show_json({'ok': not broken, 'broken': broken, 'checks': [asdict(check) for check in checks]})
    else:
        show(_table(checks))
        show(f'Broken: {", ".join(broken)}.' if broken else 'Everything that Strop needs works.')
    ctx.exit(1 if broken else 0)


def _table(checks: list[Check]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for name in ('', 'what', 'state', 'detail'):
        table.add_column(name, overflow='fold', no_wrap=name in ('', 'state'))
    last = ''
    for check in checks:
        if last and check.part != last:
            table.add_section()
        part, last = '' if check.part == last else check.part, check.part
        style = _STYLES[check.state]
        table.add_row(part, check.name, f'[{style}]{check.state}[/]', escape(check.detail))
    return table


def _guarded(part: str, name: str, test: Callable[[], str], otherwise: str = BROKEN) -> Check:
    """Run a test that returns a detail; any failure of it is a finding, not an error of the doctor."""
    try:
        return Check(part, name, OK, test())
    except Exception as error:
        return Check(part, name, otherwise, f'{type(error).__name__}: {" ".join(str(error).split())[:300]}')


def packages() -> list[Check]:
    """Import every package that Strop uses."""
    from strop import __version__

    found = [
        Check('versions', 'strop', OK, f'{__version__} in {Path(__file__).parents[1]}'),
        Check(
            'versions',
            'python',
            OK if sys.version_info >= (3, 10) else BROKEN,
            f'{platform.python_version()}, {sys.executable}',
        ),
    ]
    found += [_guarded('versions', name, partial(_version, name, module)) for name, module in NEEDED.items()]
    for name, (module, extra) in OPTIONAL.items():
        try:
            version(name)
        except PackageNotFoundError:
            found.append(Check('versions', name, ABSENT, f"optional: pip install 'strop[{extra}]'"))
        else:
            found.append(_guarded('versions', name, partial(_version, name, module), WARNING))
    return found


def _version(name: str, module: str) -> str:
    imported = importlib.import_module(module)
    if module == 'cv2' and not hasattr(imported, 'imread'):
        raise ImportError('cv2 is an empty shell: uninstall every opencv package, then install opencv-python-headless alone.')
    try:
        return version(name)
    except PackageNotFoundError:
        # cv2 comes from one of four distributions, mmengine from two.
        return str(getattr(imported, '__version__', 'version unknown'))


def registries() -> list[Check]:
    """Import all rooms and look up a class under both prefixes."""

    def look_up() -> str:
        from strop.registry import LOOPS, MODELS

        same = MODELS.get('strop.SPOS') is MODELS.get('mmrazor.SPOS')
        if not same:
            raise LookupError('strop.SPOS and mmrazor.SPOS are different classes.')
        return f'{len(MODELS.module_dict)} models, {len(LOOPS.module_dict)} loops; strop.SPOS is mmrazor.SPOS'

    def two_engines() -> str:
        for name in ('mmengine', 'mmengine-lite'):
            try:
                found = version(name)
            except PackageNotFoundError:
                continue
            raise ImportError(
                f'{name} {found} and onedl-mmengine both install `mmengine`: pip uninstall {name}, then '
                'reinstall onedl-mmengine.'
            )
        return 'onedl-mmengine alone'

    return [_guarded('packages', 'registries', look_up), _guarded('packages', 'one mmengine', two_engines, WARNING)]


def runtimes() -> list[Check]:
    """Run a small model on every runtime and compare with PyTorch."""
    try:
        import torch
        from torch import nn

        from strop.estimators import runtimes as known
    except Exception as error:
        return [Check('runtimes', 'eager', BROKEN, f'{type(error).__name__}: {error}')]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    inputs = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(inputs)
    found = []
    for name, entry in known().items():
        if not entry.available:
            found.append(Check('runtimes', name, ABSENT, f"optional: pip install 'strop[{entry.extra}]'"))
            continue

        def run(entry: Any = entry) -> str:
            output = entry.prepare(model, inputs)()
            output = output[0] if isinstance(output, (list, tuple)) else output
            difference = float((torch.as_tensor(output) - expected).abs().max())
            if difference > 1e-4:
                raise ArithmeticError(f'its output differs from PyTorch by {difference:.2g}')
            return f'{entry.package} {entry.version}: a small model ran, difference to PyTorch {difference:.1g}'

        found.append(_guarded('runtimes', name, run, BROKEN if name == 'eager' else WARNING))
    return found


def quantization() -> list[Check]:
    """List the backends of quantization; `strop quantize` runs what it writes, so that nothing is run here."""

    def entries() -> list[Check]:
        from strop.quantization import backends

        return [
            Check('quantization', name, OK, f'{entry.package} {entry.version}: {entry.takes}')
            if entry.available
            else Check('quantization', name, ABSENT, f"optional: pip install 'strop[{entry.extra}]'")
            for name, entry in backends().items()
        ]

    try:
        return entries()
    except Exception as error:
        return [Check('quantization', 'backends', BROKEN, f'{type(error).__name__}: {error}')]


def devices() -> list[Check]:
    """List accelerators and threads."""

    def accelerators() -> str:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if torch.backends.mps.is_available():
            names.append('Apple GPU (mps)')
        return ', '.join(names) or 'none: everything runs on the CPU'

    def threads() -> str:
        import torch

        given = {name: os.environ[name] for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS') if name in os.environ}
        usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        text = f'{torch.get_num_threads()} threads of torch, {usable} of {os.cpu_count()} cores usable'
        if torch.get_num_threads() > usable:
            raise RuntimeError(f'{text}: more threads than cores make everything slow; set OMP_NUM_THREADS={usable}.')
        return text + (f', {given}' if given else '')

    return [_guarded('machine', 'accelerators', accelerators, WARNING), _guarded('machine', 'threads', threads, WARNING)]


def files(folder: Path) -> list[Check]:
    """Write a file as a run would, and look at the space left."""

    def write() -> str:
        from strop.files import atomic_write

        probe = folder / f'.strop-doctor-{os.getpid()}'
        atomic_write(probe, 'strop')
        probe.unlink()
        return f'{folder.resolve()} can be written to'

    def space() -> str:
        existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
        free = shutil.disk_usage(existing).free / 2**30
        if free < 1:
            raise OSError(f'only {free:.2f} GiB are free in {existing}')
        return f'{free:.1f} GiB free'

    def configs() -> str:
        from strop.cli.configs import find_config

        return str(find_config('strop::spos/spos_shufflenet_supernet_mnist.py'))

    return [
        _guarded('files', 'work directory', write),
        _guarded('files', 'disk', space, WARNING),
        _guarded('files', 'shipped configs', configs, WARNING),
    ]
