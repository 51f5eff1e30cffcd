"""Enforced masks: nothing masked is ever nonzero, whatever the optimizer and the loop; kept weights notice nothing."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

import panning
from panning.foundation.errors import MaskError
from panning.masks.masks import Masks

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name: value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
}
#: What is drawn for those optimizers that have such an option.
OPTIONS: dict[str, list[Any]] = {
    "lr": [1e-3, 0.1],
    "momentum": [0.0, 0.9],
    "weight_decay": [0.0, 0.5],
    "dampening": [0.0, 0.5],
    "nesterov": [False, True],
    "amsgrad": [False, True],
    "centered": [False, True],
    "decoupled_weight_decay": [False, True],
    "initial_accumulator_value": [0.0, 0.1],
    "maximize": [False, True],
    "foreach": [None, False, True],
    "fused": [None, True],
    "t0": [0.0, 1e6],
    "line_search_fn": [None, "strong_wolfe"],
    "adjust_lr_fn": [None, "match_rms_adamw"],
}
SCHEDULES: list[Callable[[Optimizer], Any] | None] = [
    None,
    lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8, cycle_momentum=False),
]
Batch = tuple[Tensor, Tensor]


class Bag(nn.Module):
    """Its only weight has sparse gradients, as SparseAdam wants."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 3, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table(inputs[:, 0, 0].abs().mul(3).long().clamp(max=11)).sum(1)


def network(kind: str = "SGD", seed: int = 0) -> nn.Module:
    """A small network that the optimizer takes: sparse gradients for SparseAdam, matrices alone for Muon."""
    torch.manual_seed(seed)
    if kind == "SparseAdam":
        return Bag()
    if kind == "Muon":
        return nn.Sequential(nn.Flatten(), nn.Linear(128, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh()]
    layers += [nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, 8, 8, generator=generator), torch.arange(6) % 3


def random_masks(model: nn.Module, density: float = 0.3) -> Masks:
    """Of every parameter, biases and norms too, so that each layout of state is met."""
    generator = torch.Generator().manual_seed(0)
    return Masks.from_tensors(
        {name: torch.rand(p.shape, generator=generator) < density for name, p in model.named_parameters()}
    )


def per_weight_state(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """State with one value a weight, by the weight's name; LBFGS keeps that of all weights in one row."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total = sum(parameter.numel() for parameter in owned)
    for parameter, state in optimizer.state.items():
        for value in state.values():
            for tensor in value if isinstance(value, list) else [value]:
                if not isinstance(tensor, Tensor):
                    continue
                if tensor.shape == parameter.shape:
                    yield names[parameter], tensor
                elif tensor.shape == (total,):
                    parts = tensor.split([p.numel() for p in owned])
                    yield from ((names[p], part.view_as(p)) for p, part in zip(owned, parts, strict=True))


def n_leaks(model: nn.Module, masks: Masks, *optimizers: Optimizer) -> int:
    """Masked places that are not zero, in weights, gradients and state; NaN is not zero."""
    found = list(model.named_parameters())
    found += [(name, p.grad.to_dense()) for name, p in model.named_parameters() if p.grad is not None]
    found += [pair for optimizer in optimizers for pair in per_weight_state(model, optimizer)]
    return sum(int(tensor.detach()[~masks[name]].count_nonzero()) for name, tensor in found)


def step(model: nn.Module, optimizer: Optimizer, seed: int = 0) -> float:
    inputs, labels = batch(seed)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss.detach()

    return float(optimizer.step(closure))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@st.composite
def options(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    signature = inspect.signature(OPTIMIZERS[kind]).parameters
    drawn = {name: draw(st.sampled_from(values)) for name, values in OPTIONS.items() if name in signature}
    if drawn.get("fused"):
        drawn["foreach"] = None
    if drawn.get("nesterov") and "dampening" in drawn:
        drawn |= {"momentum": 0.9, "dampening": 0.0}
    return drawn


@pytest.mark.parametrize("kind", OPTIMIZERS)
@settings(max_examples=12)
@given(data=st.data())
def test_no_leak(kind: str, data: st.DataObject) -> None:
    model = network(kind)
    masks = random_masks(model)
    optimizer = OPTIMIZERS[kind](model.parameters(), **data.draw(options(kind), "options"))  # type: ignore[call-arg]
    for seed in range(data.draw(st.integers(0, 2), "steps before")):
        step(model, optimizer, seed)
    panning.enforce_masks(model, masks, optimizer)
    assert n_leaks(model, masks, optimizer) == 0
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    # GradScaler knows no closures, and clip_grad_norm_ no sparse gradients.
    scaled = kind != "LBFGS" and data.draw(st.booleans(), "scaler")
    max_norm = None if kind == "SparseAdam" else data.draw(st.sampled_from([None, 0.1]), "clipping")
    n_batches = data.draw(st.integers(1, 2), "accumulation")
    schedule = data.draw(st.sampled_from(SCHEDULES), "schedule")
    scheduler = schedule and schedule(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**8)
    before = flat(model).clone()
    for number in range(4):

        def closure(number: int = number) -> Tensor:
            optimizer.zero_grad(set_to_none=number % 2 == 0)
            total = torch.zeros(())
            for part in range(n_batches):
                inputs, labels = batch(10 * number + part)
                with torch.autocast("cpu", torch.bfloat16, enabled=scaled):
                    loss = nn.functional.cross_entropy(model(inputs), labels)
                scaler.scale(loss).backward()
                total += loss.detach()
            scaler.unscale_(optimizer)
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            return total

        if kind == "LBFGS":
            optimizer.step(closure)
        else:
            closure()
            scaler.step(optimizer)
            scaler.update()
        if scheduler is not None:
            scheduler.step()
        average.update_parameters(model)
        assert n_leaks(model, masks, optimizer) == 0
        assert n_leaks(average.module, masks) == 0
    assert kind == "LBFGS" or not torch.equal(flat(model), before)  # LBFGS may be at the end already


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_mask_that_keeps_all_changes_no_bit(kind: str) -> None:
    plain, masked = network(kind), network(kind)
    optimizers = [OPTIMIZERS[kind](model.parameters(), lr=0.01) for model in (plain, masked)]  # type: ignore[call-arg]
    panning.enforce_masks(masked, random_masks(masked, density=2.0), optimizers[1])
    for seed in range(3):
        step(plain, optimizers[0], seed)
        step(masked, optimizers[1], seed)
    assert torch.equal(flat(plain), flat(masked))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_from_before_is_masked_at_once(kind: str) -> None:
    model = network(kind)
    masks = random_masks(model)
    optimizer = OPTIMIZERS[kind](model.parameters(), lr=0.01)  # type: ignore[call-arg]
    for seed in range(3):
        step(model, optimizer, seed)
    assert n_leaks(model, masks, optimizer) > 0
    panning.enforce_masks(model, masks, optimizer)
    assert n_leaks(model, masks, optimizer) == 0
    steps = [s["step"] for s in optimizer.state.values() if "step" in s]
    assert all(int(n) == 3 for n in steps)  # counters stay


def test_masked_gradients_are_no_part_of_the_clipping_norm_nor_of_the_scalers_test_for_infinity() -> None:
    model = nn.Linear(3, 1, bias=False)
    model.weight.data.fill_(1.0)
    masks = Masks.from_tensors({"weight": torch.tensor([[True, False, True]])})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    panning.enforce_masks(model, masks, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((model.weight * torch.tensor([[3.0, torch.inf, 4.0]])).nan_to_num(0.0).sum()).backward()
    scaler.unscale_(optimizer)
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)) == 5.0
    scaler.step(optimizer)
    assert model.weight.tolist() == [[pytest.approx(0.94), 0.0, pytest.approx(0.92)]]


@pytest.mark.parametrize(
    "kind", [kind for kind in OPTIMIZERS if "eps" in inspect.signature(OPTIMIZERS[kind]).parameters]
)
def test_nan_at_masked_places_becomes_zero_and_never_a_negative_one(kind: str) -> None:
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, torch.nan, -1.0, -2.0]])
    masks = Masks.from_tensors({"weight": torch.tensor([[True, False, False, True]])})
    with_zero = {} if kind in ("Adafactor", "Muon", "SparseAdam") else {"eps": 0.0}  # 0 / 0 wherever the gradient is 0
    optimizer = OPTIMIZERS[kind](model.parameters(), **with_zero)  # type: ignore[call-arg]
    panning.enforce_masks(model, masks, optimizer)
    for _ in range(3):
        loss = (model.weight * torch.tensor([3.0, torch.inf, torch.nan, 4.0])).sum()
        if kind == "SparseAdam":
            model.weight.grad = torch.tensor([[3.0, torch.inf, torch.nan, 4.0]]).to_sparse(1)
        else:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert model.weight[0, 1:3].tolist() == [0.0, 0.0] and not model.weight[0, 1:3].signbit().any()
        assert n_leaks(model, masks, optimizer) == 0 and model.weight.isfinite().all()


def test_gradients_that_do_not_come_from_backward_are_masked_before_the_optimizer_sees_them() -> None:
    model = network()
    masks = random_masks(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    panning.enforce_masks(model, masks, optimizer)
    inputs, labels = batch(0)

    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        for parameter, grad in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
            parameter.grad = grad
        return loss.detach()

    optimizer.step(closure)
    optimizer.step(closure=closure)
    assert n_leaks(model, masks, optimizer) == 0
    assert optimizer.state[next(model.parameters())]["n_iter"] > 4  # it never had to begin again
    closure()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert n_leaks(model, masks) > 0  # no step of an enforced optimizer has followed yet
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    panning.enforce_masks(model, masks, optimizer)
    closure()
    optimizer.step()
    assert n_leaks(model, masks, optimizer) == 0


def test_the_masked_gradient_is_part_of_the_graph() -> None:
    model = nn.Linear(3, 1, bias=False)
    masks = Masks.from_tensors({"weight": torch.tensor([[True, False, True]])})
    panning.enforce_masks(model, masks, torch.optim.SGD(model.parameters()))
    with pytest.warns(UserWarning, match="create_graph"):
        (model.weight.square() * 3.0).sum().backward(create_graph=True)
    assert model.weight.grad is not None
    (second,) = torch.autograd.grad(model.weight.grad.sum(), model.weight)
    assert second.tolist() == [[6.0, 0.0, 6.0]]
    model.weight.grad = None  # ends the cycle that create_graph made


def test_removing_ends_it() -> None:
    model = network()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with panning.enforce_masks(model, masks, optimizer):
        step(model, optimizer)
        assert n_leaks(model, masks, optimizer) == 0
    step(model, optimizer)
    assert n_leaks(model, masks) > 0
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_what_has_ended_is_not_entered_again() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with panning.enforce_masks(model, random_masks(model), optimizer) as enforcement:
        pass
    with pytest.raises(MaskError, match="has ended.*call enforce_masks again"), enforcement:
        pass


def test_a_frozen_weight_that_is_set_free_has_no_masked_gradient_for_clipping_to_see() -> None:
    model = network()
    model[6].requires_grad_(False)
    model[3].weight.requires_grad_(False)
    model[3].weight.data = model[3].weight.data.to(torch.int8)  # quantized: never learns
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": [*model[1].parameters(), model[3].bias]})
    enforcement = panning.enforce_masks(model, masks, optimizer)
    assert not model[6].weight.requires_grad and n_leaks(model, masks) == 0
    model[6].requires_grad_(True)
    optimizer.add_param_group({"params": model[6].parameters()})
    inputs, _ = batch(0)
    model[6](inputs.flatten(1)[:, :16]).sum().backward()
    assert model[6].weight.grad is not None and n_leaks(model, masks) == 0
    optimizer.step()
    assert n_leaks(model, masks, optimizer) == 0
    enforcement.remove()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_an_optimizer_may_step_while_backward_needs_the_weights_of_another() -> None:
    """One for each parameter, stepped by a hook when its gradient is there, as to save memory."""
    plain, masked = network(), network()
    masks = random_masks(masked)
    panning.apply_masks(plain, masks)
    own = [{p: torch.optim.Adam([p], lr=0.1) for p in model.parameters()} for model in (plain, masked)]

    def step_at_once(parameter: Tensor) -> None:
        for optimizers in own:
            if parameter in optimizers:
                optimizers[parameter].step()
                optimizers[parameter].zero_grad()

    for parameter in (*plain.parameters(), *masked.parameters()):
        parameter.register_post_accumulate_grad_hook(step_at_once)
    panning.enforce_masks(masked, masks, own[1].values())
    for seed in range(3):
        inputs, labels = batch(seed)
        for model in (plain, masked):
            nn.functional.cross_entropy(model(inputs), labels).backward()
        panning.apply_masks(plain, masks)
        assert n_leaks(masked, masks, *own[1].values()) == 0
    assert torch.equal(flat(plain), flat(masked))


def test_copies_and_pickles_hold_the_zeros_and_no_hook() -> None:
    model = network()
    masks, keys = random_masks(model), list(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    panning.enforce_masks(model, masks, optimizer)
    step(model, optimizer)
    assert list(model.state_dict()) == keys
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        cloudpickle.loads(cloudpickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(flat(other), flat(model)) and n_leaks(other, masks) == 0
        own = torch.optim.Adam(other.parameters(), lr=0.1)
        own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        with panning.enforce_masks(other, masks, own):
            step(other, own)
        assert n_leaks(other, masks, own) == 0
        step(other, own)
        assert n_leaks(other, masks) > 0
    assert n_leaks(model, masks, optimizer) == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_of_model_optimizer_and_enforcement_together_is_enforced(duplicate: Callable[[Any], Any]) -> None:
    model = network()
    masks = random_masks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    enforcement = panning.enforce_masks(model, masks, optimizer)
    other, own, again = duplicate((model, optimizer, enforcement))
    step(other, own)
    assert n_leaks(other, masks, own) == 0 and again.parameters["0.weight"] is other[0].weight
    enforcement.remove()
    other, own, again = duplicate((model, optimizer, enforcement))
    step(other, own)
    assert n_leaks(other, masks) > 0 and not again.parameters


def test_loading_dense_state_is_masked_with_the_optimizer() -> None:
    model, dense = network(), network()
    masks = random_masks(model)
    optimizer, other = (torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, dense))
    step(dense, other)
    panning.enforce_masks(model, masks, optimizer)
    model.load_state_dict(dense.state_dict())
    optimizer.load_state_dict(other.state_dict())
    assert n_leaks(model, masks, optimizer) == 0 and optimizer.state[model[0].weight]["exp_avg"].any()


def test_the_mask_follows_the_model_to_other_types_and_orders_in_memory() -> None:
    model = network()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    panning.enforce_masks(model, masks, optimizer)
    model.to(memory_format=torch.channels_last)
    step(model, optimizer)
    assert n_leaks(model, masks, optimizer) == 0
    for dtype in (torch.float64, torch.bfloat16):
        optimizer.state.clear()
        optimizer.zero_grad()
        model.to(dtype)
        inputs, labels = batch(0)
        nn.functional.cross_entropy(model(inputs.to(dtype)), labels).backward()
        assert n_leaks(model, masks) == 0
        optimizer.step()
        assert n_leaks(model, masks, optimizer) == 0


def test_tied_and_frozen_weights_and_several_optimizers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    model[3].requires_grad_(False)
    masks = random_masks(model)
    optimizers = [torch.optim.SGD(model[0].parameters(), 0.1, 0.9), torch.optim.Adam([model[2].bias], 0.1)]
    panning.enforce_masks(model, masks, iter(optimizers))
    for seed in range(3):
        inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        model(inputs).square().sum().backward()
        assert n_leaks(model, masks) == 0
        for optimizer in optimizers:
            optimizer.step()
        assert n_leaks(model, masks, *optimizers) == 0


def test_what_wraps_the_network_may_be_passed() -> None:
    model = network()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = nn.DataParallel(torch.compile(model))
    assert "0.weight" not in dict(wrapped.named_parameters())
    assert panning.enforce_masks(wrapped, masks, optimizer).parameters["0.weight"] is model[0].weight


def test_what_does_not_belong_together_is_refused_before_anything_changes() -> None:
    model = network()
    masks, before = random_masks(model), flat(model).clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(MaskError, match="another network"):
        panning.enforce_masks(model, random_masks(network("Muon")), optimizer)
    with pytest.raises(MaskError, match="masked parameters are in no optimizer, '0.weight' first"):
        panning.enforce_masks(copy.deepcopy(model), masks, optimizer)
    wide = nn.Linear(2, 2, dtype=torch.complex128)
    for arguments, message in [
        ((model, masks, None), "A NoneType is no torch.optim.Optimizer"),
        ((model, masks, model.parameters()), "A Parameter is no torch.optim.Optimizer"),
        ((model, masks, torch.optim.lr_scheduler.StepLR(optimizer, 1)), "A StepLR is no torch.optim.Optimizer"),
        ((model, dict(masks), optimizer), "masks is a dict.*Masks.from_tensors"),
        ((wide, random_masks(wide), torch.optim.SGD(wide.parameters())), "'weight' is torch.complex128"),
    ]:
        with pytest.raises(MaskError, match=message):
            panning.enforce_masks(*arguments)  # type: ignore[arg-type]
    assert torch.equal(flat(model), before) and not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_learns_the_same(backend: str) -> None:
    plain, inner = network(), network()
    masks = random_masks(plain)
    compiled = torch.compile(inner, fullgraph=True, backend=backend)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (plain, inner)]
    panning.enforce_masks(plain, masks, optimizers[0])
    panning.enforce_masks(compiled, masks, optimizers[1])
    for seed in range(4):
        assert step(compiled, optimizers[1], seed) == pytest.approx(step(plain, optimizers[0], seed), rel=1e-4)
        assert n_leaks(inner, masks, optimizers[1]) == 0


def train_on_rank(rank: int, folder: str) -> None:
    """Two ranks: different masks are an error on both, equal ones train to equal weights without a leak."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    inner = network(seed=rank)
    model = DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masks = random_masks(inner)
    dense = random_masks(inner, density=2.0)
    with pytest.raises(MaskError, match=r"Ranks \[1\] hold another mask than rank 0"):
        panning.enforce_masks(model, dense if rank == 1 else masks, optimizer)
    panning.enforce_masks(model, masks, optimizer)
    for number in range(3):
        inputs, labels = batch(2 * number + rank)  # the ranks see different images
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        assert n_leaks(inner, masks) == 0
        optimizer.step()
        assert n_leaks(inner, masks, optimizer) == 0
    torch.save(flat(inner), Path(folder) / f"weights{rank}")
    torch.distributed.destroy_process_group()


def test_ranks_must_hold_one_mask_and_train_without_a_leak(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_on_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"weights{rank}") for rank in range(2))
    assert torch.equal(first, second) and first.any()
