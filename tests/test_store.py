"""The store of records: driven against a model by Hypothesis, cut at every byte, on a full disk, with a second writer."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from panning.foundation import records
from panning.foundation.errors import OutputError, PanningError
from panning.foundation.records import MAX_LINE_BYTES, RecordStore, RunRecord, content_key, read_records

ENVIRONMENTS = ({}, {"commit": "a", "hardware": {"cores": 2}}, {"commit": "b"})


def record(number: int, environment: int = 1, **metrics: Any) -> RunRecord:
    config = {"number": number}
    return RunRecord(content_key(config), "test", config, {"accuracy": 0.5, **metrics}, ENVIRONMENTS[environment])


def filled(path: Path, n: int = 2) -> RecordStore:
    store = RecordStore(path)
    for number in range(n):
        store.append(record(number))
    return store


@contextmanager
def full_disk(after: int, whole_writes: int = 0, fsync: bool = False) -> Iterator[None]:
    """Within, a write takes ``after`` bytes more, once ``whole_writes`` went well; then, and at fsync, the disk is full."""
    real_write, real_fsync, left = os.write, os.fsync, whole_writes

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(fd: int, data: Any) -> int:
        nonlocal left
        if fsync or left > 0:
            left -= 1
            return real_write(fd, data)
        left -= 1
        return real_write(fd, bytes(data)[:after]) if left == -1 and after else full()

    os.write, os.fsync = write, full if fsync else real_fsync
    try:
        yield
    finally:
        os.write, os.fsync = real_write, real_fsync


class Store(RuleBasedStateMachine):
    """A store and what it must hold: records in their order, whatever happened to its file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "run" / "records.jsonl"
        self.store = RecordStore(self.path)
        self.model: list[RunRecord] = []
        self.number = 0
        self.ends_with_a_record = False

    def teardown(self) -> None:
        self.folder.cleanup()

    def new(self, environment: int, size: int) -> RunRecord:
        self.number += 1
        return record(self.number, environment, text="é\n" * size)

    @rule(environment=st.integers(0, 2), size=st.integers(0, 3000))
    def append(self, environment: int, size: int) -> None:
        self.store.append(added := self.new(environment, size))
        self.model.append(added)
        self.ends_with_a_record = True

    @rule(environment=st.integers(0, 2), after=st.integers(0, 400), fsync=st.booleans())
    def append_on_a_full_disk(self, environment: int, after: int, fsync: bool) -> None:
        with full_disk(after, fsync=fsync), pytest.raises(OutputError, match="No space left"):
            self.store.append(self.new(environment, 3000))

    @rule()
    def open_again(self) -> None:
        self.store = RecordStore(self.path)

    @precondition(lambda self: self.ends_with_a_record)
    @rule(share=st.floats(0, 1, exclude_max=True))
    def kill_while_it_writes(self, share: float) -> None:
        """What a killed process leaves of its last line: any begin of it."""
        data = self.path.read_bytes().rstrip(b"\0")
        start = data.rstrip(b"\n").rfind(b"\n") + 1
        self.path.write_bytes(data[: start + int(share * (len(data) - 1 - start))])
        self.model.pop()
        self.ends_with_a_record = False
        self.store = RecordStore(self.path)

    @rule(n=st.integers(1, 5000))
    def crash_that_leaves_an_empty_block(self, n: int) -> None:
        with open(self.path, "ab") if self.path.exists() else tempfile.TemporaryFile() as file:
            file.write(bytes(n))
        self.store = RecordStore(self.path)

    @precondition(lambda self: self.model)
    @rule()
    def lose_the_last_end_of_line(self) -> None:
        self.path.write_bytes(self.path.read_bytes().rstrip(b"\0").rstrip(b"\n"))
        self.store = RecordStore(self.path)

    @precondition(lambda self: self.model)
    @rule(index=st.integers(0, 100))
    def append_what_is_there(self, index: int) -> None:
        with pytest.raises(PanningError, match="already holds"):
            self.store.append(self.model[index % len(self.model)])

    @precondition(lambda self: self.model)
    @rule()
    def second_writer(self) -> None:
        """One that had the file open before, and wrote nothing since, must not write into what it does not know."""
        other = RecordStore(self.path)
        self.append(1, 10)
        with pytest.raises(OutputError, match="another process has written"):
            other.append(self.new(1, 10))

    @invariant()
    def holds_the_model(self) -> None:
        assert list(self.store) == self.model and len(self.store) == len(self.model)
        for one in self.model[-3:]:
            assert one.key in self.store and self.store[one.key] == one
        if self.path.exists():
            assert read_records(self.path) == self.model


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=25, stateful_step_count=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def test_a_last_line_cut_at_every_byte_is_written_over(tmp_path: Path) -> None:
    whole = (filled(tmp_path / "r.jsonl").path).read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for n_left in range(start, len(whole) + 1):
        (path := tmp_path / "cut.jsonl").write_bytes(whole[:n_left])
        kept = [record(0)] if n_left < len(whole) - 1 else [record(0), record(1)]
        assert read_records(path) == kept
        RecordStore(path).append(record(2))
        assert read_records(path) == [*kept, record(2)]


def test_the_first_line_cut_at_every_byte_is_written_over_with_its_environment(tmp_path: Path) -> None:
    """The environment's line comes with the first record that names it."""
    whole = filled(tmp_path / "r.jsonl", n=1).path.read_bytes()
    for n_left in range(len(whole) - 1):
        (path := tmp_path / "cut.jsonl").write_bytes(whole[:n_left])
        assert read_records(path) == []
        RecordStore(path).append(record(2))
        assert read_records(path) == [record(2)]


def test_an_empty_block_in_the_middle_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.jsonl", n=4).path
    damaged = bytearray(path.read_bytes())
    ends = [i for i, byte in enumerate(damaged) if byte == 10]
    damaged[ends[1] - 40 : ends[1] + 60] = bytes(100)
    path.write_bytes(damaged)
    with pytest.raises(PanningError, match="r.jsonl, line 2: not a record"):
        RecordStore(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("tail", [b"token", b'{"password": "x"}', b"[1]", b"PK\x03\x04", b"\0\0token"])
def test_what_never_was_a_record_is_not_cut_off(tmp_path: Path, tail: bytes) -> None:
    (path := tmp_path / "r.jsonl").write_bytes(tail)
    with pytest.raises(OutputError, match="its last line never was a record"):
        RecordStore(path).append(record(1))
    assert path.read_bytes() == tail


def test_a_full_disk_at_every_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    store = filled(tmp_path / "r.jsonl")
    before = store.path.read_bytes()
    for after in range(0, len(before), 7):
        with full_disk(after), pytest.raises(OutputError, match="No space left"):
            store.append(record(5, environment=2, text="x" * 1000))
        assert store.path.read_bytes() == before
    store.append(record(5, environment=2))
    assert [one.config["number"] for one in RecordStore(store.path)] == [0, 1, 5]


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "r.jsonl")
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 3000)
    with pytest.raises(PanningError, match="more than 3000"):
        store.append(record(7, text="x" * 3000))
    store.append(record(8, text="x" * 2000))
    assert len(read_records(store.path)) == 3
    store.path.write_bytes(store.path.read_bytes() + b"x" * 4000)
    with pytest.raises(PanningError, match="line 5: not a record .it has more than 3000 bytes"):
        read_records(store.path)
    assert MAX_LINE_BYTES == 2**24


def test_a_link_or_a_pipe_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "r.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(PanningError, match="it is a link"):
        RecordStore(tmp_path / "r.jsonl")
    store = RecordStore(tmp_path / "s.jsonl")
    store.path.symlink_to(tmp_path / "secret")
    with pytest.raises(OutputError, match="cannot be written"):
        store.append(record(1))
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(PanningError, match="pipe or device"):
        RecordStore(tmp_path / "p.jsonl")
    assert (tmp_path / "secret").read_bytes() == b""


def test_an_environment_stands_once_in_a_file(tmp_path: Path) -> None:
    store = filled(tmp_path / "r.jsonl", n=3)
    store.append(record(3, environment=2))
    RecordStore(store.path).append(record(4, environment=1))
    lines = [json.loads(line) for line in store.path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == [*["environment"], *["test"] * 3, "environment", "test", "test"]
    assert [line["environment"] for line in lines if line["kind"] == "test"] == [lines[0]["key"]] * 3 + [
        lines[4]["key"], lines[0]["key"],
    ]  # fmt: skip
    assert [one.environment for one in read_records(store.path)] == [ENVIRONMENTS[n] for n in (1, 1, 1, 2, 1)]


def test_older_records_have_their_environment_themselves(tmp_path: Path) -> None:
    old = '{"config":{"number":1},"environment":{"commit":"a"},"key":"k","kind":"test","metrics":{}}\n'
    (path := tmp_path / "r.jsonl").write_text(old)
    RecordStore(path).append(record(2))
    assert [one.environment for one in read_records(path)] == [{"commit": "a"}, ENVIRONMENTS[1]]
    assert path.read_text().startswith(old)


def test_an_environment_that_is_not_there_is_named(tmp_path: Path) -> None:
    lines = filled(tmp_path / "r.jsonl").path.read_text().splitlines(keepends=True)
    (path := tmp_path / "part.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(PanningError, match="line 1: not a record .its environment .* stands on no line before it"):
        read_records(path)
