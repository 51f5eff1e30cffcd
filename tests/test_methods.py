"""Exact values and laws of the methods before training: the acceptance tests H1 to H10 and H14 of METHODS.md that are not
in test_signals, test_pruners and test_connectivity."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from toys import chain, flat_mask, mlp_problem, residual_problem

from panning.alive.connectivity import Connectivity
from panning.foundation.errors import DataError, DensityError, PanningError
from panning.masks.allocation import (
    erk_counts,
    igq_counts,
    round_counts,
    smart_ratio_counts,
    top_k,
    uniform_plus_counts,
)
from panning.masks.layout import Layout
from panning.pruners import CONTROLS, PRUNERS, Rounds, prune_problem
from panning.pruners.score_rounds import ScoreRounds
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem, Scoring
from panning.scoring.signals import Signals, coupled, meta
from panning.scoring.signals.ntk import EPSILON, N_IMAGES, N_RESAMPLES, he_deviations
from panning.scoring.signals.site import Site


def dense(problem: Problem) -> Tensor:
    return torch.ones(problem.layout.n_prunable, dtype=torch.bool)


def scores_of(problem: Problem, index: str, mask: Tensor | None = None) -> Tensor:
    return INDICES[index].formula(Signals(problem, dense(problem) if mask is None else mask))


def loss_at(problem: Problem, effective: Tensor, number: int = 0) -> Tensor:
    """The loss as a plain function of the effective weights; only for networks without norms."""
    inputs, labels = problem.batch(number)
    parameters = {**problem.other_parameters(), **problem.layout.views(effective)}
    return F.cross_entropy(functional_call(problem.model, parameters, (inputs,)), labels)


# --- quotas (A1) ---

CONVNET = Layout(("a.weight", "b.weight", "c.weight"), ((8, 3, 3, 3), (16, 8, 3, 3), (10, 64)))  # 216, 1152, 640


def test_uniform_plus_keeps_the_first_convolution_and_a_fifth_of_the_classifier() -> None:
    # 1004 of 2008: the first layer's 216 leave 788 of 1792, more than a fifth, so the rest is uniform.
    assert uniform_plus_counts(CONVNET, 1004) == [216, round(1152 * 788 / 1792), round(640 * 788 / 1792)]
    # 400 of 2008: 184 of 1792 would leave the classifier at 0.103; it gets 0.2 and the middle pays.
    assert uniform_plus_counts(CONVNET, 400) == [216, 400 - 216 - 128, 128]
    with pytest.raises(DensityError, match="smallest density is 0.171"):
        uniform_plus_counts(CONVNET, 300)
    with pytest.raises(DensityError, match="without one"):
        uniform_plus_counts(Layout(("a", "b"), ((3, 4), (2, 3))), 9)


def test_ideal_gas_quotas_solve_their_equation() -> None:
    counts = igq_counts(CONVNET, 400)
    assert sum(counts) == 400
    temperatures = [(size / count - 1) / size for size, count in zip(CONVNET.sizes, counts, strict=True)]
    assert max(temperatures) / min(temperatures) < 1.03  # one F for all, but for rounding
    assert igq_counts(CONVNET, 2008) == [216, 1152, 640] and sum(igq_counts(CONVNET, 1)) == 1


def test_smart_ratio_follows_depth_and_pushes_the_surplus_on() -> None:
    # L = 3: raw 12 and 6 for the two convolutions, the classifier 0.3.
    left = 600 - 192
    total = 12 * 216 + 6 * 1152
    assert smart_ratio_counts(CONVNET, 600) == [round(left * 12 * 216 / total), round(left * 6 * 1152 / total), 192]
    assert smart_ratio_counts(CONVNET, 1400)[0] == 216  # clipped; 992 of the rest go to the next layer
    assert smart_ratio_counts(CONVNET, 1400) == [216, 992, 192]
    divided = smart_ratio_counts(CONVNET, 500, depth_power=2.0)  # 12 and 6 / 4
    assert divided[0] == round(308 * 12 * 216 / (12 * 216 + 1.5 * 1152))
    with pytest.raises(DensityError, match="0.3 of the classifier: 192"):
        smart_ratio_counts(CONVNET, 100)


@pytest.mark.parametrize("counts", [uniform_plus_counts, erk_counts, igq_counts, smart_ratio_counts])
def test_quotas_sum_to_the_budget(counts: Any) -> None:
    for n_kept in (500, 777, 1500, 2007, 2008):
        assert sum(counts(CONVNET, n_kept)) == n_kept


def one_at_a_time(quotas: list[float], n_kept: int, sizes: tuple[int, ...]) -> list[int]:
    """``round_counts`` as one would do it by hand, where weights are missing."""
    counts = [min(int(quota), size) for quota, size in zip(quotas, sizes, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: (counts[i] - quotas[i], -sizes[i]))
    while sum(counts) < n_kept:
        for i in order:
            if counts[i] < sizes[i] and sum(counts) < n_kept:
                counts[i] += 1
    return counts


def test_missing_weights_go_to_all_open_layers_alike() -> None:
    rng = random.Random(0)
    for _ in range(500):
        sizes = tuple(rng.choice((1, 2, 7, 30, 200)) for _ in range(rng.randint(1, 6)))
        quotas = [rng.random() * size * rng.choice((0.0, 0.5, 1.0, 1.5)) for size in sizes]
        least = sum(min(int(quota), size) for quota, size in zip(quotas, sizes, strict=True))
        n_kept = rng.randint(least, sum(sizes))
        assert round_counts(quotas, n_kept, sizes) == one_at_a_time(quotas, n_kept, sizes)
    enormous = (10**12, 10**12, 5)
    assert round_counts([0.0, 0.9, 5.0], 10**12 + 8, enormous) == [5 * 10**11 + 1, 5 * 10**11 + 2, 5]


# --- magnitude, SynFlow-L2 ---


def test_layer_normalised_magnitude_is_as_computed_by_hand() -> None:
    problem = Problem.of(chain([[3.0], [4.0]], [[30.0, -40.0]]), (1,), None)
    torch.testing.assert_close(scores_of(problem, "magnitude_l2norm"), torch.tensor([0.6, 0.8, 0.6, 0.8]))


def test_synflow_l2_is_as_computed_by_hand() -> None:
    # R = a^2 b^2 (two paths): dR/d(a^2) = b^2; the score is |a| b^2.
    problem = Problem.of(chain([[1.0], [2.0]], [[3.0, -4.0]]), (1,), None)
    assert scores_of(problem, "synflow_l2").tolist() == [9.0, 32.0, 3.0, 16.0]
    assert scores_of(problem, "synflow").tolist() == [3.0, 8.0, 3.0, 8.0]


def test_a_path_sum_beyond_float64_is_scaled_and_keeps_its_ranking() -> None:
    # 90 layers of weight 1e4: R = 1e360. SynFlow's score of every weight of a plain chain is R itself.
    deep = chain(*[[[1e4]] for _ in range(90)])
    scores = scores_of(Problem.of(deep, (1,), None), "synflow")
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores, scores[:1].expand(90), rtol=1e-9, atol=0.0)


# --- NTK-SAP (A8) ---


def test_ntk_sap_is_the_mask_gradient_of_the_output_change_at_resampled_weights() -> None:
    # One weight: f = v z. S = sum z^2 (v m - (v + d) m)^2 = m^2 d^2 sum z^2; dS/dm = 2 d^2 sum z^2 at m = 1.
    problem = Problem.of(chain([[5.0]]), (1,), None, seed=3)
    expected = 0.0
    for number in range(N_RESAMPLES):
        from panning.foundation.seeding import torch_generator

        generator = torch_generator(3, "ntk-sap", 0, number)
        z = torch.randn(N_IMAGES, 1, generator=generator)
        torch.randn(1, generator=generator)
        moved = EPSILON * torch.randn(1, generator=generator)
        expected += float(2 * moved**2 * z.square().sum())
    assert scores_of(problem, "ntk_sap").tolist() == pytest.approx([expected], rel=1e-3)


def test_ntk_sap_sees_the_structure_and_the_mask_but_not_the_weights() -> None:
    one, other = residual_problem(seed=0), dataclasses.replace(residual_problem(seed=1), seed=0)
    assert not torch.equal(one.weight, other.weight)
    mask = flat_mask(one.layout, 0.5, 0)
    scores = scores_of(one, "ntk_sap", mask)
    torch.testing.assert_close(scores, scores_of(other, "ntk_sap", mask))
    assert not scores[~mask].any() and (scores[mask] > 0).float().mean() > 0.9


def test_he_deviations_follow_the_fan_in() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(6, 9, 2),
        nn.ConvTranspose2d(9, 6, 2, groups=3),
        nn.Linear(5, 7),
    )  # a transposed weight is [in, out / groups, ...]
    problem = Problem.of(model, (4, 5, 5), None)
    fans = [2 * 9, 6 * 4, 3 * 4, 5]
    found = [part.unique().tolist() for part in problem.layout.views(he_deviations(problem)).values()]
    assert found == [pytest.approx([math.sqrt(2 / fan)]) for fan in fans]


# --- ProsPr (A9) ---


def test_prospr_without_inner_steps_is_snip() -> None:
    problem = residual_problem()
    site = Site(problem, dense(problem))
    snip = scores_of(problem, "snip")
    for gradient in (
        meta.meta_gradient(site, through_steps=True, n_steps=0),
        meta.meta_gradient(site, through_steps=True, learning_rate=0.0),
        meta.meta_gradient(site, through_steps=False, learning_rate=0.0),
    ):
        torch.testing.assert_close((problem.weight * gradient).abs(), snip)


def test_prosprs_full_gradient_is_the_finite_difference_of_training_in_the_gates() -> None:
    problem = mlp_problem(sizes=(4, 5, 3), dtype=torch.float64)
    site = Site(problem, dense(problem))

    def trained(gates: Tensor) -> float:
        """The loss after three plain SGD steps on everything from gates * weight."""
        values = [(problem.weight * gates), *(p.clone() for p in problem.other_parameters().values())]
        names = list(problem.other_parameters())
        for step in range(4):
            values = [value.detach().requires_grad_() for value in values]
            inputs, labels = problem.batch(step)
            parameters = {**dict(zip(names, values[1:], strict=True)), **problem.layout.views(values[0])}
            loss = F.cross_entropy(functional_call(problem.model, parameters, (inputs,)), labels)
            if step < 3:
                grads = torch.autograd.grad(loss, values)
                values = [value - 0.1 * grad for value, grad in zip(values, grads, strict=True)]
        return float(loss.detach())

    scores = problem.weight * meta.meta_gradient(site, through_steps=True)
    first_order = problem.weight * meta.meta_gradient(site, through_steps=False)
    for j in range(0, problem.layout.n_prunable, 3):
        step = torch.zeros_like(problem.weight)
        step[j] = 1e-5
        difference = (trained(1 + step) - trained(1 - step)) / 2e-5
        assert float(scores[j]) == pytest.approx(difference, rel=1e-4, abs=1e-9)
    assert not torch.allclose(scores, first_order, rtol=1e-3)


def test_prospr_draws_a_new_batch_a_step_and_its_release_does_not() -> None:
    asked: list[int] = []
    problem = mlp_problem()
    batch = problem.batch(0)

    def batches(number: int) -> tuple[Tensor, Tensor]:
        asked.append(number)
        return batch

    problem = dataclasses.replace(problem, batches=batches)
    prune_problem(problem, 0.2, "prospr")
    assert asked == [0, 1, 2, 3]
    asked.clear()
    prune_problem(problem, 0.2, "prospr", released=True)
    assert asked == [0, 0, 0, 0]


# --- GCS (A10) ---


def test_gcs_of_equal_groups_is_grasp() -> None:
    # Both groups are the same samples: q = 2 H g, so the masks are equal.
    problem = mlp_problem(dtype=torch.float64)
    inputs, labels = problem.batch(0)
    doubled = dataclasses.replace(problem, batches=lambda n: (inputs.repeat(2, 1), labels.repeat(2)))
    twice_labels = labels.sort().values
    sorted_inputs = inputs[labels.sort(stable=True).indices]
    interleaved = dataclasses.replace(
        problem, batches=lambda n: (sorted_inputs.repeat_interleave(2, 0), twice_labels.repeat_interleave(2))
    )
    signals = Signals(interleaved, dense(problem))
    torch.testing.assert_close(signals.coupled_grad, 2 * Signals(doubled, dense(problem)).hessian_grad)
    assert torch.equal(top_k(scores_of(interleaved, "gcs"), 30), top_k(scores_of(problem, "grasp"), 30))


def test_gcs_is_the_gradient_of_the_scalar_product_of_two_groups() -> None:
    problem = mlp_problem(dtype=torch.float64)
    parts = coupled.split_by_label(problem.batch(0), 2)

    def product(flat: Tensor) -> float:
        flat = flat.clone().requires_grad_()
        grads = []
        for inputs, labels in parts:
            parameters = {**problem.other_parameters(), **problem.layout.views(flat)}
            loss = F.cross_entropy(functional_call(problem.model, parameters, (inputs,)), labels)
            grads.append(torch.autograd.grad(loss, flat)[0])
        return float(grads[0] @ grads[1])

    found = Signals(problem, dense(problem)).coupled_grad
    for j in range(0, problem.layout.n_prunable, 17):
        step = torch.zeros_like(problem.weight)
        step[j] = 1e-5
        difference = (product(problem.weight + step) - product(problem.weight - step)) / 2e-5
        assert float(found[j]) == pytest.approx(difference, rel=1e-4, abs=1e-10)


def test_gcs_group_sums_the_squares_of_all_pairs() -> None:
    problem = mlp_problem(dtype=torch.float64)
    assert len(list(coupled.couplings(Site(problem, dense(problem)), 3))) == 3
    found = Signals(problem, dense(problem)).coupled_grad_norm
    all_pairs = list(coupled.couplings(Site(problem, dense(problem)), 5))
    assert len(all_pairs) == 10
    torch.testing.assert_close(found, sum(q.square() for q in all_pairs).sqrt())  # type: ignore[union-attr]


def test_gcs_group_holds_few_products_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = mlp_problem()
    products: list[weakref.ref[Tensor]] = []
    alive = []
    gradient = coupled.gradient

    def spy(scalar: Tensor, at: Tensor, **options: Any) -> Tensor:
        found = gradient(scalar, at, **options)
        if "create_graph" not in options:
            products.append(weakref.ref(found))
            alive.append(sum(product() is not None for product in products))
        return found

    monkeypatch.setattr(coupled, "gradient", spy)
    _ = Signals(problem, dense(problem)).coupled_grad_norm
    assert len(products) == 10 and max(alive) <= 2


def test_groups_hold_every_label_equally_often() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 1, 0, 2, 0, 1, 2])
    inputs = torch.arange(12.0).unsqueeze(1)
    parts = coupled.split_by_label((inputs, labels), 2)
    assert [part[1].sort().values.tolist() for part in parts] == [[0, 0, 1, 1, 2, 2]] * 2
    assert all(torch.equal(labels[x.long().squeeze(1)], y) for x, y in parts)
    assert sorted(torch.cat([x for x, _ in parts]).squeeze(1).tolist()) == list(range(12))
    thin = coupled.split_by_label((inputs[:3], torch.tensor([0, 1, 2])), 2)  # one sample a label
    assert [len(x) for x, _ in thin] == [2, 1]
    real = coupled.split_by_label((inputs, torch.rand(12, 2)), 5)
    assert [len(x) for x, _ in real] == [3, 3, 2, 2, 2]
    with pytest.raises(DataError, match="at least 5 samples"):
        coupled.split_by_label((inputs[:4], labels[:4]), 5)


# --- SNIP, GraSP, FORCE, staged Panning: laws of H3 to H5 and H9 ---


def test_grasps_kept_weights_are_those_whose_removal_costs_the_gradient_norm_most() -> None:
    # First order: removing w_j changes 1/2 |g|^2 by -w_j (Hg)_j; the exact change ranks the same way for small steps.
    problem = mlp_problem(sizes=(3, 4, 2), dtype=torch.float64)

    def energy(effective: Tensor) -> float:
        effective = effective.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss_at(problem, effective), effective)
        return 0.5 * float(grad.square().sum())

    step, n = 1e-6, problem.weight.numel()
    shrunk = [problem.weight * (1 - step * F.one_hot(torch.tensor(j), n)) for j in range(n)]
    # What removing a part of a weight does to the norm: kept are those that lower it most.
    change = torch.tensor([(energy(weights) - energy(problem.weight)) / step for weights in shrunk])
    kept = top_k(scores_of(problem, "grasp_signed"), 10)
    assert change[kept].max() <= change[~kept].min() + 1e-5 * change.abs().max()


def test_force_revives_and_iterative_snip_does_not_and_releases_differ_in_the_loss_alone() -> None:
    problem = residual_problem()
    for name in ("force", "iter_snip"):
        text, release = PRUNERS[name].pruner, PRUNERS[name].released
        assert isinstance(text, ScoreRounds) and isinstance(release, ScoreRounds)
        assert dataclasses.replace(release, scoring=text.scoring) == text
        masks = [prune_problem(problem, 0.1, name, rounds=Rounds(5), released=r).mask for r in (False, True)]
        assert not torch.equal(*masks)


def test_the_released_loss_is_the_true_classs_logit() -> None:
    from panning.pruners.score_rounds import mean_true_logit

    logits = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert float(mean_true_logit(logits, torch.tensor([1, 0]))) == -4.0


def test_snips_release_scores_with_running_statistics() -> None:
    problem = residual_problem()
    problem.model.norm.running_mean.fill_(0.5)  # type: ignore[union-attr,operator]
    text, release = (prune_problem(problem, 0.1, "snip", released=r).mask for r in (False, True))
    assert not torch.equal(text, release)
    inputs, labels = problem.batch(0)
    weights = {name: p.detach().requires_grad_() for name, p in problem.model.named_parameters()}
    loss = F.cross_entropy(functional_call(problem.model.eval(), weights, (inputs,)), labels)
    expected = torch.autograd.grad(loss, [weights[name] for name in problem.layout.names])
    torch.testing.assert_close(
        Signals(problem, dense(problem), scoring=Scoring(batch_statistics=False)).grad,
        torch.cat([g.flatten() for g in expected]),
    )


def test_what_a_release_does_beyond_its_form_is_said() -> None:
    assert all(row.departure for row in PRUNERS.values() if row.released is not None)
    for name, words in {"snip": "masks biases", "force": "whatever loss is passed", "gcs": "drawn anew"}.items():
        assert words in PRUNERS[name].departure
    with pytest.raises(
        PanningError, match=r"'grasp' has no released form \(not offered: .*Xavier-normal.*these have: snip"
    ):
        prune_problem(mlp_problem(), 0.2, "grasp", released=True)


def test_a_method_without_a_release_says_which_have_one() -> None:
    with pytest.raises(PanningError, match="force"):
        prune_problem(mlp_problem(), 0.2, "magnitude", released=True)


def test_panning_of_synflow_alone_is_dynamic_synflow_under_a_z_score() -> None:
    problem = residual_problem()
    mask = flat_mask(problem.layout, 0.5, 0)
    from panning.scoring.mixing import mix

    scores = mix({"synflow": 1.0, "snip": 0.0, "grasp": 0.0}, Signals(problem, mask), normaliser="zscore")
    signed = problem.weight.double() * Signals(problem, mask).path_grad
    torch.testing.assert_close(scores, ((signed - signed.mean()) / signed.std()).abs())
    assert bool((scores[~mask] > 0).any())  # masked weights have scores and may return


# --- controls (A12, H14) ---


@pytest.mark.parametrize("method", ["synflow", "snip", "erk"])
def test_shuffling_permutes_inside_layers(method: str) -> None:
    problem = residual_problem()
    plain = prune_problem(problem, 0.1, method, rounds=Rounds(3)).mask
    shuffled = prune_problem(problem, 0.1, method, rounds=Rounds(3), control="shuffle").mask
    assert not torch.equal(plain, shuffled)
    assert problem.layout.counts(plain) == problem.layout.counts(shuffled)
    other = prune_problem(dataclasses.replace(problem, seed=5), 0.1, method, rounds=Rounds(3), control="shuffle").mask
    assert not torch.equal(other, shuffled)


def test_a_shuffled_mask_can_be_made_all_alive() -> None:
    problem = mlp_problem(sizes=(20, 30, 30, 4))
    result = prune_problem(problem, 0.05, "magnitude", control="shuffle", all_alive_weights=True)
    assert Connectivity.of(problem).n_alive(result.mask) == int(result.mask.sum()) == round(0.05 * 1620)


def test_a_shuffle_at_equal_effective_density_is_as_alive_as_the_method() -> None:
    problem = mlp_problem(sizes=(20, 30, 30, 4))
    connectivity = Connectivity.of(problem)
    plain = prune_problem(problem, 0.1, "magnitude").mask
    control = prune_problem(problem, 0.1, "magnitude", control="shuffle_alive").mask
    assert 0 < connectivity.n_alive(plain) < int(plain.sum())  # some of magnitude's are dead
    assert connectivity.n_alive(control) == int(control.sum()) == connectivity.n_alive(plain)
    assert int((plain & control).sum()) < 0.3 * int(control.sum())


def test_inversion_keeps_the_lowest_scores() -> None:
    problem = mlp_problem()
    lowest = prune_problem(problem, 0.3, "magnitude", control="invert").mask
    weights = problem.weight.abs()
    assert weights[lowest].max() <= weights[~lowest].min()


@pytest.mark.parametrize("method", PRUNERS)
def test_a_control_of_scores_is_refused_where_there_are_none(method: str) -> None:
    draws = {
        "random",
        "uniform_plus",
        "erk",
        "igq",
        "smart_ratio",
        "smart_ratio_vgg",
        "phew",
        "npb",
        "dpai",
        "precrop_erk",
    }
    problem, few = residual_problem(), Rounds(2)
    if method == "panning":  # places as its policy chooses, by score or by lot
        return
    if method not in draws:
        plain = prune_problem(problem, 0.3, method, rounds=few).mask
        assert not torch.equal(plain, prune_problem(problem, 0.3, method, rounds=few, control="invert").mask)
        return
    with pytest.raises(
        PanningError, match=f"'{method}' has none; these have scores: (panning, )?magnitude, .*synflow"
    ) as caught:
        prune_problem(problem, 0.3, method, rounds=few, control="invert")
    assert "phew," not in str(caught.value) and "erk" not in str(caught.value).replace(f"'{method}'", "")


def test_reinitialising_finds_the_mask_on_permuted_weights() -> None:
    problem = mlp_problem()
    mask = prune_problem(problem, 0.3, "magnitude", control="reinitialise").mask
    assert not torch.equal(mask, prune_problem(problem, 0.3, "magnitude").mask)
    assert torch.equal(problem.weight, problem.layout.flatten(dict(problem.model.named_parameters())))


@pytest.mark.parametrize(("method", "control"), [*itertools.product(["snip", "iter_snip", "panning_staged"], CONTROLS)])
def test_every_control_keeps_exactly_k(method: str, control: str) -> None:
    problem = residual_problem()
    result = prune_problem(problem, 0.07, method, rounds=Rounds(3), control=control)
    n_kept = round(0.07 * problem.layout.n_prunable)
    if control == "shuffle_alive":
        n_kept = Connectivity.of(problem).n_alive(prune_problem(problem, 0.07, method, rounds=Rounds(3)).mask)
    assert int(result.mask.sum()) == n_kept


def test_an_unknown_control_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="Did you mean 'shuffle'"):
        prune_problem(mlp_problem(), 0.2, "snip", control="shufle")


def test_a_module_whose_output_ignores_a_weight_scores_it_zero() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    torch.manual_seed(0)
    batch = torch.randn(10, 3), torch.arange(10) % 2
    problem = Problem.of(Unused(), (3,), lambda n: batch)
    for name in INDICES:
        if name in ("random", "magnitude", "magnitude_l2norm", "magnitude_residual"):
            continue
        scores = problem.layout.views(scores_of(problem, name))
        assert not scores["unused.weight"].any() and scores["used.weight"].any(), name
