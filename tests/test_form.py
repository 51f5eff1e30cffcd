"""The form of a mask: quotas, places, balance and bounds, with counts that are known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import panning
from panning.foundation.errors import (
    ConfigError,
    DataError,
    DensityError,
    MaskError,
    ModelError,
    PanningError,
    UnknownNameError,
)
from panning.jobs.ways import Method, Way
from panning.masks.allocation import erk_counts
from panning.masks.budgets import blended_quotas, fitted_counts, ranked_by_counts
from panning.pruners import Form, prune_problem
from panning.pruners.balance import deal
from panning.pruners.quotas import QuotaSource
from panning.scoring.problem import Problem
from panning.testing.networks import residual_problem


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 12), nn.ReLU(), nn.Linear(12, 5))


DATA = (torch.linspace(-1, 1, 160).view(8, 20).sin(), torch.arange(8) % 5)


def counts(masks: panning.Masks) -> list[int]:
    return [int(mask.sum()) for mask in masks.values()]


# --- counts ---


def test_counts_are_fitted_to_bounds_in_proportion() -> None:
    assert fitted_counts([3.0, 7.0], 10, (5, 9)) == [3, 7]  # what fits stays
    assert fitted_counts([1.0, 3.0, 6.0], 20, (100, 100, 8)) == [3, 9, 8]  # a full layer's surplus as 1 to 3
    assert fitted_counts([10.0, 20.0, 70.0], 100, (100,) * 3, lows=[30, 0, 0], highs=[100, 100, 40]) == [30, 30, 40]
    assert fitted_counts([0.0, 4.0], 6, (10, 5)) == [1, 5]  # nothing of its own, but the other is full
    assert (
        fitted_counts([0.0, 0.0], 4, (10, 10), lows=[1, 0]) == [3, 1]
        or sum(fitted_counts([0.0, 0.0], 4, (10, 10))) == 4
    )


def test_a_blend_is_the_mean_in_the_log() -> None:
    assert blended_quotas({"a": [4, 9], "b": [1, 16]}, {"a": 0.5, "b": 0.5}) == [2.0, 12.0]
    assert blended_quotas({"a": [10, 0], "b": [1000, 5]}, {"a": 2 / 3, "b": 1 / 3}) == pytest.approx([46.4159, 0.0])


def test_a_ranking_keeps_the_counts_and_shares_any_other_number_in_proportion() -> None:
    orders = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (40, 10, 6)]
    keys = ranked_by_counts(orders, [12, 6, 0])
    for n_kept, wanted in ((18, [12, 6, 0]), (9, [6, 3, 0]), (3, [2, 1, 0])):
        best = torch.cat(keys).topk(n_kept).values.min()
        assert [int((key >= best).sum()) for key in keys] == wanted
    assert torch.equal(keys[0].argsort(descending=True), orders[0])


def test_fewer_weights_than_the_counts_have_are_rounded_to_the_nearest() -> None:
    """By hand: with counts 4 and 1 the keys are -1/8, -3/8, -5/8, -7/8, -9/8 and -1/2, -3/2. Of three weights the shares are
    2.4 and 0.6, so that the second layer has one; without the half it had one of two, with a whole none of four."""
    keys = ranked_by_counts([torch.arange(5), torch.arange(2)], [4, 1])
    assert [key.tolist() for key in keys] == [[-0.125, -0.375, -0.625, -0.875, -1.125], [-0.5, -1.5]]
    flat = torch.cat(keys)
    kept = [(flat >= flat.sort(descending=True).values[n - 1]).split([5, 2]) for n in range(1, 8)]
    assert [[int(part.sum()) for part in parts] for parts in kept] == [
        [1, 0], [2, 0], [2, 1], [3, 1], [4, 1], [5, 1], [5, 2],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shares", "canonical"),
    [
        ("erk", {"erk": 1.0}, "erk"),
        ("erk+synflow", {"erk": 0.5, "synflow": 0.5}, "erk + synflow"),
        (" .25 erk +  0.75 snip", {"erk": 0.25, "snip": 0.75}, "0.25 erk + 0.75 snip"),
        ("0.5 erk + 0.5 igq", {"erk": 0.5, "igq": 0.5}, "erk + igq"),
    ],
)
def test_sources_of_quotas_are_plain_text(text: str, shares: dict[str, float], canonical: str) -> None:
    found = QuotaSource.parse(text)
    assert found.shares == pytest.approx(shares) and found.text == canonical
    assert QuotaSource.parse(canonical) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "name no source"),
        ("erk +", "name no source"),
        ("erk snip", "name no source"),
        ("erk + erk", "one source twice"),
        ("0.5 erk + snip", "some sources a share and some none"),
        ("0.5 erk + 0.6 snip", "sum 1"),
        ("0 erk + 1 snip", "above 0"),
    ],
)
def test_quotas_that_say_nothing_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Form(quotas=text)


def test_quotas_come_from_rows_methods_and_blends() -> None:
    model = network()

    def of(**form: str) -> list[int]:
        return counts(panning.prune(model, DATA, density=0.1, place="magnitude", **form))

    layout = panning.prune(model, DATA, density=0.1, method="erk").layout
    erk, snip = erk_counts(layout, 102), counts(panning.prune(model, DATA, density=0.1, method="snip"))
    assert of(quotas="erk") == erk and of(quotas="snip") == snip and snip != erk
    blended = [(a * b) ** 0.5 for a, b in zip(erk, snip, strict=True)]
    assert of(quotas="erk + snip") == fitted_counts(blended, 102, layout.sizes)
    blended = [a**0.2 * b**0.8 for a, b in zip(erk, snip, strict=True)]
    assert of(quotas="0.2 erk + 0.8 snip") == fitted_counts(blended, 102, layout.sizes)
    weights = torch.cat(
        [weight.detach().abs().reshape(-1) for weight in model.state_dict().values() if weight.dim() > 1]
    )
    kept = panning.prune(model, density=0.1, quotas="erk", place="magnitude", input_shape=(20,)).flat
    for part, mask in zip(weights.split(layout.sizes), kept.split(layout.sizes), strict=True):
        assert part[mask].min() > part[~mask].max()


# --- places ---


def test_places_keep_the_counts_of_the_method() -> None:
    model = network()
    plain = panning.prune(model, DATA, density=0.1, method="synflow")
    for place in ("lot", "snip", "balanced:lot", "balanced:magnitude"):
        placed = panning.prune(model, DATA, density=0.1, method="synflow", place=place)
        assert counts(placed) == counts(plain) and not torch.equal(placed.flat, plain.flat)
        assert placed.manifest["place"] == place and placed.manifest["method"] == "synflow"
    quotas = panning.prune(model, DATA, density=0.1, quotas="synflow", place="lot")
    assert torch.equal(quotas.flat, panning.prune(model, DATA, density=0.1, method="synflow", place="lot").flat)
    assert quotas.manifest["method"] == "placed" and quotas.manifest["quotas"] == "synflow"
    lot = panning.prune(model, density=0.1, quotas="erk", place="lot", input_shape=(20,))
    assert torch.equal(lot.flat, panning.prune(model, density=0.1, method="erk", input_shape=(20,)).flat)


def test_with_quotas_alone_a_method_places_its_own_weights_first() -> None:
    problem = residual_problem()
    plain, erk = (prune_problem(problem, 0.1, method) for method in ("synflow", "erk"))
    result = prune_problem(problem, 0.1, "synflow", form=Form(quotas="erk"))
    own, layout = layers(problem, plain.mask), problem.layout
    assert layout.counts(result.mask) == layout.counts(erk.mask)
    for kept, before in zip(layers(problem, result.mask), own, strict=True):
        assert int((kept & before).sum()) == min(int(kept.sum()), int(before.sum()))
    same = prune_problem(problem, 0.1, "snip", form=Form(quotas="snip"))
    assert torch.equal(same.mask, prune_problem(problem, 0.1, "snip").mask)


def layers(problem: Problem, flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split(problem.layout.sizes)


@pytest.mark.parametrize(
    ("shape", "n_groups"), [((6, 4, 1), 1), ((4, 9, 1), 1), ((8, 3, 9), 1), ((12, 2, 9), 4), ((5, 1, 9), 5)]
)
def test_a_deal_is_balanced_on_both_sides_whatever_the_index(shape: tuple[int, int, int], n_groups: int) -> None:
    generator = torch.Generator().manual_seed(1)
    n_units, n_inputs, taps = shape
    for n_kept in range(n_units * n_inputs * taps + 1):
        mask = deal(torch.randn(shape, generator=generator).exp(), n_kept, n_groups)
        outputs = mask.sum((1, 2))
        inputs = mask.view(n_groups, n_units // n_groups, n_inputs, taps).sum((1, 3))
        assert int(mask.sum()) == n_kept
        assert int(outputs.max() - outputs.min()) <= 1 and int(inputs.max() - inputs.min()) <= 1


def test_a_deal_prefers_what_the_index_prefers() -> None:
    scores = torch.tensor([[5.0, 4.0, 1.0, 0.0], [9.0, 8.0, 2.0, 1.0]]).unsqueeze(2)
    # The second unit sums higher and chooses first: 9 and 8; the first takes of the inputs without a weight: 1 and 0.
    assert deal(scores, 4).squeeze(2).tolist() == [[False, False, True, True], [True, True, False, False]]
    # It gets the odd weight, too.
    assert deal(scores, 3).squeeze(2).tolist() == [[False, False, True, False], [True, True, False, False]]


def test_balanced_places_hold_in_every_layer_of_a_residual_network() -> None:
    problem = residual_problem()
    result = prune_problem(problem, 0.05, None, form=Form(quotas="erk", place="balanced:snip"))
    for name, mask in problem.layout.views(result.mask).items():
        units = problem.units_of(name, mask)
        taps, _ = problem.taps_and_groups(name, mask.shape)
        for loads in (units.sum(1), units.view(len(units), -1, taps).sum((0, 2))):
            assert int(loads.max() - loads.min()) <= 1, name


def test_all_alive_goes_on_from_the_placed_ranking() -> None:
    problem = residual_problem()
    for form in (Form(quotas="erk", place="lot"), Form(quotas="erk + snip", place="balanced:lot")):
        result = prune_problem(problem, 0.03, None, form=form, all_alive_weights=True)
        assert int(result.mask.sum()) == round(0.03 * problem.layout.n_prunable)


# --- bounds ---


@pytest.mark.parametrize("method", ["magnitude", "snip", "synflow", "erk"])
def test_bounds_hold_for_every_method_with_the_exact_number_of_weights(method: str) -> None:
    masks = panning.prune(
        network(), DATA, density=0.1, method=method, min_density={"4.*": 0.5}, max_density={"[02].weight": 0.09}
    )
    assert masks.n_kept == 102 and masks.manifest["min_density"] == {"4.*": 0.5}
    first, second, last = counts(masks)
    assert first <= 54 and second <= 32 and last >= 30
    free = panning.prune(network(), DATA, density=0.1, method=method, min_density={"*": 0.0})
    assert torch.equal(free.flat, panning.prune(network(), DATA, density=0.1, method=method).flat)


def test_what_a_bound_takes_is_shared_in_proportion() -> None:
    plain = counts(panning.prune(network(), density=0.5, method="magnitude", input_shape=(20,)))
    masks = panning.prune(network(), density=0.5, method="magnitude", min_density={"4.*": 1.0}, input_shape=(20,))
    rest = 510 - 60
    wanted = fitted_counts([float(n) for n in plain[:2]], rest, (600, 360))
    assert counts(masks) == [*wanted, 60]


def test_impossible_bounds_say_what_can_be_had() -> None:
    def pruned(**form: dict[str, float]) -> panning.Masks:
        return panning.prune(network(), density=0.1, method="magnitude", input_shape=(20,), **form)

    with pytest.raises(DensityError, match=r"densities from 0.588235294 to 1 of all prunable weights, given 0.1"):
        pruned(min_density={"0.weight": 1.0})
    with pytest.raises(DensityError, match="densities from 0 to 0.05"):
        pruned(max_density={"*": 0.05})
    with pytest.raises(DensityError, match=r"at least 30 of the 60 weights of '4.weight', and .* at most 6"):
        pruned(min_density={"4.*": 0.5}, max_density={"*": 0.1})
    with pytest.raises(ModelError, match=r"Pattern 'fc\*' .* matches none of the prunable weights: 0.weight, 2"):
        pruned(min_density={"fc*": 0.5})
    with pytest.raises(ConfigError, match="min_density of '0' is 2, but must be a density"):
        pruned(min_density={"0": 2})
    with pytest.raises(ConfigError, match="max_density is 0.1, but must be bounds by name pattern"):
        pruned(max_density=0.1)
    with pytest.raises(DensityError, match="All-alive pruning would leave"):
        panning.prune(
            network(), density=0.02, method="magnitude", all_alive=True, max_density={"4.*": 0.02}, input_shape=(20,)
        )


# --- what goes together ---


def test_a_shape_ranks_by_the_places_and_blocks_follow_quotas() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    data = (torch.randn(8, 16), torch.arange(8) % 3)
    masks = panning.prune(model, data, method="snip", place="magnitude", shape="2:4")
    by_magnitude = panning.prune(model, data, method="magnitude", shape="2:4")
    for name in ("0.weight", "2.weight"):
        assert torch.equal(masks[name], by_magnitude[name])
    blocks = panning.prune(model, data, quotas="uniform", place="magnitude", shape="4x1", density=0.25)
    assert counts(blocks) == [128, 128, 12]  # a quarter of each layer, in whole blocks
    for name in ("0.weight", "2.weight"):
        kept = blocks[name].view(-1, 4, blocks[name].shape[1])
        assert torch.equal(kept.any(1), kept.all(1))
    with pytest.raises(MaskError, match="Shape '2:4' itself says how many weights a layer keeps"):
        panning.prune(model, data, method="snip", quotas="erk", shape="2:4")
    with pytest.raises(MaskError, match="Balanced places count single weights, and shape '4x1' moves whole groups"):
        panning.prune(model, data, method="snip", place="balanced:lot", shape="4x1", density=0.25)
    with pytest.raises(MaskError, match="min_density and max_density count single weights"):
        panning.prune(model, data, method="snip", min_density={"*": 0.1}, shape="4x1", density=0.25)


def test_what_does_not_go_together_is_a_sentence() -> None:
    model = network()
    with pytest.raises(MaskError, match="leave method 'snip' nothing to say"):
        panning.prune(model, DATA, density=0.1, method="snip", quotas="erk", place="lot")
    with pytest.raises(UnknownNameError, match="source of quotas 'erkk'"):
        panning.prune(model, DATA, density=0.1, quotas="erkk", place="lot")
    with pytest.raises(UnknownNameError, match="snipp"):
        panning.prune(model, DATA, density=0.1, quotas="erk", place="balanced:snipp")
    with pytest.raises(DataError, match="Place 'snip' scores with a loss and needs data"):
        panning.prune(model, density=0.1, quotas="erk", place="snip", input_shape=(20,))
    with pytest.raises(DataError, match="Method 'snip' scores with a loss"):
        panning.prune(model, density=0.1, quotas="snip", place="lot", input_shape=(20,))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"released": True}, MaskError, "places by lot need no method, and released would change one"),
        ({"control": "shuffle", "n_rounds": 3}, MaskError, "leave a control and a number of rounds away"),
        ({"schedule": "linear"}, MaskError, "leave a schedule away, or name a method"),
        ({"quotas": "uniformly"}, UnknownNameError, "Did you mean 'uniform'"),
        ({"place": "lots"}, UnknownNameError, "place 'lots'. Did you mean 'lot'.* Each may stand behind 'balanced:'"),
        ({"max_density": {3: 0.5}}, ConfigError, "must be bounds by name pattern"),
        ({"min_density": {"*": 0.9}, "max_density": {"*": 0.1}}, DensityError, "raise this one, or lower the other"),
    ],
)
def test_nothing_beside_quotas_and_places_is_ignored_or_a_riddle(
    given: dict[str, object], error: type[PanningError], says: str
) -> None:
    with pytest.raises(error, match=says):
        panning.prune(network(), DATA, **{"density": 0.1, "quotas": "erk", "place": "lot", **given})  # type: ignore[arg-type]


# --- ways ---


def test_tables_name_a_way_by_what_it_is() -> None:
    labels = {
        Method(method="snip", quotas="synflow", min_density={"fc*": 0.1}): (
            "SNIP (quotas of SynFlow; fc* at least 0.1)"
        ),
        Method(method="synflow", place="balanced:lot"): "SynFlow (balanced places by lot)",
        Method(quotas="0.3 erk+0.7 synflow", place="snip"): "quotas of 0.3 ERK + 0.7 SynFlow; places by snip",
        Method(method="snip", released=True, shape="2:4"): "SNIP (released; 2:4)",
    }
    for way, label in labels.items():
        assert way.label == label
        assert Method.model_validate(way.model_dump(mode="json")) == way
        assert Method.model_validate_json(way.model_dump_json(), strict=True) == way
    assert Method(method="snip").model_dump(mode="json") == {"method": "snip"}
    assert Method(quotas="erk+snip", place="lot").model_dump(mode="json") == {"quotas": "erk + snip", "place": "lot"}
    assert len({hash(way) for way in labels}) == len(labels)


def test_a_way_gives_the_mask_of_the_library() -> None:
    problem = residual_problem()
    way = Way(by=Method(quotas="erk + snip", place="balanced:magnitude"), all_alive=True)
    mask = way.prune(problem, 0.05)[0].mask
    form = Form(quotas="erk + snip", place="balanced:magnitude")
    assert torch.equal(mask, prune_problem(problem, 0.05, None, form=form, all_alive_weights=True).mask)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"quotas": "erk"}, "name a method"),
        ({"method": "snip", "quotas": "erkk"}, "erkk"),
        ({"method": "snip", "place": "snipp"}, "snipp"),
        ({"method": "snip", "quotas": "erk", "place": "lot"}, "nothing to say"),
        ({"method": "snip", "dynamic": "rigl", "min_density": {"*": 0.1}}, "a mask that moves"),
    ],
)
def test_ways_that_cannot_be_are_refused_before_any_work(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Method(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="would break the shape"):
        Way(by=Method(method="snip", shape="4x1"), all_alive=True)


def test_nested_densities_share_by_the_same_counts() -> None:
    problem = residual_problem()
    more, fewer = (prune_problem(problem, d, None, form=Form(quotas="erk", place="lot")).mask for d in (0.1, 0.05))
    assert bool((more | ~fewer).all())


def test_a_cap_below_what_a_path_needs_says_what_is_possible() -> None:
    model = network()
    with pytest.raises(
        DensityError, match=r"no weight of '2.weight', and no path gets around it: allow at least 1 of its"
    ):
        panning.prune(model, DATA, density=0.2, max_density={"2*": 0.002})
    assert panning.prune(model, DATA, density=0.2, max_density={"2*": 0.003}).n_kept == 204
    closed = Form(max_density={"block1*": 0.0})  # the sum around the branch leaves a path
    assert prune_problem(residual_problem(), 0.2, "magnitude", form=closed).mask.any()
