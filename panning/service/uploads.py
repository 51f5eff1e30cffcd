"""Uploads: files that callers send, by the hash of their content. A file is written aside, hashed on the way, checked, and
renamed; what lies in the folder without a row of the table is removed at the next start.

    uploads/OWNER/SHA256
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from panning.foundation.errors import ConfigError
from panning.foundation.records import canonical_json
from panning.foundation.remote import UPLOAD
from panning.service.database import JOBS, TOKENS, UPLOADS, Database
from panning.service.inputs import FIELDS, named_uploads
from panning.service.steps import THERE
from panning.service.tokens import now_utc
from panning.service.words import (
    BusyError,
    HashError,
    InUseError,
    NoUploadError,
    OtherKindError,
    QuotaError,
    Upload,
    UploadKind,
)

#: Of one owner: uploads that are kept.
MOST_OF_ONE = 1_000
#: So many come at a time, and so many of one owner.
MOST_COMING, MOST_COMING_OF_ONE = 16, 4
MAX_NAME = 100


@dataclass
class Coming:
    """A file on its way.

    Attributes:
        path: where it is written, aside.
        n_bytes: that are there.
    """

    path: Path
    length: int
    sha256: str
    file: BinaryIO
    n_bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, piece: bytes) -> None:
        """Take in the next bytes.

        Raises:
            HashError: if there are more than were announced.
        """
        self.n_bytes += len(piece)
        if self.n_bytes > self.length:
            raise HashError(f"More came than the {self.length:,} bytes that were announced.")
        self.digest.update(piece)
        self.file.write(piece)

    def finish(self) -> None:
        """See that all is there, and have it on the disk.

        Raises:
            HashError: if the content is not that of the hash.
        """
        if self.n_bytes < self.length:
            raise HashError(f"{self.n_bytes:,} of {self.length:,} bytes came.")
        if (found := self.digest.hexdigest()) != self.sha256:
            raise HashError(f"The SHA-256 of what came is {found}: it was damaged on the way, or is another file.")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


class Uploads:
    """The uploads of a service.

    >>> from pathlib import Path
    >>> from panning.service.store import Store
    >>> from panning.service.uploads import Uploads
    >>> store = Store.at(Path("service.sqlite"))
    >>> token, _ = store.tokens.add("Ada", "submit")
    >>> Uploads(store.database, Path("uploads")).all(token.id)
    []

    Args:
        root: the folder of all.
        clock: gives the present time.
    """

    def __init__(self, database: Database, root: Path, clock: Callable[[], datetime] = now_utc) -> None:
        self.database, self.root, self._now = database, root, clock
        self._coming: Counter[int] = Counter()
        self._coming_bytes: Counter[int] = Counter()
        self._counting = threading.Lock()

    def path(self, owner: int, sha256: str) -> Path:
        """Where an upload lies."""
        return self.root / str(owner) / sha256

    def all(self, owner: int | None) -> list[Upload]:
        """The uploads of an owner, or, for None, of all; the newest first."""
        asked = sa.select(UPLOADS).order_by(UPLOADS.c.made.desc(), UPLOADS.c.sha256, UPLOADS.c.token)
        if owner is not None:
            asked = asked.where(UPLOADS.c.token == owner)
        with self.database.reads() as connection:
            return [_upload(row) for row in connection.execute(asked)]

    def one(self, owner: int, sha256: str) -> Upload:
        """
        Raises:
            NoUploadError: if there is none.
        """
        with self.database.reads() as connection:
            row = connection.execute(sa.select(UPLOADS).where(*_of(owner, sha256))).one_or_none()
        if row is None:
            raise NoUploadError(f"There is no upload {sha256}.")
        return _upload(row)

    def known(self, owner: int, sha256: str, kind: UploadKind) -> Upload | None:
        """The upload if it is there already; it counts as used now.

        Raises:
            OtherKindError: if it is there as another kind.
        """
        with self.database.writes() as connection:
            connection.execute(sa.update(UPLOADS).where(*_of(owner, sha256)).values(used=self._now()))
        try:
            found = self.one(owner, sha256)
        except NoUploadError:
            return None
        if found.kind != kind:
            raise OtherKindError(f"This file is there already, as {found.kind}: delete that first.")
        return found

    @contextmanager
    def coming(self, owner: int, sha256: str, length: int) -> Iterator[Coming]:
        """Within, a file may come. Whatever happens, nothing of it is left but by ``keep``.

        Raises:
            QuotaError: if the owner has no room for it.
            BusyError: if too many come already.
        """
        with self._counting:
            self._check_room(owner, length)
            self._coming[owner] += 1
            self._coming_bytes[owner] += length
        part = self.root / str(owner) / f".{secrets.token_hex(8)}.part"
        try:
            part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(part, "xb") as file:
                yield Coming(part, length, sha256, file)
        finally:
            part.unlink(missing_ok=True)
            with self._counting:
                self._coming[owner] -= 1
                self._coming_bytes[owner] -= length

    def keep(self, owner: int, came: Coming, kind: UploadKind, name: str, facts: Mapping[str, Any]) -> Upload:
        """Give a file that has come, and was found good, its place. Once this returns, it stays."""
        found = Upload(owner, came.sha256, kind, name, came.n_bytes, self._now(), dict(facts))
        path = self.path(owner, came.sha256)
        values = {
            "token": owner, "sha256": found.sha256, "kind": kind, "name": name, "n_bytes": found.n_bytes,
            "made": found.made, "facts": canonical_json(found.facts), "used": found.made,
        }  # fmt: skip
        with self.database.writes() as connection:
            if connection.execute(sa.select(UPLOADS.c.kind).where(*_of(owner, came.sha256))).first() is None:
                os.replace(came.path, path)
                _sync(path.parent)
                connection.execute(sa.insert(UPLOADS).values(values))
        return self.known(owner, came.sha256, kind) or found

    def delete(self, owner: int, sha256: str) -> None:
        """Delete an upload with its file.

        Raises:
            NoUploadError: if there is none.
            InUseError: if a job that has not ended names it.
        """
        with self.database.writes() as connection:
            if (job := connection.execute(_naming(owner, sha256, _WAITS)).scalar_one_or_none()) is not None:
                raise InUseError(f"Job {job} has not ended, and uses the upload: cancel it, or wait for its end.")
            if connection.execute(sa.delete(UPLOADS).where(*_of(owner, sha256))).rowcount == 0:
                raise NoUploadError(f"There is no upload {sha256}.")
            self.path(owner, sha256).unlink(missing_ok=True)

    def unneeded(self, before: datetime, n: int) -> list[tuple[int, str]]:
        """Owner and hash of uploads that were last used before a time and that no job needs: the ``n`` oldest."""
        due = sa.select(UPLOADS.c.token, UPLOADS.c.sha256).where(UPLOADS.c.used < before).order_by(UPLOADS.c.used)
        with self.database.reads() as connection:
            found = [(int(owner), str(sha256)) for owner, sha256 in connection.execute(due)]
            naming = sa.select(JOBS.c.token, JOBS.c.config).where(THERE, _NEEDS, JOBS.c.config.contains(UPLOAD))
            jobs = connection.execute(naming) if found else ()
            needed = {(owner, sha256) for owner, config in jobs for _, sha256 in named_uploads(json.loads(config))}
        return [one for one in found if one not in needed][:n]

    def remove_unneeded(self, owner: int, sha256: str, before: datetime) -> int | None:
        """Remove an upload with its file, unless it is used or needed by now; the bytes that this frees on the disk."""
        with self.database.writes() as connection:
            gone = sa.delete(UPLOADS).where(
                *_of(owner, sha256), UPLOADS.c.used < before, ~_naming(owner, sha256, _NEEDS).exists()
            )
            if connection.execute(gone).rowcount == 0:
                return None
            path = self.path(owner, sha256)
            n_bytes = path.lstat().st_size if path.exists() else 0
            path.unlink(missing_ok=True)
            return n_bytes

    def tidy(self) -> None:
        """Remove what a server that was killed has left: parts, files without a row, and rows without a file."""
        with self.database.writes() as connection:
            rows = connection.execute(sa.select(UPLOADS.c.token, UPLOADS.c.sha256)).all()
            kept = {path for row in rows if (path := self.path(*row)).is_file()}
            for owner, sha256 in rows:
                if self.path(owner, sha256) not in kept:
                    connection.execute(sa.delete(UPLOADS).where(*_of(owner, sha256)))
        for path in self.root.glob("*/*"):
            if path not in kept:
                path.unlink()

    def _check_room(self, owner: int, length: int) -> None:
        if self._coming.total() >= MOST_COMING or self._coming[owner] >= MOST_COMING_OF_ONE:
            raise BusyError("Too many uploads are on their way: send this one in a moment.")
        with self.database.reads() as connection:
            most = connection.execute(sa.select(TOKENS.c.max_stored_bytes).where(TOKENS.c.id == owner)).scalar_one()
            n = connection.execute(sa.select(sa.func.count()).where(UPLOADS.c.token == owner)).scalar_one()
            taken = stored(connection, owner) + self._coming_bytes[owner]
        if n + self._coming[owner] >= MOST_OF_ONE:
            raise QuotaError(f"There are {n} uploads of this token, and {MOST_OF_ONE} may be: delete some.")
        if taken + length > most:
            raise QuotaError(
                f"The jobs and uploads of this token take {taken:,} bytes, this file has {length:,}, and {most:,} are "
                "allowed: delete some."
            )


def stored(connection: Connection, owner: int) -> int:
    """The bytes that the jobs and the uploads of a token take."""
    tables = (JOBS, UPLOADS)
    sums = [sa.select(sa.func.coalesce(sa.func.sum(one.c.n_bytes), 0)).where(one.c.token == owner) for one in tables]
    return sum(int(connection.execute(one).scalar_one()) for one in sums)


#: Jobs that read the uploads that they name, and those that may: of which files are left, so that they can be tried again.
_WAITS = JOBS.c.state.in_(("queued", "running"))
_NEEDS = _WAITS | (JOBS.c.kept != "nothing")


def _naming(owner: int, sha256: str, which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """One job of an owner that names an upload."""
    named = JOBS.c.config.contains(UPLOAD + sha256)
    return sa.select(JOBS.c.id).where(THERE, JOBS.c.token == owner, which, named).limit(1)


def take_uploads(connection: Connection, owner: int, config: Mapping[str, Any], now: datetime) -> None:
    """See that the uploads that a config names are there, and note that they are used.

    Raises:
        ConfigError: as ``check_uploads``.
    """
    check_uploads(connection, owner, config)
    for _, sha256 in named_uploads(config):
        connection.execute(sa.update(UPLOADS).where(*_of(owner, sha256)).values(used=now))


def check_uploads(connection: Connection, owner: int, config: Mapping[str, Any]) -> None:
    """See that the uploads that a config names are there, and are what belongs into their fields.

    Raises:
        ConfigError: with one line for each that is not.
    """
    wrong = []
    for key, sha256 in named_uploads(config):
        kind = connection.execute(sa.select(UPLOADS.c.kind).where(*_of(owner, sha256))).scalar_one_or_none()
        if kind is None:
            wrong.append(f"  {key}: there is no upload {sha256}; send the file first")
        elif kind != FIELDS[key]:
            wrong.append(f"  {key}: the upload {sha256} is {kind}, and {FIELDS[key]} belongs here")
    if wrong:
        raise ConfigError("\n".join([f"This config is refused, with {len(wrong)} error(s):", *wrong[:20]]))


def _of(owner: int, sha256: str) -> tuple[Any, Any]:
    return UPLOADS.c.token == owner, UPLOADS.c.sha256 == sha256


def _upload(row: Any) -> Upload:
    return Upload(row.token, row.sha256, row.kind, row.name, row.n_bytes, row.made, json.loads(row.facts))


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
