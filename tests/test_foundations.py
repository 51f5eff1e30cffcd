"""Tables, configs, records and seeds: the ground that every other part stands on."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from panning.foundation import errors, memory
from panning.foundation.config import Config, dump_config, load_config, parse_config
from panning.foundation.errors import ConfigError
from panning.foundation.files import write_atomic
from panning.foundation.machine import environment_info
from panning.foundation.records import RecordStore, RunRecord, content_key, read_records
from panning.foundation.registry import lookup, nearest
from panning.foundation.seeding import derive_seed, isolated_global_rngs, isolated_torch_rng, numpy_rng, torch_generator

TABLE = {"snip": 1, "synflow": 2, "magnitude": 3}


class Inner(Config):
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    n_steps: int = 5


class Layers(Config):
    layers: Annotated[tuple[Inner, ...], Field(min_length=1)]


class Outer(Config):
    method: str
    inner: Inner = Inner()
    layers: tuple[Inner, ...] = ()
    other: Inner | None = None


# Registry and errors


def test_lookup_finds_the_row_or_names_the_nearest() -> None:
    assert lookup(TABLE, "snip", "method") == 1
    with pytest.raises(errors.UnknownNameError) as caught:
        lookup(TABLE, "sinflow", "method")
    message = "Unknown method 'sinflow'. Did you mean 'synflow'? Allowed: magnitude, snip, synflow."
    assert str(caught.value) == message
    assert isinstance(caught.value, KeyError)


def test_nothing_near_gives_no_hint() -> None:
    assert nearest("zzz", TABLE) is None
    with pytest.raises(errors.UnknownNameError, match=r"^Unknown method 'zzz'\. Allowed"):
        lookup(TABLE, "zzz", "method")


def test_exit_codes_tell_wrong_input_from_failed_jobs() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PanningError)]
    assert len(kinds) > 8
    assert {kind.exit_code for kind in kinds} == {1, 2}
    assert all((kind.exit_code == 1) == issubclass(kind, errors.JobError) for kind in kinds)


# Configs


def test_all_errors_of_a_file_come_in_one_message(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("inner: {learning_rte: 1, n_steps: many}\nlayers: [{learning_rate: -1}]\nother: {n_step: 1}\n")
    with pytest.raises(errors.ConfigError) as caught:
        load_config(Outer, file)
    message = str(caught.value)
    assert message.startswith(f"{file}: 5 error(s)\n")
    assert "  method: this key is needed." in message
    assert "  inner.learning_rte: unknown key. Did you mean 'learning_rate'?" in message
    assert "  inner.n_steps: " in message and "(given: 'many')" in message
    assert "  layers.0.learning_rate: " in message and "(given: -1)" in message
    assert "  other.n_step: unknown key. Did you mean 'n_steps'?" in message


def test_a_list_that_holds_a_wrong_item_is_not_also_too_short() -> None:
    """Pydantic counts the right items alone."""
    with pytest.raises(errors.ConfigError, match=r"1 error\(s\)\n  layers\.0\.learning_rate: "):
        parse_config(Layers, {"layers": [{"learning_rate": -1}]}, "request")
    with pytest.raises(errors.ConfigError, match=r"1 error\(s\)\n  layers: must have at least 1 item"):
        parse_config(Layers, {"layers": []}, "request")


def test_an_unknown_key_like_no_other_lists_the_allowed() -> None:
    with pytest.raises(errors.ConfigError, match=r"zzz: unknown key\. Allowed: inner, layers, method, other\."):
        parse_config(Outer, {"method": "snip", "zzz": 1}, "request")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "found list"),
        ("", "found NoneType"),
        ("a: [", "not valid YAML"),
        ("a: !!python/name:os.system ''", "not valid"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(errors.ConfigError, match=message):
        load_config(Outer, file)


def test_an_absent_file_and_infinite_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="No configuration file"):
        load_config(Outer, tmp_path / "none.yaml")
    with pytest.raises(errors.ConfigError, match="finite"):
        parse_config(Inner, {"learning_rate": float("inf")}, "request")


@given(st.text(max_size=20), st.floats(1e-9, 1e9), st.integers())
def test_a_dumped_config_loads_to_an_equal_one(
    tmp_path_factory: pytest.TempPathFactory, text: str, rate: float, n: int
) -> None:
    config = Outer(method=text, inner=Inner(learning_rate=rate, n_steps=n), layers=(Inner(),))
    file = tmp_path_factory.mktemp("config") / "run.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(Outer, file) == config


# Records


def record(key: str) -> RunRecord:
    return RunRecord(key=key, kind="prune", config={"seed": 1}, metrics={"accuracy": 0.5})


def test_records_are_found_again(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "deep" / "records.jsonl")
    store.append(record("a"))
    store.append(record("b"))
    again = RecordStore(store.path)
    assert [r.key for r in again] == ["a", "b"] and "b" in again and "c" not in again
    assert again["a"] == record("a")


def test_a_key_is_stored_once(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "records.jsonl")
    store.append(record("a"))
    with pytest.raises(errors.PanningError, match="already holds a record with the key a"):
        store.append(record("a"))
    assert len(read_records(store.path)) == 1


def test_a_last_line_that_lacks_its_end_alone_is_whole(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "records.jsonl")
    first, second = (RunRecord(content_key({"n": n}), "test", {"n": n}, {}) for n in (1, 2))
    store.append(first)
    store.path.write_bytes(store.path.read_bytes().rstrip())
    again = RecordStore(store.path)
    assert [record.key for record in again] == [first.key]
    again.append(second)
    assert [record.key for record in read_records(store.path)] == [first.key, second.key]


def test_a_torn_tail_is_left_out_and_then_written_over(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "records.jsonl")
    store.append(record("a"))
    whole = store.path.read_bytes()
    for n_left in range(1, len(whole) - 1):
        store.path.write_bytes(whole + whole.replace(b'"a"', b'"b"')[:n_left])
        again = RecordStore(store.path)
        assert [r.key for r in again] == ["a"]
        again.append(record("c"))
        assert [r.key for r in read_records(store.path)] == ["a", "c"]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    for broken in (b"{", b'{"key": "a"}', b"[1]", b"\xff"):
        file.write_bytes(broken + b"\n")
        with pytest.raises(errors.PanningError, match="line 1: not a record"):
            read_records(file)


def test_content_keys_do_not_depend_on_the_order_of_keys() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    assert content_key({"a": 1, "b": [1, 2]}) != content_key({"a": 1, "b": [2, 1]})


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result"
    write_atomic(file, "old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full_disk)
            with pytest.raises(errors.OutputError, match="No space"):
                write_atomic(file, "new")
        assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    write_atomic(file, b"new")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(errors.OutputError, match="cannot be written: it is a folder"):
        write_atomic(tmp_path, "new")


def test_the_environment_has_versions_and_no_path_or_host() -> None:
    info = environment_info()
    assert info["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert info["hardware"]["cores"] == os.cpu_count()
    assert str(Path.home()) not in str(info) and os.uname().nodename not in str(info["hardware"])


# Seeds


@pytest.mark.parametrize("seed", ["a", 1.5, None])
def test_a_seed_that_is_no_whole_number_is_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match=f"seed is {seed!r}, but must be a whole number"):
        derive_seed(seed, "init")  # type: ignore[arg-type]
    assert derive_seed(np.int64(1), "init") == derive_seed(1, "init")


def test_streams_depend_on_seed_and_names_alone() -> None:
    assert derive_seed(1, "init") == 5267816590608909949  # sha256("1/init"); another value breaks every stored result
    seeds = {derive_seed(seed, *names) for seed in range(5) for names in [(), ("a",), ("b",), ("a", 0), ("a", 1)]}
    assert len(seeds) == 25 and all(0 <= seed < 2**63 for seed in seeds)
    first = torch.rand(3, generator=torch_generator(7, "data"))
    torch.rand(100, generator=torch_generator(7, "init"))
    assert torch.equal(first, torch.rand(3, generator=torch_generator(7, "data")))
    assert not torch.equal(first, torch.rand(3, generator=torch_generator(7, "init")))
    assert numpy_rng(7, "data").random() == numpy_rng(7, "data").random() != numpy_rng(8, "data").random()


def test_generators_leave_the_global_ones_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index,union-attr]
    torch.rand(3, generator=torch_generator(0, "a"))
    numpy_rng(0, "a").random()
    with isolated_torch_rng(5):
        first = torch.rand(4)
    with isolated_global_rngs(5):
        assert torch.equal(torch.rand(4), first)
        drawn = random.random(), np.random.rand()
    with pytest.raises(ValueError), isolated_global_rngs(5):
        assert (random.random(), np.random.rand()) == drawn
        raise ValueError
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index,union-attr]
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_freed_memory_is_kept_where_the_system_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Glibc:
        def mallopt(self, option: int, value: int) -> None:
            asked.append((option, value))

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Glibc())
    memory.keep_freed_memory()
    assert asked == [(-4, 0), (-1, 2**31 - 1)]  # M_MMAP_MAX and M_TRIM_THRESHOLD in glibc's malloc.h
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # a C library without it
    memory.keep_freed_memory()
