"""Masks that move in a shape: exactly N of each M, or whole blocks, after every step."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from console import run
from torch import Tensor, nn

import panning
from panning.foundation.errors import ConfigError, DensityError, MaskError
from panning.jobs.spec import CellSpec
from panning.jobs.train import TrainConfig, check_train
from panning.jobs.ways import Method
from panning.jobs.work import Job, execute
from panning.masks.shape import Shaped
from panning.scoring.problem import Problem
from panning.tasks import DataSource, TaskSpec, load_task
from panning.training import DYNAMICS, Movement, Recipe, make_dynamic, train
from panning.training.loop import check_training
from panning.training.moving.engine import MovingMasks
from panning.training.moving.in_shape import move_in_shape
from panning.training.moving.method import BLOCKS, N_OF_M, Clock, Move, View

EXCHANGING = ("set", "rigl", "rigl_itop", "granet", "granet_st", "dpf", "surgery")
MOVE = {"2:4": (*EXCHANGING, "deep_r", "quantized"), "2x2": (*EXCHANGING, "gmp", "gmp_layerwise")}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(),
        nn.Linear(16, 4),
    )  # fmt: skip


def moved(name: str, shape: str, **rest: Any) -> tuple[MovingMasks, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    options = {
        "density": None if ":" in shape else 0.25,
        "n_steps": 24,
        "steps_per_epoch": 4,
        "input_shape": (3, 8, 8),
    }
    method = rest.pop("method", None) or make_dynamic(name, {"every": 2})
    return panning.move_masks(model, optimizer, method, shape=shape, **{**options, **rest}), optimizer


def step(moving: MovingMasks, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    inputs, labels = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(moving.problem.model(inputs), labels).backward()
    optimizer.step()


def holds(shaped: Shaped, mask: Tensor) -> bool:
    counts = torch.cat([mask[groups].sum(1) for groups in shaped.groups.values()])
    size = next(iter(shaped.groups.values())).shape[1]
    return bool(
        (counts == shaped.shape.kept).all() if shaped.shape.of > 1 else ((counts == 0) | (counts == size)).all()
    )


@pytest.mark.parametrize("shape", MOVE)
@pytest.mark.parametrize("name", DYNAMICS)
def test_the_shape_holds_after_every_step_or_the_method_is_refused(name: str, shape: str) -> None:
    if name not in MOVE[shape]:
        with pytest.raises(MaskError, match=f"^This method moves no masks of the shape '{shape}'. I"):
            moved(name, shape, method=make_dynamic(name))
        return
    moving, optimizer = moved(name, shape)
    shaped = Shaped.of(moving.problem.model, moving.problem.layout, shape)
    n_final, before, n_grown = shaped.n_kept(None if shape == "2:4" else 0.25), moving.mask, 0
    assert holds(shaped, moving.mask)
    for number in range(24):
        step(moving, optimizer, number)
        assert holds(shaped, moving.mask) and int(moving.mask.sum()) >= n_final
        assert int(moving.mask.sum()) == n_final or (shape == "2x2" and not moving.method.keeps_count)
        n_grown += int((moving.mask & ~before)[~torch.isin(torch.arange(before.numel()), _single(shaped))].sum())
        before = moving.mask
    assert (n_grown > 0) != moving.method.only_prunes or name == "surgery"  # whose band no block crosses here
    masks = moving.finish()
    assert masks.n_kept == n_final and not moving.flat.read()[~masks.flat].any()
    assert masks.manifest == {"input_shape": [3, 8, 8], "shape": shape, "not_in_shape": ["0.weight"]}


def _single(shaped: Shaped) -> Tensor:
    """Positions of the weights that the shape does not cover."""
    parts = zip(shaped.layout.names, shaped.layout.slices(), strict=True)
    return torch.cat([torch.arange(part.start, part.stop) for name, part in parts if name in shaped.uncovered])


def test_the_kinds_of_shapes_are_those_of_the_refusals() -> None:
    assert {name for name, row in DYNAMICS.items() if N_OF_M in row.method.shapes} - {"dpf_filters"} == set(MOVE["2:4"])
    assert {name for name, row in DYNAMICS.items() if BLOCKS in row.method.shapes} - {"dpf_filters"} == set(MOVE["2x2"])


def seen(weights: list[float], mask: list[int]) -> tuple[Shaped, View]:
    model = nn.Linear(len(weights), 1, bias=False)
    model.weight.data = torch.tensor([weights])
    problem = Problem.of(model, (len(weights),), None)
    flat = torch.tensor(mask).bool()
    view = View(
        problem, Clock(1, 9, 9, 3), flat, 0.5, 0.5, (), problem.weight, flat, None, 0.1, lambda: problem.weight, {},
        torch.Generator(),
    )  # fmt: skip
    return Shaped.of(model, problem.layout, "2:4"), view


def test_what_stays_comes_first_then_what_is_grown_then_the_best_of_the_others() -> None:
    """In the first group both kept weights stay; in the second one has gone, and of three the best comes in."""
    shaped, view = seen([0.1, -0.2, 0.0, 0.0] + [0.3, 0.05, 0.0, 0.0], [1, 1, 0, 0] * 2)
    decided = torch.tensor([1, 1, 0, 1] + [1, 0, 0, 0]).bool()  # position 3 is grown where there is no room
    revival = torch.tensor([0.0, 0.0, 1.0, 9.0] + [0.0, 2.0, 1.0, 3.0])
    assert move_in_shape(shaped, view, Move(decided, revival=revival), "zero").int().tolist() == [
        1,
        1,
        0,
        0,
        1,
        0,
        0,
        1,
    ]
    grown = torch.tensor([1, 0, 0, 1] + [0, 0, 1, 1]).bool()
    assert move_in_shape(shaped, view, Move(grown, revival=revival), "zero").int().tolist() == [1, 0, 0, 1, 0, 0, 1, 1]


def test_under_feedback_the_largest_dense_weights_of_each_group_run() -> None:
    moving, optimizer = moved("dpf", "2:4")
    for number in range(8):
        step(moving, optimizer, number)
        if number % 2 == 1:  # a move
            dense = moving.dense_weights()["2.weight"].permute(0, 2, 3, 1).reshape(-1, 4).abs()
            best = torch.zeros_like(dense).scatter(1, dense.topk(2).indices, 1.0).bool()
            assert torch.equal(moving.masks["2.weight"].permute(0, 2, 3, 1).reshape(-1, 4), best)


def test_whole_blocks_with_the_largest_mean_stay() -> None:
    moving, optimizer = moved("gmp", "4x1", density=0.5)
    for number in range(24):
        step(moving, optimizer, number)
    kept = moving.masks["7.weight"]  # [4, 16]: a block is a column
    assert torch.equal(kept.all(0), kept.any(0)) and 0 < int(kept[0].sum()) < 16


def test_a_first_mask_of_the_shape_is_the_first_mask() -> None:
    model = network()
    masks = panning.prune(model, method="magnitude", shape="2:4", input_shape=(3, 8, 8))
    moving, _ = moved("rigl", "2:4", masks=masks, density=masks.density)
    assert moving.masks == masks
    other, _ = moved("rigl", "2:4")
    assert other.masks != masks and other.masks.n_kept == masks.n_kept


@pytest.mark.filterwarnings("error::panning.PanningWarning")
def test_first_masks_of_a_shape_that_is_not_asked_for_are_said_to_lose_it() -> None:
    model = network()
    masks = panning.prune(model, method="magnitude", shape="2:4", input_shape=(3, 8, 8))
    settings: dict[str, Any] = {"n_steps": 400, "steps_per_epoch": 100, "masks": masks}
    for method, shape, warned in (("rigl", None, True), ("rigl", "2:4", False), ("release", None, False)):
        other = copy.deepcopy(model)
        optimizer = torch.optim.SGD(other.parameters(), 0.1)
        density = None if shape else masks.density
        if warned:
            with pytest.warns(panning.PanningWarning, match="shape='2:4' keeps it"):
                panning.move_masks(other, optimizer, method, density=density, **settings)
        else:
            panning.move_masks(other, optimizer, method, density=density, shape=shape, **settings)


def test_a_saved_state_goes_on_and_one_of_another_shape_is_refused() -> None:
    runs = [moved("rigl", "2:4") for _ in range(2)]
    (moving, optimizer), (other, second) = runs
    for number in range(7):
        step(moving, optimizer, number)
    other.load_state_dict(copy.deepcopy(moving.state_dict()))
    other.problem.model.load_state_dict(moving.problem.model.state_dict())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    model, third, twin = copy.deepcopy((moving.problem.model, optimizer, moving))
    for one, its in (*runs, (twin, third)):
        for number in range(7, 20):
            step(one, its, number)
    assert torch.equal(moving.flat.read(), other.flat.read()) and moving.masks == other.masks == twin.masks
    plain, _ = moved("rigl", "4:8")
    with pytest.raises(MaskError, match="its shape is '2:4', not '4:8'"):
        plain.load_state_dict(moving.state_dict())


def test_the_training_loop_moves_in_a_shape() -> None:
    task = load_task(TaskSpec(model="mlp", data="digits", n_train=200), 0)
    shaped = Shaped.of(task.problem.model, task.problem.layout, "2:4")
    movement = Movement(make_dynamic("rigl", {"every": 2}), task.problem, 0.5, shape="2:4")
    masks = panning.Masks.dense(task.problem.layout)
    recipe = Recipe(epochs=2, batch_size=50)
    check_training(recipe, 200, movement, masks)
    result = train(task.network(), task.data, recipe, seed=0, masks=masks, movement=movement)
    assert result.masks is not None and holds(shaped, result.masks.flat) and result.masks.density == 0.5
    with pytest.raises(MaskError, match="This method moves no masks"):
        check_training(recipe, 200, replace(movement, method=make_dynamic("gmp")), masks)


def test_what_cannot_be_is_a_sentence_and_changes_nothing() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, "Shape '2-4' is none", {"shape": "2-4"}),
        (DensityError, "densities from 0.46281", {"density": 0.1}),
        (MaskError, "leave one of them away", {"all_alive": True}),
        (DensityError, "Pass density", {"shape": None}),
        (DensityError, "says nothing of how much is kept", {"shape": "2x2"}),
    ]
    for kind, said, rest in wrong:
        options = {"shape": "2:4", "n_steps": 200, "input_shape": (3, 8, 8), **rest}
        with pytest.raises(kind, match=said):
            panning.move_masks(model, optimizer, "rigl", **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_grids_name_the_shape_and_keep_it_out_of_records_where_there_is_none() -> None:
    moving = Method.model_validate({"dynamic": "rigl", "shape": "2:4"})
    assert moving.label == "RigL in 2:4" and moving.first is None
    assert "shape" not in Method.model_validate({"dynamic": "rigl"}).model_dump(mode="json")
    assert Method.model_validate({"method": "snip", "dynamic": "rigl", "shape": "2:4"}).label == "RigL in 2:4 from SNIP"
    with pytest.raises(ValueError, match="This method moves no masks of the shape '2:4'"):
        Method.model_validate({"dynamic": "gmp", "shape": "2:4"})


@pytest.mark.parametrize(
    "by", [{"dynamic": "rigl", "shape": "2:4"}, {"method": "snip", "dynamic": "rigl", "shape": "2:4"}]
)
def test_a_cell_of_a_grid_moves_in_a_shape(by: dict[str, Any]) -> None:
    spec = CellSpec.model_validate({
        "task": {"model": "mlp", "data": "digits", "n_train": 200}, "seed": 0, "density": 0.5, "by": by,
        "recipe": {"epochs": 2, "batch_size": 2},
    })  # fmt: skip
    outcome = execute(Job(spec, DataSource()))
    assert outcome.density == 0.5


def test_the_command_trains_in_a_shape(tmp_path: Path) -> None:
    command = ["train", "--model", "mlp", "--data", "digits", "--dynamic", "dpf", "--epochs", "2", "--shape", "2:4"]
    assert run(*command, "--set", "every=4", "--out", str(tmp_path / "t")) == 0
    masks = panning.load_masks(tmp_path / "t" / "mask.safetensors")
    assert masks.density == 0.5 and (masks.flat.view(-1, 4).sum(1) == 2).all()
    given = {
        "task": {"model": "mlp", "data": "digits"},
        "mask": str(tmp_path / "t" / "mask.safetensors"),
        "density": 0.5,
    }
    moving = {"dynamic": {"name": "rigl", "options": {"every": 4}}, "recipe": {"epochs": 2}}
    assert "shape='2:4' keeps it" in check_train(TrainConfig.model_validate(given | moving)).notes[-1]
