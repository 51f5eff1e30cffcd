"""Trials that fail: recorded results with their reason, while the run goes on; and what is the machine's fault instead."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from panning.cli import main
from panning.foundation.errors import (
    ConfigError,
    DataError,
    ForwardError,
    JobError,
    MaskError,
    OutputError,
    PanningWarning,
    WorkerError,
)
from panning.foundation.files import sole_writer
from panning.foundation.machine import code_versions
from panning.foundation.progress import silent
from panning.foundation.records import read_records
from panning.jobs import begun, kept, work
from panning.jobs.begun import check_begun_alike
from panning.jobs.executor import SerialExecutor
from panning.jobs.news import Unfit, Up
from panning.jobs.outcome import Outcome, PruneOutcome, TrainOutcome
from panning.jobs.spec import CellSpec, PruneSpec, TrainSpec
from panning.jobs.store import FEW_FAILED, JobStore
from panning.jobs.ways import Method
from panning.jobs.work import Job, check_data, execute
from panning.masks.file import load_masks, save_masks
from panning.tasks import DataSource, TaskSpec
from panning.training import Recipe

TASK = TaskSpec(model="mlp", data="digits", n_train=100)
SPECS: dict[str, Any] = {spec.kind: spec for spec in (PruneSpec, TrainSpec, CellSpec)}
GOOD = TrainOutcome(accuracy=0.5, loss=1.0, train_loss=1.0, images_seen=1)


def training(seed: int = 0) -> Job[TrainOutcome]:
    return Job(TrainSpec(task=TASK, seed=seed, mask=None, recipe=Recipe(epochs=1, batch_size=50)))


def pruning(seed: int = 0, density: float = 0.1) -> Job[PruneOutcome]:
    return Job(PruneSpec(task=TASK, seed=seed, density=density, by=Method(method="magnitude")))


class Given:
    """An executor that gives what it is told to."""

    def __init__(self, give: Any) -> None:
        self.give = give
        self.asked: list[str] = []

    def run(self, jobs: Iterable[Job[Any]]) -> Iterator[tuple[Job[Any], Any]]:
        for job in jobs:
            self.asked.append(job.key)
            yield job, self.give(job)


# --- in the process ---


@pytest.mark.parametrize(
    ("error", "said", "failure"),
    [
        (RuntimeError("x\x1b[2J\ny"), "RuntimeError: x\\x1b[2J y", "raised"),
        (KeyError("a"), "KeyError: 'a'", "raised"),
        (AssertionError(), "AssertionError", "raised"),
        (SystemExit(3), "SystemExit: 3", "raised"),
        (ForwardError("The module 'a' fails."), "The module 'a' fails.", "raised"),
        (MemoryError(), "MemoryError", "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), None, "memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "OutOfMemoryError: CUDA out of memory.", "memory"),
        (MaskError("It keeps none."), "It keeps none.", None),
    ],
)
def test_what_a_trial_raises_is_its_outcome(
    error: BaseException, said: str | None, failure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any) -> None:
        raise error

    monkeypatch.setitem(work._RUN, "train", raises)
    outcome = execute(training())
    assert outcome.failure == failure and said in (None, outcome.error)
    assert outcome.metrics == {"error": outcome.error} | ({"failure": failure} if failure else {})
    assert (outcome.trace is None) == (failure is None) and (failure is None or "in raises" in str(outcome.trace))
    assert outcome.environment is not None and "torch" in outcome.environment["versions"]


@pytest.mark.parametrize("error", [DataError("no file"), KeyboardInterrupt()])
def test_what_the_next_trial_would_meet_too_is_raised(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> None:
        raise error

    monkeypatch.setitem(work._RUN, "train", raises)
    with pytest.raises(type(error)):
        execute(training())


def test_an_outcome_that_is_no_number_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(work._RUN, "train", lambda *_: TrainOutcome(accuracy=float("nan")))
    outcome = execute(training())
    assert outcome.failure == "raised" and "accuracy" in str(outcome.error)


def test_memory_is_tried_again_once_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 0

    def once(*_: Any) -> TrainOutcome:
        nonlocal n
        n += 1
        if n == 1:
            raise MemoryError
        return GOOD

    monkeypatch.setitem(work._RUN, "train", once)
    ((_, outcome),) = SerialExecutor().run([training()])
    assert outcome == GOOD.model_copy(update={"environment": outcome.environment}) and n == 2


# --- in the store ---


def test_a_failure_is_kept_with_its_reason_and_not_run_again(tmp_path: Path) -> None:
    bad = TrainOutcome(
        error="RuntimeError: x", failure="raised", trace="Traceback ...", environment={"commit": "there"}
    )
    store = JobStore(tmp_path)
    store.run([training()], Given(lambda job: bad), silent, "it")
    (record,) = read_records(tmp_path / "records.jsonl")
    assert record.metrics == {"error": "RuntimeError: x", "failure": "raised"} and record.environment == {
        "commit": "there"
    }
    assert (tmp_path / "failed" / f"{record.key}.txt").read_text() == "Traceback ..."
    again = Given(lambda job: GOOD)
    outcomes = JobStore(tmp_path).run([training()], again, silent, "it")
    assert again.asked == [] and outcomes[record.key].failure == "raised"


def test_each_part_of_a_record_is_put_into_json_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checks and its file share the text: making it again would be most of what a short trial costs the driver."""
    made, encode = list[str](), json.JSONEncoder.encode

    def noted(encoder: json.JSONEncoder, value: Any) -> str:
        made.append(encode(encoder, value))
        return made[-1]

    monkeypatch.setattr(json.JSONEncoder, "encode", noted)
    outcome = GOOD.model_copy(update={"environment": {"commit": "there"}})
    JobStore(tmp_path).run([training(0), training(1)], Given(lambda job: outcome), silent, "it")
    assert sum('"accuracy"' in text for text in made) == 2
    assert sum('"there"' in text for text in made) == 3, "once more for its own line"
    assert sum('"recipe"' in text for text in made) == 2 * 2, "for the key and for the record"


@pytest.mark.parametrize(
    "outcome",
    [
        TrainOutcome.model_construct(accuracy=float("nan"), loss=1.0, train_loss=1.0, images_seen=1),
        TrainOutcome.model_construct(accuracy=7.0, loss=1.0, train_loss=1.0, images_seen=1),
        TrainOutcome.model_construct(accuracy="0.5", loss=1.0, train_loss=1.0, images_seen=1),
        TrainOutcome(accuracy=0.5),
        PruneOutcome(n_kept=3),
    ],
)
def test_what_could_not_be_read_again_is_kept_as_a_failure(tmp_path: Path, outcome: Outcome) -> None:
    found = JobStore(tmp_path).run([training()], Given(lambda job: outcome), silent, "it")
    assert found[training().key].failure == "raised" and "is no outcome of a train job" in str(
        found[training().key].error
    )
    assert len(JobStore(tmp_path).records) == 1


def test_an_outcome_of_a_gigabyte_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panning.jobs.store.MAX_LINE_BYTES", 2000)
    large = PruneOutcome(
        n_kept=1, density=0.1, effective_density=0.1, compute_left=0.1, layer_densities=[("a" * 2000, 0.1)]
    )
    found = JobStore(tmp_path).run([pruning()], Given(lambda job: large), silent, "it")
    assert "bytes" in str(found[pruning().key].error)


def test_too_many_failures_end_the_run_with_their_reasons(tmp_path: Path) -> None:
    bad = TrainOutcome(error="RuntimeError: x", failure="raised")
    jobs = [training(seed) for seed in range(40)]
    given = Given(lambda job: bad if job.spec.seed % 2 else GOOD)
    with pytest.raises(JobError, match=r"5 of 10 trials failed, more than 20%.*:\n  5 times: RuntimeError: x"):
        JobStore(tmp_path).run(jobs, given, silent, "it")
    assert len(given.asked) == 2 * FEW_FAILED and len(read_records(tmp_path / "records.jsonl")) == 10
    JobStore(tmp_path, max_failed=0.5).run(jobs, given, silent, "it")
    assert len(read_records(tmp_path / "records.jsonl")) == 40


def test_what_is_impossible_is_no_failure_that_ends_a_run(tmp_path: Path) -> None:
    impossible = TrainOutcome(error="keeps none")
    JobStore(tmp_path, 0.0).run([training(seed) for seed in range(20)], Given(lambda job: impossible), silent, "it")


def test_failures_may_run_again_once_they_are_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = TrainOutcome(error="RuntimeError: x", failure="raised", trace="...")
    jobs = [training(seed) for seed in range(4)]
    JobStore(tmp_path).run(jobs, Given(lambda job: bad if job.spec.seed == 2 else GOOD), silent, "it")
    (tmp_path / "run.json").write_text('{"rungs": 1}')
    with pytest.raises(SystemExit) as ended:
        main(["runs", "retry", str(tmp_path)])
    assert not ended.value.code and "1 failed trial" in capsys.readouterr().out
    assert [record.config["seed"] for record in read_records(tmp_path / "records.jsonl")] == [0, 1, 3]
    assert list((tmp_path / "failed").iterdir()) == []
    given = Given(lambda job: GOOD)
    JobStore(tmp_path).run(jobs, given, silent, "it")
    assert given.asked == [training(2).key]


# --- a folder that somebody changed ---


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    JobStore(tmp_path).run([pruning(0), pruning(1)], SerialExecutor(), silent, "it")
    return tmp_path


def test_masks_that_were_swapped_are_refused(pruned: Path) -> None:
    a, b = (pruned / "masks" / f"{pruning(seed).key}.safetensors" for seed in (0, 1))
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)
    with pytest.raises(MaskError, match=f"{a.name} is not the mask that its record tells of; delete the file"):
        JobStore(pruned).get(pruning(0))


def test_a_mask_with_one_weight_moved_is_refused_and_a_manifest_is_no_content(pruned: Path) -> None:
    path = pruned / "masks" / f"{pruning(0).key}.safetensors"
    masks = load_masks(path)
    save_masks(masks.with_manifest(method="other"), path)
    assert JobStore(pruned).get(pruning(0)) is not None
    flat = masks.flat.clone()
    first, none = int(flat.nonzero()[0]), int((~flat).nonzero()[0])
    flat[first], flat[none] = False, True
    save_masks(replace(masks, flat=flat), path)
    with pytest.raises(MaskError, match="not the mask"):
        JobStore(pruned).get(pruning(0))


def test_a_mask_whose_file_its_record_names_is_not_parsed_again(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that goes on looks up every mask that it has."""
    monkeypatch.setattr(kept, "parse_masks", lambda *_: pytest.fail("it was parsed"))
    found = JobStore(pruned).get(pruning(0))
    assert found is not None and found.mask == (pruned / "masks" / f"{pruning(0).key}.safetensors").read_bytes()


def test_a_file_in_the_place_of_the_masks_folder_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "masks").write_text("mine")
    with pytest.raises(OutputError, match="masks is a file, where a run keeps the folder of its masks"):
        JobStore(tmp_path)


def test_a_mask_that_was_deleted_is_made_again(pruned: Path) -> None:
    path = pruned / "masks" / f"{pruning(0).key}.safetensors"
    before = path.read_bytes()
    path.unlink()
    store = JobStore(pruned)
    assert store.get(pruning(0)) is None
    store.run([pruning(0)], SerialExecutor(), silent, "it")
    assert path.read_bytes() == before and len(store.records) == 2


def change_record(folder: Path, **change: Any) -> None:
    path = folder / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {}}, "it lacks n_kept"),
        ({"metrics": {"error": None}}, "it lacks n_kept"),
        ({"metrics": {"error": ["x"]}}, "error: Input should be a valid string"),
        ({"metrics": {"error": "x", "failure": "boredom"}}, "failure: Input should be"),
        ({"metrics": {"error": None, "n_kept": 10**4000}}, "n_kept: Input should be less than or equal"),
        ({"metrics": {"error": None, "density": "0.5"}}, "density: Input should be a valid number"),
        ({"metrics": {"error": None, "density": 7}}, "density: Input should be less than or equal to 1"),
        ({"metrics": {"error": None, "layer_densities": 3}}, "layer_densities: Input should be a valid"),
        ({"config": {"seed": 5}}, "its key is not that of its config"),
        ({"kind": "train"}, "its key is not that of its config"),
    ],
)
def test_a_record_that_was_changed_is_named_with_line_and_field(
    pruned: Path, change: dict[str, Any], message: str
) -> None:
    change_record(pruned, **change)
    with pytest.raises(Exception, match=rf"records.jsonl, line 3: not a record \({message}"):
        JobStore(pruned)


# --- what a run began with ---


def test_other_data_are_refused_and_other_code_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_begun_alike(tmp_path, TASK, DataSource())
    check_begun_alike(tmp_path, TASK, DataSource())
    with pytest.raises(ConfigError, match="was begun with other data under the name 'digits'"):
        check_begun_alike(tmp_path, TASK.model_copy(update={"n_train": 99}), DataSource())
    monkeypatch.setattr(begun, "code_versions", lambda: {"panning": "other"})
    with pytest.warns(PanningWarning, match="was begun with other code .*now panning other"):
        check_begun_alike(tmp_path, TASK, DataSource())
    (tmp_path / "begun.json").write_text("{")
    with pytest.raises(ConfigError, match="begun.json cannot be read"):
        check_begun_alike(tmp_path, TASK, DataSource())


# --- stores of earlier versions ---

GOLDEN = Path(__file__).parent / "golden" / "store-v1"


def test_a_store_of_version_1_opens_gives_its_outcomes_and_goes_on(tmp_path: Path) -> None:
    """Its records have their environment themselves, and no hash of their mask."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    store = JobStore(tmp_path / "old")
    held = list(store.records)
    assert [record.kind for record in held] == ["prune"] * 3 + ["train"] * 2 + ["cell"] * 2
    for record in held:
        spec = SPECS[record.kind].model_validate(record.config)
        job = Job(spec)  # type: ignore[var-annotated]
        assert job.key == record.key and record.environment["commit"]
        outcome = store.get(job)
        if record.kind == "prune" and record is not held[0]:
            assert outcome is None  # its mask is not there: it is made again
        else:
            assert outcome is not None and outcome.metrics == record.metrics
    store.run([training(7)], Given(lambda job: GOOD), silent, "it")
    assert list(JobStore(tmp_path / "old").records) == [*held, *list(store.records)[-1:]]
    before = (GOLDEN / "records.jsonl").read_bytes()
    assert (tmp_path / "old" / "records.jsonl").read_bytes().startswith(before)


def test_a_mask_of_version_1_is_compared_with_what_its_record_says(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "old")
    first = next(iter(JobStore(tmp_path / "old").records))
    path = tmp_path / "old" / "masks" / f"{first.key}.safetensors"
    masks = load_masks(path)
    flat = masks.flat.clone()
    flat[flat.nonzero()[0]] = False
    save_masks(replace(masks, flat=flat), path)
    with pytest.raises(MaskError, match="not the mask that its record tells of"):
        JobStore(tmp_path / "old").get(Job(PruneSpec.model_validate(first.config)))


# --- folders at work ---


@pytest.mark.parametrize("command", ["prune", "train"])
def test_a_folder_at_work_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--density", "0.1", "--method", "magnitude"] if command == "prune" else ["--epochs", "0.1"]
    with sole_writer(tmp_path / "out"), pytest.raises(SystemExit) as ended:
        main([command, "--model", "mlp", "--data", "digits", "--out", str(tmp_path / "out"), *more])
    assert ended.value.code == 2 and "Another process writes to" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


# --- what Ray tells of workers ---


def test_a_node_with_other_code_is_unfit_and_named() -> None:
    from panning.jobs.ray_workers import RayWorkers

    workers, here = RayWorkers(1), code_versions()
    assert workers._greeted(0, {**here, "node": "b"}) == Up(0)
    unfit = workers._greeted(0, {**here, "torch": "0.1", "node": "b"})
    assert isinstance(unfit, Unfit)
    assert str(unfit.error) == (f"The node b has other code: torch 0.1, here {here['torch']}. Install the same there.")


def test_data_that_are_others_on_a_node_are_named_with_it() -> None:
    job = training()
    check_data(job, None, "b")
    check_data(job, job.data, "b")
    with pytest.raises(DataError, match="The node b has other data under the name 'digits'"):
        check_data(job, "another", "b")
    absent = Job(TrainSpec(task=TaskSpec(model="mlp", data="npz:absent.npz"), seed=0, mask=None, recipe=Recipe()))
    with pytest.raises(DataError, match=r"On the node b: .*absent.npz"):
        check_data(absent, "x", "b")


def test_the_end_of_ray_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from panning.foundation import ray_answers

    monkeypatch.setattr(ray_answers.ray, "nodes", lambda: [{"Alive": False}, {"Alive": False}])
    with pytest.raises(WorkerError, match=r"Ray ended \(none of its nodes is alive\). What is done is kept"):
        ray_answers.check_ray_lives()

    def broken() -> None:
        raise ConnectionError("gcs is gone\nmore")

    monkeypatch.setattr(ray_answers.ray, "nodes", broken)
    with pytest.raises(WorkerError, match=r"Ray ended \(gcs is gone\)"):
        ray_answers.check_ray_lives()


def test_to_ask_for_the_head_of_a_ray_that_does_not_run_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from panning.foundation.ray_answers import Head

    asked = list[str]()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: asked.append("Ray"))
    assert Head().answers() and asked == []


def test_an_end_by_rays_memory_monitor_is_told_from_others() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    from panning.foundation.ray_answers import is_of_memory, is_of_node

    ended = exceptions.RayActorError(error_msg="Ray killed 2 worker(s) based on the killing policy")
    assert is_of_memory(ended) and not is_of_node(ended)
    assert is_of_memory(exceptions.OutOfMemoryError("it"))
    assert not is_of_memory(exceptions.RayActorError(error_msg="The actor died unexpectedly."))


def test_a_head_that_is_silent_ends_the_run_before_ray_ends_the_process() -> None:
    pytest.importorskip("ray")
    from panning.foundation.ray_answers import Head

    times = iter((0.0, 4.0, 5.0, 15.0, 34.0, 40.0, 50.0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        head = Head(lambda: f"127.0.0.1:{port}", lambda: next(times))
        assert head.answers()
    assert head.answers()  # it was looked for a moment ago
    with pytest.warns(PanningWarning, match="The head of the Ray cluster at .* does not answer.*run the same again"):
        assert not head.answers()
    assert [head.answers() for _ in range(2)] == [False] * 2  # said once
    with pytest.raises(
        WorkerError, match=rf"Ray ended .its head at 127.0.0.1:{port} does not answer.*run the same again"
    ):
        head.answers()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert head.answers()  # another cluster


@pytest.mark.parametrize(("said", "seconds"), [(None, 30.0), ("600", 300.0), ("1", 5.0), ("soon", 30.0)])
def test_the_head_may_be_silent_for_half_as_long_as_ray_waits_for_it(
    said: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from panning.foundation.ray_answers import RAYS_PATIENCE, Head, silent_s

    monkeypatch.delenv(RAYS_PATIENCE, raising=False)
    if said is not None:
        monkeypatch.setenv(RAYS_PATIENCE, said)
    assert silent_s() == seconds
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    times = iter((0.0, seconds - 0.1 if seconds > 5 else seconds, seconds, 2 * seconds))
    head = Head(lambda: f"127.0.0.1:{port}", lambda: next(times))
    with pytest.warns(PanningWarning, match=f"the run ends in {seconds:.0f} to {2 * seconds:.0f} s"):
        assert not head.answers()
    with pytest.raises(WorkerError, match="does not answer"):
        for _ in range(3):
            head.answers()


def test_a_node_that_lacks_a_package_is_named() -> None:
    pytest.importorskip("ray")
    from panning.jobs.ray_workers import _reason

    said = (
        "The actor died because of an error raised in its creation task, ray::_JobWorker.__init__() (pid=7, ip=192.0.2.11, "
        "actor_id=ab, repr=x)\nRuntimeError: The actor failed to import.\nModuleNotFoundError: No module named 'panning'\n"
    )
    assert _reason(RuntimeError(said)) == "ModuleNotFoundError: No module named 'panning', on the node 192.0.2.11"


def test_a_wait_on_ray_ends_at_its_deadline_or_with_its_last_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import GetTimeoutError

    from panning.foundation import ray_answers

    waits: list[float] = []

    def silent_call(call: object, timeout: float) -> None:
        waits.append(timeout)
        raise GetTimeoutError("no answer")

    monkeypatch.setattr(ray_answers, "LOOK_S", 0.0)
    monkeypatch.setattr(ray_answers.HEAD, "answers", lambda: True)
    monkeypatch.setattr(ray_answers.ray, "get", silent_call)
    monkeypatch.setattr(ray_answers.ray, "nodes", lambda: [{"Alive": False}])
    with pytest.raises(GetTimeoutError):
        ray_answers.answer(None, 0.0)
    with pytest.raises(WorkerError, match="none of its nodes is alive"):
        ray_answers.answer(None, 1e6)
    assert waits == [0.0, ray_answers.STOP_S]
