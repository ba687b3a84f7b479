"""`strop migrate`: what files of MMRazor and NNI need to run here, and the changed files on request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import command

if TYPE_CHECKING:
    from strop.compat.migration import Migration

_STYLES = {'change': 'yellow', 'by hand': 'red', 'note': 'dim'}


@command(
    'migrate',
    """
    strop migrate configs/spos_supernet.py
    strop migrate configs/*.py --quiet
    strop migrate darts_search.py --write
    strop migrate experiment.yml --json
    """,
)
@click.argument('files', nargs=-1, required=True, metavar='FILE...')
@click.option('--write', is_flag=True, help='Write each changed file beside the old one, as NAME_strop.py.')
@click.option('--output', type=click.Path(dir_okay=False), help='Write the changed file here; for one FILE alone.')
@click.option('--force', is_flag=True, help='Write over a file that is there.')
@click.option('--quiet', is_flag=True, help='Leave out notes on what works as it is.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
def migrate(files: tuple[str, ...], write: bool, output: str | None, force: bool, quiet: bool, as_json: bool) -> int:
    """Print what configs, scripts and experiments of MMRazor and NNI need to run here.

    A FILE is a config or a script (.py), or an experiment of NNI (.yml, .yaml, .json). It is parsed and never run. Each line
    of the answer is a change that --write makes, something to be done by hand, or a note on what works but is to be
    known. Give a config together with the bases beside it: the changed config inherits the changed bases. UPGRADING.md has
    all the old names and the new ones.

    The exit code is 0 if every file works as it is, or as it was written, and 1 if something is left to be done.
    """
    from strop.cli.console import show_json
    from strop.compat.inheritance import changed_file
    from strop.compat.migration import examine
    from strop.errors import ConfigError

    if output is not None and len(files) > 1:
        raise click.UsageError(f'--output names one file, but there are {len(files)} to be changed; use --write.')
    found = [examine(path, files) for path in files]
    targets = {item.path: Path(output) if output else changed_file(item.path) for item in found}
    wanted = [item for item in found if (write or output is not None) and item.result != item.text]
    for item in wanted:
        if targets[item.path].exists() and not force:
            raise ConfigError(f'{targets[item.path]} is there already; --force writes over it.')
    written = {item.path: _write(item, targets[item.path]) for item in wanted}
    if as_json:
        show_json({'files': [_content(item, written.get(item.path)) for item in found]})
    else:
        for item in found:
            _print(item, written.get(item.path), quiet)
    left = [item for item in found if item.of('by hand') or (item.of('change') and item.path not in written)]
    return 1 if left else 0


def _write(item: Migration, target: Path) -> Path:
    from strop.files import atomic_write

    atomic_write(target, item.result)
    return target


def _content(item: Migration, written: Path | None) -> dict[str, Any]:
    changes = [{'line': change.line, 'kind': change.kind, 'text': change.text} for change in item.changes]
    return {'file': str(item.path), 'runs': item.runs, 'written': str(written) if written else None, 'changes': changes}


def _print(item: Migration, written: Path | None, quiet: bool) -> None:
    colour = sys.stdout.isatty()
    for change in item.changes:
        if quiet and change.kind == 'note':
            continue
        place = f'{item.path}:{change.line}' if change.line else str(item.path)
        kind = click.style(change.kind, fg=_STYLES[change.kind]) if colour and change.kind != 'note' else change.kind
        click.echo(f'{place}: {kind}: {change.text}{"" if change.text.endswith("?") else "."}')
    counts = [(len(item.of(kind)), kind) for kind in ('change', 'by hand')]
    if item.runs:
        click.echo(f'{item.path} works as it is.')
    else:
        said = [
            f'{number} {"change" if number == 1 else "changes"} {"to make" if kind == "change" else "by hand"}'
            for number, kind in counts
            if number
        ]
        made, by_hand = counts[0][0], counts[1][0]
        pronoun = 'the former' if by_hand else 'it' if made == 1 else 'them'
        how = f'; --write makes {pronoun}' if made and not written else ''
        click.echo(f'{item.path} needs {" and ".join(said)}{how}.')
    if written:
        click.echo(f'{written} is the changed file.')
