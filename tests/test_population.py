"""Drawn tasks: networks whose names say their sizes, parts of data sets, and populations of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import panning
from panning.agents import AgentConfig, EnvSpec
from panning.agents.population import Population
from panning.agents.ranges import DensityRange, KeptRange
from panning.agents.train import train_agent
from panning.compaction.cost import multiply_adds
from panning.data import ImageData, load_data
from panning.data.kept import KeptData
from panning.envs import PanningEnv
from panning.envs.panning_env import MAX_TASKS
from panning.episode import episode
from panning.foundation.config import dump_config, load_config, parse_config
from panning.foundation.errors import ConfigError, DataError, DensityError, ModelError, PanningError
from panning.foundation.records import content_key
from panning.jobs.prune import PruneConfig, check_prune, run_prune
from panning.masks.layout import prunable_layout
from panning.masks.network import described_network
from panning.models import build_model
from panning.models.sized import parse_sizes
from panning.pruners import source_counts
from panning.tasks import DataSource, TaskSpec, load_task_data

DIGITS: dict[str, Any] = {"data": "digits", "shape": (1, 8, 8), "classes": (3, 10), "n_train": (100, 400)}
CIFAR: dict[str, Any] = {"data": "npz:cifar10.npz", "shape": (3, 32, 32), "sides": (16, 24, 32)}
POPULATION = Population(n=6, seed=2, data=[DIGITS, CIFAR])


def sized(name: str, shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    return build_model(name, input_shape=shape, n_classes=5, seed=0)


# --- networks by their sizes ---


def test_a_name_says_the_layers() -> None:
    for name, shapes in [
        ("mlp:16-8", [(16, 64), (8, 16), (5, 8)]),
        ("plain:4-6,kernel=5", [(4, 1, 5, 5), (6, 4, 5, 5), (5, 6)]),
        ("plain:4,layers=2,hidden=7", [(4, 1, 3, 3), (4, 4, 3, 3), (7, 4 * 4 * 4), (5, 7)]),
        ("residual:4-6", [(4, 1, 3, 3), *[(4, 4, 3, 3)] * 2, (6, 4, 3, 3), (6, 6, 3, 3), (6, 4, 1, 1), (5, 6)]),
    ]:
        assert list(prunable_layout(sized(name)).shapes) == shapes, name
        normed = sized(name + ",norm=batch")
        n_layers, n_norms = len(shapes), sum("Norm" in type(part).__name__ for part in normed.modules())
        assert n_norms == n_layers - 1, name
        assert list(prunable_layout(normed).shapes) == shapes
        assert not any("Norm" in type(part).__name__ for part in sized(name).modules())


def test_named_sizes_are_the_networks_of_the_table() -> None:
    for name, by_sizes, shape in [
        ("lenet300_100", "mlp:300-100", (1, 28, 28)),
        ("resnet20", "residual:16-32-64,norm=batch,blocks=3", (3, 32, 32)),
    ]:
        one, other = sized(name, shape).state_dict(), sized(by_sizes, shape).state_dict()
        assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_the_same_network_has_one_name() -> None:
    task = TaskSpec(model="residual:8-16,norm=none,kernel=5,blocks=2", data="digits")
    assert task.model == "residual:8-16,blocks=2,kernel=5"
    assert parse_sizes(str(task.model)).text == task.model


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 15, 13)])
@pytest.mark.parametrize(
    "name", ["mlp:9-5", "plain:4-6-5,layers=2,kernel=5", "plain:4-4-4-4,hidden=7-3", "residual:4-6-3,blocks=2"]
)
def test_sizes_tell_weights_and_work(name: str, shape: tuple[int, int, int]) -> None:
    network, layers = sized(name, shape), parse_sizes(name).layers_on(shape, 5)
    found = prunable_layout(network)
    assert sorted(layer.n_weights for layer in layers) == sorted(found.sizes)
    assert sum(layer.n_weights * layer.uses for layer in layers) == multiply_adds(network, shape, found).total


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain:8,kernel=4", "kernel: must be odd"),
        ("plain:", "widths.0: must be a whole number"),
        ("mlp:8,layers=2", "layers: unknown key"),
        ("mlp:8,norm=batch,norm=none", "something twice"),
        ("mlp:8,widths=9", "widths behind the colon and again"),
        ("residual:9999", "widths.0"),
    ],
)
def test_a_name_without_sizes_is_refused(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        sized(name)
    with pytest.raises(ConfigError, match=said):
        TaskSpec(model=name, data="digits")


def test_sizes_of_images_are_said() -> None:
    with pytest.raises(ModelError, match="takes inputs"):
        sized("plain:8", (64,))
    assert sized("mlp:8", (64,))(torch.zeros(2, 64)).shape == (2, 5)


def test_blocks_without_norms_start_at_the_scale_of_one() -> None:
    """He's scale without it: each block doubles the variance."""
    torch.manual_seed(0)
    images = torch.randn(32, 16, 8, 8)
    net: Any = build_model("residual:16,blocks=8", input_shape=(16, 8, 8), n_classes=5, seed=0)
    with torch.no_grad():
        before = net.relu(net.norm(net.conv(images)))
        growth = net.stages(before).pow(2).mean() / before.pow(2).mean()
    assert 1 < growth < 6


def test_depth_is_no_hindrance_to_the_signal() -> None:
    inputs = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name in ("plain:8-8,layers=3", "plain:8-8-8-8,layers=3,norm=batch", "residual:8-8-8,blocks=3"):
        with torch.no_grad():
            spread = sized(name).train()(inputs).std(0).mean()
        assert 0.05 < spread < 5, name


def test_masks_and_commands_take_the_name(tmp_path: Path) -> None:
    config = parse_config(PruneConfig, {
        "task": {"model": "plain:4-8,norm=batch", "data": "digits"}, "density": 0.3, "method": "snip",
    }, "it")  # fmt: skip
    run_prune(check_prune(config), tmp_path)
    masks = panning.load_masks(next(tmp_path.glob("*.safetensors")))
    assert masks.manifest["model"] == "plain:4-8,norm=batch"
    network, shape, _ = described_network(tmp_path / "mask.safetensors", masks, masks.manifest["model"])
    assert shape == (1, 8, 8) and network.state_dict().keys() >= set(masks)


# --- parts of data ---


def test_classes_are_numbered_anew_and_stay_in_their_part() -> None:
    whole, part = load_data("digits"), load_data("digits", classes=(7, 2))
    assert part.n_classes == 2 and part.train.labels.unique().tolist() == [0, 1]
    for split, of_part in ((whole.train, part.train), (whole.validation, part.validation)):
        for new, old in enumerate((7, 2)):
            there, here = torch.nonzero(split.labels == old)[:, 0], torch.nonzero(of_part.labels == new)[:, 0]
            assert torch.equal(split.images(there), of_part.images(here))
    assert len(part.test_split()) == int(torch.isin(whole.test_split().labels, torch.tensor([2, 7])).sum())
    assert part.test_split().labels.unique().tolist() == [0, 1]


def test_smaller_images_are_means() -> None:
    whole, small = load_data("digits"), load_data("digits", side=4)
    first = torch.arange(5)
    means = whole.train.images(first).float().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert torch.equal(small.train.images(first), means.round().to(torch.uint8))
    assert small.input_shape == small.test_split().image_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"classes": (3, 10)}, r"classes has \[10\], but the classes of Digits are 0..9"),
        ({"side": 9}, "side is 9, but the images of Digits have 8x8 pixels"),
        ({"classes": (1, 2), "n_train": 1}, "allowed is 2.."),
    ],
)
def test_parts_that_are_not_there_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_data("digits", **keys)


def test_tasks_without_parts_are_filed_as_before() -> None:
    task = TaskSpec(model="mlp", data="digits")
    assert not {"side", "classes"} & set(task.model_dump(mode="json"))
    assert content_key(task.model_dump(mode="json")) == "18c1337c3d2522dfe0e6"


def test_data_of_one_part_are_held_once() -> None:
    tasks = [TaskSpec(model=model, data="digits", classes=(1, 2)) for model in ("mlp:8", "mlp:9")]
    one, other = (load_task_data(task, DataSource()) for task in tasks)
    assert one is other and one.n_bytes == (len(one.train) + len(one.validation)) * 64


def test_small_data_are_kept_and_large_ones_in_small_number() -> None:
    data, loads = load_data("digits"), list[int]()
    kept = KeptData(n=2, n_bytes=3 * data.n_bytes)

    def load(key: int) -> ImageData:
        return kept.get(key, lambda: loads.append(key) or data)  # type: ignore[func-returns-value]

    for key in (0, 1, 2, 0, 3, 0, 1):  # three fit; 1 was used longest ago when 3 came
        assert load(key) is data
    assert loads == [0, 1, 2, 3, 1]
    kept.n_bytes = 0
    for key in (5, 6, 5):
        load(key)
    assert loads[5:] == [5, 6]


# --- populations ---


def test_the_first_tasks_stay_the_first() -> None:
    more = POPULATION.model_copy(update={"n": 15}).tasks
    assert more[:6] == POPULATION.tasks and len(set(more)) == 15
    assert POPULATION.model_copy(update={"seed": 3}).tasks != POPULATION.tasks


def test_a_part_that_is_left_out_changes_no_other_task() -> None:
    whole = POPULATION.model_copy(update={"n": 60}).tasks
    assert {str(task.model).partition(":")[0] for task in whole} == {"mlp", "plain", "residual"}
    assert {"norm=batch" in str(task.model) for task in whole} == {True, False}
    of: dict[str, Any] = {
        "residual": lambda task: task.model.startswith("residual"), "norm": lambda task: "norm=batch" in task.model,
        "no_norm": lambda task: "norm=batch" not in task.model, "npz:cifar10.npz": lambda task: "cifar" in task.data,
    }  # fmt: skip
    for name, is_of in of.items():
        rest = POPULATION.model_copy(update={"n": 20, "without": (name,)}).tasks
        assert list(rest) == [task for task in whole if not is_of(task)][:20], name


def test_in_a_balanced_population_no_family_is_short_of_norms_or_data() -> None:
    more = POPULATION.model_copy(update={"n": 12 * 3, "balanced": True})
    of = {(str(t.model).partition(":")[0], "norm=batch" in str(t.model), str(t.data)) for t in more.tasks[:12]}
    assert len(of) == 12, "each family, with and without norms, on each of the two data sets"
    assert more.model_copy(update={"n": 6}).tasks == more.tasks[:6]
    rest = more.model_copy(update={"n": 10, "without": ("residual",)})
    assert list(rest.tasks) == [task for task in more.tasks if "residual" not in str(task.model)][:10]


def test_draws_are_what_they_were() -> None:
    """Agents' identities name a population by its ranges and seed: other draws would be another training."""
    assert [(task.model, task.data, task.side, task.classes, task.n_train) for task in POPULATION.tasks[:3]] == [
        ("residual:8-8-10,norm=batch", "npz:cifar10.npz", 16, None, None),
        ("plain:4,norm=batch,layers=3,kernel=5,hidden=115-53", "digits", None, (0, 2, 3, 4, 5, 6, 7, 9), 250),
        ("mlp:63-37-49", "npz:cifar10.npz", None, None, None),
    ]


def test_bounds_hold() -> None:
    bounds = {"n_weights": (5_000, 20_000), "most_multiply_adds": 3e5, "most_layers_without": 4}
    for task in POPULATION.model_copy(update={"n": 10, **bounds}).tasks:
        shape = {"digits": (1, 8, 8)}.get(str(task.data), (3, task.side or 32, task.side or 32))
        network = build_model(task.model, input_shape=shape, n_classes=len(task.classes or range(10)), seed=0)
        weights = prunable_layout(network)
        assert 5_000 <= weights.n_prunable <= 20_000 and multiply_adds(network, shape, weights).total <= 3e5
        assert "norm=batch" in str(task.model) or "residual" in str(task.model) or len(weights.names) <= 4


def test_what_cannot_be_drawn_is_said() -> None:
    for keys, said in [
        ({"without": ("residuals",)}, "Unknown part of the population 'residuals'. Did you mean 'residual'"),
        ({"without": ("mlp", "plain", "residual")}, "leaves out all of mlp, plain, residual"),
        ({"data": [DIGITS, DIGITS]}, "one data set stands twice"),
        ({"data": [{**DIGITS, "classes": (3, 11)}]}, r"must lie in 2..10"),
        ({"data": [{**DIGITS, "n_train": (5, 20)}]}, "below one image of each of 10 classes"),
        ({"data": [{**DIGITS, "sides": (9,)}]}, "only made smaller"),
        ({"data": [{**DIGITS, "data": "digit"}]}, "Did you mean 'digits'"),
        ({"mlp": {"layers": (3, 1)}}, "the lower end stands first"),
    ]:
        with pytest.raises(ConfigError, match=said):
            parse_config(Population, {"n": 3, "data": [DIGITS], **keys}, "it")
    with pytest.raises(ConfigError, match="in a row none is new"):
        _ = Population(n=3, data=[DIGITS], n_weights=(1, 2)).tasks


# --- agents on populations ---

ENV: dict[str, Any] = {
    "tasks": [{"model": "mlp:12", "data": "digits", "n_train": 100}], "densities": {"low": 0.1, "high": 0.4, "n": 3},
    "population": {"n": 3, "data": [{**DIGITS, "n_train": (100, 120)}], "n_weights": (500, 3000)}, "seeds": [1],
    "n_rounds": 1,
}  # fmt: skip


def test_densities_of_a_range_lie_evenly_in_the_log() -> None:
    env = EnvSpec.model_validate(ENV)
    assert env.densities == (0.1, 0.2, 0.4) == DensityRange(low=0.1, high=0.4, n=3).values
    assert parse_config(EnvSpec, json.loads(env.model_dump_json()), "again") == env
    with pytest.raises(ConfigError, match=r"densities: low is 0.4, but must be below high"):
        parse_config(EnvSpec, {**ENV, "densities": {"low": 0.4, "high": 0.1, "n": 3}}, "it")


def test_targets_are_what_units_keep() -> None:
    env = parse_config(EnvSpec, {
        "population": {**ENV["population"], "kept_fan_in": {"low": 2, "high": 32, "n": 3, "most": 0.25}}, "seeds": [1],
        "n_rounds": 1, "observations": ["kept_fan_in"],
    }, "it")  # fmt: skip
    assert (
        env.targets[0]
        == KeptRange(low=2, high=32, n=3, most=0.25).densities([25, 175, 175, 7])
        == (0.0416, 0.166, 0.25)
    )
    made = env.make(DataSource())
    for number, targets in enumerate(env.targets):
        assert targets[-1] == 0.25
        seen = [made.reset(options={"task": number, "density": density})[0] for density in targets[:-1]]
        assert np.allclose(np.ravel(seen), np.log10([2, 8][: len(seen)]) / 3, atol=1e-3)
    drawn = {made.reset(seed=seed, options={"task": 0})[1]["target_density"] for seed in range(20)}
    assert drawn == set(env.targets[0])


def test_named_tasks_have_targets_beside_those_of_drawn_ones() -> None:
    population = {**ENV["population"], "kept_fan_in": {"low": 2, "high": 8, "n": 2}}
    env = parse_config(EnvSpec, {**ENV, "population": population}, "it")
    assert env.targets[0] == env.densities and len(env.targets) == 4 and len(set(env.targets[1:])) == 3
    again = parse_config(EnvSpec, json.loads(env.model_dump_json()), "again")
    assert again == env and again.targets == env.targets
    for given, said in [
        ({"population": population, "densities": [0.1]}, "no task has them"),
        ({"population": population, "tasks": ENV["tasks"]}, "at least one is needed"),
        ({"population": {**population, "kept_fan_in": {"low": 8, "high": 2, "n": 2}}}, "must be below high"),
    ]:
        with pytest.raises(ConfigError, match=f"densities: .*{said}|kept_fan_in: .*{said}"):
            parse_config(EnvSpec, given, "it")


def test_an_environment_takes_densities_for_each_task() -> None:
    env = PanningEnv(["mlp:12/digits", "mlp:13/digits"], [[0.3], [0.2, 0.1]], n_rounds=1)
    found = {(info["task"], info["target_density"]) for _, info in (env.reset(seed=seed) for seed in range(20))}
    assert found == {(0, 0.3), (1, 0.2), (1, 0.1)}
    for given, said in [
        ([[0.3]], "1 lists for 2 tasks"),
        ([[0.3], []], "densities is empty"),
        ([[0.3], 0.2], r"Density is \[0.3\]"),
        (["0.3"], "Density is .0.3."),
    ]:
        with pytest.raises(PanningError, match=said):
            PanningEnv(["mlp:12/digits", "mlp:13/digits"], given)


def test_an_agent_trains_on_drawn_tasks(tmp_path: Path) -> None:
    config = parse_config(AgentConfig, {
        "env": ENV, "ppo": {"n_rollouts": 2, "n_envs": 2, "n_steps": 3, "batch_size": 6},
    }, "it")  # fmt: skip
    assert len(config.env.every_task) == 4 and config.env.every_task[0] == config.env.tasks[0]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(AgentConfig, tmp_path / "config.yaml") == config
    policy = train_agent(config, tmp_path / "agent", cache=None)
    assert policy.facts["config"]["env"]["population"]["n"] == 3
    with pytest.raises(ConfigError, match="networks of a population are drawn"):
        config.with_network("mlp", None)


def test_an_agent_needs_tasks_and_weights() -> None:
    with pytest.raises(ConfigError, match="tasks: at least one is needed, or a population"):
        parse_config(EnvSpec, {"densities": [0.1]}, "it")
    low = parse_config(AgentConfig, {"env": {**ENV, "densities": [0.0015]}}, "it")
    with pytest.raises(DensityError, match="mlp:12 on digits: "):
        train_agent(low, Path("nowhere"), cache=None)


def test_agents_without_populations_keep_their_identity() -> None:
    env = EnvSpec.model_validate({"tasks": [{"model": "mlp", "data": "digits"}], "densities": [0.05]})
    for dumped in (env.model_dump(), env.model_dump(mode="json")):
        assert not {"population", "observations"} & set(dumped)
    assert content_key(env.model_dump(mode="json")) == "3bcedd07115d67754e8e"


def test_counts_of_quotas_are_found_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def counted(problem: Any, *args: Any, listen: Any) -> Any:
        asked.append((problem.seed, *args))
        return source_counts(problem, *args, listen)

    monkeypatch.setattr(episode, "source_counts", counted)
    tasks = [TaskSpec(model="mlp:11", data="digits", n_train=100)]
    for _ in range(2):
        env = PanningEnv(tasks, [0.2, 0.3], [0, 1], n_rounds=1, action={"quotas": ["erk"]})
        for seed, density in ((0, 0.2), (1, 0.2), (0, 0.3), (0, 0.2)):
            env.reset(options={"seed": seed, "density": density})
            env.step(env.spec_of_action.encode({"snip": 1.0}, quotas={"erk": 1.0}))
    assert asked == [(0, "erk", 0.2), (1, "erk", 0.2), (0, "erk", 0.3)]


def test_an_environment_holds_a_bounded_number_of_tasks() -> None:
    env = PanningEnv(["mlp:12/digits"], [0.3], range(MAX_TASKS + 5), n_rounds=1)
    first, _ = env.reset(options={"seed": 0})
    for seed in range(MAX_TASKS + 4):
        env.reset(options={"seed": seed})
    assert len(env._tasks) == MAX_TASKS
    assert np.array_equal(env.reset(options={"seed": 0})[0], first)
