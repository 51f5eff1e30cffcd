"""Devices: names, what lies where, and the same results everywhere.

``cuda`` and ``mps`` need the device (mark ``gpu``). ``pretended`` runs on every machine: tensors say that they lie on a
device, and mixing devices fails as it would there (``pretended.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pretended as pretending
import pytest
import torch

from panning.data import augment_batch, load_data
from panning.foundation import device as devices
from panning.foundation.config import parse_config
from panning.foundation.device import accelerator_name, find_device, scoring_device
from panning.foundation.errors import ConfigError, DeviceError
from panning.foundation.machine import environment_info
from panning.search import SearchConfig
from panning.tasks import DataSource, TaskSpec, load_task

SPEC = TaskSpec(model="lenet300_100", data="digits", n_train=200, scoring_per_class=2)


def there(kind: str) -> bool:
    return devices.ACCELERATORS[kind]() > 0


@pytest.fixture(
    params=[
        "cpu",
        "pretended",
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("mps", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Every device that is there."""
    kind = request.param
    if kind in ("cpu", "pretended") or there(kind):
        with pretending.pretended("cuda") if kind == "pretended" else nullcontext():
            if kind == "pretended":
                monkeypatch.setitem(devices.ACCELERATORS, "cuda", lambda: 1)
            yield torch.device("cuda" if kind == "pretended" else kind)
        return
    pytest.skip(f"this machine has no {kind} device")


def same(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type


@pytest.mark.parametrize("name", ["tpu", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA", ""])
def test_a_name_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"'{name}' is no device; allowed are auto, cpu, cuda, cuda:N or mps"):
        find_device(name)


def test_a_device_that_is_not_there_is_refused_with_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "ACCELERATORS", {"cuda": lambda: 2, "mps": lambda: 0})
    with pytest.raises(DeviceError, match="'cuda:7' is not there; this machine has cpu, cuda:0, cuda:1. Take one of"):
        find_device("cuda:7")
    with pytest.raises(DeviceError, match="'mps' is not there"):
        find_device("mps")
    monkeypatch.setitem(devices.ACCELERATORS, "cuda", lambda: 0)
    with pytest.raises(DeviceError, match="this machine has cpu. Take one of them, or 'auto' .*CUDA"):
        find_device("cuda")


def test_auto_prefers_cuda_then_mps_then_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cuda, mps in ((1, 1), (0, 1), (0, 0)):
        monkeypatch.setattr(devices, "ACCELERATORS", {"cuda": lambda n=cuda: n, "mps": lambda n=mps: n})
        found.append(find_device("auto").type)
    assert found == ["cuda", "mps", "cpu"]


def test_scores_of_mps_are_made_on_the_processor() -> None:
    assert [scoring_device(torch.device(kind)).type for kind in ("cpu", "cuda", "mps")] == ["cpu", "cuda", "cpu"]


def test_records_name_an_accelerator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "ACCELERATORS", {"cuda": lambda: 0, "mps": lambda: 0})
    assert accelerator_name("cpu") is None and accelerator_name("auto") is None
    assert accelerator_name("cuda") == "cuda"  # a worker's
    monkeypatch.setitem(devices.ACCELERATORS, "cuda", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert environment_info(accelerator_name("auto"))["hardware"]["accelerator"] == "a GPU"
    assert "accelerator" not in environment_info()["hardware"]


def test_a_config_with_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: .*'cdua' is no device; allowed are auto"):
        parse_config(SearchConfig, {"device": "cdua"}, "search.yaml")


def test_data_lie_on_the_device_and_are_the_same(device: torch.device) -> None:
    data = load_data("digits", n_train=100)
    there = data.to(device)
    order = torch.arange(10)
    inputs, labels = there.batch(there.train, order)
    assert (
        same(inputs.device, device) and same(labels.device, device) and same(there.test_split().labels.device, device)
    )
    wanted, wanted_labels = data.batch(data.train, order)
    assert torch.allclose(inputs.cpu(), wanted, atol=1e-6) and torch.equal(labels.cpu(), wanted_labels)
    inputs, labels = data.batch(data.train, order, device)  # of data that stay on the CPU
    assert same(inputs.device, device) and torch.equal(labels.cpu(), wanted_labels)


def test_a_seed_augments_alike_everywhere(device: torch.device) -> None:
    inputs = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    there, here = (augment_batch(x, "crop_flip", torch.Generator().manual_seed(0)) for x in (inputs.to(device), inputs))
    assert same(there.device, device) and torch.equal(there.cpu(), here)


def test_a_task_has_its_network_and_data_on_the_device(device: torch.device) -> None:
    task = load_task(SPEC, 0, DataSource(device=str(device)))
    inputs, targets = task.problem.batch(0)
    assert same(task.device, device) and same(task.data.train.labels.device, device)
    assert all(same(x.device, scoring_device(device)) for x in (inputs, targets, task.problem.weight))
    wanted = load_task(SPEC, 0)
    assert torch.equal(task.problem.weight.cpu(), wanted.problem.weight)
    assert torch.allclose(inputs.cpu(), wanted.problem.batch(0)[0], atol=1e-6)
