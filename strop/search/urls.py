"""Addresses of databases, without the secrets in them."""

from __future__ import annotations

import re

HIDDEN = '***'

# The user may be empty (`scheme://:secret@host`), and the secret may hold an @ that nobody escaped: the last one counts. It may
# also hold a slash or a quote, with which SQLAlchemy connects.
_USER_INFO = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@\'"]*):(?:[^\s/\'"]+|[^\s@]+)@')
_QUOTED = r'\'[^\']*\'|"[^"]*"'
_NAMES = r'(?:ssl)?(?:password|passwd|passphrase|pwd|secret|token|access_key|api_key)'
_OPTION = re.compile(rf'(?i)(?<=[?&;\s])({_NAMES}=)(?:{_QUOTED}|[^&;#\s\'"]+)')
_MAPPING = re.compile(
    rf'(?i)(PGPASSWORD|MYSQL_PWD|REDIS_PASSWORD|(?<=[\'"]){_NAMES}(?=[\'"]))([\'"]?\s*[=:]\s*)(?:{_QUOTED}|[^\s,}}]+)'
)


def hide_secrets(text: str) -> str:
    """Return a text with the password of every database URL in it replaced by `***`.

    Passwords are found where URLs keep them (`scheme://user:password@host`), as options (`?password=...`,
    `password=...` in a connection string) and as the usual environment variables. What is no secret stays, so that
    a reader knows which database is meant.

    >>> hide_secrets('postgresql+psycopg://ada:s3cret@db:5432/trials')
    'postgresql+psycopg://ada:***@db:5432/trials'
    >>> hide_secrets('sqlite:///search.db at http://127.0.0.1:8080')
    'sqlite:///search.db at http://127.0.0.1:8080'
    """
    if '://' in text:
        text = _USER_INFO.sub(rf'\1:{HIDDEN}@', text)
    if '=' in text or ':' in text:
        text = _OPTION.sub(rf'\1{HIDDEN}', text)
        text = _MAPPING.sub(rf'\1\2{HIDDEN}', text)
    return text
