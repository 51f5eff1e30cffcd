"""Some generated and mutated uploads of each kind before the check process; docs/measure/upload_fuzz.py sends as many as one
likes, each under the limits of time and memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from upload_files import good_files, mutated
from upload_fuzz import Watch, look

from panning.foundation.files import strict_json
from panning.service.files import KINDS


def test_hostile_uploads_are_refused_in_sentences_and_run_nothing(tmp_path: Path) -> None:
    path, watch, found = tmp_path / "upload", Watch(), Counter[str]()
    good = good_files()
    assert {kind for kind, _ in good} == set(KINDS)
    for kind, data in good:
        path.write_bytes(data)
        assert look(path, kind, watch) == "good", kind
    watch.seen.clear()
    for seed in range(250):
        kind, data = mutated(seed, good)
        path.write_bytes(data)
        found[look(path, kind, watch)] += 1
    assert set(found) == {"good", "refused"}, found
    assert found["refused"] > 150
    assert not watch.seen, "nothing was run, started, asked for or opened"


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8-sig"])
def test_a_header_is_in_utf_8(code: str) -> None:
    """The fuzz saw Python load a decoder that the first bytes of a file had asked for."""
    with pytest.raises(ValueError):
        strict_json('{"a": 1}'.encode(code))
    assert strict_json(b'{"a": "\xc3\xa9"}') == {"a": "\u00e9"}


def test_the_watch_sees_what_is_run(tmp_path: Path) -> None:
    watch = Watch()
    watch.is_on = True
    exec("1 + 1")
    open(tmp_path / "other", "w").close()  # noqa: SIM115
    watch.is_on = False
    assert {name.split()[0] for name in watch.seen} == {"exec", "open"}
