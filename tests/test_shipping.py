"""Data sets that workers lack and get from the process that sends their work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panning.data import FolderSplit, load_data, shipped
from panning.data.own import OwnData
from panning.data.shipped import Shipment, accept, data_name, offered, ships_data
from panning.foundation.errors import DataError
from panning.jobs.spec import TrainSpec
from panning.jobs.work import Job, execute
from panning.jobs.workers import Workers
from panning.tasks import DataSource, TaskSpec, load_task, load_task_data
from panning.training import Recipe

RECIPE = Recipe(epochs=1, batch_size=10)


@pytest.fixture
def spec(tmp_path: Path) -> TaskSpec:
    """A task on a file of 60 grey images, of which it uses some."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (60, 4, 4)).astype(np.uint8), np.arange(60) % 3
    file = tmp_path / "own.npz"
    np.savez(file, train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9])
    return TaskSpec(model="mlp", data=f"npz:{file}", n_train=30, classes=(2, 0), label="mine")


@pytest.fixture(autouse=True)
def no_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_offers", {})


def remove(spec: TaskSpec) -> None:
    """The file is where the driver read it, and on no other node."""
    Path(str(spec.data).removeprefix("npz:")).unlink()


def test_a_shipment_is_the_data_set_to_the_last_part(spec: TaskSpec) -> None:
    data = load_task_data(spec, DataSource())
    found = Shipment.of(data).data
    assert found.fingerprint == data.fingerprint
    assert torch.equal(found.test_split().labels, data.test_split().labels)
    indices = torch.arange(5)
    assert torch.equal(found.batch(found.train, indices)[0], data.batch(data.train, indices)[0])
    vectors = load_data(OwnData((torch.randn(40, 6), torch.arange(40) % 2)))
    assert torch.equal(Shipment.of(vectors).data.train.images(indices), vectors.train.images(indices))


def test_arrays_that_may_not_be_written_to_are_taken_as_they_are(spec: TaskSpec) -> None:
    """As Ray maps them: no copy, and no warning of torch."""
    shipment = Shipment.of(load_task_data(spec, DataSource()))
    for both in shipment.arrays.values():
        for array in both:
            array.flags.writeable = False
    found: Any = shipment.data.train
    assert found.inputs.data_ptr() == shipment.arrays["train"][0].ctypes.data


def test_who_lacks_the_data_takes_what_was_offered_and_who_has_them_does_not(spec: TaskSpec) -> None:
    source, fetched = DataSource(), list[int]()
    data = load_task_data(spec, source)
    shipment = Shipment.of(data)

    def fetch() -> Shipment:
        fetched.append(1)
        return shipment

    accept({data_name(spec): fetch})
    elsewhere = DataSource(root="/elsewhere")  # what is kept in memory is kept by where it lies
    assert load_task_data(spec, elsewhere).fingerprint == data.fingerprint and fetched == []
    remove(spec)
    gone = DataSource(root="/gone")
    task = load_task(spec, 0, gone)
    assert fetched == [1] and task.data.label == "mine" and task.data.fingerprint == data.fingerprint
    with pytest.raises(DataError, match="no such file"):
        load_task_data(spec.model_copy(update={"n_train": 20}), gone)
    assert offered("another") is None


def test_what_does_not_lie_in_memory_or_is_too_large_is_not_sent(
    spec: TaskSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_task_data(spec, DataSource())
    split = FolderSplit([Path("a.png")], torch.zeros(1, dtype=torch.int64), (4, 4))
    with pytest.raises(DataError, match=r"read image by image.*leave --ship-data out"):
        Shipment.of(type(data)(**{**vars(data), "validation": split}))
    monkeypatch.setattr(shipped, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"mine take 0\.0 GiB"):
        Shipment.of(data)


def test_data_are_sent_only_where_that_is_asked_for() -> None:
    asked = []
    for ship in (False, True):
        with Workers(1, ship_data=ship).ray("cpu"):
            asked.append(ships_data())
    assert asked == [False, True] and not ships_data()


# --- on Ray, whose workers share this machine: the file is gone before they start ---


@pytest.fixture
def job(spec: TaskSpec) -> Iterator[Job[Any]]:
    made = Job(TrainSpec(task=spec, seed=0, mask=None, recipe=RECIPE))
    assert made.data is not None  # read here
    yield made


@pytest.mark.ray
def test_workers_without_the_data_get_them_or_say_how(job: Job[Any], local_ray: None) -> None:
    from panning.jobs.ray_executor import RayExecutor

    here = execute(job)
    with shipped.shipping(True), RayExecutor(1) as executor:
        executor.workers.share([job])
        remove(job.spec.task)
        ((_, there),) = executor.run([job])
    assert there == here.model_copy(update={"wall_s": there.wall_s})
    with RayExecutor(1) as executor, pytest.raises(DataError, match=r"On the node .*no such file.*: --ship-data"):
        list(executor.run([job]))


@pytest.mark.ray
def test_workers_of_rollouts_without_the_data_get_them_or_say_how(
    job: Job[Any], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from panning.agents import AgentConfig
    from panning.agents.train import _make_envs
    from panning.data.ray_shipping import Cargo

    load = Cargo.load

    def load_and_remove(self: Cargo, data: Any) -> Any:
        offers = load(self, data)
        Path(str(job.spec.task.data).removeprefix("npz:")).unlink(missing_ok=True)
        return offers

    monkeypatch.setattr(Cargo, "load", load_and_remove)
    config = AgentConfig.model_validate({
        "env": {"tasks": [job.spec.task], "densities": [0.5], "n_rounds": 1, "seeds": [0]},
        "ppo": {"n_rollouts": 1, "n_envs": 1, "n_steps": 2, "batch_size": 2},
    })  # fmt: skip
    with shipped.shipping(True):
        envs = _make_envs(config, 1)
    assert envs.reset().shape[0] == 1
    envs.close()
    envs = _make_envs(config, 1)
    with pytest.raises(DataError, match=r"no such file.*: --ship-data"):
        envs.reset()
    envs.close()
