"""Inside a trial: where a script asks for its parameters and reports what it measured.

A trial has a folder, given by the environment variable `STROP_TRIAL_DIR`: its parameters lie there as
`parameters.json`, and what it reports goes, a line each, to `metrics.jsonl`. Without the variable a script runs
*standalone*: there are no parameters, and results are printed. Inside an evaluation that is a function,
`report_intermediate_result` reports to the search directly.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from warnings import warn

from strop.errors import ComponentTypeError, ConfigError, ModeError, StropError
from strop.files import atomic_write
from strop.search.reports import Reporter, current_reporter

FOLDER_VARIABLE = 'STROP_TRIAL_DIR'
EXPERIMENT_VARIABLE = 'STROP_EXPERIMENT'
#: The variable in which NNI's scripts are told where to write their search space.
SPACE_VARIABLE = 'NNI_GEN_SEARCH_SPACE'

PARAMETERS, METRICS = 'parameters.json', 'metrics.jsonl'
INTERMEDIATE, FINAL = 'intermediate', 'final'

_logger = logging.getLogger(__name__)


class TrialReportError(StropError, ValueError):
    """A trial ended without one finite final result."""


class _State:
    """What this process has fetched and reported, for the trial folder that it is in."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.content: dict[str, Any] | None = None
        self.handed_out = False
        self.sequence = 0
        self.final = False
        self.told = False


_state = _State()


def trial_folder() -> Path | None:
    """Return the folder of this trial; None when the script runs standalone."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given) if given else None


def get_next_parameter() -> dict[str, Any] | None:
    """Return the parameters of this trial, once; None when asked again, and `{}` when the script runs standalone.

    Raises:
        ConfigError: If the trial folder holds no parameters.

    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter('ignore')
    ...     get_next_parameter()
    {}
    """
    state = _current()
    if state.folder is None:
        _tell_standalone(state, 'get_next_parameter() returns {}: use your defaults where a key is missing')
        return {}
    if state.handed_out:
        return None
    parameters = dict(_content(state)['parameters'])
    state.handed_out = True
    return parameters


def get_current_parameter(tag: str | None = None) -> Any:
    """Return the parameters of this trial, or the one called `tag`, as often as asked; None where there is none."""
    state = _current()
    parameters = {} if state.folder is None else _content(state)['parameters']
    return dict(parameters) if tag is None else parameters.get(tag)


def get_trial_id() -> str:
    """Return the name of this trial, `'STANDALONE'` without one."""
    folder = _current().folder
    return 'STANDALONE' if folder is None else folder.name


def get_experiment_id() -> str:
    """Return the name of the search that this trial is part of, `'STANDALONE'` without one."""
    folder = _current().folder
    return os.environ.get(EXPERIMENT_VARIABLE) or ('STANDALONE' if folder is None else folder.resolve().parent.name)


def get_sequence_id() -> int:
    """Return the number of this trial, 0 without one."""
    state = _current()
    return 0 if state.folder is None else int(_content(state)['parameter_id'])


def report_intermediate_result(metric: Any, step: int | None = None) -> None:
    """Report a result on the way, such as the accuracy after an epoch; in a script, or in a function that a search evaluates.

    The value is kept in the store, and the pruner of the search may end the trial here: a function's by raising
    `TrialStopped` in this call, a script's by killing its processes. Of several reports for one step the first counts. A
    function reports in the thread that it was called in.

    Args:
        metric: A number, a NumPy or torch scalar, or a mapping with the number under `'default'` and more beside it.
        step: How far the trial is, such as the number of epochs; by default one more than at the last report, from 1.

    Raises:
        ComponentTypeError: If `metric` is none of these, or `step` is no whole number, 0 or more.
    """
    reporter = current_reporter()
    if reporter is not None:
        value = _plain(metric, 'report_intermediate_result')
        reporter.report(value['default'] if isinstance(value, dict) else value, step)
        return
    if step is not None and (not isinstance(step, int) or isinstance(step, bool) or step < 0):
        raise ComponentTypeError(f'The step of a report is a whole number, 0 or more, but got {step!r}.')
    _report(INTERMEDIATE, metric, step)


def report_final_result(metric: Any) -> None:
    """Report the result of the trial, once.

    Args:
        metric: As in `report_intermediate_result`. Only a finite number counts as a result.

    Raises:
        ComponentTypeError: If it is no number and no mapping with one.
        ModeError: If the trial has reported its final result already; the first one stands.

    >>> report_final_result({'default': 0.93, 'latency_ms': 4.2})
    final result: {"default": 0.93, "latency_ms": 4.2}
    """
    _report(FINAL, metric)


def _report(kind: str, metric: Any, step: int | None = None) -> None:
    state, sequence = _current(), 0
    value = _plain(metric, f'report_{kind}_result')
    text = json.dumps(value)
    if kind == FINAL:
        if state.final and state.folder is not None:
            raise ModeError(
                f'report_final_result was called twice, the second time with {text}; the first result stands. Report what is '
                'measured on the way by report_intermediate_result, and the final result once, at the end.'
            )
        state.final = True
    else:
        sequence = state.sequence + 1 if step is None else step
        state.sequence = max(state.sequence, sequence)
    if state.folder is None:
        print(f'{kind} result: {text}')
        return
    line = json.dumps({'type': kind, 'sequence': sequence, 'value': value})
    # One write of one line, so that a reader never sees half of one.
    with open(state.folder / METRICS, 'a', encoding='utf-8') as stream:
        stream.write(line + '\n')


def _plain(metric: Any, verb: str) -> Any:
    """Return a metric as JSON holds it."""
    if isinstance(metric, Mapping):
        if 'default' not in metric:
            raise ComponentTypeError(
                f"{verb} takes a mapping with the number to optimize under 'default', but got the keys {list(metric)}."
            )
        number = _plain(metric['default'], verb)
        return {'default': number, **{str(key): _further(value) for key, value in metric.items() if key != 'default'}}
    value = _number(metric)
    if value is None:
        raise ComponentTypeError(
            f"{verb} takes a number, a NumPy or torch scalar, or a mapping with the number under 'default', but got "
            f'{metric!r} of type {type(metric).__name__}.'
        )
    return value


def _number(value: Any) -> int | float | None:
    if hasattr(value, 'item') and not isinstance(value, (int, float)):
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError):
            return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _further(value: Any) -> Any:
    number = _number(value)
    if number is not None:
        return number
    if hasattr(value, 'tolist'):
        return value.tolist()
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _current() -> _State:
    """Return the state of this process, a new one where the folder has changed."""
    global _state
    folder = trial_folder()
    if _state.folder != folder:
        _state = _State()
        _state.folder = folder
        if folder is not None and (folder / METRICS).exists():
            lines = (folder / METRICS).read_text(encoding='utf-8').splitlines()
            _state.final = any(f'"type": "{FINAL}"' in line for line in lines)
    return _state


def _content(state: _State) -> dict[str, Any]:
    if state.content is None:
        assert state.folder is not None, 'asked for inside a trial only'
        path = state.folder / PARAMETERS
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except FileNotFoundError:
            raise ConfigError(
                f'{FOLDER_VARIABLE} names {state.folder}, which has no {PARAMETERS}. Unset the variable to run the script '
                'standalone.'
            ) from None
        except ValueError as error:
            raise ConfigError(f'{path} is not JSON: {error}.') from None
        if not isinstance(content, dict) or not isinstance(content.get('parameters'), dict):
            raise ConfigError(f"{path} must hold {{'parameter_id': number, 'parameters': {{...}}}}, but holds {content!r}.")
        state.content = content
    return state.content


def _tell_standalone(state: _State, what: str) -> None:
    if not state.told:
        state.told = True
        warn(f'{FOLDER_VARIABLE} is not set, so this script runs standalone, outside of any search: {what}.', stacklevel=3)


# -- the other side ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialReport:
    """What a trial reported.

    Args:
        value: The final result.
        more: What stood beside it in a mapping.
        intermediate: The results on the way, in order.
    """

    value: float
    more: dict[str, Any] = field(default_factory=dict)
    intermediate: tuple[Any, ...] = ()


def write_parameters(folder: str | os.PathLike[str], parameters: Mapping[str, Any], number: int = 0) -> None:
    """Make a trial folder: write the parameters that the trial will find."""
    content = {'parameter_id': number, 'parameters': dict(parameters)}
    atomic_write(Path(folder) / PARAMETERS, json.dumps(content, indent=2, ensure_ascii=False) + '\n')


def read_report(folder: str | os.PathLike[str]) -> TrialReport:
    """Read what a trial that has ended reported in its folder.

    Raises:
        TrialReportError: If it reported no final result, more than one, or one that is not a finite number.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / METRICS).write_text('{"type": "final", "sequence": 0, "value": 0.5}')
    >>> read_report(folder).value
    0.5
    """
    path = Path(folder) / METRICS
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines() if path.exists() else []
    finals: list[Any] = []
    intermediate: list[Any] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            kind, value = entry['type'], entry['value']
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and not line.endswith('}'):
                continue  # the process died while it wrote
            raise TrialReportError(f'Line {number} of {path} is no report of a trial: {line[:80]!r}.') from None
        (finals if kind == FINAL else intermediate).append(value)
    if not finals:
        raise TrialReportError('The trial ended without a result: it must call report_final_result(number) once, at its end.')
    if len(finals) > 1:
        raise TrialReportError(
            f'The trial reported {len(finals)} final results, {finals[0]!r} and then {finals[1]!r}: it must call '
            'report_final_result once, and report_intermediate_result for what is measured on the way.'
        )
    final = finals[0]
    value = final.get('default') if isinstance(final, Mapping) else final
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TrialReportError(f'The final result of the trial must be a finite number, but it reported {value!r}.')
    more = {key: item for key, item in final.items() if key != 'default'} if isinstance(final, Mapping) else {}
    return TrialReport(float(value), more, tuple(intermediate))


class ReportReader:
    """Reads what a running trial reports on its way, each line once.

    Args:
        folder: The trial's folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder) / METRICS
        self._offset = 0
        self._told = False

    def forward(self, reporter: Reporter) -> None:
        """Hand what is new to a reporter. What is no number, or no report at all, is left out: the end of the trial judges it.

        Raises:
            TrialStopped: If the trial is to end.
        """
        try:
            with open(self._path, 'rb') as stream:
                stream.seek(self._offset)
                content = stream.read()
        except OSError:
            return
        whole = content[: content.rfind(b'\n') + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
                kind, value, step = entry['type'], entry['value'], entry.get('sequence')
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if kind != INTERMEDIATE:
                continue
            number = _number(value.get('default') if isinstance(value, Mapping) else value)
            if number is None:
                if not self._told:
                    self._told = True
                    _logger.warning(
                        'Trial %d reported %r on its way, which is no number; it is left out.', reporter.number, value
                    )
                continue
            fits = isinstance(step, int) and not isinstance(step, bool) and step >= 0
            reporter.report(number, step if fits else None)


def generating() -> Path | None:
    """Return the file that the search space is to be written to, where a script is run for its space alone."""
    given = os.environ.get(SPACE_VARIABLE)
    return Path(given) if given else None


def leave() -> None:
    """End a script that was run for its search space alone."""
    sys.stdout.flush()
    sys.exit(0)
