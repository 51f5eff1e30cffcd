"""The quick look at records when a folder is opened takes what the strict reader takes; errors are the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from panning.foundation import records
from panning.foundation.errors import PanningError
from panning.foundation.records import RecordStore, RunRecord
from panning.jobs.episodes import ReplayedEpisode
from panning.jobs.kept import check_quickly, check_record
from panning.jobs.spec import PruneSpec, TrainSpec, key_of
from panning.jobs.ways import Method
from panning.tasks import TaskSpec
from panning.training import Recipe

TASK = TaskSpec(model="mlp", data="digits")
TRAINED = {"accuracy": 0.5, "loss": 1.25, "train_loss": 1e-05, "images_seen": 100, "wall_s": 1.0, "error": None}
PRUNED = {"n_kept": 3, "density": 0.1, "effective_density": 0.1, "compute_left": 0.2, "layer_densities": [["fc", 0.1]],
          "error": None}  # fmt: skip


def record(spec: Any, metrics: dict[str, Any]) -> RunRecord:
    config = spec.model_dump(mode="json")
    return RunRecord(key_of(spec.kind, config), spec.kind, config, metrics, {"python": "3.11"})


def training(seed: int, **recipe: Any) -> RunRecord:
    return record(TrainSpec(task=TASK, seed=seed, mask="0" * 20, recipe=Recipe(**recipe)), TRAINED)


def pruning(seed: int, by: Any) -> RunRecord:
    return record(PruneSpec(task=TASK, seed=seed, density=0.1, by=by), PRUNED)


def episode(drawn_by: str | None) -> ReplayedEpisode:
    from panning.agents.config import EpisodeSpec

    part = EpisodeSpec(n_rounds=1)
    return ReplayedEpisode(policy="actions", actions=((0.5,),), n_rounds=1, action=part.action, drawn_by=drawn_by)


RECORDS = [
    training(0), training(1, learning_rate=1e-05), training(2, epochs=2.5), pruning(0, Method(method="snip")),
    pruning(1, episode(None)), pruning(2, episode("tpe é")),
    RunRecord("k", "mine", {"text": "é\\ \ud800", "kind": "x"}, {}, {"python": "3.11"}),
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store = RecordStore(tmp_path / "records.jsonl")
    for one in RECORDS:
        store.append(one)
    return store.path


def opened(path: Path, is_quick: bool) -> Any:
    """What a store knows after it was opened, or what it says."""
    try:
        store = RecordStore(path, check_record, quick=check_quickly if is_quick else None)
    except PanningError as error:
        return str(error)
    return store._places, store._end, store._tail, store._environments


def test_records_of_all_kinds_are_found_where_they_stand_and_not_read_strictly(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = opened(path, is_quick=False)
    assert list(known[0]) == [one.key for one in RECORDS]
    read: list[bytes] = []
    strict = records.strict_json
    monkeypatch.setattr(records, "strict_json", lambda line: read.append(line) or strict(line))
    assert opened(path, is_quick=True) == known
    assert [b'"kind":"environment"' in line or b"ud800" in line for line in read] == [True, True]


CHANGES = [
    (b'"seed":0', b'"seed":0,"seed":0'), (b'"seed":0', b'"seed":1'), (b'"seed":0', b'"seed": 0'),
    (b'"seed":0', b'"seed":0.0'), (b'"accuracy":0.5', b'"accuracy":NaN'), (b'"accuracy":0.5', b'"accuracy":1e999'),
    (b'"accuracy":0.5', b'"accuracy":"0.5"'), (b'"accuracy":0.5', b'"accuracy":5'), (b'"accuracy":0.5,', b""),
    (b'"accuracy":0.5', b'"accuracy":0.50'), (b'"accuracy":0.5', b'"accuracy":0.5,"accuracy":0.5'),
    (b'"accuracy":0.5', b'"a":' + b"[" * 5000 + b"]" * 5000 + b',"accuracy":0.5'),
    (b'"accuracy":0.5', b'"a":' + b"1" * 5000 + b',"accuracy":0.5'), (b'"loss":1.25', b'"loss":Infinity'),
    (b'"kind":"train"', b'"kind":"train","kind":"train"'), (b'"kind":"train"', b'"kind":"prune"'),
    (b'"kind":"train"', b'"kind":7'), (b'"kind":"train"', b'"kind":"environment"'), (b'{"config"', b'{"a":1,"config"'),
    (b'{"config":{', b'{"config":{"kind":"train",'), (b'"environment":"', b'"environment":"0'),
    (b'"metrics":{', b'"metrics":[{'), (b'"error":null', b'"error":"it diverged"'), (b'"error":null', b'"error":"\\ud800"'),
    (b'"error":null', b'"error":"\xff"'), (b'"wall_s":1.0}}', b'"wall_s":1.0}} x'), (b'"wall_s":1.0}}', b'"wall_s":1.0}'),
    (b'"wall_s":1.0}}\n', b'"wall_s":1.0}}'),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: repr(change[1])[:40])
def test_another_line_is_refused_or_taken_as_by_the_strict_reader(path: Path, change: tuple[bytes, bytes]) -> None:
    first, rest = path.read_bytes().split(b"\n", 1)
    assert change[0] in rest
    path.write_bytes(first + b"\n" + rest.replace(*change, 1))
    assert opened(path, is_quick=True) == opened(path, is_quick=False)


def test_any_byte_may_be_another(path: Path) -> None:
    whole, lot, n_refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        place = lot.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([lot.choice(b'0,"}: \n\\e')]) + whole[place + 1 :])
        n_refused += isinstance(quick := opened(path, is_quick=True), str)
        assert quick == opened(path, is_quick=False), place
    assert 100 < n_refused < 300
