"""Whatever a network's weights are: scales that start at zero, weights that no kind covers, complex and mixed ones."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import panning
from panning import PanningWarning
from panning.alive.connectivity import Connectivity
from panning.alive.report import report
from panning.foundation.errors import ModelError
from panning.masks.allocation import top_k
from panning.masks.kinds import REGISTERED
from panning.masks.layout import prunable_layout
from panning.scoring.problem import Problem

# --- scales that start at zero: equal scores are kept evenly, and the user is told ---


class Block(nn.Module):
    """A residual block whose branch is shut at first, in one of the ways in which networks shut it."""

    def __init__(self, shut: str) -> None:
        super().__init__()
        self.c1, self.c2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.b1, self.b2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        if shut == "BatchNorm":
            nn.init.zeros_(self.b2.weight)
        elif shut == "ReZero":
            self.alpha = nn.Parameter(torch.zeros(()))
        elif shut == "LayerScale":
            self.gamma = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = getattr(self, "alpha", getattr(self, "gamma", 1.0))
        return F.relu(x + scale * self.b2(self.c2(F.relu(self.b1(self.c1(x))))))


def blocks(shut: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Block(shut), Block(shut), Block(shut), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.parametrize("all_alive", [False, True])
@pytest.mark.parametrize("method", ["snip", "synflow", "grasp", "panning_staged"])
@pytest.mark.parametrize(
    ("shut", "scale"), [("BatchNorm", "1.b2.weight"), ("ReZero", "1.alpha"), ("LayerScale", "1.gamma")]
)
def test_alike_layers_behind_a_scale_of_zero_keep_alike_and_the_scale_is_named(
    shut: str, scale: str, method: str, all_alive: bool
) -> None:
    with pytest.warns(PanningWarning, match=rf"(?s)same score.*'1\.c1\.weight'.*starts at zero.*'{scale}'"):
        masks = panning.prune(blocks(shut), images(), density=0.2, method=method, all_alive=all_alive)
    shares = [density for name, density in masks.layer_densities().items() if ".c" in name]
    assert len(shares) == 6 and max(shares) - min(shares) < 0.01 and min(shares) > 0.1
    assert masks.n_kept == round(0.2 * masks.n_prunable)
    assert len(masks.manifest["warnings"]) == 1 and "same score" in masks.manifest["warnings"][0]


def test_nothing_is_said_where_the_scale_is_open() -> None:
    with warnings.catch_warnings(action="error"):
        masks = panning.prune(blocks("no"), images(), density=0.5, method="snip")
    assert "warnings" not in masks.manifest


def test_a_head_of_zeros_and_the_second_factor_of_lora() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.base, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x))

    batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 6
    with pytest.warns(PanningWarning, match=r"starts at zero.*: 'b.weight'\."):
        masks = panning.prune(Adapted(), batch, density=0.9, method="snip")
    assert masks.layer_densities()["base.weight"] == 1.0  # all that scores more
    # 54 of 60 weights, 36 of them the base's, 18 of the 24 that score 0.
    assert [int(masks[name].sum()) for name in ("a.weight", "b.weight")] == [9, 9]

    torch.manual_seed(0)
    headed = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    nn.init.zeros_(headed[2].weight)
    with pytest.warns(PanningWarning, match=r"72 weights|same score, 0,.*starts at zero.*: '2.weight'\."):
        masks = panning.prune(headed, density=0.5, method="synflow", input_shape=(6,))
    assert list(masks.layer_densities().values()) == [0.5, 0.5]


def test_layers_that_lose_all_their_weights_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight *= 1e-3
    with pytest.warns(
        PanningWarning, match=r"1 of 3 layers keep no weight at all: '2.weight'\..*starts at 0.001 or less"
    ):
        masks = panning.prune(model, density=0.2, method="magnitude", input_shape=(8,))
    assert "keep no weight" in masks.manifest["warnings"][0]


@pytest.mark.filterwarnings("error::panning.PanningWarning")
def test_outputs_that_no_path_leads_to_are_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    with pytest.warns(PanningWarning, match=r"^No kept weight is alive.*synflow, npb\) keeps some\.$"):
        dead = panning.prune(model, density=0.01, method="random", input_shape=(16,))
    assert dead.manifest["effective_density"] == 0
    with pytest.warns(PanningWarning, match=r"^No path leads to 7 of the 10 outputs"):
        masks = panning.prune(model, density=0.03, method="random", input_shape=(16,))
    assert masks.manifest["n_reached_outputs"] == 3
    assert len(masks.manifest["warnings"]) == 1
    assert "warnings" not in panning.prune(model, density=0.03, method="npb", input_shape=(16,)).manifest


# --- weights that no kind covers: how the forward pass uses them says what they are ---


class Product(nn.Module):
    """A linear layer that multiplies in its own way; ``weight`` [out, in] gives its parameter."""

    def __init__(self, way: str, weight: Tensor) -> None:
        super().__init__()
        self.way = way
        self.matrix = nn.Parameter((weight if way in STRAIGHT else weight.t().contiguous()).clone())

    def forward(self, x: Tensor) -> Tensor:
        return WAYS[self.way](x, self.matrix)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": F.linear,
    "x @ w": lambda x, w: x @ w,
    "x @ w.t()": lambda x, w: x @ w.t(),
    "x.matmul(w.T)": lambda x, w: x.matmul(w.T),
    "mm": torch.mm,
    "addmm": lambda x, w: torch.addmm(torch.zeros(w.shape[1]), x, w),
    "(w @ x.T).T": lambda x, w: (w @ x.transpose(0, 1)).transpose(0, 1),
    "einsum io": lambda x, w: torch.einsum("bi,io->bo", x, w),
    "einsum oi": lambda x, w: torch.einsum("bi,oi->bo", x, w),
    "einsum without arrow": lambda x, w: torch.einsum("bi,oi", x, w),
    "bmm": lambda x, w: torch.bmm(x.unsqueeze(0), w.unsqueeze(0)).squeeze(0),
    "linear of a view": lambda x, w: F.linear(x, w.view(w.shape[0], -1, w.shape[1]).flatten(1)),
    "conv1d": lambda x, w: F.conv1d(x.unsqueeze(-1), w.unsqueeze(-1)).squeeze(-1),
    "by keywords": lambda x, w: F.linear(input=x, weight=w),
    "linear of a copy's view": lambda x, w: F.linear(x, w.clone().unsqueeze(0)[0]),
    "x @ a transposed copy": lambda x, w: x @ w.t().contiguous(),
    "of the activation's dtype": lambda x, w: F.linear(x, w.to(x)),
    "in another dtype": lambda x, w: F.linear(x.double(), w.double()).float(),
}
STRAIGHT = (
    "linear", "x @ w.t()", "x.matmul(w.T)", "(w @ x.T).T", "einsum oi", "einsum without arrow", "linear of a view",
    "conv1d", "by keywords", "linear of a copy's view", "x @ a transposed copy", "of the activation's dtype",
    "in another dtype",
)  # fmt: skip
SIZES = (6, 8, 7, 3)


def of_products(way: str) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in zip(SIZES, SIZES[1:], strict=False):
        layers += [Product(way, nn.Linear(n_in, n_out, bias=False).weight.detach()), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def of_linears() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in zip(SIZES, SIZES[1:], strict=False):
        layers += [nn.Linear(n_in, n_out, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batch_of(n_inputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(20, n_inputs, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow", "erk", "ntk_sap", "phew"])
@pytest.mark.parametrize("way", WAYS)
def test_a_weight_is_a_weight_however_it_is_multiplied(way: str, method: str) -> None:
    if method == "phew" and way != "x @ w":
        pytest.skip("one way is enough for the slowest method")
    model, plain = of_products(way), of_linears()
    batch = batch_of(SIZES[0])
    for all_alive in (False, True):
        masks = panning.prune(model, batch, density=0.4, method=method, all_alive=all_alive)
        expected = panning.prune(plain, batch, density=0.4, method=method, all_alive=all_alive)
        assert list(masks) == ["0.matrix", "2.matrix", "4.matrix"]
        assert masks.n_kept == expected.n_kept
        if method in ("erk", "ntk_sap", "phew"):  # drawn in the order of the weights in memory
            assert masks.layer_densities().values() == pytest.approx(list(expected.layer_densities().values()), abs=0.1)
            continue
        for mask, like in zip(masks.values(), expected.values(), strict=True):
            assert torch.equal(mask if way in STRAIGHT else mask.t(), like)
        for fact in ("effective_density", "n_dead_units", "collapsed_layers"):
            assert str(masks.manifest[fact]).replace("matrix", "weight") == str(expected.manifest[fact])


def test_a_copy_that_is_written_into_is_no_weight() -> None:
    model = of_products("linear")
    model.insert(4, Product("linear", torch.randn(7, 7)))
    model[4].forward = lambda x: F.linear(x, model[4].matrix.clone().exp_())
    with pytest.warns(
        PanningWarning, match=r"49 weights that cannot be masked: '4\.matrix' \(it is computed with before"
    ):
        assert "4.matrix" not in panning.prune(model, batch_of(6), density=0.4, method="magnitude")
    assert bool((model[4].matrix < 0).any())  # nobody wrote into it


def test_the_second_weight_of_a_path_sum_is_not_scaled() -> None:
    """SynFlow of two branches, of which one is a product of the network's own: its score is that of a Linear."""

    class Branches(nn.Module):
        def __init__(self, own: bool) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.tensor(rows)) for rows in ([[1.0, 3.0]], [[2.0], [5.0]]))
            self.own = own

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.a) + (x @ self.b if self.own else F.linear(x, self.b.t()))

    for own in (True, False):
        masks = panning.prune(Branches(own), density=0.5, method="synflow", input_shape=(2,))
        assert (masks["a"].tolist(), masks["b"].tolist()) == ([[False, True]], [[False], [True]])  # 3 and 5


def test_experts_in_one_tensor_have_their_own_units() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Parameter(torch.randn(3, 4, 5))  # [experts, in, out]
            self.second = nn.Parameter(torch.randn(3, 2, 5))  # [experts, out, in]

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(torch.einsum("bi,eio->ebo", x, self.first))
            return torch.bmm(hidden, self.second.transpose(1, 2)).sum(0)

    masks = panning.prune(Experts(), batch_of(4), density=0.3, method="snip", loss=lambda y, t: y.square().mean())
    assert {name: kind.inputs for name, kind in masks.layout.found.items()} == {"first": (1,), "second": (2,)}
    cut = panning.Masks.dense(masks.layout)
    cut["first"][1, :, 2] = False  # the third unit of the second expert has no input
    alive = Connectivity(Experts(), masks.layout, (4,)).alive(cut.flat)
    assert masks.layout.views(alive)["second"].logical_not().nonzero().tolist() == [[1, 0, 2], [1, 1, 2]]
    facts = report(Connectivity(Experts(), masks.layout, (4,)), cut.flat)
    assert facts.n_dead_units == 1  # of 15 hidden and 6 outputs


def test_gpt2_of_transformers_is_prunable() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=12, num_labels=3)
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    tokens = torch.randint(1, 40, (6, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "labels": torch.arange(6) % 3}
    names = [
        f"transformer.h.{i}.{part}.weight"
        for i in (0, 1)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    for method in ("snip", "synflow", "magnitude"):
        masks = panning.prune(model, batch, density=0.2, method=method)
        assert list(masks) == [*names, "score.weight"]
        assert masks.n_kept == round(0.2 * masks.n_prunable) and not masks.layout.dense
    masks = panning.prune(model, batch, density=0.3, method="snip", all_alive=True)
    assert masks.manifest["effective_density"] == masks.density
    # SNIP's scores are |w dL/dw| of plain autograd.
    loss = model(**batch).loss
    parameters = dict(model.named_parameters())
    scores = torch.cat(
        [
            (parameters[n] * g).abs().flatten()
            for n, g in zip(masks, torch.autograd.grad(loss, [parameters[n] for n in masks]), strict=True)
        ]
    )
    one_shot = panning.prune(model, batch, density=0.2, method="snip")
    assert torch.equal(one_shot.flat, top_k(scores, one_shot.n_kept))
    # Units of a Conv1D [in, out] are its columns.
    assert Problem.of(model, (8,), None).units_of(names[2], parameters[names[2]]).shape == (64, 16)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_weights_that_a_parametrization_computes_stay_dense_and_are_named(norm: str) -> None:
    def normed(*layers: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
        for i in layers:
            getattr(parametrizations, norm)(model[i])
        return model

    part = {"weight_norm": "WeightNorm", "spectral_norm": "SpectralNorm", "orthogonal": "Orthogonal"}[norm]
    with pytest.warns(
        PanningWarning,
        match=rf"5\d\.\d% of all weights stay dense.*'2\.parametrizations\.weight.*{part}.*remove_parametrizations",
    ):
        masks = panning.prune(normed(2), density=0.1, method="magnitude", input_shape=(8,))
    assert list(masks) == ["0.weight", "4.weight"]
    assert all(name.startswith("2.parametrizations.weight.original") for name in masks.manifest["left_dense"])
    for act in (
        lambda: panning.prune(normed(0, 2, 4), density=0.1, input_shape=(8,)),
        lambda: prunable_layout(normed(2), ("2.*",)),
    ):
        with pytest.raises(ModelError, match=rf"(?s)weights that cannot be masked.*{part}.*remove_parametrizations"):
            act()
    for silent in ({"include": ["0.weight"]}, {"exclude": ["2.*"]}):
        with warnings.catch_warnings(action="error"):
            panning.prune(normed(2), density=0.5, method="magnitude", input_shape=(8,), **silent)


def test_computed_weights_and_quantised_layers_are_left_dense_with_their_reason() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.matrix, self.position = (
                nn.Linear(4, 3),
                nn.Parameter(torch.randn(4, 4)),
                nn.Parameter(torch.randn(1, 4)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.linear(x + self.position, torch.tanh(self.matrix)))

    with pytest.warns(
        PanningWarning,
        match=r"57\.1% of all weights stay dense.*16 weights.*'matrix' \(it is computed with before linear",
    ):
        masks = panning.prune(Computed(), density=0.5, method="magnitude", input_shape=(4,))
    assert list(masks) == ["out.weight"] and list(masks.manifest["left_dense"]) == ["matrix"]  # positions are added

    with warnings.catch_warnings(action="ignore"):
        quantised = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), {nn.Linear}
        )
    with pytest.raises(ModelError, match=r"(?s)35 weights that cannot be masked: '0' \(its weight is packed"):
        panning.prune(quantised, density=0.5, method="magnitude", input_shape=(4,))
    mixed = nn.Sequential(quantised[0], nn.ReLU(), nn.Linear(5, 3))
    with pytest.warns(PanningWarning, match=r"57\.1% of all weights stay dense.*'0' \(its weight is packed"):
        panning.prune(mixed, density=0.5, method="magnitude", input_shape=(4,))


def test_recurrent_layers_and_unknown_functions_are_left_dense_with_their_reason() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.lstm, self.out, self.far = (
                nn.LSTM(3, 4, batch_first=True),
                nn.Linear(4, 3),
                nn.Parameter(torch.randn(5, 4)),
            )

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.lstm(x)[0][:, -1]
            return self.out(hidden) + torch.cdist(hidden, self.far).mean()

    with pytest.warns(
        PanningWarning,
        match=r"91\.7% of all weights.*132 weights.*'lstm\.weight_ih_l0' \(panning does not know how lstm",
    ):
        masks = panning.prune(Recurrent(), density=0.5, method="magnitude", input_shape=(2, 3))
    assert list(masks.manifest["left_dense"]) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "far"]


def test_nothing_prunable_names_what_was_found() -> None:
    with pytest.raises(ModelError, match=r"(?s)no prunable weight.*weight \(4,\).*register_kind"):
        panning.prune(nn.BatchNorm1d(4), density=0.5, input_shape=(4,))
    with pytest.raises(ModelError, match="no layer is left after include and exclude"):
        panning.prune(nn.Linear(4, 4), density=0.5, input_shape=(4,), exclude="weight")


def test_a_kind_of_ones_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.matrix, self.other = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tensordot(x, self.matrix, dims=1)

    model = nn.Sequential(Own(), nn.ReLU(), nn.Linear(5, 3))
    with pytest.warns(
        PanningWarning, match=r"'0\.matrix' \(panning does not know how tensordot uses it.*register_kind"
    ):
        assert list(panning.prune(model, density=0.5, method="magnitude", input_shape=(4,))) == ["2.weight"]
    panning.register_kind(Own, "matrix", transposed=True)
    try:
        masks = panning.prune(model, batch_of(4), density=0.5, method="snip")
        assert list(masks) == ["0.matrix", "2.weight"]
        assert Problem.of(model, (4,), None).units_of("0.matrix", model[0].matrix).shape == (5, 4)
        panning.register_kind(Own, "matrix", by_default=False)
        assert prunable_layout(model).names == ("2.weight",)
        assert prunable_layout(model, include=("0.*",)).names == ("0.matrix",)
    finally:
        REGISTERED.clear()
    for wrong in (nn.Module, model, int, "Own"):
        with pytest.raises(ModelError, match="a class of modules"):
            panning.register_kind(wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="names of parameters of Own"):
        panning.register_kind(Own, ["0.weight"])


def test_masks_of_found_weights_are_enforced_saved_and_made_compact(tmp_path: Path) -> None:
    model, batch = of_products("x @ w"), batch_of(SIZES[0])
    masks = panning.prune(model, batch, density=0.3, method="snip")
    panning.save_masks(masks, tmp_path / "mask.safetensors")
    loaded = panning.load_masks(tmp_path / "mask.safetensors")
    assert loaded == masks and loaded.effective_density(model) == masks.manifest["effective_density"]
    small = panning.compact(model, loaded)
    panning.apply_masks(model, loaded)
    assert torch.allclose(small.model(batch[0]), model(batch[0]), atol=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    moving = panning.move_masks(model, optimizer, "rigl", density=0.3, n_steps=200, input_shape=(6,), seed=1)
    assert list(moving.finish()) == list(masks)


# --- complex, half and 8-bit numbers ---


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(20, 4, bias=False, dtype=torch.complex64), nn.Linear(4, 3)
        with torch.no_grad():  # |w| is 1 or 2, the larger ones imaginary
            weights = torch.where(torch.arange(80) % 4 < 2, torch.tensor(1 + 0j), torch.tensor(0 + 2j))
            self.a.weight.copy_(weights.view(4, 20))
            self.b.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.to(torch.complex64)).abs())


def test_complex_weights_count_by_their_magnitude() -> None:
    with warnings.catch_warnings(action="error"):
        for method in ("magnitude", "synflow", "synflow_l2"):
            masks = panning.prune(Complex(), density=0.5, method=method, input_shape=(20,), exclude="b.*")
            assert torch.equal(masks["a.weight"], Complex().a.weight.imag != 0), method
    masks = panning.prune(Complex(), density=0.3, method="erk", input_shape=(20,), all_alive=True)
    assert masks.effective_density(Complex()) == masks.density
    model = Complex()
    panning.enforce_masks(model, masks, torch.optim.SGD(model.parameters(), 0.1))
    assert int(model.a.weight.count_nonzero()) == int(masks["a.weight"].sum())


@pytest.mark.parametrize("method", ["snip", "grasp", "ntk_sap", "iter_snip", "panning_staged"])
def test_methods_that_are_known_for_real_weights_refuse_complex_ones(method: str) -> None:
    batch = batch_of(20)
    with pytest.raises(ModelError, match=r"'a\.weight' has complex weights.*magnitude, synflow"):
        panning.prune(Complex(), batch, density=0.5, method=method)
    assert panning.prune(Complex(), batch, density=0.5, method=method, exclude="a.*").n_kept == 6


class Parts(nn.Module):
    """A complex layer whose parts go on as real numbers, [batch, 8]."""

    def __init__(self, parts: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.parts = (
            nn.Linear(6, 4, bias=False, dtype=torch.complex64),
            nn.Linear(8, 3, bias=False),
            parts,
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(torch.complex(x, x.flip(1)))
        match self.parts:
            case "view_as_real":
                return self.b(torch.view_as_real(h).flatten(1))
            case "real and imag":
                return self.b(torch.stack([h.real, torch.imag(h)], -1).flatten(1))
        both = torch.view_as_complex(torch.view_as_real(h))
        return self.b(torch.stack([both.abs(), both.angle()], -1).flatten(1))


@pytest.mark.parametrize("parts", ["view_as_real", "real and imag", "view_as_complex"])
def test_paths_lead_through_the_parts_of_complex_numbers(parts: str) -> None:
    model = Parts(parts)
    connectivity = Connectivity(model, prunable_layout(model), (6,))
    x, generator = torch.randn(4, 6), torch.Generator().manual_seed(1)
    for _ in range(5):
        mask = torch.rand(48, generator=generator) < 0.3
        masks = panning.Masks(connectivity.layout, mask)
        kept = Parts(parts)
        panning.apply_masks(kept, masks)
        changes = torch.zeros_like(mask)
        for i in mask.nonzero().flatten().tolist():
            less = mask.clone()
            less[i] = False
            without = Parts(parts)
            panning.apply_masks(without, panning.Masks(connectivity.layout, less))
            changes[i] = not torch.equal(kept(x), without(x))
        assert connectivity.alive(mask).equal(changes)
    masks = panning.prune(model, density=0.3, method="synflow", all_alive=True, input_shape=(6,))
    assert masks.effective_density(model) == masks.density


def test_masks_of_complex_weights_do_not_move_and_do_not_start_anew() -> None:
    model = Complex()
    with pytest.raises(panning.PanningError, match="complex"):
        panning.move_masks(
            model, torch.optim.SGD(model.parameters(), 0.1), "rigl", density=0.5, n_steps=200, input_shape=(20,)
        )
    masks = panning.prune(model, density=0.5, method="magnitude", input_shape=(20,))
    assert "a.weight" in panning.reinitialise(model, masks, "gain").untouched


class Mixed(nn.Module):
    """Layers of half precision that cast by themselves, beside others."""

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.half = half
        self.a, self.norm, self.b, self.c = nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 10), nn.Linear(10, 3)
        for layer in (self.a, self.b):
            for parameter in layer.parameters():
                parameter.data = parameter.data.bfloat16().to(half or torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        half = self.half or torch.float32
        x = self.norm(F.relu(self.a(x.to(half))).float())
        return self.c(F.relu(self.b(x.to(half))).to(torch.float32))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "ntk_sap", "iter_snip", "magnitude"])
def test_networks_of_mixed_precision_are_scored_in_float32(method: str, half: torch.dtype) -> None:
    F.cross_entropy(Mixed(half)(batch_of(20)[0]), batch_of(20)[1]).backward()  # it does run and learn
    masks = panning.prune(Mixed(half), batch_of(20), density=0.2, method=method)
    plain = panning.prune(Mixed(None), batch_of(20), density=0.2, method=method)
    assert masks.n_kept == plain.n_kept and torch.equal(masks.flat, plain.flat)
    model = Mixed(half)
    assert panning.prune(model, batch_of(20), density=0.2, method=method, all_alive=True).n_kept == masks.n_kept
    assert {p.dtype for p in model.parameters()} == {half, torch.float32}


def test_eight_bit_weights_stay_dense_and_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    model[1].weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    for shown in ("'0.weight' (it holds torch.float8_e4m3fn", "'1.weight' (it holds torch.int8"):
        with pytest.raises(ModelError, match=f"28 weights that cannot be masked.*{re.escape(shown)}"):
            panning.prune(model, density=0.5, method="magnitude", input_shape=(4,))
