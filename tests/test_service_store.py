"""The service's table of jobs, on SQLite and on Postgres: its steps against a model, keys, quotas, the fair order, tokens,
times, schemas."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from panning.foundation.errors import ConfigError, OutputError
from panning.service.database import JOBS, migrate
from panning.service.folder import Outcome
from panning.service.store import Store
from panning.service.words import (
    ENDED,
    MAX_CRASHES,
    STATES,
    KeyConflictError,
    NoJobError,
    Quota,
    QuotaError,
    StepError,
)

GOLDEN = Path(__file__).parent / "golden"
CONFIG = {"kind": "prune", "density": 0.1}
MANY = Quota(running=100, queued=1000)


#: Gives new databases, of one backend after the other (``conftest.py``).
Places = Callable[[], Path | str]


@pytest.fixture
def store(places: Places) -> Iterator[Store]:
    made = Store.at(places())
    yield made
    made.close()


def add(store: Store, name: str = "Ada", quota: Quota = MANY) -> int:
    return store.tokens.add(name, "submit", quota)[0].id


# --- steps, against a model ---


class Jobs(RuleBasedStateMachine):
    """Any order of calls leaves the table as a few lines of Python say."""

    def __init__(self, place: Path | str) -> None:
        super().__init__()
        self.store = Store.at(place)
        self.tokens = [add(self.store, name) for name in "ab"]
        self.model: dict[int, dict[str, Any]] = {}
        self.keys: dict[tuple[int, str], tuple[float, int]] = {}

    def teardown(self) -> None:
        self.store.close()

    def pick(self, data: st.DataObject, *states: str) -> tuple[int, dict[str, Any]] | None:
        there = [number for number, job in self.model.items() if not states or job["state"] in states]
        number = data.draw(st.sampled_from(there)) if there else None
        return None if number is None else (number, self.model[number])

    @rule(which=st.sampled_from([0, 1]), key=st.sampled_from([None, "k", "l"]), density=st.sampled_from([0.1, 0.2]))
    def submit(self, which: int, key: str | None, density: float) -> None:
        token, config = self.tokens[which], {**CONFIG, "density": density}
        known = self.keys.get((token, str(key))) if key else None
        if known is not None and known[0] != density:
            with pytest.raises(KeyConflictError, match=f"job {known[1]}"):
                self.store.submit(token, config, key)
            return
        answer = self.store.submit(token, config, key)
        assert answer.is_new == (known is None)
        if known is not None:
            assert answer.job.id == known[1]
            return
        assert answer.job.id not in self.model and self.store.config(answer.job.id) == config
        self.model[answer.job.id] = {
            "token": token, "state": "queued", "code": None, "crashes": 0, "attempt": 0, "asked": False, "pinned": False,
            "killed": [],
        }  # fmt: skip
        if key:
            self.keys[token, key] = density, answer.job.id

    @rule()
    def start(self) -> None:
        queued = [number for number, job in self.model.items() if job["state"] == "queued"]
        job = self.store.start_next("boot")
        assert (job is None) == (not queued)
        if job is not None:
            mine = self.model[job.id]
            running = {token: self.n(token, "running") for token in self.tokens}
            waiting = {token for token in self.tokens if self.n(token, "queued")}
            assert running[mine["token"]] == min(running[token] for token in waiting)
            assert job.id == min(number for number in queued if self.model[number]["token"] == mine["token"])
            mine.update(state="running", attempt=mine["attempt"] + 1)

    @rule(
        data=st.data(), place=st.sampled_from([3, 4]),
        state=st.sampled_from(["succeeded", "failed", "crashed", "killed", "killed", "cancel", "shutdown", "time"]),
    )  # fmt: skip
    def settle(self, data: st.DataObject, state: str, place: int) -> None:
        if (found := self.pick(data)) is None:
            return
        number, job = found
        is_stop = state in ("cancel", "shutdown", "time")
        outcome = Outcome("stopped" if is_stop else state, reason=state, code="memory")  # type: ignore[arg-type]
        given = None if state == "killed" else outcome
        if job["state"] != "running":
            with pytest.raises(StepError, match=f"it is {job['state']}"):
                self.store.settle(number, job["attempt"], given, "boot")
            return
        with pytest.raises(StepError):
            self.store.settle(number, job["attempt"] + 1, given, "boot")
        after = self.store.settle(number, job["attempt"], given, "boot", n_bytes=7, place=place)
        crashes = job["crashes"] + (state == "crashed")
        job["killed"] = [*job["killed"], place] if state == "killed" else []
        if is_stuck := job["killed"][-MAX_CRASHES:] == [place] * MAX_CRASHES:
            job["killed"] = []  # a retry counts anew
        if state in ("succeeded", "failed"):
            expected = (state, "memory" if state == "failed" else None)
        elif state == "time":
            expected = ("failed", "time")
        elif job["asked"]:
            expected = ("cancelled", None)
        else:
            job["crashes"] = crashes
            is_over = is_stuck or (crashes == MAX_CRASHES and state == "crashed")
            expected = ("failed", "crashed") if is_over else ("queued", None)
        assert (after.state, after.code, after.n_bytes) == (*expected, 7)
        job.update(state=expected[0], code=expected[1], asked=False)

    @rule(data=st.data(), what=st.sampled_from(["cancel", "retry", "delete", "pin"]))
    def ask(self, data: st.DataObject, what: str) -> None:
        if (found := self.pick(data)) is None:
            return
        number, job = found
        allowed = {"cancel": ("queued", "running"), "retry": ("failed", "cancelled"), "delete": ENDED, "pin": STATES}
        if job["state"] not in allowed[what] or (what == "delete" and job["pinned"]):
            with pytest.raises(StepError, match=f"Cannot {what} job {number}"):
                getattr(self.store, what)(number)
            return
        getattr(self.store, what)(number)
        if what == "cancel":
            job.update({"state": "cancelled"} if job["state"] == "queued" else {"asked": True})
        elif what == "retry":
            job.update(state="queued", crashes=0, code=None, asked=False)
        elif what == "pin":
            job["pinned"] = True
        else:
            del self.model[number]
            self.keys = {key: known for key, known in self.keys.items() if known[1] != number}
            with pytest.raises(NoJobError):
                self.store.job(number)
            assert number in self.store.doomed()
            self.store.forget(number)
            assert self.store.doomed() == [] and self.store.attempts(number) == []

    def n(self, token: int, state: str) -> int:
        return sum(job["token"] == token and job["state"] == state for job in self.model.values())

    @invariant()
    def the_table_is_the_model(self) -> None:
        for token in (None, *self.tokens):
            numbers = [number for number, job in self.model.items() if token in (None, job["token"])]
            assert [job.id for job in self.store.page(token)] == sorted(numbers, reverse=True)[:50]
            states = [self.model[number]["state"] for number in numbers]
            assert self.store.counts(token) == {state: states.count(state) for state in STATES}
        for number, mine in self.model.items():
            job = self.store.job(number)
            assert (job.state, job.attempt, job.cancel_asked) == (mine["state"], mine["attempt"], mine["asked"])
            attempts = self.store.attempts(number)
            assert [attempt.number for attempt in attempts] == list(range(1, mine["attempt"] + 1))
            assert all((attempt.how is None) == (mine["state"] == "running") for attempt in attempts[-1:])


def test_any_order_of_calls_leaves_the_table_as_a_model_says(places: Places) -> None:
    few = settings(max_examples=4 if isinstance(places(), str) else 12, stateful_step_count=25)
    run_state_machine_as_test(lambda: Jobs(places()), settings=few)


# --- pages, quotas, order ---


def test_pages_go_by_key_and_by_state(store: Store) -> None:
    token = add(store)
    numbers = [store.submit(token, CONFIG).job.id for _ in range(7)]
    store.cancel(numbers[3])
    seen: list[int] = []
    before = None
    while page := store.page(n=3, before=before):
        seen += [job.id for job in page]
        before = page[-1].id
    assert seen == numbers[::-1]
    assert [job.id for job in store.page(state="cancelled")] == [numbers[3]]
    assert [job.id for job in store.page(token, "queued", before=numbers[3])] == numbers[2::-1]


def test_a_token_has_its_quotas(store: Store) -> None:
    token, other = add(store, quota=Quota(running=1, queued=2, stored_bytes=100)), add(store, "Bo")
    first, second = store.submit(token, CONFIG).job, store.submit(token, CONFIG).job
    with pytest.raises(QuotaError, match="2 jobs of this token are queued, and 2 may be"):
        store.submit(token, CONFIG)
    store.submit(other, CONFIG)
    assert store.start_next("b").id == first.id  # type: ignore[union-attr]
    assert store.start_next("b").token == other  # type: ignore[union-attr]
    assert store.start_next("b") is None, "one of a token runs at a time"
    store.settle(first.id, 1, Outcome("failed"), "b", n_bytes=100)
    with pytest.raises(QuotaError, match="take 100 bytes, and 100 are allowed: delete some"):
        store.retry(first.id)
    assert store.job(first.id).state == "failed", "a step that is refused is none"
    assert store.start_next("b").id == second.id  # type: ignore[union-attr]


def test_the_turn_goes_round_between_tokens(store: Store) -> None:
    many, few = add(store), add(store, "Bo")
    jobs = {store.submit(many, CONFIG).job.id: "many" for _ in range(4)}
    jobs |= {store.submit(few, CONFIG).job.id: "few" for _ in range(2)}
    order = []
    while (job := store.start_next("b")) is not None:
        order.append(jobs[job.id])
        store.settle(job.id, 1, Outcome("succeeded"))
    assert order == ["many", "few", "many", "few", "many", "many"]


def test_an_attempt_of_another_boot_was_interrupted_and_is_no_crash(store: Store) -> None:
    number = store.submit(add(store), CONFIG).job.id
    for attempt in range(1, 5):
        store.start_next(f"boot {attempt}")
        assert store.settle(number, attempt, None, f"boot {attempt + 1}").state == "queued"
    assert {attempt.how for attempt in store.attempts(number)} == {"interrupted"}


def test_of_several_who_ask_at_once_none_gets_more_than_it_may(store: Store) -> None:
    """Each transaction reads before it writes, and no other comes between the two."""
    token, ready = add(store, quota=Quota(running=2, queued=5)), threading.Barrier(8)
    said: list[str] = []

    def work(call: Callable[[], str]) -> None:
        ready.wait(60)
        try:
            said.append(call())
        except QuotaError:
            said.append("refused")

    def at_once(call: Callable[[], str]) -> list[str]:
        said.clear()
        threads = [threading.Thread(target=work, args=(call,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return sorted(said)

    assert at_once(lambda: str(store.submit(token, CONFIG, "key").job.id)) == ["1"] * 8
    assert at_once(lambda: str(store.submit(token, CONFIG).job.id)) == ["2", "3", "4", "5", *["refused"] * 4]
    assert at_once(lambda: str(getattr(store.start_next("b"), "id", "none"))) == ["1", "2", *["none"] * 6]
    assert store.counts() == {"queued": 3, "running": 2, "succeeded": 0, "failed": 0, "cancelled": 0}


def test_a_page_is_read_by_an_index_however_many_jobs_there_are(store: Store) -> None:
    one, other = add(store), add(store, "Bo")
    rows = [
        {"token": one if n % 3 else other, "kind": "prune", "config": "{}" * 100, "state": STATES[n % 5], "message": "",
         "attempt": 1, "crashes": 0, "cancel_asked": False, "pinned": False, "deleted": n % 9 == 0, "n_bytes": 1,
         "submitted": datetime(2026, 1, 1, tzinfo=UTC)}
        for n in range(5_000)
    ]  # fmt: skip
    with store.database.writes() as connection:
        connection.execute(sa.insert(JOBS), rows)
        connection.exec_driver_sql("ANALYZE")
    asked: list[tuple[str, Any]] = []

    def hear(_: Any, __: Any, statement: str, parameters: Any, *more: Any) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", hear)
    try:
        for token in (None, one):
            for state in (None, "failed"):
                for before in (None, 2_500):
                    assert len(store.page(token, state, before)) == 50
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", hear)
    assert len(asked) == 8
    with store.database.reads() as connection:
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        for statement, parameters in asked:
            plan = "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters))
            assert "index" in plan.lower() and not any(way in plan for way in ("Seq Scan", "Sort", "TEMP")), plan


def test_what_a_process_has_left_is_stored_whatever_it_is(store: Store) -> None:
    number = store.submit(add(store), CONFIG).job.id
    store.start_next("b")
    told = store.settle(number, 1, Outcome("failed", message="a\0b\x1b\N{SNOWMAN}" * 1_000), "b")
    assert (
        told.message.startswith("a")
        and len(told.message) == 5_000
        and store.attempts(number)[0].message == told.message
    )


def test_what_is_acknowledged_is_on_the_disk(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "service.sqlite")
    number = store.submit(add(store), CONFIG).job.id
    for pragma, value in (("journal_mode", "wal"), ("synchronous", 2)):
        with store.database.reads() as connection:
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value
    assert Store.at(tmp_path / "service.sqlite").job(number).state == "queued"
    assert (tmp_path / "service.sqlite").stat().st_mode & 0o77 == 0, "others read nothing"


# --- tokens and times ---


def test_tokens_are_kept_as_hashes_and_end(store: Store, tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    store = Store(store.database, clock=lambda: now)
    token, secret = store.tokens.add("Ada", "submit", expires=now + timedelta(days=1))
    assert store.tokens.of(secret) == token and store.tokens.of(secret[:-1]) is None
    assert [token.may(scope) for scope in ("read", "submit", "admin")] == [True, True, False]
    with store.database.reads() as connection:
        rows = str(connection.execute(sa.text("SELECT * FROM tokens")).all()).encode()
    everything = b"".join([rows, *(path.read_bytes() for path in tmp_path.iterdir())])
    assert secret.encode() not in everything and secret[4:].encode() not in everything
    now += timedelta(days=1)
    assert store.tokens.of(secret) is None, "it has expired"
    lasting, secret = store.tokens.add("Bo", "read")
    assert store.tokens.revoke(lasting.id) and not store.tokens.revoke(lasting.id)
    assert store.tokens.of(secret) is None and [one.name for one in store.tokens.all()] == ["Ada", "Bo"]
    with pytest.raises(ConfigError, match="Did you mean 'read'"):
        store.tokens.add("Cy", "raed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="printable"):
        store.tokens.add("C\x1b[2Jy", "read")


def test_a_token_that_is_made_for_another_has_its_jobs(store: Store) -> None:
    ada = add(store)
    screen = store.tokens.add("Ada's screen", "read", owner=ada)[0]
    assert screen.owner == ada and store.tokens.add("again", "submit", owner=screen.id)[0].owner == ada
    assert [one.scope for one in store.tokens.all() if one.may("metrics")] == []
    assert store.tokens.add("scraper", "metrics")[0].may("metrics")
    with pytest.raises(ConfigError, match="There is no token 99"):
        store.tokens.add("lost", "read", owner=99)


def test_times_are_utc_whatever_the_zone_and_a_time_without_one_is_refused(store: Store) -> None:
    here = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    store = Store(store.database, clock=lambda: here)
    job = store.submit(add(store), CONFIG).job
    assert job.submitted == here and job.submitted.tzinfo == UTC
    with store.database.reads() as connection:
        text = connection.execute(sa.text("SELECT submitted FROM jobs")).scalar_one()
    assert text == "2025-12-31T23:30:00.000000Z"
    with pytest.raises(sa.exc.StatementError, match="without a zone"):
        Store(store.database, clock=lambda: datetime(2026, 1, 1)).submit(1, CONFIG)


# --- schemas ---


def write_old(place: Path | str, schema: int) -> None:
    """Write a database of an older schema.

    tests/golden/service-N.sql is the dump of a database that the version with schema N wrote, on SQLite. On Postgres its
    rows stand in tables of the migrations up to N, which stay as they are.
    """
    with closing(sqlite3.connect(place if isinstance(place, Path) else ":memory:")) as old:
        old.executescript((GOLDEN / f"service-{schema}.sql").read_text())
        if isinstance(place, Path):
            return
        old.row_factory = sqlite3.Row
        engine = sa.create_engine(place.replace("postgresql", "postgresql+psycopg"))
        with engine.begin() as connection:
            migrate(connection, str(schema))
            tables = sa.MetaData()
            tables.reflect(connection)
            for table in tables.sorted_tables:
                rows = [dict(row) for row in old.execute(f"SELECT * FROM {table.name}")]
                if rows and table.name != "alembic_version":
                    connection.execute(sa.insert(table), rows)
                if "id" in table.c:
                    last = max(row["id"] for row in rows)
                    connection.execute(sa.text(f"SELECT setval('{table.name}_id_seq', {last})"))
        engine.dispose()


@pytest.mark.parametrize("schema", [1, 2, 3, 4, 5, 6, 7])
def test_a_database_of_each_schema_opens(schema: int, places: Places) -> None:
    write_old(place := places(), schema)
    store = Store.at(place)
    assert [(job.id, job.state, job.code) for job in store.page()] == [
        (4, "queued", None), (3, "cancelled", None), (2, "failed", "crashed"), (1, "succeeded", None)
    ]  # fmt: skip
    assert store.config(1) == CONFIG and len(store.attempts(2)) == 3 and store.job(1).pinned
    assert store.submit(1, {**CONFIG, "seed": 3}, key="again").job.id == 4
    assert [(token.name, token.owner) for token in store.tokens.all()] == [("Ada", 1), ("Ada's screen", 1)][:schema]
    assert store.start_next("b").id == 4  # type: ignore[union-attr]
    assert store.submit(1, CONFIG).job.id == 5 and store.tokens.add("Bo", "read")[0].id > 1
    store.close()


def test_a_newer_database_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    Store.at(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute("UPDATE alembic_version SET version_num = '99'")
    with pytest.raises(OutputError, match="is of a newer version of panning"):
        Store.at(path)
    (tmp_path / "other").write_text("no database, but long enough to be one" * 100)
    with pytest.raises(OutputError, match="is no database of the service"):
        Store.at(tmp_path / "other")


def test_the_server_s_part_loads_no_torch() -> None:
    code = "import sys, panning.service.store, panning.service.scheduler; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
