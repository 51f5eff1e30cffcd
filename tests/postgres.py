"""A cluster of Postgres for tests: it listens on a socket in a folder of its own, and no port is taken.

with Cluster() as cluster:
    url = cluster.new()
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

#: Postgres refuses to run as root; then it is one of these.
USERS = ("postgres", "nobody")
PROGRAMS = ("initdb", "postgres", "createdb", "dropdb", "pg_dump", "pg_restore")
#: What is lost in a power cut is no test's concern.
FAST = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "listen_addresses=", "max_wal_senders=0")


def missing() -> str:
    """What is missing for a cluster, in a sentence; empty if nothing is."""
    if find_spec("psycopg") is None:
        return "Tests on Postgres need psycopg, which is not installed: pip install 'panning[postgres]'."
    if lacking := [name for name in PROGRAMS if _program(name) is None]:
        return f"Tests on Postgres need its programs {', '.join(lacking)}, which are not on the PATH."
    return ""


def _program(name: str) -> str | None:
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def _somebody() -> dict[str, Any]:
    """Arguments for processes that must not be root's."""
    if os.geteuid() != 0:
        return {}
    known = {one.pw_name: one for one in pwd.getpwall()}
    user = next(known[name] for name in USERS if name in known)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Cluster:
    """A running cluster; its folder is short, as paths of sockets must be, and open to the user that Postgres runs as."""

    def __init__(self, options: Sequence[str] = FAST) -> None:
        self._options = options
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        given, data = _somebody(), self.folder / "data"
        if given:
            os.chown(self.folder, given["user"], given["group"])
        quiet: dict[str, Any] = {"cwd": self.folder, "stdin": subprocess.DEVNULL, **given}
        made = [
            _program("initdb"),
            "-D",
            data,
            "-A",
            "trust",
            "-U",
            "panning",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]
        subprocess.run(made, check=True, capture_output=True, **quiet)
        options = [part for one in self._options for part in ("-c", one)]
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", data, "-k", self.folder, *options], stdout=log, stderr=log, **quiet
            )
        while True:
            with contextlib.suppress(Exception), self.connected("postgres"):
                return self
            assert self._process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once: what it has is thrown away
        self._process.wait(60)
        shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def connected(self, name: str) -> Iterator[Any]:
        """A connection to one of its databases, each of whose statements counts at once."""
        import psycopg

        with psycopg.connect(dbname=name, host=str(self.folder), user="panning", autocommit=True) as connection:
            yield connection

    def run(self, statement: str, name: str = "postgres") -> list[Any]:
        """What a statement gives."""
        with self.connected(name) as connection:
            cursor = connection.execute(statement)
            return list(cursor) if cursor.description else []

    def new(self, more: str = "") -> str:
        """The URL of a new database."""
        name = f"service_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} {more}")
        return f"postgresql://panning@/{name}?host={self.folder}"

    def call(self, *command: str | Path) -> None:
        """Run one of Postgres's programs as the cluster's owner, on its socket."""
        name, *arguments = command
        known = {**os.environ, "PGHOST": str(self.folder), "PGUSER": "panning"}
        subprocess.run([str(_program(str(name))), *arguments], check=True, cwd=self.folder, env=known)

    def cut(self, url: str) -> int:
        """End all connections to a database; how many there were."""
        return len(self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name_in(url)}'"))


def name_in(url: str) -> str:
    """The database of such a URL."""
    return url.partition("?")[0].rpartition("/")[2]
