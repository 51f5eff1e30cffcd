"""Streamed pruning: the same masks as the plain way, for every method that can, at every size of what a pass may hold; runs
that go on; and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import panning
from panning.cli import app
from panning.foundation.errors import ConfigError, MaskError, ModelError, NonFiniteError, PanningError
from panning.masks import passes
from panning.masks.allocation import top_k
from panning.masks.equals import even_shares
from panning.masks.packed import PackedMasks
from panning.masks.passes import Passes, patterns, score_of
from panning.models.mapped import map_weights, without_memory
from panning.pruners import PRUNERS
from panning.streaming import is_streamed
from panning.streaming.rounds import CHECKPOINT

STREAMED = [name for name in PRUNERS if is_streamed(name)]


class Decoder(nn.Module):
    """Tokens, attention, tied use of a matrix, a layer that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30, 12)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.twice = nn.Linear(12, 12, bias=False)
        self.unused = nn.Linear(12, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.twice(torch.relu(self.twice(x))).mean(1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 7, 3, groups=1),
        nn.BatchNorm2d(7), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(28, 11), nn.ReLU(),
        nn.Linear(11, 5),
    )  # fmt: skip


def network(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    labels = torch.arange(10) % 5
    match name:
        case "convolutions":
            return convolutions(), (torch.randn(10, 2, 8, 8), labels)
        case "decoder":
            return Decoder(), (torch.randint(30, (10, 6)), labels)
        case "half":
            return convolutions().bfloat16(), (torch.randn(10, 2, 8, 8), labels)
        case "zeros":  # a scale that starts at zero: all scores behind it are equal
            net = convolutions()
            nn.init.zeros_(net[4].weight)
            return net, (torch.randn(10, 2, 8, 8), labels)
    raise KeyError(name)


#: How many scores a pass may hold, how finely it counts, and how many it looks at together.
LIMITS = {"whole": (2**21, 18, 2**18), "few": (3, 4, 50), "ties": (0, 9, 64)}


@pytest.fixture
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("MOST_HELD", "BUCKET_BITS", "AT_ONCE"), LIMITS[request.param], strict=True):
        monkeypatch.setattr(passes, name, value)


# --- selection in passes ---

SCORES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "whole": lambda rng, n: rng.integers(-2, 3, n),
    "zeros": lambda rng, n: rng.random(n) * (rng.random(n) < 0.3),
    "equal": lambda rng, n: np.full(n, -0.0),
    "wide": lambda rng, n: np.exp(20 * rng.standard_normal(n)) * rng.choice([-1, 1], n),
}


def found_by(search: Passes, scores: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    for _ in range(40):
        start = 0
        for layer, size in enumerate(search.sizes):
            part = slice(start, start := start + size)
            search.see(layer, scores[part], None if mask is None else mask[part])
        if search.end():
            parts = [np.unpackbits(bits, count=size) for bits, size in zip(search.bits, search.sizes, strict=True)]
            return np.concatenate(parts).astype(bool)
    raise AssertionError("no end")


@pytest.mark.parametrize("limits", LIMITS, indirect=True)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", SCORES)
def test_passes_find_the_mask_of_top_k(kind: str, dtype: type[np.floating], limits: None) -> None:
    rng = np.random.default_rng(5)
    for trial in range(6):
        sizes = tuple(int(n) for n in rng.integers(1, 150, rng.integers(1, 6)))
        scores = SCORES[kind](rng, sum(sizes)).astype(dtype)
        mask = rng.random(sum(sizes)) < 0.6 if trial % 2 else None
        n_scored = scores.size if mask is None else max(1, int(mask.sum()))
        n_kept = int(rng.integers(1, n_scored + 1))
        masked = torch.from_numpy(scores.copy())
        if mask is not None:
            mask[0] = mask[0] or not mask.any()
            masked[~torch.from_numpy(mask)] = -torch.inf
        middle = float(np.median(scores))
        guess = (middle, middle + 0.2) if trial % 3 == 0 else None
        search = Passes(n_kept, sizes, n_scored, np.dtype(dtype), guess=guess)
        expected = top_k(masked, n_kept, sizes=sizes).numpy()
        np.testing.assert_array_equal(found_by(search, scores, mask), expected)
        assert search.threshold == scores[expected].min()
        equal = scores == search.threshold
        assert sum(search.n_equal) == (equal & expected).sum()
        assert search.tied == bool((equal & ~expected & (True if mask is None else mask)).any())


def test_a_right_guess_saves_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MOST_HELD", 20)
    scores = np.arange(100, dtype=np.float32)
    for guess, n_passes in (((85.0, 95.0), 1), ((10.0, 20.0), 2), (None, 2), ((0.0, 99.0), 2)):
        search = Passes(10, (100,), 100, np.dtype(np.float32), guess=guess)
        ends = []
        while not (ends and ends[-1]):
            search.see(0, scores)
            ends.append(search.end())
        assert len(ends) == n_passes and search.threshold == 90.0


def test_patterns_are_in_the_order_of_the_scores() -> None:
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        scores = np.array([-np.inf, -3.0, -1e-30, 0.0, 1e-30, 2.0, np.inf], dtype=dtype)
        found = patterns(scores)
        assert (np.diff(found.astype(object)) > 0).all() and patterns(-scores[3:4])[0] == found[3]
        assert [score_of(int(pattern), dtype) for pattern in found] == scores.tolist()


def test_shares_of_equals_are_those_of_the_plain_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        counts = [int(n) for n in rng.integers(0, 40, rng.integers(1, 8))]
        if not (total := sum(counts)):
            continue
        n_kept = int(rng.integers(0, total + 1))
        mask = top_k(torch.zeros(total), n_kept, sizes=counts)
        assert even_shares(counts, n_kept) == [int(part.sum()) for part in mask.split(counts)]


# --- the same masks ---


CASES = [
    *(("convolutions", method, "few") for method in STREAMED),
    *((name, method, "whole") for name in ("convolutions", "decoder", "half") for method in ("snip", "synflow", "erk")),
    *(("zeros", method, "ties") for method in ("snip", "synflow", "magnitude")),
]


@pytest.mark.parametrize(("name", "method", "limits"), CASES, indirect=["limits"])
def test_masks_are_those_of_the_plain_way(name: str, method: str, limits: None) -> None:
    net, data = network(name)
    rounds = {"n_rounds": 3} if PRUNERS[method].pruner.n_rounds > 1 else {}
    for density in (0.5, 0.07):
        asked = {"density": density, "method": method, "seed": 1, **rounds}
        try:
            plain = prune(net, data, **asked)
        except PanningError as error:  # uniform+ without a convolution, or with too few weights
            with pytest.raises(type(error)):
                prune(net, data, streaming=True, **asked)
            continue
        streamed = prune(net, data, streaming=True, **asked)
        assert isinstance(streamed, PackedMasks) and streamed == plain
        assert streamed.n_kept == plain.n_kept == int(density * plain.n_prunable + 0.5)
        assert streamed.manifest == plain.manifest


def prune(*args: Any, **kwargs: Any) -> panning.Masks:
    with warnings.catch_warnings(action="ignore"):  # of small networks that lose layers
        return panning.prune(*args, **kwargs)


def test_released_forms_are_streamed_too() -> None:
    net, data = network("convolutions")
    for method in ("snip", "synflow", "force"):
        asked = {"density": 0.2, "method": method, "n_rounds": 3, "released": True}
        assert prune(net, data, streaming=True, **asked) == prune(net, data, **asked)


def test_a_deep_network_is_scaled_as_in_the_plain_way() -> None:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(40)))
    for layer in net:
        nn.init.constant_(layer.weight, 1e9)  # R overflows float64 without a scale
        layer.weight.data += torch.arange(64.0).view(8, 8) * 1e6
    asked = {"density": 0.3, "method": "synflow", "n_rounds": 2, "input_shape": (8,)}
    assert prune(net, streaming=True, **asked) == prune(net, **asked)


def test_the_model_is_as_it_was() -> None:
    net, data = network("decoder")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    prune(net, data, density=0.3, method="snip", streaming=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any("forward" in vars(module) for module in net.modules())


# --- going on ---


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["synflow", "iter_snip"])
def test_a_killed_run_goes_on(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MOST_HELD", 5)
    net, data = network("convolutions")
    asked: dict[str, Any] = {"density": 0.1, "method": method, "n_rounds": 6, "streaming": True}
    whole = prune(net, data, **asked)
    heard: list[int] = []

    def kill(event: Any) -> None:
        heard.append(event.done)
        if event.done == 3:
            raise Killed

    with pytest.raises(Killed):
        prune(net, data, checkpoint=tmp_path, on_round=kill, **asked)
    again = prune(net, data, checkpoint=tmp_path, on_round=lambda event: heard.append(event.done), **asked)
    assert heard == [1, 2, 3, 4, 5, 6] and again == whole and again.manifest == whole.manifest
    finished = prune(net, data, checkpoint=tmp_path, on_round=lambda event: heard.append(event.done), **asked)
    assert heard[6:] == [] and finished == whole and finished.manifest == whole.manifest


def test_a_run_goes_on_between_two_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MOST_HELD", 5)
    net, data = network("convolutions")
    whole = prune(net, data, density=0.1, method="snip", streaming=True)
    seen, end = [], Passes.end

    def killed(search: Passes) -> bool:
        seen.append(search.window)
        if len(seen) == 2:
            raise Killed
        return end(search)

    monkeypatch.setattr(Passes, "end", killed)
    with pytest.raises(Killed):
        prune(net, data, density=0.1, method="snip", streaming=True, checkpoint=tmp_path)
    assert prune(net, data, density=0.1, method="snip", streaming=True, checkpoint=tmp_path) == whole
    assert seen[0].n_above == 0 and seen[2] == seen[1] != seen[0]  # the window of the first pass is not searched again


def test_checkpoints_belong_to_one_run(tmp_path: Path) -> None:
    net, data = network("convolutions")
    asked: dict[str, Any] = {
        "density": 0.1,
        "method": "synflow",
        "n_rounds": 2,
        "streaming": True,
        "checkpoint": tmp_path,
    }
    prune(net, data, **asked)
    with pytest.raises(ConfigError, match="density: 0.1 there, 0.2 here"):
        prune(net, data, **{**asked, "density": 0.2})
    before = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1.0
    with pytest.raises(ConfigError, match="content"):
        prune(net, data, **asked)
    with torch.no_grad():
        net[0].weight.copy_(before)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(MaskError, match="is not a usable mask file"):
        prune(net, data, **asked)


# --- refusals ---


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"all_alive": True}, "all_alive needs those of all"),
        ({"shape": "2:4"}, "shape needs those of all"),
        ({"quotas": "erk", "control": "shuffle"}, "control, quotas needs"),
        ({"method": "grasp"}, "'grasp' cannot be streamed.* random, "),
        ({"device": "cuda"}, "CPU alone"),
        ({"streaming": None, "checkpoint": "folder"}, "pass streaming=True"),
    ],
)
def test_what_needs_all_scores_is_refused(asked: dict[str, Any], said: str) -> None:
    net, data = network("convolutions")
    with pytest.raises(PanningError, match=said):
        panning.prune(net, data, **{"density": 0.2, "method": "snip", "streaming": True, **asked})


def test_scores_that_are_no_numbers_name_their_layer() -> None:
    net, data = network("convolutions")
    with torch.no_grad():
        net[8].weight[0, 0] = torch.nan
    for method in ("magnitude", "synflow"):
        for streaming in (False, True):
            with pytest.raises(NonFiniteError, match=r"Layer '8\.weight' has NaN or infinite weights"):
                panning.prune(net, data, density=0.2, method=method, streaming=streaming)


# --- by itself ---


@pytest.fixture
def by_itself(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("panning.api.STREAMED_FROM", 100)
    yield


@pytest.mark.usefixtures("by_itself")
def test_large_networks_are_streamed_where_that_is_possible() -> None:
    net, data = network("convolutions")
    assert isinstance(prune(net, data, density=0.2, method="snip"), PackedMasks)
    for asked in ({"streaming": False}, {"all_alive": True}, {"method": "grasp"}, {"method": "snip", "place": "snip"}):
        assert not isinstance(prune(net, data, **{"density": 0.2, "method": "snip", **asked}), PackedMasks)


# --- packed masks, weights on disk ---


def test_packed_masks_are_masks(tmp_path: Path) -> None:
    net, data = network("convolutions")
    plain = prune(net, data, density=0.3, method="magnitude")
    packed = PackedMasks.of(plain)
    assert packed == plain and plain == packed and packed.n_kept == plain.n_kept and packed.counts() == plain.counts()
    assert packed.layer_densities() == plain.layer_densities() and packed.overlap(plain) == 1.0
    assert isinstance(packed.with_manifest(a=1), PackedMasks) and packed.with_manifest(a=1).manifest["a"] == 1
    assert isinstance(renamed := packed.renamed({"0.weight": "first"}), PackedMasks) and "first" in renamed
    for masks, name in ((plain, "plain"), (packed, "packed")):
        for bits in (True, False):
            panning.save_masks(masks, tmp_path / f"{name}{bits}", packed=bits)
    for bits in (True, False):
        assert (tmp_path / f"plain{bits}").read_bytes() == (tmp_path / f"packed{bits}").read_bytes()
        loaded = panning.load_masks(tmp_path / f"plain{bits}", packed=True)
        assert isinstance(loaded, PackedMasks) and loaded == plain and loaded.manifest == plain.manifest
    panning.apply_masks(net, packed)
    assert sum(int(net.get_parameter(name).count_nonzero()) for name in packed) == packed.n_kept
    with pytest.raises(MaskError, match="uint8 arrays"):
        PackedMasks(plain.layout, packed.bits[:-1])


def test_weights_stay_on_disk(tmp_path: Path) -> None:
    net, data = network("decoder")
    state = net.state_dict()
    save_file(dict(list(state.items())[:5]), tmp_path / "a.safetensors")
    save_file(dict(list(state.items())[5:]), tmp_path / "b.safetensors")
    with without_memory():
        mapped = Decoder()
    assert all(parameter.is_meta for parameter in mapped.parameters())
    map_weights(mapped, tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in mapped.state_dict().items())
    for method in ("snip", "synflow"):
        asked: dict[str, Any] = {"density": 0.2, "method": method}
        asked |= {"n_rounds": 2} if method == "synflow" else {}
        assert prune(mapped, data, streaming=True, **asked) == prune(net, data, **asked)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelError, match="do not fit this network .* missing"):
        map_weights(mapped, tmp_path)
    index = {"weight_map": {name: "a.safetensors" for name in state}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="missing"):
        map_weights(mapped, tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no .safetensors file"):
        map_weights(mapped, empty)


def test_the_command_streams(tmp_path: Path) -> None:
    given = ["prune", "--model", "mlp", "--data", "digits", "--density", "0.1", "--method", "synflow", "--rounds", "3"]
    for name, more in (("plain", []), ("streamed", ["--streaming"])):
        done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / name), *more])
        assert done.exit_code == 0, done.output
    files = [tmp_path / name / "mask.safetensors" for name in ("plain", "streamed")]
    assert files[0].read_bytes() == files[1].read_bytes() and not (tmp_path / "streamed/rounds").exists()
    refused = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "no"), "--streaming", "--all-alive"])
    assert refused.exit_code != 0
