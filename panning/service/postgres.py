"""Postgres below the service's store: a database on a server that others look after.

All writes go over one connection, which holds an advisory lock of the database. So they come one after another, and only one
server uses a database at a time: where the connection breaks, the lock goes with it, and nothing is written before the next
connection has the lock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from panning.foundation.errors import ConfigError, OutputError
from panning.foundation.extras import extra_packages

#: The scheme of a URL; the driver is psycopg whatever is given.
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
#: The advisory lock of a service, "pann" and a number.
LOCK = (0x70616E6E, 1)
#: So long the lock is waited for: the connection of a server that has just ended may hold it for a moment.
PATIENCE_S = 2.0
#: So long a request waits for the writes before it.
QUEUE_S = 30.0
#: A peer that is gone without a word is noticed by both sides within a minute.
KEEP: dict[str, Any] = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip
SETTINGS = (
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 10",
    "SET tcp_keepalives_count = 3",
    # What is answered is on the disk. A stronger setting stays.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)


class TakenError(OutputError):
    """A database that another server uses."""


class Postgres:
    """A database of Postgres, which is there already.

    Attributes:
        name: what messages call it; without user and password.
        unlike: what it is not, where it cannot be opened.
        lost: errors that say that it cannot be reached now.

    Args:
        url: as ``name_of`` takes it.

    Raises:
        ConfigError: if the URL is none.
        MissingExtraError: if psycopg is not installed.
    """

    unlike = "cannot be used"
    lost: tuple[type[Exception], ...] = (
        sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, TakenError
    )  # fmt: skip

    def __init__(self, url: str) -> None:
        parsed = _parsed(url)
        self.name = name_of(url)
        given = {name: value for name, value in KEEP.items() if name not in parsed.query}
        # Parameters are in no message: among them are the hashes of tokens.
        common: dict[str, Any] = {"connect_args": given, "pool_pre_ping": True, "hide_parameters": True}
        with extra_packages():
            self._reading = sa.create_engine(
                parsed, isolation_level="REPEATABLE READ", execution_options={"postgresql_readonly": True}, **common
            )
            # A pool of one: who writes waits for its turn, and sees what was written before it.
            self._writing = sa.create_engine(
                parsed, isolation_level="READ COMMITTED", pool_size=1, max_overflow=0, pool_timeout=QUEUE_S, **common
            )
        sa.event.listen(self._writing, "connect", self._take)

    @contextlib.contextmanager
    def reads(self) -> Iterator[Connection]:
        """A connection that sees one state of the database."""
        with self._reading.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writes(self) -> Iterator[Connection]:
        """A connection whose statements count all together or not at all, and no other's between them."""
        with self._writing.begin() as connection:
            yield connection

    def shut_to_others(self) -> None:
        """Who may read the database is for its server to say."""

    def close(self) -> None:
        self._reading.dispose()
        self._writing.dispose()

    def _take(self, connection: Any, _: Any) -> None:
        """Take the lock over a new connection, which is closed if that fails."""
        try:
            with connection.cursor() as cursor:
                (encoding,) = cursor.execute("SHOW server_encoding").fetchone()
                if encoding != "UTF8":
                    raise OutputError(f"{self.name} stores {encoding}: make one by `createdb -E UTF8 -T template0`.")
                for setting in SETTINGS:
                    cursor.execute(setting)
                end = time.monotonic() + PATIENCE_S
                while not cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", LOCK).fetchone()[0]:
                    if time.monotonic() >= end:
                        raise TakenError(f"Another server uses the {self.name}.")
                    time.sleep(0.05)
            connection.commit()
        except BaseException:
            connection.close()
            raise


def name_of(url: str) -> str:
    """What messages call a database: without user, password and options.

    Args:
        url: ``postgresql://USER:PASSWORD@HOST:PORT/NAME``, all but NAME as libpq has them by default.

    Raises:
        ConfigError: if it is none.

    Examples:
        >>> from panning.service.postgres import name_of
        >>> name_of("postgresql://ada:secret@lab.example/panning")
        'Postgres database panning at lab.example'
        >>> name_of("postgresql:///panning?host=/var/run/postgresql")
        'Postgres database panning at /var/run/postgresql'
    """
    parsed = _parsed(url)
    host = parsed.host or parsed.query.get("host") or "this machine"
    where = host if isinstance(host, str) else ", ".join(host)
    return f"Postgres database {parsed.database} at {where}" + (f":{parsed.port}" if parsed.port else "")


def _parsed(text: str) -> URL:
    url = None
    with contextlib.suppress(sa.exc.ArgumentError, ValueError):
        url = sa.make_url(text)
    if url is None or url.drivername not in SCHEMES or not url.database:
        # What was given may hold a password: it is not repeated.
        raise ConfigError(
            "What --database or PANNING_DATABASE says is no URL of a Postgres database. It is written as "
            "postgresql://USER@HOST/NAME, with %40 for an @ in a password. Without one, the service uses SQLite in its "
            "folder."
        )
    return url.set(drivername="postgresql+psycopg")
