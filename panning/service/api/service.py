"""What the routes work with: one object for a server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request

from panning.service.api.access import Access
from panning.service.api.metrics import Metrics
from panning.service.artefacts import Artefacts
from panning.service.checks import Checks
from panning.service.scheduler import Scheduler
from panning.service.store import Store
from panning.service.streams import Streams
from panning.service.uploads import Uploads, check_uploads
from panning.service.words import Job, NoJobError, NoUploadError, Token


@dataclass
class Service:
    """The parts of a running service.

    Attributes:
        wake: set when the scheduler has something to do.
        most_upload_bytes: of one upload.
        listening: how many streams each owner of tokens has open; of the server's event loop.
        is_scheduling: whether jobs are looked after.
    """

    store: Store
    scheduler: Scheduler
    checks: Checks
    streams: Streams
    access: Access
    uploads: Uploads
    most_upload_bytes: int
    wake: threading.Event = field(default_factory=threading.Event)
    artefacts: Artefacts = field(default_factory=Artefacts)
    listening: Counter[int] = field(default_factory=Counter)
    is_scheduling: bool = False

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.store.counts, lambda: self.streams.n_listeners)

    def job(self, number: int, token: Token) -> Job:
        """A job that a token may see.

        Raises:
            NoJobError: if there is none; a job of somebody else is none, too.
        """
        job = self.store.job(number)
        if whose(token) not in (None, job.token):
            raise NoJobError(f"There is no job {number}.")
        return job

    def upload(self, sha256: str, token: Token) -> Path:
        """Where an upload lies that a token may see: its own, or, of several with this content, any.

        Raises:
            NoUploadError: if there is none; one of somebody else is none, too.
        """
        there = [one.token for one in self.uploads.all(whose(token)) if one.sha256 == sha256]
        if not there:
            raise NoUploadError(f"There is no upload {sha256}.")
        return self.uploads.path(token.owner if token.owner in there else there[0], sha256)

    def files(self, owner: int, config: Mapping[str, Any]) -> dict[str, str]:
        """The files of the uploads that a config names, by their hashes.

        Raises:
            ConfigError: if one is not there, or is of another kind.
        """
        with self.store.database.reads() as connection:
            check_uploads(connection, owner, config)
        return self.scheduler.setup.files(owner, config)

    def seen(self, job: Job) -> Job:
        """Tell of a job that a request has changed."""
        self.streams.told(job)
        return job

    def told(self, job: Job) -> Job:
        """Tell of a job that was stepped on by a request, and have the scheduler look at it."""
        self.wake.set()
        return self.seen(job)


def whose(token: Token) -> int | None:
    """The token whose jobs alone a token may see; None if it may see all."""
    return None if token.may("admin") else token.owner


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    found: Service = request.app.state.service
    return found
