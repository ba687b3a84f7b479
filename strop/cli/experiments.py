"""`strop experiment`: run a search that a file describes, join it, watch it, stop it, go on with it, take its results."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import DEBUG, command
from strop.errors import listed, near

if TYPE_CHECKING:
    from strop.search import Experiment, SearchResult, StoredSearch, Trial


class Group(click.Group):
    """A group that names near matches of an unknown command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of an argument list."""
        if args and args[0] not in self.commands and not args[0].startswith('-'):
            names = self.list_commands(ctx)
            raise click.UsageError(f'There is no command {args[0]!r}.{near(args[0], names)} There are {listed(names)}.', ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the work."""
        return list(self.commands)

    def add(self, made: click.Command) -> click.Command:
        """Add a command."""
        made.params.append(DEBUG)
        self.add_command(made)
        return made


experiment = Group(
    'experiment',
    help='Run a search that a file describes, join it, watch it, stop it, go on with it, take its results.\n\n'
    'An experiment has a folder: experiments/NAME, unless its file says otherwise. WHERE is that folder, a journal, or the '
    'URL of a database.',
    epilog="""\b
Examples:
  strop experiment run exp.yaml --dry-run
  strop experiment run exp.yaml
  strop experiment status experiments/digits
  strop experiment view experiments/digits --top 5
  strop experiment stop experiments/digits
  strop experiment resume experiments/digits
  strop experiment export experiments/digits --best best.json --front front.csv
  strop experiment work --store postgresql://USER:PASSWORD@HOST/DATABASE --name digits
""",
)

_WHERE = click.argument('where', metavar='WHERE')
_NAME = click.option('--name', help='Name of the search, where the store holds several.')
_AS_JSON = click.option('--json', 'as_json', is_flag=True, help='Print JSON.')


def _running(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option('--json', 'as_json', is_flag=True, help='Print a line of JSON for each finished trial and for the end.'),
        click.option('--quiet', is_flag=True, help='Print nothing but the result.'),
    ):
        function = option(function)
    return function


@experiment.add
@command(
    'run',
    """
    strop experiment run exp.yaml --dry-run
    strop experiment run exp.yaml --trials 50 --folder runs/first
    """,
)
@click.argument('path', metavar='FILE', type=click.Path(exists=True, dir_okay=False))
@click.option(
    '--dry-run', is_flag=True, help='Check everything, which imports what the file names, print the plan, and run no trial.'
)
@click.option('--folder', help="The experiment's folder.")
@click.option('--store', help='The journal or the URL of the database.')
@click.option('--trials', type=click.IntRange(min=1), help='How many finished trials there shall be.')
@click.option('--duration', help="Time limit, such as '2h'.")
@_running
def run(
    path: str,
    dry_run: bool,
    folder: str | None,
    store: str | None,
    trials: int | None,
    duration: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the experiment of a file: YAML or JSON, with the keys of Strop or of NNI."""
    from strop.cli.console import note, pairs, show, show_json
    from strop.search import Experiment

    made = Experiment.from_file(path, folder=folder, store=store, trials=trials, duration=duration)
    for said in made.notes:
        note(said)
    if dry_run:
        plan = made.summary()
        if as_json:
            show_json(plan)
        else:
            show(pairs(f'{path}: nothing is wrong, nothing was run', plan))
        return
    _carry_out(made, lambda callback: made.run(callbacks=[callback]), quiet, as_json)


@experiment.add
@command(
    'resume',
    """
    strop experiment resume experiments/digits
    strop experiment resume experiments/digits --trials 200
    """,
)
@click.argument('folder', type=click.Path(exists=True, file_okay=False))
@click.option('--store', help='The URL of the database, where the folder does not keep its password.')
@click.option('--trials', type=click.IntRange(min=1), help='How many finished trials there shall be in all.')
@click.option('--duration', help="Time limit of this run, such as '2h'.")
@click.option('--takeover', is_flag=True, help='Also do again what processes on machines that cannot be seen left unfinished.')
@_running
def resume(
    folder: str, store: str | None, trials: int | None, duration: str | None, takeover: bool, quiet: bool, as_json: bool
) -> None:
    """Go on with the experiment of a folder: one that was stopped, killed, or shall have more trials."""
    from strop.search import Experiment

    made = Experiment.from_folder(folder, store=store, trials=trials, duration=duration)
    how: bool | str = 'takeover' if takeover else True
    _carry_out(made, lambda callback: made.run(resume=how, callbacks=[callback]), quiet, as_json)


@experiment.add
@command(
    'work',
    """
    strop experiment work --store postgresql://USER:PASSWORD@HOST/DATABASE --name digits
    strop experiment work --store experiments/digits/search.journal
    """,
)
@click.option('--store', required=True, help="The experiment's journal, or the URL of its database.")
@_NAME
@click.option('--folder', help="Where this worker's logs and trials go; by default the experiment's own folder.")
@_running
def work(store: str, name: str | None, folder: str | None, quiet: bool, as_json: bool) -> None:
    """Join a running experiment as one more worker, on this machine or another one.

    What to do is read from the store. Paths of the trial's code must be the same on all machines.
    """
    from strop.search import Experiment

    made = Experiment.from_store(store, name, folder=folder)
    _carry_out(made, lambda callback: made.work(callbacks=[callback]), quiet, as_json)


@experiment.add
@command('status', 'strop experiment status experiments/digits')
@_WHERE
@_NAME
@_AS_JSON
def status(where: str, name: str | None, as_json: bool) -> None:
    """Say who works on an experiment, how many trials it has, and which one is the best."""
    from strop.cli.console import pairs, show, show_json

    found = _found(where, name)
    content: dict[str, Any] = {
        'name': found.name,
        'store': found.where,
        'state': 'running' if found.alive else 'not running',
        'processes': [f'{process.role}: {process}' for process in found.alive],
        'trials': found.counts,
        'asked for': (found.definition or {}).get('trials', None if found.definition is None else 100),
        'best': _best(found.result),
    }
    if as_json:
        show_json(content)
        return
    asked = content.pop('asked for')
    content['trials'] = _counts(found) + (f' (asked for: {asked})' if asked is not None and asked < 10**9 else '')
    content['processes'] = '; '.join(content['processes']) or 'none'
    best = content['best']
    content['best'] = 'none yet' if best is None else f'trial {best["trial"]}: {_numbers(best["values"])}'
    show(pairs(None, content))


@experiment.add
@command(
    'stop',
    """
    strop experiment stop experiments/digits
    strop experiment stop experiments/digits --now
    """,
)
@_WHERE
@_NAME
@click.option('--now', is_flag=True, help='Kill the trials under way; a resumed run does them again.')
@click.option('--wait', type=click.FloatRange(min=0), default=0.0, help='Seconds to wait for the end.')
def stop(where: str, name: str | None, now: bool, wait: float) -> None:
    """Ask every process of an experiment to stop, once the trials under way have ended."""
    from strop.cli.console import note
    from strop.search import stop_search

    store, name = _store(where, name)
    asked = stop_search(store, name, 'now' if now else 'finish')
    if not asked:
        note('nobody works on this experiment')
    for process in asked:
        note(f'asked to stop: {process.role}, {process}')
    end = time.monotonic() + wait
    while any(process.alive for process in asked) and time.monotonic() < end:
        time.sleep(0.2)


@experiment.add
@command(
    'view',
    """
    strop experiment view experiments/digits
    strop experiment view experiments/digits --top 5 --failed
    """,
)
@_WHERE
@_NAME
@click.option('--top', type=click.IntRange(min=1), default=20, show_default=True, help='How many trials to show, best first.')
@click.option('--failed', is_flag=True, help='Also show the trials that failed, with their reasons.')
@_AS_JSON
def view(where: str, name: str | None, top: int, failed: bool, as_json: bool) -> None:
    """Show the trials of an experiment, best first, and the Pareto front of several objectives. Nothing is written."""
    from strop.cli.console import show, show_json
    from strop.cli.tables import trials_table

    found = _found(where, name)
    result = found.result
    if as_json:
        show_json({**result.to_dict(), 'counts': found.counts})
        return
    ranked = result.ranked()
    show(trials_table(ranked[:top], result.objectives, f'{found.name}: {_counts(found)}'))
    if len(result.objectives) > 1:
        show(trials_table(result.front, result.objectives, f'Pareto front: {len(result.front)} trials'))
    if failed:
        show(*(f'trial {trial.number} failed: {trial.error}' for trial in result.failed))


@experiment.add
@command(
    'export',
    """
    strop experiment export experiments/digits --best best.json
    strop experiment export experiments/digits --trials trials.csv --front front.json
    """,
)
@_WHERE
@_NAME
@click.option('--best', type=click.Path(dir_okay=False), help='File for the best parameters (JSON).')
@click.option('--front', type=click.Path(dir_okay=False), help='File for the Pareto front (.csv or .json).')
@click.option('--trials', 'table', type=click.Path(dir_okay=False), help='File for all finished trials (.csv or .json).')
def export(where: str, name: str | None, best: str | None, front: str | None, table: str | None) -> None:
    """Write the best parameters, the Pareto front, or all trials to files; with no file, the best parameters are printed."""
    from dataclasses import replace
    from pathlib import Path

    from strop.cli.console import note, show_json
    from strop.errors import ConfigError
    from strop.files import atomic_write

    for path in (front, table):
        if path is not None and Path(path).suffix not in ('.csv', '.json'):
            raise ConfigError(f'{path} ends in neither .csv nor .json.')
    result = _found(where, name).result
    if best is None and front is None and table is None:
        show_json({'trial': result.best.number, 'values': result.best.values, 'parameters': dict(result.best.subnet)})
    if best is not None:
        # Key -> choice, and nothing else: what apply_fixed_architecture and a trial read.
        atomic_write(best, json.dumps(dict(result.best.subnet), indent=2, ensure_ascii=False) + '\n')
        note(f'{best}: trial {result.best.number}, {_numbers(result.best.values or {})}')
    for path, trials in ((front, result.front), (table, result.trials)):
        if path is not None:
            part = replace(result, trials=list(trials))
            (part.write_csv if Path(path).suffix == '.csv' else part.write_json)(path)
            note(f'{path}: {len(trials)} trials')


# -- internals -----------------------------------------------------------------------------------


def _store(where: str, name: str | None) -> tuple[str, str | None]:
    from pathlib import Path

    from strop.errors import ConfigError
    from strop.search import Experiment

    if '://' not in where and (Path(where) / 'experiment.yaml').is_file():
        made = Experiment.from_folder(where)
        if made.mixes_variables:
            raise ConfigError(
                f'{where} names a store with variables of the environment put into its address: {made.kept_store}. A folder '
                'from elsewhere could have them sent to another machine. Give the address in place of the folder, with '
                f'--name {made.name}; an address that is one variable as a whole is taken.'
            )
        return made.store, name or made.name
    return where, name


def _found(where: str, name: str | None) -> StoredSearch:
    from strop.search import read_search

    return read_search(*_store(where, name))


def _counts(found: StoredSearch) -> str:
    words = {'running': 'running' if found.alive else 'left unfinished'}
    return ', '.join(f'{count} {words.get(state, state)}' for state, count in found.counts.items() if count) or 'no trials yet'


def _numbers(values: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value:.6g}' for name, value in values.items())


def _best(result: SearchResult) -> dict[str, Any] | None:
    if not result.complete:
        return None
    return {'trial': result.best.number, 'values': result.best.values, 'parameters': dict(result.best.subnet)}


def _carry_out(made: Experiment, go: Callable[[Any], SearchResult], quiet: bool, as_json: bool) -> None:
    from strop.cli.console import note, pairs, show
    from strop.errors import StropError
    from strop.files import json_text

    with _progress(made, quiet or as_json) as told:

        def callback(trial: Trial) -> None:
            if as_json:
                print(json_text({'event': 'trial', **trial.to_dict()}), flush=True)
            told(trial)

        try:
            result = go(callback)
        except KeyboardInterrupt:
            note(f'`strop experiment resume {made.folder}` goes on')
            raise
    if as_json:
        print(json_text({'event': 'end', 'stopped': result.stopped, 'trials': len(result.trials), 'best': _best(result)}))
    elif result.stopped == 'halt':
        note(f'stopped as asked; `strop experiment resume {made.folder}` goes on')
    if not result.complete:
        raise StropError(
            f'None of the {len(result.trials)} trials is complete; {made.folder / "experiment.log"} has the reasons.'
        )
    if as_json:
        return
    best = {f'objective {name}': value for name, value in (result.best.values or {}).items()}
    show(pairs(f'best of {len(result.complete)} trials: trial {result.best.number}', {**best, **dict(result.best.subnet)}))


@contextlib.contextmanager
def _progress(made: Experiment, silent: bool) -> Iterator[Callable[[Trial], None]]:
    """Show how far it is: a bar and the last trials on a terminal, a line a trial elsewhere."""
    from strop.cli.console import note

    if silent:
        yield lambda trial: None
        return
    note(f'{made.name}: {made.folder}')
    if not sys.stderr.isatty():
        yield lambda trial: note(_line(trial))
        return
    from strop.search.trial import best_first
    from strop.terminal import progress_bars

    with progress_bars() as bar:
        known, directions, total = _known(made)
        task = bar.add_task('trials', total=total if total < 10**9 else None, completed=len(known))

        def told(trial: Trial) -> None:
            known.append(trial)
            bar.console.print(_line(trial), markup=False, highlight=False)
            ranked = best_first(known, directions)
            said = [f'best {_numbers(ranked[0].values or {})}'] if ranked else []
            counts = {state: sum(one.state == state for one in known) for state in ('failed', 'stopped')}
            said += [f'{count} {state}' for state, count in counts.items() if count]
            bar.update(task, advance=1, description=', '.join(said) or 'trials')

        yield told


def _known(made: Experiment) -> tuple[list[Trial], dict[str, str], int]:
    """Return the finished trials that there are, the objectives, and how many trials there shall be."""
    from strop.errors import StoreError
    from strop.search.trial import parse_objectives

    asked = made.definition or {}
    try:
        known = list(made.stored().result.trials)
    except StoreError:
        known = []
    return known, parse_objectives(asked.get('objectives', 'maximize')), asked.get('trials', 100)


def _line(trial: Trial) -> str:
    took = '' if trial.seconds is None else f' in {trial.seconds:.3g} s'
    said = _numbers(trial.values or {}) if trial.complete else trial.error or f'after {len(trial.reports)} reports'
    return f'trial {trial.number} {trial.state}{took}: {said}'
