"""`strop dashboard`: the trials of a search in the browser."""

from __future__ import annotations

import click

from strop.cli.options import command


@command(
    'dashboard',
    """
    strop dashboard runs/search
    strop dashboard my_search.journal --port 0 --open
    strop dashboard postgresql+psycopg://USER:PASSWORD@HOST/DATABASE --logs runs/logs
    """,
)
@click.argument('store', metavar='STORE|FOLDER')
@click.option('--port', type=click.IntRange(0, 65535), default=8080, show_default=True, help='Port; 0 for any free one.')
@click.option(
    '--host',
    default='127.0.0.1',
    show_default=True,
    help='Address to listen on. Nobody is asked for a password: with 0.0.0.0 whoever reaches this machine reads everything.',
)
@click.option(
    '--logs',
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help='Folder with the logs of trials, beside those next to the store; may be given several times.',
)
@click.option('--open', 'browser', is_flag=True, help='Open the page in the browser.')
def dashboard(store: str, port: int, host: str, logs: tuple[str, ...], browser: bool) -> None:
    """Show the trials of a search in the browser, also while it runs.

    STORE is a search.journal, the folder of one, an SQLite file or a database URL. The page is optuna-dashboard's, with the
    picture of the search space, the best value so far or the Pareto front, and each trial's subnet and log as artefacts.
    It only reads. Ctrl-C ends it.
    """
    from strop.cli.console import note
    from strop.report.dashboard import Dashboard
    from strop.search.urls import hide_secrets

    served = Dashboard(store, host=host, port=port, logs=logs)
    try:
        if not served.local:
            note(
                f'WARNING: this dashboard listens on {host}, not only on this machine. Nobody is asked for a password: whoever '
                f'reaches port {served.port} reads all trials, logs and subnets. --host 127.0.0.1 keeps it to this machine.'
            )
        note(f'{hide_secrets(store)} is shown at {served.url} (Ctrl-C ends it)')
        if browser and not served.open_browser():
            note('there is no browser here; open the address in one')
        served.serve()
    except KeyboardInterrupt:
        note('the dashboard has ended')
    finally:
        served.close()
