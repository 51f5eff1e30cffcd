"""Targets other than density: multiply-adds and parameters, by every method, and what is said where they cannot be had."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tokens import IDS, Tokens
from torch import Tensor, nn
from toys import OF_UNITS, residual_problem

import panning
from panning.cli import main
from panning.compaction.cost import compute_left, cost
from panning.compare.cells import check_cell, row_name
from panning.compare.grid import GridConfig, Group
from panning.compare.report import findings, write_report
from panning.compare.reproduce import differences, run_again
from panning.compare.run import run_grid
from panning.compare.tables import tables
from panning.foundation.config import parse_config
from panning.foundation.errors import ArgumentError, ConfigError, DensityError, MaskError, PanningError
from panning.foundation.progress import silent
from panning.foundation.seeding import isolated_torch_rng
from panning.jobs.executor import SerialExecutor
from panning.masks.masks import Masks, apply_masks
from panning.models import build_model
from panning.pruners import METHODS_OWN, PRUNERS, PruneResult, Rounds, prune_problem
from panning.pruners.targets import Target, meet, whole
from panning.scoring.interface import problem_of
from panning.scoring.problem import Problem
from panning.searches.config import SearchConfig
from panning.tasks import DataSource
from panning.training import Recipe

FEW = Rounds(3)


def meeting(
    method: str, problem: Problem, target: Target, rounds: Rounds = METHODS_OWN
) -> tuple[Tensor, dict[str, Any], int]:
    """A mask, what its manifest is told, and how often the method was called."""
    calls = 0

    def prune(density: float) -> PruneResult:
        nonlocal calls
        calls += 1
        return prune_problem(problem, density, method, rounds=rounds)

    result, facts = meet(problem, target, prune)
    return result.mask, facts, calls


@pytest.mark.parametrize("of", ["multiply_adds", "parameters"])
@pytest.mark.parametrize("method", PRUNERS)
def test_every_method_meets_a_target_or_comes_as_near_as_it_can(method: str, of: str) -> None:
    problem = residual_problem()
    shape, dense = (2, 8, 8), cost(problem.model, (2, 8, 8))
    mask, facts, _ = meeting(method, problem, Target(of, 0.6), FEW)
    masks = Masks(problem.layout, mask)
    if method in OF_UNITS:
        left = cost(panning.compact(problem.model, masks, shape).model, shape)
        assert not cost_of_single_weights(problem, masks)
    else:
        left = cost(problem.model, shape, masks)
    n = {
        "multiply_adds": left.multiply_adds if method in OF_UNITS else left.masked_multiply_adds,
        "parameters": left.n_parameters if method in OF_UNITS else dense.n_parameters - int((~mask).sum()),
    }[of]
    name, n_dense = {"multiply_adds": ("macs", dense.multiply_adds), "parameters": (of, dense.n_parameters)}[of]
    assert facts[f"reached_{name}"] == n and facts[f"dense_{name}"] == n_dense
    # A unit of the first stream has a sixth of all multiply-adds; the next test says that the nearest mask is found.
    assert n == pytest.approx(0.6 * n_dense, rel=0.14 if method in OF_UNITS else 0.02)


def cost_of_single_weights(problem: Problem, masks: Masks) -> int:
    """The zeros that are left in the compact network of a mask of whole units."""
    small = panning.compact(problem.model, masks, (2, 8, 8)).model
    return sum(int((p == 0).sum()) for p in small.parameters() if p.dim() > 1)


def test_the_nearest_of_all_masks_of_whole_units_is_found() -> None:
    problem = residual_problem()
    result, dense = prune_problem(problem, 0.9, "snap"), cost(problem.model, (2, 8, 8)).multiply_adds
    ranks = result.scores.floor()
    can = [
        cost(problem.model, (2, 8, 8), Masks(problem.layout, ranks >= rank)).masked_multiply_adds
        for rank in ranks.unique()
    ]
    assert len(can) > 10
    for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0):
        _, facts, calls = meeting("snap", problem, Target("multiply_adds", share))
        assert abs(facts["reached_macs"] - share * dense) == min(abs(n - share * dense) for n in can)
        assert calls == 1, "scores of one round are found once"


def narrow() -> nn.Module:
    """Biases are a seventh of its parameters, and at the lower end most of them."""
    with isolated_torch_rng(0):
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def labelled() -> tuple[Tensor, Tensor]:
    return torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3


def test_the_nearest_compact_network_is_found_down_to_the_smallest() -> None:
    model, data = narrow(), labelled()
    by_units = {
        masks.n_kept: masks
        for masks in (panning.prune(model, data, method="snap", target_macs=n) for n in range(10, 137, 4))
    }
    can = [cost(panning.compact(model, masks).model, (6,)).n_parameters for masks in by_units.values()]
    assert min(can) == 15 and max(can) == 155
    for n in (15, 20, 31, 45, 77, 110, 150, 155):
        reached = panning.prune(model, data, method="snap", target_parameters=n).manifest["reached_parameters"]
        assert abs(reached - n) <= max(0.02 * n, min(abs(other - n) for other in can)), n


@pytest.mark.parametrize("method", ["snip", "snap"])
def test_the_smallest_number_that_an_error_names_can_be_had(method: str) -> None:
    with pytest.raises(DensityError, match="can be had") as refused:
        panning.prune(narrow(), labelled(), method=method, target_parameters=5)
    (least,) = re.findall(r"from (\d+) to 155", str(refused.value))
    masks = panning.prune(narrow(), labelled(), method=method, target_parameters=int(least))
    assert masks.manifest["reached_parameters"] == int(least)


def test_a_method_of_one_round_scores_once_and_others_few_times() -> None:
    problem = residual_problem()
    assert meeting("snip", problem, Target("multiply_adds", 0.3))[2] == 1
    mask, _, calls = meeting("synflow", problem, Target("multiply_adds", 0.3), FEW)
    assert 1 < calls < 12
    assert torch.equal(mask, prune_problem(problem, int(mask.sum()) / len(mask), "synflow", rounds=FEW).mask)


def test_numbers_and_shares_of_them_are_the_same_target() -> None:
    problem = residual_problem()
    dense = cost(problem.model, (2, 8, 8)).multiply_adds
    share, number = (meeting("snip", problem, Target("multiply_adds", n))[0] for n in (0.25, 0.25 * dense))
    assert torch.equal(share, number)


def test_whole_units_leave_out_the_one_that_is_kept_in_part() -> None:
    result = prune_problem(residual_problem(), 0.5, "snap")
    ranks, kept = result.scores.floor(), whole(result).mask
    assert int(kept.sum()) < int(result.mask.sum())
    assert all(kept[ranks == rank].all() or not kept[ranks == rank].any() for rank in ranks.unique())
    plain = prune_problem(residual_problem(), 0.5, "snip")
    assert whole(plain) is plain


def batch() -> tuple[Tensor, Tensor]:
    return residual_problem().batch(0)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"target_macs": 50, "method": "snap"}, DensityError, r"No mask leaves about 50 multiply-adds: from [\d,]+ to "),
        ({"target_macs": 50, "method": "snap_it"}, DensityError, r"from [\d,]+ to [\d,]+ can be had"),
        ({"target_parameters": 5, "method": "three_sp"}, DensityError, "No mask leaves about 5 parameters: from "),
        ({"target_parameters": 5, "method": "snip"}, DensityError, "No mask leaves about 5 parameters: from "),
        ({"target_macs": 0.01, "method": "uniform_plus"}, DensityError, "can be had"),
        ({"target_macs": 0.9, "method": "snip", "max_density": {"*": 0.5}}, DensityError, r"is 0.000\d+ to 0.5 of"),
        ({"target_macs": 50, "method": "erk"}, DensityError, "to 1 of the dense"),
        ({"target_macs": 2, "method": "snip"}, DensityError, "from 18 to "),
        ({"target_macs": 10**9}, DensityError, "The dense network has .* fewer than the 1,000,000,000"),
        ({"target_macs": 0.5, "density": 0.5}, DensityError, "density and target_macs each say how much"),
        ({"target_macs": 0.0}, DensityError, "must be a share"),
        ({"target_macs": "half"}, DensityError, "must be a share"),
        ({"target_macs": 0.5, "shape": "2:4"}, MaskError, "goes by weights"),
        ({"density": 0.5, "round_to": 8, "method": "snap"}, MaskError, "do not add up to exactly a density"),
        ({"target_macs": 0.5, "round_to": 8, "method": "snip"}, MaskError, "precrop_erk; given 'snip'"),
        ({"target_macs": 0.5, "round_to": 0, "method": "snap"}, MaskError, "whole number of channels"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_what_can(
    given: dict[str, Any], error: type[PanningError], told: str
) -> None:
    with pytest.raises(error, match=told):
        panning.prune(residual_problem().model, batch(), **given)


def test_prune_tells_in_the_manifest_and_rounds_channels() -> None:
    with isolated_torch_rng(0):
        layers = nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 40, 3), nn.ReLU(), nn.Conv2d(40, 20, 1), nn.Flatten()
        model, images = nn.Sequential(*layers, nn.Linear(80, 4)), torch.randn(8, 3, 6, 6)
    masks = panning.prune(model, (images, torch.arange(8) % 4), method="three_sp", target_macs=0.5, round_to=8)
    small = panning.compact(model, masks)
    assert masks.manifest["target_macs"] == 0.5 and masks.manifest["round_to"] == 8
    assert masks.manifest["reached_macs"] == cost(small.model, (3, 6, 6)).multiply_adds
    channels = [module.out_channels for module in small.model.modules() if isinstance(module, nn.Conv2d)]
    assert len(channels) == 3 and all(n % 8 == 0 or n == 20 for n in channels) and channels != [24, 40, 20]


# --- networks ---


def test_networks_of_tokens_have_targets_too() -> None:
    data, dense = (IDS, torch.arange(12) % 3), 5 * 4 * 6 + 6 * 3  # five places through the hidden layer, one head
    masks = panning.prune(Tokens(), data, method="erk", target_macs=0.5)
    reached = 5 * int(masks["mixing.weight"].sum()) + int(masks["head.weight"].sum())
    assert masks.manifest["dense_macs"] == dense and masks.manifest["reached_macs"] == reached
    assert reached == pytest.approx(0.5 * dense, abs=3)
    for given in ({"target_macs": 0.5}, {"target_parameters": 48 + 3 * 5 + 4 * 3}):
        masks = panning.prune(Tokens(), data, method="three_sp", **given)
        units = masks["mixing.weight"].any(1)  # whole ones, half of the six
        assert units.sum() == 3 and masks["mixing.weight"][units].all() and masks["head.weight"][:, units].all()
    problem = problem_of(Tokens(), masks.layout, data)
    assert compute_left(problem, masks) == 0.5
    assert cost(Tokens(), (5,)).multiply_adds == dense, "a shape alone says it"


def half(name: str, side: int, method: str = "snap", **settings: Any) -> None:
    """Half of the multiply-adds are left, and the compact network computes in float64 what the masked network does."""
    torch.manual_seed(0)
    if name.startswith("torchvision:"):
        torchvision = pytest.importorskip("torchvision")
        model = torchvision.models.get_model(name.partition(":")[2], weights=None, num_classes=10, **settings)
        if "vit" in name:
            torch.nn.init.normal_(model.heads.head.weight)  # it starts at zero, and no unit has a gradient then
    else:
        model = build_model(name, input_shape=(3, side, side), n_classes=10, seed=0)
    model, images = model.double(), torch.randn(10, 3, side, side, dtype=torch.double)
    masks = panning.prune(model, (images, torch.arange(10)), method=method, target_macs=0.5)
    small, dense = panning.compact(model, masks), cost(model, (3, side, side)).multiply_adds
    left = cost(small.model, (3, side, side)).multiply_adds
    assert left == masks.manifest["reached_macs"] and left == pytest.approx(0.5 * dense, rel=0.02)
    masked = copy.deepcopy(model).eval()
    apply_masks(masked, masks)
    with torch.no_grad():
        torch.testing.assert_close(small.model.eval()(images), masked(images), rtol=1e-9, atol=1e-9)


def tiny_vit() -> dict[str, Any]:
    return {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}


def test_small_networks_of_each_kind_at_half_their_multiply_adds() -> None:
    half("resnet20", 16)
    half("torchvision:mobilenet_v3_small", 32, "three_sp", width_mult=0.25)
    vision_transformer = pytest.importorskip("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    vit = vision_transformer.VisionTransformer(num_classes=10, **tiny_vit()).double()
    images = torch.randn(10, 3, 32, 32, dtype=torch.double)
    with pytest.warns(
        panning.PanningWarning, match="units that are kept score as others that are cut.*'heads.head.weight'"
    ):
        panning.prune(vit, (images, torch.arange(10)), method="snap", target_macs=0.8)  # a head of zeros: no gradient
    torch.nn.init.normal_(vit.heads.head.weight)
    masks = panning.prune(vit, (images, torch.arange(10)), method="snap", target_macs=0.8)
    small = panning.compact(vit, masks)
    assert cost(small.model, (3, 32, 32)).multiply_adds == masks.manifest["reached_macs"]
    with pytest.raises(DensityError, match="can be had"):  # attention stays
        panning.prune(vit, (images, torch.arange(10)), method="snap", target_macs=0.1)


# --- grids, and where there are no targets ---


def grid(**change: Any) -> GridConfig:
    task = {"task": {"model": "mlp", "data": "digits", "n_train": 100}, "recipe": {"epochs": 1, "batch_size": 50}}
    values = {"name": "g", "tasks": [task | {"shares_of": "multiply_adds"}], "densities": [0.5], "seeds": [0],
              "methods": ["erk", "snap"], "controls": False}  # fmt: skip
    return parse_config(GridConfig, values | change, "g.yaml")


def test_a_grid_sets_methods_side_by_side_at_shares_of_the_multiply_adds(tmp_path: Path) -> None:
    records = run_grid(grid(), tmp_path, tmp_path / "out", SerialExecutor(), silent)
    by_method = {row_name(record.config): check_cell(record) for record in records}
    assert all(record.config["shares_of"] == "multiply_adds" for record in records)
    random, whole = by_method["random (ERK)"], by_method["SNAP (units)"]
    # By hand: an MLP uses every weight once, so that kept weights are multiply-adds; one takes out of units the other not.
    assert random.metrics["density"] == pytest.approx(0.5, rel=0.005)
    assert whole.metrics["compute_left"] == pytest.approx(0.5, rel=0.02) and whole.metrics["density"] != 0.5
    assert differences(whole, run_again(whole, DataSource())) == []
    (table,) = tables(records)
    assert table.title == "mlp on Digits, by multiply-adds" and table.level == "share of multiply-adds"
    assert findings(table)[0].startswith("At share of multiply-adds 0.5, ")
    write_report(records, tmp_path)
    assert "| share of multiply-adds |" in (tmp_path / "report.md").read_text()


def test_cells_at_densities_are_the_jobs_that_they_were() -> None:
    job = Group(
        grid(tasks=[grid().tasks[0].model_copy(update={"shares_of": "weights"})]).tasks[0], (0,), DataSource()
    ).jobs(Recipe(), test=True)[0]
    assert "shares_of" not in job.config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"methods": [{"dynamic": "rigl"}]},
            "'rigl' moves its mask by weights, which changes the number of multiply-adds",
        ),
        ({"methods": [{"method": "snip", "shape": "2:4"}]}, "Shape '2:4' goes by weights"),
        ({"target_macs": 0.5}, "target_macs: say shares_of: multiply_adds in a task"),
        ({"min_density": {"fc*": 0.1}}, "min_density: bounds stand with their method: {method: snip, min_density: "),
    ],
)
def test_grids_say_what_goes_with_targets_and_how_they_are_written(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        grid(**change)


def test_where_there_are_no_targets_a_sentence_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="target_macs: a search goes by densities, which its agent is trained for"):
        parse_config(SearchConfig, {"target_macs": 0.5}, "s.yaml")
    model = nn.Linear(4, 2)
    for name in ("target_macs", "min_density"):
        with pytest.raises(ArgumentError, match=rf"takes no {name}\. Masks that move keep .*prune\(..., {name}=...\)"):
            panning.move_masks(model, torch.optim.SGD(model.parameters(), 0.1), n_steps=3, **{name: 0.5})  # type: ignore[arg-type]
    for name in ("quotas", "place", "round_to", "control"):
        with pytest.raises(ArgumentError, match=rf"takes no {name}\. It is a matter of the first mask"):
            panning.move_masks(model, torch.optim.SGD(model.parameters(), 0.1), n_steps=3, **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--model", "mlp", "--data", "digits", "--target-macs", "0.5"])
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ended.value.code == 2 and "takes the mask that panning prune --target-macs finds, as --mask" in told


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "side"),
    [("torchvision:resnet50", 64), ("vgg19", 32), ("torchvision:mobilenet_v3_large", 64), ("torchvision:vit_b_16", 64)],
)
def test_networks_at_half_their_multiply_adds(name: str, side: int) -> None:
    half(name, side, **({"image_size": side} if "vit" in name else {}))
