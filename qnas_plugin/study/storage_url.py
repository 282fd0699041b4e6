"""Database URLs of studies and the passwords in them, which are used and never written or shown.

A password may stand in the URL that the user gives. What is stored has none; the next command takes it from the
environment variable ``QNAS_STORAGE_PASSWORD``, or from what the database's own driver knows, as ``~/.pgpass``.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from qnas_plugin.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

VARIABLE = "QNAS_STORAGE_PASSWORD"
_SECRET = re.compile(r"pass|pwd|secret|token|credential", re.IGNORECASE)
"""Parts of a URL's query of such a name are secret."""


def check(storage: str) -> None:
    """Refuses what is no URL, or has a password of which a part would be taken for something else.

    Raises:
        UsageError: So it is; the message does not show it.
    """
    if not re.match(r"[\w+]{2,}:|//", storage):  # a file
        return
    from sqlalchemy.exc import ArgumentError

    try:
        url = _parsed(storage)
        wrong = url.username is not None and "@" in f"{url.host}{url.database}"
    except (ArgumentError, ValueError):
        wrong = True
    if wrong:
        raise UsageError(
            f"cannot read --storage '{shown(storage)}'; a database URL is DIALECT://USER:PASSWORD@HOST:PORT/NAME, and "
            "in a password @ is written as %40, / as %2F, ? as %3F"
        )


def without_password(storage: str) -> str:
    """The same storage with nothing secret in its URL."""
    if not secrets(storage):
        return storage
    from sqlalchemy.engine import URL

    url = _parsed(storage)
    query = {name: value for name, value in url.query.items() if not _SECRET.search(name)}
    kept = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query)
    return kept.render_as_string(hide_password=False)


def with_password(storage: str) -> str:
    """The same storage with the password of the environment, where its URL has a user and none."""
    password = os.environ.get(VARIABLE)
    if not password or not lacks_password(storage):
        return storage
    return _parsed(storage).set(password=password).render_as_string(hide_password=False)


def lacks_password(storage: str) -> bool:
    """Whether it is the URL of a database with a user and without a password."""
    return "://" in storage and bool(_parsed(storage).username) and not secrets(storage)


def secrets(storage: str) -> tuple[str, ...]:
    """What must not be shown of a storage's URL."""
    if "://" not in storage:
        return ()
    url = _parsed(storage)
    found = [url.password] if url.password else []
    for name, value in url.query.items():
        if _SECRET.search(name):
            found += [value] if isinstance(value, str) else value
    return tuple(found)


def shown(storage: str) -> str:
    """A storage for messages: without what may be secret in its URL, even where it is no URL that can be read."""
    storage = re.sub(r"(:/*|//).*@", r"\1***@", storage, flags=re.DOTALL)
    return re.sub(rf"([?&][^=&]*(?:{_SECRET.pattern})[^=&]*=)[^&]*", r"\1***", storage, flags=re.IGNORECASE)


def scrubbed(text: str, storage: str) -> str:
    """What a database's driver says, without the password that it was given."""
    for secret in (*secrets(storage), os.environ.get(VARIABLE)):
        for form in {secret, quote(secret, safe=""), quote_plus(secret)} if secret else ():
            text = text.replace(form, "***")
    return text


def _parsed(storage: str) -> URL:
    from sqlalchemy.engine import make_url

    return make_url(storage)
