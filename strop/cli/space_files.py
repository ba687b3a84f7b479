"""`strop ss-gen`: run a trial's script only as far as its model, and write down what there is to search."""

from __future__ import annotations

import click

from strop.cli.options import command


@command(
    'ss-gen',
    """
    strop ss-gen --trial-command 'python trial.py' --trial-dir my_trial --file space.json
    strop ss-gen --trial-command 'python trial.py' --with hyper_parameters.json
    """,
)
@click.option(
    '--trial-command',
    '--trial_command',
    '-t',
    'trial_command',
    required=True,
    metavar='COMMAND',
    help='How a trial is started.',
)
@click.option(
    '--trial-dir', '--trial_dir', '-d', 'trial_dir', default='./', show_default=True, help='The folder in which it is started.'
)
@click.option(
    '--file', '-f', 'path', default='nni_auto_gen_search_space.json', show_default=True, help='The file that is written.'
)
@click.option(
    '--with',
    'others',
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help='A search space of hyper-parameters that the file shall have, too; may be given several times.',
)
@click.option(
    '--timeout', type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True, help='Seconds to wait.'
)
def ss_gen(trial_command: str, trial_dir: str, path: str, others: tuple[str, ...], timeout: float) -> None:
    """Write the search space of a trial's model as JSON, in NNI's form.

    The command is run with the environment variable NNI_GEN_SEARCH_SPACE set: `get_and_apply_next_architecture(model)`
    then writes the search space and ends the script, before anything is trained.
    """
    import tempfile
    from pathlib import Path

    from strop.cli.console import note, show
    from strop.errors import ConfigError, SpaceError
    from strop.mutables import SearchSpaceFile
    from strop.search.trial_command import run_command
    from strop.search.trial_side import SPACE_VARIABLE

    folder, target = Path(trial_dir), Path(path)
    if not folder.is_dir():
        raise ConfigError(f'--trial-dir {trial_dir!r} is no folder.')
    if not trial_command.strip():
        raise ConfigError("--trial-command is empty; give the command of a trial, such as 'python trial.py'.")
    added = [SearchSpaceFile.of(other) for other in others]
    with tempfile.TemporaryDirectory() as scratch:
        # Not the target itself: a file that was there before is no proof that this run wrote one.
        written, log = Path(scratch) / 'space.json', Path(scratch) / 'log'
        code, output = run_command(trial_command, folder, {SPACE_VARIABLE: str(written)}, log, timeout)
        if not written.exists():
            if output.strip():
                click.echo(output.rstrip(), err=True)
            raise ConfigError(_reason(trial_command, code, output, timeout))
        try:
            found = SearchSpaceFile.of(written)
        except SpaceError as error:
            raise SpaceError(str(error).replace(str(written), f'What {trial_command!r} wrote')) from None
    if code != 0:
        ended = f'ended with exit code {code}' if code is not None else f'did not end within {timeout:g} s and was killed'
        note(f'{trial_command!r} wrote its search space, but then {ended}: something in it catches SystemExit.')
    if not found.entries:
        raise SpaceError(f'{trial_command!r} wrote a search space without any decision.')
    for other in added:
        found = found.merged(other)
    if target.exists():
        note(f'{path} was there and is replaced.')
    found.write(target)
    show(f'{path}: {len(found.entries)} decisions')


def _reason(trial_command: str, code: int | None, output: str, timeout: float) -> str:
    reach = 'it must call get_and_apply_next_architecture(model) of strop.mutators'
    if code is None:
        return f'{trial_command!r} did not reach its model within {timeout:g} s and was killed: {reach}, before it trains.'
    if "No module named 'nni'" in output:
        return (
            f'{trial_command!r} imports nni, which is not installed. Put `import strop.compat` before that import: it answers '
            'for nni.'
        )
    shown = 'its output is above' if output.strip() else 'it printed nothing'
    if code != 0:
        return f'{trial_command!r} failed with exit code {code} before it reached its model; {shown}.'
    return f'{trial_command!r} ended without writing a search space; {shown}: {reach}.'
