"""The database of the service: its tables, how it is opened, and its migrations. Two backends stand below it: SQLite
(``panning.service.sqlite``), and Postgres (``panning.service.postgres``)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from sqlalchemy.engine import Connection, Dialect

from panning.foundation.errors import OutputError
from panning.foundation.text import one_line
from panning.service.postgres import Postgres
from panning.service.sqlite import Sqlite
from panning.service.words import BusyError

#: The newest schema.
SCHEMA = "7"
LOG = logging.getLogger("panning.service")


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A point in time, stored as text in UTC that sorts as times do; one without a zone is refused."""

    impl = sa.String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("A time without a zone may be any.")
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


class Message(sa.types.TypeDecorator[str]):
    """A sentence that a job's process has left, which may hold anything; Postgres stores no NUL."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


TABLES = sa.MetaData()
TOKENS = sa.Table(
    "tokens", TABLES, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String),
    sa.Column("hash", sa.String), sa.Column("scopes", sa.String), sa.Column("made", UtcTime),
    sa.Column("expires", UtcTime), sa.Column("revoked", UtcTime), sa.Column("max_running", sa.Integer),
    sa.Column("max_queued", sa.Integer), sa.Column("max_stored_bytes", sa.BigInteger), sa.Column("served", sa.Integer),
    sa.Column("owner", sa.Integer),
)  # fmt: skip
JOBS = sa.Table(
    "jobs", TABLES, sa.Column("id", sa.Integer, primary_key=True), sa.Column("token", sa.Integer),
    sa.Column("kind", sa.String), sa.Column("config", sa.Text), sa.Column("state", sa.String),
    sa.Column("code", sa.String), sa.Column("message", Message), sa.Column("attempt", sa.Integer),
    sa.Column("crashes", sa.Integer), sa.Column("cancel_asked", sa.Boolean), sa.Column("pinned", sa.Boolean),
    sa.Column("deleted", sa.Boolean), sa.Column("n_bytes", sa.BigInteger), sa.Column("submitted", UtcTime),
    sa.Column("started", UtcTime), sa.Column("ended", UtcTime), sa.Column("kept", sa.String),
    sa.Column("freed_bytes", sa.BigInteger), sa.Column("reduced", UtcTime), sa.Column("sweeping", sa.Boolean),
)  # fmt: skip
ATTEMPTS = sa.Table(
    "attempts", TABLES, sa.Column("job", sa.Integer, primary_key=True), sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("boot", sa.String), sa.Column("started", UtcTime), sa.Column("ended", UtcTime),
    sa.Column("how", sa.String), sa.Column("message", Message), sa.Column("place", sa.BigInteger),
)  # fmt: skip
KEYS = sa.Table(
    "keys", TABLES, sa.Column("token", sa.Integer, primary_key=True), sa.Column("key", sa.String, primary_key=True),
    sa.Column("digest", sa.String), sa.Column("job", sa.Integer),
)  # fmt: skip
UPLOADS = sa.Table(
    "uploads", TABLES, sa.Column("token", sa.Integer, primary_key=True), sa.Column("sha256", sa.String, primary_key=True),
    sa.Column("kind", sa.String), sa.Column("name", sa.String), sa.Column("n_bytes", sa.BigInteger),
    sa.Column("made", UtcTime), sa.Column("facts", sa.Text), sa.Column("used", UtcTime),
)  # fmt: skip
SESSIONS = sa.Table(
    "sessions", TABLES, sa.Column("hash", sa.String, primary_key=True), sa.Column("token", sa.Integer),
    sa.Column("until", UtcTime),
)  # fmt: skip


class Backend(Protocol):
    """The interface of a backend, SQLite or Postgres; ``Sqlite`` says what its attributes are."""

    name: str
    unlike: str
    lost: tuple[type[Exception], ...]

    def reads(self) -> AbstractContextManager[Connection]:
        """A connection that sees one state of the database."""

    def writes(self) -> AbstractContextManager[Connection]:
        """A connection whose statements count all together or not at all, and no other's between them."""

    def shut_to_others(self) -> None:
        """Let nobody else read what lies on this machine."""

    def close(self) -> None:
        """Close all connections."""


class Database:
    """An open database with the newest schema.

    >>> from pathlib import Path
    >>> from panning.service.database import SCHEMA, Database
    >>> database = Database(Path("service.sqlite"))
    >>> database.schema == SCHEMA
    True
    >>> database.close()

    Args:
        place: the path of a file of SQLite, which is made if it is not there, or the URL of a database of Postgres. An older
            schema is migrated.

    Raises:
        OutputError: if it cannot be opened, is of a newer version of this package, or is another server's.
        ConfigError: for a URL that is none of Postgres.
    """

    def __init__(self, place: Path | str) -> None:
        self._backend: Backend = Sqlite(place) if isinstance(place, Path) else Postgres(place)
        self.name = self._backend.name
        try:
            with self._backend.writes() as connection:
                migrate(connection)
        except BaseException as error:
            self.close()
            if isinstance(error, CommandError):
                raise OutputError(f"{self.name} is of a newer version of panning: {error}") from None
            if isinstance(error, sa.exc.DBAPIError):
                raise OutputError(f"{self.name} {self._backend.unlike}: {_reason(error)}") from None
            raise
        self._backend.shut_to_others()

    @property
    def schema(self) -> str:
        with self.reads() as connection:
            return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one())

    @contextlib.contextmanager
    def reads(self) -> Iterator[Connection]:
        """A connection that sees one state of the database.

        Raises:
            BusyError: if the database cannot be reached now.
        """
        with self._reached(), self._backend.reads() as connection:
            yield connection

    @contextlib.contextmanager
    def writes(self) -> Iterator[Connection]:
        """A connection whose statements count all together or not at all, and no other's between them.

        Raises:
            BusyError: if the database cannot be reached now.
        """
        with self._reached(), self._backend.writes() as connection:
            yield connection

    def close(self) -> None:
        self._backend.close()

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Callers are told no more than that it cannot be reached; the log has the reason."""
        try:
            yield
        except self._backend.lost as error:
            LOG.warning("database", extra={"facts": {"database": self.name, "error": _reason(error)}})
            raise BusyError("The database of the service cannot be reached now: try again in a moment.") from None


def migrate(connection: Connection, schema: str = "head") -> None:
    """Bring a database to a schema, the newest unless another is named.

    Raises:
        CommandError: of alembic, if its schema is none of this version's.
    """
    config = AlembicConfig()
    config.set_main_option("script_location", "panning.service:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, schema)


def _reason(error: Exception) -> str:
    """What a driver said, on one line; drivers name no password."""
    return one_line(str(getattr(error, "orig", None) or error))
