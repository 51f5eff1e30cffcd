"""What the speed benchmark is made of: the authors' step, the agents' rounds, the decoders, and what its report computes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import mlp_problem

from panning.envs import PanningEnv
from panning.foundation.records import RunRecord
from panning.masks.allocation import top_k
from panning.measure import episodes, process, report, sizes
from panning.measure.authors import AuthorsStep
from panning.measure.clock import spent
from panning.measure.networks import CONTEXT, DECODERS, VOCABULARY, Decoder, Size
from panning.measure.run import LARGE_MODELS, cases
from panning.measure.workbench import Workbench
from panning.scoring.problem import Scoring
from panning.scoring.signals import Signals


def z_scores(products: Tensor) -> Tensor:
    return ((products - products.mean()) / products.std()).abs()


def test_the_authors_step_ranks_by_the_scores_of_our_signals_at_their_settings() -> None:
    problem = mlp_problem(dtype=torch.float64)
    inputs, labels = problem.batch(0)
    dense = torch.ones_like(problem.weight, dtype=torch.bool)
    signals = Signals(problem, dense, scoring=Scoring(temperature=200.0))
    snip, grasp = problem.weight * signals.grad, problem.weight * signals.hessian_grad
    episode = AuthorsStep(problem.model, problem.layout.names, inputs, labels)
    # the paths of the release run through tanh as it is, ours through its derivative: SynFlow is left out here
    for action, score in (((-1, 1, -1), z_scores(snip)), ((-1, -1, 1), z_scores(grasp))):
        found = episode.step(0.25, action)
        mask = torch.cat([mask.flatten() for mask in episode.masks]).bool()
        k = int(0.25 * mask.numel())
        assert torch.equal(mask, top_k(score, k)) and int(mask.sum()) == k
        at_mask = Signals(problem, mask, scoring=Scoring(temperature=200.0))
        assert found[0] == pytest.approx(signals.loss) and found[2] == pytest.approx(at_mask.loss)
        assert found[1] == pytest.approx(signals.grad_norm**2)
        assert 0 < found[4] <= 0.25


def test_the_authors_step_leaves_the_network_as_it_is_and_needs_no_history() -> None:
    problem = mlp_problem()
    before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    episode = AuthorsStep(problem.model, problem.layout.names, *problem.batch(0))
    episode.step(0.5)
    twice = episode.step(0.1), episode.step(0.1)
    assert twice[0][:2] == twice[1][:2]  # the dense network's
    assert all(torch.equal(before[name], tensor) for name, tensor in problem.model.state_dict().items())
    assert all(parameter.grad is None for parameter in problem.model.parameters())


@pytest.mark.parametrize("second_order", [True, False])
def test_an_agents_round_is_a_round_of_its_own_episode(second_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    step = PanningEnv.step

    def spy(self: PanningEnv, action: Any) -> Any:
        found = step(self, action)
        taken.append((self.state.last_action, found[4]["density"]))
        return found

    monkeypatch.setattr(PanningEnv, "step", spy)
    bench = Workbench.of("mlp", (1, 8, 8), 10, 20)
    policy = episodes.policy_for(bench)
    episodes.agents_episode(bench, second_order)()
    assert len(taken) == episodes.agents_rounds(bench) == policy.n_rounds == 4
    assert taken[-1][1] == pytest.approx(episodes.AGENTS_DENSITY, rel=0.01)
    assert all(action is not None and action.spread > 0 for action, _ in taken)
    assert all(("grasp" in action.weights) == second_order for action, _ in taken)
    if second_order:  # the actions are the policy's on what it sees
        from panning.episode.episode import run_policy

        expected = run_policy(bench.problem, episodes.AGENTS_DENSITY, policy, policy.spec, policy.n_rounds)[0].history
        assert [action.spread for action, _ in taken] == [entry["spread"] for entry in expected]


def test_an_episodes_parts_are_those_of_the_shipped_config(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(episodes, "train_copy", lambda *given: trained.append(given))
    bench = Workbench.of("lenet5", (1, 28, 28), 10, 10)
    config = episodes.agents_config(bench)
    n_episodes = config.ppo.n_rollouts * config.ppo.n_envs * config.ppo.n_steps / config.env.n_rounds
    assert episodes.references_per_episode(bench) == 24 / n_episodes == 24 / 320
    episodes.short_training(bench)()
    ((task, masks, recipe, seed),) = trained
    assert recipe == config.env.reward.recipe and recipe.n_images == 5000 and seed == bench.problem.seed
    assert masks.density == pytest.approx(episodes.AGENTS_DENSITY, rel=1e-3)
    assert len(task.data.train) == len(task.data.validation) == 6000
    assert task.network().conv1.weight.equal(bench.problem.model.conv1.weight)  # type: ignore[union-attr]


def test_decoders_have_the_weights_that_their_names_say_and_see_no_later_token() -> None:
    for name, size in DECODERS.items():
        expected = 12 * size.width**2 * size.blocks + size.width * VOCABULARY
        assert expected == pytest.approx(1e6 * int(name.removeprefix("decoder-").removesuffix("m")), rel=0.15)
    torch.manual_seed(0)
    model = Decoder(Size(64, 2))
    n_prunable = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert n_prunable == 12 * 64**2 * 2 + 64 * VOCABULARY
    tokens = torch.randint(VOCABULARY, (1, CONTEXT))
    others = torch.cat([tokens[:, :100], (tokens[:, 100:] + 1) % VOCABULARY], 1)
    outputs = model(tokens), model(others)
    assert outputs[0].shape == (1, VOCABULARY, CONTEXT)
    torch.testing.assert_close(outputs[0][..., :100], outputs[1][..., :100])
    assert not torch.allclose(outputs[0][..., 100], outputs[1][..., 100])


def test_large_networks_are_asked_for_and_their_methods_by_pattern_alone() -> None:
    models = [case.model for case in cases(threads=[1])]
    assert not set(models) & set(LARGE_MODELS)
    assert [case.model for case in cases(["mlp"], [1], large=True)] == ["mlp", *LARGE_MODELS]
    (decoder,) = cases(["decoder-100m"], [1])
    assert decoder.input_shape == (CONTEXT,) and not any("method" in item for item in decoder.items(None))
    assert "the authors' step" not in decoder.items(None)  # it takes images
    assert decoder.items("method snip") == ["method snip"]


def record(item: str, model: str = "lenet5", **metrics: Any) -> RunRecord:
    config = {"model": model, "n_samples": 100, "threads": 1, "item": item}
    return RunRecord(f"{model}/{item}", "speed", config, {"error": None, "ratio": 1.0, **metrics})


def test_the_parts_of_an_episode_add_up() -> None:
    records = [
        record("agent's round", cpu_seconds=0.1, per_episode=5),
        record("episode: short training", cpu_seconds=1.0, per_episode=1.5),
        record("agent's round, first order", cpu_seconds=9.0),
    ]
    found = report.parts_of_episodes(records)
    assert [(part["part"], part["in_episode"], part["share"]) for part in found] == [
        ("agent's round", 0.5, 0.25), ("episode: short training", 1.5, 0.75),
    ]  # fmt: skip
    assert "| lenet5 | agent's round | 0.1 | 5 | 0.5 | 25 % |" in report.markdown(records)


def test_exponents_are_those_of_the_decoders() -> None:
    records = [
        record("SNIP", model, n_weights=n, cpu_seconds=2e-9 * n, peak_bytes=3 * n * n)
        for model, n in (("decoder-10m", 10**7), ("decoder-1m", 10**6), ("lenet5", 5))
    ]
    (fit,) = sizes.fits([*records, record("alive test", "decoder-1m", n_weights=10**6, cpu_seconds=1.0)])
    assert fit.n_weights == (10**6, 10**7) and (fit.of_time, fit.of_memory) == (1.0, 2.0)
    assert sizes.fit_cells([fit]) == [["SNIP", "1 M, 10 M", "1.00", "2", "2.00", "3e+07"]]
    picture = sizes.size_picture([fit])
    shown = [
        text.get_text() for axes in picture.drawing.axes for text in axes.get_xticklabels() + axes.get_yticklabels()
    ]
    assert "1 M" in shown and not any("$" in text for text in shown)
    assert picture.rows[0] == ["SNIP", 10**6, 2e-3, 3 * 10**12] and picture.image("png").startswith(b"\x89PNG")
    assert sizes.exponent([1, 1], [2, 3]) is None and sizes.exponent([1, 2], [0, 1]) is None


def test_the_picture_of_the_docs_shows_the_shipped_records() -> None:
    picture = sizes.size_picture(sizes.fits(report.shipped_records("speed")))
    shown = Path(__file__).parent.parent / "docs" / "results" / "speed-sizes.csv"
    assert picture.csv == shown.read_text()


def test_a_process_that_does_nothing_else_says_its_whole_memory() -> None:
    asked = {**asdict(cases(["mlp"], [1], 6)[0]), "items": [], "budget_s": 0.0}
    found = process.alone("SNIP", asked)
    assert found is None or 100e6 < found < process.from_status("VmHWM") + 500e6  # type: ignore[operator]
    assert process.alone("no such item", asked) is None


def test_processor_time_is_that_of_work_and_not_of_waiting() -> None:
    matrix = np.ones((200, 200))
    taken = spent(lambda: [matrix @ matrix for _ in range(20)])
    assert taken.cpu_s > 0 and taken.wall_s > 0
