"""A caller's own networks, data and agents, from Python: tasks, the environment, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import panning
from panning.agents import export_policy, save_policy
from panning.data import OwnData, load_data
from panning.envs import PanningEnv
from panning.envs.arguments import as_task
from panning.foundation.config import parse_config
from panning.foundation.errors import ConfigError, DataError, ModelError, PolicyError
from panning.foundation.own import PREFIX
from panning.models.own import OwnModel, fingerprint
from panning.tasks import TaskSpec, check_task_names, load_task

#: SynFlow alone, half of the way.
HALF = np.array([-1, -1, -1, 1, 0, -1], np.float32)


class Net(nn.Module):
    """Of a kind that no table has: two branches."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x)) * torch.sigmoid(self.right(x)))


def seeded(seed: int = 0, width: int = 8) -> Net:
    torch.manual_seed(seed)
    return Net(width)


def samples(n: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :3].argmax(1)


# --- networks ---


def test_a_module_is_known_by_its_content() -> None:
    name = OwnModel(seeded()).name
    assert name == OwnModel(seeded()).name and name.startswith("own:Net-")
    frozen = seeded()
    frozen.head.bias.requires_grad_(False)
    others = [seeded(1), seeded(width=9), frozen, nn.Sequential(nn.Linear(6, 3))]
    assert len({name, *(OwnModel(other).name for other in others)}) == 5


def test_the_code_of_a_forward_is_content_too() -> None:
    class One(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    class Two(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh()

    Two.__name__ = Two.__qualname__ = One.__name__
    one, two = One(2, 2), Two(2, 2)
    two.load_state_dict(one.state_dict())
    assert repr(one) == repr(two) and fingerprint(one) != fingerprint(two)


def test_a_module_is_copied_at_once_and_is_the_network_of_every_seed() -> None:
    net = seeded()
    task = TaskSpec(model=net, data=samples())
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net.head.weight.zero_()
    for seed in (0, 1):
        made = load_task(task, seed).problem.model
        assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_factory_makes_a_network_for_each_seed_and_is_known_by_what_it_makes() -> None:
    task = TaskSpec(model=Net, data=samples())
    assert not torch.equal(load_task(task, 0).problem.weight, load_task(task, 1).problem.weight)
    settled = task.settled()
    assert settled == TaskSpec(model=lambda: Net(), data=samples()).settled().model_copy(
        update={"model": settled.model}
    )
    assert settled.model.name != TaskSpec(model=lambda: Net(9), data=samples()).settled().model.name
    assert check_task_names(settled).model_dump(mode="json")["model"] == settled.model.name


def test_a_factory_that_ignores_the_seed_is_refused() -> None:
    widths = iter(range(4, 99))
    task = TaskSpec(model=lambda: Net(next(widths)), data=samples())
    with pytest.raises(ModelError, match="makes another network each time"):
        task.settled()


def test_a_network_that_does_not_fit_the_data_is_said_at_once() -> None:
    with pytest.raises(ModelError, match=r"gives \[2, 3\], but must give \[2, 2\]"):
        TaskSpec(model=seeded(), data=(samples()[0], torch.arange(120) % 2)).settled()
    with pytest.raises(ModelError, match=r"of torch.int64: RuntimeError"):
        load_task(TaskSpec(model=seeded(), data=(torch.ones(60, 6, dtype=torch.int64), torch.arange(60) % 3)), 0)


# --- data ---


class Pairs(Dataset[Any]):
    def __init__(self, n: int = 120) -> None:
        self.inputs, self.labels = samples(n)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.labels[index])


def test_tensors_arrays_datasets_and_loaders_are_the_same_data() -> None:
    inputs, labels = samples()
    forms = [(inputs, labels), (inputs.numpy(), labels.numpy()), TensorDataset(inputs, labels), Pairs()]
    forms.append(DataLoader(TensorDataset(inputs, labels), batch_size=7))
    assert len({OwnData(form).content for form in forms}) == 1
    assert [OwnData(form).label for form in forms[2:]] == ["TensorDataset", "Pairs", "TensorDataset"]
    assert OwnData((inputs + 1, labels)).content != OwnData((inputs, labels)).content


def test_a_loader_that_shuffles_is_read_in_one_order_and_keeps_its_own_state() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*samples()), batch_size=7, shuffle=True, generator=generator)
    before, torch_state = generator.get_state(), torch.get_rng_state()
    assert OwnData(loader).content == OwnData(loader).content
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), torch_state)


def test_parts_are_split_off_by_class_where_they_are_not_given() -> None:
    data = load_data(OwnData(samples(300)))
    test = data.test_split()
    sizes = len(data.train), len(data.validation), len(test)
    assert sum(sizes) == 300 and abs(sizes[2] - 60) <= 2 and abs(sizes[1] - 24) <= 2
    given = load_data(OwnData({"train": samples(60), "validation": samples(30, 1), "test": samples(21, 2)}))
    assert [len(part) for part in (given.train, given.validation, given.test_split())] == [60, 30, 21]


def test_images_of_bytes_are_normalised_and_other_inputs_are_used_as_they_are() -> None:
    images = torch.randint(256, (90, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data, labels = load_data(OwnData((images, torch.arange(90) % 3))), torch.arange(10)
    assert abs(float(data.batch(data.train, labels)[0].mean())) < 0.3 and data.dtype == torch.float32
    tokens = load_data(OwnData((images[:, 0, 0].long(), torch.arange(90) % 3)))
    assert tokens.dtype == torch.int64 and tokens.input_shape == (4,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.ones(4, 6), torch.ones(4)), "labels of torch.float32, but must have whole numbers"),
        ((torch.ones(4, 6), torch.ones(3, dtype=torch.int64)), r"inputs \[4, 6\] and labels \[3\]"),
        ((torch.ones(0, 6), torch.ones(0, dtype=torch.int64)), "one label an input"),
        ((torch.ones(4, 6),), "given 1 parts: Tensor"),
        ({"train": samples(), "tset": samples()}, "given a mapping with the keys train, tset"),
        ({"test": samples()}, "given a mapping with the keys test"),
        (torch.ones(4, 6), "given a Tensor"),
        (3, "given a int"),
        ((torch.ones(4), torch.arange(4)), r"inputs \[4\] and labels \[4\]"),
        ({"train": {"a": 1}}, "given a dict"),
        ({"train": "mnist"}, "given a str"),
        (TensorDataset(torch.ones(0, 6), torch.ones(0)), "it is empty"),
        (TensorDataset(torch.ones(4, 6)), "pairs of tensors"),
        ([("a", 1), ("b", 2)], "given 2 parts: tuple, tuple"),
    ],
)
def test_other_data_are_refused_by_a_sentence(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        OwnData(data)
    with pytest.raises(ConfigError, match=message):
        as_task(seeded(), data)


def test_what_the_caller_writes_into_tensors_later_changes_nothing() -> None:
    inputs, labels = samples(60)
    data = OwnData({"train": (inputs, labels[:, None]), "test": (inputs, labels)})
    inputs.zero_()
    assert all(float(split.inputs.abs().sum()) > 0 for split in data.splits.values())
    assert data.splits["train"].labels.shape == (60,)


@pytest.mark.parametrize(
    "values",
    [
        {"model": ["mlp"], "data": "digits"}, {"model": {"mlp": 1}, "data": "digits"}, {"model": 3, "data": "digits"},
        {"model": "mlp", "data": ["digits"]}, {"model": "mlp", "data": {"a": 1}}, {"model": "mlp", "data": {}},
        {"model": "mlp", "data": {"train": "digits"}}, {"model": "mlp", "data": {"train": {"a": [1]}}},
        {"model": "mlp", "data": 3}, {"model": "mlp", "data": None},
    ],
)  # fmt: skip
def test_plain_values_of_a_file_are_names_or_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="task: 1 error"):
        parse_config(TaskSpec, values, "task")


def test_items_that_are_no_tensors_say_which_transform_they_need() -> None:
    class Pictures(Pairs):
        def __getitem__(self, index: int) -> Any:
            return object(), 0

    with pytest.raises(DataError, match="ToTensor"):
        OwnData(Pictures())


def test_a_name_from_a_file_gives_neither_network_nor_data() -> None:
    task = TaskSpec(model=seeded(), data=samples())
    named = TaskSpec.model_validate(task.model_dump(mode="json"))
    assert check_task_names(named) == named == task.by_name()  # records hold such names
    with pytest.raises(DataError, match="are data of a Python process"):
        load_task(named, 0)
    with pytest.raises(ModelError, match="is a network of a Python process"):
        load_task(TaskSpec(model=named.model, data="digits"), 0)
    assert named.with_own(task.own) == task and all(name.startswith(PREFIX) for name in task.own)


# --- the environment ---


def own_env(**other: Any) -> PanningEnv:
    return PanningEnv(model=seeded(), data=samples(), **{"densities": [0.2], "n_rounds": 2, **other})


def test_an_episode_on_an_own_network_ends_with_its_masks() -> None:
    env = own_env()
    env.reset(seed=0)
    assert env.masks().density == 1.0
    *_, info = env.step(HALF)
    assert "masks" not in info and env.masks().n_kept == env.state.n_kept
    *_, terminated, _, info = env.step(HALF)
    masks = info["masks"]
    assert terminated and masks.n_kept == round(0.2 * masks.n_prunable) and list(masks) == [
        "left.weight", "right.weight", "head.weight"
    ]  # fmt: skip
    assert masks.manifest["model"].startswith("own:Net-") and masks.manifest["effective_density"] > 0
    panning.apply_masks(seeded(), masks)


def test_the_training_reward_works_on_an_own_network() -> None:
    env = own_env(reward={"training": 1.0, "cost": 1.0, "recipe": {"epochs": 1, "batch_size": 16}}, n_rounds=1)
    env.reset(seed=0)
    *_, info = env.step(HALF)
    assert 0 <= info["accuracy"] <= 1 and 0 < info["cost"] <= 1


def test_an_environment_is_pickled_and_copied_in_the_middle_of_an_episode() -> None:
    for env in (own_env(n_rounds=3, seeds=[3, 4]), PanningEnv(densities=[0.05, 0.1], n_rounds=3)):
        pickle.loads(pickle.dumps(env))
        env.reset(seed=1)
        env.step(HALF)
        twins = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
        expected = env.step(HALF)
        for twin in twins:
            observation, reward, *_, info = twin.step(HALF)
            assert np.array_equal(observation, expected[0]) and reward == expected[1]
            assert torch.equal(twin.masks().flat, env.masks().flat)
            assert twin.np_random.bit_generator.state == env.np_random.bit_generator.state


def test_gymnasium_makes_it_alone_and_as_a_vector() -> None:
    made = {"model": seeded(), "data": samples(), "densities": [0.2], "n_rounds": 1}
    env = gymnasium.make("panning:Panning-v0", **made)
    env.reset(seed=0)
    assert isinstance(env.step(HALF)[4]["masks"], panning.Masks)
    many = gymnasium.make_vec("panning:Panning-v0", num_envs=2, vectorization_mode="sync", **made)
    many.reset(seed=0)
    *_, infos = many.step(np.stack([HALF, HALF]))
    assert all(isinstance(masks, panning.Masks) for masks in infos["masks"])
    many.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": "mlp"}, r"tasks is 'mlp'; pass a list, like tasks=\['mlp/digits'\]"),
        ({"tasks": ["mlp"]}, r"The task 'mlp' names no data: write 'MODEL/DATA'"),
        ({"tasks": [3]}, "The model, a int, needs data"),
        ({"tasks": {"model": "mlp"}}, "tasks is {'model': 'mlp'}; pass a list"),
        ({"tasks": [["mlp", "digits"]]}, "The model, a list, needs data"),
        ({"action": "pick"}, r"action is 'pick'; pass a mapping of its keys, like action=\{'form': 'pick'\}"),
        ({"reward": 1.0}, "reward is 1.0; pass a mapping of its keys"),
        ({"densities": 0.05}, r"densities is 0.05; pass a list, like densities=\[0.05\]"),
        ({"seeds": 3}, "seeds is 3; pass a list"),
        ({"observations": "loss"}, "observations is 'loss'; pass a list"),
        ({"model": "mlp"}, "names no data"),
        ({"model": nn.Linear(2, 2)}, "The model, a Linear, needs data"),
        ({"data": "digits"}, "data need a model"),
        ({"model": "mlp", "data": "digits", "tasks": ["mlp/digits"]}, "but not both"),
        ({"n_rounds": 1.5}, "n_rounds is 1.5, but must be a whole number"),
    ],
)
def test_wrong_arguments_get_a_sentence_that_shows_the_right_form(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PanningEnv(**wrong)


def test_tasks_are_names_mappings_or_specs() -> None:
    same = ["mlp/digits", {"model": "mlp", "data": "digits"}, TaskSpec(model="mlp", data="digits")]
    assert len(set(PanningEnv(tasks=same).tasks)) == 1


def test_data_that_are_not_there_are_asked_for_in_words_of_python(tmp_path: Any) -> None:
    env = gymnasium.make("panning:Panning-v0", tasks=["lenet5/fashion_mnist"], data_root=str(tmp_path))
    with pytest.raises(DataError, match="data_root .*download=True"):
        env.reset()


# --- agents ---


def agent(algorithm: Any = PPO, env: Any = None, policy: str = "MlpPolicy", **options: Any) -> Any:
    options = {"n_steps": 4, "seed": 0, "device": "cpu", **({"batch_size": 4} if algorithm is PPO else {}), **options}
    return algorithm(policy, env or own_env(), **options)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("form", ["mix", "pick"])
def test_an_agent_of_sb3_prunes_as_it_acts_and_as_its_file(algorithm: Any, form: str, tmp_path: Path) -> None:
    env = own_env(action={"form": form}, n_rounds=3)
    trained = agent(algorithm, env).learn(8)
    masks = panning.prune(seeded(), samples(), density=0.3, policy=trained)
    save_policy(export_policy(trained), tmp_path / "policy.safetensors")
    for other in (tmp_path / "policy.safetensors", str(tmp_path / "policy.safetensors"), export_policy(trained)):
        again = panning.prune(seeded(), samples(), density=0.3, policy=other)
        assert torch.equal(masks.flat, again.flat) and masks.manifest == again.manifest
    assert masks.manifest["method"] == "panning" and masks.manifest["rounds"] == 3
    assert masks.n_kept == round(0.3 * masks.n_prunable)
    observation = np.random.default_rng(0).uniform(-1, 1, env.observation_space.shape).astype(np.float32)
    np.testing.assert_allclose(
        export_policy(trained)(observation), trained.predict(observation, deterministic=True)[0], atol=1e-5
    )


def test_an_agent_goes_from_the_network_it_knows_to_any_other() -> None:
    trained = agent().learn(4)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    batch = (torch.randn(10, 1, 8, 8), torch.arange(10) % 5)
    masks = panning.prune(net, batch, density=0.1, policy=trained, all_alive=True)
    assert masks.n_kept == round(0.1 * masks.n_prunable) and masks.manifest["effective_density"] == masks.density


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAC("MlpPolicy", own_env(), device="cpu", buffer_size=10), "an agent of SAC; pass"),
        (lambda: agent(policy_kwargs={"activation_fn": nn.ReLU}), "activation_fn=torch.nn.Tanh"),
        (lambda: agent(use_sde=True), "without use_sde"),
        (lambda: agent(env=VecNormalize(DummyVecEnv([own_env]))), "norm_obs=False"),
        (lambda: agent(env=gymnasium.wrappers.RescaleAction(own_env(), 0, 1)), "a wrapper changes them"),
        (lambda: agent(env=gymnasium.make("CartPole-v1")), "is no panning.envs.PanningEnv"),
        (lambda: nn.Linear(2, 2), "The policy is a Linear; pass the path"),
        (lambda: "missing.safetensors", "No policy file 'missing.safetensors'"),
    ],
)
def test_other_agents_are_refused_by_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        panning.prune(seeded(), samples(), density=0.3, policy=make())


def test_an_agent_without_its_environment_says_how_to_give_it_one(tmp_path: Path) -> None:
    agent().save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    with pytest.raises(PolicyError, match=r"agent.set_env\(panning.envs.PanningEnv"):
        export_policy(loaded)
    loaded.set_env(own_env())
    assert export_policy(loaded).n_rounds == 2


@pytest.mark.parametrize(
    "other", [{"method": "snip"}, {"n_rounds": 3}, {"schedule": "linear"}, {"released": True}, {"control": "shuffle"}]
)
def test_a_policy_and_what_speaks_of_a_method_contradict_each_other(other: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=f"leave out {next(iter(other))}, or the policy"):
        panning.prune(seeded(), samples(), density=0.3, policy="policy.safetensors", **other)


def test_a_policy_needs_data() -> None:
    with pytest.raises(DataError, match="needs data"):
        panning.prune(seeded(), density=0.3, policy=export_policy(agent()), input_shape=(6,))


# --- any interface ---


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"value": self.right(torch.relu(self.left(x)) * scale)}


def test_an_environment_takes_any_interface_and_an_agent_learns_on_it(tmp_path: Path) -> None:
    inputs = samples(30)[0]
    batch = {"x": inputs, "scale": torch.full((30, 1), 2.0), "y": inputs.sum(1, keepdim=True)}
    how: dict[str, Any] = {
        "forward": lambda model, batch: model(batch["x"], batch["scale"])["value"],
        "loss": lambda outputs, batch: nn.functional.mse_loss(outputs, batch["y"]),
    }
    torch.manual_seed(0)
    net = TwoInputs()
    env = panning.make_env(net, batch, densities=[0.3], n_rounds=2, reward={"cost": 1.0}, **how)
    env.reset(seed=0)
    env.step(HALF)
    *_, info = env.step(HALF)
    assert info["masks"].n_kept == round(0.3 * 56) and 0 < info["cost"] <= 1
    assert info["masks"].manifest["data"].startswith("own:dict-")
    ppo = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
    call: dict[str, Any] = {"densities": [0.3], "n_rounds": 2, "ppo": ppo, "on_event": lambda event: None}
    trained = panning.train_agent(TwoInputs, batch, out=tmp_path / "agent", **how, **call)
    masks = panning.prune(net, batch, density=0.3, policy=trained.policy, **how)
    assert masks.n_kept == round(0.3 * 56)
    other = {**batch, "y": -batch["y"]}
    with pytest.raises(ConfigError, match="differs in: env"):
        panning.train_agent(TwoInputs, other, out=tmp_path / "agent", **how, **call)


def test_batches_that_train_nothing_are_refused_where_networks_are_trained(tmp_path: Path) -> None:
    batch = {"x": samples(30)[0], "scale": torch.ones(30, 1)}
    how: dict[str, Any] = {"loss": lambda outputs, batch: outputs["value"].square().mean()}
    with pytest.raises(ConfigError, match="The reward's terms training and contest need labelled data"):
        panning.make_env(TwoInputs, batch, reward={"training": 1.0}, **how)
    task = TaskSpec(model=TwoInputs, data=batch)
    with pytest.raises(DataError, match="batches that score networks, and train none"):
        panning.search(task, densities=[0.3], out=tmp_path / "mine")
    with pytest.raises(ModelError, match="'mlp' is made for labelled data"):
        PanningEnv(model="mlp", data=batch).reset()
    with pytest.raises(ConfigError, match="pass data as well"):
        PanningEnv(model=TwoInputs, forward=lambda model, batch: model(batch))
