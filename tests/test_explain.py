"""What distinguishes a mask: figures that are known by hand, and runs whose rounds are told again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from console import run
from torch import nn
from toys import chain

import panning
from panning.agents import AgentConfig, train_agent
from panning.episode.actions import ActionSpec
from panning.explaining import explanation as explaining
from panning.explaining.explanation import Explanation, explain
from panning.explaining.pictures import explanation_picture, shares_of
from panning.explaining.sketch import Sketch, gini, moved, sketch
from panning.foundation.config import dump_config, parse_config
from panning.foundation.errors import MaskError, OutputError
from panning.foundation.files import write_atomic
from panning.foundation.progress import silent
from panning.jobs.executor import SerialExecutor
from panning.jobs.levers import LeverAction
from panning.jobs.prune import PruneConfig, check_prune, run_prune
from panning.jobs.runs import chosen_mask
from panning.jobs.spec import PruneSpec
from panning.jobs.store import JobStore
from panning.jobs.work import Job
from panning.masks.masks import Masks
from panning.searches.config import SearchConfig
from panning.tasks import TaskSpec

TASK = {"model": "mlp", "data": "digits", "n_train": 200}


def two_layers() -> nn.Sequential:
    """3 inputs, 2 hidden units, 2 outputs; magnitudes fall along each layer."""
    return chain([[6.0, 5.0, 4.0], [3.0, 2.0, 1.0]], [[4.0, 3.0], [2.0, 1.0]])


def mask(first: list[list[int]], second: list[list[int]], **manifest: Any) -> Masks:
    return Masks.from_tensors(
        {"0.weight": torch.tensor(first), "2.weight": torch.tensor(second)}, {"input_shape": [3], **manifest}
    )


#: Of the five weights the one into the second hidden unit is dead, for no weight leads out of it.
HAND = mask([[1, 1, 0], [1, 0, 0]], [[1, 0], [1, 0]])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three rounds."""
    folder = tmp_path_factory.mktemp("pruned")
    config = PruneConfig(task=TASK, density=0.05, method="snip", rounds=3)
    run_prune(check_prune(config), folder, formats=())
    return folder


# --- figures ---


def test_figures_of_a_mask_are_those_counted_by_hand() -> None:
    found = explain(HAND, model=two_layers()).of
    assert found.kept == {"0.weight": 3, "2.weight": 2} and found.n_kept == 5 and found.density == 0.5
    assert found.dead_share == pytest.approx(0.2) and found.units_in_use == 1.0
    assert found.concentration == pytest.approx((3 * gini([2, 1]) + 2 * 0) / 5) and gini([2, 1]) == pytest.approx(1 / 6)
    assert found.report is not None and found.report.n_alive_units == 3
    assert found.report.log10_paths == pytest.approx(torch.tensor(4.0).log10().item(), abs=1e-4)  # 2 inputs, 2 outputs


def test_weights_to_move_are_those_between_layers() -> None:
    sizes = {"a": 100, "b": 100}
    one, other = (
        Sketch(name, kept, sizes, 1, 0) for name, kept in (("x", {"a": 30, "b": 10}), ("y", {"a": 5, "b": 15}))
    )
    assert moved(one, one) == 0 and moved(one, other) == pytest.approx(0.5)  # twice as many in all: 10 and 30


def test_places_are_compared_with_an_index_and_with_lot() -> None:
    """The three largest of the first layer hold two of this mask's, the two largest of the second one."""
    found = explain(HAND, model=two_layers())
    (magnitude, synflow) = found.places  # without data no SNIP
    assert (magnitude.index, synflow.index) == ("magnitude", "synflow")
    assert magnitude.share == pytest.approx(3 / 5) and magnitude.by_lot == pytest.approx((9 / 6 + 4 / 4) / 5)
    best = explain(mask([[1, 1, 1], [0, 0, 0]], [[1, 1], [0, 0]]), model=two_layers())
    assert best.places[0].share == 1.0


def test_a_mask_beside_itself_moves_nothing_and_is_said_to() -> None:
    masks = panning.prune(two_layers(), density=0.6, method="synflow", input_shape=(3,))
    found = explain(masks, model=two_layers())
    assert [one.name for one in found.beside] == ["SynFlow", "ERK"] and found.counts_of["SynFlow"] == 0
    assert found.beside[0].kept == found.of.kept and found.beside[0].report == found.of.report
    assert found.sentences[0].startswith("Its layers have as many weights as SynFlow's; ")
    assert found.sentences[1].startswith("100 % of its weights lie where ")


def test_two_sentences_say_what_the_figures_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """ERK has three and two weights; of this mask's five the two that leave the second hidden unit are dead."""
    monkeypatch.setattr(explaining, "BESIDE", ("erk",))
    first, second = explain(mask([[1, 0, 0], [0, 0, 0]], [[1, 1], [1, 1]]), model=two_layers()).sentences
    assert first == (
        "Its layers' counts are nearest to ERK's, for which 40 % of its weights would have to move: 2.weight has 4 in place "
        "of 2, 0.weight 1 in place of 3."
    )
    assert second.startswith(
        "100 % of its weights lie where magnitude ranks highest in their layer (by lot 83.3 %), they use 75 % of the units"
    )
    assert "40 % are dead (ERK " in second and "and they make 10^0.3 paths (ERK 10^" in second and second.endswith(").")


# --- a mask alone ---


def test_what_a_mask_alone_does_not_tell_is_said() -> None:
    unnamed = explain(HAND)
    assert unnamed.of.report is None and unnamed.of.dead_share is None and unnamed.beside == () == unnamed.places
    assert "names no network" in unnamed.missing[0] and "folder of its run" in unnamed.missing[-1]
    assert unnamed.counts_of == {"ERK": 0} and unnamed.sentences == (
        "Its layers have as many weights as ERK's.", "They use 100 % of the units.",
    )  # fmt: skip
    named = mask([[1, 1, 0], [1, 0, 0]], [[1, 0], [1, 0]], model="os:system", n_classes=2)
    assert "'os:system', which is code" in explain(named).missing[0] and explain(named).of.report is None
    other = mask([[1, 1, 0], [1, 0, 0]], [[1, 0], [1, 0]], model="lenet5", n_classes=2, seed=0)
    assert "Its network is not known: " in explain(other).missing[0]


def test_a_mask_file_names_its_network(pruned: Path) -> None:
    found = explain(pruned / "mask.safetensors")
    assert (
        found.of.report is not None
        and found.of.n_kept == 2522
        and [one.name for one in found.beside] == ["SynFlow", "ERK"]
    )
    assert found.rounds == () and found.missing == (
        "How it was made, round by round, only the folder of its run tells.",
    )


def test_what_cannot_be_explained_is_a_sentence(pruned: Path, tmp_path: Path) -> None:
    for identity, said in [
        ({"command": "bench", "name": "x"}, "is of 'panning bench', which leaves no mask"),
        ({"method": "snip", "density": 0.1}, "has not ended"),
    ]:
        (tmp_path / "run.json").write_text(json.dumps(identity))
        with pytest.raises(MaskError, match=said):
            explain(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {}, "model": "mlp"}))
    (tmp_path / "table.md").touch()
    with pytest.raises(MaskError, match="whose mask did not move"):
        explain(tmp_path)
    with pytest.raises(MaskError, match="leave model out"):
        explain(pruned, model="mlp")
    with pytest.raises(MaskError, match="cannot be read"):
        explain(tmp_path / "absent.safetensors")
    (tmp_path / "run.json").unlink()
    with pytest.raises(OutputError, match="no folder of a run"):
        explain(tmp_path)


# --- runs ---


def test_rounds_of_a_run_are_told_as_they_were(pruned: Path) -> None:
    found = explain(pruned)
    assert [one.number for one in found.rounds] == [1, 2, 3] and found.missing == ()
    densities = [one.of.density for one in found.rounds]
    assert densities == pytest.approx([0.05 ** (1 / 3), 0.05 ** (2 / 3), 0.05], rel=1e-3)
    assert found.rounds[-1].of.kept == found.of.kept and found.rounds[-1].of.report == found.of.report
    assert found.rounds[0].chosen == "snip" and [one.index for one in found.places] == ["magnitude", "synflow", "snip"]
    assert explanation_picture(found).columns[:4] == ("mask", "round", "layer", "density")
    assert len(explanation_picture(found).rows) == 3 * 3 + 3 * 3  # masks and rounds, by layers


def test_a_mask_that_comes_out_otherwise_has_no_rounds(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "content_of", id)  # other masks have other contents
    found = explain(pruned)
    assert found.rounds == () and "came out otherwise" in found.missing[0]


def test_many_rounds_are_told_evenly_and_the_last_one_always(monkeypatch: pytest.MonkeyPatch, pruned: Path) -> None:
    monkeypatch.setattr(explaining, "MOST_ROUNDS", 2)
    assert [one.number for one in explain(pruned).rounds] == [1, 3]


def test_an_agents_rounds_say_what_it_chose(tmp_path: Path) -> None:
    spec = ActionSpec(quotas=("erk",), balance=True, start=True)
    env = {"tasks": [TASK], "densities": [0.1, 0.05], "seeds": [7], "n_rounds": 2, "action": spec.model_dump()}
    ppo = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4, "start": "synflow"}
    config = AgentConfig.model_validate({"env": env, "ppo": ppo})
    train_agent(config, tmp_path)
    write_atomic(tmp_path / "config.yaml", dump_config(config))
    found = explain(tmp_path)
    assert found.of.density == pytest.approx(0.05, rel=1e-3) and found.method == "panning" and "seed 7" in found.source
    assert 1 <= len(found.rounds) <= 2 and found.rounds[-1].of.kept == found.of.kept
    choice = found.rounds[-1].choice
    assert set(choice["weights"]) <= set(spec.indices) and all(
        name in found.rounds[-1].chosen for name in choice["weights"]
    )
    shares = shares_of(found.rounds[-1])
    assert sum(shares[name] for name in choice["weights"]) == pytest.approx(1) and max(shares.values()) <= 1


def test_the_choice_of_a_search_is_told_by_its_record(tmp_path: Path) -> None:
    ppo = {"n_rollouts": 1, "n_envs": 1, "n_steps": 2, "batch_size": 2}
    rung = {"keep": 1, "recipe": {"epochs": 1}}
    said = {
        "name": "s",
        "task": TASK,
        "densities": [0.1],
        "seeds": [0],
        "agent": {"n_rounds": 2, "ppo": ppo},
        "rungs": [rung],
    }
    config = parse_config(SearchConfig, {**said, "recipe": {"epochs": 1}, "baselines": ["erk"]}, "test")
    by = LeverAction(policy="levers", mix="snip", quotas="erk", n_rounds=2)
    job = Job(PruneSpec(task=TaskSpec.model_validate(TASK), seed=0, density=0.1, by=by))
    outcome = JobStore(tmp_path).run([job], SerialExecutor(), silent, "pruning")[job.key]
    write_atomic(chosen_mask(tmp_path, 0.1, 0), outcome.mask or b"")
    write_atomic(tmp_path / "config.yaml", dump_config(config))
    write_atomic(tmp_path / "run.json", json.dumps({"rungs": []}))
    write_atomic(tmp_path / "result.json", "{}")
    found = explain(tmp_path)
    assert [one.chosen for one in found.rounds] == ["snip; quotas 1 erk"] * 2 and found.missing == ()
    assert found.counts_of["ERK"] == 0 and found.source == "choice-density0.1-seed0.safetensors"


def test_the_command_prints_writes_and_gives_json(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", str(pruned), "--out", str(tmp_path), "--format", "svg") == 0
    said = capsys.readouterr().out
    found = explain(pruned)
    assert said.splitlines()[:2] == list(found.sentences) and "concentration on units" in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "explanation.md", "explanation.json", "explanation.svg", "explanation.csv",
    }  # fmt: skip
    assert run("explain", str(pruned), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "explanation.json").read_text()) == json.loads(json.dumps(found.as_json()))
    assert len(told["rounds"]) == 3 and told["mask"]["n_kept"] == 2522 and told["sentences"] == list(found.sentences)
    assert run("explain", str(tmp_path)) == 2 and "no folder of a run" in capsys.readouterr().err


def test_units_without_a_network_are_those_of_the_first_axis() -> None:
    found = sketch("x", HAND.layout, HAND.flat)
    assert found.units_in_use == 1.0 and isinstance(explain(HAND), Explanation)
    half = mask([[1, 1, 0], [0, 0, 0]], [[1, 0], [0, 0]])
    assert sketch("x", half.layout, half.flat).units_in_use == 0.5
    assert sketch("x", half.layout, half.flat).concentration == 0.5
