"""The library's public interface: ``panning.prune`` and what goes with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset
from toys import ResidualNet, residual_problem

import panning
from panning.data.batches import LoaderBatches, batch_source
from panning.foundation.errors import DataError, DensityError, MaskError, ModelError, NonFiniteError, PanningError
from panning.pruners import METHODS_OWN, PruneResult, Rounds, prune_problem
from panning.scoring.problem import Problem
from panning.tasks import Task, TaskSpec, check_task_names, load_task

IMAGES, LABELS = residual_problem().batch(0)


def model() -> nn.Module:
    return residual_problem().model


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS),
        TensorDataset(IMAGES, LABELS),
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=6),
    ],
    ids=["batch", "dataset", "loader"],
)
def test_data_may_be_a_batch_a_dataset_or_a_loader(data: Any) -> None:
    masks = panning.prune(model(), data, density=0.1, method="iter_snip", n_rounds=3)
    assert masks.n_kept == round(0.1 * masks.n_prunable)
    assert masks == panning.prune(model(), data, density=0.1, method="iter_snip", n_rounds=3)


def test_a_shuffling_loader_gives_equal_masks_and_leaves_the_random_state() -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=True)
    state = torch.get_rng_state()
    first = panning.prune(model(), loader, density=0.1, method="iter_snip", n_rounds=5)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert first == panning.prune(model(), loader, density=0.1, method="iter_snip", n_rounds=5)


@pytest.mark.parametrize("where", ["loader", "sampler", "batch sampler"])
def test_a_loaders_own_generator_is_left_as_it_was_and_changes_no_mask(where: str) -> None:
    generator = torch.Generator().manual_seed(7)
    images = TensorDataset(IMAGES, LABELS)
    if where == "loader":
        loader = DataLoader(images, batch_size=4, shuffle=True, generator=generator)
    else:
        sampler = RandomSampler(images, generator=generator)
        batches = BatchSampler(sampler, 4, drop_last=False)
        loader = (
            DataLoader(images, 4, sampler=sampler) if where == "sampler" else DataLoader(images, batch_sampler=batches)
        )
    state = generator.get_state()
    first = panning.prune(model(), loader, density=0.1, method="iter_snip", n_rounds=5)
    assert torch.equal(state, generator.get_state()) and generator.initial_seed() == 7
    torch.rand(3, generator=generator)
    assert first == panning.prune(model(), loader, density=0.1, method="iter_snip", n_rounds=5)
    source = LoaderBatches(loader, seed=3)
    seen = [source(number)[0] for number in range(6)]
    assert all(torch.equal(seen[i], seen[i + 3]) for i in range(3)) and not torch.equal(seen[0], seen[1])


class Labelled(TensorDataset):
    """A data set with its labels at hand, as torchvision's."""

    def __init__(self, targets: Any) -> None:
        super().__init__(torch.arange(len(targets)), torch.as_tensor(targets))
        self.targets = targets


@pytest.mark.parametrize("as_list", [False, True])
def test_batches_from_a_dataset_with_labels_are_balanced(as_list: bool) -> None:
    targets: Any = torch.tensor([0] * 500 + [1] * 40 + [2] * 100 + [3] * 9)
    dataset = Labelled(targets.tolist() if as_list else targets)
    source = batch_source(dataset, 0)
    (samples, labels), (others, _) = source(0), source(1)
    counts = labels.bincount().tolist()
    assert counts[3] == 9 and counts[1] == 40 and sorted([counts[0], counts[2]]) == [39, 40]
    assert samples.unique().numel() == 128 and torch.equal(targets[samples], labels)
    assert torch.equal(samples, source(0)[0]) and not torch.equal(samples, others)
    assert not torch.equal(samples, batch_source(dataset, 1)(0)[0])
    part = batch_source(Subset(dataset, range(480, 580)), 0)(0)[1]  # 20, 40 and 40: all of them
    assert part.bincount().tolist() == [20, 40, 40]


def test_many_classes_take_turns_and_other_targets_are_drawn_alike() -> None:
    many = batch_source(Labelled(list(range(1000)) * 2), 0)(0)[1]
    assert many.unique().numel() == 128 and many.max() > 500
    for targets in (torch.rand(200), torch.randint(0, 2, (200, 3))):
        assert len(batch_source(Labelled(targets), 0)(0)[0].unique()) == 128


def test_pruning_and_counting_work_inside_no_grad() -> None:
    with torch.no_grad():
        masks = panning.prune(model(), (IMAGES, LABELS), density=0.1, method="grasp")
        assert 0 < masks.effective_density(model()) <= masks.density


def test_the_whole_way_from_pruning_to_a_masked_model(tmp_path: Path) -> None:
    network = model()
    keys = list(network.state_dict())
    masks = panning.prune(network, (IMAGES, LABELS), density=0.05, method="snip", all_alive=True, seed=3)
    assert masks.manifest["effective_density"] == masks.density == masks.effective_density(network)
    panning.save_masks(masks, tmp_path / "m.safetensors")
    loaded = panning.load_masks(tmp_path / "m.safetensors")
    assert loaded == masks and loaded.manifest["seed"] == 3
    panning.apply_masks(network, loaded)
    assert list(network.state_dict()) == keys
    assert int(sum(p.count_nonzero() for n, p in network.named_parameters() if n in masks)) == masks.n_kept


def test_methods_without_data_need_the_input_shape_only() -> None:
    masks = panning.prune(model(), density=0.1, method="synflow", input_shape=(2, 8, 8), n_rounds=5)
    assert masks.density == pytest.approx(0.1, abs=1e-3)
    with pytest.raises(DataError, match="input_shape"):
        panning.prune(model(), density=0.1, method="synflow")
    with pytest.raises(DataError, match="needs data"):
        panning.prune(model(), density=0.1, method="snip", input_shape=(2, 8, 8))


def test_names_choose_what_is_prunable() -> None:
    masks = panning.prune(model(), (IMAGES, LABELS), density=0.5, method="magnitude", exclude=("classifier*", "stem*"))
    assert list(masks) == ["block1.weight", "block2.weight", "down.weight", "shortcut.weight"]
    masks = panning.prune(model(), (IMAGES, LABELS), density=0.5, method="magnitude", include=("block*",))
    assert list(masks) == ["block1.weight", "block2.weight"]
    with pytest.raises(ModelError, match="matches none"):
        panning.prune(model(), (IMAGES, LABELS), density=0.5, exclude=("nothing*",))


def test_any_loss_of_outputs_and_targets_will_do() -> None:
    targets = torch.randn(12, 3)
    masks = panning.prune(model(), (IMAGES, targets), density=0.2, method="snip", loss=F.mse_loss)
    assert masks != panning.prune(model(), (IMAGES, LABELS), density=0.2, method="snip")


def test_schedule_and_rounds_replace_the_methods_own() -> None:
    arguments: dict[str, Any] = {"density": 0.02, "method": "iter_snip", "n_rounds": 4}
    exponential = panning.prune(model(), (IMAGES, LABELS), **arguments)
    linear = panning.prune(model(), (IMAGES, LABELS), schedule="linear", **arguments)
    assert exponential.n_kept == linear.n_kept and exponential != linear


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"density": 0.0}, DensityError),
        ({"density": 2 / 1e4}, DensityError),
        ({"density": 0.5, "method": "sinp"}, KeyError),
        ({"density": 0.5, "schedule": "expo"}, KeyError),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        panning.prune(model(), (IMAGES, LABELS), **arguments)


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS[:3]),
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES,),
        5,
        DataLoader(TensorDataset(IMAGES[:0], LABELS[:0])),
        TensorDataset(IMAGES),
    ],
)
def test_data_of_the_wrong_kind_are_refused(data: Any) -> None:
    with pytest.raises(DataError):
        panning.prune(model(), data, density=0.5, method="snip")


def test_a_model_without_prunable_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="no prunable weight"):
        panning.prune(nn.Sequential(nn.ReLU()), (IMAGES, LABELS), density=0.5)


def test_the_model_comes_back_unchanged_in_every_respect() -> None:
    network = ResidualNet().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    panning.prune(network, (IMAGES, LABELS), density=0.1, method="panning_staged", n_rounds=3, all_alive=True)
    assert network.training and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_unknown_public_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = panning.prun  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((IMAGES.double(), LABELS), ModelError, r"of torch.float32, fails on the data \(inputs .* of torch.float64"),
        ((IMAGES[:, :1], LABELS), ModelError, r"fails on the data \(inputs \(12, 1, 8, 8\)"),
        ((IMAGES, LABELS.float()), DataError, r"the targets, \(12,\) of torch.float32, are neither. Pass loss="),
        ((IMAGES, LABELS + 7), DataError, "out of bounds"),
    ],
)
def test_data_that_the_model_or_the_loss_does_not_take_is_said_to(
    data: tuple[torch.Tensor, torch.Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        panning.prune(model(), data, density=0.5, method="snip")


def test_methods_that_need_no_data_do_not_look_at_it() -> None:
    """No loss takes such labels; the mask is that of other data."""
    masks = panning.prune(model(), (IMAGES, LABELS.float()), density=0.5, method="synflow")
    assert masks == panning.prune(model(), (IMAGES, LABELS), density=0.5, method="synflow")


def test_a_forward_that_writes_into_its_input_leaves_the_callers_data_alone() -> None:
    class Shifting(ResidualNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.sub_(0.5))

    images = IMAGES.clone()
    panning.prune(Shifting(), (images, LABELS), density=0.5, method="iter_snip", n_rounds=3)
    assert torch.equal(images, IMAGES)


def test_a_lazy_layer_without_a_shape_is_refused() -> None:
    lazy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))
    with pytest.raises(ModelError, match="'1.weight' of a lazy layer"):
        panning.prune(lazy, (IMAGES, LABELS), density=0.5)


def test_variants_are_in_the_manifest() -> None:
    masks = panning.prune(model(), (IMAGES, LABELS), density=0.3, method="force", released=True, control="shuffle")
    assert masks.manifest["released"] is True and masks.manifest["control"] == "shuffle"
    assert masks.manifest["n_dead_units"] > 0 and isinstance(masks.manifest["collapsed_layers"], list)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": "0.1"}, "Density must be a number"),
        ({"n_rounds": 2.5}, "whole number"),
        ({"input_shape": (-1, 3)}, "input_shape must be"),
        ({"device": "foo"}, "'foo' is no device"),
        ({"loss": lambda outputs, targets: 1.0}, "must give a tensor"),
        ({"data": DataLoader([{"x": 1, "y": 2}] * 4)}, "forward takes x, and the batch has x, y"),
    ],
)
def test_arguments_of_a_wrong_kind_are_said_to(change: dict[str, Any], message: str) -> None:
    arguments = {"data": (IMAGES, LABELS), "density": 0.5, "method": "snip", **change}
    with pytest.raises(PanningError, match=message):
        panning.prune(model(), arguments.pop("data"), **arguments)


def test_a_callers_evaluation_loop_and_mixed_precision_change_nothing() -> None:
    expected = panning.prune(model(), (IMAGES, LABELS), density=0.3, method="ntk_sap", n_rounds=1)
    net = model()
    with torch.autocast("cpu"):
        assert panning.prune(net, (IMAGES, LABELS), density=0.3, method="ntk_sap", n_rounds=1) == expected
    with torch.inference_mode():
        assert panning.prune(net, (IMAGES, LABELS), density=0.3, method="ntk_sap", n_rounds=1) == expected


def test_a_single_pattern_may_be_a_string() -> None:
    assert list(panning.prune(model(), (IMAGES, LABELS), density=0.5, include="stem*")) == ["stem.weight"]


def test_a_loaders_batches_come_round_again_and_few_are_kept() -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2, shuffle=True)  # 6 batches
    batches = LoaderBatches(loader, seed=3)
    seen = [batches(number)[0] for number in range(14)]
    assert len(batches.kept) <= LoaderBatches.N_KEPT
    assert all(torch.equal(seen[i], seen[i + 6]) for i in range(8))
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(batches(2)[0], seen[2])  # long gone: from the start again


# --- a pruner of the caller's own ---


class SmallestFirst:
    """Keeps the smallest weights, but for ``change``, which breaks one thing after the other."""

    indices, n_rounds = (), 1

    def __init__(self, change: Any = lambda result: result) -> None:
        self.change = change

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> Any:
        scores = -problem.weight.abs()
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[scores.topk(round(density * scores.numel())).indices] = True
        return self.change(PruneResult(problem.layout, mask, scores))


def test_a_pruner_of_the_callers_own_prunes_as_a_row_does() -> None:
    masks = panning.prune(model(), (IMAGES, LABELS), density=0.5, method=SmallestFirst())
    inverted = panning.prune(model(), (IMAGES, LABELS), density=0.5, method="magnitude", control="invert")
    assert masks == inverted and masks.manifest["method"] == "SmallestFirst"
    alive = panning.prune(model(), (IMAGES, LABELS), density=0.05, method=SmallestFirst(), all_alive=True)
    assert alive.effective_density(model()) == alive.density


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (lambda problem: None, MaskError, "method is a function; pass a name"),
        (SmallestFirst, MaskError, "method is the class SmallestFirst; pass a name"),
        (SmallestFirst(lambda r: None), MaskError, "gave NoneType, but must give a panning.pruners.PruneResult"),
        (SmallestFirst(lambda r: replace(r, mask=~r.mask | r.mask)), MaskError, "keeps 776 weights, but.*exactly 78"),
        (SmallestFirst(lambda r: replace(r, mask=r.mask[1:])), MaskError, r"mask \(775,\) of torch.bool, but.*\[776\]"),
        (SmallestFirst(lambda r: replace(r, mask=r.scores)), MaskError, "mask .* of torch.float32, but must give bool"),
        (SmallestFirst(lambda r: replace(r, scores=r.scores * float("nan"))), NonFiniteError, "'stem.weight' with NaN"),
    ],
)  # fmt: skip
def test_what_is_no_pruner_or_gives_no_good_mask_is_refused(method: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        panning.prune(model(), (IMAGES, LABELS), density=0.1, method=method)


def test_a_pruner_of_the_callers_own_may_score_by_known_indices_alone() -> None:
    unknown = SmallestFirst()
    unknown.indices = ("synflo",)
    with pytest.raises(KeyError, match="Did you mean 'synflow'"):
        panning.prune(model(), (IMAGES, LABELS), density=0.1, method=unknown)


@pytest.mark.parametrize(
    ("name", "value"), [("indices", "synflow"), ("indices", None), ("n_rounds", None), ("n_rounds", 1.5)]
)
def test_a_pruner_of_the_callers_own_must_say_its_indices_and_rounds(name: str, value: Any) -> None:
    wrong = SmallestFirst()
    setattr(wrong, name, value)
    with pytest.raises(MaskError, match=f"SmallestFirst has .*{name} {value!r}.* but must have a tuple of names"):
        panning.prune(model(), (IMAGES, LABELS), density=0.1, method=wrong)


# --- a task whose model is a factory ---


def small(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, n_classes))


def task_of(factory: Any) -> Task:
    return load_task(TaskSpec(model=factory, data="digits", n_train=100), 3)


def test_a_task_takes_a_factory_whose_weights_belong_to_the_seed() -> None:
    one, again = task_of(small), task_of(small)
    assert torch.equal(one.problem.weight, again.problem.weight)
    assert prune_problem(one.problem, 0.1, "snip").masks.n_kept == round(0.1 * 592)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: "net", "'.*lambda.*' returned str, but must return a torch.nn.Module"),
        (
            lambda width: nn.Linear(width, 1),
            "wants other arguments: a factory is called with input_shape and n_classes",
        ),
        (lambda: [][0], "failed when called: IndexError"),
        (lambda: nn.Linear(3, 10), "fails on inputs of shape"),
    ],
)
def test_what_is_no_factory_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        task_of(factory)


def test_configs_that_name_their_results_take_a_factory_once_it_is_known_what_it_makes() -> None:
    task = TaskSpec(model=small, data="digits", n_train=100)
    with pytest.raises(ValueError, match="model is the factory 'small', but results are filed by content"):
        check_task_names(task)
    assert check_task_names(task.settled()).model_dump(mode="json")["model"].startswith("own:Sequential-")


@pytest.mark.parametrize("method", ["erk", "npb", "dpai", "magnitude", "synflow"])
def test_weights_that_are_no_numbers_are_refused_whatever_the_method_reads(method: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight[1, 1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"Layer '2\.weight' has NaN or infinite weights"):
        panning.prune(model, input_shape=(6,), density=0.5, method=method)
