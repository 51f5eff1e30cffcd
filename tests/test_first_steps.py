"""What a newcomer writes first, and what a notebook shows of the answer: taken, or refused by a sentence that helps."""

from __future__ import annotations

import inspect
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import panning
from panning.agents import AgentConfig, EnvSpec
from panning.episode.actions import ActionSpec
from panning.episode.policy_net import PolicyNet
from panning.foundation.errors import ArgumentError, ConfigError, DataError, MaskError, ModelError, PolicyError
from panning.foundation.keywords import OF_DENSITY, OF_ROUNDS
from panning.models.weights import load_weights
from panning.searches import SearchConfig


class Net(nn.Sequential):
    def __init__(self, n_outputs: int = 3) -> None:
        super().__init__(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, n_outputs))


class Sums(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.left(x) + self.right(z)
        return out


def inputs() -> torch.Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("n_outputs", "targets"),
    [
        (1, torch.linspace(0, 1, 12)[:, None]),
        (3, torch.linspace(-2, 2, 36).view(12, 3)),
        (3, torch.eye(3).repeat(4, 1) + torch.eye(3).roll(1, 0).repeat(4, 1)),
        (3, torch.tensor([[2.0, -0.5, -0.5]]).repeat(12, 1)),
    ],
    ids=["one number", "three numbers", "two of three", "sum 1, below 0"],
)
def test_targets_that_are_no_probabilities_need_a_loss(n_outputs: int, targets: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Net(n_outputs)
    with pytest.raises(DataError, match="Pass loss=, like torch.nn.functional.mse_loss for a regression"):
        panning.prune(model, (inputs(), targets), density=0.5, method="snip")
    assert panning.prune(model, (inputs(), targets), density=0.5, method="snip", loss=mse_loss).density == 0.5
    assert panning.prune(model, (inputs(), targets), density=0.5, method="erk").density == 0.5


def test_probabilities_of_classes_are_compared_as_labels_are() -> None:
    torch.manual_seed(0)
    model, labels = Net(), torch.arange(12) % 3
    soft = torch.nn.functional.one_hot(labels, 3).float()
    of_labels, of_soft = (panning.prune(model, (inputs(), y), density=0.5, method="snip") for y in (labels, soft))
    assert of_labels == of_soft
    mixed = (0.9 * soft + 0.1 / 3).half().float()  # rounded, as mixed labels are
    assert panning.prune(model, (inputs(), mixed), density=0.5, method="snip").density == 0.5


def enforced(model: Any) -> None:
    panning.enforce_masks(model, masks())


def masks() -> panning.Masks:
    return panning.prune(Net(), density=0.5, method="erk", input_shape=(4,))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: panning.prune(model, (inputs(), torch.arange(12) % 3), density=0.5),
        lambda model: panning.prune(model, density=0.5, method="erk", input_shape=(4,)),
        lambda model: panning.compact(model, masks(), (4,)),
        lambda model: panning.apply_masks(model, masks()),
        lambda model: panning.enforce_masks(model, masks()),
        lambda model: panning.reinitialise(model, masks(), "gain"),
        lambda model: panning.move_masks(model, torch.optim.SGD(Net().parameters()), "rigl", density=0.5, n_steps=300),
        lambda model: masks().effective_density(model),
    ],
)
def test_what_is_no_network_is_named(call: Callable[[Any], object]) -> None:
    with pytest.raises(ModelError, match=r"given the class Net; pass the network that it makes, like Net\(\)"):
        call(Net)
    with pytest.raises(ModelError, match="given function"):
        call(enforced)


def test_an_agent_as_stable_baselines_saves_it_is_told_from_a_broken_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        archive.writestr("data", "{}")
    (path := tmp_path / "ppo.zip").write_bytes(content.getvalue())
    with pytest.raises(
        PolicyError, match=r"Load the agent there, agent = PPO.load\(path, env=env\), and pass it as policy="
    ):
        panning.prune(Net(), (inputs(), torch.arange(12) % 3), density=0.5, policy=path)


def test_arrays_and_several_inputs_are_shown_the_way() -> None:
    with pytest.raises(DataError, match=r"given ndarray: of arrays, torch.as_tensor makes tensors"):
        panning.prune(Net(), (inputs().numpy(), np.arange(12) % 3), density=0.5, method="snip")
    batch = (inputs(), inputs() + 1), torch.arange(12) % 2
    with pytest.raises(panning.PanningError, match="Batches of several inputs need forward="):
        panning.make_env(Sums, batch, densities=[0.5])
    env = panning.make_env(Sums, batch, densities=[0.5], forward=lambda model, batch: model(*batch[0]))
    assert env.reset(seed=0)[1]["density"] == 1.0
    with pytest.raises(panning.PanningError, match="make_env and train_agent take any targets with loss="):
        panning.make_env(Net, (inputs(), inputs()[:, :1]), densities=[0.5])


@pytest.mark.parametrize(
    ("call", "given", "said"),
    [
        (
            "prune",
            {"sparsity": 0.9},
            "takes no sparsity. Pass density: 0.1 keeps 10 % of the weights (density =",
        ),
        ("prune", {"amount": 0.9}, "takes no amount. Pass density"),
        ("prune", {"density": 0.1, "start": "gain"}, "takes no start. panning.reinitialise"),
        ("prune", {"density": 0.1, "rounds": 3}, "takes no rounds. Pass n_rounds."),
        ("prune", {"density": 0.1, "metod": "snip"}, "Unknown argument 'metod'. Did you mean 'method'?"),
        ("move_masks", {"ratio": 0.1, "n_steps": 3}, "Pass density"),
        ("move_masks", {"density": 0.1, "iterations": 3}, "Pass n_steps of the training, and make_dynamic"),
        ("make_env", {"sparsity": 0.9}, "panning.make_env takes no sparsity. Pass densities"),
        ("make_env", {"n_round": 3}, "Did you mean 'n_rounds'?"),
        ("search", {"out": "x", "sparsities": [0.9]}, "panning.search takes no sparsities. Pass densities"),
        ("search", {"out": "x", "iterations": 3}, "Pass agent={'n_rounds': ...}"),
        ("train_agent", {"out": "x", "rounds": 3}, "Pass n_rounds, or ppo={'n_rollouts': ...}"),
    ],
)
def test_the_keywords_of_other_libraries_lead_to_ours(call: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError) as caught:
        getattr(panning, call)(Net(), (inputs(), torch.arange(12) % 3), **given)
    assert isinstance(caught.value, ArgumentError) and said in str(caught.value)


@pytest.mark.parametrize("name", OF_DENSITY + OF_ROUNDS)
def test_no_setting_is_called_as_other_libraries_call_it(name: str) -> None:
    """Else the hint would refuse it."""
    assert not [kind for kind in (SearchConfig, AgentConfig, EnvSpec) if name in kind.model_fields]


def test_what_is_given_by_place_is_shown_the_way() -> None:
    batch = inputs(), torch.arange(12) % 3
    with pytest.raises(
        ArgumentError, match=r"prune takes model, data by place and all else by name, as density=.*one pair"
    ):
        panning.prune(Net(), *batch, density=0.5)  # type: ignore[misc]
    with pytest.raises(ArgumentError, match="search takes model, data by place .* as densities="):
        panning.search(Net, batch, [0.5], out="x")  # type: ignore[misc]
    with pytest.raises(MaskError, match="masks is a str: panning.save_masks takes the masks, then the file's path"):
        panning.save_masks("mask.safetensors", masks())  # type: ignore[arg-type]


def test_methods_before_and_while_training_lead_to_each_other() -> None:
    with pytest.raises(KeyError, match=r"moves masks in a training: panning.move_masks\(model, optimizer, 'rigl'\)"):
        panning.prune(Net(), density=0.5, method="rigl", input_shape=(4,))
    model = Net()
    with pytest.raises(
        KeyError, match=r"'snip' finds a first mask, masks=panning.prune\(..., method='snip'\), and moves none"
    ):
        panning.move_masks(model, torch.optim.SGD(model.parameters()), "snip", density=0.5, n_steps=9)


def test_masks_say_which_names_they_have() -> None:
    made = masks()
    assert "0.weight" in made and "0" not in made and made.get("0") is None
    with pytest.raises(
        KeyError, match=r"Unknown masked parameter '0.weights'. Did you mean '0.weight'\? Allowed: 0.weight, 2.weight"
    ):
        made["0.weights"]


def test_a_folder_in_place_of_a_file_names_the_file_in_it(tmp_path: Path) -> None:
    panning.save_masks(masks(), tmp_path / "mask.safetensors")
    with pytest.raises(MaskError, match="It is a folder: name a file in it, as .*/mask.safetensors"):
        panning.load_masks(tmp_path)
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "policy.safetensors").touch()
    with pytest.raises(PolicyError, match="name a file in it, as .*/agent/policy.safetensors"):
        panning.prune(Net(), (inputs(), torch.arange(12) % 3), density=0.5, policy=tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="name a file in it, as .*/model.safetensors"):
        load_weights(Net(), tmp_path)


def test_the_signatures_of_the_calls_stay() -> None:
    assert list(inspect.signature(panning.prune).parameters)[:3] == ["model", "data", "density"]
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'out'"):
        panning.search(Net, (inputs(), torch.arange(12) % 3), densities=[0.5])  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "given", "said"),
    [
        ("prune", {"density": 0.5, "on_round": "x"}, "on_round is 'x'; pass a function of one argument"),
        ("search", {"densities": [0.5], "out": "x", "on_event": "x"}, "on_event is 'x'; pass a function"),
        ("search", {"densities": [0.5], "out": None}, "out is None; pass the folder of the run"),
        ("train_agent", {"densities": [0.5], "out": ""}, "out is ''; pass the folder of the run"),
        ("train_agent", {"densities": [0.5], "out": "x", "on_event": 3}, "on_event is 3"),
        ("train_agent", {"density": 0.5, "out": "x"}, "Unknown setting 'density'. Did you mean 'densities'?"),
    ],
)
def test_folders_and_listeners_of_a_wrong_kind(call: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        getattr(panning, call)(Net(), (inputs(), torch.arange(12) % 3), **given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (nn.Linear(4, 6), "input_shape=(4,), one input"),
        (nn.Conv1d(3, 6, 3), "input_shape=(channels, length)"),
        (nn.Conv2d(3, 6, 3), "input_shape=(channels, height, width)"),
        (nn.Conv3d(3, 6, 3), "input_shape=(channels, depth, height, width)"),
    ],
)
def test_the_shape_that_is_asked_for_is_that_of_the_first_layer(first: nn.Module, said: str) -> None:
    with pytest.raises(DataError) as caught:
        panning.prune(nn.Sequential(first, nn.Flatten(), nn.Linear(6, 2)), density=0.5)
    assert said in str(caught.value)


def test_what_is_shown_of_an_answer_is_short() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 3))
    kept = panning.prune(model, density=0.1, input_shape=(40,))
    shown = repr(panning.compact(model, kept))
    assert "tensor(" not in shown and "Masks(2 layers" in shown and len(shown) < 500
    layers = (np.ones((64, 16), np.float32), np.ones((6, 64), np.float32))
    policy = PolicyNet(
        spec=ActionSpec(), n_rounds=3, weights=layers, biases=(layers[0][:, 0], layers[1][:, 0]),
        log_std=layers[1][:, 0], facts={"config": {}},
    )  # fmt: skip
    assert "array(" not in repr(policy) and repr(policy).startswith("PolicyNet(spec=ActionSpec(form='mix'")
