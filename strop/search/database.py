"""A store in a database: one that outlives a lost connection, a restarted server, a locked file."""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from strop.errors import MissingDependencyError, StoreError
from strop.search.urls import hide_secrets

#: Seconds for which a database that does not answer is asked again.
PATIENCE = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

# What no waiting mends, though it comes as the same kind of error.
_LASTING = (
    'no such table',
    'readonly database',
    'disk is full',
    'not a database',
    'permission denied',
    'authentication failed',
    'does not exist',
)
_DRIVERS = ('psycopg2', 'psycopg')

_logger = logging.getLogger(__name__)


class PatientDatabase(RDBStorage):
    """Optuna's storage in a database, which asks again for a minute where the database does not answer.

    An answer that was lost on its way does not make a trial twice: a trial carries a ticket, by which it is found again.

    Args:
        url: As SQLAlchemy writes it. A PostgreSQL without a driver's name gets the one that is installed.

    Raises:
        MissingDependencyError: If there is no driver for it.

    >>> import tempfile
    >>> storage = PatientDatabase(f'sqlite:///{tempfile.mkdtemp()}/search.db')
    >>> storage.get_all_studies()
    []
    """

    def __init__(self, url: str) -> None:
        url = with_driver(url)
        options: dict[str, Any] = {} if url.startswith('sqlite') else {'pool_pre_ping': True}
        super().__init__(url, engine_kwargs=options)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, once, however often the database has to be asked."""
        if template_trial is None:
            return super().create_new_trial(study_id, None)
        ticket = uuid.uuid4().hex
        template_trial.user_attrs = {**template_trial.user_attrs, 'ticket': ticket}
        asked = False

        def create() -> int:
            nonlocal asked
            if asked:
                for trial in reversed(RDBStorage.get_all_trials(self, study_id, deepcopy=False)):
                    if trial.user_attrs.get('ticket') == ticket:
                        return trial._trial_id
            asked = True
            return RDBStorage.create_new_trial(self, study_id, template_trial)

        return patiently(create, self.url)


def with_driver(url: str) -> str:
    """Return the URL of a database with a driver that is installed.

    Raises:
        MissingDependencyError: If none is.

    >>> with_driver('sqlite:///search.db')
    'sqlite:///search.db'
    """
    scheme, mark, rest = url.partition('://')
    if scheme not in ('postgresql', 'postgres') or not mark:
        return url
    for driver in _DRIVERS:
        if importlib.util.find_spec(driver) is not None:
            return f'postgresql+{driver}://{rest}'
    raise MissingDependencyError("A store in PostgreSQL needs a driver. Install it with: pip install 'strop[postgresql]'")


def patiently(ask: Callable[[], Any], where: str) -> Any:
    """Return what a question to a database gives, asking again while it is locked or away.

    Raises:
        StoreError: If it does not answer within `PATIENCE` seconds.

    >>> patiently(lambda: 3, 'sqlite://')
    3
    """
    begin, pause, told = time.monotonic(), _FIRST_PAUSE, False
    while True:
        try:
            answer = ask()
        except Exception as error:
            if not _may_pass(error):
                raise
            taken = time.monotonic() - begin
            reason = hide_secrets(_reason(error))
            if taken + pause > PATIENCE:
                raise StoreError(
                    f'The database {hide_secrets(where)} has not answered for {taken:.0f} s ({reason}). The trials that it '
                    'holds are safe: resume the search when it is back.'
                ) from None
            if not told:
                told = True
                _logger.warning(
                    'The database %s does not answer (%s); it is asked again for up to %g s.',
                    hide_secrets(where),
                    reason,
                    PATIENCE,
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            continue
        if told:
            _logger.warning('The database %s answers again.', hide_secrets(where))
        return answer


def _may_pass(error: Exception) -> bool:
    import sqlalchemy.exc

    if isinstance(error, optuna.exceptions.StorageInternalError):
        cause = error.__cause__
    else:
        cause = error
    passing = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.TimeoutError)
    text = str(cause).lower()
    return isinstance(cause, passing) and not any(words in text for words in _LASTING)


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    text = ' '.join(str(getattr(cause, 'orig', None) or cause).split())
    return f'{type(cause).__name__}: {text[:200]}'


def _patient(name: str) -> Callable[..., Any]:
    plain = getattr(RDBStorage, name)

    @functools.wraps(plain)
    def asked(self: PatientDatabase, *args: Any, **kwargs: Any) -> Any:
        return patiently(lambda: plain(self, *args, **kwargs), self.url)

    return asked


# All of these give the same when they are asked twice; a trial that was ended by the first asking says so to the second.
for _name in (
    'create_new_study',
    'set_study_user_attr',
    'set_study_system_attr',
    'get_study_id_from_name',
    'get_study_name_from_id',
    'get_study_directions',
    'get_study_user_attrs',
    'get_study_system_attrs',
    'get_trial_id_from_study_id_trial_number',
    'get_all_studies',
    'set_trial_state_values',
    'set_trial_intermediate_value',
    'set_trial_user_attr',
    'set_trial_system_attr',
    'get_trial',
    'get_all_trials',
):
    setattr(PatientDatabase, _name, _patient(_name))
