"""Devices: names, what lies where, and the same results everywhere.

``cuda`` and ``mps`` need the device (mark ``gpu``). The pretended ones run on every machine: tensors say that they lie on a
device, mixing devices fails as it would there, and results are those of the CPU to the last bit (``pretended.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pretended as pretending
import pytest
import torch
from test_search import CONFIG
from torch import Tensor, nn
from toys import flat_mask, residual_problem

import panning
from panning.alive.connectivity import Connectivity
from panning.alive.report import report
from panning.cli import main
from panning.cli.output import note_slow_precision
from panning.compaction import compact
from panning.data import augment_batch, load_data
from panning.envs import PanningEnv
from panning.export.folder import load_compact, save_compact
from panning.foundation import device as devices
from panning.foundation.config import parse_config
from panning.foundation.device import accelerator_name, emulates_bfloat16, find_device, scoring_device
from panning.foundation.errors import ConfigError, DeviceError
from panning.foundation.machine import environment_info
from panning.foundation.progress import Event
from panning.foundation.ray_gpus import gpu_share
from panning.foundation.records import read_records
from panning.jobs.outcome import CellOutcome
from panning.jobs.spec import CellSpec, PruneSpec
from panning.jobs.store import JobStore
from panning.jobs.work import Job, execute
from panning.masks.masks import Masks
from panning.measure.items import ITEMS
from panning.measure.run import cases
from panning.measure.workbench import Workbench
from panning.scoring.problem import Problem
from panning.searches.config import SearchConfig
from panning.tasks import DataSource, Task, TaskSpec, data_fingerprint, load_task
from panning.training import DYNAMICS, Movement, Recipe, TrainResult, evaluate, train
from panning.training.moving.methods import first_mask

SPEC = TaskSpec(model="lenet300_100", data="digits", n_train=60, scoring_per_class=2)
RECIPE = Recipe(epochs=1, batch_size=20, learning_rate=0.05, compact=False)
IMAGES = torch.randn(12, 2, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
GPU = pytest.mark.gpu


@dataclass(frozen=True)
class Place:
    """A device under test.

    Attributes:
        waits: what made the host wait for a pretended device.
    """

    device: torch.device
    pretended: bool = False
    waits: list[str] = field(default_factory=list)

    @property
    def source(self) -> DataSource:
        return DataSource(device=str(self.device))

    def has(self, *tensors: Tensor) -> bool:
        return all(tensor.device.type == self.device.type for tensor in tensors)

    def agrees(self, found: Tensor, wanted: Tensor) -> bool:
        """Equal, on a real accelerator up to rounding; of masks, all but a few ties."""
        found, wanted = found.detach().cpu(), wanted.detach()
        if self.pretended or self.device.type == "cpu":
            return torch.equal(found, wanted)
        if wanted.dtype == torch.bool:
            return int((found != wanted).sum()) <= 0.05 * wanted.numel() and found.sum() == wanted.sum()
        return torch.allclose(found, wanted, rtol=1e-2, atol=1e-3)


@pytest.fixture(
    params=[
        "cpu", "pretended cuda", "pretended mps", pytest.param("cuda", marks=GPU), pytest.param("mps", marks=GPU),
    ]
)  # fmt: skip
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Every device that is there, and what is pretended to be one."""
    *pretended, kind = request.param.split()
    if not pretended and kind != "cpu" and devices.ACCELERATORS[kind]() == 0:
        pytest.skip(f"this machine has no {kind} device")
    if pretended:
        for name in devices.ACCELERATORS:
            monkeypatch.setitem(devices.ACCELERATORS, name, lambda n=int(name == kind): n)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a pretended GPU")
        monkeypatch.setattr(f"torch.{kind}.get_rng_state", torch.get_rng_state)  # what is computed there draws here
        monkeypatch.setattr(
            "torch.backends.mps.is_macos_or_newer", lambda *version: True
        )  # older torch asks for bfloat16
    with pretending.pretended(kind) if pretended else nullcontext([]) as waits:
        yield Place(torch.device(kind), bool(pretended), waits)


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in devices.ACCELERATORS:
        monkeypatch.setitem(devices.ACCELERATORS, name, lambda: 0)


def on(place: Place) -> Problem:
    """A residual network's problem with the network on a device."""
    problem = residual_problem()
    problem.model.to(place.device)
    return problem


def small(task: Task) -> Task:
    """A task with few images to validate on."""
    part = task.data.validation.subset(torch.arange(20))
    return replace(task, labelled=replace(task.data, validation=part))


def on_and_off(place: Place) -> tuple[Task, Task]:
    """A task on a device, and on the CPU."""
    return small(load_task(SPEC, 0, place.source)), small(load_task(SPEC, 0))


@pytest.mark.parametrize("name", ["tpu", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:007", "cpu:0", "CUDA", ""])
def test_a_name_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"'{name}' is no device; allowed are auto, cpu, cuda, cuda:N or mps"):
        find_device(name)


def test_a_device_that_is_not_there_is_refused_with_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "ACCELERATORS", {"cuda": lambda: 2, "mps": lambda: 0})
    with pytest.raises(DeviceError, match="'cuda:7' is not there; this machine has cpu, cuda:0, cuda:1. Take one of"):
        find_device("cuda:7")
    for number in (200, 256, 10**30):  # as eight bits, which torch takes, -56 and 0
        with pytest.raises(DeviceError, match=f"'cuda:{number}' is not there"):
            find_device(f"cuda:{number}")
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


def test_a_device_in_a_config_reaches_its_jobs_and_is_no_part_of_the_run() -> None:
    run = parse_config(SearchConfig, {**CONFIG, "device": "auto"}, "search.yaml")
    assert run.source.device == "auto" and run.with_data(None, False, "cuda:1").source.device == "cuda:1"
    assert run.identity(None) == run.with_data(None, False, "cpu").identity(None)
    with pytest.raises(DeviceError, match="'tpu' is no device"):
        run.with_data(None, False, "tpu")
    with pytest.raises(DeviceError, match="'' is no device"):
        run.with_data(None, False, "")


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "--model", "mlp", "--data", "digits", "--density", "0.1"],
        ["train", "--model", "mlp", "--data", "digits"],
        ["bench", "speed", "--model", "mlp"],
        ["demo", "--workers", "0"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(("device", "message"), [("cuda", "this machine has cpu"), ("tpu", "is no device")])
@pytest.mark.usefixtures("no_accelerator")
def test_commands_refuse_a_device_before_any_work(
    command: list[str], device: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--device", device])
    assert ended.value.code == 2 and message in " ".join(capsys.readouterr().err.split()) and not os.listdir()


@pytest.mark.parametrize(
    ("device", "n_gpus", "n_workers", "share"),
    [
        ("cpu", 4, 8, 0.0), ("auto", 0, 8, 0.0), ("mps", 0, 2, 0.0), ("cuda", 1, 4, 0.25), ("auto", 1, 6, 0.1666),
        ("cuda", 2, 3, 0.5), ("cuda", 8, 2, 1.0),
    ],
)  # fmt: skip
def test_workers_share_the_gpus_of_a_cluster(
    device: str, n_gpus: int, n_workers: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 16.0, **({"GPU": float(n_gpus)} if n_gpus else {})})
    assert gpu_share(device, n_workers) == share
    assert share == 0 or int(1 / share + 1e-9) * n_gpus >= n_workers


def test_a_gpu_that_ray_cannot_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(DeviceError, match="The Ray cluster has no GPU: compute on the device 'cpu'"):
        gpu_share("cuda", 2)
    with pytest.raises(DeviceError, match="Ray chooses the GPU of each worker, so 'cuda:1'.*CUDA_VISIBLE_DEVICES"):
        gpu_share("cuda:1", 2)


def test_data_lie_on_the_device_and_are_the_same(place: Place) -> None:
    data = load_data("digits", n_train=60)
    moved, order = data.to(place.device), torch.arange(10)
    inputs, labels = moved.batch(moved.train, order)
    wanted, wanted_labels = data.batch(data.train, order)
    assert place.has(inputs, labels, moved.test_split().labels)
    assert place.agrees(inputs, wanted) and torch.equal(labels.cpu(), wanted_labels)
    inputs, labels = data.batch(data.train, order, place.device)  # of data that stay on the CPU
    assert place.has(inputs, labels) and place.agrees(inputs, wanted)


def test_a_seed_augments_alike_everywhere(place: Place) -> None:
    inputs = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    moved, here = (
        augment_batch(x, "crop_flip", torch.Generator().manual_seed(0)) for x in (inputs.to(place.device), inputs)
    )
    assert place.has(moved) and torch.equal(moved.cpu(), here)


def test_a_task_has_its_network_and_data_on_the_device(place: Place) -> None:
    task, wanted = load_task(SPEC, 0, place.source), load_task(SPEC, 0)
    inputs, targets = task.problem.batch(0)
    scored = scoring_device(place.device)
    assert all(one.device.type == scored.type for one in (inputs, targets, task.problem.weight))
    assert place.has(task.data.train.labels, *task.network().parameters())
    assert torch.equal(task.problem.weight.cpu(), wanted.problem.weight)
    assert place.agrees(inputs, wanted.problem.batch(0)[0])
    assert data_fingerprint(SPEC, place.source) == data_fingerprint(SPEC, DataSource())


@pytest.mark.parametrize(
    "method",
    ["random", "snip", "grasp", "synflow", "synflow_l2", "ntk_sap", "prospr", "gcs_group", "phew", "panning_staged"],
)
def test_every_kind_of_signal_gives_the_mask_of_the_cpu(place: Place, method: str) -> None:
    model = residual_problem().model
    n_rounds = None if method == "phew" else 2 if method in ("synflow", "ntk_sap", "panning_staged") else 1
    arguments: dict[str, Any] = {"density": 0.15, "method": method, "n_rounds": n_rounds}
    masks = panning.prune(model, (IMAGES, LABELS), device=str(place.device), **arguments)
    wanted = panning.prune(residual_problem().model, (IMAGES, LABELS), **arguments)
    assert masks.flat.device.type == "cpu" and next(model.parameters()).device.type == "cpu"
    assert place.agrees(masks.flat, wanted.flat)


def test_a_network_on_the_device_is_scored_there_and_stays(place: Place) -> None:
    problem = on(place)
    masks = panning.prune(problem.model, (IMAGES, LABELS), density=0.1, method="snip", all_alive=True)
    wanted = panning.prune(residual_problem().model, (IMAGES, LABELS), density=0.1, method="snip", all_alive=True)
    assert place.has(*problem.model.parameters()) and place.agrees(masks.flat, wanted.flat)
    assert masks.effective_density(problem.model) == masks.density


def test_what_is_alive_is_the_same_for_masks_of_either_device(place: Place) -> None:
    problem, mask = on(place), flat_mask(residual_problem().layout, 0.1, seed=3)
    connectivity, wanted = Connectivity.of(problem), Connectivity.of(residual_problem())
    for given in (mask, mask.to(place.device)):
        alive = connectivity.alive(given)
        assert alive.device == given.device and torch.equal(alive.cpu(), wanted.alive(mask))
        assert report(connectivity, given) == report(wanted, mask)
    assert connectivity.smallest_alive() == wanted.smallest_alive()


def test_masks_are_applied_enforced_and_finished_where_the_network_is(place: Place) -> None:
    problem = on(place)
    masks = Masks(problem.layout, flat_mask(problem.layout, 0.2, 0))
    panning.apply_masks(problem.model, masks)
    optimizer = torch.optim.SGD(problem.model.parameters(), 0.1, momentum=0.9)
    panning.enforce_masks(problem.model, masks, optimizer)
    nn.functional.cross_entropy(problem.model(IMAGES.to(place.device)), LABELS.to(place.device)).backward()
    optimizer.step()
    weights = problem.layout.flatten(dict(problem.model.named_parameters()))
    assert place.has(weights) and not weights.cpu()[~masks.flat].any() and weights.cpu()[masks.flat].any()


def trained(task: Task, regime: str, recipe: Recipe = RECIPE, **options: Any) -> tuple[nn.Module, TrainResult]:
    """A training: dense, under a mask, of the compact network, or with masks that move."""
    problem, model = task.problem, task.network()
    movement = masks = None
    if regime in ("fixed", "compact"):
        masks = Masks(problem.layout, flat_mask(problem.layout, 0.02, 0))
        recipe = recipe.model_copy(update={"compact": regime == "compact"})
    elif regime != "dense":
        row = DYNAMICS[regime]
        changed = {"method": "snip", "after": 1} if regime == "early" else {"every": 1}
        method = row.method.model_copy(update=changed)
        masks = first_mask(problem, method, 0.2, row)
        movement = Movement(method, problem, 0.2, all_alive=regime == "early")
    given = {"masks": masks, "movement": movement, "validate_every_epoch": False, **options}
    return model, train(model, task.data, recipe, seed=0, **given)


@pytest.mark.parametrize("regime", ["dense", "fixed", "compact", "rigl", "dpf", "snfs", "early"])
@pytest.mark.filterwarnings("ignore:The density of this method falls")
def test_a_training_on_the_device_is_that_of_the_cpu(
    place: Place, regime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panning.training.regimes.COMPACT_FROM_STEPS", 1)
    task, reference = on_and_off(place)
    model, result = trained(task, regime)
    wanted_model, wanted = trained(reference, regime)
    assert place.has(*model.parameters())
    assert place.agrees(torch.tensor(list(result.final.values())), torch.tensor(list(wanted.final.values())))
    if result.masks is not None and wanted.masks is not None:
        assert result.masks.flat.device.type == "cpu" and place.agrees(result.masks.flat, wanted.masks.flat)
    if place.pretended:
        assert all(place.agrees(p, q) for p, q in zip(model.parameters(), wanted_model.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available", "ignore:.*MPS")
def test_data_on_the_cpu_serve_a_network_elsewhere(place: Place, precision: str) -> None:
    task, reference = on_and_off(place)
    here = reference.data
    found = evaluate(task.network(), here, here.validation, precision)
    assert found["loss"] == pytest.approx(evaluate(reference.network(), here, here.validation)["loss"], rel=0.02)
    model = task.network()
    result = train(model, here, RECIPE, seed=0)
    assert place.has(*model.parameters()) and place.agrees(
        torch.tensor(result.final["train_loss"]), torch.tensor(trained(reference, "dense")[1].final["train_loss"])
    )


@pytest.mark.parametrize("regime", ["dense", "fixed"])
def test_no_step_waits_for_the_device(place: Place, regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = on_and_off(place)
    if place.device.type == "cuda" and not place.pretended:
        monkeypatch.setattr("panning.training.loop._train_epoch", _without_waiting())
    waits = []
    for epochs in (1.0, 1.0, 3.0):  # the first fills what is kept for later ones
        place.waits.clear()
        trained(task, regime, RECIPE.model_copy(update={"epochs": epochs, "batch_size": 10}))
        waits.append(len(place.waits))
    # Two epochs more, which send their order and read their loss.
    assert waits[2] - waits[1] == (4 if place.pretended else 0), place.waits


def _without_waiting() -> Any:
    """An epoch's training in which CUDA refuses to wait, but where the loss is read at its end."""
    from panning.training import loop

    run, read = loop._train_epoch, float

    def reading(value: Any) -> float:
        torch.cuda.set_sync_debug_mode("default")
        return read(value)

    def epoch(*args: Any) -> float:
        loop.float = reading  # type: ignore[attr-defined]
        torch.cuda.set_sync_debug_mode("error")
        try:
            return run(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return epoch


@pytest.mark.parametrize("regime", ["dense", "rigl"])
def test_a_checkpoint_of_one_device_is_gone_on_with_on_another(place: Place, regime: str, tmp_path: Path) -> None:
    tasks, longer = on_and_off(place), RECIPE.model_copy(update={"epochs": 2.0})
    whole = trained(tasks[1], regime, longer)[1].final["loss"]

    def stop_in_the_second(event: Event) -> None:
        if event.done == 2:
            raise KeyboardInterrupt

    for number, (first, second) in enumerate((tasks, tasks[::-1])):
        path = tmp_path / f"{number}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            trained(first, regime, longer, checkpoint=path, listen=stop_in_the_second)
        _, result = trained(second, regime, longer, checkpoint=path)
        assert [entry["epoch"] for entry in result.history] == [1, 2]
        assert place.agrees(torch.tensor(result.final["loss"]), torch.tensor(whole))


def test_a_compact_network_lies_on_the_device_and_its_files_do_not_know(place: Place, tmp_path: Path) -> None:
    problem = on(place)
    masks = Masks(problem.layout, flat_mask(problem.layout, 0.1, 0))
    panning.apply_masks(problem.model, masks)
    result = compact(problem.model, masks, (2, 8, 8))
    reference = residual_problem().model
    panning.apply_masks(reference, masks)
    wanted = compact(reference, masks, (2, 8, 8))
    assert place.has(*result.model.parameters(), *result.expand().parameters())
    with torch.no_grad():
        outputs = result.model.eval()(IMAGES.to(place.device))
        assert place.agrees(outputs, wanted.model.eval()(IMAGES))
    save_compact(result, masks, tmp_path)
    loaded = load_compact(residual_problem().model, tmp_path)  # onto the CPU
    with torch.no_grad():
        assert torch.allclose(loaded.model.eval()(IMAGES), outputs.cpu(), atol=1e-4)


def test_an_episode_of_the_environment_is_that_of_the_cpu(place: Place) -> None:
    task = {"model": "lenet300_100", "data": "digits", "n_train": 60, "scoring_per_class": 2}
    reward = {"training": 1.0, "recipe": {"epochs": 1, "batch_size": 30, "learning_rate": 0.05}}
    seen = []
    for device in (str(place.device), "cpu"):
        env = PanningEnv([task], densities=[0.1], n_rounds=2, reward=reward, device=device)
        env.reset(seed=0)
        action = torch.zeros(env.action_space.shape).numpy()
        steps = [env.step(action) for _ in range(2)]
        seen.append(torch.tensor([[*observation, step_reward] for observation, step_reward, *_ in steps]))
    assert place.agrees(*seen)


def test_an_environment_refuses_a_device_by_its_name() -> None:
    with pytest.raises(DeviceError, match="'tpu' is no device"):
        PanningEnv(device="tpu")


def test_a_job_has_the_same_key_everywhere_and_its_record_names_the_accelerator(place: Place, tmp_path: Path) -> None:
    spec = PruneSpec(task=SPEC, seed=0, density=0.1, by={"method": "snip"}, all_alive=True, policy=None)
    job = Job(spec, place.source)
    outcome, wanted = execute(job), execute(Job(spec))
    assert job.key == Job(spec).key and (place.device.type != "cpu" or outcome == wanted)
    assert outcome.metrics.keys() == wanted.metrics.keys() and "accelerator" not in outcome.metrics
    if place.pretended:
        assert outcome.metrics == wanted.metrics and outcome.mask == wanted.mask
    JobStore(tmp_path).put(job, outcome)
    (record,) = read_records(tmp_path / "records.jsonl")
    assert record.environment["hardware"].get("accelerator") == accelerator_name(str(place.device))
    assert (accelerator_name(str(place.device)) is None) == (place.device.type == "cpu")


def test_a_cell_of_a_benchmark_runs_on_the_device(place: Place) -> None:
    by = {"method": "magnitude", "dynamic": {"name": "dpf", "options": {"every": 1}}}
    spec = CellSpec(task=SPEC, seed=0, density=0.1, by=by, all_alive=False, policy=None, recipe=RECIPE)
    outcome, wanted = execute(Job(spec, place.source)), execute(Job(spec))
    assert outcome.error is None and outcome.data == wanted.data
    assert not CellOutcome.model_validate(outcome.metrics).lacking(test=True)
    assert outcome.test_loss == pytest.approx(wanted.test_loss, rel=0.02)
    if place.pretended:
        assert outcome.mask == wanted.mask and outcome.history == wanted.history


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def test_a_command_leaves_what_does_not_know_the_device(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for device in (str(place.device), "cpu"):
        common = ["--model", "mlp", "--data", "digits", "--device", device]
        mask, training = ["--mask", f"p-{device}/mask.safetensors"], ["--epochs", "0.2", "--out", f"t-{device}"]
        run("prune", *common, "--density", "0.1", "--method", "snip", "--out", f"p-{device}")
        run("train", *common, *mask, *training)
    kind = str(place.device)
    masks = [panning.load_masks(f"p-{device}/mask.safetensors") for device in (kind, "cpu")]
    assert place.agrees(masks[0].flat, masks[1].flat)
    (record,), (other,) = (read_records(f"t-{device}/records.jsonl") for device in (kind, "cpu"))
    assert record.key == other.key or not place.pretended
    assert record.metrics["test_accuracy"] == pytest.approx(other.metrics["test_accuracy"], abs=0.05)
    assert record.environment["hardware"].get("accelerator") == accelerator_name(kind)


def test_items_of_the_speed_benchmark_run_on_the_device(place: Place) -> None:
    if scoring_device(place.device) != place.device:
        with pytest.raises(DeviceError, match="there is nothing to time"):
            cases(["mlp"], [1], device=str(place.device))
        return
    bench = Workbench.of("mlp", (1, 8, 8), 10, 6, str(place.device))
    for name in ("pass", "snip", "alive test"):
        chosen = next(item for title, item in ITEMS.items() if name in title.lower())
        chosen.prepare(bench)()
    assert place.has(bench.inputs, bench.problem.weight, *bench.plain.parameters())


@pytest.mark.parametrize(("precision", "slow"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
def test_a_precision_that_is_slow_here_is_said(
    precision: str, slow: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A processor without bfloat16 trained LeNet-5 in it 7 times more slowly than in float32, and nothing said so."""
    monkeypatch.setattr("panning.foundation.device.emulates_bfloat16", lambda device: slow)
    note_slow_precision({"rungs": [{"recipe": {"precision": precision}}], "recipe": {"precision": "float32"}}, "cpu")
    said = "no bfloat16 of its own" in " ".join(capsys.readouterr().err.split())
    assert said == (precision == "bfloat16" and slow)


def test_bfloat16_is_emulated_where_torch_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    for has in (False, True):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", partial(bool, has))
        assert emulates_bfloat16(torch.device("cpu")) == (not has)
        assert not emulates_bfloat16(torch.device("cuda"))
