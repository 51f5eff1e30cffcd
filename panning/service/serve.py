"""The server: one process with the API, the scheduler in a thread of it, and the check process beside it."""

from __future__ import annotations

import logging
import resource
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from panning.foundation.errors import OutputError
from panning.service.api.access import Access
from panning.service.api.app import make_app
from panning.service.api.deadline import TimedProtocol
from panning.service.api.guard import authorities
from panning.service.api.service import Service
from panning.service.checks import CHECKER, Checks
from panning.service.folder import Caps, JobFolder
from panning.service.home import open_database
from panning.service.retention import Rules
from panning.service.scheduler import RUNNER, Scheduler, Setup
from panning.service.store import Store
from panning.service.streams import Streams
from panning.service.uploads import Uploads
from panning.service.words import Job, Quota, Token

LOG = logging.getLogger("panning.service")
#: Requests that are at work get so long when the server ends; streams end at once.
GRACE_S = 5
#: The token that a service without tokens makes may have this much.
FIRST = Quota(running=100, queued=1_000, stored_bytes=1 << 40)


@dataclass(frozen=True)
class Options:
    """How a service is to be.

    Attributes:
        root: holds the folders of jobs, and the database, unless that is one of Postgres.
        host, port: where it listens; port 0 is any free one.
        names: further names that requests may call it by, as that of a proxy.
        slots: so many jobs run at a time.
        workers: Ray workers of each job; 0 runs without Ray.
        data_root: the folder of data sets.
        caps: of each job.
        upload_bytes: of one upload.
        data_sets: further data sets by name, as ``npz:FILE``.
        rules: when files of jobs that have ended go.
        https: callers reach it over https alone, through a proxy.
        database: the URL of a Postgres database, which may have a password.
        runner, checker: the commands of their processes.
    """

    root: Path
    host: str = "127.0.0.1"
    port: int = 8750
    names: Sequence[str] = ()
    slots: int = 1
    workers: int = 0
    data_root: str | None = None
    caps: Caps = Caps()
    upload_bytes: int = 1 << 30
    data_sets: Mapping[str, str] = field(default_factory=dict)
    rules: Rules = Rules()
    https: bool = False
    database: str | None = field(default=None, repr=False)
    runner: tuple[str, ...] = RUNNER
    checker: tuple[str, ...] = CHECKER


class _Server(uvicorn.Server):
    """uvicorn's, which ends the streams before it waits for the requests that are at work."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.streams.close()
        self._service.checks.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal once more in the end: jobs could not be asked to end any more."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Running:
    """A service that listens; ``run`` answers requests until SIGTERM, Ctrl-C or ``stop``.

    Raises:
        OutputError: if the address is taken, or another server runs the jobs of this folder.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        options.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket = _listen(options.host, options.port)
        self.port: int = self.socket.getsockname()[1]
        try:
            self.service = _service(options)
        except BaseException:
            self.socket.close()
            raise
        hosts = authorities(self.port, [self.url.removeprefix("http://"), *options.names])
        config = uvicorn.Config(
            make_app(self.service, hosts), http=TimedProtocol, ws="none", lifespan="off", log_config=None,
            access_log=False, proxy_headers=False, server_header=False, timeout_graceful_shutdown=GRACE_S,
        )  # fmt: skip
        self.server = _Server(config, self.service)
        self._over = threading.Event()
        self._failure: Exception | None = None

    @property
    def url(self) -> str:
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"http://{host}:{self.port}"

    def new_token(self, force: bool = False) -> tuple[Token, str] | None:
        """A token with the scope admin, with its secret, if the service has none; or ``force`` makes one more."""
        if force or not self.service.store.tokens.all():
            return self.service.store.tokens.add("admin", "admin", FIRST)
        return None

    def run(self, seconds: float = 30.0) -> None:
        """Answer requests; in the end running jobs are asked to end, and are queued again.

        Args:
            seconds: jobs may take to end; then they go on alone, and the next server finds them.

        Raises:
            Exception: whatever the scheduler failed by.
        """
        _let_many_connect()
        scheduling = threading.Thread(target=self._schedule, name="scheduler")
        try:  # from here on: a signal may come before the server listens to signals
            scheduling.start()
            threading.Thread(target=self._warm, name="checks", daemon=True).start()
            facts = {"url": self.url, "root": str(self.options.root), "database": self.service.store.database.name}
            LOG.info("serving", extra={"facts": facts})
            self.server.run(sockets=[self.socket])
        finally:
            self._over.set()
            self.service.wake.set()
            if scheduling.is_alive():
                scheduling.join()
            self.service.checks.close()
            self.service.scheduler.close(seconds)
            self.service.store.close()
            LOG.info("ended")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let ``run`` come to its end; from any thread."""
        self.server.should_exit = True

    def _schedule(self) -> None:
        self.service.is_scheduling = True
        try:
            self.service.scheduler.run(self._over, self.service.wake)
        except Exception as failure:  # nobody would look after the jobs: whoever started the server sees it end
            self._failure = failure
            self.stop()
        finally:
            self.service.is_scheduling = False

    def _warm(self) -> None:
        try:
            self.service.checks.start()
        except Exception as error:  # the next request tries again, and says what is wrong
            LOG.warning("checks", extra={"facts": {"error": str(error)}})


def _service(options: Options) -> Service:
    store = Store(open_database(options.root, options.database))
    setup = Setup(
        options.root / "jobs", options.slots, options.workers, options.data_root, options.caps, runner=options.runner,
        uploads=options.root / "uploads", data_sets=options.data_sets, rules=options.rules,
    )  # fmt: skip
    streams = Streams(store, lambda number: JobFolder(setup.root / str(number)))

    def tell(job: Job) -> None:
        facts = {"job": job.id, "state": job.state, "code": job.code, "attempt": job.attempt}
        LOG.info("job", extra={"facts": {name: value for name, value in facts.items() if value is not None}})
        streams.told(job)

    try:
        scheduler = Scheduler(store, setup, tell)
        uploads = Uploads(store.database, setup.uploads)
        uploads.tidy()
    except BaseException:
        store.close()
        raise
    checks = Checks(options.data_root, options.data_sets, command=options.checker)
    return Service(
        store, scheduler, checks, streams, Access(store.tokens, secure=options.https), uploads, options.upload_bytes
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise OutputError(f"{host}:{port} cannot be listened at: {error.strerror}. Take another --port.") from None
    return listening


def _let_many_connect() -> None:
    """Each connection is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
