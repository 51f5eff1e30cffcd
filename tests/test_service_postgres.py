"""Postgres below the service: one server at a time, connections that break, the folder that belongs to a database, and a
password that stands nowhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from postgres import PROGRAMS, Cluster, name_in
from served import LONG, Served
from test_extras import BLOCK
from test_service_retention import code

from panning.foundation.errors import ConfigError, OutputError
from panning.service import postgres as module
from panning.service import serve
from panning.service.api.sessions import Sessions
from panning.service.backup import back_up
from panning.service.home import open_database
from panning.service.scheduler import Scheduler, Setup
from panning.service.store import Store
from panning.service.words import BusyError

CONFIG = {"kind": "prune", "density": 0.1}
SECRET = "hunter2"
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is held is not waited for."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)


@pytest.fixture
def store(postgres: Cluster) -> Iterator[Store]:
    made = Store.at(postgres.new())
    yield made
    made.close()


def url_of(store: Store, postgres: Cluster) -> str:
    """The URL of an open store."""
    (name,) = re.findall(r"database (\w+) at", store.database.name)
    return f"postgresql://panning@/{name}?host={postgres.folder}"


def ended(postgres: Cluster, url: str) -> None:
    """End all connections, and wait until they are gone."""
    postgres.cut(url)
    while postgres.run(f"SELECT 1 FROM pg_stat_activity WHERE datname = '{name_in(url)}'"):
        pass


# --- dump and restore ---


def test_the_commands_of_the_guide_dump_and_restore_a_database(store: Store, postgres: Cluster, tmp_path: Path) -> None:
    url, token = url_of(store, postgres), store.tokens.add("Ada", "submit")[0]
    name, tokens = name_in(url), store.tokens.all()
    session = Sessions(store.tokens).begin(token)
    kept = store.submit(token.id, CONFIG).job
    store.close()
    ended(postgres, url)
    told = re.findall(rf"^runuser -u \w+ -- ((?:{'|'.join(PROGRAMS)}) .*)$", (DOCS / "deploy.md").read_text(), re.M)
    dump = str(tmp_path / "monday.dump")
    places = {"/var/backups/panning/monday.dump": dump, "postgresql:///panning": url, "panning": name}
    for command in told:
        postgres.call(*(places.get(part, part) for part in shlex.split(command.replace("--owner panning ", ""))))
    assert [command.split()[0] for command in told] == ["pg_dump", "dropdb", "createdb", "pg_restore"]
    restored = Store.at(url)
    assert restored.job(kept.id) == kept and restored.tokens.all() == tokens
    assert Sessions(restored.tokens).of(session) is None
    assert restored.submit(token.id, CONFIG).job.id == kept.id + 1
    restored.close()


# --- one server at a time ---


def test_a_second_server_is_refused_until_the_first_has_ended(
    store: Store, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(store, postgres)
    with pytest.raises(OutputError, match="^Another server uses the Postgres database service_"):
        Store.at(url)
    store.tokens.add("Ada", "read")
    Store.at(postgres.new()).close()
    store.close()
    monkeypatch.setattr(module, "PATIENCE_S", 30.0)  # the connection may end a moment later
    again = Store.at(url)
    assert [token.name for token in again.tokens.all()] == ["Ada"]
    again.close()


def test_connections_that_break_are_made_again_and_the_lock_with_them(store: Store, postgres: Cluster) -> None:
    url, token = url_of(store, postgres), store.tokens.add("Ada", "submit")[0]
    store.counts()
    ended(postgres, url)
    assert store.submit(token.id, CONFIG).job.id == 1 and store.counts()["queued"] == 1
    with pytest.raises(OutputError, match="Another server"):
        Store.at(url)


def test_a_server_that_has_lost_the_lock_to_another_writes_nothing(store: Store, postgres: Cluster) -> None:
    url, token = url_of(store, postgres), store.tokens.add("Ada", "submit")[0]
    ended(postgres, url)
    other = Store.at(url)
    other.submit(token.id, CONFIG)
    with pytest.raises(BusyError, match="cannot be reached now: try again"):
        store.submit(token.id, CONFIG)
    assert store.counts()["queued"] == other.counts()["queued"] == 1
    other.close()
    ended(postgres, url)
    assert store.submit(token.id, CONFIG).job.id == 2


def test_who_reads_writes_nothing_and_sees_one_state(store: Store) -> None:
    token = store.tokens.add("Ada", "submit")[0]
    with pytest.raises(sa.exc.InternalError, match="read-only"), store.database.reads() as connection:
        connection.execute(sa.text("DELETE FROM tokens"))
    with store.database.reads() as connection:
        n = sa.text("SELECT count(*) FROM jobs")
        assert connection.execute(n).scalar() == 0
        store.submit(token.id, CONFIG)
        assert connection.execute(n).scalar() == 0
    assert store.counts()["queued"] == 1


def test_a_scheduler_goes_on_when_the_database_is_there_again(store: Store, postgres: Cluster, tmp_path: Path) -> None:
    url, token = url_of(store, postgres), store.tokens.add("Ada", "submit")[0]
    scheduler = Scheduler(store, Setup(tmp_path / "jobs", slots=1))
    looked: list[str] = []

    class Looks(threading.Event):
        """Ends at the third look; between the first two the database is away."""

        def wait(self, timeout: float | None = None) -> bool:
            looked.append(scheduler.trouble.text)
            if len(looked) == 1:
                postgres.run(f"ALTER DATABASE {name_in(url)} WITH ALLOW_CONNECTIONS false")
                ended(postgres, url)
            elif len(looked) == 2:
                postgres.run(f"ALTER DATABASE {name_in(url)} WITH ALLOW_CONNECTIONS true")
            else:
                self.set()
            return self.is_set()

    scheduler.run(Looks())
    assert looked == ["", "The database of the service cannot be reached now: try again in a moment.", ""]
    assert store.submit(token.id, CONFIG).job.id == 1
    scheduler.close(0)


# --- the whole service ---


def test_a_service_on_postgres_runs_jobs_and_goes_on_after_a_restart(postgres: Cluster, tmp_path: Path) -> None:
    url = postgres.new()
    served = Served(tmp_path / "root", database=url)
    try:
        token = served.token()
        number = served.submit(token)
        assert served.until_ended(token, number)["state"] == "succeeded"
        running = served.submit(token, **LONG)
        told = served.events(token, running)
        while next(told)[1] != 3:
            pass
        postgres.run(f"ALTER DATABASE {name_in(url)} WITH ALLOW_CONNECTIONS false")
        ended(postgres, url)
        answer = served.ask("GET", "/api/v1/jobs", token)
        assert (answer.status, answer.problem, answer.headers["Retry-After"]) == (503, "busy", "1")
        assert served.ask("GET", "/readyz").status == 503 and served.ask("GET", "/healthz").status == 200
        postgres.run(f"ALTER DATABASE {name_in(url)} WITH ALLOW_CONNECTIONS true")
        assert next(told)[0] == "message" and served.ask("GET", "/api/v1/jobs", token).status == 200
        told.close()
    finally:
        postgres.run(f"ALTER DATABASE {name_in(url)} WITH ALLOW_CONNECTIONS true")
        served.close()
    assert not (tmp_path / "root" / "service.sqlite").exists()
    again = Served(tmp_path / "root", database=url)
    try:
        assert again.admin == "" and again.ask("GET", f"/api/v1/jobs/{number}", token).json["state"] == "succeeded"
        while again.ask("GET", f"/api/v1/jobs/{running}", token).json["attempt"] == 1:
            pass
        again.ask("POST", f"/api/v1/jobs/{running}/cancel", token)
        assert again.until_ended(token, running)["state"] == "cancelled"
    finally:
        again.close()


def test_a_folder_and_a_database_belong_together(postgres: Cluster, tmp_path: Path) -> None:
    url, other, root = postgres.new(), postgres.new(), tmp_path / "root"
    root.mkdir()
    open_database(root, url).close()
    with pytest.raises(
        OutputError, match=rf"belong to the Postgres database {name_in(url)} at .*: name it by --database"
    ):
        open_database(root, None)
    with pytest.raises(OutputError, match=rf"belong to .*{name_in(url)}.*, and not to .*{name_in(other)} at"):
        open_database(root, other)
    with pytest.raises(OutputError, match="end the service, and take the database by pg_dump and the folder"):
        back_up(root, tmp_path / "copy")
    on_sqlite = tmp_path / "other"
    open_database(on_sqlite, None).close()
    with pytest.raises(OutputError, match="start without --database"):
        open_database(on_sqlite, other)
    assert [path.name for path in on_sqlite.iterdir() if path.suffix == ".txt"] == []
    with pytest.raises(OutputError):
        open_database(tmp_path, "postgresql://nobody/nothing")
    assert not (tmp_path / "database.txt").exists(), "a folder belongs to a database that was opened once"


# --- what is refused ---


def test_a_database_that_cannot_be_used_is_refused_in_a_sentence(postgres: Cluster) -> None:
    latin, url = postgres.new("ENCODING 'LATIN1' TEMPLATE template0"), postgres.new()
    with pytest.raises(OutputError, match="stores LATIN1: make one by `createdb -E UTF8 -T template0`"):
        Store.at(latin)
    with pytest.raises(OutputError, match=r'cannot be used: .*database "service_none" does not exist$'):
        Store.at(url.replace(name_in(url), "service_none"))
    with postgres.connected(name_in(url)) as connection:
        connection.execute("CREATE TABLE jobs (id integer)")
    with pytest.raises(OutputError, match='cannot be used: relation "jobs" already exists'):
        Store.at(url)
    Store.at(newer := postgres.new()).close()
    postgres.run("UPDATE alembic_version SET version_num = '99'", name_in(newer))
    ended(postgres, newer)
    with pytest.raises(OutputError, match="is of a newer version of panning"):
        Store.at(newer)


def test_what_is_acknowledged_is_on_the_disk_whatever_the_database_says(postgres: Cluster) -> None:
    for given, expected in (("off", "on"), ("remote_apply", "remote_apply")):
        url = postgres.new()
        postgres.run(f"ALTER DATABASE {name_in(url)} SET synchronous_commit = {given}")
        store = Store.at(url)
        with store.database.writes() as connection:
            assert connection.execute(sa.text("SHOW synchronous_commit")).scalar() == expected
        store.close()


@pytest.mark.parametrize(
    "url",
    [f"mysql://ada:{SECRET}@lab/panning", f"postgresql://ada:{SECRET}@lab", f"postgresql://ada:x@{SECRET}:{SECRET}/panning",
     SECRET, f"postgresql://ada:{SECRET}/"],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="is written as postgresql://USER@HOST/NAME") as caught:
        Store.at(url)
    assert SECRET not in str(caught.value)


# --- the password ---


def test_the_password_stands_in_no_message_and_no_log(
    postgres: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Postgres refuses a password only where it asks for one, which the clusters of tests do not."""
    url = postgres.new().replace("panning@", f"panning:{SECRET}@")
    (tmp_path / "root").mkdir()
    database = open_database(tmp_path / "root", url)
    options = serve.Options(tmp_path, database=url)
    said = [database.name, repr(options), (tmp_path / "root" / "database.txt").read_text()]
    ended(postgres, url)
    other = Store.at(url)
    with pytest.raises(BusyError) as busy, database.writes():
        pass
    other.close()
    database.close()
    for bad in (url.replace(name_in(url), "service_none"), f"postgresql://ada:{SECRET}@127.0.0.1:1/panning"):
        with pytest.raises(OutputError) as refused:
            Store.at(bad)
        said.append(str(refused.value))
    said += [str(busy.value), *(str(vars(record)) for record in caplog.records)]
    assert "Another server uses" in str(said) and SECRET not in str(said)


def test_the_variable_names_the_database_and_no_process_of_a_job_inherits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[serve.Options] = []

    class Nothing:
        url = "http://127.0.0.1:1"

        def __init__(self, options: serve.Options) -> None:
            given.append(options)

        def new_token(self, force: bool = False) -> Any:
            return None

        def run(self) -> None:
            assert "PANNING_DATABASE" not in os.environ

    monkeypatch.setattr(serve, "Running", Nothing)
    monkeypatch.setattr("panning.service.log.log_to", lambda: None)
    monkeypatch.setenv("PANNING_DATABASE", "postgresql:///of_the_variable")
    assert code("serve", "--root", str(tmp_path)) == 0
    assert code("serve", "--root", str(tmp_path), "--database", "postgresql:///of_the_option") == 0
    assert code("serve", "--root", str(tmp_path)) == 0
    assert [one.database and one.database.rpartition("/")[2] for one in given] == [
        "of_the_variable",
        "of_the_option",
        None,
    ]


def test_without_psycopg_a_sentence_names_the_extra() -> None:
    block = BLOCK.replace(re.findall(r"name in (\[.*?\]) else", BLOCK)[0], "['psycopg']")
    program = block + "from panning.service.store import Store\ntry:\n    Store.at('postgresql:///panning')\n"
    program += "except Exception as error:\n    print(type(error).__name__, error)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = "This needs psycopg, which is not installed: pip install 'panning[postgres]'."
    assert found.stdout == f"MissingExtraError {expected}\n", found.stderr


def test_the_log_says_which_database_it_is(postgres: Cluster, tmp_path: Path) -> None:
    """The server's own process, as the command starts it."""
    environment = {**os.environ, "PANNING_DATABASE": postgres.new().replace("panning@", f"panning:{SECRET}@")}
    command = [sys.executable, "-m", "panning", "serve", "--root", str(tmp_path / "root"), "--port", "0"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stderr is not None
    first = json.loads(server.stderr.readline())
    urllib.request.urlopen(f"{first['url']}/healthz", timeout=120).close()  # it listens to signals by now
    server.terminate()
    out, rest = server.communicate(timeout=120)
    assert first["event"] == "serving" and first["database"].startswith("Postgres database service_")
    assert server.returncode == 0 and "PANNING_TOKEN=pan_" in out and SECRET not in out + rest + json.dumps(first)
