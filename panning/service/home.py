"""The folder of a service and its database, which belong together: a job has a number in the database, and a folder by this
number.

service.sqlite   the database, unless it is one of Postgres
database.txt     otherwise names that
"""

from __future__ import annotations

from pathlib import Path

from panning.foundation.errors import OutputError
from panning.foundation.files import write_atomic
from panning.service.database import Database
from panning.service.postgres import name_of

SQLITE, ELSEWHERE = "service.sqlite", "database.txt"


def elsewhere(root: Path) -> str | None:
    """The name of the Postgres database that a folder belongs to; None if it belongs to none."""
    path = root / ELSEWHERE
    return path.read_text().strip() if path.exists() else None


def open_database(root: Path, url: str | None) -> Database:
    """The database of a service.

    Args:
        root: its folder.
        url: of a Postgres database; None is SQLite in the folder.

    Raises:
        OutputError: if the folder belongs to another database, or as ``Database`` raises it.
        ConfigError: for a URL that is none of Postgres.

    Examples:
        >>> from pathlib import Path
        >>> from panning.service.home import open_database
        >>> open_database(Path("service"), None).name
        'service/service.sqlite'
    """
    known = elsewhere(root)
    if url is None:
        if known is not None:
            raise OutputError(
                f"The jobs in {root} belong to the {known}: name it by --database or PANNING_DATABASE, or take another "
                "--root."
            )
        return Database(root / SQLITE)
    if (root / SQLITE).exists():
        raise OutputError(
            f"The jobs in {root} belong to {root / SQLITE}: start without --database and PANNING_DATABASE, or take another "
            "--root."
        )
    if known not in (None, name := name_of(url)):
        raise OutputError(
            f"The jobs in {root} belong to the {known}, and not to the {name}: take another --root. If the database has "
            f"moved, write its new name into {root / ELSEWHERE}."
        )
    database = Database(url)
    write_atomic(root / ELSEWHERE, f"{name}\n")
    return database
