"""The database of the service: its tables, how it is opened, and its migrations.

SQLite with a write-ahead log, synced to the disk before a write is answered. Only the server's process opens it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from sqlalchemy.engine import Connection, Dialect, Engine

from panning.foundation.errors import OutputError

#: The newest schema.
SCHEMA = "4"
BUSY_MS = 30_000


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
    sa.Column("code", sa.String), sa.Column("message", sa.Text), sa.Column("attempt", sa.Integer),
    sa.Column("crashes", sa.Integer), sa.Column("cancel_asked", sa.Boolean), sa.Column("pinned", sa.Boolean),
    sa.Column("deleted", sa.Boolean), sa.Column("n_bytes", sa.BigInteger), sa.Column("submitted", UtcTime),
    sa.Column("started", UtcTime), sa.Column("ended", UtcTime), sa.Column("kept", sa.String),
    sa.Column("freed_bytes", sa.BigInteger), sa.Column("reduced", UtcTime), sa.Column("sweeping", sa.Boolean),
)  # fmt: skip
ATTEMPTS = sa.Table(
    "attempts", TABLES, sa.Column("job", sa.Integer, primary_key=True), sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("boot", sa.String), sa.Column("started", UtcTime), sa.Column("ended", UtcTime),
    sa.Column("how", sa.String), sa.Column("message", sa.Text),
)  # fmt: skip
KEYS = sa.Table(
    "keys", TABLES, sa.Column("token", sa.Integer, primary_key=True), sa.Column("key", sa.String, primary_key=True),
    sa.Column("digest", sa.String), sa.Column("job", sa.Integer),
)  # fmt: skip
UPLOADS = sa.Table(
    "uploads", TABLES, sa.Column("token", sa.Integer, primary_key=True), sa.Column("sha256", sa.String, primary_key=True),
    sa.Column("kind", sa.String), sa.Column("name", sa.String), sa.Column("n_bytes", sa.BigInteger),
    sa.Column("made", UtcTime), sa.Column("facts", sa.Text),
)  # fmt: skip


class Database:
    """An open database with the newest schema.

    >>> from pathlib import Path
    >>> from panning.service.database import SCHEMA, Database
    >>> database = Database(Path("service.sqlite"))
    >>> database.schema == SCHEMA
    True
    >>> database.close()

    Args:
        path: of the file; an older schema is migrated.

    Raises:
        OutputError: if it cannot be opened, or is of a newer version of this package.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.engine: Engine = sa.create_engine(
            f"sqlite:///{path.absolute()}", connect_args={"check_same_thread": False}
        )
        sa.event.listen(self.engine, "connect", _open)
        sa.event.listen(self.engine, "begin", _begin)
        try:
            with self.writes() as connection:
                self._migrate(connection)
        except CommandError as error:
            raise OutputError(f"{path} is of a newer version of panning: {error}") from None
        except sa.exc.DatabaseError as error:
            raise OutputError(f"{path} is no database of the service: {error.orig}") from None
        path.chmod(0o600)

    @property
    def schema(self) -> str:
        with self.reads() as connection:
            return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one())

    @contextlib.contextmanager
    def reads(self) -> Iterator[Connection]:
        """A connection that sees one state of the database."""
        with self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writes(self) -> Iterator[Connection]:
        """A connection whose statements count all together or not at all, and no other's between them."""
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    def _migrate(self, connection: Connection) -> None:
        config = AlembicConfig()
        config.set_main_option("script_location", "panning.service:migrations")
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _open(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy says where a transaction begins, not the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later may be refused then; one that writes waits for its turn at once.
    is_write = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
