"""Any interface: networks of several inputs and outputs, losses inside, batches of any form.

Masks are those of a wrapper that takes one tensor and returns one, under the network's own names.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import panning
from panning.compaction.cost import compute_left
from panning.data.batches import batch_source
from panning.foundation.errors import DataError, MaskError, ModelError
from panning.foundation.nests import map_tensors, n_samples, samples, tensors_in, told
from panning.pruners import PRUNERS, prune_problem
from panning.scoring.interface import problem_of
from panning.tasks import TaskSpec, load_task
from panning.training import Recipe, evaluate, train

GENERATOR = torch.Generator().manual_seed(0)
X, Z, BOXES = (torch.randn(12, n, generator=GENERATOR) for n in (6, 4, 2))
LABELS = torch.arange(12) % 3
BATCH = {"x": X, "z": Z, "kind": LABELS, "box": BOXES}


class Heads(nn.Module):
    """Two inputs, two heads."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 8)
            self.kind, self.box = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        hidden = torch.cat([self.left(x).relu(), self.right(z).relu()], 1)
        return {"kind": self.kind(hidden), "box": self.box(hidden)}


class Wrapped(nn.Module):
    """What a user had to write by hand: one tensor in, one out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, both: Tensor) -> Tensor:
        found = self.model(both[:, :6], both[:, 6:])
        return torch.cat([found["kind"], found["box"]], 1)


def run(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    return model(batch["x"], z=batch["z"])


def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs["kind"], batch["kind"]) + F.mse_loss(outputs["box"], batch["box"])


def wrapped_loss(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs[:, :3], targets[0]) + F.mse_loss(outputs[:, 3:], targets[1])


#: Uniform+ wants a convolution; NTK-SAP draws its random inputs tensor by tensor.
@pytest.mark.parametrize("method", sorted({*PRUNERS} - {"uniform_plus", "ntk_sap"}))
@pytest.mark.parametrize("all_alive", [False, True])
def test_every_method_gives_the_mask_of_a_wrapper_by_hand(method: str, all_alive: bool) -> None:
    model, arguments = Heads(), {"density": 0.3, "method": method, "all_alive": all_alive}
    masks = panning.prune(model, BATCH, forward=run, loss=loss, **arguments)
    by_hand = panning.prune(
        Wrapped(model), (torch.cat([X, Z], 1), (LABELS, BOXES)), loss=wrapped_loss, **arguments
    )  # fmt: skip
    assert list(masks) == ["left.weight", "right.weight", "kind.weight", "box.weight"]
    assert torch.equal(masks.flat, by_hand.flat)
    assert masks.manifest["effective_density"] == by_hand.manifest["effective_density"]
    assert [f"model.{name}" for name in masks.manifest["collapsed_layers"]] == by_hand.manifest["collapsed_layers"]
    assert "input_shape" not in masks.manifest
    assert masks.effective_density(model, example_inputs=(X[:1], Z[:1])) == masks.manifest["effective_density"]


def small(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the forms of batches ---

PAIR = {"density": 0.3, "method": "snip"}


class Sums(nn.Module):
    """Two inputs, one tensor of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads()

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.heads(x, z)["kind"]


class Rows(Dataset[Any]):
    """Samples in the form that ``make`` gives them."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (((X[i], Z[i]), LABELS[i]) for i in range(12))


class OwnLoader:
    """Gives batches, and is no DataLoader."""

    def __iter__(self) -> Iterator[Any]:
        yield (X, Z), LABELS


#: Forms of one and the same batch.
FORMS: dict[str, Any] = {
    "tuple": ((X, Z), LABELS),
    "list": ([X, Z], LABELS),
    "keywords": ({"z": Z, "x": X}, LABELS),
    "mapping": {"x": X, "z": Z, "labels": LABELS},
    "a mapping that is no dict": UserDict(x=X, z=Z, labels=LABELS),
    "loader": DataLoader(Rows(lambda i: ((X[i], Z[i]), LABELS[i])), 12),
    "loader of mappings": DataLoader(Rows(lambda i: {"x": X[i], "z": Z[i], "labels": LABELS[i]}), 12),
    "loader with a collate": DataLoader(Rows(int), 12, collate_fn=lambda rows: ((X[rows], Z[rows]), LABELS[rows])),
    "stream": Stream(),
    "loader of one's own": OwnLoader(),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_batch_give_one_mask(form: str) -> None:
    model = Sums()
    by_hand = panning.prune(model, BATCH, forward=run, loss=lambda y, batch: F.cross_entropy(y, batch["kind"]), **PAIR)
    assert panning.prune(model, FORMS[form], **PAIR) == by_hand


def test_datasets_of_any_form_are_drawn_from_alike() -> None:
    forms = (lambda i: ((X[i], Z[i]), LABELS[i]), lambda i: {"x": X[i], "z": Z[i], "labels": LABELS[i]})
    masks = [panning.prune(Sums(), Rows(make), **PAIR) for make in forms]
    assert masks[0] == masks[1]


class Drawn(Rows):
    """With its labels at hand."""

    targets = (0,) * 300 + (1,) * 30 + (2,) * 70

    def __len__(self) -> int:
        return len(self.targets)


def test_a_dataset_of_dicts_with_labels_at_hand_is_drawn_by_class() -> None:
    source = batch_source(Drawn(lambda i: {"at": i, "label": Drawn.targets[i]}), 0)
    counts = source(0)["label"].bincount().tolist()
    assert sorted(counts) == [30, 49, 49]
    assert torch.equal(source(0)["at"], source(0)["at"]) and not torch.equal(source(0)["at"], source(1)["at"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image": X, "label": LABELS}, "forward takes x, z, and the batch has image, label.*pass forward="),
        ({"x": X}, "forward takes x, z, and the batch has x"),
        ((X, Z, LABELS), r"a pair \(inputs, targets\) or a mapping.*given \(\(12, 6\) of torch.float32.*pass forward="),
        (X, "must be a pair.*pass forward="),
        (("words", LABELS), "inputs of a batch must be tensors, given str"),
        ((X.numpy(), LABELS), "inputs of a batch must be tensors, given ndarray"),
        (iter([(X, LABELS)]), "can be gone through once"),
        (DataLoader([{"image": 1.0, "label": 1}] * 4), "the batch has image, label"),
        (Rows(lambda i: {"x": [0.0] * (i + 1)}), "do not stack into a batch.*collate_fn"),
        (Rows(lambda i: {}[i]), "do not stack into a batch"),
        (DataLoader(Rows(lambda i: {}[i])), "fails on its next batch: KeyError"),
        (3, "must be a pair"),
    ],
)
@pytest.mark.parametrize("method", ["snip", "magnitude"])
def test_data_of_no_known_form_are_said_to(data: Any, message: str, method: str) -> None:
    with pytest.raises((DataError, ModelError), match=f"(?s){message}"):
        panning.prune(Sums(), data, density=0.5, method=method)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"forward": lambda model, batch: model(batch["image"])}, ModelError, "KeyError: 'image'"),
        ({"forward": lambda model, batch: model(batch["x"])}, ModelError, "TypeError"),
        (
            {"forward": lambda model, batch: "words"},
            ModelError,
            "returns str, in which panning finds no tensor of real",
        ),
        ({"loss": F.mse_loss}, DataError, "the whole batch, which it gets as its second argument"),
        ({"loss": None}, DataError, "no loss of its own.*pass loss="),
        ({"loss": lambda outputs, batch: outputs["kind"]}, ModelError, "must be a scalar"),
        ({"loss": lambda outputs, batch: 1.0}, DataError, "must give a tensor"),
        ({"input_shape": (10,), "example_inputs": (X, Z)}, DataError, "not both"),
    ],
)
def test_a_forward_or_loss_that_does_not_fit_is_said_to(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"forward": run, "loss": loss, "density": 0.5, "method": "snip", **change}
    with pytest.raises(error, match=f"(?s){message}"):
        panning.prune(Heads(), BATCH, **arguments)


def test_a_forward_gets_batches_as_they_are() -> None:
    """A mapping with attributes stays one; neither it nor the tensors in it are written into."""

    class Batch(UserDict[str, Tensor]):
        @property
        def pixels(self) -> Tensor:
            return self["x"]

    seen, batch, before = set(), Batch(x=X.clone(), z=Z, note="words"), X.clone()

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        seen.add((type(batch), batch["note"]))
        return model(batch.pixels.add_(1.0), batch["z"])

    panning.prune(Sums(), batch, forward=forward, density=0.5, method="synflow", n_rounds=2)
    assert seen == {(Batch, "words")} and torch.equal(batch["x"], before)


# --- losses ---


@dataclass
class Result:
    """An output object that torch does not know."""

    loss: Tensor | None
    logits: Tensor
    by_products: tuple[Tensor, ...] = ()


class WithLoss(nn.Module):
    """Takes labels and computes its loss, as networks of Hugging Face do."""

    def __init__(self, make: Any = Result) -> None:
        super().__init__()
        self.sums, self.make = Sums(), make

    def forward(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.sums(x, z)
        return self.make(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


@pytest.mark.parametrize("make", [Result, dict, SimpleNamespace])
@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "gcs", "prospr"])
def test_the_networks_own_loss_gives_the_mask_of_that_loss(make: Any, method: str) -> None:
    arguments = {"density": 0.3, "method": method, "all_alive": True}
    by_hand = panning.prune(Sums(), ((X, Z), LABELS), **arguments)
    batch = {"x": X, "z": Z, "labels": LABELS}
    forward = {"forward": lambda model, batch: model(**batch)}
    scalar = {"forward": lambda model, batch: F.cross_entropy(model(batch["x"], batch["z"]), batch["labels"])}
    for model, data, how in (
        (WithLoss(make), batch, {}),
        (WithLoss(make), ((X, Z), LABELS), {}),  # its logits
        (WithLoss(make), batch, forward),
        (Sums(), batch, scalar),
    ):
        assert torch.equal(panning.prune(model, data, **arguments, **how).flat, by_hand.flat)


def test_a_loss_that_is_given_goes_before_the_networks_own() -> None:
    def halved(logits: Any, labels: Any) -> Tensor:
        logits = logits if isinstance(logits, Tensor) else logits.logits
        return F.mse_loss(logits, F.one_hot(labels["labels"] if isinstance(labels, dict) else labels, 3).float())

    by_hand = panning.prune(Sums(), ((X, Z), LABELS), loss=halved, **PAIR)
    batch = {"x": X, "z": Z, "labels": LABELS}
    assert torch.equal(panning.prune(WithLoss(), batch, loss=halved, **PAIR).flat, by_hand.flat)
    forward = {"forward": lambda model, batch: model(**batch)}
    assert torch.equal(panning.prune(WithLoss(), batch, loss=halved, **forward, **PAIR).flat, by_hand.flat)
    assert by_hand != panning.prune(Sums(), ((X, Z), LABELS), **PAIR)


def test_a_temperature_reaches_a_loss_inside_or_is_refused() -> None:
    def inside(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch["x"], batch["z"])["box"], batch["box"])

    def by_hand(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch["x"], batch["z"])["box"] - batch["box"]).square().mean()

    outside = {"forward": run, "loss": lambda outputs, batch: F.mse_loss(outputs["box"], batch["box"])}
    only = {"include": ("left*", "right*", "box*"), "density": 0.3, "method": "grasp"}
    assert panning.prune(Heads(), BATCH, forward=inside, **only) == panning.prune(Heads(), BATCH, **outside, **only)
    assert panning.prune(Heads(), BATCH, forward=by_hand, **{**only, "method": "snip"}).n_kept
    with pytest.raises(ModelError, match="divides the outputs by 200.*code of its own"):
        panning.prune(Heads(), BATCH, forward=by_hand, **only)
    with pytest.raises(ModelError, match="a loss of its own, on logits and labels"):
        panning.prune(Heads(), BATCH, forward=run, loss=loss, density=0.3, method="force", released=True)


@pytest.mark.parametrize("method", ["snip", "gcs", "force"])
def test_labels_are_found_in_a_pair_or_under_their_name(method: str) -> None:
    arguments = {"density": 0.3, "method": method, "released": method == "force"}
    by_hand = panning.prune(Sums(), ((X, Z), LABELS), **arguments)
    pair = {"data": ((X, Z), LABELS), "forward": lambda model, batch: model(*batch[0])}
    named = {"data": {"a": X, "b": Z, "labels": LABELS}, "forward": lambda model, batch: model(batch["a"], batch["b"])}
    assert panning.prune(Sums(), **pair, **arguments) == panning.prune(Sums(), **named, **arguments) == by_hand


def test_two_targets_are_no_labels() -> None:
    """Nobody says which of them cross-entropy takes."""
    with pytest.raises(DataError, match="cross-entropy cannot compare it with"):
        panning.prune(Sums(), ((X, Z), (BOXES, LABELS)), **PAIR)
    masks = panning.prune(Sums(), ((X, Z), (BOXES, LABELS)), loss=lambda y, t: F.cross_entropy(y, t[1]), **PAIR)
    assert masks == panning.prune(Sums(), ((X, Z), LABELS), **PAIR)


def test_gcs_wants_one_sample_a_row() -> None:
    uneven = {**BATCH, "more": torch.zeros(5)}
    assert panning.prune(Heads(), uneven, forward=run, loss=loss, density=0.3, method="snip").n_kept == 48
    with pytest.raises(DataError, match="do not agree on the first axis"):
        panning.prune(Heads(), uneven, forward=run, loss=loss, density=0.3, method="gcs")


# --- what is alive ---


def heads_mask(**cut: tuple[int, int] | slice) -> panning.Masks:
    """Everything kept but these parts."""
    tensors = {name: torch.ones_like(p) for name, p in Heads().named_parameters() if name.endswith("weight")}
    for name, part in cut.items():
        tensors[f"{name}.weight"][part] = 0.0
    return panning.Masks.from_tensors(tensors)


@pytest.mark.parametrize(
    ("masks", "n_dead"),
    [
        (heads_mask(), 0),
        (heads_mask(kind=(slice(None), slice(0, 8))), 0),  # the left units still lead to the box
        (
            heads_mask(kind=(slice(None), slice(0, 8)), box=(slice(None), slice(0, 8))),
            48,
        ),  # they lead nowhere: left is dead
        (
            heads_mask(left=slice(None)),
            24 + 16,
        ),  # nothing comes from the left: the heads' weights of its 8 units are dead
        (heads_mask(left=slice(None), right=slice(None)), 48 + 32),
    ],
)
def test_a_weight_is_alive_between_any_input_and_any_output(masks: panning.Masks, n_dead: int) -> None:
    for example in ((X[:1], Z[:1]), {"x": X, "z": Z}, [X, Z]):
        effective = masks.effective_density(Heads(), example_inputs=example)
        assert round(effective * masks.n_prunable) == masks.n_kept - n_dead
    assert masks.effective_density(Heads(), example_inputs=BATCH, forward=run) == effective
    with pytest.raises(MaskError, match="example_inputs="):
        masks.effective_density(Heads())


def test_what_a_forward_leaves_out_is_dead() -> None:
    def forward(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"], batch["z"])["box"]

    masks = panning.prune(Heads(), BATCH, forward=forward, density=1.0, method="magnitude")
    assert masks.manifest["collapsed_layers"] == ["kind.weight"]
    masks = panning.prune(Heads(), BATCH, forward=forward, density=0.2, method="magnitude", all_alive=True)
    assert masks["kind.weight"].sum() == 0 and masks.manifest["effective_density"] == masks.density


def test_a_mask_without_an_input_shape_goes_through_a_file(tmp_path: Path) -> None:
    masks = panning.prune(Heads(), example_inputs=(X, Z), density=0.3, method="synflow")
    panning.save_masks(masks, tmp_path / "m.safetensors")
    loaded = panning.load_masks(tmp_path / "m.safetensors")
    assert loaded == masks and loaded.input_shape is None
    assert loaded.effective_density(Heads(), example_inputs=(X, Z)) == masks.manifest["effective_density"]
    model = nn.Linear(6, 2)  # one tensor as the example is what its shape says
    masks = panning.prune(model, example_inputs=X, density=0.5, method="synflow")
    assert masks == panning.prune(model, input_shape=(6,), density=0.5, method="synflow")


def test_an_example_is_cut_to_one_sample_only_where_the_network_takes_it() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
            sizes.add(len(x))
            return self.head((neighbours @ self.layer(x)).relu()).mean(0)

    sizes: set[int] = set()
    neighbours = (small(12, 12) > 0).float()
    graph = {"x": X, "neighbours": neighbours}
    masks = panning.prune(Graph(), graph, density=0.5, method="synflow", n_rounds=2)
    assert masks.n_kept == 16 and 12 in sizes
    sizes.clear()
    panning.prune(Graph(), {"x": X, "neighbours": torch.ones(12, 1)}, density=0.5, method="synflow", n_rounds=2)
    assert sizes == {1}


def test_inputs_that_the_network_is_not_called_with_name_the_way_out() -> None:
    with pytest.raises(ModelError, match="(?s)fails on the data.*TypeError.*pass forward="):
        panning.prune(Sums(), (X, LABELS), density=0.5, method="snip")


# --- masks that move ---


@pytest.mark.parametrize("method", ["rigl", "gmp", "dpf", "snfs"])
def test_masks_move_in_a_network_of_any_interface(method: str) -> None:
    def trained(model: nn.Module, value: Any, **given: Any) -> panning.Masks:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        numbers = {"every": 2}
        moving = panning.move_masks(
            model, optimizer, panning.make_dynamic(method, numbers), density=0.4, n_steps=8, steps_per_epoch=4,
            all_alive=True, **given,
        )  # fmt: skip
        for _ in range(8):
            optimizer.zero_grad()
            value(model).backward()
            optimizer.step()
        return moving.finish()

    def own(model: nn.Module) -> Tensor:
        return loss(run(model, BATCH), BATCH)

    def wrapped(model: nn.Module) -> Tensor:
        return wrapped_loss(model(torch.cat([X, Z], 1)), (LABELS, BOXES))

    masks = trained(Heads(), own, data=BATCH, forward=run, loss=loss)
    by_hand = trained(
        Wrapped(Heads()), wrapped, data=(torch.cat([X, Z], 1), (LABELS, BOXES)), loss=wrapped_loss
    )  # fmt: skip
    assert list(masks)[0] == "left.weight" and torch.equal(masks.flat, by_hand.flat)
    assert torch.equal(trained(Heads(), own, example_inputs=(X, Z)).flat, masks.flat)


# --- nests ---


@dataclass(frozen=True)
class Frozen:
    first: Tensor
    rest: list[Any]


def test_nests_are_mapped_and_searched_whatever_holds_the_tensors() -> None:
    nest = (UserDict(a=torch.ones(2)), Frozen(torch.zeros(2, 3), [torch.ones(()), "words", None]))
    doubled = map_tensors(lambda x: x * 2 + 1, nest)
    assert isinstance(doubled[0], UserDict) and doubled[1].rest[1:] == ["words", None]
    assert [x.sum().item() for x in tensors_in(doubled)] == [6.0, 6.0, 3.0]
    assert [x.sum().item() for x in tensors_in(nest)] == [2.0, 0.0, 1.0]
    assert n_samples(nest) == 2 and n_samples((nest, torch.ones(3))) is None and n_samples("words") is None
    assert [tuple(x.shape) for x in tensors_in(samples(nest, slice(1)))] == [(1,), (1, 3), ()]
    assert told({"a": torch.ones(2), 3: [1, torch.ones(1).long()]}) == (
        "{'a': (2,) of torch.float32, 3: (int, (1,) of torch.int64)}"
    )
    assert told(list(range(30))).count("int") == 8 and told(list(range(30))).endswith(", ...)")


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "your-network.md").read_text()
    names: dict[str, Any] = {}
    code = page.split("```python\n")[1].split("```")[0]
    with torch.random.fork_rng(devices=[]):
        exec(code, names)
    assert f"# {list(names['masks'])}" in code


# --- tasks, training, compaction ---


class Objects(nn.Module):
    """Gives its logits in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Result:
        return Result(None, self.layers(x))


def test_a_network_whose_logits_are_in_an_object_is_a_task_and_trains() -> None:
    def made(kind: type[nn.Module]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return kind()

    plain = made(Objects).layers
    found = []
    for model in (made(Objects), plain):
        task = load_task(TaskSpec(model=model, data=(small(90, 6), torch.arange(90) % 3)), 0)
        masks = prune_problem(task.problem, 0.3, "snip").masks
        network = task.network()
        train(network, task.data, Recipe(epochs=2, batch_size=10), seed=0, masks=masks)
        found.append((masks.flat, evaluate(network, task.data, task.data.validation)))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    with pytest.raises(ModelError, match=r"gives \[2, 3\], but must give \[2, 4\]"):
        load_task(TaskSpec(model=made(Objects), data=(small(90, 6), torch.arange(90) % 4)).settled(), 0)


def test_what_compaction_leaves_of_a_network_of_any_interface_is_counted() -> None:
    """Half the hidden units are cut off: half of each layer's multiply-adds is left."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Objects()
    masks = panning.Masks.from_tensors({"layers.1.weight": torch.ones(16, 6), "layers.3.weight": torch.ones(3, 16)})
    masks.layout.views(masks.flat)["layers.3.weight"][:, 8:] = False
    for data, how in (({"x": X}, {}), (BATCH, {"forward": lambda model, batch: model(batch["x"])})):
        problem = problem_of(model, masks.layout, data, loss=loss, **how)
        assert compute_left(problem, masks) == pytest.approx(0.5)
