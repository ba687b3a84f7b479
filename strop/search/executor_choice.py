"""From a name, a number or a config to an executor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

from strop.errors import ConfigError, listed, near
from strop.search.executor import Executor, InProcess
from strop.search.processes import LocalProcesses
from strop.search.ray_actors import RayExecutor

#: Name -> executor.
EXECUTORS: dict[str, Any] = {'InProcess': InProcess, 'LocalProcesses': LocalProcesses, 'RayExecutor': RayExecutor}
EXECUTORS |= {'in-process': InProcess, 'local': LocalProcesses, 'ray': RayExecutor}

ExecutorLike = Union[None, int, str, Mapping[str, Any], Executor]


def build_executor(executor: ExecutorLike) -> Executor:
    """Return the executor that is meant.

    Args:
        executor: None or 1 for this process; a number of local processes; a name of `EXECUTORS`;
            `{'type': name, option: value, ...}`; or an executor.

    Raises:
        ConfigError: If there is no such executor (near matches are named), or an option is wrong.

    >>> build_executor({'type': 'LocalProcesses', 'workers': 2, 'seconds': 60}).capacity
    2
    >>> build_executor(None)
    <strop.search.executor.InProcess object at ...>
    """
    if executor is None or (executor == 1 and type(executor) is int):
        return InProcess()
    if isinstance(executor, int) and not isinstance(executor, bool):
        return LocalProcesses(executor)
    options: dict[str, Any] = {}
    if isinstance(executor, Mapping):
        options = {str(name): value for name, value in executor.items() if name != 'type'}
        if 'type' not in executor:
            raise ConfigError(f"The config of an executor needs the key 'type', one of {listed(EXECUTORS)}.")
        executor = executor['type']
    if not isinstance(executor, str):
        if all(hasattr(executor, verb) for verb in ('capacity', 'start', 'submit', 'wait', 'close')) and not options:
            return executor  # type: ignore[return-value]
        raise ConfigError(f'An executor is a name, a number of processes, a config or an executor, but got {executor!r}.')
    name = executor.split('.')[-1]
    if name not in EXECUTORS:
        raise ConfigError(f'There is no executor {executor!r}.{near(name, EXECUTORS)} There are {listed(EXECUTORS)}.')
    try:
        return EXECUTORS[name](**options)
    except TypeError as error:
        raise ConfigError(f'{EXECUTORS[name].__name__} cannot be built with {listed(options)}: {error}.') from None
