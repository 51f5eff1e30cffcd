"""Signals and indices: hand-made values, definitions, theorems, and that scoring leaves the model alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from toys import chain, flat_mask, mlp_problem, residual_problem

from panning.foundation.errors import ConfigError, DataError, ModelError, NonFiniteError
from panning.scoring.indices import INDICES
from panning.scoring.mixing import mix, normalise
from panning.scoring.problem import Problem, Scoring
from panning.scoring.signals import PASSES, Pass, Signals


def dense(problem: Problem) -> Tensor:
    return torch.ones(problem.layout.n_prunable, dtype=torch.bool)


def loss_at(problem: Problem, effective: Tensor) -> Tensor:
    """The loss as a plain function of the effective weights; only for networks without norms."""
    inputs, labels = problem.batch(0)
    parameters = {**problem.other_parameters(), **problem.layout.views(effective)}
    return F.cross_entropy(functional_call(problem.model, parameters, (inputs,)), labels)


def test_indices_of_a_linear_chain_are_as_computed_by_hand() -> None:
    # y = b * (a * x) with loss = y: dL/da = b x, dL/db = a x; g = (b x, a x), H = [[0, x], [x, 0]].
    model = chain([[2.0]], [[-3.0]])
    problem = Problem.of(model, (1,), lambda n: (torch.tensor([[5.0]]), torch.zeros(1)), loss=lambda y, t: y.sum())
    signals = Signals(problem, dense(problem))
    assert signals.loss == -30.0
    assert signals.grad.tolist() == [-15.0, 10.0]
    assert signals.grad_norm == pytest.approx((225 + 100) ** 0.5)
    assert signals.hessian_grad.tolist() == [50.0, -75.0]
    assert signals.path_grad.tolist() == [3.0, 2.0]
    expected = {
        "magnitude": [2.0, 3.0], "snip": [30.0, 30.0], "grasp_signed": [100.0, 225.0], "grasp": [100.0, 225.0],
        "synflow": [6.0, 6.0],
    }  # fmt: skip
    for name, scores in expected.items():
        assert INDICES[name].formula(signals).tolist() == scores, name


def test_a_masked_weight_has_signals_too() -> None:
    # Only the first of two paths is kept: the gradient at the masked weight is that of adding it.
    model = chain([[1.0], [2.0]], [[3.0, 4.0]])
    problem = Problem.of(model, (1,), lambda n: (torch.ones(1, 1), torch.zeros(1)), loss=lambda y, t: y.sum())
    signals = Signals(problem, torch.tensor([True, False, True, True]))
    assert signals.grad.tolist() == [3.0, 4.0, 1.0, 0.0]
    assert signals.grad_norm == pytest.approx((9 + 1) ** 0.5)  # kept weights only
    assert INDICES["synflow"].formula(signals).tolist() == [3.0, 8.0, 3.0, 0.0]


def test_snip_is_the_gradient_of_explicit_gates() -> None:
    problem = mlp_problem()
    gates = torch.ones(problem.layout.n_prunable, requires_grad=True)
    (grad,) = torch.autograd.grad(loss_at(problem, problem.weight * gates), gates)
    scores = INDICES["snip"].formula(Signals(problem, dense(problem)))
    torch.testing.assert_close(scores, grad.abs())


def test_snip_is_the_finite_difference_of_the_loss_in_a_gate() -> None:
    problem = mlp_problem(dtype=torch.float64)
    scores = INDICES["snip"].formula(Signals(problem, dense(problem)))
    step = 1e-6
    for j in (0, 17, 50, problem.layout.n_prunable - 1):
        gate = torch.ones_like(problem.weight)
        gate[j] += step
        up = loss_at(problem, problem.weight * gate)
        gate[j] -= 2 * step
        down = loss_at(problem, problem.weight * gate)
        assert abs(float(up - down)) / (2 * step) == pytest.approx(float(scores[j]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("density", [1.0, 0.6])
def test_hessian_grad_is_a_central_difference_of_half_the_squared_gradient_norm(density: float) -> None:
    problem = mlp_problem(dtype=torch.float64)
    mask = flat_mask(problem.layout, density, 1) if density < 1 else dense(problem)
    signals = Signals(problem, mask)

    def energy(effective: Tensor) -> float:
        effective = effective.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss_at(problem, effective), effective)
        return 0.5 * float((grad * mask).square().sum())

    base = problem.weight * mask
    for j in range(0, problem.layout.n_prunable, 11):
        step = torch.zeros_like(base)
        step[j] = 1e-5
        difference = (energy(base + step) - energy(base - step)) / 2e-5
        assert float(signals.hessian_grad[j]) == pytest.approx(difference, rel=1e-5, abs=1e-10)


def test_hessian_grad_equals_the_dense_hessian_times_the_gradient() -> None:
    problem = mlp_problem(sizes=(3, 5, 4, 2), dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda u: loss_at(problem, u), problem.weight)
    signals = Signals(problem, dense(problem))
    torch.testing.assert_close(signals.hessian_grad, hessian @ signals.grad)


@pytest.mark.parametrize("density", [1.0, 0.6])
def test_hessian_grad_half_is_the_hessian_of_half_of_the_samples_times_the_whole_gradient(density: float) -> None:
    whole = mlp_problem(sizes=(3, 5, 4, 2), dtype=torch.float64)
    inputs, labels = whole.batch(0)
    ranks = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]  # a sample's among those of its label
    chosen = [i for i, rank in enumerate(ranks) if rank % 2 == 0]
    half = dataclasses.replace(whole, batches=lambda number: (inputs[chosen], labels[chosen]))
    mask = flat_mask(whole.layout, density, 1) if density < 1 else dense(whole)
    hessian = torch.autograd.functional.hessian(lambda u: loss_at(half, u), whole.weight * mask)
    signals = Signals(whole, mask)
    signals.request("hessian_grad_half")
    torch.testing.assert_close(signals.hessian_grad_half, hessian @ (signals.grad * mask))
    assert torch.equal(signals.grad, Signals(whole, mask).grad) and 0 < len(chosen) < len(labels)
    scores = INDICES["grasp_half_batch"].formula(signals)
    assert torch.equal(scores, (whole.weight * signals.hessian_grad_half).abs())


def test_one_second_order_pass_yields_first_order_signals_too(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = residual_problem()
    signals = Signals(problem, dense(problem))
    signals.request("grad", "hessian_grad", "loss", "grad_norm")
    alone = Signals(problem, dense(problem))
    no_pass = Pass(lambda site: pytest.fail("a second pass"))
    for name in ("grad", "loss", "grad_norm", "hessian_grad"):
        monkeypatch.setitem(PASSES, name, no_pass)
    torch.testing.assert_close(signals.grad.norm(), torch.tensor(signals.grad_norm))
    monkeypatch.undo()
    torch.testing.assert_close(signals.grad, alone.grad)


def test_what_no_index_weighs_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = residual_problem()
    for name in set(PASSES) - {"path_grad"}:
        monkeypatch.setitem(PASSES, name, Pass(lambda site: pytest.fail("nobody asked for this")))
    mix({"magnitude": 1.0, "synflow": 0.5, "snip": 0.0, "grasp": 0.0}, Signals(problem, dense(problem)))


def test_synflow_is_conserved_at_hidden_units_and_across_layers() -> None:
    problem = mlp_problem(sizes=(6, 8, 7, 3))
    scores = problem.layout.views(INDICES["synflow"].formula(Signals(problem, dense(problem))))
    first, second, third = scores.values()
    torch.testing.assert_close(first.sum(1), second.sum(0), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(second.sum(1), third.sum(0), rtol=1e-9, atol=0.0)
    assert float(first.sum()) == pytest.approx(float(third.sum()), rel=1e-9)


def test_with_batch_statistics_snip_cancels_within_every_filter_that_feeds_a_norm() -> None:
    # The loss does not depend on the scale of such a filter, so sum_j w_j g_j = 0 (METHODS 0).
    problem = residual_problem()
    signals = Signals(problem, dense(problem))
    product = problem.layout.views(signals.weight * signals.grad)["stem.weight"]
    torch.testing.assert_close(product.sum((1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0.0)
    assert float(product.abs().sum()) > 1e-2


def test_synflow_does_not_depend_on_running_statistics() -> None:
    fresh, used = residual_problem(), residual_problem()
    used.model.norm.running_mean.fill_(3.0)  # type: ignore[union-attr,operator]
    used.model.norm.running_var.fill_(9.0)  # type: ignore[union-attr,operator]
    mask = dense(fresh)
    assert torch.equal(Signals(fresh, mask).path_grad, Signals(used, mask).path_grad)


def test_dense_loss_takes_snip_and_grasp_at_the_dense_network_and_synflow_at_the_mask() -> None:
    problem = residual_problem()
    mask = flat_mask(problem.layout, 0.4, 0)
    mixed = Signals(problem, mask, scoring=Scoring(dense_loss=True))
    assert torch.equal(mixed.grad, Signals(problem, dense(problem)).grad)
    assert torch.equal(mixed.path_grad, Signals(problem, mask).path_grad)


def test_what_was_taken_at_the_dense_network_stays_known_for_the_same_batch() -> None:
    problem = residual_problem()
    images, labels = problem.batch(0)
    names = ("hessian_grad", "path_grad", "meta_grad")
    for other, kept in ((images.clone(), {"hessian_grad", "grad", "loss", "grad_norm"}), (images.flip(0), set[str]())):
        two = dataclasses.replace(problem, batches=lambda number, other=other: (other if number else images, labels))
        before = Signals(two, dense(problem), scoring=Scoring(dense_loss=True))
        before.request(*names)
        after = before.at(flat_mask(problem.layout, 0.5, 0), 1)
        assert set(after._known) == kept  # SynFlow's is of the mask; ProsPr reads more batches than the round's
        fresh = Signals(two, after.mask, 1, scoring=Scoring(dense_loss=True))
        assert all(torch.equal(getattr(after, name), getattr(fresh, name)) for name in names)
    at_mask = Signals(problem, dense(problem))
    at_mask.request("hessian_grad")
    assert not at_mask.at(flat_mask(problem.layout, 0.5, 0), 1)._known


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("index", INDICES)
def test_scoring_leaves_the_model_as_it_was(index: str, training: bool, inplace: bool) -> None:
    problem = residual_problem(inplace=inplace)
    model = problem.model.train(training)
    next(model.parameters()).grad = torch.full_like(next(model.parameters()), 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    scores = INDICES[index].formula(Signals(problem, flat_mask(problem.layout, 0.5, 3)))
    assert scores.shape == (problem.layout.n_prunable,) and torch.isfinite(scores).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_scores_do_not_depend_on_the_mode_or_the_global_random_state() -> None:
    problem = residual_problem()
    problem.model.train()
    first = Signals(problem, dense(problem)).grad
    torch.rand(5)
    problem.model.eval()
    assert torch.equal(first, Signals(problem, dense(problem)).grad)


@pytest.mark.parametrize("index", INDICES)
def test_every_index_scores_higher_what_is_kept_and_declares_what_it_reads(index: str) -> None:
    problem = residual_problem()
    row = INDICES[index]
    signals = Signals(problem, dense(problem))
    signals.request(*row.needs)
    known = set(signals._known)
    scores = row.formula(signals)
    assert set(signals._known) == known, "the formula read a signal it does not declare"
    assert row.signed == bool((scores < 0).any())


def test_the_tables_are_not_empty() -> None:
    assert {"magnitude", "snip", "grasp", "synflow", "random"} <= set(INDICES)


def test_mixing_by_sum_and_by_product() -> None:
    problem = mlp_problem()
    signals = Signals(problem, dense(problem))
    a, b = (normalise(INDICES[name].formula(signals), "mean") for name in ("magnitude", "snip"))
    assert float(a.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(mix({"magnitude": 0.5, "snip": 2.0}, signals), 0.5 * a + 2.0 * b)
    torch.testing.assert_close(mix({"magnitude": 0.5, "snip": 2.0}, signals, "product"), a**0.5 * b**2)


def test_zscore_is_the_absolute_standard_score() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0])
    torch.testing.assert_close(normalise(scores, "zscore"), ((scores - 3.0).abs() / scores.std()).double())
    assert normalise(torch.full((3,), 5.0), "zscore").tolist() == [0.0, 0.0, 0.0]


def test_the_panning_normalisation_starts_from_the_sign() -> None:
    # METHODS A11, H9: with weights (1, 0, 0) the score is the absolute z-score of w * dR/d|w|, signed.
    problem = mlp_problem()
    signals = Signals(problem, dense(problem))
    for name, signed in {
        "synflow": signals.weight.double() * signals.path_grad,
        "snip": (signals.weight * signals.grad).double(),
        "grasp": (signals.weight * signals.hessian_grad).double(),
    }.items():
        expected = ((signed - signed.mean()) / signed.std()).abs()
        torch.testing.assert_close(mix({name: 1.0}, signals, normaliser="zscore"), expected)
        assert float(signed.min()) < 0


def test_mixing_refuses_what_has_no_meaning() -> None:
    signals = Signals(mlp_problem(), dense(mlp_problem()))
    with pytest.raises(ConfigError, match="not all 0"):
        mix({"snip": 0.0}, signals)
    with pytest.raises(ConfigError, match="magnitude form"):
        mix({"grasp_signed": 1.0, "snip": 1.0}, signals)
    with pytest.raises(KeyError, match="Did you mean 'snip'"):
        mix({"snp": 1.0}, signals)


def test_no_data_and_not_a_number_are_said_clearly() -> None:
    problem = mlp_problem()
    with pytest.raises(DataError, match="needs data"):
        _ = Signals(dataclasses.replace(problem, batches=None), dense(problem)).grad
    broken = dataclasses.replace(problem, loss=lambda y, t: y.sum() * float("nan"))
    with pytest.raises(NonFiniteError, match="loss on the scoring batch is nan"):
        _ = Signals(broken, dense(problem)).grad
    poisoned = mlp_problem()
    poisoned.model[2].weight.data[0, 0] = float("inf")  # type: ignore[index,union-attr]
    with pytest.raises(NonFiniteError, match=r"'2\.weight'|'0\.weight'|'4\.weight'"):
        _ = Signals(poisoned, dense(poisoned)).path_grad


@pytest.mark.parametrize("signal", [name for name, row in PASSES.items() if row.second_order])
def test_an_operation_without_a_second_derivative_is_named(signal: str) -> None:
    def ctc(logits: Tensor, targets: Tensor) -> Tensor:
        lengths = torch.tensor([len(logits)]), torch.tensor([2])
        return F.ctc_loss(logits.log_softmax(-1).unsqueeze(1), torch.tensor([[1, 2]]), *lengths)

    problem = dataclasses.replace(
        mlp_problem(), batches=lambda number: (torch.ones(15, 6), torch.arange(15) % 3), loss=ctc
    )
    assert torch.isfinite(Signals(problem, dense(problem)).grad).all()
    with pytest.raises(ModelError, match=f"'{signal}' is of second order.*_ctc_loss_backward is not implemented"):
        Signals(problem, dense(problem)).request(signal)


class Cubed(torch.autograd.Function):
    """x^3 with a gradient that torch takes for a constant, as many extensions in C++ have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


@pytest.mark.parametrize("signal", [name for name, row in PASSES.items() if row.second_order])
def test_half_a_second_derivative_is_refused(signal: str) -> None:
    problem = dataclasses.replace(mlp_problem(), loss=lambda y, t: F.cross_entropy(Cubed.apply(y), t))
    signals = Signals(problem, dense(problem))
    cubed = dataclasses.replace(problem, loss=lambda y, t: F.cross_entropy(y**3, t))
    torch.testing.assert_close(signals.grad, Signals(cubed, dense(problem)).grad)
    with pytest.raises(ModelError, match=f"'{signal}' is of second order.*marked once_differentiable"):
        signals.request(signal)


def test_functional_code_is_scored_like_modules() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.out = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))

    class Modular(Functional):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.act = nn.MaxPool2d(2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.pool(self.act(self.conv(x))).flatten(1))

    first, second = Functional(), Modular()
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        model.double()
    problems = [Problem.of(model, (1, 6, 6), None) for model in (first, second)]
    masks = [dense(problem) for problem in problems]
    assert torch.equal(Signals(problems[0], masks[0]).path_grad, Signals(problems[1], masks[1]).path_grad)
