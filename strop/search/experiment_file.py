"""The file of an experiment: its keys, those of NNI's files that mean the same, and what each mistake is told."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from strop.errors import ConfigError, SubnetError, listed, near
from strop.mutables.subnet_file import read_document
from strop.search.trial_function import REFERENCE
from strop.search.urls import HIDDEN, hide_secrets

FILE = 'experiment.yaml'
_UNITS = {'': 1.0, 's': 1.0, 'm': 60.0, 'h': 3600.0, 'd': 86400.0}
_SECRET = re.compile(r'(?i)key|token|secret|password|passwd|credential')

# A key of NNI's files (2.x, and 1.x as its NAS had them) -> where its value goes here.
_NNI = {
    'experimentName': 'name',
    'searchSpaceFile': 'space',
    'searchSpacePath': 'space',
    'searchSpace': 'space',
    'trialCommand': 'trial.command',
    'trialCodeDirectory': 'trial.folder',
    'trialConcurrency': 'executor.workers',
    'trialGpuNumber': 'executor.gpus',
    'maxTrialNumber': 'trials',
    'maxTrialNum': 'trials',
    'maxExperimentDuration': 'duration',
    'maxExecDuration': 'duration',
    'maxTrialDuration': 'executor.seconds',
    'experimentWorkingDirectory': 'folder',
}
_NNI_TRIAL = {'codeDir': 'folder', 'gpuNum': 'gpus'}
# What NNI writes into 'tuner' and 'assessor'.
_CHOSEN = [
    'name',
    'className',
    'codeDirectory',
    'classArgs',
    'builtinTunerName',
    'builtinAssessorName',
    'codeDir',
    'classFileName',
]
_CHOSEN += ['includeIntermediateResults', 'gpuIndices']
_CHOICES = ('tuner', 'assessor', 'advisor', 'trainingService', 'trainingServicePlatform')
_LEFT_OUT = (
    'authorName',
    'debug',
    'logLevel',
    'logCollection',
    'nniManagerIp',
    'tunerGpuIndices',
    'localConfig',
    'versionCheck',
)
_REFUSED = {
    'useAnnotation': "annotations in a trial's code are not read: write the search space into a file, as `strop ss-gen` does",
    'multiPhase': 'a trial has one set of parameters: report results on the way by report_intermediate_result',
    'advisor': "an advisor is a strategy and a pruner here, such as strategy: TPESampler with pruner: hyperband (NNI's BOHB)",
    'sharedStorage': 'trials find the paths of the machine that they run on; mount the storage there',
}
_ELSEWHERE = (
    "runs on this machine, or on Ray: executor: {type: RayExecutor, address: 'HOST:6379'}; or let `strop experiment work "
    '--store URL` run on each machine'
)


@cache
def experiment_schema() -> dict[str, Any]:
    """Return the JSON Schema of experiment files.

    >>> experiment_schema()['title']
    'Strop experiment'
    """
    return json.loads(files('strop.search').joinpath('experiment.schema.json').read_text(encoding='utf-8'))


def read_experiment(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[str]]:
    """Read an experiment file.

    Returns:
        Its content by the keys of the schema, with paths made absolute; and notes on what was understood otherwise than
        it was written.

    Raises:
        ConfigError: If it is no mapping, a key is unknown (near matches are named), or a value breaks the schema.
        FileNotFoundError: If there is no such file.
    """
    try:
        content = read_document(path, 'an experiment')
    except SubnetError as error:
        raise ConfigError(str(error)) from None
    try:
        found, notes = understood(content)
    except ConfigError as error:
        raise ConfigError(f'{os.fspath(path)}: {error}') from None
    return with_paths(found, Path(path).resolve().parent), notes


def understood(content: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the content of an experiment by our keys, checked against the schema, and notes.

    Raises:
        ConfigError: As `read_experiment`.

    >>> content = {
    ...     'searchSpace': {'x': {'_type': 'choice', '_value': [1, 2]}},
    ...     'trialCommand': 'python t.py',
    ...     'maxTrialNumber': 9,
    ... }
    >>> understood(content)[0]['trial'], understood(content)[0]['trials']
    ({'command': 'python t.py'}, 9)
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f'An experiment is a mapping of keys to values, but got a {type(content).__name__}.')
    own = list(experiment_schema()['properties'])
    known = [*own, *_NNI, *_CHOICES, *_LEFT_OUT, *_REFUSED]
    for key in content:
        if key not in known:
            raise ConfigError(f'There is no key {key!r}.{near(key, known)} There are {listed(own, 20)}.')
    notes: list[str] = []
    found = _translated(content, notes)
    for key in ('space', 'trial'):
        if key not in found:
            named = [old for old, new in _NNI.items() if new.partition('.')[0] == key]
            raise ConfigError(f'An experiment needs the key {key!r} (NNI: {listed(named)}).')
    _check(found)
    return found, notes


def _translated(content: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def put(place: str, value: Any, source: str) -> None:
        head, _, tail = place.partition('.')
        if not tail:
            if head in found:
                raise ConfigError(f'{source!r} and another key both say what {head!r} is. Give one of them.')
            found[head] = value
            return
        inner = found.setdefault(head, {})
        if not isinstance(inner, dict):
            if head == 'trial' and isinstance(inner, str):
                inner = found[head] = _as_trial(inner)
            elif head == 'executor':
                inner = found[head] = {'workers': inner} if isinstance(inner, int) else {'type': inner}
        if tail in inner:
            raise ConfigError(f'{source!r} and another key both say what {place!r} is. Give one of them.')
        inner[tail] = value

    for key, value in content.items():
        if key in _REFUSED:
            if value not in (False, None):
                raise ConfigError(f'{key!r} is not understood: {_REFUSED[key]}.')
        elif key in _LEFT_OUT:
            notes.append(f'{key!r} has no meaning here and is left out.')
        elif key == 'trial' and isinstance(value, Mapping):
            for name, item in value.items():
                name = _NNI_TRIAL.get(name, name)
                put('executor.gpus' if name == 'gpus' else f'trial.{name}', item, f'trial.{name}')
        elif key == 'trial':
            put('trial', _as_trial(value), key)
        elif key not in _NNI and key not in _CHOICES:
            if isinstance(found.get(key), dict) and isinstance(value, Mapping):
                for name, item in value.items():
                    put(f'{key}.{name}', item, f'{key}.{name}')
            else:
                put(key, dict(value) if isinstance(value, Mapping) else value, key)
    for key, place in _NNI.items():
        if key in content:
            value = content[key]
            if key == 'experimentWorkingDirectory':
                value = os.path.join(str(value), str(content.get('experimentName', content.get('name', 'experiment'))))
            if value is not None:
                put(place, value, key)
    for key in _CHOICES:
        if content.get(key) is not None:
            {'tuner': _tuner, 'assessor': _assessor}.get(key, _service)(content[key], put, notes)
    if 'duration' in found and 'trials' not in found:
        notes.append('No number of trials is given: the duration ends the experiment.')
        found['trials'] = 10**9
    return found


def _as_trial(value: Any) -> Any:
    if isinstance(value, str):
        return {'function' if REFERENCE.match(value) else 'command': value}
    return value


def _class_arguments(given: Mapping[str, Any], put: Any, source: str) -> dict[str, Any]:
    arguments = dict(given.get('classArgs') or {})
    if 'optimize_mode' in arguments and source == 'tuner':
        put('objectives', arguments.pop('optimize_mode'), 'tuner.classArgs.optimize_mode')
    return arguments


def _named(given: Any, source: str) -> Mapping[str, Any]:
    if isinstance(given, str):
        return {'name': given}
    if not isinstance(given, Mapping):
        raise ConfigError(f'{source!r} is a mapping with the key `name`, but got {given!r}.')
    for key in given:
        if key not in _CHOSEN:
            raise ConfigError(f'{source!r} has no key {key!r}.{near(key, _CHOSEN)}')
    return given


def _tuner(value: Any, put: Any, notes: list[str]) -> None:
    given = _named(value, 'tuner')
    name = given.get('name') or given.get('builtinTunerName')
    own_mode = {**(given.get('classArgs') or {})}.get('optimize_mode')
    arguments = _class_arguments(given, put, 'tuner')
    if name:
        put('strategy', {'type': name, **arguments}, 'tuner')
        return
    written = given.get('className')
    if not written:
        raise ConfigError("'tuner' needs `name`, or `className` and `codeDirectory`.")
    module, _, class_name = str(written).rpartition('.')
    if given.get('classFileName'):
        module = Path(given['classFileName']).stem
    if not module:
        raise ConfigError(f"tuner.className is 'module.Class', but got {written!r}.")
    if own_mode is not None:
        arguments['optimize_mode'] = own_mode  # a user's class expects it where NNI put it
    folder = given.get('codeDirectory') or given.get('codeDir')
    made = {'tuner': f'{module}:{class_name}', 'options': arguments}
    put('strategy', {**made, **({'folder': folder} if folder else {})}, 'tuner')


def _assessor(value: Any, put: Any, notes: list[str]) -> None:
    given = _named(value, 'assessor')
    name = given.get('name') or given.get('builtinAssessorName')
    if not name:
        raise ConfigError("An assessor of one's own is not understood; a pruner does its work: pruner: {type: median}.")
    put('pruner', {'type': name, **_class_arguments(given, put, 'assessor')}, 'assessor')


def _service(value: Any, put: Any, notes: list[str]) -> None:
    given = {'platform': value} if isinstance(value, str) else value
    platform = given.get('platform', 'local') if isinstance(given, Mapping) else given
    if platform != 'local':
        raise ConfigError(f'The training service {platform!r} is not understood. An experiment {_ELSEWHERE}.')
    known = ('platform', 'useActiveGpu', 'maxTrialNumberPerGpu', 'gpuIndices', 'reuseMode')
    for key, item in given.items():
        if key not in known:
            raise ConfigError(f"'trainingService' has no key {key!r}.{near(key, known)}")
        if key == 'gpuIndices' and item is not None:
            indices = [item] if isinstance(item, int) else str(item).split(',') if isinstance(item, str) else list(item)
            put('executor.devices', [int(index) for index in indices], 'trainingService.gpuIndices')
        elif key == 'maxTrialNumberPerGpu' and item not in (None, 1):
            raise ConfigError(
                'A GPU has one trial at a time; trainingService.maxTrialNumberPerGpu must be 1. Ray can share one.'
            )
        elif key == 'useActiveGpu' and item is False:
            notes.append('GPUs that other programs use are not found out: list the free ones in gpuIndices.')


def _check(found: Mapping[str, Any]) -> None:
    import jsonschema

    for place, known, given in _nested(found):
        for key in given:
            if key not in known:
                raise ConfigError(f'{place!r} has no key {key!r}.{near(key, known)} It has {listed(known, 20)}.')
    errors = jsonschema.Draft202012Validator(experiment_schema()).iter_errors(dict(found))
    error = jsonschema.exceptions.best_match(errors)
    if error is not None:
        place = '.'.join(map(str, error.absolute_path)) or 'the experiment'
        wrong = f'{error.instance!r} is not written as it must be' if error.validator == 'pattern' else error.message
        described = [each.schema for each in (error, error.parent) if each is not None and isinstance(each.schema, Mapping)]
        about = next((schema['description'] for schema in described if 'description' in schema), '')
        raise ConfigError(f'{place}: {wrong}.{f" It is: {about}" if about else ""}')
    command = found['trial'].get('command', '')
    if hide_secrets(command) != command:
        raise ConfigError(
            'trial.command holds a password, and commands are written into logs. Give it as a variable: `trial.environment`, '
            'or the environment of this process, and $VARIABLE in the command.'
        )


def _nested(found: Mapping[str, Any]) -> Iterator[tuple[str, list[str], Mapping[str, Any]]]:
    trial = found.get('trial')
    if isinstance(trial, Mapping):
        yield 'trial', list(experiment_schema()['properties']['trial']['anyOf'][1]['properties']), trial
    for name, bound in found['constraints'].items() if isinstance(found.get('constraints'), Mapping) else ():
        if isinstance(bound, Mapping):
            yield f'constraints.{name}', ['function', 'low', 'high'], bound


def with_paths(found: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Return an experiment with its relative paths taken from a folder."""
    made: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in found.items()}

    def absolute(path: str) -> str:
        return str((base / os.path.expanduser(path)).resolve())

    if isinstance(made.get('space'), str) and not REFERENCE.match(made['space']):
        made['space'] = absolute(made['space'])
    made['trial']['folder'] = absolute(made['trial'].get('folder', '.'))
    if isinstance(made.get('strategy'), dict) and 'tuner' in made['strategy']:
        made['strategy']['folder'] = absolute(made['strategy'].get('folder', '.'))
    if 'folder' in made:
        made['folder'] = absolute(made['folder'])
    if 'store' in made and '://' not in made['store'] and '$' not in made['store']:
        made['store'] = absolute(made['store'])
    return made


def duration(value: float | str) -> float:
    """Return seconds.

    >>> duration('1.5h'), duration(20)
    (5400.0, 20.0)
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*', str(value))
    if match is None or float(match[1]) == 0:
        raise ConfigError(
            f"A duration is a number of seconds, or one with a unit such as '30m', '2h' or '1d', but got {value!r}."
        )
    return float(match[1]) * _UNITS[match[2]]


def without_secrets(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment as it may be written down: passwords, and variables that hold or are named like one, become `***`.

    >>> without_secrets({'store': 'postgresql://ada:s3cret@db/x', 'trial': {'environment': {'API_KEY': 'k', 'LANG': 'C'}}})
    {'store': 'postgresql://ada:***@db/x', 'trial': {'environment': {'API_KEY': '***', 'LANG': 'C'}}}
    """
    made = dict(found)
    if isinstance(made.get('store'), str):
        made['store'] = hide_secrets(made['store'])
    trial = made.get('trial')
    if isinstance(trial, Mapping) and 'environment' in trial:
        hidden = {
            name: HIDDEN if _SECRET.search(name) or hide_secrets(str(value)) != str(value) else value
            for name, value in trial['environment'].items()
        }
        made['trial'] = {**trial, 'environment': hidden}
    return made


def as_yaml(found: Mapping[str, Any]) -> str:
    """Return an experiment as the text of a file."""
    return yaml.safe_dump(dict(found), sort_keys=False, allow_unicode=True)
