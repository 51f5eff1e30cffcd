"""The table of jobs: what was sent, and how far each is. Each step of a job is one statement, with the old state as its
condition.

    queued -> running -> succeeded | failed | cancelled

Whether a running job lives is not told here but by the lease on its folder (``panning.service.folder``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from panning.foundation.records import canonical_json
from panning.service.database import ATTEMPTS, JOBS, KEYS, TOKENS, Database
from panning.service.folder import Outcome
from panning.service.steps import THERE, TURN, following, without_word
from panning.service.tokens import Tokens, now_utc
from panning.service.uploads import stored, take_uploads
from panning.service.words import (
    ENDED,
    STATES,
    Attempt,
    Job,
    KeyConflictError,
    NoJobError,
    QuotaError,
    State,
    StepError,
)

#: Columns of a list: all but the config, which may be long.
LISTED = [JOBS.c[field.name] for field in fields(Job)]
MAX_PAGE = 200


@dataclass(frozen=True)
class Submitted:
    """The answer to a submission.

    Attributes:
        is_new: False for a request that was sent before under the same idempotency key.
    """

    job: Job
    is_new: bool


class Store:
    """The jobs of a database, and its tokens.

    >>> from pathlib import Path
    >>> from panning.service.folder import Outcome
    >>> from panning.service.store import Store
    >>> store = Store.at(Path("service.sqlite"))
    >>> token, _ = store.tokens.add("Ada", "submit")
    >>> job = store.submit(token.id, {"kind": "prune", "density": 0.1}).job
    >>> store.start_next("this boot").state, store.counts()["running"]
    ('running', 1)
    >>> store.settle(job.id, 1, Outcome("succeeded")).state
    'succeeded'

    Args:
        clock: gives the present time.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = now_utc) -> None:
        self.database = database
        self.tokens = Tokens(database, clock)
        self._now = clock

    @classmethod
    def at(cls, place: Path | str) -> Store:
        """The store in a file, which is made if it is not there, or in the Postgres database of a URL."""
        return cls(Database(place))

    def close(self) -> None:
        self.database.close()

    # --- what callers do ---

    def submit(self, token: int, config: Mapping[str, Any], key: str | None = None) -> Submitted:
        """Take in a job. Once this returns, it is on the disk.

        Args:
            config: of a run, with its kind; ``check_remote`` has looked at it.
            key: an idempotency key: the same request under the same key is the same job.

        Raises:
            ConfigError: if the config names an upload that the token does not have.
            KeyConflictError: if the key stands for another config.
            QuotaError: if the token has too many jobs queued or too much stored.
        """
        text = canonical_json(config)
        digest = hashlib.sha256(text.encode()).hexdigest()
        with self.database.writes() as connection:
            if key is not None and (known := self._known(connection, token, key, digest)) is not None:
                return Submitted(known, is_new=False)
            self._check_quota(connection, token)
            take_uploads(connection, token, config, self._now())
            values = {
                "token": token, "kind": str(config.get("kind")), "config": text, "state": "queued", "message": "",
                "attempt": 0, "crashes": 0, "cancel_asked": False, "pinned": False, "deleted": False, "n_bytes": 0,
                "submitted": self._now(), "kept": "all", "freed_bytes": 0, "sweeping": False,
            }  # fmt: skip
            number = connection.execute(sa.insert(JOBS).values(values)).inserted_primary_key[0]
            if key is not None:
                connection.execute(sa.insert(KEYS).values(token=token, key=key, digest=digest, job=number))
            return Submitted(self._job(connection, number), is_new=True)

    def job(self, number: int) -> Job:
        """
        Raises:
            NoJobError: if there is none.
        """
        with self.database.reads() as connection:
            return self._job(connection, number)

    def config(self, number: int) -> dict[str, Any]:
        """The config of a job, as it was sent."""
        with self.database.reads() as connection:
            return self._config(connection, number)

    def attempts(self, number: int) -> list[Attempt]:
        """The attempts of a job, the first first."""
        columns = [ATTEMPTS.c[field.name] for field in fields(Attempt)]
        asked = sa.select(*columns).where(ATTEMPTS.c.job == number).order_by(ATTEMPTS.c.number)
        with self.database.reads() as connection:
            return [Attempt(*row) for row in connection.execute(asked)]

    def page(
        self, token: int | None = None, state: State | None = None, before: int | None = None, n: int = 50
    ) -> list[Job]:
        """Jobs, the newest first.

        Args:
            token: of this alone.
            state: in this alone.
            before: those with smaller numbers, so that the last of a page leads to the next.
            n: at most ``MAX_PAGE``.
        """
        asked = _of(sa.select(*LISTED), token)
        if state is not None:
            asked = asked.where(JOBS.c.state == state)
        if before is not None:
            asked = asked.where(JOBS.c.id < before)
        asked = asked.order_by(JOBS.c.id.desc()).limit(min(n, MAX_PAGE))
        with self.database.reads() as connection:
            return [Job(*row) for row in connection.execute(asked)]

    def counts(self, token: int | None = None) -> dict[State, int]:
        """How many jobs are in each state."""
        asked = _of(sa.select(JOBS.c.state, sa.func.count()), token).group_by(JOBS.c.state)
        with self.database.reads() as connection:
            found: dict[Any, int] = {state: n for state, n in connection.execute(asked)}
        return {state: found.get(state, 0) for state in STATES}

    def stored(self, token: int) -> int:
        """The bytes that the jobs and the uploads of a token take."""
        with self.database.reads() as connection:
            return stored(connection, token)

    def cancel(self, number: int) -> Job:
        """End a queued job, and ask a running one to end.

        Raises:
            StepError: if it has ended.
        """
        with self.database.writes() as connection:
            ended = {"state": "cancelled", "ended": self._now(), "message": "It was cancelled before it began."}
            done = self._step(connection, number, ("queued",), ended)
            done = done or self._step(connection, number, ("running",), {"cancel_asked": True})
            self._must(done, connection, number, "cancel")
            return self._job(connection, number)

    def retry(self, number: int) -> Job:
        """Queue a job that failed or was cancelled once more; it goes on where it was.

        Raises:
            StepError: if it did not fail and was not cancelled, or files of it are gone.
            QuotaError: as for ``submit``.
        """
        again = {"state": "queued", "code": None, "message": "", "crashes": 0, "cancel_asked": False, "ended": None}
        with self.database.writes() as connection:
            token = self._job(connection, number).token
            take_uploads(connection, token, self._config(connection, number), self._now())
            whole = JOBS.c.kept == "all"
            stepped = self._step(connection, number, ("failed", "cancelled"), again, whole)
            self._must(stepped, connection, number, "retry")
            self._check_quota(connection, token, already=1)
            return self._job(connection, number)

    def pin(self, number: int, pinned: bool = True) -> Job:
        """Keep a job and its files from being deleted, or no more."""
        with self.database.writes() as connection:
            self._job(connection, number)
            connection.execute(sa.update(JOBS).where(JOBS.c.id == number).values(pinned=pinned))
            return self._job(connection, number)

    def delete(self, number: int) -> None:
        """Take a job that has ended out of all lists; its files go next (``doomed``, ``forget``).

        Raises:
            StepError: if it has not ended, or is pinned.
        """
        with self.database.writes() as connection:
            gone = self._step(connection, number, ENDED, {"deleted": True}, JOBS.c.pinned.is_(False))
            self._must(gone, connection, number, "delete")
            connection.execute(sa.delete(KEYS).where(KEYS.c.job == number))

    # --- what the scheduler does ---

    def start_next(self, boot: str) -> Job | None:
        """Step the job whose turn it is from queued to running; None if there is none.

        It is the turn of the token with the fewest running jobs, of several the one that was served least recently, and of
        its jobs that of the oldest.

        Args:
            boot: names the present run of the machine.
        """
        with self.database.writes() as connection:
            if (turn := connection.execute(TURN).first()) is None:
                return None
            number, token = turn.first, turn.id
            values = {"state": "running", "attempt": JOBS.c.attempt + 1, "started": self._now(), "ended": None}
            if not self._step(connection, number, ("queued",), values):
                return None
            served = sa.select(sa.func.max(TOKENS.c.served) + 1).scalar_subquery()
            connection.execute(sa.update(TOKENS).where(TOKENS.c.id == token).values(served=served))
            job = self._job(connection, number)
            begun = {"job": number, "number": job.attempt, "boot": boot, "started": job.started, "message": ""}
            connection.execute(sa.insert(ATTEMPTS).values(begun))
            return job

    def running(self) -> list[Job]:
        """All running jobs."""
        with self.database.reads() as connection:
            asked = sa.select(*LISTED).where(THERE, JOBS.c.state == "running").order_by(JOBS.c.id)
            return [Job(*row) for row in connection.execute(asked)]

    def settle(
        self, number: int, attempt: int, outcome: Outcome | None, boot: str = "", n_bytes: int = 0, place: int = 0
    ) -> Job:
        """Step a running job on, as its attempt has ended.

        Args:
            outcome: None if it left no word.
            boot: of now.
            place: how far it has come (``panning.service.events.reached``).

        Raises:
            StepError: if that attempt is not running.
        """
        with self.database.writes() as connection:
            row = connection.execute(sa.select(JOBS).where(JOBS.c.id == number)).one_or_none()
            has_word, is_stuck = outcome is not None, False
            if outcome is None:
                outcome, is_stuck = without_word(connection, number, attempt, boot, place)
            how = outcome.state if has_word or is_stuck else "interrupted"
            values = {} if row is None else following(row, outcome, how, is_stuck)
            ended = None if values.get("state") == "queued" else self._now()
            values |= {"n_bytes": n_bytes, "ended": ended, "cancel_asked": False}
            stepped = self._step(connection, number, ("running",), values, JOBS.c.attempt == attempt)
            self._must(stepped, connection, number, f"end attempt {attempt} of")
            said = {"ended": self._now(), "how": how, "message": outcome.message, "place": place}
            of_attempt = (ATTEMPTS.c.job == number, ATTEMPTS.c.number == attempt)
            connection.execute(sa.update(ATTEMPTS).where(*of_attempt).values(said))
            return self._job(connection, number)

    def doomed(self) -> list[int]:
        """Jobs that were deleted and whose files may still be there."""
        with self.database.reads() as connection:
            return list(connection.execute(sa.select(JOBS.c.id).where(JOBS.c.deleted.is_(True))).scalars())

    def forget(self, number: int) -> None:
        """Drop a deleted job from the table, once its files are gone."""
        with self.database.writes() as connection:
            connection.execute(sa.delete(ATTEMPTS).where(ATTEMPTS.c.job == number))
            connection.execute(sa.delete(JOBS).where(JOBS.c.id == number, JOBS.c.deleted.is_(True)))

    # --- parts ---

    def _step(
        self, connection: Connection, number: int, old: tuple[State, ...], values: dict[str, Any], *more: Any
    ) -> bool:
        step = sa.update(JOBS).where(JOBS.c.id == number, THERE, JOBS.c.state.in_(old), *more).values(values)
        return connection.execute(step).rowcount == 1

    def _must(self, stepped: bool, connection: Connection, number: int, what: str) -> None:
        if not stepped:
            job = self._job(connection, number)
            more = f" in its attempt {job.attempt}" if job.attempt else ""
            pinned = " and pinned" if job.pinned else ""
            gone = f" {job.gone} Send its config again." if what == "retry" and job.gone else ""
            raise StepError(f"Cannot {what} job {number}: it is {job.state}{pinned}{more}.{gone}")

    def _job(self, connection: Connection, number: int) -> Job:
        row = connection.execute(sa.select(*LISTED).where(JOBS.c.id == number, THERE)).one_or_none()
        if row is None:
            raise _no(number)
        return Job(*row)

    def _config(self, connection: Connection, number: int) -> dict[str, Any]:
        text = connection.execute(sa.select(JOBS.c.config).where(JOBS.c.id == number, THERE)).scalar_one_or_none()
        if text is None:
            raise _no(number)
        found: dict[str, Any] = json.loads(text)
        return found

    def _known(self, connection: Connection, token: int, key: str, digest: str) -> Job | None:
        row = connection.execute(sa.select(KEYS).where(KEYS.c.token == token, KEYS.c.key == key)).one_or_none()
        if row is None:
            return None
        if row.digest != digest:
            raise KeyConflictError(f"This idempotency key stands for another config, that of job {row.job}.")
        return self._job(connection, row.job)

    def _check_quota(self, connection: Connection, token: int, already: int = 0) -> None:
        quota = connection.execute(sa.select(TOKENS).where(TOKENS.c.id == token)).one()
        queued = _of(sa.select(sa.func.count()), token).where(JOBS.c.state == "queued")
        if (n := connection.execute(queued).scalar_one()) - already >= quota.max_queued:
            raise QuotaError(
                f"{n - already} jobs of this token are queued, and {quota.max_queued} may be: wait for some."
            )
        if (n := stored(connection, token)) >= quota.max_stored_bytes:
            raise QuotaError(
                f"The jobs and uploads of this token take {n:,} bytes, and {quota.max_stored_bytes:,} are allowed: delete "
                "some."
            )


def _of(asked: sa.Select[Any], token: int | None) -> sa.Select[Any]:
    asked = asked.where(THERE)
    return asked if token is None else asked.where(JOBS.c.token == token)


def _no(number: int) -> NoJobError:
    return NoJobError(f"There is no job {number}.")
