"""What the service says of jobs and tokens: states, codes of failures, and the errors of its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from panning.foundation.errors import PanningError
from panning.foundation.text import in_bytes

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
#: States that a job leaves only by ``retry``.
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")
STATES: tuple[State, ...] = ("queued", "running", *ENDED)
#: Code -> why a job failed, in words.
CODES: Mapping[str, str] = {
    "config": "its config asks for what cannot be",
    "memory": "it took more memory than it may",
    "time": "it took longer than it may",
    "quota": "it took or would cost more than it may",
    "crashed": "its process ended three times without a word, or could not come any further",
    "error": "it raised an error",
}
#: What is left of a job's files: all, its results (masks, policies, tables, pictures and records), or nothing.
Kept = Literal["all", "results", "nothing"]
#: So many crashes fail a job.
MAX_CRASHES = 3
#: What an upload is, which says how it is checked and where a config may name it.
UploadKind = Literal["network", "data", "masks", "weights", "policy"]
Scope = Literal["metrics", "read", "submit", "admin"]
#: Scope -> the scopes that it includes.
SCOPES: Mapping[Scope, tuple[Scope, ...]] = {
    "metrics": ("metrics",),
    "read": ("read",),
    "submit": ("read", "submit"),
    "admin": ("metrics", "read", "submit", "admin"),
}


class NoJobError(PanningError):
    """A job that is not in the table, or was deleted."""


class StepError(PanningError):
    """A step that a job cannot take from the state that it is in."""


class KeyConflictError(PanningError):
    """An idempotency key that stands for another request already."""


class QuotaError(PanningError):
    """A submission beyond what its token may have."""


class BusyError(PanningError):
    """The service has too much to do to look at this now."""


class NoUploadError(PanningError):
    """An upload that is not in the table."""


class UploadError(PanningError):
    """A file that is not what it is said to be."""


class HashError(PanningError):
    """A file whose content is not that of its name."""


class OtherKindError(PanningError):
    """A file that is there already, as one of another kind."""


class InUseError(PanningError):
    """A step that an upload cannot take while a job needs it."""


@dataclass(frozen=True)
class Job:
    """A job as the table has it.

    Attributes:
        token: whose it is.
        kind: of its config.
        code: of a failure, a key of ``CODES``.
        message: more on how it ended, in a sentence.
        attempt: the number of the last; 0 before the first.
        cancel_asked: somebody wants it to end, and it has not yet.
        pinned: it is not deleted, and keeps its files.
        n_bytes: of its folder, when its last attempt ended, or files of it went.
        submitted, started, ended: in UTC; the last attempt began and the job ended then.
        kept: what is left of its files by the service's rules of retention.
        freed_bytes: that went by them.
        reduced: when files went last, in UTC.
    """

    id: int
    token: int
    kind: str
    state: State
    code: str | None
    message: str
    attempt: int
    cancel_asked: bool
    pinned: bool
    n_bytes: int
    submitted: datetime
    started: datetime | None
    ended: datetime | None
    kept: Kept
    freed_bytes: int
    reduced: datetime | None

    @property
    def gone(self) -> str:
        """What went of its files, in a sentence; empty if nothing did."""
        if self.kept == "all":
            return ""
        what = "All its files" if self.kept == "nothing" else "Its weights, checkpoints and logs"
        return f"{what} were removed by the service's rules, which freed {in_bytes(self.freed_bytes)}."


@dataclass(frozen=True)
class Upload:
    """A file that somebody sent.

    Attributes:
        token: whose it is.
        sha256: of its content; configs name it by ``upload:`` and this.
        name: what its owner calls it; may be empty.
        made: when it came, in UTC.
        facts: what the check has found, by its kind: counts, a density, the shape of an input.
    """

    token: int
    sha256: str
    kind: UploadKind
    name: str
    n_bytes: int
    made: datetime
    facts: dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One run of a job's process tree.

    Attributes:
        number: from 1.
        how: succeeded, failed, stopped, crashed, or interrupted where all its processes were killed; None while it lasts.
    """

    number: int
    started: datetime
    ended: datetime | None
    how: str | None
    message: str


@dataclass(frozen=True)
class Quota:
    """What the jobs of one token may take together."""

    running: int = 1
    queued: int = 100
    stored_bytes: int = 10 << 30


@dataclass(frozen=True)
class Token:
    """Who may ask for what; the secret itself is kept nowhere.

    Attributes:
        owner: the token whose jobs it sees and whose quota it has: itself, unless it was made for another one.
        scope: what it may; ``admin`` sees the jobs of all.
        expires, revoked: since when it is no good.
    """

    id: int
    owner: int
    name: str
    scope: Scope
    quota: Quota
    made: datetime
    expires: datetime | None
    revoked: datetime | None

    def may(self, scope: Scope) -> bool:
        """Whether it includes a scope."""
        return scope in SCOPES[self.scope]
