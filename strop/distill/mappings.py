"""What each distillation loss gets: records by name, checked against recorders, connectors and the loss before training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from strop.errors import ConfigError, listed, near

#: What a record in a mapping may say, and of what type.
_KEYS: dict[str, tuple[type, ...]] = {
    'recorder': (str,),
    'from_student': (bool,),
    'record_idx': (int,),
    'data_idx': (int, str),
    'connector': (str,),
    'connector_idx': (int,),
}
_WORDS = {bool: 'True or False', int: 'a whole number', str: 'a name'}
_OPTIONAL = ('data_idx', 'connector', 'connector_idx')


def check_mappings(
    mappings: Mapping[str, Any],
    losses: Mapping[str, nn.Module],
    connectors: Mapping[str, nn.Module],
    recorders: Mapping[bool, Mapping[str, Any]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Check which records go to which argument of which loss.

    Args:
        mappings: loss -> argument of its forward -> `recorder`, `from_student`, and perhaps `record_idx`, `data_idx`,
            `connector`, `connector_idx`.
        losses: The losses by name.
        connectors: The connectors by name.
        recorders: True -> the student's recorders by name, False -> the teacher's.

    Returns:
        The mappings as plain dicts.

    Raises:
        ConfigError: If a name is of nothing there, an argument is not the loss's, or one is absent.

    >>> check_mappings(
    ...     dict(loss=dict(input=dict(recorder='fc', from_student=True))),
    ...     dict(loss=nn.L1Loss()),
    ...     {},
    ...     {True: {'fc': None}, False: {}},
    ... )
    Traceback (most recent call last):
    strop.errors.ConfigError: loss_forward_mappings['loss']: L1Loss also needs 'target'.
    """
    for name in mappings:
        if name not in losses:
            raise ConfigError(
                f'loss_forward_mappings has {name!r}, but distill_losses has no such loss.{near(name, losses)} '
                f'There is {listed(losses) or "none"}.'
            )
    unfed = [name for name in losses if name not in mappings]
    if unfed:
        raise ConfigError(
            f'The loss {unfed[0]!r} gets nothing: say in loss_forward_mappings[{unfed[0]!r}] which record is which argument of '
            f'its forward ({listed(_arguments(losses[unfed[0]])[0])}).'
        )
    checked = {}
    for name, arguments in mappings.items():
        where = f'loss_forward_mappings[{name!r}]'
        if not isinstance(arguments, Mapping):
            raise ConfigError(f'{where} must be a mapping argument -> record, but got {arguments!r}.')
        _check_arguments(where, arguments, losses[name])
        checked[name] = {
            argument: _record(f'{where}[{argument!r}]', record, connectors, recorders) for argument, record in arguments.items()
        }
    return checked


def _arguments(loss: nn.Module) -> tuple[list[str], list[str], bool]:
    """Return the names of a loss's arguments, those without default, and whether it takes any keyword."""
    parameters = list(inspect.signature(loss.forward).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty]
    return [p.name for p in named], needed, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _check_arguments(where: str, given: Mapping[str, Any], loss: nn.Module) -> None:
    names, needed, takes_any = _arguments(loss)
    for argument in given:
        if argument not in names and not takes_any:
            raise ConfigError(
                f'{where}: the forward of {type(loss).__name__} has no argument {argument!r}.{near(argument, names)} It has '
                f'{listed(names) or "none"}.'
            )
    absent = [argument for argument in needed if argument not in given]
    if absent:
        raise ConfigError(f'{where}: {type(loss).__name__} also needs {listed(absent)}.')


def _record(
    where: str, record: Any, connectors: Mapping[str, nn.Module], recorders: Mapping[bool, Mapping[str, Any]]
) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where} must be a record such as dict(recorder='fc', from_student=True), but got {record!r}.")
    for key, value in record.items():
        if key == '_scope_':
            continue  # MMEngine's mark
        if key not in _KEYS:
            raise ConfigError(f'{where} has no key {key!r}.{near(key, _KEYS)} It may have {listed(_KEYS)}.')
        fits = isinstance(value, _KEYS[key]) and (isinstance(value, bool) == (_KEYS[key] == (bool,)))
        if not fits and not (value is None and key in _OPTIONAL):
            kinds = ' or '.join(_WORDS[kind] for kind in _KEYS[key])
            raise ConfigError(f'{where}: {key!r} must be {kinds}, but got {value!r}.')
    for key in ('recorder', 'from_student'):
        if key not in record:
            raise ConfigError(f'{where} does not say {key!r}. It needs a recorder, and from_student=True or False.')
    side, other = ('student', 'teacher') if record['from_student'] else ('teacher', 'student')
    known = recorders[record['from_student']]
    if record['recorder'] not in known:
        swapped = (
            f' The {other} has one of that name: from_student={not record["from_student"]}?'
            if record['recorder'] in recorders[not record['from_student']]
            else near(record['recorder'], known)
        )
        raise ConfigError(
            f'{where}: the {side} has no recorder {record["recorder"]!r}.{swapped} {side}_recorders has '
            f'{listed(known) or "none"}.'
        )
    connector = record.get('connector')
    if connector is not None and connector not in connectors:
        raise ConfigError(
            f'{where}: there is no connector {connector!r}.{near(connector, connectors)} There is '
            f'{listed(connectors) or "none"}.'
        )
    if connector is None and record.get('connector_idx') is not None:
        raise ConfigError(f'{where}: `connector_idx` chooses from what a connector gives, but there is no `connector`.')
    return {key: value for key, value in record.items() if key != '_scope_'}
