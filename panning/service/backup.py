"""A backup of a service, taken while it runs: a folder that `panning serve --root` takes as it is.

The database is copied first (SQLite's online backup), but for the sessions of browsers, then the files that it names: they
are as new as their rows, or newer.
A running job changes its files meanwhile, which belong together, as a checkpoint and the records before it. So all files of
a job are linked under other names within an instant in which none of them changed, and copied from there: files are replaced
or written on at their end, never changed within. The restored job goes on as after a power cut at that instant.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from panning.foundation.errors import OutputError
from panning.service.folder import JobFolder
from panning.service.home import SQLITE, elsewhere

JOBS, UPLOADS = "jobs", "uploads"
#: Where files are linked to, in the folder of the service: links are of one file system.
LINKS = ".backup"
#: So often it is tried to see a job's folder at rest; a look takes milliseconds.
TRIES = 200
#: A file's number, size and time: what changes when the file does.
State = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Backup:
    """What a backup has.

    Attributes:
        n_bytes: of all files.
    """

    path: Path
    n_jobs: int
    n_uploads: int
    n_bytes: int


def back_up(root: Path, out: Path) -> Backup:
    """Copy a service, which may run meanwhile.

    Args:
        root: of the service.
        out: a folder that is not there yet; it appears once it is whole.

    Raises:
        OutputError: if there is no service, its database is one of Postgres, ``out`` is there, or something cannot be read
            or written.
    """
    root, out = root.absolute(), out.absolute()
    if (name := elsewhere(root)) is not None:
        raise OutputError(
            f"This service has its jobs in the {name}, which is not copied here: end the service, and take the database by "
            f"pg_dump and the folder {root} by cp (docs/deploy.md)."
        )
    if not (root / SQLITE).is_file():
        raise OutputError(f"{root} holds no service: name the folder that `panning serve --root` has.")
    if out.exists():
        raise OutputError(f"{out} is there already: name another folder for the backup.")
    if out.is_relative_to(root):
        raise OutputError(f"{out} lies in the service's own folder: name one elsewhere.")
    if (lease := JobFolder(root / LINKS).take()) is None:
        raise OutputError(f"Another backup of {root} is being taken.")
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a backup that was killed
        part.mkdir(parents=True, mode=0o700)
        found = _copied(root, part, out)
        os.sync()
        part.rename(out)
        return found
    except (OSError, sqlite3.Error) as error:
        raise OutputError(f"{root} cannot be copied: {error}.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(root / LINKS, ignore_errors=True)
        os.close(lease)


def _copied(root: Path, part: Path, out: Path) -> Backup:
    jobs, uploads = _database(root / SQLITE, part / SQLITE)
    for folder in (JOBS, UPLOADS):
        (part / folder).mkdir(mode=0o700)
    for owner, sha256 in uploads:
        _upload(root / UPLOADS / owner / sha256, part / UPLOADS / owner / sha256)
    n_jobs = sum(_at_once(root / JOBS / name, part / JOBS / name, root / LINKS / "job") for name in jobs)
    sizes = [path.stat().st_size for path in part.rglob("*") if path.is_file()]
    return Backup(out, n_jobs, len(list((part / UPLOADS).glob("*/*"))), sum(sizes))


def _database(source: Path, target: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Copy the database; the jobs in it that are not deleted, and the owners and hashes of its uploads."""
    with closing(sqlite3.connect(target)) as copy:
        os.chmod(target, 0o600)
        with closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, timeout=60)) as live:
            live.backup(copy)
        tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"jobs", "tokens"} <= tables:
            raise sqlite3.DatabaseError(f"{source} is no database of the service")
        jobs = [str(number) for (number,) in copy.execute("SELECT id FROM jobs WHERE NOT deleted ORDER BY id")]
        if "sessions" in tables:  # whoever has signed out since would be signed in again
            copy.execute("DELETE FROM sessions")
            copy.commit()
        sent = "SELECT token, sha256 FROM uploads" if "uploads" in tables else "SELECT 0, '' WHERE 0"
        return jobs, [(str(owner), str(sha256)) for owner, sha256 in copy.execute(sent)]


def _upload(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:  # it was deleted since; the service drops its row when it starts
        return


def _at_once(source: Path, target: Path, links: Path) -> bool:
    """Copy a folder as it was at one instant; whether there is one.

    Raises:
        OutputError: if it never rests.
    """
    if not source.is_dir():
        return False  # it never ran, or was deleted since
    for _ in range(TRIES):
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir()
        try:
            state = _state(source)
            for name in state:
                place = links / name
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(source / name, place, follow_symlinks=False)
            if _state(source) == state:
                break
        except FileNotFoundError:  # it was replaced or removed meanwhile
            continue
    else:
        raise OutputError(f"The files of {source} change all the time: take the backup at another moment.")
    for name, (_, size, _) in state.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _copy(links / name, target / name, size)
    target.mkdir(exist_ok=True)
    return True


def _state(folder: Path) -> State:
    """All files of a folder but locks, links and what is being written aside."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if name == ".lock" or name.endswith(".part") or path.is_symlink():
                continue
            seen = path.stat()
            found[path.relative_to(folder).as_posix()] = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return found


def _copy(source: Path, target: Path, size: int) -> None:
    """Copy the first bytes of a file: what came behind them since is of later."""
    with open(source, "rb") as file, open(target, "wb") as copy:
        while size and (piece := file.read(min(size, 1 << 20))):
            size -= len(piece)
            copy.write(piece)
