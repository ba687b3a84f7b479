"""`strop report` and `strop compare`: what `strop compress` did, as a page, in the terminal, and side by side."""

from __future__ import annotations

from pathlib import Path

import click

from strop.cli.options import command


@command(
    'report',
    """
    strop report compressed
    strop report compressed --output report.html --open
    strop report compressed --json
    """,
)
@click.argument('folder', metavar='FOLDER')
@click.option('--output', type=click.Path(dir_okay=False), help='The page; report.html in the folder by default.')
@click.option('--open', 'browser', is_flag=True, help='Open the page in the browser.')
@click.option('--json', 'as_json', is_flag=True, help='Print everything as JSON, and write no page.')
def report(folder: str, output: str | None, browser: bool, as_json: bool) -> None:
    """Show what a compression did, and write it as one HTML page.

    FOLDER is what `strop compress --output` wrote, or a result.json. The page holds everything it needs: it can be sent,
    and opened without a network. A compression that runs, or was killed, can be looked at too.
    """
    from strop.cli.console import note, show, show_json
    from strop.report.compression import CompressionReport

    found = CompressionReport(folder)
    if as_json:
        show_json(found.result.to_dict())
        return
    target = Path(output) if output else Path(folder) if Path(folder).is_dir() else Path(folder).parent
    path = found.write(target)
    show(found.table(), found.changes(), *found.sentences(), f'\nThe whole report: {path}')
    if browser:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            note('there is no browser here; open the file in one')


@command(
    'compare',
    """
    strop compare runs/pruned runs/distilled
    strop compare runs/a runs/b runs/c --html comparison.html
    """,
)
@click.argument('folders', metavar='FOLDER FOLDER...', nargs=-1, required=True)
@click.option('--html', type=click.Path(dir_okay=False), help='Write the comparison as one HTML page, too.')
@click.option('--json', 'as_json', is_flag=True, help='Print everything as JSON.')
def compare(folders: tuple[str, ...], html: str | None, as_json: bool) -> None:
    """Show two or more compressions side by side.

    Each FOLDER is what `strop compress --output` wrote, or a result.json.
    """
    from strop.cli.console import show, show_json
    from strop.report.compression_runs import RunComparison

    if len(folders) < 2:
        raise click.UsageError(f'A comparison needs two or more folders, but got {len(folders)}.')
    found = RunComparison(folders)
    if html is not None:
        found.write(html)
    if as_json:
        show_json(found.to_dict())
        return
    show(found.table())
    if html is not None:
        show(f'\nThe page: {html}')
