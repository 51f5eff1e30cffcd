"""SQLite below the service's store: a file in the service's folder, with a write-ahead log, synced to the disk before a
write is answered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

BUSY_MS = 30_000


class Sqlite:
    """A file of SQLite, which is made if it is not there. Only the server's process opens it.

    >>> from pathlib import Path
    >>> from panning.service.sqlite import Sqlite
    >>> file = Sqlite(Path("service.sqlite"))
    >>> with file.reads() as connection:
    ...     connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    'wal'
    >>> file.close()

    Attributes:
        name: what messages call it.
        unlike: what it is not, where it cannot be opened.
        lost: errors that say that it cannot be reached now; a file always can.
    """

    unlike = "is no database of the service"
    lost: tuple[type[Exception], ...] = ()

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.name = str(path)
        self._path = path
        self._engine: Engine = sa.create_engine(
            f"sqlite:///{path.absolute()}", connect_args={"check_same_thread": False}
        )
        sa.event.listen(self._engine, "connect", _open)
        sa.event.listen(self._engine, "begin", _begin)

    @contextlib.contextmanager
    def reads(self) -> Iterator[Connection]:
        """A connection that sees one state of the database."""
        with self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writes(self) -> Iterator[Connection]:
        """A connection whose statements count all together or not at all, and no other's between them."""
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def shut_to_others(self) -> None:
        """Let nobody but its owner read the file."""
        self._path.chmod(0o600)

    def close(self) -> None:
        self._engine.dispose()


def _open(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy says where a transaction begins, not the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later may be refused then; one that writes waits for its turn at once.
    is_write = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
