"""The shelf: policies by name with their cards, what a training writes onto a card, and warnings of what was never seen."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from console import run
from torch import nn

import panning
from panning.agents import AgentConfig, train_agent
from panning.agents.sight import seen_by, widened
from panning.compare.contenders import Contender
from panning.episode.observations import STANDARD
from panning.episode.policy_net import digest_of_policy, load_policy, parse_policy, save_policy
from panning.episode.shelf import MARGIN, Card, card_of, keep, located, shelf_folder, unseen
from panning.foundation.config import dump_config, load_config, parse_config
from panning.foundation.errors import ConfigError, PanningWarning, PolicyError, StoppedError
from panning.foundation.stopping import stops_when
from panning.pruners import PRUNERS
from panning.searches.kinds import PRUNE, named_config

CONFIG: dict[str, Any] = {
    "env": {
        "tasks": [{"model": "mlp:16", "data": "digits", "n_train": 100}], "densities": [0.1, 0.3], "seeds": [0],
        "n_rounds": 2,
    },
    "ppo": {"n_rollouts": 2, "n_envs": 2, "n_steps": 4, "batch_size": 8},
}  # fmt: skip


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own."""
    folder = tmp_path / "shelf"
    monkeypatch.setenv("PANNING_POLICIES", str(folder))
    return folder


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training."""
    folder = tmp_path_factory.mktemp("agent")
    train_agent(parse_config(AgentConfig, CONFIG, "it"), folder, cache=None)
    return folder


def net_and_batch(n_inputs: int = 64, n_units: int = 16, n_classes: int = 10) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(n_inputs, n_units), nn.ReLU(), nn.Linear(n_units, n_classes))
    return net, (torch.randn(60, n_inputs), torch.arange(60) % n_classes)


# --- what a training writes ---


def test_a_training_writes_a_card(agent: Path) -> None:
    card = card_of(agent / "policy.safetensors")
    assert card is not None and card.trained is not None
    assert (card.trained.networks, card.trained.data, card.trained.densities) == (("mlp:16",), ("digits",), (0.1, 0.3))
    assert (card.trained.n_rollouts, card.trained.n_episodes, card.trained.n_tasks) == (2, 8, 1)
    size = round(float(np.log10(64 * 16 + 160)) / 8, 6)
    assert card.seen["network_size"] == (size, size) and card.seen["rounds_left"] == (0.5, 1.0)
    low, high = card.seen["target_density"]
    assert low == pytest.approx(np.log(0.3) / np.log(1e-5), abs=1e-5) and high == pytest.approx(0.2, abs=1e-5)


def test_an_interrupted_training_has_the_same_card(agent: Path, tmp_path: Path) -> None:
    config, asked = parse_config(AgentConfig, CONFIG, "it"), iter([False] * 5 + [True])
    with pytest.raises(StoppedError), stops_when(lambda: next(asked, True)):
        train_agent(config, tmp_path / "agent", cache=None)
    assert not (tmp_path / "agent" / "policy.yaml").exists()
    train_agent(config, tmp_path / "agent", cache=None)
    again, first = (load_config(Card, folder / "policy.yaml") for folder in (tmp_path / "agent", agent))
    assert again == first
    (tmp_path / "agent" / "policy.yaml").write_text(dump_config(first.model_copy(update={"fails": ("On Mondays.",)})))
    train_agent(config, tmp_path / "agent", cache=None)  # nothing is left to train
    assert load_config(Card, tmp_path / "agent" / "policy.yaml").fails == ("On Mondays.",)


def test_ranges_widen() -> None:
    first = widened(None, np.array([[0.1, -1.0], [0.3, 0.0]], np.float32))
    assert first == [[0.1, 0.3], [-1.0, 0.0]]
    assert widened(first, np.array([[0.2, 0.5]], np.float32)) == [[0.1, 0.3], [-1.0, 0.5]]


@pytest.mark.parametrize("damaged", [[[0.0]], [[0.0, float("nan")]], "text", [[0.0, 1.0]] * 2])
def test_damaged_ranges_of_a_checkpoint_are_refused(damaged: Any) -> None:
    with pytest.raises(PolicyError, match="damaged ranges"):
        seen_by({"seen": damaged}, 1, Path("it"))
    assert seen_by({"rollouts": 3}, 1, Path("it")) is None


# --- names ---


def test_a_name_is_taken_wherever_a_path_is(agent: Path, tmp_path: Path, shelf: Path) -> None:
    assert list(panning.policies()) == ["panning"]
    card = card_of(agent / "policy.safetensors")
    assert card is not None
    kept = keep(agent / "policy.safetensors", "mine", card)
    assert kept.path == shelf / "mine.safetensors" == located("mine") and shelf_folder() == shelf
    assert panning.policies()["mine"].card == card and not kept.shipped
    net, batch = net_and_batch()
    by_name, by_path = (
        panning.prune(net, batch, density=0.2, policy=given) for given in ("mine", agent / "policy.safetensors")
    )
    assert torch.equal(by_name.flat, by_path.flat) and by_name.manifest["method"] == "panning"
    _, data = Contender(policy="mine").way(tmp_path)
    assert data == kept.path.read_bytes()
    config = tmp_path / "prune.yaml"
    config.write_text("task: {model: 'mlp:16', data: digits}\ndensity: 0.1\npolicy: mine\n")
    assert named_config(PRUNE, config).config.policy == str(kept.path)
    (tmp_path / "mine").mkdir()  # a folder is none
    assert located("mine", tmp_path) == kept.path
    (tmp_path / "mine").rmdir()
    (tmp_path / "mine").write_bytes(b"no policy")  # a file of this name is meant first
    assert located("mine", tmp_path) == tmp_path / "mine"


def test_names_that_are_not_there(agent: Path) -> None:
    with pytest.raises(PolicyError, match=r"No policy file 'mine'.* makes one\. Policies by name: panning\.$"):
        load_policy("mine")
    keep(agent / "policy.safetensors", "mine", Card())
    with pytest.raises(PolicyError, match="Did you mean 'mine'"):
        load_policy("min")
    with pytest.raises(PolicyError, match="Policies by name: panning, mine"):
        load_policy("other")
    with pytest.raises(ConfigError, match="There is a policy 'mine' already"):
        keep(agent / "policy.safetensors", "mine", Card())
    with pytest.raises(ConfigError, match="is no name"):
        keep(agent / "policy.safetensors", "../mine", Card())
    with pytest.raises(PolicyError, match="cannot be read"):
        keep(agent / "absent.safetensors", "other", Card())


def test_a_card_without_a_policy_is_none_and_a_broken_one_is_said(agent: Path, shelf: Path) -> None:
    keep(agent / "policy.safetensors", "mine", Card())
    (shelf / "alone.yaml").write_text("summary: no file\n")
    assert list(panning.policies()) == ["panning", "mine"]
    (shelf / "mine.yaml").write_text("kind: policy\nsummry: x\n")
    with pytest.raises(ConfigError, match="mine.yaml.*\n.*summry: unknown key. Did you mean 'summary'"):
        panning.policies()
    (shelf / "mine.yaml").write_text("kind: bench\nname: mine\n")  # a grid beside its policy
    assert card_of(shelf / "mine.safetensors") is None
    with pytest.raises(ConfigError, match="is no card of a policy: a card says 'kind: policy'"):
        panning.policies()


def test_the_command_lists_shows_and_keeps(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str, code: int = 0) -> str:
        assert run("policies", *arguments) == code
        out, err = capsys.readouterr()
        return err if code else out

    assert said("list").splitlines()[1].split()[:2] == ["panning", "shipped"]
    assert "mine.safetensors" in said("add", str(agent), "--name", "mine", "--summary", "For a small MLP.")
    assert "For a small MLP." in said("list")
    shown = said("show", "mine")
    assert (
        "Trained on 1 task: mlp:16; digits" in shown and "2 rollouts, 8 episodes" in shown and "network_size" in shown
    )
    found = json.loads(said("show", "mine", "--json"))
    assert found["trained"]["n_tasks"] == 1 and not found["shipped"]
    assert "Did you mean 'mine'" in said("show", "mien", code=2)
    assert json.loads(said("list", "--json")).keys() == {"panning", "mine"}


# --- what was never seen ---


def test_a_network_like_those_of_the_training_warns_of_nothing(agent: Path) -> None:
    net, batch = net_and_batch()
    masks = panning.prune(net, batch, density=0.2, policy=agent / "policy.safetensors")
    assert not any("trained on no network" in said for said in masks.manifest.get("warnings", []))


def test_a_network_of_another_kind_warns_with_figures(agent: Path) -> None:
    net, batch = net_and_batch(n_inputs=500, n_units=300)
    with pytest.warns(PanningWarning, match=r"no network like this one.*network_size is 0.65, seen were 0.38 to 0.38"):
        masks = panning.prune(net, batch, density=0.2, policy=agent / "policy.safetensors")
    assert "network_size" in masks.manifest["warnings"][0] and "rounds_left" not in masks.manifest["warnings"][0]
    of_before = agent.parent / "of_before.safetensors"
    save_policy(replace(load_policy(agent / "policy.safetensors"), seen={}), of_before)
    assert "warnings" not in panning.prune(net, batch, density=0.2, policy=of_before).manifest


def test_the_card_says_what_the_policy_keeps(agent: Path) -> None:
    card, net = card_of(agent / "policy.safetensors"), load_policy(agent / "policy.safetensors")
    assert card is not None and card.seen == net.seen and list(net.seen) == sorted(STANDARD)


def test_outside_of_what_it_has_seen_a_policy_acts_as_at_the_nearest_that_it_has(agent: Path) -> None:
    trained = load_policy(agent / "policy.safetensors")
    net = replace(trained, observations=("progress", "network_size"), seen={"network_size": (0.25, 0.5)})
    shown = [np.array(values, np.float32) for values in ((0.75, 0.875), (0.75, 0.5), (0.75, 0.0), (0.75, 0.25))]
    weights = (np.array([[1.0, 2.0]], np.float32),)
    net = replace(net, weights=weights, biases=(np.zeros(1, np.float32),))
    assert [float(net.output(one)[0]) for one in shown] == [1.75, 1.75, 1.25, 1.25]
    assert float(replace(net, seen={}).output(shown[0])[0]) == 2.5


@pytest.mark.parametrize(
    "seen",
    [{"depth": [0.0, 1.0]}, {"progress": [0.5, 0.0]}, {"progress": [0.0, 2.0]}, {"progress": [0.0]}, [0.0], None],
)
def test_ranges_that_are_none_are_refused(agent: Path, tmp_path: Path, seen: Any) -> None:
    data = (agent / "policy.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    description = json.loads(header["__metadata__"]["panning_policy"]) | {"seen": seen}
    header["__metadata__"]["panning_policy"] = json.dumps(description)
    changed = json.dumps(header).encode()
    broken = len(changed).to_bytes(8, "little") + changed + data[8 + size :]
    with pytest.raises(PolicyError, match="mine(:| is not)"):
        parse_policy(broken, "mine")


def test_a_little_outside_is_inside() -> None:
    seen = {"a": (0.2, 0.4), "b": (0.0, 0.0)}
    assert unseen(seen, {"a": 0.4 + 0.9 * MARGIN, "b": -0.9 * MARGIN, "c": 5.0}) == {}
    assert unseen(seen, {"a": 0.4 + 1.1 * MARGIN, "b": -1.1 * MARGIN}) == {
        "a": (0.4 + 1.1 * MARGIN, 0.2, 0.4), "b": (-1.1 * MARGIN, 0.0, 0.0),
    }  # fmt: skip


# --- a policy that is shipped ---


def test_the_policy_that_is_shipped_is_a_method() -> None:
    shipped = panning.policies()["panning"]
    assert shipped.shipped and shipped.card.summary and shipped.card.fails and shipped.card.trained is not None
    net, batch = net_and_batch()
    by_method = panning.prune(net, batch, density=0.2, method="panning")
    by_policy = panning.prune(net, batch, density=0.2, policy="panning")
    assert torch.equal(by_method.flat, by_policy.flat) and by_method.manifest == by_policy.manifest
    policy = load_policy(shipped.path)
    assert policy.seen == shipped.card.seen
    assert by_method.manifest["policy"] == digest_of_policy(policy)
    assert PRUNERS["panning"].needs_data


@pytest.mark.parametrize(
    ("kept_inputs", "has_norms", "places", "quotas"),
    [
        (1, False, "synflow", "synflow"), (20, False, "synflow", "synflow"),
        (1, True, "synflow", "erk"), (20, True, "by lot", "synflow"),
    ],
)  # fmt: skip
def test_the_rule_that_is_shipped(kept_inputs: float, has_norms: bool, places: str, quotas: str) -> None:
    """Without norms SynFlow; with norms its places in ERK's quotas where a unit keeps one input, else lots in its quotas."""
    policy = load_policy("panning")
    assert policy.observations == ("kept_fan_in", "normalised")
    observation = np.array([math.log10(kept_inputs) / 3.0, has_norms], np.float32)
    chosen = policy.spec.decode(policy(observation), 1.0, 0.1, policy.n_rounds)
    assert chosen.quotas[quotas] > 0.8 and chosen.start == "none"
    assert chosen.spread > 0.99 if places == "by lot" else chosen.weights[places] > 0.8 and chosen.spread < 0.01


def test_the_method_heeds_what_a_method_is_asked() -> None:
    net, batch = net_and_batch()

    def prune(**given: Any) -> panning.Masks:
        return panning.prune(net, batch, density=0.2, method="panning", **given)

    plain, once = prune(), prune(n_rounds=1)
    assert (plain.manifest["rounds"], once.manifest["rounds"]) == (4, 1) and not torch.equal(plain.flat, once.flat)
    inverted = prune(control="invert")
    assert plain.overlap(inverted) < 0.2  # the worst of SynFlow's scores, in SynFlow's quotas
    with pytest.raises(PolicyError, match="leave the schedule out"):
        prune(schedule="linear")


def test_a_policy_prunes_without_ray_and_stable_baselines(agent: Path, shelf: Path) -> None:
    keep(agent / "policy.safetensors", "mine", Card())
    code = (
        "import sys, torch, panning\n"
        "net = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))\n"
        "masks = panning.prune(net, (torch.randn(60, 64), torch.arange(60) % 10), density=0.2, policy='mine')\n"
        "assert masks.n_kept and not {'ray', 'stable_baselines3'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
