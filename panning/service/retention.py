"""Retention: what goes of jobs that have ended, and when, by rules that the operator sets.

A job is first reduced to its results: masks, policies, tables, pictures, reports and records. Trained weights, checkpoints,
logs and caches go. Later its folder goes; its row in the table stays, and says what went. Pinned jobs keep everything.

Uploads go as jobs are removed: so long after they were last sent or named, unless a job names them that waits or runs, or of
which files are left.

What is to go is written into the table first, so that a server that was killed meanwhile goes on, and a job that is pinned
keeps what it had at that moment. How much went is measured on the disk.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from panning.service.database import JOBS, Database
from panning.service.folder import JobFolder
from panning.service.steps import THERE
from panning.service.supervisor import ATTEMPTS, n_bytes
from panning.service.tokens import now_utc
from panning.service.uploads import Uploads
from panning.service.words import ENDED, Kept

#: How often it looks for what may go, and how many jobs are seen to at a time, between two looks at those that run.
LOOK_S, MOST_AT_ONCE = 60.0, 20
#: For the sake of room nothing goes of a job that ended so lately: whoever sent it is still to fetch it.
LEAST = timedelta(hours=1)
#: What a run leaves that is kept longest, by its path in the run's folder.
RESULTS = (
    "*.csv", "*.json", "*.jsonl", "*.md", "*.yaml", "*.png", "mask*.safetensors", "choice-*.safetensors",
    "*masks/*.safetensors", "*policy.safetensors",
)  # fmt: skip
#: Folders of a run of which nothing is kept, whatever its files are called.
SCRATCH = {"logs"}
#: What the service itself needs of a job's folder, to show the job as it ran.
OWN = {"job.json", "events.jsonl", ".lock"}
LOG = logging.getLogger("panning.service")


@dataclass(frozen=True)
class Rules:
    """When files of jobs that have ended go; 0 is never.

    Attributes:
        reduce_days: after its end, a job is reduced to its results.
        remove_days: after its end, its folder goes; so long after its last use, an upload that no job needs.
        most_bytes: that the folders of all jobs take; beyond it jobs are reduced, and then removed, those that ended first
            first.
    """

    reduce_days: float = 0.0
    remove_days: float = 0.0
    most_bytes: int = 0


def is_result(path: str) -> bool:
    """Whether a file of a job is kept when the job is reduced.

    Args:
        path: within the job's folder.

    Examples:
        >>> from panning.service.retention import is_result
        >>> is_result("run/mask.safetensors"), is_result("run/model.safetensors"), is_result("log.txt")
        (True, False, False)
    """
    top, _, rest = path.partition("/")
    if top != "run":
        return path in OWN or top == ATTEMPTS
    parts = PurePosixPath(rest).parts
    if SCRATCH & set(parts[:-1]):
        return False
    return parts[-1] == ".lock" or (not parts[-1].startswith(".") and any(fnmatch(rest, one) for one in RESULTS))


def reduce(folder: Path) -> None:
    """Remove all files of a job's folder but its results, and folders that are empty then."""
    for place, below, names in os.walk(folder, topdown=False):
        links = [name for name in below if os.path.islink(os.path.join(place, name))]
        for path in (Path(place, name) for name in (*names, *links)):
            if path.is_symlink() or not is_result(path.relative_to(folder).as_posix()):
                path.unlink(missing_ok=True)
        if Path(place) != folder and not os.listdir(place):
            os.rmdir(place)


class Retention:
    """Sees to it that the files of jobs go when they may.

    >>> from pathlib import Path
    >>> from panning.service.folder import JobFolder
    >>> from panning.service.retention import Retention, Rules
    >>> from panning.service.store import Store
    >>> store = Store.at(Path("service.sqlite"))
    >>> retention = Retention(store.database, lambda number: JobFolder(Path("jobs", str(number))), Rules(reduce_days=7))
    >>> retention.sweep()
    0

    Args:
        folder: gives the folder of a job.
        clock: gives the present time.
        uploads: of the service; without them none goes.
    """

    def __init__(
        self, database: Database, folder: Callable[[int], JobFolder], rules: Rules,
        clock: Callable[[], datetime] = now_utc, uploads: Uploads | None = None,
    ) -> None:  # fmt: skip
        self.database, self.rules, self.uploads = database, rules, uploads
        self._folder, self._now = folder, clock
        self._looked = float("-inf")

    def look(self) -> None:
        """Sweep, if that was not done lately. Only the scheduler calls this, which starts no job meanwhile."""
        if time.monotonic() - self._looked >= LOOK_S and self.sweep() < MOST_AT_ONCE:
            self._looked = time.monotonic()

    def sweep(self) -> int:
        """Let go what may go now, of ``MOST_AT_ONCE`` jobs and uploads at most; how many were seen to."""
        with self.database.reads() as connection:
            unfinished = list(connection.execute(sa.select(JOBS.c.id).where(JOBS.c.sweeping)).scalars())
        n = sum(self._carry_out(number) for number in unfinished)  # a server that was killed has left them
        while n < MOST_AT_ONCE and (number := self._mark()) is not None:
            if not self._carry_out(number):
                break
            n += 1
        return n + self._uploads_go(MOST_AT_ONCE - n)

    def _uploads_go(self, n: int) -> int:
        """Remove uploads that no job needs, ``n`` at most, and measure what that frees; how many went."""
        if self.uploads is None or not self.rules.remove_days or n <= 0:
            return 0
        gone, before = 0, self._now() - timedelta(days=self.rules.remove_days)
        for owner, sha256 in self.uploads.unneeded(before, n):
            facts = {"upload": sha256, "token": owner}
            try:
                freed = self.uploads.remove_unneeded(owner, sha256, before)
            except OSError as error:
                LOG.warning("retention", extra={"facts": {**facts, "error": str(error)}})
                continue
            if freed is not None:
                gone += 1
                LOG.info("retention", extra={"facts": {**facts, "freed_bytes": freed}})
        return gone

    def _mark(self) -> int | None:
        """Write into the table what goes next; the job's number, or None if nothing does."""
        with self.database.reads() as connection:
            if (due := self._due(connection)) is None:
                return None
        number, kept = due
        values = {"kept": kept, "reduced": self._now(), "sweeping": True}
        with self.database.writes() as connection:
            step = sa.update(JOBS).where(JOBS.c.id == number, *_MAY_GO, JOBS.c.kept != kept).values(values)
            return number if connection.execute(step).rowcount == 1 else None

    def _due(self, connection: Connection) -> tuple[int, Kept] | None:
        """The job of which something goes next, and what is kept of it."""
        rules, now = self.rules, self._now()
        by_age: tuple[tuple[Kept, float], ...] = (("nothing", rules.remove_days), ("results", rules.reduce_days))
        for kept, days in by_age:
            if days and (found := _first(connection, kept, now - timedelta(days=days))) is not None:
                return found, kept
        taken = sa.select(sa.func.coalesce(sa.func.sum(JOBS.c.n_bytes), 0))
        if not rules.most_bytes or int(connection.execute(taken).scalar_one()) <= rules.most_bytes:
            return None
        for kept in _UNTIL:
            if (found := _first(connection, kept, now - LEAST, JOBS.c.n_bytes > 0)) is not None:
                return found, kept
        return None

    def _carry_out(self, number: int) -> bool:
        """Remove the files that go of a job, and measure what that frees; whether it was done."""
        with self.database.reads() as connection:
            kept = connection.execute(sa.select(JOBS.c.kept).where(JOBS.c.id == number)).scalar_one()
        folder = self._folder(number)
        if (lease := folder.take()) is None:
            return False  # a process of the job is about to end: the next look finds it gone
        try:
            folder.sweep()
            before = n_bytes(folder.path)
            if kept == "nothing":
                shutil.rmtree(folder.path)
            else:
                reduce(folder.path)
            left = n_bytes(folder.path)
        except OSError as error:
            LOG.warning("retention", extra={"facts": {"job": number, "error": str(error)}})
            return False
        finally:
            os.close(lease)
        values = {"sweeping": False, "n_bytes": left, "freed_bytes": JOBS.c.freed_bytes + before - left}
        with self.database.writes() as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.id == number).values(values))
        LOG.info("retention", extra={"facts": {"job": number, "kept": kept, "freed_bytes": before - left}})
        return True


#: Jobs of which something may go.
_MAY_GO: tuple[Any, ...] = (THERE, JOBS.c.state.in_(ENDED), JOBS.c.pinned.is_(False), JOBS.c.sweeping.is_(False))
#: What is to be kept -> what is kept of jobs until then.
_UNTIL: dict[Kept, tuple[Kept, ...]] = {"results": ("all",), "nothing": ("all", "results")}


def _first(connection: Connection, kept: Kept, before: datetime, *more: Any) -> int | None:
    """Of the jobs of which more is kept than ``kept``, the one that ended first, if that was before a time."""
    ended = sa.select(JOBS.c.id).where(*_MAY_GO, JOBS.c.kept.in_(_UNTIL[kept]), JOBS.c.ended < before, *more)
    first: int | None = connection.execute(ended.order_by(JOBS.c.ended, JOBS.c.id).limit(1)).scalar_one_or_none()
    return first
