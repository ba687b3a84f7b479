"""`strop show`: a space, a subnet, or the trials of a search, for a person to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import SETTINGS_OPTION, command

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from strop.mutables import Space
    from strop.search import Trial


@command(
    'show',
    """
    strop show strop::spos/spos_shufflenet_supernet_mnist.py
    strop show runs/search/best_fix_subnet.yaml --config strop::spos/spos_shufflenet_supernet_mnist.py
    strop show runs/search/search.json --top 20
    strop show runs/search/search.journal
    """,
)
@click.argument('target', metavar='CONFIG|SUBNET|SEARCH')
@click.option('--config', help='Check the subnet against the supernet of this config.')
@click.option('--top', type=click.IntRange(min=1), default=10, show_default=True, help='How many trials of a search to print.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
@SETTINGS_OPTION
def show(target: str, config: str | None, top: int, as_json: bool, settings: dict[str, Any]) -> None:
    """Print a search space, a subnet, or the best trials of a search.

    TARGET is a config or module:factory (its space), a subnet file, a search.json, a search.journal (also
    of a search that is still running), a database URL, or the work directory of a search.
    """
    from strop.cli.console import quiet_logs, show_json
    from strop.errors import ConfigError

    quiet_logs()
    path = Path(target)
    if path.is_dir():
        names = [name for name in ('search.journal', 'search.json') if (path / name).is_file()]
        if not names:
            raise ConfigError(f'{path} holds no search.journal and no search.json, so it is no work directory of a search.')
        path = path / names[0]
    elif '://' not in target and path.suffix in ('.journal', '.json', '.yaml', '.yml') and not path.is_file():
        raise ConfigError(f'There is no file {path}.{_near_files(path)}')
    if '://' in target or path.suffix == '.journal':
        content = _journal(target if '://' in target else path, top, quiet=as_json)
    elif path.suffix in ('.json', '.yaml', '.yml'):
        content = _document(path, config, settings, top, quiet=as_json)
    else:
        content = _space(target, settings, quiet=as_json)
    if as_json:
        show_json(content)


def _near_files(path: Path) -> str:
    from strop.errors import near

    return near(path.name, [file.name for file in path.parent.iterdir()]) if path.parent.is_dir() else ''


def _space(target: str, settings: dict[str, Any], quiet: bool) -> dict[str, Any]:
    from strop.cli.configs import load_config
    from strop.cli.console import show as print_out
    from strop.cli.models import build_model, open_target
    from strop.cli.tables import space_table
    from strop.mutables import space_of

    if '::' in target or ':' not in target:
        algorithm = build_model(load_config(target, settings))
        model = getattr(algorithm, 'architecture', algorithm)
    else:
        model = open_target(target, settings, (1,)).model
    space = space_of(model)
    if not quiet:
        if not space:
            print_out(f'{target}: a {type(model).__name__} with nothing to decide.')
        else:
            print_out(space_table(space, f'{target}: {len(space)} decisions, {_count(space)} subnets'))
    return {'target': target, 'subnets': space.count(), **space.to_dict()}


def _count(space: Space) -> str:
    number = space.count()
    return f'{number:,}' if number < 10**9 else f'{number:.4g}'


def _document(path: Path, config: str | None, settings: dict[str, Any], top: int, quiet: bool) -> dict[str, Any]:
    from strop.errors import SubnetError
    from strop.mutables import choices_of, read_document

    content = read_document(path, 'a subnet or a search')
    if isinstance(content, Mapping) and content.get('strop') == 'search':
        return _result(path, dict(content), top, quiet)
    if isinstance(content, Mapping) and ('model' in content or 'algorithm' in content or '_base_' in content):
        return _space(str(path), settings, quiet)
    try:
        choices = choices_of(content)
    except SubnetError as error:
        raise type(error)(f'{path}: {error}') from None
    return _subnet(path, choices, config, settings, quiet)


def _subnet(path: Path, choices: dict[str, Any], config: str | None, settings: dict[str, Any], quiet: bool) -> dict[str, Any]:
    from strop.cli.configs import load_config
    from strop.cli.console import pairs
    from strop.cli.console import show as print_out
    from strop.cli.models import build_model
    from strop.mutables import load_subnet, space_of

    content: dict[str, Any] = {'subnet': str(path), 'choices': choices}
    title = f'{path}: {len(choices)} decisions'
    if config is not None:
        algorithm = build_model(load_config(config, settings))
        subnet = load_subnet(path, space_of(getattr(algorithm, 'architecture', algorithm)))
        content.update(choices=dict(subnet), digest=subnet.digest)
        title += f', fits {config}, digest {subnet.digest}'
    if not quiet:
        print_out(pairs(title, content['choices'], ('decision', 'choice')))
    return content


def _journal(store: str | Path, top: int, quiet: bool) -> dict[str, Any]:
    """Read a store as it is; unlike a search that goes on, this writes nothing to it."""
    from strop.errors import ConfigError
    from strop.mutables import Space
    from strop.search.store import open_storage

    storage = open_storage(store)[0]
    contents = []
    for study in storage.get_all_studies():
        about = study.user_attrs.get('strop')
        if about is None or 'strop:space' not in study.user_attrs:
            continue
        space = Space.from_dict(study.user_attrs['strop:space'])
        head = {'name': study.study_name, **{key: about[key] for key in ('objectives', 'seed', 'strategy', 'constraints')}}
        frozen = storage.get_all_trials(study._study_id, deepcopy=False)
        contents.append(_trials(store, head, [_trial(item, space, about['objectives']) for item in frozen], top, quiet))
    if not contents:
        raise ConfigError(f'{store} holds no search that Strop made.')
    return contents[0] if len(contents) == 1 else {'searches': contents}


def _trial(frozen: FrozenTrial, space: Space, objectives: Mapping[str, str]) -> Trial:
    from strop.search import Trial

    complete = frozen.state.name == 'COMPLETE'
    notes = frozen.user_attrs
    return Trial(
        number=frozen.number,
        subnet=space.subnet(notes['subnet']),
        state={'COMPLETE': 'complete', 'PRUNED': 'stopped', 'FAIL': 'failed'}.get(frozen.state.name, 'running'),
        values=dict(zip(objectives, frozen.values, strict=True)) if complete else None,
        info=dict(notes.get('info', {})),
        seconds=notes.get('seconds'),
        error=notes.get('error'),
    )


def _result(path: Path, content: dict[str, Any], top: int, quiet: bool) -> dict[str, Any]:
    from strop.errors import ConfigError
    from strop.mutables import OneOf, Space
    from strop.search import Trial

    try:
        trials = [
            Trial(
                number=item['number'],
                # A result names its space by a digest alone; the choices stand for themselves.
                subnet=Space({key: OneOf((_label(choice),)) for key, choice in item['choices'].items()}).first(),
                state=item['state'],
                values=item['values'],
                info=item.get('info') or {},
                seconds=item.get('seconds'),
                error=item.get('error'),
            )
            for item in content['trials']
        ]
        head = {key: content[key] for key in ('name', 'objectives', 'seed', 'strategy')}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f'{path} is not a whole search.json: {type(error).__name__}: {error}.') from None
    return _trials(path, head, trials, top, quiet)


def _label(choice: Any) -> Any:
    return choice if isinstance(choice, (str, int, float)) else str(choice)


def _trials(store: str | Path, head: dict[str, Any], trials: list[Trial], top: int, quiet: bool) -> dict[str, Any]:
    from strop.cli.console import show as print_out
    from strop.cli.tables import trials_table
    from strop.search import pareto_front
    from strop.search.trial import FAILED, best_first

    ranked = best_first(trials, head['objectives'])
    failed = [trial for trial in trials if trial.state == FAILED]
    stopped = [trial for trial in trials if trial.stopped]
    running = [trial for trial in trials if not trial.finished]
    content = {
        **head,
        'complete': len(ranked),
        'failed': len(failed),
        'stopped': len(stopped),
        'running': len(running),
        'front': [trial.number for trial in pareto_front(trials, head['objectives'])],
        'best': [trial.to_dict() for trial in ranked[:top]],
    }
    if not quiet:
        early = f'{len(stopped)} stopped early, ' if stopped else ''
        counts = f'{len(ranked)} complete, {early}{len(failed)} failed, {len(running)} unfinished'
        print_out(trials_table(ranked[:top], head['objectives'], f'{store}, {head["name"]}: {counts}'))
        if len(head['objectives']) > 1:
            print_out(f'Pareto front: trials {", ".join(map(str, content["front"]))}')
        if failed:
            print_out(f'The last failure (trial {failed[-1].number}): {failed[-1].error}')
    return content
